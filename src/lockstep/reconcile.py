"""A receipt on demand: the rebuild at any sealed hour against the increments up to it.

Nothing of it is computed here: the query is that of the planned model `reconcile.<domain>_receipts`, with whatever
depends on the day's cut expanded into it and `rebuild.cut` replaced by the wanted cut. The receipt is stored where the
nightly ones are, so `ops.serving` counts it as evidence.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from lockstep import warehouse
from lockstep.changelog import ChangeLog
from lockstep.contracts import Contract, load
from lockstep.errors import LockstepError
from lockstep.lock import exclusive
from lockstep.project import project
from lockstep.receipts import archive, numbered
from lockstep.warehouse import Row

_CUT = "rebuild.cut"


@dataclass(frozen=True)
class Reconciled:
    """A receipt as it was stored, and, if it failed, the first cells that differ by more than the contract allows."""

    receipt: Row
    cells: list[Row]

    @property
    def passed(self) -> bool:
        return bool(self.receipt["verdict"] == "passed")


def chosen(domains: Iterable[str]) -> list[Contract]:
    """The contracts of these domains, or of all if none is named. Raises LockstepError on an unknown name."""
    contracts = load()
    names = list(dict.fromkeys(domains)) or list(contracts)
    for name in names:
        if name not in contracts:
            raise LockstepError(f"There is no domain {name}. The contracts have: {', '.join(contracts)}.")
    return [contracts[name] for name in names]


def reconcile(home: Path, domains: Iterable[str] = (), at: datetime | None = None, limit: int = 20) -> list[Reconciled]:
    """Compare the paths of `domains` (all if none is named) at the cut `at`, and store a receipt each.

    `at` is a full hour (UTC); None is the last one that is sealed and folded, for each domain its own. A failed receipt
    does not raise; at most `limit` of its cells are returned. Takes the lock of the runs. Raises LockstepError if the
    hour is not sealed, not folded or before the log, or if an audit has stopped a rebuild at or before that cut: the
    audit knows what a comparison cannot see, and a receipt would vouch for it. Then no receipt at all is stored.
    """
    contracts = chosen(domains)
    warehouse.require(home)
    with exclusive(home / "warehouse.lock", "reconciling on demand"):
        return take(home, contracts, at, limit)


def take(home: Path, contracts: Iterable[Contract], at: datetime | None = None, limit: int = 20) -> list[Reconciled]:
    """As `reconcile`, for a caller that holds the lock of the runs."""
    watermark = ChangeLog(home).watermark()
    with planned() as models:
        cuts = {}
        for contract in contracts:
            sealed = watermark.sealed_until(contract.sources)
            folded = models.folded_until("hourly.log" if contract.is_recomputed else f"hourly.{contract.domain}")
            cuts[contract.domain] = _cut(contract.domain, at, watermark.started_at, sealed, folded)
        with warehouse.writer(home) as connection:
            for domain, cut in cuts.items():
                if _is_stopped(connection, models, domain, cut):
                    raise LockstepError(
                        f"{domain}: an audit stopped the rebuild at the cut {cut} before its receipt. `lockstep run` "
                        "names the audit, and takes the receipt once it passes."
                    )
            results = [_reconcile(connection, models, domain, cut, limit) for domain, cut in cuts.items()]
            archive(home, lambda query: connection.execute(query).fetchall())
            return results


def _reconcile(connection: Any, models: Models, domain: str, cut: datetime, limit: int) -> Reconciled:
    receipts = f"reconcile.{domain}_receipts"
    table = models.table(receipts)
    query = numbered(models.query(receipts, cut), table, "sequence").sql("duckdb")
    [receipt] = warehouse.rows(connection, f"INSERT INTO {table} BY NAME {query} RETURNING *")
    cells = []
    if receipt["verdict"] == "failed":
        cells = warehouse.rows(
            connection,
            f"SELECT * FROM ({models.query(f'reconcile.{domain}_cells', cut).sql('duckdb')}) AS cells "
            f"WHERE NOT class IN ('identical', 'tolerated') ORDER BY ALL LIMIT {limit}",
        )
    return Reconciled(receipt, cells)


def _cut(
    domain: str, at: datetime | None, started: datetime | None, sealed: datetime | None, folded: datetime | None
) -> datetime:
    if started is None or sealed is None or folded is None or min(sealed, folded) <= started:
        raise LockstepError(f"{domain}: no hour is sealed and folded yet. `lockstep run` folds those that are sealed.")
    if at is None:
        return min(sealed, folded)
    if at != at.replace(minute=0, second=0, microsecond=0):
        raise LockstepError(f"{at} is not a valid cut: use a full hour.")
    if at > sealed:
        raise LockstepError(
            f"{domain}: the hours up to {at} are not sealed, only those up to {sealed}. "
            "`lockstep status` says what holds them."
        )
    if at > folded:
        raise LockstepError(
            f"{domain}: the hours up to {at} are sealed but not folded, only those up to {folded}. "
            "`lockstep run` folds them."
        )
    if at <= started:
        raise LockstepError(f"{domain}: the log begins at {started}: there is nothing to compare at {at}.")
    return at


def _is_stopped(connection: Any, models: Models, domain: str, cut: datetime) -> bool:
    """Whether an audit has stopped a rebuild at or before this cut: only what passes its audits counts as done.

    A day's rebuild is due with the first run after midnight once the log's hours are folded up to there.
    """
    if not connection.execute(f"SELECT 1 FROM {_CUT} WHERE domain = ? AND cut <= ?", [domain, cut]).fetchone():
        return False
    chains = [name for name in models.upstream(f"reconcile.{domain}_receipts") if name.startswith("chain.")]
    log, hours, *done = (
        models.folded_until(name) or datetime.min
        for name in ("changes.watermark", "hourly.log", _CUT, f"rebuild.{domain}", *chains)
    )
    return min(done) < min(log, hours).replace(hour=0)


@contextmanager
def planned() -> Iterator[Models]:
    """The models as the last plan of production left them: what is edited and not planned is not evidence."""
    from sqlmesh import Context
    from sqlmesh.core.console import NoopConsole, set_console

    set_console(NoopConsole())
    context = Context(paths=str(project()), load=False)
    try:
        environment = context.state_reader.get_environment("prod")
        if environment is None:
            raise LockstepError("No plan has succeeded yet. `lockstep run` makes the first.")
        snapshots = context.state_reader.get_snapshots(environment.snapshots).values()
        yield Models({snapshot.name: snapshot for snapshot in snapshots})
    finally:
        context.close()


class Models:
    """The planned models, by name as `schema.model`."""

    def __init__(self, snapshots: dict[str, Any]) -> None:
        self._snapshots = snapshots
        self._keys = {_short(key): key for key in snapshots}
        self._depends = {key: {parent.name for parent in s.parents} for key, s in snapshots.items()}

    def snapshot(self, model: str) -> Any:
        """SQLMesh's snapshot of a model. Raises LockstepError if it is not planned."""
        if model not in self._keys:
            raise LockstepError(f"{model} has not been planned yet. Run `sqlmesh plan` first.")
        return self._snapshots[self._keys[model]]

    def names(self) -> list[str]:
        """All planned models, in the order of their names."""
        return sorted(self._keys)

    def parents(self, model: str) -> set[str]:
        """The models that a model's query, or its `depends_on`, names."""
        return {_short(key) for key in self._depends[self._keys[model]]}

    def table(self, model: str) -> str:
        """The physical table of a model."""
        return str(self.snapshot(model).table_name())

    def folded_until(self, model: str) -> datetime | None:
        """The end of the hours that have been computed without a gap from the start on."""
        intervals = self.snapshot(model).intervals
        return datetime.fromtimestamp(intervals[0][1] / 1000, UTC).replace(tzinfo=None) if intervals else None

    def upstream(self, model: str) -> set[str]:
        """All models that a model is computed from."""
        return {_short(key) for key in self._upstream(self._keys[model])}

    def downstream(self, model: str) -> set[str]:
        """All models that are computed from a model."""
        return {_short(key) for key in self._downstream(self._keys[model])}

    def hour(self, model: str, hour: datetime) -> Any:
        """The query that computes an hour of an incremental model, as a syntax tree."""
        from sqlmesh.core.snapshot import DeployabilityIndex

        return self.snapshot(model).model.render_query_or_raise(
            start=hour,
            end=hour + timedelta(hours=1),
            execution_time=hour + timedelta(hours=1),
            snapshots=self._snapshots,
            deployability_index=DeployabilityIndex.all_deployable(),
        )

    def query(self, model: str, cut: datetime, instead: Mapping[str, Any] | None = None) -> Any:
        """The model's query at another cut, as a syntax tree: whatever depends on the day's cut is expanded into it.

        `instead` are queries, as syntax trees, that are read in place of other models.
        """
        from sqlglot import exp
        from sqlmesh.core.snapshot import DeployabilityIndex

        at_cut = self._downstream(self._keys[_CUT])
        query = self.snapshot(model).model.render_query_or_raise(
            execution_time=cut,  # as for that night; without a time SQLMesh answers as of the plan
            snapshots=self._snapshots,
            expand=at_cut & self._upstream(self._keys[model]) - {self.snapshot(name).name for name in instead or ()},
            deployability_index=DeployabilityIndex.all_deployable(),
        )
        cuts = exp.select(
            exp.func("UNNEST", exp.array(*map(exp.convert, load()))).as_("domain"),
            exp.cast(exp.Literal.string(str(cut)), "timestamp").as_("cut"),
        )
        wanted = {self.table(name): asked for name, asked in {_CUT: cuts, **(instead or {})}.items()}
        for found in list(query.find_all(exp.Table)):
            if asked := wanted.get(f"{found.catalog}.{found.db}.{found.name}"):
                found.replace(asked.subquery(found.alias_or_name))
        return query

    def _upstream(self, key: str) -> set[str]:
        found: set[str] = set()
        pending = [key]
        while pending:
            new = self._depends[pending.pop()] - found
            found |= new
            pending += new
        return found

    def _downstream(self, key: str) -> set[str]:
        return {other for other in self._depends if key in self._upstream(other)}


def _short(key: str) -> str:
    return ".".join(part.strip('"') for part in key.split(".")[-2:])
