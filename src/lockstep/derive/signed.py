"""Signed rows of a query: what each change of its tables takes away from its rows and adds to them.

A query that looks at one row of one table at a time is linear: its increment is the query itself over signed rows,
where the image before a change weighs -1 and the one after +1. A join is bilinear (Budiu et al., DBSP, VLDB 2023): two
signed rows that fit each other are a signed row of the join, whose weight is the product of theirs. It is there from
the later of the two on, so it counts at the greater of their positions. Summed up to any position, that is the query
over the rows as of that position.

To find what is new since some instant, one side of a pair must be new: for the tables 1 to n of a product, term i takes
the changes of table i with those before it as they are now, and those after it as they were (the counting algorithm
of Gupta, Mumick and Subrahmanian, SIGMOD 1993).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace

from sqlglot import exp

from lockstep.derive.catalog import Catalog, Types, table_of
from lockstep.derive.cores import ROWS, Core
from lockstep.derive.last import require_last, rows_of_last
from lockstep.derive.normal import normal
from lockstep.derive.products import Flattener, Product
from lockstep.derive.refusals import NotLinear, Refused
from lockstep.derive.sizes import DIGITS, WHOLE, Size, guarded, is_a_figure, is_large, widest
from lockstep.derive.trying import tried
from lockstep.derive.ungrouped import ungrouped
from lockstep.names import CORE, GENERATED_COLUMNS
from lockstep.names import GENERATED as PREFIX

# Schemas of what a derived query reads in place of a table of `source`, with the table's columns and those carried.
SIGNED = "signed"  # all its signed rows
DELTA = "delta"  # those since the instant
STATE = "state"  # signed rows that come to the table at the instant; their positions and times lie before it

_POSITION, _LOGGED_AT, _WEIGHT = f"{PREFIX}position", f"{PREFIX}logged_at", f"{PREFIX}weight"
# Columns of signed rows that go along, what they are called in the end, and what they are.
_CARRIED = {
    _POSITION: ("position", "Position of the change in the log"),
    _LOGGED_AT: ("logged_at", "logged_at of the change"),
    _WEIGHT: ("diff", "-1 for the row before the change, +1 for the one after"),
}
_GROUPED = ("group", "having", "qualify", "distinct", "limit", "offset", "order")

_Factor = tuple[str, str, tuple[str, ...]]  # an alias, its table, and the schemas whose relations together are meant


class SignedRows:
    """The signed rows of a query, or of what a grouped one adds up, each with `position`, `logged_at` and `diff`.

    The query reads tables of the catalog that change, named `source.<table>`, and static ones. `measures`, names and
    DuckDB types, are multiplied by the weight, so that sums of them over changes are sums over rows. No image makes
    them fail, because it would stop its hour for ever: what cannot be computed is NULL (`derive.trying`), and what is
    too large to be summed makes its sums too large to be a figure (`derive.sizes`). Raises Refused, with what to write
    instead.

    `extremes` maps measures to MAX or MIN. They are not multiplied, and are NULL in a deleted row: the extreme of a
    union is the extreme of the extremes of its parts, over insertions and not over deletions (Palpanas et al., VLDB
    2002). So the one table that changes must be append-only.
    """

    _is_insert_only = False  # whether only inserted rows count
    _extremes: Mapping[str, str] = {}
    _sizes: Mapping[str, Size] = {}

    def __init__(
        self,
        query: exp.Query,
        catalog: Catalog,
        measures: Mapping[str, str],
        extremes: Mapping[str, str] | None = None,
    ) -> None:
        if query.is_star:
            raise Refused("*", query, "Name the columns.")
        types = Types(catalog)
        self._extremes = extremes or {}
        grouped = ungrouped(query, self._extremes)
        if query.args.get("group"):
            written = query.sql("duckdb")
            types.of_query(written, has_lines=False)  # or else DuckDB says what is wrong with it
            if types.plan(written) != types.plan(grouped.by_number.sql("duckdb")):
                raise Refused(
                    "A name in GROUP BY that is a column and a key (DuckDB takes the column)",
                    query.args["group"],
                    "Group by the numbers of the keys, or GROUP BY ALL.",
                )
        query = grouped.rows
        require_rows(query)
        self._query = query
        self._columns = [(s.alias_or_name, s.comments or []) for s in query.selects]
        self._catalog = catalog
        self._measures = measures
        self._products = _flattened(query, catalog, types)
        self._require_moving()
        self._require_a_count()
        sizes: list[dict[str, Size]] = []
        for number, product in enumerate(self._products):
            self._require_exact(product, types, grouped.casts)
            if self._extremes:
                self._require_insert_only(product)
            whole, kinds, own = _tried(product, types), product.kinds(types), dict[str, Size]()
            columns = dict(whole.columns)
            for name in self._measured:
                scale = _digits(measures[name]) or 0
                columns["", name], own[name] = guarded(product.columns["", name], kinds, scale)
            sizes.append(own)
            self._products[number] = replace(whole, columns=columns)
        self._sizes = {name: widest(size[name] for size in sizes) for name in self._measured}

    @classmethod
    def of_last(cls, query: exp.Query, catalog: Catalog, grain: Sequence[str]) -> SignedRows:
        """All the rows from which a query picks the last of each group. None of them is ever deleted.

        The tables of `catalog` that are append-only have `GENERATED_COLUMNS`. Raises Refused.
        """
        types = Types(catalog)
        types.of_query(query.sql("duckdb"), has_lines=False)
        rows = rows_of_last(query, grain, types)
        require_rows(rows, of_changes=True)
        found = cls.__new__(cls)
        found._query = rows
        found._columns = [(s.alias_or_name, s.comments or []) for s in rows.selects]
        found._catalog = catalog
        found._measures = {}
        found._is_insert_only = True
        found._products = _flattened(rows, catalog, types)
        found._require_moving()
        for number, product in enumerate(found._products):
            require_last(product, catalog, types)
            found._products[number] = _tried(product, types)
        return found

    @classmethod
    def of_cells(cls, cores: Sequence[Core], catalog: Catalog) -> SignedRows:
        """The signed rows that the cells of cores add up.

        The cells of all cores are in one relation, with the number of the core (from 0 on) in `CORE`. `as_core` has
        those of one. Keys of other cores are NULL, and so are their sums and counts.
        """
        found = cls.__new__(cls)
        found._query = cores[0].full(table_of)
        found._catalog = catalog
        found._measures = kinds = {ROWS: "BIGINT"}
        found._sizes = sizes = dict[str, Size]()
        parts: list[tuple[Product, dict[tuple[str, str], exp.Expr]]] = []
        found._columns = [(CORE, ["Which of the sets of cells"])]
        measured = [(ROWS, ["Rows"])]
        for number, core in enumerate(cores):
            found._columns += [(_of_core(number, name), [core.said[name]]) for name in core.keys]
            for measure in core.measures:
                assert measure.fold == "SUM"  # extremes of tables that only grow cannot be multiplied
                summed = core.said[measure.name]
                kinds[_of_core(number, measure.name)] = f"DECIMAL(38, {measure.scale})"
                sizes[_of_core(number, measure.name)] = measure.size
                measured.append((_of_core(number, measure.name), [f"Sum of {summed}"]))
                if measure.count != ROWS:
                    kinds[_of_core(number, measure.count)] = "BIGINT"
                    measured.append((_of_core(number, measure.count), [f"How many of {summed} there are"]))
            for term in core.terms:
                values: dict[str, exp.Expr] = dict(zip(core.keys, term.keys, strict=True))
                for measure, summand in zip(core.measures, term.sums, strict=True):
                    values[measure.name] = summand
                    if measure.count != ROWS:
                        values[measure.count] = exp.cast(exp.paren(summand.copy()).is_(exp.Null()).not_(), "BIGINT")
                columns = {("", _of_core(number, name)): value for name, value in values.items()}
                columns |= {("", CORE): exp.convert(number), ("", ROWS): exp.convert(1)}
                parts.append((term.product, columns))
        found._columns += measured
        nothing = {("", name): exp.Null() for name in found._names}
        products = [replace(product, columns={**nothing, **columns}) for product, columns in parts]
        found._products = _of_one_type(products, found._names, Types(catalog))
        found._require_moving()
        return found

    @property
    def columns(self) -> dict[str, str | None]:
        """The columns beside those that are carried, and of measures the types that their sums are kept in."""
        return {name: self._kept(name.lower()) for name in self._names}

    @property
    def checked(self) -> dict[str, str]:
        """The measures whose sums may be too large to be figures, each with the condition, in SQL, that one is.

        A count has to fit into a BIGINT. Any other sum has to be of rows that can be summed.
        """
        conditions = {
            name: is_a_figure(name, self._sizes[name.lower()], self._measures[name.lower()])
            for name in self._names
            if name.lower() in self._sizes
        }
        return {name: condition for name, condition in conditions.items() if condition}

    def is_large(self, name: str) -> str:
        """The condition, in SQL, that some sum of an hour meets in each cell where a sum of `checked` is too large."""
        return is_large(name, self._measures[name.lower()])

    def why_not(self, name: str) -> str:
        """Why a sum of a measure of `checked` is not shown."""
        said = name
        if name.startswith(PREFIX):
            said = next(comments[0] for column, comments in self._columns if column == name).lower()
        if self._sizes[name.lower()].can_fail:
            return f"{said} has a row that it cannot be computed of, or is too large"
        if self._measures[name.lower()] == "BIGINT":
            return f"{said} is more than a BIGINT holds"
        return f"{said} has a row of more than {DIGITS} digits"

    @property
    def _measured(self) -> list[str]:
        """The measures that are added up, in lower case."""
        names = [name.lower() for name in self._names]
        return [name for name in names if name in self._measures and name not in self._extremes]

    def _kept(self, name: str) -> str | None:
        """The type that the sums of a measure are kept in: at least as wide as that of its figures."""
        kind, size = self._measures.get(name), self._sizes.get(name)
        return WHOLE if kind == "BIGINT" and size and not size.is_counted else kind

    def _require_moving(self) -> None:
        if not any(self._moving(product) for product in self._products):
            raise Refused("It reads no table of source", self._query, "Increments come from changes of tables.")
        if not all(self._moving(product) for product in self._products):
            raise Refused(
                "Rows that come from static tables alone", self._query, "Add them where the figures are read."
            )

    def _require_a_count(self) -> None:
        """Refuse rows that no measure counts: a cell whose sums come to 0 could not be told from one without rows.

        Products that cannot meet in a cell, as a key is another text in each, may be counted by different measures.
        """
        keys = [name.lower() for name in self._names if name.lower() not in self._measures]
        texts = {k: [_text(p.columns["", k]) for p in self._products] for k in keys}
        constant = [found for found in texts.values() if None not in found]
        apart: dict[tuple[str | None, ...], list[Product]] = {}
        for number, product in enumerate(self._products):
            apart.setdefault(tuple(found[number] for found in constant), []).append(product)
        for products in apart.values():
            sums = [m for m in self._measures if m not in self._extremes]
            if not any(all(_is_a_count(p.columns.get(("", m))) for p in products) for m in sums):
                raise Refused(
                    "No measure counts the rows", self._query, "Add COUNT(*): cells whose sums are 0 would be lost."
                )

    def _require_exact(self, product: Product, types: Types, casts: Mapping[str, Sequence[str]]) -> None:
        """Refuse a measure that its type or a cast of the sum rounds: rows are added up as they are."""
        names = self._measured
        kinds = types.of(product.all_tables(), [product.columns["", name] for name in names])
        for name, kind in zip(names, kinds, strict=True):
            for to in (self._measures[name], *casts.get(name, ())):
                if not _fits(kind, to):
                    raise Refused(
                        f"{name} adds up {kind} as {to}",
                        product.columns["", name],
                        "Cast what is added up, or give the measure another unit in seeds/contract_measures.csv.",
                    )

    def _require_insert_only(self, product: Product) -> None:
        """Refuse extremes of rows that can be deleted."""
        moving = [name for _, name in self._moving(product)]
        named = f"{' and '.join(sorted(set(self._extremes.values())))} merged by the hour"
        for name in moving:
            if not self._catalog[name].is_append_only:
                raise Refused(f"{named}, of {name}, whose rows can be deleted", None, _DELETED)
        if len(moving) != 1 or product.sign < 0:
            raise Refused(f"{named}, of a join", None, _DELETED)

    @property
    def is_join(self) -> bool:
        """Whether a row of the query comes from several rows that change."""
        return bool(self.joined)

    @property
    def tables(self) -> list[str]:
        """The tables of `source` that it reads, each once."""
        return self._tables_of(self._products)

    @property
    def joined(self) -> list[str]:
        """Those of them that it reads together with another row that changes: `new` needs their state."""
        return self._tables_of(product for product in self._products if len(self._moving(product)) > 1)

    def _tables_of(self, products: Iterable[Product]) -> list[str]:
        return list(dict.fromkeys(_name(table) for product in products for _, table in self._moving(product)))

    def all(self) -> exp.Select:
        """All signed rows, over `signed.<table>`.

        Of a join these are all pairs of changes that ever fitted each other; `new` gives the latest of them for less.
        """
        relation = self._inserted if self._is_insert_only else None
        return self._rows(
            _part(product, self._names, [(alias, table, (SIGNED,)) for alias, table in self._moving(product)], relation)
            for product in self._products
        )

    def _inserted(self, table: str, _: Sequence[str], columns: Sequence[str]) -> exp.Query:
        """The inserted rows of an append-only table, over `changes.<table>`: half of its signed rows, for less.

        Whether a change has an image is asked of a column that no image has NULL, so that a scan need not read all.
        """
        known = self._catalog[table]
        after = exp.column("after")
        filled = [c for c in known.columns if not known.is_nullable(c) and c not in GENERATED_COLUMNS][:1]
        image = _field(after, filled[0]) if filled else after
        values = [
            (exp.column(name.removeprefix("_")) if name in GENERATED_COLUMNS else _field(after, name)).as_(
                name, quoted=True
            )
            for name in columns
        ]
        carried = [exp.column(name.removeprefix(PREFIX)).as_(name) for name in (_POSITION, _LOGGED_AT)]
        changes = exp.table_(exp.to_identifier(_name(table), quoted=True), db="changes")
        return (
            exp.select(*values, *carried, exp.Literal.number(1).as_(_WEIGHT))
            .from_(changes)
            .where(image.is_(exp.null()).not_())
        )

    def new(self) -> exp.Select:
        """The signed rows since an instant, over `state.<table>` and `delta.<table>`."""
        return self._rows(
            _part(product, self._names, factors) for product in self._products for factors in self._terms(product)
        )

    def _terms(self, product: Product) -> list[list[_Factor]]:
        tables = self._moving(product)
        return [
            [
                *((alias, table, (STATE, DELTA)) for alias, table in tables[:i]),
                (*changed, (DELTA,)),
                *((alias, table, (STATE,)) for alias, table in tables[i + 1 :]),
            ]
            for i, changed in enumerate(tables)
        ]

    def _moving(self, product: Product) -> list[tuple[str, str]]:
        return [(alias, table) for alias, table in product.tables if not self._catalog[table].is_static]

    @property
    def _names(self) -> list[str]:
        return [name for name, _ in self._columns]

    def _rows(self, parts: Iterable[exp.Select]) -> exp.Select:
        """Signed rows with their measures multiplied by the weight, under the names and comments of the query."""
        found = exp.select(*(_carried(column, *of) for column, of in _CARRIED.items()))
        for name, comments in self._columns:
            value: exp.Expr = exp.column(exp.to_identifier(name, quoted=True))
            kind, size = self._measures.get(name.lower()), self._sizes.get(name.lower())
            if kind and name.lower() in self._extremes:
                comes = exp.If(this=exp.column(_WEIGHT).eq(1), true=exp.cast(value, kind, dialect="duckdb"))
                value = exp.cast(exp.Case(ifs=[comes]), kind, dialect="duckdb")
            elif kind:
                value = _signed(value, kind, size)
            column = value.as_(name, quoted=True)
            said = [f"{c.strip()}, signed" if kind and name.lower() not in self._extremes else c for c in comments]
            column.add_comments(said)
            found = found.select(column, copy=False)
        first, *others = parts
        union: exp.Query = first
        for other in others:
            union = exp.union(union, other, distinct=False, copy=False)
        return found.from_(union.subquery("signed_rows"), copy=False)


def _signed(value: exp.Expr, kind: str, size: Size | None) -> exp.Expr:
    """A row's number times its weight; without a size it is a count."""
    weight: exp.Expr = exp.column(_WEIGHT)
    if size is None or (kind == "BIGINT" and size.is_counted):
        signed = exp.Mul(this=weight, expression=exp.cast(value, "BIGINT", dialect="duckdb"))
        return exp.cast(signed, "BIGINT", dialect="duckdb")
    scale = _digits(kind) or 0
    if size.is_integer and scale == 0:
        weight, kind = exp.cast(weight, "HUGEINT", dialect="duckdb"), "HUGEINT"
    elif kind == "BIGINT":
        kind = WHOLE
    return exp.cast(exp.Mul(this=weight, expression=size.summable(value, scale)), kind, dialect="duckdb")


def as_core(core: Core, number: int, cells: exp.Expr) -> exp.Select:
    """The cells of one core, as its finish reads them, of a relation with those of several (`SignedRows.of_cells`)."""
    names = [*core.keys, *(m.count for m in core.measures if m.count != ROWS)]
    columns = [exp.column(_of_core(number, name)).as_(name) for name in names]
    for measure in core.measures:
        total: exp.Expr = exp.column(_of_core(number, measure.name))
        if condition := is_a_figure(total.sql("duckdb"), measure.size, f"DECIMAL(38, {measure.scale})"):
            total = exp.Case(ifs=[exp.If(this=exp.condition(condition, dialect="duckdb"), true=total)])
        columns.append(total.as_(measure.name))
    return exp.select(exp.column(ROWS), *columns).from_(cells).where(exp.column(CORE).eq(number))


def _of_core(number: int, name: str) -> str:
    return f"{name}_{number}"


_DELETED = "Declare the one table that changes append-only, or let the measures merge by finish."
_LINEAR = (
    "A row must depend on rows that it names: JOIN tables ON columns; LEFT JOIN, IN and EXISTS by the whole key of the "
    "other. Group in the fact's own query."
)


def _flattened(query: exp.Query, catalog: Catalog, types: Types) -> list[Product]:
    try:
        return Flattener(catalog, types).query(normal(query, catalog, types), "")
    except NotLinear as e:
        raise Refused(_shown(str(e)), None, _LINEAR) from None


def _of_one_type(products: Sequence[Product], names: Sequence[str], types: Types) -> list[Product]:
    """The products with their columns cast to what a UNION ALL of them would cast them to.

    DuckDB puts such casts between parts of a UNION ALL, by how it is nested, and prints it nested otherwise: so a
    published view would not be the query that was planned.
    """
    sides = [(product.all_tables(), [product.columns["", name] for name in names]) for product in products]
    common = types.of_union(sides)
    found = []
    for product, (tables, values) in zip(products, sides, strict=True):
        columns = {
            ("", name): exp.cast(value, to, dialect="duckdb") if own != to or isinstance(value, exp.Null) else value
            for name, value, own, to in zip(names, values, types.of(tables, values), common, strict=True)
        }
        found.append(replace(product, columns={**product.columns, **columns}))
    return found


def _tried(product: Product, types: Types) -> Product:
    """The product with columns and conditions that fail on no row."""
    kinds = product.kinds(types)
    return replace(product.tried(types), columns={key: tried(e, kinds) for key, e in product.columns.items()})


def _field(image: exp.Expr, name: str) -> exp.Expr:
    return exp.func("STRUCT_EXTRACT", image.copy(), exp.Literal.string(name), dialect="duckdb")


def _part(
    product: Product,
    names: Sequence[str],
    factors: Sequence[_Factor],
    relation_of: Callable[[str, Sequence[str], Sequence[str]], exp.Query] | None = None,
) -> exp.Select:
    """The signed rows of a product over these relations of the tables that change."""
    values = [product.columns["", name.lower()].copy() for name in names]
    conditions = [*product.conditions, *(c for _, _, on in product.looked_up for c in on)]
    read = {(c.table, c.name) for e in (*values, *conditions) for c in e.find_all(exp.Column)}
    weight: exp.Expr = exp.cast(exp.column(_WEIGHT, factors[0][0]), "BIGINT")
    for alias, _, _ in factors[1:]:
        weight = exp.Mul(this=weight, expression=exp.column(_WEIGHT, alias))
    carried = {_WEIGHT: weight if product.sign > 0 else exp.Neg(this=exp.paren(weight))}
    for name in (_POSITION, _LOGGED_AT):
        each = [exp.column(name, alias) for alias, _, _ in factors]
        carried[name] = exp.func("GREATEST", *each) if len(each) > 1 else each[0]
    relations: dict[str, exp.Expr] = {a: table_of(name).as_(a, table=True) for a, name in product.tables}
    for alias, table, schemas in factors:
        columns = [column for of, column in sorted(read) if of == alias]
        relations[alias] = (relation_of or _relation)(table, schemas, columns).subquery(alias)
    query = exp.select(
        *(value.as_(name, quoted=True) for name, value in zip(names, values, strict=True)),
        *(carried[name].as_(name) for name in _CARRIED),
    )
    return product.joined(relations, table_of, query)


def _relation(table: str, schemas: Sequence[str], columns: Sequence[str]) -> exp.Query:
    """A table's signed rows with the columns that are read; a delta leaves out changes that touch none of these."""
    read = [exp.column(exp.to_identifier(name, quoted=True)) for name in columns]
    carried = [exp.column(name) for name in _CARRIED]

    def rows(schema: str) -> exp.Select:
        relation = exp.table_(exp.to_identifier(_name(table), quoted=True), db=schema)
        if schema != DELTA:
            return exp.select(*read, *carried).from_(relation)
        total = exp.Sum(this=exp.column(_WEIGHT))
        kept = [c if c.name != _WEIGHT else exp.cast(total, "BIGINT").as_(_WEIGHT) for c in carried]
        groups = [*read, *(c for c in carried if c.name != _WEIGHT)]
        return exp.select(*read, *kept).from_(relation).group_by(*groups).having(total.neq(0))

    first, *others = map(rows, schemas)
    query: exp.Query = first
    for other in others:
        query = exp.union(query, other, distinct=False)
    return query


_INTEGER = re.compile(r"U?(TINY|SMALL|BIG|HUGE)?INT(EGER)?")
_DECIMAL = re.compile(r"DECIMAL\(\d+, ?(\d+)\)")


def _fits(kind: str, total: str) -> bool:
    """Whether sums of numbers of a type are exact in another type, or too large for it."""
    digits = {name: _digits(name) for name in (kind, total)}
    if kind in ("BOOLEAN", '"NULL"'):
        digits[kind] = 0
    return all(d is not None for d in digits.values()) and (digits[kind] or 0) <= (digits[total] or 0)


def _digits(kind: str) -> int | None:
    """How many digits a type of exact numbers has after the decimal point; None of any other type."""
    decimal = _DECIMAL.fullmatch(kind)
    return int(decimal[1]) if decimal else 0 if _INTEGER.fullmatch(kind) else None


def _text(key: exp.Expr) -> str | None:
    """The text that a key is for all rows; None if it is another expression."""
    while isinstance(key, exp.Paren) or (isinstance(key, exp.Cast) and key.is_type("text", "varchar")):
        key = key.this
    return key.name if isinstance(key, exp.Literal) and key.is_string else None


def _is_a_count(measure: exp.Expr | None) -> bool:
    """Whether a measure is one positive whole number for all rows."""
    while isinstance(measure, exp.Cast | exp.Paren):
        measure = measure.this
    return isinstance(measure, exp.Literal) and measure.is_int and int(measure.name) > 0


def _carried(column: str, name: str, description: str) -> exp.Expr:
    found = exp.column(column).as_(name)
    found.add_comments([description])
    return found


def _shown(text: str) -> str:
    """A text without generated aliases."""
    return re.sub(rf" AS {PREFIX}t\d+|\b{PREFIX}t\d+\.", "", text)


def _name(table: str) -> str:
    return table.partition(".")[2]


def require_rows(query: exp.Query, *, of_changes: bool = False) -> None:
    """Refuse by name, and with its line, what makes a row depend on all the others: in a query, or a view in it.

    `of_changes`: whether it may read columns of the change that added a row. It may if rows are never deleted.
    """
    for node in query.walk():
        if isinstance(node, exp.Select):
            for clause in _GROUPED:
                if found := node.args.get(clause):
                    raise Refused(
                        f"{clause.upper()} over rows that change",
                        found if isinstance(found, exp.Expr) else node,
                        "A row must depend on rows that it names; group in the fact's own query.",
                    )
        elif isinstance(node, exp.SetOperation) and (type(node) is not exp.Union or node.args.get("distinct")):
            raise Refused(f"{node.key.upper()} of rows that change", node, "Only UNION ALL adds up.")
        elif isinstance(node, exp.Column) and node.name.lower() in GENERATED_COLUMNS and not of_changes:
            raise Refused(
                f"{node.name}, which is of the change and not of the row", node, "What takes the row away has another."
            )
        elif isinstance(node, exp.AggFunc | exp.Window):
            raise Refused(
                f"{node.sql('duckdb')[:60]}, which looks at more than one row",
                node,
                "A row must depend on rows that it names; group in the fact's own query.",
            )
