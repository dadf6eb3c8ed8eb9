"""Contracts that name their grain, held against what their queries say: what differs, or the row that says as much."""

from __future__ import annotations

import csv
import io

from lockstep.contracts import ROUNDING, Contract, load
from lockstep.errors import LockstepError
from lockstep.figures import Figures, Queries
from lockstep.project import project


def notes() -> list[str]:
    """A sentence for each contract in full whose increments are derived."""
    from lockstep.derived import is_derived

    path = project() / "seeds" / "contracts.csv"
    with path.open(newline="", encoding="utf-8-sig") as file:
        reader = csv.DictReader(file)
        rows = {row["domain"]: row for row in reader if row.get("grain")}
    columns, queries, found = list(reader.fieldnames or ()), Queries(), []
    for domain, row in rows.items():
        contract = load()[domain]
        if not is_derived(contract):
            continue
        extremes = {m.name: (m.merge, "") for m in contract.merged if m.merge in ("max", "min")}
        try:
            figures = queries.figures(domain, extremes)
        except LockstepError as e:
            found.append(f"{domain} is in full in {path}, and needs to be: {e}")
            continue
        if differences := _differences(contract, figures):
            found.append(f"{domain} differs in {path} from its query: {'; '.join(differences)}.")
        else:
            found.append(f"{domain} repeats its query. {_instead(contract, figures, row, columns)}")
    return found


def _differences(contract: Contract, figures: Figures) -> list[str]:
    merges = {m.name: m.merge for m in contract.merged}
    said = {name: merge for name, (merge, _, _) in figures.measures.items()}
    batch = set(contract.measures("batch"))
    return [
        f"{what}: {', '.join(sorted(one)) or 'none'} in the contract, {', '.join(sorted(other)) or 'none'} in the query"
        for what, one, other in (
            ("grain", set(contract.grain), set(figures.grain)),
            ("measures", set(merges), set(said) - batch),
            *((f"how {n} merges", {merges[n]}, {said[n]}) for n in merges if n in said),
        )
        if one != other
    ]


def _instead(contract: Contract, figures: Figures, row: dict[str, str], columns: list[str]) -> str:
    """The row to write in the place of one in full, and which measures need a row of their own."""
    short = {**row, "source_key": "", "grain": ""}
    short["joined_tables"] = " ".join(table for table in contract.sources[1:] if table not in figures.tables)
    if contract.source_table == figures.tables[0]:
        short["source_table"] = ""
    text = io.StringIO()
    csv.DictWriter(text, columns, lineterminator="").writerow({name: short[name] for name in columns})
    kept = [
        m.name
        for m in contract.all_measures
        if m.merge in ("batch", "max", "min")
        or m.tolerance_absolute + m.tolerance_relative > ROUNDING
        or m.unit != figures.measures[m.name][1]
    ]
    return (
        f"Its row in contracts.csv may be\n  {text.getvalue()}\nand of its measures "
        f"{', '.join(kept) or 'none'} must stay in contract_measures.csv, beside descriptions of your own."
    )
