"""The tables of a published file: which of the publication before stay, and which parts are written anew."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from duckdb import DuckDBPyConnection

from lockstep import warehouse
from lockstep.published import sql
from lockstep.published.models import Model, Models
from lockstep.published.sql import Tree
from lockstep.schema import quoted
from lockstep.warehouse import Row, text

NEVER = datetime(1, 1, 1)


@dataclass(frozen=True)
class Stored:
    """A table of a publication. `parts` are the count and hash of its rows by generation or hour; or, of a table that
    grows with the log, up to where it reaches, and None.
    """

    definition: str
    parts: dict[datetime, tuple[int, int] | None]


_STORED = "ops.stored (name TEXT, definition TEXT, part TIMESTAMP, rows BIGINT, hash HUGEINT)"
_PROVEN = "ops.proven (digest TEXT, comma_binds_first BOOLEAN)"
_OWN_TABLES = ("main.about", "ops.publication", "ops.proven", "ops.refused")  # made anew by every publication


class File:
    """A file that is empty or a copy of the publication before, in an open transaction."""

    def __init__(self, connection: DuckDBPyConnection, models: Models) -> None:
        self.connection = connection
        self.stored: dict[str, Stored] = {}
        self.renewed: dict[str, set[datetime]] = {}
        self.proven_before: dict[str, bool] = {}
        self._before = self._begin(models)

    def _begin(self, models: Models) -> dict[str, Stored]:
        """Drop all that is written anew, and return what the tables that stay were stored as."""
        here = "WHERE database_name = current_database() AND NOT internal"
        for schema in ("ops", "changes", "folded", "source"):
            self.run(f"CREATE SCHEMA IF NOT EXISTS {schema}")
        self.run(f"CREATE TABLE IF NOT EXISTS {_PROVEN}")
        self.proven_before = {row["digest"]: row["comma_binds_first"] for row in self.rows("FROM ops.proven")}
        for kind, schema, short in self.connection.execute(
            f"SELECT 'VIEW', schema_name, view_name FROM duckdb_views() {here} UNION ALL "
            f"SELECT 'MACRO TABLE', schema_name, function_name FROM duckdb_functions() {here} UNION ALL "
            f"SELECT 'TABLE', schema_name, table_name FROM duckdb_tables() {here}"
        ).fetchall():
            name = f"{schema}.{short}"
            if kind != "TABLE" or name in _OWN_TABLES or (name in models and models[name].is_view):
                self.run(f"DROP {kind} {sql.named(name)}")
        self.run(f"CREATE TABLE IF NOT EXISTS {_STORED}")
        before: dict[str, Stored] = {}
        for row in self.rows("SELECT * FROM ops.stored"):
            stored = before.setdefault(row["name"], Stored(row["definition"], {}))
            stored.parts[row["part"]] = None if row["rows"] is None else (row["rows"], row["hash"])
        return before

    def end(self, proven: dict[str, bool]) -> None:
        """Drop the tables that no mart needs any more, and write down what the others are."""
        here = "SELECT schema_name, table_name FROM duckdb_tables() WHERE database_name = current_database()"
        for schema, table in self.connection.execute(here).fetchall():
            if f"{schema}.{table}" not in (*self.stored, *_OWN_TABLES):
                self.run(f"DROP TABLE {sql.named(f'{schema}.{table}')}")
        self.run(f"CREATE TABLE {_STORED}")
        rows = [
            f"({text(name)}, {text(stored.definition)}, {time(part)}, {seal[0]}, {seal[1]})"
            for name, stored in self.stored.items()
            for part, seal in ((part, seal or ("NULL", "NULL")) for part, seal in stored.parts.items())
        ]
        if rows:
            self.run(f"INSERT INTO ops.stored VALUES {', '.join(rows)}")
        self.run(f"CREATE TABLE {_PROVEN}")
        if proven:
            self.run(f"INSERT INTO ops.proven VALUES {', '.join(f'({text(d)}, {r})' for d, r in proven.items())}")

    def until(self, name: str, definition: str) -> datetime | None:
        """Up to where the publication before has a table that grows with the log; None if not by this definition."""
        before = self._before.get(name)
        return max(before.parts) if before and before.definition == definition else None

    def copy(self, model: Model, condition: str) -> None:
        """A table as the warehouse has it. Parts of it that are the same already are not written again."""
        part = next((column for column in ("cut", "log_hour") if column in model.columns), time(NEVER))
        name, rows = sql.named(model.name), f"SELECT * FROM {model.relation} WHERE {condition}"
        kinds = self.rows(f"DESCRIBE {rows}")
        definition = ", ".join(f"{kind['column_name']} {kind['column_type']}" for kind in kinds)
        known = self._before.get(model.name)
        before = known.parts if known and known.definition == definition else {}
        now: dict[datetime, tuple[int, int] | None] = {
            row["part"]: (row["rows"], row["hash"])
            for row in self.rows(
                f"SELECT {part} AS part, COUNT(*) AS rows, SUM(HASH(copied)::HUGEINT) AS hash "
                f"FROM ({rows}) AS copied GROUP BY 1"
            )
        }
        gone, new = ({p for p in a if a[p] != b.get(p)} for a, b in ((before, now), (now, before)))
        if not before:
            self.run(f"CREATE OR REPLACE TABLE {name} AS {rows}")
        else:
            if gone:
                self.run(f"DELETE FROM {name} WHERE {part} IN ({', '.join(map(time, gone))})")
            if new:
                self.run(f"INSERT INTO {name} {rows} AND {part} IN ({', '.join(map(time, new))})")
        self.stored[model.name] = Stored(definition, now)
        self.renewed[model.name] = gone | new

    def keep(self, name: str, query: Tree) -> str:
        """A table of what a query has at the cut, always made anew; returns its name."""
        if name not in self.stored:
            as_text = sql.text(query)
            self.run(f"CREATE OR REPLACE TABLE {name} AS {as_text} ORDER BY ALL")
            self.stored[name] = Stored(as_text, {})
        return name

    def view(self, name: str, query: Tree, columns: list[str] | None = None) -> None:
        listed = f" ({', '.join(map(quoted, columns))})" if columns else ""
        self.run(f"CREATE VIEW {sql.named(name)}{listed} AS {sql.text(query)}")

    def run(self, statement: str) -> None:
        self.connection.execute(statement)

    def value(self, query: str) -> Any:
        return self.connection.execute(query).fetchall()[0][0]

    def rows(self, query: str) -> list[Row]:
        return warehouse.rows(self.connection, query)


class Shared(dict[str, Tree]):
    """What a view asks once however often it mentions it: queries by the name of what they replace.

    What a reader selects by gets into the query, and so do the filters of the joins in it. Of what is mentioned more
    than once all columns are read, also those that nobody asks for.
    """

    def name(self, what: str, query: Tree) -> str:
        """Share a query; returns the name that it is mentioned by. No CTE of a model has it: it has a dot."""
        assert sql.RESERVED in what
        self.setdefault(what, query)
        return quoted(what)

    def around(self, query: Tree) -> Tree:
        """The query behind all that it shares."""
        return sql.with_ctes(query, self)


def time(at: datetime | None) -> str:
    return f"TIMESTAMP '{at.isoformat(sep=' ')}'" if at else "NULL::TIMESTAMP"


def now() -> datetime:
    return datetime.now(UTC).replace(tzinfo=None)
