"""The recording of Debezium 3.6 reading a real PostgreSQL goes through whole, in every encoding and delivery.

The expected values are computed from the recording in plain Python, by json and datetime alone.
"""

from __future__ import annotations

import gzip
import itertools
import json
import random
from collections.abc import Callable, Iterator
from datetime import date, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from debezium_events import log_tables
from lockstep.changelog import ChangeLog
from lockstep.ingest import ingest
from lockstep.kinds import DATE, TIMESTAMP
from lockstep.schema import TABLES

RECORDING = Path(__file__).parents[2].parent / "shared" / "debezium_shop.jsonl.gz"
SOME = 8_000  # records of it that the variants take: the whole snapshot and the first hours of changes
TIMES = {t.name: [c.name for c in t.columns if c.type == TIMESTAMP] for t in TABLES.values()}

pytestmark = pytest.mark.skipif(
    not RECORDING.exists(), reason=f"the recording {RECORDING.name} is not beside the repository"
)


@pytest.fixture(scope="module")
def recording() -> list[str]:
    with gzip.open(RECORDING, "rt", encoding="utf-8") as file:
        return file.read().splitlines()


@pytest.fixture(scope="module")
def some(recording) -> list[str]:
    return recording[:SOME]


@pytest.fixture(scope="module")
def expected(some) -> dict[str, list[dict[str, Any]]]:
    return replay(some)


def replay(lines: list[str]) -> dict[str, list[dict[str, Any]]]:
    """What the log must hold of these lines: every change in order, by table, without the file's own columns."""
    tables: dict[str, list[dict[str, Any]]] = {table: [] for table in TABLES}
    position = 0
    logged_at = datetime.min
    for record in map(json.loads, lines):
        if "op" not in record:
            continue
        position += 1
        source = record["source"]
        committed_at = since_1970(source["ts_us"])
        logged_at = max(logged_at, committed_at)
        tables[source["table"]].append(
            {
                "position": position,
                "logged_at": logged_at,
                "committed_at": committed_at,
                "op": record["op"],
                "before": typed(source["table"], record["before"]),
                "after": typed(source["table"], record["after"]),
                "tx_id": source["txId"],
                "lsn": source["lsn"],
            }
        )
    return tables


def typed(table: str, image: dict[str, Any] | None) -> dict[str, Any] | None:
    if image is None:
        return None
    row = dict(image)
    for column in TABLES[table].columns:
        value = row[column.name]
        if column.type == TIMESTAMP and value is not None:
            row[column.name] = datetime.fromisoformat(value).replace(tzinfo=None)
        elif column.type == DATE:
            row[column.name] = date(1970, 1, 1) + timedelta(days=value)
        elif column.name == "speed_kmh":
            row[column.name] = pytest.approx(value, rel=1e-7)
    return {**row, "extra": None}


def since_1970(us: int) -> datetime:
    return datetime(1970, 1, 1) + timedelta(microseconds=us)


def land(home: Path, lines: list[str], **options: Any) -> dict[str, list[dict[str, Any]]]:
    home.mkdir(parents=True, exist_ok=True)
    path = home / "delivery.jsonl"
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    summary = ingest(home, [str(path)], **options)
    assert summary.quarantined == 0, ChangeLog(home).quarantined()[:3]
    return log_tables(home)


def test_the_whole_recording(recording, tmp_path):
    summary = ingest(tmp_path, [str(RECORDING)])
    assert (summary.read, summary.quarantined, summary.unfinished) == (101_195, 0, 0)
    assert ChangeLog(tmp_path).watermark().position == summary.landed.total() == 66_333
    log = log_tables(tmp_path)
    assert log == replay(recording)
    live: dict[int, int] = {}
    for row in log["orders"]:
        if row["after"]:
            live[row["after"]["order_id"]] = row["after"]["amount_cents"]
        else:
            del live[row["before"]["order_id"]]
    assert (len(live), sum(live.values())) == (12_407, 3_327_237_630)
    before = ChangeLog(tmp_path).watermark()
    again = ingest(tmp_path, [str(RECORDING)], chunk_bytes=5_000_000)
    assert (again.known, again.landed.total()) == (66_333, 0)
    assert ChangeLog(tmp_path).watermark() == before


def as_schema_and_payload(record: dict[str, Any]) -> str:
    return json.dumps({"schema": {"type": "struct", "fields": [], "optional": False}, "payload": record})


def as_declared_micros(record: dict[str, Any]) -> str:
    record = with_numbers(record, 1_000_000)
    table = record.get("source", {}).get("table")
    names = TIMES.get(table, [])
    fields = [{"type": "int64", "name": "io.debezium.time.MicroTimestamp", "version": 1, "field": n} for n in names]
    schema = {
        "type": "struct",
        "fields": [{"type": "struct", "fields": fields, "field": i} for i in ("before", "after")],
    }
    return json.dumps({"schema": schema, "payload": record})


def with_numbers(record: dict[str, Any], per_second: int) -> dict[str, Any]:
    """Times as whole numbers since 1970."""

    def encode(value: str | None) -> int | None:
        if value is None:
            return None
        us = (datetime.fromisoformat(value).replace(tzinfo=None) - datetime(1970, 1, 1)) // timedelta(microseconds=1)
        return us * per_second // 1_000_000

    names = TIMES.get(record.get("source", {}).get("table"), [])
    return with_images(record, lambda image: {k: encode(v) if k in names else v for k, v in image.items()})


def with_images(record: dict[str, Any], change: Callable[[dict[str, Any]], dict[str, Any]]) -> dict[str, Any]:
    return {**record, **{i: change(record[i]) for i in ("before", "after") if record.get(i)}}


def with_decimals(record: dict[str, Any]) -> dict[str, Any]:
    return with_images(
        record,
        lambda image: {
            k: f"{v}.00" if k.endswith(("_cents", "_id")) and v is not None else v for k, v in image.items()
        },
    )


def with_offsets(record: dict[str, Any]) -> dict[str, Any]:
    def shift(value: Any) -> Any:
        if not (isinstance(value, str) and value.endswith("Z") and value[10] == "T"):
            return value
        return (datetime.fromisoformat(value) + timedelta(hours=2)).isoformat().replace("+00:00", "+02:00")

    return with_images(record, lambda image: {k: shift(v) for k, v in image.items()})


def kcat(record: dict[str, Any]) -> str:
    return json.dumps({"topic": "t", "partition": 0, "offset": 1, "key": "{}", "payload": json.dumps(record)})


ENCODINGS: dict[str, Callable[[dict[str, Any]], str]] = {
    "schema_and_payload": as_schema_and_payload,
    "declared_micros": as_declared_micros,
    "micros": lambda r: json.dumps(with_numbers(r, 1_000_000)),
    "decimals_as_text": lambda r: json.dumps(with_decimals(r)),
    "offsets": lambda r: json.dumps(with_offsets(r)),
    "key_tab_value": lambda r: '{"id":1}\t' + json.dumps(r),
    "key_and_value": lambda r: json.dumps({"key": {"id": 1}, "value": r}),
    "kcat": kcat,
    "tombstones": lambda r: json.dumps(r) + ("\n" + '{"id":1}\tnull' if r.get("op") == "d" else ""),
}


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_every_encoding_lands_the_same(some, expected, tmp_path, encoding):
    lines = [ENCODINGS[encoding](json.loads(line)) for line in some]
    assert land(tmp_path, lines, chunk_bytes=8_000_000) == expected


def test_milliseconds_that_nothing_declares_are_quarantined(some, tmp_path):
    """PostgreSQL's connector sends microseconds where no schema says otherwise: size decides nothing."""
    records = [with_numbers(json.loads(line), 1000) for line in some]
    path = tmp_path / "delivery.jsonl"
    path.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
    assert ingest(tmp_path, [str(path)]).quarantined == sum("op" in record for record in records)


def killed(lines: list[str], rng: random.Random) -> Iterator[str]:
    """The lines as a connector sends them that is killed now and then and goes on from an earlier point."""
    i = 0
    while i < len(lines):
        yield lines[i]
        i = max(0, i - rng.randrange(3000)) if rng.random() < 0.0003 else i + 1


@pytest.mark.parametrize("seed", range(3))
def test_redelivery_after_kills_lands_the_same(some, expected, tmp_path, seed):
    rng = random.Random(seed)
    lines = []
    for line in killed(some, rng):
        record = json.loads(line)
        lines.append(json.dumps({**record, "ts_ms": record["ts_ms"] + len(lines)} if "op" in record else record))
    assert len(lines) > len(some)
    assert land(tmp_path, lines, chunk_bytes=2_000_000) == expected


@pytest.mark.parametrize("seed", range(3))
def test_deliveries_cut_anywhere_land_the_same(some, expected, tmp_path, seed):
    rng = random.Random(seed)
    cuts = [0, *sorted(rng.sample(range(4300, len(some)), 4)), len(some)]
    for a, b in itertools.pairwise(cuts):
        land(tmp_path, some[max(0, a - rng.choice([0, 0, 500])) : b])
    last = ingest(tmp_path, [str(tmp_path / "delivery.jsonl")], ends_transactions=True)
    assert last.unfinished == 0
    assert log_tables(tmp_path) == expected


def test_many_files_are_one_stream(some, expected, tmp_path):
    files = []
    for i in range(0, len(some), 500):
        path = tmp_path / f"{i:06}.jsonl.gz"
        path.write_bytes(gzip.compress(("\n".join(some[i : i + 500]) + "\n").encode()))
        files.append(str(path))
    ingest(tmp_path / "home", files)
    assert log_tables(tmp_path / "home") == expected
