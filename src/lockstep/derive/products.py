"""Linear sources: sums of signed products of tables, with conditions and columns.

The rules are those of Z-set algebra. A table is one product. A row-level SELECT substitutes its columns, UNION ALL
concatenates, a join multiplies. Where at most one row s fits a row r, because the condition names s's whole key:

    r LEFT JOIN s       =  r x s  +  r with NULLs  -  (r x s) with NULLs
    r WHERE r IN s      =  r x s                      (columns of r)
    r WHERE r NOT IN s  =  r  -  r x s                (columns of r)

A LEFT JOIN to a table that never changes is linear in r whatever it matches, so it stays a LEFT JOIN.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from sqlglot import exp

from lockstep.derive.catalog import Catalog, Types
from lockstep.derive.normal import name_of, own
from lockstep.derive.refusals import NotLinear
from lockstep.derive.trying import Kinds, condition_tried
from lockstep.names import GENERATED as PREFIX

Columns = Mapping[tuple[str, str], exp.Expr]  # what a column of an alias is, in terms of the product's tables


@dataclass(frozen=True)
class Product:
    """`sign` times the product of `tables` (pairs of alias and name) where all `conditions` hold.

    `looked_up`: static tables that are then joined to it by LEFT JOIN, each with its conditions.
    """

    sign: int
    tables: tuple[tuple[str, str], ...]
    conditions: tuple[exp.Expr, ...]
    columns: Columns
    looked_up: tuple[tuple[str, str, tuple[exp.Expr, ...]], ...] = ()

    def where(self, condition: exp.Expr) -> Product:
        return replace(self, conditions=(*self.conditions, substituted(condition, self.columns)))

    def times(self, other: Product) -> Product:
        return Product(
            self.sign * other.sign,
            self.tables + other.tables,
            self.conditions + other.conditions,
            {**self.columns, **other.columns},
            self.looked_up + other.looked_up,
        )

    def tried(self, types: Types) -> Product:
        """The product with conditions that fail on no row, and are not met where they would."""
        kinds = self.kinds(types)
        conditions = tuple(condition_tried(c, kinds) for c in self.conditions)
        looked_up = tuple((a, n, tuple(condition_tried(c, kinds) for c in on)) for a, n, on in self.looked_up)
        return replace(self, conditions=conditions, looked_up=looked_up)

    def kinds(self, types: Types) -> Kinds:
        """What gives the types of expressions over its tables."""
        return lambda expressions: types.of(self.all_tables(), expressions)

    def joined(
        self, relations: Mapping[str, exp.Expr], static: Callable[[str], exp.Expr], query: exp.Select
    ) -> exp.Select:
        """`query` from these relations of its tables, by alias, and from static tables, where its conditions hold."""
        first, *others = [relations[alias] for alias, _ in self.tables]
        query = query.from_(first)
        for relation in others:
            query = query.join(relation, join_type="cross")
        for alias, name, on in self.looked_up:
            table = exp.alias_(static(name), alias, table=True)
            query = query.join(table, on=exp.and_(*(c.copy() for c in on)) if on else exp.true(), join_type="left")
        return query.where(*(c.copy() for c in self.conditions))

    def said(self, expression: exp.Expr) -> exp.Expr:
        """A copy of an expression of its tables as people read it."""
        names, holder = dict(self.all_tables()), exp.paren(expression.copy())
        for column in list(holder.find_all(exp.Column)):
            column.replace(exp.column(column.name, names[column.table].rpartition(".")[2]))
        said: exp.Expr = holder.this
        return said

    def all_tables(self) -> tuple[tuple[str, str], ...]:
        """`tables`, and those that are looked up."""
        return self.tables + tuple((alias, name) for alias, name, _ in self.looked_up)

    def aliases(self) -> frozenset[str]:
        return frozenset(alias for alias, _ in self.all_tables())


def substituted(expression: exp.Expr, columns: Columns) -> exp.Expr:
    """A copy of an expression in terms of a product's tables. NotLinear if it needs something else."""
    if expression.find(exp.Query):
        raise NotLinear(f"{expression.sql('duckdb')} reads a query")

    def of(node: exp.Expr) -> exp.Expr:
        if not isinstance(node, exp.Column):
            return node
        found = columns.get((node.table, node.name))
        if found is None:
            raise NotLinear(f"{node.sql('duckdb')} is a column of an outer query")
        is_one = isinstance(found, exp.Column | exp.Literal | exp.Cast | exp.Case | exp.Coalesce)
        return found.copy() if is_one else exp.paren(found.copy())

    return expression.copy().transform(of)


class Flattener:
    """Turns sources and row-level queries into products over the tables of a catalog."""

    def __init__(self, catalog: Catalog, types: Types) -> None:
        self._catalog = catalog
        self._types = types
        self._numbers = itertools.count(1)

    def source(self, node: exp.Expr) -> list[Product]:
        """What stands in FROM or a join, its columns under its alias."""
        if isinstance(node, exp.Table):
            return [self._table(name_of(node), node.alias)]
        if isinstance(node, exp.Subquery):
            return self.query(node.this, node.alias)
        raise NotLinear(f"{node.sql('duckdb')} in FROM")

    def _table(self, name: str, under: str) -> Product:
        alias = f"{PREFIX}b{next(self._numbers)}"
        columns = {
            (under, column.lower()): exp.column(exp.to_identifier(column, quoted=True), alias)
            for column in self._catalog[name].columns
        }
        return Product(1, ((alias, name),), (), columns)

    def query(self, query: exp.Query, under: str) -> list[Product]:
        """The rows of a query as products, their columns under an alias."""
        if any(query.args.get(clause) for clause in ("order", "limit", "offset", "distinct")):
            raise NotLinear("rows that depend on each other")
        if isinstance(query, exp.Subquery):
            return self.query(query.this, under)
        if isinstance(query, exp.Union):
            return self._union_all(query, under)
        if not isinstance(query, exp.Select) or not is_row_level(query):
            raise NotLinear("an aggregated query in FROM")
        products, rest = self.rows(query)
        if rest:
            raise NotLinear(rest[0].sql("duckdb"))
        return [
            replace(p, columns={(under, s.alias_or_name): substituted(s.unalias(), p.columns) for s in query.selects})
            for p in products
        ]

    def _union_all(self, query: exp.Union, under: str) -> list[Product]:
        """The rows of all sides, with the names of the first, cast where their types differ.

        DuckDB takes the sides of a chain together: A UNION ALL B UNION ALL C has one type for all three.
        """
        sides = [(self.query(side, under), [(under, s.alias_or_name) for s in side.selects]) for side in _chain(query)]
        names = sides[0][1]
        typed = [(ps[0].all_tables(), [ps[0].columns[n] for n in columns]) for ps, columns in sides]
        kinds = self._types.of_union(typed)
        found = []
        for (products, columns), of_side in zip(sides, typed, strict=True):
            differs = [k != own_kind for k, own_kind in zip(kinds, self._types.of(*of_side), strict=True)]
            for p in products:
                values = [
                    exp.cast(p.columns[c], k, dialect="duckdb") if d else p.columns[c]
                    for c, k, d in zip(columns, kinds, differs, strict=True)
                ]
                found.append(replace(p, columns=dict(zip(names, values, strict=True))))
        return found

    def rows(self, select: exp.Select) -> tuple[list[Product], list[exp.Expr]]:
        """FROM, joins and WHERE as products, and the conditions that are not linear and must come later."""
        from_ = select.args.get("from_")
        if from_ is None:
            raise NotLinear("a SELECT without FROM")
        products = self.source(from_.this)
        for join in select.args.get("joins") or []:
            on = conjuncts(join.args.get("on"))
            if any(c.find(exp.Query) for c in on):
                raise NotLinear("a subquery in ON")
            right = self.source(join.this)
            if join.side.upper() == "LEFT":
                products = [p for left in products for p in self._left_joined(left, right, on)]
            else:
                products = [left.times(r) for left in products for r in right]
                for condition in on:
                    products = [p.where(condition) for p in products]
        where = select.args.get("where")
        later: list[exp.Expr] = []
        for condition in conjuncts(where.this if where else None):
            try:
                if condition.find(exp.Query):
                    products = [p for product in products for p in self._semi_joined(product, condition)]
                else:
                    products = [p.where(condition) for p in products]
            except NotLinear:
                later.append(condition)
        return products, later

    def _left_joined(self, left: Product, right: list[Product], on: list[exp.Expr]) -> list[Product]:
        if len(right) != 1:
            raise NotLinear("LEFT JOIN to a UNION ALL")
        [other] = right
        both = left.times(other)
        for condition in on:
            both = both.where(condition)
        if len(other.tables) == 1 and self._is_table(other) and self._catalog[other.tables[0][1]].is_static:
            [found] = other.tables
            looked_up = (*found, both.conditions[len(left.conditions) :])
            return [replace(left, columns=both.columns, looked_up=(*left.looked_up, looked_up))]
        self._require_one_match(both, left, other, "LEFT JOIN")
        kinds = self._types.of(other.all_tables(), list(other.columns.values()))
        nulls = {
            key: exp.cast(exp.Null(), kind, dialect="duckdb") for key, kind in zip(other.columns, kinds, strict=True)
        }
        return [
            both,
            replace(left, columns={**left.columns, **nulls}),
            replace(both, sign=-both.sign, columns={**left.columns, **nulls}),
        ]

    @staticmethod
    def _is_table(product: Product) -> bool:
        """Whether all columns are a table's own, which a LEFT JOIN without a match has NULL."""
        return not product.looked_up and all(isinstance(c, exp.Column) for c in product.columns.values())

    def _semi_joined(self, product: Product, condition: exp.Expr) -> list[Product]:
        """[NOT] IN or EXISTS of a query as a whole condition."""
        is_not = isinstance(condition, exp.Not)
        inner = condition.this.unnest() if is_not else condition.unnest()
        if isinstance(inner, exp.In) and inner.args.get("query"):
            query = inner.args["query"].unnest()
        elif isinstance(inner, exp.Exists):
            query = inner.this.unnest()
        else:
            raise NotLinear(condition.sql("duckdb"))
        if not isinstance(query, exp.Select) or not is_row_level(query):
            raise NotLinear(condition.sql("duckdb"))
        both = self._within(product, query)
        if isinstance(inner, exp.In):
            [selected] = query.selects
            wanted, found = inner.this, selected.unalias()
            if is_not and (self._may_be_null(product, wanted) or self._may_be_null(both, found)):
                raise NotLinear("NOT IN with NULLs")
            both = both.where(exp.EQ(this=exp.paren(wanted.copy()), expression=exp.paren(found.copy())))
        added = replace(
            both, tables=both.tables[len(product.tables) :], looked_up=both.looked_up[len(product.looked_up) :]
        )
        self._require_one_match(both, product, added, "a subquery in WHERE")
        joined = replace(both, columns=product.columns)
        return [product, replace(joined, sign=-joined.sign)] if is_not else [joined]

    def _within(self, outer: Product, query: exp.Select) -> Product:
        """The product of an outer row with the rows of a correlated query; its columns are those of both."""
        from_, joins = query.args.get("from_"), query.args.get("joins") or []
        if from_ is None or joins:
            raise NotLinear("a subquery over several tables in WHERE")
        found = self.source(from_.this)
        if len(found) != 1:
            raise NotLinear("a subquery over UNION ALL in WHERE")
        both = outer.times(found[0])
        where = query.args.get("where")
        for condition in conjuncts(where.this if where else None):
            if condition.find(exp.Query):
                raise NotLinear("a subquery within a subquery in WHERE")
            both = both.where(condition)
        return both

    def _require_one_match(self, both: Product, left: Product, right: Product, what: str) -> None:
        """Raise NotLinear unless at most one combination of right's rows fits a row of left, by its keys."""
        if right.looked_up:
            raise NotLinear(f"{what} over a LEFT JOIN")
        for alias, name in right.tables:
            table = self._catalog[name]
            fixed = {
                side.name
                for condition in both.conditions
                for side, other in _equal_sides(condition)
                if isinstance(side, exp.Column) and side.table == alias and not _reads(other, right.aliases())
                if self._is_one_to_one(both, side, other)
            }
            if table.valid and _is_at_a_time(both.conditions, alias, table.valid, right.aliases()):
                fixed.add(table.valid[0])
            if not table.key or not set(table.key) <= fixed:
                raise NotLinear(f"{what} that does not name the whole key of {name}")

    def _is_one_to_one(self, both: Product, side: exp.Expr, other: exp.Expr) -> bool:
        """Whether different keys stay different where they are compared: as numbers, '1' and '01' are equal."""
        kind, compared = self._types.of(both.all_tables(), [side, other])
        return kind == compared or ("INT" in kind and "INT" in compared)

    def _may_be_null(self, product: Product, expression: exp.Expr) -> bool:
        plain = substituted(expression, product.columns).unnest()
        if not isinstance(plain, exp.Column):
            return not isinstance(plain, exp.Literal)
        tables = dict(product.tables)
        return plain.table not in tables or self._catalog[tables[plain.table]].is_nullable(plain.name)


def _chain(query: exp.Query) -> list[exp.Query]:
    """The sides of UNION ALL without parentheses."""
    clauses = ("order", "limit", "offset", "distinct")
    if isinstance(query, exp.Union) and not any(query.args.get(clause) for clause in clauses):
        return [*_chain(query.left), *_chain(query.right)]
    return [query]


def is_row_level(select: exp.Select) -> bool:
    """Whether each row comes from one combination of rows, and nothing is asked of several."""
    clauses = ("group", "having", "distinct", "limit", "offset", "order", "qualify")
    return not any(select.args.get(c) for c in clauses) and not any(
        any(own(s, exp.AggFunc, exp.Window)) or s.find(exp.Query) for s in select.selects
    )


def conjuncts(condition: exp.Expr | None) -> list[exp.Expr]:
    """The conditions that must all hold.

    `a AND b OR a AND c` becomes `a` and `b OR c`, so that `a` can join tables. This holds for NULLs too.
    """
    if condition is None:
        return []
    condition = condition.unnest()
    if isinstance(condition, exp.And):
        return conjuncts(condition.left) + conjuncts(condition.right)
    if isinstance(condition, exp.Or):
        cases = [conjuncts(case) for case in condition.flatten()]
        shared = [part for part in cases[0] if all(part in case for case in cases[1:])]
        others = [[part for part in case if part not in shared] for case in cases]
        if shared:
            return [*shared, exp.or_(*(exp.and_(*case) for case in others))] if all(others) else shared
    return [condition]


def _equal_sides(condition: exp.Expr) -> Iterable[tuple[exp.Expr, exp.Expr]]:
    condition = condition.unnest()
    if isinstance(condition, exp.EQ):
        left, right = condition.left.unnest(), condition.right.unnest()
        yield left, right
        yield right, left


def _is_at_a_time(conditions: Sequence[exp.Expr], alias: str, valid: tuple[str, str], right: frozenset[str]) -> bool:
    """Whether since <= t and t < until for one t that does not come from the right."""
    since, until = (exp.column(exp.to_identifier(name, quoted=True), alias) for name in valid)
    begun, ending = set(), set()
    for condition in conditions:
        found = condition.unnest()
        if isinstance(found, exp.LTE | exp.GTE | exp.LT | exp.GT):
            sides = (found.left.unnest(), found.right.unnest())
            low, high = sides if isinstance(found, exp.LTE | exp.LT) else sides[::-1]
            if low == since and isinstance(found, exp.LTE | exp.GTE) and not _reads(high, right):
                begun.add(high)
            elif high == until and isinstance(found, exp.LT | exp.GT) and not _reads(low, right):
                ending.add(low)
    return bool(begun & ending)


def _reads(expression: exp.Expr, aliases: frozenset[str]) -> bool:
    return any(column.table in aliases for column in expression.find_all(exp.Column))
