"""SQLMesh's cache of loaded models, kept true to what the models are stamped from."""

from __future__ import annotations

from lockstep.changelog import first_hour
from lockstep.durable import durable_replace
from lockstep.figures import read_from
from lockstep.loader import macros_are_imported
from lockstep.project import digest, home, project
from lockstep.schema import SCHEMA_FILE

# Models that are stamped with derived queries, or with what queries say of contracts.
_DERIVED = ("*__each_*", "*models__rebuild__cut*", *(f"*models__ops__{m}*" for m in ("contract", "too_large")))


def drop_if_stale() -> None:
    """Drop what is no longer true of the home's model cache.

    SQLMesh looks at the times of a model's own file, of macros and of config only: a model that was loaded before the
    first change landed would keep its start, a domain added to a contract would not be stamped, and increments would
    stay derived from the query that was before, until some other file is touched.
    """
    macros_are_imported()
    root = project()
    stamped_from = [root / name for name in ("seeds/contracts.csv", "seeds/contract_measures.csv", SCHEMA_FILE)]
    stamped_from += sorted((root / "materializations").glob("*.py"))
    _drop("lockstep.stamp", f"{digest(stamped_from)} {first_hour()}", "*")
    _drop("derived.stamp", read_from(), *_DERIVED)


def _drop(stamp_name: str, made_from: str, *entries: str) -> None:
    """Drop these entries of the cache if they were made from something else."""
    cache = home() / ".cache"
    stamp = cache / stamp_name
    if not stamp.exists() or stamp.read_text() != made_from:
        for path in (path for pattern in entries for path in cache.glob(f"model_definition*/{pattern}")):
            path.unlink()
        durable_replace(stamp, made_from.encode())
