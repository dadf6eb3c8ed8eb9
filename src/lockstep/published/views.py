"""What models are published as.

A published view has the queries of all views that it reads in its own, and reads no other. So what several of them
mention is asked once: a view could not see what the query around it already has.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from lockstep.mirror import added_up
from lockstep.names import GENERATED
from lockstep.published import sql
from lockstep.published.file import NEVER, Shared, time
from lockstep.published.log import ALL_POSITIONS
from lockstep.published.models import Model, UnpublishableError
from lockstep.published.parts import Parts
from lockstep.published.serving import NAME as SERVING
from lockstep.published.sql import Reading, Tree
from lockstep.published.sums import Sums, find_sums
from lockstep.schema import quoted

_SETTLED = {"served_from": None, "verified_cut": None}


@dataclass
class Views(Parts):
    is_live: dict[str, bool] = field(default_factory=dict)  # of what is made, whether it changes without a publication
    _queries: dict[str, tuple[Tree, list[bool], Shared]] = field(default_factory=dict)

    def make(self, name: str) -> str:
        """Make what a model is published as, and before it what that reads; returns its name in the file."""
        if name in self.is_live:
            return sql.named(name)
        model = self.models[name]
        if model.is_view:
            lives, shared = list[bool](), Shared()
            query = shared.around(self.query(model, lives, shared))
            self.file.run(f"CREATE SCHEMA IF NOT EXISTS {quoted(model.schema)}")
            self.file.view(name, query, list(model.columns))
            self.is_live[name] = any(lives)
        else:
            self.cells.table(model)
            self.is_live[name] = False
        return sql.named(name)

    def query(self, model: Model, lives: list[bool], shared: Shared) -> Tree:
        """The query of a published view. `lives` gets whether it changes without a publication."""
        if model.name not in self._queries:
            own_lives, own = list[bool](), Shared()
            self._queries[model.name] = self._compose(model, own_lives, own), own_lives, own
        query, more_lives, more = self._queries[model.name]
        lives += more_lives
        for name, asked in more.items():
            shared.setdefault(name, asked)
        return query

    def _compose(self, model: Model, lives: list[bool], shared: Shared) -> Tree:
        if sums := self._sums(model):
            return self._added_up(model, sums, lives, shared)

        def place(name: str, reading: Reading) -> Tree:
            return self._place(model, name, reading, lives, shared)

        merges = self.cells.merges(model)
        query = self.models.placed(model, place, lambda tree: self._settled(model, tree))
        return self._live(model, query, shared) if merges else query

    def _place(self, model: Model, name: str, reading: Reading, lives: list[bool], shared: Shared) -> Tree:
        """The query for a model that a published view reads."""
        schema, _, short = name.partition(".")
        read = self.models[name]
        if name == SERVING:
            return self.serving.place(reading, lives, shared)
        if name == "changes.watermark":
            lives.append(True)
            return sql.item(self.log.watermarks(shared))
        if schema == "state" and model.schema == "live":
            lives.append(True)
            own = Shared() if reading.may_be_correlated else shared
            rows = self._rows(model.short, read, lives, own)
            return sql.subquery(own.around(rows) if reading.may_be_correlated else rows)
        if schema == "state":
            at_cut = f"0::BIGINT AS __position, {time(NEVER)} AS __logged_at"
            return sql.item(f"(SELECT *, {at_cut} FROM {self.cells.state(name)})")
        if model.schema == "tail" and schema == "hourly":  # for the end of the last folded hour, which is written in
            return sql.subquery(read.empty())
        if self.cells.merges(model) and schema in ("verified", "hourly", "diffs", "tail"):
            cut = time(self.cuts.of[short])
            if schema in ("diffs", "tail"):
                return sql.item(self._diffs(short, lives, shared))
            if schema == "verified":
                return sql.item(self.cells.split("SEMI", short, _diffs_of(short), f"{cut} AS cut, "))
            if self.contracts[short].is_finished:  # the base is all hours
                return sql.item(self.cells.split("SEMI", short, _diffs_of(short), f"{cut} AS log_hour, "))
            return sql.item(f"(SELECT {cut} AS log_hour, * FROM {self.cells.fold(short)} WHERE FALSE)")  # in the base
        if model.schema == "tail" and schema == "signed":  # each term of the join reads it
            return sql.item(shared.name(f"{name} in the tail", self.query(read, lives, shared)))
        if model.schema not in ("diffs", "tail") and schema in ("signed", "diffs", "tail", "hourly"):
            raise UnpublishableError(
                f"{model.name} reads {name}, which a published file has only from the published cut on, or up to it. "
                "Have it read live or verified figures instead."
            )
        if schema == "source":
            raise UnpublishableError(
                f"{model.name} reads {name}, the rows at the cut of the rebuilds, which is not published. Have it read "
                "verified figures, or a table of rebuild."
            )
        if schema == "changes":
            if short not in self.log.tables:
                raise UnpublishableError(
                    f"{model.name} reads {name}, which is not published. Have it read a table of the log."
                )
            lives.append(True)
            if model.schema in ("signed", "diffs"):
                return sql.subquery(self.log.tail(short, shared))
            return self.log.whole(short, shared)
        if read.is_view:
            if schema == "dims":
                self.make(name)  # for those who look its keys up
            if reading.may_be_correlated:  # DuckDB does not correlate what shares something with the query around it
                own = Shared()
                return sql.subquery(own.around(self.query(read, lives, own)))
            return sql.subquery(self.query(read, lives, shared))
        lives.append(False)
        return sql.item(self.cells.table(read))

    # -- Live figures

    def _rows(self, domain: str, state: Model, lives: list[bool], shared: Shared) -> Tree:
        """The rows of a table that a recomputed domain reads: those of its mirror, or what signed rows add up to."""
        table, sources = state.short.removeprefix(f"{domain}{GENERATED}"), self.contracts[domain].sources
        columns = ", ".join(map(quoted, state.columns))
        if self.cells.is_mirrored(table, state.columns):
            mirrored = self.cells.mirrored(table, sources, shared)
            return sql.fill(f"SELECT {columns} FROM mirrored", mirrored=mirrored)
        readable = self.log.readable("readable_position", sources, shared)
        since = f"__logged_at >= {time(self.cuts.of[domain])} AND __position <= {readable}"
        signed = self.query(self.models[f"signed.{table}"], lives, shared)
        tail = sql.fill(f"SELECT {columns}, __weight FROM signed WHERE {since}", signed=signed)
        moved = shared.name(f"{state.name} in the tail", tail)
        return sql.parse(added_up(state.columns, self.cells.state(state.name), moved))

    def _diffs(self, domain: str, lives: list[bool], shared: Shared) -> str:
        """The query for the signed images of the domain's tail."""
        diffs = self.query(self.cuts.tail_of(domain), lives, shared)
        readable = self.log.readable("readable_position", self.contracts[domain].sources, shared)
        tail = f"logged_at >= {time(self.cuts.of[domain])} AND position <= {readable}"
        return shared.name(f"diffs.{domain}", sql.fill(f"SELECT * FROM diffs WHERE {tail}", diffs=diffs))

    def _live(self, model: Model, merged: Tree, shared: Shared) -> Tree:
        """The live model's query, asked only of the cells that the tail touches: all others are in it as they are.

        The tail is an hour and touches few cells, and merging all of them took most of the time of a query.
        """
        columns = ", ".join(map(quoted, model.columns))
        rest = self.cells.split("ANTI", model.short, _diffs_of(model.short))
        touched = shared.name(f"{model.name} in the tail", merged)
        return sql.parse(f"SELECT {columns} FROM {rest} UNION ALL SELECT {columns} FROM {touched}")

    def _settled(self, model: Model, tree: Tree) -> Tree:
        """The query with what a publication has settled written in."""
        known = {}
        if self.cells.merges(model):
            cut = time(self.cuts.of[model.short])
            known = {
                ("base", "cut"): cut,
                ("folded", "folded_until"): cut,
                ("readable", "readable_position"): ALL_POSITIONS,
            }
        elif model.schema == "tail":
            known = {("folded", "folded_until"): time(self.cuts.of[model.short])}
        else:
            return self.serving.settle(model, _SETTLED)

        def change(node: Tree) -> Tree | None:
            select = node["subquery"]["node"] if node.get("subquery_type") == "SCALAR" else None
            if select is None or not sql.is_plain(select) or len(select["select_list"]) != 1:
                return None
            asked = select["from_table"]["table_name"], select["select_list"][0].get("column_names", [""])[-1]
            return sql.value(known[asked]) if asked in known else None

        settled: Tree = sql.mapped(tree, change)
        return settled

    # -- Marts that only add up cells

    def _sums(self, model: Model) -> Sums | None:
        """What a mart adds up, if all it does is to add up live cells, by the columns of at most one dimension."""
        sums = find_sums(self.models.tree(model)) if model.schema == "mart" else None
        if not sums:
            return None
        cells, *dimensions = (self.models[name] for name in self.models.reads(model))
        of_log = {f"changes.{table}" for table in self.log.tables}
        contract = self.contracts.get(cells.short)
        is_known = (
            contract is not None
            and {*self.models.reads(cells)} == {f"live.{cells.short}", f"verified.{cells.short}", SERVING}
            and {*sums.keys} <= {*contract.grain}
            and {*sums.measures} <= {*contract.measures("sum")}
            # A sum that may be too large is shown in a CASE, as NULL if it is; what is kept has no such condition.
            and all(sql.shown_as(self.models.tree(cells), "served", m) == m for m in sums.measures)
            and all(d.is_view and {*self.models.reads(d)} <= of_log for d in dimensions)
        )
        return sums if is_known and self.serving.rows[cells.short]["served_from"] == "live" else None

    def _added_up(self, model: Model, sums: Sums, lives: list[bool], shared: Shared) -> Tree:
        """The query of a mart that adds up cells: its sums at the cut, and with them those of all that changed since.

        That is the signed images of the tail; and the cells whose dimension changed, taken away by what it was at the
        cut and added by what it is. What of it changed is told by its rows, so that its SQL does not matter.
        """
        of_cells, *dimensions = (self.models[name] for name in self.models.reads(model))
        domain = of_cells.short
        cells, diffs = self.cells.fold(domain), self._diffs(domain, lives, shared)
        was = now = None
        moved = []
        for dimension in dimensions:  # at most one
            self.make(dimension.name)  # for those who look its keys up
            now = shared.name(dimension.name, self.query(dimension, lives, shared))
            then = self.models.placed(
                dimension, lambda name, _: sql.item(f"(SELECT * FROM {self.log.sealed(name.partition('.')[2])})")
            )
            was = self.file.keep(f"folded.dims_{dimension.short}", then)
            moved = [shared.name(f"{model.name} by another {dimension.name}", sums.moved(cells, was, now))]
        kept = self.file.keep(f"folded.mart_{model.short}", sums.over([cells], was))
        parts = [sql.parse(f"FROM {kept}"), sums.over([diffs, *moved], now)]
        parts += [sums.over([gone], was, "-") for gone in moved]
        return sums.total(parts, self.serving.shared([domain], shared))


def _diffs_of(domain: str) -> str:
    """The name of the domain's signed images among what a view shares."""
    return quoted(f"diffs.{domain}")
