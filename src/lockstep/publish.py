"""Publishing: what analysts read, as a file of its own that nobody ever writes to again.

`<home>/analytics.duckdb` is built beside the one before it and moved into its place, so any number of readers at any
time never meet a lock. It is made of what the warehouse's own views say: of their syntax trees, in which only what they
read is replaced by what is published. A mart whose figures are served live is a view:

    cells up to the published cut (a table)  +  the tail of the change log from there (Parquet, read when queried)

Guarantees of every query on a published file, whatever lands meanwhile:
- Rows and `as_of` are those of one landing of the log: the last one that was `changelog.SETTLING` old when the query's
  transaction began. So all marts in one query, or in one transaction, agree, and nothing is counted that lies beyond.
- A later transaction never sees less of the log than an earlier one.
- A file stays exactly correct while it is open, however many later ones are published: `oldest_needed_hour` says from
  where on the log's files must be left alone.
A transaction that outlives what the watermark remembers (`changelog.REMEMBERED`) fails and says so; it never guesses.
"""

from __future__ import annotations

import fcntl
import itertools
import os
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import datetime, timedelta
from pathlib import Path

import duckdb
from duckdb import DuckDBPyConnection

from lockstep import jsonlines, warehouse
from lockstep.breaks import hold_what_breaks
from lockstep.changelog import ChangeLog, Watermark
from lockstep.contracts import load
from lockstep.durable import fsync_directory
from lockstep.errors import LockstepError
from lockstep.lock import exclusive
from lockstep.mirror import Mirror
from lockstep.names import GENERATED
from lockstep.published.publication import Builder, FailedMartError
from lockstep.schema import TABLES
from lockstep.warehouse import Row, text

LIVE_RECEIPTS_LOST = "Move it away: what is still needed is taken anew by the next `lockstep run`"
KEEP = timedelta(hours=1)  # how long a superseded publication stays even if nobody has it open


@dataclass(frozen=True)
class Published:
    """One publication. `seconds` is what it took, `size` its bytes; `marts` are the rows of `about`.

    `refused` says of marts that cannot be published why, and what to write instead.
    """

    path: Path
    number: int
    seconds: float
    size: int
    position: int
    needed_hour: datetime
    marts: list[Row]
    refused: dict[str, str]

    def as_row(self) -> Row:
        return {**asdict(self), "path": str(self.path), "seconds": round(self.seconds, 2)}


def publish(home: Path) -> Published:
    """Publish the home's warehouse as `<home>/analytics.duckdb`. Takes the lock that a run takes.

    Raises LockstepError if there is nothing to publish yet, or a run or a reader has the warehouse open; then the
    file that is there stays.
    """
    with exclusive(home / "warehouse.lock", "publishing"):
        return write(home)


def write(home: Path) -> Published:
    """What `publish` does; the caller must hold the lock."""
    started = time.monotonic()
    home = home.resolve()
    log = ChangeLog(home)
    watermark = log.watermark()
    log.require_files()
    with warehouse.reader(home) as connection:
        warehouse.require_planned(connection)
    warehouse.require_not_ahead(home, watermark.position)
    watermark = hold_what_breaks(home)
    directory = home / "published"
    directory.mkdir(exist_ok=True)
    for debris in directory.glob("*.partial*"):
        debris.unlink()
    number = max(_numbers(directory), default=0) + 1
    path = directory / f"{number}.duckdb"
    partial = directory / f"{number}.partial"
    refused: dict[str, str] = {}
    while (builder := _built(home, partial, watermark, refused)) is None:
        partial.unlink()
    with partial.open("rb") as file:
        os.fsync(file.fileno())
    partial.rename(path)
    latest = home / "analytics.duckdb"
    link = directory / "latest.partial"
    os.link(path, link)
    link.replace(latest)
    fsync_directory(directory)
    fsync_directory(home)
    _remove_superseded(directory)
    seconds, size = time.monotonic() - started, path.stat().st_size
    told = builder.needed_hour, builder.about, builder.refused
    return Published(latest, number, seconds, size, watermark.position, *told)


def _built(home: Path, path: Path, watermark: Watermark, refused: dict[str, str]) -> Builder | None:
    """Build the file without the marts that are refused; None if one more has to be."""
    log = ChangeLog(home)
    try:
        with _building(home, path) as connection:
            builder = Builder(connection, home, watermark, refused)
            log.require_readable(TABLES, builder.needed_hour)
            log.link_tail(builder.needed_hour)
            builder.build()
            connection.execute("COMMIT")
            builder.check()
    except FailedMartError as e:
        refused[e.mart] = str(e)
        return None
    return builder


def oldest_needed_hour(home: Path) -> datetime | None:
    """The first hour of the log that a published file may still read from its files; None if nothing is published.

    Files of that hour and later ones must stay as they are: a query that has listed them is going to open them.
    """
    directory = home / "published"
    hours = []
    for number in _numbers(directory):
        path = directory / f"{number}.duckdb"
        try:
            with duckdb.connect() as connection:
                connection.execute(f"ATTACH {text(path)} AS published (READ_ONLY)")
                hours.append(connection.execute("SELECT needed_hour FROM published.ops.publication").fetchall()[0][0])
        except duckdb.Error:
            continue  # it went just now, or it is damaged: then it answers nobody, and needs no file
    return min(hours, default=None)


def _numbers(directory: Path) -> list[int]:
    return sorted(int(path.stem) for path in directory.glob("*.duckdb") if path.stem.isdecimal())


def _remove_superseded(directory: Path) -> None:
    """Remove publications that are superseded for `KEEP` and that no process of this machine has open."""
    numbers = _numbers(directory)
    for number, successor in itertools.pairwise(numbers):
        superseded_at = (directory / f"{successor}.duckdb").stat().st_mtime
        path = directory / f"{number}.duckdb"
        if time.time() - superseded_at > KEEP.total_seconds() and not _is_open(path):
            path.unlink()


def _is_open(path: Path) -> bool:
    """Whether another process reads the file: DuckDB holds a shared lock on what it has open."""
    with path.open("r+b") as file:
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            return True
    return False


@contextmanager
def _building(home: Path, path: Path) -> Iterator[DuckDBPyConnection]:
    """A connection to the new file, a copy of the one before it if that is of use, with the warehouse attached."""
    connection = _copy_of(home / "analytics.duckdb", path) if _is_trusted(home) else None
    connection = connection or _open(path)
    try:
        connection.execute("SET TimeZone = 'UTC'")
        # DuckDB 1.5.5 takes 250 ns to read a DECIMAL(38, s) that is packed, 5 ns to read one that is not.
        connection.execute("SET disabled_compression_methods = 'bitpacking'")
        connection.execute(f"SET file_search_path = {text(home)}")
        connection.execute(f"ATTACH {text(home / 'warehouse.duckdb')} AS warehouse (READ_ONLY)")
        connection.execute("BEGIN")
        yield connection
        connection.execute("CHECKPOINT")
    except duckdb.Error as e:
        raise LockstepError(f"Publishing failed, the file before stays in place: {e}") from None
    finally:
        connection.close()


def _is_trusted(home: Path) -> bool:
    """Whether no newest live receipt of a domain has failed: what is grown out of wrong figures would stay wrong."""
    receipts = jsonlines.read(ChangeLog(home).live_receipts, LIVE_RECEIPTS_LOST)
    newest = {receipt.get("domain"): receipt.get("verdict") for receipt in receipts}
    return all(newest.get(domain) != "failed" for domain in load())


def _copy_of(latest: Path, path: Path) -> DuckDBPyConnection | None:
    """A copy of the latest publication, opened; None if there is none, it is damaged, or most of it is free space."""
    if not latest.exists():
        return None
    shutil.copyfile(latest, path)
    try:
        connection = duckdb.connect(str(path))
        [(used, free)] = connection.execute("SELECT used_blocks, free_blocks FROM pragma_database_size()").fetchall()
        if free <= used and not _shows_more(connection):
            return connection
        connection.close()
    except duckdb.Error:
        pass  # what it holds is an advantage, no need
    path.unlink()
    return None


def _shows_more(connection: DuckDBPyConnection) -> bool:
    """Whether a publication has rows of a source table otherwise than is declared now.

    What is dropped from a file goes on standing in its bytes, and what is declared personal must not.
    """
    mirrors = {f"folded.source{GENERATED}{name}": Mirror(t).definition for name, t in TABLES.items() if t.is_mirrored}
    stored = connection.execute(
        f"SELECT DISTINCT name, definition FROM ops.stored WHERE starts_with(name, 'folded.source{GENERATED}')"
    ).fetchall()
    return any(definition.partition(": ")[2] != mirrors.get(name) for name, definition in stored)


def _open(path: Path) -> DuckDBPyConnection:
    try:
        return duckdb.connect(str(path))
    except duckdb.Error as e:
        raise LockstepError(f"{path} cannot be written: {e}") from None
