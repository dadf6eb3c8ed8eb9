"""SQLMesh's cache of loaded models, kept true to what the models are stamped from."""

from __future__ import annotations

import hashlib
import shutil

from lockstep.changelog import first_hour
from lockstep.durable import durable_replace
from lockstep.project import home, project
from lockstep.schema import SCHEMA_FILE


def drop_if_stale() -> None:
    """Drop the home's model cache if a contract, the schema, a materialization or the first hour is not as it was.

    SQLMesh looks at the times of models, macros and config only: a model that was loaded before the first change
    landed would keep its start, and a domain added to a contract would not be stamped, until some file is touched.
    """
    digest = hashlib.sha256(str(first_hour()).encode())
    for name in ("seeds/contracts.csv", "seeds/contract_measures.csv", SCHEMA_FILE):
        digest.update((project() / name).read_bytes())
    for path in sorted((project() / "materializations").glob("*.py")):
        digest.update(path.read_bytes())
    cache = home() / ".cache"
    stamp = cache / "lockstep.stamp"
    if not stamp.exists() or stamp.read_text() != digest.hexdigest():
        for directory in cache.glob("model_definition*"):
            shutil.rmtree(directory)
        durable_replace(stamp, digest.hexdigest().encode())
