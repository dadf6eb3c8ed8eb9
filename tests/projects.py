"""Copies of the project in which a test may edit files."""

from __future__ import annotations

import csv
import io
import re
import shutil
from collections.abc import Collection
from pathlib import Path

from lockstep.contracts import CONTRACT_COLUMNS, MEASURE_COLUMNS
from lockstep.init import init
from lockstep.schema import SCHEMA_FILE

ROOT = Path(__file__).parents[1]
PARTS = ("audits", "linter", "macros", "materializations", "models", "seeds", "signals")

# A fact whose figures are sums, and one of last rows.
DOMAINS = ("orders", "vehicle_positions")
READ = ("products", "orders", "gps_pings")  # what they read, and what the contract of orders names
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


def schema_of(tables: Collection[str]) -> str:
    """The declarations of these source tables: every table is stamped with models that a run has to go through."""
    statements = (ROOT / SCHEMA_FILE).read_text().split("\n\n")
    found = {name[1]: s for s in statements if (name := re.search(r"^CREATE TABLE (\w+)", s, re.MULTILINE))}
    return "\n\n".join(found[table] for table in tables)


def project_of_two_domains(path: Path, tables: Collection[str] = READ) -> Path:
    """Everything that is stamped from the contracts, for `DOMAINS`: a run of it takes a third of the time.

    It declares `tables`, those that `DOMAINS` read among them.
    """
    init(path, schema_of(tables))
    for name in _OWN:
        (path / name).parent.mkdir(exist_ok=True)
        shutil.copy(ROOT / name, path / name)
    for name in ("contracts", "contract_measures", "promotions"):
        header, *lines = (ROOT / "seeds" / f"{name}.csv").read_text().splitlines(keepends=True)
        kept = [line for line in lines if line.split(",")[0] in DOMAINS]
        (path / "seeds" / f"{name}.csv").write_text("".join([header, *kept]))
    return path


def add_in_full(seeds: Path, name: str, lines: str) -> None:
    """Add rows with every column to a contract file, whatever columns it has: it then has all of them."""
    columns = {"contracts": CONTRACT_COLUMNS, "contract_measures": MEASURE_COLUMNS}[name].split()
    with (seeds / f"{name}.csv").open(newline="", encoding="utf-8") as file:
        rows = [*csv.DictReader(file), *csv.DictReader(io.StringIO(lines), columns)]
    with (seeds / f"{name}.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, columns, restval="", lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


def in_full(project: Path) -> None:
    """Write the contracts of the project's domains as they are if nothing of them is derived."""
    named = {line.split(",")[0] for line in (project / "seeds" / "contracts.csv").read_text().splitlines()}
    full = ROOT / "tests" / "fixtures" / "contracts_in_full"
    for name in ("contracts", "contract_measures"):
        lines = (full / f"{name}.csv").read_text().splitlines(keepends=True)
        (project / "seeds" / f"{name}.csv").write_text("".join(x for x in lines if x.split(",")[0] in named))
