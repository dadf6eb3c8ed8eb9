"""Where things lie: the data home and the SQLMesh project."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterable
from pathlib import Path

from lockstep.errors import LockstepError


def home() -> Path:
    """The data home: LOCKSTEP_HOME, or ./data. Everything a user's data makes lies under it.

    Raises LockstepError if DuckDB could not read the log there: it reads it by a pattern, searches for it in a list of
    paths that commas separate, and SQLMesh quotes no path.
    """
    path = Path(os.environ.get("LOCKSTEP_HOME") or "data").resolve()
    found = re.search(r"[',*?\[\]\\\x00-\x1f\x7f]", str(path))
    if found:
        raise LockstepError(
            f"{str(path)!r} cannot be the data home: DuckDB cannot read a log that has {found[0]!r} in its path. Set "
            "LOCKSTEP_HOME to one without ' , * ? [ ] \\ and control characters; spaces and accents are fine."
        )
    return path


def project() -> Path:
    """The SQLMesh project: the nearest directory from here upwards with a `config.yaml` and the contracts."""
    here = Path.cwd()
    for directory in (here, *here.parents):
        if (directory / "config.yaml").exists() and (directory / "seeds" / "contracts.csv").exists():
            return directory
    raise LockstepError(f"{here} is not inside a Lockstep project: no config.yaml with seeds/contracts.csv above it.")


def digest(files: Iterable[Path]) -> str:
    """A digest of files of the project, with their names."""
    found, root = hashlib.sha256(), project()
    for path in files:
        found.update(f"\0{path.relative_to(root)}\0".encode() + path.read_bytes())
    return found.hexdigest()
