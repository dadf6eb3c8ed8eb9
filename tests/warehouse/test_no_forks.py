"""No command forks workers: a forked worker outlives a killed parent, and keeps the lock and files that it inherited.

SQLMesh forks in two places: when it loads the project, and when it reads snapshots from its state, which `sqlmesh run`
does without loading the project. Each is tried in a process of its own, where `os.fork` ends the process. Without
workers SQLMesh would read the optimized query of every model in the state twice.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from datetime import datetime
from pathlib import Path

import pytest
from ruamel.yaml import YAML

from shop import Shop, land

ROOT = Path(__file__).parents[2]

# `subprocess` does not call `os.fork`: programs that inherit nothing may be started.
SQLMESH = """
import os, sys
os.sched_getaffinity = lambda pid: set(range(8))  # SQLMesh forks only where there are several processors
def fork():
    sys.stderr.write("forked\\n")
    sys.stderr.flush()
    os._exit(99)
os.fork = fork
from sqlmesh.cli.main import cli
from sqlmesh.utils.cache import FileCache
get = FileCache.get
def said(self, name, entry_id=""):
    sys.stderr.write(f"reads {self._cache_entry_path(name, entry_id)}\\n")
    return get(self, name, entry_id)
FileCache.get = said
cli()
"""


def sqlmesh_without_fork(project: Path, home: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", SQLMESH, *arguments],
        cwd=project,
        env={**os.environ, "LOCKSTEP_HOME": str(home)},
        capture_output=True,
        text=True,
    )


def test_loading_the_project_without_its_cache(tmp_path: Path) -> None:
    shop = Shop(datetime(2026, 11, 18, 9))
    shop.order(1)
    land(tmp_path, shop.changes)
    done = sqlmesh_without_fork(ROOT, tmp_path, "render", "mart.orders_daily")
    assert done.returncode == 0, done.stdout + done.stderr


def test_reading_snapshots_from_the_state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Under our config.yaml, with one model in place of ours: to plan all of them takes too long."""
    config = YAML(typ="safe").load(ROOT / "config.yaml")
    del config["before_all"], config["after_all"], config["linter"]
    YAML().dump(config, tmp_path / "config.yaml")
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / "one.sql").write_text("MODEL (name mart.one, kind FULL, start '2026-01-01'); SELECT 1 AS n")
    home = tmp_path / "data"
    home.mkdir()
    monkeypatch.setenv("LOCKSTEP_HOME", str(home))
    plan = [Path(sys.executable).with_name("sqlmesh"), "plan", "--auto-apply", "--no-prompts"]
    subprocess.run(plan, cwd=tmp_path, check=True, capture_output=True)
    shutil.rmtree(home / ".cache")
    done = sqlmesh_without_fork(tmp_path, home, "run")
    assert done.returncode == 0, done.stdout + done.stderr
    reads = [line for line in done.stderr.splitlines() if line.startswith("reads ")]
    assert reads and not [line for line in reads if "optimized_query" in line]
