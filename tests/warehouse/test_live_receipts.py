"""Live receipts: what analysts read at this moment is what the query as written gives at the position that they see.

Awkward cases: all kinds of changes in the tail, a landing while it is compared, a published cell and a folded hour that
were spoilt, a home whose first hour is not over, a held table, a domain in shadow, one in batch.
"""

from __future__ import annotations

import json
import shutil
import time
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import duckdb
import pytest
from click.testing import CliRunner

from company import UNTIL, two_days
from lockstep import alerts, changelog, demo, live_receipts, operate, publish, warehouse
from lockstep.cli import cli
from lockstep.contracts import load
from lockstep.errors import LockstepError
from shop import Shop, land, reject

__all__ = ["two_days"]  # a fixture

SETTLED = changelog.SETTLING.total_seconds() + 0.05
KEY = 20_000_000  # keys from here on are the tests' own


@pytest.fixture
def home(two_days: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    home = tmp_path / "home"
    shutil.copytree(two_days, home, symlinks=True)
    monkeypatch.setenv("LOCKSTEP_HOME", str(home))
    return home


def sell(home: Path, minute: int, orders: int = 3) -> None:
    """New orders, one of them corrected, one deleted; a stop of a route; a ping."""
    shop = Shop(UNTIL + timedelta(minutes=minute))
    key = KEY + 100 * minute
    shop.insert("customers", key, region="south")
    for n in range(orders):
        shop.order(key + n, customer_id=key, product_id=1, region="north", amount_cents=700, ordered_at=UNTIL)
    shop.change(key, region="east", amount_cents=900)
    shop.delete(key + 1)
    shop.insert("shipments", key, order_id=key, route_id=key, status="delivered")
    shop.insert("routes", key, driver_id=1)
    shop.insert("route_stops", (key, 1), shipment_id=key)
    shop.ping(1, ping_id=key, recorded_at=shop.now)
    land(home, shop.changes)
    time.sleep(SETTLED)


def read(home: Path, query: str) -> list[tuple[Any, ...]]:
    path = home / "published" / f"{publish._numbers(home / 'published')[-1]}.duckdb"
    with duckdb.connect(str(path), read_only=True) as connection:
        return connection.execute(query).fetchall()


def spoil_published(home: Path, table: str, change: str) -> None:
    """Make a cell of the newest published file wrong, as a fault in publishing would."""
    path = home / "published" / f"{publish._numbers(home / 'published')[-1]}.duckdb"
    with duckdb.connect(str(path)) as connection:
        assert connection.execute(f"UPDATE {table} SET {change}").fetchall() != [(0,)]


def served_from(home: Path, domain: str) -> tuple[str, str]:
    [found] = read(home, f"SELECT served_from, reason FROM ops.serving WHERE domain = '{domain}'")
    return found[0], found[1]


def test_every_domain_passes_with_all_kinds_of_changes_in_the_tail(home: Path) -> None:
    sell(home, 1)
    results = live_receipts.reconcile(home)
    assert {r.receipt["domain"] for r in results} == set(load())
    [position] = {r.receipt["position"] for r in results}
    assert position == changelog.ChangeLog(home).watermark().position
    for receipt in (r.receipt for r in results):
        assert receipt["verdict"] == "passed"
        assert receipt["cells_compared"] > 0
        assert receipt["figures"].startswith("live." if receipt["domain"] == "customer_activity" else "mart.")
    [mine] = [r.receipt for r in results if r.receipt["domain"] == "orders"]
    [(cells,)] = read(home, "SELECT COUNT(*) FROM mart.orders")
    assert mine["cells_compared"] == cells
    with warehouse.reader(home) as connection:
        stored = connection.execute("SELECT domain, position, verdict FROM reconcile.live_receipts").fetchall()
    of_the_run = [("route_performance", position - 10, "passed")]  # after its nightly receipt: it joins changing tables
    assert sorted(stored) == sorted([*of_the_run, *((domain, position, "passed") for domain in load())])


def test_what_lands_while_it_is_compared_is_on_neither_side(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sell(home, 1)
    before = changelog.ChangeLog(home).watermark().position
    compared = live_receipts._compared

    def land_first(*arguments: Any) -> Any:
        if changelog.ChangeLog(home).watermark().position == before:
            sell(home, 2, orders=50)
        return compared(*arguments)

    monkeypatch.setattr(live_receipts, "_compared", land_first)
    results = live_receipts.reconcile(home)
    assert {(r.receipt["verdict"], r.receipt["position"]) for r in results} == {("passed", before)}
    assert changelog.ChangeLog(home).watermark().position > before


def test_a_wrong_published_cell_is_found_and_its_readers_get_the_rebuild_at_once(home: Path) -> None:
    publish.publish(home)
    spoil_published(home, "folded.orders", "revenue_cents = revenue_cents + 5 WHERE rowid = 3")
    done = CliRunner().invoke(cli, ["reconcile", "orders", "--now"])
    assert done.exit_code == 1
    assert "modified" in done.output
    assert "until another passes: `lockstep reconcile orders --now`" in " ".join(done.output.split())
    served, reason = served_from(home, "orders")
    assert served == "rebuild"
    assert reason.startswith("the live receipt of ")
    assert "live figures of orders" in {incident.subject for incident in alerts.check(home, dry_run=True).open}
    done = CliRunner().invoke(cli, ["reconcile", "orders", "--now"])  # the way out that was printed
    assert done.exit_code == 0, done.output
    assert served_from(home, "orders")[0] == "live"


def test_a_run_takes_a_failed_one_again(home: Path) -> None:
    publish.publish(home)
    spoil_published(home, "folded.delivery_status", "shipments = shipments + 5 WHERE rowid = 3")
    [failed] = live_receipts.reconcile(home, ["delivery_status"])
    assert failed.receipt["verdict"] == "failed"
    result = operate.run(home, datetime(2026, 11, 18, 10, 31))
    assert result.failures == []
    assert served_from(home, "delivery_status")[0] == "live"


def test_a_wrong_hour_since_the_night_is_found(home: Path) -> None:
    with warehouse.writer(home) as connection:
        [(table,)] = connection.execute(
            "SELECT table_name FROM duckdb_tables() WHERE regexp_full_match(table_name, 'hourly__orders__\\d+')"
        ).fetchall()
        spoil = f'UPDATE sqlmesh__hourly."{table}" SET orders = orders + 1 WHERE log_hour = ?'
        assert connection.execute(spoil, [datetime(2026, 11, 18, 7)]).fetchall()[0][0] > 0
    [result] = live_receipts.reconcile(home, ["orders"])
    assert result.receipt["verdict"] == "failed"
    assert served_from(home, "orders")[0] == "rebuild"
    result = operate.run(home, datetime(2026, 11, 18, 10, 31))  # nothing has mended it
    [failure] = result.failures
    assert failure.startswith("live.orders: ")
    assert "`lockstep reconcile orders --now`" in failure
    assert served_from(home, "orders")[0] == "rebuild"


def test_a_held_domain_is_compared_as_far_as_it_goes(home: Path) -> None:
    sell(home, 1)
    held = changelog.ChangeLog(home).watermark().position
    reject(home, "orders", UNTIL + timedelta(minutes=2))
    sell(home, 3)
    receipts = {r.receipt["domain"]: r.receipt for r in live_receipts.reconcile(home)}
    assert {r["verdict"] for r in receipts.values()} == {"passed"}
    assert receipts["orders"]["position"] == held
    assert receipts["delivery_status"]["position"] > held


@pytest.fixture
def young(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home whose log has begun some minutes ago: no hour of it is over."""
    home = tmp_path / "young"
    monkeypatch.setenv("LOCKSTEP_HOME", str(home))
    sell(home, 1)
    return home


def test_a_young_log_is_served_live_by_a_live_receipt(young: Path) -> None:
    now = UNTIL + timedelta(minutes=5)
    result = operate.run(young, now)
    assert result.failures == []
    assert {r["verdict"] for r in result.receipts} == {"empty"}
    served, reason = served_from(young, "orders")
    assert served == "live"
    assert reason.startswith("the live receipt of ")
    assert reason.endswith(" passed")
    assert read(young, "SELECT region, orders, revenue_cents FROM mart.orders ORDER BY 1") == [
        ("east", 1, 900),
        ("north", 1, 700),
    ]
    receipts = len(live_receipts.load(young))
    operate.run(young, now)
    assert len(live_receipts.load(young)) == receipts  # what is proved is not proved again
    assert served_from(young, "orders")[0] == "live"


def test_what_has_no_live_figures_or_no_moment_is_refused(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    contract = load()["orders"]
    batch = {**load(), "orders": type(contract)(**{**vars(contract), "mode": "batch"})}
    monkeypatch.setattr("lockstep.reconcile.load", lambda: batch)
    with pytest.raises(LockstepError, match="orders is in mode batch"):
        live_receipts.reconcile(home, ["orders"])
    done = CliRunner().invoke(cli, ["reconcile", "--now", "--at", "2026-11-18 06:00"])
    assert "leave out one of them" in str(done.exception)
    with pytest.raises(LockstepError, match="There is no domain nonsense"):
        live_receipts.reconcile(home, ["nonsense"])


@pytest.mark.parametrize("line", ['{"domain": "orders"}', "3", '{"domain":'], ids=["fields", "number", "torn"])
def test_a_damaged_file_is_named_with_the_way_out(home: Path, line: str) -> None:
    path = home / "live_receipts.jsonl"
    path.write_text(f"{line}\n")
    listed = CliRunner().invoke(cli, ["receipts", "--live"])
    assert isinstance(listed.exception, LockstepError)
    assert f"{path} " in str(listed.exception)
    assert "Move it away" in str(listed.exception)
    published = CliRunner().invoke(cli, ["publish"])
    assert published.exception is None or isinstance(published.exception, LockstepError)
    path.rename(home / "live_receipts.jsonl.damaged")  # the way out that was printed
    assert operate.run(home, datetime(2026, 11, 18, 10, 31)).failures == []
    assert live_receipts.reconcile(home, ["orders"])[0].passed


def test_a_home_restored_without_them_is_published(home: Path) -> None:
    (home / "live_receipts.jsonl").unlink()
    publish.publish(home)
    assert served_from(home, "orders")[0] == "live"


def test_they_are_listed_with_the_others(home: Path) -> None:
    live_receipts.reconcile(home, ["orders"])
    listed = CliRunner().invoke(cli, ["receipts"])
    assert listed.exit_code == 0
    assert "rebuild = increments" in listed.output
    assert "query = live figures" in listed.output
    *_, row = json.loads(CliRunner().invoke(cli, ["receipts", "--live", "--json"]).output)
    assert (row["domain"], row["verdict"], row["figures"]) == ("orders", "passed", "mart.orders")
    assert "leave out one" in str(CliRunner().invoke(cli, ["receipts", "--live", "--source"]).exception)


def test_the_demo_proves_every_domain(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Its last step, with changes in the tail: hours, rebuild and live figures beside a recount of the log."""
    sell(home, 1)
    assert demo._prove(home)
    assert capsys.readouterr().out.count(" equal") == sum(len(w.figures) for w in demo.WITNESSES.values())
