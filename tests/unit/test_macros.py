"""What the macros write, where SQL unit tests cannot reach: called as the models call them, and run by DuckDB."""

from __future__ import annotations

import hashlib
import importlib.util
import math
import sys
from dataclasses import replace
from datetime import datetime
from pathlib import Path

import duckdb
import pytest
from sqlglot import parse_one
from sqlmesh.core.macros import MacroEvaluator, macro
from sqlmesh.utils.errors import MacroEvalError, SQLMeshError

MACROS = Path(__file__).parents[2] / "macros"


@pytest.fixture(scope="module")
def evaluator():
    """The project's macros as SQLMesh loads them, without leaving them registered for other tests."""
    registered = macro.get_registry()
    modules = {}
    for path in sorted(MACROS.glob("[!_]*.py")):
        spec = importlib.util.spec_from_file_location(f"macros.{path.stem}", path)
        modules[spec.name] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(modules[spec.name])
    result = MacroEvaluator(dialect="duckdb")
    macro.set_registry(registered)
    with pytest.MonkeyPatch.context() as monkeypatch:
        for name, module in modules.items():
            monkeypatch.setitem(sys.modules, name, module)
        yield result


def expand(evaluator, sql):
    return evaluator.transform(parse_one(sql, dialect="duckdb")).sql("duckdb")


def fingerprint(evaluator, rows, grain="(region, status)", measures="(orders, cents)"):
    """The fingerprint of rows (region, status, orders, cents)."""
    values = ", ".join(f"({', '.join('NULL' if v is None else repr(v) for v in row)})" for row in rows)
    cells = f"(VALUES {values}) AS c(region, status, r_orders, r_cents)"
    query = f"SELECT SUM(@fingerprint({grain}, {measures}, 'r_')) FROM {cells}"
    return duckdb.sql(expand(evaluator, query)).fetchone()[0]


EAST, WEST = ("east", "paid", 1, 500), ("west", "paid", 2, 700)


def test_fingerprint_does_not_depend_on_the_order_of_rows(evaluator):
    assert fingerprint(evaluator, [EAST, WEST]) == fingerprint(evaluator, [WEST, EAST])


def test_fingerprint_is_the_same_number_everywhere(evaluator):
    assert fingerprint(evaluator, [EAST]) == int(hashlib.md5(b"=east|=paid|=1|=500").hexdigest()[:15], 16)


@pytest.mark.parametrize(
    "other",
    [("east", "paid", 1, 501), ("east", "paid", 2, 500), ("east", "failed", 1, 500), ("west", "paid", 1, 500)],
)
def test_fingerprint_sees_every_column(evaluator, other):
    assert fingerprint(evaluator, [EAST]) != fingerprint(evaluator, [other])


def test_fingerprint_tells_null_from_the_empty_text_and_from_its_name(evaluator):
    prints = {fingerprint(evaluator, [(region, "paid", 1, 500)]) for region in (None, "", "NULL")}
    assert len(prints) == 3


def test_fingerprint_tells_where_a_column_ends(evaluator):
    assert fingerprint(evaluator, [("a", "b", 1, 11)]) != fingerprint(evaluator, [("ab", "", 1, 11)])
    assert fingerprint(evaluator, [("a", "b", 1, 11)]) != fingerprint(evaluator, [("a", "b", 11, 1)])


def test_fingerprint_does_not_cancel_a_cell_that_is_there_twice(evaluator):
    assert fingerprint(evaluator, [EAST, WEST, WEST]) != fingerprint(evaluator, [EAST])
    assert fingerprint(evaluator, [EAST, WEST, WEST]) != fingerprint(evaluator, [EAST, WEST])
    # nor does moving a cent from one cell to another, which leaves every sum as it was
    moved = [("east", "paid", 1, 501), ("west", "paid", 2, 699)]
    assert fingerprint(evaluator, moved) != fingerprint(evaluator, [EAST, WEST])


def test_fingerprint_of_many_cells_does_not_overflow(evaluator):
    assert fingerprint(evaluator, [EAST] * 10_000) == 10_000 * fingerprint(evaluator, [EAST])


def test_fingerprint_of_a_single_grain_column_includes_it(evaluator):
    one, other = (fingerprint(evaluator, [row], "(region)", "(orders)") for row in (EAST, ("west", "paid", 1, 500)))
    assert one != other


def test_union_of_domains_reads_the_model_of_each(evaluator, monkeypatch):
    from lockstep import contracts

    monkeypatch.setattr(contracts, "load", lambda: {"orders": None, "routes": None})
    query = expand(evaluator, "SELECT * FROM (@union_of_domains('reconcile.{domain}_receipts')) AS r")
    assert "SELECT * FROM reconcile.orders_receipts UNION ALL SELECT * FROM reconcile.routes_receipts" in query


def test_union_of_source_tables_reads_every_table(evaluator):
    from lockstep.schema import TABLES

    query = expand(evaluator, "SELECT * FROM (@union_of_source_tables()) AS t")
    assert query.count("UNION ALL") == len(TABLES) - 1
    assert all(f"'{table}' AS source_table FROM changes.{table}" in query for table in TABLES)


def test_a_table_may_have_a_reserved_word_for_its_name(evaluator, monkeypatch):
    from lockstep.schema import TABLES

    monkeypatch.setattr(TABLES, "_found", {"order": TABLES["orders"], "größe": TABLES["orders"]})
    query = expand(evaluator, "SELECT * FROM (@union_of_source_tables()) AS t")
    assert """'order' AS source_table FROM changes."order" UNION ALL""" in query


def test_signed_rows_have_columns_of_any_name(evaluator):
    columns = ["position", "before", "select", "Order Id", "extra_text", "weight"]
    image = ", ".join(f"'{c}': '{c} {{which}}'" for c in (*columns, "extra"))
    rows = f"SELECT {{{image.format(which='was')}}} AS before, {{{image.format(which='is')}}} AS after"
    listed = ", ".join(f"source_column('{c}', 'TEXT')" for c in columns)
    query = expand(
        evaluator,
        f"SELECT @signed_columns(({listed}), c.before, c.after, signs.weight) "
        "FROM c, (VALUES (-1), (1)) AS signs(weight)",
    )
    found = duckdb.sql(f"WITH c AS ({rows}) {query} ORDER BY signs.weight")
    assert found.columns == [*columns, "extra"]
    assert found.fetchall() == [tuple(f"{c} {which}" for c in (*columns, "extra")) for which in ("was", "is")]


@pytest.mark.parametrize(
    ("sources", "together"),
    [
        ({"one": ["orders"], "two": ["shipments"]}, {"one": ["orders"], "two": ["shipments"]}),
        (
            {"one": ["orders", "products"], "two": ["orders"]},
            {"one": ["products", "orders"], "two": ["products", "orders"]},
        ),
        (
            {"one": ["orders", "products"], "two": ["products", "drivers"], "three": ["drivers"], "four": ["routes"]},
            {**{n: ["products", "orders", "drivers"] for n in ("one", "two", "three")}, "four": ["routes"]},
        ),
    ],
)
def test_domains_that_share_a_table_share_a_cut(monkeypatch, sources, together):
    from types import SimpleNamespace

    from lockstep import contracts

    loaded = {domain: SimpleNamespace(sources=tables) for domain, tables in sources.items()}
    monkeypatch.setattr(contracts, "load", lambda: loaded)
    assert {domain: list(contracts.tables_of_one_cut(domain)) for domain in sources} == together


def test_union_of_source_tables_of_a_project_with_one(evaluator, monkeypatch):
    from lockstep.schema import TABLES

    monkeypatch.setattr(TABLES, "_found", {"orders": TABLES["orders"]})
    query = expand(evaluator, "SELECT * FROM (@union_of_source_tables()) AS t")
    assert query == "SELECT * FROM (SELECT position, logged_at, 'orders' AS source_table FROM changes.orders) AS t"


def test_verified_cuts_reads_every_domain(evaluator):
    from lockstep.contracts import load

    query = expand(evaluator, "SELECT * FROM (@verified_cuts()) AS c")
    assert all(
        f"SELECT DISTINCT '{domain}' AS domain, cut, evidence_digest FROM verified.{domain}" in query
        for domain in load()
    )


def test_materializations_tells_an_edit_of_their_code_and_no_other(evaluator, monkeypatch, tmp_path):
    """SQLMesh knows only the names of materializations: without it an edit would compute nothing anew."""
    from lockstep import project

    (tmp_path / "materializations").mkdir()
    monkeypatch.setattr(project, "project", lambda: tmp_path)

    def digest(code):
        (tmp_path / "materializations" / "atomic.py").write_text(code)
        return expand(evaluator, "SELECT @materializations() AS code")

    before = digest("column = 1\n")
    assert digest("# The column.\ncolumn  =  1\n") == before
    assert digest("column = 2\n") != before


def test_contract_mode_is_read_when_it_is_evaluated(evaluator, monkeypatch):
    from lockstep import contracts

    changed = {"orders": replace(contracts.load()["orders"], mode="batch")}
    monkeypatch.setattr(contracts, "load", lambda: changed)
    assert value(evaluator, "@contract_mode('orders')") == "batch"


def test_each_domain_gives_lists_of_the_contract(evaluator):
    blueprints = {
        values["domain"]: values
        for blueprint in evaluator.send("each_domain").expressions
        for values in [{p.this.name: p.expression.sql("duckdb") for p in blueprint.expressions}]
    }
    orders = blueprints["orders"]
    assert orders["domain_name"] == "'orders'"
    assert orders["sources"] == "('orders', 'products')"
    assert orders["grain"] == "(ordered_hour, product_id, region, status)"
    assert orders["hourly_grain"] == "(log_hour, ordered_hour, product_id, region, status)"
    assert orders["cut_grain"] == "(cut, ordered_hour, product_id, region, status)"
    assert orders["measure_names"] == orders["state"] == "(orders, units, revenue_cents, high_value_orders)"
    count = "MEASURE('orders', 'sum', 'BIGINT', 0.0, 0.0)"
    assert orders["measures"].startswith(f"({count}, MEASURE('units', ")
    positions = blueprints["vehicle_positions"]
    assert positions["grain"] == "(driver_id)"
    assert positions["measure_names"] == "(latitude, longitude, speed_kmh, recorded_at)"
    assert positions["state"] == "(latest_at, latest_position, latitude, longitude, speed_kmh, recorded_at)"
    assert "MEASURE('recorded_at', 'latest', 'TIMESTAMP', 172800.0, 0.0, 0.05)" in positions["measures"]
    assert "FIGURE('recorded_at', 'TIMESTAMP', 'TRUE')" in positions["figures"]


# Merging: rows (latest_at, latest_position, cents, speed, seen_at), of which each macro takes what it needs.
SUM = "measure('cents', 'sum', 'BIGINT', 0, 0)"
LATEST = "measure('speed', 'latest', 'DOUBLE', 1.5, 0.1)"
NOON, LATER = "2026-01-05 12:00:00", "2026-01-05 12:00:30"


def merge(evaluator, projection, *rows):
    values = ", ".join(f"(TIMESTAMP '{at}', {position}, {cents}, {speed})" for at, position, cents, speed in rows)
    query = f"SELECT {projection} FROM (VALUES {values}) AS c(latest_at, latest_position, cents, speed)"
    return duckdb.sql(expand(evaluator, query)).fetchone()


def test_merged_adds_sums_and_carries_no_times_without_a_latest_measure(evaluator):
    assert merge(evaluator, f"@merged(({SUM}))", (NOON, 1, 5, 0), (LATER, 2, -7, 0)) == (-2,)


def test_merged_takes_the_latest_whatever_its_value_and_of_equal_times_the_last_position(evaluator):
    rows = [(LATER, 2, 5, 90.0), (LATER, 9, 6, 10.0), (NOON, 10, 7, 99.0)]
    expected = (datetime(2026, 1, 5, 12, 0, 30), 9, 18, 10.0)
    assert merge(evaluator, f"@merged(({SUM}, {LATEST}))", *rows) == expected
    assert merge(evaluator, f"@merged(({SUM}, {LATEST}))", *reversed(rows)) == expected


def test_merged_keeps_a_null_that_is_the_latest(evaluator):
    row = merge(evaluator, f"@merged(({LATEST}))", (NOON, 1, 0, 5.0), (LATER, 2, 0, "NULL"))
    assert row == (datetime(2026, 1, 5, 12, 0, 30), 2, None)


def test_merged_takes_maximum_and_minimum(evaluator):
    measures = "(measure('cents', 'max', 'BIGINT', 0, 0), measure('speed', 'min', 'DOUBLE', 0, 0))"
    assert merge(evaluator, f"@merged({measures})", (NOON, 1, 5, 2.0), (LATER, 2, 3, 4.0)) == (5, 2.0)


def test_merged_where_looks_at_the_rows_that_meet_the_condition(evaluator):
    projection = f"@merged_where(({SUM}, {LATEST}), early_, latest_at < TIMESTAMP '{LATER}')"
    rows = [(NOON, 1, 5, 1.0), (NOON, 2, 6, 2.0), (LATER, 3, 7, 3.0)]
    assert merge(evaluator, projection, *rows) == (11, 2.0)


def test_merged_where_of_no_rows_is_zero_for_a_sum_and_null_for_the_rest(evaluator):
    measures = f"({SUM}, {LATEST}, measure('latest_position', 'max', 'BIGINT', 0, 0))"
    assert merge(evaluator, f"@merged_where({measures}, no_, FALSE)", (NOON, 1, 5, 1.0)) == (0, None, None)


def sides(evaluator, projection, *rows, columns="r_cents, i_cents, r_speed, i_speed"):
    query = f"SELECT {projection} FROM (VALUES {', '.join(rows)}) AS c({columns})"
    return [row[0] for row in duckdb.sql(expand(evaluator, query)).fetchall()]


def test_a_cell_is_there_while_a_sum_is_not_zero_or_another_measure_not_null(evaluator):
    rows = ["(0, 1, NULL::DOUBLE, NULL::DOUBLE)", "(-1, 0, NULL, NULL)", "(0, 0, 0.0, NULL)"]
    assert sides(evaluator, f"@is_there(({SUM}, {LATEST}), r_)", *rows) == [False, True, True]
    assert sides(evaluator, "@is_there((measure('i_cents', 'sum', 'BIGINT', 0, 0)))", *rows) == [True, False, False]


def test_sides_are_identical_where_every_measure_is_null_included(evaluator):
    rows = ["(1, 1, NULL, NULL)", "(1, 1, 2.0, 2.0)", "(1, 2, 2.0, 2.0)", "(1, 1, 2.0, NULL)"]
    expected = [True, True, False, False]
    assert sides(evaluator, f"@are_identical(({SUM}, {LATEST}), r_, i_)", *rows) == expected


@pytest.mark.parametrize(
    ("rebuilt", "increments", "within"),
    [
        ("2.0", "3.5", True),  # the absolute tolerance of 1.5
        ("2.0", "3.5001", False),
        ("100.0", "110.0", True),  # the relative one of 0.1, of the rebuild's value
        ("100.0", "90.0", True),
        ("-100.0", "-110.0", True),
        ("100.0", "110.1", False),
        ("90.0", "100.0", False),
        ("NULL", "NULL", True),
        ("0.0", "NULL", False),
        ("NULL", "0.0", False),
    ],
)
def test_two_values_are_within_tolerance_as_far_as_either_bound_allows(evaluator, rebuilt, increments, within):
    row = f"(1, 1, {rebuilt}::DOUBLE, {increments}::DOUBLE)"
    assert sides(evaluator, f"@are_within_tolerance(({SUM}, {LATEST}), r_, i_)", row) == [within]


FEW = "measure('speed', 'latest', 'DOUBLE', 10, 0, 0.5, 4)"


@pytest.mark.parametrize(
    ("apart", "within"),
    [
        ([0, 0, 1, 2], [True, True, True, True]),
        ([0, 1, 1, 1], [True, False, False, False]),  # three of four cells differ
        ([0, 0, "NULL", 1], [True, True, False, True]),
        ([0, 1, 1, "NULL"], [True, False, False, False]),  # one is missing, and so differs
        ([0, 0, 1, 7], [True, True, True, True]),  # 4 apart at the median
        ([0, 0, 2, 7], [True, True, False, False]),
        ([4], [True]),  # one cell may always differ
        ([5], [False]),
        ([0, 0, 0, 11], [True, True, True, False]),
    ],
)
def test_differences_are_within_tolerance_while_few_cells_differ_and_little_at_the_median(evaluator, apart, within):
    rows = [f"({i}, 20.0, 20.0 + {x})" for i, x in enumerate(apart)]
    columns = "cell, rebuild_speed, increments_speed"
    query = f"@are_within_tolerance(({FEW}), rebuild_, increments_)"
    assert sides(evaluator, query, *rows, columns=columns) == within
    [(name, cells, differing, beyond, *_, is_within)] = evidence(evaluator, f"({FEW})", columns, *rows)
    assert (name, cells, differing) == ("speed", len(apart), len([x for x in apart if x != 0]))
    assert (beyond, is_within) == (within.count(False), all(within))


def test_a_sum_is_within_tolerance_only_where_it_is_the_same(evaluator):
    rows = ["(1, 1, 0.0, 0.0)", "(1, 2, 0.0, 0.0)"]
    assert sides(evaluator, f"@are_within_tolerance(({SUM}, {LATEST}), r_, i_)", *rows) == [True, False]


def test_timestamps_lie_seconds_apart(evaluator):
    rows = [f"(TIMESTAMP '{NOON}', TIMESTAMP '{at}')" for at in (LATER, "2026-01-05 11:59:29.999999")]
    measure = "measure('at', 'latest', 'TIMESTAMP', 30, 0)"
    assert sides(evaluator, f"@are_within_tolerance(({measure}), r_, i_)", *rows, columns="r_at, i_at") == [True, False]


def test_texts_are_the_same_or_not(evaluator):
    rows = ["('a', 'a')", "('a', 'b')", "('a', NULL)"]
    measure = "measure('note', 'latest', 'TEXT', 0, 0)"
    found = sides(evaluator, f"@are_within_tolerance(({measure}), r_, i_)", *rows, columns="r_note, i_note")
    assert found == [True, False, False]


def evidence(evaluator, measures, columns, *rows):
    values = ", ".join(rows)
    query = (
        f"SELECT @evidence({measures}) FROM (VALUES {values}) AS c({columns}) WHERE NOT {columns.split(',')[0]} IS NULL"
    )
    return [tuple(entry.values()) for entry in duckdb.sql(expand(evaluator, query)).fetchone()[0]]


def test_evidence_tells_each_measure_apart(evaluator):
    columns = "rebuild_cents, increments_cents, rebuild_speed, increments_speed"
    rows = ["(100, 99, 0.0, 1.0)", "(10, 12, 5.0, 8.0)", "(0, 1, 100.0, 109.0)", "(1, 1, 7.0, 7.0)"]
    assert evidence(evaluator, f"({SUM}, {LATEST})", columns, *rows) == [
        ("cents", 4, 3, 3, 2, 0.2, False),
        ("speed", 4, 3, 1, 9.0, 0.6, False),
    ]


def test_evidence_of_texts_has_no_distance(evaluator):
    measure = "(measure('note', 'latest', 'TEXT', 0, 0))"
    found = evidence(evaluator, measure, "rebuild_note, increments_note", "('a', 'a')", "('a', 'b')")
    assert found == [("note", 2, 1, 1, 0, 0, False)]


def test_evidence_of_no_cells_is_zero(evaluator):
    found = evidence(evaluator, f"({SUM})", "rebuild_cents, increments_cents", "(NULL::BIGINT, 1)")
    assert found == [("cents", 0, 0, 0, 0, 0, True)]


def value(evaluator, expression):
    return duckdb.sql(expand(evaluator, f"SELECT {expression}")).fetchone()[0]


@pytest.mark.parametrize(("rule", "limit"), [("is_high_value", 100_000), ("is_alert_value", 1_000_000)])
def test_a_limit_of_an_amount_is_not_over_it(evaluator, rule, limit):
    found = [value(evaluator, f"@{rule}({amount})") for amount in (limit, limit + 1, -limit - 1)]
    assert found == [False, True, False]


def test_called_off_is_what_ends_an_order_without_a_sale(evaluator):
    statuses = ("created", "paid", "shipped", "completed", "cancelled", "failed", "returned", "unknown")
    found = {status for status in statuses if value(evaluator, f"@is_called_off('{status}')")}
    assert found == {"cancelled", "failed", "returned"}


@pytest.mark.parametrize(
    ("at", "begins"),
    [
        ("10:00:00", "10:00:00"),
        ("10:04:59.999999", "10:00:00"),
        ("10:05:00", "10:05:00"),
        ("10:59:59.999999", "10:55:00"),
        ("23:59:59.999999", "23:55:00"),
    ],
)
def test_five_minutes_begin_with_their_first_instant(evaluator, at, begins):
    found = value(evaluator, f"@five_minutes(TIMESTAMP '2026-01-05 {at}')")
    assert found == datetime.fromisoformat(f"2026-01-05 {begins}")


@pytest.mark.parametrize(
    ("recorded", "timely"),
    [
        ("09:57:00", True),
        ("09:56:59.999999", False),
        ("10:00:00", True),
        ("10:03:00", True),
        ("10:03:00.000001", False),
    ],
)
def test_a_ping_is_timely_within_three_minutes_of_its_commit(evaluator, recorded, timely):
    call = f"@is_timely(TIMESTAMP '2026-01-05 {recorded}', TIMESTAMP '2026-01-05 10:00:00')"
    assert value(evaluator, call) is timely
    assert value(evaluator, f"FALSE AND {call}") is False  # stays one term inside a larger condition


@pytest.mark.parametrize(("done", "on_time"), [("10:15:00", True), ("10:15:00.000001", False), ("09:00:00", True)])
def test_a_stop_is_on_time_up_to_the_grace_after_its_plan(evaluator, done, on_time):
    plan = "TIMESTAMP '2026-01-05 10:00:00'"
    assert value(evaluator, f"@is_on_time(TIMESTAMP '2026-01-05 {done}', {plan})") is on_time
    assert value(evaluator, f"{plan} + @on_time_grace()") == datetime(2026, 1, 5, 10, 15)


def test_a_stop_that_is_not_completed_is_neither(evaluator):
    assert value(evaluator, "@is_on_time(NULL::TIMESTAMP, TIMESTAMP '2026-01-05 10:00:00')") is None


@pytest.mark.parametrize(
    ("points", "metres"),
    [
        ("52.52, 13.405, 48.8566, 2.3522", 877_460),  # Berlin to Paris
        ("0, 0, 1, 0", 6_371_000 * math.pi / 180),
        ("60, 10, 60, 11", 55_597),  # a degree of longitude, half as wide there
        ("52.52, 13.405, 52.52, 13.405", 0),
        ("12.3, 45.6, -12.3, -134.4", 6_371_000 * math.pi),  # the opposite point of the earth
        ("0, 179.5, 0, -179.5", 6_371_000 * math.pi / 180),  # over the date line
    ],
)
def test_distance_in_metres(evaluator, points, metres):
    assert value(evaluator, f"@distance_m({points})") == pytest.approx(metres, rel=1e-4, abs=1e-3)


@pytest.mark.parametrize("points", ["NULL, 0, 0, 0", "0, NULL, 0, 0", "0, 0, NULL, 0", "0, 0, 0, NULL"])
def test_distance_from_or_to_an_unknown_point_is_unknown(evaluator, points):
    assert value(evaluator, f"@distance_m({points})") is None


def test_travel_time_is_at_25_km_an_hour(evaluator):
    at = "TIMESTAMP '2026-01-05 10:00:00'"
    assert value(evaluator, f"{at} + @travel_time(12500 + 12500)") == datetime(2026, 1, 5, 11)


def test_dimension_key_is_the_md5_of_dimension_and_natural_key(evaluator):
    assert value(evaluator, "@dimension_key('driver', 7)") == hashlib.md5(b"driver:7").hexdigest()
    assert value(evaluator, "@dimension_key('driver', NULL::BIGINT)") is None


@pytest.mark.parametrize(
    ("call", "named"),
    [
        ("@fingerprint('region', (orders), 'r_')", "@fingerprint: grain"),
        ("@fingerprint((region), ('orders'), 'r_')", "@fingerprint: measures"),
        ("@merged((orders))", "@merged: measures"),
        ("@merged((measure('a', 'sum', 'BIGINT', 0, 0), orders))", "@merged: measures"),
        ("@merged_where(orders, r_, TRUE)", "@merged_where: measures"),
        ("@is_there((orders, cents))", "@is_there: measures"),
        ("@are_identical((orders), r_, i_)", "@are_identical: measures"),
        ("@are_within_tolerance((1, 2), r_, i_)", "@are_within_tolerance: measures"),
        ("@evidence('orders')", "@evidence: measures"),
        ("@union_of_domains('reconcile.orders_receipts')", "@union_of_domains: model"),
    ],
)
def test_a_bad_argument_is_named(evaluator, call, named):
    with pytest.raises((MacroEvalError, SQLMeshError)) as error:
        expand(evaluator, f"SELECT {call}")
    assert named in str(error.value) + str(error.value.__cause__)


@pytest.mark.parametrize(
    ("rebuilt", "added_up", "is_nonunique"),
    [
        ([("a", 1)], [("a", 1)], False),
        ([("a", 1), ("b", None)], [("b", None), ("a", 1)], False),
        ([("a", 1), ("a", 1)], [("a", 1), ("a", 1)], False),
        ([("a", 1), ("a", 1)], [("a", 1)], True),
        ([("a", 1), ("b", 2)], [("a", 2), ("b", 1)], True),  # each column has the same values
        ([("a", 1), ("a", 1), ("b", 1)], [("a", 1), ("b", 1), ("b", 1)], True),
    ],
)
def test_rows_of_one_cell_are_compared_as_a_multiset(evaluator, rebuilt, added_up, is_nonunique):
    measures = "(measure('status', 'recomputed', 'TEXT', 0, 0), measure('orders', 'recomputed', 'BIGINT', 0, 0))"
    rows = [(1, *row) for row in rebuilt] + [(0, *row) for row in added_up]
    values = ", ".join(f"({', '.join('NULL' if v is None else repr(v) for v in row)})" for row in rows)
    cells = expand(
        evaluator,
        f"SELECT @merged_where({measures}, rebuild_, rebuilt = 1), "
        f"@merged_where({measures}, increments_, rebuilt = 0), "
        "SUM(rebuilt) AS copies, SUM(1 - rebuilt) AS added_up "
        f"FROM (VALUES {values}) AS sides(rebuilt, status, orders)",
    )
    query = expand(evaluator, f"SELECT @is_nonunique({measures}) AS is_nonunique")
    assert duckdb.sql(f"{query} FROM ({cells}) AS cells").fetchall() == [(is_nonunique,)]
