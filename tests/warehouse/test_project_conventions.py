"""The conventions of the project hold, and what checks them fails where they do not."""

from __future__ import annotations

import re
import shutil
from collections import defaultdict
from pathlib import Path

import pytest
from sqlmesh.utils.yaml import load as load_yaml

import commands
from handwritten import write_diffs
from lockstep.contracts import load
from lockstep.names import GENERATED
from lockstep.schema import TABLES

PROJECT = Path(__file__).parents[2]
FOLDERS = ("models", "audits", "macros", "signals", "materializations", "linter", "seeds")

# Schemas whose models need no unit test.
UNTESTED = {
    "changes.": "reads files of the change log, for which a unit test has no fixture; the landing tests cover them",
    "checkpoints.": "reads files, as changes. does; warehouse/test_checkpoints.py covers it",
    "ops.contract": "has what it is stamped with, and reads no model; warehouse/test_contracts_in_ops.py covers it",
    "ops.checkpoints": "reads a file, as changes. does; warehouse/test_checkpoints.py covers it",
    "seeds.": "holds the rows of a file and no logic",
    "reconcile.source_receipts": "reads a file, as changes. does; tests/sources/test_verify_source.py covers it",
    "reconcile.live_receipts": "reads a file, as changes. does; warehouse/test_live_receipts.py covers it",
    "reconcile.vehicle_positions_in_use": "has no measures: the same model of the other domains is tested",
    "reconcile.route_performance_in_use": "has none either",
}


@pytest.fixture
def project(loaded_project):
    return loaded_project


@pytest.fixture
def sqlmesh(tmp_path):
    """Runs sqlmesh in a project, with a data home of its own."""

    def run(*arguments, project=PROJECT):
        return commands.call("sqlmesh", *arguments, cwd=project, LOCKSTEP_HOME=str(tmp_path / "home"), COLUMNS="400")

    return run


@pytest.fixture
def copy(tmp_path):
    """A copy of the project to plant violations in."""
    for folder in FOLDERS:
        shutil.copytree(PROJECT / folder, tmp_path / "copy" / folder)
    for file in ("config.yaml", "source_schema.sql"):
        shutil.copy(PROJECT / file, tmp_path / "copy")
    return tmp_path / "copy"


def test_lint_passes(project):
    assert project.lint_models() == []


def test_runs_compute_rows_and_make_no_views(project):
    """Without it a run spends most of its time on making each view once more."""
    by_plans_only = {m.name for m in project.models.values() if m.cron == "@yearly"}
    views = {m.name for m in project.models.values() if m.kind.is_view and not m.audits}
    assert by_plans_only == views


def test_format_passes(sqlmesh):
    result = sqlmesh("format", "--check")
    assert result.returncode == 0, result.stdout


TESTS = PROJECT / "tests" / "test_rebuild.yaml"
PLANTED = {
    "no_grain": ("hasgrain", "/* D. */ MODEL (name mart.no_grain, kind VIEW); SELECT 1::INT AS a"),
    "bad_grain": ("hasgrain", "/* D. */ MODEL (name mart.bad_grain, kind VIEW, grain b); SELECT 1::INT AS a"),
    "no_comment": ("hasdescription", "MODEL (name mart.no_comment, kind VIEW, grain a); SELECT 1::INT AS a"),
    "no_owner": ("hasowner", "/* D. */ MODEL (name mart.no_owner, kind VIEW, grain a); SELECT 1::INT AS a"),
    "misnamed": ("namedasitsfile", "/* D. */ MODEL (name mart.other, kind VIEW, grain a); SELECT 1::INT AS a"),
    "each_misplaced": ("namedasitsfile", "/* D. */ MODEL (name ops.other, kind VIEW, grain a); SELECT 1::INT AS a"),
    "no_column": (
        "columnsresolve",
        "/* D. */ MODEL (name mart.no_column, kind VIEW, grain a); SELECT no_such AS a FROM ops.contracts",
    ),
    "star": ("noselectstar", "/* D. */ MODEL (name mart.star, kind VIEW, grain domain); SELECT * FROM ops.contracts"),
    "twice": (
        "noambiguousprojections",
        "/* D. */ MODEL (name mart.twice, kind VIEW, grain a); SELECT domain AS a, owner AS a FROM ops.contracts",
    ),
    "no_wait": (
        "nameswhatitawaits",
        "/* D. */ MODEL (name mart.no_wait, kind FULL, cron '@daily', grain a); "
        "SELECT order_id AS a FROM rebuild.latest_orders",
    ),
    "no_model": (
        "nomissingexternalmodels",
        "/* D. */ MODEL (name mart.no_model, kind VIEW, grain a); SELECT a::INT AS a FROM seeds.no_such",
    ),
}


def test_lint_fails_on_each_planted_violation(sqlmesh, copy):
    config = copy / "config.yaml"
    config.write_text(re.sub(r"\n *owner: .*", "", config.read_text()))
    for file, (_, model) in PLANTED.items():
        (copy / "models" / "mart" / f"{file}.sql").write_text(model)
    diffs = write_diffs(copy, "orders")
    text = diffs.read_text()
    rounded = re.sub(r'AS BIGINT\) AS "orders"', 'AS DOUBLE) AS "orders"', text)
    assert rounded != text
    diffs.write_text(rounded)
    result = sqlmesh("lint", project=copy)
    assert result.returncode != 0
    found = defaultdict(str)  # diffs.orders and rebuild.orders have the same file name
    for name, violations in re.findall(r"/(\w+)\.sql`:\n(.*?)(?=\n\n|$)", result.stdout, re.DOTALL):
        found[name] += violations
    assert "orders is DOUBLE, must be BIGINT" in found["orders"]
    assert [file for file, (rule, _) in PLANTED.items() if f"{rule}:" not in found.get(file, "")] == [], result.stdout


def test_lint_asks_for_the_unit_test_of_a_fact(sqlmesh, copy):
    tests = copy / "tests" / "test_rebuild.yaml"
    tests.parent.mkdir(exist_ok=True)
    tests.write_text(re.sub(r"model: rebuild.orders\b", "model: rebuild.orders_daily", TESTS.read_text()))
    result = sqlmesh("lint", project=copy)
    assert result.returncode == 0, result.stdout
    assert re.findall(r"rebuild\.(\w+) has no unit test", result.stdout) == ["orders"]


def test_format_fails_on_another_style(sqlmesh, copy):
    path = copy / "audits" / "reconcile.sql"
    path.write_text(path.read_text().replace("SELECT\n", "select ", 1))
    assert sqlmesh("format", "--check", project=copy).returncode != 0


def test_every_rule_of_our_own_is_in_force():
    rules = re.findall(r"^class (\w+)", (PROJECT / "linter" / "house_rules.py").read_text(), re.MULTILINE)
    linter = load_yaml(PROJECT / "config.yaml")["linter"]
    assert {rule.lower() for rule in rules} <= {*linter["rules"], *linter["warn_rules"]}


def test_every_file_opens_with_a_comment():
    for path in [*PROJECT.glob("models/[!s]*/*.sql")]:
        assert path.read_text().startswith("/* "), path
    for path in PROJECT.glob("audits/*.sql"):
        for audit in re.split(r"^AUDIT ", path.read_text(), flags=re.MULTILINE)[1:]:
            assert re.match(r"\(\n.*?\n\);\n\n/\* [A-Z]", audit, re.DOTALL), f"{path}: {audit[:60]}"


def test_every_model_with_logic_has_a_unit_test(project):
    """A stamped model is tested by any other of its file whose measures merge in the same ways."""
    merges = {c.domain: {m.merge for m in c.merged} for c in load(PROJECT / "seeds").values()}

    def stamp(model):
        [domain] = [d for d in merges if re.fullmatch(rf"\w+\.{d}(_\w+)?", model.name)] or [None]
        if model._path.stem.startswith("each_domain"):
            return model._path, frozenset(merges[domain])
        return model._path if model._path.stem.startswith("each_") else model.name

    tested = {stamp(project.get_model(name)) for name in project.models_with_tests}
    untested = {m.name for m in project.models.values() if stamp(m) not in tested}
    assert {name for name in untested if not name.startswith(tuple(UNTESTED))} == set()


def test_every_unit_test_is_named_after_its_model_and_described():
    tests = {name: test for path in PROJECT.glob("tests/test_*.yaml") for name, test in load_yaml(path).items()}
    assert len(tests) > 130
    for name, test in tests.items():
        assert re.fullmatch(rf"test_{test['model'].replace('.', '_')}__[a-z0-9_]+", name), name
        assert test.get("description"), name


def test_every_test_file_opens_by_listing_its_awkward_cases():
    for path in PROJECT.glob("tests/test_*.yaml"):
        comment = path.read_text().split("\n\n")[0]
        assert comment.startswith("# ") and "Awkward cases:" in comment, path


def test_every_column_is_described(project):
    """But for the columns of seeds, and for those that are stamped from a contract or the declaration."""
    stamped = {column for c in load(PROJECT / "seeds").values() for column in (*c.grain, *c.state)}
    stamped |= {column.name for table in TABLES.values() for column in table.columns} | {"extra"}
    stamped |= {f"{side}_{column}" for side in ("rebuild", "increments") for column in stamped}
    missing = {}
    for model in project.models.values():
        columns = set(model.columns_to_types) - set(model.column_descriptions)
        if model._path.stem.startswith("each_"):
            columns -= stamped
            columns -= {column for column in columns if column.startswith(GENERATED)}  # `facts --explain` says what
        if columns and not model.name.startswith("seeds."):
            missing[model.name] = columns
    assert missing == {}


def test_every_type_is_known(project):
    """A column whose type SQLMesh cannot tell is created with whatever type the first rows happen to have."""
    unknown = {
        f"{model.name}.{column}"
        for model in project.models.values()
        for column, kind in (model.columns_to_types or {}).items()
        if kind.is_type("unknown")
    }
    images = {name for name in unknown if re.fullmatch(r"changes\.\w+\.(before|after)", name)}
    assert unknown - images == set()  # images have the struct type of the log's files
