"""Compaction: a log reads the same before, after and in the middle of it, whatever dies; only old hours are touched.

Awkward cases: an hour of one file, several tables, an event that left quarantine and lies between others, death before
every step, a writer and a reader at work meanwhile, a file that comes or grows while an hour is merged, files whose
names do not tell where they end, two at once, a file system that cannot exchange directories.
"""

from __future__ import annotations

import ctypes
import shutil
import threading
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from lockstep import compact as compaction
from lockstep import growing
from lockstep.changelog import ChangeLog
from lockstep.compact import compact
from lockstep.errors import LockstepError
from lockstep.lock import exclusive
from shop import SOURCE, Shop, land

NOON = datetime(2026, 11, 18, 12)
HOUR = timedelta(hours=1)


@pytest.fixture(scope="module")
def landed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three hours of twenty batches each, over two tables, each large enough for a file of its own."""
    home, shop = tmp_path_factory.mktemp("landed"), Shop(NOON)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(growing, "GROWS_TO", 0)
        for n in range(60):
            shop.now = NOON + n * HOUR / 20
            begun = len(shop.changes)
            shop.order(n, amount_cents=n)
            if n % 2:
                shop.product(n, "toys")
            land(home, shop.changes[begun:])
    return home


@pytest.fixture
def log(landed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ChangeLog:
    monkeypatch.setattr(growing, "GROWS_TO", 0)
    shutil.copytree(landed, tmp_path, symlinks=True, dirs_exist_ok=True)
    return ChangeLog(tmp_path)


def rows(log: ChangeLog) -> list[Any]:
    """Every change as a reader's glob finds it."""
    return [
        duckdb.sql(
            f"SELECT * FROM READ_PARQUET('{log.root}/{table}/*/*.parquet', hive_partitioning = FALSE) ORDER BY position"
        ).fetchall()
        for table in ("orders", "products", "_discarded")
    ]


def files(log: ChangeLog, table: str = "orders") -> list[str]:
    return [f"{p.parent.name[-2:]}/{p.name}" for p in log.files(table)]


def test_an_hour_becomes_one_file_and_reads_the_same(log: ChangeLog) -> None:
    before = rows(log)
    done = compact(log.home, NOON + 2 * HOUR)
    assert rows(log) == before
    assert (done.hours, done.files) == (4, 60)
    assert done.bytes_after < done.bytes_before
    assert files(log)[:2] == ["12/1-29.parquet", "13/31-59.parquet"]
    assert len(files(log)) == 2 + 20, "the hour that may still be read file by file is left alone"
    assert compact(log.home, NOON + 2 * HOUR).hours == 0
    land(log.home, Shop(NOON + 3 * HOUR).changes, reached=NOON + 4 * HOUR)
    assert compact(log.home, NOON + 3 * HOUR).hours == 2
    assert rows(log) == before


def test_merged_rows_lie_in_order_and_in_groups(log: ChangeLog, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compaction, "ROWS", 7)
    before = rows(log)
    compact(log.home, NOON + HOUR)
    [path] = [p for p in log.files("orders") if "T12" in p.parent.name]
    positions = pq.read_table(path, partitioning=None)["position"].to_pylist()
    assert positions == sorted(positions)
    assert pq.ParquetFile(path).num_row_groups == 3
    assert rows(log) == before


def test_a_row_that_lies_between_others_finds_its_place(log: ChangeLog) -> None:
    """As an event does that left quarantine at the position kept for it."""
    hour = log.files("orders")[0].parent
    first = pq.read_table(hour / "1-1.parquet", partitioning=None)
    last = pq.read_table(hour / "4-4.parquet", partitioning=None)
    (hour / "1-1.parquet").unlink()
    (hour / "4-4.parquet").unlink()
    pq.write_table(pa.concat_tables([first, last]), hour / "1-4.parquet")
    before = rows(log)
    compact(log.home, NOON + HOUR)
    assert rows(log) == before
    assert files(log)[0] == "12/1-29.parquet"


@pytest.mark.parametrize("step", ["_merge", "fsync_directory", "_exchange", "rmtree after"])
def test_death_at_any_step_leaves_every_change_once(log: ChangeLog, step: str, monkeypatch: pytest.MonkeyPatch) -> None:
    before = rows(log)

    class Died(BaseException):
        pass

    def die(*_: object, **__: object) -> None:
        raise Died

    with monkeypatch.context() as patch, pytest.raises(Died):
        if step == "rmtree after":
            exchange = compaction._exchange
            patch.setattr(compaction, "_exchange", lambda a, b: (exchange(a, b), die()))
        else:
            patch.setattr(compaction, step, die)
        compact(log.home, NOON + 2 * HOUR)
    assert rows(log) == before
    with log.writer(SOURCE):  # the next writer finds nothing amiss
        assert rows(log) == before
    compact(log.home, NOON + 2 * HOUR)
    assert rows(log) == before
    assert len(files(log)) == 22
    assert not (log.home / "compacting").exists()


def test_readers_and_a_writer_never_notice(log: ChangeLog) -> None:
    """A reader counts through the log's directories without pause while its old hours are exchanged."""
    expected = rows(log)[0]
    counts, stop = [], threading.Event()

    def read() -> None:
        while not stop.is_set():
            try:
                found = sum(pq.read_metadata(p).num_rows for p in log.root.glob("orders/*/*.parquet"))
            except FileNotFoundError:  # listed before the exchange, opened after it: an error, never a wrong count
                continue
            counts.append(found)

    reader = threading.Thread(target=read)
    reader.start()
    shop = Shop(NOON + 3 * HOUR)
    for n in range(100, 105):
        shop.order(n)
        land(log.home, shop.changes[-1:])
        compact(log.home, NOON + HOUR * (n - 99))
    stop.set()
    reader.join()
    assert set(counts) <= set(range(60, 66))
    assert counts
    assert rows(log)[0][:60] == expected
    assert len(rows(log)[0]) == 65


def test_a_file_that_comes_while_its_hour_is_merged_is_kept(log: ChangeLog, monkeypatch: pytest.MonkeyPatch) -> None:
    merge = compaction._merge
    hour = log.files("orders")[0].parent

    def merge_slowly(paths: list[Path], path: Path, is_ordered: bool) -> None:
        merge(paths, path, is_ordered)
        if hour.name in str(path) and not (hour / "9000-9000.parquet").exists():
            shutil.copy(paths[0], hour / "9000-9000.parquet")

    monkeypatch.setattr(compaction, "_merge", merge_slowly)
    compact(log.home, NOON + HOUR)
    assert (hour / "9000-9000.parquet").exists()
    assert len(list(hour.iterdir())) == 21, "this hour is left to the next compaction"


@pytest.fixture
def grown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ChangeLog:
    """Two hours of twenty batches: the first in files that grew and one large one, the second in a file that grew."""
    shop = Shop(NOON)
    for n in range(40):
        shop.now = NOON + n * HOUR / 20
        shop.order(n, amount_cents=n)
        monkeypatch.setattr(growing, "GROWS_TO", 0 if n == 5 else 15_000 if n < 20 else 1 << 20)
        land(tmp_path, shop.changes[-1:])
    return ChangeLog(tmp_path)


def test_files_that_grew_become_one_whose_name_tells_its_end(grown: ChangeLog) -> None:
    crowded = [name for name in files(grown) if name.startswith("12/")]
    assert {"12/1-.parquet", "12/6-6.parquet", "12/7-.parquet"} < set(crowded)
    before = rows(grown)
    done = compact(grown.home, NOON + 2 * HOUR)
    assert rows(grown) == before
    assert files(grown) == ["12/1-20.parquet", "13/21-.parquet"], "an hour of one file is left as it is"
    assert (done.hours, done.files) == (1, len(crowded))
    assert [p.name for p in grown.files("orders")[0].parent.iterdir()] == ["1-20.parquet"]
    shop = Shop(NOON + 2 * HOUR)
    shop.order(50)
    land(grown.home, shop.changes)
    assert len(rows(grown)[0]) == 41


def test_a_file_that_grows_while_its_hour_is_merged_is_kept(grown: ChangeLog, monkeypatch: pytest.MonkeyPatch) -> None:
    merge, path = compaction._merge, grown.files("orders")[0]
    before = rows(grown)

    def merge_slowly(paths: list[Path], merged: Path, is_ordered: bool) -> None:
        merge(paths, merged, is_ordered)
        target = path.parent / path.readlink()
        target.with_suffix(".partial").write_bytes(target.read_bytes())
        target.with_suffix(".partial").replace(target)

    with monkeypatch.context() as patch:
        patch.setattr(compaction, "_merge", merge_slowly)
        assert compact(grown.home, NOON + HOUR).hours == 0
    assert path.exists()
    assert rows(grown) == before
    assert compact(grown.home, NOON + HOUR).hours == 1


def test_two_at_once_are_told_apart(log: ChangeLog) -> None:
    with (
        exclusive(log.home / "compact.lock", "compacting the change log"),
        pytest.raises(LockstepError, match="compacting the change log"),
    ):
        compact(log.home, NOON + HOUR)


def test_without_a_bound_nothing_is_touched(log: ChangeLog) -> None:
    before = files(log)
    assert compact(log.home, None).hours == 0
    assert files(log) == before


def test_a_file_system_that_cannot_exchange_is_named(log: ChangeLog, monkeypatch: pytest.MonkeyPatch) -> None:
    class Without:
        def __init__(self, *_: object, **__: object) -> None: ...

    before = rows(log)
    monkeypatch.setattr(ctypes, "CDLL", Without)
    problem = compact(log.home, NOON + HOUR).problem
    assert problem and "cannot exchange two directories" in problem
    assert rows(log) == before
