"""pgbench as it stands: a table without a key, fixed-width texts, and a capture that is killed under its load."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from postgres import Cluster, own_cluster
from stranger import Stranger, program

TRANSACTIONS = 400
FACT = {
    "models/rebuild/balances.sql": """/* What the accounts of each branch hold at the cut. */
MODEL (
  name rebuild.balances, kind FULL, cron '@daily', start @log_eve(), grain bid,
  depends_on (rebuild.cut, chain.pgbench_accounts)
);
SELECT bid::BIGINT AS bid, COUNT(*)::BIGINT AS accounts, SUM(abalance)::BIGINT AS balance
FROM source.pgbench_accounts GROUP BY 1
""",
    "seeds/contracts.csv": "balances,bank,batch,60,60\n",
}


@pytest.fixture
def bench() -> Iterator[Cluster]:
    with own_cluster() as server:
        server.create_shop()
        server.execute("DROP SCHEMA public CASCADE; CREATE SCHEMA public")
        assert program(server, "pgbench", ["-i", "-q"]).wait() == 0
        yield server


def test_a_capture_killed_under_load_is_equal_in_the_end(bench: Cluster, tmp_path: Path) -> None:
    stranger = Stranger(bench, tmp_path)
    stranger.init("--append-only", "pgbench_history")
    with stranger.capturing():
        rows = 100_000 + 10 + 1
        load = program(bench, "pgbench", ["-n", "-c", "2", "-t", str(TRANSACTIONS // 2), "-R", "40"])
        stranger.wait_for(rows + TRANSACTIONS)
    try:
        with stranger.capturing():
            assert load.wait() == 0
            stranger.wait_for(rows + 4 * TRANSACTIONS)
            said = stranger.verify()
    finally:
        load.kill()
        load.wait()
    assert "pgbench_history" in said
    assert bench.execute("SELECT count(*) FROM pgbench_history") == [(TRANSACTIONS,)]
    stranger.write(FACT)
    stranger.run_next_night()
    balances = bench.execute("SELECT bid, count(*), sum(abalance) FROM pgbench_accounts GROUP BY bid")
    for model in ("rebuild", "live", "hourly"):
        found = f"SELECT bid, SUM(accounts), SUM(balance) FROM {model}.balances GROUP BY bid"
        assert stranger.rows(found) == balances, model
    for table, columns in (
        ("pgbench_accounts", "aid, bid, abalance, filler"),
        ("pgbench_tellers", "tid, bid, tbalance"),
        ("pgbench_branches", "bid, bbalance"),
        ("pgbench_history", "mtime, tid, bid, aid, delta"),
    ):
        expected = bench.execute(f"SELECT {columns} FROM {table} ORDER BY {columns}")
        rows = f"SELECT {columns} FROM source.{table} ORDER BY {columns}"
        assert stranger.rows(rows) == expected, table
        if table != "pgbench_history":  # of an append-only table the rows are not published
            assert stranger.rows(rows, "analytics.duckdb") == expected, table
