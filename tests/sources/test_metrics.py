"""What capture and runs tell of themselves: `lockstep status`, the files for Prometheus, the lines of the log.

Awkward cases: a capture that was killed; one that has said nothing for long; one that lost its server; no warehouse
yet; a warehouse that a run has open; numbers that are not known.
"""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from prometheus_client.parser import text_fd_to_metric_families

from lockstep import logs, metrics, show
from lockstep.changelog import ChangeLog, Watermark
from lockstep.cli import cli
from lockstep.lock import exclusive
from lockstep.metrics import CapturePublisher, CaptureState, capture_status
from lockstep.operate import status
from postgres import Cluster, cluster, shop

__all__ = ["cluster", "shop"]  # fixtures

LOCKSTEP = str(Path(sys.executable).with_name("lockstep"))
WATERMARK = Watermark(5, datetime(2026, 1, 1, 10), datetime(2026, 1, 1), "postgresql:shop", {}, {"commit_lsn": "0/1F"})


def samples(path: Path) -> dict[str, float]:
    """The samples of a file in Prometheus' text format, as its own parser reads them."""
    with path.open(encoding="utf-8") as file:
        found = [s for family in text_fd_to_metric_families(file) for s in family.samples]
    names = [s.name + "".join(f"/{v}" for v in s.labels.values()) for s in found]
    assert len(names) == len(set(names)), "a series stands twice"
    return dict(zip(names, (s.value for s in found), strict=True))


@contextmanager
def capturing(shop: Cluster, home: Path, *options: str) -> Iterator[subprocess.Popen[str]]:
    process = subprocess.Popen(
        [LOCKSTEP, "capture", shop.dsn(), "--trigger", "50ms", *options],
        env={**os.environ, "LOCKSTEP_HOME": str(home)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def wait_for(home: Path, condition: Any, seconds: float = 120.0) -> dict[str, Any]:
    """The capture's status, once it fulfils the condition."""
    end = time.monotonic() + seconds
    while not ((found := capture_status(home)) and condition(found)):
        assert time.monotonic() < end, f"it did not happen in time: {found}"
        time.sleep(0.05)
    return found


def order(number: int) -> str:
    return f"INSERT INTO orders VALUES ({number}, 1, 1, 'north', 2, 100, 'new', now(), now());"


def test_status_tells_how_a_capture_goes_its_loss_and_its_end(shop: Cluster, tmp_path: Path) -> None:
    shop.execute(order(1))
    with capturing(shop, tmp_path, "--log-format", "json", "--log-level", "debug") as process:
        wait_for(tmp_path, lambda c: c["phase"] == "following")
        shop.execute("".join(order(n) for n in range(2, 12)))
        found = wait_for(tmp_path, lambda c: c["changes"] == 10 and c["lag_bytes"] == 0)
        assert found["is_running"] and not found["is_stale"]
        assert (found["pid"], found["position"], found["batches"], found["reconnects"]) == (process.pid, 11, 1, 0)
        assert found["files"] == 1 and found["retained_bytes"] >= 0 and found["lag_seconds"] < 10
        assert status(tmp_path)["warehouse"] == "none"
        asked = CliRunner(env={"LOCKSTEP_HOME": str(tmp_path)}).invoke(cli, ["status"])
        assert (asked.exit_code, f"following as process {process.pid}" in asked.stdout) == (0, True)
        told = samples(tmp_path / "metrics" / "capture.prom")
        assert (told["lockstep_capture_up"], told["lockstep_capture_changes_total"]) == (1, 10)
        assert (told["lockstep_log_position"], told["lockstep_quarantine_open"]) == (11, 0)

        shop.execute("ALTER TABLE orders REPLICA IDENTITY DEFAULT; UPDATE orders SET status = 'x' WHERE order_id = 1")
        wait_for(tmp_path, lambda c: c["quarantined"] == 1)
        wait_for(tmp_path, lambda c: c["quarantine_open"] == 1)
        shop.stop("immediate")
        try:
            lost = wait_for(tmp_path, lambda c: c["phase"] == "reconnecting")
            assert lost["reconnects"] >= 1 and lost["problem"]
            assert samples(tmp_path / "metrics" / "capture.prom")["lockstep_capture_up"] == 0
        finally:
            shop.start()
        wait_for(tmp_path, lambda c: c["phase"] == "following")
        process.terminate()
        _, errors = process.communicate(timeout=120)
    stopped = capture_status(tmp_path)
    assert stopped and (stopped["phase"], stopped["is_running"], stopped["problem"]) == ("stopped", False, None)
    assert samples(tmp_path / "metrics" / "capture.prom")["lockstep_capture_up"] == 0

    lines = [json.loads(line) for line in errors.splitlines()]
    assert all({"time", "level", "event", "message"} <= line.keys() for line in lines)
    events = [line["event"] for line in lines]
    assert {"landed", "quarantined", "connection_lost", "reconnected"} <= set(events)
    first = lines[events.index("landed")]
    assert (first["level"], first["position"], first["changes"], first["files"]) == ("debug", 11, 10, 1)
    assert first["lsn"] and 0 < first["seconds"] < 10


def test_a_capture_that_was_killed_or_failed_is_not_running(shop: Cluster, tmp_path: Path) -> None:
    with capturing(shop, tmp_path) as process:
        wait_for(tmp_path, lambda c: c["phase"] == "following")
        process.kill()
        process.wait()
        killed = capture_status(tmp_path)
        assert killed and (killed["phase"], killed["is_running"], killed["is_stale"]) == ("killed", False, False)
    while shop.execute("SELECT 1 FROM pg_replication_slots WHERE active"):
        time.sleep(0.05)
    shop.execute("SELECT pg_drop_replication_slot('lockstep')")
    with capturing(shop, tmp_path) as process:
        assert process.wait(timeout=120) == 1
    failed = capture_status(tmp_path)
    assert failed and failed["phase"] == "failed" and "slot lockstep is gone" in failed["problem"]


def test_a_capture_that_says_nothing_for_long_is_stale(tmp_path: Path) -> None:
    with exclusive(tmp_path / "capture.lock", "capturing changes"):
        CapturePublisher(tmp_path, CaptureState("lockstep", 1.0, phase="following")).publish(WATERMARK)
        fresh = capture_status(tmp_path)
        assert fresh and (fresh["is_running"], fresh["is_stale"]) == (True, False)
        path = tmp_path / "capture.json"
        old = {
            **json.loads(path.read_text()),
            "updated_at": (datetime.now(UTC) - timedelta(seconds=metrics.STALE_AFTER + 1)).isoformat(),
        }
        path.write_text(json.dumps(old))
        stale = capture_status(tmp_path)
        assert stale and (stale["is_running"], stale["is_stale"]) == (True, True)
        assert "STUCK?" in show._capture(stale)
        path.write_text(json.dumps({**old, "phase": "snapshot"}))  # a snapshot says nothing until it is done
        assert not (capture_status(tmp_path) or {})["is_stale"]


def test_what_is_not_known_is_left_out(tmp_path: Path) -> None:
    assert capture_status(tmp_path) is None
    CapturePublisher(tmp_path, CaptureState("lockstep", 1.0)).publish(Watermark())
    told = samples(tmp_path / "metrics" / "capture.prom")
    assert told["lockstep_log_position"] == 0
    assert not {"lockstep_capture_lag_bytes", "lockstep_log_logged_timestamp_seconds"} & told.keys()
    assert not list(tmp_path.rglob("*.partial"))
    (tmp_path / "capture.json").write_text("")  # torn by a crash of the machine
    assert capture_status(tmp_path) is None


def test_changes_a_second_are_those_of_the_last_seconds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: clock[0])
    publisher = CapturePublisher(tmp_path, CaptureState("lockstep", 1.0))
    rates = []
    for _ in range(20):
        clock[0] += 2
        publisher.state.changes += 100 if clock[0] <= 120 else 0
        publisher.publish(WATERMARK)
        rates.append(publisher.state.changes_per_second)
    assert rates[:10] == [50.0] * 10
    assert rates[-5:] == [0.0] * 5


def test_a_run_tells_how_it_went(tmp_path: Path) -> None:
    domain = {
        "domain": "orders",
        "served_from": "live",
        "as_of": datetime(2026, 1, 1, 10, 0, 5),
        "verified_cut": None,
    }
    other = {**domain, "domain": "routes", "served_from": "rebuild", "verified_cut": datetime(2026, 1, 1)}
    ingested = {"capture": None, "position": 7, "logged_at": datetime(2026, 1, 1, 10), "quarantined": 2}
    metrics.publish_run(tmp_path, 2.5, False, {**ingested, "domains": [domain, other]})
    told = samples(tmp_path / "metrics" / "run.prom")
    assert told["lockstep_run_agrees"] == 0 and told["lockstep_run_seconds"] == 2.5
    assert told["lockstep_domain_served_live/orders"] == 1 and told["lockstep_domain_served_live/routes"] == 0
    assert told["lockstep_domain_verified_cut_timestamp_seconds/routes"] == 1767225600
    assert "lockstep_domain_verified_cut_timestamp_seconds/orders" not in told
    assert (told["lockstep_log_position"], told["lockstep_quarantine_open"]) == (7, 2)


def test_a_run_says_of_a_killed_capture_that_it_is_down(tmp_path: Path) -> None:
    CapturePublisher(tmp_path, CaptureState("lockstep", 1.0, phase="following")).publish(WATERMARK)
    assert samples(tmp_path / "metrics" / "capture.prom")["lockstep_capture_up"] == 1
    seen = {"capture": capture_status(tmp_path), "position": 5, "logged_at": None, "quarantined": 0, "domains": []}
    metrics.publish_run(tmp_path, 1.0, True, seen)
    told = samples(tmp_path / "metrics" / "capture.prom")
    assert (told["lockstep_capture_up"], told["lockstep_log_position"]) == (0, 5)
    assert "lockstep_log_position" not in samples(tmp_path / "metrics" / "run.prom"), "one series, one file"


def test_status_while_a_run_has_the_warehouse_open(tmp_path: Path) -> None:
    with ChangeLog(tmp_path).writer("postgresql:shop"):
        pass
    (tmp_path / "warehouse.duckdb").touch()
    with exclusive(tmp_path / "warehouse.lock", "running the models"):
        result = CliRunner(env={"LOCKSTEP_HOME": str(tmp_path)}).invoke(cli, ["status"])
        assert result.exit_code == 0
        assert "A run has the warehouse open" in result.stdout
        assert status(tmp_path)["warehouse"] == "busy"


def test_a_line_of_the_log_is_one_object(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    root = logging.Logger("root")
    monkeypatch.setattr(logging, "root", root)
    logs.set_up("json", "info")
    root.debug("too fine")
    root.info("%d landed\nin two lines", 5, extra=logs.about("landed", changes=5, lsn="0/1F"))
    try:
        raise ValueError("é")
    except ValueError:
        root.exception("broken")
    first, second = [json.loads(line) for line in capsys.readouterr().err.splitlines()]
    assert datetime.fromisoformat(first.pop("time")).tzinfo is not None
    assert first == {
        "level": "info",
        "event": "landed",
        "message": "5 landed\nin two lines",
        "changes": 5,
        "lsn": "0/1F",
    }
    assert (second["level"], second["event"]) == ("error", "note") and "ValueError: é" in second["exception"]
