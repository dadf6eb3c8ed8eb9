"""A table that contradicts itself is held before its changes are folded or published, and no other figure with it."""

from __future__ import annotations

import dataclasses
import time
from datetime import datetime
from pathlib import Path

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq

from lockstep import operate
from lockstep.changelog import SETTLING, ChangeLog
from lockstep.contracts import load
from replay import Replay, evening, morning, planned
from shop import Change, land

__all__ = ["evening", "morning", "planned"]  # fixtures

OF_ORDERS = {"orders", "customer_activity"}
PUBLISHED = "SELECT SUM(orders)::INT, SUM(revenue_cents)::INT FROM mart.orders"


def contradicting(change: Change) -> Change:
    assert change.before
    return dataclasses.replace(change, before={**change.before, "amount_cents": 1})


def cuts_of(result: operate.Run) -> dict[str, datetime]:
    assert result.failures == []
    assert {receipt["verdict"] for receipt in result.receipts} == {"passed"}
    return {receipt["domain"]: receipt["cut"] for receipt in result.receipts}


def published(home: Path) -> list[tuple[int, int]]:
    with duckdb.connect(str(home / "analytics.duckdb"), read_only=True) as reader:
        return reader.execute(PUBLISHED).fetchall()


def test_a_contradiction_is_neither_published_nor_folded(morning: Replay) -> None:
    """Without it everybody would read it until the night, which then stops the right hours with the wrong one."""
    shop, home = morning.shop, morning.home  # 1 June, 05:00
    landed = len(shop.changes)

    shop.now = datetime(2026, 6, 1, 10)
    shop.order(2)
    shop.now = datetime(2026, 6, 1, 12, 20)
    with shop.transaction():
        shop.order(3)
        shop.change(1, amount_cents=7_000)
    shop.changes[-1] = contradicting(shop.changes[-1])
    shop.now = datetime(2026, 6, 1, 12, 40)
    shop.order(4)
    shop.insert("shipments", 2)
    land(home, shop.changes[landed:])
    result = operate.run(home, datetime(2026, 6, 1, 12, 45))  # the hour is open: only publishing looks at it
    assert result.published
    assert result.published.position == ChangeLog(home).watermark().position - 1  # the hold has taken one
    assert [note.partition(":")[0] for note in result.notes] == ["Held"]
    assert ChangeLog(home).watermark().holds["orders"].position == landed + 2
    time.sleep(SETTLING.total_seconds() + 0.05)
    assert published(home) == [(2, 2_000)]

    land(home, [], reached=datetime(2026, 6, 2, 5))
    result = operate.run(home, datetime(2026, 6, 2, 5))
    assert cuts_of(result) == {
        domain: datetime(2026, 6, 1, 12) if domain in OF_ORDERS else datetime(2026, 6, 2) for domain in load()
    }
    [note] = result.notes
    assert note.startswith(f"Held: orders contradicts itself: position {landed + 3}, order_id 1, has an image before")
    assert published(home) == [(2, 2_000)]
    assert morning.query("SELECT SUM(shipments)::INT FROM mart.delivery_hourly") == [(2,)]


def test_a_damaged_file_holds_its_table_until_it_is_restored(morning: Replay) -> None:
    """Found before it is folded, it is in no hour: nothing need be restated."""
    shop, home = morning.shop, morning.home
    landed = len(shop.changes)
    shop.now = datetime(2026, 6, 1, 12, 20)
    shop.change(1, amount_cents=7_000)
    land(home, shop.changes[landed:], reached=datetime(2026, 6, 1, 15))
    path = ChangeLog(home).files("orders")[-1]
    content, file = path.read_bytes(), pq.ParquetFile(path).read()
    rows = file.to_pylist()
    rows[-1]["before"]["amount_cents"] += 1
    pq.write_table(pa.Table.from_pylist(rows, schema=file.schema), path)

    result = operate.run(home, datetime(2026, 6, 1, 15, 10))
    assert result.failures == []
    [note] = result.notes
    assert f"{path.relative_to(home)} is not as landed: restore it from a backup" in note
    assert morning.query(PUBLISHED) == published(home) == [(1, 1_000)]
    path.write_bytes(content)
    result = operate.run(home, datetime(2026, 6, 1, 15, 20))
    assert (result.failures, result.notes) == ([], [])
    assert morning.query(PUBLISHED) == published(home) == [(1, 7_000)]
    land(home, [], reached=datetime(2026, 6, 2, 5))
    assert set(cuts_of(operate.run(home, datetime(2026, 6, 2, 5))).values()) == {datetime(2026, 6, 2)}
