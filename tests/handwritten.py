"""The increments of a domain in a file of their own, for tests that need to change one path alone."""

from __future__ import annotations

from pathlib import Path

from sqlmesh import Context


def write_diffs(project: Path, loaded_project: Context, domain: str) -> Path:
    """Write `models/diffs/<domain>.sql` with what is derived for the domain; return its path."""
    query = loaded_project.get_model(f"diffs.{domain}").render_query_or_raise(optimize=False)
    path = project / "models" / "diffs" / f"{domain}.sql"
    path.write_text(
        f"/* Signed rows. */\nMODEL (name diffs.{domain}, kind VIEW, grain (position, diff));\n"
        f"{query.sql('duckdb', pretty=True, comments=False)}\n",
        encoding="utf-8",
    )
    return path
