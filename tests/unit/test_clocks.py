"""A commit time ahead of the landing machine's clock is kept, named, and moves nothing."""

from __future__ import annotations

from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from lockstep.changelog import KEEP_ALIVE, ChangeLog
from lockstep.clock import AHEAD, machine_now
from lockstep.errors import LockstepError
from shop import SOURCE, Shop, batch_of, deliver

NOON = datetime(2026, 11, 18, 12)
FAR = datetime(2099, 1, 1)
HOUR = timedelta(hours=1)


def land(home: Path, shop: Shop, now: datetime, *, reached: datetime | None = None) -> ChangeLog:
    """Land what the shop has done since the last landing, on a machine whose clock shows `now`."""
    log = ChangeLog(home)
    done = log.watermark().position if log.exists() else 0
    with log.writer(SOURCE, clock=lambda: now) as writer:
        writer.land(batch_of(shop.changes[done:]), reached=reached)
    return log


def orders(log: ChangeLog) -> list[dict[str, Any]]:
    return [row for path in log.files("orders") for row in pq.read_table(path, partitioning=None).to_pylist()]


def test_one_event_from_2099_moves_nothing(tmp_path: Path) -> None:
    shop = Shop(NOON)
    shop.order(1)
    shop.now = FAR
    shop.order(2)
    shop.now = NOON + HOUR
    shop.order(3)
    log = land(tmp_path, shop, NOON + HOUR)
    assert [row["committed_at"] for row in orders(log)] == [NOON, FAR, NOON + HOUR]
    assert [row["logged_at"] for row in orders(log)] == [NOON, NOON, NOON + HOUR]
    assert log.watermark().logged_at == NOON + HOUR
    [(table, ahead)] = log.watermark().ahead.items()
    assert (table, ahead.position, ahead.committed_at, ahead.landed_at, ahead.events) == (
        "orders",
        2,
        FAR,
        NOON + HOUR,
        1,
    )


def test_the_latest_landing_with_such_a_time_is_remembered(tmp_path: Path) -> None:
    shop = Shop(FAR)
    shop.order(1)
    shop.order(2)
    land(tmp_path, shop, NOON)
    shop.product(1, "toys")
    land(tmp_path, shop, NOON)
    shop.order(3)
    shop.now = NOON
    shop.order(4)
    log = land(tmp_path, shop, NOON + HOUR)
    log = land(tmp_path, shop, NOON + 2 * HOUR)
    found = {table: (a.position, a.events, a.landed_at) for table, a in log.watermark().ahead.items()}
    assert found == {"orders": (4, 1, NOON + HOUR), "products": (3, 1, NOON)}


@pytest.mark.parametrize(("beyond", "moves"), [(timedelta(0), True), (timedelta(microseconds=1), False)])
def test_the_bound_is_five_minutes(tmp_path: Path, beyond: timedelta, moves: bool) -> None:
    shop = Shop(NOON)
    shop.order(1)
    shop.now = NOON + timedelta(minutes=5) + beyond
    shop.order(2)
    log = land(tmp_path, shop, NOON)
    assert timedelta(minutes=5) == AHEAD
    assert log.watermark().logged_at == (shop.now if moves else NOON)


def test_a_log_that_opens_with_such_a_time_begins_with_the_first_that_counts(tmp_path: Path) -> None:
    shop = Shop(FAR)
    shop.order(1)
    shop.now = NOON
    shop.order(2)
    log = land(tmp_path, shop, NOON)
    assert [row["logged_at"] for row in orders(log)] == [NOON, NOON]
    assert log.watermark().started_at == NOON


def test_a_log_of_nothing_else_takes_the_machines_time(tmp_path: Path) -> None:
    shop = Shop(FAR)
    shop.order(1)
    log = land(tmp_path, shop, NOON)
    assert (log.watermark().logged_at, log.watermark().started_at) == (NOON, NOON)


@pytest.mark.parametrize("at", [datetime(1, 1, 1), datetime(1969, 12, 31), datetime(1970, 1, 1), datetime(2000, 1, 1)])
def test_a_log_does_not_begin_with_the_zero_of_a_clock(tmp_path: Path, at: datetime) -> None:
    """It would be as many hours long as have passed since, and a run would look at each of them."""
    shop = Shop(at)
    shop.order(1)
    shop.order(2)
    shop.now = NOON
    shop.order(3)
    log = land(tmp_path, shop, NOON)
    assert [row["committed_at"] for row in orders(log)] == [at, at, NOON]
    assert [row["logged_at"] for row in orders(log)] == [NOON, NOON, NOON]
    assert (log.watermark().started_at, log.watermark().ahead) == (NOON, {})


def test_a_history_of_long_ago_keeps_its_times(tmp_path: Path) -> None:
    shop = Shop(datetime(2000, 1, 1, 0, 0, 1))
    shop.order(1)
    assert land(tmp_path, shop, NOON).watermark().started_at == shop.now


def test_a_keep_alive_obeys_it_too(tmp_path: Path) -> None:
    shop = Shop(NOON)
    shop.order(1)
    land(tmp_path, shop, NOON)
    log = land(tmp_path, shop, NOON + HOUR, reached=FAR)
    assert log.watermark().logged_at == NOON
    assert (log.watermark().ahead[KEEP_ALIVE].position, log.watermark().ahead[KEEP_ALIVE].committed_at) == (1, FAR)
    assert land(tmp_path, shop, NOON + HOUR, reached=NOON + HOUR).watermark().logged_at == NOON + HOUR


def test_a_clock_that_was_set_back_moves_nothing_back(tmp_path: Path) -> None:
    shop = Shop(NOON)
    shop.order(1)
    land(tmp_path, shop, NOON)
    shop.now = NOON + HOUR
    shop.order(2)
    log = land(tmp_path, shop, NOON - 24 * HOUR)
    assert [row["logged_at"] for row in orders(log)] == [NOON, NOON]
    log = land(tmp_path, shop, NOON + 2 * HOUR, reached=NOON + 2 * HOUR)
    assert log.watermark().logged_at == NOON + 2 * HOUR


def test_ingest_obeys_it(tmp_path: Path) -> None:
    shop = Shop(NOON)
    shop.order(1)
    shop.now = FAR
    shop.order(2)
    deliver(tmp_path, shop.changes)
    watermark = ChangeLog(tmp_path).watermark()
    assert (watermark.position, watermark.logged_at, watermark.ahead["orders"].position) == (2, NOON, 2)


def test_the_machines_clock_can_be_set_forward_only(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOCKSTEP_CLOCK", "2199-01-01T00:00:00+01:00")
    assert machine_now() == datetime(2198, 12, 31, 23)
    monkeypatch.setenv("LOCKSTEP_CLOCK", "1999-01-01")
    assert machine_now() > datetime(2025, 1, 1)
    monkeypatch.setenv("LOCKSTEP_CLOCK", "noon")
    with pytest.raises(LockstepError, match="LOCKSTEP_CLOCK is 'noon', not a time"):
        machine_now()
