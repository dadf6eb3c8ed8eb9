"""Measure `lockstep capture` against a PostgreSQL on the same machine: backlog, freshness, memory.

    .venv/bin/python bench/capture.py [--changes 600000] [--runs 3] [MEASURE]...   # backlog, one_transaction, ...

backlog: so many updates, inserts and deletes wait in the slot; how fast do they become durable Parquet, and how fast
does `pg_recvlogical` read the same from the same point to /dev/null. The process's start is left out, and printed.
one_transaction: the same in a single transaction. wide: rows with 1 kB and 10 kB of text that hardly compresses,
inserted and updated in small transactions, in a single one, and read by a snapshot; how much memory does it take.
thirty_columns: the backlog of a table with 8 numeric, 4 uuid, 4 jsonb, 4 timestamp and 10 other columns, a sixth of
`--changes`; then the same changes as Debezium's events by `lockstep ingest`, without its process's start.
resync: a table of `--changes` rows; 1,000 of them changed while the table was not published. Compares the time of
`capture --resync`, without the start of the process, with a COPY of the table to /dev/null.
freshness: at 1,000 changes/s, the time from a commit to the watermark that holds it, and to the first answer of
`live.orders` in the warehouse that counts it, asked by one thread over and over with 50 ms between.

Prints JSON: of each figure the median, the least and the greatest of the runs; seconds, changes per second, megabytes.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import duckdb
import psycopg2

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))

from lockstep.changelog import ChangeLog
from lockstep.postgres import parse_lsn
from postgres import Cluster, server_programs

PROJECT = Path(__file__).parent.parent
LOCKSTEP = Path(sys.executable).with_name("lockstep")
RATE, FRESHNESS_SECONDS = 1_000, 20
_ORDERS = """
INSERT INTO orders SELECT g, g % 1000, g % 250, 'north', 1, 100 + g % 1000, 'new', now(), now()
FROM generate_series({first}, {last}) AS g
"""


_WIDE = """
INSERT INTO products SELECT g, (SELECT string_agg(md5(g || '/' || i), '') FROM generate_series(1, {size} / 32) AS i),
  'tea', g, now() FROM generate_series({first}, {last}) AS g
"""
_THIRTY = """
CREATE TABLE thirty (id bigint PRIMARY KEY, {columns});
ALTER TABLE thirty REPLICA IDENTITY FULL
"""
_THIRTY_TYPES = [
    *8 * ["numeric(18,4)"],
    *4 * ["uuid"],
    *4 * ["jsonb"],
    *2 * ["timestamptz"],
    *2 * ["timestamp"],
    *["bigint", "integer", "smallint", "boolean", "double precision", "date", "text", "varchar(40)", "bytea"],
]
_THIRTY_VALUES = {
    "numeric(18,4)": "(g * 7919 % 1000003) * {i} / 10000.0",
    "uuid": "md5(g || '/{i}')::uuid",
    "jsonb": "jsonb_build_object('id', g, 'tags', jsonb_build_array('a', {i}), 'note', 'n' || g % 97)",
    "timestamptz": "'2026-01-01 10:00+00'::timestamptz + g * interval '1.000013 s'",
    "timestamp": "'2026-01-01 10:00'::timestamp + g * interval '1.000013 s'",
    "bigint": "g * 1000003",
    "integer": "g",
    "smallint": "g % 30000",
    "boolean": "g % 3 = 0",
    "double precision": "g / 7.0",
    "date": "'2026-01-01'::date + (g % 1000)::int",
    "text": "'text ' || g",
    "varchar(40)": "'varchar ' || g % 1000",
    "bytea": "decode(md5(g::text), 'hex')",
}
Figures = dict[str, float]


def main(changes: int, runs: int, wanted: list[str]) -> None:
    programs = server_programs()
    assert programs, "PostgreSQL's server is not installed: apt-get install postgresql"
    measures: dict[str, Callable[[Cluster, Path], Figures]] = {
        "backlog": lambda server, directory: _backlog(server, directory, changes, per_transaction=100),
        "one_transaction": lambda server, directory: _backlog(server, directory, changes, per_transaction=changes),
        "thirty_columns": lambda server, directory: _thirty(server, directory, changes // 6),
        "resync": lambda server, directory: _resync(server, directory, changes),
        "wide_1kB": lambda server, directory: _wide(server, directory, 1_000, 60_000),
        "wide_10kB": lambda server, directory: _wide(server, directory, 10_000, 10_000),
        "freshness_1s": lambda server, directory: _freshness(server, directory, "1s"),
        "freshness_200ms": lambda server, directory: _freshness(server, directory, "200ms"),
    }
    chosen = [name for name in measures if not wanted or name.startswith(tuple(wanted))]
    results: dict[str, list[Figures]] = {name: [] for name in chosen}
    for _ in range(runs):
        for name in chosen:
            with tempfile.TemporaryDirectory(prefix="lockstep-bench-") as scratch:
                directory = Path(scratch)
                directory.chmod(0o755)
                if os.geteuid() == 0:
                    shutil.chown(directory, "postgres")
                server = Cluster(programs, directory)
                server.start()
                try:
                    results[name].append(measures[name](server, directory))
                finally:
                    server.stop("immediate")
    print(json.dumps({name: _summary(found) for name, found in results.items()}, indent=2))


def _summary(runs: list[Figures]) -> dict[str, str | float]:
    """Of each figure its median, with the least and the greatest."""
    summary: dict[str, str | float] = {}
    for figure in runs[0]:
        values = [run[figure] for run in runs]
        middle, low, high = statistics.median(values), min(values), max(values)
        summary[figure] = middle if low == high else f"{middle:g} ({low:g} .. {high:g})"
    return summary


def _backlog(server: Cluster, directory: Path, changes: int, per_transaction: int) -> Figures:
    server.create_shop()
    home = directory / "home"
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


def _thirty(server: Cluster, directory: Path, changes: int) -> Figures:
    server.execute("CREATE DATABASE shop", database="postgres")
    server.execute(_THIRTY.format(columns=", ".join(f"c{i} {kind}" for i, kind in enumerate(_THIRTY_TYPES))))
    project = directory / "project"
    subprocess.run([LOCKSTEP, "init", project, "--from", server.dsn()], check=True, stdout=subprocess.DEVNULL)
    home = directory / "home"
    _capture(server, home, "--until-caught-up", project=project)
    start_seconds = min(_capture(server, home, "--until-caught-up", project=project)[0] for _ in range(3))
    server.execute("SELECT pg_create_logical_replication_slot('baseline', 'pgoutput')")
    values = ", ".join(_THIRTY_VALUES[kind].format(i=i + 1) for i, kind in enumerate(_THIRTY_TYPES))
    for first in range(0, changes // 2, 50):  # half inserts, half updates of them
        last = min(first + 50, changes // 2) - 1
        server.execute(f"INSERT INTO thirty SELECT g, {values} FROM generate_series({first}::bigint, {last}) AS g")
        server.execute(f"UPDATE thirty SET c0 = c0 + 1, c21 = -1 WHERE id BETWEEN {first} AND {last}")
    [(end,)] = server.execute("SELECT pg_current_wal_flush_lsn()")
    baseline_seconds = _pg_recvlogical(server, end)
    seconds, megabytes, printed = _capture(server, home, "--until-caught-up", project=project)
    assert ChangeLog(home).watermark().position == 2 * (changes // 2), printed
    events = directory / "events.jsonl"
    _as_events(server, events, changes // 2)
    ingest_seconds, ingest_megabytes = _ingest(events, directory, project)
    return {
        "changes": changes,
        "changes_per_second": round(changes / (seconds - start_seconds)),
        "pg_recvlogical_changes_per_second": round(changes / baseline_seconds),
        "share_of_pg_recvlogical": round(baseline_seconds / (seconds - start_seconds), 2),
        "peak_rss_mb": megabytes,
        "ingest_events_per_second": round(changes // 2 / ingest_seconds),
        "ingest_peak_rss_mb": ingest_megabytes,
    }


def _resync(server: Cluster, directory: Path, rows: int) -> Figures:
    server.create_shop()
    home = directory / "home"
    server.execute(_ORDERS.format(first=1, last=rows))
    _capture(server, home, "--until-caught-up")
    start_seconds = min(_capture(server, home, "--until-caught-up")[0] for _ in range(3))
    server.execute("ALTER PUBLICATION lockstep DROP TABLE orders")
    server.execute(f"UPDATE orders SET quantity = 9 WHERE order_id % {rows // 1_000} = 0")
    server.execute("ALTER PUBLICATION lockstep ADD TABLE orders")
    started = time.monotonic()
    subprocess.run(["psql", "-q", server.dsn(), "-c", r"\copy orders to /dev/null"], check=True)
    copy_seconds = time.monotonic() - started
    seconds, megabytes, printed = _capture(server, home, "--until-caught-up", "--resync", "orders")
    assert ChangeLog(home).watermark().position >= rows + 1_000, printed
    return {
        "rows": rows,
        "copy_seconds": round(copy_seconds, 2),
        "resync_seconds": round(seconds - start_seconds, 2),
        "times_a_copy": round((seconds - start_seconds) / copy_seconds, 1),
        "peak_rss_mb": megabytes,
    }


def _as_events(server: Cluster, path: Path, rows: int) -> None:
    """The updates of the table's rows as Debezium writes them, one event per line and without schemas."""
    micros = "(EXTRACT(EPOCH FROM c{i}) * 1000000)::bigint"
    encoded = {
        "numeric(18,4)": "c{i}::text",
        "jsonb": "c{i}::text",
        "timestamptz": "to_char(c{i} AT TIME ZONE 'UTC', 'YYYY-MM-DD\"T\"HH24:MI:SS.US\"Z\"')",
        "timestamp": micros,
        "date": "c{i} - date '1970-01-01'",
        "bytea": "encode(c{i}, 'base64')",
    }
    columns = [(f"c{i}", encoded.get(kind, "c{i}").format(i=i)) for i, kind in enumerate(_THIRTY_TYPES)]
    image = "json_build_object('id', id, {})".format(", ".join(f"'{name}', {value}" for name, value in columns))
    with closing(psycopg2.connect(server.dsn())) as connection, connection.cursor() as cursor, path.open("w") as file:
        cursor.execute(f"SELECT id, ({image})::text FROM thirty WHERE id < {rows} ORDER BY id")
        for n, text in cursor:
            source = {"connector": "postgresql", "schema": "public", "table": "thirty"}
            source |= {"ts_ms": 1_767_261_600_000 + n, "txId": n, "lsn": n + 1}
            file.write(f'{{"op": "u", "before": {text}, "after": {text}, "source": {json.dumps(source)}}}\n')


def _ingest(events: Path, directory: Path, project: Path) -> tuple[float, float]:
    """Seconds, less those for one event, and peak memory in megabytes."""
    one = directory / "one.jsonl"
    with events.open() as file:
        one.write_text(file.readline())
    took = []
    for path in (one, events):
        environment = {**os.environ, "LOCKSTEP_HOME": str(directory / f"home-of-{path.stem}")}
        started = time.monotonic()
        process = subprocess.Popen([LOCKSTEP, "ingest", path], cwd=project, env=environment, stdout=subprocess.DEVNULL)
        _, status, usage = os.wait4(process.pid, 0)
        assert status == 0
        took.append(time.monotonic() - started)
    return took[1] - took[0], round(usage.ru_maxrss / 1024)


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


def _capture(server: Cluster, home: Path, *options: str, project: Path = PROJECT) -> tuple[float, float, str]:
    """Seconds, peak memory in megabytes and output of a run of its own process."""
    started = time.monotonic()
    process = subprocess.Popen(
        [LOCKSTEP, "capture", server.dsn(), *options],
        cwd=project,
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


def _wide(server: Cluster, directory: Path, size: int, rows: int) -> Figures:
    """Peak memory over wide rows, each landed as an insert and an update, and read again by a snapshot."""
    figures: Figures = {}
    for name, per_transaction in (("small", 100), ("one", rows)):
        server.create_shop()
        server.execute("ALTER TABLE products ALTER name SET STORAGE EXTERNAL")  # else the server compresses it
        home = directory / name
        _capture(server, home, "--until-caught-up")
        for first in range(1, rows + 1, per_transaction):
            last = first + per_transaction - 1
            server.execute(_WIDE.format(size=size, first=first, last=last))
            server.execute(f"UPDATE products SET price_cents = 7 WHERE product_id BETWEEN {first} AND {last}")
        seconds, megabytes, printed = _capture(server, home, "--until-caught-up")
        assert ChangeLog(home).watermark().position == 2 * rows, printed
        figures[f"peak_rss_mb_{name}_transactions" if name == "small" else "peak_rss_mb_one_transaction"] = megabytes
        figures[f"{name}_seconds"] = round(seconds, 1)
    while server.execute("SELECT 1 FROM pg_replication_slots WHERE active"):
        time.sleep(0.05)
    server.execute("SELECT pg_drop_replication_slot('lockstep')")
    _, figures["peak_rss_mb_snapshot"], _ = _capture(server, directory / "snapshot", "--until-caught-up")
    return figures


def _freshness(server: Cluster, directory: Path, trigger: str) -> Figures:
    server.create_shop()
    home = directory / "home"
    server.execute(_ORDERS.format(first=1, last=RATE))
    _capture(server, home, "--until-caught-up")
    environment = {**os.environ, "LOCKSTEP_HOME": str(home)}
    built = subprocess.run([LOCKSTEP, "run"], cwd=PROJECT, env=environment, capture_output=True, text=True)
    assert built.returncode == 0, built.stdout + built.stderr
    follower = subprocess.Popen(
        [LOCKSTEP, "capture", server.dsn(), "--trigger", trigger],
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    done = threading.Event()
    landings: list[tuple[int, float]] = []
    answers: list[tuple[int, float]] = []
    asking: list[float] = []

    def watch() -> None:
        log = ChangeLog(home)
        seen = 0
        while not done.is_set():
            lsn = parse_lsn(log.watermark().resume["commit_lsn"])
            if lsn > seen:
                landings.append((lsn, time.monotonic()))
                seen = lsn
            time.sleep(0.005)

    def ask() -> None:
        # One thread: the asking must not take the cores from what it measures.
        config = {"file_search_path": str(home), "threads": 1}
        with duckdb.connect(home / "warehouse.duckdb", read_only=True, config=config) as con:
            con.execute("SET TimeZone = 'UTC'")
            while not done.is_set():
                asked = time.monotonic()
                [(orders,)] = con.execute("SELECT SUM(orders) FROM live.orders").fetchall()
                answers.append((orders, time.monotonic()))
                asking.append(answers[-1][1] - asked)
                time.sleep(0.05)

    threads = [threading.Thread(target=watch), threading.Thread(target=ask)]
    for thread in threads:
        thread.start()
    commits: list[tuple[int, int, float]] = []  # the source's end just after, orders until then, when
    with closing(psycopg2.connect(server.dsn())) as connection, connection.cursor() as cursor:
        connection.autocommit = True
        time.sleep(2)
        started = time.monotonic()
        for tenth in range(FRESHNESS_SECONDS * 10):
            time.sleep(max(0.0, started + tenth / 10 - time.monotonic()))
            for i in range(RATE // 100):
                first = RATE + tenth * RATE // 10 + i * 10 + 1
                cursor.execute(_ORDERS.format(first=first, last=first + 9))
                committed = time.monotonic()
                cursor.execute("SELECT pg_current_wal_insert_lsn()")
                commits.append((parse_lsn(cursor.fetchone()[0]), first + 9, committed))
        took = time.monotonic() - started
    time.sleep(3)
    done.set()
    for thread in threads:
        thread.join()
    follower.terminate()
    follower.wait()
    return {
        "changes_per_second": round(RATE * FRESHNESS_SECONDS / took),
        **_delays("to_watermark", [(lsn, at) for lsn, _, at in commits], landings),
        **_delays("to_live_view", [(orders, at) for _, orders, at in commits], answers),
        "live_view_query_p50_seconds": round(statistics.median(asking), 3),
    }


def _delays(name: str, commits: list[tuple[int, float]], seen: list[tuple[int, float]]) -> Figures:
    """From each commit to the first sight of something that is at least as far."""
    delays = []
    at = 0
    for point, committed in commits:
        while seen[at][0] < point:
            at += 1
        delays.append(seen[at][1] - committed)
    delays.sort()
    return {
        f"{name}_p50_seconds": round(delays[len(delays) // 2], 3),
        f"{name}_p99_seconds": round(delays[int(len(delays) * 0.99)], 3),
        f"{name}_max_seconds": round(delays[-1], 3),
    }


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Measure lockstep capture.")
    parser.add_argument(
        "measures",
        nargs="*",
        metavar="MEASURE",
        help="backlog, one_transaction, thirty_columns, resync, wide, freshness",
    )
    parser.add_argument("--changes", type=int, default=600_000)
    parser.add_argument("--runs", type=int, default=3)
    arguments = parser.parse_args()
    main(arguments.changes, arguments.runs, arguments.measures)
