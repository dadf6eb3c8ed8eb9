"""What a landing left that did not come to its end: moved out of the log to `<home>/debris`, never deleted.

A landing names its files in the journal before they have their names. So a writer knows what a dead one left; whatever
else lies beyond the watermark is not its to move: the watermark may be the one that is wrong.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from lockstep import growing
from lockstep.durable import durable_replace, fsync_directory
from lockstep.journal import File, Journal, refuse
from lockstep.logfiles import GROWING, begins_at, span
from lockstep.staging import AS_PARQUET, link_to_growing

DIRECTORY = "debris"
_NAMED = 5  # files in a message


def undo_landing(home: Path, journal: Journal, position: int, hour: str | None) -> Path | None:
    """Move what the pending landing wrote beyond `position` to the debris; returns the directory it went to, if any.

    `hour` is the directory's name of the hour in which that position lies; only its files can have rows on both sides.

    Does nothing if no file is beyond. Killed at any point, it is done again. Raises LockstepError, and moves nothing,
    if a file lies beyond that the landing did not name.
    """
    pending = journal.pending()
    beyond = list(files_beyond(home, position))
    grown = grown_beyond(home, position, hour) if hour else []
    strange = [p for p in (*beyond, *grown) if name_of(home, p) not in pending and p.suffix != ".partial"]
    if strange:
        raise refuse(home, _strange(home, position, strange))
    debris = Debris(home, position)
    kept = [debris.cut(path, position) for path in grown]
    for name, file in pending.items():
        path = home / name
        if file.first > position or path in grown or not path.exists():
            continue
        if not file.grows:
            kept.append(file)  # it fills the position of a quarantined event: readers see it since it has its name
        elif not _is(path, journal.recorded(name)):
            kept.append(recorded_as(home, path))  # cut back by a writer that was killed before it could note that
    for path in beyond:
        debris.move(path)
    if debris.path:
        debris.close([file.path for file in pending.values()])
    if pending:
        journal.note_given_up(kept)
    return debris.path


def files_beyond(home: Path, position: int) -> Iterator[Path]:
    """The files that begin beyond a position, and those that are half written. Growing ones: what links lead to."""
    root = home / "changelog"
    tables = [path for path in root.iterdir() if path.is_dir() and (path.name[0] != "_" or path.name == "_discarded")]
    for directory in (*tables, home / "quarantine"):
        for at, _, names in os.walk(directory):
            for name in names:
                path = Path(at, name)
                if begins_at(path) > position:
                    yield path


def grown_beyond(home: Path, position: int, hour: str) -> list[Path]:
    """The growing files of an hour with rows on both sides of a position."""
    found = (home / "changelog").glob(f"*/{hour}/*-.parquet")
    return [path for path in found if begins_at(path) <= position < span(path)[1]]


def name_of(home: Path, path: Path) -> str:
    """The path, relative to the home, under which the journal knows a file."""
    if path.parent.name == GROWING:
        path = path.parent.parent / f"{path.name}.parquet"
    return path.relative_to(home).as_posix()


def recorded_as(home: Path, path: Path) -> File:
    """A file of the log as it is on disk."""
    content = path.read_bytes()
    metadata = pq.read_metadata(pa.BufferReader(content))
    return File(
        path.relative_to(home).as_posix(),
        span(path)[1],
        metadata.num_rows,
        len(content),
        hashlib.sha256(content).hexdigest(),
    )


class Debris:
    """A directory in the debris for what lies beyond a position; made with the first file that goes there."""

    def __init__(self, home: Path, position: int) -> None:
        self._home = home
        self._position = position
        self.path: Path | None = None
        self._touched: set[Path] = set()

    def move(self, path: Path) -> None:
        """Move a file out of the log, keeping its path."""
        if path.is_symlink():
            path.unlink()  # what it leads to is moved by itself
        else:
            target = self._place(path)
            path.rename(target)
            self._touched.add(target.parent)
        self._touched.add(path.parent)

    def cut(self, path: Path, position: int) -> File:
        """Save the rows of a growing file that lie beyond a position, and take them out of it; returns what is left."""
        version = path.read_bytes()
        rows = growing.content(version)
        is_visible = pc.less_equal(rows["position"], position)
        beyond = rows.filter(pc.invert(is_visible))
        first, last = beyond["position"][0].as_py(), beyond["position"][-1].as_py()
        sink = pa.BufferOutputStream()
        pq.write_table(beyond, sink, **AS_PARQUET)
        durable_replace(self._place(path.with_name(f"{first}-{last}.parquet")), sink.getvalue().to_pybytes())
        # All data stays where a reader that has begun to read the file expects it; only the footer is another.
        durable_replace(path.parent / GROWING / path.stem, growing.holding(version, rows.filter(is_visible)))
        link_to_growing(path)
        return recorded_as(self._home, path)

    def close(self, named: list[str]) -> None:
        """Note in the directory what this was, and make all moves durable."""
        assert self.path
        note = {"undone_at": f"{datetime.now(UTC):%Y-%m-%dT%H:%M:%SZ}", "beyond_position": self._position}
        durable_replace(self.path / "undone.json", json.dumps({**note, "named_by_the_landing": named}).encode())
        for directory in self._touched:
            fsync_directory(directory)

    def _place(self, path: Path) -> Path:
        if self.path is None:
            root = self._home / DIRECTORY
            root.mkdir(exist_ok=True)
            self.path = root / f"{self._position}-{datetime.now(UTC):%Y%m%dT%H%M%S.%f}"
            self.path.mkdir()
            fsync_directory(root)
            fsync_directory(self._home)
        target = self.path / path.relative_to(self._home)
        target.parent.mkdir(parents=True, exist_ok=True)
        return target


def _is(path: Path, file: File | None) -> bool:
    if file is None:
        return False
    content = path.read_bytes()
    return len(content) == file.bytes and hashlib.sha256(content).hexdigest() == file.sha256


def _strange(home: Path, position: int, files: list[Path]) -> str:
    shown = sorted({name_of(home, path) for path in files})
    more = f" and {len(shown) - _NAMED:,} more" if len(shown) > _NAMED else ""
    return (
        f"The watermark of {home / 'changelog'} is at position {position:,}, and beyond it lie files that no landing "
        f"has named: {', '.join(shown[:_NAMED])}{more}. Either the watermark was set back or they were put there."
    )
