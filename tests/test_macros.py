"""What the macros write, where SQL unit tests cannot reach: called as the models call them, and run by DuckDB."""

from __future__ import annotations

import hashlib
import importlib.util
from pathlib import Path

import duckdb
import pytest
from sqlglot import parse_one
from sqlmesh.core.macros import MacroEvaluator, macro
from sqlmesh.utils.errors import MacroEvalError, SQLMeshError

MACROS = Path(__file__).parents[1] / "macros"


@pytest.fixture(scope="module")
def evaluator():
    """The project's macros as SQLMesh loads them, without leaving them registered for other tests."""
    registered = macro.get_registry()
    for path in sorted(MACROS.glob("[!_]*.py")):
        spec = importlib.util.spec_from_file_location(f"macros_under_test_{path.stem}", path)
        spec.loader.exec_module(importlib.util.module_from_spec(spec))
    result = MacroEvaluator(dialect="duckdb")
    macro.set_registry(registered)
    return result


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


def divergence(evaluator, measures, rows):
    values = ", ".join(str(row) for row in rows) or "(0, 0, 0, 0)"
    cells = f"(VALUES {values}) AS c(rebuild_orders, increments_orders, rebuild_cents, increments_cents)"
    condition = "TRUE" if rows else "FALSE"
    query = f"SELECT @divergence({measures}) AS divergence FROM {cells} WHERE {condition}"
    return duckdb.sql(expand(evaluator, query)).fetchone()[0]


def test_divergence_adds_absolute_differences_per_measure(evaluator):
    assert divergence(evaluator, "(orders, cents)", [(1, 1, 500, 499), (1, 2, 500, 501)]) == {"orders": 1, "cents": 2}


def test_divergence_of_no_cells_is_zero(evaluator):
    assert divergence(evaluator, "(orders, cents)", []) == {"orders": 0, "cents": 0}


def test_divergence_of_a_single_measure(evaluator):
    assert divergence(evaluator, "(cents)", [(1, 2, 500, 499)]) == {"cents": 1}


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


def test_each_domain_gives_lists_of_the_contract(evaluator):
    [blueprint] = evaluator.send("each_domain").expressions
    values = {p.this.name: p.expression.sql("duckdb") for p in blueprint.expressions}
    assert values["domain"] == "orders"
    assert values["domain_name"] == "'orders'"
    assert values["sources"] == "('orders', 'products')"
    assert values["grain"] == "(ordered_hour, product_id, region, status)"
    assert values["hourly_grain"] == "(log_hour, ordered_hour, product_id, region, status)"
    assert values["cut_grain"] == "(cut, ordered_hour, product_id, region, status)"
    assert values["sums"] == "(orders, units, revenue_cents, high_value_orders)"


def test_is_high_value_is_strictly_over_1000(evaluator):
    query = expand(evaluator, "SELECT @is_high_value(100000), @is_high_value(100001), @is_high_value(-100001)")
    assert duckdb.sql(query).fetchone() == (False, True, False)


@pytest.mark.parametrize(
    ("call", "named"),
    [
        ("@fingerprint('region', (orders), 'r_')", "@fingerprint: grain"),
        ("@fingerprint((region), ('orders'), 'r_')", "@fingerprint: measures"),
        ("@divergence((1, 2))", "@divergence: measures"),
        ("@union_of_domains('reconcile.orders_receipts')", "@union_of_domains: model"),
    ],
)
def test_a_bad_argument_is_named(evaluator, call, named):
    with pytest.raises((MacroEvalError, SQLMeshError)) as error:
        expand(evaluator, f"SELECT {call}")
    assert named in str(error.value) + str(error.value.__cause__)
