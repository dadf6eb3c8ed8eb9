"""The contract of a new fact whose query is written: `lockstep contract add`.

What a person decides is the owner, the mode and how soon the figures are needed, which is one row. All else is read
from the query.
"""

from __future__ import annotations

import csv
import io
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path

from lockstep.contracts import Contract, load
from lockstep.durable import durable_replace
from lockstep.errors import LockstepError
from lockstep.figures import Declared, Queries
from lockstep.project import project

FILE = "seeds/contracts.csv"


@dataclass(frozen=True)
class Added:
    """A new contract: the `line` of it in `seeds/contracts.csv`, and what it is with what its query says.

    `because`: why its measures do not merge by sum, None if they do.
    """

    line: str
    contract: Contract
    because: str | None
    content: bytes  # of the file with the line


def propose(fact: str, **columns: str) -> Added:
    """The contract of a fact whose query is in `models/rebuild`, with these columns.

    Raises LockstepError, naming what is in the way.
    """
    path = project() / FILE
    before = path.read_bytes()
    reader = csv.DictReader(io.StringIO(before.decode("utf-8-sig")))
    if any(row.get("domain") == fact for row in reader):
        raise LockstepError(f"{fact} has a contract already, in {path}.")
    by_hand = f"models/diffs/{fact}.sql"
    if (project() / by_hand).exists():
        raise LockstepError(
            f"The increments of {fact} are written by hand, in {by_hand}, so that its query does not tell how they "
            "merge. Write its contract by hand too: docs/contracts.md explains the columns."
        )
    line = _line(list(reader.fieldnames or ()), {"domain": fact, **columns})
    content = before + (b"" if before.endswith(b"\n") else b"\n") + line.encode() + b"\n"
    with tempfile.TemporaryDirectory() as directory:
        seeds = shutil.copytree(path.parent, Path(directory) / "seeds")
        (seeds / path.name).write_bytes(content)
        try:
            contract = load(seeds)[fact]
        except LockstepError as e:
            raise LockstepError(str(e).replace(str(seeds), str(path.parent))) from None
    because = Queries().figures(fact, _declared(path.parent, fact)).because if contract.is_finished else None
    return Added(line, contract, because, content)


def write(added: Added) -> None:
    """Add the line to the file."""
    durable_replace(project() / FILE, added.content)
    load.cache_clear()


def _declared(seeds: Path, fact: str) -> Declared:
    with (seeds / "contract_measures.csv").open(newline="", encoding="utf-8-sig") as file:
        rows = [row for row in csv.DictReader(file) if row["domain"] == fact]
    return {row["measure"]: (row.get("merge", ""), row.get("unit", "")) for row in rows}


def _line(columns: list[str], row: dict[str, str]) -> str:
    text = io.StringIO()
    csv.DictWriter(text, columns, restval="", lineterminator="", extrasaction="ignore").writerow(row)
    return text.getvalue()
