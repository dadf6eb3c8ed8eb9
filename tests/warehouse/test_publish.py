"""Publishing: what analysts read equals the warehouse, at any moment, to any reader, and as it was at any hour.

Awkward cases: several marts in one query while a writer lands transactions over several tables, a transaction held
open, one held too long, a reader of a superseded file, a product and a driver that only the tail knows, deletes and
corrections in the tail, a quarantined event in the tail, a domain in shadow, times that are no cut, a log that has
moved, a run under way, a publication that fails.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import re
import shutil
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import duckdb
import pytest
from click.testing import CliRunner

from company import UNTIL, two_days
from lockstep import changelog, operate, publish, warehouse
from lockstep.changelog import ChangeLog
from lockstep.cli import cli
from lockstep.contracts import load
from lockstep.errors import LockstepError
from lockstep.lock import exclusive
from lockstep.published import about
from lockstep.schema import TABLES
from shop import Shop, land

__all__ = ["two_days"]  # a fixture

CUT, MIDNIGHT = datetime(2026, 11, 18, 10), datetime(2026, 11, 18)
FIRST_HOUR = datetime(2026, 11, 16, 10)
SETTLED = changelog.SETTLING.total_seconds() + 0.05
NEW = 10_000_000  # keys from here on are the tests' own


@pytest.fixture
def built(two_days: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The shared home, to read only."""
    monkeypatch.setenv("LOCKSTEP_HOME", str(two_days))
    return two_days


@pytest.fixture
def home(two_days: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home of the test's own, published where it now lies."""
    home = tmp_path / "home"
    shutil.copytree(two_days, home, symlinks=True)
    monkeypatch.setenv("LOCKSTEP_HOME", str(home))
    publish.publish(home)
    return home


@contextmanager
def newest(home: Path) -> Iterator[duckdb.DuckDBPyConnection]:
    """The newest publication. By its own name: DuckDB gives a process the file again that it has open by a name."""
    newest = home / "published" / f"{publish._numbers(home / 'published')[-1]}.duckdb"
    assert newest.samefile(home / "analytics.duckdb")
    with duckdb.connect(str(newest), read_only=True) as connection:
        yield connection


def read(home: Path, query: str) -> list[tuple[Any, ...]]:
    """What the newest publication answers."""
    with newest(home) as connection:
        return connection.execute(query).fetchall()


def marts(home: Path) -> list[str]:
    return [name for (name,) in read(home, "SELECT mart FROM about ORDER BY mart")]


def land_all_kinds(home: Path, minute: int) -> None:
    """New rows, corrections, deletes, and members of dimensions that were not known when the file was published."""
    shop = Shop(UNTIL + timedelta(minutes=minute))
    key = NEW + 100 * minute
    shop.product(key, "unheard of")
    shop.insert("drivers", key, capacity_parcels=1)
    shop.insert("customers", key, region="south")
    for n in range(4):
        shop.order(key + n, product_id=key, customer_id=key, amount_cents=2_000_000 * (n % 2), ordered_at=MIDNIGHT)
        shop.insert("shipments", key + n, order_id=key + n, route_id=key, status="out_for_delivery")
    shop.change(key + 1, status="completed")
    shop.change(key + 2, region="east", ordered_at=MIDNIGHT - timedelta(days=1))
    shop.delete(key + 3)
    shop.insert("routes", key, driver_id=key)
    shop.insert("route_stops", (key, 1), shipment_id=key)
    shop.ping(key, ping_id=key, recorded_at=shop.now)
    land(home, shop.changes)


def assert_equal_to_the_warehouse(home: Path) -> None:
    time.sleep(SETTLED)
    with warehouse.reader(home) as connection, duckdb.connect(str(home / "analytics.duckdb"), read_only=True) as reader:
        for mart in marts(home):
            theirs = connection.execute(f"SELECT * FROM {mart}").fetchall()
            ours = reader.execute(f"SELECT * FROM {mart}").fetchall()
            assert Counter(map(repr, ours)) == Counter(map(repr, theirs)), mart
        serving = "SELECT domain, mode, served_from, as_of, verified_cut, reason, held FROM ops.serving ORDER BY domain"
        assert reader.execute(serving).fetchall() == connection.execute(serving).fetchall()


def test_every_mart_equals_the_warehouse_and_goes_on_doing_so(home: Path) -> None:
    assert_equal_to_the_warehouse(home)
    before = read(home, "SELECT SUM(orders) FROM mart.orders_hourly")
    for minute in (1, 2, 50):  # the last one in an hour that was not there yet
        land_all_kinds(home, minute)
    assert_equal_to_the_warehouse(home)
    assert read(home, "SELECT SUM(orders) FROM mart.orders_hourly") != before
    assert read(home, "SELECT SUM(orders) FROM mart.orders_hourly WHERE category = 'unheard of'") == [(9,)]


def test_folded_cells_follow_their_dimension(home: Path) -> None:
    """Those of a product that is known only now, of a version of a time past, of one with only another price."""
    shop = Shop(UNTIL + timedelta(minutes=1))
    for product in (NEW, NEW + 1):
        shop.order(product, product_id=product, ordered_at=MIDNIGHT)
    shop.product(NEW + 1, "books", updated_at=MIDNIGHT - timedelta(hours=2))
    land(home, shop.changes, reached=UNTIL + timedelta(hours=1))
    assert operate.run(home, UNTIL + timedelta(hours=1)).agrees
    time.sleep(SETTLED)
    assert read(home, f"SELECT COUNT(*) FROM folded.orders WHERE product_id >= {NEW}") == [(2,)]
    counts = "SELECT category, orders::INT FROM mart.orders_hourly WHERE category IN ('unknown', 'unheard of')"
    assert read(home, counts) == [("unknown", 1)]
    later = Shop(UNTIL + timedelta(hours=1, minutes=1))
    later.product(NEW, "unheard of")
    later.product(NEW + 1, "books", price_cents=700)
    land(home, later.changes)
    time.sleep(SETTLED)
    assert read(home, counts) == [("unheard of", 1)]
    assert_equal_to_the_warehouse(home)
    later.update("products", NEW + 1, category="unheard of", updated_at=MIDNIGHT - timedelta(hours=1))
    land(home, later.changes[-1:])
    time.sleep(SETTLED)
    assert read(home, counts) == [("unheard of", 2)]
    assert_equal_to_the_warehouse(home)


OTHER_SHAPES = [
    (
        r"(.*)COALESCE\(products.category, 'unknown'\)(.*) LEFT JOIN .*\)\)\)( .*)COALESCE\(.*?\)",
        r"\1'?'\2\3'?'",
        True,
    ),
    ("GROUP BY", "WHERE (orders.region != 'east') GROUP BY", False),
    (r"orders\.ordered_hour < products", "orders.as_of < products", False),
    (r"sum\(orders.units\)", "max(orders.units)", False),
]


def test_marts_of_another_shape_equal_the_warehouse_as_well(home: Path) -> None:
    """Without a dimension only the tail is there to add; what does more than add up cells is asked as it stands."""
    physical = relation(home, "mart.orders_hourly").replace("warehouse.", "")
    with warehouse.reader(home) as connection:
        [(sql,)] = connection.execute(
            "SELECT sql FROM duckdb_views() WHERE schema_name || '.' || view_name = ?", [physical]
        ).fetchall()
    for minute, (part, otherwise, adds_up) in enumerate(OTHER_SHAPES, start=1):
        changed, count = re.subn(part, otherwise, sql)
        assert count == 1, part
        with warehouse.writer(home) as connection:
            connection.execute(changed.replace("CREATE VIEW", "CREATE OR REPLACE VIEW"))
        publish.publish(home)
        assert ("folded.mart_orders_hourly" in contents(home)) == adds_up, part
        assert_equal_to_the_warehouse(home)
        land_all_kinds(home, minute)
        assert_equal_to_the_warehouse(home)


def test_a_hole_in_the_tail_stops_the_same_marts_as_in_the_warehouse(home: Path) -> None:
    land_all_kinds(home, 1)
    log = ChangeLog(home)
    quarantine_an_order(log)
    land_all_kinds(home, 3)
    time.sleep(SETTLED)
    held = "held since 2026-11-18 10:22:00 by 1 event of orders"
    as_of = UNTIL + timedelta(minutes=2) - timedelta(microseconds=1)
    for _ in range(2):
        assert read(home, "SELECT DISTINCT served_from, as_of FROM mart.orders") == [("live", as_of)]
        assert read(home, "SELECT SUM(orders)::INT FROM mart.orders WHERE product_id >= 10_000_000") == [(3,)]
        assert read(home, "SELECT DISTINCT as_of = TIMESTAMP '2026-11-18 10:23:00' FROM mart.delivery_status") == [
            (True,)
        ]
        assert read(home, "SELECT held FROM ops.serving WHERE domain = 'orders'") == [(held,)]
        assert_equal_to_the_warehouse(home)
        publish.publish(home)  # published over the hole
    [(reason,)] = read(home, "SELECT reason FROM about WHERE mart = 'mart.orders'")
    assert reason.endswith(f" passed; {held}")
    [(told, as_of_told)] = [
        (d["reason"], d["as_of"]) for d in operate.status(home)["domains"] if d["domain"] == "orders"
    ]
    assert told == reason and as_of_told == as_of
    with log.writer(str(log.watermark().source)) as writer:
        writer.resolve({}, [e for e in log.quarantined() if e["state"] == "open"])
    assert_equal_to_the_warehouse(home)
    assert read(home, "SELECT SUM(orders)::INT FROM mart.orders WHERE product_id >= 10_000_000") == [(6,)]
    assert read(home, "SELECT reason LIKE '%held%', held FROM ops.serving WHERE domain = 'orders'") == [(False, None)]


def quarantine_an_order(log: ChangeLog) -> None:
    import pyarrow as pa

    rejected = pa.table(
        {
            "ordinal": pa.array([0], pa.int64()),
            "committed_at": pa.array([UNTIL + timedelta(minutes=2)], pa.timestamp("us")),
            "table": ["orders"],
            "reason": ["planted"],
            "event": ["{}"],
        }
    )
    with log.writer(str(log.watermark().source)) as writer:
        writer.land({}, rejected)


# -- Readers while changes land


def land_transactions(home: str, started: Any, stop: Any) -> None:
    """Land transactions in small batches: each an order, a shipment and a position of one new driver.

    On a slow machine the last ones are all that the watermark remembers: no more than that may land.
    """
    os.environ["LOCKSTEP_HOME"] = home
    shop, n, batch = Shop(UNTIL), 0, 0
    while not stop.is_set():
        if batch == changelog.MOST_REMEMBERED // 2:
            stop.wait()
            return
        begun = len(shop.changes)
        for _ in range(1 + batch % 3):
            n += 1
            shop.now = UNTIL + timedelta(milliseconds=n)
            with shop.transaction():
                shop.order(NEW + n, product_id=1, customer_id=1)
                shop.insert("shipments", NEW + n, order_id=NEW + n)
                shop.ping(NEW + n, ping_id=NEW + n, recorded_at=shop.now)
        batch += 1
        land(Path(home), shop.changes[begun:])
        started.set()
        time.sleep(0.1)  # else the files become so many that readers hardly get to read


# Figures, and the as_of that comes with them, of three marts over three tables of the log.
THREE_MARTS = """
    SELECT
      (SELECT {'n': SUM(orders), 'as_of': MAX(as_of)} FROM mart.orders_hourly),
      (SELECT {'n': SUM(shipments), 'as_of': MAX(as_of)} FROM mart.delivery_hourly),
      (SELECT {'n': COUNT(*), 'as_of': MAX(as_of)} FROM mart.vehicle_positions),
      (SELECT {'n': NULL, 'as_of': MIN(as_of)} FROM ops.serving WHERE served_from = 'live')
"""


def test_readers_see_whole_transactions_in_order_while_they_land(home: Path) -> None:
    """as_of tells how many transactions a reader sees: each figure must be that of the publication plus as many."""
    [at_first] = read(home, THREE_MARTS)
    context = multiprocessing.get_context("spawn")
    started, stop = context.Event(), context.Event()
    writer = context.Process(target=land_transactions, args=(str(home), started, stop))
    writer.start()
    try:
        assert started.wait(600)
        seen = 0
        kept = duckdb.connect(str(home / "analytics.duckdb"), read_only=True)
        publisher = threading.Thread(target=publish.publish, args=(home,))
        publisher.start()  # while they read
        rounds = 0
        while rounds < 8 or seen <= 20:
            assert writer.is_alive()
            rounds += 1
            [row] = kept.execute(THREE_MARTS).fetchall()
            seen = assert_whole(row, at_first, seen)
            [fresh] = read(home, THREE_MARTS)  # whichever file is there now
            assert_whole(fresh, at_first, seen)
            kept.execute("BEGIN")
            first = kept.execute(THREE_MARTS).fetchall()
            time.sleep(0.05)
            for mart in ("orders", "delivery_status"):  # asked one by one, they still agree
                as_ofs = kept.execute(f"SELECT DISTINCT as_of FROM mart.{mart}").fetchall()
                assert as_ofs == [(first[0][0]["as_of"],)]
            assert kept.execute(THREE_MARTS).fetchall() == first
            kept.execute("COMMIT")
            seen = assert_whole(first[0], at_first, seen)
        publisher.join()
        kept.close()
    finally:
        stop.set()
        writer.join()
    assert writer.exitcode == 0
    assert_equal_to_the_warehouse(home)


def assert_whole(row: tuple[Any, ...], at_first: tuple[Any, ...], seen: int) -> int:
    assert len({figure["as_of"] for figure in row}) == 1, row
    transactions = (row[0]["as_of"] - at_first[0]["as_of"]) // timedelta(milliseconds=1)
    for now, first in zip(row[:3], at_first[:3], strict=True):
        assert now["n"] - first["n"] == transactions, row
    assert transactions >= seen
    return transactions


def test_a_landing_younger_than_its_settling_time_is_not_seen_yet(home: Path) -> None:
    """Then it is, whatever the session's time zone."""
    before = read(home, "SELECT position FROM changes.visible")
    land_all_kinds(home, 1)
    assert read(home, "SELECT position FROM changes.visible") == before
    time.sleep(SETTLED)
    landed = [(ChangeLog(home).watermark().position,)]
    assert read(home, "SELECT position FROM changes.visible") == landed
    with duckdb.connect(str(home / "analytics.duckdb"), read_only=True) as reader:
        reader.execute("SET TimeZone = 'Pacific/Auckland'")
        assert reader.execute("SELECT position FROM changes.visible").fetchall() == landed


def test_a_transaction_outliving_what_is_remembered_says_so(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(changelog, "MOST_REMEMBERED", 3)
    with duckdb.connect(str(home / "analytics.duckdb"), read_only=True) as reader:
        land_all_kinds(home, 1)
        time.sleep(SETTLED)
        reader.execute("BEGIN")
        before = reader.execute("SELECT position FROM changes.visible").fetchall()
        for minute in (2, 3):
            land_all_kinds(home, minute)
            assert reader.execute("SELECT position FROM changes.visible").fetchall() == before
        for minute in (4, 5, 6):
            land_all_kinds(home, minute)
        with pytest.raises(duckdb.InvalidInputException, match=r"began too long ago.*COMMIT"):
            reader.execute("SELECT COUNT(*) FROM mart.orders")
        reader.execute("ROLLBACK")
        time.sleep(SETTLED)
        assert reader.execute("SELECT COUNT(*) > 0 FROM mart.orders").fetchall() == [(True,)]


def test_landings_after_a_quiet_time_are_no_reason_to_refuse(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What was visible when the reader's transaction began is remembered, however long before that it had landed."""
    monkeypatch.setattr(changelog, "REMEMBERED", timedelta(microseconds=1))  # the publication landed long ago
    with duckdb.connect(str(home / "analytics.duckdb"), read_only=True) as reader:
        before = reader.execute("SELECT position FROM changes.visible").fetchall()
        reader.execute("BEGIN; SELECT now()")
        land_all_kinds(home, 1)
        land_all_kinds(home, 2)
        assert reader.execute("SELECT position FROM changes.visible").fetchall() == before


def test_no_older_landing_is_seen_after_the_clock_was_set_back(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    land_all_kinds(home, 1)
    with monkeypatch.context() as set_back:
        set_back.setattr(changelog, "_now", lambda: datetime.now(UTC).replace(tzinfo=None) - timedelta(minutes=5))
        land_all_kinds(home, 2)
    publish.publish(home)
    assert read(home, "SELECT position FROM changes.visible") == [(ChangeLog(home).watermark().position,)]
    assert_equal_to_the_warehouse(home)
    land_all_kinds(home, 3)
    time.sleep(SETTLED)
    assert read(home, "SELECT position FROM changes.visible") == [(ChangeLog(home).watermark().position,)]


# -- Files


def test_a_reader_of_a_superseded_file_stays_right(home: Path) -> None:
    with duckdb.connect(str(home / "analytics.duckdb"), read_only=True) as reader:
        land_all_kinds(home, 50)
        land_all_kinds(home, 61)
        result = operate.run(home, datetime(2026, 11, 18, 11, 30))  # folds the hour that the reader reads as its tail
        assert result.agrees, result.failures
        time.sleep(SETTLED)
        query = "SELECT * FROM mart.orders_hourly ORDER BY ALL"
        then = "SELECT * FROM mart.orders_hourly_as_of(TIMESTAMP '2026-11-18 10:00') ORDER BY ALL"
        assert reader.execute("SELECT MAX(cut) FROM about").fetchall() == [(CUT,)]
        assert read(home, "SELECT MAX(cut) FROM about") == [(CUT + timedelta(hours=1),)]
        assert reader.execute(query).fetchall() == read(home, query)
        assert reader.execute(then).fetchall() == read(home, then)
        assert publish.oldest_needed_hour(home) == CUT
    assert_equal_to_the_warehouse(home)


def test_a_file_stays_until_nobody_has_it_open(home: Path) -> None:
    first = publish.publish(home).number
    newest = publish.publish(home).number
    for path in (home / "published").glob("*.duckdb"):  # all of them superseded long ago
        os.utime(path, (0, 0))
    code = (
        "import duckdb, sys; c = duckdb.connect(sys.argv[1], read_only=True); "
        "print(c.execute('FROM about').fetchone(), flush=True); sys.stdin.read()"
    )
    file = str(home / "published" / f"{first}.duckdb")
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen([sys.executable, "-c", code, file], **pipes) as reader:  # type: ignore[call-overload]
        assert reader.stdout.readline()
        publish.publish(home)
        assert publish._numbers(home / "published") == [first, newest, newest + 1]
        reader.stdin.close()
    os.utime(home / "published" / f"{newest + 1}.duckdb", (0, 0))
    publish.publish(home)
    assert publish._numbers(home / "published") == [newest + 1, newest + 2]  # the last one stays for KEEP


def test_nothing_is_needed_where_nothing_is_published(tmp_path: Path) -> None:
    assert publish.oldest_needed_hour(tmp_path) is None


@pytest.mark.parametrize(("mart", "tables"), [("orders", 1), ("orders_hourly", 2), ("routes", 5)])
def test_a_query_reads_the_watermark_once_and_each_table_of_the_log_once(built: Path, mart: str, tables: int) -> None:
    """However often a mart mentions them: `mart.routes` has the cells of its domain in three places."""
    [(_, plan)] = read(built, f"EXPLAIN (FORMAT json) SELECT * FROM mart.{mart}")
    assert (plan.count('"name": "READ_JSON'), plan.count('"name": "READ_PARQUET')) == (1, tables)


def test_what_is_sealed_is_carried_over_and_not_read_again(home: Path) -> None:
    before = read(home, "SELECT * FROM changes.__products_sealed ORDER BY position")
    for hour in (home / "changelog" / "products").glob("hour=2026-11-1[67]*"):
        shutil.rmtree(hour)
    publish.publish(home)
    assert before and read(home, "SELECT * FROM changes.__products_sealed ORDER BY position") == before


def contents(home: Path) -> dict[str, Counter[str]]:
    """All that is in the newest publication but when it was made."""
    names = "SELECT schema_name || '.' || {0}_name FROM duckdb_{0}s() WHERE NOT internal"
    times = {"main.about": "EXCLUDE (published_at)", "ops.publication": "EXCLUDE (published_at)"}
    with newest(home) as connection:
        found = connection.execute(f"{names.format('table')} UNION ALL {names.format('view')} ORDER BY 1").fetchall()
        return {
            name: Counter(map(repr, connection.execute(f"SELECT * {times.get(name, '')} FROM {name}").fetchall()))
            for (name,) in found
            if name != "ops.stored"  # tells from when on a table was grown
        }


def made_anew(home: Path) -> dict[str, Counter[str]]:
    (home / "analytics.duckdb").unlink()
    publish.publish(home)
    return contents(home)


def relation(home: Path, model: str) -> str:
    with warehouse.reader(home) as connection:
        [(sql,)] = connection.execute(
            "SELECT sql FROM duckdb_views() WHERE schema_name || '.' || view_name = ?", [model]
        ).fetchall()
    return str(sql).split(" FROM ")[-1].rstrip(";")


def test_a_publication_grown_out_of_others_equals_one_made_anew(home: Path) -> None:
    sizes = []
    for minute in (1, 50, 130, 14 * 60 + 10):  # the same hour, the next, two later, and past a midnight's cut
        land_all_kinds(home, minute)
        assert operate.run(home, UNTIL + timedelta(minutes=minute)).agrees
        sizes.append((home / "analytics.duckdb").stat().st_size)
    [(folded, generations)] = read(
        home, "SELECT COUNT(DISTINCT log_hour), COUNT(DISTINCT v.cut) FROM hourly.orders, verified.orders AS v"
    )
    assert (folded, generations) == (43, 2)  # else the above was too short
    time.sleep(SETTLED)
    grown = contents(home)
    assert_equal_to_the_warehouse(home)
    assert grown == made_anew(home)
    # A copy is taken while no more of it is free than used, and what is written anew comes on top.
    assert max(sizes) < 3 * (home / "analytics.duckdb").stat().st_size


CHANGES_IN_THE_WAREHOUSE = [
    ("hourly.orders", "UPDATE {} SET orders = orders + 1 WHERE log_hour = TIMESTAMP '2026-11-18 08:00:00'"),
    ("hourly.orders", "UPDATE {} SET orders = orders + 1 WHERE log_hour = TIMESTAMP '2026-11-17 08:00:00'"),
    ("hourly.orders", "DELETE FROM {} WHERE log_hour = TIMESTAMP '2026-11-18 08:00:00'"),
    ("verified.orders", "UPDATE {} SET revenue_cents = 0 WHERE status = 'completed'"),
    ("verified.customers_daily", "UPDATE {} SET spend_rank = 7"),
]


def test_what_the_warehouse_has_otherwise_is_written_anew(home: Path) -> None:
    """Each change is found by a publication that grows out of the one before it."""
    before = contents(home)
    for model, change in CHANGES_IN_THE_WAREHOUSE:
        name = relation(home, model)
        with warehouse.writer(home) as connection:
            assert connection.execute(change.format(name)).fetchall() != [(0,)]
        publish.publish(home)
        after = contents(home)
        assert after != before, change
        assert after == made_anew(home), change
        before = after


def test_tables_that_nobody_needs_are_dropped_and_files_that_cannot_be_copied_are_done_without(home: Path) -> None:
    before = contents(home)
    with duckdb.connect(str(home / "analytics.duckdb")) as connection:
        connection.execute("CREATE TABLE changes.sealed AS SELECT 1 AS of_an_earlier_version")
        connection.execute("DROP VIEW mart.orders; CREATE TABLE mart.orders AS SELECT 1 AS when_it_was_a_table")
    publish.publish(home)
    assert contents(home) == before

    number = publish._numbers(home / "published")[-1]
    for path in (home / "analytics.duckdb", home / "published" / f"{number}.duckdb"):
        path.unlink()
        path.write_bytes(b"no database")
    publish.publish(home)
    assert contents(home) == before


def test_what_is_declared_personal_goes_out_of_the_bytes_too(home: Path) -> None:
    """DuckDB leaves what is dropped where it was, until the place is used again."""
    shop = Shop(UNTIL)
    for n in range(3000):
        shop.insert("customers", NEW + n, full_name=f"Jane Doe {n}")
    land(home, shop.changes, reached=UNTIL + timedelta(hours=1))
    customers = TABLES["customers"]
    columns = tuple(replace(c, is_personal=False) for c in customers.columns)
    with pytest.MonkeyPatch.context() as before_it_was_declared:
        before_it_was_declared.setitem(TABLES._found, "customers", replace(customers, columns=columns))
        assert operate.run(home, UNTIL + timedelta(hours=1)).failures == []  # folds the hour
        shown = "SELECT full_name FROM source.customers WHERE full_name = 'Jane Doe 2999'"
        assert read(home, shown) == [("Jane Doe 2999",)]
    of_them = (home / "published" / f"{publish._numbers(home / 'published')[-1]}.duckdb").read_bytes()
    assert of_them.count(b"Jane Doe") > 0
    publish.publish(home)
    assert "full_name" not in [column for column, *_ in read(home, "DESCRIBE source.customers")]
    assert (home / "analytics.duckdb").read_bytes().count(b"Jane Doe") == 0


def test_a_failed_publication_leaves_the_file_and_no_debris(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = (home / "analytics.duckdb").read_bytes()

    def fail(*_: object) -> None:
        raise duckdb.IOException("disk full")

    with monkeypatch.context() as patch:
        patch.setattr(about, "describe", fail)
        with pytest.raises(LockstepError, match=r"stays in place: .*disk full"):
            publish.publish(home)
        patch.setattr(operate, "_sqlmesh", lambda *_: [])
        result = operate.run(home, datetime(2026, 11, 18, 10, 40))
        assert [f for f in result.failures if f.startswith("publish: ")] and not result.agrees
    assert (home / "analytics.duckdb").read_bytes() == before
    number = publish.publish(home).number
    assert sorted(p.name for p in (home / "published").iterdir())[-1] == f"{number}.duckdb"
    assert not list((home / "published").glob("*.partial*"))


# -- What it says of itself


def test_comments_come_along(built: Path) -> None:
    query = (
        "SELECT table_name, column_name, comment FROM duckdb_columns() "
        "WHERE schema_name = 'mart' AND comment IS NOT NULL {} ORDER BY ALL"
    )
    with warehouse.reader(built) as connection:
        expected = connection.execute(query.format("")).fetchall()
    assert len(expected) > 100 and read(built, query.format("")) == expected
    uncommented = (
        "SELECT schema_name || '.' || {0}_name FROM duckdb_{0}s() WHERE schema_name = 'mart' AND comment IS NULL"
    )
    assert read(built, f"{uncommented.format('view')} UNION ALL {uncommented.format('table')}") == []


def test_about_says_what_each_mart_is(built: Path) -> None:
    about = {row["mart"]: row for row in rows(built, "FROM about")}
    assert set(about) == {f"mart.{p.stem}" for p in Path("models/mart").glob("*.sql") if p.stem != "each_domain"} | {
        f"mart.{domain}" for domain in load()
    }
    [receipt] = [r for r in operate.last_receipts(built) if r["domain"] == "orders"]
    orders = about["mart.orders_daily"]
    assert (orders["domain"], orders["owner"], orders["is_live"], orders["served_from"]) == (
        "orders",
        "commerce-analytics",
        True,
        "live",
    )
    assert (orders["receipt"], orders["receipt_cut"], orders["reconciled_at"]) == (
        "passed",
        MIDNIGHT,
        receipt["reconciled_at"],
    )
    assert (orders["cut"], orders["as_of"], orders["freshness_seconds"]) == (CUT, UNTIL, 60)
    assert str(built / "changelog") in orders["reads"]
    shadow = about["mart.customer_velocity"]
    assert (shadow["is_live"], shadow["served_from"], shadow["as_of"], shadow["reads"]) == (
        False,
        "rebuild",
        MIDNIGHT,
        None,
    )
    assert "shadow" in shadow["reason"]
    for row in about.values():
        for query in (row["query"], row["as_it_was"]):
            assert len(read(built, query)) > 0 or row["mart"] == "mart.high_value_alerts", query


def rows(home: Path, query: str) -> list[dict[str, Any]]:
    with duckdb.connect(str(home / "analytics.duckdb"), read_only=True) as connection:
        return warehouse.rows(connection, query)


def test_only_what_the_evidence_allows_is_live(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with warehouse.writer(home) as connection:
        failed = connection.execute("SELECT * FROM reconcile.orders_receipts").fetchall()[0]
        [physical] = connection.execute(
            "SELECT table_name FROM duckdb_tables() WHERE table_name LIKE 'reconcile__orders_receipts%'"
        ).fetchall()[0]
        place = [c[0] for c in connection.execute("DESCRIBE reconcile.orders_receipts").fetchall()]
        values = dict(zip(place, failed, strict=True)) | {"verdict": "failed"}
        values["reconciled_at"] += timedelta(hours=1)
        connection.execute(
            f"INSERT INTO sqlmesh__reconcile.{physical} VALUES ({', '.join('?' * len(place))})", list(values.values())
        )
    publish.publish(home)
    about = {row["mart"]: row for row in rows(home, "FROM about")}
    assert about["mart.orders_hourly"]["served_from"] == "rebuild"
    assert "failed" in about["mart.orders_hourly"]["reason"]
    assert about["mart.delivery_hourly"]["served_from"] == "live"
    land_all_kinds(home, 1)
    assert_equal_to_the_warehouse(home)
    assert read(home, "SELECT DISTINCT served_from, as_of FROM mart.orders_hourly") == [("rebuild", MIDNIGHT)]


# -- Time travel

HOURS = [FIRST_HOUR + timedelta(hours=1), MIDNIGHT - timedelta(hours=7), MIDNIGHT, CUT - timedelta(hours=3), CUT]


@pytest.mark.parametrize("moment", HOURS)
def test_figures_as_they_were_equal_a_recount_of_the_log(built: Path, moment: datetime) -> None:
    at = f"TIMESTAMP '{moment}'"

    def latest(table: str, *keys: str) -> str:
        """What lived then: the latest image of every key, straight from the files."""
        key = ", ".join(f"COALESCE(after.{name}, before.{name})" for name in keys)
        files = built / "changelog" / table / "*" / "*.parquet"
        return (
            f"(SELECT after.* FROM (SELECT * FROM '{files}' WHERE logged_at < {at} QUALIFY ROW_NUMBER() OVER "
            f"(PARTITION BY {key} ORDER BY position DESC) = 1) WHERE after IS NOT NULL)"
        )

    orders, shipments = latest("orders", "order_id"), latest("shipments", "shipment_id")
    stops = latest("route_stops", "route_id", "stop_number")
    recounts = {
        f"SELECT region, SUM(orders), SUM(revenue_cents) FROM mart.orders_hourly_as_of({at}) GROUP BY 1": (
            f"SELECT region, COUNT(*), SUM(amount_cents) FROM {orders} GROUP BY 1"
        ),
        f"SELECT window_hour, region, shipments, delivered FROM mart.delivery_hourly_as_of({at})": (
            f"SELECT DATE_TRUNC('hour', window_from_at), region, COUNT(*), COUNT(delivered_at) FROM {shipments} "
            "GROUP BY 1, 2"
        ),
        f"SELECT customer_id, SUM(orders)::BIGINT FROM mart.customers_as_of({at}) GROUP BY 1": (
            f"SELECT customer_id, COUNT(*) FROM {orders} GROUP BY 1"
        ),
        f"SELECT SUM(stops_planned)::BIGINT, SUM(parcels_on_board)::BIGINT FROM mart.routes_as_of({at})": (
            f"SELECT (SELECT COUNT(*) FROM {stops}), COUNT(*) FROM {shipments} "
            "WHERE status = 'out_for_delivery' AND route_id IS NOT NULL"
        ),
    }
    for query, recount in recounts.items():
        figures = Counter(read(built, query))
        assert figures and figures == Counter(duckdb.sql(recount).fetchall()), query


def test_at_its_cut_time_travel_is_the_verified_generation(built: Path) -> None:
    for contract in load().values():
        columns = ", ".join((*contract.grain, *contract.state))
        then = read(built, f"SELECT {columns} FROM mart.{contract.domain}_as_of(TIMESTAMP '{MIDNIGHT}')")
        verified = read(built, f"SELECT {columns} FROM verified.{contract.domain} WHERE cut = TIMESTAMP '{MIDNIGHT}'")
        assert verified and Counter(map(repr, then)) == Counter(map(repr, verified))


@pytest.mark.parametrize(
    ("moment", "message"),
    [
        ("TIMESTAMP '2026-11-18 09:30'", "full hour and not 2026-11-18 09:30:00"),
        (
            "TIMESTAMP '2026-11-18 11:00'",
            "reaches from 2026-11-16 10:00 to 2026-11-18 10:00 .UTC., not to 2026-11-18 11",
        ),
        ("TIMESTAMP '2026-11-16 09:00'", "reaches from 2026-11-16 10:00"),
        ("NULL", "orders_hourly_as_of needs a time"),
    ],
)
def test_time_travel_refuses_what_is_no_cut(built: Path, moment: str, message: str) -> None:
    with pytest.raises(duckdb.InvalidInputException, match=message):
        read(built, f"SELECT COUNT(*) FROM mart.orders_hourly_as_of({moment})")


# -- Errors and the command


def test_a_moved_log_is_named_and_publishing_mends_it(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    moved = home.with_name("moved")
    home.rename(moved)
    with pytest.raises(duckdb.IOException, match=str(home / "changelog")):
        read(moved, "SELECT * FROM mart.orders_hourly")
    [(reads,)] = read(moved, "SELECT DISTINCT reads FROM about WHERE is_live")
    assert str(home / "changelog") in reads and "lockstep publish" in reads
    assert read(moved, "SELECT COUNT(*) > 0 FROM mart.orders_hourly_as_of(TIMESTAMP '2026-11-18 10:00')") == [(True,)]
    publish.publish(moved)
    assert_equal_to_the_warehouse(moved)


def test_one_at_a_time_and_only_what_there_is(home: Path, tmp_path: Path) -> None:
    with exclusive(home / "warehouse.lock", "running the models"), pytest.raises(LockstepError, match="running the mo"):
        publish.publish(home)
    with pytest.raises(LockstepError, match="There is no change log"):
        publish.publish(tmp_path / "empty")


def test_the_command(home: Path) -> None:
    result = CliRunner().invoke(cli, ["publish"], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    assert "mart.orders_hourly" in result.output and str(home / "analytics.duckdb") in result.output
    told = json.loads(CliRunner().invoke(cli, ["publish", "--json"], catch_exceptions=False).output)
    assert told["size"] == (home / "analytics.duckdb").stat().st_size
    assert {m["mart"] for m in told["marts"]} == set(marts(home))


def test_an_attached_file_works_under_any_name(built: Path) -> None:
    with duckdb.connect() as connection:
        connection.execute(f"ATTACH '{built / 'analytics.duckdb'}' AS shop (READ_ONLY)")
        [(attached,)] = connection.execute("SELECT SUM(orders) FROM shop.mart.orders_hourly").fetchall()
        connection.execute("USE shop")
        [(then,)] = connection.execute("SELECT SUM(orders) FROM mart.orders_as_of('2026-11-18 10:00')").fetchall()
    assert attached >= then > 0
