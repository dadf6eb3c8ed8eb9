"""The order in which a connector wrote its events, restored from the topics over which Kafka spread them.

A topic keeps the order of each of its partitions and nothing else. Debezium's transaction marks say the rest: the END
records, all in one partition, come in the order of the commits and count the events of their transaction, and each
event has its `total_order` in it. So `Sequencer` gives out a transaction when its END and as many events as that
counts have come, whatever came in between: its events by `total_order`, then its END. What comes out is the stream
that the connector wrote, for `ingest.Landing` to land like any other.

Snapshot rows (op `r`), what cannot be read and MySQL's TRUNCATE belong to no transaction: they keep their place in
their partition, which for a TRUNCATE must be the topic's only one.
What nothing can depend on (heartbeats, tombstones, tables the project does not know) is given out at once.
"""

from __future__ import annotations

import json
from collections import OrderedDict, deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa

from lockstep import debezium
from lockstep.errors import LockstepError
from lockstep.lines import SCHEMA
from lockstep.schema import TABLES

FINISHED = 1000  # finished transactions that the watermark remembers; see `Sequencer.finished`
_FINISHED_IN_MEMORY = 100_000


class Entry(NamedTuple):
    """One record of a partition. `transaction` is None for what belongs to none."""

    partition: str
    offset: int
    line: str
    is_text: bool
    transaction: str | None
    order: int


@dataclass
class _Open:
    """The events of a transaction that have come so far, with the distinct places in it that they take."""

    entries: list[Entry] = field(default_factory=list)
    orders: set[int] = field(default_factory=set)
    asked: int = 0


class _End(NamedTuple):
    transaction: str
    expected: Mapping[str, int]
    entry: Entry


class Sequencer:
    """Events of several partitions in, whole transactions in commit order out.

    `finished` are the transactions last given out, oldest first. A connector that starts again sends the last of what
    it had sent once more, perhaps only the end of a transaction, or an END alone: that is recognised by its name. A
    transaction finished longer ago is recognised by its events; see `doubtful`. `is_alone` tells whether a partition is
    the only one of its topic.
    """

    def __init__(self, finished: Iterable[str] = (), is_alone: Callable[[str], bool] = lambda partition: True) -> None:
        self._con = debezium.connect()
        self._is_alone = is_alone
        self._waiting: dict[str, OrderedDict[int, Entry]] = {}
        self._open: dict[str, _Open] = {}
        self._ends: deque[_End] = deque()
        self._free: list[Entry] = []
        self._finished = dict.fromkeys(finished)
        self._marks: str | None = None  # the partition of the END records
        self.size = 0  # bytes of what is held

    @property
    def finished(self) -> list[str]:
        """The last transactions given out, for the next start."""
        return list(self._finished)[-FINISHED:]

    @property
    def has_marks(self) -> bool:
        return bool(self._marks or self._finished)

    def add(self, lines: pa.Table) -> None:
        """Add records (`lines.SCHEMA`, where `file` names the partition and `number` is the offset).

        Raises LockstepError for events that no order can be given: changes outside a marked transaction, END records
        without counts or in several partitions.
        """
        debezium.read(self._con, lines)
        records = self._con.execute(
            """
            SELECT ordinal, kind, op, concat_ws('.', "schema", name), transaction, total_order, collections FROM records
            ORDER BY ordinal
            """
        ).fetchall()
        texts, are_text = lines["line"].to_pylist(), lines["is_text"].to_pylist()
        partitions, offsets = lines["file"].to_pylist(), lines["number"].to_pylist()
        may_be_ours = {collection: TABLES.may_hold(collection) for collection in {record[3] for record in records}}
        for ordinal, kind, op, collection, transaction, order, collections in records:
            is_ours = kind in ("change", debezium.FOREIGN) and may_be_ours[collection]
            i = ordinal // debezium.STRIDE
            entry = Entry(partitions[i], offsets[i], texts[i], are_text[i], None, 0)
            if kind == "end":
                self._add_end(entry, transaction, collections)
            elif is_ours and op != "r":
                if order is not None:
                    self._add_change(entry._replace(transaction=transaction, order=order))
                elif op == "t" and self._is_alone(entry.partition):
                    self._wait(entry)
                else:
                    raise LockstepError(_unmarked(entry))
            elif is_ours or kind in ("unreadable", "unknown"):
                self._wait(entry)
            else:
                self._free.append(entry)

    def _add_end(self, entry: Entry, transaction: str, collections: str | None) -> None:
        self._marks = self._marks or entry.partition
        if entry.partition != self._marks:
            raise LockstepError(
                f"Transactions end in {self._marks} and in {entry.partition}: between two partitions their order is "
                "lost. Make the topic of transaction marks anew with one partition."
            )
        try:
            counts = [(str(c["data_collection"]), int(c["event_count"])) for c in json.loads(collections or "")]
        except (ValueError, TypeError, KeyError):
            raise LockstepError(
                f"{_place(entry)} ends transaction {transaction} without saying how many events it has "
                "(data_collections), so nobody can tell when they have all come. Debezium 1.0 and later says it."
            ) from None
        expected = {name: n for name, n in counts if TABLES.may_hold(name)}
        self._ends.append(_End(transaction, expected, entry))
        self.size += len(entry.line)

    def _add_change(self, entry: Entry) -> None:
        assert entry.transaction is not None
        if entry.transaction in self._finished:
            self._free.append(entry)
            return
        transaction = self._open.setdefault(entry.transaction, _Open())
        transaction.entries.append(entry)
        transaction.orders.add(entry.order)
        self._wait(entry)

    def _wait(self, entry: Entry) -> None:
        self._waiting.setdefault(entry.partition, OrderedDict())[entry.offset] = entry
        self.size += len(entry.line)

    def take(self, limit: int, *, complete: bool = False) -> pa.Table:
        """Give out what is due, until that is more than `limit` bytes: rows of `lines.SCHEMA`, in the stream's order.

        `complete` takes what has come for all there is: transactions then come out without all their events, and
        without their END.
        """
        out, self._free = self._free, []
        held = self.size
        for partition in self._waiting:
            self._give_heads(partition, out)
        while held - self.size < limit and self._ends:
            end = self._ends[0]
            if not complete and self._missing(end):
                break
            self._end(out)
        while complete and not self._ends and self._open and held - self.size < limit:
            self._give(next(iter(self._open)), out)
        return _table(out)

    def _missing(self, end: _End) -> int:
        if end.transaction in self._finished:
            return 0
        found = self._open.get(end.transaction)
        return max(sum(end.expected.values()) - (len(found.orders) if found else 0), 0)

    def _end(self, out: list[Entry]) -> None:
        end = self._ends.popleft()
        self.size -= len(end.entry.line)
        self._give(end.transaction, out)
        out.append(end.entry)

    def _give(self, transaction: str, out: list[Entry]) -> None:
        entries = self._open.pop(transaction, _Open()).entries
        entries.sort(key=lambda e: e.order)
        for entry in entries:
            del self._waiting[entry.partition][entry.offset]
            self.size -= len(entry.line)
        out += entries
        for partition in {e.partition for e in entries}:
            self._give_heads(partition, out)
        self._finished.pop(transaction, None)
        self._finished[transaction] = None
        if len(self._finished) > _FINISHED_IN_MEMORY:
            del self._finished[next(iter(self._finished))]

    def _give_heads(self, partition: str, out: list[Entry]) -> None:
        """What belongs to no transaction, and before which nothing waits in its partition."""
        waiting = self._waiting[partition]
        while waiting and (entry := next(iter(waiting.values()))).transaction is None:
            del waiting[entry.offset]
            self.size -= len(entry.line)
            out.append(entry)

    def doubtful(self) -> pa.Table | None:
        """The events of the next transaction if only some have come, once for each number of them.

        They may be the last of one that landed long ago, sent again. If all of them have landed, `pass_over` it.
        """
        if not self._ends or (found := self._open.get(self._ends[0].transaction)) is None:
            return None
        if not self._missing(self._ends[0]) or found.asked == len(found.entries):
            return None
        found.asked = len(found.entries)
        return _table(found.entries)

    def pass_over(self) -> None:
        """Forget the next transaction's events and END: they have landed."""
        self._end([])

    def keep(self, lines: pa.Table) -> None:
        """What was given out and did not land. Raises LockstepError if there is any: all came out whole."""
        if lines.num_rows:
            row = lines.slice(0, 1).to_pylist()[0]
            raise LockstepError(
                f"Record {row['number']} of {row['file']} belongs to a transaction whose events had all come already, "
                "by their count, and is none of them. Do two connectors write to these topics? To land it as an event "
                "of its own: --until-caught-up --complete"
            )

    def give_up(self) -> bool:
        """Demand no more events of the next transaction, if its END has come; returns whether it has."""
        if self._ends:
            self._ends[0] = self._ends[0]._replace(expected={})
        return bool(self._ends)

    def offsets(self, reached: Mapping[str, int], kept: pa.Table) -> dict[str, int]:
        """Where each partition must be read from again if it was read up to before `reached`."""
        offsets = dict(reached)
        for partition, waiting in self._waiting.items():
            if waiting:
                offsets[partition] = next(iter(waiting))
        if self._ends:
            entry = self._ends[0].entry
            offsets[entry.partition] = min(offsets[entry.partition], entry.offset)
        return offsets

    def helpful(self, partitions: Iterable[str]) -> set[str]:
        """The partitions that may yet bring what the next transaction waits for.

        A partition whose last event is of a later transaction has brought all it has of the next one.
        """
        front = self._ends[0].transaction if self._ends else None
        found = set()
        for partition in partitions:
            waiting = self._waiting.get(partition)
            last = next(reversed(waiting.values())).transaction if waiting else front
            if (partition != self._marks if front else not waiting) and last == front:
                found.add(partition)
        return found

    def blocked(self) -> str | None:
        """What the next transaction waits for, in words; None if nothing waits."""
        if self._ends:
            end = self._ends[0]
            names = ", ".join(end.expected)
            return (
                f"transaction {end.transaction} waits for {self._missing(end)} of its {sum(end.expected.values())} "
                f"events of {names}"
            )
        if self._open:
            transaction, found = next(iter(self._open.items()))
            return f"{len(found.entries)} events of transaction {transaction} wait for its END record"
        return None

    def counts(self) -> tuple[int, int, int]:
        """Transactions that wait, their events, and all records that wait."""
        events = sum(len(t.entries) for t in self._open.values())
        return len(self._open), events, sum(map(len, self._waiting.values()))


class PlainOrder:
    """The same for one partition alone, whose order is the connector's already; `Landing` decides what waits in it."""

    def __init__(self) -> None:
        self._parts: list[pa.Table] = []
        self._kept = SCHEMA.empty_table()

    finished: tuple[str, ...] = ()

    @property
    def size(self) -> int:
        return int(self._kept.nbytes)

    def add(self, lines: pa.Table) -> None:
        self._parts.append(lines)

    def take(self, limit: int, *, complete: bool = False) -> pa.Table:
        """What was kept and what was added since, if anything was; all of it, if `complete`."""
        if not self._parts and not complete:
            return SCHEMA.empty_table()
        table = pa.concat_tables([self._kept, *self._parts])
        self._parts, self._kept = [], SCHEMA.empty_table()
        return table

    def keep(self, lines: pa.Table) -> None:
        """Give out these lines again, before whatever comes next."""
        self._kept = lines

    def doubtful(self) -> None:
        return None

    def offsets(self, reached: Mapping[str, int], kept: pa.Table) -> dict[str, int]:
        offsets = dict(reached)
        if kept.num_rows:
            offsets[kept["file"][0].as_py()] = kept["number"][0].as_py()
        return offsets

    def helpful(self, partitions: Iterable[str]) -> set[str]:
        return set(partitions)

    def blocked(self) -> str | None:
        return f"{self._kept.num_rows} records wait for the end of their transaction" if self._kept.num_rows else None


def as_lines(records: Sequence[tuple[str, int, bytes | None]]) -> pa.Table:
    """(partition, offset, value) as rows of `lines.SCHEMA`. A record without a value is a tombstone: JSON's null."""
    texts: list[str] = []
    are_text: list[bool] = []
    for partition, offset, value in records:
        raw = b"null" if value is None else value
        if raw[:1] == b"\0":
            raise LockstepError(
                f"Record {offset} of {partition} is not JSON but of a schema registry's format (Avro, Protobuf). Have "
                "the connector write JSON: value.converter=org.apache.kafka.connect.json.JsonConverter"
            )
        try:
            texts.append(raw.decode() + "\n")
            are_text.append(True)
        except UnicodeDecodeError:
            texts.append(raw.decode(errors="backslashreplace") + "\n")
            are_text.append(False)
    return _rows([p for p, _, _ in records], [o for _, o, _ in records], texts, are_text)


def _table(entries: Sequence[Entry]) -> pa.Table:
    return _rows(
        [e.partition for e in entries],
        [e.offset for e in entries],
        [e.line for e in entries],
        [e.is_text for e in entries],
    )


def _rows(partitions: list[str], offsets: list[int], texts: list[str], are_text: list[bool]) -> pa.Table:
    file: Any = pa.array(partitions, pa.string()).dictionary_encode().cast(SCHEMA.field("file").type)
    return pa.table([texts, are_text, file, np.array(offsets, np.int64)], schema=SCHEMA)


def _place(entry: Entry) -> str:
    return f"Record {entry.offset} of {entry.partition}"


def _unmarked(entry: Entry) -> str:
    return (
        f"{_place(entry)} is a change outside any marked transaction: with several partitions neither its place in the "
        "order nor the end of its transaction is known. Set provide.transaction.metadata=true in the connector, name "
        "the topic of its transaction marks too (<prefix>.transaction), and begin with topics that have no older "
        "events. One partition alone needs no marks. A TRUNCATE of MySQL's is in no transaction: its table's topic "
        "must have one partition."
    )
