"""Debezium change events as a connector for PostgreSQL writes them, and what a change log then holds."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import duckdb

from lockstep.changelog import ChangeLog
from lockstep.ingest import Summary, ingest
from lockstep.logfiles import NO_HOUR
from lockstep.schema import TABLES

Image = dict[str, Any]
T0 = 1_767_261_600_000_000  # 2026-01-01 10:00 UTC, in microseconds


def order(order_id: int = 1, **columns: Any) -> Image:
    return {
        "order_id": order_id,
        "customer_id": 7,
        "product_id": 3,
        "region": "north",
        "quantity": 2,
        "amount_cents": 1999,
        "status": "created",
        "ordered_at": "2026-01-01T09:59:59.500000Z",
        "updated_at": "2026-01-01T09:59:59.750000Z",
        **columns,
    }


def event(
    op: str,
    before: Image | None,
    after: Image | None,
    *,
    n: int = 1,
    tx: int | None = 1,
    marked: bool = False,
    **source: Any,
) -> dict[str, Any]:
    """A change; `n` makes its lsn and commit time, `marked` gives it the block of a marked transaction."""
    at = T0 + n * 1_000_000
    return {
        "before": before,
        "after": after,
        "source": {
            "version": "3.6.3.Final",
            "connector": "postgresql",
            "name": "shop",
            "ts_ms": at // 1000,
            "snapshot": "false",
            "db": "shop",
            "sequence": f'[null,"{n}"]',
            "ts_us": at,
            "ts_ns": at * 1000,
            "schema": "public",
            "table": "orders",
            "txId": tx,
            "lsn": 1000 + n,
            "xmin": None,
            **source,
        },
        "transaction": {"id": f"{tx}:{1000 + n}", "total_order": 1, "data_collection_order": 1} if marked else None,
        "op": op,
        "ts_ms": 1_790_000_000_000 + n,
    }


def mark(status: str, tx: int, n: int = 1) -> dict[str, Any]:
    at = (T0 + n * 1_000_000) // 1000
    return {"status": status, "id": f"{tx}:{5000 + n}", "event_count": None, "data_collections": None, "ts_ms": at}


def write(path: Path, records: Iterable[Any]) -> str:
    """A file with a line for each record; strings are written as they are."""
    lines = (r if isinstance(r, str) else json.dumps(r, separators=(",", ":")) for r in records)
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    return str(path)


def deliver(home: Path, *records: Any, **options: Any) -> Summary:
    """Ingest the records as one file."""
    home.mkdir(parents=True, exist_ok=True)
    return ingest(home, [write(home / "delivery.jsonl", records)], **options)


def log_rows(home: Path, table: str = "orders") -> list[dict[str, Any]]:
    """Everything the log holds of a table, in position order, with the columns that are declared now."""
    log = ChangeLog(home)
    files = [str(log.root / table / NO_HOUR / "0-0.parquet"), *map(str, log.files(table))]
    if len(files) == 1:
        return []
    rows = duckdb.sql(f"FROM read_parquet({files!r}, hive_partitioning = FALSE) ORDER BY position").to_arrow_table()
    return rows.to_pylist()


def log_tables(home: Path) -> dict[str, list[dict[str, Any]]]:
    return {table: log_rows(home, table) for table in TABLES}


def live(home: Path, table: str = "orders") -> dict[tuple[Any, ...], Image]:
    """The live images by key, replayed in plain Python."""
    key = TABLES[table].key
    images: dict[tuple[Any, ...], Image] = {}
    for row in log_rows(home, table):
        if row["before"] is not None:
            images.pop(tuple(row["before"][k] for k in key), None)
        if row["after"] is not None:
            images[tuple(row["after"][k] for k in key)] = row["after"]
    return images
