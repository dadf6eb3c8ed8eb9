"""warehouse.duckdb and state.duckdb are known to belong together, wherever a process was killed or a file restored."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import duckdb
import pytest

from lockstep import pairing
from lockstep.errors import LockstepError

WAREHOUSE, STATE = pairing.FILES


def fill(home: Path, name: str) -> None:
    with duckdb.connect(str(home / name)) as connection:
        connection.execute("CREATE TABLE IF NOT EXISTS kept AS SELECT 1 AS n")


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """A home whose files were opened twice, and a copy of them from between, in `before`."""
    home = tmp_path / "home"
    home.mkdir()
    assert pairing.stamp(home) is None
    for name in pairing.FILES:
        fill(home, name)
    assert pairing.unlike(home) is None
    shutil.copytree(home, tmp_path / "before")
    assert pairing.stamp(home) is None
    assert pairing.unlike(home) is None
    return home


def test_neither_is_there(tmp_path: Path) -> None:
    assert pairing.unlike(tmp_path) is None
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", pairing.FILES)
def test_one_is_lost(home: Path, name: str) -> None:
    (home / name).unlink()
    assert f"{home / name} is missing" in str(pairing.unlike(home))
    assert f"{home / name} is missing" in str(pairing.stamp(home))
    assert not (home / name).exists()  # else the next look would find an empty file, and no loss


@pytest.mark.parametrize("name", pairing.FILES)
def test_one_is_from_an_older_backup(home: Path, name: str) -> None:
    shutil.copy(home.parent / "before" / name, home / name)
    for _ in range(2):
        assert "from two different times" in str(pairing.stamp(home))
    assert "from two different times" in str(pairing.unlike(home))


def test_both_are_from_the_same_backup(home: Path) -> None:
    for name in pairing.FILES:
        shutil.copy(home.parent / "before" / name, home / name)
    assert pairing.unlike(home) is None


@pytest.mark.parametrize("name", pairing.FILES)
def test_one_is_empty_instead_of_lost(home: Path, name: str) -> None:
    (home / name).unlink()
    duckdb.connect(str(home / name)).close()
    assert "from two different times" in str(pairing.unlike(home))


@pytest.mark.parametrize("is_new", [True, False])
@pytest.mark.parametrize("writes", [0, 1, 2])
def test_killed_between_the_writes_of_a_stamp(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, writes: int, is_new: bool
) -> None:
    if not is_new:
        assert pairing.stamp(tmp_path) is None
    for name in pairing.FILES:
        fill(tmp_path, name)
    write, done = pairing._write, []

    def write_some(*arguments: object) -> None:
        if len(done) == writes:
            raise KeyboardInterrupt
        done.append(arguments)
        write(*arguments)  # type: ignore[arg-type]

    with monkeypatch.context() as patch:
        patch.setattr(pairing, "_write", write_some)
        with pytest.raises(KeyboardInterrupt):
            pairing.stamp(tmp_path)
    assert pairing.unlike(tmp_path) is None
    assert pairing.stamp(tmp_path) is None


def test_a_home_of_an_earlier_version(tmp_path: Path) -> None:
    fill(tmp_path, WAREHOUSE)
    assert f"{tmp_path / STATE} is missing" in str(pairing.unlike(tmp_path))
    fill(tmp_path, STATE)
    assert pairing.stamp(tmp_path) is None
    shutil.copy(tmp_path / STATE, tmp_path / "old")
    assert pairing.stamp(tmp_path) is None
    (tmp_path / STATE).unlink()
    fill(tmp_path, STATE)  # restored from a backup that was made before the first stamp
    assert "from two different times" in str(pairing.unlike(tmp_path))


def test_nothing_is_deleted(home: Path) -> None:
    (home / STATE).unlink()
    aside = pairing.set_aside(home)
    assert aside.parent == home / "debris"
    assert [path.name for path in aside.iterdir()] == [WAREHOUSE]
    assert pairing.unlike(home) is None


@pytest.mark.parametrize("name", pairing.FILES)
@pytest.mark.parametrize("content", [b"no database " * 2000, None], ids=["overwritten", "cut off"])
def test_one_cannot_be_read(home: Path, name: str, content: bytes | None) -> None:
    path = home / name
    path.write_bytes(path.read_bytes()[:20_000] if content is None else content)
    with pytest.raises(LockstepError) as raised:
        pairing.unlike(home)
    assert f"{path} cannot be opened: " in str(raised.value)
    assert f"`mv {path} {path}.damaged`" in str(raised.value)


@pytest.mark.parametrize("size", [0, 4096, 8192])
def test_killed_while_duckdb_made_a_file(tmp_path: Path, size: int) -> None:
    """DuckDB refuses such a file for ever."""
    duckdb.connect(str(tmp_path / WAREHOUSE)).close()
    os.truncate(tmp_path / WAREHOUSE, size)
    assert pairing.unlike(tmp_path) is None
    assert pairing.stamp(tmp_path) is None
    for name in pairing.FILES:
        duckdb.connect(str(tmp_path / name)).close()
