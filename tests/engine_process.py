"""`lockstep ingest debezium:FILE` as a process: start it, wait for rows, stop it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from lockstep.changelog import ChangeLog

FIXTURES = Path(__file__).parent / "fixtures" / "debezium_engine"
LOCKSTEP = str(Path(sys.executable).with_name("lockstep"))


def start(home: Path, engine: Path, project: Path | None = None) -> subprocess.Popen[str]:
    program = [sys.executable, str(FIXTURES / "record.py")] if "LOCKSTEP_RECORD" in os.environ else [LOCKSTEP]
    return subprocess.Popen(
        [*program, "ingest", f"debezium:{engine}", "--json"],
        cwd=project,
        env={**os.environ, "LOCKSTEP_HOME": str(home)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def stop(process: subprocess.Popen[str]) -> dict[str, Any]:
    process.send_signal(signal.SIGTERM)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 0, err
    return dict(json.loads(out))


def await_rows(process: subprocess.Popen[str], home: Path, count: int) -> None:
    given_up = time.monotonic() + 60
    while not ChangeLog(home).exists() or ChangeLog(home).watermark().position < count:
        assert process.poll() is None, process.stderr and process.stderr.read()
        assert time.monotonic() < given_up, ChangeLog(home).exists() and ChangeLog(home).watermark()
        time.sleep(0.1)
