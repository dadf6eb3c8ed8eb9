"""`make demo`: a simulated company, its hourly, daily and live figures, and the proof that they agree.

Everything lies in `data/demo`, which each demo makes anew; a home of the user's own is never touched.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

from duckdb import DuckDBPyConnection
from rich.live import Live
from rich.table import Table

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
    "rebuild": f"SELECT {_SUMS}, (SELECT cut FROM rebuild.cut) AS as_of FROM rebuild.orders",
    "hourly": f"SELECT {_SUMS}, (SELECT MAX(log_hour) + INTERVAL '1' HOUR FROM hourly.log) AS as_of FROM hourly.orders",
    "live": f"SELECT {_SUMS}, MAX(as_of) AS as_of FROM mart.orders_hourly",
}
AT_CUT = {
    "rebuild": f"SELECT {_SUMS} FROM rebuild.orders, rebuild.cut WHERE cut = $cut",
    "hourly": f"SELECT {_SUMS} FROM hourly.orders WHERE log_hour < $cut",
    "live": f"""SELECT {_SUMS} FROM (
        SELECT orders, revenue_cents FROM verified.orders WHERE cut = $cut - INTERVAL '1' DAY
        UNION ALL
        SELECT orders, revenue_cents FROM hourly.orders
        WHERE log_hour >= $cut - INTERVAL '1' DAY AND log_hour < $cut)""",
}
# A witness that knows none of the paths: it reads nothing but the log.
RECOUNT = """SELECT COUNT(after) AS orders, SUM(after.amount_cents) AS revenue_cents FROM (
    SELECT after, ROW_NUMBER() OVER (
        PARTITION BY COALESCE(after.order_id, before.order_id) ORDER BY position DESC) AS recency
    FROM changes.orders WHERE logged_at < $until) WHERE recency = 1"""


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

    say("The hours that have closed meanwhile, and the receipts of all reconciliations")
    run(home, None)
    show.receipts(operate.receipts(home))

    say("The proof: the three paths at the last cut, and live now, beside a recount of the log itself")
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


def lockstep(*arguments: str) -> None:
    if subprocess.run(command(*arguments)).returncode:
        raise LockstepError(f"`lockstep {arguments[0]}` failed; see above.")


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


def _prove(home: Path) -> bool:
    """The three paths at the last cut, and live now, each beside the recount; whether all are equal."""
    with warehouse.reader(home) as connection:
        [cut] = connection.execute("SELECT cut FROM rebuild.cut").fetchone() or [None]
        at_cut = {name: figure(connection, query, cut=cut) for name, query in AT_CUT.items()}
        live = figure(connection, NOW["live"])
        now = live["as_of"]
        recount_at_cut = figure(connection, RECOUNT, until=cut)
        recount_now = figure(connection, RECOUNT, until=now + timedelta(microseconds=1))
    rows = [(name, cut, row, recount_at_cut) for name, row in at_cut.items()]
    return show_proof("the recount of the log", [*rows, ("live", now, live, recount_now)])


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
