"""What a contributor runs by hand, what git runs and what CI runs are the same commands."""

from __future__ import annotations

import re
from pathlib import Path

from sqlmesh.utils.yaml import load

ROOT = Path(__file__).parents[2]
FOLDERS = tuple(f"{path.name}/" for path in ROOT.iterdir() if path.is_dir() and not path.name.startswith("."))
MAKEFILE = (ROOT / "Makefile").read_text("utf-8")


def recipe(target: str) -> list[str]:
    found = re.search(rf"^{target}:.*\n((?:\t.*\n)+)", MAKEFILE, re.MULTILINE)
    assert found, target
    return [line.strip().replace("$(BIN)", ".venv/bin") for line in found[1].splitlines()]


def test_git_runs_the_commands_of_make_check() -> None:
    [local] = load(ROOT / ".pre-commit-config.yaml", render_jinja=False)["repos"]
    assert local["repo"] == "local"
    assert [hook["entry"] for hook in local["hooks"]] == recipe("check")
    assert {hook["language"] for hook in local["hooks"]} == {"system"}


def test_workflows_and_contributors_run_targets_that_exist() -> None:
    targets = set(re.findall(r"^([a-z-]+):.*## ", MAKEFILE, re.MULTILINE))
    for path in (*(ROOT / ".github" / "workflows").glob("*.yml"), ROOT / "CONTRIBUTING.md"):
        named = re.findall(r"(?:^ *|`|run: )make ([a-z-]+)", path.read_text("utf-8"), re.MULTILINE)
        assert named and set(named) <= targets, path


def test_make_help_shows_every_target() -> None:
    [phony] = re.findall(r"^\.PHONY: (.*)$", MAKEFILE, re.MULTILINE)
    assert phony.split() == re.findall(r"^([a-z-]+):.*## ", MAKEFILE, re.MULTILINE)


def test_contributors_find_the_files_that_are_named() -> None:
    text = (ROOT / "CONTRIBUTING.md").read_text("utf-8")
    named = {token for token in re.findall(r"[\w./-]+", text) if token.startswith(FOLDERS)}
    assert len(named) > 15
    assert [name for name in sorted(named) if not (ROOT / name).exists()] == []
