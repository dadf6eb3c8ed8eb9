"""Row-level rules that both paths speak. They see one image and return one value; they never aggregate."""

from __future__ import annotations

from sqlglot import exp
from sqlmesh import macro


@macro()
def is_high_value(evaluator, amount_cents: exp.Expression):
    """An order over 1 000.00: `@is_high_value(amount_cents)`."""
    return exp.GT(this=amount_cents, expression=exp.Literal.number(100_000))
