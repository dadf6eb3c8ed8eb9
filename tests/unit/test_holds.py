"""Where a quarantined event holds its table: at the first position of its transaction, in every format of the log."""

from __future__ import annotations

import json
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from debezium_events import deliver, event, order
from lockstep.changelog import ChangeLog, Hold
from shop import SOURCE, Shop, batch_of

NOON = datetime(2026, 11, 18, 12)
MINUTE = timedelta(minutes=1)


def rejected(*events: tuple[int, str, int | None], at: datetime = NOON) -> pa.Table:
    """Events that broke the landing contract: ordinal, table, transaction."""
    return pa.table(
        {
            "ordinal": pa.array([ordinal for ordinal, _, _ in events], pa.int64()),
            "committed_at": pa.array([at] * len(events), pa.timestamp("us")),
            "table": [table for _, table, _ in events],
            "reason": ["no key"] * len(events),
            "event": ['{"op": "?"}'] * len(events),
            "tx_id": pa.array([tx_id for _, _, tx_id in events], pa.int64()),
        }
    )


def spaced(shop: Shop) -> dict[str, pa.Table]:
    """The shop's changes as a batch with room for another event after each."""
    return {
        name: rows.set_column(0, "ordinal", pa.array([10 * n for n in rows["ordinal"].to_pylist()], pa.int64()))
        for name, rows in batch_of(shop.changes).items()
    }


def three_transactions(op: str = "c") -> Shop:
    """One order, then two in one transaction, then one: transactions 1, 2 and 3, positions 1, 2, 3 and 4."""
    shop = Shop(NOON)
    shop.order(1, op=op)
    shop.now += MINUTE
    with shop.transaction():
        shop.order(2, op=op)
        shop.order(3, op=op)
    shop.now += MINUTE
    shop.order(4, op=op)
    return shop


def land(home: Path, shop: Shop, *events: tuple[int, str, int | None], **options: Any) -> ChangeLog:
    log = ChangeLog(home)
    with log.writer(SOURCE) as writer:
        writer.land(spaced(shop), rejected(*events, at=NOON + MINUTE), **options)
    return log


@pytest.mark.parametrize(
    ("ordinal", "tx_id", "held_at"),
    [
        (15, 2, 2),  # in the middle of the second transaction
        (25, 2, 2),  # at its end
        (15, None, 2),  # nobody says, but it stands within the second
        (25, None, 4),  # between two
        (5, 77, 2),  # all there is of its transaction
        (35, None, 5),  # last of all
    ],
)
def test_a_hold_begins_with_the_transaction(tmp_path: Path, ordinal: int, tx_id: int | None, held_at: int) -> None:
    log = land(tmp_path, three_transactions(), (ordinal, "products", tx_id))
    hold = log.watermark().holds["products"]
    assert (hold.position, hold.events) == (held_at, 1)
    assert log.watermark().sealed_until(["products"]) == NOON


def test_what_a_snapshot_read_is_no_transaction(tmp_path: Path) -> None:
    log = land(tmp_path, three_transactions("r"), (15, "orders", None))
    assert log.watermark().holds["orders"].position == 3


def test_a_transaction_over_two_parts_of_a_batch(tmp_path: Path) -> None:
    shop = Shop(NOON)
    with shop.transaction():
        for n in range(4):
            shop.order(n)
    log = ChangeLog(tmp_path)
    with log.writer(SOURCE) as writer, writer.batch() as batch:
        batch.add(batch_of(shop.changes[:2]))
        batch.add(batch_of(shop.changes[2:3]))
        batch.add({}, rejected((0, "products", 1)))
        batch.land()
    assert log.watermark().holds == {"products": Hold(1, NOON, 1)}


def test_holds_of_a_table_count_its_events_and_lift_one_by_one(tmp_path: Path) -> None:
    log = land(tmp_path, three_transactions(), (15, "products", 2), (35, "products", 3), (36, "*", None))
    assert log.watermark().holds == {
        "products": Hold(2, NOON + MINUTE, 2),
        "*": Hold(7, NOON + 2 * MINUTE, 1),
    }
    with log.writer(SOURCE) as writer:
        writer.resolve({}, [e for e in log.quarantined() if e["position"] == 3])
    assert log.watermark().holds["products"] == Hold(5, NOON + 2 * MINUTE, 1)


def test_ingest_tells_the_transaction(tmp_path: Path) -> None:
    deliver(
        tmp_path,
        event("c", None, order(1), n=1, tx=1),
        event("c", None, order(2), n=2, tx=2),
        event("c", None, order(3, amount_cents="1.5"), n=3, tx=2),
        event("c", None, order(4), n=4, tx=3),
    )
    assert ChangeLog(tmp_path).watermark().holds["orders"].position == 2


def as_format_2(log: ChangeLog) -> None:
    """Rewrite watermark and quarantine as the version before wrote them."""
    path = log.root / "watermark.json"
    raw = json.loads(path.read_text())
    hours = {t: h["logged_at"][:13] + ":00:00.000000" for t, h in raw["holds"].items()}
    kept = {name: value for name, value in raw.items() if name not in ("checksum", "sequence", "ahead")}
    path.write_text(json.dumps({**kept, "format": 2, "holds": hours}))
    (log.root / "journal.jsonl").unlink()
    for file in log.quarantine.glob("*.jsonl"):
        entries = [json.loads(line) for line in file.read_text().splitlines()]
        file.write_text("".join(json.dumps({k: v for k, v in e.items() if k != "hold"}) + "\n" for e in entries))


def test_a_hold_of_format_2_is_upgraded_from_the_quarantine(tmp_path: Path) -> None:
    """Its entries do not tell the transaction: the first change with the event's logged_at is not after it."""
    log = land(tmp_path, three_transactions(), (15, "products", 2))
    as_format_2(log)
    upgraded = {"products": Hold(2, NOON + MINUTE, 1)}
    assert log.watermark().holds == upgraded
    log.require_changes()  # as before every plan and run: models read the file
    raw = json.loads((log.root / "watermark.json").read_text())
    assert (raw["format"], raw["holds"]["products"]["position"]) == (3, 2)
    assert [landing["holds"]["products"]["position"] for landing in raw["recent"]] == [2]
    assert log.watermark().holds == upgraded
