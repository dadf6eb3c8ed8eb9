"""Measure what an hour of each query of TPC-H costs as it is derived, beside the query as written.

    .venv/bin/python bench/derived.py [--scale 1] [--changes 12400] [--hours 0] [--runs 3] [--queries 1,6]

The tables are those of DuckDB's tpch extension, at this scale. In an hour orders come and go with their lines, a
quarter of the changes each, and half of the changes update lines: price, discount and dates.

full: the query as written, over ready rows in DuckDB's own tables. hour: its derived increments of one hour, added up
to cells and written, over the same rows and the hour's signed rows. `tables` is how many tables that change it reads,
and `cells` how many the hour wrote. With --hours, so many hours of a tenth of the changes in one statement, and one by
one. Queries over tables without changes are left out. Prints JSON: the least seconds of all runs, and ratios.
`control` is work that is always the same.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import duckdb
from sqlglot import exp

sys.path[:0] = [str(Path(__file__).parents[1] / "tests" / "unit"), str(Path(__file__).parents[1] / "tests")]

from test_derive_tpch import CARRIED, KEYS, over_source, written  # noqa: E402

from lockstep.derive import Catalog, SignedRows, Table, derive  # noqa: E402
from lockstep.serve import extension  # noqa: E402

MOVING = ("orders", "lineitem")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scale", type=float, default=1.0)
    parser.add_argument("--changes", type=int, default=12_400, help="in an hour")
    parser.add_argument("--hours", type=int, default=0, help="also compare so many hours at once and one by one")
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--queries", default=",".join(map(str, range(1, 23))))
    arguments = parser.parse_args()
    numbers = [int(number) for number in arguments.queries.split(",")]
    print(json.dumps(measure(numbers, arguments), indent=2))


def measure(numbers: list[int], arguments: argparse.Namespace) -> dict[str, Any]:
    connection = duckdb.connect(config={"threads": arguments.threads})
    catalog = generate(connection, arguments.scale)
    make_changes(connection, 1, arguments.changes)
    found: dict[str, Any] = {}
    for number in numbers:
        if not (of_query := increments(connection, catalog, number)):
            continue
        cells, tables = of_query
        full = least(arguments.runs, lambda n=number: connection.execute(written(connection, n)).fetchall())
        hour = least(arguments.runs, lambda c=cells: connection.execute(f"CREATE OR REPLACE TABLE cells AS {c}"))
        [(count,)] = connection.execute("SELECT COUNT(*) FROM cells").fetchall()
        found[f"q{number}"] = {
            "tables": tables,
            "cells": count,
            "full": round(full, 4),
            "hour": round(hour, 4),
            "hour / full": round(hour / full, 3),
        }
        print(f"q{number}: {found[f'q{number}']}", file=sys.stderr)
    many = {}
    if arguments.hours:
        make_changes(connection, arguments.hours, arguments.changes // 10)
        for number in numbers:
            of_query = increments(connection, catalog, number)
            if of_query:
                cells, _ = of_query
                many[f"q{number}"] = at_once_and_one_by_one(connection, cells, arguments.hours)
                print(f"q{number}: {many[f'q{number}']}", file=sys.stderr)
    control = "SELECT SUM(HASH(n)) FROM range(20000000) AS r(n)"
    return {
        "queries": found,
        **({"hours": many} if many else {}),
        "control": round(least(arguments.runs, lambda: connection.execute(control).fetchall()), 3),
    }


def generate(connection: duckdb.DuckDBPyConnection, scale: float) -> Catalog:
    """The tables, with every tenth order held back, and the rows before the hour as `state` has them."""
    connection.execute(f"LOAD '{extension('tpch')}'")
    connection.execute(f"CALL dbgen(sf = {scale})")
    connection.execute("CREATE SCHEMA state; CREATE SCHEMA delta; CREATE SCHEMA signed")
    connection.execute(
        "CREATE TABLE new_orders AS FROM orders WHERE o_orderkey // 32 % 10 = 7; "
        "CREATE TABLE new_lines AS FROM lineitem WHERE l_orderkey // 32 % 10 = 7; "
        "DELETE FROM orders WHERE o_orderkey // 32 % 10 = 7; DELETE FROM lineitem WHERE l_orderkey // 32 % 10 = 7"
    )
    catalog = {}
    for table, key in KEYS.items():
        columns = {row[0]: row[1] for row in connection.execute(f"DESCRIBE {table}").fetchall()}
        catalog[f"source.{table}"] = Table(columns, key, frozenset(columns), is_static=table not in MOVING)
        connection.execute(f"CREATE VIEW state.{table} AS SELECT {CARRIED}, * FROM main.{table}")
        connection.execute(f"CREATE TABLE signed.{table} AS FROM state.{table} WHERE FALSE")
        connection.execute(f"CREATE VIEW delta.{table} AS FROM signed.{table}")
    connection.execute("CREATE SCHEMA source")
    for table in KEYS:
        connection.execute(f"CREATE VIEW source.{table} AS FROM main.{table}")
    return catalog


def make_changes(connection: duckdb.DuckDBPyConnection, hours: int, changes: int) -> None:
    """Signed rows of so many changes in each hour: a change of a line has two, and an order has about four lines."""
    orders, lines = changes // 20 * hours, changes // 2 * hours
    for table in MOVING:
        connection.execute(f"DELETE FROM signed.{table}")

    def insert(table: str, rows: str, ordinal: str, n: int, weight: int) -> None:
        at = f"TIMESTAMP '2026-01-01' + TO_HOURS(({ordinal} % {hours})::INT)"
        connection.execute(
            f"INSERT INTO signed.{table} SELECT {ordinal}, {at}, {weight}, * EXCLUDE (ordinal) FROM ({rows}) "
            f"WHERE ordinal <= {n}"
        )

    ordinal = "DENSE_RANK() OVER (ORDER BY {}) AS ordinal"
    for relations, weight in ((("new_orders", "new_lines"), 1), (("orders", "lineitem"), -1)):
        for name, table, key in zip(relations, MOVING, ("o_orderkey", "l_orderkey"), strict=True):
            of = f"SELECT {ordinal.format(key)}, * FROM {name} WHERE {key} // 32 % 10 IN (3, 7)"
            insert(table, of, "ordinal", orders, weight)
    updated = "SELECT ROW_NUMBER() OVER (ORDER BY HASH(l_orderkey, l_linenumber)) AS ordinal, * FROM lineitem"
    updated += " WHERE l_orderkey // 32 % 10 NOT IN (3, 7)"
    new = "SELECT * REPLACE (l_extendedprice + 1 AS l_extendedprice, 0.1 - l_discount AS l_discount, "
    new += f"l_receiptdate + 1 AS l_receiptdate) FROM ({updated})"
    insert("lineitem", updated, "ordinal", lines, -1)
    insert("lineitem", new, "ordinal", lines, 1)


def increments(connection: duckdb.DuckDBPyConnection, catalog: Catalog, number: int) -> tuple[str, int] | None:
    """SQL for the cells of the changes by hour, and how many tables that change it reads; None if none of them does."""
    moving = {name for name, table in catalog.items() if not table.is_static}
    cores = derive(over_source(written(connection, number), catalog), catalog).cores
    if not (cores := [core for core in cores if core.tables() & moving]):
        return None
    signed = SignedRows.of_cells(cores, catalog)
    keys = [name for name, kind in signed.columns.items() if kind is None]
    sums = [f"SUM({m})::{kind} AS {m}" for m, kind in signed.columns.items() if kind is not None]
    rows = (signed.new() if signed.is_join else signed.all()).transform(of_the_delta).sql("duckdb")
    return f"SELECT logged_at AS hour, {', '.join([*keys, *sums])} FROM ({rows}) GROUP BY ALL", len(signed.tables)


def of_the_delta(node: exp.Expr) -> exp.Expr:
    """A table of signed rows as the one that has those of an hour."""
    is_signed = isinstance(node, exp.Table) and node.db == "signed"
    return exp.table_(node.name, db="delta", alias=node.alias or None) if is_signed else node


def at_once_and_one_by_one(connection: duckdb.DuckDBPyConnection, cells: str, hours: int) -> dict[str, float]:
    """Every hour over the same rows before it: what an hour finds there costs the same whether they are older."""
    at_once = least(1, lambda: connection.execute(f"CREATE OR REPLACE TABLE cells AS {cells}"))
    started = time.perf_counter()
    for hour in range(hours):
        for table in MOVING:
            connection.execute(
                f"CREATE OR REPLACE VIEW delta.{table} AS FROM signed.{table} "
                f"WHERE __logged_at = TIMESTAMP '2026-01-01' + TO_HOURS({hour})"
            )
        connection.execute(f"CREATE OR REPLACE TABLE one AS {cells}")
    one_by_one = time.perf_counter() - started
    for table in MOVING:
        connection.execute(f"CREATE OR REPLACE VIEW delta.{table} AS FROM signed.{table}")
    return {
        "at once": round(at_once, 3),
        "one by one": round(one_by_one, 2),
        "one by one / at once": round(one_by_one / at_once, 1),
    }


def least(runs: int, work: Callable[[], object]) -> float:
    found = []
    for _ in range(runs):
        started = time.perf_counter()
        work()
        found.append(time.perf_counter() - started)
    return min(found)


if __name__ == "__main__":
    main()
