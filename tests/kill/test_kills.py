"""Every command is killed at random moments, with `kill -9`, again and again on the same home.

After each kill no process of it is left, the next command is not refused, and what it says is right: positions are
without a gap, every change that was given is in the log once, and the figures that analysts read are those that plain
DuckDB counts from the log's files. The test prints what it killed, and how far each command had come.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import closing
from datetime import datetime, timedelta
from pathlib import Path

import duckdb
import psycopg2
import pytest

from killer import Killer
from lockstep import contracts, ingest, operate
from lockstep.changelog import ChangeLog
from lockstep.schema import SCHEMA_FILE, TABLES, declared
from postgres import Cluster, assert_log_is_source, cluster, shop
from projects import project_of_two_domains, whole_project
from shop import Change, Shop, debezium_lines

__all__ = ["cluster", "shop"]  # fixtures

ROOT = Path(__file__).parents[2]
START = datetime(2026, 11, 18, 20, 0)
LATER = timedelta(minutes=30)


class Company:
    """What happens in the shop, hour by hour, and the events that it sends."""

    def __init__(self, chance: random.Random) -> None:
        self.shop = Shop(START)
        self._chance = chance
        self._sent = 0
        for product in (1, 2, 3):
            self.shop.product(product, "books", op="r")
        for table, key in (("customers", 1), ("shipments", 1), ("route_stops", (1, 1)), ("gps_pings", 1)):
            if table in TABLES:
                self.shop.insert(table, key, op="r")  # no domain is empty: its receipt would prove nothing

    def hour(self) -> list[Change]:
        """The changes of the next hour."""
        orders = self.shop.rows["orders"]
        for _ in range(self._chance.randint(5, 25)):
            self.shop.now += timedelta(seconds=self._chance.randint(1, 120))
            what = self._chance.random()
            if what < 0.5 or not orders:
                self.shop.order(len(self.shop.changes) + 1, amount_cents=self._chance.randint(1, 100_000))
            elif what < 0.85:
                self.shop.change(self._chance.choice(list(orders)), amount_cents=self._chance.randint(1, 100_000))
            else:
                self.shop.delete(self._chance.choice(list(orders)))
        self.shop.now = (self.shop.now + timedelta(hours=1)).replace(minute=0, second=0)
        self.shop.product(1, "books")  # closes the hour
        new, self._sent = self.shop.changes[self._sent :], len(self.shop.changes)
        return new


def assert_figures_are_right(home: Path, company: Company) -> None:
    """The log holds each change once, and what is published is what plain DuckDB counts from the log's files."""
    changes = company.shop.changes
    with duckdb.connect() as connection:
        log = (
            f"read_parquet('{home}/changelog/[!_]*/hour=*/*.parquet', union_by_name = true, hive_partitioning = false)"
        )
        columns = "COUNT(*), COUNT(DISTINCT position), MIN(position), MAX(position)"
        assert connection.execute(f"SELECT {columns} FROM {log}").fetchone() == (len(changes),) * 2 + (1, len(changes))
        orders = f"read_parquet('{home}/changelog/orders/hour=*/*.parquet', hive_partitioning = false)"
        recount = connection.execute(
            f"SELECT COUNT(after) - COUNT(before), COALESCE(SUM(after.amount_cents), 0) "
            f"- COALESCE(SUM(before.amount_cents), 0) FROM {orders}"
        ).fetchone()
    rows = company.shop.rows["orders"].values()
    assert recount == (len(rows), sum(row["amount_cents"] for row in rows))
    with duckdb.connect(str(home / "analytics.duckdb"), read_only=True) as connection:
        published = connection.execute("SELECT SUM(orders), SUM(revenue_cents) FROM mart.orders").fetchone()
        verdicts = connection.execute("SELECT DISTINCT receipt FROM about WHERE domain IS NOT NULL").fetchall()
    assert published == recount
    assert verdicts == [("passed",)]


@pytest.fixture
def project(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A project in which a model may be edited; the working directory is in it."""
    monkeypatch.chdir(ROOT)
    project = tmp_path / "project"
    request.param(project)
    monkeypatch.setattr(TABLES, "_found", declared(project / SCHEMA_FILE))
    monkeypatch.chdir(project)
    contracts.load.cache_clear()
    yield project
    contracts.load.cache_clear()


KINDS = ("run", "run", "plan", "publish", "compact", "reconcile", "ingest", "ingest")


@pytest.mark.parametrize(
    ("kills", "project"),
    [
        pytest.param(20, project_of_two_domains, id="20"),
        pytest.param(200, whole_project, id="200", marks=pytest.mark.long),
    ],
    indirect=["project"],
)
def test_after_any_kill_the_next_command_is_right(
    kills: int, project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    seed = random.randrange(1 << 32)
    chance = random.Random(seed)
    home = tmp_path / "home"
    home.mkdir()
    monkeypatch.setenv("LOCKSTEP_HOME", str(home))
    company = Company(chance)
    killer = Killer(home, chance, project)
    events = tmp_path / "events.jsonl"
    model = project / "models" / "rebuild" / "latest_orders.sql"
    original = model.read_text()
    edited = original.replace("orders.amount_cents::BIGINT", "(orders.amount_cents + 0)::BIGINT", 1)
    assert edited != original

    def deliver() -> None:
        events.write_text("".join(f"{line}\n" for change in company.hour() for line in debezium_lines(change)))

    def land() -> None:
        ingest.ingest(home, [str(events)])

    def run() -> operate.Run:
        return operate.run(home, company.shop.now + LATER)

    def command(kind: str) -> tuple[str, ...]:
        at = str(company.shop.now + LATER)
        if kind == "plan":
            return ("sqlmesh", "plan", "--auto-apply", "--no-prompts", "--skip-tests", "--execution-time", at)
        extra = {"run": ("--at", at), "ingest": (str(events),)}
        return ("lockstep", kind, *extra.get(kind, ()))

    for _ in range(5):
        deliver()
        land()
    assert run().agrees
    while killer.killed < kills:
        kind = chance.choice(KINDS)
        deliver()
        if kind != "ingest":
            land()
        if kind == "plan":
            model.write_text(edited if model.read_text() == original else original)
        if kind not in killer.whole:
            killer.call(kind, *command(kind))
            continue
        killer.kill(kind, *command(kind))
        land()  # given again, it lands what has not landed
        result = run()
        assert result.agrees, (result.failures, killer.kills)
        assert_figures_are_right(home, company)
    with capsys.disabled():
        print(f"\n{killer.killed} kills: {dict(killer.kills)}; none lost, none doubled, none stuck (seed {seed})")


@pytest.mark.parametrize("kills", [3, pytest.param(25, marks=pytest.mark.long)])
def test_a_killed_capture_leaves_nothing(
    kills: int, shop: Cluster, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    seed = random.randrange(1 << 32)
    home = tmp_path / "home"
    home.mkdir()
    killer = Killer(home, random.Random(seed))
    until_caught_up = ("lockstep", "capture", shop.dsn(), "--until-caught-up")
    killer.call("capture", *until_caught_up)
    with closing(psycopg2.connect(shop.dsn())) as connection:
        connection.autocommit = True
        next_key = 1
        while killer.killed < kills:
            with connection.cursor() as cursor:
                cursor.execute(
                    "INSERT INTO orders SELECT g, 1, 1, 'north', 1, g, 'new', now(), now() "
                    f"FROM generate_series({next_key}, {next_key + 999}) AS g"
                )
                cursor.execute(f"UPDATE orders SET amount_cents = amount_cents + 1 WHERE order_id % 7 = {next_key % 7}")
            next_key += 1000
            killer.kill("capture", *until_caught_up)
            killer.call("capture", *until_caught_up)
    assert_log_is_source(shop, home)
    assert ChangeLog(home).watermark().position >= 1000 * kills
    with capsys.disabled():
        print(f"\n{killer.killed} kills: {dict(killer.kills)}; the log is the source (seed {seed})")
