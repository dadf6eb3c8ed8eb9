"""What SQL cannot say about a list of columns that only the contract knows. None of it aggregates across the paths."""

from __future__ import annotations

from sqlglot import exp
from sqlmesh import macro


@macro()
def fingerprint(evaluator, grain, measures, prefix):
    """A number for one side of a cell: `SUM(@fingerprint(@grain, @sums, 'rebuild_'))` is free of row order.

    The first 15 hexadecimal digits of MD5 over the cell's columns as text, with NULL told from the empty text. Summed
    as integers, so that a cell that is there twice does not cancel out.
    """
    columns = _columns("fingerprint", "grain", grain)
    columns += [prefix.name + measure for measure in _columns("fingerprint", "measures", measures)]
    texts = ", ".join(f"COALESCE('=' || CAST({column} AS TEXT), 'NULL')" for column in columns)
    return f"CAST('0x' || SUBSTRING(MD5(CONCAT_WS('|', {texts})), 1, 15) AS BIGINT)"


@macro()
def contract_mode(evaluator, domain):
    """The mode that the contract gives a domain at the time of evaluation: `@contract_mode(@domain_name) AS mode`.

    SQLMesh sees no change of model in a change of it, so that promoting a domain recomputes nothing.
    """
    from lockstep.contracts import load

    return exp.Literal.string(load()[domain.name].mode)


@macro()
def union_of_domains(evaluator, model):
    """The same model of every domain, one below the other: `(@union_of_domains('reconcile.{domain}_receipts'))`."""
    from lockstep.contracts import load

    if "{domain}" not in model.name:
        raise ValueError(f"@union_of_domains: model is {model}, expected a text with {{domain}} in it.")
    return " UNION ALL ".join(f"SELECT * FROM {model.name.format(domain=domain)}" for domain in load())


@macro()
def verified_cuts(evaluator):
    """Domain and cut of every generation there is: `FROM (@verified_cuts()) AS generations`."""
    from lockstep.contracts import load

    return " UNION ALL ".join(f"SELECT DISTINCT '{domain}' AS domain, cut FROM verified.{domain}" for domain in load())


def _columns(macro_name, argument, columns):
    """The names in a list of columns. SQL reads a list of one, such as `(region)`, as a parenthesis and no list."""
    listed = columns.expressions or [columns.unnest()]
    if not all(isinstance(column, exp.Column) for column in listed):
        raise ValueError(f"@{macro_name}: {argument} is {columns}, expected columns in parentheses.")
    return [column.name for column in listed]
