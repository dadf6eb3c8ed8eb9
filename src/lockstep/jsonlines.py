"""Files of JSON lines to which rows are added, and none is ever rewritten: receipts of all kinds."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from lockstep.durable import durable_replace
from lockstep.errors import LockstepError

Row = dict[str, Any]


def append(path: Path, rows: Iterable[Row]) -> None:
    """Add rows, durably and all at once: at any crash a reader finds whole lines. The caller holds a lock."""
    lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    if lines:
        durable_replace(path, (path.read_bytes() if path.exists() else b"") + lines.encode())


def read(path: Path, way_out: str = "Restore it from a backup") -> list[Row]:
    """All rows, oldest first; none where there is no file. Raises LockstepError if it cannot be read."""
    if not path.exists():
        return []
    try:
        rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    except ValueError as e:
        raise LockstepError(f"{path} is not JSON lines ({e}). {way_out}.") from None
    if not all(isinstance(row, dict) for row in rows):
        raise LockstepError(f"{path} has a line that is not a JSON object. {way_out}.")
    return rows
