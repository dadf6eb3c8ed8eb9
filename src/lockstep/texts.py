"""Values of the kinds that land as text, in the one form that the log has of them whichever way they came.

`landed` makes it of what PostgreSQL prints, `printed` makes what PostgreSQL prints of Debezium's JSON. So an array is
the same JSON text, an hstore the same JSON object with its keys sorted, a time with a zone the same time in UTC.
"""

from __future__ import annotations

import base64
import binascii
import json
import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime, time, timedelta
from decimal import Decimal
from fractions import Fraction
from typing import Any

from lockstep.kinds import Kind

INTEGERS = ("bigint", "integer", "smallint")
FLOATS = ("double precision", "real")

# JSON's escapes as DuckDB writes them, which is what `ingest` stores; everything else stays as it is, in UTF-8.
_ESCAPES = {i: f"\\u{i:04X}" for i in range(32)} | {
    ord(plain): escaped
    for plain, escaped in (
        ('"', '\\"'),
        ("\\", "\\\\"),
        ("\b", "\\b"),
        ("\f", "\\f"),
        ("\n", "\\n"),
        ("\r", "\\r"),
        ("\t", "\\t"),
    )
}


def quoted_json(text: str) -> str:
    """A text as JSON."""
    return f'"{text.translate(_ESCAPES)}"'


def float_json(text: str) -> str:
    """The shortest number that reads back the same, spelled as DuckDB spells it in JSON: as JavaScript does."""
    if text in ("NaN", "Infinity", "-Infinity"):
        return f'"{text}"'
    shortest = repr(float(text))
    digits, _, exponent = shortest.partition("e")
    if not exponent:
        return shortest
    if -7 < int(exponent) < 21:
        plain = f"{Decimal(shortest):f}"
        return plain if "." in plain else f"{plain}.0"
    return f"{digits}e{int(exponent)}"


# From what PostgreSQL prints


def landed(kind: Kind) -> Callable[[str], str] | None:
    """How a value of the kind as PostgreSQL prints it becomes the log's text. None if it is the log's text.

    The function raises ValueError for what is not a value of the kind.
    """
    if kind.name == "array" and kind.element is not None:
        element = _element(kind.element)
        delimiter = ";" if kind.element.sql.lower() == "box" else ","
        return lambda text: _array(text, element, delimiter)
    return {"hstore": _hstore, "timetz": _timetz}.get(kind.name)


def _element(kind: Kind) -> Callable[[str], str]:
    """An array's element as JSON: numbers and booleans as such, all else as a text."""
    if kind.name in INTEGERS:
        return lambda text: str(int(text))
    if kind.name in FLOATS:
        return float_json
    if kind.name == "boolean":
        return lambda text: {"t": "true", "f": "false"}[text]
    if kind.name == "money":
        return lambda text: quoted_json(text.replace("$", "").replace(",", ""))
    own = landed(kind)
    return quoted_json if own is None else lambda text: quoted_json(own(text))


_BOUNDS = re.compile(r"(\[-?\d+:-?\d+\])+=")


def _array(text: str, element: Callable[[str], str], delimiter: str) -> str:
    """A JSON array. Bounds other than from 1 on are left out: Debezium does not tell them."""
    if text[:1] == "[" and (bounds := _BOUNDS.match(text)):
        text = text[bounds.end() :]
    if text == "{}":
        return "[]"
    if '"' not in text and "{" not in text[1:] and "\\" not in text:
        items = text[1:-1].split(delimiter)
        return f"[{','.join('null' if item == 'NULL' else element(item) for item in items)}]"
    out: list[str] = []
    at = 0
    while at < len(text):
        c = text[at]
        if c in "{}":
            out.append("[" if c == "{" else "]")
            at += 1
        elif c == delimiter:
            out.append(",")
            at += 1
        elif c == '"':
            value, at = _between_quotes(text, at)
            out.append(element(value))
        else:
            end = at
            while text[end] not in (delimiter, "}"):
                end += 1
            out.append("null" if text[at:end] == "NULL" else element(text[at:end]))
            at = end
    return "".join(out)


def _between_quotes(text: str, at: int) -> tuple[str, int]:
    """What stands between the quotes that begin at `at`, and the place behind them."""
    value = []
    at += 1
    while text[at] != '"':
        at += text[at] == "\\"
        value.append(text[at])
        at += 1
    return "".join(value), at + 1


def _hstore(text: str) -> str:
    members: dict[str, str | None] = {}
    at = 0
    while at < len(text):
        key, at = _between_quotes(text, at)
        at += len("=>")
        if text[at] == '"':
            members[key], at = _between_quotes(text, at)
        else:
            members[key], at = None, at + len("NULL")
        at += len(", ")
    return _object(members)


def _object(members: dict[str, str | None]) -> str:
    pairs = (f"{quoted_json(k)}:{'null' if v is None else quoted_json(v)}" for k, v in sorted(members.items()))
    return f"{{{','.join(pairs)}}}"


_TIMETZ = re.compile(r"(\d\d):(\d\d):(\d\d)(\.\d{1,6})?([+-]\d\d)(?::(\d\d))?(?::(\d\d))?")


def _timetz(text: str) -> str:
    """In UTC: Debezium sends nothing of the offset."""
    found = _TIMETZ.fullmatch(text)
    if found is None:
        raise ValueError(text)
    hours, minutes, seconds, fraction, *offset = found.groups()
    east = sum(int(part or 0) * unit for part, unit in zip((offset[0][1:], *offset[1:]), (3600, 60, 1), strict=True))
    at = int(hours) * 3600 + int(minutes) * 60 + int(seconds) - (-east if offset[0][0] == "-" else east)
    at %= 86_400
    return f"{at // 3600:02}:{at // 60 % 60:02}:{at % 60:02}{fraction or ''}+00"


# From Debezium's JSON


@dataclass(frozen=True)
class Said:
    """How Debezium encodes a value, as far as its schema, the connector's settings or defaults say.

    `name` is the schema's name of the type, `type` its type in Kafka Connect, both empty without a schema. `scale` is
    of decimals in bytes, `length` of bit strings. `micros` is what a number of a time counts, in microseconds.
    `decimals` and `binary` are the connector's handling modes, None if nothing says them. `items` is of an array's.
    """

    type: str = ""
    name: str = ""
    scale: int | None = None
    length: int | None = None
    micros: Fraction | None = None
    decimals: str | None = None
    binary: str | None = None
    items: Said | None = None


def of_json(kind: Kind, said: Said) -> Callable[[str], str | None]:
    """How JSON from Debezium becomes the log's text of the kind; None where it is not exactly one of its values."""
    finish = landed(kind)

    def text(raw: str) -> str | None:
        try:
            value = json.loads(raw)
            if kind.name == "array" and kind.element is not None:
                return _json_array(kind.element, said.items or said, value)
            if kind.name == "hstore":
                return _json_hstore(value)
            shown = printed(kind, said, value)
            return None if shown is None else finish(shown) if finish else shown
        except (ValueError, KeyError, TypeError, IndexError, OverflowError, ArithmeticError):
            return None

    return text


def _json_array(kind: Kind, said: Said, value: Any) -> str | None:
    if isinstance(value, str):  # as PostgreSQL prints it
        delimiter = ";" if kind.sql.lower() == "box" else ","
        return _array(value, _element(kind), delimiter) if value[:1] in ("{", "[") else None
    element = _element(kind)

    def shown(item: Any) -> str:
        if item is None:
            return "null"
        if isinstance(item, list):
            return f"[{','.join(map(shown, item))}]"
        text = printed(kind, said, item)
        if text is None:
            raise ValueError(item)
        return element(text)

    return shown(value) if isinstance(value, list) else None


def _json_hstore(value: Any) -> str | None:
    if isinstance(value, str):
        if value[:1] != "{":
            return _hstore(value)
        value = json.loads(value)
    if not isinstance(value, dict) or not all(v is None or isinstance(v, str) for v in value.values()):
        return None
    return _object(value)


def printed(kind: Kind, said: Said, value: Any) -> str | None:
    """What PostgreSQL prints of a value; None where that cannot be said exactly."""
    name = kind.name
    if name in INTEGERS:
        return str(value) if isinstance(value, int) and not isinstance(value, bool) else None
    if name in FLOATS:
        return repr(value) if isinstance(value, int | float) and not isinstance(value, bool) else value
    if name in ("numeric", "money"):
        text = _of_double(kind, value) if isinstance(value, float) else decimal_text(said, value)
        return None if text is None else _within(kind, text)
    if name in _MOMENTS:
        return _MOMENTS[name](said, value)
    if name == "bytea":
        found = bytes_of(said, value)
        return None if found is None else f"\\x{found.hex()}"
    if name == "interval":
        return _interval(said, value)
    if name in ("bit", "varbit"):
        return _bits(kind, said, value)
    if isinstance(value, bool):
        return "t" if value else "f"
    if isinstance(value, int) and name == "other":
        return str(value)
    if name == "other" and said.type == "bytes":
        return _decoded(value).decode()
    if isinstance(value, dict) and {"x", "y"} <= value.keys() and kind.sql.lower() == "point":
        return f"({_float_text(value['x'])},{_float_text(value['y'])})"
    return value if isinstance(value, str) else None


def _of_double(kind: Kind, value: float) -> str | None:
    """The decimal that a double stands for; None if its 15 digits do not tell, or nothing says its scale."""
    if not kind.is_decimal or not abs(value) * 10.0**kind.type.scale < 1e15:
        return None
    text = f"{value:.{kind.type.scale}f}"
    return text if float(text) == value else None


def _within(kind: Kind, text: str) -> str | None:
    """A decimal with the scale that PostgreSQL prints it with; None if that would need rounding."""
    if not kind.is_decimal or text in ("NaN", "Infinity", "-Infinity"):
        return text
    whole, _, fraction = text.partition(".")
    scale = kind.type.scale
    if fraction[scale:].strip("0"):
        return None
    return f"{whole}.{fraction[:scale].ljust(scale, '0')}" if scale else whole


_PLAIN = re.compile(r"([+-]?)(\d+)(?:\.(\d*))?(?:[eE]([+-]?\d{1,4}))?")
_BASE64 = re.compile(r"(?:[0-9A-Za-z+/]{4})*(?:[0-9A-Za-z+/]{2}==|[0-9A-Za-z+/]{3}=)?")


def decimal_text(said: Said, value: Any) -> str | None:
    """A decimal as PostgreSQL prints it, with all its digits.

    None if it is not a decimal, or nothing says whether digits are its text or the base64 of its bytes.
    """
    if isinstance(value, dict):
        return unscaled(_decoded(value["value"]), int(value["scale"]))
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    if not isinstance(value, str):
        return None
    if value in ("NaN", "Infinity", "-Infinity"):
        return value
    if said.type == "bytes":
        return unscaled(_decoded(value), said.scale or 0)
    if said.type == "" and said.decimals is None and _BASE64.fullmatch(value):
        if said.scale is None or _PLAIN.fullmatch(value):
            return None
        return unscaled(_decoded(value), said.scale)
    found = _PLAIN.fullmatch(value)
    if found is None:
        return None
    sign, whole, fraction, exponent = found.groups()
    fraction = fraction or ""
    return _scaled("-" if sign == "-" else "", whole + fraction, len(fraction) - int(exponent or 0))


def _decoded(text: str) -> bytes:
    return base64.b64decode(text, validate=True)


def unscaled(data: bytes, scale: int) -> str:
    """A decimal from its unscaled value, most significant byte first, in two's complement."""
    if not data or abs(scale) > 100_000:
        raise ValueError(data)
    number = int.from_bytes(data, "big", signed=True)
    return _scaled("-" if number < 0 else "", str(abs(number)), scale)


def _scaled(sign: str, digits: str, scale: int) -> str:
    sign = sign if digits.strip("0") else ""
    if scale <= 0:
        return sign + digits.lstrip("0") + "0" * -scale if digits.strip("0") else "0"
    digits = digits.rjust(scale + 1, "0")
    whole = digits[:-scale].lstrip("0") or "0"
    return f"{sign}{whole}.{digits[-scale:]}"


def bytes_of(said: Said, value: Any) -> bytes | None:
    """Bytes from base64, or from hexadecimal digits; None where nothing says which of the two they are."""
    if not isinstance(value, str):
        return None
    if value[:2] == "\\x":
        return bytes.fromhex(value[2:])
    mode = "bytes" if said.type == "bytes" else said.binary
    if mode == "hex":
        return bytes.fromhex(value)
    text = value.translate(_URL_SAFE)
    if _BASE64.fullmatch(text) is None:
        return None
    if mode is None and value and _HEX.fullmatch(value):
        return None
    try:
        return base64.b64decode(text, validate=True)
    except binascii.Error:
        return None


_URL_SAFE = str.maketrans("-_", "+/")
_HEX = re.compile(r"(?:[0-9a-f]{2})+")
_EPOCH = datetime(1970, 1, 1)
_ISO = re.compile(r"(\d{4}-\d\d-\d\d)[T ](\d\d:\d\d:\d\d)(?:\.(\d{1,9}))?(Z|[+-]\d\d(?::?\d\d)?)?")
_CLOCK = re.compile(r"([01]\d|2[0-3]):([0-5]\d)(?::([0-5]\d)(?:\.(\d{1,9}))?)?(Z)?")


def _micros(said: Said, value: int) -> int | None:
    if said.micros is None:
        return None
    micros = value * said.micros
    return int(micros) if micros.denominator == 1 else None


def _fraction(digits: str | None) -> int:
    """Microseconds; ValueError for finer digits."""
    digits = digits or ""
    if digits[6:].strip("0"):
        raise ValueError(digits)
    return int(digits[:6].ljust(6, "0"))


def _seconds(at: datetime | time) -> str:
    return f"{at:%H:%M:%S}" + (f".{at.microsecond:06}".rstrip("0") if at.microsecond else "")


def _date(said: Said, value: Any) -> str | None:
    if isinstance(value, int) and not isinstance(value, bool):
        if said.micros is not None:  # a unit of times: whole days only
            days = value * said.micros / 86_400_000_000
            return (date(1970, 1, 1) + timedelta(int(days))).isoformat() if days.denominator == 1 else None
        return (date(1970, 1, 1) + timedelta(value)).isoformat()
    return date.fromisoformat(value.removesuffix("Z")).isoformat() if isinstance(value, str) else None


def _moment(said: Said, value: Any, *, has_zone: bool) -> datetime | None:
    if isinstance(value, int) and not isinstance(value, bool):
        micros = _micros(said, value)
        return None if micros is None else _EPOCH + timedelta(microseconds=micros)
    found = _ISO.fullmatch(value) if isinstance(value, str) else None
    if found is None:
        return None
    day, clock, digits, zone = found.groups()
    at = datetime.fromisoformat(f"{day} {clock}").replace(microsecond=_fraction(digits))
    if zone in (None, "Z"):
        return at
    if not has_zone:
        return None
    zone = zone if len(zone) > 3 else f"{zone}:00"
    return at.replace(tzinfo=datetime.fromisoformat(f"{day} {clock}{zone}").tzinfo).astimezone(UTC).replace(tzinfo=None)


def _timestamp(said: Said, value: Any) -> str | None:
    at = _moment(said, value, has_zone=False)
    return None if at is None else f"{at.date().isoformat()} {_seconds(at)}"


def _timestamptz(said: Said, value: Any) -> str | None:
    at = _moment(said, value, has_zone=True)
    return None if at is None else f"{at.date().isoformat()} {_seconds(at)}+00"


def _time(said: Said, value: Any) -> str | None:
    if isinstance(value, int) and not isinstance(value, bool):
        micros = _micros(said, value)
        if micros is None or not 0 <= micros < 86_400_000_000:
            return None
        return _seconds((_EPOCH + timedelta(microseconds=micros)).time())
    found = _CLOCK.fullmatch(value) if isinstance(value, str) else None
    if found is None:
        return None
    hours, minutes, seconds, digits, _ = found.groups()
    return _seconds(time(int(hours), int(minutes), int(seconds or 0), _fraction(digits)))


def _zoned_time(said: Said, value: Any) -> str | None:
    if not isinstance(value, str):
        return None
    if _TIMETZ.fullmatch(value):
        return value
    text = _time(said, value)
    return None if text is None or value[-1] != "Z" else f"{text}+00"


_MOMENTS: dict[str, Callable[[Said, Any], str | None]] = {
    "date": _date,
    "timestamp": _timestamp,
    "timestamptz": _timestamptz,
    "time": _time,
    "timetz": _zoned_time,
}

_DURATION = re.compile(
    r"P(?:(-?\d+)Y)?(?:(-?\d+)M)?(?:(-?\d+)D)?(?:T(?:(-?\d+)H)?(?:(-?\d+)M)?(?:(-?\d+(?:\.\d*)?(?:E-?\d+)?)S)?)?"
)


def _interval(said: Said, value: Any) -> str | None:
    """A number is one only if it is of a time (MySQL's, which goes beyond a day): months and days have no number."""
    if isinstance(value, int) and not isinstance(value, bool):
        clock = _micros(said, value)
        return None if clock is None else interval_text(0, 0, clock)
    if not isinstance(value, str):
        return None
    found = _DURATION.fullmatch(value)
    if found is None:
        return None if value[:1] == "P" else value
    years, months, days, hours, minutes = (int(part or 0) for part in found.groups()[:5])
    micros = Decimal(found[6] or 0) * 1_000_000
    if micros != int(micros):
        return None
    return interval_text(years * 12 + months, days, (hours * 60 + minutes) * 60_000_000 + int(micros))


def interval_text(months: int, days: int, micros: int) -> str:
    """An interval as PostgreSQL prints it in its own style."""
    parts: list[str] = []
    is_before = False
    years = abs(months) // 12 * (-1 if months < 0 else 1)
    for count, unit in ((years, "year"), (months - years * 12, "mon"), (days, "day")):
        if count:
            parts.append(f"{'+' if is_before and count > 0 else ''}{count} {unit}{'' if count == 1 else 's'}")
            is_before = count < 0
    if micros or not parts:
        seconds, fraction = divmod(abs(micros), 1_000_000)
        sign = "-" if micros < 0 else "+" if is_before else ""
        clock = f"{sign}{seconds // 3600:02}:{seconds // 60 % 60:02}:{seconds % 60:02}"
        parts.append(clock + (f".{fraction:06}".rstrip("0") if fraction else ""))
    return " ".join(parts)


def _bits(kind: Kind, said: Said, value: Any) -> str | None:
    if isinstance(value, bool):
        return "1" if value else "0"
    if not isinstance(value, str):
        return None
    length = kind.precision if kind.name == "bit" else None
    if not value.strip("01") and (length is None or len(value) == length) and said.type != "bytes":
        return value if length is not None or said.type == "string" or len(value) % 4 else None
    length = length or said.length
    if length is None or kind.name == "varbit":  # how many zeros it begins with is not said
        return None
    return f"{int.from_bytes(_decoded(value), 'little'):b}".rjust(length, "0")


def _float_text(value: float) -> str:
    """A double precision as PostgreSQL prints it: the shortest digits that can mean no other double.

    Digits exactly between two doubles read back as one of them, and Python prints these; PostgreSQL prints more.
    """
    number = float(value)
    if number == 0:
        return "-0" if math.copysign(1, number) < 0 else "0"
    shortest = Decimal(repr(number)).normalize()
    for digits in range(len(shortest.as_tuple().digits) + 1, 18):
        if not _is_between(number, shortest):
            break
        shortest = Decimal(f"{number:.{digits - 1}e}").normalize()
    if -5 < shortest.adjusted() < 15:
        return f"{shortest:f}"
    mantissa = "".join(map(str, shortest.as_tuple().digits))
    point = f".{mantissa[1:]}" if mantissa[1:] else ""
    return f"{'-' if number < 0 else ''}{mantissa[0]}{point}e{shortest.adjusted():+03}"


def _is_between(number: float, decimal: Decimal) -> bool:
    """Whether a decimal lies exactly between a double and the next one."""
    off = Fraction(decimal) - Fraction(number)
    if not off:
        return False
    neighbour = math.nextafter(number, math.inf if off > 0 else -math.inf)
    return math.isfinite(neighbour) and 2 * abs(off) == abs(Fraction(neighbour) - Fraction(number))


def converted(texts: Sequence[str | None], convert: Callable[[str], str | None]) -> list[str | None]:
    """Each text converted; None where it is None or cannot be."""
    result: list[str | None] = []
    for text in texts:
        try:
            result.append(None if text is None else convert(text))
        except (ValueError, KeyError, IndexError):
            result.append(None)
    return result
