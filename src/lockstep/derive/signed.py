"""Signed rows of a row-level query: what each change of its tables takes away from its rows and adds to them.

A query that looks at one row of one moving table at a time is linear (Budiu et al., DBSP, VLDB 2023): its increment is
the query itself over signed rows, `signed.<table>`, where the image before a change weighs -1 and the one after +1.
UNION ALL of such queries is linear too. Joins of moving tables need their states and are derived as cores.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

from sqlglot import exp

from lockstep.derive.allowed import check
from lockstep.derive.refusals import Refused
from lockstep.names import GENERATED as PREFIX
from lockstep.names import GENERATED_COLUMNS

_WEIGHT = f"{PREFIX}weight"
# Columns of signed rows that go along, what they are called in the end, and what they are.
_CARRIED = {
    f"{PREFIX}position": ("position", "Position of the change in the log"),
    f"{PREFIX}logged_at": ("logged_at", "logged_at of the change"),
    _WEIGHT: ("diff", "-1 for the row before the change, +1 for the one after"),
}
_GROUPED = ("group", "having", "qualify", "distinct", "limit", "offset", "order")

Relation = Callable[[str], "exp.Query | None"]


def signed_rows(query: exp.Query, relation: Relation, measures: Mapping[str, str]) -> exp.Select:
    """The rows of a query, once for each signed row of its tables, with `position`, `logged_at` and `diff`.

    `query` reads tables of `source` alone or joined to static ones; what else it reads, `relation` gives as a query:
    that of a view, or None for a table that does not change. `measures`, names and DuckDB types, are multiplied by the
    weight, so that sums of them over changes are sums over rows. Casts become TRY_CAST: old images that cannot be cast
    would stop their hour for ever. Raises Refused, with what to write instead.
    """
    check(query)
    if query.is_star:
        raise Refused("*", query, "Name the columns.")
    names = [s.alias_or_name for s in query.selects]
    rows = _Signing(relation).query(query)
    if rows is None:
        raise Refused("It reads no table of source", query, "Increments come from changes of tables.")
    found = exp.select(*(_carried(column, *of) for column, of in _CARRIED.items()))
    for name, written in zip(names, query.selects, strict=True):
        value: exp.Expr = exp.column(exp.to_identifier(name, quoted=True))
        if name in measures:
            value = exp.cast(exp.Mul(this=exp.column(_WEIGHT), expression=value), measures[name], dialect="duckdb")
        column = value.as_(name, quoted=True)
        column.add_comments([f"{c.strip()}, signed" if name in measures else c for c in written.comments or ()])
        found = found.select(column, copy=False)
    return found.from_(rows.subquery("signed_rows"), copy=False)


class _Signing:
    """Carries position, time and weight of signed rows through the levels of a query."""

    def __init__(self, relation: Relation) -> None:
        self._relation = relation

    def query(self, query: exp.Query, known: Mapping[str, bool] | None = None) -> exp.Query | None:
        """A copy of a query over signed rows; None if it is static. `known` says which CTEs around it move."""
        if isinstance(query, exp.Subquery):
            inner = self.query(query.this, known)
            return None if inner is None else exp.Subquery(this=inner, alias=query.args.get("alias"))
        known = dict(known or {})
        query = query.copy()
        for cte in query.ctes:
            moving = self.query(cte.this, known)
            known[cte.alias] = moving is not None
            if moving is not None:
                cte.set("this", moving)
        if isinstance(query, exp.SetOperation):
            return self._union(query, known)
        assert isinstance(query, exp.Select)
        return self._select(query, known)

    def _union(self, query: exp.SetOperation, known: Mapping[str, bool]) -> exp.Query | None:
        sides = [self.query(side, known) for side in (query.left, query.right)]
        if sides == [None, None]:
            return None
        if type(query) is not exp.Union or query.args.get("distinct"):
            raise Refused(f"{query.key.upper()} of rows that change", query, "Only UNION ALL adds up.")
        for side in sides:
            if side is None:
                raise Refused("UNION ALL with rows that never change", query, "Add them where the figures are read.")
        query.set("this", sides[0])
        query.set("expression", sides[1])
        return query

    def _select(self, select: exp.Select, known: Mapping[str, bool]) -> exp.Select | None:
        moving: list[str] = []
        for number, source in enumerate(list(_sources(select))):
            if isinstance(source, exp.Subquery) and not source.alias:
                source.set("alias", exp.TableAlias(this=exp.to_identifier(f"{PREFIX}q{number}")))
            if (signed := self._source(source, known)) is not None:
                source.replace(signed)
                moving.append(source.alias_or_name)
                _require_kept(select, source.alias_or_name)
        if not moving:
            return None
        if len(moving) > 1:
            raise Refused(
                f"A join of tables that change ({' and '.join(moving)})",
                select,
                "Read one of them per query, and join the figures on reading.",
            )
        _require_single_rows(select)
        for cast in list(select.find_all(exp.Cast)):
            if type(cast) is exp.Cast and cast.find(exp.Column):
                cast.replace(exp.TryCast(**cast.args))
        if any(s.is_star and s.text("table") in ("", moving[0]) for s in select.selects):
            return select  # which has them among its columns
        alias = exp.to_identifier(moving[0], quoted=True)
        return select.select(*(exp.column(name, alias.copy()) for name in _CARRIED), copy=False)

    def _source(self, source: exp.Expr, known: Mapping[str, bool]) -> exp.Expr | None:
        """What takes the place of a source that moves; None for one that does not."""
        alias = source.alias_or_name
        if isinstance(source, exp.Subquery):
            inner = self.query(source.this, known)
            return None if inner is None else inner.subquery(alias)
        if not isinstance(source, exp.Table):
            raise Refused(source.sql("duckdb"), source, "Read tables, views or subqueries in FROM.")
        if not source.db and source.name in known:
            return source.copy() if known[source.name] else None
        if source.db == "source":
            return exp.table_(source.args["this"].copy(), db="signed", alias=exp.to_identifier(alias, quoted=True))
        view = self._relation(f"{source.db}.{source.name}")
        if view is None:
            return None
        inner = self.query(view)
        if inner is None:
            return None
        check(view)
        return inner.subquery(alias)


def _carried(column: str, name: str, description: str) -> exp.Expr:
    found = exp.column(column).as_(name)
    found.add_comments([description])
    return found


def _sources(select: exp.Select) -> Iterator[exp.Expr]:
    if from_ := select.args.get("from_"):
        yield from_.this
    for join in select.args.get("joins") or ():
        yield join.this


def _conditions(select: exp.Select) -> Iterator[exp.Expr]:
    if where := select.args.get("where"):
        yield where.this
    for join in select.args.get("joins") or ():
        if on := join.args.get("on"):
            yield on


def _require_single_rows(select: exp.Select) -> None:
    """Each row of the query must depend on one row of its moving table alone."""
    for clause in _GROUPED:
        if found := select.args.get(clause):
            raise Refused(
                f"{clause.upper().replace('_', ' ')} over rows that change",
                found if isinstance(found, exp.Expr) else select,
                "A row must depend on one row of the source alone; group in the fact's own query.",
            )
    for expression in (*select.selects, *_conditions(select)):
        for node in expression.walk():
            if isinstance(node, exp.Column) and node.name.lower() in GENERATED_COLUMNS:
                raise Refused(
                    f"{node.name}, which is of the change and not of the row",
                    node,
                    "What takes the row away has another.",
                )
            if isinstance(node, exp.AggFunc | exp.Window | exp.Query):
                raise Refused(
                    f"{node.sql('duckdb')[:60]}, which looks at more than one row",
                    node,
                    "A row must depend on one row of the source alone.",
                )


def _require_kept(select: exp.Select, alias: str) -> None:
    """A row of the moving table must give the same rows whichever others there are: it is not on the right of LEFT."""
    for join in select.args.get("joins") or ():
        if join.side and join.this.alias_or_name == alias:
            raise Refused(
                f"{join.side} JOIN to {alias}, which changes", join, "Read the table that changes first, in FROM."
            )
