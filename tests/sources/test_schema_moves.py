"""The source's schema moves and the declaration follows: rows, signed images and the chain of images stay exact.

Awkward cases: a column with a default, which fills old rows without an event, taken up under load; a capture that is
killed or stopped while it takes a column up; a column that a log without a slot cannot take up; a type that is widened
under a running capture; a column that is dropped, or renamed.
"""

from __future__ import annotations

import random
import threading
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import duckdb
import pytest

from lockstep import adopting
from lockstep import capture as capturing
from lockstep import verify as verifying
from lockstep.changelog import ChangeLog
from lockstep.errors import LockstepError
from lockstep.postgres import Source
from lockstep.quarantine import retry
from lockstep.schema import TABLES, declared
from postgres import Cluster, capture, own_cluster

ITEM = "CREATE TABLE item (id integer PRIMARY KEY, v integer{}, note text{});"


@pytest.fixture(scope="module")
def moved() -> Iterator[Cluster]:
    with own_cluster() as server:
        yield server


@pytest.fixture
def source(moved: Cluster, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Cluster:
    moved.create_shop()
    moved.execute("DROP SCHEMA public CASCADE; CREATE SCHEMA public")
    moved.execute(ITEM.format("", "") + "ALTER TABLE item REPLICA IDENTITY FULL")
    moved.execute("INSERT INTO item SELECT g, 10 * g, 'n' || g FROM generate_series(1, 10) AS g")
    declare(monkeypatch, tmp_path, ITEM.format("", ""))
    return moved


def declare(monkeypatch: pytest.MonkeyPatch, directory: Path, ddl: str) -> None:
    path = directory / f"source_schema_{len(list(directory.glob('*.sql')))}.sql"
    path.write_text(ddl)
    monkeypatch.setattr(TABLES, "_found", declared(path))


def assert_exact(source: Cluster, home: Path) -> None:
    """The log is the source in every declared column, three ways: its rows, its signed images, its chain of images."""
    verified = verifying.verify(home, source.dsn(), [], 120, 20, lambda _: None)
    assert [(t.verdict, t.comparison.differences) for t in verified.tables] == [("passed", [])]
    names = [c.name for c in TABLES["item"].columns]
    struct = ", ".join(f"{{side}}.{name}::VARCHAR" for name in names)
    glob = ChangeLog(home).root / "item" / "*" / "*.parquet"
    changes = duckdb.sql(
        f"SELECT before IS NOT NULL, [{struct.format(side='before')}], after IS NOT NULL, "
        f"[{struct.format(side='after')}] FROM read_parquet('{glob}', hive_partitioning = false) "
        "ORDER BY position"
    ).fetchall()
    signed: Counter[tuple[str | None, ...]] = Counter()
    last: dict[str | None, tuple[str | None, ...] | None] = {}
    for has_before, before, has_after, after in changes:
        old, new = tuple(before) if has_before else None, tuple(after) if has_after else None
        key = (new or old or ())[names.index("id")]
        assert last.get(key) == old, f"the chain of {key} is whole"
        last[key] = new
        signed.update({image: weight for image, weight in ((old, -1), (new, 1)) if image} if old != new else {})
    rows = source.execute(f"SELECT {', '.join(f'{name}::text' for name in names)} FROM item")
    assert {row: n for row, n in signed.items() if n} == dict.fromkeys(rows, 1)


class Load(threading.Thread):
    """Transactions on the table, some of which roll back."""

    def __init__(self, source: Cluster, columns: str) -> None:
        super().__init__(daemon=True)
        self._source, self._columns, self.stop = source, columns, threading.Event()

    def run(self) -> None:
        rng = random.Random(3)
        while not self.stop.is_set():
            key = rng.randint(1, 30)
            self._source.execute(
                f"INSERT INTO item (id, {self._columns}) VALUES ({key}, {key}) ON CONFLICT (id) "
                f"DO UPDATE SET {self._columns} = {rng.randint(1, 99)}; "
                f"DELETE FROM item WHERE id = {rng.randint(1, 30)}"
            )


def test_a_column_with_a_default_is_taken_up_under_load(
    source: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = tmp_path / "home"
    capture(source, home)
    source.execute("ALTER TABLE item ADD added integer DEFAULT 7, ADD more text")
    source.execute("UPDATE item SET v = v + 1 WHERE id < 4; UPDATE item SET added = 9, more = 'x' WHERE id = 2")
    capture(source, home)
    declare(monkeypatch, tmp_path, ITEM.format(", added integer", ", more text"))
    load = Load(source, "added")
    load.start()
    try:
        for _ in range(3):
            assert capture(source, home).changes
    finally:
        load.stop.set()
        load.join()
    assert_exact(source, home)
    source.execute("UPDATE item SET added = added + 1, more = 'y'; DELETE FROM item WHERE id = 5")
    assert_exact(source, home)
    assert "adopting" not in ChangeLog(home).watermark().resume


@pytest.mark.parametrize("way", ["killed before it landed", "stopped before the point", "with a new snapshot"])
def test_what_ends_a_capture_leaves_the_column_to_the_next(
    source: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, way: str
) -> None:
    home = tmp_path / "home"
    capture(source, home)
    source.execute("ALTER TABLE item ADD added integer DEFAULT 7; UPDATE item SET added = 8 WHERE id = 1")
    declare(monkeypatch, tmp_path, ITEM.format(", added integer", ""))
    options: dict[str, Any] = {}
    with monkeypatch.context() as patch:
        if way == "killed before it landed":
            patch.setattr(adopting, "land_differences", _killed)
            with pytest.raises(KeyboardInterrupt):
                capture(source, home)
        elif way == "stopped before the point":
            patch.setattr(capturing, "adopt", _stopped)
            capture(source, home)
        else:
            options["new_snapshot"] = True
    assert ("adopting" in ChangeLog(home).watermark().resume) is not bool(options)
    source.execute("UPDATE item SET v = 0 WHERE id = 3")
    capture(source, home, **options)
    assert_exact(source, home)
    assert ChangeLog(home).unadopted() == {}


def _killed(*_: Any) -> None:
    raise KeyboardInterrupt


def _stopped(home: Path, source: Source, columns: Any, stop: threading.Event, land_until: Any) -> int:
    def stopped_meanwhile(lsn: int) -> None:
        land_until(lsn)
        stop.set()

    return adopting.adopt(home, source, columns, stop, stopped_meanwhile)


def test_other_commands_say_how_a_column_is_taken_up(
    source: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = tmp_path / "home"
    capture(source, home)
    source.execute("ALTER TABLE item ADD added integer")
    declare(monkeypatch, tmp_path, ITEM.format(", added integer", ""))
    with pytest.raises(LockstepError, match=r"column added is new. Start `lockstep capture` with this declaration"):
        ChangeLog(home).require_changes()


def test_a_type_is_widened_under_a_running_capture(
    source: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = tmp_path / "home"
    capture(source, home)
    source.execute(f"ALTER TABLE item ALTER v TYPE bigint; UPDATE item SET v = {1 << 40} WHERE id = 2")
    assert capture(source, home).quarantined == 1
    [event] = ChangeLog(home).quarantined()
    assert "declare it as bigint in source_schema.sql" in event["reason"]
    declare(monkeypatch, tmp_path, ITEM.format("", "").replace("v integer", "v bigint"))
    source.execute("UPDATE item SET v = v + 1")
    capture(source, home)
    assert not retry(home, [event["position"]]).failed
    assert_exact(source, home)


def test_a_column_is_dropped_and_another_renamed(
    source: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = tmp_path / "home"
    capture(source, home)
    source.execute("ALTER TABLE item DROP note; ALTER TABLE item RENAME v TO w; UPDATE item SET w = w + 1 WHERE id < 3")
    assert capture(source, home).quarantined == 2
    events = ChangeLog(home).quarantined()
    assert all("leave it out of source_schema.sql" in e["reason"] for e in events)
    declare(monkeypatch, tmp_path, "CREATE TABLE item (id integer PRIMARY KEY, w integer);")
    capture(source, home)
    source.execute("UPDATE item SET w = 0 WHERE id = 4")
    capture(source, home)
    assert {e["state"] for e in ChangeLog(home).quarantined()} == {"discarded"}
    assert_exact(source, home)


def test_a_type_of_another_kind_is_taken_up_as_another_column(
    source: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = tmp_path / "home"
    capture(source, home)
    source.execute("ALTER TABLE item ALTER v TYPE text USING 'v' || v; UPDATE item SET v = 'x' WHERE id = 1")
    assert capture(source, home).quarantined == 1
    declare(monkeypatch, tmp_path, "CREATE TABLE item (id integer PRIMARY KEY, v text, note text);")
    with pytest.raises(LockstepError, match="`-- named NAME`"):
        capture(source, home)
    declare(monkeypatch, tmp_path, "CREATE TABLE item (id integer PRIMARY KEY, v text, -- named v_2\n note text);")
    capture(source, home)
    source.execute("UPDATE item SET v = 'y' WHERE id < 3")
    verified = verifying.verify(home, source.dsn(), [], 120, 20, lambda _: None)
    assert [(t.verdict, t.comparison.differences) for t in verified.tables] == [("passed", [])]


def test_a_type_is_narrowed_at_the_source(source: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    home = tmp_path / "home"
    source.execute("ALTER TABLE item ALTER v TYPE bigint")
    declare(monkeypatch, tmp_path, ITEM.format("", "").replace("v integer", "v bigint"))
    capture(source, home)
    source.execute("ALTER TABLE item ALTER v TYPE smallint; UPDATE item SET v = v + 1 WHERE id < 4")
    assert capture(source, home).quarantined == 0
    assert_exact(source, home)
