"""The models that are in use, as the warehouse has them: names, columns, comments, and the trees of its views.

The query of a view comes from DuckDB's catalog, because that is what is in use: the project may be ahead of the last
plan. DuckDB prints it, and not always exactly: it leaves out parentheses behind a comma, and `1e3`, a DOUBLE, becomes
1000.0, a DECIMAL. So a tree is used only once it is proven: bound to the same tables, the view and its printed query
must have the same logical plan.
"""

from __future__ import annotations

import hashlib
import itertools
import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

import duckdb
from duckdb import DuckDBPyConnection

from lockstep.errors import LockstepError
from lockstep.published import sql
from lockstep.published.sql import Reading, Tree
from lockstep.schema import quoted

Place = Callable[[str, Reading], Tree]  # what a FROM reads instead of a model
Settle = Callable[[Tree], Tree]
# Table functions that tell the same to every reader. All others read files, or the state of a database.
_FUNCTIONS = {"generate_series", "json_each", "json_tree", "range", "repeat", "repeat_row", "unnest"}
_IN_A_CTE = "Put it into a CTE of its own"
_READINGS = (True, False)  # of a comma, by `sql.parse`; the first that is proven is taken


class UnpublishableError(LockstepError):
    """A model that cannot be published, and what to write instead."""


@dataclass(frozen=True)
class Model:
    """A model of the warehouse: `text` is the query of a view, None for a table; `relation` its physical name.

    `columns` has the type and the comment of each.
    """

    name: str
    relation: str
    text: str | None
    comment: str | None
    columns: dict[str, tuple[str, str | None]]

    @property
    def is_view(self) -> bool:
        return self.text is not None

    @property
    def schema(self) -> str:
        return self.name.partition(".")[0]

    @property
    def short(self) -> str:
        return self.name.partition(".")[2]

    @property
    def digest(self) -> str:
        return hashlib.sha256(f"{duckdb.__version__} {self.relation} {self.text}".encode()).hexdigest()

    def empty(self) -> Tree:
        """A query of the model's columns without a row."""
        nulls = ", ".join(f"CAST(NULL AS {kind}) AS {quoted(name)}" for name, (kind, _) in self.columns.items())
        return sql.parse(f"SELECT {nulls} WHERE FALSE")


@dataclass
class Models:
    """Every model of production by name. A development environment's have other schemas (`mart__dev`).

    `proven` says of the digest of a view by which reading of its commas it is what it was.
    """

    _found: dict[str, Model] = field(default_factory=dict)
    _names: dict[tuple[str, str, str], str] = field(default_factory=dict)
    proven: dict[str, bool] = field(default_factory=dict)
    _trees: dict[str, Tree] = field(default_factory=dict)
    _readings: dict[str, list[Reading]] = field(default_factory=dict)

    @classmethod
    def load(cls, connection: DuckDBPyConnection) -> Models:
        """The models of the database that is attached as `warehouse`."""
        models = cls()
        views = connection.execute(
            "SELECT schema_name, view_name, sql, comment FROM duckdb_views() "
            "WHERE database_name = 'warehouse' AND NOT internal"
        ).fetchall()
        physical = {(schema, view): _query(text) for schema, view, text, _ in views if "__" in schema}
        columns: dict[tuple[str, str], dict[str, tuple[str, str | None]]] = {}
        for schema, table, column, kind, comment in connection.execute(
            "SELECT schema_name, table_name, column_name, data_type, comment FROM duckdb_columns() "
            "WHERE database_name = 'warehouse' ORDER BY column_index"
        ).fetchall():
            columns.setdefault((schema, table), {})[column] = (kind, comment)
        for schema, view, text, comment in views:
            place = None if "__" in schema else _shown(text)
            if place:
                name = f"{schema}.{view}"
                models._names[place] = name
                relation = ".".join(map(quoted, place))
                found = columns[schema, view]
                models._found[name] = Model(name, relation, physical.get((place[1], place[2])), comment, found)
        return models

    def __getitem__(self, name: str) -> Model:
        return self._found[name]

    def __contains__(self, name: object) -> bool:
        return name in self._found

    def __iter__(self) -> Any:
        return iter(self._found)

    def tree(self, model: Model) -> Tree:
        """The query of a view, always the same nodes. Raises UnpublishableError if DuckDB does not say what that is."""
        if model.name not in self._trees:
            first = self.proven.get(model.digest, True)
            try:
                self._trees[model.name] = sql.parse(model.text or "", comma_binds_first=first)
            except sql.NotSqlError:
                raise self._not_as_it_was(model) from None
        return self._trees[model.name]

    def readings(self, model: Model) -> list[Reading]:
        """What the query of a view reads but its own CTEs."""
        return [reading for reading in self.all_readings(model) if reading.cte is None]

    def all_readings(self, model: Model) -> list[Reading]:
        """What the query of a view reads, its own CTEs too."""
        if model.name not in self._readings:
            self._readings[model.name] = sql.readings(self.tree(model))
        return self._readings[model.name]

    def reads(self, model: Model) -> list[str]:
        """The models that a view reads, in its own query."""
        if not model.is_view:
            return []
        return [self.name(model, r) for r in self.readings(model) if r.function is None]

    def name(self, model: Model, reading: Reading) -> str:
        """The name of a model that another reads."""
        catalog, schema, table = reading.relation
        if (catalog, schema, table) in self._names:
            return self._names[catalog, schema, table]
        if schema.startswith("sqlmesh__"):
            raise LockstepError(
                f"{model.name} reads {table}, which is of no model in use: the last plan did not end. `sqlmesh plan` "
                "says what stopped it; once that is mended it puts all models into use."
            )
        what = ".".join(part for part in reading.relation if part) or "what DESCRIBE or SHOW tells"
        raise UnpublishableError(f"{model.name} reads {what}, which is not a model. Make a model or a seed of it.")

    def placed(self, model: Model, place: Place, settle: Settle | None = None) -> Tree:
        """The query of a view with what `place` returns instead of each model that it reads.

        `settle` may write in the values of scalar subqueries. What a WHERE then leaves out altogether is not asked for:
        there an empty query stands for each model.
        """
        tree = settle(self.tree(model)) if settle else self.tree(model)
        readings = {id(r.node): r for r in self.readings(model) if r.function is None}  # settling changes none

        def change(node: Tree, place: Place) -> Tree | None:
            if id(node) in readings:
                reading = readings[id(node)]
                return sql.in_place_of(node, place(self.name(model, reading), reading))
            if node.get("type") == "SELECT_NODE" and any(map(sql.is_false, sql.conditions(node))):
                left_out = sql.mapped(node["from_table"], lambda n: change(n, nothing))
                rest = {key: part for key, part in node.items() if key not in ("from_table", "type")}
                kept: Tree = sql.mapped(rest, lambda n: change(n, place))
                return node | kept | {"from_table": left_out}
            return None

        def nothing(name: str, _: Reading) -> Tree:
            return sql.subquery(self[name].empty())

        made: Tree = sql.mapped(tree, lambda node: change(node, place))
        return made

    def require_known(self, model: Model) -> None:
        """Raise UnpublishableError if a view has anything in it whose meaning publishing does not know."""
        for node in sql.walk(self.tree(model) if model.is_view else {}):
            for name in sql.ctes_of(node):
                if sql.RESERVED in name:
                    raise UnpublishableError(
                        f'{model.name} names a CTE "{name}": give it a name without a dot, which are those of models.'
                    )
        for reading in self.readings(model) if model.is_view else []:
            if reading.function is None:
                self.name(model, reading)
            elif reading.function not in _FUNCTIONS:
                raise UnpublishableError(
                    f"{model.name} reads {reading.function}(), which is not there, or another, for who reads the "
                    "published file. Have a model of kind FULL, or a seed, read it, and the mart that one."
                )

    # -- What DuckDB prints is what it has

    def prove(self, connection: DuckDBPyConnection, names: Iterable[str], before: dict[str, bool]) -> dict[str, str]:
        """Prove the trees of these views, but of those proven before; returns what is wrong with the others."""
        views = {name: self[name] for name in names if self[name].is_view}
        self.proven = {m.digest: before[m.digest] for m in views.values() if m.digest in before}
        wrong: dict[str, str] = {}
        new = [model for model in views.values() if model.digest not in self.proven]
        if new:
            paths = "SELECT path FROM duckdb_databases() WHERE database_name = 'warehouse'"
            with duckdb.connect() as twin:
                self._copy_definitions(twin, str(connection.execute(paths).fetchall()[0][0]))
                for model in new:
                    found = {first: self._difference(twin, model, first) for first in _READINGS}
                    same = [first for first, difference in found.items() if difference is None]
                    if same:
                        self.proven[model.digest] = same[0]
                    else:
                        wrong[model.name] = found[True] or ""
        self._trees.clear()  # which may be read otherwise now
        self._readings.clear()
        return wrong

    @staticmethod
    def _copy_definitions(twin: DuckDBPyConnection, path: str) -> None:
        """Views as they are in `kept`; what they read is in `warehouse`, as empty tables."""
        twin.execute(f"ATTACH '{path.replace(chr(39), chr(39) * 2)}' AS original (READ_ONLY)")
        twin.execute("ATTACH ':memory:' AS kept; ATTACH ':memory:' AS warehouse; SET TimeZone = 'UTC'")
        twin.execute("COPY FROM DATABASE original TO kept (SCHEMA)")
        tables: dict[str, list[str]] = {}
        for schema, table, column, kind in twin.execute(
            "SELECT schema_name, table_name, column_name, data_type FROM duckdb_columns() WHERE "
            "database_name = 'original' AND starts_with(schema_name, 'sqlmesh__') ORDER BY schema_name, column_index"
        ).fetchall():
            tables.setdefault(f"{quoted(schema)}.{quoted(table)}", []).append(f"{quoted(column)} {kind}")
        for schema in {name.partition(".")[0] for name in tables}:
            twin.execute(f"CREATE SCHEMA IF NOT EXISTS warehouse.{schema}")
        for name, columns in tables.items():
            twin.execute(f"CREATE TABLE warehouse.{name} ({', '.join(columns)})")

    def _difference(self, twin: DuckDBPyConnection, model: Model, comma_binds_first: bool) -> str | None:
        """Why a view is not what its printed query says; None if it is."""
        try:
            printed = sql.text(sql.parse(model.text or "", comma_binds_first=comma_binds_first))
        except (sql.NotSqlError, duckdb.Error):
            return str(self._not_as_it_was(model))
        plans = []
        for relation in (model.relation.replace('"warehouse"', "kept", 1), f"({printed})"):
            [[answer]] = twin.execute("SELECT json_serialize_plan(?)", [f"FROM {relation}"]).fetchall()
            plan = json.loads(answer)
            if plan["error"]:
                return f"{model.name} cannot be published: {plan['error_message'].splitlines()[0]}"
            plans.append(_canonical(plan))
        return None if plans[0] == plans[1] else str(self._not_as_it_was(model))

    def _not_as_it_was(self, model: Model) -> UnpublishableError:
        return UnpublishableError(
            f"{model.name} cannot be published: DuckDB's catalog does not give back its query as it was written. Write "
            "numbers without an exponent (1000::DOUBLE and not 1e3), and have a CTE of its own for a CROSS JOIN that "
            "stands in parentheses behind another JOIN."
        )


def _query(create_view: str) -> str:
    """The query of a CREATE VIEW statement as DuckDB's catalog has it."""
    tokens = duckdb.tokenize(create_view)
    depth = 0
    for (start, _), (end, _) in itertools.pairwise(tokens):
        token = create_view[start:end].strip()
        depth += (token == "(") - (token == ")")
        if depth == 0 and token.upper() == "AS":
            return create_view[end:].strip().removesuffix(";")
    raise LockstepError(f"The warehouse has a view that publishing cannot read: {create_view[:200]}")


def _shown(create_view: str) -> tuple[str, str, str] | None:
    """The physical name of the model that a view shows, as SQLMesh makes one for each; None of anybody else's view."""
    try:
        found = sql.readings(sql.parse(_query(create_view)))
    except sql.NotSqlError:
        return None
    return found[0].relation if len(found) == 1 and found[0].relation[1].startswith("sqlmesh__") else None


def _canonical(plan: Any) -> Any:
    """A plan without what differs between two of the same meaning.

    That is: places in the text, aliases, how tables are numbered, a CROSS JOIN as a JOIN ON TRUE, a UNION in a UNION,
    and a SELECT of all columns of VALUES.
    """
    numbers: dict[int, int] = {}

    def number(part: Any) -> Any:
        if isinstance(part, list):
            return [number(p) for p in part]
        if not isinstance(part, dict):
            return part
        return {
            k: numbers.setdefault(v, len(numbers)) if k.endswith("_index") and isinstance(v, int) else number(v)
            for k, v in part.items()
        }

    return number(_simple(plan))


def _simple(plan: Any) -> Any:
    if isinstance(plan, list):
        return [_simple(part) for part in plan]
    if not isinstance(plan, dict):
        return plan
    node = {k: _simple(v) for k, v in plan.items() if k not in ("query_location", "alias", "cte_name", "mark_index")}
    kind, below = node.get("type"), node.get("children", [])
    if kind == "LOGICAL_ANY_JOIN" and node["join_type"] == "INNER" and _is_true(node["condition"]):
        left_out = ("join_type", "condition", "left_projection_map", "right_projection_map")
        return {k: v for k, v in node.items() if k not in left_out} | {"type": "LOGICAL_CROSS_PRODUCT"}
    if kind == "LOGICAL_UNION":
        parts = [
            [p] if p["type"] != kind or p.get("setop_all") != node.get("setop_all") else p["children"] for p in below
        ]
        return node | {"children": [part for some in parts for part in some]}
    if kind == "LOGICAL_PROJECTION" and below and below[0]["type"] == "LOGICAL_EXPRESSION_GET":
        shown = [e.get("index") if e["type"] == "BOUND_REF" else None for e in node["expressions"]]
        if shown == list(range(len(below[0]["expr_types"]))):
            return below[0]
    return node


def _is_true(condition: dict[str, Any]) -> bool:
    return condition.get("type") == "VALUE_CONSTANT" and condition["value"].get("value") is True
