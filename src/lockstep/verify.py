"""`lockstep verify-source`: proof that the change log, up to a position, is the source at the same moment; or a resync.

A temporary replication slot gives a snapshot of the source together with its point in PostgreSQL's log: exactly the
transactions whose commit lies before the point are in the snapshot. The change log is in commit order as well, so that
its side is a prefix: everything up to the last change whose transaction the snapshot sees. Nothing is written to the
source. A capture may go on meanwhile; where none is running, the log is brought up to the point by one.

A resync lands what the comparison of a table found, at the end of the log, which a running capture lends for that.
"""

from __future__ import annotations

import errno
import json
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import psycopg2
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from psycopg2.extensions import connection as Connection

from lockstep import debezium, source_receipts
from lockstep.breaks import broken_at
from lockstep.capture import capture
from lockstep.changelog import ALL_TABLES, ChangeLog, Watermark
from lockstep.compare import KINDS, Comparison, compare
from lockstep.errors import Busy, LockstepError
from lockstep.latest import bounded_database, differences, quoted
from lockstep.lock import exclusive, holder
from lockstep.partitions import note, noted
from lockstep.postgres import Slot, Source, format_lsn, parse_lsn, query
from lockstep.schema import DISCARDED, TABLES, Table
from lockstep.snapshot import Point, Rows, Staged, Visibility, free_slot_name, land_differences, point
from lockstep.source_receipts import FAILED, INCOMPLETE, PASSED

KEPT_KEYS = 20  # how many differing keys a receipt keeps
_POLL = 0.05  # seconds
_PATIENCE = 60.0  # seconds; a capture lends the log between two batches
_SUPERSEDED = "superseded"  # how the reason of a discarded event begins that a later snapshot made up for

Say = Callable[[str], None]


@dataclass(frozen=True)
class TableResult:
    """One table's comparison. `events` are its events in quarantine that the log lacks, by their state.

    `landed` is how many changes a resync landed, None if there was none.
    """

    table: str
    comparison: Comparison
    events: Mapping[str, int]
    verdict: str
    landed: int | None = None


@dataclass(frozen=True)
class Verified:
    """A verification: the point of the source's log and the change log's position that stand for the same moment.

    `warnings` is what is wrong with the source as it stands, with the statement that mends it.
    """

    source: str
    lsn: str
    position: int
    verified_at: datetime
    warnings: Sequence[str]
    tables: Sequence[TableResult]

    @property
    def is_equal(self) -> bool:
        return all(t.verdict == PASSED for t in self.tables)

    def receipts(self, keys: int, *, with_values: bool = False) -> list[dict[str, Any]]:
        """A row per table, with at most `keys` keys. Values may be personal data: stored receipts have none."""
        return [
            {
                "source": self.source,
                "source_table": t.table,
                "lsn": self.lsn,
                "position": self.position,
                "verified_at": self.verified_at.isoformat(timespec="microseconds"),
                "rows_compared": t.comparison.compared,
                "source_rows": t.comparison.source_rows,
                "log_rows": t.comparison.log_rows,
                "differing": t.comparison.differing,
                **{kind.replace(" ", "_"): t.comparison.counts[kind] for kind in KINDS},
                "differing_in_quarantine": t.comparison.in_quarantine,
                "events_open": t.events["open"],
                "events_discarded": t.events["discarded"],
                "source_fingerprint": t.comparison.source_fingerprint,
                "log_fingerprint": t.comparison.log_fingerprint,
                "columns_not_compared": list(t.comparison.not_compared),
                "columns_not_known": dict(t.comparison.not_known),
                "verdict": t.verdict,
                "keys": [
                    {
                        "key": {name: _shown(value) for name, value in d.key.items()},
                        "kind": d.kind,
                        "columns": {n: list(v) for n, v in d.columns.items()} if with_values else list(d.columns),
                        "rows_in_log": d.rows,
                        "in_quarantine": d.in_quarantine,
                        **({"note": d.note} if with_values else {}),
                    }
                    for d in t.comparison.differences[:keys]
                ],
            }
            for t in self.tables
        ]


def verify(
    home: Path, dsn: str, tables: Sequence[str], timeout: float, limit: int, say: Say, *, repair: bool = False
) -> Verified:
    """Compare `tables` (all if empty) with the change log in `home`, and store a receipt for each.

    `timeout` is how many seconds the source may take to give a snapshot and the log to reach it, `limit` how many
    differing keys of a table are told one by one; `say` is told what is going on. One verification of a home at a
    time; captures and runs go on meanwhile. `repair` resyncs the tables that do not pass; the verdicts are those from
    before.

    Raises LockstepError where there can be no comparison: the log was not captured from this database or does not reach
    the point in time, the source is not ready, a file of the log cannot be read. A difference is not an error.
    """
    shown = max(limit, KEPT_KEYS)
    with _moment(home, dsn, tables, timeout, say, is_resync=repair) as at:
        verified_at = datetime.now(UTC).replace(tzinfo=None)
        results = [_StagedTable(at, table).result(shown, repair) for table in at.tables]
    verified = Verified(at.name, format_lsn(at.snapshot.lsn), at.position, verified_at, at.warnings, results)
    source_receipts.append(home, verified.receipts(KEPT_KEYS))
    return verified


def resync(home: Path, dsn: str, tables: Sequence[str], timeout: float, say: Say) -> dict[str, int]:
    """Land the changes that make the log's rows of `tables` those of the source; returns how many, by table.

    Afterwards the latest image of every key and the sum of its signed images are the source's row. What quarantine has
    of the tables is discarded, since these changes include it. The arguments and errors are those of `verify`.
    """
    with _moment(home, dsn, tables, timeout, say, is_resync=True) as at:
        return {table.name: _StagedTable(at, table).resync() for table in at.tables}


@dataclass(frozen=True)
class _Moment:
    """A point of the source and the position of the log at the same moment.

    `lacking` are the quarantined events that the log lacks up to there.
    """

    log: ChangeLog
    source: Source
    name: str
    database: str
    tables: Sequence[Table]
    snapshot: Point
    position: int
    lacking: Sequence[Mapping[str, Any]]
    warnings: Sequence[str]
    scratch: Path
    say: Say


@contextmanager
def _moment(
    home: Path, dsn: str, tables: Sequence[str], timeout: float, say: Say, *, is_resync: bool
) -> Iterator[_Moment]:
    wanted = _wanted(tables)
    log = ChangeLog(home)
    resume = log.watermark().resume
    _check_captured(home, resume)
    source = Source(dsn, resume["slot"], resume["publication"], resume["schema"], "lockstep verify-source")
    scratch = home / "verify"
    with (
        exclusive(home / "verify.lock", "verifying the source"),
        _said_plainly(home),
        source.first_connections() as (connection, replication),
    ):
        shutil.rmtree(scratch, ignore_errors=True)  # of one that was killed
        scratch.mkdir(parents=True)
        try:
            identity = source.identity(replication)
            if (identity.system_identifier, identity.database) != (resume["system_identifier"], resume["database"]):
                raise LockstepError(
                    f"The change log in {home} was captured from database {resume['database']} of system "
                    f"{resume['system_identifier']}; this is {identity.database} of {identity.system_identifier}."
                )
            warnings = _check_source(connection, source, wanted, is_resync)
            deadline = time.monotonic() + timeout
            # Read before the point is made, so that all that has landed by now lies before it.
            before = log.watermark()

            def while_waiting(_: float) -> bool:
                say("waiting for the transactions that are running in the source")
                if time.monotonic() > deadline:
                    raise LockstepError(_still_running(connection, timeout))
                return True

            with point(source, replication, wanted, while_waiting) as snapshot:
                reached = _wait(log, source, connection, snapshot.lsn, deadline, say)
                position = _cut(log, before.position, reached, snapshot.visibility, scratch)
                yield _Moment(
                    log,
                    source,
                    identity.source,
                    identity.database,
                    wanted,
                    snapshot,
                    position,
                    _lacking(log, position),
                    warnings,
                    scratch,
                    say,
                )
        finally:
            shutil.rmtree(scratch, ignore_errors=True)


def _wanted(names: Sequence[str]) -> list[Table]:
    unknown = [n for n in names if n not in TABLES]
    if unknown:
        raise LockstepError(f"There is no source table {unknown[0]}. The tables are: {', '.join(TABLES)}.")
    return [t for name, t in TABLES.items() if not names or name in names]


def _check_captured(home: Path, resume: Mapping[str, Any]) -> None:
    if "slot" not in resume:
        raise LockstepError(
            f"The change log in {home} was not captured by `lockstep capture`: nothing ties it to a point of "
            "PostgreSQL's log. `lockstep capture --new-snapshot` takes it over."
        )
    if resume.get("snapshot") != "complete":
        raise LockstepError(
            f"The change log in {home} has no complete snapshot of the source yet: `lockstep capture` is taking it, "
            "or was stopped meanwhile. Verify when it is there."
        )


def _check_source(connection: Connection, source: Source, tables: Sequence[Table], is_resync: bool) -> list[str]:
    """Refuse a source that cannot be read; returns what else is wrong with it, as it may explain a difference.

    A resync is refused whatever is wrong: changes that do not arrive, or not whole, would undo it.
    """
    # By a slot name that is free: another slot is needed than the capture's.
    problems = replace(source, slot=free_slot_name()).check(connection, tables)
    hindering = [p for p in problems if p.hinders_reading or is_resync]
    if hindering:
        listed = "".join(f"\n  {p.text}\n    {p.statement}" for p in hindering)
        what = "resynced" if is_resync else "verified"
        raise LockstepError(f"The source cannot be {what}:{listed}")
    return [f"{p.text}: {p.statement}" for p in problems]


@contextmanager
def _said_plainly(home: Path) -> Iterator[None]:
    import duckdb

    try:
        yield
    except psycopg2.Error as e:
        raise LockstepError(f"PostgreSQL ended the verification: {' '.join(str(e).split())} Try again.") from e
    except duckdb.Error as e:
        raise LockstepError(f"The change log cannot be compared: {' '.join(str(e).split())}") from e
    except OSError as e:
        if e.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise LockstepError(
            f"The disk of {home} is full. The rows of one table at a time are put there while they are compared: "
            "make room, or verify the smaller ones with `--table`."
        ) from e


def _still_running(connection: Connection, timeout: float) -> str:
    rows = query(
        connection,
        "SELECT 'server process ' || pid || ' (' || COALESCE(NULLIF(application_name, ''), usename) || ')', xact_start "
        "FROM pg_stat_activity WHERE backend_xid IS NOT NULL AND backend_type = 'client backend' "
        "UNION ALL SELECT 'prepared transaction ' || gid, prepared FROM pg_prepared_xacts ORDER BY 2 LIMIT 1",
    )
    who = f" The oldest is that of {rows[0][0]}, since {rows[0][1]:%F %T %Z}." if rows else ""
    return (
        f"The source could not give a snapshot within {timeout:g} s: that waits for the transactions that are running."
        f"{who} Wait for it, or allow more with `--timeout`."
    )


def _wait(log: ChangeLog, source: Source, connection: Connection, point: int, deadline: float, say: Say) -> Watermark:
    """The watermark once the log has reached a point of the source. If it does not, LockstepError says why.

    Where no capture is running, one is run here until it has caught up.
    """
    next_look = 0.0
    slot = None
    while True:
        watermark = log.watermark()
        _check_captured(log.home, watermark.resume)
        landed = parse_lsn(watermark.resume["commit_lsn"])
        if landed >= point:
            return watermark
        now = time.monotonic()
        behind = (
            f"the change log has landed up to {format_lsn(landed)} (position {watermark.position:,}), the source is at "
            f"{format_lsn(point)}, {point - landed:,} bytes of its log on"
        )
        if now >= next_look:
            slot = source.slot_state(connection)
            if slot is None or slot.is_lost:
                what = "is gone" if slot is None else "is lost"
                raise LockstepError(
                    f"Not verified: {behind}, and it cannot get there: replication slot {source.slot} {what}. "
                    "`lockstep capture --new-snapshot` lands how the source differs from the log."
                )
            if slot.active_pid is None and holder(log.home / "capture.lock") is None:
                say(f"catching up: {behind}")
                try:
                    caught_up = capture(log.home, replace(source, application="lockstep capture"), until_caught_up=True)
                except Busy:  # with a capture that began meanwhile
                    if holder(log.home / "capture.lock") is None:
                        raise
                    continue
                if parse_lsn(caught_up.lsn) < point:
                    raise LockstepError("Not verified: it was stopped before the log had caught up with the source.")
                continue
            say(f"waiting: {behind}")
            next_look = now + 1.0
        if now > deadline:
            raise LockstepError(
                f"Not verified: {behind}. A capture is running{_by(slot)} but has not come that far. Allow more time "
                "with `--timeout`; if the distance does not shrink, see what the capture says."
            )
        time.sleep(_POLL)


def _by(slot: Slot | None) -> str:
    return f" (server process {slot.active_pid})" if slot and slot.active_pid else ""


def _cut(log: ChangeLog, after: int, reached: Watermark, visibility: Visibility, scratch: Path) -> int:
    """The last position that the snapshot sees, where all up to `after` is known to be seen."""
    firsts: list[int] = []
    last = after
    for tx_id, first, until, is_snapshot in _transactions(log, after, reached.position, scratch):
        if is_snapshot:
            raise LockstepError("A new snapshot of the source landed while it was verified. Give the command again.")
        if visibility.sees(tx_id):
            last = max(last, until)
        else:
            firsts.append(first)
    if firsts and min(firsts) < last:
        raise LockstepError(
            f"The change log is not in the source's commit order: position {min(firsts)} was committed after the "
            f"snapshot, and position {last} before it."
        )
    return last


def _transactions(log: ChangeLog, after: int, until: int, scratch: Path) -> Iterator[tuple[int, int, int, bool]]:
    """Of each transaction and table from `after` to `until`: its id, first and last position, if it is a snapshot's."""
    with bounded_database(scratch) as connection:
        for table in TABLES:
            files = log.files(table, after, until)
            if not files:
                continue
            paths = ", ".join(f"'{quoted(f)}'" for f in files)
            yield from connection.execute(
                f"SELECT tx_id, MIN(position), MAX(position), BOOL_OR(op = 'r') "
                f"FROM read_parquet([{paths}], hive_partitioning = false) "
                f"WHERE position > {after} AND position <= {until} GROUP BY tx_id"
            ).fetchall()
    for entry in log.quarantined():
        if after < entry["position"] <= until:
            tx_id = (_event(entry).get("source") or {}).get("txId")
            if isinstance(tx_id, int):
                yield tx_id, entry["position"], entry["position"], False


class _StagedTable:
    """One table's rows at a moment, staged to be compared with the log's."""

    def __init__(self, at: _Moment, table: Table) -> None:
        at.say(f"{table.name} at position {at.position:,}")
        self._at = at
        self._layout = at.source.layout(at.snapshot.reading, table)
        if self._layout.problem:
            raise LockstepError(f"{table.name} was altered just now: {self._layout.problem}.")
        self._rows = Rows(at.database, at.source.schema, at.snapshot.xid, at.snapshot.lsn, at.snapshot.at)
        self._staged = Staged(at.source, at.snapshot.reading, self._layout, self._rows, at.scratch)
        self._events = [e for e in at.lacking if e["table"] in (table.name, ALL_TABLES)]

    def result(self, limit: int, repair: bool) -> TableResult:
        """Compare, and `repair` what does not pass; `limit` is how many differing keys are told one by one."""
        table, at, events = self._layout.table, self._at, self._events
        told = _keys(table, events, debezium.Settings.stored(at.log.watermark().resume)) if events else []
        keys = [key for of_event in told for key in of_event]
        files = at.log.files(table.name, until=at.position)
        found = compare(self._layout, self._staged.path, files, at.position, keys, at.scratch, limit)
        states = {state: sum(e["state"] == state for e in events) for state in ("open", "discarded")}
        verdict = _verdict(found, told)
        landed = self.resync() if repair and (verdict != PASSED or states["open"]) else None
        return TableResult(table.name, found, states, verdict, landed)

    def resync(self) -> int:
        """Land what makes the log's rows those of the source; returns the number of changes."""
        name, at = self._layout.table.name, self._at
        files = at.log.files(name, until=at.position)
        broken = broken_at(at.log, self._layout.table, at.position)
        with differences(self._layout.table, files, at.position, self._staged.path, at.scratch, broken) as found:
            at.say(f"{name}: waiting for the change log")
            with (
                at.log.writer(at.name, f"resyncing {name}", patience=_PATIENCE) as writer,
                writer.batch() as batch,
            ):
                later = at.log.files(name, at.position)
                self._require_unchanged(later)
                batch.supersede_quarantine({name}, at.position)
                land_differences(batch, self._rows, self._layout, self._staged, found, later, at.position)
                changes = batch.land(resume=self._in_place(writer.watermark.resume)).changes
                own = {k: v for k, v in at.source.partitions(at.snapshot.reading).items() if k == name}
                note(at.log.home, {**noted(at.log.home), **own})
                return changes

    def _in_place(self, resume: Mapping[str, Any]) -> Mapping[str, Any]:
        """The resume state with the table's place in the publication as it was at the moment."""
        name, places = self._layout.table.name, self._at.source.published(self._at.snapshot.reading)["tables"]
        if "published" not in resume or name not in places:
            return resume
        published = resume["published"]
        return {**resume, "published": {**published, "tables": {**published["tables"], name: places[name]}}}

    def _require_unchanged(self, later: Sequence[Path]) -> None:
        """Refuse if what was compared is no longer what the log has up to the moment, or has been resynced since."""
        at, name = self._at, self._layout.table.name
        states = {e["position"]: e["state"] for e in _lacking(at.log, at.position)}
        is_read_again = any(
            pc.any(pc.and_(pc.equal(rows["op"], "r"), pc.greater(rows["position"], at.position))).as_py()
            for rows in (pq.read_table(f, columns=["op", "position"], partitioning=None) for f in later)
        )
        if is_read_again or any(states.get(e["position"]) != e["state"] for e in self._events):
            raise LockstepError(
                f"{name} was not resynced: a snapshot or events of the quarantine landed meanwhile. Give the command "
                "again."
            )


def _verdict(found: Comparison, told: Sequence[Sequence[Mapping[str, Any]]]) -> str:
    """Passed, or incomplete if no key differs but those with an event in quarantine; failed otherwise.

    An event without a key (of a table without its before images, say) may stand for any one key.
    """
    if not found.differing:
        return PASSED
    without_key = sum(not keys for keys in told)
    return INCOMPLETE if found.differing <= found.in_quarantine + without_key else FAILED


def _lacking(log: ChangeLog, position: int) -> list[dict[str, Any]]:
    """The quarantined events that the log lacks up to `position`: the open and the discarded ones."""
    events = [e for e in log.quarantined() if e["position"] <= position and e["state"] != "landed"]
    if not any(e["state"] == "discarded" for e in events):
        return events
    fillers = pa.concat_tables(pq.read_table(f, partitioning=None) for f in log.files(DISCARDED))
    made_up_for = fillers.filter(pc.starts_with(fillers["reason"], _SUPERSEDED))["position"].to_pylist()
    return [e for e in events if e["position"] not in set(made_up_for)]


def _event(entry: Mapping[str, Any]) -> dict[str, Any]:
    """A quarantined event, parsed; nothing if it is not a JSON object."""
    try:
        event = json.loads(entry["event"])
    except ValueError:
        return {}
    return event if isinstance(event, dict) else {}


def _keys(table: Table, events: Sequence[Mapping[str, Any]], settings: debezium.Settings) -> list[list[dict[str, Any]]]:
    """The keys that each quarantined event names, as values of their types: those of its images."""
    told: list[list[dict[str, Any]]] = [[] for _ in events]
    con = debezium.connect()
    if table.key and table in debezium.parse(con, debezium.as_lines([e["event"] for e in events]), settings):
        rows = con.execute(f"SELECT ordinal // {debezium.STRIDE}, before, after FROM parsed_{table.name}").fetchall()
        for event, *images in rows:
            keys = [{name: image[name] for name in table.key} for image in images if image is not None]
            told[event] = [key for key in keys if None not in key.values()]
    return told


def _shown(value: object) -> object:
    """A value of a key for JSON: whole numbers as they are, all else as text."""
    return value if isinstance(value, int) else f"\\x{value.hex()}" if isinstance(value, bytes) else str(value)
