"""The disk is full at one write or another of a landing: one sentence, and the same command lands everything later."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path

import duckdb
import pytest

import full_disk
from lockstep.changelog import ChangeLog
from shop import Shop, debezium_lines, land

ORDERS = 3_000


@pytest.mark.parametrize("free_kb", [0, 8, 20, 36])
def test_landing_on_a_full_disk(tmp_path: Path, free_kb: int) -> None:
    shop = Shop(datetime(2026, 11, 18, 9))
    shop.order(0)
    land(tmp_path / "before", shop.changes)
    for key in range(1, ORDERS):
        shop.order(key, amount_cents=key * 7919 % 100_003)
    events = tmp_path / "events.jsonl"
    events.write_text("".join(f"{line}\n" for change in shop.changes for line in debezium_lines(change)))

    outcome = full_disk.run(tmp_path, tmp_path / "before", ["ingest", str(events)], free_kb)

    [sentence] = [line for line in outcome.said.splitlines() if line.startswith("Error: ")]
    assert "full" in sentence
    log = ChangeLog(outcome.home)
    assert log.watermark().position == ORDERS
    files = f"read_parquet('{log.root}/orders/hour=*/*.parquet', hive_partitioning = false)"
    [row] = duckdb.sql(f"SELECT COUNT(*), COUNT(DISTINCT position), SUM(after.amount_cents) FROM {files}").fetchall()
    assert row == (ORDERS, ORDERS, sum(order["amount_cents"] for order in shop.rows["orders"].values()))
