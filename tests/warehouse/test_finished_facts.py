"""Facts whose query is more than sums: averages, ratios, distinct counts, extremes, HAVING, ranks, QUALIFY.

A project of its own with five such facts: one of a join, one of a single table with NULLs, one that groups its groups,
one that reads two tables side by side, so that it has two sets of cells, and one of rows that a window chooses.
Whatever is folded, live or published is compared with the queries as they are written, run by plain DuckDB over the
rows that a Python dictionary has.
"""

from __future__ import annotations

import json
import random
import re
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
from lockstep import contracts, explain, live_receipts, operate, publish, reconcile, warehouse
from lockstep.changelog import SETTLING
from place import HOUR, OPENED, Place, Rows, prepare
from shop import Shop, reject

QUERIES = {
    "baskets": """SELECT
  customers.region::TEXT AS home_region, COUNT(*)::BIGINT AS orders, AVG(orders.amount_cents)::DOUBLE AS average_cents,
  COUNT(DISTINCT orders.customer_id)::BIGINT AS buyers, MAX(orders.amount_cents)::BIGINT AS largest_cents,
  (SUM(orders.amount_cents) / COUNT(DISTINCT orders.customer_id))::DOUBLE AS per_buyer
FROM source.orders AS orders JOIN source.customers AS customers ON customers.customer_id = orders.customer_id
GROUP BY 1 HAVING COUNT(*) > 1""",
    "sizes": """SELECT
  region::TEXT AS region, status::TEXT AS status, AVG(quantity)::DOUBLE AS average_quantity,
  MIN(amount_cents)::BIGINT AS smallest_cents, SUM(NULLIF(quantity, 1))::BIGINT AS many
FROM source.orders GROUP BY ALL""",
    "buyers": """SELECT
  orders::BIGINT AS orders, COUNT(*)::BIGINT AS customers, MAX(cents)::BIGINT AS most_cents,
  RANK() OVER (ORDER BY MAX(cents) DESC)::BIGINT AS place
FROM (
  SELECT customer_id, COUNT(*) AS orders, SUM(amount_cents) AS cents FROM source.orders GROUP BY 1
) AS each_customer GROUP BY 1""",
    "shares": """SELECT
  region::TEXT AS region,
  (100.0 * COUNT(*) / (SELECT COUNT(*) FROM source.customers))::DOUBLE AS orders_per_customer
FROM source.orders GROUP BY 1""",
    "next_orders": """SELECT
  orders.customer_id::BIGINT AS customer_id, customers.region::TEXT AS home_region,
  orders.order_id::BIGINT AS next_order_id, orders.amount_cents::BIGINT AS next_cents
FROM source.orders AS orders LEFT JOIN source.customers AS customers ON customers.customer_id = orders.customer_id
WHERE orders.quantity > 1
QUALIFY ROW_NUMBER() OVER (PARTITION BY orders.customer_id ORDER BY orders.order_id) = 1""",
}
GRAINS = {
    "baskets": "home_region",
    "sizes": "region, status",
    "buyers": "orders",
    "shares": "region",
    "next_orders": "customer_id, home_region",
}
TABLES = ("orders", "customers")
MODELS = {
    f"rebuild/{fact}.sql": f"/* {fact}. */\nMODEL (name rebuild.{fact}, kind FULL, cron '@daily', start @log_eve(), "
    f"grain ({GRAINS[fact]}), depends_on (rebuild.cut, chain.orders, chain.customers));\n{query}\n"
    for fact, query in QUERIES.items()
}
CONTRACTS = [
    "baskets,sales,live,60,60,3,2,50,hold,orders,order_id,customers,,home_region,",
    "sizes,sales,live,60,60,3,2,50,hold,orders,order_id,,,region status,",
    "buyers,sales,live,60,60,3,2,50,hold,orders,order_id,,,orders,",
    "shares,sales,live,60,60,3,2,50,hold,orders,order_id,customers,,region,",
    "next_orders,sales,live,60,60,3,2,50,hold,orders,order_id,customers,,customer_id home_region,",
]
MEASURES = [
    "baskets,orders,sum,count,0,0,,,Orders",
    "baskets,average_cents,finish,ratio,0,0,,,Amount of an order",
    "baskets,buyers,finish,count,0,0,,,Customers with an order",
    "baskets,largest_cents,finish,cents,0,0,,,The largest order",
    "baskets,per_buyer,finish,ratio,0,0,,,Amount of a customer",
    "sizes,average_quantity,finish,ratio,0,0,,,Units of an order",
    "sizes,smallest_cents,finish,cents,0,0,,,The smallest order",
    "sizes,many,finish,count,0,0,,,Units of orders of more than one",
    "buyers,customers,finish,count,0,0,,,Customers with so many orders",
    "buyers,most_cents,finish,cents,0,0,,,What the best of them spent",
    "buyers,place,finish,count,0,0,,,Their place by that",
    "shares,orders_per_customer,finish,ratio,0,0,,,Orders for each hundred customers",
    "next_orders,next_order_id,finish,count,0,0,,,The first order of several units",
    "next_orders,next_cents,finish,cents,0,0,,,What it costs",
]
Figures = list[tuple[Any, ...]]


def expected(fact: str, rows: Rows) -> Figures:
    """The query as written, over these rows."""
    with duckdb.connect() as connection:
        connection.execute("CREATE SCHEMA source")
        for table in ("orders", "customers"):
            columns = pd.DataFrame(list(rows[table].values()))
            connection.register("given", columns)
            connection.execute(f"CREATE TABLE source.{table} AS FROM given")
        return connection.execute(f"SELECT * FROM ({QUERIES[fact]}) ORDER BY ALL").fetchall()


COLUMNS = {
    "baskets": "home_region, orders, average_cents, buyers, largest_cents, per_buyer",
    "sizes": "region, status, average_quantity, smallest_cents, many",
    "buyers": "orders, customers, most_cents, place",
    "shares": "region, orders_per_customer",
    "next_orders": "customer_id, home_region, next_order_id, next_cents",
}


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
            place.pass_two_nights(QUERIES, place.work, lambda: compare(place))
        contracts.load.cache_clear()
        return place

    return shared_home("finished-facts", build)


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
    for hours in (0, 2):  # the second run folds hours, and publishes on top of the publication before
        place.work(chance, place.shop.now + timedelta(minutes=40) + hours * HOUR)
        place.land()
        compare_published(place)
        assert operate.run(place.home, place.shop.now).failures == []
        compare_published(place)
    assert {r.receipt["verdict"] for r in live_receipts.reconcile(place.home)} == {"passed"}


@pytest.mark.parametrize("moment", [datetime(2026, 3, 2), datetime(2026, 3, 2, 7), datetime(2026, 3, 3, 5)])
def test_figures_as_they_were(place: Place, moment: datetime) -> None:
    publish.publish(place.home)
    with duckdb.connect(str(place.home / "analytics.duckdb"), read_only=True) as reader:
        for fact in QUERIES:
            then = figures(reader, f"mart.{fact}_as_of(TIMESTAMP '{moment}')")
            assert then == expected(fact, place.rows_at(moment)), fact


def test_a_spoilt_cell_fails_the_receipt_and_is_explained(place: Place) -> None:
    hour = datetime(2026, 3, 2, 7)
    with warehouse.writer(place.home) as connection:
        [(table,)] = connection.execute(
            "SELECT table_name FROM duckdb_tables() WHERE regexp_full_match(table_name, 'hourly__sizes__\\d+')"
        ).fetchall()
        spoil = f'UPDATE sqlmesh__hourly."{table}" SET __n = __n + 1 WHERE log_hour = ?'
        assert connection.execute(spoil, [hour]).fetchall()[0][0] > 0
    done = call("lockstep", "reconcile", "sizes", cwd=place.project)
    assert done.returncode == 1, done.stdout + done.stderr
    assert "smallest_cents" in done.stdout
    [found] = explain.explain(place.home, [contracts.load()["sizes"]], at=datetime(2026, 3, 3, 6))
    [finding] = found.findings
    assert finding.kind == explain.CHANGED_LATER
    assert finding.where.startswith(f"log hour {hour}")


def test_a_held_table_holds_the_facts_that_read_it(place: Place) -> None:
    before = {fact: expected(fact, place.shop.rows) for fact in QUERIES}
    reject(place.home, "customers", place.shop.now)
    place.work(random.Random(5), place.shop.now + 3 * HOUR)
    place.land()
    assert operate.run(place.home, place.shop.now).failures == []
    time.sleep(SETTLING.total_seconds() + 0.05)
    with duckdb.connect(str(place.home / "analytics.duckdb"), read_only=True) as reader:
        assert figures(reader, "mart.baskets") == before["baskets"]
        assert figures(reader, "mart.sizes") == expected("sizes", place.shop.rows)  # which reads no customer
    assert {r.receipt["verdict"] for r in live_receipts.reconcile(place.home)} == {"passed"}


def test_the_finish_is_shown(place: Place) -> None:
    shown = call("lockstep", "facts", cwd=place.project).stdout
    assert re.search(r"baskets +derived +models/rebuild/baskets.sql +orders x customers +finish", shown)
    explained = call("lockstep", "facts", "--explain", "shares", cwd=place.project).stdout
    assert explained.count("a set of the cells (cells.shares)") == 2
    assert "The figures (live.shares): the finish over these" in explained


def test_a_change_touches_the_cells_with_its_keys_alone(place: Place) -> None:
    """Of two sets of cells each has keys of its own, NULL in the other: by what both have, a change would touch all."""
    with duckdb.connect(str(place.home / "analytics.duckdb"), read_only=True) as reader:
        [(view,)] = reader.execute(
            "SELECT sql FROM duckdb_views() WHERE schema_name = 'live' AND view_name = 'shares'"
        ).fetchall()
    compared = set(re.findall(r"cells\.(\w+) (?:=|IS NOT DISTINCT FROM) moved\.", view))
    assert compared == {"__k", "__k1_1"}  # the first set is a single cell, without a key


def test_what_a_fact_costs_is_measured(place: Place) -> None:
    publish.publish(place.home)
    shown = json.loads(call("lockstep", "facts", "--measure", "--json", cwd=place.project).stdout)
    of = {row["fact"]: row for row in shown}
    assert all(row[name] > 0 for row in shown for name in ("hour_seconds", "read_seconds", "rebuild_seconds"))
    orders = place.rows_at(datetime(2026, 3, 3, 6))["orders"].values()
    assert of["sizes"]["cells"] == len({(o["region"], o["status"], o["amount_cents"]) for o in orders})
    assert of["next_orders"]["cells"] == len([o for o in orders if o["quantity"] > 1])  # and no copy of a table
    assert re.search(r"sizes .* [1-9][0-9.]*% .* ms", call("lockstep", "facts", "--measure", cwd=place.project).stdout)
    (place.home / "changelog" / "checkpoints.json").write_text('{"checkpoints": []}')  # as on the first day
    for row in json.loads(call("lockstep", "facts", "--measure", "--json", cwd=place.project).stdout):
        assert (row["hour_seconds"] is None) == (len(row["tables"]) > 1)


def test_the_hour_that_is_measured_is_the_one_that_was_folded(place: Place) -> None:
    with reconcile.planned() as models, warehouse.reader(place.home) as connection:
        for fact in QUERIES:
            [(hour,)] = connection.execute(f"SELECT MAX(log_hour) FROM hourly.{fact}").fetchall()
            folded = connection.execute(f"SELECT * FROM hourly.{fact} WHERE log_hour = ? ORDER BY ALL", [hour])
            expected = folded.fetchall()
            query = models.hour(f"hourly.{fact}", hour).sql("duckdb")
            assert connection.execute(f"SELECT * FROM ({query}) ORDER BY ALL").fetchall() == expected


def planned(place: Place) -> str:
    done = call("sqlmesh", "plan", "--no-prompts", "--skip-tests", "--auto-apply", cwd=place.project)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_a_changed_finish_computes_no_hour_anew_and_a_changed_condition_all(place: Place) -> None:
    path = place.project / "models" / "rebuild" / "baskets.sql"
    written = path.read_text()
    path.write_text(written.replace("HAVING COUNT(*) > 1", "HAVING COUNT(*) > 2"))
    said = planned(place)
    assert "live.baskets" in said
    assert "hourly.baskets" not in said
    assert operate.run(place.home, place.shop.now).failures == []
    with duckdb.connect(str(place.home / "analytics.duckdb"), read_only=True) as reader:
        of_two = [row for row in expected("baskets", place.shop.rows) if row[1] > 2]
        assert figures(reader, "mart.baskets") == of_two
    path.write_text(written.replace("GROUP BY 1 HAVING", "WHERE orders.quantity > 1 GROUP BY 1 HAVING"))
    said = planned(place)
    assert "hourly.baskets" in said
    assert "hourly.sizes" not in said
    assert operate.run(place.home, place.shop.now).failures == []
    kept = {key: row for key, row in place.shop.rows["orders"].items() if row["quantity"] > 1}
    with warehouse.reader(place.home) as connection:
        assert figures(connection, "live.baskets") == expected("baskets", {**place.shop.rows, "orders": kept})


def test_a_fact_becomes_recomputed_and_is_derived_again(place: Place) -> None:
    """The author may find that a fact is dear to derive, or that it is not. Until it is planned, nothing changes."""
    path = place.project / "seeds" / "contract_measures.csv"
    written = path.read_text()
    recomputed = "".join(
        line.replace(",finish,", ",recomputed,") if line.startswith("sizes,") else line
        for line in written.splitlines(keepends=True)
    )
    for text in (recomputed, written):
        path.write_text(text)
        contracts.load.cache_clear()
        before = operate.run(place.home, place.shop.now)
        assert before.failures == []
        assert any("was changed since it was planned" in note for note in before.notes)
        compare_published(place)
        planned(place)
        assert operate.run(place.home, place.shop.now).failures == []
        compare_published(place)
        with warehouse.reader(place.home) as connection:
            views = connection.execute("SELECT view_name FROM duckdb_views() WHERE schema_name = 'hourly'").fetchall()
        assert (("sizes",) in views) == (text == written)
        place.work(random.Random(7), place.shop.now + timedelta(minutes=40))
        place.land()
        compare_published(place)
