"""The contract files as editors and earlier versions leave them, and whether they say what is planned.

Awkward cases: a byte order mark, as Excel begins a CSV file; an edit that was not planned; a number spelled otherwise;
files in which everything is written that is derived now, and such without the columns that came last.
"""

from __future__ import annotations

import csv
import shutil
from pathlib import Path

import duckdb
import pytest

from lockstep import operate
from lockstep.contracts import as_rows, load

IN_FULL = Path(__file__).parents[1] / "fixtures" / "contracts_in_full"
FILES = ("contracts", "contract_measures")


@pytest.fixture
def project(tmp_path, monkeypatch):
    """A project with these seeds, and what a plan of them leaves in the warehouse."""
    shutil.copytree(IN_FULL, tmp_path / "seeds")
    monkeypatch.setattr(operate, "project", lambda: tmp_path)
    monkeypatch.setattr(operate, "load", lambda: load.__wrapped__(tmp_path / "seeds"))
    return tmp_path


@pytest.fixture
def planned(project):
    rows = [as_rows(contract) for contract in load(IN_FULL).values()]
    with duckdb.connect() as connection:
        connection.execute("CREATE SCHEMA ops")
        for name, told in zip(FILES, ([row for row, _ in rows], [m for _, ms in rows for m in ms]), strict=True):
            connection.execute(f"CREATE TABLE ops.{name} ({', '.join(f'{column} TEXT' for column in told[0])})")
            connection.executemany(
                f"INSERT INTO ops.{name} VALUES ({', '.join('?' * len(told[0]))})", [list(row.values()) for row in told]
            )
        yield connection


def edit(path, old, new):
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))


def test_a_byte_order_mark_is_no_part_of_the_first_column(project):
    for path in (project / "seeds").glob("contract*.csv"):
        path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    assert load(project / "seeds") == load(IN_FULL)


def test_what_is_planned_needs_no_note(planned):
    assert operate._unplanned(planned) == []


def test_a_number_spelled_otherwise_is_no_edit(planned, project):
    edit(project / "seeds" / "contract_measures.csv", ",0.5,0,", ",0.50,0.0,")
    assert operate._unplanned(planned) == []


@pytest.mark.parametrize(("name", "old", "new"), [(FILES[0], "live,5,30", "live,5,31"), (FILES[1], "0.3,", "0.4,")])
def test_an_edit_that_was_not_planned_is_named(planned, project, name, old, new):
    path = project / "seeds" / f"{name}.csv"
    edit(path, old, new)
    assert operate._unplanned(planned) == [
        f"{path}, or a query that it is completed from, was changed since it was planned: it takes effect with "
        "`sqlmesh plan`."
    ]


@pytest.mark.parametrize(
    ("name", "gone", "meant"),
    [
        ("contracts", ["live_where", "shadow_days"], {"live_where": "", "shadow_days": 3}),
        ("contract_measures", ["tolerance_median", "tolerance_cells"], {}),
    ],
)
def test_a_file_may_lack_columns_that_have_a_default(project, name, gone, meant):
    path = project / "seeds" / f"{name}.csv"
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file))
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, [c for c in rows[0] if c not in gone], extrasaction="ignore")
        writer.writeheader()
        writer.writerows(rows)
    found = load(project / "seeds")
    assert {column: getattr(found["vehicle_positions"], column) for column in meant} == meant
    limits = {(m.tolerance_median, m.tolerance_cells) for m in found["vehicle_positions"].all_measures}
    assert limits == ({(None, 1)} if gone[0] == "tolerance_median" else {(0.3, 0.05), (60, 0.05), (None, 0.05)})
