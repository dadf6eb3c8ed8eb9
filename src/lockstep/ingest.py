"""Landing of Debezium change events: exactly once, whole transactions, in the order in which they first arrived.

An event that has landed or was seen earlier in the input is passed over, so a source may send again from any earlier
point. An event that breaks the landing contract goes to quarantine whole; the same event sent again does not go there
twice. A transaction lands wholly or not at all: where the source marks transactions (BEGIN and END records, or the
`transaction` block they come with), one whose END has not come is kept in `<home>/unfinished.jsonl` and read first by
the next ingest, together with whatever came after its first event, which must not overtake it. Without marks the end
of the input ends the last transaction. Snapshot rows (op `r`) belong to no transaction.

After a crash the same input has to be given again, as Kafka does whose offsets were not committed.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, field
from datetime import datetime
from enum import Enum, auto
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from lockstep import debezium, joining
from lockstep.changelog import ALL_TABLES, ChangeLog, Landed, Watermark, Writer
from lockstep.durable import durable_replace
from lockstep.errors import LockstepError
from lockstep.lines import LineReader
from lockstep.lock import exclusive
from lockstep.logfiles import NO_HOUR, Version, version_of
from lockstep.moves import ADOPTING, JOINED, Columns
from lockstep.names import DATABASES_AS_SCHEMAS
from lockstep.schema import TABLES, Table, batch_schema, literal

CHUNK_BYTES = 64 << 20
_NAMELESS = "debezium"  # the source of events that do not name their connector, in a log that has no source yet
_REMEMBERED_TRUNCATES = 1000  # a TRUNCATE of an empty table leaves no change by which it would be known again

_LAST_LSN = (1 << 63) - 1
_RAW = "rtrim(line, chr(13) || chr(10))"
_IS_MARK = "kind IN ('begin', 'end')"
_IS_UNREAD = "kind IN ('unreadable', 'unknown')"
_IS_FOREIGN = f"kind = '{debezium.FOREIGN}'"


def _known() -> str:
    """SQL for the source tables' names."""
    return f"({', '.join(map(literal, TABLES))})"


@dataclass
class Summary:
    """What one ingest did. Counts are of records read; `landed` is of changes by table, with a TRUNCATE's deletes.

    `unfinished` is the number of transactions that wait for their end, with `unfinished_events`; `kept` counts all
    events kept for the next ingest, these and those that came behind them. `joined` says which new columns have joined
    the log, `waiting` which have not. `problem` says why the input was not read to its end, if it was not.
    """

    read: int = 0
    landed: Counter[str] = field(default_factory=Counter)
    known: int = 0
    quarantined: int = 0
    tombstones: int = 0
    heartbeats: int = 0
    boundaries: int = 0
    others: int = 0
    ignored: Counter[str] = field(default_factory=Counter)
    unfinished: int = 0
    unfinished_events: int = 0
    kept: int = 0
    joined: list[str] = field(default_factory=list)
    waiting: list[str] = field(default_factory=list)
    before: Watermark = field(default_factory=Watermark)
    after: Watermark = field(default_factory=Watermark)
    problem: str | None = None

    def as_row(self) -> dict[str, Any]:
        """For JSON: the watermarks as position and `logged_at`."""
        row = {name: value for name, value in vars(self).items() if name not in ("before", "after")}
        for name, watermark in (("before", self.before), ("after", self.after)):
            row[name] = {"position": watermark.position, "logged_at": watermark.logged_at}
        return {**row, "source": self.after.source}


def ingest(
    home: Path,
    files: Sequence[str],
    *,
    ends_transactions: bool = False,
    chunk_bytes: int = CHUNK_BYTES,
    progress: Callable[[int, int], None] = lambda records, bytes_read: None,
) -> Summary:
    """Land the change events of `files`, read as one stream (`-` is standard input).

    `ends_transactions` takes the input for whole: its end ends every transaction. `progress` is called after every
    chunk with the records and bytes read so far. Raises LockstepError for a file that cannot be read and for events
    of another database than the log's; what landed before that stays landed.
    """
    unfinished = home / "unfinished.jsonl"
    with ExitStack() as stack:
        # Another lock than the log's, which waits for the source's name: what was kept is read before that.
        stack.enter_context(exclusive(home / "ingest.lock", "ingesting change events"))
        reader = LineReader([*([str(unfinished)] if unfinished.exists() else []), *files])
        work = Landing(ChangeLog(home), stack, lands_behind=True)
        rest: pa.Table | None = None
        chunks = reader.chunks(chunk_bytes)
        for chunk in chunks:
            # A transaction longer than a chunk: twice as much each time, so that it is not parsed over and over.
            while rest is not None and chunk.nbytes < rest.nbytes and not reader.is_done:
                chunk = pa.concat_tables([chunk, next(chunks)])
            chunk = pa.concat_tables([rest, chunk]) if rest is not None else chunk
            end = End.MORE
            if reader.is_done:
                # An input that was cut off ends in the middle of something, also where nothing marks transactions.
                end = End.CUT if reader.problem else End.WHOLE if ends_transactions else End.INPUT
            rest = work.chunk(chunk, end)
            progress(work.summary.read, reader.bytes_read)
        work.finish()
        # Only now: until the input has landed as far as it can, what was kept before may be needed again.
        if rest is not None and rest.num_rows:
            durable_replace(unfinished, "".join(rest["line"].to_pylist()).encode())
        else:
            unfinished.unlink(missing_ok=True)
        work.summary.problem = reader.problem
        return work.summary


class End(Enum):
    """What follows a chunk: more, nothing for now, nothing because the input was cut off, or nothing for good."""

    MORE = auto()
    INPUT = auto()
    CUT = auto()
    WHOLE = auto()


def _lines_of(events: pa.Table, lines: pa.Table) -> pa.Table:
    """The lines of these events, in the events' order. Not by `take`, which copies all lines first."""
    at = events["ordinal"].to_numpy() // debezium.STRIDE
    starts = [0, *(np.flatnonzero(np.diff(at) != 1) + 1).tolist()] if len(at) else []
    runs = [lines.slice(at[a], b - a) for a, b in itertools.pairwise([*starts, len(at)])]
    return pa.concat_tables(runs) if runs else lines.slice(0, 0)


class Fresh:
    """The changes that are to land, by table: in `rows`, and in the connection as `fresh_<table>`."""

    def __init__(self, con: duckdb.DuckDBPyConnection) -> None:
        self.con = con
        self.rows: dict[str, pa.Table] = {}

    def set(self, table: Table, select: str, parameters: Sequence[Any] = ()) -> None:
        """Make those of a table by a SELECT, which may read `fresh_<table>`."""
        self.put(table, self.con.execute(select, parameters).to_arrow_table())

    def put(self, table: Table, rows: pa.Table) -> None:
        self.rows[table.name] = rows
        debezium.register(self.con, f"fresh_{table.name}", rows)

    def has_snapshot(self, table: Table) -> bool:
        """Whether there are rows that a snapshot read."""
        return bool(pc.any(pc.equal(self.rows[table.name]["op"], "r")).as_py())

    def leave_out(self, table: Table, ordinals: np.ndarray) -> None:
        """Remove changes, which mostly are the last ones of the chunk: then nothing is copied."""
        rows = self.rows[table.name]
        stays = ~np.isin(rows["ordinal"].to_numpy(), ordinals)
        if not stays.all():
            first = int(np.argmin(stays))
            self.put(table, rows.filter(pa.array(stays)) if stays[first:].any() else rows.slice(0, first))


class Landing:
    """Lands chunks of one stream of events: whatever the stream comes from, this decides what of it lands, and how.

    Holds the connection that parses chunks and, once the source is known, the log's writer, entered into `stack`.
    `lends` promises to call `lend` now and then. With `lands_behind` a chunk lands while the next one is parsed:
    `finish` waits for the last one. `settings` are those of a connector that puts no schemas into events.
    """

    def __init__(
        self,
        log: ChangeLog,
        stack: ExitStack,
        *,
        lends: bool = False,
        lands_behind: bool = False,
        settings: debezium.Settings = debezium.DEFAULTS,
    ) -> None:
        self._log = log
        self._lands_behind = lands_behind
        self._landing: Future[Landed] | None = None
        self._settings = settings
        self._stack = stack
        self._lends = lends
        self._con = debezium.connect()
        self._fresh = Fresh(self._con)
        self._writer: Writer | None = None
        self._source: str | None = None
        self.has_marks = False
        self.lacks_marks = False
        self._lsns: dict[Path, tuple[Version, tuple[int, int]]] = {}
        self._con.execute("CREATE TABLE quarantined (fingerprint VARCHAR)")
        before = log.watermark() if log.exists() else Watermark()
        self.summary = Summary(before=before, after=before)
        self._schemas = debezium.Schemas(before.resume)
        # Columns that have not joined: until they do, all is read and landed as if they were not declared.
        self._undeclared = stack.enter_context(ExitStack())
        waiting = log.unadopted() if log.exists() and "slot" not in before.resume else {}
        joining.check(log, waiting)
        self._await(waiting)
        self._is_seen = bool(self._waiting)  # whether the log's `extra` may have one
        self._unknown = joining.Unknown(self._con, log)

    def chunk(
        self, lines: pa.Table, end: End, resume: Callable[[pa.Table], Mapping[str, Any]] = lambda kept: {}
    ) -> pa.Table:
        """Land what is complete; return the lines that have to be read again before whatever follows.

        What `resume` makes of these lines replaces entries of the watermark's `resume`, in the act that lands the rest.
        Afterwards `has_marks` says whether a transaction mark was ever seen, and `lacks_marks` that what waits is of
        marked transactions though none was.
        """
        if self._is_seen:
            self.finish()
        parsed = debezium.parse(self._con, lines, self._settings, self._schemas)
        tables = list(parsed)
        self._wait()
        self._open_writer(lines)
        self._find_fresh(parsed)
        debezium.forget(self._con, tables)
        kept = self._keep_unfinished(tables, end)
        if kept.num_rows:
            for name in ("rejected", "truncates"):
                self._con.execute(f"DELETE FROM {name} WHERE ordinal IN (SELECT ordinal FROM kept)")
            for table in tables:
                self._fresh.leave_out(table, kept["ordinal"].to_numpy())
        self._count(tables, 0 if end is End.MORE else kept.num_rows)
        rest = _lines_of(kept, lines)
        if self._writer:
            self._land(self._writer, tables, lines, resume(rest))
        if not self._lands_behind:
            self.finish()
        return rest

    def finish(self) -> None:
        """Wait until the last chunk has landed, and take up the columns that it has. Raises what prevented that."""
        self._wait()
        if self._writer and self._is_seen:
            self._take_up(self._writer)

    def _wait(self) -> None:
        if self._landing is not None:
            landing, self._landing = self._landing, None
            landed = landing.result()
            self.summary.quarantined += landed.quarantined
            self.summary.after = landed.watermark

    def lend(self, go_on: Callable[[], bool]) -> bool:
        """Let a command that asks for it write to the log, between two chunks; False if `go_on` ended the waiting."""
        writer = self._writer
        if writer is None or not writer.is_asked_for():
            return True
        self._unknown.forget()
        return writer.lend(go_on)

    def _open_writer(self, lines: pa.Table) -> None:
        """Open the log for the source of the first event; refuse events of another."""
        sources = self._con.execute(
            "SELECT source, MIN(ordinal) FROM records WHERE source IS NOT NULL GROUP BY source ORDER BY MIN(ordinal)"
        ).fetchall()
        for source, ordinal in sources:
            if self._source is None:
                own = self.summary.before.source
                self._source = own if own and _is_of_one_server(source, own) else source
            if source != self._source and not _is_of_one_server(source, self._source):
                line = lines.slice(ordinal // debezium.STRIDE, 1).to_pylist()[0]
                raise LockstepError(
                    f"Line {line['number']} of {line['file']} is a change of {source}, those before it are of "
                    f"{self._source}. One data home holds one source: ingest each into a LOCKSTEP_HOME of its own."
                )
        has_changes = self._has("kind = 'change'")
        if self._writer is not None or not (has_changes or self._has(f"{_IS_UNREAD} OR {_IS_FOREIGN} OR kind = 'end'")):
            return
        source = self._source or self.summary.before.source or (_NAMELESS if has_changes else None)
        if source is None:
            if self._has(_IS_UNREAD):
                raise LockstepError(
                    f"There is no change event in {lines['file'][0].as_py()}. "
                    f"It begins: {lines['line'][0].as_py()[:200]}"
                )
            return
        if self._waiting and self._waiting != self._log.watermark().resume.get(ADOPTING):
            self._log.begin_adopting(source, self._waiting)
        self._undeclared.close()  # files are read with the new columns from now on
        self._writer = self._stack.enter_context(
            self._log.writer(source, "ingesting change events", lends=self._lends, adopts=bool(self._waiting))
        )
        self._await(self._waiting)
        self._pool = self._stack.enter_context(ThreadPoolExecutor(1))  # entered last, so it ends before the writer
        self.summary.before = self.summary.after = self._writer.watermark
        self._con.register("before", _fingerprints([e["event"] for e in self._log.quarantined()]))
        self._con.execute("INSERT INTO quarantined SELECT fingerprint FROM before")

    def _await(self, columns: Columns) -> None:
        """Have these columns, which are declared, count as not declared from here on."""
        self._waiting = columns
        self._members = {n: [c for c in TABLES[n].columns if c.name in names] for n, names in columns.items()}
        self.summary.waiting = [f"{name}.{column}" for name, names in columns.items() for column in names]
        self._undeclared.enter_context(TABLES.without(columns))

    def _take_up(self, writer: Writer) -> None:
        """Let each waiting column join if an image in the log has it in `extra`, and no event of its table is open.

        An event in quarantine that landed afterwards would have the column before it joined.
        """
        log, resume = self._log, writer.watermark.resume
        is_open = {e["table"] for e in log.quarantined() if e["state"] == "open"}
        self._undeclared.close()
        seen = {name: joining.seen(self._con, log, TABLES[name], columns) for name, columns in self._waiting.items()}
        ready = {n: columns for n, columns in seen.items() if columns and not is_open & {n, ALL_TABLES}}
        self._is_seen = any(columns and name not in ready for name, columns in seen.items())
        rest = {n: [c for c in columns if c not in ready.get(n, ())] for n, columns in self._waiting.items()}
        waiting = {name: columns for name, columns in rest.items() if columns}
        if ready:
            position = writer.watermark.position
            joined = {n: {**resume.get(JOINED, {}).get(n, {}), **dict.fromkeys(ready[n], position)} for n in ready}
            with writer.batch() as batch:
                for name, columns in ready.items():
                    counts = joining.Joined()
                    for rows in joining.from_extra(self._con, log, TABLES[name], columns, counts):
                        batch.add({name: rows})
                    self.summary.landed[name] += counts.told
                    self.summary.joined.append(counts.sentence(name, columns, position + 1))
                state = {**resume, ADOPTING: waiting, JOINED: {**resume.get(JOINED, {}), **joined}}
                landed = batch.land(resume=state)
            self.summary.after = landed.watermark
        self._await(waiting)

    def _has(self, condition: str) -> bool:
        return bool(self._con.execute(f"SELECT 1 FROM records WHERE {condition} LIMIT 1").fetchall())

    def _find_fresh(self, tables: Mapping[Table, pa.Table | None]) -> None:
        """Leave in `fresh_<table>`, `truncates` and `rejected` what neither landed nor is in quarantine, once each."""
        con = self._con
        broken = []
        for table, rows in tables.items():
            same = self._same(table)
            is_new = [f"NOT EXISTS (SELECT 1 {known})" for known in (same, self._later(table)) if known]
            con.execute(f"CREATE OR REPLACE TABLE first_ones AS {self._first_ones(table, same, is_new)}")
            # What has landed may be unsound by now: its table was declared otherwise then.
            is_broken = ["reason IS NOT NULL", *(is_new if table.key else ())]
            broken.append(
                f"SELECT ordinal, committed_at, '{table.name}' AS \"table\", reason FROM parsed_{table.name} AS p "
                f"WHERE {' AND '.join(is_broken)}"
            )
            counts = f"SELECT COUNT(*), (SELECT COUNT(*) FROM parsed_{table.name}) FROM first_ones"
            fresh, found = con.execute(counts).fetchall()[0]
            if rows is not None and fresh == found:
                self._fresh.put(table, rows)
                continue
            is_fresh = "TRUE" if fresh == found else "ordinal IN (FROM first_ones)"
            columns = ", ".join(batch_schema(table).names)
            self._fresh.set(table, f"SELECT {columns} FROM parsed_{table.name} WHERE {is_fresh}")
        reason = self._schemas.reason()
        foreign = f'SELECT ordinal, committed_at, "table", {reason} AS reason FROM records WHERE {_IS_FOREIGN}'
        unread = f"""
            SELECT ordinal, committed_at, CASE WHEN {_IS_UNREAD} THEN '{ALL_TABLES}' ELSE "table" END AS "table",
              {debezium.unread_reason()} AS reason
            FROM records WHERE reason IS NOT NULL AND ({_IS_UNREAD} OR "table" IN {_known()})
        """
        con.execute(f"CREATE OR REPLACE TABLE broken AS {' UNION ALL '.join([unread, foreign, *broken])}")
        is_sound = not con.execute("SELECT 1 FROM broken LIMIT 1").fetchall()  # as most chunks are
        con.execute(
            f"""
            CREATE OR REPLACE TABLE rejected AS
            SELECT
              broken.*,
              CASE WHEN op IS DISTINCT FROM 'r' THEN tx_id END AS tx_id, /* what a snapshot read has no transaction */
              {debezium.fingerprint(_RAW)} AS fingerprint
            FROM broken
            JOIN (SELECT ordinal, kind, op, tx_id, lsn, total_order, doc FROM records) USING (ordinal)
            JOIN (SELECT ordinal, line FROM lines) USING (ordinal)
            WHERE fingerprint NOT IN (SELECT fingerprint FROM quarantined)
            QUALIFY ROW_NUMBER() OVER (PARTITION BY fingerprint ORDER BY ordinal) = 1
            {"LIMIT 0" if is_sound else ""}
            """
        )
        resume = self._writer.watermark.resume if self._writer else {}
        remembered = {tuple(t) for t in resume.get("truncates", ())}
        truncates = con.execute(
            f"""
            SELECT "table", tx_id, lsn, MIN(ordinal) FROM records
            WHERE kind = 'change' AND op = 't' AND committed_at IS NOT NULL AND "table" IN {_known()} GROUP BY ALL
            """
        )
        fresh = [ordinal for *identity, ordinal in truncates.fetchall() if tuple(identity) not in remembered]
        con.execute(
            "CREATE OR REPLACE TABLE truncates AS "
            'SELECT ordinal, committed_at, "table", tx_id, lsn FROM records WHERE list_contains(?, ordinal)',
            [fresh],
        )

    def _keep_unfinished(self, tables: list[Table], end: End) -> pa.Table:
        """Register and return as `kept` the ordinals of what must wait for the end of its transaction.

        That is each event from the first one of an open transaction on, with the transaction marks that go with them.
        """
        con = self._con
        self.has_marks |= self._has(_IS_MARK)
        is_open = "FALSE" if end is End.WHOLE else f"(is_bounded OR {self.has_marks})"
        if end in (End.MORE, End.CUT):
            is_open += " OR transaction = (SELECT arg_max(transaction, ordinal) FROM records WHERE kind = 'change')"
        pending = " UNION ALL ".join(
            f"SELECT ordinal FROM {name}" for name in ("rejected", "truncates", *(f"fresh_{t.name}" for t in tables))
        )
        con.execute(
            f"""
            CREATE OR REPLACE TABLE pending AS
            SELECT
              ordinal, transaction, is_bounded,
              COALESCE(({is_open}) AND transaction IS NOT NULL
                AND transaction NOT IN (SELECT transaction FROM records WHERE kind = 'end'), FALSE) AS is_open
            FROM ({pending}) JOIN records USING (ordinal)
            """
        )
        kept = con.execute(
            f"""
            WITH first AS (SELECT MIN(ordinal) AS ordinal FROM pending WHERE is_open)
            SELECT ordinal FROM pending WHERE ordinal >= (FROM first)
            UNION ALL
            SELECT ordinal FROM records WHERE {_IS_MARK} AND (
              ordinal >= (FROM first)
              OR kind = 'begin' AND transaction IN (SELECT transaction FROM pending WHERE is_open)
            )
            ORDER BY ordinal
            """
        ).to_arrow_table()
        con.register("kept", kept)
        waits = bool(con.execute("SELECT 1 FROM pending WHERE is_open AND is_bounded LIMIT 1").fetchall())
        self.lacks_marks = waits and not self.has_marks
        return kept

    def _count(self, tables: list[Table], kept: int) -> None:
        con, summary = self._con, self.summary
        kinds: Counter[str] = Counter()
        events: Counter[str] = Counter()
        counted = con.execute(
            """
            SELECT kind, "table", COUNT(*) FROM records WHERE ordinal NOT IN (SELECT ordinal FROM kept) GROUP BY ALL
            """
        )
        for kind, table, n in counted.fetchall():
            kinds[kind] += n
            if kind == "change":
                events[table] += n
        fresh = con.execute(
            " UNION ALL ".join(
                f"SELECT COUNT(*) FROM {name}"
                for name in ("rejected", "truncates", *(f"fresh_{t.name}" for t in tables))
            )
        )
        summary.read += kinds.total() + kept
        summary.known += sum(events[t] for t in TABLES) + kinds["unreadable"] + kinds["unknown"] + kinds["foreign"]
        summary.known -= sum(n for (n,) in fresh.fetchall())
        summary.tombstones += kinds["tombstone"]
        summary.heartbeats += kinds["heartbeat"]
        summary.boundaries += kinds["begin"] + kinds["end"]
        summary.others += kinds["message"] + kinds["schema_change"]
        summary.ignored.update({t: n for t, n in events.items() if t not in TABLES})
        if kept:
            counts = "COUNT(DISTINCT transaction) FILTER (is_open), COUNT(*) FILTER (is_open), COUNT(*)"
            row = con.execute(f"SELECT {counts} FROM pending WHERE ordinal IN (SELECT ordinal FROM kept)").fetchall()[0]
            summary.unfinished, summary.unfinished_events, summary.kept = row

    def _land(self, writer: Writer, tables: list[Table], lines: pa.Table, moved: Mapping[str, Any]) -> None:
        con = self._con
        resume = {**self._expand_truncates(writer, tables), **self._schemas.stored, **moved}
        changes = {}
        for table in tables:
            if masked := self._unknown.masked(table):
                self._fresh.set(table, masked)
            link_snapshot(self._fresh, self._log, table)
            self.summary.known += _drop_repeated_snapshot(self._fresh, table)
            rows = self._fresh.rows[table.name]
            if rows.num_rows:
                changes[table.name] = rows
                self._is_seen |= joining.is_seen(self._log, rows, self._members.get(table.name, ()))
        rejected = con.execute(
            'SELECT ordinal, committed_at, "table", reason, tx_id FROM rejected ORDER BY ordinal'
        ).to_arrow_table()
        texts = _lines_of(rejected, lines)["line"]
        rejected = rejected.append_column("event", pc.utf8_rtrim(texts, characters="\r\n"))
        con.execute("INSERT INTO quarantined SELECT fingerprint FROM rejected")
        ended: datetime | None = con.execute(
            "SELECT MAX(ended_at) FROM records WHERE ordinal NOT IN (SELECT ordinal FROM kept)"
        ).fetchall()[0][0]
        was = writer.watermark.logged_at
        is_later = was is not None and ended is not None and ended > was
        if changes or rejected.num_rows or resume != writer.watermark.resume or is_later:
            self.summary.landed.update({name: rows.num_rows for name, rows in changes.items()})
            self._landing = self._pool.submit(writer.land, changes, rejected, reached=ended, resume=resume)

    def _expand_truncates(self, writer: Writer, tables: list[Table]) -> Mapping[str, Any]:
        """Turn each TRUNCATE into deletes of the keys that live at its place; return the resume state that knows it."""
        con = self._con
        truncates = con.execute(
            'SELECT ordinal, committed_at, "table", tx_id, lsn FROM truncates ORDER BY ordinal'
        ).fetchall()
        if not truncates:
            return writer.watermark.resume
        for ordinal, committed_at, name, tx_id, lsn in truncates:
            table = TABLES[name]
            if table not in tables:
                self._fresh.put(table, batch_schema(table).empty_table())
                tables.append(table)
            changes = _changes(self._log, table)
            live = f"""
                SELECT ordinal, after AS image FROM ({changes}) WHERE op <> 'd' AND ordinal IN (
                  SELECT MAX(ordinal) FROM ({_lives(table, changes)}) WHERE ordinal < ?
                  GROUP BY key HAVING NOT arg_max(is_end, ordinal)
                )
            """
            if not table.key:
                live = f"""
                SELECT 0 AS ordinal, image FROM (
                  SELECT image, SUM(weight)::BIGINT AS weight FROM (
                    SELECT ordinal, UNNEST([before, after]) AS image, UNNEST([-1, 1]) AS weight FROM ({changes})
                  ) WHERE image IS NOT NULL AND ordinal < ? GROUP BY image
                ), UNNEST(RANGE(weight))
                """
            deletes = f"""
                FROM fresh_{name}
                UNION ALL
                SELECT ? + ROW_NUMBER() OVER (ORDER BY ordinal), ?, 'd', image, NULL, ?, ? FROM ({live})
            """
            self._fresh.set(table, deletes, [ordinal, committed_at, tx_id, lsn, ordinal])
        resume = writer.watermark.resume
        remembered = [*resume.get("truncates", ()), *([name, tx, lsn] for _, _, name, tx, lsn in truncates)]
        return {**resume, "truncates": remembered[-_REMEMBERED_TRUNCATES:]}

    def _first_ones(self, table: Table, same: str, is_new: Sequence[str]) -> str:
        """SELECT from `parsed_<table>` the ordinals of what is sound and new, once each.

        `same` is `_same`; `is_new` holds the conditions that a new row of a table with a key meets.
        """
        con = self._con
        conditions = ["reason IS NULL"]
        if con.execute("SELECT 1 FROM quarantined LIMIT 1").fetchall():
            conditions.append(
                f"""
                ordinal NOT IN (
                  SELECT ordinal FROM records
                  WHERE kind = 'change' AND "table" = '{table.name}'
                    AND {debezium.fingerprint()} IN (SELECT fingerprint FROM quarantined)
                )
                """
            )
        if not table.key:  # of equal rows in a transaction as many are new as have not landed
            return f"""
            SELECT ordinal
            FROM (
              SELECT *, {f"(SELECT COUNT(*) {same})" if same else "0"} AS landed
              FROM parsed_{table.name} AS p JOIN (SELECT ordinal, total_order FROM records) USING (ordinal)
              WHERE {" AND ".join(conditions)}
              QUALIFY ROW_NUMBER() OVER (PARTITION BY tx_id, lsn, same_op, same_key, total_order ORDER BY ordinal) = 1
            )
            QUALIFY ROW_NUMBER() OVER (PARTITION BY tx_id, lsn, same_op, same_key ORDER BY ordinal) > landed
            """
        return f"""
        SELECT MIN(ordinal) AS ordinal FROM parsed_{table.name} AS p
        WHERE {" AND ".join([*conditions, *is_new])} GROUP BY tx_id, lsn, same_op, same_key
        """

    def _same(self, table: Table) -> str:
        """SQL, from its FROM on, for the changes in the log that a row of `parsed_<table>` AS p is; empty if none."""
        low, high = self._con.execute(f"SELECT MIN(lsn), MAX(lsn) FROM parsed_{table.name}").fetchall()[0]
        until = self._writer.watermark.position if self._writer else 0
        landed = _rows(
            self._files(table, low, high, until),
            "lsn, tx_id, op, before, after",
            f"lsn BETWEEN {low} AND {high} AND position <= {until}",
        )
        if not landed:
            return ""
        return f"""
            FROM (SELECT lsn, tx_id, op, {_key_of_change(table)} AS key FROM ({landed})) AS l
            WHERE l.lsn = p.lsn AND (l.tx_id IS NULL OR l.tx_id = p.tx_id)
              AND l.op = p.same_op AND l.key = p.same_key
        """

    def _later(self, table: Table) -> str:
        """SQL, from its FROM on, for the changes in the log that a snapshot row of `parsed_<table>` AS p is older than.

        A snapshot row that told nothing new has not landed, so it is not known again by itself. If it is sent again
        after its row has changed, it would undo that. A change is later only if both its place at the source and its
        commit time are: a standby that was promoted may go on at an earlier place.
        """
        [(low,)] = self._con.execute(f"SELECT MIN(lsn) FROM parsed_{table.name} WHERE op = 'r'").fetchall()
        if low is None or self._writer is None:
            return ""
        until = self._writer.watermark.position
        landed = _rows(
            self._files(table, low + 1, _LAST_LSN, until),
            "lsn, committed_at, op, before, after",
            f"lsn > {low} AND position <= {until}",
        )
        if not landed:
            return ""
        return f"""
            FROM (SELECT lsn, committed_at, {_key_of_change(table)} AS key FROM ({landed})) AS l
            WHERE p.op = 'r' AND l.lsn > p.lsn AND l.committed_at >= p.committed_at AND l.key = p.same_key
        """

    def _files(self, table: Table, low: int, high: int, until: int) -> list[Path]:
        """The table's files up to a position that may hold a change whose lsn lies in this range.

        By the files' own statistics, read once of each version: asking DuckDB for the rows opens every file every time.
        """
        found = []
        for path in self._log.files(table.name, until=until) if until else ():
            version = version_of(path)
            if path not in self._lsns or self._lsns[path][0] != version:
                self._lsns[path] = version, _lsn_range(path)
            first, last = self._lsns[path][1]
            if first <= high and low <= last:
                found.append(path)
        return found


def _is_of_one_server(source: str, other: str) -> bool:
    """Whether these are two databases that tables are declared in, of a source that has them in place of schemas."""
    (connector, _, one), (same, _, two) = source.partition(":"), other.partition(":")
    return connector == same and connector in DATABASES_AS_SCHEMAS and {one, two} <= TABLES.schemas_at(connector)


def _key_of_change(table: Table) -> str:
    """SQL for the key of a change of the log, as a struct."""
    key = ", ".join(f"{k} := CASE WHEN op = 'd' THEN before.{k} ELSE after.{k} END" for k in table.sql_key)
    return f"struct_pack({key})"


def _fingerprints(events: Sequence[str]) -> pa.Table:
    """A column `fingerprint` of these raw events, by which the same event sent again is known."""
    if not events:  # as nearly always, and a connection that can parse takes a tenth of a second
        return pa.table({"fingerprint": pa.array([], pa.string())})
    con = debezium.connect()
    debezium.read(con, debezium.as_lines(events))
    return con.execute(
        f"""
        SELECT {debezium.fingerprint(_RAW)} AS fingerprint
        FROM records JOIN (SELECT ordinal, line FROM lines) USING (ordinal)
        """
    ).to_arrow_table()


def _rows(files: Sequence[Path], columns: str, condition: str) -> str:
    if not files:
        return ""
    # An empty file comes first: all are read as what is declared now, whatever they were written as.
    names = [str(f) for f in (files[0].parents[1] / NO_HOUR / "0-0.parquet", *files)]
    return f"SELECT {columns} FROM read_parquet({names!r}, hive_partitioning = FALSE) WHERE {condition}"


def _lsn_range(path: Path) -> tuple[int, int]:
    """The smallest and largest lsn in a file of the log; everything, if the file does not say."""
    metadata = pq.read_metadata(path)
    groups = [metadata.row_group(i) for i in range(metadata.num_row_groups)]
    columns = [g.column(i) for g in groups for i in range(g.num_columns) if g.column(i).path_in_schema == "lsn"]
    if not columns or not all(c.statistics and c.statistics.has_min_max for c in columns):
        return -(1 << 63), 1 << 63
    return min(c.statistics.min for c in columns), max(c.statistics.max for c in columns)


def _changes(log: ChangeLog, table: Table, until: int | None = None) -> str:
    """SELECT ordinal, op, before, after: the log (before position `until`) and then `fresh_<table>`.

    The log's ordinals are negative, in order.
    """
    fresh = f"SELECT ordinal, op, before, after FROM fresh_{table.name}"
    if not log.exists() or not log.files(table.name, until=log.watermark().position):
        return fresh
    landed = joining.landed(log, table, until)
    return f"SELECT position - {1 << 62} AS ordinal, op, before, after FROM ({landed}) UNION ALL {fresh}"


def _lives(table: Table, changes: str) -> str:
    """SELECT ordinal, key, is_end: at each change, the key that it gives an image or whose life it ends."""
    before, after = _key(table, "before"), _key(table, "after")
    return f"""
    SELECT ordinal, {after} AS key, FALSE AS is_end FROM ({changes}) WHERE op <> 'd' AND after IS NOT NULL
    UNION ALL
    SELECT ordinal, {before}, TRUE FROM ({changes})
    WHERE op = 'd' OR op = 'r' AND after IS NULL OR op = 'u' AND {before} <> {after}
    """


def _key(table: Table, image: str) -> str:
    return f"struct_pack({', '.join(f'{k} := {image}.{k}' for k in table.sql_key)})"


def link_snapshot(fresh: Fresh, log: ChangeLog, table: Table, *, until: int | None = None) -> None:
    """Give each fresh snapshot row as `before` the live image that it replaces, if there is one.

    So its signed images sum to the difference. `until` looks only at the log before that position.
    """
    con, name = fresh.con, f"fresh_{table.name}"
    if not fresh.has_snapshot(table):
        return
    changes = _changes(log, table, until)
    con.execute(
        f"""
        CREATE OR REPLACE TABLE replaced AS
        SELECT ordinal, was
        FROM (
          SELECT ordinal, LAG(CASE WHEN NOT is_end THEN ordinal END) OVER (PARTITION BY key ORDER BY ordinal) AS was
          FROM ({_lives(table, changes)}) WHERE key IN (SELECT {_key(table, "after")} FROM {name} WHERE op = 'r')
        )
        WHERE was IS NOT NULL AND ordinal IN (SELECT ordinal FROM {name} WHERE op = 'r')
        """
    )
    if con.execute("SELECT 1 FROM replaced LIMIT 1").fetchall():
        linked = f"""
            SELECT f.* REPLACE (COALESCE(f.before, p.image) AS before)
            FROM {name} AS f LEFT JOIN (
              SELECT r.ordinal, c.after AS image FROM replaced AS r JOIN ({changes}) AS c ON c.ordinal = r.was
            ) AS p ON f.ordinal = p.ordinal
        """
        fresh.set(table, linked)


def _drop_repeated_snapshot(fresh: Fresh, table: Table) -> int:
    """Remove from the fresh changes the snapshot rows that tell nothing new; return how many."""
    if not fresh.has_snapshot(table):
        return 0
    is_repeated = "COALESCE(op = 'r' AND before = after, FALSE)"
    name = f"fresh_{table.name}"
    repeated: int = fresh.con.execute(f"SELECT COUNT(*) FROM {name} WHERE {is_repeated}").fetchall()[0][0]
    if repeated:
        fresh.set(table, f"FROM {name} WHERE NOT {is_repeated}")
    return repeated
