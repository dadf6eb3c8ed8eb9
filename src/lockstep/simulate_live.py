"""The simulated company at wall-clock time: goes on from the latest rows, for example of a simulated log.

Where `simulate_world` knows all lives beforehand, this reads the state that was reached, as any application reads its
own tables, and changes it: so it continues whatever was landed before. In a log the draws are determined by its seed
and position; the times are the clock's. `simulate_into` has the same company work in a PostgreSQL.
"""

from __future__ import annotations

import itertools
import random
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

import duckdb
import pyarrow as pa

from lockstep.changelog import ChangeLog, Watermark
from lockstep.errors import LockstepError
from lockstep.schema import TABLES
from lockstep.service import stop_on_signal
from lockstep.simulate import SOURCE, Progress, Rows, progress, stamp, to_us
from lockstep.simulate_world import ENTITIES

Image = dict[str, Any]
Key = tuple[Any, ...]

_BATCH_SECONDS = 0.5
WORKING_SET = 20_000  # rows of a table that are read back: the latest changed; older ones stay as they are
_STAGES = {"created": "open", "new": "open", "paid": "paid", "shipped": "shipped"}
REMEMBERED = ("customers", "products", "drivers", "orders", "shipments", "route_stops")
_SPELLINGS = {
    "open": ("created", "created", "new"),
    "paid": ("paid", "paid", "Paid", "PAID"),
    "shipped": ("shipped", "shipped", "Shipped", " Shipped"),
    "complete": ("complete", "complete", "Completed", "Done", "COMPLETE"),
    "cancelled": ("cancelled", "cancelled", "cancel", "Canceled"),
}
_SMALL_ROUTE, _LARGE_ROUTE = 4, 20


@dataclass(frozen=True)
class Live:
    """How far a live simulation is: changes and transactions it landed, for how long, and the log's watermark."""

    changes: int
    transactions: int
    seconds: float
    watermark: Watermark


def live(
    log: ChangeLog,
    rate: float,
    seconds: float | None = None,
    on_batch: Callable[[Live], None] = lambda _: None,
    stop: threading.Event | None = None,
) -> Live:
    """Land about `rate` changes per second in `log`, in batches of half a second, and call `on_batch` after each.

    Ends after `seconds`, or when `stop` is set; what has landed stays. Each batch moves the watermark to the present,
    also one without changes. Raises LockstepError if `log` has no finished simulated history, or one that reaches into
    the future.
    """
    begun = progress(log)
    if begun is None or not begun.is_finished:
        raise LockstepError(f"{log.home} has no finished simulated history. Make one first: `lockstep simulate`.")
    with log.writer(f"{SOURCE}:{begun.history.seed}", "simulating live changes") as writer:
        if writer.watermark.logged_at and writer.watermark.logged_at > _now():
            raise LockstepError(
                f"{log.home} is simulated up to {writer.watermark.logged_at}, which is in the future; live changes "
                "happen now. Wait until then, or choose another LOCKSTEP_HOME."
            )
        last = Progress.from_resume(writer.watermark.resume)
        company = Company(_state(log), f"{last.history.seed} {writer.watermark.position}")
        pace, first_tx = Pace(rate, _BATCH_SECONDS, seconds, stop or threading.Event()), last.tx_id
        result = Live(0, 0, 0.0, writer.watermark)
        for wanted, since, now in pace.beats():
            batch, last = stamp(company.work(wanted, since, now), last)
            landed = writer.land(batch, reached=now, resume=last.to_resume())
            pace.done += landed.changes
            result = Live(pace.done, last.tx_id - first_tx, pace.elapsed, landed.watermark)
            on_batch(result)
    return result


@dataclass
class Pace:
    """Work at a rate a second, in beats of `every` seconds, for `seconds` or until `stop` is set."""

    rate: float
    every: float
    seconds: float | None
    stop: threading.Event
    done: int = 0  # changes that have been committed so far
    elapsed: float = 0.0

    def beats(self) -> Iterator[tuple[int, datetime, datetime]]:
        """How much is due, and the time (UTC) since the last beat in which it happens."""
        begin, since = time.monotonic(), _now()
        is_over = False
        while not is_over and not self.stop.wait(self._pause()):
            self.elapsed, now = time.monotonic() - begin, _now()
            is_over = self.seconds is not None and self.elapsed >= self.seconds
            # A beat that took long is caught up with, but not by one that would take longer still.
            yield int(min(self.rate * self.elapsed - self.done, 4 * max(1.0, self.rate * self.every))), since, now
            since = now

    def _pause(self) -> float:
        return self.every if self.seconds is None else min(self.every, self.seconds - self.elapsed)


def run(log: ChangeLog, rate: float, seconds: float | None, say: Callable[[str], None]) -> dict[str, Any]:
    """Simulate live until `seconds` have passed or a signal asks to end, which is a way to end well; the summary.

    To be called from the main thread: SIGINT and SIGTERM end it between two batches.
    """

    def on_batch(now: Live) -> None:
        say(
            f"live: {now.changes:,} changes in {now.seconds:.0f} s ({now.changes / now.seconds:,.0f}/s), "
            f"log at {now.watermark.logged_at:%H:%M:%S} UTC; Ctrl-C ends"
        )

    say("reading where the company is")
    with stop_on_signal() as stop:
        done = live(log, rate, seconds, on_batch, stop)
    say("")
    return {
        "rate": rate,
        "changes": done.changes,
        "transactions": done.transactions,
        "seconds": round(done.seconds, 3),
        "position": done.watermark.position,
        "logged_at": done.watermark.logged_at,
    }


@dataclass(frozen=True)
class State:
    """Where a company goes on: the greatest id that each table ever had, and the rows that may change."""

    last_ids: Mapping[str, int]
    rows: Mapping[str, dict[Key, Image]]  # of the tables REMEMBERED, at most WORKING_SET each


@dataclass(frozen=True)
class Change:
    """One change to a row. `t` orders all changes; those of one millisecond of it are a transaction."""

    t: int
    table: str
    op: str
    before: Image | None
    after: Image | None


class Company:
    """The operational database: the rows that are still of interest, and the transactions that change them."""

    def __init__(self, state: State, seed: str) -> None:
        """`seed` determines what happens; `state` is the company's own from now on."""
        self._random = random.Random(seed)
        self._now = _now()
        self._written: list[Change] = []  # since the last call of `transact`
        self._t = 0  # the last change's time in microseconds
        self._next = {name: itertools.count(last + 1) for name, last in state.last_ids.items()}
        self._rows = state.rows
        self._keys = {name: list(rows) for name, rows in self._rows.items()}
        self._shipment_of = {s["order_id"]: key for key, s in self._rows["shipments"].items()}
        self._stop_of = {
            (stop["shipment_id"],): key for key, stop in self._rows["route_stops"].items() if not stop["completed_at"]
        }
        self._stage: dict[str, list[Key]] = defaultdict(list)
        for key, order in self._rows["orders"].items():
            self._stage[_STAGES.get(order["status"].strip().lower(), "closed")].append(key)
        self._kinds: dict[Callable[[], None], int] = {
            self._place_order: 220,
            self._pay: 200,
            self._plan_route: 20,
            self._deliver: 190,
            self._ping: 260,
            self._correct: 45,
            self._cancel: 15,
            self._delete: 4,
            self._restore: 4,
            self._renumber: 1,
            self._reprice: 3,
            self._recategorise: 1,
            self._register: 8,
            self._move: 2,
        }

    def work(self, changes: int, since: datetime, until: datetime) -> Rows:
        """What `transact` does, as a batch for the change log."""
        rows: dict[str, list[Image]] = defaultdict(list)
        for c in self.transact(changes, since, until):
            rows[c.table].append({"t": c.t, "op": c.op, "before": c.before, "after": c.after})
        return {name: pa.Table.from_pylist(part, _rows_schema(name)) for name, part in rows.items()}

    def transact(self, changes: int, since: datetime, until: datetime) -> list[Change]:
        """At least `changes` changes, if any, in transactions spread over the time from `since` to `until`."""
        while (done := len(self._written)) < changes:
            now = since + (until - since) * done / changes
            self._now = now.replace(microsecond=now.microsecond // 1000 * 1000)
            # What a transaction has nothing to do for, because no row is in the right state, another will find.
            self._random.choices(list(self._kinds), list(self._kinds.values()))[0]()
        self._forget()
        written, self._written = self._written, []
        return written

    def _place_order(self) -> None:
        order_id = next(self._next["orders"])
        product = self._any("products")
        quantity = self._random.choice((1, 1, 1, 2, 2, 3, 4, 20))
        minutes_late = self._random.choices((0, 45, 400), (95, 4, 1))[0]
        self._insert(
            "orders",
            order_id=order_id,
            customer_id=self._any("customers")["customer_id"],
            product_id=product["product_id"],
            region=self._any("customers")["region"],
            quantity=quantity,
            amount_cents=quantity * product["price_cents"],
            status=self._spell("open"),
            ordered_at=self._now - timedelta(minutes=minutes_late),
        )
        self._stage["open"].append((order_id,))

    def _pay(self) -> None:
        order = self._take("open")
        if order is None:
            return
        self._update("orders", order, status=self._spell("paid"))
        self._stage["paid"].append(key_of("orders", order))
        shipment_id = next(self._next["shipments"])
        window = self._now.replace(minute=0, second=0, microsecond=0) + timedelta(hours=3)
        self._insert(
            "shipments",
            shipment_id=shipment_id,
            order_id=order["order_id"],
            route_id=None,
            region=order["region"],
            status="created",
            exception_code=None,
            window_from_at=window,
            window_to_at=window + timedelta(hours=2),
            delivered_at=None,
        )
        self._shipment_of[order["order_id"]] = (shipment_id,)

    def _plan_route(self) -> None:
        """A van is loaded and leaves: many changes in one transaction."""
        orders = [o for _ in range(self._random.randint(_SMALL_ROUTE, _LARGE_ROUTE)) if (o := self._take("paid"))]
        if not orders:
            return
        route_id = next(self._next["routes"])
        self._insert(
            "routes",
            route_id=route_id,
            driver_id=self._any("drivers")["driver_id"],
            service_date=self._now.date(),
            planned_departure_at=self._now,
            planned_distance_m=self._random.randint(6_000, 46_000),
        )
        for number, order in enumerate(orders, start=1):
            self._update("orders", order, status=self._spell("shipped"))
            self._stage["shipped"].append(key_of("orders", order))
            shipment = self._shipment(order)
            if shipment is None:
                continue
            self._update("shipments", shipment, route_id=route_id, status="out_for_delivery")
            self._insert(
                "route_stops",
                route_id=route_id,
                stop_number=number,
                shipment_id=shipment["shipment_id"],
                planned_arrival_at=self._now + timedelta(minutes=4 * number),
                latitude=52.4 + 0.3 * self._random.random(),
                longitude=13.2 + 0.4 * self._random.random(),
                completed_at=None,
            )
            self._stop_of[key_of("shipments", shipment)] = (route_id, number)

    def _deliver(self) -> None:
        order = self._take("shipped")
        if order is None:
            return
        failed = self._random.random() < 0.06
        shipment = self._shipment(order)
        if shipment:
            if failed:
                self._update("shipments", shipment, status="failed", exception_code="NOT_HOME")
            else:
                self._update("shipments", shipment, status="delivered", delivered_at=self._now)
            stop = self._stop_of.pop(key_of("shipments", shipment), None)
            if stop in self._rows["route_stops"]:
                self._update("route_stops", self._rows["route_stops"][stop], completed_at=self._now)
                del self._rows["route_stops"][stop]  # it will not change again
        if failed:
            self._stage["paid"].append(key_of("orders", order))  # to be planned again
        else:
            self._update("orders", order, status=self._spell("complete"))
            self._stage["closed"].append(key_of("orders", order))

    def _ping(self) -> None:
        lag = self._random.choice((0, 0, 1, 1, 2, 3, 5, 40, 240, -30))
        self._insert(
            "gps_pings",
            ping_id=next(self._next["gps_pings"]),
            driver_id=self._any("drivers")["driver_id"],
            latitude=52.4 + 0.3 * self._random.random(),
            longitude=13.2 + 0.4 * self._random.random(),
            speed_kmh=60 * self._random.random(),
            recorded_at=self._now - timedelta(seconds=lag),
        )

    def _correct(self) -> None:
        order = self._any("orders")
        what = self._random.choice(("amount", "amount", "quantity", "region", "product", "hour", "day"))
        if what == "amount":
            self._update("orders", order, amount_cents=order["amount_cents"] * self._random.randint(80, 99) // 100)
        elif what == "quantity":
            price = order["amount_cents"] // order["quantity"]
            quantity = order["quantity"] + 1
            self._update("orders", order, quantity=quantity, amount_cents=price * quantity)
        elif what == "region":
            self._update("orders", order, region=self._any("customers")["region"])
        elif what == "product":
            self._update("orders", order, product_id=self._any("products")["product_id"])
        elif what == "hour":
            self._update("orders", order, ordered_at=order["ordered_at"] - timedelta(hours=1))
        else:
            self._update("orders", order, ordered_at=order["ordered_at"] - timedelta(days=self._random.randint(1, 3)))

    def _cancel(self) -> None:
        order = self._take(self._random.choice(("open", "paid")))
        if order is None:
            return
        self._update("orders", order, status=self._spell("cancelled"))
        self._stage["closed"].append(key_of("orders", order))
        self._remove_shipment(order)

    def _delete(self) -> None:
        order = self._take("closed")
        if order:
            self._remove("orders", order)
            self._remove_shipment(order)

    def _remove_shipment(self, order: Image) -> None:
        shipment = self._shipment(order)
        if shipment:
            self._remove("shipments", shipment)
            del self._shipment_of[order["order_id"]]

    def _restore(self) -> None:
        """Delete and insert of the same key in one transaction, as a repair script does."""
        order = self._take("closed")
        if order:
            self._remove("orders", order)
            self._insert("orders", **order)
            self._stage["closed"].append(key_of("orders", order))

    def _renumber(self) -> None:
        order = self._take("closed")
        if order is None:
            return
        order_id = next(self._next["orders"])
        shipment = self._shipment(order)
        self._update("orders", order, order_id=order_id)
        self._stage["closed"].append((order_id,))
        if shipment:
            self._update("shipments", shipment, order_id=order_id)
            self._shipment_of[order_id] = self._shipment_of.pop(order["order_id"])

    def _reprice(self) -> None:
        product = self._any("products")
        self._update("products", product, price_cents=product["price_cents"] * self._random.randint(90, 112) // 100)

    def _recategorise(self) -> None:
        self._update("products", self._any("products"), category=self._any("products")["category"])

    def _register(self) -> None:
        customer_id = next(self._next["customers"])
        self._insert(
            "customers",
            customer_id=customer_id,
            full_name=self._any("customers")["full_name"],
            email=f"customer{customer_id}@example.com",
            region=self._any("customers")["region"],
            created_at=self._now,
        )

    def _move(self) -> None:
        self._update("customers", self._any("customers"), region=self._any("customers")["region"])

    def _spell(self, stage: str) -> str:
        return self._random.choice(_SPELLINGS[stage])

    def _any(self, name: str) -> Image:
        """A row at random. Tables never run empty: what is drawn from is either never deleted, or only once closed."""
        keys, rows = self._keys[name], self._rows[name]
        while True:
            i = self._random.randrange(len(keys))
            if keys[i] in rows:
                return rows[keys[i]]
            keys[i] = keys[-1]  # the row is gone
            keys.pop()

    def _take(self, stage: str) -> Image | None:
        """An order of this stage, removed from it; None if there is none."""
        keys = self._stage[stage]
        if not keys:
            return None
        i = self._random.randrange(len(keys))
        keys[i], keys[-1] = keys[-1], keys[i]
        return self._rows["orders"][keys.pop()]

    def _shipment(self, order: Image) -> Image | None:
        return self._rows["shipments"].get(self._shipment_of.get(order["order_id"], ()))

    def _insert(self, name: str, **columns: Any) -> None:
        self._write(name, "c", None, self._touched(name, columns))

    def _update(self, name: str, row: Image, **columns: Any) -> None:
        self._write(name, "u", row, self._touched(name, {**row, **columns}))

    def _remove(self, name: str, row: Image) -> None:
        self._write(name, "d", row, None)

    def _touched(self, name: str, row: Image) -> Image:
        has_clock = any(c.name == "updated_at" for c in TABLES[name].columns)
        return {**row, "updated_at": self._now} if has_clock else row

    def _write(self, name: str, op: str, before: Image | None, after: Image | None) -> None:
        # A millisecond is a transaction; within it each change has a microsecond of its own, in the order of writing.
        self._t = max(to_us(self._now), self._t + 1)
        self._written.append(Change(self._t, name, op, before, after))
        if name not in REMEMBERED:
            return
        if before is not None:
            del self._rows[name][key_of(name, before)]
        if after is not None:
            key = key_of(name, after)
            self._rows[name][key] = after
            if op == "c" or key != key_of(name, before or after):
                self._keys[name].append(key)

    def _forget(self) -> None:
        """Closed orders beyond the working set stay as they are, so that a long simulation keeps its size."""
        closed = self._stage["closed"]
        for key in closed[: max(0, len(closed) - WORKING_SET)]:
            order = self._rows["orders"].pop(key)
            self._rows["shipments"].pop(self._shipment_of.pop(order["order_id"], ()), None)
        del closed[: max(0, len(closed) - WORKING_SET)]
        for name, rows in self._rows.items():
            if len(self._keys[name]) > 2 * len(rows) + 1000:
                self._keys[name] = list(rows)


def _state(log: ChangeLog) -> State:
    with duckdb.connect() as db:
        return State(
            {name: _last_id(db, log, name) for name in ENTITIES},
            {name: _latest_rows(db, log, name) for name in REMEMBERED},
        )


def _changes(log: ChangeLog, name: str) -> str | None:
    """The visible changes of a table as a subquery, if it has any."""
    until = log.watermark().position
    files = [str(p) for p in log.files(name, until=until)]
    return f"(SELECT * FROM read_parquet({files!r}) WHERE position <= {until})" if files else None


def _latest_rows(db: duckdb.DuckDBPyConnection, log: ChangeLog, name: str) -> dict[Key, Image]:
    """The working set of a table: its latest changed rows that live."""
    changes = _changes(log, name)
    if changes is None:
        return {}
    key = ", ".join(f"coalesce(after.{k}, before.{k})" for k in TABLES[name].key)
    rows = db.execute(
        f"""
        SELECT after FROM {changes}
        WHERE op <> 'd' AND position IN (SELECT max(position) FROM {changes} GROUP BY {key})
        ORDER BY position DESC LIMIT {WORKING_SET}
        """
    ).to_arrow_table()
    return {key_of(name, row): row for row in rows["after"].to_pylist()}


def _last_id(db: duckdb.DuckDBPyConnection, log: ChangeLog, name: str) -> int:
    """The greatest id that a row of this table ever had."""
    changes = _changes(log, name)
    if changes is None:
        return 0
    key = TABLES[name].key[0]
    found = db.execute(f"SELECT max(greatest(before.{key}, after.{key})) FROM {changes}").fetchone()
    return int(found[0]) if found else 0


def _rows_schema(name: str) -> pa.Schema:
    image = TABLES[name].image
    return pa.schema([("t", pa.int64()), ("op", pa.string()), ("before", image), ("after", image)])


def key_of(name: str, row: Image) -> Key:
    return tuple(row[k] for k in TABLES[name].key)


def _now() -> datetime:
    return datetime.now(UTC).replace(tzinfo=None)
