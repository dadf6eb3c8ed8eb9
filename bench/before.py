"""Measure landing, capture and a run with nothing to do beside an earlier revision, in one run.

    .venv/bin/python bench/before.py REVISION [--changes 500000] [--runs 5] [landing|capture|idle_run]...

The revision is checked out into a temporary git worktree. The two sides take turns, so that whatever else the machine
does disturbs both alike, and which begins alternates. Both use this virtual environment.

landing: updates of orders from Arrow in memory to durable, visible Parquet, in batches of 10,000. capture: the backlog
of bench/capture.py, each side's own; left out where PostgreSQL's server is not installed. idle_run: the whole process
of a `lockstep run` with nothing to do, in a home that the same side has run before.

Prints JSON: the medians of both sides, and `ratio`, now to before, as the median of each turn's ratio with the least
and the greatest. More is better for rates (landing, capture), less for seconds (idle_run).
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))

from postgres import server_programs

NOW = Path(__file__).parent.parent
LOCKSTEP = Path(sys.executable).with_name("lockstep")
Measure = Callable[[Path], float]

LANDING = """
import sys, tempfile, time
from datetime import datetime, timedelta
from pathlib import Path
import pyarrow as pa
from lockstep.changelog import ChangeLog
from lockstep.schema import TABLES, batch_schema

start, changes, size = datetime(2026, 1, 1), int(sys.argv[1]), 10_000
def batch(first):
    rows = []
    for n in range(first, min(first + size, changes)):
        at = start + timedelta(milliseconds=50 * n)
        image = {"order_id": n // 2, "customer_id": n % 1_000, "product_id": n % 250, "region": "north", "quantity": 1,
            "amount_cents": 100 + n % 1_000, "status": "new", "ordered_at": at, "updated_at": at, "extra": None}
        rows.append({"ordinal": n, "committed_at": at, "op": "u", "before": image, "after": image | {"status": "paid"},
            "tx_id": n, "lsn": n})
    return pa.Table.from_pylist(rows, schema=batch_schema(TABLES["orders"]))

batches = [batch(first) for first in range(0, changes, size)]
home = tempfile.TemporaryDirectory(prefix="lockstep-bench-")
with home as path, ChangeLog(Path(path)).writer("bench:orders") as writer:
    started = time.monotonic()
    for rows in batches:
        writer.land({"orders": rows})
    print(changes / (time.monotonic() - started))
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("revision", help="the earlier revision, as git names it")
    parser.add_argument("wanted", nargs="*", help="what to measure; all if nothing is named")
    parser.add_argument("--changes", type=int, default=500_000, help="changes to land and to capture")
    parser.add_argument("--runs", type=int, default=5, help="measured turns of each side")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="lockstep-before-") as directory:
        before = Path(directory) / "before"
        _git("worktree", "add", "--quiet", "--detach", str(before), arguments.revision)
        try:
            homes = {side: Path(directory) / f"home-{side.name}" for side in (before, NOW)}
            measures: dict[str, Measure] = {"landing": lambda side: _landing(side, arguments.changes)}
            if server_programs():
                measures["capture"] = lambda side: _capture(side, arguments.changes)
            measures["idle_run"] = lambda side: _idle_run(side, homes[side])
            chosen = [name for name in measures if not arguments.wanted or name in arguments.wanted]
            results = {name: _compare(measures[name], before, arguments.runs) for name in chosen}
            print(json.dumps(results, indent=2))
        finally:
            _git("worktree", "remove", "--force", str(before))


def _compare(measure: Measure, before: Path, runs: int) -> dict[str, float | str]:
    found: dict[Path, list[float]] = {before: [], NOW: []}
    for run in range(runs):
        for side in (before, NOW) if run % 2 else (NOW, before):
            found[side].append(measure(side))
    ratios = [now / then for now, then in zip(found[NOW], found[before], strict=True)]
    return {
        "before": round(statistics.median(found[before]), 2),
        "now": round(statistics.median(found[NOW]), 2),
        "ratio": f"{statistics.median(ratios):.3f} ({min(ratios):.3f} .. {max(ratios):.3f})",
    }


def _landing(side: Path, changes: int) -> float:
    return float(_python(side, "-c", LANDING, str(changes)))


def _capture(side: Path, changes: int) -> float:
    printed = _python(side, "bench/capture.py", "--changes", str(changes), "--runs", "1", "backlog")
    return float(json.loads(printed)["backlog"]["changes_per_second"])


def _idle_run(side: Path, home: Path) -> float:
    """Seconds of a run with nothing to do; the home is made at the first call."""
    if not home.exists():
        _run(side, home, "simulate", "--days", "1", "--orders-per-day", "500", "--seed", "7")
        _run(side, home, "run")
        _run(side, home, "run")
    started = time.monotonic()
    _run(side, home, "run")
    return time.monotonic() - started


def _run(side: Path, home: Path, *arguments: str) -> None:
    environment = {**os.environ, "PYTHONPATH": str(side / "src"), "LOCKSTEP_HOME": str(home)}
    done = subprocess.run([LOCKSTEP, *arguments], cwd=side, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def _python(side: Path, *arguments: str) -> str:
    environment = {**os.environ, "PYTHONPATH": str(side / "src")}
    done = subprocess.run([sys.executable, *arguments], cwd=side, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def _git(*arguments: str) -> None:
    subprocess.run(["git", "-C", str(NOW), *arguments], check=True)


if __name__ == "__main__":
    main()
