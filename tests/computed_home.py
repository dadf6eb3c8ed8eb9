"""A home whose facts the project's own models compute, without plans, and how its figures are compared.

The models are rendered from their files and run over the log's files by a DuckDB of the test's own; the landing, holds
and checkpoints are those of a run. Each figure is compared with the query as written, over the rows of a dictionary.
"""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any, ClassVar

import duckdb
from sqlglot import parse_one

from lockstep import breaks, checkpoints, contracts
from lockstep.changelog import ChangeLog, first_hour
from lockstep.contracts import Contract
from lockstep.derived import rows_of
from lockstep.names import GENERATED, KEY_OF_CELLS
from lockstep.project import project
from lockstep.recomputed import recomputed_of
from lockstep.schema import TABLES
from moving_source import COLUMNS, HOUR, LATER, Add, Declare, Resync, Source
from stamped import Stamped, Warehouse

Figures = list[tuple[Any, ...]]


@dataclass(frozen=True)
class Hour:
    """The source's clock comes to a full hour, all that happened has landed, and the models are computed.

    `folds`: the hours that have sealed are computed one by one (each), in one statement (all), or later (none).
    `is_night`: then the tables' checkpoints are taken, and a generation of each fact is verified.
    """

    hours: int = 1
    folds: str = "each"
    is_night: bool = False


@dataclass(frozen=True)
class Fact:
    query: str
    is_recomputed: bool = False


@dataclass
class Cut:
    """The rows that the log must lead to, and the tables whose changes it may be missing."""

    rows: dict[str, list[dict[str, Any]]]
    holes: set[str] = field(default_factory=set)

    def figures(self, query: str) -> Figures:
        """The query as written, over these rows."""
        return self._database.execute(f"SELECT * FROM ({query}) ORDER BY ALL").fetchall()

    @functools.cached_property
    def _database(self) -> duckdb.DuckDBPyConnection:
        connection = duckdb.connect()
        connection.execute("CREATE SCHEMA source")
        for table, columns in COLUMNS.items():
            kinds = columns | LATER.get(table, {})
            connection.execute(f"CREATE TABLE source.{table} ({', '.join(f'{c} {k}' for c, k in kinds.items())})")
            if rows := [[row.get(column) for column in kinds] for row in self.rows[table]]:
                connection.executemany(f"INSERT INTO source.{table} VALUES ({', '.join('?' * len(kinds))})", rows)
        return connection


class Home:
    """A home, its source, and the facts' models. Live figures are compared hour by hour, and every cut at the end."""

    _kept: ClassVar[dict[Hashable, tuple[Contract, tuple[str, ...]]]] = {}

    def __init__(self, home: Path, facts: Sequence[Fact], *, is_captured: bool) -> None:
        self.path = home
        self.source = Source(home, is_captured=is_captured)
        self._facts = {f"f{number}": fact for number, fact in enumerate(facts)}
        self._cuts: dict[datetime, Cut] = {}
        self._folded: dict[str, datetime] = {}
        self._planned: dict[str, Contract] = {}
        self._states: dict[str, tuple[str, ...]] = {}  # the tables whose rows as of an instant a fact reads
        self._planned_with: frozenset[str] | None = None
        self._stamped: Stamped | None = None
        self._warehouse = Warehouse(home, self._version, self._stamp)

    def reach(self, hour: Hour) -> None:
        """Land what happened, compute what has sealed, and compare what is live."""
        source = self.source
        source.now = source.now.replace(minute=0, second=0) + hour.hours * HOUR
        source.land(reached=source.now)
        if not ChangeLog(self.path).exists() or not ChangeLog(self.path).watermark().position:
            return
        self._cuts[source.now] = cut = Cut(source.known(), {*source.holes})
        breaks.hold_what_breaks(self.path)
        if self._planned_with != source.declared:
            self._planned_with, self._stamped = frozenset(source.declared), None
            self._plan()
        if not self._planned:
            return
        checkpoints.prepare(self.path)
        self._rebuild_at(source.now)
        for fact, contract in self._planned.items():
            self._fold(contract, hour.folds)
            if not cut.holes & set(contract.sources):
                self._compare("live figures", fact, source.now, f"SELECT {self._columns(fact)} FROM live.{fact}")
                if hour.is_night and _is_sum(contract) and self._folded[fact] == source.now:
                    self._warehouse.fill(f"verified.{fact}")
        if hour.is_night:
            checkpoints.take(self.path, self._warehouse.execute, self._warehouse.execute)

    def end(self) -> None:
        """Declare what the facts read, mend every table, and compare the facts at all cuts."""
        for table in LATER:
            if any(_reads_later(fact, table) for fact in self._facts.values()):
                self.source.apply(Add(table, None))
                self.source.apply(Declare(table))
        for table in sorted(self.source.holes):
            self.source.apply(Resync(table))
        self.reach(Hour(folds="all"))
        for fact, contract in self._planned.items():
            if not contract.is_recomputed:
                self._compare_hours(fact)
        for at, cut in self._cuts.items():
            self._rebuild_at(at)
            for table in TABLES.keys() - cut.holes:
                self._compare_rows(table, at)
            for fact, contract in self._planned.items():
                if cut.holes & set(contract.sources):
                    continue
                self._compare("the rebuild's figures", fact, at, f"SELECT {self._columns(fact)} FROM rebuild.{fact}")
                columns, by = self._columns(fact), ""
                if _is_sum(contract):
                    columns, by = self._columns(fact, "SUM({})"), f"GROUP BY {', '.join(contract.grain)}"
                self._compare("the sum of all hours", fact, at, f"SELECT {columns} FROM reconcile.{fact}_added_up {by}")

    # -- The models

    def _plan(self) -> None:
        """Make all views by the declaration as it is now; tables keep their rows."""
        undeclared = LATER.keys() - self.source.declared
        self._planned = {
            name: self._contract(name, fact)
            for name, fact in self._facts.items()
            if not any(_reads_later(fact, table) for table in undeclared)
        }
        if not self._planned:
            return
        ChangeLog(self.path).require_changes()
        checkpoints.prepare(self.path)
        models = self._warehouse
        for name in ("changes.watermark", "ops.checkpoints", "changes.quarantined", "changes.discarded"):
            models.view(name)
        for table in TABLES:
            for schema in ("changes", "signed", "checkpoints"):
                models.view(f"{schema}.{table}")
        models.view("changes.all_positions")
        models.view("hourly.log", first_hour(), datetime(2027, 1, 1))
        models.execute("CREATE SCHEMA IF NOT EXISTS rebuild")
        models.execute("CREATE TABLE IF NOT EXISTS rebuild.cut (domain TEXT, cut TIMESTAMP)")
        self._rebuild_at(self.source.now)
        for table in TABLES:
            for schema in ("chain", "source"):
                models.view(f"{schema}.{table}")
        for name, contract in self._planned.items():
            self._plan_fact(name, contract, is_new=name not in self._folded)
            self._folded.setdefault(name, first_hour())

    def _plan_fact(self, name: str, contract: Contract, *, is_new: bool) -> None:
        models = self._warehouse
        models.view(f"rebuild.{name}")
        if not contract.is_recomputed:
            models.view(f"diffs.{name}")
            if is_new:
                models.empty(f"hourly.{name}")
        for table in self._states[name]:
            models.view(f"state.{name}{GENERATED}{table}")
        if self._states[name] and not contract.is_recomputed:
            models.view(f"tail.{name}")
        if contract.is_finished:
            models.view(f"cells.{name}")
        if is_new and _is_sum(contract):
            self._prepare_generations(name)
        models.view(f"live.{name}")
        models.view(f"reconcile.{name}_added_up")

    def _version(self, model: str) -> Hashable:
        """What the text of a model depends on, beside its name and the columns of other tables."""
        name = model.partition(".")[2].partition(GENERATED)[0].removesuffix("_added_up")
        if name in self._planned:
            return self._facts[name], tuple(table in self.source.declared for table in self._planned[name].sources)
        readers = tuple(sorted(fact for fact, contract in self._planned.items() if name in contract.sources))
        return name in self.source.declared, readers

    def _contract(self, name: str, fact: Fact) -> Contract:
        if (name, fact) not in self._kept:
            self._stamp()
            contract = contracts.load()[name]
            states = recomputed_of(contract).columns if contract.is_recomputed else rows_of(contract).joined
            self._kept[name, fact] = contract, tuple(states)
        contract, self._states[name] = self._kept[name, fact]
        return contract

    def _stamp(self) -> Stamped:
        """Write the project by the declaration as it is now."""
        if self._stamped is None:
            undeclared = LATER.keys() - self.source.declared
            facts = {n: f for n, f in self._facts.items() if not any(_reads_later(f, table) for table in undeclared)}
            _write_project(facts)
            self._stamped = Stamped()
        return self._stamped

    def _rebuild_at(self, cut: datetime) -> None:
        self._warehouse.execute("DELETE FROM rebuild.cut")
        for name in self._planned:
            self._warehouse.execute("INSERT INTO rebuild.cut (domain, cut) VALUES (?, ?)", name, cut)

    def _fold(self, contract: Contract, folds: str) -> None:
        name, since = contract.domain, self._folded[contract.domain]
        until = ChangeLog(self.path).watermark().sealed_until(contract.sources)
        if contract.is_recomputed or folds == "none" or until is None or until <= since:
            return
        self._folded[name] = until
        for start, end in _hours(since, until) if folds == "each" else [(since, until)]:
            self._warehouse.fill(f"hourly.{name}", start, end)

    def _prepare_generations(self, fact: str) -> None:
        """What live figures stand on where measures merge by sum; every receipt has passed."""
        self._warehouse.execute(f"""
            CREATE SCHEMA IF NOT EXISTS reconcile;
            CREATE VIEW reconcile.{fact}_in_use AS SELECT NULL::TEXT AS evidence_digest;
            CREATE VIEW reconcile.{fact}_receipts AS
            SELECT cut, 'passed' AS verdict, 1 AS sequence, NULL::TEXT AS evidence_digest FROM rebuild.cut
        """)
        self._warehouse.empty(f"verified.{fact}")

    def _compare_rows(self, table: str, at: datetime) -> None:
        """The rows of a table at a cut are those that its changes add up to, and no change breaks the chain."""
        columns = ", ".join(column.name for column in TABLES[table].columns)
        expected = self._cuts[at].figures(f"SELECT {columns} FROM source.{table}")
        found = self._warehouse.execute(f"SELECT {columns} FROM source.{table} ORDER BY ALL")
        assert found == expected, f"rows of {table} at {at}"
        signed = f"SELECT {columns}, SUM(__weight) AS copies FROM signed.{table} WHERE __logged_at < ? GROUP BY ALL"
        found = self._warehouse.execute(f"FROM ({signed}) WHERE copies <> 0 ORDER BY ALL", at)
        assert found == [(*row, 1) for row in expected], f"signed rows of {table} before {at}"
        assert self._warehouse.execute(f"SELECT broken FROM chain.{table}") == [(0,)], f"the chain of {table} at {at}"

    def _compare_hours(self, fact: str) -> None:
        """The hours as they were computed, each by itself and all in one statement are the same cells."""
        start, end = first_hour(), self.source.now
        kept = self._cells(fact, f"FROM hourly.{fact}")
        at_once = self._cells(fact, self._warehouse.query(f"hourly.{fact}", start, end))
        one_by_one = Counter[tuple[Any, ...]]()
        for hour in _hours(start, end):
            one_by_one += self._cells(fact, self._warehouse.query(f"hourly.{fact}", *hour))
        assert kept == one_by_one, f"hours of {fact} as they were computed, and one by one"
        assert at_once == one_by_one, f"hours of {fact} in one statement, and one by one"

    def _cells(self, fact: str, query: str) -> Counter[tuple[Any, ...]]:
        """Those in which something is left."""
        names = [name for name, *_ in self._warehouse.execute(f"DESCRIBE hourly.{fact}")]
        grain = [name for name in names if name.startswith(("log_hour", "k", KEY_OF_CELLS))]
        columns = [*grain, *(name for name in names if name not in grain)]
        rows = self._warehouse.execute(f"SELECT {', '.join(columns)} FROM ({query})")
        return Counter(row for row in rows if any(row[len(grain) :]))

    def _columns(self, fact: str, measure: str = "{}") -> str:
        contract = self._planned[fact]
        return ", ".join([*contract.grain, *(measure.format(m.name) for m in contract.merged)])

    def _compare(self, what: str, fact: str, at: datetime, query: str) -> None:
        contract, written = self._planned[fact], self._facts[fact].query
        expected = self._cuts[at].figures(f"SELECT {self._columns(fact)} FROM ({written})")
        found = self._warehouse.execute(f"SELECT * FROM ({query}) ORDER BY ALL")
        assert _merged(contract, found) == _merged(contract, expected), f"{what} of {fact} at {at}, and the query"


def _is_sum(contract: Contract) -> bool:
    return all(m.merge == "sum" for m in contract.merged)


def _merged(contract: Contract, rows: Figures) -> Figures:
    """Where measures merge by sum, that of no rows is 0, and a cell of zeros is none."""
    if not _is_sum(contract):
        return rows
    width = len(contract.grain)
    merged = [(*row[:width], *(value or 0 for value in row[width:])) for row in rows]
    return [row for row in merged if any(row[width:])]


def _reads_later(fact: Fact, table: str) -> bool:
    """Whether a fact reads the later column of a table."""
    return any(column in fact.query for column in LATER[table])


def _hours(start: datetime, end: datetime) -> list[tuple[datetime, datetime]]:
    return [(start + n * HOUR, start + (n + 1) * HOUR) for n in range((end - start) // HOUR)]


def _write_project(facts: Mapping[str, Fact]) -> None:
    rebuild = project() / "models" / "rebuild"
    for path in rebuild.glob("f*.sql"):
        path.unlink()
    measures = []
    for name, fact in facts.items():
        columns = parse_one(fact.query, dialect="duckdb").named_selects
        grain = ", ".join(column for column in columns if column.startswith("k"))
        kind = f"kind FULL, cron '@daily', start @log_eve(), grain ({grain})"
        (rebuild / f"{name}.sql").write_text(f"MODEL (name rebuild.{name}, {kind});\n{fact.query}\n")
        if fact.is_recomputed:
            measures += [f"{name},{column},recomputed,,,,,," for column in columns if not column.startswith("k")]
    for seed, header, rows in (
        ("contracts", contracts.REQUIRED_COLUMNS, [f"{name},x,live,60,60" for name in facts]),
        ("contract_measures", contracts.MEASURE_COLUMNS, measures),
    ):
        lines = [header.replace(" ", ","), *rows]
        (project() / "seeds" / f"{seed}.csv").write_text("".join(f"{line}\n" for line in lines))
    contracts.load.cache_clear()
