"""Whether a table of the change log, up to a position, says what the source's rows are: set-wise in DuckDB.

Two things must hold of every key. The latest image that the log has of it is the source's row; that is what the
rebuild rests on. And its signed images, each after image added and each before image subtracted, add up to that one
row; that is what the increments rest on. Values are compared as text that tells every two of them apart (-0.0 from
0.0, null from empty), by the first 64 bits of its MD5: two unequal images pass for equal once in 2^64.

Memory does not grow with the table: images become a few numbers in a file, and its keys are compared in shares.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.parquet as pq

from lockstep.kinds import BYTES, TEXT
from lockstep.latest import bounded_database, quoted
from lockstep.moves import empty_file
from lockstep.pgvalues import Layout, images
from lockstep.schema import Table

if TYPE_CHECKING:
    import duckdb

# How a key can differ.
MISSING, ONLY, MODIFIED, UNBALANCED = "missing in the log", "only in the log", "modified", "unbalanced"
KINDS = (MISSING, ONLY, MODIFIED, UNBALANCED)

_NULL = "null"
_NOT_KNOWN = "not known"  # no JSON, as which undeclared columns are told
_SHARE = 1_000_000  # images of either side that are compared at once


@dataclass(frozen=True)
class Difference:
    """A key that differs. `columns` are those that differ, with the source's value and the log's, as text.

    `rows` is what the log's changes of the key add up to, where it should be 1 (0 for a key that is gone). Of a table
    without a key the `key` is the whole row, as text, and `rows` how often the log has it. `note` says
    why the source's row has no image, if it breaks the landing contract. `in_quarantine`: an event of the key is.
    """

    kind: str
    key: Mapping[str, Any]
    rows: int
    columns: Mapping[str, tuple[str | None, str | None]]
    note: str | None
    in_quarantine: bool


@dataclass(frozen=True)
class Comparison:
    """How a table of the source and of the log compare.

    `compared` counts the keys that either side has. `counts` has a number for each of KINDS. `in_quarantine` counts
    the differing keys that have an event in quarantine. A fingerprint is a sum over the side's rows, whatever their
    order. `not_compared` names columns that images of the log have and the source has dropped. `not_known` counts, by
    undeclared column, the keys that have not changed since the source added it: the log cannot know its value there, as
    a default fills old rows without any change. Of a table without a key it counts images, and such a column is not
    compared at all. `differences` are the first ones by key.
    """

    source_rows: int
    log_rows: int
    compared: int
    counts: Mapping[str, int]
    in_quarantine: int
    source_fingerprint: str
    log_fingerprint: str
    not_compared: Sequence[str]
    not_known: Mapping[str, int]
    differences: Sequence[Difference]

    @property
    def differing(self) -> int:
        return sum(self.counts.values())


class Staging:
    """Takes a table's rows as text, as `Source.copy` hands them on, into a Parquet file of images.

    They are typed as a capture types them. A row that breaks the landing contract keeps its key and the reason, and is
    handed to `reject` as text, with the reasons by row number.
    """

    def __init__(
        self, layout: Layout, path: Path, reject: Callable[[list[pa.Array], Mapping[int, str]], None] = lambda *_: None
    ) -> None:
        self._layout = layout
        self._reject = reject
        self._file = pq.ParquetWriter(path, pa.schema([("image", layout.table.image), ("reason", TEXT)]))

    def take(self, texts: list[pa.Array]) -> None:
        image, reasons = images(self._layout, texts, None, "source's")
        reason = pa.array([reasons.get(i) for i in range(len(image))] if reasons else [None] * len(image), TEXT)
        self._file.write_batch(pa.record_batch([image, reason], ["image", "reason"]))
        if reasons:
            self._reject(texts, reasons)

    def close(self) -> None:
        self._file.close()


def compare(
    layout: Layout,
    staged: Path,
    files: Sequence[Path],
    position: int,
    quarantined: Iterable[Mapping[str, Any]],
    scratch: Path,
    limit: int,
) -> Comparison:
    """Compare the rows in `staged` (see `Staging`) with the log's `files` up to `position`.

    `quarantined` are keys of events that the log lacks. At most `limit` differences are told one by one.
    """
    table = layout.table
    with bounded_database(scratch) as connection:
        tables = _Tables(connection, layout, staged, [empty_file(table, scratch), *files], position)
        if not table.key:
            return tables.compare_rows(limit)
        digests = scratch / "digests.parquet"
        source_rows, source_sum, log_rows, log_sum, *not_known = tables.fill(digests)
        digests.unlink()
        tables.fill_quarantined(quarantined)
        counts = dict.fromkeys(KINDS, 0) | dict(tables.rows("SELECT __kind, COUNT(*) FROM differing GROUP BY __kind"))
        same_key = _same(table, "d", "q")
        [(known,)] = tables.rows(f"SELECT COUNT(*) FROM differing AS d SEMI JOIN quarantined AS q ON {same_key}")
        return Comparison(
            source_rows,
            log_rows,
            log_rows + counts[MISSING],
            counts,
            known,
            str(source_sum),
            str(log_sum),
            tables.dropped_columns(),
            {column.name: n for column, n in zip(layout.unknown, not_known, strict=True) if n},
            tables.differences(limit),
        )


class _Tables:
    """The two sides in DuckDB, and `differing`: the keys in which they differ."""

    def __init__(
        self, connection: duckdb.DuckDBPyConnection, layout: Layout, staged: Path, files: Sequence[Path], position: int
    ) -> None:
        self._connection = connection
        self._table = layout.table
        self._extra = [c.name for c in layout.unknown]
        self._hashes = [f"__x{n}" for n, _ in enumerate(self._extra)]  # of these columns, where their names may not be
        self._staged = f"read_parquet('{quoted(staged)}')"
        paths = ", ".join(f"'{quoted(f)}'" for f in files)
        log = f"read_parquet([{paths}], hive_partitioning = false)"
        self._changes = f"(SELECT position, op, before, after FROM {log} WHERE position <= {position})"

    def compare_rows(self, limit: int) -> Comparison:
        """Compare the rows of a table without a key: each image must be there as often on either side.

        Rows have no identity, so an undeclared column is compared only if all images that ever landed carry it.
        """
        columns = [f"{c.sql} := CAST(image.{c.sql} AS TEXT)" for c in self._table.columns]
        not_known = self._images_without()
        digest = self._digest("image", [name for name in self._extra if not not_known[name]])
        self.rows(f"""
            CREATE TEMP TABLE counted AS
            SELECT digest, ANY_VALUE(texts) AS texts, MAX(reason) AS reason,
              SUM(of_source)::BIGINT AS of_source, SUM(of_log)::BIGINT AS of_log
            FROM (
              SELECT *, CASE WHEN reason IS NULL THEN {digest} ELSE MD5_NUMBER_LOWER(reason) END AS digest,
                STRUCT_PACK({", ".join(columns)}) AS texts
              FROM (
                SELECT image, reason, 1 AS of_source, 0 AS of_log FROM {self._staged}
                UNION ALL SELECT after, NULL, 0, 1 FROM {self._changes} WHERE after IS NOT NULL AND op <> 'd'
                UNION ALL SELECT before, NULL, 0, -1 FROM {self._changes} WHERE before IS NOT NULL
              )
            ) GROUP BY digest
        """)
        [(source_rows, log_rows, either, missing, only, source_sum, log_sum)] = self.rows("""
            SELECT COALESCE(SUM(of_source), 0), COALESCE(SUM(of_log), 0), COALESCE(SUM(GREATEST(of_source, of_log)), 0),
              COALESCE(SUM(GREATEST(of_source - of_log, 0)), 0), COALESCE(SUM(GREATEST(of_log - of_source, 0)), 0),
              COALESCE(SUM(digest::HUGEINT * of_source), 0), COALESCE(SUM(digest::HUGEINT * of_log), 0)
            FROM counted
        """)
        shown = self.rows(f"""
            SELECT texts, reason, of_source, of_log FROM counted WHERE of_source <> of_log ORDER BY ALL LIMIT {limit}
        """)
        return Comparison(
            source_rows,
            log_rows,
            either,
            dict.fromkeys(KINDS, 0) | {MISSING: missing, ONLY: only},
            0,
            str(source_sum),
            str(log_sum),
            self.dropped_columns(),
            {name: n for name, n in not_known.items() if n},
            [
                Difference(MISSING if of_source > of_log else ONLY, texts, of_log, {}, reason, False)
                for texts, reason, of_source, of_log in shown
            ],
        )

    def _images_without(self) -> dict[str, int]:
        """How many of the log's images do not carry each undeclared column."""
        counts = [f"COUNT_IF(NOT COALESCE({_has_member('after', name)}, FALSE))" for name in self._extra]
        query = f"SELECT {', '.join(counts)} FROM {self._changes} WHERE after IS NOT NULL AND op <> 'd'"
        return dict(zip(self._extra, self.rows(query)[0], strict=True)) if counts else {}

    def rows(self, statement: str) -> list[tuple[Any, ...]]:
        found: list[tuple[Any, ...]] = self._connection.execute(statement).fetchall()
        return found

    def fill(self, digests: Path) -> list[int]:
        """Make `differing`; returns the number of rows and the sum of digests of the source's side and of the log's.

        Then, for each undeclared column, the number of rows that the log has from before it was added. `digests` is the
        file that is made on the way.
        """
        self._write_digests(digests)
        keys = ", ".join(f"{c.sql} {c.kind.duckdb}" for c in self._table.key_columns)
        self.rows(f"CREATE TEMP TABLE differing ({keys}, __position BIGINT, __rows BIGINT, __kind TEXT)")
        images = f"read_parquet('{quoted(digests)}')"
        [(count,)] = self.rows(f"SELECT COUNT(*) FROM {images}")
        shares = -(-count // _SHARE)
        sums = [0] * (4 + len(self._extra))
        for share in range(shares):
            found = self._compare(f"{images} WHERE HASH({', '.join(self._table.sql_key)}) % {shares} = {share}")
            sums = [a + b for a, b in zip(sums, found, strict=True)]
        return sums

    def _write_digests(self, path: Path) -> None:
        """Write each image as a row of numbers: `__diff` is 1 after a change, -1 before it, 0 for the source's row.

        `__known` covers the declared columns, `__digest` also the reason of a row that has no image. Undeclared columns
        have a hash each, NULL in images from before they were added: they appear in old rows without a change, so that
        sums over images with them would not cancel.
        """
        source, after, before = (
            ", ".join(f"{image}.{c.sql}::{c.kind.duckdb} AS {c.sql}" for c in self._table.key_columns)
            for image in ("image", "after", "before")
        )
        hashes = {
            image: "".join(
                f", {self._hash(image, name)} AS {x}" for x, name in zip(self._hashes, self._extra, strict=True)
            )
            for image in ("image", "after")
        }
        nothing = "".join(f", NULL AS {x}" for x in self._hashes)
        self.rows(f"""
            COPY (
              SELECT {source}, 0 AS __position, 0 AS __diff, {self._digest("image")} AS __known,
                CASE WHEN reason IS NULL THEN __known ELSE MD5_NUMBER_LOWER(reason) END AS __digest{hashes["image"]}
              FROM {self._staged}
              UNION ALL
              SELECT {after}, position, 1, {self._digest("after")} AS __known, __known{hashes["after"]}
              FROM {self._changes} WHERE after IS NOT NULL AND op <> 'd'
              UNION ALL
              SELECT {before}, position, -1, {self._digest("before")}, NULL{nothing}
              FROM {self._changes} WHERE before IS NOT NULL
            ) TO '{quoted(path)}' (FORMAT parquet)
        """)

    def _compare(self, images: str) -> tuple[int, ...]:
        """Add the differing keys among some images to `differing`; returns as `fill` does."""
        table = self._table
        keys = ", ".join(table.sql_key)
        hashes = "".join(f", {x}" for x in self._hashes)
        self.rows(f"""
            CREATE OR REPLACE TEMP TABLE source AS
            SELECT {keys}, __known, __digest{hashes} FROM {images} AND __diff = 0
        """)
        # ARG_MAX passes over what is NULL.
        latest = "".join(
            f", ARG_MAX(STRUCT_PACK(x := {x}), __position) FILTER (WHERE __diff = 1).x AS {x}" for x in self._hashes
        )
        self.rows(f"""
            CREATE OR REPLACE TEMP TABLE log AS
            SELECT {keys}, SUM(__diff)::BIGINT AS __rows, SUM(__diff * __known::HUGEINT) AS __total,
              MAX(__position) FILTER (WHERE __diff = 1) AS __position,
              ARG_MAX(__digest, __position) FILTER (WHERE __diff = 1) AS __digest,
              COALESCE(MAX(__position) FILTER (WHERE __diff = 1) >= MAX(__position), FALSE) AS __is_live{latest}
            FROM {images} AND __diff <> 0 GROUP BY {keys}
        """)
        columns = ", ".join(f"COALESCE(s.{k}, l.{k}) AS {k}" for k in table.sql_key)
        is_modified = " OR ".join(
            ["s.__digest <> l.__digest", *(f"COALESCE(s.{x} <> l.{x}, FALSE)" for x in self._hashes)]
        )
        self.rows(f"""
            INSERT INTO differing
            SELECT {columns}, l.__position, COALESCE(l.__rows, 0) AS __rows,
              CASE
                WHEN s.__digest IS NULL THEN CASE WHEN l.__is_live THEN '{ONLY}' ELSE '{UNBALANCED}' END
                WHEN l.__is_live IS NOT TRUE THEN '{MISSING}'
                WHEN {is_modified} THEN '{MODIFIED}'
                ELSE '{UNBALANCED}'
              END AS __kind
            FROM source AS s FULL JOIN log AS l ON {_same(table, "s", "l")}
            WHERE CASE
              WHEN s.__digest IS NULL THEN l.__is_live OR l.__rows <> 0 OR l.__total <> 0
              ELSE l.__is_live IS NOT TRUE OR {is_modified} OR l.__rows <> 1 OR l.__total <> s.__known
            END
        """)
        of_source = "".join(
            f" + CASE WHEN l.__is_live AND l.{x} IS NULL THEN 0 ELSE s.{x}::HUGEINT END" for x in self._hashes
        )
        of_log = "".join(f" + COALESCE({x}, 0)::HUGEINT" for x in self._hashes)
        not_known = "".join(f", COUNT_IF(l.__is_live AND l.{x} IS NULL)" for x in self._hashes)
        [(source_rows, source_sum, *of_columns)] = self.rows(f"""
            SELECT COUNT(*), COALESCE(SUM(s.__digest::HUGEINT{of_source}), 0){not_known}
            FROM source AS s {f"LEFT JOIN log AS l ON {_same(table, 's', 'l')}" if self._hashes else ""}
        """)
        [(log_rows, log_sum)] = self.rows(
            f"SELECT COUNT(*), COALESCE(SUM(__digest::HUGEINT{of_log}), 0) FROM log WHERE __is_live"
        )
        return source_rows, source_sum, log_rows, log_sum, *of_columns

    def fill_quarantined(self, keys: Iterable[Mapping[str, Any]]) -> None:
        """Make `quarantined`, the keys of events that the log lacks."""
        schema = pa.schema([(c.name, c.type) for c in self._table.key_columns])
        self._connection.register("quarantined", pa.Table.from_pylist([dict(k) for k in keys], schema))

    def dropped_columns(self) -> list[str]:
        """Columns that the log carried along in `extra` and the source has no more, so that there is no comparing."""
        named = self.rows(f"""
            SELECT DISTINCT UNNEST(CASE WHEN JSON_VALID(extra) THEN JSON_KEYS(extra) ELSE ['extra'] END)
            FROM (SELECT after.extra AS extra FROM {self._changes})
            WHERE extra IS NOT NULL
        """)
        return sorted({name for (name,) in named} - set(self._extra))

    def differences(self, limit: int) -> list[Difference]:
        """The first differing keys, with what differs in them."""
        keys = self._table.sql_key
        self.rows(f"CREATE TEMP TABLE shown AS SELECT * FROM differing ORDER BY {', '.join(keys)} LIMIT {limit}")
        same_key = " AND ".join(f"c.image.{k} = d.{k}" for k in keys)
        after_key = " AND ".join(f"c.after.{k} = d.{k}" for k in keys)
        sources = self._texts(f"{self._staged} AS c JOIN shown AS d ON {same_key}", "c.image", "c.reason")
        same_change = f"c.position = d.__position AND {after_key}"
        logs = self._texts(f"{self._changes} AS c JOIN shown AS d ON {same_change}", "c.after", "NULL")
        quarantined = set(self.rows(f"SELECT {', '.join(keys)} FROM quarantined"))
        found = []
        for *key, rows, kind in self.rows(f"SELECT {', '.join(keys)}, __rows, __kind FROM shown"):
            (note, source), (_, log) = (side.get(tuple(key), (None, {})) for side in (sources, logs))
            columns = {
                n: (source[n], log[n]) for n in source if kind == MODIFIED and log[n] not in (source[n], _NOT_KNOWN)
            }
            named = dict(zip(self._table.key, key, strict=True))
            found.append(Difference(kind, named, rows, columns, note, tuple(key) in quarantined))
        return found

    def _texts(
        self, source: str, image: str, note: str
    ) -> dict[tuple[Any, ...], tuple[str | None, dict[str, str | None]]]:
        """A note on images, and their compared columns as text, by key."""
        names = [*(c.name for c in self._table.columns), *self._extra]
        columns = [f"CAST({image}.{c.sql} AS TEXT)" for c in self._table.columns]
        columns += [
            f"CASE WHEN {_has_member(image, name)} THEN {_member(image, name)} ELSE '{_NOT_KNOWN}' END"
            for name in self._extra
        ]
        keys = [f"d.{k}" for k in self._table.sql_key]
        width = len(keys)
        return {
            row[:width]: (row[width], dict(zip(names, row[width + 1 :], strict=True)))
            for row in self.rows(f"SELECT {', '.join([*keys, note, *columns])} FROM {source}")
        }

    def _hash(self, image: str, name: str) -> str:
        """An undeclared column of an image as a number; NULL where it was not there yet."""
        member = _member(image, name)
        number = f"MD5_NUMBER_LOWER(COALESCE(STRLEN({member}) || ':' || {member}, '{_NULL}'))"
        return f"CASE WHEN {_has_member(image, name)} THEN {number} END"

    def _digest(self, image: str, extra: Sequence[str] = ()) -> str:
        """An image as a number, with these undeclared columns.

        Texts and bytes come with their length, so that no two images have the same text.
        """
        parts = [
            f"COALESCE(STRLEN({image}.{c.sql}) || ':' || {image}.{c.sql}, '{_NULL}')"
            if c.type == TEXT
            else f"COALESCE(OCTET_LENGTH({image}.{c.sql}) || ':' || CAST({image}.{c.sql} AS TEXT), '{_NULL}')"
            if c.type == BYTES
            else f"COALESCE(CAST({image}.{c.sql} AS TEXT), '{_NULL}')"
            for c in self._table.columns
        ]
        members = [_member(image, name) for name in extra]
        parts += [f"COALESCE(STRLEN({member}) || ':' || {member}, '{_NULL}')" for member in members]
        return f"MD5_NUMBER_LOWER(CONCAT_WS('|', {', '.join(parts)}))"


def _pointer(name: str) -> str:
    return ("/" + name.replace("~", "~0").replace("/", "~1")).replace("'", "''")


def _has_member(image: str, name: str) -> str:
    """Whether an image carries a column in `extra`, be it null: then it was there. An `extra` that is not JSON may."""
    extra = f"{image}.extra"
    has = f"CASE WHEN JSON_VALID({extra}) THEN JSON_EXTRACT({extra}, '{_pointer(name)}') IS NOT NULL ELSE TRUE END"
    return f"({extra} IS NOT NULL AND {has})"


def _member(image: str, name: str) -> str:
    """A column carried in `extra`, as JSON text; null where it is null or was not there yet."""
    extra = f"{image}.extra"
    member = f"CAST(JSON_EXTRACT({extra}, '{_pointer(name)}') AS TEXT)"
    return f"CASE WHEN JSON_VALID({extra}) THEN NULLIF({member}, 'null') ELSE 'no JSON: ' || {extra} END"


def _same(table: Table, left: str, right: str) -> str:
    return " AND ".join(f"{left}.{k} = {right}.{k}" for k in table.sql_key)
