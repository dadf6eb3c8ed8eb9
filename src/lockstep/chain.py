"""Where the chain of a table's images is broken: is a file of the log damaged, or does the source contradict itself?

`models/chain` finds the breaks. A backup is no help where every file is as it landed, and the source is no help where
one is not: what to do depends on which it is.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from lockstep.changelog import ChangeLog
from lockstep.logfiles import begins_at, span
from lockstep.schema import TABLES

AUDIT = "image_chain_unbroken"
BARE = "has nothing but the key in its image before"  # as models/chain has it
_SHOWN = 3  # breaks in a message
_LOOKS = 5  # at a file that grows meanwhile


def told(home: Path, table: str, findings: Sequence[dict[str, Any]]) -> str:
    """What breaks the chain of a table, and what mends it. `findings` are those of `chain.<table>`."""
    shown = [_one(table, finding) for finding in findings[:_SHOWN]]
    if len(findings) > _SHOWN:
        shown.append("and so on")
    positions = {f[name] for f in findings for name in ("position", "previous_position") if f[name]}
    return f"{'; '.join(shown)}. {advice(home, table, positions, is_bare=any(f['found'] == BARE for f in findings))}"


def advice(home: Path, table: str, positions: Iterable[int], is_bare: bool = False) -> str:
    """What mends a chain that is broken between these positions of a table."""
    changed, unrecorded = damaged(home, table, positions)
    if changed:
        return (
            f"{', '.join(changed)} {'is' if len(changed) == 1 else 'are'} not as landed: restore "
            f"{'it' if len(changed) == 1 else 'them'} from a backup; `lockstep log check` names every such file."
        )
    resync = f"`lockstep capture ... --resync {table}` lands what the source has now."
    if is_bare:
        name = TABLES[table].sql_at(None)
        return (
            f"The source sends the key alone of what a change replaces: `ALTER TABLE {name} REPLICA IDENTITY FULL` in "
            f"PostgreSQL, a full row image in others. Then {resync}"
        )
    if unrecorded:
        return (
            f"{', '.join(unrecorded)} was landed by a version that recorded no checksums: if it is as it was landed, "
            f"the source contradicts itself, and {resync} Else restore it from a backup."
        )
    return f"Every file concerned is as it landed, so no backup helps: the source contradicts itself. {resync}"


def damaged(home: Path, table: str, positions: Iterable[int]) -> tuple[list[str], list[str]]:
    """Of the files with these positions: those that are not as they landed, and those that no record says it of."""
    log = ChangeLog(home)
    changed, unrecorded = [], []
    for path in _holding(log, table, sorted(set(positions))):
        name = path.relative_to(home).as_posix()
        if log.journal.recorded(name) is None:
            unrecorded.append(name)
        elif not is_as_landed(log, name):
            changed.append(name)
    return changed, unrecorded


def _holding(log: ChangeLog, table: str, positions: Sequence[int]) -> list[Path]:
    """The files of a table with at least one of these positions between their first and last."""
    if not positions:
        return []
    found = []
    for path in log.files(table, after=positions[0] - 1, until=positions[-1]):
        first, last = begins_at(path), None
        for position in positions:
            if position >= first:
                last = last or _last(path)
                if position <= last:
                    found.append(path)
                    break
    return found


def _last(path: Path) -> int:
    try:
        return span(path)[1]
    except (OSError, ValueError):  # cut off: it may have held anything
        return 1 << 62


def is_as_landed(log: ChangeLog, name: str) -> bool:
    """Whether a file of the log, which its records name, has the hash with which it landed."""
    for look in range(_LOOKS):
        if look:
            time.sleep(0.01)
            log.journal.reload()
        file = log.journal.recorded(name)
        if file and hashlib.sha256((log.home / name).read_bytes()).hexdigest() == file.sha256:
            return True
    return False


def _one(table: str, finding: dict[str, Any]) -> str:
    columns = ", ".join(TABLES[table].key)
    before = f"; the one before is at position {finding['previous_position']:,}" if finding["previous_position"] else ""
    return f"position {finding['position']:,}, {columns} {finding['key']}, {finding['found']}{before}"
