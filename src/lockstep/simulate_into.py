"""`lockstep simulate --into`: the simulated company working in a PostgreSQL, as an application would.

A history's end is loaded by COPY, in one transaction: its event times are those of the past, its commit time is now.
From there the company of `simulate_live` goes on with transactions of its own, at wall-clock time. It reads back where
it is from the tables, so that it can be ended, killed and started again at any moment.

A comment on the table `orders` says that a database is a simulated company's: simulated rows never get among others.
"""

from __future__ import annotations

import io
import itertools
import random
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import psycopg2
import pyarrow as pa
import pyarrow.csv
from psycopg2 import errors, sql
from psycopg2.extensions import connection as Connection
from psycopg2.extensions import cursor as Cursor

from lockstep.errors import LockstepError
from lockstep.postgres import Source, is_out_of_reach, query
from lockstep.project import project
from lockstep.schema import SCHEMA_FILE, TABLES, TIMESTAMP, Table
from lockstep.service import stop_on_signal
from lockstep.simulate import History, new_history, open_world
from lockstep.simulate_live import (
    REMEMBERED,
    WORKING_SET,
    Change,
    Company,
    Image,
    Key,
    Pace,
    State,
    key_of,
)
from lockstep.simulate_world import ENTITIES

_MARK = "Simulated by "  # begins the comment on the table `orders`
_LOCK = int.from_bytes(b"simulate")  # one simulation per database, by an advisory lock
_BEAT_SECONDS = 0.1
_COPY_ROWS = 100_000
# How transactions go, and how many of a hundred: %b is the work, which some give up and do again, wholly or in part.
_ENDINGS = (
    (92, b"BEGIN; %b COMMIT"),
    (2, b"BEGIN; %b ROLLBACK; BEGIN; %b COMMIT"),
    (2, b"BEGIN; SAVEPOINT work; %b ROLLBACK TO SAVEPOINT work; %b COMMIT"),
    (4, b"BEGIN; SAVEPOINT work; %b RELEASE SAVEPOINT work; COMMIT"),
)


@dataclass(frozen=True)
class Worked:
    """What a live company has committed so far."""

    changes: int = 0
    transactions: int = 0
    seconds: float = 0.0


def run(
    dsn: str,
    history: tuple[int | None, int | None, int | None, datetime | None],
    rate: float | None,
    seconds: float | None,
    say: Callable[[str], None],
) -> dict[str, Any]:
    """Load the company into the database if it is not there yet, then let it work at `rate`; the summary.

    `history` is seed, days, orders per day and end as asked for, None where not. Without a `rate` only the load is
    done. Else it works until `seconds` have passed or a signal asks to end; to be called from the main thread.
    Raises LockstepError, with nothing half done, if the database is not fit for it, or if there is nothing to do.
    """
    source = Source(dsn, application="lockstep simulate")
    result: dict[str, Any] = {"loaded": 0}
    with _said_plainly(), closing(source.first_connection()) as connection:
        [[database]] = query(connection, "SELECT current_database()")
        result["database"] = database
        _be_alone(connection, database)
        if not _has_company(connection, source):
            begun = new_history(*history)
            if rate is not None:
                _not_ahead(begun.until)
            result |= _load(connection, source, begun, say)
        elif rate is None or any(asked is not None for asked in history):
            raise LockstepError(
                f"{database} has a simulated company already: {_mark(connection)}. Go on with it by `--live`, without "
                "--seed, --days, --orders-per-day and --until, or name another database; nothing was written."
            )
        if rate is not None:
            with stop_on_signal() as stop, closing(source.first_connection()) as gateway:
                done = _work(connection, gateway, rate, seconds, stop, say)
            result |= {
                "rate": rate,
                "changes": done.changes,
                "transactions": done.transactions,
                "live_seconds": round(done.seconds, 3),
            }
    return result


def _tables() -> dict[str, Table]:
    """The company's tables; a project may declare others besides."""
    return {name: TABLES[name] for name in ENTITIES}


def _be_alone(connection: Connection, database: str) -> None:
    """Take the lock that one simulation per database holds; one that was killed may need a moment to be gone."""
    try:
        query(connection, "SET lock_timeout = '2s'")
        query(connection, "SELECT pg_advisory_lock(%s)", (_LOCK,))
        query(connection, "SET lock_timeout = 0")
    except errors.LockNotAvailable:
        raise LockstepError(f"Another `lockstep simulate` is working in {database}. Stop that one first.") from None


def _has_company(connection: Connection, source: Source) -> bool:
    """Whether the company is there; false if the tables are empty, or all of them still to be made.

    Raises LockstepError if the tables are not the source schema's, or hold what no simulation wrote.
    """
    layouts = {name: source.layout(connection, table) for name, table in _tables().items()}
    found = [name for name, layout in layouts.items() if layout.columns]
    if not found:
        return False
    way_out = "Name another database, an empty one is best: `createdb shop`. Nothing was written."
    if lacking := [name for name in _tables() if name not in found]:
        raise LockstepError(f"The database has {', '.join(found)} but lacks {', '.join(lacking)}. {way_out}")
    for name, layout in layouts.items():
        known = [c.name for c in TABLES[name].columns]
        foreign = [column for column in _required(connection, name) if column not in known]
        if layout.problem or foreign:
            problem = layout.problem or f"column {foreign[0]} is NOT NULL, and the source schema does not have it"
            raise LockstepError(f"There is a table {name} that is not the source schema's: {problem}. {way_out}")
    empty = [name for name in _tables() if not query(connection, _statement("SELECT 1 FROM {} LIMIT 1", name))]
    if len(empty) == len(_tables()):
        return False
    if not _mark(connection):
        raise LockstepError(f"The tables hold rows that no simulation wrote; it would spoil them. {way_out}")
    if missing := {"customers", "products", "drivers", "orders"} & {*empty}:
        raise LockstepError(
            f"The simulated company has lost all its {', '.join(sorted(missing))}. Empty the other tables too and it "
            f"is loaded anew: TRUNCATE {', '.join(ENTITIES)};"
        )
    return True


def _required(connection: Connection, name: str) -> list[str]:
    rows = query(
        connection,
        "SELECT attname FROM pg_attribute WHERE attrelid = %s::regclass AND attnum > 0 AND NOT attisdropped "
        "AND attnotnull AND NOT atthasdef AND attidentity = ''",
        (f"public.{name}",),
    )
    return [column for (column,) in rows]


def _mark(connection: Connection) -> str | None:
    """The command that loaded the company, if one did."""
    [[comment]] = query(connection, "SELECT obj_description('public.orders'::regclass, 'pg_class')")
    return str(comment).removeprefix(_MARK) if comment and comment.startswith(_MARK) else None


def _load(connection: Connection, source: Source, history: History, say: Callable[[str], None]) -> dict[str, Any]:
    """Load the company as it is at the end of `history`, in one transaction; make the tables if there are none."""
    begin = time.monotonic()
    say(f"simulating {history.days} days")
    with open_world(history) as world:
        rows = world.snapshot(history.until)
    simulated = time.monotonic()
    query(connection, "BEGIN; SET LOCAL search_path = public")
    if not source.layout(connection, TABLES["orders"]).columns:
        query(connection, (project() / SCHEMA_FILE).read_text(encoding="utf-8"))
    loaded = 0
    with connection.cursor() as cursor:
        for name, part in rows.items():
            say(f"loading {name}: {part.num_rows:,} rows")
            loaded += _copy(cursor, TABLES[name], part["after"])
        cursor.execute("COMMENT ON TABLE public.orders IS %s", (f"{_MARK}{history.command()}",))
        cursor.execute("COMMIT")
    say("")
    return {
        "loaded": loaded,
        "until": history.until,
        "load_seconds": round(time.monotonic() - simulated, 3),
        "seconds": round(time.monotonic() - begin, 3),
    }


def _copy(cursor: Cursor, table: Table, images: pa.ChunkedArray) -> int:
    names = [c.name for c in table.columns]
    statement = _statement("COPY {} ({}) FROM STDIN (FORMAT csv)", table.name, *names)
    rows = pa.Table.from_struct_array(images).select(names)
    for batch in rows.to_batches(_COPY_ROWS):
        text = io.BytesIO()
        # Texts come quoted, NULL as nothing at all: what COPY reads.
        pyarrow.csv.write_csv(batch, text, pyarrow.csv.WriteOptions(include_header=False))
        text.seek(0)
        cursor.copy_expert(statement, text)
    return int(rows.num_rows)


def _work(
    connection: Connection,
    gateway: Connection,
    rate: float,
    seconds: float | None,
    stop: threading.Event,
    say: Callable[[str], None],
) -> Worked:
    """Commit about `rate` changes a second until `seconds` have passed or `stop` is set.

    Vans report through the `gateway`, an application of its own: what comes in within a beat is one transaction there,
    which is open while others commit. So transactions do not end in the order in which they began.
    """
    say("reading where the company is")
    state = _state(connection)
    _not_ahead(max(order["updated_at"] for order in state.rows["orders"].values()))
    seed = f"{_mark(connection)} {state.last_ids}"
    company, chance = Company(state, seed), random.Random(seed)
    pace = Pace(rate, _BEAT_SECONDS, seconds, stop)
    transactions, said = 0, 0.0
    with connection.cursor() as shop, gateway.cursor() as pings:
        for wanted, since, now in pace.beats():
            pinged = False
            for changes in _transactions(company.transact(wanted, since, now)):
                work = b"".join(_dml(shop, change) for change in changes)
                if all(change.table == "gps_pings" for change in changes):
                    pings.execute(work if pinged else b"BEGIN; " + work)
                    pinged = True
                else:
                    [ending] = chance.choices([e for _, e in _ENDINGS], [share for share, _ in _ENDINGS])
                    shop.execute(ending.replace(b"%b", work))
                    transactions += 1
                pace.done += len(changes)
            if pinged:
                pings.execute("COMMIT")
                transactions += 1
            if pace.elapsed - said >= 0.5:
                said = pace.elapsed
                say(
                    f"live: {pace.done:,} changes in {pace.elapsed:.0f} s ({pace.done / pace.elapsed:,.0f}/s); "
                    "Ctrl-C ends"
                )
    say("")
    return Worked(pace.done, transactions, pace.elapsed)


def _not_ahead(until: datetime) -> None:
    if until > datetime.now(UTC).replace(tzinfo=None):
        raise LockstepError(
            f"A company that is simulated up to {until}, which is in the future, cannot go on now: live changes happen "
            "at wall-clock time. Wait until then, or name another database."
        )


def _transactions(changes: Iterable[Change]) -> Iterator[list[Change]]:
    for _, transaction in itertools.groupby(changes, lambda change: change.t // 1000):
        yield list(transaction)


def _dml(cursor: Cursor, change: Change) -> bytes:
    """A change as a statement, which an update restricts to the columns that differ."""
    table, before, after = TABLES[change.table], change.before, change.after
    names = [c.name for c in table.columns]
    if before is None:
        assert after is not None
        values = ", ".join(["%s"] * len(names))
        statement = f"INSERT INTO public.{table.name} ({', '.join(names)}) VALUES ({values}); "
        return bytes(cursor.mogrify(statement, [after[n] for n in names]))
    key = " AND ".join(f"{k} = %s" for k in table.key)
    if after is None:
        return bytes(cursor.mogrify(f"DELETE FROM public.{table.name} WHERE {key}; ", key_of(table.name, before)))
    changed = [n for n in names if before[n] != after[n]] or list(table.key)
    assignments = ", ".join(f"{n} = %s" for n in changed)
    statement = f"UPDATE public.{table.name} SET {assignments} WHERE {key}; "
    return bytes(cursor.mogrify(statement, [*(after[n] for n in changed), *key_of(table.name, before)]))


def _state(connection: Connection) -> State:
    """Where the company is, by one view of the tables: the greatest keys, and the rows that were changed last."""
    query(connection, "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY")
    last_ids = {}
    for name, table in _tables().items():
        [[last]] = query(connection, _statement("SELECT MAX({1}) FROM {0}", name, table.key[0]))
        last_ids[name] = last or 0
    rows = {name: dict(_latest(connection, TABLES[name])) for name in REMEMBERED}
    query(connection, "COMMIT")
    return State(last_ids, rows)


def _latest(connection: Connection, table: Table) -> Iterator[tuple[Key, Image]]:
    names = [c.name for c in table.columns]
    columns = ", ".join(f"{c.name} AT TIME ZONE 'UTC'" if c.type == TIMESTAMP else c.name for c in table.columns)
    newest = "updated_at" if "updated_at" in names else table.key[0]
    with connection.cursor() as cursor:
        cursor.execute(f"SELECT {columns} FROM public.{table.name} ORDER BY {newest} DESC LIMIT {WORKING_SET}")
        for values in cursor:
            row = dict(zip(names, values, strict=True))
            yield key_of(table.name, row), row


def _statement(template: str, table: str, *names: str) -> sql.Composed:
    listed = sql.SQL(", ").join(sql.Identifier(n) for n in names)
    return sql.SQL(template).format(sql.Identifier("public", table), listed)


@contextmanager
def _said_plainly() -> Iterator[None]:
    """What PostgreSQL refuses, and what to do about it. A transaction that was not committed has left nothing."""
    again = "What was committed stays; run the command again and the company goes on from there."
    try:
        yield
    except psycopg2.Error as e:
        reason = (str(e).strip().splitlines() or ["unknown error"])[0]
        if isinstance(e, errors.InsufficientPrivilege):
            problem = (
                f"PostgreSQL does not let this user: {reason}. Simulating needs a user who owns the eight tables, or "
                "who may make them: GRANT CREATE ON SCHEMA public TO the user."
            )
        elif isinstance(e, errors.ReadOnlySqlTransaction):
            problem = f"This server only reads: {reason}. Name the primary server."
        elif isinstance(e, errors.UniqueViolation):
            problem = (
                f"Somebody else makes rows in this database: {reason}. Stop them, or name another database. {again}"
            )
        elif is_out_of_reach(e):
            problem = f"The connection to PostgreSQL was lost: {reason}. {again}"
        else:
            problem = f"PostgreSQL refuses a change: {reason}. {again}"
        raise LockstepError(problem) from e
