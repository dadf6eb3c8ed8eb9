"""`lockstep simulate`: a company whose change log is as hard as a real one, and the same at every run.

A history is a pure function of its parameters. It is landed in batches, each one a slice of the log's time; the
watermark's `resume` state names the history and counts its batches, so that a killed simulation continues where it was
and ends bit-identical to one that was never killed. `simulate_world` says what happens; `simulate_live` goes on from
the end of a history at wall-clock time.
"""

from __future__ import annotations

import itertools
import math
import re
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import Any

import duckdb
import numpy as np
import pyarrow as pa

from lockstep.changelog import ChangeLog, Watermark
from lockstep.errors import LockstepError
from lockstep.project import project
from lockstep.schema import SCHEMA_FILE, TABLES, TIMESTAMP, batch_schema
from lockstep.simulate_world import ENTITIES, LANES, MACROS, MAX_STOPS

SOURCE = "simulator"
Rows = Mapping[str, pa.Table]  # of each table: t (microseconds; a millisecond is one transaction), op, before, after

_EPOCH = datetime(1970, 1, 1)
_LOOKBACK_DAYS = 2  # orders as old as this are open when the log begins
_CHANGES_PER_ORDER = 14  # over all eight tables; only sizes the batches
_BATCH_CHANGES = 400_000
_FIRST_TX_ID = 100_000
_DAY = timedelta(days=1)


@dataclass(frozen=True)
class History:
    """The parameters that determine a simulated log: everything else follows from them. `until` is naive UTC."""

    until: datetime
    seed: int = 7
    days: int = 3
    orders_per_day: int = 5000

    @property
    def start(self) -> datetime:
        return self.until - self.days * _DAY

    def slices(self) -> list[tuple[datetime, datetime]]:
        """The history's time in slices of whole hours, each of at most about 400,000 changes if an hour allows it."""
        wanted = math.ceil(self.orders_per_day * _CHANGES_PER_ORDER / _BATCH_CHANGES)
        width = _DAY / next((n for n in (1, 2, 3, 4, 6, 8, 12) if n >= wanted), 24)
        first = _midnight(self.start)
        edges = [first + i * width for i in range(math.ceil((self.until - first) / width))]
        return list(itertools.pairwise([self.start, *(e for e in edges if e > self.start), self.until]))

    def command(self) -> str:
        """The command that simulates exactly this."""
        return (
            f"lockstep simulate --seed {self.seed} --days {self.days} --orders-per-day {self.orders_per_day} "
            f"--until {self.until.isoformat()}"
        )


@dataclass(frozen=True)
class Progress:
    """What a simulated log remembers of its source: kept as the watermark's `resume` state.

    `batches` of the history have landed, the snapshot being the first; `tx_id` and `lsn` are the last ones given.
    """

    history: History
    batches: int = 0
    tx_id: int = _FIRST_TX_ID
    lsn: int = 2**32

    @property
    def transactions(self) -> int:
        return self.tx_id - _FIRST_TX_ID

    @property
    def share(self) -> float:
        """The share of the history's batches that have landed."""
        return self.batches / (1 + len(self.history.slices()))

    @property
    def is_finished(self) -> bool:
        return self.share == 1

    def to_resume(self) -> dict[str, Any]:
        return {**asdict(self), "history": {**asdict(self.history), "until": self.history.until.isoformat()}}

    @classmethod
    def from_resume(cls, resume: Mapping[str, Any]) -> Progress:
        history = {**resume["history"], "until": datetime.fromisoformat(resume["history"]["until"])}
        return cls(**{**resume, "history": History(**history)})


def progress(log: ChangeLog) -> Progress | None:
    """How far a simulation has come in `log`; None if the log is empty. LockstepError if it is another source's."""
    if not log.exists():
        return None
    watermark = log.watermark()
    if not (watermark.source or "").startswith(f"{SOURCE}:"):
        raise LockstepError(
            f"{log.root} is the change log of {watermark.source}; simulated changes would not belong to it. "
            "Choose another LOCKSTEP_HOME."
        )
    return Progress.from_resume(watermark.resume) if watermark.resume else None


def choose_history(
    log: ChangeLog, seed: int | None, days: int | None, orders_per_day: int | None, until: datetime | None
) -> History:
    """The history to land in `log`: what was asked for and defaults, or the one that was interrupted there.

    None means that the caller did not say. Raises LockstepError, before anything is written, if the log already holds
    a finished history or an interrupted one that differs from what was asked for.
    """
    asked = _asked(seed, days, orders_per_day, until)
    done = progress(log)
    if done is None:
        return new_history(seed, days, orders_per_day, until)
    if done.is_finished:
        raise LockstepError(
            f"{log.home} already holds simulated changes up to {log.watermark().logged_at}. Continue with "
            "`lockstep simulate --live`, or choose another LOCKSTEP_HOME; nothing was written."
        )
    if History(**{"until": done.history.until, **asked}) != done.history:
        raise LockstepError(
            f"{log.home} holds an interrupted simulation. Finish it with `{done.history.command()}`, or choose "
            "another LOCKSTEP_HOME; nothing was written."
        )
    return done.history


def new_history(seed: int | None, days: int | None, orders_per_day: int | None, until: datetime | None) -> History:
    """A history of what was asked for, and of defaults where that is None.

    Raises LockstepError before the year 2000, or if the project's source schema is not the simulated company's.
    """
    for name, entity in ENTITIES.items():
        if name not in TABLES or [c.name for c in TABLES[name].columns] != re.findall(r"(\w+) :=", entity.image):
            raise LockstepError(
                f"{project() / SCHEMA_FILE} does not declare {name} as the simulated company has it. The simulator "
                "knows only this project's own schema: give a project of yours its own changes."
            )
    now = datetime.now(UTC).replace(tzinfo=None, microsecond=0)
    history = History(**{"until": now, **_asked(seed, days, orders_per_day, until)})
    if history.start < datetime(2000, 1, 1):
        raise LockstepError(f"The history would begin at {history.start}; simulate days after the year 2000.")
    return history


def _asked(seed: int | None, days: int | None, orders_per_day: int | None, until: datetime | None) -> dict[str, Any]:
    given = {"seed": seed, "days": days, "orders_per_day": orders_per_day, "until": until}
    return {name: value for name, value in given.items() if value is not None}


def land_history(
    log: ChangeLog, history: History, on_batch: Callable[[Progress, Watermark], None] = lambda *_: None
) -> Progress:
    """Land `history`, or what is missing of it, durably. Calls `on_batch` after each batch.

    The log's files are a function of `history` alone, however often it was interrupted. Raises LockstepError if the
    log holds another one.
    """
    name = f"{SOURCE}:{history.seed}"
    with (
        log.writer(name, "simulating a history", clock=lambda: history.until) as writer,
        open_world(history) as world,
    ):
        if writer.watermark.resume:
            now = Progress.from_resume(writer.watermark.resume)
            if now.history != history:
                raise LockstepError(f"{log.home} holds another history: that of `{now.history.command()}`.")
        else:
            now = Progress(history)
            writer.land({}, resume=now.to_resume())  # so that what is interrupted before its first batch has a name
        if now.batches == 0:
            changes, now = stamp(world.snapshot(history.start), replace(now, batches=1))
            writer.land(changes, reached=history.start, resume=now.to_resume())
            on_batch(now, writer.watermark)
        for since, until in history.slices()[now.batches - 1 :]:
            changes, now = stamp(world.changes(since, until), replace(now, batches=now.batches + 1))
            # Slices end on the hour; the source has passed it, so that no commit after it is logged in the hour before.
            writer.land(changes, reached=until, resume=now.to_resume())
            on_batch(now, writer.watermark)
    return now


def stamp(rows: Rows, last: Progress) -> tuple[dict[str, pa.Table], Progress]:
    """Give changes their place at the source, continuing after `last`: the writer's batch, and the new last.

    The log orders by `t`, then by table, then as given; a transaction is a millisecond. Some transactions carry a
    commit time seconds too early, as where several machines set the clock: never too late, so that a time that the
    source has passed stays passed.
    """
    sizes = [part.num_rows for part in rows.values()]
    if not sum(sizes):
        return {}, last
    t = np.concatenate([part["t"].to_numpy() for part in rows.values()])
    order = np.argsort(t, kind="stable")
    ordinal = np.empty(len(t), np.int64)
    ordinal[order] = np.arange(len(t))
    milliseconds, transaction = np.unique(t // 1000, return_inverse=True)
    tx_id = last.tx_id + 1 + transaction
    committed_at = (milliseconds * 1000 - _clock_error(milliseconds))[transaction]
    lsn = last.lsn + np.cumsum(96 + ordinal[order] % 23 * 8)[ordinal]
    bounds = np.cumsum(sizes)[:-1]
    columns = zip(*(np.split(c, bounds) for c in (ordinal, committed_at, tx_id, lsn)), strict=True)
    stamped = {
        name: pa.table(
            [
                pa.array(o),
                pa.array(c).cast(TIMESTAMP),
                part["op"],
                part["before"],
                part["after"],
                pa.array(x),
                pa.array(n),
            ],
            names=batch_schema(TABLES[name]).names,
        )
        for (name, part), (o, c, x, n) in zip(rows.items(), columns, strict=True)
    }
    return stamped, replace(last, tx_id=int(tx_id.max()), lsn=int(lsn.max()))


def _clock_error(milliseconds: np.ndarray) -> np.ndarray:
    """Microseconds by which the commit time of a transaction is too early: 0 for most, up to 4 s for one in 25."""
    mixed = milliseconds.astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15) >> np.uint64(33)
    is_wrong = mixed % np.uint64(25) == 0
    error: np.ndarray = np.where(is_wrong, mixed // np.uint64(25) % np.uint64(4000), 0).astype(np.int64) * 1000
    return error


class World:
    """The lives of a history's rows, asked slice by slice in the order of time.

    Holds only lives that are not over. Memory is bounded by DuckDB's limit; it spills to a directory of its own.
    """

    def __init__(self, history: History, db: duckdb.DuckDBPyConnection) -> None:
        self._history = history
        self._db = db
        self._first_midnight = _midnight(history.start) - _LOOKBACK_DAYS * _DAY
        self._next_day = -1
        for name, value in {**self._parameters(), "today": -1}.items():
            db.execute(f"CREATE MACRO {name}() AS {value}")
        db.execute(MACROS)

    def snapshot(self, at: datetime) -> Rows:
        """The rows that live at `at`, as reads (`r`) in one transaction at that time. To be asked first."""
        self._advance(at, 0)
        return {name: self._query(_snapshot_sql(name), {"at": to_us(at)}) for name in ENTITIES}

    def changes(self, since: datetime, until: datetime) -> Rows:
        """The changes after the snapshot from `since` (inclusive) to `until` (exclusive)."""
        low = max(to_us(since), to_us(self._history.start) + 1000)
        self._advance(until, low)
        return {name: self._query(_changes_sql(name), {"since": low, "until": to_us(until)}) for name in ENTITIES}

    def _query(self, sql: str, parameters: Mapping[str, int]) -> pa.Table:
        return self._db.execute(sql, parameters).to_arrow_table()

    def _advance(self, until: datetime, over_before: int) -> None:
        """Add the lives that begin before `until`, day by day, and forget those that are over before `over_before`."""
        while self._first_midnight + self._next_day * _DAY < until:
            self._db.execute(f"CREATE OR REPLACE MACRO today() AS {self._next_day}")
            for name in ENTITIES:
                self._db.execute(f"CREATE OR REPLACE TEMP TABLE new_{name} AS {_lives_sql(name)}")
            for name in ENTITIES:
                old = f"SELECT * FROM {name} UNION ALL" if self._next_day >= 0 else ""
                self._db.execute(
                    f"CREATE OR REPLACE TABLE {name} AS "
                    f"SELECT * FROM ({old} SELECT * FROM new_{name}) WHERE steps[-1] >= {over_before}"
                )
            self._next_day += 1

    def _parameters(self) -> dict[str, int]:
        """The macros without arguments that the world's SQL reads: the history, and what follows from its size."""
        orders = self._history.orders_per_day
        stops = max(4, min(MAX_STOPS, orders // (8 * LANES)))
        routes = math.ceil(orders / (LANES * stops)) * LANES
        return {
            "seed": self._history.seed,
            "days": self._history.days,
            "first_day": (self._first_midnight - _EPOCH).days,
            "snapshot_at": to_us(self._history.start),
            "until_at": to_us(self._history.until),
            "lanes": LANES,
            "orders_a_day": orders,
            "stops_a_route": stops,
            "routes_a_day": routes,
            "drivers": max(LANES, routes // 2),
            "products": 400,
            "founding_customers": max(300, 2 * orders),
            "new_customers": math.ceil(orders / 50),
        }


@contextmanager
def open_world(history: History) -> Iterator[World]:
    with tempfile.TemporaryDirectory(prefix="lockstep-simulate-") as spill:
        db = duckdb.connect(config={"memory_limit": "3GB", "temp_directory": spill})
        try:
            yield World(history, db)
        except RuntimeError as e:
            if "interrupted" not in str(e):
                raise
            raise KeyboardInterrupt from None  # what Ctrl-C is, before DuckDB makes it its own
        finally:
            db.close()


def _lives_sql(name: str) -> str:
    """The day's new lives with `steps`, the sorted times at which their rows change."""
    entity = ENTITIES[name]
    return f"""
        SELECT *, list_sort(list_distinct(list_filter([{entity.steps}], lambda s:
          s >= inserted_at AND NOT coalesce(s > deleted_at AND s < coalesce(reinserted_at, s + 1), FALSE)))) AS steps
        FROM ({entity.lives})
    """


def _snapshot_sql(name: str) -> str:
    """The lives' state at the snapshot, which is the one of their last step before it."""
    return _images_sql(
        name,
        f"""
        SELECT *, CAST($at AS BIGINT) AS t, 'r' AS op, CAST(NULL AS BIGINT) AS before_step
        FROM (SELECT *, list_max(list_filter(steps, lambda s: s <= $at)) AS after_step FROM {name})
        WHERE after_step IS NOT NULL AND after_step IS DISTINCT FROM deleted_at
        """,
    )


def _changes_sql(name: str) -> str:
    """The steps of a slice of time, each with the step before it."""
    return _images_sql(
        name,
        f"""
        SELECT *,
          t AS after_step,
          CASE WHEN t = deleted_at THEN 'd' WHEN before_step IS NULL OR t = reinserted_at THEN 'c' ELSE 'u' END AS op
        FROM (SELECT * EXCLUDE (steps), unnest(steps) AS t, unnest([NULL] || steps[:-2]) AS before_step FROM {name})
        WHERE t >= $since AND t < $until
        """,
    )


def _images_sql(name: str, changes: str) -> str:
    """`changes` has a life's columns, `t`, `op` and two steps; the result has the images at these."""
    before, after = (
        f"struct_pack({ENTITIES[name].image.format(t=step)}, extra := NULL::VARCHAR)"
        for step in ("before_step", "after_step")
    )
    return f"""
        SELECT
          t,
          op,
          CASE WHEN op IN ('u', 'd') THEN {before} END AS before,
          CASE WHEN op <> 'd' THEN {after} END AS after
        FROM ({changes})
        ORDER BY t, {ENTITIES[name].identity}
    """


def _midnight(at: datetime) -> datetime:
    return at.replace(hour=0, minute=0, second=0, microsecond=0)


def to_us(at: datetime) -> int:
    """Microseconds since 1970 of a naive UTC time."""
    return (at - _EPOCH) // timedelta(microseconds=1)


def run(log: ChangeLog, history: History, say: Callable[[str], None]) -> dict[str, Any]:
    """Land `history` and tell `say` how far it is; the summary for people and programs."""
    begin = time.monotonic()
    first = log.watermark().position if log.exists() else 0

    def on_batch(now: Progress, watermark: Watermark) -> None:
        say(f"{now.share:.0%} simulated: {watermark.position:,} changes up to {watermark.logged_at:%Y-%m-%d %H:%M}")

    done = land_history(log, history, on_batch)
    say("")
    watermark = log.watermark()
    return {
        "seed": history.seed,
        "days": history.days,
        "orders_per_day": history.orders_per_day,
        "until": history.until,
        "changes": watermark.position - first,
        "transactions": done.transactions,
        "seconds": round(time.monotonic() - begin, 3),
        "position": watermark.position,
        "logged_at": watermark.logged_at,
    }
