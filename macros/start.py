"""When the models' history begins: with the log, because SQLMesh would spend a batch on every stretch of nothing before it.

Here and in the other macros, lockstep's modules are imported where they are used: SQLMesh stores the source of whatever a
macro's module imports from inside the project with every model, and would see a change of model in each change of it.
"""

from __future__ import annotations

from sqlglot import exp
from sqlmesh import macro


@macro()
def log_start(evaluator):
    """The first hour of the change log: `MODEL (start @log_start())`. Midnight of today while there is no log."""
    from lockstep.changelog import first_hour

    return exp.Literal.string(str(first_hour()))


@macro()
def log_eve(evaluator):
    """The day before the log's first: the start of daily models, so that a log younger than a day has a day to close."""
    from datetime import timedelta

    from lockstep.changelog import first_hour

    return exp.Literal.string(f"{first_hour() - timedelta(days=1):%Y-%m-%d}")
