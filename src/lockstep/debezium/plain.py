"""The fast lane: change events in which nothing is unusual, read by Arrow's JSON reader in one pass.

Arrow reads a piece of the input into one struct per event, strictly: a member that the struct lacks, one that stands
twice and a value of another JSON type fail the piece. It is then halved, until few events are left with the one that
failed. Of what was read, only values that are plainly in the expected form are taken. All other events go the careful
way, so one place alone decides what an unusual event means. tests/unit/test_plain.py shows that both ways agree.
"""

from __future__ import annotations

import functools
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
from lockstep.debezium.forms import Form, form
from lockstep.debezium.images import identified
from lockstep.debezium.macros import UNAVAILABLE_TEXTS
from lockstep.debezium.pieces import Piece, groups, null_members
from lockstep.debezium.settings import Part, Settings
from lockstep.names import DATABASES_AS_SCHEMAS
from lockstep.schema import TABLES, Column, Table, batch_schema, literal, quoted

_FEW, _MOST_FAILURES = 16, 16  # events that are not halved further; pieces that may fail of about 4 MB


@dataclass(frozen=True)
class Taken:
    """What the fast lane took of a chunk: its rows of `records`, and the views of typed events by table."""

    records: pa.Table | None
    views: Mapping[str, Mapping[str, pa.Table]]  # with their rows
    rest: pa.Table  # lines for the careful lane

    def rows(self, table: Table) -> pa.Table | None:
        """The typed events of a table."""
        views = list(self.views.get(table.name, {}).values())
        return pa.concat_tables(views).select(batch_schema(table).names) if views else None

    def selects(self, table: Table, events: int) -> list[str]:
        """The SELECTs of `parsed_<table>` from its views, where `records` has `events` plain events of the table."""
        views = self.views.get(table.name, {})
        is_own = "TRUE"
        if sum(rows.num_rows for rows in views.values()) != events:  # some turned out to be of another table
            own = f"""is_plain AND kind = 'change' AND "table" = {literal(table.name)}"""
            is_own = f"ordinal IN (SELECT ordinal FROM records WHERE {own})"
        return [identified(table, f"SELECT * FROM {v} WHERE {is_own}", "NULL::VARCHAR") for v in views]


def take(con: duckdb.DuckDBPyConnection, lines: pa.Table, settings: Settings) -> Taken:
    """Type what is plain of `lines` (`ordinal`, `line`, `is_text`)."""
    found: dict[str, tuple[_Shape, list[_Read]]] = {}
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for number, group in enumerate(groups(lines)):
            shape = _shape(group[0].lines[0].as_py(), settings)
            reads = [read for own in pool.map(shape.read, group) for read in own] if shape else []
            if shape and reads:
                found[f"plain_{number}"] = shape, reads
    if not found:
        return Taken(None, {}, lines)
    for view, (_, reads) in found.items():
        register(con, view, pa.concat_tables([read.events for read in reads]))
    # One query for all tables, and without `doc`, which would be copied.
    all_envelopes = " UNION ALL ".join(shape.envelopes(view) for view, (shape, _) in found.items())
    envelopes = _in_order(con, f"SELECT * EXCLUDE (doc) FROM ({records_of(all_envelopes, is_plain=True)})")
    records: list[pa.Table] = []
    views: dict[str, dict[str, pa.Table]] = {}
    for view, (shape, reads) in found.items():
        typed = shape.typed(con, view, reads)
        own = envelopes
        if len(found) > 1:
            own = envelopes.take(np.searchsorted(envelopes["ordinal"].to_numpy(), typed["ordinal"].to_numpy()))
        is_sound = pc.and_(typed["is_plain"], pc.is_valid(own["committed_at"]))
        own = own.append_column("doc", typed["doc"])
        typed = typed.drop_columns(["is_plain", "doc"])
        for name in ("committed_at", "op", "tx_id", "lsn"):
            typed = typed.append_column(name, own[name])
        if not pc.all(is_sound).as_py():
            own, typed = own.filter(is_sound), typed.filter(is_sound)
        register(con, view, typed)
        views.setdefault(shape.part.table.name, {})[view] = typed
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
class _Read:
    """The events of a piece.

    `events` is what DuckDB reads of them. `images` holds the columns of each image: typed, except for those that DuckDB
    types later. `are_there` says which events have the image, `is_plain` which are plain as far as is known by now.
    """

    events: pa.Table
    images: Mapping[str, Sequence[pa.Array]]
    are_there: Mapping[str, pa.Array]
    is_plain: pa.Array


@dataclass(frozen=True)
class _Shape:
    """How the events of one table look: as the first of them does.

    `images` are those that it has a member for. `envelope` are its other members and their types.
    """

    part: Part
    forms: Sequence[Form]
    images: Sequence[str]
    envelope: Mapping[str, pa.DataType]
    source: Mapping[str, Any]

    @property
    def schema(self) -> pa.Schema:
        columns = zip(self.part.table.columns, self.forms, strict=True)
        image = pa.struct([(self.part.source(column), form.type) for column, form in columns])
        return pa.schema([*((name, image) for name in self.images), *self.envelope.items()])

    def read(self, piece: Piece) -> list[_Read]:
        """Those of the events that have this shape."""
        schema = self.schema
        found = []
        pieces, failures = [piece], 0
        while pieces and failures < _MOST_FAILURES:
            piece = pieces.pop()
            events = _read(piece, schema)
            if events is not None:
                found.append(self._typed(events, piece))
                continue
            failures += 1
            if (length := len(piece.lines)) > _FEW:
                pieces += [piece.part(length // 2, length), piece.part(0, length // 2)]
        return found

    def _typed(self, events: pa.Table, piece: Piece) -> _Read:
        """Type the columns of a piece, except for those that DuckDB types: they go there with the envelope.

        DuckDB ignores the case of names, so these columns have their names in the log, which differ by more.
        """
        flat = {"ordinal": piece.ordinals, "doc": piece.lines}
        for path in self._paths():
            found = _array(events[path[0]])
            flat[".".join(path)] = found.field(path[1]) if len(path) > 1 else found
        checks = [self._is_own(flat)]
        images, are_there = {}, {}
        for image in self.images:
            rows = _array(events[image])
            is_there = rows.is_valid()
            values = []
            for column, own, raw in zip(self.part.table.columns, self.forms, rows.flatten(), strict=True):
                value = raw
                if own.typed:
                    value = own.typed(raw)
                    checks += _are_sound(column, value, raw, is_there)
                else:
                    flat[f"{image}.{column.name}"] = raw
                values.append(value)
            images[image], are_there[image] = values, is_there
        checks.append(self._fits(flat["op"], are_there))
        return _Read(pa.table(flat), images, are_there, functools.reduce(pc.and_, checks))

    def _is_own(self, flat: Mapping[str, pa.Array]) -> pa.Array:
        """Whether the events are of the same table as the first one."""
        own = [n for n in ("connector", "db", "schema", "table") if n in self.source]
        return functools.reduce(pc.and_, (_is(flat[f"source.{n}"], self.source[n]) for n in own))

    def _fits(self, op: pa.Array, are_there: Mapping[str, pa.Array]) -> pa.Array:
        """Whether the events have the images that their op needs, and no others."""
        fits = pa.array(np.zeros(len(op), bool))
        for kind, needed in _IMAGES_OF.items():
            if all(image in are_there for image in needed):
                has = (is_there if image in needed else pc.invert(is_there) for image, is_there in are_there.items())
                fits = pc.or_(fits, functools.reduce(pc.and_, has, _is(op, kind)))
        return fits

    def typed(self, con: duckdb.DuckDBPyConnection, view: str, reads: Sequence[_Read]) -> pa.Table:
        """The events with typed images: `ordinal`, `doc`, `before`, `after`, and `is_plain`.

        `view` holds the `events` of the reads.
        """
        columns = enumerate(zip(self.part.table.columns, self.forms, strict=True))
        hard = [(i, column, own.sql) for i, (column, own) in columns if own.sql]
        by_duckdb = [(image, *own) for image in self.images for own in hard]
        typed = None
        if by_duckdb:
            values = [
                f"{sql.replace('{}', quoted(f'{image}.{column.name}'))} AS v{n}"
                for n, (image, _, column, sql) in enumerate(by_duckdb)
            ]
            typed = _in_order(con, f"SELECT ordinal, {', '.join(values)} FROM {view}")
        tables, first = [], 0
        for read in reads:
            count = read.events.num_rows
            images = {image: list(values) for image, values in read.images.items()}
            checks = [read.is_plain]
            for n, (image, i, column, _) in enumerate(by_duckdb):
                assert typed
                raw, value = images[image][i], _array(typed[f"v{n}"].slice(first, count))
                checks += _are_sound(column, value, raw, read.are_there[image])
                images[image][i] = value
            first += count
            found = {
                "ordinal": read.events["ordinal"],
                "doc": read.events["doc"],
                **{image: self._image(images.get(image), read.are_there.get(image), count) for image in _IMAGES},
                "is_plain": functools.reduce(pc.and_, checks),
            }
            tables.append(pa.table(found))
        return pa.concat_tables(tables)

    def _image(self, values: list[pa.Array] | None, is_there: pa.Array | None, count: int) -> pa.Array:
        type_ = self.part.table.image
        if values is None or is_there is None:
            return pa.nulls(count, type_)
        extra = pa.nulls(count, pa.string())
        return pa.StructArray.from_arrays([*values, extra], fields=list(type_), mask=pc.invert(is_there))

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


_IMAGES = ("before", "after")
_IMAGES_OF = {"c": ("after",), "r": ("after",), "u": ("before", "after"), "d": ("before",)}


def _is(values: pa.Array, value: str | None) -> pa.Array:
    """Whether each value is this one."""
    return pc.is_null(values) if value is None else pc.fill_null(pc.equal(values, value), False)


def _are_sound(column: Column, values: pa.Array, raw: pa.Array, is_there: pa.Array) -> list[pa.Array]:
    """Whether each raw value, where there is an image, has become one of its column's type; nothing if all have."""
    if values.null_count == raw.null_count and (column.nullable or raw.null_count == is_there.false_count):
        return []
    is_sound = pc.is_valid(values)
    return [pc.or_(is_sound, pc.is_null(raw) if column.nullable else pc.invert(is_there))]


def _array(column: pa.ChunkedArray) -> pa.Array:
    return column.chunk(0) if column.num_chunks == 1 else column.combine_chunks()


# The shape of an event


def _shape(line: str, settings: Settings) -> _Shape | None:
    """The shape of an event; None if it is not a plain one, or its table is not known."""
    try:
        event = json.loads(line)
        json.dumps(event.get("source"), ensure_ascii=False).encode()  # half of a surrogate pair is not text
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
        own = form(part, column, found[0] if found else None)
        if own is None:
            return None
        forms.append(own)
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


# Reading


def _read(piece: Piece, schema: pa.Schema) -> pa.Table | None:
    """The events of the lines, one each; None if some are not of this schema to the letter."""
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
    if _nulls(events) != nulls or any(_has_placeholder(_array(column)) for column in events.columns):
        return None
    return events


def _has_placeholder(values: pa.Array) -> bool:
    """Whether one of the texts is what a connector puts in the place of a large value."""
    if pa.types.is_struct(values.type):
        return any(_has_placeholder(values.field(i)) for i in range(values.type.num_fields))
    if pa.types.is_list(values.type):
        return _has_placeholder(values.values)
    if values.type != pa.string():
        return False
    sizes = np.diff(np.frombuffer(values.buffers()[1], np.int32))
    return any((sizes == len(text)).any() and pc.any(pc.equal(values, text)).as_py() for text in UNAVAILABLE_TEXTS)


def _nulls(events: pa.Table) -> int:
    """How many members are null or missing."""
    found = 0
    for column in map(_array, events.columns):
        found += column.null_count
        if pa.types.is_struct(column.type):  # those of an object that is null are null too
            fields = (column.field(i) for i in range(column.type.num_fields))
            found += sum(field.null_count - column.null_count for field in fields)
    return found
