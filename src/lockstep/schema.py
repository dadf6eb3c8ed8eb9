"""The source tables: their columns, keys and types, as `source_schema.sql` of the project declares them.

This module is the one place that knows the source schema. The change log's Parquet schema, the landing checks and
the simulator all derive from it, so that a batch of inserts alone can never infer another type for `before`.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pyarrow as pa

from lockstep.errors import LockstepError
from lockstep.kinds import TEXT as TEXT
from lockstep.kinds import TIMESTAMP as TIMESTAMP
from lockstep.kinds import Kind, kind, readable
from lockstep.project import project

SCHEMA_FILE = "source_schema.sql"
APPEND_ONLY = "append-only"  # the comment at the head of a CREATE TABLE that declares it so


@dataclass(frozen=True)
class Column:
    """A column a model may name. `kind` says its type in the source and in the log; `nullable` as in the source."""

    name: str
    kind: Kind
    nullable: bool = False

    @property
    def type(self) -> pa.DataType:
        """Its Arrow type in the change log."""
        return self.kind.type

    @property
    def sql(self) -> str:
        """The name, quoted for SQL: any identifier may be a column's name, reserved words too."""
        return quoted(self.name)


@dataclass(frozen=True)
class Table:
    """A source table. `key` names its primary key columns in order, `schema` the schema it is declared in, if any.

    `is_append_only`: rows are only ever added to it, or all of them removed by TRUNCATE. Only such a table may lack a
    key; its rows are told apart by all they hold, and two of them may be equal.

    A column that the schema file does not name is no reason to fail: it travels in the image's `extra`, as JSON.
    """

    name: str
    key: tuple[str, ...]
    columns: tuple[Column, ...]
    schema: str | None = None
    is_append_only: bool = False
    image: pa.StructType = field(init=False)

    def __post_init__(self) -> None:
        image = pa.struct([*(pa.field(c.name, c.type) for c in self.columns), pa.field("extra", pa.string())])
        object.__setattr__(self, "image", image)

    def schema_or(self, default: str) -> str:
        """The schema it is declared in, `default` if the declaration names none."""
        return self.schema or default

    @property
    def key_columns(self) -> tuple[Column, ...]:
        """The columns by which rows are told apart: the key's in its order, or all of a table without a key."""
        by_name = {c.name: c for c in self.columns}
        return tuple(by_name[name] for name in self.key) or self.columns

    @property
    def sql_key(self) -> tuple[str, ...]:
        """`key_columns`, quoted for SQL."""
        return tuple(c.sql for c in self.key_columns)


def quoted(name: str) -> str:
    """A name as an SQL identifier."""
    return '"{}"'.format(name.replace('"', '""'))


def literal(text: str) -> str:
    """A text as an SQL literal."""
    return "'{}'".format(text.replace("'", "''"))


@functools.cache
def declared(path: Path) -> dict[str, Table]:
    """The tables of a file of DDL, by name, in its order.

    CREATE TABLE statements count, and primary keys that are added later as `pg_dump --schema-only` does; all else is
    passed over. The comment `-- append-only` before CREATE TABLE or at the end of its first line says that rows are
    only ever added to the table, and then it needs no key.

    Raises one LockstepError that names the file, table and column of everything the change log cannot hold, so that
    all of it can be mended at once.
    """
    try:
        tables, problems = parsed(path.read_text(encoding="utf-8"), path)
    except FileNotFoundError:
        raise LockstepError(f"{path} is missing: it declares the source tables, as CREATE TABLE statements.") from None
    if len(problems) == 1:
        raise LockstepError(problems[0])
    if problems:
        listed = "".join(f"\n  {problem}" for problem in problems)
        raise LockstepError(f"{path} cannot be used as it is, for {len(problems)} reasons:{listed}")
    return tables


def parsed(ddl: str, path: Path) -> tuple[dict[str, Table], list[str]]:
    """The tables that the DDL declares, and everything that is wrong with it. `path` is the file that problems name."""
    from sqlglot import exp, parse_one
    from sqlglot.errors import ParseError, SqlglotError

    try:
        definitions, domains = list(_definitions(ddl, "TABLE")), _domains(ddl)
    except SqlglotError as e:
        return {}, [f"{path} is not SQL that can be read: {e}"]
    problems: list[str] = []
    columns: dict[str, list[Column]] = {}
    keys: dict[str, tuple[str, ...]] = {}
    schemas: dict[str, str | None] = {}
    append_only: set[str] = set()
    for line, text, is_append_only in definitions:
        try:
            statement = parse_one(readable(text), dialect="postgres")
        except ParseError as e:
            why = e.errors[0]
            problems.append(
                f"{path}, line {line + (why['line'] or 1) - 1}: a statement is not SQL that can be read: "
                f"{why['description']} at {why['highlight']!r}. Correct it, or leave the statement out of the file."
            )
            continue
        if isinstance(statement, exp.Create) and isinstance(statement.this, exp.Schema):
            name = statement.this.this.name
            if name in columns:
                problems.append(
                    f"{path} declares table {name} twice. A table of the log is known by its name alone: leave one out."
                )
                continue
            schemas[name] = statement.this.this.db or None
            append_only |= {name} if is_append_only else set()
            # An identifier alone is a column without a type, which `_column` refuses.
            found = [
                d if isinstance(d, exp.ColumnDef) else exp.ColumnDef(this=d)
                for d in statement.this.expressions
                if isinstance(d, exp.ColumnDef | exp.Identifier)
            ]
            own = [d.name for d in found if d.find(exp.PrimaryKeyColumnConstraint)]
            keys[name] = tuple(own) or _primary_key(statement)
            columns[name] = []
            for definition in found:
                try:
                    columns[name].append(_column(path, name, definition, domains, definition.name in keys[name]))
                except LockstepError as e:
                    problems.append(str(e))
            problems += _column_problems(path, name, [d.name for d in found])
        elif isinstance(statement, exp.Alter) and (key := _primary_key(statement)) and statement.this.name in columns:
            name = statement.this.name
            keys[name] = key
            columns[name] = [replace(c, nullable=c.nullable and c.name not in key) for c in columns[name]]
    if not columns and not problems:
        problems.append(f"{path} declares no table: it needs CREATE TABLE statements.")
    for name in columns:
        if not keys[name] and name not in append_only:
            problems.append(
                f"{path}: table {name} has no PRIMARY KEY, so its rows cannot be told apart. Declare one; or if rows "
                "are only ever added to it, say so with the line `-- append-only` before its CREATE TABLE; or leave "
                "the table out of the file."
            )
        if not name.isidentifier() or name != name.lower() or name.startswith("_"):
            problems.append(
                f"{path}: table {name} becomes a model, so its name must be a lower-case word. Leave it out."
            )
    tables = {
        name: Table(name, keys[name], tuple(columns[name]), schemas[name], name in append_only) for name in columns
    }
    return tables, problems


def _column_problems(path: Path, table: str, names: list[str]) -> list[str]:
    """Columns that an image cannot hold side by side: its fields are told apart without regard to case."""
    problems = []
    seen: dict[str, str] = {}
    for name in names:
        if name.lower() == "extra":
            problems.append(
                f"{path}: table {table} has a column {name}, the name under which every image keeps the columns that "
                "the file does not declare. Leave it out of the file: it travels there, as JSON."
            )
        elif name.lower() in seen:
            problems.append(
                f"{path}: table {table} has the columns {seen[name.lower()]} and {name}, which DuckDB does not tell "
                "apart. Leave one out of the file: it travels in `extra`, as JSON."
            )
        seen[name.lower()] = name
    return problems


def _definitions(text: str, what: str) -> Iterator[tuple[int, str, bool]]:
    """The statements that create a `what` (TABLE, with keys; DOMAIN).

    Each comes with its first line and whether it is declared append-only.

    Others are not parsed: much of a dump is beyond any parser.
    """
    from sqlglot import TokenType, tokenize

    begin = 0
    tokens = tokenize(text, dialect="postgres")
    for n, token in enumerate(tokens):
        if token.token_type == TokenType.SEMICOLON or n == len(tokens) - 1:
            statement = tokens[begin : n + (token.token_type != TokenType.SEMICOLON)]
            kinds = [t.token_type for t in statement]
            is_key = what == "TABLE" and TokenType.PRIMARY_KEY in kinds
            if is_key or [t.text.upper() for t in statement[:2]] == ["CREATE", what]:
                head = kinds.index(TokenType.L_PAREN) if TokenType.L_PAREN in kinds else 0
                comments = {comment.strip() for t in statement[: head + 1] for comment in t.comments}
                yield (
                    statement[0].line,
                    text[statement[0].start : statement[-1].end + 1],
                    APPEND_ONLY in comments,
                )
            begin = n + 1


def _primary_key(statement: Any) -> tuple[str, ...]:
    from sqlglot import exp

    found = statement.find(exp.PrimaryKey)
    return tuple(column.name for column in found.expressions) if found else ()


def _column(path: Path, table: str, definition: Any, domains: Mapping[str, Kind], is_key: bool) -> Column:
    from sqlglot import exp

    type_ = definition.args.get("kind")
    if type_ is None:
        raise LockstepError(f"{path}: column {definition.name} of {table} is without a type. Give it its type.")
    is_nullable = not (is_key or definition.find(exp.NotNullColumnConstraint))
    return Column(definition.name, kind(type_, domains), is_nullable)


def _domains(text: str) -> dict[str, Kind]:
    """The domains that the file creates, by name: a column of one holds values of the domain's base type.

    A definition that cannot be read is passed over: columns of that domain then land as text.
    """
    from sqlglot import exp, parse_one, tokenize
    from sqlglot.errors import ParseError

    domains: dict[str, Kind] = {}
    for _, statement, _ in _definitions(text, "DOMAIN"):
        tokens = tokenize(statement, dialect="postgres")
        at = 4 if len(tokens) > 4 and tokens[3].text == "." else 2
        rest = tokens[at + 1 + (tokens[at + 1].text.upper() == "AS") :]
        try:
            table = parse_one(f"CREATE TABLE d (c {readable(statement[rest[0].start :])})", dialect="postgres")
        except ParseError:
            continue
        definition = table.find(exp.ColumnDef)
        if definition is not None and (type_ := definition.args.get("kind")) is not None:
            domains[tokens[at].text] = kind(type_, domains)
    return domains


class _Tables(Mapping[str, Table]):
    """The project's source tables by name. Read when first asked for: not every command needs a project."""

    @functools.cached_property
    def _found(self) -> dict[str, Table]:
        return declared(project() / SCHEMA_FILE)

    def __getitem__(self, name: str) -> Table:
        return self._found[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._found)

    def __len__(self) -> int:
        return len(self._found)


TABLES: Mapping[str, Table] = _Tables()

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
