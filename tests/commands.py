"""Command lines in processes of their own, without the seconds that each would take to import SQLMesh.

`call("sqlmesh", "plan", cwd=project)` forks a process off one that has imported SQLMesh, but nothing of Lockstep's, and
calls the command's entry point in it. It is a real process, with its own id, working directory and environment.
"""

from __future__ import annotations

import gc
import multiprocessing
import os
import sys
import tempfile
from importlib.metadata import entry_points
from pathlib import Path
from subprocess import CompletedProcess

import one_cache  # noqa: F401

_forking = multiprocessing.get_context("forkserver")
# Not sqlmesh.cli.main: it remembers the working directory that it was imported in.
_forking.set_forkserver_preload(["sqlmesh", "pandas", "pyarrow.parquet"])


def call(*words: str, cwd: Path, timeout: float = 600, **environment: str) -> CompletedProcess[str]:
    """Run a command and wait for its end, with this process's environment overridden by `environment`.

    Past `timeout` it is killed: that only stops what hangs.
    """
    with tempfile.TemporaryDirectory(prefix="lockstep-call-") as directory:
        streams = Path(directory, "stdout"), Path(directory, "stderr")
        process = _forking.Process(target=_run, args=(words, str(cwd), dict(os.environ) | environment, streams))
        process.start()
        process.join(timeout)
        if process.exitcode is None:
            process.kill()
            process.join()
        assert process.exitcode is not None
        return CompletedProcess(words, process.exitcode, *(path.read_text(encoding="utf-8") for path in streams))


def _run(words: tuple[str, ...], cwd: str, environment: dict[str, str], streams: tuple[Path, Path]) -> None:
    for number, path in enumerate(streams, start=1):
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND), number)
    os.chdir(cwd)
    os.environ.clear()
    os.environ.update(environment)
    sys.argv = list(words)
    gc.freeze()
    gc.set_threshold(1_000_000, 20, 20)  # see conftest.py
    [command] = set(entry_points(group="console_scripts", name=words[0]))
    sys.exit(command.load()())
