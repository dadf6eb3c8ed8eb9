"""SQL that types one value, null where it is not exactly one of its column's type."""

from __future__ import annotations

from dataclasses import dataclass

import pyarrow as pa

from lockstep.debezium.settings import DAYS, DECIMAL, MICROS, OWN_SCALE, TIMES, Part, Unit
from lockstep.kinds import BOOLEAN, BYTES, DATE, TEXT, TIME, TIMESTAMP
from lockstep.schema import Column

PLAIN_TEXTS = ("text", "uuid", "json")


def may_be_large(column: Column) -> bool:
    return column.type in (TEXT, BYTES)


DOUBT = "digits or base64"


def decoded(part: Part, column: Column, value: str) -> str:
    """SQL for a number as JSON, with decimals that came as bytes decoded."""
    said = part.declared(column)
    own_scale = f"from_bytes({value}, {value} ->> '$.value', TRY_CAST({value} ->> '$.scale' AS INTEGER))"
    if said is not None:
        if said.name == DECIMAL:  # bytes by its schema, but a number if the converter has decimal.format=NUMERIC
            from_bytes = f"from_bytes({value}, {value} ->> '$', {said.scale})"
            return f"CASE WHEN regexp_full_match({value}::VARCHAR, '-?[0-9].*') THEN {value} ELSE {from_bytes} END"
        if said.name == OWN_SCALE:
            return own_scale
        return f"from_bytes({value}, NULL, 0)" if said.type == "bytes" else value
    if not column.kind.is_decimal or part.settings.decimals == "string":
        return value
    # Nothing says the encoding. An object is a decimal with its scale, and what cannot be digits is the base64 of one
    # with the declared scale. Digits may be either, and are not a number.
    return f"""
      CASE
        WHEN starts_with({value}::VARCHAR, '{{') THEN {own_scale}
        WHEN contains({value}::VARCHAR, '.') THEN {value} /* cannot be base64; true of most decimals */
        WHEN regexp_full_match({value}::VARCHAR, '"([0-9A-Za-z+/]{{4}})*([0-9A-Za-z+/]{{2,3}}={{1,2}})?"')
          THEN CASE WHEN TRY_CAST({value} ->> '$' AS DOUBLE) IS NULL
            THEN from_bytes({value}, {value} ->> '$', {column.type.scale})
            ELSE json_object('{DOUBT}', {value}) END
        ELSE {value}
      END
    """


def epoch(column: Column) -> str:
    """SQL for 1970-01-01 as a date or time."""
    return f"{column.kind.duckdb} '1970-01-01'"


def typed(part: Part, column: Column, raw: str) -> str:
    """SQL for the value of a column, null if `raw` is not exactly of its type."""
    kind = column.kind
    whole = f"whole({raw})"
    if kind.name in PLAIN_TEXTS:
        return f"plain_text({raw})"
    if kind.is_text:
        said = part.declared(column)
        printed = f"WHEN NOT is_unavailable({raw}) THEN printed({raw}::VARCHAR, {part.recipe(column)})"
        is_plain = kind.name == "other" and not (said and said.type == "bytes")
        return f"CASE {f'WHEN plain_text({raw}) IS NOT NULL THEN plain_text({raw})' if is_plain else ''} {printed} END"
    if kind.type == BYTES:
        return _bytes(part, column, raw)
    if kind.type == BOOLEAN:
        return f"truth({raw})"
    if kind.type == DATE:
        return _day(part, column, raw)
    if kind.type == TIME:
        return (
            f"""CASE WHEN starts_with({raw}::VARCHAR, '"') THEN iso_clock({raw}) {counted(part, column, whole)} END"""
        )
    if kind.type == TIMESTAMP:
        moment = "iso_moment" if kind.name == "timestamptz" else "local_moment"
        return f"CASE WHEN looks_iso({raw}) THEN {moment}({raw}) {counted(part, column, whole)} END"
    if kind.is_decimal:
        decimal = f"DECIMAL({kind.type.precision}, {kind.type.scale})"
        plain = f"TRY_CAST({raw} ->> '$' AS {decimal})"  # exact if it prints as it arrived, as most values do
        return (
            f"""CASE WHEN '"' || {plain}::VARCHAR || '"' = {raw}::VARCHAR THEN {plain} """
            f"ELSE TRY_CAST(decimal_text({raw}, {kind.type.scale}) AS {decimal}) END"
        )
    if pa.types.is_integer(column.type):
        number = f"TRY_CAST(whole({raw}) AS {'BIGINT' if column.type == pa.int64() else 'INTEGER'})"
    elif column.type == pa.float32():
        number = finite(column, f"real_number({raw})")
    else:
        number = f"real_number({raw})"
    if part.declared(column) is not None or part.settings.decimals == "string":
        return number
    return f"CASE WHEN NOT may_be_base64({raw}) THEN {number} END"


def finite(column: Column, number: str) -> str:
    """SQL for a number as a value of a column of floating point."""
    if column.type == pa.float32():
        number = f"TRY_CAST({number} AS FLOAT)"
    return f"CASE WHEN isfinite({number}) THEN {number} END"


def _bytes(part: Part, column: Column, raw: str) -> str:
    """SQL for bytes: in base64, or in hexadecimal digits where something says so."""
    said = part.declared(column)
    mode = "bytes" if said is not None and said.type == "bytes" else part.settings.binary
    text = f"({raw} ->> '$')"
    whens = [
        f"WHEN NOT starts_with({raw}::VARCHAR, '\"') OR is_unavailable({raw}) THEN NULL",
        f"WHEN starts_with({text}, '\\x') THEN TRY(unhex(substr({text}, 3)))",
    ]
    if mode == "hex":
        whens.append(f"ELSE TRY(unhex({text}))")
    else:
        if mode is None:
            whens.append(f"WHEN may_be_hex({raw}) THEN NULL")
        whens.append(f"ELSE TRY(from_base64(translate({text}, '-_', '+/')))")
    return f"CASE {' '.join(whens)} END"


@dataclass(frozen=True)
class Count:
    """Which numbers are times in a unit: whole microseconds from `least` to `most`, but none of the `doubtful` ones."""

    unit: Unit
    least: int
    most: int
    doubtful: tuple[int, int] | None = None


def count(part: Part, column: Column) -> Count | None:
    """Which numbers a time column takes; None where no unit is known."""
    unit, is_default = part.unit(column)
    if unit is None:
        return None
    is_time = column.type == TIME
    least, most = (n * unit.denominator // unit.numerator for n in (_DAY if is_time else _YEARS))
    is_doubtful = is_default and unit == MICROS
    return Count(unit, least, most, (_DOUBTFUL_TIMES if is_time else _DOUBTFUL) if is_doubtful else None)


def counted(part: Part, column: Column, number: str) -> str:
    """The WHEN that takes a number as a time in its unit; nothing where no unit is known."""
    found = count(part, column)
    if found is None:
        return ""
    unit = found.unit
    is_sound = f"{number} BETWEEN {found.least} AND {found.most}"
    if unit.denominator > 1:
        is_sound += f" AND {number} % {unit.denominator} = 0"
    if found.doubtful:
        is_sound += f" AND {number} NOT BETWEEN {found.doubtful[0]} AND {found.doubtful[1]}"
    micros = f"{number} * {unit.numerator} // {unit.denominator}"
    moment = f"TIME '00:00:00' + to_microseconds({micros})" if column.type == TIME else f"make_timestamp({micros})"
    return f"WHEN {is_sound} THEN {moment}"


# Microseconds of a day, and of the years 1 to 9999: beyond them a number is a sentinel (PostgreSQL's infinity) or has
# another unit.
_DAY, _YEARS = (0, 86_399_999_999), (-62_135_596_800_000_000, 253_402_300_799_999_999)


# These microseconds are of early 1970, and as milliseconds they are of 1990 to 2286. Where a mere default says
# microseconds that decides nothing: better to ask than to land all of a connector's times in 1970.
_DOUBTFUL = (631_152_000_000, 9_999_999_999_999)

# These microseconds are of the first minute and a half of a day, and as milliseconds of any time of it.
_DOUBTFUL_TIMES = (1, 86_399_999)


def _day(part: Part, column: Column, raw: str) -> str:
    """SQL for a date: a number counts days, unless the event's schema says a unit of times: then whole days only."""
    said = part.declared(column)
    unit = TIMES.get(said.name, DAYS) if said is not None else DAYS
    if unit == DAYS:
        return f"day({raw})"
    per_day = DAYS.numerator * unit.denominator // unit.numerator
    return f"CASE WHEN whole({raw}) % {per_day} = 0 THEN day(to_json(whole({raw}) // {per_day})) END"
