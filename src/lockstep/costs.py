"""What facts cost, as measured in a home: nothing is written, and nothing is known of it where nothing has run."""

from __future__ import annotations

import time
from collections.abc import Iterable
from datetime import datetime, timedelta
from pathlib import Path

import duckdb
from duckdb import DuckDBPyConnection

from lockstep import warehouse
from lockstep.contracts import Contract
from lockstep.errors import LockstepError
from lockstep.reconcile import Models, planned
from lockstep.schema import quoted
from lockstep.warehouse import Row, text

NOTHING: Row = dict.fromkeys(("cells", "share", "hour_seconds", "read_seconds", "rebuild_seconds"))
_TIMES = 3
_HOUR = timedelta(hours=1)


def measured(home: Path, contracts: Iterable[Contract]) -> dict[str, Row]:
    """By domain what it costs now; None for what there is not. Takes as long as what it measures, three times.

    `cells`: those of the published cut. `share`: of the rows of all its tables. `hour_seconds`: to compute the last
    folded hour; None for a fact of several tables while no checkpoint lies before that hour. `read_seconds`: to read
    all live figures of the published file. `rebuild_seconds`: to run the query as written at the end of that hour. Each
    is the shortest of three. Raises LockstepError if a run has the warehouse open, or nothing is published yet.
    """
    path = home / "analytics.duckdb"
    with planned() as models, warehouse.reader(home) as connection:
        try:
            connection.execute(f"ATTACH {text(path)} AS published (READ_ONLY)")
        except duckdb.Error as e:
            raise LockstepError(f"{path} cannot be read: {e}. `lockstep run` publishes it.") from None
        found = connection.execute(
            "SELECT schema_name || '.' || table_name FROM duckdb_tables() WHERE database_name = 'published' "
            "UNION ALL SELECT schema_name || '.' || view_name FROM duckdb_views() WHERE database_name = 'published'"
        ).fetchall()
        return {c.domain: _costs(connection, models, c, {name for (name,) in found}) for c in contracts}


def _costs(connection: DuckDBPyConnection, models: Models, contract: Contract, published: set[str]) -> Row:
    domain = contract.domain
    costs = dict(NOTHING)
    until = models.folded_until("hourly.log")
    if f"folded.{domain}" in published:
        costs["cells"] = _count(connection, f"published.folded.{domain}")
        rows = sum(_count(connection, f"source.{quoted(table)}") for table in contract.sources)
        costs["share"] = costs["cells"] / rows if rows else None
    if until and not contract.is_recomputed and _has_checkpoints(connection, contract, until - _HOUR):
        hour = models.hour(f"hourly.{domain}", until - _HOUR)
        costs["hour_seconds"] = _seconds(connection, hour.sql("duckdb"))
    if f"live.{domain}" in published:
        costs["read_seconds"] = _seconds(connection, f"SELECT * FROM published.live.{domain}")
    if until:
        costs["rebuild_seconds"] = _seconds(connection, models.query(f"rebuild.{domain}", until).sql("duckdb"))
    return costs


def _has_checkpoints(connection: DuckDBPyConnection, contract: Contract, at: datetime) -> bool:
    """Whether an hour from there on finds each of several tables in a checkpoint, and need not read the whole log."""
    if len(contract.sources) == 1:
        return True
    query = "SELECT COUNT(DISTINCT source_table) FROM ops.checkpoints WHERE cut <= ? AND list_contains(?, source_table)"
    [(found,)] = connection.execute(query, [at, list(contract.sources)]).fetchall()
    return bool(found == len(contract.sources))


def _count(connection: DuckDBPyConnection, relation: str) -> int:
    [(count,)] = connection.execute(f"SELECT COUNT(*) FROM {relation}").fetchall()
    return int(count)


def _seconds(connection: DuckDBPyConnection, query: str) -> float:
    taken = []
    for _ in range(_TIMES):
        started = time.perf_counter()
        connection.execute(f"CREATE OR REPLACE TEMP TABLE measured AS {query}")
        taken.append(time.perf_counter() - started)
    return round(min(taken), 4)
