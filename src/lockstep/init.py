"""`lockstep init`: a project for a schema of your own, with everything that is the same for every schema."""

from __future__ import annotations

import shutil
from pathlib import Path

from lockstep import template
from lockstep.contracts import MEASURE_COLUMNS, PROMOTION_COLUMNS, REQUIRED_COLUMNS
from lockstep.errors import LockstepError
from lockstep.schema import SCHEMA_FILE

EMPTY_SCHEMA = "-- CREATE TABLE statements of the source tables that figures are made of.\n"


def init(directory: Path, schema: str = EMPTY_SCHEMA) -> list[Path]:
    """Make a project in `directory`, which must be new or empty; returns the files that are to be filled in.

    `schema` is the text of its `source_schema.sql`. Raises LockstepError if there is something in it already.
    """
    if _is_taken(directory):
        raise LockstepError(f"{directory} is there already and not empty. Name a new directory.")
    origin = template.root()
    for file in template.files(origin):
        target = directory / file
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(origin / file, target)
    files = {
        SCHEMA_FILE: schema,
        "seeds/contracts.csv": ",".join(REQUIRED_COLUMNS.split()) + "\n",
        "seeds/contract_measures.csv": ",".join(MEASURE_COLUMNS.split()) + "\n",
    }
    filled_by_commands = {"seeds/promotions.csv": ",".join(PROMOTION_COLUMNS.split()) + "\n"}
    for name, text in (files | filled_by_commands).items():
        path = directory / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    return [directory / name for name in files if schema == EMPTY_SCHEMA or name != SCHEMA_FILE]


def declare(directory: Path, schema: str) -> list[Path]:
    """Make a project with this `source_schema.sql`, or fill in that of a project which has none yet.

    Returns the files that are still to be filled in. A declaration that is there already is never overwritten: raises
    LockstepError if it differs.
    """
    path = directory / SCHEMA_FILE
    if not _is_taken(directory):
        return init(directory, schema)
    if not path.exists():
        raise LockstepError(f"{directory} is there already, not empty and no project. Name a new directory.")
    there = path.read_text(encoding="utf-8")
    if there not in (EMPTY_SCHEMA, schema):
        raise LockstepError(
            f"{path} is there already and declares something else; it was left as it is. To have it written anew, move "
            "it away and give the command again."
        )
    path.write_text(schema, encoding="utf-8")
    return []


def _is_taken(directory: Path) -> bool:
    return directory.exists() and (not directory.is_dir() or any(directory.iterdir()))
