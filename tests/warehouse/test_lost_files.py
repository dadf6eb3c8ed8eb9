"""A home whose files were lost, damaged, moved or restored from another time: what is said, and how it is mended.

One home is planned. Whatever does not change it is tried on it, one fault after the other, each taken back.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime, timedelta
from pathlib import Path

import duckdb
import pytest

from lockstep import operate, pairing, publish
from lockstep.changelog import ChangeLog
from lockstep.errors import LockstepError
from shop import Shop, land

NOON = datetime(2026, 11, 18, 12)
LOCKSTEP = Path(sys.executable).with_name("lockstep")
LATER = timedelta(minutes=40)


def work(shop: Shop, hours: int) -> None:
    """An order in each of the next hours; the last one is not over."""
    for _ in range(hours):
        shop.now += timedelta(hours=1)
        shop.order(len(shop.rows["orders"]) + 1, amount_cents=len(shop.rows["orders"]) + 1)


@pytest.fixture(scope="module")
def shop() -> Shop:
    shop = Shop(NOON - timedelta(days=1))
    shop.product(1, "books")
    shop.insert("customers", 1)
    shop.insert("shipments", 1)  # no domain may be empty: an empty one is not served live
    shop.insert("route_stops", (1, 1))
    shop.ping()
    work(shop, 24)
    return shop


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory, shop: Shop) -> Iterator[Path]:
    """Planned and published, at noon."""
    home = tmp_path_factory.mktemp("lost") / "home"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LOCKSTEP_HOME", str(home))
        land(home, shop.changes)
        assert operate.run(home, NOON + LATER).agrees
        yield home


@contextmanager
def spoiled(path: Path, size: int) -> Iterator[None]:
    """With the file cut off."""
    content = path.read_bytes()
    os.truncate(path, size)
    yield
    path.write_bytes(content)


def orders(home: Path) -> tuple[int, int]:
    with duckdb.connect(str(home / "analytics.duckdb"), read_only=True) as connection:
        [row] = connection.execute("SELECT SUM(orders), SUM(revenue_cents) FROM mart.orders").fetchall()
    return int(row[0]), int(row[1])


def expected(shop: Shop) -> tuple[int, int]:
    rows = shop.rows["orders"].values()
    return len(rows), sum(row["amount_cents"] for row in rows)


def served(home: Path) -> dict[str, str]:
    return {row["domain"]: row["served_from"] for row in operate.status(home)["domains"]}


def test_a_file_of_the_log_is_cut_off(home: Path, shop: Shop) -> None:
    assert served(home)["orders"] == served(home)["delivery_status"] == "live"
    path = ChangeLog(home).files("orders")[-1]
    published = (home / "analytics.duckdb").stat().st_ino
    with spoiled(path.resolve(), 100):
        domains = {row["domain"]: row for row in operate.status(home)["domains"]}
        assert domains["orders"]["served_from"] == "nothing"
        assert str(path) in domains["orders"]["reason"]
        assert domains["delivery_status"]["served_from"] == "live"  # it does not read the file
        with pytest.raises(LockstepError, match=str(path)):
            publish.publish(home)
        with pytest.raises(duckdb.Error, match=path.name):
            orders(home)
    assert (home / "analytics.duckdb").stat().st_ino == published
    assert served(home)["orders"] == "live"
    assert orders(home) == expected(shop)


@pytest.mark.parametrize("size", [5_000, 50_000])
def test_the_warehouse_is_cut_off(home: Path, size: int) -> None:
    path = home / "warehouse.duckdb"
    with spoiled(path, size):
        status = operate.status(home)
        assert status["warehouse"] == "unreadable"
        assert status["domains"] == []
        for complaint in (lambda: publish.publish(home), lambda: operate.receipts(home)):
            with pytest.raises(LockstepError, match=f"`mv {path} {path}.damaged`"):
                complaint()


def test_the_published_file_is_cut_off(home: Path, shop: Shop) -> None:
    path = home / "analytics.duckdb"
    os.truncate(path, 20_000)
    assert publish.publish(home).marts
    assert publish.oldest_needed_hour(home) is not None  # else no run could compact any more
    assert orders(home) == expected(shop)


def test_an_older_log_was_restored(home: Path) -> None:
    path = home / "changelog"
    newer = path.rename(home / "newer")
    older = Shop(NOON - timedelta(days=1))
    older.product(1, "books")
    land(home, older.changes)
    before = (home / "warehouse.duckdb").read_bytes()
    with pytest.raises(LockstepError, match=f"{path} ends at position 1, but .* an older log was restored"):
        operate.run(home, NOON + LATER)
    assert (home / "warehouse.duckdb").read_bytes() == before
    shutil.rmtree(path)
    newer.rename(path)


def test_a_read_only_home_can_be_read(home: Path) -> None:
    mount = f"mount --bind '{home}' '{home}' && mount -o remount,bind,ro '{home}' && exec \"$@\""
    through = ["unshare", "--mount", "sh", "-c", mount, "sh"]
    if shutil.which("unshare") is None or subprocess.run([*through, "true"], capture_output=True).returncode:
        pytest.skip("this account may not mount")
    for command in ("status", "receipts"):
        done = subprocess.run([*through, LOCKSTEP, command], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        assert "orders" in done.stdout


def test_the_home_was_moved(home: Path, shop: Shop) -> None:
    receipts = operate.receipts(home)
    moved = home.rename(home.parent / "moved")
    try:
        with pytest.raises(duckdb.Error, match=f"{home}/changelog"):
            orders(moved)
        assert operate.receipts(moved) == receipts
        publish.publish(moved)
        assert orders(moved) == expected(shop)
    finally:
        moved.rename(home)
        publish.publish(home)


def test_a_plan_was_killed_before_its_end(home: Path, shop: Shop) -> None:
    """Its record is in the state, and not all of its views are made. SQLMesh would wait for its end for six hours."""
    with duckdb.connect(str(home / "state.duckdb")) as connection:
        connection.execute("UPDATE sqlmesh._environments SET finalized_ts = NULL")
    with duckdb.connect(str(home / "warehouse.duckdb")) as connection:
        connection.execute("DROP VIEW mart.orders")
    result = operate.run(home, NOON + LATER)
    assert result.agrees, result.failures
    assert not result.planned
    assert orders(home) == expected(shop)


def test_what_is_empty_was_not_in_the_backup(home: Path, shop: Shop) -> None:
    """Models read quarantined events and receipts of sources also where there are none."""
    receipts, quarantine = home / "source_receipts.jsonl", home / "quarantine"
    assert not any(path.stat().st_size for path in (receipts, *quarantine.iterdir()))
    receipts.unlink()
    shutil.rmtree(quarantine)
    result = operate.run(home, NOON + LATER)
    assert result.agrees, result.failures
    assert orders(home) == expected(shop)


def test_the_warehouse_is_of_an_older_backup(home: Path, shop: Shop) -> None:
    """Each file is lost, too, if the other is of another time: then both are set aside, and all is computed anew."""
    warehouse, state = (home / name for name in pairing.FILES)
    backup = warehouse.read_bytes()
    work(shop, 3)
    land(home, shop.changes[-3:])
    assert operate.run(home, shop.now + LATER).agrees
    assert orders(home) == expected(shop)
    warehouse.write_bytes(backup)
    work(shop, 2)
    land(home, shop.changes[-2:])

    result = operate.run(home, shop.now + LATER)

    assert result.agrees, result.failures
    assert result.planned
    [note] = result.notes
    assert f"{warehouse} and {state} are from two different times" in note
    assert orders(home) == expected(shop)
    [aside] = (home / pairing.DEBRIS).iterdir()
    assert {path.name for path in aside.iterdir()} == {*pairing.FILES}
    assert not operate.run(home, shop.now + LATER).notes
