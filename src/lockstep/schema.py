"""The source tables: their columns, keys and types, as `source_schema.sql` of the project declares them.

This module is the one place that knows the source schema. The change log's Parquet schema, the landing checks and
the simulator all derive from it, so that a batch of inserts alone can never infer another type for `before`.
"""

from __future__ import annotations

import functools
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

import pyarrow as pa

from lockstep.errors import LockstepError
from lockstep.kinds import TEXT as TEXT
from lockstep.kinds import TIMESTAMP as TIMESTAMP
from lockstep.kinds import Kind
from lockstep.names import EXTRA, POSTGRESQL, Name
from lockstep.project import project

SCHEMA_FILE = "source_schema.sql"


@dataclass(frozen=True)
class Column:
    """A column a model may name. `kind` says its type in the source and in the log; `nullable` as in the source.

    `name` is its name in the images, `source` what the declaration calls it at the source if that is another.
    `is_personal`: it is not shown in `source.<table>` of the published file.
    """

    name: str
    kind: Kind
    nullable: bool = False
    source: Name | None = None
    is_personal: bool = False

    @property
    def type(self) -> pa.DataType:
        """Its Arrow type in the change log."""
        return self.kind.type

    @property
    def sql(self) -> str:
        """The name, quoted for SQL: any identifier may be a column's name, reserved words too."""
        return quoted(self.name)

    def at(self, connector: str | None) -> str:
        """What a source of this connector calls it."""
        return self.name if self.source is None else self.source.at(connector)


@dataclass(frozen=True)
class Table:
    """A source table. `name` is its name in the log: of the log's folder, of models, in contracts and messages.

    `key` names its primary key columns in order, `schema` the schema it is declared in, if any; `source` is what the
    declaration calls it at the source, if that is another name.

    `is_append_only`: rows are only ever added to it, or all of them removed by TRUNCATE. Only such a table may lack a
    key; its rows are told apart by all they hold, and two of them may be equal. `is_mirrored`: its rows are published,
    as `source.<table>`.

    A column that the schema file does not name is not a reason to fail: it travels in the image's `extra`, as JSON.
    """

    name: str
    key: tuple[str, ...]
    columns: tuple[Column, ...]
    schema: Name | None = None
    is_append_only: bool = False
    source: Name | None = None
    is_mirrored: bool = True
    image: pa.StructType = field(init=False)

    def __post_init__(self) -> None:
        image = pa.struct([*(pa.field(c.name, c.type) for c in self.columns), pa.field(EXTRA, pa.string())])
        object.__setattr__(self, "image", image)

    def at(self, connector: str | None) -> str:
        """What a source of this connector calls it."""
        return self.name if self.source is None else self.source.at(connector)

    def schema_at(self, connector: str | None) -> str | None:
        """The schema it is declared in, as a source of this connector spells it; None if the declaration names none."""
        return None if self.schema is None else self.schema.at(connector)

    def sql_at(self, connector: str | None) -> str:
        """Its name for a statement at the source, with its schema if the declaration names one."""
        return ".".join(
            quoted(name.at(connector)) if name.is_quoted else name.at(connector)
            for name in (self.schema, self.source or Name(self.name, is_quoted=False))
            if name is not None
        )

    def in_postgresql(self, schema: str) -> tuple[str, str]:
        """Its schema and name in PostgreSQL; `schema` is that of tables whose declaration names none."""
        return self.schema_at(POSTGRESQL) or schema, self.at(POSTGRESQL)

    @property
    def key_columns(self) -> tuple[Column, ...]:
        """The columns by which rows are told apart: the key's in its order, or all of a table without a key."""
        by_name = {c.name: c for c in self.columns}
        return tuple(by_name[name] for name in self.key) or self.columns

    def key_at(self, connector: str | None) -> list[str]:
        """What a source of this connector calls the columns of the key; none if there is no key."""
        return [c.at(connector) for c in self.key_columns] if self.key else []

    @property
    def sql_key(self) -> tuple[str, ...]:
        """`key_columns`, quoted for SQL."""
        return tuple(c.sql for c in self.key_columns)


def quoted(name: str) -> str:
    """A name as an SQL identifier."""
    return '"{}"'.format(name.replace('"', '""'))


def literal(text: str) -> str:
    """A text as an SQL literal, or as an expression if it has a NUL: DuckDB ends a statement at one."""
    parts = ["'{}'".format(part.replace("'", "''")) for part in text.split("\0")]
    return parts[0] if len(parts) == 1 else f"({' || chr(0) || '.join(parts)})"


@functools.cache
def declared(path: Path) -> dict[str, Table]:
    """The tables of a file of DDL, by name, in its order.

    CREATE TABLE statements count, and primary keys that are added later as `pg_dump --schema-only` does; all else is
    passed over. The comment `-- append-only` before CREATE TABLE or at the end of its first line says that rows are
    only ever added to the table, and then it needs no key.

    Comments give names, see docs/sources.md. Raises one LockstepError that names the file, table and column of
    everything the change log cannot hold, so that all of it can be mended at once.
    """
    from lockstep import ddl  # which is made of this module's classes

    try:
        tables, problems = ddl.parsed(path.read_text(encoding="utf-8"), path)
    except FileNotFoundError:
        raise LockstepError(f"{path} is missing: it declares the source tables, as CREATE TABLE statements.") from None
    if len(problems) == 1:
        raise LockstepError(problems[0])
    if problems:
        listed = "".join(f"\n  {problem}" for problem in problems)
        raise LockstepError(f"{path} cannot be used as it is, for {len(problems)} reasons:{listed}")
    return tables


class Tables(Mapping[str, Table]):
    """The project's source tables by name. Read when first asked for: not every command needs a project."""

    @functools.cached_property
    def _found(self) -> dict[str, Table]:
        return declared(project() / SCHEMA_FILE)

    @contextmanager
    def without(self, columns: Mapping[str, Collection[str]]) -> Iterator[None]:
        """Some columns are not declared for as long: by table, their names. They travel in the images' `extra`."""
        found = self._found
        self._found = {
            name: replace(t, columns=tuple(c for c in t.columns if c.name not in columns.get(name, ())))
            for name, t in found.items()
        }
        try:
            yield
        finally:
            self._found = found

    def __getitem__(self, name: str) -> Table:
        return self._found[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._found)

    def __len__(self) -> int:
        return len(self._found)

    def called(self, connector: str | None, schema: str | None, name: str, default: str | None = None) -> list[Table]:
        """The tables that this may be at a source of this connector: more than one only if it names no schema.

        A table that is declared without a schema is the one in `default`, or without that in any schema. One that is
        declared in the schema comes before it.
        """
        named = [t for t in self.values() if t.at(connector) == name]
        if schema is None:
            return named
        within = [t for t in named if t.schema_at(connector) == schema]
        free = [t for t in named if t.schema is None and default in (None, schema)]
        # Of two that differ in the declaration only by their quotes, the exact one: never by their order.
        return sorted(within or free, key=lambda t: t.source is None or not t.source.is_quoted)[:1]

    def schemas_at(self, connector: str) -> set[str]:
        """The schemas that tables are declared in, as a source of this connector spells them."""
        return {schema for t in self.values() if (schema := t.schema_at(connector)) is not None}

    def may_hold(self, collection: str) -> bool:
        """Whether events of this collection, which is [DATABASE.][SCHEMA.]NAME, may be of one of the tables."""
        path = f".{collection}".casefold()
        return any(path.endswith(f".{t.source or t.name}".casefold()) for t in self.values())


TABLES = Tables()

DISCARDED = "_discarded"  # the dataset that fills the positions of discarded events, so that the log stays gapless


def batch_schema(table: Table) -> pa.Schema:
    """What a source hands to the writer for one table.

    One row a change. `ordinal` is the change's place in the batch over all tables: unique, and increasing with the
    source's order. `committed_at` is the source's commit time in UTC. `before` is null for `c` and `r` (unless the
    source knows the image that an `r` replaces), `after` is null for `d`. `tx_id` and `lsn` identify the change at
    the source and may be null where a source has none.
    """
    return pa.schema(
        [
            ("ordinal", pa.int64()),
            ("committed_at", TIMESTAMP),
            ("op", pa.string()),
            ("before", table.image),
            ("after", table.image),
            ("tx_id", pa.int64()),
            ("lsn", pa.int64()),
        ]
    )


def log_schema(table: Table) -> pa.Schema:
    """The Parquet schema of one table's change log: a batch's columns, with `ordinal` become `position`."""
    batch = batch_schema(table)
    return pa.schema([("position", pa.int64()), ("logged_at", TIMESTAMP), *((f.name, f.type) for f in list(batch)[1:])])


DISCARDED_SCHEMA = pa.schema([("position", pa.int64()), ("logged_at", TIMESTAMP), ("table", TEXT), ("reason", TEXT)])
