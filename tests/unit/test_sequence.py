"""The order of a connector's events, restored from the partitions over which Kafka spread them.

Awkward cases: END before the events it counts; a partition far behind; one transaction over partitions and one within
another's delay; the connector killed, so that it sends again from the middle of a transaction, or an END alone, also of
transactions long forgotten; snapshot rows between; records that cannot be read; a start in the middle of all this.
"""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

import pytest

from connector import MARKS, Connector, Record, changes, delayed, delivered, file_of
from debezium_events import event, log_rows, log_tables, mark, order
from lockstep import sequence
from lockstep.changelog import ChangeLog
from lockstep.ingest import End, Landing, ingest
from lockstep.sequence import Sequencer, as_lines


def numbered(records: Sequence[Record]) -> list[tuple[str, int, bytes | None]]:
    """Records with the offsets that they have in their partitions."""
    following: dict[str, int] = {}
    out = []
    for topic, partition, value in records:
        name = f"{topic}/{partition}"
        out.append((name, following.setdefault(name, 0), value))
        following[name] += 1
    return out


def land(home: Path, records: list[tuple[str, int, bytes | None]], chance: random.Random, restarts: int) -> Sequencer:
    """Through a sequencer into a log, in batches; started anew so often from what the log says has landed."""
    cuts = sorted(chance.sample(range(len(records)), restarts))
    log = ChangeLog(home)
    for stop in [*cuts, len(records)]:
        stored = log.watermark().resume if log.exists() else {}
        offsets = stored.get("offsets", {})
        order = Sequencer(stored.get("finished", ()))
        reached = {name: 0 for name, *_ in records} | offsets
        with ExitStack() as stack:
            landing = Landing(log, stack)
            batch: list[tuple[str, int, bytes | None]] = []
            for i, (name, offset, value) in enumerate(records[:stop]):
                if offset >= offsets.get(name, 0):
                    batch.append((name, offset, value))
                    reached[name] = offset + 1
                if i < stop - 1 and chance.random() > 0.008:
                    continue
                if batch:
                    order.add(as_lines(batch))
                    batch = []
                while True:
                    lines = order.take(chance.choice((5_000, 1 << 20)))
                    if not lines.num_rows:
                        doubtful = order.doubtful()
                        if doubtful is None or landing.chunk(doubtful, End.MORE).num_rows:
                            break
                        order.pass_over()
                        continue
                    where = order.offsets(reached, lines.slice(0, 0))
                    resume = {"offsets": where, "finished": order.finished}
                    order.keep(landing.chunk(lines, End.INPUT, lambda kept, resume=resume: resume))
    return order


@pytest.mark.parametrize("seed", range(4))
def test_whatever_the_delays_and_kills_the_log_is_that_of_the_stream(tmp_path, seed):
    chance = random.Random(seed)
    connector = Connector(chance)
    stream = [*connector.snapshot(30), *connector.stream(80)]
    ingest(tmp_path / "file", file_of(tmp_path / "stream", stream))
    records = numbered(delayed(delivered(stream, chance, kills=6), chance))
    assert land(tmp_path / "kafka", records, chance, restarts=seed).blocked() is None
    assert changes(log_tables(tmp_path / "kafka")) == changes(log_tables(tmp_path / "file"))


def transactions(*numbers: int, events: int = 3) -> list[list[Record]]:
    """Each as its records: BEGIN, its events in one partition, END."""
    out = []
    for tx in numbers:
        counts = {
            "event_count": events,
            "data_collections": [{"data_collection": "public.orders", "event_count": events}],
        }
        records: list[Record] = [(MARKS, 0, json.dumps(mark("BEGIN", tx)).encode())]
        for i in range(1, events + 1):
            change = event("c", None, order(tx * 10 + i), n=tx * 10 + i, tx=tx, marked=True)
            change["transaction"]["total_order"] = i
            records.append(("shop.public.orders", 0, json.dumps(change).encode()))
        out.append([*records, (MARKS, 0, json.dumps(mark("END", tx) | counts).encode())])
    return out


SENT_AGAIN = {"an END alone": 4, "its last event": 3, "from its second event": 2, "all of it": 0}


@pytest.mark.parametrize("since", SENT_AGAIN.values(), ids=SENT_AGAIN.keys())
@pytest.mark.parametrize("is_forgotten", [False, True])
def test_what_is_sent_again_is_known(tmp_path, since, is_forgotten, monkeypatch):
    if is_forgotten:
        monkeypatch.setattr(sequence, "FINISHED", 1)
    first, second, third = transactions(1, 2, 3)
    before = numbered([*first, *second, *first[since:], *second, *third])
    restart_at = len(first) + len(second)
    chance = random.Random(0)
    land(tmp_path, before[:restart_at], chance, restarts=0)
    order = land(tmp_path, before, chance, restarts=0)
    if is_forgotten and since == SENT_AGAIN["an END alone"]:
        assert order.blocked() == "transaction 1 waits for 3 of its 3 events of public.orders"
        assert len(log_rows(tmp_path)) == 6
    else:
        assert order.blocked() is None
        assert [row["after"]["order_id"] for row in log_rows(tmp_path)] == [11, 12, 13, 21, 22, 23, 31, 32, 33]


def test_tables_that_the_project_does_not_know_are_not_waited_for(tmp_path):
    (records,) = transactions(1)
    end = json.loads(records[-1][2] or b"")
    end["data_collections"].append({"data_collection": "public.audit", "event_count": 5})
    end["event_count"] = 8
    order = land(
        tmp_path, numbered([*records[:-1], (MARKS, 0, json.dumps(end).encode())]), random.Random(0), restarts=0
    )
    assert (order.blocked(), len(log_rows(tmp_path))) == (None, 3)
