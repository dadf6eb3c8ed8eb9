"""The change log on disk: one gapless, totally ordered, append-only log over all source tables.

Layout under `<home>/changelog/`:

    <table>/hour=<YYYY-MM-DDTHH>/<first position>-<last position>.parquet    never modified once named
    <table>/hour=<YYYY-MM-DDTHH>/<first position>-.parquet                   grows by small landings
    _discarded/hour=.../...                                                  fills the positions of discarded events
    _tail/<table>/hour=...                                                   links to the hours that live views read
    watermark.json                                                           replaced last, atomically
    journal.jsonl, _manifest/                                                see `journal`

and `<home>/quarantine/<first>-<last>.jsonl` for the events that broke the landing contract, whole, with their reason
and the position kept for them, `<home>/source_receipts.jsonl` for what `lockstep verify-source` found, and
`<home>/live_receipts.jsonl` for what `lockstep reconcile --now` did.

Guarantees, at any crash: a batch is visible wholly (its watermark was replaced) or not at all; positions are
1, 2, 3, ... over all tables; `logged_at` never decreases with position. Readers ignore what lies beyond the watermark.
The next writer moves what a landing that was cut short has named in the journal to `<home>/debris`, and refuses to go
on if anything else lies there: no writer deletes what has landed, whatever becomes of the watermark.

So that the number of files follows the changes and not the landings, a small landing does not leave a file more: the
last small file of its hour is replaced by one with its rows too, under the same name. A reader that has listed a file
finds it, at any later time, with at least the rows that it had (`growing` tells why that also holds for one that has
begun to read it), perhaps with more, perhaps with some that are not visible yet: every reader bounds what it reads by
position.
The name is a symbolic link to where the file is replaced, in the hour's directory `_growing`. For not every file system
lists a name that is being replaced (btrfs leaves it out now and then), and a reader would miss the file.
"""

from __future__ import annotations

import itertools
import json
import logging
import os
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from lockstep import checkpoints
from lockstep.clock import AHEAD, NO_TIME, machine_now
from lockstep.contracts import skips
from lockstep.debris import undo_landing
from lockstep.durable import durable_replace
from lockstep.errors import LockstepError
from lockstep.journal import File, Journal, refuse, sealed, unsealed
from lockstep.lock import Lock, exclusive
from lockstep.logfiles import NO_HOUR, TAIL, begins_at, ends_before, hour_name, link_into_tail, unlink_from_tail
from lockstep.moves import ADOPTING, Columns, new_columns, problems
from lockstep.project import home, project
from lockstep.schema import DISCARDED, DISCARDED_SCHEMA, SCHEMA_FILE, TABLES, TIMESTAMP, Table, batch_schema, log_schema
from lockstep.staging import Stager, Write, durable_parquet

log = logging.getLogger("lockstep.changelog")

# 1 had no files that grow; 2 held tables from an hour on instead of a position, and had no journal. Both are read; a
# writer upgrades them.
FORMAT = 3
# A landing becomes visible within this time of its stamp: a reader that passes over younger ones sees none appear.
SETTLING = timedelta(milliseconds=250)
# How far back the watermark lists landings: a reader can find what was visible when its transaction began.
REMEMBERED, MOST_REMEMBERED = timedelta(minutes=10), 1000
_HOUR_US = 3_600_000_000
ALL_TABLES = "*"  # the `table` of an event so broken that its table is unknown: it holds every table
GAP = "gap"  # the only member of an event that holds a table because it may lack changes
KEEP_ALIVE = "keep-alive"  # used as the table where the time of a keep-alive is ahead of our clock


@dataclass(frozen=True)
class Hold:
    """Why nothing of a table may be read from a position on: `events` of it wait in quarantine.

    `position` is the first one of the transaction of the earliest of them, `logged_at` that position's.
    """

    position: int
    logged_at: datetime
    events: int = 1


@dataclass(frozen=True)
class Ahead:
    """The first event of a landing whose commit time was ahead of our clock, and how many that landing had."""

    position: int
    committed_at: datetime
    landed_at: datetime
    events: int


@dataclass(frozen=True)
class Watermark:
    """The point of the log up to which every table has landed.

    `logged_at` is the running maximum of `committed_at` up to `position` (None before the first change), and
    `started_at` its first value. `source` names the one database this log is of. `holds` maps a table to
    where its unresolved quarantined events hold it: nothing from there on is read, and that hour and those after it
    cannot seal. `resume` belongs to the
    source: whatever it needs to continue exactly after `position`. `ahead` maps a table, or `KEEP_ALIVE`, to its latest
    commit time that was ahead of our clock. `sequence` counts the watermarks of a log.
    """

    position: int = 0
    logged_at: datetime | None = None
    started_at: datetime | None = None
    source: str | None = None
    holds: Mapping[str, Hold] = field(default_factory=dict)
    resume: Mapping[str, Any] = field(default_factory=dict)
    landed_at: datetime | None = None
    ahead: Mapping[str, Ahead] = field(default_factory=dict)
    sequence: int = 0

    def closed_until(self) -> datetime | None:
        """The end of the last hour that the log's clock has passed."""
        return _floor_hour(self.logged_at) if self.logged_at else None

    def sealed_until(self, tables: Iterable[str]) -> datetime | None:
        """The end of the last sealed hour for a reader of `tables`."""
        if self.logged_at is None:
            return None
        wanted = {*tables, ALL_TABLES}
        ends = [self.logged_at, *(hold.logged_at for table, hold in self.holds.items() if table in wanted)]
        return _floor_hour(min(ends))


@dataclass(frozen=True)
class Landed:
    """What one batch made visible. `changes` counts rows after a key update became two, `files` those of Parquet that
    were written, new or anew."""

    changes: int
    quarantined: int
    files: int
    watermark: Watermark


class ChangeLog:
    """Reader's and writer's handle on `<home>/changelog`."""

    def __init__(self, home: Path) -> None:
        self.home = home
        self.root = home / "changelog"
        self.quarantine = home / "quarantine"
        self.source_receipts = home / "source_receipts.jsonl"
        self.live_receipts = home / "live_receipts.jsonl"
        self.reclocking = self.root / "reclocking.json"  # there while `lockstep log reclock` is at work
        self.journal = Journal(home)
        self._watermark_path = self.root / "watermark.json"

    def exists(self) -> bool:
        """Whether there is a log, be it one that has lost its watermark."""
        if self._watermark_path.exists() or self.journal.exists():
            return True
        landed = itertools.chain(self.root.glob("[!_]*/hour=*/*.parquet"), self.quarantine.glob("*.jsonl"))
        return any(begins_at(path) > 0 for path in landed)

    def watermark(self) -> Watermark:
        """The current watermark. Raises LockstepError if there is no log, or its watermark is not as it was written."""
        return self.watermark_of(self._raw_watermark())

    def _raw_watermark(self) -> dict[str, Any]:
        path = self._watermark_path
        try:
            content = path.read_bytes()
        except FileNotFoundError:
            if self.exists():
                raise refuse(self.home, f"{path} is missing: it says up to where the change log has landed.") from None
            raise LockstepError(
                f"There is no change log in {self.home}. Fill one with `lockstep simulate` or `lockstep ingest FILE`, "
                "or set LOCKSTEP_HOME to the data home that has one."
            ) from None
        try:
            raw = json.loads(content)
            if not isinstance(raw, dict) or "format" not in raw:
                raise ValueError("it is not a watermark")
            if raw["format"] > FORMAT:
                raise LockstepError(f"{path} has format {raw['format']}, this version of lockstep reads {FORMAT}.")
            return unsealed(content) if raw["format"] >= 3 else {**raw, "sequence": 0}
        except (ValueError, TypeError) as e:
            raise refuse(self.home, f"{path} is damaged: {e}.") from None

    def sound_watermark(self) -> Watermark:
        """The current watermark. Raises LockstepError also if it is not the one that was written last."""
        copy = self.journal.last_landed()  # before the watermark, which is written before it
        raw = self._raw_watermark()
        if copy and copy["sequence"] > raw["sequence"]:
            raise refuse(
                self.home,
                f"{self._watermark_path} is older than the log: it is number {raw['sequence']}, at position "
                f"{raw['position']:,}; {self.journal.path} has number {copy['sequence']}, at position "
                f"{copy['position']:,}.",
            )
        if copy and copy["sequence"] == raw["sequence"] and copy != _copy_of(raw):
            differing = ", ".join(sorted(name for name in copy if copy[name] != raw.get(name)))
            raise refuse(
                self.home, f"{self._watermark_path} and its copy in {self.journal.path} differ in {differing}."
            )
        return self.watermark_of(raw)

    def watermark_of(self, raw: Mapping[str, Any]) -> Watermark:
        """The watermark that is stored as `raw`."""
        return Watermark(
            position=raw["position"],
            logged_at=_parse(raw["logged_at"]),
            started_at=_parse(raw["started_at"]),
            source=raw["source"],
            holds=self._holds_of(raw),
            resume=raw["resume"],
            landed_at=_parse(raw["landed_at"]),
            ahead={table: _ahead(found) for table, found in raw.get("ahead", {}).items()},
            sequence=raw["sequence"],
        )

    def _holds_of(self, raw: Mapping[str, Any]) -> dict[str, Hold]:
        if raw["format"] == FORMAT:
            return {table: _hold(found) for table, found in raw["holds"].items()}
        return self._holds(self._entries(raw["position"])) if raw["holds"] else {}

    def require_files(self) -> None:
        """Make the files that models read and may have lost, empty, where there is none: no backup need keep those."""
        for path in (self.source_receipts, self.live_receipts, self.quarantine / "0-0.jsonl"):
            if not path.exists():
                durable_replace(path, b"")

    def require_changes(self) -> None:
        """Raise LockstepError unless a change has landed: models planned before would start at the wrong hour."""
        self._require_whole()
        watermark = self.sound_watermark()
        if watermark.started_at is None:
            raise LockstepError(f"The change log in {self.home} is still empty: there is nothing to compute yet.")
        self.require_files()
        is_older = watermark.holds and self._raw_watermark()["format"] < FORMAT  # models read holds from the file
        if is_older or any(self._landed_schema(name) != schema for name, schema in _schemas().items()):
            assert watermark.source
            with self.writer(watermark.source, "upgrading the change log", patience=60):
                pass  # which does that

    def files(self, table: str, after: int = 0, until: int | None = None) -> list[Path]:
        """The files with a table's (or `_discarded`'s) changes between two positions, in order of their first ones.

        `until` is the watermark's position if it is not given. The files may hold earlier and later changes too.
        """
        limit = self.watermark().position if until is None else until
        first = {p: begins_at(p) for p in (self.root / table).glob("hour=*/*.parquet")}
        # The empty schema file begins at 0.
        found = sorted((p for p in first if 0 < first[p] <= limit), key=first.__getitem__)
        # Positions rise with the hours: no file of an hour before this one ends beyond `after`.
        hour = max((p.parent.name for p in found if first[p] <= after), default="")
        return [p for p in found if p.parent.name >= hour and not ends_before(p, after + 1)]

    def require_readable(self, tables: Iterable[str], since: datetime | None) -> None:
        """Raise LockstepError if a file of these tables, of the hour `since` or later, is cut off or no Parquet file.

        Reads the end of each file, not its rows: damage in between is for checksums to find.
        """
        first = hour_name(since) if since else ""
        with ExitStack() as stack:
            hours = [stack.enter_context(os.scandir(self.root / table)) for table in tables]
            tail = sorted(hour.path for hour in itertools.chain(*hours) if hour.name >= first and hour.name != NO_HOUR)
        for path in (p for hour in tail for p in Path(hour).glob("*.parquet")):
            try:
                pq.read_metadata(path)
            except (OSError, pa.ArrowInvalid) as e:
                raise LockstepError(f"{path} cannot be read: {str(e).splitlines()[0]}") from None

    def link_tail(self, since: datetime) -> None:
        """Have the hours from `since` on in the tail; new ones the writer puts there.

        Published files read the log by way of the tail: to list every hour there is took longer than to read a few.
        """
        for table in _schemas():
            with os.scandir(self.root / table) as hours:
                for hour in hours:
                    if hour.name >= hour_name(since) or hour.name == NO_HOUR:
                        link_into_tail(Path(hour.path))

    def cut_tail(self, until: datetime) -> None:
        """Take the hours before `until` out of the tail; the log keeps them."""
        for link in (self.root / TAIL).glob("*/hour=*"):
            if NO_HOUR != link.name < hour_name(until):
                unlink_from_tail(link)

    def quarantined(self, until: int | None = None) -> list[dict[str, Any]]:
        """Every quarantined event up to a position, or every visible one: position, logged_at, table, reason, event,
        `positions`, and `state`.

        `positions` are those kept for it: two for an update of the primary key, which lands as two changes. `state` is
        `open` until all of them are filled, then `landed` or `discarded`.
        """
        return self._entries(self.watermark().position if until is None else until)

    def open_gaps(self) -> list[str]:
        """A sentence for each table that is held because it may lack changes; see `Batch.hold`."""
        entries = self.quarantined() if self.watermark().holds else []
        return [e["reason"] for e in entries if e["state"] == "open" and is_gap(e)]

    def _entries(self, limit: int) -> list[dict[str, Any]]:
        entries = [
            json.loads(line)
            for path in sorted(self.quarantine.glob("*.jsonl"), key=begins_at)
            if begins_at(path) <= limit
            for line in path.read_text(encoding="utf-8").splitlines()
        ]
        if not entries:
            return []
        wanted = pa.array([e["position"] for e in entries], pa.int64())
        entries = _whole(entries)
        discarded = self._filled([DISCARDED], wanted)
        landed = self._filled(list(TABLES), wanted)
        for e in entries:
            filled = landed | discarded
            is_open = not filled.issuperset(e["positions"])
            e["state"] = "open" if is_open else "landed" if e["position"] in landed else "discarded"
        return entries

    def _holds(self, entries: Iterable[Mapping[str, Any]]) -> dict[str, Hold]:
        """What those of these quarantined events hold that are open."""
        holds: dict[str, Hold] = {}
        for entry in entries:
            if entry["state"] == "open":
                hold = _hold(entry["hold"]) if "hold" in entry else self._hold_at(entry)
                holds[entry["table"]] = _joined(hold, holds.get(entry["table"]))
        return holds

    def _hold_at(self, entry: Mapping[str, Any]) -> Hold:
        """The hold of an event that a version before format 3 quarantined: it did not note the transaction.

        The changes of a transaction share their `logged_at`, so the first position with the event's is not after its.
        """
        logged_at = datetime.fromisoformat(entry["logged_at"])
        first: int = entry["position"]
        for path in self.root.glob(f"*/{hour_name(logged_at)}/*.parquet"):
            rows = pq.read_table(path, columns=["position", "logged_at"], partitioning=None)
            same = rows["position"].filter(pc.equal(rows["logged_at"], pa.scalar(logged_at, TIMESTAMP)))
            first = min(first, *same.to_pylist()) if len(same) else first
        return Hold(first, logged_at)

    def _filled(self, datasets: list[str], wanted: pa.Array) -> set[int]:
        found: set[int] = set()
        low, high = pc.min(wanted).as_py(), pc.max(wanted).as_py()
        for path in (p for name in datasets for p in self.files(name, low - 1, high)):
            positions = pq.read_table(path, columns=["position"], partitioning=None)["position"]
            found.update(positions.filter(pc.is_in(positions, wanted)).to_pylist())
        return found

    @contextmanager
    def writer(
        self,
        source: str,
        purpose: str = "landing changes",
        *,
        lends: bool = False,
        patience: float = 0,
        clock: Callable[[], datetime] = machine_now,
        reclocks: bool = False,
        adopts: bool = False,
    ) -> Iterator[Writer]:
        """The one writer of this log. `source` names the database the changes come from, e.g. `postgresql:shop`.

        `lends` promises to call `Writer.lend` now and then; from such a writer the log is borrowed within `patience`
        seconds (see `lock.exclusive`). `clock` tells commit times that are ahead; a simulated source brings its own.
        `adopts` promises to land what makes columns that the log lacks exact; see `unadopted`.

        Opening it creates an empty log where there is none, which is taken back if the caller fails before anything has
        landed, and moves what a crash left of a landing to the debris.
        Raises LockstepError if another process is writing, if the log already belongs to another source (positions
        and log sequence numbers of two databases have no common order), or if watermark and files contradict.
        """
        with exclusive(self.home / "changelog.lock", purpose, lends=lends, patience=patience) as lock:
            if not reclocks:
                self._require_whole()
            is_new = not self.exists()
            if is_new:
                self._create(source)
            watermark = self.sound_watermark()
            if watermark.source != source:
                raise LockstepError(
                    f"{self.root} is the change log of {watermark.source}, these changes come from {source}. "
                    "One data home holds one source: set LOCKSTEP_HOME to another directory."
                )
            self._require_schemas(adopts)
            watermark = self.settle()
            with ThreadPoolExecutor(os.cpu_count()) as pool:
                writer = Writer(self, watermark, pool, lock, clock)
                try:
                    yield writer
                except BaseException:
                    if is_new and not writer.watermark.position and not writer.watermark.resume:
                        self._take_back()
                    raise

    def _take_back(self) -> None:
        """Undo `_create`: remove the files that an empty log has, and the directories if nothing else is in them."""
        empty = [*self.root.rglob("0-0.parquet"), self.quarantine / "0-0.jsonl"]
        empty += [path for path in (self.source_receipts, self.live_receipts) if not path.stat().st_size]
        for path in (*empty, self.journal.path, self._watermark_path):
            path.unlink(missing_ok=True)
        for directory in (*sorted(self.root.rglob("*"), reverse=True), self.root, self.quarantine):
            with suppress(OSError):
                directory.rmdir()

    def _require_whole(self) -> None:
        if self.reclocking.exists():
            raise LockstepError(
                f"`lockstep log reclock` was interrupted in {self.home}: changes are there twice. Give it again; until "
                "then nothing lands or is computed."
            )

    def _create(self, source: str) -> None:
        self._require_schemas(adopts=False)
        self.require_files()
        self._replace_watermark(Watermark(source=source))

    def unadopted(self) -> dict[str, list[str]]:
        """The declared columns that the log lacks, by table, of tables whose changes have landed."""
        found = {
            name: new_columns(table, landed)
            for name, table in TABLES.items()
            if (landed := self._landed_schema(name)) is not None and self.files(name)
        }
        begun = self.watermark().resume.get(ADOPTING, {})  # by one that was killed, or that waits for the columns
        both = {
            name: sorted({*columns, *begun.get(name, ())} & {c.name for c in TABLES[name].columns})
            for name, columns in found.items()
        }
        return {name: columns for name, columns in both.items() if columns}

    def begin_adopting(self, source: str, columns: Columns) -> None:
        """Record that these columns are about to join the log, before its files are read as if they had."""
        begun = self.watermark().resume.get(ADOPTING, {})
        new = {name: set(names) - set(begun.get(name, ())) for name, names in columns.items()}
        with TABLES.without(new), self.writer(source, "taking up columns", adopts=True) as writer:
            begins = {name: list(names) for name, names in columns.items()}
            writer.land({}, resume={**writer.watermark.resume, ADOPTING: begins})

    def _require_schemas(self, adopts: bool) -> None:
        """An empty file per dataset carries its schema: a reader's glob always finds one, and reads all as it says."""
        for name, schema in _schemas().items():
            landed = self._landed_schema(name)
            if landed == schema:
                continue
            if landed is not None and name in TABLES and self.files(name):
                self._require_readable_as(TABLES[name], landed, adopts)
            path = self._schema_path(name)
            path.parent.mkdir(parents=True, exist_ok=True)
            durable_parquet(schema.empty_table(), path)

    def _require_readable_as(self, table: Table, landed: pa.Schema, adopts: bool) -> None:
        declares = (
            f"{project() / SCHEMA_FILE} declares {table.name} otherwise than the change log in {self.home} has it"
        )
        undo = "Undo the change, or begin a log in another LOCKSTEP_HOME."
        if why := problems(table, landed):
            raise LockstepError(
                f"{declares}: {'; '.join(why)}. Types may be widened, and columns left out, which then are in the "
                "images' `extra`. A column that has become narrower or another kind of value is a new column under "
                f"another name in the log: end its line with the comment `-- named NAME`. {undo}"
            )
        if not adopts and (new := new_columns(table, landed)):
            one = "column" if len(new) == 1 else "columns"
            how = (
                "Start `lockstep capture` with this declaration: it lands their values for all rows and goes on."
                if "slot" in self.watermark().resume
                else "Land events with this declaration (`lockstep ingest`): the column joins the log with the first "
                "event that has it."
            )
            raise LockstepError(f"{declares}: {one} {', '.join(new)} {'is' if len(new) == 1 else 'are'} new. {how}")

    def _schema_path(self, name: str) -> Path:
        return self.root / name / NO_HOUR / "0-0.parquet"

    def _landed_schema(self, name: str) -> pa.Schema | None:
        """The schema that a dataset's files are read as."""
        path = self._schema_path(name)
        return pq.read_schema(path) if path.exists() else None

    def settle(self) -> Watermark:
        """Have watermark, journal and files agree after a crash or a landing that failed; returns the watermark."""
        raw, journal = self._raw_watermark(), self.journal
        watermark = self.watermark_of(raw)
        hour = hour_name(watermark.logged_at) if watermark.logged_at else None
        journal.reload()
        if raw["format"] < FORMAT:
            undo_landing(self.home, journal, watermark.position, hour)  # no journal: refuses if there is anything
            return self._replace_watermark(watermark)
        if not journal.exists():
            log.warning(
                "%s is missing: the watermark serves without its copy, and what it said of files is lost: "
                "`lockstep log check` names those.",
                journal.path,
            )
            journal.begin(_copy_of(raw))
        elif journal.is_cut_off():
            for damage in journal.damage():
                log.warning("%s The watermark serves without its copy. See `lockstep log check`.", damage)
            journal.fold()
        if journal.landed() != _copy_of(raw):
            journal.note_landed(_copy_of(raw))
        moved = undo_landing(self.home, journal, watermark.position, hour)
        if moved:
            log.warning("A landing did not come to its end; what it had written is now in %s.", moved)
        return watermark

    def holds_of_open_events(self, until: int | None = None) -> dict[str, Hold]:
        """The holds that the open events of the quarantine justify."""
        return self._holds(self.quarantined(until))

    def restore_watermark(self, watermark: Watermark, recorded: Iterable[File]) -> Watermark:
        """Write a watermark that was found out to be the right one, as both copies; `lockstep log repair`'s last act.

        `recorded` are files that were cut back to it. The caller must hold the log's lock.
        """
        checkpoints.drop_since(self.home, watermark.position + 1)
        restored = replace(watermark, landed_at=_now())
        body = _body(restored)
        durable_replace(self._watermark_path, sealed({**body, "recent": []}))
        if self.journal.exists():
            self.journal.fold()
            self.journal.note_landed(body)
        else:
            self.journal.begin(body)
        files = list(recorded)
        if files:
            self.journal.record(files)
        return restored

    def _replace_watermark(self, watermark: Watermark) -> Watermark:
        """Make a landing visible; returns the watermark with the time of that, as it is on disk.

        `recent` holds the landings before it: see `SETTLING`, and `publish` for what readers do with them.
        """
        raw = self._raw_watermark() if self._watermark_path.exists() else None
        recent = self._recent(raw) if raw else []
        ahead = timedelta()
        while True:
            begun = _now()
            stamped = replace(watermark, landed_at=begun + ahead, sequence=(raw["sequence"] if raw else 0) + 1)
            body = _body(stamped)
            settles_at = begun + ahead + SETTLING / 2
            content = sealed({**body, "recent": recent})
            if durable_replace(self._watermark_path, content, lambda: _now() < settles_at):  # noqa: B023
                if self.journal.exists():
                    self.journal.note_landed(body)
                else:
                    self.journal.begin(body)
                return stamped
            ahead = 2 * (_now() - begun)  # a disk this slow: readers see it this much later

    def _recent(self, raw: Mapping[str, Any]) -> list[dict[str, Any]]:
        """The landings up to the one of a stored watermark, oldest first: landed_at, position, logged_at, holds.

        Those that a transaction begun within `REMEMBERED` of the last may see, so also the one before all of these.
        """
        if raw["started_at"] is None:
            return []
        last = {name: raw[name] for name in ("landed_at", "position", "logged_at", "holds")}
        landings = [*raw.get("recent", []), last][-MOST_REMEMBERED:]
        if raw["format"] < FORMAT:
            now = {table: _plain(asdict(hold)) for table, hold in self._holds_of(raw).items()}
            landings = [{**x, "holds": {t: h for t, h in now.items() if t in x["holds"]}} for x in landings]
        # Times of one format compare as text.
        since = _format(datetime.fromisoformat(last["landed_at"]) - REMEMBERED) or ""
        earlier = sum(landing["landed_at"] < since for landing in landings)
        return landings[max(earlier - 1, 0) :]


def _body(watermark: Watermark) -> dict[str, Any]:
    """A watermark as it is stored, without the landings before it."""
    return {
        "format": FORMAT,
        "sequence": watermark.sequence,
        "position": watermark.position,
        "logged_at": _format(watermark.logged_at),
        "started_at": _format(watermark.started_at),
        "source": watermark.source,
        "holds": {t: _plain(asdict(h)) for t, h in sorted(watermark.holds.items())},
        "resume": watermark.resume,
        "landed_at": _format(watermark.landed_at),
        "ahead": {table: _plain(asdict(found)) for table, found in sorted(watermark.ahead.items())},
    }


def _continuation(watermark: Watermark) -> dict[str, Any]:
    """From where the source's changes continue. A resync lands changes and leaves that alone."""
    return {name: value for name, value in watermark.resume.items() if name != "published"}


def _copy_of(raw: Mapping[str, Any]) -> dict[str, Any]:
    """What the journal keeps of a stored watermark."""
    return {name: value for name, value in raw.items() if name != "recent"}


class Writer:
    """Appends batches. Made by `ChangeLog.writer`, which holds the lock for it."""

    def __init__(
        self,
        log: ChangeLog,
        watermark: Watermark,
        pool: ThreadPoolExecutor,
        lock: Lock,
        clock: Callable[[], datetime] = machine_now,
    ) -> None:
        self._log = log
        self._lock = lock
        self._clock = clock
        self._is_littered = False
        self._stager = Stager(log.home, log.journal, pool)
        self.watermark = watermark

    def is_asked_for(self) -> bool:
        """Whether another command waits to borrow the log; see `lend`."""
        return self._lock.is_asked_for()

    def lend(self, go_on: Callable[[], bool]) -> bool:
        """Let another command write to the log, and wait for its end; no batch may be open.

        `go_on` is called all the while; once it returns False the waiting ends, and False is returned: this writer
        must not be used any more. Raises LockstepError if the log was not only mended but continued meanwhile: if the
        source's changes that landed go further now.
        """
        if not self._lock.lend(go_on):
            return False
        self._log.journal.reload()
        self._stager.forget()
        before, self.watermark = self.watermark, self._log.sound_watermark()
        if _continuation(self.watermark) != _continuation(before):
            raise LockstepError(
                f"Another command has continued {self._log.root} meanwhile: it ends at position "
                f"{self.watermark.position}, not {before.position}. Start again, to continue from there."
            )
        return True

    def land(
        self,
        changes: Mapping[str, pa.Table],
        rejected: pa.Table | None = None,
        *,
        reached: datetime | None = None,
        resume: Mapping[str, Any] | None = None,
    ) -> Landed:
        """Append one batch of one part, durably, and make it visible; see `Batch.add` and `Batch.land`."""
        with self.batch() as batch:
            batch.add(changes, rejected)
            return batch.land(reached=reached, resume=resume)

    @contextmanager
    def batch(self) -> Iterator[Batch]:
        """A batch to add parts to and then to land. If it is left without landing, the log is as it was before it."""
        self._clean()  # what could not be removed on a full disk, say
        batch = Batch(self, self._log, self._stager, self._clock)
        try:
            yield batch
        finally:
            self._is_littered = not batch.is_landed
            self._clean()

    def _clean(self) -> None:
        if self._is_littered:
            # By the watermark on disk: whatever failed may have failed just after replacing it.
            self._stager.forget()
            self.watermark = self._log.settle()
        self._is_littered = False

    def resolve(self, landed: Mapping[str, pa.Table], discarded: Iterable[Mapping[str, Any]]) -> Watermark:
        """Fill the positions kept for quarantined events, and lift the holds that nothing justifies any more.

        `landed` maps a table's name to rows of `schema.log_schema` whose positions and `logged_at` are those kept;
        `discarded` are entries of `ChangeLog.quarantined` to be given up for good, at all of their `positions`.
        """
        writes: list[Write] = []
        for name, rows in landed.items():
            for i in range(rows.num_rows):  # kept positions lie anywhere in the log: one file each
                writes += self._one(name, rows.slice(i, 1))
        for entry in discarded:
            writes += self._filler(entry)
        # What an interrupted call has filled may lie in another file by now: it must not be there twice.
        wanted = pa.array([begins_at(write.path) for write in writes], pa.int64())
        filled = self._log._filled([*TABLES, DISCARDED], wanted) if writes else set()
        self._stager.write(self.watermark.sequence + 1, [w for w in writes if begins_at(w.path) not in filled])
        for name, rows in landed.items():
            checkpoints.drop_since(self._log.home, pc.min(rows["position"]).as_py(), [name])
        holds = self._log._holds(self._log.quarantined())
        self.watermark = self._log._replace_watermark(replace(self.watermark, holds=holds))
        return self.watermark

    def _filler(self, entry: Mapping[str, Any]) -> list[Write]:
        rows = (_discarded_rows([{**entry, "position": position}]) for position in entry["positions"])
        return [write for row in rows for write in self._one(DISCARDED, row)]

    def _one(self, name: str, row: pa.Table) -> list[Write]:
        position = row["position"].to_numpy()
        return _by_hour(self._log.root, name, row, position, _us(row["logged_at"]))


class Batch:
    """Parts that become visible together, or not at all. Made by `Writer.batch`.

    Each part is durable, beyond the watermark, when `add` returns, so no more than one need be in memory however large
    the batch is. `watermark` is where the log will be when the batch has landed.
    """

    def __init__(self, writer: Writer, log: ChangeLog, stager: Stager, clock: Callable[[], datetime]) -> None:
        self._writer = writer
        self._log = log
        self._stager = stager
        self._clock = clock
        self._ahead: dict[str, Ahead] = {}
        self._transaction: tuple[int, int, int] | None = None  # the last part's last: its id, first position, logged_at
        self._changes = 0
        self._quarantined = 0
        self._written = 0
        self._superseded: list[dict[str, Any]] = []
        self.watermark = writer.watermark
        self.is_landed = False

    def add(
        self, changes: Mapping[str, pa.Table], rejected: pa.Table | None = None, held_from: Hold | None = None
    ) -> None:
        """Append one part, durably; it is not visible yet.

        `changes` maps a table's name to rows of `schema.batch_schema`. `rejected` holds the events that broke the
        landing contract, with columns `ordinal`, `committed_at` (may be null), `table` (`*` if unknown), `reason`,
        `event` (the raw text) and, where the source has it, `tx_id`; each keeps the position of its ordinal. Ordinals
        order the changes of one part. `held_from` is where the rejected events hold their tables, if that is not at the
        first position of their transactions; then none of them is skipped.

        An update that changes the primary key becomes a delete and an insert. A commit time that is more than `AHEAD`
        ahead of the clock, or not after `NO_TIME`, stays in `committed_at` and does not move `logged_at`.
        """
        parts = {name: split_key_updates(TABLES[name], rows) for name, rows in changes.items() if rows.num_rows}
        part_of = {name: rows for name, (rows, _) in parts.items()}
        names = list(part_of)
        bad, bad_half = _with_room(rejected) if rejected is not None and rejected.num_rows else (None, None)
        now = self._clock()
        clocks = [_us(part_of[n]["committed_at"]) for n in names] + (
            [_us(bad["committed_at"])] if bad is not None else []
        )
        ordinals = [part_of[n]["ordinal"] for n in names] + ([bad["ordinal"]] if bad is not None else [])
        halves = [half for _, half in parts.values()] + ([bad_half] if bad_half is not None else [])

        latest = _to_us(now + AHEAD)
        known = [np.where((clock > latest) | (clock <= _to_us(NO_TIME)), -1, clock) for clock in clocks]
        positions, logged = self._place(ordinals, halves, known, now)
        if len(logged):
            last = np.concatenate(list(logged)).max(initial=-1)
            logged_until = _from_us(int(last)) if last >= 0 else None
        else:
            logged_until = self.watermark.logged_at
        total = sum(len(p) for p in positions)

        for i, (position, clock) in enumerate(zip(positions, clocks, strict=False)):
            if (is_ahead := clock > latest).any():
                table = (
                    bad["table"].to_numpy() if bad is not None and i == len(names) else np.full(len(clock), names[i])
                )
                self._note_ahead(table[is_ahead], position[is_ahead], clock[is_ahead], now)

        writes: list[Write] = []
        for name, position, logged_at in zip(names, positions, logged, strict=False):
            rows = _with_place(part_of[name], position, logged_at, log_schema(TABLES[name]))
            writes += _by_hour(self._log.root, name, rows, position, logged_at, may_grow=True)
        holds = dict(self.watermark.holds)
        transactions = [_transactions(part_of[name]) for name in names]
        if bad is not None:
            transactions.append(_transactions(bad))
            begins = self._begins(transactions, positions, logged)
            may_skip = held_from is None
            if held_from:
                begins = [(held_from.position, _to_us(held_from.logged_at))] * len(begins)
            held, skipped = self._quarantine(bad, halves[-1], positions[-1], logged[-1], begins, total, may_skip)
            for table, hold in held.items():
                holds[table] = _joined(hold, holds.get(table))
            writes += skipped
        self._note_transaction(transactions, positions, logged)
        self._stager.write(self.watermark.sequence + 1, writes)
        self._written += sum(isinstance(write.content, pa.Table) for write in writes)

        started = self.watermark.started_at
        if started is None and total:
            started = _from_us(min(int(a.min()) for a in logged if len(a)))
        self.watermark = replace(
            self.watermark,
            position=self.watermark.position + total,
            logged_at=_later(logged_until, self.watermark.logged_at),
            started_at=started,
            holds=holds,
        )
        self._quarantined += rejected.num_rows if rejected is not None else 0
        self._changes += total - (bad.num_rows if bad is not None else 0)

    def hold(self, reasons: Mapping[str, str], since: Hold) -> None:
        """Hold tables from `since` on because they may lack changes; `reasons` are by table.

        Each gets an event in quarantine, which holds it until it is resynced or somebody discards the event.
        """
        rows = [
            {"ordinal": i, "table": table, "reason": reason, "event": json.dumps({GAP: reason})}
            for i, (table, reason) in enumerate(reasons.items())
        ]
        self.add({}, pa.Table.from_pylist(rows, _GAPS), since)

    def files(self, table: str) -> list[Path]:
        """The files of one table up to `watermark`: see `ChangeLog.files`."""
        return self._log.files(table, until=self.watermark.position)

    def supersede_quarantine(self, tables: Collection[str] | None = None, until: int | None = None) -> list[int]:
        """Discard, when the batch lands, every event of `tables` (of all) that is open now; returns their positions.

        Only those up to the position `until`, if it is given: later ones are not in what the batch holds. An event that
        says that changes may be missing counts wherever it stands: the next look tells whether they are again.

        For a batch that holds all in which the source differs from the log: it lands what those events said too, and
        a retry of one would count it twice. Should we die between the two, the events are discarded while their
        tables stay held: no figure is computed before the next such batch has landed.
        """
        entries = [e for e in self._log.quarantined() if e["state"] == "open"]
        superseded = [
            e
            for e in entries
            if (tables is None or e["table"] in tables) and (until is None or e["position"] <= until or is_gap(e))
        ]
        self._superseded = [{**e, "reason": f"superseded by a new snapshot; {e['reason']}"} for e in superseded]
        holds = self._log._holds(e for e in entries if e not in superseded)
        self.watermark = replace(self.watermark, holds=holds)
        return [e["position"] for e in self._superseded]

    def land(self, *, reached: datetime | None = None, resume: Mapping[str, Any] | None = None) -> Landed:
        """Make every part visible at once; the last thing to do with a batch.

        `reached` is a source clock that the source has promised to be past (an idle keep-alive, a transaction's end):
        it moves `logged_at` without a change, unless it is more than `AHEAD` ahead of our clock. `resume` replaces the
        watermark's resume state; None keeps it.

        The batch must end at a transaction boundary: the watermark after it is what readers see.
        """
        now = self._clock()
        if reached and reached > now + AHEAD and self.watermark.started_at:
            self._ahead[KEEP_ALIVE] = Ahead(self.watermark.position, reached, now, 1)
            reached = None
        fillers = [w for entry in self._superseded for w in self._writer._filler(entry)]
        self._stager.write(self.watermark.sequence + 1, fillers)
        moved = replace(
            self.watermark,
            logged_at=_later(self.watermark.logged_at, reached if self.watermark.started_at else None),
            resume=self.watermark.resume if resume is None else resume,
            ahead={**self.watermark.ahead, **self._ahead},
        )
        moved = self._log._replace_watermark(moved)
        self._writer.watermark = moved
        self.is_landed = True
        return Landed(self._changes, self._quarantined, self._written + len(fillers), moved)

    def _note_ahead(self, tables: np.ndarray, position: np.ndarray, clock: np.ndarray, now: datetime) -> None:
        for table in np.unique(tables):
            own = np.flatnonzero(tables == table)
            first = own[position[own].argmin()]
            found = Ahead(int(position[first]), _from_us(int(clock[first])), now, len(own))
            before = self._ahead.get(str(table))
            self._ahead[str(table)] = replace(before, events=before.events + len(own)) if before else found

    def _place(
        self, ordinals: list[pa.ChunkedArray], halves: list[np.ndarray], clocks: list[np.ndarray], now: datetime
    ) -> tuple[list[np.ndarray], list[np.ndarray]]:
        """Position and `logged_at` (microseconds) of every row of every part, in the parts' own row order.

        `clocks` are commit times in microseconds, negative where a row has none that counts.
        """
        sizes = [len(o) for o in ordinals]
        if not sum(sizes):
            return [], []
        ordinal = np.concatenate([o.to_numpy() for o in ordinals])
        half = np.concatenate(halves)
        clock = np.concatenate(clocks)
        order = np.lexsort((half, ordinal))
        sorted_ordinal, sorted_half = ordinal[order], half[order]
        if ((np.diff(sorted_ordinal) == 0) & (np.diff(sorted_half) == 0)).any():
            raise ValueError("two changes of a batch share an ordinal")
        start = _to_us(self.watermark.logged_at) if self.watermark.logged_at else -1
        running = np.maximum.accumulate(np.maximum(clock[order], start))
        if running[0] < 0:
            # A log that opens with an event whose commit time is unknown takes the first time that is known.
            known = running[running >= 0]
            running = np.maximum(running, known[0] if len(known) else _to_us(now))
        position = np.empty(len(order), np.int64)
        logged_at = np.empty(len(order), np.int64)
        position[order] = np.arange(self.watermark.position + 1, self.watermark.position + 1 + len(order))
        logged_at[order] = running
        cuts = np.cumsum(sizes)[:-1]
        return np.split(position, cuts), np.split(logged_at, cuts)

    def _begins(
        self, transactions: list[np.ndarray], positions: list[np.ndarray], logged: list[np.ndarray]
    ) -> list[tuple[int, int]]:
        """Position and `logged_at` at which the transaction of each row of the last part begins.

        A row of no known transaction is of the one around it: of that of the rows before and after it, if that is one.
        """
        position = np.concatenate(positions)
        order = np.argsort(position)
        position, transaction = position[order], np.concatenate(transactions)[order]
        logged_at = np.concatenate(logged)[order]
        known = np.flatnonzero(transaction >= 0)
        if len(known):
            rows = np.arange(len(transaction))
            after = np.searchsorted(known, rows)
            one, other = known[np.maximum(after - 1, 0)], known[np.minimum(after, len(known) - 1)]
            is_within = (one < rows) & (rows < other) & (transaction[one] == transaction[other])
            transaction = np.where((transaction < 0) & is_within, transaction[one], transaction)
        ids, firsts = np.unique(transaction, return_index=True)
        begins = []
        for place in np.searchsorted(position, positions[-1]).tolist():
            own = int(transaction[place])
            if own >= 0 and self._transaction and self._transaction[0] == own:
                begins.append(self._transaction[1:])
                continue
            first = int(firsts[np.searchsorted(ids, own)]) if own >= 0 else place
            begins.append((int(position[first]), int(logged_at[first])))
        return begins

    def _note_transaction(
        self, transactions: list[np.ndarray], positions: list[np.ndarray], logged: list[np.ndarray]
    ) -> None:
        """Remember where the last transaction of this part begins: the next part may go on with it."""
        if not sum(map(len, positions)):
            return
        position, transaction, logged_at = (np.concatenate(part) for part in (positions, transactions, logged))
        last = int(transaction[position.argmax()])
        if last < 0:
            self._transaction = None
        elif not self._transaction or self._transaction[0] != last:
            own = np.flatnonzero(transaction == last)
            first = own[position[own].argmin()]
            self._transaction = last, int(position[first]), int(logged_at[first])

    def _quarantine(
        self,
        bad: pa.Table,
        half: np.ndarray,
        position: np.ndarray,
        logged_at: np.ndarray,
        begins: list[tuple[int, int]],
        total: int,
        may_skip: bool,
    ) -> tuple[dict[str, Hold], list[Write]]:
        """The holds that rejected events cause; the file that stores them whole, and the fillers of skipped ones."""
        entries: list[dict[str, Any]] = [
            {
                "position": int(p),
                "logged_at": _format(_from_us(int(at))),
                **row,
                "hold": {"position": first, "logged_at": _format(_from_us(first_at))},
                "is_second": bool(second),
            }
            for row, second, p, at, (first, first_at) in zip(
                bad.select(["table", "reason", "event"]).to_pylist(), half, position, logged_at, begins, strict=True
            )
        ]
        text = "".join(json.dumps(e) + "\n" for e in entries)
        base = self.watermark.position
        path = self._log.quarantine / f"{base + 1}-{base + total}.jsonl"
        events = Write(path, text.encode(), last=int(position.max()), count=len(entries))
        skipped = [entry for entry in entries if may_skip and skips(entry["table"])]
        holding = [entry for entry in entries if entry not in skipped]
        holds = self._log._holds({**entry, "state": "open"} for entry in _whole(holding))
        if not skipped:
            return holds, [events]
        rows = _discarded_rows(sorted(skipped, key=lambda e: e["position"]))
        position = rows["position"].to_numpy()
        fillers = _by_hour(self._log.root, DISCARDED, rows, position, _us(rows["logged_at"]), may_grow=True)
        return holds, [events, *fillers]


_GAPS = pa.schema(
    [
        ("ordinal", pa.int64()),
        ("committed_at", TIMESTAMP),
        ("table", pa.string()),
        ("reason", pa.string()),
        ("event", pa.string()),
    ]
)


def _transactions(rows: pa.Table) -> np.ndarray:
    """The transaction of each row, -1 where it has none. A row that a snapshot read belongs to no transaction."""
    if "tx_id" not in rows.column_names:
        return np.full(rows.num_rows, -1, np.int64)
    found = rows["tx_id"]
    if "op" in rows.column_names:
        found = pc.if_else(pc.equal(rows["op"], "r"), pa.scalar(None, pa.int64()), found)
    transactions: np.ndarray = pc.fill_null(found.cast(pa.int64()), -1).to_numpy()
    return transactions


def _by_hour(
    root: Path, name: str, rows: pa.Table, position: np.ndarray, logged_at: np.ndarray, may_grow: bool = False
) -> list[Write]:
    """One file per hour of `logged_at`; rows are in position order, so an hour is a slice."""
    hours = logged_at // _HOUR_US
    edges = [0, *(np.flatnonzero(np.diff(hours)) + 1).tolist(), len(hours)]
    out = []
    for a, b in itertools.pairwise(edges):
        hour = _from_us(int(hours[a]) * _HOUR_US)
        path = root / name / hour_name(hour) / f"{position[a]}-{position[b - 1]}.parquet"
        out.append(Write(path, rows.slice(a, b - a), int(position[b - 1]), int(b - a), may_grow))
    return out


def first_hour() -> datetime:
    """The first hour of the data home's log; midnight of today while there is none.

    Makes the data home: SQLMesh asks this while it loads the models, just before it opens its databases in there.
    """
    home().mkdir(parents=True, exist_ok=True)
    log = ChangeLog(home())
    started_at = None
    if log.exists():
        log.require_files()  # a log that an earlier version made has not all
        started_at = log.watermark().started_at
    return _floor_hour(started_at or datetime.now(UTC).replace(tzinfo=None, hour=0))


def _with_room(rejected: pa.Table) -> tuple[pa.Table, np.ndarray]:
    """The rejected events, those twice that may update a primary key: then that can land at two positions.

    The second result is 1 for the second of two, else 0.
    """
    texts = zip(rejected["table"].to_pylist(), rejected["event"].to_pylist(), strict=True)
    repeats = np.array([2 if _may_change_key(table, event) else 1 for table, event in texts])
    half = np.zeros(repeats.sum(), np.int8)
    half[np.cumsum(repeats)[repeats == 2] - 1] = 1
    return rejected.take(np.repeat(np.arange(rejected.num_rows), repeats)), half


def _may_change_key(table: str, event: str) -> bool:
    """Whether the event, as far as it can be read, is an update with another key after it than before."""
    try:
        found = json.loads(event)
        while "payload" in found:
            found = found["payload"]
        before, after = found["before"], found["after"]
        return found["op"] == "u" and any(
            before.get(key) != after.get(key) for key in TABLES[table].key_at(found["source"].get("connector"))
        )
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        return False


def is_gap(entry: Mapping[str, Any]) -> bool:
    """Whether a quarantined event says that changes may be missing, and is not a change itself."""
    return bool(entry["event"] == json.dumps({GAP: entry["reason"]}))


def _whole(entries: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """Quarantined events one each, with all `positions` kept for them; the second of two follows the first."""
    whole: list[dict[str, Any]] = []
    for entry in entries:
        if entry.get("is_second"):
            whole[-1]["positions"].append(entry["position"])
        else:
            whole.append({**{k: v for k, v in entry.items() if k != "is_second"}, "positions": [entry["position"]]})
    return whole


def split_key_updates(table: Table, rows: pa.Table) -> tuple[pa.Table, np.ndarray]:
    """Rows in ordinal order, each update of a primary key become a delete and an insert of the same ordinal.

    The second result is 0 for a whole change or the delete of such a pair, and 1 for its insert.
    """
    if rows.schema != batch_schema(table):
        rows = rows.cast(batch_schema(table))
    ordinal = rows["ordinal"].to_numpy()
    if (np.diff(ordinal) < 0).any():
        rows = rows.combine_chunks().take(np.argsort(ordinal, kind="stable"))
    changed = np.zeros(rows.num_rows, bool)
    is_update = pc.equal(rows["op"], "u")
    for key in table.key:
        differs = pc.not_equal(pc.struct_field(rows["before"], key), pc.struct_field(rows["after"], key))
        changed |= pc.fill_null(pc.and_(is_update, differs), False).to_numpy()
    if not changed.any():
        return rows, np.zeros(rows.num_rows, np.int8)
    repeats = np.where(changed, 2, 1)
    twice = rows.combine_chunks().take(np.repeat(np.arange(rows.num_rows), repeats))
    half = np.zeros(twice.num_rows, np.int8)
    second = np.cumsum(repeats)[changed] - 1
    half[second] = 1
    is_first = np.zeros(twice.num_rows, bool)
    is_first[second - 1] = True
    is_second = half.astype(bool)
    nothing = pa.scalar(None, table.image)
    op = pc.if_else(is_first, "d", pc.if_else(is_second, "c", twice["op"]))
    before = pc.if_else(is_second, nothing, twice["before"])
    after = pc.if_else(is_first, nothing, twice["after"])
    for name, column in (("op", op), ("before", before), ("after", after)):
        twice = twice.set_column(twice.schema.get_field_index(name), name, column)
    return twice, half


def _with_place(rows: pa.Table, position: np.ndarray, logged_at: np.ndarray, schema: pa.Schema) -> pa.Table:
    columns = [pa.array(position), pa.array(logged_at).cast(TIMESTAMP), *(rows[n] for n in schema.names[2:])]
    return pa.table(columns, schema=schema)


def _discarded_rows(entries: list[dict[str, Any]] | list[Mapping[str, Any]]) -> pa.Table:
    return pa.table(
        {
            "position": [e["position"] for e in entries],
            "logged_at": pa.array([datetime.fromisoformat(e["logged_at"]) for e in entries], TIMESTAMP),
            "table": [e["table"] for e in entries],
            "reason": [e["reason"] for e in entries],
        },
        schema=DISCARDED_SCHEMA,
    )


def _schemas() -> dict[str, pa.Schema]:
    return {DISCARDED: DISCARDED_SCHEMA, **{name: log_schema(table) for name, table in TABLES.items()}}


def _us(column: pa.ChunkedArray) -> np.ndarray:
    values: np.ndarray = pc.fill_null(column.cast(TIMESTAMP).cast(pa.int64()), -1).to_numpy()
    return values


def _to_us(at: datetime) -> int:
    return (at - datetime(1970, 1, 1)) // timedelta(microseconds=1)


def _from_us(us: int) -> datetime:
    return datetime(1970, 1, 1) + timedelta(microseconds=us)


def _now() -> datetime:
    return datetime.now(UTC).replace(tzinfo=None)


def _floor_hour(at: datetime) -> datetime:
    return at.replace(minute=0, second=0, microsecond=0)


def _later(a: datetime | None, b: datetime | None) -> datetime | None:
    return max((x for x in (a, b) if x is not None), default=None)


def _parse(text: str | None) -> datetime | None:
    return datetime.fromisoformat(text) if text else None


def _hold(raw: Mapping[str, Any]) -> Hold:
    return Hold(raw["position"], datetime.fromisoformat(raw["logged_at"]), raw.get("events", 1))


def _joined(hold: Hold, other: Hold | None) -> Hold:
    """Two holds of a table as one."""
    if other is None:
        return hold
    return replace(min(hold, other, key=lambda h: h.position), events=hold.events + other.events)


def _ahead(raw: Mapping[str, Any]) -> Ahead:
    times = {name: datetime.fromisoformat(raw[name]) for name in ("committed_at", "landed_at")}
    return Ahead(raw["position"], events=raw["events"], **times)


def _plain(row: Mapping[str, Any]) -> dict[str, Any]:
    return {name: _format(value) if isinstance(value, datetime) else value for name, value in row.items()}


def _format(at: datetime | None) -> str | None:
    return at.isoformat(timespec="microseconds") if at else None
