"""One process at a time has the home's files open under SQLMesh, and who comes second is told in one line who it is.

DuckDB lets one process open a file for writing. SQLMesh takes every error on asking for its state for "there is none":
refused the file, it would go on as in a new project. So the refusal has to come before SQLMesh asks and has to end the
command, whichever it is. All that every command of SQLMesh's reads first is config.yaml. That names a file system,
which SQLMesh makes, out of the class below, right before it attaches a file; nothing is ever read through it.
"""

from __future__ import annotations

import fcntl
import itertools
import os
from pathlib import Path
from weakref import WeakValueDictionary

import duckdb
from fsspec import AbstractFileSystem
from sqlmesh.core import constants

from lockstep import queries
from lockstep.errors import LockstepError
from lockstep.lock import held, holder
from lockstep.pairing import FILES, attach, stamp
from lockstep.project import home

# SQLMesh loads models and snapshots in forked workers. A worker inherits the home's lock and the descriptors of its
# files, and outlives a parent that is killed: the home would stay locked. SQLMesh reads this number each time it would
# fork. Whatever loads models imports this module first (macros/cache.py), and so does whatever opens the state.
constants.MAX_FORK_WORKERS = 1
queries.render_once()


class CannotOpen(SystemExit):
    """A file of the home cannot be opened. The text says why; uncaught, it ends the process with just that.

    No `Exception`: those SQLMesh takes as an answer where it asks whether its tables exist.
    """


class OneWriter(AbstractFileSystem):  # type: ignore[misc]
    """Made for a file of the home, it has the file for this process, until DuckDB, which opens it next, closes it.

    Creates the file if there is none. Raises CannotOpen, before anything is written, if another process has the home's
    lock or either file open; if this process has the file open by another connection; and if DuckDB cannot open it.
    """

    cachable = False  # else fsspec hands out the first one again, and nobody looks

    def __init__(self, file: str) -> None:
        super().__init__()
        try:
            home()
        except LockstepError as e:
            raise CannotOpen(f"Error: {e}") from None
        # DuckDB knows a file system by its protocol, and no second one of the same for a connection's second cursor.
        self.protocol = f"lockstep-{next(_numbers)}"
        path = Path(file).resolve()
        try:
            # Who has one file already will get the other. Would it look again, then lockstep, which takes the lock
            # before it comes upon the file, and SQLMesh would refuse each other.
            if not any(path.parent == other.parent for other in _connected):
                _require_free(path.parent)
                _require_pair(path.parent)
            _take(path)
        except OSError as e:
            raise CannotOpen(f"Error: {path} cannot be opened: {e}") from None
        _connected[path] = self


_numbers = itertools.count()

# What this process has open under SQLMesh. DuckDB holds its file systems until it has closed a connection's files.
_connected: WeakValueDictionary[Path, OneWriter] = WeakValueDictionary()

# By device and inode, and never closed: to close any descriptor of a file ends all locks of this process on it, also
# that by which DuckDB keeps others from writing.
_descriptors: dict[tuple[int, int], int] = {}


def _require_free(directory: Path) -> None:
    lock = directory / "warehouse.lock"
    found = holder(lock)
    if found is not None and found.get("pid") != os.getpid():
        raise CannotOpen(f"Error: {held(lock)}")
    for path in (directory / name for name in FILES):
        if path.exists():
            _try_out(path)


def _require_pair(directory: Path) -> None:
    try:
        reason = stamp(directory)
    except duckdb.BinderException:
        return  # this process reads one of them by another connection (`lockstep explain`)
    except (duckdb.Error, LockstepError) as e:
        raise CannotOpen(f"Error: {e}") from None
    if reason:
        raise CannotOpen(
            f"Error: {reason}, so SQLMesh would skip hours that are not in the warehouse. `lockstep run` computes all "
            "figures anew from the change log."
        )


def _take(path: Path) -> None:
    while True:
        if not _try_out(path):
            if path in _connected:
                return  # another cursor of the same connection
            raise CannotOpen(f"Error: {path} is open in this process already, by another connection.")
        if _lock(path):
            return


def _try_out(path: Path) -> bool:
    """Open the file and close it again; False if this process has it open already. Raises CannotOpen if it cannot."""
    try:
        # Not by connecting to it: that reads what kind of file it is before it finds that this process has it attached,
        # and the end of that reading would be the end of this process's locks on the file.
        with duckdb.connect() as connection:
            attach(connection, path)
    except duckdb.BinderException:
        return False
    except LockstepError as e:
        raise CannotOpen(f"Error: {e}") from None
    return True


def _lock(path: Path) -> bool:
    """Take the lock that DuckDB will take, so that nobody comes between; False if somebody has."""
    found = path.stat()
    key = (found.st_dev, found.st_ino)
    if key not in _descriptors:
        _descriptors[key] = os.open(path, os.O_RDWR)
    try:
        fcntl.lockf(_descriptors[key], fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):
        return False
    return True
