"""Every worker must collect the same tests: pytest-xdist refuses to start otherwise."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).parents[2]


def collected(hash_seed: str, time_zone: str) -> list[str]:
    """The ids of all tests, long ones included, as a fresh process collects them."""
    command = [sys.executable, "-m", "pytest", "--collect-only", "-q", "-m", "", "-p", "no:randomly", "tests"]
    environment = {k: v for k, v in os.environ.items() if not k.startswith("PYTEST_")}
    environment |= {"PYTHONHASHSEED": hash_seed, "TZ": time_zone}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return [line for line in done.stdout.splitlines() if "::" in line]


def test_the_ids_are_the_same_in_every_process_and_at_any_time() -> None:
    """An id must hold no time, no address, no random value, and no order of a set."""
    first = collected("1", "UTC")
    time.sleep(1)
    second = collected("2", "America/Los_Angeles")
    assert len(first) > 500
    assert second == first
    assert len(set(first)) == len(first)
