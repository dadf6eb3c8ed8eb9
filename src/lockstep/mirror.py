"""`source.<table>` of a published file: the rows of a source table as of the last change that the file shows.

A table of the file has the rows at the published cut, and its next publication applies what has changed since; the view
applies the changes of the tail. Of each key the latest image counts. This module has the SQL, `publication` chooses
the rows and changes. `added_up` is the other way from changes to rows, for a table that has no mirror.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass

from lockstep.names import GENERATED
from lockstep.schema import Column, Table, quoted

_IS_THERE = f"{GENERATED}is_there"


@dataclass(frozen=True)
class Mirror:
    """What is shown of a table that has a key: all declared columns but those with personal data.

    A personal column of the key is there as a digest of its text, so that the rows still join.
    """

    table: Table
    planned: Collection[str] | None = None  # the columns that the models know; None is all

    @property
    def definition(self) -> str:
        """The shown columns, their types, and which of them are digests."""
        return ", ".join(f"{c.sql} {c.kind.duckdb}{' as a digest' if c.is_personal else ''}" for c in self.columns)

    @property
    def columns(self) -> list[Column]:
        """The columns that are shown, in the order of the declaration."""
        planned = {name.lower() for name in self.planned or ()}  # SQLMesh writes the names of columns in lower case
        known = [c for c in self.table.columns if self.planned is None or c.name.lower() in planned]
        return [c for c in known if not c.is_personal or c.name in self.table.key]

    def names(self, relation: str = "") -> str:
        """The shown columns as a list."""
        return ", ".join(f"{relation}{c.sql}" for c in self.columns)

    def rows(self, relation: str) -> str:
        """The query that shows rows which have all columns of the table."""
        return f"SELECT {', '.join(_shown(c, c.sql) for c in self.columns)} FROM {relation}"

    def latest(self, changes: str) -> str:
        """The query for the last image of each key in a query for changes, `__is_there` unless that is a deletion."""
        keys = ", ".join(self._key(c) for c in self.table.key_columns)
        images = ", ".join(
            _shown(c, self._key(c) if c.name in self.table.key else f"changes.after.{c.sql}") for c in self.columns
        )
        is_there = f"changes.after.{self.table.key_columns[0].sql} IS NOT NULL AS {_IS_THERE}"
        last = f"QUALIFY ROW_NUMBER() OVER (PARTITION BY {keys} ORDER BY changes.position DESC) = 1"
        return f"SELECT {images}, {is_there} FROM ({changes}) AS changes {last}"

    def merged(self, rows: str, latest: str) -> str:
        """The query for `rows` after what is `latest` of each key that has changed."""
        same = f"ON {self._same('kept', 'latest')}"
        return (
            f"SELECT {self.names('kept.')} FROM {rows} AS kept ANTI JOIN {latest} AS latest {same} "
            f"UNION ALL SELECT {self.names()} FROM {latest} WHERE {_IS_THERE}"
        )

    def applied(self, table: str, latest: str) -> list[str]:
        """The statements that bring a table of the rows up to what is `latest` of each key."""
        return [
            f"DELETE FROM {table} USING {latest} AS latest WHERE {self._same(table, 'latest')}",
            f"INSERT INTO {table} SELECT {self.names()} FROM {latest} WHERE {_IS_THERE}",
        ]

    def order(self) -> str:
        """The columns of the key as a list."""
        return ", ".join(self.table.sql_key)

    def _same(self, one: str, other: str) -> str:
        return " AND ".join(f"{one}.{key} = {other}.{key}" for key in self.table.sql_key)

    @staticmethod
    def _key(column: Column) -> str:
        return f"COALESCE(changes.after.{column.sql}, changes.before.{column.sql})"


def added_up(columns: Iterable[str], kept: str, signed: str) -> str:
    """The query for the rows that two relations come to, each with `__weight`: how often a row is there.

    Only what `signed` has is added up, all else is in `kept` as it is: grouping all rows took up to three times as
    long.
    """
    listed = [quoted(c) for c in columns]
    names, of_kept = ", ".join(listed), ", ".join(f"kept.{c}" for c in listed)
    same = " AND ".join(f"kept.{c} IS NOT DISTINCT FROM moved.{c}" for c in listed)
    rest, touched = (
        f"SELECT {of_kept}, kept.__weight FROM {kept} AS kept {kind} JOIN {signed} AS moved ON {same}"
        for kind in ("ANTI", "SEMI")
    )
    summed = (
        f"SELECT {names}, SUM(__weight)::BIGINT AS __weight FROM ({touched} UNION ALL "
        f"SELECT {names}, __weight FROM {signed}) AS touched GROUP BY {names}"
    )
    copies = "CASE WHEN __weight = 1 THEN [0] ELSE RANGE(__weight) END"  # a list of one is cheaper than a range
    weighed = f"SELECT {names}, UNNEST({copies}) AS __copy FROM ({rest} UNION ALL {summed}) AS weighed"
    return f"SELECT {names} FROM ({weighed}) AS rows"


def _shown(column: Column, value: str) -> str:
    return f"{f'MD5(CAST({value} AS TEXT))' if column.is_personal else value} AS {quoted(column.name)}"
