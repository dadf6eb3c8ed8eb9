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
from lockstep.figures import Queries
from lockstep.project import project

FILE, MEASURES = "seeds/contracts.csv", "seeds/contract_measures.csv"


@dataclass(frozen=True)
class Added:
    """A new contract: the `lines` of it by file, and what it is with what its query says.

    `because`: why its measures do not merge by sum, None if they do.
    """

    lines: dict[str, list[str]]
    contract: Contract
    because: str | None
    contents: dict[str, bytes]  # of the files with the lines


def propose(fact: str, **columns: str) -> Added:
    """The contract of a fact whose query is in `models/rebuild`, with these columns.

    Where the query is not derived, but may be recomputed, its measures are said to be. Raises LockstepError, naming
    what is in the way.
    """
    header, rows = _read(FILE)
    if any(row.get("domain") == fact for row in rows):
        raise LockstepError(f"{fact} has a contract already, in {project() / FILE}.")
    by_hand = f"models/diffs/{fact}.sql"
    if (project() / by_hand).exists():
        raise LockstepError(
            f"The increments of {fact} are written by hand, in {by_hand}, so that its query does not tell how they "
            "merge. Write its contract by hand too: docs/contracts.md explains the columns."
        )
    lines = {FILE: [_line(header, {"domain": fact, **columns})]}
    try:
        contract, contents = _with(lines, fact)
    except LockstepError:
        measures = _recomputed(fact)
        if not measures:
            raise
        lines[MEASURES] = measures
        contract, contents = _with(lines, fact)
    return Added(lines, contract, _why(contract), contents)


def write(added: Added) -> None:
    """Add the lines to the files."""
    for name, content in reversed(added.contents.items()):  # measures without a contract would be taken for a mistake
        durable_replace(project() / name, content)
    load.cache_clear()


def _why(contract: Contract) -> str | None:
    """Why the measures of a contract do not merge by sum."""
    from lockstep.recomputed import why_recomputed

    if contract.is_recomputed:
        return why_recomputed(contract)
    own = (m for m in _read(MEASURES)[1] if m["domain"] == contract.domain)
    declared = {m["measure"]: (m.get("merge", ""), m.get("unit", "")) for m in own}
    return Queries().figures(contract.domain, declared).because if contract.is_finished else None


def _recomputed(fact: str) -> list[str]:
    """The lines by which the measures of a fact are recomputed; none where that does not help."""
    from lockstep.derived import figures_of

    header, rows = _read(MEASURES)
    if "merge" not in header or any(row["domain"] == fact for row in rows):
        return []
    try:
        found = figures_of(fact, {}, merge="recomputed")
    except LockstepError:
        return []
    return [_line(header, {"domain": fact, "measure": name, "merge": "recomputed"}) for name in found.measures]


def _with(lines: dict[str, list[str]], fact: str) -> tuple[Contract, dict[str, bytes]]:
    """The contract of a fact if these lines are added to the files, and what is in the files then."""
    contents = {}
    with tempfile.TemporaryDirectory() as directory:
        seeds = shutil.copytree(project() / "seeds", Path(directory) / "seeds")
        for name, added in lines.items():
            before = (project() / name).read_bytes()
            ending = b"" if before.endswith(b"\n") else b"\n"
            contents[name] = before + ending + "".join(f"{line}\n" for line in added).encode()
            (seeds / Path(name).name).write_bytes(contents[name])
        try:
            return load(seeds)[fact], contents
        except LockstepError as e:
            raise LockstepError(str(e).replace(str(seeds), str(project() / "seeds"))) from None


def _read(name: str) -> tuple[list[str], list[dict[str, str]]]:
    with (project() / name).open(newline="", encoding="utf-8-sig") as file:
        reader = csv.DictReader(file)
        return list(reader.fieldnames or ()), list(reader)


def _line(columns: list[str], row: dict[str, str]) -> str:
    text = io.StringIO()
    csv.DictWriter(text, columns, restval="", lineterminator="", extrasaction="ignore").writerow(row)
    return text.getvalue()
