"""The tables of a recording of Debezium's events, as `source_schema.sql` declares them.

An event whose converter has `schemas.enable=true` says the type of each column in the value's schema, and the table's
key in the key's. The last event of a table is the one that counts: that is how the table is now.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from lockstep.declaration import Declaration, SourceColumn, SourceTable, declare
from lockstep.errors import LockstepError
from lockstep.lines import LineReader
from lockstep.names import DATABASES_AS_SCHEMAS

_CHUNK = 8 << 20

_BITS = "io.debezium.data.Bits"
# By the name of the schema, which says what the value means.
_MEANINGS = {
    "io.debezium.time.Date": "date",
    "io.debezium.time.IsoDate": "date",
    "org.apache.kafka.connect.data.Date": "date",
    "io.debezium.time.Time": "time",
    "io.debezium.time.MicroTime": "time",
    "io.debezium.time.NanoTime": "time",
    "io.debezium.time.IsoTime": "time",
    "org.apache.kafka.connect.data.Time": "time",
    "io.debezium.time.ZonedTime": "time with time zone",
    "io.debezium.time.Timestamp": "timestamp",
    "io.debezium.time.MicroTimestamp": "timestamp",
    "io.debezium.time.NanoTimestamp": "timestamp",
    "io.debezium.time.IsoTimestamp": "timestamp",
    "org.apache.kafka.connect.data.Timestamp": "timestamp",
    "io.debezium.time.ZonedTimestamp": "timestamptz",
    "io.debezium.time.MicroDuration": "interval",
    "io.debezium.time.Interval": "interval",
    "io.debezium.time.Year": "integer",
    "io.debezium.data.VariableScaleDecimal": "numeric",
    "io.debezium.data.Uuid": "uuid",
    "io.debezium.data.Json": "jsonb",
    "io.debezium.data.Xml": "xml",
    "io.debezium.data.Enum": "text",
    "io.debezium.data.EnumSet": "text",
    "io.debezium.data.Ltree": "text",
    _BITS: "bit varying",
}
_DECIMAL = "org.apache.kafka.connect.data.Decimal"
_PLAIN = {
    "int8": "smallint",
    "int16": "smallint",
    "int32": "integer",
    "int64": "bigint",
    "float": "real",
    "float32": "real",
    "double": "double precision",
    "float64": "double precision",
    "boolean": "boolean",
    "string": "text",
    "bytes": "bytea",
}
_NO_SCHEMA = (
    "its events do not name their types. Record them with a converter that has schemas.enable=true, for keys and "
    "values, or write CREATE TABLE statements into source_schema.sql"
)
_NO_KEY = (
    "the recording does not hold its key: record keys with their schemas too (kafka-console-consumer with "
    "print.key=true, or kcat -J), or write its CREATE TABLE into source_schema.sql"
)


@dataclass
class _Seen:
    """What the events of a table have said so far. `fields` and `key` are schemas of Kafka Connect."""

    connector: str
    fields: Sequence[Any] = ()
    key: Sequence[Any] = field(default_factory=list)


def read(name: str, wanted: Sequence[str]) -> tuple[Declaration, str | None]:
    """Declare the tables of the recording, or those in `wanted`; with it why the recording ends early, if it does.

    `name` is a file of JSON lines, plain or gzip. Raises LockstepError if it holds no such table.
    """
    reader = LineReader([name])
    seen: dict[tuple[str | None, str], _Seen] = {}
    for chunk in reader.chunks(_CHUNK):
        for line in chunk["line"].to_pylist():
            _look(line, seen)
    if not seen:
        raise LockstepError(f"{name} holds no change events of Debezium's.")
    if not any(found.fields for found in seen.values()):
        held = ", ".join(sorted(table for _, table in seen))
        raise LockstepError(f"{name} holds changes of {held}, but {_NO_SCHEMA}.")
    tables = [
        SourceTable(
            table,
            [_column(column, found.connector) for column in found.fields],
            [str(column.get("field")) for column in found.key],
            schema,
            is_named=bool(wanted),
            unfit=_unfit(found),
        )
        for (schema, table), found in seen.items()
    ]
    chosen = [] if wanted else tables
    for n in wanted:
        found = [t for t in tables if n in (t.qualified, f"{t.schema}.{t.name}", t.name)]
        if len(found) != 1:
            which = f"several tables {n}" if found else f"no events of a table {n}"
            raise LockstepError(f"{name} holds {which}. It has {', '.join(t.qualified for t in found or tables)}.")
        chosen += [t for t in found if t not in chosen]
    return declare(f"The source tables, as the events of {name} name them.", chosen), reader.problem


def _unfit(found: _Seen) -> str | None:
    """Why the table cannot be declared, as the rest of a sentence that begins with its name."""
    if not found.fields:
        return f"is left out: {_NO_SCHEMA}"
    return None if found.key else f"is left out: {_NO_KEY}"


def _look(line: str, seen: dict[tuple[str | None, str], _Seen]) -> None:
    """Note what a line says of its table, if it is a change event."""
    key, value = _key_and_value(line)
    schema, payload = _opened(value)
    source = payload.get("source") if isinstance(payload, dict) and "op" in payload else None
    if not isinstance(source, dict) or not isinstance(source.get("table"), str):
        return
    schema_name = source.get("db" if source.get("connector") in DATABASES_AS_SCHEMAS else "schema")
    found = seen.setdefault((schema_name, source["table"]), _Seen(str(source.get("connector"))))
    images = {part.get("field"): part for part in _fields(schema)}
    found.fields = _fields(images.get("after")) or _fields(images.get("before")) or found.fields
    found.key = _fields(_opened(key)[0]) or found.key


def _key_and_value(line: str) -> tuple[Any, Any]:
    """A record's key and value: of a line of kcat -J, a line with a tab between them, or a line that is the value."""
    document = _json(line)
    if document is None and "\t" in line:
        key, _, value = line.rpartition("\t")
        return _json(key), _json(value)
    if isinstance(document, dict) and "schema" not in document and "op" not in document:
        return _unquoted(document.get("key")), _unquoted(document.get("payload", document.get("value")))
    return None, document


def _opened(document: Any) -> tuple[Any, Any]:
    """A document's schema and payload; one without a schema is its own payload."""
    if isinstance(document, dict) and "schema" in document and "payload" in document:
        return document["schema"], document["payload"]
    return None, document


def _json(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return None


def _unquoted(value: Any) -> Any:
    return _json(value) if isinstance(value, str) else value


def _fields(schema: Any) -> list[Any]:
    found = schema.get("fields") if isinstance(schema, dict) else None
    return [column for column in found if isinstance(column, dict)] if isinstance(found, list) else []


def _column(column: Mapping[str, Any], connector: str) -> SourceColumn:
    kind = _type(column)
    if column.get("name") == _BITS and connector in DATABASES_AS_SCHEMAS:  # which has no bit strings of varying length
        kind = f"bit({_parameters(column).get('length')})"
    said = str(column.get("name") or column.get("type"))
    unfit = None if kind else "the change log has no such type; it travels in `extra`, as JSON"
    return SourceColumn(str(column.get("field")), kind or said, column.get("optional") is False, unfit)


def _parameters(column: Mapping[str, Any]) -> Mapping[str, Any]:
    found = column.get("parameters")
    return found if isinstance(found, dict) else {}


def _type(column: Mapping[str, Any]) -> str | None:
    """The SQL type of a field of Kafka Connect; None if there is none."""
    name, kind = column.get("name"), column.get("type")
    if name == _DECIMAL:
        found = _parameters(column)
        return f"numeric({found.get('connect.decimal.precision', 38)}, {found.get('scale', 0)})"
    if name in _MEANINGS:
        return _MEANINGS[str(name)]
    if kind == "array" and isinstance(column.get("items"), dict):
        items = _type(column["items"])
        return f"{items}[]" if items else None
    return _PLAIN.get(str(kind)) if name is None else None
