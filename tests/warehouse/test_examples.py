"""What stands in `examples/` is valid, and starts commands as they are."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest
from sqlmesh.utils.yaml import load

from lockstep.cli import cli

EXAMPLES = Path(__file__).parents[2] / "examples"
# The notebook is a program, which tests/test_doors.py runs.
FILES = sorted(p for p in EXAMPLES.rglob("*") if p.is_file() and "notebook" not in p.parts)
# A command as it is typed: up to the end of the line, or of the shell's command.
COMMAND = re.compile(
    r"(?:^ExecStart=\S*/|^ *command: (?:sh -c .*)?\b)lockstep ((?:capture|run)\b[^;\"\n]*)", re.MULTILINE
)


@pytest.mark.parametrize("path", FILES, ids=lambda p: p.name)
def test_it_says_what_to_change(path: Path) -> None:
    header = path.read_text().split("\n[Unit]")[0].split("\nservices:")[0]
    assert header.startswith("# ") and "hange" in header


def test_every_command_exists_with_its_options() -> None:
    commands = [c for path in FILES for c in COMMAND.findall(path.read_text())]
    assert [c.split()[0] for c in commands] == ["capture", "run", "capture", "run"]
    for command in commands:
        name, *arguments = command.split()
        cli.commands[name].make_context(name, arguments)


def test_the_compose_file_mounts_what_exists_and_waits_for_what_it_needs() -> None:
    services = load(EXAMPLES / "compose.yaml")["services"]
    for service in services.values():
        assert set(service.get("depends_on", {})) <= set(services)
        for mount in service["volumes"]:
            source = mount.split(":")[0]
            assert not source.startswith(".") or (EXAMPLES / source).exists(), mount
    assert services["capture"]["environment"]["PGPASSWORD"] == services["db"]["environment"]["POSTGRES_PASSWORD"]
    assert "wal_level=logical" in services["db"]["command"]


@pytest.mark.skipif(not shutil.which("systemd-analyze"), reason="systemd is not installed")
def test_the_units_are_valid(tmp_path: Path) -> None:
    for path in (EXAMPLES / "systemd").iterdir():
        text = path.read_text()
        (tmp_path / path.name).write_text(re.sub(r"^ExecStart=\S+", "ExecStart=/bin/true", text, flags=re.MULTILINE))
    units = sorted(str(p) for p in tmp_path.iterdir())
    done = subprocess.run(["systemd-analyze", "verify", *units], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
