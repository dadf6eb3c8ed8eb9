"""Domains that are recomputed: their live figures are the query as written, over the rows of this moment.

They are those whose measures merge by `recomputed`. Any query that gives the same figures for the same rows will do, so
that a fact which cannot be derived, or is dear to derive, is served live all the same. It has no increments: instead of
each source table the query reads `state.<domain>__<table>`, the rows that the signed rows of the log add up to. At a
cut that is what the nightly receipt compares with the rebuild, which takes the latest image of each key.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from sqlglot import exp, parse_one

from lockstep.contracts import Contract, load
from lockstep.derive import Refused
from lockstep.derive.repeatable import require_repeatable
from lockstep.derived import digest_of_models, naming_query, query_of, refusal_of
from lockstep.errors import LockstepError
from lockstep.loader import import_macros
from lockstep.mirror import added_up
from lockstep.names import EXTRA, GENERATED
from lockstep.project import project
from lockstep.schema import SCHEMA_FILE, TABLES, literal, quoted


def recomputed_domains() -> list[Contract]:
    """The contracts of the domains that are recomputed. Raises LockstepError if one of them has increments."""
    found = [contract for contract in load().values() if contract.is_recomputed]
    for contract in found:
        by_hand = f"models/diffs/{contract.domain}.sql"
        if (project() / by_hand).exists():
            raise LockstepError(
                f"{by_hand} is written by hand, but the measures of {contract.domain} merge by recomputed, so that it "
                "has no increments. Remove the file, or say in seeds/contract_measures.csv how its measures merge."
            )
    return found


@dataclass(frozen=True)
class Recomputed:
    """The query of a domain that is recomputed, and of each table of the log the columns that it reads."""

    domain: str
    query: exp.Query
    columns: Mapping[str, tuple[str, ...]]

    def now(self) -> str:
        """The query over the rows of this moment, which are those of `state`."""
        return self._over({t: exp.table_(self._state(t), db="state", quoted=True) for t in self.columns})

    def at_cut(self) -> str:
        """The query over the rows at the rebuild's cut: those of the checkpoint before it and the changes since."""
        cut = f"(SELECT cut FROM rebuild.cut WHERE domain = {literal(self.domain)})"
        rows = {t: self._rows(t, f"cut < {cut}", f"__logged_at < {cut}") for t in self.columns}
        return self._over({t: exp.Subquery(this=parse_one(query, dialect="duckdb")) for t, query in rows.items()})

    def rows_now(self) -> dict[str, str]:
        """By table, the query of its rows as of this moment: up to where all tables of the domain can be read."""
        names = ", ".join(map(literal, self.columns))
        until = f"(SELECT MIN(readable_position) FROM changes.watermark WHERE source_table IN ({names}))"
        return {t: self._rows(t, f"position <= {until}", f"__position <= {until}") for t in self.columns}

    def _state(self, table: str) -> str:
        return f"{self.domain}{GENERATED}{table}"

    def _over(self, instead: Mapping[str, exp.Expr]) -> str:
        query = self.query.copy()
        for table in list(query.find_all(exp.Table)):
            if table.db == "source":
                table.replace(exp.alias_(instead[table.name].copy(), table.alias_or_name, table=True, quoted=True))
        return query.sql("duckdb")

    def _rows(self, table: str, is_before: str, is_until: str) -> str:
        """The rows that the signed rows of a table come to, by the columns that are read.

        `is_before`: which checkpoints may be taken, the newest of them is. `is_until`: which signed rows are.
        """
        columns, kinds = self.columns[table], {c.name: c.kind.duckdb for c in TABLES[table].columns}
        names, signed = ", ".join(map(quoted, columns)), f"signed.{quoted(table)}"
        kept, since = f"SELECT {names}, 1 AS __weight FROM {signed} WHERE FALSE", is_until
        if not TABLES[table].is_append_only:
            newest = f"FROM ops.checkpoints WHERE source_table = {literal(table)} AND {is_before}"
            kept = (
                f"SELECT {names}, 1 AS __weight FROM checkpoints.{quoted(table)} "
                f"WHERE __cut = (SELECT COALESCE(MAX(partition), '0001-01-01T00') {newest})"
            )
            since += f" AND __logged_at >= (SELECT COALESCE(MAX(cut), '0001-01-01'::TIMESTAMP) {newest})"
        typed = ", ".join(f"added_up.{quoted(c)}::{kinds[c]} AS {quoted(c)}" for c in columns)
        return (
            f"WITH kept AS ({kept}), moved AS (SELECT {names}, __weight FROM {signed} WHERE {since}) "
            f"SELECT {typed} FROM ({added_up(columns, 'kept', 'moved')}) AS added_up"
        )


def why_recomputed(contract: Contract) -> str:
    """Why a domain is recomputed: the refusal of its query, or that its contract says so."""
    import_macros()
    return refusal_of(contract.domain) or "Its contract says so: the query could be derived."


def recomputed_of(contract: Contract) -> Recomputed:
    """How a domain is recomputed. Raises LockstepError, naming the file, if it cannot be."""
    found = _recomputed_of(project(), digest_of_models(), tuple(TABLES.values()), contract.domain)
    if missing := [table for table in found.columns if table not in contract.sources]:
        raise LockstepError(
            f"models/rebuild/{contract.domain}.sql reads source.{missing[0]}, which its contract does not name. Add "
            f"{' '.join(missing)} to joined_tables of {contract.domain} in seeds/contracts.csv."
        )
    return found


@functools.lru_cache(maxsize=64)  # several models of a domain are stamped from one
def _recomputed_of(root: Path, _models: str, _tables: tuple[object, ...], domain: str) -> Recomputed:
    with naming_query(domain, or_by_hand=False, or_recomputed=False):
        query, catalog = query_of(domain)
        require_repeatable(query, catalog)
        tables = {table.name for table in query.find_all(exp.Table) if table.db == "source"}
        if extra := next((c for c in query.find_all(exp.Column) if c.name.lower() == EXTRA), None):
            raise Refused(EXTRA, extra, f"Declare the columns that are in it, in {SCHEMA_FILE}.")
        columns = {name: _columns_read(query, name) for name in TABLES if name in tables}
        for column in query.find_all(exp.Column):
            column.set("db", None)  # source.orders.status: the table is replaced
        return Recomputed(domain, query, columns)


def _columns_read(query: exp.Query, table: str) -> tuple[str, ...]:
    """The columns of a table whose names the query has anywhere, at least one."""
    named = {identifier.name.lower() for identifier in query.find_all(exp.Identifier)}
    columns = [c.name for c in TABLES[table].columns]
    return tuple(c for c in columns if c.lower() in named) or (columns[0],)
