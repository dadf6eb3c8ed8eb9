"""What to do with quarantined events: land them at the positions kept for them, or give them up."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa

from lockstep import debezium
from lockstep.changelog import ChangeLog, Watermark, is_gap, split_key_updates
from lockstep.errors import LockstepError
from lockstep.ingest import Fresh, link_snapshot
from lockstep.joining import Unknown
from lockstep.schema import TABLES, TIMESTAMP, Table, log_schema

_PATIENCE = 60.0  # seconds; a capture lends the log between two batches, and a batch is seconds

Entry = dict[str, Any]  # as `ChangeLog.quarantined` returns it


@dataclass(frozen=True)
class Retry:
    """`landed` are the positions that were filled, `failed` maps the others to why the event still cannot land."""

    landed: list[int]
    failed: dict[int, str]
    watermark: Watermark


def entries(home: Path, positions: Collection[int] = (), state: str | None = None) -> list[Entry]:
    """Quarantined events in position order: those at `positions` if any are given, in `state` if one is given.

    Raises LockstepError if there is no log, or no quarantined event at one of the positions.
    """
    found = sorted(ChangeLog(home).quarantined(), key=lambda e: int(e["position"]))
    missing = sorted(set(positions) - {e["position"] for e in found})
    if missing:
        raise LockstepError(
            f"No event was quarantined at position {', '.join(map(str, missing))}. "
            "`lockstep quarantine list --state all` shows those that were."
        )
    return [e for e in found if (not positions or e["position"] in positions) and state in (None, e["state"])]


def retry(home: Path, positions: Collection[int]) -> Retry:
    """Read the open events at `positions` again by the rules of today; land those that pass at their kept positions.

    Like `discard` it may be called while a capture runs: that lends the log for as long.
    """
    log = ChangeLog(home)
    with (
        log.writer(_source(log), "retrying quarantined events", patience=_PATIENCE) as writer,
        TABLES.without(log.unadopted()),
    ):
        events = _open(home, positions)
        landed: dict[str, list[pa.Table]] = {}
        unneeded: list[Entry] = []
        failed: dict[int, str] = {}
        for event in events:
            outcome = _read(log, event)
            if isinstance(outcome, str):
                failed[event["position"]] = outcome
            else:
                table, rows = outcome
                landed.setdefault(table.name, []).append(rows)
                spare = event["positions"][rows.num_rows :]
                unneeded += [{**event, "reason": "it needed one position only", "positions": spare}] if spare else []
        if landed:
            writer.resolve({name: pa.concat_tables(rows) for name, rows in landed.items()}, unneeded)
        passed = [e["position"] for e in events if e["position"] not in failed]
        return Retry(passed, failed, writer.watermark)


def discard(home: Path, positions: Collection[int]) -> Watermark:
    """Give up the open events at `positions` for good: their positions are filled, and their hours can seal."""
    log = ChangeLog(home)
    with log.writer(_source(log), "discarding quarantined events", patience=_PATIENCE) as writer:
        return writer.resolve({}, _open(home, positions))


def _source(log: ChangeLog) -> str:
    source = log.watermark().source
    if source is None:
        raise LockstepError(f"The change log in {log.home} belongs to no source yet: nothing is quarantined.")
    return source


def _open(home: Path, positions: Collection[int]) -> list[Entry]:
    found = entries(home, positions)
    closed = [e for e in found if e["state"] != "open"]
    if closed:
        raise LockstepError(f"The event at position {closed[0]['position']} is {closed[0]['state']} already.")
    return found


def _read(log: ChangeLog, event: Entry) -> tuple[Table, pa.Table] | str:
    """The event as rows of `schema.log_schema`, two for an update of the primary key, or why it cannot land."""
    if is_gap(event):
        return str(event["reason"])
    con = debezium.connect()
    resume = log.watermark().resume
    schemas = debezium.Schemas(resume)
    tables = debezium.parse(con, debezium.as_lines([event["event"]]), debezium.Settings.stored(resume), schemas)
    unread: list[tuple[str | None, str]] = con.execute(
        f"SELECT COALESCE({debezium.unread_reason()}, {schemas.reason()}), kind FROM records"
    ).fetchall()
    if not unread or not tables:
        reason, kind = unread[0] if unread else (None, "empty")
        return reason or f"it is not a change of a table that the project knows (a {kind} record)"
    table = next(iter(tables))
    op, same_op, reason = con.execute(f"SELECT op, same_op, reason FROM parsed_{table.name}").fetchall()[0]
    if reason:
        return str(reason)
    if op != same_op and len(event["positions"]) < 2:
        return (
            "it changes the primary key, which makes a delete and an insert, but the version that quarantined it kept "
            f"one position only; `lockstep capture ... --resync {table.name}` lands what it changed, and discards it"
        )
    return table, _rows(con, log, table, event)


def _rows(con: duckdb.DuckDBPyConnection, log: ChangeLog, table: Table, event: Entry) -> pa.Table:
    fresh = Fresh(con)
    fresh.set(table, f"SELECT * EXCLUDE (same_op, same_key, reason) FROM parsed_{table.name}")
    if masked := Unknown(con, log, until=event["position"]).masked(table):
        fresh.set(table, masked)
    link_snapshot(fresh, log, table, until=event["position"])
    rows, _ = split_key_updates(table, fresh.rows[table.name])
    place = [
        pa.array(event["positions"][: rows.num_rows], pa.int64()),
        pa.array([datetime.fromisoformat(event["logged_at"])] * rows.num_rows, TIMESTAMP),
    ]
    schema = log_schema(table)
    columns: Sequence[Any] = [*place, *(rows[name].cast(schema.field(name).type) for name in schema.names[2:])]
    return pa.table(columns, schema=schema)
