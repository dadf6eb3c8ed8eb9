"""`lockstep ingest`: what it understands, what it refuses, and that each event lands exactly once.

Awkward cases: every wrapping of an event; tombstones, heartbeats, marks, messages; times in every encoding; numbers
that a cast would round; TOAST; unknown columns and tables; key updates; TRUNCATE; a snapshot over live rows; sources
without lsn; redelivery in the middle of a transaction; transactions over deliveries and chunks; damaged input.
"""

from __future__ import annotations

import gzip
import io
import json
from datetime import datetime, timedelta
from pathlib import Path

import pytest
from click.testing import CliRunner

from debezium_events import T0, deliver, event, live, log_rows, log_tables, mark, order, write
from lockstep.changelog import ChangeLog
from lockstep.cli import cli
from lockstep.errors import LockstepError
from lockstep.ingest import ingest

INVALID = Path(__file__).parents[1] / "fixtures" / "invalid"
AT = datetime(2026, 1, 1, 9, 59, 59, 500000)


@pytest.fixture
def home(tmp_path):
    return tmp_path / "home"


def watermark(home):
    return ChangeLog(home).watermark()


def reasons(home):
    return [(e["table"], e["reason"]) for e in ChangeLog(home).quarantined()]


# What is understood


def key_of(value):
    return {"order_id": (value["after"] or value["before"])["order_id"]}


def kcat(value):
    return {
        "topic": "shop.public.orders",
        "partition": 0,
        "offset": 5,
        "key": json.dumps(key_of(value)),
        "payload": json.dumps(value),
    }


WRAPPINGS = {
    "bare": lambda e: e,
    "spaces": lambda e: json.dumps(e, indent=None, separators=(" , ", " : ")) + "\r",
    "payload": lambda e: {"schema": {"type": "struct", "fields": []}, "payload": e},
    "payload_alone": lambda e: {"payload": e},
    "key_tab_value": lambda e: json.dumps(key_of(e)) + "\t" + json.dumps(e),
    "key_tab_wrapped": lambda e: json.dumps({"schema": {}, "payload": key_of(e)}) + "\t" + json.dumps({"payload": e}),
    "plain_key_tab_value": lambda e: "Struct{order_id=1}\t" + json.dumps(e),
    "columns_tab_value": lambda e: "CreateTime:1767261600000\tPartition:0\t{}\t" + json.dumps(e),
    "key_and_value": lambda e: {"key": key_of(e), "value": e},
    "key_and_value_wrapped": lambda e: {"key": {"payload": key_of(e)}, "value": {"schema": {}, "payload": e}},
    "key_and_value_text": lambda e: {"key": json.dumps(key_of(e)), "value": json.dumps(e)},
    "kcat": kcat,
    "kcat_wrapped": lambda e: {**kcat(e), "payload": json.dumps({"schema": {}, "payload": e})},
}


@pytest.mark.parametrize("wrapping", WRAPPINGS)
def test_every_wrapping_lands_the_same(home, wrapping):
    changed = order(status="paid")
    events = [event("c", None, order()), event("u", order(), changed, n=2, tx=2), event("d", changed, None, n=3, tx=3)]
    summary = deliver(home, *(WRAPPINGS[wrapping](e) for e in events))
    assert (summary.landed, summary.quarantined) == ({"orders": 3}, 0)
    rows = log_rows(home)
    assert [(r["position"], r["op"], r["tx_id"], r["lsn"]) for r in rows] == [
        (1, "c", 1, 1001),
        (2, "u", 2, 1002),
        (3, "d", 3, 1003),
    ]
    image = {**order(), "ordered_at": AT, "updated_at": AT + timedelta(milliseconds=250), "extra": None}
    assert rows[0]["before"] is None
    assert rows[0]["after"] == rows[1]["before"] == image
    assert rows[1]["after"] == rows[2]["before"] == {**image, "status": "paid"}
    assert rows[2]["after"] is None
    assert rows[0]["committed_at"] == datetime(2026, 1, 1, 10, 0, 1)


TOMBSTONES = [
    "null",
    '{"order_id":1}\tnull',
    '{"order_id":1}\t',
    {"key": {"order_id": 1}, "value": None},
    {"schema": None, "payload": None},
    {"topic": "t", "partition": 0, "offset": 1, "key": '{"order_id":1}', "payload": None},
    {"topic": "t", "partition": 0, "offset": 1, "key": '{"order_id":1}', "payload": ""},
]


@pytest.mark.parametrize("tombstone", TOMBSTONES, ids=str)
def test_tombstones_are_counted(home, tombstone):
    summary = deliver(home, event("c", None, order()), tombstone)
    assert (summary.read, summary.tombstones, summary.landed.total(), summary.quarantined) == (2, 1, 1, 0)


def test_other_records_are_counted_and_blank_lines_are_not(home):
    message = {"op": "m", "source": event("c", None, None)["source"], "message": {"prefix": "p", "content": "eA=="}}
    summary = deliver(
        home,
        "",
        mark("BEGIN", 1),
        event("c", None, order(), marked=True),
        mark("END", 1),
        "  ",
        {"ts_ms": 1_795_000_000_000},
        {"schema": {"type": "struct"}, "payload": {"ts_ms": 1_795_000_000_000}},
        '{"serverName":"shop"}\t{"ts_ms":1795000000000}',
        message,
        {
            "source": {"table": "orders"},
            "ts_ms": 1,
            "databaseName": "shop",
            "ddl": "ALTER TABLE orders",
            "tableChanges": [],
        },
    )
    assert summary.read == 8
    assert (summary.boundaries, summary.heartbeats, summary.others) == (2, 3, 2)
    assert (summary.landed, summary.quarantined, summary.known) == ({"orders": 1}, 0, 0)


def test_a_heartbeat_does_not_move_the_clock_and_an_end_does(home):
    create = event("c", None, order(), marked=True)
    deliver(home, mark("BEGIN", 1), create, mark("END", 1), {"ts_ms": (T0 + 10**12) // 1000})
    assert watermark(home).logged_at == datetime(2026, 1, 1, 10, 0, 1)
    deliver(home, mark("BEGIN", 2, n=7200), mark("END", 2, n=7200))
    assert watermark(home).logged_at == datetime(2026, 1, 1, 12, 0, 0)
    assert watermark(home).position == 1


def test_heartbeats_alone_land_nothing(home):
    summary = deliver(home, {"ts_ms": 1}, "null")
    assert (summary.heartbeats, summary.tombstones) == (1, 1)
    assert not ChangeLog(home).exists()


def test_unknown_tables_are_reported(home):
    summary = deliver(
        home, event("c", None, order()), event("c", None, {"x": 1}, table="invoices"), event("t", None, None, table="x")
    )
    assert (summary.ignored, summary.quarantined, summary.known) == ({"invoices": 1, "x": 1}, 0, 0)


# Values


@pytest.mark.parametrize(
    "value",
    [
        "2026-01-01T09:59:59.5Z",
        "2026-01-01T09:59:59.500000Z",
        "2026-01-01T09:59:59.500000000Z",
        "2026-01-01T11:59:59.500+02:00",
        "2026-01-01T04:59:59.5-05:00",
        "2026-01-01 09:59:59.5",
        "2026-01-01T09:59:59.5",
        1767261599500000,
        "1767261599500000",
    ],
)
def test_times_in_every_encoding_are_utc(home, value, monkeypatch):
    monkeypatch.setenv("TZ", "America/New_York")
    assert deliver(home, event("c", None, order(ordered_at=value))).quarantined == 0
    assert log_rows(home)[0]["after"]["ordered_at"] == AT


@pytest.mark.parametrize("value", [20454, "2026-01-01", "2026-01-01Z", "2026-01-01T00:00:00Z"])
def test_dates(home, value):
    route = {
        "route_id": 1,
        "driver_id": 2,
        "service_date": value,
        "planned_departure_at": "2026-01-01T11:00:00Z",
        "planned_distance_m": 43764,
        "updated_at": "2026-01-01T09:00:00Z",
    }
    assert deliver(home, event("c", None, route, table="routes")).quarantined == 0
    assert str(log_rows(home, "routes")[0]["after"]["service_date"]) == "2026-01-01"


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (12345, 12345),
        ("12345", 12345),
        ("12345.00", 12345),
        ("-5", -5),
        (12345.0, 12345),
        (9007199254740993, 9007199254740993),
        ("9223372036854775807", 9223372036854775807),
        ("9007199254740993.00", 9007199254740993),
    ],
)
def test_whole_numbers_stay_exact(home, value, expected):
    deliver(home, event("c", None, order(amount_cents=value)))
    assert log_rows(home)[0]["after"]["amount_cents"] == expected


@pytest.mark.parametrize(
    "value",
    ["123.45", 123.45, "9223372036854775808", 1e16, "", " 5", "1_000", "0x10", "abc", True, {}, [], None, "1e3", "NaN"],
    ids=repr,
)
def test_what_is_not_a_whole_number_is_not_rounded(home, value):
    assert deliver(home, event("c", None, order(amount_cents=value))).quarantined == 1
    ((table, reason),) = reasons(home)
    assert table == "orders"
    assert "column amount_cents of the after image" in reason
    assert (json.dumps(value) if value != 1e16 else "1") in reason
    assert log_rows(home) == []


def test_numbers_that_exceed_the_type_or_are_not_finite(home):
    ping = {
        "ping_id": 1,
        "driver_id": 1,
        "latitude": 48.84305159173431,
        "longitude": 2.280191216886224,
        "speed_kmh": 45.742393,
        "recorded_at": "2026-01-01T09:00:00Z",
    }
    good = event("c", None, ping, table="gps_pings")
    deliver(
        home,
        good,
        event("c", None, {**ping, "latitude": "NaN"}, n=2, table="gps_pings"),
        event("c", None, {**ping, "speed_kmh": 1e300}, n=3, table="gps_pings"),
        event("c", None, order(quantity=2**31), n=4),
    )
    assert [r.split(" of the")[0] for _, r in reasons(home)] == [
        "column latitude",
        "column speed_kmh",
        "column quantity",
    ]
    after = log_rows(home, "gps_pings")[0]["after"]
    assert (after["latitude"], after["longitude"]) == (ping["latitude"], ping["longitude"])
    assert after["speed_kmh"] == pytest.approx(45.742393, abs=1e-5)


@pytest.mark.parametrize(
    "value", ["infinity", 9223372036825200000, "epoch", "yesterday", "", "2026-13-01T00:00:00Z", True]
)
def test_what_is_not_a_time_is_quarantined(home, value):
    good = event("c", None, order(2, ordered_at=1767261599500000), n=2, tx=2)
    assert deliver(home, event("c", None, order(ordered_at=value)), good).quarantined == 1
    assert "column ordered_at of the after image" in reasons(home)[0][1]
    assert log_rows(home)[0]["after"]["ordered_at"] == AT


def test_text_keeps_every_character(home):
    text = 'quote " back \\ tab \t line \n é 漢 😀 null'
    deliver(home, event("c", None, order(status=text)))
    assert log_rows(home)[0]["after"]["status"] == text


def test_unchanged_toast_is_taken_from_before(home):
    unavailable = "__debezium_unavailable_value"
    before = order(status="a long text", note="longer")
    deliver(home, event("u", before, order(status=unavailable, note=unavailable, amount_cents=5)))
    after = log_rows(home)[0]["after"]
    assert (after["status"], after["amount_cents"], after["extra"]) == ("a long text", 5, '{"note":"longer"}')


def test_unavailable_without_a_value_before_is_quarantined(home):
    deliver(home, event("c", None, order(status="__debezium_unavailable_value")))
    assert "status" in reasons(home)[0][1]


def test_unknown_columns_travel_in_extra_with_sorted_keys(home):
    wide = {"zone": "z", **order(), "a/b~c": {"deep": [1, 2]}, "big": 9007199254740993, "none": None}
    reordered = dict(reversed(order(2).items()))
    deliver(home, event("c", None, wide), event("c", None, order(2), n=2), event("u", order(2), reordered, n=3))
    rows = log_rows(home)
    extra = rows[0]["after"]["extra"]
    assert json.loads(extra) == {"zone": "z", "a/b~c": {"deep": [1, 2]}, "big": 9007199254740993, "none": None}
    assert list(json.loads(extra)) == sorted(json.loads(extra))
    assert extra == json.dumps(json.loads(extra), separators=(",", ":"))
    assert [r["after"]["extra"] for r in rows[1:]] == [None, None]


# Contract breaches

BROKEN = {
    "not_json": ("*", "not valid JSON"),
    "unknown_json": ("*", "not a record that Debezium writes"),
    "no_key": ("orders", "column order_id of the after image is missing"),
    "null_key": ("orders", "column order_id of the after image is null"),
    "missing_column": ("orders", "column exception_code of the after image is missing"),
    "null_in_not_null": ("orders", "column status of the after image is null"),
    "wrong_type": ("orders", 'column amount_cents of the after image is "123.45", which is not a whole number'),
    "number_for_text": ("orders", "column status of the after image is 5, which is not a text"),
    "update_without_before": ("orders", "ALTER TABLE orders REPLICA IDENTITY FULL"),
    "delete_without_before": ("orders", "ALTER TABLE orders REPLICA IDENTITY FULL"),
    "delete_with_key_only": ("orders", "ALTER TABLE orders REPLICA IDENTITY FULL"),
    "unknown_op": ("orders", 'op is "x"'),
    "missing_op": ("orders", "op is missing"),
    "no_commit_time": ("orders", "no commit time"),
    "no_table": ("*", "no source.table"),
    "truncate_without_time": ("orders", "no commit time"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_each_breach_is_quarantined_whole(home, name):
    text = (INVALID / f"{name}.jsonl").read_text().rstrip("\n")
    table, reason = BROKEN[name]
    summary = deliver(home, event("c", None, order(100), n=50, tx=50), text, event("c", None, order(101), n=51, tx=51))
    assert (summary.quarantined, summary.landed) == (1, {"orders": 2})
    (entry,) = ChangeLog(home).quarantined()
    assert entry["table"] in (table, "shipments")
    assert reason in entry["reason"]
    assert entry["event"] == text
    assert entry["position"] == 2
    assert [r["position"] for r in log_rows(home)] == [1, 3]
    again = deliver(home, text, event("c", None, order(100), n=50, tx=50))
    assert (again.quarantined, again.known, watermark(home).position) == (0, 2, 3)


def test_bytes_that_are_no_text(home, tmp_path):
    path = tmp_path / "bytes.jsonl"
    good = json.dumps(event("c", None, order(status="é"))).encode()
    path.write_bytes(good + b"\n" + good.replace(b"\\u00e9", b"\xff") + b"\n")
    assert ingest(home, [str(path)]).quarantined == 1
    assert reasons(home) == [("*", "it is not valid JSON in UTF-8")]
    assert "\\xff" in ChangeLog(home).quarantined()[0]["event"]


def test_a_broken_event_sent_again_by_the_connector_is_known(home):
    broken = event("u", None, order())
    deliver(home, event("c", None, order()), broken)
    again = deliver(home, {"payload": {**broken, "ts_ms": broken["ts_ms"] + 999}}, {**broken, "ts_ms": 5})
    assert (again.quarantined, again.known) == (0, 2)


def test_an_event_in_quarantine_does_not_land_a_second_time_elsewhere(home):
    """Rules that have become more tolerant: the event has its place already, `quarantine retry` fills it."""
    deliver(home, event("c", None, order()))
    good = event("c", None, order(2), n=2, tx=2)
    import pyarrow as pa

    from lockstep.schema import TIMESTAMP

    with ChangeLog(home).writer("postgresql:shop") as writer:
        row = {"ordinal": [0], "table": ["orders"], "reason": ["an old rule"], "event": [json.dumps(good)]}
        writer.land({}, pa.table({**row, "committed_at": pa.array([datetime(2026, 1, 1, 10, 0, 2)], TIMESTAMP)}))
    assert deliver(home, good).known == 1
    assert watermark(home).position == 2


# Exactly once


def test_the_same_file_twice_changes_nothing(home):
    records = [
        mark("BEGIN", 1),
        event("c", None, order(1), marked=True),
        event("u", order(1), order(9), n=2, marked=True),  # a key update: the log holds a delete and an insert
        mark("END", 1),
        event("r", None, order(5), n=3, tx=None),
        event("t", None, None, n=4, tx=4, marked=True, table="products"),
        event("t", None, None, n=5, tx=5, marked=True),
        mark("END", 4),
        mark("END", 5),
        "rubbish",
    ]
    first = deliver(home, *records)
    assert (first.landed, first.quarantined) == ({"orders": 5}, 1)
    files = sorted(p for p in home.rglob("*") if p.suffix in (".parquet", ".jsonl"))
    before = watermark(home)
    second = deliver(home, *records)
    assert (second.landed.total(), second.quarantined, second.known) == (0, 0, 6)
    assert watermark(home) == before
    assert sorted(p for p in home.rglob("*") if p.suffix in (".parquet", ".jsonl")) == files


def test_duplicates_within_a_file_land_once_in_first_order(home):
    a, b, c = (event("c", None, order(i), n=i, tx=i) for i in (1, 2, 3))
    summary = deliver(home, a, b, a, b, c, {**a, "ts_ms": 1})
    assert (summary.landed, summary.known) == ({"orders": 3}, 3)
    assert [r["after"]["order_id"] for r in log_rows(home)] == [1, 2, 3]


def test_rows_of_one_lsn_are_told_apart_by_key(home):
    deliver(home, *(event("c", None, order(i), n=1, tx=1) for i in range(5)))
    assert len(log_rows(home)) == 5


def test_a_redelivered_key_update_and_its_parts_are_known(home):
    rekey = event("u", order(1), order(9), n=2, tx=2)
    deliver(home, event("c", None, order(1)), rekey)
    assert [(r["op"], r["position"]) for r in log_rows(home)] == [("c", 1), ("d", 2), ("c", 3)]
    parts = [event("d", order(1), None, n=2, tx=2), event("c", None, order(9), n=2, tx=2)]
    assert deliver(home, rekey, *parts).known == 3


@pytest.mark.parametrize("connector", ["mysql", "other"])
def test_sources_without_lsn(home, connector):
    def change(n, image):
        source = {"connector": connector, "txId": None, "lsn": None}
        if connector == "mysql":
            source |= {"file": "mysql-bin.000003", "pos": 100 + n, "row": 0, "gtid": "3e11fa47:1"}
        return event("u", order(), image, n=1, **source)

    events = [change(1, order(status="paid")), change(2, order(status="sent"))]
    assert deliver(home, *events).landed.total() == 2
    assert deliver(home, *events).known == 2


def test_truncate_deletes_what_lives_and_only_that(home):
    deliver(home, event("c", None, order(1), n=1, tx=1), event("c", None, order(2), n=2, tx=2))
    truncate = event("t", None, None, n=6, tx=6)
    summary = deliver(
        home,
        event("d", order(1), None, n=3, tx=3),
        event("u", order(2), order(20), n=4, tx=4),
        event("c", None, order(3), n=5, tx=5),
        truncate,
        event("c", None, order(4), n=7, tx=7),
    )
    assert summary.landed == {"orders": 6}
    assert list(live(home)) == [(4,)]
    deleted = [r for r in log_rows(home) if r["lsn"] == 1006]
    assert [(r["op"], r["before"]["order_id"], r["tx_id"]) for r in deleted] == [("d", 20, 6), ("d", 3, 6)]
    assert [r["position"] for r in log_rows(home)] == list(range(1, 10))
    assert deliver(home, truncate).known == 1
    assert list(live(home)) == [(4,)]


def test_a_second_snapshot_lands_only_differences(home):
    deliver(home, *(event("r", None, order(i), n=1, tx=1) for i in (1, 2, 3)))
    summary = deliver(
        home,
        event("c", None, order(4), n=2, tx=2),
        event("d", order(3), None, n=3, tx=3),
        *(event("r", None, order(i), n=9, tx=9) for i in (1, 3, 4)),
        event("r", None, order(2, status="paid"), n=9, tx=9),
        event("r", None, order(2, status="paid"), n=10, tx=10),
    )
    assert (summary.landed, summary.known) == ({"orders": 4}, 3)
    rows = log_rows(home)[3:]
    assert [(r["op"], r["after"] and r["after"]["order_id"]) for r in rows] == [
        ("c", 4),
        ("d", None),
        ("r", 3),
        ("r", 2),
    ]
    assert rows[2]["before"] is None
    assert (rows[3]["before"]["status"], rows[3]["after"]["status"]) == ("created", "paid")


def test_a_snapshot_that_told_nothing_new_undoes_nothing_when_it_is_sent_again(home):
    events = [
        event("c", None, order(), n=1, tx=1),
        event("r", None, order(), n=2, tx=2, snapshot="incremental"),
        event("u", order(), order(quantity=9), n=3, tx=3),
    ]
    assert deliver(home, *events).known == 1
    before = log_rows(home)
    for again in ([events[1]], events, events[1:]):
        summary = deliver(home, *again)
        assert (summary.landed, summary.known) == ({}, len(again))
    assert log_rows(home) == before
    assert live(home)[1,]["quantity"] == 9


def test_a_snapshot_of_a_promoted_standby_lands_though_its_place_is_an_earlier_one(home):
    """The old primary's last change, which landed, is not in the standby."""
    deliver(home, event("c", None, order(), n=1, tx=1), event("u", order(), order(quantity=9), n=3, tx=3))
    deliver(home, event("r", None, order(), n=5, tx=4, lsn=1002, snapshot="incremental"))
    assert live(home)[1,]["quantity"] == 2


# Transactions


def transaction(tx, first, count=3):
    events = [event("c", None, order(100 * tx + i), n=first + i, tx=tx, marked=True) for i in range(count)]
    return [mark("BEGIN", tx, first), *events, mark("END", tx, first)]


def test_an_unfinished_transaction_waits_with_what_follows_it(home):
    first, second, third = (transaction(tx, 10 * tx) for tx in (1, 2, 3))
    summary = deliver(home, *first, *second[:3], *third)
    assert summary.landed == {"orders": 3}
    assert (summary.unfinished, summary.unfinished_events, summary.kept) == (1, 2, 5)
    position = watermark(home).position
    summary = deliver(home, {"ts_ms": 1})
    assert (watermark(home).position, summary.unfinished, summary.kept) == (position, 1, 5)
    summary = deliver(home, *second)
    assert (summary.landed, summary.unfinished, summary.known) == ({"orders": 6}, 0, 2)
    assert not (home / "unfinished.jsonl").exists()
    assert [r["after"]["order_id"] for r in log_rows(home)] == [100, 101, 102, 200, 201, 300, 301, 302, 202]


def test_a_transaction_restarted_after_a_kill_is_one(home):
    begin, a, b, c, end = transaction(1, 10)
    summary = deliver(home, begin, a, begin, a, b, c, end)
    assert (summary.landed, summary.known, summary.unfinished) == ({"orders": 3}, 1, 0)


def test_a_known_transaction_cut_off_is_not_unfinished(home):
    records = transaction(1, 10)
    deliver(home, *records)
    assert deliver(home, *records[:3]).unfinished == 0


def test_marks_without_transaction_block(home):
    records = [r if "op" not in r else {**r, "transaction": None} for r in transaction(1, 10)]
    assert deliver(home, *records[:3]).unfinished == 1
    assert deliver(home, records[3], records[4]).landed == {"orders": 3}


def test_without_marks_the_end_of_the_input_ends_the_transaction(home):
    summary = deliver(home, *(event("c", None, order(i), n=i) for i in range(3)))
    assert (summary.landed, summary.unfinished) == ({"orders": 3}, 0)


def test_complete_ends_every_transaction(home):
    assert deliver(home, *transaction(1, 10)[:3], ends_transactions=True).landed == {"orders": 2}


@pytest.mark.parametrize("is_marked", [True, False])
@pytest.mark.parametrize("chunk_bytes", [1, 1500, 5000])
def test_chunks_never_split_a_transaction(home, is_marked, chunk_bytes, monkeypatch):
    records = [r for tx in range(1, 8) for r in transaction(tx, 10 * tx, count=tx)]
    if not is_marked:
        records = [{**r, "transaction": None} for r in records if "op" in r]
    seen = []
    land = __import__("lockstep.changelog", fromlist=["Writer"]).Writer.land

    def spy(self, changes, *args, **kwargs):
        seen.extend(set(rows["tx_id"].to_pylist()) for rows in changes.values())
        return land(self, changes, *args, **kwargs)

    monkeypatch.setattr("lockstep.changelog.Writer.land", spy)
    deliver(home, *records, chunk_bytes=chunk_bytes)
    assert [r["tx_id"] for r in log_rows(home)] == [tx for tx in range(1, 8) for _ in range(tx)]
    assert sum(len(s) for s in seen) == 7
    assert len(seen) > 1


def test_the_log_is_the_same_however_it_is_chunked(home, tmp_path):
    records = [r for tx in range(1, 30) for r in transaction(tx, 10 * tx, count=tx % 5 + 1)]
    records += records[40:70]
    deliver(home, *records)
    deliver(tmp_path / "other", *records, chunk_bytes=3000)
    assert log_tables(home) == log_tables(tmp_path / "other")


def test_an_event_in_a_file_that_has_grown_is_known_when_it_comes_again(home):
    """The range of lsns that a file has is remembered, of each version of it."""
    events = [event("c", None, order(i), n=10 * i, tx=i) for i in range(1, 9)]
    records = [events[0], events[1], *events[1:], *events]
    summary = deliver(home, *records, chunk_bytes=1)
    assert (summary.landed, summary.known) == ({"orders": 8}, len(records) - 8)
    assert len(ChangeLog(home).files("orders")) == 1


# Input


def test_gzip_by_content_and_several_files_as_one_stream(home, tmp_path):
    begin, a, b, c, end = transaction(1, 10)
    files = [write(tmp_path / f"{i}.gz", [r]) for i, r in enumerate([begin, a, b])]
    packed = tmp_path / "packed.jsonl"
    packed.write_bytes(gzip.compress(Path(write(tmp_path / "x", [c, end])).read_bytes()))
    assert ingest(home, [*files, str(packed)]).landed == {"orders": 3}


def test_a_last_line_without_line_feed(home, tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text(json.dumps(event("c", None, order())))
    assert ingest(home, [str(path)]).landed == {"orders": 1}


@pytest.mark.parametrize("cut", [b"plain", b"gzip"])
def test_a_cut_off_file_lands_its_whole_transactions(home, tmp_path, cut):
    records = [event("c", None, order(i, note=f"{hash(str(i))}" * 20), n=i, tx=i // 2) for i in range(2000)]
    path = tmp_path / "cut.jsonl"
    whole = Path(write(path, records)).read_bytes()
    whole = gzip.compress(whole) if cut == b"gzip" else whole
    path.write_bytes(whole[: len(whole) // 2])
    result = run(home, "ingest", str(path))
    assert result.exit_code == 1
    assert ("truncated" in str(result.exception)) == (cut == b"gzip")
    landed = [r["after"]["order_id"] for r in log_rows(home)]
    assert landed == list(range(len(landed)))
    assert len(landed) % 2 == 0
    assert 500 < len(landed) < 1500
    path.write_bytes(whole)
    assert run(home, "ingest", str(path)).exit_code == 0
    assert [r["after"]["order_id"] for r in log_rows(home)] == list(range(2000))


def run(home, *arguments, stdin=None):
    return CliRunner(env={"LOCKSTEP_HOME": str(home)}).invoke(cli, arguments, input=stdin)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "There is no file"),
        (b"PAR1\x00\x01\x02binary", "is binary"),
        (gzip.compress(b"\x00\x01\x02"), "is binary"),
        (b"hello\n", "There is no change event"),
    ],
    ids=["missing", "binary", "binary in gzip", "text"],
)
def test_errors_name_the_file(home, tmp_path, content, message):
    path = tmp_path / "input"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(LockstepError, match=message) as e:
        ingest(home, [str(path)])
    assert str(path) in str(e.value)
    assert not ChangeLog(home).exists()


@pytest.mark.parametrize("length", [0, 1, 2, 9, 10, 12])
def test_a_gzip_file_that_was_cut_in_its_header_is_not_empty(home, tmp_path, length):
    path = tmp_path / "cut.jsonl.gz"
    path.write_bytes(gzip.compress(b"{}\n")[:length])
    result = run(home, "ingest", str(path))
    assert result.exit_code == 1
    assert "cut.jsonl.gz is a damaged or truncated gzip file" in str(result.exception)


def test_a_directory_and_a_terminal(home, tmp_path, monkeypatch):
    with pytest.raises(LockstepError, match="is a directory"):
        ingest(home, [str(tmp_path)])
    monkeypatch.setattr("sys.stdin", io.StringIO())
    monkeypatch.setattr("sys.stdin.isatty", lambda: True)
    with pytest.raises(LockstepError, match="pipe change events"):
        ingest(home, ["-"])


def test_two_databases_in_one_input_are_refused(home):
    with pytest.raises(LockstepError, match=r"Line 2 of .*delivery.jsonl is a change of postgresql:other"):
        deliver(home, event("c", None, order()), event("c", None, order(2), n=2, db="other"))
    deliver(home, event("c", None, order()))
    with pytest.raises(LockstepError, match="is the change log of postgresql:shop"):
        deliver(home, event("c", None, order(2), n=2, db="other"))


def test_an_event_that_does_not_name_its_connector_is_of_the_same_source(home):
    deliver(home, event("c", None, order(), connector=None, db=None))
    assert watermark(home).source == "debezium"


def test_numbers_beyond_every_range_are_quarantined_or_ignored(home):
    """Found by fuzzing: each overflowed an arithmetic expression and so stopped the whole ingest."""
    extremes = [2**63 - 1, -(2**63), 2**63, 10**30, 1e308]
    creates = [event("c", None, order(i, ordered_at=value), n=i) for i, value in enumerate(extremes)]
    times = [event("c", None, order(9), n=9 + i, ts_us=None, ts_ns=None, ts_ms=v) for i, v in enumerate(extremes)]
    ends = [{**mark("END", i), "ts_ms": value} for i, value in enumerate(extremes)]
    numbers = [event("c", None, order(7), n=7, tx=value) for value in extremes[2:]]
    records = [event("c", None, order(100), n=50), *creates, *times, *ends, *numbers]
    summary = deliver(home, *records, ends_transactions=True)
    assert (summary.landed, summary.quarantined, summary.boundaries) == ({"orders": 4}, 10, 5)


def test_standard_input_plain_and_gzip(home):
    text = json.dumps(event("c", None, order())).encode() + b"\n"
    assert run(home, "ingest", "-", "--json", stdin=text).exit_code == 0
    result = run(home, "ingest", "-", "--json", stdin=gzip.compress(text))
    assert (result.exit_code, json.loads(result.stdout)["known"]) == (0, 1)


def test_exit_code_and_summary_tell_of_quarantine(home, tmp_path):
    path = write(tmp_path / "f", [event("c", None, order()), event("c", None, order(quantity="x"), n=2, tx=2)])
    result = run(home, "ingest", path)
    assert result.exit_code == 1
    assert "lockstep quarantine list" in str(result.exception)
    assert "orders 1" in result.stdout
    assert run(home, "ingest", path).exit_code == 0


def test_summary_tells_of_unfinished_transactions(home, tmp_path):
    result = run(home, "ingest", write(tmp_path / "f", transaction(1, 10)[:-1]))
    assert result.exit_code == 0
    assert "1 unfinished transaction with 3 events is kept for the next delivery." in result.stdout
