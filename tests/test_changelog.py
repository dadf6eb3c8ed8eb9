"""The change log on disk: gapless, monotone, whole after any crash, one writer, and what quarantine keeps.

Awkward cases: commit times out of order, a batch over several tables and hours, key updates, a wider row, one row, no
row, death at every fsync and rename of a landing, a writer that fails and goes on, an event without a commit time.
"""

from __future__ import annotations

import itertools
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from lockstep import changelog
from lockstep.changelog import ChangeLog
from lockstep.errors import LockstepError
from lockstep.schema import DISCARDED, TABLES, batch_schema, log_schema

SOURCE = "test:shop"
NOON = datetime(2026, 11, 18, 12)
Image = dict[str, Any]
Change = tuple[str, str, Image | None, Image | None, datetime]


def order(order_id: int, **columns: Any) -> Image:
    image = {"order_id": order_id, "customer_id": 1, "product_id": 1, "region": "north", "quantity": 1}
    return {**image, "amount_cents": 100, "status": "created", "ordered_at": NOON, "updated_at": NOON, **columns}


def product(product_id: int) -> Image:
    return {"product_id": product_id, "name": "x", "category": "toys", "price_cents": 100, "updated_at": NOON}


def stop(route_id: int, stop_number: int) -> Image:
    image = {"route_id": route_id, "stop_number": stop_number, "shipment_id": 1, "planned_arrival_at": NOON}
    return {**image, "latitude": 52.5, "longitude": 13.4}


def created(order_id: int, at: datetime = NOON) -> Change:
    return "orders", "c", None, order(order_id), at


def batch(*changes: Change) -> dict[str, pa.Table]:
    """The writer's input: changes in their order."""
    rows: dict[str, list[Image]] = {}
    for ordinal, (table, op, before, after, at) in enumerate(changes):
        row = {"ordinal": ordinal, "committed_at": at, "op": op, "before": before, "after": after}
        rows.setdefault(table, []).append({**row, "tx_id": ordinal, "lsn": 10 * ordinal})
    return {table: pa.Table.from_pylist(part, batch_schema(TABLES[table])) for table, part in rows.items()}


def rejected(*events: tuple[int, str, datetime | None]) -> pa.Table:
    """Events that broke the landing contract: ordinal, table, commit time."""
    return pa.table(
        {
            "ordinal": pa.array([ordinal for ordinal, _, _ in events], pa.int64()),
            "committed_at": pa.array([at for _, _, at in events], pa.timestamp("us")),
            "table": [table for _, table, _ in events],
            "reason": ["no key"] * len(events),
            "event": ['{"op": "?"}'] * len(events),
        }
    )


def land(home: Path, *changes: Change, **options: Any) -> ChangeLog:
    log = ChangeLog(home)
    with log.writer(SOURCE) as writer:
        writer.land(batch(*changes), **options)
    return log


def rows(log: ChangeLog, table: str) -> list[Image]:
    """The visible rows of a table, in position order."""
    return [row for path in log.files(table) for row in pq.read_table(path, partitioning=None).to_pylist()]


def everything(log: ChangeLog) -> list[Image]:
    """The visible rows of all datasets with their table, in position order."""
    found = [{"table": name, **row} for name in (*TABLES, DISCARDED) for row in rows(log, name)]
    return sorted(found, key=lambda row: row["position"])


def tree(log: ChangeLog) -> set[str]:
    """Every file of the log and the quarantine, visible or not."""
    return {str(p.relative_to(log.home)) for d in (log.root, log.quarantine) for p in d.rglob("*") if p.is_file()}


def minutes(n: float) -> timedelta:
    return timedelta(minutes=n)


# Position and time


def test_positions_are_gapless_over_tables_and_batches(tmp_path: Path) -> None:
    products = [("products", "c", None, product(i), NOON) for i in range(3)]
    log = land(tmp_path, created(1), products[0], created(2), products[1])
    land(tmp_path, products[2], created(3))
    assert [row["position"] for row in everything(log)] == [1, 2, 3, 4, 5, 6]
    assert [row["table"] for row in everything(log)] == ["orders", "products"] * 2 + ["products", "orders"]
    assert log.watermark().position == 6


def test_rows_may_come_in_any_order_of_ordinals(tmp_path: Path) -> None:
    log = ChangeLog(tmp_path)
    orders = batch(*(created(i) for i in range(4)))["orders"]
    with log.writer(SOURCE) as writer:
        writer.land({"orders": orders.take([2, 0, 3, 1])})
    assert [(row["position"], row["after"]["order_id"]) for row in rows(log, "orders")] == [
        (1, 0),
        (2, 1),
        (3, 2),
        (4, 3),
    ]


def test_ordinal_given_twice_is_an_error(tmp_path: Path) -> None:
    log = ChangeLog(tmp_path)
    orders = batch(created(1))["orders"]
    with log.writer(SOURCE) as writer, pytest.raises(ValueError, match="share an ordinal"):
        writer.land({"orders": pa.concat_tables([orders, orders])})
    assert log.watermark().position == 0


def test_logged_at_never_decreases_where_commit_times_do(tmp_path: Path) -> None:
    times = [NOON, NOON + minutes(2), NOON + minutes(1), NOON - minutes(90), NOON + minutes(3)]
    log = land(tmp_path, *(created(i, at) for i, at in enumerate(times)))
    land(tmp_path, created(9, NOON))
    assert [row["committed_at"] for row in rows(log, "orders")] == [*times, NOON]
    expected = [NOON, *[NOON + minutes(2)] * 3, *[NOON + minutes(3)] * 2]
    assert [row["logged_at"] for row in rows(log, "orders")] == expected
    assert log.watermark().logged_at == NOON + minutes(3)
    assert log.watermark().started_at == NOON


def test_logged_at_runs_over_all_tables(tmp_path: Path) -> None:
    log = land(tmp_path, ("products", "c", None, product(1), NOON + minutes(5)), created(1))
    assert rows(log, "orders")[0]["logged_at"] == NOON + minutes(5)


def test_files_hold_one_hour_of_logged_at(tmp_path: Path) -> None:
    times = [NOON, NOON + minutes(59), NOON + minutes(60), NOON + minutes(10), NOON + minutes(180)]
    log = land(tmp_path, *(created(i, at) for i, at in enumerate(times)))
    found = [str(p.relative_to(log.root / "orders")) for p in log.files("orders")]
    # The fourth was committed in the first hour, but logged in the second.
    assert found == [
        "hour=2026-11-18T12/1-2.parquet",
        "hour=2026-11-18T13/3-4.parquet",
        "hour=2026-11-18T15/5-5.parquet",
    ]


def test_schema_does_not_depend_on_what_a_batch_holds(tmp_path: Path) -> None:
    log = land(tmp_path, created(1))
    land(tmp_path, ("orders", "d", order(1), None, NOON))
    assert [pq.read_schema(p) for p in log.files("orders")] == [log_schema(TABLES["orders"])] * 2
    for name in TABLES:  # a glob finds a file for a table without changes as well
        glob = str(log.root / name / "*" / "*.parquet")
        assert "before" in duckdb.sql(f"FROM read_parquet('{glob}')").columns


# Images


def test_key_update_becomes_delete_and_insert(tmp_path: Path) -> None:
    log = land(tmp_path, created(1), ("orders", "u", order(1), order(2), NOON), created(3))
    images = [(row["position"], row["op"], row["before"], row["after"], row["tx_id"]) for row in rows(log, "orders")]
    whole = [{**order(i), "extra": None} for i in range(4)]
    assert images == [
        (1, "c", None, whole[1], 0),
        (2, "d", whole[1], None, 1),
        (3, "c", None, whole[2], 1),
        (4, "c", None, whole[3], 2),
    ]


def test_update_of_part_of_a_key_becomes_delete_and_insert(tmp_path: Path) -> None:
    log = land(
        tmp_path,
        ("route_stops", "u", stop(1, 1), stop(1, 2), NOON),
        ("route_stops", "u", stop(1, 2), {**stop(1, 2), "completed_at": NOON}, NOON),
    )
    assert [row["op"] for row in rows(log, "route_stops")] == ["d", "c", "u"]


def test_landed_counts_both_halves_of_a_key_update(tmp_path: Path) -> None:
    with ChangeLog(tmp_path).writer(SOURCE) as writer:
        landed = writer.land(batch(("orders", "u", order(1), order(2), NOON)), rejected((1, "orders", NOON)))
    assert (landed.changes, landed.quarantined, landed.watermark.position) == (2, 1, 3)


def test_wider_row_is_carried_along(tmp_path: Path) -> None:
    extra = json.dumps({"gift": True})
    log = land(tmp_path, ("orders", "u", order(1), order(1, extra=extra), NOON))
    assert [(row["before"]["extra"], row["after"]["extra"]) for row in rows(log, "orders")] == [(None, extra)]


# Small batches


def test_one_row_log(tmp_path: Path) -> None:
    log = land(tmp_path, created(1))
    watermark = log.watermark()
    assert (watermark.position, watermark.logged_at, watermark.started_at) == (1, NOON, NOON)
    assert watermark.sealed_until(["orders"]) == NOON
    assert len(everything(log)) == 1


def test_empty_batch_changes_nothing_but_the_resume_state(tmp_path: Path) -> None:
    log = land(tmp_path, created(1), resume={"lsn": 7})
    before, files = log.watermark(), tree(log)
    land(tmp_path)
    after = log.watermark()
    assert (after.position, after.logged_at, after.resume) == (before.position, before.logged_at, {"lsn": 7})
    land(tmp_path, resume={"lsn": 8})
    assert log.watermark().resume == {"lsn": 8}
    assert tree(log) == files


def test_log_without_changes_has_no_time(tmp_path: Path) -> None:
    log = land(tmp_path, reached=NOON)
    assert log.watermark().logged_at is None
    assert log.watermark().sealed_until(["orders"]) is None
    with pytest.raises(LockstepError, match="still empty"):
        log.require_changes()


def test_idle_source_moves_logged_at(tmp_path: Path) -> None:
    log = land(tmp_path, created(1, NOON + minutes(5)))
    land(tmp_path, reached=NOON + minutes(130))
    watermark = log.watermark()
    assert (watermark.position, watermark.logged_at) == (1, NOON + minutes(130))
    assert watermark.sealed_until(["orders"]) == NOON + minutes(120)
    land(tmp_path, reached=NOON)
    assert log.watermark().logged_at == NOON + minutes(130)
    land(tmp_path, created(2, NOON + minutes(6)))  # what comes late belongs to the hour that has been reached
    assert rows(log, "orders")[1]["logged_at"] == NOON + minutes(130)


# Crashes

OLD = (created(1), ("products", "c", None, product(1), NOON))
NEW = (
    ("orders", "u", order(1), order(7), NOON + minutes(61)),
    ("products", "d", product(1), None, NOON + minutes(62)),
    created(8, NOON + minutes(122)),
)
NEW_REJECTED = ((3, "orders", NOON + minutes(122)), (4, "gps_pings", NOON + minutes(122)))


def land_new(log: ChangeLog) -> None:
    with log.writer(SOURCE) as writer:
        writer.land(batch(*NEW), rejected(*NEW_REJECTED), resume={"batch": 2})


def state(log: ChangeLog) -> tuple[Any, ...]:
    """All that a reader can see."""
    watermark = log.watermark()
    seen = (watermark.position, watermark.logged_at, dict(watermark.holds), dict(watermark.resume))
    return (*seen, everything(log), log.quarantined())


def die_at(step: int) -> None:
    """Make this process kill itself just before its `step`-th fsync, rename or replace."""
    steps = itertools.count(1)

    def dying(function: Any) -> Any:
        def call(*arguments: Any) -> Any:
            if next(steps) == step:
                os.kill(os.getpid(), signal.SIGKILL)
                time.sleep(60)  # another thread may be the one that dies first
            return function(*arguments)

        return call

    os.fsync = dying(os.fsync)
    Path.rename = dying(Path.rename)  # type: ignore[method-assign]
    Path.replace = dying(Path.replace)  # type: ignore[method-assign]


def crash_at_every_step(root: Path) -> None:
    """Land NEW in copies of `root`/old, each killed one step later, until one survives. Run as a program of its own:
    a process that has threads must not be forked."""
    for step in itertools.count(1):
        home = root / f"step-{step:03}"
        shutil.copytree(root / "old", home, symlinks=True)
        child = os.fork()
        if child == 0:
            die_at(step)
            land_new(ChangeLog(home))
            os._exit(0)
        if os.waitpid(child, 0)[1] == 0:
            return


def test_death_at_any_step_leaves_the_old_or_the_new_log(tmp_path: Path) -> None:
    old = land(tmp_path / "old", *OLD, resume={"batch": 1})
    shutil.copytree(tmp_path / "old", tmp_path / "new", symlinks=True)
    new = ChangeLog(tmp_path / "new")
    land_new(new)
    subprocess.run([sys.executable, __file__, str(tmp_path)], check=True, timeout=120)

    crashed = [ChangeLog(home) for home in sorted(tmp_path.glob("step-*"))]
    assert len(crashed) > 20
    outcomes = []
    for log in crashed:
        assert state(log) in (state(old), state(new)), log.home
        outcomes.append("new" if state(log) == state(new) else "old")
        with log.writer(SOURCE):  # the next writer removes what the dead one left
            pass
        assert tree(log) - {"changelog/watermark.json.partial"} == tree(new if outcomes[-1] == "new" else old)
        if outcomes[-1] == "old":
            land_new(log)
            assert state(log) == state(new)
    assert outcomes == sorted(outcomes, reverse=True), "what was visible once stays visible"
    assert set(outcomes) == {"old", "new"}


def test_the_tail_is_links_also_in_a_copy_that_followed_them(tmp_path: Path) -> None:
    original = land(tmp_path / "original", *OLD)
    hours = sorted({path.parent.name for path in original.files("orders")})
    shutil.copytree(original.home, tmp_path / "copy")
    log = ChangeLog(tmp_path / "copy")
    tail = log.root / "_tail" / "orders"
    assert not (tail / hours[-1]).is_symlink()  # else the rest proves nothing

    land_new(log)
    log.link_tail(datetime(2026, 11, 18))
    hours = sorted({path.parent.name for path in log.files("orders")})
    assert sorted(link.name for link in tail.iterdir()) == [changelog.NO_HOUR, *hours]
    for link in tail.iterdir():
        assert link.is_symlink() and link.resolve() == (log.root / "orders" / link.name).resolve()

    last = datetime.strptime(hours[-1], "hour=%Y-%m-%dT%H")
    log.cut_tail(last)
    assert sorted(link.name for link in tail.iterdir()) == [changelog.NO_HOUR, hours[-1]]
    land_new(original)
    assert everything(log) == everything(original)


@pytest.mark.parametrize("function", ["_durable_parquet", "durable_replace", "fsync_directory"])
def test_writer_goes_on_after_a_failed_landing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, function: str) -> None:
    log = land(tmp_path, *OLD, resume={"batch": 1})
    before, files = state(log), tree(log)

    def fail(*_: object) -> None:
        raise OSError("disk full")

    with log.writer(SOURCE) as writer:
        with monkeypatch.context() as patch, pytest.raises(OSError, match="disk full"):
            patch.setattr(changelog, function, fail)
            writer.land(batch(*NEW))
        assert state(log) == before
        assert tree(log) == files
        writer.land(batch(*NEW))
    assert [row["position"] for row in everything(log)] == [1, 2, 3, 4, 5, 6]


def test_parts_of_a_batch_become_visible_together(tmp_path: Path) -> None:
    log = land(tmp_path, created(1))
    with log.writer(SOURCE) as writer, writer.batch() as parts:
        parts.add(batch(created(2)))
        parts.add(batch(created(3), created(4)))
        assert len(rows(log, "orders")) == 1
        assert len(parts.files("orders")) == 3
        parts.land(reached=NOON + minutes(60))
    assert [row["position"] for row in rows(log, "orders")] == [1, 2, 3, 4]
    assert log.watermark().logged_at == NOON + minutes(60)


def test_batch_left_without_landing_leaves_nothing(tmp_path: Path) -> None:
    log = land(tmp_path, created(1))
    before, files = state(log), tree(log)
    with log.writer(SOURCE) as writer:
        with writer.batch() as parts:
            parts.add(batch(created(2)), rejected((1, "orders", NOON)))
        writer.land(batch(created(3)))
    assert state(log)[:1] == (before[0] + 1,)
    assert len(tree(log)) == len(files) + 1


def test_debris_is_ignored_by_readers_and_removed_by_the_next_writer(tmp_path: Path) -> None:
    log = land(tmp_path, created(1))
    files = tree(log)
    hour = log.files("orders")[0].parent
    shutil.copy(log.files("orders")[0], hour / "2-2.parquet")
    (hour / "2-3.parquet.partial").write_bytes(b"half")
    (log.quarantine / "2-3.jsonl").write_text("{}\n")
    assert len(log.files("orders")) == 1
    assert log.quarantined() == []
    with log.writer(SOURCE):
        assert tree(log) == files


# One writer, one source


def test_second_writer_is_told_who_holds_the_log(tmp_path: Path) -> None:
    log = land(tmp_path, created(1))
    with (
        log.writer(SOURCE, "capturing changes"),
        pytest.raises(LockstepError) as refused,
        ChangeLog(tmp_path).writer(SOURCE),
    ):
        pass
    message = str(refused.value)
    assert f"process {os.getpid()}" in message
    assert "capturing changes" in message
    assert "nothing was written" in message
    with log.writer(SOURCE):  # free again
        pass


HOLD = """
import sys, time
from pathlib import Path
from lockstep.changelog import ChangeLog
with ChangeLog(Path(sys.argv[1])).writer("test:shop"):
    print("holds", flush=True)
    time.sleep(60)
"""


def test_killed_writer_holds_nothing(tmp_path: Path) -> None:
    with subprocess.Popen([sys.executable, "-c", HOLD, str(tmp_path)], stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout and holder.stdout.readline() == "holds\n"
        with pytest.raises(LockstepError, match=f"process {holder.pid}"), ChangeLog(tmp_path).writer(SOURCE):
            pass
        holder.kill()
    land(tmp_path, created(1))


def test_other_source_is_refused(tmp_path: Path) -> None:
    log = land(tmp_path, created(1))
    before, files = state(log), tree(log)
    refused = pytest.raises(LockstepError, match=r"change log of test:shop.*come from test:other")
    with refused, log.writer("test:other"):
        pass
    assert (state(log), tree(log)) == (before, files)


@pytest.mark.parametrize(
    ("content", "message"),
    [(None, "There is no change log"), ("{", "not valid JSON"), ('{"format": 99}', "has format 99")],
)
def test_unreadable_watermark_is_named(tmp_path: Path, content: str | None, message: str) -> None:
    log = ChangeLog(tmp_path)
    if content is not None:
        land(tmp_path, created(1))
        (log.root / "watermark.json").write_text(content)
    with pytest.raises(LockstepError, match=message):
        log.watermark()


# Quarantine


def test_rejected_event_keeps_its_position_and_holds_its_table(tmp_path: Path) -> None:
    changes = batch(created(1), created(2, NOON + minutes(61)), created(3, NOON + minutes(122)))
    changes["orders"] = changes["orders"].set_column(0, "ordinal", pa.array([0, 2, 3]))
    log = ChangeLog(tmp_path)
    with log.writer(SOURCE) as writer:
        landed = writer.land(changes, rejected((1, "orders", NOON + minutes(1))))
        assert (landed.changes, landed.quarantined) == (3, 1)
    assert [row["position"] for row in rows(log, "orders")] == [1, 3, 4]
    (entry,) = log.quarantined()
    assert (entry["position"], entry["table"], entry["state"]) == (2, "orders", "open")
    assert (entry["reason"], entry["event"]) == ("no key", '{"op": "?"}')
    watermark = log.watermark()
    assert watermark.sealed_until(["orders"]) == NOON
    assert watermark.sealed_until(["products"]) == NOON + minutes(120)
    assert watermark.closed_until() == NOON + minutes(120)


def test_event_of_an_unknown_table_holds_every_table(tmp_path: Path) -> None:
    log = ChangeLog(tmp_path)
    with log.writer(SOURCE) as writer:
        writer.land(batch(created(1)), rejected((1, "*", NOON)), reached=NOON + minutes(180))
    assert log.watermark().sealed_until(["products"]) == NOON


def test_event_of_a_skipping_table_fills_its_position_at_once(tmp_path: Path) -> None:
    log = ChangeLog(tmp_path)
    with log.writer(SOURCE) as writer:
        writer.land(batch(created(1)), rejected((1, "gps_pings", NOON)))
    assert [(row["table"], row["position"]) for row in everything(log)] == [("orders", 1), ("gps_pings", 2)]
    assert [entry["state"] for entry in log.quarantined()] == ["discarded"]
    assert log.watermark().holds == {}


def test_event_without_a_commit_time_takes_the_time_of_its_place(tmp_path: Path) -> None:
    log = ChangeLog(tmp_path)
    with log.writer(SOURCE) as writer:
        changes = batch(created(1), created(2, NOON + minutes(1)))
        changes["orders"] = changes["orders"].set_column(0, "ordinal", pa.array([1, 3]))
        writer.land(changes, rejected((0, "orders", None), (2, "orders", None), (4, "orders", None)))
    times = [datetime.fromisoformat(entry["logged_at"]) for entry in log.quarantined()]
    assert times == [NOON, NOON, NOON + minutes(1)]
    assert [entry["position"] for entry in log.quarantined()] == [1, 3, 5]


@pytest.fixture
def held(tmp_path: Path) -> ChangeLog:
    """A log with two open events: position 2 in its first hour, position 4 two hours later."""
    log = ChangeLog(tmp_path)
    with log.writer(SOURCE) as writer:
        writer.land(batch(created(1)), rejected((1, "orders", NOON)))
        writer.land(batch(created(3, NOON + minutes(121))), rejected((1, "orders", NOON + minutes(121))))
        writer.land({}, reached=NOON + minutes(300))
    return log


def retried(log: ChangeLog, position: int) -> dict[str, pa.Table]:
    """Rows for `Writer.resolve` that fill a kept position."""
    (entry,) = (e for e in log.quarantined() if e["position"] == position)
    logged_at = datetime.fromisoformat(entry["logged_at"])
    row = {"position": position, "logged_at": logged_at, "committed_at": logged_at, "op": "c", "after": order(position)}
    return {"orders": pa.Table.from_pylist([row], log_schema(TABLES["orders"]))}


def test_resolving_lifts_the_holds_that_nothing_justifies(held: ChangeLog) -> None:
    assert held.watermark().sealed_until(["orders"]) == NOON
    with held.writer(SOURCE) as writer:
        writer.resolve(retried(held, 2), [])
        assert held.watermark().sealed_until(["orders"]) == NOON + minutes(120)
        writer.resolve({}, [e for e in held.quarantined() if e["state"] == "open"])
    assert [entry["state"] for entry in held.quarantined()] == ["landed", "discarded"]
    assert held.watermark().holds == {}
    assert held.watermark().sealed_until(["orders"]) == NOON + minutes(300)
    assert [row["position"] for row in everything(held)] == [1, 2, 3, 4]
    assert everything(held)[3]["table"] == "orders"
    assert rows(held, DISCARDED)[0]["reason"] == "no key"


def test_interrupted_resolving_is_finished_by_the_next(held: ChangeLog, monkeypatch: pytest.MonkeyPatch) -> None:
    with held.writer(SOURCE) as writer:
        with monkeypatch.context() as patch, pytest.raises(OSError, match="power"):
            patch.setattr(changelog, "durable_replace", lambda *_: (_ for _ in ()).throw(OSError("power")))
            writer.resolve(retried(held, 2), [])
        assert held.watermark().sealed_until(["orders"]) == NOON  # still held: too long rather than too short
    with held.writer(SOURCE) as writer:
        writer.resolve({}, [e for e in held.quarantined() if e["state"] == "open"])
    assert held.watermark().holds == {}
    assert [row["position"] for row in everything(held)] == [1, 2, 3, 4]


if __name__ == "__main__":
    crash_at_every_step(Path(sys.argv[1]))
