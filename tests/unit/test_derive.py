"""Whatever is written and whatever happens to the tables: cells and finish give the rows of the query as written.

A world of three tables with NULLs everywhere changes over some hours: rows come, go, change, come again. For every
query the cells are summed from increments, many hours in one statement, from the start and from a state on the way. The
finish over them is compared with the query as DuckDB runs it over the rows as they were at the end of each hour.
"""

from __future__ import annotations

import os
import random
import re
from collections.abc import Iterator
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import duckdb
import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from sqlglot import exp

from lockstep.derive import Core, Derivation, Refused, Table, derive

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
    "seeds.rules": Table(
        {"spelling": "TEXT", "status": "TEXT", "since": "TIMESTAMP", "until": "TIMESTAMP"},
        ("spelling", "since"),
        is_static=True,
        valid=("since", "until"),
    ),
}
RULES = [
    ("x", "paid", datetime(2026, 1, 1), datetime(2026, 1, 1, 3)),
    ("x", "done", datetime(2026, 1, 1, 3), datetime(2027, 1, 1)),
    ("y", "new", datetime(2026, 1, 1), datetime(2027, 1, 1)),
]
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
        key = number(1, 8)
        at = BEGIN + timedelta(minutes=number(600))
        amount, status = one_of([None, "1.25", "-3.10", "99.99"]), one_of(["x", "y", "7", None])
        return key, (key, one_of([1, 2, 3, None]), one_of([1, 2]), one_of([0, 1, 2, 3, None]), amount, status, at)


class Database:
    """The tables of a world: as a query reads them, as they were when a batch began, and their changes since."""

    def __init__(self) -> None:
        self.connection = duckdb.connect(":memory:")
        for schema in ("source", "seeds", "state", "delta"):
            self.connection.execute(f"CREATE SCHEMA {schema}")
        for name, table in CATALOG.items():
            columns = ", ".join(f'"{column}" {kind}' for column, kind in table.columns.items())
            self.connection.execute(f"CREATE TABLE {name} ({columns})")
            self.connection.execute(f"CREATE TABLE {self.state(name).sql()} ({columns})")
            signed = f"{columns}, __weight TINYINT, __logged_at TIMESTAMP"
            self.connection.execute(f"CREATE TABLE {self.delta(name).sql()} ({signed})")
        for relation in ("seeds.rules", "state.rules"):
            self._fill(relation, RULES)

    @staticmethod
    def state(name: str) -> exp.Table:
        return exp.to_table(f"state.{name.partition('.')[2]}")

    @staticmethod
    def delta(name: str) -> exp.Table:
        return exp.to_table(f"delta.{name.partition('.')[2]}")

    def _fill(self, relation: str, rows: list[tuple[Any, ...]]) -> None:
        self.connection.execute(f"DELETE FROM {relation}")
        if rows:
            self.connection.executemany(f"INSERT INTO {relation} VALUES ({', '.join('?' * len(rows[0]))})", rows)

    def begin_batch(self, world: World, hour: int) -> None:
        """State at the end of `hour` hours, and all changes after that as one batch."""
        for name in MOVING:
            self._fill(self.state(name).sql(), world.rows[hour][name])
            since = BEGIN + hour * HOUR
            changes = [(*row, w, at) for table, row, w, at in world.signed if table == name and at >= since]
            self._fill(self.delta(name).sql(), changes)

    def as_written(self, query: str, world: World, hour: int) -> list[Any]:
        for name in MOVING:
            self._fill(name, world.rows[hour][name])
        return self.connection.execute(query).fetchall()

    def derived(self, derivation: Derivation, until: datetime) -> list[Any]:
        """The finish over the cells of the state and the increments of the hours before `until`."""
        for core in derivation.cores:
            self._make_cells(core, until)
        return self.connection.execute(derivation.finish.sql("duckdb")).fetchall()

    def _make_cells(self, core: Core, until: datetime) -> None:
        columns = [*core.keys, "__n", *(name for m in core.measures for name in (m.name, m.count))]
        listed, keys = ", ".join(columns), ", ".join(core.keys)
        kinds = {"__n": "BIGINT"} | {m.count: "BIGINT" for m in core.measures}
        summed = [f"CAST(SUM({c}) AS {kinds[c]}) AS {c}" if c in kinds else f"SUM({c}) AS {c}" for c in columns]
        selected = ", ".join([*core.keys, *summed[len(core.keys) :]])
        increments = core.increment(CATALOG, self.state, self.delta).sql("duckdb")
        self.connection.execute(
            f"CREATE OR REPLACE TEMP TABLE {core.name} AS SELECT {selected} FROM ("
            f"SELECT {listed} FROM ({core.full(self.state).sql('duckdb')}) UNION ALL "
            f"SELECT {listed} FROM ({increments}) WHERE __hour < TIMESTAMP '{until}'"
            f"){f' GROUP BY {keys}' if keys else ''}"
        )


@pytest.fixture(scope="module")
def database() -> Iterator[Database]:
    database = Database()
    yield database
    database.connection.close()


def assert_equal_at_each_hour(database: Database, query: str, world: World) -> None:
    derivation = derive(query, CATALOG)
    for begins in (0, 2):
        database.begin_batch(world, begins)
        for hour in range(begins + 1, world.hours + 1):
            written = database.as_written(query, world, hour)
            derived = database.derived(derivation, BEGIN + hour * HOUR)
            assert sorted(derived, key=repr) == sorted(written, key=repr), (
                begins,
                hour,
                derivation.finish.sql("duckdb"),
            )


@pytest.mark.parametrize("name", QUERIES)
def test_the_derived_rows_are_those_of_the_query_as_written(database: Database, name: str) -> None:
    assert_equal_at_each_hour(database, QUERIES[name], World(seed=1))


@pytest.mark.generated
@settings(max_examples=6, deadline=None, derandomize="CI" in os.environ, phases=[Phase.explicit, Phase.generate])
@given(
    seed=st.integers(0, 10**6), names=st.lists(st.sampled_from(sorted(QUERIES)), min_size=4, max_size=4, unique=True)
)
def test_whatever_happens_to_the_tables(database: Database, seed: int, names: list[str]) -> None:
    world = World(seed)
    for name in names:
        assert_equal_at_each_hour(database, QUERIES[name], world)


@pytest.mark.parametrize(
    ("query", "cores"),
    [
        ("sums", [{"source.orders"}]),
        ("left join on the key", [{"source.orders", "source.customers"}]),
        ("not exists", [{"source.orders", "source.customers"}]),
        ("union all", [{"source.orders", "source.lines"}]),
        ("three tables and having", [{"source.orders", "source.lines", "source.customers"}]),
        ("share of the whole", [{"source.orders"}]),
    ],
)
def test_what_is_linear_is_one_core(query: str, cores: list[set[str]]) -> None:
    """Without it a query could be answered by keeping every row of its tables, which is right and of no use."""
    derivation = derive(QUERIES[query], CATALOG)
    assert [core.tables() for core in derivation.cores] == cores
    assert all(len(core.keys) <= 1 for core in derivation.cores)


@pytest.mark.parametrize(
    ("query", "says"),
    [
        ("SELEC 1", "line 1: Invalid expression"),
        ("INSERT INTO source.orders VALUES (1)", "no query"),
        ("SELECT nothing FROM source.orders", "'nothing' could not be resolved"),
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


def test_the_page_shows_what_is_true(capsys: pytest.CaptureFixture[str]) -> None:
    page = (Path(__file__).parents[2] / "docs" / "deriving.md").read_text(encoding="utf-8")
    [example] = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    exec(example, {})
    said = capsys.readouterr().out
    assert "'orders'" in said
    assert "orders_changes" in said
