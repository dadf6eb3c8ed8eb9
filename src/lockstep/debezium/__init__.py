"""Debezium change events: from lines of JSON to typed rows, set-wise in DuckDB.

`parse` takes a chunk of lines and leaves in the connection

    records          one row per line that is not blank: what kind of record it is, and its envelope
    parsed_<table>   the change events of one source table with typed images, or the `reason` they break the contract

Events go one of two ways: plain ones the fast lane (`plain`), all others the careful lane (the other modules).

Understood are the bare envelope, the `schema`/`payload` wrapper, `{"key":..., "value":...}`, kcat's `-J` objects, and
`key<TAB>value` as kafka-console-consumer prints it (with whatever other columns it prints before the value).

What a number or text means is never taken from its size or look: the schema that a wrapper carries says the unit of a
time and the encoding of a decimal; without one, the column's declared precision says the unit (timestamptz(3) is
milliseconds, timestamptz(6) microseconds), else the connector's default. See `settings.Part.unit` and `values`.

Nothing is rounded, shifted or guessed on the way: a value that is not exactly one of its column's type is a reason.

Identity: an event is known again by table, `tx_id`, `lsn`, op and key; in a table without a key by its row and its
number in the transaction. `lsn` is `source.lsn`; for MySQL it is made of the binlog's file number, `pos` and `row`. For
SQL Server it is a digest of `commit_lsn`, `change_lsn` and `event_serial_no`; for Oracle of `scn`, `redo_thread`,
`rs_id` and `ssn`, or of `lcr_position`. For any other source it is a digest of the event's `source` block and images,
so that only an identical event counts as the same.
"""

from __future__ import annotations

from collections.abc import Iterable

import duckdb
import numpy as np
import pyarrow as pa

from lockstep.debezium import plain
from lockstep.debezium.envelope import STRIDE, as_lines, is_json, register, unread_reason, unwrap, with_trailing_comma
from lockstep.debezium.identity import FOREIGN, Schemas, fingerprint, name_tables
from lockstep.debezium.images import select
from lockstep.debezium.macros import connect
from lockstep.debezium.settings import DEFAULTS, SETTINGS, Declared, Part, Settings, Types
from lockstep.schema import TABLES, Table

__all__ = [
    "DEFAULTS",
    "FOREIGN",
    "SETTINGS",
    "STRIDE",
    "Declared",
    "Schemas",
    "Settings",
    "Types",
    "as_lines",
    "connect",
    "fingerprint",
    "forget",
    "parse",
    "read",
    "register",
    "unread_reason",
]


def parse(
    con: duckdb.DuckDBPyConnection, lines: pa.Table, settings: Settings = DEFAULTS, schemas: Schemas | None = None
) -> dict[Table, pa.Table | None]:
    """Parse `lines` (`line` and `is_text` of `lines.SCHEMA`) into `records` and `parsed_<table>`.

    Returns the tables that have change events in the chunk, those with a `parsed_<table>`; with them the rows of
    `schema.batch_schema`, for reading without a copy, where all of the table's events went the fast lane.

    `parsed_<table>` holds ordinal, committed_at, op, before, after, tx_id and lsn as in `schema.batch_schema`;
    `same_op` and `same_key`, the op and key under which the log stores the event; and `reason`, null unless the event
    breaks the landing contract. TRUNCATE events are in `records` only, and so are events of another schema than the
    table's: those have the kind FOREIGN, or the name of a table that the project does not know.
    """
    lines = _numbered(con, lines)
    taken = plain.take(con, lines, settings)
    types = _read(con, taken.rest, taken.records)
    if schemas is not None:
        schemas.part(con)
    parts = con.execute(
        """
        SELECT
          "table",
          LIST(DISTINCT {'schema_id': schema_id, 'connector': connector}) FILTER (NOT is_plain),
          COUNT(*) FILTER (is_plain)
        FROM records WHERE kind = 'change' AND op IS DISTINCT FROM 't' GROUP BY ALL
        """
    ).fetchall()
    found = [(TABLES[name], kinds, plain_events) for name, kinds, plain_events in parts if name in TABLES]
    parsed: dict[Table, pa.Table | None] = {}
    for table, kinds, plain_events in found:
        rows = taken.rows(table)
        parsed[table] = rows if not kinds and rows is not None and rows.num_rows == plain_events else None
        selects = taken.selects(table, plain_events)
        if kinds:
            careful = (select(con, Part(table, k["schema_id"], k["connector"], types, settings)) for k in kinds)
            con.execute(f"CREATE OR REPLACE TABLE careful_{table.name} AS {' UNION ALL '.join(careful)}")
            selects.append(f"FROM careful_{table.name}")
        con.execute(f"CREATE OR REPLACE VIEW parsed_{table.name} AS {' UNION ALL '.join(selects)}")
    return parsed


def forget(con: duckdb.DuckDBPyConnection, tables: Iterable[Table]) -> None:
    """Free the memory of `parsed_<table>`, which cannot be read any more."""
    for table in tables:
        con.execute(f"DROP VIEW parsed_{table.name}")
        con.execute(f"DROP TABLE IF EXISTS careful_{table.name}")
    plain.forget(con)


def read(con: duckdb.DuckDBPyConnection, lines: pa.Table) -> None:
    """Read `lines` into `records`. Line i has the ordinal i * STRIDE."""
    _read(con, _numbered(con, lines), None)


def _numbered(con: duckdb.DuckDBPyConnection, lines: pa.Table) -> pa.Table:
    """Register the lines with their ordinals as `lines`."""
    ordinals = pa.array(np.arange(lines.num_rows, dtype=np.int64) * STRIDE)
    lines = lines.select(["line", "is_text"]).append_column("ordinal", ordinals)
    register(con, "lines", lines)
    return lines


def _read(con: duckdb.DuckDBPyConnection, lines: pa.Table, plain_records: pa.Table | None) -> Types:
    """Read `lines` into `records`, where those of plain events are too; return what the events' schemas say."""
    if plain_records is not None and not lines.num_rows:
        register(con, "records", plain_records)
        name_tables(con)
        return {}
    wrong = [i for i in with_trailing_comma(lines["line"]) if not is_json(lines["line"][i].as_py())]
    if wrong:
        is_text = lines["is_text"].to_numpy(zero_copy_only=False).copy()
        is_text[wrong] = False
        lines = lines.set_column(1, "is_text", pa.array(is_text))
    records, types = unwrap(con, lines)
    if plain_records is not None:
        records = pa.concat_tables([records, plain_records.select(records.schema.names)])
    register(con, "records", records)
    name_tables(con)
    return types
