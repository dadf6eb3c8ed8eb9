"""Which domains are derived, and what the files of a project that cannot be derived are told."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from lockstep import contracts
from lockstep.contracts import Contract
from lockstep.derived import derived_domains, finish_of, is_derived, rows_of
from lockstep.errors import LockstepError
from lockstep.loader import import_macros
from projects import in_full, project_of_two_domains

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
    in_full(project)  # so that contracts can be read whatever these tests make of the queries
    monkeypatch.chdir(project)
    contracts.load.cache_clear()
    yield project
    contracts.load.cache_clear()


def diffs(project: Path, rows: str) -> str:
    (project / "models" / "rebuild" / "orders.sql").write_text(ROWS.format(rows))
    return rows_of(contracts.load()["orders"]).all().sql("duckdb")


def test_domains_of_sums_and_of_last_rows_are_derived_that_have_no_file_of_their_own(project: Path) -> None:
    assert [c.domain for c in derived_domains()] == ["vehicle_positions", "orders"]
    (project / "models" / "diffs" / "orders.sql").write_text("/* By hand. */")
    assert [c.domain for c in derived_domains()] == ["vehicle_positions"]


def test_a_condition_of_the_live_path_that_a_file_by_hand_would_not_know_is_refused(project: Path) -> None:
    (project / "models" / "diffs" / "vehicle_positions.sql").write_text("/* By hand. */")
    with pytest.raises(LockstepError, match="written by hand, and knows nothing of the live_where"):
        derived_domains()


POSITIONS = """/* Positions. */
MODEL (name rebuild.vehicle_positions, kind FULL, grain driver_id);
SELECT
  driver_id::BIGINT AS driver_id, {at} AS latest_at, {position} AS latest_position, latitude, longitude, speed_kmh,
  recorded_at
FROM {source} AS pings
QUALIFY ROW_NUMBER() OVER (PARTITION BY {key} ORDER BY {order}) = {number}
"""
WRITTEN = {
    "at": "LEAST(recorded_at, _committed_at)::TIMESTAMP",
    "position": "_position::BIGINT",
    "source": "source.gps_pings",
    "key": "driver_id",
    "order": "latest_at DESC, latest_position DESC",
    "number": "1",
}


def last(project: Path, **parts: str) -> str:
    import_macros()
    path = project / "models" / "rebuild" / "vehicle_positions.sql"
    path.write_text(POSITIONS.format(**{**WRITTEN, **parts}))
    return rows_of(contracts.load()["vehicle_positions"]).all().sql("duckdb")


def test_the_last_row_of_a_group_is_derived_with_the_condition_of_the_live_path(project: Path) -> None:
    found = last(project)
    assert 'FROM changes."gps_pings"' in found and "ROW_NUMBER" not in found
    assert "\"_op\" = 'r'" in found and "INTERVAL '3' MINUTE" in found
    assert last(project, order="LEAST(recorded_at, _committed_at) DESC, _position DESC") == found


@pytest.mark.parametrize(
    ("parts", "said"),
    [
        ({"key": "ping_id"}, "Another choice of rows"),
        ({"key": "driver_id, ping_id"}, "Another choice of rows"),
        ({"order": "latest_at, latest_position DESC"}, "Another choice of rows"),
        ({"order": "latest_at DESC"}, "Another choice of rows"),
        ({"order": "latest_at DESC NULLS FIRST, latest_position DESC"}, "Another choice of rows"),
        ({"order": "recorded_at DESC, latest_position DESC"}, "Another choice of rows"),  # not by what is merged by
        ({"number": "2"}, "Another choice of rows"),
        ({"position": "ping_id::BIGINT"}, "latest_position is not the row's _position"),
        ({"position": "-_position"}, "latest_position is not the row's _position"),
        ({"at": "NULLIF(recorded_at, _committed_at)"}, "latest_at may be NULL"),
        ({"at": "extra::TIMESTAMP"}, "latest_at is cast from VARCHAR"),
        ({"source": "(SELECT o.*, _position, _committed_at FROM source.orders AS o)"}, "_position"),
    ],
)
def test_what_is_not_the_last_row_of_a_group_is_refused(project: Path, parts: dict[str, str], said: str) -> None:
    with pytest.raises(LockstepError, match=f"models/rebuild/vehicle_positions.sql: .*{said}"):
        last(project, **parts)


def test_extremes_of_a_table_that_only_grows_are_derived_beside_sums(project: Path) -> None:
    import_macros()
    (project / "models" / "rebuild" / "vehicle_positions.sql").write_text(
        "/* Speeds. */ MODEL (name rebuild.vehicle_positions, kind FULL, grain driver_id); SELECT driver_id, "
        "COUNT(*) AS pings, MAX(speed_kmh)::DOUBLE AS top_kmh FROM source.gps_pings WHERE speed_kmh < 200 GROUP BY 1"
    )
    pings = contracts.Measure("pings", "sum", "count", 0, 0, "")
    top = contracts.Measure("top_kmh", "max", "km/h", 0, 0, "")
    contract = replace(contracts.load()["vehicle_positions"], all_measures=(pings, top), live_where="")
    assert is_derived(contract)
    assert rows_of(contract).columns == {"driver_id": None, "pings": "BIGINT", "top_kmh": "DOUBLE"}
    with pytest.raises(LockstepError, match="is not MIN"):
        rows_of(replace(contract, all_measures=(pings, replace(top, merge="min"))))


FINISHED = """/* Orders. */
MODEL (name rebuild.orders, kind FULL, grain region);
SELECT region::TEXT AS region, {} FROM rebuild.by_day AS d GROUP BY 1
"""


def finished(project: Path, figures: str) -> Contract:
    (project / "models" / "rebuild" / "by_day.sql").write_text(
        "/* D. */ MODEL (name rebuild.by_day, grain (region, day)); SELECT region, ordered_at::DATE AS day, "
        "SUM(amount_cents) AS cents FROM source.orders GROUP BY ALL"
    )
    (project / "models" / "rebuild" / "orders.sql").write_text(FINISHED.format(figures))
    measure = contracts.Measure("most", "finish", "count", 0, 0, "")
    return replace(contracts.load()["orders"], grain=("region",), all_measures=(measure,))


def test_a_finish_may_read_views_that_group(project: Path) -> None:
    contract = finished(project, "MAX(cents)::BIGINT AS most")
    finish = finish_of(contract)
    assert "MAX(" in finish.query and list(finish.sets) == ["__cells1"]
    assert (len(finish.cells.grain), [m.type for m in finish.cells.merged]) == (
        3,
        ["BIGINT", "DECIMAL(38, 0)", "BIGINT"],
    )
    assert rows_of(contract).tables == ["orders"]


def test_what_a_finish_reads_of_static_tables_alone_is_read_as_it_is(project: Path) -> None:
    contract = finished(project, "COUNT(*) * (SELECT COUNT(status) FROM seeds.order_status_rules)::BIGINT AS most")
    finish = finish_of(contract)
    assert sorted("seeds" in query for query in finish.sets.values()) == [False, True]
    assert rows_of(contract).tables == ["orders"]


def test_what_a_finish_cannot_be_is_refused_with_its_line(project: Path) -> None:
    with pytest.raises(LockstepError, match=r"models/rebuild/orders.sql: line 3: .*ANY_VALUE") as error:
        finish_of(finished(project, "ANY_VALUE(cents)::BIGINT AS most"))
    assert "by hand" not in str(error.value)


def test_a_finish_beside_increments_by_hand_is_refused(project: Path) -> None:
    path = project / "seeds" / "contract_measures.csv"
    others = [line for line in path.read_text().splitlines() if not line.startswith("orders,")]
    path.write_text("\n".join([*others, "orders,most,finish,count,0,0,,,Most"]) + "\n")
    contracts.load.cache_clear()
    (project / "models" / "diffs" / "orders.sql").write_text("/* By hand. */")
    with pytest.raises(LockstepError, match="Remove the file, so that all of orders is derived"):
        derived_domains()
    (project / "models" / "diffs" / "orders.sql").unlink()
    assert [c.domain for c in derived_domains()] == ["vehicle_positions", "orders"]


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
