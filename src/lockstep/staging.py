"""Writes the files of a landing: under other names first, named in the journal, and only then under their own.

Under its own name a file is always whole, durable, and known to the journal with its rows and the hash of its bytes.
"""

from __future__ import annotations

import hashlib
import io
import os
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import pyarrow as pa
import pyarrow.parquet as pq

from lockstep import growing
from lockstep.durable import durable_replace, fsync_directory
from lockstep.errors import LockstepError
from lockstep.journal import File, Journal
from lockstep.logfiles import GROWING, Version, begins_at, link_into_tail, version_of

# How files of the log are written that do not grow. A dictionary of values that hardly repeat costs time and space and
# saves nothing: it ends at 64 kB, as most dictionaries of values that do repeat are smaller.
AS_PARQUET: Mapping[str, Any] = {"compression": "zstd", "store_schema": False, "dictionary_pagesize_limit": 1 << 16}

_T = TypeVar("_T")


@dataclass(frozen=True)
class Write:
    """One file to write. `content` is rows in position order, or the bytes of a file of `count` events.

    Rows that are few go into a file that grows if `may_grow`; `path` is the name that they would have as a file.
    """

    path: Path
    content: pa.Table | bytes
    last: int
    count: int
    may_grow: bool = False


@dataclass(frozen=True)
class _Staged:
    """A file that is written but does not have its name yet. `link` is its name if that leads to `target`."""

    target: Path
    file: File
    link: Path | None = None
    running: tuple[int, Any] | None = None

    @property
    def partial(self) -> Path:
        return self.target.with_name(self.target.name + ".partial")


class Stager:
    """Writes files for one writer of the log."""

    def __init__(self, home: Path, journal: Journal, pool: ThreadPoolExecutor) -> None:
        self._home = home
        self._journal = journal
        self._pool = pool
        self._durable: set[Path] = set()  # directories whose names this process has made durable
        # What the next version of a growing file begins with: the file's version, its rows, and the end and hash of
        # its data. So a landing hashes what it adds, and not the file.
        self._known: dict[Path, tuple[Version, int, int, Any]] = {}
        self._schemas: dict[Path, pa.Schema] = {}  # of files that this process has made

    def forget(self) -> None:
        """Another process may have written since."""
        self._known.clear()
        self._schemas.clear()

    def write(self, landing: int, writes: Sequence[Write]) -> None:
        """Write the files of one part of a landing; when this returns they are durable under their names."""
        if not writes:
            return
        self._make_directories({write.path.parent for write in writes})
        staged = _all([self._pool.submit(self._stage, write) for write in writes])
        # The intent becomes durable along with what it names, which costs about as much as one of them alone.
        syncing = [self._pool.submit(_sync, one.partial) for one in staged]
        try:
            self._journal.intend(landing, [one.file for one in staged])
        finally:
            wait(syncing)
        _all(syncing)
        _all([self._pool.submit(self._name, one) for one in staged])

    def _make_directories(self, directories: set[Path]) -> None:
        for directory in directories:
            directory.mkdir(parents=True, exist_ok=True)
            if directory.parent.parent.name == "changelog":
                link_into_tail(directory)
        for directory in {d.parent for d in directories - self._durable}:
            fsync_directory(directory)
        self._durable |= directories

    def _stage(self, write: Write) -> _Staged:
        if isinstance(write.content, bytes):
            return self._stage_bytes(write.path, write.content, write.last, write.count)
        if not write.may_grow or write.content.nbytes > growing.GROWS_TO:
            return self._stage_whole(write)
        # Only behind the last one: so no two files of an hour overlap.
        last = max(write.path.parent.glob("*.parquet"), key=begins_at, default=write.path)
        is_small = last.name.endswith("-.parquet") and last.stat().st_size < growing.GROWS_TO
        # Its columns may have been declared otherwise.
        if is_small and (self._schemas.get(last) or pq.read_schema(last)) == write.content.schema:
            return self._stage_growth(last, write)
        path = write.path.with_name(f"{begins_at(write.path)}-.parquet")
        self._schemas[path] = write.content.schema
        return self._stage_growing(path, growing.holding(b"", write.content), write.last, write.count)

    def _stage_bytes(self, path: Path, content: bytes, last: int, count: int) -> _Staged:
        staged = _Staged(path, self._file(path, last, count, len(content), hashlib.sha256(content)))
        staged.partial.write_bytes(content)
        return staged

    def _stage_whole(self, write: Write) -> _Staged:
        with write.path.with_name(write.path.name + ".partial").open("wb") as file:
            hashing = _Hashing(file)
            pq.write_table(write.content, hashing, **AS_PARQUET)
        return _Staged(write.path, self._file(write.path, write.last, write.count, hashing.size, hashing.sha256))

    def _stage_growth(self, path: Path, write: Write) -> _Staged:
        old = path.read_bytes()
        known = self._known.get(path)
        if known and known[0] == version_of(path):
            _, rows, end, sha256 = known
            running = (end, sha256)
        else:
            rows = self._require_as_landed(path, old)
            running = None
        return self._stage_growing(path, growing.grown(old, write.content), write.last, rows + write.count, running)

    def _stage_growing(
        self, path: Path, version: bytes, last: int, rows: int, running: tuple[int, Any] | None = None
    ) -> _Staged:
        """The next version of a growing file. `running` is the end and hash of the data that it begins with."""
        begin, sha256 = running or (0, hashlib.sha256())
        end = growing.end_of_data(version)
        view = memoryview(version)
        sha256 = sha256.copy()
        sha256.update(view[begin:end])
        whole = sha256.copy()
        whole.update(view[end:])
        file = self._file(path, last, rows, len(version), whole)
        staged = _Staged(path.parent / GROWING / path.stem, file, path, (end, sha256))
        staged.target.parent.mkdir(exist_ok=True)
        staged.partial.write_bytes(version)
        return staged

    def _require_as_landed(self, path: Path, content: bytes) -> int:
        """The rows of a file that is going to grow; raises LockstepError if it is not as it was landed."""
        name = path.relative_to(self._home).as_posix()
        recorded = self._journal.recorded(name)
        if recorded is None:  # an earlier version landed it
            return int(pq.read_metadata(pa.BufferReader(content)).num_rows)
        if hashlib.sha256(content).hexdigest() != recorded.sha256:
            raise LockstepError(
                f"{path} is not as it was landed, so nothing is added to it. `lockstep log check` says what was "
                "changed; docs/runbooks/the-log-is-damaged.md how to mend it."
            )
        return recorded.rows

    def _file(self, path: Path, last: int, rows: int, size: int, sha256: Any) -> File:
        return File(path.relative_to(self._home).as_posix(), last, rows, size, sha256.hexdigest())

    def _name(self, staged: _Staged) -> None:
        staged.partial.replace(staged.target)
        fsync_directory(staged.target.parent)
        if staged.link is None:
            return
        link_to_growing(staged.link)
        assert staged.running
        self._known[staged.link] = (version_of(staged.link), staged.file.rows, *staged.running)


def link_to_growing(path: Path) -> None:
    """Have a growing file found under its name."""
    if not path.is_symlink():  # it is none either in a home that was copied with what its links lead to
        link = path.with_name(path.name + ".partial")
        link.unlink(missing_ok=True)
        link.symlink_to(Path(GROWING, path.stem))
        link.replace(path)
        fsync_directory(path.parent)


def durable_parquet(rows: pa.Table, path: Path) -> None:
    """Write a file that no landing names."""
    sink = pa.BufferOutputStream()
    pq.write_table(rows, sink, **AS_PARQUET)
    durable_replace(path, sink.getvalue().to_pybytes())


class _Hashing(io.RawIOBase):
    """A file that hashes what is written to it."""

    def __init__(self, file: io.BufferedWriter) -> None:
        self._file = file
        self.sha256 = hashlib.sha256()
        self.size = 0

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        self.sha256.update(data)
        self.size += len(data)
        return self._file.write(data)


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _all(futures: list[Future[_T]]) -> list[_T]:
    """The results, once all have ended, also if one fails: what nobody waits for would come after it was undone."""
    wait(futures)
    return [future.result() for future in futures]
