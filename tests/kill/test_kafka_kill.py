"""Kafka under fire: the reader killed at random again and again while a connector writes, the connector killed too.

What the log must hold is known independently of topics, offsets and kills: the connector's stream, landed from a file.
"""

from __future__ import annotations

import os
import random
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from connector import PARTITIONS, Connector, Record, changes, delayed, delivered, file_of
from debezium_events import log_tables
from kafka_mock import Kafka, kafka
from lockstep.changelog import ChangeLog
from lockstep.ingest import ingest

LOCKSTEP = str(Path(sys.executable).with_name("lockstep"))
TRANSACTIONS, CONNECTOR_KILLS, SECONDS = 2_500, 8, 20


def start(home: Path, broker: Kafka, *options: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [LOCKSTEP, "ingest", f"kafka://{broker.brokers}/^shop[.]", "--trigger", "20ms", *options],
        env={**os.environ, "LOCKSTEP_HOME": str(home)},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )


def produce(broker: Kafka, records: list[Record], seconds: float, stop: threading.Event) -> None:
    for i, record in enumerate(records):
        broker.send(*record)
        if i % 20 == 0 and stop.wait(20 * seconds / len(records)):
            return
    broker.flush()


@pytest.mark.tries(CONNECTOR_KILLS)
def test_nothing_is_lost_or_doubled_by_kills(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    seed = random.randrange(1 << 32)
    chance = random.Random(seed)
    connector = Connector(chance)
    stream = [*connector.snapshot(500), *connector.stream(TRANSACTIONS)]
    ingest(tmp_path / "file", file_of(tmp_path / "stream", stream))
    expected = changes(log_tables(tmp_path / "file"))
    records = delayed(delivered(stream, chance, CONNECTOR_KILLS), chance)
    home, log = tmp_path / "home", ChangeLog(tmp_path / "home")
    stop = threading.Event()
    with kafka() as broker:
        for name, partitions in PARTITIONS.items():
            broker.topic(name, partitions)
        producer = threading.Thread(target=produce, args=(broker, records, SECONDS, stop))
        producer.start()
        try:
            kills = 0
            while producer.is_alive():
                landed_at = log.watermark().landed_at if log.exists() else None
                process = start(home, broker)
                while (log.watermark().landed_at if log.exists() else None) == landed_at and producer.is_alive():
                    assert process.poll() is None, process.stderr and process.stderr.read()
                    time.sleep(0.01)
                time.sleep(chance.random() * 0.4)
                process.kill()
                process.communicate()
                kills += 1
        finally:
            stop.set()
        final = start(home, broker, "--until-caught-up")
        assert final.wait(timeout=600) == 0, final.stderr and final.stderr.read()
    got = changes(log_tables(home))
    lost, doubled = len(expected[1]) - len(set(map(str, got[1]))), len(got[1]) - len(set(map(str, got[1])))
    with capsys.disabled():
        print(
            f"\nkafka: {kills} kills, {CONNECTOR_KILLS} of the connector, {len(records):,} records, "
            f"{len(got[1]):,} changes: {lost} lost, {doubled} doubled (seed {seed})"
        )
    assert got == expected
    assert kills > 0  # how many fit into the stream depends on how fast a process starts
