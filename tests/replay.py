"""A data home and the source it is fed from: lands, runs the real models, compares every figure with the oracle."""

from __future__ import annotations

import copy
import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from duckdb import DuckDBPyConnection

from homes import SharedHomes
from lockstep import operate, warehouse
from lockstep.changelog import ChangeLog
from oracle import DOMAINS, GENERATIONS, Cells, Evidence, Oracle, Served, floor_hour, served
from shop import Change, Shop, deliver, land

RECONCILE_FAILS = "reconcile.{}_receipts: audit rebuild_equals_increments"
LIVE_FAILS = "live.{}: the live receipt"
BASE_FAILS = "verified.vehicle_positions: audit live_equals_rebuild_at_its_cut"


def midnight(at: datetime) -> datetime:
    return at.replace(hour=0, minute=0, second=0, microsecond=0)


class Replay:
    """One home and the source whose changes land in it. Every method that computes also compares."""

    def __init__(self, home: Path, shop: Shop) -> None:
        self.home = home
        self.shop = shop
        self.cuts: list[datetime] = []
        self.receipts: dict[str, list[dict[str, Any]]] = {domain: [] for domain in DOMAINS}
        self.live: dict[str, str] = {}  # the verdict of each domain's last live receipt
        self._days_until: datetime | None = None  # the end of the last day that a rebuild was made for
        self._due: dict[str, list[datetime]] = {}  # the cuts at which the last run has reconciled
        self._base_fails = False  # the last generation of positions is not what was live before: tried in every run
        self._connection: DuckDBPyConnection | None = None
        self._landed = 0
        self._reached: dict[int, datetime] = {}  # how many changes had landed -> where the source's clock was moved
        # What must be stored, by domain or batch model and cut.
        self._generations: dict[str, dict[datetime, Cells]] = {
            name: {} for name in (*DOMAINS, "orders_daily", "customers_daily")
        }

    def copied(self, home: Path) -> Replay:
        """The same home with the same past at another place."""
        shutil.copytree(self.home, home, symlinks=True, dirs_exist_ok=True)
        other = copy.deepcopy(self)
        other.home = home
        return other

    @property
    def oracle(self) -> Oracle:
        return Oracle(self.landed, self._reached)

    @property
    def landed(self) -> list[Change]:
        return self.shop.changes[: self._landed]

    @property
    def watermark(self) -> datetime:
        watermark = ChangeLog(self.home).watermark().logged_at
        assert watermark
        return watermark

    def served(self) -> dict[str, Served]:
        """What must be served of each domain."""
        evidence = {
            domain: [
                Evidence(r["cut"], r["verdict"], r["cells_compared"] == 0 or r["cut"] in self._generations[domain])
                for r in receipts
            ]
            for domain, receipts in self.receipts.items()
        }
        return served(evidence, self.live, self.watermark)

    def land(
        self,
        *,
        sizes: Iterable[int] = (),
        again: int | None = None,
        reached: datetime | None = None,
        can_be_read: bool = True,
    ) -> None:
        """Land what happened since, in batches of `sizes` changes that are rounded up to whole transactions.

        With `again` they come as Debezium's events, each batch twice and after so many changes that were sent before.
        A home that lacks files cannot be read until a run has mended it.
        """
        sizes = iter(sizes)
        pending = self.shop.changes[self._landed :]
        while pending:
            size = min(next(sizes, len(pending)), len(pending))
            while size < len(pending) and pending[size].tx_id == pending[size - 1].tx_id:
                size += 1
            if again is None:
                land(self.home, pending[:size])
            else:
                sent = len(self.shop.changes) - len(pending)
                batch = [*self.shop.changes[max(sent - again, 0) : sent], *pending[:size] * 2]
                deliver(self.home, batch)
            pending = pending[size:]
        self._landed = len(self.shop.changes)
        if reached:
            land(self.home, [], reached=reached)
            self._reached[self._landed] = reached
        if can_be_read and warehouse.is_planned(self.home):
            with self._one_look():
                self._compare_what_analysts_see()

    def run(self, at: datetime) -> None:
        """Run the models as of `at`; what must pass must pass, and every figure be the oracle's.

        A first plan that fails is no exception: what does not depend on the failure is there.
        """
        watermark = self.watermark
        days_until = midnight(min(at, watermark))  # a day is due once all its hours are sealed
        is_new_day = self._days_until is None or days_until > self._days_until
        failures_must_be = self._expect(at, watermark, is_new_day)
        failures_must_be += self._expect_live()
        result = operate.run(self.home, at)
        assert sorted(failure.split(" found ")[0] for failure in result.failures) == sorted(failures_must_be)
        assert result.agrees == (not failures_must_be)
        self._days_until = max(days_until, self._days_until or days_until)
        with self._one_look():
            self._compare_increments(until=min(floor_hour(at), floor_hour(watermark)))
            self._compare_receipts()
            self._compare_generations()
            self._compare_what_analysts_see()

    def run_next_day(self, *, can_be_read: bool = True) -> None:
        """Let the source's clock pass midnight, and run at five in the morning: the cut is that midnight."""
        morning = midnight(max([self.watermark, *self.cuts])) + timedelta(days=1, hours=5)
        self.shop.now = max(self.shop.now, morning)
        self.land(reached=morning, can_be_read=can_be_read)
        self.run(morning)
        assert self.cuts[-1] == midnight(morning)

    def _expect(self, at: datetime, watermark: datetime, is_new_day: bool) -> list[str]:
        """Note what a run as of `at` must store, and return what must fail in it.

        A new day reconciles every domain at a new cut. Else what failed is tried once more, at the same cut.
        """
        oracle, failures = self.oracle, []
        if is_new_day:
            cut = min(midnight(at), floor_hour(watermark))
            if cut not in self.cuts:
                self.cuts.append(cut)
        cut, folded_until = self.cuts[-1], min(floor_hour(at), floor_hour(watermark))
        self._due = {d: [cut] if is_new_day or self._must_retry(d) else [] for d in DOMAINS}
        for domain, cuts in self._due.items():
            verdict = oracle.receipt(domain, cut).verdict if cuts else self.receipts[domain][-1]["verdict"]
            if verdict == "empty" and oracle.has_come_in(domain, folded_until):
                cuts.append(folded_until)
                if not oracle.receipt(domain, folded_until).is_passed:
                    failures.append(RECONCILE_FAILS.format(domain))
        for domain in (d for d, cuts in self._due.items() if cut in cuts):
            if not oracle.receipt(domain, cut).is_passed:
                failures.append(RECONCILE_FAILS.format(domain))
                continue
            self._store(domain, cut, oracle.cells(domain, cut))
            if domain == "vehicle_positions":
                self._base_fails = not self._base_holds()
        if self._base_fails and RECONCILE_FAILS.format("vehicle_positions") not in failures:
            failures.append(BASE_FAILS)
        if is_new_day:
            self._store("orders_daily", cut, oracle.orders_batch(cut))
            self._store("customers_daily", cut, oracle.customers_batch(cut))
        return failures

    def _expect_live(self) -> list[str]:
        """Note which live receipts the run must take: of what no nightly one could prove yet, and of what failed."""
        oracle, failures = self.oracle, []
        for domain in DOMAINS:
            cuts = self._due[domain]
            newest = oracle.receipt(domain, cuts[-1]).verdict if cuts else self.receipts[domain][-1]["verdict"]
            live = oracle.live(domain, max(self._generations[domain], default=datetime.min))
            is_unproved = newest == "empty" and live and self.live.get(domain) != "passed"
            if is_unproved or (newest != "empty" and self.live.get(domain) == "failed"):
                found = oracle.compared(domain, oracle.cells(domain, datetime.max), live)
                self.live[domain] = "passed" if found.is_passed else "failed"
                if not found.is_passed:
                    failures.append(LIVE_FAILS.format(domain))
        return failures

    def _must_retry(self, domain: str) -> bool:
        return self.receipts[domain][-1]["verdict"] == "failed" and self.receipts[domain][-1]["cut"] == self.cuts[-1]

    def _store(self, name: str, cut: datetime, cells: Cells) -> None:
        generations = self._generations[name]
        if cells:
            generations[cut] = cells
        for old in sorted(generations)[:-GENERATIONS]:
            del generations[old]

    def _base_holds(self) -> bool:
        """Whether the positions that were live, on the generation before the last, come to the last generation."""
        cuts = sorted(self._generations["vehicle_positions"])
        return len(cuts) < 2 or self.oracle.base_holds(*reversed(cuts[-2:]))

    def _compare_increments(self, until: datetime) -> None:
        oracle = self.oracle
        for domain, contract in DOMAINS.items():
            found: dict[datetime, Cells] = {}
            grain, sums = contract.folded or (contract.grain, contract.measures)
            hours = self.query(f"SELECT log_hour, {', '.join((*grain, *sums))} FROM hourly.{domain}")
            for log_hour, rows in _grouped(hours).items():
                cells = _cells(rows, len(grain))
                found[log_hour] = {c: v for c, v in cells.items() if contract.tolerances or any(v)}
            expected = {hour: cells for hour, cells in oracle.increments(domain).items() if hour < until}
            assert {hour: cells for hour, cells in found.items() if cells} == expected, domain

    def _compare_receipts(self) -> None:
        """Those that the last run has made: of each domain at the cuts that were due, and each says what it must."""
        oracle = self.oracle
        assert self._connection
        all_receipts = warehouse.rows(self._connection, "SELECT * FROM reconcile.receipts ORDER BY sequence")
        [(cut,)] = self.query("SELECT DISTINCT cut FROM rebuild.cut")
        assert cut == self.cuts[-1]
        for domain, contract in DOMAINS.items():
            known = self.receipts[domain]
            made = [r for r in all_receipts if r["domain"] == domain]
            assert made[: len(known)] == known, f"a receipt of {domain} was rewritten"
            assert [r["cut"] for r in made[len(known) :]] == self._due[domain], domain
            rebuilt = self._cells(self._select(f"rebuild.{domain}", [], domain), domain)
            assert rebuilt == oracle.cells(domain, cut), domain
            for receipt in made[len(known) :]:
                expected = oracle.receipt(domain, receipt["cut"])
                classes = list(expected.classes.values())
                differing = len(classes) - classes.count("identical")
                assert receipt["cells_compared"] == len(classes)
                assert receipt["cells_differing"] == differing
                assert receipt["cells_beyond"] == differing - classes.count("tolerated")
                assert receipt["verdict"] == expected.verdict
                assert receipt["mode"] == contract.mode
                assert (receipt["rebuild_fingerprint"] == receipt["increments_fingerprint"]) == (differing == 0)
                assert [m["measure"] for m in receipt["measures"]] == list(contract.measures)
                assert [m["worst_absolute"] for m in receipt["measures"]] == pytest.approx(expected.worst)
            found = self.query(f"SELECT {', '.join(contract.grain)}, class FROM reconcile.{domain}_cells")
            assert {row[:-1]: row[-1] for row in found} == oracle.receipt(domain, cut).classes
            self.receipts[domain] = made

    def _compare_generations(self) -> None:
        for domain in DOMAINS:
            rows = _grouped(self._select(f"verified.{domain}", ["cut"], domain))
            assert {cut: self._cells(r, domain) for cut, r in rows.items()} == self._generations[domain], domain
        for name, grain, measures in (
            ("orders_daily", 4, "ordered_date, category, region, status, " + ORDERS_BATCH),
            ("customers_daily", 1, "customer_id, " + CUSTOMERS_BATCH),
        ):
            rows = _grouped(self.query(f"SELECT cut, {measures} FROM verified.{name}"))
            assert {cut: _cells(r, grain) for cut, r in rows.items()} == self._generations[name], name

    def _compare_what_analysts_see(self) -> None:
        oracle, must_serve = self.oracle, self.served()
        serving = self.query("SELECT domain, served_from, as_of, verified_cut FROM ops.serving")
        assert {d: Served(*rest) for d, *rest in serving} == must_serve
        for domain in DOMAINS:
            base = max(self._generations[domain], default=datetime.min)
            live = self._cells(self._select(f"live.{domain}", [], domain), domain)
            assert live == oracle.live(domain, base), domain
            assert self._mart(domain, DOMAINS[domain].grain, DOMAINS[domain].measures, domain) == (
                live if must_serve[domain].cut is None else self._generation(domain, must_serve[domain])
            ), domain
        self._compare_orders(oracle, must_serve["orders"])
        self._compare_customers(oracle, must_serve["customer_activity"])
        self._compare_deliveries(oracle, must_serve["delivery_status"])
        self._compare_routes(oracle, must_serve["route_performance"])

    def _compare_orders(self, oracle: Oracle, orders: Served) -> None:
        sums = DOMAINS["orders"].measures
        grain = ("category", "region", "status")
        found = self._mart("orders_hourly", ("ordered_hour", *grain), sums, "orders")
        assert found == oracle.orders_hourly(orders.cut)

        batch = self._generation("orders_daily", orders)
        expected = {c: v + batch.get(c, (None,) * 3) for c, v in oracle.orders_daily(orders.cut).items()}
        measures = (*sums, *ORDERS_BATCH.split(", "))
        assert self._mart("orders_daily", ("ordered_date", *grain), measures, "orders") == expected

    def _compare_customers(self, oracle: Oracle, activity: Served) -> None:
        sums = "region, orders, open_orders, revenue_cents, alert_orders, orders_last_hour, revenue_last_hour_cents"
        batch = self._generation("customers_daily", activity)
        totals = oracle.customers(activity.cut, activity.as_of) if activity.as_of else {}
        expected = {c: v + batch.get(c, (None,) * 5) for c, v in totals.items()}
        columns = f"{sums}, {CUSTOMERS_BATCH}".split(", ")
        assert self._mart("customers", ["customer_id"], columns, "customer_activity") == expected

        columns = ["orders", "revenue_cents", "orders_in_hour", "revenue_in_hour_cents"]
        found = self._mart("customer_velocity", DOMAINS["customer_activity"].grain, columns, "customer_activity")
        assert found == oracle.customer_velocity(activity.cut)

    def _compare_deliveries(self, oracle: Oracle, deliveries: Served) -> None:
        columns = [*DELIVERIES.split(", "), "on_time_rate"]
        found = self._mart("delivery_hourly", ("window_hour", "region"), columns, "delivery_status")
        assert found == _nearly(oracle.delivery_hourly(deliveries.cut))

    def _compare_routes(self, oracle: Oracle, routes: Served) -> None:
        if routes.cut is None:
            base = max(self._generations["vehicle_positions"], default=datetime.min)
            positions = oracle.live("vehicle_positions", base)
        else:
            positions = self._generation("vehicle_positions", routes)
        columns = (
            "service_date, driver_id, stops_planned, stops_done, stops_on_time, parcels, parcels_on_board, "
            "capacity_parcels, next_stop_number, planned_arrival_at, window_to_at, latitude, longitude, recorded_at, "
            "distance_m, EPOCH(expected_arrival_at), slack_seconds, is_at_risk"
        )
        found = self._mart("routes", ["route_id"], columns.split(", "), "route_performance")
        expected = oracle.routes(routes.cut, routes.as_of, positions) if routes.as_of else {}
        assert found == _nearly(expected)

    def _generation(self, name: str, of: Served) -> Cells:
        """The cells of the generation that is served."""
        return self._generations[name].get(of.verified_cut, {}) if of.verified_cut else {}

    def _mart(self, name: str, grain: Sequence[str], columns: Sequence[str], domain: str) -> Cells:
        """The cells of a mart; each row must say what is served of the domain."""
        rows = self.query(f"SELECT served_from, as_of, {', '.join((*grain, *columns))} FROM mart.{name}")
        must_serve = self.served()[domain]
        assert {row[:2] for row in rows} <= {(must_serve.served_from, must_serve.as_of)}, name
        return _cells([row[2:] for row in rows], len(grain))

    def _select(self, model: str, columns: Sequence[str], domain: str) -> list[tuple[Any, ...]]:
        listed = [*columns, *DOMAINS[domain].grain, *DOMAINS[domain].measures]
        return self.query(f"SELECT {', '.join(listed)} FROM {model}")

    def _cells(self, rows: Iterable[tuple[Any, ...]], domain: str) -> Cells:
        return _cells(rows, len(DOMAINS[domain].grain))

    def query(self, query: str) -> list[tuple[Any, ...]]:
        if self._connection:
            return self._connection.execute(query).fetchall()
        with warehouse.reader(self.home) as connection:
            return connection.execute(query).fetchall()

    @contextmanager
    def _one_look(self) -> Iterator[None]:
        """All queries inside share a connection: it must not be open while anything lands or runs."""
        with warehouse.reader(self.home) as self._connection:
            try:
                yield
            finally:
                self._connection = None


ORDERS_BATCH = "distinct_customers, median_amount_cents, p95_amount_cents"
DELIVERIES = "shipments, out_for_delivery, exceptions, delivered, late, minutes_late"
CUSTOMERS_BATCH = "lifetime_orders, lifetime_spend_cents, favourite_category, spend_rank, days_since_first_order"


def _cells(rows: Iterable[tuple[Any, ...]], grain: int) -> Cells:
    """Rows of so many columns of a cell and then measures. A cell that is there twice is an error of its own."""
    cells: Cells = {}
    for row in rows:
        assert row[:grain] not in cells, f"{row[:grain]} stands twice"
        cells[row[:grain]] = row[grain:]
    return cells


def _grouped(rows: Iterable[tuple[Any, ...]]) -> dict[Any, list[tuple[Any, ...]]]:
    groups: dict[Any, list[tuple[Any, ...]]] = {}
    for first, *rest in rows:
        groups.setdefault(first, []).append(tuple(rest))
    return groups


def _nearly(cells: Cells) -> Cells:
    """To compare with: floats, which these marts do not sum but derive, to a millimetre, millisecond or thousandth."""
    return {
        cell: tuple(pytest.approx(v, rel=0, abs=1e-3) if isinstance(v, float) else v for v in values)
        for cell, values in cells.items()
    }


@pytest.fixture(scope="session")
def planned(shared_home: SharedHomes) -> Callable[[datetime, Path], Replay]:
    """Copies of homes that were planned a quarter of an hour after their log began, with a customer who bought nothing.

    A plan loads the project and takes longer than all runs of a test together, and is the same for all of them.
    """

    def copy(start: datetime, to: Path) -> Replay:
        def build(home: Path) -> Replay:
            replay = opened(home, start)
            replay.shop.now = start + timedelta(minutes=15)
            with pytest.MonkeyPatch.context() as monkeypatch:
                monkeypatch.setenv("LOCKSTEP_HOME", str(home))
                replay.run(start + timedelta(minutes=15))
            return replay

        return shared_home(f"planned-{start:%Y-%m-%dT%H}", build).copied(to)

    return copy


def opened(home: Path, start: datetime) -> Replay:
    """A home whose log has one change, that counts nowhere."""
    replay = Replay(home, Shop(start))
    replay.shop.insert("customers", 9)
    replay.land()
    return replay


@pytest.fixture
def evening(planned: Callable[[datetime, Path], Replay], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Replay:
    """A home, and a shop that opened on the last evening before a rule changes."""
    monkeypatch.setenv("LOCKSTEP_HOME", str(tmp_path))
    return planned(datetime(2026, 5, 31, 20), tmp_path)


@pytest.fixture
def morning(evening: Replay) -> Replay:
    """The same after its first night, at 05:00, with a row in every table but customers."""
    shop = evening.shop
    shop.product(1, "books")
    for table, key in (("drivers", 1), ("routes", 1), ("shipments", 1), ("route_stops", (1, 1))):
        shop.insert(table, key)
    shop.order(1)
    shop.ping(1)
    evening.land()
    evening.run_next_day()
    return evening
