"""`lockstep verify-source` against a real server: equal when it is, and each fault found and named.

Awkward cases: transactions open across the point, and committed in another order than begun; capture running, stopped,
or without its slot; transaction ids beyond 32 bits; faults in the log's files, in the source behind the stream's back
and in values that SQL takes for equal; columns that came and went; events in quarantine, open, skipped and made up for;
a source that is not ready; a transaction that never ends.
"""

from __future__ import annotations

import errno
import json
import os
import random
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, closing
from datetime import datetime
from pathlib import Path
from typing import Any

import duckdb
import psycopg2
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner
from sqlmesh.core.dialect import parse
from sqlmesh.core.model import load_sql_based_model

from lockstep import capture as capturing
from lockstep import compare, operate, show, source_receipts, verify
from lockstep.changelog import ChangeLog
from lockstep.cli import cli
from lockstep.errors import LockstepError
from lockstep.lock import exclusive
from lockstep.pgoutput import REJECTED_SCHEMA
from lockstep.postgres import Source
from lockstep.schema import TABLES, batch_schema, log_schema
from lockstep.verify import Verified, Visibility
from postgres import Cluster, cluster, landed, own_cluster, running_capture, shop, wait_until

__all__ = ["cluster", "shop"]  # fixtures

LOCKSTEP = str(Path(sys.executable).with_name("lockstep"))
NOW = "'2026-11-14 20:46:33.5+02'::timestamptz"


def orders(first: int, last: int, status: str = "new") -> str:
    return (
        f"INSERT INTO orders SELECT g, 1, 1, 'north', 2, 100 * g, '{status}', {NOW}, now() "
        f"FROM generate_series({first}, {last}) AS g;"
    )


PINGS = (
    f"INSERT INTO gps_pings SELECT g, 1, 48.8 + g, '-0'::float8, 45.742393, {NOW} FROM generate_series(101, 104) AS g;"
)
STOPS = f"INSERT INTO route_stops SELECT 2, g, 1, {NOW}, 0.1, -1e-300, NULL FROM generate_series(101, 104) AS g;"


def capture(shop: Cluster, home: Path) -> AbstractContextManager[subprocess.Popen[str]]:
    """A capture that does not look at its publication: these tests want verification to find what the log lacks."""
    return running_capture(shop, home, look_every=1e9)


def check(shop: Cluster, home: Path, *tables: str, timeout: float = 120.0) -> Verified:
    """Verify, and see that nothing remains of it."""
    try:
        return verify.verify(home, shop.dsn(), tables, timeout, 20, lambda _: None)
    finally:
        wait_until(lambda: not shop.execute("SELECT 1 FROM pg_replication_slots WHERE slot_name <> 'lockstep'"))
        assert not (home / "verify").exists()


def found(verified: Verified) -> dict[str, tuple[str, dict[Any, Any]]]:
    """Each table that did not pass: its verdict, and kind and columns of each differing key."""
    return {
        t.table: (t.verdict, {tuple(d.key.values()): (d.kind, *d.columns) for d in t.comparison.differences})
        for t in verified.tables
        if t.verdict != "passed"
    }


def until_caught_up(shop: Cluster, home: Path, **options: Any) -> None:
    capturing.capture(home, Source(shop.dsn()), 0.05, until_caught_up=True, **options)
    wait_until(lambda: not shop.execute("SELECT 1 FROM pg_replication_slots WHERE active"))


class Load(threading.Thread):
    """Random transactions on keys of its own, short and long, with savepoints and rollbacks."""

    def __init__(self, shop: Cluster, number: int, stop: threading.Event) -> None:
        super().__init__(daemon=True)
        self._shop, self._random, self._stop_it = shop, random.Random(number), stop
        self._next = number * 1_000_000
        self.committed = 0

    def run(self) -> None:
        with closing(psycopg2.connect(self._shop.dsn())) as connection:
            while not self._stop_it.is_set():
                with connection.cursor() as cursor:
                    for _ in range(self._random.randint(1, 4)):
                        cursor.execute(self._statement())
                        time.sleep(self._random.random() * 0.01)
                    cursor.execute("SAVEPOINT a;" + self._statement())
                    if self._random.random() < 0.3:
                        cursor.execute("ROLLBACK TO a")
                if self._random.random() < 0.1:
                    connection.rollback()
                else:
                    connection.commit()
                    self.committed += 1

    def _statement(self) -> str:
        first = self._next
        some = f"BETWEEN {first - self._random.randint(1, 60)} AND {first}"
        kind = self._random.randrange(6)
        if kind < 2:
            self._next += 10
            return orders(first, first + 4)
        if kind == 2:
            self._next += 10
            return f"INSERT INTO gps_pings VALUES ({first}, 1, 48.1, 2.2, random() * 100, now());"
        if kind == 3:
            return f"DELETE FROM orders WHERE order_id {some};"
        if kind == 4:
            return f"UPDATE orders SET order_id = -order_id WHERE order_id {some};"
        return f"UPDATE orders SET status = 's' || random(), amount_cents = amount_cents + 1 WHERE order_id {some};"


def test_equal_again_and_again_under_load_while_a_capture_runs(shop: Cluster, tmp_path: Path) -> None:
    shop.execute(orders(1, 500) + PINGS + STOPS)
    stop = threading.Event()
    loads = [Load(shop, number, stop) for number in range(1, 5)]
    with capture(shop, tmp_path):
        for load in loads:
            load.start()
        try:
            positions = []
            for _ in range(6):
                verified = check(shop, tmp_path)
                assert found(verified) == {}
                positions.append(verified.position)
                assert verified.position < ChangeLog(tmp_path).watermark().position, "the load went on past the point"
        finally:
            stop.set()
            for load in loads:
                load.join()
    assert positions == sorted(set(positions)), "each at a point of its own"
    assert sum(load.committed for load in loads) > 100
    assert len(source_receipts.load(tmp_path)) == 6 * len(TABLES)


def test_the_cut_is_exact_with_transactions_open_across_the_point(shop: Cluster, tmp_path: Path) -> None:
    """C begins before D, yet D commits before the point, at which C is open. A and B only hold the point up."""
    shop.execute(orders(1, 3))
    result: list[Verified] = []
    with ExitStack() as stack:
        stack.enter_context(capture(shop, tmp_path))
        a, b, c = (stack.enter_context(closing(psycopg2.connect(shop.dsn()))) for _ in range(3))
        a.cursor().execute(orders(10, 10))
        thread = threading.Thread(target=lambda: result.append(check(shop, tmp_path)))
        thread.start()
        wait_until(lambda: is_waiting(shop, a))
        b.cursor().execute(orders(20, 20))
        a.commit()
        wait_until(lambda: is_waiting(shop, b))
        c.cursor().execute(orders(30, 30))
        shop.execute(orders(40, 40))  # D
        b.commit()
        wait_until(lambda: not shop.execute("SELECT 1 FROM pg_stat_activity WHERE query LIKE 'CREATE_REP%'"))
        c.commit()
        shop.execute(orders(50, 50))
        thread.join()
    [verified] = result
    assert found(verified) == {}
    seen = {c["after"]["order_id"]: c["position"] <= verified.position for c in landed(tmp_path, "orders")}
    assert seen == {1: True, 2: True, 3: True, 10: True, 20: True, 40: True, 30: False, 50: False}


def is_waiting(shop: Cluster, for_connection: Any) -> bool:
    """Whether a slot is being made that waits for the transaction of a connection."""
    blocking = "SELECT pg_blocking_pids(pid) FROM pg_stat_activity WHERE query LIKE 'CREATE_REP%%'"
    return any(for_connection.info.backend_pid in pids for (pids,) in shop.execute(blocking))


@pytest.mark.parametrize("epoch", [1, 5])
@pytest.mark.parametrize("low", [10, (1 << 32) - 10])
def test_visibility_knows_transactions_beyond_32_bits(epoch: int, low: int) -> None:
    top = (epoch << 32) + low
    visibility = Visibility.parse(f"{top - 5}:{top}:{top - 5},{top - 2}")
    seen = {n for n in range(-30, 30) if visibility.sees((top + n) % (1 << 32))}
    assert seen == {*range(-30, 0)} - {-5, -2}
    assert Visibility.parse("7:7:").sees(6) and not Visibility.parse("7:7:").sees(7)


def land(home: Path, *transactions: tuple[int, str], event: int | None = None) -> ChangeLog:
    """A log of one order a transaction, with its op; `event` is the transaction of a quarantined one after them."""
    rows = [
        {"ordinal": n, "committed_at": datetime(2026, 1, 1), "op": op, "tx_id": tx_id, "lsn": n}
        | {"after": {"order_id": n, "status": "new"}}
        for n, (tx_id, op) in enumerate(transactions)
    ]
    rejected = {"ordinal": len(rows), "committed_at": datetime(2026, 1, 1), "table": "orders", "reason": "planted"}
    rejected["event"] = json.dumps({"source": {"txId": event}})
    log = ChangeLog(home)
    with log.writer("postgresql:shop") as writer:
        writer.land(
            {"orders": pa.Table.from_pylist(rows, batch_schema(TABLES["orders"]))},
            pa.Table.from_pylist([rejected], REJECTED_SCHEMA) if event else None,
        )
    return log


def cut(log: ChangeLog, after: int = 0) -> int:
    scratch = log.home / "scratch"
    scratch.mkdir(exist_ok=True)
    return verify._cut(log, after, log.watermark(), Visibility.parse("100:110:103"), scratch)


def test_the_cut_is_the_last_position_that_the_snapshot_sees(tmp_path: Path) -> None:
    assert cut(land(tmp_path / "a", (102, "c"), (102, "u"), (101, "c"), (103, "c"), (110, "u"))) == 3
    assert cut(land(tmp_path / "b", (103, "c"))) == 0
    assert cut(land(tmp_path / "c", (99, "c"), (100, "c")), after=1) == 2
    assert cut(land(tmp_path / "d", (99, "c"), event=104)) == 2, "a quarantined event has a position as well"
    assert cut(land(tmp_path / "e", (99, "c"), event=103)) == 1


def test_what_has_no_exact_cut_is_refused(tmp_path: Path) -> None:
    with pytest.raises(LockstepError, match="position 2 was committed after the snapshot, and position 3 before it"):
        cut(land(tmp_path / "a", (102, "c"), (103, "c"), (104, "u")))
    with pytest.raises(LockstepError, match="A new snapshot of the source landed"):
        cut(land(tmp_path / "b", (102, "c"), (102, "r")))


def test_a_change_lost_on_the_way_is_found_though_a_later_one_hides_it(shop: Cluster, tmp_path: Path) -> None:
    shop.execute(orders(1, 3))
    with capture(shop, tmp_path):
        shop.execute("UPDATE orders SET status = 'a'")
        shop.execute("UPDATE orders SET status = 'b'")
        wait_until(lambda: ChangeLog(tmp_path).watermark().position == 9)
        assert found(check(shop, tmp_path)) == {}
        [path] = ChangeLog(tmp_path).files("orders", after=3, until=4)
        rows = pq.read_table(path, partitioning=None)
        pq.write_table(rows.filter(pc.field("position") != 4), path)
        assert found(check(shop, tmp_path)) == {"orders": ("failed", {(1,): ("unbalanced",)})}


def test_rows_that_changed_behind_the_streams_back_are_found(shop: Cluster, tmp_path: Path) -> None:
    shop.execute(orders(1, 5) + PINGS)
    with capture(shop, tmp_path):
        shop.execute("ALTER PUBLICATION lockstep DROP TABLE orders")
        shop.execute(
            "UPDATE orders SET status = 'x', quantity = 9 WHERE order_id = 2; DELETE FROM orders WHERE order_id = 3;"
            + orders(7, 7)
        )
        verified = check(shop, tmp_path)
        assert "lacks orders" in verified.warnings[0] and "ADD TABLE" in verified.warnings[0]
        shop.execute("ALTER PUBLICATION lockstep ADD TABLE orders")
        expected = {
            (2,): ("modified", "quantity", "status"),
            (3,): ("only in the log",),
            (7,): ("missing in the log",),
        }
        for v in (verified, check(shop, tmp_path)):
            assert found(v) == {"orders": ("failed", expected)}
    until_caught_up(shop, tmp_path, new_snapshot=True)
    with capture(shop, tmp_path):
        assert found(check(shop, tmp_path)) == {}


def test_added_columns_are_compared_and_dropped_ones_are_named(shop: Cluster, tmp_path: Path) -> None:
    shop.execute('ALTER TABLE orders ADD gone text, ADD "we/ird ~\'""n" float8; ' + orders(1, 3))
    shop.execute('UPDATE orders SET gone = \'x\', "we/ird ~\'""n" = -0.0')
    with capture(shop, tmp_path):
        shop.execute(
            "ALTER TABLE orders ADD note text, DROP gone; UPDATE orders SET note = 'e', quantity = 3 WHERE order_id = 1"
        )
        verified = check(shop, tmp_path)
        assert found(verified) == {}
        [compared] = [t.comparison for t in verified.tables if t.table == "orders"]
        assert compared.not_compared == ["gone"]
        # Old rows get a default without any change: the log cannot know it of them.
        shop.execute(
            "ALTER TABLE orders ADD kind text DEFAULT 'plain'; UPDATE orders SET status = 'x' WHERE order_id = 2"
        )
        verified = check(shop, tmp_path)
        assert found(verified) == {}
        [compared] = [t.comparison for t in verified.tables if t.table == "orders"]
        assert compared.not_known == {"note": 1, "kind": 2}
        assert compared.source_fingerprint == compared.log_fingerprint
        # Of the row that has changed it knows the column.
        shop.execute("ALTER PUBLICATION lockstep DROP TABLE orders; UPDATE orders SET kind = 'fine' WHERE order_id < 3")
        assert found(check(shop, tmp_path)) == {"orders": ("failed", {(2,): ("modified", "kind")})}


def test_what_quarantine_holds_is_told_apart(shop: Cluster, tmp_path: Path) -> None:
    shop.execute(orders(1, 4) + PINGS)
    with capture(shop, tmp_path):
        shop.execute("UPDATE orders SET updated_at = 'infinity' WHERE order_id = 2;")
        shop.execute(f"INSERT INTO gps_pings VALUES (9, 1, 'NaN', 1, 1, {NOW})")
        shop.execute("DELETE FROM gps_pings WHERE ping_id = 101")  # comes without its row, so that its key is unknown
        verified = check(shop, tmp_path)
        assert found(verified) == {
            "orders": ("incomplete", {(2,): ("modified", "updated_at")}),
            "gps_pings": ("incomplete", {(9,): ("missing in the log",), (101,): ("only in the log",)}),
        }
        events = {t.table: t.events for t in verified.tables if t.verdict != "passed"}
        assert events == {"orders": {"open": 1, "discarded": 0}, "gps_pings": {"open": 0, "discarded": 2}}
        notes = [d.note for t in verified.tables for d in t.comparison.differences if d.note]
        assert len(notes) == 2 and "'infinity', which is not a time" in notes[0]
        # One more than quarantine accounts for.
        shop.execute("ALTER PUBLICATION lockstep DROP TABLE gps_pings")
        shop.execute("DELETE FROM gps_pings WHERE ping_id = 102")
        assert found(check(shop, tmp_path, "gps_pings"))["gps_pings"][0] == "failed"
        shop.execute("ALTER PUBLICATION lockstep ADD TABLE gps_pings")
    shop.execute("UPDATE orders SET updated_at = now() WHERE order_id = 2; DELETE FROM gps_pings WHERE ping_id = 9")
    until_caught_up(shop, tmp_path, new_snapshot=True)
    with capture(shop, tmp_path):
        assert found(check(shop, tmp_path)) == {}
        shop.execute("ALTER PUBLICATION lockstep DROP TABLE orders")
        shop.execute("UPDATE orders SET status = 'x' WHERE order_id = 2")
        kept = {"orders": ("failed", {(2,): ("modified", "status")})}
        assert found(check(shop, tmp_path)) == kept, "the snapshot made up for the event: it explains nothing any more"


def test_a_log_that_is_behind_says_so_and_what_to_do(shop: Cluster, tmp_path: Path) -> None:
    shop.execute(orders(1, 3))
    until_caught_up(shop, tmp_path)
    shop.execute(orders(4, 6))
    assert found(check(shop, tmp_path)) == {}, "no capture is running, so it brings the log up to the point itself"
    assert ChangeLog(tmp_path).watermark().position == 6
    receipts = len(source_receipts.load(tmp_path))
    with capture(shop, tmp_path) as process:
        os.kill(process.pid, 19)  # stopped, with its connections open
        shop.execute(orders(7, 7))
        said = (
            r"landed up to [0-9A-F/]+ \(position 6\), the source is at [0-9A-F/]+, [\d,]+ bytes .* A capture is running"
        )
        try:
            with pytest.raises(LockstepError, match=said + r" \(server process \d+\) but has not come"):
                check(shop, tmp_path, timeout=0.5)
            assert len(source_receipts.load(tmp_path)) == receipts
        finally:
            os.kill(process.pid, 18)
        assert found(check(shop, tmp_path)) == {}
    shop.execute("SELECT pg_drop_replication_slot('lockstep')")
    began = time.monotonic()
    with pytest.raises(LockstepError, match=r"slot lockstep is gone. `lockstep capture --new-snapshot`"):
        check(shop, tmp_path, timeout=1_200)
    assert time.monotonic() - began < 600, "there is nothing to wait for"


def test_a_transaction_that_does_not_end_is_named(shop: Cluster, tmp_path: Path) -> None:
    with capture(shop, tmp_path), closing(psycopg2.connect(shop.dsn())) as connection:
        connection.cursor().execute(orders(1, 1))
        said = rf"within 0.7 s.* server process {connection.info.backend_pid} \(postgres\), since"
        with pytest.raises(LockstepError, match=said):
            check(shop, tmp_path, timeout=0.7)


def test_a_table_truncated_meanwhile_is_no_difference(
    shop: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shop.execute(orders(1, 3))
    make = Source.create_slot

    def then_truncate(self: Source, *arguments: Any, **options: Any) -> Any:
        made = make(self, *arguments, **options)
        shop.execute("TRUNCATE orders")
        return made

    with capture(shop, tmp_path):
        with monkeypatch.context() as planted:
            planted.setattr(Source, "create_slot", then_truncate)
            with pytest.raises(LockstepError, match="orders was truncated or rewritten just now"):
                check(shop, tmp_path)
        assert found(check(shop, tmp_path)) == {}


def test_nothing_remains_of_a_verification_that_was_killed(shop: Cluster, tmp_path: Path) -> None:
    shop.execute(orders(1, 3))
    with capture(shop, tmp_path), closing(psycopg2.connect(shop.dsn())) as connection:
        connection.cursor().execute(orders(4, 4))
        command = [LOCKSTEP, "verify-source", shop.dsn()]
        process = subprocess.Popen(command, env={**os.environ, "LOCKSTEP_HOME": str(tmp_path)})
        wait_until(lambda: is_waiting(shop, connection))
        with pytest.raises(LockstepError, match=f"process {process.pid} .*verifying the source"):
            verify.verify(tmp_path, shop.dsn(), (), 1, 1, lambda _: None)
        process.kill()
        process.wait()
        connection.commit()
        assert found(check(shop, tmp_path)) == {}


def test_a_source_or_log_that_is_not_ready_is_refused_with_the_remedy(shop: Cluster, tmp_path: Path) -> None:
    with pytest.raises(LockstepError, match="There is no change log"):
        check(shop, tmp_path / "none")
    with ChangeLog(tmp_path / "else").writer("postgresql:shop"):
        pass
    with pytest.raises(LockstepError, match="not captured by `lockstep capture`"):
        check(shop, tmp_path / "else")
    with ChangeLog(tmp_path / "half").writer("postgresql:shop") as writer:
        writer.land({}, resume={"slot": "lockstep", "snapshot": "incomplete"})
    with pytest.raises(LockstepError, match="no complete snapshot"):
        check(shop, tmp_path / "half")
    until_caught_up(shop, tmp_path)
    with pytest.raises(LockstepError, match=r"no source table order\. The tables are: customers,"):
        check(shop, tmp_path, "order")
    with pytest.raises(LockstepError, match="PostgreSQL cannot be reached"):
        verify.verify(tmp_path, "postgresql://127.0.0.1:1/shop", (), 1, 1, lambda _: None)
    with pytest.raises(LockstepError, match=r"captured from database shop .* this is postgres"):
        verify.verify(tmp_path, shop.dsn("postgres"), (), 1, 1, lambda _: None)
    shop.execute("DROP ROLE IF EXISTS reader; CREATE ROLE reader LOGIN REPLICATION")
    shop.execute("GRANT SELECT ON ALL TABLES IN SCHEMA public TO reader; REVOKE SELECT ON orders FROM reader")
    shop.execute("ALTER TABLE products DROP category; ALTER TABLE drivers RENAME TO d")
    with pytest.raises(LockstepError) as refusal:
        verify.verify(tmp_path, shop.dsn(user="reader"), (), 1, 1, lambda _: None)
    for said in ('GRANT SELECT ON "public"."orders"', 'ADD COLUMN "category" text;', '"drivers" is missing'):
        assert said in str(refusal.value)
    shop.execute("SELECT pg_create_physical_replication_slot('other' || g) FROM generate_series(1, 9) AS g")
    with pytest.raises(LockstepError, match=r"all 10 replication slots are taken\n    ALTER SYSTEM SET max_rep"):
        verify.verify(tmp_path, shop.dsn(), (), 1, 1, lambda _: None)


# Faults planted in the log's files.


def rewrite(home: Path, table: str, change: Callable[[list[dict[str, Any]]], list[dict[str, Any]]]) -> None:
    """Replace a table's only file by one with other rows."""
    [path] = ChangeLog(home).files(table)
    rows = pq.read_table(path, partitioning=None).to_pylist()
    pq.write_table(pa.Table.from_pylist(change(rows), log_schema(TABLES[table])), path, compression="zstd")


def altered(key: int, **values: Any) -> Callable[[list[dict[str, Any]]], list[dict[str, Any]]]:
    def change(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
        [row] = [r for r in rows if key in r["after"].values()]
        row["after"] |= values
        return rows

    return change


def doubled(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [*rows, next(r for r in rows if r["after"]["order_id"] == 103)]


def added(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [*rows, {**rows[0], "after": rows[0]["after"] | {"order_id": 177}}]


def deleted(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """An insert that the log has as a delete."""
    [row] = [r for r in rows if r["after"]["order_id"] == 104]
    row |= {"op": "d", "before": row["after"], "after": None}
    return rows


ODD = "a\n'\"\\N,\t"
# Table, what is done to its log, and the key and kind of the difference it makes; no two of the same key.
FAULTS: list[tuple[str, Callable[[list[dict[str, Any]]], list[dict[str, Any]]], tuple[Any, ...], tuple[str, ...]]] = [
    ("orders", doubled, (103,), ("unbalanced",)),
    ("orders", added, (177,), ("only in the log",)),
    ("orders", altered(102, amount_cents=1), (102,), ("modified", "amount_cents")),
    ("orders", lambda rows: [r for r in rows if r["after"]["order_id"] != 101], (101,), ("missing in the log",)),
    ("orders", deleted, (104,), ("missing in the log",)),
    ("gps_pings", altered(101, longitude=0.0), (101,), ("modified", "longitude")),
    ("gps_pings", altered(102, latitude=float("nan")), (102,), ("modified", "latitude")),
    ("gps_pings", altered(103, speed_kmh=45.742397), (103,), ("modified", "speed_kmh")),
    ("route_stops", altered(102, latitude=0.2), (2, 102), ("modified", "latitude")),
    ("route_stops", altered(103, planned_arrival_at=None), (2, 103), ("modified", "planned_arrival_at")),
    ("route_stops", altered(104, longitude=-2e-300), (2, 104), ("modified", "longitude")),
    ("customers", altered(1, full_name=ODD.replace("\n", "\\n")), (1,), ("modified", "full_name")),
    ("customers", altered(2, full_name=ODD.replace('"', '""')), (2,), ("modified", "full_name")),
    ("customers", altered(3, full_name=ODD.replace("\\", "\\\\")), (3,), ("modified", "full_name")),
    ("customers", altered(4, full_name=ODD + "\0"), (4,), ("modified", "full_name")),
    ("customers", altered(5, region=None), (5,), ("modified", "region")),
    ("customers", altered(6, email="y", region="z|"), (6,), ("modified", "email", "region")),
    ("customers", altered(7, created_at=datetime(1970, 1, 1, 0, 0, 0, 1)), (7,), ("modified", "created_at")),
]


@pytest.fixture(scope="module")
def captured(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Cluster, Path]]:
    """A small source that a capture follows, in a server of its own: `shop` drops all slots of the shared one."""
    home = tmp_path_factory.mktemp("captured")
    customers = "INSERT INTO customers SELECT g, %s, 'y|z', '', 'epoch', now() FROM generate_series(1, 7) AS g"
    with own_cluster() as source:
        source.create_shop()
        source.execute(customers, (ODD,))
        source.execute(orders(101, 106) + PINGS + STOPS)
        with capture(source, home):
            yield source, home


@pytest.fixture
def copied(captured: tuple[Cluster, Path], tmp_path: Path) -> tuple[Cluster, Path]:
    """The log in a home of its own, with the watermark of the one that is followed."""
    shop, home = captured
    for name in ("changelog", "quarantine"):
        shutil.copytree(home / name, tmp_path / name, ignore=lambda *_: ["watermark.json", "watermark.json.partial"])
    shutil.copy(home / "source_receipts.jsonl", tmp_path)
    (tmp_path / "changelog" / "watermark.json").symlink_to(home / "changelog" / "watermark.json")
    return shop, tmp_path


@pytest.mark.parametrize("share", [3, 1_000_000])
def test_each_fault_in_the_log_is_found_and_named(
    copied: tuple[Cluster, Path], monkeypatch: pytest.MonkeyPatch, share: int
) -> None:
    """Whether the table is compared at once or in shares."""
    monkeypatch.setattr(compare, "_SHARE", share)
    shop, home = copied
    expected: dict[str, tuple[str, dict[Any, Any]]] = {}
    for table, _, key, kind in FAULTS:
        rewrite(home, table, lambda rows: rows)
        expected.setdefault(table, ("failed", {}))[1][key] = kind
    assert found(check(shop, home)) == {}, "rewriting alone changes nothing"
    for table, change, _, _ in FAULTS:
        rewrite(home, table, change)
    assert found(check(shop, home)) == expected
    receipts = {r["source_table"]: r for r in source_receipts.last(source_receipts.load(home))}
    for table, receipt in receipts.items():
        assert receipt["differing"] == len(expected.get(table, ("", {}))[1])
        assert (receipt["source_fingerprint"] == receipt["log_fingerprint"]) == (table not in expected)


def test_a_damaged_file_of_the_log_is_named(copied: tuple[Cluster, Path]) -> None:
    shop, home = copied
    [path] = ChangeLog(home).files("orders")
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(LockstepError, match=path.name):
        check(shop, home)


def test_a_full_disk_is_said_plainly_and_stores_nothing(
    copied: tuple[Cluster, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    shop, home = copied

    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(compare.Staging, "take", full)
    with pytest.raises(LockstepError, match=f"disk of {home} is full"):
        check(shop, home)
    assert source_receipts.load(home) == []


# The command line, and where the receipts can be read.


def lockstep(home: Path, *arguments: str) -> Any:
    return CliRunner(env={"LOCKSTEP_HOME": str(home)}).invoke(cli, arguments)


def test_the_command_tells_stores_and_exits_by_the_verdict(copied: tuple[Cluster, Path]) -> None:
    shop, home = copied
    passed = lockstep(home, "verify-source", shop.dsn(), "--table", "orders", "--table", "customers")
    assert passed.exit_code == 0 and "The change log equals the source." in passed.output
    assert lockstep(home, "receipts", "--source").exit_code == 0
    rewrite(home, "customers", altered(1, full_name="Q", email="e@x"))
    rewrite(home, "orders", lambda rows: [*rows, rows[0], rows[1]])
    failed = lockstep(home, "verify-source", shop.dsn(), "--limit", "1")
    assert failed.exit_code == 1
    assert 'customers customer_id 1: modified; full_name is "a\\n' in failed.output
    assert 'email is "y|z", in the log "e@x"' in failed.output
    assert "orders order_id 101: unbalanced; its changes add up to 2 rows" in failed.output
    assert "orders: 1 more key (" in failed.output
    as_json = json.loads(lockstep(home, "verify-source", shop.dsn(), "--json").output)
    by_table = {t["source_table"]: t for t in as_json["tables"]}
    assert by_table["customers"]["keys"][0]["columns"]["email"] == ["y|z", "e@x"]
    assert by_table["orders"]["unbalanced"] == 2 and by_table["drivers"]["verdict"] == "passed"

    listed = lockstep(home, "receipts", "--source", "--json")
    assert listed.exit_code == 1
    receipts = json.loads(listed.output)
    assert len(receipts) == 2 + 2 * len(TABLES)
    assert "e@x" not in listed.output, "values may be personal data"
    assert receipts[-1]["lsn"] == as_json["tables"][-1]["lsn"]
    assert len(json.loads(lockstep(home, "receipts", "--source", "--json", "--failed", "--last", "1").output)) == 1
    assert "1 modified" in lockstep(home, "receipts", "--source").output
    assert lockstep(home, "receipts", "--source", "--domain", "orders").exit_code == 1


def test_receipts_shows_both_kinds_and_heeds_both(
    copied: tuple[Cluster, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    shop, home = copied
    of_domain = {"domain": "orders", "verdict": "passed"}
    shown: list[Any] = []
    monkeypatch.setattr(operate, "receipts", lambda _: [of_domain])
    monkeypatch.setattr(show, "receipts", shown.extend)
    assert lockstep(home, "receipts").output == "" and shown == [of_domain]
    check(shop, home, "orders")
    passed = lockstep(home, "receipts")
    assert passed.exit_code == 0 and "orders" in passed.output
    rewrite(home, "orders", doubled)
    check(shop, home, "orders")
    assert lockstep(home, "receipts").exit_code == 1
    as_json = lockstep(home, "receipts", "--json")
    assert as_json.exit_code == 1 and "lockstep receipts --source" in as_json.stderr
    assert json.loads(as_json.stdout) == [of_domain]
    assert lockstep(home, "receipts", "--domain", "orders").exit_code == 0
    monkeypatch.setattr(operate, "receipts", lambda _: [of_domain | {"verdict": "failed"}])
    as_json = lockstep(home, "receipts", "--domain", "orders", "--json")
    assert as_json.exit_code == 1 and as_json.stderr == ""


def test_the_model_reads_the_receipts(copied: tuple[Cluster, Path]) -> None:
    shop, home = copied
    rewrite(home, "orders", altered(101, status="\n'"))
    path = Path(__file__).parents[2] / "models" / "reconcile" / "source_receipts.sql"
    model = load_sql_based_model(parse(path.read_text()), dialect="duckdb").render_query_or_raise().sql("duckdb")
    with duckdb.connect(config={"file_search_path": str(home)}) as connection:
        assert connection.sql(model).fetchall() == []
        check(shop, home)
        rows = connection.sql(
            f"SELECT source_table, differing, keys FROM ({model}) WHERE verdict <> 'passed'"
        ).fetchall()
    [(table, differing, keys)] = rows
    assert (table, differing, json.loads(keys)[0]["key"]) == ("orders", 1, {"order_id": 101})


def test_a_capture_that_begins_meanwhile_is_waited_for(
    shop: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without it a verification would end in an error whenever cron starts a capture at the same instant."""
    until_caught_up(shop, tmp_path)
    shop.execute("UPDATE orders SET quantity = quantity + 1")
    real, begun = verify.capture, []

    def taken(home: Path, *arguments: Any, **options: Any) -> Any:
        if not begun:
            begun.append(ExitStack())
            begun[0].enter_context(exclusive(home / "capture.lock", "capturing changes"))
            threading.Timer(0.5, begun[0].close).start()
        return real(home, *arguments, **options)

    monkeypatch.setattr(verify, "capture", taken)
    found = verify.verify(tmp_path, shop.dsn(), ["orders"], 60, 10, lambda _: None)
    assert begun and [t.verdict for t in found.tables] == ["passed"]
