"""The inputs of a domain that joins changing tables: the tables at an instant, and their changes since."""

from __future__ import annotations

from sqlglot import exp, parse_one
from sqlmesh import macro


@macro()
def new_rows(evaluator, rows: exp.Expression, checkpointed, since: exp.Expression, until: exp.Expression):
    """A domain's signed rows of an interval: `FROM (@new_rows(@rows, @checkpointed, @start_ts, @end_ts)) AS pairs`.

    `until` is the interval's last microsecond. `checkpointed` names the tables that have checkpoints.
    """
    from lockstep.derive.signed import DELTA, STATE

    query = parse_one(rows.name, dialect="duckdb")
    since, until = (exp.cast(at.copy(), "timestamp") for at in (since, until))
    names = {name.name for name in checkpointed.expressions or [checkpointed.unnest()]}
    for table in list(query.find_all(exp.Table)):
        if table.db == DELTA:
            changes = exp.column("__logged_at").between(since.copy(), until.copy())
            table.replace(exp.select("*").from_(_signed_of(table.name)).where(changes).subquery("changes"))
        elif table.db == STATE:
            columns = [c.name for c in table.parent_select.selects if c.name not in _CARRIED]
            table.replace(_rows_at(table.name, table.name in names, columns, since).subquery("state"))
    return query


@macro()
def tail_rows(evaluator, rows: exp.Expression, domain: exp.Expression):
    """A domain's signed rows since its last folded hour, over its tables of `state`: `@tail_rows(@rows, domain)`."""
    from lockstep.derive.signed import DELTA, STATE

    query = parse_one(rows.name, dialect="duckdb")
    since = exp.select("folded_until").from_("folded").subquery()
    for table in list(query.find_all(exp.Table)):
        if table.db == DELTA:
            changes = exp.select("*").from_(_signed_of(table.name)).where(exp.column("__logged_at") >= since.copy())
            table.replace(changes.subquery("changes"))
        elif table.db == STATE:
            table.replace(exp.table_(exp.to_identifier(f"{domain.name}__{table.name}", quoted=True), db=STATE))
    folded_until = parse_one(
        "SELECT COALESCE(MAX(log_hour) + INTERVAL '1' HOUR, '0001-01-01'::TIMESTAMP) AS folded_until "
        f"FROM hourly.{domain.name}",
        dialect="duckdb",
    )
    return query.with_("folded", as_=folded_until)


@macro()
def state_at(evaluator, source_table: exp.Expression, is_checkpointed: exp.Expression, columns, at: exp.Expression):
    """A table's signed rows that come to its rows at an instant: `@state_at(@source_name, TRUE, @columns, cut)`."""
    listed = columns.expressions or [columns.unnest()]
    names = [*(c.expressions[0].name for c in listed), "extra"]
    return _rows_at(source_table.name, is_checkpointed == exp.true(), names, at)


_CARRIED = ("__position", "__logged_at", "__weight")


def _rows_at(name, is_checkpointed, columns, at):
    """The rows of the newest checkpoint before `at`, each of weight 1, and the signed rows from there to `at`.

    The latest image of each key is not looked for: a row that came and went since cancels out in the sums.
    """
    columns = [exp.column(name, quoted=True) for name in columns]
    signed = exp.select(*columns, *_CARRIED).from_(_signed_of(name)).where(exp.column("__logged_at") < at.copy())
    if not is_checkpointed:
        return signed
    first = exp.cast(exp.Literal.string("0001-01-01"), "timestamp")
    cut, partition = (_newest(name, at, *of) for of in (("cut", first), ("partition", "'0001-01-01T00'")))
    carried = (exp.cast("0", "bigint"), first.copy(), exp.cast("1", "int"))
    rows = (
        exp.select(*columns, *(value.as_(column) for column, value in zip(_CARRIED, carried, strict=True)))
        .from_(exp.table_(exp.to_identifier(name, quoted=True), db="checkpoints"))
        .where(exp.column("__cut").eq(partition))
    )
    return exp.union(rows, signed.where(exp.column("__logged_at") >= cut), distinct=False)


def _newest(name, at, column, nothing):
    """A column of the newest checkpoint of a table before an instant."""
    found = exp.select(exp.func("COALESCE", exp.func("MAX", exp.column(column)), nothing)).from_("ops.checkpoints")
    return found.where(exp.column("source_table").eq(name)).where(exp.column("cut") <= at.copy()).subquery()


def _signed_of(name):
    return exp.table_(exp.to_identifier(name, quoted=True), db="signed")
