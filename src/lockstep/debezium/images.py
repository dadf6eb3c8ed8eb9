"""SQL that types the images of a table's change events."""

from __future__ import annotations

import json

import duckdb

from lockstep.debezium.rejections import reason
from lockstep.debezium.settings import DECIMAL, OWN_SCALE, Part
from lockstep.debezium.values import PLAIN_TEXTS, decoded, epoch, may_be_large, typed
from lockstep.schema import Column, Table, literal, quoted
from lockstep.texts import FLOATS, INTEGERS


def select(con: duckdb.DuckDBPyConnection, part: Part) -> str:
    """The SELECT that types the events of one part."""
    table = part.table
    columns = dict.fromkeys(_told_apart(part).values(), "JSON")
    shape = literal(json.dumps({"before": columns, "after": columns}))
    known = f"[{', '.join(literal(part.source(c)) for c in table.columns)}]"
    typed_events = f"""
      SELECT
        *,
        CASE WHEN op IN ('u', 'd') AND has_before THEN {_image(part, "before")} END AS before,
        CASE WHEN op IN ('c', 'u', 'r') AND has_after THEN {_image(part, "after")} END AS after
      FROM (
        SELECT
          ordinal, committed_at, op, tx_id, lsn, doc,
          {_raw(part, "before")} AS raw_before,
          names[1] AS before_names,
          names[2] AS after_names,
          {_twice(con, part, known)} AS twice,
          {_raw(part, "after")} AS raw_after,
          COALESCE(len(before_names), 0) > 0 AS has_before,
          COALESCE(len(after_names), 0) > 0 AS has_after,
          {_except("before_names", known)} AS before_extra,
          {_except("after_names", known)} AS after_extra,
          {_except(known, "before_names")} AS before_missing,
          {_except(known, "after_names")} AS after_missing
        FROM (
          SELECT
            ordinal, committed_at, op, tx_id, lsn, doc,
            json_transform(doc, {shape}) AS i,
            json_keys(doc, {_OBJECTS}) AS names
          FROM records WHERE {part.condition}
        )
      )
    """
    return identified(table, typed_events, reason(part))


def identified(table: Table, typed_events: str, reason: str) -> str:
    """The SELECT of `parsed_<table>` from events with typed images."""
    is_key_update = " OR ".join(f"before.{k} <> after.{k}" for k in table.sql_key)
    same_key = ", ".join(f"{k} := CASE WHEN same_op = 'd' THEN before.{k} ELSE after.{k} END" for k in table.sql_key)
    return f"""
    SELECT
      ordinal, committed_at, op, before, after, tx_id, lsn, same_op,
      struct_pack({same_key}) AS same_key,
      {reason} AS reason
    FROM (
      /* The log holds an update of the key as a delete and an insert: the delete tells that it is known. */
      SELECT *, CASE WHEN op = 'u' AND ({is_key_update}) THEN 'd' ELSE op END AS same_op FROM ({typed_events})
    )
    """


def _told_apart(part: Part) -> dict[str, str]:
    """The columns' names in the events, one per spelling in lower case: DuckDB's structs ignore case."""
    names: dict[str, str] = {}
    for column in part.table.columns:
        names.setdefault(part.source(column).lower(), part.source(column))
    return names


def _value(part: Part, column: Column, image: str) -> str:
    """SQL for a value of an image as JSON, null where it is not there or null."""
    name = part.source(column)
    if _told_apart(part)[name.lower()] == name:
        return f"i.{image}.{quoted(name)}"
    return f"NULLIF(member(doc, '/{image}', {literal(name)}), 'null')::JSON"


def _raw(part: Part, image: str) -> str:
    """SQL for an image's values as JSON, decimals decoded, unchanged values taken from the image before."""
    values = []
    for c in part.table.columns:
        value = _value(part, c, image)
        if image == "after" and may_be_large(c):  # TOAST: an update that leaves a large value alone does not send it
            is_unavailable = "is_unavailable_text" if c.kind.name in PLAIN_TEXTS else "is_unavailable"
            value = f"CASE WHEN {is_unavailable}({value}) THEN {_value(part, c, 'before')} ELSE {value} END"
        elif c.kind.name in (*INTEGERS, *FLOATS) or c.kind.is_decimal:
            value = decoded(part, c, value)
        values.append(f"{c.sql} := {value}")
    return f"struct_pack({', '.join(values)})"


_OBJECTS = ["$.before", "$.after", "$", "$.source"]  # in which a key must not stand twice


def _twice(con: duckdb.DuckDBPyConnection, part: Part, known: str) -> str:
    """SQL for a key that stands twice in an event, so that nobody can say which counts; null, cheaply, if none does.

    Nearly all events of a part have the keys of its first: only where they differ is there something to look for.
    """
    first = con.execute(
        f"SELECT json_keys(doc, {_OBJECTS}) FROM "
        f"(SELECT doc FROM records WHERE {part.condition} ORDER BY ordinal LIMIT 1)"
    ).fetchall()[0][0]
    others = (names if len(set(names)) == len(names) else [] for names in first[2:])
    usual = [known, known, *(f"[{', '.join(map(literal, names))}]::VARCHAR[]" for names in others)]
    checks = [
        f"CASE WHEN {names} = {expected} THEN NULL WHEN len(list_distinct({names})) < len({names}) THEN "
        f"list_filter({names}, lambda name: len(list_filter({names}, lambda other: other = name)) > 1)[1] END"
        for names, expected in zip(("before_names", "after_names", "names[3]", "names[4]"), usual, strict=True)
    ]
    return f"COALESCE({', '.join(checks)})"


def _except(names: str, others: str) -> str:
    """SQL for the names that are not among the others; null, cheaply, where both lists are the same."""
    return (
        f"CASE WHEN {names} = {others} THEN NULL "
        f"ELSE list_filter({names}, lambda name: NOT list_contains({others}, name)) END"
    )


def _image(part: Part, image: str) -> str:
    columns = []
    for c in part.table.columns:
        value = typed(part, c, f"raw_{image}.{c.sql}")
        columns.append(f"{c.sql} := {f'NULLIF({value}, {epoch(c)})' if part.may_be_zero_date(c) else value}")
    return f"struct_pack({', '.join(columns)}, extra := {_extra(part, image)})"


def _extra(part: Part, image: str) -> str:
    """SQL for the columns that the project does not know, as JSON, in the order of their names.

    As `lockstep capture` has them where the event's schema tells: decimals and bytes as PostgreSQL prints them.
    """
    names, member = f"{image}_extra", f"extra_member(doc, '/{image}', name)"
    known = {part.source(c) for c in part.table.columns}
    whens = []
    for (schema_id, name), said in part.types.items():
        if schema_id != part.schema_id or name in known:
            continue
        if said.name == DECIMAL:
            decoded = f"from_bytes({member}::JSON, {member}::JSON ->> '$', {said.scale})::VARCHAR"
        elif said.name == OWN_SCALE:
            scale = f"TRY_CAST({member}::JSON ->> '$.scale' AS INTEGER)"
            decoded = f"from_bytes({member}::JSON, {member}::JSON ->> '$.value', {scale})::VARCHAR"
        elif said.type == "bytes" and said.name == "None":
            decoded = f"printed_bytes({member})"
        else:
            continue
        whens.append(f"WHEN {literal(name)} THEN {decoded}")
    value = f"CASE name {' '.join(whens)} ELSE {member} END" if whens else member
    return f"""
    CASE WHEN len({names}) > 0 THEN '{{' || array_to_string(list_transform(list_sort({names}), lambda name:
      to_json(name)::VARCHAR || ':' || {value}), ',') || '}}' END
    """
