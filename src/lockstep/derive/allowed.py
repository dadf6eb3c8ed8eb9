"""The syntax that is known. What is not on this list is refused: it could be read as something else than it is."""

from __future__ import annotations

from sqlglot import exp

from lockstep.derive.refusals import Refused

# Clauses, operators, and functions that depend on nothing but their arguments.
_ALLOWED = frozenset(
    """
    Abs Add Alias And Anonymous Avg Between Boolean Bracket CTE Case Cast Ceil Coalesce Column Concat ConcatWs
    Contains Count CountIf Cube DPipe DataType DataTypeParam Date DateAdd DateDiff DateStrToDate DateSub DateTrunc
    Day DayOfMonth DayOfWeek DenseRank Distinct Div EQ EndsWith Except Exists Extract Filter Floor From GT GTE
    Greatest Group GroupingSets Having Hour ILike Identifier If In IntDiv Intersect Interval Is IsNan Join LT LTE
    Lag Lead Least Left Length Like Limit Literal LogicalAnd LogicalOr Lower Max Median Min Minute Mod Month Mul NEQ
    Neg Not Null NullSafeEQ NullSafeNEQ Nullif Offset Or Order Ordered Paren PercentileCont PercentileDisc Pow
    Qualify Quantile Quarter Rank RegexpLike Replace Right Rollup Round RowNumber SafeDivide Second Select Sign
    SplitPart Sqrt Star StartsWith StrPosition Sub Subquery Substring Sum Table TableAlias Timestamp TimestampAdd
    TimestampSub TimestampTrunc Trim TryCast TsOrDsAdd TsOrDsToDate Tuple Union Upper Var Week Where Window
    WindowSpec With WithinGroup Year
    """.split()  # noqa: SIM905 - a list would be a hundred lines
)
_FUNCTIONS = frozenset({"date_part", "epoch", "epoch_ms", "epoch_us", "md5", "quantile_cont", "quantile_disc"})

_INSTEAD = {
    "TableSample": "Filter by a column instead: a sample is another one each time.",
    "IgnoreNulls": "Take MIN or MAX, which name one value.",
    "AnyValue": "Take MIN or MAX, which name one value.",
    "First": "Take MIN or MAX, which name one value.",
    "Last": "Take MIN or MAX, which name one value.",
    "ArrayAgg": "Lists have no order of their own.",
    "GroupConcat": "Texts strung together have no order of their own.",
    "CurrentTimestamp": "Use @as_of(), the time of the figure.",
    "CurrentDate": "Use @as_of(), the time of the figure.",
    "Rand": "A random number is another one each time.",
}


def check(query: exp.Query) -> None:
    """Raise Refused at the first construct that is not known."""
    for node in query.walk():
        kind = type(node).__name__
        if isinstance(node, exp.Anonymous) and node.name.lower() not in _FUNCTIONS:
            raise Refused(f"{node.name.upper()}()", node, "It is not on the list of functions that can be derived.")
        if isinstance(node, exp.Join):
            _check_join(node)
        elif isinstance(node, exp.Query) and node.args.get("limit") and not node.args.get("order"):
            raise Refused("LIMIT without ORDER BY", node.args["limit"], "Say in which order the first rows come.")
        elif isinstance(node, exp.Window) and not node.args.get("order") and not isinstance(node.this, exp.AggFunc):
            raise Refused(_named(node), node, "Say in which order it goes.")
        elif kind not in _ALLOWED:
            raise Refused(_named(node), node, _INSTEAD.get(kind, "It is not on the list of what can be derived."))


def _check_join(join: exp.Join) -> None:
    if join.method.upper() in ("ASOF", "NATURAL", "POSITIONAL"):
        raise Refused(f"{join.method.upper()} JOIN", join, "Join ON the columns that must be equal.")
    if join.side.upper() in ("RIGHT", "FULL"):
        raise Refused(f"{join.side.upper()} JOIN", join, "Turn the tables round, or UNION ALL the two sides.")


def _named(node: exp.Expr) -> str:
    return node.sql("duckdb")[:60] if not isinstance(node, exp.Func) else f"{node.sql_name()}()"
