"""Columns that join a log filled by Debezium's events, which nobody can ask for the rows of a table.

A newly declared column joins a table at one position, as soon as a change has landed that has it in its images'
`extra`. Up to there images read NULL in it. At that position a change from NULL lands for each row whose value `extra`
tells exactly. The value of any other row is not known until the source sends it: in a snapshot, or in a change of it.

The image before of that first change has the value, while the log's latest image of the row has NULL. It lands as the
log knows it, with NULL in the column and the value in `extra`. So images follow from each other, and what a change
takes away is what was added before: docs/decisions/0026-columns-join-without-a-source.md.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import duckdb
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from lockstep.changelog import ChangeLog
from lockstep.debezium import Settings, register
from lockstep.debezium.settings import Part
from lockstep.debezium.values import PLAIN_TEXTS, decoded, typed
from lockstep.errors import LockstepError
from lockstep.kinds import BOOLEAN, BYTES, DATE, TIME, TIMESTAMP
from lockstep.latest import live_images
from lockstep.logfiles import NO_HOUR
from lockstep.moves import JOINED, Columns
from lockstep.schema import TABLES, Column, Table, batch_schema, literal, quoted
from lockstep.texts import FLOATS, INTEGERS


def check(log: ChangeLog, columns: Columns) -> None:
    """Raise LockstepError for new columns that cannot join: those of keys, those that must not be NULL, and others."""
    for name, new in columns.items():
        table = TABLES[name]
        for column in (c for c in table.columns if c.name in new):
            if why := _problem(log, table, column):
                raise LockstepError(
                    f"Column {column.name} of {name} is new, and the changes that have landed do not have it. {why}"
                )


def _problem(log: ChangeLog, table: Table, column: Column) -> str | None:
    if not table.key:
        return (
            "Rows of a table without a key are known by all their columns, so none can be added. Leave it out of the "
            "declaration: its values are in the images' `extra`."
        )
    if column.name in table.key:
        return "A key cannot be changed. Undo it, or begin a log in another LOCKSTEP_HOME."
    if not column.nullable:
        return "Declare it without NOT NULL: rows read NULL in it until the source sends their values."
    if any(column.name in {f.name for f in pq.read_schema(path).field("after").type} for path in log.files(table.name)):
        return (
            "It was declared before and then left out, so changes are missing from it. Give it another name in the "
            f"log, by a comment at the end of its line: `-- named {column.name}_2`."
        )
    return None


def is_seen(log: ChangeLog, rows: pa.Table, columns: Sequence[Column]) -> bool:
    """Whether an image of these changes may have one of the columns in its `extra`."""
    connector = _connector(log) if columns else ""
    for side in ("before", "after"):
        extra = pc.struct_field(rows[side], "extra")
        for column in columns:
            member = f"{json.dumps(column.at(connector), ensure_ascii=False)}:"
            if pc.any(pc.match_substring(extra, member)).as_py():
                return True
    return False


def seen(con: duckdb.DuckDBPyConnection, log: ChangeLog, table: Table, names: Sequence[str]) -> list[str]:
    """Those of the columns that an image in the log has in its `extra`."""
    connector = _connector(log)
    found = []
    for column in (c for c in table.columns if c.name in names):
        has = " OR ".join(f"{_raw(column, connector, f'{side}.extra')} IS NOT NULL" for side in ("before", "after"))
        if con.execute(f"SELECT 1 FROM ({landed(log, table)}) WHERE {has} LIMIT 1").fetchall():
            found.append(column.name)
    return found


@dataclass
class Joined:
    """How columns joined a table: for how many rows `extra` told a value, and for how many it did not."""

    told: int = 0
    untold: int = 0

    def sentence(self, table: str, columns: Sequence[str], position: int) -> str:
        """What to tell the user: `position` is the first at which images have the columns."""
        said = (
            f"{table} has {', '.join(columns)} from position {position:,} on: of {self.told:,} rows the value was known"
        )
        if not self.untold:
            return f"{said}, all others have none."
        return (
            f"{said}, {self.untold:,} rows read NULL until they change, or until a snapshot by Debezium (an "
            "incremental one, say) sends them."
        )


def from_extra(
    con: duckdb.DuckDBPyConnection, log: ChangeLog, table: Table, names: Sequence[str], counts: Joined
) -> Iterator[pa.Table]:
    """The changes that give rows the values of new columns, wherever a row's `extra` tells the value exactly."""
    watermark, connector = log.watermark(), _connector(log)
    part = Part(table, None, connector, {}, Settings.stored(watermark.resume))
    raw = {c.name: _raw(c, connector, "image.extra") for c in table.columns if c.name in names}
    value = {c.name: _exact(part, c, raw[c.name]) for c in table.columns if c.name in names}
    image = ", ".join(f"{c.sql} := {value.get(c.name, f'image.{c.sql}')}" for c in table.columns)
    is_told = " OR ".join(f"after.{quoted(name)} IS NOT NULL" for name in names)
    # What `extra` has as null is told as well.
    is_untold = " OR ".join(
        f"(after.{quoted(name)} IS NULL AND COALESCE({raw[name]}::VARCHAR <> 'null', TRUE))" for name in names
    )
    with TemporaryDirectory() as scratch:
        for images in live_images(table, log.files(table.name), watermark.position, Path(scratch)):
            register(con, "images", pa.table({"image": images}))
            rows = con.execute(
                f"""
                SELECT ROW_NUMBER() OVER () AS ordinal, ?::TIMESTAMP AS committed_at, 'r' AS op, image AS before, after,
                  NULL::BIGINT AS tx_id, NULL::BIGINT AS lsn, {is_told} AS is_told, {is_untold} AS is_untold
                FROM (SELECT image, struct_pack({image}, extra := image.extra) AS after FROM images)
                """,
                [watermark.logged_at],
            ).to_arrow_table()
            counts.untold += pc.sum(rows["is_untold"].cast(pa.int64())).as_py() or 0
            rows = rows.filter(rows["is_told"]).drop_columns(["is_told", "is_untold"])
            counts.told += rows.num_rows
            if rows.num_rows:
                yield rows.cast(batch_schema(table))


def _connector(log: ChangeLog) -> str:
    return (log.watermark().source or "").partition(":")[0]


def _raw(column: Column, connector: str, extra: str) -> str:
    """SQL for a column's value in an `extra`, as JSON; null if it is not there."""
    name = column.at(connector).replace("~", "~0").replace("/", "~1")
    return f"json_extract({extra}, {literal(f'/{name}')})"


def _exact(part: Part, column: Column, raw: str) -> str:
    """SQL for a column's value in `extra`, null unless it can only mean one value of the column's type.

    `extra` has no schema: nothing says any more in which unit a number counts a time, or how some texts are encoded.
    """
    kind = column.kind
    is_number = kind.name in (*INTEGERS, *FLOATS) or kind.is_decimal
    value = typed(part, column, decoded(part, column, raw) if is_number else raw)
    if kind.type in (TIME, TIMESTAMP):
        return f"CASE WHEN starts_with({raw}::VARCHAR, '\"') THEN {value} END"
    if kind.type == BYTES:
        return f"CASE WHEN starts_with({raw} ->> '$', '\\x') THEN {value} END"
    if kind.name == "other":
        return f"CASE WHEN NOT starts_with({raw} ->> '$', '\\x') THEN plain_text({raw}) END"
    is_exact = is_number or kind.name in PLAIN_TEXTS or kind.type in (BOOLEAN, DATE)
    return value if is_exact else f"NULL::{kind.duckdb}"


def landed(log: ChangeLog, table: Table, until: int | None = None) -> str:
    """SELECT position, op, before, after: the table's visible changes, before position `until`, as now declared."""
    watermark = log.watermark()
    files = [log.root / table.name / NO_HOUR / "0-0.parquet", *log.files(table.name, until=watermark.position)]
    last = watermark.position if until is None else min(until - 1, watermark.position)
    images = {s: ", ".join(f"{c.sql} := {s}.{c.sql}" for c in table.columns) for s in ("before", "after")}
    columns = (
        f"CASE WHEN {side} IS NOT NULL THEN struct_pack({image}, extra := {side}.extra) END AS {side}"
        for side, image in images.items()
    )
    return (
        f"SELECT position, op, {', '.join(columns)} "
        f"FROM read_parquet({[str(f) for f in files]!r}, hive_partitioning = FALSE) WHERE position <= {last}"
    )


class Unknown:
    """The rows whose value in a joined column is not known yet, and how the next change of such a row lands.

    Works on `fresh_<table>` in the connection. `until` looks only at the log before that position.
    """

    def __init__(self, con: duckdb.DuckDBPyConnection, log: ChangeLog, until: int | None = None) -> None:
        self._con = con
        self._log = log
        self._until = until
        self._noted: dict[str, Mapping[str, int]] = {}

    def forget(self) -> None:
        """Look at the log again: another command may have written to it."""
        self._noted.clear()

    def masked(self, table: Table) -> str | None:
        """The SELECT of the fresh changes with the image before as the log knows it; None if all are so already."""
        con, fresh, unknown = self._con, f"fresh_{table.name}", f"unknown_{table.name}"
        joined = self._log.watermark().resume.get(JOINED, {}).get(table.name, {})
        columns = [c for c in table.columns if c.name in joined]
        has_value = " OR ".join(f"before.{c.sql} IS NOT NULL" for c in columns) or "FALSE"
        is_concerned = f"SELECT 1 FROM {fresh} WHERE op IN ('u', 'd') AND ({has_value}) LIMIT 1"
        if self._noted.get(table.name) != joined:
            if not columns or not con.execute(is_concerned).fetchall():
                return None
            self._note(table, joined)
        flags = {c.name: quoted(f"is_unknown_{i}") for i, c in enumerate(table.columns)}
        con.execute(
            f"""
            CREATE OR REPLACE TABLE first_changes AS
            SELECT key, MIN(ordinal) AS ordinal FROM (
              SELECT ordinal, {_key(table, "before")} AS key FROM {fresh} WHERE before IS NOT NULL
              UNION ALL SELECT ordinal, {_key(table, "after")} FROM {fresh} WHERE after IS NOT NULL
            ) GROUP BY key;
            CREATE OR REPLACE TABLE masks AS
            SELECT ordinal, unknown.* EXCLUDE (key, digest)
            FROM {fresh} AS fresh
            JOIN first_changes USING (ordinal)
            JOIN {unknown} AS unknown ON unknown.key = first_changes.key
            WHERE op IN ('u', 'd') AND first_changes.key = {_key(table, "before")} AND ({has_value})
              AND digest = {_digest(table, "before", flags)};
            DELETE FROM {unknown} WHERE key IN (SELECT key FROM first_changes);
            """
        )
        if not con.execute("SELECT 1 FROM masks LIMIT 1").fetchall():
            return None
        image = ", ".join(f"{c.sql} := CASE WHEN NOT {flags[c.name]} THEN before.{c.sql} END" for c in table.columns)
        connector = _connector(self._log)
        members = ", ".join(
            f"CASE WHEN {flags[c.name]} AND before.{c.sql} IS NOT NULL "
            f"THEN {literal(json.dumps(c.at(connector), ensure_ascii=False))} || ':' || {_as_json(c)} END"
            for c in columns
        )
        extra = f"'{{' || concat_ws(',', NULLIF(before.extra[2:-2], ''), {members}) || '}}'"
        return f"""
            SELECT fresh.* REPLACE (
              CASE WHEN masks.ordinal IS NULL THEN before ELSE struct_pack({image}, extra := {extra}) END AS before
            )
            FROM {fresh} AS fresh LEFT JOIN masks ON fresh.ordinal = masks.ordinal
        """

    def _note(self, table: Table, joined: Mapping[str, int]) -> None:
        """Make `unknown_<table>`: the keys of these rows, which columns are not known, and a digest of the others."""
        is_unknown = {
            c.name: f"(after.{c.sql} IS NULL AND position <= {joined[c.name]})" if c.name in joined else "FALSE"
            for c in table.columns
        }
        keys = ", ".join(f"COALESCE(after.{k}, before.{k})" for k in table.sql_key)
        changes = landed(self._log, table, self._until)
        self._con.execute(
            f"""
            CREATE OR REPLACE TABLE unknown_{table.name} AS
            SELECT {_key(table, "after")} AS key, {_digest(table, "after", is_unknown)} AS digest,
              {", ".join(f"{flag} AS is_unknown_{i}" for i, flag in enumerate(is_unknown.values()))}
            FROM ({changes})
            WHERE after IS NOT NULL AND op <> 'd' AND ({" OR ".join(is_unknown.values())})
              AND position IN (SELECT MAX(position) FROM ({changes}) GROUP BY {keys})
            """
        )
        self._noted[table.name] = joined


def _key(table: Table, image: str) -> str:
    return f"struct_pack({', '.join(f'{k} := {image}.{k}' for k in table.sql_key)})"


def _digest(table: Table, image: str, is_unknown: Mapping[str, str]) -> str:
    """SQL for a digest of what is known of an image."""
    return f"HASH({', '.join(f'CASE WHEN NOT {is_unknown[c.name]} THEN {image}.{c.sql} END' for c in table.columns)})"


def _as_json(column: Column) -> str:
    """SQL for a value of the image before as JSON, as `extra` has it."""
    value = f"before.{column.sql}"
    if column.type == BYTES:
        value = f"'\\x' || lower(hex({value}))"
    elif not (column.kind.name in INTEGERS or column.type == BOOLEAN):
        value += "::VARCHAR"
    return f"to_json({value})::VARCHAR"
