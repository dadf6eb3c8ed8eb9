"""The stored results of `lockstep verify-source`: one JSON line a table and verification, never rewritten."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from lockstep.changelog import ChangeLog
from lockstep.durable import durable_replace
from lockstep.errors import LockstepError

Row = dict[str, Any]

PASSED, INCOMPLETE, FAILED = "passed", "incomplete", "failed"


def append(home: Path, receipts: Iterable[Row]) -> None:
    """Add receipts, durably and all at once: at any crash a reader finds whole lines. The caller holds the lock."""
    path = ChangeLog(home).source_receipts
    lines = "".join(json.dumps(r, ensure_ascii=False) + "\n" for r in receipts)
    durable_replace(path, (path.read_bytes() if path.exists() else b"") + lines.encode())


def load(home: Path) -> list[Row]:
    """All receipts, oldest first. Raises LockstepError if their file cannot be read."""
    path = ChangeLog(home).source_receipts
    if not path.exists():
        return []
    try:
        return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    except ValueError as e:
        raise LockstepError(f"{path} is not JSON lines ({e}). Restore it from a backup.") from None


def last(receipts: Iterable[Row]) -> list[Row]:
    """The last receipt of each table."""
    return list({r["source_table"]: r for r in receipts}.values())
