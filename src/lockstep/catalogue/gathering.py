"""What the catalogue says of each model and each fact."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from lockstep import operate, warehouse
from lockstep.catalogue.columns import Column, Lineage, lineage_of
from lockstep.catalogue.drawing import Drawing, draw
from lockstep.catalogue.sample_queries import Query, queries_of
from lockstep.contracts import Contract, planned_contracts
from lockstep.errors import Busy
from lockstep.lock import held, holder
from lockstep.project import project
from lockstep.reconcile import planned
from lockstep.warehouse import Row

# The schemas in the order in which people look for them, and what each holds.
SCHEMAS = {
    "mart": "What analysts query.",
    "rebuild": "Each fact's query as written, over the rows at the day's cut: the authority.",
    "live": "The figures of this moment, derived from the same queries.",
    "verified": "The last rebuilds whose receipt passed: what live figures stand on.",
    "dims": "Versions of what changes slowly, as of event time.",
    "source": "The rows of each source table at the cut where the rebuild reads them.",
    "changes": "The change log as it landed, one model per source table.",
    "signed": "Each change as its images: -1 the one before, +1 the one after.",
    "diffs": "What each change takes away from a fact, and what it adds.",
    "hourly": "The sums of these for each sealed hour of the log.",
    "cells": "What is kept as sums of a fact that is finished when it is read.",
    "tail": "What has changed since the last folded hour.",
    "state": "Tables as of the last folded hour, for facts that join them or are recomputed.",
    "reconcile": "Comparisons of the two paths, and the stored receipts.",
    "checkpoints": "The rows of source tables at the cuts of the last nights.",
    "chain": "Whether the images of each table follow from each other without a gap.",
    "ops": "Contracts, and what is served and why.",
    "seeds": "Tables that are kept as files in the project.",
}


@dataclass(frozen=True)
class ColumnOf:
    """`reads`: the columns that it is computed from; `origins`: those where that begins."""

    name: str
    type: str
    comment: str
    is_in_grain: bool
    reads: list[Column]
    origins: list[Column]


@dataclass(frozen=True)
class Model:
    """`facts`: the facts that it belongs to, or for a mart those that it shows."""

    name: str
    schema: str
    description: str
    owner: str
    grain: list[str]
    kind: str
    cron: str
    file: str
    columns: list[ColumnOf]
    parents: list[str]
    children: list[str]
    facts: list[Fact]
    drawing: Drawing
    queries: list[Query]

    @property
    def sentence(self) -> str:
        """The first sentence of the description."""
        return re.split(r"(?<=[.!?])\s", self.description, maxsplit=1)[0]


@dataclass(frozen=True)
class Fact:
    """A fact's contract, how it is served (a row of `ops.serving`) and its last receipt, if there is one."""

    contract: Contract
    serving: Row
    receipt: Row | None

    @property
    def name(self) -> str:
        return self.contract.domain


@dataclass(frozen=True)
class Catalogue:
    """`at`: when it was gathered, in UTC. `problem`: why nothing is known of how facts stand, if so."""

    project: str
    at: datetime
    models: list[Model]
    facts: list[Fact]
    problem: str | None


def gathered(home: Path, progress: Callable[[int, int], None]) -> Catalogue:
    """Read what the catalogue shows.

    State and warehouse are closed before the columns are traced, which takes seconds, so that a run need not wait.
    """
    warehouse.require(home)
    if holder(home / "warehouse.lock") is not None:
        raise Busy(held(home / "warehouse.lock"))
    with planned() as found:
        models = {name: found.snapshot(name).model for name in found.names()}
        parents = {name: sorted(found.parents(name) & models.keys()) for name in models}
    with warehouse.reader(home) as connection:
        warehouse.require_planned(connection)
        contracts = planned_contracts(connection)
        receipts = {receipt["domain"]: receipt for receipt in operate.last_receipts(home)}
    status = operate.status(home)
    serving = {row["domain"]: row for row in status["domains"]}
    facts = {name: Fact(c, serving.get(name, {}), receipts.get(name)) for name, c in contracts.items()}

    lineage = lineage_of(models, progress)
    of = {name: _facts_of(name, parents, facts) for name in models}
    pages = [_model(name, model, models, parents, of[name], lineage) for name, model in models.items()]
    now = datetime.now(UTC).replace(tzinfo=None, microsecond=0)
    return Catalogue(project().name, now, pages, list(facts.values()), status["problem"])


def _facts_of(model: str, parents: Mapping[str, list[str]], facts: Mapping[str, Fact]) -> list[Fact]:
    schema, name = model.split(".", 1)
    if schema == "mart":
        marts = [model]
        for mart in marts:
            marts += [parent for parent in parents[mart] if parent.startswith("mart.") and parent not in marts]
        read = {parent for mart in marts for parent in parents[mart]}
        return [fact for fact in facts.values() if read & {f"live.{fact.name}", f"verified.{fact.name}"}]
    if schema in ("ops", "seeds", "source", "changes", "signed", "checkpoints", "chain", "dims"):
        return []
    named = [f for f in facts if name == f or (schema in ("reconcile", "state") and name.startswith(f"{f}_"))]
    return [facts[max(named, key=len)]] if named else []


def _model(
    name: str,
    model: Any,
    models: Mapping[str, Any],
    parents: Mapping[str, list[str]],
    facts: list[Fact],
    lineage: Lineage,
) -> Model:
    types = {c: t.sql("duckdb") for c, t in (model.columns_to_types or {}).items()}
    grain = [column for expression in model.grains for column in _names(expression)]
    measures = {m.name: m.description for fact in facts for m in fact.contract.all_measures}
    columns = [
        ColumnOf(
            column,
            kind,
            _comment((name, column), models, lineage) or measures.get(column, ""),
            column in grain,
            lineage.direct.get((name, column), []),
            lineage.origins((name, column)),
        )
        for column, kind in types.items()
    ]
    children = [other for other in models if name in parents[other]]
    schema = name.split(".", 1)[0]
    path = model._path
    return Model(
        name,
        schema,
        " ".join((model.description or "").split()),
        model.owner or "",
        grain,
        str(model.kind.name).replace("_", " ").lower(),
        model.cron,
        str(path.relative_to(project())) if path and path.is_relative_to(project()) else "",
        columns,
        parents[name],
        children,
        facts,
        draw(name, list(types), parents[name], children, lineage),
        queries_of(name, types, grain, [fact.contract for fact in facts]) if schema == "mart" else [],
    )


def _comment(column: Column, models: Mapping[str, Any], lineage: Lineage) -> str:
    """A column's own comment, else that of the first column with its name that it is computed from."""
    pending, seen = [column], {column}
    while pending:
        model, name = pending.pop(0)
        if said := models[model].column_descriptions.get(name):
            return str(said)
        pending += [read for read in lineage.direct.get((model, name), []) if read[1] == name and read not in seen]
        seen.update(pending)
    return ""


def _names(expression: Any) -> list[str]:
    from sqlglot import exp

    return [column.name for column in expression.find_all(exp.Column)]
