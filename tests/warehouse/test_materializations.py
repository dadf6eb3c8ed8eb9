"""What the materializations replace and what they leave alone, on an adapter of SQLMesh's over a table of a few rows.

Awkward cases: a row at the first instant of the interval and one just before its end, rows on both outer edges, an
interval that returns nothing, a value that the query does not return, more values than are kept, a query that fails.
"""

from __future__ import annotations

import importlib.util
import json
from datetime import UTC, datetime, timedelta
from pathlib import Path

import duckdb
import pytest
from sqlglot import exp, parse_one
from sqlmesh.core.dialect import parse
from sqlmesh.core.engine_adapter.duckdb import DuckDBEngineAdapter
from sqlmesh.core.model import load_sql_based_model

from lockstep import receipts
from lockstep.errors import LockstepError

FILE = Path(__file__).parents[2] / "materializations" / "atomic.py"
MICROSECOND = timedelta(microseconds=1)
START, END = datetime(2026, 1, 5, 10), datetime(2026, 1, 5, 12)


@pytest.fixture(scope="module")
def atomic():
    spec = importlib.util.spec_from_file_location("materializations_under_test", FILE)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class Table:
    """A table of (day, n) that a materialization writes into."""

    def __init__(self, materialization, properties):
        self.connection = duckdb.connect()
        self.connection.execute("CREATE TABLE t (day TIMESTAMP, n BIGINT)")
        self._materialization = materialization(DuckDBEngineAdapter(lambda: self.connection))
        kind = f"CUSTOM (materialization '{materialization.NAME}', materialization_properties ({properties}))"
        text = f"MODEL (name s.t, kind {kind}, columns (day TIMESTAMP, n BIGINT)); SELECT 1"
        self._model = load_sql_based_model(parse(text, default_dialect="duckdb"), dialect="duckdb")

    def fill(self, *rows):
        self.connection.executemany("INSERT INTO t VALUES (?, ?)", rows)

    def insert(self, query, **bounds):
        query = parse_one(query, dialect="duckdb")
        self._materialization.insert("t", query, self._model, is_first_insert=False, render_kwargs={}, **bounds)

    def rows(self):
        return self.connection.execute("SELECT day, n FROM t ORDER BY ALL").fetchall()


OUTSIDE = [(START - MICROSECOND, 1), (END, 1)]
INSIDE = [(START, 1), (START + MICROSECOND, 1), (END - MICROSECOND, 1)]


class TestByTimeRange:
    @pytest.fixture
    def table(self, atomic):
        table = Table(atomic.AtomicByTimeRange, "time_column = day")
        table.fill(*OUTSIDE, *INSIDE)
        return table

    @pytest.mark.parametrize("zone", [None, UTC], ids=["naive", "utc"])
    def test_replaces_the_interval_from_its_first_instant_to_its_last(self, table, zone):
        query = f"SELECT TIMESTAMP '{START}' AS day, 7::BIGINT AS n"
        table.insert(query, start=START.replace(tzinfo=zone), end=END.replace(tzinfo=zone))
        assert table.rows() == sorted([*OUTSIDE, (START, 7)])

    def test_an_interval_that_returns_nothing_has_no_rows_any_more(self, table):
        table.insert("SELECT NULL::TIMESTAMP AS day, 1::BIGINT AS n WHERE FALSE", start=START, end=END)
        assert table.rows() == OUTSIDE

    def test_a_query_that_fails_leaves_the_rows_as_they_were(self, table):
        with pytest.raises(duckdb.ConversionException):
            table.insert("SELECT TIMESTAMP '2026-01-05' AS day, CAST('x' AS BIGINT) AS n", start=START, end=END)
        assert table.rows() == sorted([*OUTSIDE, *INSIDE])
        table.insert("SELECT NULL::TIMESTAMP AS day, 1::BIGINT AS n WHERE FALSE", start=START, end=END)
        assert table.rows() == OUTSIDE

    def test_a_process_stopped_between_delete_and_insert_leaves_the_rows_as_they_were(self, table, monkeypatch):
        def stop(*_, **__):
            raise KeyboardInterrupt

        monkeypatch.setattr(DuckDBEngineAdapter, "insert_append", stop)
        with pytest.raises(KeyboardInterrupt):
            table.insert(f"SELECT TIMESTAMP '{START}' AS day, 7::BIGINT AS n", start=START, end=END)
        assert table.rows() == sorted([*OUTSIDE, *INSIDE])


DAYS = [datetime(2026, 1, day) for day in range(1, 10)]


class TestByValue:
    @pytest.fixture
    def table(self, atomic):
        return Table(atomic.AtomicByValue, "key_column = day, keep = 3")

    def test_replaces_the_value_that_the_query_returns_and_no_other(self, table):
        table.fill((DAYS[0], 1), (DAYS[0], 2), (DAYS[1], 3), (DAYS[2], 4))
        table.insert(f"SELECT TIMESTAMP '{DAYS[0]}' AS day, 7::BIGINT AS n")
        assert table.rows() == [(DAYS[0], 7), (DAYS[1], 3), (DAYS[2], 4)]

    def test_a_query_without_rows_changes_nothing(self, table):
        table.fill((DAYS[0], 1), (DAYS[1], 3))
        table.insert("SELECT NULL::TIMESTAMP AS day, 1::BIGINT AS n WHERE FALSE")
        assert table.rows() == [(DAYS[0], 1), (DAYS[1], 3)]

    def test_keeps_the_last_values_however_many_rows_each_has(self, table):
        table.fill((DAYS[0], 1), (DAYS[1], 2), (DAYS[1], 3), (DAYS[2], 4), (DAYS[2], 5))
        table.insert(f"SELECT TIMESTAMP '{DAYS[3]}' AS day, 7::BIGINT AS n UNION ALL SELECT TIMESTAMP '{DAYS[3]}', 8")
        assert table.rows() == [(DAYS[1], 2), (DAYS[1], 3), (DAYS[2], 4), (DAYS[2], 5), (DAYS[3], 7), (DAYS[3], 8)]

    def test_a_query_that_fails_leaves_the_rows_as_they_were(self, table):
        table.fill((DAYS[0], 1))
        with pytest.raises(duckdb.ConversionException):
            table.insert(f"SELECT TIMESTAMP '{DAYS[0]}' AS day, CAST('x' AS BIGINT) AS n")
        assert table.rows() == [(DAYS[0], 1)]


@pytest.fixture
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("LOCKSTEP_HOME", str(tmp_path))
    return tmp_path


def test_append_only_takes_nothing_away(atomic, home):
    table = Table(atomic.AppendOnly, "number_column = n")
    table.fill((DAYS[0], 1))
    for _ in range(2):
        table.insert(f"SELECT TIMESTAMP '{DAYS[0]}' AS day, 0::BIGINT AS n")
    assert [day for day, _ in table.rows()] == [DAYS[0]] * 3
    assert table.rows()[0] == (DAYS[0], 1)


def test_append_only_numbers_go_on_after_the_clock_was_set_back(atomic, home):
    table = Table(atomic.AppendOnly, "number_column = n")
    in_2099 = 4_070_908_800_000_000
    table.fill((DAYS[0], in_2099))
    for day in DAYS[1:3]:
        table.insert(f"SELECT TIMESTAMP '{day}' AS day, 0::BIGINT AS n")
    assert table.rows() == [(DAYS[0], in_2099), (DAYS[1], in_2099 + 1), (DAYS[2], in_2099 + 2)]


def archived(home, *rows):
    (home / "receipts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def test_append_only_goes_on_from_the_archive_whatever_its_columns_were(atomic, home):
    """Without it a renamed or added column would cost the evidence of all nights before."""
    archived(
        home,
        {"model": "s.t", "at": str(DAYS[0]), "n": 1},
        {"model": "s.t", "n": 2, "gone": 7},
        {"model": "s.other", "day": str(DAYS[1]), "n": 3},
        {"model": "s.t", "day": str(DAYS[1]), "n": 4},
    )
    table = Table(atomic.AppendOnly, "number_column = n, renamed = 'at day'")
    table.fill((DAYS[1], 4))
    table.insert(f"SELECT TIMESTAMP '{DAYS[2]}' AS day, 0::BIGINT AS n")
    assert table.rows()[:3] == [(DAYS[0], 1), (DAYS[1], 4), (DAYS[2], table.rows()[2][1])]
    assert table.rows()[3] == (None, 2)  # NULLs come last


def test_append_only_does_not_go_on_without_an_archive_that_can_be_read(atomic, home):
    archived(home, {"model": "s.t", "n": 1})
    (home / "receipts.jsonl").write_text((home / "receipts.jsonl").read_text()[:-5])
    table = Table(atomic.AppendOnly, "number_column = n")
    with pytest.raises(LockstepError, match=r"receipts\.jsonl is not JSON lines"):
        table.insert(f"SELECT TIMESTAMP '{DAYS[2]}' AS day, 0::BIGINT AS n")
    assert table.rows() == []


def test_the_archive_keeps_nested_values_and_gets_each_receipt_once(home, monkeypatch):
    """Receipts of a version that did not number them are numbered by their times."""
    monkeypatch.setattr(receipts, "load", lambda: {"orders": None, "routes": None})
    connection = duckdb.connect()
    measures = [{"measure": "orders", "cells": 3, "worst": 0.1 + 0.2}]
    connection.execute("CREATE SCHEMA reconcile")
    connection.execute(
        "CREATE TABLE reconcile.orders_receipts (reconciled_at TIMESTAMP, "
        "measures STRUCT(measure TEXT, cells BIGINT, worst DOUBLE)[], mode TEXT)"
    )
    connection.execute(
        "INSERT INTO reconcile.orders_receipts VALUES (?, ?, ?), ('2026-01-04', [], NULL)",
        [datetime(2026, 1, 5, 10, 0, 0, 1), measures, "it's \n ok"],
    )
    for _ in range(2):
        receipts.archive(home, lambda query: connection.execute(query).fetchall())
    newer = "SELECT 0::BIGINT AS sequence, *, NULL::TEXT[] AS compared FROM reconcile.orders_receipts"
    connection.execute(f"CREATE TABLE t AS {newer} LIMIT 0")
    columns = {
        name: parse_one(type, into=exp.DataType, dialect="duckdb")
        for name, type in connection.execute(
            "SELECT column_name, data_type FROM duckdb_columns() WHERE table_name = 't'"
        ).fetchall()
    }
    for _ in range(2):
        receipts.restore(home, connection, "reconcile.orders_receipts", "t", columns, {}, "sequence")
    assert connection.execute("FROM t ORDER BY sequence").fetchall() == [
        (1_767_484_800_000_000, datetime(2026, 1, 4), [], None, None),
        (1_767_607_200_000_001, datetime(2026, 1, 5, 10, 0, 0, 1), measures, "it's \n ok", None),
    ]
