"""Whatever a shop does, three computations must give the figures of a fourth that shares nothing with them.

The awkward cases that the generated logs are made of: corrections of amount, region, product and order time into other
hours and days; deletes, re-inserts and key updates; ties of `updated_at` and of amounts; empty hours and days; commit
times out of order; several changes in one transaction; spellings known, unknown, with spaces and capitals; products that
change category in mid-hour, late, or are unknown; amounts at the limit of high value; order times on the hour and at
the moment a rule changes; snapshots; batches of any size with a restart of the writer between them.

`HYPOTHESIS_EXAMPLES=200 pytest tests/test_properties.py` searches longer; with CI set the examples are always the same.
"""

from __future__ import annotations

import os
import tempfile
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, note, settings
from hypothesis import strategies as st

from oracle import HOUR
from replay import Replay, midnight
from shop import Shop

MINUTE, DAY, MICROSECOND = timedelta(minutes=1), timedelta(days=1), timedelta(microseconds=1)
RULE_CHANGES_AT = datetime(2026, 6, 1)  # `done` means completed from here on, shipped before

thorough = settings(
    max_examples=int(os.environ.get("HYPOTHESIS_EXAMPLES", "20")),
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


# what happens, as Hypothesis draws it: every step is possible in every state, so that any part can be left out when shrinking


@dataclass(frozen=True)
class Step:
    """Something done to the order `key`: made if it is not there, else changed, moved to another key or deleted."""

    kind: str
    key: int
    to_key: int
    columns: dict[str, Any]

    def apply(self, shop: Shop) -> None:
        columns = dict(self.columns)
        if self.key not in shop.rows["orders"]:
            shop.order(self.key, op="r" if self.kind == "snapshot" else "c", **columns)
        elif self.kind == "delete":
            shop.delete(self.key)
        elif self.kind == "rekey" and self.to_key not in shop.rows["orders"]:
            shop.rekey(self.key, self.to_key, **columns)
        else:
            shop.change(self.key, **columns)


@dataclass(frozen=True)
class Product:
    """A product appears, changes its category, or goes. `late` sets its `updated_at` back."""

    product_id: int
    category: str | None
    late: timedelta

    def apply(self, shop: Shop) -> None:
        if self.category:
            shop.product(self.product_id, self.category, updated_at=shop.now - self.late)
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
    """What happens and lands before a run. `quiet` is how far the source's clock goes on; `run_after` may be negative."""

    transactions: list[Transaction]
    batch_sizes: list[int]
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
    st.sampled_from([0 * HOUR, 17 * MINUTE, 3 * HOUR, 2 * DAY]),
)
transactions = st.builds(Transaction, clock, st.lists(st.one_of(steps, steps, steps, products), min_size=1, max_size=5))
parts = st.builds(
    Part,
    st.lists(transactions, max_size=10),
    st.lists(st.integers(1, 8), max_size=4),
    st.sampled_from([0 * HOUR, HOUR, 14 * HOUR, 3 * DAY]),
    st.sampled_from([-30 * HOUR, -2 * HOUR, 0 * HOUR, 5 * HOUR, DAY]),
)


@thorough
@given(start=st.sampled_from([20 * HOUR, 23 * HOUR + 59 * MINUTE, 24 * HOUR]), parts=st.lists(parts, min_size=2, max_size=3))
def test_every_figure_is_the_oracles(start: timedelta, parts: list[Part]) -> None:
    """Without it the paths could agree with each other on a wrong figure, or on the tame logs only that somebody thought of."""
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
            replay.land(sizes=part.batch_sizes, reached=latest + part.quiet)
            at = max(at, latest + part.quiet + part.run_after)
            note(f"run at {at}")
            replay.run(at)
        replay.run_next_day()
        assert len(replay.cuts) >= 2


# the classic awkward cases, one situation each
