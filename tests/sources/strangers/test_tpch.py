"""TPC-H with its refresh functions and updates: after a kill under load the log, and a fact, equal the source."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path

import duckdb
import psycopg2
import pytest

from lockstep.changelog import ChangeLog
from lockstep.serve import extension
from postgres import Cluster, own_cluster
from stranger import Stranger

KEYS = {
    "region": "r_regionkey",
    "nation": "n_nationkey",
    "supplier": "s_suppkey",
    "part": "p_partkey",
    "partsupp": "ps_partkey, ps_suppkey",
    "customer": "c_custkey",
    "orders": "o_orderkey",
    "lineitem": "l_orderkey, l_linenumber",
}
# Orders whose key leaves 7 when divided by 32 are new: RF1 brings them, RF2 takes as many old ones away.
REFRESHES = 20
RF1 = """
INSERT INTO orders SELECT * FROM new_orders WHERE o_orderkey % {n} = {i};
INSERT INTO lineitem SELECT * FROM new_lineitem WHERE l_orderkey % {n} = {i};
"""
RF2 = """
DELETE FROM lineitem WHERE l_orderkey % 32 = 1 AND l_orderkey % {n} = {i};
DELETE FROM orders WHERE o_orderkey % 32 = 1 AND o_orderkey % {n} = {i};
"""
UPDATES = """
UPDATE lineitem SET l_discount = 0.10 - l_discount, l_linestatus = 'F'
  WHERE l_orderkey % 64 = 2 AND l_partkey % {n} = {i};
UPDATE orders SET o_orderkey = -o_orderkey WHERE o_orderkey % 128 = 3 AND o_custkey % {n} = {i};
UPDATE partsupp SET ps_supplycost = ps_supplycost * 1.01 WHERE ps_partkey % 400 = {i};
"""
LATEST = """
/* Every line item that lives at the cut. */
MODEL (name rebuild.latest_pricing, kind VIEW, grain (l_orderkey, l_linenumber));
SELECT
  l_orderkey::BIGINT AS l_orderkey, l_linenumber::BIGINT AS l_linenumber, l_returnflag::TEXT AS l_returnflag,
  l_linestatus::TEXT AS l_linestatus, 1::BIGINT AS items, l_quantity::DECIMAL(38, 2) AS quantity,
  (l_extendedprice * (1 - l_discount) * (1 + l_tax))::DECIMAL(38, 6) AS charge
FROM source.lineitem
"""
REBUILD = """
/* Line items by flag and status at the cut. */
MODEL (
  name rebuild.pricing, kind FULL, cron '@daily', start @log_eve(), grain (l_returnflag, l_linestatus),
  depends_on (rebuild.cut, chain.lineitem)
);
SELECT
  l_returnflag::TEXT AS l_returnflag, l_linestatus::TEXT AS l_linestatus, COUNT(*)::BIGINT AS items,
  SUM(quantity)::DECIMAL(38, 2) AS quantity, SUM(charge)::DECIMAL(38, 6) AS charge
FROM rebuild.latest_pricing GROUP BY ALL
"""
CONTRACT = "pricing,sales,batch,60,60\n"


@pytest.fixture
def tpch(tmp_path: Path) -> Iterator[Cluster]:
    """All tables without the new orders, which wait in tables of their own."""
    with own_cluster() as server, duckdb.connect() as generated:
        server.create_shop()
        server.execute("DROP SCHEMA public CASCADE; CREATE SCHEMA public")
        generated.execute(f"LOAD '{extension('tpch')}'; CALL dbgen(sf = 0.01)")
        with closing(psycopg2.connect(server.dsn())) as connection, connection.cursor() as cursor:
            for table, key in KEYS.items():
                columns = generated.execute(f"DESCRIBE {table}").fetchall()
                listed = ", ".join(f"{name} {kind} NOT NULL" for name, kind, *_ in columns)
                cursor.execute(f"CREATE TABLE {table} ({listed}, PRIMARY KEY ({key}))")
                path = tmp_path / f"{table}.csv"
                generated.execute(f"COPY {table} TO '{path}' (HEADER FALSE)")
                with path.open() as rows:
                    cursor.copy_expert(f"COPY {table} FROM STDIN (FORMAT csv)", rows)
            for table, key in (("orders", "o_orderkey"), ("lineitem", "l_orderkey")):
                cursor.execute(f"CREATE TABLE new_{table} AS SELECT * FROM {table} WHERE {key} % 32 = 7")
                cursor.execute(f"DELETE FROM {table} WHERE {key} % 32 = 7")
            connection.commit()
        yield server


def test_a_capture_killed_between_refreshes_is_equal_in_the_end(tpch: Cluster, tmp_path: Path) -> None:
    stranger = Stranger(tpch, tmp_path)
    stranger.init(*(word for table in KEYS for word in ("--table", table)))
    goes_on = threading.Event()

    def refresh() -> None:
        for i in range(REFRESHES):
            for statements in (RF1, RF2, UPDATES):
                tpch.execute(statements.format(n=REFRESHES, i=i))
            if i == REFRESHES // 2:
                goes_on.wait(120)

    with ThreadPoolExecutor(1) as thread:
        with stranger.capturing():
            snapshot = ChangeLog(stranger.home).watermark().position
            load = thread.submit(refresh)
            while not load.done() and ChangeLog(stranger.home).watermark().position < snapshot + 10:
                time.sleep(0.05)
        goes_on.set()
        load.result()
    stranger.write(
        {
            "models/rebuild/latest_pricing.sql": LATEST.lstrip(),
            "models/rebuild/pricing.sql": REBUILD.lstrip(),
            "seeds/contracts.csv": CONTRACT,
        }
    )
    with stranger.capturing():
        said = stranger.verify()
        stranger.command("run")
    assert all(table in said for table in KEYS)
    expected = tpch.execute(
        "SELECT l_returnflag, l_linestatus, count(*), sum(l_quantity), "
        "sum(l_extendedprice * (1 - l_discount) * (1 + l_tax)) FROM lineitem GROUP BY 1, 2 ORDER BY 1, 2"
    )
    figures = "FROM (SELECT COLUMNS(*) FROM {}.pricing) ORDER BY ALL"
    assert stranger.rows(figures.format("live")) == expected
    cut = stranger.run_next_night()
    assert stranger.rows("SELECT verdict, cut FROM reconcile.pricing_receipts ORDER BY cut DESC LIMIT 1") == [
        ("passed", cut)
    ]
    assert stranger.rows(figures.format("rebuild")) == stranger.rows(figures.format("live")) == expected
