"""`lockstep contract add`: the contract of a fact as its query says it, in a project that has none yet."""

from __future__ import annotations

import json
from pathlib import Path
from subprocess import CompletedProcess

import pytest

from commands import call
from lockstep.contracts import load
from lockstep.init import init

ROOT = Path(__file__).parents[2]
HEAD = "kind FULL, cron '@daily', start @log_eve(), depends_on (rebuild.cut, chain.orders, chain.customers)"


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    init(tmp_path / "project", (ROOT / "source_schema.sql").read_text())
    monkeypatch.setenv("LOCKSTEP_HOME", str(tmp_path / "home"))
    return tmp_path / "project"


def add(project: Path, fact: str, grain: str, query: str, *options: str) -> CompletedProcess[str]:
    path = project / "models" / "rebuild" / f"{fact}.sql"
    path.write_text(f"/* {fact}. */\nMODEL (name rebuild.{fact}, {HEAD}, grain ({grain}));\n{query}\n")
    return call("lockstep", "contract", "add", fact, "--owner", "shop", *options, cwd=project)


def rows(project: Path) -> dict[str, list[str]]:
    return {
        name: (project / "seeds" / f"{name}.csv").read_text().splitlines()[1:]
        for name in ("contracts", "contract_measures")
    }


SUMS = """SELECT
  region::TEXT AS region, customer_id::BIGINT AS customer_id, COUNT(*)::BIGINT AS orders, /* Orders, all */
  SUM(amount_cents)::BIGINT AS revenue_cents, SUM(quantity * 0.5)::DECIMAL(38, 1) AS halves
FROM source.orders GROUP BY ALL"""
FINISH = """SELECT
  customers.region::TEXT AS region, MAX(orders.ordered_at)::TIMESTAMP AS last_at, /* The last */
  AVG(orders.quantity)::DOUBLE AS average, MIN(orders.status)::TEXT AS status
FROM source.orders AS orders JOIN source.customers AS customers USING (customer_id) GROUP BY 1"""


def test_the_contract_is_what_the_query_says(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    done = add(
        project, "sums", "region, customer_id", SUMS, "--mode", "batch", "--freshness-seconds", "30", "--dry-run"
    )
    assert done.returncode == 0, done.stderr
    assert "Nothing was written" in done.stdout
    assert rows(project) == {"contracts": [], "contract_measures": []}
    add(project, "sums", "region, customer_id", SUMS, "--mode", "batch", "--freshness-seconds", "30")
    done = add(project, "finish", "region", FINISH, "--json")
    assert json.loads(done.stdout)["because"] == 'line 4: MAX("orders"."ordered_at") is not a sum'
    assert rows(project) == {
        "contracts": ["sums,shop,batch,60,30", "finish,shop,shadow,60,60"],
        "contract_measures": [],
    }
    monkeypatch.chdir(project)
    sums, finish = load(project / "seeds").values()
    assert (sums.is_finished, sums.grain, sums.sources) == (False, ("region", "customer_id"), ("orders",))
    assert (finish.is_finished, finish.grain, finish.sources) == (True, ("region",), ("orders", "customers"))
    assert [(m.name, m.merge, m.unit, m.description) for m in (*sums.all_measures, *finish.all_measures)] == [
        ("orders", "sum", "count", "Orders, all"),
        ("revenue_cents", "sum", "cents", "Revenue cents"),
        ("halves", "sum", "amount(1)", "Halves"),
        ("last_at", "finish", "timestamp", "The last"),
        ("average", "finish", "ratio", "Average"),
        ("status", "finish", "text", "Status"),
    ]
    linted = call("sqlmesh", "lint", cwd=project)
    assert linted.returncode == 0, linted.stdout + linted.stderr


def test_a_query_that_is_not_derived_is_recomputed(project: Path) -> None:
    done = add(
        project,
        "coverage",
        "region",
        "SELECT COALESCE(orders.region, customers.region)::TEXT AS region, COUNT(*)::BIGINT AS pairs, "
        "MEDIAN(orders.quantity)::DOUBLE AS usual\n"
        "FROM source.orders FULL JOIN source.customers USING (region) GROUP BY 1",
    )
    assert done.returncode == 0, done.stderr
    assert "It is not derived but recomputed" in done.stdout
    assert "line 4: FULL JOIN" in done.stdout
    assert rows(project) == {
        "contracts": ["coverage,shop,shadow,60,60"],
        "contract_measures": [
            "coverage,pairs,recomputed,,,,,,",
            "coverage,usual,recomputed,,,,,,",
        ],
    }
    linted = call("sqlmesh", "lint", cwd=project)
    assert linted.returncode == 0, linted.stdout + linted.stderr


@pytest.mark.parametrize(
    ("grain", "measure", "said"),
    [
        ("region", "COUNT(*)::INT AS orders", "Cast it to"),
        ("place", "COUNT(*)::BIGINT AS orders", "grain names place"),
        ("region", "ANY_VALUE(status)::TEXT AS status", "ANY_VALUE"),
        ("region", "COUNT(*)::BIGINT AS cut", "none of"),
    ],
    ids=["odd_type", "no_such_column", "not_derived", "reserved_name"],
)
def test_what_is_in_the_way_is_named_and_nothing_written(project: Path, grain: str, measure: str, said: str) -> None:
    done = add(project, "fact", grain, f"SELECT region::TEXT AS region, {measure} FROM source.orders GROUP BY 1")
    assert done.returncode == 1
    assert said in done.stderr
    assert str(project) in done.stderr or "models/rebuild/fact.sql" in done.stderr
    assert rows(project) == {"contracts": [], "contract_measures": []}


def test_what_is_there_or_missing_is_refused(project: Path) -> None:
    missing = call("lockstep", "contract", "add", "missing", "--owner", "shop", cwd=project)
    assert "write the fact's query first" in missing.stderr
    assert add(project, "sums", "region, customer_id", SUMS).returncode == 0
    assert "has a contract already" in add(project, "sums", "region, customer_id", SUMS).stderr
    (project / "models" / "diffs" / "hand.sql").write_text("/* By hand. */")
    assert "written by hand" in add(project, "hand", "region, customer_id", SUMS).stderr
