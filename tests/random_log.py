"""Random changes of two tables, one of which gets a column, and how a finish over sums is compared with its query."""

from __future__ import annotations

import random

import duckdb
from sqlglot import exp

from lockstep.derive import SignedRows, Table, as_core, derive

TABLES = {
    "orders": "id BIGINT, region TEXT, amount BIGINT, paid_at TIMESTAMP",
    "stops": "id BIGINT, region TEXT, n INT",
}
ADOPTED_AT = 60  # the position where the column paid_at joins the log
CATALOG = {
    "source.orders": Table({"id": "BIGINT", "region": "TEXT", "amount": "BIGINT", "paid_at": "TIMESTAMP"}, ("id",)),
    "source.stops": Table({"id": "BIGINT", "region": "TEXT", "n": "INT"}, ("id",)),
    "source.readings": Table({"value": "TEXT"}),
    "seeds.regions": Table({"region": "TEXT", "label": "TEXT", "least": "INT"}, ("region", "least"), is_static=True),
}


def random_log(seed: int) -> duckdb.DuckDBPyConnection:
    """Random changes of two tables, as signed rows, and `source` as of any position by the variable `now_at`."""
    chance = random.Random(seed)
    connection = duckdb.connect()
    for schema in ("signed", "source", "seeds", "state", "delta"):
        connection.execute(f"CREATE SCHEMA {schema}")
    connection.execute(
        "CREATE TABLE seeds.regions AS FROM (VALUES ('a', 'A', 0), ('a', 'A2', 6), ('b', 'B', 3)) "
        "AS r(region, label, least)"
    )
    living: dict[str, dict[int, tuple]] = {table: {} for table in TABLES}
    since: dict[str, dict[int, int]] = {table: {} for table in TABLES}

    def insert(name: str, *values: object) -> None:
        connection.execute(f"INSERT INTO {name} VALUES ({', '.join('?' * len(values))})", values)

    for table, columns in TABLES.items():
        carried = "__position BIGINT, __logged_at TIMESTAMP, __weight INT"
        connection.execute(f"CREATE TABLE signed.{table} ({carried}, {columns})")
        connection.execute(f"CREATE TABLE log_of_{table} (from_position BIGINT, until_position BIGINT, {columns})")
        connection.execute(
            f"CREATE VIEW source.{table} AS SELECT * EXCLUDE (from_position, until_position) "
            f"FROM log_of_{table} WHERE from_position <= GETVARIABLE('now_at') "
            "AND GETVARIABLE('now_at') < until_position"
        )

    def change(table: str, position: int, key: int, after: tuple | None) -> None:
        rows = living[table]
        for weight, image in ((-1, rows.get(key)), (1, after)):
            if image:
                insert(f"signed.{table}", position, "2026-01-01", weight, *image)
        if key in rows:
            insert(f"log_of_{table}", since[table].pop(key), position, *rows.pop(key))
        if after:
            rows[key], since[table][key] = after, position

    for position in range(1, 241):
        if position == ADOPTED_AT:  # a resync tells of every row what the column holds that no image had before
            for key, row in list(living["orders"].items()):
                change("orders", position, key, (*row[:3], chance.choice(["2026-01-01", None])))
        table = chance.choice(list(TABLES))
        key = chance.randrange(9)
        row = (key, chance.choice(["a", "b", "c", None]), chance.randrange(10))
        row += (chance.choice(["2026-01-01", None]) if position > ADOPTED_AT else None,) if table == "orders" else ()
        change(table, position, key, None if key in living[table] and chance.random() < 0.3 else row)
    for table, rows in living.items():
        for key, image in rows.items():
            insert(f"log_of_{table}", since[table][key], 1 << 40, *image)
    return connection


def compare_the_finish(log: duckdb.DuckDBPyConnection, query: str) -> int:
    """The finish over the cells of many positions, in one part and in two; returns how many rows were compared."""
    derivation = derive(query, CATALOG)
    signed = SignedRows.of_cells(derivation.cores, CATALOG)
    keys = [name for name, kind in signed.columns.items() if kind is None]
    sums = [f"COALESCE(SUM({m}), 0)::{kind} AS {m}" for m, kind in signed.columns.items() if kind is not None]
    added_up = f"SELECT {', '.join([*keys, *sums])} FROM ({{}}) GROUP BY {', '.join(keys)} HAVING SUM(__n) <> 0"
    since = 120
    log.execute(f"SET VARIABLE now_at = {since}")
    for table in TABLES:
        rows = "0::BIGINT AS __position, TIMESTAMP '0001-01-01' AS __logged_at, 1 AS __weight, *"
        log.execute(f"CREATE OR REPLACE TABLE state.{table} AS SELECT {rows} FROM source.{table}")
        log.execute(f"CREATE OR REPLACE VIEW delta.{table} AS FROM signed.{table} WHERE __position > {since}")
    log.execute(f"CREATE OR REPLACE TEMP TABLE all_rows AS {signed.all().sql('duckdb')}")
    log.execute(f"CREATE OR REPLACE TEMP TABLE new_rows AS {signed.new().sql('duckdb')}")
    compared = 0
    for at in range(1, 241, 11):
        log.execute(f"SET VARIABLE now_at = {at}")
        rows = log.execute(f"SELECT * FROM ({query}) ORDER BY ALL").fetchall()
        parts = [f"FROM all_rows WHERE position <= {at}"]
        if at > since:
            older = f"FROM all_rows WHERE position <= {since}"
            parts.append(f"{older} UNION ALL BY NAME FROM new_rows WHERE position <= {at}")
        for part in parts:
            log.execute(f"CREATE OR REPLACE TEMP TABLE cells AS {added_up.format(part)}")
            for number, core in enumerate(derivation.cores):
                of_core = as_core(core, number, exp.to_table("cells")).sql("duckdb")
                log.execute(f"CREATE OR REPLACE TEMP TABLE {core.name} AS {of_core}")
            assert log.execute(f"SELECT * FROM ({derivation.finish.sql('duckdb')}) ORDER BY ALL").fetchall() == rows
        compared += len(rows)
    return compared
