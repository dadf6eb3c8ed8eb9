"""`lockstep init --from postgresql://...` declares a stranger's tables, and says what else the server needs.

Awkward cases: views, foreign tables, partitions, a table without a key, names that need quotes, a reserved word, two
tables of one name, a generated column, a role that may do nothing, a declaration that was edited, 300 tables.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from lockstep import capture as capturing
from lockstep import catalog, postgres
from lockstep.cli import cli
from lockstep.errors import LockstepError
from lockstep.postgres import Source
from lockstep.schema import TABLES, declared
from postgres import Cluster, landed, own_cluster

RENTAL = """
CREATE SCHEMA staff;
CREATE TABLE film (
  film_id integer PRIMARY KEY, title varchar(80) NOT NULL, "order" integer, "Full Name" text, released date,
  rate double precision, seen timestamptz, twice integer GENERATED ALWAYS AS (film_id * 2) STORED);
CREATE TABLE film_actor (actor_id integer, film_id integer, PRIMARY KEY (film_id, actor_id));
CREATE TABLE staff.clerk (clerk_id bigint PRIMARY KEY, name text);
CREATE TABLE staff.film (film_id integer PRIMARY KEY);
CREATE TABLE history (at timestamptz);
CREATE VIEW films AS SELECT * FROM film;
CREATE MATERIALIZED VIEW counted AS SELECT count(*) FROM film;
CREATE EXTENSION postgres_fdw;
CREATE SERVER other FOREIGN DATA WRAPPER postgres_fdw;
CREATE FOREIGN TABLE remote (id integer) SERVER other;
"""


@pytest.fixture(scope="module")
def server() -> Iterator[Cluster]:
    with own_cluster() as server:
        yield server


@pytest.fixture
def rental(server: Cluster) -> Cluster:
    server.create_shop()
    server.execute(f"DROP SCHEMA public CASCADE; CREATE SCHEMA public; {RENTAL}")
    return server


def init(directory: Path, *arguments: str) -> Result:
    return CliRunner().invoke(cli, ["init", str(directory), *arguments])


def refused(directory: Path, *arguments: str) -> str:
    result = init(directory, *arguments)
    assert isinstance(result.exception, LockstepError), result.output
    return str(result.exception)


def test_what_is_written_can_be_captured(rental: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    project = tmp_path / "project"
    result = init(project, "--from", rental.dsn())
    assert result.exit_code == 0, result.output
    said = result.output
    assert "declares 4 tables" in said
    [[version]] = rental.execute("SELECT current_setting('server_version_num')::int")
    assert ("public.film.twice (integer): it is generated" in said) == (version < 180000)
    for left_out in (
        "public.films is a view",
        "public.counted is a materialized view",
        "public.remote is a foreign table",
        "public.history has no primary key",
    ):
        assert left_out in said
    path = project / "source_schema.sql"
    tables = declared(path)
    assert tables["film_actor"].key == ("film_id", "actor_id")
    assert [c.name for c in tables["film"].columns][2:4] == ["order", "Full Name"]
    assert [c.nullable for c in tables["film"].columns][:3] == [False, False, True]
    assert tables["clerk"].schema == "staff"
    assert "-- named staff_film\nCREATE TABLE staff.film (" in path.read_text()

    # What the server needs is SQL as it stands; then everything is ready.
    statements = said.partition("the server needs:\n")[2].partition("To be filled in")[0]
    rental.execute(statements)
    again = init(project, "--from", rental.dsn())
    assert "The server is ready" in again.output
    monkeypatch.setattr(TABLES, "_found", tables)
    rental.execute("INSERT INTO film VALUES (1, 'Alien', 3, 'A', '1979-05-25', 0.5, now())")
    capture_all(tmp_path / "home", rental)
    rental.execute("UPDATE film SET title = 'Aliens'; INSERT INTO staff.clerk VALUES (1, 'Ann')")
    capture_all(tmp_path / "home", rental)
    assert [c["after"]["title"] for c in landed(tmp_path / "home", "film")] == ["Alien", "Aliens"]
    assert [c["after"]["name"] for c in landed(tmp_path / "home", "clerk")] == ["Ann"]


def capture_all(home: Path, server: Cluster) -> None:
    assert capturing.capture(home, Source(server.dsn()), 0.05, until_caught_up=True).quarantined == 0


def test_chosen_tables(rental: Cluster, tmp_path: Path) -> None:
    project = tmp_path / "project"
    result = init(project, "--from", rental.dsn(), "--table", "staff.film", "--table", "film_actor")
    assert [t.schema for t in declared(project / "source_schema.sql").values()] == ["staff", "public"]
    assert "Left out" not in result.output


def test_a_table_that_is_declared_append_only_needs_no_key(rental: Cluster, tmp_path: Path) -> None:
    project = tmp_path / "project"
    result = init(project, "--from", rental.dsn(), "--table", "film", "--append-only", "history")
    tables = declared(project / "source_schema.sql")
    assert list(tables) == ["film", "history"] and tables["history"].is_append_only
    assert '"history" REPLICA IDENTITY FULL' not in result.output


def test_a_partitioned_table_stands_for_its_partitions(rental: Cluster, tmp_path: Path) -> None:
    rental.execute("CREATE TABLE payment (id int PRIMARY KEY) PARTITION BY RANGE (id)")
    rental.execute("CREATE TABLE payment_low PARTITION OF payment FOR VALUES FROM (0) TO (9)")
    said = init(tmp_path / "project", "--from", rental.dsn()).output
    assert "public.payment_low is a partition of public.payment, with which it is captured." in said
    assert 'ALTER TABLE "public"."payment_low" REPLICA IDENTITY FULL;' in said
    assert "publish_via_partition_root" not in said  # the capture makes the publication so
    alone = init(tmp_path / "alone", "--from", rental.dsn(), "--table", "payment_low")
    assert "declares 1 table," in alone.output


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("films", "public.films is a view: capture the tables that it reads."),
        ("remote", "public.remote is a foreign table: its rows are in another server, so capture them there."),
        ("history", "say so with --append-only public.history"),
        ("clerk", "shop has no table clerk. Did you mean staff.clerk?"),
        ("no such", "'no such' is not the name of a table"),
    ],
)
def test_a_table_that_cannot_be_captured_is_refused(rental: Cluster, tmp_path: Path, name: str, said: str) -> None:
    project = tmp_path / "project"
    assert said in refused(project, "--from", rental.dsn(), "--table", name)
    assert not project.exists()


def test_a_declaration_that_was_edited_is_left_alone(rental: Cluster, tmp_path: Path) -> None:
    project = tmp_path / "project"
    init(project, "--from", rental.dsn())
    path = project / "source_schema.sql"
    path.write_text("-- mine\n" + path.read_text())
    assert f"{path} is there already" in refused(project, "--from", rental.dsn())
    assert path.read_text().startswith("-- mine")


def test_a_project_whose_schema_is_still_empty_is_filled_in(rental: Cluster, tmp_path: Path) -> None:
    project = tmp_path / "project"
    assert init(project).exit_code == 0
    assert init(project, "--from", rental.dsn()).exit_code == 0
    assert "film" in declared(project / "source_schema.sql")


def test_a_role_without_rights_is_told_all_at_once(rental: Cluster, tmp_path: Path) -> None:
    rental.execute("DROP ROLE IF EXISTS reader; CREATE ROLE reader LOGIN")
    rental.execute("ALTER TABLE film SET UNLOGGED")
    said = init(tmp_path / "project", "--from", rental.dsn(user="reader")).output
    for needed in (
        "ALTER ROLE reader REPLICATION;",
        'GRANT USAGE ON SCHEMA "staff" TO reader; GRANT SELECT ON "staff"."clerk" TO reader;',
        'ALTER TABLE "public"."film" SET LOGGED;',
        'ALTER TABLE "public"."film_actor" REPLICA IDENTITY FULL;',
        'CREATE PUBLICATION "lockstep" FOR TABLE "public"."film"',
    ):
        assert needed in said


def test_an_older_server_is_named(rental: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(postgres, "MINIMUM_VERSION", 990000)
    said = init(tmp_path / "project", "--from", rental.dsn()).output
    assert "-- this is PostgreSQL" in said and "-- upgrade the server, or capture with Debezium" in said
    monkeypatch.setattr(catalog, "_OLDEST_CATALOG", 990000)
    assert "this is PostgreSQL" in refused(tmp_path / "other", "--from", rental.dsn())


def test_table_without_from_is_refused(tmp_path: Path) -> None:
    assert "name it with --from" in refused(tmp_path / "project", "--table", "film")


def test_300_tables(server: Cluster, tmp_path: Path) -> None:
    server.create_shop()
    columns = ", ".join(f"c{n} {('text', 'integer NOT NULL', 'timestamptz')[n % 3]}" for n in range(12))
    server.execute("".join(f"CREATE TABLE t{n} (id bigint PRIMARY KEY, {columns});" for n in range(300)))
    result = init(tmp_path / "project", "--from", server.dsn())
    assert "declares 308 tables, " in result.output
    assert result.output.count("REPLICA IDENTITY FULL;\n") == 301  # gps_pings too: none is append-only
