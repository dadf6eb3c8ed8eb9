"""Materializations whose every write is one transaction.

SQLMesh's DuckDB adapter runs the DELETE and the INSERT of an incremental refresh outside a transaction, and its own
`transaction()` does nothing there: a process killed between the two has deleted good rows. These keep, at any crash,
either the old rows or the new ones.
"""

from __future__ import annotations

from contextlib import contextmanager

from sqlglot import exp
from sqlmesh import CustomMaterialization
from sqlmesh.utils.date import to_datetime


class _Atomic:  # SQLMesh finds direct subclasses of CustomMaterialization only, so this is not one
    def _create_if_first(self, table_name, model, is_first_insert, render_kwargs, kwargs):
        # SQLMesh creates the table beforehand only for models with a batch size.
        if not is_first_insert:
            return
        is_deployable = kwargs["is_snapshot_deployable"]
        if model.annotated:  # SQLMesh's own `create` renders the query once more, and then does not use it
            self.adapter.create_table(
                table_name,
                model.columns_to_types,
                table_description=model.description if is_deployable else None,
                column_descriptions=model.column_descriptions if is_deployable else None,
            )
        else:
            self.create(table_name, model, is_deployable, render_kwargs, skip_grants=True, dry_run=False)

    @contextmanager
    def _transaction(self):
        self.adapter.execute("BEGIN TRANSACTION")
        try:
            yield
        except BaseException:
            self.adapter.execute("ROLLBACK")
            raise
        self.adapter.execute("COMMIT")


class AtomicByTimeRange(_Atomic, CustomMaterialization):
    """Replaces the rows of the evaluated interval, by `time_column` of `materialization_properties`."""

    NAME = "atomic_by_time_range"

    def insert(self, table_name, query_or_df, model, is_first_insert, render_kwargs, **kwargs):
        column = exp.column(model.custom_materialization_properties["time_column"].name)
        start, end = (_timestamp(kwargs[bound]) for bound in ("start", "end"))
        self._create_if_first(table_name, model, is_first_insert, render_kwargs, kwargs)
        with self._transaction():
            self.adapter.delete_from(table_name, exp.and_(column >= start, column < end))
            self.adapter.insert_append(table_name, query_or_df, target_columns_to_types=model.columns_to_types)


class AtomicByValue(_Atomic, CustomMaterialization):
    """Replaces the rows of every value of `key_column` that the query returns, and keeps the last `keep` values.

    A value that the query does not return stays as it is: a generation is only ever replaced by itself, or outlived.
    """

    NAME = "atomic_by_value"

    def insert(self, table_name, query_or_df, model, is_first_insert, render_kwargs, **kwargs):
        properties = model.custom_materialization_properties
        column, keep = exp.column(properties["key_column"].name), int(properties["keep"])
        table = exp.to_table(table_name)
        fresh = exp.select(column).from_(query_or_df.subquery("fresh"))
        kept = exp.select(column).distinct().from_(table).order_by(exp.Ordered(this=column, desc=True)).limit(keep)
        oldest_kept = exp.select(exp.Min(this=column)).from_(kept.subquery("kept"))
        self._create_if_first(table_name, model, is_first_insert, render_kwargs, kwargs)
        with self._transaction():
            self.adapter.delete_from(table_name, exp.In(this=column, query=fresh.subquery()))
            self.adapter.insert_append(table_name, query_or_df, target_columns_to_types=model.columns_to_types)
            self.adapter.delete_from(table_name, column < exp.paren(oldest_kept))


class AppendOnly(_Atomic, CustomMaterialization):
    """Adds the query's rows, numbered in `number_column`, to those that the home's archive of receipts knows.

    So a history goes on in a new version of the model, and in a new warehouse. Columns are matched by name;
    `renamed` ('old new, old new') says what a column was called before.
    """

    NAME = "append_only"

    def insert(self, table_name, query_or_df, model, is_first_insert, render_kwargs, **kwargs):
        from lockstep.project import home
        from lockstep.receipts import numbered, restore

        properties = model.custom_materialization_properties
        number = properties["number_column"].name
        pairs = str(properties.get("renamed", "")).split(",")
        renamed = dict(pair.split() for pair in pairs if pair)
        self._create_if_first(table_name, model, is_first_insert, render_kwargs, kwargs)
        with self._transaction():
            restore(home(), self.adapter.cursor, model.name, table_name, model.columns_to_types, renamed, number)
            query = numbered(query_or_df, table_name, number)
            self.adapter.insert_append(table_name, query, target_columns_to_types=model.columns_to_types)


def _timestamp(at):
    return exp.cast(exp.Literal.string(str(to_datetime(at).replace(tzinfo=None))), "timestamp")
