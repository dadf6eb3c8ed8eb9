"""A query in the form that the rules look at: names qualified, CTEs in place, aliases unique."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping

from sqlglot import exp, parse
from sqlglot.errors import ParseError, SqlglotError
from sqlglot.optimizer.qualify import qualify

from lockstep.derive.allowed import check
from lockstep.derive.catalog import Catalog, Types, table_of
from lockstep.derive.refusals import Refused
from lockstep.names import GENERATED as PREFIX


def normal(query: str | exp.Query, catalog: Catalog, types: Types) -> exp.Query:
    """The query over `catalog`, normalized. Raises Refused."""
    try:
        [parsed, *others] = parse(query, dialect="duckdb") if isinstance(query, str) else [query.copy()]
    except SqlglotError as e:
        place = e.errors[0] if isinstance(e, ParseError) and e.errors else {"line": "?", "description": str(e)}
        raise Refused(f"line {place['line']}: {place['description']}", None, "This SQL cannot be read.") from None
    if not isinstance(parsed, exp.Query):
        raise Refused("This is not a query", parsed, "Write a SELECT.")
    if others:
        raise Refused("This is more than one statement", None, "Write one SELECT.")
    check(parsed)
    text = query if isinstance(query, str) else query.sql("duckdb")
    types.of_query(text, has_lines=isinstance(query, str))  # or else DuckDB says what is wrong with it
    _parenthesize(parsed)
    if types.plan(text) != types.plan(parsed.sql("duckdb", identify=True)):
        raise Refused("An expression that may be read in two ways", None, "Put its parts into parentheses.")
    try:
        qualified = qualify(
            parsed.copy(),
            schema=_schema(catalog),
            dialect="duckdb",
            quote_identifiers=False,
            identify=False,
            infer_schema=False,
        )
    except SqlglotError as e:
        raise Refused(str(e), None, "Name tables and columns as the catalog has them.") from None
    assert isinstance(qualified, exp.Query)
    _check_names_of(parsed, qualified, types)
    _inline(qualified)
    spelled = {name.lower(): name for name in catalog}
    for table in list(qualified.find_all(exp.Table)):
        if name_of(table).lower() not in spelled:
            raise Refused(f"{name_of(table)} is not in the catalog", table, "Declare the table, or read another.")
        table.replace(table_of(spelled[name_of(table).lower()]).as_(table.alias_or_name, table=True))
    _plain_aggregates(qualified)
    for select in list(qualified.find_all(exp.Select)):
        _group_by_all(select)
    check(qualified)
    _check_names(qualified)
    _unique_aliases(qualified, {}, itertools.count(1))
    _check_aggregates(qualified, catalog)
    return qualified


def _parenthesize(query: exp.Query) -> None:
    """Let nothing depend on which operator binds first: `MOD(a, b)` and `x IS NOT NULL` are written as operators."""
    operators = (exp.Binary, exp.Unary, exp.Between, exp.In)
    for node in reversed(list(query.walk())):
        around = node.parent
        if not isinstance(node, operators) or not isinstance(around, operators):
            continue
        is_chain = isinstance(node, exp.Connector) and type(node) is type(around)
        if not is_chain and not isinstance(node, exp.Paren) and not isinstance(around, exp.Paren):
            parentheses = exp.Paren()
            node.replace(parentheses)
            parentheses.set("this", node)


def _check_names_of(parsed: exp.Query, qualified: exp.Query, types: Types) -> None:
    """Whether DuckDB reads every name as what it was qualified to.

    Whether a name is that of a column or of another expression of the SELECT is another rule in each clause.
    """
    keys = {key.name.lower() for join in parsed.find_all(exp.Join) for key in join.args.get("using") or []}

    def of_left(node: exp.Expr) -> exp.Expr:
        """A key of USING is the left table's: where that is NULL, nothing is joined."""
        columns = [node.this, *node.expressions] if isinstance(node, exp.Coalesce) else []
        is_key = columns and all(isinstance(c, exp.Column) and c.name.lower() in keys for c in columns)
        return columns[0] if is_key else node

    written, read = (types.plan(q.transform(of_left).sql("duckdb", identify=True)) for q in (parsed, qualified))
    if written != read:
        aliases = {alias.alias.lower() for alias in parsed.find_all(exp.Alias)}
        both = sorted(aliases & {column.name.lower() for column in parsed.find_all(exp.Column) if not column.table})
        named = f" ({', '.join(both)})" if both else ""
        raise Refused(f"A name or star that may be read in two ways{named}", None, "Write each column with its table.")


def name_of(table: exp.Table) -> str:
    return ".".join(part.name for part in table.parts)


def _schema(catalog: Catalog) -> dict[str, object]:
    schema: dict[str, object] = {}
    for name, table in catalog.items():
        *path, last = name.split(".")
        level = schema
        for part in path:
            level = level.setdefault(part, {})  # type: ignore[assignment]
        level[last] = dict(table.columns)
    return schema


def _inline(query: exp.Query) -> None:
    """Put each CTE where it is read. A later CTE may read earlier ones, and a subquery those around it.

    The innermost come first, so that a name means the nearest CTE around it, or else a table.
    """
    for inner in reversed(list(query.find_all(exp.Query))):
        with_ = inner.args.get("with_")
        if not with_:
            continue
        if with_.args.get("recursive"):
            raise Refused("WITH RECURSIVE", with_, "Write it without recursion.")
        inner.set("with_", None)
        known: dict[str, exp.Query] = {}
        for cte in with_.expressions:
            body = cte.this
            _replace_references(body, known)
            known[cte.alias] = body
        _replace_references(inner, known)


def _replace_references(query: exp.Query, known: Mapping[str, exp.Query]) -> None:
    for table in list(query.find_all(exp.Table)):
        if not table.db and table.name in known:
            table.replace(known[table.name].copy().subquery(table.alias_or_name))


def _group_by_all(select: exp.Select) -> None:
    group = select.args.get("group")
    if group and group.args.get("all"):
        # DuckDB groups by what reads a column: without one there is one row, also of no rows.
        plain = [p.unalias().copy() for p in select.selects if p.find(exp.Column) and not any(aggregates(p))]
        select.set("group", exp.Group(expressions=plain) if plain else None)
        group = select.args.get("group")
        for column in (c for clause in ("having", "qualify", "order") for c in _ungrouped(select.args.get(clause))):
            if column.table and column not in plain:  # DuckDB would group by it too
                raise Refused(f"GROUP BY ALL beside {column.sql('duckdb')}", select, "Name the keys in GROUP BY.")
    for constant in [g for g in group.expressions if isinstance(g.unnest(), exp.Literal)] if group else []:
        raise Refused(f"GROUP BY {constant.sql('duckdb')}, a constant", select, "Leave it out of the keys.")


def _ungrouped(clause: exp.Expr | None) -> Iterator[exp.Column]:
    """The columns of a clause outside of aggregates."""
    inside = {id(column) for a in (aggregates(clause) if clause else ()) for column in own_columns(a)}
    yield from (column for column in (own_columns(clause) if clause else ()) if id(column) not in inside)


def _check_names(query: exp.Query) -> None:
    """A subquery with two columns of one name: which of them the name means is DuckDB's secret."""
    for subquery in query.find_all(exp.Subquery):
        names = [s.alias_or_name for s in subquery.this.selects]
        if isinstance(subquery.parent, exp.From | exp.Join) and len(set(names)) < len(names):
            twice = next(name for name in names if names.count(name) > 1)
            raise Refused(f"A subquery with two columns of the name {twice}", subquery, "Give each a name of its own.")


def _check_aggregates(query: exp.Query, catalog: Catalog) -> None:
    """An aggregate of columns of an outer query alone belongs to that query: its place says otherwise.

    ARG_MAX names any of the rows that are last, so that there must be one: it is by the key of the one table there is.
    """
    for select in query.find_all(exp.Select):
        found = sources(select)
        key = catalog[name_of(found[0])].key if len(found) == 1 and isinstance(found[0], exp.Table) else ()
        for last in own(select, exp.ArgMax, exp.ArgMin):
            by = last.expression.unnest()
            if not isinstance(by, exp.Column) or [by.name] != [name.lower() for name in key]:
                named = "ARG_MAX" if isinstance(last, exp.ArgMax) else "ARG_MIN"
                raise Refused(f"{named} by what is not unique", last, "Take it by the key of one table.")
        inside = {source.alias_or_name for source in sources(select)}
        for aggregate in aggregates(select):
            tables = {column.table for column in own_columns(aggregate)}
            if tables and not tables & inside:
                raise Refused(f"{aggregate.sql_name()}() of an outer query's column", select, "Move it to that query.")


def _plain_aggregates(query: exp.Query) -> None:
    """`agg(x) FILTER (WHERE c)` is `agg(CASE WHEN c THEN x END)`; DuckDB's COUNT_IF(c) is NULL where c always is."""
    for filtered in list(query.find_all(exp.Filter)):
        aggregate, condition = filtered.this, filtered.expression.this
        argument = aggregate.this
        counted = exp.Literal.number(1) if argument is None or isinstance(argument, exp.Star) else argument
        if isinstance(argument, exp.Distinct):
            [counted] = argument.expressions
        chosen = exp.Case(ifs=[exp.If(this=condition.copy(), true=counted.copy())])
        aggregate.set("this", exp.Distinct(expressions=[chosen]) if isinstance(argument, exp.Distinct) else chosen)
        filtered.replace(aggregate)
    for count_if in list(query.find_all(exp.CountIf)):
        yes = exp.If(this=count_if.this.copy(), true=exp.Literal.number(1))
        no = exp.If(this=exp.Not(this=exp.paren(count_if.this.copy())), true=exp.Literal.number(0))
        count_if.replace(exp.Sum(this=exp.Case(ifs=[yes, no])))


def _unique_aliases(query: exp.Expr, outer: Mapping[str, str], numbers: Iterator[int]) -> None:
    """Give every table and subquery of the whole query an alias of its own, whatever scopes share."""
    if isinstance(query, exp.SetOperation):
        _unique_aliases(query.left, outer, numbers)
        _unique_aliases(query.right, outer, numbers)
        return
    if isinstance(query, exp.Subquery):
        _unique_aliases(query.this, outer, numbers)
        return
    assert isinstance(query, exp.Select)
    names = dict(outer)
    for source in sources(query):
        if isinstance(source, exp.Subquery):
            _unique_aliases(source.this, outer, numbers)
        new = f"{PREFIX}t{next(numbers)}"
        names[source.alias_or_name] = new
        source.set("alias", exp.TableAlias(this=exp.to_identifier(new)))
    for column in own_columns(query):
        if column.table in names:
            column.set("table", exp.to_identifier(names[column.table]))
    for nested in list(subqueries(query)):
        _unique_aliases(nested, names, numbers)


def sources(select: exp.Expr) -> list[exp.Expr]:
    """What stands in FROM and the joins, in order."""
    from_ = select.args.get("from_")
    return [*([from_.this] if from_ else []), *(join.this for join in select.args.get("joins") or [])]


def own(node: exp.Expr, *kinds: type[exp.Expr]) -> Iterator[exp.Expr]:
    """Nodes of these kinds that belong to a query itself, and not to a query within it."""
    for found in node.walk(prune=lambda n: n is not node and isinstance(n, exp.Query)):
        if isinstance(found, kinds) and not (found is not node and isinstance(found, exp.Query)):
            yield found


def aggregates(node: exp.Expr) -> Iterator[exp.AggFunc]:
    """The aggregates of a query's groups: not those of windows, but those within them, as in SUM(SUM(x)) OVER ()."""
    for found in own(node, exp.AggFunc):
        holder = found.parent if isinstance(found.parent, exp.WithinGroup) else found
        if isinstance(found, exp.AggFunc) and not isinstance(holder.parent, exp.Window):
            yield found


def own_columns(node: exp.Expr) -> list[exp.Column]:
    """The columns that a query's own clauses name."""
    return [found for found in own(node, exp.Column) if isinstance(found, exp.Column)]


def subqueries(select: exp.Expr) -> Iterator[exp.Query]:
    """The queries that stand in the expressions of a query, and not in its FROM."""
    in_from = {id(s) for s in sources(select)}
    for found in select.walk(prune=lambda n: n is not select and isinstance(n, exp.Query)):
        if found is not select and isinstance(found, exp.Query) and id(found) not in in_from:
            yield found
