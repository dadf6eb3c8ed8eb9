"""`lockstep log check`: is every file of the change log as it was landed, and is every change there once?

Each file is hashed and compared with what the journal recorded when it landed. Where all are as they were, the rows
recorded and the open events of the quarantine must add up to the watermark's position. Where one is not, the positions
in all files are read, so that what is missing or there twice is named by position.

A log may be captured into meanwhile: a file that does not agree is looked at again with what was recorded since.
"""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from lockstep import checkpoints
from lockstep.changelog import ChangeLog, Watermark
from lockstep.contracts import load
from lockstep.debris import DIRECTORY as DEBRIS
from lockstep.debris import recorded_as
from lockstep.errors import LockstepError
from lockstep.journal import File
from lockstep.lock import exclusive
from lockstep.logfiles import begins_at
from lockstep.schema import DISCARDED
from lockstep.warehouse import Row, rows, text
from lockstep.warehouse import reader as warehouse_reader

_CHUNK = 1 << 20
_LOOKS = 5  # at a file that does not agree, before it is said so
_PATIENCE = 60.0  # seconds; a capture lends the log between two batches


@dataclass
class Finding:
    """What is not as it was landed.

    `kind` is changed, cut, lost, doubled, unreadable, missing, watermark, journal or checkpoint.

    `path` is relative to the home. `first` and `last` are the positions it is about. `published` says, as sentences,
    what has been computed from them already.
    """

    kind: str
    what: str
    path: str | None = None
    first: int | None = None
    last: int | None = None
    published: list[str] = field(default_factory=list)


@dataclass
class Checked:
    """What a check found. `unrecorded` are sound files without a record, by path; `debris` the directories
    that landings which did not come to their end left."""

    position: int = 0
    files: int = 0
    rows: int = 0
    bytes: int = 0
    seconds: float = 0.0
    findings: list[Finding] = field(default_factory=list)
    unrecorded: list[str] = field(default_factory=list)
    recorded: int = 0
    debris: list[str] = field(default_factory=list)

    @property
    def is_sound(self) -> bool:
        return not self.findings and not self.unrecorded

    def as_row(self) -> Row:
        return {**vars(self), "findings": [vars(f) for f in self.findings], "seconds": round(self.seconds, 2)}


def check(home: Path, record: bool = False) -> Checked:
    """Check the log of a home. `record` records files without a record as they are now.

    Raises LockstepError if there is no log.
    """
    started = time.monotonic()
    log = ChangeLog(home)
    if not log.exists():
        log.watermark()  # says how to make one
    checked = Checked()
    watermark = _watermark(log, checked)
    checked.position = watermark.position
    found = _Files(log)
    found.look()
    checked.files, checked.bytes, checked.rows = len(found.seen), found.bytes, found.rows
    checked.findings += found.findings
    checked.findings += [Finding("journal", text) for text in log.journal.damage() + log.journal.damaged_manifests()]
    if found.findings or found.unrecorded or not _adds_up(log, watermark, found):
        checked.findings += _by_position(log, watermark, found)
    doubled = {finding.path for finding in checked.findings}
    unrecorded = [
        path for path in found.unrecorded if path not in doubled and begins_at(Path(path)) <= watermark.position
    ]
    if record and not checked.findings:
        checked.recorded = _record(log, unrecorded)
    else:
        checked.unrecorded = unrecorded
    checked.findings += [Finding("checkpoint", str(d), d.checkpoint.path) for d in checkpoints.check(home)]
    checked.debris = sorted(str(path.parent) for path in (home / DEBRIS).glob("*/undone.json"))
    _add_published(home, checked.findings)
    checked.seconds = time.monotonic() - started
    return checked


def _watermark(log: ChangeLog, checked: Checked) -> Watermark:
    """The watermark to check against: the second copy, or an empty one, where the first is not sound."""
    try:
        return log.sound_watermark()
    except LockstepError as e:
        checked.findings.append(Finding("watermark", str(e)))
    with suppress(LockstepError):
        return log.watermark()
    copy = log.journal.landed()
    return log.watermark_of(copy) if copy else Watermark()


class _Files:
    """Compares the files on disk with those recorded."""

    def __init__(self, log: ChangeLog) -> None:
        self._log = log
        self._recorded = log.journal.files()
        self.seen: dict[str, str] = {}  # the hash of every file by path
        self.findings: list[Finding] = []
        self.unrecorded: list[str] = []
        self.bytes = 0
        self.rows = 0  # recorded of the files that are as they were

    def look(self) -> None:
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            paths = list(files_of(self._log.home))
            for path, (size, sha256) in zip(paths, pool.map(_hash, paths), strict=True):
                self._compare(path.relative_to(self._log.home).as_posix(), size, sha256)
        self._log.journal.reload()
        for name, file in self._log.journal.files().items():
            if name not in self.seen and not (self._log.home / name).exists():
                what = f"{name} is lost: {_rows(file)} at positions {file.first:,} to {file.last:,}"
                self.findings.append(Finding("lost", what, name, file.first, file.last))

    def _compare(self, name: str, size: int, sha256: str) -> None:
        for look in range(_LOOKS):
            file = self._recorded.get(name)
            if file and file.sha256 == sha256:
                self.seen[name] = sha256
                self.bytes += size
                self.rows += file.rows if name.endswith(".parquet") else 0
                return
            if look:
                time.sleep(0.01)
            self._log.journal.reload()
            pending = self._log.journal.pending().get(name)
            if pending and (pending.sha256 == sha256 or file is None):
                self.seen[name] = sha256
                self.rows += file.rows if file and name.endswith(".parquet") else 0
                return  # beyond the watermark, or grown beyond it, by the landing that is under way or was cut short
            self._recorded = self._log.journal.files()
            if not (self._log.home / name).exists():
                return  # compacted meanwhile, or it is going to be named as lost
            size, sha256 = _hash(self._log.home / name)
        self.seen[name] = sha256
        file = self._recorded.get(name)
        if file is None:
            self.unrecorded.append(name)
            return
        kind = "cut" if size < file.bytes else "changed"
        what = f"{name} was {kind} since it landed"
        what += (
            f": {size:,} of {file.bytes:,} bytes are left"
            if kind == "cut"
            else f": it has {size:,} bytes" * (size > file.bytes)
        )
        what += f"; it held {_rows(file)} at positions {file.first:,} to {file.last:,}"
        self.findings.append(Finding(kind, what, name, file.first, file.last))


def files_of(home: Path) -> Iterator[Path]:
    """Every file of the log with changes or quarantined events."""
    for path in sorted((home / "changelog").glob("*/hour=*/*.parquet")):
        table = path.parent.parent.name
        if begins_at(path) > 0 and (table[0] != "_" or table == DISCARDED):
            yield path
    yield from (path for path in sorted((home / "quarantine").glob("*.jsonl")) if begins_at(path) > 0)


def _hash(path: Path) -> tuple[int, str]:
    """Size and hash of a file; of one that is gone or cannot be read, nothing's."""
    sha256, size = hashlib.sha256(), 0
    with suppress(OSError), path.open("rb", buffering=0) as file:
        buffer = bytearray(_CHUNK)
        view = memoryview(buffer)
        while n := file.readinto(buffer):
            sha256.update(view[:n])
            size += n
    return size, sha256.hexdigest()


def _adds_up(log: ChangeLog, watermark: Watermark, found: _Files) -> bool:
    now = log.journal.landed() or {}
    open_events = sum(len(e["positions"]) for e in log.quarantined(watermark.position) if e["state"] == "open")
    return found.rows + open_events == watermark.position or now.get("position") != watermark.position


def _by_position(log: ChangeLog, watermark: Watermark, found: _Files) -> list[Finding]:
    """Positions that are in no file, or in two."""
    findings: list[Finding] = []
    positions: dict[str, np.ndarray] = {}
    quarantined: set[int] = set()
    for name in found.seen:
        path = log.home / name
        try:
            if name.endswith(".parquet"):
                positions[name] = positions_in(path)
            else:
                quarantined |= set(quarantined_in(path))
        except (OSError, ValueError, KeyError, pa.ArrowException) as e:
            if not any(f.path == name for f in found.findings):
                first = begins_at(path)
                findings.append(Finding("unreadable", f"{name} cannot be read: {_one_line(e)}", name, first, first))
    limit = watermark.position
    count = count_of(positions.values(), limit)
    holes = np.flatnonzero(count[1:] == 0) + 1
    holes = holes[~np.isin(holes, np.fromiter(quarantined, np.int64, len(quarantined)))]
    for first, last in _ranges(holes):
        findings.append(Finding("missing", f"positions {first:,} to {last:,} are in no file", None, first, last))
    twice = np.flatnonzero(count > 1)
    if len(twice):
        findings += _doubled(positions, twice, found)
    return findings


def _doubled(positions: dict[str, np.ndarray], twice: np.ndarray, found: _Files) -> list[Finding]:
    findings = []
    concerned = {name: held[np.isin(held, twice)] for name, held in positions.items()}
    concerned = {name: held for name, held in concerned.items() if len(held)}
    # Where a file was recorded and the other was not, it is the other that does not belong there.
    blamed = [name for name in concerned if name in found.unrecorded] or list(concerned)
    for name in blamed:
        held = concerned[name]
        others = [other for other in concerned if other != name and np.isin(concerned[other], held).any()]
        what = f"{name} doubles positions {held[0]:,} to {held[-1]:,}, which are in {', '.join(others)}"
        findings.append(Finding("doubled", what, name, int(held[0]), int(held[-1])))
    return findings


def positions_in(path: Path) -> np.ndarray:
    """The positions in a file of changes, sorted."""
    held: np.ndarray = pq.read_table(path, columns=["position"], partitioning=None)["position"].to_numpy()
    return np.sort(held)


def quarantined_in(path: Path) -> list[int]:
    """The positions kept for the events in a file of the quarantine."""
    import json

    return [int(json.loads(line)["position"]) for line in path.read_text(encoding="utf-8").splitlines()]


def count_of(positions: Iterable[np.ndarray], limit: int) -> np.ndarray:
    """How often each position from 0 to `limit` occurs."""
    count = np.zeros(limit + 1, np.int32)
    for held in positions:
        np.add.at(count, held[held <= limit], 1)
    return count


def _ranges(sorted_positions: np.ndarray) -> Iterator[tuple[int, int]]:
    if len(sorted_positions):
        for part in np.split(sorted_positions, np.flatnonzero(np.diff(sorted_positions) > 1) + 1):
            yield int(part[0]), int(part[-1])


def _record(log: ChangeLog, names: list[str]) -> int:
    with exclusive(log.home / "changelog.lock", "recording the files of the log", patience=_PATIENCE):
        log.settle()
        known = log.journal.files()
        files = [as_it_is(log.home, name) for name in names if name not in known]
        for n in range(0, len(files), 1_000):
            log.journal.record(files[n : n + 1_000])
        log.journal.fold()
    return len(files)


def as_it_is(home: Path, name: str) -> File:
    """A file of the log, by its path in the home, as it is on disk."""
    path = home / name
    if name.endswith(".parquet"):
        return recorded_as(home, path)
    content = path.read_bytes()
    held = quarantined_in(path)
    return File(name, max(held), len(held), len(content), hashlib.sha256(content).hexdigest())


def _rows(file: File) -> str:
    return f"{file.rows:,} {'events' if file.path.endswith('.jsonl') else 'changes'}"


def _one_line(e: Exception) -> str:
    return " ".join(str(e).split())[:200]


# -- What was computed from it


def _add_published(home: Path, findings: list[Finding]) -> None:
    """Say of each finding which hours, receipts and publications include it."""
    concerned = [f for f in findings if f.first is not None]
    if not concerned:
        return
    publications = list(_publications(home))
    folded, receipts, problem = computed(home)
    for finding in concerned:
        assert finding.first is not None
        table = finding.path.split("/")[1] if finding.path and finding.path.startswith("changelog/") else None
        said = finding.published
        if problem:
            said.append(problem)
        elif folded and finding.first <= folded[0]:
            said.append(f"folded: the increments include it (all hours until {folded[1]:%Y-%m-%d %H:%M} are folded)")
        for domain, sources in _domains().items():
            including = [r for r in receipts if r["domain"] == domain and (r["position"] or 0) >= finding.first]
            if including and (table is None or table in (*sources, "_discarded")):
                last = including[-1]
                said.append(
                    f"{len(including):,} receipts of {domain} include it, the last of {last['cut']:%Y-%m-%d %H:%M}"
                )
        for name, position in publications:
            if finding.first <= position:
                said.append(f"{name} includes it")
        if not said:
            said.append("nothing was computed from it yet")


def _domains() -> dict[str, tuple[str, ...]]:
    with suppress(LockstepError):  # outside of a project
        return {contract.domain: tuple(contract.sources) for contract in load().values()}
    return {}


def _publications(home: Path) -> Iterator[tuple[str, int]]:
    for path in sorted((home / "published").glob("*.duckdb"), key=lambda p: (len(p.name), p.name)):
        with suppress(duckdb.Error), duckdb.connect() as connection:
            connection.execute(f"ATTACH {text(path)} AS published (READ_ONLY)")
            [(position,)] = connection.execute("SELECT position FROM published.ops.publication").fetchall()
            yield f"publication {path.stem} (position {position:,})", position


def computed(home: Path) -> tuple[tuple[int, Any] | None, list[Row], str | None]:
    """The last position folded and the end of its hour, and the receipts; or why they are not known."""
    if not (home / "warehouse.duckdb").exists():
        return None, [], None
    try:
        with warehouse_reader(home) as connection:
            [(position, until)] = connection.execute(
                "SELECT MAX(last_position), MAX(log_hour) + INTERVAL '1' HOUR FROM hourly.log"
            ).fetchall()
            receipts = rows(connection, "SELECT domain, cut, position FROM reconcile.receipts ORDER BY cut")
            return ((position, until) if position else None), receipts, None
    except (LockstepError, duckdb.Error) as e:
        return None, [], f"what was folded from it is not known: {_one_line(e)}"
