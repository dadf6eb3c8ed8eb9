"""Where things lie: the data home and the SQLMesh project."""

from __future__ import annotations

import os
from pathlib import Path

from lockstep.errors import LockstepError


def home() -> Path:
    """The data home: LOCKSTEP_HOME, or ./data. Everything a user's data makes lies under it."""
    return Path(os.environ.get("LOCKSTEP_HOME") or "data").resolve()


def project() -> Path:
    """The SQLMesh project: the nearest directory from here upwards with a `config.yaml` and the contracts."""
    here = Path.cwd()
    for directory in (here, *here.parents):
        if (directory / "config.yaml").exists() and (directory / "seeds" / "contracts.csv").exists():
            return directory
    raise LockstepError(f"{here} is not inside a Lockstep project: no config.yaml with seeds/contracts.csv above it.")
