"""Whatever a shop does, three computations must give the figures of a fourth that shares nothing with them.

The awkward cases that the generated logs are made of: corrections of amount, region, product and order time into other
hours and days; deletes, re-inserts and key updates; ties of `updated_at` and of amounts; empty hours and days; commit
times out of order; several changes in one transaction; spellings known, unknown, with spaces and capitals; products
that change category in mid-hour, late, or are unknown; amounts at the limit of high value; order times on the hour and
at the moment a rule changes; snapshots; batches of any size, the writer restarted between them; changes sent again.

`HYPOTHESIS_EXAMPLES=200 pytest tests/test_properties.py` searches longer; with CI set the examples are always the same.
"""

from __future__ import annotations

import os
import tempfile
from dataclasses import dataclass
from datetime import date, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, note, settings
from hypothesis import strategies as st

from oracle import HOUR
from replay import Replay
from shop import Shop

MINUTE, DAY, MICROSECOND = timedelta(minutes=1), timedelta(days=1), timedelta(microseconds=1)
RULE_CHANGES_AT = datetime(2026, 6, 1)  # `done` means completed from here on, shipped before

examples = settings(
    max_examples=int(os.environ.get("HYPOTHESIS_EXAMPLES", "12")),
    deadline=None,
    derandomize="CI" in os.environ,
    database=None if "CI" in os.environ else settings.default.database,
    suppress_health_check=list(HealthCheck),
    print_blob=True,
)


@pytest.fixture
def replay(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Replay:
    """A new home, and a shop that opens on the last evening before a rule changes."""
    monkeypatch.setenv("LOCKSTEP_HOME", str(tmp_path))
    return Replay(tmp_path, Shop(datetime(2026, 5, 31, 20, 15)))


# What happens, as Hypothesis draws it. Every step is possible in every state, so that shrinking can leave out any.


@dataclass(frozen=True)
class Step:
    """Something done to the order `key`: made if it is not there, else changed, moved to another key or deleted."""

    kind: str
    key: int
    to_key: int
    columns: dict[str, Any]

    def apply(self, shop: Shop) -> None:
        if self.key not in shop.rows["orders"]:
            shop.order(self.key, op="r" if self.kind == "snapshot" else "c", **self.columns)
        elif self.kind == "delete":
            shop.delete(self.key)
        elif self.kind == "rekey" and self.to_key not in shop.rows["orders"]:
            shop.rekey(self.key, self.to_key, **self.columns)
        else:
            shop.change(self.key, op="r" if self.kind == "snapshot" else "u", **self.columns)


@dataclass(frozen=True)
class Product:
    """A product appears, changes its category, or goes; as of now, or as of another time that the source gives."""

    product_id: int
    category: str | None
    updated_at: datetime | None

    def apply(self, shop: Shop) -> None:
        if self.category:
            shop.product(self.product_id, self.category, updated_at=self.updated_at or shop.now)
        elif self.product_id in shop.rows["products"]:
            shop.delete(self.product_id, "products")


@dataclass(frozen=True)
class Transaction:
    """Steps that commit together, `after` the time of the transaction before; backwards if that is negative."""

    after: timedelta
    steps: list[Step | Product]

    def apply(self, shop: Shop) -> None:
        shop.now += self.after
        with shop.transaction():
            for step in self.steps:
                step.apply(shop)


@dataclass(frozen=True)
class Part:
    """What happens and lands before a run.

    `again` changes of an earlier batch are sent again with each if the log comes from Debezium. `quiet` is how far the
    source's clock goes on afterwards; the run is `run_after` that, which may be before it.
    """

    transactions: list[Transaction]
    batch_sizes: list[int]
    again: int
    quiet: timedelta
    run_after: timedelta


clock = st.sampled_from(
    [0 * HOUR, MINUTE, 20 * MINUTE, 45 * MINUTE, HOUR, 5 * HOUR, DAY, 2 * DAY + 7 * MINUTE, -MINUTE, -90 * MINUTE]
)
moments = st.sampled_from(
    [
        RULE_CHANGES_AT,
        RULE_CHANGES_AT - MICROSECOND,
        RULE_CHANGES_AT + 9 * HOUR,
        RULE_CHANGES_AT + 10 * HOUR - MICROSECOND,
        RULE_CHANGES_AT - 30 * DAY,
        RULE_CHANGES_AT + 400 * DAY,
    ]
)
statuses = st.sampled_from(["new", "paid", "done", " DONE ", "Complete", "cancel", "Cancelled", "\tpaid", "", "lost?"])
columns = st.fixed_dictionaries(
    {},
    optional={
        "customer_id": st.integers(1, 3),
        "product_id": st.integers(1, 3),
        "region": st.sampled_from(["north", "South", "sörmland"]),
        "quantity": st.integers(0, 3),
        "amount_cents": st.sampled_from([0, 1, 99_999, 100_000, 100_001, 100_001, 10**13]),
        "status": statuses,
        "ordered_at": moments,
        "updated_at": st.just(RULE_CHANGES_AT),
    },
)
keys = st.integers(1, 5)
steps = st.builds(Step, st.sampled_from(["change", "delete", "rekey", "snapshot"]), keys, keys, columns)
products = st.builds(
    Product,
    st.integers(1, 2),
    st.sampled_from(["books", "toys", "tools", None]),
    st.none() | moments,
)
transactions = st.builds(Transaction, clock, st.lists(st.one_of(steps, steps, steps, products), min_size=1, max_size=5))
parts = st.builds(
    Part,
    st.lists(transactions, max_size=10),
    st.lists(st.integers(1, 8), max_size=4),
    st.integers(0, 9),
    st.sampled_from([0 * HOUR, HOUR, 14 * HOUR, 3 * DAY]),
    st.sampled_from([-30 * HOUR, -2 * HOUR, 0 * HOUR, 5 * HOUR, DAY]),
)


@examples
@given(
    start=st.sampled_from([20 * HOUR, 23 * HOUR + 59 * MINUTE, 24 * HOUR]),
    parts=st.lists(parts, min_size=2, max_size=3),
    from_debezium=st.booleans(),
)
def test_every_figure_is_the_oracles(start: timedelta, parts: list[Part], from_debezium: bool) -> None:
    """Without it the paths could agree on a wrong figure, or agree on the tame logs only that somebody thought of."""
    with tempfile.TemporaryDirectory() as home, pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setenv("LOCKSTEP_HOME", home)
        shop = Shop(datetime(2026, 5, 31) + start)
        replay = Replay(Path(home), shop)
        shop.order(1)  # a log has at least one change
        at = shop.now
        for part in parts:
            for transaction in part.transactions:
                transaction.apply(shop)
            latest = max(c.committed_at for c in shop.changes)
            note("\n".join(map(str, shop.changes[len(replay.landed) :])))
            replay.land(
                sizes=part.batch_sizes, again=part.again if from_debezium else None, reached=latest + part.quiet
            )
            at = max(at, latest + part.quiet + part.run_after)
            note(f"run at {at}")
            replay.run(at)
        replay.run_next_day()
        assert len(replay.cuts) >= 2


# The classic awkward cases, one situation each. Beside the oracle they state the figure, so that it is checked as well.


def sold(replay: Replay, by: str) -> list[tuple[Any, ...]]:
    """Orders and cents by a column of the daily mart."""
    return replay.query(f"SELECT {by}, SUM(orders), SUM(revenue_cents) FROM mart.orders_daily GROUP BY 1 ORDER BY 1")


def test_correction_into_another_day(replay: Replay) -> None:
    """Without it a correction of the order time could leave the order counted on both days, or on none."""
    replay.shop.order(1)
    replay.land()
    replay.run_next_day()
    replay.shop.change(1, ordered_at=replay.shop.now - 3 * DAY)
    replay.run_next_day()
    assert sold(replay, "ordered_date") == [(date(2026, 5, 29), 1, 1_000)]


def test_delete_and_reinsert_of_a_key(replay: Replay) -> None:
    """Without it a key that comes back could bring its old figures with it."""
    replay.shop.order(1, amount_cents=7_000)
    replay.land()
    replay.run_next_day()
    with replay.shop.transaction():
        replay.shop.delete(1)
        replay.shop.order(1, amount_cents=300, region="south")
    replay.run_next_day()
    assert sold(replay, "region") == [("south", 1, 300)]


def test_keys_that_change_places(replay: Replay) -> None:
    """Without it an update of the key could be taken for a change of the order that had the key before."""
    replay.shop.order(1, amount_cents=100, region="north")
    replay.shop.order(2, amount_cents=200, region="south")
    replay.land()
    replay.run_next_day()
    with replay.shop.transaction():
        replay.shop.rekey(1, 3)
        replay.shop.rekey(2, 1)
        replay.shop.rekey(3, 2)
    replay.run_next_day()
    replay.shop.delete(1)
    replay.run_next_day()
    assert sold(replay, "region") == [("north", 1, 100)]


def test_ties_of_the_update_time(replay: Replay) -> None:
    """Without it the rebuild could choose among images of the same time by anything but the log's order."""
    replay.shop.order(1, status="new")
    for status in ("paid", "shipped", "cancelled", "paid"):
        replay.shop.change(1, status=status, updated_at=RULE_CHANGES_AT)
    replay.land()
    replay.run_next_day()
    assert sold(replay, "status") == [("paid", 1, 1_000)]


def test_commit_times_out_of_order_across_an_hour_and_a_day(replay: Replay) -> None:
    """Without it a change committed late could fall into an hour, or a day, that is closed already."""
    replay.shop.order(1)
    replay.land(reached=datetime(2026, 6, 1, 0, 10))
    replay.run(datetime(2026, 6, 1, 5))
    assert replay.cuts == [datetime(2026, 6, 1)]
    replay.shop.now = datetime(2026, 5, 31, 23, 50)
    replay.shop.change(1, amount_cents=5_000)
    replay.land()
    replay.run_next_day()
    assert sold(replay, "status") == [("created", 1, 5_000)]


def test_change_at_the_very_instant_of_a_cut(replay: Replay) -> None:
    """Without it a change at midnight could belong to both days, or to neither."""
    replay.shop.order(1)
    replay.shop.now = datetime(2026, 6, 1) - MICROSECOND
    replay.shop.change(1, amount_cents=2_000)
    replay.shop.now = datetime(2026, 6, 1)
    replay.shop.change(1, amount_cents=3_000)
    replay.land(reached=datetime(2026, 6, 1, 4))
    replay.run(datetime(2026, 6, 1, 5))
    assert replay.query("SELECT revenue_cents FROM rebuild.orders") == [(2_000,)]
    assert sold(replay, "status") == [("created", 1, 3_000)]
    replay.run_next_day()


def test_days_without_changes(replay: Replay) -> None:
    """Without it an hour or a day in which nothing happened could stop the ones after it."""
    replay.shop.order(1)
    replay.land()
    for _ in range(3):
        replay.run_next_day()
    replay.shop.delete(1)
    replay.run_next_day()
    assert sold(replay, "status") == []
    assert len(replay.cuts) == 4


def test_category_changes_in_the_middle_of_an_hour(replay: Replay) -> None:
    """Without it the orders of one hour could be split over categories by the minute at which they were placed."""
    replay.shop.now = datetime(2026, 5, 31, 21, 0)
    replay.shop.product(1, "books")
    replay.shop.now = datetime(2026, 5, 31, 21, 30)
    replay.shop.product(1, "toys")
    replay.shop.now = datetime(2026, 5, 31, 21, 45)
    replay.shop.order(1, ordered_at=replay.shop.now)
    replay.shop.order(2, ordered_at=datetime(2026, 5, 31, 22, 10))
    replay.shop.order(3, ordered_at=datetime(2026, 5, 31, 23, 59))
    replay.shop.now = datetime(2026, 5, 31, 23, 0)
    replay.shop.product(1, "tools")  # on the hour: holds for that hour already
    replay.land()
    replay.run_next_day()
    assert sold(replay, "category") == [("books", 1, 1_000), ("tools", 1, 1_000), ("toys", 1, 1_000)]


def test_product_that_becomes_known_after_its_orders(replay: Replay) -> None:
    """Without it a late dimension could change increments, or orders of an unknown product be lost by the join."""
    replay.shop.order(1, product_id=7)
    replay.land()
    replay.run_next_day()
    assert sold(replay, "category") == [("unknown", 1, 1_000)]
    replay.shop.product(7, "tools")
    replay.run_next_day()
    assert sold(replay, "category") == [("tools", 1, 1_000)]


def test_amounts_at_the_limit_of_high_value(replay: Replay) -> None:
    """Without it `over 1 000.00` could come to mean `1 000.00 and over` in one path, or in both."""
    replay.shop.order(1, amount_cents=100_000)
    replay.shop.order(2, amount_cents=100_001)
    replay.land()
    replay.run_next_day()
    assert replay.query("SELECT SUM(high_value_orders) FROM mart.orders_hourly") == [(1,)]


def test_status_by_the_rule_of_the_orders_time(replay: Replay) -> None:
    """Without it a rule that begins today could give yesterday's orders another status."""
    replay.shop.order(1, status=" DONE ", ordered_at=RULE_CHANGES_AT - MICROSECOND)
    replay.shop.order(2, status="Done", ordered_at=RULE_CHANGES_AT)
    replay.shop.order(3, status="dun")
    replay.land()
    replay.run_next_day()
    assert sold(replay, "status") == [("completed", 1, 1_000), ("shipped", 1, 1_000), ("unknown", 1, 1_000)]
    replay.shop.change(1, ordered_at=RULE_CHANGES_AT)
    replay.run_next_day()
    assert sold(replay, "status") == [("completed", 2, 2_000), ("unknown", 1, 1_000)]


def test_snapshot_of_which_everything_is_deleted(replay: Replay) -> None:
    """Without it an empty generation could be taken for none, and the day before be served for ever."""
    replay.shop.order(1, op="r")
    replay.shop.order(2, op="r", region="south")
    replay.land()
    replay.run_next_day()
    replay.shop.delete(1)
    replay.shop.delete(2)
    replay.run_next_day()
    assert replay.query("SELECT * FROM mart.orders_hourly") == []
    replay.run_next_day()
    replay.shop.order(1)
    replay.run_next_day()
    assert sold(replay, "region") == [("north", 1, 1_000)]


def test_first_run_in_the_logs_first_hour(replay: Replay) -> None:
    """Without it a home could not be used before its first hour is over, nor continue from there."""
    replay.shop.order(1)
    replay.land()
    replay.run(datetime(2026, 5, 31, 20, 30))
    assert sold(replay, "status") == [("created", 1, 1_000)]
    replay.run_next_day()


def test_everything_sent_again(replay: Replay) -> None:
    """Without it a source that begins again after a crash would have its changes counted twice."""
    replay.shop.order(1)
    replay.shop.change(1, status="paid")
    replay.land(again=0)
    replay.run_next_day()
    replay.shop.rekey(1, 2)
    replay.land(again=100, sizes=[1])
    replay.run_next_day()
    assert sold(replay, "status") == [("paid", 1, 1_000)]
