"""Telling somebody, once, when something stops being in order, and once when it is again.

`<home>/alerts.json` holds the incidents that are open, or resolved and not yet told of. It is replaced atomically; a
check that dies between sending a message and noting it sends that message again. `<home>/last_run.json` holds what
failed in the last `lockstep run`.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from lockstep import channels, live_receipts, metrics, operate, source_receipts, warehouse
from lockstep.changelog import ALL_TABLES, KEEP_ALIVE, ChangeLog, Watermark
from lockstep.clock import AHEAD, machine_now
from lockstep.contracts import load
from lockstep.durable import durable_replace
from lockstep.errors import LockstepError
from lockstep.lock import exclusive
from lockstep.warehouse import Row

DIVERGENCE = "divergence"
AUDIT = "failed audit"
FRESHNESS = "freshness missed"
SEALING = "hour not sealing"
QUARANTINE = "quarantine not empty"
CAPTURE = "capture not running"
CLOCK = "commit time ahead"
FILE = "file unreadable"

# How long after the latest such commit time its incident stays open.
CLOCK_FOR = timedelta(hours=24)

FORMAT = 1


@dataclass
class Incident:
    """Something that is not in order: which condition, on what (a domain, a table, a model), since when (UTC).

    `text` says what was found when it opened. `told` and `told_resolved` name the channels that know.
    """

    condition: str
    subject: str
    text: str
    opened_at: str
    resolved_at: str | None = None
    told: list[str] = field(default_factory=list)
    told_resolved: list[str] = field(default_factory=list)

    @property
    def key(self) -> tuple[str, str]:
        return self.condition, self.subject

    def message(self) -> Row:
        """What a channel gets."""
        state = "resolved" if self.resolved_at else "open"
        about = f"{self.condition}: {self.subject}" if self.subject else self.condition
        return {
            "text": f"Lockstep {'RESOLVED' if self.resolved_at else 'ALERT'} {about}\n{self.text}",
            "state": state,
            "condition": self.condition,
            "subject": self.subject,
            "detail": self.text,
            "opened_at": self.opened_at,
            "resolved_at": self.resolved_at,
        }


@dataclass
class Checked:
    """What a check found. `failures` are the channels that could not be reached, with the reason, to be tried again.

    `unknown` are the conditions that could not be looked at; their incidents stay as they were.
    """

    incidents: list[Incident]
    sent: int = 0
    failures: list[str] = field(default_factory=list)
    unknown: list[str] = field(default_factory=list)

    @property
    def open(self) -> list[Incident]:
        return [i for i in self.incidents if not i.resolved_at]

    @property
    def is_well(self) -> bool:
        return not self.open and not self.failures


def check(home: Path, *, dry_run: bool = False) -> Checked:
    """Evaluate every condition, and tell every channel of what has opened or resolved since it was last told.

    With `dry_run` nothing is sent or stored. A channel that fails does not raise: it is told at the next check. Raises
    LockstepError if there is no log, if the settings are wrong, or if another check is under way.
    """
    settings = channels.load()
    with exclusive(home / "alerts.lock", "checking the alerts"):
        found, unknown = _conditions(home, settings.unsealed_hours)
        incidents = _compare(_read(home), found, unknown)
        result = Checked(incidents, unknown=sorted(unknown))
        if dry_run:
            return result
        _write(home, incidents)  # opened_at must not move if a channel hangs and this is killed
        for channel in settings.channels:
            for incident in incidents:
                told = incident.told_resolved if incident.resolved_at else incident.told
                if channel.name in told:
                    continue
                try:
                    channel.send(incident.message())
                except (OSError, ValueError) as e:
                    result.failures.append(f"{channel.name}: {' '.join(str(e).split()) or type(e).__name__}")
                    break  # it would have to be waited for with every incident
                told.append(channel.name)
                result.sent += 1
                _write(home, incidents)
        names = {channel.name for channel in settings.channels}
        pending = [i for i in incidents if not i.resolved_at or not names <= set(i.told_resolved)]
        _write(home, pending)
        return result


def test(home: Path) -> list[tuple[str, str | None]]:
    """Send every channel a message that says it is a test; returns each channel's name and what went wrong, if any."""
    results: list[tuple[str, str | None]] = []
    incident = Incident("test", "", f"This is a test of the alerts of {home}: nothing is wrong.", _now())
    for channel in channels.load().channels:
        try:
            channel.send(incident.message())
            results.append((channel.name, None))
        except (OSError, ValueError) as e:
            results.append((channel.name, " ".join(str(e).split()) or type(e).__name__))
    return results


def after_run(home: Path, failures: Iterable[str]) -> list[str]:
    """Note how a run went and, if channels are configured, check; returns what could not be told, for people."""
    try:
        note = {"ended_at": _now(), "failures": list(failures)}
        durable_replace(home / "last_run.json", json.dumps(note, indent=1).encode())
        if channels.load().channels:
            return [f"Alert not sent to {failure}" for failure in check(home).failures]
    except LockstepError as e:
        return [f"Alerts were not checked. {e}"]
    return []


def _compare(known: list[Incident], found: dict[tuple[str, str], str], unknown: set[str]) -> list[Incident]:
    """The incidents as they are now: new ones opened, and those that are no longer found resolved."""
    incidents = []
    for incident in known:
        if not incident.resolved_at and incident.condition not in unknown and incident.key not in found:
            incident.resolved_at = _now()
        incidents.append(incident)
    still_open = {i.key for i in incidents if not i.resolved_at}
    return incidents + [Incident(*key, text, _now()) for key, text in found.items() if key not in still_open]


def _conditions(home: Path, unsealed_hours: int) -> tuple[dict[tuple[str, str], str], set[str]]:
    """What is not in order, by condition and subject, and the conditions that cannot be told now."""
    log = ChangeLog(home)
    watermark = log.watermark()
    open_events = [e for e in log.quarantined() if e["state"] == "open"]
    found: dict[tuple[str, str], str] = {}
    unknown: set[str] = set()

    last_run = _json(home / "last_run.json") or {"failures": []}
    for failure in last_run["failures"]:
        subject = failure.split(" found ")[0]  # the count of rows changes from run to run, the incident does not
        found[AUDIT, subject] = f"The run that ended at {last_run['ended_at']} said: {failure}"

    closed = watermark.closed_until()
    for table in watermark.holds:
        sealed = watermark.sealed_until([table])
        if closed and sealed and closed - sealed >= timedelta(hours=unsealed_hours):
            why = next((e for e in open_events if e["table"] in (table, ALL_TABLES)), None)
            reason = f": position {why['position']}: {why['reason']}" if why else ""
            found[SEALING, _table(table)] = (
                f"The log's clock has closed the hours up to {closed}, {_table(table)} seals up to {sealed} only. "
                f"An event in quarantine holds it{reason}"
            )

    for table in sorted({e["table"] for e in open_events}):
        events = [e for e in open_events if e["table"] == table]
        found[QUARANTINE, _table(table)] = (
            f"{len(events)} events wait for a decision, the first at position {events[0]['position']}: "
            f"{events[0]['reason']}"
        )

    capture = metrics.capture_status(home)
    if capture and (capture["is_stale"] or capture["phase"] in ("failed", "killed")):
        how = "says nothing any more" if capture["is_running"] else "does not run"
        problem = f": {capture['problem']}" if capture["problem"] else ""
        found[CAPTURE, capture["slot"]] = (
            f"The capture {how}; it was {capture['phase']} at {capture['updated_at']}{problem}"
        )

    found.update(_ahead(watermark))

    for receipt in source_receipts.last(source_receipts.load(home)):
        if receipt["verdict"] == source_receipts.FAILED:
            found[DIVERGENCE, f"source table {receipt['source_table']}"] = (
                f"`lockstep verify-source` found {receipt['differing']} keys in which the log is not the source."
            )

    for domain, receipt in live_receipts.last(live_receipts.load(home)).items():
        if receipt["verdict"] == "failed":
            found[DIVERGENCE, f"live figures of {domain}"] = (
                f"The live receipt of {receipt['reconciled_at']} failed at position {receipt['position']}: "
                f"{receipt['cells_beyond']} of {receipt['cells_compared']} cells differ. "
                f"`lockstep reconcile {domain} --now` takes it again."
            )

    try:
        status = operate.status(home)
        if status["warehouse"] == "ready":
            found.update(_of_domains(home, status))
        elif status["warehouse"] != "none":
            unknown |= {DIVERGENCE, FRESHNESS}
        if status["problem"]:
            found[FILE, "warehouse.duckdb"] = status["problem"]
    except LockstepError:  # a run has begun since
        unknown |= {DIVERGENCE, FRESHNESS}
    return found, unknown


def _ahead(watermark: Watermark) -> dict[tuple[str, str], str]:
    """Commit times that were ahead of the clock when they landed."""
    found = {}
    for table, a in watermark.ahead.items():
        if machine_now() - a.landed_at < CLOCK_FOR:
            what = f"The event of {'an unknown table' if table == ALL_TABLES else table} at position {a.position}"
            if table == KEEP_ALIVE:
                what = f"The keep-alive after position {a.position}"
            more = f", and so do {a.events - 1} more of that landing" if a.events > 1 else ""
            found[CLOCK, _table(table)] = (
                f"{what} has the commit time {a.committed_at} and landed at {a.landed_at:%Y-%m-%d %H:%M:%S}{more}. "
                f"A time more than {AHEAD // timedelta(minutes=1)} minutes ahead does not move the log's clock. "
                "Compare the clocks of the source and of this machine."
            )
    return found


def _of_domains(home: Path, status: Row) -> dict[tuple[str, str], str]:
    found: dict[tuple[str, str], str] = {}
    with warehouse.reader(home) as connection:
        receipts = warehouse.rows(connection, "SELECT * FROM reconcile.receipts ORDER BY sequence")
    for domain in {r["domain"] for r in receipts}:
        unhealed = None
        for r in (r for r in receipts if r["domain"] == domain):
            if r["verdict"] == "failed":
                unhealed = r if unhealed is None or r["cut"] >= unhealed["cut"] else unhealed
            elif (
                r["verdict"] == "passed" and unhealed and r["cut"] >= unhealed["cut"]
            ):  # of an earlier cut it would prove nothing
                unhealed = None
        if unhealed:
            measures = [m for m in unhealed["measures"] if m["cells_beyond"]]
            apart = ", ".join(f"{m['measure']} by {m['worst_absolute']:g}" for m in measures)
            found[DIVERGENCE, domain] = (
                f"The receipt of {unhealed['reconciled_at']} failed at the cut {unhealed['cut']}: "
                f"{unhealed['cells_beyond']} of {unhealed['cells_compared']} cells differ, {apart}. "
                f"`lockstep explain {domain}` says why."
            )
    now = datetime.now(UTC).replace(tzinfo=None)
    contracts = load()
    for domain in status["domains"]:
        objective = contracts[domain["domain"]].freshness_seconds
        age = (now - domain["as_of"]).total_seconds() if domain["as_of"] else None
        if domain["mode"] == "live" and (age is None or age > objective):
            old = f"{age:,.0f} s old" if age is not None else "not there yet"
            why = f"It is served from the rebuild: {domain['reason']}."
            if domain["served_from"] == "live":
                why = "It is served live, and nothing newer has landed or quarantine holds it."
            found[FRESHNESS, domain["domain"]] = f"What is served is {old}, the objective is {objective} s. {why}"
    return found


def _table(name: str) -> str:
    return "all tables" if name == ALL_TABLES else name


def _read(home: Path) -> list[Incident]:
    path = home / "alerts.json"
    raw = _json(path)
    if raw is None:
        return []
    if raw["format"] != FORMAT:
        raise LockstepError(f"{path} has format {raw['format']}, this version of lockstep reads {FORMAT}.")
    return [Incident(**incident) for incident in raw["incidents"]]


def _json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except ValueError as e:
        raise LockstepError(
            f"{path} is not valid JSON ({e}). Remove it: what is open is then told once more."
        ) from None


def _write(home: Path, incidents: list[Incident]) -> None:
    raw = {"format": FORMAT, "incidents": [asdict(i) for i in incidents]}
    durable_replace(home / "alerts.json", json.dumps(raw, indent=1).encode())


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
