"""Queries as DuckDB's own syntax trees: DuckDB parses and prints them, so nothing else has to know its grammar.

A tree is what `json_serialize_sql` returns, as dicts and lists. Trees are never changed in place: several may share a
part.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import duckdb

from lockstep.errors import LockstepError
from lockstep.schema import quoted

Tree = dict[str, Any]
RESERVED = "."  # what the names of shared queries have in them, and no CTE of a model may

_NO_TREE = "SELECT {} FROM (SELECT 1)"


class NotSqlError(LockstepError):
    """DuckDB does not parse it."""


@functools.cache
def _duckdb() -> duckdb.DuckDBPyConnection:
    return duckdb.connect()


@functools.lru_cache(8192)
def parse(query: str, *, comma_binds_first: bool = False) -> Tree:
    """The tree of a query.

    DuckDB prints CROSS JOIN as a comma and a join on its right without parentheses, so `a , b LEFT JOIN c` may come of
    `(a CROSS JOIN b) LEFT JOIN c`: with `comma_binds_first` that is how it is read.
    """
    [[answer]] = _duckdb().cursor().execute("SELECT json_serialize_sql(?, skip_default := TRUE)", [query]).fetchall()
    found = json.loads(answer, object_hook=_anywhere)
    if found["error"] or len(found["statements"]) != 1:
        raise NotSqlError(f"DuckDB does not parse this as one query ({found.get('error_message')}): {query}")
    node: Tree = found["statements"][0]["node"]
    return _without_commas(node, comma_binds_first) if '"CROSS"' in answer else node


def _anywhere(node: Tree) -> Tree:
    """A node without its place in the text, so that two equal expressions are equal nodes."""
    node.pop("query_location", None)
    return node


def text(tree: Tree) -> str:
    """The query that a tree is of."""
    statement = json.dumps({"error": False, "statements": [{"node": tree, "named_param_map": []}]})
    [[query]] = _duckdb().cursor().execute("SELECT json_deserialize_sql(?::JSON)", [statement]).fetchall()
    return str(query)


def item(relation: str) -> Tree:
    """The tree of what can stand behind FROM."""
    found: Tree = parse(f"SELECT * FROM {relation}")["from_table"]
    return found


def subquery(query: Tree) -> Tree:
    """A query as what stands behind FROM."""
    return {**item("(SELECT 1)"), "subquery": {"node": query, "named_param_map": []}}


def value(expression: str) -> Tree:
    """The tree of an expression."""
    found: Tree = parse(_NO_TREE.format(expression))["select_list"][0]
    return found


def fill(template: str | Tree, /, **queries: Tree) -> Tree:
    """The tree of a query in which some of the tables that it reads are queries themselves."""

    def change(node: Tree) -> Tree | None:
        if node.get("type") == "BASE_TABLE" and not node.get("schema_name") and node["table_name"] in queries:
            return in_place_of(node, subquery(queries[node["table_name"]]))
        return None

    tree: Tree = mapped(parse(template) if isinstance(template, str) else template, change)
    return tree


def in_place_of(node: Tree, other: Tree) -> Tree:
    """What reads `other`, under the name by which `node` was known."""
    kept = {key: node[key] for key in ("column_name_alias", "sample") if node.get(key)}
    return {**other, **kept, "alias": node.get("alias") or node["table_name"]}


def mapped(tree: Any, change: Callable[[Tree], Tree | None]) -> Any:
    """The tree with each node, outermost first, that `change` returns another for replaced by that one."""
    if isinstance(tree, dict):
        other = change(tree)
        if other is not None:
            return other
    made = tree
    for key, part in tree.items() if isinstance(tree, dict) else enumerate(tree):
        if isinstance(part, (dict, list)):
            new = mapped(part, change)
            if new is not part:
                if made is tree:
                    made = tree.copy()
                made[key] = new
    return made


def walk(tree: Any) -> Iterator[Tree]:
    """All nodes of a tree, in no order."""
    waiting = [tree]
    while waiting:
        part = waiting.pop()
        if isinstance(part, dict):
            yield part
            part = part.values()
        waiting += [p for p in part if isinstance(p, (dict, list))]


# -- What a query reads


@dataclass(frozen=True)
class Reading:
    """A table, or table function, that a query reads. `select` is the innermost SELECT that it stands in."""

    node: Tree
    select: Tree
    ctes: Mapping[str, Tree]  # by their names in lower case
    may_be_correlated: bool  # it stands in a subquery that is asked for each row of what is around it

    @property
    def function(self) -> str | None:
        """The name of the table function."""
        return str(self.node["function"]["function_name"]).lower() if self.node["type"] == "TABLE_FUNCTION" else None

    @property
    def relation(self) -> tuple[str, str, str]:
        """The catalog, the schema and the name of the table, as they are spelled; empty where they are not given."""
        return (
            str(self.node.get("catalog_name") or ""),
            str(self.node.get("schema_name") or ""),
            str(self.node.get("table_name") or ""),
        )

    @property
    def cte(self) -> Tree | None:
        """The query of the CTE that is read, if it is one: a name with a schema never is."""
        *place, name = self.relation
        return self.ctes.get(name.lower()) if name and not any(place) else None

    @property
    def is_alone(self) -> bool:
        """Whether its SELECT reads nothing else."""
        return self.select.get("from_table") is self.node

    @property
    def alias(self) -> str:
        return str(self.node.get("alias") or self.node.get("table_name"))


def readings(tree: Tree) -> list[Reading]:
    """All that a query reads, in any part of it, CTEs too."""
    return list(_readings(tree, tree, {}, False))


def _readings(tree: Any, select: Tree, ctes: Mapping[str, Tree], is_within: bool) -> Iterator[Reading]:
    if isinstance(tree, list):
        for part in tree:
            yield from _readings(part, select, ctes, is_within)
    if not isinstance(tree, dict):
        return
    for entry in _cte_map(tree) if "cte_map" in tree else ():
        name, query = str(entry["key"]).lower(), entry["value"]["query"]["node"]
        is_recursive = query["type"] == "RECURSIVE_CTE_NODE"
        yield from _readings(query, query, {**ctes, name: query} if is_recursive else ctes, is_within)
        aliases = entry["value"].get("aliases")
        ctes = {**ctes, name: {**query, "aliases": aliases} if aliases else query}
    kind = tree.get("type")
    if kind in ("BASE_TABLE", "TABLE_FUNCTION", "SHOW_REF"):
        yield Reading(tree, select, ctes, is_within)
    inner = tree if kind == "SELECT_NODE" else select
    for key, part in tree.items():
        if key != "cte_map" and isinstance(part, (dict, list)):
            yield from _readings(part, inner, ctes, is_within or _is_correlated(tree))


def _is_correlated(tree: Tree) -> bool:
    """Whether it is a subquery in an expression, or one behind FROM that names a table which is not in it (LATERAL)."""
    if tree.get("type") != "SUBQUERY" or "class" in tree:
        return "class" in tree and tree["class"] == "SUBQUERY"
    names, tables = set(), set()
    for node in walk(tree["subquery"]):
        if len(node.get("column_names", ())) > 1:
            names.add(str(node["column_names"][0]).lower())
        elif "class" not in node:
            tables |= {str(node.get(key) or "").lower() for key in ("alias", "table_name")}
    return not names <= tables


def ctes_of(query: Tree) -> list[str]:
    """The names of what stands in the WITH of a query."""
    return [str(entry["key"]) for entry in _cte_map(query)]


def _cte_map(query: Tree) -> list[Tree]:
    return list((query.get("cte_map") or {}).get("map") or [])


def with_ctes(query: Tree, ctes: Mapping[str, Tree]) -> Tree:
    """The query behind others that it reads by name."""
    if not ctes:
        return query
    pattern = parse("WITH x AS (SELECT 1) SELECT * FROM query")
    [entry] = pattern["cte_map"]["map"]
    named = [
        {**entry, "key": name, "value": {**entry["value"], "query": {"node": made, "named_param_map": []}}}
        for name, made in ctes.items()
    ]
    return {**fill("SELECT * FROM query", query=query), "cte_map": {"map": named}}


# -- What stands in a SELECT


def conditions(select: Tree) -> list[Tree]:
    """The conditions that all have to hold by its WHERE."""

    def parts(condition: Tree) -> Iterator[Tree]:
        if condition["type"] != "CONJUNCTION_AND":
            yield condition
        else:
            for part in condition["children"]:
                yield from parts(part)

    return list(parts(select["where_clause"])) if select.get("where_clause") else []


def literal(expression: Any) -> str | None:
    """The text of a text literal; None for anything else."""
    if isinstance(expression, dict) and expression.get("class") == "CONSTANT":
        known = expression["value"]
        if known["type"]["id"] == "VARCHAR" and not known.get("is_null"):
            return str(known["value"])
    return None


def required(select: Tree, alias: str, column: str) -> set[str] | None:
    """The texts that the WHERE allows in a column; None if it does not restrict it."""
    found: set[str] | None = None
    for condition in conditions(select):
        parts = condition.get("children", []) if condition.get("type") == "COMPARE_IN" else []
        if condition.get("type") == "COMPARE_EQUAL":
            parts = [condition["left"], condition["right"]]
            parts = parts if literal(parts[0]) is None else parts[::-1]
        texts = [literal(part) for part in parts[1:]]
        if texts and is_column(parts[0], alias, column) and None not in texts:
            named = {t for t in texts if t is not None}
            found = named if found is None else found & named
    return found


def is_false(condition: Tree) -> bool:
    """Whether it says that two different texts are equal."""
    if condition.get("type") != "COMPARE_EQUAL":
        return False
    left, right = literal(condition["left"]), literal(condition["right"])
    return left is not None and right is not None and left != right


def is_column(expression: Tree, alias: str, column: str) -> bool:
    names = [str(name).lower() for name in expression.get("column_names", ())]
    return names in ([column.lower()], [alias.lower(), column.lower()])


def mentioned(reading: Reading) -> set[str] | None:
    """The columns, in lower case, that the SELECT may look at of what it reads; None if these may be all."""
    found: set[str] = set()
    for node in walk(reading.select):
        names = [str(name).lower() for name in node.get("column_names", ())]
        if node.get("type") == "STAR" or node.get("ref_type") == "NATURAL" or names == [reading.alias.lower()]:
            return None
        found.update(names)
        found.update(str(name).lower() for name in node.get("using_columns") or ())
    return found


def is_plain(select: Tree) -> bool:
    """Whether it is nothing but `SELECT ... FROM table [WHERE ...]`: as many rows as the table has there."""
    known = {"type", "select_list", "from_table", "where_clause", "cte_map", "modifiers", "aggregate_handling"}
    return (
        select["type"] == "SELECT_NODE"
        and not ctes_of(select)
        and not select.get("modifiers")
        and not any(part for key, part in select.items() if key not in known)
        and select.get("aggregate_handling", "STANDARD_HANDLING") == "STANDARD_HANDLING"
        and select["from_table"]["type"] == "BASE_TABLE"
        and not select["from_table"].get("sample")
        and not select["from_table"].get("column_name_alias")
        and not any(node.get("class") in ("FUNCTION", "WINDOW", "STAR") for node in walk(select["select_list"]))
    )


def shown_as(select: Tree, alias: str, column: str) -> str | None:
    """The column of its table that a plain SELECT shows under a name; None if that is not a bare column."""
    found = [e for e in select["select_list"] if (e.get("alias") or e.get("column_names", [""])[-1]).lower() == column]
    if len(found) != 1 or not found[0].get("column_names"):
        return None
    name = str(found[0]["column_names"][-1]).lower()
    return name if is_column(found[0], alias, name) else None


# -- Commas


def _without_commas(tree: Any, comma_binds_first: bool) -> Any:
    """With INNER JOIN ON TRUE instead of each CROSS JOIN: that is printed so that it is read as it was meant."""
    if isinstance(tree, list):
        return [_without_commas(part, comma_binds_first) for part in tree]
    if not isinstance(tree, dict):
        return tree
    node = {key: _without_commas(part, comma_binds_first) for key, part in tree.items()}
    if node.get("type") != "JOIN" or node.get("ref_type") != "CROSS":
        return node
    node |= {"ref_type": "REGULAR", "join_type": "INNER", "condition": value("TRUE")}
    right = node["right"]
    if right["type"] != "JOIN" or not comma_binds_first:
        return node
    inner = right  # made just now, so that it may be changed
    while inner["left"]["type"] == "JOIN":
        inner = inner["left"]
    inner["left"] = node | {"right": inner["left"]}
    return right


def named(name: str) -> str:
    """A model's name, or that of anything else in a schema, as SQL spells it."""
    schema, _, short = name.partition(".")
    return f"{quoted(schema)}.{quoted(short)}"
