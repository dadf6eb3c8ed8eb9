"""The contracts: what each domain promises, as written in `seeds/contracts.csv` and `seeds/contract_measures.csv`.

What its query says is not written again: where a contract names no grain, that, the measures and the tables are read
from `models/rebuild/<domain>.sql` (`lockstep.figures`), and the files have what departs from it.

SQLMesh stamps models from them and the command line reads them, both through this module, so that an error in a
contract is found once, on load, and named by file and row.
"""

from __future__ import annotations

import csv
import functools
import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import duckdb

from lockstep import warehouse
from lockstep.errors import LockstepError
from lockstep.figures import Queries
from lockstep.kinds import MOST_DIGITS
from lockstep.names import GENERATED, LAST_BY
from lockstep.project import project
from lockstep.schema import TABLES

MODES = ("batch", "shadow", "live")
MERGES = ("sum", "finish", "latest", "max", "min", "recomputed", "batch")
BAD_EVENTS = ("hold", "skip")
ROUNDING = 1e-13  # relative difference allowed between two ways to compute a DOUBLE: a few hundred times its last bit

# The unit of a measure decides the type it has in every model. Beside these there are amounts, such as `eur(2)`: exact
# numbers with that many digits after the decimal point. Sums of BIGINTs are wider, but for counts.
UNITS = {
    "count": "BIGINT",
    "cents": "BIGINT",
    "seconds": "BIGINT",
    "minutes": "BIGINT",
    "metres": "BIGINT",
    "degrees": "DOUBLE",
    "km/h": "DOUBLE",
    "ratio": "DOUBLE",
    "timestamp": "TIMESTAMP",
    "text": "TEXT",
}
_AMOUNT = re.compile(r"[A-Za-z][A-Za-z_/]*\(([0-9]{1,2})\)")
_MEASURABLE = ("BIGINT", "DOUBLE", "TIMESTAMP", "DECIMAL")  # types with a distance, which a tolerance can limit
_EXACT = ("BIGINT", "DECIMAL")
_WHOLE = f"DECIMAL({MOST_DIGITS}, 0)"


def type_of(unit: str) -> str | None:
    """The type of measures of this unit, None if there is no such unit."""
    amount = _AMOUNT.fullmatch(unit)
    if amount and int(amount[1]) < MOST_DIGITS:
        return f"DECIMAL({MOST_DIGITS}, {int(amount[1])})"
    return UNITS.get(unit)


_MEASURED_IN = ("cents", "seconds", "minutes", "metres")  # units that may be a word of a measure's name


def unit_of(name: str, kind: str) -> str | None:
    """The unit of a measure, by its name and the type of its column. None: measures have no such type."""
    named = next((unit for unit in _MEASURED_IN if unit in name.split("_")), None)
    if decimal := re.fullmatch(rf"DECIMAL\({MOST_DIGITS}, ?(\d+)\)", kind):
        return named if named and decimal[1] == "0" else f"amount({decimal[1]})"
    return {"BIGINT": named or "count", "DOUBLE": "ratio", "TIMESTAMP": "timestamp", "VARCHAR": "text"}.get(kind)


# What the stamped models call columns of their own.
_RESERVED = frozenset(
    (
        *("added_up", "as_of", "class", "copies", "cut", "diff", *LAST_BY),
        *("log_hour", "logged_at", "position", "rebuilt", "served_from"),
    )
)


@dataclass(frozen=True)
class Measure:
    """A measure of a domain.

    `merge`: `sum` (signed arithmetic, always exact), `finish` (computed from sums when it is read), `latest`, `max` or
    `min` (over an append-only source), `recomputed` (the query runs over the rows of this moment), or `batch` (the
    rebuild's only).

    The two paths of a cell may lie `tolerance_absolute` apart, in the measure's unit (seconds for a timestamp), or
    `tolerance_relative` of the rebuild's value: whichever allows more. `tolerance_cells` is the share of all cells that
    may differ at all; one always may. The median distance of those that differ may be `tolerance_median`, in the unit.
    """

    name: str
    merge: str
    unit: str
    tolerance_absolute: float
    tolerance_relative: float
    description: str
    tolerance_cells: float = 1
    tolerance_median: float | None = None

    @property
    def type(self) -> str:
        kind = type_of(self.unit) or ""
        return _WHOLE if self.merge == "sum" and kind == "BIGINT" and self.unit != "count" else kind


@dataclass(frozen=True)
class Contract:
    """A domain's contract.

    `horizon_minutes`: how soon somebody acts on the figures. `freshness_seconds`: how old they may be.
    `shadow_days`: how many daily receipts must pass in shadow before the domain may be live. `passes_to_return`: how
    many cuts must pass after a failed receipt until live is served again. `receipt_hours`: how far the log may be
    ahead of the last receipt's cut while live is served. `sources`: the change log tables its numbers need, the first
    of them the one whose changes, by `source_key`, explain a divergence. `reads`: the domains whose figures its mart
    joins. `grain`: the columns of a cell. `is_promoted`: the last entry in `promotions.csv` says that it went live.
    `live_where`: a condition on the rows that increments take, in SQL; the rebuild takes all. Empty: they do too.
    """

    domain: str
    owner: str
    mode: str
    horizon_minutes: int
    freshness_seconds: int
    shadow_days: int
    passes_to_return: int
    receipt_hours: int
    on_bad_event: str
    source_table: str
    source_key: tuple[str, ...]
    sources: tuple[str, ...]
    reads: tuple[str, ...]
    grain: tuple[str, ...]
    all_measures: tuple[Measure, ...]
    is_promoted: bool = False
    live_where: str = ""

    @property
    def mode_in_effect(self) -> str:
        """`shadow` for a domain whose mode was set to live without `lockstep promote`, else its mode."""
        return "shadow" if self.mode == "live" and not self.is_promoted else self.mode

    def measures(self, *merges: str) -> tuple[str, ...]:
        """The names of the measures that merge in one of these ways."""
        return tuple(m.name for m in self.all_measures if m.merge in merges)

    @property
    def is_finished(self) -> bool:
        """Whether the figures are computed from cells of another grain when they are read."""
        return any(m.merge == "finish" for m in self.all_measures)

    @property
    def is_recomputed(self) -> bool:
        """Whether there are no increments: live figures are the query as written over the rows of this moment."""
        return any(m.merge == "recomputed" for m in self.all_measures)

    @property
    def merged(self) -> tuple[Measure, ...]:
        """The measures that increments can carry: all but `batch`."""
        return tuple(m for m in self.all_measures if m.merge != "batch")

    @property
    def state(self) -> tuple[str, ...]:
        """The columns that every model of the domain carries beside the grain.

        `latest` measures need to know of when they are: `latest_at`, and of equal times the `latest_position`.
        """
        order = LAST_BY if self.measures("latest") else ()
        return (*order, *(m.name for m in self.merged))


CONTRACT_COLUMNS = (
    "domain owner mode horizon_minutes freshness_seconds shadow_days passes_to_return receipt_hours on_bad_event "
    "source_table source_key joined_tables reads_domains grain live_where"
)
REQUIRED_COLUMNS = "domain owner mode horizon_minutes freshness_seconds"
PROMOTION_COLUMNS = "domain mode changed_at position evidence"
MEASURE_COLUMNS = (
    "domain measure merge unit tolerance_absolute tolerance_relative tolerance_median tolerance_cells description"
)

_DEFAULTS = {"shadow_days": "3", "passes_to_return": "2", "receipt_hours": "50", "on_bad_event": "hold"}
_MEASURE_DEFAULTS = {"tolerance_absolute": "0", "tolerance_relative": "0"}


@functools.cache
def load(seeds: Path | None = None) -> dict[str, Contract]:
    """Every contract by its domain's name. Raises LockstepError naming file, row and way out on the first mistake.

    What is read from queries, is read from those of the project, wherever `seeds` lies.
    """
    seeds = seeds or project() / "seeds"
    measures = list(_rows(seeds / "contract_measures.csv", MEASURE_COLUMNS, "domain measure", _MEASURE_DEFAULTS))
    promotions = _promotions(seeds / "promotions.csv")
    rows = _rows(seeds / "contracts.csv", CONTRACT_COLUMNS, REQUIRED_COLUMNS, _DEFAULTS)
    found = _contracts(rows, measures, promotions)
    if not found:
        raise LockstepError(f"{seeds / 'contracts.csv'} has no domain yet. docs/your-own-tables.md shows a first one.")
    return found


def planned_contracts(connection: duckdb.DuckDBPyConnection) -> dict[str, Contract]:
    """Every contract as it was planned, by its domain's name: what the warehouse's models are made by.

    The project's files may say something else, which takes effect with `sqlmesh plan`. The connection has the warehouse
    open, or attached.
    """

    def told(table: str, columns: str, defaults: Mapping[str, str], last: str = "") -> Iterator[_Row]:
        for fields in warehouse.rows(connection, f"SELECT COLUMNS(*)::TEXT FROM warehouse.{table} {last}"):
            row = _Row({name: fields.get(name) or defaults.get(name, "") for name in columns.split()})
            row.place = f"{table}, as planned"
            yield row

    measures = list(told("ops.contract_measures", MEASURE_COLUMNS, _MEASURE_DEFAULTS))
    promotions = told("seeds.promotions", PROMOTION_COLUMNS, {}, "ORDER BY changed_at")
    rows = told("ops.contracts", CONTRACT_COLUMNS, _DEFAULTS)
    return _contracts(rows, measures, {row["domain"]: row["mode"] for row in promotions})


def _contracts(rows: Iterable[_Row], measures: Sequence[_Row], promotions: Mapping[str, str]) -> dict[str, Contract]:
    contracts: dict[str, Contract] = {}
    lines: list[_Row] = []
    queries = Queries()
    for row in rows:
        domain = row["domain"]
        row.check("domain", _is_name(domain) and "__" not in domain, "a lower-case name without __")
        row.check("domain", domain not in contracts, "each domain once")
        row.check("owner", "'" not in row["owner"] and bool(row["owner"]), "a name without quotes")
        row.check("mode", row["mode"] in MODES, f"one of {', '.join(MODES)}")
        row.check("on_bad_event", row["on_bad_event"] in BAD_EVENTS, f"one of {', '.join(BAD_EVENTS)}")
        table, joined = row["source_table"], row["joined_tables"].split()
        row.check("source_table", table in TABLES or (not row["grain"] and not table), f"one of {', '.join(TABLES)}")
        row.check("joined_tables", set(joined) <= set(TABLES), f"of {', '.join(TABLES)}")
        declared = [at for at in measures if at["domain"] == domain]
        where = "in contract_measures.csv that is not batch"
        if not row["grain"]:
            declared = _completed(row, declared, queries)
            table, joined, where = row["source_table"], row["joined_tables"].split(), f"in models/rebuild/{domain}.sql"
        key = TABLES[table].key
        is_key = row["source_key"].split() == " ".join(key).split()  # a column's name may have spaces itself
        row.check("source_key", is_key, f"the key of {table}: {' '.join(key) or 'nothing, as it has none'}")
        grain = tuple(row["grain"].split())
        row.check("grain", bool(grain) and all(map(_is_name, grain)), "lower-case names of columns")
        own = _measures(declared)
        merges = any(m.merge != "batch" for m in own)
        row.check("domain", merges, f"a measure {where}")
        row.check("grain", len(set(grain)) == len(grain), "each column once")
        is_finished = any(m.merge == "finish" for m in own)
        row.check("domain", not is_finished or {m.merge for m in own} <= {"sum", "finish"}, "measures by sum or finish")
        is_recomputed = any(m.merge == "recomputed" for m in own)
        row.check("domain", not is_recomputed or {m.merge for m in own} == {"recomputed"}, "all measures recomputed")
        if is_finished:  # all of them come out of one query over its cells
            own = tuple(_rounded(replace(m, merge="finish")) for m in own)
        elif is_recomputed:
            own = tuple(_rounded(m) for m in own)
        names = {m.name for m in own}
        row.check("grain", not names & set(grain), "names that no measure has")
        row.check("grain", not _RESERVED & set(grain), f"none of {', '.join(sorted(_RESERVED))}")
        tolerant = all(m.tolerance_absolute + m.tolerance_relative > 0 for m in own if m.merge != "batch")
        row.check("live_where", not row["live_where"] or tolerant, "nothing, as a measure has no tolerance")
        row.check("live_where", not row["live_where"] or not is_finished, "nothing, as its measures merge by finish")
        row.check("live_where", not row["live_where"] or not is_recomputed, "nothing, as its measures are recomputed")
        contracts[domain] = Contract(
            domain,
            row["owner"],
            row["mode"],
            row.whole("horizon_minutes", least=1),
            row.whole("freshness_seconds", least=1),
            row.whole("shadow_days", least=1),
            row.whole("passes_to_return", least=1),
            row.whole("receipt_hours", least=25),  # a cut is daily: one that is a day old is the newest there can be
            row["on_bad_event"],
            table,
            key,
            (table, *joined),
            tuple(row["reads_domains"].split()),
            grain,
            own,
            promotions.get(domain) == "live",
            row["live_where"],
        )
        lines.append(row)
    for at in measures:
        at.check("domain", at["domain"] in contracts, "a domain of contracts.csv")
    for row in lines:
        others = set(contracts) - {row["domain"]}
        known = set(row["reads_domains"].split()) <= others
        row.check("reads_domains", known, f"other domains: {', '.join(sorted(others)) or 'there is none'}")
    return contracts


def _completed(row: _Row, declared: Sequence[_Row], queries: Queries) -> list[_Row]:
    """Fill in what the query says of a contract that names no grain; returns the rows of all its measures."""
    domain = row["domain"]
    file = f"models/rebuild/{domain}.sql"
    by_hand = f"models/diffs/{domain}.sql"
    is_by_hand = (project() / by_hand).exists()
    row.check("grain", not is_by_hand, f"columns, and their measures by row, as {by_hand} is written by hand")
    names = [at["measure"] for at in declared]
    for at in declared:
        at.check("measure", names.count(at["measure"]) == 1, "each measure of a domain once")
        at.check("merge", at["merge"] in ("", *MERGES), f"one of {', '.join(MERGES)}, or nothing: as {file} says")
        at.check("unit", not at["unit"] or bool(type_of(at["unit"])), f"{_UNITS}, or nothing: as {file} says")
    found = queries.figures(domain, {at["measure"]: (at["merge"], at["unit"]) for at in declared})
    table = row["source_table"] or found.tables[0]
    row["joined_tables"] = " ".join(
        dict.fromkeys(t for t in (*found.tables, *row["joined_tables"].split()) if t != table)
    )
    row["source_table"], row["grain"] = table, " ".join(found.grain)
    row["source_key"] = row["source_key"] or " ".join(TABLES[table].key)
    by_name = {at["measure"]: at for at in declared}
    measures = []
    for name, (merge, unit, comment) in found.measures.items():
        if name in by_name:
            at = by_name.pop(name)
        else:
            at = _Row({c: _MEASURE_DEFAULTS.get(c, "") for c in MEASURE_COLUMNS.split()}, domain=domain, measure=name)
            at.place = file
        said = {"merge": merge, "unit": unit, "description": comment or name.replace("_", " ").capitalize()}
        at.update({column: at[column] or text for column, text in said.items()})
        measures.append(at)
    for at in by_name.values():
        at.check("measure", at["merge"] == "batch", f"a measure of {file}, or one that merges by batch")
    return [*measures, *by_name.values()]


def as_rows(contract: Contract) -> tuple[dict[str, str | None], list[dict[str, str | None]]]:
    """A contract as a row of `ops.contracts`, and its measures as rows of `ops.contract_measures`."""
    row = {
        "source_key": " ".join(contract.source_key),
        "joined_tables": " ".join(contract.sources[1:]),
        "reads_domains": " ".join(contract.reads),
        "grain": " ".join(contract.grain),
    }
    measures = []
    for m in contract.all_measures:
        said = {"domain": contract.domain, "measure": m.name}
        measures.append({c: said[c] if c in said else _text(getattr(m, c)) for c in MEASURE_COLUMNS.split()})
    return {c: row[c] if c in row else _text(getattr(contract, c)) for c in CONTRACT_COLUMNS.split()}, measures


def _text(value: object) -> str | None:
    return None if value is None else str(value)


def _rounded(measure: Measure) -> Measure:
    """A measure that is computed when it is read. The last bits of a DOUBLE depend on how it is computed."""
    least = ROUNDING if measure.type == "DOUBLE" else 0
    return replace(measure, tolerance_relative=max(measure.tolerance_relative, least))


def tables_of_one_cut(domain: str, contracts: Mapping[str, Contract] | None = None) -> tuple[str, ...]:
    """The tables that are read at one cut with those of a domain, its own among them, in the order of the log.

    A rebuild reads its tables at one cut, and each table has one cut: so domains that share a table share theirs.
    By default the contracts are those of the project's files.
    """
    contracts = load() if contracts is None else contracts
    sets = [set(contract.sources) for contract in contracts.values()]
    found = set(contracts[domain].sources)
    while more := {table for tables in sets if tables & found for table in tables - found}:
        found |= more
    return tuple(table for table in TABLES if table in found)


def skips(table: str) -> bool:
    """Whether a bad event of this table is passed over: every domain whose numbers need the table says so.

    A table that no domain needs holds. So does every table where the contracts cannot be read: what lands does not
    depend on them, and a hold that was not needed is taken back without loss, a number over a hole is not.
    """
    try:
        rules = {c.on_bad_event for c in load().values() if table in c.sources}
    except LockstepError:
        return False
    return rules == {"skip"}


def _promotions(path: Path) -> dict[str, str]:
    """The mode of each domain's last entry. Without the file nobody was promoted, and nobody is served live for it."""
    return (
        {row["domain"]: row["mode"] for row in _rows(path, PROMOTION_COLUMNS, PROMOTION_COLUMNS)}
        if path.exists()
        else {}
    )


_UNITS = f"one of {', '.join(UNITS)}, or an amount with its digits after the decimal point, such as eur(2)"


def _measures(rows: Sequence[_Row]) -> tuple[Measure, ...]:
    """The measures of a domain."""
    measures: dict[str, Measure] = {}
    for row in rows:
        name, merge, unit = row["measure"], row["merge"], row["unit"]
        row.check("measure", _is_name(name), "a lower-case name")
        row.check("measure", name not in _RESERVED, f"none of {', '.join(sorted(_RESERVED))}")
        row.check("merge", merge in MERGES, f"one of {', '.join(MERGES)}")
        type_ = type_of(unit) or ""
        amount = "an amount with its digits after the decimal point, such as eur(2)"
        row.check("unit", bool(type_), _UNITS)
        is_exact, is_measurable = type_.startswith(_EXACT), type_.startswith(_MEASURABLE)
        row.check("unit", merge != "sum" or is_exact, f"a unit of whole numbers, or {amount}: sums are exact")
        row.check("unit", merge in ("batch", "finish", "latest", "recomputed") or is_measurable, "a unit with an order")
        for tolerance in ("tolerance_absolute", "tolerance_relative"):
            exact = row.number(tolerance) == 0
            row.check(tolerance, exact or merge not in ("sum", "batch"), f"0, as it merges by {merge}")
            row.check(tolerance, exact or is_measurable, f"0, as its unit is {unit}")
        absolute, relative = row.number("tolerance_absolute"), row.number("tolerance_relative")
        row.check("tolerance_relative", relative == 0 or unit != "timestamp", "0 for a timestamp")
        median = row.number("tolerance_median") if row["tolerance_median"] else None
        cells = row.number("tolerance_cells") if row["tolerance_cells"] else 1
        may_differ = absolute + relative > 0
        row.check("tolerance_median", median is None or may_differ, "nothing, as no cell may differ")
        row.check("tolerance_cells", cells == 1 or may_differ, "nothing, as no cell may differ")
        row.check("tolerance_cells", cells <= 1, "a share of the cells, from 0 to 1")
        row.check("measure", name not in measures, "each measure of a domain once")
        measures[name] = Measure(name, merge, unit, absolute, relative, row["description"], cells, median)
    return tuple(measures.values())


def _is_name(text: str) -> bool:
    """Whether a text can stand in SQL as it is: these names become columns and models."""
    return text.isidentifier() and text == text.lower() and not text.startswith(GENERATED)


class _Row(dict[str, str]):
    """A row of a contract file that knows where it stands."""

    place: str

    def check(self, column: str, holds: bool, expected: str) -> None:
        if not holds:
            raise LockstepError(f"{self.place}: {column} is {self[column]!r}, expected {expected}.")

    def whole(self, column: str, least: int) -> int:
        self.check(column, self[column].isdecimal() and int(self[column]) >= least, f"a whole number from {least} on")
        return int(self[column])

    def number(self, column: str) -> float:
        try:
            value = float(self[column])
        except ValueError:
            value = -1.0
        self.check(column, math.isfinite(value) and value >= 0, "a number that is not negative")
        return value


def _rows(path: Path, columns: str, required: str, defaults: Mapping[str, str] = {}) -> Iterator[_Row]:
    """The rows of a file that may have these columns, and must have those in `required`."""
    try:
        file = path.open(newline="", encoding="utf-8-sig")  # Excel begins a file with a byte order mark
    except FileNotFoundError:
        raise LockstepError(f"{path} is missing. It is part of the project: restore it.") from None
    with file:
        reader = csv.DictReader(file)
        names = reader.fieldnames or ()
        if missing := [name for name in required.split() if name not in names]:
            raise LockstepError(
                f"{path} lacks the columns {', '.join(missing)}. docs/contracts.md says what they hold."
            )
        if unknown := [name for name in names if name not in columns.split()]:
            raise LockstepError(
                f"{path} has the columns {', '.join(map(repr, unknown))}, which mean nothing. It may have "
                f"{', '.join(columns.split())}: docs/contracts.md says what they hold."
            )
        for fields in reader:
            place = f"{path}, line {reader.line_num}"
            if None in fields.values() or None in fields:
                raise LockstepError(f"{place}: not as many fields as the header names.")
            row = _Row({name: fields.get(name) or defaults.get(name, "") for name in columns.split()})
            row.place = place
            yield row
