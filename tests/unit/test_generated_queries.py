"""Queries that Hypothesis makes up: a finish over the sums of changes is the query as written, at many positions.

Joins of two or three tables by key and off it, of one with itself, LEFT JOIN by key and of a seed, UNION ALL, IN and
NOT EXISTS by key, CASE, FILTER, DISTINCT, extremes, ratios, HAVING, groups of groups, scalar subqueries; NULL in any
column. Rows without groups, with windows, QUALIFY, DISTINCT and LIMIT, over the same joins and conditions.
A failure shrinks to a query and the seed of a log: put both into test_signed_rows.py.
"""

from __future__ import annotations

import functools
import os

import duckdb
from hypothesis import given, note, settings
from hypothesis import strategies as st

from random_log import compare_the_finish, random_log
from random_queries import CONDITIONS, KEYS, SOURCES, fill, queries

examples = settings(max_examples=int(os.environ.get("HYPOTHESIS_EXAMPLES", "25")), derandomize="CI" in os.environ)

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
@given(query=queries(SOURCES), seed=st.integers(0, 3))
def test_a_finish_over_the_sums_of_changes_is_the_query(query: str, seed: int) -> None:
    note(query)
    compare_the_finish(log_of(seed), query)


@examples
@given(query=row_queries(), seed=st.integers(0, 3))
def test_a_finish_over_rows_is_the_query(query: str, seed: int) -> None:
    note(query)
    compare_the_finish(log_of(seed), query)
