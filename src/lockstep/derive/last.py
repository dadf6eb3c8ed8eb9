"""Queries that keep the last row of each group, over an append-only table.

    SELECT driver_id, recorded_at AS latest_at, _position AS latest_position, speed_kmh
    FROM source.gps_pings
    QUALIFY ROW_NUMBER() OVER (PARTITION BY driver_id ORDER BY latest_at DESC, latest_position DESC) = 1

The last row of a union is the last of the last rows of its parts, in whatever order and however often these are taken.
It is the maximum by a total order, which folds by itself over insertions and not over deletions (Palpanas et al.,
Incremental maintenance for non-distributive aggregate functions, VLDB 2002). So the table must be declared append-only.
A cell keeps the whole row and what it is ordered by. An ARG_MAX of each column would skip NULLs and mix columns of
different rows.
"""

from __future__ import annotations

from collections.abc import Sequence

from sqlglot import exp

from lockstep.derive.catalog import Catalog, Types
from lockstep.derive.products import Product
from lockstep.derive.refusals import Refused
from lockstep.names import LAST_BY

_AT, _POSITION = LAST_BY


def rows_of_last(query: exp.Query, grain: Sequence[str], types: Types) -> exp.Select:
    """A query without its QUALIFY: all the rows from which it picks the last of each group. Raises Refused."""
    form = (
        f"Write QUALIFY ROW_NUMBER() OVER (PARTITION BY {', '.join(grain)} ORDER BY {_AT} DESC, {_POSITION} DESC) = 1, "
        "and select these columns."
    )
    qualify = query.args.get("qualify")
    if not isinstance(query, exp.Select) or not isinstance(qualify, exp.Qualify):
        raise Refused("It does not say which row of a group is the last", query, form)
    found = [name for name in (*grain, _AT, _POSITION) if name not in {s.alias_or_name for s in query.selects}]
    if found:
        raise Refused(f"{found[0]} is not selected", query, form)
    selected = {s.alias_or_name: s.unalias() for s in query.selects}
    number = exp.Window(
        this=exp.RowNumber(),
        partition_by=[selected[name].copy() for name in grain],
        order=exp.Order(
            expressions=[exp.Ordered(this=selected[n].copy(), desc=True, nulls_first=False) for n in LAST_BY]
        ),
    )
    meant = query.copy()
    meant.set("qualify", exp.Qualify(this=number.eq(1)))
    if types.plan(query.sql("duckdb")) != types.plan(meant.sql("duckdb")):  # as DuckDB reads its names
        raise Refused("Another choice of rows than the last of each group", qualify, form)
    rows = query.copy()
    rows.set("qualify", None)
    return rows


def require_last(product: Product, catalog: Catalog, types: Types) -> None:
    """Refuse rows that can be deleted, and an order in which two rows can tie."""
    columns = {name: product.columns["", name] for name in LAST_BY}
    moving = [(alias, name) for alias, name in product.tables if not catalog[name].is_static]
    for _, name in moving:
        if not catalog[name].is_append_only:
            raise Refused(
                f"The last row of {name}, whose rows can be deleted", None, "Declare it append-only, if it is."
            )
    position = _plain(columns[_POSITION])
    if len(moving) != 1 or product.sign < 0:
        raise Refused("The last row of a join", None, "Read one table that changes, and join where it is read.")
    if not isinstance(position, exp.Column) or position.name != "_position" or position.table != moving[0][0]:
        raise Refused(f"{_POSITION} is not the row's _position", None, f"Write _position::BIGINT AS {_POSITION}.")
    [kind] = types.of(product.all_tables(), [_plain(columns[_AT])])
    if not kind.startswith(("TIMESTAMP", "DATE")):  # a text that is none would be NULL in the increments
        raise Refused(f"{_AT} is cast from {kind}", None, "Order by a column that is a time.")
    if _may_be_null(columns[_AT], dict(moving), catalog):
        raise Refused(f"{_AT} may be NULL", None, "Give it a time by COALESCE: a row without one is in no order.")


def _plain(value: exp.Expr) -> exp.Expr:
    while isinstance(value, exp.Cast | exp.Paren):
        value = value.this
    return value


def _may_be_null(value: exp.Expr, tables: dict[str, str], catalog: Catalog) -> bool:
    plain = _plain(value)
    if isinstance(plain, exp.Column):
        return plain.table not in tables or catalog[tables[plain.table]].is_nullable(plain.name)
    if isinstance(plain, exp.Coalesce | exp.Least | exp.Greatest):  # DuckDB's skip NULLs
        return all(_may_be_null(part, tables, catalog) for part in (plain.this, *plain.expressions))
    return not isinstance(plain, exp.Literal)
