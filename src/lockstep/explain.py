"""Why the two paths disagree: from a cell to its keys, to their change events, to a class of fault.

The diagnosis looks at the change log and at what was folded from it, so it also explains what an audit stopped before
any receipt was written. It reads the tables of the project's files as they are now, which are those of the last plan,
in whatever environment it failed.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import duckdb

from lockstep import warehouse
from lockstep.contracts import Contract
from lockstep.errors import LockstepError
from lockstep.project import project
from lockstep.warehouse import Row

LOST = "lost"
DUPLICATED = "duplicated"
OUT_OF_ORDER = "out of order"
ALTERED = "altered"
FOLDED_EARLY = "folded too early"
CHANGED_LATER = "changed after it was folded"
BASE_ALTERED = "verified generation altered"
RULES_DIFFER = "rule differs between the paths"

MEANING = {
    LOST: "the log has a hole: restore the file from a backup, then restate the hours",
    DUPLICATED: "a change stands in the log twice: restore the file if it holds a position twice, else restore the "
    "log to before the copy landed and land again from there; then restate the hours",
    OUT_OF_ORDER: "changes of a key stand in another order than the source made them: restore the log to before they "
    "landed and land them again in order, then restate the hours",
    ALTERED: "an image is not what the change before it left: restore the file from a backup, then restate the hours",
    FOLDED_EARLY: "the hour was summed before all its changes had landed: restate it (`sqlmesh plan --restate-model`)",
    CHANGED_LATER: "the log of the hour is not what was summed: restore it unless it is right, then restate the hour",
    BASE_ALTERED: "a verified generation is no longer the sum of the increments up to its cut, and live figures stood "
    "on it: find out who wrote to the warehouse; the next day's run stands on a generation of its own",
    RULES_DIFFER: "the two paths give the same row another cell or value: make the same change in both",
}


@dataclass
class Finding:
    """One fault: its class, where it lies, and the change events that show it."""

    kind: str
    where: str
    key: Any = None
    events: list[Row] = field(default_factory=list)


@dataclass
class Explanation:
    """All that is wrong with a domain at its last cut. `cells` are those that differ, as `reconcile` classes them."""

    domain: str
    cut: datetime | None
    cells: list[Row]
    findings: list[Finding]

    @property
    def is_clean(self) -> bool:
        return not self.cells and not self.findings


def explain(home: Path, contract: Contract, limit: int = 20) -> Explanation:
    """Diagnose a domain; at most `limit` cells, keys and hours of each kind are looked at.

    Raises LockstepError if no plan of the project's files has come as far as a rebuild.
    """
    warehouse.require(home)
    tables, folded_until = _physical_tables(contract)
    with warehouse.reader(home) as connection:
        existing = {
            f"{schema}.{name}"
            for schema, name in connection.execute(
                "SELECT table_schema, table_name FROM information_schema.tables"
            ).fetchall()
        }
        cells_model, verified_model = f"reconcile.{contract.domain}_cells", f"verified.{contract.domain}"
        absent = {model for model, table in tables.items() if table not in existing}
        missing = sorted(absent - {cells_model, verified_model})  # a fault may have stopped the plan before these two
        if missing:
            raise LockstepError(
                f"{', '.join(missing)} of the project's files has not been computed in {home}. "
                "Run `sqlmesh plan` (or `lockstep run`) first."
            )
        diagnosis = _Diagnosis(connection, contract, tables, folded_until, limit)
        cells = diagnosis.differing_cells() if cells_model not in absent else []
        findings = diagnosis.positions() + diagnosis.broken_chains()
        findings += diagnosis.stale_hours() or ([] if findings else diagnosis.differing_rules())
        if not findings and verified_model not in absent:
            findings = diagnosis.altered_generations()
        return Explanation(contract.domain, diagnosis.cut, cells, findings)


def _physical_tables(contract: Contract) -> tuple[dict[str, str], datetime]:
    """Model name -> the schema and table that hold it for the project's files as they are now.

    The second result is the end of the last hour that counts as folded into the domain's increments.
    """
    from sqlglot import exp
    from sqlmesh import Context
    from sqlmesh.core.console import NoopConsole, set_console

    set_console(NoopConsole())
    context = Context(paths=str(project()))
    domain = contract.domain
    try:
        tables = {}
        for model in (
            "rebuild.cut",
            "hourly.log",
            "changes.all_positions",
            f"changes.{contract.source_table}",
            f"diffs.{domain}",
            f"hourly.{domain}",
            f"rebuild.latest_{domain}",
            f"reconcile.{domain}_cells",
            f"verified.{domain}",
        ):
            snapshot = context.get_snapshot(model, raise_if_missing=True)
            if not snapshot.version:
                raise LockstepError(f"{model} was edited and not planned since. Run `sqlmesh plan dev` first.")
            table = exp.to_table(snapshot.table_name())
            tables[model] = f"{table.db}.{table.name}"
        folded = context.get_snapshot(f"hourly.{domain}", raise_if_missing=True).intervals
        ends = [datetime.fromtimestamp(end / 1000, UTC).replace(tzinfo=None) for _, end in folded]
        return tables, max(ends, default=datetime.min)
    finally:
        context.close()


class _Diagnosis:
    def __init__(
        self,
        connection: duckdb.DuckDBPyConnection,
        contract: Contract,
        tables: dict[str, str],
        folded_until: datetime,
        limit: int,
    ) -> None:
        self._connection = connection
        self._contract = contract
        self._folded_until = folded_until
        self._limit = limit
        self._source = tables[f"changes.{contract.source_table}"]
        self._positions = tables["changes.all_positions"]
        self._log = tables["hourly.log"]
        self._diffs = tables[f"diffs.{contract.domain}"]
        self._hourly = tables[f"hourly.{contract.domain}"]
        self._latest = tables[f"rebuild.latest_{contract.domain}"]
        self._cells = tables[f"reconcile.{contract.domain}_cells"]
        self._verified = tables[f"verified.{contract.domain}"]
        self._cut = tables["rebuild.cut"]
        found = connection.execute(f"SELECT cut FROM {self._cut}").fetchone()
        self.cut: datetime | None = found[0] if found else None

    def _rows(self, query: str, *parameters: Any) -> list[Row]:
        return warehouse.rows(self._connection, query, list(parameters))

    def differing_cells(self) -> list[Row]:
        return self._rows(f"SELECT * FROM {self._cells} WHERE class <> 'identical' ORDER BY ALL LIMIT {self._limit}")

    def positions(self) -> list[Finding]:
        """Positions of the log that are missing or stand twice."""
        doubled = self._rows(
            f"""SELECT position, logged_at, LIST(source_table) AS tables FROM {self._positions}
            GROUP BY 1, 2 HAVING COUNT(*) > 1 ORDER BY 1 LIMIT {self._limit}"""
        )
        holes = self._rows(
            f"""SELECT * FROM (
                SELECT position, logged_at, LAG(position, 1, 0) OVER (ORDER BY position) AS previous
                FROM (
                    SELECT position, logged_at FROM {self._positions}
                    UNION ALL SELECT position + 1, NULL FROM {self._cut}
                )
            ) WHERE position > previous + 1 ORDER BY 1 LIMIT {self._limit}"""
        )
        return [
            Finding(DUPLICATED, f"position {r['position']} stands in {' and '.join(r['tables'])}") for r in doubled
        ] + [
            Finding(
                LOST,
                f"positions {r['previous'] + 1} to {r['position'] - 1}, "
                + (f"just before {r['logged_at']}" if r["logged_at"] else "at the end of the log"),
            )
            for r in holes
        ]

    def broken_chains(self) -> list[Finding]:
        """Keys on which a before image is not the after image of the change before."""
        key = self._contract.source_key
        keys = self._rows(
            f"""WITH chain AS (
                SELECT COALESCE(after.{key}, before.{key}) AS key, position, before,
                    LAG(after) OVER (PARTITION BY COALESCE(after.{key}, before.{key}) ORDER BY position) AS previous
                FROM {self._source}
            ) SELECT key, MIN(position) AS position FROM chain WHERE before IS DISTINCT FROM previous
            GROUP BY key ORDER BY key LIMIT {self._limit}"""
        )
        return [self._classify_chain(row["key"]) for row in keys]

    def _classify_chain(self, key: Any) -> Finding:
        name = self._contract.source_key
        events = self._rows(
            f"SELECT * FROM {self._source} WHERE COALESCE(after.{name}, before.{name}) = ? ORDER BY position", key
        )
        at = next(i for i, e in enumerate(events) if e["before"] != (events[i - 1]["after"] if i else None))
        event, previous = events[at], events[at - 1] if at else None
        shown = [e for e in (previous, event) if e]
        where = f"{name} {key}, position {event['position']}"
        change = (event["op"], event["before"], event["after"])
        if any((e["op"], e["before"], e["after"]) == change for e in events[:at]):
            return Finding(DUPLICATED, where, key, shown)
        later = [e["after"] for e in events[at + 1 :]]
        if event["before"] in later or (previous and previous["after"] in [e["before"] for e in events[at + 1 :]]):
            return Finding(OUT_OF_ORDER, where, key, shown)
        if (
            previous
            and event["before"]
            and previous["after"]
            and _columns_apart(event["before"], previous["after"]) == 1
        ):
            return Finding(ALTERED, where, key, shown)
        return Finding(LOST, f"{where}: a change between is missing", key, shown)

    def stale_hours(self) -> list[Finding]:
        """Folded hours whose increments are not what the log gives for them today."""
        columns = ", ".join(self._contract.grain)
        sums = self._contract.measures("sum")
        hours = self._rows(
            f"""WITH sides AS (
                SELECT DATE_TRUNC('hour', logged_at) AS log_hour, {columns}, {", ".join(sums)}
                FROM {self._diffs} WHERE logged_at < ?
                UNION ALL
                SELECT log_hour, {columns}, {", ".join(f"-{m}" for m in sums)} FROM {self._hourly}
            ), apart AS (
                SELECT log_hour, {columns} FROM sides GROUP BY log_hour, {columns}
                HAVING {" OR ".join(f"SUM({m}) <> 0" for m in sums)}
            ), landed AS (
                SELECT DATE_TRUNC('hour', logged_at) AS log_hour, COUNT(*) AS changes FROM {self._positions} GROUP BY 1
            )
            SELECT apart.log_hour, COUNT(*) AS cells, ANY_VALUE(landed.changes) AS changes,
                COALESCE(ANY_VALUE(folded.changes), 0) AS folded
            FROM apart LEFT JOIN landed USING (log_hour) LEFT JOIN {self._log} AS folded USING (log_hour)
            GROUP BY 1 ORDER BY 1 LIMIT {self._limit}""",
            self._folded_until,
        )
        return [
            Finding(
                FOLDED_EARLY if r["folded"] < (r["changes"] or 0) else CHANGED_LATER,
                f"log hour {r['log_hour']}: {r['cells']} cells, "
                f"folded from {r['folded']} changes of {r['changes'] or 0}",
            )
            for r in hours
        ]

    def altered_generations(self) -> list[Finding]:
        """Verified generations that are not the sum of the increments up to their cut, as they were when verified."""
        columns, sums = ", ".join(self._contract.grain), self._contract.measures("sum")
        generations = self._rows(
            f"""WITH generations AS (
                SELECT DISTINCT cut FROM {self._verified}
            ), sides AS (
                SELECT cut, {columns}, {", ".join(sums)} FROM {self._verified}
                UNION ALL
                SELECT cut, {columns}, {", ".join(f"-{m}" for m in sums)}
                FROM {self._hourly} JOIN generations ON log_hour < cut
            ), apart AS (
                SELECT cut, {columns} FROM sides GROUP BY cut, {columns}
                HAVING {" OR ".join(f"SUM({m}) <> 0" for m in sums)}
            )
            SELECT cut, COUNT(*) AS cells FROM apart GROUP BY cut ORDER BY cut"""
        )
        return [Finding(BASE_ALTERED, f"cut {g['cut']}: {g['cells']} cells") for g in generations]

    def differing_rules(self) -> list[Finding]:
        """Keys whose one net image lies in another cell, or counts otherwise, than their latest image."""
        key, columns = self._contract.source_key, ", ".join(self._contract.grain)
        sums = self._contract.measures("sum")
        apart = self._rows(
            f"""WITH sides AS (
                SELECT {key}, {columns}, {", ".join(sums)} FROM {self._diffs} WHERE logged_at < ?
                UNION ALL
                SELECT {key}, {columns}, {", ".join(f"-{m}" for m in sums)} FROM {self._latest}
            ), apart AS (
                SELECT {key}, {columns}, {", ".join(f"SUM({m}) AS {m}" for m in sums)} FROM sides
                GROUP BY {key}, {columns} HAVING {" OR ".join(f"SUM({m}) <> 0" for m in sums)}
            )
            SELECT * FROM apart ORDER BY {key} LIMIT {2 * self._limit}""",
            self.cut,
        )
        findings = []
        for value in dict.fromkeys(row[key] for row in apart):
            rows = [row for row in apart if row[key] == value]
            [event] = self._rows(
                f"SELECT * FROM {self._source} WHERE after.{key} = ? AND logged_at < ? ORDER BY position DESC LIMIT 1",
                value,
                self.cut,
            )
            apart_by = "; ".join(_differences(row, self._contract) for row in rows)
            findings.append(
                Finding(RULES_DIFFER, f"{key} {value}: increments minus rebuild is {apart_by}", value, [event])
            )
        return findings[: self._limit]


def _differences(row: Row, contract: Contract) -> str:
    cell = ", ".join(f"{g} {row[g]}" for g in contract.grain)
    measures = ", ".join(f"{m} {row[m]:+}" for m in contract.measures("sum") if row[m])
    return f"{measures} in the cell {cell}"


def _columns_apart(one: Row, other: Row) -> int:
    return sum(one[name] != other[name] for name in one)
