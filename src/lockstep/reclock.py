"""Setting a log's clock right that a commit time has carried into the future, or begun in 1970.

Versions that took any commit time let one event from 2099 move `logged_at` there: all later changes share its hour,
which never seals. A first event from 1970 made the log as long. Here each gets the `logged_at` of today's rule.
Positions, images and commit times stay. Whatever was computed from the log is moved aside, as the hours since were
folded empty; the next `lockstep run` computes it anew.
"""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from lockstep import changelog, checkpoints, durable, staging
from lockstep.changelog import Ahead, ChangeLog, Watermark
from lockstep.clock import AHEAD, NO_TIME, machine_now
from lockstep.errors import LockstepError
from lockstep.lock import exclusive
from lockstep.log_check import as_it_is, files_of
from lockstep.logfiles import NO_HOUR, TAIL, begins_at, hour_name, link_into_tail
from lockstep.schema import DISCARDED, TABLES, TIMESTAMP

_HOUR = timedelta(hours=1)
_DATABASES = [f"{name}.duckdb{suffix}" for name in ("warehouse", "state") for suffix in ("", ".wal")]
_DERIVED = ["analytics.duckdb", "published", *_DATABASES]  # in this order: nobody reads what is about to be wrong


@dataclass(frozen=True)
class Reclocked:
    """`changes` got another `logged_at`, which was up to `before`.

    `moved` is where the old files, and what was computed from them, now lie.
    """

    changes: int
    before: datetime
    watermark: Watermark
    moved: Path


def reclock(home: Path) -> Reclocked | None:
    """Give changes logged ahead of the machine's clock, or up to `NO_TIME`, another time; None if there are none.

    If it is interrupted, no other command writes or computes until it was given again. Takes both locks of the home.
    """
    log = ChangeLog(home)
    watermark = log.watermark()
    if watermark.source is None:
        raise LockstepError(f"The change log in {home} is still empty.")
    with (
        exclusive(home / "warehouse.lock", "setting the log's clock right"),
        log.writer(watermark.source, "setting the log's clock right", reclocks=True) as writer,
    ):
        return _Reclock(log, writer.watermark).run()


class _Reclock:
    def __init__(self, log: ChangeLog, watermark: Watermark) -> None:
        self._log = log
        self._watermark = watermark
        self._marker = log.reclocking
        self._state: dict[str, Any] = json.loads(self._marker.read_text()) if self._marker.exists() else {}

    def run(self) -> Reclocked | None:
        before, started = self._watermark.logged_at, self._watermark.started_at
        if not self._state:
            now = machine_now()
            limit = (now + AHEAD).replace(minute=0, second=0, microsecond=0) + _HOUR
            if before is None or started is None or (before < limit and started > NO_TIME):
                return None
            at = f"reclock-{now:%Y%m%dT%H%M%S}"
            first, last = (str(at) if at else None for at in self._between(limit))
            self._note(now=str(now), limit=str(limit), first=first, last=last, aside=f"debris/{at}")
        assert before and started
        aside = self._log.home / self._state["aside"]
        if "gone" not in self._state:
            self._move_derived(aside)
            self._rewrite()
        for name in self._state["gone"]:
            _move(self._log.root / name, aside / "changelog" / name)
        for link in (self._log.root / TAIL).glob("*/hour=*"):
            if link.name >= hour_name(self._time("limit")):
                link.unlink()
        self._record()
        found = {table: Ahead(**{**a, **_times(a)}) for table, a in self._state["ahead"].items()}
        mended = replace(
            self._watermark,
            logged_at=before if self._counts(before) else self._time("logged_at"),
            started_at=started if self._counts(started) else self._time("started_at"),
            holds=self._log._holds(self._log.quarantined()),
            ahead={**self._watermark.ahead, **found},
        )
        mended = self._log._replace_watermark(mended)
        self._marker.unlink()
        return Reclocked(self._state["changes"], before, mended, aside)

    def _record(self) -> None:
        """Have the journal know the files as they are now."""
        journal, home = self._log.journal, self._log.home
        recorded = journal.files()
        names = [path.relative_to(home).as_posix() for path in files_of(home)]
        fresh = [as_it_is(home, name) for name in names if name not in recorded or name.endswith(".jsonl")]
        journal.record(fresh, gone=sorted(set(recorded) - set(names)))

    def _time(self, name: str) -> datetime:
        return datetime.fromisoformat(self._state[name])

    def _note(self, **state: Any) -> None:
        self._state |= state
        durable.durable_replace(self._marker, json.dumps(self._state, default=str).encode())

    def _counts(self, at: datetime) -> bool:
        return NO_TIME < at < self._time("limit")

    def _files(self, name: str, limit: datetime, counts: bool) -> list[Path]:
        """A dataset's files of the hours that count, or of those that do not."""
        found = (p for p in (self._log.root / name).glob("hour=*/*.parquet") if begins_at(p))
        return sorted(p for p in found if (hour_name(NO_TIME) < p.parent.name < hour_name(limit)) == counts)

    def _between(self, limit: datetime) -> tuple[datetime | None, datetime | None]:
        """`logged_at` of the first and the last change whose time counts."""
        times: list[datetime] = []
        for name in (*TABLES, DISCARDED):
            files = self._files(name, limit, True)
            for path in (p for p in files if p.parent in (files[0].parent, files[-1].parent)):
                at = pq.read_table(path, columns=["logged_at"], partitioning=None)["logged_at"]
                times += [pc.min(at).as_py(), pc.max(at).as_py()]
        return min(times, default=None), max(times, default=None)

    def _move_derived(self, aside: Path) -> None:
        """First of all: what is published reads the files that are going to be others; cuts are going to be others."""
        checkpoints.drop_since(self._log.home, 0)
        for name in _DERIVED:
            _move(self._log.home / name, aside / name)

    def _rewrite(self) -> None:
        """Write the changes at their new times beside the old files, and note what is to be moved away."""
        limit, now = self._time("limit"), self._time("now")
        files = {name: self._files(name, limit, False) for name in (*TABLES, DISCARDED)}
        listed = [(name, path) for name, paths in files.items() for path in paths]
        clock = _Clock(listed, self._state["first"], self._state["last"], now)
        for name, paths in files.items():
            for path in paths:
                rows = pq.read_table(path, partitioning=None)
                position = rows["position"].to_numpy()
                logged_at = clock.at(position)
                column = rows.schema.get_field_index("logged_at")
                rows = rows.set_column(column, rows.schema.field("logged_at"), pa.array(logged_at).cast(TIMESTAMP))
                for write in changelog._by_hour(self._log.root, name, rows, position, logged_at):
                    target, part = write.path, write.content
                    target.parent.mkdir(parents=True, exist_ok=True)
                    link_into_tail(target.parent)
                    staging.durable_parquet(part, target)
                    durable.fsync_directory(target.parent)
        self._rewrite_quarantine(clock)
        hours = {path.parent for _, path in listed}
        # The first hour of 1970 is also where each dataset has the file that carries its schema.
        schemas = {p for hour in hours if hour.name == NO_HOUR for p in hour.iterdir()}
        gone = [h for h in hours if h.name != NO_HOUR] + [p for p in schemas if p.name != "0-0.parquet"]
        self._note(
            gone=sorted(str(path.relative_to(self._log.root)) for path in gone),
            changes=len(clock.position),
            logged_at=str(changelog._from_us(clock.last)),
            started_at=str(changelog._from_us(clock.first)),
            ahead=clock.ahead,
        )

    def _rewrite_quarantine(self, clock: _Clock) -> None:
        for path in self._log.quarantine.glob("*.jsonl"):
            entries = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
            if all(self._counts(datetime.fromisoformat(e["logged_at"])) for e in entries):
                continue
            for entry in entries:
                for place in (entry, entry.get("hold", {})):
                    if place and not self._counts(datetime.fromisoformat(place["logged_at"])):
                        [at] = clock.at(np.array([place["position"]])).tolist()
                        place["logged_at"] = changelog._format(changelog._from_us(at))
            durable.durable_replace(path, "".join(json.dumps(e) + "\n" for e in entries).encode())


class _Clock:
    """`logged_at` of each of these positions, in microseconds: the running maximum of the times that count.

    `first` and `last` are those of the changes between, which keep theirs.
    """

    def __init__(self, files: list[tuple[str, Path]], first: str | None, last: str | None, now: datetime) -> None:
        latest = changelog._to_us(now + AHEAD)
        places, times = [np.empty(0, np.int64)], [np.empty(0, np.int64)]
        self.ahead: dict[str, dict[str, Any]] = {}
        for name, path in files:
            columns = ["position"] if name == DISCARDED else ["position", "committed_at"]
            rows = pq.read_table(path, columns=columns, partitioning=None)
            position = rows["position"].to_numpy()
            time = changelog._us(rows["committed_at"]) if name != DISCARDED else np.full(len(position), -1)
            if (is_ahead := time > latest).any():
                place = int(position[is_ahead].min())
                found = self.ahead.setdefault(
                    name,
                    {
                        "position": place,
                        "committed_at": str(changelog._from_us(int(time[position == place][0]))),
                        "landed_at": str(now),
                        "events": 0,
                    },
                )
                found["events"] += int(is_ahead.sum())
            places.append(position)
            floor = changelog._to_us(datetime.fromisoformat(last)) if last else -1
            if path.parent.name <= hour_name(NO_TIME):
                time, is_ahead, floor = np.full(len(position), -1), np.zeros(len(position), bool), -1
            times.append(np.maximum(np.where(is_ahead | (time <= changelog._to_us(NO_TIME)), -1, time), floor))
        position, time = np.concatenate(places), np.concatenate(times)
        order = np.argsort(position)
        self.position = position[order]
        self._running = np.maximum.accumulate(time[order])
        known = self._running[self._running >= 0]
        self.first = int(known[0]) if len(known) else changelog._to_us(now)
        if first and last:
            self.first = changelog._to_us(datetime.fromisoformat(first))
        self._running = np.maximum(self._running, self.first)
        end = changelog._to_us(datetime.fromisoformat(last)) if last else self.first
        self.last = max(int(self._running[-1]), end) if len(self._running) else end

    def at(self, position: np.ndarray) -> np.ndarray:
        """Also of a position that nothing fills: the time of the one before it."""
        place = np.searchsorted(self.position, position, side="right") - 1
        if not len(self.position):
            return np.full(len(position), self.first)
        found: np.ndarray = np.where(place >= 0, self._running[np.maximum(place, 0)], self.first)
        return found


def _times(raw: dict[str, Any]) -> dict[str, datetime]:
    return {name: datetime.fromisoformat(raw[name]) for name in ("committed_at", "landed_at")}


def _move(path: Path, to: Path) -> None:
    if path.exists() or path.is_symlink():
        to.parent.mkdir(parents=True, exist_ok=True)
        shutil.move(path, to)
