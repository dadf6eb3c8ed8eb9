"""A declaration that drops columns and widens types of a table whose changes have landed."""

from __future__ import annotations

from datetime import datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from lockstep.changelog import ChangeLog
from lockstep.compact import compact
from lockstep.errors import LockstepError
from lockstep.latest import live_images
from lockstep.log_check import check
from lockstep.moves import problems
from lockstep.schema import TABLES, batch_schema, declared, log_schema

BEFORE = "CREATE TABLE item (id integer PRIMARY KEY, v smallint, n numeric(10,2), r real, gone text, name varchar(10));"
AFTER = "CREATE TABLE item (name text, id bigint PRIMARY KEY, v integer, n numeric(13,3), r double precision);"
NOON = datetime(2026, 3, 1, 12)


def declare(monkeypatch: pytest.MonkeyPatch, directory: Path, ddl: str) -> None:
    path = directory / f"source_schema_{len(list(directory.glob('*.sql')))}.sql"
    path.write_text(ddl)
    monkeypatch.setattr(TABLES, "_found", declared(path))


def land(log: ChangeLog, *images: dict[str, Any], at: datetime = NOON) -> None:
    rows = [{"ordinal": n, "committed_at": at, "op": "c", "after": image} for n, image in enumerate(images)]
    with log.writer("postgresql:shop") as writer:
        writer.land({"item": pa.Table.from_pylist(rows, batch_schema(TABLES["item"]))})


def rows(log: ChangeLog) -> list[tuple[Any, ...]]:
    glob = log.root / "item" / "*" / "*.parquet"
    query = f"SELECT after.* FROM read_parquet('{glob}', hive_partitioning = false) ORDER BY position"
    return duckdb.sql(query).fetchall()


OLD = {"id": 1, "v": 7, "n": Decimal("1.50"), "r": 0.5, "gone": "x", "name": "ten"}
NEW = {"id": 1 << 40, "v": 70_000, "n": Decimal("1.125"), "r": 0.1, "name": "longer than ten letters"}
AS_READ = [
    ("ten", 1, 7, Decimal("1.500"), 0.5, None),
    ("longer than ten letters", 1 << 40, 70_000, Decimal("1.125"), 0.1, None),
]


def test_old_files_are_read_as_what_is_declared_now(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    log = ChangeLog(tmp_path / "home")
    declare(monkeypatch, tmp_path, BEFORE)
    land(log, OLD)
    declare(monkeypatch, tmp_path, AFTER)
    land(log, NEW)
    assert rows(log) == AS_READ
    [images] = live_images(TABLES["item"], log.files("item"), 2, tmp_path / "scratch")
    assert sorted(tuple(image.values()) for image in images.to_pylist()) == sorted(AS_READ)
    assert len(log.files("item")) == 2, "a file keeps its columns, so the small one does not grow"
    assert check(log.home).findings == []


def test_an_hour_of_both_is_not_compacted_and_stays_whole(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    log = ChangeLog(tmp_path / "home")
    declare(monkeypatch, tmp_path, BEFORE)
    land(log, OLD)
    declare(monkeypatch, tmp_path, AFTER)
    land(log, NEW)
    land(log, {**NEW, "id": 2}, at=NOON + timedelta(hours=2))
    compact(log.home, NOON + timedelta(hours=2))
    assert rows(log)[:2] == AS_READ


def test_a_plan_meets_the_new_declaration_before_any_landing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    log = ChangeLog(tmp_path / "home")
    declare(monkeypatch, tmp_path, BEFORE)
    land(log, OLD)
    declare(monkeypatch, tmp_path, AFTER)
    log.require_changes()
    assert rows(log) == AS_READ[:1]


@pytest.mark.parametrize(
    ("column", "why"),
    [
        ("v integer, added text", "column added is new"),
        ("v text", "column v was int32 and would be string"),
        ("v numeric(4)", r"column v was int32 and would be decimal128\(4, 0\)"),
        ("v real", "column v was int32 and would be float"),
    ],
)
def test_what_a_declaration_may_not_change(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, column: str, why: str
) -> None:
    log = ChangeLog(tmp_path / "home")
    declare(monkeypatch, tmp_path, "CREATE TABLE item (id integer PRIMARY KEY, v smallint);")
    with log.writer("postgresql:shop"):
        pass
    declare(monkeypatch, tmp_path, f"CREATE TABLE item (id integer PRIMARY KEY, {column});")
    with log.writer("postgresql:shop"):
        pass  # nothing has landed, so anything may change
    declare(monkeypatch, tmp_path, "CREATE TABLE item (id integer PRIMARY KEY, v smallint);")
    land(log, {"id": 1, "v": 7})
    declare(monkeypatch, tmp_path, f"CREATE TABLE item (id integer PRIMARY KEY, {column});")
    with pytest.raises(LockstepError, match=why), log.writer("postgresql:shop"):
        pass
    schema = log.root / "item" / "hour=1970-01-01T00" / "0-0.parquet"
    assert pq.read_schema(schema).field("after").type.field("v").type == pa.int32(), "and all is as it was"


@pytest.mark.parametrize(
    ("narrow", "wide", "is_allowed"),
    [
        ("smallint", "bigint", True),
        ("bigint", "integer", False),
        ("integer", "numeric(10)", True),
        ("integer", "numeric(9)", False),
        ("bigint", "numeric(21,2)", True),
        ("numeric(10,2)", "numeric(12,4)", True),
        ("numeric(10,2)", "numeric(12,5)", False),
        ("numeric(10,2)", "numeric(12,1)", False),
        ("real", "double precision", True),
        ("double precision", "real", False),
        ("date", "timestamp", False),
        ("varchar(10)", "text", True),
    ],
)
def test_a_type_is_widened_only_if_every_value_stays(tmp_path: Path, narrow: str, wide: str, is_allowed: bool) -> None:
    tables = []
    for name, kind in (("narrow", narrow), ("wide", wide)):
        path = tmp_path / f"{name}.sql"
        path.write_text(f"CREATE TABLE item (id integer PRIMARY KEY, v {kind});")
        tables.append(declared(path)["item"])
    assert bool(problems(tables[1], log_schema(tables[0]))) is not is_allowed
