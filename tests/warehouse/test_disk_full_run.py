"""The disk is full while the models run or a file is published: the message says so, and the next command goes on."""

from __future__ import annotations

import shutil
from datetime import timedelta
from pathlib import Path

import duckdb
import pytest

import full_disk
from company import UNTIL, two_days
from lockstep import warehouse
from lockstep.changelog import ChangeLog
from shop import Shop, land

__all__ = ["two_days"]  # a fixture


def recounted(home: Path) -> list[tuple[int, int]]:
    """The orders that live and their amounts, counted in the files of the log."""
    files = f"read_parquet('{ChangeLog(home).root}/orders/hour=*/*.parquet', hive_partitioning = false)"
    last = "ROW_NUMBER() OVER (PARTITION BY COALESCE(after.order_id, before.order_id) ORDER BY position DESC) = 1"
    return duckdb.sql(f"SELECT COUNT(after), SUM(after.amount_cents) FROM (FROM {files} QUALIFY {last})").fetchall()


def with_another_day(two_days: Path, home: Path) -> Path:
    shutil.copytree(two_days, home, symlinks=True)
    shop = Shop(UNTIL)
    for key in range(1_000_000, 1_000_100):
        shop.order(key)
    land(home, shop.changes, reached=UNTIL + timedelta(days=1))
    return home


@pytest.mark.long
def test_running_on_a_full_disk(two_days: Path, tmp_path: Path) -> None:
    outcome = full_disk.run(tmp_path, with_another_day(two_days, tmp_path / "before"), ["run"], free_kb=400)
    assert "No space left on device" in outcome.said or "disk is full" in outcome.said
    with warehouse.reader(outcome.home) as connection:
        served = connection.execute("SELECT SUM(orders), SUM(revenue_cents) FROM live.orders").fetchall()
        verdicts = connection.execute("SELECT DISTINCT verdict FROM reconcile.receipts").fetchall()
    assert served == recounted(outcome.home)
    assert verdicts == [("passed",)]


def test_publishing_on_a_full_disk(two_days: Path, tmp_path: Path) -> None:
    outcome = full_disk.run(tmp_path, with_another_day(two_days, tmp_path / "before"), ["publish"], free_kb=100)
    [sentence] = outcome.said.splitlines()
    assert sentence.startswith("Error: ")
    assert "full" in sentence
    with duckdb.connect(outcome.home / "analytics.duckdb", read_only=True) as published:
        served = published.execute("SELECT SUM(orders), SUM(revenue_cents) FROM mart.orders_daily").fetchall()
    assert served == recounted(outcome.home)
    assert list((outcome.home / "published").glob("*partial*")) == []
