"""A mistake in a contract is found on load, by its file and line; a right one says what the models are stamped from."""

from __future__ import annotations

import csv
import shutil
from pathlib import Path

import pytest

from lockstep import contracts
from lockstep.contracts import as_rows, load, skips
from lockstep.errors import LockstepError
from lockstep.schema import TABLES

SEEDS = Path(__file__).parents[2] / "seeds"
IN_FULL = Path(__file__).parents[1] / "fixtures" / "contracts_in_full"  # the same, as they are if nothing is derived
INVALID = Path(__file__).parents[1] / "fixtures" / "invalid" / "contracts"

# The fixture, where its mistake is, and what the message has to name besides.
MEASURES = {
    "measure_is_no_name": ("line 3", ["measure", "'orders per day'", "lower-case"]),
    "measure_with_a_reserved_name": ("line 3", ["measure", "'log_hour'", "none of"]),
    "unknown_merge": ("line 3", ["merge", "'mean'", "sum, finish, latest, max, min, recomputed, batch"]),
    "unknown_unit": ("line 3", ["unit", "'stones'", "count, cents"]),
    "sum_of_a_fraction": ("line 3", ["unit", "'ratio'", "sums are exact"]),
    "maximum_of_a_text": ("line 3", ["unit", "'text'", "an order"]),
    "tolerance_of_a_sum": ("line 2", ["tolerance_absolute", "'1'", "merges by sum"]),
    "relative_tolerance_of_a_batch_measure": ("line 3", ["tolerance_relative", "'0.01'", "merges by batch"]),
    "tolerance_of_a_text": ("line 3", ["tolerance_absolute", "'1'", "unit is text"]),
    "relative_tolerance_of_a_timestamp": ("line 3", ["tolerance_relative", "'0.01'", "timestamp"]),
    "tolerance_is_no_number": ("line 3", ["tolerance_absolute", "'some'", "a number that is not negative"]),
    "tolerance_below_zero": ("line 3", ["tolerance_absolute", "'-1'", "a number that is not negative"]),
    "tolerance_without_end": ("line 3", ["tolerance_relative", "'inf'", "a number that is not negative"]),
    "share_of_more_than_all_cells": ("line 3", ["tolerance_cells", "'5'", "from 0 to 1"]),
    "median_where_none_may_differ": ("line 3", ["tolerance_median", "'5'", "no cell may differ"]),
    "measure_twice": ("line 3", ["measure", "'orders'", "once"]),
    "measure_with_too_few_fields": ("line 2", ["fields"]),
    "measures_without_merge": ("line 2", ["merge", "''", "one of sum"]),
    "measures_with_an_unknown_column": ("", ["the columns 'tolerance', which mean nothing"]),
    "measures_missing": ("", ["missing", "restore"]),
    "measure_of_unknown_domain": ("line 4", ["domain", "'parcels'", "contracts.csv"]),
}
CONTRACTS = {
    "condition_of_a_recomputed_domain": ("line 2", ["live_where", "'quantity > 0'", "measures are recomputed"]),
    "condition_beside_a_finish": ("line 2", ["live_where", "'quantity > 0'", "merge by finish"]),
    "condition_without_a_tolerance": ("line 2", ["live_where", "'quantity > 0'", "has no tolerance"]),
    "contracts_missing": ("", ["missing", "restore"]),
    "contracts_without_owner": ("", ["lacks the columns owner"]),
    "contracts_with_an_unknown_column": ("", ["the columns 'live_if', which mean nothing", "live_where"]),
    "contract_with_too_many_fields": ("line 2", ["fields"]),
    "domain_is_no_name": ("line 2", ["domain", "'Orders'", "lower-case"]),
    "domain_twice": ("line 3", ["domain", "'orders'", "once"]),
    "owner_missing": ("line 2", ["owner", "''", "a name"]),
    "owner_with_quote": ("line 2", ["owner", "o'brien", "quotes"]),
    "unknown_mode": ("line 2", ["mode", "'alive'", "batch, shadow, live"]),
    "unknown_rule_for_bad_events": ("line 2", ["on_bad_event", "'ignore'", "hold, skip"]),
    "unknown_source_table": ("line 2", ["source_table", "'purchases'", "orders"]),
    "two_source_tables": ("line 2", ["source_table", "'orders products'", "one of"]),
    "unknown_joined_table": ("line 2", ["joined_tables", "suppliers", "orders"]),
    "source_key_of_another_table": ("line 2", ["source_key", "'product_id'", "the key of orders: order_id"]),
    "half_a_composite_key": ("line 2", ["source_key", "'route_id'", "route_id stop_number"]),
    "grain_is_no_name": ("line 2", ["grain", "Status;"]),
    "grain_column_twice": ("line 2", ["grain", "'region region'", "once"]),
    "grain_column_named_as_a_measure": ("line 2", ["grain", "'region orders'", "no measure"]),
    "grain_column_with_a_reserved_name": ("line 2", ["grain", "'region cut'", "none of"]),
    "no_measure_that_merges": ("line 2", ["domain", "'orders'", "contract_measures.csv that is not batch"]),
    "no_measure_at_all": ("line 3", ["domain", "'parcels'", "contract_measures.csv"]),
    "finish_beside_a_maximum": ("line 2", ["domain", "'orders'", "measures by sum or finish"]),
    "recomputed_beside_a_maximum": ("line 2", ["domain", "'orders'", "all measures recomputed"]),
    "horizon_of_no_minutes": ("line 2", ["horizon_minutes", "'0'", "from 1 on"]),
    "freshness_in_fractions": ("line 2", ["freshness_seconds", "'1.5'", "whole number"]),
    "shadow_of_no_days": ("line 2", ["shadow_days", "'0'", "from 1 on"]),
    "return_without_a_pass": ("line 2", ["passes_to_return", "'0'", "from 1 on"]),
    "receipts_older_than_a_day_not_allowed": ("line 2", ["receipt_hours", "'24'", "from 25 on"]),
    "reads_an_unknown_domain": ("line 2", ["reads_domains", "'parcels'", "other domains"]),
    "reads_itself": ("line 2", ["reads_domains", "'orders'", "other domains"]),
}


@pytest.mark.parametrize("mistake", [*MEASURES, *CONTRACTS])
def test_a_mistake_is_named_by_file_and_line(mistake):
    file = "contract_measures.csv" if mistake in MEASURES else "contracts.csv"
    line, named = (MEASURES | CONTRACTS)[mistake]
    with pytest.raises(LockstepError) as error:
        load(INVALID / mistake)
    message = str(error.value)
    assert f"{INVALID / mistake / file}{', ' if line else ' '}{line}" in message
    assert [text for text in named if text not in message] == []


def test_every_fixture_is_tested():
    assert {path.name for path in INVALID.iterdir()} == {*MEASURES, *CONTRACTS}


def test_the_projects_own_contracts_are_right():
    orders = load(SEEDS)["orders"]
    assert orders.grain == ("ordered_hour", "product_id", "region", "status")
    assert orders.measures("sum") == ("orders", "units", "revenue_cents", "high_value_orders")
    assert orders.measures("batch") == ("distinct_customers", "median_amount_cents", "p95_amount_cents")
    assert tuple(m.name for m in orders.merged) == orders.state == orders.measures("sum")


def test_latest_measures_carry_what_they_are_merged_by():
    positions = load(SEEDS)["vehicle_positions"]
    measures = ("latitude", "longitude", "speed_kmh", "recorded_at")
    assert positions.measures("latest") == measures
    assert positions.state == ("latest_at", "latest_position", *measures)
    assert {m.name: m.type for m in positions.merged}["recorded_at"] == "TIMESTAMP"


def test_a_domain_names_its_composite_key_and_what_it_reads():
    routes = load(SEEDS)["route_performance"]
    assert routes.source_key == ("route_id", "stop_number")
    assert routes.sources == ("route_stops", "routes", "shipments", "drivers")
    assert routes.reads == ("vehicle_positions",)
    assert load(SEEDS)["orders"].reads == ()


def test_what_is_derived_is_what_was_written_before():
    """The two files as they were before anything was derived, with the descriptions of the columns, say the same."""
    derived, written = load(SEEDS), load(IN_FULL)
    assert list(derived) == list(written)
    for domain, contract in written.items():
        assert as_rows(derived[domain]) == as_rows(contract)


@pytest.fixture
def contract(tmp_path):
    """Loads the contract of orders, alone in the world, with some columns changed."""
    [row] = [row for row in csv.DictReader((IN_FULL / "contracts.csv").open()) if row["domain"] == "orders"]
    lines = (IN_FULL / "contract_measures.csv").read_text().splitlines(keepends=True)
    (tmp_path / "contract_measures.csv").write_text("".join(x for x in lines if x.startswith(("domain,", "orders,"))))

    def write(**columns):
        changed = {**row, **columns}
        (tmp_path / "contracts.csv").write_text(",".join(changed) + "\n" + ",".join(changed.values()) + "\n")
        return load.__wrapped__(tmp_path)["orders"]

    return write


def test_joined_tables_may_be_none(contract):
    assert contract(joined_tables="").sources == ("orders",)


def test_the_least_that_a_contract_may_ask_for(contract):
    least = contract(
        horizon_minutes="1", freshness_seconds="1", shadow_days="1", passes_to_return="1", receipt_hours="25"
    )
    assert (least.horizon_minutes, least.freshness_seconds, least.shadow_days) == (1, 1, 1)
    assert (least.passes_to_return, least.receipt_hours) == (1, 25)


def test_the_contracts_decide_whose_bad_events_are_passed_over():
    assert skips("gps_pings")
    assert {table for table in TABLES if skips(table)} == {"gps_pings"}


@pytest.mark.parametrize(
    ("on_bad_event", "joined_tables", "passed_over"),
    [
        ("skip", "products", {"orders", "products"}),  # what no domain needs holds
        ("skip", "", {"orders"}),
        ("hold", "products", set()),
    ],
)
def test_a_table_is_passed_over_where_a_domain_that_needs_it_says_so(
    contract, monkeypatch, on_bad_event, joined_tables, passed_over
):
    only = contract(on_bad_event=on_bad_event, joined_tables=joined_tables)
    monkeypatch.setattr(contracts, "load", lambda: {"orders": only})
    assert {table for table in (*TABLES, "*") if skips(table)} == passed_over


def test_one_domain_that_holds_a_table_is_enough(contract, monkeypatch):
    pair = {"one": contract(on_bad_event="skip"), "other": contract(on_bad_event="hold", joined_tables="")}
    monkeypatch.setattr(contracts, "load", lambda: pair)
    assert {table for table in TABLES if skips(table)} == {"products"}


def test_what_cannot_be_read_holds(monkeypatch, tmp_path):
    """Landing goes on outside of a project, and over a mistake in a contract."""
    load.cache_clear()
    monkeypatch.chdir(tmp_path)
    assert not skips("gps_pings")


def test_a_double_that_is_computed_when_read_is_compared_but_for_its_last_bits(tmp_path):
    shutil.copytree(INVALID / "unknown_merge", tmp_path, dirs_exist_ok=True)
    path = tmp_path / "contract_measures.csv"
    path.write_text(path.read_text().replace("mean,cents", "finish,ratio"))
    assert [(m.merge, m.tolerance_relative) for m in load(tmp_path)["orders"].all_measures] == [
        ("finish", 0),
        ("finish", 1e-13),
    ]
