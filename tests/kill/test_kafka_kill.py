"""Kafka under fire: the reader killed at random again and again while a connector writes, the connector killed too.

What the log must hold is known independently of topics, offsets and kills: the connector's stream, landed from a file.
"""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime
from pathlib import Path

import pytest

from connector import PARTITIONS, Connector, Record, changes, delayed, delivered, file_of
from debezium_events import log_tables
from kafka_mock import Kafka, kafka
from lockstep.changelog import ChangeLog
from lockstep.ingest import ingest

LOCKSTEP = str(Path(sys.executable).with_name("lockstep"))
TRANSACTIONS, CONNECTOR_KILLS, READER_KILLS = 2_500, 8, 8
PART_SECONDS = 1.5  # the least that the connector takes for its share of records between two kills of the reader
SAFETY = 600  # seconds after which a reader counts as stuck


def start(home: Path, broker: Kafka, *options: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [LOCKSTEP, "ingest", f"kafka://{broker.brokers}/^shop[.]", "--trigger", "20ms", *options],
        env={**os.environ, "LOCKSTEP_HOME": str(home)},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )


def produce(broker: Kafka, records: list[Record], stop: threading.Event) -> None:
    for i, record in enumerate(records):
        broker.send(*record)
        if i % 20 == 0 and stop.wait(20 * PART_SECONDS / len(records)):
            return
    broker.flush()


def kill_after_a_landing(reader: subprocess.Popen[str], log: ChangeLog, seconds: float) -> None:
    def landed_at() -> datetime | None:
        return log.watermark().landed_at if log.exists() else None

    before, end = landed_at(), time.monotonic() + SAFETY
    try:
        while landed_at() == before:
            assert reader.poll() is None, reader.stderr and reader.stderr.read()
            assert time.monotonic() < end, "the reader lands nothing"
            time.sleep(0.01)
        time.sleep(seconds)
    finally:
        reader.kill()
        reader.communicate()
    assert reader.returncode == -signal.SIGKILL, "the reader ended by itself"


@pytest.mark.tries(CONNECTOR_KILLS + READER_KILLS)
def test_nothing_is_lost_or_doubled_by_kills(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Every reader is given a part of the records, and killed within 0.4 s after it has landed something."""
    seed = random.randrange(1 << 32)
    chance = random.Random(seed)
    connector = Connector(chance)
    stream = [*connector.snapshot(500), *connector.stream(TRANSACTIONS)]
    ingest(tmp_path / "file", file_of(tmp_path / "stream", stream))
    expected = changes(log_tables(tmp_path / "file"))
    records = delayed(delivered(stream, chance, CONNECTOR_KILLS), chance)
    size = len(records) // READER_KILLS + 1  # thousands: more than the connector repeats or delays, so some are new
    home, log = tmp_path / "home", ChangeLog(tmp_path / "home")
    stop = threading.Event()
    with kafka() as broker:
        for name, partitions in PARTITIONS.items():
            broker.topic(name, partitions)
        with ThreadPoolExecutor(max_workers=1) as producer:  # one part after the other
            try:
                for first in range(0, len(records), size):
                    sent = producer.submit(produce, broker, records[first : first + size], stop)
                    kill_after_a_landing(start(home, broker), log, chance.random() * 0.4)
                sent.result()
            finally:
                stop.set()
        final = start(home, broker, "--until-caught-up")
        assert final.wait(timeout=SAFETY) == 0, final.stderr and final.stderr.read()
    got = changes(log_tables(home))
    lost, doubled = len(expected[1]) - len(set(map(str, got[1]))), len(got[1]) - len(set(map(str, got[1])))
    with capsys.disabled():
        print(
            f"\nkafka: {READER_KILLS} kills, {CONNECTOR_KILLS} of the connector, {len(records):,} records, "
            f"{len(got[1]):,} changes: {lost} lost, {doubled} doubled (seed {seed})"
        )
    assert got == expected
