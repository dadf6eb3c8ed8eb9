"""Signed rows of row-level queries: their sums over changes are the sums over the rows as the query is written."""

from __future__ import annotations

import random
from collections.abc import Iterator

import duckdb
import pytest
from sqlglot import parse_one

from lockstep.derive import Refused, signed_rows

TABLES = {
    "orders": "id BIGINT, region TEXT, amount BIGINT, paid_at TIMESTAMP",
    "stops": "id BIGINT, region TEXT, n INT",
}
VIEWS = {"rebuild.paid": "SELECT id, region, amount FROM source.orders WHERE NOT paid_at IS NULL"}
MEASURES = {"n": "BIGINT", "total": "BIGINT"}
ROWS = "SELECT id::BIGINT AS id, region, 1::BIGINT AS n, amount::BIGINT AS total FROM source.orders"
QUERIES = {
    "plain": ROWS,
    "where": f"{ROWS} WHERE amount > 5 OR region IS NULL",
    "case": "SELECT id, CASE WHEN amount > 5 THEN 'big' ELSE 'small' END AS region, 1 AS n, "
    "CASE WHEN paid_at IS NULL THEN 0 ELSE amount END AS total FROM source.orders",
    "cte": f"WITH a AS ({ROWS}), b AS (SELECT * FROM a WHERE total > 3) SELECT id, region, n, total FROM b",
    "star_of_an_alias": f"SELECT id, region, n, total FROM (SELECT d.* FROM ({ROWS}) AS d LEFT JOIN seeds.regions AS s "
    "ON s.region = d.region AND s.least = 0)",
    "subquery": f"SELECT d.id, d.region, d.n, d.total FROM ({ROWS}) AS d",
    "union_all": f"{ROWS} UNION ALL SELECT id, region, 0, n FROM source.stops WHERE n > 2",
    "union_of_three": f"WITH p AS ({ROWS} UNION ALL SELECT id, region, 0, n FROM source.stops UNION ALL {ROWS}) "
    "SELECT id, region, n, total FROM p",
    "left_join": "SELECT o.id, COALESCE(s.label, 'none') AS region, 1 AS n, o.amount AS total FROM source.orders AS o "
    "LEFT JOIN seeds.regions AS s ON s.region = o.region AND s.least <= o.amount",
    "inner_join": "SELECT o.id, s.label AS region, 1 AS n, o.amount * s.least AS total FROM seeds.regions AS s "
    "JOIN source.orders AS o ON s.region = o.region",
    "json": "SELECT id, (('{\"a\": [\"' || region || '\"]}')::JSON -> '$.a') ->> 0 AS region, 1 AS n, amount AS total "
    "FROM source.orders",
    "view": "SELECT id, region, 1 AS n, amount AS total FROM rebuild.paid",
}


def relation(name: str):
    return parse_one(VIEWS[name], dialect="duckdb") if name in VIEWS else None


def derived(query: str) -> str:
    return signed_rows(parse_one(query, dialect="duckdb"), relation, MEASURES).sql("duckdb")


@pytest.fixture(scope="module")
def log() -> Iterator[duckdb.DuckDBPyConnection]:
    """Random changes of two tables, as signed rows, and `source` as of any position by the variable `now_at`."""
    chance = random.Random(7)
    connection = duckdb.connect()
    for schema in ("signed", "source", "seeds", "rebuild"):
        connection.execute(f"CREATE SCHEMA {schema}")
    connection.execute(
        "CREATE TABLE seeds.regions AS FROM (VALUES ('a', 'A', 0), ('a', 'A2', 6), ('b', 'B', 3)) "
        "AS r(region, label, least)"
    )
    position = 0
    for table, columns in TABLES.items():
        carried = "__position BIGINT, __logged_at TIMESTAMP, __weight INT"
        connection.execute(f"CREATE TABLE signed.{table} ({carried}, {columns})")
        connection.execute(f"CREATE TABLE log_of_{table} (from_position BIGINT, until_position BIGINT, {columns})")
        living: dict[int, tuple] = {}
        since: dict[int, int] = {}
        for _ in range(120):
            position += 1
            key = chance.randrange(9)
            region = chance.choice(["a", "b", "c", None])
            paid_at = chance.choice(["2026-01-01", None])
            row = (key, region, chance.randrange(10), *([paid_at] if table == "orders" else []))
            after = None if key in living and chance.random() < 0.3 else row
            for weight, image in ((-1, living.get(key)), (1, after)):
                if image:
                    values = [position, "2026-01-01", weight, *image]
                    connection.execute(f"INSERT INTO signed.{table} VALUES ({', '.join('?' * len(values))})", values)
            if key in living:
                image = living.pop(key)
                values = [since.pop(key), position, *image]
                connection.execute(f"INSERT INTO log_of_{table} VALUES ({', '.join('?' * len(values))})", values)
            if after:
                living[key], since[key] = after, position
        for key, image in living.items():
            values = [since[key], 1 << 40, *image]
            connection.execute(f"INSERT INTO log_of_{table} VALUES ({', '.join('?' * len(values))})", values)
        connection.execute(
            f"CREATE VIEW source.{table} AS SELECT * EXCLUDE (from_position, until_position) "
            f"FROM log_of_{table} WHERE from_position <= GETVARIABLE('now_at') "
            "AND GETVARIABLE('now_at') < until_position"
        )
    for name, query in VIEWS.items():
        connection.execute(f"CREATE VIEW {name} AS {query}")
    yield connection
    connection.close()


@pytest.mark.parametrize("query", QUERIES.values(), ids=QUERIES.keys())
def test_sums_over_changes_are_sums_over_rows(log: duckdb.DuckDBPyConnection, query: str) -> None:
    signed = derived(query)
    sums = "SELECT id, region, SUM(n)::BIGINT, SUM(total)::BIGINT, COUNT(*) FROM ({}) GROUP BY 1, 2"
    of_changes = (
        "SELECT id, region, SUM(n)::BIGINT, SUM(total)::BIGINT, SUM(diff)::BIGINT AS rows "
        f"FROM ({signed}) WHERE position <= ? GROUP BY 1, 2 HAVING rows <> 0 ORDER BY ALL"
    )
    compared = 0
    for at in range(1, 241, 7):
        log.execute(f"SET VARIABLE now_at = {at}")
        rows = log.execute(f"{sums.format(query)} ORDER BY ALL").fetchall()
        assert log.execute(of_changes, [at]).fetchall() == rows
        compared += len(rows)
    assert compared > 50


def test_columns_keep_their_names_and_comments_and_measures_get_their_types() -> None:
    query = "SELECT id::BIGINT AS id, /* Key */ amount AS total /* Amount */ FROM source.orders"
    [_, _, _, key, total] = signed_rows(parse_one(query, dialect="duckdb"), relation, MEASURES).selects
    assert (key.alias, key.comments) == ("id", [" Key "])
    assert (total.alias, total.comments) == ("total", ["Amount, signed"])
    assert total.unalias().is_type("BIGINT")


def test_an_old_image_that_cannot_be_cast_stops_nothing(log: duckdb.DuckDBPyConnection) -> None:
    log.execute(
        "CREATE TEMP TABLE readings AS SELECT 1 AS __position, TIMESTAMP '2026-01-01' AS __logged_at, "
        "1 AS __weight, 'abc' AS value"
    )
    query = derived("SELECT value::BIGINT AS total FROM source.readings").replace("signed.readings", "readings")
    assert log.execute(query).fetchall()[0][-1] is None


REFUSED = {
    "grouped": ("SELECT region, SUM(amount) AS total FROM source.orders GROUP BY region", "GROUP over rows"),
    "aggregated": ("SELECT SUM(amount) AS total FROM source.orders", "looks at more than one row"),
    "distinct": ("SELECT DISTINCT region FROM source.orders", "DISTINCT over rows"),
    "window": ("SELECT id, SUM(amount) OVER (ORDER BY id) AS total FROM source.orders", "more than one row"),
    "first_rows": ("SELECT id FROM source.orders ORDER BY id LIMIT 3", "LIMIT over rows"),
    "two_tables": (
        "SELECT o.id FROM source.orders o JOIN source.stops s ON o.id = s.id",
        "A join of tables that change",
    ),
    "itself": ("SELECT o.id FROM source.orders o JOIN source.orders s ON o.id = s.id", "A join of tables that change"),
    "on_the_right": (
        "SELECT s.label FROM seeds.regions s LEFT JOIN source.orders o ON o.region = s.region",
        "LEFT JOIN to o",
    ),
    "in_a_query": (
        "SELECT id FROM source.orders WHERE id IN (SELECT id FROM source.stops)",
        "looks at more than one row",
    ),
    "union": ("SELECT id FROM source.orders UNION SELECT id FROM source.stops", "UNION of rows that change"),
    "except": ("SELECT id FROM source.orders EXCEPT SELECT id FROM source.stops", "EXCEPT of rows that change"),
    "with_static_rows": ("SELECT region FROM source.orders UNION ALL SELECT region FROM seeds.regions", "never change"),
    "of_the_change": ("SELECT id, _committed_at FROM source.orders", "_committed_at, which is of the change"),
    "star": ("SELECT * FROM source.orders", "Name the columns"),
    "static": ("SELECT label FROM seeds.regions", "reads no table of source"),
    "now": ("SELECT id FROM source.orders WHERE paid_at < CURRENT_TIMESTAMP", "CURRENT_TIMESTAMP"),
    "random": ("SELECT id, RANDOM() AS total FROM source.orders", "RAND"),
    "sample": ("SELECT id FROM source.orders TABLESAMPLE 10%", "TABLESAMPLE"),
}


@pytest.mark.parametrize(("query", "reason"), REFUSED.values(), ids=REFUSED.keys())
def test_what_is_not_linear_in_single_rows_is_refused(query: str, reason: str) -> None:
    with pytest.raises(Refused, match=reason):
        derived(query)
