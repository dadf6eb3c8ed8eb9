"""Log lines of the commands that run for long: as text for people, or one JSON object per line for programs.

A line that programs should tell from others is logged with `extra=about("landed", changes=5, seconds=0.1)`: the name of
the event, and its fields.
"""

from __future__ import annotations

import json
import logging
from datetime import UTC, datetime
from typing import Any

FORMATS = ("text", "json")
LEVELS = ("debug", "info", "warning", "error")


def about(event: str, **fields: Any) -> dict[str, Any]:
    """The `extra` of a log line."""
    return {"event": event, "fields": fields}


def set_up(form: str, level: str) -> None:
    """Send the log to standard error in one of `FORMATS`, from one of `LEVELS` on."""
    handler = logging.StreamHandler()
    handler.setFormatter(_Json() if form == "json" else logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    logging.basicConfig(handlers=[handler], level=level.upper())


class _Json(logging.Formatter):
    """One object per line: time (UTC), level, event, message, then the event's fields."""

    def format(self, record: logging.LogRecord) -> str:
        line = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "event": getattr(record, "event", "note"),
            "message": record.getMessage(),
            **getattr(record, "fields", {}),
        }
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line, ensure_ascii=False, default=str)
