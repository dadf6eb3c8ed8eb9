"""The models of the project in the current directory, each rendered from its file when it is asked for.

A plan loads every model, computes it and keeps a state: half a minute. Here a model costs hundredths of a second, so
that a property can have a project of its own for every case. Signals and audits are left out: nothing is scheduled.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any, ClassVar

import duckdb
from sqlglot import exp
from sqlmesh.core.dialect import MacroFunc, parse
from sqlmesh.core.model import Model, load_sql_based_models

from lockstep.derived import _macros
from lockstep.loader import require_macros
from lockstep.project import project

# What incremental models are rendered for: rendering takes longer than putting other hours into the text.
ANY_HOURS = datetime(1971, 1, 1, 1), datetime(1972, 2, 2, 2)


class Stamped:
    """The models as the project has them now."""

    def __init__(self) -> None:
        require_macros()
        self._macros = _macros()
        self._models: dict[str, Model] = {}
        self._stamps: dict[str, exp.Expression] = {}
        self._files: dict[tuple[str, str], list[Path]] = {}

    def query(self, name: str) -> str:
        """A model's query as SQLMesh renders it, if it is incremental for the hours of `ANY_HOURS`."""
        start, end = ANY_HOURS
        return self._get(name).render_query_or_raise(start=start, end=end).sql("duckdb")

    def _get(self, name: str) -> Model:
        """Files are read until one has it; `reconcile.f0_added_up` lies in one called `each_..._added_up`."""
        schema, _, short = name.partition(".")
        end = "_added_up" if short.endswith("_added_up") else ""
        if (schema, end) not in self._files:
            self._files[schema, end] = sorted((project() / "models" / schema).glob(f"*{end}.sql"))
        while name not in self._models:
            self._load(self._files[schema, end].pop(0))
        return self._models[name]

    def _load(self, path: Path) -> None:
        expressions = parse(path.read_text(encoding="utf-8"), default_dialect="duckdb")
        head = expressions[0]
        head.set("expressions", [p for p in head.expressions if p.name.lower() not in ("signals", "audits")])
        for part in head.expressions:
            if part.name.lower() == "blueprints":
                part.set("value", self._blueprints(part.args["value"]))
        for model in load_sql_based_models(
            expressions,
            get_variables=lambda _: {},
            path=path,
            module_path=project(),
            dialect="duckdb",
            macros=self._macros,
        ):
            self._models[model.name.replace('"', "")] = model

    def _blueprints(self, call: MacroFunc) -> exp.Expression:
        """What a macro stamps models with; called as it is, once: SQLMesh would take down its source for each file."""
        if call.sql() not in self._stamps:
            stamp = self._macros[call.this.name.lower()].func
            self._stamps[call.sql()] = stamp(None, *call.this.expressions)
        return self._stamps[call.sql()].copy()


class Warehouse:
    """A DuckDB in which the models are tables and views.

    `version` tells the texts of a model apart, which are kept for as long as the process lives: while a property
    shrinks, its queries stay. `stamped` is called where a text is not there yet.
    """

    _texts: ClassVar[dict[tuple[Hashable, ...], str]] = {}

    def __init__(self, home: Path, version: Callable[[str], Hashable], stamped: Callable[[], Stamped]) -> None:
        self._version = version
        self._stamped = stamped
        self._views: dict[str, str] = {}
        self._connection = duckdb.connect()
        self._connection.execute("SET TimeZone = 'UTC'; ATTACH ':memory:' AS warehouse; USE warehouse")
        self._connection.execute(f"SET file_search_path = '{home}'")

    def query(self, name: str, start: datetime = ANY_HOURS[0], end: datetime = ANY_HOURS[1]) -> str:
        """A model's query, if it is incremental for the hours from `start` until `end`."""
        key = name, self._version(name)
        if key not in self._texts:
            self._texts[key] = self._stamped().query(name)
        text = self._texts[key]
        for rendered, wanted in zip(_bounds(*ANY_HOURS), _bounds(start, end), strict=True):
            text = text.replace(rendered, wanted)
        return text

    def view(self, name: str, *hours: datetime) -> None:
        """What a model reads must be there."""
        query = self.query(name, *hours)
        if self._views.get(name) != query:
            self.execute(f"CREATE SCHEMA IF NOT EXISTS {name.partition('.')[0]}")
            self.execute(f"CREATE OR REPLACE VIEW {name} AS {query}")
            self._views[name] = query

    def empty(self, name: str) -> None:
        """The table of an incremental model, without rows."""
        self.execute(f"CREATE SCHEMA IF NOT EXISTS {name.partition('.')[0]}")
        self.execute(f"CREATE TABLE {name} AS SELECT * FROM ({self.query(name)}) LIMIT 0")

    def fill(self, name: str, *hours: datetime) -> None:
        """Add what a model computes, of hours that have not been computed before."""
        self.execute(f"INSERT INTO {name} BY NAME {self.query(name, *hours)}")

    def execute(self, statement: str, *parameters: Any) -> list[tuple[Any, ...]]:
        return self._connection.execute(statement, parameters).fetchall()


def _bounds(start: datetime, end: datetime) -> tuple[str, str]:
    """The first and the last instant as SQLMesh writes them."""
    return f"'{start}'", f"'{end - timedelta(microseconds=1)}'"
