"""Cores: the linear part of a query, as cells by keys, and the SQL of what they are and how they change."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from sqlglot import exp

from lockstep.derive.catalog import Catalog
from lockstep.derive.products import Product
from lockstep.derive.sizes import LARGEST, Size
from lockstep.names import GENERATED as PREFIX

ROWS = f"{PREFIX}n"  # how many rows are in a cell
WEIGHT, LOGGED_AT, HOUR = f"{PREFIX}weight", f"{PREFIX}logged_at", f"{PREFIX}hour"
Relation = Callable[[str], exp.Table]  # where the rows of a table are


@dataclass(frozen=True)
class Measure:
    """A sum of a cell, and the column that counts what is not NULL in it (`ROWS` if nothing can be).

    Sums are DECIMAL(38, scale): HUGEINT would become DOUBLE in Parquet, and sums of floats depend on their order.

    `fold` is MIN or MAX for an extreme instead, of rows that never go: extremes are distributive over insertions and
    not over deletions (Palpanas et al., Incremental maintenance for non-distributive aggregate functions, VLDB 2002).
    """

    name: str
    count: str
    scale: int = 0
    is_decimal: bool = False  # in the query as written; else an integer
    size: Size = LARGEST  # of what is summed
    fold: str = "SUM"


@dataclass(frozen=True)
class Term:
    """What a product contributes: one expression per key, and one per measure."""

    product: Product
    keys: tuple[exp.Expr, ...]
    sums: tuple[exp.Expr, ...]


@dataclass(frozen=True)
class Core:
    """Cells: `keys`, `ROWS`, and for each measure its sum and its count.

    A cell exists where `ROWS` is not 0. The core is linear in each of its tables: cells of two sets of rows add up.
    `said` has for each key and sum, by its name, what it is in the query, as people read it.
    """

    name: str
    keys: tuple[str, ...]
    measures: tuple[Measure, ...]
    terms: tuple[Term, ...]
    said: Mapping[str, str]

    def tables(self) -> set[str]:
        """The names of all tables that it is computed from."""
        return {name for term in self.terms for _, name in term.product.all_tables()}

    def full(self, rows: Relation) -> exp.Select:
        """The cells of plain rows, each of weight 1."""
        parts = [
            self._part(term, [(alias, rows(name), False) for alias, name in term.product.tables], rows)
            for term in self.terms
        ]
        return self._summed(parts, by_hour=False)

    def added_up(self, cells: exp.Query) -> exp.Select:
        """Cells of several sets of rows as those of all of them: one per key."""
        keys = [exp.column(key) for key in self.keys]
        counts = dict.fromkeys([ROWS, *(m.count for m in self.measures)])
        folded = [exp.func(m.fold, exp.column(m.name)).as_(m.name) for m in self.measures]
        summed = [exp.cast(exp.Sum(this=exp.column(count)), "BIGINT").as_(count) for count in counts]
        added = exp.select(*keys, *summed, *folded).from_(cells.subquery(f"{PREFIX}added"))
        return added.group_by(*(key.copy() for key in keys)) if keys else added

    def increment(self, catalog: Catalog, state: Relation, delta: Relation) -> exp.Select:
        """What the cells gain, by hour.

        `state(table)` are a table's plain rows at the beginning; `delta(table)` its signed rows since, with
        `WEIGHT` and `LOGGED_AT`; a static table has no delta. For the tables 1 to n of a product, term i takes those
        before i with their delta, the delta of i, and those after i without: this telescopes from the old product to
        the new one. A combination of signed rows counts in the hour of its last.
        """
        parts = []
        for term in self.terms:
            tables = term.product.tables
            for i, (alias, name) in enumerate(tables):
                if catalog[name].is_static:
                    continue
                factors: list[tuple[str, exp.Expr, bool]] = []
                for j, (other_alias, other) in enumerate(tables):
                    if j == i:
                        factors.append((alias, delta(name), True))
                    elif j < i and not catalog[other].is_static:
                        factors.append(
                            (other_alias, _new(list(catalog[other].columns), state(other), delta(other)), True)
                        )
                    else:
                        factors.append((other_alias, state(other), False))
                parts.append(self._part(term, factors, state))
        if not parts:  # static tables alone
            first = self.terms[0]
            nothing = self._part(first, [(alias, state(name), False) for alias, name in first.product.tables], state)
            parts = [nothing.select(exp.cast(exp.Null(), "TIMESTAMP").as_(LOGGED_AT)).where(exp.false())]
        return self._summed(parts, by_hour=True)

    def _part(self, term: Term, factors: Sequence[tuple[str, exp.Expr, bool]], static: Relation) -> exp.Select:
        """Keys, weight, latest time and summands of a product over these relations; the flags say which are signed."""
        signed = [alias for alias, _, is_signed in factors if is_signed]
        weight: exp.Expr = exp.convert(term.product.sign)
        for alias in signed:
            weight = exp.Mul(this=weight, expression=exp.column(WEIGHT, alias))
        times = [exp.column(LOGGED_AT, alias) for alias in signed]
        query = exp.select(
            *(key.copy().as_(name) for key, name in zip(term.keys, self.keys, strict=True)),
            exp.cast(weight, "TINYINT").as_(WEIGHT),
            *(summand.copy().as_(m.name) for summand, m in zip(term.sums, self.measures, strict=True)),
        )
        if times:
            query = query.select((exp.func("GREATEST", *times) if len(times) > 1 else times[0]).as_(LOGGED_AT))
        relations = {alias: _aliased(relation, alias) for alias, relation, _ in factors}
        return term.product.joined(relations, static, query)

    def _summed(self, parts: Sequence[exp.Select], by_hour: bool) -> exp.Select:
        weight = exp.column(WEIGHT)
        hour = exp.func("DATE_TRUNC", exp.Literal.string("hour"), exp.column(LOGGED_AT))
        columns: list[exp.Expr] = [hour.as_(HOUR)] if by_hour else []
        columns += [exp.column(key) for key in self.keys]
        columns.append(exp.cast(exp.Sum(this=weight.copy()), "BIGINT").as_(ROWS))
        emitted = [exp.column(ROWS)]
        for measure in self.measures:
            if measure.fold != "SUM":
                columns.append(exp.func(measure.fold, exp.column(measure.name)).as_(measure.name))
                continue
            value = measure.size.summable(exp.column(measure.name), measure.scale)
            signed = exp.Case(
                ifs=[
                    exp.If(this=exp.column(WEIGHT).eq(1), true=value),
                    exp.If(this=exp.column(WEIGHT).eq(-1), true=exp.Neg(this=exp.paren(value.copy()))),
                ]
            )
            total = exp.func("COALESCE", exp.Sum(this=signed), exp.Literal.number(0))
            columns.append(exp.cast(total, f"DECIMAL(38, {measure.scale})", dialect="duckdb").as_(measure.name))
            emitted.append(exp.column(measure.name))
            if measure.count != ROWS:
                counted = exp.Case(
                    ifs=[exp.If(this=exp.column(measure.name).is_(exp.Null()).not_(), true=weight.copy())]
                )
                count = exp.func("COALESCE", exp.Sum(this=counted), exp.Literal.number(0))
                columns.append(exp.cast(count, "BIGINT").as_(measure.count))
                emitted.append(exp.column(measure.count))
        union: exp.Query = parts[0]
        for part in parts[1:]:
            union = exp.union(union, part, distinct=False)
        cells = exp.select(*columns).from_(union.subquery(f"{PREFIX}parts"))
        groups = ([hour.copy()] if by_hour else []) + [exp.column(key) for key in self.keys]
        if groups:
            cells = cells.group_by(*groups)
        # A cell whose rows cancel may still have changed in a sum: whatever is not 0 counts.
        changed = exp.or_(*(column.copy().neq(0) for column in emitted))
        return exp.select("*").from_(cells.subquery(f"{PREFIX}cells")).where(changed)


def _aliased(relation: exp.Expr, alias: str) -> exp.Expr:
    if isinstance(relation, exp.Query) and not isinstance(relation, exp.Subquery):
        return relation.subquery(alias)
    return exp.alias_(relation.copy(), alias, table=True)


def _new(columns: Sequence[str], state: exp.Table, delta: exp.Table) -> exp.Query:
    """A table's rows with its changes: the state's weigh 1 and were there before all hours."""
    names = [exp.column(exp.to_identifier(column, quoted=True)) for column in columns]
    before = exp.cast(exp.Literal.string("0001-01-01"), "TIMESTAMP")
    old = exp.select(*names, exp.cast(exp.Literal.number(1), "TINYINT").as_(WEIGHT), before.as_(LOGGED_AT)).from_(state)
    changed = exp.select(*(n.copy() for n in names), exp.column(WEIGHT), exp.column(LOGGED_AT)).from_(delta)
    return exp.union(old, changed, distinct=False)
