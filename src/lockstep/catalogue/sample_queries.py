"""Queries of a mart to copy: they run as they stand in the published file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from lockstep.contracts import Contract


@dataclass(frozen=True)
class Query:
    title: str
    sql: str


def queries_of(mart: str, types: Mapping[str, str], grain: Sequence[str], facts: Sequence[Contract]) -> list[Query]:
    """A look at its rows, its sums by a column of its grain if it has both, and how far its figures can be trusted."""
    from sqlglot import exp

    def quoted(name: str) -> exp.Identifier:
        return exp.to_identifier(name, quoted=not name.isidentifier() or not name.islower())

    schema, name = mart.split(".", 1)
    table = exp.Table(this=quoted(name), db=quoted(schema))
    columns = {column: exp.Column(this=quoted(column)) for column in types}
    times = [column for column in grain if types.get(column) in ("TIMESTAMP", "DATE")]
    look = exp.select("*").from_(table).limit(20)
    if times:
        look = look.order_by(exp.Ordered(this=columns[times[0]].copy(), desc=True, nulls_first=False))
    found = [Query("The newest rows" if times else "Some rows", _pretty(look))]
    measures = {m.name for fact in facts for m in fact.all_measures if m.merge == "sum"}
    sums = [column for column in types if column in measures and column not in grain]
    if sums and (by := [column for column in grain if column in types and column not in times]):
        key = next((column for column in by if types[column] == "TEXT"), by[0])
        totals = [exp.alias_(exp.Sum(this=columns[column].copy()), quoted(column)) for column in sums]
        total = exp.select(columns[key].copy(), *totals).from_(table).group_by(columns[key].copy())
        total = total.order_by(exp.Ordered(this=columns[sums[0]].copy(), desc=True, nulls_first=False))
        found.append(Query(f"Totals by {key}", _pretty(total)))
    trust = exp.select("served_from", "is_live", "as_of", "receipt", "reconciled_at", "reason", "as_it_was").from_(
        "about"
    )
    found.append(Query("How far it can be trusted now", _pretty(trust.where(exp.column("mart").eq(mart)))))
    return found


def _pretty(query: object) -> str:
    return str(query.sql("duckdb", pretty=True)) + ";"  # type: ignore[attr-defined]
