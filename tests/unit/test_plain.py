"""The fast lane takes only events of which it says exactly what the careful lane says, and all that are plain.

Awkward cases: members that are missing, twice there, null, of another JSON type, or spelled oddly; numbers at and
beyond the ends of their types; texts that look like null members of an object; placeholders of unchanged values;
envelopes with other members than the first one's; several tables, and lines that are no events, in one chunk.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from debezium_events import event, mark
from lockstep import debezium
from lockstep.debezium import Settings, plain
from lockstep.schema import TABLES, declared

COLUMNS = {
    "id": ("bigint NOT NULL", "1"),
    "a_boolean": ("boolean", "true"),
    "a_smallint": ("smallint", "-7"),
    "an_integer": ("integer NOT NULL", "2147483647"),
    "a_bigint": ("bigint", "-9223372036854775808"),
    "a_real": ("real", "1.5"),
    "a_double": ("double precision", "0.1"),
    "a_numeric": ("numeric(12, 2)", '"1234567890.12"'),
    "a_fine": ("numeric(38, 37)", '"-9.0000000000000000000000000000000000001"'),
    "any_numeric": ("numeric", '"10.50"'),
    "a_money": ("money", '"-3.50"'),
    "a_date": ("date", "20454"),
    "a_time": ("time", "86399999999"),
    "a_coarse_time": ("time(3)", "86399999"),
    "a_time_zoned": ("timetz", '"10:00:00.5Z"'),
    "a_timestamp": ("timestamp", "1767261600000001"),
    "a_coarse_timestamp": ("timestamp(3)", "1767261600001"),
    "a_moment": ("timestamptz NOT NULL", '"2026-01-01T10:00:00.123456Z"'),
    "an_interval": ("interval", '"P1Y2M3DT4H5M6.5S"'),
    "a_text": ("text", '"ü, \\"quoted\\" \\u00e9\\n"'),
    "a_varchar": ("varchar(40)", '""'),
    "a_uuid": ("uuid", '"c6f1501e-9838-d6f5-7063-315280e14f19"'),
    "a_json": ("jsonb", '"{\\"a\\": null, \\"b\\": [1, null]}"'),
    "a_bytea": ("bytea", '"z80ghJXVZe9m59/5+Ydk2g=="'),
    "a_mood": ("mood", '"ok"'),
    "a_bit": ("bit(9)", '"010101010"'),
    "integers": ("integer[]", "[1, null, -3]"),
    "texts": ("text[]", '["a", null, "b, c"]'),
    "numerics": ("numeric(10, 2)[]", '["1.50", "-0.25"]'),
    "moments": ("timestamptz[]", '["2026-01-01T10:00:00Z"]'),
    "doubles": ("double precision[]", "[1.5, 1e300]"),
    "a_matrix": ("integer[][]", "[[1, 2], [3, 4]]"),
    '"Extra Long"': ("text", '"mixed case"'),
    '"a_TEXT"': ("text", '"differs from a_text by its case"'),
}
NOTES = {'"a_TEXT"': "-- named text_in_capitals"}
DDL = f"""
CREATE TYPE mood AS ENUM ('ok');
CREATE TABLE things (
{"".join(f"  {name} {type_}, {NOTES.get(name, '')}{chr(10)}" for name, (type_, _) in COLUMNS.items())}  PRIMARY KEY (id)
);
CREATE TABLE others (id text NOT NULL, at timestamp, day date, "table" text, PRIMARY KEY (id));
CREATE TABLE counts (n numeric(9) NOT NULL, tiny numeric(12, 10), PRIMARY KEY (n));
CREATE TABLE visits (at timestamp NOT NULL, day date NOT NULL, text_at timestamp NOT NULL, PRIMARY KEY (at));
-- append-only
CREATE TABLE readings (value numeric(4, 1), note text);
"""
NAMES = [name.strip('"') for name in COLUMNS]
COLUMNS_OF_NAMES = {name.strip('"'): column for name, column in COLUMNS.items()}
CLEAN = {name.strip('"'): value for name, (_, value) in COLUMNS.items()}
UNAVAILABLE = "__debezium_unavailable_value"
# JSON that some column cannot have, or has in a form that is not the usual one.
WORDS = r"""
null true false 0 -0 1 1.0 1.50 -0.0 1e2 1E400 5e-324 -1 2147483648 -32769 9223372036854775807 9223372036854775808
18446744073709551616 631152000000 719163 20454 2932897 -719163 1767261600000 86400000000 253402300800000000 0.1000000001
1.7976931348623157e308 1234567890123456789012 NaN Infinity -Infinity 01 1. +1 "NaN" "Infinity" "1" "1234" "12.3" "1.234"
"-0.00" "00.50" "+1.50" ".5" "5." "1e3" "99999999999.00" "12345678901.23" "0.5" "true" "t" "f" "" "\u0000"
"\ud800" "\ud83d\ude00" "\u0041" "a\u0020b" "null" "a\\" "\"" "abcdef12" "ab"
"a\u0000b" "-" "+" ".50" "-.50" "+.50" "1e+2" "1.5e1" "-1.5E-1" "1.e2" "1e-40"
"AZA=" "AZA" "A+/=" "A-_=" "\\x00ff" "2026-01-01T10:00:00" "2026-01-01T10:00:00Z" "infinity"
"2026-01-01T10:00:00.1234567Z" "2026-01-01T10:00:00.120000000Z" "2026-13-01T10:00:00Z" "2026-01-01T10:00:00+02:00"
"0001-01-01T00:00:00Z" "9999-12-31T23:59:59.999999Z" "10000-01-01T00:00:00Z" "2026-01-01" "10:00:00" "24:00:00"
"2026-01-01T25:00:00Z" "2026-01-01T10:00:60Z" "+2026-1-01T10:00:00Z" "P1D" "PT0.0000001S" "{1,2}" "[]"
[] {} [1] ["a"] [null] [[1]] [1.5] [true] {"a":null} {"value":"AQ==","scale":1} [1,"a"] [[],[null]]
"""
ODD = [
    *WORDS.split(),
    '"a\tb"',
    '"two words"',
    '" 1.50"',
    '": null"',
    '"} null"',
    '"{\\"a\\": null, \\"b\\":null}"',
    '"2026-01-01 10:00:00Z"',
    '"1 year"',
    '{"a" : null }',
    f'"{UNAVAILABLE}"',
    f'["{UNAVAILABLE}"]',
    json.dumps(list(UNAVAILABLE.encode())),
    '"X19kZWJleml1bV91bmF2YWlsYWJsZV92YWx1ZQ=="',
    f'"prefix {UNAVAILABLE}"',
]
Pairs = list[tuple[str, str]]


def drop(pairs: Pairs, at: int) -> Pairs:
    return pairs[:at] + pairs[at + 1 :]


def double(pairs: Pairs, at: int) -> Pairs:
    return [*pairs, pairs[at]]


def null_double(pairs: Pairs, at: int) -> Pairs:
    return [*pairs, (pairs[at][0], "null")]


def add(pairs: Pairs, at: int) -> Pairs:
    return [*pairs[:at], ("added", "null"), *pairs[at:]]


def rename(pairs: Pairs, at: int) -> Pairs:
    return [*pairs[:at], (pairs[at][0].upper(), pairs[at][1]), *pairs[at + 1 :]]


def escape(pairs: Pairs, at: int) -> Pairs:
    """The same name in another spelling."""
    name = pairs[at][0]
    return [*pairs[:at], (f"\\u{ord(name[0]):04x}{name[1:]}", pairs[at][1]), *pairs[at + 1 :]]


def blank(pairs: Pairs, at: int) -> Pairs:
    return [*pairs[:at], (pairs[at][0], f" \t{pairs[at][1]} "), *pairs[at + 1 :]]


def reverse(pairs: Pairs, at: int) -> Pairs:
    return pairs[::-1]


CHANGES: list[Callable[[Pairs, int], Pairs]] = [drop, double, null_double, add, rename, escape, blank, reverse]


def text_of(pairs: Pairs) -> str:
    return "{" + ",".join(f'"{name}": {value}' for name, value in pairs) + "}"


@st.composite
def images(draw: st.DrawFn) -> str:
    """Mostly a clean row; else with odd values, or members that are missing or too many."""
    row = dict(CLEAN)
    kind = draw(st.sampled_from(["clean", "clean", "nulls", "odd", "members", "null", "empty"]))
    if kind == "null":
        return "null"
    if kind == "empty":
        return "{}"
    if kind == "nulls":
        row |= dict.fromkeys(draw(st.lists(st.sampled_from(NAMES), max_size=9)), "null")
    if kind in ("odd", "members"):
        row |= draw(st.dictionaries(st.sampled_from(NAMES), st.sampled_from(ODD), min_size=kind == "odd", max_size=2))
    pairs = list(row.items())
    if kind == "members":
        for change, at in draw(st.lists(st.tuples(st.sampled_from(CHANGES), st.integers(0, 10)), max_size=2)):
            pairs = change(pairs, at)
    return text_of(pairs)


SOURCE = {
    "connector": '"postgresql"',
    "db": '"shop"',
    "schema": '"public"',
    "table": '"things"',
    "txId": "7",
    "lsn": "10",
    "ts_ms": "1767261600000",
    "ts_us": "1767261600000001",
    "sequence": '"[null,1]"',
    "xmin": "null",
    "snapshot": '"false"',
}
TRANSACTION = '{"id": "7:10", "total_order": 1, "data_collection_order": 1}'


def envelope(op: str, before: str, after: str, source: str, transaction: str = "null") -> Pairs:
    images = [("before", before), ("after", after)]
    return [*images, ("source", source), ("transaction", transaction), ("op", op), ("ts_ms", "5")]


@st.composite
def events(draw: st.DrawFn) -> str:
    op = draw(st.sampled_from(["u", "u", "c", "d", "r", "t", "m", "x", None]))
    before, after = draw(images()), draw(images())
    if draw(st.integers(0, 3)):
        before, after = ("null" if op in ("c", "r") else before), ("null" if op == "d" else after)
    source = {**SOURCE, "lsn": str(draw(st.integers(1, 40)))}
    if not draw(st.integers(0, 5)):
        name = draw(st.sampled_from(list(source)))
        odd = ["null", '""', '"other"', "7", "0", '"7"', "true", "1.5", "253402300800000", '"things"', "[]", '"mysql"']
        source[name] = draw(st.sampled_from(odd))
    pairs = list(source.items())
    if not draw(st.integers(0, 7)):
        pairs = draw(st.sampled_from(CHANGES))(pairs, draw(st.integers(0, 9)))
    transaction = draw(st.sampled_from(["null", "null", TRANSACTION, "{}", '"7"']))
    outer = envelope(json.dumps(op), before, after, text_of(pairs), transaction)
    if not draw(st.integers(0, 7)):
        outer = draw(st.sampled_from(CHANGES))(outer, draw(st.integers(0, 5)))
    text = text_of(outer)
    wrapped = [
        f'{{"payload": {text}}}',
        f'{{"id": 1}}\t{text}',
        f"{text} null",
        f"{text}{text}",
        f" {text}",
        f"{text} ",
    ]
    return text if draw(st.integers(0, 9)) else draw(st.sampled_from([*wrapped, "null", "", text[:-1], "[]", "{}"]))


OTHERS = [
    json.dumps(event("c", None, {"id": "1", "at": 1_767_261_600_000_001, "day": 3, "table": "null"}, table="others")),
    json.dumps(event("c", None, {"id": "2", "at": None, "day": None, "table": '"table": "things"'}, table="others")),
    json.dumps(event("c", None, {"value": "1.5", "note": None}, table="readings", marked=True)),
    json.dumps(event("u", {"value": "1.5", "note": None}, {"value": "2.5", "note": None}, table="readings")),
    json.dumps(event("c", None, {"id": 1}, table="unknown")),
    json.dumps(event("c", None, {"id": "1", "at": 7, "day": 3, "table": ""}, table="others", schema="elsewhere")),
    json.dumps(mark("BEGIN", 7)),
    json.dumps(mark("END", 7)),
]


@pytest.fixture(scope="module", autouse=True)
def things(tmp_path_factory: pytest.TempPathFactory) -> Any:
    path = tmp_path_factory.mktemp("plain") / "source_schema.sql"
    path.write_text(DDL)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(TABLES, "_found", declared.__wrapped__(path))
        yield


def lines(texts: list[str], *, per_chunk: int = 1) -> pa.Table:
    """As they are read from a file. The fast lane takes or leaves a chunk: so each event is judged by itself."""
    chunks = [texts[n : n + per_chunk] for n in range(0, len(texts), per_chunk)]
    return pa.concat_tables([debezium.as_lines([f"{text}\n" for text in chunk]) for chunk in chunks])


def told(texts: list[str], settings: Settings, *, fast: bool, per_chunk: int = 1) -> dict[str, Any]:
    """All that `parse` says of the lines, and how many of them went the fast lane."""
    con = debezium.connect()
    with pytest.MonkeyPatch.context() as patch:
        if not fast:
            patch.setattr(plain, "take", lambda con, lines, settings: plain.Taken(None, {}, lines))
        tables = debezium.parse(con, lines(texts, per_chunk=per_chunk), settings, debezium.Schemas({}))
    found: dict[str, Any] = {}
    for name in ("records", *sorted(f"parsed_{table.name}" for table in tables)):
        rows = con.execute(f"FROM {name} ORDER BY ordinal").to_arrow_table()
        if name == "records":
            found["plain"] = sum(rows["is_plain"].to_pylist())
            rows = rows.drop_columns("is_plain")
        names = sorted(rows.schema.names)
        found[name] = ([(n, rows.schema.field(n).type) for n in names], list(map(flat, rows.select(names).to_pylist())))
    return found


def flat(row: dict[str, Any]) -> dict[str, str]:
    """A row's values as text, for -0.0 is equal to 0.0; those of images by themselves."""
    values: dict[str, str] = {}
    for name, value in row.items():
        if isinstance(value, dict):
            values |= {f"{name}.{inner}": repr(of_inner) for inner, of_inner in value.items()}
        else:
            values[name] = repr(value)
    return values


def apart(texts: list[str], settings: Settings) -> list[str]:
    """In what the lanes differ."""
    fast, careful = told(texts, settings, fast=True), told(texts, settings, fast=False)
    differences = [f"tables {fast.keys() ^ careful.keys()}"] if fast.keys() != careful.keys() else []
    for name in (fast.keys() & careful.keys()) - {"plain"}:
        (schema, rows), (careful_schema, careful_rows) = fast[name], careful[name]
        differences += [f"{name}: {schema} {careful_schema}"] * (schema != careful_schema)
        differences += [f"{name}: {len(rows)} {len(careful_rows)} rows"] * (len(rows) != len(careful_rows))
        for row, other in zip(rows, careful_rows, strict=False):
            names = sorted(row.keys() | other.keys())
            differences += [f"{name}.{n}: {row.get(n)} {other.get(n)}" for n in names if row.get(n) != other.get(n)]
    return differences


SETTINGS = [Settings(), Settings(decimals="string"), Settings(times="connect", binary="hex")]
EXAMPLES = int(os.environ.get("HYPOTHESIS_EXAMPLES", "8"))


ROW, NULLS = (
    text_of([*CLEAN.items()]),
    text_of([(name, CLEAN[name] if "NOT NULL" in type_ else "null") for name, (type_, _) in COLUMNS_OF_NAMES.items()]),
)


@pytest.mark.generated
@settings(max_examples=EXAMPLES, suppress_health_check=list(HealthCheck), print_blob=False)
@given(
    st.lists(events(), min_size=30, max_size=60),
    st.lists(st.sampled_from(OTHERS), max_size=6),
    st.sampled_from(SETTINGS),
)
def test_both_lanes_say_the_same(drawn, others, chosen):
    first = text_of(envelope('"d"', ROW, "null", text_of([*SOURCE.items()])))
    assert apart([first, *drawn[::2], *others, *drawn[1::2]], chosen) == []


def visit(at: int, day: int, text_at: str) -> str:
    row = {"at": at, "day": day, "text_at": text_at}
    source = {"connector": "mysql", "db": "shop", "schema": None, "table": "visits", "file": "binlog.000001", "pos": 4}
    return json.dumps(event("c", None, row, **source))


def test_a_zero_date_of_mysql_is_none():
    soundly, zero = (1_767_261_600_000, 20454, "2026-01-01T10:00:00Z"), (0, 0, "1970-01-01T00:00:00Z")
    odd = [(*soundly[:n], zero[n], *soundly[n + 1 :]) for n in range(3)]
    texts = [visit(*soundly), *(visit(*values) for values in odd)]
    assert told(texts, Settings(), fast=True)["plain"] == 1
    assert apart(texts, Settings()) == []


def test_each_event_is_read_as_its_own_connector_writes():
    row = {"at": 1_767_261_600_000_001, "day": 20454, "text_at": "2026-01-01T10:00:00Z"}
    millis = {**row, "at": 253_402_300_799_000}
    sources = [(row, "postgresql"), (millis, "mysql")]
    texts = [json.dumps(event("c", None, image, table="visits", connector=name)) for image, name in sources]
    assert told(texts, Settings(), fast=True)["plain"] == 1
    assert apart(texts, Settings()) == []


@pytest.mark.parametrize(("chosen", "fast"), [(Settings(decimals="string"), 8), (Settings(), 0)])
def test_whole_and_tiny_decimals(chosen, fast):
    tiny = ["0.0000000001", "0.0000000000", "-9.9999999999", None, "99.9999999999"]
    whole = ["7", "+7", "1e3", "7.0", "", "1234567890"]
    rows = [*(("7", t) for t in tiny), *((n, "0.0000000001") for n in whole[1:])]
    texts = [json.dumps(event("c", None, {"n": n, "tiny": t}, table="counts")) for n, t in rows]
    assert told(texts, chosen, fast=True)["plain"] == fast
    assert apart(texts, chosen) == []


def test_an_odd_value_means_the_same_in_every_column():
    source = text_of([*SOURCE.items()])
    rows = [ROW, *(text_of([*{**CLEAN, name: value}.items()]) for value in ODD for name in NAMES)]
    assert apart([text_of(envelope('"d"', row, "null", source)) for row in rows], Settings()) == []


@pytest.mark.parametrize("chosen", SETTINGS[:2])
def test_plain_events_go_the_fast_lane(chosen):
    source = text_of([*SOURCE.items()])
    texts = [
        text_of(envelope(f'"{op}"', before, after, source, transaction))
        for transaction in ("null", TRANSACTION)
        for row in (ROW, NULLS)
        for op, before, after in (("u", row, row), ("c", "null", row), ("r", "null", row), ("d", row, "null"))
    ]
    assert told(texts, chosen, fast=True)["plain"] == len(texts)
    assert apart(texts, chosen) == []


def test_few_go_the_careful_way_with_one_that_is_odd():
    source = text_of([*SOURCE.items()])
    plain_ones = [text_of(envelope('"c"', "null", ROW, source))] * 400
    odd = text_of(envelope('"c"', "null", "{}", source))
    found = told([*plain_ones[:300], odd, *plain_ones[300:]], Settings(), fast=True, per_chunk=401)
    assert 400 - 16 <= found["plain"] <= 400
