"""What each fact is computed from, and the SQL that is derived for it."""

from __future__ import annotations

from pathlib import Path

from lockstep.contracts import load
from lockstep.errors import LockstepError
from lockstep.project import project
from lockstep.warehouse import Row


def facts(measured_in: Path | None = None) -> list[Row]:
    """One row per fact, in the order of the contracts.

    `increments`: `derived`, `by hand` or, where there are none, `recomputed`, with the file that they come `of`;
    `because`: why they are not derived, None if they are. `tables`: the tables of the source that change it. `is_join`:
    whether a row of it comes from several rows of these. `figures`: `cells`, `finish` if they are computed from cells
    when they are read, or `query` if they are from the rows of the tables. `mode`: in batch, the rebuild is served and
    none of this. `measured_in` is a home: then each row also has what `costs.measured` finds there.
    """
    from lockstep import costs
    from lockstep.derived import is_derived, rows_of
    from lockstep.loader import import_macros
    from lockstep.recomputed import recomputed_of, why_recomputed

    import_macros()
    found = []
    for contract in load().values():
        domain = contract.domain
        if contract.is_recomputed:
            tables = list(recomputed_of(contract).columns)
            found.append(
                {
                    "fact": domain,
                    "increments": "recomputed",
                    "of": f"models/rebuild/{domain}.sql",
                    "because": why_recomputed(contract),
                    "tables": tables,
                    "is_join": len(tables) > 1,
                    "figures": "query",
                    "mode": contract.mode_in_effect,
                }
            )
            continue
        derived = is_derived(contract)
        merges = sorted({m.merge for m in contract.merged} - {"sum", "finish"})
        by_hand = f"models/diffs/{domain}.sql"
        has_file = (project() / by_hand).exists()
        rows = rows_of(contract) if derived else None
        because = f"it merges by {' and '.join(merges)}" if merges else f"{by_hand} is there"
        found.append(
            {
                "fact": domain,
                "increments": "derived" if rows else "by hand",
                "of": f"models/rebuild/{domain}.sql" if rows or not has_file else by_hand,
                "because": None if rows else because,
                "tables": rows.tables if rows else list(contract.sources),
                "is_join": bool(rows and rows.is_join),
                "figures": "finish" if contract.is_finished else "cells",
                "mode": contract.mode_in_effect,
            }
        )
    if measured_in:
        of = costs.measured(measured_in, load().values())
        return [row | of[str(row["fact"])] for row in found]
    return found


def derived_sql(fact: str) -> dict[str, str]:
    """The SQL that is derived for a fact, formatted, by what it is. Raises LockstepError if it is none or by hand.

    For a fact that is recomputed, its query and the rows that this reads.
    """
    from lockstep.derived import finish_of, is_derived, rows_of
    from lockstep.loader import import_macros
    from lockstep.recomputed import recomputed_of

    contract = load().get(fact)
    if contract is None:
        raise LockstepError(f"There is no fact {fact}. seeds/contracts.csv has {', '.join(load())}.")
    import_macros()
    if contract.is_recomputed:
        recomputed = recomputed_of(contract)
        found = {f"The rows of {t} (state.{fact}__{t})": _pretty(q) for t, q in recomputed.rows_now().items()}
        return found | {f"The figures (live.{fact}): the query as written, over these": _pretty(recomputed.now())}
    if not is_derived(contract):
        raise LockstepError(f"The increments of {fact} are written by hand, in models/diffs/{fact}.sql.")
    rows = rows_of(contract)
    name = f"The signed rows of {fact} (diffs.{fact}): minus what each change takes away, plus what it adds"
    found = {name: _pretty(rows.all().sql("duckdb"))}
    if rows.is_join:
        new = f"Those since an instant (hourly.{fact}, tail.{fact}): `state` is a table then, `delta` its changes since"
        found[new] = _pretty(rows.new().sql("duckdb"))
    if contract.is_finished:
        finish = finish_of(contract)
        for name, query in finish.sets.items():
            found[f"{name}: a set of the cells (cells.{fact}), by the keys that the finish needs"] = _pretty(query)
        found[f"The figures (live.{fact}): the finish over these"] = _pretty(finish.query)
    return found


def _pretty(query: str) -> str:
    from sqlglot import parse_one

    from lockstep.derive.trying import without_labels

    return without_labels(parse_one(query, dialect="duckdb")).sql("duckdb", pretty=True)
