"""Each way in which a figure can go wrong is planted in a home that had passed; a named audit must stop the run.

Every test shows four things: which audit found the fault, which class `lockstep explain` gives it, that what had been
verified before is still there as it was, and that the domains without the fault pass and are served as ever. Some also
show that the advice `explain` gives heals the home.

The home: cuts at the midnights of 2 and 3 March passed. The hours up to 3 March 05:00 are folded, those after it have
landed only. The run in which the fault must be found is that of 4 March 05:00. There are two such homes with the same
log: `home` is the company's, with all five domains; `small_home` has orders and positions only. A run of it takes a
third of the time. Each kind of fault is planted in `home` at least once, to show that the other domains go on.
"""

from __future__ import annotations

import copy
import dataclasses
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import commands
from handwritten import write_diffs
from homes import SharedHomes
from lockstep import checkpoints, contracts, explain, operate, reconcile, warehouse
from lockstep.changelog import ChangeLog, begins_at
from lockstep.errors import LockstepError
from projects import project_of_two_domains, whole_project
from replay import Replay
from shop import KEY, Shop, count_as_looked_at, land, reject

ROOT = Path(__file__).parents[2]
LAST_RUN, LAST_CUT = datetime(2026, 3, 4, 5), datetime(2026, 3, 4)
SHADOW = {"customer_activity"}

Row = dict[str, Any]
BROKEN_CHAIN = "chain.{}: audit image_chain_unbroken".format
CELLS_DIFFER = "reconcile.{}_receipts: audit rebuild_equals_increments".format
HOURS_HAVE_GAPS = "hourly.log: audit positions_gapless"
LOG_IS_NOT_AS_FOLDED = "rebuild.cut: audit log_is_complete"
CAUGHT_IN: dict[str, list[str]] = {}


def catches(audit: str) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Marks the test in which `audit` fails; `test_every_audit_has_a_fault_that_fails_it` counts on these marks."""

    def mark(test: Callable[..., None]) -> Callable[..., None]:
        CAUGHT_IN.setdefault(audit, []).append(test.__name__)
        return test

    return mark


class Home:
    """A data home and the project that is planned in it, with the means to damage it and to look at it."""

    def __init__(self, path: Path, project: Path = ROOT) -> None:
        self.path = path
        self.project = project

    def copied(self, path: Path) -> Home:
        """The same home at another place, and the same project."""
        shutil.copytree(self.path, path, symlinks=True)
        return Home(path, self.project)

    @contextmanager
    def entered(self) -> Iterator[Home]:
        """This home and its project are what every command works on."""
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("LOCKSTEP_HOME", str(self.path))
            patch.chdir(self.project)
            contracts.load.cache_clear()
            try:
                yield self
            finally:
                contracts.load.cache_clear()

    def run(self, at: datetime = LAST_RUN) -> operate.Run:
        return operate.run(self.path, at)

    def assert_passes(self, at: datetime = LAST_RUN, *, after_a_failed_receipt_of: str | None = None) -> None:
        """Everything passes and is served live; but what has failed only once as many cuts have passed as it needs."""
        result = self.run(at)
        assert result.failures == []
        assert result.agrees
        assert self.not_live() == {after_a_failed_receipt_of} - {None}

    def assert_stopped_by(self, *failures: str, at: datetime = LAST_RUN) -> str:
        """The run fails with these and nothing else: "MODEL: audit NAME", or "live.DOMAIN: the live receipt".

        What had been verified of the domains that an audit stops is untouched and served from now on. All other domains
        pass; a fault of `hourly.log` or `rebuild.cut` is one of every domain, one of `chain.<table>` of those whose
        contract names it. Returns what the run says.
        """
        audited = [
            model for model, _, by in (failure.partition(": ") for failure in failures) if by.startswith("audit")
        ]
        stopped = {d for m in audited for d in self.domains_of(m)}
        before = {domain: self.verified(domain) for domain in contracts.load()}
        result = self.run(at)
        assert not result.agrees
        assert sorted(said.split(" found ")[0] for said in result.failures) == sorted(failures)
        for domain, generations in before.items():
            if domain in stopped:
                assert self.verified(domain) == generations, domain
            else:
                assert all(row in self.verified(domain)[0] for row in generations[0]), domain
        passed = {r["domain"] for r in result.receipts if r["verdict"] == "passed" and r["cut"] == LAST_CUT}
        if at == LAST_RUN:
            assert passed == set(contracts.load()) - stopped
        readers = {d for d, c in contracts.load().items() if set(c.reads) & stopped}
        assert self.not_live() == (stopped | readers) - SHADOW
        return "\n".join(result.failures)

    def domains_of(self, model: str) -> set[str]:
        """The domains that a model's failure stops."""
        schema, _, name = model.partition(".")
        if schema == "chain":
            return {domain for domain, contract in contracts.load().items() if name in contract.sources}
        return {d for d in contracts.load() if model in ("hourly.log", "rebuild.cut") or name.startswith(d)}

    def not_live(self) -> set[str]:
        """The domains that are not served live although their mode is."""
        rows = self.query("SELECT domain FROM ops.serving WHERE served_from <> 'live' AND mode = 'live'")
        return {row["domain"] for row in rows}

    def explained(self, domain: str = "orders") -> list[tuple[str, Any]]:
        """Class and key of every finding."""
        return self.all_explained(domain)[domain]

    def all_explained(self, *domains: str) -> dict[str, list[tuple[str, Any]]]:
        """The same of each domain, or of all."""
        contracts.load.cache_clear()
        loaded = contracts.load()
        explanations = explain.explain(self.path, [loaded[domain] for domain in domains or loaded])
        return {e.domain: [(f.kind, f.key) for f in e.findings] for e in explanations}

    def restate(self, start: str, at: datetime = LAST_RUN) -> None:
        """What the runbook says: restate the hours from `start` on, and everything that depends on them."""
        times = ["--start", start, "--execution-time", str(at), "--auto-apply", "--no-prompts", "--skip-tests"]
        plan = command("sqlmesh", "plan", "--restate-model", "hourly.log", *times, cwd=self.project)
        assert plan.returncode == 0, plan.stdout

    def query(self, query: str) -> list[Row]:
        with warehouse.reader(self.path) as connection:
            return warehouse.rows(connection, query)

    def verified(self, domain: str = "orders") -> list[list[Row]]:
        """All that must outlive a failed run: generations, and the receipts that vouch for them."""
        batch = {"orders": "orders_daily", "customer_activity": "customers_daily"} if self.project == ROOT else {}
        models = [f"verified.{name}" for name in (domain, batch.get(domain)) if name]
        return [
            *(self.query(f"SELECT * FROM {model} ORDER BY ALL") for model in models),
            self.query(
                f"SELECT * FROM reconcile.receipts WHERE verdict = 'passed' AND domain = '{domain}' "
                "ORDER BY reconciled_at"
            ),
        ]

    def edit(
        self, position: int, change: Callable[[list[Row], Row], object], table: str = "orders"
    ) -> Callable[[], object]:
        """Rewrite the file of a table with `position`: `change` gets its rows and that one. Returns what undoes it."""
        for path in ChangeLog(self.path).files(table):
            file = pq.ParquetFile(path).read()
            rows = file.to_pylist()
            found = [row for row in rows if row["position"] == position]
            if found:
                content = path.read_bytes()
                change(rows, found[0])
                pq.write_table(pa.Table.from_pylist(rows, schema=file.schema), path)
                return lambda: path.write_bytes(content)
        raise AssertionError(f"no change of {table} has the position {position}")

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


def alter(column: str, value: Any) -> Callable[[list[Row], Row], None]:
    return lambda rows, row: row["after"].update({column: value})


def add_a_cent(rows: list[Row], row: Row) -> None:
    row["after"]["amount_cents"] += 1


# The positions of the changes that the tests damage. Of each table and stage one changes again later, one does not.
FIRST_OF_ORDER_2 = 3  # folded and verified; order 2 changes again later
ROUTE_1, SHIPMENT_1, STOP_1 = 7, 8, 9  # folded and verified; all change again later
PAID_4 = 16  # folded, not yet verified; order 4 changes again later
PLACED_5 = 17  # folded, not yet verified; nothing happens to order 5 afterwards
STOP_1_DONE, SHIPMENT_1_DELIVERED, PING_3 = 18, 19, 20  # folded, not yet verified; nothing happens to them afterwards
MOVED_2 = 22  # landed, not folded


def _tell_the_story(shop: Shop, land: Callable[..., None], run: Callable[[datetime], object]) -> None:
    with shop.transaction():
        shop.product(1, "books")
        shop.order(1, amount_cents=5_000)
        shop.order(2, status="lost?")
        shop.order(3)
    shop.now = datetime(2026, 3, 1, 10, 20)
    shop.change(1, status="paid")
    with shop.transaction():
        shop.insert("drivers", 1)
        shop.insert("routes", 1)
        shop.insert("shipments", 1, route_id=1, status="out_for_delivery")
        shop.insert("route_stops", (1, 1))
        shop.ping(1)
        shop.ping(2)
    shop.now = datetime(2026, 3, 2, 9)
    shop.change(1, amount_cents=7_000)
    land(sizes=[1] * 9)
    run(datetime(2026, 3, 2, 5))
    shop.now = datetime(2026, 3, 2, 15, 30)
    with shop.transaction():
        shop.delete(3)
        shop.order(4)
        shop.insert("customers", 1)
    shop.now = datetime(2026, 3, 3, 2, 10)
    shop.change(4, status="paid")
    shop.now = datetime(2026, 3, 3, 3, 10)
    shop.order(5)
    with shop.transaction():
        shop.update("route_stops", (1, 1), completed_at=shop.now)
        shop.update("shipments", 1, status="delivered", delivered_at=shop.now)
    shop.ping(1, latitude=57.8)
    land(sizes=[1] * 9, reached=datetime(2026, 3, 3, 5))
    run(datetime(2026, 3, 3, 5))
    shop.now = datetime(2026, 3, 3, 9, 10)
    with shop.transaction():
        shop.change(1, status="shipped")
        shop.change(2, region="south")
        shop.order(6)
    with shop.transaction():
        shop.update("routes", 1, planned_distance_m=50_000)
        shop.insert("shipments", 2, route_id=1)
        shop.insert("route_stops", (1, 2), shipment_id=2)
    shop.now = datetime(2026, 3, 3, 14, 10)
    shop.change(4, amount_cents=250_000)
    land(sizes=[1] * 9, reached=datetime(2026, 3, 4, 4, 30))


@pytest.fixture(scope="session")
def passed(shared_home: SharedHomes) -> Replay:
    def build(path: Path) -> Replay:
        replay = Replay(path, Shop(datetime(2026, 3, 1, 8, 10)))
        with Home(path).entered():
            _tell_the_story(replay.shop, replay.land, replay.run)
        return replay

    return shared_home("planted_faults", build)


@pytest.fixture(scope="session")
def small_passed(shared_home: SharedHomes) -> Home:
    """The same log in a home of a project of two domains. Only `passed` has every figure compared with the oracle."""

    def build(path: Path) -> Home:
        path.mkdir()
        home = Home(path / "home", project_of_two_domains(path / "project", KEY))
        replay = Replay(home.path, Shop(datetime(2026, 3, 1, 8, 10)))

        def run(at: datetime) -> None:
            assert home.run(at).agrees

        with home.entered():
            _tell_the_story(replay.shop, partial(replay.land, can_be_read=False), run)
        return home

    return shared_home("planted_faults_small", build)


@pytest.fixture
def home(passed: Replay, tmp_path: Path) -> Iterator[Home]:
    """A copy of the home that passed, for one test to damage."""
    with Home(passed.home).copied(tmp_path / "home").entered() as home:
        yield home


@pytest.fixture
def small_home(small_passed: Home, tmp_path: Path) -> Iterator[Home]:
    """A copy of the home of two domains that passed, for one test to damage."""
    with small_passed.copied(tmp_path / "home").entered() as home:
        yield home


@pytest.fixture
def empty_home(small_passed: Home, tmp_path: Path) -> Iterator[Home]:
    """No home yet, and the project of two domains, as it was loaded for `small_passed`."""
    shutil.copytree(small_passed.path / ".cache", tmp_path / "home" / ".cache")
    with Home(tmp_path / "home", small_passed.project).entered() as home:
        yield home


@pytest.fixture
def project(small_passed: Home, tmp_path: Path) -> Path:
    """A copy of the project of two domains, to edit. What runs in it is run as its own process, as a user would."""
    return shutil.copytree(small_passed.project, tmp_path / "project")


def command(*words: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    """Run a command of the environment in a process of its own; stdout holds both of its streams."""
    done = commands.call(*words, cwd=cwd, COLUMNS="300")
    return subprocess.CompletedProcess(words, done.returncode, done.stdout + done.stderr)


def replace(path: Path, old: str, new: str) -> None:
    text = path.read_text(encoding="utf-8")
    assert old in text, f"{path} no longer says {old!r}: the test plants nothing"
    path.write_text(text.replace(old, new), encoding="utf-8")


def test_the_home_passes_while_nothing_is_planted(home: Home) -> None:
    """Without it a test below could fail its run for a reason that has nothing to do with its fault."""
    home.assert_passes()
    assert not any(home.all_explained().values())


# lost and doubled


@catches("positions_gapless")
@catches("log_is_complete")
def test_events_lost_and_doubled_before_and_after_their_hour_was_folded(small_home: Home) -> None:
    """One after the other: each stops all domains, and undone it leaves the home as if it had never been.

    Before: an order would be missing from every figure alike, or be counted twice until the night. After: the
    increments would know an order that the rebuild cannot find; a copy would stay unseen where only the latest image
    counts.
    """
    for damage, found in ((lose, explain.LOST), (double, explain.DUPLICATED)):
        restore = small_home.edit(MOVED_2, damage)
        small_home.assert_stopped_by(HOURS_HAVE_GAPS)
        assert (found, None) in small_home.explained()
        assert not small_home.query("SELECT * FROM hourly.orders WHERE log_hour >= '2026-03-03 09:00:00'")
        restore()
    for damage, found in ((lose, explain.LOST), (double, explain.DUPLICATED)):
        restore = small_home.edit(PLACED_5, damage)
        small_home.assert_stopped_by(LOG_IS_NOT_AS_FOLDED)
        assert (found, None) in small_home.explained()
        restore()
    small_home.assert_passes()


@catches("log_is_complete")
def test_file_lost_after_its_hour_was_folded(home: Home) -> None:
    """Without it an hour of which nothing is left would not be compared at all."""
    [path] = [p for p in ChangeLog(home.path).files("orders") if begins_at(p) == PLACED_5]
    path.unlink()
    home.assert_stopped_by(LOG_IS_NOT_AS_FOLDED)
    assert (explain.LOST, None) in home.explained()


@catches("log_is_complete")
def test_last_event_of_the_log_lost(small_home: Home) -> None:
    """Without it the end of the log could be cut off: there is nothing after it whose position would show the gap."""
    path = ChangeLog(small_home.path).files("orders")[-1]
    content = path.read_bytes()
    path.unlink()
    small_home.assert_stopped_by(LOG_IS_NOT_AS_FOLDED)
    assert small_home.explained() == [(explain.LOST, None)]
    path.write_bytes(content)
    small_home.restate("2026-03-03 14:00:00")
    small_home.assert_passes()


@catches("image_chain_unbroken")
def test_event_landed_twice_and_changes_landed_in_another_order(passed: Replay, small_home: Home) -> None:
    """Without it a change under two positions would be added twice: no position is missing, the rebuild is right.

    And the rebuild would take an older image for the latest: the sum of signed images cannot see order.
    """
    last = passed.landed[-1]
    assert last.op == "u"
    shop = copy.deepcopy(passed.shop)
    shop.order(9)
    shop.change(9, status="paid")
    shop.change(9, status="shipped")
    placed, paid, shipped = shop.changes[-3:]
    land(small_home.path, [last])
    land(small_home.path, [placed, shipped, paid], reached=datetime(2026, 3, 4, 5))
    count_as_looked_at(small_home.path)
    said = small_home.assert_stopped_by(BROKEN_CHAIN("orders"), at=datetime(2026, 3, 5, 5))
    assert "order_id 4, has an image before that is not the last one of its key; the one before is at position " in said
    assert "Every file concerned is as it landed, so no backup helps" in said
    assert "`lockstep capture ... --resync orders`" in said
    assert sorted(small_home.explained()) == sorted([(explain.DUPLICATED, 4), (explain.OUT_OF_ORDER, 9)])


@catches("image_chain_unbroken")
def test_ping_landed_twice(passed: Replay, small_home: Home) -> None:
    """Without it the log of pings would be no evidence: a second copy changes no position."""
    [ping] = [change for change in passed.landed if change.table == "gps_pings" and change.after["ping_id"] == 3]
    land(small_home.path, [ping])
    count_as_looked_at(small_home.path)
    small_home.assert_passes()  # it lies past the cut
    land(small_home.path, [], reached=datetime(2026, 3, 5, 5))
    small_home.assert_stopped_by(BROKEN_CHAIN("gps_pings"), at=datetime(2026, 3, 5, 5))
    assert small_home.explained("vehicle_positions") == [(explain.DUPLICATED, 3)]


# altered


@catches("image_chain_unbroken")
def test_images_changed_of_keys_that_changed_later(home: Home) -> None:
    """Without it an image could be changed that neither path uses any more, and the log no longer be evidence.

    In every table that routes are made of: else only the first table of a domain would be evidence. They changed
    before the last checkpoint, which no run looks behind: here there is none, as after one was found damaged.
    """
    checkpoints.drop_since(home.path, 0)
    count_as_looked_at(home.path)
    undo = [
        home.edit(FIRST_OF_ORDER_2, add_a_cent),
        home.edit(ROUTE_1, alter("planned_distance_m", 7), "routes"),
        home.edit(STOP_1, alter("latitude", 7), "route_stops"),
        home.edit(SHIPMENT_1, alter("order_id", 7), "shipments"),
    ]
    said = home.assert_stopped_by(*map(BROKEN_CHAIN, ("orders", "routes", "route_stops", "shipments")))
    assert re.search(r"changelog/orders/hour=2026-03-01T08/\d+-\.parquet is not as landed: restore it from a", said)
    assert "resync" not in said
    explained = home.all_explained()
    altered = {d: sorted(str(key) for kind, key in found if kind == explain.ALTERED) for d, found in explained.items()}
    assert altered == {
        "orders": ["2"],
        "customer_activity": ["2"],
        "delivery_status": ["1"],
        "route_performance": ["(1, 1)", "1", "1"],  # the stop, the route and the shipment
        "vehicle_positions": [],
    }
    assert explained["vehicle_positions"] == []
    for restore in undo:
        restore()
    home.assert_passes()


@catches("image_chain_unbroken")
@catches("source_is_append_only")
def test_broken_chain_of_a_joined_table_and_pings_taken_back(passed: Replay, home: Home) -> None:
    """Without it a figure could be joined to rows of a table that the log does not vouch for.

    And a position that the source has corrected or deleted would stay in the live figures for ever.
    """
    shop = copy.deepcopy(passed.shop)
    shop.product(1, "toys")
    land(home.path, [dataclasses.replace(shop.changes[-1], before={**shop.changes[-1].before, "name": "none"})])
    count_as_looked_at(home.path)
    shop.update("gps_pings", 2, latitude=57.9)
    shop.delete(3, "gps_pings")
    land(home.path, shop.changes[-2:], reached=datetime(2026, 3, 5, 5))
    home.assert_stopped_by(
        BROKEN_CHAIN("products"),
        "rebuild.vehicle_positions: audit source_is_append_only",
        at=datetime(2026, 3, 5, 5),
    )
    with pytest.raises(LockstepError, match="orders: an audit stopped the rebuild"):
        reconcile.reconcile(home.path, ["orders"])
    explained = home.all_explained("vehicle_positions", "route_performance")
    assert sorted(explained["vehicle_positions"]) == [(explain.NOT_APPEND_ONLY, 2), (explain.NOT_APPEND_ONLY, 3)]
    assert explained["route_performance"] == []


@catches("rebuild_equals_increments")
def test_late_pings_within_the_tolerance_and_beyond_it(passed: Replay, small_home: Home) -> None:
    """Without it a position could be off by any distance and be served, because somebody had expected a small one."""
    shop = copy.deepcopy(passed.shop)
    shop.now = datetime(2026, 3, 4, 9)
    shop.ping(2, latitude=58.5, recorded_at=shop.now - timedelta(minutes=4))
    shop.ping(1, recorded_at=shop.now - timedelta(minutes=1))
    land(small_home.path, shop.changes[-2:], reached=datetime(2026, 3, 5, 5))
    small_home.assert_stopped_by(CELLS_DIFFER("vehicle_positions"), at=datetime(2026, 3, 5, 5))
    assert small_home.explained("vehicle_positions") == [
        (explain.LATE_BEYOND, 4)
    ]  # days after the last one: see recorded_at

    shop.now = datetime(2026, 3, 5, 9)
    for driver, latitude, late in ((2, 58.5, 0), (1, 57.7, 0), (2, 58.6, 4)):
        shop.now += timedelta(minutes=5)
        shop.ping(driver, latitude=latitude, recorded_at=shop.now - timedelta(minutes=late))
    land(small_home.path, shop.changes[-3:], reached=datetime(2026, 3, 6, 5))
    small_home.assert_passes(datetime(2026, 3, 6, 5), after_a_failed_receipt_of="vehicle_positions")
    explained = command("lockstep", "explain", "vehicle_positions", cwd=small_home.project)
    assert explained.returncode == 0
    assert "but for 1 cell within the tolerance" in explained.stdout
    assert "ping_id 8 of driver_id 2" in explained.stdout
    assert small_home.explained("vehicle_positions") == [(explain.LATE_TOLERATED, 8)]
    land(small_home.path, [], reached=datetime(2026, 3, 7, 5))
    small_home.assert_passes(datetime(2026, 3, 7, 5))


OF_A_STOP = ["stops_done", "next_stop_number", "planned_arrival_at", "window_to_at"]  # all stops are at one place
CHANGED_AFTER_FOLDING = [
    ("vehicle_positions", "gps_pings", PING_3, "latitude", 61.0, ["latitude"]),
    ("delivery_status", "shipments", SHIPMENT_1_DELIVERED, "delivered_at", None, ["delivered", "late", "minutes_late"]),
    ("route_performance", "route_stops", STOP_1_DONE, "completed_at", None, OF_A_STOP),
    ("customer_activity", "orders", PLACED_5, "customer_id", 2, ["orders", "open_orders", "revenue_cents"]),
]


@catches("rebuild_equals_increments")
def test_images_changed_after_their_hour_was_folded(home: Home) -> None:
    """Without it a domain could have receipts that pass whatever its rows are."""
    for _, table, position, column, value, _ in CHANGED_AFTER_FOLDING:
        home.edit(position, alter(column, value), table)
    changed = {domain: measures for domain, *_, measures in CHANGED_AFTER_FOLDING}
    of_live = "live.route_performance: the live receipt"  # it joins, so it gets one
    home.assert_stopped_by(*map(CELLS_DIFFER, changed), of_live)
    beyond = home.query("SELECT domain, measure FROM reconcile.measures WHERE NOT is_within_tolerance")
    assert sorted((row["domain"], row["measure"]) for row in beyond) == sorted(
        (domain, measure) for domain, measures in changed.items() for measure in measures
    )
    assert home.all_explained() == {
        d: [(explain.CHANGED_LATER, None)] if d in changed else [] for d in contracts.load()
    }


@catches("rebuild_equals_increments")
def test_cent_changed_in_one_file_after_its_hour_was_folded(small_home: Home) -> None:
    """Without it one cent could come or go between two figures that both claim to be right."""
    restore = small_home.edit(PLACED_5, add_a_cent)
    small_home.assert_stopped_by(CELLS_DIFFER("orders"))

    [receipt] = small_home.query(
        "SELECT * FROM reconcile.receipts WHERE domain = 'orders' ORDER BY reconciled_at DESC LIMIT 1"
    )
    assert (receipt["verdict"], receipt["cells_differing"]) == ("failed", 1)
    assert [(m["measure"], m["worst_absolute"]) for m in receipt["measures"] if m["cells_differing"]] == [
        ("revenue_cents", 1)
    ]
    assert receipt["rebuild_fingerprint"] != receipt["increments_fingerprint"]
    assert [kind for kind, _ in small_home.explained()] == [explain.CHANGED_LATER]

    [serving] = small_home.query("SELECT * FROM ops.serving WHERE domain = 'orders'")
    assert serving["served_from"] == "rebuild"
    assert serving["as_of"] == datetime(2026, 3, 3)
    served = "SELECT ordered_hour, product_id, region, status, orders, units, revenue_cents, high_value_orders FROM "
    assert small_home.query(f"{served} mart.orders ORDER BY ALL") == small_home.query(
        f"{served} verified.orders WHERE cut = '2026-03-03' ORDER BY ALL"
    )

    restore()
    small_home.restate("2026-03-03 03:00:00")
    small_home.assert_passes(after_a_failed_receipt_of="orders")
    land(small_home.path, [], reached=datetime(2026, 3, 5, 4, 30))
    small_home.assert_passes(datetime(2026, 3, 5, 5))


@catches("live_equals_rebuild_at_its_cut")
def test_cent_and_position_changed_in_verified_generations(small_home: Home) -> None:
    """Without it the base of live figures could rot: both paths agree, and what was served all day was wrong."""
    small_home.tamper(
        "UPDATE {table} SET revenue_cents = revenue_cents + 1 WHERE cut = '2026-03-03' AND status = 'paid'",
        "verified.orders",
    )
    small_home.tamper(
        "UPDATE {table} SET latitude = 61 WHERE cut = '2026-03-03' AND driver_id = 2", "verified.vehicle_positions"
    )
    tampered = small_home.query("SELECT * FROM verified.orders WHERE cut <= '2026-03-03' ORDER BY ALL")
    result = small_home.run()
    assert sorted(f.split(" found")[0] for f in result.failures) == [
        f"verified.{domain}: audit live_equals_rebuild_at_its_cut" for domain in ("orders", "vehicle_positions")
    ]
    assert small_home.query("SELECT * FROM verified.orders WHERE cut <= '2026-03-03' ORDER BY ALL") == tampered
    assert [kind for kind, _ in small_home.explained()] == [explain.BASE_ALTERED]
    assert small_home.explained("vehicle_positions") == [(explain.BASE_ALTERED, None)]

    land(small_home.path, [], reached=datetime(2026, 3, 5, 4, 30))
    small_home.assert_passes(datetime(2026, 3, 5, 5))


# in the first plan


@catches("image_chain_unbroken")
def test_fault_in_the_first_plan(empty_home: Home) -> None:
    """Without it a home that starts with a broken log would get figures before anything was ever verified."""
    shop = Shop(datetime(2026, 3, 1, 8, 10))
    shop.order(1)
    shop.change(1, status="paid")
    land(empty_home.path, shop.changes, reached=datetime(2026, 3, 2, 0, 30))
    restore = empty_home.edit(2, lambda rows, row: row["before"].update(amount_cents=999))
    count_as_looked_at(empty_home.path)
    for _ in range(2):  # the second try must not find a warehouse that the first left half made
        result = empty_home.run(datetime(2026, 3, 2, 5))
        assert not result.agrees
        assert [f.split(" found")[0] for f in result.failures] == [BROKEN_CHAIN("orders")]
        assert not empty_home.query("SELECT * FROM mart.orders")
        assert empty_home.explained() == [(explain.ALTERED, 1)]
    restore()
    empty_home.restate("2026-03-01 08:00:00", datetime(2026, 3, 2, 5))  # folded with the image that was never written
    assert empty_home.run(datetime(2026, 3, 2, 5)).failures == []
    assert "orders" not in empty_home.not_live()


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
    reject(empty_home.path, "orders", shop.changes[1].committed_at)
    land(empty_home.path, [], reached=datetime(2026, 3, 1, 12, 30))
    remove_signals(project / "models" / "hourly" / "each_domain.sql")
    plan = command("sqlmesh", "plan", "--auto-apply", "--no-prompts", cwd=project)
    assert plan.returncode != 0
    assert "'hour_is_sealed' audit error" in plan.stdout
    assert not warehouse.is_planned(empty_home.path)


@catches("positions_gapless")
def test_increments_of_an_hour_that_was_folded_too_early(small_home: Home) -> None:
    """Without it an hour folded while a change was missing would stay so: its interval counts as done."""
    before_order_3_had_landed = "log_hour = '2026-03-01 08:00:00'"
    small_home.tamper(
        f"UPDATE {{table}} SET changes = 3, last_position = 3 WHERE {before_order_3_had_landed}", "hourly.log"
    )
    small_home.tamper(
        "UPDATE {table} SET orders = 1, units = 1, revenue_cents = 5000 "
        f"WHERE {before_order_3_had_landed} AND status = 'created'",
        "hourly.orders",
    )
    small_home.assert_stopped_by(HOURS_HAVE_GAPS)
    assert small_home.explained() == [(explain.FOLDED_EARLY, None)]
    small_home.restate("2026-03-01 08:00:00")
    small_home.assert_passes()


def remove_signals(model: Path) -> None:
    text = model.read_text(encoding="utf-8")
    without = re.sub(r"  signals \(.*?\n  \),\n", "", text, flags=re.DOTALL)
    assert without != text
    model.write_text(without, encoding="utf-8")


# a rule in one path only

UNKNOWN_STATUS = "'unknown'", "'created'"
NO_EXCEPTION = "'none'", "'nothing'"
SPEED = "speed_kmh::DOUBLE", "(speed_kmh * 10)::DOUBLE"


ORDERS, DELIVERIES, POSITIONS = (
    ("orders", "diffs/orders", "rebuild/latest_orders", *UNKNOWN_STATUS, "order_id 2"),
    ("delivery_status", "diffs/delivery_status", "rebuild/delivery_status", *NO_EXCEPTION, "exception_code none"),
    ("vehicle_positions", "diffs/vehicle_positions", "rebuild/vehicle_positions", *SPEED, "driver_id 2"),
)


@catches("rebuild_equals_increments")
def test_rules_changed_in_increments_only(home: Home, tmp_path: Path) -> None:
    """Without it increments that are written by hand would drift apart with the next change of a rule."""
    _assert_drift_is_found(home, whole_project(tmp_path / "project"), ORDERS, DELIVERIES, POSITIONS)


@catches("rebuild_equals_increments")
def test_rule_changed_in_rebuild_only(small_home: Home, project: Path) -> None:
    """Without it they would also drift apart when a rule changes in the rebuild."""
    edit = ("orders", "rebuild/latest_orders", "diffs/orders", *UNKNOWN_STATUS, "order_id 2")
    _assert_drift_is_found(small_home, project, edit)


def _assert_drift_is_found(home: Home, project: Path, *edits: tuple[str, ...]) -> None:
    """Plan a rule in one path only, which fails, and then in the other too; in production nothing changes."""
    for domain, *_ in edits:
        write_diffs(project, domain)

    def served() -> list[Any]:
        return [(home.query(f"SELECT * FROM mart.{d} ORDER BY ALL"), home.verified(d)) for d, *_ in edits]

    figures = served()
    for _, edited, _, rule, changed, _ in edits:
        replace(project / "models" / f"{edited}.sql", rule, changed)
    plan = command("sqlmesh", "plan", "dev", "--auto-apply", "--no-prompts", cwd=project)
    assert plan.returncode != 0
    assert plan.stdout.count("'rebuild_equals_increments' audit error") >= len(edits)
    explained = command("lockstep", "explain", cwd=project)
    assert explained.returncode == 1
    assert explained.stdout.count(explain.RULES_DIFFER.upper()) >= len(edits)
    assert all(key in explained.stdout for *_, key in edits)
    assert served() == figures

    for _, _, other, rule, changed, _ in edits:
        replace(project / "models" / f"{other}.sql", rule, changed)
    plan = command("sqlmesh", "plan", "dev", "--auto-apply", "--no-prompts", cwd=project)
    assert plan.returncode == 0, plan.stdout
    assert command("lockstep", "explain", cwd=project).returncode == 0
    assert served() == figures

    for domain, *_ in edits:
        diff = command("sqlmesh", "table_diff", "prod:dev", f"mart.{domain}", cwd=project)
        assert diff.returncode == 0, diff.stdout
        assert "Row Counts" in diff.stdout, diff.stdout


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
    "action, models",
    [
        (RUN, ["hourly.log", "hourly.orders", "reconcile.orders_receipts", "verified.orders"]),
        (RESTATE, ["hourly.log", "hourly.orders"]),
    ],
    ids=["run", "restate"],
)
def test_killed_between_delete_and_insert(small_home: Home, action: str, models: list[str]) -> None:
    """Without it a crash would leave a hole where good rows were, in an hour that counts as done.

    Each command is killed further on than the one before; the last one finishes what all of them began.
    """
    if action == RESTATE:
        small_home.assert_passes()
    for model in models:
        rows = small_home.query(f"SELECT * FROM {model} ORDER BY ALL")
        assert rows
        script = KILLED_AT_INSERT.format(action=action)
        table = model.replace(".", "__")
        killed = subprocess.run(
            [sys.executable, "-c", script, table, str(LAST_RUN)],
            cwd=small_home.project,
            capture_output=True,
            text=True,
            check=False,
        )
        assert killed.returncode == -signal.SIGKILL, killed.stderr
        assert "killed" in killed.stdout
        assert small_home.query(f"SELECT * FROM {model} ORDER BY ALL") == rows
    small_home.assert_passes()
    assert small_home.explained() == []


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
def other_run(small_home: Home) -> Iterator[int]:
    """The process id of a run that is under way in this home."""
    process = subprocess.Popen(
        [sys.executable, "-c", RUN_AND_WAIT],
        cwd=small_home.project,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdin
    assert process.stdout
    assert process.stdout.readline() == "running\n"
    yield process.pid
    process.communicate()


def test_two_runs_at_once(small_home: Home, other_run: int) -> None:
    """Without it two runs could fold the same hour twice; the second is told who is at work, and changes nothing."""
    before = small_home.verified()
    with pytest.raises(LockstepError, match=rf"process {other_run} .*running the models.*nothing was written"):
        small_home.run()
    assert small_home.verified() == before


def test_explain_beside_a_reader(small_home: Home) -> None:
    """Without it an analyst who reads the warehouse would keep those out who look for a fault; they need no more."""
    read = "import duckdb, sys; c = duckdb.connect(sys.argv[1], read_only=True); print('reading', flush=True); input()"
    with subprocess.Popen(
        [sys.executable, "-c", read, str(small_home.path / "warehouse.duckdb")],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as reader:
        assert reader.stdout
        assert reader.stdout.readline() == "reading\n"
        assert small_home.explained() == []
        assert reader.poll() is None
        reader.communicate("\n")


# every audit


def test_every_audit_has_a_fault_that_fails_it() -> None:
    """Without it an audit could be added that never fails, and be trusted."""
    audits = {
        name
        for path in (ROOT / "audits").glob("*.sql")
        for name in re.findall(r"^\s*name (\w+)", path.read_text(encoding="utf-8"), flags=re.MULTILINE)
    }
    assert audits == set(CAUGHT_IN)
