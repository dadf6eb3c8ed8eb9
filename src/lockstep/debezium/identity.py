"""Which table of the log a change belongs to, and by what an event that is sent again is known."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import duckdb

from lockstep.changelog import ALL_TABLES
from lockstep.debezium.envelope import register
from lockstep.errors import LockstepError
from lockstep.names import Name, note
from lockstep.project import project
from lockstep.schema import SCHEMA_FILE, TABLES, Table, literal


def name_tables(con: duckdb.DuckDBPyConnection) -> None:
    """Set `table` of each change in `records` to the table's name in the log; unknown tables keep their own name.

    A change that could belong to several tables becomes FOREIGN and belongs to ALL_TABLES.
    """
    found = con.execute(
        """SELECT DISTINCT connector, "schema", name FROM records WHERE kind = 'change' ORDER BY ALL"""
    ).fetchall()
    labels = []
    for connector, schema, name in found:
        tables = TABLES.called(connector, schema, name)
        label = ALL_TABLES if len(tables) > 1 else tables[0].name if tables else _label(connector, schema, name)
        if label != name:
            same = (
                f"{column} IS NOT DISTINCT FROM {'NULL' if value is None else literal(value)}"
                for column, value in (("connector", connector), ('"schema"', schema), ("name", name))
            )
            labels.append(f"WHEN {' AND '.join(same)} THEN {literal(label)}")
    if not labels:
        return
    records = con.execute(
        f"""
        SELECT * REPLACE (
          CASE WHEN "table" = '{ALL_TABLES}' THEN '{FOREIGN}' ELSE kind END AS kind
        ) FROM (
          SELECT * REPLACE (
            CASE WHEN kind <> 'change' THEN "table" {" ".join(labels)} ELSE "table" END AS "table"
          ) FROM records
        )
        """
    ).to_arrow_table()
    register(con, "records", records)


def _label(connector: str | None, schema: str | None, name: str) -> str:
    """A name for a table that the project does not declare; it differs from all names that the project uses."""
    is_alike = name in TABLES or any(t.at(connector) == name for t in TABLES.values())
    return name if not is_alike else f"{schema}.{name}" if schema else f'"{name}"'


# The kind of a change that cannot land because of its table: it is in another schema than the source table of that
# name, or it has no key and the change cannot be recognized if it is sent again.
FOREIGN = "foreign"

_KEYLESS = "{} is declared append-only and has no key, so "

_NUMBERED = (
    "an event that comes twice can be told from two equal rows only by its number in the transaction, which it lacks: "
    "provide.transaction.metadata=true has the connector send it"
)

_READ = (
    "what a connector's snapshot read of it may have come before, and nothing tells: land only what is added "
    "(snapshot.mode=no_data), or follow it with `lockstep capture`"
)

_CHANGED = (
    "none of its rows can be changed or deleted: declare its key if it has one, and discard the event if the row may "
    "stay as it was"
)

_SEVERAL = "it names no schema, and several source tables are called "


class Schemas:
    """Which table of the source each table of the log is. The schema is the declared one, else the one that the log was
    captured from, else that of the table's first event; the log stores it, so that no other table can replace it.
    """

    def __init__(self, resume: Mapping[str, Any]) -> None:
        """`resume` is the watermark's. Raises LockstepError if the log has something else than is declared."""
        self._captured = resume.get("schema")
        self._first: dict[str, str] = dict(resume.get("schemas", {}))
        self._names: dict[str, str] = dict(resume.get("names", {}))
        for name, schema in self._first.items():
            if name in TABLES:
                self._check(TABLES[name], schema, self._names.get(name, name))

    def _check(self, table: Table, schema: str, source: str) -> None:
        declared = table.schema or (Name(self._captured) if self._captured else Name(schema))
        if not declared.fits(schema):
            raise LockstepError(
                f"The change log holds {table.name} of the schema {schema}, {project() / SCHEMA_FILE} declares it in "
                f"{declared}. Declare {schema}.{source}, or land the other into a LOCKSTEP_HOME of its own."
            )
        if not (table.source or Name(table.name)).fits(source):
            raise LockstepError(
                f"The change log holds {schema}.{source} under the name {table.name}, {project() / SCHEMA_FILE} gives "
                f"that name to {table.source}. Give each its name again with the line `{note(table.name)}` before "
                "the CREATE TABLE, or land the other into a LOCKSTEP_HOME of its own."
            )

    @property
    def stored(self) -> Mapping[str, Any]:
        """For the watermark's `resume`."""
        return {key: value for key, value in (("schemas", self._first), ("names", self._names)) if value}

    def part(self, con: duckdb.DuckDBPyConnection) -> None:
        """Tell apart in `records` what is of another schema than its table: where that is captured it is another table,
        which the project does not know; else it is FOREIGN.
        """
        found = con.execute(
            """
            SELECT "table", "schema", ANY_VALUE(name) FROM records WHERE kind = 'change' AND "schema" IS NOT NULL
            GROUP BY ALL ORDER BY MIN(ordinal)
            """
        ).fetchall()
        others = []
        for table, schema, name in found:
            if table in TABLES:
                own = TABLES[table].schema is None and self._captured
                if not own and self._first.setdefault(table, schema) == schema and name != table:
                    self._names.setdefault(table, name)
                if TABLES[table].schema is None and schema != (own or self._first[table]):
                    others.append((table, schema))
        is_keyless = self._is_keyless()
        has_keyless = con.execute(f"SELECT 1 FROM records WHERE {is_keyless} LIMIT 1").fetchall()
        if not others and not has_keyless:
            return
        pairs = ", ".join(f"({literal(table)}, {literal(schema)})" for table, schema in others) or "('', '')"
        is_other = f"""kind = 'change' AND ("table", "schema") IN ({pairs})"""
        is_known = "TRUE" if self._captured else "FALSE"
        records = con.execute(
            f"""
            SELECT * REPLACE (
              CASE
                WHEN {is_other} AND NOT {is_known} THEN '{FOREIGN}'
                WHEN {is_keyless} AND NOT ({is_other}) THEN '{FOREIGN}'
                ELSE kind
              END AS kind,
              CASE WHEN {is_other} AND {is_known} THEN "schema" || '.' || name ELSE "table" END AS "table"
            ) FROM records
            """
        ).to_arrow_table()
        register(con, "records", records)

    def _is_keyless(self) -> str:
        """SQL over `records`: whether the event has a table without a key and is not an insert with an identity.

        Rows of one COPY share their lsn, so PostgreSQL's need the number in their transaction. What `lockstep capture`
        has rejected needs none: it is retried by its place in the log.
        """
        is_known = "TRUE" if self._captured else f"({_HAS_NUMBER})"
        return f"""kind = 'change' AND {_of_keyless()} AND NOT (op = 't' OR op = 'c' AND {is_known}) IS TRUE"""

    def reason(self) -> str:
        """SQL over `records`: why an event of the kind FOREIGN does not land; null for all others."""
        whens = f"WHEN op = 'c' THEN {literal(_NUMBERED)} WHEN op = 'r' THEN {literal(_READ)}"
        why = f"CASE {whens} ELSE {literal(_CHANGED)} END"
        reasons = {t.name: f"{literal(_KEYLESS.format(t.name))} || {why}" for t in TABLES.values() if not t.key}
        for name, schema in self._first.items():
            reasons.setdefault(name, f"""'it is a change of ' || "schema" || {literal(self._reason(name, schema))}""")
        cases = " ".join(f"WHEN {literal(name)} THEN {reason}" for name, reason in reasons.items())
        several = f"WHEN '{ALL_TABLES}' THEN {literal(_SEVERAL)} || name"
        return f"""CASE WHEN kind = '{FOREIGN}' THEN CASE "table" {several} {cases} END END"""

    def _reason(self, name: str, schema: str) -> str:
        source = self._names.get(name, name)
        return (
            f".{source}, but {name} in this change log is {schema}.{source}: two tables of one name are not mixed. "
            f"Declare which it is in {SCHEMA_FILE}, CREATE TABLE {schema}.{source}, then events of the other are "
            "passed over; what is in quarantine of it can be discarded"
        )


_HAS_NUMBER = "connector IS DISTINCT FROM 'postgresql' OR total_order IS NOT NULL"


def _of_keyless() -> str:
    """SQL over `records`: whether a record is of a table without a key."""
    names = ", ".join(literal(table.name) for table in TABLES.values() if not table.key) or "''"
    return f""""table" IN ({names})"""


def fingerprint(text: str = "doc") -> str:
    """SQL over `records`, the same for an event sent again, also if only the connector's own clock differs.

    `text` is the SQL that recognizes a record that is not a change event.
    """
    return f"""
    CASE WHEN kind IN ('change', '{FOREIGN}') THEN md5(concat_ws(chr(31), "table", op, tx_id, lsn, committed_at,
      json_extract(doc, '$.before'), json_extract(doc, '$.after'),
      CASE WHEN {_of_keyless()} THEN total_order END)) ELSE md5({text}) END
    """
