"""Marts that add up cells: what is kept and what changed since add up to the mart, and anything else is left alone.

Awkward cases: keys that are NULL, a product that nobody knows or that is known twice, versions that come, go and
change, groups that come and go, measures that add up to nothing.
"""

from __future__ import annotations

from collections import Counter
from datetime import datetime
from typing import Any

import duckdb
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lockstep.published import sql
from lockstep.published.sums import find_sums

JOIN = "LEFT JOIN db.s.d AS d ON (((c.product = d.product) AND (d.since <= c.hour) AND (c.hour < d.until)))"
CATEGORY = "CAST(COALESCE(d.category, '{unknown}') AS VARCHAR)"
MART = (
    f"SELECT CAST(c.hour AS TIMESTAMP) AS hour, {CATEGORY} AS category, c.region AS place, "
    "CAST(sum(c.orders) AS BIGINT) AS orders, CAST(sum(c.cents) AS BIGINT) AS amount, "
    "CAST(c.as_of AS TIMESTAMP) AS as_of, c.served_from AS source "
    f"FROM db.s.c AS c {JOIN} GROUP BY CAST(c.hour AS TIMESTAMP), {CATEGORY}, c.region, c.served_from, c.as_of "
    "HAVING (sum(c.orders) != 0)"
)
SIMPLE = (
    "SELECT c.region AS region, sum(c.cents) AS cents, sum(c.orders) AS orders FROM db.s.c AS c GROUP BY c.region "
    "HAVING (sum(c.cents) != 0)"
)
ODD = (
    "SELECT COALESCE(CAST(sum(c.orders) AS INTEGER), 1) AS orders, sum(c.orders) AS again, "
    "COALESCE(CAST(c.region AS VARCHAR), 'nowhere') AS region FROM db.s.c AS c "
    "LEFT JOIN db.s.d AS d ON ((c.product < d.product)) GROUP BY c.region, c.hour HAVING (sum(c.cents) != 0)"
)
SERVED = "'live' AS served_from, TIMESTAMP '2026-11-18 10:00' AS as_of"

hours = st.integers(0, 3).map(lambda hour: datetime(2026, 11, 18, hour))
products = st.sampled_from([None, 1, 2])
cells = st.lists(
    st.tuples(hours, products, st.sampled_from([None, "east", "west"]), st.integers(-2, 2), st.integers(-5, 5)),
    max_size=12,
)
versions = st.lists(st.tuples(products, st.sampled_from([None, "books", "toys"]), hours, hours), max_size=4)


@pytest.mark.parametrize("query", [MART, SIMPLE, ODD])
@given(folded=cells, tail=cells, was=versions, now=versions)
def test_what_is_kept_and_what_changed_add_up(
    query: str, folded: list[Any], tail: list[Any], was: list[Any], now: list[Any]
) -> None:
    sums = find_sums(sql.parse(query))
    assert sums
    with duckdb.connect() as connection:
        for name, rows in (("folded", folded), ("tail", tail)):
            table(connection, name, "hour TIMESTAMP, product INT, region TEXT, orders BIGINT, cents BIGINT", rows)
        for name, rows in (("was", was), ("now", now)):
            table(connection, name, "product INT, category TEXT, since TIMESTAMP, until TIMESTAMP", rows)
        has_dimension = bool(sums.attributes)
        connection.execute(f"CREATE TABLE kept AS {sql.text(sums.over(['folded'], 'was' if has_dimension else None))}")
        changes = [sums.over(["tail"], None)]
        if has_dimension:
            connection.execute(f"CREATE TABLE moved AS {sql.text(sums.moved('folded', 'was', 'now'))}")
            changes = [sums.over(["tail", "moved"], "now"), sums.over(["moved"], "was", "-")]
        total = sums.total([sql.parse("FROM kept"), *changes], f"(SELECT {SERVED})")
        ours = connection.execute(sql.text(total)).fetchall()
        every = f"(SELECT *, {SERVED} FROM (FROM folded UNION ALL FROM tail))"
        theirs = connection.execute(query.replace("db.s.c", every).replace("db.s.d", "now")).fetchall()
    assert Counter(ours) == Counter(theirs)


def table(connection: duckdb.DuckDBPyConnection, name: str, columns: str, rows: list[tuple[Any, ...]]) -> None:
    connection.execute(f"CREATE TABLE {name} ({columns})")
    for row in rows:
        connection.execute(f"INSERT INTO {name} VALUES ({', '.join('?' * len(row))})", row)


def test_what_it_reads() -> None:
    sums = find_sums(sql.parse(MART))
    assert sums
    assert (sums.keys, sums.measures) == (["hour", "product", "region"], ["cents", "orders"])
    assert sums.attributes == ["category", "product", "since", "until"]


@pytest.mark.parametrize(
    ("part", "otherwise"),
    [
        (" HAVING (sum(c.cents) != 0)", ""),
        ("(sum(c.cents) != 0)", "(sum(c.cents) > 0)"),
        ("(sum(c.cents) != 0)", "(sum(c.cents) != 1)"),
        ("(sum(c.cents) != 0)", "(sum(c.cents) != 0) ORDER BY 1 LIMIT 1"),
        ("sum(c.orders) AS orders", "max(c.orders) AS orders"),
        ("sum(c.orders) AS orders", "count(*) AS orders"),
        ("sum(c.orders) AS orders", "sum(DISTINCT c.orders) AS orders"),
        ("sum(c.orders) AS orders", "sum((c.orders * 2)) AS orders"),
        ("sum(c.orders) AS orders", "(sum(c.orders) / 2) AS orders"),
        ("sum(c.orders) AS orders", "sum(sum(c.orders)) OVER () AS orders"),
        ("sum(c.orders) AS orders", "sum(c.orders) FILTER (WHERE (c.region = 'east')) AS orders"),
        ("sum(c.orders) AS orders", "(SELECT max(1)) AS orders"),
        ("c.region AS region", "upper(c.region) AS region"),
        ("c.region AS region", "now() AS now, c.region AS region"),
        ("GROUP BY c.region", "GROUP BY ROLLUP (c.region)"),
        ("GROUP BY c.region", "GROUP BY ALL"),
        ("GROUP BY c.region", "WHERE (c.hour > 1) GROUP BY c.region"),
        ("SELECT c.region", "SELECT DISTINCT c.region"),
        ("db.s.c AS c", "(SELECT * FROM db.s.c) AS c"),
        ("db.s.c AS c", "db.s.c AS c INNER JOIN db.s.d AS d ON ((c.product = d.product))"),
        ("db.s.c AS c", "db.s.c AS c RIGHT JOIN db.s.d AS d ON ((c.product = d.product))"),
        ("db.s.c AS c", "db.s.c AS c TABLESAMPLE 10%"),
        ("db.s.c AS c", "db.s.c AS c LEFT JOIN db.s.d AS d USING (product)"),
        (
            "db.s.c AS c",
            "db.s.c AS c ASOF LEFT JOIN db.s.d AS d ON (((c.product = d.product) AND (c.hour >= d.since)))",
        ),
        ("db.s.c AS c", "db.s.c AS c CROSS JOIN db.s.d AS d"),
        ("sum(c.orders) AS orders FROM db.s.c AS c", f"sum(d.price) AS orders FROM db.s.c AS c {JOIN}"),
        ("FROM db.s.c AS c", f"FROM db.s.c AS c {JOIN} {JOIN.replace('d AS d', 'e AS e').replace('d.', 'e.')}"),
    ],
)
def test_what_does_more_than_add_up_is_none(part: str, otherwise: str) -> None:
    assert find_sums(sql.parse(SIMPLE))
    assert part in SIMPLE
    assert find_sums(sql.parse(SIMPLE.replace(part, otherwise))) is None


def test_what_the_readers_session_decides_is_none() -> None:
    hour = "CAST(c.hour AS {})"
    query = SIMPLE.replace("c.region", hour)
    assert find_sums(sql.parse(query.replace("{}", "DATE")))
    assert find_sums(sql.parse(query.replace("{}", "TIMESTAMP WITH TIME ZONE"))) is None
