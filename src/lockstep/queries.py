"""What SQLMesh renders and reads from its caches only once.

The models' optimized queries are read from the cache by a run only where it asks for one.
Whenever SQLMesh reads the state, it makes sure of each model's entry in this cache and, without workers, reads every
one of them twice: a third of an hourly run. But a run asks only the models that it computes, for the types of their
columns, and without the cache it renders each of them once more for that: a tenth of a nightly run.

A query that was rendered to load its model is kept. SQLMesh writes the model to a file, because its workers would be
other processes, reads it back without the query, and renders it again: a sixth of the time that loading takes.
"""

from __future__ import annotations

from typing import Any

import sqlmesh.core.snapshot.cache as snapshots
from sqlmesh.core.model import SqlModel
from sqlmesh.core.model.cache import ModelCache, OptimizedQueryCache

_put = ModelCache.put


def render_once() -> None:
    """Have SQLMesh do so in this process, in which it must not fork."""
    snapshots.load_optimized_query = lambda model_and_id: (model_and_id[1], None)
    OptimizedQueryCache.with_optimized_query = _with_optimized_query
    ModelCache.put = _put_and_keep


def _put_and_keep(cache: ModelCache, models: list[Any], name: str, entry_id: str = "") -> bool:
    """Write loaded models to the cache, and put in their place what it has, with their queries.

    The keys of optimized queries differ between a model that was read from a file and one that was not. False has
    SQLMesh go on with these models.
    """
    if _put(cache, models, name, entry_id):
        loaded = [(model, model._query_renderer._cache) for model in models if isinstance(model, SqlModel)]
        models[:] = cache.get(name, entry_id)
        for model, (_, rendered) in zip(models, loaded, strict=True) if loaded else ():
            if rendered:
                model._query_renderer.update_cache(rendered[0])
    return False


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
