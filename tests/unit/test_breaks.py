"""Breaks in the chain of images: found in what has landed since the last look, held, and lifted once nothing breaks."""

from __future__ import annotations

import dataclasses
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lockstep import breaks, chain, checkpoints, quarantine
from lockstep.changelog import ChangeLog, Watermark
from lockstep.errors import LockstepError
from lockstep.schema import TABLES
from shop import SOURCE, Change, Shop, land

NOON = datetime(2026, 11, 18, 12)
HOUR = timedelta(hours=1)


def look(home: Path, *tables: str) -> Watermark:
    return breaks._look(ChangeLog(home), tables or TABLES)


def found(home: Path, table: str, after: int = 0, until: int | None = None) -> list[tuple[int, str]]:
    log = ChangeLog(home)
    until = log.watermark().position if until is None else until
    return [(b.position, b.found) for b in breaks.find(log, TABLES[table], after, until)]


def held_at(home: Path) -> dict[str, int]:
    return {table: hold.position for table, hold in ChangeLog(home).watermark().holds.items()}


def reasons(home: Path) -> list[str]:
    return ChangeLog(home).open_gaps()


def a_shop() -> Shop:
    """Orders 1 and 2, both paid, and a product; positions 1 to 5, each a transaction."""
    shop = Shop(NOON)
    shop.order(1)
    shop.order(2)
    shop.product(1, "books")
    shop.change(1, status="paid")
    shop.change(2, status="paid")
    return shop


def altered(change: Change, image: str, **columns: Any) -> Change:
    return dataclasses.replace(change, **{image: {**getattr(change, image), **columns}})


# -- What is found


def test_what_follows_is_found_to(tmp_path: Path) -> None:
    shop = a_shop()
    shop.delete(1)
    shop.order(1)
    shop.rekey(1, 7)
    land(tmp_path, shop.changes)
    watermark = look(tmp_path)
    assert watermark == ChangeLog(tmp_path).watermark()
    assert held_at(tmp_path) == {}
    keyed = [name for name, table in TABLES.items() if table.key]
    assert checkpoints.checked(tmp_path).until == dict.fromkeys(keyed, watermark.position)


LIVES, NOT_LAST = "is an insert of a key that lives", "has an image before that is not the last one of its key"
UNSEEN_DELETE, UNSEEN_UPDATE = (f"is {change} of a key that does not live" for change in ("a delete", "an update"))


FILLED_IN = {
    "customer_id": 0,
    "product_id": 0,
    "region": "",
    "quantity": 0,
    "amount_cents": 0,
    "status": "",
    **dict.fromkeys(("ordered_at", "updated_at"), datetime(1970, 1, 1)),
}


@pytest.mark.parametrize(
    ("key", "before", "is_deleted", "expected"),
    [
        (1, None, False, LIVES),
        (1, {"quantity": 77}, False, NOT_LAST),
        (8, {}, False, UNSEEN_UPDATE),
        (8, {}, True, UNSEEN_DELETE),
        (1, FILLED_IN, False, chain.BARE),
    ],
)
def test_each_kind_of_break(
    tmp_path: Path, key: int, before: dict[str, Any] | None, is_deleted: bool, expected: str
) -> None:
    shop = a_shop()
    row = {**shop.rows["orders"][1], "order_id": key}
    shop.change(2, status="shipped")
    broken = dataclasses.replace(
        shop.changes[-1], before=None if before is None else {**row, **before}, after=None if is_deleted else row
    )
    land(tmp_path, [*shop.changes[:-1], broken, shop.changes[-1]])
    assert found(tmp_path, "orders") == found(tmp_path, "orders", after=5) == [(6, expected)]
    assert found(tmp_path, "orders", after=6) == found(tmp_path, "orders", until=5) == []


def test_what_a_resync_lands_mends_what_was_before_it(tmp_path: Path) -> None:
    shop = a_shop()
    shop.changes[-1] = altered(shop.changes[-1], "before", status="never")
    row = shop.rows["orders"][2]
    same = dataclasses.replace(shop.changes[-1], op="r", before=row, after=row)
    land(tmp_path, shop.changes)
    assert found(tmp_path, "orders") == [(5, NOT_LAST)]
    land(tmp_path, [same])
    assert found(tmp_path, "orders") == []
    shop.rows["orders"][2] = {**row, "status": "neither"}
    shop.change(2, status="shipped")
    land(tmp_path, shop.changes[-1:])
    assert found(tmp_path, "orders") == [(7, NOT_LAST)]


OPS = st.lists(st.tuples(st.integers(1, 4), st.sampled_from(["c", "u", "d", "lose", "double", "alter"])), max_size=24)


@given(OPS, st.integers(0, 24))
def test_as_a_dictionary_finds_them(tmp_path_factory: pytest.TempPathFactory, story: Any, looked: int) -> None:
    """Whatever is lost, doubled or altered, and wherever the last look was."""
    home, shop = tmp_path_factory.mktemp("home"), Shop(NOON)
    landed: list[Change] = []
    for key, what in story:
        shop.now += timedelta(minutes=7)
        lives = key in shop.rows["orders"]
        if what == "d" and lives:
            shop.delete(key)
        elif lives:
            shop.change(key, amount_cents=shop.rows["orders"][key]["amount_cents"] + 1)
        else:
            shop.order(key)
        [made] = shop.changes[-1:]
        landed += {"lose": [], "double": [made, made]}.get(what, [made])
        if what == "alter" and landed[-1].before:
            landed[-1] = altered(landed[-1], "before", quantity=77)
    if not landed:
        return
    land(home, landed)
    after = min(looked, len(landed))
    last: dict[int, Any] = {}
    expected = []
    for position, change in enumerate(landed, start=1):
        key = (change.after or change.before or {})["order_id"]
        if change.before != last.get(key) and position > after:
            expected.append(position)
        last[key] = change.after
    assert [position for position, _ in found(home, "orders", after)] == expected


def test_of_an_append_only_table_rows_from_before_the_checkpoint_are_not_known(tmp_path: Path) -> None:
    shop = Shop(NOON)
    for _ in range(3):
        shop.ping()
    land(tmp_path, shop.changes)
    columns = checkpoints._columns(TABLES["gps_pings"])
    taken = checkpoints.Checkpoint("gps_pings", NOON, 2, None, 0, 0, None, columns)
    checkpoints._List(tmp_path).write([taken])
    shop.delete(1, "gps_pings")
    shop.delete(2, "gps_pings")
    land(tmp_path, [*shop.changes[3:], shop.changes[2]])
    assert found(tmp_path, "gps_pings", after=2) == [(6, LIVES)]
    assert [position for position, _ in found(tmp_path, "gps_pings", after=1)] == [6]


def test_a_checkpoint_of_other_columns_is_not_read(tmp_path: Path) -> None:
    """A column that was declared since would be missing from it, until the next run drops it."""
    shop = a_shop()
    land(tmp_path, shop.changes)
    path = tmp_path / "changelog" / "_checkpoints" / "orders" / "__cut=2026-11-18T12" / "rows.parquet"
    path.parent.mkdir(parents=True)
    pq.write_table(pa.table({"order_id": [1, 2], "extra": [None, None]}), path)
    before = '[["order_id", "BIGINT"], ["extra", "TEXT"]]'
    taken = checkpoints._recorded(checkpoints.Checkpoint("orders", NOON, 5, None, 0, 0, None, before), path)
    checkpoints._List(tmp_path).write([taken])
    shop.change(1, status="shipped")
    land(tmp_path, [altered(shop.changes[-1], "before", status="never")])
    assert [position for position, _ in found(tmp_path, "orders", after=5)] == [6]


# -- What is held


def test_the_table_is_held_at_the_transaction_and_no_other(tmp_path: Path) -> None:
    shop = a_shop()
    with shop.transaction():
        shop.product(2, "toys")
        shop.change(2, status="shipped")
        shop.change(1, status="shipped")
    shop.changes[-1] = altered(shop.changes[-1], "before", status="never")
    land(tmp_path, shop.changes)
    looked = look(tmp_path)
    assert held_at(tmp_path) == {"orders": 6} == {table: hold.position for table, hold in looked.holds.items()}
    [reason] = reasons(tmp_path)
    assert reason.startswith("orders contradicts itself: position 8, order_id 1, has an image")
    assert "no backup helps" in reason
    assert "--resync orders" in reason
    assert looked.position == 8
    assert look(tmp_path).holds == looked.holds  # again: nothing more is found, or landed
    assert len(ChangeLog(tmp_path).quarantined()) == 1
    assert checkpoints.checked(tmp_path).until["products"] == 9
    assert "orders" not in checkpoints.checked(tmp_path).until


def test_several_tables_are_held_by_one_landing(tmp_path: Path) -> None:
    shop = a_shop()
    shop.product(1, "toys")
    shop.changes[-1] = altered(shop.changes[-1], "before", category="never")
    shop.changes[-2] = altered(shop.changes[-2], "before", status="never")
    land(tmp_path, shop.changes)
    before = ChangeLog(tmp_path).watermark()
    assert {table: hold.position for table, hold in look(tmp_path).holds.items()} == {"orders": 5, "products": 6}
    assert held_at(tmp_path) == {"orders": 5, "products": 6}
    assert ChangeLog(tmp_path).watermark().sequence == before.sequence + 1
    assert [reason.partition(" ")[0] for reason in sorted(reasons(tmp_path))] == ["orders", "products"]


def test_hours_before_the_break_fold_and_others_go_on(tmp_path: Path) -> None:
    shop = a_shop()
    shop.now += HOUR
    shop.change(1, status="shipped")
    shop.changes[-1] = altered(shop.changes[-1], "before", status="never")
    shop.now += HOUR
    shop.product(2, "toys")
    land(tmp_path, shop.changes)
    assert breaks.foldable_until(tmp_path, ["products"]) == NOON + 2 * HOUR
    assert held_at(tmp_path) == {}, "nobody asked for the orders"
    assert breaks.foldable_until(tmp_path, ["orders", "products"]) == NOON + HOUR
    assert breaks.foldable_until(tmp_path, ["products"]) == NOON + 2 * HOUR
    assert held_at(tmp_path) == {"orders": 6}


def test_to_fold_only_closed_hours_are_looked_at(tmp_path: Path) -> None:
    shop = a_shop()
    shop.now += HOUR
    shop.change(1, status="shipped")
    shop.changes[-1] = altered(shop.changes[-1], "before", status="never")
    land(tmp_path, shop.changes)
    assert breaks.foldable_until(tmp_path, ["orders"]) == NOON + HOUR
    assert held_at(tmp_path) == {}
    assert checkpoints.checked(tmp_path).until == {"orders": 5}
    look(tmp_path)
    assert held_at(tmp_path) == {"orders": 6}
    assert breaks.foldable_until(tmp_path, ["orders"]) == NOON + HOUR
    assert held_at(tmp_path) == {"orders": 6}, "what lies behind the closed hours holds it still"


def test_a_break_behind_a_hold_is_found_when_that_is_gone(tmp_path: Path) -> None:
    shop = a_shop()
    shop.changes[-1] = altered(shop.changes[-1], "before", status="never")
    log = ChangeLog(tmp_path)
    land(tmp_path, shop.changes[:3])
    bad = pa.table(
        {
            "ordinal": pa.array([0]),
            "committed_at": pa.array([NOON], pa.timestamp("us")),
            "table": ["orders"],
            "reason": ["no key"],
            "event": ["{}"],
        }
    )
    with log.writer(SOURCE) as writer:
        writer.land({}, bad)
    land(tmp_path, shop.changes[3:])
    look(tmp_path)
    assert held_at(tmp_path) == {"orders": 4}
    assert reasons(tmp_path) == []
    quarantine.discard(tmp_path, [4])
    look(tmp_path)
    assert held_at(tmp_path) == {"orders": 6}


def test_what_is_mended_is_held_no_more(tmp_path: Path) -> None:
    """A damaged file that was restored, before its changes were read by anything."""
    land(tmp_path, a_shop().changes)
    [path] = ChangeLog(tmp_path).files("orders")
    content = path.read_bytes()
    table = pq.ParquetFile(path).read()
    rows = table.to_pylist()
    rows[2]["before"]["amount_cents"] += 1
    pq.write_table(pa.Table.from_pylist(rows, schema=table.schema), path)
    look(tmp_path)
    assert held_at(tmp_path) == {"orders": 4}
    [reason] = reasons(tmp_path)
    assert "is not as landed: restore it from a backup" in reason
    assert "resync" not in reason
    path.write_bytes(content)
    look(tmp_path)
    assert held_at(tmp_path) == {}
    assert checkpoints.checked(tmp_path).until["orders"] == 6  # the hold took a position


def test_an_unreadable_file_is_named(tmp_path: Path) -> None:
    land(tmp_path, a_shop().changes, reached=NOON + HOUR)
    [path] = ChangeLog(tmp_path).files("orders")
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(LockstepError, match=rf"{path} cannot be read: .*[^.]\. `lockstep log check` names every"):
        breaks.hold_what_breaks(tmp_path)
    assert breaks.foldable_until(tmp_path, ["products"]) == NOON + HOUR
    assert breaks.foldable_until(tmp_path, ["orders", "products"]) == NOON, "and nothing is raised"
    assert held_at(tmp_path) == {}


def test_while_another_command_keeps_the_log_nothing_that_breaks_is_folded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(breaks, "_PATIENCE", 0.1)
    shop = a_shop()
    shop.changes[-1] = altered(shop.changes[-1], "before", status="never")
    land(tmp_path, shop.changes, reached=NOON + HOUR)
    with ChangeLog(tmp_path).writer(SOURCE):
        assert breaks.foldable_until(tmp_path, ["orders"]) == NOON
        with pytest.raises(LockstepError, match=r"changelog\.lock is held by"):
            breaks.hold_what_breaks(tmp_path)
    assert breaks.foldable_until(tmp_path, ["orders"]) == NOON
    assert held_at(tmp_path) == {"orders": 5}


def test_the_past_that_changes_is_looked_at_again(tmp_path: Path) -> None:
    land(tmp_path, a_shop().changes)
    look(tmp_path)
    checkpoints.drop_since(tmp_path, 4, ["orders"])
    until = checkpoints.checked(tmp_path).until
    assert (until["orders"], until["products"]) == (3, 5)
    stale = checkpoints.checked(tmp_path)
    checkpoints.drop_since(tmp_path, 2, ["orders"])
    checkpoints.note_checked(tmp_path, stale)
    assert checkpoints.checked(tmp_path).until["orders"] == 1
