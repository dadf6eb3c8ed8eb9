"""What each audit finds, row by row: what it must name, what it must let pass, and the edge in between.

`test_planted_faults` shows that a failing audit stops a run and what depends on it, with one fault for each.
"""

from __future__ import annotations

from datetime import datetime, timedelta

import pytest

from lockstep import chain as chains
from lockstep.contracts import load
from lockstep.schema import TABLES
from rendered import Rendered

CUT = datetime(2026, 1, 5, 11)
MICROSECOND = timedelta(microseconds=1)


def at(hour, minute=0):
    return datetime(2026, 1, 5, hour, minute)


@pytest.fixture
def models(loaded_project):
    return Rendered(loaded_project)


def hours(*ranges):
    """Rows of hourly.log, one per hour from 09:00 on, of (first position, last position, changes)."""
    return [
        {"log_hour": at(9 + i), "first_position": first, "last_position": last, "changes": changes}
        for i, (first, last, changes) in enumerate(ranges)
    ]


def found_hours(models, model, audit):
    return sorted(row["log_hour"].hour for row in models.audit(model, audit))


@pytest.mark.parametrize(
    ("ranges", "named"),
    [
        pytest.param([(1, 4, 4), (5, 5, 1), (6, 9, 4)], [], id="gapless"),
        pytest.param([(1, 4, 3), (5, 9, 5)], [9], id="lost-within-an-hour"),
        pytest.param([(1, 4, 5), (5, 9, 5)], [9], id="doubled-within-an-hour"),
        pytest.param([(1, 4, 4), (6, 9, 4)], [10], id="lost-between-two-hours"),
        pytest.param([(1, 4, 4), (4, 9, 6)], [10], id="in-two-hours"),
        pytest.param([(1, 4, 4), (5, 9, 5), (2, 3, 2)], [11], id="hour-behind-the-one-before"),
        pytest.param([(7, 9, 3)], [], id="older-hours-are-gone"),
    ],
)
def test_positions_gapless(models, ranges, named):
    models.table("hourly.log", *hours(*ranges))
    assert found_hours(models, "hourly.log", "positions_gapless") == named


def test_hour_is_sealed_looks_at_the_tables_of_the_domain(models):
    models.table("hourly.orders", *({"log_hour": at(hour)} for hour in (9, 10, 11)))
    models.table(
        "changes.watermark",
        {"source_table": "orders", "sealed_until": at(11)},
        {"source_table": "products", "sealed_until": at(10)},
        {"source_table": "shipments", "sealed_until": at(9)},
    )
    assert found_hours(models, "hourly.orders", "hour_is_sealed") == [10, 11]


def test_hour_is_closed_looks_at_the_clock_alone(models):
    models.table("hourly.log", *({"log_hour": at(hour)} for hour in (9, 10, 11)))
    models.table("changes.watermark", {"source_table": "orders", "sealed_until": at(9), "clock_until": at(10)})
    assert found_hours(models, "hourly.log", "hour_is_closed") == [10, 11]


LOG = {1: at(9), 2: at(9, 20), 3: at(9, 40), 4: at(10), 5: CUT - MICROSECOND, 6: CUT, 7: at(11, 30)}
FOLDED = hours((1, 3, 3), (4, 5, 2), (6, 7, 2))  # the last of them is not in the rebuild


def log(*added, without=()):
    return [item for item in LOG.items() if item[0] not in without] + list(added)


@pytest.mark.parametrize(
    ("landed", "folded", "named"),
    [
        pytest.param(log(), FOLDED, [], id="complete"),
        pytest.param(log(without=[2]), FOLDED, [9], id="lost"),
        pytest.param(log((2, at(9, 20))), FOLDED, [9], id="doubled"),
        pytest.param(log((1, at(9)), without=[2]), FOLDED, [9], id="one-lost-and-another-doubled"),
        pytest.param(log((2, at(10)), without=[2]), FOLDED, [9, 10], id="moved"),
        pytest.param(log((0, at(9)), without=[1]), FOLDED, [9], id="other-first"),
        pytest.param(log((99, at(9)), without=[3]), FOLDED, [9], id="other-last"),
        pytest.param(log(without=[1, 2, 3]), FOLDED, [9], id="hour-lost"),
        pytest.param(log(), FOLDED[1:], [9], id="hour-not-folded"),
        pytest.param(log(without=[6]), FOLDED, [], id="lost-after-the-cut"),
        pytest.param(log(without=[7]), FOLDED, [11], id="end-lost-after-the-cut"),
        pytest.param(log((8, at(12))), FOLDED, [], id="landed-since"),
    ],
)
def test_log_is_complete(models, landed, folded, named):
    """The rebuild's cut is made when positions 1 to 7 have landed."""
    models.table("changes.all_positions", *({"position": p, "logged_at": logged_at} for p, logged_at in landed))
    models.table("hourly.log", *folded)
    models.table("rebuild.cut", {"cut": CUT, "position": 7}, {"cut": at(9), "position": 7})  # one domain is held
    found = found_hours(models, "rebuild.cut", "log_is_complete")
    assert sorted(set(found)) == named


def test_log_is_complete_names_a_log_that_is_gone_altogether(models):
    models.table("changes.all_positions")
    models.table("hourly.log")
    models.table("rebuild.cut", {"cut": CUT, "position": 7})
    assert models.audit("rebuild.cut", "log_is_complete")


def image(table, **columns):
    """An image of a source table; columns that are not given are NULL."""
    return {**dict.fromkeys((*(c.name for c in TABLES[table].columns), "extra")), **columns}


def image_type(table):
    columns = (f"{c.sql} {c.kind.duckdb}" for c in TABLES[table].columns)
    return f"STRUCT({', '.join(columns)}, extra TEXT)"


def chain(models, table, *changes):
    """What breaks the chain, by position; changes are (before, after) or (before, after, op), one per minute."""
    rows = []
    for position, (before, after, *op) in enumerate(changes, 1):
        kind = op[0] if op else "c" if before is None else "d" if after is None else "u"
        rows.append({"position": position, "logged_at": at(10, position), "op": kind, "before": before, "after": after})
    kind = image_type(table)
    models.table(f"changes.{table}", *rows, before=kind, after=kind)
    models.table("rebuild.cut", *({"domain": domain, "cut": CUT} for domain in load()))
    models.table("ops.checkpoints")
    models.table(f"checkpoints.{table}")
    models.view(f"chain.{table}")
    [checked] = models.rows(f"SELECT * FROM chain.{table}")
    found = [row["finding"] for row in models.audit(f"chain.{table}", "image_chain_unbroken")]
    assert (checked["cut"], checked["changes"], checked["broken"]) == (CUT, len(rows), len(found))
    return {finding["position"]: finding["found"] for finding in found}


def order(key, cents, extra=None):
    return image("orders", order_id=key, amount_cents=cents, extra=extra)


LIVES = "is an insert of a key that lives"
NOT_LAST = "has an image before that is not the last one of its key"
UNSEEN_DELETE, UNSEEN_UPDATE = (f"is {change} of a key that does not live" for change in ("a delete", "an update"))
FILLED_IN = image(
    "orders",
    order_id=1,
    customer_id=0,
    product_id=0,
    region="",
    quantity=0,
    amount_cents=0,
    status="",
    **dict.fromkeys(("ordered_at", "updated_at"), datetime(1970, 1, 1)),
)
WHOLE = [(None, order(1, 5)), (order(1, 5), order(1, 6)), (order(1, 6), None)]


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        pytest.param(WHOLE, {}, id="whole"),
        pytest.param([(None, order(1, 5)), (None, order(2, 6)), (order(1, 5), order(1, 7))], {}, id="another-between"),
        pytest.param([(None, order(1, 5)), (order(1, 5), None), (None, order(1, 9))], {}, id="inserted-again"),
        pytest.param([(None, order(1, 5)), (order(1, 6), order(1, 7))], {2: NOT_LAST}, id="lost-between"),
        pytest.param([(order(1, 5), order(1, 6))], {1: UNSEEN_UPDATE}, id="insert-lost"),
        pytest.param([(order(1, 5), None)], {1: UNSEEN_DELETE}, id="delete-of-an-unseen-key"),
        pytest.param([(None, order(1, 5)), (None, order(1, 5))], {2: LIVES}, id="inserted-twice"),
        pytest.param([(None, order(1, None)), (order(1, 3), order(1, 7))], {2: NOT_LAST}, id="null-altered"),
        pytest.param([*WHOLE, (order(1, 5), order(1, 7))], {4: UNSEEN_UPDATE}, id="after-its-delete"),
        pytest.param([(None, order(1, 5)), (order(1, 5, "{}"), order(1, 6, "{}"))], {}, id="undeclared-column-added"),
        pytest.param([(None, order(1, 5)), (order(1, None), order(1, 6))], {2: chains.BARE}, id="key-only"),
        pytest.param([(None, order(1, 5)), (FILLED_IN, None)], {2: chains.BARE}, id="filled-in"),
        pytest.param([(None, order(1, None)), (order(1, None), None)], {}, id="a-row-that-has-only-its-key"),
        pytest.param([(None, order(1, 5), "r"), (order(1, 5), order(1, 6))], {}, id="snapshot"),
        pytest.param([*WHOLE[:2], (order(1, 6), None, "r"), (None, order(1, 7))], {}, id="resync-takes-away"),
        pytest.param([*WHOLE[:2], (None, order(1, 7), "r"), WHOLE[2]], {4: NOT_LAST}, id="broken-after-a-resync"),
        pytest.param([*WHOLE[:2], (order(1, 9), order(1, 7), "r")], {3: NOT_LAST}, id="read-again-after-a-loss"),
        pytest.param([(order(1, 5), order(1, 6)), (order(1, 7), order(1, 7), "r")], {}, id="mended-by-a-resync"),
        pytest.param(
            [(order(1, 5), order(1, 6)), (order(2, 7), order(2, 7), "r")], {1: UNSEEN_UPDATE}, id="another-key-mended"
        ),
        pytest.param(
            [
                *[(None, order(1, 5)), (order(1, 6), order(1, 7))],
                *[(None, order(1, 6), "r"), (order(1, 5), None, "r"), (order(1, 7), order(1, 7), "r")],
                *[(order(1, 7), order(1, 8)), (order(1, 9), None)],
            ],
            {7: NOT_LAST},
            id="resynced-and-broken-again",
        ),
    ],
)
def test_image_chain_unbroken(models, changes, named):
    assert chain(models, "orders", *changes) == named


def test_image_chain_unbroken_goes_by_the_whole_key(models):
    one, other = (image("route_stops", route_id=1, stop_number=stop) for stop in (1, 2))
    swapped = image("route_stops", route_id=2, stop_number=1)
    changes = [(None, one), (None, other), (None, swapped), (one, None), (swapped, None), (other, None)]
    assert chain(models, "route_stops", *changes) == {}


def test_image_chain_unbroken_ends_at_the_cut(models):
    rows = [
        {"position": 1, "logged_at": CUT - MICROSECOND, "op": "d", "before": order(1, 1)},
        {"position": 2, "logged_at": CUT, "op": "d", "before": order(2, 1)},
    ]
    models.table("changes.orders", *rows, before=image_type("orders"), after=image_type("orders"))
    readers = ("orders", "customer_activity")
    cuts = ({"domain": domain, "cut": CUT if domain in readers else at(12)} for domain in load())
    models.table("rebuild.cut", *cuts)
    models.table("ops.checkpoints")
    models.table("checkpoints.orders")
    models.view("chain.orders")
    found = [row["finding"] for row in models.audit("chain.orders", "image_chain_unbroken")]
    assert [(finding["position"], finding["key"]) for finding in found] == [(1, "1")]


def test_image_chain_unbroken_of_many_shows_the_first_hundred(models):
    kind = image_type("orders")
    rows = [{"position": n, "logged_at": at(10), "op": "d", "before": order(n, 1)} for n in range(1, 151)]
    models.table("changes.orders", *rows, before=kind, after=kind)
    models.table("rebuild.cut", *({"domain": domain, "cut": CUT} for domain in load()))
    models.table("ops.checkpoints")
    models.table("checkpoints.orders")
    models.view("chain.orders")
    assert models.rows("SELECT broken FROM chain.orders") == [{"broken": 150}]
    found = [row["finding"]["position"] for row in models.audit("chain.orders", "image_chain_unbroken")]
    assert sorted(found) == list(range(1, 101))


def test_source_is_append_only(models):
    ping = {"ping_id": 1}
    rows = [
        {"position": 1, "logged_at": at(9), "op": "c", "after": ping},
        {"position": 2, "logged_at": at(9), "op": "r", "after": ping},
        {"position": 3, "logged_at": at(9), "op": "r", "before": ping, "after": ping},
        {"position": 4, "logged_at": at(9), "op": "u", "after": ping},
        {"position": 5, "logged_at": CUT - MICROSECOND, "op": "d", "before": ping},
        {"position": 6, "logged_at": CUT, "op": "d", "before": ping},
    ]
    models.table("changes.gps_pings", *rows, before="STRUCT(ping_id BIGINT)", after="STRUCT(ping_id BIGINT)")
    models.table("rebuild.cut", {"domain": "vehicle_positions", "cut": CUT}, {"domain": "another", "cut": at(12)})
    found = models.audit("rebuild.vehicle_positions", "source_is_append_only")
    assert sorted(row["position"] for row in found) == [3, 4, 5]


def test_rebuild_equals_increments_lets_only_identical_and_tolerated_cells_pass(models):
    classes = ("identical", "tolerated", "modified", "added", "removed", "nonunique")
    models.table("reconcile.orders_cells", *({"class": kind} for kind in classes))
    found = models.audit("reconcile.orders_receipts", "rebuild_equals_increments")
    assert sorted(row["class"] for row in found) == ["added", "modified", "nonunique", "removed"]


MIDNIGHT = [datetime(2026, 1, day) for day in (4, 5, 6)]


@pytest.mark.parametrize(
    ("generations", "increments", "named"),
    [
        pytest.param({2: 7}, {}, [], id="first-generation"),
        pytest.param({1: 5, 2: 7}, {at(0): 1, at(23): 1}, [], id="whole"),
        pytest.param({0: 1, 1: 5, 2: 7}, {at(0): 1, at(23): 1}, [], id="older-generation"),
        pytest.param({1: 5, 2: 7}, {MIDNIGHT[1] - timedelta(hours=1): 9, at(12): 2, MIDNIGHT[2]: 9}, [], id="edges"),
        pytest.param({1: 5, 2: 7}, {at(12): 1}, [7], id="too-little"),
        pytest.param({1: 5, 2: 7}, {at(12): 3}, [7], id="too-much"),
        pytest.param({1: 5, 2: None}, {at(12): 1}, [0], id="cell-gone"),
        pytest.param({1: None, 2: 7}, {}, [7], id="cell-new"),
        pytest.param({1: None, 2: 7}, {at(12): 7}, [], id="cell-new-in-the-hours"),
    ],
)
def test_live_equals_rebuild_at_its_cut(models, generations, increments, named):
    """Cuts at midnight; what is verified has another cell with the same figures at every cut."""
    cell = {"ordered_hour": at(9), "product_id": 1, "region": "east", "status": "paid"}
    sums = {"units": 0, "revenue_cents": 0, "high_value_orders": 0}
    rows = [{"cut": MIDNIGHT[i], **cell, "region": "west", "orders": 1, **sums} for i in generations]
    rows += [{"cut": MIDNIGHT[i], **cell, "orders": n, **sums} for i, n in generations.items() if n is not None]
    models.table("verified.orders", *rows)
    models.table("hourly.orders", *({"log_hour": hour, **cell, "orders": n, **sums} for hour, n in increments.items()))
    found = models.audit("verified.orders", "live_equals_rebuild_at_its_cut")
    assert [row["rebuild_orders"] for row in found] == named


def test_live_equals_rebuild_at_its_cut_lets_other_models_have_other_figures(models):
    """A generation of before a plan is no base of live figures."""
    cell = {"ordered_hour": at(9), "product_id": 1, "region": "east", "status": "paid"}
    sums = {"units": 0, "revenue_cents": 0, "high_value_orders": 0}
    generations = [(MIDNIGHT[0], 3, "new"), (MIDNIGHT[1], 5, "old"), (MIDNIGHT[2], 90, "new")]
    models.table(
        "verified.orders",
        *({"cut": cut, **cell, "orders": n, **sums, "evidence_digest": digest} for cut, n, digest in generations),
    )
    models.table("hourly.orders")
    assert models.audit("verified.orders", "live_equals_rebuild_at_its_cut") == []


POSITION = {"latitude": 57.7, "longitude": 12.0, "speed_kmh": 25.0, "recorded_at": at(8), "latest_at": at(8)}


@pytest.mark.parametrize(
    ("drivers", "fault", "named"),
    [
        pytest.param(0, {}, 0, id="none"),
        pytest.param(2, {"latitude": 57.9, "recorded_at": at(9), "speed_kmh": 60.0}, 0, id="late-pings-of-a-few"),
        pytest.param(3, {"latitude": 57.9}, 3, id="late-pings-of-too-many"),
        pytest.param(2, {"longitude": 12.31}, 2, id="too-far-at-the-median"),
        pytest.param(40, {"latitude": 58.7}, 40, id="latitude-plus-1"),
        pytest.param(40, {"speed_kmh": 40.0}, 40, id="speed-times-1.6"),
        pytest.param(40, {"recorded_at": at(9)}, 40, id="no-ping-since"),
        pytest.param(40, None, 40, id="no-ping-at-all"),
    ],
)
def test_tolerances_of_positions_cover_late_pings_of_a_few_drivers_and_no_fault_in_all(models, drivers, fault, named):
    """Of 40 drivers so many are elsewhere by the increments than by the rebuild, or in them not at all."""

    def rows(changed, **columns):
        given = [POSITION | {"driver_id": n, "latest_position": n} | columns for n in range(1, 41)]
        return [r | (changed or {}) if r["driver_id"] <= drivers else r for r in given if changed is not None]

    models.table("rebuild.cut", {"domain": "vehicle_positions", "cut": MIDNIGHT[2]})
    models.table("rebuild.vehicle_positions", *rows({}))
    models.table("reconcile.vehicle_positions_added_up", *rows(fault))
    models.view("reconcile.vehicle_positions_cells")
    assert len(models.audit("reconcile.vehicle_positions_receipts", "rebuild_equals_increments")) == named

    generations = [*rows(fault, cut=MIDNIGHT[1]), *rows({}, cut=MIDNIGHT[2])]
    other = {"cut": MIDNIGHT[1], **POSITION, "driver_id": 41}, {"cut": MIDNIGHT[2], **POSITION, "driver_id": 41}
    models.table("verified.vehicle_positions", *generations, *other)
    models.table("hourly.vehicle_positions")
    assert len(models.audit("verified.vehicle_positions", "live_equals_rebuild_at_its_cut")) == named
