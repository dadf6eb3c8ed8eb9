"""Who has the home's files open, said plainly, also by SQLMesh's own commands, which know nothing of the home's lock.

DuckDB lets one process open a file for writing. SQLMesh, when it cannot open its state for that reason, takes it for
empty and sets out to make it anew; were the file let go in the midst of that, it would drop what is in it. So the first
refusal has to be the end: `install` has SQLMesh look at the home's lock before it opens a file, and ends the command if
another process has it. Commands that open none (`sqlmesh lint`, `format`, `test`) never get there.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

import duckdb

from lockstep.lock import held, holder


class InUse(SystemExit):
    """Another process has a file of the home open. Its text says who; uncaught, it ends the process with just that.

    No `Exception`: those SQLMesh takes as an answer where it asks whether its tables exist.
    """


def install() -> None:
    """From now on, SQLMesh in this process raises InUse where another one has the home's files open."""
    from sqlmesh.core.config.connection import BaseDuckDBConnectionConfig

    # SQLMesh has no hook before it connects. The version that has this property is pinned.
    BaseDuckDBConnectionConfig._connection_factory = property(lambda _: _connect)


def _connect(database: Any = ":memory:", *arguments: Any, **settings: Any) -> duckdb.DuckDBPyConnection:
    path = Path(database)
    lock = path.parent / "warehouse.lock"
    found = holder(lock) if str(database) != ":memory:" else None
    if found is not None and found.get("pid") != os.getpid():
        raise InUse(f"Error: {held(lock)}")
    try:
        return duckdb.connect(database, *arguments, **settings)
    except duckdb.IOException as e:
        message = in_use(path, e)
        raise (InUse(f"Error: {message}") if message else e) from None


def in_use(path: Path, error: duckdb.IOException) -> str | None:
    """What to tell of an error on opening `path`: which process has it open. None if the error is another."""
    if "Could not set lock" not in str(error):
        return None
    found = re.search(r"\(PID (\d+)\)", str(error))
    who = f"process {found[1]}{_command(int(found[1]))}" if found else "another process"
    return f"{path} is in use by {who}. Wait until it ends, or stop it; nothing was written."


def _command(pid: int) -> str:
    """What the process was started as; empty where that is not told."""
    try:
        words = Path(f"/proc/{pid}/cmdline").read_text(encoding="utf-8", errors="replace").split("\0")
    except OSError:
        return ""
    # The interpreter of a script is of no interest, nor where the script lies.
    words = words[1:] if len(words) > 2 and re.fullmatch(r"python[\d.]*", Path(words[0]).name) else words
    return f" ({' '.join([Path(words[0]).name, *words[1:]]).strip()})"
