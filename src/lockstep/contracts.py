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
    measures: dict[str, list[Measure]] = {}
    path = seeds / "contract_measures.csv"
    for line, row in _rows(path, "domain measure merge unit description"):
        _check(path, line, "merge", row["merge"], MERGES)
        _check(path, line, "measure", row["measure"].isidentifier(), (True,), shown=row["measure"])
        measures.setdefault(row["domain"], []).append(
            Measure(row["measure"], row["merge"], row["unit"], row["description"])
        )
    contracts: dict[str, Contract] = {}
    path = seeds / "contracts.csv"
    for line, row in _rows(path, "domain owner mode source_table source_key joined_tables grain"):
        domain = row["domain"]
        _check(path, line, "mode", row["mode"], MODES)
        for table in (row["source_table"], *row["joined_tables"].split()):
            _check(path, line, "table", table, tuple(TABLES))
        _check(path, line, "source_key", row["source_key"], TABLES[row["source_table"]].key)
        if domain in contracts:
            raise LockstepError(f"{path}, line {line}: the domain {domain} stands twice. Keep one of the two rows.")
        if not any(m.merge == "sum" for m in measures.get(domain, ())):
            raise LockstepError(
                f"{path}, line {line}: {domain} has no measure that merges by sum. Add one to contract_measures.csv."
            )
        contracts[domain] = Contract(
            domain=domain,
            owner=row["owner"],
            mode=row["mode"],
            source_table=row["source_table"],
            source_key=row["source_key"],
            sources=(row["source_table"], *row["joined_tables"].split()),
            grain=tuple(row["grain"].split()),
            all_measures=tuple(measures[domain]),
        )
    unknown = measures.keys() - contracts.keys()
    if unknown:
        raise LockstepError(f"contract_measures.csv names {', '.join(sorted(unknown))}, which has no row in {path}.")
    return contracts


def _rows(path: Path, columns: str) -> Iterator[tuple[int, dict[str, str]]]:
    with path.open(newline="", encoding="utf-8") as file:
        reader = csv.DictReader(file)
        missing = set(columns.split()) - set(reader.fieldnames or ())
        if missing:
            raise LockstepError(f"{path} lacks the columns {', '.join(sorted(missing))}.")
        for row in reader:
            if None in row.values() or None in row:
                raise LockstepError(f"{path}, line {reader.line_num}: not as many fields as the header names.")
            yield reader.line_num, row


def _check(
    path: Path, line: int, column: str, value: object, allowed: tuple[object, ...], shown: object = None
) -> None:
    if value not in allowed:
        raise LockstepError(
            f"{path}, line {line}: {column} is {shown or value!r}, expected one of {', '.join(map(str, allowed))}."
        )
