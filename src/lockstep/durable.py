"""Files and names that a crash cannot take back."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path


def durable_replace(path: Path, content: bytes, is_timely: Callable[[], bool] = lambda: True) -> bool:
    """Replace `path` so that at any crash it holds either its old content or all of the new.

    `is_timely` is asked last of all; if it says no, nothing is replaced. Returns whether it was.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".partial")
    with partial.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    if not is_timely():
        return False
    partial.replace(path)
    fsync_directory(path.parent)
    return True


def fsync_directory(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
