"""Runs while SQLMesh loads the macros, just before it loads the models, from its cache if it may."""

import lockstep.onewriter  # noqa: F401 - from here on SQLMesh forks no workers
from lockstep.errors import LockstepError
from lockstep.modelcache import drop_if_stale

try:
    drop_if_stale()
except LockstepError as e:
    raise SystemExit(f"Error: {e}") from None
