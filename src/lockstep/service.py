"""What commands have in common: an end on a signal, and what they say when a file cannot be written."""

from __future__ import annotations

import errno
import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from lockstep.errors import LockstepError
from lockstep.project import home


@contextmanager
def stop_on_signal() -> Iterator[threading.Event]:
    """An event that SIGTERM and SIGINT set. Outside the main thread, where signals do not arrive, nothing sets it."""
    stop = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return
    previous = {s: signal.signal(s, lambda *_: stop.set()) for s in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield stop
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


@contextmanager
def disk_full_said_plainly(home: Path) -> Iterator[None]:
    """Turn the error of a full disk into a LockstepError that says what to do."""
    try:
        yield
    except OSError as e:
        if e.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise LockstepError(
            f"The disk of {home} is full. Nothing is lost: what has landed is whole, and the source keeps the rest, "
            "on its own disk meanwhile. Make room and start again."
        ) from e


def cannot_write(error: OSError) -> str | None:
    """Return the message for a failed write; None if the error is about something else."""
    path = f"{error.filename}" if error.filename else f"A file in {home()}"
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return (
            f"{path} cannot be written: the disk is full. What was written before is whole. Make room, and start again."
        )
    if error.errno == errno.EFBIG:
        return f"{path} cannot be written: it would be larger than a file may be here (`ulimit -f`)."
    if error.errno in (errno.EROFS, errno.EACCES, errno.EPERM):
        return f"{path} cannot be written: {os.strerror(error.errno)}. This command writes to its data home, {home()}."
    return None
