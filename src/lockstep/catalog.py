"""What a PostgreSQL's catalog says of its tables, as `source_schema.sql` declares them.

One query reads all tables. Each declaration is parsed as every command will parse it, so what is written is what a
capture accepts: a column that the change log cannot hold is left to `extra`, a table that it cannot hold is left out,
and both are said.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from psycopg2 import errors
from psycopg2.extensions import connection as Connection

from lockstep.errors import LockstepError
from lockstep.postgres import OTHER_KINDS, Problem, Source, query
from lockstep.schema import APPEND_ONLY, SCHEMA_FILE, Table, parsed, quoted

_TABLES = """
SELECT c.oid, n.nspname, c.relname, c.relkind::text,
  CASE WHEN c.relispartition THEN pg_partition_root(c.oid)::oid END,
  (SELECT e.extname FROM pg_depend AS d JOIN pg_extension AS e ON e.oid = d.refobjid
    WHERE d.classid = 'pg_class'::regclass AND d.objid = c.oid AND d.deptype = 'e'),
  (SELECT COALESCE(json_agg(json_build_array(
      a.attname, format_type(a.atttypid, a.atttypmod), a.attnotnull, a.attgenerated <> '') ORDER BY a.attnum), '[]')
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


@dataclass(frozen=True)
class Declaration:
    """The text of a `source_schema.sql`, the tables that it declares, and what it does not declare and why."""

    text: str
    tables: tuple[Table, ...]
    columns_left_out: tuple[str, ...]
    tables_left_out: tuple[str, ...]


def read(source: Source, wanted: Sequence[str], append_only: Sequence[str] = ()) -> tuple[Declaration, list[Problem]]:
    """Declare the tables named in `wanted`, by default all; with it what the server needs before it can be captured.

    Those named in `append_only` are declared so, and may lack a key. Raises LockstepError if a table that is named is
    not there or cannot be captured.
    """
    connection = source.first_connection()
    try:
        declaration = _declare(connection, wanted, append_only)
        problems = source.check(connection, declaration.tables)
        refused = source.replication_problem(connection)
        return declaration, [*problems, *([refused] if refused else [])]
    finally:
        connection.close()


@dataclass(frozen=True)
class _Found:
    """A relation of the catalog. `columns` are (name, type, is not null, is generated).

    `root` is the OID of the partitioned table that it is a partition of.
    """

    oid: int
    schema: str
    name: str
    kind: str
    root: int | None
    extension: str | None
    columns: Sequence[tuple[str, str, bool, bool]]
    key: Sequence[str]

    @property
    def qualified(self) -> str:
        return f"{_identifier(self.schema)}.{_identifier(self.name)}"


def _declare(connection: Connection, wanted: Sequence[str], append_only: Sequence[str]) -> Declaration:
    found = {row[0]: _Found(*row) for row in query(connection, _TABLES)}
    only_added_to = _named(connection, append_only, found)
    named = [*_named(connection, wanted, found), *only_added_to]
    chosen = {oid: found[oid] for oid in named} if wanted else found
    parts: list[_Part] = []
    left_out: list[str] = []
    seen: dict[str, str] = {}
    refused: list[str] = []
    for relation in chosen.values():
        is_named = relation.oid in named
        if relation.root in chosen:
            part: _Part | str = f"is a partition of {found[relation.root].qualified}, with which it is captured"
        else:
            part = _part(relation, is_named, relation.oid in only_added_to, seen)
        if isinstance(part, str):
            (refused if is_named else left_out).append(f"{relation.qualified} {part}.")
        else:
            seen[relation.name] = relation.qualified
            parts.append(part)
    if refused:
        raise LockstepError("\n  ".join(("These cannot be captured:", *refused)) if refused[1:] else refused[0])
    if not parts:
        why = "".join(f"\n  {line}" for line in left_out)
        raise LockstepError(f"There is no table in this database that can be captured.{why}")
    text = f"-- The source tables, as the catalog of {_database(connection)} had them.\n"
    return Declaration(
        text + "".join(f"\n{part.text}" for part in parts),
        tuple(part.table for part in parts),
        tuple(line for part in parts for line in part.left_out),
        tuple(left_out),
    )


def _database(connection: Connection) -> str:
    [[name]] = query(connection, "SELECT current_database()")
    return str(name)


def _named(connection: Connection, wanted: Sequence[str], found: Mapping[int, _Found]) -> list[int]:
    """The OIDs of the tables with these names, spelled as in SQL; each once, in the order given."""
    oids: list[int] = []
    for name in wanted:
        try:
            [[oid]] = query(connection, "SELECT to_regclass(%s)::oid", (name,))
        except errors.InsufficientPrivilege as e:
            raise LockstepError(f"{name} cannot be looked up: {str(e).strip()}.") from None
        except (errors.SyntaxError, errors.InvalidName, errors.FeatureNotSupported):
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


@dataclass(frozen=True)
class _Part:
    """One table's declaration; `left_out` are its columns that are not declared, each with the reason."""

    text: str
    table: Table
    left_out: tuple[str, ...]


def _part(relation: _Found, is_named: bool, is_append_only: bool, seen: Mapping[str, str]) -> _Part | str:
    """The declaration of a table, or why it has none."""
    if relation.kind in OTHER_KINDS:
        return "is {}: {}".format(*OTHER_KINDS[relation.kind])
    if not is_named and relation.extension:
        return f"belongs to the extension {relation.extension}"
    if relation.name in seen:
        return f"has the name of {seen[relation.name]}, and a table of the log is known by its name alone"
    if not relation.key and not is_append_only:
        return (
            "has no primary key, so its rows cannot be told apart; if rows are only ever added to it, say so with "
            f"--append-only {relation.qualified}"
        )
    notes: list[str] = []
    body: list[str] = []
    left_out: list[str] = []
    names: set[str] = set()
    for name, kind, is_not_null, is_generated in relation.columns:
        if why := _unfit(name, kind, is_generated, names):
            if name in relation.key:
                return f"has the key column {name} {kind}, which cannot be declared: {why}"
            left_out.append(f"{relation.qualified}.{_identifier(name)} ({kind}): {why}")
            notes.append(f"-- Without {name!r} {kind}: {why}.")
        else:
            names.add(name.lower())
            body.append(f"{_identifier(name)} {kind}{' NOT NULL' if is_not_null else ''}")
    if relation.key:
        body.append(f"PRIMARY KEY ({', '.join(map(_identifier, relation.key))})")
    if is_append_only:
        notes.append(f"-- {APPEND_ONLY}")
    columns = ",\n".join(f"  {line}" for line in body)
    text = "\n".join([*notes, f"CREATE TABLE {relation.qualified} (", columns, ");\n"])
    tables, problems = parsed(text, Path(SCHEMA_FILE))
    if problems:
        return f"cannot be declared: {' '.join(problems)}".rstrip(".")
    return _Part(text, tables[relation.name], tuple(left_out))


def _unfit(name: str, kind: str, is_generated: bool, names: set[str]) -> str | None:
    """Why a column cannot be declared beside those in `names`."""
    if is_generated:
        return "it is generated, and the server sends no generated columns: compute it in a model"
    if name.lower() == "extra":
        return "its name is that of the column that carries all undeclared columns, where it travels as JSON"
    if name.lower() in names:
        return "another column has the same name but for its case; it travels in `extra`, as JSON"
    if not _is_type(kind):
        return "the change log has no such type; it travels in `extra`, as JSON"
    return None


@functools.cache
def _is_type(kind: str) -> bool:
    return not parsed(f"CREATE TABLE t (c {kind} PRIMARY KEY)", Path(SCHEMA_FILE))[1]


@functools.cache
def _reserved() -> frozenset[str]:
    from sqlglot.dialects.postgres import Postgres

    return frozenset(word.lower() for word in Postgres.Tokenizer.KEYWORDS)


def _identifier(name: str) -> str:
    """A name as an SQL identifier, in quotes only where it needs them."""
    is_plain = re.fullmatch(r"[a-z_][a-z0-9_]*", name) and name not in _reserved()
    return name if is_plain else quoted(name)
