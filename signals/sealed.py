"""Signals: which intervals are ready to be computed."""

from __future__ import annotations

from sqlmesh import signal


@signal()
def hour_is_sealed(batch, sources):
    """The part of a batch of hours that can never change again for a reader of `sources`; later runs take the rest.

    Before that, what has landed since the last look is looked at: a table that contradicts itself is held.
    """
    from lockstep.breaks import foldable_until
    from lockstep.project import home

    # What SQLMesh hands over is SQL: a tuple of literals, or one literal in parentheses.
    tables = [table.name for table in sources.expressions or [sources.unnest()]]
    return _ended(batch, foldable_until(home(), tables))


@signal()
def hour_is_closed(batch):
    """The part of a batch of hours that the log's clock has passed, quarantined events or not."""
    from lockstep.changelog import ChangeLog
    from lockstep.project import home

    return _ended(batch, ChangeLog(home()).watermark().closed_until())


def _ended(batch, until):
    """Cut the batch, in place, to what ended by then: SQLMesh scans it for each interval of a list that is returned, so
    that a first plan over years would take hours."""
    batch[:] = [(start, end) for start, end in batch if until is not None and end.replace(tzinfo=None) <= until]
    return True
