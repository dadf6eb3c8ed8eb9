"""The compiler: which part of a query is a core, and what is left to the finish."""

from __future__ import annotations

import itertools
import re
from dataclasses import dataclass, replace

from sqlglot import exp

from lockstep.derive.catalog import Catalog, Types, summed, table_of
from lockstep.derive.cores import ROWS, Core, Measure, Term
from lockstep.derive.normal import aggregates, name_of, normal, own, own_columns, sources, subqueries
from lockstep.derive.products import Flattener, Product, substituted
from lockstep.derive.refusals import NotLinear, Refused
from lockstep.derive.sizes import Size, guarded, widest
from lockstep.derive.trying import tried
from lockstep.names import GENERATED as PREFIX

_LINEAR = (exp.Sum, exp.Count, exp.Avg)
_DIGITS = 6  # after the decimal point: sums under 10 ** 26 can then be multiplied by 10 ** 6 as DECIMAL(38, 6)
_FLOATS = ("DOUBLE", "FLOAT")
_DECIMAL = r"DECIMAL\(\d+,(\d+)\)"
# These depend on which values there are, not on how often, so a cell need not be repeated for each of its rows.
_OF_VALUES = (exp.Min, exp.Max, exp.LogicalAnd, exp.LogicalOr)


@dataclass(frozen=True)
class Derivation:
    """`finish` reads the cells of each core as a table of its name, and gives the rows of the query as written."""

    cores: tuple[Core, ...]
    finish: exp.Query


def derive(query: str | exp.Query, catalog: Catalog) -> Derivation:
    """Compile a query over the tables of `catalog`. Raises Refused, naming the construct and what to write instead."""
    for name, table in catalog.items():
        reserved = [column for column in table.columns if column.startswith(PREFIX)]
        if reserved:
            raise Refused(f"{name} has a column {reserved[0]}", None, f"Names that begin with {PREFIX} are generated.")
    types = Types(catalog)
    normalized = normal(query, catalog, types)
    compiler = _Compiler(catalog, types)
    finish = compiler.query(normalized)
    for identifier in finish.find_all(exp.Identifier):
        identifier.set("quoted", not identifier.name.startswith(PREFIX))
    derivation = Derivation(tuple(compiler.cores), finish)
    _check(derivation, types, query if isinstance(query, str) else query.sql("duckdb"))
    return derivation


def _check(derivation: Derivation, types: Types, query: str) -> None:
    """Whether DuckDB takes what was compiled, and gives it the types of the query as written."""
    written = types.of_query(query)
    for aggregate, kind in summed(types.plan(query)):
        if kind in _FLOATS:
            raise _refused_sum(f"{aggregate.upper()} of a {kind}", None, kind)
    for core in derivation.cores:
        cells = types.of_query(core.full(table_of).sql("duckdb"))
        if any("INTERVAL" in kind for _, kind in cells):
            raise Refused(
                "An INTERVAL as a key of cells", None, "Take its EPOCH: 1 day is not written as 24 hours are."
            )
        types.add(table_of(core.name), cells)
    assert {t.name for t in derivation.finish.find_all(exp.Table)} <= {core.name for core in derivation.cores}
    derived = types.of_query(derivation.finish.sql("duckdb"))
    for (name, kind), (_, found) in zip(written, derived, strict=True):
        if kind != found:
            raise Refused(f"{name} would be {found} and not {kind}", None, f"Cast it to {kind}.")


class _Compiler:
    def __init__(self, catalog: Catalog, types: Types) -> None:
        self.cores: list[Core] = []
        self._catalog = catalog
        self._types = types
        self._flattener = Flattener(catalog, types)
        self._numbers = itertools.count(1)

    def query(self, query: exp.Query) -> exp.Query:
        """The finish of a query; its cores are added to `cores`."""
        if isinstance(query, exp.Subquery | exp.SetOperation):
            copy = query.copy()
            copy.set("this", self.query(query.this))
            if isinstance(query, exp.SetOperation):
                copy.set("expression", self.query(query.expression))
            return copy
        assert isinstance(query, exp.Select)
        known = len(self.cores)
        for derived in (self._groups, self._rows):
            try:
                return derived(query)
            except NotLinear:
                del self.cores[known:]
        return self._as_written(query)

    def _rows(self, select: exp.Select) -> exp.Query:
        """A query over the rows of its FROM and WHERE: what it reads of them are keys of cells, the rest is the finish.

        So windows, DISTINCT, LIMIT, ROLLUP or medians see rows that are joined and chosen already.
        """
        products, later = self._flattener.rows(select)
        cells = self._cells(products)
        finish = _without_rows(select)
        whole = self._whole(select, products[0])
        for node in list(own(finish, exp.Expr)):
            if node in whole:
                node.replace(cells.key(node))
        self._over_keys(finish, select, cells)
        conditions = [self._over_keys(exp.paren(condition.copy()), select, cells) for condition in later]
        self.cores.append(cells.core())
        return finish.from_(cells.rows()).where(*conditions)

    def _whole(self, select: exp.Select, product: Product) -> set[exp.Expr]:
        """The selected expressions that are keys as they are; of all others, and of groups, the columns are.

        They read one row alone. An INTERVAL cannot be a key.
        """

        def is_of_one_row(value: exp.Expr) -> bool:
            tables = {column.table for column in value.find_all(exp.Column)}
            reads_rows = any(own(value, exp.AggFunc, exp.Window)) or value.find(exp.Query)
            return bool(tables) and tables <= _aliases(select) and not reads_rows

        selected = [] if select.args.get("group") else [item.unalias() for item in select.selects]
        found = [value for value in selected if is_of_one_row(value)]
        kinds = self._types.of(product.all_tables(), [substituted(value, product.columns) for value in found])
        return {value for value, kind in zip(found, kinds, strict=True) if "INTERVAL" not in kind}

    def _groups(self, select: exp.Select) -> exp.Query:
        """An aggregated query: sums by its keys, and by whatever else its finish needs to see."""
        group = select.args.get("group")
        if group is None and not any(any(aggregates(s)) for s in select.selects):
            raise NotLinear("rows that depend on each other")
        if group and any(group.args.get(kind) for kind in ("rollup", "cube", "grouping_sets", "totals")):
            raise NotLinear("ROLLUP, CUBE, GROUPING SETS")
        products, later = self._flattener.rows(select)
        cells = self._cells(products)
        groups = {g.unnest(): cells.key(g.unnest()) for g in (group.expressions if group else [])}

        finish = _without_rows(select)
        finish.set("group", None)
        names = [s.alias_or_name for s in select.selects]
        expressions = [self._over_cells(s.unalias(), select, groups, cells) for s in finish.selects]
        finish.set("expressions", [e.as_(n) for e, n in zip(expressions, names, strict=True)])
        for clause in ("having", "qualify"):
            if value := finish.args.get(clause):
                value.set("this", self._over_cells(value.this, select, groups, cells))
        for ordered in finish.args["order"].expressions if finish.args.get("order") else []:
            is_output = isinstance(ordered.this, exp.Column) and not ordered.this.table and ordered.this.name in names
            if not is_output:
                ordered.set("this", self._over_cells(ordered.this, select, groups, cells))
        conditions = [self._over_keys(exp.paren(condition.copy()), select, cells) for condition in later]

        self.cores.append(cells.core())
        finish = finish.from_(exp.to_table(cells.name))
        for condition in (exp.column(ROWS, cells.name).neq(0), *conditions):
            finish = finish.where(condition)
        return finish.group_by(*(column.copy() for column in groups.values())) if groups else finish

    def _over_cells(
        self, node: exp.Expr, select: exp.Select, groups: dict[exp.Expr, exp.Column], cells: _Cells
    ) -> exp.Expr:
        """An expression of an aggregated query, over its cells."""
        if node.unnest() in groups and not isinstance(node, exp.Literal):
            return groups[node.unnest()].copy()
        if isinstance(node, exp.Query):
            return self._nested(node, select, cells)
        if isinstance(node, exp.AggFunc) and not isinstance(node.parent, exp.Window):
            return cells.aggregate(node)
        if isinstance(node, exp.Column) and node.table in _aliases(select):
            raise NotLinear(f"{node.sql('duckdb')} is neither a key nor aggregated")
        for name, value in list(node.args.items()):
            if isinstance(value, list):
                parts = [self._over_cells(v, select, groups, cells) if isinstance(v, exp.Expr) else v for v in value]
                node.set(name, parts)
            elif isinstance(value, exp.Expr):
                node.set(name, self._over_cells(value, select, groups, cells))
        return node

    def _over_keys(self, node: exp.Expr, select: exp.Select, cells: _Cells) -> exp.Expr:
        """Let an expression or a query without FROM read cells: the columns that it reads are among their keys."""
        for nested in list(subqueries(node)):
            nested.replace(self._nested(nested, select, cells))
        for column in own_columns(node):
            if column.table in _aliases(select):
                column.replace(cells.key(column))
        return node

    def _nested(self, query: exp.Query, select: exp.Select, cells: _Cells) -> exp.Query:
        """A query in an expression: derived by itself, with the columns of the query around it taken from its cells."""
        finish = self.query(query)
        for column in list(finish.find_all(exp.Column)):
            if column.table in _aliases(select):
                column.replace(cells.key(column))
        return finish

    def _as_written(self, select: exp.Select) -> exp.Query:
        """The query itself, over the columns that it reads of each table, which are keys of cells of their own."""
        finish = select.copy()
        for source in sources(finish):
            if isinstance(source, exp.Subquery):
                source.set("this", self.query(source.this))
            elif isinstance(source, exp.Table):
                source.replace(self._columns_read(finish, source))
            else:
                raise Refused(source.sql("duckdb"), source, "Read tables, views or subqueries in FROM.")
        for nested in list(subqueries(finish)):
            nested.replace(self.query(nested))
        return finish

    def _columns_read(self, select: exp.Select, table: exp.Table) -> exp.Subquery:
        columns = [name.lower() for name in self._catalog[name_of(table)].columns]
        read = {column.name.lower() for column in select.find_all(exp.Column) if column.table == table.alias}
        kept = [name for name in columns if name in read] or columns[:1]
        rows = exp.select(*(exp.column(name, table.alias).as_(name) for name in kept)).from_(table.copy())
        return self._rows(rows).subquery(table.alias)

    def _cells(self, products: list[Product]) -> _Cells:
        tables = [self._catalog[name] for p in products for _, name in p.tables]
        only_grows = all(p.sign > 0 for p in products) and all(t.is_static or t.is_append_only for t in tables)
        return _Cells(f"{PREFIX}cells{next(self._numbers)}", products, self._types, only_grows)


class _Cells:
    """The cells of a sum of products, while it shows what must be kept of them."""

    def __init__(self, name: str, products: list[Product], types: Types, only_grows: bool) -> None:
        self.name = name
        self._products = products
        self._types = types
        self._only_grows = only_grows
        self._keys: list[exp.Expr] = []
        self._held: dict[tuple[str, exp.Expr], Measure] = {}  # by how it folds, and of what

    def key(self, expression: exp.Expr) -> exp.Column:
        """The key that holds an expression; it becomes one if it is none."""
        if expression not in self._keys:
            self._keys.append(expression.copy())
        return exp.column(f"{PREFIX}k{self._keys.index(expression) + 1}", self.name)

    def aggregate(self, node: exp.AggFunc) -> exp.Expr:
        """The expression that replaces an aggregate in the finish."""
        argument = node.this
        if isinstance(node, exp.Min | exp.Max | exp.ArgMin | exp.ArgMax) and self._only_grows:
            return self._extreme(node)
        if isinstance(node, exp.ArgMin | exp.ArgMax):
            return type(node)(this=self.key(argument.unnest()), expression=self.key(node.expression.unnest()))
        if isinstance(node, _OF_VALUES) or (isinstance(argument, exp.Distinct) and isinstance(node, _LINEAR)):
            copy = node.copy()
            if isinstance(argument, exp.Distinct):
                copy.set("this", exp.Distinct(expressions=[self.key(e.unnest()) for e in argument.expressions]))
            else:
                copy.set("this", self.key(argument.unnest()))
            return copy
        if not isinstance(node, _LINEAR) or node.args.get("expressions"):
            raise NotLinear(f"{node.sql('duckdb')} depends on how often each value is there")
        rows_only = isinstance(node, exp.Count) and (argument is None or isinstance(argument, exp.Star | exp.Literal))
        measure = None if rows_only else self._measure(argument.unnest(), counted=isinstance(node, exp.Count))
        return exp.paren(_total(node, self.name, measure))

    def _extreme(self, node: exp.AggFunc) -> exp.Expr:
        """MIN and MAX of rows that never go, as measures: the extreme of a union is the extreme of its extremes.

        ARG_MAX(v, o) becomes the `v` of MAX({o, v}) over rows where neither is NULL, because DuckDB's ARG_MAX skips
        NULLs. Structs compare by their first field, and `o` is unique. The cell stores `o` so that it can be folded.
        """
        fold = "MIN" if isinstance(node, exp.Min | exp.ArgMin) else "MAX"
        argument = node.this.expressions[0] if isinstance(node.this, exp.Distinct) else node.this
        if isinstance(node, exp.ArgMin | exp.ArgMax):
            parts = {"o": node.expression.unnest(), "v": argument.unnest()}
            named = [exp.PropertyEQ(this=exp.to_identifier(name), expression=e.copy()) for name, e in parts.items()]
            there = exp.and_(*(exp.paren(e.copy()).is_(exp.Null()).not_() for e in parts.values()))
            argument = exp.Case(ifs=[exp.If(this=there, true=exp.Struct(expressions=named))])
        held = (fold, argument.unnest())
        if held not in self._held:
            self._held[held] = Measure(f"{PREFIX}s{len(self._held) + 1}", ROWS, fold=fold)
        extreme = exp.func(fold, exp.column(self._held[held].name, self.name))
        if isinstance(node, exp.ArgMin | exp.ArgMax):
            return exp.func("STRUCT_EXTRACT", extreme, exp.Literal.string("v"))
        return extreme

    def core(self) -> Core:
        """What was asked for, as a core."""
        terms, sizes = [], [list[Size]() for _ in self._held]
        for product in self._products:
            kinds = product.kinds(self._types)
            keys = tuple(tried(substituted(e, product.columns), kinds) for e in self._keys)
            sums = []
            for measure, (_, summand), of_measure in zip(self._held.values(), self._held, sizes, strict=True):
                value = substituted(summand, product.columns)
                if measure.fold == "SUM":
                    value, size = guarded(value, kinds, measure.scale)
                    of_measure.append(size)
                else:
                    value = tried(value, kinds)
                sums.append(value)
            terms.append(Term(product.tried(self._types), keys, tuple(sums)))
        measures = tuple(
            replace(m, size=widest(s)) if s else m for m, s in zip(self._held.values(), sizes, strict=True)
        )
        names = tuple(f"{PREFIX}k{i + 1}" for i in range(len(self._keys)))
        said = {name: self._said(key) for name, key in zip(names, self._keys, strict=True)}
        said |= {measure.name: self._said(summand) for measure, (_, summand) in zip(measures, self._held, strict=True)}
        return Core(self.name, names, measures, tuple(terms), said)

    def _said(self, expression: exp.Expr) -> str:
        """An expression as people read it, over columns of tables."""
        columns = {(c.table, c.name): self._column_said(c) for c in expression.find_all(exp.Column)}
        return substituted(expression, columns).unnest().sql("duckdb")

    def _column_said(self, column: exp.Column) -> exp.Expr:
        """A column in terms of the tables; its name if it is a constant, or another in each side of a UNION ALL."""
        values = {product.said(product.columns[column.table, column.name]) for product in self._products}
        known = [value for value in values if not _is_null(value)]  # as a LEFT JOIN has it where nothing fits
        return known[0] if len(known) == 1 and known[0].find(exp.Column) else exp.column(column.name)

    def rows(self) -> exp.Subquery:
        """The rows that the cells stand for, each as often as it is there."""
        keys = [exp.column(f"{PREFIX}k{i + 1}") for i in range(len(self._keys))]
        copies = exp.func("UNNEST", exp.func("RANGE", exp.column(ROWS))).as_(f"{PREFIX}copy")
        return exp.select(*keys, copies).from_(exp.to_table(self.name)).subquery(self.name)

    def _measure(self, summand: exp.Expr, counted: bool) -> Measure:
        """Return the measure that sums `summand` and counts its non-NULLs; `counted`: only the count is needed."""
        held = ("SUM", summand)
        if held not in self._held:
            first = self._products[0]
            [kind] = self._types.of(first.all_tables(), [substituted(summand, first.columns)])
            if counted and not _is_exact(kind):
                there = exp.If(this=exp.paren(summand.copy()).is_(exp.Null()).not_(), true=exp.Literal.number(1))
                return self._measure(exp.Case(ifs=[there]), counted)
            kept = _kept(len(self._held) + 1, summand, kind)
            is_there = all(_is_there(substituted(summand, product.columns)) for product in self._products)
            self._held[held] = replace(kept, count=ROWS) if is_there else kept
        return self._held[held]


def _kept(number: int, summand: exp.Expr, kind: str) -> Measure:
    """How a summand of this type is kept."""
    if not _is_exact(kind):
        written = re.sub(rf"\b{PREFIX}t\d+\.", "", summand.sql("duckdb"))
        raise _refused_sum(f"The sum of {written}, a {kind}", summand, kind)
    decimal = re.fullmatch(_DECIMAL, kind)
    scale = int(decimal[1]) if decimal else 0
    return Measure(f"{PREFIX}s{number}", f"{PREFIX}m{number}", scale, decimal is not None)


def _is_there(value: exp.Expr) -> bool:
    """Whether a value is a constant in each of its cases, so that it is never NULL."""
    value = value.unnest()
    if isinstance(value, exp.Case):
        cases = [*(case.args["true"] for case in value.args["ifs"]), value.args.get("default")]
        return all(case is not None and _is_there(case) for case in cases)
    return isinstance(value, exp.Literal)


def _is_null(value: exp.Expr) -> bool:
    return isinstance(value.this if isinstance(value, exp.Cast) else value, exp.Null)


def _refused_sum(what: str, node: exp.Expr | None, kind: str) -> Refused:
    order = " depends on the order of its rows" if kind in _FLOATS else ""
    return Refused(f"{what}{order}", node, "Cast it to DECIMAL(p, s).")


def _is_exact(kind: str) -> bool:
    """Whether sums of this type are the same in whatever order: integers, decimals, booleans (which count as 1)."""
    return re.fullmatch(rf"U?(TINY|SMALL|BIG|HUGE)?INT(EGER)?|BOOLEAN|{_DECIMAL}", kind) is not None


def _total(aggregate: exp.Expr, cells: str, measure: Measure | None) -> exp.Expr:
    """A linear aggregate over cells, of the type and with the NULLs that DuckDB gives it over rows."""
    rows = exp.Sum(this=exp.column(measure.count if measure else ROWS, cells))
    if isinstance(aggregate, exp.Count) or measure is None:
        return exp.cast(exp.func("COALESCE", rows, exp.Literal.number(0)), "BIGINT")
    total: exp.Expr = exp.Sum(this=exp.column(measure.name, cells))
    if isinstance(aggregate, exp.Sum):
        kind = f"DECIMAL(38, {measure.scale})" if measure.is_decimal else "HUGEINT"
        total = exp.cast(total, kind, dialect="duckdb")
    elif measure.scale > _DIGITS:  # the digits without their point may be more than fit
        total = exp.Div(this=exp.cast(total, "DOUBLE"), expression=exp.cast(rows.copy(), "DOUBLE"))
    else:
        # DuckDB divides the digits without their point by the count times that power of ten. So does this, but for the
        # last bit of a quotient whose parts have more than 53 bits: there DuckDB has 64.
        power = exp.Literal.number(10**measure.scale)
        digits = exp.cast(exp.Mul(this=total, expression=power), "HUGEINT", dialect="duckdb")
        divisor = exp.Mul(this=exp.cast(rows.copy(), "DOUBLE"), expression=exp.cast(power.copy(), "DOUBLE"))
        total = exp.Div(this=exp.cast(digits, "DOUBLE"), expression=exp.paren(divisor))
    return exp.Case(ifs=[exp.If(this=exp.GT(this=rows.copy(), expression=exp.Literal.number(0)), true=total)])


def _without_rows(select: exp.Select) -> exp.Select:
    """A copy of a query without FROM, joins and WHERE."""
    finish = select.copy()
    for clause in ("from_", "joins", "where"):
        finish.set(clause, None)
    return finish


def _aliases(select: exp.Select) -> set[str]:
    return {source.alias_or_name for source in sources(select)}
