"""Measure `lockstep publish` and what analysts ask of a published file, beside DuckDB copying and reading bare tables.

    .venv/bin/python bench/publish.py [--days 18] [--orders-per-day 24000] [--runs 5] [--queries 20] [--home HOME]

The history ends a second before a full hour, none of which is folded, so the tail is an hour long. It lies there as
one landing, and then as if a capture had landed it by the minute, every five seconds, and every second. --home keeps
the home, and takes it as it is if it has one; without, a temporary one is made and removed.

publish: seconds when an hour more is folded, when nothing is new, and anew, without a publication before; `copied` is
DuckDB writing the same tables again from the published file, `bytes` copying the file as it is, durably. queries:
milliseconds of each mart's typical question over one connection, and `bare`, the same question to a table in memory
that holds the mart's rows. `control` is work that is always the same and reads no file: how far its times lie apart is
what else the machine did meanwhile. Prints JSON; times are medians unless they say p99 or least.
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
from dataclasses import replace
from datetime import datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any

import duckdb
import pyarrow.compute as pc
import pyarrow.parquet as pq

from lockstep import operate, publish, simulate
from lockstep.changelog import ChangeLog
from lockstep.durable import durable_replace
from lockstep.logfiles import hour_name
from lockstep.schema import TABLES, batch_schema

UNTIL = datetime(2026, 11, 18, 9, 59, 59)
TAIL = UNTIL.replace(minute=0, second=0)
AN_HOUR_BEFORE = "an_hour_before.duckdb"
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
CONTROL = "SELECT n % 50_000, SUM(h) FROM work GROUP BY 1 ORDER BY 2 LIMIT 1"


def main(home: Path, days: int, orders_per_day: int, runs: int, queries: int) -> None:
    os.environ["LOCKSTEP_HOME"] = str(home)
    log = ChangeLog(home)
    figures: dict[str, Any] = {}
    if not (home / "warehouse.duckdb").exists():
        simulate.run(log, simulate.choose_history(log, 7, days, orders_per_day, UNTIL), _say)
        whole = log.watermark()
        _set_back_to_tail(log)
        shutil.copyfile(_run(home, TAIL).path, home / AN_HOUR_BEFORE)
        log._replace_watermark(whole)
        _run(home, UNTIL)
    figures |= {"changes": log.watermark().position, "publish": _publishing(home, runs), "queries": {}}
    for seconds in (3600, 60, 5, 1):
        changes, files = _land_tail(log, seconds)
        publish.publish(home)  # so that the log's files are known to nobody from before
        _say(f"asking of a tail that landed every {seconds} s")
        figures["queries"][f"landed every {seconds} s"] = {"changes": changes, "files": files, **_asking(home, queries)}
    print(json.dumps(figures, indent=2))


def _say(text: str) -> None:
    print(text, file=sys.stderr)


def _run(home: Path, at: datetime) -> publish.Published:
    result = operate.run(home, at)
    assert result.agrees and result.published, result.failures
    _say(f"ran as of {at} in {result.seconds:.0f} s")
    return result.published


def _set_back_to_tail(log: ChangeLog) -> int:
    """Have the log end where the tail begins, with the tail's files still there; returns its last position."""
    with duckdb.connect() as connection:
        query = f"SELECT MAX(position), MAX(logged_at) FROM '{log.root}/*/*/*.parquet' WHERE logged_at < ?"
        [(position, logged_at)] = connection.execute(query, [TAIL]).fetchall()
    log._replace_watermark(replace(log.watermark(), position=position, logged_at=logged_at))
    return int(position)


def _publishing(home: Path, runs: int) -> dict[str, Any]:
    latest, copy = home / "analytics.duckdb", home / "copy.duckdb"
    latest.unlink()
    anew = publish.publish(home)
    seconds: dict[str, list[float]] = {"an hour more": [], "nothing new": [], "copied": [], "bytes": []}
    for _ in range(runs):  # in turns: whatever else the machine does falls on all of them
        latest.unlink()
        shutil.copyfile(home / AN_HOUR_BEFORE, latest)
        seconds["an hour more"].append(publish.publish(home).seconds)
        seconds["nothing new"].append(publish.publish(home).seconds)
        seconds["copied"].append(_timed(lambda: _copy_by_duckdb(anew.path, copy)))
        seconds["bytes"].append(_timed(lambda: durable_replace(copy, anew.path.read_bytes())))
    copy.unlink()
    medians = {name: statistics.median(times) for name, times in seconds.items()}
    return {
        "anew_seconds": round(anew.seconds, 2),
        **{f"{name.replace(' ', '_')}_seconds": round(median, 2) for name, median in medians.items()},
        "ratio_to_copied": round(medians["an hour more"] / medians["copied"], 2),
        "megabytes": round(anew.size / 1e6, 1),
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


def _land_tail(log: ChangeLog, seconds: int) -> tuple[int, int]:
    """Land the tail again, in a batch for so many seconds of it; returns how many changes and files it has."""
    tails = {}
    for table in TABLES:
        directory = log.root / table / hour_name(TAIL)
        if directory.exists():
            tails[table] = pq.read_table(directory, partitioning=None).sort_by("position")
            shutil.rmtree(directory)
            directory.mkdir()  # a link leads here
    last = max(rows["logged_at"][-1].as_py() for rows in tails.values())
    watermark = log.watermark()
    before = _set_back_to_tail(log)
    with log.writer(watermark.source or "") as writer:
        since = TAIL
        while since <= last:
            until = since + timedelta(seconds=seconds)
            batch = {}
            for table, rows in tails.items():
                is_in = pc.and_(pc.greater_equal(rows["logged_at"], since), pc.less(rows["logged_at"], until))
                columns = batch_schema(TABLES[table]).names
                batch[table] = rows.filter(is_in).rename_columns({"position": "ordinal"}).select(columns)
            writer.land(batch, reached=min(until, last), resume=watermark.resume)
            since = until
    assert log.watermark().position == watermark.position
    files = sum(len(list((log.root / table / hour_name(TAIL)).iterdir())) for table in tails)
    return watermark.position - before, files


def _asking(home: Path, queries: int) -> dict[str, Any]:
    told, control_ms = {}, []
    with duckdb.connect(str(home / "analytics.duckdb"), read_only=True) as live, duckdb.connect() as bare:
        bare.execute("CREATE TABLE work AS SELECT range AS n, HASH(range) AS h FROM range(2_500_000)")
        for name, (mart, query) in QUERIES.items():
            rows = live.execute(f"SELECT * FROM {mart}").to_arrow_table()  # noqa: F841 - read by name below
            bare.execute("CREATE OR REPLACE TABLE bare AS SELECT * FROM rows")
            live_ms, bare_ms = [], []
            for _ in range(queries):
                live_ms.append(1000 * _timed(partial(_ask, live, query.format(mart))))
                bare_ms.append(1000 * _timed(partial(_ask, bare, query.format("bare"))))
                control_ms.append(1000 * _timed(partial(_ask, bare, CONTROL)))
            told[name] = {**_spread("", live_ms), **_spread("bare_", bare_ms)}
    return {**told, "control": _spread("", control_ms)}


def _spread(of: str, milliseconds: list[float]) -> dict[str, float]:
    p99 = statistics.quantiles(milliseconds, n=100, method="inclusive")[98]
    return {
        f"{of}least_ms": round(min(milliseconds), 1),
        f"{of}p50_ms": round(statistics.median(milliseconds), 1),
        f"{of}p99_ms": round(p99, 1),
    }


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
