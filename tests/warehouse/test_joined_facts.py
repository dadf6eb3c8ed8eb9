"""Facts whose query joins tables that change: every hour, night and second they are what the query as written gives.

A project of its own with three such facts: one looks a customer up, one joins three tables and asks a fourth for what
is not there, one reads no column of a table that it joins. Customers move, vanish and come back under their orders;
products change their price. The figures are recomputed in plain Python from the rows as they were.
"""

from __future__ import annotations

import json
import random
import time
from collections import Counter, defaultdict
from collections.abc import Iterator
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import duckdb
import pytest

from commands import call
from homes import SharedHomes
from lockstep import contracts, live_receipts, operate, reconcile, warehouse
from lockstep.changelog import SETTLING, ChangeLog
from place import HOUR, OPENED, Place, Rows, prepare
from shop import Shop, reject

Cells = dict[tuple[str, str], tuple[int, int]]

TABLES = ("orders", "customers", "products", "shipments", "drivers")
MODELS = {
    "rebuild/latest_home_orders.sql": """/* Every order, with the region where its customer lives now. */
MODEL (name rebuild.latest_home_orders, kind VIEW, grain order_id);
SELECT
  orders.order_id::BIGINT AS order_id,
  COALESCE(customers.region, 'nowhere')::TEXT AS home_region,
  orders.region::TEXT AS region,
  1::BIGINT AS orders,
  orders.amount_cents::BIGINT AS revenue_cents
FROM source.orders AS orders
LEFT JOIN source.customers AS customers ON customers.customer_id = orders.customer_id
""",
    "rebuild/home_orders.sql": """/* Orders by where their customers live. */
MODEL (
  name rebuild.home_orders, kind FULL, cron '@daily', start @log_eve(), grain (home_region, region),
  depends_on (rebuild.cut, chain.orders, chain.customers)
);
SELECT
  home_region::TEXT AS home_region, region::TEXT AS region, COUNT(*)::BIGINT AS orders,
  SUM(revenue_cents)::BIGINT AS revenue_cents
FROM rebuild.latest_home_orders GROUP BY ALL
""",
    "rebuild/latest_list_value.sql": """/* Every order that was not returned, at the price of today. */
MODEL (name rebuild.latest_list_value, kind VIEW, grain order_id);
SELECT
  orders.order_id::BIGINT AS order_id,
  products.category::TEXT AS category,
  customers.region::TEXT AS home_region,
  1::BIGINT AS orders,
  (orders.quantity * products.price_cents)::BIGINT AS list_cents
FROM source.orders AS orders
JOIN source.products AS products ON products.product_id = orders.product_id
JOIN source.customers AS customers ON customers.customer_id = orders.customer_id
WHERE
  NOT EXISTS(
    SELECT 1 FROM source.shipments AS shipments
    WHERE shipments.shipment_id = orders.order_id AND shipments.status = 'returned'
  )
""",
    "rebuild/list_value.sql": """/* Orders at the prices of today. */
MODEL (
  name rebuild.list_value, kind FULL, cron '@daily', start @log_eve(), grain (category, home_region),
  depends_on (rebuild.cut, chain.orders, chain.customers, chain.products, chain.shipments)
);
SELECT
  category::TEXT AS category, home_region::TEXT AS home_region, COUNT(*)::BIGINT AS orders,
  SUM(list_cents)::BIGINT AS list_cents
FROM rebuild.latest_list_value GROUP BY ALL
""",
    "rebuild/offers.sql": """/* Every order, as often as there are drivers: nothing is read of a driver. */
MODEL (
  name rebuild.offers, kind FULL, cron '@daily', start @log_eve(), grain (region, status),
  depends_on (rebuild.cut, chain.orders, chain.drivers)
);
SELECT
  orders.region::TEXT AS region, orders.status::TEXT AS status, COUNT(*)::BIGINT AS orders,
  SUM(orders.quantity)::BIGINT AS units
FROM source.orders AS orders CROSS JOIN source.drivers AS drivers GROUP BY 1, 2
""",
}
CONTRACTS = [
    "offers,sales,live,60,60,3,2,50,hold,orders,order_id,drivers,,region status,",
    "home_orders,sales,live,60,60,3,2,50,hold,orders,order_id,customers,,home_region region,",
    "list_value,sales,live,60,60,3,2,50,hold,orders,order_id,customers products shipments,,category home_region,",
]
MEASURES = [
    "offers,orders,sum,count,0,0,,,Orders",
    "offers,units,sum,count,0,0,,,Units",
    "home_orders,orders,sum,count,0,0,,,Orders",
    "home_orders,revenue_cents,sum,cents,0,0,,,Amount",
    "list_value,orders,sum,count,0,0,,,Orders",
    "list_value,list_cents,sum,cents,0,0,,,Amount",
]
FACTS = {"home_orders": "home_region, region, orders, revenue_cents AS cents"}
FACTS["offers"] = "region, status, orders, units AS cents"
FACTS["list_value"] = "category, home_region, orders, list_cents AS cents"


def expected(fact: str, rows: Rows) -> Cells:
    """The query as written, in Python."""
    cells: dict[tuple[str, str], list[int]] = defaultdict(lambda: [0, 0])
    for order in rows["orders"].values():
        customer = rows["customers"].get(order["customer_id"])
        if fact == "offers":
            for _ in rows["drivers"]:
                cells[order["region"], order["status"]][0] += 1
                cells[order["region"], order["status"]][1] += order["quantity"]
            continue
        if fact == "home_orders":
            cell, amount = (customer["region"] if customer else "nowhere", order["region"]), order["amount_cents"]
        else:
            product, shipment = rows["products"].get(order["product_id"]), rows["shipments"].get(order["order_id"])
            if not customer or not product or (shipment and shipment["status"] == "returned"):
                continue
            cell, amount = (product["category"], customer["region"]), order["quantity"] * product["price_cents"]
        cells[cell][0] += 1
        cells[cell][1] += amount
    return {cell: (n, total) for cell, (n, total) in cells.items()}


class Joined(Place):
    """A place of the three facts."""

    def compare(self, *, folded_until: datetime) -> None:
        """Each folded hour, and the figures of this second."""
        with warehouse.reader(self.home) as connection:
            for fact, columns in FACTS.items():
                hour = OPENED.replace(minute=0) + HOUR
                while hour <= folded_until:
                    folded = f"SELECT {columns} FROM hourly.{fact} WHERE log_hour < ?"
                    sums = "SUM(orders)::BIGINT AS n, SUM(cents)::BIGINT AS s"
                    query = f"SELECT #1, #2, {sums} FROM ({folded}) GROUP BY 1, 2 HAVING n <> 0 OR s <> 0"
                    cells = connection.execute(query, [hour]).fetchall()
                    assert {(a, b): (n, s) for a, b, n, s in cells} == expected(fact, self.rows_at(hour))
                    hour += HOUR
                cells = connection.execute(f"SELECT {columns} FROM live.{fact}").fetchall()
                assert {(a, b): (n, s) for a, b, n, s in cells} == expected(fact, self.shop.rows)

    def published(self, fact: str) -> Cells:
        """What an analyst reads who comes now."""
        time.sleep(SETTLING.total_seconds() + 0.05)
        with duckdb.connect(str(self.home / "analytics.duckdb"), read_only=True) as reader:
            cells = reader.execute(f"SELECT {FACTS[fact]}, served_from FROM mart.{fact}").fetchall()
        assert {served_from for *_, served_from in cells} <= {"live"}
        return {(a, b): (n, s) for a, b, n, s, _ in cells}


def made(directory: Path) -> Joined:
    place = Joined(directory, Shop(OPENED))
    prepare(place, TABLES, MODELS, CONTRACTS, MEASURES)
    return place


@pytest.fixture(scope="module")
def nights(shared_home: SharedHomes) -> Joined:
    def build(directory: Path) -> Joined:
        place = made(directory)
        with pytest.MonkeyPatch.context() as monkeypatch:
            place.enter(monkeypatch)
            place.pass_two_nights(
                FACTS, place.work, lambda: place.compare(folded_until=place.shop.now.replace(minute=0))
            )
        contracts.load.cache_clear()
        return place

    return shared_home("joined-facts", build)


@pytest.fixture
def place(nights: Joined, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Joined]:
    place = nights.copied(tmp_path / "copy")
    place.enter(monkeypatch)
    yield place
    contracts.load.cache_clear()


def restate(place: Joined, *times: str) -> None:
    models = [word for fact in FACTS for word in ("--restate-model", f"hourly.{fact}")]
    done = call("sqlmesh", "plan", *models, *times, "--auto-apply", "--no-prompts", "--skip-tests", cwd=place.project)
    assert done.returncode == 0, done.stdout + done.stderr


def test_receipts_pass_and_analysts_see_what_landed_since(place: Joined) -> None:
    assert operate.run(place.home, place.shop.now).failures == []  # publishes: the copy lies elsewhere
    for fact in FACTS:
        assert place.published(fact) == expected(fact, place.shop.rows)
    place.compare_mirror()
    chance = random.Random(11)
    for hours in (0, 2):  # the second run folds hours, and publishes on top of the publication before
        place.work(chance, place.shop.now + timedelta(minutes=40) + hours * HOUR)
        place.land()
        for fact in FACTS:
            assert place.published(fact) == expected(fact, place.shop.rows)
        place.compare_mirror()
        assert operate.run(place.home, place.shop.now).failures == []
        for fact in FACTS:
            assert place.published(fact) == expected(fact, place.shop.rows)
        place.compare_mirror()
    place.compare(folded_until=place.shop.now.replace(minute=0))


def test_what_is_published_is_proved_once_after_each_night(place: Joined) -> None:
    """No nightly receipt looks at the tail of a join, nor at the tables that a publication keeps for it."""
    taken = live_receipts.load(place.home)
    assert {r["verdict"] for r in taken} == {"passed"}
    assert Counter(r["domain"] for r in taken) == dict.fromkeys(FACTS, 3)  # the first plan, and two midnights
    operate.run(place.home, place.shop.now)
    assert len(live_receipts.load(place.home)) == len(taken)

    with duckdb.connect(str(place.home / "analytics.duckdb")) as connection:
        spoil = "UPDATE folded.home_orders__customers SET region = region || '?'"
        assert connection.execute(spoil).fetchall()[0][0] > 0
    for customer in place.shop.rows["customers"]:
        place.shop.insert("orders", 100 + customer, customer_id=customer, product_id=1, region="north")
    place.land()
    time.sleep(SETTLING.total_seconds() + 0.05)
    [failed] = live_receipts.reconcile(place.home, ["home_orders"])
    assert failed.receipt["verdict"] == "failed"
    assert {cell["class"] for cell in failed.cells} >= {"added"}
    assert operate.run(place.home, place.shop.now).failures == []  # publishes from nothing, and takes it again
    assert place.published("home_orders") == expected("home_orders", place.shop.rows)


def test_all_hours_in_one_statement_are_those_hour_by_hour(place: Joined) -> None:
    restate(place)
    place.compare(folded_until=place.shop.now.replace(minute=0))


def test_an_hour_reads_no_change_before_the_checkpoint(place: Joined) -> None:
    """So that it costs the same however long the log is."""
    with reconcile.planned() as models, warehouse.reader(place.home) as connection:
        until = models.folded_until("hourly.log")
        hour = models.hour("hourly.list_value", until - HOUR).sql("duckdb")
        [(_, plan)] = connection.execute(f"EXPLAIN (ANALYZE, FORMAT JSON) {hour}").fetchall()
        tables = "orders", "customers", "products", "shipments"
        split = "COUNT(*) FILTER (logged_at < '2026-03-03'), COUNT(*) FILTER (logged_at >= '2026-03-03')"
        counts = [connection.execute(f"SELECT {split} FROM changes.{table}").fetchall()[0] for table in tables]
    most_since = max(since for _, since in counts)
    assert all(before > most_since for before, _ in counts)
    scans = [scan for scan in operators(json.loads(plan)) if "logged_at" in str(scan["extra_info"])]
    scanned = [scan["operator_cardinality"] for scan in scans if scan["operator_name"].strip() == "READ_PARQUET"]
    assert len(scanned) >= 2 * len(tables)  # what is new of each, and what was there
    assert max(scanned) <= most_since


def operators(plan: dict[str, Any]) -> Iterator[dict[str, Any]]:
    yield plan
    for child in plan["children"]:
        yield from operators(child)


def test_a_spoilt_hour_fails_the_night_and_is_mended_by_restating_it(place: Joined) -> None:
    hour = datetime(2026, 3, 2, 7)
    with warehouse.writer(place.home) as connection:
        [(table,)] = connection.execute(
            "SELECT table_name FROM duckdb_tables() WHERE regexp_full_match(table_name, 'hourly__home_orders__\\d+')"
        ).fetchall()
        spoil = f'UPDATE sqlmesh__hourly."{table}" SET orders = orders + 1 WHERE log_hour = ?'
        assert connection.execute(spoil, [hour]).fetchall()[0][0] > 0
    night = datetime(2026, 3, 4, 5)
    place.shop.now = night
    place.land(reached=night)
    [failure] = operate.run(place.home, night).failures
    assert failure.startswith("reconcile.home_orders_receipts: audit rebuild_equals_increments")
    restate(place, "--start", f"{hour}", "--end", f"{hour + timedelta(minutes=59)}")
    assert operate.run(place.home, night).failures == []
    place.compare(folded_until=datetime(2026, 3, 4, 5))


def test_a_held_table_holds_the_facts_that_join_it(place: Joined) -> None:
    """What changes on the other side goes on in the log, and is neither live nor folded until the hold ends."""
    before = {fact: expected(fact, place.shop.rows) for fact in ("home_orders", "list_value")}
    reject(place.home, "customers", place.shop.now)
    place.work(random.Random(5), place.shop.now + 3 * HOUR)
    place.land()
    result = operate.run(place.home, place.shop.now)
    assert result.failures == []
    for fact, cells in before.items():
        assert place.published(fact) == cells
    assert place.published("offers") == expected("offers", place.shop.rows)  # which reads no customer
    place.compare_mirror("customers")
    log = ChangeLog(place.home)
    assert log.watermark().holds.keys() == {"customers"}
    done = call("lockstep", "quarantine", "discard", "--all", "--yes", cwd=place.project)
    assert done.returncode == 0, done.stdout + done.stderr
    assert operate.run(place.home, place.shop.now).failures == []
    place.compare(folded_until=place.shop.now.replace(minute=0))
    place.compare_mirror()
    for fact in FACTS:
        assert place.published(fact) == expected(fact, place.shop.rows)
