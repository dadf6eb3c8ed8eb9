"""The DuckDB connection that events are parsed in, and the macros by which one JSON value becomes one of a type."""

from __future__ import annotations

import base64
import functools
import json
from collections.abc import Callable
from typing import Any

import duckdb
import pyarrow as pa

from lockstep.kinds import TEXT, Kind
from lockstep.schema import literal
from lockstep.texts import Said, converted, decimal_text, of_json, unscaled

# What a connector puts in the place of a large value that an update left alone (TOAST), as JSON: in a text, in bytes,
# in arrays of texts, bytes and whole numbers, and in an hstore, as an object or as a text.
PLACEHOLDER = "__debezium_unavailable_value"

PLACEHOLDER_BYTES = base64.b64encode(PLACEHOLDER.encode()).decode()

UNAVAILABLE_TEXTS = (
    PLACEHOLDER,
    PLACEHOLDER_BYTES,
    json.dumps({PLACEHOLDER: PLACEHOLDER}, separators=(",", ":")),
)

_UNAVAILABLE = [
    json.dumps(value, separators=(",", ":"))
    for value in (
        *UNAVAILABLE_TEXTS,
        [PLACEHOLDER],
        [PLACEHOLDER_BYTES],
        list(PLACEHOLDER.encode()),
        {PLACEHOLDER: PLACEHOLDER},
    )
]

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
/* A decimal as a JSON string, from the base64 of its unscaled value; else an object, which is not a number. */
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
/* The years 1 to 9999, as in values.py. */
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
CREATE OR REPLACE TEMP MACRO day_of(days) AS CASE
  WHEN days BETWEEN -719162 AND 2932896 THEN DATE '1970-01-01' + days::INTEGER
END;
CREATE OR REPLACE TEMP MACRO day(raw) AS CASE
  WHEN whole(raw) IS NOT NULL THEN day_of(whole(raw))
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
/* Bytes from the usual text of base64, that cannot be hexadecimal digits. */
CREATE OR REPLACE TEMP MACRO base64_bytes(text) AS CASE
  WHEN regexp_full_match(text, '[0-9A-Za-z+/]*={0,2}') AND NOT regexp_full_match(text, '[0-9a-f]+')
    THEN TRY(from_base64(text))
END;
/* Bytes as JSON as PostgreSQL prints them, from base64. */
CREATE OR REPLACE TEMP MACRO printed_bytes(raw) AS CASE
  WHEN starts_with(raw, '"') THEN COALESCE('"\\x' || lower(hex(TRY(from_base64(raw::JSON ->> '$')))) || '"', raw)
  ELSE raw
END;
"""


def connect() -> duckdb.DuckDBPyConnection:
    """An in-memory connection whose session is in UTC, with the macros that `parse` uses."""
    con = duckdb.connect(":memory:")
    con.execute("SET TimeZone = 'UTC'")
    con.execute("SET disabled_optimizers = 'join_filter_pushdown'")  # it gives Arrow's tables filters they cannot apply
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


_RECIPES: list[Callable[[str], str | None]] = []


@functools.cache
def recipe(kind: Kind, said: Said) -> int:
    _RECIPES.append(of_json(kind, said))
    return len(_RECIPES) - 1


def _printed(raws: pa.ChunkedArray, recipes: pa.ChunkedArray) -> pa.Array:
    """Values of a kind that lands as text, from JSON; null where it is not exactly one of the kind's."""
    recipe = _RECIPES[recipes[0].as_py()] if len(recipes) else None
    return pa.array([None if raw is None or recipe is None else recipe(raw) for raw in raws.to_pylist()], TEXT)
