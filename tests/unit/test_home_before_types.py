"""A home made when a log could hold a few types only goes on, under a declaration in the spellings of then.

`tests/fixtures/home_before_types` was made by that version: three changes of a table with a column of every type that
it knew, one event in quarantine, and a table without a key.

Awkward cases: an update and a delete of what landed then; a column of then that is not declared; a snapshot's row of a
key of then; the first row of the table without a key; the event in quarantine.
"""

from __future__ import annotations

import tarfile
from datetime import datetime
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from debezium_events import deliver, event, log_rows, mark
from lockstep import log_check, quarantine
from lockstep.changelog import ChangeLog
from lockstep.schema import TABLES, declared, log_schema

BEFORE = Path(__file__).parents[1] / "fixtures" / "home_before_types"


@pytest.fixture
def home(tmp_path, monkeypatch):
    with tarfile.open(BEFORE / "home.tar.gz") as archive:
        archive.extractall(tmp_path, filter="data")
    monkeypatch.setattr(TABLES, "_found", declared(BEFORE / "source_schema.sql"))
    return tmp_path / "home"


def thing(id=1, **columns):
    return {
        "id": id,
        "serial_number": 9007199254740993,
        "small": -32768,
        "smaller": 1,
        "four": 4,
        "number": -2147483648,
        "counted": 1,
        "long": 1 << 62,
        "words": "ä'",
        "name": "n",
        "title": None,
        "code": "x  ",
        "ref": "6f1d0f9e-0000-4000-8000-0000000000aa",
        "day": 20000,
        "share": 0.1,
        "part": None,
        "thin": 0.1,
        "at": "2026-01-01T09:59:59.5Z",
        "coarse": 1767261600123,
        "noted": None,
        **columns,
    }


def change(op, before, after, n, **source):
    return event(op, before, after, n=n, tx=n, table=source.pop("table", "things"), **source)


def test_it_goes_on(home):
    was = log_rows(home, "things")
    assert len(was) == 3 and was[1]["after"]["extra"] == '{"undeclared":"1.10"}'
    known = event("c", None, thing(), table="things")
    second = thing(2, undeclared="1.10")
    delivered = [
        known,
        change("u", thing(number=7), thing(number=8, thin=0.2), 11),
        change("r", None, thing(2, undeclared="1.10"), 12),
        change("d", second, None, 13),
        change("c", None, thing(5, coarse=1767261600124), 14),
    ]
    summary = deliver(home, *delivered)
    assert (summary.landed, summary.known, summary.quarantined) == ({"things": 3}, 2, 0)
    rows = log_rows(home, "things")
    assert rows[:3] == was
    update, delete, insert = rows[3:]
    assert update["before"] == was[2]["after"] and delete["before"] == was[1]["after"]
    assert insert["after"] | {"id": 1, "coarse": datetime(2026, 1, 1, 10, 0, 0, 123000)} == was[0]["after"]
    for path in ChangeLog(home).files("things"):
        assert pq.read_schema(path).equals(log_schema(TABLES["things"]))


def test_its_quarantine_and_its_table_without_a_key_go_on(home):
    [entry] = ChangeLog(home).quarantined()
    assert quarantine.retry(home, [entry["position"]]).failed == {4: entry["reason"]}
    quarantine.discard(home, [entry["position"]])
    row = {"account": 3, "at": "2026-01-01T10:00:00Z"}
    noted = event("c", None, row, n=20, tx=20, marked=True, table="noted")
    assert deliver(home, noted, mark("END", 20)).landed == {"noted": 1}
    assert [r["after"]["account"] for r in log_rows(home, "noted")] == [3]
    assert not ChangeLog(home).watermark().holds
    assert log_check.check(home).findings == []
