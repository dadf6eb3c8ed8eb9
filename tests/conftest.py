"""What every test folder needs: assertions in helpers that explain themselves, and shared homes.

SQLMesh adds to sqlglot's dialects when it is imported, and sqlglot keeps a dialect as it was when it first wrote SQL in
it. A command imports SQLMesh first or not at all; here a test of what writes SQL may come before one of SQLMesh.
"""

import gc
import os
import sys

import pytest
from hypothesis import HealthCheck, settings

os.environ.setdefault("SQLMESH__DISABLE_ANONYMIZED_ANALYTICS", "true")  # here and in the processes that tests start
# The days in the tests are in 2026: none of their commit times may be ahead of the clock, whatever the machine's is.
os.environ.setdefault("LOCKSTEP_CLOCK", "2027-01-01T00:00:00")
# There are as many workers as cores: more threads only make the statements of DuckDB dearer, by a quarter. No other
# setting reaches the processes that tests start too. `make nightly` lets DuckDB have all cores.
os.environ.setdefault("SLURM_CPUS_ON_NODE", "1")
import sqlmesh  # noqa: F401

import one_cache  # noqa: F401
from homes import shared_home
from project import loaded_project

__all__ = ["loaded_project", "shared_home"]  # fixtures

pytest.register_assert_rewrite("replay")

# How long an example takes, or is made, depends on what else the machine does.
settings.register_profile("any machine", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("any machine")

# Where the environment forbids compiled files, each process would compile the project, and pytest every test file.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
sys.dont_write_bytecode = False

# A run makes and drops millions of syntax nodes beside everything that was imported: by default, looking for cycles
# among them takes a tenth of it.
gc.freeze()
gc.set_threshold(1_000_000, 20, 20)
