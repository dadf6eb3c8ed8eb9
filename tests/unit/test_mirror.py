"""The rows of a source table as a published file shows them: any changes, in any pieces, come to the rows they leave.

Compared with a Python dictionary. The columns have the names of a change's own, the key is of two columns, one of them
personal; keys are deleted, and come back.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from pathlib import Path
from typing import Any

import duckdb
from hypothesis import given, settings
from hypothesis import strategies as st

from lockstep.mirror import Mirror, added_up
from lockstep.schema import Table, declared

DECLARED = """
CREATE TABLE people (
  email     text,           -- personal data
  "before"  int,
  position  int,
  "after"   text,           -- personal: a note
  PRIMARY KEY (email, "before")
);
"""
Row = dict[str, Any]

keys = st.tuples(st.sampled_from(["a@b", "c@d"]), st.integers(1, 3))
steps = st.lists(st.tuples(keys, st.one_of(st.none(), st.integers(0, 9))), max_size=25)


def people(directory: Path) -> Table:
    path = directory / "source_schema.sql"
    path.write_text(DECLARED)
    return declared(path)["people"]


def changes_of(done: list[tuple[tuple[str, int], int | None]]) -> tuple[list[Row], list[dict[tuple[str, int], int]]]:
    """The changes as the log has them, and the rows after each."""
    rows: dict[tuple[str, int], int] = {}
    changes, states = list[Row](), list[dict[tuple[str, int], int]]()
    for key, value in done:
        before = image(key, rows[key]) if key in rows else None
        if value is None:
            rows.pop(key, None)
        else:
            rows[key] = value
        after = None if value is None else image(key, value)
        if before or after:
            changes.append({"position": len(changes) + 1, "before": before, "after": after})
            states.append(dict(rows))
    return changes, states


def image(key: tuple[str, int], value: int) -> Row:
    return {"email": key[0], "before": key[1], "position": value, "after": "secret"}


def shown(rows: dict[tuple[str, int], int]) -> list[tuple[str, int, int]]:
    return sorted((hashlib.md5(email.encode()).hexdigest(), n, value) for (email, n), value in rows.items())


def relation(changes: list[Row]) -> str:
    kind = 'STRUCT("email" TEXT, "before" INT, "position" INT, "after" TEXT)'
    typed = f"position::BIGINT AS position, before::{kind} AS before, after::{kind} AS after"
    rows = json.dumps(changes).replace("'", "''")
    each = "STRUCT(position BIGINT, before JSON, after JSON)[]"
    return f"SELECT {typed} FROM (SELECT UNNEST('{rows}'::JSON::{each}, recursive := TRUE))"


@settings(max_examples=60)
@given(done=steps, at=st.integers(0, 25), published=st.integers(0, 25))
def test_rows_at_a_cut_and_the_changes_since_are_the_rows(
    tmp_path_factory: Any, done: list[tuple[tuple[str, int], int | None]], at: int, published: int
) -> None:
    mirror = Mirror(people(tmp_path_factory.mktemp("declared")))
    assert [c.name for c in mirror.columns] == ["email", "before", "position"]
    changes, states = changes_of(done)
    first, second = sorted((min(at, len(changes)), min(published, len(changes))))
    with duckdb.connect() as connection:
        connection.execute("SET TimeZone = 'UTC'")
        of_people = 'email TEXT, "before" INT, position INT, "after" TEXT'
        connection.execute(f"CREATE TABLE checkpoint ({of_people})")
        state = states[first - 1] if first else {}
        for key, value in state.items():
            connection.execute("INSERT INTO checkpoint VALUES (?, ?, ?, 'secret')", [*key, value])
        connection.execute(f"CREATE TABLE moved AS {mirror.latest(relation(changes[first:second]))}")
        rows = mirror.rows("checkpoint")
        connection.execute(f"CREATE TABLE anew AS {mirror.merged(f'({rows})', 'moved')}")
        connection.execute(f"CREATE TABLE grown AS {rows}")
        for statement in mirror.applied("grown", "moved"):
            connection.execute(statement)
        connection.execute(f"CREATE TABLE latest AS {mirror.latest(relation(changes[second:]))}")
        for table in ("anew", "grown"):
            at_the_cut = connection.execute(f"SELECT * FROM {table} ORDER BY ALL").fetchall()
            assert at_the_cut == shown(states[second - 1] if second else {})
            now = connection.execute(f"SELECT * FROM ({mirror.merged(table, 'latest')}) ORDER BY ALL").fetchall()
            assert now == shown(states[-1] if states else {})


bags = st.lists(st.tuples(st.one_of(st.none(), st.integers(0, 2)), st.sampled_from(["a", "b", None])), max_size=12)


@settings(max_examples=60)
@given(before=bags, gone=st.sets(st.integers(0, 11)), came=bags, passed=bags)
def test_signed_rows_add_up_to_the_rows_that_are_there(before, gone, came, passed):
    """Equal rows are there as often as they were, less those that went, and those that came; some came and went."""
    went = [row for number, row in enumerate(before) if number in gone]
    after = [row for number, row in enumerate(before) if number not in gone] + came
    signed = [(*row, 1) for row in came + passed] + [(*row, -1) for row in went + passed]
    with duckdb.connect() as connection:
        for name in ("kept", "signed"):
            connection.execute(f'CREATE TABLE {name} ("order" INT, region TEXT, __weight BIGINT)')
        kept = [(*row, copies) for row, copies in Counter(before).items()]
        for name, rows in (("kept", kept), ("signed", signed)):
            for row in rows:
                connection.execute(f"INSERT INTO {name} VALUES (?, ?, ?)", row)
        found = connection.execute(added_up(["order", "region"], "kept", "signed")).fetchall()
    assert Counter(found) == Counter(after)
