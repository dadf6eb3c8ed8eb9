"""A mistake in the project's files is said in a sentence that names the file, and mended where it says.

Awkward cases: a model that is not SQL; a grain column and a measure in the contracts that no model has; CSV files
with a byte order mark, which SQLMesh's seeds read too.
"""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from lockstep import operate
from lockstep.changelog import ChangeLog
from lockstep.contracts import load
from lockstep.errors import LockstepError
from lockstep.project import home
from lockstep.simulate import choose_history, run
from projects import in_full

ROOT = Path(__file__).parents[2]
PARTS = (
    "audits",
    "linter",
    "macros",
    "materializations",
    "models",
    "seeds",
    "signals",
    "config.yaml",
    "source_schema.sql",
)


@pytest.fixture(scope="module")
def log(tmp_path_factory):
    home = tmp_path_factory.mktemp("log")
    log = ChangeLog(home)
    run(log, choose_history(log, 1, 1, 10, None), lambda text: None)
    return home


@pytest.fixture
def project(log, tmp_path, monkeypatch):
    """A project of its own, on a home with a log and no warehouse yet."""
    for name in PARTS:
        copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
        copy(ROOT / name, tmp_path / name)
    home = tmp_path / "home"
    shutil.copytree(log, home, symlinks=True)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("LOCKSTEP_HOME", str(home))
    load.cache_clear()
    yield tmp_path
    load.cache_clear()


def edit(path, old, new):
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))


def failures(project):
    return operate._sqlmesh(home(), plan=True, at=None, verbose=False)


def test_a_model_that_is_not_sql_is_named(project):
    path = project / "models" / "mart" / "customers.sql"
    edit(path, "\nSELECT\n", "\nSELEC\n")
    (failure,) = failures(project)
    assert str(path) in failure
    assert "Traceback" not in failure and "\x1b" not in failure
    assert len(failure) < 700


def test_a_column_that_no_model_has_is_named_with_the_contract(project):
    in_full(project)
    edit(project / "seeds" / "contracts.csv", "ordered_hour product_id", "ordered_our product_id")
    edit(project / "seeds" / "contract_measures.csv", "orders,revenue_cents,", "orders,revenue_euros,")
    for path in (project / "seeds").glob("contract*.csv"):
        path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    found = failures(project)
    hourly = "".join(f for f in found if f.startswith(str(project / "models" / "hourly" / "each_domain.sql")))
    assert "'ordered_our' could not be resolved" in hourly
    assert "each grain column of orders in seeds/contracts.csv" in hourly
    assert "must be a column of models/rebuild/orders.sql." in hourly
    assert all(f.startswith(str(project / "models")) for f in found)


def test_a_query_whose_increments_cannot_be_derived_is_named_with_its_line(project):
    in_full(project)  # its measures are sums; else they would be computed from cells when they are read
    path = project / "models" / "rebuild" / "delivery_status.sql"
    path.write_text(path.read_text() + "QUALIFY RANK() OVER (ORDER BY 1) = 1\n")
    [line] = [n for n, text in enumerate(path.read_text().splitlines(), 1) if text.startswith("QUALIFY")]
    with pytest.raises(LockstepError) as raised:
        failures(project)
    assert str(raised.value).startswith(f"models/rebuild/delivery_status.sql: line {line}: QUALIFY ")
    assert "write models/diffs/delivery_status.sql by hand" in str(raised.value)


def test_sqlmesh_reads_seeds_with_a_byte_order_mark(tmp_path):
    from sqlmesh.core.model.seed import create_seed

    path = tmp_path / "contracts.csv"
    path.write_bytes(b"\xef\xbb\xbf" + (ROOT / "seeds" / "contracts.csv").read_bytes())
    (rows,) = create_seed(path).reader().read()
    assert list(rows["domain"]) == list(load())
