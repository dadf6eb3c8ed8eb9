"""A PostgreSQL server of one's own in a directory of its own, for the demo and for tests. It never touches another.

Needs the server's programs (apt package `postgresql`). The server refuses to run as root: root has it run as the
account `postgres`, which the package makes.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from lockstep.errors import LockstepError
from lockstep.leash import Leash

INSTALL = "apt-get install postgresql"
ACCOUNT = "postgres" if os.geteuid() == 0 else None

# A crash of the machine may take such a server with it, so nothing waits for the disk.
_SETTINGS = {
    "wal_level": "logical",
    "max_wal_senders": "10",
    "max_replication_slots": "10",
    "fsync": "off",
    "max_wal_size": "2GB",
    "wal_sender_timeout": "10s",
}


class PrivateServer:
    """Reached by everyone who may enter `directory`, through a socket in it; no password is asked.

    If this process is killed, the server is stopped and its directory removed.
    """

    def __init__(self, programs: Path, directory: Path, settings: Mapping[str, str] | None = None) -> None:
        """Make the cluster in `directory`, which belongs to ACCOUNT, without starting it."""
        self._programs = programs
        self._directory = directory
        end = '"$1" -D "$2/data" -m immediate -w stop; rm -rf "$2"'
        self._leash = Leash(end, str(programs / "pg_ctl"), str(directory), user=ACCOUNT)
        self._run("initdb", "-D", self._data, "-U", "postgres", "--auth=trust", "-E", "UTF8", "--no-sync")
        local = {"listen_addresses": "", "unix_socket_directories": str(directory)}
        with (directory / "data" / "postgresql.conf").open("a") as file:
            file.writelines(
                f"{name} = '{value}'\n" for name, value in {**_SETTINGS, **local, **(settings or {})}.items()
            )

    @property
    def _data(self) -> str:
        return str(self._directory / "data")

    def dsn(self, database: str) -> str:
        return f"postgresql://postgres@/{database}?host={self._directory}"

    def start(self) -> None:
        self._run("pg_ctl", "-D", self._data, "-l", str(self._directory / "log"), "-w", "start")

    def stop(self, mode: str = "fast") -> None:
        """Stop the server; `immediate` is its crash."""
        self._run("pg_ctl", "-D", self._data, "-m", mode, "-w", "stop")

    def close(self) -> None:
        """Stop the server at once if it runs, also where a start or a stop was interrupted."""
        if (self._directory / "data" / "postmaster.pid").exists():
            self.stop("immediate")
        self._leash.drop()

    def _run(self, program: str, *arguments: str) -> None:
        # A server that inherits a pipe would keep its reader waiting for ever: only initdb, which ends, gets one.
        ends = program == "initdb"
        done = subprocess.run(
            [self._programs / program, *arguments],
            user=ACCOUNT,
            cwd="/",
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE if ends else subprocess.DEVNULL,
            stderr=subprocess.STDOUT if ends else subprocess.DEVNULL,
            text=True,
        )
        if done.returncode:
            log = self._directory / "log"
            said = done.stdout if ends else log.read_text()[-1000:] if log.exists() else ""
            raise LockstepError(f"PostgreSQL's {program} failed: {said}")


@contextmanager
def private_directory() -> Iterator[Path]:
    """A temporary directory that only ACCOUNT (and root) may enter."""
    with tempfile.TemporaryDirectory(prefix="lockstep-postgres-", ignore_cleanup_errors=True) as name:
        directory = Path(name)
        if ACCOUNT:
            try:
                shutil.chown(directory, ACCOUNT)
            except LookupError:
                raise LockstepError(
                    f"PostgreSQL does not run as root, and there is no account {ACCOUNT} to run it as. Be another "
                    f"user, or make the account: useradd --system {ACCOUNT}"
                ) from None
        yield directory


def server_programs() -> Path | None:
    """Where the server's programs are, by PATH, pg_config or the usual places; None if nowhere."""
    candidates = [Path(found).resolve().parent for found in (shutil.which("initdb"),) if found]
    if config := shutil.which("pg_config"):
        candidates.append(Path(subprocess.check_output([config, "--bindir"], text=True).strip()))
    usual = Path("/usr/lib/postgresql").glob("[0-9]*/bin")
    candidates += sorted(usual, key=lambda path: float(path.parent.name), reverse=True)
    return next((c for c in candidates if (c / "pg_ctl").exists() and (c / "initdb").exists()), None)
