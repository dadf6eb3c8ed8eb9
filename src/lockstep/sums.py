"""Marts that add up cells and do nothing else.

Such a mart is linear in the cells: what it adds up over some and over others, added, is what it adds up over all, and a
cell taken away is one with its measures negated. So who has kept its sums need not add up all cells again, only what
changed since: the counting algorithm of Gupta, Mumick and Subrahmanian, "Maintaining Views Incrementally" (SIGMOD
1993), with signed measures for its counts.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from sqlglot import exp, parse_one
from sqlglot.errors import SqlglotError

_SERVING = ("served_from", "as_of")  # the same of all cells
_KNOWN = (
    *(exp.Select, exp.From, exp.Join, exp.Group, exp.Having, exp.Table, exp.TableAlias, exp.Alias, exp.Identifier),
    *(exp.Column, exp.Cast, exp.DataType, exp.DataTypeParam, exp.Coalesce, exp.Literal, exp.Paren, exp.And, exp.Sum),
    *(exp.EQ, exp.NEQ, exp.LT, exp.LTE, exp.GT, exp.GTE),
)


@dataclass(frozen=True)
class Sums:
    """A query that adds up cells, as `find_sums` took it apart.

    `cells` and `dimension` are the relations that it reads. Of cells it adds up `measures` and looks at `keys`, of the
    dimension it looks at `attributes`. `joined` has the attributes that have to equal a key, each with its key.
    """

    cells: str
    dimension: str | None
    measures: frozenset[str]
    keys: frozenset[str]
    attributes: tuple[str, ...]
    joined: dict[str, str]
    _over: str
    _total: str

    def over(self, cells: Iterable[str], dimension: str | None, sign: str = "+") -> str:
        """A query of the sums over all these cells, with a sign. Among its rows may be groups without a cell, all 0."""
        measures = (f"{sign}{name} AS {name}" for name in map(_quoted, sorted(self.measures)))
        columns = ", ".join((*map(_quoted, sorted(self.keys)), *measures))
        rows = " UNION ALL ".join(f"SELECT {columns} FROM {name}" for name in cells)
        return self._over.format(cells=f"({rows})", dimension=dimension)

    def moved(self, cells: str, was: str, now: str) -> str:
        """A query of the cells to which another row of the dimension may belong than did, told by the rows of both."""
        attributes = ", ".join(map(_quoted, self.attributes))
        other = (
            f'SELECT {attributes} FROM (SELECT {attributes}, 1 AS "+-" FROM {now} UNION ALL '
            f'SELECT {attributes}, -1 FROM {was}) GROUP BY {attributes} HAVING SUM("+-") <> 0'
        )
        same = " AND ".join(f"cells.{_quoted(key)} = other.{_quoted(name)}" for name, key in self.joined.items())
        return f"SELECT cells.* FROM {cells} AS cells SEMI JOIN ({other}) AS other ON {same}"

    def total(self, parts: Iterable[str], serving: str) -> str:
        """The query's rows, from queries of sums that add up to its own; `serving` has `served_from` and `as_of`."""
        return self._total.format(parts=" UNION ALL ".join(parts), serving=serving)


def find_sums(query: str) -> Sums | None:
    """What a query, in DuckDB's spelling, adds up; None if that is not all it does.

    The form is `SELECT key, SUM(measure) FROM cells [LEFT JOIN dimension ON ...] GROUP BY key HAVING SUM(measure) <> 0`
    with any number of keys and measures: without its last part, sums could not tell which groups have a cell. It may
    show `served_from` and `as_of` of the cells, and group by them.
    """
    try:
        select = parse_one(query, dialect="duckdb")
    except SqlglotError:
        return None
    joins = list(select.find_all(exp.Join))
    group, having = select.args.get("group"), select.args.get("having")
    if (
        not all(isinstance(node, _KNOWN) for node in select.walk())
        or len(list(select.find_all(exp.Select))) > 1
        or any(kind.is_type("timestamptz") for kind in select.find_all(exp.DataType))  # told by the reader's session
        or not (group and having)
        or len(joins) > 1
        or any((join.side, join.kind, join.method) != ("LEFT", "", "") or not join.args.get("on") for join in joins)
    ):
        return None
    [cells, dimension] = [*(part.this for part in (*select.find_all(exp.From), *joins)), None][:2]
    on = joins[0].args["on"].unnest() if joins else exp.true()

    keys, sums = dict[str, exp.Expression](), dict[str, exp.Sum]()
    shown, totals = list[str](), list[str]()
    serving = {f"{cells.alias}.{column}" for column in _SERVING}
    for item in select.expressions:
        name, value = _quoted(item.alias), item.unalias()
        bare = value
        while isinstance(bare, (exp.Cast, exp.Paren)):
            bare = bare.this
        shown.append(f"serving.{bare.name} AS {name}" if _sql(bare) in serving else f"sums.{name}")
        if isinstance(bare, exp.Sum):
            sums[name] = bare
            totals.append(f"{_sql(value).replace(_sql(bare), f'SUM({name})')} AS {name}")
        elif _sql(bare) not in serving:
            keys[name] = value
    there = [name for name, value in sums.items() if _sql(having.this.unnest()) == f"{_sql(value)} <> 0"]
    joined = dict[str, str]()
    for part in on.flatten() if isinstance(on, exp.And) else [on]:
        if isinstance(part, exp.EQ) and all(isinstance(side, exp.Column) for side in (part.left, part.right)):
            joined |= dict(zip(_columns(dimension, part), _columns(cells, part), strict=False))
    if (
        not (keys and there)
        or not all(isinstance(value.this, exp.Column) and _columns(cells, value) for value in sums.values())
        or {_sql(key) for key in group.expressions} - serving != {_sql(key) for key in keys.values()}
        or bool(dimension) != bool(joined)
    ):
        return None
    added = [f"{_sql(value)} AS {name}" for name, value in keys.items()]
    added += [f"{_sql(value)} AS {name}" for name, value in sums.items()]
    return Sums(
        cells=_relation(cells),
        dimension=_relation(dimension) if dimension else None,
        measures=frozenset(value.this.name for value in sums.values()),
        keys=frozenset(_columns(cells, on, *keys.values())),
        attributes=tuple(sorted(set(_columns(dimension, on, *keys.values())))),
        joined=joined,
        _over=f"SELECT {', '.join(added)} FROM {{cells}} AS {_sql(cells.args['alias'])}"
        + (f" LEFT JOIN {{dimension}} AS {_sql(dimension.args['alias'])} ON {_sql(on)}" if dimension else "")
        + f" GROUP BY {', '.join(map(_sql, keys.values()))}",
        _total=f"SELECT {', '.join(shown)} FROM (SELECT {', '.join([*keys, *totals])} FROM ({{parts}}) AS parts "
        f"GROUP BY {', '.join(keys)} HAVING SUM({there[0]}) <> 0) AS sums CROSS JOIN {{serving}} AS serving",
    )


def _quoted(name: str) -> str:
    return f'"{name}"'


def _sql(expression: exp.Expression) -> str:
    """In DuckDB's dialect, as a part of what `str.format` fills in."""
    return str(expression.sql("duckdb")).replace("{", "{{").replace("}", "}}")


def _columns(table: exp.Table | None, *expressions: exp.Expression) -> list[str]:
    """The names of the table's columns in the expressions."""
    found = (column for expression in expressions for column in expression.find_all(exp.Column))
    return [column.name for column in found if table and column.table == table.alias]


def _relation(table: exp.Table) -> str:
    return ".".join(part.name for part in table.parts)
