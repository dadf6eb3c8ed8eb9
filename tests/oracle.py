"""What the figures must be, computed another way: by replaying the shop's changes into plain tables and counting rows.

It shares no code and no SQL with the models. The rules are written down again here; only the list of spellings is read
from `seeds/order_status_rules.csv`. Increments are differences of two states, never sums of signed images, and before
images are not looked at but for the key of what is deleted.
"""

from __future__ import annotations

import csv
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from datetime import date, datetime, timedelta
from pathlib import Path

from shop import KEY, Change, Image

Cell = tuple[datetime, int, str, str]  # ordered_hour, product_id, region, status
MartCell = tuple[datetime | date, str, str, str]  # ordered_hour or ordered_date, category, region, status
Measures = tuple[int, int, int, int]  # orders, units, revenue_cents, high_value_orders
Batch = tuple[int, int, int]  # distinct customers, median and 95th percentile of the amounts

HOUR = timedelta(hours=1)
NOTHING: Measures = (0, 0, 0, 0)
RULES = Path(__file__).parent.parent / "seeds" / "order_status_rules.csv"


def floor_hour(at: datetime) -> datetime:
    return at.replace(minute=0, second=0, microsecond=0)


class Oracle:
    """Answers for the changes landed so far. `cut` is exclusive, as everywhere; None means all that has landed.

    `reached` says up to when the source's clock had been moved, by a keep-alive, when so many changes had landed.
    """

    def __init__(self, changes: Iterable[Change], reached: Mapping[int, datetime], rules: Path = RULES) -> None:
        self.changes = list(changes)
        self.logged_at: list[datetime] = []
        clock = datetime.min
        for landed, change in enumerate(self.changes):
            clock = max(clock, reached.get(landed, clock), change.committed_at)
            self.logged_at.append(clock)
        with rules.open(newline="", encoding="utf-8") as file:
            self._rules = list(csv.DictReader(file))

    # the domain's cells

    def cells(self, cut: datetime | None = None) -> dict[Cell, Measures]:
        """The orders that live at the cut, counted by cell."""
        found: dict[Cell, Measures] = {}
        for order in self._orders(cut):
            cell = (floor_hour(order["ordered_at"]), order["product_id"], order["region"], self.status(order))
            found[cell] = _plus(found.get(cell, NOTHING), order)
        return found

    def increments(self) -> dict[datetime, dict[Cell, Measures]]:
        """Per hour of the log: what its changes did to each cell. Cells that came out as they were are left out."""
        increments = {}
        for hour in sorted({floor_hour(at) for at in self.logged_at}):
            old, new = self.cells(hour), self.cells(hour + HOUR)
            moved = {
                cell: tuple(n - o for n, o in zip(new.get(cell, NOTHING), old.get(cell, NOTHING), strict=True))
                for cell in old.keys() | new.keys()
            }
            increments[hour] = {cell: measures for cell, measures in moved.items() if any(measures)}
        return {hour: cells for hour, cells in increments.items() if cells}

    def status(self, order: Image) -> str:
        """The meaning of the order's status by the rule in force when it was placed."""
        spelling = order["status"].strip(" ").lower()
        meaning, since = "unknown", datetime.min
        for rule in self._rules:
            valid_from = datetime.fromisoformat(rule["valid_from"]) if rule["valid_from"] else datetime.min
            if rule["spelling"] == spelling and since <= valid_from <= order["ordered_at"]:
                meaning, since = rule["status"], valid_from
        return meaning

    # what analysts see

    def hourly(self, cut: datetime | None = None) -> dict[MartCell, Measures]:
        """mart.orders_hourly of the orders at the cut."""
        found: dict[MartCell, Measures] = {}
        for order in self._orders(cut):
            hour = floor_hour(order["ordered_at"])
            cell = (hour, self.category(order["product_id"], hour), order["region"], self.status(order))
            found[cell] = _plus(found.get(cell, NOTHING), order)
        return found

    def daily(self, cut: datetime | None = None) -> dict[MartCell, Measures]:
        """The sums of mart.orders_daily of the orders at the cut."""
        found: dict[MartCell, Measures] = {}
        for order in self._orders(cut):
            cell = self._daily_cell(order)
            found[cell] = _plus(found.get(cell, NOTHING), order)
        return found

    def batch(self, cut: datetime) -> dict[MartCell, Batch]:
        """The batch measures of mart.orders_daily of the orders at the cut."""
        customers, amounts = defaultdict(set), defaultdict(list)
        for order in self._orders(cut):
            customers[self._daily_cell(order)].add(order["customer_id"])
            amounts[self._daily_cell(order)].append(order["amount_cents"])
        return {
            cell: (len(customers[cell]), _percentile(amounts[cell], 50), _percentile(amounts[cell], 95))
            for cell in amounts
        }

    def category(self, product_id: int, at: datetime) -> str:
        """The product's category at `at` by all versions landed so far; its first one holds for all time before."""
        versions: dict[datetime, str] = {}
        for change in self.changes:
            if change.table == "products" and change.after and change.after["product_id"] == product_id:
                versions[change.after["updated_at"]] = change.after["category"]
        if not versions:
            return "unknown"
        return versions[max((since for since in versions if since <= at), default=min(versions))]

    # the source as it stood

    def _orders(self, cut: datetime | None) -> list[Image]:
        rows: dict[int, Image] = {}
        for change, logged_at in zip(self.changes, self.logged_at, strict=True):
            if change.table != "orders" or (cut and logged_at >= cut):
                continue
            if change.before:
                rows.pop(change.before[KEY["orders"]])
            if change.after:
                rows[change.after[KEY["orders"]]] = change.after
        return list(rows.values())

    def _daily_cell(self, order: Image) -> MartCell:
        hour = floor_hour(order["ordered_at"])
        return hour.date(), self.category(order["product_id"], hour), order["region"], self.status(order)


def total(cells: Mapping[Cell, Measures]) -> Counter[str]:
    """Orders and cents over all cells, for messages and examples."""
    return Counter(orders=sum(m[0] for m in cells.values()), cents=sum(m[2] for m in cells.values()))


def _plus(measures: Measures, order: Image) -> Measures:
    orders, units, cents, high = measures
    is_high = order["amount_cents"] > 1_000_00
    return orders + 1, units + order["quantity"], cents + order["amount_cents"], high + is_high


def _percentile(values: list[int], percent: int) -> int:
    """The smallest value that at least `percent` of 100 values do not exceed."""
    rank = -(-len(values) * percent // 100)  # rounded up
    return sorted(values)[max(rank, 1) - 1]
