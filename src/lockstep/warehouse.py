"""Reading the warehouse: the DuckDB file that SQLMesh builds in the data home."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import duckdb
from duckdb import DuckDBPyConnection

from lockstep.errors import Busy, LockstepError

Row = dict[str, Any]

_MOST = 200  # characters of a command line that an error shows


def require(home: Path) -> Path:
    """The warehouse file of a home. Raises LockstepError if there is none yet."""
    path = home / "warehouse.duckdb"
    if not path.exists():
        raise LockstepError(f"There is no warehouse in {home} yet. Build it with `lockstep run`.")
    return path


@contextmanager
def reader(home: Path) -> Iterator[DuckDBPyConnection]:
    """A read-only connection that finds the change log's files, in UTC.

    Raises LockstepError if there is no warehouse yet, or if a run has it open: DuckDB lets nobody in meanwhile.
    """
    with _connection(home, read_only=True) as connection:
        yield connection


@contextmanager
def writer(home: Path) -> Iterator[DuckDBPyConnection]:
    """As `reader`, but it may write. The caller holds the lock of the runs."""
    with _connection(home, read_only=False) as connection:
        yield connection


@contextmanager
def _connection(home: Path, read_only: bool) -> Iterator[DuckDBPyConnection]:
    path = require(home)
    try:
        connection = duckdb.connect(str(path), read_only=read_only, config={"file_search_path": str(home)})
    except duckdb.Error as e:
        raise cannot_open(path, e) from None
    try:
        connection.execute("SET TimeZone = 'UTC'")
        yield connection
    except _DAMAGED as e:
        raise LockstepError(
            f"{path}, or a file of the change log that it reads, cannot be read or written: {_first_line(e)}. "
            "docs/runbooks/lost-or-damaged-files.md says how each is mended."
        ) from None
    finally:
        connection.close()


def rows(connection: DuckDBPyConnection, query: str, parameters: list[Any] | Row | None = None) -> list[Row]:
    """The result of a query as one dict per row."""
    cursor = connection.execute(query, parameters or [])
    names = [column[0] for column in cursor.description]
    return [dict(zip(names, row, strict=True)) for row in cursor.fetchall()]


def text(value: object) -> str:
    """A value as an SQL literal."""
    return "NULL::TEXT" if value is None else "'{}'".format(str(value).replace("'", "''"))


def is_planned(home: Path) -> bool:
    """Whether a plan of this version has succeeded, so that the models can be queried by name."""
    if not (home / "warehouse.duckdb").exists():
        return False
    with reader(home) as connection:
        return _has_marts(connection)


def require_planned(connection: DuckDBPyConnection) -> None:
    """Raise LockstepError unless a plan of this version has succeeded."""
    if not _has_marts(connection):
        raise LockstepError("No plan of this version of Lockstep has succeeded yet. `lockstep run` makes one.")


def _has_marts(connection: DuckDBPyConnection) -> bool:
    # The names of models are the last thing that a plan makes.
    query = "SELECT COUNT(*) FROM information_schema.tables WHERE table_schema IN ('ops', 'reconcile')"
    query += " AND table_name IN ('serving', 'receipts', 'in_use')"  # versions before had no in_use
    found = connection.execute(query).fetchone()
    return bool(found and found[0] == 3)


# What DuckDB raises for a file that is cut off or overwritten.
_DAMAGED = (
    duckdb.FatalException,
    duckdb.InternalException,
    duckdb.InvalidInputException,
    duckdb.IOException,
    duckdb.SerializationException,
)


def require_not_ahead(home: Path, position: int) -> None:
    """Raise LockstepError if the warehouse has folded beyond `position`, where the log ends: then it is another log."""
    if not (home / "warehouse.duckdb").exists():
        return
    with reader(home) as connection:
        if not _has_marts(connection):
            return
        [folded] = rows(connection, "SELECT MAX(last_position) AS position FROM hourly.log")
    if (folded["position"] or 0) > position:
        raise LockstepError(
            f"{home / 'changelog'} ends at position {position:,}, but {home / 'warehouse.duckdb'} was computed from a "
            f"log that reaches position {folded['position']:,}: an older log was restored over a newer one. Put the "
            f"newer log back. If it is lost for good: `mv {home}/warehouse.duckdb {home}/warehouse.duckdb.before`, and "
            "`lockstep run` computes all figures anew from the log that is there."
        )


def cannot_open(path: Path, error: duckdb.Error) -> LockstepError:
    """The error to raise where DuckDB could not open a file of the home."""
    busy = in_use(path, error)
    if busy:
        return Busy(busy)
    said = _first_line(error)
    if re.search("Permission denied|Read-only file system|No space left|newer version", said):
        return LockstepError(f"{path} cannot be opened: {said}")
    return LockstepError(
        f"{path} cannot be opened: {said}. If it is damaged, `mv {path} {path}.damaged`, and the next `lockstep run` "
        "computes all figures anew from the change log."
    )


def _first_line(error: duckdb.Error) -> str:
    return (str(error).splitlines() or ["no reason given"])[0].rstrip(".")


def in_use(path: Path, error: duckdb.Error) -> str | None:
    """What to say about an error on opening `path`: which process has it open. None if the error is another."""
    if "Could not set lock" not in str(error):
        return None
    found = re.search(r"\(PID (\d+)\)", str(error))
    who = f"process {found[1]}{_command(int(found[1]))}" if found else "another process"
    return f"{path} is in use by {who}. Wait until it ends, or stop it; nothing was written."


def _command(pid: int) -> str:
    """What the process was started as, in one line; empty where that is not told."""
    try:
        words = Path(f"/proc/{pid}/cmdline").read_text(encoding="utf-8", errors="replace").split("\0")
    except OSError:
        return ""
    # The interpreter of a script is of no interest, nor where the script lies.
    words = words[1:] if len(words) > 2 and re.fullmatch(r"python[\d.]*", Path(words[0]).name) else words
    command = " ".join(" ".join([Path(words[0]).name, *words[1:]]).split())
    return f" ({command if len(command) <= _MOST else f'{command[:_MOST]} ...'})"
