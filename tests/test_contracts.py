"""A mistake in a contract is found on load, by its file and line; a right one says what the models are stamped from."""

from __future__ import annotations

from pathlib import Path

import pytest

from lockstep.contracts import load
from lockstep.errors import LockstepError
from lockstep.schema import TABLES

SEEDS = Path(__file__).parents[1] / "seeds"
INVALID = Path(__file__).parent / "fixtures" / "invalid" / "contracts"

# The fixture, where its mistake is, and what the message has to name besides.
MISTAKES = {
    "unknown_merge": ("contract_measures.csv, line 3", ["merge", "'min'", "sum, batch"]),
    "measure_is_no_name": ("contract_measures.csv, line 3", ["measure", "orders per day"]),
    "measure_with_too_few_fields": ("contract_measures.csv, line 2", ["fields"]),
    "measures_without_merge": ("contract_measures.csv", ["columns merge"]),
    "measure_of_unknown_domain": ("contract_measures.csv, line ", ["parcels", "contracts.csv"]),
    "measure_twice": ("contract_measures.csv, line 3", ["'orders'", "once"]),
    "measures_missing": ("contract_measures.csv", ["missing"]),
    "unknown_mode": ("contracts.csv, line 2", ["mode", "'alive'", "batch, shadow, live"]),
    "unknown_source_table": ("contracts.csv, line 2", ["source_table", "'purchases'", "orders"]),
    "unknown_joined_table": ("contracts.csv, line 2", ["joined_tables", "suppliers"]),
    "source_key_of_another_table": ("contracts.csv, line 2", ["source_key", "'product_id'", "orders"]),
    "key_of_two_columns": ("contracts.csv, line 2", ["source_key", "'route_id'", "route_stops"]),
    "grain_empty": ("contracts.csv, line 2", ["grain", "names"]),
    "grain_is_no_name": ("contracts.csv, line 2", ["grain", "Status;"]),
    "owner_with_quote": ("contracts.csv, line 2", ["owner", "quotes"]),
    "domain_twice": ("contracts.csv, line 3", ["orders", "once"]),
    "no_measure_that_merges_by_sum": ("contracts.csv, line 2", ["orders", "sum", "contract_measures.csv"]),
    "no_measure_at_all": ("contracts.csv, line 3", ["parcels", "sum"]),
    "contract_with_too_many_fields": ("contracts.csv, line 2", ["fields"]),
    "contracts_without_grain": ("contracts.csv", ["columns grain"]),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_named_by_file_and_line(mistake):
    place, named = MISTAKES[mistake]
    with pytest.raises(LockstepError) as error:
        load(INVALID / mistake)
    message = str(error.value)
    assert place in message
    assert [text for text in named if text not in message] == []


def test_every_fixture_is_tested():
    assert {path.name for path in INVALID.iterdir()} == set(MISTAKES)


def test_the_projects_own_contracts_are_right():
    orders = load(SEEDS)["orders"]
    assert orders.grain == ("ordered_hour", "product_id", "region", "status")
    assert orders.measures("sum") == ("orders", "units", "revenue_cents", "high_value_orders")
    assert orders.measures("batch") == ("distinct_customers", "median_amount_cents", "p95_amount_cents")


@pytest.mark.parametrize("contract", load(SEEDS).values(), ids=lambda contract: contract.domain)
def test_sources_are_the_source_table_and_what_it_is_joined_with(contract):
    assert contract.sources[0] == contract.source_table
    assert set(contract.sources) <= set(TABLES)
    assert contract.source_key in TABLES[contract.source_table].key


def test_joined_tables_may_be_none(tmp_path):
    (tmp_path / "contract_measures.csv").write_text("domain,measure,merge,unit,description\no,n,sum,count,N\n")
    (tmp_path / "contracts.csv").write_text(
        "domain,owner,mode,source_table,source_key,joined_tables,grain\no,me,batch,orders,order_id,,region\n"
    )
    assert load(tmp_path)["o"].sources == ("orders",)
    assert load(tmp_path)["o"].grain == ("region",)
