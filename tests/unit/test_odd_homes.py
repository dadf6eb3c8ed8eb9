"""A home that may not be written, and one whose path DuckDB cannot read: each command says so in one sentence."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from datetime import datetime
from pathlib import Path

import pytest

import commands
from shop import Shop, debezium_lines, land

ROOT = Path(__file__).parents[2]
BIN = Path(sys.executable).parent
COMMANDS = [
    ("lockstep", "run"),
    ("lockstep", "alerts"),
    ("lockstep", "publish"),
    ("lockstep", "ingest", "EVENTS"),
    ("lockstep", "compact"),
    ("lockstep", "simulate", "--days", "1", "--orders-per-day", "1"),
]
SQLMESH = [("sqlmesh", "run"), ("sqlmesh", "plan", "--auto-apply", "--no-prompts"), ("sqlmesh", "environments")]


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    home = tmp_path_factory.mktemp("odd") / "home"
    shop = Shop(datetime(2026, 11, 18, 9))
    shop.order(1)
    land(home, shop.changes)
    shop.order(2)
    events = "".join(f"{line}\n" for change in shop.changes for line in debezium_lines(change))
    (home.parent / "events.jsonl").write_text(events)
    return home


def call(home: Path, *command: str, through: tuple[str, ...] = ()) -> tuple[int, str]:
    words = [str(home.parent / "events.jsonl") if word == "EVENTS" else word for word in command]
    if not through:
        done = commands.call(*words, cwd=ROOT, LOCKSTEP_HOME=str(home))
        return done.returncode, done.stdout + done.stderr
    words[0] = str(BIN / words[0])
    environment = {**os.environ, "LOCKSTEP_HOME": str(home)}
    run = subprocess.run([*through, *words], cwd=ROOT, env=environment, capture_output=True, text=True)
    return run.returncode, run.stdout + run.stderr


def read_only(home: Path) -> tuple[str, ...]:
    """What runs a command with the home mounted read-only, for root too, and for nobody else."""
    mount = f"mount --bind '{home}' '{home}' && mount -o remount,bind,ro '{home}' && exec \"$@\""
    through = ("unshare", "--mount", "sh", "-c", mount, "sh")
    if shutil.which("unshare") is None or subprocess.run([*through, "true"], capture_output=True).returncode:
        pytest.skip("this account may not mount")
    return through


def assert_one_sentence(result: tuple[int, str], *words: str) -> None:
    code, output = result
    assert code == 1, output
    lines = [line for line in output.splitlines() if line.strip()]
    assert len(lines) == 1, output
    assert lines[0].startswith("Error: ")
    for word in words:
        assert word in lines[0]


@pytest.mark.parametrize("command", [*COMMANDS[:4], *SQLMESH[:1]], ids=" ".join)
def test_a_home_that_may_not_be_written(home: Path, command: tuple[str, ...]) -> None:
    assert_one_sentence(call(home, *command, through=read_only(home)), "Read-only file system", str(home))


def test_a_home_that_may_not_be_written_can_be_looked_at(home: Path) -> None:
    code, output = call(home, "lockstep", "status", through=read_only(home))
    assert code == 0, output
    assert "position 1" in output


@pytest.mark.parametrize("character", ["'", ",", "*", "?", "[", "]", "\\", "\n"])
def test_a_path_that_duckdb_cannot_read(home: Path, character: str) -> None:
    odd = home.parent / f"a{character}b"
    assert_one_sentence(call(odd, "lockstep", "status"), repr(str(odd)), "Set LOCKSTEP_HOME to")
    assert not odd.exists()


@pytest.mark.parametrize("command", [*COMMANDS, *SQLMESH], ids=" ".join)
def test_every_command_refuses_such_a_path(home: Path, command: tuple[str, ...]) -> None:
    odd = home.parent / "o'brien, b*[c]"
    assert_one_sentence(call(odd, *command), repr(str(odd)), "Set LOCKSTEP_HOME to")
    assert not odd.exists()
