"""Receipts vouch for the models that they compared, and for nothing else.

The home: cuts at the midnights of 2 and 3 March passed in a project of its own, which the tests edit and plan.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from handwritten import write_diffs
from lockstep import contracts, operate, warehouse
from lockstep.errors import LockstepError
from lockstep.explain import CHANGED_LATER, explain
from lockstep.reconcile import reconcile
from lockstep.schema import SCHEMA_FILE, TABLES, declared
from projects import project_of_two_domains, whole_project
from shop import Shop, land

BIN = Path(sys.executable).parent
NOW = datetime(2026, 3, 3, 5)

Row = dict[str, Any]


@dataclass
class Place:
    """A home and the project that is planned in it."""

    home: Path
    project: Path

    def enter(self, patch: pytest.MonkeyPatch) -> None:
        patch.setenv("LOCKSTEP_HOME", str(self.home))
        patch.setattr(TABLES, "_found", declared(self.project / SCHEMA_FILE))
        patch.chdir(self.project)
        contracts.load.cache_clear()

    def copied(self, path: Path) -> Place:
        shutil.copytree(self.home, path / "home", symlinks=True)
        shutil.copytree(self.project, path / "project")
        return Place(path / "home", path / "project")

    def run(self, at: datetime = NOW) -> operate.Run:
        return operate.run(self.home, at)

    def query(self, query: str) -> list[Row]:
        with warehouse.reader(self.home) as connection:
            return warehouse.rows(connection, query)

    def serving(self, domain: str = "orders") -> Row:
        [row] = self.query(f"SELECT * FROM ops.serving WHERE domain = '{domain}'")
        return row

    def revenue(self) -> int:
        [row] = self.query("SELECT SUM(revenue_cents)::BIGINT AS cents FROM mart.orders")
        return int(row["cents"])

    def edit(self, file: str, old: str, new: str) -> None:
        path = self.project / file
        text = path.read_text(encoding="utf-8")
        assert old in text, f"{path} no longer says {old!r}: the test plants nothing"
        path.write_text(text.replace(old, new), encoding="utf-8")

    def plan(self, *words: str) -> subprocess.CompletedProcess[str]:
        """`sqlmesh plan` as a user would type it."""
        times = ["--execution-time", "2026-03-03 05:30:00", "--auto-apply", "--no-prompts", "--skip-tests"]
        return subprocess.run(
            [str(BIN / "sqlmesh"), "plan", *words, *times],
            cwd=self.project,
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env=os.environ | {"COLUMNS": "300"},
            check=False,
        )


@pytest.fixture(scope="module")
def passed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    path = tmp_path_factory.mktemp("evidence")
    place = Place(path / "home", project_of_two_domains(path / "project"))
    with pytest.MonkeyPatch.context() as patch:
        place.enter(patch)
        shop = Shop(datetime(2026, 3, 1, 8, 10))
        shop.product(1, "books")
        shop.order(1, amount_cents=5_000)
        shop.now = datetime(2026, 3, 1, 10, 20)
        shop.change(1, status="paid")
        land(place.home, shop.changes, reached=datetime(2026, 3, 2, 4))
        assert place.run(datetime(2026, 3, 2, 5)).agrees
        landed = len(shop.changes)
        shop.now = datetime(2026, 3, 2, 15, 30)
        shop.order(2, amount_cents=7_000)
        land(place.home, shop.changes[landed:], reached=datetime(2026, 3, 3, 6, 30))
        assert place.run().agrees
    contracts.load.cache_clear()
    yield place
    contracts.load.cache_clear()


@pytest.fixture
def place(passed: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Place:
    copy = passed.copied(tmp_path)
    copy.enter(monkeypatch)
    return copy


def edit_a_macro_without_effect(place: Place) -> None:
    """SQLMesh then computes the hours anew, and takes what stands on them for unaffected."""
    place.edit("macros/merging.py", 'if m.merge == "sum":', 'if m.merge in ("sum",):')


def test_a_wrong_increment_is_not_served_behind_the_receipt_of_the_right_one(place: Place) -> None:
    """Without it a plan could put doubled figures before analysts until the next night's receipt."""
    assert (place.serving()["served_from"], place.revenue()) == ("live", 12_000)
    write_diffs(place.project, "orders")
    amount = 'TRY_CAST(__b1."amount_cents" AS BIGINT)'
    place.edit("models/diffs/orders.sql", amount, f"2 * {amount}")
    edit_a_macro_without_effect(place)
    plan = place.plan()
    assert place.revenue() == 12_000, plan.stdout
    assert place.serving()["served_from"] == "rebuild"
    assert place.serving()["reason"] == "no receipt yet of what is in use since the last plan"
    result = place.run()
    assert "reconcile.orders_receipts: audit rebuild_equals_increments" in " ".join(result.failures)
    assert (place.serving()["served_from"], place.revenue()) == ("rebuild", 12_000)


def test_a_rule_is_changed_in_one_place_and_both_paths_follow(place: Place) -> None:
    """Without it increments would go on by the rule before, out of SQLMesh's model cache, until a receipt fails.

    A rule stands in the query of a row, in a view that it reads, in a macro, or in a seed.
    """

    def figures() -> Row:
        [row] = place.query(
            "SELECT SUM(revenue_cents)::BIGINT AS cents, SUM(high_value_orders)::BIGINT AS high, "
            "STRING_AGG(DISTINCT status ORDER BY status) AS status FROM mart.orders WHERE served_from = 'live'"
        )
        return row

    assert figures() == {"cents": 12_000, "high": 0, "status": "created,paid"}
    place.edit("models/rebuild/latest_orders.sql", "orders.amount_cents::BIGINT", "(2 * orders.amount_cents)::BIGINT")
    place.edit("models/dims/order_status_rules.sql", "  status::TEXT AS", "  REPLACE(status, 'paid', 'due')::TEXT AS")
    assert place.plan().returncode == 0 and place.run().agrees
    assert figures() == {"cents": 24_000, "high": 0, "status": "created,due"}
    place.edit("seeds/order_status_rules.csv", "\npaid,paid,", "\npaid,shipped,")
    place.edit("macros/rules.py", "number(100_000)", "number(6_000)")
    assert place.plan().returncode == 0 and place.run().agrees
    assert figures() == {"cents": 24_000, "high": 1, "status": "created,shipped"}


def test_what_a_run_finds_in_use_without_a_receipt_it_proves(place: Place) -> None:
    """Without it every plan would cost the live figures until the next night, or a receipt on demand."""
    edit_a_macro_without_effect(place)
    assert place.plan().returncode == 0
    assert place.serving()["reason"] == "no receipt yet of what is in use since the last plan"
    assert place.run().agrees
    assert (place.serving()["served_from"], place.revenue()) == ("live", 12_000)
    count = "SELECT COUNT(*) AS receipts FROM reconcile.orders_receipts"
    assert place.query(count) == [{"receipts": 3}]
    assert place.run().agrees and place.query(count) == [{"receipts": 3}]  # once is enough


def test_receipts_outlive_the_warehouse_and_the_state(place: Place) -> None:
    """Without it the evidence of months, and with it every promotion's, would be gone with one file."""
    before = place.query("SELECT * FROM reconcile.receipts ORDER BY sequence")
    (place.home / "warehouse.duckdb").unlink()
    (place.home / "state.duckdb").unlink()
    assert place.run().agrees
    after = place.query("SELECT * FROM reconcile.receipts ORDER BY sequence")
    assert after[: len(before)] == before and len(after) > len(before)
    assert place.serving()["served_from"] == "live"


def test_a_first_plan_that_fails_in_one_domain_serves_the_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without it one bad receipt would keep a new home from serving anything."""
    place = Place(tmp_path / "home", whole_project(tmp_path / "project"))
    place.enter(monkeypatch)
    shop = Shop(datetime(2026, 3, 1, 8, 10))
    shop.order(1, amount_cents=5_000)
    shop.ping(1, recorded_at=shop.now - timedelta(hours=1))  # only the rebuild takes it, and no tolerance covers it
    land(place.home, shop.changes, reached=datetime(2026, 3, 2, 4))
    failure = "reconcile.vehicle_positions_receipts: audit rebuild_equals_increments found 1 rows"
    for _ in range(2):
        result = place.run(datetime(2026, 3, 2, 5))
        assert result.failures == [failure]
        assert (place.serving()["served_from"], place.revenue()) == ("live", 5_000)
        assert place.serving("vehicle_positions")["reason"].endswith(" failed")
        assert place.query("SELECT * FROM mart.vehicle_positions") == []
        assert place.serving("delivery_status")["reason"].startswith("not yet proven")  # nothing has come in


def test_a_receipt_on_demand_is_explained_at_its_cut(place: Place) -> None:
    """Without it only the last daily cut could be looked at, which may be right while an hour is wrong."""
    [table] = place.query(
        "SELECT schema_name || '.' || table_name AS name FROM duckdb_tables() WHERE table_name LIKE 'hourly__orders__%'"
    )
    with warehouse.writer(place.home) as connection:
        connection.execute(
            f"UPDATE {table['name']} SET revenue_cents = revenue_cents + 1 WHERE log_hour >= '2026-03-02'"
        )
    [taken] = reconcile(place.home, ["orders"], datetime(2026, 3, 2, 16))
    assert taken.receipt["verdict"] == "failed"
    contract = [contracts.load()["orders"]]
    [wrong] = explain(place.home, contract, at=datetime(2026, 3, 2, 16))
    assert [c["rebuild_revenue_cents"] for c in wrong.cells] == [7_000] and wrong.findings[0].kind == CHANGED_LATER
    [right] = explain(place.home, contract, at=datetime(2026, 3, 2, 10))
    assert right.cells == []
    with pytest.raises(LockstepError, match="not a valid cut of orders; use a full hour up to 2026-03-03 05:00:00"):
        explain(place.home, contract, at=datetime(2026, 3, 3, 6))
