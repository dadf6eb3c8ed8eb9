"""A stranger's database taken from nothing to a proven copy, by the commands that the documentation names."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import duckdb

from lockstep.changelog import ChangeLog
from lockstep.lock import holder
from postgres import Cluster, own_cluster

LOCKSTEP = str(Path(sys.executable).with_name("lockstep"))
SQLMESH = str(Path(sys.executable).with_name("sqlmesh"))
ROOT = Path(__file__).parents[1]


@contextmanager
def server_with(schema: str) -> Iterator[Cluster]:
    """A running server whose database `shop` has nothing but this schema."""
    with own_cluster() as server:
        server.create_shop()
        server.execute(f"DROP SCHEMA public CASCADE; CREATE SCHEMA public; {schema}")
        yield server


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
        """`lockstep capture` in the project, once it has the log and its snapshot has landed; killed at the end."""
        process = subprocess.Popen(
            [LOCKSTEP, "capture", self.server.dsn(), "--trigger", "50ms"],
            cwd=self.project,
            env=self._environment(),
            stdout=subprocess.DEVNULL,
        )
        try:
            end = time.monotonic() + 120
            log = ChangeLog(self.home)
            while (
                not log.exists()
                or log.watermark().resume.get("snapshot") != "complete"
                or holder(self.home / "changelog.lock") is None
            ):
                assert process.poll() is None and time.monotonic() < end, "the capture did not begin"
                time.sleep(0.05)
            yield process
        finally:
            process.kill()
            process.wait()

    def write(self, files: Mapping[str, str]) -> None:
        """Write files of the project; what goes into `seeds/` is added to what is there."""
        for path, text in files.items():
            with (self.project / path).open("a" if path.startswith("seeds/") else "w") as file:
                file.write(text)

    def plan(self) -> None:
        """`sqlmesh plan`, as after a change of the declaration."""
        done = subprocess.run(
            [SQLMESH, "plan", "--auto-apply", "--no-prompts", "--skip-tests"],
            cwd=self.project,
            env=self._environment(),
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stdout + done.stderr

    def run_at(self, at: datetime) -> None:
        """`lockstep run` as of a time, once the log's clock has passed it. No capture may be running."""
        source = ChangeLog(self.home).watermark().source
        assert source
        code = (
            "import sys; from datetime import datetime; from lockstep import operate; "
            "from lockstep.changelog import ChangeLog; from lockstep.project import home; "
            "at = datetime.fromisoformat(sys.argv[1]); log = ChangeLog(home())\n"
            "with log.writer(sys.argv[2]) as writer: writer.land({}, reached=at)\n"
            "result = operate.run(home(), at); assert result.agrees and not result.failures, result"
        )
        done = subprocess.run(
            [sys.executable, "-c", code, str(at), source],
            cwd=self.project,
            env=self._environment(),
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stdout + done.stderr

    def run_next_night(self) -> datetime:
        """Run as of five o'clock tomorrow morning, when everything that has landed is folded; returns the cut."""
        night = datetime.now(UTC).replace(tzinfo=None, hour=5, minute=0, second=0, microsecond=0) + timedelta(days=1)
        self.run_at(night)
        return night.replace(hour=0)

    def rows(self, query: str, file: str = "warehouse.duckdb") -> list[tuple[Any, ...]]:
        """A query on the warehouse, or on another file of the home."""
        with duckdb.connect(self.home / file, read_only=True) as connection:
            connection.execute(f"SET TimeZone = 'UTC'; SET file_search_path = '{self.home}'")
            return connection.execute(query).fetchall()

    def wait_for(self, changes: int) -> None:
        """Until so many changes have landed in all."""
        end = time.monotonic() + 120
        while ChangeLog(self.home).watermark().position < changes:
            assert time.monotonic() < end, "the changes did not land"
            time.sleep(0.05)

    def verify(self) -> str:
        """Prove that the log is the database; a capture must be running."""
        return self.command("verify-source", self.server.dsn(), "--timeout", "2min")

    def command(self, *arguments: str, at: Path | None = None, code: int = 0) -> str:
        """What a command says in the project, or at another place; it must end with this code."""
        done = subprocess.run(
            [LOCKSTEP, *arguments],
            cwd=at or self.project,
            env=self._environment(),
            capture_output=True,
            text=True,
            timeout=300,
        )
        assert done.returncode == code, done.stdout + done.stderr
        return done.stdout + (done.stderr if code else "")

    def _environment(self) -> dict[str, str]:
        return {**os.environ, "LOCKSTEP_HOME": str(self.home)}


def program(server: Cluster, name: str, arguments: Sequence[str]) -> subprocess.Popen[bytes]:
    """One of PostgreSQL's own programs, started on the database `shop`."""
    return subprocess.Popen([server._programs / name, *arguments, server.dsn()], stderr=subprocess.DEVNULL)
