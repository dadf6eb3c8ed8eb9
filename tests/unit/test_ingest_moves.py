"""The source's schema moves under a log that Debezium's events fill, which nobody can ask for the rows of a table.

By property against a plain dictionary: whatever the order of changes, deliveries, declarations and snapshots, images
follow from each other, signed images add up, and a value in the log is the source's or NULL where it was never sent.

Awkward cases: a default, which fills old rows without an event; a declaration before the source has the column; events
that are sent again from before it; an event in quarantine meanwhile; a large chunk, and one event at a time; a value
whose meaning `extra` does not tell.
"""

from __future__ import annotations

import json
import random
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from debezium_events import deliver, event, log_rows, write
from lockstep import breaks
from lockstep.changelog import ChangeLog
from lockstep.errors import LockstepError
from lockstep.ingest import ingest
from lockstep.log_check import check
from lockstep.moves import JOINED
from lockstep.quarantine import retry
from lockstep.schema import TABLES, declared

ITEM = "CREATE TABLE item (id integer PRIMARY KEY, v integer{});"
Row = dict[str, Any]


@pytest.fixture
def home(tmp_path: Path, declare: Callable[[str], None]) -> Path:
    declare(ITEM.format(""))
    return tmp_path / "home"


@pytest.fixture
def declare(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    def to(ddl: str) -> None:
        path = tmp_path / f"source_schema_{len(list(tmp_path.glob('*.sql')))}.sql"
        path.write_text(ddl)
        monkeypatch.setattr(TABLES, "_found", declared(path))

    return to


class Source:
    """A table `item` in PostgreSQL, whose connector writes each change as an event; REPLICA IDENTITY FULL."""

    def __init__(self) -> None:
        self.rows: dict[int, Row] = {}
        self._blank: Row = {"id": None, "v": None}
        self.events: list[dict[str, Any]] = []

    def put(self, key: int, **values: Any) -> None:
        """Insert or update a row; columns that are not given stay, or are NULL."""
        before = self.rows.get(key)
        after = {**(before or {**dict.fromkeys(self._blank), "id": key}), **values}
        self.rows[key] = after
        self._write("u" if before else "c", before, after)

    def move(self, key: int, to: int) -> None:
        before = self.rows.pop(key)
        self.rows[to] = {**before, "id": to}
        self._write("u", before, self.rows[to])

    def delete(self, key: int) -> None:
        self._write("d", self.rows.pop(key), None)

    def truncate(self) -> None:
        self._write("t", None, None)
        self.rows.clear()

    def snapshot(self, *keys: int) -> None:
        for key in keys or tuple(self.rows):
            self._write("r", None, self.rows[key], snapshot="incremental")

    def alter(self, change: Callable[[Row], Row]) -> None:
        """DDL, which writes no event."""
        self.rows = {key: change(row) for key, row in self.rows.items()}
        self._blank = change(self._blank)

    def add(self, column: str, default: Any = None) -> None:
        self.alter(lambda row: {**row, column: default})

    def _write(self, op: str, before: Row | None, after: Row | None, **source: Any) -> None:
        n = len(self.events) + 1
        self.events.append(event(op, before, after, n=n, tx=n, table="item", **source))


def assert_exact(home: Path) -> dict[int, Row]:
    """The chain of images is whole and signed images add up to the latest ones, which are returned."""
    log = ChangeLog(home)
    names = [c.name for c in TABLES["item"].columns]
    last: dict[int, tuple[Any, ...] | None] = {}
    signed: Counter[tuple[Any, ...]] = Counter()
    for row in log_rows(home, "item"):
        old, new = (tuple(row[side][name] for name in names) if row[side] else None for side in ("before", "after"))
        key = (new or old or ())[names.index("id")]
        assert last.get(key) == old, f"position {row['position']}"
        last[key] = new
        signed.update({old: -1} if old else {})
        signed.update({new: 1} if new else {})
    assert {image: n for image, n in signed.items() if n} == {image: 1 for image in last.values() if image}
    assert breaks.find(log, TABLES["item"], 0, log.watermark().position) == []
    return {key: dict(zip(names, image, strict=True)) for key, image in last.items() if image}


@pytest.mark.parametrize("seed", [0, 1, 2, *(pytest.param(n, marks=pytest.mark.long) for n in range(3, 40))])
def test_columns_join_at_any_time(home: Path, declare: Callable[[str], None], tmp_path: Path, seed: int) -> None:
    rng = random.Random(seed)
    source = Source()
    default = rng.choice([None, 7])
    sent = 0
    unsent: set[int] = set()  # keys of rows that no event has shown with the column yet
    is_added = is_declared = is_joined = False

    def change() -> None:
        keys = list(source.rows)
        roll = rng.random()
        if not keys or roll < 0.3:
            key = rng.randint(1, 12)
            values = {"added": rng.choice([None, 1, 2, 3])} if is_added and rng.random() < 0.7 else {}
            source.put(key, v=rng.randint(0, 9), **values)
            unsent.discard(key)
            return
        key = rng.choice(keys)
        if roll < 0.55:
            source.put(key, v=rng.randint(0, 9))
        elif roll < 0.65 and (new := rng.randint(13, 20)) not in source.rows:
            source.move(key, new)
        elif roll < 0.8:
            source.delete(key)
        elif roll < 0.83:
            source.truncate()
            unsent.clear()
        else:
            source.snapshot(key)
        unsent.discard(key)

    for step in range(50):
        change()
        if not is_added and step > 15 and rng.random() < 0.1:
            source.add("added", default)
            is_added, unsent = True, set(source.rows)
        if not is_declared and sent and rng.random() < 0.08:
            declare(ITEM.format(", added integer"))
            is_declared = True
        if rng.random() < 0.2:
            # A source may send again from any earlier point. Not a snapshot's row of before the declaration that told
            # nothing new: the log does not have it, and it lacks the column.
            read = max((n for n, e in enumerate(source.events[:sent], 1) if e["op"] == "r"), default=0)
            again = rng.randint(read if is_declared else 0, sent)
            path = write(tmp_path / "delivery", source.events[again:])
            summary = ingest(home, [path], chunk_bytes=rng.choice([400, 1 << 20]))
            assert summary.quarantined == 0
            sent = len(source.events)
            is_joined |= bool(summary.joined)
            rows = assert_exact(home)
            told = {key: row for key, row in source.rows.items() if key not in unsent or default is None}
            if is_joined:
                assert {key: rows[key] for key in told} == told
                untold = {key: {**row, "added": None} for key, row in source.rows.items() if key not in told}
                assert {key: rows[key] for key in untold} == untold
            assert rows.keys() == source.rows.keys()
    declare(ITEM.format(", added integer"))
    if not is_added:
        source.add("added", default)
    source.snapshot()
    source.put(99, v=1, added=5)
    deliver(home, *source.events[sent:])
    assert assert_exact(home) == source.rows
    assert check(home).findings == []


def test_a_column_with_a_default_joins_and_a_snapshot_tells_the_rest(
    home: Path, declare: Callable[[str], None]
) -> None:
    source = Source()
    for key in (1, 2, 3):
        source.put(key, v=10 * key)
    deliver(home, *source.events)
    source.add("added", 7)
    source.put(2, added=9)
    deliver(home, *source.events)
    declare(ITEM.format(", added integer"))
    source.put(3, v=31)
    summary = deliver(home, *source.events)
    assert summary.joined == [
        "item has added from position 6 on: of 2 rows the value was known, 1 rows read NULL until they change, or "
        "until a snapshot by Debezium (an incremental one, say) sends them."
    ]
    assert summary.waiting == []
    assert assert_exact(home) == {**source.rows, 1: {"id": 1, "v": 10, "added": None}}
    source.delete(1)
    source.put(1, v=11, added=0)
    deliver(home, *source.events)
    assert assert_exact(home) == source.rows
    [deletion] = [row for row in log_rows(home, "item") if row["op"] == "d"]
    assert json.loads(deletion["before"]["extra"]) == {"added": 7}, "nothing that was sent is lost"


def test_the_declaration_may_come_before_the_column(home: Path, declare: Callable[[str], None]) -> None:
    source = Source()
    source.put(1, v=1)
    deliver(home, *source.events)
    declare(ITEM.format(", added integer"))
    with pytest.raises(LockstepError, match="the column joins the log with the first event that has it"):
        ChangeLog(home).require_changes()
    source.put(1, v=2)
    summary = deliver(home, *source.events)
    assert (summary.waiting, summary.joined, summary.quarantined) == (["item.added"], [], 0)
    ChangeLog(home).require_changes()  # a plan reads NULL in it
    source.add("added", 7)
    source.put(1, v=3)
    summary = deliver(home, *source.events)
    assert (summary.waiting, len(summary.joined)) == ([], 1)
    assert assert_exact(home) == source.rows
    assert ChangeLog(home).watermark().resume[JOINED] == {"item": {"added": 3}}


def test_one_column_joins_and_another_waits(home: Path, declare: Callable[[str], None]) -> None:
    source = Source()
    source.put(1, v=1)
    deliver(home, *source.events)
    declare(ITEM.format(", added integer, later text"))
    source.add("added", 7)
    source.put(2, v=2)
    assert deliver(home, *source.events).waiting == ["item.later"]
    source.add("later", "x")
    source.put(2, v=3)
    assert deliver(home, *source.events).waiting == []
    source.put(1, v=4)
    deliver(home, *source.events)
    assert assert_exact(home) == source.rows


def test_what_is_open_in_quarantine_lands_before_the_column_joins(home: Path, declare: Callable[[str], None]) -> None:
    source = Source()
    source.put(1, v=1)
    source.add("added", 7)
    source.put(1, v=1 << 40)
    source.put(1, v=2)
    assert deliver(home, *source.events).quarantined == 2
    declare(ITEM.format(", added integer").replace("v integer", "v bigint"))
    source.put(2, v=2, added=3)
    assert deliver(home, *source.events).waiting == ["item.added"]
    assert not retry(home, [2, 3]).failed
    assert log_rows(home, "item")[1]["after"].get("added") is None, "it is from before the column joined"
    source.put(2, v=3)
    assert deliver(home, *source.events).waiting == []
    assert assert_exact(home) == source.rows


def test_a_quarantined_change_is_retried_after_the_column_joined(home: Path, declare: Callable[[str], None]) -> None:
    source = Source()
    source.put(1, v=1)
    deliver(home, *source.events)
    declare(ITEM.format(", added integer"))
    source.add("added", 7)
    source.put(2, v=1)
    deliver(home, *source.events)
    source.put(1, v=1 << 40)
    source.put(1, v=2, added=8)
    assert deliver(home, *source.events).quarantined == 2
    declare(ITEM.format(", added integer").replace("v integer", "v bigint"))
    assert not retry(home, [e["position"] for e in ChangeLog(home).quarantined()]).failed
    assert assert_exact(home) == source.rows


def test_a_declared_column_is_dropped_and_another_renamed(home: Path, declare: Callable[[str], None]) -> None:
    declare("CREATE TABLE item (id integer PRIMARY KEY, v integer, note text);")
    source = Source()
    source.add("note")
    source.put(1, v=1, note="a")
    source.put(2, v=2, note="b")
    deliver(home, *source.events)
    source.alter(lambda row: {"id": row["id"], "w": row["v"]})
    source.put(1, w=5)
    assert deliver(home, *source.events).quarantined == 1
    [entry] = ChangeLog(home).quarantined()
    assert "leave it out of source_schema.sql" in entry["reason"]
    declare("CREATE TABLE item (id integer PRIMARY KEY);")
    assert not retry(home, [entry["position"]]).failed
    assert_exact(home)
    declare("CREATE TABLE item (id integer PRIMARY KEY, w integer);")
    source.put(2, w=6)
    deliver(home, *source.events)
    assert assert_exact(home) == source.rows


@pytest.mark.parametrize(
    ("narrow", "wide", "before", "after"),
    [
        ("integer", "bigint", 1, 1 << 40),
        ("varchar(3)", "text", "abc", "abcdef"),
        ("numeric(4,2)", "numeric(6,2)", "10.50", "1000.50"),
    ],
)
def test_a_type_is_widened(
    home: Path, declare: Callable[[str], None], narrow: str, wide: str, before: Any, after: Any
) -> None:
    declare(ITEM.format("").replace("v integer", f"v {narrow}"))
    source = Source()
    source.put(1, v=before)
    source.put(1, v=after)
    source.put(1, v=before)
    quarantined = deliver(home, *source.events).quarantined
    assert quarantined == (0 if wide == "text" else 2)
    declare(ITEM.format("").replace("v integer", f"v {wide}"))
    for entry in ChangeLog(home).quarantined():
        assert not retry(home, [entry["position"]]).failed
    assert {key: str(row["v"]) for key, row in assert_exact(home).items()} == {1: str(before)}


def test_a_type_of_another_kind_is_another_column(home: Path, declare: Callable[[str], None]) -> None:
    source = Source()
    source.put(1, v=1)
    source.put(2, v=2)
    deliver(home, *source.events)
    source.alter(lambda row: {**row, "v": f"{row['v']}."})
    source.put(1, v="one")
    assert deliver(home, *source.events).quarantined == 1
    declare(ITEM.format("").replace("v integer", "v text"))
    with pytest.raises(LockstepError, match="another name in the log: end its line with the comment `-- named NAME`"):
        deliver(home, *source.events)
    declare("CREATE TABLE item (id integer PRIMARY KEY, v text -- named v_2\n);")
    [bad] = ChangeLog(home).quarantined()
    deliver(home, *source.events)
    assert not retry(home, [bad["position"]]).failed
    source.put(1, v="eins")
    deliver(home, *source.events)
    assert {key: row["v_2"] for key, row in assert_exact(home).items()} == {1: "eins", 2: None}
    source.snapshot()
    deliver(home, *source.events)
    assert {key: row["v_2"] for key, row in assert_exact(home).items()} == {1: "eins", 2: "2."}


@pytest.mark.parametrize(
    ("ddl", "why"),
    [
        (ITEM.format(", added integer NOT NULL"), "Declare it without NOT NULL"),
        (
            "CREATE TABLE item (id integer, v integer, added integer, PRIMARY KEY (id, added));",
            "A key cannot be changed",
        ),
    ],
)
def test_columns_that_cannot_join(home: Path, declare: Callable[[str], None], ddl: str, why: str) -> None:
    source = Source()
    source.put(1, v=1)
    deliver(home, *source.events)
    source.add("added", 7)
    source.put(1, v=2)
    declare(ddl)
    with pytest.raises(LockstepError, match=why):
        deliver(home, *source.events)
    declare(ITEM.format(""))
    deliver(home, *source.events)
    assert assert_exact(home) == {1: {"id": 1, "v": 2}}


def test_a_column_that_was_left_out_for_a_time_comes_back_under_another_name(
    home: Path, declare: Callable[[str], None]
) -> None:
    declare(ITEM.format(", added integer"))
    source = Source()
    source.add("added")
    source.put(1, v=1, added=1)
    deliver(home, *source.events)
    declare(ITEM.format(""))
    source.put(1, v=2, added=2)
    deliver(home, *source.events)
    declare(ITEM.format(", added integer"))
    source.put(1, v=3)
    with pytest.raises(LockstepError, match="-- named added_2"):
        deliver(home, *source.events)
    declare(ITEM.format(", added integer -- named added_2\n"))
    deliver(home, *source.events)
    assert assert_exact(home) == {1: {"id": 1, "v": 3, "added_2": 2}}


def test_a_table_without_a_key_takes_no_column(home: Path, declare: Callable[[str], None]) -> None:
    declare("-- append-only\nCREATE TABLE visits (page text);")
    visit = event("c", None, {"page": "a"}, table="visits", marked=True)
    deliver(home, visit, ends_transactions=True)
    declare("-- append-only\nCREATE TABLE visits (page text, seconds integer);")
    with pytest.raises(LockstepError, match="its values are in the images' `extra`"):
        deliver(home, visit, ends_transactions=True)


@pytest.mark.parametrize(
    ("type_", "sent", "value"),
    [
        ("bigint", 5, 5),
        ("boolean", True, True),
        ("text", "x", "x"),
        ("uuid", "8b1d", "8b1d"),
        ("numeric(6,2)", "12.50", "12.50"),
        ("numeric(6,2)", "1250", None),  # it may be the base64 of a number
        ("date", 20_000, "2024-10-04"),
        ("timestamptz", "2026-01-01T10:00:00Z", "2026-01-01 10:00:00"),
        ("timestamp", 1_767_261_600_000, None),  # what it counts stood in the event's schema, if it had one
        ("timestamp", "2026-01-01T10:00:00", "2026-01-01 10:00:00"),
        ("time", 36_000_000, None),
        ("bytea", "\\x0102", "b'\\x01\\x02'"),
        ("bytea", "AQI=", None),
        ("double precision", 0.5, 0.5),
        ("mood", "sad", "sad"),
        ("integer[]", [1, 2], None),
        ("integer", "five", None),
    ],
)
def test_only_what_extra_tells_exactly_is_taken_from_it(
    home: Path, declare: Callable[[str], None], type_: str, sent: Any, value: Any
) -> None:
    source = Source()
    source.put(1, v=1)
    source.add("added")
    source.put(1, added=sent)
    deliver(home, *source.events)
    declare(ITEM.format(f", added {type_}"))
    source.put(2, v=1)
    summary = deliver(home, *source.events)
    assert str(assert_exact(home)[1]["added"]) == str(value)
    assert ("1 rows read NULL" in summary.joined[0]) is (value is None)


def test_a_change_that_landed_before_the_declaration_is_known(home: Path, declare: Callable[[str], None]) -> None:
    source = Source()
    source.put(1, v=1)
    source.put(1, v=2)
    deliver(home, *source.events)
    source.add("added", 7)
    source.put(1, v=3)
    deliver(home, *source.events)
    declare(ITEM.format(", added integer"))
    source.put(1, v=4)
    deliver(home, *source.events)
    again = deliver(home, *source.events)
    assert (again.known, again.landed.total(), again.quarantined) == (4, 0, 0)
