"""Events of SQL Server and Oracle, in the shape that Debezium's connectors document, through `lockstep ingest`.

Awkward cases: times in units of 100 nanoseconds; money; NUMBER without scale; upper-case names; large objects that were
not sent; transactions without marks; events that come again from a connector of a later version; two changes of one row
in one transaction.
"""

from __future__ import annotations

import base64
from collections.abc import Callable
from copy import deepcopy
from datetime import UTC, date, datetime, time
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from debezium_events import T0, deliver, live, log_rows
from lockstep.changelog import ChangeLog
from lockstep.schema import TABLES, declared

Event = dict[str, Any]
CONNECT, DEBEZIUM = "org.apache.kafka.connect.data", "io.debezium"
PLACEHOLDER = "__debezium_unavailable_value"


@pytest.fixture
def home(tmp_path: Path) -> Path:
    return tmp_path / "home"


@pytest.fixture
def declare(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Have the project declare other tables, in this test."""

    def tables(sql: str) -> None:
        path = tmp_path / "source_schema.sql"
        path.write_text(sql)
        monkeypatch.setattr(TABLES, "_found", declared.__wrapped__(path))

    return tables


def event(op: str, before: Any, after: Any, fields: dict[str, Any], source: dict[str, Any], n: int) -> Event:
    """A change as a converter with schemas writes it; `n` makes its time."""
    at = T0 // 1000 + n
    image = {"type": "struct", "optional": True, "fields": [{"field": name, **said} for name, said in fields.items()]}
    common = {"version": "3.6.3.Final", "name": "server1", "ts_ms": at, "ts_us": at * 1000, "ts_ns": at * 1_000_000}
    return {
        "schema": {"type": "struct", "fields": [{**image, "field": "before"}, {**image, "field": "after"}]},
        "payload": {
            "before": before,
            "after": after,
            "source": {**common, "snapshot": "false", "sequence": None, **source},
            "transaction": None,
            "op": op,
            "ts_ms": 1_790_000_000_000 + n,
        },
    }


def unscaled(number: int) -> str:
    return base64.b64encode(number.to_bytes((number.bit_length() + 8) // 8, "big", signed=True)).decode()


def decimal(precision: int, scale: int) -> dict[str, Any]:
    parameters = {"scale": str(scale), "connect.decimal.precision": str(precision)}
    return {"type": "bytes", "name": f"{CONNECT}.Decimal", "parameters": parameters}


def reasons(home: Path) -> list[str]:
    return [entry["reason"] for entry in ChangeLog(home).quarantined()]


# SQL Server

GOODS = """
CREATE TABLE dbo.goods (
  id integer PRIMARY KEY, price numeric(19,4) NOT NULL, ratio numeric(38,20), code uuid NOT NULL, active boolean,
  tiny smallint, made timestamp, coarse timestamp, old timestamp, opens time, born date, seen timestamptz, doc xml,
  raw bytea, score real);
CREATE TABLE dbo.lines (id integer, line integer, qty integer, PRIMARY KEY (id, line));
"""
GOODS_FIELDS: dict[str, Any] = {
    "id": {"type": "int32", "optional": False},
    "price": decimal(19, 4),  # money
    "ratio": decimal(38, 20),
    "code": {"type": "string"},  # uniqueidentifier
    "active": {"type": "boolean"},  # bit
    "tiny": {"type": "int16"},
    "made": {"type": "int64", "name": f"{DEBEZIUM}.time.NanoTimestamp"},  # datetime2(7)
    "coarse": {"type": "int64", "name": f"{DEBEZIUM}.time.Timestamp"},  # datetime2(3), datetime, smalldatetime
    "old": {"type": "int64", "name": f"{DEBEZIUM}.time.MicroTimestamp"},  # datetime2(6)
    "opens": {"type": "int64", "name": f"{DEBEZIUM}.time.NanoTime"},  # time(7)
    "born": {"type": "int32", "name": f"{DEBEZIUM}.time.Date"},
    "seen": {"type": "string", "name": f"{DEBEZIUM}.time.ZonedTimestamp"},  # datetimeoffset
    "doc": {"type": "string", "name": f"{DEBEZIUM}.data.Xml"},
    "raw": {"type": "bytes"},
    "score": {"type": "float"},
}
MADE = datetime(2026, 1, 1, 10, 0, 0, 123456)
MADE_NS = (int(MADE.replace(tzinfo=UTC, microsecond=0).timestamp()) * 1_000_000 + MADE.microsecond) * 1000
ROW: dict[str, Any] = {
    "id": 1,
    "price": unscaled(-9223372036854775808),
    "ratio": unscaled(12345678901234567890123456789012345678),
    "code": "6F9619FF-8B86-D011-B42D-00C04FC964FF",
    "active": True,
    "tiny": 255,
    "made": MADE_NS,
    "coarse": 253402300799997,
    "old": -62135596800000000,
    "opens": 86_399_999_999_000,
    "born": -719162,
    "seen": "2026-01-01T12:30:00.123456+02:30",
    "doc": "<a/>",
    "raw": "3q2+7w==",
    "score": 0.1,
}
EMPTY: dict[str, Any] = dict.fromkeys(ROW) | {"id": 2, "price": unscaled(0), "code": ROW["code"]}


def sqlserver(
    op: str,
    before: Any,
    after: Any,
    *,
    commit: int = 1,
    change: int | None = 1,
    serial: int = 1,
    n: int = 1,
    table: str = "goods",
    fields: dict[str, Any] = GOODS_FIELDS,
    **source: Any,
) -> Event:
    lsn = {
        "change_lsn": None if change is None else f"00000027:00000ac0:{change:04x}",
        "commit_lsn": f"00000027:00000ac0:{commit:04x}",
        "event_serial_no": None if change is None else serial,
    }
    return event(
        op,
        before,
        after,
        fields,
        {"connector": "sqlserver", "db": "testDB", "schema": "dbo", "table": table, **lsn, **source},
        n,
    )


def line(op: str, before: Any, after: Any, **options: Any) -> Event:
    return sqlserver(op, before, after, table="lines", fields={n: {"type": "int32"} for n in LINE}, **options)


LINE = {"id": 1, "line": 1, "qty": 5}


def test_values_of_sql_server(home: Path, declare: Callable[[str], None]) -> None:
    declare(GOODS)
    snapshot = sqlserver("r", None, ROW, change=None, snapshot="last")
    changed = {**ROW, "active": False, "tiny": None}
    summary = deliver(
        home,
        snapshot,
        sqlserver("c", None, EMPTY, commit=2),
        sqlserver("u", ROW, changed, commit=3, serial=2, n=2),
        sqlserver("d", EMPTY, None, commit=4, n=3),
    )
    assert (summary.quarantined, summary.after.source) == (0, "sqlserver:testDB")
    assert [r["op"] for r in log_rows(home, "goods")] == ["r", "c", "u", "d"]
    assert live(home, "goods")[1,] == {
        "id": 1,
        "price": Decimal("-922337203685477.5808"),
        "ratio": Decimal("123456789012345678.90123456789012345678"),
        "code": ROW["code"],
        "active": False,
        "tiny": None,
        "made": MADE,
        "coarse": datetime(9999, 12, 31, 23, 59, 59, 997000),
        "old": datetime(1, 1, 1),
        "opens": time(23, 59, 59, 999999),
        "born": date(1, 1, 1),
        "seen": datetime(2026, 1, 1, 10, 0, 0, 123456),
        "doc": "<a/>",
        "raw": b"\xde\xad\xbe\xef",
        "score": pytest.approx(0.1),
        "extra": None,
    }


@pytest.mark.parametrize(
    ("column", "value"),
    [
        ("made", MADE_NS + 100),
        ("made", 2**63 - 1),
        ("opens", 100),
        ("seen", "2026-01-01T12:30:00.1234567+02:30"),
        ("price", unscaled(10**19)),
    ],
)
def test_what_cannot_be_held_exactly_is_quarantined(
    home: Path, declare: Callable[[str], None], column: str, value: Any
) -> None:
    declare(GOODS)
    deliver(home, sqlserver("c", None, {**ROW, column: value}), sqlserver("c", None, EMPTY, commit=2))
    (reason,) = reasons(home)
    assert reason.startswith(f"column {column} of the after image is ")
    assert live(home, "goods").keys() == {(2,)}


def test_changes_of_sql_server_are_known_again_by_their_place(home: Path, declare: Callable[[str], None]) -> None:
    """Sent again, by a later version and with another mode for times; and not mistaken for others of their row."""
    declare(GOODS)
    toggled = [{**EMPTY, "tiny": n % 2} for n in range(3)]
    events = [
        sqlserver("c", None, toggled[0], change=1),
        sqlserver("u", toggled[0], toggled[1], change=2, serial=2),
        sqlserver("u", toggled[1], toggled[0], change=3, serial=2),
        sqlserver("u", toggled[0], toggled[1], change=4, serial=2),
    ]
    deliver(home, *events)
    again = deepcopy(events)
    for e in again:
        e["payload"]["source"] |= {"version": "3.7.0.Final", "ts_us": e["payload"]["source"]["ts_us"] + 1}
        e["payload"]["after"] |= {"extra_column": 1}
    summary = deliver(home, *again, sqlserver("d", toggled[1], None, commit=2))
    assert (summary.known, summary.landed) == (4, {"goods": 1})
    assert [r["op"] for r in log_rows(home, "goods")] == ["c", "u", "u", "u", "d"]


def test_a_transaction_of_sql_server_lands_whole_without_marks(home: Path, declare: Callable[[str], None]) -> None:
    """Its events have one `commit_lsn`; a bad one holds its table from the first of them on."""
    declare(GOODS)
    deliver(
        home,
        line("c", None, LINE),
        line("c", None, {**LINE, "line": 2}, commit=2, change=1, n=2),
        sqlserver("c", None, {**ROW, "made": 1}, commit=2, change=2, n=2),
        line("c", None, {**LINE, "line": 3, "qty": "x"}, commit=2, change=3, n=2),
        line("c", None, {**LINE, "line": 4}, commit=3, n=3),
        chunk_bytes=1000,
    )
    transactions = [row["tx_id"] for row in log_rows(home, "lines")]
    assert len(set(transactions)) == len(transactions) == 3
    holds = ChangeLog(home).watermark().holds
    assert {table: hold.position for table, hold in holds.items()} == {"goods": 2, "lines": 2}


# Oracle

CUSTOMERS = """
CREATE TABLE "INVENTORY"."CUSTOMERS" (
  "ID" numeric(9) PRIMARY KEY, "NAME" text NOT NULL, "BALANCE" numeric(38, 10), "ANY_NUMBER" numeric,
  "RATE" double precision, "BORN" date, "MADE" timestamp, "FINE" timestamp,
  "SEEN" timestamptz, "TERM" interval, "NOTES" text, "SCAN" bytea);
"""
CUSTOMERS_FIELDS: dict[str, Any] = {
    "ID": {"type": "int32", "optional": False},
    "NAME": {"type": "string", "optional": False},
    "BALANCE": {"type": "struct", "name": f"{DEBEZIUM}.data.VariableScaleDecimal"},
    "ANY_NUMBER": {"type": "struct", "name": f"{DEBEZIUM}.data.VariableScaleDecimal"},
    "RATE": {"type": "double"},
    "BORN": {"type": "int64", "name": f"{DEBEZIUM}.time.Timestamp"},  # DATE has a time of day
    "MADE": {"type": "int64", "name": f"{DEBEZIUM}.time.Timestamp"},
    "FINE": {"type": "int64", "name": f"{DEBEZIUM}.time.MicroTimestamp"},  # TIMESTAMP(6)
    "SEEN": {"type": "string", "name": f"{DEBEZIUM}.time.ZonedTimestamp"},
    "TERM": {"type": "string", "name": f"{DEBEZIUM}.time.Interval"},
    "NOTES": {"type": "string"},  # CLOB
    "SCAN": {"type": "bytes"},  # BLOB
}
ANN: dict[str, Any] = {
    "ID": 1004,
    "NAME": "Anne",
    "BALANCE": {"scale": 2, "value": unscaled(-125)},
    "ANY_NUMBER": {"scale": -3, "value": unscaled(12)},
    "RATE": 0.5,
    "BORN": 86_400_000,
    "MADE": 1_767_261_600_000,
    "FINE": T0 + 123456,
    "SEEN": "2026-01-01T10:00:00.123456-05:00",
    "TERM": "P0Y0M1DT2H3M4.5S",
    "NOTES": "a note",
    "SCAN": "AAEC",
}


def oracle(
    op: str,
    before: Any,
    after: Any,
    *,
    ssn: int | None = 1,
    scn: int = 2122184,
    tx: str = "0a001b0006020000",
    n: int = 1,
    fields: dict[str, Any] = CUSTOMERS_FIELDS,
    **source: Any,
) -> Event:
    place = {
        "txId": tx,
        "scn": str(scn),
        "commit_scn": "2122190",
        "lcr_position": None,
        "rs_id": None if ssn is None else "001234.00012345.0124",
        "ssn": ssn,
        "redo_thread": 1,
        "user_name": "user",
        "row_id": "AAASgjAAMAAAACnAAA",
        "commit_ts_ms": T0 // 1000 + 60_000 + n,
    }
    return event(
        op,
        before,
        after,
        fields,
        {"connector": "oracle", "db": "ORCLPDB1", "schema": "INVENTORY", "table": "CUSTOMERS", **place, **source},
        n,
    )


def test_values_of_oracle(home: Path, declare: Callable[[str], None]) -> None:
    declare(CUSTOMERS)
    snapshot = oracle("r", None, ANN, ssn=None, snapshot="last", txId=None, commit_ts_ms=None)
    renamed = {**ANN, "NAME": "Ann", "NOTES": PLACEHOLDER, "SCAN": base64.b64encode(PLACEHOLDER.encode()).decode()}
    summary = deliver(home, snapshot, oracle("u", ANN, renamed))
    assert (summary.quarantined, summary.after.source) == (0, "oracle:ORCLPDB1")
    read, updated = log_rows(home, "customers")
    assert (read["tx_id"], updated["tx_id"] is not None) == (None, True)
    assert updated["committed_at"] == datetime(2026, 1, 1, 10, 1, 0, 1000)
    assert read["after"] == updated["before"]
    assert updated["after"] == {
        "ID": 1004,
        "NAME": "Ann",
        "BALANCE": Decimal("-1.25"),
        "ANY_NUMBER": "12000",
        "RATE": 0.5,
        "BORN": date(1970, 1, 2),
        "MADE": datetime(2026, 1, 1, 10),
        "FINE": datetime(2026, 1, 1, 10, 0, 0, 123456),
        "SEEN": datetime(2026, 1, 1, 15, 0, 0, 123456),
        "TERM": "1 day 02:03:04.5",
        "NOTES": "a note",
        "SCAN": b"\x00\x01\x02",
        "extra": None,
    }


@pytest.mark.parametrize(
    ("column", "value", "reason"),
    [
        ("BORN", 86_400_001, "which is not a date"),
        ("BALANCE", {"scale": 11, "value": unscaled(1)}, "which is not a number of 28 digits before the point"),
        ("TERM", "P0Y0M0DT0H0M0.0000001S", "which is not an interval"),
        ("SEEN", "2026-01-01T10:00:00.123456789Z", "digits beyond microseconds cannot be kept, and are not rounded"),
    ],
)
def test_what_oracle_holds_and_the_log_cannot(
    home: Path, declare: Callable[[str], None], column: str, value: Any, reason: str
) -> None:
    declare(CUSTOMERS)
    deliver(home, oracle("c", None, {**ANN, column: value}))
    assert reason in reasons(home)[0]


def test_an_interval_as_a_number_cannot_say_its_months(home: Path, declare: Callable[[str], None]) -> None:
    declare(CUSTOMERS)
    fields = {**CUSTOMERS_FIELDS, "TERM": {"type": "int64", "name": f"{DEBEZIUM}.time.MicroDuration"}}
    deliver(home, oracle("c", None, {**ANN, "TERM": 2_629_800_000_000}, fields=fields))
    assert "interval.handling.mode=string has the connector say them" in reasons(home)[0]


@pytest.mark.parametrize("is_declared", [True, False])
def test_a_large_object_that_was_not_sent_is_not_made_up(
    home: Path, declare: Callable[[str], None], is_declared: bool
) -> None:
    """Oracle leaves one out of the row before as well."""
    declare(CUSTOMERS if is_declared else CUSTOMERS.replace('"NOTES" text, ', ""))
    lacking = {**ANN, "NOTES": PLACEHOLDER}
    deliver(home, oracle("u", lacking, {**lacking, "NAME": "Ann"}))
    (reason,) = reasons(home)
    assert reason.startswith("column NOTES of the before image is ") and "column.exclude.list" in reason


def test_changes_of_oracle_are_known_again_by_their_place(home: Path, declare: Callable[[str], None]) -> None:
    """`ssn` tells the changes of one transaction apart; without it the whole event must be the same."""
    declare(CUSTOMERS)
    names = [{**ANN, "NAME": name} for name in ("a", "b")]
    events = [
        oracle("c", None, names[0], ssn=1),
        oracle("u", names[0], names[1], ssn=2),
        oracle("u", names[1], names[0], ssn=3),
        oracle("u", names[0], names[1], ssn=4),
        oracle("d", names[1], None, ssn=None, lcr_position="0000abcd", n=2),
        oracle("c", None, names[0], ssn=None, n=3),
    ]
    deliver(home, *events)
    again = deepcopy(events)
    for e in again[:5]:
        e["payload"]["source"] |= {"version": "3.7.0.Final", "user_name": None}
    summary = deliver(home, *again)
    assert (summary.known, summary.landed) == (6, {})
    assert [r["op"] for r in log_rows(home, "customers")] == ["c", "u", "u", "u", "d", "c"]
