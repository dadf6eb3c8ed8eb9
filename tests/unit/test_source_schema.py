"""`source_schema.sql`: everything that is wrong with it is said at once, each problem with its way out.

Awkward cases: a statement that is not SQL between others, two problems in one table, a key added to a table that is not
declared, a dump's other statements.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from debezium_events import deliver, event
from lockstep.changelog import ChangeLog
from lockstep.errors import LockstepError
from lockstep.schema import TABLES, declared

STRANGERS = """
SET client_encoding = 'UTF8';
CREATE TYPE mood AS ENUM ('sad', 'ok');
CREATE TABLE public.film (
    film_id integer NOT NULL,
    extra text,
    Title text,
    "title" text
);
CREATE TABLE public."Actor" (actor_id integer PRIMARY KEY);
CREATE TABLE public.broken (
    id bigint PRIMARY KEY,
    shape int int int
);
CREATE TABLE public.store (store_id integer PRIMARY KEY);
CREATE TABLE other.store (store_id integer PRIMARY KEY);
ALTER TABLE ONLY public.elsewhere ADD CONSTRAINT e PRIMARY KEY (id);
"""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "source_schema.sql"


def said(path: Path, text: str) -> list[str]:
    path.write_text(text)
    with pytest.raises(LockstepError) as refused:
        declared(path)
    return str(refused.value).splitlines()


def test_all_problems_are_said_at_once(path: Path) -> None:
    first, *problems = said(path, STRANGERS)
    assert first == f"{path} cannot be used as it is, for 5 reasons:"
    for problem, (what, way_out) in zip(
        problems,
        [
            ("line 13: a statement is not SQL that can be read: Expecting ) at 'int'", "Correct it"),
            ("tables public.store and other.store would both be named store in the log", "`-- named other_store`"),
            ("table film has a column extra", "`-- named film_extra`; or leave it out of the file"),
            ("table film has the columns Title and title", "Name title otherwise"),
            ("table film has no PRIMARY KEY", "Declare one"),
        ],
        strict=True,
    ):
        assert str(path) in problem and what in problem and way_out in problem


def test_each_column_without_a_type_is_named(path: Path) -> None:
    _, *problems = said(path, "CREATE TABLE a (a_id int PRIMARY KEY, b, c);")
    assert len(problems) == 2
    assert "column b of a is without a type" in problems[0] and "column c of a is without a type" in problems[1]


def test_one_problem_is_one_sentence(path: Path) -> None:
    [problem] = said(path, "CREATE TABLE a (a_id int);")
    assert problem.startswith(f"{path}: table a has no PRIMARY KEY")


def test_a_key_of_a_table_that_is_not_declared_is_passed_over(path: Path) -> None:
    path.write_text(
        "CREATE TABLE a (a_id int PRIMARY KEY); ALTER TABLE ONLY public.b ADD CONSTRAINT b PRIMARY KEY (id);"
    )
    assert list(declared(path)) == ["a"]


@pytest.mark.parametrize(
    "ddl",
    [
        "-- append-only\nCREATE TABLE history (delta int);",
        "CREATE TABLE first (id int PRIMARY KEY); -- the first\n-- append-only\nCREATE TABLE history (delta int)",
        "CREATE TABLE history ( -- append-only\n  delta int\n);",
        "/* append-only */ CREATE TABLE history (delta int);",
    ],
)
def test_an_append_only_table_needs_no_key(path: Path, ddl: str) -> None:
    path.write_text(ddl)
    declared.cache_clear()
    table = declared(path)["history"]
    assert table.is_append_only and table.key == () and table.sql_key == ('"delta"',)


@pytest.mark.parametrize(
    "ddl",
    [
        "CREATE TABLE history (delta int); -- append-only",
        "CREATE TABLE history (delta int -- append-only\n);",
        "-- append-only, I think\nCREATE TABLE history (delta int);",
    ],
)
def test_a_comment_elsewhere_declares_nothing(path: Path, ddl: str) -> None:
    [problem] = said(path, ddl)
    assert "say so with the line `-- append-only` before its CREATE TABLE" in problem


def test_comments_say_what_is_not_shown_where_rows_are_published(path: Path) -> None:
    path.write_text(
        "CREATE TABLE people (\n  id int PRIMARY KEY,\n  email text, -- personal data\n"
        '  "Full Name" text, /* named full_name */ -- personal: what they are called\n  city text -- not personal\n);\n'
        "-- not mirrored\nCREATE TABLE notes (id int PRIMARY KEY);\n"
        "-- append-only\nCREATE TABLE visits (id int PRIMARY KEY);"
    )
    declared.cache_clear()
    tables = declared(path)
    assert {name: table.is_mirrored for name, table in tables.items()} == {
        "people": True,
        "notes": False,
        "visits": False,
    }
    assert [c.name for c in tables["people"].columns if c.is_personal] == ["email", "full_name"]


def test_events_of_a_table_without_a_key_are_quarantined(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path.write_text("-- append-only\nCREATE TABLE orders (order_id int, region text);")
    declared.cache_clear()
    monkeypatch.setattr(TABLES, "_found", declared(path))
    home = path.parent / "home"
    row = {"order_id": 1, "region": "north"}
    summary = deliver(home, event("r", None, row), event("c", None, row, n=2), event("u", row, row, n=3))
    assert (summary.landed, summary.quarantined) == ({}, 3)
    for e, said in zip(
        ChangeLog(home).quarantined(),
        ("snapshot.mode=no_data", "provide.transaction", "changed or deleted"),
        strict=True,
    ):
        assert said in e["reason"]
