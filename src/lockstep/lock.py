"""One writer at a time, by an advisory lock that the operating system frees when its holder dies.

A holder that stays for ever (`lockstep capture`) lends its lock: who needs it for a moment holds a second lock beside
it, `<path>.asked`, for as long; the holder looks at that between two batches, lets go, and waits for its end. Both
locks vanish with their process, so whatever is killed, nobody waits for the dead and nothing is to be cleaned up.
"""

from __future__ import annotations

import fcntl
import json
import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, Any

from lockstep.errors import Busy

_POLL = 0.02  # seconds
_GLANCE = 0.1  # seconds; longer than any `holder` or `Lock.lend` looks at a lock, which takes it for an instant


class Lock:
    """A lock that is held. Made by `exclusive`."""

    def __init__(self, path: Path, file: IO[str], purpose: str, lends: bool) -> None:
        self._path = path
        self._file = file
        self._purpose = purpose
        self._lends = lends
        self._asked: IO[str] | None = None
        self.is_held = False

    def _take(self, patience: float) -> bool:
        if not _try(self._file, fcntl.LOCK_EX, patience):
            return False
        self.is_held = True
        self._file.truncate(0)
        since = datetime.now(UTC).isoformat(timespec="seconds")
        command = " ".join([Path(sys.argv[0]).name, *sys.argv[1:]])
        name = {"pid": os.getpid(), "purpose": self._purpose, "command": command, "since": since, "lends": self._lends}
        json.dump(name, self._file)
        self._file.flush()
        return True

    def _let_go(self) -> None:
        if self.is_held:
            self._file.truncate(0)
            self.is_held = False
            fcntl.flock(self._file, fcntl.LOCK_UN)

    def is_asked_for(self) -> bool:
        """Whether somebody waits to borrow the lock."""
        if self._asked is None:
            self._asked = asked_path(self._path).open("a+", encoding="utf-8")
        if not _try(self._asked, fcntl.LOCK_SH, 0):
            return True
        fcntl.flock(self._asked, fcntl.LOCK_UN)
        return False

    def lend(self, go_on: Callable[[], bool]) -> bool:
        """Let go of the lock until nobody asks for it any more, then take it back.

        `go_on` is called all the while; once it returns False the waiting ends. Returns whether the lock is held.
        """
        self._let_go()
        while go_on():
            if not self.is_asked_for() and self._take(0):
                return True
            time.sleep(_POLL)
        return False

    def close(self) -> None:
        self._let_go()
        if self._asked is not None:
            self._asked.close()


@contextmanager
def exclusive(path: Path, purpose: str, *, lends: bool = False, patience: float = 0) -> Iterator[Lock]:
    """Hold `path` as an exclusive lock; `purpose` is what a second comer is told the holder does.

    The lock belongs to the open file, not to the file's existence: a killed holder leaves nothing to clean up.
    `lends` promises that this holder calls `Lock.lend` now and then; from such a holder the lock is borrowed within
    `patience` seconds. Raises Busy, naming the holder, if somebody else has it and does not let go.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a+", encoding="utf-8") as file, _asking(path, patience) as seconds:
        lock = Lock(path, file, purpose, lends)
        if not lock._take(seconds or _GLANCE):
            raise Busy(held(path))
        try:
            yield lock
        finally:
            lock.close()


@contextmanager
def _asking(path: Path, patience: float) -> Iterator[float]:
    """Ask the holder, if it is one that lends; yields how many seconds are left to wait for it."""
    found = holder(path) if patience else None
    if not found or not found.get("lends"):
        yield 0
        return
    end = time.monotonic() + patience
    with asked_path(path).open("a+", encoding="utf-8") as asked:
        if not _try(asked, fcntl.LOCK_EX, patience):
            raise Busy(held(path))
        yield max(end - time.monotonic(), _GLANCE)


def _try(file: IO[str], kind: int, patience: float) -> bool:
    end = time.monotonic() + patience
    while True:
        try:
            fcntl.flock(file, kind | fcntl.LOCK_NB)
            return True
        except BlockingIOError:
            if time.monotonic() >= end:
                return False
            time.sleep(_POLL)


def asked_path(path: Path) -> Path:
    return path.with_name(path.name + ".asked")


def holder(path: Path) -> dict[str, Any] | None:
    """Who holds the lock: pid, purpose, command, since, lends; empty if it has not said yet. None if nobody does."""
    try:
        with path.open("r", encoding="utf-8") as file:
            if _try(file, fcntl.LOCK_SH, 0):
                return None
            with suppress(ValueError):
                found = json.load(file)
                if isinstance(found, dict):
                    return found
            return {}
    except FileNotFoundError:
        return None


def held(path: Path) -> str:
    """What somebody is told who wants the lock and does not get it: who holds it, and since when."""
    found = holder(path)
    if found:
        who = f"process {found['pid']} ({found['command']}) since {found['since']}, {found['purpose']}"
    else:  # the holder has the lock but has not written its name yet
        who = "another process"
    return f"{path} is held by {who}. Wait until it ends, or stop it; nothing was written."
