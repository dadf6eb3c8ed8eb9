"""What goes where, and the change of a mode: by contracts alone, without a log or a warehouse."""

from __future__ import annotations

import dataclasses
import json
import shutil
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import duckdb
import pytest
from click.testing import CliRunner

from lockstep import contracts, migrate
from lockstep.cli import cli
from lockstep.contracts import Contract
from lockstep.errors import LockstepError

ROOT = Path(__file__).parents[2]
IN_FULL = ROOT / "tests" / "fixtures" / "contracts_in_full"
ORDERS = contracts.load(IN_FULL)["orders"]
H = 3600


def contract(**values: Any) -> Contract:
    return dataclasses.replace(ORDERS, **values)


@pytest.fixture
def seeds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A project of nothing but contracts, and a home with nothing in it."""
    shutil.copytree(IN_FULL, tmp_path / "project" / "seeds")
    shutil.copy(ROOT / "seeds" / "promotions.csv", tmp_path / "project" / "seeds")
    for file in [ROOT / "config.yaml", *ROOT.glob("*.sql")]:
        shutil.copy(file, tmp_path / "project")
    monkeypatch.chdir(tmp_path / "project")
    monkeypatch.setenv("LOCKSTEP_HOME", str(tmp_path / "home"))
    contracts.load.cache_clear()
    yield tmp_path / "project" / "seeds"
    contracts.load.cache_clear()


def run(*words: str) -> tuple[int, str]:
    result = CliRunner().invoke(cli, list(words))
    message = str(result.exception) if isinstance(result.exception, LockstepError) else ""
    return result.exit_code, result.output + message


@pytest.mark.parametrize(
    ("horizon", "freshness", "mode", "path", "verdict"),
    [
        (239, 60, "live", "live", migrate.FITS),
        (239, 60, "shadow", "live", migrate.NOT_YET),
        (239, 60, "batch", "live", migrate.NOT_YET),
        (240, 26 * H, "live", "batch", migrate.UNFIT),
        (2000, 26 * H, "shadow", "batch", migrate.UNFIT),
        (2000, 26 * H, "batch", "batch", migrate.FITS),
        (2000, 26 * H - 1, "batch", "batch", migrate.UNFIT),  # the rebuild's figures get older than that
        (60, H + 1, "live", "live", migrate.UNFIT),  # too old when somebody acts on them
        (60, H, "live", "live", migrate.FITS),
    ],
)
def test_what_goes_where(horizon: int, freshness: int, mode: str, path: str, verdict: str) -> None:
    c = contract(horizon_minutes=horizon, freshness_seconds=freshness, mode=mode)
    fit = migrate.check(c, {"orders": c})
    assert (fit.path, fit.verdict) == (path, verdict)


@pytest.mark.parametrize(
    ("freshness", "cadence"),
    [
        (26 * H, "daily rebuild"),
        (26 * H - 1, "hourly landing and run"),
        (2 * H, "hourly landing and run"),
        (2 * H - 2, "capture, trigger at most 3599 s"),
        (60, "capture, trigger at most 30 s"),
        (1, "capture, trigger at most 0.5 s"),
    ],
)
def test_the_cheapest_cadence(freshness: int, cadence: str) -> None:
    c = contract(freshness_seconds=freshness)
    assert migrate.check(c, {"orders": c}).cadence == cadence


def test_a_live_domain_waits_for_one_that_it_reads(seeds: Path) -> None:
    migrate.set_mode("vehicle_positions", "shadow")
    code, output = run("contract", "check", "--json")
    verdicts = {f["domain"]: f for f in json.loads(output)}
    assert code == 0
    assert verdicts["route_performance"]["verdict"] == migrate.NOT_YET
    assert "vehicle_positions" in verdicts["route_performance"]["reason"]


def test_check_exits_with_1_only_where_something_does_not_fit(seeds: Path) -> None:
    assert run("contract", "check")[0] == 0
    path = seeds / "contracts.csv"
    path.write_text(
        path.read_text().replace("orders,commerce-analytics,live,120,", "orders,commerce-analytics,live,720,")
    )
    contracts.load.cache_clear()
    code, output = run("contract", "check")
    assert code == 1
    assert "does not fit: nobody acts within 4 h (but within 12 h)" in output
    path.write_text(path.read_text().replace(",live,720,", ",alive,720,"))
    contracts.load.cache_clear()
    code, output = run("contract", "check")
    assert code == 1
    assert "line 4: mode is 'alive'" in output


WIDE = "degrees,0.5,0,0.3,0.05", "degrees,0.5,0,,"


def test_check_names_a_tolerance_that_nothing_could_exceed(seeds: Path, tmp_path: Path) -> None:
    """Judged by the published figures: all of them lie within 0.4 degrees here, and then farther apart."""
    path = seeds / "contract_measures.csv"
    (tmp_path / "home").mkdir()
    with duckdb.connect(str(tmp_path / "home" / "analytics.duckdb")) as published:
        published.execute("CREATE SCHEMA mart")
        published.execute(
            "CREATE TABLE mart.vehicle_positions AS SELECT driver_id, 57.5 + driver_id * 0.1 AS latitude, "
            "12.0 + driver_id AS longitude, 0.0 AS speed_kmh, TIMESTAMP '2026-03-01' AS recorded_at "
            "FROM range(5) AS drivers(driver_id)"
        )
    assert run("contract", "check")[0] == 0  # no more than a few drivers may be elsewhere
    path.write_text(path.read_text().replace(*WIDE))
    contracts.load.cache_clear()
    code, output = run("contract", "check", "--json")
    [fit] = [f for f in json.loads(output) if f["domain"] == "vehicle_positions"]
    assert (code, fit["verdict"]) == (1, migrate.UNFIT)
    assert fit["reason"].startswith("nothing could exceed the tolerance of latitude: ")
    path.write_text(path.read_text().replace("degrees,0.5,0,,", "degrees,0.5,0,0.3,"))
    contracts.load.cache_clear()
    assert run("contract", "check")[0] == 0


AWKWARD = (
    "\ufeffowner,domain,note,mode,rest\r\n"
    '"Care, of ""customers""",orders,"two\nlines, and a comma",live,1\r\n'
    "\r\n"
    'x,"quoted",, shadow ,2\r\n'
    "x,last,,batch"
).encode()


def test_a_change_of_mode_changes_nothing_else(seeds: Path) -> None:
    """Quotes, line breaks within a field, Windows' line ends, a byte order mark, no end of the last line."""
    path = seeds / "contracts.csv"
    path.write_bytes(AWKWARD)
    path.chmod(0o640)
    assert migrate.set_mode("orders", "shadow") == "live"
    assert path.read_bytes() == AWKWARD.replace(b'comma",live,', b'comma",shadow,')
    assert migrate.set_mode("orders", "live") == "shadow"
    assert path.read_bytes() == AWKWARD
    assert migrate.set_mode("quoted", "batch") == " shadow "
    assert migrate.set_mode("last", "shadow") == "batch"
    assert path.read_bytes() == AWKWARD.replace(b" shadow ", b"batch").replace(b"last,,batch", b"last,,shadow")
    assert path.stat().st_mode & 0o777 == 0o640
    with pytest.raises(LockstepError, match="no domain parcels"):
        migrate.set_mode("parcels", "batch")


def test_demote_always_works(seeds: Path) -> None:
    """Without log and warehouse, and also where another contract is wrong."""
    code, output = run("demote", "vehicle_positions")
    assert code == 0
    assert "vehicle_positions is shadow now, was live" in output
    assert "route_performance reads it" in output
    assert run("demote", "orders", "--to", "batch")[0] == 0
    assert {d: c.mode for d, c in contracts.load().items() if d in ("orders", "vehicle_positions")} == {
        "orders": "batch",
        "vehicle_positions": "shadow",
    }
    code, output = run("demote", "orders")
    assert code == 1 and "orders is batch" in output
    code, output = run("demote", "vehicle_positions", "--to", "shadow")
    assert code == 1 and "no step down to shadow" in output
    path = seeds / "contracts.csv"
    path.write_text(path.read_text().replace("delivery_status,fleet-operations,live,", "delivery_status,,alive,"))
    contracts.load.cache_clear()
    code, output = run("demote", "vehicle_positions")
    assert code == 0
    assert "vehicle_positions is batch now" in output and "delivery_status" not in output.splitlines()[0]
    assert "vehicle_positions,fleet-operations,batch," in path.read_text()


def test_promote_to_shadow_needs_a_contract_that_fits_and_nothing_else(seeds: Path) -> None:
    migrate.set_mode("orders", "batch")
    assert run("promote", "orders")[0] == 0
    assert contracts.load()["orders"].mode == "shadow"
    migrate.set_mode("orders", "batch")
    path = seeds / "contracts.csv"
    path.write_text(
        path.read_text().replace("orders,commerce-analytics,batch,120,60", "orders,commerce-analytics,batch,720,93600")
    )
    contracts.load.cache_clear()
    code, output = run("promote", "orders")
    assert code == 1 and "the daily rebuild is enough" in output
    assert contracts.load()["orders"].mode == "batch"
    assert run("promote", "delivery_status")[0] == 1  # it is live: there is no further step, nor a log to look at


MIDNIGHT = datetime(2026, 3, 10)


def receipts(*taken: tuple[str, float, str]) -> list[dict[str, Any]]:
    """Receipts in the order they were taken: mode, days from MIDNIGHT to the cut, verdict."""
    return [
        {"mode": mode, "cut": MIDNIGHT + timedelta(days=days), "verdict": verdict, "reconciled_at": i, "measures": []}
        for i, (mode, days, verdict) in enumerate(taken)
    ]


@pytest.mark.parametrize(
    ("taken", "days"),
    [
        ([], 0),
        ([("shadow", 0, "passed"), ("shadow", 1, "passed")], 2),
        ([("shadow", 0, "passed"), ("shadow", 0, "passed")], 1),  # a cut twice
        ([("shadow", 0, "passed"), ("shadow", 0.25, "passed"), ("shadow", 0.5, "passed")], 1),  # on demand
        ([("shadow", 3, "passed"), ("shadow", 1, "passed"), ("shadow", 2, "passed")], 1),  # of the past, on demand
        ([("batch", 0, "passed"), ("shadow", 0, "passed"), ("shadow", 1, "passed")], 1),  # the cut was made in batch
        ([("batch", 2, "passed"), ("shadow", 1, "passed"), ("shadow", 3, "passed")], 1),
        ([("shadow", 0, "passed"), ("live", 1, "passed")], 0),
        ([("shadow", 0, "passed"), ("live", 1, "failed"), ("shadow", 2, "passed")], 1),  # demoted: from the start again
        ([("shadow", 0, "passed"), ("shadow", 1, "failed"), ("shadow", 2, "passed")], 1),
        ([("shadow", 0, "passed"), ("shadow", 1, "failed"), ("shadow", 1, "passed"), ("shadow", 2, "passed")], 2),
        ([("shadow", 0, "passed"), ("shadow", 1.5, "failed"), ("shadow", 1, "passed")], 0),  # before the failed cut
    ],
)
def test_days_in_shadow(taken: list[tuple[str, float, str]], days: int) -> None:
    assert len(migrate._shadow_days(receipts(*taken))) == days


@pytest.mark.parametrize(
    ("changes", "objection"),
    [
        ({}, None),
        ({"receipts": []}, "no receipt yet"),
        ({"receipts": receipts(("live", 0, "passed"))}, "no receipt was taken in shadow"),
        ({"receipts": receipts(("shadow", 0, "passed"), ("shadow", 1, "failed"))}, "the last receipt failed"),
        ({"shadow_days": [1, 2]}, "2 of 3 daily cuts"),
        ({"is_stopped": True}, "an audit stopped the last rebuild"),
        ({"live_until": MIDNIGHT + timedelta(hours=50, seconds=1)}, "more than 50 h ahead"),
    ],
)
def test_what_stands_against_live(changes: dict[str, Any], objection: str | None) -> None:
    found = migrate.Evidence(
        **{
            "receipts": receipts(("shadow", 0, "passed")),
            "shadow_days": [1, 2, 3],
            "live_until": MIDNIGHT + timedelta(hours=50),
            **changes,
        }
    )
    c = contract(mode="shadow", shadow_days=3, receipt_hours=50)
    texts = migrate.objections(c, {"orders": c}, found)
    assert [objection in text for text in texts if objection] == [True] if objection else texts == []
