"""Measure what stands on checkpoints, by the project's own models: the chain check, `source`, and a checkpoint.

    .venv/bin/python bench/state.py [--rows 10000000] [--changes 600000] [--runs 3] [--threads 2]

A table of orders has a checkpoint of so many rows, and then so many changes: of ten, eight update rows and one each
inserts and deletes one. The log goes back one more change of each row. Nothing lands by way of Lockstep: DuckDB writes
the files of the log and of the first checkpoint.

look: what is done before an hour is folded, of the changes (in a process of its own, for its memory). chain:
`chain.orders` over the changes. source: a rebuild's sum over two columns of `source.orders`, beside bare DuckDB
doing the same over a checkpoint and changes that it is given by name. checkpoint: what `lockstep.checkpoints` does to
take the next one, durably and hashed, beside writing its rows to Parquet from memory. Prints JSON: the least seconds of
all runs, megabytes of memory at the most, and ratios. `control` is work that is always the same.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import resource
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from datetime import datetime
from pathlib import Path
from typing import Any

import duckdb

FIRST, CUT, NEXT = datetime(2026, 1, 5), datetime(2026, 1, 6), datetime(2026, 1, 7)
HOUR = "TIMESTAMP '2026-01-06 13:00:00'"
IMAGE = (
    "{{'order_id': {key}, 'customer_id': {key} % 100000, 'product_id': {key} % 5000, 'region': 'region ' || {key} % 7, "
    "'quantity': ({key} % 9)::INT, 'amount_cents': {key} % 90000 + {version}, 'status': 'status ' || {version} % 5, "
    "'ordered_at': TIMESTAMP '2026-01-01' + INTERVAL ({key} % 400000) SECOND, "
    "'updated_at': TIMESTAMP '2026-01-05' + INTERVAL ({version}) SECOND, 'extra': NULL::VARCHAR}}"
)
LOG = "SELECT {position} AS position, {at} AS logged_at, {at} AS committed_at, {op} AS op, {before} AS before, "
LOG += "{after} AS after, 1::BIGINT AS tx_id, {position} AS lsn FROM range({n}) AS r(n)"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=10_000_000)
    parser.add_argument("--changes", type=int, default=600_000)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="lockstep-bench-") as directory:
        os.environ["LOCKSTEP_HOME"] = f"{directory}/loads the models"
        print(json.dumps(measure(Path(directory, "home"), **vars(arguments)), indent=2))


def measure(home: Path, rows: int, changes: int, runs: int, threads: int) -> dict[str, Any]:
    connection = duckdb.connect(config={"threads": threads, "file_search_path": str(home)})
    connection.execute("SET TimeZone = 'UTC'; ATTACH ':memory:' AS warehouse; USE warehouse")
    generate(connection, home, rows, changes)
    models = model_queries()
    make_models(connection, models)

    looks = [in_its_own_process(look, home, rows, changes) for _ in range(runs)]
    chain, memory = [], []
    for _ in range(runs):
        seconds, found = timed(lambda: connection.execute(models["chain.orders"]).fetchall())
        assert found[0][2:4] == (changes, 0), found
        chain.append(seconds)
        memory.append(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)

    figures = "SELECT region, COUNT(*), SUM(amount_cents) FROM {} GROUP BY region ORDER BY region"
    bare = f"({bare_state(home)})"
    source = [timed(lambda: connection.execute(figures.format("source.orders")).fetchall()) for _ in range(runs)]
    by_hand = [timed(lambda: connection.execute(figures.format(bare)).fetchall()) for _ in range(runs)]
    assert source[0][1] == by_hand[0][1]

    connection.execute(f"CREATE TABLE held AS SELECT * FROM {bare}")
    written = home / "written.parquet"
    copy = f"COPY held TO '{written}' (FORMAT PARQUET, COMPRESSION ZSTD, ROW_GROUP_SIZE 122880)"
    from_memory = [timed(lambda: connection.execute(copy))[0] for _ in range(runs)]
    connection.execute("DROP TABLE held")
    taken = [timed(lambda: take(connection, home))[0] for _ in range(runs)]
    control = [timed(lambda: connection.execute("SELECT SUM(HASH(n)) FROM range(20000000) AS r(n)").fetchall())[0]]
    least = {
        "look": min(seconds for seconds, _ in looks),
        "chain": min(chain),
        "source": min(s for s, _ in source),
        "bare source": min(s for s, _ in by_hand),
        "checkpoint": min(taken),
        "written from memory": min(from_memory),
        "control": min(control),
    }
    return {
        "rows": rows,
        "changes": changes,
        "seconds": {name: round(seconds, 3) for name, seconds in least.items()},
        "megabytes of the look": round(max(megabytes for _, megabytes in looks)),
        "megabytes of the chain check": round(max(memory)),
        "source / bare": round(least["source"] / least["bare source"], 2),
        "checkpoint / written from memory": round(least["checkpoint"] / least["written from memory"], 2),
    }


def generate(connection: duckdb.DuckDBPyConnection, home: Path, rows: int, changes: int) -> None:
    """The files: a snapshot of all rows before the first cut, a checkpoint of these, and the changes in one hour."""

    def image(key: str, version: int) -> str:
        return IMAGE.format(key=key, version=version)

    nothing = f"CASE WHEN FALSE THEN {image('n', 1)} END"
    updates, step = changes * 8 // 10, rows // changes + 1
    inserts = changes // 10
    key = f"(n * {step})"
    parts = [
        LOG.format(position="n + 1", at=f"TIMESTAMP '{FIRST}'", op="'r'", before=nothing, after=image("n", 1), n=rows),
        LOG.format(
            position=f"{rows} + n + 1",
            at=HOUR,
            op="'u'",
            before=image(key, 1),
            after=image(key, 2),
            n=updates,
        ),
        LOG.format(
            position=f"{rows + updates} + n + 1",
            at=HOUR,
            op="'c'",
            before=nothing,
            after=image(f"({rows} + n)", 2),
            n=inserts,
        ),
        LOG.format(
            position=f"{rows + updates + inserts} + n + 1",
            at=HOUR,
            op="'d'",
            before=image(f"(n * {step} + 1)", 1),
            after=nothing,
            n=changes - updates - inserts,
        ),
    ]
    hours = {f"2026-01-05T00/1-{rows}": parts[0]}
    hours[f"2026-01-06T13/{rows + 1}-{rows + changes}"] = " UNION ALL ".join(parts[1:])
    for name, query in hours.items():
        path = home / "changelog" / "orders" / f"hour={name}.parquet"
        path.parent.mkdir(parents=True)
        connection.execute(f"COPY ({query}) TO '{path}' (FORMAT PARQUET, COMPRESSION ZSTD, ROW_GROUP_SIZE 122880)")
    for partition, limit in (("0001-01-01T00", 0), (f"{CUT:%Y-%m-%dT%H}", rows)):
        path = home / "changelog" / "_checkpoints" / "orders" / f"__cut={partition}" / "rows.parquet"
        path.parent.mkdir(parents=True)
        query = f"SELECT UNNEST({image('n', 1)}) FROM range({limit}) AS r(n)"
        connection.execute(f"COPY ({query}) TO '{path}' (FORMAT PARQUET, COMPRESSION ZSTD, ROW_GROUP_SIZE 122880)")


def model_queries() -> dict[str, str]:
    """The queries of the project's models, as SQLMesh renders them."""
    from sqlmesh import Context

    context = Context(paths=str(Path(__file__).parents[1]))
    try:
        names = ("chain.orders", "source.orders", "checkpoints.orders")
        return {name: context.get_model(name).render_query_or_raise().sql("duckdb") for name in names}
    finally:
        context.close()


def make_models(connection: duckdb.DuckDBPyConnection, models: dict[str, str]) -> None:
    for schema in ("changes", "chain", "checkpoints", "source", "ops", "rebuild", "hourly"):
        connection.execute(f"CREATE SCHEMA {schema}")
    log = "READ_PARQUET('changelog/orders/*/*.parquet', hive_partitioning = FALSE)"
    connection.execute(f"CREATE VIEW changes.orders AS SELECT * FROM {log} WHERE position <= 1000000000000")
    connection.execute(
        f"CREATE TABLE ops.checkpoints AS SELECT 'orders' AS source_table, TIMESTAMP '{CUT}' AS cut, "
        f"'{CUT:%Y-%m-%dT%H}' AS partition"
    )
    cuts = f"UNNEST(['orders', 'customer_activity']) AS domain, TIMESTAMP '{NEXT}' AS cut"
    connection.execute(f"CREATE TABLE rebuild.cut AS SELECT {cuts}")
    connection.execute(f"CREATE TABLE hourly.log AS SELECT TIMESTAMP '{CUT}' AS log_hour, 1 AS last_position")
    for name in ("checkpoints.orders", "source.orders"):
        connection.execute(f"CREATE VIEW {name} AS {models[name]}")
    connection.execute(f"CREATE VIEW chain.orders AS SELECT TIMESTAMP '{NEXT}' AS cut, 0 AS broken")


def bare_state(home: Path) -> str:
    """The same by hand, with the paths of the rows and the changes written in."""
    changes = f"read_parquet('{home}/changelog/orders/hour=2026-01-06T13/*.parquet', hive_partitioning = FALSE)"
    path = f"{home}/changelog/_checkpoints/orders/__cut={CUT:%Y-%m-%dT%H}/rows.parquet"
    rows = f"read_parquet('{path}', hive_partitioning = FALSE)"
    key = "COALESCE(after.order_id, before.order_id)"
    return (
        f"SELECT * FROM {rows} ANTI JOIN (SELECT {key} AS order_id FROM {changes}) USING (order_id) UNION ALL "
        f"SELECT UNNEST(after) FROM {changes} WHERE after IS NOT NULL AND position IN "
        f"(SELECT MAX(position) FROM {changes} GROUP BY {key})"
    )


def look(home: Path, rows: int, changes: int) -> tuple[float, float]:
    """Seconds, and the most megabytes of this process."""
    from lockstep import breaks
    from lockstep.changelog import ChangeLog
    from lockstep.schema import TABLES

    note_the_first(home, rows)
    seconds, found = timed(lambda: breaks.find(ChangeLog(home), TABLES["orders"], rows, rows + changes))
    assert found == []
    return seconds, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def in_its_own_process(function: Callable[..., Any], *arguments: Any) -> Any:
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        return pool.submit(function, *arguments).result()


def note_the_first(home: Path, rows: int) -> None:
    from lockstep import checkpoints
    from lockstep.schema import TABLES

    path = home / "changelog" / "_checkpoints" / "orders" / f"__cut={CUT:%Y-%m-%dT%H}" / "rows.parquet"
    size, columns = path.stat().st_size, checkpoints._columns(TABLES["orders"])
    first = checkpoints.Checkpoint("orders", CUT, rows, None, rows, size, "not looked at", columns)
    checkpoints._List(home).write([first])


def take(connection: duckdb.DuckDBPyConnection, home: Path) -> None:
    """A checkpoint from the one before and the changes since, as a run takes it."""
    from lockstep import checkpoints

    note_the_first(home, 0)
    [_] = checkpoints.take(home, lambda query: connection.execute(query).fetchall(), connection.execute)


def timed(action: Callable[[], Any]) -> tuple[float, Any]:
    begun = time.perf_counter()
    found = action()
    return time.perf_counter() - begun, found


if __name__ == "__main__":
    main()
