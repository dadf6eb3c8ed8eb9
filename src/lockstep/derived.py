"""Domains whose increments are derived: each rule about a row is written once, in `models/rebuild/latest_<domain>.sql`.

A domain with a file of its own in `models/diffs` is not derived, nor one with measures that are not sums.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from sqlglot import exp

from lockstep.contracts import Contract, load
from lockstep.derive import Refused, signed_rows
from lockstep.errors import LockstepError
from lockstep.project import project

_TIMES = ("start_", "end_", "execution_", "latest_")  # SQLMesh's variables for the interval that it computes


def derived_domains() -> list[Contract]:
    """The contracts of the domains whose increments are derived."""
    models = project() / "models"
    return [
        contract
        for contract in load().values()
        if not (models / "diffs" / f"{contract.domain}.sql").exists()
        and (models / "rebuild" / f"latest_{contract.domain}.sql").exists()
        and all(m.merge == "sum" for m in contract.merged)
    ]


def diffs_of(contract: Contract) -> str:
    """The query for the signed rows of a domain. Raises LockstepError, naming the file, if there is none."""
    path = project() / "models" / "rebuild" / f"latest_{contract.domain}.sql"
    try:
        rows = signed_rows(_query(path), _view, {m.name: m.type for m in contract.merged})
    except Refused as e:
        raise LockstepError(
            f"{path.relative_to(project())}: {e} Or write models/diffs/{contract.domain}.sql by hand."
        ) from None
    return rows.sql("duckdb")


def _view(name: str) -> exp.Query | None:
    """The query of a view of the project; None for a seed or a view over seeds. Raises Refused for a table."""
    schema, _, short = name.partition(".")
    if schema == "seeds":
        return None
    path = project() / "models" / schema / f"{short}.sql"
    if not path.exists() or not _is_view(path):
        raise Refused(f"It reads {name}", None, "Read tables of source, seeds, and views over these.")
    query = _query(path)
    ctes = {cte.alias for cte in query.find_all(exp.CTE)}
    read = {f"{t.db}.{t.name}" for t in query.find_all(exp.Table) if t.db or t.name not in ctes}
    return None if all(not n.startswith("source.") and _view(n) is None for n in read) else query


def _query(path: Path) -> exp.Query:
    """The query of a model with its macros expanded. Raises Refused if it depends on when it runs."""
    from sqlmesh.core.dialect import MacroVar

    model = _load(path)
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


def _load(path: Path) -> Any:
    """A model of the project as it is written, with its macros."""
    from sqlmesh.core.model import load_sql_based_model

    return load_sql_based_model(
        _parsed(path), path=path, module_path=project(), dialect="duckdb", macros=_macros(), default_catalog=None
    )


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
