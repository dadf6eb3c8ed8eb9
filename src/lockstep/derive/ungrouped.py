"""The rows that a grouped query adds up: one per row of its source, with its keys and what it contributes to each sum.

A sum over groups is linear (Gupta, Mumick and Subrahmanian, SIGMOD 1993), so its increments are sums of signed rows of
the query without GROUP BY, in which COUNT(*) is 1 and SUM(e) is e.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from sqlglot import exp

from lockstep.derive.normal import own
from lockstep.derive.refusals import Refused

_NOT_A_SUM = "Keep sums and counts in the fact: SUM(e), COUNT(*), COUNT(e), with FILTER. Divide where they are read."


@dataclass(frozen=True)
class Ungrouped:
    """What a grouped query adds up.

    `rows` has a row per row of its source, under its names. `casts`: by name, the types that its sums are cast to.
    Of a MAX or MIN a row has its own value, with the casts: they keep the order, so they can be applied first.
    `by_number` is the query itself, grouped by the numbers of its keys.
    """

    rows: exp.Query
    casts: Mapping[str, Sequence[str]]
    by_number: exp.Query


def ungrouped(query: exp.Query, extremes: Mapping[str, str]) -> Ungrouped:
    """Take a grouped query apart; one without GROUP BY stays as it is. Raises Refused.

    `extremes` maps the names of some measures to MAX or MIN. All others must be sums.
    """
    if not isinstance(query, exp.Select) or not query.args.get("group"):
        return Ungrouped(query, {}, query)
    rows, by_number = query.copy(), query.copy()
    keys, casts = [], {}
    for number, item in enumerate(list(rows.selects), start=1):
        value = item.unalias()
        if item.alias_or_name.lower() in extremes:
            _own_value(value, extremes[item.alias_or_name.lower()])
        elif any(own(value, exp.AggFunc)):
            casts[item.alias_or_name.lower()] = [c.to.sql("duckdb") for c in _casts(value)]
            value.replace(_summand(value))
        else:
            keys.append((str(number), item.alias_or_name.lower(), value))
    numbers = _numbers(rows.args["group"], keys)
    if numbers:
        by_number.args["group"].set("expressions", [exp.Literal.number(number) for number in numbers])
    rows.set("group", None)
    return Ungrouped(rows, casts, by_number)


def _own_value(value: exp.Expr, extreme: str) -> None:
    """Replace an extreme, below its casts, by the value of a row."""
    holder = value
    while isinstance(holder, exp.Paren | exp.Cast):
        holder = holder.this
    condition = holder.expression.this if isinstance(holder, exp.Filter) else None
    found = holder.this if isinstance(holder, exp.Filter) else holder
    if type(found) is not {"MAX": exp.Max, "MIN": exp.Min}[extreme] or isinstance(found.this, exp.Distinct):
        raise Refused(
            f"{value.sql('duckdb')[:60]} is not {extreme}(e)", value, f"Write {extreme}(e), cast to the measure's type."
        )
    own_value = found.this.copy()
    holder.replace(_when(condition, own_value, exp.null()) if condition else own_value)


def _casts(value: exp.Expr) -> Iterator[exp.Cast]:
    """The casts around a sum."""
    while isinstance(value, exp.Paren | exp.Cast | exp.Coalesce):
        if isinstance(value, exp.Cast):
            yield value
        value = value.this


def _summand(value: exp.Expr) -> exp.Expr:
    """What one row contributes, without the casts, which are of the sum."""
    while isinstance(value, exp.Paren | exp.Cast) or (
        isinstance(value, exp.Coalesce) and [e.sql() for e in value.expressions] == ["0"]
    ):
        value = value.this
    condition = None
    if isinstance(value, exp.Filter):
        value, condition = value.this, value.expression.this
    of = value.this
    nothing: exp.Expr = exp.Literal.number(0)
    if isinstance(value, exp.CountIf):
        summand: exp.Expr = _when(of, exp.Literal.number(1), nothing)
    elif isinstance(value, exp.Count) and not value.expressions and not isinstance(of, exp.Distinct):
        is_there = None if of is None or isinstance(of, exp.Star | exp.Literal) else of.copy().is_(exp.null()).not_()
        summand = exp.Literal.number(1) if is_there is None else _when(is_there, exp.Literal.number(1), nothing)
    elif isinstance(value, exp.Sum) and not isinstance(of, exp.Distinct):
        summand, nothing = of, exp.null()
    else:
        raise Refused(f"{value.sql('duckdb')[:60]} is not a sum", value, _NOT_A_SUM)
    return _when(condition, summand, nothing) if condition else summand.copy()


def _when(condition: exp.Expr, value: exp.Expr, otherwise: exp.Expr) -> exp.Expr:
    return exp.Case(ifs=[exp.If(this=condition.copy(), true=value.copy())], default=otherwise.copy())


def _numbers(group: exp.Group, keys: list[tuple[str, str, exp.Expr]]) -> list[str]:
    """The numbers of the keys that are grouped by; none of GROUP BY ALL.

    Refuses what is grouped by without being selected: several rows would have one grain.
    """
    for part, value in group.args.items():
        if part not in ("expressions", "all") and value:
            raise Refused(f"GROUP BY {part.upper().replace('_', ' ')}", group, "Write a fact for each level.")
    found = []
    for grouped in group.expressions:
        plain = grouped.unnest()
        fitting = [n for n, name, value in keys if plain.sql() == n or plain.name.lower() == name or plain == value]
        if not fitting:
            raise Refused(
                f"GROUP BY {grouped.sql('duckdb')[:60]}, which is not selected", grouped, "Select it as a key."
            )
        found.append(fitting[0])
    return found
