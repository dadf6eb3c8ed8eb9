"""The contracts: what each domain promises, as written in `seeds/contracts.csv` and `seeds/contract_measures.csv`.

SQLMesh stamps models from them and the command line reads them, both through this module, so that an error in a
contract is found once, on load, and named by file and row.
"""

from __future__ import annotations

import csv
import functools
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from lockstep.errors import LockstepError
from lockstep.project import project
from lockstep.schema import TABLES

MODES = ("batch", "shadow", "live")
MERGES = ("sum", "batch")


@dataclass(frozen=True)
class Measure:
    """A measure of a domain. `merge` is `sum` (signed arithmetic, always exact) or `batch` (the rebuild's only)."""

    name: str
    merge: str
    unit: str
    description: str


@dataclass(frozen=True)
class Contract:
    """A domain's contract. `grain` names the columns of a cell; `sources` the change log tables its numbers need."""

    domain: str
    owner: str
    mode: str
    source_table: str
    source_key: str
    sources: tuple[str, ...]
    grain: tuple[str, ...]
    all_measures: tuple[Measure, ...]

    def measures(self, merge: str) -> tuple[str, ...]:
        return tuple(m.name for m in self.all_measures if m.merge == merge)


@functools.cache
def load(seeds: Path | None = None) -> dict[str, Contract]:
    """Every contract by its domain's name. Raises LockstepError naming file, row and way out on the first mistake."""
    seeds = seeds or project() / "seeds"
    contracts: dict[str, Contract] = {}
    measures = _measures(seeds / "contract_measures.csv")
    for row in _rows(seeds / "contracts.csv", "domain owner mode source_table source_key joined_tables grain"):
        domain, table = row["domain"], row["source_table"]
        row.check("domain", _is_name(domain), "a lower-case name")
        row.check("domain", domain not in contracts, "each domain once")
        row.check("owner", "'" not in row["owner"] and bool(row["owner"]), "a name without quotes")
        row.check("mode", row["mode"] in MODES, f"one of {', '.join(MODES)}")
        sources = (table, *row["joined_tables"].split())
        for column in ("source_table", "joined_tables"):
            row.check(column, set(row[column].split()) <= set(TABLES), f"of {', '.join(TABLES)}")
        row.check("source_key", (row["source_key"],) == TABLES[table].key, f"the one key of {table}")
        grain = tuple(row["grain"].split())
        row.check("grain", bool(grain) and all(map(_is_name, grain)), "lower-case names of columns")
        own = tuple(m for m, at in measures if at["domain"] == domain)
        row.check("domain", any(m.merge == "sum" for m in own), "a measure that merges by sum in contract_measures.csv")
        contracts[domain] = Contract(domain, row["owner"], row["mode"], table, row["source_key"], sources, grain, own)
    for _, row in measures:
        row.check("domain", row["domain"] in contracts, "a domain of contracts.csv")
    return contracts


def _measures(path: Path) -> list[tuple[Measure, _Row]]:
    """Every measure with the row it stands in."""
    measures: list[tuple[Measure, _Row]] = []
    for row in _rows(path, "domain measure merge unit description"):
        name = row["measure"]
        row.check("measure", _is_name(name), "a lower-case name")
        row.check("merge", row["merge"] in MERGES, f"one of {', '.join(MERGES)}")
        twice = any(m.name == name and at["domain"] == row["domain"] for m, at in measures)
        row.check("measure", not twice, "each measure of a domain once")
        measures.append((Measure(name, row["merge"], row["unit"], row["description"]), row))
    return measures


def _is_name(text: str) -> bool:
    """Whether a text can stand in SQL as it is: these names become columns and models."""
    return text.isidentifier() and text == text.lower()


class _Row(dict[str, str]):
    """A row of a contract file that knows where it stands."""

    place: str

    def check(self, column: str, holds: bool, expected: str) -> None:
        if not holds:
            raise LockstepError(f"{self.place}: {column} is {self[column]!r}, expected {expected}.")


def _rows(path: Path, columns: str) -> Iterator[_Row]:
    try:
        file = path.open(newline="", encoding="utf-8")
    except FileNotFoundError:
        raise LockstepError(f"{path} is missing. It is part of the project: restore it.") from None
    with file:
        reader = csv.DictReader(file)
        missing = set(columns.split()) - set(reader.fieldnames or ())
        if missing:
            raise LockstepError(f"{path} lacks the columns {', '.join(sorted(missing))}.")
        for fields in reader:
            place = f"{path}, line {reader.line_num}"
            if None in fields.values() or None in fields:
                raise LockstepError(f"{place}: not as many fields as the header names.")
            row = _Row(fields)
            row.place = place
            yield row
