"""PostgreSQL's text output as Arrow images, a column at a time.

Both ways out of PostgreSQL, the replication stream and the snapshot's COPY, end in `images`, so that a row looks the
same whichever way it came, and the same as `lockstep ingest` makes it of Debezium's JSON.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime
from decimal import Decimal
from functools import cached_property
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from lockstep.schema import BIGINT, DATE, DOUBLE, INT, REAL, TEXT, TIMESTAMP, Column, Table

# Session settings under which PostgreSQL's text output is what `typed` reads.
SESSION = {
    "TimeZone": "UTC",
    "DateStyle": "ISO,YMD",
    "IntervalStyle": "postgres",
    "extra_float_digits": "1",
    "bytea_output": "hex",
}

_BOOL, _INT8, _INT2, _INT4, _TEXT, _OID = 16, 20, 21, 23, 25, 26
_FLOAT4, _FLOAT8, _BPCHAR, _VARCHAR, _DATE, _TIMESTAMP, _TIMESTAMPTZ = 700, 701, 1042, 1043, 1082, 1114, 1184

# The source types every value of which a landing column holds exactly, by type OID; the first is the one asked for.
_ACCEPTED: dict[pa.DataType, tuple[int, ...]] = {
    BIGINT: (_INT8, _INT4, _INT2),
    INT: (_INT4, _INT2),
    TEXT: (_TEXT, _VARCHAR, _BPCHAR),
    DOUBLE: (_FLOAT8,),
    REAL: (_FLOAT4,),
    DATE: (_DATE,),
    TIMESTAMP: (_TIMESTAMPTZ,),
}
_SQL_NAME: dict[pa.DataType, str] = {
    BIGINT: "bigint",
    INT: "integer",
    TEXT: "text",
    DOUBLE: "double precision",
    REAL: "real",
    DATE: "date",
    TIMESTAMP: "timestamptz",
}


@dataclass(frozen=True)
class SourceColumn:
    """A column as the source has it now."""

    name: str
    type_oid: int


@dataclass(frozen=True)
class Layout:
    """How rows of one source table, as it stands, become images of `table`."""

    table: Table
    columns: tuple[SourceColumn, ...]

    @cached_property
    def problem(self) -> str | None:
        """Why no row of this layout can land: a needed column is gone or of another type. None if all is well."""
        found = {c.name: c.type_oid for c in self.columns}
        for column in self.table.columns:
            if column.name not in found:
                return f"column {column.name} is gone from the source table"
            if found[column.name] not in _ACCEPTED[column.type]:
                return (
                    f"column {column.name} is no longer {_SQL_NAME[column.type]} in the source table "
                    f"(its type has OID {found[column.name]})"
                )
        return None

    def mend(self, qualified: str) -> list[str]:
        """A statement for each needed column that is gone or of another type; `qualified` is the table's SQL name."""
        found = {c.name: c.type_oid for c in self.columns}
        statements = []
        for column in self.table.columns:
            sql_type = _SQL_NAME[column.type]
            if column.name not in found:
                statements.append(f"ALTER TABLE {qualified} ADD COLUMN {column.sql} {sql_type};")
            elif found[column.name] not in _ACCEPTED[column.type]:
                statements.append(
                    f"ALTER TABLE {qualified} ALTER COLUMN {column.sql} TYPE {sql_type} USING {column.sql}::{sql_type};"
                )
        return statements


def images(
    layout: Layout, texts: Sequence[pa.Array], absent: np.ndarray | None, which: str
) -> tuple[pa.StructArray, dict[int, str]]:
    """The rows' images, and the reason of each row whose image breaks the landing contract, by row number.

    `texts` are the values of `layout.columns` as PostgreSQL prints them under SESSION. Where `absent` is true there
    is no image (null). `which` (before, after) is what reasons call the image. `layout.problem` must be None.
    """
    by_name = {c.name: text for c, text in zip(layout.columns, texts, strict=True)}
    reasons: dict[int, str] = {}
    arrays = []
    for column in layout.table.columns:
        text = by_name[column.name]
        values = typed(text, column.type)
        if values.null_count > (text.null_count if column.nullable else _count(absent)):
            _explain(reasons, column, text, values, absent, which)
        arrays.append(values)
    arrays.append(_extra(layout, by_name, absent))
    mask = None if absent is None else pa.array(absent)
    return pa.StructArray.from_arrays(arrays, fields=list(layout.table.image), mask=mask), reasons


def typed(text: pa.Array, to: pa.DataType) -> pa.Array:
    """The values as type `to`; null where a value is not exactly one: infinities, NaN, years beyond 1 to 9999."""
    if to == TEXT:
        return text
    try:
        # Timestamps always carry their offset under SESSION, and the log keeps them in UTC without it.
        values = text.cast(pa.timestamp("us", "UTC")).cast(TIMESTAMP) if to == TIMESTAMP else text.cast(to)
    except pa.ArrowInvalid:
        if len(text) == 1:
            return pa.nulls(1, to)
        half = len(text) // 2
        return pa.concat_arrays([typed(text[:half], to), typed(text[half:], to)])
    if pa.types.is_floating(to) and not pc.all(pc.is_finite(values), skip_nulls=True).as_py():
        return pc.if_else(pc.is_finite(values), values, pa.scalar(None, to))
    return values


def json_image(columns: Sequence[SourceColumn], values: Sequence[str | None]) -> dict[str, Any]:
    """One row as Debezium's JSON has it: numbers, booleans and null as such, times in ISO format, dates in days."""
    encoded = zip(columns, values, strict=True)
    return {c.name: json.loads(_encoder(c.type_oid)(v)) if v is not None else None for c, v in encoded}


def _count(absent: np.ndarray | None) -> int:
    return 0 if absent is None else int(np.count_nonzero(absent))


def _explain(
    reasons: dict[int, str],
    column: Column,
    text: pa.Array,
    values: pa.Array,
    absent: np.ndarray | None,
    which: str,
) -> None:
    wrong = pc.is_null(values).to_numpy(zero_copy_only=False)
    if absent is not None:
        wrong = wrong & ~absent
    for row in np.flatnonzero(wrong).tolist():
        value = text[row].as_py()
        if value is not None:
            reason = f"column {column.name} of the {which} image is {value[:80]!r}, which is not {_meaning(column)}"
        elif not column.nullable:
            reason = f"column {column.name} of the {which} image is null, but must not be"
        else:
            continue
        reasons.setdefault(row, reason)


def _meaning(column: Column) -> str:
    if column.type == DATE:
        return "a date"
    if column.type == TIMESTAMP:
        return "a time"
    return "a whole number in range" if pa.types.is_integer(column.type) else "a finite number"


def _extra(layout: Layout, by_name: dict[str, pa.Array], absent: np.ndarray | None) -> pa.Array:
    """The columns no model can name yet as one JSON object a row, names sorted; null where there are none."""
    known = {c.name for c in layout.table.columns}
    unknown = sorted((c for c in layout.columns if c.name not in known), key=lambda c: c.name)
    rows = len(next(iter(by_name.values())))
    if not unknown:
        return pa.nulls(rows, TEXT)
    members = []
    for column in unknown:
        name, encode = _quoted(column.name), _encoder(column.type_oid)
        members.append([f"{name}:{'null' if v is None else encode(v)}" for v in by_name[column.name].to_pylist()])
    objects = pa.array(["{" + ",".join(row) + "}" for row in zip(*members, strict=True)], TEXT)
    return objects if absent is None else pc.if_else(pa.array(absent), pa.scalar(None, TEXT), objects)


# JSON's escapes as DuckDB writes them, which is what `ingest` stores; everything else stays as it is, in UTF-8.
_ESCAPES = {i: f"\\u{i:04X}" for i in range(32)} | {
    ord(plain): escaped
    for plain, escaped in (
        ('"', '\\"'),
        ("\\", "\\\\"),
        ("\b", "\\b"),
        ("\f", "\\f"),
        ("\n", "\\n"),
        ("\r", "\\r"),
        ("\t", "\\t"),
    )
}


def _quoted(text: str) -> str:
    return f'"{text.translate(_ESCAPES)}"'


def _boolean(text: str) -> str:
    return "true" if text == "t" else "false"


def _float(text: str) -> str:
    """The shortest number that reads back the same, spelled as DuckDB spells it in JSON: as JavaScript does."""
    if text in ("NaN", "Infinity", "-Infinity"):
        return f'"{text}"'
    shortest = repr(float(text))
    digits, _, exponent = shortest.partition("e")
    if not exponent:
        return shortest
    if -7 < int(exponent) < 21:
        plain = f"{Decimal(shortest):f}"
        return plain if "." in plain else f"{plain}.0"
    return f"{digits}e{int(exponent)}"


def _timestamptz(text: str) -> str:
    """Debezium's ZonedTimestamp: always six digits of a second, and Z."""
    try:
        at = datetime.fromisoformat(text)
    except ValueError:  # infinity, or a year Python has not
        return _quoted(text)
    return f'"{at.astimezone(UTC):%Y-%m-%dT%H:%M:%S.%f}Z"'


def _timestamp(text: str) -> str:
    """Debezium's MicroTimestamp: microseconds since 1970."""
    try:
        at = datetime.fromisoformat(text).replace(tzinfo=UTC)
    except ValueError:
        return _quoted(text)
    since = at - datetime(1970, 1, 1, tzinfo=UTC)
    return str((since.days * 86_400 + since.seconds) * 1_000_000 + since.microseconds)


def _date(text: str) -> str:
    """Debezium's Date: days since 1970."""
    try:
        return str((date.fromisoformat(text) - date(1970, 1, 1)).days)
    except ValueError:
        return _quoted(text)


_ENCODERS: dict[int, Callable[[str], str]] = {
    **dict.fromkeys((_INT8, _INT4, _INT2, _OID), str),
    **dict.fromkeys((_FLOAT4, _FLOAT8), _float),
    _BOOL: _boolean,
    _TIMESTAMPTZ: _timestamptz,
    _TIMESTAMP: _timestamp,
    _DATE: _date,
}


def _encoder(type_oid: int) -> Callable[[str], str]:
    """From PostgreSQL's text to JSON; a type without its own (numeric among them: it stays exact) becomes a string."""
    return _ENCODERS.get(type_oid, _quoted)
