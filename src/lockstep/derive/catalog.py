"""What is known of the tables that a query reads, and what DuckDB says of the types of its expressions."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import duckdb
from sqlglot import exp

from lockstep.derive.refusals import Refused


@dataclass(frozen=True)
class Table:
    """A table of the query: its columns with their DuckDB types, its key, and how it changes.

    `not_null`: columns that are never NULL, beyond the key. `is_static`: a seed, which does not change while cells do.
    `is_append_only`: its rows never change and never go, so that the extremes of cells fold like their sums.
    `valid`: the columns (since, until) of a table with `since` in its key: of rows that agree in the rest of the key at
    most one has since <= t < until for any t, which the caller must have audited.
    """

    columns: Mapping[str, str]
    key: tuple[str, ...] = ()
    not_null: frozenset[str] = frozenset()
    is_static: bool = False
    is_append_only: bool = False
    valid: tuple[str, str] | None = None

    def is_nullable(self, column: str) -> bool:
        return column not in self.key and column not in self.not_null


Catalog = Mapping[str, Table]  # by the name that the query has for it: `source.orders`


_WRITTEN = ("alias", "names", "query_location", "is_operator")
_NEGATED = {
    "OPERATOR_IS_NULL": "OPERATOR_IS_NOT_NULL",
    "COMPARE_IN": "COMPARE_NOT_IN",
    "COMPARE_NOT_DISTINCT_FROM": "COMPARE_DISTINCT_FROM",
    "~~": "!~~",
    "~~*": "!~~*",
}
_ONE_NAME = {
    **dict.fromkeys(("pow", "power", "^"), "**"),
    **dict.fromkeys(("^@", "prefix"), "starts_with"),
    **dict.fromkeys(("instr", "position"), "strpos"),
    **dict.fromkeys(("argmax", "max_by"), "arg_max"),
    **dict.fromkeys(("argmin", "min_by"), "arg_min"),
    "mod": "%",
    "substr": "substring",
    "len": "length",
    "ceiling": "ceil",
    "suffix": "ends_with",
    "datediff": "date_diff",
    "datetrunc": "date_trunc",
    "datepart": "date_part",
    "lcase": "lower",
    "ucase": "upper",
}


def _plain(node: dict[str, Any]) -> dict[str, Any]:
    """A node of a plan without what differs between ways to write it: MOD(a, b), a % b; IS NOT NULL, NOT IS NULL."""
    node = {part: value for part, value in node.items() if part not in _WRITTEN}
    if node.get("type") == "OPERATOR_NOT":
        [inner] = node["children"]
        for part in ("type", "name"):
            if inner.get(part) in _NEGATED:
                return {**inner, part: _NEGATED[inner[part]]}
    kind, name = node.get("expression_class"), node.get("name")
    if kind == "BOUND_CONSTANT" and isinstance(node["value"].get("value"), str):
        node["value"] = {**node["value"], "value": node["value"]["value"].lower()}
    elif kind == "BOUND_CAST" and node["child"].get("expression_class") == "BOUND_CONSTANT":
        value = str(node["child"]["value"].get("value"))
        number, _, unit = value.partition(" ")
        if number.isdigit():
            node = {"number": number, "unit": unit.rstrip("s")} if unit else {**node, "child": None, "number": number}
    elif kind == "BOUND_FUNCTION" and str(name).startswith("to_") and _number(node["children"][0]):
        node = {"number": _number(node["children"][0]), "unit": str(name)[3:].rstrip("s")}
    elif kind in ("BOUND_FUNCTION", "BOUND_AGGREGATE", "BOUND_WINDOW"):
        node["name"] = _ONE_NAME.get(str(name), name)
    return node


def _number(node: Any) -> str | None:
    """The number below casts, as `_plain` leaves it: 2 days are TO_DAYS of it."""
    while isinstance(node, dict) and "number" not in node:
        node = node.get("child") or next(iter(node.get("children") or [None]))
    return node["number"] if node else None


def table_of(name: str) -> exp.Table:
    """Return the node for a table of the catalog, quoted, because its name may be a reserved word."""
    parts = dict(zip(("table", "db", "catalog"), reversed(name.split(".")), strict=False))
    return exp.table_(**parts, quoted=True)


class Types:
    """Asks DuckDB itself for the types of queries and expressions, over empty tables."""

    def __init__(self, catalog: Catalog) -> None:
        self._connection = duckdb.connect(":memory:", config={"threads": 1})
        for name, table in catalog.items():
            relation = table_of(name)
            if relation.db:
                self._connection.execute(f"CREATE SCHEMA IF NOT EXISTS {relation.args['db'].sql('duckdb')}")
            self.add(relation, table.columns.items())

    def add(self, table: exp.Table, columns: Iterable[tuple[str, str]]) -> None:
        """Add an empty table."""
        listed = ", ".join(f"{exp.to_identifier(column, quoted=True).sql('duckdb')} {kind}" for column, kind in columns)
        self._connection.execute(f"CREATE TABLE {table.sql('duckdb')} ({listed})")

    def of_query(self, query: str, has_lines: bool = True) -> list[tuple[str, str]]:
        """The names and types of a query's columns. Raises Refused with what DuckDB has against the query.

        `has_lines`: its lines are those that the user knows it by.
        """
        try:
            found = self._connection.execute(f"DESCRIBE {query}").fetchall()
        except duckdb.Error as e:
            said = str(e).split("\n\nLINE ")
            line = f"line {said[1].split(':')[0]}: " if has_lines and len(said) > 1 else ""
            raise Refused(f"{line}{' '.join(said[0].split())}", None, "DuckDB does not take the query.") from None
        return [(row[0], row[1]) for row in found]

    def tree(self, query: str) -> Any:
        """DuckDB's own syntax tree of a query."""
        found = self._connection.execute("SELECT JSON_SERIALIZE_SQL(?)", [query]).fetchone()
        assert found is not None
        return json.loads(found[0])

    def plan(self, query: str) -> Any:
        """What DuckDB reads a query as: its unoptimized plan, equal for all ways to write the same."""
        found = self._connection.execute("SELECT JSON_SERIALIZE_PLAN(?, optimize := FALSE)", [query]).fetchone()
        assert found is not None
        plan = json.loads(found[0], object_hook=_plain)
        if plan["error"]:
            raise Refused(plan["error_message"], None, "DuckDB does not take the query.")
        return plan["plans"]

    def of(self, tables: Sequence[tuple[str, str]], expressions: Sequence[exp.Expr]) -> list[str]:
        """The types of expressions over `tables`, which are pairs of alias and name."""
        return [kind for _, kind in self.of_query(_selected(tables, expressions).sql("duckdb"))] if expressions else []

    def of_union(self, sides: Sequence[tuple[Sequence[tuple[str, str]], Sequence[exp.Expr]]]) -> list[str]:
        """The types that a UNION ALL of expressions over tables gives them."""
        queries = [_selected(tables, expressions).sql("duckdb") for tables, expressions in sides]
        return [kind for _, kind in self.of_query(" UNION ALL ".join(queries))]


def _selected(tables: Sequence[tuple[str, str]], expressions: Sequence[exp.Expr]) -> exp.Select:
    query = exp.select(*(e.copy().as_(f"e{i}") for i, e in enumerate(expressions)))
    if tables:
        query = query.from_(table_of(tables[0][1]).as_(tables[0][0], table=True))
    for alias, name in tables[1:]:
        query = query.join(table_of(name).as_(alias, table=True), join_type="cross")
    return query


def summed(plan: Any) -> Iterator[tuple[str, str]]:
    """Each SUM and AVG in a plan, windows included, and the type of its argument."""
    if isinstance(plan, dict):
        if plan.get("name") in ("sum", "avg") and plan.get("arguments"):
            yield plan["name"], plan["arguments"][0]["id"]
        plan = list(plan.values())
    if isinstance(plan, list):
        for part in plan:
            yield from summed(part)
