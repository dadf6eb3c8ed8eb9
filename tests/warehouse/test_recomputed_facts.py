"""Facts that are not derived: their live figures are the query as written, over the rows of this moment.

A project of its own with a FULL JOIN, medians over a table joined with itself on any condition, rows of which the grain
is no key, and what no mirror of a table has: personal columns, and rows of a table that only grows. What is live or
published is compared with the queries as they are written, run by plain DuckDB over the rows that a Python dictionary
has.
"""

from __future__ import annotations

import json
import random
import time
from collections.abc import Iterator
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import duckdb
import pandas as pd
import pytest

from commands import call
from homes import SharedHomes
from lockstep import contracts, explain, live_receipts, operate, publish, warehouse
from lockstep.changelog import SETTLING
from place import HOUR, OPENED, Place, Rows, prepare
from shop import Shop, reject

QUERIES = {
    "coverage": """SELECT
  COALESCE(orders.region, customers.region)::TEXT AS region, COUNT(orders.order_id)::BIGINT AS orders,
  COUNT(DISTINCT customers.customer_id)::BIGINT AS customers, AVG(orders.amount_cents)::DOUBLE AS average_cents
FROM source.orders AS orders FULL JOIN source.customers AS customers ON customers.region = orders.region
GROUP BY 1""",
    "peers": """SELECT
  a.product_id::BIGINT AS product_id, MEDIAN(b.amount_cents)::DOUBLE AS median_cents, COUNT(*)::BIGINT AS pairs,
  (SELECT COUNT(*) FROM source.customers AS c WHERE c.region = MIN(a.region))::BIGINT AS neighbours
FROM source.orders AS a JOIN source.orders AS b ON b.amount_cents <= a.amount_cents AND b.region <> a.region
GROUP BY 1""",
    "baskets": """SELECT quantity::BIGINT AS quantity, region::TEXT AS region, status::TEXT AS status
FROM source.orders WHERE quantity > 1""",
    "pings": """SELECT
  customers.full_name::TEXT AS full_name, MAX(pings.speed_kmh)::DOUBLE AS fastest_kmh, COUNT(*)::BIGINT AS pings
FROM source.customers AS customers FULL JOIN source.gps_pings AS pings ON pings.driver_id = customers.customer_id
GROUP BY 1""",
}
GRAINS = {"coverage": "region", "peers": "product_id", "baskets": "quantity", "pings": "full_name"}
TABLES = ("orders", "customers", "gps_pings")
MODELS = {
    f"rebuild/{fact}.sql": f"/* {fact}. */\nMODEL (name rebuild.{fact}, kind FULL, cron '@daily', start @log_eve(), "
    f"grain ({GRAINS[fact]}), depends_on (rebuild.cut, chain.orders, chain.customers, chain.gps_pings));\n{query}\n"
    for fact, query in QUERIES.items()
}
CONTRACTS = [
    "coverage,sales,live,60,60,3,2,50,hold,orders,order_id,customers,,region,",
    "peers,sales,live,60,60,3,2,50,hold,orders,order_id,customers,,product_id,",
    "baskets,sales,live,60,60,3,2,50,hold,orders,order_id,,,quantity,",
    "pings,sales,live,60,60,3,2,50,hold,gps_pings,ping_id,customers,,full_name,",
]
MEASURES = [
    "coverage,orders,recomputed,count,0,0,,,Orders of the region times its customers",
    "coverage,customers,recomputed,count,0,0,,,Customers of the region",
    "coverage,average_cents,recomputed,ratio,0,0,,,Amount of an order",
    "peers,median_cents,recomputed,ratio,0,0,,,Median of the orders elsewhere that are no larger",
    "peers,pairs,recomputed,count,0,0,,,Orders and such orders",
    "peers,neighbours,recomputed,count,0,0,,,Customers of the first region",
    "baskets,region,recomputed,text,0,0,,,Region of an order",
    "baskets,status,recomputed,text,0,0,,,Its status",
    "pings,fastest_kmh,recomputed,km/h,0,0,,,The fastest of their pings",
    "pings,pings,recomputed,count,0,0,,,Their pings",
]
COLUMNS = {
    "coverage": "region, orders, customers, average_cents",
    "peers": "product_id, median_cents, pairs, neighbours",
    "baskets": "quantity, region, status",
    "pings": "full_name, fastest_kmh, pings",
}
Figures = list[tuple[Any, ...]]


def expected(fact: str, rows: Rows) -> Figures:
    """The query as written, over these rows."""
    with duckdb.connect() as connection:
        connection.execute("CREATE SCHEMA source")
        for table in ("orders", "customers", "gps_pings"):
            columns = pd.DataFrame(list(rows[table].values()))
            connection.register("given", columns)
            connection.execute(f"CREATE TABLE source.{table} AS FROM given")
        return connection.execute(f"SELECT * FROM ({QUERIES[fact]}) ORDER BY ALL").fetchall()


def figures(connection: duckdb.DuckDBPyConnection, relation: str) -> Figures:
    fact = relation.partition(".")[2].partition("_as_of")[0]
    return connection.execute(f"SELECT {COLUMNS[fact]} FROM {relation} ORDER BY ALL").fetchall()


def compare_published(place: Place) -> None:
    """What an analyst reads who comes now."""
    time.sleep(SETTLING.total_seconds() + 0.05)
    newest = place.home / "published" / f"{publish._numbers(place.home / 'published')[-1]}.duckdb"
    with duckdb.connect(str(newest), read_only=True) as reader:
        for fact in QUERIES:
            assert {s for (s,) in reader.execute(f"SELECT served_from FROM mart.{fact}").fetchall()} <= {"live"}
            assert figures(reader, f"mart.{fact}") == expected(fact, place.shop.rows), fact


def compare_warehouse(place: Place) -> None:
    with warehouse.reader(place.home) as connection:
        for fact in QUERIES:
            assert figures(connection, f"live.{fact}") == expected(fact, place.shop.rows), fact


def work(place: Place, chance: random.Random, until: datetime) -> None:
    place.work(chance, until)
    for _ in range(3):
        ping = len(place.shop.rows["gps_pings"]) + 1
        place.shop.insert("gps_pings", ping, driver_id=chance.randrange(1, 6), speed_kmh=chance.randrange(90) / 2)
    for customer in list(place.shop.rows["customers"]):
        place.shop.update("customers", customer, full_name=chance.choice(["Ann", "Bo", "Cy"]))


def compare(place: Place) -> None:
    compare_warehouse(place)
    compare_published(place)


@pytest.fixture(scope="module")
def nights(shared_home: SharedHomes) -> Place:
    def build(directory: Path) -> Place:
        place = Place(directory, Shop(OPENED))
        with pytest.MonkeyPatch.context() as monkeypatch:
            prepare(place, TABLES, MODELS, CONTRACTS, MEASURES)
            place.enter(monkeypatch)
            place.pass_two_nights(QUERIES, lambda *until: work(place, *until), lambda: compare(place))
        contracts.load.cache_clear()
        return place

    return shared_home("recomputed-facts", build)


@pytest.fixture
def place(nights: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Place]:
    place = nights.copied(tmp_path / "copy")
    place.enter(monkeypatch)
    yield place
    contracts.load.cache_clear()


def test_analysts_see_what_landed_since(place: Place) -> None:
    assert operate.run(place.home, place.shop.now).failures == []  # publishes: the copy lies elsewhere
    compare_published(place)
    chance = random.Random(11)
    for hours in (0, 2):  # the second run publishes on top of the publication before
        work(place, chance, place.shop.now + timedelta(minutes=40) + hours * HOUR)
        place.land()
        compare_published(place)
        assert operate.run(place.home, place.shop.now).failures == []
        compare_published(place)
    assert {r.receipt["verdict"] for r in live_receipts.reconcile(place.home)} == {"passed"}


@pytest.mark.parametrize("cut", [datetime(2026, 3, 2), datetime(2026, 3, 3)])
def test_figures_as_they_were_at_a_verified_cut(place: Place, cut: datetime) -> None:
    publish.publish(place.home)
    with duckdb.connect(str(place.home / "analytics.duckdb"), read_only=True) as reader:
        for fact in QUERIES:
            then = figures(reader, f"mart.{fact}_as_of(TIMESTAMP '{cut}')")
            assert then == expected(fact, place.rows_at(cut)), fact


def test_other_hours_of_the_past_are_refused(place: Place) -> None:
    publish.publish(place.home)
    with duckdb.connect(str(place.home / "analytics.duckdb"), read_only=True) as reader:
        with pytest.raises(duckdb.Error, match=r"coverage is recomputed: .* cuts of verified\.coverage"):
            figures(reader, "mart.coverage_as_of(TIMESTAMP '2026-03-02 07:00')")
        [(query,)] = reader.execute("SELECT as_it_was FROM about WHERE mart = 'mart.peers'").fetchall()
        assert sorted(reader.execute(query).fetchall())


def served(place: Place) -> dict[str, tuple[str, str]]:
    with duckdb.connect(str(place.home / "analytics.duckdb"), read_only=True) as reader:
        found = reader.execute("SELECT domain, served_from, reason FROM ops.serving").fetchall()
    return {domain: (source, reason) for domain, source, reason in found}


def spoilt(place: Place, model: str, right: str, wrong: str) -> str:
    """What a plan says once a word of a model is another."""
    path = place.project / "models" / model
    written = path.read_text()
    assert written.count(right) == 1
    path.write_text(written.replace(right, wrong))
    done = call("sqlmesh", "plan", "--no-prompts", "--skip-tests", "--auto-apply", cwd=place.project)
    return done.stdout + done.stderr


def test_a_fault_in_the_signed_rows_fails_the_receipt(place: Place) -> None:
    said = spoilt(place, "signed/each_source_table.sql", "TRUE, -1)", "TRUE, +1)")  # what an update takes away is added
    assert "'rebuild_equals_increments' audit error" in said


def test_a_fault_in_the_latest_images_fails_the_receipt(place: Place) -> None:
    spoilt(place, "source/each_mutable_table.sql", "MAX(position)", "MIN(position)")  # the first, not the last
    done = call("lockstep", "reconcile", "coverage", cwd=place.project)
    assert done.returncode == 1
    assert "modified" in done.stdout


def test_a_fault_in_the_published_rows_fails_the_live_receipt(place: Place) -> None:
    publish.publish(place.home)
    with duckdb.connect(str(place.home / "analytics.duckdb")) as writer:
        writer.execute("UPDATE folded.source__orders SET amount_cents = amount_cents + 1")
        writer.execute("UPDATE folded.pings__gps_pings SET __weight = 2 WHERE speed_kmh > 20")
    failed = {r.receipt["domain"]: r.receipt["verdict"] for r in live_receipts.reconcile(place.home)}
    assert failed == {"coverage": "failed", "peers": "failed", "baskets": "passed", "pings": "failed"}
    assert {fact: source for fact, (source, _) in served(place).items()} == {
        "coverage": "rebuild",
        "peers": "rebuild",
        "baskets": "live",
        "pings": "rebuild",
    }
    result = operate.run(place.home, place.shop.now)  # publishes from nothing, and compares again
    assert {source for source, _ in served(place).values()} == {"live"}, result
    compare_published(place)


def test_a_held_table_holds_the_facts_that_read_it(place: Place) -> None:
    before = {fact: expected(fact, place.shop.rows) for fact in QUERIES}
    reject(place.home, "customers", place.shop.now)
    work(place, random.Random(5), place.shop.now + 3 * HOUR)
    place.land()
    assert operate.run(place.home, place.shop.now).failures == []
    time.sleep(SETTLING.total_seconds() + 0.05)
    with duckdb.connect(str(place.home / "analytics.duckdb"), read_only=True) as reader:
        for fact in ("coverage", "peers", "pings"):
            assert figures(reader, f"mart.{fact}") == before[fact], fact
        assert figures(reader, "mart.baskets") == expected("baskets", place.shop.rows)  # which reads no customer
    assert {r.receipt["verdict"] for r in live_receipts.reconcile(place.home)} == {"passed"}


def test_what_is_said_of_them(place: Place) -> None:
    shown = call("lockstep", "facts", "--json", cwd=place.project).stdout
    of = {row["fact"]: row for row in json.loads(shown)}
    assert {row["increments"] for row in of.values()} == {"recomputed"}
    assert "FULL JOIN. Turn the tables round" in of["coverage"]["because"]
    assert of["baskets"]["because"].startswith("Its contract says so")
    publish.publish(place.home)
    measured = json.loads(call("lockstep", "facts", "--measure", "--json", cwd=place.project).stdout)
    assert {(row["cells"], row["hour_seconds"]) for row in measured} == {(None, None)}
    assert all(row["read_seconds"] > 0 and row["rebuild_seconds"] > 0 for row in measured)
    checked = json.loads(call("lockstep", "contract", "check", "--json", cwd=place.project).stdout)
    assert all(f"recomputed: {of[fit['domain']]['because']}" in fit["reason"] for fit in checked)
    explained = call("lockstep", "facts", "--explain", "peers", cwd=place.project).stdout
    assert "The rows of orders (state.peers__orders)" in explained
    assert "The figures (live.peers): the query as written" in explained
    assert call("lockstep", "reconcile", "peers", cwd=place.project).returncode == 0
    [found] = explain.explain(place.home, [contracts.load()["peers"]])
    assert found.is_clean
