"""Whatever is written and whatever happens to the tables: cells and finish give the rows of the query as written.

A world of three tables with NULLs everywhere changes over some hours: rows come, go, change, come again. For every
query the cells are summed from increments, many hours in one statement, from the start and from a state on the way. The
finish over them is compared with the query as DuckDB runs it over the rows as they were at the end of each hour.
"""

from __future__ import annotations

import os
import random
import re
from collections.abc import Iterator, Mapping
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import duckdb
import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from sqlglot import exp, parse_one

from lockstep.derive import Core, Derivation, Refused, Table, derive
from lockstep.derive.products import conjuncts

CATALOG = {
    "source.orders": Table(
        {
            "id": "BIGINT",
            "customer": "BIGINT",
            "product": "BIGINT",
            "units": "INTEGER",
            "amount": "DECIMAL(12,2)",
            "status": "TEXT",
            "at": "TIMESTAMP",
        },
        ("id",),
    ),
    "source.customers": Table({"id": "BIGINT", "region": "TEXT", "rank": "INTEGER"}, ("id",)),
    "source.lines": Table({"order_id": "BIGINT", "line": "INTEGER", "units": "INTEGER"}, ("order_id", "line")),
    "source.clicks": Table(
        {"id": "BIGINT", "customer": "BIGINT", "page": "TEXT", "price": "DECIMAL(9,2)"}, ("id",), is_append_only=True
    ),
    "seeds.codes": Table({"code": "TEXT", "name": "TEXT"}, ("code",), is_static=True),
    "seeds.rules": Table(
        {"spelling": "TEXT", "status": "TEXT", "since": "TIMESTAMP", "until": "TIMESTAMP"},
        ("spelling", "since"),
        is_static=True,
        valid=("since", "until"),
    ),
}
STATIC: dict[str, list[tuple[Any, ...]]] = {
    "seeds.codes": [("1", "one"), ("01", "uno"), ("2", "two")],
    "seeds.rules": [
        ("x", "paid", datetime(2026, 1, 1), datetime(2026, 1, 1, 3)),
        ("x", "done", datetime(2026, 1, 1, 3), datetime(2027, 1, 1)),
        ("y", "new", datetime(2026, 1, 1), datetime(2027, 1, 1)),
    ],
}
MOVING = [name for name, table in CATALOG.items() if not table.is_static]
BEGIN, HOUR = datetime(2026, 1, 1), timedelta(hours=1)

QUERIES = {
    "sums": "SELECT customer, SUM(amount) AS s, COUNT(*) AS n, SUM(units) AS u FROM source.orders GROUP BY customer",
    "averages": "SELECT customer, AVG(amount) AS a, AVG(units) AS u, COUNT(units) AS n FROM source.orders GROUP BY 1",
    "nothing to group by": "SELECT SUM(amount) AS s, COUNT(*) AS n, AVG(units) AS a FROM source.orders",
    "filter": "SELECT status, COUNT(*) FILTER (WHERE units > 1) AS n, SUM(amount) FILTER (WHERE units > 1) AS s, "
    "COUNT_IF(units = 0) AS z FROM source.orders GROUP BY status",
    "group by all": """SELECT c.region, DATE_TRUNC('hour', o."at") AS h, SUM(o.amount * o.units) AS s
        FROM source.orders AS o JOIN source.customers AS c ON c.id = o.customer WHERE o.units > 0 GROUP BY ALL""",
    "left join on the key": """SELECT c.region, SUM(o.amount) AS s, COUNT(c.rank) AS n
        FROM source.orders AS o LEFT JOIN source.customers AS c ON c.id = o.customer AND c.rank > 1 GROUP BY 1""",
    "left join to a subquery": """SELECT c.region, COUNT(*) AS n FROM source.orders AS o
        LEFT JOIN (SELECT id, UPPER(region) AS region FROM source.customers WHERE rank > 0) AS c
        ON c.id = o.customer GROUP BY 1""",
    "left join off the key": """SELECT o.id, SUM(l.units) AS s FROM source.orders AS o
        LEFT JOIN source.lines AS l ON l.order_id = o.id GROUP BY o.id""",
    "rules of a time": """SELECT r.status, SUM(o.amount) AS s FROM source.orders AS o LEFT JOIN seeds.rules AS r
        ON r.spelling = o.status AND r.since <= o."at" AND o."at" < r.until GROUP BY r.status""",
    "in": "SELECT status, COUNT(*) AS n FROM source.orders WHERE customer IN "
    "(SELECT id FROM source.customers WHERE rank > 1) GROUP BY 1",
    "not in with nulls": "SELECT status, COUNT(*) AS n FROM source.orders WHERE customer NOT IN "
    "(SELECT id FROM source.customers WHERE rank > 1) GROUP BY 1",
    "exists": "SELECT o.status, COUNT(*) AS n FROM source.orders AS o WHERE EXISTS "
    "(SELECT 1 FROM source.customers AS c WHERE c.id = o.customer AND c.rank > 1) GROUP BY 1",
    "not exists": "SELECT o.status, COUNT(*) AS n FROM source.orders AS o WHERE NOT EXISTS "
    "(SELECT 1 FROM source.customers AS c WHERE c.id = o.customer AND c.rank > 1) GROUP BY 1",
    "exists off the key": "SELECT o.status, COUNT(*) AS n FROM source.orders AS o WHERE EXISTS "
    "(SELECT 1 FROM source.lines AS l WHERE l.order_id = o.id) GROUP BY 1",
    "union all": "SELECT k, SUM(w) AS s FROM (SELECT customer AS k, units AS w FROM source.orders "
    "UNION ALL SELECT order_id, units FROM source.lines) AS u GROUP BY k",
    "three tables and having": """SELECT o.customer, SUM(l.units) AS s FROM source.orders AS o
        JOIN source.lines AS l ON l.order_id = o.id JOIN source.customers AS c ON c.id = o.customer
        GROUP BY 1 HAVING SUM(l.units) > 2""",
    "a table twice": """SELECT COUNT(*) AS n, SUM(a.amount) AS s FROM source.orders AS a
        JOIN source.orders AS b ON a.customer = b.customer AND a.units < b.units""",
    "min, max, distinct": """SELECT c.region, MAX(o.units) AS mx, MIN(o.amount) AS mn, COUNT(DISTINCT o.product) AS d,
        SUM(o.amount) AS s FROM source.orders AS o LEFT JOIN source.customers AS c ON c.id = o.customer GROUP BY 1""",
    "median": "SELECT customer, QUANTILE_DISC(amount, 0.5) AS m, SUM(amount) AS s FROM source.orders GROUP BY customer",
    "joined to sums": "SELECT o.customer, t.s FROM source.orders AS o JOIN "
    "(SELECT order_id, SUM(units) AS s FROM source.lines GROUP BY order_id) AS t ON t.order_id = o.id",
    "sums of sums": """WITH t AS (SELECT order_id, SUM(units) AS s FROM source.lines GROUP BY order_id)
        SELECT o.status, SUM(t.s) AS s, AVG(t.s) AS a FROM source.orders AS o JOIN t ON t.order_id = o.id GROUP BY 1""",
    "rows": "SELECT id, customer, amount FROM source.orders WHERE status IS NULL",
    "equal rows": "SELECT customer, units FROM source.orders",
    "distinct rows": "SELECT DISTINCT customer FROM source.orders",
    "ranks of sums": "SELECT customer, RANK() OVER (ORDER BY SUM(amount) DESC, customer) AS k "
    "FROM source.orders GROUP BY 1",
    "share of the whole": "SELECT status, SUM(amount) / SUM(SUM(amount)) OVER () AS r "
    "FROM source.orders GROUP BY status",
    "the latest of each": """SELECT customer, id FROM source.orders
        QUALIFY ROW_NUMBER() OVER (PARTITION BY customer ORDER BY "at" DESC, id) = 1""",
    "the next of each": """SELECT o.customer, o.id, CASE WHEN NOT c.id IS NULL THEN c.region END AS region
        FROM source.orders AS o LEFT JOIN source.customers AS c ON c.id = o.customer
        WHERE o.status IS NULL QUALIFY ROW_NUMBER() OVER (PARTITION BY o.customer ORDER BY o.id) = 1""",
    "windows over a join": """SELECT o.customer, l.units,
        RANK() OVER (PARTITION BY c.region ORDER BY o.units DESC) AS r,
        SUM(l.units) OVER (PARTITION BY o.customer) AS s, COUNT(*) OVER () AS n FROM source.orders AS o
        JOIN source.lines AS l ON l.order_id = o.id JOIN source.customers AS c ON c.id = o.customer
        WHERE o.units > 0 AND NOT EXISTS (SELECT 1 FROM source.clicks AS k WHERE k.id = o.id AND k.price > 1)""",
    "windows over equal rows": """SELECT customer, units, SUM(units) OVER (PARTITION BY customer) AS s,
        ROW_NUMBER() OVER (PARTITION BY customer ORDER BY units) AS r FROM source.orders WHERE units > 0""",
    "windows over a union all": """SELECT u.k, u.w, LAG(u.w) OVER (PARTITION BY u.k ORDER BY u.w) AS before FROM
        (SELECT customer AS k, units AS w FROM source.orders UNION ALL SELECT order_id, NULL FROM source.lines) AS u
        WHERE u.k > 1""",
    "windows beside rules": """SELECT o.id, r.status, RANK() OVER (PARTITION BY r.status ORDER BY o.amount, o.id) AS k
        FROM source.orders AS o LEFT JOIN seeds.rules AS r
        ON r.spelling = o.status AND r.since <= o."at" AND o."at" < r.until WHERE o.units > 0""",
    "windows off the key": """SELECT o.id, l.line, RANK() OVER (ORDER BY l.units, o.id, l.line) AS r
        FROM source.orders AS o LEFT JOIN source.lines AS l ON l.order_id = o.id""",
    "windows of what is selected": """SELECT id, units % 2 AS m,
        ROW_NUMBER() OVER (PARTITION BY units % 2 ORDER BY id) AS r
        FROM source.orders WHERE units > 0 QUALIFY r < 3 ORDER BY m, r DESC LIMIT 3""",
    "windows beside a sum": """SELECT o.id, RANK() OVER (ORDER BY o.units, o.id) AS r FROM source.orders AS o
        WHERE o.units > 0 AND o.units >= (SELECT SUM(l.units) FROM source.lines AS l WHERE l.order_id = o.id)""",
    "windows of windows": """SELECT x.id, x.r, SUM(x.r) OVER (ORDER BY x.id) AS s FROM (SELECT o.id, RANK() OVER
        (PARTITION BY c.region ORDER BY o.id) AS r FROM source.orders AS o
        JOIN source.customers AS c ON c.id = o.customer WHERE o.units > 0) AS x WHERE x.r < 3""",
    "distinct rows of a join": """SELECT DISTINCT c.region, DATE_TRUNC('hour', o."at") AS h, 1 AS one
        FROM source.orders AS o JOIN source.customers AS c ON c.id = o.customer WHERE o.units > 0
        ORDER BY DATE_TRUNC('hour', o."at") DESC, c.region LIMIT 4""",
    "distinct windows": """SELECT DISTINCT customer, MAX(units) OVER (PARTITION BY customer) AS m
        FROM source.orders WHERE status IS NOT NULL""",
    "the longest wait": """SELECT id, "at" - TIMESTAMP '2026-01-01' AS wait FROM source.orders WHERE units > 0
        ORDER BY wait DESC, id LIMIT 2""",
    "a median of a join": """SELECT c.region, QUANTILE_DISC(o.amount, 0.5) AS m, COUNT(*) AS n FROM source.orders AS o
        JOIN source.customers AS c ON c.id = o.customer WHERE o.units > 0 GROUP BY 1 HAVING COUNT(*) > 1""",
    "rollup of a join": """SELECT c.region, o.status, SUM(o.amount) AS s FROM source.orders AS o
        JOIN source.customers AS c ON c.id = o.customer WHERE o.units > 0 GROUP BY ROLLUP (c.region, o.status)""",
    "rollup of an expression": """SELECT units % 2 AS m, units % 2 + 1 AS k, COUNT(*) AS n FROM source.orders
        WHERE units > 0 GROUP BY ROLLUP (units % 2)""",
    "a sum of each row": """SELECT o.id, o.units + 1 AS u, (SELECT SUM(l.units) FROM source.lines AS l
        WHERE l.order_id = o.id AND l.units > 1) AS s FROM source.orders AS o WHERE o.units > 0""",
    "both queries in one expression": """SELECT o.id, (SELECT l.units + o.units FROM source.lines AS l
        WHERE l.order_id = o.id AND l.line = 1) AS s FROM source.orders AS o WHERE o.units > 0""",
    "the first three": "SELECT id, amount FROM source.orders ORDER BY amount NULLS FIRST, id LIMIT 3",
    "a ratio": "SELECT status, SUM(CASE WHEN units > 2 THEN amount ELSE 0 END) / NULLIF(SUM(amount), 0) AS r "
    "FROM source.orders GROUP BY status",
    "beside an average": "SELECT region, COUNT(*) AS n FROM source.customers WHERE rank > "
    "(SELECT AVG(units) FROM source.orders) GROUP BY region",
    "beside a count of its own": "SELECT region, COUNT(*) AS n FROM source.customers AS c WHERE rank > "
    "(SELECT COUNT(*) FROM source.orders AS o WHERE o.customer = c.id) GROUP BY region",
    "beside two of its own": """SELECT c.region, COUNT(*) AS n FROM source.customers AS c WHERE c.rank >=
        (SELECT COUNT(*) FROM source.orders AS o WHERE o.customer = c.id AND o.units > c.rank AND o.units >
        (SELECT MIN(l.units) FROM source.lines AS l WHERE l.order_id = o.id)) GROUP BY 1""",
    "union": "SELECT customer AS k FROM source.orders UNION SELECT id FROM source.customers",
    "except": "SELECT id FROM source.customers EXCEPT SELECT customer FROM source.orders",
    "rollup": "SELECT status, SUM(amount) AS s FROM source.orders GROUP BY ROLLUP (status)",
    "a text that is no number": "SELECT TRY_CAST(status AS INTEGER) AS t, COUNT(*) AS n FROM source.orders GROUP BY 1",
    "one name in two scopes": """SELECT o.status, (SELECT COUNT(*) FROM source.orders AS o WHERE o.units > 1) AS n,
        SUM(o.units) AS s FROM source.orders AS o GROUP BY o.status""",
    "extremes of what only grows": """SELECT k.customer, MAX(k.price) AS high, MIN(k.page) AS p, COUNT(*) AS n,
        MAX(DISTINCT k.price) - MIN(k.price) AS d, SUM(k.price) AS s FROM source.clicks AS k GROUP BY 1""",
    "the last of what only grows": """SELECT customer, ARG_MAX(page, id) AS last, ARG_MIN(price, id) AS first
        FROM source.clicks GROUP BY 1""",
    "extremes beside rules": """SELECT r.status, MAX(k.price) AS high FROM source.clicks AS k
        JOIN seeds.rules AS r ON r.spelling = k.page GROUP BY 1""",
    "extremes beside what changes": """SELECT c.region, MAX(k.price) AS high FROM source.clicks AS k
        JOIN source.customers AS c ON c.id = k.customer GROUP BY 1""",
    "the last of what changes": "SELECT customer, MAX_BY(status, id) AS last FROM source.orders GROUP BY 1",
    "functions that are written as operators": "SELECT id, units // MOD(product, 2) AS m FROM source.orders",
    "conditions in places of values": """SELECT id FROM source.orders AS o WHERE (o.units > 1) IN
        (SELECT c.rank = 2 OR c.rank = 0 FROM source.customers AS c WHERE c.id = o.customer)""",
    "the last condition": """SELECT customer, ARG_MAX(NOT price > 1, id) AS n,
        ARG_MIN(price IS NULL OR page = 'x', id) AS m FROM source.clicks GROUP BY 1""",
    "ways to write it": """SELECT id, SUBSTR(status, 1, 2) AS s, POW(units, 2) AS p, "at" + INTERVAL '2 days' AS d
        FROM source.orders WHERE status NOTNULL AND units NOT IN (1, 5) AND status NOT LIKE 'y%'
        AND (units > 1) IS NOT FALSE""",
    # Each of these was wrong once, or would be with one rule less.
    "aggregates of windows alone": "SELECT COUNT(*) OVER () AS n FROM source.orders",
    "frames of groups": """SELECT id, SUM(units) OVER (ORDER BY customer GROUPS BETWEEN 1 PRECEDING AND 1 FOLLOWING
        EXCLUDE GROUP) AS s FROM source.orders""",
    "counts of what is no number": """SELECT customer, COUNT(status) AS n, COUNT(units > 1) AS m, SUM(units > 1) AS b,
        COUNT("at") AS t, COUNT(1) AS c FROM source.orders GROUP BY 1""",
    "types that a union all makes one": """SELECT k || '' AS k, COUNT(*) AS n FROM (SELECT units AS k FROM source.orders
        UNION ALL SELECT amount FROM source.orders UNION ALL SELECT NULL FROM source.lines) AS u GROUP BY 1""",
    "a union all of constants": "SELECT 1 AS k, id FROM source.orders UNION ALL SELECT 2.5, NULL FROM source.lines",
    "nulls with a type": """SELECT DATE_TRUNC('hour', o."at") AS h, c.rank || '' AS r, COUNT(*) AS n
        FROM source.customers AS c LEFT JOIN source.orders AS o ON o.id = c.rank GROUP BY 1, 2""",
    "a key as a number": """SELECT o.customer, COUNT(*) AS n, COUNT(c.name) AS m FROM source.orders AS o
        LEFT JOIN seeds.codes AS c ON c.code = o.units GROUP BY 1""",
    "limits within": "SELECT SUM(x.units) AS s FROM ((SELECT id, units FROM source.orders) ORDER BY id LIMIT 2) AS x",
    "offset": "SELECT x.id FROM (SELECT id FROM source.orders ORDER BY id OFFSET 2) AS x",
    "using": "SELECT * FROM source.orders JOIN source.customers USING (id)",
    "left join using": "SELECT id, region, amount FROM source.orders LEFT JOIN source.customers USING (id)",
    "stars without": "SELECT * EXCLUDE (amount) REPLACE (units + 1 AS units) RENAME (id AS z) FROM source.orders",
    "names of the same select": "SELECT units + 1 AS a, a * 2 AS b FROM source.orders WHERE a > 1",
    "a name that is a column first": "SELECT units + 1 AS customer, customer + 1 AS b FROM source.orders",
    "a cte that hides another": """WITH t AS (SELECT id AS k FROM source.orders), u AS
        (WITH t AS (SELECT id AS k FROM source.customers) SELECT k FROM t) SELECT t.k, u.k AS j FROM t, u""",
    "a cte used twice": """WITH t AS (SELECT customer, SUM(units) AS s FROM source.orders GROUP BY 1)
        SELECT a.customer, b.s FROM t AS a JOIN t AS b ON a.s > b.s""",
    "a cte with names": "WITH t(k, v) AS (SELECT customer, amount FROM source.orders) "
    "SELECT k, SUM(v) AS s FROM t GROUP BY 1",
    "constants in group by all": "SELECT DATE '2026-01-01' AS d, 'x' AS x, SUM(units) AS s "
    "FROM source.orders GROUP BY ALL",
    "except all": "SELECT customer FROM source.orders EXCEPT ALL SELECT id FROM source.customers",
    "intersect all": "SELECT customer FROM source.orders INTERSECT ALL SELECT id FROM source.customers",
    "a number beside an aggregate": "SELECT SUM((SELECT COUNT(*) FROM source.lines)) AS s, COUNT(*) AS n "
    "FROM source.orders",
    "grouped by a count": "SELECT (SELECT COUNT(*) FROM source.lines) AS k, COUNT(*) AS n "
    "FROM source.orders GROUP BY 1",
    "rules that there are": "SELECT id FROM source.orders WHERE EXISTS (SELECT 1 FROM seeds.rules)",
    "no rules": "SELECT COUNT(*) AS n FROM source.orders WHERE NOT EXISTS (SELECT 1 FROM seeds.rules)",
    "rules from a time on": """SELECT COUNT(r.status) AS n FROM source.orders AS o LEFT JOIN seeds.rules AS r
        ON r.spelling = o.status AND r.since <= o."at" """,
    "rules alone": "SELECT status, COUNT(*) AS n FROM seeds.rules GROUP BY 1",
    "several levels down": """SELECT c.id FROM source.customers AS c WHERE EXISTS (SELECT 1 FROM source.orders AS o
        WHERE o.customer = c.id AND NOT EXISTS
        (SELECT 1 FROM source.lines AS l WHERE l.order_id = o.id AND l.units < c.rank))""",
    "a name of the outer query": """SELECT x.k, SUM(x.v) AS s FROM (SELECT o.customer AS k, o.units AS v
        FROM source.orders AS o WHERE o.units IS NOT NULL) AS x WHERE x.k > 1 GROUP BY x.k""",
}


class World:
    """What happened to the tables, hour by hour."""

    def __init__(self, seed: int, hours: int = 5, per_hour: int = 12) -> None:
        self.hours = hours
        self.rng = random.Random(seed)
        self.signed: list[tuple[str, tuple[Any, ...], int, datetime]] = []
        self.rows: list[dict[str, list[tuple[Any, ...]]]] = [{name: [] for name in MOVING}]  # at the end of each hour
        current: dict[str, dict[Any, tuple[Any, ...]]] = {name: {} for name in MOVING}
        for hour in range(hours):
            for minute in range(per_hour):
                self._change(current, BEGIN + hour * HOUR + timedelta(minutes=minute))
            self.rows.append({name: list(found.values()) for name, found in current.items()})

    def _change(self, current: dict[str, dict[Any, tuple[Any, ...]]], at: datetime) -> None:
        name = self.rng.choice(MOVING)
        key, row = self._row(name)
        old = current[name].get(key)
        if old and CATALOG[name].is_append_only:
            return
        if old:
            self.signed.append((name, old, -1, at))
        if old and self.rng.random() < 0.3:
            del current[name][key]
        else:
            self.signed.append((name, row, 1, at))
            current[name][key] = row

    def _row(self, name: str) -> tuple[Any, tuple[Any, ...]]:
        one_of, number = self.rng.choice, self.rng.randrange
        if name == "source.customers":
            key = number(1, 4)
            return key, (key, one_of(["north", "south", None]), one_of([0, 1, 2, 3, None]))
        if name == "source.lines":
            pair = number(1, 6), number(1, 3)
            return pair, (*pair, one_of([1, 2, None]))
        if name == "source.clicks":
            key = number(1, 20)
            return key, (key, one_of([1, 2, None]), one_of(["x", "y", None]), one_of([None, "1.25", "-3.10", "99.99"]))
        key = number(1, 8)
        at = BEGIN + timedelta(minutes=number(600))
        amount, status = one_of([None, "1.25", "-3.10", "99.99"]), one_of(["x", "y", "7", None])
        return key, (key, one_of([1, 2, 3, None]), one_of([1, 2]), one_of([0, 1, 2, 3, None]), amount, status, at)


class Database:
    """A world's tables as they were at the end of each hour, in a database per hour, and their changes since some."""

    BEGINS = (0, 2)

    def __init__(self, world: World) -> None:
        self.hours = world.hours
        self.connection = duckdb.connect(":memory:", config={"threads": 1})
        for hour in range(world.hours + 1):
            self.connection.execute(f"ATTACH ':memory:' AS hour{hour}")
            for name, table in CATALOG.items():
                rows = STATIC[name] if table.is_static else world.rows[hour][name]
                self._fill(f"hour{hour}.{name}", table.columns, rows)
        for begin in self.BEGINS:
            since = BEGIN + begin * HOUR
            for name in MOVING:
                signed = CATALOG[name].columns | {"__weight": "TINYINT", "__logged_at": "TIMESTAMP"}
                rows = [(*row, w, at) for table, row, w, at in world.signed if table == name and at >= since]
                self._fill(f"changes_since_{begin}.{name.partition('.')[2]}", signed, rows)

    def _fill(self, relation: str, columns: Mapping[str, str], rows: list[tuple[Any, ...]]) -> None:
        self.connection.execute(f"CREATE SCHEMA IF NOT EXISTS {relation.rpartition('.')[0]}")
        listed = ", ".join(f'"{column}" {kind}' for column, kind in columns.items())
        self.connection.execute(f"CREATE TABLE {relation} ({listed})")
        if rows:
            places = ", ".join([f"({', '.join('?' * len(columns))})"] * len(rows))
            self.connection.execute(f"INSERT INTO {relation} VALUES {places}", [v for row in rows for v in row])

    def as_written(self, query: str, hour: int) -> list[Any]:
        self.connection.execute(f"USE hour{hour}.main")
        try:
            return self.connection.execute(query).fetchall()
        finally:
            self.connection.execute("USE memory.main")

    def add_up(self, core: Core, begin: int) -> None:
        """The cells of the state at `begin`, and the increments of each hour since."""

        def state(name: str) -> exp.Table:
            return exp.to_table(f"hour{begin}.{name}")

        def delta(name: str) -> exp.Table:
            return exp.to_table(f"changes_since_{begin}.{name.partition('.')[2]}")

        self.connection.execute(
            f"CREATE OR REPLACE TEMP TABLE {core.name}_parts AS SELECT NULL::TIMESTAMP AS __hour, * "
            f"FROM ({core.full(state).sql('duckdb')}) "
            f"UNION ALL BY NAME ({core.increment(CATALOG, state, delta).sql('duckdb')})"
        )

    def derived(self, derivation: Derivation, hour: int) -> list[Any]:
        """The finish over the cells as they were at the end of an hour."""
        for core in derivation.cores:
            until = f"__hour IS NULL OR __hour < TIMESTAMP '{BEGIN + hour * HOUR}'"
            cells = core.added_up(exp.select("*").from_(f"{core.name}_parts").where(until)).sql("duckdb")
            self.connection.execute(f"CREATE OR REPLACE TEMP VIEW {core.name} AS {cells}")
        return self.connection.execute(derivation.finish.sql("duckdb")).fetchall()


@pytest.fixture(scope="module")
def database() -> Iterator[Database]:
    database = Database(World(seed=1))
    yield database
    database.connection.close()


def assert_equal_at_each_hour(database: Database, query: str) -> None:
    derivation = derive(query, CATALOG)
    written = [sorted(database.as_written(query, hour), key=repr) for hour in range(database.hours + 1)]
    for begin in database.BEGINS:
        for core in derivation.cores:
            database.add_up(core, begin)
        for hour in range(begin, database.hours + 1):
            derived = sorted(database.derived(derivation, hour), key=repr)
            assert derived == written[hour], (begin, hour, derivation.finish.sql("duckdb"))


@pytest.mark.parametrize("name", QUERIES)
def test_the_derived_rows_are_those_of_the_query_as_written(database: Database, name: str) -> None:
    assert_equal_at_each_hour(database, QUERIES[name])


@pytest.mark.generated
@settings(max_examples=4, derandomize="CI" in os.environ, phases=[Phase.explicit, Phase.generate])
@given(
    seed=st.integers(0, 10**6), names=st.lists(st.sampled_from(sorted(QUERIES)), min_size=4, max_size=4, unique=True)
)
def test_whatever_happens_to_the_tables(seed: int, names: list[str]) -> None:
    database = Database(World(seed))
    for name in names:
        assert_equal_at_each_hour(database, QUERIES[name])
    database.connection.close()


@pytest.mark.parametrize(
    ("query", "cores"),
    [
        ("sums", [{"source.orders"}]),
        ("left join on the key", [{"source.orders", "source.customers"}]),
        ("not exists", [{"source.orders", "source.customers"}]),
        ("union all", [{"source.orders", "source.lines"}]),
        ("three tables and having", [{"source.orders", "source.lines", "source.customers"}]),
        ("share of the whole", [{"source.orders"}]),
        ("extremes of what only grows", [{"source.clicks"}]),
        ("the last of what only grows", [{"source.clicks"}]),
        ("extremes beside rules", [{"source.clicks", "seeds.rules"}]),
    ],
)
def test_what_is_linear_is_one_core(query: str, cores: list[set[str]]) -> None:
    """Without it a query could be answered by keeping every row of its tables, which is right and of no use."""
    derivation = derive(QUERIES[query], CATALOG)
    assert [core.tables() for core in derivation.cores] == cores
    assert all(len(core.keys) <= 1 for core in derivation.cores)


@pytest.mark.parametrize(
    ("name", "rows", "keys"),
    [
        ("the next of each", "source.orders WHERE status IS NULL", 3),
        (
            "windows over a join",
            """source.orders AS o JOIN source.lines AS l ON l.order_id = o.id
            JOIN source.customers AS c ON c.id = o.customer
            WHERE o.units > 0 AND NOT EXISTS (SELECT 1 FROM source.clicks AS k WHERE k.id = o.id AND k.price > 1)""",
            4,
        ),
        ("windows over equal rows", "source.orders WHERE units > 0", 2),
        ("windows beside rules", "source.orders WHERE units > 0", 3),
        ("windows of what is selected", "source.orders WHERE units > 0", 2),
        (
            "distinct rows of a join",
            "source.orders WHERE units > 0 AND customer IN (SELECT id FROM source.customers)",
            2,
        ),
        ("the longest wait", "source.orders WHERE units > 0", 2),
        ("rollup of a join", "source.orders WHERE units > 0 AND customer IN (SELECT id FROM source.customers)", 3),
        ("aggregates of windows alone", "source.orders", 0),
    ],
)
def test_joins_and_conditions_below_windows_are_one_core(database: Database, name: str, rows: str, keys: int) -> None:
    """Without it each table would be kept whole, with rows that the query leaves out, and joined at each reading."""
    [core] = derive(QUERIES[name], CATALOG).cores
    assert len(core.keys) == keys
    found = []
    for hour in range(database.hours + 1):
        cells = core.full(lambda table, hour=hour: exp.to_table(f"hour{hour}.{table}")).sql("duckdb")
        kept = database.connection.execute(f"SELECT COALESCE(SUM(__n), 0) FROM ({cells})").fetchall()
        assert kept == database.as_written(f"SELECT COUNT(*) FROM {rows}", hour)
        found += kept
    assert max(found) > (0,)


def test_conditions_of_a_query_within_are_in_its_cells() -> None:
    """What it takes from the row around it is read in the finish, and need not keep its table whole."""
    cores = derive(QUERIES["both queries in one expression"], CATALOG).cores
    assert [(core.tables(), len(core.keys)) for core in cores] == [({"source.lines"}, 2), ({"source.orders"}, 2)]


def test_a_join_that_is_not_linear_keeps_its_tables() -> None:
    derivation = derive(QUERIES["windows off the key"], CATALOG)
    assert [core.tables() for core in derivation.cores] == [{"source.orders"}, {"source.lines"}]


@pytest.mark.parametrize(
    ("query", "says"),
    [
        ("SELEC 1", "line 1: Invalid expression"),
        ("INSERT INTO source.orders VALUES (1)", "not a query"),
        ("SELECT nothing FROM source.orders", '"nothing" not found'),
        ("SELECT\n  status,\n  ANY_VALUE(id)\nFROM source.orders GROUP BY 1", "line 3: ANY_VALUE(id). Take MIN or MAX"),
        ("SELECT FIRST(id) FROM source.orders", "FIRST(). Take MIN or MAX"),
        ("SELECT LIST(id) FROM source.orders", "no order of their own"),
        ("SELECT STRING_AGG(status, ',') FROM source.orders", "no order of their own"),
        ("SELECT RANDOM() FROM source.orders", "another one each time"),
        ("SELECT NOW() FROM source.orders", "NOW()"),
        ("SELECT CURRENT_DATE FROM source.orders", "@as_of()"),
        ("SELECT id FROM source.orders USING SAMPLE 10%", "Filter by a column"),
        ("SELECT o.id FROM source.orders AS o ASOF JOIN source.customers AS c ON o.id >= c.id", "ASOF JOIN"),
        ("SELECT COUNT(*) FROM source.orders NATURAL JOIN source.customers", "NATURAL JOIN"),
        (
            "SELECT o.id FROM source.orders AS o RIGHT JOIN source.customers AS c ON c.id = o.id",
            "Turn the tables round",
        ),
        ("SELECT o.id FROM source.orders AS o FULL JOIN source.customers AS c ON c.id = o.id", "FULL JOIN"),
        ("SELECT id FROM source.orders LIMIT 3", "LIMIT without ORDER BY"),
        ("SELECT id, ROW_NUMBER() OVER () FROM source.orders", "in which order"),
        ("SELECT SUM(amount::DOUBLE) FROM source.orders", "Cast it to DECIMAL"),
        ("SELECT id FROM source.orders, RANGE(3) AS t(x)", "not on the list"),
        ("SELECT id FROM source.orders UNION ALL BY NAME SELECT id FROM source.customers", "in one order"),
        ("SELECT o.id FROM source.orders AS o SEMI JOIN source.customers AS c ON c.id = o.id", "EXISTS (SELECT"),
        ("SELECT id FROM source.orders ANTI JOIN source.customers USING (id)", "ANTI JOIN"),
        ("SELECT o.id FROM source.orders AS o POSITIONAL JOIN source.lines AS l", "POSITIONAL JOIN"),
        ("SELECT MAX(units, 2) FROM source.orders", "MAX()"),
        ("SELECT MIN(units, 2) FROM source.orders", "MIN()"),
        ("SELECT ARG_MAX(id, units, 2) FROM source.orders", "ARG_MAX()"),
        ("SELECT id FROM source.orders WHERE units = 2 IS NOT NULL", "into parentheses"),
        ("SELECT ARG_MAX(status, units) FROM source.orders", "by what is not unique"),
        ("SELECT ARG_MAX(l.units, o.id) FROM source.orders AS o, source.lines AS l", "by what is not unique"),
        ("SELECT SUM(units ORDER BY id) FROM source.orders", "units ORDER BY id"),
        ("SELECT COUNT(DISTINCT (id, units)) FROM source.orders", "one by one"),
        ("SELECT id FROM source.orders WHERE (id, units) IN (SELECT id, rank FROM source.customers)", "one by one"),
        ("SELECT DISTINCT ON (units) units, id FROM source.orders ORDER BY 1, 2", "ROW_NUMBER() OVER (...) = 1"),
        ("SELECT LAG(id) OVER () FROM source.orders", "in which order"),
        (
            "SELECT o.id FROM source.orders AS o JOIN source.customers AS c ON c.id = o.customer "
            "WHERE o.units > 1 QUALIFY ROW_NUMBER() OVER (PARTITION BY c.region) = 1",
            "in which order",
        ),
        ("SELECT SUM(units) OVER (ROWS 1 PRECEDING) FROM source.orders", "in which order"),
        ("SELECT SUM(units) OVER w FROM source.orders WINDOW w AS (ORDER BY id)", "WINDOWS"),
        ("SELECT LAG(id IGNORE NULLS) OVER (ORDER BY id) FROM source.orders", "name one value"),
        ("SELECT MODE() WITHIN GROUP (ORDER BY id) FROM source.orders", "MODE()"),
        ("SELECT status COLLATE NOCASE AS s FROM source.orders", "COLLATE"),
        ("SELECT id INTO t FROM source.orders", "INTO"),
        ("SELECT id FROM source.orders ORDER BY id FOR UPDATE", "LOCKS"),
        ("SELECT id FROM source.orders ORDER BY id LIMIT 10%", "10 PERCENT"),
        ("SELECT id FROM source.orders ORDER BY id LIMIT (SELECT COUNT(*) FROM source.lines)", "Give it a number"),
        ("SELECT id FROM source.orders OFFSET 1", "LIMIT without ORDER BY"),
        ("SELECT UNNEST([1, 2]) FROM source.orders", "not on the list"),
        ("SELECT * FROM source.orders PIVOT (SUM(units) FOR status IN ('x'))", "PIVOT"),
        ("SELECT * FROM (VALUES (1)) AS v(x)", "Read a seed"),
        ("SELECT COLUMNS('u.*') FROM source.orders", "COLUMNS"),
        (
            "SELECT l.* FROM source.orders AS o, LATERAL (SELECT * FROM source.lines AS l WHERE l.line = o.id) AS l",
            "LATERAL",
        ),
        ("SELECT a FROM source.customers AS c(a, b)", "Names of columns in"),
        ("SELECT o.id FROM (source.orders AS o JOIN source.lines AS l ON l.line = o.id)", "Joins in parentheses"),
        ("SELECT x.a FROM (SELECT id AS a, units AS a FROM source.orders) AS x", "two columns of the name a"),
        ("SELECT 1 AS one, COUNT(*) AS n FROM source.orders GROUP BY 1", "a constant"),
        ("SELECT units + COUNT(*) AS n FROM source.orders GROUP BY ALL", "Cannot mix aggregates"),
        ("SELECT units % 2 AS k, COUNT(*) AS n FROM source.orders GROUP BY ALL HAVING units % 2 = 1", "beside"),
        ("SELECT id, ROW_NUMBER() OVER (ORDER BY id) AS units FROM source.orders QUALIFY units = 1", "(units)"),
        ("SELECT * RENAME (id AS z) FROM (SELECT units FROM source.lines), source.customers", "A name or star"),
        ("SELECT status, (SELECT SUM(o.units)) AS s FROM source.orders AS o GROUP BY 1", "outer query's column"),
        ("SELECT status, SUM(units / 2) AS s FROM source.orders GROUP BY ROLLUP (status)", "SUM of a DOUBLE"),
        ('SELECT AVG("at") FROM source.orders', "a TIMESTAMP"),
        ("SELECT id FROM source.orders; DROP TABLE source.orders", "more than one statement"),
        ("SELECT COUNT(*) FROM nothing", "nothing does not exist"),
        ("WITH RECURSIVE t AS (SELECT 1 AS n UNION ALL SELECT n + 1 FROM t) SELECT n FROM t", "WITH RECURSIVE"),
    ],
)
def test_what_cannot_be_derived_is_refused(query: str, says: str) -> None:
    """Without it a construct that is read wrongly would give figures that differ from the query's."""
    with pytest.raises(Refused) as refused:
        derive(query, CATALOG)
    assert says in str(refused.value)
    assert "__t" not in str(refused.value)


def test_a_column_with_a_generated_name_is_refused() -> None:
    with pytest.raises(Refused, match="__weight"):
        derive("SELECT 1", {"source.t": Table({"__weight": "INTEGER"})})


def test_a_text_that_is_no_number_comes_and_goes_within_a_batch() -> None:
    """Without it the increment would end with an error that the query, which never sees that text, does not have."""
    catalog = {"t": Table({"id": "BIGINT", "v": "TEXT"}, ("id",))}
    query = (
        "SELECT CAST(v AS INTEGER) AS k, SUM(CAST(v AS INTEGER)) AS s FROM t WHERE CAST(v AS INTEGER) > 1 GROUP BY 1"
    )
    [core] = derive(query, catalog).cores
    with duckdb.connect(":memory:") as connection:
        connection.execute("CREATE TABLE t (id BIGINT, v TEXT)")
        connection.execute(
            "CREATE TABLE t_changes AS SELECT *, TIMESTAMP '2026-01-01' AS __logged_at "
            "FROM (VALUES (1, 'abc', 1), (1, 'abc', -1), (1, '5', 1)) AS c(id, v, __weight)"
        )
        increment = core.increment(catalog, exp.to_table, lambda name: exp.to_table(f"{name}_changes"))
        [(_, key, rows, *_)] = connection.execute(increment.sql("duckdb")).fetchall()
        assert (key, rows) == (5, 1)


@pytest.mark.parametrize(
    ("condition", "parts"),
    [
        ("a AND (b AND c)", ["a", "b", "c"]),
        ("(k = l AND a) OR (b AND k = l AND c)", ["k = l", "a OR (b AND c)"]),
        ("(k AND a) OR k", ["k"]),
        ("((k AND a) OR (k AND b)) AND c", ["k", "a OR b", "c"]),
        ("a AND b OR c", ["a AND b OR c"]),
    ],
)
def test_what_each_case_of_an_or_asks_is_asked_once(condition: str, parts: list[str]) -> None:
    """By this a join in each case is a join, and not all pairs of rows."""
    asked = [part.sql("duckdb") for part in conjuncts(parse_one(condition, dialect="duckdb"))]
    assert asked == parts


def test_names_are_the_same_in_any_case() -> None:
    catalog = {"Shop.Orders": Table({"Id": "BIGINT", "Amount": "DECIMAL(12,2)"}, ("Id",))}
    derivation = derive(
        'SELECT ID, "AMOUNT" + 1 AS Total FROM shop.ORDERS WHERE id IN (SELECT iD FROM SHOP.orders)', catalog
    )
    [core] = derivation.cores
    assert core.tables() == {"Shop.Orders"}


def test_names_may_be_words_of_sql() -> None:
    catalog = {"shop.order": Table({"select": "BIGINT", "a b": "INTEGER", 'we"ird': "TEXT"}, ("select",))}
    derivation = derive('SELECT * FROM shop."order" QUALIFY SUM("a b") OVER () > 1', catalog)
    assert '"we""ird"' in derivation.finish.sql("duckdb")


def test_an_interval_is_no_key() -> None:
    """Without it one of two equal intervals that are written otherwise would be shown as the other."""
    with pytest.raises(Refused, match="EPOCH"):
        derive("SELECT lasts FROM source.t", {"source.t": Table({"lasts": "INTERVAL"})})


def test_the_page_shows_what_is_true(capsys: pytest.CaptureFixture[str]) -> None:
    page = (Path(__file__).parents[2] / "docs" / "deriving.md").read_text(encoding="utf-8")
    [example] = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    exec(example, {})
    said = capsys.readouterr().out
    assert "'orders'" in said
    assert "orders_changes" in said
