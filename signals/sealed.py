"""Signals: which intervals are ready to be computed."""

from __future__ import annotations

from sqlmesh import signal


@signal()
def hour_is_sealed(batch, sources):
    """The part of a batch of hours that can never change again for a reader of `sources`; later runs take the rest."""
    from lockstep.changelog import ChangeLog
    from lockstep.project import home

    # What SQLMesh hands over is SQL: a tuple of literals, or one literal in parentheses.
    tables = [table.name for table in sources.expressions or [sources.unnest()]]
    return _ended(batch, ChangeLog(home()).watermark().sealed_until(tables))


@signal()
def hour_is_closed(batch):
    """The part of a batch of hours that the log's clock has passed, quarantined events or not."""
    from lockstep.changelog import ChangeLog
    from lockstep.project import home

    return _ended(batch, ChangeLog(home()).watermark().closed_until())


def _ended(batch, until):
    return until is not None and [(start, end) for start, end in batch if end.replace(tzinfo=None) <= until]
