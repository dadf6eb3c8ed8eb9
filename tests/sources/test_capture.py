"""`lockstep capture` against a real server: what lands is the source, once, whatever happens in between.

Awkward cases: snapshot under changes, TOAST left alone, key updates, TRUNCATE, rollbacks and savepoints, transactions
over several tables and larger than a part, columns that come, go and change, a server that restarts, a connection that
is cut, a slot that is lost, read by others or set back, a full disk, idleness, two captures at once.
"""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import date, datetime, timedelta
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from lockstep import capture as capturing
from lockstep import staging
from lockstep.capture import Captured
from lockstep.changelog import Batch, ChangeLog, Landed
from lockstep.cli import parse_seconds
from lockstep.errors import LockstepError
from lockstep.ingest import ingest
from lockstep.postgres import Source, parse_lsn
from lockstep.quarantine import retry
from lockstep.schema import TABLES
from postgres import Cluster, assert_log_is_source, cluster, landed, shop

__all__ = ["cluster", "shop"]  # fixtures

LOCKSTEP = str(Path(sys.executable).with_name("lockstep"))
NOW = "'2026-11-14 20:46:33.5+02'::timestamptz"


def capture(shop: Cluster, home: Path, **options: Any) -> Captured:
    """Land all that is committed by now; the slot is free again when this returns."""
    summary = capturing.capture(home, Source(shop.dsn()), 0.05, until_caught_up=True, **options)
    wait_until(lambda: active_pid(shop) is None)  # the server's process outlives the connection for a moment
    return summary


@contextmanager
def running(shop: Cluster, home: Path, *options: str) -> Iterator[subprocess.Popen[str]]:
    """`lockstep capture` as a process, once it follows the stream."""
    process = subprocess.Popen(
        [LOCKSTEP, "capture", shop.dsn(), "--trigger", "50ms", *options],
        env={**os.environ, "LOCKSTEP_HOME": str(home)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        log = ChangeLog(home)
        wait_until(lambda: log.exists() and log.watermark().resume.get("snapshot") == "complete")
        wait_until(lambda: active_pid(shop) is not None)
        yield process
    finally:
        if process.poll() is None:
            process.kill()
        process.communicate()


def active_pid(shop: Cluster, slot: str = "lockstep") -> int | None:
    rows = shop.execute("SELECT active_pid FROM pg_replication_slots WHERE slot_name = %s", (slot,))
    return rows[0][0] if rows else None


def wait_until(condition: Any, seconds: float = 120.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not happen in time"
        time.sleep(0.02)


def orders(first: int, last: int, status: str = "new") -> str:
    return (
        f"INSERT INTO orders SELECT g, 1, 1, 'north', 2, 100 * g, '{status}', {NOW}, now() "
        f"FROM generate_series({first}, {last}) AS g;"
    )


def products(first: int, last: int) -> str:
    return f"INSERT INTO products SELECT g, 'p' || g, 'tea', g, {NOW} FROM generate_series({first}, {last}) AS g;"


EVERY_TABLE = f"""
INSERT INTO customers VALUES (1, 'Zoë "Z" O''Neill', 'a,b\n"c"', '', {NOW}, {NOW});
INSERT INTO customers VALUES (2, '\\N', '\\.', ' ', {NOW}, {NOW});
{products(1, 3)}
{orders(1, 3)}
INSERT INTO drivers VALUES (1, 'D', 'north', 2147483647, {NOW});
INSERT INTO routes VALUES (9223372036854775807, 1, '2026-02-28', {NOW}, -1, {NOW});
INSERT INTO routes VALUES (2, 1, '0001-01-01', {NOW}, 0, {NOW});
INSERT INTO shipments VALUES
  (1, 1, NULL, 'north', 'created', NULL, {NOW}, {NOW}, NULL, {NOW}),
  (2, 2, 2, 'north', 'failed', '', {NOW}, {NOW}, {NOW}, '9999-12-31 23:59:59.999999+00');
INSERT INTO route_stops VALUES (2, 1, 1, {NOW}, 0.1, -1e-300, NULL), (2, 2, 2, {NOW}, 48.8430515917343, 1e15, {NOW});
INSERT INTO gps_pings VALUES (1, 1, 48.8, 2.2, 45.742393, {NOW}), (2, 1, 48.8, 2.2, 0.1, {NOW});
"""


def test_snapshot_and_stream_are_the_source(shop: Cluster, tmp_path: Path) -> None:
    shop.execute(EVERY_TABLE)
    first = capture(shop, tmp_path)
    assert_log_is_source(shop, tmp_path)
    assert {c["op"] for t in TABLES for c in landed(tmp_path, t)} == {"r"}
    for table in TABLES.values():
        if table.name != "gps_pings":
            shop.execute(f"DELETE FROM {table.name} WHERE {table.key[-1]} = 2")
    shop.execute("DELETE FROM route_stops")
    shop.execute("UPDATE customers SET full_name = full_name || '!'; UPDATE shipments SET route_id = 7")
    shop.execute(orders(10, 20))
    second = capture(shop, tmp_path)
    assert_log_is_source(shop, tmp_path)
    assert first.snapshot and not second.snapshot
    assert capture(shop, tmp_path).changes == 0


def test_the_stream_types_every_value_as_the_snapshot_does(shop: Cluster, tmp_path: Path) -> None:
    capture(shop, tmp_path)
    shop.execute(EVERY_TABLE)
    capture(shop, tmp_path)
    assert_log_is_source(shop, tmp_path)
    assert {c["op"] for t in TABLES for c in landed(tmp_path, t)} == {"c"}


def test_coordinates_are_the_sources(shop: Cluster, tmp_path: Path) -> None:
    capture(shop, tmp_path)
    shop.set("track_commit_timestamp", "on")
    shop.restart()
    shop.execute(f"BEGIN; {orders(1, 2)} {products(1, 1)} {orders(3, 3)} COMMIT")
    [(xid,)] = shop.execute("SELECT xmin::text::bigint FROM orders LIMIT 1")
    [(at,)] = shop.execute("SELECT extract(epoch FROM pg_xact_commit_timestamp(xmin)) FROM orders LIMIT 1")
    summary = capture(shop, tmp_path)
    changes = sorted(landed(tmp_path, "orders") + landed(tmp_path, "products"), key=lambda c: c["position"])
    assert [c["after"].get("order_id", "product") for c in changes] == [1, 2, "product", 3]
    assert {c["tx_id"] for c in changes} == {xid}
    assert {round(c["committed_at"].timestamp(), 6) for c in changes} == {float(at)}
    assert [c["lsn"] for c in changes] == sorted(c["lsn"] for c in changes)
    assert changes[-1]["lsn"] < parse_lsn(summary.lsn)


def test_a_toasted_value_that_an_update_leaves_alone_comes_out_whole(shop: Cluster, tmp_path: Path) -> None:
    shop.execute("ALTER TABLE products ALTER name SET STORAGE EXTERNAL")
    capture(shop, tmp_path)
    shop.execute(products(1, 2))
    shop.execute("UPDATE products SET name = repeat('tea', 5000)")
    shop.execute("UPDATE products SET price_cents = 7")
    shop.execute("DELETE FROM products WHERE product_id = 2")
    capture(shop, tmp_path)
    assert_log_is_source(shop, tmp_path)
    assert landed(tmp_path, "products")[-1]["before"]["name"] == "tea" * 5000


def test_a_key_update_is_a_delete_and_an_insert(shop: Cluster, tmp_path: Path) -> None:
    shop.execute(orders(1, 3))
    capture(shop, tmp_path)
    shop.execute("UPDATE orders SET order_id = order_id + 100 WHERE order_id < 3")
    assert capture(shop, tmp_path).changes == 4
    assert [c["op"] for c in landed(tmp_path, "orders")][3:] == ["d", "c", "d", "c"]
    assert_log_is_source(shop, tmp_path)


def test_truncate_lands_as_the_deletes_it_means(shop: Cluster, tmp_path: Path) -> None:
    shop.execute(orders(1, 5) + products(1, 4))
    capture(shop, tmp_path)
    shop.execute("DELETE FROM orders WHERE order_id = 1")
    shop.execute(f"BEGIN; {orders(6, 7)} TRUNCATE orders, products; {orders(5, 8)} COMMIT; {products(9, 9)}")
    capture(shop, tmp_path)
    assert_log_is_source(shop, tmp_path)
    assert [c["op"] for c in landed(tmp_path, "orders")] == ["r"] * 5 + ["d"] + ["c"] * 2 + ["d"] * 6 + ["c"] * 4


def test_rolled_back_work_never_lands(shop: Cluster, tmp_path: Path) -> None:
    capture(shop, tmp_path)
    shop.execute(f"BEGIN; {orders(1, 3)} ROLLBACK")
    shop.execute(f"BEGIN; {orders(4, 4)} SAVEPOINT a; {orders(5, 6)} ROLLBACK TO a; {orders(7, 7)} COMMIT")
    assert capture(shop, tmp_path).changes == 2
    assert_log_is_source(shop, tmp_path)


def test_other_tables_are_passed_over(shop: Cluster, tmp_path: Path) -> None:
    shop.execute("CREATE SCHEMA archive; CREATE TABLE archive.orders (LIKE public.orders); CREATE TABLE audit (a int)")
    shop.execute("CREATE PUBLICATION lockstep FOR ALL TABLES")
    capture(shop, tmp_path)
    shop.execute(orders(1, 2) + "INSERT INTO archive.orders SELECT * FROM orders; INSERT INTO audit VALUES (1)")
    assert capture(shop, tmp_path).changes == 2
    assert_log_is_source(shop, tmp_path)


def test_a_transaction_larger_than_a_part_becomes_visible_at_once(
    shop: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(capturing, "PART_ROWS", 100)
    capture(shop, tmp_path)
    seen: list[int] = []
    add = Batch.add
    monkeypatch.setattr(
        Batch, "add", lambda self, *a: (add(self, *a), seen.append(ChangeLog(tmp_path).watermark().position))[0]
    )
    shop.execute(f"BEGIN; {orders(1, 500)} {products(1, 500)} TRUNCATE products; {orders(501, 1000)} COMMIT")
    assert capture(shop, tmp_path).batches == 1
    assert len(seen) > 15 and set(seen) == {0}
    assert_log_is_source(shop, tmp_path)


def test_nothing_remains_of_a_batch_that_failed(shop: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(capturing, "PART_ROWS", 100)
    capture(shop, tmp_path)
    shop.execute(f"BEGIN; {orders(1, 500)} COMMIT")

    def fail(self: Batch, **_: Any) -> None:
        raise RuntimeError("planted")

    with monkeypatch.context() as planted:
        planted.setattr(Batch, "land", fail)
        with pytest.raises(RuntimeError, match="planted"):
            capture(shop, tmp_path)
    left = [path.name for path in (tmp_path / "changelog" / "orders").rglob("*") if not path.is_dir()]
    assert left == ["0-0.parquet"]
    assert capture(shop, tmp_path).changes == 500
    assert_log_is_source(shop, tmp_path)


def test_a_full_disk_stops_plainly_and_the_next_start_goes_on(
    shop: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    capture(shop, tmp_path)
    shop.execute(orders(1, 50) + products(1, 50))
    stage = staging.Stager._stage

    def full(self: staging.Stager, write: staging.Write) -> Any:
        if write.path.parent.parent.name == "products":
            write.path.with_name(write.path.name + ".partial").write_bytes(b"half")
            raise OSError(errno.ENOSPC, "No space left on device")
        return stage(self, write)

    with monkeypatch.context() as planted:
        planted.setattr(staging.Stager, "_stage", full)
        with pytest.raises(LockstepError, match=r"disk of .* is full"):
            capture(shop, tmp_path)
    assert ChangeLog(tmp_path).watermark().position == 0
    assert not list(tmp_path.glob("changelog/*/*/*.partial"))
    assert capture(shop, tmp_path).changes == 100
    assert_log_is_source(shop, tmp_path)


def test_an_added_column_is_carried_along(shop: Cluster, tmp_path: Path) -> None:
    shop.execute(orders(1, 2))
    capture(shop, tmp_path)
    shop.execute("ALTER TABLE orders ADD note text, ADD weight int; " + orders(3, 3))
    shop.execute("UPDATE orders SET note = 'frágil', weight = 3")
    summary = capture(shop, tmp_path)
    assert summary.quarantined == 0
    assert landed(tmp_path, "orders")[-1]["after"]["extra"] == '{"note":"frágil","weight":3}'
    live = {c["after"]["order_id"]: c["after"]["extra"] for c in landed(tmp_path, "orders")}
    assert set(live.values()) == {'{"note":"frágil","weight":3}'}


def test_ingest_of_the_same_changes_lands_the_same_rows(shop: Cluster, tmp_path: Path) -> None:
    capture(shop, tmp_path / "native")
    shop.execute(
        "ALTER TABLE orders ADD z text, ADD a bigint, ADD flag boolean, ADD f float8, ADD r real, ADD at timestamptz, "
        "ADD day date, ADD moment timestamp, ADD exact numeric"
    )
    shop.execute(EVERY_TABLE)
    for number, z in ((1, "'q\"\\ \t\n é 🚚 \u007f/' || chr(1) || chr(31)"), (2, "''"), (3, "NULL")):
        shop.execute(
            f"UPDATE orders SET z = {z}, a = -9223372036854775808, flag = true, at = {NOW}, "
            f"f = (ARRAY[1e16, 1e-7, 1e-6])[{number}], r = (ARRAY[1e21, 16777216, 1.1])[{number}], "
            f"day = '1969-12-31', moment = {NOW}, exact = 1.50 WHERE order_id = {number}"
        )
    shop.execute("DELETE FROM orders; DELETE FROM shipments")
    capture(shop, tmp_path / "native")
    events = sorted(
        ((c["position"], _envelope(t, c)) for t in TABLES for c in landed(tmp_path / "native", t)), key=lambda e: e[0]
    )
    file = tmp_path / "events.jsonl"
    file.write_text("".join(f"{event}\n" for _, event in events), encoding="utf-8")
    ingest(tmp_path / "ingested", [str(file)], ends_transactions=True)
    for table in TABLES:
        assert landed(tmp_path / "native", table) == landed(tmp_path / "ingested", table)


def _envelope(table: str, change: dict[str, Any]) -> str:
    """A landed change as Debezium would have sent it, its columns in `extra` where they were."""

    def image(values: dict[str, Any] | None) -> str:
        if values is None:
            return "null"
        plain = {
            name: f"{v:%Y-%m-%dT%H:%M:%S.%f}Z".rjust(27, "0")
            if isinstance(v, datetime)
            else (v - date(1970, 1, 1)).days
            if isinstance(v, date)
            else v
            for name, v in values.items()
            if name != "extra"
        }
        text = json.dumps(plain, ensure_ascii=False)
        return text if values["extra"] is None else f"{text[:-1]}, {values['extra'][1:]}"

    at_us = (change["committed_at"] - datetime(1970, 1, 1)) // timedelta(microseconds=1)
    source = {"connector": "postgresql", "db": "shop", "table": table, "ts_us": at_us}
    source |= {"txId": change["tx_id"], "lsn": change["lsn"]}
    images = f'"before":{image(change["before"])},"after":{image(change["after"])}'
    return f'{{"op":"{change["op"]}",{images},"source":{json.dumps(source)}}}'


def test_a_dropped_column_holds_its_table_and_a_warning_names_the_remedy(
    shop: Cluster, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    capture(shop, tmp_path)
    shop.execute(orders(1, 2))
    shop.execute("ALTER TABLE orders DROP COLUMN amount_cents")
    shop.execute("UPDATE orders SET status = 'complete'; " + products(1, 2))
    summary = capture(shop, tmp_path)
    assert (summary.changes, summary.quarantined) == (4, 2)
    assert set(ChangeLog(tmp_path).watermark().holds) == {"orders"}
    assert {e["reason"] for e in ChangeLog(tmp_path).quarantined()} == {
        "column amount_cents is gone from the source table: leave it out of source_schema.sql, start "
        "`lockstep capture` again, then `lockstep quarantine retry --all`"
    }
    capture(shop, tmp_path)
    assert 'ALTER TABLE "public"."orders" ADD COLUMN "amount_cents" bigint;' in caplog.text


def test_a_retyped_column_waits_in_quarantine_and_can_be_retried(shop: Cluster, tmp_path: Path) -> None:
    shop.execute(orders(1, 2))
    capture(shop, tmp_path)
    shop.execute("ALTER TABLE orders ALTER amount_cents TYPE numeric(20)")
    shop.execute("UPDATE orders SET status = 'complete' WHERE order_id = 2")
    assert capture(shop, tmp_path).quarantined == 1
    [entry] = ChangeLog(tmp_path).quarantined()
    assert json.loads(entry["event"])["after"]["amount_cents"] == "200"
    assert not retry(tmp_path, [entry["position"]]).failed
    assert ChangeLog(tmp_path).watermark().holds == {}
    shop.execute("ALTER TABLE orders ALTER amount_cents TYPE bigint")
    assert_log_is_source(shop, tmp_path)


def test_an_update_without_its_before_image_is_quarantined(shop: Cluster, tmp_path: Path) -> None:
    shop.execute(orders(1, 2) + f"INSERT INTO gps_pings VALUES (1, 1, 1, 1, 1, {NOW})")
    capture(shop, tmp_path)
    shop.execute("ALTER TABLE orders REPLICA IDENTITY DEFAULT")
    shop.execute("UPDATE orders SET status = 'x' WHERE order_id = 1; DELETE FROM orders WHERE order_id = 2")
    shop.execute("UPDATE gps_pings SET speed_kmh = 2")
    assert capture(shop, tmp_path).quarantined == 3
    reasons = {e["table"]: e["reason"] for e in ChangeLog(tmp_path).quarantined()}
    assert "ALTER TABLE orders REPLICA IDENTITY FULL;" in reasons["orders"]
    assert set(ChangeLog(tmp_path).watermark().holds) == {"orders"}, "GPS is skipped, not held"


@pytest.mark.parametrize(
    ("spoil", "said", "mended_by"),
    [
        (
            "ALTER TABLE orders REPLICA IDENTITY DEFAULT",
            "REPLICA IDENTITY FULL",
            "ALTER TABLE {} REPLICA IDENTITY FULL;",
        ),
        (
            "ALTER TABLE orders DROP CONSTRAINT orders_pkey",
            "no primary key",
            'ALTER TABLE {} ADD PRIMARY KEY ("order_id");',
        ),
        ("ALTER TABLE orders DROP region", "region is gone", 'ALTER TABLE {} ADD COLUMN "region" text;'),
        (
            "ALTER TABLE orders ALTER quantity TYPE bigint",
            "quantity is no longer integer",
            'ALTER TABLE {} ALTER COLUMN "quantity" TYPE integer USING "quantity"::integer;',
        ),
        ("ALTER TABLE orders RENAME TO o", 'table "public"."orders" is missing', "--schema"),
        (
            "CREATE PUBLICATION lockstep FOR TABLE customers",
            "lacks products, orders",
            'ALTER PUBLICATION "lockstep" ADD TABLE "public"."products", {}',
        ),
        (
            "CREATE PUBLICATION lockstep FOR ALL TABLES WITH (publish = 'insert')",
            "leaves out some kinds of changes",
            "ALTER PUBLICATION \"lockstep\" SET (publish = 'insert, update, delete, truncate');",
        ),
        (
            "CREATE PUBLICATION lockstep FOR TABLE customers, products, drivers, routes, shipments, route_stops, "
            "gps_pings, orders WHERE (order_id > 5)",
            "leaves out rows outside (order_id > 5) of orders",
            'ALTER PUBLICATION "lockstep" ADD TABLE {};',
        ),
    ],
)
def test_a_source_that_is_not_ready_is_refused_with_the_remedy(
    shop: Cluster, tmp_path: Path, spoil: str, said: str, mended_by: str
) -> None:
    shop.execute(spoil)
    with pytest.raises(LockstepError) as refusal:
        capture(shop, tmp_path)
    assert said in str(refusal.value)
    assert mended_by.format('"public"."orders"') in str(refusal.value)
    assert active_pid(shop) is None
    assert not shop.execute("SELECT 1 FROM pg_replication_slots")


def test_a_user_without_privileges_is_told_what_to_grant(shop: Cluster, tmp_path: Path) -> None:
    shop.execute("DROP ROLE IF EXISTS reader; CREATE ROLE reader LOGIN")
    source = Source(shop.dsn(user="reader"))
    with pytest.raises(LockstepError, match="ALTER ROLE reader REPLICATION;"):
        capturing.capture(tmp_path, source)
    shop.execute("ALTER ROLE reader REPLICATION")
    with pytest.raises(LockstepError, match=r'GRANT SELECT ON "public"."orders" TO reader;'):
        capturing.capture(tmp_path, source)
    shop.execute("GRANT SELECT ON ALL TABLES IN SCHEMA public TO reader")
    with pytest.raises(LockstepError, match=r'CREATE PUBLICATION "lockstep" FOR TABLE "public"."customers"'):
        capturing.capture(tmp_path, source)
    shop.execute("CREATE PUBLICATION lockstep FOR ALL TABLES")
    shop.execute(orders(1, 2))
    assert capturing.capture(tmp_path, source, until_caught_up=True).snapshot == 2


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("wal_level", "replica", "ALTER SYSTEM SET wal_level = logical;  -- then restart the server"),
        ("max_replication_slots", "1", "ALTER SYSTEM SET max_replication_slots = 6;"),
        ("max_wal_senders", "0", "max_wal_senders"),
    ],
)
def test_a_server_that_is_not_ready_is_refused_with_the_remedy(
    shop: Cluster, tmp_path: Path, name: str, value: str, said: str
) -> None:
    if name == "max_replication_slots":
        shop.execute("SELECT pg_create_physical_replication_slot('other')")
    shop.set(name, value)
    shop.restart()
    try:
        with pytest.raises(LockstepError) as refusal:
            capture(shop, tmp_path)
        assert said in str(refusal.value)
    finally:
        shop.execute(f"ALTER SYSTEM RESET {name}", database="postgres")
        shop.restart()


def test_no_server_and_no_connection_string(tmp_path: Path) -> None:
    with pytest.raises(LockstepError, match="PostgreSQL cannot be reached"):
        capturing.capture(tmp_path, Source("postgresql://127.0.0.1:1/shop"))
    with pytest.raises(LockstepError, match="connection string cannot be read"):
        capturing.capture(tmp_path, Source("postgresql//nonsense"))


def test_a_second_capture_is_told_of_the_first(shop: Cluster, tmp_path: Path) -> None:
    with running(shop, tmp_path / "one") as first:
        with pytest.raises(LockstepError, match=f"process {first.pid}"):
            capture(shop, tmp_path / "one")
        with pytest.raises(LockstepError, match="this change log does not know it: another capture may be using it"):
            capture(shop, tmp_path / "two")
        # The same log on another machine, say: a copy of the home.
        with ChangeLog(tmp_path / "copy").writer("postgresql:shop") as writer:
            writer.land({}, resume=ChangeLog(tmp_path / "one").watermark().resume)
        with pytest.raises(LockstepError, match=f"being read by server process {active_pid(shop)} .lockstep capture"):
            capture(shop, tmp_path / "copy")


def test_a_lost_slot_is_refused_and_a_new_snapshot_doubles_nothing(shop: Cluster, tmp_path: Path) -> None:
    shop.execute(EVERY_TABLE + orders(10, 40))
    capture(shop, tmp_path)
    shop.execute("SELECT pg_drop_replication_slot('lockstep')")
    shop.execute("UPDATE orders SET status = 'complete' WHERE order_id = 10; DELETE FROM orders WHERE order_id = 11")
    shop.execute("UPDATE orders SET order_id = 111 WHERE order_id = 12; TRUNCATE drivers;" + products(70, 70))
    with pytest.raises(LockstepError, match=r"slot lockstep is gone.*`--new-snapshot`"):
        capture(shop, tmp_path)
    assert capture(shop, tmp_path, new_snapshot=True).snapshot == 6
    assert_log_is_source(shop, tmp_path)
    assert capture(shop, tmp_path, new_snapshot=True).snapshot == 0
    shop.execute("UPDATE orders SET status = 'back in the stream' WHERE order_id = 10")
    assert capture(shop, tmp_path).changes == 1
    assert_log_is_source(shop, tmp_path)


def test_a_new_snapshot_discards_the_quarantined_events_that_it_holds(shop: Cluster, tmp_path: Path) -> None:
    shop.execute(orders(1, 3))
    capture(shop, tmp_path)
    shop.execute("ALTER TABLE orders ALTER amount_cents TYPE numeric(20)")
    shop.execute("UPDATE orders SET status = 'complete' WHERE order_id = 2; DELETE FROM orders WHERE order_id = 3")
    assert capture(shop, tmp_path).quarantined == 2
    shop.execute("ALTER TABLE orders ALTER amount_cents TYPE bigint")
    assert capture(shop, tmp_path, new_snapshot=True).snapshot == 2
    assert {e["state"] for e in ChangeLog(tmp_path).quarantined()} == {"discarded"}
    assert ChangeLog(tmp_path).watermark().holds == {}
    assert_log_is_source(shop, tmp_path)
    with pytest.raises(LockstepError, match="discarded already"):
        retry(tmp_path, [4])


def test_an_event_stays_open_until_the_snapshot_that_holds_it_has_landed(
    shop: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shop.execute(orders(1, 1))
    capture(shop, tmp_path)
    shop.execute("ALTER TABLE orders REPLICA IDENTITY DEFAULT; UPDATE orders SET status = 'x'")
    assert capture(shop, tmp_path).quarantined == 1
    shop.execute("ALTER TABLE orders REPLICA IDENTITY FULL")

    def fail(self: Batch, **options: Any) -> Landed:
        if self.watermark.position > 2:
            raise RuntimeError("planted")
        return _land(self, **options)

    with monkeypatch.context() as planted:
        planted.setattr(Batch, "land", fail)
        with pytest.raises(RuntimeError, match="planted"):
            capture(shop, tmp_path, new_snapshot=True)
    assert [e["state"] for e in ChangeLog(tmp_path).quarantined()] == ["open"]
    assert set(ChangeLog(tmp_path).watermark().holds) == {"orders"}
    assert capture(shop, tmp_path).snapshot == 1
    assert_log_is_source(shop, tmp_path)


def test_a_row_that_a_new_snapshot_cannot_read_comes_back_once_by_a_retry(shop: Cluster, tmp_path: Path) -> None:
    shop.execute(orders(1, 2))
    capture(shop, tmp_path)
    shop.execute("SELECT pg_drop_replication_slot('lockstep'); UPDATE orders SET ordered_at = 'infinity', quantity = 7")
    capture(shop, tmp_path, new_snapshot=True)
    entries = ChangeLog(tmp_path).quarantined()
    assert [e["state"] for e in entries] == ["open"] * 2
    assert set(ChangeLog(tmp_path).watermark().holds) == {"orders"}
    [first, _] = entries
    path = next(p for p in ChangeLog(tmp_path).quarantine.glob("*.jsonl") if str(first["position"]) in p.name)
    path.write_text(path.read_text().replace("infinity", "2026-11-14T00:00:00Z"))  # as a laxer version would read it
    result = retry(tmp_path, [e["position"] for e in entries])
    assert not result.failed
    changes = landed(tmp_path, "orders")
    assert [(c["op"], c["before"] is None) for c in changes[2:]] == [("r", False)] * 2 + [("r", True)] * 2
    assert sum((c["after"] is not None) - (c["before"] is not None) for c in changes) == 2


@pytest.mark.parametrize("decision", ["retry", "discard"])
def test_a_quarantined_event_is_decided_about_while_a_capture_runs(
    shop: Cluster, tmp_path: Path, decision: str
) -> None:
    environment = {**os.environ, "LOCKSTEP_HOME": str(tmp_path)}
    shop.execute(orders(1, 3))
    with running(shop, tmp_path) as process:
        shop.execute("ALTER TABLE orders ALTER amount_cents TYPE numeric(20)")
        shop.execute("UPDATE orders SET status = 'complete' WHERE order_id = 2")
        wait_until(lambda: ChangeLog(tmp_path).watermark().holds)
        command = [LOCKSTEP, "quarantine", decision, "--all", *(["--yes"] if decision == "discard" else [])]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
        assert done.returncode == 0, done.stderr
        state = {"retry": "landed", "discard": "discarded"}[decision]
        assert [e["state"] for e in ChangeLog(tmp_path).quarantined()] == [state]
        shop.execute(products(1, 5))
        wait_until(lambda: len(landed(tmp_path, "products")) == 5)
        assert ChangeLog(tmp_path).watermark().holds == {}, "the capture still thinks the table held"
        assert process.poll() is None
        process.terminate()
        _, errors = process.communicate(timeout=120)
    assert process.returncode == 0, errors
    assert "lent the change log" in errors
    if decision == "retry":
        shop.execute("ALTER TABLE orders ALTER amount_cents TYPE bigint")
        assert_log_is_source(shop, tmp_path)


def test_a_capture_takes_the_log_back_from_a_borrower_that_is_killed(shop: Cluster, tmp_path: Path) -> None:
    borrow = (
        "import sys, time; from pathlib import Path; from lockstep.changelog import ChangeLog\n"
        "with ChangeLog(Path(sys.argv[1])).writer('postgresql:shop', 'borrowing', patience=20):\n"
        "    print('mine', flush=True); time.sleep(60)"
    )
    with running(shop, tmp_path) as process:
        command = [sys.executable, "-c", borrow, str(tmp_path)]
        borrower = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        assert borrower.stdout and borrower.stdout.readline() == "mine\n"
        shop.execute(orders(1, 5))
        time.sleep(1.5)
        assert ChangeLog(tmp_path).watermark().position == 0, "written without the lock"
        borrower.kill()
        borrower.wait()
        wait_until(lambda: ChangeLog(tmp_path).watermark().position == 5)
        borrower = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        assert borrower.stdout and borrower.stdout.readline() == "mine\n"
        process.terminate()
        _, errors = process.communicate(timeout=120)
        borrower.kill()
        borrower.wait()
    assert process.returncode == 0, errors
    assert_log_is_source(shop, tmp_path)


def test_a_slot_whose_log_was_removed_is_refused(shop: Cluster, tmp_path: Path) -> None:
    capture(shop, tmp_path)
    shop.set("max_slot_wal_keep_size", "1MB")
    try:
        shop.execute("SELECT pg_reload_conf()")
        for _ in range(3):
            shop.execute("SELECT pg_switch_wal(); " + "CREATE TABLE scrap (a int); DROP TABLE scrap; CHECKPOINT")
        with pytest.raises(LockstepError, match=r"slot lockstep is lost.*max_slot_wal_keep_size.*`--new-snapshot`"):
            capture(shop, tmp_path)
    finally:
        shop.execute("ALTER SYSTEM RESET max_slot_wal_keep_size", database="postgres")
        shop.execute("SELECT pg_reload_conf()")


def test_a_slot_that_somebody_else_advanced_is_refused(shop: Cluster, tmp_path: Path) -> None:
    capture(shop, tmp_path)
    shop.execute(orders(1, 2))
    shop.execute("SELECT pg_replication_slot_advance('lockstep', pg_current_wal_lsn())")
    with pytest.raises(LockstepError, match="somebody else has read the slot"):
        capture(shop, tmp_path)


def test_a_slot_that_was_set_back_delivers_nothing_twice(shop: Cluster, tmp_path: Path) -> None:
    capture(shop, tmp_path)
    shop.execute("SELECT pg_copy_logical_replication_slot('lockstep', 'older')")
    shop.execute(orders(1, 5))
    assert capture(shop, tmp_path).changes == 5
    shop.execute("SELECT pg_drop_replication_slot('lockstep')")
    shop.execute("SELECT pg_copy_logical_replication_slot('older', 'lockstep')")
    shop.execute(orders(6, 7))
    assert capture(shop, tmp_path).changes == 2
    assert_log_is_source(shop, tmp_path)


def test_another_server_is_refused(shop: Cluster, tmp_path: Path) -> None:
    capture(shop, tmp_path)
    with ChangeLog(tmp_path).writer("postgresql:shop") as writer:
        writer.land({}, resume={**writer.watermark.resume, "system_identifier": "1"})
    with pytest.raises(LockstepError, match="This is another server"):
        capture(shop, tmp_path)


def test_a_server_set_back_in_time_is_refused(shop: Cluster, tmp_path: Path) -> None:
    capture(shop, tmp_path)
    with ChangeLog(tmp_path).writer("postgresql:shop") as writer:
        writer.land({}, resume={**writer.watermark.resume, "commit_lsn": "FF/0"})
    with pytest.raises(LockstepError, match="set back in time"):
        capture(shop, tmp_path)


def test_other_names_than_the_first_starts_are_refused(shop: Cluster, tmp_path: Path) -> None:
    capture(shop, tmp_path)
    with pytest.raises(LockstepError, match="--slot lockstep"):
        capturing.capture(tmp_path, replace(Source(shop.dsn()), slot="other"), until_caught_up=True)


def test_a_log_begun_otherwise_is_taken_over_by_a_new_snapshot(shop: Cluster, tmp_path: Path) -> None:
    shop.execute(orders(1, 3))
    capture(shop, tmp_path / "first")
    rows = {"orders": pa.concat_tables([pq.read_table(f, partitioning=None) for f in _files(tmp_path)])}
    batch = {n: t.rename_columns(["ordinal", "x", *t.column_names[2:]]).drop_columns("x") for n, t in rows.items()}
    with ChangeLog(tmp_path / "second").writer("postgresql:shop") as writer:
        writer.land(batch)
    shop.execute("SELECT pg_drop_replication_slot('lockstep'); UPDATE orders SET status = 'x' WHERE order_id = 1")
    with pytest.raises(LockstepError, match="was not begun by `lockstep capture`"):
        capture(shop, tmp_path / "second")
    assert capture(shop, tmp_path / "second", new_snapshot=True).snapshot == 1
    assert_log_is_source(shop, tmp_path / "second")


def _files(path: Path) -> list[Path]:
    return ChangeLog(path / "first").files("orders")


def test_a_snapshot_that_was_cut_short_is_taken_again(
    shop: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shop.execute(EVERY_TABLE)
    with monkeypatch.context() as planted:
        planted.setattr(Batch, "land", lambda self, **k: os._exit(9) if self.watermark.position else _land(self, **k))
        child = os.fork()
        if child == 0:  # dies with everything written but the watermark, and the slot made
            capture(shop, tmp_path)
            os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 9
    assert ChangeLog(tmp_path).watermark().resume["snapshot"] == "incomplete"
    wait_until(lambda: active_pid(shop) is None)
    capture(shop, tmp_path)
    assert_log_is_source(shop, tmp_path)


_land = Batch.land


def test_a_connection_lost_in_the_snapshot_is_said_plainly(
    shop: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shop.execute(EVERY_TABLE)

    def cut(self: Batch, *_: Any) -> None:
        shop.execute("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name LIKE 'lockstep%'")

    with monkeypatch.context() as planted:
        planted.setattr(Batch, "add", cut)
        with pytest.raises(LockstepError, match="snapshot could not be completed"):
            capture(shop, tmp_path)
    capture(shop, tmp_path)
    assert_log_is_source(shop, tmp_path)


def test_the_slot_is_told_of_what_has_landed(shop: Cluster, tmp_path: Path) -> None:
    capture(shop, tmp_path)
    [(before,)] = shop.execute("SELECT confirmed_flush_lsn FROM pg_replication_slots")
    shop.execute(orders(1, 5))
    summary = capture(shop, tmp_path)
    [(confirmed,)] = shop.execute("SELECT confirmed_flush_lsn FROM pg_replication_slots")
    assert parse_lsn(before) < parse_lsn(confirmed) <= parse_lsn(summary.lsn)


def test_an_idle_source_moves_the_logs_clock(shop: Cluster, tmp_path: Path) -> None:
    shop.execute(orders(1, 1))
    with running(shop, tmp_path):
        [(then,)] = shop.execute("SELECT clock_timestamp() AT TIME ZONE 'UTC'")
        wait_until(lambda: (ChangeLog(tmp_path).watermark().logged_at or then) > then)
        assert ChangeLog(tmp_path).watermark().position == 1
        [(before,)] = shop.execute("SELECT confirmed_flush_lsn FROM pg_replication_slots")
        shop.execute("CREATE TABLE elsewhere AS SELECT generate_series(1, 1000)")
        wait_until(
            lambda: shop.execute("SELECT confirmed_flush_lsn > %s FROM pg_replication_slots", (before,)) == [(True,)]
        )


def test_sigterm_finishes_the_batch_and_says_what_was_done(shop: Cluster, tmp_path: Path) -> None:
    with running(shop, tmp_path, "--trigger", "1min") as process:
        shop.execute(orders(1, 25))
        time.sleep(1.0)
        watermark = ChangeLog(tmp_path).watermark()
        assert watermark.position == 0
        [(confirmed,)] = shop.execute("SELECT confirmed_flush_lsn FROM pg_replication_slots")
        assert parse_lsn(confirmed) <= parse_lsn(watermark.resume["commit_lsn"]), "told of what has not landed"
        process.send_signal(signal.SIGTERM)
        output, errors = process.communicate(timeout=120)
    assert process.returncode == 0, errors
    assert "Captured 25 changes in 1 batches" in output
    wait_until(lambda: active_pid(shop) is None)
    assert_log_is_source(shop, tmp_path)
    again = capture(shop, tmp_path)
    assert (again.changes, again.position) == (0, 25)


def test_the_trigger_lengthens_while_landing_cannot_keep_up_and_returns(
    shop: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    capture(shop, tmp_path)
    intervals: list[float] = []
    is_slow = threading.Event()
    is_slow.set()

    def slow(self: Batch, **options: Any) -> Landed:
        if is_slow.is_set():
            time.sleep(0.4)
        return land(self, **options)

    def watched(self: Any, segment: Any) -> None:
        intervals.append(self._interval)
        hand_over(self, segment)

    def load() -> None:
        for n in range(400):
            shop.execute(orders(n, n))
            if n == 25:
                is_slow.clear()
            if n > 25 and intervals[-1] == 0.05:
                break
            time.sleep(0.04)
        os.kill(os.getpid(), signal.SIGTERM)

    land, hand_over = Batch.land, capturing._Stream._hand_over
    monkeypatch.setattr(Batch, "land", slow)
    monkeypatch.setattr(capturing._Stream, "_hand_over", watched)
    thread = threading.Thread(target=load)
    thread.start()
    capturing.capture(tmp_path, Source(shop.dsn()), 0.05)
    thread.join()
    assert max(intervals) >= 0.2
    assert 0.05 in intervals[-5:]  # it is back; the end may have come with a batch under way
    monkeypatch.undo()
    capture(shop, tmp_path)  # what was committed just before the end
    assert_log_is_source(shop, tmp_path)


def test_it_goes_on_after_the_server_restarts_and_the_connection_is_cut(shop: Cluster, tmp_path: Path) -> None:
    with running(shop, tmp_path) as process:
        for n, disturb in enumerate(
            (
                lambda: shop.restart("fast"),
                lambda: shop.restart("immediate"),
                lambda: shop.execute(f"SELECT pg_terminate_backend({active_pid(shop)})"),
            )
        ):
            shop.execute(orders(n * 10 + 1, n * 10 + 5))
            disturb()
            shop.execute(orders(n * 10 + 6, n * 10 + 9))
            wait_until(lambda n=n: ChangeLog(tmp_path).watermark().position == (n + 1) * 9)
        process.terminate()
        output, errors = process.communicate(timeout=120)
    assert process.returncode == 0, errors
    assert "27 changes" in output and " 0 reconnects" not in output
    assert "connection lost" in errors and "connected again" in errors
    assert_log_is_source(shop, tmp_path)


@pytest.mark.parametrize(("text", "seconds"), [("200ms", 0.2), ("1s", 1), ("5s", 5), ("1min", 60), ("1.5s", 1.5)])
def test_a_trigger_is_a_duration(text: str, seconds: float) -> None:
    assert parse_seconds(text) == pytest.approx(seconds)


@pytest.mark.parametrize("text", ["", "1", "0s", "-1s", "1 hour", "s"])
def test_what_is_no_duration_is_refused(text: str) -> None:
    with pytest.raises(LockstepError, match="is not a duration"):
        parse_seconds(text)
