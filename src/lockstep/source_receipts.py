"""The stored results of `lockstep verify-source`: one JSON line per table and verification, never rewritten."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from lockstep import jsonlines
from lockstep.changelog import ChangeLog
from lockstep.jsonlines import Row

PASSED, INCOMPLETE, FAILED = "passed", "incomplete", "failed"


def append(home: Path, receipts: Iterable[Row]) -> None:
    """Add receipts, durably and all at once. The caller holds the lock."""
    jsonlines.append(ChangeLog(home).source_receipts, receipts)


def load(home: Path) -> list[Row]:
    """All receipts, oldest first. Raises LockstepError if their file cannot be read."""
    return jsonlines.read(ChangeLog(home).source_receipts)


def last(receipts: Iterable[Row]) -> list[Row]:
    """The last receipt of each table."""
    return list({r["source_table"]: r for r in receipts}.values())
