"""Domains whose increments are derived from their one query, `models/rebuild/<domain>.sql`.

A domain with a file of its own in `models/diffs` is not derived. Where measures are sums and extremes, or those of the
last row of a group, the increments are those of the domain's own cells. Else they are those of the cells that its query
is compiled to, and the figures come out of the finish, a query over these cells.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from sqlglot import exp, parse_one
from sqlglot.errors import SqlglotError

from lockstep.contracts import Contract, Measure, load, unit_of
from lockstep.derive import Catalog, Core, Derivation, Refused, SignedRows, Table, as_core, derive, require_rows
from lockstep.derive.catalog import Types, table_of
from lockstep.derive.repeatable import require_repeatable
from lockstep.derive.trying import casts_tried
from lockstep.errors import LockstepError
from lockstep.figures import Declared, Figures
from lockstep.names import EXTRA, GENERATED_COLUMNS, LAST_BY
from lockstep.project import digest, project
from lockstep.schema import TABLES, literal

ALL_CELLS = "__cells"  # the table that the sets of a finish read: it is replaced by the domain's cells
_DERIVED = ({"sum", "max", "min"}, {"finish"}, {"latest"})  # how the measures of one fact may merge
_TIMES = ("start_", "end_", "execution_", "latest_")  # SQLMesh's variables for the interval that it computes
_VALID = ("valid_from_at", "valid_to_at")  # with the first in its grain, a static table has one row for any time


def derived_domains() -> list[Contract]:
    """The contracts of the domains whose increments are derived. Raises LockstepError if one cannot but must be."""
    found = [contract for contract in load().values() if is_derived(contract)]
    for contract in load().values():
        domain = contract.domain
        if contract.live_where and contract not in found:
            raise LockstepError(
                f"models/diffs/{domain}.sql is written by hand, and knows nothing of the live_where in its contract. "
                "Write the condition into the file and clear live_where, or remove the file."
            )
        if contract.is_finished and contract not in found:
            raise LockstepError(
                f"models/diffs/{domain}.sql is written by hand, but {domain} has measures that merge by finish, and "
                f"the cells that these are computed from are derived. Remove the file, so that all of {domain} is "
                f"derived from models/rebuild/{domain}.sql; or leave such measures to a mart that reads the domain's."
                if (project() / "models" / "diffs" / f"{domain}.sql").exists()
                else f"models/rebuild/{domain}.sql is missing: the cells of {domain} are derived from it."
            )
    return found


def is_derived(contract: Contract) -> bool:
    """Whether a domain's increments are derived."""
    models = project() / "models"
    return (
        not (models / "diffs" / f"{contract.domain}.sql").exists()
        and (models / "rebuild" / f"{contract.domain}.sql").exists()
        and any({m.merge for m in contract.merged} <= kind for kind in _DERIVED)
    )


@dataclass(frozen=True)
class Finish:
    """How figures come out of cells: `query` reads the sets of cells in `sets`, tables by name.

    Each is a query over the table `ALL_CELLS`, which has the columns of `cells`.
    """

    query: str
    sets: dict[str, str]
    cells: Contract


def finish_of(contract: Contract) -> Finish:
    """The finish of a domain that has one; `cells` is its contract with the grain and the sums of the cells.

    Raises LockstepError, naming the file, if its query has none.
    """
    with naming_query(contract.domain, or_by_hand=False):
        derivation, moving, rows = _finished(project(), digest_of_models(), tuple(TABLES.values()), contract.domain)
    measures = tuple(
        Measure(name, "sum", _unit(kind), 0, 0, "") for name, kind in rows.columns.items() if kind is not None
    )
    grain = tuple(name for name, kind in rows.columns.items() if kind is None)
    cells = replace(contract, grain=grain, all_measures=measures)
    sets = {core.name: core.full(table_of).sql("duckdb") for core in derivation.cores if core not in moving}
    for number, core in enumerate(moving):
        sets[core.name] = as_core(core, number, exp.to_table(ALL_CELLS)).sql("duckdb")
    return Finish(casts_tried(derivation.finish).sql("duckdb"), sets, cells)


def _unit(kind: str) -> str:
    """A unit whose measures have this type."""
    return "count" if kind == "BIGINT" else f"amount({kind.removesuffix(')').rpartition(',')[2].strip()})"


def rows_of(contract: Contract) -> SignedRows:
    """The signed rows of a domain. Raises LockstepError, naming the file, if its query has none."""
    place = project(), digest_of_models(), tuple(TABLES.values()), contract.domain
    with naming_query(contract.domain, or_by_hand=not contract.is_finished):
        if contract.is_finished:
            rows = _finished(*place)[2]
        elif contract.measures("latest"):
            rows = _last_of(*place, contract.grain, contract.live_where)
        else:
            rows = _added_up(*place, tuple((m.name, m.type, m.merge) for m in contract.merged), contract.live_where)
    if missing := [table for table in rows.tables if table not in contract.sources]:
        raise LockstepError(
            f"models/rebuild/{contract.domain}.sql reads source.{missing[0]}, which its contract does not name. Add "
            f"{' '.join(missing)} to joined_tables of {contract.domain} in seeds/contracts.csv."
        )
    return rows


def too_large(domain: str, rows: SignedRows) -> str:
    """A query for the folded sums of a domain that are too large to be figures, with the cell; empty if none can be.

    Only cells are added up that were large in some hour, which DuckDB finds by the statistics of the table.
    """
    grain = [name for name, kind in rows.columns.items() if kind is None]
    cell = " || ', ' || ".join(f"'{name} ' || COALESCE({name}::TEXT, 'NULL')" for name in grain)
    same = " AND ".join(f"hours.{name} IS NOT DISTINCT FROM large.{name}" for name in grain) or "TRUE"
    return " UNION ALL ".join(
        f"SELECT '{domain}' AS domain, {literal(f'{rows.why_not(name)}, in the cell of ')} || {cell} "
        f"AS figure FROM (SELECT {', '.join(f'hours.{g}' for g in grain)}, SUM(hours.{name}) AS {name} "
        f"FROM hourly.{domain} AS hours SEMI JOIN (SELECT * FROM hourly.{domain} WHERE {rows.is_large(name)}) AS large "
        f"ON {same} GROUP BY ALL) AS sums WHERE NOT ({condition})"
        for name, condition in rows.checked.items()
    )


def figures_of(domain: str, declared: Declared, merge: str = "") -> Figures:
    """What `models/rebuild/<domain>.sql` gives; `declared` is what the contract says of its measures.

    `merge`: how those merge that it does not mention; empty: by what can be derived. The project need not be loaded.
    Raises LockstepError, naming the file, if it can be neither derived nor is said to be recomputed.
    """
    from lockstep.loader import require_macros

    require_macros()
    path = project() / "models" / "rebuild" / f"{domain}.sql"
    with naming_query(domain):
        grain = tuple(column.name for grain in _load(path).grains for column in grain.find_all(exp.Column))
        query = _query(path)
        comments = {s.alias_or_name: s.comments[0].strip() for s in query.selects if s.comments}
        is_of_last = {*LAST_BY} <= {s.alias_or_name for s in query.selects}
        inlined = _over_tables(query.copy(), of_rows=False)
        catalog = _catalog(inlined, of_changes=is_of_last)
        columns = dict(Types(catalog).of_query(inlined.sql("duckdb"), has_lines=False))
        if missing := [name for name in grain if name not in columns]:
            raise Refused(f"The grain names {missing[0]}, which is not selected", None, "Select it.")
        names = [name for name in columns if name not in grain and not (is_of_last and name in LAST_BY)]
        merges = {name: declared.get(name, ("", ""))[0] or merge for name in names}
        units = {name: declared.get(name, ("", ""))[1] or unit_of(name, columns[name]) or "" for name in names}
        if odd := [name for name in names if not units[name]]:
            raise Refused(
                f"{odd[0]} is {columns[odd[0]]}",
                None,
                "Cast it to a type that measures have, BIGINT, DECIMAL(38, s), DOUBLE, TIMESTAMP or TEXT; or name it "
                "in the grain, if it tells rows apart.",
            )
        if is_of_last:
            place = project(), digest_of_models(), tuple(TABLES.values()), domain
            by, tables, because = "latest", _last_of(*place, grain, "").tables, None
        else:
            by, tables, because = _how_it_merges(domain, inlined, catalog, merges, units)
        measures = {name: (merges[name] or by, units[name], comments.get(name, "")) for name in names}
        return Figures(grain, measures, tuple(tables), because)


def _how_it_merges(
    domain: str, query: exp.Query, catalog: Catalog, merges: Mapping[str, str], units: Mapping[str, str]
) -> tuple[str, list[str], str | None]:
    """How measures merge that `merges` does not mention, the tables that change them, and why not by sum.

    Raises Refused where the query cannot merge as `merges` says.
    """
    said, because = {*merges.values()}, None
    place = project(), digest_of_models(), tuple(TABLES.values()), domain
    if "recomputed" in said:
        require_repeatable(query, catalog)
        read = (table.name for table in query.find_all(exp.Table) if table.db == "source")
        return "recomputed", list(dict.fromkeys(read)), None
    if "finish" not in said:
        measures = [Measure(n, m or "sum", units[n], 0, 0, "") for n, m in merges.items() if m != "batch"]
        try:
            return "sum", _added_up(*place, tuple((m.name, m.type, m.merge) for m in measures), "").tables, None
        except Refused as why:
            if said & {"sum", "max", "min"}:
                raise
            because = why.what
    return "finish", _finished(*place)[2].tables, because


def refusal_of(domain: str) -> str | None:
    """Why the query of a fact is not derived, and what to write instead; None if it can be."""
    try:
        _cells_of(*query_of(domain))
    except Refused as refused:
        return str(refused)
    return None


def query_of(domain: str) -> tuple[exp.Query, Catalog]:
    """The query of a fact, with the views over `source` in it, and all tables that it reads."""
    query = _over_tables(_query(project() / "models" / "rebuild" / f"{domain}.sql"), of_rows=False)
    return query, _catalog(query)


def digest_of_models() -> str:
    """A digest of all that queries are derived from, but for contracts and the declaration."""
    return digest(sorted((project() / "models").rglob("*.sql")))


@functools.lru_cache(maxsize=64)  # many models of a domain are stamped from one
def _added_up(
    root: Path,
    _models: str,
    _tables: tuple[object, ...],
    domain: str,
    measures: tuple[tuple[str, str, str], ...],
    live_where: str,
) -> SignedRows:
    path = root / "models" / "rebuild" / f"{domain}.sql"
    query = _over_tables(_query(path, live_where))
    extremes = {name: merge.upper() for name, _, merge in measures if merge != "sum"}
    return SignedRows(query, _catalog(query), {name: kind for name, kind, _ in measures}, extremes)


@functools.lru_cache(maxsize=64)
def _last_of(
    root: Path, _models: str, _tables: tuple[object, ...], domain: str, grain: tuple[str, ...], live_where: str
) -> SignedRows:
    query = _over_tables(_query(root / "models" / "rebuild" / f"{domain}.sql", live_where))
    return SignedRows.of_last(query, _catalog(query, of_changes=True), grain)


_Finished = tuple[Derivation, list[Core], SignedRows]


@functools.lru_cache(maxsize=64)
def _finished(root: Path, _models: str, _tables: tuple[object, ...], domain: str) -> _Finished:
    return _cells_of(*query_of(domain))


def _cells_of(query: exp.Query, catalog: Catalog) -> _Finished:
    derivation = _derivation(query, catalog)
    moving = _moving(derivation, catalog)
    return derivation, moving, SignedRows.of_cells(moving, catalog)


def _moving(derivation: Derivation, catalog: Catalog) -> list[Core]:
    """The cores that change with their tables; the others, of static tables alone, are read as they are."""
    moving = [core for core in derivation.cores if any(not catalog[name].is_static for name in core.tables())]
    if not moving:
        raise Refused("It reads no table of source", None, "Increments come from changes of tables.")
    return moving


def _derivation(query: exp.Query, catalog: Catalog) -> Derivation:
    # Rows of a table that only grows still go with a TRUNCATE, which no extreme can take back.
    return derive(query, {name: replace(table, is_append_only=False) for name, table in catalog.items()})


@contextmanager
def naming_query(domain: str, *, or_by_hand: bool = True, or_recomputed: bool = True) -> Iterator[None]:
    """Name the file in whatever is refused of a domain's query, and the other ways out if there are any."""
    name = f"models/rebuild/{domain}.sql"
    try:
        yield
    except Refused as e:
        can_be = or_recomputed and _is_repeatable(domain)
        recomputed = (
            "Or have its measures merge by recomputed in seeds/contract_measures.csv (docs/contracts.md)."
            if can_be
            else ""
        )
        by_hand = f"Or write models/diffs/{domain}.sql by hand." if or_by_hand else ""
        raise LockstepError(" ".join(filter(None, (f"{e.place or name}: {e}", recomputed, by_hand)))) from None


def _is_repeatable(domain: str) -> bool:
    try:
        require_repeatable(*query_of(domain))
    except Refused:
        return False
    return True


def _over_tables(query: exp.Query, *, of_rows: bool = True) -> exp.Query:
    """A query with each view over `source` in the place where it is read; `of_rows`: each must be of rows."""
    for table in list(query.find_all(exp.Table)):
        if table.db and table.db != "source" and (view := _view(f"{table.db}.{table.name}")):
            try:
                if of_rows:
                    require_rows(view)
            except Refused as e:
                e.place = e.place or f"models/{table.db}/{table.name}.sql"
                raise
            for node in view.walk():
                node.meta.pop("line", None)  # of another file
            table.replace(
                _over_tables(view, of_rows=of_rows).subquery(exp.to_identifier(table.alias_or_name, quoted=True))
            )
    return query


def _view(name: str) -> exp.Query | None:
    """The query of a view of the project; None for a seed or a view over seeds. Raises Refused for a table."""
    schema, _, short = name.partition(".")
    if schema == "seeds":
        return None
    path = project() / "models" / schema / f"{short}.sql"
    if not path.exists() or not _is_view(path):
        raise Refused(f"It reads {name}", None, "Read tables of source, seeds, and views over these.")
    try:
        query = _query(path)
    except Refused as e:
        e.place = str(path.relative_to(project()))
        raise
    ctes = {cte.alias for cte in query.find_all(exp.CTE)}
    read = {f"{t.db}.{t.name}" for t in query.find_all(exp.Table) if t.db or t.name not in ctes}
    return None if all(not n.startswith("source.") and _view(n) is None for n in read) else query


def _catalog(query: exp.Query, *, of_changes: bool = False) -> Catalog:
    """The tables of the log, and what else the query reads, which never changes.

    `of_changes`: those that are append-only have what `source` says of the change that added a row.
    """
    added = dict(zip(GENERATED_COLUMNS, ("BIGINT", "TIMESTAMP", "TEXT"), strict=True)) if of_changes else {}
    catalog = {
        f"source.{table.name}": Table(
            {
                **{c.name: c.kind.duckdb for c in table.columns},
                EXTRA: "TEXT",
                **(added if table.is_append_only else {}),
            },
            table.key,
            frozenset([*(c.name for c in table.columns if not c.nullable), *added]),
            is_append_only=table.is_append_only,
        )
        for table in TABLES.values()
    }
    for table in query.find_all(exp.Table):
        name = f"{table.db}.{table.name}"
        if table.db and table.db != "source" and name not in catalog:
            model = _load(project() / "models" / table.db / f"{table.name}.sql")
            key = tuple(column.name for grain in model.grains for column in grain.find_all(exp.Column))
            columns = {column: kind.sql("duckdb") for column, kind in (model.columns_to_types or {}).items()}
            valid = _VALID if _VALID[0] in key and _VALID[1] in columns else None
            catalog[name] = Table(columns, key, is_static=True, valid=valid)
    return catalog


def _query(path: Path, where: str = "") -> exp.Query:
    """The query of a model, on the rows that meet `where`, with macros expanded.

    Raises Refused if it depends on when it runs.
    """
    from sqlmesh.core.dialect import MacroVar

    model = _load(path, where)
    for variable in model.query.find_all(MacroVar):
        if variable.name.lower().startswith(_TIMES):
            raise Refused(f"@{variable.name}", variable, "What a row counts as cannot depend on when it is computed.")
    query = model.render_query(optimize=False)
    assert isinstance(query, exp.Query), path
    for table in query.find_all(exp.Table):
        table.set("catalog", None)
    return query


def _is_view(path: Path) -> bool:
    meta = _parsed(path)[0]
    kinds = [p.args["value"].name.upper() for p in meta.expressions if p.name.lower() == "kind"]
    return kinds in ([], ["VIEW"])  # a model is a view unless it says otherwise


def _load(path: Path, where: str = "") -> Any:
    """A model of the project as it is written, with its macros; `where` is one more condition on the rows it reads."""
    from sqlmesh.core.model import load_sql_based_model

    parsed = _parsed(path)
    if where:
        parsed = [_where(part, where) if isinstance(part, exp.Query) else part for part in parsed]
    head = parsed[0]  # signals and audits of the project are not in the registry either, and say nothing of the query
    head.set("expressions", [p for p in head.expressions if p.name.lower() not in ("signals", "audits")])
    return load_sql_based_model(
        parsed, path=path, module_path=project(), dialect="duckdb", macros=_macros(), default_catalog=None
    )


def _where(query: exp.Query, condition: str) -> exp.Query:
    try:
        if not isinstance(query, exp.Select):
            raise Refused("The contract's live_where, of a UNION", query, "Put the UNION into a view, and read that.")
        return query.where(exp.paren(parse_one(condition, dialect="duckdb")))
    except SqlglotError:
        raise Refused(f"The contract's live_where, {condition}", None, "Write one condition in SQL.") from None


def _parsed(path: Path) -> Any:
    from sqlmesh.core.dialect import parse

    return parse(path.read_text(encoding="utf-8"), default_dialect="duckdb")


def _macros() -> Any:
    """SQLMesh's macros and the project's: while models load, these are imported, but not in the registry."""
    from sqlmesh.core import constants
    from sqlmesh.core.macros import macro

    registry = macro.get_registry()
    kept = registry.copy()
    try:
        for name, module in list(sys.modules.items()):
            if name == constants.MACROS or name.startswith(f"{constants.MACROS}."):
                for value in list(vars(module).values()):
                    if callable(value) and getattr(value, constants.SQLMESH_MACRO, None):
                        macro(value.__name__)(value)
        return macro.get_registry().copy()
    finally:
        macro.set_registry(kept)
