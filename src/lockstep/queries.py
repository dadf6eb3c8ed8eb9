"""The models' optimized queries, read from SQLMesh's cache by a run only where it asks for one.

Whenever SQLMesh reads the state, it makes sure of each model's entry in this cache and, without workers, reads every
one of them twice: a third of an hourly run. But a run asks only the models that it computes, for the types of their
columns, and without the cache it renders each of them once more for that: a tenth of a nightly run.
"""

from __future__ import annotations

from typing import Any

import sqlmesh.core.snapshot.cache as snapshots
from sqlmesh.core.model import SqlModel
from sqlmesh.core.model.cache import OptimizedQueryCache


def read_when_asked() -> None:
    """Have SQLMesh do so in this process."""
    snapshots.load_optimized_query = lambda model_and_id: (model_and_id[1], None)
    OptimizedQueryCache.with_optimized_query = _with_optimized_query


def _with_optimized_query(cache: OptimizedQueryCache, model: Any, name: str | None = None) -> bool:
    if isinstance(model, SqlModel):
        renderer = model._query_renderer

        def render(*arguments: Any, **keywords: Any) -> Any:
            if not arguments and not keywords:  # the query itself, not that of an interval
                del renderer.render
                cache.get_or_create_entry(model)
            return type(renderer).render(renderer, *arguments, **keywords)

        renderer.render = render
    return False
