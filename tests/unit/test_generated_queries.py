"""Queries that Hypothesis makes up: a finish over the sums of changes is the query as written, at many positions.

Joins of two or three tables by key and off it, of one with itself, LEFT JOIN by key and of a seed, UNION ALL, IN and
NOT EXISTS by key, CASE, FILTER, DISTINCT, extremes, ratios, HAVING, groups of groups, scalar subqueries; NULL in any
column. Rows without groups, with windows, QUALIFY, DISTINCT and LIMIT, over the same joins and conditions.
A failure shrinks to a query and the seed of a log: put both into test_signed_rows.py.
"""

from __future__ import annotations

import functools
import os
from dataclasses import dataclass

import duckdb
from hypothesis import given, note, settings
from hypothesis import strategies as st

from random_log import compare_the_finish, random_log

examples = settings(max_examples=int(os.environ.get("HYPOTHESIS_EXAMPLES", "25")), derandomize="CI" in os.environ)


@dataclass(frozen=True)
class Source:
    """What is read, and which texts and numbers it has; `id` is a number that is never NULL."""

    read: str
    id: str
    texts: tuple[str, ...]
    numbers: tuple[str, ...]


ORDERS = Source("source.orders AS o", "o.id", ("o.region",), ("o.amount", "o.amount * 2", "o.id"))
JOINED = (("o.region", "s.region"), ("o.amount", "s.n", "o.amount * s.n", "s.n - o.id"))
SOURCES = [
    ORDERS,
    Source("source.stops AS s", "s.id", ("s.region",), ("s.n", "s.id + s.n")),
    Source("source.orders AS o JOIN source.stops AS s ON s.id = o.id", "o.id", *JOINED),
    Source("source.orders AS o JOIN source.stops AS s ON s.region = o.region", "o.id", *JOINED),
    Source("source.orders AS o JOIN source.stops AS s ON s.n < o.amount", "o.id", *JOINED),
    Source("source.orders AS o LEFT JOIN source.stops AS s ON s.id = o.id AND s.n > 2", "o.id", *JOINED),
    Source(
        "source.orders AS o JOIN source.stops AS s ON s.region = o.region LEFT JOIN source.orders AS p ON p.id = s.n",
        "o.id",
        ("s.region", "p.region"),
        ("o.amount", "p.amount", "p.amount * s.n - o.id"),
    ),
    Source(
        "source.orders AS o JOIN source.orders AS p ON p.region = o.region AND p.id < o.id",
        "o.id",
        ("o.region", "p.region"),
        ("o.amount", "p.amount - o.amount"),
    ),
    Source(
        "source.orders AS o LEFT JOIN seeds.regions AS r ON r.region = o.region AND r.least <= o.amount",
        "o.id",
        ("o.region", "r.label"),
        ("o.amount", "r.least"),
    ),
    Source(
        "(SELECT id, region, amount FROM source.orders UNION ALL SELECT id, region, n FROM source.stops) AS o",
        "o.id",
        ("o.region",),
        ("o.amount",),
    ),
]
AGGREGATES = [
    "COUNT(*)",
    "COUNT({n})",
    "SUM({n})",
    "AVG({n})",
    "MIN({n})",
    "MAX({t})",
    "COUNT(DISTINCT {t})",
    "SUM(DISTINCT {n})",
    "SUM({n}) FILTER (WHERE {t} = 'a')",
    "COUNT(*) FILTER (WHERE {n} IS NULL)",
    "SUM({n}) / NULLIF(COUNT({t}), 0)",
    "SUM(CASE WHEN {t} = 'b' THEN {n} END)",
    "MAX({n}) - MIN({n})",
    "SUM({n}) - (SELECT SUM(n) FROM source.stops)",
]
CONDITIONS = [
    "{n} > 4",
    "{t} IS NOT NULL AND {n} <> 3",
    "{t} = 'a' OR {n} IS NULL",
    "{t} = 'a' AND {n} > 2 OR ({t} IS NULL OR {n} < 7) AND {n} > 2",
    "NOT EXISTS (SELECT 1 FROM source.stops AS x WHERE x.id = {i} AND x.n > 4)",
    "{i} IN (SELECT id FROM source.stops WHERE n < 7)",
    "{n} > (SELECT AVG(n) FROM source.stops)",
]
KEYS = ["{t}", "{n}", "COALESCE({t}, '-')", "CASE WHEN {n} > 4 THEN 'much' ELSE {t} END", "{n} % 3"]
GROUPS = ["COUNT(*) > 1", "SUM({n}) > 5", "MIN({n}) < 4 OR COUNT({t}) = 0", "AVG({n}) >= 3"]
# Windows give the same for rows that tie: they rank them, or have no frame in rows.
WINDOWS = [
    "RANK() OVER (PARTITION BY {t} ORDER BY {n} DESC)",
    "DENSE_RANK() OVER (ORDER BY {n} NULLS FIRST)",
    "COUNT(*) OVER (PARTITION BY {t})",
    "COUNT({t}) OVER (ORDER BY {n})",
    "SUM({n}) OVER (PARTITION BY {t} ORDER BY {i})",
    "MAX({t}) OVER ()",
    "MIN({n}) OVER (PARTITION BY {n} % 3)",
]


def fill(draw: st.DrawFn, source: Source, templates: list[str]) -> str:
    """One of the templates, about columns of the source."""
    texts, numbers = draw(st.sampled_from(source.texts)), draw(st.sampled_from(source.numbers))
    return draw(st.sampled_from(templates)).format(t=texts, n=f"({numbers})", i=source.id)


@st.composite
def queries(draw: st.DrawFn) -> str:
    """Groups of a source."""
    source = draw(st.sampled_from(SOURCES))
    filled = functools.partial(fill, draw, source)
    keys = list(dict.fromkeys(filled(KEYS) for _ in range(draw(st.integers(1, 2)))))
    aggregates = [filled(AGGREGATES) for _ in range(draw(st.integers(1, 3)))]
    columns = [f"{key} AS k{i}" for i, key in enumerate(keys)] + [f"{a} AS a{i}" for i, a in enumerate(aggregates)]
    query = f"SELECT {', '.join(columns)} FROM {source.read}"
    if draw(st.booleans()):
        query += f" WHERE {filled(CONDITIONS)}"
    query += f" GROUP BY {', '.join(str(i + 1) for i in range(len(keys)))}"
    if draw(st.booleans()):
        query += f" HAVING {filled(GROUPS)}"
    if draw(st.integers(0, 3)) == 0:
        query = f"SELECT k0, COUNT(*) AS n, MAX(a0) AS most FROM ({query}) AS g GROUP BY 1"
    return query


@st.composite
def row_queries(draw: st.DrawFn) -> str:
    """Rows of a source, some of them chosen by a window, or the first of them."""
    source = draw(st.sampled_from(SOURCES))
    filled = functools.partial(fill, draw, source)
    rows = list(dict.fromkeys(filled(KEYS) for _ in range(draw(st.integers(1, 3)))))
    windows = [filled(WINDOWS) for _ in range(draw(st.integers(0, 2)))]
    columns = [f"{item} AS c{i}" for i, item in enumerate([*rows, *windows])]
    query = f"SELECT {'DISTINCT ' if draw(st.booleans()) else ''}{', '.join(columns)} FROM {source.read}"
    if draw(st.booleans()):
        query += f" WHERE {filled(CONDITIONS)}"
    chosen = draw(st.integers(0, 2))
    if chosen == 1 and not windows:  # rows that tie are equal in all that is selected
        query += f" QUALIFY ROW_NUMBER() OVER (PARTITION BY {rows[0]} ORDER BY {', '.join(rows)}) <= 2"
    elif chosen == 2:
        query += f" QUALIFY {filled(WINDOWS[:-2])} > 1"
    if draw(st.integers(0, 2)) == 0:
        query += f" ORDER BY {', '.join(str(i + 1) for i in range(len(columns)))} LIMIT 3"
    return query


@functools.lru_cache(maxsize=4)
def log_of(seed: int) -> duckdb.DuckDBPyConnection:
    return random_log(seed)


@examples
@given(query=queries(), seed=st.integers(0, 3))
def test_a_finish_over_the_sums_of_changes_is_the_query(query: str, seed: int) -> None:
    note(query)
    compare_the_finish(log_of(seed), query)


@examples
@given(query=row_queries(), seed=st.integers(0, 3))
def test_a_finish_over_rows_is_the_query(query: str, seed: int) -> None:
    note(query)
    compare_the_finish(log_of(seed), query)
