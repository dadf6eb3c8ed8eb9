"""PostgreSQL's text output as Arrow images, a column at a time.

Both ways out of PostgreSQL, the replication stream and the snapshot's COPY, end in `images`, so that a row looks the
same whichever way it came, and the same as `lockstep ingest` makes it of Debezium's JSON.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime
from functools import cached_property
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from lockstep.kinds import BOOLEAN, BYTES, TEXT, TIME, TIMESTAMP, Kind, meaning
from lockstep.names import POSTGRESQL
from lockstep.schema import Column, Table, quoted
from lockstep.texts import converted, float_json, landed, quoted_json

# Session settings under which PostgreSQL's text output is what `typed` reads.
SESSION = {
    "TimeZone": "UTC",
    "DateStyle": "ISO,YMD",
    "IntervalStyle": "postgres",
    "extra_float_digits": "1",
    "bytea_output": "hex",
    "lc_monetary": "C",
}

_BOOL, _BYTEA, _INT8, _INT2, _INT4, _TEXT, _OID, _JSON, _NAME = 16, 17, 20, 21, 23, 25, 26, 114, 19
_FLOAT4, _FLOAT8, _MONEY, _BPCHAR, _VARCHAR, _DATE, _TIME = 700, 701, 790, 1042, 1043, 1082, 1083
_TIMESTAMP, _TIMESTAMPTZ, _INTERVAL, _TIMETZ, _BIT, _VARBIT = 1114, 1184, 1186, 1266, 1560, 1562
_NUMERIC, _UUID, _JSONB = 1700, 2950, 3802

_TEXTS = (_TEXT, _VARCHAR, _BPCHAR, _NAME)
# The source types whose every value a landing column holds, except what goes to quarantine, by type OID. Kinds that
# are not here (arrays, and all that lands as text) take whatever the source prints.
_ACCEPTED: dict[str, tuple[int, ...]] = {
    "bigint": (_INT8, _INT4, _INT2),
    "integer": (_INT4, _INT2),
    "smallint": (_INT4, _INT2),  # stored as an integer, like before there was a difference
    "boolean": (_BOOL,),
    "double precision": (_FLOAT8,),
    "real": (_FLOAT4,),
    "numeric": (_NUMERIC,),
    "money": (_MONEY,),
    "text": _TEXTS,
    "uuid": (_UUID, *_TEXTS),
    "json": (_JSON, _JSONB, *_TEXTS),
    "date": (_DATE,),
    "time": (_TIME,),
    "timetz": (_TIMETZ,),
    "timestamp": (_TIMESTAMP,),
    "timestamptz": (_TIMESTAMPTZ,),
    "interval": (_INTERVAL,),
    "bytea": (_BYTEA,),
    "bit": (_BIT, _VARBIT),
    "varbit": (_BIT, _VARBIT),
}
_NO_TYPE = 0
_NAMES = {
    _INT2: "smallint",
    _INT4: "integer",
    _INT8: "bigint",
    _TEXT: "text",
    _VARCHAR: "varchar",
    700: "real",
    701: "double precision",
    1700: "numeric",
}
_FIRST_OWN = 16384  # OIDs from here on are of the database's own types: domains, enums, those of extensions


def _accepts(kind: Kind, type_oid: int) -> bool:
    return type_oid >= _FIRST_OWN or type_oid in _ACCEPTED.get(kind.name, (type_oid,))


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
            name = column.at(POSTGRESQL)
            if name not in found:
                return f"column {name} is gone from the source table"
            if not _accepts(column.kind, found[name]):
                return (
                    f"column {name} is no longer {column.kind.source_type} in the source table "
                    f"(its type has OID {found[name]})"
                )
        return None

    @property
    def reason(self) -> str:
        """The problem as the reason of an event in quarantine, with the way out: the declaration follows the source."""
        found = {c.name: c.type_oid for c in self.columns}
        column = next(c for c in self.table.columns if not _accepts(c.kind, found.get(c.at(POSTGRESQL), _NO_TYPE)))
        name = column.at(POSTGRESQL)
        change = f"declare it as {_NAMES.get(found[name], 'what it is')}" if name in found else "leave it out of"
        place = "in source_schema.sql" if name in found else "source_schema.sql"
        return (
            f"{self.problem}: {change} {place}, start `lockstep capture` again, then `lockstep quarantine retry --all`"
        )

    @property
    def unknown(self) -> list[SourceColumn]:
        """The columns that the project does not declare, by name: they travel in `extra`."""
        known = {c.at(POSTGRESQL) for c in self.table.columns}
        return sorted((c for c in self.columns if c.name not in known), key=lambda c: c.name)

    def mend(self, qualified: str) -> list[str]:
        """What mends each needed column that is gone or of another type; `qualified` is the table's SQL name."""
        found = {c.name: c.type_oid for c in self.columns}
        statements, remarks = [], []
        for column in self.table.columns:
            name, sql_type = column.at(POSTGRESQL), column.kind.source_type
            sql = quoted(name)
            alike = [other for other in found if other.lower() == name.lower()]
            if name not in found and alike:
                remarks.append(f"-- write {quoted(alike[0])} in source_schema.sql, in quotes: without, it is {name}")
            elif name not in found:
                statements.append(f"ALTER TABLE {qualified} ADD COLUMN {sql} {sql_type};")
                remarks.append(f"-- or leave {name} out of source_schema.sql")
            elif not _accepts(column.kind, found[name]):
                statements.append(
                    f"ALTER TABLE {qualified} ALTER COLUMN {sql} TYPE {sql_type} USING {sql}::{sql_type};"
                )
                remarks.append(f"-- or declare {name} as {_NAMES.get(found[name], 'what it is')} in source_schema.sql")
        return statements + remarks


def images(
    layout: Layout, texts: Sequence[pa.Array], absent: np.ndarray | None, which: str
) -> tuple[pa.StructArray, dict[int, str]]:
    """The rows' images, and the reason of each row whose image breaks the landing contract, by row number.

    `texts` are the values of `layout.columns` as PostgreSQL prints them under SESSION. Where `absent` is true there
    is not an image (null). `which` (before, after) is what reasons call the image. `layout.problem` must be None.
    """
    by_name = {c.name: text for c, text in zip(layout.columns, texts, strict=True)}
    reasons: dict[int, str] = {}
    arrays = []
    for column in layout.table.columns:
        text = by_name[column.at(POSTGRESQL)]
        values = typed(text, column.kind)
        if values.null_count > (text.null_count if column.nullable else _count(absent)):
            _explain(reasons, column, text, values, absent, which)
        arrays.append(values)
    arrays.append(_extra(layout, by_name, absent))
    mask = None if absent is None else pa.array(absent)
    return pa.StructArray.from_arrays(arrays, fields=list(layout.table.image), mask=mask), reasons


def typed(text: pa.Array, kind: Kind) -> pa.Array:
    """The values as the kind is stored; null where a value is not exactly one: infinities, NaN, years beyond 1 to 9999.

    An array of text goes in, as PostgreSQL prints values of the kind.
    """
    if kind.type == TEXT:
        convert = landed(kind)
        return text if convert is None else pa.array(converted(text.to_pylist(), convert), TEXT)
    if kind.type == BOOLEAN:
        return pc.if_else(pc.is_in(text, value_set=_BOOLEANS), pc.equal(text, "t"), pa.scalar(None, BOOLEAN))
    if kind.type == BYTES:
        return _bytes(text)
    if kind.type == TIME:
        moments = _cast(pc.binary_join_element_wise("1970-01-01", text, " "), TIMESTAMP)
        return moments.cast(pa.int64()).cast(TIME)
    if kind.name == "timestamptz":
        # Timestamps always carry their offset under SESSION, and the log keeps them in UTC without it.
        return _cast(text, pa.timestamp("us", "UTC")).cast(TIMESTAMP)
    if kind.name == "money":
        text = pc.replace_substring_regex(text, "[$,]", "")
    values = _cast(text, kind.type)
    if pa.types.is_floating(kind.type) and not pc.all(pc.is_finite(values), skip_nulls=True).as_py():
        return pc.if_else(pc.is_finite(values), values, pa.scalar(None, kind.type))
    return values


_BOOLEANS = pa.array(["t", "f"])


def _cast(text: pa.Array, to: pa.DataType) -> pa.Array:
    """Values cast; null where one cannot be."""
    try:
        return text.cast(to)
    except pa.ArrowInvalid:
        if len(text) == 1:
            return pa.nulls(1, to)
        half = len(text) // 2
        return pa.concat_arrays([_cast(text[:half], to), _cast(text[half:], to)])


def _bytes(text: pa.Array) -> pa.Array:
    """Bytes from hexadecimal digits as PostgreSQL prints them: all values' digits are decoded at once."""
    text = pc.if_else(pc.match_substring_regex(text, r"^\\x([0-9a-f]{2})*$"), text, pa.scalar(None, TEXT))
    digits = pc.fill_null(pc.utf8_slice_codeunits(text, 2), "")
    ends = np.concatenate(([0], np.cumsum(pc.binary_length(digits).to_numpy() // 2))).astype(np.int32)
    valid = np.packbits(text.is_valid().to_numpy(zero_copy_only=False), bitorder="little")
    data = bytes.fromhex("".join(digits.to_pylist()))
    buffers = [pa.py_buffer(valid), pa.py_buffer(ends), pa.py_buffer(data)]
    return pa.Array.from_buffers(BYTES, len(text), buffers)


def json_image(layout: Layout, values: Sequence[str | None]) -> dict[str, Any]:
    """One row as JSON that `lockstep ingest` reads as this module reads what PostgreSQL prints.

    Columns that the project does not know are as Debezium has them: dates in days, say. Of those that it knows, none
    has a number whose unit would have to be known: times are in ISO format, decimals and all else as PostgreSQL prints
    them.
    """
    unknown = {c.name for c in layout.unknown}
    image: dict[str, Any] = {}
    for column, value in zip(layout.columns, values, strict=True):
        is_printed = column.name not in unknown and column.type_oid == _TIMESTAMP
        encode = quoted_json if is_printed else _encoder(column.type_oid)
        image[column.name] = None if value is None else json.loads(encode(value))
    return image


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
            reason = f"column {column.name} of the {which} image is {value[:80]!r}, which is not {meaning(column.kind)}"
        elif not column.nullable:
            reason = f"column {column.name} of the {which} image is null, but must not be"
        else:
            continue
        reasons.setdefault(row, reason)


def _extra(layout: Layout, by_name: dict[str, pa.Array], absent: np.ndarray | None) -> pa.Array:
    """The columns no model can name yet as one JSON object per row, names sorted; null where there are none."""
    unknown = layout.unknown
    rows = len(next(iter(by_name.values())))
    if not unknown:
        return pa.nulls(rows, TEXT)
    members = []
    for column in unknown:
        name, encode = quoted_json(column.name), _encoder(column.type_oid)
        members.append([f"{name}:{'null' if v is None else encode(v)}" for v in by_name[column.name].to_pylist()])
    objects = pa.array(["{" + ",".join(row) + "}" for row in zip(*members, strict=True)], TEXT)
    return objects if absent is None else pc.if_else(pa.array(absent), pa.scalar(None, TEXT), objects)


def _boolean(text: str) -> str:
    return "true" if text == "t" else "false"


def _timestamptz(text: str) -> str:
    """Debezium's ZonedTimestamp: always six digits of a second, and Z."""
    try:
        at = datetime.fromisoformat(text)
    except ValueError:  # infinity, or a year Python has not
        return quoted_json(text)
    return f'"{at.astimezone(UTC):%Y-%m-%dT%H:%M:%S.%f}Z"'


def _timestamp(text: str) -> str:
    """Debezium's MicroTimestamp: microseconds since 1970."""
    try:
        at = datetime.fromisoformat(text).replace(tzinfo=UTC)
    except ValueError:
        return quoted_json(text)
    since = at - datetime(1970, 1, 1, tzinfo=UTC)
    return str((since.days * 86_400 + since.seconds) * 1_000_000 + since.microseconds)


def _date(text: str) -> str:
    """Debezium's Date: days since 1970."""
    try:
        return str((date.fromisoformat(text) - date(1970, 1, 1)).days)
    except ValueError:
        return quoted_json(text)


_ENCODERS: dict[int, Callable[[str], str]] = {
    **dict.fromkeys((_INT8, _INT4, _INT2, _OID), str),
    **dict.fromkeys((_FLOAT4, _FLOAT8), float_json),
    _BOOL: _boolean,
    _TIMESTAMPTZ: _timestamptz,
    _TIMESTAMP: _timestamp,
    _DATE: _date,
}


def _encoder(type_oid: int) -> Callable[[str], str]:
    """From PostgreSQL's text to JSON; a type without its own (numeric among them: it stays exact) becomes a string."""
    return _ENCODERS.get(type_oid, quoted_json)
