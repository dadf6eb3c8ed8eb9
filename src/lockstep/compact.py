"""`lockstep compact`: the small files of an hour become one, so that the log stays as fast to read as it is long.

Only hours that nobody reads file by file any more are touched: folded, published, and before every publication that
may still have readers. An hour's directory is replaced as a whole by exchanging it with a finished one, which is one
act of the file system: at any crash, and for any reader, an hour is its old files or its new one, and every change is
there once. What a crash leaves behind lies outside the log, in `<home>/compacting`, and the next compaction removes it.
"""

from __future__ import annotations

import ctypes
import errno
import hashlib
import itertools
import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from lockstep.changelog import ChangeLog
from lockstep.debris import recorded_as
from lockstep.durable import fsync_directory
from lockstep.journal import Journal
from lockstep.lock import exclusive
from lockstep.logfiles import GROWING, begins_at, hour_of, span, version_of
from lockstep.staging import AS_PARQUET

ROWS = 122_880  # of a row group: what DuckDB reads as one
_PATIENCE = 60.0  # seconds; a capture lets go of the log within a batch


@dataclass
class Compacted:
    """What a compaction did. `files` became `hours` files, one per table and hour; sizes are bytes.

    `problem` is why it could do nothing at all.
    """

    hours: int = 0
    files: int = 0
    bytes_before: int = 0
    bytes_after: int = 0
    until: datetime | None = None
    problem: str | None = None


class _CannotExchange(Exception):
    pass


def compact(home: Path, until: datetime | None, progress: Callable[[str], None] = lambda _: None) -> Compacted:
    """Merge the files of every hour that ends at or before `until` (None: of no hour).

    The log may be captured into meanwhile: its lock is borrowed for an instant per hour. Raises LockstepError if
    another process keeps the lock or another compaction runs; what was done until then is whole.
    """
    log = ChangeLog(home)
    done = Compacted(until=until)
    if until is None or not log.exists():
        return done
    scratch = home / "compacting"
    with exclusive(home / "compact.lock", "compacting the change log"):
        shutil.rmtree(scratch, ignore_errors=True)
        log.cut_tail(until)
        crowded = list(_crowded(log, until))
        try:
            for n, hour in enumerate(crowded):
                progress(f"compacting {hour.parent.name} {hour.name} ({n + 1} of {len(crowded)})")
                _compact_hour(home, hour, scratch, done)
        except _CannotExchange:
            done.problem = (
                f"the file system of {home} cannot exchange two directories in one act, which it takes so that no "
                "crash and no reader meets half an hour. ext4, xfs, btrfs and tmpfs on Linux can; without it all else "
                "works."
            )
        progress("")
        shutil.rmtree(scratch, ignore_errors=True)
    return done


def _crowded(log: ChangeLog, until: datetime) -> Iterator[Path]:
    """Directories of an hour with more files than one that end by `until`."""
    for hour in sorted(log.root.glob("*/hour=*")):
        starts = hour_of(hour.name)
        if (until - starts).total_seconds() >= 3600 and len(_files(hour)) > 1:
            yield hour


def _files(hour: Path) -> list[Path]:
    return sorted((path for path in hour.iterdir() if path.name != GROWING), key=begins_at)


def _compact_hour(home: Path, hour: Path, scratch: Path, done: Compacted) -> None:
    files = _files(hour)
    if any(path.suffix != ".parquet" for path in files):  # a writer is at work here: quarantined events resolved
        return
    if len({str(pq.read_schema(path)) for path in files}) > 1:  # of declarations before and after a change
        return
    # A file that grows keeps its name. None does in a sealed hour; should one, what is merged here would lack rows.
    versions = [version_of(path) for path in files]
    merged = scratch / hour.parent.name / hour.name
    merged.mkdir(parents=True)
    spans = [span(path) for path in files]
    name = f"{spans[0][0]}-{max(last for _, last in spans)}.parquet"
    path = merged / name
    _merge(files, path, is_ordered=all(a[1] < b[0] for a, b in itertools.pairwise(spans)))
    before, after = sum(p.stat().st_size for p in files), path.stat().st_size
    file = replace(recorded_as(home, path), path=(hour / name).relative_to(home).as_posix())
    journal, directory = Journal(home), hour.relative_to(home).as_posix()
    changed = _changed(home, files, journal)
    if changed:
        done.problem = (
            f"{', '.join(changed)} {'is' if len(changed) == 1 else 'are'} not as landed: what is merged could not be "
            "told apart any more. `lockstep log check` says what was changed."
        )
        shutil.rmtree(merged)
        return
    with exclusive(home / "changelog.lock", "compacting the change log", patience=_PATIENCE):
        if _files(hour) == files and [version_of(path) for path in files] == versions:
            journal.reload()
            if journal.exists():
                journal.compacting(directory, file)
            _exchange(merged, hour)
            fsync_directory(hour.parent)
            if journal.exists():
                journal.compacted(directory, [p.relative_to(home).as_posix() for p in files if p.name != name])
            done.hours += 1
            done.files += len(files)
            done.bytes_before += before
            done.bytes_after += after
    shutil.rmtree(merged)


def _changed(home: Path, files: list[Path], journal: Journal) -> list[str]:
    """Which of the files are not as they were recorded."""
    names = {path.relative_to(home).as_posix(): path for path in files}
    recorded = journal.files(hour=files[0].parent.name.removeprefix("hour="))
    return [
        name
        for name, path in names.items()
        if name in recorded and hashlib.sha256(path.read_bytes()).hexdigest() != recorded[name].sha256
    ]


def _merge(files: list[Path], path: Path, is_ordered: bool) -> None:
    """All rows of the files into one, by position, durably. Ordered files are streamed, a row group at a time."""
    schema = pq.read_schema(files[0])
    with path.open("wb") as file:
        with pq.ParquetWriter(file, schema, **AS_PARQUET) as writer:
            if is_ordered:
                for rows in _groups(files):
                    writer.write_table(rows, row_group_size=ROWS)
            else:  # events that left quarantine lie anywhere in the hour
                tables = [pq.read_table(p, schema=schema, partitioning=None) for p in files]
                writer.write_table(pa.concat_tables(tables).sort_by("position"), row_group_size=ROWS)
        file.flush()
        os.fsync(file.fileno())
    fsync_directory(path.parent)


def _groups(files: list[Path]) -> Iterator[pa.Table]:
    pending: list[pa.Table] = []
    rows = 0
    for path in files:
        with pq.ParquetFile(path) as source:
            for batch in source.iter_batches(batch_size=ROWS):
                pending.append(pa.Table.from_batches([batch]))
                rows += batch.num_rows
                if rows >= ROWS:
                    yield pa.concat_tables(pending)
                    pending, rows = [], 0
    if pending:
        yield pa.concat_tables(pending)


_AT_FDCWD, _RENAME_EXCHANGE = -100, 2  # linux/fcntl.h, linux/fs.h


def _exchange(one: Path, other: Path) -> None:
    """Give each of two directories the other's place, in one act (renameat2 with RENAME_EXCHANGE, Linux 3.15)."""
    rename = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    if rename is None:
        code = errno.ENOSYS
    elif rename(_AT_FDCWD, os.fsencode(one), _AT_FDCWD, os.fsencode(other), _RENAME_EXCHANGE) == 0:
        return
    else:
        code = ctypes.get_errno()
    if code in (errno.ENOSYS, errno.EINVAL, errno.ENOTSUP):
        raise _CannotExchange
    raise OSError(code, os.strerror(code), str(other))
