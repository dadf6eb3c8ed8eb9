"""The journal of the change log: which files a landing writes, said before it writes them, and what has landed.

    <home>/changelog/journal.jsonl           one record per line; zeros up to its size
    <home>/changelog/_manifest/<hour>.json   the files of an hour, as the journal recorded them before it was folded

Each record and each manifest carries a checksum. The records:

    intent      the files that a landing is about to write or grow, durable before the first of them has its name
    landed      the watermark after a landing: its second copy
    given_up    the landing was undone: its files lie in `<home>/debris`; with the files that were cut back
    recorded    files that an earlier version landed, as they were found
    compacting  the one file that is going to replace an hour of a table; `compacted` says that it has

So one durable write per landing says what to undo after a crash, is the manifest of what landed, and makes the second
copy of the watermark before it durable. A landing is undone if its number is greater than the watermark's `sequence`.

The file has its full size from the start: overwriting zeros costs a quarter of what appending costs, as the file
system has nothing to note. When it is full it is folded into the manifests.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lockstep.durable import durable_replace
from lockstep.errors import LockstepError

CAPACITY = 1 << 20  # bytes; about a thousand landings of one file
MANIFEST = "_manifest"
_CHECKSUM = re.compile(rb', "checksum": "([0-9a-f]{16})"\}\s*\Z')
_HOUR = re.compile(r"hour=([0-9T-]+)")


def sealed(body: Mapping[str, Any]) -> bytes:
    """The object as one line of JSON that carries its checksum."""
    text = json.dumps(body).encode()
    return text[:-1] + f', "checksum": "{_checksum(text)}"}}'.encode()


def unsealed(line: bytes) -> dict[str, Any]:
    """The object in such a line. Raises ValueError if it is not as it was written."""
    found = _CHECKSUM.search(line)
    if found is None:
        raise ValueError("it has no checksum at its end")
    text = line[: found.start()] + b"}"
    if _checksum(text) != found[1].decode():
        raise ValueError("its checksum is not that of its content")
    body: dict[str, Any] = json.loads(text)
    return body


def _checksum(text: bytes) -> str:
    return hashlib.sha256(text).hexdigest()[:16]


@dataclass(frozen=True)
class File:
    """A file as it was landed. `path` is relative to the home; `last` is the last position in it."""

    path: str
    last: int
    rows: int
    bytes: int
    sha256: str

    @property
    def first(self) -> int:
        return int(re.match(r"\d+", Path(self.path).name)[0])  # type: ignore[index]

    @property
    def grows(self) -> bool:
        return self.path.endswith("-.parquet")

    @property
    def hour(self) -> str:
        """The hour it belongs to, as in the directory's name; `quarantine` for a file of quarantined events."""
        return _hour_of(self.path)

    def as_row(self) -> list[Any]:
        return [self.path, self.last, self.rows, self.bytes, self.sha256]


@dataclass
class _State:
    """What the records say. `changed` maps paths to what manifests do not know yet; None: compacted away."""

    landed: dict[str, Any] | None = None
    changed: dict[str, File | None] = field(default_factory=dict)
    pending: dict[str, File] = field(default_factory=dict)
    landing: int = 0  # the number of the landing that `pending` belongs to
    compacting: dict[str, File] = field(default_factory=dict)  # by directory
    end: int = 0  # where the next record goes
    is_cut_off: bool = False
    damage: list[str] = field(default_factory=list)

    def apply(self, record: Mapping[str, Any]) -> None:
        if "intent" in record:
            self.landing = record["landing"]
            self.pending.update({row[0]: File(*row) for row in record["intent"]})
        elif "landed" in record:
            self.landed = record["landed"]
            if self.landed["sequence"] >= self.landing:
                self.commit()
        elif "given_up" in record:
            self.pending.clear()
            self._record(record["given_up"])
        elif "recorded" in record:
            self._record(record["recorded"])
            self.changed.update(dict.fromkeys(record["gone"]))
        elif "compacting" in record:
            self.compacting[record["compacting"]] = File(*record["file"])
        elif "compacted" in record:
            file = self.compacting.pop(record["compacted"])
            self.changed.update({**dict.fromkeys(record["gone"]), file.path: file})

    def commit(self) -> None:
        self.changed.update(self.pending)
        self.pending.clear()

    def _record(self, rows: Iterable[list[Any]]) -> None:
        self.changed.update({row[0]: File(*row) for row in rows})


class Journal:
    """Reader's and writer's handle on the journal. To write, the caller must hold the log's lock."""

    def __init__(self, home: Path) -> None:
        self._home = home
        self.path = home / "changelog" / "journal.jsonl"
        self._manifests = home / "changelog" / MANIFEST
        self._read: _State | None = None

    def exists(self) -> bool:
        return self.path.exists()

    def reload(self) -> None:
        """Forget what was read: another process may have written since."""
        self._read = None

    def landed(self) -> dict[str, Any] | None:
        """The second copy of the watermark; None if there is none or the journal is damaged before its end."""
        return self._state.landed

    def last_landed(self) -> dict[str, Any] | None:
        """The second copy of the watermark as it is on disk now, read without the rest of the journal."""
        with suppress(FileNotFoundError):
            for line in reversed(self.path.read_bytes().partition(b"\0")[0].split(b"\n")):
                with suppress(ValueError):
                    if line.startswith(b'{"landed"'):
                        found: dict[str, Any] = unsealed(line)["landed"]
                        return found
        return None

    def pending(self) -> dict[str, File]:
        """The files named by a landing that neither landed nor was given up, by path."""
        return self._state.pending

    def landing(self) -> int:
        """The number of the landing that `pending` belongs to."""
        return self._state.landing

    def damage(self) -> list[str]:
        """Which lines of the journal are not as they were written, as sentences."""
        return self._state.damage

    def damaged_manifests(self) -> list[str]:
        """Which manifests are not as they were written, as sentences."""
        found = []
        for path in sorted(self._manifests.glob("*.json")):
            try:
                unsealed(path.read_bytes())
            except ValueError as e:
                found.append(f"{path} is damaged: {e}.")
        return found

    def files(self, hour: str | None = None) -> dict[str, File]:
        """What was recorded of the files that landed, by path; only of one hour if one is given."""
        keys = [hour] if hour else [path.stem for path in self._manifests.glob("*.json")]
        found = {path: file for key in keys for path, file in self._manifest(key).items()}
        for path, file in self._state.changed.items():
            if file is None:
                found.pop(path, None)
            elif hour in (None, file.hour):
                found[path] = file
        return found

    def recorded(self, path: str) -> File | None:
        """What was recorded of one file."""
        changed = self._state.changed
        return changed[path] if path in changed else self._manifest(_hour_of(path)).get(path)

    # -- Writing

    def begin(self, landed: Mapping[str, Any]) -> None:
        """Make the journal, of a new log or of one that an earlier version made; or anew, where it was damaged."""
        self._replace([sealed({"landed": landed})])

    def intend(self, landing: int, files: Iterable[File]) -> None:
        """Name the files that a landing is going to write, durably."""
        self._append({"landing": landing, "intent": [file.as_row() for file in files]}, is_durable=True)

    def note_landed(self, watermark: Mapping[str, Any]) -> None:
        """Write the watermark's second copy. It becomes durable with the next intent: until then the first one is."""
        self._append({"landed": watermark})

    def note_given_up(self, files: Iterable[File]) -> None:
        """The landing that was under way is undone, and `files` are as given now. May be lost: then undone again."""
        self._append({"given_up": [file.as_row() for file in files]})

    def record(self, files: Iterable[File], gone: Iterable[str] = ()) -> None:
        """Note files as they are, and the paths of those that are no longer in the log."""
        self._append({"recorded": [file.as_row() for file in files], "gone": list(gone)}, is_durable=True)

    def compacting(self, directory: str, file: File) -> None:
        """`file` is going to be the only one in a directory."""
        self._append({"compacting": directory, "file": file.as_row()}, is_durable=True)

    def compacted(self, directory: str, gone: Iterable[str]) -> None:
        self._append({"compacted": directory, "gone": list(gone)})

    def fold(self) -> None:
        """Take what the journal says about files into the manifests, and begin it anew."""
        state = self._state
        by_hour: dict[str, dict[str, File | None]] = {}
        for path, file in state.changed.items():
            by_hour.setdefault(_hour_of(path), {})[path] = file
        for hour, changed in by_hour.items():
            entries: dict[str, File | None] = {**self._manifest(hour), **changed}
            rows = [file.as_row() for file in entries.values() if file]
            durable_replace(self._manifests / f"{hour}.json", sealed({"files": rows}))
        kept = [sealed({"landed": state.landed})] if state.landed else []
        if state.pending:
            rows = [file.as_row() for file in state.pending.values()]
            kept.append(sealed({"landing": state.landing, "intent": rows}))
        self._replace(kept)

    def _append(self, record: Mapping[str, Any], is_durable: bool = False) -> None:
        line = sealed(record) + b"\n"
        if self._state.end + len(line) > CAPACITY:
            self.fold()
        handle = os.open(self.path, os.O_WRONLY)
        try:
            os.pwrite(handle, line, self._state.end)
            if is_durable:
                os.fdatasync(handle)
        finally:
            os.close(handle)
        self._state.end += len(line)
        self._state.apply(record)

    def _replace(self, lines: list[bytes]) -> None:
        content = b"".join(line + b"\n" for line in lines)
        durable_replace(self.path, content.ljust(CAPACITY, b"\0"))
        self.reload()

    # -- Reading

    @property
    def _state(self) -> _State:
        if self._read is None:
            self._read = self._parse()
        return self._read

    def _parse(self) -> _State:
        state = _State()
        try:
            content = self.path.read_bytes()
        except FileNotFoundError:
            return state
        content, _, rest = content.partition(b"\0")
        lines = content.split(b"\n")
        for number, line in enumerate(lines, 1):
            if not line:
                continue
            try:
                state.apply(unsealed(line))
            except ValueError as e:
                # What a crash cut off in the middle of the last record was never acted upon.
                if number < len(lines):
                    state.damage.append(f"{self.path} is damaged in line {number}: {e}.")
        state.end = len(content)
        state.is_cut_off = bool(content and not content.endswith(b"\n")) or bool(rest.strip(b"\0"))
        for directory, file in list(state.compacting.items()):
            # Killed about when two directories were exchanged: which of them lies there tells whether they were.
            merged = self._home / file.path
            if merged.exists() and merged.stat().st_size == file.bytes:
                known = [p for p in {**self._manifest(file.hour), **state.changed} if p.startswith(f"{directory}/")]
                state.apply({"compacted": directory, "gone": [p for p in known if not (self._home / p).exists()]})
        return state

    def is_cut_off(self) -> bool:
        """Whether the journal is not to be written on: a record is damaged, or something lies behind the last one."""
        return self._state.is_cut_off or bool(self._state.damage)

    def _manifest(self, hour: str) -> dict[str, File]:
        try:
            rows = unsealed((self._manifests / f"{hour}.json").read_bytes())["files"]
        except FileNotFoundError:
            return {}
        except ValueError:
            return {}  # `damage` names it
        return {row[0]: File(*row) for row in rows}


def _hour_of(path: str) -> str:
    found = _HOUR.search(path)
    return found[1] if found else "quarantine"


def refuse(home: Path, problem: str) -> LockstepError:
    """The error that a command ends with which would have to guess where the log ends."""
    return LockstepError(
        f"{problem} Nothing was written or removed. `lockstep log repair` shows what the log's files hold and what it "
        "would make the watermark; with --yes it does."
    )
