"""Run commands on a file system that is full, and again after it has grown."""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

LOCKSTEP = Path(sys.executable).with_name("lockstep")
CANNOT_MOUNT = 77

# The file system is mounted in a namespace of its own: nothing else on the machine sees it.
SCRIPT = """
mount -t tmpfs -o size=2g tmpfs "$LOCKSTEP_HOME" || exit 77
cp -a "$HOME_BEFORE"/. "$LOCKSTEP_HOME" || exit 77
used=$(df -k --output=used "$LOCKSTEP_HOME" | tail -1)
mount -o remount,size=$(( $used + $FREE_KB ))k "$LOCKSTEP_HOME" || exit 77
"$LOCKSTEP" $COMMAND >"$RESULT/first" 2>&1
echo $? >"$RESULT/code"
mount -o remount,size=2g "$LOCKSTEP_HOME" || exit 77
"$LOCKSTEP" $COMMAND >"$RESULT/second" 2>&1 || exit 1
cp -a "$LOCKSTEP_HOME" "$RESULT/home"
"""


@dataclass(frozen=True)
class Outcome:
    """What the command printed while the disk was full, and the home after the same command on a larger disk."""

    said: str
    home: Path


def run(tmp_path: Path, before: Path, command: list[str], free_kb: int) -> Outcome:
    """Run a command of `lockstep` on a copy of the home `before` with `free_kb` left, and again with plenty.

    The first must exit with 1 and without a stack trace, the second with 0.
    """
    if shutil.which("unshare") is None or subprocess.run(["unshare", "--mount", "true"]).returncode:
        pytest.skip("this account may not mount")
    home, result = tmp_path / "mounted", tmp_path / "result"
    home.mkdir()
    result.mkdir()
    environment = {
        "LOCKSTEP": str(LOCKSTEP),
        "LOCKSTEP_HOME": str(home),
        "HOME_BEFORE": str(before),
        "RESULT": str(result),
        "FREE_KB": str(free_kb),
        "COMMAND": shlex.join(command),
    }
    done = subprocess.run(["unshare", "--mount", "sh", "-c", SCRIPT], env={**os.environ, **environment})
    if done.returncode == CANNOT_MOUNT:
        pytest.skip("this account may not mount")
    said = (result / "first").read_text()
    assert (result / "code").read_text() == "1\n", said
    assert "Traceback" not in said
    assert done.returncode == 0, (result / "second").read_text()
    home.rmdir()
    (result / "home").rename(home)  # a publication reads the log by its whole path
    return Outcome(said, home)
