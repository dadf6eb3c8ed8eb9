"""`make demo-live`: everything live. A company at work in a PostgreSQL, captured, computed and proven while it works.

The PostgreSQL is a private one in a temporary directory; it and every process are gone at the end, whatever happens.
The data home is `data/demo-live`, which each demo makes anew.

Figures are compared at the day's cut, and the log's clock is the source's. A demo lasts neither a day nor an hour, so
while the company works the increments are still to come, and live is the tail of the log alone. The day's end is not
waited for but brought about: the company closes and its server is stopped for good, so that nothing can come from it in
the rest of the day. Only then is the log told that the day is over, and the night's run is made at once.
"""

from __future__ import annotations

import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import psycopg2

from lockstep import warehouse
from lockstep.changelog import ChangeLog
from lockstep.demo import NOW, RECOUNT, command, end, figure, lockstep, new_home, run, say, show_proof, watch
from lockstep.errors import LockstepError
from lockstep.leash import Leash
from lockstep.private_postgres import INSTALL, PrivateServer, private_directory, server_programs
from lockstep.show import console
from lockstep.warehouse import Row

HOME = "data/demo-live"
DAYS = 3
CHANGES_PER_SECOND = 100
WATCH_SECONDS = 30
TRIGGER = "200ms"
SNAPSHOT_SECONDS = 60  # given to the capture for its snapshot

_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def main() -> None:
    programs = server_programs()
    if programs is None:
        raise LockstepError(f"This demo starts a PostgreSQL of its own, and its programs are not here: {INSTALL}")
    for number in _SIGNALS:
        signal.signal(number, _interrupt)
    undo = ExitStack()
    try:
        _demo(programs, undo)
    finally:
        for number in _SIGNALS:
            signal.signal(number, signal.SIG_IGN)  # whatever comes now, first what was started is ended
        undo.close()


def _demo(programs: Path, undo: ExitStack) -> None:
    started = time.monotonic()
    home = new_home(HOME)
    home.mkdir(parents=True)

    say("A private PostgreSQL, and in it a company with three days behind it")
    server = PrivateServer(programs, undo.enter_context(private_directory()))
    undo.callback(server.close)
    server.start()
    _ask(server.dsn("postgres"), "CREATE DATABASE shop")
    dsn = server.dsn("shop")
    lockstep("simulate", "--into", dsn, "--days", str(DAYS))

    say("`lockstep capture` follows it: a snapshot of its tables, then every change as it is committed")
    capture = undo.enter_context(_process(home / "capture.log", "capture", dsn, "--trigger", TRIGGER))
    _await_snapshot(home, capture)
    console.print(f"The snapshot is in the log, which is at position {ChangeLog(home).watermark().position:,}.")

    say(f"The company opens, {CHANGES_PER_SECOND} changes a second; meanwhile the models are planned and run")
    rate = str(CHANGES_PER_SECOND)
    company = undo.enter_context(_process(home / "company.log", "simulate", "--into", dsn, "--live", "--rate", rate))
    if not any(receipt["cells_compared"] for receipt in run(home, None).receipts):
        console.print(
            "These receipts are empty: the log began today, and the last cut, at midnight, lies before all of it.\n"
            "What is live now is the log itself, added up; its hours are folded into increments as they end."
        )

    say(f"{WATCH_SECONDS} seconds of it, once a second: PostgreSQL itself, and the live figures")
    until = time.monotonic() + WATCH_SECONDS
    ages = watch(home, lambda: time.monotonic() < until, lambda: _ask(dsn, _SOURCE))
    for process in (capture, company):
        process.check()
    console.print(
        f"From commit to live figure: {statistics.median(ages):.1f} s in the median of {len(ages)} looks, "
        f"{max(ages):.1f} s at most."
    )

    say("The company goes on: is the log, at one moment, what PostgreSQL holds? Every row of every table")
    lockstep("verify-source", dsn)

    say("The company closes. Once more, now that all is quiet; then PostgreSQL is stopped for good")
    company.end()
    lockstep("verify-source", dsn)
    source = _ask(dsn, _SOURCE)
    capture.end()
    server.stop()

    midnight = _close_the_day(home)
    say("Nothing can be committed today any more, so for the log the day is over. The run of the coming night, at once")
    run(home, midnight + timedelta(minutes=30))
    console.print("Now the cut lies after all that happened: the increments, added up, are the rebuild, cell by cell.")

    say("The proof: what PostgreSQL said before it was stopped, beside every path at the cut")
    agree = _prove(home, source, midnight)
    end(HOME, started, agree)


# What the database itself says, in its own arithmetic.
_SOURCE = (
    """SELECT COUNT(*) AS orders, SUM(amount_cents)::bigint AS revenue_cents, clock_timestamp() AS as_of FROM orders"""
)

_SUMS = "SUM(orders) AS orders, SUM(revenue_cents) AS revenue_cents"
_PATHS = {
    "recount of the log": RECOUNT,
    "hourly, summed": f"SELECT {_SUMS} FROM hourly.orders WHERE log_hour < $until",
    "rebuild": f"SELECT {_SUMS} FROM rebuild.orders, rebuild.cut WHERE domain = 'orders' AND cut = $until",
    "verified": f"SELECT {_SUMS} FROM verified.orders WHERE cut = $until",
}


def _prove(home: Path, source: Row, cut: datetime) -> bool:
    """Every path beside what the source said; whether all are equal."""
    with warehouse.reader(home) as connection:
        paths = {name: figure(connection, query, until=cut) for name, query in _PATHS.items()}
        live = figure(connection, NOW["live"])
    rows = [(name, cut, path, source) for name, path in paths.items()]
    return show_proof("PostgreSQL", [*rows, ("live, the mart", live["as_of"], live, source)])


def _close_the_day(home: Path) -> datetime:
    """Tell the log that its day is over, which is true once its source is gone for good; returns the day's end."""
    log = ChangeLog(home)
    watermark = log.watermark()
    assert watermark.source
    assert watermark.logged_at
    midnight = watermark.logged_at.replace(hour=0, minute=0, second=0, microsecond=0) + timedelta(days=1)
    with log.writer(watermark.source, "closing the demo's day", clock=lambda: midnight) as writer:
        writer.land({}, reached=midnight, resume=watermark.resume)
    return midnight


def _ask(dsn: str, statement: str) -> Row:
    """The one row a statement has, if it has any; times in UTC."""
    with closing(psycopg2.connect(dsn)) as connection:
        connection.autocommit = True
        with connection.cursor() as cursor:
            cursor.execute(statement)
            if cursor.description is None:
                return {}
            values: list[Any] = [
                v.astimezone(UTC).replace(tzinfo=None) if isinstance(v, datetime) else v
                for v in cursor.fetchone() or ()
            ]
            return dict(zip([column.name for column in cursor.description], values, strict=True))


class _Process:
    """A `lockstep` at work beside the demo, which ends when it is told to."""

    def __init__(self, log: Path, arguments: tuple[str, ...]) -> None:
        self._name, self._log = arguments[0], log
        with log.open("w") as output:
            self._process = subprocess.Popen(command(*arguments), stdout=output, stderr=output)
        self._leash = Leash('kill "$1"', str(self._process.pid))

    def check(self) -> None:
        """Raise LockstepError with its last words if it has ended by itself."""
        if self._process.poll() is not None:
            raise LockstepError(f"`lockstep {self._name}` ended: {self._log.read_text()[-1000:]}")

    def end(self) -> None:
        """Have it finish what it is at. LockstepError if it does not end well."""
        self.check()
        self._process.terminate()
        if self._process.wait(timeout=30):
            raise LockstepError(f"`lockstep {self._name}` did not end well: {self._log.read_text()[-1000:]}")

    def kill(self) -> None:
        self._process.terminate()
        try:
            self._process.wait(timeout=10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._leash.drop()


@contextmanager
def _process(log: Path, *arguments: str) -> Iterator[_Process]:
    process = _Process(log, arguments)
    try:
        yield process
    finally:
        process.kill()


def _await_snapshot(home: Path, capture: _Process) -> None:
    given_up = time.monotonic() + SNAPSHOT_SECONDS
    log = ChangeLog(home)
    while not log.exists() or log.watermark().resume.get("snapshot") != "complete":
        capture.check()
        if time.monotonic() > given_up:
            raise LockstepError(f"No snapshot within {SNAPSHOT_SECONDS} s; {home / 'capture.log'} may say why.")
        time.sleep(0.1)


def _interrupt(*_: object) -> None:
    raise KeyboardInterrupt


if __name__ == "__main__":
    try:
        main()
    except LockstepError as e:
        sys.exit(f"Error: {e}")
    except KeyboardInterrupt:
        sys.exit(130)
