"""`changes.watermark` says how far each table can be read: up to its hold, and not the position or microsecond of it.

Awkward cases: no hold, a hold of another table, of an unknown table, of both with either first, in the middle of an
hour and on its first instant, at the first and the last position, a clock on the full hour.
"""

from __future__ import annotations

import json
from datetime import datetime, timedelta

import pytest

from lockstep.schema import TABLES
from rendered import Rendered

MICROSECOND = timedelta(microseconds=1)
START, CLOCK = datetime(2026, 1, 5, 9, 50), datetime(2026, 1, 5, 12, 30)
COLUMNS = "sealed_until, readable_position, readable_until, held_since, held_by"


def at(hour, minute=0):
    return datetime(2026, 1, 5, hour, minute)


@pytest.fixture
def watermark(loaded_project, tmp_path):
    """The row of orders where the log is at position 90, with (position, logged_at, events) by the table held."""

    def watermark(holds, clock=CLOCK):
        fields = ("position", "logged_at", "events")
        content = {
            "position": 90,
            "logged_at": str(clock),
            "started_at": str(START),
            "holds": {table: dict(zip(fields, map(str, hold), strict=True)) for table, hold in holds.items()},
        }
        (tmp_path / "changelog").mkdir(exist_ok=True)
        (tmp_path / "changelog" / "watermark.json").write_text(json.dumps(content))
        models = Rendered(loaded_project, tmp_path)
        models.view("changes.watermark")
        assert set(models.values("SELECT source_table FROM changes.watermark")) == set(TABLES)
        [row] = models.rows("SELECT * FROM changes.watermark WHERE source_table = 'orders'")
        assert (row["position"], row["logged_at"], row["started_at"]) == (90, clock, START)
        return row

    return watermark


def held(since, position, by):
    return (since.replace(minute=0), position - 1, since - MICROSECOND, since, by)


NOT_HELD = (at(12), 90, CLOCK, None, None)


@pytest.mark.parametrize(
    ("holds", "expected"),
    [
        pytest.param({}, NOT_HELD, id="none"),
        pytest.param({"products": (50, at(10, 20), 1)}, NOT_HELD, id="other-table"),
        pytest.param({"orders": (50, at(10, 20), 1)}, held(at(10, 20), 50, "1 event of orders"), id="own"),
        pytest.param({"orders": (50, at(11), 3)}, held(at(11), 50, "3 events of orders"), id="first-of-an-hour"),
        pytest.param({"*": (50, at(10, 20), 1)}, held(at(10, 20), 50, "1 event of an unknown table"), id="unknown"),
        pytest.param(
            {"orders": (40, at(10), 1), "*": (50, at(11), 2)}, held(at(10), 40, "1 event of orders"), id="own-first"
        ),
        pytest.param(
            {"orders": (60, at(11), 1), "*": (50, at(10), 2)},
            held(at(10), 50, "2 events of an unknown table"),
            id="unknown-first",
        ),
        pytest.param({"orders": (1, START, 1)}, held(START, 1, "1 event of orders"), id="first-position"),
        pytest.param({"orders": (90, CLOCK, 1)}, held(CLOCK, 90, "1 event of orders"), id="last-position"),
    ],
)
def test_a_table_is_read_up_to_its_hold(watermark, holds, expected):
    row = watermark(holds)
    assert tuple(row[name] for name in COLUMNS.split(", ")) == expected
    assert row["clock_until"] == at(12)


def test_a_clock_on_the_full_hour_has_closed_the_hour_before(watermark):
    row = watermark({}, clock=at(12))
    assert (row["clock_until"], row["sealed_until"], row["readable_until"]) == (at(12), at(12), at(12))


def test_a_clock_a_microsecond_before_it_has_not(watermark):
    row = watermark({}, clock=at(12) - MICROSECOND)
    assert (row["clock_until"], row["sealed_until"]) == (at(11), at(11))
