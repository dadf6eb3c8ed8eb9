"""What a PostgreSQL's catalog says of its tables, as `source_schema.sql` declares them.

One query reads all tables.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from psycopg2 import errors
from psycopg2.extensions import connection as Connection

from lockstep.declaration import Declaration, SourceColumn, SourceTable, declare, identifier
from lockstep.errors import LockstepError
from lockstep.names import POSTGRESQL
from lockstep.postgres import OTHER_KINDS, WITH_GENERATED, Problem, Source, query

_TABLES = """
SELECT c.oid, n.nspname, c.relname, c.relkind::text,
  CASE WHEN c.relispartition THEN pg_partition_root(c.oid)::oid END,
  (SELECT e.extname FROM pg_depend AS d JOIN pg_extension AS e ON e.oid = d.refobjid
    WHERE d.classid = 'pg_class'::regclass AND d.objid = c.oid AND d.deptype = 'e'),
  (SELECT COALESCE(json_agg(json_build_array(
      a.attname, format_type(a.atttypid, a.atttypmod), a.attnotnull, a.attgenerated::text) ORDER BY a.attnum), '[]')
    FROM pg_attribute AS a WHERE a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped),
  ARRAY(
    SELECT a.attname::text FROM pg_index AS i
    CROSS JOIN unnest(i.indkey::smallint[]) WITH ORDINALITY AS k (attnum, place)
    JOIN pg_attribute AS a ON a.attrelid = c.oid AND a.attnum = k.attnum
    WHERE i.indrelid = c.oid AND i.indisprimary ORDER BY k.place
  )
FROM pg_class AS c JOIN pg_namespace AS n ON n.oid = c.relnamespace
WHERE c.relkind IN ('r', 'p', 'v', 'm', 'f') AND c.relpersistence <> 't'
  AND n.nspname <> 'information_schema' AND n.nspname !~ '^pg_'
ORDER BY n.nspname <> 'public', n.nspname, c.relname
"""


_OLDEST_CATALOG = 120000  # the version whose catalog has all that is asked for
_GENERATED = "it is generated, and a server before PostgreSQL 18 sends no generated columns: compute it in a model"
_VIRTUAL = "it is a virtual generated column, which the server does not send: compute it in a model"


def read(source: Source, wanted: Sequence[str], append_only: Sequence[str] = ()) -> tuple[Declaration, list[Problem]]:
    """Declare the tables named in `wanted`, by default all; with it what the server needs before it can be captured.

    Those named in `append_only` are declared so, and may lack a key. Raises LockstepError if a table that is named is
    not there or cannot be captured.
    """
    connection = source.first_connection()
    try:
        if connection.server_version < _OLDEST_CATALOG:
            [problem] = source.check(connection)
            raise LockstepError(f"{problem.text}:\n    {problem.statement}")
        declaration = _declare(connection, source, wanted, append_only)
        problems = source.check(connection, declaration.tables)
        refused = source.replication_problem(connection)
        return declaration, [*problems, *([refused] if refused else [])]
    finally:
        connection.close()


@dataclass(frozen=True)
class _Found:
    """A relation of the catalog. `columns` are (name, type, is not null, kind of generated column or "").

    `root` is the OID of the partitioned table that it is a partition of.
    """

    oid: int
    schema: str
    name: str
    kind: str
    root: int | None
    extension: str | None
    columns: Sequence[tuple[str, str, bool, str]]
    key: Sequence[str]

    @property
    def qualified(self) -> str:
        return f"{identifier(self.schema)}.{identifier(self.name)}"


def _declare(connection: Connection, source: Source, wanted: Sequence[str], append_only: Sequence[str]) -> Declaration:
    found = {row[0]: _Found(*row) for row in query(connection, _TABLES)}
    unsent = {"v": _VIRTUAL} if connection.server_version >= WITH_GENERATED else {"s": _GENERATED}
    only_added_to = _named(connection, append_only, found)
    named = [*_named(connection, wanted, found), *only_added_to]
    chosen = {oid: found[oid] for oid in named} if wanted else found
    tables = []
    for relation in chosen.values():
        is_named, is_append_only = relation.oid in named, relation.oid in only_added_to
        if relation.root in chosen:
            unfit: str | None = f"is a partition of {found[relation.root].qualified}, with which it is captured"
        else:
            unfit = _unfit(relation, is_named, is_append_only)
        columns = [
            SourceColumn(name, kind, is_not_null, unsent.get(generated))
            for name, kind, is_not_null, generated in relation.columns
        ]
        tables.append(
            SourceTable(relation.name, columns, relation.key, relation.schema, is_append_only, is_named, unfit)
        )
    title = f"The source tables, as the catalog of {_database(connection)} had them."
    declaration = declare(title, tables)
    undecodable = _undecodable(connection, source, declaration)
    if not undecodable:
        return declaration
    return declare(title, [_without(table, undecodable) for table in tables])


def _undecodable(connection: Connection, source: Source, declaration: Declaration) -> dict[tuple[str, str, str], str]:
    """Columns that can be declared, but not captured, with the reason; by schema, table and column."""
    found = {}
    for layout in source.layouts(connection, declaration.tables).values():
        if layout.problem:
            table = layout.table
            for column in table.columns:
                alone = replace(layout, table=replace(table, columns=(column,)))
                if alone.problem:
                    why = "a capture does not take this type; it travels in `extra`, as JSON"
                    found[*table.in_postgresql(source.schema), column.at(POSTGRESQL)] = why
    return found


def _without(table: SourceTable, columns: Mapping[tuple[str, str, str], str]) -> SourceTable:
    reasons = [columns.get((str(table.schema), table.name, column.name)) for column in table.columns]
    marked = [replace(c, unfit=c.unfit or why) for c, why in zip(table.columns, reasons, strict=True)]
    return replace(table, columns=marked)


def _database(connection: Connection) -> str:
    [[name]] = query(connection, "SELECT current_database()")
    return str(name)


def _named(connection: Connection, wanted: Sequence[str], found: Mapping[int, _Found]) -> list[int]:
    """The OIDs of the tables with these names, spelled as in SQL; each once, in the order given."""
    oids: list[int] = []
    for name in wanted:
        try:
            # From PostgreSQL 16 on to_regclass does not mind what is not a name; parse_ident does.
            [[oid, _]] = query(connection, "SELECT to_regclass(%s)::oid, parse_ident(%s)", (name, name))
        except errors.InsufficientPrivilege as e:
            raise LockstepError(f"{name} cannot be looked up: {str(e).strip()}.") from None
        except (errors.SyntaxError, errors.InvalidName, errors.InvalidParameterValue, errors.FeatureNotSupported):
            raise LockstepError(
                f"{name!r} is not the name of a table. Write it as in SQL, [SCHEMA.]NAME, with double quotes around a "
                "part that is not a lower-case word."
            ) from None
        if oid not in found:
            last = name.rpartition(".")[2].strip('"').lower()
            alike = [r.qualified for r in found.values() if r.name.lower() == last]
            hint = f" Did you mean {' or '.join(alike)}?" if alike else " Without --table all are taken."
            raise LockstepError(f"{_database(connection)} has no table {name}.{hint}")
        if oid not in oids:
            oids.append(oid)
    return oids


def _unfit(relation: _Found, is_named: bool, is_append_only: bool) -> str | None:
    """Why the table cannot be declared, as the rest of a sentence that begins with its name."""
    if relation.kind in OTHER_KINDS:
        return "is {}: {}".format(*OTHER_KINDS[relation.kind])
    if not is_named and relation.extension:
        return f"belongs to the extension {relation.extension}"
    if not relation.key and not is_append_only:
        return (
            "has no primary key, so its rows cannot be told apart; if rows are only ever added to it, say so with "
            f"--append-only {relation.qualified}"
        )
    return None
