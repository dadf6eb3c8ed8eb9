"""Each term of the algebra is needed: broken in turn, what a receipt compares differs on a random log."""

from __future__ import annotations

from collections.abc import Iterator

import duckdb
import pytest
from sqlglot import exp

from lockstep.derive import Derivation, SignedRows, as_core, derive
from random_log import CATALOG, TABLES, random_log

SINCE = 120  # the position of the state that increments are found over

QUERIES = {
    "left join": "SELECT o.region, SUM(s.n) AS total, COUNT(*) AS orders FROM source.orders AS o "
    "LEFT JOIN source.stops AS s ON s.id = o.id GROUP BY 1",
    "not exists": "SELECT o.region, SUM(o.amount) AS total, COUNT(o.paid_at) AS paid FROM source.orders AS o "
    "WHERE NOT EXISTS (SELECT 1 FROM source.stops AS s WHERE s.id = o.id AND s.n > 4) GROUP BY 1",
    "three tables": "SELECT p.region, SUM(p.amount * s.n) AS total, COUNT(*) AS n FROM source.orders AS o "
    "JOIN source.stops AS s ON s.region = o.region JOIN source.orders AS p ON p.region = s.region GROUP BY 1",
    "union": "SELECT region, AVG(v) AS mean FROM (SELECT region, amount AS v FROM source.orders UNION ALL "
    "SELECT region, NULLIF(n, 3) FROM source.stops) AS u GROUP BY 1",
}
ROWS = {
    "rows below a window": "SELECT o.id, s.n, RANK() OVER (PARTITION BY o.region ORDER BY s.n, o.id) AS r "
    "FROM source.orders AS o LEFT JOIN source.stops AS s ON s.id = o.id WHERE o.amount > 2",
}
ALL = QUERIES | ROWS


@pytest.fixture(scope="module")
def log() -> Iterator[duckdb.DuckDBPyConnection]:
    connection = random_log(7)
    yield connection
    connection.close()


def differs(
    log: duckdb.DuckDBPyConnection,
    query: str,
    new: exp.Query | None = None,
    *,
    finish: exp.Query | None = None,
    state_at: int = SINCE,
    is_n_tested: bool = True,
) -> bool:
    """Whether the finish over cells is another than the query at some cut, with what is given in place of what is."""
    derivation = derive(query, CATALOG)
    signed = SignedRows.of_cells(derivation.cores, CATALOG)
    stand(log, state_at, "state")
    for table in TABLES:
        log.execute(f"CREATE OR REPLACE VIEW delta.{table} AS FROM signed.{table} WHERE __position > {SINCE}")
    log.execute(
        f"CREATE OR REPLACE TEMP TABLE hours AS FROM ({signed.all().sql('duckdb')}) WHERE position <= {SINCE} "
        f"UNION ALL BY NAME FROM ({(new or signed.new()).sql('duckdb')})"
    )
    for at in range(SINCE, 241, 8):
        log.execute(f"SET VARIABLE now_at = {at}")
        fold(log, derivation, signed, at, is_n_tested)
        found = log.execute(f"SELECT * FROM ({(finish or derivation.finish).sql('duckdb')}) ORDER BY ALL").fetchall()
        if found != log.execute(f"SELECT * FROM ({query}) ORDER BY ALL").fetchall():
            return True
    return False


def stand(log: duckdb.DuckDBPyConnection, position: int, schema: str) -> None:
    """Make the rows as of a position those of a schema."""
    log.execute(f"SET VARIABLE now_at = {position}")
    for table in TABLES:
        rows = "0::BIGINT AS __position, TIMESTAMP '0001-01-01' AS __logged_at, 1 AS __weight, *"
        log.execute(f"CREATE OR REPLACE TABLE {schema}.{table} AS SELECT {rows} FROM source.{table}")


def fold(
    log: duckdb.DuckDBPyConnection, derivation: Derivation, signed: SignedRows, at: int, is_n_tested: bool
) -> None:
    keys = [name for name, kind in signed.columns.items() if kind is None]
    sums = [f"COALESCE(SUM({m}), 0)::{kind} AS {m}" for m, kind in signed.columns.items() if kind is not None]
    log.execute(
        f"CREATE OR REPLACE TEMP TABLE cells AS SELECT {', '.join([*keys, *sums])} FROM hours WHERE position <= {at} "
        f"GROUP BY {', '.join(keys)}" + (" HAVING SUM(__n) <> 0" if is_n_tested else "")
    )
    for number, core in enumerate(derivation.cores):
        of_core = as_core(core, number, exp.to_table("cells")).sql("duckdb")
        log.execute(f"CREATE OR REPLACE TEMP TABLE {core.name} AS {of_core}")


def terms(new: exp.Query) -> list[exp.Select]:
    """The SELECTs that the signed rows since an instant are a UNION ALL of."""
    found = [new.find(exp.Subquery).this]
    while isinstance(found[0], exp.Union):
        found[:1] = [found[0].left, found[0].right]
    return found


def weight_of(term: exp.Select) -> exp.Expr:
    return next(column for column in term.selects if column.alias == "__weight")


def broken(query: str) -> Iterator[tuple[str, exp.Query]]:
    """The signed rows since an instant with one term less or wrong, for each of them and each of the ways."""
    written = SignedRows.of_cells(derive(query, CATALOG).cores, CATALOG).new()
    for number in range(len(terms(written))):

        def copied(number: int = number) -> tuple[exp.Query, exp.Select]:
            new = written.copy()
            return new, terms(new)[number]

        new, term = copied()
        term.where("FALSE", copy=False)
        yield f"term {number} is missing", new
        new, term = copied()
        weight_of(term).this.replace(exp.Neg(this=exp.paren(weight_of(term).this.copy())))
        yield f"term {number} has the other sign", new
        for place, relation in enumerate([part.this for part in term.find_all(exp.Subquery)]):
            new, term = copied()
            found = list(term.find_all(exp.Subquery))[place].this
            if isinstance(relation, exp.Union):
                found.replace(found.left.copy())
                yield f"term {number} has the old rows of its table {place} for the new", new
            elif relation.find(exp.Table).db == "state":
                changes = found.copy()
                changes.find(exp.Table).set("db", exp.to_identifier("delta"))
                found.replace(exp.union(found.copy(), changes, distinct=False))
                yield f"term {number} has the new rows of its table {place} for the old", new


@pytest.mark.parametrize("query", ALL.values(), ids=ALL.keys())
def test_nothing_differs_while_nothing_is_broken(log: duckdb.DuckDBPyConnection, query: str) -> None:
    assert not differs(log, query)


@pytest.mark.parametrize("query", ALL.values(), ids=ALL.keys())
def test_each_term_is_needed(log: duckdb.DuckDBPyConnection, query: str) -> None:
    tried = [(what, new) for what, new in broken(query)]
    assert len(tried) >= 4
    assert [what for what, new in tried if not differs(log, query, new)] == []


@pytest.mark.parametrize("query", QUERIES.values(), ids=QUERIES.keys())
def test_cells_without_rows_must_go(log: duckdb.DuckDBPyConnection, query: str) -> None:
    finish = derive(query, CATALOG).finish.transform(
        lambda node: exp.true() if isinstance(node, exp.NEQ) and node.sql().endswith(".__n <> 0") else node
    )
    assert not differs(log, query, is_n_tested=False)  # the finish tests it too
    assert not differs(log, query, finish=finish)
    assert differs(log, query, finish=finish, is_n_tested=False)


@pytest.mark.parametrize("query", [QUERIES["left join"], QUERIES["union"]])
def test_what_is_not_null_must_be_counted(log: duckdb.DuckDBPyConnection, query: str) -> None:
    new = SignedRows.of_cells(derive(query, CATALOG).cores, CATALOG).new()
    for term in terms(new):
        for column in term.selects:
            if column.alias.startswith("__m"):
                column.this.replace(exp.convert(1))
    assert differs(log, query, new)


@pytest.mark.parametrize("name", ["left join", "not exists", "three tables"])
def test_the_state_must_be_that_of_the_instant(log: duckdb.DuckDBPyConnection, name: str) -> None:
    """A checkpoint of the next day would have the day's changes twice."""
    assert differs(log, QUERIES[name], state_at=SINCE + 24)
    assert differs(log, QUERIES[name], state_at=SINCE - 24)
