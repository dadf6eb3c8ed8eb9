"""Numbers that do not fit: two orders of 2 ** 63 - 1 cents in a cell, before their hour is folded, after it, by night.

Sums of amounts are exact whatever they come to. What is no figure, as a count that no BIGINT holds, is not served: the
fact goes back to its last verified rebuild, names the cell, and comes back when the row is corrected. All other facts
go on, and a row that is corrected stops nothing.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterator
from copy import deepcopy
from datetime import datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import duckdb
import pytest

from homes import SharedHomes
from lockstep import contracts, live_receipts, operate, publish, warehouse
from lockstep.changelog import SETTLING
from lockstep.errors import LockstepError
from place import HOUR, OPENED, Place, prepare
from shop import Shop

LARGE = 2**63 - 1
QUERIES = {  # the fact's figure of a region, from the orders of the region
    "takings": "SUM(amount_cents)::DECIMAL(38, 0) AS revenue_cents",
    "amounts": "SUM(amount_cents)::BIGINT AS total",  # a count of what may be more than an INTEGER
    "grams": f"SUM(CASE WHEN amount_cents > 1000 THEN {10**28} ELSE amount_cents END)::DECIMAL(38, 0) AS total",
    "thrice": "SUM(amount_cents * 3)::BIGINT AS revenue_cents",  # which no BIGINT holds
    "average": "COALESCE(SUM(quantity), 0)::BIGINT AS units, (SUM(amount_cents * 2) / COUNT(*))::DOUBLE AS mean",
}
TABLES = ("customers", "orders", "drivers")
MODELS = {
    f"rebuild/{fact}.sql": f"/* {fact}. */\nMODEL (name rebuild.{fact}, kind FULL, cron '@daily', start @log_eve(), "
    f"grain region, depends_on (rebuild.cut, chain.orders));\n"
    f"SELECT region::TEXT AS region, COUNT(*)::BIGINT AS orders, {figure} FROM source.orders GROUP BY 1;\n"
    for fact, figure in QUERIES.items()
} | {
    "rebuild/staff.sql": "/* staff. */\nMODEL (name rebuild.staff, kind FULL, cron '@daily', start @log_eve(), "
    "grain depot_region, depends_on (rebuild.cut, chain.drivers));\n"
    "SELECT depot_region::TEXT AS depot_region, COUNT(*)::BIGINT AS drivers FROM source.drivers GROUP BY 1;\n",
    "mart/all_amounts.sql": "/* all_amounts. */\nMODEL (name mart.all_amounts, kind VIEW, grain region);\n"
    "SELECT region::TEXT AS region, SUM(total)::DECIMAL(38, 0) AS total FROM mart.amounts GROUP BY region::TEXT "
    "HAVING SUM(orders) <> 0;\n",
}
CONTRACTS = [f"{fact},sales,live,60,60,3,2,50,hold,orders,order_id,,,region," for fact in QUERIES] + [
    "staff,fleet,live,60,60,3,2,50,hold,drivers,driver_id,,,depot_region,"
]
MEASURES = [f"{fact},orders,sum,count,0,0,,,Orders" for fact in QUERIES] + [
    "takings,revenue_cents,sum,cents,0,0,,,Amount",
    "amounts,total,sum,count,0,0,,,Amount",
    "grams,total,sum,amount(0),0,0,,,Amount",
    "thrice,revenue_cents,sum,cents,0,0,,,Amount",
    "average,units,finish,count,0,0,,,Units",
    "average,mean,finish,ratio,0,0,,,Amount of an order",
    "staff,drivers,sum,count,0,0,,,Drivers",
]


def read(place: Place, fact: str, figure: str) -> dict[str, Any]:
    """A fact's figure by region, as an analyst reads it who comes now."""
    time.sleep(SETTLING.total_seconds() + 0.05)
    with duckdb.connect(str(place.home / "analytics.duckdb"), read_only=True) as reader:
        return dict(reader.execute(f"SELECT region, {figure} FROM mart.{fact}").fetchall())


def served(place: Place) -> dict[str, tuple[str, str]]:
    """By fact where it is served from, and why."""
    with duckdb.connect(str(place.home / "analytics.duckdb"), read_only=True) as reader:
        found = reader.execute("SELECT domain, served_from, reason FROM ops.serving").fetchall()
    return {domain: (served_from, reason) for domain, served_from, reason in found}


def run(place: Place) -> list[str]:
    return operate.run(place.home, place.shop.now).failures


@pytest.fixture(scope="module")
def morning(shared_home: SharedHomes) -> Place:
    """All facts are live at six, after a night; of the day nothing has changed yet."""

    def build(directory: Path) -> Place:
        place = Place(directory, Shop(OPENED))
        with pytest.MonkeyPatch.context() as monkeypatch:
            prepare(place, TABLES, MODELS, CONTRACTS, MEASURES)
            place.enter(monkeypatch)
            for order, region in enumerate(("north", "south", "south"), start=1):
                place.shop.order(order, region=region, amount_cents=100 * order)
            place.shop.insert("drivers", 1, depot_region="north")
            place.land(reached=OPENED + 10 * HOUR)
            place.shop.now = OPENED + 10 * HOUR
            assert run(place) == []
            assert {served_from for served_from, _ in served(place).values()} == {"live"}
        contracts.load.cache_clear()
        return place

    return shared_home("large-numbers", build)


@pytest.fixture
def place(morning: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Place]:
    shutil.copytree(morning.directory, tmp_path / "copy", symlinks=True)
    place = Place(tmp_path / "copy", deepcopy(morning.shop), morning.landed)
    place.enter(monkeypatch)
    publish.publish(place.home)
    yield place
    contracts.load.cache_clear()


def test_two_orders_that_are_too_large_for_one_sum(place: Place) -> None:
    shop = place.shop
    for order in (8, 9):
        shop.order(order, region="north", amount_cents=LARGE)
    shop.insert("drivers", 2, depot_region="north")
    place.land()

    # Analysts whose publication is older than the orders read no error, and no wrong figure.
    assert read(place, "takings", "revenue_cents") == {"north": 2 * LARGE + 100, "south": 500}
    for mart in ("amounts", "all_amounts"):
        assert read(place, mart, "total") == {"north": None, "south": 500}
    assert read(place, "grams", "total") == {"north": None, "south": 500}
    assert read(place, "thrice", "revenue_cents") == {"north": None, "south": 1500}
    assert read(place, "average", "units") == {"north": 3, "south": 2}

    publish.publish(place.home)
    assert read(place, "takings", "revenue_cents") == {"north": Decimal(2 * LARGE + 100), "south": 500}
    assert read(place, "amounts", "total") == {"north": None, "south": 500}

    # With their hour they are named, and what is no figure is served from the last verified rebuild.
    shop.now += 2 * HOUR
    place.land(reached=shop.now)
    assert run(place) == []
    with warehouse.reader(place.home) as connection:
        [(revenue,)] = connection.execute("SELECT SUM(revenue_cents) FROM hourly.takings").fetchall()
    assert revenue == 2 * LARGE + 600
    assert read(place, "takings", "revenue_cents") == {"north": Decimal(2 * LARGE + 100), "south": 500}
    assert read(place, "amounts", "total") == {"north": 100, "south": 500}
    assert read(place, "grams", "total") == {"north": 100, "south": 500}
    shown = served(place)
    assert {fact for fact, (served_from, _) in shown.items() if served_from == "live"} == {"takings", "staff"}
    assert shown["amounts"][1] == "total is more than a BIGINT holds, in the cell of region north"
    assert shown["grams"][1] == "total has a row of more than 27 digits, in the cell of region north"
    reason = "revenue_cents has a row that it cannot be computed of, or is too large, in the cell of region north"
    assert shown["thrice"][1] == reason
    assert "amount_cents" in shown["average"][1]

    # As they are written, three of the queries fail on these orders. That is said, and the others are compared.
    with pytest.raises(LockstepError, match="amounts could not be compared with its query: Conversion Error"):
        live_receipts.reconcile(place.home)
    newest = live_receipts.last(live_receipts.load(place.home))
    assert {newest[fact]["verdict"] for fact in ("takings", "staff")} == {"passed"}

    # By night the queries that cast to BIGINT fail as they are written, and the others are proven.
    shop.now = datetime(2026, 3, 3, 0, 30)
    place.land(reached=shop.now)
    failures = run(place)
    assert {failure.partition(":")[0] for failure in failures} >= {"rebuild.amounts", "rebuild.thrice"}
    with warehouse.reader(place.home) as connection:
        cut = "SELECT domain FROM reconcile.receipts WHERE cut = '2026-03-03' AND verdict = 'passed'"
        assert {"takings", "staff"} <= {domain for (domain,) in connection.execute(cut).fetchall()}
    assert read(place, "takings", "revenue_cents") == {"north": 2 * LARGE + 100, "south": 500}
    assert {served_from for fact, (served_from, _) in served(place).items() if fact in ("takings", "staff")} == {"live"}

    # Corrected: the images stay in the log, and stop nothing.
    for order in (8, 9):
        shop.change(order, amount_cents=50)
    place.land()
    assert read(place, "takings", "revenue_cents") == {"north": 200, "south": 500}
    shop.now = datetime(2026, 3, 4, 0, 30)
    place.land(reached=shop.now)
    assert run(place) == []
    with warehouse.reader(place.home) as connection:
        cut = "SELECT domain FROM reconcile.receipts WHERE cut = '2026-03-04' AND verdict = 'passed'"
        assert {domain for (domain,) in connection.execute(cut).fetchall()} == {*QUERIES, "staff"}
    assert read(place, "thrice", "revenue_cents") == {"north": 600, "south": 1500}
    assert read(place, "amounts", "total") == {"north": 200, "south": 500}
    assert read(place, "average", "mean") == {"north": pytest.approx(400 / 3), "south": 500}
