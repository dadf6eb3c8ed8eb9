"""The rows that a grouped query adds up: one per row of its source, with its keys and what it contributes to each sum.

A sum over groups is linear (Gupta, Mumick and Subrahmanian, SIGMOD 1993), so its increments are sums of signed rows of
the query without GROUP BY, in which COUNT(*) is 1 and SUM(e) is e.
"""

from __future__ import annotations

from collections.abc import Iterator

from sqlglot import exp

from lockstep.derive.normal import own
from lockstep.derive.refusals import Refused

_NOT_A_SUM = "Keep sums and counts in the fact: SUM(e), COUNT(*), COUNT(e), with FILTER. Divide where they are read."


def ungrouped(query: exp.Query) -> tuple[exp.Query, dict[str, list[str]]]:
    """The rows of a grouped query, under its names, and by these the types that its sums are cast to.

    A query without GROUP BY stays as it is. Raises Refused.
    """
    if not isinstance(query, exp.Select) or not query.args.get("group"):
        return query, {}
    select = query.copy()
    keys, casts = [], {}
    for number, item in enumerate(list(select.selects), start=1):
        value = item.unalias()
        if any(_aggregates(value)):
            casts[item.alias_or_name.lower()] = [c.to.sql("duckdb") for c in _casts(value)]
            value.replace(_summand(value))
        else:
            keys.append((str(number), item.alias_or_name.lower(), value))
    _require_keys(select.args["group"], keys)
    select.set("group", None)
    return select, casts


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
        raise Refused(f"{value.sql('duckdb')[:60]} is no sum", value, _NOT_A_SUM)
    return _when(condition, summand, nothing) if condition else summand.copy()


def _when(condition: exp.Expr, value: exp.Expr, otherwise: exp.Expr) -> exp.Expr:
    return exp.Case(ifs=[exp.If(this=condition.copy(), true=value.copy())], default=otherwise.copy())


def _aggregates(value: exp.Expr) -> Iterator[exp.Expr]:
    yield from own(value, exp.AggFunc)


def _require_keys(group: exp.Group, keys: list[tuple[str, str, exp.Expr]]) -> None:
    """Refuse what is grouped by without being selected: several rows would have one grain."""
    for part, value in group.args.items():
        if part not in ("expressions", "all") and value:
            raise Refused(f"GROUP BY {part.upper().replace('_', ' ')}", group, "Write a fact for each level.")
    for key in group.expressions:
        plain = key.unnest()
        known = any(
            plain.sql() == number or plain.name.lower() == name or plain == value for number, name, value in keys
        )
        if not known:
            raise Refused(f"GROUP BY {key.sql('duckdb')[:60]}, which is not selected", key, "Select it as a key.")
