"""Changes that were never sent are noticed and hold their table; following the message makes log and source equal.

Awkward cases: a publication that was dropped, dropped and made again or altered for a time; a table that left it and
came back, was dropped and made again, swapped with another by renaming, or renamed and back; all of that noticed at the
start and by a capture that runs; a resync beside a running capture under load, one without any capture, of a table
that another command has changed meanwhile, of rows that cannot be read; damaged files; a promoted standby that lacks
changes which have landed.
"""

from __future__ import annotations

import json
import os
import random
import re
import subprocess
import sys
import threading
from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from click.testing import CliRunner

from lockstep import breaks
from lockstep import verify as verifying
from lockstep.changelog import ChangeLog
from lockstep.cli import cli
from lockstep.errors import LockstepError
from lockstep.quarantine import discard, retry
from lockstep.schema import TABLES, batch_schema
from postgres import Cluster, capture, cluster, lagging_standby, landed, promote, running_capture, shop, wait_until

__all__ = ["cluster", "shop"]  # fixtures

ORDER = "INSERT INTO orders VALUES ({}, 1, 1, 'north', 1, {}, 'new', now(), now());"
FEW_ORDERS = "".join(ORDER.format(i, 100 * i) for i in (1, 2))
LOST = ORDER.format(3, 300) + (
    "UPDATE orders SET amount_cents = 777 WHERE order_id = 1; DELETE FROM orders WHERE order_id = 2"
)
FOLLOWS = "UPDATE orders SET status = 'back' WHERE order_id IN (1, 3)"  # from rows that the log has never seen
ADD = 'ALTER PUBLICATION "lockstep" ADD TABLE "public"."orders"'
OTHER = (
    "CREATE TABLE other (LIKE orders INCLUDING ALL); ALTER TABLE other REPLICA IDENTITY FULL; "
    "INSERT INTO other SELECT * FROM orders; "
)

# What opens a hole for changes of orders, what closes it, and what is said. Between the two, changes are lost.
HOLES = {
    "table left": ("ALTER PUBLICATION lockstep DROP TABLE orders", ADD, "was not in publication lockstep for a time"),
    "table swapped": (
        OTHER + "ALTER TABLE orders RENAME TO old; ALTER TABLE other RENAME TO orders",
        ADD,
        "orders is another table than before",
    ),
    "table made again": (
        OTHER + "DROP TABLE orders; ALTER TABLE other RENAME TO orders",
        ADD,
        "orders is another table than before",
    ),
    "kinds left out": (
        "ALTER PUBLICATION lockstep SET (publish = 'insert')",
        "ALTER PUBLICATION lockstep SET (publish = 'insert, update, delete, truncate')",
        "publication lockstep was altered",
    ),
}
MADE_AGAIN = ("DROP PUBLICATION lockstep", "CREATE PUBLICATION lockstep FOR ALL TABLES", "no publication lockstep when")


def resync(shop: Cluster, home: Path, *tables: str) -> dict[str, int]:
    return verifying.resync(home, shop.dsn(), tables, 120, lambda _: None)


def assert_equal(shop: Cluster, home: Path) -> None:
    """Verification passes; and, computed another way, the signed images of the orders add up to the source's rows, and
    the chain of each order's images is whole, or was mended by a resync.
    """
    verified = verifying.verify(home, shop.dsn(), [], 120, 20, lambda _: None)
    assert [(t.table, t.verdict, t.comparison.differences) for t in verified.tables if t.verdict != "passed"] == []
    assert not ChangeLog(home).watermark().holds
    signed: Counter[tuple[Any, ...]] = Counter()
    last: dict[int, Any] = {}
    broken: set[int] = set()
    for change in landed(home, "orders"):
        key = (change["after"] or change["before"])["order_id"]
        broken |= {key} if change["before"] != last.get(key) else set()
        last[key] = change["after"]
        if change["op"] == "r" and (None in (change["before"], last[key]) or change["before"] == last[key]):
            broken.discard(key)
        for image, weight in ((change["before"], -1), (change["after"], 1)):
            if image and change["position"] <= verified.position:
                signed[image["order_id"], image["amount_cents"], image["status"]] += weight
    rows = shop.execute("SELECT order_id, amount_cents, status FROM orders")
    assert {row: n for row, n in signed.items() if n} == dict.fromkeys(rows, 1)
    assert not broken


def lockstep(home: Path, *arguments: str) -> tuple[int, str]:
    ran = CliRunner().invoke(cli, [*arguments], env={"LOCKSTEP_HOME": str(home)}, catch_exceptions=True)
    return ran.exit_code, ran.output + (str(ran.exception) if ran.exception else "")


@pytest.mark.parametrize("hole", HOLES)
def test_changes_that_were_never_sent_hold_their_table_until_it_is_resynced(
    shop: Cluster, tmp_path: Path, hole: str
) -> None:
    opened, closed, said = HOLES[hole]
    shop.execute(FEW_ORDERS)
    capture(shop, tmp_path)
    for statement in (opened, LOST, closed, ORDER.format(4, 400), FOLLOWS):
        shop.execute(statement)
    shop.execute("INSERT INTO products VALUES (1, 'x', 'toys', 100, now())")

    code, told = lockstep(tmp_path, "capture", shop.dsn(), "--until-caught-up")
    assert code == 1 and said in told
    assert "orders" in ChangeLog(tmp_path).watermark().holds
    assert len(landed(tmp_path, "products")) == 1, "other tables go on"
    way_out = re.search(r"`lockstep capture \.\.\. (--\S+(?: orders)?)`", told)
    assert way_out is not None, told
    again, _ = lockstep(tmp_path, "capture", shop.dsn(), "--until-caught-up")
    assert again == 1, "it stays held"
    events = ChangeLog(tmp_path).quarantined()
    assert len(events) == len(ChangeLog(tmp_path).watermark().holds), "and nothing is noted twice"

    code, told = lockstep(tmp_path, "capture", shop.dsn(), "--until-caught-up", *way_out[1].split())
    assert code == 0, told
    assert_equal(shop, tmp_path)
    shop.execute(ORDER.format(5, 500) + "UPDATE orders SET status = 'old'")
    assert lockstep(tmp_path, "capture", shop.dsn(), "--until-caught-up")[0] == 0
    assert_equal(shop, tmp_path)


def test_a_publication_that_was_made_again_needs_a_new_snapshot(shop: Cluster, tmp_path: Path) -> None:
    opened, closed, said = MADE_AGAIN
    shop.execute(FEW_ORDERS)
    capture(shop, tmp_path)
    for statement in (opened, LOST):
        shop.execute(statement)
    for statement in ("SELECT 1", closed):
        shop.execute(statement)
        code, told = lockstep(tmp_path, "capture", shop.dsn(), "--until-caught-up")
        assert code == 1 and said in told and "--new-snapshot" in told
    assert lockstep(tmp_path, "capture", shop.dsn(), "--until-caught-up", "--new-snapshot")[0] == 0
    assert_equal(shop, tmp_path)


def test_a_running_capture_notices_and_is_resynced_beside_it(shop: Cluster, tmp_path: Path) -> None:
    shop.execute(FEW_ORDERS)
    with running_capture(shop, tmp_path, look_every=0) as process:
        shop.execute("ALTER TABLE orders RENAME TO renamed")
        wait_until(lambda: "orders" in ChangeLog(tmp_path).watermark().holds)
        shop.execute("UPDATE renamed SET amount_cents = amount_cents + 1000 WHERE order_id = 1")
        shop.execute("ALTER TABLE renamed RENAME TO orders")
        shop.execute("INSERT INTO products VALUES (1, 'x', 'toys', 100, now())")
        wait_until(lambda: landed(tmp_path, "products"))
        code, told = lockstep(tmp_path, "capture", shop.dsn(), "--resync", "orders")
        assert code == 0 and "orders was resynced: 1 change landed" in told
        assert_equal(shop, tmp_path)
        assert process.poll() is None, "it went on"


def test_a_resync_under_load_beside_a_running_capture(shop: Cluster, tmp_path: Path) -> None:
    """Transactions commit all the while; the damage is a lost file's worth of changes in the middle of the log."""
    shop.execute("".join(ORDER.format(i, 100 * i) for i in range(1, 101)))
    stop = threading.Event()

    def load() -> None:
        rng = random.Random(1)
        while not stop.is_set():
            key = rng.randint(1, 120)
            shop.execute(
                f"UPDATE orders SET amount_cents = {rng.randint(1, 999)}, status = 'x' "
                f"WHERE order_id BETWEEN {key} AND {key + 5}; DELETE FROM orders WHERE order_id = {rng.randint(1, 120)}"
            )
            with_id = rng.randint(1, 120)
            shop.execute(ORDER.format(with_id, 5).replace(");", ") ON CONFLICT DO NOTHING;"))

    with running_capture(shop, tmp_path, look_every=0) as process:
        shop.execute("ALTER PUBLICATION lockstep DROP TABLE orders")
        wait_until(lambda: "orders" in ChangeLog(tmp_path).watermark().holds)
        shop.execute("UPDATE orders SET amount_cents = 1; DELETE FROM orders WHERE order_id % 7 = 0")
        shop.execute(ADD)
        thread = threading.Thread(target=load)
        thread.start()
        try:
            assert resync(shop, tmp_path, "orders")["orders"] >= 100
        finally:
            stop.set()
            thread.join()
        assert_equal(shop, tmp_path)
        assert process.poll() is None, "it went on"


def test_a_key_whose_changes_do_not_add_up_is_mended(shop: Cluster, tmp_path: Path) -> None:
    """A source that contradicts itself: an insert of a key that lives, an update of a row that never was."""
    shop.execute(FEW_ORDERS)
    capture(shop, tmp_path)
    [one, two] = (change["after"] for change in landed(tmp_path, "orders"))
    changes = [
        {"ordinal": 0, "op": "c", "after": {**one, "status": "again"}},
        {"ordinal": 1, "op": "u", "before": {**two, "status": "never"}, "after": two},
    ]
    with ChangeLog(tmp_path).writer("postgresql:shop") as writer:
        writer.land({"orders": pa.Table.from_pylist(changes, batch_schema(TABLES["orders"]))})
    breaks.hold_what_breaks(tmp_path)
    assert "`lockstep capture ... --resync orders`" in ChangeLog(tmp_path).open_gaps()[0]
    code, told = lockstep(tmp_path, "verify-source", shop.dsn(), "--repair", "--json")
    assert code == 0, told
    shown = json.loads(told[told.index("{") :])
    assert shown["resynced"] == {"orders": 5}
    assert {row["source_table"]: row["verdict"] for row in shown["tables"]} == dict.fromkeys(TABLES, "passed")
    assert_equal(shop, tmp_path)


@pytest.mark.parametrize("command", [("--resync", "orders"), ("--new-snapshot",)], ids=lambda words: words[0])
def test_a_chain_is_mended_although_rows_and_sums_are_right(
    shop: Cluster, tmp_path: Path, command: tuple[str, ...]
) -> None:
    """Two changes of a row that landed in the wrong order, and one that follows from the right one."""
    shop.execute(FEW_ORDERS)
    capture(shop, tmp_path)
    first = landed(tmp_path, "orders")[0]["after"]
    paid, shipped, done = ({**first, "status": status} for status in ("paid", "shipped", "done"))
    steps = [(paid, shipped), (first, paid), (shipped, done)]
    changes = [{"ordinal": n, "op": "u", "before": old, "after": new} for n, (old, new) in enumerate(steps)]
    with ChangeLog(tmp_path).writer("postgresql:shop") as writer:
        writer.land({"orders": pa.Table.from_pylist(changes, batch_schema(TABLES["orders"]))})
    shop.execute("SET session_replication_role = replica; ALTER PUBLICATION lockstep DROP TABLE orders")
    shop.execute(f"UPDATE orders SET status = 'done' WHERE order_id = 1; {ADD}")
    breaks.hold_what_breaks(tmp_path)
    [reason] = ChangeLog(tmp_path).open_gaps()
    assert reason.startswith("orders contradicts itself: position")
    code, told = lockstep(tmp_path, "capture", shop.dsn(), "--until-caught-up", *command)
    assert code == 0, told
    breaks.hold_what_breaks(tmp_path)
    assert_equal(shop, tmp_path)


def test_a_held_table_is_given_up_by_discarding_its_event_and_noticed_again(shop: Cluster, tmp_path: Path) -> None:
    shop.execute(FEW_ORDERS)
    capture(shop, tmp_path)
    shop.execute("ALTER PUBLICATION lockstep DROP TABLE orders")
    shop.execute(ADD)
    assert capture(shop, tmp_path).gaps
    [event] = ChangeLog(tmp_path).quarantined()
    assert retry(tmp_path, [event["position"]]).failed == {event["position"]: event["reason"]}
    discard(tmp_path, [event["position"]])
    assert not capture(shop, tmp_path).gaps
    shop.execute("ALTER PUBLICATION lockstep DROP TABLE orders")
    shop.execute(ADD)
    assert capture(shop, tmp_path).gaps


def test_a_gap_that_the_resync_itself_comes_upon_is_mended_by_it(shop: Cluster, tmp_path: Path) -> None:
    shop.execute(FEW_ORDERS)
    capture(shop, tmp_path)
    for statement in ("ALTER PUBLICATION lockstep DROP TABLE orders", LOST, ADD):
        shop.execute(statement)
    assert lockstep(tmp_path, "capture", shop.dsn(), "--until-caught-up", "--resync", "orders")[0] == 0
    assert_equal(shop, tmp_path)


def test_a_resync_is_refused_where_the_source_would_undo_it(shop: Cluster, tmp_path: Path) -> None:
    shop.execute(FEW_ORDERS)
    capture(shop, tmp_path)
    shop.execute("ALTER PUBLICATION lockstep DROP TABLE orders")
    before = ChangeLog(tmp_path).watermark().position
    code, told = lockstep(tmp_path, "capture", shop.dsn(), "--resync", "orders")
    assert code == 1 and f"{ADD};" in told
    assert ChangeLog(tmp_path).watermark().position == before
    assert "There is no source table nonsense" in lockstep(tmp_path, "capture", shop.dsn(), "--resync", "nonsense")[1]


def test_what_changes_the_past_during_a_resync_makes_it_stop(
    shop: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shop.execute(FEW_ORDERS)
    capture(shop, tmp_path)
    shop.execute("UPDATE orders SET updated_at = 'infinity' WHERE order_id = 1")
    capture(shop, tmp_path)
    [event] = ChangeLog(tmp_path).quarantined()
    differences = verifying.differences

    def discard_meanwhile(*arguments: Any) -> Any:
        discard(tmp_path, [event["position"]])
        return differences(*arguments)

    monkeypatch.setattr(verifying, "differences", discard_meanwhile)
    before = ChangeLog(tmp_path).watermark().position
    with pytest.raises(LockstepError, match=r"orders was not resynced: .* landed meanwhile"):
        resync(shop, tmp_path, "orders")
    assert ChangeLog(tmp_path).watermark().position == before


def test_an_event_that_came_after_the_point_stays(
    shop: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shop.execute(FEW_ORDERS)
    capture(shop, tmp_path)
    differences = verifying.differences

    def capture_meanwhile(*arguments: Any) -> Any:
        shop.execute("UPDATE orders SET updated_at = 'infinity', status = 'late' WHERE order_id = 1")
        capture(shop, tmp_path)
        return differences(*arguments)

    monkeypatch.setattr(verifying, "differences", capture_meanwhile)
    assert resync(shop, tmp_path, "orders") == {"orders": 0}
    assert [e["state"] for e in ChangeLog(tmp_path).quarantined()] == ["open"]
    assert "orders" in ChangeLog(tmp_path).watermark().holds


def test_rows_that_cannot_be_read_go_to_quarantine_and_the_others_are_mended(shop: Cluster, tmp_path: Path) -> None:
    shop.execute(FEW_ORDERS)
    capture(shop, tmp_path)
    shop.execute("ALTER PUBLICATION lockstep DROP TABLE orders")
    shop.execute("UPDATE orders SET updated_at = 'infinity' WHERE order_id = 1; UPDATE orders SET status = 'x'")
    shop.execute(ADD)
    assert capture(shop, tmp_path).gaps
    assert resync(shop, tmp_path, "orders") == {"orders": 2}, "one is changed, one is gone until its event lands"
    assert [e["state"] for e in ChangeLog(tmp_path).quarantined()] == ["discarded", "open"]
    assert "orders" in ChangeLog(tmp_path).watermark().holds
    shop.execute("UPDATE orders SET updated_at = now()")
    resync(shop, tmp_path, "orders")
    assert_equal(shop, tmp_path)


def test_a_promoted_standby_that_lacks_what_has_landed(shop: Cluster, tmp_path: Path) -> None:
    """The standby stops receiving, the primary goes on and is captured; then the standby is promoted."""
    home = tmp_path / "home"
    shop.execute(FEW_ORDERS)
    capture(shop, home)
    with lagging_standby(shop) as standby:
        shop.execute("".join(ORDER.format(i, 1) for i in range(11, 21)))
        capture(shop, home)
        promote(standby)
        standby.execute("SELECT pg_create_logical_replication_slot('lockstep', 'pgoutput')")
        standby.execute(ORDER.format(5, 500))
        before = ChangeLog(home).watermark().position
        code, told = lockstep(home, "capture", standby.dsn(), "--until-caught-up")
        assert code == 1 and "promoted from a standby" in told and "--new-snapshot" in told
        assert ChangeLog(home).watermark().position == before
        assert lockstep(home, "capture", standby.dsn(), "--until-caught-up", "--new-snapshot")[0] == 0
        assert_equal(standby, home)
        standby.execute("UPDATE orders SET status = 'after'")
        assert lockstep(home, "capture", standby.dsn(), "--until-caught-up")[0] == 0
        assert_equal(standby, home)


def test_a_log_of_an_older_version_takes_the_publication_as_it_is(shop: Cluster, tmp_path: Path) -> None:
    shop.execute(FEW_ORDERS)
    capture(shop, tmp_path)
    with ChangeLog(tmp_path).writer("postgresql:shop") as writer:
        new = ("published", "looked", "timeline")
        resume = {name: value for name, value in writer.watermark.resume.items() if name not in new}
        writer.land({}, resume=resume)
    assert not capture(shop, tmp_path).gaps
    shop.execute("ALTER PUBLICATION lockstep DROP TABLE orders; ALTER PUBLICATION lockstep ADD TABLE orders")
    assert "orders was not in publication lockstep for a time" in capture(shop, tmp_path).gaps[0]


def test_a_capture_that_is_stopped_is_no_failure_though_a_table_is_held(shop: Cluster, tmp_path: Path) -> None:
    capture(shop, tmp_path)
    shop.execute("ALTER PUBLICATION lockstep DROP TABLE orders; ALTER PUBLICATION lockstep ADD TABLE orders")
    process = subprocess.Popen(
        [str(Path(sys.executable).with_name("lockstep")), "capture", shop.dsn()],
        env={**os.environ, "LOCKSTEP_HOME": str(tmp_path)},
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        wait_until(lambda: ChangeLog(tmp_path).watermark().holds)
        process.terminate()
        _, told = process.communicate(timeout=120)
    finally:
        process.kill()
    assert process.returncode == 0 and "Held: orders was not in publication" in told
