"""One writer at a time, by hand against lockstep: who comes second is told who is at work, and nothing is touched.

Cases: SQLMesh's commands during a run, commands that need no file, two by hand, lockstep after one by hand, a holder
that was killed.
"""

from __future__ import annotations

import hashlib
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path

import duckdb
import pytest

from lockstep import onewriter
from shop import Shop, land

ROOT = Path(__file__).parents[1]
BIN = Path(sys.executable).parent

# What a run does to the home, for as long as its standard input is open.
RUN = """
import duckdb, sys
from contextlib import ExitStack
from pathlib import Path
from lockstep.lock import exclusive
home, takes_lock = Path(sys.argv[1]), sys.argv[2] == "lockstep"
with ExitStack() as stack:
    if takes_lock:
        stack.enter_context(exclusive(home / "warehouse.lock", "running the models"))
    files = [duckdb.connect(str(home / name)) for name in sys.argv[3:]]
    print("ready", flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home with a change and with files that a plan has not filled yet."""
    monkeypatch.setenv("LOCKSTEP_HOME", str(tmp_path))
    shop = Shop(datetime(2026, 11, 18, 9))
    shop.order(1)
    land(tmp_path, shop.changes)
    for name in ("warehouse.duckdb", "state.duckdb"):
        with duckdb.connect(str(tmp_path / name)) as connection:
            connection.execute("CREATE TABLE kept AS SELECT 1 AS n")
    return tmp_path


@contextmanager
def running(home: Path, kind: str, *files: str) -> Iterator[subprocess.Popen[str]]:
    command = [sys.executable, "-c", RUN, str(home), kind, *files]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        yield process


def call(*command: str) -> tuple[int, str]:
    done = subprocess.run([BIN / command[0], *command[1:]], cwd=ROOT, capture_output=True, text=True, timeout=120)
    return done.returncode, done.stdout + done.stderr


def files_of(home: Path) -> dict[str, str]:
    return {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in home.glob("*.duckdb*")}


def assert_says(output: tuple[int, str], pid: int, *words: str) -> None:
    code, text = output
    assert code == 1, text
    assert "Traceback" not in text
    for word in (f"process {pid} (", "nothing was written", *words):
        assert word in text


def test_sqlmesh_during_a_run(home: Path) -> None:
    with running(home, "lockstep", "warehouse.duckdb", "state.duckdb") as run:
        before = files_of(home)
        assert_says(call("sqlmesh", "plan", "--auto-apply", "--no-prompts"), run.pid, "since", "running the models")
        assert_says(call("lockstep", "run"), run.pid, "since", "running the models")
        code, output = call("sqlmesh", "run")  # loads no project, so DuckDB has to refuse it, in its own words
        assert code == 1
        assert f"PID {run.pid}" in output
        for command in (("lint",), ("format", "--check"), ("test", "-k", "no_such_test")):
            code, output = call("sqlmesh", *command)
            assert code == 0, output
        assert files_of(home) == before
        os.kill(run.pid, signal.SIGKILL)
        run.wait()
    code, output = call("sqlmesh", "info")  # the dead hold nothing
    assert "State backend connection succeeded" in " ".join(output.split()), output


def test_by_hand_against_by_hand_and_lockstep_after_it(home: Path) -> None:
    with running(home, "by hand", "state.duckdb", "warehouse.duckdb") as run:
        before = files_of(home)
        assert_says(call("sqlmesh", "plan", "--auto-apply", "--no-prompts"), run.pid, "state.duckdb is in use by")
        assert_says(call("lockstep", "run"), run.pid, "warehouse.duckdb is in use by")
        assert files_of(home) == before


def test_lockstep_while_one_by_hand_has_only_its_state_open(home: Path) -> None:
    with running(home, "by hand", "state.duckdb") as run:
        before = files_of(home)
        assert_says(call("lockstep", "run"), run.pid, "state.duckdb is in use by")
        assert files_of(home) == before


def test_other_errors_keep_their_words(tmp_path: Path) -> None:
    path = tmp_path / "broken.duckdb"
    path.write_bytes(b"no database " * 1000)
    with pytest.raises(duckdb.IOException) as raised:
        duckdb.connect(str(path))
    assert onewriter.in_use(path, raised.value) is None
