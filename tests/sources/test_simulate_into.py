"""The simulated company in a PostgreSQL: loaded once, going on from whatever the tables hold, captured whole.

Awkward cases: killed at work, its connection cut, two at once, transactions that are given up wholly or in part, tables
that are others' by their columns or by their rows, a server that cannot be reached or does not allow it.
"""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import threading
import time
from contextlib import closing
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import psycopg2
import pytest
from click.testing import CliRunner

from lockstep import capture as capturing
from lockstep import simulate_into
from lockstep.cli import cli
from lockstep.errors import LockstepError
from lockstep.postgres import Source
from lockstep.schema import TABLES
from lockstep.simulate import History, open_world
from postgres import Cluster, assert_log_is_source, cluster, landed, shop

__all__ = ["cluster", "shop"]  # fixtures

UNTIL = datetime(2026, 1, 18, 13, 37, 5)
SMALL = (7, 1, 100, UNTIL)
GO_ON = (None, None, None, None)


@pytest.fixture
def empty(shop: Cluster) -> Cluster:
    """The running server with a database without any tables."""
    shop.execute(f"DROP TABLE {', '.join(TABLES)}")
    return shop


@pytest.fixture
def company(empty: Cluster) -> Cluster:
    simulate_into.run(empty.dsn(), SMALL, None, None, lambda _: None)
    return empty


def go_on(shop: Cluster, rate: float = 2000, seconds: float = 1) -> dict[str, Any]:
    return simulate_into.run(shop.dsn(), GO_ON, rate, seconds, lambda _: None)


def capture(shop: Cluster, home: Path) -> None:
    capturing.capture(home, Source(shop.dsn()), 0.05, until_caught_up=True)


def one(shop: Cluster, statement: str) -> Any:
    [[value]] = shop.execute(statement)
    return value


def counts(shop: Cluster) -> dict[str, int]:
    return {name: one(shop, f"SELECT COUNT(*) FROM {name}") for name in TABLES}


def test_company_is_loaded_as_the_history_ends(empty: Cluster) -> None:
    result = simulate_into.run(empty.dsn(), SMALL, None, None, lambda _: None)
    with open_world(History(UNTIL, 7, 1, 100)) as world:
        expected = world.snapshot(UNTIL)
    assert counts(empty) == {name: rows.num_rows for name, rows in expected.items()}
    assert result["loaded"] == sum(counts(empty).values())
    amounts = [image["amount_cents"] for image in expected["orders"]["after"].to_pylist()]
    assert one(empty, "SELECT SUM(amount_cents) FROM orders") == sum(amounts)
    # Its event times are those of the past, in UTC, whatever the session's time zone is.
    assert one(empty, "SELECT MAX(updated_at) FROM orders") <= UNTIL.replace(tzinfo=UTC)
    assert one(empty, "SELECT MAX(updated_at) FROM orders") > UNTIL.replace(tzinfo=UTC) - timedelta(hours=1)
    assert one(empty, "SELECT COUNT(*) FROM shipments WHERE route_id IS NULL") > 0


def test_tables_that_are_there_and_empty_are_filled(shop: Cluster) -> None:
    shop.execute(
        "ALTER TABLE orders ADD COLUMN gift_note text; ALTER TABLE routes ADD COLUMN van int NOT NULL DEFAULT 1"
    )
    simulate_into.run(shop.dsn(), SMALL, 500, 0.3, lambda _: None)
    assert min(counts(shop).values()) > 0


def test_company_is_not_loaded_twice(company: Cluster) -> None:
    before = counts(company)
    for history, rate in ((SMALL, None), (GO_ON, None), (SMALL, 100)):
        with pytest.raises(LockstepError, match="already: lockstep simulate --seed 7 --days 1 --orders-per-day 100"):
            simulate_into.run(company.dsn(), history, rate, 1, lambda _: None)
    assert counts(company) == before


def test_company_goes_on_and_its_log_is_the_source(company: Cluster, tmp_path: Path) -> None:
    capture(company, tmp_path)
    before, begun = counts(company), datetime.now(UTC)
    first, second = go_on(company), go_on(company)
    capture(company, tmp_path)
    assert 0 < first["changes"] <= 2000 * first["live_seconds"] * 1.3  # a busy machine does not come to as many
    after = counts(company)
    assert all(after[name] > before[name] for name in ("customers", "orders", "shipments", "routes", "gps_pings"))
    # Orders have been paid, loaded and delivered since; and the runs went on with what was open in the history.
    became = {row["after"]["status"].strip().lower() for row in landed(tmp_path, "orders") if row["op"] == "u"}
    assert became >= {"paid", "shipped", "complete"}
    assert one(company, f"SELECT MAX(updated_at) FROM orders WHERE order_id < {10**8}") > begun
    assert_log_is_source(company, tmp_path)

    changes = {name: landed(tmp_path, name) for name in TABLES}
    images = {name: {} for name in TABLES}
    for name, rows in changes.items():
        for row in rows:
            images[name][tuple((row["after"] or row["before"])[k] for k in TABLES[name].key)] = row["after"]
    assert {name: sum(image is not None for image in rows.values()) for name, rows in images.items()} == after
    amounts = sum(image["amount_cents"] for image in images["orders"].values() if image)
    assert amounts == one(company, "SELECT SUM(amount_cents) FROM orders")

    live = [row for rows in changes.values() for row in rows if row["op"] != "r"]
    assert len(live) >= first["changes"] + second["changes"]
    assert {row["op"] for row in live} == set("cud")
    by_transaction: dict[int, set[str]] = {}
    for name, rows in changes.items():
        for row in rows:
            by_transaction.setdefault(row["tx_id"], set()).add(name)
    assert any({"orders", "shipments", "routes", "route_stops"} <= tables for tables in by_transaction.values())


def test_log_has_what_makes_real_logs_hard(company: Cluster, tmp_path: Path) -> None:
    capture(company, tmp_path)
    go_on(company, rate=4000, seconds=2)
    capture(company, tmp_path)
    orders = [row for row in landed(tmp_path, "orders") if row["op"] != "r"]
    dropped = {(r["tx_id"], r["before"]["order_id"]) for r in orders if r["op"] == "d"}
    made = {(r["tx_id"], r["after"]["order_id"]) for r in orders if r["op"] == "c"}
    assert dropped & made, "no order is deleted and inserted again in one transaction"
    rekeyed = {tx for tx, _ in dropped - made} & {tx for tx, _ in made - dropped}
    assert rekeyed, "no order changes its key"
    assert any(r["op"] == "u" and r["before"]["amount_cents"] != r["after"]["amount_cents"] for r in orders)
    # Vans report in transactions that end after others which began later.
    rows = [(r["position"], r["tx_id"]) for name in TABLES for r in landed(tmp_path, name) if r["op"] != "r"]
    ids = [tx_id for _, tx_id in sorted(rows)]
    assert ids != sorted(ids), "transactions end in the order in which they began"


@pytest.mark.parametrize("ending", [text for _, text in simulate_into._ENDINGS])
def test_each_way_a_transaction_goes_does_its_work_once(
    company: Cluster, tmp_path: Path, ending: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(simulate_into, "_ENDINGS", ((1, ending),))
    capture(company, tmp_path)
    loaded = sum(counts(company).values())
    result = go_on(company, seconds=0.5)
    capture(company, tmp_path)
    assert_log_is_source(company, tmp_path)
    changes = [r for name in TABLES for r in landed(tmp_path, name)]
    rekeyed = len(changes) - loaded - result["changes"]  # a key update lands as two
    assert 0 <= rekeyed < 30


LIVE = [sys.executable, "-m", "lockstep.cli", "simulate", "--live", "--rate", "1000", "--json", "--into"]


def start(shop: Cluster) -> subprocess.Popen[str]:
    """The company at work in another process, which has committed something."""
    before = one(shop, "SELECT COUNT(*) FROM gps_pings")
    process = subprocess.Popen([*LIVE, shop.dsn()], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    while one(shop, "SELECT COUNT(*) FROM gps_pings") < before + 100:
        assert process.poll() is None, process.communicate()
        time.sleep(0.05)
    return process


def test_killed_company_goes_on(company: Cluster, tmp_path: Path) -> None:
    capture(company, tmp_path)
    process = start(company)
    process.kill()
    process.wait()
    go_on(company)
    capture(company, tmp_path)
    assert_log_is_source(company, tmp_path)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signal_ends_it_well(company: Cluster, number: int) -> None:
    process = start(company)
    process.send_signal(number)
    output, errors = process.communicate(timeout=120)
    assert process.returncode == 0, errors
    assert json.loads(output)["changes"] > 100


def test_lost_connection_is_said_and_leaves_whole_transactions(company: Cluster) -> None:
    process = start(company)
    company.execute(
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'lockstep simulate'"
    )
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 1
    assert "The connection to PostgreSQL was lost" in errors
    assert "goes on from there" in errors
    assert "Traceback" not in errors
    assert one(company, "SELECT COUNT(*) FROM orders WHERE status ILIKE '%paid%'") <= one(
        company, "SELECT COUNT(*) FROM shipments"
    )
    go_on(company)


def test_second_one_is_refused(company: Cluster) -> None:
    process = start(company)
    try:
        with pytest.raises(LockstepError, match="Another `lockstep simulate` is working in shop"):
            go_on(company)
    finally:
        process.terminate()
        process.communicate(timeout=120)


def test_other_writer_of_the_same_keys_is_named(company: Cluster) -> None:
    def take_the_next_ids() -> None:
        time.sleep(0.5)
        company.execute(
            "INSERT INTO gps_pings SELECT g, 1, 0, 0, 0, now() FROM generate_series("
            "(SELECT MAX(ping_id) + 100 FROM gps_pings), (SELECT MAX(ping_id) + 200 FROM gps_pings)) AS g"
        )

    other = threading.Thread(target=take_the_next_ids)
    other.start()
    with pytest.raises(LockstepError, match=r"Somebody else makes rows in this database: .*gps_pings"):
        go_on(company, seconds=20)
    other.join()


@pytest.mark.parametrize(
    ("before", "message"),
    [
        ("ALTER TABLE orders DROP COLUMN region", "table orders .* column region is gone"),
        ("ALTER TABLE orders ALTER COLUMN status TYPE varchar(9), ALTER amount_cents TYPE numeric", "amount_cents"),
        ("ALTER TABLE customers ADD COLUMN vat_id text NOT NULL", "column vat_id is NOT NULL"),
        ("DROP TABLE routes, drivers", "lacks drivers, routes"),
        ("INSERT INTO products VALUES (1, 'Tea', 'grocery', 100, now())", "rows that no simulation wrote"),
    ],
)
def test_tables_of_others_are_left_alone(shop: Cluster, before: str, message: str) -> None:
    shop.execute(before)
    with pytest.raises(LockstepError, match=message) as raised:
        go_on(shop)
    assert "Nothing was written" in str(raised.value)
    assert sum(one(shop, f"SELECT COUNT(*) FROM {n}") for n in ("orders", "customers", "products")) <= 1


def test_company_without_products_is_not_gone_on_with(company: Cluster) -> None:
    company.execute("TRUNCATE products")
    with pytest.raises(LockstepError, match=r"lost all its products.*TRUNCATE customers, "):
        go_on(company)
    company.execute(f"TRUNCATE {', '.join(TABLES)}")
    simulate_into.run(company.dsn(), SMALL, 500, 0.3, lambda _: None)
    assert min(counts(company).values()) > 0


def test_future_company_is_refused_before_it_is_loaded(empty: Cluster) -> None:
    with pytest.raises(LockstepError, match="which is in the future"):
        simulate_into.run(empty.dsn(), (7, 1, 10, datetime(2100, 1, 1)), 10, 1, lambda _: None)
    assert one(empty, "SELECT to_regclass('orders')") is None
    simulate_into.run(empty.dsn(), (7, 1, 10, datetime(2100, 1, 1)), None, None, lambda _: None)
    with pytest.raises(LockstepError, match="which is in the future"):
        go_on(empty)


def test_load_that_fails_leaves_nothing(empty: Cluster) -> None:
    empty.execute(
        "CREATE FUNCTION fail() RETURNS event_trigger LANGUAGE plpgsql AS $$ BEGIN RAISE 'no comment'; END $$;"
        "CREATE EVENT TRIGGER fail ON ddl_command_end WHEN TAG IN ('COMMENT') EXECUTE FUNCTION fail()"
    )
    with pytest.raises(LockstepError, match="PostgreSQL refuses a change: no comment"):
        simulate_into.run(empty.dsn(), SMALL, None, None, lambda _: None)
    assert one(empty, "SELECT to_regclass('orders')") is None
    empty.execute("DROP EVENT TRIGGER fail")
    simulate_into.run(empty.dsn(), SMALL, None, None, lambda _: None)
    assert min(counts(empty).values()) > 0


def test_missing_privileges_are_named(empty: Cluster) -> None:
    empty.execute("DROP ROLE IF EXISTS visitor; CREATE ROLE visitor LOGIN")
    with pytest.raises(LockstepError, match=r"permission denied for schema public.*GRANT CREATE ON SCHEMA public TO"):
        simulate_into.run(empty.dsn(user="visitor"), SMALL, None, None, lambda _: None)
    simulate_into.run(empty.dsn(), SMALL, None, None, lambda _: None)
    with pytest.raises(LockstepError, match=r"permission denied for table .*owns the eight tables"):
        simulate_into.run(empty.dsn(user="visitor"), GO_ON, 10, 1, lambda _: None)
    empty.execute("DROP ROLE visitor")


def test_server_that_only_reads_is_named(empty: Cluster) -> None:
    with pytest.raises(LockstepError, match=r"only reads.*primary"):
        dsn = f"{empty.dsn()}?options=-c%20default_transaction_read_only%3Don"
        simulate_into.run(dsn, SMALL, None, None, lambda _: None)


@pytest.mark.parametrize(
    ("dsn", "message"),
    [
        ("postgresql://nobody@127.0.0.1:1/shop", "cannot be reached"),
        ("postgresql//nobody", "cannot be read"),
        ("{server}/nowhere", 'database "nowhere" does not exist'),
    ],
)
def test_unreachable_server_is_named(cluster: Cluster, dsn: str, message: str) -> None:
    with pytest.raises(LockstepError, match=message):
        simulate_into.run(dsn.format(server=cluster.dsn("")[:-1]), SMALL, None, None, lambda _: None)


def test_command_leaves_the_data_home_alone(empty: Cluster, tmp_path: Path) -> None:
    home = tmp_path / "home"
    arguments = ["simulate", "--into", empty.dsn(), "--days", "1", "--orders-per-day", "50"]
    runner = CliRunner(env={"LOCKSTEP_HOME": str(home)})
    result = runner.invoke(cli, [*arguments, "--live", "--for", "0.5", "--rate", "300"])
    assert result.exit_code == 0, result.output
    assert "Loaded" in result.output
    assert "Committed" in result.output
    assert not home.exists()
    assert isinstance(runner.invoke(cli, arguments).exception, LockstepError)
    with closing(psycopg2.connect(empty.dsn())) as connection, connection.cursor() as cursor:
        cursor.execute("SELECT obj_description('orders'::regclass)")
        assert "--orders-per-day 50" in cursor.fetchall()[0][0]
