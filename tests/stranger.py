"""A stranger's database taken from nothing to a proven copy, by the commands that the documentation names."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from lockstep.changelog import ChangeLog
from postgres import Cluster

LOCKSTEP = str(Path(sys.executable).with_name("lockstep"))
ROOT = Path(__file__).parents[1]


class Stranger:
    """A project in a directory of its own for the database `shop` of a server."""

    def __init__(self, server: Cluster, directory: Path) -> None:
        self.server = server
        self.project = directory / "project"
        self.home = directory / "home"

    def init(self, *options: str) -> None:
        """Declare the database's tables, do what the report asks for, and see that nothing more is asked for."""
        said = self.command("init", str(self.project), "--from", self.server.dsn(), *options, at=ROOT)
        self.server.execute(said.partition("the server needs:\n")[2].partition("To be filled in")[0])
        assert "The server is ready" in self.command(
            "init", str(self.project), "--from", self.server.dsn(), *options, at=ROOT
        )

    @contextmanager
    def capturing(self) -> Iterator[subprocess.Popen[bytes]]:
        """`lockstep capture` in the project, once its snapshot has landed. It is killed at the end."""
        process = subprocess.Popen(
            [LOCKSTEP, "capture", self.server.dsn(), "--trigger", "50ms"],
            cwd=self.project,
            env=self._environment(),
            stdout=subprocess.DEVNULL,
        )
        try:
            end = time.monotonic() + 120
            log = ChangeLog(self.home)
            while not log.exists() or log.watermark().resume.get("snapshot") != "complete":
                assert process.poll() is None and time.monotonic() < end, "the capture did not begin"
                time.sleep(0.05)
            yield process
        finally:
            process.kill()
            process.wait()

    def wait_for(self, changes: int) -> None:
        """Until so many changes have landed in all."""
        end = time.monotonic() + 120
        while ChangeLog(self.home).watermark().position < changes:
            assert time.monotonic() < end, "the changes did not land"
            time.sleep(0.05)

    def verify(self) -> str:
        """Prove that the log is the database; a capture must be running."""
        return self.command("verify-source", self.server.dsn(), "--timeout", "2min", at=self.project)

    def command(self, *arguments: str, at: Path) -> str:
        done = subprocess.run(
            [LOCKSTEP, *arguments], cwd=at, env=self._environment(), capture_output=True, text=True, timeout=300
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def _environment(self) -> dict[str, str]:
        return {**os.environ, "LOCKSTEP_HOME": str(self.home)}


def program(server: Cluster, name: str, arguments: Sequence[str]) -> subprocess.Popen[bytes]:
    """One of PostgreSQL's own programs, started on the database `shop`."""
    return subprocess.Popen([server._programs / name, *arguments, server.dsn()], stderr=subprocess.DEVNULL)
