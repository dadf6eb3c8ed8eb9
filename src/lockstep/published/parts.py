"""What a publication is made with, once each."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from lockstep.contracts import Contract
from lockstep.published.cells import Cells
from lockstep.published.cuts import Cuts
from lockstep.published.file import File
from lockstep.published.log import Log
from lockstep.published.models import Models
from lockstep.published.serving import Serving


@dataclass
class Parts:
    file: File
    models: Models
    cuts: Cuts
    log: Log
    cells: Cells
    serving: Serving
    contracts: Mapping[str, Contract]
