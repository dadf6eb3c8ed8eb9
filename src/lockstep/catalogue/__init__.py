"""The project's catalogue: pages of HTML that need nothing but themselves, of the models as they were planned last.

`gathered` reads SQLMesh's state, the warehouse and the receipts, and lets go of them; `written` makes the pages.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from lockstep.catalogue.gathering import gathered
from lockstep.catalogue.writing import INDEX, written


@dataclass(frozen=True)
class Written:
    """What was written. `index` is the page to open."""

    index: Path
    models: int
    facts: int


def write(home: Path, out: Path | None = None, progress: Callable[[int, int], None] = lambda *_: None) -> Written:
    """Write the catalogue of a home to `out`, by default `<home>/docs`.

    `progress` is called with the number of models traced so far and the number of all.
    Raises LockstepError if nothing is planned yet, and if `out` has an index.html that is not a catalogue's; Busy while
    a run has the warehouse open.
    """
    directory = out or home / "docs"
    catalogue = gathered(home, progress)
    written(catalogue, directory)
    return Written(directory / INDEX, len(catalogue.models), len(catalogue.facts))
