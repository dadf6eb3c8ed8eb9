"""What a publication has at its cut: the cells of each domain, and the rows of the tables that domains join.

- `folded.<domain>`: the cells up to the published cut; a publication takes in the hours since the one before.
- `folded.<domain>__<table>`: the rows of a table that a domain joins, at that cut; likewise. A recomputed domain
  has one of a table whose mirror lacks what it reads.
- `folded.source__<table>`: the rows of a source table at that cut, for its live mirror; likewise.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime

from lockstep.contracts import Contract
from lockstep.mirror import Mirror
from lockstep.names import CORE, GENERATED, KEY_OF_CELLS
from lockstep.published import sql
from lockstep.published.cuts import Cuts
from lockstep.published.file import NEVER, File, Shared, Stored, time
from lockstep.published.log import Log
from lockstep.published.models import Model, Models
from lockstep.published.sql import Reading, Tree
from lockstep.schema import TABLES, quoted
from lockstep.warehouse import text


@dataclass
class Cells:
    file: File
    models: Models
    cuts: Cuts
    log: Log
    contracts: Mapping[str, Contract]
    _same: dict[str, list[str]] = field(default_factory=dict)  # by domain, when a cell counts as touched

    def _contract_of_cells(self, contract: Contract) -> Contract:
        """The contract with the grain of the cells that are merged, be it below a finish."""
        if not contract.is_finished:
            return contract
        columns = self.models[f"cells.{contract.domain}"].columns
        return replace(contract, grain=tuple(c for c in columns if c.startswith(KEY_OF_CELLS)))

    def merging(self, domain: str) -> Model:
        """The model that merges the domain's cells."""
        return self.models[f"cells.{domain}" if self.contracts[domain].is_finished else f"live.{domain}"]

    def merges(self, model: Model) -> bool:
        contract = self.contracts.get(model.short)
        return contract is not None and not contract.is_recomputed and model.name == self.merging(model.short).name

    # -- Tables of the warehouse

    def table(self, model: Model) -> str:
        """Have a table of the warehouse in the file; returns its name there."""
        if model.name not in self.file.stored:
            since = "TRUE"
            if model.schema == "hourly" and model.short in self.contracts:
                since = f"log_hour >= {time(self.cuts.increments_since(model.short))}"
            self.file.run(f"CREATE SCHEMA IF NOT EXISTS {quoted(model.schema)}")
            self.file.copy(model, since)
        return sql.named(model.name)

    # -- Cells

    def fold(self, domain: str) -> str:
        """`folded.<domain>`: verified plus increments: the cells of a generation at the published cut."""
        name, model, contract = (
            f"folded.{domain}",
            self.merging(domain),
            self._contract_of_cells(self.contracts[domain]),
        )
        if name in self.file.stored:
            return name
        is_finished = self.contracts[domain].is_finished
        verified = self.table(self.models[f"verified.{domain}"])
        hourly = self.table(self.models[f"hourly.{domain}"])
        base = NEVER
        if not is_finished:
            base = self.file.value(f"SELECT MAX(cut) FROM {verified}") or NEVER
        definition = f"{time(base)} and since, as {model.text}"
        since = self.file.until(name, definition)
        is_new = (
            since is None
            or since > self.cuts.of[domain]
            or base in self.file.renewed[f"verified.{domain}"]
            or any(base <= hour < since for hour in self.file.renewed[f"hourly.{domain}"])
        )
        cells = name
        if is_new:
            of_cell = "COLUMNS(c -> c NOT IN ('cut', 'evidence_digest'))"
            cells = f"(SELECT {of_cell} FROM {verified} WHERE cut = {time(base)})"
            if is_finished:
                cells = f"(SELECT * EXCLUDE (log_hour) FROM {hourly} WHERE FALSE)"
        self.file.run(
            f"CREATE OR REPLACE TEMP TABLE moved AS SELECT * EXCLUDE (log_hour) FROM {hourly} "
            f"WHERE log_hour >= {time(base if is_new else since)}"
        )

        def place(read: str) -> str:
            if read.startswith("verified."):
                return self._joined("SEMI", contract, cells, f"{time(base)} AS cut, ")
            if read.startswith("hourly."):
                at = f"{time(base)} AS log_hour, "
                if is_finished:
                    touched = self._joined("SEMI", contract, cells, at)
                    return f"(SELECT {at}* FROM moved UNION ALL BY NAME FROM {touched})"
                return f"(SELECT {at}* FROM moved)"
            return self.no_diffs(domain)

        def item(read: str, _: Reading) -> Tree:
            return self.log.ended(time(NEVER)) if read == "changes.watermark" else sql.item(place(read))

        merged = sql.text(self.models.placed(model, item))
        self.file.run(f"CREATE OR REPLACE TEMP TABLE merged AS {merged}")
        if is_new:
            rest = self._joined("ANTI", contract, cells)
            order = ", ".join(map(quoted, contract.grain))
            self.file.run(
                f"CREATE OR REPLACE TABLE {name} AS SELECT * FROM (FROM {rest} UNION ALL BY NAME FROM merged) "
                f"ORDER BY {order}"
            )
        else:
            touched = self._joined("SEMI", contract, name, "cells.rowid AS row, ")
            self.file.run(f"DELETE FROM {name} WHERE rowid IN (SELECT row FROM {touched})")
            self.file.run(f"INSERT INTO {name} BY NAME FROM merged")
        self.file.stored[name] = Stored(definition, {self.cuts.of[domain]: None})
        self._same[domain] = self._agreement(name, contract.grain)
        return name

    def _agreement(self, name: str, grain: Sequence[str]) -> list[str]:
        """In which columns a cell agrees with what touches it: those that are never NULL.

        Of several sets of cells each has keys of its own, which are NULL in the others: so the first key of each, too.
        Without them any change of a set would touch all of its cells.
        """
        counts = ", ".join(f"COUNT(*) = COUNT({quoted(g)}) AS {quoted(g)}" for g in grain)
        by_set = f" GROUP BY {quoted(CORE)}" if CORE in grain else ""
        sets = self.file.rows(f"SELECT {counts} FROM {name}{by_set}")
        compared = {g: "=" for g in grain if all(filled[g] for filled in sets)}
        for filled in sets:
            own = [g for g in grain if filled[g] and g != CORE]
            if own:
                compared.setdefault(own[0], "IS NOT DISTINCT FROM")
        return [f"cells.{quoted(g)} {same} moved.{quoted(g)}" for g, same in compared.items()]

    @staticmethod
    def _joined(kind: str, contract: Contract, cells: str, more: str = "") -> str:
        """The cells that `moved` touches (SEMI) or does not (ANTI)."""
        same = " AND ".join(f"cells.{quoted(g)} IS NOT DISTINCT FROM moved.{quoted(g)}" for g in contract.grain)
        return f"(SELECT {more}cells.* FROM {cells} AS cells {kind} JOIN moved ON {same})"

    def split(self, kind: str, domain: str, moved: str, more: str = "") -> str:
        """As `_joined` for a live view, but what counts as touched is whatever agrees with `moved` in some columns.

        To merge a cell that nothing touched changes nothing, so any columns of the grain will do: those that are never
        NULL, for DuckDB prunes by an equality what it reads.
        """
        cells = self.fold(domain)
        same = " AND ".join(self._same[domain]) or "TRUE"
        return f"(SELECT {more}cells.* FROM {cells} AS cells {kind} JOIN {moved} AS moved ON {same})"

    def no_diffs(self, domain: str) -> str:
        """SQL for a domain's signed rows where there are none: their columns, without a row."""
        hourly = self.table(self.models[f"hourly.{domain}"])
        return f"(SELECT 0 AS position, log_hour AS logged_at, * EXCLUDE (log_hour) FROM {hourly} WHERE FALSE)"

    # -- Rows

    def state(self, name: str) -> str:
        """`folded.<domain>__<table>`: how often each row is there at the published cut, by the columns that are read.

        They are sums of signed rows, so that what changed since the publication before is added to it.
        """
        [(domain, table)] = [
            (d, t) for d in self.contracts for t in self.log.tables if name == f"state.{d}{GENERATED}{t}"
        ]
        cut, stored = self.cuts.of[domain], f"folded.{domain}{GENERATED}{table}"
        if stored in self.file.stored:
            return stored
        if self.contracts[domain].is_recomputed:  # the model has just the columns that are read
            columns = [quoted(c) for c in self.models[name].columns]
        else:
            columns = [quoted(c) for c in self._columns_read(self.models[f"tail.{domain}"], name)]
        read = ", ".join([*columns, "__weight"])
        checkpointed_at, partition = (NEVER, "") if TABLES[table].is_append_only else self._checkpoint(table, cut)
        rows = (
            f"SELECT {', '.join([*columns, '1 AS __weight'])} FROM {self.models[f'checkpoints.{table}'].relation} "
            f"WHERE __cut = {text(partition)}"
        )
        kinds = ", ".join(f"{row['column_name']} {row['column_type']}" for row in self.file.rows(f"DESCRIBE {rows}"))
        definition = f"{self.log.identity}: {kinds}"
        since = self.file.until(stored, definition)
        is_new = since is None or since > cut
        if is_new:
            since = checkpointed_at or NEVER
        signed = self.models[f"signed.{table}"].relation
        moved = f"SELECT {read} FROM {signed} WHERE __logged_at >= {time(since)} AND __logged_at < {time(cut)}"
        if is_new:
            moved = f"{rows} UNION ALL {moved}"
        summed = ", ".join([*columns, "SUM(__weight)::BIGINT AS __weight"])
        groups = f"GROUP BY {', '.join(columns)} " if columns else ""
        rest = f"{groups}HAVING SUM(__weight) <> 0"
        if is_new:
            self.file.run(f"CREATE OR REPLACE TABLE {stored} AS SELECT {summed} FROM ({moved}) {rest} ORDER BY ALL")
        else:
            self.file.run(f"CREATE OR REPLACE TEMP TABLE moved AS SELECT {summed} FROM ({moved}) {rest}")
            same = " AND ".join(f"rows.{c} IS NOT DISTINCT FROM moved.{c}" for c in columns) or "TRUE"
            touched = f"FROM {stored} AS rows SEMI JOIN moved ON {same}"
            self.file.run(f"CREATE OR REPLACE TEMP TABLE touched AS SELECT rows.rowid AS __row, rows.* {touched}")
            self.file.run(f"DELETE FROM {stored} WHERE rowid IN (SELECT __row FROM touched)")
            both = "FROM moved UNION ALL SELECT * EXCLUDE (__row) FROM touched"
            self.file.run(f"INSERT INTO {stored} SELECT {summed} FROM ({both}) {rest}")
        self.file.stored[stored] = Stored(definition, {cut: None})
        return stored

    def _columns_read(self, model: Model, name: str) -> list[str]:
        """The columns of another model that one may look at, without those that signed rows carry."""
        readings = [r for r in self.models.readings(model) if self.models.name(model, r) == name]
        found = [sql.mentioned(reading) for reading in readings]
        columns = [c for c in self.models[name].columns if not c.startswith(GENERATED)]
        return [c for c in columns if any(names is None or c.lower() in names for names in found)]

    def mirror(self, table: str) -> None:
        """`source.<table>`: the rows of a source table up to the last change of it that is visible."""
        shared, mirror = Shared(), self._mirror(table)
        self.file.view(f"source.{table}", shared.around(self.mirrored(table, [table], shared)))
        left_out = [c.name for c in TABLES[table].columns if c.is_personal and c not in mirror.columns]
        said = f"The rows of {table} as of the last change that this file shows"
        said += f", without personal data ({', '.join(left_out)})" if left_out else ""
        self.file.run(f"COMMENT ON VIEW source.{quoted(table)} IS {text(said)}")

    def mirrored(self, table: str, readable: Iterable[str], shared: Shared) -> Tree:
        """The query of what `source.<table>` shows, up to the last change that can be read of all `readable` tables."""
        mirror, stored = self._mirror(table), self._mirrored_at_cut(table)
        until = self.log.readable("readable_position", readable, shared)
        tail = sql.fill(f"SELECT * FROM tail WHERE position <= {until}", tail=self.log.tail(table, shared))
        latest = sql.fill(mirror.latest("FROM tail"), tail=tail)
        what = f"latest of source.{table} up to {', '.join(readable)}"
        return sql.parse(mirror.merged(stored, shared.name(what, latest)))

    def is_mirrored(self, table: str, columns: Iterable[str]) -> bool:
        """Whether `source.<table>` has these columns as they are."""
        personal = {column.name for column in TABLES[table].columns if column.is_personal}
        return TABLES[table].is_mirrored and not personal & {*columns}

    def _mirror(self, table: str) -> Mirror:
        return Mirror(TABLES[table], self.models[f"source.{table}"].columns)  # the declaration may be ahead of the plan

    def _mirrored_at_cut(self, table: str) -> str:
        """`folded.source__<table>`: the rows that `source.<table>` has at the published cut."""
        mirror, cut = self._mirror(table), self.cuts.of_table[table]
        name = f"folded.source{GENERATED}{table}"
        stored = f"folded.{quoted(f'source{GENERATED}{table}')}"
        if name in self.file.stored:
            return stored
        definition = f"{self.log.identity}: {mirror.definition}"
        since = self.file.until(name, definition)
        is_new = since is None or since > cut
        if is_new:
            since, partition = self._checkpoint(table, cut)
        if since != cut or is_new:
            moved = mirror.latest(sql.text(self.log.changes(table, since, cut)))
            self.file.run(f"CREATE OR REPLACE TEMP TABLE moved AS {moved}")
        if is_new:
            checkpoint = f"{self.models[f'checkpoints.{table}'].relation} WHERE __cut = {text(partition)}"
            rows = mirror.merged(f"({mirror.rows(checkpoint)})", "moved")
            self.file.run(f"CREATE OR REPLACE TABLE {stored} AS {rows} ORDER BY {mirror.order()}")
        elif since != cut:
            for statement in mirror.applied(stored, "moved"):
                self.file.run(statement)
        self.file.stored[name] = Stored(definition, {cut: None})
        return stored

    def _checkpoint(self, table: str, cut: datetime) -> tuple[datetime | None, str]:
        """The newest checkpoint of a table up to a cut, and its partition; without one None, and none that there is."""
        found: tuple[datetime | None, str] = self.file.connection.execute(
            f"SELECT MAX(cut), COALESCE(ARG_MAX(partition, cut), '') FROM {self.models['ops.checkpoints'].relation} "
            f"WHERE source_table = {text(table)} AND cut <= {time(cut)}"
        ).fetchall()[0]
        return found
