"""A feed of payments and prices with columns of every type, and in plain Python what facts of them must come to.

Awkward cases: a key of a number beyond BIGINT and a uuid; a key that is updated; cells by text, uuid, date, boolean,
numeric, time, bytes and JSON, each of them NULL somewhere; amounts that are NULL, all NULL in a cell, negative, of ten
digits behind the point, of 38 digits; rows that come and go; a column that is added and not declared; two equal rows
without a key; a price that came late.
"""

from __future__ import annotations

import base64
import json
import random
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, time, timedelta
from decimal import Context, Decimal
from pathlib import Path
from typing import Any

from projects import add_in_full

FILES = Path(__file__).parent / "fixtures" / "every_type"
EXACT = Context(prec=80)
LARGEST = Decimal("99999999999999999.9999999999")  # that can be summed: of 27 digits

Row = dict[str, Any]
Cell = tuple[Any, ...]

_FIELDS = {
    date: {"type": "int32", "name": "io.debezium.time.Date"},
    time: {"type": "int64", "name": "io.debezium.time.MicroTime"},
    datetime: {"type": "string", "name": "io.debezium.time.ZonedTimestamp"},
    bytes: {"type": "bytes"},
    bool: {"type": "boolean"},
    Decimal: {"type": "string"},
    str: {"type": "string"},
}
_PRECISE = {"type": "bytes", "name": "org.apache.kafka.connect.data.Decimal", "parameters": {"scale": "2"}}
ADDED = datetime(2026, 3, 3, 2)  # ALTER TABLE payments ADD COLUMN tier numeric(9, 2) DEFAULT 1.10
COLUMNS: dict[str, dict[str, type]] = {
    "payments": {
        "account": Decimal,
        "payment": str,
        "store": str,
        "method": str,
        "paid_on": date,
        "is_refund": bool,
        "rate": Decimal,
        "opens": time,
        "terminal": bytes,
        "notes": str,
        "paid_at": datetime,
        "amount": Decimal,
        "weight": Decimal,
    },
    "ticks": {"symbol": str, "price": Decimal, "venue": str, "noted_at": datetime},
}


def add_to(project: Path) -> None:
    """Have a project of other tables hold these tables and facts too."""
    for path in FILES.rglob("*"):
        target = project / path.relative_to(FILES)
        if path.stem.startswith("contract"):
            add_in_full(target.parent, path.stem, path.read_text(encoding="utf-8"))
        elif path.suffix == ".csv" or path.name == "source_schema.sql":
            with target.open("a", encoding="utf-8") as file:
                file.write(path.read_text(encoding="utf-8"))
        elif path.is_file():
            target.parent.mkdir(exist_ok=True)
            shutil.copy(path, target)


def _json(value: Any) -> Any:
    if isinstance(value, Decimal):
        return f"{value:f}"
    if isinstance(value, datetime):
        return f"{value.isoformat()}Z"
    if isinstance(value, date):
        return value.toordinal() - date(1970, 1, 1).toordinal()
    if isinstance(value, time):
        return (datetime.combine(date.min, value) - datetime.min) // timedelta(microseconds=1)
    return base64.b64encode(value).decode() if isinstance(value, bytes) else value


@dataclass
class Feed:
    """Changes in the order of their commits, as Debezium writes them, with marks around each transaction."""

    changes: list[tuple[datetime, str, Row | None, Row | None]] = field(default_factory=list)
    _handed_out: int = 0

    def change(self, at: datetime, table: str, before: Row | None, after: Row | None) -> None:
        self.changes.append((at, table, before, after))

    def lines(self) -> Iterator[str]:
        """Those that have not been handed out yet."""
        for n in range(self._handed_out, len(self.changes)):
            at, table, before, after = self.changes[n]
            us = int(at.replace(tzinfo=UTC).timestamp() * 1_000_000)
            source = {"connector": "postgresql", "db": "inventory", "schema": "billing", "table": table}
            source |= {"txId": 9000 + n, "lsn": 90_000_000 + n, "ts_us": us}
            columns = COLUMNS[table].items()
            fields = [{"field": name, **_FIELDS[kind]} for name, kind in columns]
            image = {"type": "struct", "fields": [*fields, {"field": "tier", **_PRECISE}]}
            images = {
                name: {k: _json(v) for k, v in row.items()} if row else None
                for name, row in (("before", before), ("after", after))
            }
            if at >= ADDED and table == "payments":
                images = {name: row and {**row, "tier": "bg=="} for name, row in images.items()}
            payload = {
                **images,
                "source": source,
                "op": "u" if before and after else "c" if after else "d",
                "transaction": {"id": f"{9000 + n}:1", "total_order": 1, "data_collection_order": 1},
            }
            schema = {"type": "struct", "fields": [{"field": name, **image} for name in images]}
            yield json.dumps({"schema": schema, "payload": payload})
            yield json.dumps({"status": "END", "id": f"{9000 + n}:2", "ts_ms": us // 1000})
        self._handed_out = len(self.changes)

    def payments(self, until: datetime = datetime.max) -> dict[Cell, Cell]:
        """Count, amount and weight by cell, of the payments that live at `until`."""
        rows: dict[Cell, Row] = {}
        for at, table, before, after in self.changes:
            if table == "payments" and at < until:
                if before:
                    del rows[before["account"], before["payment"]]
                if after:
                    rows[after["account"], after["payment"]] = after
        cells: dict[Cell, Cell] = {}
        for row in rows.values():
            channel = json.loads(row["notes"]).get("channel") if row["notes"] else None
            of_row = ("method", "store", "paid_on", "is_refund", "rate", "opens", "terminal")
            cell = (*(row[name] for name in of_row), channel)
            count, amount, weight = cells.get(cell, (0, Decimal(0), Decimal(0)))
            amount, weight = (EXACT.add(s, row[n] or Decimal(0)) for s, n in ((amount, "amount"), (weight, "weight")))
            cells[cell] = (count + 1, amount, weight)
        return cells

    def prices(self, until: datetime = datetime.max) -> dict[str, list[Decimal]]:
        """The last and the highest price by symbol."""
        ticks = [
            (after["symbol"], after["noted_at"], n, after["price"])
            for n, (at, table, _, after) in enumerate(self.changes)
            if table == "ticks" and after and at < until
        ]
        return {
            symbol: [max(t[1:] for t in ticks if t[0] == symbol)[2], max(t[3] for t in ticks if t[0] == symbol)]
            for symbol in {t[0] for t in ticks}
        }


class Shop:
    """Makes a feed: the same for the same calls."""

    def __init__(self) -> None:
        self.feed = Feed()
        self._random = random.Random(20)
        self._live: list[Row] = []
        self._made = 0

    def work(self, since: datetime, until: datetime) -> None:
        """Some changes each half hour."""
        at = since
        while at < until:
            for _ in range(self._random.randint(1, 3)):
                self._change(at)
                at += timedelta(seconds=1)
            self._tick(at)
            at += timedelta(minutes=30)

    def _change(self, at: datetime) -> None:
        choice = self._random.random()
        if choice < 0.5 or len(self._live) < 5:
            row = self._payment(at)
            self._live.append(row)
            self.feed.change(at, "payments", None, row)
            return
        n = self._random.randrange(len(self._live))
        was = self._live[n]
        if choice < 0.65:
            del self._live[n]
            self.feed.change(at, "payments", was, None)
            return
        row = {**self._payment(at), "account": was["account"], "payment": was["payment"]}
        if choice < 0.75:
            row["account"] = EXACT.subtract(row["account"], Decimal(1))
        self._live[n] = row
        self.feed.change(at, "payments", was, row)

    def _payment(self, at: datetime) -> Row:
        pick, self._made = self._random, self._made + 1
        scale = pick.choice([0, 1, 2, 2])
        return {
            "account": Decimal(18_446_744_073_709_551_615 + self._made * 1000),
            "payment": f"00000000-0000-4000-8000-{self._made:012x}",
            "store": pick.choice(
                [None, "6f1d0f9e-0000-4000-8000-0000000000aa", "6f1d0f9e-0000-4000-8000-0000000000ab"]
            ),
            "method": pick.choice(["card", "cash, ", 'che"que', "Überweisung"]),
            "paid_on": at.date(),
            "is_refund": pick.random() < 0.3,
            "rate": pick.choice([None, Decimal("1.1"), Decimal("1.1000"), Decimal("0.0700"), Decimal("0")]),
            "opens": pick.choice([None, time(9, 30), time(23, 59, 59, 999_999)]),
            "terminal": pick.choice([None, b"", b"\x00\xff'"]),
            "notes": pick.choice([None, "{}", '{"channel": "web"}', '{"channel": "shop", "n": 1.10}']),
            "paid_at": at,
            "amount": pick.choice([None, Decimal(pick.randint(-(10**12) + 1, 10**12 - 1)).scaleb(-scale, EXACT)])
            if scale == 2
            else pick.choice([None, Decimal(pick.randint(-99, 99)).scaleb(-scale)]),
            "weight": pick.choice(
                [None, Decimal("0E-10"), Decimal("1E-10"), Decimal(pick.randint(-(10**26), 10**26)).scaleb(-10, EXACT)]
            ),
        }

    def _tick(self, at: datetime) -> None:
        price = Decimal(self._random.randint(1, 10**9)).scaleb(-6)
        row = {"symbol": "ACME", "price": price, "venue": None, "noted_at": at}
        self.feed.change(at, "ticks", None, row)
        self.feed.change(at, "ticks", None, row)  # an equal one

    def extremes(self, at: datetime) -> None:
        """The largest number that can be summed, in a cell of its own; and a cell whose amounts are all NULL."""
        row = {**self._payment(at), "method": "wire", "weight": LARGEST, "amount": Decimal("-9999999999.99")}
        self.feed.change(at, "payments", None, row)
        nothing = {**self._payment(at), "method": "none", "weight": None, "amount": None}
        self.feed.change(at, "payments", None, nothing)
        was = {**self._payment(at), "method": "was", "weight": Decimal("0.1"), "amount": Decimal("0.10")}
        self.feed.change(at, "payments", None, was)
        self.feed.change(at, "payments", was, {**was, "weight": None, "amount": None})

    def late_price(self, at: datetime) -> None:
        """A price, and one that only the rebuild takes, a cent more: as far as the contract allows."""
        for minutes, price, late in ((0, "5.10", 0), (10, "5.11", 5)):
            noted = at + timedelta(minutes=minutes - late)
            row = {"symbol": "LATE", "price": Decimal(price), "venue": None, "noted_at": noted}
            self.feed.change(at + timedelta(minutes=minutes), "ticks", None, row)
