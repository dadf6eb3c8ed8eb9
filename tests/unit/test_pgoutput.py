"""The pgoutput decoder on messages built by hand.

Awkward cases: TOASTed value left alone, NULL beside empty text, key instead of the row before, no row before, columns
that change in mid-stream, a table of the same name elsewhere, values that the log cannot hold, a stream cut anywhere.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Sequence
from datetime import UTC, date, datetime
from typing import Any

import pyarrow as pa
import pytest

from lockstep.pgoutput import Decoder, Part, commit_end
from lockstep.schema import TABLES, batch_schema

INT4, INT8, TEXT, BOOL, FLOAT8, NUMERIC, DATE, TIMESTAMP, TIMESTAMPTZ = 23, 20, 25, 16, 701, 1700, 1082, 1114, 1184
PRODUCTS = {"product_id": INT8, "name": TEXT, "category": TEXT, "price_cents": INT8, "updated_at": TIMESTAMPTZ}
ROUTES = {
    "route_id": INT8,
    "driver_id": INT8,
    "service_date": DATE,
    "planned_departure_at": TIMESTAMPTZ,
    "planned_distance_m": INT8,
    "updated_at": TIMESTAMPTZ,
}
AT = datetime(2026, 11, 14, 20, 46, 33, 336298)
UNCHANGED = object()

Value = Any  # a text, None for NULL, or UNCHANGED


def begin(xid: int, at: datetime = AT) -> bytes:
    since_2000 = round((at.replace(tzinfo=UTC) - datetime(2000, 1, 1, tzinfo=UTC)).total_seconds() * 1e6)
    return b"B" + struct.pack("!QqI", 900, since_2000, xid)


def commit(end: int = 1_000) -> bytes:
    return b"C" + struct.pack("!BQQq", 0, end - 10, end, 0)


def relation(columns: dict[str, int], name: str = "products", schema: str = "public", number: int = 1) -> bytes:
    described = b"".join(b"\1" + c.encode() + b"\0" + struct.pack("!Ii", oid, -1) for c, oid in columns.items())
    head = struct.pack("!I", number) + schema.encode() + b"\0" + name.encode() + b"\0f"
    return b"R" + head + struct.pack("!H", len(columns)) + described


def values(row: Sequence[Value]) -> bytes:
    parts = [struct.pack("!H", len(row))]
    for value in row:
        if value is None:
            parts.append(b"n")
        elif value is UNCHANGED:
            parts.append(b"u")
        else:
            parts.append(b"t" + struct.pack("!I", len(value.encode())) + value.encode())
    return b"".join(parts)


def insert(row: Sequence[Value], number: int = 1) -> bytes:
    return b"I" + struct.pack("!I", number) + b"N" + values(row)


def update(new: Sequence[Value], old: Sequence[Value] | None, marker: bytes = b"O", number: int = 1) -> bytes:
    before = b"" if old is None else marker + values(old)
    return b"U" + struct.pack("!I", number) + before + b"N" + values(new)


def delete(old: Sequence[Value], marker: bytes = b"O", number: int = 1) -> bytes:
    return b"D" + struct.pack("!I", number) + marker + values(old)


def product(number: int, name: Value = "tea", category: Value = "hot drinks of all kinds") -> list[Value]:
    return [str(number), name, category, "250", "2026-11-14 20:46:33.5+00"]


def decode(messages: Sequence[bytes], decoder: Decoder | None = None, first_lsn: int = 0) -> Part:
    lsns = range(first_lsn, first_lsn + len(messages))
    return (decoder or Decoder("shop", "public")).decode(messages, lsns)


def rows(part: Part, table: str = "products") -> list[dict[str, Any]]:
    return part.changes[table].to_pylist() if table in part.changes else []


def rejected(part: Part) -> list[dict[str, Any]]:
    return part.rejected.to_pylist() if part.rejected else []


def test_insert_update_delete_have_their_images_and_coordinates() -> None:
    part = decode(
        [
            begin(7),
            relation(PRODUCTS),
            insert(product(1)),
            update(product(1, "green tea"), product(1)),
            delete(product(1, "green tea")),
            commit(),
        ]
    )
    created, updated, deleted = rows(part)
    image = {
        "product_id": 1,
        "name": "tea",
        "category": "hot drinks of all kinds",
        "price_cents": 250,
        "updated_at": datetime(2026, 11, 14, 20, 46, 33, 500_000),
        "extra": None,
    }
    shared = {"committed_at": AT, "tx_id": 7}
    assert created == {"ordinal": 2, "op": "c", "before": None, "after": image, "lsn": 2, **shared}
    green = image | {"name": "green tea"}
    assert updated == {"ordinal": 3, "op": "u", "before": image, "after": green, "lsn": 3, **shared}
    assert deleted == {"ordinal": 4, "op": "d", "before": green, "after": None, "lsn": 4, **shared}
    assert part.changes["products"].schema == batch_schema(TABLES["products"])
    assert part.rejected is None


@pytest.mark.parametrize(
    "text", ["", "é", "twelve bytes", "thirteen byte", "mit Umlauten: äöü", "a\tb\nc\\", "x" * 9_999]
)
def test_text_of_any_length_comes_out_as_it_is(text: str) -> None:
    part = decode([begin(1), relation(PRODUCTS), insert(product(1, text)), insert(product(2, "after it"))])
    assert [r["after"]["name"] for r in rows(part)] == [text, "after it"]


def test_a_toasted_value_left_alone_is_the_old_rows() -> None:
    large = "a story " * 1_000
    part = decode(
        [
            begin(1),
            relation(PRODUCTS),
            update(product(1, "new", UNCHANGED), product(1, "old", large)),
            update(product(2, "new", "short"), product(2, "old", large)),
        ]
    )
    assert [r["after"]["category"] for r in rows(part)] == [large, "short"]


@pytest.mark.parametrize(("old", "marker"), [(None, b""), (["1", None, None, None, None], b"K")])
def test_an_update_without_the_whole_row_before_is_rejected(old: list[Value] | None, marker: bytes) -> None:
    part = decode([begin(1), relation(PRODUCTS), update(product(1, "tea", UNCHANGED), old, marker)])
    assert rows(part) == []
    [event] = rejected(part)
    assert "ALTER TABLE products REPLICA IDENTITY FULL;" in event["reason"]
    envelope = json.loads(event["event"])
    assert envelope["before"] is None
    assert envelope["after"]["product_id"] == 1


@pytest.mark.parametrize(
    ("column", "value", "reason"),
    [
        ("updated_at", "infinity", "column updated_at of the after image is 'infinity', which is not a time"),
        ("updated_at", "10000-01-01 00:00:00+00", "which is not a time"),
        ("name", None, "column name of the after image is null, but must not be"),
        ("product_id", None, "column product_id of the after image is null"),
    ],
)
def test_a_value_the_log_cannot_hold_is_rejected_alone(column: str, value: Value, reason: str) -> None:
    bad = product(2)
    bad[list(PRODUCTS).index(column)] = value
    part = decode([begin(9), relation(PRODUCTS), insert(product(1)), insert(bad), insert(product(3))])
    assert [r["after"]["product_id"] for r in rows(part)] == [1, 3]
    [event] = rejected(part)
    assert reason in event["reason"]
    assert (event["ordinal"], event["committed_at"], event["table"]) == (3, AT, "products")
    source = json.loads(event["event"])["source"]
    assert (source["txId"], source["lsn"], source["db"]) == (9, 3, "shop")


def test_null_is_not_empty_text() -> None:
    layout = {
        "shipment_id": INT8,
        "order_id": INT8,
        "route_id": INT8,
        "region": TEXT,
        "status": TEXT,
        "exception_code": TEXT,
        "window_from_at": TIMESTAMPTZ,
        "window_to_at": TIMESTAMPTZ,
        "delivered_at": TIMESTAMPTZ,
        "updated_at": TIMESTAMPTZ,
    }
    at = "2026-11-14 20:46:33+00"
    shared = ["north", "created"]
    part = decode(
        [
            begin(1),
            relation(layout, "shipments"),
            insert(["1", "1", None, *shared, None, at, at, None, at]),
            insert(["2", "1", "5", *shared, "", at, at, at, at]),
        ]
    )
    first, second = (r["after"] for r in rows(part, "shipments"))
    assert (first["exception_code"], first["route_id"], first["delivered_at"]) == (None, None, None)
    assert (second["exception_code"], second["route_id"]) == ("", 5)
    assert second["delivered_at"] == datetime(2026, 11, 14, 20, 46, 33)


def test_a_date_is_a_date() -> None:
    at = "2026-11-14 20:46:33+00"
    part = decode([begin(1), relation(ROUTES, "routes"), insert(["1", "2", "2026-11-16", at, "900", at])])
    assert rows(part, "routes")[0]["after"]["service_date"] == date(2026, 11, 16)


def test_unknown_columns_travel_in_extra_typed_and_sorted() -> None:
    more = {"z_note": TEXT, "a_count": INT4, "is_new": BOOL, "ratio": FLOAT8, "tax": NUMERIC, "seen_at": TIMESTAMPTZ}
    more |= {"d": DATE, "local": TIMESTAMP}
    extra = ['say "é"\n', "-3", "t", "0.5", "12.30", "2026-11-14 20:46:33.5+00", "1970-01-02", "1970-01-01 00:00:01"]
    part = decode(
        [
            begin(1),
            relation(PRODUCTS | more),
            insert(product(1) + extra),
            update(product(1) + [None] * 8, product(1) + extra),
        ]
    )
    full = (
        '{"a_count":-3,"d":1,"is_new":true,"local":1000000,"ratio":0.5,"seen_at":"2026-11-14T20:46:33.500000Z",'
        '"tax":"12.30","z_note":"say \\"é\\"\\n"}'
    )
    created, updated = rows(part)
    assert created["after"]["extra"] == updated["before"]["extra"] == full
    assert set(json.loads(updated["after"]["extra"]).values()) == {None}


def test_columns_may_change_in_mid_stream() -> None:
    without = {name: oid for name, oid in PRODUCTS.items() if name != "price_cents"}
    retyped = PRODUCTS | {"price_cents": TEXT}
    part = decode(
        [
            begin(1),
            relation(PRODUCTS),
            insert(product(1)),
            relation(PRODUCTS | {"note": TEXT}),
            insert([*product(2), "hello"]),
            relation(without),
            insert([v for v, name in zip(product(3), PRODUCTS, strict=True) if name != "price_cents"]),
            relation(retyped),
            insert(product(4)),
        ]
    )
    assert [(r["after"]["product_id"], r["after"]["extra"]) for r in rows(part)] == [(1, None), (2, '{"note":"hello"}')]
    gone, other_type = rejected(part)
    assert gone["reason"].startswith("column price_cents is gone from the source table: leave it out of")
    assert other_type["reason"].startswith("column price_cents is no longer bigint")
    assert json.loads(other_type["event"])["after"]["price_cents"] == "250"


def test_a_table_of_the_same_name_in_another_schema_is_passed_over() -> None:
    part = decode(
        [
            begin(1),
            relation(PRODUCTS, schema="archive", number=2),
            relation(PRODUCTS, name="audit", number=3),
            insert(product(1), number=2),
            insert(product(2), number=3),
        ]
    )
    assert (part.changes, part.rejected) == ({}, None)


def test_a_truncate_names_its_tables() -> None:
    decoder = Decoder("shop", "public")
    decode([begin(1), relation(PRODUCTS), relation(ROUTES, "routes", number=2), relation({}, "x", number=3)], decoder)
    assert decoder.truncated(b"T" + struct.pack("!iBIII", 3, 0, 2, 3, 1)) == ["routes", "products"]


def test_a_stream_may_be_cut_anywhere() -> None:
    messages = [
        begin(1, datetime(2026, 1, 1)),
        relation(PRODUCTS),
        insert(product(1)),
        commit(),
        begin(2, datetime(2026, 1, 2)),
        update(product(1, "green", UNCHANGED), product(1)),
        insert(product(2, "")),
        relation(PRODUCTS | {"note": TEXT}),
        delete([*product(1, "green"), None]),
        commit(),
    ]
    whole = decode(messages).changes["products"].drop_columns("ordinal")
    for cut in range(1, len(messages)):
        decoder = Decoder("shop", "public")
        parts = [decode(messages[:cut], decoder), decode(messages[cut:], decoder, cut)]
        pieces = [p.changes["products"].drop_columns("ordinal") for p in parts if p.changes]
        assert pa.concat_tables(pieces).equals(whole)


def test_a_commit_tells_where_its_transaction_ends() -> None:
    assert commit_end(commit(end=(7 << 32) + 5)) == (7 << 32) + 5
