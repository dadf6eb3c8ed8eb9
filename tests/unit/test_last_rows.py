"""Last rows and extremes of a table that only grows: folded by the hour, they are the query as written at every cut."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime, timedelta

import duckdb
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sqlglot import parse_one

from lockstep.derive import Refused, SignedRows, Table
from lockstep.names import GENERATED_COLUMNS

COLUMNS = {"id": "BIGINT", "device": "BIGINT", "noted_at": "TIMESTAMP", "value": "BIGINT"}
CHANGE = dict(zip(GENERATED_COLUMNS, ("BIGINT", "TIMESTAMP", "TEXT"), strict=True))
READINGS = Table(
    {**COLUMNS, **CHANGE}, ("id",), frozenset(("device", *GENERATED_COLUMNS)), is_static=False, is_append_only=True
)
ROWS = Table(COLUMNS, ("id",))
CATALOG = {"source.readings": READINGS, "source.rows": ROWS}

LAST = """
    SELECT device, LEAST(noted_at, _committed_at) AS latest_at, _position AS latest_position, value
    FROM source.readings WHERE value IS DISTINCT FROM 3
    QUALIFY ROW_NUMBER() OVER (PARTITION BY device ORDER BY latest_at DESC, latest_position DESC) = 1
"""
EXTREMES = """
    SELECT device, COUNT(*) AS n, SUM(value)::BIGINT AS total, MAX(value)::BIGINT AS most, MIN(noted_at) AS first_at,
        (MIN(value) FILTER (WHERE value > 2))::BIGINT AS least
    FROM source.readings GROUP BY 1
"""
KINDS = {"n": "BIGINT", "total": "BIGINT", "most": "BIGINT", "first_at": "TIMESTAMP", "least": "BIGINT"}
MERGED = {
    "last": (
        LAST,
        "device, (MAX(r)).a, (MAX(r)).p, (MAX(r)).v FROM (SELECT device, {'a': latest_at, 'p': latest_position, 'v': "
        "value} AS r FROM",
    ),
    "extremes": (EXTREMES, "device, SUM(n), SUM(total), MAX(most), MIN(first_at), MIN(least) FROM (SELECT * FROM"),
}
BEGIN = datetime(2026, 3, 1)

readings = st.lists(
    st.tuples(
        st.integers(1, 2),
        st.sampled_from([None, 0, 1, 59, -90, 500]),  # minutes that the device's clock leads the commit
        st.sampled_from([None, 0, 1, 2, 3, 9]),
        st.sampled_from([0, 0, 1, 40]),  # minutes since the reading before
    ),
    max_size=7,
)


def signed(name: str) -> str:
    query = parse_one(MERGED[name][0], dialect="duckdb")
    if name == "last":
        return SignedRows.of_last(query, CATALOG, ["device"]).all().sql("duckdb")
    rows = SignedRows(query, CATALOG, KINDS, {"most": "MAX", "first_at": "MIN", "least": "MIN"})
    return rows.all().sql("duckdb")


SIGNED = {name: signed(name) for name in MERGED}


@pytest.fixture(scope="module")
def db() -> Iterator[duckdb.DuckDBPyConnection]:
    with duckdb.connect() as connection:
        connection.execute("CREATE SCHEMA source; CREATE SCHEMA signed; CREATE SCHEMA changes; SET VARIABLE cut = 0")
        columns = ", ".join(f"{name} {kind}" for name, kind in {**COLUMNS, **CHANGE}.items())
        connection.execute(f"CREATE TABLE landed ({columns})")
        connection.execute("CREATE VIEW source.readings AS FROM landed WHERE _position <= getvariable('cut')")
        connection.execute(
            "CREATE VIEW signed.readings AS SELECT *, 1 AS __weight, _position AS __position, "
            "_committed_at AS __logged_at FROM landed"
        )
        connection.execute(
            "CREATE VIEW changes.readings AS SELECT _position AS position, _committed_at AS logged_at, "
            "_committed_at AS committed_at, _op AS op, CASE WHEN _op = 'd' THEN landed END AS before, "
            "CASE WHEN _op <> 'd' THEN landed END AS after FROM landed"
        )
        yield connection


@settings(deadline=None, derandomize=True, max_examples=60)
@given(readings)
@pytest.mark.parametrize("name", MERGED)
def test_folded_by_the_hour_they_are_the_query_as_written(
    db: duckdb.DuckDBPyConnection, name: str, readings: list[tuple[int, int | None, int | None, int]]
) -> None:
    now, rows = BEGIN, []
    for position, (device, lead, value, minutes) in enumerate(readings, 1):
        now += timedelta(minutes=minutes)
        at = None if lead is None else now + timedelta(minutes=lead)
        rows.append((position, device, at, value, position, now, "c"))
    db.execute("DELETE FROM landed")
    if rows:
        db.executemany("INSERT INTO landed VALUES (?, ?, ?, ?, ?, ?, ?)", rows)
    query, merged = MERGED[name]
    for cut in range(len(readings) + 1):
        db.execute(f"SET VARIABLE cut = {cut}")
        expected = db.execute(f"SELECT * FROM ({query}) ORDER BY ALL").fetchall()
        assert db.execute(_hours_merged(name, merged)).fetchall() == expected


def _hours_merged(name: str, merged: str) -> str:
    """The cells of each hour up to the cut, merged."""
    rows = (
        f"(SELECT *, DATE_TRUNC('hour', logged_at) AS hour FROM ({SIGNED[name]}) WHERE position <= getvariable('cut'))"
    )
    if name == "last":
        hours = (
            "(SELECT device, (MAX(r)).a AS latest_at, (MAX(r)).p AS latest_position, (MAX(r)).v AS value FROM "
            f"(SELECT device, hour, {{'a': latest_at, 'p': latest_position, 'v': value}} AS r FROM {rows}) "
            "GROUP BY device, hour)"
        )
    else:
        hours = (
            "(SELECT device, SUM(n) AS n, SUM(total) AS total, MAX(most) AS most, MIN(first_at) AS first_at, "
            f"MIN(least) AS least FROM {rows} GROUP BY device, hour)"
        )
    return f"SELECT {merged} {hours}) GROUP BY device ORDER BY ALL"


def test_a_deleted_row_takes_nothing_from_them(db: duckdb.DuckDBPyConnection) -> None:
    """As the contract has it: the receipt fails, because the rebuild does not have the row."""
    db.execute("DELETE FROM landed; INSERT INTO landed VALUES (1, 7, NOW()::TIMESTAMP, 5, 2, NOW()::TIMESTAMP, 'd')")
    deleted = SIGNED["extremes"].replace(
        'signed."readings"', "(SELECT * REPLACE (-1 AS __weight) FROM signed.readings)"
    )
    assert db.execute(SIGNED["last"]).fetchall() == []
    assert db.execute(f"SELECT {', '.join(KINDS)} FROM ({deleted})").fetchall() == [(-1, -5, None, None, None)]


@pytest.mark.parametrize(
    ("query", "said"),
    [
        ("SELECT device, COUNT(*) AS n, MAX(value) AS most FROM source.rows GROUP BY 1", "whose rows can be deleted"),
        (
            "SELECT r.device, COUNT(*) AS n, MAX(r.value) AS most FROM source.readings AS r "
            "JOIN source.readings AS s ON s.id = r.value GROUP BY 1",
            "of a join",
        ),
        ("SELECT device, COUNT(*) AS n, MIN(value) AS most FROM source.readings GROUP BY 1", "is not MAX"),
        ("SELECT device, COUNT(*) AS n, COALESCE(MAX(value), 0) AS most FROM source.readings GROUP BY 1", "is not MAX"),
        ("SELECT device, COUNT(*) AS n, MAX(DISTINCT value) AS most FROM source.readings GROUP BY 1", "is not MAX"),
        ("SELECT device, MAX(value) AS most FROM source.readings GROUP BY 1", "No measure counts the rows"),
        ("SELECT device, COUNT(*) AS n, MAX(_position) AS most FROM source.readings GROUP BY 1", "is of the change"),
    ],
)
def test_other_extremes_are_refused(query: str, said: str) -> None:
    with pytest.raises(Refused, match=said):
        SignedRows(parse_one(query, dialect="duckdb"), CATALOG, {"n": "BIGINT", "most": "BIGINT"}, {"most": "MAX"})
