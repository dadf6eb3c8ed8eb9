"""A home whose log's clock stands in 2099 computes again after the documented commands, in any zone, run twice."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from datetime import datetime, timedelta
from pathlib import Path

from lockstep import warehouse
from lockstep.changelog import ChangeLog
from shop import SOURCE, Shop, batch_of

ROOT = Path(__file__).parents[2]
# In Los Angeles clocks are set back at 2026-11-01 09:00 UTC: the hours before and after it have one name there.
START = datetime(2026, 11, 1, 7, 30)
MIDNIGHT = datetime(2026, 11, 2)
ORDERS = 30


def poisoned(home: Path) -> None:
    """An order every half hour over the end of summer time, with one from 2099 among them, landed without the rule."""
    shop = Shop(START)
    shop.product(1, "toys")
    for n in range(1, ORDERS + 1):
        shop.now = datetime(2099, 1, 1) if n == 7 else START + n * timedelta(minutes=30)
        shop.order(n, ordered_at=START + n * timedelta(minutes=30))
    with ChangeLog(home).writer(SOURCE, clock=lambda: datetime(2099, 1, 1)) as writer:
        writer.land(batch_of(shop.changes))


def run(home: Path, *arguments: str) -> str:
    environment = {**os.environ, "LOCKSTEP_HOME": str(home), "TZ": "America/Los_Angeles"}
    done = subprocess.run(
        [sys.executable, "-m", "lockstep.cli", *arguments], cwd=ROOT, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def documented_commands() -> list[list[str]]:
    """Those of the runbook's code block, without the comments."""
    text = (ROOT / "docs" / "runbooks" / "the-log-is-in-the-future.md").read_text(encoding="utf-8")
    [block] = re.findall(r"```\n(.*?)```\n\nPositions", text, re.DOTALL)
    return [line.split("#")[0].split()[1:] for line in block.splitlines()]


def test_a_poisoned_home_is_mended_by_the_documented_commands(tmp_path: Path) -> None:
    poisoned(tmp_path)
    assert documented_commands() == [["log", "reclock"], ["run"]]
    assert "The log reached to 2099-01-01" in run(tmp_path, "log", "reclock")
    with ChangeLog(tmp_path).writer(SOURCE) as writer:
        writer.land({}, reached=MIDNIGHT + timedelta(hours=5))
    at = str(MIDNIGHT + timedelta(hours=5)).replace(" ", "T")
    for _ in range(2):  # the scheduler fires twice
        assert "all paths agree" in run(tmp_path, "run", "--at", at)
        with warehouse.reader(tmp_path) as connection:
            verdicts = connection.execute("SELECT domain, verdict, cut FROM reconcile.receipts").fetchall()
            hours = connection.execute("SELECT log_hour, orders FROM hourly.orders ORDER BY 1").fetchall()
            served = connection.execute("SELECT SUM(orders), ANY_VALUE(served_from) FROM mart.orders").fetchall()
        assert ("orders", "passed", MIDNIGHT) in verdicts
        assert len(verdicts) == len({domain for domain, _, _ in verdicts})
        assert served == [(ORDERS, "live")]
        counts: dict[datetime, int] = {}
        for hour, orders in hours:
            counts[hour] = counts.get(hour, 0) + orders
        logged = [START + (n - (n == 7)) * timedelta(minutes=30) for n in range(1, ORDERS + 1)]
        floors = [at.replace(minute=0) for at in logged]
        assert counts == {hour: floors.count(hour) for hour in floors}
