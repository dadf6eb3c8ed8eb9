"""Assertions in the helpers shared by several test files explain themselves as those in the tests do.

SQLMesh adds to sqlglot's dialects when it is imported, and sqlglot keeps a dialect as it was when it first wrote SQL in
it. A command imports SQLMesh first or not at all; here a test of what writes SQL may come before one of SQLMesh.
"""

import os

import pytest
import sqlmesh  # noqa: F401

pytest.register_assert_rewrite("replay")

# The days that tests tell of are in 2026: no commit time of them may be ahead of the clock, whatever the machine's is.
os.environ.setdefault("LOCKSTEP_CLOCK", "2027-01-01T00:00:00")
