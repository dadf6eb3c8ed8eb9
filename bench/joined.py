"""Measure an hour of a fact that joins two tables which change, by the project's own models.

    .venv/bin/python bench/joined.py [--rows 10000000] [--changes 600000] [--runs 5] [--threads 2]

The table of orders has this many rows, that of customers a tenth of it, and both a checkpoint at midnight. In each hour
of the day a twenty-fourth of the changes are made: nine tenths update orders, the rest move customers. Nothing lands by
way of Lockstep: DuckDB writes the files of the log and the checkpoints.

full: the query of the fact as it is written, over ready rows in DuckDB's own tables. first, last: the increments of the
hours at 01:00 and at 23:00. day: of all 24 in one statement. Prints JSON: the least seconds of all runs, and ratios.
`control` is work that is always the same.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
import tempfile
import time
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import duckdb

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "tests"))

CUT = datetime(2026, 1, 6)
ORDER = (
    "{{'order_id': {key}, 'customer_id': {key} % {customers}, 'product_id': {key} % 5000, 'region': 'region ' || "
    "{key} % 7, 'quantity': ({key} % 9)::INT, 'amount_cents': {key} % 90000 + {version}, 'status': 'status ' || "
    "{version} % 5, 'ordered_at': TIMESTAMP '2026-01-01' + INTERVAL ({key} % 400000) SECOND, "
    "'updated_at': TIMESTAMP '2026-01-05' + INTERVAL ({version}) SECOND, 'extra': NULL::VARCHAR}}"
)
CUSTOMER = (
    "{{'customer_id': {key}, 'full_name': 'name ' || {key}, 'email': {key} || '@example.com', 'region': 'home ' || "
    "({key} + {version}) % 8, 'created_at': TIMESTAMP '2025-01-01', "
    "'updated_at': TIMESTAMP '2026-01-05' + INTERVAL ({version}) SECOND, 'extra': NULL::VARCHAR}}"
)
TABLES = ("orders", "customers")
QUERY = "SELECT c.region, o.region, COUNT(*), SUM(o.amount_cents) FROM ready.orders AS o "
QUERY += "LEFT JOIN ready.customers AS c ON c.customer_id = o.customer_id GROUP BY ALL"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=10_000_000)
    parser.add_argument("--changes", type=int, default=600_000)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="lockstep-bench-") as directory:
        os.environ["LOCKSTEP_HOME"] = f"{directory}/loads the models"
        print(json.dumps(measure(Path(directory), **vars(arguments)), indent=2))


def measure(directory: Path, rows: int, changes: int, runs: int, threads: int) -> dict[str, Any]:
    home = directory / "home"
    connection = duckdb.connect(config={"threads": threads, "file_search_path": str(home)})
    connection.execute("SET TimeZone = 'UTC'; ATTACH ':memory:' AS warehouse; USE warehouse")
    images = {"orders": ORDER.replace("{customers}", str(rows // 10)), "customers": CUSTOMER}
    counts = {"orders": (rows, changes * 9 // 10 // 24), "customers": (rows // 10, changes // 10 // 24)}
    for table in TABLES:
        generate(connection, home, table, images[table], *counts[table])
    hours = {name: hour_query(directory, *span) for name, span in SPANS.items()}
    make_models(connection, directory)

    found: dict[str, list[float]] = {name: [] for name in ("full", *hours, "control")}
    queries = {"full": QUERY, **hours, "control": "SELECT SUM(HASH(n)) FROM range(20000000) AS r(n)"}
    cells: dict[str, list[Any]] = {}
    for _ in range(runs):
        for name, query in queries.items():
            begun = time.perf_counter()
            cells[name] = connection.execute(query).fetchall()
            found[name].append(time.perf_counter() - begun)
    assert all(cells.values())
    least = {name: min(seconds) for name, seconds in found.items()}
    return {
        "rows": rows,
        "changes in an hour": sum(n for _, n in counts.values()),
        "seconds": {name: round(seconds, 3) for name, seconds in least.items()},
        "an hour / full": round(least["first"] / least["full"], 2),
        "last / first": round(least["last"] / least["first"], 2),
        "24 hours one by one / in one statement": round(24 * least["first"] / least["day"], 1),
    }


SPANS = {"first": (1, 2), "last": (23, 24), "day": (0, 24)}


def generate(
    connection: duckdb.DuckDBPyConnection, home: Path, table: str, image: str, rows: int, changes: int
) -> None:
    """A table's checkpoint at midnight and its ready rows then, and its changes of each hour since."""
    now = image.format(key="n", version=1)
    path = home / "changelog" / "_checkpoints" / table / f"__cut={CUT:%Y-%m-%dT%H}" / "rows.parquet"
    path.parent.mkdir(parents=True)
    connection.execute(
        f"COPY (SELECT UNNEST({now}) FROM range({rows}) AS r(n)) TO '{path}' "
        "(FORMAT PARQUET, COMPRESSION ZSTD, ROW_GROUP_SIZE 122880)"
    )
    connection.execute(f"CREATE SCHEMA IF NOT EXISTS ready; CREATE TABLE ready.{table} AS FROM '{path}'")
    step = rows // changes
    for hour in range(24):
        at, key = CUT + timedelta(hours=hour, minutes=30), f"(n * {step} + {hour % step})"
        path = home / "changelog" / table / f"hour={at:%Y-%m-%dT%H}" / "changes.parquet"
        path.parent.mkdir(parents=True)
        version = f"({hour} // {step})"
        connection.execute(
            f"COPY (SELECT {hour * changes} + n + 1 AS position, TIMESTAMP '{at}' AS logged_at, logged_at AS "
            f"committed_at, 'u' AS op, {image.format(key=key, version=f'(1 + {version})')} AS before, "
            f"{image.format(key=key, version=f'(2 + {version})')} AS after, 1::BIGINT AS tx_id, position AS lsn "
            f"FROM range({changes}) AS r(n)) TO '{path}' (FORMAT PARQUET, COMPRESSION ZSTD, ROW_GROUP_SIZE 122880)"
        )


def in_the_project(directory: Path) -> Any:
    """SQLMesh's context for the project of tests/warehouse/test_joined_facts.py."""
    from sqlmesh import Context

    from warehouse.test_joined_facts import made

    project = directory / "facts" / "project"
    if not project.exists():
        os.environ["LOCKSTEP_HOME"] = str(directory / "facts" / "home")
        made(directory / "facts")
        shutil.rmtree(directory / "facts" / "home" / ".cache", ignore_errors=True)
    os.chdir(project)
    return Context(paths=str(project))


def hour_query(directory: Path, first: int, end: int) -> str:
    """The query for the increments of some hours of the day."""
    context = in_the_project(directory)
    try:
        last = CUT + timedelta(hours=end) - timedelta(microseconds=1)
        model = context.get_model("hourly.home_orders")
        return str(model.render_query_or_raise(start=CUT + timedelta(hours=first), end=last).sql("duckdb"))
    finally:
        context.close()


def make_models(connection: duckdb.DuckDBPyConnection, directory: Path) -> None:
    for schema in ("changes", "checkpoints", "signed", "ops"):
        connection.execute(f"CREATE SCHEMA {schema}")
    checkpoints = ", ".join(f"('{table}')" for table in TABLES)
    connection.execute(
        f"CREATE TABLE ops.checkpoints AS SELECT source_table, TIMESTAMP '{CUT}' AS cut, '{CUT:%Y-%m-%dT%H}' AS "
        f"partition FROM (VALUES {checkpoints}) AS t(source_table)"
    )
    context = in_the_project(directory)
    try:
        for table in TABLES:
            log = f"READ_PARQUET('changelog/{table}/*/*.parquet', hive_partitioning = FALSE)"
            connection.execute(f"CREATE VIEW changes.{table} AS SELECT * FROM {log} WHERE position <= 1000000000000")
            for name in (f"checkpoints.{table}", f"signed.{table}"):
                query = context.get_model(name).render_query_or_raise().sql("duckdb")
                connection.execute(f"CREATE VIEW {name} AS {query}")
    finally:
        context.close()


if __name__ == "__main__":
    main()
