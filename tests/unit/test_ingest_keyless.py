"""A table without a key lands by its inserts, each once: equal rows are told apart by their number in the transaction.

Awkward cases: two equal rows of one COPY, which share their lsn; the same delivery again, whole, from the middle, twice
in one; a column that is NULL; a row that is quarantined twice; TRUNCATE of equal rows; what cannot be right.
"""

from __future__ import annotations

from collections import Counter

import pytest

from debezium_events import deliver, event, log_rows, mark
from lockstep import quarantine
from lockstep.changelog import ChangeLog
from lockstep.contracts import load
from lockstep.schema import TABLES, declared

VISITS = "-- append-only\nCREATE TABLE visits (page text, seconds int, price numeric(8,2));\n"
ROW = {"page": "a", "seconds": None, "price": "1.10"}


@pytest.fixture
def home(tmp_path, monkeypatch):
    (tmp_path / "s.sql").write_text(VISITS)
    monkeypatch.setattr(TABLES, "_found", declared(tmp_path / "s.sql"))
    return tmp_path / "home"


def visit(number, row=ROW, op="c", n=1, tx=1, **more):
    found = event(op, None, row, n=n, tx=tx, table="visits", marked=True, **more)
    found["transaction"]["total_order"] = number
    return found


def rows(home):
    """How often each row is there, by its signed images."""
    found = Counter()
    for change in log_rows(home, "visits"):
        for image, weight in ((change["before"], -1), (change["after"], 1)):
            if image:
                found[image["page"], image["seconds"], str(image["price"])] += weight
    return +found


A, B = ("a", None, "1.10"), ("b", 3, "0.00")


def test_equal_rows_of_one_copy_land_once_each(home):
    copied = [visit(1), visit(2), visit(3, {"page": "b", "seconds": 3, "price": "0"}), mark("END", 1)]
    assert deliver(home, *copied, *copied).landed == {"visits": 3}
    assert rows(home) == {A: 2, B: 1}
    again = deliver(home, *copied[1:])
    assert (again.landed, again.quarantined, again.known) == ({}, 0, 2)
    # Another transaction with an equal row.
    assert deliver(home, visit(1, n=2, tx=2), mark("END", 2)).landed == {"visits": 1}
    assert rows(home) == {A: 3, B: 1}


def test_the_rest_of_a_transaction_that_was_taken_for_whole_lands(home):
    assert deliver(home, visit(1), ends_transactions=True).landed == {"visits": 1}
    assert deliver(home, visit(1), visit(2), mark("END", 1)).landed == {"visits": 1}
    assert rows(home) == {A: 2}


def test_a_truncate_takes_every_one_of_equal_rows(home):
    deliver(home, visit(1), visit(2), mark("END", 1), visit(1, n=2, tx=2), mark("END", 2))
    emptied = [visit(1, None, "t", n=3, tx=3), visit(2, n=3, tx=3), mark("END", 3)]
    assert deliver(home, *emptied).landed == {"visits": 4}
    assert rows(home) == {A: 1}
    assert deliver(home, *emptied).landed == {}


def test_what_cannot_be_right_is_quarantined_with_the_way_out(home):
    unnumbered = event("c", None, ROW, table="visits")
    read = event("r", None, ROW, n=2, tx=None, table="visits")
    changed = [event("u", ROW, ROW, n=3, tx=3, table="visits"), event("d", ROW, None, n=4, tx=4, table="visits")]
    assert deliver(home, unnumbered, read, *changed, ends_transactions=True).quarantined == 4
    reasons = [entry["reason"] for entry in ChangeLog(home).quarantined()]
    assert "provide.transaction.metadata=true" in reasons[0]
    assert "snapshot.mode=no_data" in reasons[1]
    assert all("none of its rows can be changed or deleted" in reason for reason in reasons[2:])
    assert quarantine.retry(home, [1]).failed == {1: reasons[0]}


def test_equal_rows_that_are_quarantined_are_two(home):
    bad = [visit(n, {**ROW, "price": "1.234"}) for n in (1, 2)]
    assert deliver(home, *bad, *bad, mark("END", 1)).quarantined == 2


def test_another_database_says_where_in_its_log_a_row_is(home):
    binlog = {"connector": "mysql", "schema": None, "lsn": None, "file": "binlog.000003", "pos": 154}
    events = [event("c", None, ROW, table="visits", row=row, **binlog) for row in (0, 1)]
    assert deliver(home, *events, *events).landed == {"visits": 2}
    assert rows(home) == {A: 2}
    assert deliver(home, *events).landed == {}


def test_a_contract_may_be_of_such_a_table(home, tmp_path):
    contract = "domain,owner,mode,horizon_minutes,freshness_seconds,shadow_days,passes_to_return,receipt_hours,"
    contract += "on_bad_event,source_table,source_key,joined_tables,reads_domains,grain,live_where\n"
    contract += "visits,web,batch,60,60,3,2,50,hold,visits,,,,page,\n"
    (tmp_path / "contracts.csv").write_text(contract)
    measure = "domain,measure,merge,unit,tolerance_absolute,tolerance_relative,tolerance_median,tolerance_cells,"
    measure += "description\n"
    (tmp_path / "contract_measures.csv").write_text(measure + "visits,spent,sum,eur(2),0,0,,,Spent\n")
    loaded = load(tmp_path)["visits"]
    assert (loaded.source_key, loaded.merged[0].type) == ((), "DECIMAL(38, 2)")
