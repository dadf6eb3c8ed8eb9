"""The contract rows of a new fact, as its query and the declaration say them: `lockstep contract add`.

What a person decides is the owner, the mode and how soon the figures are needed. The grain is the model's; what the
other columns are, how they merge, and which tables change them comes out of the query.
"""

from __future__ import annotations

import csv
import io
import re
import tempfile
from dataclasses import dataclass
from pathlib import Path

from lockstep.contracts import CONTRACT_COLUMNS, MEASURE_COLUMNS, load, read_csv
from lockstep.durable import durable_replace
from lockstep.errors import LockstepError
from lockstep.project import project
from lockstep.schema import TABLES

_MEASURED_IN = ("cents", "seconds", "minutes", "metres")  # units that a measure's name may end with


@dataclass(frozen=True)
class Added:
    """The rows of a new contract, by file. `because`: why its measures do not `merge` by sum, None if they do."""

    contract: dict[str, str]
    measures: list[dict[str, str]]
    merge: str
    because: str | None

    def lines(self) -> dict[str, list[str]]:
        """The rows as lines of the two files."""
        return {
            "seeds/contracts.csv": _lines(CONTRACT_COLUMNS.split(), [self.contract]),
            "seeds/contract_measures.csv": _lines(MEASURE_COLUMNS.split(), self.measures),
        }


def propose(fact: str, owner: str, mode: str, horizon_minutes: int, freshness_seconds: int) -> Added:
    """The rows for a fact whose query is in `models/rebuild`. Raises LockstepError, naming what is in the way."""
    from lockstep.derived import figures_of  # which takes SQLMesh to read the query

    path = project() / "models" / "rebuild" / f"{fact}.sql"
    if not path.exists():
        raise LockstepError(f"{path} is missing: write the fact's query first. docs/your-own-tables.md shows one.")
    if any(row["domain"] == fact for row in read_csv(project() / "seeds" / "contracts.csv")):
        raise LockstepError(f"{fact} has a contract already, in {project() / 'seeds' / 'contracts.csv'}.")
    if (project() / "models" / "diffs" / f"{fact}.sql").exists():
        raise LockstepError(
            f"The increments of {fact} are written by hand, in models/diffs/{fact}.sql, so that its query does not "
            "tell how they merge. Write its contract by hand too: docs/contracts.md explains the columns."
        )
    figures = figures_of(fact, lambda name, kind: _unit(path, name, kind))
    table, *joined = figures.tables
    contract = {
        "domain": fact,
        "owner": owner,
        "mode": mode,
        "horizon_minutes": str(horizon_minutes),
        "freshness_seconds": str(freshness_seconds),
        "shadow_days": "3",
        "passes_to_return": "2",
        "receipt_hours": "50",
        "on_bad_event": "hold",
        "source_table": table,
        "source_key": " ".join(TABLES[table].key),
        "joined_tables": " ".join(joined),
        "reads_domains": "",
        "grain": " ".join(figures.grain),
        "live_where": "",
    }
    measures = [
        {
            "domain": fact,
            "measure": name,
            "merge": figures.merge,
            "unit": unit,
            "tolerance_absolute": "0",
            "tolerance_relative": "0",
            "tolerance_median": "",
            "tolerance_cells": "",
            "description": figures.comments.get(name) or name.replace("_", " ").capitalize(),
        }
        for name, unit in figures.units.items()
    ]
    return Added(contract, measures, figures.merge, figures.because)


def write(added: Added) -> None:
    """Add the rows to the two files, if these are valid with them. Raises LockstepError if not, and changes nothing."""
    seeds = project() / "seeds"
    new = {}
    for name, lines in added.lines().items():
        path = project() / name
        before = path.read_bytes()
        new[path] = before + (b"" if before.endswith(b"\n") else b"\n") + "".join(f"{x}\n" for x in lines).encode()
    with tempfile.TemporaryDirectory() as directory:
        for path, content in new.items():
            (Path(directory) / path.name).write_bytes(content)
        try:
            load(Path(directory))
        except LockstepError as e:
            raise LockstepError(str(e).replace(directory, str(seeds))) from None
    for path, content in reversed(new.items()):  # a contract without measures would be taken for a mistake
        durable_replace(path, content)
    load.cache_clear()


def _unit(path: Path, name: str, kind: str) -> str:
    """A unit whose measures have the type that a column has."""
    if decimal := re.fullmatch(r"DECIMAL\(38,(\d+)\)", kind):
        measured_in = next((unit for unit in _MEASURED_IN if name.endswith(unit)), None)
        return measured_in if measured_in and decimal[1] == "0" else f"amount({decimal[1]})"
    if kind == "BIGINT":
        return next((unit for unit in _MEASURED_IN if name.endswith(unit)), "count")
    units = {"DOUBLE": "ratio", "TIMESTAMP": "timestamp", "VARCHAR": "text"}
    if kind not in units:
        raise LockstepError(
            f"{path}: {name} is {kind}. Cast it to a type that measures have, BIGINT, DECIMAL(38, s), DOUBLE, "
            "TIMESTAMP or TEXT; or name it in the grain, if it tells rows apart."
        )
    return units[kind]


def _lines(columns: list[str], rows: list[dict[str, str]]) -> list[str]:
    text = io.StringIO()
    csv.DictWriter(text, columns, lineterminator="\n").writerows(rows)
    return text.getvalue().splitlines()
