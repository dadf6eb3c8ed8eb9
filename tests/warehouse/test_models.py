"""SQLMesh's unit tests of the models, a file at a time, so that workers share them. `sqlmesh test` runs them alone."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
from sqlmesh import Context

FILES = sorted(Path(__file__).parents[1].glob("test_*.yaml"))


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_models(loaded_project: Context, path: Path) -> None:
    told = io.StringIO()
    result = loaded_project.test(tests=[str(path)], stream=told)
    assert result.testsRun > 0
    assert result.wasSuccessful(), told.getvalue()
