"""A source whose rows and columns change, and its changes in the change log of a home.

They land as a capture lands them, or by way of Debezium's events. What happens is a list of steps, each possible in
every state, so that Hypothesis can leave out any of them; their text is the text of a test.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from tempfile import TemporaryDirectory
from types import SimpleNamespace
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from debezium_events import deliver, event
from lockstep import breaks
from lockstep.changelog import ChangeLog
from lockstep.kinds import TEXT
from lockstep.latest import differences
from lockstep.moves import ADOPTING
from lockstep.project import project
from lockstep.schema import SCHEMA_FILE, TABLES, batch_schema, declared
from lockstep.snapshot import Rows

SOURCE = "postgresql:shop"
OPENED = datetime(2026, 3, 1, 21)
HOUR = timedelta(hours=1)
KEYS = {"orders": ("id",), "stops": ("id",), "visits": ("order_id", "number")}
COLUMNS = {
    "orders": {"id": "bigint", "region": "text", "amount": "bigint"},
    "stops": {"id": "bigint", "region": "text", "n": "integer"},
    "visits": {"order_id": "bigint", "number": "integer", "region": "text", "n": "integer"},
}
LATER = {"orders": {"paid": "bigint"}, "stops": {"label": "text"}}  # the source adds these, and later they are declared
Row = dict[str, Any]
Key = tuple[int, ...]


def ddl(joined: set[str]) -> str:
    """The declaration, with the later columns of some tables."""
    tables = []
    for name, columns in COLUMNS.items():
        columns = columns | (LATER[name] if name in joined else {})
        listed = ", ".join(f"{column} {kind}" for column, kind in columns.items())
        tables.append(f"CREATE TABLE {name} ({listed}, PRIMARY KEY ({', '.join(KEYS[name])}));\n")
    return "".join(tables)


@dataclass(frozen=True)
class Put:
    """Insert a row, or change these columns of it; the others stay, or are NULL."""

    table: str
    key: Key
    columns: Row


@dataclass(frozen=True)
class Move:
    """Give a row another key, if that is free."""

    table: str
    key: Key
    to: Key


@dataclass(frozen=True)
class Delete:
    table: str
    key: Key


@dataclass(frozen=True)
class Lose:
    """A change that is never sent, so that the log lacks it until the table is resynced. Debezium's events all come."""

    change: Put | Move | Delete


@dataclass(frozen=True)
class Add:
    """The source adds the table's later column; all rows have the default then, which no event says."""

    table: str
    default: Any


@dataclass(frozen=True)
class Declare:
    """The later column is declared, if the source has it, and joins the log."""

    table: str


@dataclass(frozen=True)
class Resync:
    """The table's rows are read once more: by a resync, or by a snapshot of Debezium's."""

    table: str


Step = Put | Move | Delete | Lose | Add | Declare | Resync


class Source:
    """`now` is the commit time of the next change. `holes` are the tables whose changes the log may be missing."""

    def __init__(self, home: Path, *, is_captured: bool) -> None:
        self.home = home
        self.now = OPENED
        self.rows: dict[str, dict[Key, Row]] = {table: {} for table in COLUMNS}
        self.holes: set[str] = set()
        self.declared: set[str] = set()
        self._added: dict[str, Any] = {}
        self._untold: dict[str, set[Key]] = {table: set() for table in COLUMNS}  # no event has had the column yet
        self._is_captured = is_captured
        self._pending: list[tuple[str, str, Row | None, Row | None, datetime]] = []
        self._sent = 0
        self._loses = False
        self._declare()

    def apply(self, step: Step) -> None:
        self.now += timedelta(seconds=20)
        match step:
            case Put(table, key, columns):
                before = self.rows[table].get(key)
                blank = dict.fromkeys(COLUMNS[table]) | (dict.fromkeys(LATER[table]) if table in self._added else {})
                columns = {name: value for name, value in columns.items() if name in blank}
                self._change(
                    table, before, {**(before or blank), **columns, **dict(zip(KEYS[table], key, strict=True))}
                )
            case Move(table, key, to) if key in self.rows[table] and to not in self.rows[table]:
                before = self.rows[table][key]
                self._change(table, before, {**before, **dict(zip(KEYS[table], to, strict=True))})
            case Delete(table, key) if key in self.rows[table]:
                self._change(table, self.rows[table][key], None)
            case Lose(change):
                with self._losing():
                    self.apply(change)
            case Add(table, default) if table not in self._added:
                self._added[table] = default
                [column] = LATER[table]
                for row in self.rows[table].values():
                    row[column] = default
                self._untold[table] = set(self.rows[table]) if default is not None else set()
            case Declare(table) if table in self._added and table not in self.declared:
                self._adopt(table) if self._is_captured else self._expect(table)
            case Resync(table):
                self._resync(table) if self._is_captured else self._send_again(table)

    def known(self) -> dict[str, list[Row]]:
        """The rows that the log must lead to: a later column is NULL in a row of which no event has had it."""
        joined = self.declared - ChangeLog(self.home).watermark().resume.get(ADOPTING, {}).keys()
        known = deepcopy(self.rows)
        for table, columns in LATER.items():
            for key, row in known[table].items():
                if table not in joined or (not self._is_captured and key in self._untold[table]):
                    row.update(dict.fromkeys(columns))
        return {table: list(rows.values()) for table, rows in known.items()}

    def land(self, reached: datetime | None = None) -> None:
        pending, self._pending = self._pending, []
        log = ChangeLog(self.home)
        if not self._is_captured:
            deliver(self.home, *[e for change in pending for e in self._events(*change)])
            if not log.exists():
                return
            pending = []
        with log.writer(SOURCE) as writer:
            writer.land(self._batch(pending), reached=reached)

    def _change(self, table: str, before: Row | None, after: Row | None) -> None:
        rows = self.rows[table]
        before = deepcopy(before)
        for image in filter(None, (before, after)):
            self._untold[table].discard(self._key(table, image))
        if before:
            del rows[self._key(table, before)]
        if after:
            rows[self._key(table, after)] = after
        if self._loses and self._is_captured:
            self.holes.add(table)
        else:
            op = "u" if before and after else "d" if before else "c"
            self._pending.append((table, op, before, deepcopy(after), self.now))

    @contextmanager
    def _losing(self) -> Iterator[None]:
        self._loses = True
        try:
            yield
        finally:
            self._loses = False

    def _key(self, table: str, row: Row) -> Key:
        return tuple(row[name] for name in KEYS[table])

    # -- As a capture lands

    def _image(self, table: str, row: Row | None) -> Row | None:
        if row is None:
            return None
        names = {c.name for c in TABLES[table].columns}
        extra = {name: value for name, value in row.items() if name not in names}
        known = {name: row.get(name) for name in names}
        return known | {"extra": json.dumps(extra, separators=(",", ":")) if extra else None}

    def _batch(self, changes: list[tuple[str, str, Row | None, Row | None, datetime]]) -> dict[str, pa.Table]:
        found: dict[str, list[Row]] = {}
        for ordinal, (table, op, before, after, at) in enumerate(changes):
            images = {"before": self._image(table, before), "after": self._image(table, after)}
            place = {"ordinal": ordinal, "committed_at": at, "op": op, "tx_id": None, "lsn": None}
            found.setdefault(table, []).append(place | images)
        return {t: pa.Table.from_pylist(rows, batch_schema(TABLES[t])) for t, rows in found.items()}

    def _adopt(self, table: str) -> None:
        """What `adopting.adopt` does, with rows from here instead of a server."""
        self.land()
        self.declared.add(table)
        self._declare()
        log = ChangeLog(self.home)
        if columns := log.unadopted():
            log.begin_adopting(SOURCE, columns)
            self._land_differences(table, [], adopts=True)

    def _resync(self, table: str) -> None:
        """What `verify.resync` does, with rows from here instead of a server."""
        self.land()
        breaks.hold_what_breaks(self.home)
        log = ChangeLog(self.home)
        self._land_differences(table, breaks.broken_at(log, TABLES[table], log.watermark().position), adopts=False)
        self.holes.discard(table)

    def _land_differences(self, table: str, broken: list[int], *, adopts: bool) -> None:
        log, layout = ChangeLog(self.home), SimpleNamespace(table=TABLES[table])
        rows: Any = Rows("shop", "public", 0, 0, self.now)
        with (
            TemporaryDirectory() as scratch,
            log.writer(SOURCE, adopts=adopts) as writer,
            writer.batch() as batch,
        ):
            position, staged = writer.watermark.position, Path(scratch) / "staged.parquet"
            batch.supersede_quarantine({table})
            images = [self._image(table, row) for row in self.rows[table].values()]
            columns = [pa.array(images, TABLES[table].image), pa.nulls(len(images), TEXT)]
            pq.write_table(pa.table(columns, ["image", "reason"]), staged)
            files = batch.files(table)
            with differences(TABLES[table], files, position, staged, Path(scratch), broken) as found:
                for before, after in found.changes([], position, batch.watermark.position):
                    batch.add(rows.changes(layout, before, after))
            batch.land(resume={k: v for k, v in writer.watermark.resume.items() if k != ADOPTING})

    # -- As Debezium's events land

    def _expect(self, table: str) -> None:
        """From the next event on, of whatever table, the log awaits the column. Events before it would be rejected."""
        self.land()
        self.declared.add(table)
        self._declare()
        self.apply(Put("visits", (0, 0), {}))
        self.apply(Delete("visits", (0, 0)))

    def _send_again(self, table: str) -> None:
        for row in self.rows[table].values():
            self._untold[table].discard(self._key(table, row))
            self._pending.append((table, "r", None, deepcopy(row), self.now))

    def _events(self, table: str, op: str, before: Row | None, after: Row | None, at: datetime) -> Iterator[Row]:
        pairs = [(op, before, after)]
        if before and after and self._key(table, before) != self._key(table, after):
            pairs = [("d", before, None), ("c", None, after)]
        us = (at - datetime(1970, 1, 1)) // timedelta(microseconds=1)
        for op, before, after in pairs:
            self._sent += 1
            snapshot = "incremental" if op == "r" else "false"
            times = {"ts_us": us, "ts_ms": us // 1000, "ts_ns": us * 1000}
            yield event(op, before, after, n=self._sent, tx=self._sent, table=table, snapshot=snapshot, **times)

    def _declare(self) -> None:
        path = project() / f"{'_'.join(['declared', *sorted(self.declared)])}.sql"
        if not path.exists():
            path.write_text(ddl(self.declared))
        (project() / SCHEMA_FILE).write_text(path.read_text())
        TABLES.__dict__["_found"] = declared(path)
