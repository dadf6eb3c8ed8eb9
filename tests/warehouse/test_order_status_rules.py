"""What each spelling of a status means, as the company says it and not as seeds/order_status_rules.csv does.

Awkward cases: any case, outer spaces, inner spaces, a meaning that changed at a midnight, an order placed just before
and exactly at it, long before any rule was written, in the last year that there is, a spelling that nobody knows.
"""

from __future__ import annotations

import pytest

from rendered import Rendered

EVER = ("0001-01-01 00:00:00", "2024-02-29 12:00:00", "2026-05-31 23:59:59.999999", "2026-06-01 00:00:00", "9999-12-30")
MEANINGS = {
    "new": "created",
    "created": "created",
    "paid": "paid",
    "shipped": "shipped",
    "out_for_delivery": "shipped",
    "delivered": "completed",
    "complete": "completed",
    "completed": "completed",
    "cancel": "cancelled",
    "canceled": "cancelled",
    "cancelled": "cancelled",
    "failed": "failed",
    "returned": "returned",
    "refunded": "returned",
}
EXPECTED = {(spelling, at): status for spelling, status in MEANINGS.items() for at in EVER}
# Until the end of May 2026 the shop said `done` of an order that had left it; from June on of one that has arrived.
EXPECTED |= {("done", at): "shipped" for at in EVER[:3]} | {("done", at): "completed" for at in EVER[3:]}
EXPECTED |= {
    (" Done", EVER[2]): "shipped",
    ("DONE  ", EVER[3]): "completed",
    (" PaID ", EVER[1]): "paid",
    ("Out_For_Delivery", EVER[1]): "shipped",
    ("out for delivery", EVER[1]): "unknown",
    ("do ne", EVER[1]): "unknown",
    ("lost?", EVER[1]): "unknown",
    ("", EVER[1]): "unknown",
}


@pytest.fixture(scope="module")
def models(loaded_project):
    models = Rendered(loaded_project)
    models.seed("seeds.order_status_rules")
    models.view("dims.order_status_rules")
    return models


def test_every_spelling_means_what_the_company_says_at_the_time_of_the_order(models):
    keys = list(EXPECTED)
    rest = {"customer_id": 1, "product_id": 1, "region": "", "quantity": 1, "amount_cents": 1}
    orders = [{"order_id": i, "status": status, "ordered_at": at, **rest} for i, (status, at) in enumerate(keys)]
    models.table("source.orders", *orders)
    models.view("rebuild.latest_orders")
    found = models.rows("SELECT order_id, status FROM rebuild.latest_orders")
    assert {keys[row["order_id"]]: row["status"] for row in found} == EXPECTED
    assert len(found) == len(EXPECTED)


def test_no_other_spelling_is_known(models):
    assert set(models.values("SELECT DISTINCT spelling FROM dims.order_status_rules")) == {*MEANINGS, "done"}
