"""Readers without pause through runs, publications and compactions, while changes keep landing: `make soak`.

A company works in a log whose clock runs faster than the wall's, so that hours close and days end while this runs: its
transactions carry commit times of that clock, and each run is made as of it. Everything else is as in production: a
writer that lends the log, runs that publish and compact, readers in other processes that open the published file by
its path, ask, and now and then open it anew. `publish.KEEP` is shortened to two seconds, and files stop growing at a
few kilobytes: with an hour, and a megabyte, nothing of so small a company would be compacted.

One read is one transaction of a reader. It is torn if what it sees of several marts does not belong to one moment:
- orders and revenue over mart.orders, mart.orders_hourly and mart.orders_daily; shipments over mart.delivery_status and
  mart.delivery_hourly; as_of over all of them;
- orders, shipments and stops: each transaction of the company adds or removes one of each;
- mart.customer_activity, which is in shadow, against mart.orders as it was at that cut.
It goes backwards if its as_of or position lies before that of the reader's read before. Its freshness is the wall time
from when the newest landing that it saw was made to when its answer was there.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import random
import sys
import tempfile
import time
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))

import duckdb

from lockstep import growing, operate, publish, simulate
from lockstep.changelog import SETTLING, ChangeLog
from lockstep.compact import Compacted
from lockstep.contracts import load
from shop import Shop, batch_of

UNTIL = datetime(2026, 11, 18, 10, 20)
NEW = 10_000_000  # keys from here on are the soak's own
BEAT = 0.5  # seconds between two landings
TRANSACTIONS = 6  # of a landing
CONNECTED = 5.0  # seconds until a reader opens the file anew; one that stays reads an ever longer tail of the log
KEEP = timedelta(seconds=2)
GROWS_TO = 12_000  # bytes

FIGURES = """
    SELECT
      (SELECT position FROM changes.visible),
      (SELECT {'n': SUM(orders), 'cents': SUM(revenue_cents), 'as_of': MAX(as_of)} FROM mart.orders),
      (SELECT {'n': SUM(orders), 'cents': SUM(revenue_cents), 'as_of': MAX(as_of)} FROM mart.orders_hourly),
      (SELECT {'n': SUM(orders), 'cents': SUM(revenue_cents), 'as_of': MAX(as_of)} FROM mart.orders_daily),
      (SELECT {'n': SUM(shipments), 'late': SUM(late), 'as_of': MAX(as_of)} FROM mart.delivery_status),
      (SELECT {'n': SUM(shipments), 'late': SUM(late), 'as_of': MAX(as_of)} FROM mart.delivery_hourly),
      (SELECT {'n': SUM(stops_planned), 'as_of': MAX(as_of)} FROM mart.route_performance),
      (SELECT {'n': SUM(orders), 'cents': SUM(revenue_cents), 'as_of': MAX(as_of)} FROM mart.customer_activity)
"""
THEN = "SELECT {{'n': SUM(orders)}} FROM mart.orders_as_of(TIMESTAMP '{}')"


@dataclass
class Reads:
    """What a reader met."""

    reads: int = 0
    torn: list[str] = field(default_factory=list)
    backwards: list[str] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)
    freshness: list[float] = field(default_factory=list)
    unplaced: int = 0
    publications: set[datetime] = field(default_factory=set)


def work(home: Path, minutes_per_second: float, stop: Any) -> None:
    """The company: lands a batch every `BEAT` seconds, with the log's clock at `minutes_per_second`."""
    growing.GROWS_TO = GROWS_TO
    shop, choose = Shop(UNTIL), random.Random(1)
    alive: list[int] = []
    log = ChangeLog(home)
    key, begun = NEW, time.monotonic()
    with log.writer(str(log.watermark().source), lends=True) as writer:
        while not stop.is_set():
            since, reached = shop.now, UNTIL + timedelta(minutes=(time.monotonic() - begun) * minutes_per_second)
            first = len(shop.changes)
            for n in range(TRANSACTIONS):
                shop.now = since + (reached - since) * (n + 1) / TRANSACTIONS
                kind = choose.random()
                with shop.transaction():
                    if kind < 0.6 or len(alive) < 10:
                        key += 1
                        alive.append(key)
                        shop.order(key, customer_id=key % 50, amount_cents=choose.randrange(100, 300_000))
                        shop.insert("shipments", key, order_id=key, window_to_at=shop.now)
                        shop.insert("route_stops", (1, key), shipment_id=key)
                        shop.ping(key % 5, ping_id=key)
                    elif kind < 0.9:
                        old = choose.choice(alive)
                        shop.change(old, amount_cents=choose.randrange(100, 300_000), status="paid")
                        shop.update("shipments", old, status="delivered", delivered_at=shop.now)
                    else:
                        old = alive.pop(choose.randrange(len(alive)))
                        shop.delete(old)
                        shop.delete(old, "shipments")
                        shop.delete((1, old), "route_stops")
            writer.land(batch_of(shop.changes[first:]), reached=reached)
            if writer.is_asked_for() and not writer.lend(lambda: not stop.is_set()):
                return
            stop.wait(BEAT)


def read(home: Path, stop: Any, results: Any) -> None:
    """A reader: asks without pause until `stop` is set, and puts its `Reads` into `results`."""
    os.nice(10)  # eight that never pause leave no processor to the run; it goes first, as one would have it on a server
    seen = Reads()
    last: tuple[Any, ...] = ()
    while not stop.is_set():
        try:
            with duckdb.connect(str(home / "analytics.duckdb"), read_only=True, config={"threads": 1}) as connection:
                connection.execute("SET enable_progress_bar = FALSE")
                [(published_at,)] = connection.execute("SELECT published_at FROM ops.publication").fetchall()
                seen.publications.add(published_at)
                end = time.monotonic() + CONNECTED
                while time.monotonic() < end and not stop.is_set():
                    last = _read_once(home, connection, seen, last)
        except duckdb.Error as e:
            seen.errors.append(str(e))
    results.put(seen)


def _read_once(home: Path, connection: Any, seen: Reads, last: tuple[Any, ...]) -> tuple[Any, ...]:
    connection.execute("BEGIN")
    [(position, orders, hourly, daily, delivery, by_hour, stops, activity)] = connection.execute(FIGURES).fetchall()
    [(then,)] = connection.execute(THEN.format(activity["as_of"])).fetchall()
    connection.execute("COMMIT")
    answered = datetime.now(UTC).replace(tzinfo=None)
    seen.reads += 1
    differences = (orders["n"] - delivery["n"], orders["n"] - stops["n"])
    is_whole = (
        orders == hourly == daily
        and delivery == by_hour
        and orders["as_of"] == delivery["as_of"] == stops["as_of"]
        and activity["n"] == then["n"]
        and (not last or differences == last[2])
    )
    if not is_whole:
        seen.torn.append(repr((position, orders, hourly, daily, delivery, by_hour, stops, activity, then, last)))
    if last and (position < last[0] or orders["as_of"] < last[1]):
        seen.backwards.append(f"{(position, orders['as_of'])} after {last[:2]}")
    landed = _landed_at(home, position)
    if landed is None:
        seen.unplaced += 1
    else:
        seen.freshness.append((answered - landed).total_seconds())
    return position, orders["as_of"], differences


def _landed_at(home: Path, position: int) -> datetime | None:
    """When the landing that ends at `position` was made."""
    watermark = json.loads((home / "changelog" / "watermark.json").read_text(encoding="utf-8"))
    for landing in [watermark, *watermark["recent"]]:
        if landing["position"] == position:
            return datetime.fromisoformat(landing["landed_at"]).replace(tzinfo=None)
    return None


def soak(home: Path, readers: int, runs: int, minutes_per_second: float) -> dict[str, Any]:
    """Soak `home`, which must be new, for `runs` runs and until a compaction has merged hours; returns the figures."""
    os.environ["LOCKSTEP_HOME"] = str(home)
    log = ChangeLog(home)
    simulate.run(log, simulate.choose_history(log, 3, 2, 200, UNTIL), lambda _: None)
    first = operate.run(home, UNTIL)
    assert first.agrees, first.failures
    publish.KEEP = KEEP
    context = multiprocessing.get_context("spawn")
    stop_reading, stop_working, results = context.Event(), context.Event(), context.Queue()
    company = context.Process(target=work, args=(home, minutes_per_second, stop_working))
    processes = [context.Process(target=read, args=(home, stop_reading, results)) for _ in range(readers)]
    begun, position = time.monotonic(), log.watermark().position
    done: list[operate.Run] = []
    company.start()
    # Readers begin once the company is seen at work: what landed before the first run is as old as a plan takes.
    while log.watermark().position == position and company.is_alive():
        time.sleep(BEAT)
    time.sleep(SETTLING.total_seconds())
    for process in processes:
        process.start()
    try:
        while company.is_alive() and (len(done) < runs or (not _merged(done) and len(done) < 4 * runs)):
            at = log.watermark().logged_at
            done.append(operate.run(home, at))
            print(
                f"run {len(done)} of at least {runs}: {done[-1].seconds:.1f} s, as of {at}", file=sys.stderr, flush=True
            )
    finally:
        seconds = time.monotonic() - begun
        stop_reading.set()
        seen = [results.get(timeout=600) for _ in processes]
        stop_working.set()
        for process in [company, *processes]:
            process.join()
    freshness = sorted(f for reads in seen for f in reads.freshness) or [float("inf")]
    merged = _merged(done)
    watermark = log.watermark()
    assert watermark.logged_at is not None
    return {
        "readers": readers,
        "reads": sum(reads.reads for reads in seen),
        "errors": [e for reads in seen for e in reads.errors],
        "torn": [t for reads in seen for t in reads.torn],
        "backwards": [b for reads in seen for b in reads.backwards],
        "freshness_seconds": {
            "p50": round(freshness[len(freshness) // 2], 2),
            "p99": round(freshness[len(freshness) * 99 // 100], 2),
            "max": round(freshness[-1], 2),
            "objective": min(load()[domain].freshness_seconds for domain in ("orders", "delivery_status")),
        },
        "unplaced": sum(reads.unplaced for reads in seen),
        "runs": len(done),
        "failures": [failure for run in done for failure in run.failures],
        "publications": sum(run.published is not None for run in done),
        "publications_read": len(set().union(*(reads.publications for reads in seen))),
        "compactions": len(merged),
        "files_merged": sum(c.files for c in merged),
        "hours_merged": sum(c.hours for c in merged),
        "changes_landed": watermark.position - position,
        "hours_of_the_log": round((watermark.logged_at - UNTIL) / timedelta(hours=1), 1),
        "receipts": len(operate.receipts(home)),
        "seconds": round(seconds),
        "company": company.exitcode,
    }


def _merged(runs: list[operate.Run]) -> list[Compacted]:
    """The compactions that merged something."""
    return [run.compacted for run in runs if run.compacted and run.compacted.hours]


def faults(figures: dict[str, Any]) -> dict[str, Any]:
    """Errors, torn reads, steps back and failed runs: none may be there, however busy the machine is."""
    names = ("errors", "torn", "backwards", "failures", "unplaced", "company")
    return {name: figures[name] for name in names if figures[name]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--readers", type=int, default=8, help="reading processes")
    parser.add_argument("--runs", type=int, default=50, help="runs, each with its publication and compaction")
    parser.add_argument("--minutes-per-second", type=float, default=6, help="how fast the log's clock runs")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="lockstep-soak-") as directory:
        figures = soak(Path(directory), arguments.readers, arguments.runs, arguments.minutes_per_second)
    print(json.dumps(figures, indent=2, default=str))
    freshness = figures["freshness_seconds"]
    sys.exit(bool(faults(figures)) or freshness["max"] > freshness["objective"])


if __name__ == "__main__":
    main()
