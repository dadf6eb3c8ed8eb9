"""Lines of JSON as records: what kind of record each is, with its envelope, whatever it is wrapped in."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from lockstep.debezium.settings import Declared, Types, declared_columns
from lockstep.names import DATABASES_AS_SCHEMAS
from lockstep.schema import TABLES, literal

# Ordinals leave room between two lines for the deletes that a TRUNCATE becomes.
STRIDE = 1 << 32

ENVELOPE: Mapping[str, str | Mapping[str, str]] = {
    "op": "VARCHAR",
    "source": {
        "connector": "VARCHAR",
        "db": "VARCHAR",
        "schema": "VARCHAR",
        "table": "VARCHAR",
        "txId": "JSON",
        "lsn": "JSON",
        "file": "VARCHAR",
        "pos": "JSON",
        "row": "JSON",
        "gtid": "VARCHAR",
        "commit_lsn": "VARCHAR",
        "change_lsn": "VARCHAR",
        "event_serial_no": "VARCHAR",
        "scn": "VARCHAR",
        "redo_thread": "VARCHAR",
        "rs_id": "VARCHAR",
        "ssn": "VARCHAR",
        "lcr_position": "VARCHAR",
        "commit_ts_ms": "JSON",
        "ts_us": "JSON",
        "ts_ns": "JSON",
        "ts_ms": "JSON",
    },
    "transaction": {"id": "VARCHAR", "total_order": "JSON"},
    "data_collections": "JSON",
    "status": "VARCHAR",
    "id": "VARCHAR",
    "ts_ms": "JSON",
}

_LINE_DOCS = r"""
SELECT
  ordinal,
  CASE
    WHEN NOT is_text THEN NULL
    WHEN json_valid(line) THEN line
    WHEN contains(line, chr(9)) THEN json_or_null(split_part(line, chr(9), -1))
  END AS doc,
  NULL::VARCHAR AS schema_id
FROM unread
WHERE CASE WHEN strlen(line) < 80 THEN trim(line, E' \r\n') <> '' ELSE TRUE END
"""

_UNWRAPPED_DOCS = """
SELECT
  ordinal,
  CASE
    WHEN kind <> 'wrapped' THEN doc
    WHEN json_type(inner_doc) = 'VARCHAR' THEN json_or_null(inner_doc ->> '$')
    ELSE inner_doc::VARCHAR
  END AS doc,
  COALESCE(md5(declared), schema_id) AS schema_id,
  declared
FROM (
  SELECT
    *,
    CASE WHEN kind = 'wrapped' THEN
      COALESCE(json_extract(doc, '$.payload'), json_extract(doc, '$.value'))
    END AS inner_doc,
    CASE WHEN kind = 'wrapped' AND json_type(doc, '$.schema') = 'OBJECT' THEN
      json_extract(doc, '$.schema')::VARCHAR
    END AS declared
  FROM records
)
"""

_MAX_WRAPPERS = 3  # kcat's object around a string around {"schema", "payload"} are two

_RECORDS = """
WITH kinds AS (
  SELECT
    *,
    CASE
      WHEN doc IS NULL THEN 'unreadable'
      WHEN e IS NULL THEN 'tombstone'
      WHEN e.op = 'm' THEN 'message'
      WHEN e.source."table" IS NOT NULL AND e.op IS NOT NULL THEN 'change'
      WHEN CASE WHEN e.source."table" IS NOT NULL
        THEN json_exists(doc, '$.before') OR json_exists(doc, '$.after') END THEN 'change'
      WHEN e.op IS NOT NULL THEN 'unknown'
      WHEN e.status = 'BEGIN' AND e.id IS NOT NULL THEN 'begin'
      WHEN e.status = 'END' AND e.id IS NOT NULL THEN 'end'
      /* A key, a tab and no value: as a whole it is valid JSON, with white space at its end. */
      WHEN ends_with(rtrim(doc, chr(13) || chr(10)), chr(9)) AND NOT json_exists(doc, '$.payload.op') THEN 'tombstone'
      WHEN json_exists(doc, '$.payload') OR json_exists(doc, '$.value') THEN 'wrapped'
      WHEN json_exists(doc, '$.ddl') OR json_exists(doc, '$.tableChanges') THEN 'schema_change'
      WHEN json_keys(doc) = ['ts_ms'] THEN 'heartbeat'
      ELSE 'unknown'
    END AS kind,
    /* Oracle's other times are those of the change, not of its commit. */
    COALESCE(
      millis_as_micros(e.source.commit_ts_ms),
      whole(e.source.ts_us),
      whole(e.source.ts_ns) // 1000,
      millis_as_micros(e.source.ts_ms)
    ) AS committed_us,
    CASE WHEN kind = 'change' AND e.op IS DISTINCT FROM 'r' THEN COALESCE(
      regexp_replace(e.transaction.id, '^([0-9]+):[0-9]+$', '\\1'),
      e.source.txId ->> '$',
      e.source.commit_lsn,
      e.source.gtid
    ) END AS own_transaction
  FROM ({events})
)
SELECT
  ordinal,
  doc,
  schema_id,
  kind,
  e.op AS op,
  e.source."table" AS "table",
  e.source."table" AS name,
  e.source.connector AS connector,
  COALESCE(e.source."schema", CASE WHEN e.source.connector || ':' || e.source.db IN ({databases}) THEN e.source.db END)
    AS "schema",
  CASE WHEN kind = 'change' THEN e.source.connector || COALESCE(':' || e.source.db, '') END AS source,
  /* Some connectors' snapshots send zero for an unknown time; used as it is, history would begin in 1970. */
  CASE WHEN committed_us > 0 THEN moment(committed_us) END AS committed_at,
  /* Oracle's transaction ids are hexadecimal and other sources use any text: these become a number by a hash. */
  COALESCE(
    CASE WHEN e.source.connector IS DISTINCT FROM 'oracle' THEN whole(e.source.txId) END,
    (md5_number_lower(own_transaction) >> 1)::BIGINT
  ) AS tx_id,
  CASE WHEN kind = 'change' THEN COALESCE(
    whole(e.source.lsn),
    ((COALESCE(TRY_CAST(regexp_extract(e.source.file, '[0-9]+$') AS BIGINT), 0) & 262143) << 45)
      | ((whole(e.source.pos) & 4294967295) << 13) | (COALESCE(whole(e.source.row), 0) & 8191),
    (md5_number_lower(CASE
      WHEN e.source.change_lsn IS NOT NULL
        THEN concat_ws(chr(31), e.source.commit_lsn, e.source.change_lsn, e.source.event_serial_no)
      WHEN e.source.rs_id IS NOT NULL AND e.source.ssn IS NOT NULL
        THEN concat_ws(chr(31), e.source.scn, e.source.redo_thread, e.source.rs_id, e.source.ssn)
      WHEN e.source.lcr_position IS NOT NULL THEN e.source.lcr_position
      ELSE concat_ws(chr(31), json_extract(doc, '$.source'), json_extract(doc, '$.before'),
        json_extract(doc, '$.after'))
    END) >> 1)::BIGINT
  ) END AS lsn,
  /* PostgreSQL's transaction ids are `txid:lsn`, where the lsn differs between BEGIN, event and END. */
  CASE
    WHEN kind IN ('begin', 'end') THEN regexp_replace(e.id, '^([0-9]+):[0-9]+$', '\\1')
    ELSE own_transaction
  END AS transaction,
  e.transaction.id IS NOT NULL AS is_bounded,
  whole(e.transaction.total_order) AS total_order,
  CASE WHEN kind = 'end' THEN e.data_collections::VARCHAR END AS collections,
  CASE WHEN kind = 'end' THEN moment(millis_as_micros(e.ts_ms)) END AS ended_at,
  {is_plain} AS is_plain
FROM kinds
"""


def records_of(events: str, *, is_plain: bool = False) -> str:
    """SQL for the `records` of events: `ordinal`, `doc`, `schema_id`, and the envelope `e` as in ENVELOPE."""
    databases = [f"{connector}:{db}" for connector in DATABASES_AS_SCHEMAS for db in TABLES.schemas_at(connector)]
    listed = ", ".join(map(literal, databases)) or "''"
    return _RECORDS.format(events=events, databases=listed, is_plain=is_plain)


def unwrap(con: duckdb.DuckDBPyConnection, lines: pa.Table) -> tuple[pa.Table, Types]:
    """The innermost documents of the lines as records, and what the schemas beside them say."""
    types: dict[tuple[str, str], Declared] = {}
    register(con, "unread", lines)
    docs = _LINE_DOCS
    for _ in range(_MAX_WRAPPERS + 1):
        events = f"SELECT *, json_transform(doc, {literal(json.dumps(ENVELOPE))}) AS e FROM ({docs})"
        records = con.execute(records_of(events)).to_arrow_table()
        if not pc.any(pc.equal(records["kind"], "wrapped")).as_py():
            break
        register(con, "records", records)
        register(con, "docs", con.execute(_UNWRAPPED_DOCS).to_arrow_table())
        docs = "SELECT ordinal, doc, schema_id FROM docs"
        declared = con.execute("SELECT DISTINCT schema_id, declared FROM docs WHERE declared IS NOT NULL").fetchall()
        for schema_id, schema in declared:
            types.update({(schema_id, column): said for column, said in declared_columns(json.loads(schema))})
    return records, types


def as_lines(events: Sequence[str]) -> pa.Table:
    """Raw events as `parse` takes them."""
    return pa.table({"line": pa.array(events, pa.string()), "is_text": [True] * len(events)})


def register(con: duckdb.DuckDBPyConnection, name: str, rows: pa.Table) -> None:
    """A view of the rows in small batches, which DuckDB reads in parallel; its own tables only by 122,880 rows."""
    con.register(name, pa.Table.from_batches(rows.to_batches(max_chunksize=8192), rows.schema))


def unread_reason() -> str:
    """SQL over `records`: why a record is not one that Debezium writes; null for those that are."""
    return """
    CASE
      WHEN kind = 'unreadable' THEN 'it is not valid JSON in UTF-8'
      WHEN kind = 'unknown' AND op IS NOT NULL THEN 'it has an op but no source.table'
      WHEN kind = 'unknown' THEN 'it is JSON, but not a record that Debezium writes: it has no op and no source.table'
      WHEN kind = 'change' AND op = 't' AND committed_at IS NULL THEN 'it has no commit time: ' || \
'source.ts_us, ts_ns and ts_ms are all missing'
    END
    """


def with_trailing_comma(column: pa.ChunkedArray) -> list[int]:
    """The lines in which a comma comes right before a closing bracket, in a text perhaps: DuckDB reads over it."""
    found: list[int] = []
    first = 0
    for chunk in column.chunks:
        _, offsets, data = chunk.buffers()
        ends = np.frombuffer(offsets, np.int32)[chunk.offset : chunk.offset + len(chunk) + 1]
        if data is not None and len(chunk):
            text = np.frombuffer(data, np.uint8)[ends[0] : ends[-1]]
            places = np.flatnonzero((text | 0x20) == ord("}"))  # ] differs from } in that bit only
            before = places - 1
            while (blank := np.isin(text[before], _BLANKS) & (before > 0)).any():
                before = before - blank
            commas = places[text[before] == ord(",")]
            found += (np.unique(np.searchsorted(ends, commas + ends[0], "right")) - 1 + first).tolist()
        first += len(chunk)
    return found


_BLANKS = np.frombuffer(b" \t\r", np.uint8)


def is_json(line: str) -> bool:
    """Whether a line is JSON by the book, with the JSON texts in it: `kcat -J` prints a record's value as a text."""
    try:
        value = json.loads(line)
    except ValueError:
        try:
            value = json.loads(line.rsplit("\t", 1)[-1])
        except ValueError:
            return False
    while isinstance(value, dict):
        value = value.get("payload", value.get("value"))
        if isinstance(value, str):
            return is_json(value)
    return True
