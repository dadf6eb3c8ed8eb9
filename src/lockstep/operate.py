"""Running the models and telling how things stand: `lockstep run`, `status` and `receipts`."""

from __future__ import annotations

import functools
import re
import time
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import duckdb

from lockstep import chain, metrics, pairing, publish, warehouse
from lockstep.changelog import ChangeLog
from lockstep.compact import Compacted, compact
from lockstep.contracts import as_rows, load, planned_contracts, tables_of_one_cut
from lockstep.errors import Busy, LockstepError
from lockstep.lock import exclusive, holder
from lockstep.project import project
from lockstep.warehouse import Row

_LONGEST_ERROR = 600  # characters


@dataclass
class Run:
    """What a run did. `failures` is what SQLMesh said of failed models and audits, one text each.

    `warnings` is what went wrong beside the figures: alerts that could not be sent. `notes` is what to know of the run.
    """

    planned: bool
    seconds: float
    failures: list[str] = field(default_factory=list)
    receipts: list[Row] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    published: publish.Published | None = None
    compacted: Compacted | None = None
    notes: list[str] = field(default_factory=list)

    @property
    def agrees(self) -> bool:
        """Whether every model ran, every audit passed, no domain's last receipt failed, and all is published."""
        domains = {r["domain"] for r in self.receipts if r["verdict"] != "failed"}
        return not self.failures and domains == set(load())


def run(home: Path, at: datetime | None = None, verbose: bool = False) -> Run:
    """Bring the warehouse up to date: plan if there is none yet, else run what is due; then publish and compact.

    `at` is the time to run as of (UTC), for replays; None is now. One run at a time: a second one is refused with the
    holder's name. A failed model or audit does not raise, it is in the result. Raises LockstepError without a change.
    """
    ChangeLog(home).require_changes()
    started = time.monotonic()
    with exclusive(home / "warehouse.lock", "running the models"):
        notes = _mend_files(home)
        planned = not warehouse.is_planned(home)
        warehouse.require_not_ahead(home, ChangeLog(home).watermark().position)
        failures = _sqlmesh(home, planned, at, verbose)
        receipts: list[Row] = []
        published = None
        if warehouse.is_planned(home):
            failures += _prove_what_the_night_could_not(home, at or datetime.now(UTC).replace(tzinfo=None))
            with warehouse.reader(home) as connection:  # as long as it is open, DuckDB loads the catalog for no other
                receipts = last_receipts(home)
                notes += _unplanned(connection)
                try:
                    published = publish.write(home)  # also after a failure: analysts get the last verified figures
                    published = _prove_what_is_live(home, failures) or published
                    failures += [f"publish: {why}" for why in published.refused.values()]
                except LockstepError as e:
                    failures.append(f"publish: {e}")
            notes += [f"Held: {reason}." for reason in ChangeLog(home).open_gaps()]  # publishing may have held a table
        compacted = None
        try:
            compacted = compact(home, publish.oldest_needed_hour(home))
        except LockstepError as e:
            failures.append(f"compact: {e}")
    result = Run(planned, time.monotonic() - started, failures, receipts, [], published, compacted, notes)
    metrics.publish_run(home, result.seconds, result.agrees, status(home))
    if at is None:  # alerts are about now, and a replay is not
        from lockstep import alerts  # which asks for the status

        result.warnings += alerts.after_run(home, failures)
    return result


def _mend_files(home: Path) -> list[str]:
    """Set warehouse and state aside if one of them is lost or of another time; returns what was done, as sentences."""
    reason = pairing.unlike(home)
    if reason is None:
        return []
    aside = pairing.set_aside(home)
    return [f"{reason}. What there was of both is in {aside}; all figures were computed anew from the change log."]


def _prove_what_the_night_could_not(home: Path, now: datetime) -> list[str]:
    """Take receipts that no daily model takes. Returns what failed.

    Of a domain that had nothing to compare yet and now has increments, at the last folded hour: else a new home, or a
    table's first rows, would wait for the next midnight. And of a domain that quarantine holds, as far as its own
    tables go: SQLMesh takes no daily receipt of a day that has hours which are not sealed. So also of a domain whose
    rebuild only shares its cut with a held one: its own tables go as far as before.
    """
    from lockstep import reconcile

    watermark, due = ChangeLog(home).watermark(), dict[str, datetime | None]()
    with warehouse.reader(home) as connection:
        newest = {receipt["domain"]: receipt for receipt in last_receipts(home)}
        cuts = {row["domain"]: row for row in warehouse.rows(connection, "SELECT * FROM rebuild.cut")}
        contracts = planned_contracts(connection)
        for domain, contract in contracts.items():
            receipt, rebuilt = newest.get(domain), cuts.get(domain)
            sealed = watermark.sealed_until(contract.sources)
            held = watermark.sealed_until(tables_of_one_cut(domain, contracts)) != watermark.closed_until()
            if receipt and receipt["verdict"] == "empty":
                figures = "live" if contract.is_recomputed else "hourly"
                if connection.execute(f"SELECT 1 FROM {figures}.{domain} LIMIT 1").fetchone():
                    due[domain] = None
            elif held and rebuilt and sealed:
                own_cut = min(now.replace(hour=0, minute=0, second=0, microsecond=0), sealed)
                if not receipt or receipt["reconciled_at"] < rebuilt["rebuilt_at"] or receipt["cut"] < own_cut:
                    due[domain] = own_cut
    failures = []
    for domain, cut in due.items():
        try:
            [taken] = reconcile.take(home, [contracts[domain]], cut)
        except LockstepError:  # its audits have failed, which SQLMesh has said; or nothing is folded yet
            continue
        except duckdb.DataError as e:  # the query itself, over the rows as they are
            failures.append(f"rebuild.{domain}: {_plain(e)}")
            continue
        if taken.receipt["verdict"] == "failed":
            found = taken.receipt["cells_beyond"]
            failures.append(f"reconcile.{domain}_receipts: audit rebuild_equals_increments found {found} rows")
    return failures


def _prove_what_is_live(home: Path, failures: list[str]) -> publish.Published | None:
    """Take live receipts where nothing else proves what analysts read; adds to `failures`.

    Of a domain whose nightly receipt had nothing to compare, as soon as it has figures; of one that joins changing
    tables or is recomputed, whose published tables are of its own making, once after each nightly receipt; and of one
    whose last live receipt failed. Returns what was published once more.
    """
    from lockstep import live_receipts

    last = live_receipts.last(live_receipts.load(home))
    due = []
    with warehouse.reader(home) as connection:
        nightly = {receipt["domain"]: receipt for receipt in last_receipts(home)}
        in_use = dict(connection.execute("SELECT domain, evidence_digest FROM reconcile.in_use").fetchall())
        views = set(connection.execute("SELECT schema_name, view_name FROM duckdb_views()").fetchall())
        for domain, contract in planned_contracts(connection).items():
            proof, live = nightly.get(domain), last.get(domain)
            is_planned = ("reconcile", f"{domain}_added_up") in views  # by this version, with this domain
            has_own_tables = ("tail", domain) in views or contract.is_recomputed
            if contract.mode_in_effect == "batch" or proof is None or not is_planned:
                continue
            if proof["verdict"] == "empty":
                is_due = live is None or live["verdict"] != "passed" or live["evidence_digest"] != in_use[domain]
                is_due = is_due and connection.execute(f"SELECT 1 FROM live.{domain} LIMIT 1").fetchone() is not None
            else:
                is_due = (live is not None and live["verdict"] == "failed") or (
                    has_own_tables and (live is None or live["sequence"] < proof["sequence"])
                )
            if is_due:
                due.append(contract)
    if not due:
        return None
    taken = live_receipts.take(home, due)
    failures += [f"live.{failure}" for failure in taken.failures]
    failures += [
        f"live.{r.receipt['domain']}: the live receipt found {r.receipt['cells_beyond']:,} of "
        f"{r.receipt['cells_compared']:,} cells that are not what the query gives at position "
        f"{r.receipt['position']:,}. `lockstep reconcile {r.receipt['domain']} --now` publishes anew from nothing, and "
        "shows them"
        for r in taken.results
        if r.receipt["verdict"] == "failed"
    ]
    return taken.published


def _sqlmesh(home: Path, plan: bool, at: datetime | None, verbose: bool) -> list[str]:
    # Imported here: SQLMesh takes a second to import, which no other command should wait for.
    from sqlmesh import Context
    from sqlmesh.core.console import NoopConsole, create_console, set_console
    from sqlmesh.utils.errors import SQLMeshError

    from lockstep.loader import WithoutUnitTests

    failures: list[str] = []
    broken: dict[str, str] = {}  # failures of chains, with the query of what breaks them

    def fail(errors: list[Any]) -> None:
        for error in errors:
            failures.append(_describe(error))
            for cause in _causes(error):
                if _audit(cause) == chain.AUDIT:
                    broken[failures[-1]] = cause.sql()

    class Failures(NoopConsole):  # type: ignore[misc]
        """Keeps quiet but for what failed."""

        def log_failed_models(self, errors: list[Any]) -> None:
            fail(errors)

        def log_error(self, message: str) -> None:
            failures.append(message)

        def show_linter_violations(self, violations: list[Any], model: Any, is_error: bool = False) -> None:
            if is_error:
                failures.extend(_violation(violation, model) for violation in violations)

    if verbose:
        console = create_console()
        shown = console.log_failed_models

        def log_failed_models(errors: list[Any]) -> None:
            shown(errors)
            fail(errors)

        linted = console.show_linter_violations

        def show_linter_violations(violations: list[Any], model: Any, is_error: bool = False) -> None:
            if is_error:  # unit tests, whose lack is a warning, are not loaded here
                linted(violations, model, is_error)

        console.log_failed_models = log_failed_models
        console.show_linter_violations = show_linter_violations
    else:
        console = Failures()
    set_console(console)
    # A run computes what was planned, from SQLMesh's state: it need not load the project's files, which takes a second.
    context = None
    try:
        context = Context(paths=str(project()), load=plan, loader=WithoutUnitTests)
        if plan:
            _plan(context, at, failures)
        else:
            _finish_plan(context)
            # As it is without the usage statistics: to find out who calls it, these import IPython.
            run = functools.partial(Context.run.__wrapped__, context, execution_time=at, end=at)
            is_failure = run().is_failure
            if _forget_what_no_receipt_vouches_for(context, failures):
                is_failure |= run().is_failure
            if is_failure and not failures:
                failures.append("The run did not complete; `sqlmesh run` shows its output.")
    except SystemExit as e:  # what SQLMesh, which catches every Exception, must not take for an answer
        raise LockstepError(str(e).removeprefix("Error: ")) from None
    except (SQLMeshError, duckdb.Error) as e:
        if not failures:
            failures.append(_plain(e))
    finally:
        if context is not None:
            context.close()
    return [
        f"{failure}: {_chain_told(home, failure, broken[failure])}" if failure in broken else failure
        for failure in failures
    ]


def _plain(error: object) -> str:
    """An error's text in one line, without SQLMesh's colours, as far as it can be read at once."""
    text = " ".join(re.sub(r"\x1b\[[0-9;]*m", "", str(error)).split())
    return text if len(text) <= _LONGEST_ERROR else f"{text[:_LONGEST_ERROR]} ..."


def _violation(violation: Any, model: Any) -> str:
    """A linter's finding, with the file that has to be changed."""
    found = f"{model._path}: {_plain(violation.violation_msg)} ({violation.rule.name})"
    if not model._path.stem.startswith("each_"):
        return found
    name = model.name.replace('"', "").rpartition(".")[2]
    domain = max((d for d in load() if name.startswith(d)), key=len, default=name)
    by_hand = f"models/diffs/{domain}.sql"
    and_there = f" and of {by_hand}" if (project() / by_hand).exists() else ""
    return (
        f"{found} It is stamped from the contract: each grain column of {domain} in seeds/contracts.csv and each of "
        f"its measures in seeds/contract_measures.csv must be a column of models/rebuild/{domain}.sql{and_there}."
    )


def _finish_plan(context: Any) -> None:
    """Make the views of a plan whose process was killed between its record in the state and its end.

    By the state's record, not by the project's files: what was edited since has not been planned.
    """
    from sqlmesh.core.snapshot import DeployabilityIndex
    from sqlmesh.core.snapshot.definition import to_view_mapping
    from sqlmesh.utils.date import now

    environment = context.state_reader.get_environment("prod")
    if environment is None or environment.finalized_ts:
        return
    names = {snapshot.name for snapshot in environment.snapshots}
    removed = [s for s in environment.previous_finalized_snapshots or () if s.name not in names]
    snapshots = context.state_reader.get_snapshots([*environment.snapshots, *removed])
    planned = {key: s for key, s in snapshots.items() if s.name in names}
    in_use = {
        "environment_naming_info": environment.naming_info,
        "deployability_index": DeployabilityIndex.all_deployable(),
        "table_mapping": to_view_mapping(
            planned.values(), environment.naming_info, default_catalog=context.default_catalog, dialect="duckdb"
        ),
    }
    context._load_materializations()  # as a run does; promoting asks each model's kind
    promoted = [planned[s.snapshot_id] for s in environment.promoted_snapshots]
    context.snapshot_evaluator.promote(promoted, snapshots=planned, execution_time=now(), **in_use)
    context.snapshot_evaluator.demote([snapshots[s.snapshot_id] for s in removed], **in_use)
    context.state_sync.finalize(environment)


def _plan(context: Any, at: datetime | None, failures: list[str]) -> None:
    """Plan production. Whatever a failed audit or model does not stop of a first plan is put into use all the same.

    SQLMesh computes whatever does not depend on the failure, and then puts nothing of the plan into use. So what it has
    computed is put into use by a second plan, which computes nothing. A later plan that fails leaves in use what was.
    """
    from sqlmesh.utils.errors import PlanError

    plan = {"auto_apply": True, "no_prompts": True, "skip_tests": True, "execution_time": at}
    try:
        context.plan(**plan)
    except PlanError:
        if not failures or context.state_reader.get_environment("prod") is not None:
            raise
        context.plan(**plan, skip_backfill=True, no_gaps=True)  # no gaps: there was no plan before


def _forget_what_no_receipt_vouches_for(context: Any, failures: list[str]) -> bool:
    """Have SQLMesh take the last receipts again where a plan has put other models into use; whether there are any.

    SQLMesh does so by itself only if it computes the receipts' model anew, which it does not after every change. The
    verified generations, which are stored by virtue of the receipt, are computed again with it. A domain in which
    something has failed in this run is left alone: SQLMesh tries that again by itself.
    """
    from lockstep.reconcile import Models

    unproved = [domain for domain in load() if not _is_proved(context.engine_adapter, domain)]
    if not unproved:
        return False  # as nearly always: reading the snapshots takes longer than all else in a run with nothing to do
    environment = context.state_reader.get_environment("prod")
    snapshots = {s.name: s for s in context.state_reader.get_snapshots(environment.snapshots).values()}
    models = Models(snapshots)
    failed = {failure.partition(":")[0] for failure in failures}
    found = False
    for domain in unproved:
        receipts = f"reconcile.{domain}_receipts"
        if failed & {receipts, *models.upstream(receipts)}:
            continue
        for model in (receipts, *models.downstream(receipts)):
            snapshot = models.snapshot(model)
            if not snapshot.model.kind.is_view and snapshot.intervals:
                end = snapshot.intervals[-1][1]
                day = (end - 24 * 3600 * 1000, end)
                context.state_sync.remove_intervals([(snapshot, day)], remove_shared_versions=True)
                found = True
    return found


def _is_proved(adapter: Any, domain: str) -> bool:
    """Whether the domain's last receipt and generation, if there are any, are of the models in use."""
    planned = f"SELECT 1 FROM duckdb_views() WHERE schema_name = 'reconcile' AND view_name = '{domain}_in_use'"
    if not adapter.fetchone(planned):
        return True
    in_use, *newest = adapter.fetchone(
        f"SELECT (SELECT evidence_digest FROM reconcile.{domain}_in_use), "
        f"(SELECT ARG_MAX(COALESCE(evidence_digest, ''), sequence) FROM reconcile.{domain}_receipts), "
        f"(SELECT ARG_MAX(COALESCE(evidence_digest, ''), cut) FROM verified.{domain})"
    )
    return all(digest in (None, in_use) for digest in newest)


def _describe(error: Any) -> str:
    """A failed node as one line: its model and what it failed at."""
    model = getattr(error.node, "snapshot_name", str(error.node)).replace('"warehouse".', "").replace('"', "")
    whats = []
    for cause in _causes(error):
        name = _audit(cause)
        whats.append(f"audit {name} found {cause.count} rows" if name else f"{type(cause).__name__}: {cause}")
    return f"{model}: {'; '.join(whats)}"


def _causes(error: Any) -> list[Any]:
    return getattr(error.__cause__, "errors", None) or [error.__cause__ or error]


def _audit(cause: Any) -> str | None:
    """The name of the audit that failed; None if something else did."""
    return getattr(cause, "audit_name", None)


def _chain_told(home: Path, failure: str, query: str) -> str:
    """What breaks a chain, and what mends it."""
    table = failure.partition(":")[0].removeprefix("chain.")
    with warehouse.reader(home) as connection:
        return chain.told(home, table, [row["finding"] for row in warehouse.rows(connection, query)])


def last_receipts(home: Path) -> list[Row]:
    """The last receipt of each domain."""
    return receipts(home, "QUALIFY ROW_NUMBER() OVER (PARTITION BY domain ORDER BY sequence DESC) = 1")


def receipts(home: Path, condition: str = "", parameters: list[Any] | None = None) -> list[Row]:
    """Receipts, oldest first, as rows of `reconcile.receipts`."""
    with warehouse.reader(home) as connection:
        warehouse.require_planned(connection)
        query = f"SELECT * FROM reconcile.receipts {condition} ORDER BY sequence, domain"
        return warehouse.rows(connection, query, parameters)


def _unplanned(connection: duckdb.DuckDBPyConnection) -> list[str]:
    """What the contracts say that is not planned, which is what runs go by, as sentences."""
    rows = [as_rows(contract) for contract in load().values()]
    said = {"contracts": [row for row, _ in rows], "contract_measures": [row for _, rows_ in rows for row in rows_]}
    return [
        f"{project() / 'seeds' / f'{name}.csv'}, or a query that it is completed from, was changed since it was "
        "planned: it takes effect with `sqlmesh plan`."
        for name, told in said.items()
        if _told(warehouse.rows(connection, f"SELECT COLUMNS(*)::TEXT FROM ops.{name}")) != _told(told)
    ]


def _told(rows: Iterable[Mapping[str, str | None]]) -> list[list[tuple[str, str]]]:
    """Rows to be compared, whatever their order and the spelling of their numbers."""
    return sorted([(name, _number(value or "")) for name, value in sorted(row.items())] for row in rows)


def _number(text: str) -> str:
    try:
        return str(float(text))
    except ValueError:
        return text


def status(home: Path) -> Row:
    """How the home stands: watermark, lag, sealed and folded hours, quarantine, and what is served of each domain.

    `lag_seconds` is the age of the watermark's `logged_at`: how long ago the source last committed something that
    has landed. `capture` is `metrics.capture_status`. `warehouse` is `none`, `ready`, or `busy` while a run has it
    open: then there are no domains. `gaps` has a sentence for each table that may lack changes. All times
    are UTC.
    """
    log = ChangeLog(home)
    watermark = log.watermark()
    now = datetime.now(UTC).replace(tzinfo=None)
    result: Row = {
        "home": str(home),
        "source": watermark.source,
        "position": watermark.position,
        "logged_at": watermark.logged_at,
        "lag_seconds": (now - watermark.logged_at).total_seconds() if watermark.logged_at else None,
        "landed_at": watermark.landed_at,
        "closed_until": watermark.closed_until(),
        "quarantined": sum(e["state"] == "open" for e in log.quarantined()),
        "holds": {table: asdict(hold) for table, hold in watermark.holds.items()},
        "gaps": log.open_gaps(),
        "capture": metrics.capture_status(home),
        "warehouse": "none",
        "problem": None,
        "notes": [],
        "domains": [],
    }
    if not (home / "warehouse.duckdb").exists():
        return result
    # A run keeps everybody out, and lasts; how log and capture stand can be told all the same. Its lock is looked at
    # first: a reader at the wrong moment would keep the run out.
    if holder(home / "warehouse.lock") is not None:
        return {**result, "warehouse": "busy"}
    try:
        with warehouse.reader(home) as connection:
            if not warehouse.is_planned(home):
                return result
            result["warehouse"] = "ready"
            result["notes"] = _unplanned(connection)
            for contract in planned_contracts(connection).values():
                [serving] = warehouse.rows(connection, "SELECT * FROM ops.serving WHERE domain = ?", [contract.domain])
                [folded] = warehouse.rows(
                    connection, "SELECT MAX(log_hour) + INTERVAL '1' HOUR AS folded_until FROM hourly.log"
                )
                sealed_until = watermark.sealed_until(contract.sources)
                try:
                    log.require_readable(sorted(contract.sources), folded["folded_until"])
                except LockstepError as e:
                    serving |= {"served_from": "nothing", "reason": str(e)}
                result["domains"].append({**serving, "sealed_until": sealed_until, **folded})
    except Busy:
        result["warehouse"] = "busy"
    except LockstepError as e:
        result["warehouse"] = "unreadable"
        result["domains"] = []
        result["problem"] = str(e)
    return result
