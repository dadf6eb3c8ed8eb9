"""The disk is full while the models run: one sentence, nothing landed or proven is lost, and the next run goes on."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from datetime import timedelta
from pathlib import Path

import duckdb
import pytest

from company import UNTIL, two_days
from lockstep import warehouse
from lockstep.changelog import ChangeLog
from shop import Shop, land

__all__ = ["two_days"]  # a fixture

LOCKSTEP = Path(sys.executable).with_name("lockstep")

# A file system of its own, which only these commands see, and which grows in between.
SCRIPT = """
mount -t tmpfs -o size=2g tmpfs "$LOCKSTEP_HOME" || exit 77
cp -a "$HOME_BEFORE"/. "$LOCKSTEP_HOME" || exit 77
used=$(df -k --output=used "$LOCKSTEP_HOME" | tail -1)
mount -o remount,size=$(( $used + 400 ))k "$LOCKSTEP_HOME" || exit 77
"$LOCKSTEP" run >"$RESULT/first" 2>&1
echo $? >"$RESULT/code"
mount -o remount,size=2g "$LOCKSTEP_HOME" || exit 77
"$LOCKSTEP" run >"$RESULT/second" 2>&1 || exit 1
cp -a "$LOCKSTEP_HOME" "$RESULT/home"
"""


@pytest.mark.long
def test_running_on_a_full_disk(two_days: Path, tmp_path: Path) -> None:
    if shutil.which("unshare") is None or subprocess.run(["unshare", "--mount", "true"]).returncode:
        pytest.skip("this account may not mount")
    shutil.copytree(two_days, tmp_path / "before", symlinks=True)
    shop = Shop(UNTIL)
    for key in range(1_000_000, 1_000_100):
        shop.order(key)
    land(tmp_path / "before", shop.changes, reached=UNTIL + timedelta(days=1))
    for name in ("home", "result"):
        (tmp_path / name).mkdir()
    environment = {
        "LOCKSTEP": str(LOCKSTEP),
        "LOCKSTEP_HOME": str(tmp_path / "home"),
        "HOME_BEFORE": str(tmp_path / "before"),
        "RESULT": str(tmp_path / "result"),
    }
    done = subprocess.run(["unshare", "--mount", "sh", "-c", SCRIPT], env={**os.environ, **environment})

    result = tmp_path / "result"
    said = (result / "first").read_text()
    assert (result / "code").read_text() == "1\n", said
    assert "No space left on device" in said or "disk is full" in said
    assert "Traceback" not in said
    assert done.returncode == 0, (result / "second").read_text()
    home = result / "home"
    log = ChangeLog(home)
    files = f"read_parquet('{log.root}/orders/hour=*/*.parquet', hive_partitioning = false)"
    last = "ROW_NUMBER() OVER (PARTITION BY COALESCE(after.order_id, before.order_id) ORDER BY position DESC) = 1"
    recounted = f"SELECT COUNT(after), SUM(after.amount_cents) FROM (FROM {files} QUALIFY {last})"
    with warehouse.reader(home) as connection:
        served = connection.execute("SELECT SUM(orders), SUM(revenue_cents) FROM live.orders").fetchall()
        verdicts = connection.execute("SELECT DISTINCT verdict FROM reconcile.receipts").fetchall()
    assert served == duckdb.execute(recounted).fetchall()
    assert verdicts == [("passed",)]
