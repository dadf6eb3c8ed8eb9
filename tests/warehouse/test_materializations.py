"""What the materializations replace and what they leave alone, on an adapter of SQLMesh's over a table of a few rows.

Awkward cases: a row at the first instant of the interval and one just before its end, rows on both outer edges, an
interval that returns nothing, a value that the query does not return, more values than are kept, a query that fails.
"""

from __future__ import annotations

import importlib.util
from datetime import UTC, datetime, timedelta
from pathlib import Path

import duckdb
import pytest
from sqlglot import parse_one
from sqlmesh.core.dialect import parse
from sqlmesh.core.engine_adapter.duckdb import DuckDBEngineAdapter
from sqlmesh.core.model import load_sql_based_model

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


def test_append_only_takes_nothing_away(atomic):
    table = Table(atomic.AppendOnly, "a = b")
    table.fill((DAYS[0], 1))
    for _ in range(2):
        table.insert(f"SELECT TIMESTAMP '{DAYS[0]}' AS day, 1::BIGINT AS n")
    assert table.rows() == [(DAYS[0], 1)] * 3
