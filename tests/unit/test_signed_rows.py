"""Signed rows of row-level queries: their sums over changes are the sums over the rows as the query is written.

Of every query all signed rows are added up to many positions. Then, from several instants on, those that are new: over
the tables as they were then, as rows or as changes of any time before, and the changes since.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from datetime import datetime
from decimal import Decimal
from typing import Any

import duckdb
import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from sqlglot import exp, parse_one

from lockstep.derive import Refused, SignedRows, Table, derive
from lockstep.derive.trying import without_labels
from random_log import CATALOG, TABLES, compare_the_finish, random_log

MEASURES = {"n": "BIGINT", "total": "BIGINT"}
ROWS = "SELECT id::BIGINT AS id, region, 1::BIGINT AS n, amount::BIGINT AS total FROM source.orders"
QUERIES = {
    "parts_by_a_constant": "SELECT id, 'order' AS region, 1 AS n, 0 AS total FROM source.orders "
    "UNION ALL SELECT id, 'stop', 0, 1 FROM source.stops",
    "plain": ROWS,
    "where": f"{ROWS} WHERE amount > 5 OR region IS NULL",
    "case": "SELECT id, CASE WHEN amount > 5 THEN 'big' ELSE 'small' END AS region, 1 AS n, "
    "CASE WHEN paid_at IS NULL THEN 0 ELSE amount END AS total FROM source.orders",
    "cte": f"WITH a AS ({ROWS}), b AS (SELECT * FROM a WHERE total > 3) SELECT id, region, n, total FROM b",
    "star_of_an_alias": f"SELECT id, region, n, total FROM (SELECT d.* FROM ({ROWS}) AS d LEFT JOIN seeds.regions AS s "
    "ON s.region = d.region AND s.least = 0)",
    "subquery": f"SELECT d.id, d.region, d.n, d.total FROM ({ROWS}) AS d",
    "union_all": f"{ROWS} UNION ALL SELECT id, region, 1, n FROM source.stops WHERE n > 2",
    "union_of_three": f"WITH p AS ({ROWS} UNION ALL SELECT id, region, 1, n FROM source.stops UNION ALL {ROWS}) "
    "SELECT id, region, n, total FROM p",
    "left_join": "SELECT o.id, COALESCE(s.label, 'none') AS region, 1 AS n, o.amount AS total FROM source.orders AS o "
    "LEFT JOIN seeds.regions AS s ON s.region = o.region AND s.least <= o.amount",
    "inner_join": "SELECT o.id, s.label AS region, 1 AS n, o.amount * s.least AS total FROM seeds.regions AS s "
    "JOIN source.orders AS o ON s.region = o.region",
    "json": "SELECT id, (('{\"a\": [\"' || region || '\"]}')::JSON -> '$.a') ->> 0 AS region, 1 AS n, amount AS total "
    "FROM source.orders",
}
GROUPED = {
    "sums": "SELECT id, region, COUNT(*)::BIGINT AS n, SUM(amount)::BIGINT AS total FROM source.orders GROUP BY 1, 2",
    "counts": "SELECT id, UPPER(region) AS region, COUNT(*) AS n, COALESCE(COUNT(paid_at), 0)::BIGINT AS total "
    "FROM source.orders GROUP BY ALL",
    "filters": "SELECT id, region, COUNT(*) AS n, SUM(amount) FILTER (WHERE paid_at IS NULL)::BIGINT AS total "
    "FROM source.orders WHERE amount > 2 GROUP BY id, region",
    "counts_of_conditions": "SELECT id, region, COUNT(*) AS n, COUNT_IF(amount > 4)::BIGINT AS total "
    "FROM source.orders GROUP BY region, id",
    "filtered_counts": "SELECT id, region AS region, COUNT(*) AS n, COUNT(amount) FILTER (WHERE region = 'a') AS total "
    "FROM source.orders GROUP BY region, 1",
    "flags": "SELECT id, region, COUNT(*) AS n, SUM(amount > 4) AS total FROM source.orders GROUP BY 1, 2",
    "union_of_three_types": "SELECT 1 AS id, k AS region, COUNT(*) AS n, SUM(v) AS total FROM (SELECT amount > 4 AS k, "
    "id AS v FROM source.orders UNION ALL SELECT n, id FROM source.stops UNION ALL SELECT region, n FROM source.stops) "
    "GROUP BY ALL",
    "of_a_union": f"SELECT id, region, COUNT(*) AS n, SUM(total) AS total FROM ({ROWS} UNION ALL "
    "SELECT id, region, 1, n FROM source.stops) AS u GROUP BY 1, 2",
}
JOINS = {
    "sums_of_a_join": "SELECT o.id, s.region, COUNT(*) AS n, SUM(o.amount * s.n) AS total FROM source.orders AS o "
    "JOIN source.stops AS s ON s.id = o.id GROUP BY ALL",
    "join": "SELECT o.id, s.region, 1 AS n, o.amount AS total FROM source.orders AS o "
    "JOIN source.stops AS s ON s.id = o.id",
    "join_off_the_key": "SELECT o.id, s.region, 1 AS n, o.amount * s.n AS total FROM source.orders AS o "
    "JOIN source.stops AS s ON s.region = o.region WHERE o.amount > s.n",
    "left_join_on_the_key": "SELECT o.id, COALESCE(s.region, 'none') AS region, 1 AS n, o.amount + s.n AS total "
    "FROM source.orders AS o LEFT JOIN source.stops AS s ON s.id = o.id AND s.n > 2",
    "left_joins": "SELECT o.id, COALESCE(r.label, s.region) AS region, 1 AS n, o.amount AS total "
    "FROM source.orders AS o LEFT JOIN source.stops AS s ON s.id = o.id "
    "LEFT JOIN seeds.regions AS r ON r.region = s.region AND r.least <= s.n",
    "itself": "SELECT o.id, p.region, 1 AS n, p.amount AS total FROM source.orders AS o "
    "JOIN source.orders AS p ON p.region = o.region AND p.id < o.id",
    "three_tables": "SELECT o.id, p.region, 1 AS n, p.amount * s.n AS total FROM source.orders AS o "
    "JOIN source.stops AS s ON s.id = o.id JOIN source.orders AS p ON p.id = s.n",
    "join_in_each_case": "SELECT o.id, s.region, 1 AS n, o.amount AS total FROM source.orders AS o, source.stops AS s "
    "WHERE (s.id = o.id AND s.n > 4) OR (s.id = o.id AND o.region = 'a') OR (o.amount IS NULL AND o.id = s.id)",
    "in": "SELECT id, region, 1 AS n, amount AS total FROM source.orders WHERE id IN "
    "(SELECT id FROM source.stops WHERE n > 4)",
    "not_exists": "SELECT o.id, o.region, 1 AS n, o.amount AS total FROM source.orders AS o WHERE NOT EXISTS "
    "(SELECT 1 FROM source.stops AS s WHERE s.id = o.id AND s.n > 4)",
    "subqueries": f"SELECT d.id, s.region, d.n, d.total FROM ({ROWS} WHERE amount > 2) AS d "
    "JOIN (SELECT id, region FROM source.stops UNION ALL SELECT n, region FROM source.stops) AS s ON s.id = d.id",
}

FINISHED = {
    "averages": "SELECT region, COUNT(*) AS n, AVG(amount) AS average, "
    "AVG(amount) FILTER (WHERE paid_at IS NULL) AS due FROM source.orders GROUP BY 1",
    "ratio": "SELECT region, SUM(amount) / NULLIF(COUNT(paid_at), 0) AS ratio, "
    "100 * COUNT(paid_at) / COUNT(*) AS share FROM source.orders GROUP BY 1",
    "having": "SELECT region, SUM(amount) AS total FROM source.orders GROUP BY 1 "
    "HAVING SUM(amount) > 5 AND COUNT(*) > 1",
    "distinct": "SELECT region, COUNT(DISTINCT amount) AS n, SUM(DISTINCT amount) AS s FROM source.orders GROUP BY 1",
    "extremes": "SELECT region, MIN(amount) AS least, MAX(paid_at) AS last, ARG_MAX(amount, id) AS newest "
    "FROM source.orders GROUP BY 1",
    "sums_of_nothing": "SELECT region, SUM(NULLIF(amount, 3)) AS s, MAX(NULLIF(amount, 3)) AS m "
    "FROM source.orders GROUP BY 1",
    "decimals": "SELECT region, SUM(amount::DECIMAL(9, 2) * 0.25) / 3 AS s, AVG(amount::DECIMAL(9, 1)) AS a "
    "FROM source.orders GROUP BY 1",
    "wide_decimals": "SELECT region, AVG((amount * 1000)::DECIMAL(38, 18)) AS a, "
    "SUM(amount::DECIMAL(38, 18) * 1000) AS s FROM source.orders GROUP BY 1",
    "distinct_rows": "SELECT DISTINCT region, amount > 4 AS large FROM source.orders",
    "rows": "SELECT id, region, amount * 2 AS twice FROM source.orders WHERE amount > 2",
    "windows_over_groups": "SELECT region, SUM(amount) AS s, RANK() OVER (ORDER BY SUM(amount) DESC, region) AS place "
    "FROM source.orders GROUP BY 1",
    "groups_of_groups": "SELECT n, COUNT(*) AS regions, MAX(s) AS most FROM (SELECT region, COUNT(*) AS n, "
    "SUM(amount) AS s FROM source.orders GROUP BY 1) AS g GROUP BY 1",
    "largest_groups": "SELECT region, COUNT(*) AS n FROM source.orders WHERE region IS NOT NULL GROUP BY 1 "
    "ORDER BY n DESC, region LIMIT 2",
    "windows": "SELECT id, amount, ROW_NUMBER() OVER (PARTITION BY region ORDER BY amount, id) AS place "
    "FROM source.orders",
    "join": "SELECT s.region, AVG(o.amount) AS a, COUNT(DISTINCT o.id) AS n, MAX(o.amount - s.n) AS most "
    "FROM source.orders AS o JOIN source.stops AS s ON s.region = o.region GROUP BY 1 HAVING COUNT(*) > 1",
    "left_join": "SELECT s.region, AVG(o.amount) AS a, COUNT(s.id) AS n, MIN(s.n) AS least FROM source.orders AS o "
    "LEFT JOIN source.stops AS s ON s.id = o.id GROUP BY 1",
    "left_join_off_the_key": "SELECT o.id, COUNT(s.id) AS n FROM source.orders AS o "
    "JOIN source.stops AS s ON s.id >= o.id GROUP BY 1",
    "share_of_all": "SELECT region, SUM(amount) / NULLIF((SELECT SUM(amount) FROM source.orders), 0) AS share "
    "FROM source.orders GROUP BY 1",
    "two_groupings": "SELECT a.region, a.n, b.most FROM (SELECT region, COUNT(*) AS n FROM source.orders GROUP BY 1) "
    "AS a JOIN (SELECT region, MAX(n) AS most FROM source.stops GROUP BY 1) AS b ON b.region = a.region",
    "above_average": "SELECT id, amount FROM source.orders WHERE amount > (SELECT AVG(n) FROM source.stops)",
    "of_a_seed": "SELECT COALESCE(r.label, '-') AS label, AVG(o.amount) AS a FROM source.orders AS o "
    "LEFT JOIN seeds.regions AS r ON r.region = o.region AND r.least <= o.amount GROUP BY 1",
    "of_a_union": f"SELECT region, AVG(total) AS a, COUNT(DISTINCT id) AS n FROM ({ROWS} UNION ALL "
    "SELECT id, region, 1, n FROM source.stops) AS u GROUP BY 1",
}


EVERY = QUERIES | GROUPED | JOINS


def signed_rows(query: str) -> SignedRows:
    return SignedRows(parse_one(query, dialect="duckdb"), CATALOG, MEASURES)


@pytest.fixture(scope="module")
def log() -> Iterator[duckdb.DuckDBPyConnection]:
    connection = random_log(7)
    yield connection
    connection.close()


SUMS = (
    "SELECT id, region, SUM(n)::BIGINT, COALESCE(SUM(total), 0)::BIGINT, {} FROM ({}) {} GROUP BY 1, 2 {} ORDER BY ALL"
)


def of_changes(rows: exp.Query, since: int, until: int) -> str:
    condition = f"WHERE position > {since} AND position <= {until}"
    changed = "HAVING rows <> 0 OR COALESCE(SUM(n), 0) <> 0 OR COALESCE(SUM(total), 0) <> 0"
    return SUMS.format("SUM(diff)::BIGINT AS rows", rows.sql("duckdb"), condition, changed)


def compare_with_the_query(log: duckdb.DuckDBPyConnection, query: str) -> int:
    """All signed rows up to many positions; returns how many cells were compared."""
    signed = signed_rows(query)
    compared = 0
    for at in range(1, 241, 11):
        log.execute(f"SET VARIABLE now_at = {at}")
        of_groups = "GROUP BY" in query
        rows = log.execute(SUMS.format("SUM(n)::BIGINT" if of_groups else "COUNT(*)", query, "", "")).fetchall()
        assert log.execute(of_changes(signed.all(), 0, at)).fetchall() == rows
        compared += len(rows)
    return compared


def compare_what_is_new(log: duckdb.DuckDBPyConnection, query: str, state: str) -> int:
    """From some instants on, over the tables as they were then; returns how many cells were compared."""
    signed = signed_rows(query)
    compared = 0
    for since in (20, 121, 200):
        log.execute(f"SET VARIABLE now_at = {since}")
        for table in TABLES:
            of_state = {
                "rows": "SELECT 0::BIGINT AS __position, TIMESTAMP '0001-01-01' AS __logged_at, 1 AS __weight, * "
                f"FROM source.{table}",
                "changes": f"SELECT * FROM signed.{table} WHERE __position <= {since}",
            }
            log.execute(f"CREATE OR REPLACE TABLE state.{table} AS {of_state[state]}")
            log.execute(f"CREATE OR REPLACE VIEW delta.{table} AS FROM signed.{table} WHERE __position > {since}")
        for until in range(since + 1, 241, 29):
            wanted = log.execute(of_changes(signed.all(), since, until)).fetchall()
            assert log.execute(of_changes(signed.new(), since, until)).fetchall() == wanted
            compared += len(wanted)
    return compared


@pytest.mark.parametrize("query", EVERY.values(), ids=EVERY.keys())
def test_sums_over_changes_are_sums_over_rows(log: duckdb.DuckDBPyConnection, query: str) -> None:
    assert signed_rows(query).is_join is (query in JOINS.values())
    assert compare_with_the_query(log, query) > 20


@pytest.mark.parametrize("query", EVERY.values(), ids=EVERY.keys())
@pytest.mark.parametrize("state", ["rows", "changes"])
def test_what_is_new_since_an_instant_is_what_was_added_since(
    log: duckdb.DuckDBPyConnection, query: str, state: str
) -> None:
    assert compare_what_is_new(log, query, state) > 10


@pytest.mark.parametrize("query", FINISHED.values(), ids=FINISHED.keys())
def test_a_finish_over_the_sums_of_changes_is_the_query(log: duckdb.DuckDBPyConnection, query: str) -> None:
    assert compare_the_finish(log, query) > 30


@pytest.mark.generated
@settings(max_examples=4, derandomize="CI" in os.environ, phases=[Phase.explicit, Phase.generate])
@given(
    seed=st.integers(0, 10**6),
    names=st.lists(st.sampled_from(sorted(EVERY)), min_size=3, max_size=3, unique=True),
    finished=st.sampled_from(sorted(FINISHED)),
)
def test_whatever_happens_to_the_tables(seed: int, names: list[str], finished: str) -> None:
    log = random_log(seed)
    for name in names:
        compare_with_the_query(log, EVERY[name])
        for state in ("rows", "changes"):
            compare_what_is_new(log, EVERY[name], state)
    compare_the_finish(log, FINISHED[finished])
    log.close()


def test_columns_keep_their_names_and_comments_and_measures_get_their_types() -> None:
    query = "SELECT id::BIGINT AS id, /* Key */ amount AS total, /* Amount */ 1 AS n FROM source.orders"
    [_, _, _, key, total, _] = signed_rows(query).all().selects
    assert (key.alias, key.comments) == ("id", [" Key "])
    assert (total.alias, total.comments) == ("total", ["Amount, signed"])
    assert total.unalias().is_type("INT128")  # sums of BIGINT may be larger than one


READINGS = {"value": "TEXT", "number": "BIGINT", "other": "INTEGER", "seen_at": "TIMESTAMP", "share": "DECIMAL(38, 2)"}
BAD = ("abc", 2**62, -4, datetime(9999, 1, 1), Decimal("9" * 36))
GOOD = ("16", 3, 4, datetime(2026, 1, 1), Decimal("2.5"))
FALLIBLE = {
    "a_cast": ("TRIM(value)::BIGINT::TEXT::BIGINT", "TRUE"),
    "a_root": ("SQRT(other)::BIGINT", "TRUE"),
    "a_product": ("number * 8", "TRUE"),
    "a_difference_in_case": ("CASE WHEN other < 0 THEN -number - number - number ELSE other END", "TRUE"),
    "texts_and_numbers_that_are_compared": ("number", "value = other + 12"),
    "texts_among_numbers": ("number", "value IN (15, other + 12)"),
    "decimals_that_are_compared": ("number", "share < 2.12345678 OR other > 0"),
    "one_expression_twice": ("CASE WHEN number * 8 > 3 THEN number * 8 END + number * 8", "number * 8 > 1"),
    "a_root_in_a_condition": ("number", "SQRT(other) > 1"),
    "a_time_that_is_too_far": ("number", "seen_at + INTERVAL '1' YEAR * (1200000 - other * 300000) > '2020-01-01'"),
}


@pytest.mark.parametrize(("total", "condition"), FALLIBLE.values(), ids=FALLIBLE.keys())
def test_an_old_image_that_something_cannot_be_computed_of_stops_nothing(
    log: duckdb.DuckDBPyConnection, total: str, condition: str
) -> None:
    """The query as written fails on one row, which is corrected; the sums are those of the row as it is then."""
    columns = ", ".join(f"{name} {kind}" for name, kind in READINGS.items())
    log.execute(
        f"CREATE OR REPLACE TABLE signed.readings (__position INT, __logged_at TIMESTAMP, __weight INT, {columns})"
    )
    log.execute(f"CREATE OR REPLACE TABLE source.readings ({columns})")
    images = enumerate([(1, BAD), (-1, BAD), (1, GOOD)])
    log.executemany(
        "INSERT INTO signed.readings VALUES (?, '2026-01-01', ?, ?, ?, ?, ?, ?)",
        [(position, weight, *image) for position, (weight, image) in images],
    )
    log.execute("INSERT INTO source.readings VALUES (?, ?, ?, ?, ?)", BAD)
    query = f"SELECT {total} AS total, 1 AS n FROM source.readings WHERE {condition}"
    with pytest.raises(duckdb.Error):
        log.execute(query).fetchall()
    log.execute("DELETE FROM source.readings")
    log.execute("INSERT INTO source.readings VALUES (?, ?, ?, ?, ?)", GOOD)
    expected = log.execute(query).fetchall()
    assert len(expected) == 1
    rows = SignedRows(parse_one(query, dialect="duckdb"), {"source.readings": Table(READINGS)}, MEASURES)
    signed = f"SELECT SUM(total) AS total, SUM(n) FROM ({rows.all().sql('duckdb')})"
    assert log.execute(signed).fetchall() == expected
    if condition == "TRUE":  # as long as it is not corrected, the sum is no figure
        too_early = f"SELECT {rows.checked['total']} FROM ({signed} WHERE position = 0)"
        assert log.execute(too_early).fetchall() == [(False,)]


def test_texts_and_numbers_are_joined_by_their_values_and_not_row_by_row(log: duckdb.DuckDBPyConnection) -> None:
    catalog = {"source.a": Table({"id": "TEXT"}, ("id",)), "source.b": Table({"id": "BIGINT"}, ("id",))}
    query = "SELECT b.id, 1 AS n FROM source.a JOIN source.b ON a.id = b.id"
    rows = SignedRows(parse_one(query, dialect="duckdb"), catalog, {"n": "BIGINT"}).all().sql("duckdb")
    for table, kind, value in (("a", "TEXT", "'x'"), ("b", "BIGINT", "1")):
        log.execute(
            f"CREATE OR REPLACE TABLE signed.{table} AS SELECT 1 AS __position, TIMESTAMP '2026-01-01' AS __logged_at, "
            f"1 AS __weight, {value}::{kind} AS id"
        )
    assert log.execute(rows).fetchall() == []
    [(_, plan)] = log.execute(f"EXPLAIN {rows}").fetchall()
    assert "HASH_JOIN" in plan


def test_people_read_a_query_without_labels() -> None:
    query = "SELECT amount * 2 AS total, 1 AS n FROM source.orders WHERE amount * 2 > 1"
    written = signed_rows(query).all()
    assert "__try_" in written.sql("duckdb")
    shown = without_labels(written).sql("duckdb")
    assert "__try_" not in shown
    assert "TRY(" in shown


def test_people_read_what_a_cell_adds_up() -> None:
    query = """
        SELECT region, SUM(amount * (1 - amount)) / COUNT(*) AS mean, COUNT(DISTINCT paid_at) AS days
        FROM source.orders GROUP BY 1"""
    rows = SignedRows.of_cells(derive(query, CATALOG).cores, CATALOG)
    assert [c.strip() for s in rows.all().selects for c in s.comments or []][3:] == [
        "Which of the sets of cells",
        "orders.region",
        "orders.paid_at",
        "Rows, signed",
        "Sum of orders.amount * (1 - orders.amount), signed",
        "How many of orders.amount * (1 - orders.amount) there are, signed",
    ]


def test_people_read_the_names_of_a_union() -> None:
    """Its first side may have a constant where another has what is counted, and speaks for itself alone."""
    query = """
        SELECT place, minute, status, MAX(late), SUM(stops_planned), SUM(load), SUM(load * weight), SUM(weight)
        FROM (
          SELECT region AS place, NULL AS minute, 'open' AS status, 0 AS late, 0 AS stops_planned, 1 AS stops,
            amount AS load, amount AS weight
          FROM source.orders
          UNION ALL
          SELECT region, n % 60, 'done', 1, CASE WHEN n > 2 THEN 1 ELSE 0 END, 1, n, NULL FROM source.stops
        ) AS u GROUP BY 1, 2, 3"""
    [core] = derive(query, CATALOG).cores
    assert list(core.said.values()) == [
        "place",
        "stops.n % 60",
        "status",
        "late",
        "stops_planned",
        "load",
        "load * orders.amount",
        "orders.amount",
    ]
    assert "Sum of stops_planned, signed" in SignedRows.of_cells([core], CATALOG).all().sql("duckdb")


def test_people_read_what_a_left_join_adds_up() -> None:
    query = """
        SELECT s.region, SUM(o.amount + s.n) / COUNT(*) AS mean, SUM(s.one) AS fitting FROM source.orders AS o
        LEFT JOIN (SELECT id, region, n, 1 AS one FROM source.stops) AS s ON s.id = o.id GROUP BY 1"""
    [core] = derive(query, CATALOG).cores
    assert list(core.said.values()) == ["stops.region", "orders.amount + stops.n", "one"]


LARGE = 2**63 - 1


def test_all_parts_of_several_sets_of_cells_have_one_type(log: duckdb.DuckDBPyConnection) -> None:
    """DuckDB prints the parts of a UNION ALL nested otherwise, and casts them by how they are nested."""
    query = (
        "SELECT t.region, t.total, u.n FROM (SELECT region, SUM(amount) AS total FROM source.orders GROUP BY 1) AS t "
        "LEFT JOIN (SELECT o.region, COUNT(DISTINCT s.n) AS n FROM source.orders AS o JOIN source.stops AS s "
        "ON s.id = o.id GROUP BY 1) AS u ON u.region = t.region"
    )
    rows = SignedRows.of_cells(derive(query, CATALOG).cores, CATALOG)
    [union] = (subquery.this for subquery in rows.all().find_all(exp.Subquery) if subquery.alias == "signed_rows")
    parts = []
    while isinstance(union, exp.Union):
        parts.append(union.expression)
        union = union.this
    types = {
        tuple(t for _, t, *_ in log.execute(f"DESCRIBE {part.sql('duckdb')}").fetchall()) for part in (*parts, union)
    }
    assert len(parts) > 0
    assert len(types) == 1
    assert "NULL" not in rows.all().sql("duckdb").replace("CAST(NULL AS", "").replace("IS NULL", "")


def sums_of(log: duckdb.DuckDBPyConnection, kind: str, images: list[tuple[int, Any]], query: str, to: str) -> Any:
    """The sum of signed rows, as it is kept, and whether it is a figure."""
    log.execute(
        f"CREATE OR REPLACE TABLE signed.readings (__position INT, __logged_at TIMESTAMP, __weight INT, v {kind})"
    )
    log.executemany("INSERT INTO signed.readings VALUES (1, '2026-01-01', ?, ?)", images)
    catalog, measures = {"source.readings": Table({"v": kind})}, {"total": to, "n": "BIGINT"}
    rows = SignedRows(parse_one(query, dialect="duckdb"), catalog, measures)
    kept = f"SELECT SUM(total)::{rows.columns['total']} AS total FROM ({rows.all().sql('duckdb')})"
    return log.execute(f"SELECT total, {rows.checked.get('total', 'TRUE')} FROM ({kept})").fetchall()[0]


@pytest.mark.parametrize("large", [LARGE, -LARGE - 1])
def test_sums_of_large_whole_numbers_are_exact(log: duckdb.DuckDBPyConnection, large: int) -> None:
    query = "SELECT v AS total, 1 AS n FROM source.readings"
    assert sums_of(log, "BIGINT", [(1, large)] * 3, query, "DECIMAL(38, 0)") == (3 * large, True)
    assert sums_of(log, "BIGINT", [(1, large)] * 3 + [(-1, large)], query, "DECIMAL(38, 0)") == (2 * large, True)


def test_a_count_that_no_bigint_holds_is_no_figure(log: duckdb.DuckDBPyConnection) -> None:
    query = "SELECT v AS total, 1 AS n FROM source.readings"
    assert sums_of(log, "BIGINT", [(1, LARGE)] * 2, query, "BIGINT") == (2 * LARGE, False)
    assert sums_of(log, "BIGINT", [(1, LARGE)] * 2 + [(-1, LARGE)], query, "BIGINT") == (LARGE, True)


def test_what_casts_and_literals_keep_small_is_a_count_without_a_check(log: duckdb.DuckDBPyConnection) -> None:
    for summand in ("v::BIGINT", "1::BIGINT", "(CASE WHEN v > 3 THEN 1 ELSE 0 END)::BIGINT", "COALESCE(v, 0)"):
        query = f"SELECT {summand} AS total, 1 AS n FROM source.readings"
        rows = SignedRows(parse_one(query, dialect="duckdb"), {"source.readings": Table({"v": "INTEGER"})}, MEASURES)
        assert (rows.columns["total"], rows.checked) == ("BIGINT", {})


@pytest.mark.parametrize(
    ("kind", "to"),
    [("DECIMAL(38, 2)", "DECIMAL(38, 2)"), ("DECIMAL(38, 0)", "DECIMAL(38, 4)"), ("HUGEINT", "DECIMAL(38, 0)")],
)
def test_a_number_that_is_too_large_stops_no_sum_and_goes_when_it_is_corrected(
    log: duckdb.DuckDBPyConnection, kind: str, to: str
) -> None:
    query = "SELECT v AS total, 1 AS n FROM source.readings"
    scale = int(to.rstrip(")").rpartition(",")[2])
    own = 2 if kind == "DECIMAL(38, 2)" else 0
    huge, largest = Decimal(10) ** 35, Decimal(10) ** (27 - scale) - Decimal(1).scaleb(-own)
    for sign in (1, -1):
        images = [(1, sign * huge)] * 2000 + [(1, sign * largest)] * 2000
        assert sums_of(log, kind, images, query, to)[1] is False
        corrected = images + [(-1, sign * huge)] * 2000
        assert sums_of(log, kind, corrected, query, to) == (2000 * sign * largest, True)
        images = [(1, huge), (1, -huge)]  # which do not make up for each other
        assert sums_of(log, kind, images, query, to)[1] is False


REFUSED = {
    "average": (
        "SELECT region, COUNT(*) AS n, AVG(amount) AS total FROM source.orders GROUP BY 1",
        "is not a sum.*Divide",
    ),
    "distinct_sum": (
        "SELECT region, COUNT(*) AS n, SUM(DISTINCT amount) AS total FROM source.orders GROUP BY 1",
        "not a sum",
    ),
    "ratio": ("SELECT region, COUNT(*) AS n, SUM(amount) / 2 AS total FROM source.orders GROUP BY 1", "is not a sum"),
    "grouped_by_more": (
        "SELECT region, COUNT(*) AS n FROM source.orders GROUP BY region, id",
        "id, which is not selected",
    ),
    "rollup": ("SELECT region, COUNT(*) AS n FROM source.orders GROUP BY ROLLUP (region)", "ROLLUP"),
    "having": ("SELECT region, COUNT(*) AS n FROM source.orders GROUP BY 1 HAVING COUNT(*) > 1", "HAVING over rows"),
    "grouped_within": (
        "SELECT region, 1 AS n FROM (SELECT region, COUNT(*) AS c FROM source.orders GROUP BY 1) AS g",
        "GROUP over rows",
    ),
    "rounded": ("SELECT id, 1 AS n, amount / 3 AS total FROM source.orders", "adds up DOUBLE as BIGINT"),
    "rounded_decimal": (
        "SELECT id, COUNT(*) AS n, SUM(amount::DECIMAL(18, 2)) AS total FROM source.orders GROUP BY 1",
        r"adds up DECIMAL\(18,2\) as BIGINT",
    ),
    "aggregated": ("SELECT SUM(amount) AS total FROM source.orders", "looks at more than one row"),
    "distinct": ("SELECT DISTINCT region FROM source.orders", "DISTINCT over rows"),
    "window": ("SELECT id, SUM(amount) OVER (ORDER BY id) AS total FROM source.orders", "more than one row"),
    "first_rows": ("SELECT id FROM source.orders ORDER BY id LIMIT 3", "(ORDER|LIMIT) over rows"),
    "left_join_off_the_key": (
        "SELECT o.id, 1 AS n FROM source.orders o LEFT JOIN source.stops s ON o.region = s.region",
        "LEFT JOIN that does not name the whole key of source.stops. .* by the whole key of the other",
    ),
    "on_the_right": (
        "SELECT s.label, 1 AS n FROM seeds.regions s LEFT JOIN source.orders o ON o.region = s.region",
        "LEFT JOIN that does not name the whole key of source.orders",
    ),
    "exists_off_the_key": (
        "SELECT o.id, 1 AS n FROM source.orders o WHERE EXISTS "
        "(SELECT 1 FROM source.stops s WHERE s.region = o.region)",
        "EXISTS.* by the whole key of the other",
    ),
    "in_or": (
        "SELECT id, 1 AS n FROM source.orders WHERE amount > 3 OR id IN (SELECT id FROM source.stops)",
        r"\(amount > 3\) OR \(id IN \(SELECT id AS id FROM \S+\)\)\. .* by the whole key of the other",
    ),
    "union": ("SELECT id FROM source.orders UNION SELECT id FROM source.stops", "UNION of rows that change"),
    "except": ("SELECT id FROM source.orders EXCEPT SELECT id FROM source.stops", "EXCEPT of rows that change"),
    "with_static_rows": (
        "SELECT region, 1 AS n FROM source.orders UNION ALL SELECT region, 1 FROM seeds.regions",
        "Rows that come from static tables alone",
    ),
    "of_the_change": ("SELECT id, _committed_at FROM source.orders", "_committed_at, which is of the change"),
    "star": ("SELECT * FROM source.orders", "Name the columns"),
    "static": ("SELECT label, 1 AS n FROM seeds.regions", "reads no table of source"),
    "now": ("SELECT id FROM source.orders WHERE paid_at < CURRENT_TIMESTAMP", "CURRENT_TIMESTAMP"),
    "random": ("SELECT id, RANDOM() AS total FROM source.orders", "RAND"),
    "sample": ("SELECT id FROM source.orders TABLESAMPLE 10%", "TABLESAMPLE"),
    "uncounted": ("SELECT id, amount AS total FROM source.orders", "No measure counts the rows"),
    "counted_by_turns": (
        "SELECT region, SUM(a) AS n, SUM(b) AS total FROM (SELECT region, 1 AS a, -1 AS b FROM source.orders "
        "UNION ALL SELECT region, -1, 1 FROM source.stops) AS u GROUP BY 1",
        "No measure counts the rows",
    ),
    "counted_by_nothing": ("SELECT id, 0.4::BIGINT AS n FROM source.orders", "No measure counts the rows"),
    "rounded_by_a_cast": (
        "SELECT id, COUNT(*) AS n, SUM(amount / 2)::BIGINT AS total FROM source.orders GROUP BY 1",
        "adds up DOUBLE as BIGINT",
    ),
    "cast_to_a_truth": (
        "SELECT id, COUNT(*) AS n, SUM(amount)::BOOLEAN::BIGINT AS total FROM source.orders GROUP BY 1",
        "total adds up BIGINT as BOOLEAN",
    ),
    "grouped_by_the_column": (
        "SELECT UPPER(region) AS region, COUNT(*) AS n FROM source.orders GROUP BY region",
        "DuckDB takes the column",
    ),
    "parts_by_equal_numbers": (
        "SELECT part AS id, SUM(a) AS n, SUM(b) AS total FROM (SELECT 1 AS part, 1 AS a, -1 AS b FROM source.orders "
        "UNION ALL SELECT 1.0, -1, 1 FROM source.stops) AS u GROUP BY 1",
        "No measure counts the rows",
    ),
    "not_grouped": ("SELECT region, id, COUNT(*) AS n FROM source.orders GROUP BY 1", "DuckDB does not take the query"),
    "static_on_the_left": (
        "SELECT r.label AS region, 1 AS n FROM seeds.regions r WHERE NOT EXISTS "
        "(SELECT 1 FROM source.stops s WHERE s.id = r.least)",
        "Rows that come from static tables alone",
    ),
    "uncounted_in_part": (
        "SELECT id, 1 AS n FROM source.orders UNION ALL SELECT id, 0 FROM source.stops",
        "No measure counts the rows",
    ),
    "unknown": ("SELECT id, 1 AS n FROM source.nothing", "nothing"),
}


@pytest.mark.parametrize(("query", "reason"), REFUSED.values(), ids=REFUSED.keys())
def test_what_is_not_a_sum_of_products_is_refused(query: str, reason: str) -> None:
    with pytest.raises(Refused, match=reason):
        signed_rows(query)


def test_weights_and_measures_are_as_wide_as_their_sums(log: duckdb.DuckDBPyConnection) -> None:
    """Two rows alike of a joined table are one row of weight 2, and a sum of INTEGER may be larger than one."""
    catalog = {name: Table({"id": "BIGINT", "units": "INTEGER"}, ("id",)) for name in ("source.a", "source.b")}
    query = "SELECT a.id, COUNT(*) AS N, SUM(a.units) AS total FROM source.a JOIN source.b ON b.id = a.id GROUP BY 1"
    rows = SignedRows(parse_one(query, dialect="duckdb"), catalog, MEASURES).all().sql("duckdb")
    for table in ("a", "b"):
        log.execute(
            f"CREATE OR REPLACE TABLE signed.{table} AS SELECT 1 AS __position, TIMESTAMP '2026-01-01' AS __logged_at, "
            "50000 AS __weight, 1::BIGINT AS id, 1500000000::INT AS units"
        )
    assert log.execute(f"SELECT n, total FROM ({rows})").fetchall() == [(50_000**2, 50_000**2 * 1_500_000_000)]
