"""Every kind of table that a stranger's database has is captured, or refused in a sentence that leaves nothing behind.

Awkward cases: tables of two schemas, one of them by the option, the other by its declaration.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psycopg2
import pytest

from lockstep import capture as capturing
from lockstep.errors import LockstepError
from lockstep.postgres import Source
from lockstep.schema import TABLES, declared
from postgres import Cluster, assert_log_is_source, landed, own_cluster

__all__: list[str] = []


@pytest.fixture(scope="module")
def server() -> Iterator[Cluster]:
    with own_cluster() as server:
        yield server


@pytest.fixture
def strangers(server: Cluster) -> Cluster:
    """An empty database, and no slots."""
    server.create_shop()
    server.execute("DROP SCHEMA public CASCADE; CREATE SCHEMA public")
    return server


def declare(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, ddl: str) -> None:
    path = tmp_path / "source_schema.sql"
    path.write_text(ddl)
    declared.cache_clear()
    monkeypatch.setattr(TABLES, "_found", declared(path))


def capture(server: Cluster, home: Path, **options: Any) -> capturing.Captured:
    return capturing.capture(home, Source(server.dsn()), 0.05, until_caught_up=True, **options)


def refusal(server: Cluster, home: Path) -> str:
    with pytest.raises(LockstepError) as refused:
        capture(server, home)
    return str(refused.value)


def left_behind(server: Cluster) -> list[tuple[Any, ...]]:
    return server.execute("SELECT pubname FROM pg_publication UNION ALL SELECT slot_name FROM pg_replication_slots")


def test_tables_of_several_schemas(strangers: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ddl = """
    CREATE TABLE film (film_id int PRIMARY KEY, title text NOT NULL);
    CREATE TABLE staff.clerk (clerk_id int PRIMARY KEY, name text NOT NULL);
    """
    strangers.execute(f"CREATE SCHEMA staff; {ddl} CREATE TABLE staff.film (film_id int PRIMARY KEY, title text)")
    strangers.execute("ALTER TABLE film REPLICA IDENTITY FULL; ALTER TABLE staff.clerk REPLICA IDENTITY FULL")
    strangers.execute("INSERT INTO film VALUES (1, 'Alien'); INSERT INTO staff.clerk VALUES (1, 'Ann')")
    declare(monkeypatch, tmp_path, ddl)
    home = tmp_path / "home"
    assert capture(strangers, home).snapshot == 2
    strangers.execute("INSERT INTO film VALUES (2, 'Brazil'); UPDATE staff.clerk SET name = 'Bo'")
    strangers.execute("INSERT INTO staff.film VALUES (3, 'of another schema')")
    assert capture(strangers, home).changes == 2
    assert [c["after"]["name"] for c in landed(home, "clerk")] == ["Ann", "Bo"]
    assert [c["after"]["title"] for c in landed(home, "film")] == ["Alien", "Brazil"]
    strangers.execute("DROP TABLE staff.clerk")
    assert 'table "staff"."clerk" is missing' in refusal(strangers, home)


def test_a_refused_first_capture_leaves_nothing(
    strangers: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ddl = "CREATE TABLE film (film_id int PRIMARY KEY, title text NOT NULL);"
    strangers.execute(ddl)
    declare(monkeypatch, tmp_path, ddl)
    home = tmp_path / "home"
    assert "ALTER TABLE" in refusal(strangers, home)
    assert not home.exists()
    assert left_behind(strangers) == []


def test_a_snapshot_that_fails_leaves_no_slot_and_no_publication(
    strangers: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ddl = "CREATE TABLE film (film_id int PRIMARY KEY, title text NOT NULL);"
    strangers.execute(f"{ddl} ALTER TABLE film REPLICA IDENTITY FULL; INSERT INTO film VALUES (1, 'Alien')")
    declare(monkeypatch, tmp_path, ddl)

    def fails(*_: Any) -> None:
        raise psycopg2.OperationalError("the network is gone")

    home = tmp_path / "home"
    with monkeypatch.context() as patch:
        patch.setattr(Source, "copy", fails)
        assert "The snapshot could not be completed" in refusal(strangers, home)
    assert left_behind(strangers) == []
    assert capture(strangers, home).snapshot == 1
    assert_log_is_source(strangers, home)
