"""The soak, in short: two readers over a few runs. `make soak` is the long form."""

from __future__ import annotations

from pathlib import Path

import pytest

import soak
from lockstep import publish


def test_readers_meet_no_error_no_torn_read_and_no_step_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOCKSTEP_HOME", str(tmp_path))
    monkeypatch.setattr(publish, "KEEP", publish.KEEP)  # the soak shortens it
    figures = soak.soak(tmp_path, readers=2, runs=4, minutes_per_second=20)
    assert not soak.faults(figures)
    # How fresh a read is depends on the machine's load: only `make soak`, which has the machine to itself, asks that.
    assert figures["reads"] > 0
    assert figures["publications"] == figures["runs"] >= 4
    assert figures["compactions"] > 0
    assert figures["hours_merged"] > 0
