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

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

from duckdb import DuckDBPyConnection

from lockstep import warehouse
from lockstep.changelog import REMEMBERED, SETTLING, Watermark
from lockstep.contracts import Contract, load
from lockstep.errors import LockstepError
from lockstep.logfiles import TAIL
from lockstep.mirror import Mirror
from lockstep.names import GENERATED, KEY_OF_CELLS
from lockstep.schema import TABLES, quoted
from lockstep.warehouse import Row, text

if TYPE_CHECKING:
    from lockstep.sums import Sums

_ALL_HOURS = timedelta(days=8)  # a log up to this long is published with every hour of increments
_NEVER = datetime(1, 1, 1)
_ALL_POSITIONS = f"{(1 << 63) - 1}"

Place = Callable[[str], str]  # what stands in SQL for a model that is read


@dataclass(frozen=True)
class _Model:
    """A model as the warehouse has it: `body` is the SQL of a view, None for a table; `relation` its physical name."""

    name: str
    relation: str
    body: str | None
    comment: str | None
    columns: dict[str, str | None]

    @property
    def schema(self) -> str:
        return self.name.partition(".")[0]

    @property
    def short(self) -> str:
        return self.name.partition(".")[2]


@dataclass(frozen=True)
class _Stored:
    """A table of a publication. `parts` are the count and hash of its rows by generation or hour; or, of a table that
    grows with the log, up to where it reaches, and None.
    """

    definition: str
    parts: dict[datetime, tuple[int, int] | None]


_STORED = "ops.stored (name TEXT, definition TEXT, part TIMESTAMP, rows BIGINT, hash HUGEINT)"
_READ = re.compile(r'\bwarehouse\."?(sqlmesh__\w+)"?\."?(\w+)"? AS ("?\w+"?)')


class Builder:
    """Builds one publication in an open transaction, in a file that is empty or a copy of the one before."""

    def __init__(self, connection: DuckDBPyConnection, home: Path, watermark: Watermark) -> None:
        self._connection = connection
        self._home = home
        self._watermark = watermark
        self._names: dict[str, str] = {}
        self._models = self._load()
        if "readable_position" not in self._models["changes.watermark"].columns:
            raise LockstepError(
                "The models were last planned by an earlier version of lockstep. Plan those of this one first: "
                "`sqlmesh plan --auto-apply --no-prompts`."
            )
        # A domain or table that the project has but no plan has carried through yet is none of the warehouse.
        self._contracts = {name: c for name, c in load().items() if f"live.{name}" in self._models}
        self._cells = {name: self._contract_of_cells(c) for name, c in self._contracts.items()}
        self._tables = [table for table in TABLES if f"changes.{table}" in self._models]
        served = self._rows(f"SELECT * FROM {self._models['ops.serving'].relation}")
        self._served = {row["domain"]: row for row in served}
        self._first_hour = (watermark.started_at or _NEVER).replace(minute=0, second=0, microsecond=0)
        self._made: set[str] = set()
        self._is_live: dict[str, bool] = {}
        self._before = self._begin()
        self._stored: dict[str, _Stored] = {}
        self._renewed: dict[str, set[datetime]] = {}
        self._filled: dict[str, list[str]] = {}  # of each domain the columns of its grain that are never NULL
        self._cuts = {contract.domain: self._folded_until(contract) for contract in self._contracts.values()}
        self._table_cuts = {table: self._table_cut(table) for table in self._tables}
        self.about: list[Row] = []
        self.needed_hour = min(self._table_cuts.values())

    def build(self) -> None:
        self._visible()
        marts = [name for name in sorted(self._models) if name.startswith("mart.")]
        self._readers = self._readers_of_the_log(marts)
        for name in marts:
            self._make(name)
        for contract in self._contracts.values():
            if contract.mode_in_effect != "batch":
                self._make(f"live.{contract.domain}")
        for table in self._tables:
            if TABLES[table].is_mirrored:
                self._mirror(table)
        self._watermark_view()
        self._serving_view()
        for name in marts:
            self._time_travel(self._models[name])
        self._describe()
        self._about(marts)
        self._end()
        self._run(
            f"CREATE TABLE ops.publication AS SELECT {_time(_now())} AS published_at, "
            f"{self._watermark.position} AS position, {_time(self._watermark.logged_at)} AS logged_at, "
            f"{_time(self.needed_hour)} AS needed_hour, {text(self._home / 'changelog')} AS changelog"
        )

    # -- What the warehouse has

    def _load(self) -> dict[str, _Model]:
        """Every model of production by name. A development environment's have other schemas (`mart__dev`)."""
        found = self._connection.execute(
            "SELECT schema_name, view_name, sql, comment FROM duckdb_views() "
            "WHERE database_name = 'warehouse' AND NOT internal"
        ).fetchall()
        bodies = {f"warehouse.{schema}.{view}": _body(sql) for schema, view, sql, _ in found if "__" in schema}
        columns: dict[str, dict[str, str | None]] = {}
        for schema, table, column, comment in self._connection.execute(
            "SELECT schema_name, table_name, column_name, comment FROM duckdb_columns() "
            "WHERE database_name = 'warehouse' ORDER BY column_index"
        ).fetchall():
            columns.setdefault(f"{schema}.{table}", {})[column] = comment
        models = {}
        for schema, view, sql, comment in found:
            read = re.search(r'FROM warehouse\."?(sqlmesh__\w+)"?\."?(\w+)"?;$', sql)
            if "__" not in schema and read:
                name, relation = f"{schema}.{view}", f"warehouse.{read[1]}.{read[2]}"
                self._names[relation] = name
                models[name] = _Model(name, relation, bodies.get(relation), comment, columns[name])
        return models

    def _reads(self, model: _Model) -> list[str]:
        return [self._name(model, f"warehouse.{read[1]}.{read[2]}") for read in _READ.finditer(model.body or "")]

    def _name(self, model: _Model, relation: str) -> str:
        """The name of a model that another reads, by its relation."""
        if relation not in self._names:
            raise LockstepError(
                f"{model.name} reads {relation.rpartition('.')[2]}, which is of no model in use: the last plan did not "
                "end. `sqlmesh plan` says what stopped it; once that is mended it puts all models into use."
            )
        return self._names[relation]

    def _placed(self, model: _Model, place: Place) -> str:
        """The model's query with everything it reads replaced by what `place` says stands for it."""

        def replace(read: re.Match[str]) -> str:
            return f"{place(self._name(model, f'warehouse.{read[1]}.{read[2]}'))} AS {read[3]}"

        return _READ.sub(replace, model.body or "")

    def _domains(self, model: _Model) -> list[str]:
        """The domains whose serving the model looks up."""
        if "ops.serving" not in self._reads(model):
            return []
        named = set(re.findall(r"\"domain\" = '(\w+)'", model.body or ""))
        return sorted(named & set(self._contracts)) or list(self._contracts)

    def _chooses(self, model: _Model) -> bool:
        """Whether the model has a live and a verified branch, of which serving decides."""
        schemas = {name.partition(".")[0] for name in self._reads(model)}
        return {"live", "verified"} <= schemas and bool(self._domains(model))

    def _serves_live(self, model: _Model) -> bool:
        return all(self._served[domain]["served_from"] == "live" for domain in self._domains(model))

    def _contract_of_cells(self, contract: Contract) -> Contract:
        """The contract with the grain and the measures of the cells that are merged, be it below a finish."""
        if not contract.is_finished:
            return contract
        columns = self._models[f"cells.{contract.domain}"].columns
        return replace(contract, grain=tuple(c for c in columns if c.startswith(KEY_OF_CELLS)))

    def _merging(self, domain: str) -> str:
        """The model that merges the domain's cells."""
        return f"cells.{domain}" if self._contracts[domain].is_finished else f"live.{domain}"

    def _merges(self, model: _Model) -> bool:
        return model.short in self._contracts and model.name == self._merging(model.short)

    # -- Cuts

    def _folded_until(self, contract: Contract) -> datetime:
        """The end of the domain's last folded hour; hours without a change of it count as folded once sealed."""
        last = self._value(f"SELECT MAX(log_hour) FROM {self._models[f'hourly.{contract.domain}'].relation}")
        folded: datetime = last + timedelta(hours=1) if last else self._first_hour
        sealed = self._watermark.sealed_until(contract.sources) or folded
        if folded < sealed:
            diffs = self._tail_of(contract.domain).relation
            condition = f"logged_at >= {_time(folded)} AND logged_at < {_time(sealed)}"
            unfolded: datetime = self._value(f"SELECT MIN(logged_at) FROM {diffs} WHERE {condition}") or sealed
            folded = unfolded.replace(minute=0, second=0, microsecond=0)
        return folded

    def _tail_of(self, domain: str) -> _Model:
        """The model of the domain's signed rows since its last folded hour."""
        return self._models.get(f"tail.{domain}") or self._models[f"diffs.{domain}"]

    def _table_cut(self, table: str) -> datetime:
        """The first hour of the table that is read from the log: nothing changes any more before it."""
        cuts = [self._cuts[c.domain] for c in self._contracts.values() if table in c.sources]
        return min(cuts) if cuts else self._watermark.sealed_until([table]) or self._first_hour

    def _increments_since(self, domain: str) -> datetime:
        """From which hour on increments are published: all, or those since the oldest generation."""
        oldest = self._value(f"SELECT MIN(cut) FROM {self._models[f'verified.{domain}'].relation}")
        if self._contracts[domain].is_finished:  # no generation has cells that the others could be added to
            return self._first_hour
        if oldest is None or self._cuts[domain] - self._first_hour <= _ALL_HOURS:
            return self._first_hour
        since: datetime = max(oldest, self._first_hour)
        return since

    # -- What the file has from the publication before

    def _begin(self) -> dict[str, _Stored]:
        """Drop all that is written anew, and return what the tables that stay were stored as."""
        here = "WHERE database_name = current_database() AND NOT internal"
        for schema in ("ops", "changes", "folded", "source"):
            self._run(f"CREATE SCHEMA IF NOT EXISTS {schema}")
        for kind, schema, short in self._connection.execute(
            f"SELECT 'VIEW', schema_name, view_name FROM duckdb_views() {here} UNION ALL "
            f"SELECT 'MACRO TABLE', schema_name, function_name FROM duckdb_functions() {here} UNION ALL "
            f"SELECT 'TABLE', schema_name, table_name FROM duckdb_tables() {here}"
        ).fetchall():
            name = f"{schema}.{short}"
            model = self._models.get(name)
            if kind != "TABLE" or name in ("main.about", "ops.publication") or (model and model.body is not None):
                self._run(f"DROP {kind} {schema}.{quoted(short)}")
        self._run(f"CREATE TABLE IF NOT EXISTS {_STORED}")
        before: dict[str, _Stored] = {}
        for row in self._rows("SELECT * FROM ops.stored"):
            stored = before.setdefault(row["name"], _Stored(row["definition"], {}))
            stored.parts[row["part"]] = None if row["rows"] is None else (row["rows"], row["hash"])
        return before

    def _end(self) -> None:
        """Drop the tables that no mart needs any more, and write down what the others are."""
        here = "SELECT schema_name || '.' || table_name FROM duckdb_tables() WHERE database_name = current_database()"
        for (name,) in self._connection.execute(here).fetchall():
            if name not in (*self._stored, "main.about"):
                self._run(f"DROP TABLE {name}")
        self._run(f"CREATE TABLE {_STORED}")
        rows = [
            f"({text(name)}, {text(stored.definition)}, {_time(part)}, {seal[0]}, {seal[1]})"
            for name, stored in self._stored.items()
            for part, seal in ((part, seal or ("NULL", "NULL")) for part, seal in stored.parts.items())
        ]
        if rows:
            self._run(f"INSERT INTO ops.stored VALUES {', '.join(rows)}")

    def _until(self, name: str, definition: str) -> datetime | None:
        """Up to where the publication before has a table that grows with the log; None if not by this definition."""
        before = self._before.get(name)
        return max(before.parts) if before and before.definition == definition else None

    # -- What is in the file

    def _visible(self) -> None:
        """`changes.visible`: the one landing that a transaction sees.

        It depends on nothing but when the transaction began, so each of a query's readings of it, early or late, finds
        the same. Files are listed after that, and a landing's are there before its stamp: none that counts is missed.
        """
        w = self._watermark
        kind = "MAP(VARCHAR, STRUCT(position BIGINT, logged_at TIMESTAMP, events BIGINT))"
        holds = ", ".join(
            f"{text(table)}: {{'position': {h.position}, 'logged_at': {_time(h.logged_at)}, 'events': {h.events}}}"
            for table, h in w.holds.items()
        )
        published = (
            f"{{'landed_at': {_time(_NEVER)}, 'position': {w.position}::BIGINT, 'logged_at': {_time(w.logged_at)}, "
            f"'holds': MAP {{{holds}}}::{kind}}}"
        )
        landing = f"STRUCT(landed_at TIMESTAMP, position BIGINT, logged_at TIMESTAMP, holds {kind})"
        columns = (
            "{'landed_at': 'TIMESTAMP', 'position': 'BIGINT', 'logged_at': 'TIMESTAMP', "
            f"'holds': '{kind}', 'recent': '{landing}[]'}}"
        )
        settled = f"make_timestamp(epoch_us(now())) - INTERVAL {int(SETTLING / timedelta(milliseconds=1))} MILLISECOND"
        outlived = (
            "This transaction began too long ago: which changes had landed then is remembered for "
            f"{int(REMEMBERED / timedelta(minutes=1))} minutes. End it (COMMIT) and ask again."
        )
        self._run(f"""
            CREATE VIEW changes.visible AS
            WITH file AS (
              SELECT
                list_concat(
                  COALESCE(recent, []),
                  [{{'landed_at': landed_at, 'position': position, 'logged_at': logged_at, 'holds': holds}}]
                ) AS landings
              FROM read_json({text(self._home / "changelog" / "watermark.json")}, columns = {columns})
            ), newer AS (
              SELECT
                len(landings) AS remembered,
                list_filter(
                  landings, lambda l: l.position > {w.position} OR l.landed_at > {_time(w.landed_at)}
                ) AS landings
              FROM file
            ), settled AS (
              SELECT
                len(landings) = remembered AS is_superseded,
                list_filter(landings, lambda l: l.landed_at <= {settled}) AS landings
              FROM newer
            ), seen AS (
              SELECT
                CASE
                  WHEN len(landings) > 0 THEN landings[-1]
                  WHEN is_superseded THEN error({text(outlived)})
                  ELSE {published}
                END AS landing
              FROM settled
            )
            SELECT
              landing.position AS position,
              landing.logged_at AS logged_at,
              {_time(w.started_at)} AS started_at,
              landing.holds AS holds
            FROM seen
        """)

    def _landing(self, shared: dict[str, str]) -> str:
        """What stands for `changes.visible`, which takes a millisecond or two to ask: it remembers many landings."""
        return _share(shared, "changes.visible", "SELECT * FROM changes.visible")

    def _watermarks(self, shared: dict[str, str]) -> str:
        """What stands for `changes.watermark`."""
        name = "changes.watermark"
        landing = f"{self._landing(shared)} AS "
        body = self._models[name].body or ""
        return _share(shared, name, _replaced_once(name, r"read_json\('changelog/.*?\) AS ", landing, body))

    def _fold(self, contract: Contract) -> str:
        """`folded.<domain>`: verified plus increments: the cells of a generation at the published cut."""
        domain, contract = contract.domain, self._cells[contract.domain]
        name, model = f"folded.{domain}", self._models[self._merging(domain)]
        if name in self._stored:
            return name
        verified, hourly = self._make(f"verified.{domain}"), self._make(f"hourly.{domain}")
        base = _NEVER
        if not self._contracts[domain].is_finished:
            base = self._value(f"SELECT MAX(cut) FROM {verified}") or _NEVER
        definition = f"{_time(base)} and since, as {model.body}"
        since = self._until(name, definition)
        is_new = (
            since is None
            or since > self._cuts[domain]
            or base in self._renewed[verified]
            or any(base <= hour < since for hour in self._renewed[hourly])
        )
        cells = name
        if is_new:
            of_cell = "COLUMNS(c -> c NOT IN ('cut', 'evidence_digest'))"
            cells = f"(SELECT {of_cell} FROM {verified} WHERE cut = {_time(base)})"
            if self._contracts[domain].is_finished:
                cells = f"(SELECT * EXCLUDE (log_hour) FROM {hourly} WHERE FALSE)"
        self._run(
            f"CREATE OR REPLACE TEMP TABLE moved AS SELECT * EXCLUDE (log_hour) FROM {hourly} "
            f"WHERE log_hour >= {_time(base if is_new else since)}"
        )

        def place(read: str) -> str:
            if read.startswith("verified."):
                return self._joined("SEMI", contract, cells, f"{_time(base)} AS cut, ")
            if read.startswith("hourly."):
                at = f"{_time(base)} AS log_hour, "
                if self._contracts[domain].is_finished:
                    touched = self._joined("SEMI", contract, cells, at)
                    return f"(SELECT {at}* FROM moved UNION ALL BY NAME FROM {touched})"
                return f"(SELECT {at}* FROM moved)"
            return self._ended(_time(_NEVER)) if read == "changes.watermark" else self._no_diffs(hourly)

        self._run(f"CREATE OR REPLACE TEMP TABLE merged AS {self._placed(model, place)}")
        if is_new:
            rest = self._joined("ANTI", contract, cells)
            order = ", ".join(f'"{column}"' for column in contract.grain)
            self._run(
                f"CREATE OR REPLACE TABLE {name} AS SELECT * FROM (FROM {rest} UNION ALL BY NAME FROM merged) "
                f"ORDER BY {order}"
            )
        else:
            touched = self._joined("SEMI", contract, name, "cells.rowid AS row, ")
            self._run(f"DELETE FROM {name} WHERE rowid IN (SELECT row FROM {touched})")
            self._run(f"INSERT INTO {name} BY NAME FROM merged")
        self._stored[name] = _Stored(definition, {self._cuts[domain]: None})
        counts = ", ".join(f'COUNT(*) = COUNT("{g}") AS "{g}"' for g in contract.grain)
        [is_filled] = self._rows(f"SELECT {counts} FROM {name}")
        self._filled[domain] = [g for g in contract.grain if is_filled[g]]
        return name

    @staticmethod
    def _joined(kind: str, contract: Contract, cells: str, more: str = "") -> str:
        """The cells that `moved` touches (SEMI) or does not (ANTI)."""
        same = " AND ".join(f'cells."{g}" IS NOT DISTINCT FROM moved."{g}"' for g in contract.grain)
        return f"(SELECT {more}cells.* FROM {cells} AS cells {kind} JOIN moved ON {same})"

    def _split(self, kind: str, contract: Contract, more: str = "") -> str:
        """As `_joined` for a live view, but what counts as touched is whatever agrees with `moved` in some columns.

        To merge a cell that nothing touched changes nothing, so any columns of the grain will do: those that are never
        NULL, for DuckDB prunes by an equality what it reads.
        """
        cells = self._fold(contract)
        moved = _named(f"diffs.{contract.domain}")
        same = " AND ".join(f'cells."{g}" = moved."{g}"' for g in self._filled[contract.domain]) or "TRUE"
        return f"(SELECT {more}cells.* FROM {cells} AS cells {kind} JOIN {moved} AS moved ON {same})"

    def _make(self, name: str) -> str:
        """Make what a model is published as, and before it what that reads; returns its name in the file."""
        if name in self._made:
            return name
        model = self._models[name]
        self._run(f"CREATE SCHEMA IF NOT EXISTS {model.schema}")
        if model.body is None:
            since = "TRUE"
            if model.schema == "hourly" and model.short in self._contracts:
                since = f"log_hour >= {_time(self._increments_since(model.short))}"
            self._copy(model, since)
            self._is_live[name] = False
        else:
            lives, shared = list[bool](), dict[str, str]()
            query = _with(shared, self._query(model, lives, shared))
            if "sqlmesh__" in query:  # it would be missed only when somebody asks
                raise LockstepError(f"{name} reads something in a way that publishing does not know: {query}")
            self._is_live[name] = any(lives)
            self._run(f"CREATE VIEW {name} AS {query}")
        self._made.add(name)
        return name

    def _copy(self, model: _Model, condition: str) -> None:
        """A table as the warehouse has it. Parts of it that are the same already are not written again."""
        part = next((column for column in ("cut", "log_hour") if column in model.columns), _time(_NEVER))
        rows = f"SELECT * FROM {model.relation} WHERE {condition}"
        kinds = self._rows(f"DESCRIBE {rows}")
        definition = ", ".join(f"{kind['column_name']} {kind['column_type']}" for kind in kinds)
        known = self._before.get(model.name)
        before = known.parts if known and known.definition == definition else {}
        now: dict[datetime, tuple[int, int] | None] = {
            row["part"]: (row["rows"], row["hash"])
            for row in self._rows(
                f"SELECT {part} AS part, COUNT(*) AS rows, SUM(HASH(copied)::HUGEINT) AS hash "
                f"FROM ({rows}) AS copied GROUP BY 1"
            )
        }
        gone, new = ({p for p in a if a[p] != b.get(p)} for a, b in ((before, now), (now, before)))
        if not before:
            self._run(f"CREATE OR REPLACE TABLE {model.name} AS {rows}")
        else:
            if gone:
                self._run(f"DELETE FROM {model.name} WHERE {part} IN ({', '.join(map(_time, gone))})")
            if new:
                self._run(f"INSERT INTO {model.name} {rows} AND {part} IN ({', '.join(map(_time, new))})")
        self._stored[model.name] = _Stored(definition, now)
        self._renewed[model.name] = gone | new

    def _query(self, model: _Model, lives: list[bool], shared: dict[str, str]) -> str:
        """The query of a published view, with the queries of all views that it reads in it.

        `lives` gets whether it changes without a publication. `shared` gets what is to be asked once however often it
        is mentioned: a view cannot see what a query that reads it has at hand already, so nothing reads another.
        """
        if sums := self._sums(model):
            return self._added_up(model, sums, lives, shared)
        query = self._settled(model, self._placed(model, self._live_places(model, lives, shared)))
        return self._live(model, query, shared) if self._merges(model) else query

    def _live(self, model: _Model, merged: str, shared: dict[str, str]) -> str:
        """The live model's query, asked only of the cells that the tail touches: all others are in it as they are.

        The tail is an hour and touches few cells, and merging all of them took most of the time of a query.
        """
        columns = ", ".join(f'"{column}"' for column in model.columns)
        rest = self._split("ANTI", self._contracts[model.short])
        touched = _share(shared, f"{model.name} in the tail", merged)
        return f"SELECT {columns} FROM {rest} UNION ALL SELECT {columns} FROM {touched}"

    def _sums(self, model: _Model) -> Sums | None:
        """What a mart adds up, if it adds up live cells, by the columns of at most a dimension, and does no more."""
        reads = self._reads(model)
        if model.schema != "mart" or not {name.partition(".")[0] for name in reads} <= {"mart", "dims"}:
            return None
        # Imported here: no other command needs a parser, and it takes a while to import.
        from lockstep.sums import find_sums

        sums = find_sums(model.body or "")
        if not sums or not {sums.cells, sums.dimension or sums.cells} <= {*self._names}:
            return None
        cells = self._models[self._names[sums.cells]]
        contract = self._contracts.get(cells.short)
        joins = self._reads(self._models[self._names[sums.dimension]]) if sums.dimension else []
        is_known = (
            contract is not None
            and sums.keys <= {*contract.grain}
            and sums.measures <= {*contract.measures("sum")}
            and {*joins} <= {f"changes.{table}" for table in self._tables}
        )
        return sums if is_known and self._chooses(cells) and self._serves_live(cells) else None

    def _added_up(self, model: _Model, sums: Sums, lives: list[bool], shared: dict[str, str]) -> str:
        """The query of a mart that adds up cells: its sums at the cut, and with them those of all that changed since.

        That is the signed images of the tail; and the cells whose dimension changed, taken away by what it was at the
        cut and added by what it is. What of it changed is told by its rows, so that its SQL does not matter.
        """
        contract = self._contracts[self._models[self._names[sums.cells]].short]
        cells, diffs = self._fold(contract), self._diffs(contract, lives, shared)
        was = now = None
        moved = []
        if sums.dimension:
            dimension = self._models[self._names[sums.dimension]]
            self._make(dimension.name)  # for those who look its keys up
            now = _share(shared, dimension.name, self._query(dimension, lives, shared))
            then = self._placed(dimension, lambda name: f"(SELECT * FROM {self._sealed(name.partition('.')[2])})")
            was = self._keep(f"folded.dims_{dimension.short}", then)
            moved = [_share(shared, f"{model.name} by another {dimension.name}", sums.moved(cells, was, now))]
        kept = self._keep(f"folded.mart_{model.short}", sums.over([cells], was))
        parts = [f"FROM {kept}", sums.over([diffs, *moved], now), *(sums.over([gone], was, "-") for gone in moved)]
        return sums.total(parts, self._shared_serving([contract.domain], shared))

    def _keep(self, name: str, query: str) -> str:
        """A table of what a query has at the cut, always made anew; returns its name."""
        if name not in self._stored:
            self._run(f"CREATE OR REPLACE TABLE {name} AS {query} ORDER BY ALL")
            self._stored[name] = _Stored(query, {})
        return name

    def _state(self, name: str) -> str:
        """`folded.<domain>__<table>`: how often each row is there at the published cut, by the columns that are read.

        They are sums of signed rows, so that what changed since the publication before is added to it.
        """
        [(domain, table)] = [
            (d, t) for d in self._contracts for t in self._tables if name == f"state.{d}{GENERATED}{t}"
        ]
        cut, stored = self._cuts[domain], f"folded.{domain}{GENERATED}{table}"
        if stored in self._stored:
            return stored
        columns = [quoted(c) for c in self._columns_read(self._models[f"tail.{domain}"], name)]
        read = ", ".join([*columns, "__weight"])
        rows = f"SELECT {read} FROM {self._models[name].relation}"
        kinds = ", ".join(f"{row['column_name']} {row['column_type']}" for row in self._rows(f"DESCRIBE {rows}"))
        definition = f"{self._watermark.source} from {self._watermark.started_at}: {kinds}"
        since = self._until(stored, definition)
        is_new = since is None or since > cut
        if is_new:
            hourly = self._models[f"hourly.{domain}"].relation
            since = self._value(f"SELECT MAX(log_hour) + INTERVAL 1 HOUR FROM {hourly}") or _NEVER
        signed = self._models[f"signed.{table}"].relation
        moved = f"SELECT {read} FROM {signed} WHERE __logged_at >= {_time(since)} AND __logged_at < {_time(cut)}"
        if is_new:
            moved = f"{rows} UNION ALL {moved}"
        summed = ", ".join([*columns, "SUM(__weight)::BIGINT AS __weight"])
        groups = f"GROUP BY {', '.join(columns)} " if columns else ""
        rest = f"{groups}HAVING SUM(__weight) <> 0"
        if is_new:
            self._run(f"CREATE OR REPLACE TABLE {stored} AS SELECT {summed} FROM ({moved}) {rest} ORDER BY ALL")
        else:
            self._run(f"CREATE OR REPLACE TEMP TABLE moved AS SELECT {summed} FROM ({moved}) {rest}")
            same = " AND ".join(f"rows.{c} IS NOT DISTINCT FROM moved.{c}" for c in columns) or "TRUE"
            touched = f"FROM {stored} AS rows SEMI JOIN moved ON {same}"
            self._run(f"CREATE OR REPLACE TEMP TABLE touched AS SELECT rows.rowid AS __row, rows.* {touched}")
            self._run(f"DELETE FROM {stored} WHERE rowid IN (SELECT __row FROM touched)")
            both = "FROM moved UNION ALL SELECT * EXCLUDE (__row) FROM touched"
            self._run(f"INSERT INTO {stored} SELECT {summed} FROM ({both}) {rest}")
        self._stored[stored] = _Stored(definition, {cut: None})
        return stored

    def _columns_read(self, model: _Model, name: str) -> list[str]:
        """The columns of another model that one looks at, without those that signed rows carry."""
        # Imported here: no other command needs a parser, and it takes a while to import.
        from sqlglot import exp, parse_one

        found = set()
        for read in parse_one(model.body or "", dialect="duckdb").find_all(exp.Table):
            if self._names.get(_relation(read)) == name:
                select = read.find_ancestor(exp.Select)
                assert select is not None  # a view is a query
                found |= {column.name for column in select.find_all(exp.Column)}
        return [column for column in self._models[name].columns if column in found and not column.startswith(GENERATED)]

    def _diffs(self, contract: Contract, lives: list[bool], shared: dict[str, str]) -> str:
        """What stands for the signed images of the domain's tail."""
        name = f"diffs.{contract.domain}"
        diffs = self._query(self._tail_of(contract.domain), lives, shared)
        readable = self._readable("readable_position", contract.sources, shared)
        tail = f"logged_at >= {_time(self._cuts[contract.domain])} AND position <= {readable}"
        return _share(shared, name, f"SELECT * FROM ({diffs}) AS diffs WHERE {tail}")

    def _live_places(self, model: _Model, lives: list[bool], shared: dict[str, str]) -> Place:
        """What stands for what a published view reads."""

        def place(name: str) -> str:
            schema, _, short = name.partition(".")
            read = self._models[name]
            if name == "ops.serving":
                needs_as_of = re.search(r"\.as_of\b", model.body or "") is not None
                lives.append(needs_as_of and not self._domains_are_batch(model))
                domains = self._domains(model)
                return self._shared_serving(domains, shared) if needs_as_of else self._serving(domains)
            if name == "changes.watermark":
                lives.append(True)
                return self._watermarks(shared)
            if self._chooses(model) and schema == ("verified" if self._serves_live(model) else "live"):
                return f"(SELECT * FROM {self._make(f'verified.{short}')} WHERE FALSE)"
            if schema == "state":
                at_cut = f"0::BIGINT AS __position, {_time(_NEVER)} AS __logged_at"
                return f"(SELECT *, {at_cut} FROM {self._state(name)})"
            if model.schema == "tail" and schema == "hourly":  # for the end of the last folded hour, written in below
                return f"(SELECT * FROM {self._make(name)} WHERE FALSE)"
            if self._merges(model) and schema in ("verified", "hourly", "diffs", "tail"):
                contract, cut = self._contracts[short], self._cuts[short]
                if schema == "verified":
                    return self._split("SEMI", contract, f"{_time(cut)} AS cut, ")
                if schema == "hourly" and contract.is_finished:  # the base is all hours
                    return self._split("SEMI", contract, f"{_time(cut)} AS log_hour, ")
                if schema == "hourly":  # folded into the base
                    return f"(SELECT {_time(cut)} AS log_hour, * FROM {self._fold(contract)} WHERE FALSE)"
                return self._diffs(contract, lives, shared)
            if model.schema not in ("diffs", "tail") and schema in ("signed", "diffs", "tail", "hourly"):
                raise LockstepError(
                    f"{model.name} reads {name}, which a published file has only from the published cut on, or up to "
                    "it. Have it read live or verified figures instead."
                )
            if schema == "source":
                raise LockstepError(
                    f"{model.name} reads {name}, the rows at the cut of the rebuilds, which is not published. Have it "
                    "read verified figures, or a table of rebuild."
                )
            if schema == "changes":
                if short not in self._tables:
                    raise LockstepError(
                        f"{model.name} reads {name}, which is not published. Have it read a table of the log."
                    )
                lives.append(True)
                is_tail = model.schema in ("signed", "diffs")
                return self._tail(short, shared) if is_tail else self._all(short, shared)
            if read.body is not None:
                if schema == "dims":
                    self._make(name)  # for those who look its keys up
                return f"({self._query(read, lives, shared)})"
            lives.append(False)
            return self._make(name)

        return place

    def _settled(self, model: _Model, query: str) -> str:
        """The query with what a publication has settled written in: half the time of a query went into joining it."""
        known = {}
        if self._merges(model):
            cut = _time(self._cuts[model.short])
            known = {"base.cut": cut, "folded.folded_until": cut, "readable.readable_position": _ALL_POSITIONS}
        elif model.schema == "tail":
            known = {"folded.folded_until": _time(self._cuts[model.short])}
        elif len(domains := self._domains(model)) == 1:
            row = self._served[domains[0]]
            known = {
                "serving.served_from": text(row["served_from"]),
                "serving.verified_cut": _time(row["verified_cut"]),
            }

        def replace(read: re.Match[str]) -> str:
            return known.get(f"{read[1]}.{read[2]}", read[0])

        return re.sub(r"\(SELECT (\w+)\.(\w+) AS \2 FROM \1 AS \1\)", replace, query)

    def _domains_are_batch(self, model: _Model) -> bool:
        return all(self._served[domain]["served_from"] == "rebuild" for domain in self._domains(model))

    def _serving(self, domains: Iterable[str], shared: dict[str, str] | None = None, *, with_held: bool = False) -> str:
        """The rows of `ops.serving` of some domains: what was decided stands in it, only a live `as_of` is read.

        That needs a query to share; without `shared`, for who does not look at it, `as_of` is that of the publication.
        What holds the figures is that of the publication too, unless `with_held` has it read.
        """
        rows = []
        for domain in domains:
            row = self._served[domain]
            as_of, reason = _time(row["as_of"]), text(row["reason"])
            held = text(row["held"]) if row["held"] else "NULL"
            if shared is not None:
                reads = (domain, *self._contracts[domain].reads)
                tables = sorted({table for d in reads for table in self._contracts[d].sources})
                if row["served_from"] == "live":
                    as_of = self._readable("readable_until", tables, shared)
                if with_held:
                    held = self._held(tables, shared)
                    why = text(row["reason"].removesuffix(f"; {row['held']}"))
                    reason = f"{why} || COALESCE('; ' || {held}, '')"
            rows.append(
                f"SELECT {text(domain)} AS domain, {text(row['mode'])} AS mode, "
                f"{text(row['served_from'])} AS served_from, {as_of} AS as_of, "
                f"{_time(row['verified_cut'])} AS verified_cut, {reason} AS reason, {held} AS held"
            )
        return f"({' UNION ALL '.join(rows)})"

    def _shared_serving(self, domains: list[str], shared: dict[str, str]) -> str:
        return _share(shared, f"ops.serving of {', '.join(domains)}", f"FROM {self._serving(domains, shared)}")

    def _readable(self, bound: str, tables: Iterable[str], shared: dict[str, str]) -> str:
        """Up to where live figures may include changes of all these tables: `readable_position` or `readable_until`."""
        names = ", ".join(map(text, tables))
        return f"(SELECT MIN({bound}) FROM {self._watermarks(shared)} WHERE source_table IN ({names}))"

    def _held(self, tables: Iterable[str], shared: dict[str, str]) -> str:
        """As `held` of `ops.serving`, at this moment."""
        names = ", ".join(map(text, tables))
        return (
            "(SELECT 'held since ' || MIN(held_since)::TEXT || ' by ' || ARG_MIN(held_by, readable_position) "
            f"FROM {self._watermarks(shared)} WHERE source_table IN ({names}))"
        )

    def _watermark_view(self) -> None:
        shared: dict[str, str] = {}
        watermarks = self._watermarks(shared)
        self._run(f"CREATE VIEW changes.watermark AS {_with(shared, f'FROM {watermarks}')}")

    def _serving_view(self) -> None:
        shared: dict[str, str] = {}
        serving = self._serving(self._contracts, shared, with_held=True)
        self._run(f"CREATE VIEW ops.serving AS {_with(shared, f'FROM {serving}')}")

    # -- The change log

    def _tail(self, table: str, shared: dict[str, str]) -> str:
        """The table's changes in the hours that are not folded yet, up to what is visible."""
        return f"({self._log(table, self._table_cuts[table], None, self._landing(shared))})"

    def _log(self, table: str, since: datetime | None, until: datetime | None, visible: str) -> str:
        """The query of `changes.<table>` over some hours of the log, or, without an end, of its tail."""
        files = text(self._home / "changelog" / ("" if until else TAIL) / table / "hour=*" / "*.parquet")
        bounds = [
            f"hour >= '{since or self._first_hour:%Y-%m-%dT%H}'",
            *([f"hour < '{until:%Y-%m-%dT%H}'"] if until else []),
        ]
        read = (
            f"(SELECT * FROM read_parquet({files}, hive_partitioning = TRUE, hive_types = {{'hour': VARCHAR}}) "
            f"WHERE {' AND '.join(bounds)}) AS "
        )
        model = self._models[f"changes.{table}"]
        query = self._placed(model, lambda _: visible)
        return _replaced_once(model.name, r"read_parquet\('changelog/.*?\) AS ", read, query)

    def _sealed(self, table: str) -> str:
        """`changes.__<table>_sealed`: what is sealed of a table of the log, for models that need all of it.

        It holds no more columns of the images, and no more rows, than those models look at.
        """
        name = f"changes.{GENERATED}{table}_sealed"
        if name in self._stored:
            return name
        cut = self._table_cuts[table]
        columns, condition = self._needed(table)
        definition = f"{self._watermark.source} from {self._watermark.started_at}: {columns} {condition}"
        since = self._until(name, definition)
        since = since if since and since <= cut else None
        log = f"SELECT {columns} FROM ({self._log(table, since, cut, 'changes.visible')}) AS changes WHERE {condition}"
        self._run(f"INSERT INTO {name} {log}" if since else f"CREATE OR REPLACE TABLE {name} AS {log}")
        self._stored[name] = _Stored(definition, {cut: None})
        return name

    def _all(self, table: str, shared: dict[str, str]) -> str:
        """What stands for `changes.<table>`, with the columns that its readers look at."""
        columns, _ = self._needed(table)
        tail = self._tail(table, shared)
        return f"(SELECT * FROM {self._sealed(table)} UNION ALL SELECT {columns} FROM {tail} AS changes)"

    def _mirror(self, table: str) -> None:
        """`source.<table>`: the rows of a source table up to the last change of it that is visible."""
        planned = self._models[f"source.{table}"].columns  # the declaration may be ahead of the plan
        mirror, shared, cut = Mirror(TABLES[table], planned), dict[str, str](), self._table_cuts[table]
        stored = f"folded.source{GENERATED}{table}"
        definition = f"{self._watermark.source} from {self._watermark.started_at}: {mirror.definition}"
        since = self._until(stored, definition)
        is_new = since is None or since > cut
        if is_new:
            since, partition = self._checkpoint(table, cut)
        if since != cut or is_new:
            moved = mirror.latest(self._log(table, since, cut, "changes.visible"))
            self._run(f"CREATE OR REPLACE TEMP TABLE moved AS {moved}")
        if is_new:
            checkpoint = f"{self._models[f'checkpoints.{table}'].relation} WHERE __cut = {text(partition)}"
            rows = mirror.merged(f"({mirror.rows(checkpoint)})", "moved")
            self._run(f"CREATE OR REPLACE TABLE {stored} AS {rows} ORDER BY {mirror.order()}")
        elif since != cut:
            for statement in mirror.applied(stored, "moved"):
                self._run(statement)
        self._stored[stored] = _Stored(definition, {cut: None})
        readable = self._readable("readable_position", [table], shared)
        tail = f"SELECT * FROM {self._tail(table, shared)} AS tail WHERE position <= {readable}"
        latest = _share(shared, f"latest of source.{table}", mirror.latest(tail))
        view = f"source.{quoted(table)}"
        self._run(f"CREATE VIEW {view} AS {_with(shared, mirror.merged(stored, latest))}")
        left_out = [c.name for c in TABLES[table].columns if c.is_personal and c not in mirror.columns]
        said = f"The rows of {table} as of the last change that this file shows"
        said += f", without personal data ({', '.join(left_out)})" if left_out else ""
        self._run(f"COMMENT ON VIEW {view} IS {text(said)}")

    def _checkpoint(self, table: str, cut: datetime) -> tuple[datetime | None, str]:
        """The newest checkpoint of a table up to a cut, and its partition; without one None, and none that there is."""
        found: tuple[datetime | None, str] = self._connection.execute(
            f"SELECT MAX(cut), COALESCE(ARG_MAX(partition, cut), '') FROM {self._models['ops.checkpoints'].relation} "
            f"WHERE source_table = {text(table)} AND cut <= {_time(cut)}"
        ).fetchall()[0]
        return found

    def _readers_of_the_log(self, marts: list[str]) -> dict[str, list[_Model]]:
        """For each table of the log the models that read all of it, not by way of live figures."""
        readers: dict[str, list[_Model]] = {}
        waiting, seen = list(marts), set(marts)
        while waiting:
            model = self._models[waiting.pop()]
            for name in self._reads(model):
                if name.startswith("changes.") and name.partition(".")[2] in self._tables:
                    readers.setdefault(name.partition(".")[2], []).append(model)
                elif name not in seen and not name.startswith(
                    ("live.", "diffs.", "tail.", "signed.", "changes.", "ops.")
                ):
                    seen.add(name)
                    waiting.append(name)
        return readers

    def _needed(self, table: str) -> tuple[str, str]:
        """The columns, and the condition on rows, of what the readers of a table look at."""
        # Imported here: no other command needs a parser, and it takes a while to import.
        from sqlglot import exp, parse_one

        fields: dict[str, set[str]] = {"before": set(), "after": set()}
        whole: set[str] = set()
        conditions = set()
        for model in self._readers[table]:
            for read in parse_one(model.body or "", dialect="duckdb").find_all(exp.Table):
                if self._names.get(_relation(read)) != f"changes.{table}":
                    continue
                select = read.find_ancestor(exp.Select)
                assert select is not None  # a view is a query
                for column in select.find_all(exp.Column):
                    if column.name in fields:
                        use = column.parent
                        if isinstance(use, exp.StructExtract):
                            fields[column.name].add(use.expression.name)
                        elif not isinstance(use, exp.Is):
                            whole.add(column.name)
                where = select.args.get("where")
                parts = where.this.unnest().flatten() if where and isinstance(where.this.unnest(), exp.And) else []
                parts = [where.this] if where and not parts else parts
                fixed = [part.copy() for part in parts if not part.find(exp.Select)]
                for column in (c for part in fixed for c in part.find_all(exp.Column)):
                    column.set("table", None)
                conditions.add(" AND ".join(part.sql("duckdb") for part in fixed) or "TRUE")
        images = {}
        for image, names in fields.items():
            kept = [c.name for c in TABLES[table].columns if c.name in names]
            values = ", ".join(f"{text(name)}: {image}.{quoted(name)}" for name in kept) or "'is_there': TRUE"
            images[image] = (
                image if image in whole else f"CASE WHEN {image} IS NOT NULL THEN {{{values}}} END AS {image}"
            )
        columns = ["position", "logged_at", "committed_at", "op", images["before"], images["after"], "tx_id", "lsn"]
        return ", ".join(columns), " OR ".join(f"({c})" for c in sorted(conditions))

    # -- Time travel

    def _time_travel(self, model: _Model) -> None:
        """`<mart>_as_of(moment)`: the mart as a live reader saw it at a past cut."""
        used: list[str] = []
        query = self._past(model, used)
        domains = [name.partition(".")[2] for name in used if name.startswith("live.")]
        tables = [name.partition(".")[2] for name in used if name.startswith("changes.")]
        generations = [n for n in used if n.startswith("verified.") and n.partition(".")[2] in self._contracts]
        lower = [self._first_hour, *(self._increments_since(domain) for domain in domains)]
        for name in generations:
            lower += [self._value(f"SELECT MIN(cut) FROM {name}") or _NEVER]
        upper = [*(self._cuts[domain] for domain in domains), *(self._table_cuts[table] for table in tables)]
        first, last = max(lower), min(upper, default=min(self._cuts.values()))
        past = f"{model.name}_as_of reaches from {first:%Y-%m-%d %H:%M} to {last:%Y-%m-%d %H:%M} (UTC), not to "
        self._run(
            f"CREATE MACRO {model.name}_as_of(moment) AS TABLE "
            "SELECT figures.* FROM (SELECT CASE "
            f"WHEN {_MOMENT} IS NULL THEN error({text(f'{model.name}_as_of needs a time.')}) "
            f"WHEN {_MOMENT} <> date_trunc('hour', {_MOMENT}) "
            f"THEN error({text('Cuts lie between two hours, give a full hour and not ')} || {_MOMENT}) "
            f"WHEN {_MOMENT} < {_time(first)} OR {_MOMENT} > {_time(last)} THEN error({text(past)} || {_MOMENT}) "
            f"ELSE TRUE END AS is_cut) AS checked, ({query}) AS figures WHERE checked.is_cut"
        )

    def _past(self, model: _Model, used: list[str]) -> str:
        """The model's query as of the macro's `moment`; `used` gets what it stands on."""

        def place(name: str) -> str:
            schema, _, short = name.partition(".")
            if name == "ops.serving":
                return self._past_serving(self._domains(model))
            if name == "changes.watermark":
                return self._ended(_MOMENT)
            if schema == "changes":
                used.append(name)
                return f"(SELECT * FROM {self._sealed(short)} WHERE logged_at < {_MOMENT})"
            if self._chooses(model) and schema == "verified":
                return f"(SELECT * FROM {self._make(name)} WHERE FALSE)"
            if self._merges(model):
                hourly = self._make(f"hourly.{short}")
                if schema == "verified":
                    return f"(SELECT * FROM {self._make(name)} WHERE cut <= {_MOMENT})"
                if schema == "hourly":
                    return f"(SELECT * FROM {hourly} WHERE log_hour < {_MOMENT})"
                return self._no_diffs(hourly)
            if self._models[name].body is None:
                used.append(name)
                return self._make(name)
            if schema == "live":
                used.append(name)
            return f"({self._past(self._models[name], used)})"

        return self._placed(model, place)

    def _past_serving(self, domains: list[str]) -> str:
        """Time travel takes the live path: verified up to the moment, and the increments from there."""
        return "({})".format(
            " UNION ALL ".join(
                f"SELECT {text(domain)} AS domain, 'live' AS served_from, {_MOMENT} AS as_of, "
                f"(SELECT MAX(cut) FROM {self._make(f'verified.{domain}')} WHERE cut <= {_MOMENT}) AS verified_cut"
                for domain in domains
            )
        )

    @staticmethod
    def _no_diffs(hourly: str) -> str:
        return f"(SELECT 0 AS position, log_hour AS logged_at, * EXCLUDE (log_hour) FROM {hourly} WHERE FALSE)"

    def _ended(self, moment: str) -> str:
        """What stands for `changes.watermark` at a cut: all that was logged before it can be read."""
        tables = ", ".join(text(table) for table in self._tables)
        until = f"{moment} - INTERVAL 1 MICROSECOND AS readable_until, {_ALL_POSITIONS} AS readable_position"
        return f"(SELECT UNNEST([{tables}]) AS source_table, {until})"

    # -- What tells about it

    def _describe(self) -> None:
        """The comments of models and their columns, as the warehouse has them."""
        kinds = {
            f"{schema}.{name}": kind
            for schema, name, kind in self._connection.execute(
                "SELECT schema_name, table_name, 'TABLE' FROM duckdb_tables() WHERE database_name = current_database() "
                "UNION ALL SELECT schema_name, view_name, 'VIEW' FROM duckdb_views() "
                "WHERE database_name = current_database() AND NOT internal"
            ).fetchall()
        }
        statements = []
        for name, model in self._models.items():
            if name in kinds and model.schema != "source":  # what the warehouse says of source is of another moment
                if model.comment:
                    statements.append(f"COMMENT ON {kinds[name]} {name} IS {text(_one_line(model.comment))}")
                for column, comment in model.columns.items():
                    if comment:
                        statements.append(f'COMMENT ON COLUMN {name}."{column}" IS {text(comment)}')
        self._run("; ".join(statements))

    def _about(self, marts: list[str]) -> None:
        """`about`: one row per mart."""
        receipts = {
            row["domain"]: row
            for row in self._rows(
                f"SELECT * FROM {self._models['reconcile.receipts'].relation} "
                "QUALIFY ROW_NUMBER() OVER (PARTITION BY domain ORDER BY sequence DESC) = 1"
            )
        }
        reads = f"{self._home / 'changelog'}; if it has moved, `lockstep publish` there"
        for name in marts:
            model = self._models[name]
            domain = next(iter(self._all_domains(model)), None)
            contract = self._contracts.get(domain or "")
            served, receipt = self._served.get(domain or "", {}), receipts.get(domain or "", {})
            is_live = self._is_live[name]
            cut = self._cuts[domain] if domain else self.needed_hour
            always = "always live: events" if is_live else "daily by design: always from the last verified rebuild"
            decided = bool(served) and (is_live or served["served_from"] == "rebuild")
            served_from = served["served_from"] if decided else "live" if is_live else "rebuild"
            self.about.append(
                {
                    "mart": name,
                    "domain": domain,
                    "owner": contract.owner if contract else None,
                    "is_live": is_live,
                    "served_from": served_from,
                    "reason": served["reason"] if decided else always,
                    "cut": cut,
                    "as_of": served.get("as_of") if is_live else served.get("verified_cut"),
                    "receipt": receipt.get("verdict"),
                    "receipt_cut": receipt.get("cut"),
                    "reconciled_at": receipt.get("reconciled_at"),
                    "freshness_seconds": contract.freshness_seconds if contract and served_from == "live" else None,
                    "query": f"SELECT * FROM {name}",
                    "as_it_was": f"SELECT * FROM {name}_as_of({_time(cut)})",
                    "reads": reads if is_live else None,
                    "published_at": _now(),
                }
            )
        self._run("CREATE TABLE about ({})".format(", ".join(f"{name} {kind}" for name, (kind, _) in ABOUT.items())))
        for row in self.about:
            values = ", ".join("NULL" if row[name] is None else text(row[name]) for name in ABOUT)
            self._run(f"INSERT INTO about VALUES ({values})")
        self._run("COMMENT ON TABLE about IS 'What this file holds: one row per mart'")
        for column, (_, comment) in ABOUT.items():
            self._run(f"COMMENT ON COLUMN about.{column} IS {text(comment)}")

    def _all_domains(self, model: _Model) -> list[str]:
        """The domains of a mart, its own or those of the marts it reads."""
        own = self._domains(model)
        return own or [
            d for name in self._reads(model) if name.startswith("mart.") for d in self._all_domains(self._models[name])
        ]

    # -- SQL

    def _run(self, statement: str) -> None:
        self._connection.execute(statement)

    def _value(self, query: str) -> Any:
        return self._connection.execute(query).fetchall()[0][0]

    def _rows(self, query: str) -> list[Row]:
        return warehouse.rows(self._connection, query)


ABOUT = {
    "mart": ("TEXT", "What to query"),
    "domain": ("TEXT", "Domain whose contract it is under; NULL for events, which are no figures"),
    "owner": ("TEXT", "Who answers for it"),
    "is_live": ("BOOLEAN", "Whether it shows changes that landed after the publication"),
    "served_from": ("TEXT", "live or rebuild, as the evidence allowed when this file was published"),
    "reason": ("TEXT", "Why it is served from there"),
    "cut": ("TIMESTAMP", "Up to where the log is folded into this file; a live mart reads the rest from the log"),
    "as_of": ("TIMESTAMP", "As of when the figures were at publication; a live mart tells its own in as_of"),
    "receipt": ("TEXT", "Verdict of the last receipt"),
    "receipt_cut": ("TIMESTAMP", "Cut that it is of"),
    "reconciled_at": ("TIMESTAMP", "When it was made"),
    "freshness_seconds": ("BIGINT", "How old live figures may be, by the contract"),
    "query": ("TEXT", "How to read it"),
    "as_it_was": ("TEXT", "How to read it as it was at a past hour"),
    "reads": ("TEXT", "Where a live mart finds the change log, and what to do if it is not there any more"),
    "published_at": ("TIMESTAMP", "When this file was made"),
}

_MOMENT = "CAST(moment AS TIMESTAMP)"


def _body(sql: str) -> str:
    """The query of a CREATE VIEW statement as DuckDB's catalog has it."""
    match = re.match(r"CREATE VIEW \S+ (?:\((?:[^()]|\([^()]*\))*\) )?AS (.*);\s*$", sql, re.DOTALL)
    if not match:
        raise LockstepError(f"The warehouse has a view that publishing cannot read: {sql[:200]}")
    # DuckDB prints CROSS JOIN as a comma, which binds otherwise when it is read again with a join after it.
    return re.sub(r"('(?:[^']|'')*'|\"[^\"]*\")| , ", lambda found: found[1] or " CROSS JOIN ", match[1])


def _replaced_once(name: str, pattern: str, replacement: str, query: str) -> str:
    found, count = re.subn(pattern, lambda _: replacement, query, flags=re.DOTALL)
    if count != 1:
        raise LockstepError(
            f"{name} does not read the change log in one place, as publishing needs it to: {query[:200]}"
        )
    return found


def _named(model: str) -> str:
    """A name that no query can have given to something else by itself."""
    return f'"{model}"'


def _share(shared: dict[str, str], model: str, query: str) -> str:
    """Have a query shared as what stands for a model; returns the name that it is mentioned by."""
    shared.setdefault(model, query)
    return _named(model)


def _with(shared: dict[str, str], query: str) -> str:
    """The query behind those that it shares, of which DuckDB asks each once if it is mentioned more than once.

    What a reader selects by gets into the query, and so do the filters of the joins in it. Of what is mentioned more
    than once all columns are read, also those that nobody asks for.
    """
    asked = ", ".join(f"{_named(model)} AS ({shared[model]})" for model in shared)
    return f"WITH {asked} SELECT * FROM ({query})" if asked else query


def _relation(table: Any) -> str:
    return f"{table.catalog}.{table.db}.{table.name}"


def _one_line(text: str) -> str:
    return re.sub(r"\s*\n\s*", " ", text.strip())


def _time(at: datetime | None) -> str:
    return f"TIMESTAMP '{at.isoformat(sep=' ')}'" if at else "NULL::TIMESTAMP"


def _now() -> datetime:
    return datetime.now(UTC).replace(tzinfo=None)
