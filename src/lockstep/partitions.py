"""Partitions of captured tables that lost or gained rows without any event.

A partitioned table is captured by its root. PostgreSQL sends nothing when one partition is truncated, dropped or
detached, or attached with rows in it. So a file of the data home keeps the partitions as they were when a look last
found nothing wrong. A table whose partitions have changed in one of these ways since is held until it is resynced.

    <home>/partitions.json   by table: null while it is held for that, or its partitions
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from lockstep.changelog import Watermark
from lockstep.durable import durable_replace
from lockstep.errors import LockstepError

FILE = "partitions.json"


@dataclass(frozen=True)
class Partition:
    """A partition, on any level, as the catalog has it.

    `attached` and `created` are the transactions that made it a partition and that made the table. `storage` is the
    file that has its rows, and `changed` the last transaction that changed the table in the catalog: right after a
    TRUNCATE, that one. `is_whole`: it can be captured as it is, see `Source.partitions`.
    """

    name: str
    attached: str
    created: str
    storage: str
    changed: str
    is_whole: bool = True


Partitions = Mapping[str, Mapping[str, Partition]]  # by table and OID


def noted(home: Path) -> dict[str, dict[str, Partition] | None]:
    """What was noted last; nothing by an older version. Raises LockstepError if it cannot be read."""
    try:
        text = (home / FILE).read_text(encoding="utf-8")
    except FileNotFoundError:
        return {}
    try:
        raw: dict[str, Any] = json.loads(text)
        return {
            table: None if found is None else {oid: Partition(**facts) for oid, facts in found.items()}
            for table, found in raw.items()
        }
    except (AttributeError, TypeError, ValueError):
        raise LockstepError(
            f"{home / FILE} is damaged. Move it away: partitions are compared from then on, and "
            "`lockstep verify-source` says whether rows came or went with one meanwhile."
        ) from None


def note(home: Path, partitions: Mapping[str, Mapping[str, Partition] | None]) -> None:
    """Note the partitions of each table, None for one that is held. The caller must hold the log's lock."""
    if partitions == noted(home):
        return
    if not partitions:
        (home / FILE).unlink(missing_ok=True)
        return
    rows = {
        table: None if found is None else {oid: asdict(partition) for oid, partition in found.items()}
        for table, found in partitions.items()
    }
    durable_replace(home / FILE, json.dumps(rows).encode())


def gaps(
    before: Mapping[str, Mapping[str, Partition] | None],
    now: Partitions,
    filled: Mapping[str, str],
    truncated: Mapping[str, int],
) -> dict[str, str]:
    """Why tables may lack changes, by table.

    `truncated` is the transaction that last truncated a whole table and has landed. `filled` are the partitions, by
    OID, that have rows and were attached since `before`.
    """
    found = {}
    for table, partitions in now.items():
        was = before.get(table)
        if was is None:
            continue
        lost = [p.name for oid, p in was.items() if oid not in partitions]
        again = [p.name for oid, p in partitions.items() if oid in was and p.attached != was[oid].attached]
        emptied = [
            p.name
            for oid, p in partitions.items()
            if oid in was and p.storage != was[oid].storage and p.changed != str(truncated.get(table))
        ]
        why = [
            f"{', '.join(names)} {'was' if len(names) == 1 else 'were'} {what}"
            for names, what in (
                (lost, "dropped or detached"),
                (again, "detached and attached again"),
                ([n for n in emptied if n not in again], "truncated or rewritten (VACUUM FULL, CLUSTER, ALTER TYPE)"),
                ([filled[oid] for oid in partitions if oid in filled], "attached with rows in it"),
            )
            if names
        ]
        if why:
            found[table] = (
                f"of the partitions of {table}, {'; '.join(why)}. PostgreSQL sends nothing of that: "
                f"`lockstep capture ... --resync {table}` lands what is missing"
            )
    return found


def attached(before: Mapping[str, Mapping[str, Partition] | None], now: Partitions) -> dict[str, str]:
    """The names of partitions that were made as tables of their own and attached since, by OID."""
    return {
        oid: p.name
        for table, partitions in now.items()
        if (was := before.get(table)) is not None
        for oid, p in partitions.items()
        if oid not in was and p.attached != p.created
    }


def next_notes(
    before: Mapping[str, Mapping[str, Partition] | None],
    now: Partitions,
    found: Mapping[str, str],
    watermark: Watermark,
) -> dict[str, Mapping[str, Partition] | None]:
    """What to note after a look that found these gaps. A held table keeps its gap until it is resynced.

    If it is held no more, its event was discarded, and it is taken as it is.
    """
    return {
        table: None if table in found or (before.get(table, ()) is None and table in watermark.holds) else partitions
        for table, partitions in now.items()
    }
