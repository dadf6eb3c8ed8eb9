"""The 22 queries of TPC-H as they stand: derived, and after changes equal to the queries as written."""

from __future__ import annotations

from collections.abc import Iterator

import duckdb
import pytest
from sqlglot import exp, parse_one

from lockstep.derive import Catalog, Derivation, SignedRows, Table, as_core, derive
from lockstep.serve import extension

KEYS = {
    "customer": ("c_custkey",),
    "lineitem": ("l_orderkey", "l_linenumber"),
    "nation": ("n_nationkey",),
    "orders": ("o_orderkey",),
    "part": ("p_partkey",),
    "partsupp": ("ps_partkey", "ps_suppkey"),
    "region": ("r_regionkey",),
    "supplier": ("s_suppkey",),
}
MOVING = ("customer", "lineitem", "orders", "partsupp", "supplier")


def relation(schema: str, table: str) -> exp.Table:
    return exp.to_table(f"{schema}.{table}")


@pytest.fixture(scope="module")
def tpch() -> Iterator[tuple[duckdb.DuckDBPyConnection, Catalog]]:
    """`state`: nine tenths of the rows; `delta`: the last tenth comes, one goes in twenty, two in a hundred change."""
    connection = duckdb.connect(":memory:")
    connection.execute(f"LOAD '{extension('tpch')}'")
    connection.execute("CALL dbgen(sf = 0.01)")
    for schema in ("state", "delta", "final", "signed", "before", "nothing", "changed"):
        connection.execute(f"CREATE SCHEMA {schema}")
    catalog = {}
    for table, key in KEYS.items():
        columns = {row[0]: row[1] for row in connection.execute(f"DESCRIBE {table}").fetchall()}
        catalog[table] = Table(columns, key, frozenset(columns))
        share = f"HASH({', '.join(key)}) % 1000 / 1000" if table in MOVING else "0.5"
        changed = ", ".join(f"({c} * 1.01)::{k} AS {c}" if "DECIMAL" in k else c for c, k in columns.items())
        listed, at = ", ".join(columns), "TIMESTAMP '2026-01-01' + TO_MINUTES((share * 600)::INTEGER)"
        rows = f"(SELECT *, {share} AS share FROM {table})"
        connection.execute(f"CREATE TABLE state.{table} AS SELECT {listed} FROM {rows} WHERE share < 0.9")
        connection.execute(
            f"CREATE TABLE delta.{table} AS "
            f"SELECT {listed}, 1::TINYINT AS __weight, {at} AS __logged_at FROM {rows} WHERE share >= 0.9 "
            f"UNION ALL SELECT {listed}, -1, {at} FROM {rows} WHERE share < 0.05 "
            f"UNION ALL SELECT {changed}, 1, {at} FROM {rows} WHERE share < 0.02"
        )
        connection.execute(
            f"CREATE TABLE final.{table} AS SELECT {listed} FROM {rows} WHERE share >= 0.05 "
            f"UNION ALL SELECT {changed} FROM {rows} WHERE share < 0.02"
        )
        connection.execute(f"DROP TABLE {table}")
        carried = "0::BIGINT AS __position, TIMESTAMP '0001-01-01' AS __logged_at, 1 AS __weight"
        connection.execute(f"CREATE VIEW signed.{table} AS SELECT {listed}, {carried} FROM state.{table}")
        connection.execute(f"CREATE VIEW before.{table} AS FROM signed.{table}")
        connection.execute(f"CREATE VIEW nothing.{table} AS FROM signed.{table} WHERE FALSE")
        connection.execute(f"CREATE VIEW changed.{table} AS SELECT *, 1::BIGINT AS __position FROM delta.{table}")
    yield connection, catalog
    connection.close()


def derived(tpch: tuple[duckdb.DuckDBPyConnection, Catalog], number: int) -> Derivation:
    connection, catalog = tpch
    [(query,)] = connection.execute("SELECT query FROM tpch_queries() WHERE query_nr = ?", [number]).fetchall()
    return derive(query, catalog)


def compare_with_the_query(connection: duckdb.DuckDBPyConnection, number: int, finish: exp.Query) -> None:
    """A finish, over the cells that there are, with the query as written over the rows at the end."""
    [(query,)] = connection.execute("SELECT query FROM tpch_queries() WHERE query_nr = ?", [number]).fetchall()
    found = connection.execute(finish.sql("duckdb")).fetchall()
    connection.execute("USE final")
    try:
        expected = connection.execute(query).fetchall()
    finally:
        connection.execute("USE main")
    assert sorted(found, key=repr) == sorted(expected, key=repr)
    assert expected or number in (2, 17, 20)  # these have no rows at this scale


@pytest.mark.parametrize("number", range(1, 23))
def test_a_query_of_tpch(tpch: tuple[duckdb.DuckDBPyConnection, Catalog], number: int) -> None:
    connection, catalog = tpch
    derivation = derived(tpch, number)
    for core in derivation.cores:
        full = core.full(lambda table: relation("state", table)).sql("duckdb")
        increment = core.increment(
            catalog, lambda table: relation("state", table), lambda table: relation("delta", table)
        ).sql("duckdb")
        cells = core.added_up(parse_one(f"FROM ({full}) UNION ALL BY NAME FROM ({increment})", dialect="duckdb"))
        connection.execute(f"CREATE OR REPLACE TEMP TABLE {core.name} AS {cells.sql('duckdb')}")
    compare_with_the_query(connection, number, derivation.finish)


@pytest.mark.parametrize("number", range(1, 23))
def test_a_query_of_tpch_by_signed_rows(tpch: tuple[duckdb.DuckDBPyConnection, Catalog], number: int) -> None:
    """As the models have it: the signed rows of all cores in one relation, those of before and those that are new."""
    connection, catalog = tpch
    sources = {f"source.{name}": table for name, table in catalog.items()}
    [(query,)] = connection.execute("SELECT query FROM tpch_queries() WHERE query_nr = ?", [number]).fetchall()
    over_source = parse_one(query, dialect="duckdb")
    for table in list(over_source.find_all(exp.Table)):
        if table.name in catalog and not table.db:
            table.replace(exp.alias_(exp.to_table(f"source.{table.name}"), table.alias_or_name, table=True))
    derivation = derive(over_source, sources)
    signed = SignedRows.of_cells(derivation.cores, sources)
    keys = [name for name, kind in signed.columns.items() if kind is None]
    sums = [f"COALESCE(SUM({m}), 0)::{kind} AS {m}" for m, kind in signed.columns.items() if kind is not None]
    rows = (
        f"{placed(signed.new(), {'state': 'nothing', 'delta': 'before'})} UNION ALL BY NAME {placed(signed.new(), {})}"
    )
    connection.execute(
        f"CREATE OR REPLACE TEMP TABLE cells AS SELECT {', '.join([*keys, *sums])} FROM ({rows}) "
        f"GROUP BY {', '.join(keys)} HAVING SUM(__n) <> 0"
    )
    for n, core in enumerate(derivation.cores):
        of_core = as_core(core, n, exp.to_table("cells")).sql("duckdb")
        connection.execute(f"CREATE OR REPLACE TEMP TABLE {core.name} AS {of_core}")
    compare_with_the_query(connection, number, derivation.finish)


def placed(rows: exp.Query, schemas: dict[str, str]) -> str:
    """The query for signed rows, with other schemas for those of the tables at an instant and of their changes."""
    query = rows.copy()
    for table in query.find_all(exp.Table):
        table.set("db", exp.to_identifier({"state": "signed", "delta": "changed", **schemas}[table.db]))
    return query.sql("duckdb")
