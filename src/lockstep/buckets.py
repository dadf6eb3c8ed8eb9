"""Which keys of a table may differ between the log and a snapshot, found by sums and without a join of all images.

Keys are dealt into buckets by their hash. In each bucket the hashes of the log's latest images are added up, and those
of the snapshot's rows are subtracted. Where nothing is left, the bucket's rows are the same, but for one chance in
2^64. Only what is in the other buckets needs to be compared image by image. Replicas of a database find in the same way
what differs between them (Demers et al., "Epidemic Algorithms for Replicated Database Maintenance", PODC 1987).

The hashes of inserts are added up as they are: one that is there twice leaves something. Only the images of keys that
were changed after their insert are grouped, to find the latest one of each. Where those are many, sums are no cheaper
than joins.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from lockstep.schema import Table, literal
from lockstep.texts import FLOATS

if TYPE_CHECKING:
    import duckdb

_BUCKETS = 1 << 18
_FEW = _BUCKETS // 4  # above this, to write the rows of these buckets costs more than it saves
_MOST_CHANGES = 250_000  # with an image before: what is grouped for them has to fit into memory


def signs(image: str, table: Table) -> list[str]:
    """SQL for texts that differ where one image has -0.0 and another has 0.0, which DuckDB takes for the same value."""
    return [f"({image}).{c.sql}::TEXT" for c in table.columns if c.kind.name in FLOATS]


def hashed(image: str, table: Table) -> str:
    """SQL for the hash of an image's declared columns: 64 bits.

    It is hashed twice, as the first result combines those of the columns by XOR: sums of such numbers can be equal
    where two rows have exchanged a value.
    """
    values = [f"({image}).{c.sql}::{c.kind.duckdb}" for c in table.columns]
    return f"HASH(HASH({', '.join(values + signs(image, table))}))"


def narrowed(
    connection: duckdb.DuckDBPyConnection, table: Table, log: str, new: str, broken: str, scratch: Path
) -> tuple[str, str]:
    """SQL for those of the changes `log` and of the images `new` that are in a bucket that differs, or for all of them.

    `log` is SQL for changes (position, before, after), `new` for the snapshot's images (image); so are the results. A
    bucket differs if any key in it has another latest image than the snapshot's row, or signed images that do not add
    up to it, or a change at one of the positions `broken`; of a table without a key, if any image is not in the log as
    often as in the snapshot. All rows are returned where changes of inserted keys or buckets that differ are many.
    """
    buckets = _Buckets(table, log, new)
    if table.key:
        connection.execute(f"CREATE OR REPLACE TEMP TABLE changed AS {buckets.changed_keys()}")
        [(count,)] = connection.execute("SELECT COUNT(*) // 2 FROM changed").fetchall()
        if count > _MOST_CHANGES:
            return log, new
    connection.execute("SET threads = 2")  # elsewhere images are joined: that would not fit into memory twice
    connection.execute(f"""
        CREATE OR REPLACE TEMP TABLE suspects AS
        SELECT bucket FROM ({buckets.by_key(broken) if table.key else buckets.by_count()})
        GROUP BY bucket HAVING SUM(digest) <> 0 OR BOOL_OR(is_wrong)
    """)
    connection.execute("SET threads = 1")
    [(count,)] = connection.execute("SELECT COUNT(*) FROM suspects").fetchall()
    if count > _FEW:
        return log, new
    files = []
    for name, query in (("log", buckets.changes()), ("new", buckets.images())):
        path = literal(str(scratch / f"suspects_{name}.parquet"))
        connection.execute(f"COPY ({query}) TO {path} (FORMAT parquet)")
        files.append(f"(FROM read_parquet({path}))")
    return files[0], files[1]


class _Buckets:
    """The queries of `narrowed`. They read the tables `changed`, of hashes of keys, and `suspects`, of buckets."""

    def __init__(self, table: Table, log: str, new: str) -> None:
        self._table = table
        self._log = log
        self._new = new

    def changed_keys(self) -> str:
        """The hashes of the keys of each change with an image before, two a change, until they are too many.

        If two keys share a hash, both are grouped: that is right.
        """
        return f"""
            SELECT UNNEST([{self._hash("before")}, {self._hash("COALESCE(after, before)")}]) AS hash
            FROM {self._log} WHERE before IS NOT NULL LIMIT {2 * _MOST_CHANGES + 2}
        """

    def by_key(self, broken: str) -> str:
        """The hash of each row that the log has, 0 if it is gone, and minus that of each row of the snapshot.

        Columns bucket, digest, is_wrong: whether a key's images do not add up, or one of its changes is `broken`.
        """
        columns = self._table.key_columns
        keys = ", ".join(f"__k{n}" for n, _ in enumerate(columns))
        key = {
            image: ", ".join(f"{image}.{c.sql}::{c.kind.duckdb} AS __k{n}" for n, c in enumerate(columns))
            for image in ("before", "after")
        }
        known = {image: f"{hashed(image, self._table)}::HUGEINT" for image in ("before", "after")}
        return f"""
            WITH grouped AS (
              SELECT {keys}, ARG_MAX(digest, instant) AS digest, ARG_MAX(known, instant) <> SUM(signed) AS is_wrong
              FROM (
                SELECT {key["after"]}, 2 * position + 1 AS instant, {known["after"]} AS signed, signed AS known,
                  {self._digest("after")}::HUGEINT AS digest
                FROM {self._log} WHERE after IS NOT NULL AND {self._hash("after")} IN (FROM changed)
                UNION ALL
                SELECT {key["before"]}, 2 * position, -{known["before"]}, 0, 0 FROM {self._log} WHERE before IS NOT NULL
              ) GROUP BY {keys}
            )
            SELECT HASH({keys}) % {_BUCKETS} AS bucket, digest, is_wrong FROM grouped
            UNION ALL SELECT {self._bucket("after")}, {self._digest("after")}::HUGEINT, FALSE
            FROM {self._log} WHERE after IS NOT NULL AND {self._hash("after")} NOT IN (FROM changed)
            UNION ALL SELECT {self._bucket("image")}, -{self._digest("image")}::HUGEINT, FALSE FROM {self._new}
            UNION ALL SELECT UNNEST([{self._bucket("before")}, {self._bucket("after")}]), 0, TRUE
            FROM {self._log} WHERE position IN ({broken})
        """

    def by_count(self) -> str:
        """The hash of each image that the log has, and minus that of each of the snapshot; columns as of `by_key`."""
        return f"""
            SELECT digest % {_BUCKETS} AS bucket, weight * digest::HUGEINT AS digest, FALSE AS is_wrong
            FROM (
              SELECT {self._digest("after")} AS digest, 1 AS weight FROM {self._log} WHERE after IS NOT NULL
              UNION ALL SELECT {self._digest("before")}, -1 FROM {self._log} WHERE before IS NOT NULL
              UNION ALL SELECT {self._digest("image")}, -1 FROM {self._new}
            )
        """

    def changes(self) -> str:
        """The changes with those of their images that are in a bucket that differs."""
        before, after = (
            f"{image} IS NOT NULL AND {self._bucket(image)} IN (FROM suspects)" for image in ("before", "after")
        )
        return f"""
            SELECT position, CASE WHEN is_before THEN before END AS before, CASE WHEN is_after THEN after END AS after
            FROM (SELECT *, {before} AS is_before, {after} AS is_after FROM {self._log})
            WHERE is_before OR is_after
        """

    def images(self) -> str:
        """The snapshot's images that are in a bucket that differs."""
        return f"SELECT image FROM {self._new} WHERE {self._bucket('image')} IN (FROM suspects)"

    def _hash(self, image: str) -> str:
        return f"HASH({', '.join(f'({image}).{c.sql}::{c.kind.duckdb}' for c in self._table.key_columns)})"

    def _bucket(self, image: str) -> str:
        number = self._hash(image) if self._table.key else self._digest(image)
        return f"({number} % {_BUCKETS})"

    def _digest(self, image: str) -> str:
        """The hash of the whole image, with the columns that the project does not know: those come without a change."""
        return f"HASH({hashed(image, self._table)}, ({image}).extra)"
