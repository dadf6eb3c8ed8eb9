"""The 22 queries of TPC-H, derived and recomputed unchanged: at each cut of a log equal to the queries as written.

The log has the refresh functions RF1 and RF2, updates of what queries join on, group by and add up, and changed keys.
Its rows as of each cut are what plain DuckDB says after the same statements. The answer to each query changes between
cuts.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import duckdb
import pytest
from sqlglot import exp, parse_one

from lockstep.contracts import Contract
from lockstep.derive import Catalog, SignedRows, Table, as_core, derive
from lockstep.derive.repeatable import require_repeatable
from lockstep.mirror import Mirror
from lockstep.recomputed import Recomputed, recomputed_of
from lockstep.schema import TABLES, declared
from lockstep.serve import extension

KEYS = {
    "customer": ("c_custkey",),
    "lineitem": ("l_orderkey", "l_linenumber"),
    "nation": ("n_nationkey",),
    "orders": ("o_orderkey",),
    "part": ("p_partkey",),
    "partsupp": ("ps_partkey", "ps_suppkey"),
    "region": ("r_regionkey",),
    "supplier": ("s_suppkey",),
}
HOURS = (1, 2, 3)  # 0 is the snapshot
STEPS = 2  # transactions in an hour: a row may change more than once in it
N = len(HOURS) * STEPS
CARRIED = "0::BIGINT AS __position, TIMESTAMP '0001-01-01' AS __logged_at, 1::TINYINT AS __weight"

# What transaction {i} of {n} does. Orders whose key leaves 7 when divided by 32 come, those that leave 1 go.
STATEMENTS = """
INSERT INTO orders FROM new_orders WHERE o_custkey % {n} = {i};
INSERT INTO lineitem SELECT l.* FROM new_lineitem AS l
  JOIN new_orders ON l_orderkey = o_orderkey WHERE o_custkey % {n} = {i};
DELETE FROM lineitem WHERE l_orderkey % 32 = 1 AND l_orderkey % {n} = {i};
DELETE FROM orders WHERE o_orderkey % 32 = 1 AND o_orderkey % {n} = {i};
UPDATE lineitem SET l_discount = 0.10 - l_discount, l_receiptdate = l_receiptdate + 30 WHERE l_partkey % 16 = {i};
UPDATE lineitem SET l_orderkey = -l_orderkey WHERE l_orderkey % 128 = 3 AND l_orderkey % {n} = ({i} + 1) % {n};
UPDATE orders SET o_orderkey = -o_orderkey WHERE o_orderkey % 128 = 3 AND o_orderkey % {n} = {i};
UPDATE orders SET o_custkey = o_custkey + 1, o_totalprice = o_totalprice * 2 WHERE o_orderkey % 40 = {i};
UPDATE customer SET c_nationkey = (c_nationkey + 7) % 25, c_acctbal = -c_acctbal WHERE c_custkey % 30 = {i};
UPDATE customer SET c_custkey = c_custkey + 1000000 WHERE c_custkey % 90 = {i};
UPDATE partsupp SET ps_supplycost = ps_supplycost * 1.01, ps_availqty = ps_availqty + 1 WHERE ps_partkey % 20 < {i};
UPDATE supplier SET s_nationkey = (s_nationkey + {i}) % 25 WHERE s_suppkey % 10 = {i};
UPDATE part SET p_type = 'PROMO ' || p_type, p_size = 50 - p_size WHERE p_partkey % 25 = {i};
UPDATE part SET p_brand = 'Brand#23', p_container = 'MED BOX', p_type = 'ECONOMY ANODIZED STEEL'
  WHERE p_partkey % 40 = {i} + 10;
DELETE FROM supplier WHERE s_suppkey % 50 = {i};
"""


@pytest.fixture(scope="module")
def tpch() -> Iterator[tuple[duckdb.DuckDBPyConnection, Catalog]]:
    """`at_<hour>` has the rows after an hour, and `signed` those of all changes, at the snapshot and in each hour."""
    connection = duckdb.connect(":memory:")
    connection.execute(f"LOAD '{extension('tpch')}'")
    connection.execute("CALL dbgen(sf = 0.01)")
    for schema in ("before", "at_0", *(f"at_{hour}" for hour in HOURS), "signed", "state", "delta"):
        connection.execute(f"CREATE SCHEMA {schema}")
    catalog = {}
    for table in KEYS:
        columns = {row[0]: row[1] for row in connection.execute(f"DESCRIBE {table}").fetchall()}
        catalog[f"source.{table}"] = Table(columns, KEYS[table], frozenset(columns))
        connection.execute(f"CREATE TABLE before.{table} AS FROM {table} WHERE FALSE")
        connection.execute(f"CREATE TABLE signed.{table} AS SELECT {CARRIED}, * FROM before.{table}")
    for table, key in (("orders", "o_orderkey"), ("lineitem", "l_orderkey")):
        connection.execute(f"CREATE TABLE new_{table} AS FROM {table} WHERE {key} % 32 = 7")
        connection.execute(f"DELETE FROM {table} WHERE {key} % 32 = 7")
    land(connection, 0, 0)
    for i in range(N):
        connection.execute(STATEMENTS.format(n=N, i=i))
        land(connection, HOURS[i // STEPS], i + 1)
    yield connection, catalog
    connection.close()


def land(connection: duckdb.DuckDBPyConnection, hour: int, position: int) -> None:
    """Signed rows of all that has changed since the transaction before; the rows as of the hour."""
    for table in KEYS:
        for weight, (one, other) in ((-1, ("before", "main")), (1, ("main", "before"))):
            connection.execute(
                f"INSERT INTO signed.{table} SELECT {position}, TIMESTAMP '2026-01-01' + TO_HOURS({hour}), {weight}, * "
                f"FROM (FROM {one}.{table} EXCEPT ALL FROM {other}.{table})"
            )
        for schema in ("before", f"at_{hour}"):
            connection.execute(f"CREATE OR REPLACE TABLE {schema}.{table} AS FROM main.{table}")


def since(connection: duckdb.DuckDBPyConnection, hour: int, until: int) -> None:
    """Make `state` the rows after an hour, and `delta` what changed from then to another; -1: before the snapshot."""
    rows = f"at_{hour}" if hour >= 0 else "before"
    for table in KEYS:
        connection.execute(
            f"CREATE OR REPLACE VIEW state.{table} AS SELECT {CARRIED}, * FROM {rows}.{table} WHERE {hour >= 0}"
        )
        ends = [f"TIMESTAMP '2026-01-01' + TO_HOURS({end})" for end in (hour, until)]
        connection.execute(
            f"CREATE OR REPLACE VIEW delta.{table} AS FROM signed.{table} "
            f"WHERE __logged_at > {ends[0]} AND __logged_at <= {ends[1]}"
        )


def written(connection: duckdb.DuckDBPyConnection, number: int) -> str:
    [(query,)] = connection.execute("SELECT query FROM tpch_queries() WHERE query_nr = ?", [number]).fetchall()
    return str(query)


def over_source(query: str, catalog: Catalog) -> exp.Expr:
    tree = parse_one(query, dialect="duckdb")
    for table in list(tree.find_all(exp.Table)):
        if f"source.{table.name}" in catalog and not table.db:
            table.replace(exp.alias_(exp.to_table(f"source.{table.name}"), table.alias_or_name, table=True))
    return tree


@pytest.mark.parametrize("number", range(1, 23))
def test_a_query_of_tpch_at_each_cut(tpch: tuple[duckdb.DuckDBPyConnection, Catalog], number: int) -> None:
    """Hour by hour and in one statement, as the models have it: the signed rows of all cores in one relation."""
    connection, catalog = tpch
    query = written(connection, number)
    derivation = derive(over_source(query, catalog), catalog)
    signed = SignedRows.of_cells(derivation.cores, catalog)
    columns = signed.columns
    keys = [name for name, kind in columns.items() if kind is None]
    sums = [f"COALESCE(SUM({m}), 0)::{kind} AS {m}" for m, kind in columns.items() if kind is not None]
    new = signed.new().sql("duckdb")

    def fold(name: str, hour: int, until: int) -> None:
        since(connection, hour, until)
        cells = f"SELECT logged_at AS hour, {', '.join([*keys, *sums])} FROM ({new}) GROUP BY ALL"
        connection.execute(
            f"CREATE OR REPLACE TEMP TABLE {name} AS {cells}" if hour < 0 else f"INSERT INTO {name} BY NAME {cells}"
        )

    fold("hourly", -1, 0)
    connection.execute("CREATE OR REPLACE TEMP TABLE at_once AS FROM hourly")
    for hour in HOURS:
        fold("hourly", hour - 1, hour)
    fold("at_once", 0, HOURS[-1])
    answers = []
    for hour in (0, *HOURS):
        connection.execute(f"USE at_{hour}")
        try:
            expected = sorted(connection.execute(query).fetchall(), key=repr)
        finally:
            connection.execute("USE main")
        answers.append(expected)
        for folded in ("hourly", "at_once"):
            connection.execute(
                f"CREATE OR REPLACE TEMP TABLE cells AS SELECT {', '.join([*keys, *sums])} FROM {folded} WHERE hour "
                f"<= TIMESTAMP '2026-01-01' + TO_HOURS({hour}) GROUP BY {', '.join(keys)} HAVING SUM(__n) <> 0"
            )
            for n, core in enumerate(derivation.cores):
                of_core = as_core(core, n, exp.to_table("cells")).sql("duckdb")
                connection.execute(f"CREATE OR REPLACE TEMP TABLE {core.name} AS {of_core}")
            found = connection.execute(derivation.finish.sql("duckdb")).fetchall()
            assert sorted(found, key=repr) == expected, (folded, hour)
    assert any(expected != answers[0] for expected in answers), "the log changes nothing that the query sees"


CHECKPOINTS = {table: (0, 1 + number % 2) for number, table in enumerate(KEYS)}  # the hours after which there is one
PUBLISHED = 1  # the hour up to which the published rows are folded


def end(hour: int) -> str:
    """The cut after an hour: the first instant that is not in it."""
    return f"TIMESTAMP '2026-01-01' + TO_HOURS({hour + 1})"


@pytest.fixture(scope="module")
def project(tpch: tuple[duckdb.DuckDBPyConnection, Catalog], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project in which each query is a fact. The connection gets what their SQL reads beside `signed`.

    `published` has the mirrors as of the last hour.
    """
    connection, catalog = tpch
    project = tmp_path_factory.mktemp("tpch")
    for file in ("config.yaml", "seeds/contracts.csv", "models/rebuild/q1.sql"):
        (project / file).parent.mkdir(parents=True, exist_ok=True)
        (project / file).touch()
    for number in range(1, 23):
        query = over_source(written(connection, number), catalog).sql("duckdb")
        model = f"MODEL (name rebuild.q{number}, kind FULL);\n{query}\n"
        (project / f"models/rebuild/q{number}.sql").write_text(model)
    tables = []
    for name, key in KEYS.items():
        columns = [f"{column} {kind} NOT NULL" for column, kind in catalog[f"source.{name}"].columns.items()]
        tables.append(f"CREATE TABLE {name} ({', '.join(columns)}, PRIMARY KEY ({', '.join(key)}));\n")
    (project / "source_schema.sql").write_text("".join(tables))
    for schema in ("changes", "checkpoints", "ops", "published", "rebuild"):
        connection.execute(f"CREATE SCHEMA {schema}")
    keep_checkpoints(connection)
    connection.execute(f"CREATE TABLE rebuild.cut AS SELECT 'q' || i AS domain, {end(0)} AS cut FROM RANGE(1, 23) t(i)")
    connection.execute("CREATE TABLE changes.watermark (source_table TEXT, readable_position BIGINT)")
    connection.executemany("INSERT INTO changes.watermark VALUES (?, 0)", [[name] for name in KEYS])
    for table in declared(project / "source_schema.sql").values():
        publish(connection, Mirror(table))
    return project


def keep_checkpoints(connection: duckdb.DuckDBPyConnection) -> None:
    connection.execute(
        "CREATE TABLE ops.checkpoints (source_table TEXT, cut TIMESTAMP, partition TEXT, position BIGINT)"
    )
    for table, hours in CHECKPOINTS.items():
        rows = (f"SELECT *, '{hour}' AS __cut FROM at_{hour}.{table}" for hour in hours)
        connection.execute(f"CREATE TABLE checkpoints.{table} AS {' UNION ALL '.join(rows)}")
        for hour in hours:
            connection.execute(f"INSERT INTO ops.checkpoints VALUES (?, {end(hour)}, {hour}, {hour * STEPS})", [table])


def publish(connection: duckdb.DuckDBPyConnection, mirror: Mirror) -> None:
    """The latest images are in a CTE, as in a published file: DuckDB 1.5.5 cannot bind query 22 if they are not."""
    name, keys = mirror.table.name, ", ".join(mirror.table.key)
    before, after = (f"(FROM signed.{name} WHERE __weight = {weight} AND __position > 0)" for weight in (-1, 1))
    connection.execute(
        f"CREATE TABLE changes.{name} AS SELECT __position AS position, before, after FROM {before} AS before "
        f"FULL JOIN {after} AS after USING (__position, {keys})"
    )
    folded, tail = (
        f"WITH latest AS ({mirror.latest(f'SELECT * FROM changes.{name} WHERE position {hours} {PUBLISHED * STEPS}')})"
        for hours in ("<=", ">")
    )
    rows = mirror.merged(f"({mirror.rows(f'at_0.{name}')})", "latest")
    connection.execute(f"CREATE TABLE published.folded_{name} AS {folded} {rows}")
    connection.execute(f"CREATE VIEW published.{name} AS {tail} {mirror.merged(f'published.folded_{name}', 'latest')}")


def recomputed(number: int) -> Recomputed:
    """The fact as its models have it. Of a contract only the domain and the tables matter here."""
    return recomputed_of(
        Contract(
            domain=f"q{number}",
            owner="sales",
            mode="live",
            horizon_minutes=60,
            freshness_seconds=60,
            shadow_days=3,
            passes_to_return=2,
            receipt_hours=50,
            on_bad_event="hold",
            source_table="lineitem",
            source_key=KEYS["lineitem"],
            sources=tuple(KEYS),
            reads=(),
            grain=(),
            all_measures=(),
        )
    )


def answer(
    connection: duckdb.DuckDBPyConnection, query: str, order: list[str], hour: int, schema: str = "main"
) -> tuple[list[Any], Counter[str]]:
    """What a query after an hour is ordered by, in its order; and its rows, however they are ordered."""
    connection.execute(f"UPDATE rebuild.cut SET cut = {end(hour)}")
    connection.execute(f"UPDATE changes.watermark SET readable_position = {hour * STEPS}")
    connection.execute(f"USE {schema}")
    try:
        found = connection.execute(query)
        names = [name for name, *_ in found.description or ()]
        rows = found.fetchall()
    finally:
        connection.execute("USE main")
    return [[row[names.index(name)] for name in order] for row in rows], Counter(map(repr, rows))


@pytest.mark.parametrize("number", range(1, 23))
def test_a_query_of_tpch_recomputed_at_each_cut(
    tpch: tuple[duckdb.DuckDBPyConnection, Catalog], project: Path, number: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Over the rows that the receipt adds up, over those of this moment, and at the last cut over the published ones.

    Rows are those of a table's newest checkpoint and the changes since. The receipt of a cut takes an earlier one; at
    the first cut there is none, and it adds up all changes.
    """
    connection, catalog = tpch
    query = written(connection, number)
    monkeypatch.setattr(TABLES, "_found", declared(project / "source_schema.sql"))  # those from before come back
    monkeypatch.chdir(project)
    fact = recomputed(number)
    require_repeatable(fact.query, catalog)
    ordered = fact.query.args.get("order")
    order = [by.this.name for by in ordered.expressions] if ordered else []
    expected = {hour: answer(connection, query, order, hour, f"at_{hour}") for hour in (0, *HOURS)}
    assert any(expected[hour] != expected[0] for hour in HOURS), "the log changes nothing that the query sees"
    published = {name: f"SELECT {', '.join(columns)} FROM published.{name}" for name, columns in fact.columns.items()}
    for way, sql, rows, hours in (
        ("receipt", fact.at_cut(), {}, (0, *HOURS)),
        ("live", fact.now(), fact.rows_now(), (0, *HOURS)),
        ("published", fact.now(), published, HOURS[-1:]),
    ):
        for table, of_table in rows.items():
            connection.execute(f"CREATE OR REPLACE VIEW state.q{number}__{table} AS {of_table}")
        for hour in hours:
            assert answer(connection, sql, order, hour) == expected[hour], (way, hour)
