"""Breaks in the chain of a table's images, found before an hour is folded and before the tail is published.

Each change must follow from the one before on its key: its image before is that one's image after. `models/chain` asks
this by night of all that a rebuild is going to read. Here it is asked of what has landed since the last look, before
anything reads that: a table with a change that does not follow is held from the first position of the change's
transaction (see `changelog.Hold`), by an event in quarantine that says why. A resync of the table lifts that; so does
the next look, where a damaged file was the reason and has been restored.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import duckdb
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from lockstep import chain, checkpoints
from lockstep.changelog import ALL_TABLES, ChangeLog, Hold, Watermark, is_gap
from lockstep.errors import LockstepError
from lockstep.kinds import zero
from lockstep.logfiles import begins_at, hour_name, hour_of, span
from lockstep.logs import about
from lockstep.moves import empty_file
from lockstep.schema import TABLES, TIMESTAMP, Column, Table, literal

log = logging.getLogger("lockstep.breaks")

_PATIENCE = 60.0  # seconds; a capture lends the log between two batches, and a batch is seconds
_MOST = 100  # breaks; the first few are told
_REASON = "contradicts itself: "

Entry = dict[str, Any]  # as `ChangeLog.quarantined` returns it


@dataclass(frozen=True)
class Break:
    """A change that does not follow from the one before on its key, which is at `previous_position` if it is known."""

    position: int
    previous_position: int | None
    key: str
    found: str
    logged_at: datetime
    op: str
    tx_id: int | None

    @property
    def finding(self) -> dict[str, Any]:
        """As `chain.<table>` has it."""
        return {n: getattr(self, n) for n in ("position", "previous_position", "key", "found")}


def foldable_until(home: Path, tables: Sequence[str]) -> datetime | None:
    """The end of the last hour that a reader of `tables` may fold: sealed, and every change until then follows.

    Tables with a change that does not follow are held. What could not be checked is not folded, and raises nothing: an
    error would end the run for facts that need none of it. The publication after the run says why.
    """
    changes = ChangeLog(home)
    sealed = changes.watermark().sealed_until(tables)
    if sealed is None:
        return None
    checked = _look(changes, tables, sealed).sealed_until(tables)
    now = changes.watermark().sealed_until(tables)  # another command may hold a table since
    return min(sealed, checked, now) if checked and now else None


def hold_what_breaks(home: Path) -> Watermark:
    """Check every change that has landed since the last look, and return the watermark it was checked up to.

    A table with a change that does not follow is held; a table held for that is released if every change follows now.
    Raises LockstepError if a file cannot be read, or another command does not lend the log.
    """
    return _look(ChangeLog(home), TABLES)


def _look(changes: ChangeLog, tables: Iterable[str], before: datetime | None = None) -> Watermark:
    """What `hold_what_breaks` does, for some tables.

    With `before`, only changes logged in hours before that one are checked, and nothing is raised: a table that could
    not be checked is held, in the watermark that is returned only, from the first change that was not.
    """
    watermark = changes.watermark()
    held = _held_by_a_break(changes, watermark)
    checked = checkpoints.checked(changes.home)
    unknown: dict[str, Hold] = {}
    followed: dict[str, int] = {}
    broken: dict[str, list[Break]] = {}
    mended: list[Entry] = []
    for table in (TABLES[name] for name in tables if TABLES[name].key):
        after = min(checked.until.get(table.name, 0), watermark.position)
        until = watermark.position if table.name in held else _end(changes, watermark, table, after, before)
        if until <= after:
            if checked.until.get(table.name, 0) > watermark.position:
                followed[table.name] = watermark.position  # an older log was restored
            continue
        try:
            found = find(changes, table, after, until)
        except LockstepError as e:
            if before is None:
                raise
            log.error("%s is not folded: %s", table.name, e)
            first = min(path.parent.name for path in changes.files(table.name, after, until))
            unknown[table.name] = Hold(after + 1, hour_of(first))
            continue
        if found and table.name not in held:
            broken[table.name] = found
        elif not found:
            followed[table.name] = until
            mended += held.get(table.name, [])
    if broken or mended:
        try:
            watermark = _decide(changes, watermark, broken, mended)
        except LockstepError as e:
            if before is None:
                raise
            log.error("%s", e)
            unknown |= {name: Hold(found[0].position, found[0].logged_at) for name, found in broken.items()}
            followed = {name: until for name, until in followed.items() if name not in held}
    if followed:
        checkpoints.note_checked(changes.home, replace(checked, until=followed))
    return replace(watermark, holds={**watermark.holds, **unknown})


def _end(changes: ChangeLog, watermark: Watermark, table: Table, after: int, before: datetime | None) -> int:
    """The last position after `after` to check: before a hold of the table, and before the hour `before`."""
    holds = [hold.position for name, hold in watermark.holds.items() if name in (table.name, ALL_TABLES)]
    until = min([watermark.position, *(position - 1 for position in holds)])
    if before is None:
        return until
    later = (path for path in changes.files(table.name, after, until) if path.parent.name >= hour_name(before))
    return min([until, *(begins_at(path) - 1 for path in later)])


def broken_at(changes: ChangeLog, table: Table, until: int) -> list[int]:
    """The positions up to `until` of all breaks for which a table is held; a resync has to mend their keys.

    It must do so even where the last image is the source's row and the images add up, as when the changes of a row
    landed in another order.
    """
    if table.name not in _held_by_a_break(changes, changes.watermark()):
        return []
    after = checkpoints.checked(changes.home).until.get(table.name, 0)
    return [b.position for b in find(changes, table, after, until, most=None)]


def find(changes: ChangeLog, table: Table, after: int, until: int, most: int | None = _MOST) -> list[Break]:
    """The changes of a table at positions (`after`, `until`] that do not follow, the first `most`, in their order.

    Changes are compared with the rows of the newest checkpoint that is not after `after`, and with the changes since.
    The checkpoints of an append-only table have no rows: there, only changes since the checkpoint are compared with one
    another, and the nightly check compares all of them.
    """
    base = checkpoints.newest(changes.home, table.name, after)
    try:
        if not any(span(path)[1] > after for path in changes.files(table.name, after, until)):
            return []
        rows = _rows(changes, table, base, after, until, most)
    except (duckdb.Error, OSError, pa.ArrowInvalid) as e:
        if base and checkpoints.check(changes.home):
            return find(changes, table, after, until, most)
        raise _unreadable(changes, table, after, until, e) from None
    if rows and base and checkpoints.check(changes.home):  # it may not be the changes that are wrong
        return find(changes, table, after, until, most)
    return [Break(*row) for row in rows]


def _rows(
    changes: ChangeLog,
    table: Table,
    base: checkpoints.Checkpoint | None,
    after: int,
    until: int,
    most: int | None,
) -> list[tuple[Any, ...]]:
    since = base.position if base else 0
    with TemporaryDirectory() as scratch:
        files = (empty_file(table, Path(scratch)), *changes.files(table.name, since, until))
        state = literal(str(changes.home / base.path)) if base and base.sha256 else None
        query = _query(table, ", ".join(literal(str(path)) for path in files), state, since, after, until, most)
        config = {"memory_limit": "1GB", "temp_directory": scratch, "preserve_insertion_order": False}
        with duckdb.connect(config=config) as connection:
            found: list[tuple[Any, ...]] = connection.execute(query).fetchall()
            return found


def _unreadable(changes: ChangeLog, table: Table, after: int, until: int, error: Exception) -> LockstepError:
    """Which of a table's files cannot be read. A file may be whole at its end, and damaged before."""
    which = f"A file of {table.name} in {changes.root}"
    for path in changes.files(table.name, after, until):
        try:
            pq.read_table(path, partitioning=None)
        except (OSError, pa.ArrowException) as e:
            which, error = str(path), e
            break
    said = str(error).splitlines()[0].rpartition("': ")[2].rstrip(".")  # the path is said already
    return LockstepError(f"{which} cannot be read: {said}. `lockstep log check` names every such file.")


def _query(table: Table, files: str, state: str | None, since: int, after: int, until: int, most: int | None) -> str:
    def one(values: Sequence[str]) -> str:
        return values[0] if len(values) == 1 else f"ROW({', '.join(values)})"

    def digest(image: str) -> str:
        return f"HASH({', '.join(f'{image}{c.sql}::{c.kind.duckdb}' for c in table.columns)})"

    def is_blank(column: Column) -> str:
        blank = zero(column.kind.duckdb)
        return f"COALESCE(before.{column.sql}, {blank}) = {blank}"

    key = one([f"COALESCE(after.{k}, before.{k})" for k in table.sql_key])
    rows = f"""
          SELECT
            0 AS position, 'r' AS op, {one(table.sql_key)} AS key, NULL AS before_image, {digest("")} AS after_image
          FROM read_parquet({state}, hive_partitioning = FALSE)
          WHERE {one(table.sql_key)} IN (SELECT key FROM touched) UNION ALL
    """
    is_bare = " AND ".join([is_blank(c) for c in table.columns if c.name not in table.key] or ["FALSE"])
    return f"""
        WITH log AS NOT MATERIALIZED (
          SELECT *, {key} AS key
          FROM read_parquet([{files}], hive_partitioning = FALSE)
          WHERE position > {since} AND position <= {until}
        ), touched AS (
          SELECT DISTINCT key FROM log WHERE position > {after}
        ), changes AS (
          {rows if state else ""}
          SELECT
            position, op, key,
            CASE WHEN before.{table.sql_key[0]} IS NOT NULL THEN {digest("before.")} END AS before_image,
            CASE WHEN after.{table.sql_key[0]} IS NOT NULL THEN {digest("after.")} END AS after_image
          FROM log WHERE key IN (SELECT key FROM touched)
        ), chain AS (
          SELECT
            *,
            LAG(position) OVER earlier AS previous_position,
            LAG(after_image) OVER earlier AS previous_image,
            -- A resync mends what was before it on its key: its changes have one image, or the same one twice.
            MAX(position) FILTER (WHERE op = 'r' AND COALESCE(before_image = after_image, TRUE)) OVER (PARTITION BY key)
              AS mended_at
          FROM changes WINDOW earlier AS (PARTITION BY key ORDER BY position)
        ), broken AS (
          SELECT position, previous_position, previous_image, key FROM chain
          WHERE position > {after} AND before_image IS DISTINCT FROM previous_image
            AND position > COALESCE(mended_at, 0) {"AND previous_position IS NOT NULL" if since and not state else ""}
          ORDER BY position {f"LIMIT {most}" if most else ""}
        )
        SELECT
          position, NULLIF(previous_position, 0), broken.key::TEXT,
          CASE
            WHEN before IS NULL THEN 'is an insert of a key that lives'
            WHEN previous_image IS NULL AND after IS NULL THEN 'is a delete of a key that does not live'
            WHEN previous_image IS NULL THEN 'is an update of a key that does not live'
            WHEN {is_bare} THEN {literal(chain.BARE)}
            ELSE 'has an image before that is not the last one of its key'
          END,
          logged_at, op, tx_id
        FROM broken JOIN log USING (position) ORDER BY position
    """


def _begin(changes: ChangeLog, broken: Break) -> Hold:
    """Where the transaction of a change begins. What a snapshot or a resync read is of none."""
    first = broken.position
    if broken.op != "r" and broken.tx_id is not None:
        logged_at = pa.scalar(broken.logged_at, TIMESTAMP)
        for path in changes.root.glob(f"[!_]*/{hour_name(broken.logged_at)}/*.parquet"):
            rows = pq.read_table(path, columns=["position", "logged_at", "tx_id"], partitioning=None)
            is_own = pc.and_(pc.equal(rows["tx_id"], broken.tx_id), pc.equal(rows["logged_at"], logged_at))
            first = min([first, *rows["position"].filter(is_own).to_pylist()])
    return Hold(first, broken.logged_at)


# -- Holding and lifting


def _held_by_a_break(changes: ChangeLog, watermark: Watermark) -> dict[str, list[Entry]]:
    """The open quarantine events that hold a table because of a break, by table."""
    held: dict[str, list[Entry]] = {}
    for entry in changes.quarantined(watermark.position) if watermark.holds else []:
        if entry["state"] == "open" and is_gap(entry) and _REASON in entry["reason"]:
            held.setdefault(entry["table"], []).append(entry)
    return held


def _decide(
    changes: ChangeLog, watermark: Watermark, broken: Mapping[str, Sequence[Break]], mended: Sequence[Entry]
) -> Watermark:
    """Hold what is broken and lift the holds of what is mended; returns the watermark that was looked at, with that."""
    assert watermark.source
    with changes.writer(watermark.source, "holding tables that contradict themselves", patience=_PATIENCE) as writer:
        if broken:
            with writer.batch() as batch:
                for name, found in broken.items():
                    reason = f"{name} {_REASON}{chain.told(changes.home, name, [b.finding for b in found])}".rstrip(".")
                    batch.hold({name: reason}, _begin(changes, found[0]))
                    log.error("%s is held: %s", name, reason, extra=about("break", table=name, reason=reason))
                batch.land()
        if mended:
            writer.resolve({}, mended)
            for entry in mended:
                log.warning("%s is held no more: its images follow from each other again.", entry["table"])
        return replace(watermark, holds=writer.watermark.holds)
