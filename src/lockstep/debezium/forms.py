"""How the fast lane reads a column: its type in JSON, and what makes values of the column's type from that.

A value that is not plainly in the expected form becomes null, and its event goes the careful way. Every other value
must be the one that the careful lane makes of it: tests/unit/test_plain.py compares the two.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from lockstep.debezium.settings import Part
from lockstep.debezium.values import PLAIN_TEXTS, Count, count
from lockstep.kinds import BOOLEAN, BYTES, DATE, TIME, TIMESTAMP, Kind
from lockstep.schema import Column
from lockstep.texts import FLOATS, INTEGERS

_FEW = 16  # values that are not halved further to find those that cannot be cast


@dataclass(frozen=True)
class Form:
    """How a column's values are read.

    `type` is their type in JSON. Either `typed` turns an array of them into values of the column's type, or DuckDB does
    so by the expression `sql`, in which `{}` is the value.
    """

    type: pa.DataType
    typed: Callable[[pa.Array], pa.Array] | None = None
    sql: str | None = None


def form(part: Part, column: Column, value: Any) -> Form | None:
    """The form of a column whose values are like this one; None if the careful way alone can read them."""
    kind = column.kind
    type_ = _json_type(kind, value)
    if type_ is None:
        return None
    is_text, is_number = type_ == pa.string(), type_ == pa.int64()
    if is_text and (kind.name in PLAIN_TEXTS or kind.name == "other"):
        return Form(type_, _same)
    if kind.is_text:
        is_here = "{} IS NOT NULL AND NOT is_unavailable(to_json({}))"
        if kind.element is not None and kind.element.name in FLOATS:  # -0, and the placeholder, as whole numbers
            is_here += " AND NOT regexp_matches(to_json({})::VARCHAR, '-0[.]0|^.95[.]0,')"
        sql = f"CASE WHEN {is_here} THEN printed(to_json({{}})::VARCHAR, {part.recipe(column)}) END"
        return Form(type_, sql=sql)
    if is_text and kind.type == BYTES and part.settings.binary is None:
        return Form(type_, sql="base64_bytes({})")
    typed: Callable[[pa.Array], pa.Array] | None = None
    if is_number and kind.name in INTEGERS:
        typed = _same if kind.name == "bigint" else _integers
    elif type_ == pa.float64() and kind.name in FLOATS:
        typed = _floats(kind)
    elif type_ == pa.bool_() and kind.type == BOOLEAN:
        typed = _same
    elif is_text and kind.is_decimal and (part.settings.decimals == "string" or "." in (value or ".")):
        # Digits without a point may as well be the base64 of a number.
        typed = _decimals(kind, need_point=part.settings.decimals != "string")
    elif is_number and kind.type == DATE:
        typed = _days
    elif is_number and kind.type in (TIME, TIMESTAMP):
        counted = count(part, column)
        typed = None if counted is None else _counted(counted, kind)
    elif is_text and kind.type == TIMESTAMP:
        typed = _moments
    if typed is None:
        return None
    return Form(type_, _without_epoch(typed, kind) if part.may_be_zero_date(column) else typed)


def _json_type(kind: Kind, value: Any) -> pa.DataType | None:
    """The type of JSON that a value like this one is of; of an unknown value the usual one of its kind."""
    if kind.name in FLOATS:
        return pa.float64() if isinstance(value, int | float | None) else None
    if kind.element is not None and isinstance(value, list | None):
        items = [item for item in value or () if item is not None]
        is_nested = items and isinstance(items[0], list)  # an array of arrays has the kind of its innermost elements
        item = _json_type(kind if is_nested else kind.element, items[0] if items else None)
        return None if item is None else pa.list_(item)
    if isinstance(value, bool) or (value is None and kind.type == BOOLEAN):
        return pa.bool_()
    if isinstance(value, int) or (value is None and (kind.name in INTEGERS or kind.type in (DATE, TIME, TIMESTAMP))):
        return pa.int64()
    return pa.string() if isinstance(value, str | None) else None


def _same(values: pa.Array) -> pa.Array:
    return values


def _integers(values: pa.Array) -> pa.Array:
    return _cast(values, pa.int32())


def _floats(kind: Kind) -> Callable[[pa.Array], pa.Array]:
    def typed(values: pa.Array) -> pa.Array:
        numbers = values.to_numpy(zero_copy_only=False)
        if kind.type == pa.float32():
            with np.errstate(over="ignore"):
                numbers = numbers.astype(np.float32)
        is_plain = np.isfinite(numbers) & ~((numbers == 0) & np.signbit(numbers))  # it may have been -0
        return pa.array(numbers, kind.type, mask=~is_plain)

    return typed


def _days(values: pa.Array) -> pa.Array:
    days, is_there = _numbers(values)
    is_plain = is_there & (days >= -719_162) & (days <= 2_932_896)  # the years 1 to 9999
    return pa.array(np.where(is_plain, days, 0).astype(np.int32), mask=~is_plain).view(DATE)


def _counted(counted: Count, kind: Kind) -> Callable[[pa.Array], pa.Array]:
    def typed(values: pa.Array) -> pa.Array:
        numbers, is_there = _numbers(values)
        is_plain = is_there & (numbers >= counted.least) & (numbers <= counted.most)
        if counted.unit.denominator > 1:
            is_plain &= numbers % counted.unit.denominator == 0
        if counted.doubtful:
            is_plain &= (numbers < counted.doubtful[0]) | (numbers > counted.doubtful[1])
        micros = np.where(is_plain, numbers, 0) * counted.unit.numerator // counted.unit.denominator
        return pa.array(micros, mask=~is_plain).view(kind.type)

    return typed


def _moments(values: pa.Array) -> pa.Array:
    """The usual text of a time in UTC, to microseconds at most."""
    text, starts, ends, is_there = _texts(values)
    size = ends - starts
    is_plain = is_there & (size >= 20) & (size <= 27)
    is_plain[is_plain] = text[ends[is_plain] - 1] == ord("Z")
    return _cast(_only(values, is_plain), pa.timestamp("us", "UTC")).view(TIMESTAMP)


def _decimals(kind: Kind, *, need_point: bool) -> Callable[[pa.Array], pa.Array]:
    """From texts with a digit before the point: the cast would read `.5`, which the careful lane rejects.

    `need_point` takes only texts with as many digits after the decimal point as the scale says.
    """

    def typed(values: pa.Array) -> pa.Array:
        text, starts, ends, is_plain = _texts(values)
        is_plain = is_plain & (ends - starts > (kind.type.scale + 1 if need_point else 0))
        first = starts[is_plain]
        first = np.minimum(first + np.isin(text[first], _SIGNS), ends[is_plain] - 1)
        is_number = text[first] - ord("0") <= 9
        if need_point:
            is_number &= text[ends[is_plain] - kind.type.scale - 1] == ord(".")
        is_plain[is_plain] = is_number
        return _cast(_only(values, is_plain), kind.type)

    return typed


_SIGNS = np.frombuffer(b"+-", np.uint8)


def _without_epoch(typed: Callable[[pa.Array], pa.Array], kind: Kind) -> Callable[[pa.Array], pa.Array]:
    """Leave out 1970-01-01, which may be a zero date."""

    def found(values: pa.Array) -> pa.Array:
        values = typed(values)
        epoch = pa.scalar(0, pa.int32() if kind.type == DATE else pa.int64()).cast(kind.type)
        return pc.if_else(pc.equal(values, epoch), pa.scalar(None, kind.type), values)

    return found


def _only(values: pa.Array, is_plain: np.ndarray) -> pa.Array:
    """The values with null for those that are not plain."""
    return values if is_plain.all() else pc.if_else(pa.array(is_plain), values, pa.scalar(None, values.type))


def _cast(values: pa.Array, type_: pa.DataType) -> pa.Array:
    """Cast the values; null where that fails, and for the few values next to one that fails."""
    try:
        return pc.cast(values, type_)
    except pa.ArrowInvalid:
        half = len(values) // 2
        if half < _FEW:
            return pa.nulls(len(values), type_)
        return pa.concat_arrays([_cast(values[:half], type_), _cast(values[half:], type_)])


def _numbers(values: pa.Array) -> tuple[np.ndarray, np.ndarray]:
    """Whole numbers and which of them are not null; the others may be any number."""
    return np.frombuffer(values.buffers()[1], np.int64)[values.offset : values.offset + len(values)], _is_there(values)


def _texts(values: pa.Array) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """The bytes of all texts, where each text begins and ends in them, and which texts are not null."""
    _, offsets, data = values.buffers()
    places = np.frombuffer(offsets, np.int32)[values.offset : values.offset + len(values) + 1]
    text = np.frombuffer(data, np.uint8) if data else np.zeros(0, np.uint8)
    return text, places[:-1], places[1:], _is_there(values)


def _is_there(values: pa.Array) -> np.ndarray:
    if not values.null_count:
        return np.ones(len(values), bool)
    is_there: np.ndarray = values.is_valid().to_numpy(zero_copy_only=False)
    return is_there
