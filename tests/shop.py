"""A source database of two tables in plain Python: it makes change events with correct images, as PostgreSQL would.

Tests say what happens in the shop (`order`, `change`, `delete`, `rekey`); `land` puts the changes into a change log,
`deliver` does so by way of Debezium's JSON.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pyarrow as pa

from lockstep import ingest
from lockstep.changelog import ChangeLog, Landed
from lockstep.schema import TABLES, batch_schema

Image = dict[str, Any]
SOURCE = "shop"
KEY = {"orders": "order_id", "products": "product_id"}


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
    rows: dict[str, dict[int, Image]] = field(default_factory=lambda: {"orders": {}, "products": {}})
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

    def order(self, order_id: int, *, op: str = "c", **columns: Any) -> None:
        """A new order, or with `op='r'` one that a snapshot found."""
        image = {
            "order_id": order_id,
            "customer_id": 1,
            "product_id": 1,
            "region": "north",
            "quantity": 1,
            "amount_cents": 1_000,
            "status": "new",
            "ordered_at": self.now,
            "updated_at": self.now,
        }
        self._emit("orders", op, None, image | columns)

    def product(self, product_id: int, category: str, *, op: str = "c", **columns: Any) -> None:
        """A new product, or a new version of a known one."""
        before = self.rows["products"].get(product_id)
        image = {"product_id": product_id, "name": "a product", "category": category, "price_cents": 500}
        self._emit("products", "u" if before else op, before, image | {"updated_at": self.now} | columns)

    def change(self, order_id: int, *, op: str = "u", **columns: Any) -> None:
        """An update, or with `op='r'` what a later snapshot found in place of the image known so far."""
        before = self.rows["orders"][order_id]
        self._emit("orders", op, before, before | {"updated_at": self.now} | columns)

    def delete(self, key: int, table: str = "orders") -> None:
        self._emit(table, "d", self.rows[table][key], None)

    def rekey(self, order_id: int, new_id: int, **columns: Any) -> None:
        """An update of the primary key."""
        before = self.rows["orders"][order_id]
        self._emit("orders", "u", before, before | {"updated_at": self.now} | columns | {"order_id": new_id})

    def _emit(self, table: str, op: str, before: Image | None, after: Image | None) -> None:
        key = KEY[table]
        if before:
            del self.rows[table][before[key]]
        if after:
            assert after[key] not in self.rows[table], f"{table} {after[key]} is there already"
            self.rows[table][after[key]] = after
        if not self._is_open:
            self._transaction += 1
        self.changes.append(Change(table, op, before, after, self.now, self._transaction, len(self.changes) + 1))


def land(home: Path, changes: Sequence[Change], *, reached: datetime | None = None) -> Landed:
    """Land `changes` as one batch through a writer opened for it. `reached` moves the log's clock without a change."""
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
    log = ChangeLog(home)
    source = log.watermark().source if log.exists() else SOURCE
    assert source
    with log.writer(source) as writer:
        return writer.land(tables, reached=reached)


def deliver(home: Path, changes: Sequence[Change]) -> ingest.Summary:
    """Land `changes` as Debezium sends them; those that landed before are passed over."""
    path = home / "delivery.jsonl"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(line + "\n" for change in changes for line in debezium_lines(change)), encoding="utf-8")
    return ingest.ingest(home, [str(path)])


def debezium_lines(change: Change) -> Iterator[str]:
    """The events that Debezium makes of a change: two where the primary key changed."""
    key = KEY[change.table]
    if change.before and change.after and change.before[key] != change.after[key]:
        yield _event(change, "d", change.before, None)
        yield _event(change, "c", None, change.after)
    else:
        yield _event(change, change.op, change.before if change.op != "r" else None, change.after)


def _event(change: Change, op: str, before: Image | None, after: Image | None) -> str:
    source = {
        "connector": "postgresql",
        "db": SOURCE,
        "schema": "public",
        "table": change.table,
        "txId": change.tx_id,
        "lsn": change.lsn,
        "snapshot": str(op == "r").lower(),
        "ts_us": epoch_us(change.committed_at),
    }
    event = {"op": op, "before": before, "after": after, "source": source, "ts_ms": source["ts_us"] // 1000}
    return json.dumps(event, default=lambda at: at.isoformat(timespec="microseconds") + "Z")


def _with_extra(image: Image | None) -> Image | None:
    return image and image | {"extra": None}


def epoch_us(at: datetime) -> int:
    """Microseconds since 1970 of a naive UTC time."""
    return (at - datetime(1970, 1, 1)) // timedelta(microseconds=1)
