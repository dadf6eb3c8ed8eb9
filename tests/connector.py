"""A Debezium connector in plain Python: random transactions over several tables, spread over topics and partitions.

Like the real one it delivers at least once: killed, it goes back to some earlier point, also within a transaction,
and sends everything from there again. Topics get its records with delays of their own; each partition keeps its order.
"""

from __future__ import annotations

import json
import random
import zlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from debezium_events import T0, Image, event, order

MARKS = "shop.transaction"
PARTITIONS = {"shop.public.orders": 3, "shop.public.products": 1, MARKS: 1}
Record = tuple[str, int, bytes | None]  # topic, partition, value


def product(product_id: int, **columns: Any) -> Image:
    return {
        "product_id": product_id,
        "name": "tea",
        "category": "drinks",
        "price_cents": 500,
        "updated_at": "2026-01-01T09:59:59Z",
        **columns,
    }


@dataclass
class Connector:
    """`stream` makes what the connector writes, in its order."""

    chance: random.Random
    number: int = 0  # of the last change
    transaction: int = 0

    def __post_init__(self) -> None:
        self._rows: dict[str, dict[int, Image]] = {"orders": {}, "products": {}}

    def stream(self, transactions: int) -> Iterator[Record]:
        for _ in range(transactions):
            yield from self._transaction()

    def snapshot(self, rows: int) -> Iterator[Record]:
        for key in range(1, rows + 1):
            table, image = ("orders", order(key)) if key % 3 else ("products", product(key))
            self._rows[table][key] = image
            self.number += 1
            yield _record(table, key, event("r", None, image, n=self.number, tx=1, table=table, snapshot="true"))

    def _transaction(self) -> Iterator[Record]:
        self.transaction += 1
        name = 1000 + self.transaction
        yield MARKS, 0, _json({"status": "BEGIN", "id": f"{name}:{self.number}", "ts_ms": self._ms()})
        counts: dict[str, int] = {}
        for total in range(1, self.chance.choice((1, 1, 2, 3, 12)) + 1):
            table, key, op, before, after = self._change()
            self.number += 1
            counts[table] = counts.get(table, 0) + 1
            change = event(op, before, after, n=self.number, tx=name, marked=True, table=table)
            change["transaction"] |= {"total_order": total, "data_collection_order": counts[table]}
            yield _record(table, key, change)
            if op == "d":
                yield *_record(table, key, None)[:2], None
        end = {
            "status": "END",
            "id": f"{name}:{self.number}",
            "event_count": sum(counts.values()),
            "data_collections": [{"data_collection": f"public.{t}", "event_count": n} for t, n in counts.items()],
            "ts_ms": self._ms(),
        }
        yield MARKS, 0, _json(end)

    def _ms(self) -> int:
        return T0 // 1000 + self.number * 1000

    def _change(self) -> tuple[str, int, str, Image | None, Image | None]:
        table = self.chance.choice(("orders", "orders", "products"))
        rows = self._rows[table]
        kind = self.chance.random()
        if kind < 0.4 or len(rows) < 3:
            key = 10_000 + self.number
            rows[key] = order(key) if table == "orders" else product(key)
            return table, key, "c", None, rows[key]
        key = self.chance.choice(list(rows))
        before = rows[key]
        if kind < 0.8:
            changed = {"quantity": self.number} if table == "orders" else {"price_cents": self.number}
            rows[key] = before | changed
            return table, key, "u", before, rows[key]
        del rows[key]
        return table, key, "d", before, None


def _record(table: str, key: int, value: Any) -> Record:
    topic = f"shop.public.{table}"
    return topic, zlib.crc32(str(key).encode()) % PARTITIONS[topic], _json(value)


def _json(value: Any) -> bytes:
    return json.dumps(value, separators=(",", ":")).encode()


def delivered(stream: list[Record], chance: random.Random, kills: int) -> list[Record]:
    """The stream as a connector delivers it that is killed so often: each time it goes back and sends again."""
    sent: list[Record] = []
    at = 0
    for kill in sorted(chance.sample(range(len(stream)), kills)):
        sent += stream[at:kill]
        at = max(0, kill - chance.choice((0, 1, 2, 5, 40, 400)))
    return sent + stream[at:]


def delayed(stream: Iterable[Record], chance: random.Random, longest: int = 300) -> list[Record]:
    """The records in an order in which they may come: only those of one partition keep theirs."""
    arrival: dict[tuple[str, int], float] = {}
    keyed = []
    lag: dict[tuple[str, int], float] = {}
    for i, record in enumerate(stream):
        partition = record[:2]
        if chance.random() < 0.02:
            lag[partition] = chance.random() * longest
        arrival[partition] = max(arrival.get(partition, 0), i + lag.get(partition, 0))
        keyed.append((arrival[partition], i, record))
    return [record for *_, record in sorted(keyed, key=lambda k: k[:2])]


def file_of(path: Path, stream: Sequence[Record]) -> list[str]:
    """The stream as a file of JSON lines; returns what `ingest` takes."""
    path.write_bytes(b"".join((value or b"null") + b"\n" for *_, value in stream))
    return [str(path)]


def changes(tables: dict[str, list[dict[str, Any]]]) -> tuple[list[str], list[tuple[Any, ...]]]:
    """The changes in order; snapshot rows, whose order between partitions is free, as a set before them."""
    rows = sorted((r["position"], t, r) for t, rows in tables.items() for r in rows)
    out = [(t, *(v for k, v in r.items() if k not in ("position", "logged_at"))) for _, t, r in rows]
    snapshot = [str(r) for r in out if r[2] == "r"]
    return sorted(snapshot), [r for r in out if r[2] != "r"]
