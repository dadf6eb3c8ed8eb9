"""The fast lane: change events in which nothing is unusual, typed by Arrow's JSON reader in one pass.

Arrow reads a piece of the input into one struct per event, strictly: a member that the struct lacks, one that stands
twice and a value of another JSON type fail the piece. It is then halved, until few events are left with the one that
failed. Of what was read, only values that are plainly in the expected form are taken. All other events go the careful
way, so one place alone decides what an unusual event means. tests/unit/test_plain.py shows that both ways agree.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.json as pj

from lockstep.debezium.envelope import ENVELOPE, records_of, register
from lockstep.debezium.images import identified
from lockstep.debezium.macros import PLACEHOLDER, PLACEHOLDER_BYTES
from lockstep.debezium.pieces import Piece, groups, null_members, places
from lockstep.debezium.settings import Part, Settings
from lockstep.debezium.values import PLAIN_TEXTS, counted, epoch, finite
from lockstep.kinds import BOOLEAN, BYTES, DATE, TIME, TIMESTAMP, Kind
from lockstep.names import DATABASES_AS_SCHEMAS
from lockstep.schema import TABLES, Column, Table, literal, quoted
from lockstep.texts import FLOATS, INTEGERS

_FEW, _MOST_FAILURES = 16, 16  # events that are not halved further; pieces that may fail of about 4 MB
# An event with one of these is not plain: what a connector puts in the place of a large value, and a character that
# PostgreSQL's texts cannot have.
_UNUSUAL = (PLACEHOLDER.encode(), PLACEHOLDER_BYTES.encode(), b"\\u0000")


@dataclass(frozen=True)
class Taken:
    """What the fast lane took of a chunk: its rows of `records`, and the views of typed events by table."""

    records: pa.Table | None
    views: Mapping[str, Mapping[str, int]]  # with their numbers of rows
    rest: pa.Table  # lines for the careful lane

    def selects(self, table: Table, events: int) -> list[str]:
        """The SELECTs of `parsed_<table>` from its views, where `records` has so many plain events of the table."""
        views = self.views.get(table.name, {})
        is_own = "TRUE"
        if sum(views.values()) != events:  # some turned out to be of another table
            own = f"""is_plain AND kind = 'change' AND "table" = {literal(table.name)}"""
            is_own = f"ordinal IN (SELECT ordinal FROM records WHERE {own})"
        return [identified(table, f"SELECT * FROM {v} WHERE {is_own}", "NULL::VARCHAR") for v in views]


def take(con: duckdb.DuckDBPyConnection, lines: pa.Table, settings: Settings) -> Taken:
    """Type what is plain of `lines` (`ordinal`, `line`, `is_text`)."""
    found: dict[str, tuple[_Shape, pa.Table]] = {}
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for number, group in enumerate(groups(lines)):
            shape = _shape(group[0].lines[0].as_py(), settings)
            events = [table for tables in pool.map(shape.read, group) for table in tables] if shape else []
            if shape and events:
                found[f"plain_{number}"] = shape, pa.concat_tables(events)
    if not found:
        return Taken(None, {}, lines)
    for view, (_, events) in found.items():
        register(con, view, events)
    # One query for all tables, and without `doc`, which would be copied.
    all_envelopes = " UNION ALL ".join(shape.envelopes(view) for view, (shape, _) in found.items())
    envelopes = _in_order(con, f"SELECT * EXCLUDE (doc) FROM ({records_of(all_envelopes, is_plain=True)})")
    records: list[pa.Table] = []
    views: dict[str, dict[str, int]] = {}
    for view, (shape, events) in found.items():
        typed = _in_order(con, shape.select(view))
        own = envelopes
        if len(found) > 1:
            own = envelopes.take(np.searchsorted(envelopes["ordinal"].to_numpy(), typed["ordinal"].to_numpy()))
        is_sound = pc.and_(typed["is_plain"], pc.is_valid(own["committed_at"]))
        own = own.append_column("doc", events["doc"])
        if not pc.all(is_sound).as_py():
            own, typed = own.filter(is_sound), typed.filter(is_sound)
        for name in ("committed_at", "op", "tx_id", "lsn"):
            typed = typed.append_column(name, own[name])
        register(con, view, typed.drop_columns("is_plain"))
        views.setdefault(shape.part.table.name, {})[view] = typed.num_rows
        records.append(own)
    taken = pa.concat_tables(records)
    is_rest = np.ones(lines.num_rows, bool)
    is_rest[np.searchsorted(lines["ordinal"].to_numpy(), taken["ordinal"].to_numpy())] = False
    return Taken(taken, views, lines.filter(pa.array(is_rest)) if is_rest.any() else lines.slice(0, 0))


def _in_order(con: duckdb.DuckDBPyConnection, query: str) -> pa.Table:
    """The rows of a query by their ordinals, which is the order they nearly always come in."""
    rows = con.execute(query).to_arrow_table()
    return rows.sort_by("ordinal") if (np.diff(rows["ordinal"].to_numpy()) < 0).any() else rows


def forget(con: duckdb.DuckDBPyConnection) -> None:
    """Free the memory of what was taken last."""
    for (view,) in con.execute(
        "SELECT view_name FROM duckdb_views() WHERE starts_with(view_name, 'plain_')"
    ).fetchall():
        con.unregister(view)


@dataclass(frozen=True)
class _Form:
    """How a column's values are read: their type in JSON, and the SQL of the column's value or null, from `{}`."""

    type: pa.DataType
    sql: str


@dataclass(frozen=True)
class _Shape:
    """How the events of one table look: as the first of them does.

    `images` are those that it has a member for. `envelope` are its other members and their types.
    """

    part: Part
    forms: Sequence[_Form]
    images: Sequence[str]
    envelope: Mapping[str, pa.DataType]
    source: Mapping[str, Any]

    @property
    def schema(self) -> pa.Schema:
        columns = zip(self.part.table.columns, self.forms, strict=True)
        image = pa.struct([(self.part.source(column), form.type) for column, form in columns])
        return pa.schema([*((name, image) for name in self.images), *self.envelope.items()])

    def read(self, piece: Piece) -> list[pa.Table]:
        """Those of the events that have this shape, and nothing unusual in their text."""
        schema = self.schema
        found = []
        pieces, failures = [piece], 0
        while pieces and failures < _MOST_FAILURES:
            piece = pieces.pop()
            events = _read(piece, schema)
            if events is not None:
                found.append(self._flat(events, piece))
                continue
            failures += 1
            if (length := len(piece.lines)) > _FEW:
                pieces += [piece.part(length // 2, length), piece.part(0, length // 2)]
        return found

    def _flat(self, events: pa.Table, piece: Piece) -> pa.Table:
        """The events for DuckDB, which ignores the case of names: columns by their names in the log, and of the
        envelope only what is read of it.
        """
        flat = {"ordinal": piece.ordinals, "doc": piece.lines}
        names = [c.name for c in self.part.table.columns]
        for image in self.images:
            rows = _array(events[image])
            flat[image] = pa.StructArray.from_arrays(rows.flatten(), names, mask=rows.is_null())
        for path in self._paths():
            found = _array(events[path[0]])
            flat[".".join(path)] = found.field(path[1]) if len(path) > 1 else found
        return pa.table(flat)

    def _paths(self) -> Iterator[tuple[str, ...]]:
        """The members of the envelope that are read, as far as the events have them."""
        for name, type_ in ENVELOPE.items():
            own = self.envelope.get(name)
            if own is None or isinstance(type_, dict) != pa.types.is_struct(own):
                continue
            yield from (
                ((name, n) for n in type_ if own.get_field_index(n) >= 0) if isinstance(type_, dict) else [(name,)]
            )

    def envelopes(self, view: str) -> str:
        """SQL for the envelopes of the events in a view, as the careful lane has them."""
        there = set(self._paths())

        def member(path: tuple[str, ...], type_: str | Mapping[str, str]) -> str:
            name = quoted(path[-1])
            if not isinstance(type_, str):
                return f"{name} := struct_pack({', '.join(member((*path, n), t) for n, t in type_.items())})"
            if path not in there:
                return f"{name} := NULL::{type_}"
            column = quoted(".".join(path))
            return f"{name} := {f'to_json({column})' if type_ == 'JSON' else f'{column}::VARCHAR'}"

        members = (member((name,), type_) for name, type_ in ENVELOPE.items())
        return f"SELECT ordinal, doc, NULL::VARCHAR AS schema_id, struct_pack({', '.join(members)}) AS e FROM {view}"

    def select(self, view: str) -> str:
        """SQL for the typed images of the events in a view, and whether they are plain."""
        own = ("connector", "db", "schema", "table")
        is_own = [
            f"{quoted(f'source.{n}')} IS NOT DISTINCT FROM {_sql(self.source[n])}" for n in own if n in self.source
        ]
        fits = " OR ".join(
            " AND ".join(
                [
                    f"op = '{op}'",
                    *(f"{image} IS {'NOT ' if image in needed else ''}NULL" for image in self.images),
                    *("FALSE" for image in needed if image not in self.images),
                ]
            )
            for op, needed in _IMAGES_OF.items()
        )
        checks = [f"({fits})", *is_own, *(self._is_sound(image) for image in self.images)]
        return f"""
        SELECT
          ordinal, typed_before AS before, typed_after AS after,
          COALESCE({" AND ".join(checks)}, FALSE) AS is_plain
        FROM (
          SELECT *, {self._typed("before")} AS typed_before, {self._typed("after")} AS typed_after FROM {view}
        )
        """

    def _typed(self, image: str) -> str:
        columns = self.part.table.columns
        if image not in self.images:
            return f"NULL::STRUCT({', '.join(f'{c.sql} {c.kind.duckdb}' for c in columns)}, extra VARCHAR)"
        values = []
        for column, form in zip(columns, self.forms, strict=True):
            value = form.sql.replace("{}", f"{image}.{column.sql}")
            value = f"NULLIF({value}, {epoch(column)})" if self.part.may_be_zero_date(column) else value
            values.append(f"{column.sql} := {value}")
        return f"CASE WHEN {image} IS NOT NULL THEN struct_pack({', '.join(values)}, extra := NULL::VARCHAR) END"

    def _is_sound(self, image: str) -> str:
        """SQL for whether each value of an image has become one of its column's type."""
        checks = (
            f"(typed_{image}.{c.sql} IS NOT NULL{f' OR {image}.{c.sql} IS NULL' if c.nullable else ''})"
            for c in self.part.table.columns
        )
        return f"({image} IS NULL OR {' AND '.join(checks)})"


_IMAGES_OF = {"c": ("after",), "r": ("after",), "u": ("before", "after"), "d": ("before",)}


def _sql(value: str | None) -> str:
    return "NULL" if value is None else literal(value)


def _array(column: pa.ChunkedArray) -> pa.Array:
    return column.chunk(0) if column.num_chunks == 1 else column.combine_chunks()


# The shape of an event


def _shape(line: str, settings: Settings) -> _Shape | None:
    """The shape of an event; None if it is no plain one, or nobody can say of which table it is."""
    try:
        event = json.loads(line)
        json.dumps(event.get("source"), ensure_ascii=False).encode()  # half of a surrogate pair is no text
    except (ValueError, RecursionError):
        return None
    images = [image for image in ("before", "after") if image in event]
    source = event.get("source")
    if not isinstance(source, dict) or not isinstance(event.get("op"), str):
        return None
    table = _table(source)
    if table is None:
        return None
    if event.get("transaction", "") is None:
        event["transaction"] = dict.fromkeys(("id", "total_order", "data_collection_order"))
    envelope = {name: _member(name, value) for name, value in event.items() if name not in images}
    part = Part(table, None, source.get("connector"), {}, settings)
    rows = [row for image in images if isinstance(row := event[image], dict)]
    forms = []
    for column in table.columns:
        found = [row[name] for row in rows if row.get(name := part.source(column)) is not None]
        form = _form(part, column, found[0] if found else None)
        if form is None:
            return None
        forms.append(form)
    if None in envelope.values():
        return None
    return _Shape(part, forms, images, envelope, source)


def _table(source: Mapping[str, Any]) -> Table | None:
    """The one table that a `source` block is of, told as `identity.name_tables` tells it."""
    connector, db, schema, name = (source.get(key) for key in ("connector", "db", "schema", "table"))
    if name is None or not all(isinstance(text, str | None) for text in (connector, db, schema, name)):
        return None
    if schema is None and connector in DATABASES_AS_SCHEMAS and db in TABLES.schemas_at(connector):
        schema = db
    found = TABLES.called(connector, schema, name)
    return found[0] if len(found) == 1 else None


_COUNTS = ("txId", "lsn", "xmin", "pos", "row", "total_order", "data_collection_order")


def _member(name: str, value: Any, *, may_nest: bool = True) -> pa.DataType | None:
    """The type of a member of the envelope; None if it is none of a plain event."""
    if isinstance(value, dict):
        inner = {n: _member(n, v, may_nest=False) for n, v in value.items()}
        return pa.struct(inner.items()) if may_nest and None not in inner.values() else None
    if isinstance(value, bool):
        return pa.bool_()
    if isinstance(value, int) or (value is None and (name in _COUNTS or name.startswith("ts_"))):
        return pa.int64()
    return pa.string() if isinstance(value, str | None) else None


# The form of a column


def _form(part: Part, column: Column, value: Any) -> _Form | None:
    """The form of a column whose values are like this one; None if the careful way alone can read them."""
    kind = column.kind
    type_ = _json_type(kind, value)
    if type_ is None:
        return None
    is_text, is_number = type_ == pa.string(), type_ == pa.int64()
    if is_text and (kind.name in PLAIN_TEXTS or kind.name == "other"):
        return _Form(type_, "{}")
    if kind.is_text:
        is_here = "{} IS NOT NULL AND NOT is_unavailable(to_json({}))"
        if kind.element is not None and kind.element.name in FLOATS:  # -0, and the placeholder, as whole numbers
            is_here += " AND NOT regexp_matches(to_json({})::VARCHAR, '-0[.]0|^.95[.]0,')"
        return _Form(type_, f"CASE WHEN {is_here} THEN printed(to_json({{}})::VARCHAR, {part.recipe(column)}) END")
    sql = None
    if is_number and kind.name in INTEGERS:
        sql = "{}" if kind.name == "bigint" else "TRY_CAST({} AS INTEGER)"
    elif type_ == pa.float64() and kind.name in FLOATS:
        sql = f"CASE WHEN NOT ({{}} = 0 AND signbit({{}})) THEN {finite(column, '{}')} END"  # it may have been -0
    elif type_ == pa.bool_() and kind.type == BOOLEAN:
        sql = "{}"
    elif is_text and kind.is_decimal and (part.settings.decimals == "string" or "." in (value or ".")):
        # Digits without a point may as well be the base64 of a number.
        decimal = f"TRY_CAST({{}} AS {kind.duckdb})"
        has_point = "" if part.settings.decimals == "string" else "contains({}, '.') AND "
        sql = f"CASE WHEN {has_point}{decimal}::VARCHAR = {{}} THEN {decimal} END"
    elif is_text and kind.type == BYTES and part.settings.binary is None:
        sql = "base64_bytes({})"
    elif is_number and kind.type == DATE:
        sql = "day_of({})"
    elif is_number and kind.type in (TIME, TIMESTAMP):
        sql = f"CASE {counted(part, column, '{}') or 'WHEN FALSE THEN NULL'} END"
    elif is_text and kind.type == TIMESTAMP:
        sql = "iso_in_utc({})"
    return None if sql is None else _Form(type_, sql)


def _json_type(kind: Kind, value: Any) -> pa.DataType | None:
    """The type of JSON that a value like this one is of; of an unknown value the usual one of its kind."""
    if kind.name in FLOATS:
        return pa.float64() if isinstance(value, int | float | None) else None
    if kind.element is not None and isinstance(value, list | None):
        items = [item for item in value or () if item is not None]
        is_nested = items and isinstance(items[0], list)  # an array of arrays has the kind of its innermost elements
        item = _json_type(kind if is_nested else kind.element, items[0] if items else None)
        return None if item is None else pa.list_(item)
    if isinstance(value, bool) or (value is None and kind.type == BOOLEAN):
        return pa.bool_()
    if isinstance(value, int) or (value is None and (kind.name in INTEGERS or kind.type in (DATE, TIME, TIMESTAMP))):
        return pa.int64()
    return pa.string() if isinstance(value, str | None) else None


# Reading


def _read(piece: Piece, schema: pa.Schema) -> pa.Table | None:
    """The events of the lines, one each; None if some are not of this schema to the letter."""
    if any(len(places(piece.text, unusual)) for unusual in _UNUSUAL):
        return None
    nulls = null_members(piece.text)
    if nulls is None:
        return None
    try:
        events = pj.read_json(
            pa.BufferReader(piece.buffer),
            pj.ReadOptions(use_threads=False, block_size=piece.buffer.size + 1),
            pj.ParseOptions(explicit_schema=schema, unexpected_field_behavior="error"),
        )
    except pa.ArrowException:
        return None
    if events.num_rows != len(piece.lines):  # two objects in a line
        return None
    # Arrow reads a member that is missing as null: then there are more nulls than stand in the text.
    return events if _nulls(events) == nulls else None


def _nulls(events: pa.Table) -> int:
    """How many members are null or missing."""
    found = 0
    for column in map(_array, events.columns):
        found += column.null_count
        if pa.types.is_struct(column.type):  # those of an object that is null are null too
            fields = (column.field(i) for i in range(column.type.num_fields))
            found += sum(field.null_count - column.null_count for field in fields)
    return found
