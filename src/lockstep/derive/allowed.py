"""The syntax that is known, down to the parts of each construct. What is not listed here is refused.

The compiler must read, or carry along unchanged, every part of a query. A part that it overlooks would give figures of
another query: a SEMI JOIN read as an inner one. So a node may have only the parts (`args` of sqlglot) that are listed.
"""

from __future__ import annotations

from collections.abc import Iterator

from sqlglot import exp

from lockstep.derive.refusals import Refused

_KNOWN = {  # the parts that a node may have: the nodes
    "": "JSONPathRoot Null RowNumber",
    "this": """Abs Avg Boolean Ceil CountIf DataTypeParam Date DateStrToDate Day DayOfMonth DayOfWeek DenseRank Floor
        From Having Hour IsNan JSONPathKey JSONPathSubscript Length LogicalAnd LogicalOr Lower Max Median Min Minute
        Month Neg Not Paren Qualify Quarter Rank Second Sign Sqrt Sum Timestamp Upper Var Week Where Year""",
    "this expression": """Add And ArgMax ArgMin Contains EQ EndsWith Exists Extract Filter GT GTE IntDiv Is LT
        LTE Left Mod Mul NEQ NullSafeEQ NullSafeNEQ Nullif Or PercentileCont PercentileDisc Pow Right SafeDivide
        StartsWith Sub WithinGroup""",
    "this expression unit": "DateAdd DateDiff DateSub TimestampAdd TimestampSub",
    "this expression negate": "ILike Like",
    "this expression safe": "DPipe",
    "this expression typed safe": "Div",
    "this expression return_type unit": "TsOrDsAdd",
    "this expression position": "Trim",
    "this expression replacement": "Replace",
    "this expression flag full_match": "RegexpLike",
    "this expression with_ distinct order limit offset": "Except Intersect Union",
    "this expressions": "Anonymous Bracket Coalesce",
    "this expression only_json_types": "JSONExtract",
    "this expression only_json_types scalar_only": "JSONExtractScalar",
    "this expressions ignore_nulls": "Greatest Least",
    "this expressions nested": "DataType",
    "this expressions query": "In",
    "this alias": "Alias",
    "this alias db catalog": "Table",
    "this alias materialized": "CTE",
    "this alias with_ order limit offset": "Subquery",
    "this big_int": "Count",
    "this columns": "TableAlias",
    "this decimals": "Round",
    "this delimiter part_index part_index_zero_as_one empty_delimiter_returns_whole": "SplitPart",
    "this desc nulls_first": "Ordered",
    "this format": "TsOrDsToDate",
    "this ifs default": "Case",
    "this is_string": "Literal",
    "this low high": "Between",
    "this offset default": "Lag Lead",
    "this on using side kind method": "Join",
    "this partition_by order spec over": "Window",
    "this quantile": "Quantile",
    "this quoted": "Identifier",
    "this start length": "Substring",
    "this substr": "StrPosition",
    "this table": "Column",
    "this to": "Cast",
    "this to safe": "TryCast",
    "this true false": "If",
    "this unit": "Interval",
    "this unit input_type_preserved": "DateTrunc TimestampTrunc",
    "except_ replace rename": "Star",
    "expression": "Limit Offset",
    "expressions": "Cube Distinct GroupingSets JSONPath Order Rollup Tuple",
    "expressions all cube rollup grouping_sets": "Group",
    "expressions recursive": "With",
    "expressions safe coalesce": "Concat ConcatWs",
    "expressions with_ distinct from_ joins where group having qualify order limit offset": "Select",
    "kind start start_side end end_side exclude": "WindowSpec",
}
_PARTS = {node: parts.split() for parts, nodes in _KNOWN.items() for node in nodes.split()}
_FUNCTIONS = frozenset({"date_part", "epoch", "epoch_ms", "epoch_us", "md5"})  # of those that sqlglot does not know
_SIDES, _JOINS = ("", "LEFT"), ("", "INNER", "OUTER", "CROSS")
_OF_ROWS = (exp.Avg, exp.Count, exp.CountIf, exp.LogicalAnd, exp.LogicalOr, exp.Max, exp.Median, exp.Min, exp.Sum)

_NOT_LISTED = "It is not on the list of what can be derived."
_ONE_VALUE = "Take MIN or MAX, which name one value."
_INSTEAD = {  # nodes, and parts of nodes
    "sample": "Filter by a column instead: a sample is another one each time.",
    "TableSample": "Filter by a column instead: a sample is another one each time.",
    "by_name": "List the columns of both sides in one order.",
    "on": "Take the first row by QUALIFY ROW_NUMBER() OVER (...) = 1.",
    "IgnoreNulls": _ONE_VALUE,
    "AnyValue": _ONE_VALUE,
    "First": _ONE_VALUE,
    "Last": _ONE_VALUE,
    "ArrayAgg": "Lists have no order of their own.",
    "GroupConcat": "Texts strung together have no order of their own.",
    "CurrentTimestamp": "Use @as_of(), the time of the figure.",
    "CurrentDate": "Use @as_of(), the time of the figure.",
    "Rand": "A random number is another one each time.",
    "Tuple": "Compare or count the columns one by one.",
    "Lateral": "Join a subquery ON the columns that must be equal.",
    "Values": "Read a seed.",
}


def check(query: exp.Query) -> None:
    """Raise Refused at the first construct that is not known."""
    for node in query.walk():
        kind = type(node).__name__
        if kind not in _PARTS:
            raise Refused(_named(node), node, _INSTEAD.get(kind, _NOT_LISTED))
        for part, value in node.args.items():
            if part not in _PARTS[kind] and value not in (None, False, []):
                raise Refused(f"{_named(node)} with {_said(part, value)}", node, _INSTEAD.get(part, _NOT_LISTED))
        for wrong in _wrong(node):
            raise wrong


def _wrong(node: exp.Expr) -> Iterator[Refused]:
    """What is refused of nodes whose parts are all known."""
    parent = node.parent
    if isinstance(node, exp.Anonymous) and node.name.lower() not in _FUNCTIONS:
        yield Refused(f"{node.name.upper()}()", node, "It is not on the list of functions that can be derived.")
    elif isinstance(node, exp.Join):
        if node.method:
            yield Refused(f"{node.method.upper()} JOIN", node, "Join ON the columns that must be equal.")
        if node.kind.upper() not in _JOINS:
            yield Refused(f"{node.kind.upper()} JOIN", node, "Write WHERE [NOT] EXISTS (SELECT ...).")
        if node.side.upper() not in _SIDES:
            yield Refused(f"{node.side.upper()} JOIN", node, "Turn the tables round, or UNION ALL the two sides.")
    elif isinstance(node, exp.Query):
        if (node.args.get("limit") or node.args.get("offset")) and not node.args.get("order"):
            yield Refused("LIMIT without ORDER BY", node, "Say in which order the first rows come.")
        if isinstance(node, exp.Subquery) and not isinstance(node.this, exp.Query):
            yield Refused("Joins in parentheses", node, "Join the tables one after the other, or in a subquery.")
    elif isinstance(node, exp.Window):
        if not node.args.get("order") and (node.args.get("spec") or not isinstance(node.this, (*_OF_ROWS, exp.Filter))):
            yield Refused(_named(node), node, "Say in which order it goes.")
    elif isinstance(node, exp.Table) and not isinstance(node.this, exp.Identifier):
        yield Refused(_named(node), node, _NOT_LISTED)
    elif isinstance(node, exp.Table) and node.args.get("alias") and node.args["alias"].columns:
        yield Refused(f"Names of columns in {node.sql('duckdb')}", node, "Give them in a SELECT.")
    elif isinstance(node, exp.Filter) and not isinstance(node.this, exp.AggFunc):
        yield Refused(_named(node), node, "Put the condition into CASE.")
    elif isinstance(node, exp.Distinct) and not isinstance(parent, exp.Select):
        if not isinstance(parent, _OF_ROWS) or isinstance(parent, exp.CountIf) or len(node.expressions) != 1:
            yield Refused(_named(node), node, "Take the DISTINCT of one expression.")
    elif isinstance(node, exp.Star) and not isinstance(parent, exp.Select | exp.Count):
        if not isinstance(parent, exp.Column) or not isinstance(parent.parent, exp.Select):
            yield Refused(_named(node), node, "Name the columns.")
    elif isinstance(node, exp.Tuple) and not isinstance(parent, exp.Cube | exp.Rollup | exp.GroupingSets):
        yield Refused(_named(node), node, _INSTEAD["Tuple"])
    elif isinstance(node, exp.Limit | exp.Offset) and not isinstance(node.expression, exp.Literal):
        yield Refused(_named(node), node, "Give it a number.")


def _named(node: exp.Expr) -> str:
    return node.sql("duckdb")[:60] if not isinstance(node, exp.Func) else f"{node.sql_name()}()"


def _said(part: str, value: object) -> str:
    return value.sql("duckdb")[:60] if isinstance(value, exp.Expr) else part.strip("_").replace("_", " ").upper()
