"""docs/your-own-tables.md, carried out as it is written, with the tutorial database of Debezium and its events."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections import defaultdict
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any

import duckdb
import pytest

from lockstep.errors import LockstepError
from lockstep.init import init
from lockstep.schema import declared

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "your-own-tables.md").read_text(encoding="utf-8")
FILES = dict(re.findall(r"```(?:sql|csv) file=(\S+)\n(.*?)```", PAGE, re.DOTALL))
EVENING = int(datetime(2026, 3, 1, 21, tzinfo=UTC).timestamp() * 1_000_000)

Image = dict[str, Any]


def lockstep(project: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"LOCKSTEP_HOME": "data"}
    command = [sys.executable, "-m", "lockstep.cli", *arguments]
    return subprocess.run(command, cwd=project, env=environment, capture_output=True, text=True, check=False)


class Inventory:
    """The tutorial's database: it makes events as Debezium's JSON converter writes them, schema and payload."""

    def __init__(self) -> None:
        self.rows: dict[tuple[str, int], Image] = {}
        self.lines: list[str] = []

    def put(self, table: str, row: Image, op: str = "u") -> None:
        before = self.rows.get((table, row["id"]))
        self.rows[table, row["id"]] = row
        self._event(table, op if op == "r" or before else "c", None if op == "r" else before, row)

    def drop(self, table: str, key: int) -> None:
        self._event(table, "d", self.rows.pop((table, key)), None)

    def _event(self, table: str, op: str, before: Image | None, after: Image | None) -> None:
        n = len(self.lines)
        at = EVENING + n * 600_000_000  # ten minutes later each
        source = {"version": "3.6.3.Final", "connector": "postgresql", "name": "dbserver1", "db": "inventory"}
        source |= {"schema": "inventory", "table": table, "txId": 500 + n, "lsn": 24_000_000 + n}
        source |= {"ts_us": at, "ts_ms": at // 1000, "snapshot": "true" if op == "r" else "false"}
        payload = {"before": before, "after": after, "source": source, "op": op, "ts_ms": at // 1000 + 7}
        schema = {"type": "struct", "name": f"dbserver1.inventory.{table}.Envelope", "optional": False, "fields": []}
        self.lines.append(json.dumps({"schema": schema, "payload": payload}))

    def purchases(self) -> dict[tuple[date, int], tuple[int, int]]:
        found: dict[tuple[date, int], list[int]] = defaultdict(list)
        for (table, _), row in self.rows.items():
            if table == "orders":
                day = date.fromordinal(date(1970, 1, 1).toordinal() + row["order_date"])
                found[day, row["product_id"]].append(row["quantity"])
        return {cell: (len(units), sum(units)) for cell, units in found.items()}


def order(key: int, day: int, purchaser: int, quantity: int, product: int) -> Image:
    return {"id": key, "order_date": day, "purchaser": purchaser, "quantity": quantity, "product_id": product}


@pytest.fixture
def inventory() -> Inventory:
    shop = Inventory()
    for key, first in ((1001, "Sally"), (1002, "George"), (1003, "Edward"), (1004, "Anne")):
        shop.put("customers", {"id": key, "first_name": first, "last_name": "X", "email": f"{first}@acme.com"}, "r")
    shop.put("products", {"id": 102, "name": "car battery", "description": "12V car battery", "weight": 8.1}, "r")
    shop.put("products", {"id": 105, "name": "hammer", "description": None, "weight": 0.875}, "r")
    shop.put(
        "addresses",
        {"id": 10, "customer_id": 1001, "street": "3183 Moore Avenue", "city": "Euless", "type": "SHIPPING"},
        "r",
    )
    for row in (
        order(10001, 16816, 1001, 1, 102),
        order(10002, 16817, 1002, 2, 105),
        order(10003, 16850, 1002, 2, 105),
    ):
        shop.put("orders", row, "r")
    shop.put("orders", order(10004, 16852, 1003, 1, 102))
    shop.put("customers", {"id": 1004, "first_name": "Anne Marie", "last_name": "X", "email": "a@acme.com"})
    for key in range(10005, 10030):
        shop.put("orders", order(key, 16852 + key % 3, 1001, key % 5, 102 + key % 4))
    shop.put("orders", order(10002, 16818, 1002, 7, 105))  # into another cell
    shop.drop("orders", 10003)
    shop.put("orders", order(10003, 16850, 1004, 3, 102))  # and again, as another
    return shop


def test_the_page_makes_a_project_that_agrees(tmp_path: Path, inventory: Inventory) -> None:
    project = tmp_path / "shop"
    assert subprocess.run([sys.executable, "-m", "lockstep.cli", "init", str(project)], cwd=ROOT).returncode == 0
    (tmp_path / "inventory.jsonl").write_text("\n".join(inventory.lines) + "\n", encoding="utf-8")
    empty = lockstep(project, "ingest", str(tmp_path / "inventory.jsonl"))
    assert "source_schema.sql declares no table" in empty.stderr
    for name, text in FILES.items():
        (project / name).parent.mkdir(parents=True, exist_ok=True)
        (project / name).write_text(text, encoding="utf-8")
    refused = lockstep(project, "simulate")
    assert "does not declare customers as the simulated company has it" in refused.stderr

    for command in re.findall(r"^lockstep (ingest|run|receipts)(.*)$", PAGE, re.MULTILINE):
        done = lockstep(project, command[0], *command[1].split())
        assert done.returncode == 0, done.stdout + done.stderr
    assert "passed" in done.stdout

    with duckdb.connect(
        str(project / "data" / "warehouse.duckdb"), config={"file_search_path": f"{project}/data"}
    ) as db:
        served = db.execute("SELECT order_date, product_id, orders, units FROM live.purchases").fetchall()
        marts = db.execute("SELECT SUM(units), ANY_VALUE(served_from) FROM mart.purchases").fetchone()
        city = db.execute("SELECT after.city, after.extra FROM changes.addresses").fetchone()
    assert {(day, product): tuple(sums) for day, product, *sums in served} == inventory.purchases()
    assert marts and marts[1] == "rebuild"
    assert city == ("Euless", '{"street":"3183 Moore Avenue"}')

    for check in (("lint",), ("test",)):
        done = subprocess.run(
            [Path(sys.executable).with_name("sqlmesh"), *check],
            cwd=project,
            env=os.environ | {"LOCKSTEP_HOME": "data"},
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stdout + done.stderr


def test_it_takes_as_many_lines_as_the_page_says() -> None:
    lines = sum(len(text.splitlines()) for text in FILES.values())
    assert f"It takes {lines} lines." in PAGE
    assert lines < 60


def test_init_leaves_a_directory_with_something_in_it_alone(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(LockstepError, match="not empty"):
        init(tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["notes.txt"]


# What a schema file may say, and what it may not.


def schema(tmp_path: Path, text: str) -> Any:
    path = tmp_path / "source_schema.sql"
    path.write_text(text)
    return declared(path)


def test_a_dump_of_postgresql_is_read(tmp_path: Path) -> None:
    tables = schema(
        tmp_path,
        """SET statement_timeout = 0;
        CREATE TABLE public.visits (
            visit_id uuid NOT NULL, page character varying(80), seen_at timestamp with time zone NOT NULL,
            seconds smallint, CONSTRAINT positive CHECK (seconds > 0));
        ALTER TABLE public.visits OWNER TO shop;
        ALTER TABLE ONLY public.visits ADD CONSTRAINT visits_pkey PRIMARY KEY (visit_id);
        CREATE INDEX visits_page ON public.visits USING btree (page);""",
    )
    visits = tables["visits"]
    assert visits.key == ("visit_id",)
    assert [(c.name, str(c.type), c.nullable) for c in visits.columns] == [
        ("visit_id", "string", False),
        ("page", "string", True),
        ("seen_at", "timestamp[us]", False),
        ("seconds", "int32", True),
    ]


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("-- nothing", "declares no table"),
        ("CREATE TABLE t (a bigint)", "t has no PRIMARY KEY"),
        ('CREATE TABLE "$%" (a bigint PRIMARY KEY)', "nothing is left of $% as a name"),
        ("CREATE TABLE t (a bigint PRIMARY KEY", "not SQL that can be read"),
    ],
)
def test_what_the_log_cannot_hold_is_named(tmp_path: Path, text: str, named: str) -> None:
    with pytest.raises(LockstepError, match=re.escape(named)) as error:
        schema(tmp_path, text)
    assert str(tmp_path) in str(error.value)


def test_a_missing_schema_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(LockstepError, match=r"source_schema\.sql is missing"):
        declared(tmp_path / "source_schema.sql")
