"""Debezium change events: from lines of JSON to typed rows, set-wise in DuckDB.

`parse` takes a chunk of lines and leaves in the connection

    records          one row a line that is not blank: what kind of record it is, and its envelope
    parsed_<table>   the change events of one source table with typed images, or the `reason` they break the contract

Understood are the bare envelope, the `schema`/`payload` wrapper, `{"key":..., "value":...}`, kcat's `-J` objects, and
`key<TAB>value` as kafka-console-consumer prints it (with whatever other columns it prints before the value).

What a number or text means is never taken from its size or look: the schema that a wrapper carries says the unit of a
time and the encoding of a decimal; without one, the column's declared precision says the unit (timestamptz(3) is
milliseconds, timestamptz(6) microseconds), else the connector's default. See `_Unit` and `_number`.

Nothing is rounded, shifted or guessed on the way: a value that is not exactly one of its column's type is a reason.

Identity: an event is known again by table, `tx_id`, `lsn`, op and key; in a table without a key by its row and its
number in the transaction. `lsn` is `source.lsn`; for MySQL it is made of the binlog's file number, `pos` and `row`. For
SQL Server it is a digest of `commit_lsn`, `change_lsn` and `event_serial_no`; for Oracle of `scn`, `redo_thread`,
`rs_id` and `ssn`, or of `lcr_position`. For any other source it is a digest of the event's `source` block and images,
so that only an identical event counts as the same.
"""

from __future__ import annotations

import base64
import functools
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from lockstep.changelog import ALL_TABLES
from lockstep.errors import LockstepError
from lockstep.kinds import BOOLEAN, BYTES, DATE, TEXT, TIME, TIMESTAMP, Kind, meaning
from lockstep.names import DATABASES_AS_SCHEMAS, Name, note
from lockstep.project import project
from lockstep.schema import SCHEMA_FILE, TABLES, Column, Table, literal, quoted
from lockstep.texts import FLOATS, INTEGERS, Said, converted, decimal_text, of_json, unscaled

# Ordinals leave room between two lines for the deletes that a TRUNCATE becomes.
STRIDE = 1 << 32

# What a connector puts in the place of a large value that an update left alone (TOAST), as JSON: in a text, in bytes,
# in arrays of texts, bytes and whole numbers, and in an hstore, as an object or as a text.
_PLACEHOLDER = "__debezium_unavailable_value"
_PLACEHOLDER_BYTES = base64.b64encode(_PLACEHOLDER.encode()).decode()
_UNAVAILABLE = [
    json.dumps(value, separators=(",", ":"))
    for value in (
        _PLACEHOLDER,
        _PLACEHOLDER_BYTES,
        [_PLACEHOLDER],
        [_PLACEHOLDER_BYTES],
        list(_PLACEHOLDER.encode()),
        {_PLACEHOLDER: _PLACEHOLDER},
        json.dumps({_PLACEHOLDER: _PLACEHOLDER}, separators=(",", ":")),
    )
]

_ENVELOPE = json.dumps(
    {
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
)

# A whole number, exactly, from a JSON number or string: a plain cast would round 123.45 to 123. Fractions of zeros
# are taken from a number only below 2^53, beyond which JSON's numbers with a fraction have lost digits already.
# DuckDB copies a macro's arguments into every place where the macro uses them, and plans each copy: that is most of
# what a small chunk costs. So arguments are short, and DuckDB's own macros (split_part) are avoided.
_MACROS = r"""
CREATE OR REPLACE TEMP MACRO whole(raw) AS CASE
  WHEN TRY_CAST(raw::VARCHAR AS BIGINT)::VARCHAR = raw::VARCHAR THEN TRY_CAST(raw::VARCHAR AS BIGINT)
  WHEN regexp_full_match(raw::VARCHAR, '"[+-]?[0-9]+(\.0*)?"|-?[0-9]{1,15}(\.0+)?')
    THEN TRY_CAST(string_split(trim(raw::VARCHAR, '"'), '.')[1] AS BIGINT)
END;
CREATE OR REPLACE TEMP MACRO real_number(raw) AS CASE
  WHEN isfinite(TRY_CAST(raw ->> '$' AS DOUBLE)) THEN TRY_CAST(raw ->> '$' AS DOUBLE)
END;
/* Search for parts of the texts first: few values have them, and DuckDB plans IN over seven texts as a join. */
CREATE OR REPLACE TEMP MACRO is_unavailable(raw) AS CASE
  WHEN contains(raw::VARCHAR, '__debezium_') OR contains(raw::VARCHAR, 'X19kZWJleml1')
    OR starts_with(raw::VARCHAR, '[95,')
    THEN list_contains([{unavailable}], raw::VARCHAR)
  ELSE FALSE
END;
CREATE OR REPLACE TEMP MACRO is_unavailable_text(raw) AS CASE
  WHEN starts_with(raw::VARCHAR, '"') THEN is_unavailable(raw) ELSE FALSE
END;
CREATE OR REPLACE TEMP MACRO plain_text(raw) AS CASE
  WHEN starts_with(raw::VARCHAR, '"') AND NOT is_unavailable_text(raw) THEN raw ->> '$'
END;
/* Digits that a connector may as well have meant as base64, in which it sends decimals by default. */
CREATE OR REPLACE TEMP MACRO may_be_base64(raw) AS CASE WHEN starts_with(raw::VARCHAR, '"')
  THEN regexp_full_match(raw::VARCHAR, '"([0-9A-Za-z+/]{4})+"') ELSE FALSE END;
/* A decimal as a JSON string, from the base64 of its unscaled value; an object, which is no number, if it is none. */
CREATE OR REPLACE TEMP MACRO from_bytes(raw, text, scale) AS CASE
  WHEN raw IS NULL OR raw::VARCHAR = 'null' THEN raw
  ELSE COALESCE(to_json(unscaled(TRY(from_base64(text)), scale)), json_object('base64', raw))
END;
/* A decimal as text with no digit but zeros beyond its scale. A JSON number with a fraction may have been a double: of
   those, up to 15 digits tell what decimal of this scale it was. */
CREATE OR REPLACE TEMP MACRO exact_decimal(text, scale) AS CASE
  WHEN regexp_full_match(text, '[+-]?[0-9]+(\.[0-9]*)?')
    AND COALESCE(rtrim(substr(string_split(text, '.')[2], scale + 1), '0'), '') = '' THEN text
END;
/* BigDecimal writes small numbers with an exponent. */
CREATE OR REPLACE TEMP MACRO with_exponent(text) AS CASE
  WHEN NOT regexp_matches(text, '[eE]') THEN text ELSE without_exponent(text)
END;
CREATE OR REPLACE TEMP MACRO decimal_text(raw, scale) AS CASE
  WHEN starts_with(raw::VARCHAR, '"') THEN exact_decimal(with_exponent(raw ->> '$'), scale)
  WHEN regexp_full_match(raw::VARCHAR, '-?[0-9]+') THEN raw::VARCHAR
  WHEN regexp_full_match(raw::VARCHAR, '-?[0-9.]+([eE][+-]?[0-9]+)?')
    AND abs(raw::VARCHAR::DOUBLE) * power(10::DOUBLE, scale) < 1e15
    AND format('{:.' || scale || 'f}', raw::VARCHAR::DOUBLE)::DOUBLE = raw::VARCHAR::DOUBLE
    THEN format('{:.' || scale || 'f}', raw::VARCHAR::DOUBLE)
END;
CREATE OR REPLACE TEMP MACRO may_be_hex(raw) AS regexp_full_match(raw::VARCHAR, '"([0-9a-f]{2})+"');
CREATE OR REPLACE TEMP MACRO truth(raw) AS CASE raw::VARCHAR
  WHEN 'true' THEN TRUE WHEN '1' THEN TRUE WHEN '"t"' THEN TRUE
  WHEN 'false' THEN FALSE WHEN '0' THEN FALSE WHEN '"f"' THEN FALSE
END;
CREATE OR REPLACE TEMP MACRO iso_clock(raw) AS CASE
  WHEN regexp_full_match(raw::VARCHAR, '"([01][0-9]|2[0-3]):[0-5][0-9](:[0-5][0-9]([.][0-9]{1,6}0*)?)?Z?"')
    THEN TRY_CAST(rtrim(raw ->> '$', 'Z') AS TIME)
END;
CREATE OR REPLACE TEMP MACRO looks_iso(raw) AS starts_with(raw::VARCHAR, '"') AND substr(raw::VARCHAR, 6, 1) = '-';
/* A cast to TIMESTAMP drops the offset: only what ends in Z may take this short way. The session's zone is UTC, so
   that text without an offset is UTC too. Words that DuckDB also reads as times ('infinity') do not look ISO. The cast
   also drops digits beyond microseconds: only zeros may stand there. */
CREATE OR REPLACE TEMP MACRO has_finer_digits(raw) AS regexp_matches(raw::VARCHAR, '[.,][0-9]{6}[0-9]*[1-9]');
CREATE OR REPLACE TEMP MACRO iso_moment(raw) AS CASE
  WHEN CASE WHEN strlen(raw::VARCHAR) > 29 OR NOT ends_with(raw::VARCHAR, 'Z"') OR substr(raw::VARCHAR, 18, 1) <> ':'
    THEN has_finer_digits(raw) ELSE FALSE END THEN NULL
  WHEN ends_with(raw::VARCHAR, 'Z"') THEN TRY_CAST(raw ->> '$' AS TIMESTAMP)
  ELSE make_timestamp(epoch_us(TRY_CAST(raw ->> '$' AS TIMESTAMPTZ)))
END;
/* The years 1 to 9999, as in _YEARS. */
CREATE OR REPLACE TEMP MACRO moment(micros) AS CASE
  WHEN micros BETWEEN -62135596800000000 AND 253402300799999999 THEN make_timestamp(micros)
END;
CREATE OR REPLACE TEMP MACRO millis_as_micros(raw) AS CASE
  WHEN whole(raw) BETWEEN -1000000000000000 AND 1000000000000000 THEN whole(raw) * 1000
END;
/* A time without a zone: what has an offset is none. */
CREATE OR REPLACE TEMP MACRO local_moment(raw) AS CASE
  WHEN regexp_full_match(raw::VARCHAR, '"[0-9]{4}-[0-9]{2}-[0-9]{2}[T ][0-9:.]+Z?"') THEN iso_moment(raw)
END;
CREATE OR REPLACE TEMP MACRO day(raw) AS CASE
  WHEN whole(raw) BETWEEN -719162 AND 2932896 THEN DATE '1970-01-01' + whole(raw)::INTEGER
  WHEN regexp_full_match(raw::VARCHAR, '"[0-9]{4}-[0-9]{2}-[0-9]{2}(Z|T00:00:00(\.0+)?Z?)?"')
    THEN TRY_CAST(substr(raw::VARCHAR, 2, 10) AS DATE)
END;
CREATE OR REPLACE TEMP MACRO json_or_null(text) AS CASE
  WHEN trim(text, E' \t\r\n') = '' THEN 'null' WHEN json_valid(text) THEN text
END;
CREATE OR REPLACE TEMP MACRO member(doc, image, name) AS
  json_extract(doc, image || '/' || replace(replace(name, '~', '~0'), '/', '~1'))::VARCHAR;
CREATE OR REPLACE TEMP MACRO extra_member(doc, image, name) AS CASE
  WHEN is_unavailable(member(doc, image, name)) THEN COALESCE(member(doc, '/before', name), 'null')
  ELSE member(doc, image, name)
END;
/* Bytes as JSON as PostgreSQL prints them, from base64. */
CREATE OR REPLACE TEMP MACRO printed_bytes(raw) AS CASE
  WHEN starts_with(raw, '"') THEN COALESCE('"\\x' || lower(hex(TRY(from_base64(raw::JSON ->> '$')))) || '"', raw)
  ELSE raw
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
  FROM (SELECT *, json_transform(doc, '{envelope}') AS e FROM ({docs}))
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
  /* Zero stands for unknown in some connectors' snapshots; taken at its word, history would begin in 1970. */
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
  CASE WHEN kind = 'end' THEN moment(millis_as_micros(e.ts_ms)) END AS ended_at
FROM kinds
"""


@dataclass(frozen=True)
class _Unit:
    """What a number in a time column counts: microseconds = number * numerator / denominator."""

    name: str
    numerator: int
    denominator: int = 1


_MILLIS, _MICROS, _NANOS = _Unit("milliseconds", 1000), _Unit("microseconds", 1), _Unit("nanoseconds", 1, 1000)
_DAYS = _Unit("days", 86_400_000_000)
_TIMES = {
    "io.debezium.time.Timestamp": _MILLIS,
    "org.apache.kafka.connect.data.Timestamp": _MILLIS,
    "io.debezium.time.Time": _MILLIS,
    "org.apache.kafka.connect.data.Time": _MILLIS,
    "io.debezium.time.MicroTime": _MICROS,
    "io.debezium.time.NanoTime": _NANOS,
    "io.debezium.time.MicroTimestamp": _MICROS,
    "io.debezium.time.NanoTimestamp": _NANOS,
    "io.debezium.time.Date": _DAYS,
    "org.apache.kafka.connect.data.Date": _DAYS,
}
_CLOCKS = ("io.debezium.time.Time", "io.debezium.time.MicroTime", "io.debezium.time.NanoTime")
# What connectors write in their default mode for a column whose type does not say a precision: MySQL's datetime is
# datetime(0), PostgreSQL's timestamp is timestamp(6). Others' types differ too much for one default.
_DEFAULT_TIMES = {"mysql": _MILLIS, "mariadb": _MILLIS, "postgresql": _MICROS}
# These connectors write times of day that are numbers as microseconds, whatever the column's precision, and a zero date
# (0000-00-00) as NULL, in a column that is NOT NULL as 1970-01-01.
_MYSQL = ("mysql", "mariadb")
_TIME_MODES = {"connect": _MILLIS, "microseconds": _MICROS, "nanoseconds": _NANOS}  # of time.precision.mode

_DECIMAL, _OWN_SCALE = "org.apache.kafka.connect.data.Decimal", "io.debezium.data.VariableScaleDecimal"
_SCHEMAS = "value.converter.schemas.enable=true has the connector say so in each event"


@dataclass(frozen=True)
class Declared:
    """What the schema that comes with an event says of a column: type in Kafka Connect, name, parameters, elements."""

    type: str
    name: str
    scale: int = 0
    length: int | None = None
    items: Declared | None = None
    is_optional: bool = False


@dataclass(frozen=True)
class Settings:
    """What is known of a connector whose events carry no schema, beyond its defaults.

    `is_printed`: events were written by `lockstep capture`, with what PostgreSQL prints.
    """

    decimals: str = "precise"  # its decimal.handling.mode
    times: str = "adaptive"  # its time.precision.mode
    binary: str | None = None  # its binary.handling.mode
    is_printed: bool = False

    @classmethod
    def of(cls, properties: Mapping[str, str]) -> Settings:
        """Those of a connector with these properties."""
        given = {field: properties[name] for field, name in SETTINGS.items() if name in properties}
        default = cls()
        return cls(
            given.get("decimals", default.decimals),
            given.get("times", default.times),
            given.get("binary"),
        )

    @classmethod
    def stored(cls, resume: Mapping[str, Any]) -> Settings:
        """Those of what wrote the log, by its watermark; the defaults if that is none of ours."""
        if "slot" in resume:
            return cls(decimals="string", is_printed=True)
        stored = resume.get("debezium")
        return cls() if stored is None else cls.of({"decimal.handling.mode": "string", **stored.get("settings", {})})


SETTINGS = {"decimals": "decimal.handling.mode", "times": "time.precision.mode", "binary": "binary.handling.mode"}
DEFAULTS = Settings()
Types = Mapping[tuple[str, str], Declared]  # by schema and column


def connect() -> duckdb.DuckDBPyConnection:
    """An in-memory connection whose session is in UTC, with the macros that `parse` uses."""
    con = duckdb.connect(":memory:")
    con.execute("SET TimeZone = 'UTC'")
    special: Any = {"type": "arrow", "null_handling": "special"}
    con.create_function("unscaled", _unscaled, ["BLOB", "INTEGER"], "VARCHAR", **special)
    con.create_function("without_exponent", _without_exponent, ["VARCHAR"], "VARCHAR", **special)
    con.create_function("printed", _printed, ["VARCHAR", "INTEGER"], "VARCHAR", **special)
    con.execute(_MACROS.replace("{unavailable}", ", ".join(map(literal, _UNAVAILABLE))))
    return con


def _unscaled(data: pa.ChunkedArray, scales: pa.ChunkedArray) -> pa.Array:
    """Decimals as text; null where there is none."""
    pairs = zip(data.to_pylist(), scales.to_pylist(), strict=True)
    return pa.array([unscaled(d, s) if d and s is not None and abs(s) <= _MOST_SCALE else None for d, s in pairs], TEXT)


_MOST_SCALE = 16_383  # of a numeric


def _without_exponent(texts: pa.ChunkedArray) -> pa.Array:
    return pa.array(converted(texts.to_pylist(), lambda text: decimal_text(Said(decimals="string"), text)), TEXT)


def _printed(raws: pa.ChunkedArray, recipes: pa.ChunkedArray) -> pa.Array:
    """Values of a kind that lands as text, from JSON; null where it is not exactly one of the kind's."""
    recipe = _RECIPES[recipes[0].as_py()] if len(recipes) else None
    return pa.array([None if raw is None or recipe is None else recipe(raw) for raw in raws.to_pylist()], TEXT)


def parse(
    con: duckdb.DuckDBPyConnection, lines: pa.Table, settings: Settings = DEFAULTS, schemas: Schemas | None = None
) -> list[Table]:
    """Parse `lines` (`line` and `is_text` of `lines.SCHEMA`) into `records` and `parsed_<table>`.

    Returns the tables that have change events in the chunk, those with a
    `parsed_<table>`. It holds ordinal, committed_at, op, before, after, tx_id and lsn as in `schema.batch_schema`;
    `same_op` and `same_key`, the op and key by which the log knows the event; and `reason`, null unless the event
    breaks the landing contract. TRUNCATE events are in `records` only, and so are events of another schema than the
    table's: those have the kind FOREIGN, or the name of a table that the project does not know.
    """
    types = read(con, lines)
    if schemas is not None:
        schemas.part(con)
    parts = con.execute(
        """
        SELECT "table", LIST(DISTINCT {'schema_id': schema_id, 'connector': connector}) FROM records
        WHERE kind = 'change' AND op IS DISTINCT FROM 't' GROUP BY ALL
        """
    ).fetchall()
    found = [(TABLES[name], kinds) for name, kinds in parts if name in TABLES]
    for table, kinds in found:
        selects = (_select(con, _Part(table, k["schema_id"], k["connector"], types, settings)) for k in kinds)
        con.execute(f"CREATE OR REPLACE TABLE parsed_{table.name} AS {' UNION ALL '.join(selects)}")
    return [table for table, _ in found]


def read(con: duckdb.DuckDBPyConnection, lines: pa.Table) -> Types:
    """Read `lines` into `records`; return what the events' schemas say. Line i has the ordinal i * STRIDE."""
    ordinals = pa.array(np.arange(lines.num_rows, dtype=np.int64) * STRIDE)
    lines = lines.select(["line", "is_text"]).append_column("ordinal", ordinals)
    wrong = [i for i in _with_trailing_comma(lines["line"]) if not _is_json(lines["line"][i].as_py())]
    if wrong:
        is_text = lines["is_text"].to_numpy(zero_copy_only=False).copy()
        is_text[wrong] = False
        lines = lines.set_column(1, "is_text", pa.array(is_text))
    _register(con, "lines", lines)
    types = _open(con)
    _name_tables(con)
    return types


def _name_tables(con: duckdb.DuckDBPyConnection) -> None:
    """Set `table` of each change in `records` to the table's name in the log; unknown tables keep their own name.

    A change that could belong to several tables becomes FOREIGN and belongs to ALL_TABLES.
    """
    found = con.execute(
        """SELECT DISTINCT connector, "schema", name FROM records WHERE kind = 'change' ORDER BY ALL"""
    ).fetchall()
    labels = []
    for connector, schema, name in found:
        tables = TABLES.called(connector, schema, name)
        label = ALL_TABLES if len(tables) > 1 else tables[0].name if tables else _label(connector, schema, name)
        if label != name:
            same = (
                f"{column} IS NOT DISTINCT FROM {'NULL' if value is None else literal(value)}"
                for column, value in (("connector", connector), ('"schema"', schema), ("name", name))
            )
            labels.append(f"WHEN {' AND '.join(same)} THEN {literal(label)}")
    if not labels:
        return
    records = con.execute(
        f"""
        SELECT * REPLACE (
          CASE WHEN "table" = '{ALL_TABLES}' THEN '{FOREIGN}' ELSE kind END AS kind
        ) FROM (
          SELECT * REPLACE (
            CASE WHEN kind <> 'change' THEN "table" {" ".join(labels)} ELSE "table" END AS "table"
          ) FROM records
        )
        """
    ).to_arrow_table()
    _register(con, "records", records)


def _label(connector: str | None, schema: str | None, name: str) -> str:
    """A name for a table that the project does not declare; it differs from all names that the project uses."""
    is_alike = name in TABLES or any(t.at(connector) == name for t in TABLES.values())
    return name if not is_alike else f"{schema}.{name}" if schema else f'"{name}"'


def _with_trailing_comma(column: pa.ChunkedArray) -> list[int]:
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


def _is_json(line: str) -> bool:
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
            return _is_json(value)
    return True


# The kind of a change that cannot land because of its table: it is in another schema than the source table of that
# name, or it has no key and the change cannot be recognized if it is sent again.
FOREIGN = "foreign"
_KEYLESS = "{} is declared append-only and has no key, so "
_NUMBERED = (
    "an event that comes twice can be told from two equal rows only by its number in the transaction, which it lacks: "
    "provide.transaction.metadata=true has the connector send it"
)
_READ = (
    "what a connector's snapshot read of it may have come before, and nothing tells: land only what is added "
    "(snapshot.mode=no_data), or follow it with `lockstep capture`"
)
_CHANGED = (
    "none of its rows can be changed or deleted: declare its key if it has one, and discard the event if the row may "
    "stay as it was"
)


_SEVERAL = "it names no schema, and several source tables are called "


class Schemas:
    """Which table of the source each table of the log is. The schema is the declared one, else the one that the log was
    captured from, else that of the table's first event; the log stores it, so that no other table can replace it.
    """

    def __init__(self, resume: Mapping[str, Any]) -> None:
        """`resume` is the watermark's. Raises LockstepError if the log has something else than is declared."""
        self._captured = resume.get("schema")
        self._first: dict[str, str] = dict(resume.get("schemas", {}))
        self._names: dict[str, str] = dict(resume.get("names", {}))
        for name, schema in self._first.items():
            if name in TABLES:
                self._check(TABLES[name], schema, self._names.get(name, name))

    def _check(self, table: Table, schema: str, source: str) -> None:
        declared = table.schema or (Name(self._captured) if self._captured else Name(schema))
        if not declared.fits(schema):
            raise LockstepError(
                f"The change log holds {table.name} of the schema {schema}, {project() / SCHEMA_FILE} declares it in "
                f"{declared}. Declare {schema}.{source}, or land the other into a LOCKSTEP_HOME of its own."
            )
        if not (table.source or Name(table.name)).fits(source):
            raise LockstepError(
                f"The change log holds {schema}.{source} under the name {table.name}, {project() / SCHEMA_FILE} gives "
                f"that name to {table.source}. Give each its name again with the line `{note(table.name)}` before "
                "the CREATE TABLE, or land the other into a LOCKSTEP_HOME of its own."
            )

    @property
    def stored(self) -> Mapping[str, Any]:
        """For the watermark's `resume`."""
        return {key: value for key, value in (("schemas", self._first), ("names", self._names)) if value}

    def part(self, con: duckdb.DuckDBPyConnection) -> None:
        """Tell apart in `records` what is of another schema than its table: where that is captured it is another table,
        which the project does not know; else it is FOREIGN.
        """
        found = con.execute(
            """
            SELECT "table", "schema", ANY_VALUE(name) FROM records WHERE kind = 'change' AND "schema" IS NOT NULL
            GROUP BY ALL ORDER BY MIN(ordinal)
            """
        ).fetchall()
        others = []
        for table, schema, name in found:
            if table in TABLES:
                own = TABLES[table].schema is None and self._captured
                if not own and self._first.setdefault(table, schema) == schema and name != table:
                    self._names.setdefault(table, name)
                if TABLES[table].schema is None and schema != (own or self._first[table]):
                    others.append((table, schema))
        is_keyless = self._is_keyless()
        has_keyless = con.execute(f"SELECT 1 FROM records WHERE {is_keyless} LIMIT 1").fetchall()
        if not others and not has_keyless:
            return
        pairs = ", ".join(f"({literal(table)}, {literal(schema)})" for table, schema in others) or "('', '')"
        is_other = f"""kind = 'change' AND ("table", "schema") IN ({pairs})"""
        is_known = "TRUE" if self._captured else "FALSE"
        records = con.execute(
            f"""
            SELECT * REPLACE (
              CASE
                WHEN {is_other} AND NOT {is_known} THEN '{FOREIGN}'
                WHEN {is_keyless} AND NOT ({is_other}) THEN '{FOREIGN}'
                ELSE kind
              END AS kind,
              CASE WHEN {is_other} AND {is_known} THEN "schema" || '.' || name ELSE "table" END AS "table"
            ) FROM records
            """
        ).to_arrow_table()
        _register(con, "records", records)

    def _is_keyless(self) -> str:
        """SQL over `records`: whether the event has a table without a key and is not an insert with an identity.

        Rows of one COPY share their lsn, so PostgreSQL's need the number in their transaction. What `lockstep capture`
        has rejected needs none: it is retried by its place in the log.
        """
        is_known = "TRUE" if self._captured else f"({_HAS_NUMBER})"
        return f"""kind = 'change' AND {_of_keyless()} AND NOT (op = 't' OR op = 'c' AND {is_known}) IS TRUE"""

    def reason(self) -> str:
        """SQL over `records`: why an event of the kind FOREIGN does not land; null for all others."""
        whens = f"WHEN op = 'c' THEN {literal(_NUMBERED)} WHEN op = 'r' THEN {literal(_READ)}"
        why = f"CASE {whens} ELSE {literal(_CHANGED)} END"
        reasons = {t.name: f"{literal(_KEYLESS.format(t.name))} || {why}" for t in TABLES.values() if not t.key}
        for name, schema in self._first.items():
            reasons.setdefault(name, f"""'it is a change of ' || "schema" || {literal(self._reason(name, schema))}""")
        cases = " ".join(f"WHEN {literal(name)} THEN {reason}" for name, reason in reasons.items())
        several = f"WHEN '{ALL_TABLES}' THEN {literal(_SEVERAL)} || name"
        return f"""CASE WHEN kind = '{FOREIGN}' THEN CASE "table" {several} {cases} END END"""

    def _reason(self, name: str, schema: str) -> str:
        source = self._names.get(name, name)
        return (
            f".{source}, but {name} in this change log is {schema}.{source}: two tables of one name are not mixed. "
            f"Declare which it is in {SCHEMA_FILE}, CREATE TABLE {schema}.{source}, then events of the other are "
            "passed over; what is in quarantine of it can be discarded"
        )


_HAS_NUMBER = "connector IS DISTINCT FROM 'postgresql' OR total_order IS NOT NULL"


def _of_keyless() -> str:
    """SQL over `records`: whether a record is of a table without a key."""
    names = ", ".join(literal(table.name) for table in TABLES.values() if not table.key) or "''"
    return f""""table" IN ({names})"""


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
    CASE WHEN kind IN ('change', '{FOREIGN}') THEN md5(concat_ws(chr(31), "table", op, tx_id, lsn, committed_at,
      json_extract(doc, '$.before'), json_extract(doc, '$.after'),
      CASE WHEN {_of_keyless()} THEN total_order END)) ELSE md5({text}) END
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


def _open(con: duckdb.DuckDBPyConnection) -> Types:
    """Leave in `records` the innermost document of each line; return what the schemas beside them say."""
    types: dict[tuple[str, str], Declared] = {}
    docs = _LINE_DOCS
    databases = [f"{connector}:{db}" for connector in DATABASES_AS_SCHEMAS for db in TABLES.schemas_at(connector)]
    listed = ", ".join(map(literal, databases)) or "''"
    for _ in range(_MAX_WRAPPERS + 1):
        records = con.execute(_RECORDS.format(envelope=_ENVELOPE, docs=docs, databases=listed)).to_arrow_table()
        _register(con, "records", records)
        if not pc.any(pc.equal(records["kind"], "wrapped")).as_py():
            break
        _register(con, "docs", con.execute(_UNWRAPPED_DOCS).to_arrow_table())
        docs = "SELECT ordinal, doc, schema_id FROM docs"
        declared = con.execute("SELECT DISTINCT schema_id, declared FROM docs WHERE declared IS NOT NULL").fetchall()
        for schema_id, schema in declared:
            types.update({(schema_id, column): said for column, said in _declared(json.loads(schema))})
    return types


def _declared(schema: object) -> Iterator[tuple[str, Declared]]:
    for image in _fields(schema):
        if image.get("field") in ("before", "after"):
            for column in _fields(image):
                yield str(column.get("field")), _of_schema(column)


def _of_schema(column: Mapping[str, Any]) -> Declared:
    parameters = column.get("parameters")
    parameters = parameters if isinstance(parameters, dict) else {}
    scale, length = (str(parameters.get(name)) for name in ("scale", "length"))
    items = column.get("items")
    return Declared(
        str(column.get("type")),
        str(column.get("name")),
        int(scale) if scale.removeprefix("-").isdecimal() else 0,
        int(length) if length.isdecimal() else None,
        _of_schema(items) if isinstance(items, dict) else None,
        column.get("optional") is True,
    )


def _fields(schema: object) -> Iterable[dict[str, object]]:
    fields = schema.get("fields") if isinstance(schema, dict) else None
    return [f for f in fields if isinstance(f, dict)] if isinstance(fields, list) else []


@dataclass(frozen=True)
class _Part:
    """The events of one table that are typed alike: by one connector, with one schema or none."""

    table: Table
    schema_id: str | None
    connector: str | None
    types: Types
    settings: Settings

    @property
    def condition(self) -> str:
        """SQL over `records`."""
        same = " AND ".join(
            f"{column} {'IS NULL' if value is None else f'= {literal(value)}'}"
            for column, value in (("schema_id", self.schema_id), ("connector", self.connector))
        )
        return f"kind = 'change' AND \"table\" = '{self.table.name}' AND op IS DISTINCT FROM 't' AND {same}"

    def declared(self, column: Column) -> Declared | None:
        return self.types.get((self.schema_id, self.source(column))) if self.schema_id else None

    def source(self, column: Column) -> str:
        """What the events call the column."""
        return column.at(self.connector)

    def unit(self, column: Column) -> tuple[_Unit | None, bool]:
        """What numbers in a time column count, None if nothing says it; and whether that is only a default."""
        return self._unit(column.kind, self.declared(column))

    def may_be_zero_date(self, column: Column) -> bool:
        """Whether 1970-01-01 in the column may be MySQL's 0000-00-00, which a nullable column receives as NULL."""
        said = self.declared(column)
        is_optional = column.nullable or (said is not None and said.is_optional)
        return self.connector in _MYSQL and column.type in (DATE, TIMESTAMP) and not is_optional

    def _unit(self, kind: Kind, said: Declared | None) -> tuple[_Unit | None, bool]:
        if kind.name == "interval":  # only a time of day that goes beyond a day; other numbers cannot say their months
            if said is not None:
                return (_TIMES[said.name] if said.name in _CLOCKS else None), False
            return (_TIME_MODES.get(self.settings.times) if self.connector in _MYSQL else None), False
        if said is not None and said.name in _TIMES:
            return _TIMES[said.name], False
        if self.settings.times in _TIME_MODES:
            return _TIME_MODES[self.settings.times], False
        if kind.name == "time" and said is None and self.connector in _MYSQL:
            return _MICROS, True
        if kind.precision is not None:
            return (_MILLIS if kind.precision <= 3 else _MICROS if kind.precision <= 6 else _NANOS), False
        if said is not None:
            return None, False
        if kind.name == "time":
            return (_MICROS if self.connector == "postgresql" else None), True
        return _DEFAULT_TIMES.get(self.connector or ""), True

    def recipe(self, column: Column) -> int:
        """The number by which `printed` knows how to read the column's values."""
        return _recipe(column.kind, self._said(column.kind, self.declared(column)))

    def _said(self, kind: Kind, declared: Declared | None) -> Said:
        if kind.element is not None:
            return Said(items=self._said(kind.element, declared.items if declared else None))
        unit, _ = self._unit(kind, declared)
        if kind.name == "date" and (declared is None or unit == _DAYS):
            unit = None
        return Said(
            type=declared.type if declared else "string" if self.settings.is_printed else "",
            name=declared.name if declared else "",
            scale=declared.scale if declared else kind.type.scale if kind.is_decimal else None,
            length=declared.length if declared else None,
            micros=Fraction(unit.numerator, unit.denominator) if unit else None,
            decimals="string" if self.settings.decimals == "string" else None,
            binary=self.settings.binary,
        )


_RECIPES: list[Callable[[str], str | None]] = []


@functools.cache
def _recipe(kind: Kind, said: Said) -> int:
    _RECIPES.append(of_json(kind, said))
    return len(_RECIPES) - 1


def _select(con: duckdb.DuckDBPyConnection, part: _Part) -> str:
    """The SELECT that types the events of one part."""
    table = part.table
    columns = dict.fromkeys(_told_apart(part).values(), "JSON")
    shape = literal(json.dumps({"before": columns, "after": columns}))
    known = f"[{', '.join(literal(part.source(c)) for c in table.columns)}]"
    is_key_update = " OR ".join(f"before.{k} <> after.{k}" for k in table.sql_key)
    same_key = ", ".join(f"{k} := CASE WHEN same_op = 'd' THEN before.{k} ELSE after.{k} END" for k in table.sql_key)
    return f"""
    SELECT
      ordinal, committed_at, op, before, after, tx_id, lsn, same_op,
      struct_pack({same_key}) AS same_key,
      {_reason(part)} AS reason
    FROM (
      /* The log holds an update of the key as a delete and an insert: the delete tells that it is known. */
      SELECT *, CASE WHEN op = 'u' AND ({is_key_update}) THEN 'd' ELSE op END AS same_op
      FROM (
        SELECT
          *,
          CASE WHEN op IN ('u', 'd') AND has_before THEN {_image(part, "before")} END AS before,
          CASE WHEN op IN ('c', 'u', 'r') AND has_after THEN {_image(part, "after")} END AS after
        FROM (
          SELECT
            ordinal, committed_at, op, tx_id, lsn, doc,
            {_raw(part, "before")} AS raw_before,
            names[1] AS before_names,
            names[2] AS after_names,
            {_twice(con, part, known)} AS twice,
            {_raw(part, "after")} AS raw_after,
            COALESCE(len(before_names), 0) > 0 AS has_before,
            COALESCE(len(after_names), 0) > 0 AS has_after,
            {_except("before_names", known)} AS before_extra,
            {_except("after_names", known)} AS after_extra,
            {_except(known, "before_names")} AS before_missing,
            {_except(known, "after_names")} AS after_missing
          FROM (
            SELECT
              ordinal, committed_at, op, tx_id, lsn, doc,
              json_transform(doc, {shape}) AS i,
              json_keys(doc, {_OBJECTS}) AS names
            FROM records WHERE {part.condition}
          )
        )
      )
    )
    """


def _told_apart(part: _Part) -> dict[str, str]:
    """The columns' names in the events, one per spelling in lower case: DuckDB's structs ignore case."""
    names: dict[str, str] = {}
    for column in part.table.columns:
        names.setdefault(part.source(column).lower(), part.source(column))
    return names


def _value(part: _Part, column: Column, image: str) -> str:
    """SQL for a value of an image as JSON, null where it is not there or null."""
    name = part.source(column)
    if _told_apart(part)[name.lower()] == name:
        return f"i.{image}.{quoted(name)}"
    return f"NULLIF(member(doc, '/{image}', {literal(name)}), 'null')::JSON"


def _raw(part: _Part, image: str) -> str:
    """SQL for an image's values as JSON, decimals decoded, unchanged values taken from the image before."""
    values = []
    for c in part.table.columns:
        value = _value(part, c, image)
        if image == "after" and _may_be_large(c):  # TOAST: an update that leaves a large value alone does not send it
            is_unavailable = "is_unavailable_text" if c.kind.name in _PLAIN_TEXTS else "is_unavailable"
            value = f"CASE WHEN {is_unavailable}({value}) THEN {_value(part, c, 'before')} ELSE {value} END"
        elif c.kind.name in (*INTEGERS, *FLOATS) or c.kind.is_decimal:
            value = _decoded(part, c, value)
        values.append(f"{c.sql} := {value}")
    return f"struct_pack({', '.join(values)})"


_PLAIN_TEXTS = ("text", "uuid", "json")


def _may_be_large(column: Column) -> bool:
    return column.type in (TEXT, BYTES)


def _decoded(part: _Part, column: Column, value: str) -> str:
    """SQL for a number as JSON, with decimals that came as bytes decoded."""
    said = part.declared(column)
    own_scale = f"from_bytes({value}, {value} ->> '$.value', TRY_CAST({value} ->> '$.scale' AS INTEGER))"
    if said is not None:
        if said.name == _DECIMAL:  # bytes by its schema, but a number if the converter has decimal.format=NUMERIC
            from_bytes = f"from_bytes({value}, {value} ->> '$', {said.scale})"
            return f"CASE WHEN regexp_full_match({value}::VARCHAR, '-?[0-9].*') THEN {value} ELSE {from_bytes} END"
        if said.name == _OWN_SCALE:
            return own_scale
        return f"from_bytes({value}, NULL, 0)" if said.type == "bytes" else value
    if not column.kind.is_decimal or part.settings.decimals == "string":
        return value
    # Nothing says the encoding. An object is a decimal with its scale, and what cannot be digits is the base64 of one
    # with the declared scale. Digits may be either, and are no number.
    return f"""
      CASE
        WHEN starts_with({value}::VARCHAR, '{{') THEN {own_scale}
        WHEN contains({value}::VARCHAR, '.') THEN {value} /* cannot be base64; true of most decimals */
        WHEN regexp_full_match({value}::VARCHAR, '"([0-9A-Za-z+/]{{4}})*([0-9A-Za-z+/]{{2,3}}={{1,2}})?"')
          THEN CASE WHEN TRY_CAST({value} ->> '$' AS DOUBLE) IS NULL
            THEN from_bytes({value}, {value} ->> '$', {column.type.scale})
            ELSE json_object('{_DOUBT}', {value}) END
        ELSE {value}
      END
    """


_DOUBT = "digits or base64"


_OBJECTS = ["$.before", "$.after", "$", "$.source"]  # in which a key must not stand twice


def _twice(con: duckdb.DuckDBPyConnection, part: _Part, known: str) -> str:
    """SQL for a key that stands twice in an event, so that nobody can say which counts; null, cheaply, if none does.

    Nearly all events of a part have the keys of its first: only where they differ is there something to look for.
    """
    first = con.execute(
        f"SELECT json_keys(doc, {_OBJECTS}) FROM "
        f"(SELECT doc FROM records WHERE {part.condition} ORDER BY ordinal LIMIT 1)"
    ).fetchall()[0][0]
    others = (names if len(set(names)) == len(names) else [] for names in first[2:])
    usual = [known, known, *(f"[{', '.join(map(literal, names))}]::VARCHAR[]" for names in others)]
    checks = [
        f"CASE WHEN {names} = {expected} THEN NULL WHEN len(list_distinct({names})) < len({names}) THEN "
        f"list_filter({names}, lambda name: len(list_filter({names}, lambda other: other = name)) > 1)[1] END"
        for names, expected in zip(("before_names", "after_names", "names[3]", "names[4]"), usual, strict=True)
    ]
    return f"COALESCE({', '.join(checks)})"


def _except(names: str, others: str) -> str:
    """SQL for the names that are not among the others; null, cheaply, where both lists are the same."""
    return (
        f"CASE WHEN {names} = {others} THEN NULL "
        f"ELSE list_filter({names}, lambda name: NOT list_contains({others}, name)) END"
    )


def _image(part: _Part, image: str) -> str:
    columns = []
    for c in part.table.columns:
        value = _typed(part, c, f"raw_{image}.{c.sql}")
        columns.append(f"{c.sql} := {f'NULLIF({value}, {_epoch(c)})' if part.may_be_zero_date(c) else value}")
    return f"struct_pack({', '.join(columns)}, extra := {_extra(part, image)})"


def _extra(part: _Part, image: str) -> str:
    """SQL for the columns that the project does not know, as JSON, in the order of their names.

    As `lockstep capture` has them where the event's schema tells: decimals and bytes as PostgreSQL prints them.
    """
    names, member = f"{image}_extra", f"extra_member(doc, '/{image}', name)"
    known = {part.source(c) for c in part.table.columns}
    whens = []
    for (schema_id, name), said in part.types.items():
        if schema_id != part.schema_id or name in known:
            continue
        if said.name == _DECIMAL:
            decoded = f"from_bytes({member}::JSON, {member}::JSON ->> '$', {said.scale})::VARCHAR"
        elif said.name == _OWN_SCALE:
            scale = f"TRY_CAST({member}::JSON ->> '$.scale' AS INTEGER)"
            decoded = f"from_bytes({member}::JSON, {member}::JSON ->> '$.value', {scale})::VARCHAR"
        elif said.type == "bytes" and said.name == "None":
            decoded = f"printed_bytes({member})"
        else:
            continue
        whens.append(f"WHEN {literal(name)} THEN {decoded}")
    value = f"CASE name {' '.join(whens)} ELSE {member} END" if whens else member
    return f"""
    CASE WHEN len({names}) > 0 THEN '{{' || array_to_string(list_transform(list_sort({names}), lambda name:
      to_json(name)::VARCHAR || ':' || {value}), ',') || '}}' END
    """


def _epoch(column: Column) -> str:
    """SQL for 1970-01-01 as a date or time."""
    return f"{column.kind.duckdb} '1970-01-01'"


def _typed(part: _Part, column: Column, raw: str) -> str:
    """SQL for the value of a column, null if `raw` is not exactly of its type."""
    kind = column.kind
    if kind.name in _PLAIN_TEXTS:
        return f"plain_text({raw})"
    if kind.is_text:
        said = part.declared(column)
        printed = f"WHEN NOT is_unavailable({raw}) THEN printed({raw}::VARCHAR, {part.recipe(column)})"
        is_plain = kind.name == "other" and not (said and said.type == "bytes")
        return f"CASE {f'WHEN plain_text({raw}) IS NOT NULL THEN plain_text({raw})' if is_plain else ''} {printed} END"
    if kind.type == BYTES:
        return _bytes(part, column, raw)
    if kind.type == BOOLEAN:
        return f"truth({raw})"
    if kind.type == DATE:
        return _day(part, column, raw)
    if kind.type == TIME:
        return f"""CASE WHEN starts_with({raw}::VARCHAR, '"') THEN iso_clock({raw}) {_counted(part, column, raw)} END"""
    if kind.type == TIMESTAMP:
        moment = "iso_moment" if kind.name == "timestamptz" else "local_moment"
        return f"CASE WHEN looks_iso({raw}) THEN {moment}({raw}) {_counted(part, column, raw)} END"
    if kind.is_decimal:
        decimal = f"DECIMAL({kind.type.precision}, {kind.type.scale})"
        plain = f"TRY_CAST({raw} ->> '$' AS {decimal})"  # exact if it prints as it arrived, as most values do
        return (
            f"""CASE WHEN '"' || {plain}::VARCHAR || '"' = {raw}::VARCHAR THEN {plain} """
            f"ELSE TRY_CAST(decimal_text({raw}, {kind.type.scale}) AS {decimal}) END"
        )
    if pa.types.is_integer(column.type):
        number = f"TRY_CAST(whole({raw}) AS {'BIGINT' if column.type == pa.int64() else 'INTEGER'})"
    elif column.type == pa.float32():
        single = f"TRY_CAST(real_number({raw}) AS FLOAT)"
        number = f"CASE WHEN isfinite({single}) THEN {single} END"
    else:
        number = f"real_number({raw})"
    if part.declared(column) is not None or part.settings.decimals == "string":
        return number
    return f"CASE WHEN NOT may_be_base64({raw}) THEN {number} END"


def _bytes(part: _Part, column: Column, raw: str) -> str:
    """SQL for bytes: in base64, or in hexadecimal digits where something says so."""
    said = part.declared(column)
    mode = "bytes" if said is not None and said.type == "bytes" else part.settings.binary
    text = f"({raw} ->> '$')"
    whens = [
        f"WHEN NOT starts_with({raw}::VARCHAR, '\"') OR is_unavailable({raw}) THEN NULL",
        f"WHEN starts_with({text}, '\\x') THEN TRY(unhex(substr({text}, 3)))",
    ]
    if mode == "hex":
        whens.append(f"ELSE TRY(unhex({text}))")
    else:
        if mode is None:
            whens.append(f"WHEN may_be_hex({raw}) THEN NULL")
        whens.append(f"ELSE TRY(from_base64(translate({text}, '-_', '+/')))")
    return f"CASE {' '.join(whens)} END"


def _counted(part: _Part, column: Column, raw: str) -> str:
    """The WHEN that takes a number as a time in its unit; nothing where no unit is known."""
    unit, is_default = part.unit(column)
    if unit is None:
        return ""
    is_time = column.type == TIME
    least, most = (n * unit.denominator // unit.numerator for n in (_DAY if is_time else _YEARS))
    is_sound = f"whole({raw}) BETWEEN {least} AND {most}"
    if unit.denominator > 1:
        is_sound += f" AND whole({raw}) % {unit.denominator} = 0"
    if is_default and unit == _MICROS:
        doubtful = _DOUBTFUL_TIMES if is_time else _DOUBTFUL
        is_sound += f" AND whole({raw}) NOT BETWEEN {doubtful[0]} AND {doubtful[1]}"
    micros = f"whole({raw}) * {unit.numerator} // {unit.denominator}"
    moment = f"TIME '00:00:00' + to_microseconds({micros})" if is_time else f"make_timestamp({micros})"
    return f"WHEN {is_sound} THEN {moment}"


# Microseconds of a day, and of the years 1 to 9999: beyond them a number is a sentinel (PostgreSQL's infinity) or has
# another unit.
_DAY, _YEARS = (0, 86_399_999_999), (-62_135_596_800_000_000, 253_402_300_799_999_999)


# These microseconds are of early 1970, and as milliseconds they are of 1990 to 2286. Where a mere default says
# microseconds that decides nothing: better to ask than to land all of a connector's times in 1970.
_DOUBTFUL = (631_152_000_000, 9_999_999_999_999)
# These microseconds are of the first minute and a half of a day, and as milliseconds of any time of it.
_DOUBTFUL_TIMES = (1, 86_399_999)


def _day(part: _Part, column: Column, raw: str) -> str:
    """SQL for a date: a number counts days, unless the event's schema says a unit of times: then whole days only."""
    said = part.declared(column)
    unit = _TIMES.get(said.name, _DAYS) if said is not None else _DAYS
    if unit == _DAYS:
        return f"day({raw})"
    per_day = _DAYS.numerator * unit.denominator // unit.numerator
    return f"CASE WHEN whole({raw}) % {per_day} = 0 THEN day(to_json(whole({raw}) // {per_day})) END"


def _reason(part: _Part) -> str:
    """SQL for what is wrong with an event first; null if nothing is."""
    table = part.table
    full = (
        f"is the source table REPLICA IDENTITY FULL? ALTER TABLE {table.sql_at(part.connector)} REPLICA IDENTITY FULL;"
    )
    checks = [
        "CASE WHEN twice IS NOT NULL THEN 'its JSON has ' || to_json(twice) || ' twice in one object: "
        "which of the two counts cannot be known' END",
        "CASE WHEN op IS NULL OR op NOT IN ('c', 'u', 'd', 'r') "
        "THEN 'its op is ' || COALESCE('\"' || op || '\"', 'missing') || ', not one of c, u, d, r, t' END",
        "CASE WHEN committed_at IS NULL "
        "THEN 'it has no commit time: source.ts_us, ts_ns and ts_ms are all missing' END",
        f"CASE WHEN op IN ('u', 'd') AND before IS NULL THEN 'it has no before image: {full}' END",
        "CASE WHEN op IN ('c', 'u', 'r') AND after IS NULL THEN 'it has no after image' END",
    ]
    not_sent = "list_filter(before_extra, lambda name: is_unavailable(member(doc, '/before', name)))[1]"
    checks.append(  # one CASE in the other: DuckDB evaluates both sides of an AND
        f"CASE WHEN len(before_extra) > 0 THEN CASE WHEN {_MAY_LACK_VALUES} "
        f"THEN 'column ' || {not_sent} || {literal(f' of the before image is {_NOT_SENT}')} END END"
    )
    for image, hint in (("before", f"; {full}"), ("after", "")):
        where = f"of the {image} image"
        checks.append(
            f"CASE WHEN {image} IS NOT NULL AND len({image}_missing) > 0 "
            f"THEN 'column ' || {image}_missing[1] || ' {where} is missing{hint}' END"
        )
        for c in table.columns:
            raw = f"raw_{image}.{c.sql}"
            column = f"column {part.source(c)} {where}"
            why = _not_one(part, c, raw)
            if part.may_be_zero_date(c):
                is_doubtful = f"{_typed(part, c, raw)} = {_epoch(c)}"
                why = f"CASE WHEN {is_doubtful} THEN {literal(_zero_date(part, c))} ELSE {why} END"
            if _may_be_large(c):
                why = f"CASE WHEN is_unavailable({raw}) THEN {literal(f', {_NOT_SENT}')} ELSE {why} END"
            wrong = f"{literal(f'{column} is ')} || left({raw}::VARCHAR, 80) || {why}"
            if not c.nullable:
                wrong = f"COALESCE({wrong}, {literal(f'{column} is null, but must not be{hint}')})"
            checks.append(f"CASE WHEN {image} IS NOT NULL AND {image}.{c.sql} IS NULL THEN {wrong} END")
    return f"COALESCE({', '.join(checks)})"


# Oracle does not log a large object that an update leaves alone, not even for the row before.
_NOT_SENT = (
    "the placeholder for a large value that the connector did not send, and the event does not have it elsewhere: keep "
    "the column out of the events (column.exclude.list)"
)
_MAY_LACK_VALUES = " OR ".join(f"contains(doc, {literal(text)})" for text in (_PLACEHOLDER, _PLACEHOLDER_BYTES))


def _zero_date(part: _Part, column: Column) -> str:
    """What to do about a date that may be a zero date, as the rest of a sentence."""
    if column.name in part.table.key:
        mend = "give the row another key, and discard this event"
    else:
        mend = (
            f"if the column has no zero dates, declare {part.source(column)} without NOT NULL; if it has, make it "
            "nullable in the source as well: they then arrive as NULL"
        )
    return f", which the connector sends for 1970-01-01 and for the zero date 0000-00-00 alike: {mend}"


def _not_one(part: _Part, column: Column, raw: str) -> str:
    """SQL for why a value is not one of its column's type."""
    kind = column.kind
    text = f", which is not {meaning(kind)}"
    if kind.type in (TIMESTAMP, TIME):
        unit, is_default = part.unit(column)
        precision = (
            f"declare in source_schema.sql what its numbers are, {part.source(column)} {kind.name}(3) for milliseconds "
            f"or {kind.name}(6) for microseconds"
        )
        if unit is None:
            number = f"{text}: nothing says its unit; {precision}"
        else:
            number = f"{text} in {unit.name}"
            if is_default:
                number += f", the default of a {part.connector} connector; if that is not its unit, {precision}"
        digits = "; digits beyond microseconds cannot be kept, and are not rounded"
        is_text = f"""starts_with({raw}::VARCHAR, '"')""" if kind.type == TIME else f"looks_iso({raw})"
        return (
            f"CASE WHEN NOT {is_text} AND whole({raw}) IS NOT NULL THEN {literal(number)} "
            f"WHEN {is_text} AND has_finer_digits({raw}) THEN {literal(text + digits)} ELSE {literal(text)} END"
        )
    doubt = f", which may be a number or the base64 of one; {_SCHEMAS}"
    if kind.is_decimal:
        number = f"; of a number that is not whole only 15 digits can be trusted, {_EXACT}"
        return (
            f"CASE WHEN starts_with({raw}::VARCHAR, '{{\"{_DOUBT}') THEN {literal(doubt)} "
            f"WHEN regexp_full_match({raw}::VARCHAR, '-?[0-9]+[.eE].*') "
            f"THEN {literal(text + number)} ELSE {literal(text)} END"
        )
    is_number = pa.types.is_integer(column.type) or pa.types.is_floating(column.type)
    if is_number and part.declared(column) is None and part.settings.decimals != "string":
        is_doubtful = f"TRY_CAST({raw} ->> '$' AS DOUBLE) IS NOT NULL AND may_be_base64({raw})"
        return f"CASE WHEN {is_doubtful} THEN {literal(doubt)} ELSE {literal(text)} END"
    if kind.name == "numeric":
        return (
            f"CASE WHEN may_be_base64({raw}) THEN {literal(doubt)} WHEN starts_with({raw}::VARCHAR, '\"') "
            f"THEN {literal(text)} ELSE {literal(f'{text} with all its digits: {_EXACT}')} END"
        )
    if kind.type == BYTES:
        hexadecimal = f", which may be bytes in base64 or in hexadecimal digits; {_SCHEMAS}"
        return f"CASE WHEN may_be_hex({raw}) THEN {literal(hexadecimal)} ELSE {literal(text)} END"
    if kind.name == "interval":
        number = (
            f"{text}: a number cannot say its months and days; interval.handling.mode=string has the connector say them"
        )
        if part.connector in _MYSQL:
            number = f"{text}: nothing says its unit; {_SCHEMAS}"
        return f"CASE WHEN whole({raw}) IS NOT NULL THEN {literal(number)} ELSE {literal(text)} END"
    return literal(text)


_EXACT = (
    "decimal.handling.mode=string or precise (with the converter's decimal.format=BASE64) has the connector send all "
    "of them"
)
