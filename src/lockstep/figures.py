"""What a fact's query says of its contract: the grain, the measures and the tables.

To read a query takes SQLMesh, whose import alone takes a second. So what was read is kept in a file of the home until
something changes that it was read from.
"""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from lockstep.durable import durable_replace
from lockstep.errors import LockstepError
from lockstep.project import digest, home, project
from lockstep.schema import TABLES

Declared = Mapping[str, tuple[str, str]]  # what contract_measures.csv says of a measure: merge and unit; "": nothing


@dataclass(frozen=True)
class Figures:
    """What a fact's query gives.

    `measures`: each with how it merges, its unit, and the comment of its column. `tables` are those of the source that
    change it. `because`: why its measures are not sums; None if they are, or if the contract says how they merge.
    """

    grain: tuple[str, ...]
    measures: dict[str, tuple[str, str, str]]
    tables: tuple[str, ...]
    because: str | None = None


class Queries:
    """What the queries of the project give, each read when it is asked for, or kept from before."""

    def figures(self, domain: str, declared: Declared) -> Figures:
        """What `models/rebuild/<domain>.sql` gives. Raises LockstepError, naming the file, if it does not tell."""
        key = json.dumps([domain, sorted(declared.items())])
        found = self._kept.get(key)
        if found is None:
            found = self._kept[key] = _read(domain, declared)
            content = json.dumps({"read_from": self._read_from, "facts": self._kept}).encode()
            with suppress(OSError):  # the file only saves time
                durable_replace(self._path, content)
        if "refused" in found:
            raise LockstepError(found["refused"])
        measures = {name: (merge, unit, comment) for name, (merge, unit, comment) in found["measures"].items()}
        return Figures(tuple(found["grain"]), measures, tuple(found["tables"]), found["because"])

    @functools.cached_property
    def _kept(self) -> dict[str, Any]:
        """What the file has, if it was read from what there is now."""
        try:
            kept = json.loads(self._path.read_bytes())
            return dict(kept["facts"]) if kept["read_from"] == self._read_from else {}
        except (OSError, ValueError, KeyError, TypeError):
            return {}

    @functools.cached_property
    def _read_from(self) -> str:
        return read_from()

    @functools.cached_property
    def _path(self) -> Path:
        return home() / ".cache" / "contracts.json"


def _read(domain: str, declared: Declared) -> dict[str, Any]:
    path = project() / "models" / "rebuild" / f"{domain}.sql"
    if not path.exists():
        raise LockstepError(f"{path} is missing: write the fact's query first. docs/your-own-tables.md shows one.")
    try:
        from lockstep.derived import figures_of

        return asdict(figures_of(domain, declared))
    except LockstepError as e:
        return {"refused": str(e)}
    except (Exception, SystemExit) as e:  # of SQLMesh, or of a macro
        raise LockstepError(f"{path} cannot be read: {str(e).removeprefix('Error: ')}") from e


def read_from() -> str:
    """A digest of all that a query is read with: models, macros, the declaration, and the code that reads them."""
    root = project()
    files = [*(root / "models").rglob("*.sql"), *(root / "macros").rglob("*.py"), root / "config.yaml"]
    tables = [
        (t.name, t.key, t.is_append_only, [(c.name, c.kind.duckdb, c.nullable) for c in t.columns])
        for t in TABLES.values()
    ]
    return f"{digest(sorted(files))} {hashlib.sha256(repr(tables).encode()).hexdigest()} {_code()}"


@functools.cache
def _code() -> str:
    """A digest of the code that derives: a later version may derive something else."""
    here = Path(__file__).parent
    files = [Path(__file__), here / "derived.py", *sorted((here / "derive").glob("*.py"))]
    return hashlib.sha256(b"\0".join(path.read_bytes() for path in files)).hexdigest()
