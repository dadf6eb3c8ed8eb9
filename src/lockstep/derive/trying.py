"""Expressions that fail on no row: what DuckDB would end a query for is NULL instead.

Increments see images that the query as written no longer does. An image whose text is not a number, whose number has no
root or whose product is too large would stop its hour for ever. The same image gives the same NULL when it is added and
when it is taken away, so sums over the rows that are left stay exact.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Sequence

from sqlglot import exp

from lockstep.names import GENERATED as PREFIX

Kinds = Callable[[Sequence[exp.Expr]], list[str]]  # the types of expressions over the tables of a product

_LABEL = f"{PREFIX}try_"
_SAFE = (  # what fails on no value; of conditional ones and comparisons the types decide too
    *(exp.Column, exp.Literal, exp.Boolean, exp.Null, exp.Paren, exp.Identifier, exp.DataType, exp.DataTypeParam),
    *(exp.And, exp.Or, exp.Not, exp.Is, exp.Cast, exp.TryCast, exp.Case, exp.If, exp.Coalesce, exp.Var),
    *(exp.EQ, exp.NEQ, exp.GT, exp.GTE, exp.LT, exp.LTE, exp.NullSafeEQ, exp.NullSafeNEQ, exp.Between, exp.In),
    *(exp.Lower, exp.Upper, exp.Trim, exp.Like, exp.ILike, exp.StartsWith, exp.EndsWith, exp.Contains),
    *(exp.DPipe, exp.DateTrunc, exp.TimestampTrunc),
)
_COMPARED = (exp.EQ, exp.NEQ, exp.GT, exp.GTE, exp.LT, exp.LTE, exp.NullSafeEQ, exp.NullSafeNEQ)
_INTEGER = re.compile(r"U?(TINY|SMALL|BIG|HUGE)?INT(EGER)?")
_DECIMAL = re.compile(r"DECIMAL\((\d+),(\d+)\)")


def tried(expression: exp.Expr, kinds: Kinds) -> exp.Expr:
    """A copy of an expression that is NULL where it would fail; each cast of a column in it is a TRY_CAST."""
    found = casts_tried(expression)
    if not can_fail(found, kinds):
        return found
    if isinstance(found, exp.TryCast):
        found.set("this", null_if_failed(found.this))
        return found
    [kind] = kinds([found])
    return exp.cast(null_if_failed(found), kind, dialect="duckdb")  # SQLMesh does not know the type of TRY


def null_if_failed(expression: exp.Expr) -> exp.Expr:
    """TRY of an expression.

    Where an expression occurs twice in a query, DuckDB computes it once, outside of TRY. So each column within TRY is
    put into a struct and taken out again, {'label': column}.label. Only equal expressions have equal labels.
    """
    digest = hashlib.md5(expression.sql("duckdb").encode()).hexdigest()[:8]
    holder = exp.Paren(this=expression.copy())
    for number, column in enumerate(list(holder.find_all(exp.Column)), start=1):
        label = f"{_LABEL}{digest}_{number}"
        named = exp.PropertyEQ(this=exp.to_identifier(label), expression=column.copy())
        struct = exp.Struct(expressions=[named])
        column.replace(exp.func("STRUCT_EXTRACT", struct, exp.Literal.string(label)))
    return exp.Anonymous(this="TRY", expressions=[holder.this])


def without_labels(query: exp.Expr) -> exp.Expr:
    """A copy of a query as people read it."""
    holder = exp.Paren(this=query.copy())
    for struct in list(holder.find_all(exp.Struct)):
        named = struct.expressions[0]
        if isinstance(named, exp.PropertyEQ) and named.name.startswith(_LABEL) and struct.parent:
            struct.parent.replace(named.expression.copy())
    found: exp.Expr = holder.this
    return found


def can_fail(expression: exp.Expr, kinds: Kinds) -> bool:
    """Whether an expression, as it is written, may fail on some row.

    A time plus or minus a fixed interval fails at the very end of all times only, long after the last that can land.
    """
    holder = exp.Paren(this=expression.copy())
    for node in list(holder.find_all(exp.Add, exp.Sub)):
        if isinstance(node.expression.unnest(), exp.Interval) and not node.expression.find(exp.Column):
            node.replace(node.this)
    return not _is_safe(holder, kinds)


def condition_tried(condition: exp.Expr, kinds: Kinds) -> exp.Expr:
    """A copy of a condition that is not met where it would fail.

    A comparison of two tables stays one, with its sides tried: as part of a larger expression DuckDB could not join by
    it.
    """
    bare = condition.unnest()
    if len({column.table for column in bare.find_all(exp.Column)}) < 2 or not isinstance(bare, _COMPARED):
        return tried(condition, kinds)
    sides = [tried(side, kinds) for side in (bare.left, bare.right)]
    of_sides = kinds(sides)
    if not _agree(of_sides):
        if of_sides.count("VARCHAR") != 1:
            return tried(condition, kinds)
        text = of_sides.index("VARCHAR")  # DuckDB casts it to the type of the other
        sides[text] = exp.cast(sides[text], of_sides[1 - text], dialect="duckdb")
        sides[text] = exp.TryCast(**sides[text].args)
    return type(bare)(this=sides[0], expression=sides[1])


def casts_tried(expression: exp.Expr) -> exp.Expr:
    """A copy of an expression or query in which each cast of a column is a TRY_CAST."""
    holder = exp.Alias(this=expression.copy())
    for cast in list(holder.find_all(exp.Cast)):
        inner = cast.this.unnest()
        if isinstance(inner, exp.Cast) and inner.to == cast.to:
            cast.replace(inner)  # of what a query or view within had cast already
        elif type(cast) is exp.Cast and cast.find(exp.Column):
            cast.replace(exp.TryCast(**cast.args))
    return holder.unalias()


def _is_safe(expression: exp.Expr, kinds: Kinds) -> bool:
    """Whether an expression fails on no value of its columns."""
    if not expression.find(exp.Column):
        return True
    for node in expression.walk():
        if not isinstance(node, _SAFE):
            return False
        if type(node) is exp.Cast and node.find(exp.Column) and not _is_wider(*kinds([node.this, node])):
            return False
        if not all(_agree(kinds(values)) for values in _of_one_type(node) if len(values) > 1):
            return False
    return True


def _of_one_type(node: exp.Expr) -> list[list[exp.Expr]]:
    """Lists of values that DuckDB casts to one type, but for NULL and texts, which it reads before it sees any row."""
    found: list[list[exp.Expr | None]] = []
    if isinstance(node, _COMPARED):
        found = [[node.left, node.right]]
    elif isinstance(node, exp.Between):
        found = [[node.this, node.args["low"], node.args["high"]]]
    elif isinstance(node, exp.In | exp.Coalesce):
        found = [[node.this, *node.expressions]]
    elif isinstance(node, exp.Case):
        found = [[*(branch.args["true"] for branch in node.args["ifs"]), node.args.get("default")]]
        if node.this:
            found.append([node.this, *(branch.this for branch in node.args["ifs"])])
    bare = [[value.unnest() for value in values if value] for values in found]
    return [
        [v for v in vs if not (isinstance(v, exp.Null) or (isinstance(v, exp.Literal) and v.is_string))] for vs in bare
    ]


def _is_wider(kind: str, to: str) -> bool:
    """Whether a cast from one type to another fails on no value."""
    own, other = _digits(kind), _digits(to)
    if own and other:
        return own[0] <= other[0] and own[1] <= other[1]
    return kind == to or to == "VARCHAR" or (to == "DOUBLE" and bool(own))


def _agree(kinds: Sequence[str]) -> bool:
    """Whether DuckDB can bring values of these types to one without failing on any."""
    if len(set(kinds)) <= 1 or all(_INTEGER.fullmatch(kind) for kind in kinds):
        return True
    numbers = [kind for kind in kinds if kind not in ("DOUBLE", "FLOAT")]  # which any number can be cast to
    if numbers != list(kinds) and all(_INTEGER.fullmatch(kind) or _DECIMAL.fullmatch(kind) for kind in numbers):
        return True
    digits = [_digits(kind) for kind in kinds]
    known = [d for d in digits if d]
    return len(known) == len(digits) and max(d[0] for d in known) + max(d[1] for d in known) <= 38


def _digits(kind: str) -> tuple[int, int] | None:
    """How many digits numbers of a type have before and after the decimal point, None of any other type."""
    if decimal := _DECIMAL.fullmatch(kind):
        return int(decimal[1]) - int(decimal[2]), int(decimal[2])
    integers = {"BOOLEAN": 1, "TINYINT": 3, "SMALLINT": 5, "INTEGER": 10, "BIGINT": 19, "HUGEINT": 39}
    return (integers[kind], 0) if kind in integers else None
