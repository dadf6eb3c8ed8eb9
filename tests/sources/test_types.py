"""Every type of the landing contract, whichever way it comes: the same value in the log.

One table has a column of every type. Its rows come by the snapshot's COPY, by the replication stream, and as Debezium's
connectors would write them, in a file and by Kafka: with the schema in each event or without, in each of the
connectors' modes.

Awkward cases: the ends of every type; NULL; empty and odd texts; arrays of arrays, of quotes, of NULL; intervals of
mixed signs; times with a zone; bytes that look like digits; updates that leave large values of every type alone.
"""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import psycopg2
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from debezium_events import deliver, event, log_rows
from kafka_mock import kafka
from lockstep import verify
from lockstep.capture import capture
from lockstep.changelog import ChangeLog
from lockstep.kafka import Address, Options, follow
from lockstep.postgres import Source
from lockstep.schema import TABLES, declared
from postgres import Cluster, cluster

__all__ = ["cluster"]  # a fixture

DDL = """
CREATE TYPE mood AS ENUM ('sad', 'ok', 'with "quotes", and comma');
CREATE DOMAIN positive AS integer CHECK (VALUE > 0);
CREATE TYPE pair AS (n integer, t text);
CREATE TABLE things (
  id uuid, code numeric(6, 2), at timestamptz, name text,
  a_boolean boolean, a_smallint smallint, an_integer integer, a_bigint bigint, a_real real, a_double double precision,
  a_numeric numeric(12, 2), a_whole numeric(38, 0), a_fine numeric(38, 38), any_numeric numeric, a_money money,
  a_date date, a_time time, a_coarse_time time(3), a_time_zoned time with time zone,
  a_timestamp timestamp, a_coarse_timestamp timestamp(3), a_moment timestamp with time zone, an_interval interval,
  a_text text, a_varchar character varying(40), a_uuid uuid, a_mood mood, a_domain positive, a_json json, a_jsonb jsonb,
  a_bytea bytea, an_inet inet, a_range int4range, a_bit bit(9), a_varbit bit varying(9), a_point point, a_pair pair,
  an_xml xml, an_oid oid,
  integers integer[], texts text[], numerics numeric(10, 2)[], dates date[], timestamps timestamp[],
  moments timestamptz[], booleans boolean[], doubles double precision[], uuids uuid[], moods mood[],
  a_matrix integer[][],
  PRIMARY KEY (id, code, at, name)
);
ALTER TABLE things REPLICA IDENTITY FULL;
"""
KEY = ("id", "code", "at", "name")
UNDECLARED = {"u_bytea": "bytea", "u_fine": "numeric(30, 20)", "u_numeric": "numeric"}


@pytest.fixture(scope="module")
def things(cluster: Cluster, tmp_path_factory: pytest.TempPathFactory) -> Cluster:
    """The server with an empty database `shop` of that one table, which the project declares."""
    path = tmp_path_factory.mktemp("types") / "source_schema.sql"
    path.write_text(DDL)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(TABLES, "_found", declared.__wrapped__(path))
        yield cluster


@pytest.fixture
def fresh(things: Cluster) -> Cluster:
    recreate(things)
    return things


def recreate(server: Cluster) -> None:
    for (slot,) in server.execute("SELECT slot_name FROM pg_replication_slots", database="postgres"):
        server.execute("SELECT pg_drop_replication_slot(%s)", (slot,), database="postgres")
    server.execute("DROP DATABASE IF EXISTS shop WITH (FORCE)", database="postgres")
    server.execute("CREATE DATABASE shop", database="postgres")
    server.execute(DDL)
    for name, type_ in UNDECLARED.items():
        server.execute(f"ALTER TABLE things ADD COLUMN {name} {type_}")


# What a connector makes of a value


@dataclass(frozen=True)
class Mode:
    """How a connector is set."""

    decimals: str
    times: str
    has_schemas: bool

    @property
    def digits(self) -> int:
        """Of a second that the connector sends."""
        return 3 if self.times == "connect" else 6

    @property
    def left_out(self) -> set[str]:
        """Columns whose values cannot be told exactly in this mode: a test of its own sees them quarantined."""
        out = {"a_varbit"}
        if self.decimals == "double":
            out |= {"a_whole", "a_fine", "any_numeric", "u_fine", "u_numeric"}
        if not self.has_schemas:
            out |= {"a_pair", *UNDECLARED}  # nothing says the type
            if self.times == "connect":
                out |= {"a_time", "a_timestamp", "timestamps"}
            if self.times == "adaptive_time_microseconds":
                out.add("a_coarse_time")
        return out


MODES = [
    Mode("precise", "adaptive", True),
    Mode("precise", "adaptive", False),
    Mode("string", "isostring", True),
    Mode("string", "isostring", False),
    Mode("double", "connect", True),
    Mode("double", "connect", False),
    Mode("precise", "adaptive_time_microseconds", True),
    Mode("string", "adaptive_time_microseconds", False),
]
Encoded = tuple[dict[str, Any], Any]  # a schema and the JSON value
EPOCH = datetime(1970, 1, 1)


def as_bytes(number: int) -> str:
    return base64.b64encode(number.to_bytes(number.bit_length() // 8 + 1, "big", signed=True)).decode()


def shifted(value: Decimal, places: int) -> Decimal:
    """The value times a power of ten, with all its digits: `scaleb` rounds to 28."""
    sign, digits, exponent = value.as_tuple()
    return Decimal((sign, digits, int(exponent) + places))


def decimal(scale: int | None) -> Callable[[Decimal, Mode], Encoded]:
    def encode(value: Decimal, mode: Mode) -> Encoded:
        own = -int(value.as_tuple().exponent) if scale is None else scale
        unscaled = int(shifted(value, own))
        if mode.decimals == "double":
            return {"type": "double"}, float(value)
        if mode.decimals == "string":
            return {"type": "string"}, str(value)
        if scale is None:
            name = "io.debezium.data.VariableScaleDecimal"
            return {"type": "struct", "name": name}, {"scale": own, "value": as_bytes(unscaled)}
        name = "org.apache.kafka.connect.data.Decimal"
        return {"type": "bytes", "name": name, "parameters": {"scale": str(scale)}}, as_bytes(unscaled)

    return encode


def moment(precision: int) -> Callable[[datetime, Mode], Encoded]:
    def encode(value: datetime, mode: Mode) -> Encoded:
        micros = (value - EPOCH) // timedelta(microseconds=1)
        if mode.times == "isostring":
            return {"type": "string", "name": "io.debezium.time.IsoTimestamp"}, f"{value.isoformat()}Z"
        if mode.times == "connect":
            return {"type": "int64", "name": "org.apache.kafka.connect.data.Timestamp"}, micros // 1000
        if precision <= 3:
            return {"type": "int64", "name": "io.debezium.time.Timestamp"}, micros // 1000
        return {"type": "int64", "name": "io.debezium.time.MicroTimestamp"}, micros

    return encode


def clock(precision: int) -> Callable[[time, Mode], Encoded]:
    def encode(value: time, mode: Mode) -> Encoded:
        micros = (datetime.combine(EPOCH, value) - EPOCH) // timedelta(microseconds=1)
        if mode.times == "isostring":
            return {"type": "string", "name": "io.debezium.time.IsoTime"}, f"{value.isoformat()}Z"
        if mode.times == "connect":
            return {"type": "int32", "name": "org.apache.kafka.connect.data.Time"}, micros // 1000
        if precision <= 3 and mode.times == "adaptive":
            return {"type": "int32", "name": "io.debezium.time.Time"}, micros // 1000
        return {"type": "int64", "name": "io.debezium.time.MicroTime"}, micros

    return encode


def day(value: date, mode: Mode) -> Encoded:
    if mode.times == "isostring":
        return {"type": "string", "name": "io.debezium.time.IsoDate"}, f"{value.isoformat()}Z"
    return {"type": "int32", "name": "io.debezium.time.Date"}, (value - EPOCH.date()).days


def zoned(value: datetime, mode: Mode) -> Encoded:
    return {"type": "string", "name": "io.debezium.time.ZonedTimestamp"}, f"{value:%Y-%m-%dT%H:%M:%S.%f}Z".rjust(
        27, "0"
    )


def zoned_time(value: tuple[time, int], mode: Mode) -> Encoded:
    at, minutes = value
    utc = (datetime.combine(date(2000, 1, 2), at) - timedelta(minutes=minutes)).time()
    return {"type": "string", "name": "io.debezium.time.ZonedTime"}, f"{utc.isoformat()}Z"


def interval(value: tuple[int, int, int], mode: Mode) -> Encoded:
    months, days, micros = value
    years = int(months / 12)
    seconds = int(micros / 1_000_000)
    hours, minutes = int(seconds / 3600), int(seconds / 60)
    fraction = Decimal(micros - minutes * 60_000_000) / 1_000_000
    text = f"P{years}Y{months - years * 12}M{days}DT{hours}H{minutes - hours * 60}M{fraction:f}S"
    return {"type": "string", "name": "io.debezium.time.Interval"}, text


def bits(value: str, mode: Mode) -> Encoded:
    data = base64.b64encode(int(value, 2).to_bytes(2, "little")).decode()
    return {"type": "bytes", "name": "io.debezium.data.Bits", "parameters": {"length": "9"}}, data


def point(value: tuple[float, float], mode: Mode) -> Encoded:
    return {"type": "struct", "name": "io.debezium.data.geometry.Point"}, {"x": value[0], "y": value[1], "wkb": "AQ=="}


def plain(type_: str, name: str | None = None) -> Callable[[Any, Mode], Encoded]:
    return lambda value, mode: ({"type": type_, "name": name}, value)


def in_bytes(value: Any, mode: Mode) -> Encoded:
    data = value if isinstance(value, bytes) else str(value).encode()
    return {"type": "bytes"}, base64.b64encode(data).decode()


def array(encode: Callable[[Any, Mode], Encoded], example: Any) -> Callable[[list[Any], Mode], Encoded]:
    def encode_all(values: list[Any], mode: Mode) -> Encoded:
        if values and isinstance(values[0], list):
            return {"type": "array"}, values
        items = encode(example, mode)[0]
        return {"type": "array", "items": items}, [None if v is None else encode(v, mode)[1] for v in values]

    return encode_all


# Values of every type: how they are drawn, written as literals, and encoded


def literal(value: Any) -> Any:
    """As PostgreSQL reads it."""
    if isinstance(value, list):
        return f"{{{','.join('NULL' if v is None else _in_array(v) for v in value)}}}"
    if isinstance(value, bytes):
        return f"\\x{value.hex()}"
    if isinstance(value, bool):
        return "t" if value else "f"
    if isinstance(value, datetime | date | time):
        return value.isoformat()
    return value if value is None or isinstance(value, str) else str(value)


def _in_array(value: Any) -> str:
    if isinstance(value, list):
        return str(literal(value))
    text = str(literal(value))
    return '"{}"'.format(text.replace("\\", "\\\\").replace('"', '\\"'))


@dataclass(frozen=True)
class Type:
    """A column's values, given the mode; how they are encoded; and how they are written, if not as `literal` does."""

    values: Callable[[Mode], st.SearchStrategy[Any]]
    encode: Callable[[Any, Mode], Encoded]
    write: Callable[[Any], Any] = literal


def always(values: st.SearchStrategy[Any]) -> Callable[[Mode], st.SearchStrategy[Any]]:
    return lambda mode: values


def integers(bits_: int) -> st.SearchStrategy[int]:
    return st.integers(-(1 << bits_ - 1), (1 << bits_ - 1) - 1)


def decimals(digits: int, scale: int) -> Callable[[Mode], st.SearchStrategy[Decimal]]:
    def draw(mode: Mode) -> st.SearchStrategy[Decimal]:
        most = 10 ** min(digits, 15 if mode.decimals == "double" else digits) - 1
        drawn = st.integers(-most, most)
        if mode.decimals == "precise" and not mode.has_schemas:
            drawn = drawn.filter(lambda n: not _is_number(as_bytes(n)))
        return clear(mode, drawn.map(lambda n: shifted(Decimal(n), -scale)))

    return draw


def clear(mode: Mode, drawn: st.SearchStrategy[Decimal]) -> st.SearchStrategy[Decimal]:
    """Without those that a connector without schemas writes as digits which may be base64: they are quarantined."""
    if mode.has_schemas or mode.decimals != "string":
        return drawn
    return drawn.filter(lambda number: not re.fullmatch("([0-9A-Za-z+/]{4})+", f"{number:f}"))


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def coarse(micros: int, mode: Mode, precision: int) -> int:
    unit = 10 ** (6 - min(precision, mode.digits))
    return micros // unit * unit


def moments(precision: int) -> Callable[[Mode], st.SearchStrategy[datetime]]:
    def draw(mode: Mode) -> st.SearchStrategy[datetime]:
        drawn = st.datetimes(datetime(1, 1, 1), datetime(9999, 12, 31, 23, 59, 59, 999_999))
        if not mode.has_schemas:  # where only a connector's default says microseconds, early 1970 is in doubt
            drawn = drawn.filter(lambda at: at.year != 1970)
        return drawn.map(lambda at: at.replace(microsecond=coarse(at.microsecond, mode, precision)))

    return draw


def clocks(precision: int) -> Callable[[Mode], st.SearchStrategy[time]]:
    def draw(mode: Mode) -> st.SearchStrategy[time]:
        first = time() if mode.has_schemas else time(0, 2)
        return st.times(first).map(lambda at: at.replace(microsecond=coarse(at.microsecond, mode, precision)))

    return draw


def lists(values: Callable[[Mode], st.SearchStrategy[Any]]) -> Callable[[Mode], st.SearchStrategy[list[Any]]]:
    return lambda mode: st.lists(st.none() | values(mode), max_size=3)


TEXT = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\x00"), max_size=12)
MOODS = st.sampled_from(["sad", "ok", 'with "quotes", and comma'])
REAL = st.floats(width=32, allow_nan=False, allow_infinity=False)
DOUBLE = st.floats(allow_nan=False, allow_infinity=False)
DAYS = st.dates(date(1, 1, 1), date(9999, 12, 31))
INTERVAL = st.tuples(st.integers(-500, 500), st.integers(-400, 400), st.integers(-(10**12), 10**12))
JSON = ['{"a": 1}', "[1, 2.50]", '"ü\\n"', "null", '{"b": {"a": []}}']
STRING = plain("string")


def short(value: float) -> float:
    """A real as the shortest double that means it: what a connector writes."""
    import numpy as np

    return float(str(np.float32(value)))


TYPES: dict[str, Type] = {
    "a_boolean": Type(always(st.booleans()), plain("boolean")),
    "a_smallint": Type(always(integers(16)), plain("int16")),
    "an_integer": Type(always(integers(32)), plain("int32")),
    "a_bigint": Type(always(integers(64)), plain("int64")),
    "a_real": Type(always(REAL.map(short)), plain("float")),
    "a_double": Type(always(DOUBLE), plain("double"), repr),
    "a_numeric": Type(decimals(12, 2), decimal(2)),
    "a_whole": Type(decimals(38, 0), decimal(0)),
    "a_fine": Type(decimals(38, 38), decimal(38), lambda v: f"{v:f}"),
    "any_numeric": Type(
        lambda mode: clear(
            mode, st.builds(lambda n, s: Decimal(f"{n}e-{s}"), st.integers(-(10**45), 10**45), st.integers(0, 20))
        ),
        decimal(None),
        lambda v: f"{v:f}",
    ),
    "a_money": Type(decimals(18, 2), decimal(2)),
    "a_date": Type(always(DAYS), day),
    "a_time": Type(clocks(6), clock(6)),
    "a_coarse_time": Type(clocks(3), clock(3)),
    "a_time_zoned": Type(
        always(st.tuples(st.times(), st.integers(-840, 840))),
        zoned_time,
        lambda v: f"{v[0].isoformat()}{'-' if v[1] < 0 else '+'}{abs(v[1]) // 60:02}:{abs(v[1]) % 60:02}",
    ),
    "a_timestamp": Type(moments(6), moment(6)),
    "a_coarse_timestamp": Type(moments(3), moment(3)),
    "a_moment": Type(moments(6), zoned, lambda v: f"{v.isoformat()}+00"),
    "an_interval": Type(
        always(INTERVAL), interval, lambda v: f"{v[0]} months {v[1]} days {v[2]} microseconds" if v else None
    ),
    "a_text": Type(always(TEXT), STRING),
    "a_varchar": Type(always(TEXT), STRING),
    "a_uuid": Type(always(st.uuids().map(str)), plain("string", "io.debezium.data.Uuid")),
    "a_mood": Type(always(MOODS), plain("string", "io.debezium.data.Enum")),
    "a_domain": Type(always(st.integers(1, 2**31 - 1)), plain("int32")),
    "a_json": Type(always(st.sampled_from([*JSON, '{ "a":1 }'])), plain("string", "io.debezium.data.Json")),
    "a_jsonb": Type(always(st.sampled_from(JSON)), plain("string", "io.debezium.data.Json")),
    "a_bytea": Type(
        lambda mode: st.binary(max_size=9).filter(
            lambda b: mode.has_schemas or not b or set(base64.b64encode(b).decode()) - set("0123456789abcdef")
        ),
        in_bytes,
    ),
    "an_inet": Type(always(st.sampled_from(["10.0.0.1", "10.0.0.0/8", "2001:db8::1"])), STRING),
    "a_range": Type(always(st.sampled_from(["[1,5)", "empty", "(,3)"])), STRING),
    "a_bit": Type(always(st.integers(0, 511).map(lambda n: f"{n:09b}")), bits),
    "a_varbit": Type(always(st.text("01", max_size=9)), STRING),
    "a_point": Type(
        always(st.tuples(DOUBLE, DOUBLE)), point, lambda v: f"({v[0]!r},{v[1]!r})" if v is not None else None
    ),
    "a_pair": Type(always(st.sampled_from(['(1,"a,b")', "(,x)"])), in_bytes),
    "an_xml": Type(always(st.sampled_from(["<a/>", "<a>ü</a>"])), plain("string", "io.debezium.data.Xml")),
    "an_oid": Type(always(st.integers(0, 2**32 - 1)), plain("int64")),
    "integers": Type(lists(always(integers(32))), array(plain("int32"), 0)),
    "texts": Type(lists(always(TEXT)), array(STRING, "")),
    "numerics": Type(lists(decimals(10, 2)), array(decimal(2), Decimal(0))),
    "dates": Type(lists(always(DAYS)), array(day, date(2000, 1, 1))),
    "timestamps": Type(lists(moments(6)), array(moment(6), EPOCH)),
    "moments": Type(
        lists(moments(6)), array(zoned, EPOCH), lambda v: literal([x and f"{x.isoformat()}+00" for x in v])
    ),
    "booleans": Type(lists(always(st.booleans())), array(plain("boolean"), True)),
    "doubles": Type(lists(always(DOUBLE)), array(plain("double"), 0.0)),
    "uuids": Type(lists(always(st.uuids().map(str))), array(plain("string", "io.debezium.data.Uuid"), "")),
    "moods": Type(lists(always(MOODS)), array(plain("string", "io.debezium.data.Enum"), "")),
    "a_matrix": Type(always(st.sampled_from([[[1, 2], [3, 4]], [[-1]]])), array(plain("int32"), 0)),
}


def spelled_out(values: Callable[[Mode], st.SearchStrategy[Decimal]]) -> Callable[[Mode], st.SearchStrategy[Decimal]]:
    """Without those that Java writes with an exponent: in a text of an unknown type it stays."""
    return lambda mode: values(mode).filter(lambda number: "E" not in str(number))


TYPES |= {
    "u_bytea": TYPES["a_bytea"],
    "u_numeric": Type(spelled_out(TYPES["any_numeric"].values), TYPES["any_numeric"].encode),
    "u_fine": Type(spelled_out(decimals(30, 20)), decimal(20)),
}
Row = dict[str, Any]


def row_of(mode: Mode) -> st.SearchStrategy[Row]:
    columns = {
        name: st.none() if name in mode.left_out else st.none() | type_.values(mode) for name, type_ in TYPES.items()
    }
    return st.fixed_dictionaries(columns)


def key(number: int) -> Row:
    return {
        "id": f"00000000-0000-0000-0000-{number:012}",
        "code": Decimal(number).scaleb(-2),
        "at": datetime(2026, 1, 1, 0, 0, number),
        "name": f"é {number}",
    }


KEY_TYPES = {
    "id": Type(always(st.none()), plain("string", "io.debezium.data.Uuid")),
    "code": Type(always(st.none()), plain("string")),
    "at": Type(always(st.none()), zoned, lambda v: f"{v.isoformat()}+00"),
    "name": Type(always(st.none()), STRING),
}
ALL = {**KEY_TYPES, **TYPES}


def insert(server: Cluster, rows: list[Row]) -> None:
    with psycopg2.connect(server.dsn()) as connection, connection.cursor() as cursor:
        for row in rows:
            values = [None if v is None else ALL[name].write(v) for name, v in row.items()]
            names = ", ".join(row)
            cursor.execute(f"INSERT INTO things ({names}) VALUES ({', '.join(['%s'] * len(row))})", values)
    connection.close()


def as_event(row: Row, mode: Mode, n: int) -> dict[str, Any]:
    image: Row = {}
    fields = []
    for name, type_ in ALL.items():
        encode = type_.encode
        value = row.get(name)
        if name == "code":
            image[name], schema = str(value), {"type": "string"}
        elif value is None:
            image[name], schema = None, {"type": "string"}
        else:
            schema, image[name] = encode(value, mode)
        fields.append({"field": name, **schema})
    change = event("c", None, image, n=n, table="things")
    if not mode.has_schemas:
        return change
    images = [{"type": "struct", "field": which, "fields": fields} for which in ("before", "after")]
    return {"schema": {"type": "struct", "fields": images}, "payload": change}


def captured(server: Cluster, home: Path, slot: str) -> None:
    capture(home, Source(server.dsn(), slot=slot, publication=slot), 0.05, until_caught_up=True)


def deliver_by_kafka(home: Path, events: list[dict[str, Any]]) -> None:
    topic = "shop.public.things"
    with kafka() as broker:
        broker.topic(topic)
        for change in events:
            broker.send(topic, 0, json.dumps(change, ensure_ascii=False).encode())
        broker.flush()
        follow(home, Address(broker.brokers, (topic,)), Options(until_caught_up=True, complete=True, trigger=0.05))


def images(home: Path) -> dict[str, Row]:
    assert [e["reason"] for e in ChangeLog(home).quarantined()] == []
    return {row["after"]["name"]: row["after"] for row in log_rows(home, "things")}


def apart(one: dict[str, Row], other: dict[str, Row]) -> list[Any]:
    """The columns in which two sides differ, with a value of each."""
    assert one.keys() == other.keys()
    return [
        (column, repr(one[n][column]), repr(other[n][column]))
        for n in one
        for column in one[n]
        if repr(one[n][column]) != repr(other[n][column])
    ]


def verified(server: Cluster, home: Path) -> verify.Verified:
    """Verify while the capture of the home's slot goes on."""
    with ThreadPoolExecutor(1) as pool:
        running = pool.submit(verify.verify, home, server.dsn(), [], 300.0, 20, lambda _: None)
        while not running.done():
            captured(server, home, ChangeLog(home).watermark().resume["slot"])
        return running.result()


@settings(
    max_examples=2,
    phases=[Phase.explicit, Phase.generate],
    suppress_health_check=list(HealthCheck),
    print_blob=False,
)
@given(st.tuples(*map(row_of, MODES)))
def test_every_way_in_lands_the_same_values(things, tmp_path_factory, drawn):
    rows = [{**key(n), **row} for n, row in enumerate(drawn)]
    home = tmp_path_factory.mktemp("ways")
    recreate(things)
    captured(things, home / "stream", "stream")
    insert(things, rows)
    captured(things, home / "stream", "stream")
    captured(things, home / "copy", "copy")
    events = [as_event(row, mode, n) for n, (row, mode) in enumerate(zip(rows, MODES, strict=True))]
    deliver(home / "debezium", *events)
    deliver_by_kafka(home / "kafka", events)
    expected = images(home / "stream")
    assert len(expected) == len(rows)
    assert apart(expected, images(home / "copy")) == []
    assert apart(expected, images(home / "debezium")) == []
    assert apart(expected, images(home / "kafka")) == []
    found = verified(things, home / "stream")
    assert found.is_equal, found.receipts(5, with_values=True)
