"""The landing machine's clock, and how far a source's clock may be ahead of it."""

from __future__ import annotations

import os
from datetime import UTC, datetime, timedelta

from lockstep.errors import LockstepError

# A commit time or keep-alive further ahead of this machine's clock is wrong: one event from 2099 would otherwise carry
# the log's clock to 2099, and no hour could seal until then. Two machines that keep time are seconds apart.
AHEAD = timedelta(minutes=5)
# A commit time that is not after this is none: 1970 and 2000 are the zeros of Unix and of PostgreSQL, and no log of
# changes is older. As a log's first time it would make every run look at each hour since.
NO_TIME = datetime(2000, 1, 1)


def machine_now() -> datetime:
    """This machine's time (UTC, naive), but not before LOCKSTEP_CLOCK if that is set.

    The variable is for machines that start without the time, and for replays and tests of times that lie ahead.
    """
    now = datetime.now(UTC).replace(tzinfo=None)
    given = os.environ.get("LOCKSTEP_CLOCK")
    if not given:
        return now
    try:
        earliest = datetime.fromisoformat(given)
    except ValueError:
        raise LockstepError(f"LOCKSTEP_CLOCK is {given!r}, not a time such as 2026-11-18T12:00:00.") from None
    return max(now, earliest.astimezone(UTC).replace(tzinfo=None) if earliest.tzinfo else earliest)
