"""Tables and columns of any name, declared by `lockstep init`, captured, changed and verified.

Awkward cases: spaces, capitals, reserved words, another script, two tables of one name in two schemas and two that
differ only in case, columns called like those of the change log, like each other but for case, and like generated
ones, some of them in the key; an event in quarantine and its retry.
"""

from __future__ import annotations

from pathlib import Path

import pytest
from click.testing import CliRunner

from lockstep import quarantine
from lockstep.changelog import ChangeLog
from lockstep.cli import cli
from lockstep.errors import LockstepError
from lockstep.schema import TABLES, declared
from postgres import Cluster, capture, cluster, landed, shop, verified

__all__ = ["cluster", "shop"]  # fixtures

SCHEMA = """
CREATE SCHEMA sales; CREATE SCHEMA archive; CREATE SCHEMA "Old Sales";
CREATE TABLE "Order Lines" (
  "Id" bigint, position integer, "extra" text, before text, after text, "select" numeric(10,2), op text, kind text,
  logged_at timestamptz, "Op" text, __weight integer, "a.b ""c"" d" text, PRIMARY KEY (position, "Id"));
CREATE TABLE sales.orders (id bigint PRIMARY KEY, total integer);
CREATE TABLE archive.orders (id bigint PRIMARY KEY, total integer);
CREATE TABLE "Old Sales"."Orders" (id bigint PRIMARY KEY, total integer);
CREATE TABLE "group" (rows bigint, before bigint, "order" text, PRIMARY KEY (rows, before));
CREATE TABLE watermark (id bigint PRIMARY KEY, at timestamptz);
CREATE TABLE "größe" (id bigint PRIMARY KEY);
CREATE TABLE "2024" (id bigint PRIMARY KEY, "Zahl" real);
INSERT INTO "Order Lines" SELECT n, n, 'e', 'b', 'a', n, 'c', 'k', now(), 'O', n, 'x' FROM generate_series(1, 5) AS n;
INSERT INTO sales.orders VALUES (1, 10), (2, 20);
INSERT INTO archive.orders VALUES (1, 111);
INSERT INTO "Old Sales"."Orders" VALUES (1, 1111);
INSERT INTO "group" VALUES (1, 1, 'a'), (1, 2, 'b');
"""
# By their names in the log: the rows of the first snapshot.
NAMES = {
    "order_lines": 5,
    "orders": 1,
    "archive_orders": 1,
    "sales_orders": 2,
    "group": 2,
    "public_watermark": 0,
    "größe": 0,
    "t_2024": 0,
}
CHANGES = """
UPDATE "Order Lines" SET "extra" = 'changed', "Op" = 'p', op = 'o', "select" = 1.5 WHERE position = 2;
UPDATE "Order Lines" SET position = 30 WHERE position = 3;
DELETE FROM "Order Lines" WHERE "Id" = 4;
UPDATE sales.orders SET total = 21 WHERE id = 2;
INSERT INTO archive.orders VALUES (2, 222);
DELETE FROM "Old Sales"."Orders";
UPDATE "group" SET before = 3 WHERE before = 2;
INSERT INTO watermark VALUES (1, now());
INSERT INTO "größe" VALUES (1);
INSERT INTO "2024" VALUES (1, 0.5);
"""


@pytest.fixture
def awkward(shop: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Cluster:
    shop.execute(f"DROP SCHEMA public CASCADE; CREATE SCHEMA public; {SCHEMA}")
    said = CliRunner().invoke(cli, ["init", str(tmp_path / "project"), "--from", shop.dsn()])
    assert said.exit_code == 0 and "Left out" not in said.output, said.output
    shop.execute(said.output.partition("the server needs:\n")[2].partition("To be filled in")[0])
    monkeypatch.setattr(TABLES, "_found", declared(tmp_path / "project" / "source_schema.sql"))
    return shop


def test_any_name_is_captured_and_verified(awkward: Cluster, tmp_path: Path) -> None:
    home = tmp_path / "home"
    capture(awkward, home)
    assert {name: len(landed(home, name)) for name in TABLES} == NAMES
    awkward.execute(CHANGES)
    assert capture(awkward, home).quarantined == 0
    assert [c["op"] for c in landed(home, "orders")] == ["r", "d"]
    assert [c["after"]["total"] for c in landed(home, "archive_orders")] == [111, 222]
    assert [c["after"]["total"] for c in landed(home, "sales_orders")] == [10, 20, 21]
    image = next(c["after"] for c in landed(home, "order_lines") if c["op"] == "u")
    assert (image["position"], image["order_lines_extra"], image["select"]) == (2, "changed", 1.5)
    assert (image["op"], image["order_lines_op"], image["order_lines_weight"], image["extra"]) == ("o", "p", 2, None)
    said = verified(awkward, home)
    assert {(t.table, t.verdict) for t in said.tables} == {(name, "passed") for name in NAMES}


def test_a_table_that_is_declared_twice_is_refused(
    shop: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "source_schema.sql"
    path.write_text(
        "CREATE TABLE products (id int PRIMARY KEY);\n"
        "-- named goods\nCREATE TABLE public.products (id int PRIMARY KEY);"
    )
    monkeypatch.setattr(TABLES, "_found", declared(path))
    with pytest.raises(LockstepError, match=r'products and goods are both declared as "public"\."products"'):
        capture(shop, tmp_path / "home")


def test_capitals_without_quotes_are_named(shop: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shop.execute('CREATE TABLE film ("Id" int PRIMARY KEY)')
    path = tmp_path / "source_schema.sql"
    path.write_text("CREATE TABLE Film (Id int PRIMARY KEY)")
    monkeypatch.setattr(TABLES, "_found", declared(path))
    with pytest.raises(LockstepError, match=r'-- write "Id" in source_schema\.sql, in quotes: without, it is id'):
        capture(shop, tmp_path / "home")


def test_differences_and_quarantine_go_by_these_names(awkward: Cluster, tmp_path: Path) -> None:
    home = tmp_path / "home"
    capture(awkward, home)
    awkward.execute("""UPDATE "Order Lines" SET logged_at = 'infinity' WHERE position = 1""")
    awkward.execute("UPDATE sales.orders SET total = 11 WHERE id = 1")
    assert capture(awkward, home).quarantined == 1
    [event] = ChangeLog(home).quarantined()
    assert event["table"] == "order_lines" and '"table": "Order Lines"' in event["event"]
    said = {t.table: t for t in verified(awkward, home).tables}
    assert (said["order_lines"].verdict, said["sales_orders"].verdict) == ("incomplete", "passed")
    [difference] = said["order_lines"].comparison.differences
    assert difference.key == {"position": 1, "Id": 1} and difference.in_quarantine
    retried = quarantine.retry(home, [event["position"]])
    assert "column logged_at of the after image" in retried.failed[event["position"]]
    quarantine.discard(home, [event["position"]])
