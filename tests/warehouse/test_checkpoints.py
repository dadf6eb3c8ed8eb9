"""Checkpoints: taken once a chain was found whole, used from then on, and dropped where they do not fit the log."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Any

import duckdb
import pyarrow.parquet as pq
import pytest

from homes import SharedHomes
from lockstep import checkpoints, log_check, operate, quarantine, warehouse
from lockstep.changelog import ChangeLog
from lockstep.schema import TABLES
from replay import Replay, planned
from shop import Shop, count_as_looked_at, land

__all__ = ["planned"]  # a fixture


@pytest.fixture(scope="session")
def nights(shared_home: SharedHomes, planned: Callable[[datetime, Path], Replay]) -> Replay:
    """A home with three nights' checkpoints, at the midnights of 1, 2 and 3 June."""

    def build(path: Path) -> Replay:
        with pytest.MonkeyPatch.context() as monkeypatch:
            monkeypatch.setenv("LOCKSTEP_HOME", str(path))
            replay = planned(datetime(2026, 5, 31, 20), path)
            shop = replay.shop
            shop.product(1, "books")
            shop.order(1)
            shop.order(2)
            shop.ping(1)
            for table, key in (("routes", 1), ("shipments", 1), ("route_stops", (1, 1))):
                shop.insert(table, key)
            replay.land()
            replay.run_next_day()
            shop.change(1, status="paid")
            replay.run_next_day()
            shop.delete(2)
            shop.order(3)
            shop.update("route_stops", (1, 1), completed_at=shop.now)
            shop.ping(1)
            replay.run_next_day()
            return replay

    return shared_home("checkpoints", build)


@pytest.fixture
def replay(nights: Replay, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Replay:
    monkeypatch.setenv("LOCKSTEP_HOME", str(tmp_path / "home"))
    return nights.copied(tmp_path / "home")


@pytest.fixture
def home(replay: Replay) -> Path:
    return replay.home


def cuts(home: Path, table: str = "orders") -> list[datetime]:
    return [c.cut for c in checkpoints.kept(home) if c.source_table == table]


def rows(home: Path, query: str) -> list[dict[str, Any]]:
    with warehouse.reader(home) as connection:
        return warehouse.rows(connection, query)


def state(shop: Shop, table: str) -> list[tuple[Any, ...]]:
    """The rows of a table as the source has them now."""
    return sorted(tuple(row.get(c.name) for c in TABLES[table].columns) for row in shop.rows[table].values())


def listed(table: str) -> str:
    return ", ".join(c.sql for c in TABLES[table].columns)


def test_each_night_takes_one_of_every_table(replay: Replay, home: Path) -> None:
    midnights = [datetime(2026, 6, day) for day in (1, 2, 3)]
    assert {table: cuts(home, table) for table in TABLES} == dict.fromkeys(TABLES, midnights)
    for table in set(TABLES) - {"gps_pings"}:
        [newest] = [c for c in checkpoints.kept(home) if c.source_table == table and c.cut == midnights[-1]]
        found = duckdb.sql(f"SELECT {listed(table)} FROM '{home / newest.path}' ORDER BY ALL").fetchall()
        assert found == state(replay.shop, table), table
        assert newest.rows == len(found)
        assert pq.read_schema(home / newest.path).names == [*(c.name for c in TABLES[table].columns), "extra"]
    assert not state(replay.shop, "drivers")  # an empty table has one as well
    replay.run_next_day()
    assert cuts(home) == [*midnights[1:], datetime(2026, 6, 4)]  # so many stay
    files = [path.parent.name for path in (home / "changelog/_checkpoints/orders").glob("*/*.parquet")]
    assert sorted(files) == ["__cut=0001-01-01T00", *(f"__cut=2026-06-0{day}T00" for day in (2, 3, 4))]


def test_the_state_at_a_cut_is_that_of_a_checkpoint_and_the_changes_since(replay: Replay, home: Path) -> None:
    """The log before the checkpoint is not read: it says another thing here than the checkpoint."""
    shop = replay.shop
    path = next(iter(ChangeLog(home).files("orders")))
    file = pq.ParquetFile(path).read()
    changed = file.to_pylist()
    changed[0]["after"]["amount_cents"] += 1
    pq.write_table(type(file).from_pylist(changed, schema=file.schema), path.resolve())
    shop.change(3, status="paid")
    replay.land(reached=datetime(2026, 6, 4, 5))
    result = operate.run(home, datetime(2026, 6, 4, 5))
    assert result.failures == []
    found = rows(home, f"SELECT {listed('orders')} FROM source.orders ORDER BY ALL")
    assert [tuple(row.values()) for row in found] == state(shop, "orders")
    assert rows(home, "SELECT checked_from, changes FROM chain.orders") == [
        {"checked_from": datetime(2026, 6, 3), "changes": 1}
    ]
    assert [f.kind for f in log_check.check(home).findings] == ["changed"]


def test_none_is_taken_while_a_chain_is_broken(replay: Replay, home: Path) -> None:
    shop = replay.shop
    shop.change(1, status="shipped")
    replay.land()
    land(home, shop.changes[-1:], reached=datetime(2026, 6, 4, 5))
    count_as_looked_at(home)
    assert [f.partition(" found")[0] for f in operate.run(home, datetime(2026, 6, 4, 5)).failures] == [
        "chain.orders: audit image_chain_unbroken"
    ]
    assert cuts(home)[-1] == datetime(2026, 6, 3)
    assert cuts(home, "products")[-1] == datetime(2026, 6, 4)


def test_damaged_ones_are_dropped_and_those_before_are_used(replay: Replay, home: Path) -> None:
    """One has a bit flipped, one is cut off, and one is lost."""
    newest = {c.source_table: home / c.path for c in checkpoints.kept(home) if c.sha256}
    content = bytearray(newest["orders"].read_bytes())
    content[len(content) // 2] ^= 1
    newest["orders"].write_bytes(content)
    newest["shipments"].write_bytes(newest["shipments"].read_bytes()[:-9])
    newest["products"].unlink()
    replay.shop.change(3, status="paid")
    replay.run_next_day()  # compares every figure
    for table in ("orders", "shipments", "products"):
        assert rows(home, f"SELECT checked_from FROM chain.{table}") == [{"checked_from": datetime(2026, 6, 2)}]
        assert cuts(home, table) == [datetime(2026, 6, day) for day in (1, 2, 4)]
    assert cuts(home, "routes") == [datetime(2026, 6, day) for day in (2, 3, 4)]
    moved = (home / "debris").glob("checkpoint-*/changelog/_checkpoints/*/*/rows.parquet")
    assert sorted(path.parts[-3] for path in moved) == ["orders", "shipments"]


def test_log_check_finds_a_damaged_one(home: Path) -> None:
    assert log_check.check(home).is_sound
    [oldest, *_] = [c for c in checkpoints.kept(home) if c.source_table == "shipments"]
    (home / oldest.path).write_bytes(b"nothing")
    [finding] = log_check.check(home).findings
    assert (finding.kind, finding.path) == ("checkpoint", oldest.path)
    assert "the checkpoint of shipments at 2026-06-01 00:00 was changed since it was taken; it is now" in finding.what
    assert cuts(home, "shipments") == [datetime(2026, 6, 2), datetime(2026, 6, 3)]
    assert log_check.check(home).is_sound


def test_without_any_the_log_is_read_from_its_start(replay: Replay, home: Path) -> None:
    shutil.rmtree(home / "changelog" / "_checkpoints")
    (home / "changelog" / "checkpoints.json").unlink()
    replay.shop.change(3, status="paid")
    replay.run_next_day(can_be_read=False)
    assert [row["checked_from"].year for row in rows(home, "SELECT checked_from FROM chain.orders")] == [1]
    assert cuts(home) == [datetime(2026, 6, 4)]


def test_one_that_was_not_finished_does_not_count(replay: Replay, home: Path) -> None:
    """Killed after its file was moved into place, and before the list says so; and while the file was written."""
    before = (home / "changelog" / "checkpoints.json").read_bytes()
    replay.shop.change(3, status="paid")
    replay.run_next_day()
    (home / "changelog" / "checkpoints.json").write_bytes(before)
    (home / "changelog" / "_checkpoints" / "orders.partial").write_bytes(b"half")
    with warehouse.reader(home) as connection:
        found = connection.execute(f"SELECT {listed('orders')} FROM source.orders ORDER BY ALL").fetchall()
    assert found == state(replay.shop, "orders")
    replay.shop.change(3, status="shipped")
    replay.run_next_day()
    assert cuts(home) == [datetime(2026, 6, day) for day in (2, 3, 5)]


def test_a_log_restored_from_a_backup_keeps_those_that_fit_it(replay: Replay, home: Path, tmp_path: Path) -> None:
    """The log goes back to the evening before the last checkpoint, and what happens then is another thing."""
    shop, backup = replay.shop, tmp_path / "changelog"
    paid = shop.rows["orders"][1]
    kept = shutil.ignore_patterns("checkpoints.json", "_checkpoints")
    shutil.copytree(home / "changelog", backup, symlinks=True, ignore=kept)
    shop.change(1, status="shipped")
    replay.run_next_day()
    assert cuts(home)[-1] == datetime(2026, 6, 4)
    for path in (home / "changelog").iterdir():
        if path.is_dir() and path.name != "_checkpoints":
            shutil.rmtree(path)
    shutil.copytree(backup, home / "changelog", symlinks=True, dirs_exist_ok=True)
    for name in ("warehouse.duckdb", "state.duckdb"):
        (home / name).unlink()
    shop.rows["orders"][1] = paid
    shop.now = datetime(2026, 6, 3, 11)
    shop.change(1, status="cancelled")
    land(home, shop.changes[-1:], reached=datetime(2026, 6, 5, 5))
    assert operate.run(home, datetime(2026, 6, 5, 5)).failures == []
    assert rows(home, "SELECT status FROM source.orders WHERE order_id = 1") == [{"status": "cancelled"}]
    assert cuts(home)[-2:] == [datetime(2026, 6, 3), datetime(2026, 6, 5)]


def test_an_event_that_lands_at_an_old_position_drops_those_that_lack_it(home: Path) -> None:
    position = checkpoints.kept(home)[-1].position
    kept = cuts(home, "routes")
    checkpoints.drop_since(home, position, ["orders"])
    assert cuts(home) == [datetime(2026, 6, 1), datetime(2026, 6, 2)]
    assert cuts(home, "routes") == kept
    checkpoints.drop_since(home, 1)
    assert checkpoints.kept(home) == []
    assert not list((home / "changelog" / "_checkpoints").glob("*/__cut=2*"))
    assert quarantine.entries(home) == []
