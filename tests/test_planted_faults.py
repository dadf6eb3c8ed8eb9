"""Each way in which a figure can go wrong is planted in a home that had passed; a named audit must stop the run.

Every test shows three things: which audit found the fault, which class `lockstep explain` gives it, and that what had
been verified before is still there as it was. Some also show that the advice `explain` gives heals the home.

The home: cuts at the midnights of 2 and 3 March passed. The hours up to 3 March 05:00 are folded, those after it have
landed only. The run in which the fault must be found is that of 4 March 05:00.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from lockstep import contracts, explain, operate, warehouse
from lockstep.changelog import ChangeLog
from lockstep.errors import LockstepError
from replay import Replay
from shop import SOURCE, Shop, land

ROOT = Path(__file__).parent.parent
BIN = Path(sys.executable).parent
LAST_RUN = datetime(2026, 3, 4, 5)
PARTS_OF_A_PROJECT = ["audits", "linter", "macros", "materializations", "models", "seeds", "signals"]

Row = dict[str, Any]
# After these the increments or the log are in doubt, and with them every live figure.
STOPS_LIVE = {"positions_gapless", "log_is_complete", "image_chain_unbroken", "rebuild_equals_increments"}
CAUGHT_IN: dict[str, list[str]] = {}


def catches(audit: str) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Marks the test in which `audit` fails; `test_every_audit_has_a_fault_that_fails_it` counts on these marks."""

    def mark(test: Callable[..., None]) -> Callable[..., None]:
        CAUGHT_IN.setdefault(audit, []).append(test.__name__)
        return test

    return mark


class Home:
    """A data home, with the means to damage it and to look at it."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def run(self, at: datetime = LAST_RUN) -> operate.Run:
        return operate.run(self.path, at)

    def assert_passes(self, at: datetime = LAST_RUN) -> None:
        result = self.run(at)
        assert result.failures == []
        assert result.agrees
        assert self.served_from() == "live"

    def assert_stopped_by(self, audit: str, model: str, at: datetime = LAST_RUN) -> None:
        """The run fails on this audit of this model and on nothing else, and what had been verified is untouched."""
        before = self.verified()
        result = self.run(at)
        assert not result.agrees
        assert [re.findall(r"^(\S+): audit (\w+) found", failure) for failure in result.failures] == [[(model, audit)]]
        assert self.verified() == before
        if audit in STOPS_LIVE:
            assert self.served_from() == "rebuild"

    def served_from(self) -> str:
        [serving] = self.query("SELECT served_from FROM ops.serving WHERE domain = 'orders'")
        return str(serving["served_from"])

    def explained(self) -> list[tuple[str, Any]]:
        """Class and key of every finding."""
        contracts.load.cache_clear()
        return [(f.kind, f.key) for f in explain.explain(self.path, contracts.load()["orders"]).findings]

    def restate(self, start: str, at: datetime = LAST_RUN) -> None:
        """What the runbook says: restate the hours from `start` on, and everything that depends on them."""
        models = ["--restate-model", "hourly.log", "--restate-model", "hourly.orders"]
        times = ["--start", start, "--execution-time", str(at)]
        plan = command("sqlmesh", "plan", *models, *times, "--auto-apply", "--no-prompts", "--skip-tests")
        assert plan.returncode == 0, plan.stdout

    def query(self, query: str) -> list[Row]:
        with warehouse.reader(self.path) as connection:
            return warehouse.rows(connection, query)

    def verified(self) -> list[list[Row]]:
        """All that must outlive a failed run: generations, and the receipts that vouch for them."""
        return [
            self.query("SELECT * FROM verified.orders ORDER BY ALL"),
            self.query("SELECT * FROM verified.orders_daily ORDER BY ALL"),
            self.query("SELECT * FROM reconcile.receipts WHERE verdict = 'passed' ORDER BY reconciled_at"),
        ]

    def edit(self, position: int, change: Callable[[list[Row], Row], None]) -> Callable[[], None]:
        """Rewrite the file of `orders` with `position`: `change` gets its rows and that one. Returns what undoes it."""
        for path in ChangeLog(self.path).files("orders"):
            file = pq.ParquetFile(path).read()
            rows = file.to_pylist()
            found = [row for row in rows if row["position"] == position]
            if found:
                content = path.read_bytes()
                change(rows, found[0])
                pq.write_table(pa.Table.from_pylist(rows, schema=file.schema), path)
                return lambda: path.write_bytes(content) and None
        raise AssertionError(f"no change of an order has the position {position}")

    def tamper(self, statement: str, model: str) -> None:
        """Change the table behind a model; the statement names it `{table}`."""
        name = model.replace(".", "__")
        with duckdb.connect(str(self.path / "warehouse.duckdb")) as connection:
            [(schema, table)] = connection.execute(
                "SELECT schema_name, table_name FROM duckdb_tables() WHERE regexp_full_match(table_name, ?)",
                [rf"{name}__\d+"],
            ).fetchall()
            connection.execute(statement.format(table=f'"{schema}"."{table}"'))


def lose(rows: list[Row], row: Row) -> None:
    rows.remove(row)


def double(rows: list[Row], row: Row) -> None:
    rows.append(row)


def add_a_cent(rows: list[Row], row: Row) -> None:
    row["after"]["amount_cents"] += 1


# The positions of the changes that the tests damage.
FIRST_OF_ORDER_2 = 3  # folded and verified; order 2 changes again later
PAID_4 = 9  # folded, not yet verified; order 4 changes again later
PLACED_5 = 10  # folded, not yet verified; nothing happens to order 5 afterwards
MOVED_2 = 12  # landed, not folded


def _tell_the_story(replay: Replay) -> None:
    shop = replay.shop
    with shop.transaction():
        shop.product(1, "books")
        shop.order(1, amount_cents=5_000)
        shop.order(2, status="lost?")
        shop.order(3)
    shop.now = datetime(2026, 3, 1, 10, 20)
    shop.change(1, status="paid")
    shop.now = datetime(2026, 3, 2, 9)
    shop.change(1, amount_cents=7_000)
    replay.land(sizes=[1] * 9)
    replay.run(datetime(2026, 3, 2, 5))
    shop.now = datetime(2026, 3, 2, 15, 30)
    with shop.transaction():
        shop.delete(3)
        shop.order(4)
    shop.now = datetime(2026, 3, 3, 2, 10)
    shop.change(4, status="paid")
    shop.now = datetime(2026, 3, 3, 3, 10)
    shop.order(5)
    replay.land(sizes=[1] * 9, reached=datetime(2026, 3, 3, 5))
    replay.run(datetime(2026, 3, 3, 5))
    shop.now = datetime(2026, 3, 3, 9, 10)
    with shop.transaction():
        shop.change(1, status="shipped")
        shop.change(2, region="south")
        shop.order(6)
    shop.now = datetime(2026, 3, 3, 14, 10)
    shop.change(4, amount_cents=250_000)
    replay.land(sizes=[1] * 9, reached=datetime(2026, 3, 4, 4, 30))


@pytest.fixture(scope="session")
def passed(tmp_path_factory: pytest.TempPathFactory) -> Replay:
    path = tmp_path_factory.mktemp("passed")
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setenv("LOCKSTEP_HOME", str(path))
        monkeypatch.chdir(ROOT)
        replay = Replay(path, Shop(datetime(2026, 3, 1, 8, 10)))
        _tell_the_story(replay)
        return replay


@pytest.fixture
def home(passed: Replay, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Home:
    """A copy of the home that passed, for one test to damage."""
    path = tmp_path / "home"
    shutil.copytree(passed.home, path)
    monkeypatch.setenv("LOCKSTEP_HOME", str(path))
    monkeypatch.chdir(ROOT)
    return Home(path)


@pytest.fixture
def empty_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Home:
    monkeypatch.setenv("LOCKSTEP_HOME", str(tmp_path / "home"))
    monkeypatch.chdir(ROOT)
    return Home(tmp_path / "home")


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A copy of the project, to edit. What runs in it is run as its own process, as a user would."""
    path = tmp_path / "project"
    path.mkdir()
    shutil.copy(ROOT / "config.yaml", path)
    for part in PARTS_OF_A_PROJECT:
        shutil.copytree(ROOT / part, path / part, ignore=shutil.ignore_patterns("__pycache__"))
    return path


def command(*words: str, cwd: Path = ROOT) -> subprocess.CompletedProcess[str]:
    """Run a command of the environment in a process of its own; stdout and stderr come as one text."""
    return subprocess.run(
        [str(BIN / words[0]), *words[1:]],
        cwd=cwd,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        env=os.environ | {"COLUMNS": "300"},
        check=False,
    )


def replace(path: Path, old: str, new: str) -> None:
    text = path.read_text(encoding="utf-8")
    assert old in text, f"{path} no longer says {old!r}: the test plants nothing"
    path.write_text(text.replace(old, new), encoding="utf-8")


def test_the_home_passes_while_nothing_is_planted(home: Home) -> None:
    """Without it a test below could fail its run for a reason that has nothing to do with its fault."""
    home.assert_passes()
    assert home.explained() == []


# lost


@catches("positions_gapless")
def test_event_lost_before_its_hour_is_folded(home: Home) -> None:
    """Without it an order would be missing from every figure alike, and the receipt would pass."""
    restore = home.edit(MOVED_2, lose)
    home.assert_stopped_by("positions_gapless", "hourly.log")
    assert (explain.LOST, None) in home.explained()
    assert not home.query("SELECT * FROM hourly.orders WHERE log_hour >= '2026-03-03 09:00:00'")
    restore()
    home.assert_passes()


@catches("log_is_complete")
def test_event_lost_after_its_hour_was_folded(home: Home) -> None:
    """Without it the increments would still know an order that the rebuild can no longer find."""
    restore = home.edit(PLACED_5, lose)
    home.assert_stopped_by("log_is_complete", "rebuild.cut")
    assert (explain.LOST, None) in home.explained()
    restore()
    home.assert_passes()


@catches("log_is_complete")
def test_file_lost_after_its_hour_was_folded(home: Home) -> None:
    """Without it an hour of which nothing is left would not be compared at all."""
    [path] = [p for p in ChangeLog(home.path).files("orders") if p.name == f"{PLACED_5}-{PLACED_5}.parquet"]
    path.unlink()
    home.assert_stopped_by("log_is_complete", "rebuild.cut")
    assert (explain.LOST, None) in home.explained()


@catches("log_is_complete")
def test_last_event_of_the_log_lost(home: Home) -> None:
    """Without it the end of the log could be cut off: there is nothing after it whose position would show the gap."""
    path = ChangeLog(home.path).files("orders")[-1]
    content = path.read_bytes()
    path.unlink()
    home.assert_stopped_by("log_is_complete", "rebuild.cut")
    assert home.explained() == [(explain.LOST, None)]
    path.write_bytes(content)
    home.restate("2026-03-03 14:00:00")
    home.assert_passes()


# doubled


@catches("positions_gapless")
def test_event_doubled_before_its_hour_is_folded(home: Home) -> None:
    """Without it an order would be counted twice by the increments, and wrong figures be served until the night."""
    restore = home.edit(MOVED_2, double)
    home.assert_stopped_by("positions_gapless", "hourly.log")
    assert (explain.DUPLICATED, None) in home.explained()
    restore()
    home.assert_passes()


@catches("log_is_complete")
def test_event_doubled_after_its_hour_was_folded(home: Home) -> None:
    """Without it a copy would stay unseen where the rebuild takes only the latest image of a key."""
    restore = home.edit(PLACED_5, double)
    home.assert_stopped_by("log_is_complete", "rebuild.cut")
    assert (explain.DUPLICATED, None) in home.explained()
    restore()
    home.assert_passes()


@catches("image_chain_unbroken")
def test_event_landed_twice(passed: Replay, home: Home) -> None:
    """Without it a change under two positions would be added twice: no position is missing, the rebuild is right."""
    last = passed.landed[-1]
    assert last.op == "u"
    land(home.path, [last], reached=datetime(2026, 3, 4, 5))
    home.assert_stopped_by("image_chain_unbroken", "rebuild.orders", at=datetime(2026, 3, 5, 5))
    assert home.explained() == [(explain.DUPLICATED, 4)]


# altered


@catches("image_chain_unbroken")
def test_cent_changed_in_a_key_that_changed_later(home: Home) -> None:
    """Without it an image could be changed that neither path uses any more, and the log no longer be evidence."""
    restore = home.edit(FIRST_OF_ORDER_2, add_a_cent)
    home.assert_stopped_by("image_chain_unbroken", "rebuild.orders")
    assert (explain.ALTERED, 2) in home.explained()
    restore()
    home.assert_passes()


@catches("rebuild_equals_increments")
def test_cent_changed_in_one_file_after_its_hour_was_folded(home: Home) -> None:
    """Without it one cent could come or go between two figures that both claim to be right."""
    restore = home.edit(PLACED_5, add_a_cent)
    home.assert_stopped_by("rebuild_equals_increments", "reconcile.orders_receipts")

    [receipt] = home.query("SELECT * FROM reconcile.receipts ORDER BY reconciled_at DESC LIMIT 1")
    assert (receipt["verdict"], receipt["cells_differing"]) == ("failed", 1)
    assert receipt["divergence"]["revenue_cents"] == 1
    assert receipt["rebuild_fingerprint"] != receipt["increments_fingerprint"]
    assert [kind for kind, _ in home.explained()] == [explain.CHANGED_LATER]

    [serving] = home.query("SELECT * FROM ops.serving")
    assert serving["served_from"] == "rebuild"
    assert serving["as_of"] == datetime(2026, 3, 3)
    served = "SELECT ordered_hour, product_id, region, status, orders, units, revenue_cents, high_value_orders FROM "
    assert home.query(f"{served} mart.orders ORDER BY ALL") == home.query(
        f"{served} verified.orders WHERE cut = '2026-03-03' ORDER BY ALL"
    )

    restore()
    home.restate("2026-03-03 03:00:00")
    home.assert_passes()
    [serving] = home.query("SELECT * FROM ops.serving")
    assert serving["served_from"] == "live"


@catches("live_equals_rebuild_at_its_cut")
def test_cent_changed_in_a_verified_generation(home: Home) -> None:
    """Without it the base of live figures could rot: both paths agree, and what was served all day was wrong."""
    home.tamper(
        "UPDATE {table} SET revenue_cents = revenue_cents + 1 WHERE cut = '2026-03-03' AND status = 'paid'",
        "verified.orders",
    )
    tampered = home.query("SELECT * FROM verified.orders WHERE cut <= '2026-03-03' ORDER BY ALL")
    result = home.run()
    assert [f.split(" found")[0] for f in result.failures] == ["verified.orders: audit live_equals_rebuild_at_its_cut"]
    assert home.query("SELECT * FROM verified.orders WHERE cut <= '2026-03-03' ORDER BY ALL") == tampered
    assert [kind for kind, _ in home.explained()] == [explain.BASE_ALTERED]

    land(home.path, [], reached=datetime(2026, 3, 5, 4, 30))
    home.assert_passes(datetime(2026, 3, 5, 5))


# out of order


@catches("image_chain_unbroken")
def test_changes_of_a_key_landed_in_another_order(empty_home: Home) -> None:
    """Without it the rebuild would take an older image for the latest: the sum of signed images cannot see order."""
    shop = Shop(datetime(2026, 3, 1, 8, 10))
    shop.order(1)
    shop.change(1, status="paid")
    shop.change(1, status="shipped")
    placed, paid, shipped = shop.changes
    land(empty_home.path, [placed, shipped, paid], reached=datetime(2026, 3, 2, 0, 30))
    result = empty_home.run(datetime(2026, 3, 2, 5))
    assert [f.split(" found")[0] for f in result.failures] == ["rebuild.orders: audit image_chain_unbroken"]
    assert empty_home.explained() == [(explain.OUT_OF_ORDER, 1)]


@catches("image_chain_unbroken")
def test_fault_in_the_first_plan(empty_home: Home) -> None:
    """Without it a home that starts with a broken log would get figures before anything was ever verified."""
    shop = Shop(datetime(2026, 3, 1, 8, 10))
    shop.order(1)
    shop.change(1, status="paid")
    land(empty_home.path, shop.changes, reached=datetime(2026, 3, 2, 0, 30))
    restore = empty_home.edit(2, lambda rows, row: row["before"].update(amount_cents=999))
    for _ in range(2):  # the second try must not find a warehouse that the first left half made
        result = empty_home.run(datetime(2026, 3, 2, 5))
        assert result.planned
        assert not result.agrees
        assert [f.split(" found")[0] for f in result.failures] == ["rebuild.orders: audit image_chain_unbroken"]
        assert not warehouse.is_planned(empty_home.path)
        assert empty_home.explained() == [(explain.ALTERED, 1)]
    restore()
    for name in ("warehouse.duckdb", "state.duckdb"):  # nothing was served from them, and there is no `prod` to restate
        (empty_home.path / name).unlink()
    empty_home.assert_passes(datetime(2026, 3, 2, 5))


# too early


@catches("hour_is_closed")
def test_hour_folded_before_the_clock_has_passed_it(empty_home: Home, project: Path) -> None:
    """Without it a plan without the signal would mark half an hour of changes as the whole hour, for ever."""
    shop = Shop(datetime(2026, 3, 1, 8, 10))
    shop.order(1)
    land(empty_home.path, shop.changes)
    for model in ("log", "each_domain"):
        remove_signals(project / "models" / "hourly" / f"{model}.sql")
    plan = command("sqlmesh", "plan", "--auto-apply", "--no-prompts", cwd=project)
    assert plan.returncode != 0
    assert "'hour_is_closed' audit error" in plan.stdout
    assert not warehouse.is_planned(empty_home.path)


@catches("hour_is_sealed")
def test_hour_folded_while_an_event_of_it_is_in_quarantine(empty_home: Home, project: Path) -> None:
    """Without it increments would be summed over a hole that somebody is about to fill."""
    shop = Shop(datetime(2026, 3, 1, 8, 10))
    shop.order(1)
    shop.change(1, status="paid")
    land(empty_home.path, shop.changes[:1])
    reject(empty_home.path, shop.changes[1].committed_at)
    land(empty_home.path, [], reached=datetime(2026, 3, 1, 12, 30))
    remove_signals(project / "models" / "hourly" / "each_domain.sql")
    plan = command("sqlmesh", "plan", "--auto-apply", "--no-prompts", cwd=project)
    assert plan.returncode != 0
    assert "'hour_is_sealed' audit error" in plan.stdout
    assert not warehouse.is_planned(empty_home.path)


@catches("positions_gapless")
def test_increments_of_an_hour_that_was_folded_too_early(home: Home) -> None:
    """Without it an hour folded while a change was missing would stay so: its interval counts as done."""
    before_order_3_had_landed = "log_hour = '2026-03-01 08:00:00'"
    home.tamper(f"UPDATE {{table}} SET changes = 3, last_position = 3 WHERE {before_order_3_had_landed}", "hourly.log")
    home.tamper(
        "UPDATE {table} SET orders = 1, units = 1, revenue_cents = 5000 "
        f"WHERE {before_order_3_had_landed} AND status = 'created'",
        "hourly.orders",
    )
    home.assert_stopped_by("positions_gapless", "hourly.log")
    assert home.explained() == [(explain.FOLDED_EARLY, None)]
    home.restate("2026-03-01 08:00:00")
    home.assert_passes()


def remove_signals(model: Path) -> None:
    text = model.read_text(encoding="utf-8")
    without = re.sub(r"  signals \(.*?\n  \),\n", "", text, flags=re.DOTALL)
    assert without != text
    model.write_text(without, encoding="utf-8")


def reject(home: Path, committed_at: datetime) -> None:
    """An event of `orders` that breaks the landing contract: it holds its table's hours."""
    event = {"ordinal": 0, "committed_at": committed_at, "table": "orders", "reason": "no key", "event": "{}"}
    rejected = pa.Table.from_pylist([event]).set_column(1, "committed_at", pa.array([committed_at], pa.timestamp("us")))
    with ChangeLog(home).writer(SOURCE) as writer:
        writer.land({}, rejected)


# a rule in one path only


@catches("rebuild_equals_increments")
@pytest.mark.parametrize(
    "edited, other", [("diffs/orders", "rebuild/latest_orders"), ("rebuild/latest_orders", "diffs/orders")]
)
def test_rule_changed_in_one_path_only(home: Home, project: Path, edited: str, other: str) -> None:
    """Without it the two paths would drift apart with the next change of a rule, the day it goes live."""
    home.assert_passes()
    figures = home.query("SELECT * FROM mart.orders ORDER BY ALL"), home.verified()

    rule = "COALESCE(rules.status, 'unknown')", "COALESCE(rules.status, 'created')"
    replace(project / "models" / f"{edited}.sql", *rule)
    plan = command("sqlmesh", "plan", "dev", "--auto-apply", "--no-prompts", cwd=project)
    assert plan.returncode != 0
    assert "'rebuild_equals_increments' audit error" in plan.stdout
    explained = command("lockstep", "explain", cwd=project)
    assert explained.returncode == 1
    assert explain.RULES_DIFFER.upper() in explained.stdout
    assert "order_id 2" in explained.stdout
    assert (home.query("SELECT * FROM mart.orders ORDER BY ALL"), home.verified()) == figures

    replace(project / "models" / f"{other}.sql", *rule)
    plan = command("sqlmesh", "plan", "dev", "--auto-apply", "--no-prompts", cwd=project)
    assert plan.returncode == 0, plan.stdout
    assert command("lockstep", "explain", cwd=project).returncode == 0
    assert (home.query("SELECT * FROM mart.orders ORDER BY ALL"), home.verified()) == figures


# a crash, and two at once

KILLED_AT_INSERT = """
import os, signal, sys
from datetime import datetime
from lockstep import operate
from lockstep.project import home
from sqlmesh.core.engine_adapter.base import EngineAdapter

table, at = sys.argv[1:]
insert_append = EngineAdapter.insert_append

def killed(self, table_name, *args, **kwargs):
    if table in str(table_name):
        print("killed", flush=True)
        os.kill(os.getpid(), signal.SIGKILL)
    return insert_append(self, table_name, *args, **kwargs)

EngineAdapter.insert_append = killed
{action}
"""
RUN = "operate.run(home(), datetime.fromisoformat(at))"
RESTATE = """
from sqlmesh import Context
context = Context(paths=".")
context.plan(
    restate_models=["hourly.log", "hourly.orders"], start="2026-03-01", execution_time=at,
    auto_apply=True, no_prompts=True, skip_tests=True,
)
"""


@pytest.mark.parametrize(
    "model, action",
    [
        ("hourly.log", RUN),
        ("hourly.orders", RUN),
        ("reconcile.orders_receipts", RUN),
        ("verified.orders", RUN),
        ("hourly.log", RESTATE),
        ("hourly.orders", RESTATE),
    ],
)
def test_killed_between_delete_and_insert(home: Home, model: str, action: str) -> None:
    """Without it a crash would leave a hole where good rows were, in an hour that counts as done."""
    if action == RESTATE:
        home.assert_passes()
    rows = home.query(f"SELECT * FROM {model} ORDER BY ALL")
    assert rows
    script = KILLED_AT_INSERT.format(action=action)
    table = model.replace(".", "__")
    killed = subprocess.run(
        [sys.executable, "-c", script, table, str(LAST_RUN)], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert "killed" in killed.stdout
    assert home.query(f"SELECT * FROM {model} ORDER BY ALL") == rows
    home.assert_passes()
    assert home.explained() == []


RUN_AND_WAIT = """
import sys
from lockstep import operate
from lockstep.project import home

def wait(*args):
    print("running", flush=True)
    sys.stdin.read()
    return []

operate._sqlmesh = wait
operate.run(home())
"""


@pytest.fixture
def other_run(home: Home) -> Iterator[int]:
    """The process id of a run that is under way in this home."""
    process = subprocess.Popen(
        [sys.executable, "-c", RUN_AND_WAIT], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdin
    assert process.stdout
    assert process.stdout.readline() == "running\n"
    yield process.pid
    process.communicate()


def test_two_runs_at_once(home: Home, other_run: int) -> None:
    """Without it two runs could fold the same hour twice; the second is told who is at work, and changes nothing."""
    before = home.verified()
    with pytest.raises(LockstepError, match=rf"process {other_run} .*running the models.*nothing was written"):
        home.run()
    assert home.verified() == before


# every audit


def test_every_audit_has_a_fault_that_fails_it() -> None:
    """Without it an audit could be added that never fails, and be trusted."""
    audits = {
        name
        for path in (ROOT / "audits").glob("*.sql")
        for name in re.findall(r"^\s*name (\w+)", path.read_text(encoding="utf-8"), flags=re.MULTILINE)
    }
    assert audits == set(CAUGHT_IN)
