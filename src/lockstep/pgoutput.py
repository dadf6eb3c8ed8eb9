"""Decoder of PostgreSQL's pgoutput protocol, version 1: from messages to rows of the landing schema.

It works on many messages at once. Their bytes become one buffer, and the numbers in it (transaction, relation, kind
and length of each value) are read for all rows together, column by column; text stays where it lies until Arrow casts
the whole column. Per message Python does nothing but `append`.

The protocol sends a transaction when it has committed, whole, in commit order: rolled back transactions and
savepoints never appear. Layout of the messages: PostgreSQL's manual, "Logical Replication Message Formats".
"""

from __future__ import annotations

import json
import struct
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta

import numpy as np
import pyarrow as pa

from lockstep.names import POSTGRESQL
from lockstep.pgvalues import Layout, SourceColumn, images, json_image
from lockstep.schema import TABLES, TEXT, TIMESTAMP, batch_schema

BEGIN, COMMIT, RELATION, TRUNCATE = ord("B"), ord("C"), ord("R"), ord("T")
_INSERT, _UPDATE, _DELETE = ord("I"), ord("U"), ord("D")
_OLD, _KEY = ord("O"), ord("K")  # what an update or delete sends of the row before: all of it, or its key
_NULL, _UNCHANGED, _VALUE = ord("n"), ord("u"), ord("t")

_EPOCH_US = 946_684_800_000_000  # PostgreSQL counts from 2000-01-01
_PADDING = bytes(16)  # so that a window of 16 bytes may begin at the last byte

REJECTED_SCHEMA = pa.schema(
    [
        ("ordinal", pa.int64()),
        ("committed_at", TIMESTAMP),
        ("table", TEXT),
        ("reason", TEXT),
        ("event", TEXT),
        ("tx_id", pa.int64()),
    ]
)


@dataclass(frozen=True)
class Transaction:
    """What every change of a transaction shares. `committed_us` counts microseconds since 1970, UTC."""

    xid: int
    committed_us: int

    @property
    def committed_at(self) -> datetime:
        return datetime(1970, 1, 1) + timedelta(microseconds=self.committed_us)


@dataclass(frozen=True)
class Part:
    """Decoded messages, ready for `changelog.Batch.add`. Ordinals are the messages' places."""

    changes: Mapping[str, pa.Table]
    rejected: pa.Table | None


@dataclass
class Decoder:
    """Decodes one replication stream, which it must be given whole and in order, cut anywhere.

    Rows of the tables in `schema.TABLES` are decoded, others are passed over. `schema` is that of the tables whose
    declaration names none; `partitioned` names the tables that have partitions. `database` is what rejected events
    name as their source. `transaction` is the one of the last message decoded.
    """

    database: str
    schema: str
    partitioned: Collection[str] = ()
    transaction: Transaction = Transaction(0, 0)
    _layouts: dict[int, Layout | None] = field(default_factory=dict)

    def decode(self, payloads: Sequence[bytes], lsns: Sequence[int]) -> Part:
        """Rows of `schema.batch_schema` by table, and the events that break the landing contract.

        `lsns` are the messages' positions in the source's log, one each.
        """
        messages = _Messages(payloads, lsns)
        self.transaction = messages.place_in_transactions(self.transaction)
        changes: dict[str, list[pa.Table]] = {}
        rejected: list[dict[str, object]] = []
        for layout, rows in self._by_layout(messages, payloads):
            good, bad = self._rows(messages, layout, rows)
            rejected += bad
            if good.num_rows:
                changes.setdefault(layout.table.name, []).append(good)
        return Part(
            {name: pa.concat_tables(tables) for name, tables in changes.items()},
            pa.Table.from_pylist(rejected, REJECTED_SCHEMA) if rejected else None,
        )

    def truncated(self, payload: bytes) -> list[str]:
        """The names of the tables that a TRUNCATE message empties; call it after what precedes it was decoded."""
        (count,) = struct.unpack_from("!i", payload, 1)
        relations = struct.unpack_from(f"!{count}I", payload, 6)
        layouts = (self._layouts.get(relation) for relation in relations)
        return [layout.table.name for layout in layouts if layout]

    def _by_layout(self, messages: _Messages, payloads: Sequence[bytes]) -> list[tuple[Layout, np.ndarray]]:
        """The row messages of each layout; a relation whose columns change meanwhile has one before and one after."""
        groups: list[tuple[Layout, np.ndarray]] = []
        news: dict[int, list[tuple[int, Layout | None]]] = {}
        for place in np.flatnonzero(messages.tag == RELATION).tolist():
            relation, layout = self._relation(payloads[place])
            news.setdefault(relation, []).append((place, layout))
        rows = np.flatnonzero(np.isin(messages.tag, (_INSERT, _UPDATE, _DELETE)))
        relations = messages.u32(messages.start[rows] + 1)
        for relation in np.unique(relations).tolist():
            of_relation = rows[relations == relation]
            changed = news.get(relation, [])
            pieces = np.split(of_relation, np.searchsorted(of_relation, [place for place, _ in changed]))
            for layout, piece in zip([self._layouts.get(relation), *(to for _, to in changed)], pieces, strict=True):
                if layout and len(piece):
                    groups.append((layout, piece))
        self._layouts |= {relation: changed[-1][1] for relation, changed in news.items()}
        return groups

    def _relation(self, payload: bytes) -> tuple[int, Layout | None]:
        """Relation message: id, schema, name, identity, then flags, name, type and type modifier of each column."""
        (relation,) = struct.unpack_from("!I", payload, 1)
        schema, name, rest = payload[5:].split(b"\0", 2)
        found = TABLES.called(POSTGRESQL, schema.decode(), name.decode(), self.schema)
        if not found:
            return relation, None
        (count,) = struct.unpack_from("!H", rest, 1)
        columns = []
        at = 3
        for _ in range(count):
            end = rest.index(b"\0", at + 1)
            (type_oid,) = struct.unpack_from("!I", rest, end + 1)
            columns.append(SourceColumn(rest[at + 1 : end].decode(), type_oid))
            at = end + 9
        return relation, Layout(found[0], tuple(columns))

    def _rows(self, messages: _Messages, layout: Layout, rows: np.ndarray) -> tuple[pa.Table, list[dict[str, object]]]:
        """The good rows of one layout, and the rejected ones."""
        count, columns = len(rows), len(layout.columns)
        tag = messages.tag[rows]
        at = messages.start[rows] + 5
        marker = messages.data[at]
        old, new = _Tuples(count, columns), _Tuples(count, columns)
        with_old = np.flatnonzero((marker == _OLD) | (marker == _KEY))
        at[with_old] = old.read(messages, at[with_old] + 1, with_old)
        with_new = np.flatnonzero(tag != _DELETE)
        new.read(messages, at[with_new] + 1, with_new)
        new.take_unchanged(old)
        before_texts, after_texts = old.texts(messages), new.texts(messages)

        reasons = _broken(layout, tag, marker, new)
        if layout.table.name in self.partitioned:
            reasons = {**_only_keys(layout, marker, old), **reasons}
        if not layout.problem:
            whole = np.flatnonzero(~np.isin(np.arange(count), list(reasons))) if reasons else np.arange(count)
            is_insert, is_delete = tag == _INSERT, tag == _DELETE
            before = _images(layout, before_texts, is_insert, whole, "before", reasons)
            after = _images(layout, after_texts, is_delete, whole, "after", reasons)
            good = pa.table(
                [
                    pa.array(rows[whole]),
                    pa.array(messages.committed_us[rows[whole]]).cast(TIMESTAMP),
                    _ops(tag[whole]),
                    before,
                    after,
                    pa.array(messages.xid[rows[whole]]),
                    pa.array(messages.lsn[rows[whole]]),
                ],
                schema=batch_schema(layout.table),
            )
            if len(whole) + len(reasons) > count:  # some images were found broken only when they were cast
                good = good.filter(pa.array(~np.isin(whole, list(reasons))))
        else:
            good = batch_schema(layout.table).empty_table()
        if not reasons:
            return good, []

        def image(texts: list[pa.Array], is_there: bool, row: int) -> object:
            return json_image(layout, [text[row].as_py() for text in texts]) if is_there else None

        bad: list[dict[str, object]] = []
        for row, reason in sorted(reasons.items()):
            place = int(rows[row])
            xid, lsn, at_us = int(messages.xid[place]), int(messages.lsn[place]), int(messages.committed_us[place])
            op = {_INSERT: "c", _UPDATE: "u", _DELETE: "d"}[int(tag[row])]
            # The key alone is not an image: retried, it must be refused for the same reason.
            before_image = image(before_texts, marker[row] == _OLD, row)
            after_image = image(after_texts, op != "d", row)
            schema, name = layout.table.in_postgresql(self.schema)
            text = event(self.database, schema, name, op, before_image, after_image, xid, lsn, at_us)
            committed_at = Transaction(xid, at_us).committed_at
            bad.append(
                {
                    "ordinal": place,
                    "committed_at": committed_at,
                    "table": layout.table.name,
                    "reason": reason,
                    "event": text,
                    "tx_id": xid,
                }
            )
        return good, bad


def event(
    database: str, schema: str, table: str, op: str, before: object, after: object, xid: int, lsn: int, at_us: int
) -> str:
    """A change as Debezium's envelope, for quarantine: `lockstep quarantine retry` reads it as `ingest` would."""
    source = {
        "connector": "postgresql",
        "db": database,
        "schema": schema,
        "table": table,
        "txId": xid,
        "lsn": lsn,
        "ts_us": at_us,
    }
    return json.dumps({"before": before, "after": after, "source": source, "op": op}, ensure_ascii=False)


class _Messages:
    """Many messages as one buffer, with the start and tag of each."""

    def __init__(self, payloads: Sequence[bytes], lsns: Sequence[int]) -> None:
        count = len(payloads)
        sizes = np.fromiter(map(len, payloads), np.int64, count)
        self.buffer = b"".join((*payloads, _PADDING))
        self.data = np.frombuffer(self.buffer, np.uint8)
        self.start = np.cumsum(sizes) - sizes
        self.tag = self.data[self.start]
        self.lsn = np.fromiter(lsns, np.int64, count)
        self.xid = np.empty(count, np.int64)
        self.committed_us = np.empty(count, np.int64)

    def u16(self, at: np.ndarray) -> np.ndarray:
        return self._numbers(at, ">u2")

    def u32(self, at: np.ndarray) -> np.ndarray:
        return self._numbers(at, ">u4")

    def i64(self, at: np.ndarray) -> np.ndarray:
        return self._numbers(at, ">i8")

    def _numbers(self, at: np.ndarray, kind: str) -> np.ndarray:
        """The big-endian numbers that begin at the places `at`."""
        numbers: np.ndarray = self.items(at, kind).astype(np.int64)
        return numbers

    def items(self, at: np.ndarray, kind: str) -> np.ndarray:
        """The items of a NumPy type that begin at the places `at`, a new array."""
        # One item begins at every byte, overlapping: picking items is faster than picking rows of bytes.
        everywhere = np.ndarray((len(self.buffer) - np.dtype(kind).itemsize + 1,), kind, self.buffer, strides=(1,))
        found: np.ndarray = everywhere[at]
        return found

    def place_in_transactions(self, current: Transaction) -> Transaction:
        """Give every message its transaction: the last Begin before it, `current` up to the first. Returns the last."""
        begins = self.start[self.tag == BEGIN]
        xids = np.concatenate(([current.xid], self.u32(begins + 17)))
        commits = np.concatenate(([current.committed_us], self.i64(begins + 9) + _EPOCH_US))
        which = np.cumsum(self.tag == BEGIN)
        self.xid, self.committed_us = xids[which], commits[which]
        return Transaction(int(xids[-1]), int(commits[-1]))


class _Tuples:
    """Where the values of some rows' tuples lie: kind, start and length, an array per column; absent rows are null."""

    def __init__(self, rows: int, columns: int) -> None:
        self.kind = [np.full(rows, _NULL, np.uint8) for _ in range(columns)]
        self.begin = [np.zeros(rows, np.int64) for _ in range(columns)]
        self.length = [np.zeros(rows, np.int32) for _ in range(columns)]

    def read(self, messages: _Messages, at: np.ndarray, which: np.ndarray) -> np.ndarray:
        """Read the tuples that begin at `at` (their column count) as those of the rows `which`; returns their ends."""
        if len(at) and (messages.u16(at) != len(self.kind)).any():
            raise ValueError("a row has another number of columns than its relation")
        at = at + 2
        for column in range(len(self.kind)):
            kind = messages.data[at]
            has_value = kind == _VALUE
            length = np.where(has_value, messages.u32(at + 1), 0)
            self.kind[column][which] = kind
            self.begin[column][which] = at + 5
            self.length[column][which] = length
            at = at + np.where(has_value, 5 + length, 1)
        return at

    def take_unchanged(self, old: _Tuples) -> None:
        """An update sends no value for a TOASTed column that it leaves alone: it is the old row's."""
        for column, kind in enumerate(self.kind):
            unchanged = kind == _UNCHANGED
            if unchanged.any():
                for mine, others in ((self.kind, old.kind), (self.begin, old.begin), (self.length, old.length)):
                    mine[column] = np.where(unchanged, others[column], mine[column])

    def texts(self, messages: _Messages) -> list[pa.Array]:
        """The values as Arrow text, null where there is none."""
        return [self._text(messages, column) for column in range(len(self.kind))]

    def _text(self, messages: _Messages, column: int) -> pa.Array:
        # Arrow's string view is 16 bytes: the length, then up to 12 bytes of text, or 4 of them and the place of all.
        # In the protocol too, 4 bytes of length stand before the text, so that a window of 16 bytes is nearly a view.
        length, begin = self.length[column], self.begin[column]
        present = self.kind[column] == _VALUE
        if not present.any():
            return pa.nulls(len(present), TEXT)
        views = messages.items(np.where(present, begin - 4, 0), "V16").view(np.int32).reshape(-1, 4)
        views[:, 0] = length
        long = np.flatnonzero(length > 12)
        views[long, 2] = 0
        views[long, 3] = begin[long]
        valid = None if present.all() else pa.py_buffer(np.packbits(present, bitorder="little"))
        buffers = [valid, pa.py_buffer(views), pa.py_buffer(messages.buffer)]
        return pa.Array.from_buffers(pa.string_view(), len(present), buffers).cast(TEXT)


def _broken(layout: Layout, tag: np.ndarray, marker: np.ndarray, new: _Tuples) -> dict[int, str]:
    """The rows that cannot have images, whatever their values are."""
    if layout.problem:
        return dict.fromkeys(range(len(tag)), layout.reason)
    reasons: dict[int, str] = {}
    name = layout.table.name
    if not layout.table.key:
        return dict.fromkeys(
            np.flatnonzero(tag != _INSERT).tolist(),
            f"{name} is declared append-only and has no key, so one of its rows cannot be changed or deleted: "
            f"`lockstep capture ... --resync {name}` lands what has become of the table",
        )
    for row in np.flatnonzero((tag != _INSERT) & (marker != _OLD)).tolist():
        reasons[row] = (
            f"it has no before image: is the source table REPLICA IDENTITY FULL, and each of its partitions? "
            f"ALTER TABLE {layout.table.sql_at(POSTGRESQL)} REPLICA IDENTITY FULL;"
        )
    for column, kind in zip(layout.columns, new.kind, strict=True):
        for row in np.flatnonzero(kind == _UNCHANGED).tolist():
            reasons.setdefault(row, f"column {column.name} of the after image was not sent")
    return reasons


def _only_keys(layout: Layout, marker: np.ndarray, old: _Tuples) -> dict[int, str]:
    """The rows whose before image holds the key alone, though it is sent as a whole one.

    So PostgreSQL sends them where the partitioned table has REPLICA IDENTITY FULL and the row's partition has not.
    """
    key = layout.table.key_at(POSTGRESQL)
    others = [kind for c, kind in zip(layout.columns, old.kind, strict=True) if c.name not in key]
    if not others:
        return {}
    is_key_only = (marker == _OLD) & np.all([kind == _NULL for kind in others], axis=0)
    name = layout.table.name
    return dict.fromkeys(
        np.flatnonzero(is_key_only).tolist(),
        f"its before image holds the key alone: each partition of {name} needs ALTER TABLE ... REPLICA IDENTITY FULL, "
        f"and then `lockstep capture ... --resync {name}`",
    )


def _images(
    layout: Layout,
    texts: list[pa.Array],
    absent: np.ndarray,
    whole: np.ndarray,
    which: str,
    reasons: dict[int, str],
) -> pa.Array:
    """The images of the rows `whole`; adds the reasons of those that are broken."""
    if len(whole) < len(absent):
        texts, absent = [text.take(pa.array(whole)) for text in texts], absent[whole]
    if absent.all():
        return pa.nulls(len(absent), layout.table.image)
    result, broken = images(layout, texts, absent if absent.any() else None, which)
    for row, reason in broken.items():
        reasons.setdefault(int(whole[row]), reason)
    return result


def _ops(tag: np.ndarray) -> pa.Array:
    codes = np.select([tag == _INSERT, tag == _UPDATE], [0, 1], 2).astype(np.int8)
    return pa.DictionaryArray.from_arrays(pa.array(codes), pa.array(["c", "u", "d"])).cast(TEXT)


def commit_end(payload: bytes) -> int:
    """The LSN just after a Commit message's transaction."""
    (end,) = struct.unpack_from("!Q", payload, 10)
    return int(end)
