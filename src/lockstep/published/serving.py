"""`ops.serving` in a published file: what was decided when it was made is written in, only a live `as_of` is read."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from lockstep.contracts import Contract
from lockstep.published import sql
from lockstep.published.file import File, Shared, time
from lockstep.published.log import Log
from lockstep.published.models import Model, Models
from lockstep.published.sql import Reading, Tree
from lockstep.warehouse import Row, text

NAME = "ops.serving"


@dataclass
class Serving:
    file: File
    models: Models
    log: Log
    contracts: Mapping[str, Contract]

    @functools.cached_property
    def rows(self) -> dict[str, Row]:
        """By domain, what the warehouse serves it from."""
        return {row["domain"]: row for row in self.file.rows(f"FROM {self.models[NAME].relation}")}

    def create_view(self) -> None:
        shared = Shared()
        rows = self._rows(self.contracts, shared, with_held=True)
        self.file.view(NAME, shared.around(sql.parse(rows)))

    # -- What a model asks

    def domains(self, model: Model) -> list[str]:
        """The domains whose serving a model looks up; all if it does not name any."""
        found: set[str] = set()
        for reading in self.models.readings(model) if model.is_view else []:
            if reading.function is None and self.models.name(model, reading) == NAME:
                found.update(self.asked(reading))
        return sorted(found)

    def asked(self, reading: Reading) -> list[str]:
        """The domains whose serving a SELECT looks up; all if it does not name any."""
        named = sql.required(reading.select, reading.alias, "domain") if reading.is_alone else None
        return sorted(self.contracts) if named is None else sorted(named & set(self.contracts))

    def is_live(self, domains: Iterable[str]) -> bool:
        return any(self.rows[domain]["served_from"] == "live" for domain in domains)

    # -- What replaces it

    def place(self, reading: Reading, lives: list[bool], shared: Shared) -> Tree:
        """The query that replaces it in a live view. `lives` gets whether that changes without a publication."""
        domains = self.asked(reading)
        if not domains:
            return sql.subquery(self.models[NAME].empty())
        columns = sql.mentioned(reading)
        needs_held = columns is None or bool(columns & {"held", "reason"})
        needs_as_of = needs_held or columns is None or "as_of" in columns
        lives.append(needs_as_of and self.is_live(domains))
        if not needs_as_of:
            return sql.item(f"({self._rows(domains)})")
        return sql.item(self.shared(domains, shared, with_held=needs_held))

    def shared(self, domains: list[str], shared: Shared, *, with_held: bool = False) -> str:
        rows = sql.parse(self._rows(domains, shared, with_held=with_held))
        return shared.name(f"{NAME} of {', '.join(domains)}{' with held' if with_held else ''}", rows)

    def _rows(self, domains: Iterable[str], shared: Shared | None = None, *, with_held: bool = False) -> str:
        """The rows of some domains. Without `shared`, `as_of` is that of the publication."""
        rows = []
        for domain in domains:
            row = self.rows[domain]
            as_of, reason = time(row["as_of"]), text(row["reason"])
            held = text(row["held"]) if row["held"] else "NULL::TEXT"
            if shared is not None:
                reads = (domain, *self.contracts[domain].reads)
                tables = sorted({table for d in reads for table in self.contracts[d].sources})
                if row["served_from"] == "live":
                    as_of = self.log.readable("readable_until", tables, shared)
                if with_held:
                    held = self.log.held(tables, shared)
                    why = text(row["reason"].removesuffix(f"; {row['held']}"))
                    reason = f"{why} || COALESCE('; ' || {held}, '')"
            rows.append(
                f"SELECT {text(domain)} AS domain, {text(row['mode'])} AS mode, "
                f"{text(row['served_from'])} AS served_from, {as_of} AS as_of, "
                f"{time(row['verified_cut'])} AS verified_cut, {reason} AS reason, {held} AS held"
            )
        return " UNION ALL ".join(rows)

    def settle(self, model: Model, known: Mapping[str, str | None]) -> Tree:
        """A view's query with what is decided written in where a scalar subquery asks for it.

        `known` has the SQL of a column, or None for the value at publication. Joining it took half the time of a query.
        """
        by_select = {id(r.select): r for r in self.models.all_readings(model) if r.is_alone}

        def change(node: Tree) -> Tree | None:
            select = node["subquery"]["node"] if node.get("subquery_type") == "SCALAR" else None
            if select is None or id(select) not in by_select or not sql.is_plain(select):
                return None
            if len(select["select_list"]) != 1:
                return None
            reading = by_select[id(select)]
            column = _column(select["select_list"][0], reading)
            if reading.cte is not None:
                inner = next((r for r in sql.readings(reading.cte) if r.select is reading.cte), None)
                if "aliases" in reading.cte or sql.conditions(select) or inner is None or not inner.is_alone:
                    return None
                if inner.cte is not None or inner.function or not sql.is_plain(reading.cte) or column is None:
                    return None
                select, reading = reading.cte, inner
                column = sql.shown_as(select, reading.alias, column)
            is_of_a_model = column in known and not reading.function and reading.relation[1]
            if not is_of_a_model or self.models.name(model, reading) != NAME:
                return None
            domains = sql.required(select, reading.alias, "domain") or set()
            if len(domains) != 1 or len(sql.conditions(select)) != 1 or not domains <= set(self.contracts):
                return None
            row = self.rows[next(iter(domains))]
            written = {"served_from": text(row["served_from"]), "verified_cut": time(row["verified_cut"])}
            return sql.value(known[column] or written[column])  # type: ignore[index]  # it is in `known`

        settled: Tree = sql.mapped(self.models.tree(model), change)
        return settled


def _column(expression: Tree, reading: Reading) -> str | None:
    names = [str(name).lower() for name in expression.get("column_names", ())]
    return names[-1] if names and sql.is_column(expression, reading.alias, names[-1]) else None
