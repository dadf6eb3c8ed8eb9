"""The contract files as editors leave them, and whether they say what is planned.

Awkward cases: a byte order mark, as Excel begins a CSV file; an edit that was not planned; a number spelled otherwise.
"""

from __future__ import annotations

import shutil
from pathlib import Path

import duckdb
import pytest

from lockstep import operate
from lockstep.contracts import load

SEEDS = Path(__file__).parents[2] / "seeds"
FILES = ("contracts", "contract_measures")


@pytest.fixture
def project(tmp_path, monkeypatch):
    """A project with these seeds, and what a plan of them leaves in the warehouse."""
    shutil.copytree(SEEDS, tmp_path / "seeds")
    monkeypatch.setattr(operate, "project", lambda: tmp_path)
    return tmp_path


@pytest.fixture
def planned(project):
    with duckdb.connect() as connection:
        connection.execute("CREATE SCHEMA seeds")
        for name in FILES:
            path = project / "seeds" / f"{name}.csv"
            connection.execute(f"CREATE TABLE seeds.{name} AS FROM read_csv('{path}')")
        yield connection


def edit(path, old, new):
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))


def test_a_byte_order_mark_is_no_part_of_the_first_column(project):
    for path in (project / "seeds").glob("contract*.csv"):
        path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    assert load(project / "seeds") == load(SEEDS)


def test_what_is_planned_needs_no_note(planned):
    assert operate._unplanned(planned) == []


def test_a_number_spelled_otherwise_is_no_edit(planned, project):
    edit(project / "seeds" / "contract_measures.csv", ",0,0,", ",0.0,0,")
    assert operate._unplanned(planned) == []


@pytest.mark.parametrize("name", FILES)
def test_an_edit_that_was_not_planned_is_named(planned, project, name):
    path = project / "seeds" / f"{name}.csv"
    edit(path, "orders", "parcels")
    assert operate._unplanned(planned) == [
        f"{path} was changed since it was planned: it takes effect with `sqlmesh plan`."
    ]
