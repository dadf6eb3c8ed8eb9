"""The project as SQLMesh loads it: once per worker, from a cache that the first worker fills."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlmesh import Context

from homes import SharedHomes

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="session")
def loaded_project(shared_home: SharedHomes, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Context]:
    """The loaded project, in a home without a log. Its state and warehouse are never opened."""

    def fill_the_cache(home: Path) -> Path:
        _load(home).close()
        return home

    home = tmp_path_factory.mktemp("loaded") / "home"
    shutil.copytree(shared_home("loaded_project", fill_the_cache), home)
    context = _load(home)
    yield context
    context.close()


def _load(home: Path) -> Context:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LOCKSTEP_HOME", str(home))
        return Context(paths=str(ROOT))
