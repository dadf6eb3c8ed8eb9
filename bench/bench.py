"""What the computation paths cost, beside bare DuckDB over the same files: `make bench`.

Each figure is the median of several runs in which the two sides take turns: a noisy machine disturbs both alike. The
ratios are the claims; the seconds depend on the machine.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq
from rich.table import Table

from lockstep import operate, warehouse
from lockstep.changelog import ChangeLog
from lockstep.log_check import check
from lockstep.schema import TABLES, batch_schema
from lockstep.show import console

ORDERS = "read_parquet('changelog/orders/*/*.parquet', hive_partitioning = false)"

BARE_REBUILD = f"""
    SELECT DATE_TRUNC('hour', after.ordered_at) AS ordered_hour, after.product_id, after.region, after.status,
        COUNT(*) AS orders, SUM(after.quantity) AS units, SUM(after.amount_cents) AS revenue_cents
    FROM (
        SELECT after, ROW_NUMBER() OVER (
            PARTITION BY COALESCE(after.order_id, before.order_id) ORDER BY position DESC) AS recency
        FROM {ORDERS} WHERE logged_at < $cut
    ) WHERE recency = 1 AND after IS NOT NULL
    GROUP BY ALL"""

BARE_HOUR = f"""
    SELECT DATE_TRUNC('hour', image.ordered_at) AS ordered_hour, image.product_id, image.region, image.status,
        SUM(diff) AS orders, SUM(diff * image.quantity) AS units, SUM(diff * image.amount_cents) AS revenue_cents
    FROM (
        SELECT -1 AS diff, before AS image FROM {ORDERS}
        WHERE logged_at >= $hour AND logged_at < $hour + INTERVAL 1 HOUR AND before IS NOT NULL
        UNION ALL
        SELECT 1, after FROM {ORDERS}
        WHERE logged_at >= $hour AND logged_at < $hour + INTERVAL 1 HOUR AND after IS NOT NULL
    ) GROUP BY ALL"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--orders-per-day", type=int, default=100_000, help="size of the simulated company")
    parser.add_argument("--days", type=int, default=3, help="days of history")
    parser.add_argument("--runs", type=int, default=5, help="measured runs of each side")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="lockstep-bench-") as directory:
        home = Path(directory)
        os.environ["LOCKSTEP_HOME"] = str(home)
        size = ["--days", str(arguments.days), "--orders-per-day", str(arguments.orders_per_day)]
        seconds, _ = _timed(lambda: _lockstep("simulate", *size))
        watermark = ChangeLog(home).watermark()
        console.print(
            f"simulated {watermark.position:,} changes in {seconds:.1f} s ({watermark.position / seconds:,.0f}/s)"
        )
        _print([_landing(home, arguments.runs), _check(home, arguments.runs), *_paths(home, arguments.runs)])


def _print(rows: list[tuple[str, ...]]) -> None:
    table = Table("", box=None, pad_edge=False)
    for name in ("lockstep", "bare", "ratio", "bound"):
        table.add_column(name, justify="right")
    for row in rows:
        table.add_row(*row)
    console.print(table)


def _landing(home: Path, runs: int) -> tuple[str, ...]:
    """From Arrow in memory to durable, visible Parquet, beside the same rows written by Arrow and not made durable."""
    log = ChangeLog(home)
    rows = pa.concat_tables(pq.read_table(f, partitioning=None) for f in log.files("orders"))
    columns = batch_schema(TABLES["orders"])
    ordinals = pa.array(range(rows.num_rows), pa.int64())
    rows = rows.append_column("ordinal", ordinals).select(columns.names).cast(columns).combine_chunks()
    batches = [rows.slice(i, 100_000) for i in range(0, rows.num_rows, 100_000)]

    def land(into: Path) -> None:
        with ChangeLog(into).writer("bench:orders") as writer:
            for batch in batches:
                writer.land({"orders": batch})

    def write(into: Path) -> None:
        for i, batch in enumerate(batches):
            pq.write_table(batch, into / f"{i}.parquet", compression="zstd")

    ours, bare = _in_turn(lambda: _in_fresh_directory(land), lambda: _in_fresh_directory(write), runs)
    rate = f"{rows.num_rows / ours:,.0f}/s"
    return "landing", rate, f"{rows.num_rows / bare:,.0f}/s", f"{ours / bare:.2f}", ">= 150,000/s"


def _check(home: Path, runs: int) -> tuple[str, ...]:
    """Hashing and counting the whole log, beside bare SHA-256 over the same files."""
    log = ChangeLog(home)
    files = [path for name in TABLES for path in log.files(name)]

    def digest() -> None:
        for path in files:
            with path.open("rb") as file:
                hashlib.file_digest(file, "sha256")

    ours, bare = _in_turn(lambda: check(home), digest, runs)
    changes = log.watermark().position
    return "log check", f"{changes / ours:,.0f}/s", f"{changes / bare:,.0f}/s", f"{ours / bare:.2f}", ">= 5,000,000/s"


def _paths(home: Path, runs: int) -> list[tuple[str, ...]]:
    end = ChangeLog(home).watermark().logged_at
    assert end is not None
    first = end.replace(minute=5, second=0, microsecond=0) - timedelta(hours=runs + 1)
    operate.run(home, first)

    hours: list[tuple[float, float]] = []
    for i in range(1, runs + 1):
        at = first + timedelta(hours=i)
        seconds, _ = _timed(lambda at=at: _lockstep("run", "--at", str(at)))
        hour = at.replace(minute=0) - timedelta(hours=1)
        with warehouse.reader(home) as connection:
            bare, _ = _timed(lambda hour=hour, c=connection: c.execute(BARE_HOUR, {"hour": hour}).fetchall())
        hours.append((seconds, bare))
    ours, bare = (statistics.median(side) for side in zip(*hours, strict=True))
    hourly = (
        "hourly run, whole process",
        f"{ours:.2f} s",
        f"{bare:.2f} s",
        "",
        f"<= 3 s + 1.5x = {3 + 1.5 * bare:.2f} s",
    )

    with warehouse.reader(home) as connection:
        [cut] = connection.execute("SELECT MIN(cut) FROM rebuild.cut").fetchone() or [None]
        body = _query_of(connection)
        ours, bare = _in_turn(
            lambda: connection.execute(f"CREATE OR REPLACE TEMP TABLE rebuilt AS {body}"),
            lambda: connection.execute(f"CREATE OR REPLACE TEMP TABLE bare AS {BARE_REBUILD}", {"cut": cut}),
            runs,
        )
        rebuild = ("rebuild", f"{ours:.2f} s", f"{bare:.2f} s", f"{ours / bare:.2f}", "<= 1.5")
        ours, bare = _in_turn(
            lambda: connection.execute("SELECT SUM(orders), SUM(revenue_cents) FROM live.orders").fetchall(),
            lambda: connection.execute(
                f"SELECT SUM(orders), SUM(revenue_cents) FROM ({BARE_REBUILD})", {"cut": end + timedelta(hours=1)}
            ).fetchall(),
            runs,
        )
        live = ("live query", f"{ours:.3f} s", f"{bare:.3f} s", f"{ours / bare:.2f}", "")
    return [hourly, rebuild, live]


def _query_of(connection: duckdb.DuckDBPyConnection) -> str:
    """The query of rebuild.orders as SQLMesh runs it, over the physical tables of prod."""
    from sqlmesh import Context

    context = Context(paths=".")
    try:
        return str(context.render("rebuild.orders").sql(dialect="duckdb"))
    finally:
        context.close()


def _in_turn(ours: Callable[[], object], bare: Callable[[], object], runs: int) -> tuple[float, float]:
    """Medians of the two in seconds, after one run of each that does not count."""
    pairs = [(_timed(ours)[0], _timed(bare)[0]) for _ in range(runs + 1)][1:]
    return statistics.median(p[0] for p in pairs), statistics.median(p[1] for p in pairs)


def _in_fresh_directory(work: Callable[[Path], None]) -> None:
    directory = Path(tempfile.mkdtemp(prefix="lockstep-bench-landing-"))
    try:
        work(directory)
    finally:
        shutil.rmtree(directory)


def _timed(work: Callable[[], object]) -> tuple[float, object]:
    started = time.perf_counter()
    result = work()
    return time.perf_counter() - started, result


def _lockstep(*arguments: str) -> None:
    subprocess.run([sys.executable, "-m", "lockstep.cli", *arguments], check=True, stdout=subprocess.DEVNULL)


if __name__ == "__main__":
    main()
