"""ops.contracts and ops.contract_measures have what the files say and what is read from queries, and see its changes.

Awkward cases: a table that only a view names which the query reads; a description alone; a measure more.
"""

from __future__ import annotations

from pathlib import Path

import duckdb
import pytest
from sqlmesh import Context

from lockstep import contracts
from lockstep.contracts import as_rows, load
from lockstep.schema import TABLES, declared
from projects import READ, project_of_two_domains

ROOT = Path(__file__).parents[2]


def rows(context: Context, model: str) -> list[dict[str, object]]:
    with duckdb.connect() as connection:
        found = connection.execute(context.render(model).sql("duckdb"))
        columns = [column[0] for column in found.description or ()]
        return [dict(zip(columns, row, strict=True)) for row in found.fetchall()]


def test_the_models_have_what_is_loaded(loaded_project: Context) -> None:
    expected = [as_rows(contract) for contract in load().values()]

    def as_text(found: list[dict[str, object]]) -> list[dict[str, str | None]]:
        return [
            {n: None if v is None else f"{v:g}" if isinstance(v, float) else str(v) for n, v in r.items()}
            for r in found
        ]

    assert as_text(rows(loaded_project, "ops.contracts")) == [row for row, _ in expected]
    numbers = {"tolerance_absolute", "tolerance_relative", "tolerance_median", "tolerance_cells"}
    assert as_text(rows(loaded_project, "ops.contract_measures")) == [
        {n: f"{float(v):g}" if v is not None and n in numbers else v for n, v in m.items()}
        for _, ms in expected
        for m in ms
    ]


def test_what_a_query_says_anew_reaches_every_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    project = project_of_two_domains(tmp_path / "project", (*READ, "customers"))
    monkeypatch.chdir(project)
    monkeypatch.setenv("LOCKSTEP_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(TABLES, "_found", declared(project / "source_schema.sql"))

    def load_models() -> tuple[dict[str, object], dict[str, object], str, str]:
        contracts.load.cache_clear()
        context = Context(paths=str(project))
        try:
            [contract] = [row for row in rows(context, "ops.contracts") if row["domain"] == "orders"]
            measures = {
                str(row["measure"]): row["description"]
                for row in rows(context, "ops.contract_measures")
                if row["domain"] == "orders" and row["merge"] == "sum"
            }
            hourly = context.get_model("hourly.orders")
            return contract, measures, context.render("rebuild.cut").sql("duckdb"), hourly.render_query_or_raise().sql()
        finally:
            context.close()

    contract, measures, cut, hourly = load_models()
    assert contract["joined_tables"] == "products"
    assert list(measures) == ["orders", "units", "revenue_cents", "high_value_orders"]
    assert "customers" not in cut and "most" not in hourly
    view = project / "models" / "rebuild" / "latest_orders.sql"
    view.write_text(
        view.read_text().replace(
            "FROM source.orders AS orders\n",
            "FROM source.orders AS orders\nJOIN source.customers AS c ON c.customer_id = orders.customer_id\n",
        )
    )
    fact = project / "models" / "rebuild" / "orders.sql"
    fact.write_text(
        fact.read_text()
        .replace("/* Units ordered */", "/* Pieces ordered */")
        .replace("AS high_value_orders /*", "AS high_value_orders, SUM(2 * units)::BIGINT AS most /*")
    )
    contract, measures, cut, hourly = load_models()
    assert contract["joined_tables"] == "customers products"
    assert measures["units"] == "Pieces ordered" and "most" in measures
    assert "'customers'" in cut and "most" in hourly
    contracts.load.cache_clear()
