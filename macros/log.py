"""Where the change log lies, and which tables it has."""

from __future__ import annotations

from sqlglot import exp, parse_one
from sqlmesh import macro


@macro()
def require_change_log(evaluator):
    """Fails, with what to do, where no change has landed yet: `before_all: ['@require_change_log()']`."""
    from lockstep import checkpoints
    from lockstep.changelog import ChangeLog
    from lockstep.project import home

    ChangeLog(home()).require_changes()
    checkpoints.prepare(home())
    return "SELECT 1"


@macro()
def take_checkpoints(evaluator):
    """Keeps the rows of each table whose chain production has found whole: `after_all: ['@take_checkpoints()']`."""
    from lockstep import checkpoints
    from lockstep.project import home

    checkpoints.take(home(), evaluator.engine_adapter.fetchall, evaluator.engine_adapter.execute)
    return "SELECT 1"


@macro()
def source_tables(evaluator):
    """The tables of the change log as a list of text: `UNNEST(@source_tables())`."""
    from lockstep.schema import TABLES

    return exp.array(*(exp.Literal.string(name) for name in TABLES))


@macro()
def cut_of(evaluator, domain: exp.Expression):
    """The cut of a domain's rebuild: `WHERE logged_at < @cut_of('orders')`."""
    return exp.select("cut").from_("rebuild.cut").where(exp.column("domain").eq(domain.name)).subquery()


@macro()
def cut_of_table(evaluator, source_table: exp.Expression, readers):
    """The cut at which rebuilds read a source table: `WHERE logged_at < @cut_of_table(@source_table, @readers)`.

    All domains that read a table have one cut. A table that no domain reads is read at the last of all cuts, or, if
    quarantine holds it there, at the end of its last sealed hour.
    """
    domains = [name for name in _names(readers) if name]
    if domains:
        cut = exp.select("MAX(cut)").from_("rebuild.cut").where(exp.column("domain").isin(*domains))
    else:
        cut = (
            exp.select("LEAST(MAX(cuts.cut), MAX(watermark.sealed_until))")
            .from_("rebuild.cut AS cuts")
            .join("changes.watermark AS watermark", join_type="cross")
            .where(exp.column("source_table", "watermark").eq(source_table.name))
        )
    return cut.subquery()


@macro()
def last_checkpoint(evaluator, column: exp.Expression, source_table: exp.Expression, readers):
    """A column of the last checkpoint that counts at a table's cut: `@last_checkpoint(cut, @source_table, @readers)`.

    It is cut or partition, as ops.checkpoints has them. Without a checkpoint the cut lies before the log.
    """
    nothing = {"cut": exp.cast(exp.Literal.string("0001-01-01"), "timestamp"), "partition": "'0001-01-01T00'"}
    found = exp.select(exp.func("COALESCE", exp.func("MAX", exp.column(column.name)), nothing[column.name]))
    return (
        found.from_("ops.checkpoints")
        .where(exp.column("source_table").eq(source_table.name))
        .where(exp.column("cut") <= cut_of_table(evaluator, source_table, readers))
        .subquery()
    )


@macro()
def checkpoint_files(evaluator, source_table: exp.Expression):
    """The glob over one table's checkpoints, relative to the data home: `READ_PARQUET(@checkpoint_files(orders))`."""
    return exp.Literal.string(f"changelog/_checkpoints/{source_table.name}/*/*.parquet")


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
def is_image(evaluator, image: exp.Expression, filled: exp.Expression):
    """Whether a change has this image: `@is_image(after, @filled)`.

    It is asked of a column that no image has NULL, where there is one, so that a scan need not read them all.
    """
    return (_of(image, filled.name) if filled.name else image.copy()).is_(exp.null()).not_()


@macro()
def image_columns(evaluator, columns, image: exp.Expression):
    """Each column of an image, and its `extra`: `SELECT @image_columns(@columns, after)`."""
    return [_projected(_of(image, name), kind, name) for name, kind in _source_columns("image_columns", columns)]


@macro()
def columns_of(evaluator, columns, table: exp.Expression):
    """Each column of a relation that has those of a source table: `SELECT @columns_of(@columns, rows)`."""
    return [
        _projected(exp.column(name, table=table.name, quoted=True), kind, name)
        for name, kind in _source_columns("columns_of", columns)
    ]


@macro()
def signed_columns(evaluator, columns, before: exp.Expression, after: exp.Expression, weight: exp.Expression):
    """The columns of the image with this weight: `SELECT @signed_columns(@columns, before, after, weight)`."""
    return [
        _projected(
            exp.case().when(weight.copy().eq(1), _of(after, name)).else_(_of(before, name)),
            kind,
            name,
        )
        for name, kind in _source_columns("signed_columns", columns)
    ]


def _source_columns(macro_name, columns):
    """Names and types of a blueprint's @columns, `source_column(name, type)` each, and of `extra`."""
    listed = columns.expressions or [columns.unnest()]
    if not all(isinstance(c, exp.Anonymous) and c.name.lower() == "source_column" for c in listed):
        raise ValueError(f"@{macro_name}: columns is {columns}, expected @columns of a source table's blueprint.")
    return [*((c.expressions[0].name, c.expressions[1].name) for c in listed), ("extra", "TEXT")]


def _key(name):
    return exp.func("COALESCE", _of(exp.column("after"), name), _of(exp.column("before"), name))


def _of(image, column):
    return exp.func("STRUCT_EXTRACT", image.copy(), exp.Literal.string(column), dialect="duckdb")


def _projected(value, kind, name):
    return exp.cast(value, kind, dialect="duckdb").as_(name, quoted=True)


@macro()
def key_of_change(evaluator, keys):
    """The key of a change as one value: `PARTITION BY @key_of_change(@keys)`; of several columns a struct."""
    return _one([_key(name) for name in _names(keys)])


@macro()
def key_of_image(evaluator, keys, image: exp.Expression):
    """The key of an image, as @key_of_change has it: `ON gone.key = @key_of_image(@keys, after)`."""
    return _one([_of(image, name) for name in _names(keys)])


@macro()
def key_of_row(evaluator, keys, table: exp.Expression):
    """The key of a row of a relation that has a source table's columns, as @key_of_change has it."""
    return _one([exp.column(name, table=table.name, quoted=True) for name in _names(keys)])


@macro()
def row_digest(evaluator, columns, table: exp.Expression):
    """The digest of a row of a relation that has a source table's columns, as @image_digest has it."""
    names = [name for name, _ in _source_columns("row_digest", columns)[:-1]]
    return exp.func("HASH", *(exp.column(name, table=table.name, quoted=True) for name in names))


@macro()
def image_digest(evaluator, columns, filled: exp.Expression, image: exp.Expression):
    """A digest of an image's declared columns, NULL if there is no image: `@image_digest(@columns, @filled, before)`.

    A column that is added at the source appears in `extra` from then on, without a change of the older rows.
    """
    digest = exp.func("HASH", *(_of(image, name) for name, _ in _source_columns("image_digest", columns)[:-1]))
    return exp.case().when(is_image(evaluator, image, filled), digest)


@macro()
def is_bare(evaluator, columns, keys, image: exp.Expression):
    """Whether an image has only its key, all else NULL or the zero of its type: `@is_bare(@columns, @keys, before)`.

    So it looks if the source logs only the key of what it changes, or a connector fills in what it was not sent.
    """
    from lockstep.kinds import zero

    conditions = [
        exp.func("COALESCE", _of(image, name), parse_one(zero(kind), dialect="duckdb")).eq(
            parse_one(zero(kind), dialect="duckdb")
        )
        for name, kind in _source_columns("is_bare", columns)[:-1]
        if name not in _names(keys)
    ]
    return exp.and_(*conditions) if conditions else exp.false()


def _one(values):
    """Several values as one that can be compared."""
    if len(values) == 1:
        return values[0]
    fields = (exp.PropertyEQ(this=exp.to_identifier(f"k{n}"), expression=v) for n, v in enumerate(values, 1))
    return exp.Struct(expressions=list(fields))


def _names(keys):
    """The texts of a blueprint's list: SQL reads a list of one as a parenthesis and no list."""
    return [key.name for key in keys.expressions or [keys.unnest()]]
