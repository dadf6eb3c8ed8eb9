"""The ways in for analysts: what docs/querying.md says to copy, the notebook, and the network door.

Cases of the network door: figures beside the file's, every way to write or to read what is not published, no token, a
wrong one, one that others can read, other addresses, a publication while clients are connected, and one while a result
is half fetched.
"""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import duckdb
import pytest

from company import UNTIL, two_days
from lockstep import changelog, publish, serve
from lockstep.errors import LockstepError
from shop import Shop, land

__all__ = ["two_days"]  # a fixture

ROOT = Path(__file__).parents[2]
BIN = Path(sys.executable).parent
FIGURES = "SELECT SUM(orders), SUM(revenue_cents), MAX(as_of) FROM mart.orders_hourly"
WHAT_ABOUT_SHOWS = "SELECT sql FROM duckdb_views() WHERE view_name = 'about' AND database_name = 'memory'"
SHOWN = "SELECT MAX(path) FROM duckdb_databases() WHERE path LIKE '%.duckdb'"


@pytest.fixture(scope="module")
def built(two_days: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory as a checkout has it, with two days of the company published in `data`."""
    root = tmp_path_factory.mktemp("doors")
    (root / "examples").symlink_to(ROOT / "examples")
    shutil.copytree(two_days, root / "data", symlinks=True)
    publish.publish(root / "data")
    return root


@pytest.fixture
def home(built: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home of the test's own, published where it now lies."""
    home = tmp_path / "home"
    shutil.copytree(built / "data", home, symlinks=True, ignore=shutil.ignore_patterns("serve.token"))
    monkeypatch.setenv("LOCKSTEP_HOME", str(home))
    monkeypatch.delenv("LOCKSTEP_TOKEN", raising=False)
    publish.publish(home)
    return home


# -- What docs/querying.md says


def commands_to_copy() -> list[str]:
    return re.findall(r"```sh\n(.*?)```", (ROOT / "docs" / "querying.md").read_text("utf-8"), re.DOTALL)


def test_every_command_for_analysts_does_what_it_says(built: Path) -> None:
    environment = {k: v for k, v in os.environ.items() if not k.startswith("LOCKSTEP_")}
    environment |= {"PATH": f"{BIN}:{os.environ['PATH']}"}
    commands = commands_to_copy()
    said = ""
    ports: dict[str, int] = {}  # others than by default: a server of somebody else's may have those
    with ExitStack() as stack:
        for command in commands:
            if re.match(r"(lockstep serve|marimo run)\b", command):
                port = free_port()
                options: Any = {"cwd": built, "env": environment, "start_new_session": True}
                started = ["bash", "-ec", f"exec {command.strip()} --port {port}"]
                process = stack.enter_context(subprocess.Popen(started, **options))
                stack.callback(process.terminate)
                assert answers(port), command
                ports[command.split()[0]] = port
            else:
                here = command.replace(f":{serve.PORT}", f":{ports.get('lockstep')}")
                done = subprocess.run(
                    ["bash", "-ec", here], cwd=built, env=environment, capture_output=True, text=True, timeout=120
                )
                assert done.returncode == 0, done.stderr
                said += done.stdout
    assert {"duckdb", "python", "marimo", "lockstep"} <= {command.split()[0] for command in commands}
    for figure in ("mart.orders_hourly", "region", "out_for_delivery"):
        assert figure in said


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def answers(port: int) -> bool:
    """Whether an HTTP server answers, at least after a while."""
    end = time.monotonic() + 120
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    while time.monotonic() < end:
        try:
            with opener.open(f"http://127.0.0.1:{port}/", timeout=5) as answer:
                return bool(answer.status == 200)
        except (urllib.error.URLError, ConnectionError):
            time.sleep(0.1)
    return False


# -- The notebook


def test_the_notebook_shows_what_is_published(home: Path) -> None:
    path = ROOT / "examples" / "notebook" / "today.py"
    spec = importlib.util.spec_from_file_location("today", path)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    time.sleep(changelog.SETTLING.total_seconds())
    _, figures = module.app.run()
    with duckdb.connect(str(home / "analytics.duckdb"), read_only=True) as connection:
        today = "WHERE ordered_hour BETWEEN '2026-11-18' AND '2026-11-18 10:20'"
        [(orders, cents, hours)] = connection.execute(
            f"SELECT SUM(orders), SUM(revenue_cents), COUNT(DISTINCT ordered_hour) FROM mart.orders_hourly {today}"
        ).fetchall()
    assert figures["by_hour"]["orders"].sum() == orders > 0
    assert round(figures["by_hour"]["revenue"].sum() * 100) == cents
    assert len(figures["by_hour"]) == hours
    assert len(figures["late"]) > 0
    assert len(figures["vehicles"]) > 0
    for chart in ("orders_chart", "revenue_chart", "late_chart", "vehicles_chart"):
        assert figures[chart].to_dict()["data"], chart


# -- The network door


@contextmanager
def served(home: Path, *options: str) -> Iterator[int]:
    """The port of a `lockstep serve` of its own."""
    port = free_port()
    with subprocess.Popen(
        [BIN / "lockstep", "serve", "--port", str(port), *options], stderr=subprocess.PIPE
    ) as process:
        try:
            assert process.stderr is not None
            assert b"Serving" in process.stderr.readline()
            yield port
        finally:
            process.terminate()
        assert process.wait(timeout=120) == 0


@contextmanager
def client(home: Path, port: int, token: str | None = None) -> Iterator[duckdb.DuckDBPyConnection]:
    token = token or serve.access_token(home)
    with duckdb.connect() as connection:
        for name in ("httpfs", "quack"):
            connection.load_extension(str(serve.extension(name)))
        connection.execute(f"ATTACH 'quack:127.0.0.1:{port}' AS lockstep (TOKEN '{token}')")
        yield connection


def ask(connection: duckdb.DuckDBPyConnection, query: str) -> list[tuple[Any, ...]]:
    """What the server answers to a query that runs there."""
    return connection.execute("FROM lockstep.query('{}')".format(query.replace("'", "''"))).fetchall()


def ask_file(home: Path, query: str) -> list[tuple[Any, ...]]:
    with duckdb.connect(str(home / "analytics.duckdb"), read_only=True) as connection:
        return connection.execute(query).fetchall()


def land_an_order(home: Path, key: int) -> None:
    shop = Shop(UNTIL + timedelta(seconds=key))
    shop.order(10_000_000 + key, amount_cents=7)
    land(home, shop.changes)
    time.sleep(changelog.SETTLING.total_seconds() + 0.05)


def test_a_client_reads_what_the_file_says_and_goes_on_over_publications(home: Path) -> None:
    with served(home) as port, client(home, port) as connection:
        marts = [mart for (mart,) in ask_file(home, "SELECT mart FROM about ORDER BY mart")]
        assert len(marts) > 10
        for mart in marts:
            remote = connection.execute(f"SELECT COUNT(*), MAX(as_of) FROM lockstep.{mart}").fetchall()
            assert remote == ask_file(home, f"SELECT COUNT(*), MAX(as_of) FROM {mart}"), mart
        then = "SELECT SUM(orders) FROM mart.orders_hourly_as_of(TIMESTAMP '2026-11-18 06:00')"
        assert ask(connection, then) == ask_file(home, then)
        before = ask(connection, FIGURES)
        land_an_order(home, 1)
        assert (
            ask(connection, FIGURES)
            == ask_file(home, FIGURES)
            == [(before[0][0] + 1, before[0][1] + 7, UNTIL + timedelta(seconds=1))]
        )
        number = publish.publish(home).number
        wait_for(connection, number)
        land_an_order(home, 2)
        assert ask(connection, FIGURES) == ask_file(home, FIGURES)
        assert ask(connection, "SELECT published_at FROM about LIMIT 1") == ask_file(
            home, "SELECT published_at FROM about LIMIT 1"
        )


def wait_for(connection: duckdb.DuckDBPyConnection, number: int) -> None:
    end = time.monotonic() + 120
    while f" publication_{number}." not in ask(connection, WHAT_ABOUT_SHOWS)[0][0]:
        assert time.monotonic() < end
        time.sleep(0.05)


def test_a_half_fetched_result_ends_as_it_began(home: Path) -> None:
    rows = "SELECT orders FROM mart.orders, range(400)"
    with served(home) as port, client(home, port) as reading, client(home, port) as other:
        [(wanted,)] = ask_file(home, f"SELECT SUM(orders) FROM ({rows})")
        result = reading.execute(f"FROM lockstep.query('{rows}')")
        got = sum(n for (n,) in result.fetchmany(10))
        newest = max((home / "published").glob("*.duckdb"), key=lambda path: int(path.stem))
        for number in range(int(newest.stem) + 1, int(newest.stem) + 5):
            copy = home / "published" / f"{number}.duckdb"
            shutil.copy(newest, home / "published" / "copy")
            (home / "published" / "copy").rename(copy)
            os.link(copy, home / "latest")
            (home / "latest").replace(home / "analytics.duckdb")
            wait_for(other, number)
        assert got + sum(n for (n,) in result.fetchall()) == wanted


@pytest.mark.parametrize(
    "statement",
    [
        "CREATE TABLE mine AS SELECT 1",
        "CREATE OR REPLACE VIEW mart.orders AS SELECT 1 AS n",
        "CREATE OR REPLACE MACRO may_ask(a, b) AS TRUE",
        "DROP VIEW mart.orders",
        "SELECT 1; DROP VIEW mart.orders",
        "WITH x AS (SELECT 1) INSERT INTO about SELECT * FROM x",
        "INSERT INTO publication_{n}.main.about (mart) VALUES ('x')",
        "DELETE FROM publication_{n}.main.about",
        "COPY (SELECT 1) TO '{home}/changelog/x.csv'",
        "ATTACH '{home}/warehouse.duckdb' AS w",
        "DETACH publication_{n}",
        "SET enable_external_access = TRUE",
        "SET GLOBAL quack_authorization_function = 'quack_nop_authorization'",
        "INSTALL httpfs",
        "LOAD httpfs",
        "CHECKPOINT",
        "FROM quack_stop('quack:127.0.0.1')",
        "FROM QUERY('FROM quack_server_list()')",
        "SELECT (SELECT COUNT(*) FROM (FROM \"QUERY\"('SELECT 1')))",
        "FROM json_execute_serialized_sql('x')",
        "FROM enable_logging('QueryLog')",
        "FROM duckdb_logs()",
        "FROM quack_query('quack:127.0.0.1:1', 'SELECT 1')",
        "FROM read_text('{home}/serve.token')",
        "FROM '{home}/warehouse.duckdb'",
        "FROM '{home}/quarantine/../serve.token'",
        "FROM '{home}/changelog/../contracts.csv'",
        "FROM glob('/*')",
    ],
)
def test_nobody_writes_and_nobody_reads_what_is_not_published(refusing: tuple[Path, Any], statement: str) -> None:
    home, connection = refusing
    before = ask(connection, FIGURES)
    number = Path(ask(connection, SHOWN)[0][0]).stem
    (home / "contracts.csv").write_text("a,b\n1,2\n", encoding="utf-8")
    with pytest.raises(duckdb.Error, match=r"Authorization failed|Cannot access|does not exist|disabled by config"):
        ask(connection, statement.format(home=home, n=number))
    assert ask(connection, FIGURES) == before


@pytest.fixture(scope="module")
def refusing(built: Path) -> Iterator[tuple[Path, Any]]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LOCKSTEP_HOME", str(built / "data"))
        with served(built / "data") as port, client(built / "data", port) as connection:
            yield built / "data", connection


def test_an_attached_catalog_cannot_be_written_to(refusing: tuple[Path, Any]) -> None:
    _, connection = refusing
    for statement in ("CREATE TABLE lockstep.mine (n INT)", "INSERT INTO lockstep.about (mart) VALUES ('x')"):
        with pytest.raises(duckdb.Error):
            connection.execute(statement)
    for schema in ("main", "temp.main", "memory.main"):  # rows sent by the protocol itself, past any statement
        with pytest.raises(duckdb.Error):
            connection.execute(f"INSERT INTO lockstep.{schema}.mine VALUES (1)")
    assert ask(connection, "SELECT COUNT(*) FROM about")[0][0] > 10


def test_only_with_the_token_and_only_on_this_address(home: Path) -> None:
    with served(home) as port:
        path = serve.token_path(home)
        assert path.stat().st_mode & 0o777 == 0o600
        for token in ("wrong" * 8, path.read_text().strip()[:-1], " "):
            refusal = pytest.raises(duckdb.Error, match="Authentication failed")
            with refusal, client(home, port, token):
                pass
        with pytest.raises(ConnectionRefusedError), socket.create_connection(("127.0.0.2", port), timeout=5):
            pass


def test_a_token_of_ones_own(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOCKSTEP_TOKEN", "a token of my own choice")
    with served(home) as port, client(home, port, "a token of my own choice") as connection:
        assert ask(connection, "SELECT 1") == [(1,)]
    assert not serve.token_path(home).exists()


def test_tokens_that_are_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOCKSTEP_TOKEN", "short")
    with pytest.raises(LockstepError, match="LOCKSTEP_TOKEN is shorter than"):
        serve.access_token(tmp_path)
    monkeypatch.delenv("LOCKSTEP_TOKEN")
    made = serve.access_token(tmp_path)
    assert serve.access_token(tmp_path) == made
    serve.token_path(tmp_path).chmod(0o640)
    with pytest.raises(LockstepError, match="can be read by others"):
        serve.access_token(tmp_path)


def test_what_cannot_be_served_is_said(home: Path, tmp_path: Path) -> None:
    def call(home: Path, *options: str) -> str:
        environment = os.environ | {"LOCKSTEP_HOME": str(home)}
        done = subprocess.run(
            [BIN / "lockstep", "serve", *options], env=environment, capture_output=True, text=True, timeout=120
        )
        assert done.returncode == 1
        assert "Traceback" not in done.stderr
        return done.stderr

    (tmp_path / "empty").mkdir()
    assert "Nothing is published" in call(tmp_path / "empty")
    with served(home) as port:
        assert f"127.0.0.1:{port} cannot be listened on" in call(home, "--port", str(port))
