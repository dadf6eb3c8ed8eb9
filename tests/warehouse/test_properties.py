"""Whatever the company does, three computations must give the figures of a fourth that shares nothing with them.

Hourly, rebuild, live and mart of every domain are compared at every landing and every run, with the receipts, the
stored generations, and what `ops.serving` says.

The awkward cases that the generated logs are made of: corrections of amount, region, product and order time into other
hours and days; deletes, re-inserts and key updates; ties of `updated_at` and of amounts; empty hours and days; commit
times out of order; several changes in one transaction; spellings known, unknown, with spaces and capitals; products
that change category in mid-hour, late, or are unknown; amounts at the limit of high value; order times on the hour and
at the moment a rule changes; snapshots; batches of any size, the writer restarted between them; changes sent again.
Routes, stops and shipments known in any order or never; stops that move between routes, with composite keys;
deliveries on the limit of their window; parcels over capacity; drivers and customers of several versions. Pings whose
clock is on the limit of timely, past it, or hours off: what comes of these is within the tolerance, or must fail the
receipt of that domain, stop its generation, and send it and the routes that read it back to the last shared rebuild,
and nothing else.

`HYPOTHESIS_EXAMPLES=200 pytest tests/warehouse/test_properties.py` searches longer; with CI set the examples are always
the same.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, note, settings
from hypothesis import strategies as st

from lockstep import contracts
from oracle import DOMAINS, HOUR
from replay import Replay, opened, planned
from shop import Shop

__all__ = ["planned"]  # a fixture

MINUTE, DAY, MICROSECOND = timedelta(minutes=1), timedelta(days=1), timedelta(microseconds=1)
RULE_CHANGES_AT = datetime(2026, 6, 1)  # `done` means completed from here on, shipped before

examples = settings(
    max_examples=int(os.environ.get("HYPOTHESIS_EXAMPLES", "3")),
    derandomize="CI" in os.environ,
    database=None if "CI" in os.environ else settings.default.database,
    suppress_health_check=list(HealthCheck),
    print_blob=True,
)


# What happens, as Hypothesis draws it. Every step is possible in every state, so that shrinking can leave out any.


@dataclass(frozen=True)
class Step:
    """Something done to the row `key`: made if it is not there, else changed, moved to another key or deleted."""

    table: str
    kind: str
    key: Any
    to_key: Any
    columns: dict[str, Any]

    def apply(self, shop: Shop) -> None:
        if self.key not in shop.rows[self.table]:
            shop.insert(self.table, self.key, op="r" if self.kind == "snapshot" else "c", **self.columns)
        elif self.kind == "delete":
            shop.delete(self.key, self.table)
        elif self.kind == "rekey" and self.to_key not in shop.rows[self.table]:
            shop.rekey(self.key, self.to_key, self.table, **self.columns)
        else:
            shop.update(self.table, self.key, op="r" if self.kind == "snapshot" else "u", **self.columns)


@dataclass(frozen=True)
class SentPing:
    """A ping whose device's clock is `off` the commit."""

    driver_id: int
    off: timedelta
    columns: dict[str, Any]

    def apply(self, shop: Shop) -> None:
        shop.ping(self.driver_id, recorded_at=shop.now + self.off, **self.columns)


@dataclass(frozen=True)
class Transaction:
    """Steps that commit together, `after` the time of the transaction before; backwards if that is negative."""

    after: timedelta
    steps: list[Step | SentPing]

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
regions = st.sampled_from(["north", "South", "sörmland"])
times = moments | st.just(RULE_CHANGES_AT)
latitudes = st.sampled_from([57.7, 57.75, 58.5, 61.0])  # the last lies beyond the tolerance from the others
longitudes = st.sampled_from([12.0, 11.9])


def changed(table: str, key: st.SearchStrategy[Any], **columns: st.SearchStrategy[Any]) -> st.SearchStrategy[Step]:
    """Steps of a table; any of the columns may be given."""
    kinds = st.sampled_from(["change", "change", "delete", "rekey", "snapshot"])
    return st.builds(Step, st.just(table), kinds, key, key, st.fixed_dictionaries({}, optional=columns))


small = st.integers(1, 3)
orders = changed(
    "orders",
    st.integers(1, 5),
    customer_id=small,
    product_id=small,
    region=regions,
    quantity=st.integers(0, 3),
    amount_cents=st.sampled_from([0, 1, 99_999, 100_000, 100_001, 1_000_000, 1_000_001, 10**13]),
    status=statuses,
    ordered_at=moments,
    updated_at=st.just(RULE_CHANGES_AT),
)
dimensions = st.one_of(
    changed("products", st.integers(1, 2), category=st.sampled_from(["books", "toys", "tools"]), updated_at=times),
    changed("customers", st.integers(1, 2), region=regions, updated_at=times),
    changed("drivers", st.integers(1, 2), capacity_parcels=st.integers(1, 3), updated_at=times),
)
# These hang together by small keys, so that most of what one names is known to another.
deliveries = st.one_of(
    changed("routes", st.integers(1, 2), driver_id=small, service_date=st.just(RULE_CHANGES_AT.date())),
    changed(
        "shipments",
        st.integers(1, 4),
        route_id=st.sampled_from([None, 1, 1, 2, 3]),
        region=regions,
        status=st.sampled_from(["created", "out_for_delivery", "out_for_delivery", "delivered", "failed"]),
        exception_code=st.sampled_from([None, "none", "damaged"]),
        window_from_at=times,
        window_to_at=times,
        delivered_at=st.none() | times | st.just(RULE_CHANGES_AT + MINUTE - MICROSECOND),
    ),
    changed(
        "route_stops",
        st.tuples(st.integers(1, 2), st.integers(1, 3)),
        shipment_id=st.integers(1, 4),
        planned_arrival_at=times,
        latitude=latitudes,
        longitude=longitudes,
        completed_at=st.none() | times | st.just(RULE_CHANGES_AT + 15 * MINUTE),
    ),
)
pings = st.builds(
    SentPing,
    st.sampled_from([1, 1, 2]),
    st.sampled_from(
        [
            *[0 * HOUR, -MINUTE, 2 * MINUTE, -3 * MINUTE, 3 * MINUTE],
            *[-3 * MINUTE - MICROSECOND, 3 * MINUTE + MICROSECOND, -20 * MINUTE, -3 * HOUR, 400 * DAY],
        ]
    ),
    st.fixed_dictionaries(
        {},
        optional={
            "latitude": latitudes,
            "longitude": longitudes,
            "speed_kmh": st.sampled_from([0.0, 88.25]),
            "op": st.sampled_from(["c", "c", "r"]),
        },
    ),
)
steps = st.one_of(orders, orders, deliveries, deliveries, pings, pings, dimensions)
transactions = st.builds(Transaction, clock, st.lists(steps, min_size=1, max_size=6))
parts = st.builds(
    Part,
    st.lists(transactions, max_size=10),
    st.lists(st.integers(1, 8), max_size=4),
    st.integers(0, 9),
    st.sampled_from([0 * HOUR, HOUR, 14 * HOUR, 3 * DAY]),
    st.sampled_from([-30 * HOUR, -2 * HOUR, 0 * HOUR, 5 * HOUR, DAY]),
)


@pytest.mark.generated
@examples
@given(
    start=st.sampled_from([20 * HOUR, 24 * HOUR]),
    is_planned=st.sampled_from([True, True, True, False]),
    parts=st.lists(parts, min_size=2, max_size=3),
    from_debezium=st.booleans(),
)
def test_every_figure_is_the_oracles(
    planned: Callable[[datetime, Path], Replay],
    start: timedelta,
    is_planned: bool,
    parts: list[Part],
    from_debezium: bool,
) -> None:
    """Without it the paths could agree on a wrong figure, or agree on the tame logs only that somebody thought of."""
    with tempfile.TemporaryDirectory() as home, pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setenv("LOCKSTEP_HOME", home)
        begins = RULE_CHANGES_AT - DAY + start
        replay = planned(begins, Path(home)) if is_planned else opened(Path(home), begins)
        shop, at = replay.shop, replay.shop.now
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


def test_the_oracle_knows_every_domain() -> None:
    """Without it a domain could be added that none of these tests looks at."""
    contracts.load.cache_clear()
    loaded = contracts.load()
    assert {d: (c.grain, tuple(m.name for m in c.merged), c.mode, c.reads) for d, c in loaded.items()} == {
        d: (o.grain, o.measures, o.mode, o.reads) for d, o in DOMAINS.items()
    }
    assert {d: tuple(m.tolerance_absolute for m in c.merged) for d, c in loaded.items()} == {
        d: o.tolerances or (0,) * len(o.measures) for d, o in DOMAINS.items()
    }
