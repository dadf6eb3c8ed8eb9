"""What the figures must be, computed another way: by replaying the changes into plain tables and counting rows.

It shares no code and no SQL with the models. The rules, the contracts' tolerances and what is served when are written
down again here; only the list of spellings is read from `seeds/order_status_rules.csv`. Increments are differences of
two states, never sums of signed images, and before images are not looked at but for the key of what is deleted.
"""

from __future__ import annotations

import csv
import math
import statistics
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from datetime import date, datetime, time, timedelta
from pathlib import Path
from typing import Any

from shop import Change, Image, key_of

Cell = tuple[Any, ...]
Values = tuple[Any, ...]
Cells = dict[Cell, Values]

HOUR, MINUTE, DAY = timedelta(hours=1), timedelta(minutes=1), timedelta(days=1)
RULES = Path(__file__).parent.parent / "seeds" / "order_status_rules.csv"
CALLED_OFF = {"cancelled", "failed", "returned"}
ON_TIME = 15 * MINUTE
TIMELY = 3 * MINUTE
METRES_A_SECOND = 25_000 / 3_600


@dataclass(frozen=True)
class Domain:
    """A domain's columns, and what its contract says, once more."""

    grain: tuple[str, ...]
    measures: tuple[str, ...]
    mode: str = "live"
    tolerances: tuple[float, ...] = ()  # absolute, by measure; none: exact
    medians: tuple[float, ...] = ()  # as far may those lie apart at the median that differ
    share: float = 1  # of the cells may differ at all; one always may
    reads: tuple[str, ...] = ()
    folded: tuple[tuple[str, ...], tuple[str, ...]] | None = None  # grain and sums of its increments, if not its own


DOMAINS = {
    "vehicle_positions": Domain(
        ("driver_id",),
        ("latitude", "longitude", "speed_kmh", "recorded_at"),
        tolerances=(0.5, 0.5, 100, 172_800),
        medians=(0.3, 0.3, 60, 172_800),
        share=0.05,
    ),
    "delivery_status": Domain(
        ("window_hour", "region", "status", "exception_code"), ("shipments", "delivered", "late", "minutes_late")
    ),
    "orders": Domain(
        ("ordered_hour", "product_id", "region", "status"), ("orders", "units", "revenue_cents", "high_value_orders")
    ),
    "customer_activity": Domain(
        ("customer_id", "ordered_bucket"), ("orders", "open_orders", "revenue_cents", "alert_orders"), mode="shadow"
    ),
    "route_performance": Domain(
        ("route_id",),
        (
            *("driver_id", "service_date", "stops_planned", "stops_done", "stops_on_time", "parcels"),
            *("parcels_on_board", "next_stop_number", "planned_arrival_at", "window_to_at"),
            *("stop_latitude", "stop_longitude"),
        ),
        reads=("vehicle_positions",),
        folded=(
            ("__k", *(f"__k{number}_0" for number in range(1, 4)), *(f"__k{number}_1" for number in range(1, 7))),
            ("__n", *(f"__s{number}_0" for number in range(1, 6))),
        ),
    ),
}
TABLES = {
    "delivery_status": {"shipments"},
    "orders": {"orders"},
    "customer_activity": {"orders"},
    "route_performance": {"routes", "route_stops", "shipments"},
}
PASSES_TO_RETURN = 2
RECEIPT_HOURS = 50 * HOUR
GENERATIONS = 7


@dataclass(frozen=True)
class Ping:
    """A ping and when it counts: nothing is recorded after its commit, and of equal times the later change counts."""

    latest_at: datetime
    place: int
    image: Image
    logged_at: datetime
    is_timely: bool

    @property
    def values(self) -> Values:
        return tuple(self.image[name] for name in DOMAINS["vehicle_positions"].measures)


@dataclass(frozen=True)
class Receipt:
    """What a reconciliation must find: class by cell, and how far the paths lie apart by measure."""

    classes: dict[Cell, str]
    worst: Values
    is_passed: bool
    is_empty: bool = False  # nothing had come in: it proves nothing

    @property
    def verdict(self) -> str:
        return "failed" if not self.is_passed else "empty" if self.is_empty else "passed"


def floor_hour(at: datetime) -> datetime:
    return at.replace(minute=0, second=0, microsecond=0)


def five_minutes(at: datetime) -> datetime:
    return at.replace(minute=at.minute // 5 * 5, second=0, microsecond=0)


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

    # the domains' cells

    def cells(self, domain: str, cut: datetime | None = None) -> Cells:
        """The rebuild's cells at the cut: rows of the source that live then, counted."""
        if domain == "vehicle_positions":
            return _values(self._last_pings(lambda ping: not cut or ping.logged_at < cut))
        if domain == "route_performance":
            return self._routes(cut)
        return self._counted(domain, cut)

    def _counted(self, domain: str, cut: datetime | None = None) -> Cells:
        """What increments up to the cut come to: rows that live then, counted."""
        rows = {
            "orders": self._order_rows,
            "customer_activity": self._activity_rows,
            "delivery_status": self._delivery_rows,
            "route_performance": self._route_parts,
        }[domain](cut)
        found: Cells = {}
        for cell, values in rows:
            found[cell] = tuple(map(sum, zip(found.get(cell, (0,) * len(values)), values, strict=True)))
        return found

    def added_up(self, domain: str, cut: datetime) -> Cells:
        """What all increments up to the cut come to: the rebuild's cells, but that they know no untimely ping."""
        if domain == "vehicle_positions":
            return _values(self._last_pings(lambda ping: ping.is_timely and ping.logged_at < cut))
        return self.cells(domain, cut)

    def live(self, domain: str, base: datetime) -> Cells:
        """The live cells on the generation of the cut `base`, which knows the untimely pings before it."""
        if domain == "vehicle_positions":
            return _values(self._last_pings(lambda ping: ping.is_timely or ping.logged_at < base))
        return self.cells(domain)

    def increments(self, domain: str) -> dict[datetime, Cells]:
        """Per hour of the log: what its changes did to each cell. Cells that came out as they were are left out."""
        hours = sorted({floor_hour(at) for at in self.logged_at})
        if domain == "vehicle_positions":
            found = {
                h: _values(self._last_pings(lambda p, h=h: p.is_timely and h <= p.logged_at < h + HOUR)) for h in hours
            }
        else:
            found = {hour: _minus(self._counted(domain, hour + HOUR), self._counted(domain, hour)) for hour in hours}
        return {hour: cells for hour, cells in found.items() if cells}

    def receipt(self, domain: str, cut: datetime) -> Receipt:
        """What the comparison at the cut must say."""
        found = self.compared(domain, self.cells(domain, cut), self.added_up(domain, cut))
        return replace(found, is_empty=not found.classes and not self.has_come_in(domain, cut))

    def has_come_in(self, domain: str, cut: datetime) -> bool:
        """Whether increments before the cut ever counted a row of the domain, be it gone again."""
        if domain == "vehicle_positions":
            return any(ping.is_timely and ping.logged_at < cut for ping in self._pings())
        return any(
            change.table in TABLES[domain]
            and change.after
            and logged_at < cut
            and (change.table != "shipments" or domain != "route_performance" or change.after["route_id"] is not None)
            for change, logged_at in zip(self.changes, self.logged_at, strict=True)
        )

    def base_holds(self, cut: datetime, previous_cut: datetime) -> bool:
        """Whether the positions that were live at the cut, on the generation before, are the rebuild's by tolerance."""
        live = _values(self._last_pings(lambda p: p.logged_at < previous_cut or (p.is_timely and p.logged_at < cut)))
        return self.compared("vehicle_positions", self.cells("vehicle_positions", cut), live).is_passed

    def compared(self, domain: str, rebuilt: Cells, added_up: Cells) -> Receipt:
        measures = DOMAINS[domain].measures
        tolerances = DOMAINS[domain].tolerances or (0,) * len(measures)
        classes, worst = {}, [0.0] * len(measures)
        few = self._are_few(domain, rebuilt, added_up)
        for cell in rebuilt.keys() | added_up.keys():
            one, other = rebuilt.get(cell), added_up.get(cell)
            if one is None or other is None:
                classes[cell] = "added" if one is None else "removed"
                continue
            apart = [_distance(a, b) for a, b in zip(one, other, strict=True)]
            worst = [max(pair) for pair in zip(worst, apart, strict=True)]
            is_near = all(
                a == 0 or (f and a <= tolerance) for a, f, tolerance in zip(apart, few, tolerances, strict=True)
            )
            classes[cell] = "identical" if one == other else "tolerated" if is_near else "modified"
        return Receipt(classes, tuple(worst), set(classes.values()) <= {"identical", "tolerated"})

    def _are_few(self, domain: str, rebuilt: Cells, added_up: Cells) -> list[bool]:
        """By measure: whether so few cells differ, and so little at the median, that any of them may."""
        contract, found = DOMAINS[domain], []
        cells = rebuilt.keys() | added_up.keys()
        both = rebuilt.keys() & added_up.keys()
        for i, median in enumerate(contract.medians or (math.inf,) * len(contract.measures)):
            apart = [d for cell in both if (d := _distance(rebuilt[cell][i], added_up[cell][i]))]
            is_few = len(apart) + len(cells) - len(both) <= max(1, contract.share * len(cells))
            found.append(is_few and (not apart or statistics.median(apart) <= median))
        return found

    def status(self, order: Image) -> str:
        """The meaning of the order's status by the rule in force when it was placed."""
        spelling = order["status"].strip(" ").lower()
        meaning, since = "unknown", datetime.min
        for rule in self._rules:
            valid_from = datetime.fromisoformat(rule["valid_from"]) if rule["valid_from"] else datetime.min
            if rule["spelling"] == spelling and since <= valid_from <= order["ordered_at"]:
                meaning, since = rule["status"], valid_from
        return meaning

    def _order_rows(self, cut: datetime | None) -> Iterable[tuple[Cell, Values]]:
        for order in self.rows("orders", cut):
            cell = (floor_hour(order["ordered_at"]), order["product_id"], order["region"], self.status(order))
            yield cell, _order_values(order)

    def _activity_rows(self, cut: datetime | None) -> Iterable[tuple[Cell, Values]]:
        for order in self.rows("orders", cut):
            status, amount = self.status(order), order["amount_cents"]
            yield (
                (order["customer_id"], five_minutes(order["ordered_at"])),
                (
                    1,
                    int(status not in CALLED_OFF | {"completed"}),
                    0 if status in CALLED_OFF else amount,
                    int(amount > 10_000_00),
                ),
            )

    def _delivery_rows(self, cut: datetime | None) -> Iterable[tuple[Cell, Values]]:
        for row in self.rows("shipments", cut):
            delivered_at = row["delivered_at"]
            overdue = max(delivered_at - row["window_to_at"], 0 * HOUR) if delivered_at else 0 * HOUR
            yield (
                (floor_hour(row["window_from_at"]), row["region"], row["status"], row["exception_code"] or "none"),
                (1, int(delivered_at is not None), int(overdue > 0 * HOUR), overdue // MINUTE),
            )

    def _route_parts(self, cut: datetime | None) -> Iterable[tuple[Cell, Values]]:
        """What the increments of routes count: all that there is of a route, and in cells of their own open stops."""

        def of_route(route_id: int, driver_id: Any = None, service_date: Any = None) -> Cell:
            return (0, route_id, driver_id, service_date, *(None,) * 6)

        windows = self._windows(cut)
        for r in self.rows("routes", cut):
            yield of_route(r["route_id"], r["driver_id"], r["service_date"]), (1, 0, 0, 0, 0, 0)
        for s in self.rows("route_stops", cut):
            done, on_time = int(s["completed_at"] is not None), int(_is_on_time(s))
            yield of_route(s["route_id"]), (1, 1, done, on_time, 0, 0)
            if not done:
                names = ("route_id", "stop_number", "planned_arrival_at", "latitude", "longitude")
                yield (1, *(None,) * 3, *(s[name] for name in names), windows.get(s["shipment_id"])), (1, *(0,) * 5)
        for p in self.rows("shipments", cut):
            if p["route_id"] is not None:
                yield of_route(p["route_id"]), (1, 0, 0, 0, 1, int(p["status"] == "out_for_delivery"))

    def _routes(self, cut: datetime | None) -> Cells:
        """Each route that any row knows, with the first of its stops that is not completed."""
        routes = {row["route_id"]: row for row in self.rows("routes", cut)}
        stops, parcels, windows = defaultdict(list), defaultdict(list), self._windows(cut)
        for row in self.rows("route_stops", cut):
            stops[row["route_id"]].append(row)
        for row in self.rows("shipments", cut):
            if row["route_id"] is not None:
                parcels[row["route_id"]].append(row)
        found: Cells = {}
        for route_id in routes.keys() | stops.keys() | parcels.keys():
            route = routes.get(route_id)
            done = [s for s in stops[route_id] if s["completed_at"] is not None]
            ahead = sorted((s for s in stops[route_id] if s["completed_at"] is None), key=lambda s: s["stop_number"])
            nearest: Values = (None,) * 5
            if ahead:
                first = ahead[0]
                window = windows.get(first["shipment_id"])
                nearest = (first["stop_number"], first["planned_arrival_at"], window, *_place(first))
            found[(route_id,)] = (
                route and route["driver_id"],
                route and datetime.combine(route["service_date"], time()),
                *(len(stops[route_id]), len(done), sum(map(_is_on_time, done)), len(parcels[route_id])),
                sum(p["status"] == "out_for_delivery" for p in parcels[route_id]),
                *nearest,
            )
        return found

    def _windows(self, cut: datetime | None) -> dict[int, datetime]:
        """The end of the promised window of each shipment that is on a route."""
        return {p["shipment_id"]: p["window_to_at"] for p in self.rows("shipments", cut) if p["route_id"] is not None}

    def _last_pings(self, counts: Callable[[Ping], bool]) -> dict[Cell, Ping]:
        """The last ping of each driver, of those that count."""
        last: dict[Cell, Ping] = {}
        for ping in filter(counts, self._pings()):
            cell = (ping.image["driver_id"],)
            if cell not in last or (ping.latest_at, ping.place) > (last[cell].latest_at, last[cell].place):
                last[cell] = ping
        return last

    def _pings(self) -> Iterable[Ping]:
        for place, (change, logged_at) in enumerate(zip(self.changes, self.logged_at, strict=True)):
            if change.table == "gps_pings" and change.after:
                recorded_at = change.after["recorded_at"]
                timely = change.op == "r" or abs(recorded_at - change.committed_at) <= TIMELY
                yield Ping(min(recorded_at, change.committed_at), place, change.after, logged_at, timely)

    # what analysts see; `cut` is that of the generation that is served, or None for live

    def orders_hourly(self, cut: datetime | None = None) -> Cells:
        """mart.orders_hourly."""
        found: Cells = {}
        for order in self.rows("orders", cut):
            hour = floor_hour(order["ordered_at"])
            cell = (hour, self.category(order["product_id"], hour), order["region"], self.status(order))
            found[cell] = _plus(found.get(cell), _order_values(order))
        return found

    def orders_daily(self, cut: datetime | None = None) -> Cells:
        """The sums of mart.orders_daily."""
        found: Cells = {}
        for order in self.rows("orders", cut):
            cell = self._daily_cell(order)
            found[cell] = _plus(found.get(cell), _order_values(order))
        return found

    def orders_batch(self, cut: datetime) -> Cells:
        """The batch measures of mart.orders_daily of the orders at the cut."""
        customers, amounts = defaultdict(set), defaultdict(list)
        for order in self.rows("orders", cut):
            customers[self._daily_cell(order)].add(order["customer_id"])
            amounts[self._daily_cell(order)].append(order["amount_cents"])
        return {
            cell: (len(customers[cell]), _percentile(amounts[cell], 50), _percentile(amounts[cell], 95))
            for cell in amounts
        }

    def customers(self, cut: datetime | None, as_of: datetime) -> Cells:
        """mart.customers without its batch columns: region, totals, and the hour before `as_of`."""
        totals: Cells = {}
        for order in self.rows("orders", cut):
            status, amount = self.status(order), order["amount_cents"]
            spent = 0 if status in CALLED_OFF else amount
            is_recent = as_of - HOUR < five_minutes(order["ordered_at"]) <= as_of
            values = (1, int(status not in CALLED_OFF | {"completed"}), spent, int(amount > 10_000_00))
            cell = (order["customer_id"],)
            totals[cell] = _plus(totals.get(cell), (*values, int(is_recent), spent * is_recent))
        regions = {customer: self._version("customers", customer, as_of) for (customer,) in totals}
        return {
            (customer,): (regions[customer]["region"] if regions[customer] else "unknown", *values)
            for (customer,), values in totals.items()
        }

    def customers_batch(self, cut: datetime) -> Cells:
        """The batch columns of mart.customers of the orders at the cut: those that were not called off."""
        orders = defaultdict(list)
        for order in self.rows("orders", cut):
            if self.status(order) not in CALLED_OFF:
                orders[order["customer_id"]].append(order)
        spent = {customer: sum(o["amount_cents"] for o in own) for customer, own in orders.items()}
        found: Cells = {}
        for customer, own in orders.items():
            categories = Counter(self.category(o["product_id"], floor_hour(o["ordered_at"])) for o in own)
            favourite = min(categories, key=lambda c: (-categories[c], c))
            rank = 1 + sum(other > spent[customer] for other in spent.values())
            days = (cut - min(o["ordered_at"] for o in own)) // DAY
            found[(customer,)] = (len(own), spent[customer], favourite, rank, days)
        return found

    def customer_velocity(self, cut: datetime | None) -> Cells:
        """mart.customer_velocity: each cell with an order, and the hour that ends with its five minutes."""
        cells = self.cells("customer_activity", cut)
        found: Cells = {}
        for customer, bucket in cells:
            hour = [v for (other, at), v in cells.items() if other == customer and bucket - 55 * MINUTE <= at <= bucket]
            own = cells[customer, bucket]
            found[customer, bucket] = (own[0], own[2], sum(v[0] for v in hour), sum(v[2] for v in hour))
        return found

    def delivery_hourly(self, cut: datetime | None) -> Cells:
        """mart.delivery_hourly."""
        found: Cells = {}
        for row in self.rows("shipments", cut):
            cell = (floor_hour(row["window_from_at"]), row["region"])
            delivered = row["delivered_at"] is not None
            overdue = max(row["delivered_at"] - row["window_to_at"], 0 * HOUR) if delivered else 0 * HOUR
            sent, excepted = row["status"] == "out_for_delivery", row["exception_code"] not in (None, "none")
            values = (1, int(sent), int(excepted), int(delivered), int(overdue > 0 * HOUR), overdue // MINUTE)
            found[cell] = _plus(found.get(cell), values)
        return {cell: (*v, (v[3] - v[4]) / v[3] if v[3] else None) for cell, v in found.items()}

    def routes(self, cut: datetime | None, as_of: datetime, positions: Cells) -> Cells:
        """mart.routes without the hash; `positions` are the served ones of the same moment, arrival is in Unix time."""
        found: Cells = {}
        for route, values in self._routes(cut).items():
            driver_id, service_date, *counts, number, planned, window, stop_latitude, stop_longitude = values
            stops_planned, stops_done, *_, on_board = counts
            driver = self._version("drivers", driver_id, as_of)
            capacity = driver["capacity_parcels"] if driver else None
            latitude, longitude, _, recorded_at = positions.get((driver_id,), (None,) * 4)
            distance = arrival = slack = None
            late = False
            if stops_done < stops_planned:
                due = min(at for at in (planned + ON_TIME, window) if at)
                late = due < as_of
                if recorded_at:
                    distance = _metres(latitude, longitude, stop_latitude, stop_longitude)
                    arrival = max(as_of, recorded_at + timedelta(seconds=distance / METRES_A_SECOND))
                    slack = (due - arrival).total_seconds()
                    late = due < arrival
            is_at_risk = late or (capacity is not None and on_board > capacity)
            found[route] = (
                *(service_date and service_date.date(), driver_id, *counts, capacity, number, planned, window),
                *(latitude, longitude, recorded_at, distance, arrival and _epoch(arrival), slack, is_at_risk),
            )
        return found

    def category(self, product_id: int, at: datetime) -> str:
        """The product's category at `at` by all versions landed so far."""
        version = self._version("products", product_id, at)
        return version["category"] if version else "unknown"

    # the source as it stood

    def rows(self, table: str, cut: datetime | None) -> list[Image]:
        """The rows of a table that live at the cut."""
        rows: dict[Any, Image] = {}
        for change, logged_at in zip(self.changes, self.logged_at, strict=True):
            if change.table != table or (cut and logged_at >= cut):
                continue
            if change.before:
                rows.pop(key_of(table, change.before))
            if change.after:
                rows[key_of(table, change.after)] = change.after
        return list(rows.values())

    def _version(self, table: str, key: Any, at: datetime) -> Image | None:
        """The row's version at `at` by all that landed so far; its first one holds for all time before."""
        versions: dict[datetime, Image] = {}
        for change in self.changes:
            if change.table == table and change.after and key_of(table, change.after) == key:
                versions[change.after["updated_at"]] = change.after
        if not versions:
            return None
        return versions[max((since for since in versions if since <= at), default=min(versions))]

    def _daily_cell(self, order: Image) -> Cell:
        hour = floor_hour(order["ordered_at"])
        return hour.date(), self.category(order["product_id"], hour), order["region"], self.status(order)


@dataclass(frozen=True)
class Evidence:
    """A receipt as it stands in the warehouse, once it was found to say what it must."""

    cut: datetime
    verdict: str
    is_stored: bool  # its generation is there, or has no cells


@dataclass(frozen=True)
class Served:
    """What the mart must serve of a domain: None where there is no figure yet."""

    served_from: str
    as_of: datetime | None
    verified_cut: datetime | None

    @property
    def cut(self) -> datetime | None:
        """The cut of what is served; None is live, and with no generation it lies before everything."""
        return None if self.served_from == "live" else self.verified_cut or datetime.min


def served(evidence: Mapping[str, list[Evidence]], live: Mapping[str, str], watermark: datetime) -> dict[str, Served]:
    """What is served of each domain, by its receipts in the order in which they were made, and its last live one."""
    found = {}
    for domain, contract in DOMAINS.items():
        needed = (domain, *contract.reads)
        shared = set.intersection(
            *({e.cut for e in evidence[d] if e.verdict != "failed" and e.is_stored} for d in needed)
        )
        verified_cut = max(shared, default=None)
        is_live = all(_may_be_live(DOMAINS[d], evidence[d], live.get(d), watermark) for d in needed)
        found[domain] = Served("live" if is_live else "rebuild", watermark if is_live else verified_cut, verified_cut)
    return found


def _may_be_live(contract: Domain, receipts: list[Evidence], live: str | None, watermark: datetime) -> bool:
    if contract.mode != "live" or not receipts or live == "failed":
        return False
    if receipts[-1].verdict == "empty":
        return live == "passed"
    if receipts[-1].verdict != "passed":
        return False
    failed = [i for i, receipt in enumerate(receipts) if receipt.verdict == "failed"]
    passed = [receipt for receipt in receipts[failed[-1] + 1 if failed else 0 :] if receipt.verdict == "passed"]
    if failed and len({receipt.cut for receipt in passed}) < PASSES_TO_RETURN:
        return False
    return watermark <= max(receipt.cut for receipt in receipts if receipt.verdict == "passed") + RECEIPT_HOURS


def _place(stop: Image) -> Values:
    return stop["latitude"], stop["longitude"]


def _is_on_time(stop: Image) -> bool:
    return stop["completed_at"] is not None and stop["completed_at"] <= stop["planned_arrival_at"] + ON_TIME


def _values(pings: Mapping[Cell, Ping]) -> Cells:
    return {cell: ping.values for cell, ping in pings.items()}


def _order_values(order: Image) -> Values:
    return 1, order["quantity"], order["amount_cents"], int(order["amount_cents"] > 1_000_00)


def _plus(one: Values | None, other: Values) -> Values:
    return tuple(a + b for a, b in zip(one, other, strict=True)) if one else other


def _minus(new: Cells, old: Cells) -> Cells:
    moved = {}
    for cell in old.keys() | new.keys():
        nothing = (0,) * len(old.get(cell) or new[cell])
        moved[cell] = tuple(n - o for n, o in zip(new.get(cell, nothing), old.get(cell, nothing), strict=True))
    return {cell: values for cell, values in moved.items() if any(values)}


def _distance(one: Any, other: Any) -> float:
    if one == other:
        return 0.0
    return abs((one - other).total_seconds()) if isinstance(one, date) else abs(one - other)


def _epoch(at: datetime) -> float:
    return (at - datetime(1970, 1, 1)).total_seconds()


def _metres(latitude: float, longitude: float, to_latitude: float, to_longitude: float) -> float:
    """By the angle between two vectors, not by the haversine formula."""
    one, other = _vector(latitude, longitude), _vector(to_latitude, to_longitude)
    cross = (
        one[1] * other[2] - one[2] * other[1],
        one[2] * other[0] - one[0] * other[2],
        one[0] * other[1] - one[1] * other[0],
    )
    return 6_371_000 * math.atan2(math.hypot(*cross), sum(a * b for a, b in zip(one, other, strict=True)))


def _vector(latitude: float, longitude: float) -> tuple[float, float, float]:
    phi, lam = math.radians(latitude), math.radians(longitude)
    return math.cos(phi) * math.cos(lam), math.cos(phi) * math.sin(lam), math.sin(phi)


def _percentile(values: list[int], percent: int) -> int:
    """The smallest value that at least `percent` of 100 values do not exceed."""
    rank = -(-len(values) * percent // 100)  # rounded up
    return sorted(values)[max(rank, 1) - 1]
