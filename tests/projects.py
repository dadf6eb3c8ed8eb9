"""Copies of the project in which a test may edit files."""

from __future__ import annotations

import shutil
from pathlib import Path

from lockstep.init import init

ROOT = Path(__file__).parents[1]
PARTS = ("audits", "linter", "macros", "materializations", "models", "seeds", "signals")

# A fact whose figures are sums, and one of last rows.
DOMAINS = ("orders", "vehicle_positions")
_OWN = (
    "macros/rules.py",
    "seeds/order_status_rules.csv",
    *(f"models/rebuild/{name}.sql" for name in (*DOMAINS, "latest_orders")),
    "models/dims/order_status_rules.sql",
    "models/seeds/order_status_rules.sql",
)


def whole_project(path: Path) -> Path:
    path.mkdir(parents=True, exist_ok=True)
    for file in (*ROOT.glob("*.yaml"), *ROOT.glob("*.sql")):
        shutil.copy2(file, path)
    for part in PARTS:
        shutil.copytree(ROOT / part, path / part, ignore=shutil.ignore_patterns("__pycache__"))
    return path


def project_of_two_domains(path: Path) -> Path:
    """Everything that is stamped from the contracts, for `DOMAINS`: a run of it takes a third of the time."""
    init(path, (ROOT / "source_schema.sql").read_text())
    for name in _OWN:
        (path / name).parent.mkdir(exist_ok=True)
        shutil.copy(ROOT / name, path / name)
    for name in ("contracts", "contract_measures", "promotions"):
        header, *lines = (ROOT / "seeds" / f"{name}.csv").read_text().splitlines(keepends=True)
        kept = [line for line in lines if line.split(",")[0] in DOMAINS]
        (path / "seeds" / f"{name}.csv").write_text("".join([header, *kept]))
    return path
