"""The contract files as editors leave them, and whether they say what is planned.

Awkward cases: a byte order mark, as Excel begins a CSV file; an edit that was not planned; a number spelled otherwise.
"""

from __future__ import annotations

import csv
import shutil
from pathlib import Path

import duckdb
import pytest

from lockstep import operate
from lockstep.contracts import load
from lockstep.errors import LockstepError

SEEDS = Path(__file__).parents[2] / "seeds"
FILES = ("contracts", "contract_measures")
TOLERANCES = ["tolerance_median", "tolerance_cells"]


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


@pytest.mark.parametrize(("name", "gone"), [("contracts", ["live_where"]), ("contract_measures", TOLERANCES)])
def test_a_file_of_an_earlier_version_is_told_with_the_columns_that_it_lacks(project, name, gone):
    path = project / "seeds" / f"{name}.csv"
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file))
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, [c for c in rows[0] if c not in gone], extrasaction="ignore")
        writer.writeheader()
        writer.writerows(rows)
    with pytest.raises(LockstepError, match=", ".join(sorted(gone))) as told:
        load(project / "seeds")
    path.write_text(str(told.value).partition("The file is then:\n")[2])  # the way out that was printed
    as_it_was = load(SEEDS)
    for domain, contract in load(project / "seeds").items():
        assert contract.grain == as_it_was[domain].grain
        assert [m.name for m in contract.merged] == [m.name for m in as_it_was[domain].merged]
        assert contract.live_where == ("" if "live_where" in gone else as_it_was[domain].live_where)
