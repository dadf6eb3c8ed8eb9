"""Queries that Hypothesis makes up, of tables that each test says."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass

from hypothesis import strategies as st


@dataclass(frozen=True)
class Reads:
    """What is read, and which texts and numbers it has; `id` is a number that is never NULL."""

    read: str
    id: str
    texts: tuple[str, ...]
    numbers: tuple[str, ...]


ORDERS = Reads("source.orders AS o", "o.id", ("o.region",), ("o.amount", "o.amount * 2", "o.id"))
JOINED = (("o.region", "s.region"), ("o.amount", "s.n", "o.amount * s.n", "s.n - o.id"))
SOURCES = [
    ORDERS,
    Reads("source.stops AS s", "s.id", ("s.region",), ("s.n", "s.id + s.n")),
    Reads("source.orders AS o JOIN source.stops AS s ON s.id = o.id", "o.id", *JOINED),
    Reads("source.orders AS o JOIN source.stops AS s ON s.region = o.region", "o.id", *JOINED),
    Reads("source.orders AS o JOIN source.stops AS s ON s.n < o.amount", "o.id", *JOINED),
    Reads("source.orders AS o LEFT JOIN source.stops AS s ON s.id = o.id AND s.n > 2", "o.id", *JOINED),
    Reads(
        "source.orders AS o JOIN source.stops AS s ON s.region = o.region LEFT JOIN source.orders AS p ON p.id = s.n",
        "o.id",
        ("s.region", "p.region"),
        ("o.amount", "p.amount", "p.amount * s.n - o.id"),
    ),
    Reads(
        "source.orders AS o JOIN source.orders AS p ON p.region = o.region AND p.id < o.id",
        "o.id",
        ("o.region", "p.region"),
        ("o.amount", "p.amount - o.amount"),
    ),
    Reads(
        "source.orders AS o LEFT JOIN seeds.regions AS r ON r.region = o.region AND r.least <= o.amount",
        "o.id",
        ("o.region", "r.label"),
        ("o.amount", "r.least"),
    ),
    Reads(
        "(SELECT id, region, amount FROM source.orders UNION ALL SELECT id, region, n FROM source.stops) AS o",
        "o.id",
        ("o.region",),
        ("o.amount",),
    ),
]
AGGREGATES = [
    "COUNT(*)::BIGINT",
    "COUNT({n})::BIGINT",
    "SUM({n})::BIGINT",
    "AVG({n})::DOUBLE",
    "MIN({n})::BIGINT",
    "MAX({t})::TEXT",
    "COUNT(DISTINCT {t})::BIGINT",
    "SUM(DISTINCT {n})::BIGINT",
    "(SUM({n}) FILTER (WHERE {t} = 'a'))::BIGINT",
    "(COUNT(*) FILTER (WHERE {n} IS NULL))::BIGINT",
    "(SUM({n}) / NULLIF(COUNT({t}), 0))::DOUBLE",
    "SUM(CASE WHEN {t} = 'b' THEN {n} END)::BIGINT",
    "(MAX({n}) - MIN({n}))::BIGINT",
    "(SUM({n}) - (SELECT SUM(n) FROM source.stops))::BIGINT",
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
KEYS = [
    "{t}::TEXT",
    "{n}::BIGINT",
    "COALESCE({t}, '-')::TEXT",
    "(CASE WHEN {n} > 4 THEN 'much' ELSE {t} END)::TEXT",
    "({n} % 3)::BIGINT",
]
GROUPS = ["COUNT(*) > 1", "SUM({n}) > 5", "MIN({n}) < 4 OR COUNT({t}) = 0", "AVG({n}) >= 3"]


def fill(draw: st.DrawFn, source: Reads, templates: list[str]) -> str:
    """One of the templates, about columns of the source."""
    texts, numbers = draw(st.sampled_from(source.texts)), draw(st.sampled_from(source.numbers))
    return draw(st.sampled_from(templates)).format(t=texts, n=f"({numbers})", i=source.id)


@st.composite
def queries(draw: st.DrawFn, sources: Sequence[Reads]) -> str:
    """Groups of a source, with the keys k0, k1."""
    source = draw(st.sampled_from(sources))
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
        query = f"SELECT k0, COUNT(*)::BIGINT AS n, MAX(a0) AS most FROM ({query}) AS g GROUP BY 1"
    return query
