"""SQLMesh's cache of loaded models, kept true to what the models are stamped from."""

from __future__ import annotations

import hashlib
from pathlib import Path

from lockstep import derive, derived
from lockstep.changelog import first_hour
from lockstep.derived import digest_of_models
from lockstep.durable import durable_replace
from lockstep.project import digest, home, project
from lockstep.schema import SCHEMA_FILE

# Schemas with models that are stamped with derived queries, or with what these say of measures.
_DERIVED = ("cells", "diffs", "hourly", "live", "mart", "reconcile", "state", "tail", "verified")


def drop_if_stale() -> None:
    """Drop what is no longer true of the home's model cache.

    SQLMesh looks at the times of a model's own file, of macros and of config only: a model that was loaded before the
    first change landed would keep its start, a domain added to a contract would not be stamped, and increments would
    stay derived from the query that was before, until some other file is touched.
    """
    root = project()
    stamped_from = [root / name for name in ("seeds/contracts.csv", "seeds/contract_measures.csv", SCHEMA_FILE)]
    stamped_from += sorted((root / "materializations").glob("*.py"))
    _drop("lockstep.stamp", f"{digest(stamped_from)} {first_hour()}", "*")
    entries = (f"*models__{schema}__each_*" for schema in _DERIVED)
    _drop("derived.stamp", f"{digest_of_models()} {_compiler()}", *entries, "*models__ops__too_large*")


def _compiler() -> str:
    """A digest of what derives queries: a later version may derive others."""
    files = [Path(derived.__file__), *sorted(Path(derive.__file__).parent.glob("*.py"))]
    return hashlib.sha256(b"\0".join(path.read_bytes() for path in files)).hexdigest()


def _drop(stamp_name: str, made_from: str, *entries: str) -> None:
    """Drop these entries of the cache if they were made from something else."""
    cache = home() / ".cache"
    stamp = cache / stamp_name
    if not stamp.exists() or stamp.read_text() != made_from:
        for path in (path for pattern in entries for path in cache.glob(f"model_definition*/{pattern}")):
            path.unlink()
        durable_replace(stamp, made_from.encode())
