"""SQL for the reason why a change event breaks the landing contract."""

from __future__ import annotations

import pyarrow as pa

from lockstep.debezium.macros import PLACEHOLDER, PLACEHOLDER_BYTES
from lockstep.debezium.settings import MYSQL, SCHEMAS_SAY, Part
from lockstep.debezium.values import DOUBT, epoch, may_be_large, typed
from lockstep.kinds import BYTES, TIME, TIMESTAMP, meaning
from lockstep.schema import Column, literal


def reason(part: Part) -> str:
    """SQL for what is wrong with an event first; null if nothing is."""
    table = part.table
    full = (
        f"is the source table REPLICA IDENTITY FULL? ALTER TABLE {table.sql_at(part.connector)} REPLICA IDENTITY FULL;"
    )
    checks = [
        "CASE WHEN twice IS NOT NULL THEN 'its JSON has ' || to_json(twice) || ' twice in one object: "
        "which of the two counts cannot be known' END",
        "CASE WHEN op IS NULL OR op NOT IN ('c', 'u', 'd', 'r') "
        "THEN 'its op is ' || COALESCE('\"' || op || '\"', 'missing') || ', not one of c, u, d, r, t' END",
        "CASE WHEN committed_at IS NULL "
        "THEN 'it has no commit time: source.ts_us, ts_ns and ts_ms are all missing' END",
        f"CASE WHEN op IN ('u', 'd') AND before IS NULL THEN 'it has no before image: {full}' END",
        "CASE WHEN op IN ('c', 'u', 'r') AND after IS NULL THEN 'it has no after image' END",
    ]
    not_sent = "list_filter(before_extra, lambda name: is_unavailable(member(doc, '/before', name)))[1]"
    checks.append(  # one CASE in the other: DuckDB evaluates both sides of an AND
        f"CASE WHEN len(before_extra) > 0 THEN CASE WHEN {_MAY_LACK_VALUES} "
        f"THEN 'column ' || {not_sent} || {literal(f' of the before image is {_NOT_SENT}')} END END"
    )
    for image, hint in (("before", f"; {full}"), ("after", "")):
        where = f"of the {image} image"
        mend = literal(_DROPPED)
        if image == "before":  # an image after that has the column says that it is still there
            is_there = "op = 'u' AND NOT list_contains(COALESCE(after_missing, []), before_missing[1])"
            unclear = literal(hint + _DROPPED)
            mend = f"CASE WHEN {is_there} THEN {literal(hint)} WHEN op = 'u' THEN {mend} ELSE {unclear} END"
        checks.append(
            f"CASE WHEN {image} IS NOT NULL AND len({image}_missing) > 0 "
            f"THEN 'column ' || {image}_missing[1] || ' {where} is missing' || {mend} END"
        )
        for c in table.columns:
            raw = f"raw_{image}.{c.sql}"
            column = f"column {part.source(c)} {where}"
            why = _not_one(part, c, raw)
            if part.may_be_zero_date(c):
                is_doubtful = f"{typed(part, c, raw)} = {epoch(c)}"
                why = f"CASE WHEN {is_doubtful} THEN {literal(_zero_date(part, c))} ELSE {why} END"
            if may_be_large(c):
                why = f"CASE WHEN is_unavailable({raw}) THEN {literal(f', {_NOT_SENT}')} ELSE {why} END"
            wrong = f"{literal(f'{column} is ')} || left({raw}::VARCHAR, 80) || {why}"
            if not c.nullable:
                wrong = f"COALESCE({wrong}, {literal(f'{column} is null, but must not be{hint}')})"
            checks.append(f"CASE WHEN {image} IS NOT NULL AND {image}.{c.sql} IS NULL THEN {wrong} END")
    return f"COALESCE({', '.join(checks)})"


_DROPPED = (
    "; if the source dropped or renamed it, leave it out of source_schema.sql and "
    "give `lockstep quarantine retry --all`"
)

# Oracle does not log a large object that an update leaves alone, not even for the row before.
_NOT_SENT = (
    "the placeholder for a large value that the connector did not send, and the event does not have it elsewhere: keep "
    "the column out of the events (column.exclude.list)"
)

_MAY_LACK_VALUES = " OR ".join(f"contains(doc, {literal(text)})" for text in (PLACEHOLDER, PLACEHOLDER_BYTES))


def _zero_date(part: Part, column: Column) -> str:
    """What to do about a date that may be a zero date, as the rest of a sentence."""
    if column.name in part.table.key:
        mend = "give the row another key, and discard this event"
    else:
        mend = (
            f"if the column has no zero dates, declare {part.source(column)} without NOT NULL; if it has, make it "
            "nullable in the source as well: they then arrive as NULL"
        )
    return f", which the connector sends for 1970-01-01 and for the zero date 0000-00-00 alike: {mend}"


def _not_one(part: Part, column: Column, raw: str) -> str:
    """SQL for why a value is not one of its column's type."""
    kind = column.kind
    text = f", which is not {meaning(kind)}"
    if kind.type in (TIMESTAMP, TIME):
        unit, is_default = part.unit(column)
        precision = (
            f"declare in source_schema.sql what its numbers are, {part.source(column)} {kind.name}(3) for milliseconds "
            f"or {kind.name}(6) for microseconds"
        )
        if unit is None:
            number = f"{text}: nothing says its unit; {precision}"
        else:
            number = f"{text} in {unit.name}"
            if is_default:
                number += f", the default of a {part.connector} connector; if that is not its unit, {precision}"
        digits = "; digits beyond microseconds cannot be kept, and are not rounded"
        is_text = f"""starts_with({raw}::VARCHAR, '"')""" if kind.type == TIME else f"looks_iso({raw})"
        return (
            f"CASE WHEN NOT {is_text} AND whole({raw}) IS NOT NULL THEN {literal(number)} "
            f"WHEN {is_text} AND has_finer_digits({raw}) THEN {literal(text + digits)} ELSE {literal(text)} END"
        )
    doubt = f", which may be a number or the base64 of one; {SCHEMAS_SAY}"
    if kind.is_decimal:
        number = f"; of a number that is not whole only 15 digits can be trusted, {_EXACT}"
        return (
            f"CASE WHEN starts_with({raw}::VARCHAR, '{{\"{DOUBT}') THEN {literal(doubt)} "
            f"WHEN regexp_full_match({raw}::VARCHAR, '-?[0-9]+[.eE].*') "
            f"THEN {literal(text + number)} ELSE {literal(text)} END"
        )
    is_number = pa.types.is_integer(column.type) or pa.types.is_floating(column.type)
    if is_number and part.declared(column) is None and part.settings.decimals != "string":
        is_doubtful = f"TRY_CAST({raw} ->> '$' AS DOUBLE) IS NOT NULL AND may_be_base64({raw})"
        return f"CASE WHEN {is_doubtful} THEN {literal(doubt)} ELSE {literal(text)} END"
    if kind.name == "numeric":
        return (
            f"CASE WHEN may_be_base64({raw}) THEN {literal(doubt)} WHEN starts_with({raw}::VARCHAR, '\"') "
            f"THEN {literal(text)} ELSE {literal(f'{text} with all its digits: {_EXACT}')} END"
        )
    if kind.type == BYTES:
        hexadecimal = f", which may be bytes in base64 or in hexadecimal digits; {SCHEMAS_SAY}"
        return f"CASE WHEN may_be_hex({raw}) THEN {literal(hexadecimal)} ELSE {literal(text)} END"
    if kind.name == "interval":
        number = (
            f"{text}: a number cannot say its months and days; interval.handling.mode=string has the connector say them"
        )
        if part.connector in MYSQL:
            number = f"{text}: nothing says its unit; {SCHEMAS_SAY}"
        return f"CASE WHEN whole({raw}) IS NOT NULL THEN {literal(number)} ELSE {literal(text)} END"
    return literal(text)


_EXACT = (
    "decimal.handling.mode=string or precise (with the converter's decimal.format=BASE64) has the connector send all "
    "of them"
)
