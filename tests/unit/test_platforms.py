"""Where Lockstep cannot run, its command says so in a sentence."""

from __future__ import annotations

import sys

import pytest

from lockstep import cli


def test_windows_is_refused(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys, "platform", "win32")
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code == 1
    assert (
        capsys.readouterr().err == "Error: Lockstep does not run on Windows, which lacks its locks. Run it in WSL 2.\n"
    )
