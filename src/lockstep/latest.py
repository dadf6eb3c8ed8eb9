"""The latest images of a table's keys, set-wise in DuckDB over files of the change log."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import pyarrow as pa

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
    with bounded_database(scratch) as connection:
        for chunk in _chunks(connection, _live(table, files, position)):
            yield chunk["image"].cast(table.image)


def differences(
    table: Table, files: Sequence[Path], position: int, snapshot: Path, scratch: Path
) -> Iterator[tuple[pa.Array, pa.Array]]:
    """How a snapshot differs from the log at `position`: the live image and the snapshot's of each key not equal.

    `snapshot` is a Parquet file with one column `image`. Either side is null where the key is only on the other, or
    where a table without a key has that image more often. Chunks of `table.image` pairs, in no order.
    """
    if not table.key:
        new = f"SELECT image, 1 AS weight FROM read_parquet('{quoted(snapshot)}')"
        was = f"SELECT image, -1 FROM ({_live(table, files, position)})" if files else None
        weights = " UNION ALL ".join(filter(None, (new, was)))
        query = f"""
        SELECT CASE WHEN weight < 0 THEN image END AS before, CASE WHEN weight > 0 THEN image END AS after
        FROM ({_counted(weights)}), UNNEST(RANGE(ABS(weight)))
        """
        with bounded_database(scratch) as connection:
            for chunk in _chunks(connection, query):
                yield chunk["before"].cast(table.image), chunk["after"].cast(table.image)
        return
    same_key = " AND ".join(f"live.image.{k} = new.image.{k}" for k in table.sql_key)
    live = _live(table, files, position) if files else f"SELECT image FROM read_parquet('{quoted(snapshot)}') LIMIT 0"
    query = f"""
    SELECT live.image AS before, new.image AS after
    FROM ({live}) AS live
    FULL JOIN read_parquet('{quoted(snapshot)}') AS new ON {same_key}
    WHERE live.image IS DISTINCT FROM new.image
    """
    with bounded_database(scratch) as connection:
        for chunk in _chunks(connection, query):
            yield chunk["before"].cast(table.image), chunk["after"].cast(table.image)


def _live(table: Table, files: Sequence[Path], position: int) -> str:
    paths = ", ".join(f"'{quoted(f)}'" for f in files)
    log = f"read_parquet([{paths}], hive_partitioning = false)"
    changes = f"(SELECT position, op, before, after FROM {log} WHERE position <= {position})"
    if not table.key:
        weights = f"""
        SELECT after AS image, 1 AS weight FROM {changes} WHERE op <> 'd' UNION ALL
        SELECT before, -1 FROM {changes} WHERE before IS NOT NULL
        """
        return f"SELECT image FROM ({_counted(weights)}), UNNEST(RANGE(weight))"
    keys = ", ".join(f"COALESCE(after.{k}, before.{k})" for k in table.sql_key)
    # By position and not by an aggregate over the images: a hash table of numbers stays small, one of images does not.
    return f"""
    SELECT after AS image FROM {changes}
    WHERE op <> 'd' AND position IN (SELECT MAX(position) FROM {changes} GROUP BY {keys})
    """


def _counted(weights: str) -> str:
    """SELECT image, weight: each image once, with the sum of its weights where that is not zero."""
    return f"SELECT image, SUM(weight)::BIGINT AS weight FROM ({weights}) GROUP BY image HAVING SUM(weight) <> 0"


def _chunks(connection: duckdb.DuckDBPyConnection, query: str) -> Iterator[pa.RecordBatch]:
    yield from connection.execute(query).to_arrow_reader(_CHUNK)


def quoted(path: Path) -> str:
    return str(path).replace("'", "''")
