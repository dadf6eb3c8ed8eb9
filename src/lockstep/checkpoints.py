"""Checkpoints: the rows of the source tables at a cut, so that rebuilds and audits need not read the whole log.

    <home>/changelog/checkpoints.json                                         which of them count; replaced atomically
    <home>/changelog/_checkpoints/<table>/__cut=<YYYY-MM-DDTHH>/rows.parquet  never modified
    <home>/changelog/_checkpoints/<table>/__cut=0001-01-01T00/rows.parquet    without rows: carries the schema

A checkpoint is taken after the nightly audit of its table's chain passed, from the one before and the changes since. It
counts once it is in the list; a run that is killed before leaves the one before. The last `KEEP` of each table stay. Of
an append-only table the log is its own checkpoint: only the list knows up to where its chain was checked.

They are derived from the log: a command that changes the log's past drops those after that point, and nothing is lost.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from lockstep.debris import DIRECTORY as DEBRIS
from lockstep.durable import durable_replace, fsync_directory
from lockstep.journal import sealed, unsealed
from lockstep.lock import exclusive
from lockstep.logfiles import hour_name
from lockstep.schema import TABLES, Table, literal, quoted

log = logging.getLogger("lockstep.checkpoints")

KEEP = 3
DIRECTORY = "_checkpoints"
_NO_CUT = "0001-01-01T00"  # the partition of the file that carries a table's schema
_PATIENCE = 60.0  # seconds; the list is locked for an instant
_OTHER_LOG = "is of another log"
_ROWS = 122_880  # of a row group: what DuckDB reads as one

Query = Callable[[str], list[tuple[Any, ...]]]


@dataclass(frozen=True)
class Change:
    """A change of the log."""

    position: int
    logged_at: datetime
    lsn: int | None


@dataclass(frozen=True)
class Checkpoint:
    """The rows of a table at a cut. `position` is the log's last before it.

    `last_change` is the table's last before it, None if it had none yet: by that change the log is known again that it
    was taken from. `columns` are the names and types of its columns. Of an append-only table there is no file: `sha256`
    is None.
    """

    source_table: str
    cut: datetime
    position: int
    last_change: Change | None
    rows: int
    bytes: int
    sha256: str | None
    columns: str

    @property
    def partition(self) -> str:
        return f"{self.cut:%Y-%m-%dT%H}"

    @property
    def path(self) -> str:
        """Its file, relative to the home."""
        return f"changelog/{DIRECTORY}/{self.source_table}/__cut={self.partition}/rows.parquet"

    def __str__(self) -> str:
        return f"the checkpoint of {self.source_table} at {self.cut:%Y-%m-%d %H:%M}"


@dataclass(frozen=True)
class Dropped:
    """A checkpoint that is no longer used, why, and where its file was moved to if it had one."""

    checkpoint: Checkpoint
    reason: str
    moved: Path | None

    def __str__(self) -> str:
        moved = f"; it is now in {self.moved}" if self.moved else ""
        return (
            f"{self.checkpoint} {self.reason}{moved}. The rows of {self.checkpoint.source_table} are taken from the "
            "checkpoint before it, or from the log, and the next night takes another."
        )


def kept(home: Path) -> list[Checkpoint]:
    """The checkpoints that count, oldest first."""
    return _List(home).read()


def newest(home: Path, source_table: str, position: int) -> Checkpoint | None:
    """The newest checkpoint of a table that counts, has its declared columns and includes nothing after a position."""
    columns = _columns(TABLES[source_table])
    found = (c for c in kept(home) if c.source_table == source_table and c.columns == columns)
    return max((c for c in found if c.position <= position), default=None, key=_cut)


@dataclass(frozen=True)
class Checked:
    """How far each table's chain has been checked: the last position, by table. `revision` is that of the list read."""

    revision: int
    until: dict[str, int]


def checked(home: Path) -> Checked:
    """How far the chains have been checked, by `breaks` or, up to its last checkpoint, by the night."""
    content = _List(home).content()
    until = dict(content["checked"])
    for row in content["checkpoints"]:
        until[row["source_table"]] = max(until.get(row["source_table"], 0), row["position"])
    return Checked(content["revision"], until)


def note_checked(home: Path, looked: Checked) -> None:
    """Note how far some tables have been checked, unless the log's past has changed since `looked` was read."""
    with _changing(home) as listed:
        if listed.revision() == looked.revision:
            listed.write(listed.read(), looked.revision, looked.until)


def prepare(home: Path) -> list[Dropped]:
    """Have the files there that models read, and drop checkpoints that do not fit the log; returns those.

    Called before models are computed. Where a night is due, the newest checkpoint of each table is read and hashed.
    """
    with _changing(home) as listed:
        for table in TABLES.values():
            if not table.is_append_only:
                _require_schema(home, table)
        found = listed.read()
        dropped = [_drop(home, c, reason) for c in found if (reason := _unfit(home, c))]
        gone = [d.checkpoint for d in dropped]
        newest = {c.source_table: c for c in found if c not in gone}
        due = _closed_until(home)
        for checkpoint in newest.values():
            if due and due.date() > checkpoint.cut.date() and (reason := _damage(home, checkpoint)):
                dropped.append(_drop(home, checkpoint, reason))
        if dropped or not listed.path.exists():
            gone = [d.checkpoint for d in dropped]
            restored = {d.checkpoint.source_table: 0 for d in dropped if d.reason.startswith(_OTHER_LOG)}
            listed.write([c for c in found if c not in gone], checked=restored)
        _remove_unlisted(home, listed.read())
        for partial in (home / "changelog" / DIRECTORY).glob("*.partial"):
            partial.unlink()  # of a run that was killed: no other process has the warehouse open now
    for one in dropped:
        log.warning("%s", one)
    return dropped


def check(home: Path) -> list[Dropped]:
    """Hash every checkpoint; drop and return those that are not as they were taken."""
    if not _List(home).path.exists():
        return []
    with _changing(home) as listed:
        found = listed.read()
        dropped = [_drop(home, c, reason) for c in found if (reason := _damage(home, c))]
        if dropped:
            gone = [d.checkpoint for d in dropped]
            listed.write([c for c in found if c not in gone])
    return dropped


def drop_since(home: Path, position: int, tables: Iterable[str] | None = None) -> None:
    """Drop the checkpoints that include a position of these tables (None: of any), because it is not what it was."""
    if not _List(home).path.exists():
        return
    wanted = set(TABLES if tables is None else tables)
    with _changing(home) as listed:
        found = listed.read()
        left = [c for c in found if c.position < position or c.source_table not in wanted]
        until = listed.content()["checked"]
        late = {name: position - 1 for name in wanted if until.get(name, 0) >= position}
        if left != found or late:
            listed.write(left, checked=late)
            _remove_unlisted(home, left)


def take(home: Path, fetchall: Query, execute: Callable[[str], object]) -> list[Checkpoint]:
    """Take a checkpoint of each table whose chain was found whole since its last one; returns those.

    `fetchall` and `execute` run statements in the warehouse; the models of production are read.
    """
    planned = {
        name
        for (name,) in fetchall("SELECT view_name FROM duckdb_views() WHERE schema_name = 'chain' AND NOT internal")
    }
    taken = []
    for table in TABLES.values():
        if table.name not in planned:
            continue
        [(cut, broken)] = fetchall(f"SELECT MAX(cut), MAX(broken) FROM chain.{quoted(table.name)}") or [(None, 1)]
        if cut is None or broken:
            continue
        [(position,)] = fetchall(f"SELECT MAX(last_position) FROM hourly.log WHERE log_hour < {_time(cut)}")
        if position is not None and (checkpoint := _take(home, table, cut, position, fetchall, execute)):
            taken.append(checkpoint)
    return taken


def _take(
    home: Path, table: Table, cut: datetime, position: int, fetchall: Query, execute: Callable[[str], object]
) -> Checkpoint | None:
    listed = _List(home)
    revision, found = listed.revision(), [c for c in listed.read() if c.source_table == table.name]
    before = found[-1] if found else None
    if before and before.cut >= cut:
        return None
    if altered := _altered(home, table, before.cut if before else None, cut):
        log.warning(
            "No checkpoint of %s is taken: %s is not as landed. `lockstep log check` names every such file.",
            table.name,
            altered,
        )
        return None
    last = fetchall(
        f"SELECT position, logged_at, lsn FROM changes.{quoted(table.name)} WHERE logged_at < {_time(cut)} "
        "ORDER BY position DESC LIMIT 1"
    )
    checkpoint = Checkpoint(table.name, cut, position, Change(*last[0]) if last else None, 0, 0, None, _columns(table))
    if not table.is_append_only:
        scratch = home / "changelog" / DIRECTORY / f"{table.name}.partial"
        path = home / checkpoint.path
        execute("SET preserve_insertion_order = FALSE")  # else rows are kept in memory until those before are written
        try:
            execute(
                f"COPY ({_rows_at(home, table, cut, before)}) TO {literal(str(scratch))} "
                f"(FORMAT PARQUET, COMPRESSION ZSTD, ROW_GROUP_SIZE {_ROWS})"
            )
        finally:
            execute("RESET preserve_insertion_order")
        checkpoint = _recorded(checkpoint, scratch)
        path.parent.mkdir(parents=True, exist_ok=True)
        scratch.rename(path)
        fsync_directory(path.parent)
        fsync_directory(path.parent.parent)
    with _changing(home) as listed:
        if listed.revision() != revision:
            return None  # the log's past has changed meanwhile: the next run takes another
        all_others = [c for c in listed.read() if c.source_table != table.name]
        own = [*found, checkpoint][-KEEP:]
        listed.write([*all_others, *own], revision)
        _remove_unlisted(home, listed.read())
    return checkpoint


def _rows_at(home: Path, table: Table, cut: datetime, before: Checkpoint | None) -> str:
    """A query for the rows of a table at a cut: those of the checkpoint before that did not change, and the others."""
    since = f"logged_at < {_time(cut)}" + (f" AND logged_at >= {_time(before.cut)}" if before else "")
    changes = f"(SELECT position, before, after FROM changes.{quoted(table.name)} WHERE {since})"
    keys = {k: f"COALESCE(after.{k}, before.{k})" for k in table.sql_key}
    columns = ", ".join(f"after.{quoted(name)}::{kind} AS {quoted(name)}" for name, kind in _kinds(table))
    latest = (
        f"SELECT {columns} FROM {changes} WHERE after.{table.sql_key[0]} IS NOT NULL AND position IN "
        f"(SELECT MAX(position) FROM {changes} GROUP BY {', '.join(keys.values())})"
    )
    if before is None:
        return latest
    same = " AND ".join(f"kept.{k} = {value}" for k, value in keys.items())
    names = ", ".join(f"kept.{quoted(name)}" for name, _ in _kinds(table))
    return (
        f"SELECT {names} FROM read_parquet({literal(str(home / before.path))}, hive_partitioning = FALSE) AS kept "
        f"ANTI JOIN {changes} ON {same} UNION ALL {latest}"
    )


def _recorded(checkpoint: Checkpoint, path: Path) -> Checkpoint:
    """The checkpoint with what its file is, which is durable then."""
    with path.open("rb") as file:
        sha256 = hashlib.file_digest(file, "sha256").hexdigest()
        os.fsync(file.fileno())
    rows = pq.read_metadata(path).num_rows
    return replace(checkpoint, rows=rows, bytes=path.stat().st_size, sha256=sha256)


# -- What does not count


def _unfit(home: Path, checkpoint: Checkpoint) -> str | None:
    """Why a checkpoint is not one of this log as it is now, or its file cannot be whole; without reading that."""
    table = TABLES.get(checkpoint.source_table)
    if table is None or _columns(table) != checkpoint.columns:
        return f"has other columns than {checkpoint.source_table} is declared with"
    last = checkpoint.last_change
    if last and not _is_in_the_log(home, table, last):
        return f"{_OTHER_LOG}: position {last.position:,} is not what it was"
    if checkpoint.sha256 is not None:
        path = home / checkpoint.path
        if not path.exists():
            return "has lost its file"
        if path.stat().st_size != checkpoint.bytes:
            return f"was changed: its file has {path.stat().st_size:,} bytes, not {checkpoint.bytes:,}"
    return None


def _damage(home: Path, checkpoint: Checkpoint) -> str | None:
    if checkpoint.sha256 is None:
        return None
    try:
        with (home / checkpoint.path).open("rb") as file:
            found = hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as e:
        return f"cannot be read: {e.strerror}"
    return None if found == checkpoint.sha256 else "was changed since it was taken"


def _altered(home: Path, table: Table, since: datetime | None, until: datetime) -> str | None:
    """A file of a table's changes in these hours that is not as it landed. Its rows would outlive its restoration."""
    from lockstep.chain import is_as_landed
    from lockstep.changelog import ChangeLog

    changes = ChangeLog(home)
    for path in sorted((changes.root / table.name).glob("hour=*/*.parquet")):
        if (since is None or path.parent.name >= hour_name(since)) and path.parent.name < hour_name(until):
            name = path.relative_to(home).as_posix()
            if changes.journal.recorded(name) and not is_as_landed(changes, name):
                return name
    return None


def _is_in_the_log(home: Path, table: Table, change: Change) -> bool:
    for path in (home / "changelog" / table.name / hour_name(change.logged_at)).glob("*.parquet"):
        with suppress(OSError, pa.ArrowException):
            rows = pq.read_table(path, columns=["position", "logged_at", "lsn"], partitioning=None)
            if rows.filter(pc.equal(rows["position"], change.position)).to_pylist() == [asdict(change)]:
                return True
    return False


def _closed_until(home: Path) -> datetime | None:
    from lockstep.changelog import ChangeLog

    return ChangeLog(home).watermark().closed_until()


def _drop(home: Path, checkpoint: Checkpoint, reason: str) -> Dropped:
    path = home / checkpoint.path
    if checkpoint.sha256 is None or not path.exists():
        return Dropped(checkpoint, reason, None)
    directory = home / DEBRIS / f"checkpoint-{datetime.now(UTC):%Y%m%dT%H%M%S.%f}"
    target = directory / checkpoint.path
    target.parent.mkdir(parents=True)
    path.rename(target)
    return Dropped(checkpoint, reason, directory)


def _remove_unlisted(home: Path, listed: Iterable[Checkpoint]) -> None:
    """Remove the files of checkpoints that are superseded, dropped or were never finished."""
    wanted = {(c.source_table, f"__cut={c.partition}") for c in listed}
    for path in (home / "changelog" / DIRECTORY).glob("*/__cut=*"):
        if path.name != f"__cut={_NO_CUT}" and (path.parent.name, path.name) not in wanted:
            shutil.rmtree(path)


# -- Columns


def _kinds(table: Table) -> list[tuple[str, str]]:
    return [*((c.name, c.kind.duckdb) for c in table.columns), ("extra", "TEXT")]


def _columns(table: Table) -> str:
    return json.dumps(_kinds(table))


def _require_schema(home: Path, table: Table) -> None:
    """An empty file carries the schema of a table's checkpoints, so that a reader's glob always finds one."""
    path = home / "changelog" / DIRECTORY / table.name / f"__cut={_NO_CUT}" / "rows.parquet"
    schema = pa.schema(list(table.image))
    if not path.exists() or pq.read_schema(path) != schema:
        sink = pa.BufferOutputStream()
        pq.write_table(schema.empty_table(), sink, store_schema=False)
        durable_replace(path, sink.getvalue().to_pybytes())


def _cut(checkpoint: Checkpoint) -> datetime:
    return checkpoint.cut


def _time(at: datetime) -> str:
    return f"TIMESTAMP '{at}'"


# -- The list


class _List:
    """The file that says which checkpoints count. `revision` counts how often some were dropped."""

    def __init__(self, home: Path) -> None:
        self.path = home / "changelog" / "checkpoints.json"

    def read(self) -> list[Checkpoint]:
        found = []
        for row in self.content()["checkpoints"]:
            last = row["last_change"]
            last = Change(**{**last, "logged_at": datetime.fromisoformat(last["logged_at"])}) if last else None
            found.append(Checkpoint(**{**row, "cut": datetime.fromisoformat(row["cut"]), "last_change": last}))
        return found

    def revision(self) -> int:
        return int(self.content()["revision"])

    def write(
        self, checkpoints: Iterable[Checkpoint], revision: int | None = None, checked: Mapping[str, int] | None = None
    ) -> None:
        """Replace the list. Without a `revision`, count it as one from which some were dropped.

        `checked` has the tables for which a new position is noted; the others keep theirs.
        """
        rows = [
            {**asdict(c), "partition": c.partition} for c in sorted(checkpoints, key=lambda c: (c.cut, c.source_table))
        ]
        before = self.content()
        revision = before["revision"] + 1 if revision is None else revision
        checked = {**before["checked"], **(checked or {})}
        content = json.loads(json.dumps({"revision": revision, "checkpoints": rows, "checked": checked}, default=str))
        durable_replace(self.path, sealed(content))

    def content(self) -> dict[str, Any]:
        try:
            content = unsealed(self.path.read_bytes())
        except FileNotFoundError:
            return {"revision": 0, "checkpoints": [], "checked": {}}
        except ValueError:  # all of them are derived: without the list they are taken anew
            log.warning(
                "%s is damaged: the rows of all tables are taken from the log, and checkpoints anew.", self.path
            )
            return {"revision": 0, "checkpoints": [], "checked": {}}
        for row in content["checkpoints"]:
            del row["partition"]
        return {"checked": {}, **content}


class _changing:
    """Holds the list against other commands for as long as it is read and written."""

    def __init__(self, home: Path) -> None:
        self._home = home
        self._lock = exclusive(home / "checkpoints.lock", "looking after the checkpoints", patience=_PATIENCE)

    def __enter__(self) -> _List:
        self._lock.__enter__()
        return _List(self._home)

    def __exit__(self, *exception: Any) -> None:
        self._lock.__exit__(*exception)
