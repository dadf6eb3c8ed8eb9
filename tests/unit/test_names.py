"""What a table and a column are called in the log: the rules of docs/sources.md, row by row, and what breaks them.

Awkward cases: names that differ only in case, in their schema or in what the rule drops; names that are Lockstep's
own; names without quotes at each kind of source; events that could belong to either of two tables.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import duckdb
import pytest
from click.testing import CliRunner

from debezium_events import deliver, event, log_rows
from lockstep import explain
from lockstep.changelog import ChangeLog
from lockstep.cli import cli
from lockstep.ddl import parsed
from lockstep.debezium import as_lines
from lockstep.errors import LockstepError
from lockstep.ingest import ingest
from lockstep.lines import SCHEMA as LINES
from lockstep.names import Name, log_name
from lockstep.schema import TABLES, declared
from lockstep.sequence import Sequencer

PAGE = (Path(__file__).parents[2] / "docs" / "sources.md").read_text(encoding="utf-8")
Declare = Callable[[str], None]


@pytest.fixture
def declare(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Declare:
    def declare(ddl: str) -> None:
        path = tmp_path / "source_schema.sql"
        path.write_text(ddl)
        declared.cache_clear()
        monkeypatch.setattr(TABLES, "_found", declared(path))

    return declare


def problems(ddl: str) -> list[str]:
    return parsed(ddl, Path("source_schema.sql"))[1]


def rows(section: str) -> list[list[str]]:
    """The rows of a section's table in the page, the cells of each."""
    text = PAGE.partition(f"### {section}\n")[2]
    return [re.split(r" \| ", row) for row in re.findall(r"^\| (`?.*) \|$", text.partition("\n#")[0], re.MULTILINE)[1:]]


def in_code(cell: str) -> list[str]:
    return re.findall(r"`(.*?)`", cell)


@pytest.mark.parametrize(("source", "in_the_log"), rows("Tables"))
def test_the_rule_for_tables(source: str, in_the_log: str) -> None:
    [name] = in_code(source)
    [expected] = in_code(in_the_log) or [""]
    assert log_name(name) == expected == log_name(expected)


@pytest.mark.parametrize(("source", "why"), rows("Columns"))
def test_the_rule_for_columns(source: str, why: str) -> None:
    names = [name for name in in_code(source) if name != "__"]
    for name in names:
        others = names if "beside" in source else [name]
        columns = ", ".join(f'"{other}" text' for other in others)
        [problem] = problems(f"CREATE TABLE film (film_id int PRIMARY KEY, {columns});")
        assert any(part in problem for part in ("as JSON, the columns", "DuckDB does not tell apart", "reserved for"))
        line = f'"{others[-1]}" text -- named other\n'
        more = "".join(f', "{other}" text' for other in others[:-1])
        assert problems(f"CREATE TABLE film (film_id int PRIMARY KEY, {line}{more});") == []


@pytest.mark.parametrize(("source", "means"), rows("What a name means at the source"))
def test_a_name_without_quotes_is_what_the_database_makes_of_it(source: str, means: str) -> None:
    for connector in re.findall(r"\w+", source.lower().replace("sql server and others", "sqlserver")):
        assert [Name("Orders", is_quoted=False).at(connector)] == in_code(means)
        assert Name("Orders").at(connector) == "Orders"


def test_a_declaration_names_tables_and_columns() -> None:
    tables, found = parsed(
        """
        -- named old_orders
        CREATE TABLE archive."Orders" (
          Id int,
          "extra" text, -- named extra_text
          -- named capital_id
          "ID" int,
          "id 2" text NOT NULL /* named id_3 */,
          PRIMARY KEY (id, "id 2")
        );
        CREATE TABLE "lines" ("ID" int, PRIMARY KEY (ID));
        CREATE TABLE orders ("Id" int, "extra" text /* named e */);
        ALTER TABLE ONLY orders ADD CONSTRAINT k PRIMARY KEY ("Id");
        """,
        Path("source_schema.sql"),
    )
    assert (
        found == ["source_schema.sql: table old_orders has the columns Id and ID, which DuckDB does not tell apart."]
        or not found
    )
    assert [(t.name, t.key, [c.name for c in t.columns]) for t in tables.values()] == [
        ("old_orders", ("Id", "id_3"), ["Id", "extra_text", "capital_id", "id_3"]),
        ("lines", ("ID",), ["ID"]),
        ("orders", ("Id",), ["Id", "e"]),
    ]
    assert [c.at("postgresql") for c in tables["old_orders"].columns] == ["id", "extra", "ID", "id 2"]
    assert tables["old_orders"].in_postgresql("public") == ("archive", "Orders")


KEY = "(id int PRIMARY KEY)"


@pytest.mark.parametrize(
    ("ddl", "said"),
    [
        (
            f"CREATE TABLE sales.orders {KEY}; CREATE TABLE archive.orders {KEY};",
            "tables sales.orders and archive.orders would both be named orders in the log. Name archive.orders "
            "otherwise with the line `-- named archive_orders` before its CREATE TABLE, or leave it out of the file.",
        ),
        (f'CREATE TABLE "Orders" {KEY}; CREATE TABLE orders {KEY};', "`-- named orders_2`"),
        (
            f"CREATE TABLE a.orders {KEY}; CREATE TABLE a_b.orders {KEY}; CREATE TABLE a_b_orders {KEY};",
            "`-- named a_b_orders_2`",
        ),
        (f"CREATE TABLE a.orders {KEY}; CREATE TABLE a.Orders {KEY};", "declares table a.Orders twice: leave one out."),
        (
            f"CREATE TABLE shop.watermark {KEY};",
            "table shop.watermark would be named watermark in the log, which is the name of a model of Lockstep's, "
            "changes.watermark. Name shop.watermark otherwise with the line `-- named shop_watermark`",
        ),
        (f'CREATE TABLE "$%" {KEY};', "nothing is left of $% as a name in the log. Name $% otherwise"),
        (
            f"-- named Order-Lines\nCREATE TABLE lines {KEY};",
            "table lines would be named Order-Lines in the log, which is not a lower-case word",
        ),
        (f"-- named _lines\nCREATE TABLE lines {KEY};", "would be named _lines in the log, which is not"),
        (
            "CREATE TABLE film (id int PRIMARY KEY, Extra text);",
            "table film has a column Extra: that name belongs to the column that keeps, as JSON, the columns that the "
            "file does not declare. Name Extra otherwise in the log by a comment at the end of its line, "
            "`-- named film_extra`; or leave it out of the file: it travels in `extra`, as JSON.",
        ),
        (
            'CREATE TABLE film (id int PRIMARY KEY, title text, "Title" text, film_title text);',
            "has the columns title and Title, which DuckDB does not tell apart. Name Title otherwise in the log by a "
            "comment at the end of its line, `-- named film_title_2`",
        ),
        (
            "CREATE TABLE film (id int PRIMARY KEY, __weight int);",
            "a column __weight: that name is reserved for columns that models generate. Name __weight otherwise in "
            "the log by a comment at the end of its line, `-- named film_weight`",
        ),
        ("CREATE TABLE film (id int PRIMARY KEY, _Op text);", "that name is reserved for columns that models generate"),
        ("CREATE TABLE film (id int PRIMARY KEY, a int -- named __a\n);", "has a column a named __a: that name is"),
        (
            'CREATE TABLE film (id int, part int, PRIMARY KEY (id, "PART"));',
            "the PRIMARY KEY of table film has a column PART, which the table does not declare. Declare it.",
        ),
    ],
)
def test_a_name_that_cannot_be_says_what_to_add(ddl: str, said: str) -> None:
    [problem] = problems(ddl)
    assert problem.startswith("source_schema.sql") and said in problem


def test_the_order_of_the_file_decides_nothing(declare: Declare, tmp_path: Path) -> None:
    tables = [f"CREATE TABLE sales.orders {KEY};", f"-- named old_orders\nCREATE TABLE archive.orders {KEY};"]
    changes = [source("sales", 1), source("archive", 2), source("other", 3)]
    for n, ddl in enumerate((tables, reversed(tables))):
        declare("\n".join(ddl))
        summary = deliver(tmp_path / f"home{n}", *changes)
        assert (summary.landed, summary.ignored) == ({"orders": 1, "old_orders": 1}, {"other.orders": 1})
        assert [r["after"]["id"] for r in log_rows(tmp_path / f"home{n}", "old_orders")] == [2]


def source(schema: str | None, n: int, table: str = "orders", **more: Any) -> dict[str, Any]:
    return event("c", None, {"id": n}, n=n, tx=n, schema=schema, table=table, **more)


def test_a_name_in_the_log_stays_with_its_table(declare: Declare, tmp_path: Path) -> None:
    declare(f"CREATE TABLE sales.orders {KEY};\n-- named old_orders\nCREATE TABLE archive.orders {KEY};")
    deliver(tmp_path / "home", source("sales", 1), source("archive", 2))
    declare(f"-- named old_orders\nCREATE TABLE sales.orders {KEY};\nCREATE TABLE archive.orders {KEY};")
    with pytest.raises(LockstepError, match=r"holds orders of the schema sales, .* declares it in archive"):
        deliver(tmp_path / "home", source("sales", 3))
    declare(f"-- named orders\nCREATE TABLE sales.invoices {KEY};")
    with pytest.raises(LockstepError, match=r"holds sales.orders under the name orders, .* gives that name to invoi"):
        deliver(tmp_path / "home", source("sales", 3))


def test_an_event_that_names_no_schema_holds_all_tables_it_may_be_of(declare: Declare, tmp_path: Path) -> None:
    declare(f"CREATE TABLE sales.orders {KEY};\n-- named old_orders\nCREATE TABLE archive.orders {KEY};")
    assert deliver(tmp_path / "home", source(None, 1), source("sales", 2)).quarantined == 1
    [rejected] = ChangeLog(tmp_path / "home").quarantined()
    assert rejected["table"] == "*"
    assert rejected["reason"] == "it names no schema, and several source tables are called orders"
    assert deliver(tmp_path / "home", source(None, 1)).quarantined == 0  # known again


def test_a_table_of_another_name_is_none_of_ours(declare: Declare, tmp_path: Path) -> None:
    declare(f'-- named lines\nCREATE TABLE "Order Lines" {KEY};')
    summary = deliver(tmp_path / "home", source("public", 1, "lines"), source("public", 2, "Order Lines"))
    assert (summary.landed, summary.ignored) == ({"lines": 1}, {"public.lines": 1})


ORACLE = """
CREATE TABLE debezium.customers (id bigint PRIMARY KEY, first_name text, "Extra" text, -- named more
  "LAST_NAME" text);
-- named old_customers
CREATE TABLE "ARCHIVE"."CUSTOMERS" ("ID" bigint PRIMARY KEY);
"""


def oracle(n: int, op: str, before: Any, after: Any, schema: str = "DEBEZIUM", table: str = "CUSTOMERS") -> Any:
    """A change as Debezium's documentation of its connector for Oracle has it (LogMiner)."""
    return {
        "before": before,
        "after": after,
        "source": {
            "version": "3.6.3.Final",
            "name": "server1",
            "ts_ms": 1_767_261_600_000 + n,
            "ts_us": 1_767_261_600_000_000 + n * 1000,
            "connector": "oracle",
            "snapshot": "false",
            "db": "ORCLPDB1",
            "schema": schema,
            "table": table,
            "txId": f"{n}.28.807",
            "scn": str(2_122_184 + n),
            "commit_scn": str(2_122_185 + n),
            "lcr_position": None,
            "rs_id": "001234.00012345.0124",
            "ssn": 0,
            "redo_thread": 1,
            "user_name": "user",
            "row_id": "AAASgjAAMAAAACnAAA",
        },
        "op": op,
        "ts_ms": 1_767_261_600_100 + n,
    }


def test_oracles_upper_case(declare: Declare, tmp_path: Path) -> None:
    declare(ORACLE)
    ann = {"ID": 1, "FIRST_NAME": "Anne", "LAST_NAME": "Kretchmar", "Extra": "x"}
    marie = {**ann, "FIRST_NAME": "Anne Marie", "EMAIL": "a@noanswer.org"}
    summary = deliver(
        tmp_path / "home",
        oracle(1, "c", None, ann),
        oracle(2, "u", ann, marie),
        oracle(3, "c", None, {"ID": 7}, "ARCHIVE"),
        oracle(4, "c", None, {"ID": 8}, "HR", "EMPLOYEES"),
        oracle(5, "u", marie, {**marie, "ID": None}),
        oracle(5, "c", None, {"id": 9}, "ARCHIVE"),
    )
    assert (summary.landed, summary.ignored) == ({"customers": 2, "old_customers": 1}, {"EMPLOYEES": 1})
    assert [e["table"] for e in ChangeLog(tmp_path / "home").quarantined()] == ["customers", "old_customers"]
    reasons = [e["reason"] for e in ChangeLog(tmp_path / "home").quarantined()]
    assert reasons[0].startswith("column ID of the after image is null")
    assert reasons[1].startswith("column ID of the after image is missing")
    changed = log_rows(tmp_path / "home", "customers")[1]
    assert changed["after"] == {
        "id": 1,
        "first_name": "Anne Marie",
        "more": "x",
        "LAST_NAME": "Kretchmar",
        "extra": '{"EMAIL":"a@noanswer.org"}',
    }
    again = deliver(tmp_path / "home", oracle(2, "u", ann, marie))
    assert (again.known, again.landed) == (1, {})


def mysql(db: str, n: int, table: str = "orders") -> dict[str, Any]:
    return event("c", None, {"id": n}, n=n, tx=n, schema=None, db=db, table=table, connector="mysql")


def test_mysqls_databases_are_in_the_place_of_schemas(declare: Declare, tmp_path: Path) -> None:
    home = tmp_path / "home"
    declare(f"CREATE TABLE sales.orders {KEY};\n-- named old_orders\nCREATE TABLE archive.orders {KEY};")
    assert deliver(home, mysql("sales", 1), mysql("archive", 2)).landed == {"orders": 1, "old_orders": 1}
    assert deliver(home, mysql("archive", 3)).landed == {"old_orders": 1}
    with pytest.raises(LockstepError, match="is a change of mysql:other"):
        deliver(home, mysql("archive", 4), mysql("other", 5))


@pytest.mark.parametrize("ddl", [f"CREATE TABLE orders {KEY};", f"CREATE TABLE public.orders {KEY};"])
def test_one_database_of_mysql_needs_no_schema(declare: Declare, tmp_path: Path, ddl: str) -> None:
    declare(ddl)
    assert deliver(tmp_path / "home", mysql("shop", 1)).landed == {"orders": 1}
    with pytest.raises(LockstepError, match="is a change of mysql:other"):
        deliver(tmp_path / "home", mysql("shop", 2), mysql("other", 3))


def test_columns_that_differ_only_in_case(declare: Declare, tmp_path: Path) -> None:
    declare(
        """CREATE TABLE orders (
          id int PRIMARY KEY, note text, "Note" text, -- named note_2
          "a/b~c" text -- named note_3
        );"""
    )
    images = [
        {"id": 1, "note": "a", "Note": "b", "a/b~c": "c"},
        {"id": 1, "note": None, "Note": None, "a/b~c": "d", "NOTE": 1},
    ]
    deliver(tmp_path / "home", event("c", None, images[0]), event("u", *images, n=2, tx=2))
    assert [r["after"] for r in log_rows(tmp_path / "home")] == [
        {"id": 1, "note": "a", "note_2": "b", "note_3": "c", "extra": None},
        {"id": 1, "note": None, "note_2": None, "note_3": "d", "extra": '{"NOTE":1}'},
    ]


def test_a_transaction_over_topics_counts_its_tables_by_any_name(declare: Declare) -> None:
    declare(f'CREATE TABLE sales."Order Lines" {KEY};\n-- named old\nCREATE TABLE archive.orders {KEY};')
    order = Sequencer((), lambda _: True)
    collections = [("sales.Order Lines", 1), ("archive.orders", 1), ("other.orders", 1), ("sales.audit", 1)]
    listed = [{"data_collection": name, "event_count": n} for name, n in collections]
    end = {"status": "END", "id": "1:9", "event_count": 4, "data_collections": listed, "ts_ms": 1_767_261_600_000}
    tables = [("sales", "Order Lines"), ("archive", "orders"), ("other", "orders"), ("sales", "audit")]
    changes = [
        {**source(schema, n, table), "transaction": {"id": "1:5", "total_order": n, "data_collection_order": 1}}
        for n, (schema, table) in enumerate(tables, 1)
    ]

    def add(offset: int, *records: Any) -> int:
        lines = as_lines([json.dumps(r) for r in records])
        count = lines.num_rows
        lines = lines.append_column("file", [["t [0]"] * count]).append_column(
            "number", [list(range(offset, offset + count))]
        )
        order.add(lines.select(LINES.names))
        return order.take(1 << 20).num_rows

    assert add(0, end, changes[0], changes[1]) == 0
    assert add(3, *changes[2:]) == 5


def test_explain_finds_a_broken_chain_whatever_the_key_is_called(declare: Declare, tmp_path: Path) -> None:
    declare("CREATE TABLE lines (position int, previous int, before int, PRIMARY KEY (position, previous, before));")
    diagnosis = explain._Diagnosis.__new__(explain._Diagnosis)
    diagnosis._home, diagnosis._limit = tmp_path, 9
    diagnosis._connection, diagnosis._sources = duckdb.connect(), {"lines": "log"}
    image = "{'position': 1, 'previous': 2, 'before': 3, 'extra': NULL::TEXT}"
    none = "NULL::STRUCT(position INT, previous INT, before INT, extra TEXT)"
    diagnosis._connection.execute(
        f"CREATE TABLE log AS SELECT 1 AS position, 'c' AS op, {none} AS before, {image} AS after "
        f"UNION ALL SELECT 2, 'u', NULL, {image}"
    )
    [finding] = diagnosis.broken_chains()
    assert finding.where.startswith("position 1, previous 2, before 3, position 2")
    diagnosis._connection.execute(f"INSERT INTO log SELECT 3, 'r', {image}, {image}")
    assert diagnosis.broken_chains() == [], "a resync has mended it"


def recording(*tables: tuple[str, str, list[str]]) -> str:
    records = []
    for schema, table, columns in tables:
        fields = [{"field": c, "type": "int64", "optional": c != columns[0]} for c in columns]
        image = {"type": "struct", "fields": fields}
        value = {
            "schema": {"type": "struct", "fields": [{"field": "before", **image}, {"field": "after", **image}]},
            "payload": oracle(1, "c", None, dict.fromkeys(columns, 1), schema, table),
        }
        key = {"schema": {"type": "struct", "fields": fields[:1]}, "payload": {columns[0]: 1}}
        records.append(f"{json.dumps(key)}\t{json.dumps(value)}\n")
    return "".join(records)


def test_init_writes_the_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "recording.jsonl"
    path.write_text(
        recording(
            ("SALES", "ORDERS", ["ID", "EXTRA", "Id 2", "__N", "id"]),
            ("ARCHIVE", "ORDERS", ["ID"]),
            ("SALES", "WATERMARK", ["ID"]),
        )
    )
    done = CliRunner().invoke(cli, ["init", str(tmp_path / "project"), "--from", str(path)])
    assert done.exit_code == 0 and "Left out" not in done.output, done.output
    for said in ('"SALES"."ORDERS": orders\n', '"SALES"."ORDERS"."EXTRA": orders_extra\n', ".id: orders_id\n"):
        assert said in done.output.partition("Named otherwise in the log:\n")[2]
    ambiguous = CliRunner().invoke(cli, ["init", str(tmp_path / "p"), "--from", str(path), "--table", "ORDERS"])
    assert 'holds several tables ORDERS. It has "SALES"."ORDERS", "ARCHIVE"."ORDERS".' in str(ambiguous.exception)
    tables = declared(tmp_path / "project" / "source_schema.sql")
    assert [(t.name, t.schema, t.at("oracle"), [c.name for c in t.columns]) for t in tables.values()] == [
        ("orders", "SALES", "ORDERS", ["ID", "orders_extra", "Id 2", "orders_n", "orders_id"]),
        ("archive_orders", "ARCHIVE", "ORDERS", ["ID"]),
        ("sales_watermark", "SALES", "WATERMARK", ["ID"]),
    ]
    monkeypatch.setattr(TABLES, "_found", tables)
    assert ingest(tmp_path / "home", [str(path)]).landed == {"orders": 1, "archive_orders": 1, "sales_watermark": 1}
