"""Which domains are derived, and what the files of a project that cannot be derived are told."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from lockstep import contracts
from lockstep.derived import derived_domains, rows_of
from lockstep.errors import LockstepError
from projects import project_of_two_domains

ROWS = """/* Orders. */
MODEL (name rebuild.orders, kind FULL, grain order_id);
SELECT
  order_id::BIGINT AS order_id,
  1::BIGINT AS orders, quantity::BIGINT AS units, amount_cents::BIGINT AS revenue_cents, 0::BIGINT AS high_value_orders
FROM {}
"""


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    project = project_of_two_domains(tmp_path / "project")
    monkeypatch.chdir(project)
    contracts.load.cache_clear()
    yield project
    contracts.load.cache_clear()


def diffs(project: Path, rows: str) -> str:
    (project / "models" / "rebuild" / "orders.sql").write_text(ROWS.format(rows))
    return rows_of(contracts.load()["orders"]).all().sql("duckdb")


def test_domains_of_sums_are_derived_that_have_no_file_of_their_own(project: Path) -> None:
    assert [c.domain for c in derived_domains()] == ["orders"]
    (project / "models" / "diffs" / "vehicle_positions.sql").unlink()
    assert [c.domain for c in derived_domains()] == ["orders"], "the last row that counts is no sum"
    (project / "models" / "diffs" / "orders.sql").write_text("/* By hand. */")
    assert derived_domains() == []


def test_views_are_inlined_and_views_over_seeds_joined(project: Path) -> None:
    (project / "models" / "rebuild" / "big.sql").write_text(
        "/* D. */ MODEL (name rebuild.big, grain order_id); SELECT * FROM source.orders WHERE amount_cents > 5"
    )
    query = diffs(project, "rebuild.big AS o JOIN dims.order_status_rules AS rules ON rules.spelling = o.status")
    assert "signed.orders" in query.replace('"', "") and "amount_cents > 5" in query.replace('"', "")
    assert "dims.order_status_rules" in query.replace('"', "") and "source." not in query


@pytest.mark.parametrize(
    ("rows", "line", "reason"),
    [
        ("source.orders WHERE ordered_at < @execution_ts", None, "@execution_ts. What a row counts as cannot depend"),
        ("source.orders QUALIFY ROW_NUMBER() OVER (ORDER BY order_id) = 1", 6, "QUALIFY over rows"),
        ("rebuild.cut", None, "It reads rebuild.cut. Read tables of source, seeds, and views"),
        ("rebuild.none", None, "It reads rebuild.none"),
    ],
)
def test_the_file_and_line_are_named(project: Path, rows: str, line: int | None, reason: str) -> None:
    with pytest.raises(LockstepError) as raised:
        diffs(project, rows)
    place = f"line {line}: " if line else ""
    assert str(raised.value).startswith(f"models/rebuild/orders.sql: {place}{reason}")
    assert str(raised.value).endswith("Or write models/diffs/orders.sql by hand.")


def test_every_table_that_changes_a_fact_stands_in_its_contract(project: Path) -> None:
    """Without it the fact would go on while such a table is held, and its live figures miss what changes in it."""
    rows = "source.orders AS o JOIN source.customers AS c ON c.customer_id = o.customer_id"
    with pytest.raises(LockstepError, match=r"Add customers to joined_tables of orders in seeds/contracts\.csv"):
        diffs(project, rows)


def test_the_file_of_a_view_is_named(project: Path) -> None:
    """Without it the line would be looked for in the file of the fact."""
    (project / "models" / "rebuild" / "some.sql").write_text(
        "/* Orders. */\nMODEL (name rebuild.some, grain order_id);\nSELECT *\nFROM source.orders\nLIMIT 5\n"
    )
    with pytest.raises(LockstepError, match=r"^models/rebuild/some.sql: (line 5: )?LIMIT over rows"):
        diffs(project, "rebuild.some")
