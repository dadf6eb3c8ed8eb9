"""Which columns each column is computed from, as SQLMesh rendered the planned queries and sqlglot traces them.

A column that only a join, a filter or a group names is not traced: the rows depend on it, the value does not.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

Column = tuple[str, str]  # a model, as `schema.model`, and its column


@dataclass
class Lineage:
    """`direct` has the columns of other models that a column's expression reads, sorted. A column that reads none, such
    as one that is read from the change log's files, is not in it."""

    direct: dict[Column, list[Column]] = field(default_factory=dict)
    _origins: dict[Column, list[Column]] = field(default_factory=dict)

    def origins(self, column: Column) -> list[Column]:
        """The columns that a column comes from in the end; empty if it reads none itself."""
        if column not in self._origins:
            found: set[Column] = set()
            for read in self.direct.get(column, []):
                found.update(self.origins(read) or [read])
            self._origins[column] = sorted(found)
        return self._origins[column]


def lineage_of(models: dict[str, Any], progress: Callable[[int, int], None]) -> Lineage:
    """Trace every column of these SQLMesh models, by name as `schema.model`.

    `progress` is called after each with the number of models done and the number of all.
    """
    found = Lineage()
    for done, (name, model) in enumerate(models.items(), 1):
        if not model.kind.is_seed:
            for column, read in reads_of(model.render_query_or_raise(), model.mapping_schema).items():
                found.direct[name, column] = sorted(r for r in read if r[0] in models)
        progress(done, len(models))
    found.direct = {column: read for column, read in found.direct.items() if read}
    return found


def reads_of(query: Any, schema: dict[str, Any] | None = None) -> dict[str, set[Column]]:
    """The columns of tables that each column of a query is computed from. `schema`: the tables' columns and types."""
    from sqlglot import exp
    from sqlglot.lineage import lineage

    found: dict[str, set[Column]] = {}
    for column, root in lineage(None, query, schema=schema, dialect="duckdb", trim_selects=False).items():
        pending, seen, read = [root], {id(root)}, set()
        while pending:
            node = pending.pop()
            if isinstance(node.expression, exp.Table) and node.expression.name:
                table = node.expression
                read.add((f"{table.db}.{table.name}", exp.to_column(node.name, dialect="duckdb").name))
            pending += [n for n in node.downstream if id(n) not in seen]
            seen.update(id(n) for n in node.downstream)
        found[column] = read
    return found
