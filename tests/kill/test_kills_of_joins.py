"""Runs of a fact that joins tables which change are killed with `kill -9`, while changes land, over midnights.

Whatever a killed run left behind, the next whole one folds hours, takes receipts and publishes: each folded hour, the
live view and what an analyst reads are then the query as written, counted in plain Python from the rows as they were.
"""

from __future__ import annotations

import random
import time
from collections import defaultdict
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import duckdb
import pytest

from killer import Killer
from lockstep import contracts, operate, warehouse
from lockstep.changelog import SETTLING
from lockstep.errors import Busy
from place import HOUR, OPENED, Place, Rows, prepare
from shop import Shop

LATER = timedelta(minutes=30)
FACT = """/* Orders by where their customers live. */
MODEL (
  name rebuild.home_orders, kind FULL, cron '@daily', start @log_eve(), grain (home_region, region),
  depends_on (rebuild.cut, chain.orders, chain.customers)
);
SELECT
  COALESCE(customers.region, 'nowhere')::TEXT AS home_region, orders.region::TEXT AS region, COUNT(*)::BIGINT AS orders,
  SUM(orders.amount_cents)::BIGINT AS revenue_cents
FROM source.orders AS orders LEFT JOIN source.customers AS customers ON customers.customer_id = orders.customer_id
GROUP BY ALL
"""
CONTRACT = "home_orders,sales,live,60,60,3,2,50,hold,orders,order_id,customers,,home_region region,"
MEASURES = ["home_orders,orders,sum,count,0,0,,,Orders", "home_orders,revenue_cents,sum,cents,0,0,,,Amount"]
COLUMNS = "home_region, region, orders, revenue_cents"


def expected(rows: Rows) -> dict[tuple[str, str], tuple[int, int]]:
    """The query as written."""
    cells: dict[tuple[str, str], list[int]] = defaultdict(lambda: [0, 0])
    for order in rows["orders"].values():
        customer = rows["customers"].get(order["customer_id"])
        cell = cells[customer["region"] if customer else "nowhere", order["region"]]
        cell[0] += 1
        cell[1] += order["amount_cents"]
    return {cell: (n, cents) for cell, (n, cents) in cells.items()}


def by_cell(rows: list[tuple[Any, ...]]) -> dict[tuple[str, str], tuple[int, int]]:
    found = {(a, b): (n, cents) for a, b, n, cents in rows}
    assert len(found) == len(rows)
    return found


def compare(place: Place, result: operate.Run, folded_until: datetime) -> None:
    """Each folded hour, the figures of this second, what is published, and that the receipts passed."""
    assert result.failures == []
    with warehouse.reader(place.home) as connection:
        [[hours, last]] = connection.execute(
            "SELECT COUNT(DISTINCT log_hour), MAX(log_hour) FROM hourly.home_orders"
        ).fetchall()
        assert hours > 0 and last < folded_until
        hour = OPENED.replace(minute=0) + HOUR
        while hour <= folded_until:
            sums = "SUM(orders)::BIGINT AS n, SUM(revenue_cents)::BIGINT AS cents"
            cells = connection.execute(
                f"SELECT home_region, region, {sums} FROM hourly.home_orders WHERE log_hour < ? GROUP BY 1, 2 "
                "HAVING n <> 0 OR cents <> 0",
                [hour],
            )
            assert by_cell(cells.fetchall()) == expected(place.rows_at(hour)), hour
            hour += HOUR
        live = connection.execute(f"SELECT {COLUMNS} FROM live.home_orders").fetchall()
        assert by_cell(live) == expected(place.shop.rows)
    time.sleep(SETTLING.total_seconds() + 0.05)
    with duckdb.connect(str(place.home / "analytics.duckdb"), read_only=True) as reader:
        cells = reader.execute(f"SELECT {COLUMNS} FROM mart.home_orders").fetchall()
        served = {row[0] for row in reader.execute("SELECT served_from FROM mart.home_orders").fetchall()}
    assert (by_cell(cells), served) == (expected(place.shop.rows), {"live"})
    verdicts = [(r["verdict"], r["cut"]) for r in result.receipts if r["domain"] == "home_orders"]
    midnight = folded_until.replace(hour=0)
    if midnight > OPENED:
        assert verdicts == [("passed", midnight)]


@pytest.mark.parametrize(
    ("kills", "at_once"), [pytest.param(3, 3, id="3"), pytest.param(30, 3, id="30", marks=pytest.mark.long)]
)
def test_a_joined_fact_is_right_after_any_kill(
    kills: int, at_once: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    seed = random.randrange(1 << 32)
    chance = random.Random(seed)
    place = Place(tmp_path, Shop(OPENED))
    prepare(place, ("orders", "customers"), {"rebuild/home_orders.sql": FACT}, [CONTRACT], MEASURES)
    place.enter(monkeypatch)
    killer = Killer(place.home, chance, place.project)
    landed = 0

    def command() -> tuple[str, ...]:
        return ("lockstep", "run", "--at", str(place.shop.now + LATER))

    def work(hours: int) -> None:
        place.work(chance, place.shop.now + hours * HOUR)
        place.land()

    def land_meanwhile() -> None:
        nonlocal landed
        if chance.random() < 0.006:
            place.work(chance, place.shop.now + timedelta(seconds=1))
            try:
                place.land()
            except Busy:  # the run writes to the log; what did not land lands with what follows
                return
            landed += 1

    work(2)
    killer.call("first run", *command())
    work(3)
    killer.call("run", *command())
    compared = 0
    while killer.killed < kills:
        work(chance.randrange(1, 9))
        killer.kill("run", *command(), meanwhile=land_meanwhile)
        if killer.killed >= compared + at_once:
            compared = killer.killed
            place.land()
            at = place.shop.now + LATER
            compare(place, operate.run(place.home, at), place.shop.now.replace(minute=0, second=0))
    contracts.load.cache_clear()
    assert landed
    with capsys.disabled():
        print(f"\n{killer.killed} kills: {dict(killer.kills)}, {landed} landings under them (seed {seed})")
