"""pgbench as it stands: a table without a key, fixed-width texts, and a capture that is killed under its load."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from postgres import Cluster, own_cluster
from stranger import Stranger, program

TRANSACTIONS = 400


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
