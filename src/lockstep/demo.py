"""`make demo`: a simulated company, its hourly, daily and live figures in five domains, and the proof that they agree.

Everything lies in `data/demo`, which each demo makes anew; a home of the user's own is never touched.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

import duckdb
from duckdb import DuckDBPyConnection
from rich.live import Live
from rich.table import Table
from sqlglot import exp, parse_one

from lockstep import operate, show, warehouse
from lockstep.changelog import ChangeLog
from lockstep.errors import LockstepError
from lockstep.show import console
from lockstep.warehouse import Row

DAYS = 3
LIVE_SECONDS = 30
CHANGES_PER_SECOND = 200

_SUMS = "SUM(orders) AS orders, SUM(revenue_cents) AS revenue_cents"

# What each path says now, and at a cut.
NOW = {
    "rebuild": f"SELECT {_SUMS}, (SELECT cut FROM rebuild.cut WHERE domain = 'orders') AS as_of FROM rebuild.orders",
    "hourly": f"SELECT {_SUMS}, (SELECT MAX(log_hour) + INTERVAL '1' HOUR FROM hourly.log) AS as_of FROM hourly.orders",
    "live": f"SELECT {_SUMS}, MAX(as_of) AS as_of FROM mart.orders_hourly",
}
# A witness that knows none of the paths: it reads nothing but the log.
RECOUNT = """SELECT COUNT(after) AS orders, SUM(after.amount_cents) AS revenue_cents FROM (
    SELECT after, ROW_NUMBER() OVER (
        PARTITION BY COALESCE(after.order_id, before.order_id) ORDER BY position DESC) AS recency
    FROM changes.orders WHERE logged_at < $until) WHERE recency = 1"""

FAULTY = "delivery_status"


@dataclass(frozen=True)
class Witness:
    """What the log itself says of a domain, counted from the last image of every key, beside what the models say."""

    table: str
    keys: tuple[str, ...]
    figures: tuple[tuple[str, str, str], ...]  # what it is, SQL over the domain's cells, SQL over the last images


WITNESSES = {
    "vehicle_positions": Witness(
        "gps_pings", ("ping_id",), (("drivers", "COUNT(DISTINCT driver_id)", "COUNT(DISTINCT after.driver_id)"),)
    ),
    "delivery_status": Witness(
        "shipments",
        ("shipment_id",),
        (
            ("shipments", "SUM(shipments)", "COUNT(after)"),
            ("late", "SUM(late)", "COUNT(CASE WHEN after.delivered_at > after.window_to_at THEN 1 END)"),
        ),
    ),
    "orders": Witness(
        "orders",
        ("order_id",),
        (("orders", "SUM(orders)", "COUNT(after)"), ("cents", "SUM(revenue_cents)", "SUM(after.amount_cents)")),
    ),
    "customer_activity": Witness(
        "orders",
        ("order_id",),
        (
            ("orders", "SUM(orders)", "COUNT(after)"),
            ("over 10 000.00", "SUM(alert_orders)", "COUNT(CASE WHEN after.amount_cents > 1000000 THEN 1 END)"),
        ),
    ),
    "route_performance": Witness(
        "route_stops",
        ("route_id", "stop_number"),
        (("stops", "SUM(stops_planned)", "COUNT(after)"), ("done", "SUM(stops_done)", "COUNT(after.completed_at)")),
    ),
}


def main() -> None:
    started = time.monotonic()
    home = new_home("data/demo")

    say(f"A company with {DAYS} days of history: every change of its eight tables, as its database would tell them")
    lockstep("simulate", "--days", str(DAYS))

    yesterday = datetime.now(UTC).replace(tzinfo=None, hour=0, minute=30) - timedelta(days=1)
    say(f"The models as of {yesterday:%Y-%m-%d %H:%M}: hourly increments, the nightly rebuild, and its first receipt")
    run(home, yesterday)

    say("The same, now: the hours since then, tonight's rebuild, and the second receipt")
    run(home, None)

    say(f"{LIVE_SECONDS} seconds of live changes, {CHANGES_PER_SECOND} a second")
    _watch_live(home)

    say("The hours that have closed meanwhile, the receipts of all reconciliations, and what is served")
    run(home, None)
    show.receipts(operate.receipts(home))
    _show_serving(home)

    _diverge_and_return(home)

    say("The proof: three paths at the last cut, and live now, in every domain, beside a recount of the log itself")
    agree = _prove(home)
    end("data/demo", started, agree)


def new_home(name: str) -> Path:
    """An empty data home in place of the last demo's, for this process and those it starts."""
    home = Path(name).resolve()
    shutil.rmtree(home, ignore_errors=True)
    os.environ["LOCKSTEP_HOME"] = str(home)
    return home


def end(home: str, started: float, agree: bool) -> None:
    console.print(f"\nDone in {time.monotonic() - started:.0f} s. Look around with LOCKSTEP_HOME={home}, for example")
    console.print(f"  LOCKSTEP_HOME={home} .venv/bin/lockstep status")
    if not agree:
        raise LockstepError("The figures of the demo do not agree.")


def say(text: str) -> None:
    console.print(f"\n[bold]{text}[/bold]")


def command(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "lockstep.cli", *arguments]


def lockstep(*arguments: str, fails: bool = False) -> None:
    """Run a command; `fails` if it is to find something and say so by its exit code."""
    if (subprocess.run(command(*arguments)).returncode != 0) != fails:
        raise LockstepError(f"`lockstep {arguments[0]}` did not end as expected; see above.")


def run(home: Path, at: datetime | None) -> operate.Run:
    result = operate.run(home, at)
    show.run(result)
    if not result.agrees:
        raise LockstepError("The demo's run did not agree; see above.")
    return result


def _watch_live(home: Path) -> None:
    """Land changes in another process and watch them."""
    arguments = ["simulate", "--live", "--rate", str(CHANGES_PER_SECOND), "--for", str(LIVE_SECONDS)]
    source = subprocess.Popen(command(*arguments), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    watch(home, lambda: source.poll() is None)
    if source.returncode:
        raise LockstepError(f"The live simulation failed: {source.stderr.read() if source.stderr else ''}")


def watch(home: Path, goes_on: Callable[[], bool], source: Callable[[], Row] | None = None) -> list[float]:
    """Show, once a second while `goes_on`, what an analyst would see, and beside it what the `source` itself says.

    Returns how old the live figures were when they were seen, in seconds: whatever was committed before was in them.
    """
    log = ChangeLog(home)
    shown, ages = None, []
    with Live(console=console, auto_refresh=False) as live:
        while goes_on():
            with warehouse.reader(home) as connection:
                figures = {name: figure(connection, query) for name, query in NOW.items()}
            ages.append((_now() - figures["live"]["as_of"]).total_seconds())
            if source:
                figures["source"] = source()
            shown = _live_table(figures, log.watermark().position)
            if console.is_terminal:
                live.update(shown, refresh=True)
            time.sleep(1)
        if shown is not None and not console.is_terminal:
            live.update(shown, refresh=True)
    console.print()
    return ages


def _now() -> datetime:
    return datetime.now(UTC).replace(tzinfo=None)


def _live_table(figures: dict[str, Row], position: int) -> Table:
    now = _now()
    table = Table("", box=None, pad_edge=False, caption=f"log position {position:,}", caption_justify="left")
    for name in ("orders", "revenue", "as of", "freshness"):
        table.add_column(name, justify="right")
    for name, row in figures.items():
        as_of, fresh = "-", "-"  # of what has not begun
        if row["as_of"] is not None:
            age = (now - row["as_of"]).total_seconds()
            as_of, fresh = f"{row['as_of']:%m-%d %H:%M:%S}", f"{age:.1f} s" if age < 120 else f"{age / 3600:.1f} h"
        table.add_row(name, *amounts(row), as_of, fresh)
    return table


def _diverge_and_return(home: Path) -> None:
    """Damage a folded hour, and see the domain fall back to the rebuild, be explained, be mended, and return."""
    with duckdb.connect(str(home / "warehouse.duckdb")) as connection:
        view = "SELECT sql FROM duckdb_views() WHERE schema_name = 'hourly' AND view_name = ?"
        [definition] = connection.execute(view, [FAULTY]).fetchone() or [""]
        [table] = [t for t in parse_one(definition, dialect="duckdb").find_all(exp.Table) if "__" in t.db]
        physical = f'"{table.db}"."{table.name}"'
        [cut] = connection.execute("SELECT cut FROM rebuild.cut WHERE domain = ?", [FAULTY]).fetchone() or [None]
        [until] = connection.execute("SELECT MAX(log_hour) + INTERVAL 1 HOUR FROM hourly.log").fetchone() or [None]
        # Two cuts have to pass. In the first hour after midnight there is none after it, so the one before is taken.
        is_midnight = until <= cut
        at = f"{cut - timedelta(hours=1) if is_midnight else cut:%Y-%m-%d %H:%M}"
        first = f"(SELECT MIN(log_hour) FROM {physical})"  # the snapshot, in which everything lies
        busiest = f"SELECT log_hour FROM {physical} WHERE log_hour < ? AND log_hour > {first}"
        busiest += " GROUP BY 1 ORDER BY COUNT(*) DESC, 1 LIMIT 1"
        [hour] = connection.execute(busiest, [at]).fetchone() or [None]
        say(
            f"A fault on purpose: {FAULTY} loses its increments of {hour:%Y-%m-%d %H:%M}. A receipt at the cut finds it"
        )
        connection.execute(f"DELETE FROM {physical} WHERE log_hour = ?", [hour])
    lockstep("reconcile", FAULTY, "--at", at, "--limit", "3", fails=True)
    _show_serving(home)

    say("Why?")
    lockstep("explain", FAULTY, "--limit", "2", fails=True)

    restate = ["plan", "--restate-model", f"hourly.{FAULTY}", "--start", f"{hour:%Y-%m-%d %H:%M:%S}"]
    restate += [
        "--end",
        f"{hour + timedelta(minutes=59):%Y-%m-%d %H:%M:%S}",
        "--auto-apply",
        "--no-prompts",
        "--skip-tests",
    ]
    say(f"Mended by restating that hour: sqlmesh {' '.join(restate)}")
    sqlmesh = subprocess.run([Path(sys.executable).with_name("sqlmesh"), *restate], capture_output=True, text=True)
    if sqlmesh.returncode:
        raise LockstepError(f"The restatement failed: {sqlmesh.stdout[-2000:]}{sqlmesh.stderr}")
    _show_serving(home)

    say("One cut has passed since; the contract asks for two until live is trusted again")
    lockstep("reconcile", FAULTY, *(("--at", at) if is_midnight else ()))
    if _show_serving(home)[FAULTY] != "live":
        raise LockstepError(f"{FAULTY} did not return to live; see above.")


def _show_serving(home: Path) -> dict[str, str]:
    """What is served of each domain, and why."""
    with warehouse.reader(home) as connection:
        rows = warehouse.rows(connection, "SELECT * FROM ops.serving ORDER BY domain")
    table = Table("domain", "mode", "served from", "as of", "reason", box=None, pad_edge=False)
    for r in rows:
        color = "green" if r["served_from"] == "live" else "yellow"
        table.add_row(
            r["domain"],
            r["mode"],
            f"[{color}]{r['served_from']}[/{color}]",
            f"{r['as_of']:%m-%d %H:%M:%S}",
            r["reason"],
        )
    console.print(table)
    return {r["domain"]: r["served_from"] for r in rows}


def _prove(home: Path) -> bool:
    """The paths at the last cut, and live now, each beside the recount; whether all are equal."""
    table = Table("domain", "", box=None, pad_edge=False)
    for name in ("rebuild", "hourly", "recount at the cut", "live", "recount now", ""):
        table.add_column(name, justify="right")
    agree = True
    with warehouse.reader(home) as connection:
        [cut] = connection.execute("SELECT MIN(cut) FROM rebuild.cut").fetchone() or [None]
        [now] = connection.execute("SELECT MIN(readable_until) FROM changes.watermark").fetchone() or [None]
        for domain, witness in WITNESSES.items():
            key = ", ".join(f"COALESCE(after.{k}, before.{k})" for k in witness.keys)
            last = f"""(SELECT after FROM changes.{witness.table} WHERE logged_at <= $until
                QUALIFY ROW_NUMBER() OVER (PARTITION BY {key} ORDER BY position DESC) = 1)"""
            for name, ours, recount in witness.figures:
                queries: tuple[tuple[str, Row], ...] = (
                    (f"SELECT {ours} FROM rebuild.{domain}", {}),
                    (f"SELECT {ours} FROM reconcile.{domain}_added_up", {}),  # the hours before the cut
                    (f"SELECT {recount} FROM {last}", {"until": cut - timedelta(microseconds=1)}),
                    (f"SELECT {ours} FROM live.{domain}", {}),
                    (f"SELECT {recount} FROM {last}", {"until": now}),
                )
                found = [(connection.execute(q, p).fetchone() or [None])[0] or 0 for q, p in queries]
                same = found[0] == found[1] == found[2] and found[3] == found[4]
                agree = agree and same
                verdict = "[green]equal[/green]" if same else "[red]NOT EQUAL[/red]"
                table.add_row(domain, name, *(f"{n:,}" for n in found), verdict)
    console.print(table)
    console.print(f"The cut is {cut:%Y-%m-%d %H:%M}, now is {now:%Y-%m-%d %H:%M:%S}.")
    return agree


def show_proof(witness: str, rows: list[tuple[str, datetime, Row, Row]]) -> bool:
    """Each figure by its name and time, beside what the witness says; whether all are equal."""
    table = Table("", box=None, pad_edge=False)
    for name in ("as of", "orders", "revenue", ""):
        table.add_column(name, justify="right")
    agree = True
    for name, as_of, row, expected in rows:
        same = amounts(row) == amounts(expected)
        agree = agree and same
        verdict = f"[green]= {witness}[/green]" if same else f"[red]but {witness} says {amounts(expected)}[/red]"
        table.add_row(name, f"{as_of:%Y-%m-%d %H:%M:%S}", *amounts(row), verdict)
    console.print(table)
    return agree


def figure(connection: DuckDBPyConnection, query: str, **parameters: datetime) -> Row:
    [row] = warehouse.rows(connection, query, parameters)
    return row


def amounts(figure: Row) -> tuple[str, str]:
    return f"{figure['orders'] or 0:,}", f"{(figure['revenue_cents'] or 0) / 100:,.2f}"


if __name__ == "__main__":
    try:
        main()
    except LockstepError as e:
        sys.exit(f"Error: {e}")
    except KeyboardInterrupt:
        sys.exit(130)
