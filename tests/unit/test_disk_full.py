"""The disk is full at one write or another of a landing: one sentence, and the same command lands everything later."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from datetime import datetime
from pathlib import Path

import duckdb
import pytest

from lockstep.changelog import ChangeLog
from shop import Shop, debezium_lines, land

LOCKSTEP = Path(sys.executable).with_name("lockstep")
ORDERS = 3_000

# A file system of its own, which only these commands see, and which grows in between.
SCRIPT = """
mount -t tmpfs -o size=1g tmpfs "$LOCKSTEP_HOME" || exit 77
cp -a "$HOME_BEFORE"/. "$LOCKSTEP_HOME" || exit 77
used=$(df -k --output=used "$LOCKSTEP_HOME" | tail -1)
mount -o remount,size=$(( $used + $FREE_KB ))k "$LOCKSTEP_HOME" || exit 77
"$LOCKSTEP" ingest "$EVENTS" >"$RESULT/first" 2>&1
echo $? >"$RESULT/code"
mount -o remount,size=1g "$LOCKSTEP_HOME" || exit 77
"$LOCKSTEP" ingest "$EVENTS" >"$RESULT/second" 2>&1 || exit 1
cp -a "$LOCKSTEP_HOME" "$RESULT/home"
"""


@pytest.mark.parametrize("free_kb", [0, 8, 20, 36])
def test_landing_on_a_full_disk(tmp_path: Path, free_kb: int) -> None:
    if shutil.which("unshare") is None or subprocess.run(["unshare", "--mount", "true"]).returncode:
        pytest.skip("this account may not mount")
    shop = Shop(datetime(2026, 11, 18, 9))
    shop.order(0)
    land(tmp_path / "before", shop.changes)
    for key in range(1, ORDERS):
        shop.order(key, amount_cents=key * 7919 % 100_003)
    lines = (line for change in shop.changes for line in debezium_lines(change))
    (tmp_path / "events.jsonl").write_text("\n".join(lines) + "\n")
    for name in ("home", "result"):
        (tmp_path / name).mkdir()
    environment = {
        "LOCKSTEP": str(LOCKSTEP),
        "LOCKSTEP_HOME": str(tmp_path / "home"),
        "HOME_BEFORE": str(tmp_path / "before"),
        "EVENTS": str(tmp_path / "events.jsonl"),
        "RESULT": str(tmp_path / "result"),
        "FREE_KB": str(free_kb),
    }
    done = subprocess.run(["unshare", "--mount", "sh", "-c", SCRIPT], env={**os.environ, **environment})

    result = tmp_path / "result"
    said = (result / "first").read_text()
    assert (result / "code").read_text() == "1\n", said
    [sentence] = [line for line in said.splitlines() if line.startswith("Error: ")]
    assert "full" in sentence
    assert "Traceback" not in said
    assert done.returncode == 0, (result / "second").read_text()
    log = ChangeLog(result / "home")
    assert log.watermark().position == ORDERS
    files = f"read_parquet('{log.root}/orders/hour=*/*.parquet', hive_partitioning = false)"
    [row] = duckdb.sql(f"SELECT COUNT(*), COUNT(DISTINCT position), SUM(after.amount_cents) FROM {files}").fetchall()
    assert row == (ORDERS, ORDERS, sum(order["amount_cents"] for order in shop.rows["orders"].values()))
