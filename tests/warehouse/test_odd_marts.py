"""Marts in whatever SQL a user may write: each is published as the warehouse has it, or refused with the way out.

They are views of the warehouse beside those of the project, all in one home and one publication, so that a mart that
cannot be published shows that it keeps no other from it.
"""

from __future__ import annotations

import shutil
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import duckdb
import pytest
from click.testing import CliRunner

from company import UNTIL, two_days
from lockstep import changelog, publish, warehouse
from lockstep.cli import cli
from lockstep.errors import LockstepError
from lockstep.published import sql
from shop import Shop, land

__all__ = ["two_days"]  # a fixture

# By what is odd about it. {schema.model} is the physical name, as SQLMesh renders it.
PUBLISHED = {
    "in_a_list_of_domains": """
        WITH serving AS (
          SELECT served_from, as_of, verified_cut FROM {ops.serving} AS serving WHERE domain IN ('orders'))
        SELECT served.region, SUM(served.orders) AS orders, MAX(served.as_of) AS as_of FROM (
          SELECT o.region, o.orders, serving.as_of FROM {live.orders} AS o CROSS JOIN serving
          WHERE (SELECT s.served_from FROM serving AS s) = 'live' UNION ALL
          SELECT v.region, v.orders, serving.as_of FROM {verified.orders} AS v CROSS JOIN serving
          WHERE (SELECT s.served_from FROM serving AS s) = 'rebuild'
            AND v.cut = (SELECT s.verified_cut FROM serving AS s)
        ) AS served GROUP BY served.region""",
    "domain_on_the_right": """
        SELECT serving.served_from, serving.as_of FROM {ops.serving} AS serving
        WHERE 'delivery_status' = serving.domain""",
    "either_of_two_domains": """
        SELECT serving.domain, serving.served_from, serving.as_of FROM {ops.serving} AS serving
        WHERE serving.domain = 'orders' OR serving.domain LIKE 'customer%'""",
    "live_beside_verified": """
        WITH serving AS (
          SELECT serving.verified_cut FROM {ops.serving} AS serving WHERE serving.domain = 'customer_activity')
        SELECT 'live' AS of, c.customer_id, c.orders FROM {live.customer_activity} AS c UNION ALL
        SELECT 'verified' AS of, c.customer_id, c.orders FROM {verified.customer_activity} AS c
        WHERE c.cut = (SELECT serving.verified_cut FROM serving AS serving)""",
    "another_serving": """
        WITH serving AS (SELECT 'me' AS served_from, NULL::TIMESTAMP AS verified_cut), s AS (
          SELECT serving.as_of FROM {ops.serving} AS serving WHERE serving.domain = 'orders')
        SELECT s.as_of, (SELECT serving.served_from AS served_from FROM serving AS serving) AS served_from
        FROM s AS s""",
    "renamed_in_a_cte": """
        WITH serving(served_from, verified_cut) AS (
          SELECT serving.mode, serving.verified_cut FROM {ops.serving} AS serving WHERE serving.domain = 'orders')
        SELECT (SELECT serving.served_from AS served_from FROM serving AS serving) AS mode""",
    "what_holds_it": """
        SELECT serving.domain, serving.held, serving.reason FROM {ops.serving} AS serving
        WHERE serving.domain = 'orders'""",
    "ctes_that_shadow": """
        WITH orders AS (SELECT o.region, o.orders FROM {mart.orders} AS o), folded AS (SELECT 7 AS n), inner_one AS (
          WITH orders AS (SELECT 1 AS n), folded AS (SELECT 2 AS n)
          SELECT orders.n + folded.n AS n FROM orders AS orders CROSS JOIN folded AS folded)
        SELECT orders.region, SUM(orders.orders) AS orders, MAX(inner_one.n) AS n, MAX(folded.n) AS m
        FROM orders AS orders CROSS JOIN inner_one CROSS JOIN folded AS folded GROUP BY orders.region""",
    "quoted_names": """
        SELECT "o o"."region" AS "SELECT ""region"" FROM x", SUM("o o".orders) AS "a , b"
        FROM {mart.orders} AS "o o" GROUP BY ALL""",
    "strings_like_tables": """
        SELECT ' , ' AS comma, 'FROM {mart.orders} AS orders' AS table_name,
          '(SELECT serving.served_from AS served_from FROM serving AS serving)' AS query, COUNT(*) AS orders
        FROM {mart.orders} AS orders WHERE orders.region <> ' , ' -- FROM {mart.routes} AS routes
        """,
    "lateral": """
        SELECT o.region, twice.n FROM {mart.orders} AS o, LATERAL (SELECT o.orders * 2 AS n) AS twice""",
    "lateral_over_live_figures": """
        SELECT d.region, d.status, o.orders FROM {mart.delivery_status} AS d
        CROSS JOIN LATERAL (SELECT SUM(m.orders) AS orders FROM {mart.orders} AS m WHERE m.region = d.region) AS o
        WHERE d.region IN (SELECT m.region FROM {mart.orders} AS m)""",
    "correlated_with_the_log": """
        SELECT o.region,
          (SELECT COUNT(*) FROM {changes.orders} AS c WHERE STRUCT_EXTRACT(c.after, 'region') = o.region) AS n,
          (SELECT MAX(p.category) FROM {dims.products} AS p WHERE p.product_id = o.product_id) AS category
        FROM {mart.orders} AS o""",
    "struct_access": """
        SELECT s.o.region AS region, s.o['orders'] AS orders, struct_extract(s.o, 'units') AS units
        FROM (SELECT {{'region': o.region, 'orders': o.orders, 'units': o.units}} AS o FROM {mart.orders} AS o) AS s""",
    "subqueries": """
        SELECT d.region, d.shipments, (SELECT SUM(o.orders) FROM {mart.orders} AS o WHERE o.region = d.region) AS orders
        FROM (SELECT s.region, SUM(s.shipments) AS shipments FROM {mart.delivery_status} AS s GROUP BY s.region) AS d
        WHERE EXISTS (SELECT 1 FROM {mart.orders} AS o WHERE o.region = d.region)
          AND d.region IN (SELECT o.region FROM {live.orders} AS o)""",
    "pivot": """
        SELECT p.* FROM (SELECT o.region, o.status, o.orders FROM {mart.orders} AS o) AS o
        PIVOT (SUM(orders) FOR status IN ('completed', 'paid') GROUP BY region) AS p""",
    "unpivot": """
        SELECT u.region, u.measure, u.n FROM (SELECT o.region, o.orders, o.units FROM {mart.orders} AS o) AS o
        UNPIVOT (n FOR measure IN (orders, units)) AS u""",
    "qualify": """
        SELECT o.region, o.ordered_hour, o.orders FROM {mart.orders} AS o
        QUALIFY ROW_NUMBER() OVER (PARTITION BY o.region ORDER BY o.ordered_hour, o.product_id, o.status) = 1""",
    "named_window": """
        SELECT h.region, h.window_hour, SUM(h.late) OVER w AS late FROM {mart.delivery_hourly} AS h
        WINDOW w AS (
          PARTITION BY h.region ORDER BY h.window_hour RANGE BETWEEN INTERVAL 3 HOUR PRECEDING AND CURRENT ROW)""",
    "comma_before_a_left_join": """
        SELECT o.region, v.n, r.driver_id FROM {mart.orders} AS o, (VALUES (1), (2)) AS v(n)
        LEFT JOIN {mart.routes} AS r ON r.route_id = v.n""",
    "cross_join_before_a_left_join": """
        SELECT o.region, v.n, r.driver_id FROM {mart.orders} AS o CROSS JOIN (VALUES (1), (2)) AS v(n)
        LEFT JOIN {mart.routes} AS r ON r.route_id = v.n + o.orders""",
    "cross_join_of_a_right_join": """
        SELECT v.n, d.driver_id, r.route_id FROM (VALUES (1), (2)) AS v(n) CROSS JOIN (
          {mart.vehicle_positions} AS d
          RIGHT JOIN {mart.routes} AS r ON r.driver_id = d.driver_id AND r.route_id < 5)""",
    "right_join_of_a_cross_join": """
        SELECT v.n, d.driver_id, r.route_id FROM ((VALUES (1), (2)) AS v(n) CROSS JOIN {mart.vehicle_positions} AS d)
        RIGHT JOIN {mart.routes} AS r ON r.driver_id = d.driver_id AND r.route_id < 5""",
    "using_and_natural": """
        SELECT a.* FROM (SELECT o.region, SUM(o.orders) AS orders FROM {mart.orders} AS o GROUP BY ALL) AS a
        JOIN (SELECT DISTINCT d.region FROM {mart.delivery_status} AS d) AS b USING (region)
        NATURAL JOIN (SELECT DISTINCT c.region FROM {mart.customers} AS c) AS c""",
    "full_join": """
        SELECT COALESCE(r.driver_id, p.driver_id) AS driver_id, r.route_id, p.latitude FROM {mart.routes} AS r
        FULL JOIN {mart.vehicle_positions} AS p ON p.driver_id = r.driver_id""",
    "asof_join": """
        SELECT o.region, o.ordered_hour, d.shipments FROM {mart.orders_hourly} AS o
        ASOF LEFT JOIN (
          SELECT h.window_hour, SUM(h.shipments) AS shipments FROM {mart.delivery_hourly} AS h GROUP BY ALL)
        AS d ON o.ordered_hour >= d.window_hour""",
    "semi_and_anti": """
        SELECT r.route_id FROM {mart.routes} AS r SEMI JOIN {mart.vehicle_positions} AS p ON p.driver_id = r.driver_id
        UNION ALL SELECT -r.route_id FROM {mart.routes} AS r
        ANTI JOIN {mart.vehicle_positions} AS p ON p.driver_id = r.driver_id""",
    "set_operations": """
        (SELECT o.region AS r FROM {mart.orders} AS o EXCEPT SELECT d.region FROM {mart.delivery_status} AS d)
        UNION (
          SELECT o.status AS r FROM {mart.orders} AS o INTERSECT ALL SELECT d.status FROM {mart.delivery_status} AS d)
        UNION ALL SELECT 'x' AS r ORDER BY r DESC LIMIT 5""",
    "union_by_name": """
        SELECT o.region, o.orders FROM {mart.orders} AS o UNION ALL BY NAME
        SELECT d.shipments, d.region FROM {mart.delivery_status} AS d""",
    "grouping_sets": """
        SELECT o.region, o.status, SUM(o.orders) AS orders, GROUPING(o.region) AS g FROM {mart.orders} AS o
        GROUP BY GROUPING SETS ((o.region, o.status), (o.region), ()) HAVING SUM(o.orders) > 1""",
    "recursive": """
        WITH RECURSIVE days AS (
          SELECT DATE '2026-11-16' AS d UNION ALL SELECT d + 1 FROM days WHERE d < '2026-11-19')
        SELECT days.d, COALESCE(SUM(o.orders), 0) AS orders FROM days AS days
        LEFT JOIN {mart.orders} AS o ON o.ordered_hour::DATE = days.d::DATE GROUP BY ALL""",
    "lists_and_lambdas": """
        SELECT o.region, list_sum([x * 2 for x in LIST(o.orders ORDER BY o.orders) if x > 0]) AS n,
          list_transform(LIST(DISTINCT o.status ORDER BY o.status), lambda s: s || ' , ' || s) AS s
        FROM {mart.orders} AS o GROUP BY o.region""",
    "unnest_and_range": """
        SELECT d.region, u.n, r.i
        FROM {mart.delivery_status} AS d, UNNEST([d.late, d.shipments]) AS u(n), RANGE(2) AS r(i)""",
    "distinct_on": """
        SELECT DISTINCT ON (h.region) h.region, h.window_hour, h.shipments FROM {mart.delivery_hourly} AS h
        ORDER BY h.region, h.window_hour DESC""",
    "a_column_called_moment": """
        SELECT MAX(o.ordered_hour) AS moment, o.region FROM {mart.orders} AS o GROUP BY o.region ORDER BY moment""",
    "two_tables_of_the_log": """
        SELECT o.position, s.position AS of_shipment FROM {changes.orders} AS o
        JOIN {changes.shipments} AS s ON STRUCT_EXTRACT(s.after, 'order_id') = STRUCT_EXTRACT(o.after, 'order_id')
        WHERE o.op = 'c' AND s.op = 'u'""",
    "no_row_of_the_log": """
        SELECT s.position FROM {changes.shipments} AS s
        LEFT JOIN {changes.orders} AS o ON o.after.order_id = s.after.order_id AND o.op = 'd' WHERE o.op IS NULL""",
    "fields_in_another_case": """
        SELECT o.After.Region AS region, STRUCT_EXTRACT(o.AFTER, 'STATUS') AS status, o.POSITION AS position
        FROM {changes.orders} AS o WHERE o.Op IN ('c', 'r')""",
    "whole_images": """
        SELECT o.position, o.after, after IS NULL AS is_deleted FROM {changes.orders} AS o
        WHERE NOT o.before IS NULL""",
    "rows_as_structs": """
        SELECT row_of.position, row_of.after.region AS region
        FROM (SELECT o AS row_of FROM {changes.orders} AS o) AS q WHERE row_of.op = 'c'""",
    "names_of_its_own_for_the_log": """
        SELECT l.p, l.new.region AS region FROM {changes.orders} AS l(p, logged, committed, kind, old, new, tx, seq)
        WHERE l.kind = 'c'""",
    "a_condition_of_this_moment": """
        SELECT o.position FROM {changes.orders} AS o
        WHERE o.logged_at < now()::TIMESTAMP + INTERVAL 100 YEAR AND o.op = 'u'""",
    "a_condition_or_another": """
        SELECT COUNT(*) AS n FROM {changes.orders} AS o
        WHERE (o.op = 'c' AND o.after.region = 'east') OR o.position % 7 = 0""",
    "doubles": """
        SELECT o.region, (SUM(o.orders) * 0.5::DOUBLE)::BIGINT AS by_double,
          (SUM(o.orders) * 0.5)::BIGINT AS by_decimal, 1000000000000000000000::DOUBLE AS n,
          0.1::DECIMAL(3, 2) AS tenth FROM {mart.orders} AS o GROUP BY o.region""",
    "a_cast_to_a_fold": """
        SELECT o.region::TEXT AS region, SUM(o.orders)::BIGINT AS orders FROM {mart.orders} AS o
        WHERE o.region <> 'FROM' GROUP BY 1 HAVING SUM(o.orders) <> 0""",
}
REFUSED = {
    "an_exponent": ("SELECT (o.orders * 5e-1)::BIGINT AS n FROM {mart.orders} AS o", "without an exponent"),
    "in_parentheses": (
        "SELECT 1 AS n FROM {mart.orders} AS o LEFT JOIN ({mart.routes} AS r CROSS JOIN {mart.customers} AS c) "
        "ON c.region = o.region",
        "CTE of its own",
    ),
    "a_file": ("SELECT f.content FROM read_text('/etc/hostname') AS f", "reads read_text().*kind FULL"),
    "a_file_by_its_name": ("SELECT f.n FROM '{home}/n.csv' AS f", "n.csv, which is not a model"),
    "a_catalog": ("SELECT t.table_name FROM duckdb_tables() AS t", "reads duckdb_tables"),
    "a_table_of_nobody": ("SELECT n.x FROM warehouse.main.nobody AS n", "nobody, which is not a model"),
    "signed_rows": ("SELECT s.__weight AS w FROM {signed.orders} AS s", "only from the published cut on"),
    "hours": ("SELECT h.orders FROM {hourly.orders} AS h", "only from the published cut on"),
    "rows_at_the_cut": ("SELECT s.region FROM {source.orders} AS s", "source.orders, the rows at the cut"),
    "a_cte_with_a_dot": (
        'WITH "changes.watermark" AS (SELECT 1 AS n) SELECT w.n FROM "changes.watermark" AS w CROSS JOIN {mart.orders}',
        "without a dot",
    ),
    "a_macro": ("SELECT macro_of_the_warehouse(o.orders) AS n FROM {mart.orders} AS o", "macro_of_the_warehouse"),
    "text_for_a_number": (
        "SELECT o.region::INT AS region, SUM(o.orders)::BIGINT AS orders FROM {mart.orders} AS o "
        "GROUP BY o.region::INT HAVING SUM(o.orders) <> 0",
        "text_for_a_number cannot be published: .*INT32",
    ),
    "a_refused_mart": ("SELECT x.n FROM {mart.an_exponent} AS x", "mart.an_exponent cannot be published"),
}


@pytest.fixture(scope="module")
def home(two_days: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A home with all these marts, published."""
    home = tmp_path_factory.mktemp("odd") / "home"
    shutil.copytree(two_days, home, symlinks=True)
    (home / "n.csv").write_text("n\n1\n", encoding="utf-8")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LOCKSTEP_HOME", str(home))
        with warehouse.writer(home) as connection:
            connection.execute("CREATE TABLE main.nobody AS SELECT 1 AS x")
            connection.execute("CREATE VIEW main.no_model AS SELECT 1 AS x")
            connection.execute("CREATE MACRO macro_of_the_warehouse(n) AS n + 1")
        for name, query in {**PUBLISHED, **{n: query for n, (query, _) in REFUSED.items()}}.items():
            add_mart(home, name, query)
        publish.publish(home)
        sql.parse.cache_clear()
        publish.publish(home)  # which takes all that the first has proven for granted
        shop = Shop(UNTIL)
        for n in range(4):
            shop.order(10_000_000 + n, customer_id=10_000_000, region="east", ordered_at=UNTIL)
            shop.insert("shipments", 10_000_000 + n, order_id=10_000_000 + n, status="out_for_delivery")
        shop.change(10_000_001, status="completed")
        shop.delete(10_000_002)
        shop.insert("routes", 10_000_000, driver_id=2)
        land(home, shop.changes)
        time.sleep(changelog.SETTLING.total_seconds() + 0.05)
        yield home


def add_mart(home: Path, name: str, query: str) -> None:
    with warehouse.writer(home) as connection:
        views = connection.execute(
            "SELECT schema_name, view_name, sql FROM duckdb_views() WHERE NOT internal"
        ).fetchall()
        physical = {
            f"{schema}.{view}": created.split(" FROM ")[-1].strip().rstrip(";")
            for schema, view, created in views
            if "__" not in schema
        }
        for model, relation in physical.items():
            query = query.replace(f"{{{model}}}", relation)
        query = query.replace("{home}", str(home)).replace("{{", "{").replace("}}", "}")
        connection.execute(f"CREATE VIEW sqlmesh__mart.mart__{name}__1 AS {query}")
        connection.execute(f"CREATE VIEW mart.{name} AS SELECT * FROM warehouse.sqlmesh__mart.mart__{name}__1")


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_mart_is_published_as_the_warehouse_has_it(home: Path, name: str) -> None:
    rows = {}
    with warehouse.reader(home) as theirs, duckdb.connect(str(home / "analytics.duckdb"), read_only=True) as ours:
        for which, connection in (("warehouse", theirs), ("published", ours)):
            result = connection.execute(f"SELECT * FROM mart.{name}")
            rows[which] = [str(result.description), Counter(map(repr, result.fetchall()))]
        then = ours.execute(f"SELECT COUNT(*) FROM mart.{name}_as_of(TIMESTAMP '2026-11-18 10:00')").fetchall()
    assert rows["published"] == rows["warehouse"]
    assert rows["warehouse"][1] and then != [(0,)]


@pytest.mark.parametrize("name", REFUSED)
def test_a_mart_that_cannot_be_published_is_named(home: Path, name: str) -> None:
    with duckdb.connect(str(home / "analytics.duckdb"), read_only=True) as connection:
        [(reason,)] = connection.execute("SELECT reason FROM ops.refused WHERE mart = ?", [f"mart.{name}"]).fetchall()
        with pytest.raises(duckdb.CatalogException):
            connection.execute(f"FROM mart.{name}")
        assert connection.execute("SELECT 1 FROM about WHERE mart = ?", [f"mart.{name}"]).fetchall() == []
    with pytest.raises(LockstepError, match=REFUSED[name][1]):
        raise LockstepError(reason)


def test_what_duckdb_cannot_plan_is_refused_by_each_publication(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copy = tmp_path / "home"
    shutil.copytree(home, copy, symlinks=True)
    (copy / "analytics.duckdb").unlink()
    monkeypatch.setenv("LOCKSTEP_HOME", str(copy))
    monkeypatch.setattr(sql, "_is_correlated", lambda _: False)
    for _ in range(2):  # the second grows out of the first
        published = publish.publish(copy)
        assert "flattening correlated subquery" in published.refused["mart.subqueries"]
        assert "mart.subqueries" not in {row["mart"] for row in published.marts}


def test_nothing_else_is_refused_and_the_command_says_what_is(home: Path) -> None:
    with duckdb.connect(str(home / "analytics.duckdb"), read_only=True) as connection:
        refused = {mart for (mart,) in connection.execute("SELECT mart FROM ops.refused").fetchall()}
    assert refused == {f"mart.{name}" for name in REFUSED}
    result = CliRunner().invoke(cli, ["publish"], env={"LOCKSTEP_HOME": str(home)})
    assert result.exit_code == 1
    for mart in refused:
        assert mart in result.output
