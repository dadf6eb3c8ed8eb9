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
    # Not CONCAT_WS: SQLMesh asks of each of its arguments once more whether it is NULL.
    texts = ", '|', ".join(f"COALESCE('=' || CAST({column} AS TEXT), 'NULL')" for column in columns)
    return f"CAST('0x' || SUBSTRING(MD5(CONCAT({texts})), 1, 15) AS BIGINT)"


@macro()
def contract_mode(evaluator, domain):
    """The mode that is in effect for a domain at the time of evaluation: `@contract_mode(@domain_name) AS mode`.

    SQLMesh sees no change of model in a change of it, so that promoting a domain recomputes nothing.
    """
    from lockstep.contracts import load

    return exp.Literal.string(load()[domain.name].mode_in_effect)


@macro()
def union_of_domains(evaluator, model):
    """The same model of every domain, one below the other: `(@union_of_domains('reconcile.{domain}_receipts'))`."""
    from lockstep.contracts import load

    if "{domain}" not in model.name:
        raise ValueError(f"@union_of_domains: model is {model}, expected a text with {{domain}} in it.")
    return " UNION ALL ".join(f"SELECT * FROM {model.name.format(domain=domain)}" for domain in load())


@macro()
def verified_cuts(evaluator):
    """Domain, cut and evidence of every generation there is: `WITH generations AS (@verified_cuts())`."""
    from lockstep.contracts import load

    return " UNION ALL ".join(
        f"SELECT DISTINCT '{domain}' AS domain, cut, evidence_digest FROM verified.{domain}" for domain in load()
    )


@macro()
def archive_receipts(evaluator):
    """Adds production's receipts to the home's archive: `after_all: ['@archive_receipts()']`."""
    from lockstep.project import home
    from lockstep.receipts import archive

    archive(home(), evaluator.engine_adapter.fetchall)
    return "SELECT 1"


@macro()
def compared(evaluator, *models):
    """The physical tables of models as a list of texts: `@compared(rebuild.orders, hourly.orders) AS compared`.

    Their names where no plan is in use. So SQLMesh sees another query where a domain is compared with another model,
    and makes the views that read this one anew, also when it goes back.
    """
    tables = [_physical(s) for s in _snapshots(evaluator, models)] or [f"{m.table}.{m.name}" for m in models]
    return exp.array(*map(exp.Literal.string, tables))


@macro()
def evidence_digest(evaluator, *models):
    """A digest of what models are computed from: `@evidence_digest(rebuild.orders, hourly.orders) AS evidence_digest`.

    It changes with any query, macro, seed or property upstream, and with the physical tables. NULL in unit tests and
    while models load: there no plan is in use.
    """
    import hashlib

    parts = [
        f"{_physical(s)} {s.fingerprint.data_hash} {s.fingerprint.parent_data_hash}"
        for s in _snapshots(evaluator, models)
    ]
    return exp.Literal.string(hashlib.md5("\n".join(parts).encode()).hexdigest()) if parts else exp.null()


def _snapshots(evaluator, models):
    found = [evaluator.get_snapshot(exp.table_(model.name, db=model.table)) for model in models]
    return [snapshot for snapshot in found if snapshot and snapshot.version]


def _physical(snapshot):
    return exp.to_table(snapshot.table_name()).sql("duckdb").replace('"', "").partition(".")[2]


def _columns(macro_name, argument, columns):
    """The names in a list of columns. SQL reads a list of one, such as `(region)`, as a parenthesis and no list."""
    listed = columns.expressions or [columns.unnest()]
    if not all(isinstance(column, exp.Column) for column in listed):
        raise ValueError(f"@{macro_name}: {argument} is {columns}, expected columns in parentheses.")
    return [column.name for column in listed]
