"""Signals: which intervals are ready to be computed."""

from __future__ import annotations

from sqlmesh import signal


@signal()
def hour_is_sealed(batch, sources):
    """The part of a batch of hours that can never change again for a reader of `sources`; a later run takes the rest."""
    from lockstep.changelog import ChangeLog
    from lockstep.project import home

    return _ended(batch, ChangeLog(home()).watermark().sealed_until(sources))


@signal()
def hour_is_closed(batch):
    """The part of a batch of hours that the log's clock has passed, quarantined events or not."""
    from lockstep.changelog import ChangeLog
    from lockstep.project import home

    return _ended(batch, ChangeLog(home()).watermark().closed_until())


def _ended(batch, until):
    return until is not None and [(start, end) for start, end in batch if end.replace(tzinfo=None) <= until]
