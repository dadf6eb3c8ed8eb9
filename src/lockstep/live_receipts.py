"""Live receipts: what analysts read at this moment, against the query as written over the rows of the same position.

The nightly receipts prove the folded hours, and nothing of what a publication stands on beside them: the tail, and all
that it has put together. Here the published file is asked, as an analyst asks it, and `rebuild.<domain>` is computed as
a nightly run would at the last position that the file shows. Both see one landing of the log, in one transaction.

They are evidence of a kind of their own. A domain whose nightly receipt had nothing to compare yet is served live by a
passed one. A failed one sends a domain to its rebuild until another passes, and the next publication is then made from
nothing. They never count as days in shadow.

`<home>/live_receipts.jsonl` holds all there ever were, one JSON line each.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

import duckdb
from duckdb import DuckDBPyConnection

from lockstep import jsonlines, publish, warehouse
from lockstep.changelog import ChangeLog
from lockstep.contracts import Contract
from lockstep.errors import LockstepError
from lockstep.lock import exclusive
from lockstep.reconcile import Models, Reconciled, chosen, planned
from lockstep.schema import TABLES
from lockstep.warehouse import Row, text

_END = datetime(9000, 1, 1)  # after anything that is logged
# What a receipt at a cut says, and one of a position does not.
_OF_A_CUT = {"cut", "compared"}


def reconcile(home: Path, domains: Iterable[str] = (), limit: int = 20) -> list[Reconciled]:
    """Publish, and compare what is published of `domains` (all that have live figures if none is named) with its query.

    A failed receipt does not raise; at most `limit` of its cells are returned. Where the receipts change what is
    served, it is published once more. Takes the lock of the runs. Raises LockstepError if a domain has no live figures,
    as its contract's mode is batch; and, once the receipts of all others are stored, if a query fails as it is written.
    """
    named = list(domains)
    contracts = chosen(named)
    batch = [c.domain for c in contracts if c.mode_in_effect == "batch"]
    if named and batch:
        raise LockstepError(f"{batch[0]} is in mode batch: it has no live figures that could be compared.")
    warehouse.require(home)
    with exclusive(home / "warehouse.lock", "reconciling what is live"):
        publish.write(home)
        with _both(home) as connection:
            served = _served(connection)
        for name in named:
            if name not in served:
                raise LockstepError(f"{name} has not been planned yet. Run `sqlmesh plan` first.")
        taken = take(home, [c for c in contracts if c.domain not in batch and c.domain in served], limit)
        if taken.failures:
            raise LockstepError(". ".join(taken.failures))
        return taken.results


@dataclass(frozen=True)
class Taken:
    """Receipts that were taken, what was published once more, and a sentence for each domain that has none."""

    results: list[Reconciled]
    published: publish.Published | None
    failures: list[str]


def take(home: Path, contracts: Iterable[Contract], limit: int = 20) -> Taken:
    """As `reconcile` of what is published already, for a caller that holds the lock of the runs."""
    results, failures = list[Reconciled](), list[str]()
    with planned() as models, _both(home) as connection:
        before = _served(connection)
        for contract in contracts:
            try:
                shown = _shown(connection, contract)
                results.append(_compared(connection, models, contract, limit, *shown))
            except duckdb.DataError as e:
                failures.append(f"{contract.domain} could not be compared with its query: {' '.join(str(e).split())}")
                connection.execute("ROLLBACK")
                connection.execute("BEGIN")
        [(nightly,)] = connection.execute("SELECT MAX(sequence) FROM warehouse.reconcile.receipts").fetchall()
    # As nightly receipts are numbered, and after all of these there are: no clock that is set back changes an order.
    newest = max([nightly or 0, *(r["sequence"] for r in load(home)), time.time_ns() // 1000])
    for number, result in enumerate(results, 1):
        result.receipt["sequence"] = newest + number
    jsonlines.append(ChangeLog(home).live_receipts, [json.loads(json.dumps(r.receipt, default=_iso)) for r in results])
    with warehouse.reader(home) as connection:
        is_changed = before != dict(connection.execute("SELECT domain, served_from FROM ops.serving").fetchall())
    return Taken(results, publish.write(home) if is_changed else None, failures)


def load(home: Path) -> list[Row]:
    """All live receipts, oldest first. Raises LockstepError if their file cannot be read."""
    path = ChangeLog(home).live_receipts
    rows = jsonlines.read(path, publish.LIVE_RECEIPTS_LOST)
    try:
        loaded = [r | {name: datetime.fromisoformat(r[name]) for name in ("as_of", "reconciled_at")} for r in rows]
        assert all({"domain", "sequence", "verdict", "evidence_digest"} <= r.keys() for r in loaded)
    except (AssertionError, KeyError, TypeError, ValueError):
        raise LockstepError(f"{path} has a line that is not a live receipt. {publish.LIVE_RECEIPTS_LOST}.") from None
    return loaded


def last(receipts: Iterable[Row]) -> dict[str, Row]:
    """The last receipt of each domain."""
    return {r["domain"]: r for r in receipts}


@contextmanager
def _both(home: Path) -> Iterator[DuckDBPyConnection]:
    """A transaction that reads the warehouse and the published file, and so one landing of the log."""
    with duckdb.connect(config={"file_search_path": str(home)}) as connection:
        connection.execute("SET TimeZone = 'UTC'")
        for name, path in (("warehouse", home / "warehouse.duckdb"), ("published", home / "analytics.duckdb")):
            try:
                connection.execute(f"ATTACH {text(path)} AS {name} (READ_ONLY)")
            except duckdb.Error as e:
                raise warehouse.cannot_open(path, e) from None
        connection.execute("BEGIN")
        try:
            yield connection
        except duckdb.Error as e:
            raise LockstepError(f"What is live could not be compared: {' '.join(str(e).split())}") from None


def _served(connection: DuckDBPyConnection) -> dict[str, str]:
    """From where each domain is served in the published file."""
    return dict(connection.execute("SELECT domain, served_from FROM published.ops.serving").fetchall())


def _shown(connection: DuckDBPyConnection, contract: Contract) -> tuple[str, int, datetime]:
    """Keep what the published file shows of a domain; returns where, and up to which position and time it shows it."""
    domain = contract.domain
    figures = f"mart.{domain}" if _served(connection)[domain] == "live" else f"live.{domain}"
    columns = ", ".join(f'"{column}"' for column in (*contract.grain, *contract.state))
    connection.execute(
        f"CREATE TEMP TABLE {_kept(domain)} AS "
        f"SELECT TIMESTAMP '0001-01-01' AS log_hour, {columns} FROM published.{figures}"
    )
    [(position, as_of)] = connection.execute(
        "SELECT MIN(readable_position), MIN(readable_until) FROM published.changes.watermark "
        f"WHERE source_table IN ({', '.join(map(text, contract.sources))})"
    ).fetchall()
    return figures, position, as_of


def _compared(
    connection: DuckDBPyConnection,
    models: Models,
    contract: Contract,
    limit: int,
    figures: str,
    position: int,
    as_of: datetime,
) -> Reconciled:
    """A nightly receipt's own queries, up to a position, with the published figures in the place of increments."""
    from sqlglot import exp

    domain = contract.domain
    instead = {f"reconcile.{domain}_added_up": exp.select("*").from_(_kept(domain))}
    for name in models.upstream(f"reconcile.{domain}_cells"):
        if name.startswith("changes.") and name.removeprefix("changes.") in TABLES:
            changes = exp.to_table(models.table(name), dialect="duckdb")
            instead[name] = exp.select("*").from_(changes).where(exp.column("position") <= position)
    [receipt] = warehouse.rows(connection, models.query(f"reconcile.{domain}_receipts", _END, instead).sql("duckdb"))
    receipt = {name: value for name, value in receipt.items() if name not in _OF_A_CUT}
    receipt |= {"position": position, "as_of": as_of, "figures": figures}
    cells = []
    if receipt["verdict"] == "failed":
        compared = models.query(f"reconcile.{domain}_cells", _END, instead).sql("duckdb")
        cells = warehouse.rows(
            connection,
            f"SELECT * EXCLUDE (cut) FROM ({compared}) AS cells "
            f"WHERE NOT class IN ('identical', 'tolerated') ORDER BY ALL LIMIT {limit}",
        )
    return Reconciled(receipt, cells)


def _kept(domain: str) -> str:
    return f"temp.main.figures_of_{domain}"


def _iso(value: object) -> str:
    assert isinstance(value, datetime)
    return value.isoformat()
