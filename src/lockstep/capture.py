"""`lockstep capture`: a running PostgreSQL's changes into the change log, each exactly once.

The first start makes publication and slot and lands a snapshot of the tables, taken at the very point where the slot
begins; from there the slot's stream is landed in micro-batches, each ending at a transaction's end. The watermark
holds how far that has come, so landing a batch and remembering it are one act. A restart asks the server for
everything after that point, whatever the slot says, and the slot is told only of what has landed.

Two threads share the work: this one reads messages, another decodes and lands them. Memory is bounded by what the two
may hold, PART_ROWS and PART_BYTES each: a larger transaction lands in parts that become visible together.

It holds the change log's lock as long as it runs, and lends it between two batches to a command that asks for it.
"""

from __future__ import annotations

import logging
import select
import struct
import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import psycopg2
import pyarrow as pa
from psycopg2 import errors
from psycopg2.extensions import connection as Connection
from psycopg2.extras import LogicalReplicationConnection

from lockstep.adopting import adopt
from lockstep.changelog import Batch, ChangeLog, Landed, Writer
from lockstep.errors import LockstepError
from lockstep.latest import live_images
from lockstep.lock import exclusive
from lockstep.logs import about
from lockstep.metrics import CapturePublisher, CaptureState
from lockstep.partitions import Partitions
from lockstep.pgoutput import BEGIN, COMMIT, TRUNCATE, Decoder, commit_end
from lockstep.postgres import (
    LEFTOVER_SECONDS,
    Identity,
    Source,
    close_quietly,
    format_lsn,
    is_out_of_reach,
    parse_lsn,
    query,
)
from lockstep.schema import TABLES, TIMESTAMP, Table, batch_schema
from lockstep.service import disk_full_said_plainly, stop_on_signal
from lockstep.snapshot import (
    PART_BYTES,
    PART_ROWS,
    begin,
    check_continues,
    check_source,
    look,
    note_gaps,
    note_partitions,
)

LONGEST_TRIGGER = 10.0  # seconds; how far a backlog may lengthen the trigger, unless it is longer itself
_PROBE_EVERY = 1.0  # seconds
_PATIENCE = 0.25  # seconds; the longest wait for the network before the clock and the stop signal are looked at
_SHORTEST_WAIT, _LONGEST_WAIT = 0.5, 30.0  # seconds between attempts to connect again
_COUNT_EVERY = 10.0  # seconds between two counts of what is open in quarantine
_LOOK_EVERY = 10.0  # seconds between two looks at whether the publication is still the same
_TELL_EVERY = 60.0  # seconds between two lines of the log that say how far it is
_CUT_OFF = 120.0  # seconds the server may take to notice that a connection of ours, cut by the network, is gone

log = logging.getLogger("lockstep.capture")


@dataclass
class Captured:
    """What a capture did until it ended. `lsn` is the point of PostgreSQL's log at which it will continue.

    `gaps` has a sentence for each table that may lack changes, with what mends it.
    """

    snapshot: int = 0
    changes: int = 0
    quarantined: int = 0
    batches: int = 0
    reconnects: int = 0
    position: int = 0
    lsn: str = "-"
    gaps: list[str] = field(default_factory=list)


def capture(
    home: Path, source: Source, trigger: float = 1.0, *, until_caught_up: bool = False, new_snapshot: bool = False
) -> Captured:
    """Capture until SIGTERM or SIGINT; `until_caught_up`: until all that was committed at the start has landed.

    `trigger` is how many seconds of changes make a batch. `new_snapshot` takes a snapshot first even though the log
    has one, and lands how it differs from the log. A signal lets the batch at hand finish.

    Raises LockstepError where the user must act: the source is not ready, the slot is lost or in use, the log belongs
    to another source, the disk is full. Nothing is lost by it: the next start continues from what has landed.
    """
    with source.first_connections() as (connection, replication):
        identity = source.identity(replication)
        if not ChangeLog(home).exists():  # a refusal must not leave an empty log behind
            check_source(connection, source, {}, is_new=True)
    summary = Captured()
    with (
        stop_on_signal() as stop,
        disk_full_said_plainly(home),
        # A lock of its own tells others that it lives: the log's may be lent.
        exclusive(home / "capture.lock", "capturing changes"),
    ):
        new = ChangeLog(home).unadopted() if ChangeLog(home).exists() else {}
        run = partial(_run, home, source, identity, trigger, stop, summary)
        if new and new_snapshot:  # that lands the values of all rows
            ChangeLog(home).begin_adopting(identity.source, new)
            run(until_caught_up, new_snapshot=True, adopts=True)
            return summary
        adopted = adopt(home, source, new, stop, lambda lsn: run(True, until=lsn)) if new else 0
        if not (new and stop.is_set()):
            run(until_caught_up, new_snapshot=new_snapshot)
            summary.changes += adopted
    return summary


def _run(
    home: Path,
    source: Source,
    identity: Identity,
    trigger: float,
    stop: threading.Event,
    summary: Captured,
    until_caught_up: bool,
    *,
    new_snapshot: bool = False,
    until: int | None = None,
    adopts: bool = False,
) -> None:
    """Begin and follow the stream; see `capture`. `until` ends it before the first transaction from that point on."""
    with ChangeLog(home).writer(identity.source, "capturing changes", lends=True, adopts=adopts) as writer:
        publisher = CapturePublisher(home, CaptureState(source.slot, trigger))
        publisher.publish(writer.watermark)
        follow = partial(_follow, home, writer, source, identity.database, trigger)
        try:
            summary.snapshot += begin(home, writer, source, new_snapshot, stop)
            if not stop.is_set():
                with suppress(_StoppedWhileLent):
                    follow(until_caught_up, until, stop, summary, publisher)
            publisher.state.phase, publisher.state.problem = "stopped", None
        except BaseException as e:
            publisher.state.phase, publisher.state.problem = "failed", " ".join(str(e).split()) or type(e).__name__
            raise
        finally:
            with suppress(OSError):  # not to hide what went wrong before
                publisher.publish(writer.watermark)
        summary.gaps = ChangeLog(home).open_gaps()
        summary.position = writer.watermark.position
        summary.lsn = str(writer.watermark.resume.get("commit_lsn", "-"))


class _StoppedWhileLent(Exception):
    """Told to stop while another command had the change log. Nothing may be written any more, and nothing need be."""


def _lend_if_asked(writer: Writer, stop: threading.Event, meanwhile: Callable[[], None] = lambda: None) -> bool:
    """Let a command that asks for it write to the log; whether one did. No batch may be open."""
    if not writer.is_asked_for():
        return False

    def go_on() -> bool:
        meanwhile()
        return not stop.is_set()

    started = time.monotonic()
    if not writer.lend(go_on):
        raise _StoppedWhileLent
    seconds = round(time.monotonic() - started, 3)
    log.info("lent the change log to another command for %.1f s", seconds, extra=about("lent", seconds=seconds))
    return True


def _follow(
    home: Path,
    writer: Writer,
    source: Source,
    database: str,
    trigger: float,
    until_caught_up: bool,
    until: int | None,
    stop: threading.Event,
    summary: Captured,
    publisher: CapturePublisher,
) -> None:
    """Land the stream until told to stop, connecting again whenever the connection is lost."""
    wait = _SHORTEST_WAIT
    state = publisher.state

    def pause(seconds: float) -> None:
        end = time.monotonic() + seconds
        while (left := end - time.monotonic()) > 0 and not stop.is_set():
            if _lend_if_asked(writer, stop):
                publisher.publish(writer.watermark)
            stop.wait(min(left, _PATIENCE))

    held_since: float | None = None
    while not stop.is_set():
        position = writer.watermark.position
        connection: Connection | None = None
        replication: LogicalReplicationConnection | None = None
        try:
            connection, replication = source.connect(), source.connect_replication()
            if summary.reconnects:
                check_continues(writer, connection, replication, source)
                note_gaps(writer, connection, source)
            with _Stream(
                home, writer, source, database, connection, replication, trigger, summary, publisher
            ) as stream:
                if summary.reconnects:
                    lsn = writer.watermark.resume["commit_lsn"]
                    log.info("connected again, continuing from %s", lsn, extra=about("reconnected", lsn=lsn))
                held_since = None
                state.phase, state.problem = "following", None
                stream.pump(stop, until_caught_up, until)
            return
        except errors.ObjectInUse:
            held_since = held_since or time.monotonic()
            if connection and time.monotonic() - held_since > (_CUT_OFF if summary.reconnects else LEFTOVER_SECONDS):
                raise LockstepError(source.in_use(connection)) from None
            pause(_SHORTEST_WAIT)
        except psycopg2.Error as e:
            if not is_out_of_reach(e):
                raise LockstepError(_refusal(source, e)) from e
            if writer.watermark.position > position:
                wait = _SHORTEST_WAIT
            reason = " ".join(str(e).split()) or type(e).__name__
            extra = about("connection_lost", reason=reason, wait_seconds=wait)
            log.warning("connection lost (%s); trying again in %.1f s", reason, wait, extra=extra)
            summary.reconnects += 1
            state.phase, state.problem, state.reconnects = "reconnecting", reason, summary.reconnects
            publisher.publish(writer.watermark)
            pause(wait)
            wait = min(wait * 2, _LONGEST_WAIT)
        finally:
            close_quietly(replication, connection)


def _refusal(source: Source, error: psycopg2.Error) -> str:
    """Why the server does not send changes, and what helps."""
    if isinstance(error, errors.UndefinedObject) and "publication" in str(error):
        return (
            f"There was no publication {source.publication} when some of the changes were made that are to be sent "
            "next, so PostgreSQL cannot send them; making it now does not help. Start once with `--new-snapshot`: it "
            "makes the publication if there is none, reads all tables again and lands how they differ from the log."
        )
    return f"PostgreSQL refuses to send changes: {' '.join(str(error).split())}"


@dataclass
class _Segment:
    """A stretch of messages for the lander.

    `end_lsn` is set if it ends at a transaction's end, which makes everything up to it visible; `reached` is a time
    up to which the source has sent all. `truncate` is a TRUNCATE message that follows the others.
    """

    payloads: list[bytes]
    lsns: list[int]
    end_lsn: int | None = None
    reached: datetime | None = None
    truncate: tuple[bytes, int] | None = None


class _Lander:
    """Decodes and lands segments, in the landing thread. A batch stays open until a segment ends a transaction."""

    def __init__(self, home: Path, writer: Writer, decoder: Decoder) -> None:
        self._scratch = home / "snapshot"
        self._writer = writer
        self._decoder = decoder
        self._open = ExitStack()
        self._batch: Batch | None = None
        self.seconds = 0.0  # that the last batch to land took
        self._truncated: dict[str, int] = {}  # partitioned tables, and the last transaction that truncated each
        # `begin` and a new connection look as well, but not at partitions: with these it stays the last look.
        is_open = decoder.partitioned and "looked" in writer.watermark.resume
        self.looked = {} if is_open else look(writer.watermark)

    @property
    def is_open(self) -> bool:
        return self._batch is not None

    def take(self, segment: _Segment) -> Landed | None:
        """What became visible, if the segment ends a transaction."""
        started = time.monotonic()
        if self._batch is None:
            self._batch = self._open.enter_context(self._writer.batch())
            self.seconds = 0.0
        batch = self._batch
        if segment.payloads:
            part = self._decoder.decode(segment.payloads, segment.lsns)
            batch.add(part.changes, part.rejected)
        if segment.truncate:
            self._truncate(batch, *segment.truncate)
        if segment.end_lsn is None:
            self.seconds += time.monotonic() - started
            return None
        resume = {**self._writer.watermark.resume, **self.looked, "commit_lsn": format_lsn(segment.end_lsn)}
        if self._truncated:
            resume["truncated"] = {**resume.get("truncated", {}), **self._truncated}
        landed = batch.land(reached=segment.reached, resume=resume)
        self.abandon()
        self.seconds += time.monotonic() - started
        return landed

    def abandon(self) -> None:
        """Close the open batch; if it has not landed, nothing remains of it."""
        self._batch = None
        self._open.close()

    def _truncate(self, batch: Batch, payload: bytes, lsn: int) -> None:
        """A TRUNCATE lands as the deletes it means."""
        transaction = self._decoder.transaction
        for table in (TABLES[name] for name in self._decoder.truncated(payload)):
            if table.name in self._decoder.partitioned:
                self._truncated[table.name] = transaction.xid
            for before in live_images(table, batch.files(table.name), batch.watermark.position, self._scratch):
                batch.add({table.name: _deletes(table, before, transaction.committed_at, transaction.xid, lsn)})


def _deletes(table: Table, before: pa.Array, committed_at: datetime, xid: int, lsn: int) -> pa.Table:
    rows = len(before)
    columns = [
        pa.array(np.arange(rows)),
        pa.array([committed_at] * rows, TIMESTAMP),
        pa.array(["d"] * rows),
        before,
        pa.nulls(rows, table.image),
        pa.array(np.full(rows, xid)),
        pa.array(np.full(rows, lsn)),
    ]
    return pa.table(columns, schema=batch_schema(table))


@dataclass(frozen=True)
class _Probe:
    """A point of the source's log, and the source's clock when it was the end."""

    lsn: int
    at: datetime


@dataclass
class _Pending:
    """Messages read and not handed over yet. The first `whole` of them end with a transaction, at `end_lsn`."""

    payloads: list[bytes] = field(default_factory=list)
    lsns: list[int] = field(default_factory=list)
    size: int = 0
    whole: int = 0
    end_lsn: int = 0
    since: float = 0.0

    def after_whole(self) -> _Pending:
        rest = _Pending(self.payloads[self.whole :], self.lsns[self.whole :])
        rest.size = sum(map(len, rest.payloads))
        rest.since = time.monotonic()
        return rest


class _Stream:
    """One connection's worth of following the slot. Entering it starts the replication."""

    def __init__(
        self,
        home: Path,
        writer: Writer,
        source: Source,
        database: str,
        connection: Connection,
        replication: LogicalReplicationConnection,
        trigger: float,
        summary: Captured,
        publisher: CapturePublisher,
    ) -> None:
        self._home = home
        self._writer = writer
        self._source = source
        self._connection = connection
        self._replication = replication
        self._trigger, self._longest = trigger, max(trigger, LONGEST_TRIGGER)
        self._interval = trigger
        self._drained_at = 0.0  # when nothing was left to read
        self._summary = summary
        self._publisher = publisher
        self._told_at = time.monotonic()
        self._count_open()
        self._is_count_old = False
        self._stop = threading.Event()
        self._landed_lsn = parse_lsn(writer.watermark.resume["commit_lsn"])
        self._start_lsn = self._landed_lsn
        self._pending = _Pending()
        self._probe: _Probe | None = None
        self._next_probe = 0.0
        self._probes_done = 0
        self._next_look = time.monotonic() + _LOOK_EVERY
        self._partitions = source.partitions(connection)
        # What is to be looked at once all that was committed until then has landed: partitions, and where the log was.
        self._found: tuple[Partitions, Mapping[str, Any]] | None = None
        self._found = (self._partitions, look(writer.watermark)) if self._partitions else None
        self._lander = _Lander(home, writer, Decoder(database, source.schema, frozenset(self._partitions)))
        self._landing: tuple[_Segment, Future[Landed | None]] | None = None
        self._thread = ThreadPoolExecutor(1, "landing")
        self._reader: Any = replication.cursor()
        # Acknowledging is done on a cursor of its own. One that is told what has landed takes every keep-alive as
        # leave to acknowledge more, if only the last message lies before what has landed; but messages of a long
        # transaction do lie before the end of one that is read and not landed yet, which would then be lost.
        self._acknowledger: Any = replication.cursor()

    def __enter__(self) -> _Stream:
        publication = '"{}"'.format(self._source.publication.replace('"', '""'))
        self._reader.start_replication(
            slot_name=self._source.slot,
            start_lsn=self._start_lsn,
            decode=False,
            status_interval=3600,  # the acknowledger reports every second
            options={"proto_version": "1", "publication_names": publication},
        )
        return self

    def __exit__(self, *_: object) -> None:
        self._thread.shutdown(wait=True)
        if self._landing and not self._landing[1].exception():  # it landed while the connection was lost
            self._count(*self._landing)
        self._lander.abandon()

    def pump(self, stop: threading.Event, until_caught_up: bool, until: int | None) -> None:
        """Read and land until `stop` is set, or until the point that the source had reached at the start.

        `until` is a point before that: what was committed from there on is left to the next connection.
        Raises _StoppedWhileLent if it was set while another command had the change log.
        """
        self._stop = stop
        self._publish()
        read = self._reader.read_message
        is_landed = False  # whether the messages at hand belong to a transaction that has landed before
        while not stop.is_set():
            message = read()
            if message is None:
                self._drained_at = time.monotonic()
                self._tend()
                if until_caught_up:
                    if self._probes_done:
                        break
                    if self._pending.whole:  # waiting for more would only delay the end
                        self._hand_over_whole()
                        continue
                select.select([self._replication], [], [], self._patience())
                continue
            payload = message.payload
            tag = payload[0]
            if tag == BEGIN:
                committed = struct.unpack_from("!Q", payload, 1)[0]
                if until is not None and committed >= until:
                    break
                is_landed = committed < self._start_lsn
            if is_landed:
                continue
            pending = self._pending
            if tag == TRUNCATE:
                self._hand_over(_Segment(pending.payloads, pending.lsns, truncate=(payload, message.data_start)))
                self._pending = _Pending(since=time.monotonic())
                continue
            if not pending.payloads:
                pending.since = time.monotonic()
            pending.payloads.append(payload)
            pending.lsns.append(message.data_start)
            pending.size += len(payload)
            if tag == COMMIT:
                pending.whole, pending.end_lsn = len(pending.payloads), commit_end(payload)
                if time.monotonic() - pending.since >= self._interval:
                    self._tend()
                    if until_caught_up and self._probes_done:
                        break
            if pending.size >= PART_BYTES or len(pending.payloads) >= PART_ROWS:
                self._hand_over_all()
        self._finish()

    def _tend(self) -> None:
        """What is due by the clock: notice what has landed, hand over what is old enough, ask where the source is."""
        if self._landing and self._landing[1].done():
            self._settle()
        now = time.monotonic()
        if self._pending.whole and now - self._pending.since >= self._interval:
            if self._landing or self._drained_at < self._pending.since:
                self._interval = min(self._interval * 2, self._longest)
            else:
                self._interval = max(self._interval / 2, self._trigger)
            if not self._landing:
                self._hand_over_whole()
        self._ask(now)
        self._attend()

    def _attend(self) -> None:
        """What others want of us: the change log for a moment, and to know how it goes."""
        if self._landing is None and not self._lander.is_open:
            acknowledged = time.monotonic()

            def acknowledge() -> None:
                nonlocal acknowledged
                if time.monotonic() - acknowledged > _PROBE_EVERY:
                    acknowledged = time.monotonic()
                    with suppress(psycopg2.Error):  # a lost connection is dealt with when the log is ours again
                        self._acknowledge()

            if _lend_if_asked(self._writer, self._stop, acknowledge):
                self._count_open()
                self._publish()
        if self._publisher.is_due():
            self._publish()

    def _count_open(self) -> None:
        # Finding them reads the log, so that it is left alone where nothing is held: then none is open.
        is_held = bool(self._writer.watermark.holds)
        entries = ChangeLog(self._home).quarantined() if is_held else []
        self._publisher.state.quarantine_open = sum(e["state"] == "open" for e in entries)
        self._is_count_old, self._counted_at = False, time.monotonic()

    def _publish(self) -> None:
        if self._is_count_old and time.monotonic() - self._counted_at >= _COUNT_EVERY:
            self._count_open()
        [[lag, retained, safe, now]] = query(
            self._connection,
            "SELECT pg_current_wal_flush_lsn() - %s::pg_lsn, pg_current_wal_flush_lsn() - restart_lsn, safe_wal_size, "
            "clock_timestamp() FROM (SELECT) AS one LEFT JOIN pg_replication_slots ON slot_name = %s",
            (format_lsn(self._landed_lsn), self._source.slot),
        )
        state, watermark = self._publisher.state, self._writer.watermark
        state.trigger_seconds = self._interval
        state.lag_bytes = max(int(lag), 0)
        state.retained_bytes = None if retained is None else int(retained)
        state.safe_bytes = None if safe is None else int(safe)
        if watermark.logged_at:
            age = now.astimezone(UTC).replace(tzinfo=None) - watermark.logged_at
            state.lag_seconds = round(max(age.total_seconds(), 0.0), 3)
        self._publisher.publish(watermark)
        if time.monotonic() - self._told_at >= _TELL_EVERY:
            self._told_at = time.monotonic()
            log.info(
                "position %d, %.1f changes/s, %s bytes and %s s behind",
                state.position,
                state.changes_per_second,
                state.lag_bytes,
                state.lag_seconds,
                extra=about(
                    "progress",
                    position=state.position,
                    lsn=state.lsn,
                    changes=state.changes,
                    changes_per_second=state.changes_per_second,
                    lag_bytes=state.lag_bytes,
                    lag_seconds=state.lag_seconds,
                    trigger_seconds=state.trigger_seconds,
                ),
            )

    def _ask(self, now: float) -> None:
        """Probe the source's end once a second: that tells when we have caught up, and moves an idle log's clock."""
        if self._probe is None and now >= self._next_probe:
            if now >= self._next_look and self._landing is None and not self._lander.is_open:
                self._next_look = now + _LOOK_EVERY
                self._look()
            [[lsn, at]] = query(self._connection, "SELECT pg_current_wal_flush_lsn(), clock_timestamp()")
            self._probe = _Probe(parse_lsn(lsn), at.astimezone(UTC).replace(tzinfo=None))
            self._acknowledger.send_feedback(reply=True)
        if self._probe is None:
            return
        is_quiet = not self._pending.payloads and self._landing is None
        received = self._reader.wal_end
        if is_quiet and max(received, self._landed_lsn) >= self._probe.lsn:
            # Nothing is under way, so all that was sent has landed: `received` is the end of some record, up to which
            # everything was. The probe's own point may lie within a record: never acknowledge that.
            end = max(received, self._landed_lsn)
            self._hand_over(_Segment([], [], end_lsn=end, reached=self._probe.at))
            self._settle()
        elif self._landed_lsn < self._probe.lsn:
            return
        if self._found and not self._look_at_partitions(*self._found):
            return
        self._probe = None
        self._probes_done += 1
        self._next_probe = now + max(self._trigger, _PROBE_EVERY)

    def _look(self) -> None:
        """Hold the tables that may have missed changes since the last look."""
        looked = look(self._writer.watermark)
        found = note_gaps(self._writer, self._connection, self._source)
        if found:
            self._count_open()
        if self._partitions:
            self._warn_of_partitions()
            self._found = (self._partitions, {} if found else looked)
        elif not found:
            self._lander.looked = looked

    def _warn_of_partitions(self) -> None:
        """Warn of new partitions whose updates and deletes would not be sent as they must be."""
        before, self._partitions = self._partitions, self._source.partitions(self._connection)
        for table, partitions in self._partitions.items():
            for oid, partition in partitions.items():
                known = before.get(table, {}).get(oid)
                if not partition.is_whole and (known is None or known.is_whole):
                    text = "%s does not have REPLICA IDENTITY FULL: updates and deletes in it go to quarantine until "
                    log.warning(text + "ALTER TABLE %s REPLICA IDENTITY FULL;", partition.name, partition.name)

    def _look_at_partitions(self, partitions: Partitions, looked: Mapping[str, Any]) -> bool:
        """Hold tables of whose partitions rows came or went without an event; False if it cannot be told yet.

        Whole tables that were truncated before the partitions were read must have landed so.
        """
        self._settle()
        if self._lander.is_open:
            return False
        found = note_partitions(self._home, self._writer, self._connection, self._source, partitions)
        if found is None:
            return False
        self._found = None
        if found:
            self._count_open()
        else:
            self._lander.looked = dict(looked)
        return True

    def _patience(self) -> float:
        if self._pending.whole:
            return max(0.0, min(self._pending.since + self._interval - time.monotonic(), _PATIENCE))
        return _PATIENCE

    def _hand_over_whole(self) -> None:
        pending = self._pending
        whole = pending.whole
        self._pending = pending.after_whole()
        self._hand_over(_Segment(pending.payloads[:whole], pending.lsns[:whole], end_lsn=pending.end_lsn))

    def _hand_over_all(self) -> None:
        """A part is full: hand over whole transactions, or if there is none a piece of the one that is too large."""
        if self._pending.whole:
            self._hand_over_whole()
        else:
            pending, self._pending = self._pending, _Pending(since=time.monotonic())
            self._hand_over(_Segment(pending.payloads, pending.lsns))

    def _hand_over(self, segment: _Segment) -> None:
        """Give a segment to the landing thread, once that is done with the one before: so memory stays bounded."""
        self._settle()
        self._landing = (segment, self._thread.submit(self._lander.take, segment))

    def _settle(self) -> None:
        """Wait for the landing under way, if any, and acknowledge what it made durable."""
        if self._landing is None:
            return
        segment, landing = self._landing
        self._landing = None
        landed = self._count(segment, landing)
        if landed is None:
            return
        self._acknowledge()
        self._tell(landed)
        if not self._stop.is_set():
            self._attend()

    def _count(self, segment: _Segment, landing: Future[Landed | None]) -> Landed | None:
        """What a finished landing made visible; raises what it raised."""
        landed = landing.result()
        if landed is None or segment.end_lsn is None:
            return None
        self._landed_lsn = segment.end_lsn
        if segment.payloads:
            self._summary.batches += 1
        self._summary.changes += landed.changes
        self._summary.quarantined += landed.quarantined
        return landed

    def _acknowledge(self) -> None:
        self._acknowledger.send_feedback(write_lsn=self._landed_lsn, flush_lsn=self._landed_lsn, force=True)

    def _tell(self, landed: Landed) -> None:
        """Note and log what has landed."""
        summary, state = self._summary, self._publisher.state
        state.changes, state.batches, state.quarantined = summary.changes, summary.batches, summary.quarantined
        state.files += landed.files
        if landed.quarantined:
            self._is_count_old = True
            log.warning(
                "%d events went to quarantine: `lockstep quarantine list`",
                landed.quarantined,
                extra=about("quarantined", events=landed.quarantined, position=landed.watermark.position),
            )
        if landed.changes:
            log.debug(
                "%d changes landed in %.3f s, up to position %d",
                landed.changes,
                self._lander.seconds,
                landed.watermark.position,
                extra=about(
                    "landed",
                    position=landed.watermark.position,
                    lsn=format_lsn(self._landed_lsn),
                    changes=landed.changes,
                    files=landed.files,
                    seconds=round(self._lander.seconds, 4),
                ),
            )

    def _finish(self) -> None:
        """Land the whole transactions that are here; the rest will be sent again."""
        if self._pending.whole:
            self._hand_over_whole()
        self._settle()
