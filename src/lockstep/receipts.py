"""The receipts' archive: what proves the figures outlives the warehouse and SQLMesh's state.

`<home>/receipts.jsonl` holds every receipt that production has ever had, one JSON line each, never rewritten. SQLMesh
computes receipts into tables of the warehouse, and a new version of their model begins with an empty one: the
materialization `append_only` fills it from here. Receipts of other environments are not evidence and never get in,
unless a plan makes their tables production's.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from lockstep import jsonlines
from lockstep.contracts import load
from lockstep.jsonlines import Row

FILE = "receipts.jsonl"


def numbered(query: Any, table: str, column: str) -> Any:
    """The query with `column` counting on from what `table` holds.

    A number is at least the time in microseconds, so that two environments that go on from the same receipts do not
    give the same number twice, and more than the one before, so that a clock set back changes no order.
    """
    from sqlglot import parse_one

    counted: Any = parse_one(
        f"SELECT * REPLACE (GREATEST((SELECT COALESCE(MAX({column}), 0) FROM {table}), EPOCH_US(NOW()) - 1) "
        f"+ ROW_NUMBER() OVER () AS {column})",
        dialect="duckdb",
    )
    return counted.from_(query.subquery("fresh"), copy=False)


def archive(home: Path, fetch: Callable[[str], list[Any]]) -> None:
    """Add to the archive what production's receipts have and it has not, durably and all at once.

    `fetch` runs a query on the warehouse. The caller must hold the only connection that writes to it.
    """
    known = {(r["model"], r["sequence"]) for r in jsonlines.read(home / FILE)}
    new = []
    views = {
        name for (name,) in fetch("SELECT table_name FROM information_schema.tables WHERE table_schema = 'reconcile'")
    }
    for domain in load():
        if f"{domain}_receipts" not in views:
            continue
        model = f"reconcile.{domain}_receipts"
        rows = [json.loads(text) for (text,) in fetch(f"SELECT TO_JSON(r)::TEXT FROM {model} AS r")]
        for row in _with_numbers(rows):
            if (model, row["sequence"]) not in known:
                new.append({"model": model, **row})
    jsonlines.append(home / FILE, new)


def restore(
    home: Path, cursor: Any, model: str, table: str, columns: Mapping[str, Any], renamed: Mapping[str, str], number: str
) -> None:
    """Insert into `table` the archived rows of a model that it lacks, by the numbers in its column `number`.

    Columns are matched by name. `renamed` says what columns were called before; a column that a row does not have is
    NULL in it.
    """
    lines = [json.dumps(row) for row in jsonlines.read(home / FILE) if row["model"] == model]
    if not lines:
        return
    values = ", ".join(
        f"{_value([name, *(old for old, new in renamed.items() if new == name)], type.sql('duckdb'))} AS {name}"
        for name, type in columns.items()
    )
    kept = f"(SELECT {values} FROM (SELECT UNNEST(?::TEXT[])::JSON AS line)) AS kept"
    cursor.execute(
        f"INSERT INTO {table} BY NAME SELECT * FROM {kept} "
        f"WHERE NOT {number} IN (SELECT {number} FROM {table}) ORDER BY {number}",
        [lines],
    )


def _value(names: list[str], type: str) -> str:
    found = [f"line ->> '$.{name}'" for name in names]
    text = f"COALESCE({', '.join(found)})" if len(found) > 1 else f"({found[0]})"
    return f"CAST({text} AS {type})" if "[" not in type and "STRUCT" not in type else f"CAST({text}::JSON AS {type})"


def _with_numbers(rows: list[Row]) -> list[Row]:
    """Receipts of a version that did not number them, numbered in the order of their times."""
    if all(row.get("sequence") is not None for row in rows):
        return rows
    last = 0
    for row in sorted(rows, key=lambda r: str(r["reconciled_at"])):
        at = datetime.fromisoformat(row["reconciled_at"]).replace(tzinfo=UTC)
        last = row["sequence"] = max(last + 1, int(at.timestamp() * 1_000_000))
    return rows
