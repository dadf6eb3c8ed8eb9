"""A project of a test's own facts, and a home where the rows of five tables move under each other."""

from __future__ import annotations

import random
import shutil
import time
from collections import defaultdict
from collections.abc import Callable, Collection
from copy import deepcopy
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import cached_property
from pathlib import Path
from typing import Any, Self

import duckdb
import pytest

from lockstep import contracts, operate, warehouse
from lockstep.changelog import SETTLING
from lockstep.init import init
from lockstep.schema import SCHEMA_FILE, TABLES, declared
from projects import add_in_full, schema_of
from shop import Shop, key_of, land

HOUR = timedelta(hours=1)
OPENED = datetime(2026, 3, 1, 20, 30)
Rows = dict[str, dict[Any, dict[str, Any]]]


@dataclass
class Place:
    """A project and its home, and the shop whose changes land in it."""

    directory: Path
    shop: Shop
    landed: int = 0

    @property
    def project(self) -> Path:
        return self.directory / "project"

    @property
    def home(self) -> Path:
        return self.directory / "home"

    @cached_property
    def tables(self) -> frozenset[str]:
        """The source tables that the project declares."""
        return frozenset(declared(self.project / SCHEMA_FILE))

    def enter(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(TABLES, "_found", declared(self.project / SCHEMA_FILE))
        monkeypatch.chdir(self.project)
        monkeypatch.setenv("LOCKSTEP_HOME", str(self.home))
        contracts.load.cache_clear()

    def copied(self, directory: Path) -> Self:
        shutil.copytree(self.directory, directory, symlinks=True)
        return type(self)(directory, deepcopy(self.shop), self.landed)

    def pass_two_nights(
        self, facts: Collection[str], work: Callable[[random.Random, datetime], None], compare: Callable[[], None]
    ) -> None:
        """Two midnights, with a run every few hours: batches of one hour and of several. Compared after each run."""
        chance = random.Random(3)
        for hours in (1, 2, 5, 21, 5):  # until 06:00 of 3 March
            work(chance, self.shop.now.replace(minute=0) + hours * HOUR)
            self.land()
            result = operate.run(self.home, self.shop.now)
            assert result.failures == []
            compare()
        receipts = {(r["domain"], r["verdict"], r["cut"]) for r in result.receipts}
        assert receipts == {(fact, "passed", datetime(2026, 3, 3)) for fact in facts}

    def land(self, *, reached: datetime | None = None) -> None:
        land(self.home, self.shop.changes[self.landed :], reached=reached)
        self.landed = len(self.shop.changes)

    def work(self, chance: random.Random, until: datetime) -> None:
        """Half a dozen transactions an hour: any row of a declared table may come, change, take another key or go."""
        while self.shop.now < until:
            self.shop.now += timedelta(minutes=chance.randrange(1, 20))
            with self.shop.transaction():
                for _ in range(chance.randrange(1, 4)):
                    self._do(chance)

    def _do(self, chance: random.Random) -> None:
        kinds = ["orders", "orders", "customers", "products", "shipments", "drivers"]
        table = chance.choice([table for table in kinds if table in self.tables])
        rows, key = self.shop.rows[table], chance.randrange(1, 8 if table == "orders" else 4)
        region = chance.choice(["north", "south"])
        columns = {
            "orders": {
                "customer_id": chance.randrange(1, 5),
                "product_id": chance.randrange(1, 4),
                "region": region,
                "quantity": chance.randrange(1, 5),
                "amount_cents": chance.randrange(0, 900),
            },
            "customers": {"region": region},
            "products": {"category": chance.choice(["books", "toys"]), "price_cents": chance.randrange(100)},
            "shipments": {"status": chance.choice(["created", "returned"])},
            "drivers": {"capacity_parcels": chance.randrange(1, 9)},
        }[table]
        if key not in rows:
            self.shop.insert(table, key, **columns)
        elif chance.random() < 0.1:
            self.shop.delete(key, table)
        elif chance.random() < 0.2 and key + 1 not in rows:
            self.shop.rekey(key, key + 1, table, **columns)
        else:
            self.shop.update(table, key, **columns)

    def rows_at(self, at: datetime) -> Rows:
        """The rows of the source after all changes before an instant; no commit time goes back here."""
        rows: Rows = defaultdict(dict)
        for change in self.shop.changes[: self.landed]:
            if change.committed_at >= at:
                break
            if change.before:
                del rows[change.table][key_of(change.table, change.before)]
            if change.after:
                rows[change.table][key_of(change.table, change.after)] = change.after
        return rows

    def compare_mirror(self, *but: str) -> None:
        """Each source table as an analyst reads it who comes now, but for these."""
        time.sleep(SETTLING.total_seconds() + 0.05)
        for table in self.tables - {*but}:
            with duckdb.connect(str(self.home / "analytics.duckdb"), read_only=True) as reader:
                found = warehouse.rows(reader, f"SELECT * FROM source.{table}")
            shown = {row[table.removesuffix("s") + "_id"]: row for row in found}
            assert len(shown) == len(found)
            personal = {"full_name", "email"}
            expected = {k: {n: v for n, v in r.items() if n not in personal} for k, r in self.shop.rows[table].items()}
            assert shown == expected


def prepare(
    place: Place, tables: Collection[str], models: dict[str, str], contract_rows: list[str], measures: list[str]
) -> None:
    """Write the project over these tables, `customers` among them, promote all of its facts, and begin the log."""
    init(place.project, schema_of(tables))
    for name, text in models.items():
        path = place.project / "models" / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
    facts = [row.partition(",")[0] for row in contract_rows]
    promoted = [f"{fact},live,2026-03-01 00:00:00,0,{{}}" for fact in facts]
    for name, lines in (("contracts", contract_rows), ("contract_measures", measures)):
        add_in_full(place.project / "seeds", name, "".join(f"{line}\n" for line in lines))
    with (place.project / "seeds" / "promotions.csv").open("a") as file:
        file.writelines(f"{line}\n" for line in promoted)
    for customer in (1, 2, 3):
        place.shop.insert("customers", customer, region="north")
    place.land()
