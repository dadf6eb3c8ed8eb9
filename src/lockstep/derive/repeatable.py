"""Queries that need not be derived: what they must not have is what gives other figures for the same rows."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from typing import Any

import duckdb
from sqlglot import exp

from lockstep.derive.catalog import Catalog, Types
from lockstep.derive.refusals import Refused

_BY_ORDER = frozenset(  # aggregates whose value depends on the order in which rows come
    {
        *("any_value", "approx_quantile", "arbitrary", "array_agg", "first", "group_concat", "last", "list", "listagg"),
        *("reservoir_quantile", "string_agg"),
    }
)

_RANKS = (exp.FirstValue, exp.Lag, exp.LastValue, exp.Lead, exp.NthValue, exp.Ntile, exp.RowNumber)
_SAY = "Say in which order the first rows come."


def require_repeatable(query: exp.Query, catalog: Catalog) -> None:
    """Raise Refused if a query may give other figures for the same rows.

    DuckDB says which functions do. Ties that an ORDER BY leaves open are not looked for. Columns of tables that change
    must be named, so that the query means the same over any table that has them.
    """
    if not any(_is_moving(table, catalog) for table in query.find_all(exp.Table)):
        raise Refused("It reads no table of source", None, "Live figures come from changes of tables.")
    for select in query.find_all(exp.Select):
        joins = select.args.get("joins") or ()
        tables = [part.this for part in (select.args.get("from_"), *joins) if part]
        moving = [t for t in tables if isinstance(t, exp.Table) and _is_moving(t, catalog)]
        listed = [e for e in select.expressions if not (e.is_star and _is_asked_for_existence(select))]
        stars = (s for e in listed for s in e.find_all(exp.Star) if not isinstance(s.parent, exp.Count))
        if moving and (star := next(stars, None)):
            raise Refused(f"* of {moving[0].sql('duckdb')}", star, "Name the columns.")
        for join in joins:
            if join.method.upper() in ("NATURAL", "POSITIONAL"):
                raise Refused(f"{join.method.upper()} JOIN", join, "Join ON the columns that must be equal.")
        distinct = select.args.get("distinct")
        if distinct and distinct.args.get("on") and not select.args.get("order"):
            raise Refused("DISTINCT ON without ORDER BY", distinct, _SAY)
        named = {e.alias_or_name.lower() for e in select.expressions} | {
            column.lower() for table in catalog.values() for column in table.columns
        }
        rows = {t.alias_or_name.lower() for t in moving} - named
        for column in select.find_all(exp.Column):
            if not column.table and column.name.lower() in rows and column.parent_select is select:
                raise Refused(f"{column.name}, a whole row", column, "Name the columns.")
    for window in query.find_all(exp.Window):
        if isinstance(window.this, _RANKS) and not window.args.get("order"):
            raise Refused(window.sql("duckdb")[:60], window, "Say in which order it goes.")
    if pivot := query.find(exp.Pivot):
        raise Refused("PIVOT", pivot, "Write a column for each value, with FILTER.")
    for limited in query.find_all(exp.Query):
        if (limited.args.get("limit") or limited.args.get("offset")) and not limited.args.get("order"):
            raise Refused("LIMIT without ORDER BY", limited, _SAY)
    if sample := query.find(exp.TableSample):
        raise Refused("TABLESAMPLE", sample, "Filter by a column instead: a sample is another one each time.")
    types, text = Types(catalog), query.sql("duckdb")
    for node in _nodes(types.tree(text)):
        name = str(node.get("function_name")).lower()
        if name in _BY_ORDER and not (node.get("order_bys") or {}).get("orders"):
            raise Refused(f"{name.upper()}() without ORDER BY", None, "Say in which order the rows come.")
    for node in _nodes(types.plan(text)):  # where CURRENT_DATE, too, is a function
        name = str(node.get("name"))
        if node.get("expression_class") == "BOUND_FUNCTION" and name in _volatile():
            raise Refused(f"{name.upper()}()", None, "It gives something else each time. Use columns of the tables.")


def _is_moving(table: exp.Table, catalog: Catalog) -> bool:
    found = catalog.get(f"{table.db}.{table.name}")
    return found is not None and not found.is_static


def _is_asked_for_existence(select: exp.Select) -> bool:
    """Whether only EXISTS reads a query, and which rows there are does not depend on the columns that it selects."""
    return isinstance(select.parent, exp.Exists) and not select.args.get("distinct") and not select.args.get("group")


@functools.cache
def _volatile() -> frozenset[str]:
    """The functions of DuckDB that may give something else when they are called again."""
    with duckdb.connect() as connection:
        found = connection.execute(
            "SELECT DISTINCT function_name FROM duckdb_functions() WHERE stability <> 'CONSISTENT'"
        ).fetchall()
    return frozenset(name for (name,) in found) - {"error"}


def _nodes(plan: Any) -> Iterator[dict[str, Any]]:
    if isinstance(plan, dict):
        yield plan
    for part in plan.values() if isinstance(plan, dict) else plan if isinstance(plan, list) else ():
        yield from _nodes(part)
