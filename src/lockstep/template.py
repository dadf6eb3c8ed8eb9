"""The files of a new project that are the same for every schema: from the wheel, or from a checkout."""

from __future__ import annotations

from pathlib import Path

# The rest of models/, macros/rules.py and the seeds belong to the example company.
COPIED = (
    "config.yaml",
    "audits",
    "linter",
    "macros",
    "materializations",
    "models/cells",
    "models/chain",
    "models/changes",
    "models/checkpoints",
    "models/diffs/each_derived_domain.sql",
    "models/hourly",
    "models/live",
    "models/mart/each_domain.sql",
    "models/ops",
    "models/rebuild/cut.sql",
    "models/reconcile",
    "models/seeds/promotions.sql",
    "models/signed",
    "models/source",
    "models/state",
    "models/tail",
    "models/verified/each_domain.sql",
    "models/verified/each_finished_domain.sql",
    "signals",
)
LEFT_OUT = "macros/rules.py"


def root() -> Path:
    """The folder that holds these files: inside the package if it came from a wheel, else the checkout."""
    packaged = Path(__file__).parent / "new_project"
    return packaged if packaged.is_dir() else Path(__file__).parents[2]


def files(root: Path) -> list[Path]:
    """These files, relative to `root`. `hatch_build.py` calls this too, where nothing but Python is installed."""
    found = []
    for name in COPIED:
        path = root / name
        found += [path] if path.is_file() else [file for file in path.rglob("*") if file.is_file()]
    relative = (file.relative_to(root) for file in found if "__pycache__" not in file.parts)
    return sorted(file for file in relative if file != Path(LEFT_OUT))
