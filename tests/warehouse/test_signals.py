"""What part of a batch of hours the signals let through, called as SQLMesh calls them: with a model's own arguments."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
from sqlmesh.core.snapshot.definition import check_ready_intervals

from lockstep.changelog import ALL_TABLES, ChangeLog, Hold, Watermark

HOURS = [datetime(2026, 1, 5, hour) for hour in (9, 10, 11, 12)]


@pytest.fixture
def ready(loaded_project, monkeypatch):
    """The hours that are ready for a model, out of HOURS, at a watermark."""

    def ready(model, watermark):
        monkeypatch.setattr(ChangeLog, "watermark", lambda self: watermark)
        calls = loaded_project.get_model(model).render_signal_calls()
        intervals = [(_ms(hour), _ms(hour + timedelta(hours=1))) for hour in HOURS]
        for name, arguments in calls.signals_to_kwargs.items():
            intervals = check_ready_intervals(
                calls.prepared_python_env[name], intervals, None, calls.python_env, kwargs=arguments
            )
        return [datetime.fromtimestamp(start / 1000, UTC).replace(tzinfo=None) for start, _ in intervals]

    return ready


def _ms(at):
    return int(at.replace(tzinfo=UTC).timestamp() * 1000)


@pytest.mark.parametrize("model", ["hourly.orders", "hourly.log"])
class TestBothSignals:
    def test_take_the_hours_that_ended_before_the_watermark(self, ready, model):
        assert ready(model, Watermark(9, datetime(2026, 1, 5, 11, 30))) == HOURS[:2]

    def test_take_an_hour_that_ended_exactly_at_the_watermark(self, ready, model):
        assert ready(model, Watermark(9, datetime(2026, 1, 5, 12, 0))) == HOURS[:3]

    def test_leave_an_hour_that_lacks_a_microsecond(self, ready, model):
        assert ready(model, Watermark(9, datetime(2026, 1, 5, 11, 59, 59, 999999))) == HOURS[:2]

    def test_take_the_whole_batch(self, ready, model):
        assert ready(model, Watermark(9, datetime(2026, 1, 6))) == HOURS

    def test_take_nothing_before_the_first_hour_is_over(self, ready, model):
        assert ready(model, Watermark(9, datetime(2026, 1, 5, 9, 59))) == []

    def test_take_nothing_where_there_is_no_log(self, ready, model):
        assert ready(model, Watermark()) == []


def test_an_hourly_log_of_twenty_years_is_checked_at_once(loaded_project):
    """SQLMesh scans a batch for each hour of a list that a signal returns: 16 billion looks."""
    calls = loaded_project.get_model("hourly.orders").render_signal_calls()
    first = datetime(2006, 1, 1)
    intervals = [(_ms(first + timedelta(hours=n)), _ms(first + timedelta(hours=n + 1))) for n in range(180_000)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ChangeLog, "watermark", lambda self: Watermark(9, first + timedelta(hours=179_999)))
        for name, arguments in calls.signals_to_kwargs.items():
            ready = check_ready_intervals(
                calls.prepared_python_env[name], intervals, None, calls.python_env, kwargs=arguments
            )
    assert ready == intervals[:-1]


HELD = Hold(5, datetime(2026, 1, 5, 10, 20))


@pytest.mark.parametrize("table", ["orders", "products", ALL_TABLES])
def test_a_hold_of_a_table_that_the_domain_needs_keeps_its_hour_unsealed(ready, table):
    assert ready("hourly.orders", Watermark(9, datetime(2026, 1, 5, 12), holds={table: HELD})) == HOURS[:1]


def test_a_hold_of_another_table_does_not_keep_the_domain(ready):
    assert ready("hourly.orders", Watermark(9, datetime(2026, 1, 5, 12), holds={"shipments": HELD})) == HOURS[:3]


def test_the_earliest_of_several_holds_counts(ready):
    holds = {
        "products": Hold(7, datetime(2026, 1, 5, 11)),
        "orders": HELD,
        "shipments": Hold(2, datetime(2026, 1, 5, 9)),
    }
    assert ready("hourly.orders", Watermark(9, datetime(2026, 1, 5, 12), holds=holds)) == HOURS[:1]


def test_no_hold_keeps_the_hours_of_the_log_itself(ready):
    """The log's hours count positions, and a quarantined event keeps its own."""
    assert ready("hourly.log", Watermark(9, datetime(2026, 1, 5, 12), holds={ALL_TABLES: HELD})) == HOURS[:3]
