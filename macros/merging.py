"""How measures merge, as the contracts declare it, and how far two merged values lie apart.

@measures is a blueprint's list of `measure(name, merge, type, tolerance_absolute, tolerance_relative)`, and
`tolerance_cells` and `tolerance_median` after these where the contract has them; sums are kept as `type`. @figures has
`figure(name, type, is_figure)` of each: what is served, and the condition under which a sum is a figure. The rebuild
never uses @merged: it aggregates latest images in SQL of its own.
"""

from __future__ import annotations

from sqlglot import exp, parse_one
from sqlmesh import macro


@macro()
def merged(evaluator, measures):
    """Every measure over a group of rows, merged: `SELECT region, @merged(@measures) FROM parts GROUP BY region`.

    `latest` takes the value with the greatest (latest_at, latest_position), and carries these two along. A sum over
    nothing but NULLs is 0: what was added and taken away again could not be told from what was never there.
    """
    return [_project(_merge(m), m.type, m.name) for m in _state("merged", measures)]


@macro()
def state_of(evaluator, measures, table):
    """The measures of a table's cells, as `merged` would have them: `SELECT @state_of(@measures, rebuilt)`."""
    return [
        _project(
            f"COALESCE({table.name}.{m.name}, 0)" if m.merge == "sum" else f"{table.name}.{m.name}", m.type, m.name
        )
        for m in _state("state_of", measures)
    ]


@macro()
def served(evaluator, measures, figures, table):
    """The measures of cells as figures, NULL where a sum is too large: `SELECT @served(@measures, @figures, cells)`."""
    served_as = {}
    for figure in figures.expressions or [figures.unnest()]:
        name, kind, is_figure = (argument.name for argument in figure.expressions)
        served_as[name] = kind, is_figure
    columns = []
    for m in _state("served", measures):
        value = f"{table.name}.{m.name}"
        kind, is_figure = served_as.get(m.name, (m.type, "TRUE"))
        if is_figure != "TRUE":
            condition = parse_one(is_figure, dialect="duckdb")
            for column in condition.find_all(exp.Column):
                column.set("table", exp.to_identifier(table.name))
            value = f"CASE WHEN {condition.sql('duckdb')} THEN {value} END"
        columns.append(_project(value, kind, m.name) if kind != m.type else f"{value} AS {m.name}")
    return columns


@macro()
def merged_where(evaluator, measures, prefix, condition):
    """The measures over the rows of a group that meet a condition: `@merged_where(@measures, rebuild_, rebuilt = 1)`.

    A sum over no rows is 0, every other measure is NULL. In a recomputed domain a group may have several rows: it
    also gets a digest of them, which does not depend on their order.
    """
    when, listed = condition.sql("duckdb"), _measures("merged_where", measures)
    merged = [_project(_merge(m, when), m.type, prefix.name + m.name) for m in listed]
    if _is_recomputed(listed):
        digest = f"SUM(CAST(HASH({', '.join(m.name for m in listed)}) AS HUGEINT)) FILTER(WHERE {when})"
        merged.append(parse_one(f"{digest} AS {_DIGEST}{prefix.name}", dialect="duckdb"))
    return merged


@macro()
def is_there(evaluator, measures, prefix=None):
    """Whether a merged cell holds anything: `WHERE @is_there(@measures)`. Sums of deleted rows leave zeros behind.

    What comes out of a query is there, whatever it holds: then `added_up` counts the rows.
    """
    prefix = prefix.name if prefix else ""
    if any(m.merge in _OF_A_QUERY for m in _measures("is_there", measures)):
        return "added_up > 0"
    return " OR ".join(
        f"{prefix}{m.name} <> 0" if m.merge == "sum" else f"NOT {prefix}{m.name} IS NULL"
        for m in _measures("is_there", measures)
    )


@macro()
def is_nonunique(evaluator, measures):
    """Whether a side has a cell more than once: `WHEN @is_nonunique(@measures)`. Only what a query gives is not merged.

    The rows of a recomputed domain may share a cell, if the same rows do on the other side.
    """
    listed = _measures("is_nonunique", measures)
    if _is_recomputed(listed):
        same = f"copies = added_up AND {_DIGEST}rebuild_ = {_DIGEST}increments_"
        return f"(copies > 1 OR added_up > 1) AND NOT ({same})"
    return "copies > 1 OR added_up > 1" if any(m.merge in _OF_A_QUERY for m in listed) else "copies > 1"


@macro()
def are_identical(evaluator, measures, one, other):
    """Whether two sides of a cell are the same in every measure: `@are_identical(@measures, rebuild_, increments_)`."""
    return " AND ".join(
        f"{one.name}{m.name} IS NOT DISTINCT FROM {other.name}{m.name}" for m in _measures("are_identical", measures)
    )


@macro()
def are_within_tolerance(evaluator, measures, one, other):
    """Whether two sides of a cell are so near that the contract allows it; `one` is what a relative tolerance is of.

    How many cells differ, and how far at the median, is asked of all rows of the query, by windows: select it, and
    filter in a query around. If they are too many or too far apart, no difference is allowed.
    """
    return " AND ".join(
        f"({_same(m, one.name, other.name)} OR "
        f"({' AND '.join([_near(m, one.name, other.name), *_few(m, one.name, other.name, ' OVER ()')])}))"
        for m in _measures("are_within_tolerance", measures)
    )


@macro()
def evidence(evaluator, measures):
    """Per measure how the rebuild and the increments compare over all cells: `@evidence(@measures) AS measures`.

    A list of structs: measure, cells, cells_differing, cells_beyond (the tolerance), worst_absolute (in the measure's
    unit, seconds for a timestamp), worst_relative (of the rebuild's value), is_within_tolerance.
    """
    one, other = "rebuild_", "increments_"
    entries = []
    for m in _measures("evidence", measures):
        differing = f"COUNT(CASE WHEN NOT {_same(m, one, other)} THEN 1 END)"
        far = f"COUNT(CASE WHEN NOT ({_same(m, one, other)} OR {_near(m, one, other)}) THEN 1 END)"
        few = _few(m, one, other)
        beyond = f"CASE WHEN {' AND '.join(few)} THEN {far} ELSE {differing} END" if few else far
        apart = _apart(m, one, other)
        share = f"CASE WHEN {one}{m.name} <> 0 THEN {apart} / {_size(m, one)} END" if m.is_number else "NULL"
        entries.append(
            f"{{'measure': '{m.name}', 'cells': COUNT(*), 'cells_differing': {differing}, 'cells_beyond': {beyond}, "
            f"'worst_absolute': COALESCE(MAX({apart}), 0), 'worst_relative': COALESCE(MAX({share}), 0), "
            f"'is_within_tolerance': {beyond} = 0}}"
        )
    return f"[{', '.join(entries)}]"


_OF_A_QUERY = ("finish", "recomputed")
_DIGEST = "__digest_of_"


def _is_recomputed(measures):
    return any(m.merge == "recomputed" for m in measures)


class _Measure:
    def __init__(
        self,
        name,
        merge,
        type,
        tolerance_absolute="0",
        tolerance_relative="0",
        tolerance_cells="1",
        tolerance_median=None,
    ):
        self.name, self.merge, self.type = name, merge, type.upper()
        self.absolute, self.relative = float(tolerance_absolute), float(tolerance_relative)
        self.cells = float(tolerance_cells)
        self.median = None if tolerance_median is None else float(tolerance_median)
        self.is_decimal = self.type.startswith("DECIMAL")
        self.is_number = self.type in ("BIGINT", "DOUBLE") or self.is_decimal


def _measures(macro_name, measures):
    listed = measures.expressions or [measures.unnest()]
    if not all(isinstance(m, exp.Anonymous) and m.name.lower() == "measure" for m in listed):
        raise ValueError(f"@{macro_name}: measures is {measures}, expected @measures of a domain's blueprint.")
    return [_Measure(*(argument.name for argument in m.expressions)) for m in listed]


def _state(macro_name, measures):
    """The measures, and before them what `latest` ones need."""
    listed = _measures(macro_name, measures)
    order = [_Measure("latest_at", "latest", "TIMESTAMP"), _Measure("latest_position", "latest", "BIGINT")]
    return [*order, *listed] if any(m.merge == "latest" for m in listed) else listed


def _merge(m, when=None):
    value = m.name
    if m.merge == "latest":
        value = f"{{'at': latest_at, 'position': latest_position, 'value': {m.name}}}"
    if when:
        value = f"CASE WHEN {when} THEN {value} END"
    if m.merge == "sum":
        return f"COALESCE(SUM({value}), 0)"
    if m.merge in _OF_A_QUERY:  # there is one row
        return f"MAX({value})"
    if m.merge == "latest":  # structs are compared field by field, and no two rows share a position
        return f"STRUCT_EXTRACT(MAX({value}), 'value')"
    return f"{m.merge.upper()}({value})"


def _project(merge, type, name):
    return parse_one(f"CAST({merge} AS {type}) AS {name}", dialect="duckdb")


def _apart(m, one, other):
    """How far two sides lie apart: a number, or NULL where one is missing or no distance is known."""
    if m.is_decimal:  # two values of opposite signs may lie farther apart than the type reaches
        digits, scale = (
            parameter.this.to_py() for parameter in exp.DataType.build(m.type, dialect="duckdb").expressions
        )
        farthest = f"CASE WHEN {one}{m.name} <> {other}{m.name} THEN CAST('{'9' * (digits - scale)}' AS {m.type}) END"
        return f"COALESCE(TRY(ABS({one}{m.name} - {other}{m.name})), {farthest})"
    if m.is_number:
        return f"ABS({one}{m.name} - {other}{m.name})"
    if m.type == "TIMESTAMP":
        return f"ABS(EPOCH({one}{m.name}) - EPOCH({other}{m.name}))"
    return "CAST(NULL AS DOUBLE)"


def _size(m, one):
    """What a share is of: for a DECIMAL a DOUBLE, because its digits and those of the share may be more than fit."""
    return f"CAST(ABS({one}{m.name}) AS DOUBLE)" if m.is_decimal else f"ABS({one}{m.name})"


def _same(m, one, other):
    return f"({one}{m.name} IS NOT DISTINCT FROM {other}{m.name})"


def _few(m, one, other, over=""):
    """Conditions: no more cells differ than the contract allows, and at the median not by more."""
    conditions = []
    if m.cells < 1:
        differing = f"COUNT(CASE WHEN NOT {_same(m, one, other)} THEN 1 END){over}"
        conditions.append(f"{differing} <= GREATEST(1, CAST({m.cells!r} AS DOUBLE) * COUNT(*){over})")
    if m.median is not None:
        apart = f"CASE WHEN NOT {_same(m, one, other)} THEN CAST({_apart(m, one, other)} AS DOUBLE) END"
        conditions.append(f"COALESCE(MEDIAN({apart}){over}, 0) <= {m.median!r}")
    return conditions


def _near(m, one, other):
    """Whether two different sides of a cell lie no farther apart than the contract allows."""
    apart = _apart(m, one, other)
    allowed = []
    if m.absolute:
        allowed.append(f"COALESCE({apart} <= {m.absolute!r}, FALSE)")
    if m.relative:
        allowed.append(f"COALESCE({apart} <= {m.relative!r} * {_size(m, one)}, FALSE)")
    return f"({' OR '.join(allowed) or 'FALSE'})"
