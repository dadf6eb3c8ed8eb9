"""How large numbers may be that are summed, and what becomes of those that are larger.

Sums are kept with 38 digits. Of rows with up to 27 digits, also counting those after the decimal point, 10 ** 11 can be
added up. A row with more could make a sum fail, and stop its hour for ever. It counts as `10 ** 32` units of the last
digit instead, and so does a row whose number cannot be computed. That is linear like any other value: it goes when the
row goes or is corrected. As long as the row is there, no sum that it is in can be taken for a figure.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, replace

from sqlglot import exp

from lockstep.derive.trying import Kinds, can_fail, null_if_failed, tried

WHOLE = "DECIMAL(38, 0)"  # of sums of whole numbers; HUGEINT would become DOUBLE in Parquet
DIGITS = 27  # of a row
_TOO_LARGE = 32  # a row with more digits counts as ten to the power of this
_COMPUTED = "v"  # the field that holds a computed number; the struct is NULL where the computation failed
_MOST_BEHIND = 20  # with more digits after the decimal point, ordinary numbers have more than 27
_OF_INTEGERS = {"TINYINT": 3, "SMALLINT": 5, "INTEGER": 10, "BIGINT": 19, "HUGEINT": 39, "BOOLEAN": 1, '"NULL"': 0}
_DECIMAL = re.compile(r"DECIMAL\((\d+), ?(\d+)\)")


@dataclass(frozen=True)
class Size:
    """How many digits a row's number may have before and after the decimal point.

    `is_integer`: its type is of whole numbers. `can_fail`: there may be rows that it cannot be computed of.
    """

    before: int
    behind: int = 0
    is_integer: bool = True
    can_fail: bool = False

    @property
    def is_counted(self) -> bool:
        """Whether a BIGINT can hold the sums: of so small numbers there are never too many rows."""
        return self.is_integer and self.before <= _OF_INTEGERS["INTEGER"]

    def may_be_too_large(self, scale: int) -> bool:
        """Whether a row may have more digits than sums with `scale` digits after the decimal point can add up."""
        return self.before + scale > DIGITS and scale <= _MOST_BEHIND

    def kept(self, scale: int) -> str:
        """The type that is summed. Whole numbers are HUGEINT, which is faster."""
        return "HUGEINT" if self.is_integer and scale == 0 else f"DECIMAL(38, {scale})"

    def summable(self, value: exp.Expr, scale: int) -> exp.Expr:
        """A row's number, to be summed as DECIMAL(38, scale)."""
        kind, to = f"DECIMAL(38, {scale})", self.kept(scale)
        if not self.may_be_too_large(scale):
            return exp.cast(value.copy(), to, dialect="duckdb")
        wide = exp.TryCast(**exp.cast(value.copy(), kind, dialect="duckdb").args)
        most = f"{'9' * (DIGITS - scale)}.{'9' * scale}".rstrip(".")
        low, high = (exp.cast(exp.Literal.string(sign + most), kind, dialect="duckdb") for sign in ("-", ""))
        return exp.Case(
            ifs=[
                exp.If(this=value.copy().is_(exp.null()), true=exp.null()),
                exp.If(
                    this=exp.Between(this=wide, low=low, high=high), true=exp.TryCast(**{**wide.args, "to": _type(to)})
                ),
            ],
            default=_too_large(scale, _type(to)),
        )


LARGEST = Size(39)


def guarded(value: exp.Expr, kinds: Kinds, scale: int) -> tuple[exp.Expr, Size]:
    """What a row contributes to a sum with `scale` digits after the decimal point, and its size. It fails on no row.

    TRY gives NULL for what fails; of a struct of it that is told from a NULL that was computed.
    """
    size = size_of(value, kinds)
    if not can_fail(value, kinds) or scale > _MOST_BEHIND:
        return tried(value, kinds), size
    size = replace(LARGEST, is_integer=size.is_integer, can_fail=True)
    to = _type(size.kept(scale))
    named = exp.PropertyEQ(this=exp.to_identifier(_COMPUTED), expression=exp.cast(value.copy(), to))
    computed = null_if_failed(exp.Struct(expressions=[named]))
    number = exp.cast(exp.func("STRUCT_EXTRACT", computed.copy(), exp.Literal.string(_COMPUTED)), to)
    return exp.Case(ifs=[exp.If(this=computed.is_(exp.null()), true=_too_large(scale, to))], default=number), size


def size_of(value: exp.Expr, kinds: Kinds) -> Size:
    """The size of a row's number: that of its type, or less where its literals and casts say so."""
    value = value.unnest()
    if isinstance(value, exp.Literal) and value.is_int:
        return Size(len(value.name))
    if isinstance(value, exp.Null):
        return Size(0)
    if isinstance(value, exp.Neg):
        return size_of(value.this, kinds)
    if isinstance(value, exp.Case):
        branches = [*(branch.args["true"] for branch in value.args["ifs"]), value.args.get("default") or exp.null()]
        return widest(size_of(branch, kinds) for branch in branches)
    if isinstance(value, exp.Coalesce):
        return widest(size_of(part, kinds) for part in (value.this, *value.expressions))
    [kind] = kinds([value])
    own = size_of_kind(kind)
    if isinstance(value, exp.Cast) and own.is_integer:  # of whole numbers a cast changes nothing but the type
        inner = size_of(value.this, kinds)
        if inner.is_integer and inner.before < own.before:
            return inner
    return own


def size_of_kind(kind: str) -> Size:
    """The size of the numbers of a type; of a type that has no exact numbers, the largest."""
    if decimal := _DECIMAL.fullmatch(kind):
        return Size(int(decimal[1]) - int(decimal[2]), int(decimal[2]), is_integer=False)
    is_unsigned = kind.startswith("U")
    found = _OF_INTEGERS.get(kind.removeprefix("U"))
    return Size(39, is_integer=False) if found is None else Size(found + is_unsigned)


def widest(sizes: Iterable[Size]) -> Size:
    """The size of numbers that may have any of these sizes."""
    listed = list(sizes)
    return Size(
        max(size.before for size in listed),
        max(size.behind for size in listed),
        all(size.is_integer for size in listed),
        any(size.can_fail for size in listed),
    )


def is_a_figure(column: str, size: Size, kind: str) -> str | None:
    """The condition, in SQL, under which a sum is a figure of type `kind`; None if each is."""
    if kind == "BIGINT":
        return None if size.is_counted else f"{column} BETWEEN {-(2**63)} AND {2**63 - 1}"
    if not size.may_be_too_large(_scale(kind)):
        return None
    return f"ABS({column}) < {_half(kind)}"


def is_large(column: str, kind: str) -> str:
    """The condition, in SQL, that a part of a sum meets if the sum does not fit type `kind`.

    Of a BIGINT there would have to be more than 2 ** 23 parts, if all were smaller.
    """
    least = str(2**40) if kind == "BIGINT" else _half(kind)
    return f"({column} >= {least} OR {column} <= -{least})"


def _half(kind: str) -> str:
    """Half of what a row that is too large counts as."""
    return f"CAST('5{'0' * (_TOO_LARGE - 1 - _scale(kind))}' AS {kind})"


def _scale(kind: str) -> int:
    decimal = _DECIMAL.fullmatch(kind)
    return int(decimal[2]) if decimal else 0


def _too_large(scale: int, kind: exp.DataType) -> exp.Expr:
    return exp.cast(exp.Literal.string("1" + "0" * (_TOO_LARGE - scale)), kind)


def _type(kind: str) -> exp.DataType:
    return exp.DataType.build(kind, dialect="duckdb")
