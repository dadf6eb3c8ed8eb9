"""The latest images of a table's keys, set-wise in DuckDB over files of the change log."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

import pyarrow as pa

from lockstep.buckets import hashed, narrowed, signs
from lockstep.moves import empty_file
from lockstep.schema import Table

if TYPE_CHECKING:
    import duckdb

_CHUNK = 20_000  # rows


@contextmanager
def bounded_database(scratch: Path) -> Iterator[duckdb.DuckDBPyConnection]:
    """An in-memory database that spills into the directory `scratch` rather than grow."""
    import duckdb  # only here: a capture that needs none of this saves 40 MB

    with duckdb.connect(
        ":memory:",
        config={
            "memory_limit": "128MB",
            "threads": 1,
            "temp_directory": str(scratch),
            "preserve_insertion_order": False,
        },
    ) as connection:
        yield connection


def live_images(table: Table, files: Sequence[Path], position: int, scratch: Path) -> Iterator[pa.Array]:
    """The image of every row that is live at `position` of `files`, in chunks of `table.image`, in no order."""
    if not files:
        return
    with bounded_database(scratch) as connection, TemporaryDirectory() as directory:
        for chunk in _chunks(connection, _live(table, [empty_file(table, Path(directory)), *files], position)):
            yield chunk["image"].cast(table.image)


@contextmanager
def differences(
    table: Table, files: Sequence[Path], position: int, snapshot: Path, scratch: Path, broken: Sequence[int] = ()
) -> Iterator[Differences]:
    """How a snapshot of a table differs from the log at `position`, ready to be landed at a later one.

    `snapshot` is a file that `compare.Staging` wrote; `files` have the log's changes up to `position`. The keys that
    changed at the positions `broken` count as differing.
    """
    with bounded_database(scratch) as connection:
        yield Differences(connection, table, files, position, snapshot, scratch, broken)


class Differences:
    """Made by `differences`, and gone with its database.

    Two things must hold of every key: its latest image is the snapshot's row, and its signed images add up to that row.
    Where only the first is wrong, one change mends it. A key whose chain is broken (`broken`) gets at least a change
    that mends the chain. Everything large is kept in files under `scratch`.
    """

    def __init__(
        self,
        connection: duckdb.DuckDBPyConnection,
        table: Table,
        files: Sequence[Path],
        position: int,
        snapshot: Path,
        scratch: Path,
        broken: Sequence[int],
    ) -> None:
        self._connection = connection
        self._table = table
        self._broken = ", ".join(map(str, broken)) or "NULL"
        self._keys = [f"__k{n}" for n, _ in enumerate(table.key)]
        self._schema = empty_file(table, scratch)
        self._found = f"read_parquet('{quoted(scratch / 'differing.parquet')}')"
        log = _changes([self._schema, *files], f"position <= {position}")
        new = f"(SELECT image FROM read_parquet('{quoted(snapshot)}') WHERE reason IS NULL)"
        log, new = narrowed(connection, table, log, new, self._broken, scratch)
        query = self._by_key(log, new) if table.key else self._by_count(log, new)
        connection.execute(f"COPY ({query}) TO '{quoted(scratch / 'differing.parquet')}' (FORMAT parquet)")
        if table.key:
            self._add_up_unbalanced(log)

    def changes(self, later: Sequence[Path], after: int, until: int) -> Iterator[tuple[pa.Array, pa.Array]]:
        """The changes that make the log's rows the snapshot's, in the order in which to land them after `until`.

        `later` are the files with the log's changes after `after`, the position of the comparison. A key that has
        changed since keeps its latest image. Chunks of (before, after) of the type `table.image`; either may be null.
        """
        queries = [f"FROM {self._found}"]
        if self._table.key:
            changes = _changes([self._schema, *later], f"position > {after} AND position <= {until}")
            self._connection.execute(f"CREATE OR REPLACE TEMP TABLE later AS {self._latest(changes)}")
            queries = [self._plain(), self._unbalanced()]
        for query in queries:
            for chunk in _chunks(self._connection, query):
                yield chunk["before"].cast(self._table.image), chunk["after"].cast(self._table.image)

    def _by_count(self, log: str, new: str) -> str:
        """Rows without a key have no identity: each image must be in the log as often as in the snapshot."""
        weights = f"{_signed(log)} UNION ALL SELECT image, -1 FROM {new}"
        return f"""
            SELECT CASE WHEN weight > 0 THEN image END AS before, CASE WHEN weight < 0 THEN image END AS after
            FROM ({_counted(weights, self._table)}), UNNEST(RANGE(ABS(weight)))
        """

    def _by_key(self, log: str, new: str) -> str:
        """The keys that differ: the log's latest image, the snapshot's, and whether the signed images add up.

        They do if the sum of their hashes is the hash of the latest image. Those of a broken chain count as if not.
        """
        table, keys = self._table, ", ".join(self._keys)
        whole = [f"ROW({', '.join([image, *signs(image, table)])})" for image in ("latest.image", "present.image")]
        return f"""
            WITH sums AS (
              SELECT {keys}, MAX(position) AS position, SUM(hash) AS hash,
                COUNT_IF(position IN ({self._broken})) AS broken
              FROM (
                SELECT {self._key("after")}, position, {hashed("after", table)}::HUGEINT AS hash
                FROM {log} WHERE after IS NOT NULL
                UNION ALL
                SELECT {self._key("before")}, position, -{hashed("before", table)}::HUGEINT
                FROM {log} WHERE before IS NOT NULL
              ) GROUP BY {keys}
            ), latest AS (
              SELECT {", ".join(f"sums.{k}" for k in self._keys)}, changes.after AS image,
                sums.broken = 0
                  AND sums.hash = CASE WHEN changes.after IS NULL THEN 0 ELSE {hashed("changes.after", table)} END
                  AS is_balanced
              FROM {log} AS changes JOIN sums ON changes.position = sums.position
            ), present AS (
              SELECT {self._key("image")}, image FROM {new}
            )
            SELECT {", ".join(f"COALESCE(latest.{k}, present.{k}) AS {k}" for k in self._keys)},
              latest.image AS before, present.image AS after, COALESCE(latest.is_balanced, TRUE) AS is_balanced
            FROM latest FULL JOIN present ON {self._same("latest", "present")}
            WHERE {whole[0]} IS DISTINCT FROM {whole[1]} OR NOT COALESCE(latest.is_balanced, TRUE)
        """

    def _add_up_unbalanced(self, log: str) -> None:
        keys = ", ".join(self._keys)
        self._connection.execute(f"""
            CREATE OR REPLACE TEMP TABLE unbalanced AS SELECT {keys} FROM {self._found} WHERE NOT is_balanced;
            CREATE OR REPLACE TEMP TABLE sums AS
            SELECT {keys}, ANY_VALUE(image) AS image, SUM(weight)::BIGINT AS weight
            FROM (SELECT {self._key("image")}, * FROM ({_signed(log)})) AS images
            SEMI JOIN unbalanced ON {self._same("images", "unbalanced")}
            GROUP BY {keys}, {self._declared("image")};
        """)

    def _latest(self, changes: str) -> str:
        """Each key that has changed, with its latest image; null if the row is gone."""
        keys = ", ".join(self._keys)
        return f"""
            SELECT {keys}, image
            FROM (SELECT {self._key("COALESCE(after, before)")}, position, after AS image FROM {changes})
            QUALIFY position = MAX(position) OVER (PARTITION BY {keys})
        """

    def _plain(self) -> str:
        """One change from the log's image to the snapshot's, where only the latest image differs."""
        return f"""
            SELECT before, after FROM {self._found} AS found
            ANTI JOIN later ON {self._same("found", "later")}
            WHERE is_balanced
        """

    def _unbalanced(self) -> str:
        """For the other keys: what they lack, then what they have too often, and last the image that is to stay."""
        keys = ", ".join(self._keys)
        found = ", ".join(f"found.{k}" for k in self._keys)
        return f"""
            WITH keys AS (
              SELECT {found}, found.before, found.after, found.is_balanced,
                CASE WHEN later.{self._keys[0]} IS NULL THEN found.after ELSE later.image END AS stays
              FROM {self._found} AS found LEFT JOIN later ON {self._same("found", "later")}
              WHERE NOT found.is_balanced OR later.{self._keys[0]} IS NOT NULL
            ), images AS (
              SELECT {keys}, image, -weight AS weight FROM sums
              UNION ALL SELECT {keys}, before, -1 FROM keys WHERE is_balanced AND before IS NOT NULL
              UNION ALL SELECT {keys}, after, 1 FROM keys WHERE after IS NOT NULL
            ), deltas AS (
              SELECT {keys}, ANY_VALUE(image) AS image, SUM(weight)::BIGINT AS weight
              FROM images GROUP BY {keys}, {self._declared("image")}
            ), gone AS (
              SELECT ANY_VALUE(image) AS image FROM deltas JOIN keys USING ({keys}) WHERE stays IS NULL GROUP BY {keys}
            )
            SELECT 1 AS step, NULL AS before, image AS after FROM deltas, UNNEST(RANGE(weight)) WHERE weight > 0
            UNION ALL SELECT 2, image, NULL FROM deltas, UNNEST(RANGE(-weight)) WHERE weight < 0
            UNION ALL SELECT 3, stays, stays FROM keys WHERE stays IS NOT NULL
            UNION ALL SELECT 3, NULL, image FROM gone
            UNION ALL SELECT 4, image, NULL FROM gone
            ORDER BY step
        """

    def _key(self, image: str) -> str:
        columns = zip(self._table.key_columns, self._keys, strict=True)
        return ", ".join(f"({image}).{c.sql}::{c.kind.duckdb} AS {k}" for c, k in columns)

    def _declared(self, image: str) -> str:
        """The declared columns of an image: what the source adds to others, in `extra`, comes without a change."""
        return ", ".join([f"{image}.{c.sql}" for c in self._table.columns] + signs(image, self._table))

    def _same(self, left: str, right: str) -> str:
        return " AND ".join(f"{left}.{k} = {right}.{k}" for k in self._keys)


def _live(table: Table, files: Sequence[Path], position: int) -> str:
    changes = _changes(files, f"position <= {position}")
    if not table.key:
        return f"SELECT image FROM ({_counted(_signed(changes), table)}), UNNEST(RANGE(weight))"
    keys = ", ".join(f"COALESCE(after.{k}, before.{k})" for k in table.sql_key)
    # By position and not by an aggregate over the images: a hash table of numbers stays small, one of images does not.
    return f"""
    SELECT after AS image FROM {changes}
    WHERE after IS NOT NULL AND position IN (SELECT MAX(position) FROM {changes} GROUP BY {keys})
    """


def _changes(files: Sequence[Path], condition: str) -> str:
    paths = ", ".join(f"'{quoted(f)}'" for f in files)
    log = f"read_parquet([{paths}], hive_partitioning = false)"
    return f"(SELECT position, before, CASE WHEN op <> 'd' THEN after END AS after FROM {log} WHERE {condition})"


def _signed(changes: str) -> str:
    """SELECT image, weight: each change as minus its before image, plus its after image."""
    return f"""
    SELECT after AS image, 1 AS weight FROM {changes} WHERE after IS NOT NULL
    UNION ALL SELECT before, -1 FROM {changes} WHERE before IS NOT NULL
    """


def _counted(weights: str, table: Table) -> str:
    """SELECT image, weight: each image once, with the sum of its weights where that is not zero."""
    groups = ", ".join(["image", *signs("image", table)])
    return f"SELECT image, SUM(weight)::BIGINT AS weight FROM ({weights}) GROUP BY {groups} HAVING SUM(weight) <> 0"


def _chunks(connection: duckdb.DuckDBPyConnection, query: str) -> Iterator[pa.RecordBatch]:
    yield from connection.execute(query).to_arrow_reader(_CHUNK)


def quoted(path: Path) -> str:
    return str(path).replace("'", "''")
