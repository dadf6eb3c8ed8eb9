"""What is in a published file, and how the one before it becomes the next.

A publication begins as a copy of the one before it, and only what changed is written anew:
- Tables of the warehouse by their parts (a generation of `verified`, an hour of `hourly`): a part whose count and sum
  of row hashes are the same stays as it is.
- `folded.<domain>`, the cells up to the published cut: the cells that the hours since have touched.
- `folded.<domain>__<table>`, the rows of a table that a domain joins, at that cut: the rows that changed since.
- `folded.mart_<mart>`, what a mart that only adds up cells has at that cut, and `folded.dims_<dimension>`: always.
- `folded.source__<table>`, the rows of a source table at that cut: those that changed since.
- The sealed part of a table of the log: the hours since.
- Views, macros and comments always: they hold the cuts.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import duckdb
from duckdb import DuckDBPyConnection

from lockstep.changelog import Watermark
from lockstep.contracts import planned_contracts
from lockstep.errors import LockstepError
from lockstep.published import about, sql
from lockstep.published.cells import Cells
from lockstep.published.cuts import Cuts
from lockstep.published.file import File, now, time
from lockstep.published.log import Log
from lockstep.published.models import Model, Models, UnpublishableError
from lockstep.published.past import TimeTravel
from lockstep.published.serving import NAME as SERVING
from lockstep.published.serving import Serving
from lockstep.published.views import Views
from lockstep.schema import TABLES
from lockstep.warehouse import Row, text

# What DuckDB raises before a query runs, which leaves the transaction as it was; and what rows may make of a query.
_OTHERWISE = ("changes.", "source.", "state.")  # whatever their queries say, something of its own is published
_FAILED = (duckdb.ConversionException, duckdb.InvalidInputException, duckdb.OutOfRangeException)
_REFUSED = (duckdb.BinderException, duckdb.CatalogException, duckdb.ParserException, duckdb.NotImplementedException)


class FailedMartError(Exception):
    """A mart whose query failed on its rows. That ends the transaction: the file is built again without it."""

    def __init__(self, mart: str, error: duckdb.Error) -> None:
        super().__init__(_cannot(mart, error))
        self.mart = mart


class Builder:
    """Builds one publication in an open transaction, in a file that is empty or a copy of the one before.

    `refused` has the marts that are not published, each with the reason; more are added. Raises FailedMartError.
    """

    def __init__(
        self, connection: DuckDBPyConnection, home: Path, watermark: Watermark, refused: dict[str, str]
    ) -> None:
        self._home = home
        self._watermark = watermark
        self._models = models = Models.load(connection)
        if "readable_position" not in models["changes.watermark"].columns:
            raise LockstepError(
                "The models were last planned by an earlier version of lockstep. Plan those of this one first: "
                "`sqlmesh plan --auto-apply --no-prompts`."
            )
        # Leave out what the project has and no plan has made yet.
        self._contracts = contracts = {
            name: c for name, c in planned_contracts(connection).items() if f"live.{name}" in models
        }
        self._tables = [table for table in TABLES if f"changes.{table}" in models]
        self._file = file = File(connection, models)
        self._cuts = cuts = Cuts(file, models, contracts, self._tables, watermark)
        self._log = log = Log(file, models, cuts, self._tables, watermark, home)
        self._cells = Cells(file, models, cuts, log, contracts)
        self._serving = Serving(file, models, log, contracts)
        parts = (file, models, cuts, log, self._cells, self._serving, contracts)
        self._views, self._time_travel = Views(*parts), TimeTravel(*parts)
        self.about: list[Row] = []
        self.refused = refused
        self.needed_hour = cuts.least

    def build(self) -> None:
        marts = [name for name in sorted(self._models) if name.startswith("mart.") and name not in self.refused]
        live = [f"live.{c.domain}" for c in self._contracts.values() if c.mode_in_effect != "batch"]
        marts = self._prove([*marts, *live], marts)
        self._log.create_views()
        self._log.find_readers(marts)
        for name in marts:
            self._publish(self._models[name])
        self._require_types(marts)
        for name in live:
            self._views.make(name)
        for table in self._tables:
            if TABLES[table].is_mirrored:
                self._cells.mirror(table)
        self._serving.create_view()
        about.describe(self._file, self._models)
        is_live = {name: self._views.is_live[name] for name in marts if name not in self.refused}
        parts = (self._file, self._models, self._cuts, self._serving, self._contracts)
        self.about = about.write_about(*parts, is_live, self._home)
        self._file.end(self._models.proven)
        self._file.run("CREATE TABLE ops.refused (mart TEXT, reason TEXT)")
        for name, reason in self.refused.items():
            self._file.run(f"INSERT INTO ops.refused VALUES ({text(name)}, {text(reason)})")
        self._file.run(
            f"CREATE TABLE ops.publication AS SELECT {time(now())} AS published_at, "
            f"{self._watermark.position} AS position, {time(self._watermark.logged_at)} AS logged_at, "
            f"{time(self.needed_hour)} AS needed_hour, {text(self._home / 'changelog')} AS changelog"
        )

    def check(self) -> None:
        """Have DuckDB plan what no publication had before, once all is committed: what it cannot plan is taken out.

        It binds a view when it is made, but plans it only when it is asked, and an error in that ends a transaction.
        """
        for row in list(self.about):
            mart = self._models[row["mart"]]
            if not mart.is_view or mart.digest in self._file.proven_before:
                continue
            try:
                for query in (row["query"], row["as_it_was"]):
                    self._file.run(f"EXPLAIN {query}")
            except duckdb.Error as e:
                self._take_out(mart)
                self.about.remove(row)
                self.refused[mart.name] = _cannot(mart.name, e)
                self._file.run(f"DELETE FROM about WHERE mart = {text(mart.name)}")
                self._file.run(
                    f"DELETE FROM ops.proven WHERE digest = {text(mart.digest)}"
                )  # it is new the next time too
                self._file.run(f"INSERT INTO ops.refused VALUES ({text(mart.name)}, {text(self.refused[mart.name])})")

    def _prove(self, names: Iterable[str], marts: Iterable[str]) -> list[str]:
        """Prove the trees of these models and of what they read; returns the marts whose trees all are.

        What a mart reads must be known before any of it is made.
        """
        reads: dict[str, list[str]] = {}
        unknown: dict[str, str] = {}
        waiting = list(names)
        while waiting:
            name = waiting.pop()
            if name in reads or name == SERVING or name.startswith(_OTHERWISE):
                continue
            reads[name] = []
            try:
                self._models.require_known(self._models[name])
                reads[name] = self._models.reads(self._models[name])
            except UnpublishableError as e:
                unknown[name] = str(e)
            waiting += reads[name]
        unknown = self._models.prove(self._file.connection, reads, self._file.proven_before) | unknown

        def why_not(name: str) -> str | None:
            found = (why_not(read) for read in reads.get(name, ()))
            return unknown.get(name) or next((why for why in found if why), None)

        for name in names:
            why = why_not(name) if unknown else None
            if why and name not in marts:
                raise LockstepError(why)
            if why:
                self.refused[name] = why
        return [name for name in marts if name not in self.refused]

    def _publish(self, mart: Model) -> None:
        """Publish a mart, or say why it is not: one that cannot be keeps no other from it."""
        try:
            self._views.make(mart.name)
            self._time_travel.make(mart)
        except UnpublishableError as e:
            self.refused[mart.name] = str(e)
        except _REFUSED as e:
            self.refused[mart.name] = _cannot(mart.name, e)
        except _FAILED as e:
            raise FailedMartError(mart.name, e) from None
        if mart.name in self.refused:
            self._take_out(mart)

    def _take_out(self, mart: Model) -> None:
        if self._views.is_live.pop(mart.name, None) is not None:
            self._file.run(f"DROP {'VIEW' if mart.is_view else 'TABLE'} {sql.named(mart.name)}")
            self._file.run(f"DROP MACRO TABLE IF EXISTS {sql.named(f'{mart.name}_as_of')}")
            self._file.stored.pop(mart.name, None)

    def _require_types(self, marts: Iterable[str]) -> None:
        """Take out marts with a column whose type is no longer the warehouse's."""
        there: dict[str, dict[str, str]] = {}
        for mart, column, kind in self._file.connection.execute(
            "SELECT schema_name || '.' || table_name, column_name, data_type FROM duckdb_columns() "
            "WHERE database_name = current_database() AND schema_name = 'mart'"
        ).fetchall():
            there.setdefault(mart, {})[column] = kind
        for name in marts:
            mart = self._models[name]
            wrong = [c for c, (kind, _) in mart.columns.items() if there.get(name, {}).get(c) != kind]
            if wrong and name not in self.refused:
                self.refused[name] = f"{name} would have {', '.join(wrong)} in another type: cast each to its type."
                self._take_out(mart)


def _cannot(mart: str, error: duckdb.Error) -> str:
    return f"{mart} cannot be published: {str(error).splitlines()[0]}"
