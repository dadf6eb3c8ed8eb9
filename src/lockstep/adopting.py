"""Taking up columns that are newly declared of tables whose changes have landed.

Up to some point of the source's log their values travel in the images' `extra`, and as a column they read NULL. At that
point a resync lands, for every row, the change from NULL to the value; from there on images have them. So the chain of
images is whole, and what a change takes away is what was added before.
"""

from __future__ import annotations

import shutil
import threading
from collections.abc import Callable
from pathlib import Path

from psycopg2 import errors

from lockstep.changelog import ChangeLog
from lockstep.errors import LockstepError
from lockstep.latest import differences
from lockstep.logs import about
from lockstep.moves import ADOPTING, Columns
from lockstep.postgres import Source
from lockstep.schema import TABLES
from lockstep.snapshot import Rows, Staged, land_differences, log, point


def adopt(
    home: Path, source: Source, columns: Columns, stop: threading.Event, land_until: Callable[[int], None]
) -> int:
    """Take up columns; returns the number of changes that landed. If `stop` is set meanwhile, the next start goes on.

    `land_until` captures what was committed before a point of the source's log, and nothing else.
    """
    tables = [TABLES[name] for name in columns]
    scratch = home / "snapshot"
    with source.first_connections() as (_, replication):
        identity = source.identity(replication)
        ChangeLog(home).begin_adopting(identity.source, columns)
        try:
            with point(source, replication, tables, lambda _: not stop.is_set()) as at:
                with TABLES.without(columns):
                    land_until(at.lsn)
                if stop.is_set():
                    return 0
                scratch.mkdir(exist_ok=True)
                with (
                    ChangeLog(home).writer(identity.source, "taking up columns", adopts=True) as writer,
                    writer.batch() as batch,
                ):
                    position = writer.watermark.position
                    batch.supersede_quarantine(set(columns))
                    for table in tables:
                        layout = source.layout(at.reading, table)
                        if layout.problem:
                            raise LockstepError(f"{table.name}: {layout.problem}.")
                        rows = Rows(identity.database, source.schema, at.xid, at.lsn, at.at)
                        staged = Staged(source, at.reading, layout, rows, scratch)
                        with differences(table, batch.files(table.name), position, staged.path, scratch) as found:
                            land_differences(batch, rows, layout, staged, found, [], position)
                    resume = {name: value for name, value in writer.watermark.resume.items() if name != ADOPTING}
                    landed = batch.land(resume=resume)
        except errors.QueryCanceled:
            if stop.is_set():
                return 0
            raise
        finally:
            shutil.rmtree(scratch, ignore_errors=True)
    for name, new in columns.items():
        extra = about("adopted", table=name, columns=list(new), position=landed.watermark.position)
        log.info("%s has %s from position %d on", name, ", ".join(new), position + 1, extra=extra)
    return landed.changes
