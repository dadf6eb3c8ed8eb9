"""The simulated company: the same at every run, whole, unbroken, and as hard as a real log.

Awkward cases: killed between batches and within one, asked again with other options, an until within a quiet night,
rates below one change a second.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path

import duckdb
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner

from lockstep.changelog import ChangeLog
from lockstep.cli import cli
from lockstep.errors import LockstepError
from lockstep.schema import TABLES
from lockstep.simulate import History, choose_history, land_history, progress
from lockstep.simulate_live import Company, _state, live
from lockstep.simulate_world import ENTITIES

SMALL = History(until=datetime(2026, 11, 18, 13, 37, 5), days=3, orders_per_day=300)
LARGE = History(until=datetime(2026, 11, 18, 23, 0), days=3, orders_per_day=3000)


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> ChangeLog:
    log = ChangeLog(tmp_path_factory.mktemp("small"))
    land_history(log, SMALL)
    return log


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> ChangeLog:
    log = ChangeLog(tmp_path_factory.mktemp("large"))
    land_history(log, LARGE)
    return log


def rows(log: ChangeLog, name: str) -> pa.Table:
    return pa.concat_tables([pq.read_table(p, partitioning=None) for p in log.files(name)])


def contents(log: ChangeLog) -> dict[str, bytes]:
    return {str(p.relative_to(log.root)): p.read_bytes() for p in log.root.rglob("*.parquet")}


def views(log: ChangeLog) -> duckdb.DuckDBPyConnection:
    """A view for each table, and `every` over the coordinates of all."""
    db = duckdb.connect()
    for name in TABLES:
        db.execute(f"CREATE VIEW {name} AS FROM read_parquet({[str(p) for p in log.files(name)]})")
    coordinates = "SELECT position, logged_at, committed_at, tx_id, lsn, op FROM"
    db.execute("CREATE VIEW every AS " + " UNION ALL ".join(f"{coordinates} {name}" for name in TABLES))
    return db


def one(db: duckdb.DuckDBPyConnection, sql: str) -> int:
    found = db.execute(sql).fetchone()
    assert found is not None
    return int(found[0])


def broken_links(log: ChangeLog, name: str) -> int:
    """By SQL: changes whose before image is not the after image of the change before them, or whose op is illegal."""
    key = ", ".join(f"coalesce(after.{k}, before.{k})" for k in TABLES[name].key)
    return one(
        views(log),
        f"""
        WITH linked AS (
          SELECT *, lag(after) OVER chain AS previous
          FROM {name} WINDOW chain AS (PARTITION BY {key} ORDER BY position)
        )
        SELECT count(*) FROM linked
        WHERE before IS DISTINCT FROM previous
          OR (op IN ('c', 'r')) <> (previous IS NULL)
          OR (op = 'd') <> (after IS NULL)
        """,
    )


def assert_chain_by_python(log: ChangeLog, name: str) -> None:
    state: dict[tuple[object, ...], object] = {}
    for row in rows(log, name).sort_by("position").to_pylist():
        before, after = row["before"], row["after"]
        key = tuple((after or before)[k] for k in TABLES[name].key)
        assert (row["op"] in "cr") == (before is None)
        assert (row["op"] == "d") == (after is None)
        assert before == state.get(key), row
        state[key] = after


@pytest.mark.parametrize("name", TABLES)
def test_chain_is_unbroken(small: ChangeLog, large: ChangeLog, name: str) -> None:
    assert rows(small, name).num_rows
    assert_chain_by_python(small, name)
    assert broken_links(small, name) == 0
    assert broken_links(large, name) == 0


def test_images_have_the_columns_of_the_source() -> None:
    for name, entity in ENTITIES.items():
        named = [line.split(":=")[0].strip() for line in entity.image.splitlines() if ":=" in line]
        assert named == [c.name for c in TABLES[name].columns]


def test_needed_columns_are_never_null(large: ChangeLog) -> None:
    db = views(large)
    for name, table in TABLES.items():
        for column in table.columns:
            if not column.nullable:
                nulls = f"SELECT count(*) FROM {name} WHERE after IS NOT NULL AND after.{column.name} IS NULL"
                assert one(db, nulls) == 0, f"{name}.{column.name}"


def test_same_parameters_same_log(small: ChangeLog, tmp_path: Path) -> None:
    again, other = ChangeLog(tmp_path / "again"), ChangeLog(tmp_path / "other")
    land_history(again, SMALL)
    assert contents(again) == contents(small)
    land_history(other, History(**{**vars(SMALL), "seed": 8}))
    assert contents(other) != contents(small)


def test_positions_are_gapless_and_transactions_adjacent(small: ChangeLog) -> None:
    db = views(small)
    assert (
        one(db, "SELECT count(*) FROM every")
        == small.watermark().position
        == one(db, "SELECT max(position) FROM every")
    )
    assert one(db, "SELECT count(DISTINCT position) FROM every") == small.watermark().position
    transactions = """
        SELECT min(position) AS first, max(position) AS last, count(*) AS n, count(DISTINCT committed_at) AS times
        FROM every GROUP BY tx_id
    """
    assert one(db, f"SELECT count(*) FROM ({transactions}) WHERE last - first + 1 <> n OR times <> 1") == 0
    ordered = "SELECT *, lag(tx_id) OVER o AS tx, lag(lsn) OVER o AS l FROM every WINDOW o AS (ORDER BY position)"
    assert one(db, f"SELECT count(*) FROM ({ordered}) WHERE tx_id < tx OR lsn < l") == 0


def test_history_begins_with_a_snapshot_and_ends_at_until(small: ChangeLog) -> None:
    db = views(small)
    watermark = small.watermark()
    assert watermark.started_at == SMALL.start
    assert watermark.logged_at == SMALL.until
    assert one(db, "SELECT count(*) FROM every WHERE committed_at >= TIMESTAMP '2026-11-18 13:37:05'") == 0
    assert one(db, "SELECT max(position) FROM every WHERE op = 'r'") == one(
        db, "SELECT count(*) FROM every WHERE op = 'r'"
    )
    for name in ("customers", "products", "drivers", "orders"):
        assert one(db, f"SELECT count(*) FROM {name} WHERE op = 'r'")


HARD = {
    "spellings of status": ("SELECT count(DISTINCT after.status) FROM orders", 14),
    "amount": ("SELECT count(*) FROM orders WHERE before.amount_cents <> after.amount_cents", 100),
    "quantity": ("SELECT count(*) FROM orders WHERE before.quantity <> after.quantity", 40),
    "region": ("SELECT count(*) FROM orders WHERE before.region <> after.region", 40),
    "product": ("SELECT count(*) FROM orders WHERE before.product_id <> after.product_id", 40),
    "hour": ("SELECT count(*) FROM orders WHERE before.ordered_at <> after.ordered_at", 80),
    "day": ("SELECT count(*) FROM orders WHERE before.ordered_at::DATE <> after.ordered_at::DATE", 30),
    "late": ("SELECT count(*) FROM orders WHERE op = 'c' AND committed_at - after.ordered_at > INTERVAL 1 HOUR", 100),
    "days late": (
        "SELECT count(*) FROM orders WHERE op = 'c' AND committed_at - after.ordered_at > INTERVAL 1 DAY",
        10,
    ),
    "cancelled": ("SELECT count(*) FROM orders WHERE after.status ILIKE '%cancel%' AND op = 'u'", 300),
    "deleted": ("SELECT count(*) FROM orders WHERE op = 'd'", 50),
    "inserted again": (
        """
        WITH linked AS (
          SELECT op, lag(op) OVER (PARTITION BY coalesce(after, before).order_id ORDER BY position) AS previous
          FROM orders
        )
        SELECT count(*) FROM linked WHERE op = 'c' AND previous = 'd'
        """,
        10,
    ),
    "deleted and inserted again at once": (
        "SELECT count(*) FROM orders d JOIN orders c ON d.op = 'd' AND c.op = 'c' AND d.tx_id = c.tx_id "
        "AND d.before.order_id = c.after.order_id",
        5,
    ),
    "key update": (
        "SELECT count(*) FROM orders d JOIN orders c ON d.op = 'd' AND c.op = 'c' AND d.tx_id = c.tx_id "
        "AND d.before.order_id <> c.after.order_id",
        2,
    ),
    "bulk update": ("SELECT max(n) FROM (SELECT count(*) AS n FROM orders WHERE op = 'u' GROUP BY tx_id)", 100),
    "several tables": (
        "SELECT count(*) FROM orders o SEMI JOIN shipments s USING (tx_id) SEMI JOIN route_stops r USING (tx_id) "
        "WHERE o.op = 'u'",
        5000,
    ),
    "out of order": ("SELECT count(*) FROM every WHERE committed_at < logged_at - INTERVAL 1 SECOND", 100),
    "ties": (
        "SELECT count(*) FROM (SELECT after.updated_at FROM orders WHERE op = 'u' GROUP BY 1 HAVING count(*) > 100)",
        1,
    ),
    "over 1,000.00": ("SELECT count(*) FROM orders WHERE op = 'c' AND after.amount_cents > 100000", 200),
    "over 10,000.00": ("SELECT count(*) FROM orders WHERE op = 'c' AND after.amount_cents > 1000000", 1),
    "category": ("SELECT count(*) FROM products WHERE before.category <> after.category", 10),
    "price": ("SELECT count(*) FROM products WHERE before.price_cents <> after.price_cents", 40),
    "customer moves": ("SELECT count(*) FROM customers WHERE before.region <> after.region", 10),
    "shipment planned": ("SELECT count(*) FROM shipments WHERE before.route_id IS NULL AND after.route_id > 0", 5000),
    "shipment fails": ("SELECT count(*) FROM shipments WHERE after.exception_code IS NOT NULL", 300),
    "delivered next day": (
        "SELECT count(*) FROM shipments WHERE after.status = 'delivered' AND after.exception_code IS NOT NULL",
        100,
    ),
    "stop completed": ("SELECT count(*) FROM route_stops WHERE before.completed_at IS NULL AND op = 'u'", 5000),
    "route reassigned": ("SELECT count(*) FROM routes WHERE before.driver_id <> after.driver_id", 5),
    "device lags": ("SELECT count(*) FROM gps_pings WHERE committed_at - after.recorded_at > INTERVAL 2 MINUTE", 100),
    "device leads": ("SELECT count(*) FROM gps_pings WHERE after.recorded_at - committed_at > INTERVAL 10 SECOND", 100),
}


@pytest.mark.parametrize("case", HARD)
def test_log_is_as_hard_as_a_real_one(large: ChangeLog, case: str) -> None:
    sql, at_least = HARD[case]
    assert one(views(large), sql) >= at_least


def test_nights_are_quiet_and_sealed(large: ChangeLog) -> None:
    db = views(large)
    assert one(db, "SELECT count(*) FROM every WHERE hour(logged_at) < 4") == 0
    assert large.watermark().sealed_until(TABLES) == LARGE.until


def test_amounts_and_most_orders_are_ordinary(large: ChangeLog) -> None:
    db = views(large)
    share = "100 * avg((after.amount_cents > {})::INTEGER) FROM orders WHERE op = 'c'"
    assert 1 <= one(db, f"SELECT {share.format(100_000)}") <= 15
    assert one(db, f"SELECT {share.format(1_000_000)}") < 2
    assert one(db, "SELECT count(*) FROM orders WHERE after.amount_cents < 0 OR after.quantity <= 0") == 0


def test_until_in_a_quiet_night(tmp_path: Path) -> None:
    log = ChangeLog(tmp_path)
    land_history(log, History(until=datetime(2026, 11, 18, 2, 30), days=1, orders_per_day=20))
    assert log.watermark().sealed_until(TABLES) == datetime(2026, 11, 18, 2)


class Killed(Exception):
    pass


def test_interrupted_history_is_finished_by_asking_again(small: ChangeLog, tmp_path: Path) -> None:
    """Interrupted after its first batch, resumed and interrupted after one more, and after two more."""
    log, history = ChangeLog(tmp_path), SMALL
    for batches in (1, 2, 4):

        def kill(now, watermark, batches=batches):
            if now.batches == batches:
                raise Killed

        with pytest.raises(Killed):
            land_history(log, history, kill)
        # Without --until it is the interrupted history's, not the present.
        history = choose_history(log, None, None, SMALL.orders_per_day, None)
        assert history == SMALL
    land_history(log, history)
    assert contents(log) == contents(small)
    assert progress(log) == progress(small)


KILL = """
import os, signal, sys
from datetime import datetime
from pathlib import Path
from lockstep import changelog, simulate, staging

stage, count = staging.Stager._stage, 0

def stage_and_die(self, write):
    global count
    count += 1
    if count == int(sys.argv[2]):
        os.kill(os.getpid(), signal.SIGKILL)
    return stage(self, write)

staging.Stager._stage = stage_and_die
history = simulate.History(until=datetime(2026, 11, 18, 13, 37, 5), days=3, orders_per_day=300)
simulate.land_history(changelog.ChangeLog(Path(sys.argv[1])), history)
"""


def test_killed_in_a_batch_and_finished(small: ChangeLog, tmp_path: Path) -> None:
    """Killed at its 12th file; what goes on from there at its 60th, and what goes on from there at its 200th."""
    log, positions = ChangeLog(tmp_path), []
    for file in ("12", "60", "200"):
        result = subprocess.run([sys.executable, "-c", KILL, str(tmp_path), file])
        assert result.returncode == -signal.SIGKILL
        positions.append(log.watermark().position)
    assert positions == sorted(positions)
    assert positions[-1] > positions[0]
    land_history(log, choose_history(log, None, None, SMALL.orders_per_day, None))
    assert contents(log) == contents(small)


def test_other_options_do_not_finish_an_interrupted_history(tmp_path: Path) -> None:
    log = ChangeLog(tmp_path)

    def kill(now, watermark):
        raise Killed

    with pytest.raises(Killed):
        land_history(log, SMALL, kill)
    before = log.watermark()
    with pytest.raises(LockstepError, match="--seed 7 --days 3 --orders-per-day 300 --until 2026-11-18T13:37:05"):
        choose_history(log, 8, None, 300, None)
    with pytest.raises(LockstepError, match="interrupted"):
        choose_history(log, None, None, None, None)
    with pytest.raises(LockstepError, match="another history"):
        land_history(log, History(until=SMALL.until, orders_per_day=10))
    with pytest.raises(LockstepError, match="no finished simulated history"):
        live(log, rate=10, seconds=1)
    assert log.watermark() == before


def lockstep(home: Path, *arguments: str):
    return CliRunner().invoke(cli, ["simulate", *arguments], env={"LOCKSTEP_HOME": str(home)})


def test_finished_history_is_not_simulated_again(small: ChangeLog) -> None:
    before = small.watermark()
    result = lockstep(small.home)
    assert isinstance(result.exception, LockstepError)
    assert "already holds simulated changes up to 2026-11-18 13:37:05" in str(result.exception)
    result = lockstep(small.home, "--live", "--days", "3")
    assert "already has one" in str(result.exception)
    assert small.watermark() == before


def test_log_of_another_source_is_refused(tmp_path: Path) -> None:
    log = ChangeLog(tmp_path)
    with log.writer("postgresql:shop"):
        pass
    for arguments in ([], ["--live"]):
        result = lockstep(tmp_path, *arguments)
        assert isinstance(result.exception, LockstepError)
        assert "postgresql:shop" in str(result.exception)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--days", "0"], "0 is not in the range"),
        (["--orders-per-day", "0"], "0 is not in the range"),
        (["--seed", "-1"], "-1 is not in the range"),
        (["--live", "--rate", "0"], "not in the range"),
        (["--live", "--for", "0"], "not in the range"),
        (["--rate", "5"], "add --live"),
        (["--for", "5"], "add --live"),
        (["--until", "noon"], "'noon' is not a time"),
        (["--until", "2000-01-02"], "after the year 2000"),
    ],
)
def test_mistakes_are_named_and_nothing_is_written(tmp_path: Path, arguments: list[str], message: str) -> None:
    result = lockstep(tmp_path, *arguments)
    assert result.exit_code != 0
    assert message in result.output + str(result.exception)
    assert not ChangeLog(tmp_path).exists()


def test_help_teaches() -> None:
    result = CliRunner().invoke(cli, ["simulate", "--help"])
    assert "Examples:" in result.output
    assert "lockstep simulate --live" in result.output


def test_command_reports(tmp_path: Path) -> None:
    arguments = ("--days", "1", "--orders-per-day", "50", "--until", "2026-11-18 12:00+02:00", "--json")
    result = lockstep(tmp_path, *arguments)
    assert result.exit_code == 0, result.output
    summary = json.loads(result.stdout)
    assert summary["until"] == "2026-11-18T10:00:00"
    assert summary["changes"] == summary["position"] == ChangeLog(tmp_path).watermark().position


@pytest.fixture
def lively(tmp_path: Path) -> ChangeLog:
    log = ChangeLog(tmp_path)
    now = datetime.now(UTC).replace(tzinfo=None, microsecond=0)
    land_history(log, History(until=now, days=1, orders_per_day=200))
    return log


def test_live_goes_on_from_the_log(lively: ChangeLog) -> None:
    until, position, reached = lively.watermark().logged_at, lively.watermark().position, []
    result = live(lively, rate=2000, seconds=2, on_batch=lambda b: reached.append(b.watermark.logged_at))
    again = live(lively, rate=500, seconds=1)
    assert until is not None
    assert 0 < result.changes <= 2000 * result.seconds * 1.2  # a busy machine does not come to as many
    assert reached
    assert reached == sorted(reached)
    assert reached[0] > until
    assert lively.watermark().position == position + result.changes + again.changes
    for name in TABLES:
        assert_chain_by_python(lively, name)
        assert broken_links(lively, name) == 0
    live_ops = {
        op for name in TABLES for op in rows(lively, name).filter(pc.field("position") > position)["op"].to_pylist()
    }
    assert live_ops == set("cud")


def test_live_moves_the_watermark_without_changes(lively: ChangeLog) -> None:
    before = lively.watermark()
    result = live(lively, rate=0.001, seconds=0.6)
    assert result.changes == 0
    assert result.watermark.position == before.position
    assert result.watermark.logged_at > before.logged_at


def test_live_draws_are_determined_by_the_log(lively: ChangeLog) -> None:
    since = datetime(2030, 1, 1)
    first, second = (Company(_state(lively), "7").work(200, since, since + timedelta(seconds=1)) for _ in range(2))
    assert first == second
    assert 200 <= sum(table.num_rows for table in first.values()) < 260


def test_live_forgets_what_is_over(lively: ChangeLog, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lockstep.simulate_live.WORKING_SET", 100)
    company = Company(_state(lively), "7")
    since = datetime(2030, 1, 1)
    for i in range(20):
        company.work(1000, since + timedelta(seconds=i), since + timedelta(seconds=i + 1))
    assert len(company._stage["closed"]) <= 100
    assert len(company._rows["orders"]) < 1500
    assert len(company._keys["orders"]) < 5000


def test_live_into_the_past_is_refused(tmp_path: Path) -> None:
    log = ChangeLog(tmp_path)
    land_history(log, History(until=datetime(2100, 1, 1), days=1, orders_per_day=10))
    with pytest.raises(LockstepError, match="in the future"):
        live(log, rate=1, seconds=1)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_live_on_an_empty_home_ends_well_on_a_signal(tmp_path: Path, number: int) -> None:
    command = [sys.executable, "-m", "lockstep.cli", "simulate", "--days", "1", "--orders-per-day", "50"]
    command += ["--live", "--json"]
    environment = {**os.environ, "LOCKSTEP_HOME": str(tmp_path)}
    process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True)
    log = ChangeLog(tmp_path)
    while process.poll() is None:
        if (
            log.exists()
            and (now := progress(log))
            and now.is_finished
            and log.watermark().logged_at > now.history.until
        ):
            process.send_signal(number)
            break
        time.sleep(0.02)
    output, _ = process.communicate(timeout=120)
    assert process.returncode == 0
    assert json.loads(output)["position"] == log.watermark().position
