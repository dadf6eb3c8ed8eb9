"""A data home and the shop it is fed from: lands, runs the real models, compares every figure with the oracle."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

from lockstep import operate, warehouse
from lockstep.changelog import ChangeLog
from oracle import Batch, MartCell, Oracle, floor_hour
from shop import Change, Shop, deliver, land

MEASURES = "orders, units, revenue_cents, high_value_orders"
CELL = "ordered_hour, product_id, region, status"


def midnight(at: datetime) -> datetime:
    return at.replace(hour=0, minute=0, second=0, microsecond=0)


class Replay:
    """One home and the shop whose changes land in it. Every method that computes also compares."""

    def __init__(self, home: Path, shop: Shop) -> None:
        self.home = home
        self.shop = shop
        self.cuts: list[datetime] = []
        self._landed = 0
        self._reached: dict[int, datetime] = {}  # how many changes had landed -> where the source's clock was moved
        self._batches: dict[datetime, dict[MartCell, Batch]] = {}  # as they must have been stored, by cut

    @property
    def oracle(self) -> Oracle:
        return Oracle(self.landed, self._reached)

    @property
    def landed(self) -> list[Change]:
        return self.shop.changes[: self._landed]

    def land(self, *, sizes: Iterable[int] = (), again: int | None = None, reached: datetime | None = None) -> None:
        """Land what happened since, in batches of `sizes` changes that are rounded up to whole transactions.

        With `again` they come as Debezium's events, each batch twice and after so many changes that were sent before.
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
        if warehouse.is_planned(self.home):
            self._compare_what_analysts_see()

    def run(self, at: datetime) -> None:
        """Run the models as of `at`; everything must pass, and every figure be the oracle's."""
        result = operate.run(self.home, at)
        assert result.failures == []
        assert result.agrees
        watermark = ChangeLog(self.home).watermark().logged_at
        assert watermark
        [receipt] = result.receipts
        self._compare_increments(until=min(floor_hour(at), floor_hour(watermark)))
        if receipt["cut"] not in self.cuts:
            assert receipt["cut"] == min(midnight(at), floor_hour(watermark))
            self.cuts.append(receipt["cut"])
        self._compare_generations(receipt)
        self._compare_what_analysts_see()

    def run_next_day(self) -> None:
        """Let the source's clock pass midnight, and run at five in the morning: the cut is that midnight."""
        watermark = ChangeLog(self.home).watermark().logged_at
        assert watermark
        morning = midnight(max([watermark, *self.cuts])) + timedelta(days=1, hours=5)
        self.shop.now = max(self.shop.now, morning)
        self.land(reached=morning)
        self.run(morning)
        assert self.cuts[-1] == midnight(morning)

    def _compare_increments(self, until: datetime) -> None:
        found: dict[datetime, dict[Any, Any]] = {}
        for log_hour, cells in _grouped(
            self.query(
                f"SELECT log_hour, {CELL}, {MEASURES} FROM hourly.orders "
                "WHERE orders <> 0 OR units <> 0 OR revenue_cents <> 0 OR high_value_orders <> 0"
            )
        ).items():
            found[log_hour] = _cells(cells)
        expected = {hour: cells for hour, cells in self.oracle.increments().items() if hour < until}
        assert found == expected

    def _compare_generations(self, receipt: dict[str, Any]) -> None:
        [(cut,)] = self.query("SELECT cut FROM rebuild.cut")
        assert cut == receipt["cut"]
        rebuilt = _cells(self.query(f"SELECT {CELL}, {MEASURES} FROM rebuild.orders"))
        assert rebuilt == self.oracle.cells(cut)
        assert receipt["verdict"] == "passed"
        assert receipt["cells_compared"] == len(rebuilt)
        assert receipt["rebuild_fingerprint"] == receipt["increments_fingerprint"]

        verified = _grouped(self.query(f"SELECT cut, {CELL}, {MEASURES} FROM verified.orders"))
        expected = {cut: self.oracle.cells(cut) for cut in sorted(self.cuts)}
        expected = dict([(cut, cells) for cut, cells in expected.items() if cells][-7:])  # seven generations are kept
        assert {cut: _cells(cells) for cut, cells in verified.items()} == expected

        self._batches.setdefault(cut, self.oracle.batch(cut))
        stored = _grouped(
            self.query(
                "SELECT cut, ordered_date, category, region, status, "
                "distinct_customers, median_amount_cents, p95_amount_cents FROM verified.orders_daily"
            )
        )
        assert {cut: _cells(cells) for cut, cells in stored.items()} == {
            cut: self._batches[cut] for cut in expected if self._batches[cut]
        }

    def _compare_what_analysts_see(self) -> None:
        oracle = self.oracle
        watermark = ChangeLog(self.home).watermark().logged_at
        assert _cells(self.query(f"SELECT {CELL}, {MEASURES} FROM live.orders")) == oracle.cells()

        hourly = f"SELECT ordered_hour, category, region, status, {MEASURES} FROM mart.orders_hourly"
        assert _cells(self.query(hourly)) == oracle.hourly()

        daily = self.query(
            f"SELECT ordered_date, category, region, status, {MEASURES}, "
            "distinct_customers, median_amount_cents, p95_amount_cents FROM mart.orders_daily"
        )
        batch = self._batches.get(self.cuts[-1], {}) if self.cuts else {}
        expected = {cell: sums + batch.get(cell, (None, None, None)) for cell, sums in oracle.daily().items()}
        assert _cells(daily) == expected

        served = self.query(
            "SELECT DISTINCT served_from, as_of FROM mart.orders_hourly "
            "UNION SELECT DISTINCT served_from, as_of FROM mart.orders_daily"
        )
        assert served in ([], [("live", watermark)])

    def query(self, query: str) -> list[tuple[Any, ...]]:
        with warehouse.reader(self.home) as connection:
            return connection.execute(query).fetchall()


def _cells(rows: Iterable[tuple[Any, ...]]) -> dict[Any, Any]:
    """Rows of four columns of a cell and then measures. A cell that is there twice is an error of its own."""
    cells: dict[Any, Any] = {}
    for row in rows:
        assert row[:4] not in cells, f"{row[:4]} stands twice"
        cells[row[:4]] = row[4:]
    return cells


def _grouped(rows: Iterable[tuple[Any, ...]]) -> dict[Any, list[tuple[Any, ...]]]:
    groups: dict[Any, list[tuple[Any, ...]]] = {}
    for first, *rest in rows:
        groups.setdefault(first, []).append(tuple(rest))
    return groups
