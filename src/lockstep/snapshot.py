"""Where a capture begins: at the point that the log has reached, or else with a snapshot tied to a new slot.

A first snapshot lands whole, as op `r`. A later one (the slot was lost, or the log was filled otherwise) is a resync of
all tables: it lands only how the source differs from the log, as op `r` with the image that the log has and the image
that the source has; either may be missing. After it both the latest images and the sums of signed images are the
source's. It includes what events in quarantine said, so these are discarded with it.
"""

from __future__ import annotations

import logging
import os
import secrets
import shutil
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import psycopg2
import pyarrow as pa
import pyarrow.parquet as pq
from psycopg2 import errors
from psycopg2.extensions import connection as Connection
from psycopg2.extras import LogicalReplicationConnection

from lockstep.breaks import broken_at
from lockstep.changelog import Batch, ChangeLog, Hold, Watermark, Writer
from lockstep.compare import Staging
from lockstep.errors import LockstepError
from lockstep.latest import Differences, differences
from lockstep.logs import about
from lockstep.partitions import Partitions, attached, gaps, next_notes, note, noted
from lockstep.pgoutput import REJECTED_SCHEMA, event
from lockstep.pgvalues import Layout, images, json_image
from lockstep.postgres import Identity, Source, format_lsn, parse_lsn, query
from lockstep.schema import TABLES, TIMESTAMP, Table, batch_schema, quoted

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
            check_continues(writer, connection, replication, source)
            note_gaps(writer, connection, source)
            check_source(connection, source, {}, is_new=False)
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
            "timeline": identity.timeline,
            "published": source.published(connection),
        }
        # Before the slot is made: should we be killed with it half done, the slot is known to be ours to drop.
        writer.land({}, resume={**state, "snapshot": "incomplete"})
        try:
            note(home, source.partitions(connection))
            return _snapshot(home, writer, source, identity, connection, replication, state, stop)
        except BaseException as e:
            # A slot that nobody reads keeps the server's log from being removed. Once it is gone nothing needs to know
            # of it: a log that has just been begun is then taken back.
            with suppress(psycopg2.Error, LockstepError, OSError):
                source.drop_slot(connection)
                if is_published:
                    source.drop_publication(connection)
                if not is_begun:
                    note(home, {})
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
        log.warning("%s. What mends it: %s", problem.text, problem.statement)
    slot = source.slot_state(connection)
    if is_new and slot and not resume:
        raise LockstepError(
            f"The server has a replication slot {source.slot} already, and this change log does not know it: another "
            "capture may be using it. Take another name with `--slot NAME`, or if nobody needs it:\n"
            f"    SELECT pg_drop_replication_slot('{source.slot}');"
        )


def check_continues(
    writer: Writer, connection: Connection, replication: LogicalReplicationConnection, source: Source
) -> None:
    """Refuse to continue where changes would be missing or belong to another server; note the server's timeline."""
    resume = writer.watermark.resume
    identity = source.identity(replication)
    landed = parse_lsn(resume["commit_lsn"])
    offer = (
        "`--new-snapshot` reads all tables again and lands how they differ from the change log; nothing is counted "
        "twice, but what happened in between is seen as one change per row."
    )
    if resume["system_identifier"] != identity.system_identifier:
        raise LockstepError(
            f"This is another server: the change log was captured from system {resume['system_identifier']}, this is "
            f"{identity.system_identifier}. If it holds the same database, moved or restored: {offer}"
        )
    slot = source.slot_state(connection)
    [[end]] = query(connection, "SELECT pg_current_wal_flush_lsn()")
    left_at = source.timeline_left_at(replication, resume.get("timeline", identity.timeline))
    if left_at is not None and left_at < landed:
        why = (
            f"The server was promoted from a standby that had not received everything: this change log has landed up "
            f"to {resume['commit_lsn']} of timeline {resume['timeline']}, and the server left that timeline at "
            f"{format_lsn(left_at)}: it does not have the changes in between."
        )
    elif slot is None:
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
        if resume.get("timeline") != identity.timeline:
            writer.land({}, resume={**resume, "timeline": identity.timeline})
        return
    raise LockstepError(f"{why} {offer}")


def note_gaps(writer: Writer, connection: Connection, source: Source) -> list[str]:
    """Hold each table that may lack changes because the publication or the table was altered.

    It is held from the last position at which all was in order, by an event in quarantine that says why, until it is
    resynced. Returns what the new events say. No batch may be open.
    """
    watermark = writer.watermark
    resume = watermark.resume
    now = source.published(connection)
    was = resume.get("published", now)  # an older version noted nothing
    places: dict[str, Any] = {}
    why: dict[str, str] = {}
    for name, table in TABLES.items():
        place = now["tables"].get(name)
        before = was["tables"].get(name, place)
        if before is None:  # it is held since; or its event was discarded, and it is taken as it is
            places[name] = None if name in watermark.holds else place
        elif reason := _gap(source, table, before, place, was["publication"] == now["publication"]):
            places[name], why[name] = None, reason
        else:
            places[name] = place
    state = {**resume, "published": {"publication": now["publication"], "tables": places}}
    if why:
        with writer.batch() as batch:
            batch.hold(why, _last_look(watermark))
            batch.land(resume=state)
    elif state != resume:
        writer.land({}, resume=state)
    _tell(why)
    return list(why.values())


def note_partitions(
    home: Path, writer: Writer, connection: Connection, source: Source, now: Partitions
) -> list[str] | None:
    """Hold each table of whose partitions one lost or gained rows without any event, as `note_gaps` does.

    All that was committed before the partitions were `now` must have landed. None if another look must tell.
    """
    before = noted(home)
    new = attached(before, now)
    with_rows = source.filled(connection, new) if new else []
    if with_rows is None:
        return None
    truncated = writer.watermark.resume.get("truncated", {})
    why = gaps(before, now, {oid: new[oid] for oid in with_rows}, truncated)
    if why:
        with writer.batch() as batch:
            batch.hold(why, _last_look(writer.watermark))
            batch.land()
    note(home, next_notes(before, now, why, writer.watermark))
    _tell(why)
    return list(why.values())


def _tell(why: Mapping[str, str]) -> None:
    for name, reason in why.items():
        log.error("%s is held: %s", name, reason, extra=about("gap", table=name, reason=reason))


def look(watermark: Watermark) -> dict[str, Any]:
    """What to add to the resume state when all was in order at this watermark."""
    at = watermark.logged_at.isoformat() if watermark.logged_at else None
    return {"looked": {"position": watermark.position, "logged_at": at}}


def _last_look(watermark: Watermark) -> Hold:
    """From where a table is held if something is found now."""
    looked = watermark.resume.get("looked")
    position, logged_at = (looked["position"], looked["logged_at"]) if looked else (watermark.position, None)
    at = datetime.fromisoformat(logged_at) if logged_at else watermark.logged_at
    return Hold(position + 1, at or datetime.now(UTC).replace(tzinfo=None))


def _gap(
    source: Source, table: Table, before: list[str], place: list[str] | None, is_same_publication: bool
) -> str | None:
    """Why a table may lack changes; None if it does not."""
    publication = source.publication
    mend = f"`lockstep capture ... --resync {table.name}` lands what is missing"
    if not is_same_publication:
        return (
            f"publication {publication} was altered, or dropped and made again, so changes may never have been sent: "
            "`lockstep capture ... --new-snapshot` lands what is missing"
        )
    if place is None:
        qualified = ".".join(quoted(part) for part in table.in_postgresql(source.schema))
        return (
            f"{table.name} is not in publication {publication} any more (taken out, renamed or dropped), so its "
            f"changes are not sent. Once it is back (ALTER PUBLICATION {quoted(publication)} ADD TABLE {qualified};) "
            + mend
        )
    if place[0] != before[0]:
        return f"{table.name} is another table than before (dropped and made again, or renamed): {mend}"
    if place != before:
        return f"{table.name} was not in publication {publication} for a time, so its changes were not sent: {mend}"
    return None


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
            rows = Rows(identity.database, source.schema, xid, snapshot.lsn, at)
            for table in TABLES.values():
                layout = source.layout(reading, table)
                if writer.watermark.position:
                    scratch.mkdir(parents=True, exist_ok=True)
                    staged = Staged(source, reading, layout, rows, scratch, lambda: _check(stop))
                    position = writer.watermark.position
                    files, broken = batch.files(table.name), broken_at(ChangeLog(home), table, position)
                    with differences(table, files, position, staged.path, scratch, broken) as found:
                        land_differences(batch, rows, layout, staged, found, [], position)
                else:
                    _copy_all(source, reading, layout, rows, batch, stop)
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


@dataclass(frozen=True)
class Visibility:
    """Which transactions a snapshot sees, by the text of `pg_current_snapshot()`; its numbers have 64 bits."""

    xmin: int
    xmax: int
    running: frozenset[int]

    @classmethod
    def parse(cls, text: str) -> Visibility:
        xmin, xmax, running = text.split(":")
        return cls(int(xmin), int(xmax), frozenset(int(x) for x in running.split(",") if x))

    def sees(self, tx_id: int) -> bool:
        """Whether a committed transaction is in the snapshot.

        `tx_id` has the 32 bits that the replication stream has; it is the transaction nearest to the snapshot.
        """
        xid = self.xmax + (tx_id - self.xmax + (1 << 31)) % (1 << 32) - (1 << 31)
        return xid < self.xmin or (xid < self.xmax and xid not in self.running)


@dataclass(frozen=True)
class Point:
    """The source at one point of its log: a connection that reads it, and which transactions it sees."""

    lsn: int
    reading: Connection
    xid: int
    at: datetime
    visibility: Visibility


@contextmanager
def point(
    source: Source,
    replication: LogicalReplicationConnection,
    tables: Sequence[Table],
    while_waiting: Callable[[float], bool],
) -> Iterator[Point]:
    """The source as it is now, beside the slot of the capture; the tables cannot be altered until the end.

    `while_waiting` is as in `Source.create_slot`. Raises LockstepError if a table was rewritten at that moment.
    """
    temporary = replace(source, slot=free_slot_name())
    made = temporary.create_slot(replication, is_temporary=True, while_waiting=while_waiting)
    with source.reading(made) as (reading, xid, at):
        [[text]] = query(reading, "SELECT pg_current_snapshot()::text")
        query(replication, f"DROP_REPLICATION_SLOT {temporary.slot}")
        rewritten = source.hold(reading, tables)
        if rewritten:
            raise LockstepError(f"{', '.join(rewritten)} was truncated or rewritten just now. Give the command again.")
        yield Point(made.lsn, reading, xid, at, Visibility.parse(text))


def free_slot_name() -> str:
    return f"lockstep_verify_{os.getpid()}_{secrets.token_hex(4)}"


def land_differences(
    batch: Batch, rows: Rows, layout: Layout, staged: Staged, found: Differences, later: Sequence[Path], after: int
) -> None:
    """Land how a table differs; `later` are the files with its changes after the compared position, `after`."""
    for before, now in found.changes(later, after, batch.watermark.position):
        batch.add(rows.changes(layout, before, now))
    # Last: a row that cannot be read is gone from the log by now, so that a retry brings it back.
    for rejected in staged.rejected():
        batch.add({}, rejected)


def _check(stop: threading.Event) -> None:
    if stop.is_set():
        raise _Stopped


def _copy_all(
    source: Source, reading: Connection, layout: Layout, rows: Rows, batch: Batch, stop: threading.Event
) -> None:
    """Land every row of a table."""

    def take(texts: list[pa.Array]) -> None:
        _check(stop)
        after, reasons = images(layout, texts, None, "source's")
        if reasons:
            batch.add({}, rows.rejected(layout, texts, reasons))
            after = after.take(pa.array([i for i in range(len(after)) if i not in reasons], pa.int64()))
        batch.add(rows.changes(layout, pa.nulls(len(after), layout.table.image), after))

    source.copy(reading, layout, take, PART_ROWS, PART_BYTES)


@dataclass(frozen=True)
class Rows:
    """Rows that were read at one point of the source's log, as what lands.

    `xid` and `at` are the transaction and the time of the point, `schema` is that of tables declared without one.
    """

    database: str
    schema: str
    xid: int
    lsn: int
    at: datetime

    def changes(self, layout: Layout, before: pa.Array, after: pa.Array) -> dict[str, pa.Table]:
        """Pairs of images as a part for `Batch.add`."""
        count = len(after)
        columns = [
            pa.array(np.arange(count)),
            pa.array([self.at] * count, TIMESTAMP),
            pa.array(["r"] * count, pa.string()),
            before,
            after,
            pa.array(np.full(count, self.xid)),
            pa.array(np.full(count, self.lsn)),
        ]
        return {layout.table.name: pa.table(columns, schema=batch_schema(layout.table))}

    def rejected(self, layout: Layout, texts: list[pa.Array], reasons: Mapping[int, str]) -> pa.Table:
        """The rows that break the landing contract, as events for quarantine."""
        at_us = round((self.at - datetime(1970, 1, 1)).total_seconds() * 1e6)
        name = layout.table.name
        place = layout.table.in_postgresql(self.schema)
        rejected = []
        for row, reason in sorted(reasons.items()):
            image = json_image(layout, [text[row].as_py() for text in texts])
            text = event(self.database, *place, "r", None, image, self.xid, self.lsn, at_us)
            rejected.append({"ordinal": row, "committed_at": self.at, "table": name, "reason": reason, "event": text})
        return pa.Table.from_pylist(rejected, REJECTED_SCHEMA)


class Staged:
    """A table's rows at one point of the source's log, in files under `scratch`: those with an image, and the others.

    `path` has the rows that `compare` and `differences` take. `check` is called now and then, to raise if it is to end.
    """

    def __init__(
        self,
        source: Source,
        reading: Connection,
        layout: Layout,
        rows: Rows,
        scratch: Path,
        check: Callable[[], None] = lambda: None,
    ) -> None:
        self.path = scratch / "staged.parquet"
        self._unread = scratch / "unread.parquet"

        def reject(texts: list[pa.Array], reasons: Mapping[int, str]) -> None:
            unread.write_table(rows.rejected(layout, texts, reasons))

        def take(texts: list[pa.Array]) -> None:
            check()
            staging.take(texts)

        with pq.ParquetWriter(self._unread, REJECTED_SCHEMA) as unread:
            staging = Staging(layout, self.path, reject)
            try:
                source.copy(reading, layout, take, PART_ROWS, PART_BYTES)
            finally:
                staging.close()

    def rejected(self) -> Iterator[pa.Table]:
        """The rows that break the landing contract, as parts for `Batch.add`."""
        with pq.ParquetFile(self._unread) as file:
            for group in range(file.num_row_groups):
                yield file.read_row_group(group)
