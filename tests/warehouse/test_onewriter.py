"""One writer at a time, by hand against lockstep: who comes second is told who is at work, and nothing is touched.

Cases: SQLMesh's commands during a run, commands that need no file, two by hand, two at the same moment, lockstep after
one by hand, a holder that was killed, one that comes between the look and the opening, a file that is broken, a second
look of the process that has the file.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from datetime import datetime
from pathlib import Path

import duckdb
import pytest
from ruamel.yaml import YAML
from sqlmesh.core.config import DuckDBConnectionConfig
from sqlmesh.core.engine_adapter import EngineAdapter

import commands
from lockstep import onewriter
from lockstep.warehouse import in_use
from shop import Shop, land

ROOT = Path(__file__).parents[2]
BIN = Path(sys.executable).parent
FILES = ("warehouse.duckdb", "state.duckdb")

# SQLMesh's commands, of those that load the project and of those that do not.
COMMANDS = [
    ("plan", "dev", "--include-unmodified", "--auto-apply", "--no-prompts"),
    ("run",),
    ("audit",),
    ("janitor",),
    ("migrate",),
    ("environments",),
    ("fetchdf", "SELECT n FROM mart.kept"),
]

# What a run does to the home, for as long as its standard input is open.
RUN = """
import duckdb, sys
from contextlib import ExitStack
from pathlib import Path
from lockstep.lock import exclusive
home, takes_lock = Path(sys.argv[1]), sys.argv[2] == "lockstep"
with ExitStack() as stack:
    if takes_lock:
        stack.enter_context(exclusive(home / "warehouse.lock", "running the models"))
    files = [duckdb.connect(str(home / name)) for name in sys.argv[3:]]
    print("ready", flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home with a change and with files that a plan has not filled yet."""
    monkeypatch.setenv("LOCKSTEP_HOME", str(tmp_path))
    shop = Shop(datetime(2026, 11, 18, 9))
    shop.order(1)
    land(tmp_path, shop.changes)
    for name in FILES:
        with duckdb.connect(str(tmp_path / name)) as connection:
            connection.execute("CREATE TABLE kept AS SELECT 1 AS n")
    return tmp_path


@pytest.fixture(scope="module")
def planned(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project of one model under this one's config.yaml; in `data`, a home planned as of a day long past."""
    project = tmp_path_factory.mktemp("planned")
    config = YAML(typ="safe").load(ROOT / "config.yaml")
    config["before_all"] = ["SELECT 1"]  # ours asks for a change log
    del config["after_all"], config["linter"]
    YAML().dump(config, project / "config.yaml")
    (project / "models").mkdir()
    (project / "models" / "kept.sql").write_text(
        "MODEL (name mart.kept, kind FULL, start '2026-01-01', audits (not_null(columns := n))); SELECT 1 AS n"
    )
    (project / "data").mkdir()
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("LOCKSTEP_HOME", raising=False)
        plan = ("plan", "--auto-apply", "--no-prompts", "--execution-time", "2026-01-02")
        code, output = call("sqlmesh", *plan, project=project)
    assert code == 0, output
    return project


@pytest.fixture
def project(planned: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of `planned`."""
    monkeypatch.setenv("LOCKSTEP_HOME", str(tmp_path / "project" / "data"))
    return Path(shutil.copytree(planned, tmp_path / "project"))


@contextmanager
def running(home: Path, kind: str, *files: str) -> Iterator[subprocess.Popen[str]]:
    command = [sys.executable, "-c", RUN, str(home), kind, *files]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        yield process


def call(*command: str, project: Path = ROOT) -> tuple[int, str]:
    done = commands.call(*command, cwd=project)
    return done.returncode, done.stdout + done.stderr


def files_of(home: Path) -> dict[str, str]:
    return {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in home.glob("*.duckdb*")}


def assert_says(output: tuple[int, str], pid: int, *words: str) -> None:
    """That it failed, and said why in one line. SQLMesh may have told before how far it came."""
    code, text = output
    assert code == 1, text
    assert "Traceback" not in text
    *_, line = text.splitlines()
    for word in ("Error: ", f"process {pid} (", "nothing was written", *words):
        assert word in line
        assert text.count(word) == line.count(word)


def is_free(path: Path) -> bool:
    """Whether another process can open the file."""
    code = "import duckdb, sys; duckdb.connect(sys.argv[1])"
    done = subprocess.run([sys.executable, "-c", code, str(path)], capture_output=True, text=True, timeout=600)
    assert done.returncode == 0 or "Could not set lock" in done.stderr
    return done.returncode == 0


def adapter(path: Path) -> EngineAdapter:
    """SQLMesh's connection to a file, as config.yaml describes it."""
    guard = {"fs": "lockstep", "file": str(path)}
    return DuckDBConnectionConfig(catalogs={path.stem: f"duckdb:{path}"}, filesystems=[guard]).create_engine_adapter()


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: command[0])
def test_each_command_is_refused(project: Path, command: tuple[str, ...]) -> None:
    home = project / "data"
    before = files_of(home)
    with running(home, "lockstep", *FILES) as run:
        assert_says(
            call("sqlmesh", *command, project=project), run.pid, "warehouse.lock is held by", "running the models"
        )
    for name in FILES:
        with running(home, "by hand", name) as run:
            assert_says(call("sqlmesh", *command, project=project), run.pid, f"{name} is in use by")
    assert files_of(home) == before
    code, output = call("sqlmesh", *command, project=project)
    assert code == 0, output


def test_sqlmesh_during_a_run(home: Path) -> None:
    with running(home, "lockstep", "warehouse.duckdb", "state.duckdb") as run:
        before = files_of(home)
        assert_says(call("sqlmesh", "plan", "--auto-apply", "--no-prompts"), run.pid, "since", "running the models")
        assert_says(call("lockstep", "run"), run.pid, "since", "running the models")
        assert_says(call("sqlmesh", "run"), run.pid, "since", "running the models")
        for command in (("lint",), ("format", "--check"), ("test", "-k", "no_such_test")):
            code, output = call("sqlmesh", *command)
            assert code == 0, output
        assert files_of(home) == before
        os.kill(run.pid, signal.SIGKILL)
        run.wait()
    code, output = call("sqlmesh", "info")  # the dead hold nothing
    assert "State backend connection succeeded" in " ".join(output.split()), output


def test_by_hand_against_by_hand_and_lockstep_after_it(home: Path) -> None:
    with running(home, "by hand", "state.duckdb", "warehouse.duckdb") as run:
        before = files_of(home)
        assert_says(call("sqlmesh", "plan", "--auto-apply", "--no-prompts"), run.pid, "duckdb is in use by")
        assert_says(call("lockstep", "run"), run.pid, "warehouse.duckdb is in use by")
        assert files_of(home) == before


def test_lockstep_while_one_by_hand_has_only_its_state_open(home: Path) -> None:
    with running(home, "by hand", "state.duckdb") as run:
        before = files_of(home)
        assert_says(call("lockstep", "run"), run.pid, "state.duckdb is in use by")
        assert files_of(home) == before


def test_other_errors_keep_their_words(tmp_path: Path) -> None:
    path = tmp_path / "broken.duckdb"
    path.write_bytes(b"no database " * 1000)
    with pytest.raises(duckdb.IOException) as raised:
        duckdb.connect(str(path))
    assert in_use(path, raised.value) is None


def test_at_the_same_moment(project: Path) -> None:
    """Each either has the home or is refused, also where the state is yet to be made."""
    home = project / "data"
    for name in FILES:
        (home / name).unlink()
    command = [BIN / "sqlmesh", "migrate"]
    with ExitStack() as stack:
        started = [
            stack.enter_context(
                subprocess.Popen(command, cwd=project, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
            )
            for _ in range(4)
        ]
        for process in started:
            output, _ = process.communicate(timeout=600)
            if process.returncode:
                assert "duckdb is in use by" in output.splitlines()[-1]
            assert "Traceback" not in output
    assert "This project has no environments" in call("sqlmesh", "environments", project=project)[1]


def test_nobody_comes_between_the_look_and_the_opening(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "state.duckdb"
    onewriter.OneWriter(str(path))
    assert not is_free(path)

    other = tmp_path / "warehouse.duckdb"
    lock = onewriter._lock
    with ExitStack() as stack:
        came = []

        def come(path: Path) -> bool:
            came.append(stack.enter_context(running(tmp_path, "by hand", path.name)).pid)
            return lock(path)

        monkeypatch.setattr(onewriter, "_lock", come)
        with pytest.raises(onewriter.CannotOpen, match=r"warehouse\.duckdb is in use by") as raised:
            onewriter.OneWriter(str(other))
        assert f"process {came[0]} (" in str(raised.value)


def test_looking_again_does_not_let_others_in(tmp_path: Path) -> None:
    """SQLMesh looks for each cursor; to close any descriptor of the file would end the process's lock on it."""
    path = tmp_path / "state.duckdb"
    state = adapter(path)
    state.execute("CREATE TABLE kept AS SELECT 1 AS n")
    assert not is_free(path)
    state.ping()  # which closes the cursor
    assert state.fetchone("SELECT n FROM kept") == (1,)
    assert not is_free(path)
    state.close()
    assert is_free(path)
    assert state.fetchone("SELECT n FROM kept") == (1,)
    assert not is_free(path)
    state.close()


def test_open_in_this_process_otherwise(tmp_path: Path) -> None:
    path = tmp_path / "state.duckdb"
    with duckdb.connect(str(path)):
        with pytest.raises(onewriter.CannotOpen, match="open in this process already"):
            adapter(path).execute("SELECT 1")
        assert not is_free(path)


def test_who_has_a_file_open_goes_on_after_lockstep_took_the_lock(tmp_path: Path) -> None:
    """Else the two would refuse each other: lockstep, which looks at the files after it took the lock, and this one."""
    state, warehouse = adapter(tmp_path / "state.duckdb"), adapter(tmp_path / "warehouse.duckdb")
    state.execute("SELECT 1")
    with running(tmp_path, "lockstep") as run:
        warehouse.execute("SELECT 1")
        warehouse.close()
        state.close()
        with pytest.raises(onewriter.CannotOpen, match=f"held by process {run.pid}"):
            adapter(tmp_path / "state.duckdb").execute("SELECT 1")


def test_a_broken_file_is_not_taken_for_an_empty_state(project: Path) -> None:
    path = project / "data" / "state.duckdb"
    path.write_bytes(b"no database " * 1000)
    for command in (("plan", "--auto-apply", "--no-prompts"), ("run",)):
        code, output = call("sqlmesh", *command, project=project)
        assert code == 1, output
        assert "Traceback" not in output
        assert f"Error: {path} cannot be opened: " in output.splitlines()[-1]


def test_where_the_look_fails_the_command_ends(tmp_path: Path) -> None:
    (tmp_path / "warehouse.lock").mkdir()
    with pytest.raises(onewriter.CannotOpen, match="Is a directory"):
        adapter(tmp_path / "state.duckdb").execute("SELECT 1")


def test_every_file_that_the_configuration_attaches_is_looked_at_first() -> None:
    """And has `duckdb:` before its path: else DuckDB closes it once before it locks it, which no other test sees."""
    gateway = YAML(typ="safe").load(ROOT / "config.yaml")["gateways"]["duckdb"]
    attached = set()
    for connection in (gateway["connection"], gateway["state_connection"]):
        [system], [path] = connection["filesystems"], connection["catalogs"].values()
        assert (system["fs"], f"duckdb:{system['file']}") == ("lockstep", path)
        assert "database" not in connection
        attached.add(Path(system["file"]).name)
    assert attached == {*onewriter.FILES}
