"""Without PostgreSQL's server its tests say what to install; in CI, where nobody reads of skipped tests, they fail."""

from __future__ import annotations

from pathlib import Path

import pytest

import postgres


@pytest.fixture(autouse=True)
def no_server(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(postgres, "server_programs", lambda: None)
    monkeypatch.delenv("LOCKSTEP_TEST_POSTGRES", raising=False)


def test_without_ci_the_tests_are_skipped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CI", raising=False)
    with pytest.raises(pytest.skip.Exception, match="apt-get install postgresql"):
        postgres.required_programs()


def test_in_ci_the_tests_fail(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CI", "true")
    with pytest.raises(pytest.fail.Exception, match="apt-get install postgresql"):
        postgres.required_programs()


def test_a_directory_without_the_server_fails(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("LOCKSTEP_TEST_POSTGRES", str(tmp_path))
    with pytest.raises(pytest.fail.Exception, match="no initdb"):
        postgres.required_programs()
