"""Every kind of table that a stranger's database has is captured, or refused in a sentence that leaves nothing behind.

Awkward cases: tables of two schemas, one of them by the option, the other by its declaration; a row that moves to
another partition, a partition made later, with the wrong replica identity; equal rows in a table without a key.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import psycopg2
import pytest
from click.testing import CliRunner

from lockstep import alerts
from lockstep import capture as capturing
from lockstep import verify as verifying
from lockstep.changelog import ChangeLog
from lockstep.cli import cli
from lockstep.errors import LockstepError
from lockstep.postgres import Source
from lockstep.quarantine import discard
from lockstep.schema import TABLES, declared
from postgres import Cluster, assert_log_is_source, capture, landed, own_cluster, verified


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
    [gap] = capture(strangers, home).gaps
    assert "clerk is not in publication lockstep any more" in gap and 'ADD TABLE "staff"."clerk";' in gap


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
    assert not ChangeLog(home).exists()
    assert {p.name for p in home.iterdir()} == {"capture.json", "capture.lock", "changelog.lock", "metrics"}
    assert capture(strangers, home).snapshot == 1
    assert_log_is_source(strangers, home)


PAYMENT = """
CREATE TABLE payment (
  payment_id bigint NOT NULL, paid_at date NOT NULL, cents bigint, PRIMARY KEY (paid_at, payment_id)){};
"""
PARTITIONS = """
CREATE TABLE payment_january PARTITION OF payment FOR VALUES FROM ('2026-01-01') TO ('2026-02-01');
CREATE TABLE payment_other PARTITION OF payment DEFAULT;
ALTER TABLE payment REPLICA IDENTITY FULL;
"""
WHOLE = "ALTER TABLE payment_january REPLICA IDENTITY FULL; ALTER TABLE payment_other REPLICA IDENTITY FULL;"


@pytest.fixture
def partitioned(strangers: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Cluster:
    strangers.execute(PAYMENT.format(" PARTITION BY RANGE (paid_at)") + PARTITIONS)
    declare(monkeypatch, tmp_path, PAYMENT.format(""))
    return strangers


def test_a_partitioned_table_is_captured_by_its_root(partitioned: Cluster, tmp_path: Path) -> None:
    home = tmp_path / "home"
    said = refusal(partitioned, home)
    assert 'ALTER TABLE "public"."payment_january" REPLICA IDENTITY FULL;' in said
    assert 'ALTER TABLE "public"."payment_other" REPLICA IDENTITY FULL;' in said
    partitioned.execute(WHOLE)
    partitioned.execute("INSERT INTO payment VALUES (1, '2026-01-05', 100), (2, '2026-03-05', 200)")
    assert capture(partitioned, home).snapshot == 2
    partitioned.execute("UPDATE payment SET cents = 150 WHERE payment_id = 1")
    partitioned.execute("UPDATE payment SET paid_at = '2026-05-01' WHERE payment_id = 1")  # to another partition
    partitioned.execute("DELETE FROM payment WHERE payment_id = 2")
    partitioned.execute(
        "CREATE TABLE payment_june PARTITION OF payment FOR VALUES FROM ('2026-06-01') TO ('2026-07-01')"
    )
    partitioned.execute("INSERT INTO payment VALUES (3, '2026-06-05', 300)")
    assert capture(partitioned, home).quarantined == 0
    assert_log_is_source(partitioned, home)
    partitioned.execute("TRUNCATE payment")
    capture(partitioned, home)
    assert_log_is_source(partitioned, home)


def test_a_delete_that_tells_only_the_key_is_quarantined(partitioned: Cluster, tmp_path: Path) -> None:
    home = tmp_path / "home"
    partitioned.execute(WHOLE)
    capture(partitioned, home)
    partitioned.execute(
        "CREATE TABLE payment_june PARTITION OF payment FOR VALUES FROM ('2026-06-01') TO ('2026-07-01')"
    )
    partitioned.execute("INSERT INTO payment VALUES (3, '2026-06-05', 300)")
    partitioned.execute("DELETE FROM payment")
    assert capture(partitioned, home).quarantined == 1
    [entry] = ChangeLog(home).quarantined()
    assert "holds the key alone: each partition of payment needs" in entry["reason"]
    partitioned.execute("ALTER TABLE payment_june REPLICA IDENTITY FULL")
    capture(partitioned, home, new_snapshot=True)
    assert [(c["op"], c["after"] is None) for c in landed(home, "payment")] == [("c", False), ("r", True)]


UNSENT = {
    "dropped": ("DROP TABLE payment_january", "was dropped or detached"),
    "detached": ("ALTER TABLE payment DETACH PARTITION payment_january", "was dropped or detached"),
    "truncated": ("TRUNCATE payment_january", "was truncated or rewritten"),
    "detached, changed and attached again": (
        "ALTER TABLE payment DETACH PARTITION payment_january; DELETE FROM payment_january;"
        "ALTER TABLE payment ATTACH PARTITION payment_january FOR VALUES FROM ('2026-01-01') TO ('2026-02-01')",
        "was detached and attached again",
    ),
    "attached with rows": (
        "CREATE TABLE payment_june (LIKE payment); INSERT INTO payment_june VALUES (5, '2026-06-05', 500);"
        "ALTER TABLE payment_june REPLICA IDENTITY FULL;"
        "ALTER TABLE payment ATTACH PARTITION payment_june FOR VALUES FROM ('2026-06-01') TO ('2026-07-01')",
        "was attached with rows in it",
    ),
}


@pytest.mark.parametrize("way", UNSENT)
def test_what_is_not_sent_of_a_partition_holds_the_table(partitioned: Cluster, tmp_path: Path, way: str) -> None:
    home = tmp_path / "home"
    partitioned.execute(WHOLE + "INSERT INTO payment VALUES (1, '2026-01-05', 100), (2, '2026-03-05', 200)")
    capture(partitioned, home)
    position = ChangeLog(home).watermark().position
    statement, what = UNSENT[way]
    for part in statement.split(";"):  # each in a transaction of its own
        partitioned.execute(part)
    partitioned.execute("INSERT INTO payment VALUES (3, '2026-03-06', 300)")
    [gap] = capture(partitioned, home).gaps
    assert what in gap and "`lockstep capture ... --resync payment` lands what is missing" in gap
    assert ChangeLog(home).watermark().holds["payment"].position == position + 1
    assert len(capture(partitioned, home).gaps) == 1, "it is said once"
    verifying.resync(home, partitioned.dsn(), ["payment"], 120, lambda _: None)
    assert not capture(partitioned, home).gaps
    assert not ChangeLog(home).watermark().holds
    assert_log_is_source(partitioned, home)


def test_what_is_sent_of_partitions_holds_nothing(partitioned: Cluster, tmp_path: Path) -> None:
    home = tmp_path / "home"
    partitioned.execute(WHOLE + "INSERT INTO payment VALUES (1, '2026-01-05', 100)")
    capture(partitioned, home)
    june = "payment_june PARTITION OF payment FOR VALUES FROM ('2026-06-01') TO ('2026-07-01')"
    partitioned.execute(f"CREATE TABLE {june}; ALTER TABLE payment_june REPLICA IDENTITY FULL")
    partitioned.execute("INSERT INTO payment VALUES (2, '2026-06-05', 200); ANALYZE payment")
    partitioned.execute("CREATE TABLE payment_july (LIKE payment); ALTER TABLE payment_july REPLICA IDENTITY FULL")
    july = "ALTER TABLE payment ATTACH PARTITION payment_july FOR VALUES FROM ('2026-07-01') TO ('2026-08-01')"
    partitioned.execute(july)  # without rows
    assert not capture(partitioned, home).gaps
    partitioned.execute("TRUNCATE payment")
    partitioned.execute("INSERT INTO payment VALUES (3, '2026-07-06', 300)")
    assert not capture(partitioned, home).gaps
    assert not capture(partitioned, home).gaps
    assert_log_is_source(partitioned, home)


def test_a_gap_that_is_discarded_is_not_said_again(partitioned: Cluster, tmp_path: Path) -> None:
    home = tmp_path / "home"
    partitioned.execute(WHOLE + "INSERT INTO payment VALUES (1, '2026-01-05', 100)")
    capture(partitioned, home)
    partitioned.execute("TRUNCATE payment_january")
    assert capture(partitioned, home).gaps
    [event] = ChangeLog(home).quarantined()
    discard(home, [event["position"]])
    assert not capture(partitioned, home).gaps
    partitioned.execute("DROP TABLE payment_january")
    assert "was dropped" in capture(partitioned, home).gaps[0]


def test_a_gap_of_partitions_ends_a_run_from_cron_with_1_and_is_an_alert(
    partitioned: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = tmp_path / "home"
    monkeypatch.setenv("LOCKSTEP_HOME", str(home))
    partitioned.execute(WHOLE + "INSERT INTO payment VALUES (1, '2026-01-05', 100), (2, '2026-03-05', 200)")

    def run(*options: str) -> Any:
        return CliRunner().invoke(cli, ["capture", partitioned.dsn(), *options])

    assert run("--until-caught-up").exit_code == 0
    partitioned.execute("TRUNCATE payment_january")
    ended = run("--until-caught-up")
    assert ended.exit_code == 1
    assert "payment_january" in ended.output
    [found] = [i for i in alerts.check(home, dry_run=True).open if i.condition == alerts.QUARANTINE]
    assert "--resync payment" in found.text
    assert run("--resync", "payment", "--until-caught-up").exit_code == 0
    assert run("--until-caught-up").exit_code == 0
    assert_log_is_source(partitioned, home)


def test_a_running_capture_looks_at_partitions(
    partitioned: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(capturing, "_LOOK_EVERY", 0.0)
    partitioned.execute(WHOLE)
    home = tmp_path / "home"
    capture(partitioned, home)

    end = time.monotonic() + 120
    is_read = "SELECT 1 FROM pg_replication_slots WHERE active"
    while time.monotonic() < end and partitioned.execute(is_read):  # the server's process outlives the connection
        time.sleep(0.05)

    def come_and_go() -> None:
        while time.monotonic() < end and not partitioned.execute(is_read):
            time.sleep(0.05)
        partitioned.execute("TRUNCATE payment")
        partitioned.execute(
            "CREATE TABLE payment_june PARTITION OF payment FOR VALUES FROM ('2026-06-01') TO ('2026-07-01');"
            "DROP TABLE payment_january"
        )
        while time.monotonic() < end and not ("payment_june" in caplog.text and "was dropped" in caplog.text):
            time.sleep(0.05)
        os.kill(os.getpid(), signal.SIGTERM)

    other = threading.Thread(target=come_and_go)
    other.start()
    found = capturing.capture(home, Source(partitioned.dsn()), 0.05)
    other.join()
    assert 'ALTER TABLE "public"."payment_june" REPLICA IDENTITY FULL;' in caplog.text
    [gap] = found.gaps
    assert '"public"."payment_january" was dropped or detached' in gap
    assert "truncated" not in gap


def test_looking_at_partitions_waits_for_no_lock(partitioned: Cluster) -> None:
    """Else it deadlocks with a transaction that makes one partition and drops another, and one of the two fails."""
    with closing(psycopg2.connect(partitioned.dsn())) as ddl, closing(psycopg2.connect(partitioned.dsn())) as reader:
        ddl.cursor().execute("LOCK TABLE payment_january IN ACCESS EXCLUSIVE MODE")
        reader.cursor().execute("SET lock_timeout = '10s'")
        found = Source(partitioned.dsn()).partitions(reader)
    assert [(p.name, p.is_whole) for p in found["payment"].values()] == [
        ('"public"."payment_january"', False),
        ('"public"."payment_other"', False),
    ]


def test_a_publication_of_partitions_is_refused_with_the_remedy(partitioned: Cluster, tmp_path: Path) -> None:
    partitioned.execute(WHOLE + "CREATE PUBLICATION lockstep FOR TABLE payment")
    said = refusal(partitioned, tmp_path / "home")
    partitioned.execute(next(line for line in said.splitlines() if "publish_via_partition_root" in line))
    capture(partitioned, tmp_path / "home")


def test_partitions_can_be_tables_of_their_own(
    partitioned: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    partitioned.execute(WHOLE + "CREATE PUBLICATION lockstep FOR TABLE payment")
    declare(
        monkeypatch,
        tmp_path,
        "".join(PAYMENT.format("").replace("payment (", f"payment_{part} (") for part in ("january", "other")),
    )
    home = tmp_path / "home"
    partitioned.execute("INSERT INTO payment VALUES (1, '2026-01-05', 100)")
    capture(partitioned, home)
    partitioned.execute("INSERT INTO payment VALUES (2, '2026-01-06', 100), (3, '2026-04-05', 100)")
    capture(partitioned, home)
    assert_log_is_source(partitioned, home)
    assert len(landed(home, "payment_january")) == 2


def test_a_table_that_others_inherit_from_has_its_own_rows(
    strangers: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ddl = "CREATE TABLE person (person_id int PRIMARY KEY, name text);"
    strangers.execute(f"{ddl} CREATE TABLE clerk (salary bigint) INHERITS (person);")
    strangers.execute("ALTER TABLE person REPLICA IDENTITY FULL")
    strangers.execute("INSERT INTO person VALUES (1, 'Ann'); INSERT INTO clerk VALUES (1, 'Bo', 5)")
    declare(monkeypatch, tmp_path, ddl)
    home = tmp_path / "home"
    assert capture(strangers, home).snapshot == 1
    strangers.execute("INSERT INTO person VALUES (2, 'Cy'); INSERT INTO clerk VALUES (2, 'Di', 5)")
    assert capture(strangers, home).changes == 1
    assert [c["after"]["name"] for c in landed(home, "person")] == ["Ann", "Cy"]
    assert strangers.execute("SELECT tablename FROM pg_publication_tables") == [("person",)]


HISTORY = "-- append-only\nCREATE TABLE history (account int, delta int, noted_at timestamptz);"


def history(server: Cluster) -> list[tuple[Any, ...]]:
    return sorted(server.execute("SELECT account, delta FROM history"))


def in_log(home: Path) -> list[tuple[Any, ...]]:
    rows: Counter[tuple[Any, ...]] = Counter()
    for change in landed(home, "history"):
        for image, weight in ((change["before"], -1), (change["after"], 1)):
            if image:
                rows[image["account"], image["delta"]] += weight
    return sorted(rows.elements())


def test_a_row_of_which_every_value_is_null(
    strangers: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of one column, COPY sends it as an empty line."""
    ddl = "-- append-only\nCREATE TABLE visit (page text);"
    strangers.execute(f"{ddl} INSERT INTO visit VALUES (NULL), ('/'), (NULL), ('')")
    declare(monkeypatch, tmp_path, ddl)
    home = tmp_path / "home"
    assert capture(strangers, home).snapshot == 4
    assert [c["after"]["page"] for c in landed(home, "visit")] == [None, "/", None, ""]
    assert verified(strangers, home).is_equal


def test_an_append_only_table_needs_no_key(strangers: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    strangers.execute(HISTORY)
    strangers.execute("INSERT INTO history VALUES (1, 5), (1, 5), (2, 7)")
    declare(monkeypatch, tmp_path, HISTORY)
    home = tmp_path / "home"
    assert capture(strangers, home).snapshot == 3
    strangers.execute("INSERT INTO history VALUES (1, 5), (3, 9)")
    capture(strangers, home)
    assert in_log(home) == history(strangers) == [(1, 5), (1, 5), (1, 5), (2, 7), (3, 9)]
    strangers.execute("TRUNCATE history; INSERT INTO history VALUES (4, 1)")
    capture(strangers, home)
    assert in_log(home) == history(strangers) == [(4, 1)]
    equal = verified(strangers, home)
    assert equal.is_equal and equal.tables[0].comparison.compared == 1
    strangers.execute("ALTER TABLE history ADD kind text DEFAULT 'plain'")
    capture(strangers, home)
    equal = verified(strangers, home)
    assert equal.is_equal and equal.tables[0].comparison.not_known["kind"] > 0
    strangers.execute("ALTER TABLE history DROP kind")

    # What breaks the declaration goes to quarantine, and a new snapshot lands it.
    strangers.execute("INSERT INTO history VALUES (6, 1), (6, 1), (6, 1)")
    strangers.execute("ALTER TABLE history REPLICA IDENTITY FULL; DELETE FROM history WHERE account = 4")
    assert capture(strangers, home).quarantined == 1
    [entry] = ChangeLog(home).quarantined()
    assert "is declared append-only and has no key" in entry["reason"]
    strangers.execute("DELETE FROM history WHERE ctid IN (SELECT ctid FROM history WHERE account = 6 LIMIT 1)")
    unequal = verified(strangers, home)
    assert [(d.kind, d.key["account"]) for d in unequal.tables[0].comparison.differences] == [
        ("only in the log", "4"),
        ("only in the log", "6"),
    ]
    capture(strangers, home, new_snapshot=True)
    assert in_log(home) == history(strangers) == [(6, 1), (6, 1)]


def test_a_foreign_table_and_a_view_are_refused_in_a_sentence(
    strangers: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    strangers.execute("CREATE TABLE film (film_id int PRIMARY KEY); CREATE VIEW films AS SELECT * FROM film")
    declare(monkeypatch, tmp_path, "CREATE TABLE films (film_id int PRIMARY KEY);")
    assert '"public"."films" is a view\n    -- capture the tables that it reads' in refusal(
        strangers, tmp_path / "home"
    )
