"""`lockstep log reclock` mends a log whose clock an earlier version let an event carry into the future."""

from __future__ import annotations

import shutil
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner

from lockstep import reclock as module
from lockstep.changelog import ChangeLog, Hold
from lockstep.cli import cli
from lockstep.errors import LockstepError
from lockstep.reclock import reclock
from lockstep.schema import TABLES
from shop import SOURCE, Shop, batch_of

NOON = datetime(2026, 11, 18, 12)
FAR = datetime(2099, 1, 1, 0, 30)
HOUR = timedelta(hours=1)


def rejected(ordinal: int, at: datetime) -> pa.Table:
    return pa.table(
        {
            "ordinal": [ordinal],
            "committed_at": pa.array([at], pa.timestamp("us")),
            "table": ["shipments"],
            "reason": ["planted"],
            "event": ["{}"],
        }
    )


@pytest.fixture
def poisoned(tmp_path: Path) -> Path:
    """Position 3 of 8 is from 2099; 6 is a quarantined event. As the version before landed it: without a rule."""
    home = tmp_path / "home"
    shop = Shop(NOON)
    for n, at in enumerate([NOON, NOON + HOUR, FAR, NOON + 2 * HOUR, NOON + HOUR], 1):
        shop.now = at
        shop.order(n)
    with ChangeLog(home).writer(SOURCE, clock=lambda: FAR) as writer:
        writer.land(batch_of(shop.changes), rejected(9, NOON + 2 * HOUR))
        shop.now = NOON + 3 * HOUR
        shop.product(1, "toys")
        shop.order(6)
        writer.land(batch_of(shop.changes[5:]))
    for name in ("warehouse.duckdb", "state.duckdb", "analytics.duckdb"):
        (home / name).write_bytes(b"computed")
    return home


def rows(home: Path) -> list[tuple[Any, ...]]:
    """What readers find, by their own glob: position, hour of the file less NOON, and logged_at less NOON."""
    found = []
    for name in TABLES:
        for path in (home / "changelog" / name).glob("*/*.parquet"):
            for row in pq.read_table(path, partitioning=None).to_pylist():
                assert path.parent.name == f"hour={row['logged_at']:%Y-%m-%dT%H}"
                found.append((row["position"], (row["logged_at"] - NOON) / HOUR, row["committed_at"]))
    return sorted(found)


def mended(home: Path) -> None:
    assert [(position, at) for position, at, _ in rows(home)] == [
        (1, 0), (2, 1), (3, 1), (4, 2), (5, 2), (7, 3), (8, 3)
    ]  # fmt: skip
    assert rows(home)[2][2] == FAR
    log = ChangeLog(home)
    watermark = log.watermark()
    assert (watermark.position, watermark.logged_at, watermark.started_at) == (8, NOON + 3 * HOUR, NOON)
    assert watermark.holds == {"shipments": Hold(6, NOON + 2 * HOUR, 1)}
    assert watermark.ahead["orders"].position == 3
    assert not any((home / name).exists() for name in ("warehouse.duckdb", "state.duckdb", "analytics.duckdb"))
    [aside] = (home / "debris").iterdir()
    assert (aside / "warehouse.duckdb").exists()
    assert list((aside / "changelog" / "orders").glob("hour=2099-*/*.parquet"))
    assert not list((home / "changelog").glob("*/hour=2099-*")) and not list(
        (home / "changelog").glob("_tail/*/hour=2099*")
    )
    shop = Shop(NOON + 4 * HOUR)
    shop.order(99)
    with log.writer(SOURCE) as writer:
        writer.land(batch_of(shop.changes))
        writer.resolve({}, [e for e in log.quarantined() if e["state"] == "open"])
    assert (log.watermark().logged_at, log.watermark().holds) == (NOON + 4 * HOUR, {})


def test_each_change_gets_the_time_that_the_rule_gives_it(poisoned: Path) -> None:
    result = CliRunner(env={"LOCKSTEP_HOME": str(poisoned)}).invoke(cli, ["log", "reclock"])
    assert result.exit_code == 0, result.output
    assert "5 changes got another logged_at. The log reached to 2099-01-01 00:30:00" in result.output
    mended(poisoned)


def test_where_nothing_is_ahead_nothing_is_done(poisoned: Path) -> None:
    assert reclock(poisoned)
    result = CliRunner(env={"LOCKSTEP_HOME": str(poisoned)}).invoke(cli, ["log", "reclock"])
    assert (result.exit_code, "nothing to do" in result.output) == (0, True)


def test_a_log_that_began_in_the_future(tmp_path: Path) -> None:
    shop = Shop(FAR)
    shop.order(1)
    shop.now = NOON
    shop.order(2)
    with ChangeLog(tmp_path).writer(SOURCE, clock=lambda: FAR) as writer:
        writer.land(batch_of(shop.changes))
    done = reclock(tmp_path)
    assert done and (done.watermark.started_at, done.watermark.logged_at) == (NOON, NOON)
    assert [(p, at) for p, at, _ in rows(tmp_path)] == [(1, 0), (2, 0)]


@pytest.mark.parametrize("at", [datetime(1970, 1, 1, 0, 30), datetime(1970, 1, 5)])
def test_a_log_that_began_in_1970(tmp_path: Path, at: datetime, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also in its first hour, where the files are that carry the schemas."""
    shop = Shop(at)
    shop.order(1)
    shop.order(2)
    shop.now = NOON
    shop.order(3)
    shop.now = NOON + HOUR
    shop.order(4)
    with monkeypatch.context() as patch:
        patch.setattr(module.changelog, "NO_TIME", datetime(1969, 1, 1))
        with ChangeLog(tmp_path).writer(SOURCE) as writer:
            writer.land(batch_of(shop.changes))
    assert rows(tmp_path)[0][1] < -400_000
    done = reclock(tmp_path)
    assert done and done.changes == 2
    assert (done.watermark.started_at, done.watermark.logged_at) == (NOON, NOON + HOUR)
    assert [(p, hour) for p, hour, _ in rows(tmp_path)] == [(1, 0), (2, 0), (3, 0), (4, 1)]
    assert [row[2] for row in rows(tmp_path)[:2]] == [at, at]
    assert all((tmp_path / "changelog" / name / module.changelog.NO_HOUR / "0-0.parquet").exists() for name in TABLES)
    assert reclock(tmp_path) is None


def test_a_keep_alive_from_the_future(tmp_path: Path) -> None:
    shop = Shop(NOON)
    shop.order(1)
    with ChangeLog(tmp_path).writer(SOURCE, clock=lambda: FAR) as writer:
        writer.land(batch_of(shop.changes), reached=FAR)
    done = reclock(tmp_path)
    assert done and (done.changes, done.watermark.logged_at) == (0, NOON)


@pytest.mark.parametrize("step", range(1, 12))
def test_interrupted_at_any_step_it_is_finished_by_the_next(
    poisoned: Path, step: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps = iter(range(1, 1000))

    def dying(function: Any) -> Any:
        def call(*arguments: Any, **options: Any) -> Any:
            if next(steps) == step:
                raise KeyboardInterrupt
            return function(*arguments, **options)

        return call

    with monkeypatch.context() as patch:
        patch.setattr(module.durable, "durable_replace", dying(module.durable.durable_replace))
        patch.setattr(module.staging, "durable_parquet", dying(module.staging.durable_parquet))
        patch.setattr(shutil, "move", dying(shutil.move))
        try:
            reclock(poisoned)
        except KeyboardInterrupt:
            if (poisoned / "changelog" / "reclocking.json").exists():
                with pytest.raises(LockstepError, match="log reclock` was interrupted"):
                    ChangeLog(poisoned).require_changes()
                with pytest.raises(LockstepError, match="Give it again"), ChangeLog(poisoned).writer(SOURCE):
                    pass
    reclock(poisoned)
    mended(poisoned)
