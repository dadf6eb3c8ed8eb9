"""How capture, log and runs are doing, for `lockstep status` and for Prometheus.

    <home>/capture.json           what a capture last said of itself; whether it lives is told by its lock
    <home>/metrics/capture.prom   the same for Prometheus, and the log's watermark; by capture
    <home>/metrics/run.prom       the last run and what is served; by `lockstep run`, which also notes a dead capture

`<home>/metrics` is a directory for node_exporter's `--collector.textfile.directory`. Files are replaced atomically and
not fsynced: after a crash of the machine they may be missing until they are written again.
"""

from __future__ import annotations

import json
import os
import time
from collections import deque
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field, fields
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from prometheus_client import generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from lockstep.changelog import Watermark
from lockstep.lock import holder

PUBLISH_EVERY = 2.0  # seconds
STALE_AFTER = 60.0  # seconds; longer than any wait between two attempts to connect
_RATE_OVER = 10.0  # seconds


@dataclass
class CaptureState:
    """What a capture says of itself. Counts are since its start; times are UTC; seconds and bytes.

    `phase` is snapshot, following, reconnecting, stopped or failed; `problem` says why it is not following.
    `trigger_seconds` is the trigger in effect, which a backlog lengthens. `lag_bytes` is how much of the source's log
    has not landed, `lag_seconds` the age of the watermark by the source's clock. `retained_bytes` is the log that
    the server keeps for the slot, `safe_bytes` how much more it will keep (None: without limit).
    """

    slot: str
    trigger_seconds: float
    pid: int = field(default_factory=os.getpid)
    started_at: str = field(default_factory=lambda: _now())
    updated_at: str = field(default_factory=lambda: _now())
    phase: str = "snapshot"
    problem: str | None = None
    position: int = 0
    logged_at: str | None = None
    lsn: str | None = None
    changes: int = 0
    changes_per_second: float = 0.0
    batches: int = 0
    files: int = 0
    quarantined: int = 0
    quarantine_open: int = 0
    reconnects: int = 0
    lag_bytes: int | None = None
    lag_seconds: float | None = None
    retained_bytes: int | None = None
    safe_bytes: int | None = None


class CapturePublisher:
    """Writes a capture's state for others to read. `state` is what it will write; the capture keeps it up to date."""

    def __init__(self, home: Path, state: CaptureState) -> None:
        self.state = state
        self._home = home
        self._next = 0.0
        self._counts: deque[tuple[float, int]] = deque([(time.monotonic(), 0)])

    def is_due(self) -> bool:
        return time.monotonic() >= self._next

    def publish(self, watermark: Watermark) -> None:
        """Write the state, and the log's watermark."""
        now = time.monotonic()
        self._next = now + PUBLISH_EVERY
        self._counts.append((now, self.state.changes))
        while len(self._counts) > 2 and self._counts[1][0] <= now - _RATE_OVER:
            self._counts.popleft()
        since, before = self._counts[0]
        state = self.state
        state.changes_per_second = round((state.changes - before) / max(now - since, 0.001), 1)
        state.updated_at = _now()
        state.position, state.lsn = watermark.position, watermark.resume.get("commit_lsn")
        state.logged_at = _iso(watermark.logged_at)
        _replace(self._home / "capture.json", json.dumps(asdict(state), indent=1).encode())
        _write_capture(self._home, state)


def capture_status(home: Path) -> dict[str, Any] | None:
    """What a capture last said of itself; None if none ever ran here.

    `is_running` tells whether it lives. `is_stale`: it lives and has said nothing for STALE_AFTER seconds, not being
    in its snapshot. The phase of one that died silently is `killed`.
    """
    try:
        state: dict[str, Any] = json.loads((home / "capture.json").read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        return None
    running = holder(home / "capture.lock")
    age = (datetime.now(UTC) - datetime.fromisoformat(state["updated_at"])).total_seconds()
    state["is_running"] = running is not None and running.get("pid", state["pid"]) == state["pid"]
    if not state["is_running"] and state["phase"] not in ("stopped", "failed"):
        state["phase"] = "killed"
    state["is_stale"] = state["is_running"] and state["phase"] != "snapshot" and age > STALE_AFTER
    state["age_seconds"] = round(age, 1)
    return state


def publish_run(home: Path, seconds: float, agrees: bool, status: dict[str, Any]) -> None:
    """Write how the last run went and what is served since; `status` is `operate.status`'s."""
    if capture := status["capture"]:
        if not capture["is_running"]:
            _write_capture(home, CaptureState(**{f.name: capture[f.name] for f in fields(CaptureState)}))
        log = []  # in the capture's file
    else:
        log = _log_families(status["position"], status["logged_at"], status["quarantined"])
    families = [
        *log,
        _gauge("run_timestamp_seconds", "When the last run ended.", time.time()),
        _gauge("run_seconds", "How long the last run took.", seconds),
        _gauge("run_agrees", "1 if the last run succeeded and all paths agreed.", agrees),
    ]
    domains = status["domains"]
    live = GaugeMetricFamily("lockstep_domain_served_live", "1 if live figures are served.", labels=["domain"])
    as_of = GaugeMetricFamily(
        "lockstep_domain_as_of_timestamp_seconds", "The changes up to which figures are served.", labels=["domain"]
    )
    cut = GaugeMetricFamily("lockstep_domain_verified_cut_timestamp_seconds", "The verified cut.", labels=["domain"])
    for d in domains:
        live.add_metric([d["domain"]], d["served_from"] == "live")
        for family, at in ((as_of, d["as_of"]), (cut, d["verified_cut"])):
            if at:
                family.add_metric([d["domain"]], _epoch(at))
    _replace(home / "metrics" / "run.prom", generate_latest(_Families([*families, live, as_of, cut])))


def _write_capture(home: Path, state: CaptureState) -> None:
    log = _log_families(state.position, state.logged_at, state.quarantine_open)
    _replace(home / "metrics" / "capture.prom", generate_latest(_Families([*_capture_families(state), *log])))


def _capture_families(s: CaptureState) -> list[Metric]:
    counted = {
        "changes": "Changes landed since the start.",
        "batches": "Batches landed since the start.",
        "files": "Parquet files written since the start.",
        "quarantined": "Events sent to quarantine since the start.",
        "reconnects": "Lost connections since the start.",
    }
    measured = {
        "changes_per_second": "Changes landed a second, over the last ten seconds.",
        "lag_bytes": "Log of the source that has not landed.",
        "lag_seconds": "Age of the watermark by the source's clock.",
        "trigger_seconds": "How long changes gather, at present.",
        "retained_bytes": "Log that the server keeps for the slot.",
        "safe_bytes": "Log that the server will still keep before it gives up the slot.",
    }
    families: list[Metric] = [
        _gauge("capture_up", "1 while a capture follows the source.", s.phase == "following"),
        _gauge("capture_started_timestamp_seconds", "When the capture was started.", _epoch(s.started_at)),
        _gauge("capture_updated_timestamp_seconds", "When the capture last wrote this.", _epoch(s.updated_at)),
    ]
    for name, text in counted.items():
        families.append(CounterMetricFamily(f"lockstep_capture_{name}", text, value=getattr(s, name)))
    for name, text in measured.items():
        value = getattr(s, name)
        if value is not None:
            families.append(_gauge(f"capture_{name}", text, value))
    return families


def _log_families(position: int, logged_at: datetime | str | None, quarantine_open: int) -> list[Metric]:
    families: list[Metric] = [
        _gauge("log_position", "The watermark's position: changes in the log.", position),
        _gauge("quarantine_open", "Events in quarantine about which nobody has decided.", quarantine_open),
    ]
    if logged_at:
        families.append(_gauge("log_logged_timestamp_seconds", "The watermark's time.", _epoch(logged_at)))
    return families


def _gauge(name: str, text: str, value: float) -> Metric:
    return GaugeMetricFamily(f"lockstep_{name}", text, value=value)


class _Families(Collector):
    def __init__(self, families: Iterable[Metric]) -> None:
        self._families = families

    def collect(self) -> Iterable[Metric]:
        return self._families


def _replace(path: Path, content: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".partial")
    partial.write_bytes(content)
    partial.replace(path)


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds")


def _iso(at: datetime | None) -> str | None:
    return at.replace(tzinfo=UTC).isoformat(timespec="milliseconds") if at else None


def _epoch(at: datetime | str) -> float:
    moment = datetime.fromisoformat(at) if isinstance(at, str) else at
    return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()
