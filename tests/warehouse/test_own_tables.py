"""docs/your-own-tables.md, carried out as it is written, with the tutorial database of Debezium and its events."""

from __future__ import annotations

import copy
import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections import defaultdict
from dataclasses import dataclass
from datetime import UTC, date, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import duckdb
import pytest

import every_type
from every_type import Shop
from homes import SharedHomes
from lockstep.changelog import SETTLING
from lockstep.errors import LockstepError
from lockstep.init import init
from lockstep.schema import declared
from projects import add_in_full

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "your-own-tables.md").read_text(encoding="utf-8")
ONE_QUERY = (ROOT / "docs" / "one-query.md").read_text(encoding="utf-8")
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
        self.opened = EVENING

    def put(self, table: str, row: Image, op: str = "u") -> None:
        before = self.rows.get((table, row["id"]))
        self.rows[table, row["id"]] = row
        self._event(table, op if op == "r" or before else "c", None if op == "r" else before, row)

    def drop(self, table: str, key: int) -> None:
        self._event(table, "d", self.rows.pop((table, key)), None)

    def _event(self, table: str, op: str, before: Image | None, after: Image | None) -> None:
        n = len(self.lines)
        at = self.opened + n * 600_000_000  # ten minutes later each
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


@pytest.fixture(scope="module")
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


@dataclass
class Built:
    """The project of the page, carried out, with tables of every type beside its own. `shop` made their changes."""

    project: Path
    shop: Shop
    said: dict[str, str]


@pytest.fixture(scope="module")
def built(shared_home: SharedHomes, inventory: Inventory) -> Built:
    def build(directory: Path) -> Built:
        directory.mkdir()
        project = directory / "shop"
        said = {}

        def step(name: str, *arguments: str) -> None:
            done = lockstep(project, *arguments)
            said[name] = done.stdout + done.stderr
            assert done.returncode == 0, said[name]

        assert subprocess.run([sys.executable, "-m", "lockstep.cli", "init", str(project)], cwd=ROOT).returncode == 0
        (directory / "inventory.jsonl").write_text("\n".join(inventory.lines) + "\n", encoding="utf-8")
        said["without a table"] = lockstep(project, "ingest", str(directory / "inventory.jsonl")).stderr
        for name, text in FILES.items():
            (project / name).parent.mkdir(parents=True, exist_ok=True)
            (project / name).write_text(text, encoding="utf-8")
        said["simulate"] = lockstep(project, "simulate").stderr
        every_type.add_to(project)
        shop = Shop()
        shop.work(datetime(2026, 3, 2, 4), datetime(2026, 3, 3, 1))
        shop.extremes(datetime(2026, 3, 3, 1))
        for command in re.findall(r"^lockstep (ingest|run|receipts)(.*)$", PAGE, re.MULTILINE):
            if command[0] == "run":
                step("first day", "ingest", written(shop, directory / "1.jsonl"))
            step(command[0], command[0], *command[1].split())
        shop.work(datetime(2026, 3, 3, 2), datetime(2026, 3, 3, 20))
        shop.late_price(datetime(2026, 3, 3, 20))
        shop.work(datetime(2026, 3, 3, 21), datetime(2026, 3, 4, 1))
        step("second day", "ingest", written(shop, directory / "2.jsonl"))
        step("second run", "run")
        return Built(project, shop, said)

    return shared_home("own_tables", build)


def written(shop: Shop, path: Path) -> str:
    path.write_text("".join(f"{line}\n" for line in shop.feed.lines()), encoding="utf-8")
    return str(path)


def test_the_page_makes_a_project_that_agrees(built: Built, inventory: Inventory) -> None:
    project, said = built.project, built.said
    assert "source_schema.sql declares no table" in said["without a table"]
    assert "does not declare customers as the simulated company has it" in said["simulate"]
    assert "passed" in said["receipts"]

    with warehouse(project) as db:
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


def test_the_page_on_one_query_makes_a_fact_of_two_tables(built: Built, inventory: Inventory, tmp_path: Path) -> None:
    project, shop = tmp_path / "shop", copy.deepcopy(inventory)
    shutil.copytree(built.project, project, symlinks=True)
    landed = len(shop.lines)
    said = {}
    for kind, place, text in re.findall(r"```(sh|sql|csv) ?(\S*)\n(.*?)```", ONE_QUERY, re.DOTALL):
        how, _, name = place.partition("=")
        if name:
            if how == "add":  # a fact by hand is beside it, whose contract has more columns
                add_in_full((project / name).parent, Path(name).stem, text)
            else:
                (project / name).write_text(text, encoding="utf-8")
        for line in text.splitlines() if kind == "sh" else ():
            program, *command = line.split()
            found = subprocess.run(
                [Path(sys.executable).with_name(program), *command],
                cwd=project,
                env=os.environ | {"LOCKSTEP_HOME": "data"},
                capture_output=True,
                text=True,
            )
            assert found.returncode == 0, found.stdout + found.stderr
            said[" ".join(command)] = found.stdout
    assert re.search(r"^sales .* passed *$", said["receipts"], re.MULTILINE)
    assert "orders x customers" in said["facts"]
    assert 'FROM delta."customers"' in said["facts --explain sales"]
    for fact, reason in (("prices", "written by hand, in models/diffs/prices.sql"), ("none", "There is no fact none")):
        done = lockstep(project, "facts", "--explain", fact)
        assert (done.returncode, done.stdout) == (1, "") and reason in done.stderr

    shop.opened += 3 * 24 * 3_600_000_000  # the other tables have changes of these days
    shop.put("customers", {"id": 1001, "first_name": "Sally Ann", "last_name": "X", "email": "s@acme.com"})
    shop.put(
        "customers", {"id": 1002, "first_name": "George", "last_name": "Y", "email": "g@acme.com"}
    )  # counts nowhere
    for _ in range(7):  # beyond the end of the hour
        shop.put("addresses", {"id": 10, "customer_id": 1001, "street": "", "city": "Euless", "type": "SHIPPING"})
    names = {row["id"]: row["first_name"] for (table, _), row in shop.rows.items() if table == "customers"}
    sales: dict[str, list[int]] = defaultdict(lambda: [0, 0])
    for (table, _), row in shop.rows.items():
        if table == "orders":
            sales[names[row["purchaser"]]][0] += 1
            sales[names[row["purchaser"]]][1] += row["quantity"]
    (tmp_path / "later.jsonl").write_text("\n".join(shop.lines[landed:]) + "\n", encoding="utf-8")
    for command in (["ingest", str(tmp_path / "later.jsonl")], ["run"]):
        done = lockstep(project, *command)
        assert done.returncode == 0, done.stdout + done.stderr
    hours, averages = re.findall(r"```sql show\n(.*?)```", ONE_QUERY, re.DOTALL)
    with warehouse(project) as db:
        moved = db.execute(hours).fetchall()
        baskets = db.execute(averages).fetchall()
        live = db.execute("SELECT customer, orders, units FROM live.sales").fetchall()
    orders, units = sales["Sally Ann"]
    assert moved == [("Sally", -orders, -units), ("Sally Ann", orders, units)]
    assert {customer: figures for customer, *figures in live} == sales
    bought: dict[str, list[Image]] = defaultdict(list)
    for (table, _), row in shop.rows.items():
        if table == "orders":
            bought[names[row["purchaser"]]].append(row)
    assert baskets == [
        (
            customer,
            sum(row["quantity"] for row in rows) / len(rows),
            len({row["product_id"] for row in rows}),
            max(row["quantity"] for row in rows),
        )
        for customer, rows in sorted(bought.items())
        if len(rows) > 1
    ]
    assert baskets


CELLS = "SELECT method, store, paid_on, is_refund, rate, opens, terminal, channel, payments, amount, weight FROM "
MIDNIGHT = datetime(2026, 3, 4)
SETTLED = SETTLING.total_seconds() + 0.05  # after which a landing is in what is published


def warehouse(project: Path, read_only: bool = True) -> duckdb.DuckDBPyConnection:
    path = project / "data" / "warehouse.duckdb"
    return duckdb.connect(str(path), read_only=read_only, config={"file_search_path": str(path.parent)})


def cells(db: duckdb.DuckDBPyConnection, table: str) -> dict[Any, Any]:
    return {row[:8]: row[8:] for row in db.execute(CELLS + table).fetchall()}


def test_figures_over_columns_of_every_type_are_exact(built: Built) -> None:
    feed = built.shop.feed
    at_midnight, now = feed.payments(MIDNIGHT), feed.payments()
    with warehouse(built.project) as db:
        receipts = db.execute(
            "SELECT domain, cut, verdict, cells_compared, cells_differing, cells_beyond, "
            "rebuild_fingerprint = increments_fingerprint FROM reconcile.receipts ORDER BY sequence"
        ).fetchall()
        assert cells(db, "verified.payments WHERE cut = '2026-03-04'") == at_midnight
        assert cells(db, "live.payments") == cells(db, "mart.payments") == now
        prices = db.execute("SELECT symbol, price, highest FROM mart.prices").fetchall()
        [tiers] = db.execute("SELECT LIST(DISTINCT after.extra ORDER BY after.extra) FROM changes.payments").fetchone()
        rebuilt = db.execute("SELECT symbol, price, highest FROM rebuild.prices").fetchall()
    assert tiers == ['{"tier":"1.10"}', None]
    assert {r[2] for r in receipts} == {"passed"}
    assert [r[1:] for r in receipts if r[0] == "payments"][-1] == (MIDNIGHT, "passed", len(at_midnight), 0, 0, True)
    assert [r[1:] for r in receipts if r[0] == "prices"][-1] == (MIDNIGHT, "passed", 2, 1, 0, False)  # a tolerated cell
    assert {symbol: figures for symbol, *figures in rebuilt} == feed.prices(MIDNIGHT)
    assert {symbol: figures for symbol, *figures in prices} == feed.prices()
    assert any(cell[0] == "wire" and figures[2] == every_type.LARGEST for cell, figures in now.items())
    archived = [json.loads(line) for line in (built.project / "data" / "receipts.jsonl").read_text().splitlines()]
    assert len(archived) == len(receipts)


def test_published_figures_over_columns_of_every_type_go_on_exactly(built: Built, tmp_path: Path) -> None:
    project, shop = tmp_path / "shop", copy.deepcopy(built.shop)
    shutil.copytree(built.project, project, symlinks=True)
    assert lockstep(project, "publish").returncode == 0  # the home has moved
    shop.work(datetime(2026, 3, 4, 1, 30), datetime(2026, 3, 4, 4))
    assert lockstep(project, "ingest", written(shop, tmp_path / "tail.jsonl")).returncode == 0
    time.sleep(SETTLED)
    now = shop.feed.payments()
    daily: dict[date, list[Any]] = defaultdict(lambda: [0, Decimal(0)])
    for (_, _, day, *_), (*figures, _) in now.items():
        daily[day] = [every_type.EXACT.add(a, b) for a, b in zip(daily[day], figures, strict=True)]
    with duckdb.connect(str(project / "data" / "analytics.duckdb"), read_only=True) as db:
        assert cells(db, "mart.payments") == now
        assert cells(db, "mart.payments_as_of('2026-03-03 10:00')") == shop.feed.payments(datetime(2026, 3, 3, 10))
        found = db.execute("SELECT paid_on, payments, amount FROM mart.payments_daily").fetchall()
        assert {day: figures for day, *figures in found} == daily
        assert db.execute("SELECT COUNT(*) FROM folded.mart_payments_daily").fetchone()  # it is published as its sums


def test_a_difference_is_told_with_every_digit(built: Built, tmp_path: Path) -> None:
    project = tmp_path / "shop"
    shutil.copytree(built.project, project, symlinks=True)
    with warehouse(project, read_only=False) as db:
        [(view,)] = db.execute(
            "SELECT sql FROM duckdb_views() WHERE schema_name = 'rebuild' AND view_name = 'payments'"
        ).fetchall()
        [table] = re.findall(r"FROM (.*);", view)
        db.execute(f"UPDATE {table} SET weight = weight - '1e-10'::DECIMAL(38, 10) WHERE method = 'wire'")
    said = lockstep(project, "explain", "payments").stdout
    assert "weight 99,999,999,999,999,999.9999999998 rebuilt" in said
    assert "99,999,999,999,999,999.9999999999 added up" in said


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
