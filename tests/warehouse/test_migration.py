"""A domain on its way: batch, shadow, live, a failed receipt, the rebuild, and back; with the receipts on demand.

Each test works on a copy of one home and one project. In the home, orders are in shadow and have passed the cuts of the
midnights of 2 and 3 March, which is all its contract asks for; the hours up to 3 March 05:00 are folded.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from datetime import date, datetime, timedelta
from pathlib import Path
from typing import Any

import duckdb
import pytest
from click.testing import CliRunner, Result

from homes import SharedHomes
from lockstep import contracts, migrate, operate, warehouse
from lockstep.changelog import ChangeLog
from lockstep.cli import cli
from lockstep.errors import LockstepError
from lockstep.reconcile import _cut, reconcile
from shop import Shop, land

ROOT = Path(__file__).parents[2]
PARTS = ["audits", "linter", "macros", "materializations", "models", "seeds", "signals"]
LAST_CUT = datetime(2026, 3, 3)

Row = dict[str, Any]


class Place:
    """A home and a project, both to be changed at will; the working directory is the project."""

    def __init__(self, home: Path, project: Path) -> None:
        self.home = home
        self.project = project
        self.contracts = project / "seeds" / "contracts.csv"

    def enter(self, patch: pytest.MonkeyPatch) -> None:
        patch.setenv("LOCKSTEP_HOME", str(self.home))
        patch.chdir(self.project)
        contracts.load.cache_clear()

    def set(self, domain: str, **values: object) -> None:
        lines = self.contracts.read_text().splitlines()
        lines = [line + "," * len(values.keys() - {*lines[0].split(",")}) for line in lines]
        names = [*lines[0].rstrip(",").split(","), *(name for name in values if name not in lines[0].split(","))]
        lines[0] = ",".join(names)
        [i] = [i for i, line in enumerate(lines) if line.startswith(f"{domain},")]
        fields = lines[i].split(",")
        for name, value in values.items():
            fields[names.index(name)] = str(value)
        lines[i] = ",".join(fields)
        self.contracts.write_text("\n".join(lines) + "\n")
        contracts.load.cache_clear()

    def query(self, query: str) -> list[Row]:
        with warehouse.reader(self.home) as connection:
            return warehouse.rows(connection, query)

    def served(self) -> str:
        [row] = self.query("SELECT DISTINCT served_from FROM mart.orders")
        return str(row["served_from"])

    def tamper(self, cents: int) -> None:
        """Add cents to an hour that is folded, in the physical table of the increments."""
        with duckdb.connect(str(self.home / "warehouse.duckdb")) as connection:
            tables = connection.execute(
                "SELECT schema_name, table_name FROM duckdb_tables() "
                "WHERE regexp_full_match(table_name, 'hourly__orders__\\d+')"
            ).fetchall()
            [(schema, table)] = tables
            connection.execute(
                f'UPDATE "{schema}"."{table}" SET revenue_cents = revenue_cents + {cents} '
                "WHERE log_hour = '2026-03-02 15:00:00'"
            )

    def published(self) -> str:
        """What the published file says; there is one once a run has published."""
        with duckdb.connect(str(self.home / "analytics.duckdb"), read_only=True) as connection:
            [(served_from,)] = connection.execute("SELECT DISTINCT served_from FROM mart.orders").fetchall()
            return str(served_from)

    def plan(self) -> set[str]:
        """Plan as `sqlmesh plan` does; returns the schemas of all models that were computed or made anew."""
        from sqlmesh import Context
        from sqlmesh.core.console import NoopConsole, set_console

        computed = set()

        class Computed(NoopConsole):
            def start_snapshot_evaluation_progress(self, snapshot: Any, *_: Any, **__: Any) -> None:
                computed.add(snapshot.name.split(".")[-2].strip('"'))

        set_console(Computed())
        context = Context(paths=str(self.project))
        context.plan(auto_apply=True, no_prompts=True, skip_tests=True, execution_time="2026-03-03 05:30:00")
        context.close()
        return computed


@pytest.fixture(scope="session")
def passed(shared_home: SharedHomes) -> Place:
    def build(path: Path) -> Place:
        (path / "project").mkdir(parents=True)
        for file in [*ROOT.glob("*.yaml"), *ROOT.glob("*.sql")]:
            shutil.copy(file, path / "project")
        for part in PARTS:
            shutil.copytree(ROOT / part, path / "project" / part, ignore=shutil.ignore_patterns("__pycache__"))
        place = Place(path / "home", path / "project")
        with pytest.MonkeyPatch.context() as patch:
            place.enter(patch)
            _tell_the_story(place)
        contracts.load.cache_clear()
        return place

    return shared_home("migration", build)


def _tell_the_story(place: Place) -> None:
    place.set("orders", mode="shadow", shadow_days=2, passes_to_return=2, receipt_hours=50)
    shop = Shop(datetime(2026, 3, 1, 8, 10))
    shop.product(1, "books")
    shop.order(1, amount_cents=5_000)
    shop.now = datetime(2026, 3, 1, 10, 20)
    shop.change(1, status="paid")
    land(place.home, shop.changes, reached=datetime(2026, 3, 2, 4))
    assert operate.run(place.home, datetime(2026, 3, 2, 5)).agrees
    landed = len(shop.changes)
    shop.now = datetime(2026, 3, 2, 15, 30)
    shop.order(2, amount_cents=7_000)
    shop.now = datetime(2026, 3, 3, 2, 10)
    shop.change(1, amount_cents=9_000)
    land(place.home, shop.changes[landed:], reached=datetime(2026, 3, 3, 6, 30))
    assert operate.run(place.home, datetime(2026, 3, 3, 5)).agrees


@pytest.fixture
def place(passed: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Place]:
    """A copy for one test."""
    shutil.copytree(passed.home, tmp_path / "home", symlinks=True)
    shutil.copytree(passed.project, tmp_path / "project")
    copy = Place(tmp_path / "home", tmp_path / "project")
    copy.enter(monkeypatch)
    yield copy
    contracts.load.cache_clear()


def lockstep(*words: str) -> Result:
    return CliRunner(catch_exceptions=True).invoke(cli, list(words))


def test_a_receipt_on_demand_is_that_of_the_night(place: Place) -> None:
    """At the daily cut it has the same fingerprints, for every domain: there is no second implementation."""
    before = {r["domain"]: r for r in operate.last_receipts(place.home)}
    results = {r.receipt["domain"]: r.receipt for r in reconcile(place.home, at=LAST_CUT)}
    assert set(results) == set(contracts.load()) == set(before)
    unlike = {"reconciled_at", "sequence"}
    for domain, receipt in results.items():
        assert receipt["reconciled_at"] > before[domain]["reconciled_at"]
        assert {k: v for k, v in receipt.items() if k not in unlike} == {
            k: v for k, v in before[domain].items() if k not in unlike
        }
    assert operate.last_receipts(place.home) == sorted(results.values(), key=lambda r: r["reconciled_at"])


def test_receipts_of_the_past_and_of_the_last_hour(place: Place) -> None:
    [past] = reconcile(place.home, ["orders"], datetime(2026, 3, 1, 9))
    [last] = reconcile(place.home, ["orders"])
    assert past.passed and last.passed
    assert (past.receipt["cut"], past.receipt["position"]) == (datetime(2026, 3, 1, 9), 2)
    assert last.receipt["cut"] == datetime(2026, 3, 3, 5)  # 06:00 is sealed, but the run was of 05:00
    assert past.receipt["rebuild_fingerprint"] != last.receipt["rebuild_fingerprint"]
    assert [r["cut"] for r in operate.receipts(place.home) if r["domain"] == "orders"] == [
        datetime(2026, 3, 2),
        LAST_CUT,
        datetime(2026, 3, 1, 9),
        datetime(2026, 3, 3, 5),
    ]
    assert migrate.evidence(place.home, contracts.load().values())["orders"].shadow_days == [
        date(2026, 3, 1),
        date(2026, 3, 2),
    ]


@pytest.mark.parametrize(
    ("at", "told"),
    [
        ("2026-03-03 05:30", "full hour"),
        ("2026-03-03 07:00", "not sealed"),
        ("2026-03-03 06:00", "sealed but not folded"),
        ("2026-03-01 08:00", "begins at"),
    ],
)
def test_an_hour_that_cannot_be_reconciled(at: str, told: str) -> None:
    sealed, folded = datetime(2026, 3, 3, 6), datetime(2026, 3, 3, 5)
    with pytest.raises(LockstepError, match=told):
        _cut("orders", datetime.fromisoformat(at), datetime(2026, 3, 1, 8, 10), sealed, folded)


def test_what_cannot_be_reconciled_stores_no_receipt(place: Place) -> None:
    receipts = operate.receipts(place.home)
    result = lockstep("reconcile", "--at", "2026-03-03 07:00")
    assert result.exit_code == 1
    assert "the hours up to 2026-03-03 07:00:00 are not sealed" in str(result.exception)
    assert operate.receipts(place.home) == receipts


def test_an_unknown_domain_is_named(place: Place) -> None:
    result = lockstep("reconcile", "parcels")
    assert result.exit_code == 1
    assert "There is no domain parcels" in str(result.exception)


def test_no_receipt_vouches_for_a_rebuild_that_an_audit_stopped(place: Place) -> None:
    """Its log may lack what both paths lack: they would agree, and live would be served again."""
    land(place.home, [], reached=datetime(2026, 3, 4, 0, 30))
    ChangeLog(place.home).files("orders")[-1].unlink()  # the last change, folded at 02:00
    result = operate.run(place.home, datetime(2026, 3, 4, 5))
    assert any("log_is_complete" in failure for failure in result.failures), result
    [cut] = place.query("SELECT DISTINCT cut FROM rebuild.cut")
    with pytest.raises(LockstepError, match="an audit stopped the rebuild"):
        reconcile(place.home, ["orders"], cut["cut"])


def test_from_shadow_to_live_to_the_rebuild_and_back(place: Place) -> None:
    receipts = place.query("SELECT * FROM reconcile.receipts ORDER BY ALL")
    generations = place.query("SELECT * FROM verified.orders ORDER BY ALL")
    assert place.served() == "rebuild"

    dry = lockstep("promote", "orders", "--dry-run", "--json")
    assert dry.exit_code == 0, dry.output
    assert json.loads(dry.output)["evidence"]["shadow_days"] == ["2026-03-01", "2026-03-02"]
    assert contracts.load()["orders"].mode == "shadow"
    promoted = lockstep("promote", "orders")
    assert promoted.exit_code == 0, promoted.output
    assert "days in shadow  2 of 2" in promoted.output and "sqlmesh plan" in promoted.output
    assert contracts.load()["orders"].mode == "live"
    assert place.served() == "rebuild"  # a promotion alone serves nothing
    [row] = [r for r in migrate.migration(place.home) if r["domain"] == "orders"]
    assert "sqlmesh plan" in row["next_step"]

    assert place.plan() == {"seeds", "ops", "mart"}  # no figure is computed anew
    assert place.served() == "live"
    assert place.query("SELECT * FROM reconcile.receipts ORDER BY ALL") == receipts
    assert place.query("SELECT * FROM verified.orders ORDER BY ALL") == generations

    place.tamper(+1)
    failed = lockstep("reconcile", "orders")
    assert failed.exit_code == 1
    assert "revenue_cents 7,000 rebuilt, 7,001 added up" in failed.output
    assert [r["mode"] for r in operate.receipts(place.home) if r["domain"] == "orders"] == ["shadow", "shadow", "live"]
    assert (place.served(), place.published()) == ("rebuild", "rebuild")
    shown = lockstep("migration")
    assert shown.exit_code == 1 and "1 failed" in shown.output

    place.tamper(-1)
    served = []
    for hour in (1, 4, 5):  # the first is before the failed cut and proves nothing about it
        assert lockstep("reconcile", "orders", "--at", f"2026-03-03 0{hour}:00").exit_code == 0
        served.append(place.served())
    # The failed cut was 05:00: passed at it once, and nothing later is folded.
    assert served == ["rebuild"] * 3
    land(place.home, [], reached=datetime(2026, 3, 3, 8))
    assert operate.run(place.home, datetime(2026, 3, 3, 7)).failures == []
    assert lockstep("reconcile", "orders").exit_code == 0
    assert (place.served(), place.published()) == ("live", "live")


def test_not_to_live_before_the_shadow_period_is_over(place: Place) -> None:
    place.set("orders", shadow_days=3)
    before = place.contracts.read_bytes()
    result = lockstep("promote", "orders")
    assert result.exit_code == 1
    assert "2 of 3 daily cuts have passed in shadow" in result.output
    assert place.contracts.read_bytes() == before


def test_not_to_live_while_the_log_is_ahead_or_what_it_reads_is_not_live(place: Place) -> None:
    place.set("orders", reads_domains="vehicle_positions")
    place.set("vehicle_positions", mode="shadow")
    land(place.home, [], reached=LAST_CUT + timedelta(hours=51))
    result = lockstep("promote", "orders")
    assert result.exit_code == 1
    assert "more than 50 h ahead" in result.output
    assert "vehicle_positions, which it reads, is shadow" in result.output
