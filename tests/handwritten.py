"""The increments of a domain in a file of their own, for tests that need to change one path alone."""

from __future__ import annotations

from pathlib import Path

from sqlmesh import Context

from lockstep import derived
from lockstep.contracts import load
from lockstep.derive import SignedRows


def write_diffs(project: Path, loaded_project: Context, domain: str) -> Path:
    """Write `models/diffs/<domain>.sql` by the rules of the domain, row by row if there is a model for these.

    Return its path.
    """
    latest = loaded_project.get_model(f"rebuild.latest_{domain}") or loaded_project.get_model(f"rebuild.{domain}")
    query = derived._over_tables(derived._query(latest._path))
    rows = SignedRows(query, derived._catalog(query), {m.name: m.type for m in load()[domain].merged})
    path = project / "models" / "diffs" / f"{domain}.sql"
    path.write_text(
        f"/* Signed rows. */\nMODEL (name diffs.{domain}, kind VIEW, grain (position, diff));\n"
        f"{rows.all().sql('duckdb', pretty=True, comments=False)}\n",
        encoding="utf-8",
    )
    return path
