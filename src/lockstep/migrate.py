"""The way of a domain from batch to live: does its contract fit its path, what proves it, and the change of its mode.

A mode is changed in `seeds/contracts.csv`, and `seeds/promotions.csv` records who went live on what evidence; a change
takes effect with the next `sqlmesh plan`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any

import duckdb

from lockstep import warehouse
from lockstep.changelog import ALL_TABLES, ChangeLog, Watermark
from lockstep.contracts import MODES, PROMOTION_COLUMNS, Contract, load
from lockstep.durable import durable_replace
from lockstep.errors import LockstepError
from lockstep.project import project
from lockstep.warehouse import Row

LIVE_HORIZON_MINUTES = 240
# Figures of the daily rebuild are 24 h old just before the next one, which takes up to an hour to be due (an hourly
# `lockstep run`) and up to an hour to be done.
DAILY_SECONDS = 26 * 3600
# An hour is folded once it is over: its first change is then an hour old, and the next hour is folded an hour later.
HOURLY_SECONDS = 2 * 3600

FITS, NOT_YET, UNFIT = "fits", "not yet", "does not fit"


@dataclass(frozen=True)
class Fit:
    """Whether a contract's mode is the path its horizon asks for. `path` is live or batch; times are the contract's.

    `cadence` is the cheapest that meets the freshness objective. `verdict` is `fits`, `not yet` (in order, but there is
    a step to go) or `does not fit`.
    """

    domain: str
    mode: str
    horizon_minutes: int
    freshness_seconds: int
    path: str
    cadence: str
    verdict: str
    reason: str


def check(contract: Contract, contracts: dict[str, Contract], unlimited: Sequence[str] = ()) -> Fit:
    """Hold a contract against the rule for what goes where. `unlimited` are its measures whose tolerance allows all."""
    path = "live" if contract.horizon_minutes < LIVE_HORIZON_MINUTES else "batch"
    verdict, reason = _verdict(contract, path, contracts)
    if unlimited:
        verdict = UNFIT
        reason = (
            f"nothing could exceed the tolerance of {', '.join(unlimited)}: it allows more than any two published "
            "values lie apart, in every cell; allow less, or limit by tolerance_cells how many cells may differ"
        )
    return Fit(
        contract.domain,
        contract.mode,
        contract.horizon_minutes,
        contract.freshness_seconds,
        path,
        _cadence(contract.freshness_seconds),
        verdict,
        reason,
    )


def unlimited(home: Path, contract: Contract) -> list[str]:
    """The measures whose tolerance nothing could exceed, judging by the published figures; none if there are none.

    Every cell may differ, and any of the published values may take the place of any other.
    """
    measures = [
        m
        for m in contract.merged
        if m.tolerance_cells == 1 and m.tolerance_absolute + m.tolerance_relative > 0 and m.type != "TEXT"
    ]
    path = home / "analytics.duckdb"
    if not measures or not path.exists():
        return []
    columns = []
    for m in measures:
        value = f"EPOCH({m.name})" if m.type == "TIMESTAMP" else f"CAST({m.name} AS DOUBLE)"
        farthest = f"GREATEST({value} - MIN({value}) OVER (), MAX({value}) OVER () - {value})"
        allowed = f"GREATEST({m.tolerance_absolute!r}, {m.tolerance_relative!r} * ABS({value}))"
        if m.tolerance_median is not None:
            allowed = f"LEAST({allowed}, {m.tolerance_median!r})"
        columns += [f"{farthest} AS farthest_{m.name}", f"{allowed} AS allowed_{m.name}"]
    limits = (f"BOOL_AND(allowed_{m.name} >= farthest_{m.name}) AND MAX(farthest_{m.name}) > 0" for m in measures)
    query = f"SELECT {', '.join(limits)} FROM (SELECT {', '.join(columns)} FROM mart.{contract.domain})"
    with duckdb.connect(str(path), read_only=True, config={"file_search_path": str(home)}) as connection:
        try:
            found = connection.execute(query).fetchone()
        except (duckdb.CatalogException, duckdb.BinderException):  # the domain, or a measure, is not published yet
            return []
    assert found is not None
    return [m.name for m, nothing_exceeds in zip(measures, found, strict=True) if nothing_exceeds]


def _verdict(contract: Contract, path: str, contracts: dict[str, Contract]) -> tuple[str, str]:
    horizon, freshness = _span(contract.horizon_minutes * 60), _span(contract.freshness_seconds)
    if contract.freshness_seconds > contract.horizon_minutes * 60:
        return UNFIT, f"figures may be {freshness} old, but are acted on within {horizon}: ask for fresher ones"
    if path == "batch":
        if contract.mode != "batch":
            return UNFIT, f"nobody acts within 4 h (but within {horizon}): the daily rebuild is enough, mode batch"
        if contract.freshness_seconds < DAILY_SECONDS:
            return UNFIT, (
                f"the rebuild's figures get {_span(DAILY_SECONDS)} old, the objective is {freshness}: allow that much, "
                "or say with a horizon under 4 h who acts on fresher ones"
            )
        return FITS, f"acted on within {horizon}: the daily rebuild is enough"
    if contract.mode == "batch":
        return NOT_YET, f"acted on within {horizon}, under 4 h, and not yet migrated"
    waits = [name for name in contract.reads if contracts[name].mode != "live"]
    if waits:
        return NOT_YET, f"reads {', '.join(waits)}, not yet live: until then it is served from the rebuild"
    if contract.mode == "shadow":
        return NOT_YET, f"acted on within {horizon}, under 4 h: in shadow on the way to live"
    return FITS, f"acted on within {horizon}, under 4 h"


def _cadence(freshness_seconds: int) -> str:
    if freshness_seconds >= DAILY_SECONDS:
        return "daily rebuild"
    if freshness_seconds >= HOURLY_SECONDS:
        return "hourly landing and run"
    # A change waits one trigger for its batch to close, and a batch may take a whole trigger to land.
    return f"capture, trigger at most {_span(freshness_seconds / 2)}"


@dataclass(frozen=True)
class Evidence:
    """What is known of a domain's paths.

    `receipts` are those of its present mode, oldest first: of now back to the last one that was taken in another mode.
    `shadow_days` are the days whose closing midnight was reconciled and passed in shadow, since the last failure.
    `worst` has a row a measure over `receipts`, in the measure's unit (seconds for a timestamp). `live_until` is up to
    where live figures would be served now, whatever the mode is, and `live_age_seconds` how old that is. `is_stopped`:
    an audit stopped the last rebuild before its receipt.
    """

    receipts: list[Row] = field(default_factory=list)
    shadow_days: list[date] = field(default_factory=list)
    worst: list[Row] = field(default_factory=list)
    live_until: datetime | None = None
    live_age_seconds: float | None = None
    serving: Row | None = None
    is_stopped: bool = False

    @property
    def passed(self) -> int:
        return sum(r["verdict"] == "passed" for r in self.receipts)

    @property
    def failed(self) -> int:
        return sum(r["verdict"] == "failed" for r in self.receipts)


def evidence(home: Path, contracts: Iterable[Contract]) -> dict[str, Evidence]:
    """The evidence on each of these domains. Raises LockstepError if there is no log, or a run has the warehouse open.

    Without a warehouse there is nothing but the freshness.
    """
    contracts = list(contracts)
    watermark = ChangeLog(home).watermark()
    until = {c.domain: _live_until(watermark, c) for c in contracts}
    if not warehouse.is_planned(home):
        return {
            c.domain: Evidence(live_until=until[c.domain], live_age_seconds=_age(until[c.domain])) for c in contracts
        }
    with warehouse.reader(home) as connection:
        receipts = warehouse.rows(connection, "SELECT * FROM reconcile.receipts ORDER BY sequence")
        serving = {r["domain"]: r for r in warehouse.rows(connection, "SELECT * FROM ops.serving")}
        cuts = {r["domain"]: r for r in warehouse.rows(connection, "SELECT domain, cut, rebuilt_at FROM rebuild.cut")}
    found = {}
    for contract in contracts:
        own = [r for r in receipts if r["domain"] == contract.domain]
        current = _of_last_mode(own)
        rebuilt = cuts.get(contract.domain)
        at_cut = [r["reconciled_at"] for r in own if rebuilt and r["cut"] == rebuilt["cut"]]
        found[contract.domain] = Evidence(
            current,
            _shadow_days(own),
            _worst(contract, current),
            until[contract.domain],
            _age(until[contract.domain]),
            serving.get(contract.domain),
            rebuilt is not None and max(at_cut, default=datetime.min) < rebuilt["rebuilt_at"],
        )
    return found


def _live_until(watermark: Watermark, contract: Contract) -> datetime | None:
    """As `ops.serving` has it: `readable_until` of all tables that the domain and those it reads stand on."""
    if watermark.logged_at is None:
        return None
    tables = {ALL_TABLES, *contract.sources, *(table for name in contract.reads for table in load()[name].sources)}
    held = [h.logged_at - timedelta(microseconds=1) for table, h in watermark.holds.items() if table in tables]
    return min([watermark.logged_at, *held])


def _age(at: datetime | None) -> float | None:
    return (datetime.now(UTC).replace(tzinfo=None) - at).total_seconds() if at else None


def _of_last_mode(receipts: list[Row]) -> list[Row]:
    since = 0
    for i, receipt in enumerate(receipts):
        if receipt["mode"] != receipts[-1]["mode"]:
            since = i + 1
    return receipts[since:]


def _shadow_days(receipts: list[Row]) -> list[date]:
    """Receipts on demand at other hours do not count as days: a cut must lie after those of the mode before."""
    shadow = _of_last_mode(receipts)
    if not shadow or shadow[-1]["mode"] != "shadow":
        return []
    before = [r["cut"] for r in receipts[: len(receipts) - len(shadow)]]
    after = max([shadow[0]["cut"] - timedelta(microseconds=1), *before])
    days: set[date] = set()
    for receipt in shadow:
        if receipt["verdict"] == "failed":
            days, after = set(), max(after, receipt["cut"] - timedelta(microseconds=1))
        elif receipt["verdict"] == "passed" and receipt["cut"] > after and receipt["cut"].time() == datetime.min.time():
            days.add(receipt["cut"].date() - timedelta(days=1))
    return sorted(days)


def _worst(contract: Contract, receipts: list[Row]) -> list[Row]:
    rows = []
    for measure in contract.merged:
        entries = [e for r in receipts for e in r["measures"] if e["measure"] == measure.name]
        rows.append(
            {
                "measure": measure.name,
                "unit": "seconds" if measure.unit == "timestamp" else measure.unit.partition("(")[0],
                "cells_differing": max((e["cells_differing"] for e in entries), default=0),
                "worst_absolute": max((e["worst_absolute"] for e in entries), default=0.0),
                "worst_relative": max((e["worst_relative"] for e in entries), default=0.0),
                "tolerance_absolute": measure.tolerance_absolute,
                "tolerance_relative": measure.tolerance_relative,
                "tolerance_median": measure.tolerance_median,
                "tolerance_cells": measure.tolerance_cells,
            }
        )
    return rows


def objections(contract: Contract, contracts: dict[str, Contract], found: Evidence) -> list[str]:
    """What stands against serving a domain in shadow live; empty if nothing does."""
    texts = []
    days, required = len(found.shadow_days), contract.shadow_days
    last = found.receipts[-1] if found.receipts else None
    if last is None:
        texts.append("there is no receipt yet: `lockstep run` takes one at every daily cut")
    elif last["mode"] != "shadow":
        texts.append(f"no receipt was taken in shadow yet: the last is of mode {last['mode']}")
    elif last["verdict"] == "empty":
        texts.append(f"the last receipt had nothing to compare, at the cut {last['cut']}: it proves nothing")
    elif last["verdict"] != "passed":
        texts.append(f"the last receipt failed, at the cut {last['cut']}: `lockstep explain {contract.domain}`")
    if days < required:
        since = " since the last failure" if found.failed and last and last["mode"] == "shadow" else ""
        texts.append(f"{days} of {required} daily cuts have passed in shadow{since}")
    if found.is_stopped:
        texts.append("an audit stopped the last rebuild before its receipt: see what `lockstep run` says")
    passed = [r["cut"] for r in found.receipts if r["verdict"] == "passed"]
    if passed and found.live_until and found.live_until > max(passed) + timedelta(hours=contract.receipt_hours):
        texts.append(
            f"the log is more than {contract.receipt_hours} h ahead of the last cut that passed, {max(passed)}: "
            "`lockstep run`, or `lockstep reconcile`"
        )
    for name in contract.reads:
        if contracts[name].mode_in_effect != "live":
            texts.append(f"{name}, which it reads, is {contracts[name].mode_in_effect}: promote it first")
    return texts


@dataclass(frozen=True)
class Promotion:
    """A domain's next step: from `mode` to `target` (None if it is live), what stands against it, and the evidence."""

    domain: str
    mode: str
    target: str | None
    objections: list[str]
    evidence: Evidence | None
    contract: Contract


def promotion(home: Path, contract: Contract, contracts: dict[str, Contract]) -> Promotion:
    """Look at the next step of a domain, without taking it. Going to shadow needs neither log nor warehouse."""
    mode = contract.mode_in_effect
    target = MODES[MODES.index(mode) + 1] if mode != MODES[-1] else None
    found = None
    if contract.mode != "batch" or ChangeLog(home).exists():
        found = evidence(home, [contract])[contract.domain]
    against = []
    fit = check(contract, contracts, unlimited(home, contract))
    if target and fit.path == "batch":
        against.append(
            f"nobody acts on it within 4 h (but within {_span(fit.horizon_minutes * 60)}): the daily rebuild is enough"
        )
    elif target and fit.verdict == UNFIT:
        against.append(fit.reason)
    if target == "live" and found:
        against += objections(contract, contracts, found)
    return Promotion(contract.domain, mode, target, against, found, contract)


def migration(home: Path) -> list[Row]:
    """All domains on their way: a row each, as `lockstep migration` prints it."""
    contracts = load()
    found = evidence(home, contracts.values())
    rows = []
    for contract in contracts.values():
        e = found[contract.domain]
        serving = e.serving or {"mode": None, "served_from": None, "as_of": None, "reason": "there is no warehouse yet"}
        rows.append(
            {
                "domain": contract.domain,
                "mode": contract.mode,
                "planned_mode": serving["mode"],
                "shadow_days": len(e.shadow_days),
                "shadow_days_required": contract.shadow_days,
                "receipts_passed": e.passed,
                "receipts_failed": e.failed,
                "last_verdict": e.receipts[-1]["verdict"] if e.receipts else None,
                "worst": [w for w in e.worst if w["cells_differing"]],
                "live_until": e.live_until,
                "live_age_seconds": e.live_age_seconds,
                "freshness_seconds": contract.freshness_seconds,
                "served_from": serving["served_from"],
                "as_of": serving["as_of"],
                "reason": serving["reason"],
                "next_step": _next_step(contract, contracts, e),
            }
        )
    return rows


def _next_step(contract: Contract, contracts: dict[str, Contract], found: Evidence) -> str:
    fit = check(contract, contracts)
    if fit.verdict == UNFIT:
        return f"the contract: {fit.reason}"
    if found.serving is None:
        return "`lockstep run`"
    if found.serving["mode"] != contract.mode:
        return f"`sqlmesh plan`: it is still planned as {found.serving['mode']}"
    if contract.mode == "batch":
        return "none: the daily rebuild is enough" if fit.path == "batch" else f"`lockstep promote {contract.domain}`"
    if contract.mode_in_effect == "shadow":
        against = objections(contract, contracts, found)
        return f"wait: {against[0]}" if against else f"`lockstep promote {contract.domain}`"
    if found.serving["served_from"] == "live":
        return "none: live is served"
    if found.receipts and found.receipts[-1]["verdict"] == "failed":
        return f"`lockstep explain {contract.domain}`: the last receipt failed"
    return f"none, it returns by itself: {found.serving['reason']}"


def set_mode(domain: str, mode: str) -> str:
    """Write a domain's mode into the contract file, and nothing else of it; returns the mode it had.

    The file is replaced atomically and every other byte of it stays. It need not be a valid contract file beyond the
    domain's row, so that a domain can always be demoted. Raises LockstepError if the domain is not in it.
    """
    path = (project() / "seeds" / "contracts.csv").resolve()
    content = path.read_bytes()
    records = _records(content)
    header = [text for text, _, _ in next(records, [])]
    if not {"domain", "mode"} <= set(header):
        raise LockstepError(f"{path} lacks the columns domain and mode.")
    at = header.index("domain"), header.index("mode")
    for fields in records:
        if len(fields) > max(at) and fields[at[0]][0] == domain:
            before, start, end = fields[at[1]]
            if before != mode:
                permissions = path.stat().st_mode
                durable_replace(path, content[:start] + mode.encode() + content[end:])
                path.chmod(permissions)
                load.cache_clear()
            return before
    raise LockstepError(f"There is no domain {domain} in {path}.")


def record(home: Path, domain: str, mode: str, evidence: str) -> None:
    """Add to `seeds/promotions.csv` that a domain goes live, or no longer is, durably.

    Only an entry of a promotion lets a domain in live mode be served live before its shadow days are complete.
    """
    path = project() / "seeds" / "promotions.csv"
    before = path.read_bytes() if path.exists() else f"{','.join(PROMOTION_COLUMNS.split())}\n".encode()
    log = ChangeLog(home)
    position = log.watermark().position if log.exists() else 0
    entry = f"{domain},{mode},{datetime.now(UTC):%Y-%m-%d %H:%M:%S},{position},{evidence}\n"
    durable_replace(path, before + (b"" if before.endswith(b"\n") else b"\n") + entry.encode())
    load.cache_clear()


def mode_of(domain: str) -> str:
    """The mode in the contract file, whatever else is wrong with the file."""
    path = project() / "seeds" / "contracts.csv"
    records = _records(path.read_bytes())
    header = [text for text, _, _ in next(records, [])]
    for fields in records:
        row = dict(zip(header, (text for text, _, _ in fields), strict=False))
        if row.get("domain") == domain:
            return row.get("mode", "")
    raise LockstepError(f"There is no domain {domain} in {path}.")


def _records(content: bytes) -> Iterator[list[tuple[str, int, int]]]:
    """The records of a CSV file, each field with where its bytes begin and end; csv does not tell."""
    fields: list[tuple[str, int, int]] = []
    start, is_quoted = 0, False
    for i, byte in enumerate(content + b"\n"):
        if byte == ord('"'):
            is_quoted = not is_quoted  # a doubled quote closes and opens again
        elif byte in b",\n" and not is_quoted:
            end = i - 1 if byte == ord("\n") and content[start:i].endswith(b"\r") else i
            fields.append((_text(content[start:end]), start, end))
            start = i + 1
            if byte == ord("\n"):
                if fields != [("", end, end)]:
                    yield fields
                fields = []


def _text(field: bytes) -> str:
    text = field.decode("utf-8-sig")
    return text[1:-1].replace('""', '"') if text.startswith('"') else text


def as_row(p: Promotion) -> Row:
    """A promotion for programs."""
    e: Any = p.evidence
    return {
        "domain": p.domain,
        "mode": p.mode,
        "target": p.target,
        "objections": p.objections,
        "evidence": e
        and {
            "shadow_days": e.shadow_days,
            "shadow_days_required": p.contract.shadow_days,
            "receipts": [{k: r[k] for k in ("cut", "reconciled_at", "mode", "verdict")} for r in e.receipts],
            "worst": e.worst,
            "live_until": e.live_until,
            "live_age_seconds": e.live_age_seconds,
            "freshness_seconds": p.contract.freshness_seconds,
        },
    }


def _span(seconds: float) -> str:
    """A length of time in words: 90 s, 45 min, 26 h, 3 d."""
    for size, unit in ((86400, "d"), (3600, "h"), (60, "min")):
        if seconds >= 2 * size and seconds % size == 0:
            return f"{seconds / size:g} {unit}"
    return f"{seconds:g} s"
