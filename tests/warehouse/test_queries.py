"""A run learns the types of its models' columns from SQLMesh's cache; a model that was loaded is not rendered again."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from sqlmesh import Context
from sqlmesh.core.dialect import parse
from sqlmesh.core.macros import MacroEvaluator
from sqlmesh.core.model import SqlModel, load_sql_based_model
from sqlmesh.core.model.cache import ModelCache, OptimizedQueryCache
from sqlmesh.core.renderer import BaseExpressionRenderer

import lockstep.onewriter  # noqa: F401 - prepares SQLMesh
from company import two_days
from lockstep.loader import WithoutUnitTests

__all__ = ["two_days"]  # a fixture

ROOT = Path(__file__).parents[2]


def test_columns_come_from_the_cache(
    two_days: Path, loaded_project: Context, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(two_days, tmp_path, symlinks=True, dirs_exist_ok=True)
    monkeypatch.setenv("LOCKSTEP_HOME", str(tmp_path))
    context = Context(paths=str(ROOT), load=False, loader=WithoutUnitTests)
    try:
        planned = context.state_reader.get_environment("prod").snapshots
        models = [s.model for s in context.state_reader.get_snapshots(planned).values()]
        monkeypatch.setattr(BaseExpressionRenderer, "_render", lambda *_, **__: pytest.fail("a query was rendered"))
        found = {m.fqn: m.columns_to_types for m in models if isinstance(m, SqlModel)}
    finally:
        context.close()
    monkeypatch.undo()
    assert len(found) > 100
    assert found == {name: loaded_project.models[name].columns_to_types for name in found}


def test_a_loaded_model_keeps_its_rendered_query(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = "MODEL (name mart.one, dialect duckdb); SELECT MAX(n) AS n FROM mart.other WHERE n > @EVAL(1 + 1)"
    models, cache = [load_sql_based_model(parse(text))], ModelCache(tmp_path)
    assert not cache.put(models, "one")  # so that SQLMesh does not read them back
    monkeypatch.setattr(MacroEvaluator, "transform", lambda *_: pytest.fail("a query was rendered"))
    assert "> 2" in models[0].render_query(needs_optimization=False).sql()
    [read] = cache.get("one")
    assert OptimizedQueryCache._entry_name(models[0]) == OptimizedQueryCache._entry_name(read)
