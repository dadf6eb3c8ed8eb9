"""The log without its watermark, with another one, and with files that are not as they landed.

Nothing that landed is ever deleted; the writer refuses what it would have to guess; `log check` names what is not as it
was; `log repair` makes the watermark again. What messages advise is done.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner
from test_changelog import (
    NOON,
    SOURCE,
    as_format_2,
    batch,
    created,
    everything,
    land,
    large,
    minutes,
    product,
    rejected,
    state,
    tree,
)

from lockstep import compact, journal
from lockstep.changelog import ChangeLog
from lockstep.cli import cli
from lockstep.errors import LockstepError
from lockstep.journal import Journal, sealed, unsealed
from lockstep.log_check import check
from lockstep.log_repair import repair


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A log with growing files, a large one, several tables and hours, and quarantined events, open and discarded."""
    home = tmp_path_factory.mktemp("original")
    log = land(home, created(1), ("products", "c", None, product(1), NOON), resume={"lsn": 1})
    with log.writer(SOURCE) as writer:
        writer.land(batch(created(2, NOON + minutes(1))), rejected((1, "orders", NOON), (2, "gps_pings", NOON)))
        writer.land(large(10, NOON + minutes(61)))
        writer.land(batch(created(3, NOON + minutes(125))), resume={"lsn": 2})
        writer.land({}, reached=NOON + minutes(150), resume={"lsn": 3})
    return home


@pytest.fixture
def log(original: Path, tmp_path: Path) -> ChangeLog:
    shutil.copytree(original, tmp_path / "home", symlinks=True)
    return ChangeLog(tmp_path / "home")


def changed(log: ChangeLog, **fields: object) -> None:
    """Edit the watermark, with a checksum that is right."""
    path = log.root / "watermark.json"
    path.write_bytes(sealed({**unsealed(path.read_bytes()), **fields}))


def missing(log: ChangeLog) -> None:
    (log.root / "watermark.json").unlink()


def truncated(log: ChangeLog) -> None:
    path = log.root / "watermark.json"
    path.write_bytes(path.read_bytes()[:-20])


def emptied(log: ChangeLog) -> None:
    (log.root / "watermark.json").write_bytes(b"")


def edited(log: ChangeLog) -> None:
    path = log.root / "watermark.json"
    text = path.read_text()
    path.write_text(text.replace(f'"position": {log.watermark().position}', '"position": 2'))
    assert path.read_text() != text


def moved_back(log: ChangeLog) -> None:
    changed(log, position=2)


def clock_moved_forward(log: ChangeLog) -> None:
    changed(log, logged_at="2099-01-01T00:00:00.000000")


def older(log: ChangeLog) -> None:
    newer = ChangeLog(log.home.parent / "newer")
    shutil.copytree(log.home, newer.home, symlinks=True)
    land(newer.home, created(4, NOON + minutes(160)))
    shutil.copy(log.root / "watermark.json", newer.root)
    shutil.rmtree(log.home)
    newer.home.rename(log.home)


FAULTS = [missing, truncated, emptied, edited, moved_back, clock_moved_forward, older]


def bytes_of(log: ChangeLog) -> dict[str, bytes]:
    return {name: (log.home / name).read_bytes() for name in tree(log)}


def is_landed(name: str) -> bool:
    return name.startswith("quarantine") or "/hour=" in name


def landed_bytes(log: ChangeLog) -> dict[str, bytes]:
    return {name: content for name, content in bytes_of(log).items() if is_landed(name)}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_watermark_that_is_not_the_last_is_refused_and_restored(log: ChangeLog, fault: Callable[..., None]) -> None:
    fault(log)
    was = json.loads(CliRunner().invoke(cli, ["log", "check", "--json"], env={"LOCKSTEP_HOME": str(log.home)}).stdout)
    assert [f["kind"] for f in was["findings"]][:1] == ["watermark"]
    before = bytes_of(log)
    with pytest.raises(LockstepError, match="lockstep log repair"), log.writer(SOURCE):
        pass
    with pytest.raises(LockstepError, match="lockstep log repair"):
        log.require_changes()
    assert repair(log.home).watermark is not None
    assert bytes_of(log) == before, "nothing is written without being told to"
    assert repair(log.home, is_done=True).is_done
    assert landed_bytes(log) == {name: content for name, content in before.items() if is_landed(name)}
    last = 6006 + (fault is older)
    assert [row["position"] for row in everything(log)] == [n for n in range(1, last + 1) if n != 4]
    assert log.watermark().resume == {"lsn": 3}
    assert list(log.watermark().holds) == ["orders"]
    assert check(log.home).is_sound
    assert repair(log.home).watermark is None
    land(log.home, created(5, NOON + minutes(170)))
    assert log.watermark().position == last + 1


def test_the_watermark_is_made_of_the_files_where_no_copy_is_left(log: ChangeLog) -> None:
    before, watermark = state(log), log.watermark()
    for path in (log.root / "watermark.json", log.root / "journal.jsonl"):
        path.unlink()
    with pytest.raises(LockstepError, match="--source"):
        repair(log.home)
    found = repair(log.home, source=SOURCE, is_done=True)
    assert any("not known" in sentence for sentence in found.says)
    made = log.watermark()
    assert (made.position, made.started_at, made.source) == (watermark.position, watermark.started_at, SOURCE)
    assert made.holds == watermark.holds
    assert made.logged_at == NOON + minutes(125), "no change says that the source was later"
    assert made.resume == {}
    assert everything(log) == before[4]
    land(log.home, created(5, NOON + minutes(170)))


def test_both_copies_restored_from_a_backup_the_files_count(log: ChangeLog) -> None:
    saved = log.home.parent / "saved"
    saved.mkdir()
    for name in ("watermark.json", "journal.jsonl"):
        shutil.copy(log.root / name, saved)
    land(log.home, created(4, NOON + minutes(160)), ("products", "c", None, product(3), NOON), resume={"lsn": 9})
    rows = everything(log)
    for name in ("watermark.json", "journal.jsonl"):
        shutil.copy(saved / name, log.root)
    before = bytes_of(log)
    with pytest.raises(LockstepError, match="no landing has named"), log.writer(SOURCE):
        pass
    assert bytes_of(log) == before
    assert repair(log.home, is_done=True).moved == []
    assert everything(log) == rows
    assert log.watermark().logged_at == NOON + minutes(160)


def test_a_stranger_beyond_the_watermark_goes_to_the_debris(log: ChangeLog) -> None:
    rows = everything(log)
    stranger = log.root / "orders" / "hour=2026-11-18T14" / "9000-9001.parquet"
    shutil.copy(log.files("orders")[0], stranger)
    content = stranger.read_bytes()
    with pytest.raises(LockstepError, match="9000-9001"), log.writer(SOURCE):
        pass
    assert repair(log.home, is_done=True).moved == [stranger.relative_to(log.home).as_posix()]
    [moved] = (log.home / "debris").glob("*/changelog/orders/*/*.parquet")
    assert moved.read_bytes() == content
    with log.writer(SOURCE):
        assert everything(log) == rows


def test_a_hole_without_a_copy_of_the_watermark_is_not_guessed_over(log: ChangeLog) -> None:
    for path in (log.root / "watermark.json", log.root / "journal.jsonl", log.files("products", until=9999)[0]):
        path.unlink()
    with pytest.raises(LockstepError, match="Position 2 is in no file"):
        repair(log.home, source=SOURCE)


def test_a_damaged_journal_is_said_and_the_watermark_serves(log: ChangeLog, caplog: pytest.LogCaptureFixture) -> None:
    path = log.root / "journal.jsonl"
    content = path.read_bytes()
    path.write_bytes(content.replace(b'"rows"', b'"sour"').replace(b"12/1-", b"12/7-", 1))
    before = state(log)
    assert any(f.kind == "journal" for f in check(log.home).findings)
    with log.writer(SOURCE):
        assert state(log) == before
    assert "damaged in line" in caplog.text
    path.unlink()
    with log.writer(SOURCE):
        assert state(log) == before
    assert "is missing" in caplog.text


# What `log check` finds


def orders(log: ChangeLog) -> list[Path]:
    return log.files("orders")


def one_byte(log: ChangeLog) -> Path:
    path = orders(log)[1]
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    return path


def the_tail(log: ChangeLog) -> Path:
    path = orders(log)[-1].resolve()
    rows = pq.read_table(pa.BufferReader(path.read_bytes()))
    pq.write_table(rows.set_column(4, rows.schema.field(4), rows["before"]), path)
    return orders(log)[-1]


def cut(log: ChangeLog) -> Path:
    os.truncate(orders(log)[0], 300)
    return orders(log)[0]


def lost(log: ChangeLog) -> Path:
    path = log.files("products")[0]
    path.unlink()
    return path


def doubled(log: ChangeLog) -> Path:
    path = orders(log)[1].with_name("5999-6001.parquet")
    shutil.copy(orders(log)[1], path)
    return path


def events(log: ChangeLog) -> Path:
    path = log.quarantine / "3-5.jsonl"
    path.write_text(path.read_text().replace("no key", "no idea"))
    return path


@pytest.mark.parametrize(
    ("fault", "kind"),
    [
        (one_byte, "changed"),
        (the_tail, "changed"),
        (cut, "cut"),
        (lost, "lost"),
        (doubled, "doubled"),
        (events, "changed"),
    ],
)
def test_check_names_what_is_not_as_it_landed(log: ChangeLog, fault: Callable[[ChangeLog], Path], kind: str) -> None:
    assert check(log.home).is_sound
    path = fault(log)
    found = check(log.home).findings
    assert (kind, path.relative_to(log.home).as_posix()) in {(f.kind, f.path) for f in found}
    assert all(f.published == ["nothing was computed from it yet"] for f in found if f.first is not None)
    result = CliRunner().invoke(cli, ["log", "check"], env={"LOCKSTEP_HOME": str(log.home)})
    assert result.exit_code == 1 and str(path.name) in result.stdout


def test_a_file_that_was_changed_does_not_grow(log: ChangeLog) -> None:
    the_tail(log)
    before = bytes_of(log)
    with pytest.raises(LockstepError, match=r"not as it was landed.*lockstep log check"):
        land(log.home, created(9, NOON + minutes(151)))
    kept = bytes_of(log)
    assert {n for n in before if kept[n] != before[n]} <= {"changelog/journal.jsonl"}


def test_check_adds_up_after_compaction(log: ChangeLog) -> None:
    with log.writer(SOURCE) as writer:
        writer.resolve({}, [e for e in log.quarantined() if e["state"] == "open"])
        writer.land(large(20_000, NOON + minutes(160)))
    done = compact.compact(log.home, NOON + minutes(120))
    assert done.hours
    assert check(log.home).is_sound
    hour = log.files("_discarded")[0]
    os.truncate(hour, 100)
    assert check(log.home).findings[0].kind == "cut"


def test_compaction_leaves_an_hour_that_was_changed_alone(log: ChangeLog) -> None:
    with log.writer(SOURCE) as writer:
        writer.land(large(20_000, NOON + minutes(160)))
    path = log.files("orders")[-1]
    content = bytearray(path.read_bytes())
    content[100] ^= 1
    path.write_bytes(content)
    done = compact.compact(log.home, NOON + minutes(180))
    assert done.problem and path.name in done.problem
    assert path.read_bytes() == bytes(content)


def test_a_log_of_the_version_before_is_recorded_once(log: ChangeLog) -> None:
    as_format_2(log)
    checked = check(log.home)
    assert checked.findings == [] and len(checked.unrecorded) == checked.files > 4
    result = CliRunner().invoke(cli, ["log", "check"], env={"LOCKSTEP_HOME": str(log.home)})
    assert result.exit_code == 1 and "log check --record" in result.stdout
    assert check(log.home, record=True).recorded == checked.files
    assert check(log.home).is_sound
    one_byte(log)
    assert not check(log.home).is_sound


def test_the_journal_is_folded_when_it_is_full(original: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(journal, "CAPACITY", 3_000)
    log = land(tmp_path)
    with log.writer(SOURCE) as writer:
        for n in range(20):
            writer.land(batch(created(n, NOON + minutes(15 * n))))
    assert len(list((log.root / "_manifest").iterdir())) > 3
    assert check(log.home).is_sound
    assert len(Journal(log.home).files()) == 5
    [manifest, *_] = (log.root / "_manifest").iterdir()
    manifest.write_bytes(manifest.read_bytes().replace(b"orders", b"orderz"))
    assert {f.kind for f in check(log.home).findings} >= {"journal"}
