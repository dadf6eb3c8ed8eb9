"""Each condition opens an incident; each channel hears of it once, and once of its end, whatever fails meanwhile."""

from __future__ import annotations

import json
import shutil
import socketserver
import sys
import threading
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from email import message_from_string
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from click.testing import CliRunner

from lockstep import alerts, channels, contracts, metrics, operate, source_receipts
from lockstep.alerts import Incident
from lockstep.changelog import ChangeLog
from lockstep.cli import cli
from lockstep.errors import LockstepError
from lockstep.lock import exclusive
from lockstep.quarantine import discard
from projects import in_full
from shop import SOURCE, Shop, batch_of, land

ROOT = Path(__file__).parents[2]
NOW = datetime(2026, 3, 1, 8, 10)


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A home whose log has one order, without a warehouse, in a project of contracts alone."""
    path, project = tmp_path / "home", tmp_path / "project"
    shutil.copytree(ROOT / "seeds", project / "seeds")
    in_full(project)  # there are no queries to read them from
    for file in [ROOT / "config.yaml", *ROOT.glob("*.sql")]:
        shutil.copy(file, project)
    monkeypatch.chdir(project)
    monkeypatch.setenv("LOCKSTEP_HOME", str(path))
    monkeypatch.delenv("LOCKSTEP_ALERTS", raising=False)
    contracts.load.cache_clear()
    shop = Shop(NOW)
    shop.order(1)
    land(path, shop.changes)
    yield path
    contracts.load.cache_clear()


class Hook:
    """A webhook that says whatever it is told to."""

    def __init__(self) -> None:
        self.got: list[dict[str, Any]] = []
        self.headers: list[dict[str, str]] = []
        self.answer = 204
        hook = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                if hook.answer < 300:
                    hook.got.append(json.loads(body))
                    hook.headers.append(dict(self.headers))
                self.send_response(hook.answer)
                self.end_headers()

            def log_message(self, *_: object) -> None:
                pass

        self.server = HTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}/alerts"

    def states(self) -> list[tuple[str, str, str]]:
        return [(m["state"], m["condition"], m["subject"]) for m in self.got]


@pytest.fixture
def hook() -> Iterator[Hook]:
    hook = Hook()
    threading.Thread(target=hook.server.serve_forever, args=(0.01,)).start()
    yield hook
    hook.server.shutdown()
    hook.server.server_close()


@pytest.fixture
def mails() -> Iterator[tuple[int, list[str]]]:
    """The port of a mail server, and the mails it has taken."""
    taken: list[str] = []

    class Handler(socketserver.StreamRequestHandler):
        def handle(self) -> None:
            self.say("220 stub")
            while line := self.rfile.readline().decode().strip():
                if line.lower() == "data":
                    self.say("354 go on")
                    lines = iter(lambda: self.rfile.readline().decode(), ".\r\n")
                    taken.append("".join(lines))
                self.say("221 bye" if line.lower() == "quit" else "250 fine")

        def say(self, text: str) -> None:
            self.wfile.write(f"{text}\r\n".encode())

    server = socketserver.ThreadingTCPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, args=(0.01,)).start()
    yield server.server_address[1], taken
    server.shutdown()
    server.server_close()


def configure(text: str) -> None:
    Path("alerts.toml").write_text(text)


def webhook(hook: Hook, name: str = "webhook") -> str:
    return f'[[channels]]\nkind = "webhook"\nname = "{name}"\nurl = "{hook.url}"\n'


def quarantine(home: Path, at: datetime, table: str = "orders") -> None:
    """An event of an order that cannot be read."""
    rejected = pa.table(
        {
            "ordinal": [1],
            "committed_at": pa.array([at], pa.timestamp("us")),
            "table": [table],
            "reason": ["no key"],
            "event": ["{}"],
        }
    )
    with ChangeLog(home).writer(SOURCE) as writer:
        writer.land({}, rejected)


def test_an_incident_is_told_once_when_it_opens_and_once_when_it_resolves(home: Path, hook: Hook) -> None:
    configure(webhook(hook))
    assert alerts.check(home).is_well
    quarantine(home, NOW)
    first = alerts.check(home)
    assert [i.condition for i in first.open] == [alerts.QUARANTINE]
    alerts.check(home)
    assert hook.states() == [("open", alerts.QUARANTINE, "orders")]
    assert "position 2: no key" in hook.got[0]["detail"]
    discard(home, [2])
    assert alerts.check(home).is_well
    assert alerts.check(home).incidents == []
    assert hook.states()[1:] == [("resolved", alerts.QUARANTINE, "orders")]
    assert hook.got[1]["opened_at"] == hook.got[0]["opened_at"] and hook.got[1]["resolved_at"]
    quarantine(home, NOW)
    alerts.check(home)
    assert len(hook.got) == 3  # a new incident


def test_a_dry_run_sends_and_stores_nothing(home: Path, hook: Hook) -> None:
    configure(webhook(hook))
    quarantine(home, NOW)
    result = CliRunner().invoke(cli, ["alerts", "--dry-run"])
    assert result.exit_code == 1
    assert "OPEN" in result.output and "quarantine not empty: orders" in result.output
    assert hook.got == []
    assert not (home / "alerts.json").exists()


def test_a_channel_that_fails_is_told_at_the_next_check(home: Path, hook: Hook) -> None:
    """The other channels hear of it at once, and nobody hears of it twice."""
    configure(webhook(hook) + '[[channels]]\nkind = "command"\ncommand = ["sh", "-c", "cat >> told"]\n')
    quarantine(home, NOW)
    hook.answer = 500
    result = CliRunner().invoke(cli, ["alerts", "check"])
    assert result.exit_code == 1
    assert "webhook: the server answered 500" in result.output
    hook.answer = 200
    assert alerts.check(home).failures == []
    alerts.check(home)
    assert hook.states() == [("open", alerts.QUARANTINE, "orders")]
    assert [json.loads(line)["state"] for line in Path("told").read_text().splitlines()] == ["open"]
    hook.answer = 404
    discard(home, [2])
    assert not alerts.check(home).is_well
    hook.answer = 200
    assert alerts.check(home).is_well
    assert [m["state"] for m in hook.got] == ["open", "resolved"]


def test_what_was_over_before_a_channel_worked_is_told_as_resolved(home: Path, hook: Hook) -> None:
    configure(webhook(hook))
    quarantine(home, NOW)
    hook.answer = 500
    alerts.check(home)
    discard(home, [2])
    hook.answer = 200
    alerts.check(home)
    assert [m["state"] for m in hook.got] == ["resolved"]


def test_a_new_channel_hears_of_what_is_open(home: Path, hook: Hook) -> None:
    configure(webhook(hook, "one"))
    quarantine(home, NOW)
    alerts.check(home)
    configure(webhook(hook, "one") + webhook(hook, "two"))
    alerts.check(home)
    assert len(hook.got) == 2


def test_an_email_says_it_in_its_subject(home: Path, mails: tuple[int, list[str]]) -> None:
    port, taken = mails
    configure(
        f'[[channels]]\nkind = "email"\nhost = "127.0.0.1"\nport = {port}\n'
        'from = "lockstep@example.org"\nto = ["a@example.org", "b@example.org"]\n'
    )
    quarantine(home, NOW)
    assert alerts.check(home).failures == []
    [mail] = [message_from_string(text) for text in taken]
    assert mail["Subject"] == "Lockstep ALERT quarantine not empty: orders"
    assert mail["To"] == "a@example.org, b@example.org"
    assert "position 2: no key" in mail.get_payload()


def test_a_mail_server_that_is_not_there(home: Path) -> None:
    configure('[[channels]]\nkind = "email"\nhost = "127.0.0.1"\nport = 1\nfrom = "a@b"\nto = ["c@d"]\n')
    quarantine(home, NOW)
    [failure] = alerts.check(home).failures
    assert "email" in failure and "refused" in failure


@pytest.mark.parametrize(
    ("command", "told"),
    [
        (["sh", "-c", "echo no route >&2; exit 3"], "exit code 3: no route"),
        (["no-such-command"], "No such file"),
        ([sys.executable, "-c", "import time; time.sleep(9)"], "longer than 1 s"),
    ],
)
def test_a_command_that_fails(home: Path, command: list[str], told: str) -> None:
    configure(f'[[channels]]\nkind = "command"\ncommand = {json.dumps(command)}\ntimeout_seconds = 1\n')
    quarantine(home, NOW)
    [failure] = alerts.check(home).failures
    assert told in failure


def test_secrets_come_from_the_environment(home: Path, hook: Hook, monkeypatch: pytest.MonkeyPatch) -> None:
    configure(webhook(hook) + 'headers = {Authorization = "Bearer ${TOKEN}"}\n')
    with pytest.raises(LockstepError, match="'TOKEN', which is not set"):
        channels.load()
    monkeypatch.setenv("TOKEN", "abc")
    result = CliRunner().invoke(cli, ["alerts", "test"])
    assert result.exit_code == 0, result.output
    assert hook.headers[0]["Authorization"] == "Bearer abc"
    assert "nothing is wrong" in hook.got[0]["detail"]


MISTAKES = {
    "channels = 1": "channels is 1, expected a list",
    "unsealed_hours = 0": "unsealed_hours is 0, expected a whole number from 1",
    "unsealed_hour = 1": "no setting unsealed_hour",
    "channels = [1]": "channel 1 is not a table",
    '[[channels]]\nkind = "pigeon"': "channel 1: kind is 'pigeon', expected one of webhook, email, command",
    "[[channels]]": "channel 1: kind is missing",
    '[[channels]]\nkind = "webhook"': "url is missing",
    '[[channels]]\nkind = "webhook"\nurl = "file:///etc/passwd"': "expected http:// or https://",
    '[[channels]]\nkind = "webhook"\nurl = "http://a"\nto = ["b"]': "no setting to",
    '[[channels]]\nkind = "command"\ncommand = "ls"': "expected a list",
    '[[channels]]\nkind = "command"\ncommand = []': "expected a list of texts",
    '[[channels]]\nkind = "command"\ncommand = ["a$b c"]': "'b', which is not set",
    '[[channels]]\nkind = "command"\ncommand = ["5 $"]': "written $$",
    '[[channels]]\nkind = "email"\nhost = "h"\nfrom = "f"\nto = ["t"]\nsecurity = "ssl"': "none, starttls or tls",
    '[[channels]]\nkind = "command"\ncommand = ["a"]\n[[channels]]\nkind = "command"\ncommand = ["b"]': "the same name",
    "[[channels": "is not TOML",
}


@pytest.mark.parametrize("text", MISTAKES)
def test_a_mistake_in_the_settings_is_named(home: Path, text: str) -> None:
    configure(text)
    with pytest.raises(LockstepError) as error:
        channels.load()
    assert MISTAKES[text] in str(error.value)
    assert "alerts.toml" in str(error.value)


def test_the_settings_may_lie_elsewhere(
    home: Path, hook: Hook, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LOCKSTEP_ALERTS", str(tmp_path / "mine.toml"))
    with pytest.raises(LockstepError, match=r"mine\.toml, which LOCKSTEP_ALERTS names, is missing"):
        channels.load()
    (tmp_path / "mine.toml").write_text(webhook(hook))
    assert [c.name for c in channels.load().channels] == ["webhook"]


# the conditions


def found(home: Path) -> dict[tuple[str, str], str]:
    return {i.key: i.text for i in alerts.check(home, dry_run=True).open}


def test_an_hour_that_does_not_seal(home: Path) -> None:
    """After unsealed_hours, by the log's clock; of a table that nobody knows it is all tables."""
    quarantine(home, NOW)
    land(home, [], reached=NOW + timedelta(hours=1))
    assert (alerts.SEALING, "orders") not in found(home)
    land(home, [], reached=NOW + timedelta(hours=2))
    text = found(home)[alerts.SEALING, "orders"]
    assert "closed the hours up to 2026-03-01 10:00:00" in text
    assert "seals up to 2026-03-01 08:00:00" in text and "position 2: no key" in text
    configure("unsealed_hours = 3")
    assert (alerts.SEALING, "orders") not in found(home)
    quarantine(home, NOW, table="*")
    land(home, [], reached=NOW + timedelta(hours=6))
    assert (alerts.SEALING, "all tables") in found(home)


def test_a_failed_audit_of_the_last_run(home: Path, hook: Hook) -> None:
    configure(webhook(hook))
    assert alerts.after_run(home, ["hourly.log: audit positions_gapless found 1 rows"]) == []
    alerts.after_run(home, ["hourly.log: audit positions_gapless found 2 rows"])
    alerts.after_run(home, [])
    key = (alerts.AUDIT, "hourly.log: audit positions_gapless")
    assert hook.states() == [("open", *key), ("resolved", *key)]


def test_a_run_says_what_could_not_be_told(home: Path, hook: Hook) -> None:
    configure(webhook(hook))
    hook.answer = 503
    [warning] = alerts.after_run(home, ["rebuild.cut: audit log_is_complete found 1 rows"])
    assert "webhook: the server answered 503" in warning
    configure("[[channels")
    [warning] = alerts.after_run(home, [])
    assert "not checked" in warning and "alerts.toml" in warning


def test_lockstep_run_checks_at_its_end(home: Path, hook: Hook, monkeypatch: pytest.MonkeyPatch) -> None:
    """But not a replay. What could not be told is a warning and the exit code, for cron to tell of."""
    configure(webhook(hook))
    monkeypatch.setattr(operate, "_sqlmesh", lambda *_: ["hourly.log: audit positions_gapless found 1 rows"])
    assert operate.run(home, datetime(2026, 3, 1, 9)).warnings == []
    assert hook.got == []
    assert operate.run(home).warnings == []
    assert hook.states() == [("open", alerts.AUDIT, "hourly.log: audit positions_gapless")]
    hook.answer = 500
    monkeypatch.setattr(operate, "_sqlmesh", lambda *_: [])
    monkeypatch.setattr(operate.Run, "agrees", True)
    result = CliRunner().invoke(cli, ["run"])
    assert result.exit_code == 1
    assert "Warning: Alert not sent to webhook: the server answered 500" in result.output
    hook.answer = 200
    assert CliRunner().invoke(cli, ["run"]).exit_code == 0
    assert [m["state"] for m in hook.got] == ["open", "resolved"]


def test_without_channels_a_run_checks_nothing(home: Path) -> None:
    quarantine(home, NOW)
    assert alerts.after_run(home, ["orders: audit a found 1 rows"]) == []
    assert not (home / "alerts.json").exists()
    assert {condition for condition, _ in found(home)} == {alerts.AUDIT, alerts.QUARANTINE}


@pytest.mark.parametrize(
    ("phase", "opens"), [("following", "killed"), ("failed", "failed"), ("stopped", None), ("reconnecting", "killed")]
)
def test_a_capture_that_does_not_run(home: Path, phase: str, opens: str | None) -> None:
    """One that was stopped on purpose is none; where that is not right, the freshness says so."""
    state = metrics.CaptureState("lockstep", 1.0, phase=phase, problem="slot is gone" if phase == "failed" else None)
    metrics.CapturePublisher(home, state).publish(ChangeLog(home).watermark())
    incidents = found(home)
    assert bool(incidents) == bool(opens)
    if opens:
        assert f"it was {opens}" in incidents[alerts.CAPTURE, "lockstep"]


def test_a_commit_time_ahead_of_the_clock_names_the_event(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shop = Shop(datetime(2099, 1, 1))
    shop.order(2)
    shop.order(3)
    with ChangeLog(home).writer(SOURCE, clock=lambda: NOW) as writer:
        writer.land(batch_of(shop.changes), reached=shop.now)
    monkeypatch.setattr(alerts, "machine_now", lambda: NOW + timedelta(hours=23))
    assert set(found(home)) == {(alerts.CLOCK, "orders"), (alerts.CLOCK, "keep-alive")}
    text = found(home)[alerts.CLOCK, "orders"]
    assert "The event of orders at position 2 has the commit time 2099-01-01 00:00:00" in text
    assert "and so do 1 more of that landing" in text
    monkeypatch.setattr(alerts, "machine_now", lambda: NOW + timedelta(hours=25))
    assert found(home) == {}


def test_a_source_that_is_not_the_log(home: Path) -> None:
    receipt = {"source_table": "orders", "verdict": "passed", "differing": 0}
    source_receipts.append(
        home, [receipt, {**receipt, "source_table": "products", "verdict": "failed", "differing": 3}]
    )
    assert list(found(home)) == [(alerts.DIVERGENCE, "source table products")]
    source_receipts.append(home, [{**receipt, "source_table": "products"}])
    assert found(home) == {}


class Warehouse:
    """Receipts and what is served, as a warehouse would say it."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.receipts: list[dict[str, Any]] = []
        self.serving: dict[str, Any] = {
            "domain": "orders",
            "mode": "live",
            "served_from": "live",
            "reason": "it passed",
        }
        self.age = timedelta(0)
        self.state = "ready"
        status = operate.status

        def with_domains(home: Path) -> dict[str, Any]:
            as_of = datetime.now(UTC).replace(tzinfo=None) - self.age
            return {**status(home), "warehouse": self.state, "domains": [{**self.serving, "as_of": as_of}]}

        monkeypatch.setattr(operate, "status", with_domains)
        monkeypatch.setattr(alerts.warehouse, "reader", lambda home: exclusive(home / "reader.lock", "a test"))
        monkeypatch.setattr(alerts.warehouse, "rows", lambda *_: self.receipts)

    def receipt(self, hour: int, verdict: str) -> None:
        measures = [{"measure": "revenue_cents", "worst_absolute": 7.0, "cells_beyond": 2}]
        receipt = {"domain": "orders", "cut": datetime(2026, 3, 1, hour), "verdict": verdict, "measures": measures}
        self.receipts.append({**receipt, "reconciled_at": NOW, "cells_beyond": 2, "cells_compared": 9})


@pytest.fixture
def served(home: Path, monkeypatch: pytest.MonkeyPatch) -> Warehouse:
    return Warehouse(monkeypatch)


def test_a_divergence_lasts_until_a_receipt_of_that_cut_or_a_later_one_passes(home: Path, served: Warehouse) -> None:
    open_after = []
    for hour, verdict in [(5, "passed"), (6, "failed"), (5, "passed"), (4, "failed"), (4, "passed"), (6, "passed")]:
        served.receipt(hour, verdict)
        open_after.append((alerts.DIVERGENCE, "orders") in found(home))
    assert open_after == [False, True, True, True, True, False]
    served.receipt(7, "failed")
    text = found(home)[alerts.DIVERGENCE, "orders"]
    assert "2 of 9 cells differ, revenue_cents by 7" in text and "lockstep explain orders" in text


def test_a_missed_freshness_objective_of_a_domain_in_live_mode(home: Path, served: Warehouse) -> None:
    objective = contracts.load()["orders"].freshness_seconds
    served.age = timedelta(seconds=objective - 5)
    assert found(home) == {}
    served.age = timedelta(seconds=objective + 1)
    assert f"the objective is {objective} s" in found(home)[alerts.FRESHNESS, "orders"]
    served.serving |= {"mode": "shadow"}
    assert found(home) == {}


def test_while_a_run_has_the_warehouse_what_cannot_be_known_stays_as_it_was(
    home: Path, served: Warehouse, hook: Hook
) -> None:
    configure(webhook(hook))
    served.receipt(6, "failed")
    alerts.check(home)
    served.state, served.receipts = "busy", []
    result = alerts.check(home)
    assert [i.condition for i in result.open] == [alerts.DIVERGENCE]
    assert result.unknown == [alerts.DIVERGENCE, alerts.FRESHNESS]
    served.state = "ready"
    alerts.check(home)
    assert [m["state"] for m in hook.got] == ["open", "resolved"]


def test_a_file_that_cannot_be_read_is_named(home: Path) -> None:
    (home / "alerts.json").write_text("{")
    with pytest.raises(LockstepError, match=r"alerts\.json is not valid JSON"):
        alerts.check(home)


def test_a_check_killed_after_sending_repeats_at_most_that_message(
    home: Path, hook: Hook, monkeypatch: pytest.MonkeyPatch
) -> None:
    configure(webhook(hook))
    quarantine(home, NOW)
    land(home, [], reached=NOW + timedelta(hours=5))
    write = alerts._write

    def dies(home: Path, incidents: list[Incident]) -> None:
        if any(i.told for i in incidents):
            raise KeyboardInterrupt
        write(home, incidents)

    monkeypatch.setattr(alerts, "_write", dies)
    with pytest.raises(KeyboardInterrupt):
        alerts.check(home)
    monkeypatch.setattr(alerts, "_write", write)
    alerts.check(home)
    assert len(hook.got) == 3
    assert len({m["opened_at"] for m in hook.got}) == 1
