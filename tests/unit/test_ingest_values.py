"""What a value of an event means: by the event's schema, the declaration or the connector, never by its size.

Awkward cases: an end of validity in the year 9999 beside one of today; times of 1972 in microseconds; connectors with
no default; digits that are base64; decimals of any scale; digits beyond microseconds; keys that stand twice; commas too
many; the placeholder for an unchanged value in every type that has one.
"""

from __future__ import annotations

import base64
import json
from datetime import date, datetime
from decimal import Decimal

import pytest

from debezium_events import deliver, event, live, log_rows, order
from lockstep.changelog import ChangeLog
from lockstep.errors import LockstepError
from lockstep.ingest import Landing
from lockstep.schema import TABLES, declared

TODAY, NEVER, EARLY = datetime(2025, 1, 1), datetime(9999, 12, 31, 23, 59, 59), datetime(1972, 1, 1)
MILLIS = {TODAY: 1735689600000, NEVER: 253402300799000, EARLY: 63072000000}


@pytest.fixture
def home(tmp_path):
    return tmp_path / "home"


@pytest.fixture
def declare(tmp_path, monkeypatch):
    """Have the project declare other tables, in this test."""

    def tables(sql):
        path = tmp_path / "source_schema.sql"
        path.write_text(sql)
        monkeypatch.setattr(TABLES, "_found", declared.__wrapped__(path))

    return tables


def orders(precision="timestamptz"):
    return (
        "CREATE TABLE orders (order_id bigint PRIMARY KEY, customer_id bigint, product_id bigint, region text, "
        f"quantity int, amount_cents bigint, status text, ordered_at {precision}, updated_at timestamptz);"
    )


def with_schema(value, **columns):
    """The event with a schema that says the types of these columns."""
    fields = [{"field": name, **said} for name, said in columns.items()]
    images = [{"type": "struct", "field": image, "fields": fields} for image in ("before", "after")]
    return {"schema": {"type": "struct", "fields": images}, "payload": value}


def reasons(home):
    return [e["reason"] for e in ChangeLog(home).quarantined()]


def landed(home, column, table="orders"):
    return [r["after"][column] for r in log_rows(home, table)]


# Times


def mysql(order_id, ordered_at):
    return event("c", None, order(order_id, ordered_at=ordered_at), n=order_id, connector="mysql", schema=None)


def test_each_time_is_read_by_itself(home):
    """An end of validity in the year 9999 once made the whole chunk microseconds, and its neighbours 1970."""
    deliver(home, mysql(1, MILLIS[EARLY]), mysql(2, MILLIS[NEVER]), mysql(3, MILLIS[TODAY]), mysql(4, -1), mysql(5, 1))
    assert landed(home, "ordered_at") == [
        EARLY,
        NEVER,
        TODAY,
        datetime(1969, 12, 31, 23, 59, 59, 999000),
        datetime(1970, 1, 1, 0, 0, 0, 1000),
    ]


def test_a_date_that_may_be_mysqls_zero_date_is_no_date(home, declare):
    """The connector sends 1970-01-01 for 0000-00-00, unless the column can be NULL."""
    declare("CREATE TABLE days (id int PRIMARY KEY, day date NOT NULL, maybe date, at timestamp(3) NOT NULL);")
    row = {"id": 1, "day": 1, "maybe": 0, "at": 1}
    optional = {"day": {"type": "int32", "name": "io.debezium.time.Date", "optional": True}}
    deliver(
        home,
        event("c", None, row, table="days", connector="mysql"),
        event("c", None, {**row, "id": 2, "day": 0}, n=2, table="days", connector="mysql"),
        event("c", None, {**row, "id": 3, "at": 0}, n=3, table="days", connector="mysql"),
        with_schema(event("c", None, {**row, "id": 4, "day": 0}, n=4, table="days", connector="mysql"), **optional),
    )
    assert landed(home, "id", "days") == [1, 4]
    day, at = reasons(home)
    assert day.startswith(
        "column day of the after image is 0, which the connector sends for 1970-01-01 and for the zero"
    )
    assert "declare at without NOT NULL" in at


def test_the_default_unit_is_the_connectors(home):
    deliver(home, *(event("c", None, order(i, ordered_at=MILLIS[at] * 1000), n=i) for i, at in enumerate(MILLIS)))
    assert landed(home, "ordered_at") == list(MILLIS)


@pytest.mark.parametrize(
    ("connector", "declaration", "factor"),
    [("mysql", "timestamptz(6)", 1000), ("postgresql", "timestamptz(3)", 1), ("sqlserver", "timestamptz(0)", 1)],
)
def test_a_declared_precision_says_the_unit(home, declare, declaration, factor, connector):
    declare(orders(declaration))
    events = (
        event("c", None, order(i, ordered_at=MILLIS[at] * factor), n=i, connector=connector)
        for i, at in enumerate(MILLIS)
    )
    assert deliver(home, *events).quarantined == 0
    assert landed(home, "ordered_at") == list(MILLIS)


@pytest.mark.parametrize(
    ("name", "factor", "per"),
    [
        ("io.debezium.time.Timestamp", 1, 1),
        ("org.apache.kafka.connect.data.Timestamp", 1, 1),
        ("io.debezium.time.MicroTimestamp", 1000, 1),
        ("io.debezium.time.NanoTimestamp", 1_000_000, 1),
        ("io.debezium.time.Date", 1, 86_400_000),
    ],
)
def test_the_events_schema_says_the_unit_first(home, declare, name, factor, per):
    declare(orders("timestamptz(3)"))
    values = {at: MILLIS[at] * factor // per for at in (TODAY, EARLY)}
    events = (event("c", None, order(i, ordered_at=value), n=i) for i, value in enumerate(values.values()))
    assert deliver(home, *(with_schema(e, ordered_at={"type": "int64", "name": name}) for e in events)).quarantined == 0
    assert landed(home, "ordered_at") == list(values)


@pytest.mark.parametrize(
    ("connector", "value", "reason"),
    [
        ("sqlserver", 1735689600000, "nothing says its unit; declare in source_schema.sql what its numbers are"),
        # Microseconds in a column that is not declared so: datetime(6).
        ("mysql", 1735689600000000, "not a time in milliseconds, the default of a mysql connector"),
        # time.precision.mode=connect: as microseconds all of them would be of January 1970.
        ("postgresql", 1735689600000, "not a time in microseconds, the default of a postgresql connector"),
    ],
)
def test_a_time_whose_unit_is_not_known_is_quarantined_by_itself(home, connector, value, reason):
    events = [event("c", None, order(1, ordered_at=value)), event("c", None, order(2), n=2)]
    for e in events:
        e["source"]["connector"] = connector
    deliver(home, *events)
    (found,) = reasons(home)
    assert reason in found
    assert "ordered_at timestamptz(3) for milliseconds or timestamptz(6) for microseconds" in found
    assert landed(home, "order_id") == [2]


def test_a_schema_that_says_no_unit_leaves_none(home):
    deliver(home, with_schema(event("c", None, order(ordered_at=1735689600000)), ordered_at={"type": "int64"}))
    assert "nothing says its unit" in reasons(home)[0]


def test_a_retry_reads_by_a_declaration_of_today(home, declare):
    from lockstep import quarantine

    declare(orders())
    deliver(home, event("c", None, order(ordered_at=MILLIS[TODAY]), connector="sqlserver"))
    declare(orders("timestamptz(3)"))
    result = quarantine.retry(home, [1])
    assert (result.landed, result.failed) == ([1], {})
    assert landed(home, "ordered_at") == [TODAY]


@pytest.mark.parametrize(
    "value",
    ["2026-01-01T09:59:59.500000123Z", "2026-01-01T09:59:59.5000001+02:00", "2026-01-01 09:59:59.0000005"],
)
def test_digits_beyond_microseconds_are_not_rounded(home, value):
    deliver(home, event("c", None, order(ordered_at=value)), event("c", None, order(2), n=2))
    (reason,) = reasons(home)
    assert "column ordered_at of the after image" in reason
    assert "not rounded" in reason
    assert landed(home, "order_id") == [2]


def test_nanoseconds_are_not_rounded(home):
    said = {"ordered_at": {"type": "int64", "name": "io.debezium.time.NanoTimestamp"}}
    values = [1735689600000000000, 1735689600000000001]
    events = (event("c", None, order(i, ordered_at=v), n=i) for i, v in enumerate(values))
    deliver(home, *(with_schema(e, **said) for e in events))
    assert landed(home, "ordered_at") == [TODAY]
    assert "not a time in nanoseconds" in reasons(home)[0]


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("io.debezium.time.Date", 20089, date(2025, 1, 1)),
        ("io.debezium.time.Timestamp", 1735689600000, date(2025, 1, 1)),  # Oracle's DATE
        ("io.debezium.time.Timestamp", 86_400_000, date(1970, 1, 2)),
        ("io.debezium.time.Timestamp", 1735689600001, None),
        ("io.debezium.time.Timestamp", 20089, None),
    ],
)
def test_a_date_counts_days_unless_the_schema_says_otherwise(home, declare, name, value, expected):
    declare("CREATE TABLE days (id int PRIMARY KEY, day date);")
    e = event("c", None, {"id": 1, "day": value}, table="days")
    deliver(home, with_schema(e, day={"type": "int64", "name": name}))
    assert landed(home, "day", "days") == ([expected] if expected else [])
    assert len(reasons(home)) == (expected is None)


# Numbers

DECIMAL = {"type": "bytes", "name": "org.apache.kafka.connect.data.Decimal"}


def unscaled(number):
    return base64.b64encode(number.to_bytes((number.bit_length() + 8) // 8, "big", signed=True)).decode()


def test_digits_that_may_be_base64_are_no_number(home):
    """`1234` is the base64 of -2658824; `12345` cannot be any."""
    deliver(home, *(event("c", None, order(i, amount_cents=v), n=i) for i, v in enumerate(["1234", "12345", "+123"])))
    assert landed(home, "amount_cents") == [12345]
    assert all("may be a number or the base64 of one" in r and "schemas.enable" in r for r in reasons(home))
    assert len(reasons(home)) == 2


def test_digits_that_may_be_base64_are_no_finite_number_either(home):
    ping = {"ping_id": 1, "driver_id": 1, "latitude": 1.5, "longitude": 2, "speed_kmh": 1, "recorded_at": "2026-01-01Z"}
    ping["recorded_at"] = "2026-01-01T00:00:00Z"
    values = ["1e10", "1234", "12.5"]
    events = (
        event("c", None, {**ping, "ping_id": i, "latitude": v}, n=i, table="gps_pings") for i, v in enumerate(values)
    )
    deliver(home, *events)
    assert landed(home, "latitude", "gps_pings") == [12.5]


def test_a_schema_that_says_bytes_is_heeded(home):
    numbers = [-2658824, 0, 1, -1, 127, 128, -128, -129, 2**63 - 1, -(2**63), 9007199254740993]
    said = {"amount_cents": {**DECIMAL, "parameters": {"scale": "0"}}}
    events = (event("c", None, order(i, amount_cents=unscaled(v)), n=i) for i, v in enumerate(numbers))
    deliver(home, *(with_schema(e, **said) for e in events))
    assert unscaled(-2658824) == "1234"
    assert landed(home, "amount_cents") == numbers


@pytest.mark.parametrize(
    ("unscaled_value", "scale", "expected"), [(-1200, 2, -12), (12, -2, 1200), (1250, 2, None), (2**63, 0, None)]
)
def test_a_scale_is_heeded_and_nothing_is_rounded(home, unscaled_value, scale, expected):
    own = {"scale": scale, "value": unscaled(unscaled_value)}
    fixed = {**DECIMAL, "parameters": {"scale": str(scale)}}
    variable = {"type": "struct", "name": "io.debezium.data.VariableScaleDecimal"}
    deliver(
        home,
        with_schema(event("c", None, order(1, amount_cents=unscaled(unscaled_value))), amount_cents=fixed),
        with_schema(event("c", None, order(2, amount_cents=own), n=2), amount_cents=variable),
    )
    assert landed(home, "amount_cents") == ([] if expected is None else [expected, expected])
    assert len(reasons(home)) == (2 if expected is None else 0)


@pytest.mark.parametrize(("said", "value"), [({"type": "string"}, "1234"), ({"type": "int64"}, 1234), (DECIMAL, 1234)])
def test_a_schema_that_says_text_or_number_is_heeded(home, said, value):
    deliver(home, with_schema(event("c", None, order(amount_cents=value)), amount_cents=said))
    assert landed(home, "amount_cents") == [1234]


def test_decimals_that_the_converter_writes_as_numbers(home, declare):
    """With `decimal.format=NUMERIC` the schema still says bytes. Of a fraction, only 15 digits can be trusted."""
    declare("CREATE TABLE sums (id int PRIMARY KEY, total numeric(38, 10));")
    texts = ["1234", "18446744073709551615", "-12.05", "1E+3", "0.00000000001", "-12345678901234567890.0123456789"]
    events = [event("c", None, {"id": i, "total": None}, n=i, table="sums") for i in range(len(texts))]
    lines = [json.dumps(with_schema(e, total={**DECIMAL, "parameters": {"scale": "10"}})) for e in events]
    deliver(home, *(line.replace('"total": null', f'"total": {t}') for line, t in zip(lines, texts, strict=True)))
    assert landed(home, "total", "sums") == list(map(Decimal, texts[:4]))
    assert len(reasons(home)) == 2 and "decimal.format=BASE64" in reasons(home)[0]


def test_a_time_of_mysql_that_goes_beyond_a_day_is_an_interval(home, declare):
    declare("CREATE TABLE films (id int PRIMARY KEY, length interval);")
    said = {"length": {"type": "int64", "name": "io.debezium.time.MicroTime"}}
    values = [-3020399000001, 90_000_000_000, 0]
    events = [event("c", None, {"id": i, "length": v}, n=i, table="films") for i, v in enumerate(values)]
    deliver(home, *(with_schema(e, **said) for e in events))
    deliver(home, event("c", None, {"id": 4, "length": 1}, n=9, table="films", connector="postgresql"))
    assert landed(home, "length", "films") == ["-838:59:59.000001", "25:00:00", "00:00:00"]
    assert "a number cannot say its months and days" in reasons(home)[0]


def test_bytes_that_are_no_decimal_are_no_number(home):
    deliver(home, with_schema(event("c", None, order(amount_cents="1234")), amount_cents={"type": "bytes"}))
    assert "column amount_cents of the after image" in reasons(home)[0]


def test_a_connector_known_to_write_decimals_as_text(home):
    from contextlib import ExitStack

    from lockstep.debezium import Settings, as_lines
    from lockstep.ingest import End
    from lockstep.sequence import as_lines as as_records

    with ExitStack() as stack:
        landing = Landing(ChangeLog(home), stack, settings=Settings(decimals="string"))
        text = json.dumps(event("c", None, order(amount_cents="1234"))).encode()
        landing.chunk(as_records([("t", 0, text)]), End.INPUT)
    assert landed(home, "amount_cents") == [1234]
    assert as_lines(["x"]).num_rows == 1


# JSON


def twice(text, old, new):
    assert old in text
    return text.replace(old, new, 1)


@pytest.mark.parametrize(
    ("old", "new", "key"),
    [
        ('"amount_cents":1999', '"amount_cents":1999,"amount_cents":2000', "amount_cents"),
        ('"order_id":1', '"order_id":1,"order_id":1', "order_id"),
        ('"order_id":1', '"note":1,"note":2,"order_id":1', "note"),
        ('"op":"c"', '"op":"c","op":"d"', "op"),
        ('"after":{', '"after":null,"after":{', "after"),
        ('"table":"orders"', '"table":"orders","table":"orders"', "table"),
    ],
)
def test_a_key_that_stands_twice_is_quarantined(home, old, new, key):
    text = json.dumps(event("c", None, order(), n=2), separators=(",", ":"))
    broken = twice(text, old, new)
    first, last = event("c", None, order(5), n=1), event("c", None, order(6), n=3)
    deliver(home, first, broken, last)
    assert reasons(home) == [f'its JSON has "{key}" twice in one object: which of the two counts cannot be known']
    assert landed(home, "order_id") == [5, 6]


def test_a_key_that_stands_twice_in_the_first_event(home):
    text = json.dumps(event("c", None, order(), n=2), separators=(",", ":")).replace('"op":"c"', '"op":"c","op":"c"')
    deliver(home, text, text.replace('"order_id":1', '"order_id":2'))
    assert len(reasons(home)) == 2


@pytest.mark.parametrize(
    ("wrapping", "old", "new"),
    [
        ("bare", '"ordered_at":"2026', '"tags":[1,],"ordered_at":"2026'),
        ("bare", '"op":"c"', '"op":"c","x":{"y":1, \t }'),
        ("kcat", '"op":"c"', '"op":"c","x":{"y":1, }'),
        ("key", "}", ",}"),
    ],
)
def test_a_comma_too_many_is_not_json(home, old, new, wrapping):
    text = json.dumps(event("c", None, order(), n=2), separators=(",", ":"))
    broken = twice(text, old, new)
    if wrapping == "kcat":
        broken = json.dumps({"topic": "t", "partition": 0, "offset": 1, "key": None, "payload": broken})
    if wrapping == "key":
        broken = '{"order_id":1}\t' + broken
    deliver(home, event("c", None, order(5), n=1), broken, event("c", None, order(6), n=3))
    assert reasons(home) == ["it is not valid JSON in UTF-8"]
    assert landed(home, "order_id") == [5, 6]


def test_commas_before_brackets_in_a_text_are_no_fault(home):
    text = 'a list [1,] and {"x":1, }'
    deliver(home, event("c", None, order(status=text, note=text)))
    assert landed(home, "status") == [text]


# Values that an update left alone

PLACEHOLDER = "__debezium_unavailable_value"
PLACEHOLDERS = {
    "text": PLACEHOLDER,
    "bytes": base64.b64encode(PLACEHOLDER.encode()).decode(),
    "texts": [PLACEHOLDER],
    "numbers": list(PLACEHOLDER.encode()),
    "hstore": {PLACEHOLDER: PLACEHOLDER},
    "hstore_as_text": json.dumps({PLACEHOLDER: PLACEHOLDER}, separators=(",", ":")),
}


def test_the_placeholder_means_the_value_before_in_every_type(home):
    was = {"text": "x", "bytes": "AAEC", "texts": ["x"], "numbers": [1], "hstore": {"k": "v"}, "hstore_as_text": "{}"}
    deliver(home, event("u", order(**was), order(**PLACEHOLDERS, quantity=5)))
    (after,) = live(home).values()
    assert (json.loads(after["extra"]), after["quantity"]) == (was, 5)


@pytest.mark.parametrize("kind", ["text", "bytes"])
def test_the_placeholder_in_a_declared_text(home, kind):
    deliver(home, event("u", order(status="long"), order(status=PLACEHOLDERS[kind])))
    assert landed(home, "status") == ["long"]


# Names


def test_any_identifier_may_be_a_columns_name(home, declare):
    declare(
        '''CREATE TABLE items (id int, "order" int NOT NULL, "end" timestamptz, "unit price" int, "Name" text,
        "its" text, "say ""x""" int, before text, position int, after int, PRIMARY KEY (id, "order", "unit price"));'''
    )
    names = {"id": 1, "order": 5, "end": "2024-01-01T00:00:00Z", "unit price": 2, "Name": "n", "its": "y", 'say "x"': 3}
    row = {**names, "before": "b", "position": 7, "after": 8}
    changed, moved = {**row, "position": 9}, {**row, "order": 6}
    deliver(
        home,
        event("c", None, row, table="items"),
        event("u", row, changed, n=2, table="items"),
        event("u", changed, {**moved, "its": None}, n=3, table="items"),
        event("r", None, {**row, "order": 6}, n=4, table="items"),
        event("t", None, None, n=5, table="items"),
    )
    rows = log_rows(home, "items")
    assert [r["op"] for r in rows] == ["c", "u", "d", "c", "r", "d"]
    assert rows[1]["after"] == {**changed, "end": datetime(2024, 1, 1), "extra": None}
    assert rows[4]["before"] == rows[3]["after"]


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ("extra text", "has a column extra: that name belongs to the column that keeps"),
        ('name text, "Name" text', "has the columns name and Name, which DuckDB does not tell apart"),
    ],
)
def test_a_column_that_an_image_cannot_hold_is_refused(declare, columns, message):
    with pytest.raises(LockstepError, match=message):
        declare(f"CREATE TABLE items (id int PRIMARY KEY, {columns});")


def test_columns_without_a_declaration_are_as_capture_has_them_if_the_schema_tells(home):
    said = {
        "rate": {"type": "bytes", "name": "org.apache.kafka.connect.data.Decimal", "parameters": {"scale": "2"}},
        "any": {"type": "struct", "name": "io.debezium.data.VariableScaleDecimal"},
        "raw": {"type": "bytes"},
        "note": {"type": "string"},
    }
    values = {"rate": "bg==", "any": {"scale": 3, "value": "/w=="}, "raw": "AP8=", "note": "AP8="}
    nothing = dict.fromkeys(said)
    large = {**values, "raw": base64.b64encode(b"__debezium_unavailable_value").decode()}
    deliver(
        home,
        with_schema(event("c", None, order(**values)), **said),
        with_schema(event("u", order(**values), order(**large), n=2), **said),
        with_schema(event("c", None, order(2, **nothing), n=3), **said),
        event("c", None, order(3, **values), n=4),
    )
    assert reasons(home) == []
    first, second, third, fourth = (json.loads(text) for text in landed(home, "extra"))
    assert first == second == {"any": "-0.001", "note": "AP8=", "rate": "1.10", "raw": "\\x00ff"}
    assert (third, fourth) == (nothing, values)
