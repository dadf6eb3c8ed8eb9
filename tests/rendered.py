"""Single models and audits of the project, rendered as SQLMesh renders them and run by a DuckDB of the test's own.

For what SQLMesh's unit tests cannot reach: audits, models that read files, and the rows of seeds. Nothing is planned,
so a test costs milliseconds once the project is loaded.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import duckdb
from sqlmesh import Context

Row = dict[str, Any]


class Rendered:
    """Tables with rows of the test's, and the project's models as views over them."""

    def __init__(self, project: Context, home: Path | None = None) -> None:
        self.project = project
        self._connection = duckdb.connect()
        self._connection.execute("SET TimeZone = 'UTC'; ATTACH ':memory:' AS warehouse; USE warehouse")
        if home:
            self._connection.execute(f"SET file_search_path = '{home}'")

    def table(self, name: str, *rows: Row, **types: str) -> None:
        """A table under a model's name with its columns; `types` gives those that SQLMesh does not know."""
        known = self.project.get_model(name).columns_to_types
        columns = {column: types.get(column) or kind.sql("duckdb") for column, kind in known.items()}
        self._make_room_for(name)
        self._connection.execute(
            f"CREATE OR REPLACE TABLE {name} ({', '.join(f'{c} {t}' for c, t in columns.items())})"
        )
        for row in rows:
            marks = ", ".join("?" for _ in row)
            self._connection.execute(f"INSERT INTO {name} ({', '.join(row)}) VALUES ({marks})", list(row.values()))

    def seed(self, name: str) -> None:
        """The rows of a seed's file, as SQLMesh loads them."""
        self._make_room_for(name)
        [rows] = self.project.get_model(name).render(context=None)
        self._connection.from_df(rows).create(name)

    def view(self, name: str) -> None:
        """A model as it is written; what it reads must be there."""
        self._make_room_for(name)
        query = self.project.get_model(name).render_query_or_raise()
        self._connection.execute(f"CREATE OR REPLACE VIEW {name} AS {query.sql('duckdb')}")

    def audit(self, model: str, name: str, **which: str) -> list[Row]:
        """What an audit finds in a model, with the arguments that the model gives it.

        `which` tells two uses of one audit apart by their arguments.
        """
        of_model = self.project.get_model(model)
        [(audit, arguments)] = [
            (audit, arguments)
            for audit, arguments in of_model.audits_with_args
            if audit.name == name and all(arguments[key].sql("duckdb") == value for key, value in which.items())
        ]
        return self.rows(of_model.render_audit_query(audit, **arguments).sql("duckdb"))

    def rows(self, query: str) -> list[Row]:
        result = self._connection.execute(query)
        names = [column[0] for column in result.description]
        return [dict(zip(names, row, strict=True)) for row in result.fetchall()]

    def values(self, query: str) -> list[Any]:
        """The only column of a query."""
        return [value for row in self.rows(query) for value in row.values()]

    def _make_room_for(self, name: str) -> None:
        self._connection.execute(f"CREATE SCHEMA IF NOT EXISTS {name.split('.')[0]}")
