"""`lockstep init --from FILE` declares the tables that a recording's events name, or says what it lacks.

Awkward cases: events without a schema, without keys, in three shapes of records; a table whose columns change; a nested
type; a file that is cut off.
"""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from lockstep.cli import cli
from lockstep.errors import LockstepError
from lockstep.schema import declared

COLUMNS = [
    {"field": "id", "type": "int64", "optional": False},
    {"field": "name", "type": "string", "optional": True},
    {"field": "born", "type": "int32", "optional": True, "name": "io.debezium.time.Date"},
    {"field": "seen_at", "type": "string", "optional": False, "name": "io.debezium.time.ZonedTimestamp"},
    {"field": "place", "type": "struct", "optional": True, "name": "io.debezium.data.geometry.Point", "fields": []},
]
KEY = {"schema": {"type": "struct", "fields": COLUMNS[:1]}, "payload": {"id": 1}}


def value(table: str = "people", columns: list[Any] = COLUMNS, schema: str | None = "crm") -> dict[str, Any]:
    image = {"type": "struct", "fields": columns}
    return {
        "schema": {"type": "struct", "fields": [{"field": "before", **image}, {"field": "after", **image}]},
        "payload": {"op": "c", "before": None, "after": {"id": 1}, "source": {"schema": schema, "table": table}},
    }


def record(**event: Any) -> str:
    return f"{json.dumps(KEY)}\t{json.dumps(value(**event))}"


def kcat(**event: Any) -> str:
    return json.dumps({"topic": "t", "key": json.dumps(KEY), "payload": json.dumps(value(**event))})


def init(tmp_path: Path, *arguments: str) -> Result:
    return CliRunner().invoke(cli, ["init", str(tmp_path / "project"), "--from", *arguments])


def refused(tmp_path: Path, *arguments: str) -> str:
    result = init(tmp_path, *arguments)
    assert isinstance(result.exception, LockstepError), result.output
    assert not (tmp_path / "project").exists()
    return str(result.exception)


@pytest.mark.parametrize("shape", [record, kcat])
@pytest.mark.parametrize("packed", [False, True])
def test_types_and_keys_are_those_of_the_schemas(tmp_path: Path, shape: Any, packed: bool) -> None:
    text = "\n".join((shape(), '{"ts_ms": 1}', json.dumps(KEY) + "\t", shape(table="other", schema=None), "")).encode()
    path = tmp_path / "recording"
    path.write_bytes(gzip.compress(text) if packed else text)
    result = init(tmp_path, str(path))
    assert "declares 2 tables" in result.output and "lockstep ingest" in result.output
    assert "crm.people.place (io.debezium.data.geometry.Point)" in result.output
    tables = declared(tmp_path / "project" / "source_schema.sql")
    people = tables["people"]
    assert (people.schema, people.key, tables["other"].schema) == ("crm", ("id",), None)
    assert [(c.name, str(c.type), c.nullable) for c in people.columns] == [
        ("id", "int64", False),
        ("name", "string", True),
        ("born", "date32[day]", True),
        ("seen_at", "timestamp[us]", False),
    ]


def test_the_last_event_counts(tmp_path: Path) -> None:
    path = tmp_path / "recording"
    path.write_text(f"{record(columns=COLUMNS[:1])}\n{record(columns=COLUMNS[:2])}\n{record(columns=[])}\n")
    init(tmp_path, str(path))
    assert [c.name for c in declared(tmp_path / "project" / "source_schema.sql")["people"].columns] == ["id", "name"]


def test_events_without_a_schema_say_so(tmp_path: Path) -> None:
    path = tmp_path / "recording"
    bare = json.dumps(value()["payload"]) + "\n"
    path.write_text(bare)
    said = refused(tmp_path, str(path))
    assert "holds changes of people, but its events do not name their types" in said and "schemas.enable=true" in said
    path.write_text(bare + record(table="other") + "\n")
    assert "crm.people is left out: its events do not name their types" in init(tmp_path, str(path)).output


def test_events_without_keys_say_so(tmp_path: Path) -> None:
    path = tmp_path / "recording"
    path.write_text(json.dumps(value()) + "\n")
    assert "the recording does not hold its key" in refused(tmp_path, str(path))


def test_chosen_tables(tmp_path: Path) -> None:
    path = tmp_path / "recording"
    path.write_text(f"{record()}\n{record(table='other')}\n")
    assert "no events of a table third. It has crm.people, crm.other" in refused(
        tmp_path, str(path), "--table", "third"
    )
    assert "declares 1 table," in init(tmp_path, str(path), "--table", "crm.other").output


def test_what_is_no_recording(tmp_path: Path) -> None:
    assert "There is no file" in refused(tmp_path, str(tmp_path / "missing"))
    (tmp_path / "notes").write_text("hello\n")
    assert "holds no change events" in refused(tmp_path, str(tmp_path / "notes"))


def test_a_recording_that_is_cut_off_is_read_as_far_as_it_goes(tmp_path: Path) -> None:
    path = tmp_path / "recording"
    path.write_text(record() + "\n" + record()[:40])
    result = init(tmp_path, str(path))
    assert result.exit_code == 0 and "ends in the middle of line 2" in result.output


def test_bits_of_mysql_have_their_length(tmp_path: Path) -> None:
    bits = {"field": "flags", "type": "bytes", "name": "io.debezium.data.Bits", "parameters": {"length": "12"}}
    path = tmp_path / "recording"
    path.write_text(record(columns=[*COLUMNS, bits]).replace('"source": {', '"source": {"connector": "mysql", ') + "\n")
    init(tmp_path, str(path))
    flags = declared(tmp_path / "project" / "source_schema.sql")["people"].columns[-1]
    assert (flags.kind.name, flags.kind.precision) == ("bit", 12)
