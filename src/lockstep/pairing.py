"""warehouse.duckdb and state.duckdb belong together: SQLMesh's state says which hours the warehouse holds.

If one is lost or restored from another time, SQLMesh does not notice: with an older warehouse it skips hours that are
not there. So each process that opens the files to write stamps both with a new number. Both are
derived from the change log: where the numbers differ, `lockstep run` sets both files aside and computes all anew.

The stamp is written as: the new number beside the old one in the warehouse, then in the state, then alone in the
warehouse. Wherever a crash comes between, the state's number is one of the warehouse's two.
"""

from __future__ import annotations

import fcntl
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from uuid import uuid4

import duckdb
from duckdb import DuckDBPyConnection

from lockstep.warehouse import cannot_open, text

FILES = ("warehouse.duckdb", "state.duckdb")
DEBRIS = "debris"
_HEADERS = 3 * 4096  # bytes of a DuckDB file before its first block


_NO_NUMBER = frozenset({""})  # the number of a file that nothing has stamped yet


@dataclass(frozen=True)
class _Stamp:
    numbers: frozenset[str]
    is_empty: bool  # apart from the stamp


def attach(connection: DuckDBPyConnection, path: Path) -> None:
    """Attach a file of the home, named like the file. Creates it if it does not exist.

    Raises LockstepError if it cannot be opened, and duckdb.BinderException if this process has it open already.
    """
    _remove_unfinished(path)
    try:
        # With `duckdb:` DuckDB does not open and close the file once before it locks it.
        connection.execute(f"ATTACH {text(f'duckdb:{path}')} AS {path.stem}")
    except duckdb.BinderException:
        raise
    except duckdb.Error as e:
        raise cannot_open(path, e) from None


def unlike(home: Path) -> str | None:
    """Why the home's two files do not belong together; None if they do, or neither exists yet. Writes nothing.

    Raises as `attach` does.
    """
    with duckdb.connect() as connection:
        _attach_existing(connection, home)
        return _unlike(connection, home)


def stamp(home: Path) -> str | None:
    """Give both files a new number, creating those that do not exist; or return why they do not belong together.

    Raises as `attach` does.
    """
    with duckdb.connect() as connection:
        _attach_existing(connection, home)
        reason = _unlike(connection, home)
        if reason:
            return reason
        for path in (home / name for name in FILES):
            if not path.exists():
                attach(connection, path)
        new = str(uuid4())
        _write(connection, "warehouse", _read(connection, "state").numbers | {new})
        _write(connection, "state", frozenset({new}))
        _write(connection, "warehouse", frozenset({new}))
    return None


def set_aside(home: Path) -> Path:
    """Move the two files to a new directory of `<home>/debris`; returns it. The caller must hold the home's lock."""
    directory = home / DEBRIS / f"{datetime.now(UTC):%Y-%m-%dT%H%M%S.%f}"
    directory.mkdir(parents=True)
    for name in FILES:
        for path in (home / name, home / f"{name}.wal"):
            if path.exists():
                path.rename(directory / path.name)
    return directory


def _attach_existing(connection: DuckDBPyConnection, home: Path) -> None:
    for path in (home / name for name in FILES):
        _remove_unfinished(path)
        if path.exists():
            attach(connection, path)


def _remove_unfinished(path: Path) -> None:
    """Remove a file that DuckDB was still creating when its process was killed: it holds at most its headers.

    DuckDB would refuse it for ever. A file that a process is creating right now is locked, and stays.
    """
    try:
        if path.stat().st_size >= _HEADERS:
            return
        with path.open("r+b") as file:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            content = file.read(_HEADERS)
            if len(content) < _HEADERS and content[8:12] in (b"", b"DUCK"):
                path.unlink()
    except OSError:
        return  # it does not exist, is locked, or cannot be written, which DuckDB will say better


def _unlike(connection: DuckDBPyConnection, home: Path) -> str | None:
    stamps = {name: _read(connection, Path(name).stem) for name in FILES if (home / name).exists()}
    if len(stamps) == 1:
        [(name, found)] = stamps.items()
        [missing] = {*FILES} - {name}
        return None if found.is_empty else f"{home / missing} is missing, but {home / name} is not"
    if not stamps:
        return None
    warehouse, state = (stamps[name] for name in FILES)
    belong = state.numbers <= warehouse.numbers
    if state.numbers == _NO_NUMBER:  # a home of an earlier version
        belong = belong and warehouse.is_empty == state.is_empty
    return None if belong else f"{home / FILES[0]} and {home / FILES[1]} are from two different times"


def _read(connection: DuckDBPyConnection, catalog: str) -> _Stamp:
    tables = connection.execute(
        "SELECT schema_name, table_name FROM duckdb_tables() WHERE database_name = ?", [catalog]
    ).fetchall()
    numbers = _NO_NUMBER
    if ("lockstep", "stamps") in tables:
        numbers = frozenset(
            n for (n,) in connection.execute(f"SELECT number FROM {catalog}.lockstep.stamps").fetchall()
        )
    return _Stamp(numbers, all(table == ("lockstep", "stamps") for table in tables))


def _write(connection: DuckDBPyConnection, catalog: str, numbers: frozenset[str]) -> None:
    connection.execute("BEGIN")
    connection.execute(f"CREATE SCHEMA IF NOT EXISTS {catalog}.lockstep")
    connection.execute(f"CREATE OR REPLACE TABLE {catalog}.lockstep.stamps (number TEXT)")
    connection.executemany(f"INSERT INTO {catalog}.lockstep.stamps VALUES (?)", [[n] for n in sorted(numbers)])
    connection.execute("COMMIT")
