"""What it costs to run a query over the rows of this moment: over the mirror of a table, and over signed rows added up.

    python bench/recomputed.py [--rows 2000000] [--changed 10000]

One thread; CPU seconds, the least of five. The plain table is what the rebuild reads.
"""

from __future__ import annotations

import argparse
import resource
from pathlib import Path
from tempfile import TemporaryDirectory

import duckdb

from lockstep.mirror import Mirror, added_up
from lockstep.schema import declared

DECLARED = "CREATE TABLE orders (id bigint PRIMARY KEY, customer bigint, region text, cents bigint);"
QUERY = "SELECT region, MEDIAN(cents), COUNT(*) FROM {} AS orders GROUP BY 1 ORDER BY 1"
COLUMNS = ("id", "region", "cents")


def measure(rows: int, changed: int) -> None:
    with TemporaryDirectory() as directory:
        path = Path(directory) / "source_schema.sql"
        path.write_text(DECLARED)
        mirror = Mirror(declared(path)["orders"])
    connection = duckdb.connect(config={"threads": 1})
    image = "{} % 1000 AS customer, (HASH({}) % 8)::TEXT AS region, (HASH({} * 7) % 100000)::BIGINT AS cents"
    connection.execute(
        f"CREATE TABLE rows AS SELECT i AS id, {image.format('i', 'i', 'i')} FROM RANGE({rows}) t(i);"
        f"CREATE TABLE latest AS SELECT DISTINCT ON (id) HASH(i)::HUGEINT % {rows} AS id, "
        f"{image.format('i', 'i + 1', '(i + 3)')}, TRUE AS __is_there FROM RANGE({changed}) t(i) ORDER BY id;"
        "ALTER TABLE latest ALTER id TYPE BIGINT;"
        "CREATE TABLE kept AS SELECT id, region, cents, 1 AS __weight FROM rows;"
        "CREATE TABLE signed AS SELECT id, region, cents, -1 AS __weight FROM rows SEMI JOIN latest USING (id) "
        "UNION ALL SELECT id, region, cents, 1 FROM latest"
    )
    relations = {
        "the plain table": "rows",
        "its mirror": f"({mirror.merged('rows', 'latest')})",
        "signed rows added up": f"({added_up(COLUMNS, 'kept', 'signed')})",
    }
    answers = {}
    for name, relation in relations.items():
        taken = []
        for _ in range(5):
            before = resource.getrusage(resource.RUSAGE_SELF)
            answers[name] = connection.execute(QUERY.format(relation)).fetchall()
            after = resource.getrusage(resource.RUSAGE_SELF)
            taken.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
        print(f"{name:22} {1000 * min(taken):8.0f} ms")
    assert answers["its mirror"] == answers["signed rows added up"] != answers["the plain table"]


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--rows", type=int, default=2_000_000)
    parser.add_argument("--changed", type=int, default=10_000)
    arguments = parser.parse_args()
    measure(arguments.rows, arguments.changed)
