"""The change log on disk: gapless, monotone, whole after any crash, one writer, and what quarantine keeps.

Awkward cases: commit times out of order, a batch over several tables and hours, key updates, a wider row, one row, no
row, death at every fsync and rename of a landing, a writer that fails and goes on, an event without a commit time; of
files that grow: a restart, a new hour, large batches between, an event resolved between, a batch given up, rows beyond
the watermark, a home that was copied, a full disk, another writer in between, readers without pause.
"""

from __future__ import annotations

import itertools
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import threading
import time
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from lockstep import changelog, debris, growing, log_check, logfiles, staging
from lockstep.changelog import ChangeLog, Writer
from lockstep.errors import LockstepError
from lockstep.latest import differences, live_images
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
    limit = log.watermark().position
    found = [row for path in log.files(table) for row in pq.read_table(path, partitioning=None).to_pylist()]
    return [row for row in found if row["position"] <= limit]


def everything(log: ChangeLog) -> list[Image]:
    """The visible rows of all datasets with their table, in position order."""
    found = [{"table": name, **row} for name in (*TABLES, DISCARDED) for row in rows(log, name)]
    return sorted(found, key=lambda row: row["position"])


def tree(log: ChangeLog) -> set[str]:
    """Every file of the log and the quarantine, visible or not."""
    return {str(p.relative_to(log.home)) for d in (log.root, log.quarantine) for p in d.rglob("*") if p.is_file()}


def names(log: ChangeLog, table: str = "orders") -> list[str]:
    """The table's files, visible or not, as hour and name, in the order of their first positions."""
    found = sorted((log.root / table).glob("hour=2*/*.parquet"), key=changelog.begins_at)
    return [f"{path.parent.name[-2:]}/{path.name}" for path in found]


def stored(log: ChangeLog) -> list[int]:
    """The positions of all rows in all files, visible or not, sorted."""
    files = [p for name in (*TABLES, DISCARDED) for p in (log.root / name).glob("*/*.parquet")]
    return sorted(n for p in files for n in pq.read_table(p, partitioning=None)["position"].to_pylist())


class Died(Exception):
    pass


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
        "hour=2026-11-18T12/1-.parquet",
        "hour=2026-11-18T13/3-.parquet",
        "hour=2026-11-18T15/5-.parquet",
    ]
    assert [logfiles.span(p) for p in log.files("orders")] == [(1, 2), (3, 4), (5, 5)]


def test_schema_does_not_depend_on_what_a_batch_holds(tmp_path: Path) -> None:
    log = land(tmp_path, created(1))
    land(tmp_path, ("orders", "d", order(1), None, NOON + minutes(60)))
    assert [pq.read_schema(p) for p in log.files("orders")] == [log_schema(TABLES["orders"])] * 2
    for name in TABLES:  # a glob finds a file for a table without changes as well
        glob = str(log.root / name / "*" / "*.parquet")
        assert "before" in duckdb.sql(f"FROM read_parquet('{glob}')").columns


# Images


def test_values_that_hardly_repeat_have_no_large_dictionary(tmp_path: Path) -> None:
    changes = [("orders", "c", None, order(n, status=f"{n:040}", region="ab"[n % 2]), NOON) for n in range(20_000)]
    [path] = land(tmp_path, *changes).files("orders")
    group = pq.read_metadata(path).row_group(0)
    columns = {c.path_in_schema: c for c in map(group.column, range(group.num_columns))}
    dictionaries = {
        name: columns[f"after.{name}"].data_page_offset - columns[f"after.{name}"].dictionary_page_offset
        for name in ("status", "region")
    }
    sizes = {name: columns[f"after.{name}"].total_compressed_size for name in dictionaries}
    assert dictionaries["status"] < sizes["status"] / 5
    assert columns["after.region"].encodings == ("PLAIN", "RLE", "RLE_DICTIONARY")


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
    created(6, NOON + minutes(5)),
    ("products", "u", product(1), product(1), NOON + minutes(5)),
    ("orders", "u", order(1), order(7), NOON + minutes(61)),
    ("products", "d", product(1), None, NOON + minutes(62)),
    created(8, NOON + minutes(122)),
)
NEW_REJECTED = ((5, "orders", NOON + minutes(122)), (6, "gps_pings", NOON + minutes(122)))


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
    os.fdatasync = dying(os.fdatasync)
    Path.rename = dying(Path.rename)  # type: ignore[method-assign]
    Path.replace = dying(Path.replace)  # type: ignore[method-assign]


def crash_at_every_step(root: Path) -> None:
    """Land NEW in copies of `root`/old, each killed one step later, until one survives. Run as a program of its own:
    a process that has threads must not be forked."""
    # Done once, not in each child: parsing the schema, and importing pandas, as pyarrow does before its first array.
    assert TABLES["orders"]
    assert pa.array([1])
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


PARTIALS = {"changelog/watermark.json.partial", "changelog/journal.jsonl.partial"}


def test_death_at_any_step_leaves_the_old_or_the_new_log(tmp_path: Path) -> None:
    old = land(tmp_path / "old", *OLD, resume={"batch": 1})
    shutil.copytree(tmp_path / "old", tmp_path / "new", symlinks=True)
    new = ChangeLog(tmp_path / "new")
    land_new(new)
    subprocess.run([sys.executable, __file__, str(tmp_path)], check=True, timeout=900)

    crashed = [ChangeLog(home) for home in sorted(tmp_path.glob("step-*"))]
    assert len(crashed) > 20
    before, after = state(old), state(new)
    outcomes = []
    for log in crashed:
        found = state(log)
        assert found in (before, after), log.home
        outcomes.append("new" if found == after else "old")
        with log.writer(SOURCE):  # the next writer removes what the dead one left
            assert stored(log) == [row["position"] for row in everything(log)]
        assert tree(log) - PARTIALS == tree(new if outcomes[-1] == "new" else old)
        if outcomes[-1] == "old":
            land_new(log)
            assert state(log) == after
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


STEPS = [
    "staging.Stager._stage",
    "staging._sync",
    "journal.Journal.intend",
    "staging.Stager._name",
    "staging.fsync_directory",
    "changelog.durable_replace",
]


@pytest.mark.parametrize(("step", "grows_to"), list(itertools.product(STEPS, [0, growing.GROWS_TO])))
def test_writer_goes_on_after_a_failed_landing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str, grows_to: int
) -> None:
    monkeypatch.setattr(growing, "GROWS_TO", grows_to)
    log = land(tmp_path, *OLD, resume={"batch": 1})
    before, files = state(log), tree(log)

    def fail(*_: object) -> None:
        raise OSError("disk full")

    with log.writer(SOURCE) as writer:
        with monkeypatch.context() as patch, pytest.raises(OSError, match="disk full"):
            patch.setattr(f"lockstep.{step}", fail)
            writer.land(batch(*NEW))
        assert state(log) == before
        assert tree(log) == files
        writer.land(batch(*NEW))
    assert [row["position"] for row in everything(log)] == stored(log) == [1, 2, 3, 4, 5, 6, 7, 8]


def test_parts_of_a_batch_become_visible_together(tmp_path: Path) -> None:
    log = land(tmp_path, created(1))
    with log.writer(SOURCE) as writer, writer.batch() as parts:
        parts.add(batch(created(2)))
        parts.add(batch(created(3), created(4)))
        assert len(rows(log, "orders")) == 1
        found = pa.concat_tables([pq.read_table(p, partitioning=None) for p in parts.files("orders")])
        assert found["position"].to_pylist() == [1, 2, 3, 4], "those of this batch too"
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
    assert tree(log) == files
    assert [(row["position"], row["after"]["order_id"]) for row in rows(log, "orders")] == [(1, 1), (2, 3)]


@pytest.mark.parametrize("is_landed", [False, True])
def test_writer_whose_watermark_was_or_was_not_replaced_knows_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, is_landed: bool
) -> None:
    """Or else it would give visible positions again."""
    log = land(tmp_path, created(1))
    replace = ChangeLog._replace_watermark

    def fail(self: ChangeLog, *arguments: Any) -> None:
        if is_landed:
            replace(self, *arguments)
        raise OSError("power")

    with log.writer(SOURCE) as writer:
        with monkeypatch.context() as patch, pytest.raises(OSError, match="power"):
            patch.setattr(ChangeLog, "_replace_watermark", fail)
            writer.land(batch(created(2), created(3)))
        writer.land(batch(created(4)))
    expected = [1, 2, 3, 4] if is_landed else [1, 4]
    assert [row["after"]["order_id"] for row in rows(log, "orders")] == expected
    assert stored(log) == list(range(1, len(expected) + 1))


def debris_of(log: ChangeLog) -> dict[str, Path]:
    """What was moved out of the log, by path in it; of one landing."""
    [moved] = (log.home / "debris").iterdir()
    return {path.relative_to(moved).as_posix(): path for path in moved.rglob("*") if path.is_file()}


def test_what_a_dead_landing_left_is_ignored_by_readers_and_moved_by_the_next_writer(tmp_path: Path) -> None:
    log = beyond_the_watermark(tmp_path)
    files = tree(log)
    grown = log.files("orders")[0].relative_to(tmp_path)
    hour = grown.parent
    (tmp_path / hour / "3-9.parquet.partial").write_bytes(b"half")
    assert len(rows(log, "orders")) == 1
    with log.writer(SOURCE):
        assert tree(log) == files
    moved = debris_of(log)
    assert set(moved) == {f"{hour}/3-4.parquet", f"{hour}/3-9.parquet.partial", "undone.json"}
    tail = pq.read_table(moved[f"{hour}/3-4.parquet"], partitioning=None).to_pylist()
    assert [(row["position"], row["op"]) for row in tail] == [(3, "c"), (4, "d")]
    assert json.loads(moved["undone.json"].read_text())["named_by_the_landing"] == [str(grown)]


def test_a_batch_given_up_lies_in_the_debris_whole(tmp_path: Path) -> None:
    log = land(tmp_path, created(1))
    with log.writer(SOURCE) as writer, writer.batch() as parts:
        parts.add(large(10))
        parts.add(batch(created(1), ("products", "c", None, product(1), NOON)))
        parts.add(batch(created(2, NOON + minutes(60))), rejected((1, "orders", NOON)))
    moved = {name: path for name, path in debris_of(log).items() if name != "undone.json"}
    held = [n for path in moved.values() if path.suffix != ".jsonl" for n in positions_in(path)]
    assert sorted(held) == list(range(2, LARGE + 5))
    assert [name for name in moved if name.endswith(".jsonl")] == [f"quarantine/{LARGE + 4}-{LARGE + 5}.jsonl"]
    assert log_check.check(tmp_path).findings == []


def positions_in(path: Path) -> list[int]:
    found: list[int] = pq.read_table(pa.BufferReader(path.read_bytes()))["position"].to_pylist()
    return found


@pytest.mark.parametrize("strange", ["file", "events", "grown"])
def test_what_no_landing_has_named_beyond_the_watermark_is_refused(tmp_path: Path, strange: str) -> None:
    log = land(tmp_path, created(1), ("products", "c", None, product(1), NOON))
    [path] = log.files("orders")
    if strange == "file":
        path = path.with_name("3-4.parquet")
        shutil.copy(log.files("orders")[0], path)
    elif strange == "events":
        path = log.quarantine / "3-3.jsonl"
        path.write_text("{}\n")
    else:
        other = land(tmp_path / "other", created(1), ("products", "c", None, product(1), NOON), created(2))
        path.resolve().write_bytes(other.files("orders")[0].read_bytes())
    files, content = tree(log), path.read_bytes()
    with pytest.raises(LockstepError) as refused, log.writer(SOURCE):
        pass
    assert str(path.relative_to(tmp_path)) in str(refused.value) and "lockstep log repair" in str(refused.value)
    assert (tree(log), path.read_bytes()) == (files, content)
    assert not (tmp_path / "debris").exists()


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
    [
        (None, "There is no change log"),
        ("", "is damaged.*lockstep log repair"),
        ("{", "is damaged.*lockstep log repair"),
        ("[]", "is damaged.*lockstep log repair"),
        ('{"format": 3}', "is damaged.*lockstep log repair"),
        ('{"format": 99}', "has format 99"),
    ],
)
def test_unreadable_watermark_is_named(tmp_path: Path, content: str | None, message: str) -> None:
    log = ChangeLog(tmp_path)
    if content is not None:
        land(tmp_path, created(1))
        (log.root / "watermark.json").write_text(content)
    with pytest.raises(LockstepError, match=message):
        log.watermark()


def as_format_2(log: ChangeLog) -> None:
    """Make the log what the version before this one has written."""
    raw = json.loads((log.root / "watermark.json").read_text())
    kept = {name: value for name, value in raw.items() if name not in ("checksum", "sequence", "ahead")}
    (log.root / "watermark.json").write_text(json.dumps({**kept, "format": 2}))
    (log.root / "journal.jsonl").unlink()
    shutil.rmtree(log.root / "_manifest", ignore_errors=True)


def test_a_log_of_the_format_before_goes_on(tmp_path: Path) -> None:
    log = land(tmp_path, created(1), resume={"lsn": 7})
    as_format_2(log)
    before = state(log)
    with log.writer(SOURCE):
        assert state(log) == before
    land(tmp_path, created(2))
    assert json.loads((log.root / "watermark.json").read_text())["format"] == 3
    assert [row["position"] for row in rows(log, "orders")] == [1, 2]
    assert log.watermark().resume == {"lsn": 7}
    with pytest.MonkeyPatch.context() as patch, pytest.raises(LockstepError, match="has format 3"):
        patch.setattr(changelog, "FORMAT", 2)
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


# Files that grow

LARGE = 6_000  # orders whose memory is beyond what a file grows to


def large(first: int, at: datetime = NOON) -> dict[str, pa.Table]:
    found = batch(*(created(first + n, at) for n in range(LARGE)))
    assert found["orders"].nbytes > growing.GROWS_TO
    return found


def test_small_landings_of_an_hour_share_a_file_over_restarts(tmp_path: Path) -> None:
    for n in range(6):
        log = land(tmp_path, created(2 * n, NOON + minutes(n)), created(2 * n + 1, NOON + minutes(n)))
    assert names(log) == ["12/1-.parquet"]
    assert len(pq.read_table(log.files("orders")[0].parent, partitioning=None)) == 12, (
        "nor does a whole directory double"
    )
    with log.writer(SOURCE) as writer:
        for n in range(12, 100):
            landed = writer.land(batch(created(n, NOON + minutes(7))))
            assert landed.files == 1
    assert names(log) == ["12/1-.parquet"]
    assert [(row["position"], row["after"]["order_id"]) for row in rows(log, "orders")] == [
        (n + 1, n) for n in range(100)
    ]


def test_number_of_files_follows_what_has_changed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(growing, "GROWS_TO", 64_000)
    counts = []
    for size in (1, 300):
        log = ChangeLog(tmp_path / str(size))
        with log.writer(SOURCE) as writer:
            for n in range(60):
                writer.land(batch(*(created(1_000_003 * n * i % 999_983) for i in range(size))))
        *full, _ = log.files("orders")
        assert all(path.stat().st_size >= 64_000 for path in full)
        assert stored(log) == list(range(1, 60 * size + 1))
        counts.append(len(full) + 1)
    assert 2 * counts[0] < counts[1] < 30


def test_each_hour_and_table_has_files_of_its_own(tmp_path: Path) -> None:
    products = [("products", "c", None, product(i), NOON + minutes(30 * i)) for i in range(4)]
    for n in range(4):
        log = land(tmp_path, created(n, NOON + minutes(30 * n)), products[n])
    log = land(tmp_path, created(9, NOON + minutes(110)), created(10, NOON + minutes(130)))
    assert names(log) == ["12/1-.parquet", "13/5-.parquet", "14/10-.parquet"]
    assert names(log, "products") == ["12/2-.parquet", "13/6-.parquet"]
    assert [row["position"] for row in rows(log, "orders")] == [1, 3, 5, 7, 9, 10]
    assert [row["position"] for row in rows(log, "products")] == [2, 4, 6, 8]


def test_a_large_batch_has_a_file_of_its_own_and_small_ones_go_on_behind_it(tmp_path: Path) -> None:
    log = land(tmp_path, created(1))
    with log.writer(SOURCE) as writer:
        writer.land(batch(created(2)))
        writer.land(large(10))
        kept = (log.root / "orders" / "hour=2026-11-18T12" / "1-.parquet").read_bytes()
        writer.land(batch(created(3)))
        writer.land(batch(created(4)))
        with writer.batch() as parts:
            for part in (batch(created(5)), large(10_000), batch(created(6)), batch(created(7))):
                parts.add(part)
            parts.land()
    last = 2 + LARGE
    assert names(log) == [
        "12/1-.parquet",
        f"12/3-{last}.parquet",
        f"12/{last + 1}-.parquet",
        f"12/{last + 4}-{last + 3 + LARGE}.parquet",
        f"12/{last + 4 + LARGE}-.parquet",
    ]
    assert log.files("orders")[0].read_bytes() == kept
    spans = [logfiles.span(path) for path in log.files("orders")]
    assert all(a[1] < b[0] for a, b in itertools.pairwise(spans))
    assert stored(log) == list(range(1, last + LARGE + 6))


def test_files_between_two_positions(tmp_path: Path) -> None:
    log = ChangeLog(tmp_path)
    for n in range(6):
        land(tmp_path, created(2 * n, NOON + minutes(30 * n)), created(2 * n + 1, NOON + minutes(30 * n)))
    with log.writer(SOURCE) as writer:
        writer.land(large(20, NOON + minutes(150)))
    found = [path.name for path in log.files("orders")]
    assert found == ["1-.parquet", "5-.parquet", "9-.parquet", f"13-{12 + LARGE}.parquet"]
    for after in range(14):
        for until in range(after + 1, 15):
            wanted = [p.name for p in log.files("orders", after, until)]
            needed = [
                p.name for p in log.files("orders") if logfiles.span(p)[0] <= until and after < logfiles.span(p)[1]
            ]
            assert set(needed) <= set(wanted) <= set(found)
            assert len(wanted) <= len(needed) + 1
    assert len(log.files("orders", until=1)) == 1


def beyond_the_watermark(home: Path) -> ChangeLog:
    """A log whose writer died after a file had grown and before the watermark was replaced."""
    log = land(home, *OLD)
    with pytest.MonkeyPatch.context() as patch, pytest.raises(Died), log.writer(SOURCE) as writer:
        patch.setattr(ChangeLog, "settle", lambda log: log.watermark())
        with writer.batch() as parts:
            parts.add(batch(created(2, NOON + minutes(1)), ("orders", "d", order(1), None, NOON + minutes(2))))
            raise Died
    assert stored(log) == [1, 2, 3, 4]
    return log


def test_rows_beyond_the_watermark_are_cut_off_before_their_positions_are_given_again(tmp_path: Path) -> None:
    log = beyond_the_watermark(tmp_path)
    with log.writer(SOURCE) as writer:
        assert stored(log) == [1, 2]
        writer.land(batch(created(7)))
    assert names(log) == ["12/1-.parquet"]
    assert [(row["position"], row["after"]["order_id"]) for row in rows(log, "orders")] == [(1, 1), (3, 7)]
    assert stored(log) == [1, 2, 3]


def test_readers_of_files_do_not_see_beyond_the_watermark(tmp_path: Path) -> None:
    log = beyond_the_watermark(tmp_path)
    table, position = TABLES["orders"], log.watermark().position
    (tmp_path / "scratch").mkdir()
    images = live_images(table, log.files("orders"), position, tmp_path / "scratch")
    assert [image["order_id"] for chunk in images for image in chunk.to_pylist()] == [1]
    staged = tmp_path / "scratch" / "new.parquet"
    image = pa.array([{**order(1), "extra": None}], table.image)
    pq.write_table(pa.table({"image": image, "reason": pa.nulls(1, pa.string())}), staged)
    with differences(table, log.files("orders"), position, staged, tmp_path / "scratch") as found:
        assert list(found.changes(log.files("orders"), position, position)) == []
    assert len(rows(log, "orders")) == 1


def test_a_copied_home_goes_on(tmp_path: Path) -> None:
    """With files in place of the links, as `cp -rL` and stores that know no links leave it."""
    log = land(tmp_path / "home", created(1), created(2))
    assert log.files("orders")[0].is_symlink()
    shutil.copytree(tmp_path / "home", tmp_path / "copy")
    copy = ChangeLog(tmp_path / "copy")
    assert not copy.files("orders")[0].is_symlink()
    land(copy.home, created(3))
    land(copy.home, created(4))
    assert names(copy) == ["12/1-.parquet"]
    assert [row["after"]["order_id"] for row in rows(copy, "orders")] == [1, 2, 3, 4]
    shutil.copytree(copy.home, tmp_path / "moved", symlinks=True)
    shutil.rmtree(copy.home)
    moved = land(tmp_path / "moved", created(5))
    assert [row["after"]["order_id"] for row in rows(moved, "orders")] == [1, 2, 3, 4, 5]
    assert [row["after"]["order_id"] for row in rows(log, "orders")] == [1, 2]


def test_what_a_full_disk_left_is_cut_off_before_the_next_landing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Cutting back takes room too."""
    log = land(tmp_path, created(1))
    fill = changelog.durable_replace

    def full(path: Path, *arguments: Any) -> bool:
        if stored(log) != [1]:  # the file has grown: there is no room for the watermark, nor for what is to be undone
            raise OSError("disk full")
        return fill(path, *arguments)

    with log.writer(SOURCE) as writer:
        with monkeypatch.context() as patch, pytest.raises(OSError, match="disk full"):
            patch.setattr(changelog, "durable_replace", full)
            patch.setattr(debris, "durable_replace", full)
            writer.land(batch(created(2), created(3)))
        assert stored(log) == [1, 2, 3]
        writer.land(batch(created(4)))
    assert [(row["position"], row["after"]["order_id"]) for row in rows(log, "orders")] == [(1, 1), (2, 4)]
    assert stored(log) == [1, 2]


def test_no_part_of_a_failed_landing_is_written_after_it_was_undone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = land(tmp_path, *OLD)
    stage = staging.Stager._stage

    def one_fails_while_the_other_is_slow(self: staging.Stager, write: staging.Write) -> Any:
        if write.path.parent.parent.name == "orders":
            raise OSError("disk full")
        time.sleep(0.2)
        return stage(self, write)

    with log.writer(SOURCE) as writer:
        with monkeypatch.context() as patch, pytest.raises(OSError, match="disk full"):
            patch.setattr(staging.Stager, "_stage", one_fails_while_the_other_is_slow)
            writer.land(batch(created(3), ("products", "c", None, product(2), NOON)))
        assert stored(log) == [1, 2]
        time.sleep(0.3)
        assert stored(log) == [1, 2]


def test_a_file_goes_on_after_the_log_was_lent(held: ChangeLog) -> None:
    """A row that fills a kept position has a file of its own; behind it another one begins to grow."""
    with held.writer(SOURCE, lends=True) as writer:
        writer.land(batch(created(7, NOON + minutes(300))), rejected((1, "orders", NOON + minutes(300))))
        assert names(held)[-1] == "17/5-.parquet"
        borrower = threading.Thread(target=resolve_all, args=(held,))
        borrower.start()
        while not writer.is_asked_for():
            time.sleep(0.01)
        assert writer.lend(lambda: True)
        borrower.join()
        for n in (8, 9):
            writer.land(batch(created(n, NOON + minutes(301))))
    assert names(held)[-3:] == ["17/5-.parquet", "17/6-6.parquet", "17/7-.parquet"]
    assert stored(held) == list(range(1, 9))


def resolve_all(log: ChangeLog) -> None:
    with log.writer(SOURCE, patience=30) as writer:
        for entry in log.quarantined():
            if entry["state"] == "open":
                writer.resolve(retried(log, entry["position"]), [])


SHORT = (0, 1, 2, 5)  # with small, middling and large files


@pytest.mark.parametrize("seed", [pytest.param(n, marks=[] if n in SHORT else pytest.mark.long) for n in range(12)])
def test_whatever_happens_every_position_is_there_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seed: int
) -> None:
    """Landings small and large, given up, or cut short by death; events resolved; restarts; new hours."""
    chance = random.Random(seed)
    monkeypatch.setattr(growing, "GROWS_TO", chance.choice([4_000, 12_000, 40_000]))
    log = land(tmp_path)
    at = NOON
    expected: dict[int, Any] = {}  # the order at each position; None of an event that is open

    def part() -> tuple[dict[str, pa.Table], pa.Table | None, list[Any]]:
        nonlocal at
        at += minutes(chance.choice([0, 0, 1, 25]))
        ids: list[Any] = [chance.randrange(10**6) for _ in range(chance.choice([1, 1, 2, 9, 300]))]
        changes = batch(*(created(n, at) for n in ids))
        if chance.random() < 0.8:
            return changes, None, ids
        return changes, rejected((len(ids), "orders", at)), [*ids, None]

    def land_some(writer: Writer, last: str) -> None:
        with writer.batch() as parts:
            ids = []
            for _ in range(chance.choice([1, 1, 3])):
                changes, bad, some = part()
                parts.add(changes, bad)
                ids += some
            if last == "given up":
                return
            if last == "died":
                raise Died
            first = writer.watermark.position + 1
            parts.land()
            expected.update(enumerate(ids, first))

    for _ in range(12):
        with log.writer(SOURCE) as writer:
            for _ in range(chance.randrange(6)):
                land_some(writer, chance.choice(["landed", "landed", "landed", "given up"]))
            kept = [n for n, order_id in expected.items() if order_id is None]
            if kept and chance.random() < 0.3:
                position = chance.choice(kept)
                writer.resolve(retried(log, position), [])
                expected[position] = position
            if chance.random() < 0.4:
                with monkeypatch.context() as patch, pytest.raises(Died):
                    patch.setattr(ChangeLog, "settle", lambda log: log.watermark())
                    land_some(writer, "died")
        filled = {n: order_id for n, order_id in expected.items() if order_id is not None}
        assert {row["position"]: row["after"]["order_id"] for row in rows(log, "orders")} == filled
        assert len(rows(log, "orders")) == len(filled)
    with log.writer(SOURCE):
        assert stored(log) == sorted(filled)
    resolved = {n for n, order_id in filled.items() if n == order_id}
    spans = [s for s in map(logfiles.span, log.files("orders")) if s[0] not in resolved]
    assert all(a[1] < b[0] for a, b in itertools.pairwise(spans))


READ = """
import sys
from pathlib import Path
import duckdb
from lockstep.changelog import ChangeLog

log = ChangeLog(Path(sys.argv[1]))
rounds = 0
with duckdb.connect() as connection:
    print("reading", flush=True)
    while (position := log.watermark().position) < int(sys.argv[2]):
        query = f"SELECT COUNT(*), SUM(position), SUM(after.amount_cents) FROM '{log.root}/orders/*/*.parquet'"
        found = connection.execute(f"{query} WHERE position <= {position}").fetchall()
        total = position * (position + 1) // 2
        expected = [(position, total, 3 * total)] if position else [(0, None, None)]
        assert found == expected, (found, expected)
        rounds += 1
        if rounds <= int(sys.argv[3]):
            print("read", flush=True)
"""
ROUNDS = 24  # of each reader at least, spread over the landings: the writer waits for them


@pytest.mark.parametrize(
    ("landings", "grows_to", "least", "most"),
    [
        (300, growing.GROWS_TO, 1, 4),
        (400, 30_000, 16, 30),
        pytest.param(3_000, growing.GROWS_TO, 1, 12, marks=pytest.mark.long),
    ],
)
def test_readers_without_pause_find_every_row_once_while_files_grow(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, landings: int, grows_to: int, least: int, most: int
) -> None:
    """In few files that are replaced all the time, and in many. Batches are given up in between."""
    monkeypatch.setattr(growing, "GROWS_TO", grows_to)
    log = land(tmp_path)
    command = [sys.executable, "-c", READ, str(tmp_path), str(3 * landings), str(ROUNDS)]
    readers = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    for reader in readers:
        assert reader.stdout and reader.stdout.readline() == "reading\n"
    every = landings // (ROUNDS + 1)
    with log.writer(SOURCE) as writer:
        for n in range(landings):
            first = 3 * n + 1
            images = [order(i, amount_cents=3 * i) for i in range(first, first + 3)]
            changes = batch(*(("orders", "c", None, image, NOON) for image in images))
            # One that would begin a file is left out: with that batch the file goes, also from under a reader.
            if n % 50 == 49 and log.files("orders")[-1].stat().st_size < grows_to:
                with writer.batch() as parts:
                    parts.add(batch(created(0)))
            writer.land(changes)
            if n in range(every, every * (ROUNDS + 1), every):
                for reader in readers:
                    assert reader.stdout and reader.stdout.readline() == "read\n"
    for reader in readers:
        assert reader.wait(timeout=600) == 0
    assert least <= len(names(log)) <= most


if __name__ == "__main__":
    crash_at_every_step(Path(sys.argv[1]))
