"""Why the two paths disagree: from a cell to its keys, to their change events, to a class of fault.

The diagnosis looks at the change log and at what was folded from it, so it also explains what an audit stopped before
any receipt was written. It reads the tables of the project's files as they are now, which are those of the last plan,
in whatever environment it failed.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from decimal import Decimal, localcontext
from pathlib import Path
from typing import Any

import duckdb

from lockstep import chain, warehouse
from lockstep.contracts import Contract, Measure
from lockstep.errors import LockstepError
from lockstep.kinds import MOST_DIGITS, plain
from lockstep.project import project
from lockstep.schema import TABLES
from lockstep.warehouse import Row

LOST = "lost"
DUPLICATED = "duplicated"
OUT_OF_ORDER = "out of order"
ALTERED = "altered"
CONTRADICTS = "source contradicts itself"
FOLDED_EARLY = "folded too early"
CHANGED_LATER = "changed after it was folded"
BASE_ALTERED = "verified generation altered"
RULES_DIFFER = "rule differs between the paths"
NOT_APPEND_ONLY = "source is not append-only"
LATE_BEYOND = "late, beyond the tolerance"
LATE_TOLERATED = "late, covered by the tolerance"

MEANING = {
    LOST: "the log has a hole: restore the file from a backup, then restate the hours",
    DUPLICATED: "a change stands in the log twice: restore the file if it holds a position twice, else restore the "
    "log to before the copy landed and land again from there; then restate the hours",
    OUT_OF_ORDER: "changes of a key stand in another order than the source made them: restore the log to before they "
    "landed and land them again in order, then restate the hours",
    ALTERED: "an image is not what the change before it left: restore the file from a backup, then restate the hours",
    CONTRADICTS: "every file is as it landed, and the source sent what does not follow from what it had sent: "
    "`lockstep capture ... --resync TABLE` lands what the source has now; where images have nothing but their key, "
    "give the table REPLICA IDENTITY FULL first",
    FOLDED_EARLY: "the hour was summed before all its changes had landed: restate it (`sqlmesh plan --restate-model`)",
    CHANGED_LATER: "the log of the hour is not what was summed: restore it unless it is right, then restate the hour",
    BASE_ALTERED: "a verified generation is no longer the sum of the increments up to its cut, and live figures stood "
    "on it: find out who wrote to the warehouse; the next day's run stands on a generation of its own",
    RULES_DIFFER: "the two paths give the same row another cell or value: make the same change in the domain's file in "
    "models/diffs, or remove that file, and the increments are derived from models/rebuild",
    NOT_APPEND_ONLY: "the source took a row back, and increments cannot: stop it, or give the measures a merge by sum; "
    "a change that must stay needs a log that begins after it",
    LATE_BEYOND: "only the rebuild takes the row, it came too late for the increments, and they lie farther apart, or "
    "more cells do, than the contract allows: the next timely row heals it, and live is served again after the cuts "
    "of passes_to_return",
    LATE_TOLERATED: "only the rebuild takes the row, it came too late for the increments; the contract allows for it",
}


@dataclass
class Finding:
    """One fault: its class, where it lies, and the change events that show it.

    `key` is the key on which it lies: a value, a tuple of values where the key is composite, or None.
    """

    kind: str
    where: str
    key: Any = None
    events: list[Row] = field(default_factory=list)


@dataclass
class Explanation:
    """All that is wrong with a domain at its last cut.

    `cells` are those that differ by more than the contract allows, as `reconcile` classes them; `tolerated` counts
    those that differ by less. What is tolerated is not a fault: its findings are there for information.
    """

    domain: str
    cut: datetime | None
    cells: list[Row]
    findings: list[Finding]
    tolerated: int = 0

    @property
    def is_clean(self) -> bool:
        return not self.cells and all(f.kind == LATE_TOLERATED for f in self.findings)


def explain(
    home: Path, contracts: Iterable[Contract], limit: int = 20, at: datetime | None = None
) -> list[Explanation]:
    """Diagnose domains; at most `limit` cells, keys and hours of each kind are looked at.

    `at` is the cut (UTC) at which the paths are compared, that of any receipt; None is the last daily one. Raises
    LockstepError if no plan of the project's files has come as far as a rebuild, or `at` is not a folded hour.
    """
    # The reader comes first: SQLMesh, which needs its state only, then leaves the warehouse to other readers.
    with warehouse.reader(home) as connection:
        made = _models(list(contracts), at)
        existing = {
            f"{schema}.{name}"
            for schema, name in connection.execute(
                "SELECT table_schema, table_name FROM information_schema.tables"
            ).fetchall()
        }
        absent = {name for models in made for name, table in models.tables.items() if table not in existing}
        # A fault may have stopped the plan before these two.
        missing = sorted(name for name in absent if not name.endswith("_cells") and not name.startswith("verified."))
        if missing:
            raise LockstepError(
                f"{', '.join(missing)} of the project's files has not been computed in {home}. "
                "Run `sqlmesh plan` (or `lockstep run`) first."
            )
        return [
            _diagnose(_Diagnosis(home, connection, models, limit), models.contract.domain, absent) for models in made
        ]


def _diagnose(diagnosis: _Diagnosis, domain: str, absent: set[str]) -> Explanation:
    is_compared = f"reconcile.{domain}_cells" not in absent
    cells = diagnosis.differing_cells() if is_compared else []
    tolerated = diagnosis.tolerated() if is_compared else 0
    if diagnosis.is_recomputed:  # what it stands on is the log alone
        return Explanation(domain, diagnosis.cut, cells, diagnosis.positions() + diagnosis.broken_chains(), tolerated)
    findings = diagnosis.positions() + diagnosis.taken_back() + diagnosis.broken_chains()
    findings += diagnosis.stale_hours() or ([] if findings else diagnosis.differing_rules())
    if not findings and is_compared:
        findings = diagnosis.late_rows()
    if all(f.kind == LATE_TOLERATED for f in findings) and f"verified.{domain}" not in absent:
        findings += diagnosis.altered_generations()
    return Explanation(domain, diagnosis.cut, cells, findings, tolerated)


@dataclass
class _Models:
    """What the project's files as they are now say of a domain.

    `tables`: the schema and table that hold each model. `folded_until`: the end of the last hour that counts as folded
    into the increments. `row`: the columns on which hand-written diffs are compared with the model `rows_in` of the
    rebuild; none if there are no such diffs. `sources`: the tables whose changes the figures are made of. `at_cut`: the
    queries that take the place of tables at another cut.
    """

    contract: Contract
    tables: dict[str, str]
    folded_until: datetime
    row: tuple[str, ...]
    rows_in: str
    sources: tuple[str, ...]
    at_cut: dict[str, str]


def _models(contracts: Sequence[Contract], at: datetime | None) -> list[_Models]:
    from sqlglot import exp
    from sqlmesh import Context
    from sqlmesh.core.console import NoopConsole, set_console

    from lockstep.loader import WithoutUnitTests
    from lockstep.reconcile import Models

    set_console(NoopConsole())
    context = Context(paths=str(project()), loader=WithoutUnitTests)
    found = []
    try:
        for contract in contracts:
            domain = contract.domain
            is_recomputed, cells = contract.is_recomputed, f"reconcile.{domain}_cells"
            hourly = "hourly.log" if is_recomputed else f"hourly.{domain}"
            row, rows_in = _rows_compared(context, contract)
            images = f"live.{domain}" if is_recomputed else f"diffs.{domain}"
            diffs = context.get_snapshot(images, raise_if_missing=True)
            upstream = {exp.to_table(name).name for name in context.dag.upstream(diffs.name) if '"changes"' in name}
            sources = tuple(name for name in TABLES if name in upstream)
            tables = {}
            for model in (
                *("rebuild.cut", "hourly.log", "changes.all_positions", *(f"changes.{s}" for s in sources)),
                *(diffs.model.name, hourly, rows_in, cells, f"verified.{domain}"),
            ):
                snapshot = context.get_snapshot(model, raise_if_missing=True)
                if not snapshot.version:
                    raise LockstepError(f"{model} was edited and not planned since. Run `sqlmesh plan dev` first.")
                table = exp.to_table(snapshot.table_name())
                tables[model] = f"{table.db}.{table.name}"
            folded = context.get_snapshot(hourly, raise_if_missing=True).intervals
            ends = [datetime.fromtimestamp(end / 1000, UTC).replace(tzinfo=None) for _, end in folded]
            folded_until = max(ends, default=datetime.min)
            at_cut = {}
            if at:
                if at != at.replace(minute=0, second=0, microsecond=0) or at > folded_until:
                    raise LockstepError(
                        f"{at} is not a valid cut of {domain}; use a full hour up to {folded_until}, to which it is "
                        "folded. `lockstep receipts` lists the cuts that were compared."
                    )
                models = Models({s.name: s for s in context.snapshots.values()})
                queries = {name: models.query(name, at) for name in (rows_in, cells)}
                at_cut = {name: f"({query.sql('duckdb', comments=False)})" for name, query in queries.items()}
                rebuilt = f"SELECT TIMESTAMP '{at}' AS cut, position FROM {tables['rebuild.cut']}"
            else:
                rebuilt = f"SELECT cut, position FROM {tables['rebuild.cut']}"
            at_cut["rebuild.cut"] = f"({rebuilt} WHERE domain = '{domain}')"
            found.append(_Models(contract, tables, folded_until, row, rows_in, sources, at_cut))
        return found
    finally:
        context.close()


def _rows_compared(context: Any, contract: Contract) -> tuple[tuple[str, ...], str]:
    """The columns that identify a row of hand-written diffs, and the model of the rebuild to compare the rows with.

    That model is `rebuild.latest_<domain>`, row by row; where there is none, the rebuild itself, cell by cell.
    """
    from sqlglot import exp

    from lockstep.derived import is_derived

    rebuilt = f"rebuild.{contract.domain}"
    if contract.is_recomputed or is_derived(contract):
        return (), rebuilt
    latest = context.get_model(f"rebuild.latest_{contract.domain}")
    key = tuple(c.name for g in latest.grains for c in g.find_all(exp.Column)) if latest else ()
    diffs = context.get_model(f"diffs.{contract.domain}").columns_to_types or {}
    return (key, f"rebuild.latest_{contract.domain}") if key and {*key} <= {*diffs} else (contract.grain, rebuilt)


class _Diagnosis:
    def __init__(self, home: Path, connection: duckdb.DuckDBPyConnection, models: _Models, limit: int) -> None:
        contract, tables = _of_cells(models.contract), models.tables | models.at_cut
        self._home = home
        self._connection = connection
        self._contract = contract
        self._is_finished = models.contract.is_finished
        self.is_recomputed = models.contract.is_recomputed
        self._folded_until = models.folded_until
        self._row = models.row
        self._limit = limit
        self._sources = {name: tables[f"changes.{name}"] for name in models.sources}
        self._positions = tables["changes.all_positions"]
        self._log = tables["hourly.log"]
        self._diffs = tables.get(f"diffs.{contract.domain}", "")
        self._hourly = tables.get(f"hourly.{contract.domain}", "")
        self._latest = tables[models.rows_in]
        self._cells = tables[f"reconcile.{contract.domain}_cells"]
        self._verified = tables[f"verified.{contract.domain}"]
        self._cut = tables["rebuild.cut"]
        found = connection.execute(f"SELECT cut FROM {self._cut}").fetchone()
        self.cut: datetime | None = found[0] if found else None

    def _rows(self, query: str, *parameters: Any) -> list[Row]:
        return warehouse.rows(self._connection, query, list(parameters))

    def differing_cells(self) -> list[Row]:
        is_beyond = "class NOT IN ('identical', 'tolerated')"
        return self._rows(f"SELECT * FROM {self._cells} WHERE {is_beyond} ORDER BY ALL LIMIT {self._limit}")

    def tolerated(self) -> int:
        [row] = self._rows(f"SELECT COUNT(*) AS cells FROM {self._cells} WHERE class = 'tolerated'")
        return int(row["cells"])

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

    def taken_back(self) -> list[Finding]:
        """Updates and deletes in a source of measures that cannot be taken back."""
        if all(m.merge == "sum" for m in self._contract.merged):
            return []
        findings = []
        for source, table in self._sources.items():
            events = self._rows(
                f"SELECT * FROM {table} WHERE op NOT IN ('c', 'r') OR before IS NOT NULL "
                f"ORDER BY position LIMIT {self._limit}"
            )
            for event in events:
                names = [c.name for c in TABLES[source].key_columns]
                key = tuple((event["before"] or event["after"])[name] for name in names)
                where = f"{_named(names, key)}, position {event['position']}"
                findings.append(Finding(NOT_APPEND_ONLY, where, _plain(key), [event]))
        return findings

    def broken_chains(self) -> list[Finding]:
        """Keys on which a before image is not the after image of the change before, as the audit finds them."""
        findings = []
        for source, table in self._sources.items():
            if not TABLES[source].key:  # its rows have one change each, or two if TRUNCATE took them away
                continue
            of_change = [f"COALESCE(after.{k}, before.{k})" for k in TABLES[source].sql_key]
            key = [f"__k{n}" for n, _ in enumerate(of_change)]
            keys = self._rows(
                f"""WITH chain AS (
                    SELECT {_list(f"{value} AS {k}" for value, k in zip(of_change, key, strict=True))},
                        position, {_declared(source, "before")} AS before,
                        LAG({_declared(source, "after")})
                            OVER (PARTITION BY {_list(of_change)} ORDER BY position) AS previous,
                        MAX(CASE WHEN op = 'r' AND COALESCE(before = after, TRUE) THEN position END)
                            OVER (PARTITION BY {_list(of_change)}) AS mended_at
                    FROM {table}
                ) SELECT {_list(key)} FROM chain
                WHERE before IS DISTINCT FROM previous AND position > COALESCE(mended_at, 0)
                GROUP BY ALL ORDER BY ALL LIMIT {self._limit}"""
            )
            findings += [self._classify_chain(source, tuple(row.values())) for row in keys]
        return findings

    def _classify_chain(self, source: str, values: tuple[Any, ...]) -> Finding:
        names, key = TABLES[source].key, _plain(values)
        events = self._rows(
            f"SELECT * FROM {self._sources[source]} WHERE "
            f"{' AND '.join(f'COALESCE(after.{k}, before.{k}) = ?' for k in TABLES[source].sql_key)} ORDER BY position",
            *values,
        )
        is_repair = [
            e["op"] == "r" and (not e["before"] or not e["after"] or e["before"] == e["after"]) for e in events
        ]
        mended = max((i for i, is_ in enumerate(is_repair) if is_), default=-1)
        for image in (e[side] for e in events for side in ("before", "after") if e[side]):
            del image["extra"]  # as in `_declared`
        at = next(
            i for i, e in enumerate(events) if i > mended and e["before"] != (events[i - 1]["after"] if i else None)
        )
        event, previous = events[at], events[at - 1] if at else None
        shown = [e for e in (previous, event) if e]
        where = f"{_named(names, values)}, position {event['position']}"
        change = (event["op"], event["before"], event["after"])
        if any((e["op"], e["before"], e["after"]) == change for e in events[:at]):
            return Finding(DUPLICATED, where, key, shown)
        later = [e["after"] for e in events[at + 1 :]]
        if event["before"] in later or (previous and previous["after"] in [e["before"] for e in events[at + 1 :]]):
            return Finding(OUT_OF_ORDER, where, key, shown)
        if not any(chain.damaged(self._home, source, (e["position"] for e in shown))):
            return Finding(CONTRADICTS, where, key, shown)
        if (
            previous
            and event["before"]
            and previous["after"]
            and _columns_apart(event["before"], previous["after"]) == 1
        ):
            return Finding(ALTERED, where, key, shown)
        return Finding(LOST, f"{where}: a change between is missing", key, shown)

    def _apart(self, by: Sequence[str], one: str, other: str, tolerant: bool = False) -> str:
        """A query for the cells, by some columns and the grain, in which two queries merge to different values.

        Both give the columns `by`, the grain and the contract's state; the result one_<measure> and other_<measure>.
        """
        cell, state = _list(dict.fromkeys((*by, *self._contract.grain))), _list(self._contract.state)
        measures = self._contract.merged
        merged = _list(
            f"{_merge(m, is_one)} AS {side}_{m.name}"
            for m in measures
            for side, is_one in (("one", "is_one"), ("other", "NOT is_one"))
        )
        differs = " OR ".join(
            f"one_{m.name} IS DISTINCT FROM other_{m.name}" + (f" AND NOT {_is_near(m, by)}" if tolerant else "")
            for m in measures
        )
        return f"""SELECT * FROM (SELECT *, {differs} AS differs FROM (
            SELECT {cell}, {merged} FROM (
                SELECT {cell}, {state}, TRUE AS is_one FROM ({one})
                UNION ALL SELECT {cell}, {state}, FALSE AS is_one FROM ({other})
            ) GROUP BY {cell}
        )) WHERE differs"""

    def stale_hours(self) -> list[Finding]:
        """Folded hours whose increments are not what the log gives for them today."""
        apart = self._apart(
            ["log_hour"],
            f"SELECT *, DATE_TRUNC('hour', logged_at) AS log_hour FROM {self._diffs} WHERE logged_at < ?",
            f"SELECT * FROM {self._hourly}",
        )
        hours = self._rows(
            f"""WITH apart AS ({apart}), landed AS (
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
        """Verified generations that are not what the increments up to their cut come to, as when they were verified.

        Live figures that come out of a finish stand on no generation.
        """
        if self._is_finished:
            return []
        apart = self._apart(
            ["cut"],
            f"SELECT * FROM {self._verified}",
            f"SELECT cut, increments.* FROM {self._hourly} AS increments "
            f"JOIN (SELECT DISTINCT cut FROM {self._verified}) AS generations ON log_hour < cut",
            tolerant=True,
        )
        generations = self._rows(f"SELECT cut, COUNT(*) AS cells FROM ({apart}) GROUP BY cut ORDER BY cut")
        return [Finding(BASE_ALTERED, f"cut {g['cut']}: {g['cells']} cells") for g in generations]

    def differing_rules(self) -> list[Finding]:
        """Rows whose one net image lies in another cell, or counts otherwise, than their latest image.

        A row that only the rebuild has is not among them where the increments leave late rows out. Derived increments
        have no rules of their own.
        """
        if not self._row:
            return []
        columns = _list(dict.fromkeys((*self._row, *self._contract.grain, *self._contract.state)))
        latest, increments = f"SELECT {columns} FROM {self._latest}", f"SELECT {columns} FROM {self._diffs} AS diffs"
        if not self._are_sums:
            latest += f" WHERE latest_position IN (SELECT latest_position FROM {self._diffs})"
        if not self._are_sums and self._row == self._contract.grain:  # cells: those whose row was left out are late
            same_cell = " AND ".join(f"diffs.{g} IS NOT DISTINCT FROM taken.{g}" for g in self._row)
            increments += f" SEMI JOIN ({latest}) AS taken ON {same_cell}"
        apart = self._apart(self._row, f"{increments} WHERE logged_at < ?", latest)
        found = self._rows(f"{apart} ORDER BY {_list(self._row)} LIMIT {2 * self._limit}", self.cut)
        findings = []
        for values in dict.fromkeys(tuple(r[c] for c in self._row) for r in found):
            rows = [r for r in found if tuple(r[c] for c in self._row) == values]
            apart_by = "; ".join(_differences(r, self._contract) for r in rows)
            comparison = (
                "increments minus rebuild is" if self._are_sums else "in the increments and not in the rebuild:"
            )
            where = f"{_named(self._row, values)}: {comparison} {apart_by}"
            findings.append(Finding(RULES_DIFFER, where, _plain(values), self._last_event(values)))
        return findings[: self._limit]

    def late_rows(self) -> list[Finding]:
        """For each cell that is not identical, the row of the rebuild that the increments have left out."""
        if self._are_sums:
            return []
        grain = self._contract.grain
        same_cell = " AND ".join(f"cells.{g} IS NOT DISTINCT FROM latest.{g}" for g in grain)
        found = self._rows(
            f"""SELECT cells.class, {_list(f"latest.{c}" for c in grain)}, latest_position
            FROM {self._cells} AS cells JOIN {self._latest} AS latest ON {same_cell}
            WHERE class <> 'identical'
            QUALIFY ROW_NUMBER() OVER (
                PARTITION BY {_list(f"cells.{g}" for g in grain)} ORDER BY latest_at DESC, latest_position DESC
            ) = 1 AND latest_position NOT IN (SELECT latest_position FROM {self._diffs})
            ORDER BY class = 'tolerated', {_list(f"latest.{g}" for g in grain)} LIMIT {self._limit}"""
        )
        findings = []
        names = self._contract.source_key
        for late in found:
            [event] = self._events("position = ?", late["latest_position"])
            values = tuple(event["after"].get(name) for name in names)
            kind = LATE_TOLERATED if late["class"] == "tolerated" else LATE_BEYOND
            cell = _named(grain, [late[g] for g in grain])
            where = f"{_named(names, values) or 'a row'} of {cell}, committed at {event['committed_at']}"
            findings.append(Finding(kind, where, _plain(values) if values else None, [event]))
        return findings

    @property
    def _are_sums(self) -> bool:
        return all(m.merge == "sum" for m in self._contract.merged)

    def _last_event(self, values: tuple[Any, ...]) -> list[Row]:
        """The last change before the cut of a row, if the diffs know it."""
        is_row = " AND ".join(f"{name} IS NOT DISTINCT FROM ?" for name in self._row)
        [last] = self._rows(
            f"SELECT MAX(position) AS position FROM {self._diffs} WHERE {is_row} AND logged_at < ?", *values, self.cut
        )
        return self._events("position = ?", last["position"])

    def _events(self, condition: str, *parameters: Any) -> list[Row]:
        tables = self._sources.values()
        return [e for t in tables for e in self._rows(f"SELECT * FROM {t} WHERE {condition}", *parameters)]


def _of_cells(contract: Contract) -> Contract:
    """The contract with the grain and the measures of what is folded by the hour."""
    from lockstep.derived import finish_of

    return finish_of(contract).cells if contract.is_finished else contract


def _declared(source: str, image: str) -> str:
    """SQL for an image without its `extra`, which may change with no change of the row: as the macro declared_image."""
    columns = _list(f"{c.sql} := {image}.{c.sql}" for c in TABLES[source].columns)
    return f"CASE WHEN {image} IS NOT NULL THEN STRUCT_PACK({columns}) END"


def _merge(measure: Measure, condition: str) -> str:
    """A measure over the rows of a group that meet a condition."""
    name = measure.name
    if measure.merge == "sum":
        return f"COALESCE(SUM({name}) FILTER ({condition}), 0)"
    if measure.merge == "latest":
        struct = f"{{'at': latest_at, 'position': latest_position, 'value': {name}}}"
        return f"(MAX({struct}) FILTER ({condition})).value"
    return f"{measure.merge.upper()}({name}) FILTER ({condition})"


def _is_near(measure: Measure, by: Sequence[str]) -> str:
    """Whether two sides of a cell lie as near as the contract allows; `one_` is what a relative tolerance is of.

    How many cells may differ, and how far at the median, is asked of all cells with the same values in `by`.
    """
    one, other = f"one_{measure.name}", f"other_{measure.name}"
    size = f"CAST(ABS({one}) AS DOUBLE)"  # a product of DECIMALs may have more digits than fit
    apart = f"TRY(ABS({one} - {other}))"
    if measure.type == "TIMESTAMP":
        size, apart = "0", f"ABS(EPOCH({one}) - EPOCH({other}))"
    if measure.type == "TEXT":
        return "FALSE"
    allowed = f"GREATEST({measure.tolerance_absolute}, {measure.tolerance_relative} * {size})"
    conditions = [f"COALESCE({apart} <= {allowed}, FALSE)"]
    over, differs = f"OVER (PARTITION BY {_list(by)})", f"{one} IS DISTINCT FROM {other}"
    if measure.tolerance_cells < 1:
        most = f"GREATEST(1, CAST({measure.tolerance_cells} AS DOUBLE) * COUNT(*) {over})"
        conditions.append(f"COUNT(CASE WHEN {differs} THEN 1 END) {over} <= {most}")
    if measure.tolerance_median is not None:
        median = f"MEDIAN(CASE WHEN {differs} THEN CAST({apart} AS DOUBLE) END) {over}"
        conditions.append(f"COALESCE({median}, 0) <= {measure.tolerance_median}")
    return f"({' AND '.join(conditions)})"


def _differences(row: Row, contract: Contract) -> str:
    cell = _named(contract.grain, [row[g] for g in contract.grain])
    apart = []
    for m in contract.merged:
        one, other = row[f"one_{m.name}"], row[f"other_{m.name}"]
        if one != other:
            apart.append(
                f"{m.name} {_signed(one, other)}"
                if m.merge == "sum"
                else f"{m.name} {_shown(one)}, not {_shown(other)}"
            )
    return f"{', '.join(apart)} in the cell {cell}"


def _columns_apart(one: Row, other: Row) -> int:
    return sum(one[name] != other[name] for name in one)


def _named(names: Iterable[str], values: Iterable[Any]) -> str:
    """Columns with their values, without those that are not there."""
    return ", ".join(f"{n} {_shown(v)}" for n, v in zip(names, values, strict=True) if v is not None)


def _shown(value: Any) -> str:
    return "nothing" if value is None else str(value) if isinstance(value, datetime) else plain(value)


def _signed(one: Any, other: Any) -> str:
    """How far one number lies above (+) or below (-) another, with every digit."""
    with localcontext(prec=2 * MOST_DIGITS):
        return f"{Decimal(one) - Decimal(other):+f}"


def _plain(key: tuple[Any, ...]) -> Any:
    return key if len(key) > 1 else key[0]


def _list(names: Iterable[str]) -> str:
    return ", ".join(names)
