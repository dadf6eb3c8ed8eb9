"""Marts that add up cells and do nothing else.

Such a mart is linear in the cells: its sums over some cells and its sums over the others add up to those over all, and
taking a cell away is adding one with negated measures. So a publication keeps the sums, and a reader adds up only what
changed since: the counting algorithm of Gupta, Mumick and Subrahmanian, "Maintaining Views Incrementally" (SIGMOD
1993), with signed measures for its counts.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from lockstep.names import GENERATED
from lockstep.published import sql
from lockstep.published.sql import Tree
from lockstep.schema import quoted

_SERVING = ("served_from", "as_of")  # the same of all cells
# What keys and conditions may be made of, and what may stand around sums.
_KNOWN = {"CAST", "COLUMN_REF", "COMPARISON", "CONJUNCTION", "CONSTANT", "OPERATOR"}
_TABLE = {"type", "catalog_name", "schema_name", "table_name", "alias"}


@dataclass(frozen=True)
class Sums:
    """A query that adds up `measures` of cells, as `find_sums` took it apart.

    It also reads `keys` of the cells, and `attributes` of the dimension if it joins one.
    """

    measures: Sequence[str]
    keys: Sequence[str]
    attributes: Sequence[str]
    _over: Tree
    _moved: Tree
    _total: Tree

    def over(self, cells: Iterable[str], dimension: str | None, sign: str = "+") -> Tree:
        """Return a query of the sums over all these cells, times the sign. It may have groups without a cell, all 0."""
        measures = (f"{sign}{name} AS {name}" for name in map(quoted, self.measures))
        columns = ", ".join((*map(quoted, self.keys), *measures))
        rows = sql.parse(" UNION ALL ".join(f"SELECT {columns} FROM {name}" for name in cells))
        return sql.fill(self._over, cells=rows, dimension=sql.parse(f"FROM {dimension}"))  # not read if there is none

    def moved(self, cells: str, was: str, now: str) -> Tree:
        """Return a query of the cells that may join other rows of the dimension now than they did."""
        attributes = ", ".join(map(quoted, self.attributes))
        other = (
            f'SELECT {attributes} FROM (SELECT {attributes}, 1 AS "+-" FROM {now} UNION ALL '
            f'SELECT {attributes}, -1 FROM {was}) GROUP BY {attributes} HAVING SUM("+-") <> 0'
        )
        return sql.fill(self._moved, cells=sql.parse(f"FROM {cells}"), dimension=sql.parse(other))

    def total(self, parts: Iterable[Tree], serving: str) -> Tree:
        """Return the query over parts whose sums add up to its own; `serving` has `served_from` and `as_of`."""
        union = sql.parse(" UNION ALL ".join(map(sql.text, parts)))
        return sql.fill(self._total, parts=union, serving=sql.parse(f"FROM {serving}"))


def find_sums(query: Tree) -> Sums | None:
    """Take a query apart if all it does is to add up cells; return None for any other.

    The form is `SELECT key, SUM(measure) FROM cells [LEFT JOIN dimension ON ...] GROUP BY key HAVING SUM(measure) <> 0`
    with any number of keys and measures. Without HAVING, sums could not tell which groups have a cell. The query may
    show `served_from` and `as_of` of the cells, and group by them.
    """
    source, having = query.get("from_table", {}), query.get("having")
    shown, groups = query.get("select_list", []), query.get("group_expressions", [])
    tables = [source[side] for side in ("left", "right") if side in source] or [source]
    join = sql.item("x LEFT JOIN y ON TRUE") | {part: source.get(part) for part in ("left", "right", "condition")}
    if (
        query != _select(shown, source, groups) | {"having": having}
        or source not in (join, *tables)
        or not all(table.keys() == _TABLE for table in tables)
        or not all("alias" in item for item in shown)
    ):
        return None
    aliases = [table["alias"] for table in tables]
    cells = quoted(aliases[0])
    serving = {name: sql.value(f"{cells}.{name}") for name in _SERVING}
    keys = [key for key in groups if key not in serving.values()]
    summed = _columns([node for node in sql.walk([shown, having]) if node.get("class") == "FUNCTION"])
    sums = {name: f"SUM({cells}.{quoted(name)})" for _, name in sorted(summed)}
    others = [(key, f"sums.{GENERATED}{n}") for n, key in enumerate(keys)]
    others += [(sql.value(found), f"SUM(sums.{quoted(name)})") for name, found in sums.items()]
    others += [(found, f"(SELECT {name} FROM serving)") for name, found in serving.items()]
    rest = _replaced(shown, [(found, "NULL") for found, _ in others])
    by = [*keys, source.get("condition")]
    nodes, read = [*sql.walk(by), *sql.walk(rest)], _columns(by)
    if (
        having not in [sql.value(f"{found} <> 0") for found in sums.values()]
        or _columns(rest)
        or {table for table, _ in read} != {*aliases}
        or not {node["class"] for node in nodes if "class" in node} <= _KNOWN
        or any("WITH TIME ZONE" in node.get("id", "") for node in nodes)  # which depend on the reader's session
    ):
        return None
    named = [f"{name} AS {quoted(alias)}" for name, alias in zip(("cells", "dimension"), aliases, strict=False)]
    over = sql.mapped(source, lambda node: sql.item(named[tables.index(node)]) if node in tables else None)
    added = [key | {"alias": f"{GENERATED}{n}"} for n, key in enumerate(keys)]
    added += [sql.value(f"{found} AS {quoted(name)}") for name, found in sums.items()]
    total_shown, total_groups, total_having = _replaced([shown, keys, having], others)
    return Sums(
        measures=[*sums],
        keys=sorted(column for table, column in read if table == aliases[0]),
        attributes=sorted(column for table, column in read if table != aliases[0]),
        _over=_select(added, over, keys),
        _moved=sql.parse(f"SELECT {cells}.* FROM x") | {"from_table": over | {"join_type": "SEMI"}},
        _total=_select(total_shown, sql.item("parts AS sums"), total_groups) | {"having": total_having},
    )


def _select(shown: list[Tree], source: Tree, groups: list[Tree]) -> Tree:
    parts = {"select_list": shown, "from_table": source}
    return sql.parse("SELECT 1") | parts | {"group_expressions": groups, "group_sets": [[*range(len(groups))]]}


def _replaced(tree: Any, others: Sequence[tuple[Tree, str]]) -> Any:
    """The tree with each of these expressions replaced by another, under the same name."""

    def change(node: Tree) -> Tree | None:
        name = {part: value for part, value in node.items() if part == "alias"}
        found = [sql.value(other) for expression, other in others if expression | name == node]
        return found[0] | name if found else None

    return sql.mapped(tree, change)


def _columns(tree: Any) -> set[tuple[str, str]]:
    """The columns that a tree reads, each with its table."""
    names = [node["column_names"] for node in sql.walk(tree) if node.get("class") == "COLUMN_REF"]
    return {(".".join(table), column) for *table, column in names}
