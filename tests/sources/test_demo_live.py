"""The live demo leaves nothing behind and hides nothing: interrupted, its processes failing, no server to be found.

That it agrees is what it says itself: `make demo-live` exits with 0 only then, and CI runs it.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path

import pytest

from lockstep import demo_live
from lockstep.changelog import ChangeLog
from lockstep.errors import LockstepError
from postgres import required_programs
from shop import SOURCE, Shop, land

DEMO = "import sys; from lockstep import demo_live; demo_live.HOME = sys.argv[1]; demo_live.main()"


@pytest.fixture
def temporary() -> Iterator[Path]:
    """A place for temporary files that PostgreSQL's account may enter, which pytest's is not."""
    directory = Path(tempfile.mkdtemp(prefix="demo-live-"))
    directory.chmod(0o755)
    yield directory
    shutil.rmtree(directory)


@pytest.mark.parametrize("to_all", [True, False], ids=["Ctrl-C", "SIGTERM"])
def test_interrupted_demo_leaves_nothing_running(tmp_path: Path, temporary: Path, to_all: bool) -> None:
    required_programs()
    home = tmp_path / "home"
    demo = subprocess.Popen(
        [sys.executable, "-c", DEMO, str(home)],
        env={**os.environ, "TMPDIR": str(temporary)},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        while not (home / "company.log").exists():
            assert demo.poll() is None
            time.sleep(0.05)
        assert len(processes(str(temporary))) > 2  # the server, the capture and the company
        if to_all:
            os.killpg(demo.pid, signal.SIGINT)
        else:
            demo.terminate()
        assert demo.wait(timeout=120) != 0
    finally:
        demo.terminate()
        demo.wait(timeout=120)
    assert processes(str(temporary)) == []
    assert list(temporary.glob("lockstep-postgres-*")) == []


def processes(text: str) -> list[str]:
    """The command lines that have `text` in them."""
    listed = subprocess.check_output(["ps", "-ww", "-eo", "args"], text=True)
    return [line for line in listed.splitlines() if text in line]


def test_what_the_demo_needs_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(demo_live, "server_programs", lambda: None)
    with pytest.raises(LockstepError, match="apt-get install postgresql"):
        demo_live.main()


def test_process_that_ends_by_itself_is_reported_with_its_last_words(tmp_path: Path) -> None:
    with demo_live._process(tmp_path / "capture.log", "capture", "postgresql://127.0.0.1:1/shop") as process:
        with pytest.raises(LockstepError, match=r"No snapshot within|`lockstep capture` ended: .*cannot be reached"):
            demo_live._await_snapshot(tmp_path / "home", process)
        with pytest.raises(LockstepError, match=r"`lockstep capture` ended: .*cannot be reached"):
            process.end()


def test_closed_day_is_sealed_to_its_midnight_and_keeps_its_place(tmp_path: Path) -> None:
    shop = Shop(datetime(2026, 11, 18, 13, 37, 5))
    shop.order(1)
    land(tmp_path, shop.changes)
    log = ChangeLog(tmp_path)
    with log.writer(SOURCE) as writer:
        writer.land({}, resume={"commit_lsn": "0/1"})
    assert demo_live._close_the_day(tmp_path) == datetime(2026, 11, 19)
    assert log.watermark().sealed_until(["orders"]) == datetime(2026, 11, 19)
    assert log.watermark().resume == {"commit_lsn": "0/1"}
