"""Where the change log lies, and which tables it has."""

from __future__ import annotations

from sqlglot import exp, parse_one
from sqlmesh import macro


@macro()
def require_change_log(evaluator):
    """Fails, with what to do, where no change has landed yet: `before_all: ['@require_change_log()']`."""
    from lockstep.changelog import ChangeLog
    from lockstep.project import home

    ChangeLog(home()).require_changes()
    return "SELECT 1"


@macro()
def source_tables(evaluator):
    """The tables of the change log as a list of text: `UNNEST(@source_tables())`."""
    from lockstep.schema import TABLES

    return exp.array(*(exp.Literal.string(name) for name in TABLES))


@macro()
def sources_of_domains(evaluator):
    """Domain and source_table of each table that its rebuild waits for: `FROM (@sources_of_domains()) AS needs`.

    Domains of the same rows share models below `rebuild`: each waits for the tables of all of them.
    """
    from lockstep.contracts import load

    tables = {}
    for contract in load().values():
        tables.setdefault(contract.source_table, set()).update(contract.sources)
    rows = [
        exp.select(exp.convert(c.domain).as_("domain"), exp.convert(table).as_("source_table"))
        for c in load().values()
        for table in sorted(tables[c.source_table])
    ]
    return exp.union(*rows, distinct=False) if len(rows) > 1 else rows[0]


@macro()
def cut_of(evaluator, domain: exp.Expression):
    """The cut of a domain's rebuild: `WHERE logged_at < @cut_of('orders')`."""
    return exp.select("cut").from_("rebuild.cut").where(exp.column("domain").eq(domain.name)).subquery()


@macro()
def log_files(evaluator, source_table: exp.Expression):
    """The glob over one table's files, relative to the data home: `READ_PARQUET(@log_files(orders))`."""
    return exp.Literal.string(f"changelog/{source_table.name}/*/*.parquet")


@macro()
def union_of_source_tables(evaluator):
    """Position, logged_at and source_table of every change of every table: `FROM (@union_of_source_tables())`."""
    from lockstep.declaration import identifier
    from lockstep.schema import TABLES

    tables = [
        exp.select("position", "logged_at", exp.Literal.string(name).as_("source_table")).from_(
            f"changes.{identifier(name)}"
        )
        for name in TABLES
    ]
    return exp.union(*tables, distinct=False) if len(tables) > 1 else tables[0]


@macro()
def typed(evaluator, image: exp.Expression, image_type: exp.Expression):
    """An image as the struct that is declared: `@typed(before, @image_type) AS before`."""
    return exp.cast(image, exp.DataType.build(image_type.name, dialect="duckdb"))


@macro()
def image(evaluator, column: exp.Expression):
    """A column of the image that `signs.diff` stands for, NULL if the change has none: `@image(order_id) AS order_id`.

    The column is taken out of both images before the choice, so that a scan reads no column that nobody asks for. For
    the same reason whether there is an image is asked of its key, which the landing contract never lets be NULL.
    """
    column = exp.Literal.string(column.name)
    return parse_one(
        f"CASE WHEN signs.diff = 1 THEN STRUCT_EXTRACT(after, {column}) ELSE STRUCT_EXTRACT(before, {column}) END",
        dialect="duckdb",
    )


@macro()
def declared_image(evaluator, source_table: exp.Expression, image: exp.Expression):
    """An image without its `extra`, NULL if there is no image: `HASH(@declared_image(changes.orders, before))`.

    A column that is added at the source appears in `extra` from then on, without a change of the older rows.
    """
    from lockstep.schema import TABLES, literal

    columns = ", ".join(
        f"{literal(c.name)}: STRUCT_EXTRACT({image.name}, {literal(c.name)})" for c in TABLES[source_table.name].columns
    )
    return parse_one(f"CASE WHEN NOT {image.name} IS NULL THEN {{{columns}}} END", dialect="duckdb")
