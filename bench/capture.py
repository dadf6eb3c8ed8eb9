"""Measure `lockstep capture` against a PostgreSQL on the same machine: backlog, freshness, memory.

    .venv/bin/python bench/capture.py [CHANGES]

Backlog: CHANGES (default 600,000) updates, inserts and deletes wait in the slot; how fast do they become durable
Parquet, and how fast does `pg_recvlogical` read the same from the same point to /dev/null. The process's start is left
out, and printed. One transaction: the same in a single transaction. Freshness: at 1,000 changes/s, the time from a
commit to the watermark that holds it. Prints JSON; seconds, changes per second, megabytes.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from contextlib import closing
from pathlib import Path

import psycopg2

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))

from lockstep.changelog import ChangeLog
from lockstep.postgres import parse_lsn
from postgres import Cluster, server_programs

LOCKSTEP = Path(sys.executable).with_name("lockstep")
RATE, FRESHNESS_SECONDS = 1_000, 20
_ORDERS = """
INSERT INTO orders SELECT g, g % 1000, g % 250, 'north', 1, 100 + g % 1000, 'new', now(), now()
FROM generate_series({first}, {last}) AS g
"""


def main(changes: int) -> None:
    programs = server_programs()
    assert programs, "PostgreSQL's server is not installed: apt-get install postgresql"
    results = {}
    with tempfile.TemporaryDirectory(prefix="lockstep-bench-") as name:
        directory = Path(name)
        directory.chmod(0o755)
        if os.geteuid() == 0:
            shutil.chown(directory, "postgres")
        server = Cluster(programs, directory)
        server.start()
        try:
            results["backlog"] = _backlog(server, directory, changes, per_transaction=100)
            results["one_transaction"] = _backlog(server, directory, changes, per_transaction=changes)
            for trigger in ("1s", "200ms"):
                results[f"freshness_{trigger}"] = _freshness(server, directory, trigger)
        finally:
            server.stop("immediate")
    print(json.dumps(results, indent=2))


def _backlog(server: Cluster, directory: Path, changes: int, per_transaction: int) -> dict[str, float]:
    server.create_shop()
    home = directory / f"home-{per_transaction}"
    _capture(server, home, "--until-caught-up")
    # What a capture costs that finds nothing to do: starting Python, connecting, checking.
    start_seconds = min(_capture(server, home, "--until-caught-up")[0] for _ in range(3))
    # A second slot at the same point, so that both readers decode exactly the same.
    server.execute("SELECT pg_create_logical_replication_slot('baseline', 'pgoutput')")
    _write(server, changes, per_transaction)
    [(end,)] = server.execute("SELECT pg_current_wal_flush_lsn()")
    baseline_seconds = _pg_recvlogical(server, end)
    seconds, megabytes, printed = _capture(server, home, "--until-caught-up")
    captured = ChangeLog(home).watermark().position
    assert captured == changes, (captured, printed)
    return {
        "changes": changes,
        "changes_per_second": round(changes / (seconds - start_seconds)),
        "start_seconds": round(start_seconds, 2),
        "pg_recvlogical_changes_per_second": round(changes / baseline_seconds),
        "share_of_pg_recvlogical": round(baseline_seconds / (seconds - start_seconds), 2),
        "peak_rss_mb": megabytes,
    }


def _write(server: Cluster, changes: int, per_transaction: int) -> None:
    """A third each inserts, updates and deletes of orders, with both images."""
    with closing(psycopg2.connect(server.dsn())) as connection, connection.cursor() as cursor:
        rows = per_transaction // 3
        written = 0
        while written < changes:
            rows = min(rows, max(1, (changes - written) // 3))
            first, last = written + 1, written + rows
            cursor.execute(_ORDERS.format(first=first, last=last))
            cursor.execute(f"UPDATE orders SET status = 'complete' WHERE order_id BETWEEN {first} AND {last}")
            cursor.execute(f"DELETE FROM orders WHERE order_id BETWEEN {first} AND {last}")
            written += 3 * rows
            if written + 3 > changes:
                cursor.execute(_ORDERS.format(first=written + 1, last=changes))
                written = changes
            connection.commit()


def _pg_recvlogical(server: Cluster, end: str) -> float:
    command = ["pg_recvlogical", "-d", server.dsn(), "--slot=baseline", "--start", "-f", "/dev/null", f"--endpos={end}"]
    options = ["-o", "proto_version=1", "-o", "publication_names=lockstep", "--no-loop"]
    started = time.monotonic()
    subprocess.run([*command, *options], check=True)
    return time.monotonic() - started


def _capture(server: Cluster, home: Path, *options: str) -> tuple[float, float, str]:
    """Seconds, peak memory in megabytes and output of a run of its own process."""
    started = time.monotonic()
    process = subprocess.Popen(
        [LOCKSTEP, "capture", server.dsn(), *options],
        env={**os.environ, "LOCKSTEP_HOME": str(home)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert process.stdout
    printed = process.stdout.read()
    _, status, usage = os.wait4(process.pid, 0)
    assert status == 0, printed
    return time.monotonic() - started, round(usage.ru_maxrss / 1024), printed


def _freshness(server: Cluster, directory: Path, trigger: str) -> dict[str, float]:
    server.create_shop()
    home = directory / f"home-{trigger}"
    _capture(server, home, "--until-caught-up")
    follower = subprocess.Popen(
        [LOCKSTEP, "capture", server.dsn(), "--trigger", trigger],
        env={**os.environ, "LOCKSTEP_HOME": str(home)},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    commits: list[tuple[int, float]] = []
    landings: list[tuple[int, float]] = []
    done = threading.Event()

    def watch() -> None:
        log = ChangeLog(home)
        seen = 0
        while not done.is_set():
            lsn = parse_lsn(log.watermark().resume["commit_lsn"])
            if lsn > seen:
                landings.append((lsn, time.monotonic()))
                seen = lsn
            time.sleep(0.005)

    watcher = threading.Thread(target=watch)
    watcher.start()
    with closing(psycopg2.connect(server.dsn())) as connection, connection.cursor() as cursor:
        connection.autocommit = True
        time.sleep(2)
        started = time.monotonic()
        for second in range(FRESHNESS_SECONDS * 10):
            time.sleep(max(0.0, started + second / 10 - time.monotonic()))
            for i in range(RATE // 100):
                first = second * RATE + i * 10 + 1
                cursor.execute(_ORDERS.format(first=first, last=first + 9))
                committed = time.monotonic()
                cursor.execute("SELECT pg_current_wal_insert_lsn()")
                commits.append((parse_lsn(cursor.fetchone()[0]), committed))
    time.sleep(2)
    done.set()
    watcher.join()
    follower.terminate()
    follower.wait()
    delays = []
    at = 0
    for lsn, committed in commits:
        while landings[at][0] < lsn:
            at += 1
        delays.append(landings[at][1] - committed)
    delays.sort()
    return {
        "p50_seconds": round(delays[len(delays) // 2], 3),
        "p99_seconds": round(delays[int(len(delays) * 0.99)], 3),
        "max_seconds": round(delays[-1], 3),
    }


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 600_000)
