"""A home with two days of the simulated company, run and published: shared by the tests of what analysts read."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path

import pytest

from homes import SharedHomes
from lockstep import operate, simulate
from lockstep.changelog import ChangeLog

UNTIL = datetime(2026, 11, 18, 10, 20)


@pytest.fixture(scope="session")
def two_days(shared_home: SharedHomes) -> Path:
    """The company up to UNTIL, run ten minutes later. To be read only; LOCKSTEP_HOME is not set to it."""

    def build(home: Path) -> Path:
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("LOCKSTEP_HOME", str(home))
            log = ChangeLog(home)
            simulate.run(log, simulate.choose_history(log, 3, 2, 200, UNTIL), lambda _: None)
            result = operate.run(home, datetime(2026, 11, 18, 10, 30))
        assert result.agrees, result.failures
        assert result.published is not None
        return home

    return shared_home("two_days", build)
