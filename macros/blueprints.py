"""Blueprints: what is the same for every domain is written once and stamped from the contracts."""

from __future__ import annotations

from contextlib import contextmanager

from sqlglot import exp, parse_one
from sqlmesh import macro


@macro()
def each_domain(evaluator, only=None):
    """One blueprint per contract: `MODEL (name hourly.@{domain}, blueprints @each_domain())`.

    Gives the model the contract's @domain (@domain_name as text), @owner and @source_table, and the lists @sources
    (text), @awaited (the rebuild, and the models that check the chains of the sources), @grain, @hourly_grain and
    @cut_grain (the same after log_hour or cut), @measures (what macros/merging.py takes: all that merge),
    @measure_names (theirs) and @state (their columns, and what `latest` needs). @tail is the schema of the view with
    the domain's signed rows since its last folded hour.

    @changed is a query (as text) with changed_at for whatever counts as a change of the domain, and @increments the
    schema of the model that its evidence is of beside the rebuild.

    `only` names domains. 'merged' are those whose cells are their figures, 'finished' those with figures out of
    @finish, a query (as text) over the @sets of cells with @cell_grain and @cell_measures. 'recomputed' are those
    without increments, which have their @query over the rows of now and @query_at_cut over those of the cut, as text;
    'queried' are these and the finished ones. 'single' are those that read one changing table at a time, 'joined' the
    others, which have @rows, the query for the signed rows of an interval as text, and @checkpointed, the tables of it
    that have checkpoints. With these two, and with 'cells', the domains with a finish, grain and measures are those of
    the cells. Only the kinds named here have these queries: they are long, and SQLMesh parses each blueprint twice.
    """
    from lockstep.declaration import identifier
    from lockstep.derived import finish_of
    from lockstep.schema import TABLES, literal, quoted

    contracts = _contracts()
    derived = {c.domain: rows for c, rows in _derived()}
    joined = {domain: rows for domain, rows in derived.items() if rows.is_join}
    finished = [domain for domain in derived if contracts[domain].is_finished]
    kind = "" if only is None else only.name
    if kind in ("single", "joined", "cells"):
        contracts = contracts | {domain: finish_of(contracts[domain]).cells for domain in finished}
    wanted = {
        "single": lambda c: c.domain not in joined and not c.is_recomputed,
        "joined": lambda c: c.domain in joined,
        "cells": lambda c: c.domain in finished,
        "finished": lambda c: c.domain in finished,
        "merged": lambda c: c.domain not in finished and not c.is_recomputed,
        "recomputed": lambda c: c.is_recomputed,
        "queried": lambda c: c.domain in finished or c.is_recomputed,
    }
    recomputed = {contract.domain: rows for contract, rows in _recomputed()}

    def awaited(contract):
        keyed = [table for table in contract.sources if TABLES[table].key]
        return ", ".join([f"rebuild.{contract.domain}", *(f"chain.{identifier(table)}" for table in keyed)])

    def new_rows(domain):
        if domain not in joined:
            return "tail := diffs"
        if kind != "joined":
            return "tail := tail"
        tables = [table for table in joined[domain].tables if not TABLES[table].is_append_only]
        return (
            f"tail := tail, rows := {literal(joined[domain].new().sql('duckdb'))}, "
            f"checkpointed := ({', '.join(map(literal, tables))})"
        )

    def increments(contract):
        if contract.domain not in recomputed:
            changed = f"SELECT log_hour AS changed_at FROM hourly.{contract.domain}"
            return f"increments := hourly, changed := {literal(changed)}, "
        tables = (f"SELECT logged_at AS changed_at FROM changes.{quoted(table)}" for table in contract.sources)
        return f"increments := live, changed := {literal(' UNION ALL '.join(tables))}, "

    def queries(contract):
        if kind == "recomputed":
            rows = recomputed[contract.domain]
            return f"query := {literal(rows.now())}, query_at_cut := {literal(rows.at_cut())}, "
        if kind != "finished":
            return ""
        finish = finish_of(contract)
        sets = ", ".join(f"set_of_cells({literal(name)}, {literal(query)})" for name, query in finish.sets.items())
        return (
            f"finish := {literal(finish.query)}, sets := ({sets}), "
            f"cell_grain := ({', '.join(finish.cells.grain)}), "
            f"cell_measures := ({', '.join(_measure(m) for m in finish.cells.merged)}), "
        )

    return _blueprints(
        f"(domain := {c.domain}, domain_name := '{c.domain}', owner := '{c.owner}', "
        f"source_table := {identifier(c.source_table)}, "
        f"sources := ({', '.join(repr(s) for s in c.sources)}), awaited := ({awaited(c)}), "
        f"grain := ({', '.join(c.grain)}), "
        f"hourly_grain := ({', '.join(('log_hour', *c.grain))}), cut_grain := ({', '.join(('cut', *c.grain))}), "
        f"measures := ({', '.join(_measure(m, derived.get(c.domain)) for m in c.merged)}), "
        # Apart from the measures: a model whose text changes but not its query would be of another version, and the
        # views that read it of the same, so that SQLMesh would not make them again when it goes back.
        f"figures := ({', '.join(_figure(m, derived.get(c.domain)) for m in c.merged)}), "
        f"measure_names := ({', '.join(m.name for m in c.merged)}), state := ({', '.join(c.state)}), "
        f"{increments(c)}{queries(c)}{new_rows(c.domain)})"
        for c in contracts.values()
        if only is None or wanted[kind](c)
    )


@macro()
def each_derived_domain(evaluator):
    """One blueprint per domain whose increments are derived: `MODEL (name diffs.@{domain}, blueprints ...)`.

    @rows is the query, as text: what a model is stamped with is part of it, so that SQLMesh sees each change of the
    rules that the query was derived from.
    """
    from lockstep.schema import literal

    return _blueprints(
        f"(domain := {c.domain}, owner := '{c.owner}', rows := {literal(rows.all().sql('duckdb'))})"
        for c, rows in _derived()
    )


@macro()
def each_joined_table(evaluator):
    """One blueprint per domain that joins tables that change, and table: @domain, @owner, @source_table, @source_name.

    @columns are those of the table, as `each_source_table` has them; @is_checkpointed says whether it has checkpoints
    of its rows.
    """
    from lockstep.declaration import identifier
    from lockstep.schema import TABLES, literal

    return _blueprints(
        f"(domain := {c.domain}, owner := '{c.owner}', source_table := {identifier(name)}, "
        f"source_name := {literal(name)}, columns := ({_columns(TABLES[name])}), "
        f"is_checkpointed := {not TABLES[name].is_append_only})"
        for c, rows in _derived()
        for name in rows.joined
    )


@macro()
def each_recomputed_table(evaluator):
    """One blueprint per domain that is recomputed, and table: @domain, @owner, @source_table, and @rows, its query."""
    from lockstep.declaration import identifier
    from lockstep.schema import literal

    return _blueprints(
        f"(domain := {c.domain}, owner := '{c.owner}', source_table := {identifier(name)}, rows := {literal(query)})"
        for c, recomputed in _recomputed()
        for name, query in recomputed.rows_now().items()
    )


@macro()
def contract_rows(evaluator):
    """The blueprint of ops.contracts: @rows, a query (as text) for the contracts as they are with what is derived."""
    from lockstep.contracts import as_rows

    return _texts("rows", [as_rows(contract)[0] for contract in _contracts().values()])


@macro()
def measure_rows(evaluator):
    """The blueprint of ops.contract_measures: @rows, a query (as text) for the measures of all contracts."""
    from lockstep.contracts import as_rows

    return _texts("rows", [row for contract in _contracts().values() for row in as_rows(contract)[1]])


def _texts(name, rows):
    """One blueprint with a query for these rows, all of them texts."""
    from lockstep.schema import literal

    def text(value):
        return "NULL" if value is None else literal(value)

    selects = ["SELECT " + ", ".join(f"{text(v)}::TEXT AS {column}" for column, v in row.items()) for row in rows]
    return _blueprints([f"({name} := {literal(' UNION ALL '.join(selects))})"])


def _contracts():
    from lockstep.contracts import load

    with _told_shortly():
        return load()


def _derived():
    """The contracts whose increments are derived, each with its signed rows."""
    from lockstep.derived import derived_domains, rows_of

    with _told_shortly():
        return [(contract, rows_of(contract)) for contract in derived_domains()]


def _recomputed():
    """The contracts of the domains that are recomputed, each with its query."""
    from lockstep.recomputed import recomputed_domains, recomputed_of

    with _told_shortly():
        return [(contract, recomputed_of(contract)) for contract in recomputed_domains()]


@contextmanager
def _told_shortly():
    """SQLMesh would put an error at the end of a page about the macro."""
    from lockstep.errors import LockstepError

    try:
        yield
    except LockstepError as e:
        raise SystemExit(f"Error: {e}") from None


@macro()
def needs_of_rebuilds(evaluator):
    """The blueprint of rebuild.cut: @needs, a query for each domain and source_table that its rebuild waits for.

    SQLMesh would not see another domain in a macro that reads the contracts when it is rendered.
    """
    from lockstep.contracts import tables_of_one_cut
    from lockstep.schema import literal

    rows = [
        exp.select(exp.convert(domain).as_("domain"), exp.convert(table).as_("source_table"))
        for domain in _contracts()
        for table in tables_of_one_cut(domain)
    ]
    needs = exp.union(*rows, distinct=False) if len(rows) > 1 else rows[0]
    return _blueprints([f"(needs := {literal(needs.sql('duckdb'))})"])


@macro()
def sums_to_check(evaluator):
    """The blueprint of ops.too_large: @sums, a query (as text) for the sums that are too large, by domain."""
    from lockstep.derived import too_large
    from lockstep.schema import literal

    queries = [too_large(contract.domain, rows) for contract, rows in _derived() if contract.mode != "batch"]
    nothing = "SELECT NULL::TEXT AS domain, NULL::TEXT AS figure WHERE FALSE"
    return _blueprints([f"(sums := {literal(' UNION ALL '.join([nothing, *filter(None, queries)]))})"])


@macro()
def finished(evaluator, finish: exp.Expression, sets, cells: exp.Expression):
    """A finish over these cells: `FROM (@finished(@finish, @sets, cells.orders)) AS figures`."""
    from lockstep.derived import ALL_CELLS

    query = parse_one(finish.name, dialect="duckdb")
    relation = exp.to_table(cells.sql("duckdb"), dialect="duckdb") if isinstance(cells, exp.Column) else cells
    for listed in sets.expressions or [sets.unnest()]:
        name, text = (argument.name for argument in listed.expressions)
        of_set = parse_one(text, dialect="duckdb")
        for found in list(of_set.find_all(exp.Table)):
            if found.name == ALL_CELLS:
                found.replace(exp.alias_(relation.copy(), ALL_CELLS, table=True))
        for found in list(query.find_all(exp.Table)):
            if found.name == name and not found.db:
                found.replace(of_set.subquery(found.alias_or_name))
    return query


@macro()
def as_query(evaluator, text: exp.Expression):
    """A query that a model is stamped with as text: `@as_query(@rows)`."""
    return parse_one(text.name, dialect="duckdb")


def _columns(table):
    from lockstep.schema import literal

    return ", ".join(f"source_column({literal(c.name)}, {literal(c.kind.duckdb)})" for c in table.columns)


def _measure(m, rows=None):
    """With the type that its sums are kept in."""
    kept = m.type if rows is None or m.merge != "sum" else rows.columns.get(m.name) or m.type
    tolerances = [m.tolerance_absolute, m.tolerance_relative]
    if m.tolerance_cells < 1 or m.tolerance_median is not None:
        tolerances += [m.tolerance_cells, *([m.tolerance_median] if m.tolerance_median is not None else [])]
    return f"measure('{m.name}', '{m.merge}', '{kept}', {', '.join(map(str, tolerances))})"


def _figure(m, rows=None):
    """With the type that its figures have, and the condition under which a sum is one."""
    from lockstep.schema import literal

    is_figure = "TRUE" if rows is None else rows.checked.get(m.name, "TRUE")
    return f"figure('{m.name}', '{m.type}', {literal(is_figure)})"


@macro()
def each_source_table(evaluator, only=None):
    """One blueprint per table of the log: `MODEL (name changes.@{source_table}, blueprints @each_source_table())`.

    Its name, @source_name as text, may be a reserved word: models that read it then write `changes."order"`. @columns
    are what macros/log.py takes: each declared column. @keys (text) and @key_columns are those of its key,
    @checkpoint_grain the same after __cut. @filled is a column that no image has NULL (text; empty if there is none).
    @readers are the domains that read the table. @image_type is the type of its images, as text: only what a model is
    stamped with makes SQLMesh see that it has changed.

    `only` names the tables: 'mutable'; 'append_only' and 'keyless', those with a key and those without; or 'keyed'.
    """
    from lockstep.declaration import identifier
    from lockstep.schema import EXTRA, TABLES, literal, quoted

    contracts = _contracts()

    def blueprint(table):
        image = ", ".join([*(f"{c.sql} {c.kind.duckdb}" for c in table.columns), f"{quoted(EXTRA)} TEXT"])
        filled = [*table.key, *(c.name for c in table.columns if not c.nullable), ""][0]
        readers = (c.domain for c in contracts.values() if table.name in c.sources)
        return (
            f"(source_table := {identifier(table.name)}, source_name := {literal(table.name)}, "
            f"image_type := {literal(f'STRUCT({image})')}, columns := ({_columns(table)}), "
            f"filled := {literal(filled)}, keys := ({', '.join(map(literal, table.key))}), "
            f"key_columns := ({', '.join(table.sql_key)}), "
            f"checkpoint_grain := ({', '.join(('__cut', *table.sql_key))}), "
            f"readers := ({', '.join(map(literal, readers))}))"
        )

    def is_wanted(table):
        kind = "mutable" if not table.is_append_only else "append_only" if table.key else "keyless"
        return only is None or only.name in (kind, "keyed" if table.key else kind)

    return _blueprints(blueprint(table) for table in TABLES.values() if is_wanted(table))


@macro()
def materializations(evaluator):
    """A digest of the code in `materializations/`: `materialization_properties (keep = 7, code = @materializations())`.

    SQLMesh does not look at that code, so that without this an edit of it would compute nothing anew. Comments do not
    count.
    """
    import ast
    import hashlib

    from lockstep.project import project

    files = sorted((project() / "materializations").glob("*.py"))
    code = "\n".join(ast.unparse(ast.parse(file.read_text(encoding="utf-8"))) for file in files)
    return exp.Literal.string(hashlib.md5(code.encode()).hexdigest())


def _blueprints(texts):
    """One tuple of all blueprints: SQLMesh takes a list of a single one for that one's variables."""
    return exp.Tuple(expressions=[parse_one(text) for text in texts])
