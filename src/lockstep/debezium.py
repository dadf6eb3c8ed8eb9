"""Debezium change events: from lines of JSON to typed rows, set-wise in DuckDB.

`parse` takes a chunk of lines and leaves in the connection

    records          one row a line that is not blank: what kind of record it is, and its envelope
    parsed_<table>   the change events of one source table with typed images, or the `reason` they break the contract

Understood are the bare envelope, the `schema`/`payload` wrapper, `{"key":..., "value":...}`, kcat's `-J` objects, and
`key<TAB>value` as kafka-console-consumer prints it (with whatever other columns it prints before the value). Where a
wrapper declares a time column's type that type is used; else one unit per table and column is decided from the
largest number in the chunk.

Nothing is rounded, shifted or guessed on the way: a value that is not exactly one of its column's type is a reason.

Identity: an event is known again by table, `tx_id`, `lsn`, op and key. `lsn` is `source.lsn`; for a source without
one (MySQL) it is made of the binlog's file number, `pos` and `row`; for any other, it is a digest of the event's
`source` block and images, so that only an identical event counts as the same.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from lockstep.schema import DATE, TABLES, TEXT, TIMESTAMP, Column, Table

# Ordinals leave room between two lines for the deletes that a TRUNCATE becomes.
STRIDE = 1 << 32

UNAVAILABLE = "__debezium_unavailable_value"

_ENVELOPE = json.dumps(
    {
        "op": "VARCHAR",
        "source": {
            "connector": "VARCHAR",
            "db": "VARCHAR",
            "table": "VARCHAR",
            "txId": "JSON",
            "lsn": "JSON",
            "file": "VARCHAR",
            "pos": "JSON",
            "row": "JSON",
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
)

# A whole number, exactly, from a JSON number or string: a plain cast would round 123.45 to 123. Fractions of zeros
# are taken from a number only below 2^53, beyond which JSON's numbers with a fraction have lost digits already.
_MACROS = r"""
CREATE OR REPLACE TEMP MACRO whole(raw) AS CASE
  WHEN TRY_CAST(raw::VARCHAR AS BIGINT)::VARCHAR = raw::VARCHAR THEN TRY_CAST(raw::VARCHAR AS BIGINT)
  WHEN regexp_full_match(raw::VARCHAR, '"[+-]?[0-9]+(\.0*)?"|-?[0-9]{1,15}(\.0+)?')
    THEN TRY_CAST(split_part(trim(raw::VARCHAR, '"'), '.', 1) AS BIGINT)
END;
CREATE OR REPLACE TEMP MACRO real_number(raw) AS CASE
  WHEN isfinite(TRY_CAST(raw ->> '$' AS DOUBLE)) THEN TRY_CAST(raw ->> '$' AS DOUBLE)
END;
CREATE OR REPLACE TEMP MACRO plain_text(raw) AS CASE
  WHEN starts_with(raw::VARCHAR, '"') AND raw::VARCHAR <> '"__debezium_unavailable_value"' THEN raw ->> '$'
END;
CREATE OR REPLACE TEMP MACRO looks_iso(raw) AS starts_with(raw::VARCHAR, '"') AND substr(raw::VARCHAR, 6, 1) = '-';
/* A cast to TIMESTAMP drops the offset: only what ends in Z may take this short way. The session's zone is UTC, so
   that text without an offset is UTC too. Words that DuckDB also reads as times ('infinity') do not look ISO. */
CREATE OR REPLACE TEMP MACRO iso_moment(raw) AS CASE
  WHEN ends_with(raw::VARCHAR, 'Z"') THEN TRY_CAST(raw ->> '$' AS TIMESTAMP)
  ELSE make_timestamp(epoch_us(TRY_CAST(raw ->> '$' AS TIMESTAMPTZ)))
END;
/* Years 1 to 9999: beyond them a number is a sentinel (PostgreSQL's infinity) or has another unit. */
CREATE OR REPLACE TEMP MACRO moment(micros) AS CASE
  WHEN micros BETWEEN -62135596800000000 AND 253402300799999999 THEN make_timestamp(micros)
END;
CREATE OR REPLACE TEMP MACRO millis_as_micros(raw) AS CASE
  WHEN whole(raw) BETWEEN -1000000000000000 AND 1000000000000000 THEN whole(raw) * 1000
END;
CREATE OR REPLACE TEMP MACRO day(raw) AS CASE
  WHEN whole(raw) BETWEEN -719162 AND 2932896 THEN DATE '1970-01-01' + whole(raw)::INTEGER
  WHEN regexp_full_match(raw::VARCHAR, '"[0-9]{4}-[0-9]{2}-[0-9]{2}(Z|T00:00:00(\.0+)?Z?)?"')
    THEN TRY_CAST(substr(raw::VARCHAR, 2, 10) AS DATE)
END;
/* The size of a number that may tell its unit; PostgreSQL's infinity, close below 2^63, does not. */
CREATE OR REPLACE TEMP MACRO size_of(raw) AS CASE
  WHEN looks_iso(raw) THEN NULL
  WHEN whole(raw) BETWEEN -9223000000000000000 AND 9223000000000000000 THEN abs(whole(raw))
END;
CREATE OR REPLACE TEMP MACRO json_or_null(text) AS CASE
  WHEN trim(text, E' \t\r\n') = '' THEN 'null' WHEN json_valid(text) THEN text
END;
CREATE OR REPLACE TEMP MACRO member(doc, image, name) AS
  json_extract(doc, image || '/' || replace(replace(name, '~', '~0'), '/', '~1'))::VARCHAR;
CREATE OR REPLACE TEMP MACRO extra_columns(doc, image, names) AS CASE
  WHEN len(names) > 0 THEN '{' || array_to_string(list_transform(list_sort(names), lambda name:
    to_json(name)::VARCHAR || ':' || CASE
      WHEN member(doc, image, name) = '"__debezium_unavailable_value"'
        THEN COALESCE(member(doc, '/before', name), 'null')
      ELSE member(doc, image, name)
    END), ',') || '}'
END;
"""

_LINE_DOCS = r"""
SELECT
  ordinal,
  CASE
    WHEN NOT is_text THEN NULL
    WHEN json_valid(line) THEN line
    WHEN contains(line, chr(9)) THEN json_or_null(split_part(line, chr(9), -1))
  END AS doc,
  NULL::VARCHAR AS schema_id
FROM lines
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
      WHEN e.source."table" IS NOT NULL
        AND (e.op IS NOT NULL OR json_exists(doc, '$.before') OR json_exists(doc, '$.after')) THEN 'change'
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
    COALESCE(
      whole(e.source.ts_us),
      whole(e.source.ts_ns) // 1000,
      millis_as_micros(e.source.ts_ms)
    ) AS committed_us
  FROM (SELECT *, json_transform(doc, '{envelope}') AS e FROM ({docs}))
)
SELECT
  ordinal,
  doc,
  schema_id,
  kind,
  e.op AS op,
  e.source."table" AS "table",
  CASE WHEN kind = 'change' THEN e.source.connector || COALESCE(':' || e.source.db, '') END AS source,
  /* Zero stands for unknown in some connectors' snapshots; taken at its word, history would begin in 1970. */
  CASE WHEN committed_us > 0 THEN moment(committed_us) END AS committed_at,
  whole(e.source.txId) AS tx_id,
  CASE WHEN kind = 'change' THEN COALESCE(
    whole(e.source.lsn),
    ((COALESCE(TRY_CAST(regexp_extract(e.source.file, '[0-9]+$') AS BIGINT), 0) & 262143) << 45)
      | ((whole(e.source.pos) & 4294967295) << 13) | (COALESCE(whole(e.source.row), 0) & 8191),
    (md5_number_lower(concat_ws(chr(31), json_extract(doc, '$.source'), json_extract(doc, '$.before'),
      json_extract(doc, '$.after'))) >> 1)::BIGINT
  ) END AS lsn,
  /* PostgreSQL's transaction ids are `txid:lsn`, where the lsn differs between BEGIN, event and END. */
  CASE
    WHEN kind IN ('begin', 'end') THEN regexp_replace(e.id, '^([0-9]+):[0-9]+$', '\\1')
    WHEN kind = 'change' AND e.op IS DISTINCT FROM 'r'
      THEN COALESCE(regexp_replace(e.transaction.id, '^([0-9]+):[0-9]+$', '\\1'), e.source.txId ->> '$')
  END AS transaction,
  e.transaction.id IS NOT NULL AS is_bounded,
  whole(e.transaction.total_order) AS total_order,
  CASE WHEN kind = 'end' THEN e.data_collections::VARCHAR END AS collections,
  CASE WHEN kind = 'end' THEN moment(millis_as_micros(e.ts_ms)) END AS ended_at
FROM kinds
"""

# What Kafka Connect's and Debezium's declared types mean, as microseconds = number * numerator / denominator.
_MILLIS, _MICROS, _NANOS = (1000, 1), (1, 1), (1, 1000)
_DECLARED_UNITS = {
    "io.debezium.time.Timestamp": _MILLIS,
    "org.apache.kafka.connect.data.Timestamp": _MILLIS,
    "io.debezium.time.MicroTimestamp": _MICROS,
    "io.debezium.time.NanoTimestamp": _NANOS,
}
# A number below this is near 1970 in every unit and decides nothing; the units lie factors of 1000 apart.
_TELLING, _MICROS_FROM, _NANOS_FROM = 10**11, 10**14, 10**17


def connect() -> duckdb.DuckDBPyConnection:
    """An in-memory connection whose session is in UTC, with the macros that `parse` uses."""
    con = duckdb.connect(":memory:")
    con.execute("SET TimeZone = 'UTC'")
    con.execute(_MACROS)
    return con


def parse(con: duckdb.DuckDBPyConnection, lines: pa.Table) -> list[Table]:
    """Parse `lines` (`line` and `is_text` of `lines.SCHEMA`) into `records` and `parsed_<table>`.

    Returns the tables that have change events in the chunk, those with a
    `parsed_<table>`. It holds ordinal, committed_at, op, before, after, tx_id and lsn as in `schema.batch_schema`;
    `same_op` and `same_key`, the op and key by which the log knows the event; and `reason`, null unless the event
    breaks the landing contract. TRUNCATE events are in `records` only.
    """
    units = read(con, lines)
    parts = con.execute(
        """
        SELECT "table", LIST(DISTINCT schema_id) FROM records
        WHERE kind = 'change' AND op IS DISTINCT FROM 't' GROUP BY ALL
        """
    ).fetchall()
    found = [(TABLES[name], schema_ids) for name, schema_ids in parts if name in TABLES]
    for table, schema_ids in found:
        selects = (_select(table, schema_id, _units(con, table, schema_id, units)) for schema_id in schema_ids)
        con.execute(f"CREATE OR REPLACE TABLE parsed_{table.name} AS {' UNION ALL '.join(selects)}")
    return [table for table, _ in found]


def read(con: duckdb.DuckDBPyConnection, lines: pa.Table) -> Mapping[tuple[str, str], tuple[int, int]]:
    """Read `lines` into `records`; return the declared unit of (schema, column). Line i has the ordinal i * STRIDE."""
    ordinals = pa.array(np.arange(lines.num_rows, dtype=np.int64) * STRIDE)
    _register(con, "lines", lines.select(["line", "is_text"]).append_column("ordinal", ordinals))
    return _open(con)


def as_lines(events: Sequence[str]) -> pa.Table:
    """Raw events as `parse` takes them."""
    return pa.table({"line": pa.array(events, pa.string()), "is_text": [True] * len(events)})


def _register(con: duckdb.DuckDBPyConnection, name: str, rows: pa.Table) -> None:
    """A view of the rows in small batches, which DuckDB reads in parallel; its own tables only by 122,880 rows."""
    con.register(name, pa.Table.from_batches(rows.to_batches(max_chunksize=8192), rows.schema))


def fingerprint(text: str = "doc") -> str:
    """SQL over `records`, the same for an event sent again, also if only the connector's own clock differs.

    `text` is what stands for a record that is no change event.
    """
    return f"""
    CASE WHEN kind = 'change' THEN md5(concat_ws(chr(31), "table", op, tx_id, lsn, committed_at,
      json_extract(doc, '$.before'), json_extract(doc, '$.after'))) ELSE md5({text}) END
    """


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


def _open(con: duckdb.DuckDBPyConnection) -> Mapping[tuple[str, str], tuple[int, int]]:
    """Leave in `records` the innermost document of each line; return the declared unit of (schema, column)."""
    units: dict[tuple[str, str], tuple[int, int]] = {}
    docs = _LINE_DOCS
    for _ in range(_MAX_WRAPPERS + 1):
        records = con.execute(_RECORDS.format(envelope=_ENVELOPE, docs=docs)).to_arrow_table()
        _register(con, "records", records)
        if not pc.any(pc.equal(records["kind"], "wrapped")).as_py():
            break
        _register(con, "docs", con.execute(_UNWRAPPED_DOCS).to_arrow_table())
        docs = "SELECT ordinal, doc, schema_id FROM docs"
        declared = con.execute("SELECT DISTINCT schema_id, declared FROM docs WHERE declared IS NOT NULL").fetchall()
        for schema_id, schema in declared:
            units.update({(schema_id, column): unit for column, unit in _declared_units(json.loads(schema))})
    return units


def _declared_units(schema: object) -> Iterator[tuple[str, tuple[int, int]]]:
    for image in _fields(schema):
        for column in _fields(image):
            unit = _DECLARED_UNITS.get(str(column.get("name")))
            if unit:
                yield str(column.get("field")), unit


def _fields(schema: object) -> Iterable[dict[str, object]]:
    fields = schema.get("fields") if isinstance(schema, dict) else None
    return [f for f in fields if isinstance(f, dict)] if isinstance(fields, list) else []


def _units(
    con: duckdb.DuckDBPyConnection,
    table: Table,
    schema_id: str | None,
    declared: Mapping[tuple[str, str], tuple[int, int]],
) -> Mapping[str, tuple[int, int]]:
    """The unit of numbers in each time column of the table: as declared, else by the largest in the chunk."""
    units = {
        c.name: declared[schema_id, c.name] for c in table.columns if schema_id and (schema_id, c.name) in declared
    }
    open_columns = [c.name for c in table.columns if c.type == TIMESTAMP and c.name not in units]
    if not open_columns:
        return units
    shape = dict.fromkeys(("before", "after"), dict.fromkeys(open_columns, "JSON"))
    sizes = (f"greatest(MAX(size_of(i.before.{c})), MAX(size_of(i.after.{c})))" for c in open_columns)
    largest = con.execute(
        f"""
        SELECT {", ".join(sizes)}
        FROM (SELECT json_transform(doc, '{json.dumps(shape)}') AS i FROM records WHERE {_part(table, schema_id)})
        """
    ).fetchall()[0]
    overall = max((n for n in largest if n), default=0)
    return units | {
        c: _unit(n if (n or 0) >= _TELLING else overall) for c, n in zip(open_columns, largest, strict=True)
    }


def _unit(largest: int) -> tuple[int, int]:
    return _MILLIS if largest < _MICROS_FROM else _MICROS if largest < _NANOS_FROM else _NANOS


def _part(table: Table, schema_id: str | None) -> str:
    schema = f"schema_id = '{schema_id}'" if schema_id else "schema_id IS NULL"
    return f"kind = 'change' AND \"table\" = '{table.name}' AND op IS DISTINCT FROM 't' AND {schema}"


def _select(table: Table, schema_id: str | None, units: Mapping[str, tuple[int, int]]) -> str:
    """The SELECT that types the events of one table whose time columns have these units."""
    shape = {c.name: "JSON" for c in table.columns}
    known = f"[{', '.join(repr(c.name) for c in table.columns)}]"
    is_key_update = " OR ".join(f"before.{k} <> after.{k}" for k in table.key)
    same_key = ", ".join(f"{k} := CASE WHEN same_op = 'd' THEN before.{k} ELSE after.{k} END" for k in table.key)
    # TOAST: an update that leaves a large value alone does not send it again.
    raw_after = ", ".join(
        f"{c.name} := CASE WHEN i.after.{c.name}::VARCHAR = '\"{UNAVAILABLE}\"' "
        f"THEN i.before.{c.name} ELSE i.after.{c.name} END"
        if c.type == TEXT
        else f"{c.name} := i.after.{c.name}"
        for c in table.columns
    )
    return f"""
    SELECT
      ordinal, committed_at, op, before, after, tx_id, lsn, same_op,
      struct_pack({same_key}) AS same_key,
      {_reason(table)} AS reason
    FROM (
      /* The log holds an update of the key as a delete and an insert: the delete tells that it is known. */
      SELECT *, CASE WHEN op = 'u' AND ({is_key_update}) THEN 'd' ELSE op END AS same_op
      FROM (
        SELECT
          * EXCLUDE (doc),
          CASE WHEN op IN ('u', 'd') AND has_before THEN {_image(table, "before", units)} END AS before,
          CASE WHEN op IN ('c', 'u', 'r') AND has_after THEN {_image(table, "after", units)} END AS after
        FROM (
          SELECT
            ordinal, committed_at, op, tx_id, lsn, doc,
            i.before AS raw_before,
            names[1] AS before_names,
            names[2] AS after_names,
            struct_pack({raw_after}) AS raw_after,
            COALESCE(len(before_names), 0) > 0 AS has_before,
            COALESCE(len(after_names), 0) > 0 AS has_after,
            {_except("before_names", known)} AS before_extra,
            {_except("after_names", known)} AS after_extra,
            {_except(known, "before_names")} AS before_missing,
            {_except(known, "after_names")} AS after_missing
          FROM (
            SELECT
              ordinal, committed_at, op, tx_id, lsn, doc,
              json_transform(doc, '{json.dumps({"before": shape, "after": shape})}') AS i,
              json_keys(doc, ['$.before', '$.after']) AS names
            FROM records WHERE {_part(table, schema_id)}
          )
        )
      )
    )
    """


def _except(names: str, others: str) -> str:
    """SQL for the names that are not among the others; null, cheaply, where both lists are the same."""
    return (
        f"CASE WHEN {names} = {others} THEN NULL "
        f"ELSE list_filter({names}, lambda name: NOT list_contains({others}, name)) END"
    )


def _image(table: Table, image: str, units: Mapping[str, tuple[int, int]]) -> str:
    columns = (f"{c.name} := {_typed(c, f'raw_{image}.{c.name}', units)}" for c in table.columns)
    return f"struct_pack({', '.join(columns)}, extra := extra_columns(doc, '/{image}', {image}_extra))"


def _typed(column: Column, raw: str, units: Mapping[str, tuple[int, int]]) -> str:
    """SQL for the value of a column, null if `raw` is not exactly of its type."""
    if column.type == TEXT:
        return f"plain_text({raw})"
    if column.type == DATE:
        return f"day({raw})"
    if column.type == TIMESTAMP:
        numerator, denominator = units[column.name]
        largest = 253402300799999999 * denominator // numerator
        return (
            f"CASE WHEN looks_iso({raw}) THEN iso_moment({raw}) "
            f"WHEN whole({raw}) BETWEEN -{largest} AND {largest} "
            f"THEN moment(whole({raw}) * {numerator} // {denominator}) END"
        )
    if pa.types.is_integer(column.type):
        return f"TRY_CAST(whole({raw}) AS {'BIGINT' if column.type == pa.int64() else 'INTEGER'})"
    if column.type == pa.float32():
        return (
            f"CASE WHEN isfinite(TRY_CAST(real_number({raw}) AS FLOAT)) THEN TRY_CAST(real_number({raw}) AS FLOAT) END"
        )
    return f"real_number({raw})"


def _reason(table: Table) -> str:
    """SQL for what is wrong with an event first; null if nothing is."""
    full = f"is the source table REPLICA IDENTITY FULL? ALTER TABLE {table.name} REPLICA IDENTITY FULL;"
    checks = [
        "CASE WHEN op IS NULL OR op NOT IN ('c', 'u', 'd', 'r') "
        "THEN 'its op is ' || COALESCE('\"' || op || '\"', 'missing') || ', not one of c, u, d, r, t' END",
        "CASE WHEN committed_at IS NULL "
        "THEN 'it has no commit time: source.ts_us, ts_ns and ts_ms are all missing' END",
        f"CASE WHEN op IN ('u', 'd') AND before IS NULL THEN 'it has no before image: {full}' END",
        "CASE WHEN op IN ('c', 'u', 'r') AND after IS NULL THEN 'it has no after image' END",
    ]
    for image, hint in (("before", f"; {full}"), ("after", "")):
        where = f"of the {image} image"
        checks.append(
            f"CASE WHEN {image} IS NOT NULL AND len({image}_missing) > 0 "
            f"THEN 'column ' || {image}_missing[1] || ' {where} is missing{hint}' END"
        )
        for c in table.columns:
            value = f"left(raw_{image}.{c.name}::VARCHAR, 80)"
            wrong = f"'column {c.name} {where} is ' || {value} || ', which is not {_meaning(c)}'"
            if not c.nullable:
                wrong = f"COALESCE({wrong}, 'column {c.name} {where} is null, but must not be{hint}')"
            checks.append(f"CASE WHEN {image} IS NOT NULL AND {image}.{c.name} IS NULL THEN {wrong} END")
    return f"COALESCE({', '.join(checks)})"


def _meaning(column: Column) -> str:
    if column.type == TEXT:
        return "a text"
    if column.type == DATE:
        return "a date"
    if column.type == TIMESTAMP:
        return "a time"
    return "a whole number in range" if pa.types.is_integer(column.type) else "a finite number"
