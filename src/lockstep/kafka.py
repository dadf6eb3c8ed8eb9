"""Debezium's topics in Kafka into the change log, each change exactly once.

How far the topics have landed stands in the watermark's `resume`, replaced in the act that makes the rows visible: a
start reads on from there, whatever a consumer group would say, and none is used. The order of several partitions is
restored by `sequence`; what lands is decided by `ingest.Landing`, as for files.

Memory is bounded by BATCH_BYTES of records read, HELD_BYTES of records that wait for others, and one transaction.
"""

from __future__ import annotations

import logging
import re
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
from confluent_kafka import Consumer, KafkaError, KafkaException, TopicPartition

from lockstep.changelog import ChangeLog
from lockstep.errors import LockstepError
from lockstep.ingest import End, Landing, Summary
from lockstep.lock import exclusive
from lockstep.sequence import PlainOrder, Sequencer, as_lines
from lockstep.service import disk_full_said_plainly, stop_on_signal

BATCH_ROWS, BATCH_BYTES, HELD_BYTES = 50_000, 64 << 20, 128 << 20
_PATIENCE = 0.25  # seconds; the longest wait for records before the clock and the stop signal are looked at
_ANSWER = 15.0  # seconds a broker may take to answer
_LOOK_FOR_TOPICS = 10.0  # seconds between two looks for new topics and partitions
_MARKS_WITHIN = 10.0  # seconds by which transaction marks may come after the events they are about
_LOST_FOR_GOOD = 60.0  # seconds without an answer that end what was to end by itself
_TELL_BLOCKED = 30.0  # seconds between two warnings that a transaction waits
_OURS = {
    "bootstrap.servers": "",
    "enable.auto.commit": False,
    "enable.auto.offset.store": False,
    "auto.offset.reset": "error",
    "enable.partition.eof": True,
}
_HOPELESS = {
    KafkaError._AUTHENTICATION,
    KafkaError.SASL_AUTHENTICATION_FAILED,
    KafkaError.TOPIC_AUTHORIZATION_FAILED,
    KafkaError.CLUSTER_AUTHORIZATION_FAILED,
    KafkaError.GROUP_AUTHORIZATION_FAILED,
    KafkaError._SSL,
}
_GONE = {KafkaError.UNKNOWN_TOPIC_OR_PART, KafkaError._UNKNOWN_TOPIC, KafkaError._UNKNOWN_PARTITION}

log = logging.getLogger("lockstep.kafka")


@dataclass(frozen=True)
class Address:
    """Brokers (host:port, comma-separated) and topics: names, or regular expressions that begin with `^`."""

    brokers: str
    topics: tuple[str, ...]

    @classmethod
    def parse(cls, url: str) -> Address:
        """Read `kafka://BROKER[,BROKER]/TOPIC[,TOPIC]`. Raises LockstepError if it is not of that form."""
        match = re.fullmatch(r"kafka://([^/]+)/(.+)", url)
        if not match:
            raise LockstepError(
                f"{url!r} names no brokers and topics. Write it like kafka://broker:9092/shop.public.orders, with "
                "several brokers or topics separated by commas, or a regular expression: 'kafka://broker:9092/^shop[.]'"
            )
        topics = tuple(t for t in match[2].split(",") if t)
        for topic in topics:
            try:
                re.compile(topic)
            except re.error as e:
                raise LockstepError(f"{topic!r} is not a regular expression: {e}.") from None
        return cls(match[1], topics)

    def chosen(self, existing: Sequence[str]) -> list[str]:
        """The existing topics that are meant. Raises LockstepError if one that is named is not there."""
        found: set[str] = set()
        for topic in self.topics:
            if topic.startswith("^"):
                matches = {name for name in existing if re.search(topic, name)}
            else:
                matches = {topic} & set(existing)
            if not matches:
                there = ", ".join(sorted(n for n in existing if not n.startswith("__"))) or "none at all"
                raise LockstepError(
                    f"There is no topic {topic} on {self.brokers}, or it may not be seen. Those that are there: {there}"
                )
            found |= matches
        return sorted(found)


@dataclass(frozen=True)
class Options:
    """How to follow. `trigger` is how many seconds of records make a batch; see `follow` for the others."""

    trigger: float = 1.0
    until_caught_up: bool = False
    complete: bool = False
    from_beginning: bool = False
    settings: Mapping[str, str] = field(default_factory=dict)


def follow(
    home: Path, address: Address, options: Options, progress: Callable[[int, int], None] = lambda records, size: None
) -> Summary:
    """Land what is in the topics and what comes, until SIGTERM or SIGINT.

    `until_caught_up` ends at what the topics held at the start; `complete` then takes that for all there is, and lands
    transactions without the events or the END that have not come. `from_beginning` reads the topics again from their
    first record instead of on from what has landed; what has landed is known, and does not land twice. `settings` are
    librdkafka's. `progress` is called after each batch with the records and bytes read so far.

    Raises LockstepError where the user must act: no broker answers, a topic is not there, retention has removed
    records that had not landed, the events' order cannot be known. Nothing is lost by it.
    """
    with (
        ExitStack() as stack,
        stop_on_signal() as stop,
        disk_full_said_plainly(home),
        exclusive(home / "ingest.lock", "ingesting change events from Kafka"),
        _Topics(address, options.settings) as topics,
    ):
        changes = ChangeLog(home)
        resume = changes.watermark().resume if changes.exists() else {}
        stored = dict(resume.get("kafka", {}))
        if options.from_beginning:
            stored = {}
        topics.start(stored)
        landing = Landing(changes, stack, lends=True)
        return _Following(topics, landing, options, stored, progress).run(stop)


class _Following:
    """One run: reads, puts in order, lands."""

    def __init__(
        self,
        topics: _Topics,
        landing: Landing,
        options: Options,
        stored: Mapping[str, Any],
        progress: Callable[[int, int], None],
    ) -> None:
        self._topics = topics
        self._landing = landing
        self._options = options
        self._stored = stored
        self._progress = progress
        self._order: Sequencer | PlainOrder = (
            PlainOrder() if len(topics.reached) == 1 else Sequencer(stored.get("finished", ()), topics.is_alone)
        )
        is_plain = isinstance(self._order, PlainOrder)
        # Transactions come out of the sequencer whole; only what came after its END needs leave to land without one.
        self._end = End.MORE if is_plain else End.WHOLE if options.complete else End.INPUT
        self._gathered: list[tuple[str, int, bytes | None]] = []
        self._size = 0
        self._since = 0.0
        self._bytes_read = 0
        self._blocked: tuple[str | None, float] = (None, 0.0)
        self._told_at = 0.0

    def run(self, stop: threading.Event) -> Summary:
        caught_up = False
        while not stop.is_set() and not caught_up:
            self._gather()
            caught_up = self._options.until_caught_up and self._topics.has_caught_up
            if self._is_due():
                self._land()
            caught_up |= self._tend()
            if not self._landing.lend(lambda: not stop.is_set()):
                return self._landing.summary
        self._finish(caught_up)
        return self._landing.summary

    def _gather(self) -> None:
        patience = _PATIENCE
        if self._gathered:
            patience = max(0.0, min(self._since + self._options.trigger - time.monotonic(), _PATIENCE))
        for record in self._topics.read(BATCH_ROWS - len(self._gathered), patience):
            if not self._gathered:
                self._since = time.monotonic()
            self._gathered.append(record)
            self._size += len(record[2] or b"")

    def _is_due(self) -> bool:
        if not self._gathered:
            return False
        if len(self._gathered) >= BATCH_ROWS or self._size >= max(BATCH_BYTES, self._kept_size()):
            return True
        # A transaction longer than a batch: not read over and over while there is more to read at once.
        is_small = self._kept_size() > BATCH_BYTES and not self._topics.is_at_end
        return not is_small and time.monotonic() - self._since >= self._options.trigger

    def _kept_size(self) -> int:
        return self._order.size if isinstance(self._order, PlainOrder) else 0

    def _land(self, *, complete: bool = False, end: End | None = None) -> None:
        order, landing = self._order, self._landing
        if self._gathered:
            order.add(as_lines(self._gathered))
            self._bytes_read += self._size
            self._gathered, self._size = [], 0
        while True:
            lines = order.take(BATCH_BYTES, complete=complete)
            if lines.num_rows:
                order.keep(landing.chunk(lines, end or self._end, self._resume))
                self._progress(landing.summary.read, self._bytes_read)
                if isinstance(order, PlainOrder):
                    return
                continue
            doubtful = order.doubtful() if self._topics.is_at_end else None
            if doubtful is None or landing.chunk(doubtful, End.MORE).num_rows:
                return
            assert isinstance(order, Sequencer)
            order.pass_over()

    def _resume(self, kept: pa.Table) -> Mapping[str, Any]:
        offsets = {**self._stored.get("offsets", {}), **self._order.offsets(self._topics.reached, kept)}
        return {"kafka": {"cluster": self._topics.cluster, "offsets": offsets, "finished": list(self._order.finished)}}

    def _tend(self) -> bool:
        """What is due by the clock: bound the memory, report what waits, look for new topics.

        Returns whether nothing more can be read before something comes that need not come.
        """
        topics, order = self._topics, self._order
        names = topics.reached.keys()
        topics.only(order.helpful(names) if order.size > HELD_BYTES else set(names))
        topics.look_for_more()
        if isinstance(order, PlainOrder) and len(topics.reached) > 1:
            raise LockstepError(f"There are several partitions now: {', '.join(topics.reached)}. Start again.")
        blocked, now = order.blocked(), time.monotonic()
        if blocked != self._blocked[0] or not topics.is_at_end:
            self._blocked = (blocked, now)
        if self._options.until_caught_up:
            topics.give_up_if_lost()
        if blocked is None:
            return False
        waited = now - self._blocked[1]
        if waited < _MARKS_WITHIN:
            return False
        self._refuse_without_marks()
        if isinstance(order, PlainOrder):
            return False
        if self._options.until_caught_up and order.size > HELD_BYTES:
            return not (self._options.complete and order.give_up())
        if waited >= _TELL_BLOCKED and now - self._told_at >= _TELL_BLOCKED:
            self._told_at = now
            log.warning("all topics are read, and %s. %s", blocked, _WHY_BLOCKED)
        return False

    def _refuse_without_marks(self) -> None:
        order = self._order
        if self._landing.lacks_marks if isinstance(order, PlainOrder) else not order.has_marks:
            raise LockstepError(
                "The events are of marked transactions, and none of these topics has the marks: name the topic with "
                "the BEGIN and END records too (<prefix>.transaction, or what the connector's topic.transaction says)."
            )

    def _finish(self, caught_up: bool) -> None:
        """Land what is here and whole; with `complete`, at the end of what was there at the start, all of it."""
        complete = caught_up and self._options.complete
        is_plain = isinstance(self._order, PlainOrder)
        if complete:
            self._land()
            self._land(complete=True, end=End.WHOLE)
        else:
            self._land(complete=is_plain, end=End.CUT if is_plain else None)
            if caught_up and self._order.blocked():
                self._refuse_without_marks()
        if isinstance(self._order, Sequencer):
            summary = self._landing.summary
            summary.unfinished, summary.unfinished_events, summary.kept = self._order.counts()
            summary.read += summary.kept
            if caught_up and (blocked := self._order.blocked()):
                log.warning("caught up, and %s. %s", blocked, _WHY_BLOCKED)


_WHY_BLOCKED = (
    "Are the topics of all tables named? Has retention or compaction removed records? If what is missing will not "
    "come: --until-caught-up --complete lands what there is."
)


class _Topics:
    """The consumer: which partitions there are, how far each was read, and what went wrong, in words."""

    def __init__(self, address: Address, settings: Mapping[str, str]) -> None:
        self._address = address
        self._problem: KafkaError | None = None
        self._targets: dict[str, int] = {}
        self._ends: set[str] = set()
        self._reading: set[str] = set()
        self._lost_at: float | None = None
        self._looked_at = time.monotonic()
        self.cluster = ""
        self.reached: dict[str, int] = {}
        for name in settings:
            if name in _OURS:
                raise LockstepError(f"{name} cannot be set: that each change lands once depends on it.")
        configuration = {"group.id": "lockstep", **settings, **_OURS, "bootstrap.servers": address.brokers}
        try:
            self._consumer = Consumer(
                {**configuration, "error_cb": self._note, "logger": logging.getLogger("lockstep.librdkafka")}
            )
        except KafkaException as e:
            raise LockstepError(f"librdkafka does not take these settings: {e.args[0].str()}") from None

    def __enter__(self) -> _Topics:
        return self

    def __exit__(self, *_: object) -> None:
        self._consumer.close()

    @property
    def is_at_end(self) -> bool:
        """Whether every partition that is being read was read to its end, as far as the brokers said."""
        return self._ends >= self._reading

    @property
    def has_caught_up(self) -> bool:
        """Whether all has been read that was there at the start."""
        return all(self.reached[name] >= target for name, target in self._targets.items())

    def start(self, stored: Mapping[str, Any]) -> None:
        """Go to where `stored` says that each partition has landed; to its first record where it says nothing."""
        partitions = self._discover()
        if stored.get("cluster", self.cluster) != self.cluster:
            raise LockstepError(
                f"What has landed came from the Kafka cluster {stored['cluster']}, {self._address.brokers} is "
                f"{self.cluster}: offsets mean nothing there. If it holds the events of the same database, read it "
                "from its beginning (what has landed will not land twice): --from-beginning"
            )
        self._assign(partitions, stored.get("offsets", {}), is_start=True)

    def is_alone(self, name: str) -> bool:
        """Whether the partition is the only one of its topic."""
        topic = name.rpartition("/")[0]
        return [n.rpartition("/")[0] for n in self.reached].count(topic) == 1

    def look_for_more(self) -> None:
        """Take in partitions and topics that were made meanwhile, from their first record."""
        if time.monotonic() - self._looked_at < _LOOK_FOR_TOPICS:
            return
        self._looked_at = time.monotonic()
        if self._lost_at is not None:
            return
        new = {name: p for name, p in self._discover().items() if name not in self.reached}
        if new:
            log.info("new: %s", ", ".join(new))
            self._assign(new, {}, is_start=False)

    def _discover(self) -> dict[str, tuple[str, int]]:
        try:
            metadata = self._consumer.list_topics(timeout=_ANSWER)
        except KafkaException as e:
            raise self._unreachable(e.args[0]) from None
        self.cluster = metadata.cluster_id or ""
        topics = self._address.chosen(list(metadata.topics))
        return {f"{topic}/{n}": (topic, n) for topic in topics for n in sorted(metadata.topics[topic].partitions)}

    def _assign(self, partitions: Mapping[str, tuple[str, int]], stored: Mapping[str, int], *, is_start: bool) -> None:
        assigned = []
        for name, (topic, number) in partitions.items():
            low, high = self._span(name)
            offset = stored.get(name, low)
            if not low <= offset <= high:
                raise LockstepError(_out_of_range(name, offset, low, high))
            if name not in stored and low:
                log.warning("%s begins at offset %d: what was before has been removed by retention", name, low)
            self.reached[name] = offset
            if is_start:
                self._targets[name] = high
            assigned.append(TopicPartition(topic, number, offset))
        self._consumer.incremental_assign(assigned)
        self._reading |= partitions.keys()
        log.info("reading %d partitions of %s", len(self.reached), self._address.brokers)

    def only(self, wanted: set[str]) -> None:
        """Read these partitions and leave the others for later."""
        if wanted == self._reading:
            return
        if paused := self._reading - wanted:
            self._consumer.pause([_partition(name) for name in paused])
            self._ends -= paused
        if resumed := wanted - self._reading:
            self._consumer.resume([_partition(name) for name in resumed])
        self._reading = wanted

    def read(self, limit: int, patience: float) -> list[tuple[str, int, bytes | None]]:
        """Up to `limit` records as (partition, offset, value), those that come within `patience` seconds."""
        records: list[tuple[str, int, bytes | None]] = []
        for message in self._consumer.consume(limit, patience):
            name, offset = f"{message.topic()}/{message.partition()}", message.offset() or 0
            if (error := message.error()) is not None:
                self._heed(name, offset, error)
                continue
            self.reached[name] = offset + 1
            self._ends.discard(name)
            records.append((name, offset, message.value()))
        if records and self._lost_at is not None:
            self._lost_at = None
            log.info("brokers answer again")
        if self._problem is not None and self._problem.code() in _HOPELESS:
            raise self._unreachable(self._problem)
        return records

    def give_up_if_lost(self) -> None:
        """Raise LockstepError if no broker has answered for a minute."""
        if self._lost_at is not None and time.monotonic() - self._lost_at > _LOST_FOR_GOOD:
            raise self._unreachable(self._problem)

    def _heed(self, name: str, offset: int, error: KafkaError) -> None:
        if error.code() == KafkaError._PARTITION_EOF:
            self.reached[name] = max(self.reached[name], offset)
            self._ends.add(name)
            self._lost_at = None
        elif error.code() == KafkaError._AUTO_OFFSET_RESET:
            low, high = self._span(name)
            raise LockstepError(_out_of_range(name, self.reached[name], low, high))
        elif error.code() in _GONE:
            raise LockstepError(f"{name} is no longer on {self._address.brokers}. What had been read has landed.")
        elif error.code() in _HOPELESS:
            raise self._unreachable(error)
        else:
            log.warning("%s: %s", name, error.str())

    def _note(self, error: KafkaError) -> None:
        self._problem = error
        if error.code() == KafkaError._ALL_BROKERS_DOWN and self._lost_at is None:
            self._lost_at = time.monotonic()
            log.warning("no broker answers; trying again")

    def _span(self, name: str) -> tuple[int, int]:
        """The first offset of a partition, and the one after its last."""
        try:
            low, high = self._consumer.get_watermark_offsets(_partition(name), timeout=_ANSWER)
        except KafkaException as e:
            raise self._unreachable(e.args[0]) from None
        return int(low), int(high)

    def _unreachable(self, error: KafkaError | None) -> LockstepError:
        first = self._problem or error
        reason = first.str() if first is not None else "no answer"
        return LockstepError(
            f"Kafka at {self._address.brokers} cannot be read: {reason}. Check the address and that a broker's "
            "advertised listener can be reached from here; security is set by --set, e.g. "
            "--set security.protocol=SASL_SSL. What has landed stays landed."
        )


def _partition(name: str) -> TopicPartition:
    topic, _, number = name.rpartition("/")
    return TopicPartition(topic, int(number))


def _out_of_range(name: str, offset: int, low: int, high: int) -> str:
    if offset > high:
        return (
            f"{name} ends at offset {high}, but what has landed of it went up to {offset}: the topic was made anew. If "
            "it holds the events of the same database, read it from its beginning (what has landed will not land "
            "twice): --from-beginning"
        )
    return (
        f"{name} begins at offset {low}, but what has landed of it ends at {offset}: retention has removed "
        f"{low - offset} records that had not landed. Land them from a copy if there is one (lockstep ingest FILE), "
        "then go on with --from-beginning. Without one the log has a gap: take a new snapshot into another "
        "LOCKSTEP_HOME, and give the topics a longer retention than any pause of this command."
    )
