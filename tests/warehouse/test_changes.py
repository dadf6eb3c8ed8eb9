"""`changes.*`, the views over the log's files, show what landed: every column, and nothing beyond the watermark.

Awkward cases: a commit time that goes back, so that `committed_at` and `logged_at` differ; a row at the watermark and
one beyond it; an event in quarantine and one that was discarded.
"""

from __future__ import annotations

from datetime import datetime, timedelta

import pyarrow as pa
import pytest

from lockstep.changelog import ChangeLog
from lockstep.schema import TABLES, TIMESTAMP
from rendered import Rendered
from shop import DEFAULTS, KEY, SOURCE, Shop, batch_of, key_of

TEN = datetime(2026, 1, 5, 10)
MINUTE = timedelta(minutes=1)


@pytest.fixture(scope="module")
def shop():
    """A row of every table, each committed a minute before the one before it, and then an update and a delete."""
    shop = Shop(TEN)
    with shop.transaction():
        shop.insert("customers", 8)
        shop.insert("customers", 9)
    for i, table in enumerate(DEFAULTS):
        shop.now = TEN - i * MINUTE
        shop.insert(table, tuple(range(1, len(KEY[table]) + 1)) if len(KEY[table]) > 1 else 1)
    shop.now = TEN + 5 * MINUTE
    shop.change(1, status="paid")
    shop.now = TEN + 3 * MINUTE
    shop.delete(1)
    return shop


@pytest.fixture(scope="module")
def home(shop, tmp_path_factory):
    home = tmp_path_factory.mktemp("home")
    with ChangeLog(home).writer(SOURCE) as writer:
        writer.land(batch_of(shop.changes))
        events = {
            "ordinal": [1, 2, 3],
            "committed_at": pa.array([TEN, TEN + 6 * MINUTE, TEN + 7 * MINUTE], TIMESTAMP),
            "table": ["orders", "*", "products"],
            "reason": ["first", "second", "third"],
            "event": ["{}", "not JSON", "[]"],
        }
        writer.land({}, pa.table(events))
        [discarded] = [e for e in ChangeLog(home).quarantined() if e["reason"] == "second"]
        writer.resolve({}, [discarded])
    return home


@pytest.fixture
def models(loaded_project, home):
    models = Rendered(loaded_project, home)
    models.table("changes.watermark", {"source_table": "orders", "position": 99})
    return models


def test_every_column_of_every_table_is_what_landed(models, shop):
    latest = datetime.min
    expected = {table: [] for table in TABLES}
    for position, change in enumerate(shop.changes, 1):
        latest = max(latest, change.committed_at)
        images = [image and key_of(change.table, image) for image in (change.before, change.after)]
        row = (position, latest, change.committed_at, change.op, *images, change.tx_id, change.lsn)
        expected[change.table].append(row)
    assert all(expected.values())
    for table, rows in expected.items():
        models.view(f"changes.{table}")
        found = [
            tuple(
                (value and key_of(table, value)) if name in ("before", "after") else value
                for name, value in row.items()
            )
            for row in models.rows(f"SELECT * FROM changes.{table} ORDER BY position")
        ]
        assert found == rows, table


def test_images_are_whole(models, shop):
    models.view("changes.orders")
    [found] = models.rows("SELECT before, after FROM changes.orders WHERE op = 'u'")
    [update] = [change for change in shop.changes if change.op == "u"]
    assert found == {"before": update.before | {"extra": None}, "after": update.after | {"extra": None}}


def test_quarantined_has_every_event_and_discarded_what_was_given_up(models, shop):
    models.view("changes.quarantined")
    models.view("changes.discarded")
    last = len(shop.changes)
    events = [
        {"position": last + 1, "logged_at": TEN + 5 * MINUTE, "source_table": "orders", "reason": "first"},
        {"position": last + 2, "logged_at": TEN + 6 * MINUTE, "source_table": "*", "reason": "second"},
        {"position": last + 3, "logged_at": TEN + 7 * MINUTE, "source_table": "products", "reason": "third"},
    ]
    found = models.rows("SELECT * FROM changes.quarantined ORDER BY position")
    assert found == [event | {"event": text} for event, text in zip(events, ("{}", "not JSON", "[]"), strict=True)]
    assert models.rows("SELECT * FROM changes.discarded") == [events[1]]


@pytest.mark.parametrize("ahead", [0, 1])
def test_nothing_beyond_the_watermark_is_seen(models, shop, ahead):
    end = len(shop.changes)
    for view, last in (("orders", end), ("quarantined", end + 3), ("discarded", end + 2)):
        rows = ({"source_table": table, "position": last - ahead} for table in ("orders", "products"))
        models.table("changes.watermark", *rows)
        models.view(f"changes.{view}")
        assert (last in models.values(f"SELECT position FROM changes.{view}")) == (not ahead), view
