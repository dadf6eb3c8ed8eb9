"""Tables with any name in the log are models: `changes."order"`, `changes."größe"`, and their columns are read."""

from __future__ import annotations

import shutil
from pathlib import Path

import duckdb
import pytest
from sqlmesh import Context

from debezium_events import deliver, event
from lockstep.init import init
from lockstep.schema import TABLES, declared
from projects import add_in_full

TABLE = (
    '"{}" ("Order Id" int PRIMARY KEY, position int, "before" text, "select" text, "extra" text -- named extra_text\n);'
)
SOURCES = {
    "ORDER": "order",
    "Select": "select",
    "größe": "größe",
    "2 Words": "t_2_words",
    "table": "table",
    "all": "all",
}

SEEDS = {
    "contracts": "lines,shop,batch,60,60,3,2,50,hold,order,Order Id,t_2_words,,position,\n",
    "contract_measures": "lines,lines,sum,count,0,0,,,Lines\n",
}


def test_a_plan_makes_a_model_of_each(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the models only `changes` and `signed`: what the others add to a plan's time says nothing about names."""
    project, home = tmp_path / "project", tmp_path / "home"
    init(project, "\n".join(f"CREATE TABLE {TABLE.format(name)}" for name in SOURCES))
    for models in (project / "models").iterdir():
        if models.name not in ("changes", "signed"):
            shutil.rmtree(models)
    for seed, line in SEEDS.items():
        add_in_full(project / "seeds", seed, line)
    monkeypatch.chdir(project)
    monkeypatch.setenv("LOCKSTEP_HOME", str(home))
    monkeypatch.setattr(TABLES, "_found", declared(project / "source_schema.sql"))
    image = {"Order Id": 1, "position": 2, "before": "b", "select": "s", "extra": "e"}
    events = [event("c", None, image, n=n, tx=n, table=name) for n, name in enumerate(SOURCES, 1)]
    assert set(deliver(home, *events).landed) == set(SOURCES.values())
    context = Context(paths=str(project))
    try:
        context.plan(auto_apply=True, no_prompts=True, include_unmodified=True)
    finally:
        context.close()
    with duckdb.connect(str(home / "warehouse.duckdb"), config={"file_search_path": str(home)}) as db:
        for name in SOURCES.values():
            columns = 'after."Order Id", after.position, after.before, after."select", after.extra_text, after.extra'
            found = db.execute(f'SELECT position, {columns} FROM changes."{name}"').fetchall()
            assert [row[1:] for row in found] == [(1, 2, "b", "s", "e", None)]
            columns = '__weight, "Order Id", position, before, "select", extra_text, extra'
            assert db.execute(f'SELECT {columns} FROM signed."{name}"').fetchall() == [(1, 1, 2, "b", "s", "e", None)]
        assert db.execute("SELECT source_table FROM changes.all_positions ORDER BY position").fetchall() == [
            (name,) for name in SOURCES.values()
        ]
