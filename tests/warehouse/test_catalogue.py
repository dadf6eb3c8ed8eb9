"""`lockstep docs`: the catalogue of a company that is planned and run."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator
from html import unescape
from pathlib import Path

import duckdb
import pytest
from click.testing import CliRunner

from company import two_days
from lockstep import operate
from lockstep.catalogue.gathering import Catalogue, Model, gathered
from lockstep.catalogue.writing import page_of, written
from lockstep.cli import cli
from lockstep.lock import exclusive

__all__ = ["two_days"]  # a fixture


@pytest.fixture(scope="module")
def home(two_days: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    home = tmp_path_factory.mktemp("catalogue") / "home"
    shutil.copytree(two_days, home, symlinks=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LOCKSTEP_HOME", str(home))
        yield home


@pytest.fixture(scope="module")
def catalogue(home: Path) -> Catalogue:
    return gathered(home, lambda *_: None)


def model(catalogue: Catalogue, name: str) -> Model:
    return next(m for m in catalogue.models if m.name == name)


@pytest.mark.parametrize(
    ("column", "expected"),
    [
        ("mart.orders.revenue_cents", {"live.orders.revenue_cents", "verified.orders.revenue_cents"}),
        ("live.orders.units", {"verified.orders.units", "hourly.orders.units", "diffs.orders.units"}),
        ("hourly.orders.revenue_cents", {"diffs.orders.revenue_cents"}),
        ("diffs.orders.revenue_cents", {"signed.orders.amount_cents", "signed.orders.__weight"}),
        ("signed.orders.amount_cents", {"changes.orders.before", "changes.orders.after"}),
        ("rebuild.orders.revenue_cents", {"rebuild.latest_orders.revenue_cents"}),
        ("rebuild.latest_orders.revenue_cents", {"source.orders.amount_cents"}),
        ("source.orders.amount_cents", {"changes.orders.after", "checkpoints.orders.amount_cents"}),
        ("verified.orders.revenue_cents", {"rebuild.orders.revenue_cents"}),
        ("mart.orders.served_from", {"ops.serving.served_from"}),
        ("reconcile.orders_receipts.cells_differing", {"reconcile.orders_cells.class"}),
        ("mart.routes.service_date", {"mart.route_performance.service_date"}),
    ],
)
def test_columns_are_computed_from_what_the_models_say(catalogue: Catalogue, column: str, expected: set[str]) -> None:
    name, _, column = column.rpartition(".")
    [found] = [c for c in model(catalogue, name).columns if c.name == column]
    assert {".".join(read) for read in found.reads} == expected


def test_live_figures_begin_at_the_tables_of_their_contract(catalogue: Catalogue) -> None:
    for fact in catalogue.facts:
        origins = {origin for c in model(catalogue, f"live.{fact.name}").columns for origin in c.origins}
        tables = {name.removeprefix("changes.") for name, _ in origins if name.startswith("changes.")}
        assert tables and tables <= set(fact.contract.sources), fact.name


def test_every_model_has_a_page_and_every_link_leads_to_one(catalogue: Catalogue, tmp_path: Path) -> None:
    written(catalogue, tmp_path)
    pages = {path.name: path.read_text("utf-8") for path in tmp_path.iterdir()}
    assert pages.keys() == {"index.html", *(page_of(m.name) for m in catalogue.models)}
    assert len(pages) > 100
    for text in pages.values():
        assert {link.split("#")[0] for link in re.findall(r'href="([^"]*)"', text)} <= pages.keys()
    for m in catalogue.models:
        assert m.description and m.owner and m.columns, m.name
        assert f'href="{page_of(m.name)}"' in pages["index.html"]


def test_facts_stand_with_their_receipts_and_how_they_are_served(home: Path, catalogue: Catalogue) -> None:
    receipts = {r["domain"]: r for r in operate.last_receipts(home)}
    serving = {row["domain"]: row for row in operate.status(home)["domains"]}
    assert {fact.name: fact.receipt for fact in catalogue.facts} == receipts
    assert {f.name: f.serving["served_from"] for f in catalogue.facts} == {
        d: r["served_from"] for d, r in serving.items()
    }
    assert [fact.name for fact in model(catalogue, "mart.orders_hourly").facts] == ["orders"]
    assert {fact.name for fact in model(catalogue, "mart.routes").facts} == {"route_performance", "vehicle_positions"}
    assert [fact.name for fact in model(catalogue, "reconcile.orders_cells").facts] == ["orders"]
    assert model(catalogue, "changes.orders").facts == []


def test_the_queries_of_marts_run_as_they_stand(home: Path, catalogue: Catalogue, tmp_path: Path) -> None:
    written(catalogue, tmp_path)
    marts = [m for m in catalogue.models if m.schema == "mart"]
    with duckdb.connect(str(home / "analytics.duckdb"), read_only=True) as connection:
        for mart in marts:
            shown = re.findall(r"<pre>(.*?)</pre>", (tmp_path / page_of(mart.name)).read_text("utf-8"), re.DOTALL)
            assert len(shown) == len(mart.queries) >= 2
            for query in shown:
                connection.execute(unescape(query)).fetchall()
            assert connection.fetchall() is not None
        totals = next(q.sql for q in model(catalogue, "mart.orders").queries if q.title == "Totals by region")
        by_region = connection.execute(totals).fetchall()
        expected = connection.execute("SELECT region, SUM(orders) FROM mart.orders GROUP BY region").fetchall()
    assert {row[:2] for row in by_region} == set(expected) and len(by_region) > 1


def test_the_command_says_what_to_open(home: Path, tmp_path: Path) -> None:
    done = CliRunner().invoke(cli, ["docs", "--out", str(tmp_path / "out")], catch_exceptions=False)
    assert done.exit_code == 0
    assert f"open {tmp_path / 'out' / 'index.html'}" in done.output
    assert (tmp_path / "out" / "mart.orders.html").exists()


def test_before_a_plan_it_says_what_to_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOCKSTEP_HOME", str(tmp_path))
    done = CliRunner().invoke(cli, ["docs"])
    assert done.exit_code == 1
    assert "Build it with `lockstep run`" in str(done.exception)
    assert not (tmp_path / "docs").exists()


def test_while_a_run_goes_on_it_names_it_and_writes_nothing(home: Path, tmp_path: Path) -> None:
    with exclusive(home / "warehouse.lock", "running the models"):
        done = CliRunner().invoke(cli, ["docs", "--out", str(tmp_path / "out")])
    assert done.exit_code == 1
    assert "running the models" in str(done.exception)
    assert not (tmp_path / "out").exists()
