"""Measure `lockstep publish` and what analysts ask of a published file, beside DuckDB copying and reading bare tables.

    .venv/bin/python bench/publish.py [--days 18] [--orders-per-day 24000] [--runs 5] [--queries 20] [--home HOME]

The history ends a second before a full hour of which nothing is folded, so the tail is an hour long. It lies in one
file per table, and then in 60 and in 720 (a batch a minute, and one every five seconds). --home keeps the home, and
takes it as it is if it has one; without, a temporary one is made and removed.

publish: seconds, the first time and again; `copied` is DuckDB writing the same tables again from the published file,
`bytes` copying the file as it is, durably. queries: milliseconds of each mart's typical question over one connection,
and `bare`, the same question to a table in memory that holds the mart's rows. Prints JSON; times are medians unless
they say p99.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from datetime import datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any

import duckdb
import pyarrow.parquet as pq

from lockstep import operate, publish, simulate
from lockstep.changelog import ChangeLog, durable_replace
from lockstep.schema import TABLES

UNTIL = datetime(2026, 11, 18, 9, 59, 59)
TAIL = UNTIL.replace(minute=0, second=0)
DAY = f"TIMESTAMP '{TAIL - timedelta(days=1)}'"
QUERIES = {
    "orders of the last day by region and status": (
        "mart.orders_hourly",
        "SELECT region, status, SUM(orders), SUM(revenue_cents), MAX(as_of) FROM {} "
        f"WHERE ordered_hour >= {DAY} GROUP BY 1, 2",
    ),
    "deliveries of the last day by region": (
        "mart.delivery_hourly",
        f"SELECT region, SUM(shipments), SUM(late), MAX(as_of) FROM {{}} WHERE window_hour >= {DAY} GROUP BY 1",
    ),
    "positions of all drivers": ("mart.vehicle_positions", "SELECT * FROM {}"),
    "high-value alerts": ("mart.high_value_alerts", "SELECT * FROM {}"),
    "routes at risk": ("mart.routes", "SELECT route_id, slack_seconds FROM {} WHERE is_at_risk"),
    "all orders by day": ("mart.orders_hourly", "SELECT ordered_hour::DATE, SUM(orders) FROM {} GROUP BY 1"),
}


def main(home: Path, days: int, orders_per_day: int, runs: int, queries: int) -> None:
    os.environ["LOCKSTEP_HOME"] = str(home)
    log = ChangeLog(home)
    if not (home / "warehouse.duckdb").exists():
        simulate.run(log, simulate.choose_history(log, 7, days, orders_per_day, UNTIL), _say)
        result = operate.run(home, UNTIL)
        assert result.agrees, result.failures
        _say(f"ran in {result.seconds:.0f} s")
    figures: dict[str, Any] = {"changes": log.watermark().position, "publish": _publishing(home, runs), "queries": {}}
    for files in (1, 60, 720):
        tail = _split(log, files)
        publish.publish(home)  # so that the log's files are known to nobody from before
        _say(f"asking with {files} files of the tail")
        figures["queries"][f"{files} files a table"] = {"tail_changes": tail, **_asking(home, queries)}
    print(json.dumps(figures, indent=2))


def _say(text: str) -> None:
    print(text, file=sys.stderr)


def _publishing(home: Path, runs: int) -> dict[str, Any]:
    (home / "analytics.duckdb").unlink()  # nothing to carry over
    first = publish.publish(home)
    again, copied, raw = [], [], []
    copy = home / "copy.duckdb"
    for _ in range(runs):  # in turns: whatever else the machine does falls on all of them
        again.append(publish.publish(home).seconds)
        copied.append(_timed(lambda: _copy_by_duckdb(first.path, copy)))
        raw.append(_timed(lambda: durable_replace(copy, first.path.read_bytes())))
    copy.unlink()
    seconds = statistics.median(again)
    return {
        "first_seconds": round(first.seconds, 2),
        "seconds": round(seconds, 2),
        "copied_seconds": round(statistics.median(copied), 2),
        "ratio_to_copied": round(seconds / statistics.median(copied), 2),
        "bytes_seconds": round(statistics.median(raw), 2),
        "megabytes": round(first.size / 1e6, 1),
    }


def _copy_by_duckdb(path: Path, copy: Path) -> None:
    """Every table of a file written again, as publishing has to; views and macros cost next to nothing."""
    copy.unlink(missing_ok=True)
    with duckdb.connect(str(copy)) as connection:
        connection.execute(f"ATTACH '{path}' AS original (READ_ONLY)")
        tables = "SELECT schema_name, table_name FROM duckdb_tables() WHERE database_name = 'original'"
        for schema, table in connection.execute(tables).fetchall():
            connection.execute(f"CREATE SCHEMA IF NOT EXISTS {schema}")
            connection.execute(f"CREATE TABLE {schema}.{table} AS SELECT * FROM original.{schema}.{table}")


def _timed(act: Callable[[], Any]) -> float:
    begun = time.perf_counter()
    act()
    return time.perf_counter() - begun


def _split(log: ChangeLog, files: int) -> int:
    """Lay the tail out as if so many batches had landed it; returns how many changes it has."""
    changes = 0
    for table in TABLES:
        directory = log.root / table / f"hour={TAIL:%Y-%m-%dT%H}"
        if not directory.exists():
            continue
        old = list(directory.glob("*.parquet"))
        rows = pq.read_table(directory, partitioning=None).sort_by("position")
        changes += rows.num_rows
        shutil.rmtree(directory)
        directory.mkdir()
        size = -(-rows.num_rows // min(files, len(rows)))
        for start in range(0, rows.num_rows, size):
            part = rows.slice(start, size)
            first, last = part["position"][0].as_py(), part["position"][-1].as_py()
            pq.write_table(part, directory / f"{first}-{last}.parquet", compression="zstd", store_schema=False)
        assert old
    return changes


def _asking(home: Path, queries: int) -> dict[str, Any]:
    told = {}
    with duckdb.connect(str(home / "analytics.duckdb"), read_only=True) as live, duckdb.connect() as bare:
        for name, (mart, query) in QUERIES.items():
            rows = live.execute(f"SELECT * FROM {mart}").to_arrow_table()  # noqa: F841 - read by name below
            bare.execute("CREATE OR REPLACE TABLE bare AS SELECT * FROM rows")
            live_ms, bare_ms = [], []
            for _ in range(queries):
                live_ms.append(1000 * _timed(partial(_ask, live, query.format(mart))))
                bare_ms.append(1000 * _timed(partial(_ask, bare, query.format("bare"))))
            told[name] = {
                "p50": round(statistics.median(live_ms), 1),
                "p99": round(statistics.quantiles(live_ms, n=100, method="inclusive")[98], 1),
                "bare_p50": round(statistics.median(bare_ms), 1),
                "bare_p99": round(statistics.quantiles(bare_ms, n=100, method="inclusive")[98], 1),
            }
    return told


def _ask(connection: duckdb.DuckDBPyConnection, query: str) -> None:
    connection.execute(query).fetchall()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--days", type=int, default=18)
    parser.add_argument("--orders-per-day", type=int, default=24_000)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--queries", type=int, default=20)
    parser.add_argument("--home", type=Path)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        home = given.home or Path(temporary)
        main(home.resolve(), given.days, given.orders_per_day, given.runs, given.queries)
