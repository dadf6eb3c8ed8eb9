"""`lockstep quarantine`: whatever is decided about an event fills its position, and lifts the hold only then.

Awkward cases: an event that passes by now; one that still fails; a snapshot row over an image; a key update; an event
decided about twice; positions that hold none; asking before discarding; a log that is being written.
"""

from __future__ import annotations

import json
import time
from datetime import datetime

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner

from debezium_events import deliver, event, live, log_rows, order
from lockstep import changelog
from lockstep.changelog import ChangeLog, Hold
from lockstep.cli import cli
from lockstep.schema import TIMESTAMP

BROKEN = event("c", None, order(2, amount_cents="1.5"), n=2, tx=2)


@pytest.fixture
def home(tmp_path):
    return tmp_path / "home"


def run(home, *arguments, stdin=None):
    return CliRunner(env={"LOCKSTEP_HOME": str(home)}).invoke(cli, ["quarantine", *arguments], input=stdin)


def reject(home, *events):
    """Quarantine sound events, as a version with stricter rules would have."""
    with ChangeLog(home).writer("postgresql:shop") as writer:
        rows = {
            "ordinal": list(range(len(events))),
            "committed_at": pa.array([datetime(2026, 1, 1, 10, 0, 2)] * len(events), TIMESTAMP),
            "table": ["orders"] * len(events),
            "reason": ["an old rule"] * len(events),
            "event": [json.dumps(e) for e in events],
        }
        writer.land({}, pa.table(rows))


def states(home):
    return {e["position"]: e["state"] for e in ChangeLog(home).quarantined()}


def holds(home):
    return ChangeLog(home).watermark().holds


def test_list_and_show_tell_what_is_open(home):
    deliver(home, event("c", None, order()), BROKEN)
    result = run(home, "list")
    assert result.exit_code == 1
    assert "column amount_cents of the after image" in result.stdout
    (entry,) = json.loads(run(home, "list", "--json").stdout)
    assert (entry["position"], entry["table"], entry["state"], json.loads(entry["event"])) == (
        2,
        "orders",
        "open",
        BROKEN,
    )
    shown = run(home, "show", "2")
    assert (shown.exit_code, '"amount_cents":"1.5"' in shown.stdout, "not a whole number" in shown.stdout) == (
        1,
        True,
        True,
    )
    assert json.loads(run(home, "show", "2", "--json").stdout) == entry
    assert "No event was quarantined at position 1" in str(run(home, "show", "1").exception)


def test_retry_lands_at_the_kept_position(home):
    deliver(home, event("c", None, order()))
    reject(home, event("c", None, order(2), n=2, tx=2))
    deliver(home, event("u", order(2), order(2, status="paid"), n=3, tx=3))
    assert holds(home) == {"orders": Hold(2, datetime(2026, 1, 1, 10, 0, 2), 1)}
    result = run(home, "retry", "2")
    assert (result.exit_code, result.stdout) == (0, "1 event landed.\n")
    rows = log_rows(home)
    assert [(r["position"], r["op"], r["lsn"]) for r in rows] == [(1, "c", 1001), (2, "c", 1002), (3, "u", 1003)]
    assert rows[1]["after"] == rows[2]["before"]
    assert (holds(home), states(home)) == ({}, {2: "landed"})
    assert run(home, "list").exit_code == 0
    assert deliver(home, event("c", None, order(2), n=2, tx=2)).known == 1


def test_retry_says_why_an_event_still_fails_and_lands_the_others(home):
    deliver(home, event("c", None, order()), BROKEN, "rubbish")
    reject(home, event("c", None, order(3), n=3, tx=3))
    result = run(home, "retry", "--all", "--json")
    assert result.exit_code == 1
    outcome = json.loads(result.stdout)
    assert outcome["landed"] == [4]
    assert "amount_cents" in outcome["failed"]["2"]
    assert "not valid JSON" in outcome["failed"]["3"]
    assert states(home) == {2: "open", 3: "open", 4: "landed"}
    assert set(holds(home)) == {"orders", "*"}
    assert "still fails" in run(home, "retry", "2").stdout


def test_retry_of_a_key_update_lands_as_two_changes(home):
    deliver(home, event("c", None, order()))
    reject(home, event("u", order(), order(9), n=2, tx=2))
    deliver(home, event("u", order(9), order(9, status="paid"), n=3, tx=3))
    [entry] = ChangeLog(home).quarantined()
    assert (entry["positions"], ChangeLog(home).watermark().position) == ([2, 3], 4)
    assert holds(home)["orders"].events == 1
    assert run(home, "retry", "--all").stdout == "1 event landed.\n"
    rows = [(r["position"], r["op"], (r["before"] or r["after"])["order_id"]) for r in log_rows(home)]
    assert rows == [(1, "c", 1), (2, "d", 1), (3, "c", 9), (4, "u", 9)]
    assert (holds(home), states(home), live(home)[(9,)]["status"]) == ({}, {2: "landed"}, "paid")


def test_retry_of_half_a_key_update_is_finished_by_the_next(home):
    """The files of its two changes are two: what died between them is open still."""
    deliver(home, event("c", None, order()))
    reject(home, event("u", order(), order(9), n=2, tx=2))
    run(home, "retry", "--all")
    [second] = (home / "changelog" / "orders").glob("*/3-3.parquet")
    second.unlink()
    assert states(home) == {2: "open"}
    assert run(home, "retry", "--all").exit_code == 0
    assert [r["position"] for r in log_rows(home)] == [1, 2, 3]


def test_a_key_update_of_one_position_is_refused(home):
    """The version before kept one only."""
    deliver(home, event("c", None, order()))
    reject(home, event("u", order(), order(9), n=2, tx=2))
    [file] = (home / "quarantine").glob("2-*.jsonl")
    file.write_text(file.read_text().splitlines()[0] + "\n")
    assert "primary key" in run(home, "retry", "--all").stdout
    assert states(home) == {2: "open"}


def test_what_only_looked_like_a_key_update_needs_one_position(home, monkeypatch):
    deliver(home, event("c", None, order()))
    monkeypatch.setattr(changelog, "_may_change_key", lambda *_: True)
    reject(home, event("u", order(), order(status="paid"), n=2, tx=2), event("c", None, order(7), n=3, tx=3))
    assert run(home, "retry", "2").exit_code == 0
    assert [(r["position"], r["op"]) for r in log_rows(home)] == [(1, "c"), (2, "u")]
    assert run(home, "discard", "4", "--yes").exit_code == 0
    assert (holds(home), states(home)) == ({}, {2: "landed", 4: "discarded"})
    filled = [n for p in ChangeLog(home).files("_discarded") for n in pq.read_table(p)["position"].to_pylist()]
    assert filled == [3, 4, 5]


def test_retry_of_a_snapshot_row_replaces_the_image_before_its_position(home):
    deliver(home, event("c", None, order()))
    reject(home, event("r", None, order(status="paid"), n=2, tx=2))
    deliver(home, event("u", order(status="paid"), order(status="sent"), n=3, tx=3))
    assert run(home, "retry", "--all").exit_code == 0
    row = log_rows(home)[1]
    assert (row["op"], row["before"]["status"], row["after"]["status"]) == ("r", "created", "paid")
    assert live(home)[(1,)]["status"] == "sent"


def test_discard_fills_the_position_and_lifts_the_hold(home):
    deliver(home, event("c", None, order()), BROKEN)
    assert run(home, "discard", "2", "--yes").exit_code == 0
    assert (holds(home), states(home)) == ({}, {2: "discarded"})
    assert len(log_rows(home)) == 1
    assert run(home, "list").exit_code == 0
    assert "discarded" in run(home, "list", "--state", "all").stdout
    assert deliver(home, BROKEN).known == 1
    assert "is discarded already" in str(run(home, "retry", "2").exception)


def test_discard_asks_first(home):
    deliver(home, event("c", None, order()), BROKEN)
    assert run(home, "discard", "--all", stdin="n\n").exit_code == 1
    assert states(home) == {2: "open"}
    assert run(home, "discard", "--all", stdin="y\n").exit_code == 0
    assert states(home) == {2: "discarded"}


@pytest.mark.parametrize("command", ["retry", "discard"])
def test_which_events_has_to_be_said(home, command):
    deliver(home, event("c", None, order()))
    assert "or use --all" in str(run(home, command).exception)
    assert "or use --all" in str(run(home, command, "1", "--all").exception)
    assert "No event was quarantined at position 1" in str(run(home, command, "1").exception)
    result = run(home, command, "--all")
    assert (result.exit_code, result.stdout) == (0, f"No event is open in quarantine: there is nothing to {command}.\n")


@pytest.mark.parametrize("command", ["", "list", "show", "retry", "discard"])
def test_help(home, command):
    result = run(home, *command.split(), "--help")
    assert result.exit_code == 0
    assert len(result.stdout.split()) > 20


def test_a_writer_that_does_not_lend_the_log_is_named_at_once(home, monkeypatch):
    monkeypatch.setattr("lockstep.quarantine._PATIENCE", 1_200)
    deliver(home, BROKEN)
    started = time.monotonic()
    with ChangeLog(home).writer("postgresql:shop", "landing for long"):
        assert "landing for long" in str(run(home, "discard", "1", "--yes").exception)
    assert time.monotonic() - started < 600
    assert states(home) == {1: "open"}
    assert run(home, "discard", "1", "--yes").exit_code == 0


def test_without_a_log(home):
    assert "There is no change log" in str(run(home, "list").exception)
