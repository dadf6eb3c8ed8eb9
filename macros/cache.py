"""Runs while SQLMesh loads the macros, just before it loads the models, from its cache if it may."""

from lockstep.modelcache import drop_if_stale

drop_if_stale()
