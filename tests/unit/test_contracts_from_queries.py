"""What a contract of five columns is completed with from its query, and what it may still say itself.

Awkward cases: a query that becomes more than sums; extremes, last rows and a file by hand, which no query tells;
a measure that the query lacks; a measure declared twice; an odd type; a file of the home that is damaged or old; a
change of a view, a macro, the declaration or the configuration that it is read with.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from lockstep import contracts, in_full
from lockstep.contracts import Contract
from lockstep.errors import LockstepError
from lockstep.init import init
from lockstep.schema import TABLES

ROOT = Path(__file__).parents[2]
MODEL = "/* F. */\nMODEL (name rebuild.fact, kind FULL, grain ({grain}));\n{query}\n"
SUMS = """SELECT
  o.region::TEXT AS region, /* Where to */
  COUNT(*)::BIGINT AS orders, /* Orders, "all" */
  SUM(o.amount_cents)::BIGINT AS revenue_cents, SUM(o.quantity * 0.5)::DECIMAL(38, 1) AS halves
FROM source.orders AS o JOIN rebuild.who AS c ON c.customer_id = o.customer_id GROUP BY 1"""
WHO = "/* W. */ MODEL (name rebuild.who, grain customer_id); SELECT customer_id, region FROM source.customers"
EXTREMES = """SELECT driver_id::BIGINT AS driver_id, COUNT(*)::BIGINT AS pings, MAX(speed_kmh)::DOUBLE AS top_kmh
FROM source.gps_pings GROUP BY 1"""
LAST = """SELECT
  driver_id::BIGINT AS driver_id, recorded_at AS latest_at, _position AS latest_position, speed_kmh
FROM source.gps_pings
QUALIFY ROW_NUMBER() OVER (PARTITION BY driver_id ORDER BY latest_at DESC, latest_position DESC) = 1"""
Complete = Callable[..., Contract]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    project = tmp_path_factory.mktemp("made") / "project"
    init(project, (ROOT / "source_schema.sql").read_text())
    shutil.copy(ROOT / "macros" / "rules.py", project / "macros")
    (project / "models" / "rebuild" / "who.sql").write_text(WHO)
    return project


@pytest.fixture
def project(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    shutil.copytree(made, tmp_path / "project")
    monkeypatch.chdir(tmp_path / "project")
    monkeypatch.setenv("LOCKSTEP_HOME", str(tmp_path / "home"))
    return tmp_path / "project"


@pytest.fixture
def complete(project: Path) -> Complete:
    """The contract of a fact with this query."""

    def of(query: str, *measures: str, by: str = "region", mode: str = "batch", **columns: str) -> Contract:
        (project / "models" / "rebuild" / "fact.sql").write_text(MODEL.format(grain=by, query=query))
        row = {
            "domain": "fact",
            "owner": "o",
            "mode": mode,
            "horizon_minutes": "60",
            "freshness_seconds": "30",
        } | columns
        (project / "seeds" / "contracts.csv").write_text(f"{','.join(row)}\n{','.join(row.values())}\n")
        header = "domain,measure,merge,unit,tolerance_absolute,description"
        (project / "seeds" / "contract_measures.csv").write_text("\n".join([header, *measures]) + "\n")
        return contracts.load.__wrapped__()["fact"]

    return of


def told(contract: Contract) -> list[tuple[str, str, str, str]]:
    return [(m.name, m.merge, m.unit, m.description) for m in contract.all_measures]


def test_five_columns_are_a_contract(complete: Complete) -> None:
    found = complete(SUMS)
    assert told(found) == [
        ("orders", "sum", "count", 'Orders, "all"'),
        ("revenue_cents", "sum", "cents", "Revenue cents"),
        ("halves", "sum", "amount(1)", "Halves"),
    ]
    assert (found.grain, found.source_key, found.sources) == (("region",), ("order_id",), ("orders", "customers"))
    assert (found.shadow_days, found.passes_to_return, found.receipt_hours, found.on_bad_event) == (3, 2, 50, "hold")


def test_what_departs_is_taken_from_the_files(complete: Complete) -> None:
    found = complete(
        SUMS,
        "fact,revenue_cents,,eur(0),0,Paid",
        "fact,buyers,batch,count,0,Different buyers",
        source_table="customers",
        joined_tables="drivers orders",
        shadow_days="7",
        receipt_hours="",
    )
    assert told(found) == [
        ("orders", "sum", "count", 'Orders, "all"'),
        ("revenue_cents", "sum", "eur(0)", "Paid"),
        ("halves", "sum", "amount(1)", "Halves"),
        ("buyers", "batch", "count", "Different buyers"),
    ]
    assert (found.source_key, found.sources) == (("customer_id",), ("customers", "orders", "drivers"))
    assert (found.shadow_days, found.receipt_hours) == (7, 50)


AVERAGE = SUMS.replace("SUM(o.quantity * 0.5)::DECIMAL(38, 1) AS halves", "AVG(o.quantity)::DOUBLE AS average")


def test_a_query_that_is_more_than_sums_is_a_finish_unless_its_contract_says_sum(complete: Complete) -> None:
    found = complete(AVERAGE, "fact,average,,,0.5,")
    assert {m.merge for m in found.all_measures} == {"finish"}
    assert found.all_measures[2].tolerance_absolute == 0.5
    assert {m.merge for m in complete(SUMS, "fact,halves,finish,,0,").all_measures} == {"finish"}
    with pytest.raises(LockstepError, match=r"models/rebuild/fact\.sql: line 6: AVG"):
        complete(AVERAGE, "fact,orders,sum,,0,")


def test_last_rows_are_told_by_their_columns_and_extremes_by_the_contract(complete: Complete) -> None:
    last = complete(LAST, "fact,speed_kmh,,km/h,100,", by="driver_id", live_where="speed_kmh < 200")
    assert told(last) == [("speed_kmh", "latest", "km/h", "Speed kmh")]
    assert (last.sources, last.live_where) == (("gps_pings",), "speed_kmh < 200")
    assert told(complete(EXTREMES, by="driver_id"))[1] == ("top_kmh", "finish", "ratio", "Top kmh")
    extremes = complete(EXTREMES, "fact,top_kmh,max,km/h,0,", by="driver_id")
    assert told(extremes) == [("pings", "sum", "count", "Pings"), ("top_kmh", "max", "km/h", "Top kmh")]


@pytest.mark.parametrize(
    ("query", "measures", "said"),
    [
        (SUMS, ["fact,orders,,,0,", "fact,orders,,,0,"], r"contract_measures\.csv, line 2: measure is 'orders'.* once"),
        (SUMS, ["fact,parcels,,,0,"], "line 2: measure is 'parcels', expected a measure of models/rebuild/fact.sql"),
        (SUMS, ["fact,orders,mean,,0,"], r"line 2: merge is 'mean'.* or nothing"),
        (SUMS, ["fact,orders,,stones,0,"], r"line 2: unit is 'stones'.* or nothing"),
        (SUMS, ["fact,orders,,,5,"], "line 2: tolerance_absolute is '5', expected 0, as it merges by sum"),
        (SUMS.replace("AS orders", 'AS "all of"'), [], "models/rebuild/fact.sql: measure is 'all of'.*lower-case"),
        (SUMS.replace("COUNT(*)::BIGINT", "COUNT(*)::INT"), [], "models/rebuild/fact.sql: orders is INTEGER.*Cast it"),
        (SUMS.replace("o.region::TEXT AS region", "1 AS one"), [], "models/rebuild/fact.sql: The grain names region"),
        (SUMS.replace("rebuild.who", "mart.who"), [], "models/rebuild/fact.sql: It reads mart.who"),
        (SUMS.replace("SELECT", "SELEC"), [], "models/rebuild/fact.sql cannot be read: "),
        (
            SUMS.replace("'all'", "ANY_VALUE"),
            ["other,orders,,,0,"],
            "domain is 'other', expected a domain of contracts",
        ),
    ],
)
def test_a_mistake_is_named_where_it_stands(complete: Complete, query: str, measures: list[str], said: str) -> None:
    with pytest.raises(LockstepError, match=f"(?s){said}"):
        complete(query, *measures)


def test_increments_by_hand_need_a_contract_in_full(project: Path, complete: Complete) -> None:
    (project / "models" / "diffs" / "fact.sql").write_text("/* By hand. */")
    with pytest.raises(LockstepError, match=r"line 2: grain is '', .*as models/diffs/fact\.sql is written by hand"):
        complete(SUMS)
    found = complete("-", "fact,top,max,count,0,Most", grain="a b", source_table="orders", source_key="order_id")
    assert (found.grain, told(found)) == (("a", "b"), [("top", "max", "count", "Most")])
    with pytest.raises(LockstepError, match="line 2: merge is '', expected one of sum"):
        complete("-", "fact,top,,count,0,Most", grain="a b", source_table="orders", source_key="order_id")


IN_FULL = {
    "source_table": "customers",
    "source_key": "customer_id",
    "joined_tables": "orders drivers",
    "grain": "region",
    "shadow_days": "5",
}
ROWS = ["fact,orders,sum,count,0,A", "fact,revenue_cents,sum,cents,0,B", "fact,halves,sum,kg(1),0,C"]


def test_a_contract_in_full_is_told_the_row_that_says_as_much(complete: Complete) -> None:
    """The printed row, with the measures that are said to need one, is the same contract."""
    written = complete(SUMS, *ROWS, "fact,buyers,batch,count,0,D", **IN_FULL)
    contracts.load.cache_clear()
    [note] = in_full.notes()
    row = note.splitlines()[1].strip()
    assert row == "fact,o,batch,60,30,customers,,drivers,,5"
    assert note.endswith(
        "and of its measures halves, buyers must stay in contract_measures.csv, beside descriptions of your own."
    )
    columns = dict(zip(IN_FULL, row.split(",")[5:], strict=True))
    short = complete(SUMS, "fact,halves,,kg(1),0,C", "fact,buyers,batch,count,0,D", **columns)
    contracts.load.cache_clear()
    assert in_full.notes() == []
    assert replace(short, all_measures=()) == replace(written, all_measures=())
    assert [m[:3] for m in told(short)] == [m[:3] for m in told(written)]


def test_a_contract_in_full_is_told_in_what_it_differs(complete: Complete) -> None:
    complete(SUMS, *ROWS[:2], "fact,top,sum,count,0,E", **IN_FULL | {"grain": "region shop"})
    contracts.load.cache_clear()
    [note] = in_full.notes()
    assert "grain: region, shop in the contract, region in the query" in note
    assert "measures: orders, revenue_cents, top in the contract, halves, orders, revenue_cents in the query" in note
    complete(AVERAGE, *ROWS[:2], "fact,average,finish,ratio,0.5,F", **IN_FULL)
    contracts.load.cache_clear()
    [note] = in_full.notes()
    assert "repeats its query" in note and "of its measures average must stay" in note
    complete(SUMS.replace("SUM(o.amount_cents)::BIGINT", "SUM(1)::INT"), *ROWS, **IN_FULL)
    contracts.load.cache_clear()
    assert "needs to be: models/rebuild/fact.sql: revenue_cents is INTEGER" in in_full.notes()[0]


def test_what_is_read_is_kept_until_something_changes(project: Path, complete: Complete) -> None:
    """Another process then needs no SQLMesh; a damaged file, or a folder in its place, is as good as none."""
    complete(SUMS)
    load = "import sys; from lockstep.contracts import load; print([m.name for m in load()['fact'].all_measures])"
    program = f"{load}; print('sqlmesh' in sys.modules)"

    def loaded() -> list[str]:
        return subprocess.check_output([sys.executable, "-c", program], cwd=project, text=True).splitlines()

    measures = "['orders', 'revenue_cents', 'halves']"
    assert loaded() == [measures, "False"]
    kept = project.parent / "home" / ".cache" / "contracts.json"
    for damaged in (b"", b"[]", b'{"facts": 1}', kept.read_bytes()[:-9], json.dumps({"read_from": "x"}).encode()):
        kept.write_bytes(damaged)
        assert contracts.load.__wrapped__()["fact"].grain == ("region",)
        assert loaded() == [measures, "False"]
    kept.unlink()
    kept.mkdir()
    assert loaded() == [measures, "True"]


@pytest.mark.parametrize(
    ("name", "old", "new"),
    [
        ("models/rebuild/who.sql", "source.customers", "source.orders"),
        ("source_schema.sql", "full_name", "whole_name"),
        ("macros/rules.py", '"cancelled"', '"called_off"'),
        ("config.yaml", "owner: data-platform", "owner: somebody"),
    ],
)
def test_each_part_that_a_query_is_read_with_counts(
    project: Path, complete: Complete, monkeypatch: pytest.MonkeyPatch, name: str, old: str, new: str
) -> None:
    from lockstep.figures import read_from
    from lockstep.schema import declared

    monkeypatch.setattr(TABLES, "_found", declared(project / "source_schema.sql"))
    before = read_from()
    path = project / name
    assert old in path.read_text()
    path.write_text(path.read_text().replace(old, new))
    declared.cache_clear()
    monkeypatch.setattr(
        TABLES, "_found", declared(path if name.endswith("schema.sql") else project / "source_schema.sql")
    )
    assert read_from() != before


def test_a_view_that_reads_another_table_changes_the_contract(project: Path, complete: Complete) -> None:
    assert complete(SUMS).sources == ("orders", "customers")
    path = project / "models" / "rebuild" / "who.sql"
    path.write_text(path.read_text().replace("source.customers", "source.orders"))
    assert complete(SUMS).sources == ("orders",)
