"""The text of a `source_schema.sql`, written from what a source says of its tables.

Each table is parsed as every command will parse it, so what is written is what is accepted: a column that the change
log cannot hold is left to `extra`, a table that it cannot hold is left out, and both are said. A table or column whose
name is taken or reserved in the log gets another one by a comment.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from lockstep.ddl import APPEND_ONLY, parsed
from lockstep.errors import LockstepError
from lockstep.names import column_problem, free_name, log_name, note, table_problem
from lockstep.schema import SCHEMA_FILE, Table, quoted


@dataclass(frozen=True)
class SourceColumn:
    """A column as the source describes it: its type in SQL, or `unfit`, why it cannot be declared."""

    name: str
    type: str
    is_not_null: bool = False
    unfit: str | None = None


@dataclass(frozen=True)
class SourceTable:
    """A table as the source describes it. `is_named`: it was asked for by name. `unfit`: why it cannot be declared."""

    name: str
    columns: Sequence[SourceColumn]
    key: Sequence[str]
    schema: str | None = None
    is_append_only: bool = False
    is_named: bool = False
    unfit: str | None = None

    @property
    def qualified(self) -> str:
        return ".".join(identifier(part) for part in (self.schema, self.name) if part)


@dataclass(frozen=True)
class Declaration:
    """The text of a `source_schema.sql`, the tables that it declares, and what it does not declare and why."""

    text: str
    tables: tuple[Table, ...]
    columns_left_out: tuple[str, ...]
    tables_left_out: tuple[str, ...]

    @property
    def named_otherwise(self) -> list[str]:
        """The tables and columns whose name in the log is not that at the source, with it."""
        named = []
        for table in self.tables:
            name = table.sql_at(None)
            named += [f"{name}: {table.name}"] if table.source != table.name else []
            named += [f"{name}.{identifier(str(c.source))}: {c.name}" for c in table.columns if c.source != c.name]
        return named


def declare(title: str, tables: Iterable[SourceTable]) -> Declaration:
    """Declare the tables that can be, in their order. `title` is the file's first line.

    Raises LockstepError if one that is asked for by name cannot be declared, or if none can.
    """
    texts: list[str] = []
    declared: dict[str, Table] = {}
    columns_left_out: list[str] = []
    left_out: list[str] = []
    refused: list[str] = []
    for table in tables:
        try:
            text, found, unfit = _declared(table, declared)
        except _Unfit as e:
            (refused if table.is_named else left_out).append(f"{table.qualified} {e}.")
        else:
            texts.append(text)
            declared[found.name] = found
            columns_left_out += unfit
    if refused:
        raise LockstepError("\n  ".join(("These cannot be declared:", *refused)) if refused[1:] else refused[0])
    if not declared:
        why = "".join(f"\n  {line}" for line in left_out)
        raise LockstepError(f"There is no table that can be declared.{why}")
    text = "\n".join((f"-- {title}\n", *texts))
    return Declaration(text, tuple(declared.values()), tuple(columns_left_out), tuple(left_out))


class _Unfit(Exception):
    """Why a table cannot be declared, as the rest of a sentence that begins with its name."""


def _declared(table: SourceTable, others: Collection[str]) -> tuple[str, Table, list[str]]:
    """The table's CREATE TABLE, what it declares beside the tables `others`, and the columns that it leaves out."""
    if table.unfit:
        raise _Unfit(table.unfit)
    notes: list[str] = []
    body: list[tuple[str, str]] = []
    left_out: list[str] = []
    name = log_name(table.name)
    if name in others or table_problem(name):
        name = free_name((table.schema, table.name), others)
        notes.append(note(name))
    names: set[str] = set()
    for column in table.columns:
        if why := column.unfit or _unfit(column):
            if column.name in table.key:
                raise _Unfit(f"has the key column {column.name} {column.type}, which cannot be declared: {why}")
            left_out.append(f"{table.qualified}.{identifier(column.name)} ({column.type}): {why}")
            notes.append(f"-- Without {column.name!r} {column.type}: {why}.")
        else:
            named = ""
            if column.name.lower() in names or column_problem(column.name):
                named = free_name((name, column.name), {*names, *(c.name.lower() for c in table.columns)})
            names.add(named or column.name.lower())
            line = f"{identifier(column.name)} {column.type}{' NOT NULL' if column.is_not_null else ''}"
            body.append((line, f" {note(named)}" if named else ""))
    if table.key:
        body.append((f"PRIMARY KEY ({', '.join(map(identifier, table.key))})", ""))
    if table.is_append_only:
        notes.append(f"-- {APPEND_ONLY}")
    columns = [f"  {line}{',' if body[n:] else ''}{named}" for n, (line, named) in enumerate(body, 1)]
    text = "\n".join([*notes, f"CREATE TABLE {table.qualified} (", *columns, ");\n"])
    tables, problems = parsed(text, Path(SCHEMA_FILE))
    if problems:
        raise _Unfit(f"cannot be declared: {' '.join(problems)}".rstrip("."))
    return text, tables[name], left_out


def _unfit(column: SourceColumn) -> str | None:
    """Why a column cannot be declared."""
    return None if _is_type(column.type) else "the change log has no such type; it travels in `extra`, as JSON"


@functools.cache
def _is_type(kind: str) -> bool:
    return not parsed(f"CREATE TABLE t (c {kind} PRIMARY KEY)", Path(SCHEMA_FILE))[1]


@functools.cache
def _reserved() -> frozenset[str]:
    from sqlglot.dialects.postgres import Postgres

    return frozenset(word.lower() for word in Postgres.Tokenizer.KEYWORDS)


def identifier(name: str) -> str:
    """A name as an SQL identifier, in quotes only where it needs them."""
    is_plain = re.fullmatch(r"[a-z_][a-z0-9_]*", name) and name not in _reserved()
    return name if is_plain else quoted(name)
