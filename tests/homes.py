"""Homes that are built once per test session and shared by all of its workers.

Planning a home takes longer than most tests do. `shared_home(name, build)` calls `build` in the first worker that asks;
the others wait on a file lock and read what it left. What it returns is pickled, so every caller has a copy of its own:
return the path of the home, or an object that knows it. The home itself is shared: copy it before changing it.
"""

from __future__ import annotations

import fcntl
import os
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import pytest

T = TypeVar("T")


class SharedHomes:
    """Builds each home once under `root`, which all workers of the session have in common."""

    def __init__(self, root: Path) -> None:
        self._root = root

    def __call__(self, name: str, build: Callable[[Path], T]) -> T:
        """What `build` returned for the home `name`; it is given a directory that does not exist yet."""
        directory, result = self._root / name, self._root / f"{name}.pickle"
        with (self._root / f"{name}.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not result.exists():
                shutil.rmtree(directory, ignore_errors=True)  # left by a build that failed
                built = build(directory)
                result.write_bytes(pickle.dumps(built))
        found: Any = pickle.loads(result.read_bytes())
        return found  # type: ignore[no-any-return]


@pytest.fixture(scope="session")
def shared_home(tmp_path_factory: pytest.TempPathFactory) -> SharedHomes:
    base = tmp_path_factory.getbasetemp()
    root = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "shared"
    root.mkdir(exist_ok=True)
    return SharedHomes(root)
