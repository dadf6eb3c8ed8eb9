"""From the text of a `source_schema.sql` to the tables that it declares, or everything that is wrong with it."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from lockstep.errors import LockstepError
from lockstep.kinds import Kind, kind, readable
from lockstep.names import Name, column_problem, free_name, log_name, note, noted, table_problem
from lockstep.schema import Column, Table

# Comments at the head of a CREATE TABLE: its rows are only added to; they are not published.
APPEND_ONLY, NOT_MIRRORED = "append-only", "not mirrored"
_PERSONAL = "personal"  # how the comment of a column begins that is not shown where rows are published


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
        self._sources = [_as_name(d.this) for d in self._columns]
        self._named = [definition.columns.get(source) or str(source) for source in self._sources]
        own = [s for s, d in zip(self._sources, self._columns, strict=True) if d.find(exp.PrimaryKeyColumnConstraint)]
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
        keys = [_same(key, self._sources) for key in self.key]
        found: list[Column] = []
        for source, named, definition in zip(self._sources, self._named, self._columns, strict=True):
            try:
                column = _column(path, name, definition, named, domains, source in keys)
                found.append(replace(column, is_personal=source in self.definition.personal))
            except LockstepError as e:
                problems.append(str(e))
        problems += self._column_problems(path, name)
        problems += [
            f"{path}: the PRIMARY KEY of table {name} has a column {key}, which the table does not declare. Declare it."
            for key, source in zip(self.key, keys, strict=True)
            if source is None
        ]
        if not self.key and not self.definition.is_append_only:
            problems.append(
                f"{path}: table {name} has no PRIMARY KEY, so its rows cannot be told apart. Declare one; or if rows "
                "are only ever added to it, say so with the line `-- append-only` before its CREATE TABLE; or leave "
                "the table out of the file."
            )
        names = dict(zip(self._sources, self._named, strict=True))
        key = tuple(names[source] for source in keys if source is not None)
        is_mirrored = bool(key) and not self.definition.is_append_only and not self.definition.is_not_mirrored
        return Table(name, key, tuple(found), self.schema, self.definition.is_append_only, self.name, is_mirrored)

    def _column_problems(self, path: Path, table: str) -> list[str]:
        """Columns that an image cannot hold side by side: its fields are told apart without regard to case."""
        problems = []
        taken = {name.lower() for name in self._named}
        seen: dict[str, str] = {}
        for source, name in zip(self._sources, self._named, strict=True):
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


def _same(name: Name, others: Sequence[Name]) -> Name | None:
    """Return which of the names declared in the same statement this name refers to, None if none."""
    alike = [other for other in others if other.identity == name.identity]
    alike += [] if name.is_quoted else [other for other in others if other.lower() == name.lower()]
    return alike[0] if alike else None


@dataclass(frozen=True)
class _Definition:
    """A statement: its first line, its text, and what the comments in it say.

    `named` is the table's name in the log, `columns` those of columns by their names at the source, and `personal` has
    the names at the source of those with personal data.
    """

    line: int
    text: str
    is_append_only: bool
    is_not_mirrored: bool
    named: str | None
    columns: Mapping[str, str]
    personal: Collection[str]


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
                comments = [comment.strip() for t in statement[: head + 1] for comment in t.comments]
                of_columns = _comments_of_columns(statement[head + 1 :])
                yield _Definition(
                    statement[0].line,
                    text[statement[0].start : statement[-1].end + 1],
                    APPEND_ONLY in comments,
                    NOT_MIRRORED in comments,
                    noted(comments),
                    {column: name for column, said in of_columns.items() if (name := noted(said))},
                    {c for c, said in of_columns.items() if any(x.strip().startswith(_PERSONAL) for x in said)},
                )
            begin = n + 1


def _comments_of_columns(tokens: Sequence[Any]) -> dict[str, list[str]]:
    """The comments at the columns' lines; `tokens` begin behind the table's parenthesis."""
    from sqlglot import TokenType

    said: dict[str, list[str]] = {}
    depth, first = 0, None
    for token in tokens:
        first = first or token
        depth += (token.token_type == TokenType.L_PAREN) - (token.token_type == TokenType.R_PAREN)
        if depth < 0:
            break
        said.setdefault(first.text, []).extend(token.comments)
        if depth == 0 and token.token_type == TokenType.COMMA:
            first = None
    return said


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
