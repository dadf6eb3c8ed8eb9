"""A throw-away PostgreSQL cluster with the source schema, for tests of what talks to a real server.

Without the server's programs these tests are skipped, but in CI they fail.
"""

from __future__ import annotations

import itertools
import json
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import psycopg2
import pyarrow.parquet as pq
import pytest

from lockstep import capture as capturing
from lockstep.changelog import ChangeLog
from lockstep.postgres import Source
from lockstep.private_postgres import INSTALL, PrivateServer, private_directory, server_programs
from lockstep.schema import SCHEMA_FILE, TABLES, Table
from lockstep.verify import Verified, verify

SCHEMA = Path(__file__).parents[1] / SCHEMA_FILE


class Cluster(PrivateServer):
    """A server of its own in a directory of its own, reached by TCP on a port of its own."""

    def __init__(self, programs: Path, directory: Path) -> None:
        self.port = _free_port()
        super().__init__(programs, directory, {"port": str(self.port), "listen_addresses": "127.0.0.1"})

    def dsn(self, database: str = "shop", user: str = "postgres") -> str:
        return f"postgresql://{user}@127.0.0.1:{self.port}/{database}"

    def restart(self, mode: str = "fast") -> None:
        self.stop(mode)
        self.start()

    def set(self, name: str, value: str) -> None:
        """Change a setting; the server must be restarted for those that ask for it."""
        self.execute(f"ALTER SYSTEM SET {name} = '{value}'", database="postgres")

    def create_shop(self) -> None:
        """A new database `shop` with the source schema; the old one and every slot are dropped."""
        # A capture that has just ended may still be a process of the server's.
        free = "SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots WHERE NOT active"
        end = time.monotonic() + 120
        while self.execute("SELECT 1 FROM pg_replication_slots", database="postgres"):
            assert time.monotonic() < end, "a test before this one has left a capture running"
            self.execute(free, database="postgres")
            time.sleep(0.02)
        self.execute("DROP DATABASE IF EXISTS shop WITH (FORCE)", database="postgres")
        self.execute("CREATE DATABASE shop", database="postgres")
        self.execute(SCHEMA.read_text())

    def execute(self, statement: str, parameters: Sequence[Any] = (), database: str = "shop") -> list[tuple[Any, ...]]:
        """Run in autocommit; the rows, if there are any."""
        with closing(psycopg2.connect(self.dsn(database))) as connection:
            connection.autocommit = True
            with connection.cursor() as cursor:
                cursor.execute(statement, parameters or None)
                return cursor.fetchall() if cursor.description else []


def required_programs() -> Path:
    """The directory of the server's programs. Without it the calling test is skipped; in CI it fails.

    LOCKSTEP_TEST_POSTGRES names another directory, to test with another version of PostgreSQL.
    """
    if chosen := os.environ.get("LOCKSTEP_TEST_POSTGRES"):
        if not (Path(chosen) / "initdb").exists():
            pytest.fail(f"LOCKSTEP_TEST_POSTGRES={chosen} has no initdb: name the directory of PostgreSQL's programs")
        return Path(chosen)
    programs = server_programs()
    if programs is None:
        message = f"PostgreSQL's server is not installed: {INSTALL}"
        if os.environ.get("CI"):
            pytest.fail(message)
        pytest.skip(message)
    return programs


@contextmanager
def own_cluster() -> Iterator[Cluster]:
    """A running server that nobody else uses."""
    programs = required_programs()
    with private_directory() as directory:
        server = Cluster(programs, directory)
        server.start()
        try:
            yield server
        finally:
            server.close()


@contextmanager
def lagging_standby(primary: Cluster) -> Iterator[Cluster]:
    """A standby of `primary` that will never receive more than what is there now. `promote` starts it."""
    with private_directory() as directory:
        standby = Cluster(required_programs(), directory)
        data = directory / "data"
        shutil.rmtree(data)
        address = ["-h", "127.0.0.1", "-p", str(primary.port), "-U", "postgres"]
        standby._run("pg_basebackup", "-D", str(data), "-X", "fetch", "-c", "fast", *address)
        with (data / "postgresql.conf").open("a") as file:
            file.write(f"port = {standby.port}\nunix_socket_directories = '{directory}'\n")
        (data / "standby.signal").touch()
        try:
            yield standby
        finally:
            standby.close()


def promote(standby: Cluster) -> None:
    standby.start()
    standby.execute("SELECT pg_promote()", database="postgres")
    wait_until(lambda: not standby.execute("SELECT pg_is_in_recovery()", database="postgres")[0][0])


@pytest.fixture(scope="session")
def cluster() -> Iterator[Cluster]:
    """One running server for all tests."""
    with own_cluster() as server:
        yield server


@pytest.fixture
def shop(cluster: Cluster) -> Cluster:
    """The running server with a fresh database `shop`: the source schema, empty, no slots."""
    cluster.create_shop()
    return cluster


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@contextmanager
def running_capture(server: Cluster, home: Path, look_every: float) -> Iterator[subprocess.Popen[str]]:
    """`lockstep capture` as a process, once it follows the stream; `look_every` is its `_LOOK_EVERY`."""
    program = f"import lockstep.capture, lockstep.cli; lockstep.capture._LOOK_EVERY = {look_every}; lockstep.cli.main()"
    process = subprocess.Popen(
        [sys.executable, "-c", program, "capture", server.dsn(), "--trigger", "50ms"],
        env={**os.environ, "LOCKSTEP_HOME": str(home)},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    try:
        log = ChangeLog(home)
        wait_until(lambda: log.exists() and log.watermark().resume.get("snapshot") == "complete")
        wait_until(lambda: bool(server.execute("SELECT 1 FROM pg_replication_slots WHERE active")))
        yield process
    finally:
        process.kill()
        process.communicate()
        wait_until(lambda: not server.execute("SELECT 1 FROM pg_replication_slots WHERE active"))


def wait_until(condition: Callable[[], object], seconds: float = 120.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not happen in time"
        time.sleep(0.02)


def capture(server: Cluster, home: Path, **options: Any) -> capturing.Captured:
    """Land everything that is committed by now."""
    return capturing.capture(home, Source(server.dsn()), 0.05, until_caught_up=True, **options)


def verified(server: Cluster, home: Path) -> Verified:
    """What `lockstep verify-source` finds while a capture goes on."""
    with ThreadPoolExecutor(1) as thread:
        verifying = thread.submit(verify, home, server.dsn(), [], 60, 10, lambda _: None)
        while not verifying.done():
            capture(server, home)
        return verifying.result()


def assert_log_is_source(cluster: Cluster, home: Path) -> None:
    """The live images of the log are the rows of the source, every column of every table; the log is sound.

    Sound: positions run 1, 2, 3, ... over all tables, `logged_at` never decreases, and the before image of each change
    is the image that the change before it on that key left.
    """
    positions: list[tuple[int, datetime]] = []
    for table in TABLES.values():
        live: dict[tuple[Any, ...], dict[str, Any]] = {}
        for change in landed(home, table.name):
            positions.append((change["position"], change["logged_at"]))
            before, after = change["before"], change["after"]
            key = tuple((after or before)[k] for k in table.key)
            assert live.pop(key, None) == before, f"{table.name}: the chain of key {key} breaks at {change}"
            if after:
                live[key] = after
        assert _rounded(live.values()) == _rounded(_source_rows(cluster, table)), table.name
    quarantined = [(e["position"], datetime.fromisoformat(e["logged_at"])) for e in ChangeLog(home).quarantined()]
    ordered = sorted({*positions, *quarantined})
    assert [p for p, _ in ordered] == list(range(1, ChangeLog(home).watermark().position + 1))
    assert all(a <= b for (_, a), (_, b) in itertools.pairwise(ordered))


def landed(home: Path, table: str) -> list[dict[str, Any]]:
    """The visible changes of a table in position order."""
    files = ChangeLog(home).files(table)
    rows = [row for f in files for row in pq.read_table(f, partitioning=None).to_pylist()]
    return sorted(rows, key=lambda row: row["position"])


def _source_rows(cluster: Cluster, table: Table) -> list[dict[str, Any]]:
    columns = [name for (name,) in cluster.execute(_COLUMNS, (table.name,))]
    known = [c.name for c in table.columns]
    rows = []
    for values in cluster.execute(f"SELECT {', '.join(columns)} FROM {table.name}"):
        row = dict(zip(columns, values, strict=True))
        image = {name: row.pop(name) for name in known}
        for name, value in image.items():
            if isinstance(value, datetime):
                image[name] = value.astimezone(UTC).replace(tzinfo=None)
        extra = json.dumps(row, sort_keys=True, separators=(",", ":"), ensure_ascii=False) if row else None
        rows.append(image | {"extra": extra})
    return rows


_COLUMNS = "SELECT column_name FROM information_schema.columns WHERE table_name = %s ORDER BY ordinal_position"


def _rounded(images: Iterable[dict[str, Any]]) -> list[str]:
    """Images in an order of their own; a `real` as what it is in 32 bits, however many digits say so."""
    return sorted(
        str({name: float(np.float32(v)) if name == "speed_kmh" else v for name, v in image.items()}) for image in images
    )
