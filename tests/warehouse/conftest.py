"""What the tests of this folder share."""

from pathlib import Path

import pytest
from sqlmesh import Context


@pytest.fixture(scope="session")
def loaded_project(tmp_path_factory):
    """The project as SQLMesh loads it, with an empty data home. Loaded once per process: do not plan or change it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LOCKSTEP_HOME", str(tmp_path_factory.mktemp("home")))
        context = Context(paths=str(Path(__file__).parents[2]))
    yield context
    context.close()
