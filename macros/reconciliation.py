"""What SQL cannot say about a list of columns that only the contract knows. None of it aggregates across the two paths."""

from __future__ import annotations

from sqlglot import exp
from sqlmesh import macro


@macro()
def fingerprint(evaluator, grain, measures, prefix):
    """A number for one side of a cell: `SUM(@fingerprint(@grain, @sums, 'rebuild_'))` is a fingerprint free of row order.

    The first 15 hexadecimal digits of MD5 over the cell's columns as text, with NULL told from the empty text. Summed as
    integers, so that a cell that is there twice does not cancel out.
    """
    columns = [c.name for c in grain.expressions] + [prefix.name + m.name for m in measures.expressions]
    texts = ", ".join(f"COALESCE('=' || CAST({column} AS TEXT), 'NULL')" for column in columns)
    return f"CAST('0x' || SUBSTRING(MD5(CONCAT_WS('|', {texts})), 1, 15) AS BIGINT)"


@macro()
def divergence(evaluator, measures):
    """Per measure the summed absolute difference of the two sides, by its name: `@divergence(@sums) AS divergence`."""
    names = ", ".join(f"'{m.name}'" for m in measures.expressions)
    values = ", ".join(
        f"COALESCE(SUM(ABS(rebuild_{m.name} - increments_{m.name})), 0)" for m in measures.expressions
    )
    return f"MAP([{names}], [{values}])"


@macro()
def union_of_domains(evaluator, model):
    """The same model of every domain, one below the other: `FROM (@union_of_domains('reconcile.{domain}_receipts'))`."""
    from lockstep.contracts import load

    return " UNION ALL ".join(f"SELECT * FROM {model.name.format(domain=domain)}" for domain in load())
