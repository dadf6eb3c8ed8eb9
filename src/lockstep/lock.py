"""One writer at a time, by an advisory lock that the operating system frees when its holder dies."""

from __future__ import annotations

import fcntl
import json
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

from lockstep.errors import LockstepError


@contextmanager
def exclusive(path: Path, purpose: str) -> Iterator[None]:
    """Hold `path` as an exclusive lock; `purpose` is what a second comer is told the holder does.

    The lock belongs to the open file, not to the file's existence: a killed holder leaves nothing to clean up.
    Raises LockstepError at once, naming the holder, if somebody else has it.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a+", encoding="utf-8") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise LockstepError(_held(path)) from None
        file.truncate(0)
        since = datetime.now(UTC).isoformat(timespec="seconds")
        command = " ".join([Path(sys.argv[0]).name, *sys.argv[1:]])
        json.dump({"pid": os.getpid(), "purpose": purpose, "command": command, "since": since}, file)
        file.flush()
        try:
            yield
        finally:
            file.truncate(0)


def _held(path: Path) -> str:
    try:
        holder = json.loads(path.read_text(encoding="utf-8"))
        who = f"process {holder['pid']} ({holder['command']}) since {holder['since']}, {holder['purpose']}"
    except (ValueError, KeyError):  # the holder has the lock but has not written its name yet
        who = "another process"
    return f"{path} is held by {who}. Wait until it ends, or stop it; nothing was written."
