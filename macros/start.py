"""When the models' history begins: with the log. SQLMesh would spend a batch on every stretch of nothing before it.

Here and in the other macros, lockstep's modules are imported where they are used: SQLMesh stores the source of whatever
a macro's module imports from inside the project with every model, and would see a change of model in each change of it.
"""

from __future__ import annotations

from sqlglot import exp
from sqlmesh import macro


@macro()
def log_start(evaluator):
    """The hour before the log's first: `MODEL (start @log_start())`; a log younger than an hour has one to close."""
    from datetime import timedelta

    from lockstep.changelog import first_hour

    return exp.Literal.string(str(first_hour() - timedelta(hours=1)))


@macro()
def log_eve(evaluator):
    """The day before the log's first: the start of daily models; a log younger than a day has a day to close."""
    from datetime import timedelta

    from lockstep.changelog import first_hour

    return exp.Literal.string(f"{first_hour() - timedelta(days=1):%Y-%m-%d}")
