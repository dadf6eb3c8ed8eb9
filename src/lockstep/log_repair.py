"""`lockstep log repair`: where the watermark is lost or not to be trusted, make it again from what its files hold.

The second copy in the journal is taken where the files bear it out. Else the watermark is made of the files: positions
must be gapless up to where it ends. Landings end with a transaction, and the journal names the files of one that was
cut short; so where nothing is pending, what the files hold is whole transactions.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from lockstep.changelog import ChangeLog, Watermark
from lockstep.debris import Debris, name_of
from lockstep.errors import LockstepError
from lockstep.lock import exclusive
from lockstep.log_check import computed, files_of, positions_in, quarantined_in
from lockstep.logfiles import begins_at
from lockstep.warehouse import Row

_PATIENCE = 60.0  # seconds; a capture lends the log between two batches


@dataclass
class Repair:
    """What a repair makes of a log, or would. `watermark` is the one it writes; `None` if the one there is sound.

    `says` is why and with what consequences, as sentences; `moved` the files that go to the debris, by path.
    """

    before: str
    watermark: Watermark | None = None
    says: list[str] = field(default_factory=list)
    moved: list[str] = field(default_factory=list)
    is_done: bool = False
    is_as_it_was: bool = False

    def as_row(self) -> Row:
        w = self.watermark
        row = {"before": self.before, "says": self.says, "moved": self.moved, "is_done": self.is_done}
        return {**row, "watermark": vars(w) if w else None}


def repair(home: Path, source: str | None = None, is_done: bool = False) -> Repair:
    """Find out what the watermark must be; with `is_done` also write it.

    `source` names the log's source where neither watermark nor journal does. Raises LockstepError if there is no log,
    if another process writes to it, or if the files do not say what the watermark must be.
    """
    log = ChangeLog(home)
    if not log.exists():
        log.watermark()  # says how to make one
    with exclusive(home / "changelog.lock", "repairing the change log", patience=_PATIENCE):
        log.journal.reload()
        problem = _problem(log)
        trusted = _trusted(log)
        held = _Held(log, trusted)
        if problem is None and trusted and not held.beyond(trusted.position):
            return Repair(f"The watermark is sound, at position {trusted.position:,}.")
        found = Repair(problem or _beyond(held, trusted))
        if trusted and not held.beyond(trusted.position):
            _restore(found, log, trusted, held)
        else:
            _rebuild(found, log, trusted, held, source)
        if is_done and found.watermark:
            _write(found, log, held)
        return found


def _problem(log: ChangeLog) -> str | None:
    try:
        log.sound_watermark()
    except LockstepError as e:
        return str(e).partition(" Nothing was written")[0]
    return None


def _trusted(log: ChangeLog) -> Watermark | None:
    """The newest watermark that is as it was written: the first copy or the second."""
    found = []
    with suppress(LockstepError):
        found.append(log.watermark())
    copy = log.journal.landed()
    if copy:
        found.append(log.watermark_of(copy))
    # Of two with one number the second copy counts: it cannot be edited without being noticed.
    return max(reversed(found), key=lambda w: w.sequence, default=None)


def _beyond(held: _Held, trusted: Watermark | None) -> str:
    assert trusted
    names = held.beyond(trusted.position)
    return f"The watermark is at position {trusted.position:,}, and files lie beyond it that no landing has named: " + (
        ", ".join(names[:5]) + (f" and {len(names) - 5:,} more" if len(names) > 5 else "")
    )


class _Held:
    """What the log's files hold, without those of a landing that was cut short."""

    def __init__(self, log: ChangeLog, trusted: Watermark | None) -> None:
        self.paths: dict[str, Path] = {}
        self.positions: dict[str, np.ndarray] = {}
        self.unreadable: list[str] = []
        pending, committed = log.journal.pending(), log.journal.files()
        for path in files_of(log.home):
            name = name_of(log.home, path)
            try:
                held = positions_in(path) if name.endswith(".parquet") else np.array(quarantined_in(path), np.int64)
            except (OSError, ValueError, KeyError, pa.ArrowException):
                self.unreadable.append(name)
                continue
            if name.endswith(".parquet") and (not len(held) or held[0] != begins_at(path)):
                self.unreadable.append(name)  # it was given another's name
                continue
            if name in pending:
                landed = committed[name].last if name in committed else trusted.position if trusted else 0
                held = held[held <= landed]
                if not len(held):
                    continue
            self.paths[name] = path
            self.positions[name] = held

    def beyond(self, position: int) -> list[str]:
        """The files with something beyond a position that no landing has named."""
        found = [name for name, held in self.positions.items() if held.max() > position]
        return found + [name for name in self.unreadable if begins_at(Path(name)) > position]

    def gapless_until(self) -> int:
        """The last position such that all up to it are there."""
        every = np.unique(np.concatenate([*self.positions.values(), np.array([0], np.int64)]))
        missing = np.flatnonzero(every != np.arange(len(every)))
        return int(missing[0]) - 1 if len(missing) else int(every[-1])

    def row(self, position: int) -> dict[str, Any]:
        """What the log says of one position: logged_at, and lsn and tx_id where they are known."""
        for name, held in self.positions.items():
            if position not in held:
                continue
            if name.endswith(".jsonl"):
                lines = self.paths[name].read_text(encoding="utf-8").splitlines()
                [entry] = [e for e in map(json.loads, lines) if e["position"] == position]
                return {"logged_at": datetime.fromisoformat(entry["logged_at"])}
            table = pq.read_table(self.paths[name], partitioning=None)
            table = table.select([c for c in ("logged_at", "lsn", "tx_id") if c in table.column_names]).filter(
                pc.equal(table["position"], position)
            )
            found: dict[str, Any] = table.to_pylist()[0]
            return found
        return {}

    def last_lsn(self, until: int) -> int | None:
        """The greatest log sequence number of the changes up to a position."""
        found = []
        for name, path in self.paths.items():
            if name.endswith(".parquet") and "_discarded" not in name:
                table = pq.read_table(path, columns=["position", "lsn"], partitioning=None)
                found.append(pc.max(table.filter(pc.less_equal(table["position"], until))["lsn"]).as_py())
        return max((lsn for lsn in found if lsn is not None), default=None)


def _restore(found: Repair, log: ChangeLog, trusted: Watermark, held: _Held) -> None:
    found.watermark, found.is_as_it_was = trusted, True
    found.says.append(
        f"Its other copy, number {trusted.sequence}, is as it was written, and no file lies beyond it: the watermark "
        f"is restored as it was, at position {trusted.position:,}, with the source's resume state."
    )
    if held.gapless_until() < trusted.position:
        found.says.append(
            f"Position {held.gapless_until() + 1:,} is in no file: `lockstep log check` names what was lost."
        )


def _rebuild(found: Repair, log: ChangeLog, known: Watermark | None, held: _Held, source: str | None) -> None:
    """Make the watermark of the files. `known` is an older one, which is continued."""
    position = held.gapless_until()
    if known and position < known.position:
        position = known.position  # what is lost below stays lost; `log check` names it
    found.moved = held.beyond(position)
    if known is None and found.moved:
        raise LockstepError(
            f"{found.before} Position {position + 1:,} is in no file, and files lie beyond it: "
            f"{', '.join(found.moved[:5])}. No copy of the watermark says that they had landed. Restore what is lost "
            "from a backup; or, if it is lost for good, move those files out of the log and repair it again, which "
            f"then ends at position {position:,}."
        )
    name = (known.source if known else None) or source
    if name is None:
        raise LockstepError(
            f"{found.before} Neither watermark nor journal says which source the log is of. Name it with --source, as "
            "the command says that fills this log: `lockstep log repair --source postgresql:shop`, say."
        )
    last, first = held.row(position), held.row(1)
    clocks = [last.get("logged_at"), known.logged_at if known else None, _folded_until(log.home)]
    logged_at = max((at for at in clocks if at), default=None)
    newest = max(log.journal.landed() or {}, (known and vars(known)) or {}, key=lambda w: w.get("sequence", 0))
    resume = _resume(found, dict(known.resume) if known else None, held.last_lsn(position))
    found.watermark = Watermark(
        position=position,
        logged_at=logged_at,
        started_at=first.get("logged_at"),
        source=name,
        resume=resume,
        sequence=int(newest.get("sequence", 0)),
    )
    found.says.insert(0, f"The files hold every position up to {position:,}; the watermark is made of them.")
    if last.get("logged_at") and logged_at != last["logged_at"]:
        found.says.append(f"The log's clock goes on at {logged_at:%Y-%m-%d %H:%M:%S}, up to where hours were closed.")
    if not log.journal.landed():
        found.says.append(
            "No journal says whether the last transaction in the files is whole: compare with the source "
            "(`lockstep verify-source`) before figures are relied on."
        )


def _folded_until(home: Path) -> datetime | None:
    """The end of the last hour that was folded: the log's clock must not go behind it, or changes would be missed."""
    folded, _, _ = computed(home)
    return folded[1] if folded else None


def _resume(found: Repair, resume: dict[str, Any] | None, last_lsn: int | None) -> Mapping[str, Any]:
    """The source's resume state, as far as it is known."""
    if not resume:
        found.says.append(
            "From where the source continues is not known. `lockstep ingest` needs nothing: events that landed are "
            "known by their log sequence number and land once. `lockstep capture` asks for --new-snapshot, which lands "
            "only what differs. A log that is filled from Kafka is begun anew with --from-beginning. `lockstep "
            "simulate` cannot go on in this home."
        )
        return {}
    if "commit_lsn" in resume and last_lsn is not None:
        lsn = f"{last_lsn >> 32:X}/{last_lsn & 0xFFFFFFFF:X}"
        landed = [int(part, 16) for part in resume["commit_lsn"].split("/")]
        if (landed[0] << 32 | landed[1]) < last_lsn:
            resume["commit_lsn"] = lsn
            found.says.append(f"`lockstep capture` continues after {lsn}, the last commit in the files.")
            return resume
    found.says.append(
        "The source's resume state is that of the older watermark: what it sends again is known by its log sequence "
        "number and lands once. A log of `lockstep simulate` cannot go on."
    )
    return resume


def _write(found: Repair, log: ChangeLog, held: _Held) -> None:
    assert found.watermark
    watermark = found.watermark
    debris = Debris(log.home, watermark.position)
    kept = []
    for name in found.moved:
        path = log.home / name
        if name in held.positions and held.positions[name].min() <= watermark.position:
            kept.append(debris.cut(path, watermark.position))
        else:
            debris.move(path.resolve() if path.is_symlink() else path)
            if path.is_symlink():
                debris.move(path)
    if debris.path:
        debris.close(found.moved)
    if not found.is_as_it_was:
        watermark = replace(watermark, holds=log.holds_of_open_events(watermark.position))
    found.watermark = log.restore_watermark(watermark, kept)
    found.is_done = True
