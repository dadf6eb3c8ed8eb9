"""The company's source database in plain Python: it makes change events with correct images, as PostgreSQL would.

Tests say what happens (`insert`, `update`, `delete`, `rekey`; `order`, `change` and `product` for short); `land` puts
the changes into a change log, `deliver` does so by way of Debezium's JSON.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import date, datetime, timedelta
from pathlib import Path
from typing import Any

import pyarrow as pa

from lockstep import checkpoints, ingest
from lockstep.changelog import ChangeLog, Landed
from lockstep.schema import TABLES, batch_schema

Image = dict[str, Any]
DATABASE = "shop"
SOURCE = f"postgresql:{DATABASE}"  # as its Debezium events name it
KEY = {
    "customers": ("customer_id",),
    "products": ("product_id",),
    "orders": ("order_id",),
    "drivers": ("driver_id",),
    "routes": ("route_id",),
    "shipments": ("shipment_id",),
    "route_stops": ("route_id", "stop_number"),
    "gps_pings": ("ping_id",),
}

# What a new row is where nothing else is said; `now` is when it is made.
DEFAULTS: dict[str, Callable[[datetime], Image]] = {
    "customers": lambda now: {
        "full_name": "A. Person",
        "email": "a.person@example.com",
        "region": "north",
        "created_at": now,
        "updated_at": now,
    },
    "products": lambda now: {"name": "a product", "category": "books", "price_cents": 500, "updated_at": now},
    "orders": lambda now: {
        "customer_id": 1,
        "product_id": 1,
        "region": "north",
        "quantity": 1,
        "amount_cents": 1_000,
        "status": "new",
        "ordered_at": now,
        "updated_at": now,
    },
    "drivers": lambda now: {
        "full_name": "B. Driver",
        "depot_region": "north",
        "capacity_parcels": 2,
        "updated_at": now,
    },
    "routes": lambda now: {
        "driver_id": 1,
        "service_date": now.date(),
        "planned_departure_at": now,
        "planned_distance_m": 40_000,
        "updated_at": now,
    },
    "shipments": lambda now: {
        "order_id": 1,
        "route_id": None,
        "region": "north",
        "status": "created",
        "exception_code": None,
        "window_from_at": now + timedelta(hours=2),
        "window_to_at": now + timedelta(hours=4),
        "delivered_at": None,
        "updated_at": now,
    },
    "route_stops": lambda now: {
        "shipment_id": 1,
        "planned_arrival_at": now + timedelta(hours=1),
        "latitude": 57.75,
        "longitude": 12.0,
        "completed_at": None,
    },
    "gps_pings": lambda now: {
        "driver_id": 1,
        "latitude": 57.7,
        "longitude": 12.0,
        "speed_kmh": 50.5,
        "recorded_at": now,
    },
}


def key_of(table: str, image: Image) -> Any:
    """The key of a row: a value, or a tuple of values where the key is composite."""
    values = tuple(image[name] for name in KEY[table])
    return values if len(values) > 1 else values[0]


@dataclass(frozen=True)
class Change:
    """One change as the source made it. A primary-key update is still one `u` with two differing keys."""

    table: str
    op: str
    before: Image | None
    after: Image | None
    committed_at: datetime
    tx_id: int
    lsn: int


@dataclass
class Shop:
    """`now` is the commit time of what happens next; the test moves it, also backwards."""

    now: datetime
    changes: list[Change] = field(default_factory=list)
    rows: dict[str, dict[Any, Image]] = field(default_factory=lambda: {table: {} for table in KEY})
    _transaction: int = 0
    _is_open: bool = False

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """What happens inside shares one transaction; outside, each change is its own."""
        self._transaction += 1
        self._is_open = True
        try:
            yield
        finally:
            self._is_open = False

    def insert(self, table: str, key: Any, *, op: str = "c", **columns: Any) -> None:
        """A new row, or with `op='r'` one that a snapshot found."""
        self._emit(table, op, None, _keyed(table, key) | DEFAULTS[table](self.now) | columns)

    def update(self, table: str, key: Any, *, op: str = "u", **columns: Any) -> None:
        """An update, or with `op='r'` what a later snapshot found in place of the image known so far."""
        before = self.rows[table][key]
        self._emit(table, op, before, before | self._touched(before) | columns)

    def delete(self, key: Any, table: str = "orders") -> None:
        self._emit(table, "d", self.rows[table][key], None)

    def rekey(self, key: Any, new_key: Any, table: str = "orders", **columns: Any) -> None:
        """An update of the primary key."""
        before = self.rows[table][key]
        self._emit(table, "u", before, before | self._touched(before) | columns | _keyed(table, new_key))

    def order(self, order_id: int, *, op: str = "c", **columns: Any) -> None:
        self.insert("orders", order_id, op=op, **columns)

    def change(self, order_id: int, *, op: str = "u", **columns: Any) -> None:
        self.update("orders", order_id, op=op, **columns)

    def product(self, product_id: int, category: str, *, op: str = "c", **columns: Any) -> None:
        """A new product, or a new version of a known one."""
        if product_id in self.rows["products"]:
            self.update("products", product_id, category=category, **columns)
        else:
            self.insert("products", product_id, op=op, category=category, **columns)

    def ping(self, driver_id: int = 1, **columns: Any) -> None:
        """A ping of a driver's device, with the next free key."""
        self.insert("gps_pings", max(self.rows["gps_pings"], default=0) + 1, driver_id=driver_id, **columns)

    def _touched(self, row: Image) -> Image:
        return {"updated_at": self.now} if "updated_at" in row else {}

    def _emit(self, table: str, op: str, before: Image | None, after: Image | None) -> None:
        if before:
            del self.rows[table][key_of(table, before)]
        if after:
            key = key_of(table, after)
            assert key not in self.rows[table], f"{table} {key} is there already"
            self.rows[table][key] = after
        if not self._is_open:
            self._transaction += 1
        self.changes.append(Change(table, op, before, after, self.now, self._transaction, len(self.changes) + 1))


def _keyed(table: str, key: Any) -> Image:
    return dict(zip(KEY[table], key if isinstance(key, tuple) else (key,), strict=True))


def land(home: Path, changes: Sequence[Change], *, reached: datetime | None = None) -> Landed:
    """Land `changes` as one batch through a writer opened for it. `reached` moves the log's clock without a change."""
    log = ChangeLog(home)
    with log.writer(_source(log)) as writer:
        return writer.land(batch_of(changes), reached=reached)


def _source(log: ChangeLog) -> str:
    return (log.watermark().source if log.exists() else None) or SOURCE


def reject(home: Path, table: str, committed_at: datetime) -> None:
    """Quarantine an event of a table that breaks the landing contract: from its position on it holds the table."""
    event = {"ordinal": 0, "committed_at": committed_at, "table": table, "reason": "no key", "event": "{}"}
    rejected = pa.Table.from_pylist([event]).set_column(1, "committed_at", pa.array([committed_at], pa.timestamp("us")))
    log = ChangeLog(home)
    with log.writer(_source(log)) as writer:
        writer.land({}, rejected)


def count_as_looked_at(home: Path) -> None:
    """Have what has landed count as found to follow, as what a version that did not look has folded does."""
    end = ChangeLog(home).watermark().position
    checkpoints.note_checked(home, replace(checkpoints.checked(home), until=dict.fromkeys(TABLES, end)))


def batch_of(changes: Sequence[Change]) -> dict[str, pa.Table]:
    """The changes as a batch for `Writer.land`."""
    tables = {}
    for name in KEY:
        rows = [
            {
                "ordinal": ordinal,
                "committed_at": change.committed_at,
                "op": change.op,
                "before": _with_extra(change.before),
                "after": _with_extra(change.after),
                "tx_id": change.tx_id,
                "lsn": change.lsn,
            }
            for ordinal, change in enumerate(changes)
            if change.table == name
        ]
        if rows:
            tables[name] = pa.Table.from_pylist(rows, schema=batch_schema(TABLES[name]))
    return tables


def deliver(home: Path, changes: Sequence[Change]) -> ingest.Summary:
    """Land `changes` as Debezium sends them; those that landed before are passed over."""
    path = home / "delivery.jsonl"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(line + "\n" for change in changes for line in debezium_lines(change)), encoding="utf-8")
    return ingest.ingest(home, [str(path)])


def debezium_lines(change: Change) -> Iterator[str]:
    """The events that Debezium makes of a change: two where the primary key changed."""
    if is_key_update(change):
        yield _event(change, "d", change.before, None)
        yield _event(change, "c", None, change.after)
    else:
        yield _event(change, change.op, change.before if change.op != "r" else None, change.after)


def is_key_update(change: Change) -> bool:
    """Whether the log holds the change as two: a delete and an insert."""
    keys = [key_of(change.table, image) for image in (change.before, change.after) if image]
    return len(set(keys)) == 2


def _event(change: Change, op: str, before: Image | None, after: Image | None) -> str:
    source = {
        "connector": "postgresql",
        "db": DATABASE,
        "schema": "public",
        "table": change.table,
        "txId": change.tx_id,
        "lsn": change.lsn,
        "snapshot": str(op == "r").lower(),
        "ts_us": epoch_us(change.committed_at),
    }
    event = {"op": op, "before": before, "after": after, "source": source, "ts_ms": source["ts_us"] // 1000}
    return json.dumps(event, default=_as_text)


def _as_text(value: date) -> str:
    return f"{value.isoformat(timespec='microseconds')}Z" if isinstance(value, datetime) else value.isoformat()


def _with_extra(image: Image | None) -> Image | None:
    return image and image | {"extra": None}


def epoch_us(at: datetime) -> int:
    """Microseconds since 1970 of a naive UTC time."""
    return (at - datetime(1970, 1, 1)) // timedelta(microseconds=1)
