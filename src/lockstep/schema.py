"""The source tables: their columns, keys and types, as `source_schema.sql` of the project declares them.

This module is the one place that knows the source schema. The change log's Parquet schema, the landing checks and
the simulator all derive from it, so that a batch of inserts alone can never infer another type for `before`.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa

from lockstep.errors import LockstepError
from lockstep.kinds import TEXT as TEXT
from lockstep.kinds import TIMESTAMP as TIMESTAMP
from lockstep.kinds import Kind, kind, readable
from lockstep.names import EXTRA, POSTGRESQL, Name, column_problem, free_name, log_name, note, noted, table_problem
from lockstep.project import project

SCHEMA_FILE = "source_schema.sql"
APPEND_ONLY = "append-only"  # the comment at the head of a CREATE TABLE that declares it so


@dataclass(frozen=True)
class Column:
    """A column a model may name. `kind` says its type in the source and in the log; `nullable` as in the source.

    `name` is its name in the images, `source` what the declaration calls it at the source if that is another.
    """

    name: str
    kind: Kind
    nullable: bool = False
    source: Name | None = None

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
    key; its rows are told apart by all they hold, and two of them may be equal.

    A column that the schema file does not name is no reason to fail: it travels in the image's `extra`, as JSON.
    """

    name: str
    key: tuple[str, ...]
    columns: tuple[Column, ...]
    schema: Name | None = None
    is_append_only: bool = False
    source: Name | None = None
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
    found: dict[tuple[str | None, str], _Declared] = {}
    for definition in definitions:
        try:
            statement = parse_one(readable(definition.text), dialect="postgres")
        except ParseError as e:
            why = e.errors[0]
            problems.append(
                f"{path}, line {definition.line + (why['line'] or 1) - 1}: a statement is not SQL that can be read: "
                f"{why['description']} at {why['highlight']!r}. Correct it, or leave the statement out of the file."
            )
            continue
        if isinstance(statement, exp.Create) and isinstance(statement.this, exp.Schema):
            table = _Declared(statement.this, definition)
            if table.identity in found:
                problems.append(f"{path} declares table {table.said} twice: leave one out.")
                continue
            found[table.identity] = table
        elif isinstance(statement, exp.Alter) and (key := _primary_key(statement)):
            name, schema = _as_name(statement.this.this), _name(statement.this.args.get("db"))
            named = [t for t in found.values() if t.name.identity == name.identity]
            exact = [t for t in named if (t.schema and t.schema.identity) == (schema and schema.identity)]
            for table in exact or [t for t in named if not (t.schema and schema)]:
                table.key = key
    if not found and not problems:
        problems.append(f"{path} declares no table: it needs CREATE TABLE statements.")
    names = _log_names(path, list(found.values()), problems)
    tables = {name: table.table(path, name, domains, problems) for name, table in names.items()}
    return tables, problems


def _log_names(path: Path, tables: Sequence[_Declared], problems: list[str]) -> dict[str, _Declared]:
    """The tables by their names in the log; one that cannot have its name gets another, and a problem."""
    names: dict[str, _Declared] = {}
    taken = {table.log_name for table in tables}
    for table in tables:
        name = table.log_name
        why = table_problem(name)
        if why is None and name not in names:
            names[name] = table
            continue
        free = free_name((table.schema, table.name), {*taken, *names})
        way_out = (
            f"Name {table.said} otherwise with the line `{note(free)}` before its CREATE TABLE, or leave it out of the "
            "file."
        )
        if not name:
            what = f"nothing is left of {table.said} as a name in the log"
        elif why is not None:
            what = f"table {table.said} would be named {name} in the log, which {why}"
        else:
            what = f"tables {names[name].said} and {table.said} would both be named {name} in the log"
        problems.append(f"{path}: {what}. {way_out}")
        names[free] = table
    return names


class _Declared:
    """A CREATE TABLE statement. `key` is what a later statement adds to it."""

    def __init__(self, schema: Any, definition: _Definition) -> None:
        from sqlglot import exp

        self.definition = definition
        self.name, self.schema = _as_name(schema.this.this), _name(schema.this.args.get("db"))
        # An identifier alone is a column without a type, which `_column` refuses.
        self._columns = [
            d if isinstance(d, exp.ColumnDef) else exp.ColumnDef(this=d)
            for d in schema.expressions
            if isinstance(d, exp.ColumnDef | exp.Identifier)
        ]
        own = [_as_name(d.this) for d in self._columns if d.find(exp.PrimaryKeyColumnConstraint)]
        self.key = own or _primary_key(schema)

    @property
    def identity(self) -> tuple[str | None, str]:
        return self.schema and self.schema.identity, self.name.identity

    @property
    def said(self) -> str:
        return f"{self.schema}.{self.name}" if self.schema else str(self.name)

    @property
    def log_name(self) -> str:
        return self.definition.named or log_name(self.name)

    def table(self, path: Path, name: str, domains: Mapping[str, Kind], problems: list[str]) -> Table:
        """The table; adds what is wrong with it to `problems`."""
        keys = {key.identity for key in self.key}
        found: list[Column] = []
        for definition in self._columns:
            source = _as_name(definition.this)
            named = self.definition.columns.get(source) or str(source)
            try:
                found.append(_column(path, name, definition, named, domains, source.identity in keys))
            except LockstepError as e:
                problems.append(str(e))
        problems += self._column_problems(path, name)
        if not self.key and not self.definition.is_append_only:
            problems.append(
                f"{path}: table {name} has no PRIMARY KEY, so its rows cannot be told apart. Declare one; or if rows "
                "are only ever added to it, say so with the line `-- append-only` before its CREATE TABLE; or leave "
                "the table out of the file."
            )
        by_source = {(c.source or Name(c.name)).identity: c.name for c in found}
        key = tuple(by_source[k.identity] for k in self.key if k.identity in by_source)
        return Table(name, key, tuple(found), self.schema, self.definition.is_append_only, self.name)

    def _column_problems(self, path: Path, table: str) -> list[str]:
        """Columns that an image cannot hold side by side: its fields are told apart without regard to case."""
        problems = []
        sources = [_as_name(d.this) for d in self._columns]
        named = [self.definition.columns.get(source) or str(source) for source in sources]
        taken = {name.lower() for name in named}
        seen: dict[str, str] = {}
        for source, name in zip(sources, named, strict=True):
            free = free_name((table, source), taken)
            if why := column_problem(name):
                what = f"a column {source}" if name == source else f"a column {source} named {name}"
                what += f": that name {why}"
            elif name.lower() in seen:
                what = f"the columns {seen[name.lower()]} and {name}, which DuckDB does not tell apart"
            else:
                seen[name.lower()] = name
                continue
            problems.append(
                f"{path}: table {table} has {what}. Name {source} otherwise in the log by a comment at the end of its "
                f"line, `{note(free)}`; or leave it out of the file: it travels in `extra`, as JSON."
            )
        return problems


def _as_name(identifier: Any) -> Name:
    return Name(identifier.name, bool(identifier.args.get("quoted")))


def _name(identifier: Any) -> Name | None:
    return _as_name(identifier) if identifier else None


@dataclass(frozen=True)
class _Definition:
    """A statement: its first line, its text, and what the comments in it say.

    `named` is the table's name in the log, `columns` those of columns by their names at the source.
    """

    line: int
    text: str
    is_append_only: bool
    named: str | None
    columns: Mapping[str, str]


def _definitions(text: str, what: str) -> Iterator[_Definition]:
    """The statements that create a `what` (TABLE, with keys; DOMAIN).

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
                yield _Definition(
                    statement[0].line,
                    text[statement[0].start : statement[-1].end + 1],
                    APPEND_ONLY in comments,
                    noted(comments),
                    _named_columns(statement[head + 1 :]),
                )
            begin = n + 1


def _named_columns(tokens: Sequence[Any]) -> dict[str, str]:
    """The names that comments at the columns' lines give them; `tokens` begin behind the table's parenthesis."""
    from sqlglot import TokenType

    names: dict[str, str] = {}
    depth, first = 0, None
    for token in tokens:
        first = first or token
        depth += (token.token_type == TokenType.L_PAREN) - (token.token_type == TokenType.R_PAREN)
        if depth < 0:
            break
        if name := noted(token.comments):
            names[first.text] = name
        if depth == 0 and token.token_type == TokenType.COMMA:
            first = None
    return names


def _primary_key(statement: Any) -> list[Name]:
    from sqlglot import exp

    found = statement.find(exp.PrimaryKey)
    return [_as_name(_identifier(column)) for column in found.expressions] if found else []


def _identifier(column: Any) -> Any:
    from sqlglot import exp

    return column if isinstance(column, exp.Identifier) else column.find(exp.Identifier)


def _column(path: Path, table: str, definition: Any, name: str, domains: Mapping[str, Kind], is_key: bool) -> Column:
    from sqlglot import exp

    type_ = definition.args.get("kind")
    if type_ is None:
        raise LockstepError(f"{path}: column {definition.name} of {table} is without a type. Give it its type.")
    is_nullable = not (is_key or definition.find(exp.NotNullColumnConstraint))
    return Column(name, kind(type_, domains), is_nullable, _as_name(definition.this))


def _domains(text: str) -> dict[str, Kind]:
    """The domains that the file creates, by name: a column of one holds values of the domain's base type.

    A definition that cannot be read is passed over: columns of that domain then land as text.
    """
    from sqlglot import exp, parse_one, tokenize
    from sqlglot.errors import ParseError

    domains: dict[str, Kind] = {}
    for statement in (definition.text for definition in _definitions(text, "DOMAIN")):
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


class Tables(Mapping[str, Table]):
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
