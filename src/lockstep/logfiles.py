"""Where the change log's files lie, and what their names tell; `changelog` says what they hold."""

from __future__ import annotations

import re
import shutil
import sys
from contextlib import suppress
from datetime import datetime
from pathlib import Path

import pyarrow.parquet as pq

from lockstep.durable import fsync_directory

GROWING = "_growing"  # in an hour's directory, what growing files are links to; such names pass for hidden
NO_HOUR = "hour=1970-01-01T00"  # where the empty file lies that carries a table's schema
TAIL = "_tail"
Version = tuple[int, int, int]  # of a file; see `version_of`
_FILE = re.compile(r"(\d+)-(\d*)(?:\.parquet|\.jsonl)?")


def hour_name(hour: datetime) -> str:
    """The directory of an hour. Names sort as hours do."""
    return f"hour={hour:%Y-%m-%dT%H}"


def hour_of(name: str) -> datetime:
    """The hour of a directory that `hour_name` has named."""
    return datetime.strptime(name, "hour=%Y-%m-%dT%H")


def begins_at(path: Path) -> int:
    """First position in a file's name. A half-written file (`.partial`) lies beyond every watermark."""
    match = _FILE.fullmatch(path.name)
    return int(match[1]) if match else sys.maxsize


def ends_before(path: Path, position: int) -> bool:
    """Whether a file's name tells that all its positions are before this one. That of a file that grows does not."""
    match = _FILE.fullmatch(path.name)
    return match is not None and match[2] != "" and int(match[2]) < position


def span(path: Path) -> tuple[int, int]:
    """First and last position in a Parquet file: by its name, or what its name does not tell by its statistics."""
    match = _FILE.fullmatch(path.name)
    assert match, path
    if match[2]:
        return int(match[1]), int(match[2])
    metadata = pq.read_metadata(path)
    groups = [metadata.row_group(i) for i in range(metadata.num_row_groups)]
    return int(match[1]), max(group.column(0).statistics.max for group in groups)


def version_of(path: Path) -> Version:
    """Tells two versions of a file apart: one that is replaced gets another inode."""
    found = path.stat()
    return found.st_ino, found.st_size, found.st_mtime_ns


def link_into_tail(hour: Path) -> None:
    """Have an hour's directory found in the tail as well, durably."""
    table = hour.parent
    link = table.parent / TAIL / table.name / hour.name
    if link.is_symlink():
        return
    unlink_from_tail(link)
    link.parent.mkdir(parents=True, exist_ok=True)
    with suppress(FileExistsError):  # a writer and a publication meet here
        link.symlink_to(Path("..", "..", table.name, hour.name))
    fsync_directory(link.parent)
    fsync_directory(link.parent.parent)


def unlink_from_tail(link: Path) -> None:
    if link.is_symlink():
        link.unlink()
    elif link.is_dir():  # the home was copied by something that follows links
        shutil.rmtree(link)
