"""What is known of the tables that a query reads, and what DuckDB says of the types of its expressions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import duckdb
from sqlglot import exp

PREFIX = "__"  # of generated names: no column of a source may begin with it


@dataclass(frozen=True)
class Table:
    """A table of the query: its columns with their DuckDB types, its key, and how it changes.

    `not_null`: columns that are never NULL, beyond the key. `is_static`: a seed, which does not change while cells do.
    `matches_once`: at most one row of it fits where a LEFT JOIN looks for it, which the caller must have audited.
    """

    columns: Mapping[str, str]
    key: tuple[str, ...] = ()
    not_null: frozenset[str] = frozenset()
    is_static: bool = False
    matches_once: bool = False

    def is_nullable(self, column: str) -> bool:
        return column not in self.key and column not in self.not_null


Catalog = Mapping[str, Table]  # by the name that the query has for it: `source.orders`


class Types:
    """Asks DuckDB itself for the types of expressions, over empty tables of the catalog."""

    def __init__(self, catalog: Catalog) -> None:
        self._connection = duckdb.connect(":memory:")
        for name, table in catalog.items():
            schema, _, _ = name.rpartition(".")
            if schema:
                self._connection.execute(f"CREATE SCHEMA IF NOT EXISTS {schema}")
            columns = ", ".join(f'"{column}" {kind}' for column, kind in table.columns.items())
            self._connection.execute(f"CREATE TABLE {name} ({columns})")

    def of(self, tables: Sequence[tuple[str, str]], expressions: Sequence[exp.Expr]) -> list[str]:
        """The types of expressions over `tables`, which are pairs of alias and name."""
        if not expressions:
            return []
        query = exp.select(*(e.copy().as_(f"e{i}") for i, e in enumerate(expressions)))
        if tables:
            query = query.from_(exp.to_table(tables[0][1]).as_(tables[0][0]))
            for alias, name in tables[1:]:
                query = query.join(exp.to_table(name).as_(alias), join_type="cross")
        found = self._connection.execute(f"DESCRIBE {query.sql('duckdb')}").fetchall()
        return [row[1] for row in found]
