"""`lockstep ingest kafka://`: topics into the log, each change once and whole transactions, and what it refuses.

Awkward cases: table topics of several partitions; a single partition without marks; records that come while it runs; a
stop and a start; no broker, a broker that goes away; no topic, a topic made anew, one whose records retention removed;
marks that nobody reads; tables that nobody reads; what no connector wrote.
"""

from __future__ import annotations

import errno
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from connector import MARKS, PARTITIONS, Connector, changes, delayed, delivered, file_of
from debezium_events import event, log_rows, log_tables, mark, order
from kafka_mock import Kafka, kafka
from lockstep import kafka as module
from lockstep.changelog import ChangeLog
from lockstep.cli import cli
from lockstep.errors import LockstepError
from lockstep.ingest import Summary, ingest
from lockstep.kafka import Address, Options, follow
from lockstep.schema import TABLES, declared

ORDERS = "shop.public.orders"
LOCKSTEP = str(Path(sys.executable).with_name("lockstep"))


@pytest.fixture
def broker() -> Iterator[Kafka]:
    with kafka() as cluster:
        yield cluster


@pytest.fixture
def home(tmp_path: Path) -> Path:
    return tmp_path / "home"


def send(broker: Kafka, topic: str, *events: Any, partition: int = 0) -> None:
    for e in events:
        broker.send(topic, partition, e if isinstance(e, bytes) else json.dumps(e).encode())
    broker.flush()


def catch_up(home: Path, broker: Kafka, *topics: str, **options: Any) -> Summary:
    return follow(home, Address(broker.brokers, topics), Options(until_caught_up=True, trigger=0.05, **options))


def transaction(tx: int, orders: int) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Its events, and its marks."""
    events = []
    for i in range(1, orders + 1):
        events.append(event("c", None, order(tx * 100 + i), n=tx * 100 + i, tx=tx, marked=True))
        events[-1]["transaction"]["total_order"] = i
    end = mark("END", tx, tx * 100 + orders)
    end |= {"event_count": orders, "data_collections": [{"data_collection": "public.orders", "event_count": orders}]}
    return events, [mark("BEGIN", tx, tx * 100), end]


def ids(home: Path) -> list[int]:
    return [row["after"]["order_id"] for row in log_rows(home)] if ChangeLog(home).exists() else []


def offsets(home: Path) -> dict[str, int]:
    return ChangeLog(home).watermark().resume["kafka"]["offsets"]


def test_topics_of_several_partitions_land_as_the_connector_wrote_them(broker, home, tmp_path):
    chance = random.Random(5)
    connector = Connector(chance)
    stream = [*connector.snapshot(50), *connector.stream(400)]
    ingest(tmp_path / "file", file_of(tmp_path / "stream", stream))
    for name, partitions in PARTITIONS.items():
        broker.topic(name, partitions)
    records = delayed(delivered(stream, chance, kills=5), chance)
    for part in (records[: len(records) // 3], records[len(records) // 3 :]):
        for record in part:
            broker.send(*record)
        broker.flush()
        summary = catch_up(home, broker, r"^shop[.]")
    assert summary.unfinished == 0
    assert changes(log_tables(home)) == changes(log_tables(tmp_path / "file"))
    again = catch_up(home, broker, r"^shop[.]", from_beginning=True)
    assert (again.landed.total(), again.known > 0) == (0, True)
    assert changes(log_tables(home)) == changes(log_tables(tmp_path / "file"))


def test_one_partition_needs_no_marks_and_holds_its_last_transaction(broker, home):
    broker.topic(ORDERS)
    send(broker, ORDERS, *(event("c", None, order(i), n=i, tx=i // 2) for i in range(6)))
    summary = catch_up(home, broker, ORDERS)
    assert (ids(home), summary.unfinished, offsets(home)) == ([0, 1, 2, 3], 1, {f"{ORDERS}/0": 4})
    send(broker, ORDERS, event("c", None, order(6), n=6, tx=2), event("c", None, order(7), n=7, tx=3))
    catch_up(home, broker, ORDERS)
    assert ids(home) == [0, 1, 2, 3, 4, 5, 6]
    assert catch_up(home, broker, ORDERS, complete=True).landed == {"orders": 1}
    assert catch_up(home, broker, ORDERS).read == 0


def test_a_transaction_waits_for_all_its_events(broker, home):
    broker.topic(ORDERS, 2)
    broker.topic(MARKS)
    events, marks = transaction(1, 3)
    later, later_marks = transaction(2, 1)
    send(broker, ORDERS, events[0], events[2])
    send(broker, MARKS, *marks, *later_marks)
    send(broker, ORDERS, *later, partition=1)
    summary = catch_up(home, broker, ORDERS, MARKS)
    assert (ids(home), summary.unfinished, summary.unfinished_events) == ([], 2, 3)
    send(broker, ORDERS, events[1], partition=1)
    assert catch_up(home, broker, ORDERS, MARKS).unfinished == 0
    assert ids(home) == [101, 102, 103, 201]


def test_a_table_without_a_key_lands_each_of_equal_rows_once(broker, home, tmp_path, monkeypatch):
    (tmp_path / "schema.sql").write_text("-- append-only\nCREATE TABLE visits (page text)")
    monkeypatch.setattr(TABLES, "_found", declared(tmp_path / "schema.sql"))
    visits = "shop.public.visits"
    broker.topic(visits, 2)
    broker.topic(MARKS)
    rows = [event("c", None, {"page": "a"}, tx=1, marked=True, table="visits") for _ in range(3)]  # of one COPY
    for number, row in enumerate(rows, 1):
        row["transaction"]["total_order"] = number
        send(broker, visits, row, partition=number % 2)
    end = {"event_count": 3, "data_collections": [{"data_collection": "public.visits", "event_count": 3}]}
    send(broker, MARKS, mark("BEGIN", 1), mark("END", 1) | end)
    send(broker, visits, *rows[1:])  # the connector was started anew
    assert catch_up(home, broker, visits, MARKS).landed == {"visits": 3}
    assert catch_up(home, broker, visits, MARKS, from_beginning=True).landed == {}
    assert [row["after"]["page"] for row in log_rows(home, "visits")] == ["a"] * 3


def test_complete_lands_what_there_is(broker, home):
    broker.topic(ORDERS, 2)
    broker.topic(MARKS)
    events, marks = transaction(1, 3)
    send(broker, MARKS, *marks)
    send(broker, ORDERS, events[0], *transaction(2, 1)[0])
    assert catch_up(home, broker, ORDERS, MARKS, complete=True).landed == {"orders": 2}
    assert ids(home) == [101, 201]
    send(broker, ORDERS, *events[1:], partition=1)  # they come after all
    send(broker, MARKS, *transaction(2, 1)[1])
    assert catch_up(home, broker, ORDERS, MARKS, complete=True).landed == {"orders": 2}


def test_what_cannot_be_read_goes_to_quarantine(broker, home):
    broker.topic(ORDERS, 2)
    broker.topic(MARKS)
    events, marks = transaction(1, 1)
    send(broker, ORDERS, *events, b"{broken", b"\xff\xfe")
    send(broker, MARKS, *marks)
    assert catch_up(home, broker, ORDERS, MARKS).quarantined == 2
    assert [e["event"] for e in ChangeLog(home).quarantined()] == ["{broken", "\\xff\\xfe"]
    assert (ids(home), catch_up(home, broker, ORDERS, MARKS).read) == ([101], 0)


def test_a_large_backlog_stays_within_its_bounds(broker, home, monkeypatch):
    """The marks come last: until then nothing more is read than may be held."""
    monkeypatch.setattr(module, "HELD_BYTES", 20_000)
    monkeypatch.setattr(module, "BATCH_ROWS", 10)
    broker.topic(ORDERS, 2)
    broker.topic(MARKS)
    parts = [transaction(tx, 3) for tx in range(1, 60)]
    held: list[int] = []
    take = module.Sequencer.take
    monkeypatch.setattr(
        module.Sequencer, "take", lambda self, *a, **k: (held.append(self.size), take(self, *a, **k))[1]
    )
    for events, _ in parts:
        for i, e in enumerate(events):
            send(broker, ORDERS, e, partition=i % 2)
    send(broker, MARKS, *(m for _, marks in parts for m in marks))
    assert catch_up(home, broker, ORDERS, MARKS).unfinished == 0
    assert len(ids(home)) == 3 * len(parts)
    assert 20_000 < max(held) < 40_000


def test_it_follows_until_it_is_stopped(broker, home):
    for name, partitions in PARTITIONS.items():
        broker.topic(name, partitions)
    process = start(home, f"kafka://{broker.brokers}/^shop[.]", "--trigger", "100ms")
    try:
        for tx in range(1, 4):
            events, marks = transaction(tx, 2)
            send(broker, ORDERS, *events, partition=tx % 3)
            send(broker, MARKS, *marks)
            await_ids(home, 2 * tx)
        broker.stop()
        time.sleep(1)
        broker.start()
        events, marks = transaction(9, 2)
        send(broker, ORDERS, *events)
        send(broker, MARKS, *marks)
        await_ids(home, 8)
    finally:
        process.send_signal(signal.SIGTERM)
        out, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    assert json.loads(out)["landed"] == {"orders": 8}


def start(home: Path, *arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [LOCKSTEP, "ingest", *arguments, "--json"],
        env={**os.environ, "LOCKSTEP_HOME": str(home)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def await_ids(home: Path, count: int) -> None:
    given_up = time.monotonic() + 120
    while len(ids(home)) < count:
        assert time.monotonic() < given_up, ids(home)
        time.sleep(0.05)


# What is refused


def test_no_broker_answers(home, monkeypatch):
    monkeypatch.setattr(module, "_ANSWER", 2)
    with pytest.raises(LockstepError, match=r"Kafka at 127.0.0.1:1 cannot be read: .*--set"):
        follow(home, Address("127.0.0.1:1", ("x",)), Options(until_caught_up=True))
    assert not ChangeLog(home).exists()


def test_a_topic_that_is_not_there(broker, home):
    broker.topic(ORDERS)
    for topic in ("shop.public.order", "^nothing"):
        with pytest.raises(LockstepError, match=rf"no topic .*{topic[1:]}.* are there: .*{ORDERS}"):
            catch_up(home, broker, topic)


def test_retention_removed_what_had_not_landed(broker, home):
    broker.topic(ORDERS)
    first = [event("c", None, order(i), n=i, tx=i) for i in range(5)]
    send(broker, ORDERS, *first)
    catch_up(home, broker, ORDERS)
    send(broker, ORDERS, *(event("c", None, order(i, note="x" * 10_000), n=i, tx=i) for i in range(5, 900)))
    with pytest.raises(LockstepError, match=r"begins at offset \d+, but what has landed of it ends at 4: retention"):
        catch_up(home, broker, ORDERS)
    assert ids(home) == [0, 1, 2, 3]
    assert catch_up(home, broker, ORDERS, from_beginning=True).landed.total() > 100


def test_a_topic_made_anew_and_another_cluster(broker, home):
    broker.topic(ORDERS)
    events = [event("c", None, order(i), n=i, tx=i) for i in range(5)]
    send(broker, ORDERS, *events)
    catch_up(home, broker, ORDERS)
    with kafka() as other:
        other.topic(ORDERS)
        send(other, ORDERS, *events[:3], event("c", None, order(9), n=9, tx=9))
        with pytest.raises(LockstepError, match=r"Kafka cluster .*--from-beginning"):
            catch_up(home, other, ORDERS)
        resume = ChangeLog(home).watermark().resume
        with ChangeLog(home).writer("postgresql:shop") as writer:
            moved = {"kafka": {**resume["kafka"], "offsets": {f"{ORDERS}/0": 77}}}
            writer.land({}, resume=moved)
        with pytest.raises(LockstepError, match=r"ends at offset 5, but .* up to 77: the topic was made anew"):
            catch_up(home, broker, ORDERS)
        assert catch_up(home, other, ORDERS, from_beginning=True, complete=True).landed == {"orders": 1}
        assert ids(home) == [0, 1, 2, 3, 9]


def test_a_full_disk_is_said_plainly(broker, home, monkeypatch):
    broker.topic(ORDERS)
    send(broker, ORDERS, event("c", None, order(1)), event("c", None, order(2), n=2, tx=2))

    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch, pytest.raises(LockstepError, match=r"disk of .*home is full"):
        patch.setattr("lockstep.staging.Stager._stage", full)
        catch_up(home, broker, ORDERS)
    assert catch_up(home, broker, ORDERS).landed == {"orders": 1}


def test_marks_that_nobody_reads(broker, home):
    broker.topic(ORDERS, 2)
    events, _ = transaction(1, 2)
    send(broker, ORDERS, *events)
    with pytest.raises(LockstepError, match="none of these topics has the marks"):
        catch_up(home, broker, ORDERS)
    broker.topic("one")
    send(broker, "one", *events)
    with pytest.raises(LockstepError, match="none of these topics has the marks"):
        catch_up(home, broker, "one")


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (json.dumps(event("c", None, order())).encode(), r"Record 0 of .*orders/1 is a change outside any marked"),
        (b"\0\0\0\0\5avro", r"Record 0 of .*orders/1 is not JSON but of a schema registry"),
        (json.dumps(mark("END", 1)).encode(), "without saying how many events"),
    ],
)
def test_events_without_order_and_other_formats(broker, home, value, message):
    broker.topic(ORDERS, 2)
    send(broker, ORDERS, value, partition=1)
    with pytest.raises(LockstepError, match=message):
        catch_up(home, broker, ORDERS)


def test_a_truncate_without_transaction_keeps_its_place(broker, home):
    """As MySQL's connector sends it."""
    broker.topic(ORDERS)
    broker.topic(MARKS)
    (first, begin), (second, again) = transaction(1, 2), transaction(2, 1)
    truncate = event("t", None, None, n=150, tx=None)
    send(broker, ORDERS, *first, truncate, *second)
    send(broker, MARKS, *again[:1], *begin, again[1])
    assert catch_up(home, broker, ORDERS, MARKS).landed == {"orders": 5}
    assert [row["op"] for row in log_rows(home)] == ["c", "c", "d", "d", "c"]
    broker.topic("shop.public.products", 2)
    send(broker, "shop.public.products", truncate)
    with pytest.raises(LockstepError, match="topic must have one partition"):
        catch_up(home, broker, "^shop[.]")


def test_marks_in_two_partitions(broker, home):
    broker.topic(MARKS, 2)
    for partition in (0, 1):
        send(broker, MARKS, *transaction(partition, 1)[1], partition=partition)
    with pytest.raises(LockstepError, match="between two partitions their order is lost"):
        catch_up(home, broker, MARKS)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["kafka://b"], "names no brokers and topics"),
        (["kafka://b/^["], "not a regular expression"),
        (["kafka://b/t", "file"], "Name one kafka://"),
        (["kafka://b/t", "--complete"], "--until-caught-up"),
        (["kafka://b/t", "--set", "nonsense=1"], "librdkafka does not take"),
        (["kafka://b/t", "--set", "auto.offset.reset=latest"], "cannot be set"),
        (["kafka://b/t", "--set", "nothing"], "is not a setting"),
        (["kafka://b/t", "--settings", "/no/file"], "cannot be read"),
        (["file", "--trigger", "1s"], "are about kafka://"),
    ],
)
def test_mistakes_on_the_command_line(home, arguments, message):
    result = CliRunner(env={"LOCKSTEP_HOME": str(home)}).invoke(cli, ["ingest", *arguments])
    assert result.exit_code == 1
    assert message in str(result.exception)


def test_settings_from_a_file(broker, home, tmp_path):
    broker.topic(ORDERS)
    send(broker, ORDERS, event("c", None, order(1)), event("c", None, order(2), n=2, tx=2))
    path = tmp_path / "kafka.properties"
    path.write_text("# for the test\n\nclient.id = shop\n")
    arguments = ["ingest", f"kafka://{broker.brokers}/{ORDERS}", "--until-caught-up", "--settings", str(path)]
    result = CliRunner(env={"LOCKSTEP_HOME": str(home)}).invoke(cli, arguments)
    assert (result.exit_code, ids(home)) == (0, [1])


def test_a_column_joins_under_way(broker, home, tmp_path, monkeypatch):
    """Declared before the source has it, taken up in the same run as the first event with it; one row is told later."""
    (tmp_path / "s.sql").write_text("CREATE TABLE item (id integer PRIMARY KEY, v integer, added integer);")
    topic = "shop.public.item"
    broker.topic(topic)

    def change(n: int, op: str, before: Any, after: Any) -> dict[str, Any]:
        return event(op, before, after, n=n, tx=n, table="item")

    with monkeypatch.context() as patch:
        (tmp_path / "before.sql").write_text("CREATE TABLE item (id integer PRIMARY KEY, v integer);")
        patch.setattr(TABLES, "_found", declared(tmp_path / "before.sql"))
        send(broker, topic, *(change(n, "c", None, {"id": n, "v": n}) for n in (1, 2, 3)))
        catch_up(home, broker, topic, complete=True)
    monkeypatch.setattr(TABLES, "_found", declared(tmp_path / "s.sql"))
    # ALTER TABLE item ADD added integer DEFAULT 7
    send(
        broker,
        topic,
        change(4, "u", {"id": 1, "v": 1}, {"id": 1, "v": 5}),
        change(5, "u", {"id": 2, "v": 2, "added": 7}, {"id": 2, "v": 2, "added": 8}),
    )
    summary = catch_up(home, broker, topic, complete=True)
    assert (summary.waiting, len(summary.joined), summary.quarantined) == ([], 1, 0)
    send(
        broker,
        topic,
        change(6, "u", {"id": 2, "v": 2, "added": 8}, {"id": 2, "v": 2, "added": 9}),
        change(7, "d", {"id": 3, "v": 3, "added": 7}, None),
        change(8, "r", None, {"id": 1, "v": 5, "added": 7}),
    )
    catch_up(home, broker, topic, complete=True)
    weights: dict[tuple[Any, ...], int] = {}
    for row in log_rows(home, "item"):
        for image, weight in ((row["before"], -1), (row["after"], 1)):
            if image:
                key = (image["id"], image["v"], image.get("added"))
                weights[key] = weights.get(key, 0) + weight
    assert {key: n for key, n in weights.items() if n} == {(1, 5, 7): 1, (2, 2, 9): 1}
