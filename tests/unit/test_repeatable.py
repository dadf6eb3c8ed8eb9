"""What a query must not have that is recomputed: anything that gives other figures for the same rows."""

from __future__ import annotations

import pytest
from sqlglot import parse_one

from lockstep.derive import Refused, Table
from lockstep.derive.repeatable import require_repeatable

CATALOG = {
    "source.orders": Table({"id": "BIGINT", "region": "TEXT", "cents": "BIGINT", "made_at": "TIMESTAMP"}, ("id",)),
    "source.customers": Table({"id": "BIGINT", "region": "TEXT"}, ("id",)),
    "seeds.regions": Table({"region": "TEXT"}, ("region",), is_static=True),
}


def check(query: str) -> None:
    require_repeatable(parse_one(query, dialect="duckdb"), CATALOG)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("query", "said"),
    [
        ("SELECT RANDOM() AS r, id FROM source.orders", "RANDOM()."),
        ("SELECT id FROM source.orders WHERE made_at < NOW()", "NOW()."),
        ("SELECT id FROM source.orders WHERE made_at < CURRENT_DATE", "()."),
        ("SELECT id, UUID() AS key FROM source.orders", "()."),
        ("SELECT ANY_VALUE(id) AS id FROM source.orders", "ANY_VALUE() without ORDER BY"),
        ("SELECT STRING_AGG(region) AS regions FROM source.orders", "without ORDER BY"),
        ("SELECT LIST(region) AS regions FROM source.orders", "without ORDER BY"),
        ("SELECT APPROX_QUANTILE(cents, 0.5) AS middle FROM source.orders", "APPROX_QUANTILE() without"),
        ("SELECT id FROM source.orders LIMIT 3", "LIMIT without ORDER BY"),
        ("SELECT id FROM (SELECT id FROM source.orders OFFSET 3) AS o", "LIMIT without ORDER BY"),
        ("SELECT id FROM source.orders USING SAMPLE 10 ROWS", "SAMPLE"),
        ("SELECT o.id FROM source.orders AS o TABLESAMPLE 10%", "SAMPLE"),
        ("SELECT * FROM source.orders", "Name the columns."),
        ("SELECT c.region, o.* FROM source.customers AS c JOIN source.orders AS o USING (id)", "Name the columns."),
        ("SELECT id FROM source.customers WHERE EXISTS (SELECT DISTINCT * FROM source.orders OFFSET 1)", "Name the"),
        (
            "SELECT id FROM source.customers WHERE EXISTS (SELECT * FROM source.orders GROUP BY ALL)",
            "Name the columns.",
        ),
        ("SELECT id FROM source.customers WHERE EXISTS (SELECT UNNEST([COLUMNS(*)]) FROM source.orders)", "Name the"),
        ("SELECT id FROM source.customers WHERE EXISTS (FROM source.orders EXCEPT FROM source.customers)", "Name the"),
        (
            "SELECT id FROM source.customers WHERE EXISTS (SELECT id FROM (FROM source.orders) AS o)",
            "Name the columns.",
        ),
        ("SELECT region FROM source.orders NATURAL JOIN source.customers", "NATURAL JOIN"),
        ("SELECT DISTINCT ON (region) region, id FROM source.orders", "DISTINCT ON without ORDER BY"),
        ("SELECT id, ROW_NUMBER() OVER (PARTITION BY region) AS n FROM source.orders", "in which order it goes"),
        ("SELECT id, LAG(cents) OVER () AS n FROM source.orders", "in which order it goes"),
        ("SELECT COUNT(DISTINCT o) AS n FROM source.orders AS o", "o, a whole row"),
        ("SELECT orders AS o FROM source.orders", "orders, a whole row"),
        ("FROM source.orders PIVOT (SUM(cents) FOR region IN ('north'))", ""),
        ("SELECT id FROM source.orders AS o POSITIONAL JOIN source.customers AS c", ""),
        ("SELECT region FROM seeds.regions", "It reads no table of source"),
        ("SELECT nothing FROM source.orders", "DuckDB does not take the query."),
    ],
)
def test_what_gives_other_figures_is_refused(query: str, said: str) -> None:
    with pytest.raises(Refused) as raised:
        check(query)
    assert said in str(raised.value)


@pytest.mark.parametrize(
    "query",
    [
        "SELECT COUNT(*) AS n FROM source.orders AS o FULL JOIN source.customers AS c USING (region) GROUP BY region",
        "SELECT STRING_AGG(region ORDER BY id) AS regions, MODE(cents) AS usual FROM source.orders",
        "SELECT * FROM (SELECT id, region FROM source.orders ORDER BY id LIMIT 3) AS o",
        "SELECT region, COUNT(*) AS orders FROM source.orders GROUP BY 1 HAVING orders > 1 ORDER BY orders",
        "SELECT orders FROM (SELECT region, COUNT(*) AS orders FROM source.orders GROUP BY 1) AS each_region",
        "SELECT DISTINCT ON (region) region, id FROM source.orders ORDER BY region, id",
        "SELECT id, SUM(cents) OVER (PARTITION BY region) AS all_cents FROM source.orders",
        "SELECT r.*, (SELECT COUNT(*) FROM source.orders) AS n FROM seeds.regions AS r",
        "SELECT id FROM source.customers AS c WHERE EXISTS (SELECT * FROM source.orders AS o WHERE o.id = c.id)",
        "SELECT id FROM source.customers AS c WHERE NOT EXISTS (SELECT o.* FROM source.orders AS o WHERE o.id = c.id)",
        "SELECT CASE WHEN cents < 0 THEN ERROR('negative') ELSE 'x' END AS x FROM source.orders",
    ],
)
def test_any_other_query_is_taken(query: str) -> None:
    check(query)
