"""The classic awkward cases, one situation each, whose figures are stated and compared with the oracle's as well.

The cases that orders are made of share one home: each has keys and a region of its own, and every run computes, and
compares with the oracle, what all of them did that day. A case is a generator: it does something to the shop, yields
while a day passes, and asserts.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from datetime import date, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from replay import Replay, evening, planned
from shop import Shop

__all__ = ["evening", "planned"]  # fixtures

HOUR, MINUTE, DAY, MICROSECOND = timedelta(hours=1), timedelta(minutes=1), timedelta(days=1), timedelta(microseconds=1)
RULE_CHANGES_AT = datetime(2026, 6, 1)  # `done` means completed from here on, shipped before


class Part:
    """A case's part of the shop: keys from `base` on, and orders of its own region."""

    def __init__(self, replay: Replay, region: str, base: int) -> None:
        self.shop = replay.shop
        self.base = base
        self.region = region
        self._replay = replay

    def order(self, key: int, **columns: Any) -> None:
        self.shop.order(self.base + key, **({"region": self.region} | columns))

    def change(self, key: int, **columns: Any) -> None:
        self.shop.change(self.base + key, **columns)

    def delete(self, key: int) -> None:
        self.shop.delete(self.base + key)

    def rekey(self, key: int, new_key: int) -> None:
        self.shop.rekey(self.base + key, self.base + new_key)

    def product(self, category: str, **columns: Any) -> None:
        self.shop.product(self.base, category, **columns)

    def query(self, query: str) -> list[tuple[Any, ...]]:
        """Rows of a query that names the region's rows with `{own}`."""
        return self._replay.query(query.format(own=f"STARTS_WITH(region, '{self.region}')"))

    def sold(self, by: str) -> list[tuple[Any, ...]]:
        """Orders and cents by a column of the daily mart."""
        return self.query(
            f"SELECT {by}, SUM(orders), SUM(revenue_cents) FROM mart.orders_daily WHERE {{own}} GROUP BY 1 ORDER BY 1"
        )


Case = Callable[[Part], Iterator[None]]
CASES: list[Case] = []


def case(case: Case) -> Case:
    CASES.append(case)
    return case


@case
def correction_into_another_day(part: Part) -> Iterator[None]:
    """Without it a correction of the order time could leave the order counted on both days, or on none."""
    part.order(1)
    yield
    part.change(1, ordered_at=part.shop.now - 3 * DAY)
    yield
    assert part.sold("ordered_date") == [(date(2026, 5, 29), 1, 1_000)]


@case
def delete_and_reinsert_of_a_key(part: Part) -> Iterator[None]:
    """Without it a key that comes back could bring its old figures with it."""
    part.order(1, amount_cents=7_000)
    yield
    with part.shop.transaction():
        part.delete(1)
        part.order(1, amount_cents=300, region=f"{part.region} south")
    yield
    assert part.sold("region") == [(f"{part.region} south", 1, 300)]


@case
def keys_that_change_places(part: Part) -> Iterator[None]:
    """Without it an update of the key could be taken for a change of the order that had the key before."""
    part.order(1, amount_cents=100, region=f"{part.region} north")
    part.order(2, amount_cents=200, region=f"{part.region} south")
    yield
    with part.shop.transaction():
        part.rekey(1, 3)
        part.rekey(2, 1)
        part.rekey(3, 2)
    yield
    part.delete(1)
    yield
    assert part.sold("region") == [(f"{part.region} north", 1, 100)]


@case
def ties_of_the_update_time(part: Part) -> Iterator[None]:
    """Without it the rebuild could choose among images of the same time by anything but the log's order."""
    part.order(1, status="new")
    for status in ("paid", "shipped", "cancelled", "paid"):
        part.change(1, status=status, updated_at=RULE_CHANGES_AT)
    yield
    assert part.sold("status") == [("paid", 1, 1_000)]


@case
def commit_time_before_an_hour_and_a_day_that_are_closed(part: Part) -> Iterator[None]:
    """Without it a change committed late could fall into an hour, or a day, that is closed already."""
    part.order(1)
    yield
    part.shop.now = datetime(2026, 5, 31, 23, 50)
    part.change(1, amount_cents=5_000)
    yield
    assert part.sold("status") == [("created", 1, 5_000)]


@case
def category_changes_in_the_middle_of_an_hour(part: Part) -> Iterator[None]:
    """Without it the orders of one hour could be split over categories by the minute at which they were placed."""
    part.shop.now = datetime(2026, 5, 31, 21, 0)
    part.product("books")
    part.shop.now = datetime(2026, 5, 31, 21, 30)
    part.product("toys")
    part.shop.now = datetime(2026, 5, 31, 21, 45)
    part.order(1, product_id=part.base, ordered_at=part.shop.now)
    part.order(2, product_id=part.base, ordered_at=datetime(2026, 5, 31, 22, 10))
    part.order(3, product_id=part.base, ordered_at=datetime(2026, 5, 31, 23, 59))
    part.shop.now = datetime(2026, 5, 31, 23, 0)
    part.product("tools")  # on the hour: holds for that hour already
    yield
    assert part.sold("category") == [("books", 1, 1_000), ("tools", 1, 1_000), ("toys", 1, 1_000)]


@case
def product_that_becomes_known_after_its_orders(part: Part) -> Iterator[None]:
    """Without it a late dimension could change increments, or orders of an unknown product be lost by the join."""
    part.order(1, product_id=part.base)
    yield
    assert part.sold("category") == [("unknown", 1, 1_000)]
    part.product("tools")
    yield
    assert part.sold("category") == [("tools", 1, 1_000)]


@case
def amounts_at_the_limit_of_high_value(part: Part) -> Iterator[None]:
    """Without it `over 1 000.00` could come to mean `1 000.00 and over` in one path, or in both."""
    part.order(1, amount_cents=100_000)
    part.order(2, amount_cents=100_001)
    yield
    assert part.query("SELECT SUM(high_value_orders) FROM mart.orders_hourly WHERE {own}") == [(1,)]


@case
def status_by_the_rule_of_the_orders_time(part: Part) -> Iterator[None]:
    """Without it a rule that begins today could give yesterday's orders another status."""
    part.order(1, status=" DONE ", ordered_at=RULE_CHANGES_AT - MICROSECOND)
    part.order(2, status="Done", ordered_at=RULE_CHANGES_AT)
    part.order(3, status="dun")
    yield
    assert part.sold("status") == [("completed", 1, 1_000), ("shipped", 1, 1_000), ("unknown", 1, 1_000)]
    part.change(1, ordered_at=RULE_CHANGES_AT)
    yield
    assert part.sold("status") == [("completed", 2, 2_000), ("unknown", 1, 1_000)]


@case
def change_at_the_very_instant_of_a_cut(part: Part) -> Iterator[None]:
    """Without it a change at midnight could belong to both days, or to neither.

    It comes last: from here on the log is past midnight.
    """
    part.order(1)
    part.shop.now = datetime(2026, 6, 1) - MICROSECOND
    part.change(1, amount_cents=2_000)
    part.shop.now = datetime(2026, 6, 1)
    part.change(1, amount_cents=3_000)
    yield
    assert part.query("SELECT revenue_cents FROM rebuild.orders WHERE {own}") == [(2_000,)]
    assert part.sold("status") == [("created", 1, 3_000)]
    yield
    assert part.query("SELECT revenue_cents FROM rebuild.orders WHERE {own}") == [(3_000,)]


@pytest.fixture(scope="module")
def outcomes(
    planned: Callable[[datetime, Path], Replay], tmp_path_factory: pytest.TempPathFactory
) -> dict[str, BaseException | None]:
    """What became of each case, after all of them went through the same days in the same home."""
    home = tmp_path_factory.mktemp("awkward")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LOCKSTEP_HOME", str(home))
        replay = planned(datetime(2026, 5, 31, 20), home)
        open_cases = {c.__name__: c(Part(replay, c.__name__, 1_000 * n)) for n, c in enumerate(CASES, start=1)}
        ended: dict[str, BaseException | None] = {}
        while True:
            morning, latest = replay.shop.now, replay.shop.now
            for name, steps in list(open_cases.items()):
                replay.shop.now = morning
                try:
                    next(steps)
                except StopIteration:
                    ended[name] = None
                except Exception as e:
                    ended[name] = e
                latest = max(latest, replay.shop.now)
                if name in ended:
                    del open_cases[name]
            if not open_cases:
                return ended
            replay.shop.now = latest
            replay.run_next_day()


@pytest.mark.parametrize("name", [c.__name__ for c in CASES])
def test_among_others(outcomes: dict[str, BaseException | None], name: str) -> None:
    error = outcomes[name]
    if error:
        raise error


# Cases that need a log of their own: because nothing else may happen in it, or by the way in which it is fed.


def test_days_without_changes_and_a_log_of_which_everything_is_deleted(evening: Replay) -> None:
    """Hours and days in which nothing happened must not stop the ones after them.

    An empty generation must not be taken for none: the day before would be served for ever. Nor must a run after a
    midnight that the log has not reached compute what another run will not compute again.
    """
    shop = evening.shop
    shop.order(1, op="r")
    shop.order(2, op="r", region="south")
    evening.land()
    evening.run(datetime(2026, 6, 1, 2))
    for _ in range(3):
        evening.run_next_day()
    assert len(evening.cuts) == 1 + 3
    shop.delete(1)
    shop.delete(2)
    evening.run_next_day()
    assert evening.query("SELECT * FROM mart.orders_hourly") == []
    evening.run_next_day()
    shop.order(1)
    evening.run_next_day()
    assert evening.query("SELECT region, orders::INT, revenue_cents::INT FROM mart.orders_daily") == [
        ("north", 1, 1_000)
    ]


def test_first_run_in_the_logs_first_hour(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without it a home could not be used before its first hour is over, nor continue from there."""
    monkeypatch.setenv("LOCKSTEP_HOME", str(tmp_path))
    replay = Replay(tmp_path, Shop(datetime(2026, 5, 31, 20, 15)))
    replay.shop.order(1)
    replay.land()
    replay.run(datetime(2026, 5, 31, 20, 30))
    serving = "SELECT served_from, reason LIKE 'the live receipt of % passed' FROM ops.serving WHERE domain = 'orders'"
    assert replay.query(serving) == [("live", True)]  # by what can be compared before an hour is over
    replay.shop.now = datetime(2026, 5, 31, 21, 5)
    replay.shop.order(2)
    replay.land()
    replay.run(datetime(2026, 5, 31, 21, 30))
    assert replay.query("SELECT status, orders::INT FROM mart.orders_daily") == [("created", 2)]
    replay.run_next_day()


def test_deliveries_known_in_any_order_and_everything_sent_again(evening: Replay) -> None:
    """A route, stop or parcel must not be counted only where what it names was known before it.

    Nor must changes be counted twice that a source sends again after a crash.
    """
    shop = evening.shop
    shop.ping(9)  # routes are live only where positions are
    shop.order(1)
    shop.change(1, status="paid")
    shop.insert("route_stops", (1, 1), planned_arrival_at=shop.now)
    shop.insert("route_stops", (1, 2), shipment_id=2, planned_arrival_at=shop.now + 60 * DAY)
    shop.insert("shipments", 1, route_id=1, status="out_for_delivery", window_to_at=shop.now + MINUTE)
    shop.insert("shipments", 2, route_id=1, status="out_for_delivery", window_to_at=shop.now + 61 * DAY)
    evening.land(again=0)
    evening.run_next_day()
    stands = (
        "SELECT route_id, driver_id, stops_planned, stops_done, parcels_on_board, capacity_parcels, is_at_risk FROM "
    )
    assert evening.query(f"{stands} mart.routes") == [(1, None, 2, 0, 2, None, True)]  # its first window is over

    shop.rekey(1, 2)
    with shop.transaction():
        shop.insert("routes", 1)
        shop.insert("drivers", 1, capacity_parcels=2)
        shop.update("route_stops", (1, 1), completed_at=shop.now)
        shop.update("shipments", 1, status="delivered", delivered_at=shop.now)
    evening.land(again=100, sizes=[1])
    assert evening.query(f"{stands} mart.routes") == [(1, 1, 2, 1, 1, 2, False)]
    shop.update("drivers", 1, capacity_parcels=1)
    shop.rekey((1, 2), (2, 1), "route_stops")
    shop.update("shipments", 1, route_id=2, status="out_for_delivery")
    shop.update("shipments", 2, route_id=None)
    shop.insert("shipments", 3, route_id=2, status="out_for_delivery")
    evening.land(again=2)
    evening.run_next_day()
    assert evening.query(f"{stands} mart.routes ORDER BY 1") == [
        (1, 1, 1, 1, 0, 1, False),
        (2, None, 1, 0, 2, None, False),
    ]
    assert evening.query("SELECT status, orders::INT, revenue_cents::INT FROM mart.orders_daily") == [
        ("paid", 1, 1_000)
    ]


def test_late_pings_beyond_the_tolerance(evening: Replay) -> None:
    """Without it a failed domain could pull down others, stay live, or never come back."""
    shop = evening.shop
    shop.insert("drivers", 1)
    shop.insert("routes", 1)
    shop.insert("shipments", 1)
    shop.insert("route_stops", (1, 1))
    shop.order(1)
    shop.ping(1)
    shop.ping(2, op="r", recorded_at=shop.now - 30 * MINUTE)
    evening.land(again=0)
    evening.run_next_day()
    shop.ping(1, latitude=58.0, recorded_at=shop.now - 3 * MINUTE - MICROSECOND)
    shop.ping(2, latitude=61.0, recorded_at=shop.now + 400 * DAY)
    shop.rekey((1, 1), (1, 2), "route_stops")
    evening.run_next_day()
    assert not_live(evening) == {"vehicle_positions", "route_performance"}
    shop.ping(1)
    shop.ping(2, latitude=60.9)
    evening.land(again=3)
    evening.run(shop.now + 2 * HOUR)  # the same day: the receipt is tried once more, at the same cut
    evening.run_next_day()
    assert not_live(evening) == {"vehicle_positions", "route_performance"}  # one of two cuts has passed
    evening.run_next_day()
    assert not_live(evening) == set()
    assert [r["verdict"] for r in evening.receipts["vehicle_positions"]][2:] == ["failed", "failed", "passed", "passed"]


def not_live(replay: Replay) -> set[str]:
    """The domains in live mode that are served from the rebuild."""
    return {d for d, served in replay.served().items() if served.served_from != "live"} - {"customer_activity"}
