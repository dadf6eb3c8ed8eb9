"""What a declared type is, what of its values cannot be held, and what means "unchanged" in it.

That every way in lands the same values is in tests/sources/test_types.py.
"""

from __future__ import annotations

import base64
import json
from datetime import datetime, time
from decimal import Decimal
from typing import Any

import pyarrow as pa
import pytest

from debezium_events import deliver, event, log_rows
from lockstep import quarantine, texts
from lockstep.changelog import ChangeLog
from lockstep.ddl import parsed
from lockstep.explain import _signed
from lockstep.kinds import Kind, plain
from lockstep.pgvalues import typed
from lockstep.schema import TABLES

PLACEHOLDER = "__debezium_unavailable_value"


def kinds(columns: str, before: str = "") -> dict[str, Kind]:
    from pathlib import Path

    tables, problems = parsed(f"{before} CREATE TABLE t (id uuid PRIMARY KEY, {columns});", Path("source_schema.sql"))
    assert problems == []
    return {c.name: c.kind for c in tables["t"].columns}


@pytest.fixture
def declare(monkeypatch):
    def tables(columns: str) -> None:
        from pathlib import Path

        found, problems = parsed(f"CREATE TABLE notes (id text PRIMARY KEY, {columns});", Path("source_schema.sql"))
        assert problems == []
        monkeypatch.setattr(TABLES, "_found", found)

    return tables


@pytest.mark.parametrize(
    ("declared", "stored"),
    [
        ("smallint", "int32"),
        ("numeric(12, 2)", "decimal128(12, 2)"),
        ("numeric(3, -2)", "decimal128(5, 0)"),
        ("numeric(2, 5)", "decimal128(5, 5)"),
        ("numeric", "string"),
        ("numeric(50, 2)", "string"),
        ("money", "decimal128(19, 2)"),
        ("timestamp(3) without time zone", "timestamp[us]"),
        ("float(20)", "float"),
        ("bit varying(5)", "string"),
        ("national character varying(3)", "string"),
        ("interval year to month", "string"),
        ("geometry(Point, 4326)", "string"),
        ('public."My Type"', "string"),
        ("text[][]", "string"),
    ],
)
def test_every_type_is_declared(declared: str, stored: str) -> None:
    assert str(kinds(f"c {declared}")["c"].type) == stored


def test_a_domain_is_its_base_type() -> None:
    domains = (
        "CREATE DOMAIN public.price AS numeric(10, 2) CONSTRAINT above CHECK (VALUE > 0); CREATE DOMAIN code text;"
    )
    found = kinds("a public.price, b code, c unknown", domains)
    assert [str(found[name].type) for name in "abc"] == ["decimal128(10, 2)", "string", "string"]
    assert [found[name].name for name in "abc"] == ["numeric", "text", "other"]


@pytest.mark.parametrize(
    ("declared", "good", "value", "bad"),
    [
        ("numeric(4, 2)", "-1.50", Decimal("-1.50"), ["NaN", "123.45", "1.005"]),
        ("money", "-$1,234.56", Decimal("-1234.56"), ["x"]),
        ("boolean", "t", True, ["maybe"]),
        ("time", "23:59:59.000001", time(23, 59, 59, 1), ["24:00:00"]),
        (
            "timestamp",
            "0001-01-01 00:00:00.5",
            datetime(1, 1, 1, 0, 0, 0, 500_000),
            ["infinity", "10000-01-01 00:00:00"],
        ),
        ("timestamptz", "9999-12-31 23:59:59+00", datetime(9999, 12, 31, 23, 59, 59), ["-infinity"]),
        ("bytea", "\\x00ff", b"\x00\xff", ["00ff"]),
        ("integer[]", "[0:1]={1,NULL}", "[1,null]", ["{a}"]),
        ("text[]", '{"a\\"b",NULL,"NULL",""}', '["a\\"b",null,"NULL",""]', []),
        ("timetz", "00:30:00.5+02", "22:30:00.5+00", []),
        ("hstore", '"b"=>NULL, "a"=>"1"', '{"a":"1","b":null}', []),
        ("numeric", "1.500", "1.500", []),
    ],
)
def test_what_a_type_cannot_hold_is_no_value_of_it(declared: str, good: str, value: Any, bad: list[str]) -> None:
    kind = kinds(f"c {declared}")["c"]
    assert typed(pa.array([good, None, *bad], pa.string()), kind).to_pylist() == [value, None, *[None] * len(bad)]


def test_the_placeholder_means_the_old_value_in_every_type(tmp_path, declare):
    declare("body text, arr text[], numbers integer[], bin bytea, hs hstore, map hstore, doc json, score float")
    as_bytes = base64.b64encode(PLACEHOLDER.encode()).decode()
    old = {"body": "x", "arr": ["x"], "numbers": [1], "bin": "AAEC", "hs": '{"k":"v"}', "map": {"k": "v"}, "doc": "{}"}
    unsent = {
        "body": PLACEHOLDER,
        "arr": [PLACEHOLDER],
        "numbers": list(PLACEHOLDER.encode()),
        "bin": as_bytes,
        "hs": json.dumps({PLACEHOLDER: PLACEHOLDER}, separators=(",", ":")),
        "map": {PLACEHOLDER: PLACEHOLDER},
        "doc": PLACEHOLDER,
    }
    before, after = {"id": "a", **old, "score": 5}, {"id": "a", **unsent, "score": 6}
    deliver(tmp_path / "home", event("u", before, after, table="notes"))
    (row,) = log_rows(tmp_path / "home", "notes")
    assert row["after"] == {**row["before"], "score": 6.0}
    assert (row["after"]["arr"], row["after"]["bin"], row["after"]["hs"]) == ('["x"]', b"\x00\x01\x02", '{"k":"v"}')


def test_what_cannot_be_decided_is_quarantined_by_itself(tmp_path, declare):
    home = tmp_path / "home"
    declare("n numeric(20, 2), any_n numeric, b bytea, i interval, t time, f boolean")
    none = {"n": None, "any_n": None, "b": None, "i": None, "t": None, "f": None}
    wrong = [
        ("n", "1234", "may be a number or the base64 of one"),
        ("n", 1.005, "18 digits before the point and 2 behind it"),
        ("n", 123456789012345678.5, "only 15 digits can be trusted"),
        ("any_n", 1.5, "decimal.handling.mode=string or precise"),
        ("any_n", "1234", "may be a number or the base64 of one"),
        ("b", "deadbeef", "may be bytes in base64 or in hexadecimal digits"),
        ("i", 86_400_000_000, "interval.handling.mode=string"),
        ("t", 36_000_000, "the default of a postgresql connector"),
        ("t", "10:00:00.0000001Z", "not rounded"),
        ("f", "yes", "which is not true or false"),
    ]
    events = [event("c", None, {"id": str(k), **none, c: v}, n=k, table="notes") for k, (c, v, _) in enumerate(wrong)]
    good = {"id": "good", "n": "BNI=", "any_n": {"scale": 1, "value": "Dw=="}, "b": "AAEC", "i": "P0Y0M-1DT0H0M1.5S"}
    events.append(event("c", None, {**good, "t": 36_000_000_001, "f": False}, n=50, table="notes"))
    deliver(home, *events)
    found = [e["reason"] for e in ChangeLog(home).quarantined()]
    assert len(found) == len(wrong)
    for reason, (column, _, expected) in zip(found, wrong, strict=True):
        assert f"column {column} of the after image" in reason and expected in reason, reason
    (row,) = log_rows(home, "notes")
    assert row["after"] == {
        "id": "good",
        "n": Decimal("12.34"),
        "any_n": "1.5",
        "b": b"\x00\x01\x02",
        "i": "-1 days +00:00:01.5",
        "t": time(10, 0, 0, 1),
        "f": False,
        "extra": None,
    }
    declare("n numeric(20, 2), any_n numeric, b bytea, i interval, t time(3), f boolean")
    assert quarantine.retry(home, [8]).landed == [8]  # the declaration says milliseconds now


@pytest.mark.parametrize(
    ("value", "printed"),
    [
        (0.0, "0"),
        (-0.0, "-0"),
        (1.0, "1"),
        (0.1, "0.1"),
        (-2.5e-5, "-2.5e-05"),
        (0.0001, "0.0001"),
        (1e15, "1e+15"),
        (123456789012345.0, "123456789012345"),
        (1.5e300, "1.5e+300"),
        (5e-324, "5e-324"),
        (1.7976931348623157e308, "1.7976931348623157e+308"),
        (50006497070728976.0, "5.0006497070728976e+16"),  # ...898 lies exactly between this double and the next
    ],
)
def test_a_double_in_a_point_is_printed_as_postgresql_does(value: float, printed: str) -> None:
    """Without it one point would be two texts, by the stream and by Debezium."""
    kind = Kind("other", sql="point")
    assert texts.printed(kind, texts.Said("struct"), {"x": value, "y": 1}) == f"({printed},1)"


def test_a_value_is_told_with_every_digit() -> None:
    assert plain(Decimal("0E-10")) == "0.0000000000"
    assert plain(Decimal("12345678901234567890123456.7890000000")) == "12345678901234567890123456.7890000000"
    assert plain(b"\x00\xff") == "\\x00ff"
    one, other = (Decimal(f"{sign}9999999999999999999999999999.9999999999") for sign in ("", "-"))
    assert _signed(one, other) == "+19999999999999999999999999999.9999999998"
    assert _signed(Decimal("0.1000000000"), Decimal("0.1000000001")) == "-0.0000000001"
    assert _signed(3, 5) == "-2"
