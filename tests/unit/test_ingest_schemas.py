"""Two tables of one name in two schemas are never mixed: what is of another schema than the source table's stays out.

Awkward cases: the schema declared or not; the other's events first, alone or in a later delivery; a TRUNCATE of the
other; the same event again; a retry; a declaration that contradicts what has landed.
"""

from __future__ import annotations

import pytest

from debezium_events import deliver, event, live, order
from lockstep import quarantine
from lockstep.changelog import ChangeLog
from lockstep.errors import LockstepError
from lockstep.schema import TABLES, declared

ORDERS = """
(order_id bigint PRIMARY KEY, customer_id bigint, product_id bigint, region text, quantity int, amount_cents bigint,
 status text, ordered_at timestamptz, updated_at timestamptz);
"""


@pytest.fixture
def home(tmp_path):
    return tmp_path / "home"


def reasons(home):
    return [e["reason"] for e in ChangeLog(home).quarantined()]


def other(op="c", n=2, **columns):
    return event(op, None, None if op == "t" else order(**columns), n=n, tx=n, schema="archive")


def test_the_first_schema_seen_is_the_tables(home):
    summary = deliver(home, event("c", None, order()), other(order_id=1, amount_cents=5), other("t", n=3))
    assert (summary.landed, summary.quarantined) == ({"orders": 1}, 2)
    assert live(home)[(1,)]["amount_cents"] == 1999
    reason = reasons(home)[0]
    assert "it is a change of archive.orders, but orders in this change log is public.orders" in reason
    assert "CREATE TABLE public.orders" in reason


def test_the_schema_is_kept_with_the_log(home):
    deliver(home, event("c", None, order()))
    assert ChangeLog(home).watermark().resume["schemas"] == {"orders": "public"}
    assert deliver(home, other()).quarantined == 1
    again = deliver(home, other())
    assert (again.quarantined, again.known) == (0, 1)
    assert deliver(home, event("c", None, order(2), n=9)).landed == {"orders": 1}
    assert quarantine.retry(home, [2]).failed[2] == reasons(home)[0]


def test_events_that_name_no_schema_are_the_tables(home):
    assert deliver(home, event("c", None, order()), event("c", None, order(2), n=2, schema=None)).quarantined == 0


def test_a_declared_schema_passes_over_others(home, tmp_path, monkeypatch):
    (tmp_path / "s.sql").write_text(f"CREATE TABLE public.orders {ORDERS}")
    monkeypatch.setattr(TABLES, "_found", declared(tmp_path / "s.sql"))
    summary = deliver(home, other(n=1), other("t"), event("c", None, order(), n=3), other("t", n=4))
    assert (summary.landed, summary.quarantined, summary.ignored) == ({"orders": 1}, 0, {"archive.orders": 3})


def test_a_declaration_that_contradicts_the_log_is_refused(home, tmp_path, monkeypatch):
    deliver(home, other())
    (tmp_path / "s.sql").write_text(f"CREATE TABLE public.orders {ORDERS}")
    monkeypatch.setattr(TABLES, "_found", declared(tmp_path / "s.sql"))
    with pytest.raises(LockstepError, match=r"holds orders of the schema archive, .*declares it in public"):
        deliver(home, event("c", None, order(), n=3))


def test_a_table_declared_in_two_schemas_is_refused(tmp_path):
    path = tmp_path / "s.sql"
    path.write_text(f"CREATE TABLE public.orders {ORDERS} CREATE TABLE archive.orders {ORDERS}")
    with pytest.raises(LockstepError, match="would both be named orders in the log"):
        declared(path)


def test_a_schema_with_a_nul_in_its_name_is_another_one(home):
    summary = deliver(
        home,
        event("c", None, order(1), n=1),
        event("c", None, order(2), n=2, schema="pub\0lic"),
        event("c", None, order(3), n=3),
    )
    assert (summary.landed, summary.quarantined) == ({"orders": 2}, 1)
