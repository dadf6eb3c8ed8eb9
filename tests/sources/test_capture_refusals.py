"""What keeps `lockstep capture` from going on is said in a sentence with what helps, and what helps is tried.

Awkward cases: a hot standby, an unlogged table, another database's address, a role with a short statement_timeout, a
slot that waits for a prepared transaction.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import threading
from contextlib import closing, suppress
from pathlib import Path

import psycopg2
import pytest

from lockstep import capture as capturing
from lockstep.errors import LockstepError
from lockstep.postgres import Source
from lockstep.private_postgres import private_directory
from postgres import Cluster, assert_log_is_source, cluster, required_programs, shop

__all__ = ["cluster", "shop"]  # fixtures

LOCKSTEP = str(Path(sys.executable).with_name("lockstep"))
ORDER = "INSERT INTO orders VALUES ({}, 1, 1, 'north', 1, 100, 'new', now(), now())"


def capture(shop: Cluster, home: Path, dsn: str | None = None, **options: bool) -> capturing.Captured:
    return capturing.capture(home, Source(dsn or shop.dsn()), 0.05, until_caught_up=True, **options)


def refusal(shop: Cluster, home: Path, dsn: str | None = None) -> str:
    with pytest.raises(LockstepError) as refused:
        capture(shop, home, dsn)
    return str(refused.value)


def test_a_hot_standby_names_the_primary(shop: Cluster, tmp_path: Path) -> None:
    programs = required_programs()
    with private_directory() as directory:
        standby = Cluster(programs, directory)
        data = directory / "data"
        shutil.rmtree(data)
        address = ["-h", "127.0.0.1", "-p", str(shop.port), "-U", "postgres"]
        standby._run("pg_basebackup", "-D", str(data), "-R", "-c", "fast", *address)
        with (data / "postgresql.conf").open("a") as file:
            file.write(f"port = {standby.port}\nunix_socket_directories = '{directory}'\n")
        standby.start()
        try:
            said = refusal(shop, tmp_path, standby.dsn())
            [[primary]] = standby.execute("SHOW primary_conninfo")
        finally:
            standby.close()
    assert "this server is a standby" in said
    assert "SHOW primary_conninfo;" in said
    port = re.search(r"port=(\d+)", primary)
    assert port is not None
    capture(shop, tmp_path, f"postgresql://postgres@127.0.0.1:{port[1]}/shop")


def test_an_unlogged_table_names_the_statement(shop: Cluster, tmp_path: Path) -> None:
    shop.execute("ALTER TABLE gps_pings SET UNLOGGED")
    said = refusal(shop, tmp_path)
    assert '"public"."gps_pings" is unlogged' in said
    shop.execute(next(line for line in said.splitlines() if "SET LOGGED" in line))
    capture(shop, tmp_path)


def test_another_database_is_read_through_debezium(tmp_path: Path) -> None:
    with pytest.raises(LockstepError, match=r"mysql:// is not an address of PostgreSQL.*lockstep ingest debezium:FILE"):
        capturing.capture(tmp_path, Source("mysql://root@127.0.0.1/shop"))


def test_a_roles_limits_do_not_end_a_capture(shop: Cluster, tmp_path: Path) -> None:
    shop.execute("DROP ROLE IF EXISTS hasty; CREATE ROLE hasty SUPERUSER LOGIN REPLICATION")
    shop.execute("ALTER ROLE hasty SET statement_timeout = '1ms'; ALTER ROLE hasty SET lock_timeout = '1ms'")
    shop.execute("INSERT INTO products SELECT i, 'p', 'c', 1, now() FROM generate_series(1, 20000) AS i")
    assert capture(shop, tmp_path, shop.dsn(user="hasty")).snapshot == 20_000


def test_a_slot_that_waits_says_what_for_and_can_be_stopped(shop: Cluster, tmp_path: Path) -> None:
    shop.set("max_prepared_transactions", "5")
    shop.restart()
    with closing(psycopg2.connect(shop.dsn())) as other, other.cursor() as cursor:
        cursor.execute(ORDER.format(1))
        cursor.execute("PREPARE TRANSACTION 'forgotten'")
    environment = {**os.environ, "LOCKSTEP_HOME": str(tmp_path)}
    process = subprocess.Popen([LOCKSTEP, "capture", shop.dsn()], env=environment, stderr=subprocess.PIPE, text=True)
    overdue = threading.Timer(60, process.kill)
    overdue.start()
    try:
        assert process.stderr is not None
        said = next(line for line in process.stderr if "waits for prepared" in line)
        process.send_signal(signal.SIGTERM)
        rest = process.stderr.read()
        assert process.wait() == 0, rest
        assert "stopped before the snapshot was complete" in rest
        assert "prepared transaction 'forgotten' of database shop" in said
        way_out = re.search(r"COMMIT PREPARED '[^']*';", said)
        assert way_out is not None
        shop.execute(way_out[0])
        assert capture(shop, tmp_path).snapshot == 1
    finally:
        overdue.cancel()
        with suppress(psycopg2.Error):
            shop.execute("ROLLBACK PREPARED 'forgotten'")
        process.kill()
        process.communicate()


def test_generated_columns_of_postgresql_18(shop: Cluster, tmp_path: Path) -> None:
    """Unless they are published, the server refuses every update of the table; virtual ones it cannot publish."""
    [[version]] = shop.execute("SELECT current_setting('server_version_num')::int")
    if version < 180000:
        pytest.skip("PostgreSQL 18 is the first that publishes generated columns")
    shop.execute("ALTER TABLE orders ADD total int GENERATED ALWAYS AS (quantity * 2) STORED")
    shop.execute(ORDER.format(1))
    shop.execute("CREATE PUBLICATION lockstep FOR TABLE orders, products, drivers, routes, route_stops, gps_pings")
    said = refusal(shop, tmp_path)
    assert "ALTER PUBLICATION" in said and "SET (publish_generated_columns = stored);" in said
    shop.execute("DROP PUBLICATION lockstep")
    capture(shop, tmp_path)
    shop.execute("UPDATE orders SET quantity = 5")
    capture(shop, tmp_path)
    assert_log_is_source(shop, tmp_path)
    shop.execute("ALTER TABLE products ADD twice int GENERATED ALWAYS AS (price_cents * 2) VIRTUAL")
    assert '"products" has a virtual generated column' in refusal(shop, tmp_path)
