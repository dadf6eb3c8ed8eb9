"""A quarantined event holds the figures of its table where they are, by night too, and no other figure."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Any

import duckdb

from lockstep import explain, operate, quarantine
from lockstep.changelog import ChangeLog
from lockstep.contracts import load
from replay import Replay, evening, morning, planned
from shop import land, reject

__all__ = ["evening", "morning", "planned"]  # fixtures

DAY = timedelta(days=1)
OF_ORDERS = {"orders", "customer_activity"}  # whose sources have the held table among them, or that share their rows
OF_SHIPMENTS = {"delivery_status", "route_performance"}


def test_other_facts_go_on_and_the_held_ones_stand_where_they_are(morning: Replay) -> None:
    """Without it one event of one table would stop every receipt, and after two days send all facts to the rebuild."""
    shop, home = morning.shop, morning.home  # 1 June, 05:00
    landed = len(shop.changes)

    shop.now = datetime(2026, 6, 1, 10)
    shop.order(2)
    shop.now = datetime(2026, 6, 1, 12, 20)
    land(home, shop.changes[landed:], reached=shop.now)
    reject(home, "products", shop.now)
    landed = len(shop.changes)
    shop.now = datetime(2026, 6, 1, 15)
    shop.order(3)
    shop.insert("shipments", 2)
    land(home, shop.changes[landed:], reached=datetime(2026, 6, 2, 5))

    assert cuts_of(operate.run(home, datetime(2026, 6, 2, 5))) == {
        domain: datetime(2026, 6, 1, 12) if domain in OF_ORDERS else datetime(2026, 6, 2) for domain in load()
    }
    served = serving(morning)
    assert {d for d, row in served.items() if row["served_from"] == "live"} == set(load()) - {"customer_activity"}
    assert served["orders"]["held"] == "held since 2026-06-01 12:20:00 by 1 event of products"
    assert served["delivery_status"]["held"] is None
    assert morning.query("SELECT SUM(orders)::INT FROM mart.orders") == [(2,)]  # the third came after the hold
    assert morning.query("SELECT SUM(shipments)::INT FROM mart.delivery_hourly") == [(2,)]
    assert all(e.is_clean for e in explain.explain(home, load().values()))

    # Longer than live is served after its last receipt: what stands still is not ahead of its receipt.
    land(home, [], reached=datetime(2026, 6, 6, 5))
    cuts = cuts_of(operate.run(home, datetime(2026, 6, 6, 5)))
    assert {cut for domain, cut in cuts.items() if domain not in OF_ORDERS} == {datetime(2026, 6, 6)}
    assert cuts["orders"] == datetime(2026, 6, 1, 12)
    assert {d for d, r in serving(morning).items() if r["served_from"] == "live"} == set(load()) - {"customer_activity"}

    quarantine.discard(home, [entry["position"] for entry in quarantine.entries(home)])
    land(home, [], reached=datetime(2026, 6, 7, 5))
    assert set(cuts_of(operate.run(home, datetime(2026, 6, 7, 5))).values()) == {datetime(2026, 6, 7)}
    assert {row["held"] for row in serving(morning).values()} == {None}
    assert morning.query("SELECT SUM(orders)::INT, SUM(revenue_cents)::INT FROM mart.orders") == recounted(morning)


def test_a_fact_that_only_shares_a_table_with_a_held_one_is_proven_as_far_as_ever(morning: Replay) -> None:
    """`source.shipments` has one cut, that of the held routes: without its own receipt the other would lose live."""
    shop, home = morning.shop, morning.home  # 1 June, 05:00
    landed = len(shop.changes)

    shop.now = datetime(2026, 6, 1, 12, 20)
    shop.insert("shipments", 2)
    land(home, shop.changes[landed:], reached=shop.now)
    reject(home, "drivers", shop.now)
    landed = len(shop.changes)
    shop.now = datetime(2026, 6, 1, 15)
    shop.insert("shipments", 3)
    land(home, shop.changes[landed:], reached=datetime(2026, 6, 5, 5))

    cuts = cuts_of(operate.run(home, datetime(2026, 6, 5, 5)))
    assert cuts["route_performance"] == datetime(2026, 6, 1, 12)
    assert {cut for domain, cut in cuts.items() if domain != "route_performance"} == {datetime(2026, 6, 5)}
    assert dict(morning.query("SELECT domain, cut FROM rebuild.cut WHERE cut < '2026-06-05'")) == dict.fromkeys(
        OF_SHIPMENTS, datetime(2026, 6, 1, 12)
    )
    assert morning.query("SELECT COUNT(*)::INT FROM source.shipments") == [(1,)]
    assert serving(morning)["delivery_status"]["served_from"] == "live"
    assert morning.query("SELECT SUM(shipments)::INT FROM mart.delivery_hourly") == [(3,)]
    assert all(e.is_clean for e in explain.explain(home, load().values()))

    quarantine.discard(home, [entry["position"] for entry in quarantine.entries(home)])
    land(home, [], reached=datetime(2026, 6, 6, 5))
    assert set(cuts_of(operate.run(home, datetime(2026, 6, 6, 5))).values()) == {datetime(2026, 6, 6)}
    assert morning.query("SELECT COUNT(*)::INT FROM source.shipments") == [(3,)]


def cuts_of(result: operate.Run) -> dict[str, datetime]:
    """The cut of each domain's last receipt, all of which must have passed."""
    assert result.failures == []
    assert {r["verdict"] for r in result.receipts} == {"passed"}
    return {r["domain"]: r["cut"] for r in result.receipts}


def serving(replay: Replay) -> dict[str, dict[str, Any]]:
    columns = ("domain", "served_from", "as_of", "held")
    rows = replay.query(f"SELECT {', '.join(columns)} FROM ops.serving")
    return {row[0]: dict(zip(columns, row, strict=True)) for row in rows}


def recounted(replay: Replay) -> list[tuple[Any, ...]]:
    """Orders and their amount, by bare DuckDB over the files of the log."""
    files = [str(path) for path in ChangeLog(replay.home).files("orders")]
    last = "SELECT after FROM read_parquet(?) QUALIFY ROW_NUMBER() OVER (PARTITION BY COALESCE(after.order_id, "
    last += "before.order_id) ORDER BY position DESC) = 1"
    return duckdb.execute(f"SELECT COUNT(after)::INT, SUM(after.amount_cents)::INT FROM ({last})", [files]).fetchall()
