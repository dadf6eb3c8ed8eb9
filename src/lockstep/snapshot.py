"""Where a capture begins: at the point that the log has reached, or else with a snapshot tied to a new slot.

A first snapshot lands whole, as op `r`. A later one (the slot was lost, or the log was filled otherwise) lands only
how the source differs from the log: new rows as `r`, changed ones as `r` with the image that the log has of them,
vanished ones as `d`. Adding it up then gives the source's state again, and nothing is counted twice. What events in
quarantine said is in that difference, so they are discarded with it.
"""

from __future__ import annotations

import logging
import shutil
import threading
from collections.abc import Callable, Mapping
from contextlib import suppress
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import psycopg2
import pyarrow as pa
import pyarrow.parquet as pq
from psycopg2 import errors
from psycopg2.extensions import connection as Connection
from psycopg2.extras import LogicalReplicationConnection

from lockstep.changelog import Batch, Writer
from lockstep.errors import LockstepError
from lockstep.latest import differences
from lockstep.logs import about
from lockstep.pgoutput import REJECTED_SCHEMA, event
from lockstep.pgvalues import Layout, images, json_image
from lockstep.postgres import Identity, Source, format_lsn, parse_lsn, query
from lockstep.schema import TABLES, TIMESTAMP, batch_schema

# A part is what is decoded and written at once: it bounds memory.
PART_ROWS = 40_000
PART_BYTES = 10 << 20

_TELL_FIRST, _TELL_EVERY = 2.0, 60.0  # seconds of waiting for a slot after which the log says what for

log = logging.getLogger("lockstep.capture")


class _Stopped(Exception):
    """The user stopped the capture in the middle of its snapshot."""


def begin(home: Path, writer: Writer, source: Source, new_snapshot: bool, stop: threading.Event) -> int:
    """Leave the log in a state from which the slot's stream continues it; returns how many changes that landed.

    If `stop` is set meanwhile the snapshot is given up, and the next start takes another. Raises LockstepError if the
    source is not ready, or if log and slot do not fit together: with what must be done about it.
    """
    with source.first_connections() as (connection, replication):
        identity = source.identity(replication)
        resume = writer.watermark.resume
        is_begun = "slot" in resume
        if is_begun:
            _same_names(resume, source)
        take_snapshot = new_snapshot or resume.get("snapshot") != "complete"
        if is_begun and not take_snapshot:
            check_source(connection, source, {}, is_new=False)
            check_continues(connection, source, identity, resume)
            if "published" not in resume:  # by an older version
                writer.land({}, resume={**resume, "published": source.published(connection)})
            return 0
        if writer.watermark.position and not is_begun and not new_snapshot:
            raise LockstepError(
                f"The change log in {home} was not begun by `lockstep capture`: it does not say from where in "
                f"PostgreSQL's log to continue. `--new-snapshot` lands how {identity.database} differs from it, and "
                "continues from there."
            )
        check_source(connection, source, resume, is_new=True)
        if is_begun:
            source.drop_slot(connection)
        is_published = source.create_publication(connection)
        state = {
            "slot": source.slot,
            "publication": source.publication,
            "schema": source.schema,
            "system_identifier": identity.system_identifier,
            "database": identity.database,
            "published": source.published(connection),
        }
        # Before the slot is made: should we be killed with it half done, the slot is known to be ours to drop.
        writer.land({}, resume={**state, "snapshot": "incomplete"})
        try:
            return _snapshot(home, writer, source, identity, connection, replication, state, stop)
        except BaseException as e:
            # A slot that nobody reads keeps the server's log from being removed. Once it is gone nothing needs to know
            # of it: a log that has just been begun is then taken back.
            with suppress(psycopg2.Error, LockstepError, OSError):
                source.drop_slot(connection)
                if is_published:
                    source.drop_publication(connection)
                if not is_begun:
                    writer.land({}, resume=resume)
            if isinstance(e, _Stopped):
                log.info("stopped before the snapshot was complete: nothing landed, the next start takes another")
                return 0
            if isinstance(e, psycopg2.Error):
                raise LockstepError(
                    f"The snapshot could not be completed: {' '.join(str(e).split())} Nothing of it landed; "
                    "the next start takes another."
                ) from e
            raise


def _same_names(resume: Mapping[str, Any], source: Source) -> None:
    for option, given in (("slot", source.slot), ("publication", source.publication), ("schema", source.schema)):
        if resume[option] != given:
            raise LockstepError(
                f"This change log is captured with `--{option} {resume[option]}`, not {given}. "
                "Start it with the same name, or set LOCKSTEP_HOME to another directory."
            )


def check_source(connection: Connection, source: Source, resume: Mapping[str, Any], is_new: bool) -> None:
    """Refuse a source that is not ready. `is_new` if a slot will be made: then rows must be good from the start."""
    problems = source.check(connection)
    fatal = [p for p in problems if p.is_fatal or is_new]
    if fatal:
        listed = "".join(f"\n  {p.text}\n    {p.statement}" for p in fatal)
        raise LockstepError(f"The source is not ready to be captured:{listed}")
    for problem in problems:
        log.warning("%s; rows that do not fit go to quarantine: %s", problem.text, problem.statement)
    slot = source.slot_state(connection)
    if is_new and slot and not resume:
        raise LockstepError(
            f"The server has a replication slot {source.slot} already, and this change log does not know it: another "
            "capture may be using it. Take another name with `--slot NAME`, or if nobody needs it:\n"
            f"    SELECT pg_drop_replication_slot('{source.slot}');"
        )


def check_continues(connection: Connection, source: Source, identity: Identity, resume: Mapping[str, Any]) -> None:
    """Refuse to continue where changes would be missing or belong to another server."""
    landed = parse_lsn(resume["commit_lsn"])
    offer = (
        "`--new-snapshot` reads all tables again and lands how they differ from the change log; nothing is counted "
        "twice, but what happened in between is seen as one change a row."
    )
    if resume["system_identifier"] != identity.system_identifier:
        raise LockstepError(
            f"This is another server: the change log was captured from system {resume['system_identifier']}, this is "
            f"{identity.system_identifier}. If it holds the same database, moved or restored: {offer}"
        )
    slot = source.slot_state(connection)
    [[end]] = query(connection, "SELECT pg_current_wal_flush_lsn()")
    if slot is None:
        why = f"Replication slot {source.slot} is gone: the server no longer keeps what changed since."
    elif slot.plugin != "pgoutput" or slot.database != identity.database:
        why = f"Replication slot {source.slot} is of database {slot.database} and plugin {slot.plugin}, not ours."
    elif slot.is_lost:
        why = (
            f"Replication slot {source.slot} is lost: the server had to remove log that was not captured yet "
            "(max_slot_wal_keep_size)."
        )
    elif slot.confirmed_lsn > landed:
        why = (
            f"Replication slot {source.slot} has been read up to {format_lsn(slot.confirmed_lsn)}, this change log "
            f"ends at {resume['commit_lsn']}: somebody else has read the slot, or an older change log was restored."
        )
    elif parse_lsn(end) < landed:
        why = f"The server was set back in time: its log ends at {end}, {resume['commit_lsn']} has landed here."
    else:
        check_published(connection, source, resume)
        return
    raise LockstepError(f"{why} {offer}")


def check_published(connection: Connection, source: Source, resume: Mapping[str, Any]) -> None:
    """Refuse to go on where the publication, or a table's place in it, is not what it was at the snapshot."""
    was = resume.get("published")
    if was is None or (now := source.published(connection)) == was:
        return
    lacking = [name for name in was["tables"] if name not in now["tables"]]
    changed = [name for name in TABLES if now["tables"].get(name) != was["tables"].get(name)]
    if lacking:
        what = f"{', '.join(lacking)} left publication {source.publication}"
    elif now["publication"] != was["publication"]:
        what = f"publication {source.publication} was altered, or dropped and made again"
    else:
        what = f"{', '.join(changed)} left publication {source.publication} for a time, or was made anew"
    raise LockstepError(
        f"Since the last snapshot {what}: changes may never have been sent, and are missing in the log. Start once "
        "with `--new-snapshot`: it reads all tables again and lands how they differ from the log."
    )


def _snapshot(
    home: Path,
    writer: Writer,
    source: Source,
    identity: Identity,
    connection: Connection,
    replication: LogicalReplicationConnection,
    state: Mapping[str, Any],
    stop: threading.Event,
) -> int:
    log.info(
        "making slot %s; this waits for the transactions that are running now",
        source.slot,
        extra=about("slot", slot=source.slot),
    )
    told = 0.0

    def while_waiting(seconds: float) -> bool:
        nonlocal told
        if seconds - told >= (_TELL_EVERY if told else _TELL_FIRST):
            told = seconds
            for transaction in source.unfinished(connection):
                log.warning(
                    "slot %s waits for %s", source.slot, transaction, extra=about("slot_waits", transaction=transaction)
                )
        return not stop.is_set()

    try:
        snapshot = source.create_slot(replication, while_waiting=while_waiting)
    except errors.QueryCanceled:
        if stop.is_set():
            raise _Stopped from None
        raise
    scratch = home / "snapshot"
    try:
        with source.reading(snapshot) as (reading, xid, at), writer.batch() as batch:
            superseded = batch.supersede_quarantine()
            stage = _Stage(identity.database, source.schema, xid, snapshot.lsn, at, batch, stop)
            for table in TABLES.values():
                layout = source.layout(reading, table)
                if writer.watermark.position:
                    scratch.mkdir(parents=True, exist_ok=True)
                    staged, unread = scratch / f"{table.name}.parquet", scratch / "unread.parquet"
                    with (
                        pq.ParquetWriter(staged, pa.schema([("image", table.image)])) as file,
                        pq.ParquetWriter(unread, REJECTED_SCHEMA) as rejected,
                    ):
                        rows = stage.rows(layout, _into(file), rejected.write_table)
                        source.copy(reading, layout, rows, PART_ROWS, PART_BYTES)
                    files, position = batch.files(table.name), batch.watermark.position
                    for before, after in differences(table, files, position, staged, scratch):
                        stage.land(layout, before, after)
                    # Last: a row that cannot be read is gone from the log by now, so that a retry brings it back.
                    with pq.ParquetFile(unread) as file:
                        for group in range(file.num_row_groups):
                            stage.reject(file.read_row_group(group))
                else:
                    source.copy(reading, layout, stage.rows(layout, stage.land, stage.reject), PART_ROWS, PART_BYTES)
            landed = batch.land(
                reached=at, resume={**state, "snapshot": "complete", "commit_lsn": format_lsn(snapshot.lsn)}
            )
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    lsn = format_lsn(snapshot.lsn)
    fields = about("snapshot", position=landed.watermark.position, lsn=lsn, changes=landed.changes)
    log.info("snapshot at %s: %d changes landed", lsn, landed.changes, extra=fields)
    if superseded:
        log.info(
            "%d events in quarantine were discarded: the snapshot holds what they said",
            len(superseded),
            extra=about("superseded", positions=superseded),
        )
    return landed.changes


def _into(file: pq.ParquetWriter) -> Callable[[Layout, pa.Array | None, pa.Array], None]:
    def write(layout: Layout, before: pa.Array | None, after: pa.Array) -> None:
        file.write_batch(pa.record_batch([after], ["image"]))

    return write


class _Stage:
    """Lands a snapshot's rows, all with the snapshot's transaction, position in the source's log and time."""

    def __init__(
        self, database: str, schema: str, xid: int, lsn: int, at: datetime, batch: Batch, stop: threading.Event
    ) -> None:
        self._database, self._schema = database, schema
        self._xid, self._lsn, self._at = xid, lsn, at
        self._batch = batch
        self._stop = stop

    def rows(
        self,
        layout: Layout,
        take: Callable[[Layout, pa.Array | None, pa.Array], None],
        reject: Callable[[pa.Table], None],
    ) -> Callable[[list[pa.Array]], None]:
        """What to do with rows as text: `reject` those that break the landing contract, `take` the others' images."""

        def typed(texts: list[pa.Array]) -> None:
            if self._stop.is_set():
                raise _Stopped
            after, reasons = images(layout, texts, None, "after")
            if reasons:
                reject(self._rejected(layout, texts, reasons))
                after = after.take(pa.array([i for i in range(len(after)) if i not in reasons], pa.int64()))
            take(layout, None, after)

        return typed

    def land(self, layout: Layout, before: pa.Array | None, after: pa.Array) -> None:
        """Land images as `r`, or as `d` where there is none after; `before` is what the log has of the row."""
        rows = len(after)
        before = pa.nulls(rows, layout.table.image) if before is None else before
        op = pa.array(np.where(after.is_null().to_numpy(zero_copy_only=False), "d", "r"), pa.string())
        columns = [
            pa.array(np.arange(rows)),
            pa.array([self._at] * rows, TIMESTAMP),
            op,
            before,
            after,
            pa.array(np.full(rows, self._xid)),
            pa.array(np.full(rows, self._lsn)),
        ]
        self._batch.add({layout.table.name: pa.table(columns, schema=batch_schema(layout.table))})

    def reject(self, rejected: pa.Table) -> None:
        self._batch.add({}, rejected)

    def _rejected(self, layout: Layout, texts: list[pa.Array], reasons: Mapping[int, str]) -> pa.Table:
        at_us = (self._at - datetime(1970, 1, 1)).total_seconds() * 1e6
        rejected = []
        for row, reason in sorted(reasons.items()):
            image = json_image(layout, [text[row].as_py() for text in texts])
            name = layout.table.name
            text = event(
                self._database,
                *layout.table.in_postgresql(self._schema),
                "r",
                None,
                image,
                self._xid,
                self._lsn,
                round(at_us),
            )
            rejected.append({"ordinal": row, "committed_at": self._at, "table": name, "reason": reason, "event": text})
        return pa.Table.from_pylist(rejected, REJECTED_SCHEMA)
