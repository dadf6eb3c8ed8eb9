"""The catalogue's pages show names and texts as they are, whatever these are, and leave files of others alone."""

from __future__ import annotations

from datetime import datetime
from html.parser import HTMLParser
from pathlib import Path

import pytest

from lockstep.catalogue.columns import Lineage, reads_of
from lockstep.catalogue.drawing import draw
from lockstep.catalogue.gathering import Catalogue, ColumnOf, Model
from lockstep.catalogue.sample_queries import queries_of
from lockstep.catalogue.writing import page_of, pages_of, written
from lockstep.errors import LockstepError

NASTY = """<script>alert("1")</script> & 'x' </svg> {{ 7 * 7 }}"""


def catalogue(*names: str, text: str = "What it is.") -> Catalogue:
    models = []
    for name in names:
        lineage = Lineage({(name, text): [("source.a", text)]})
        columns = [ColumnOf(text, text, text, True, [("source.a", text)], [("source.a", text)])]
        drawing = draw(name, [text], ["source.a"], [], lineage)
        queries = queries_of("mart.a", {text: "TEXT"}, [text], [])
        schema = name.split(".")[0]
        shown = (
            name,
            schema,
            text,
            text,
            [text],
            "view",
            "@daily",
            text,
            columns,
            ["source.a"],
            [],
            [],
            drawing,
            queries,
        )
        models.append(Model(*shown))
    return Catalogue(text, datetime(2026, 11, 18), models, [], None)


class Page(HTMLParser):
    """A page as a browser reads it: its text beside styles and scripts, its elements, and what its links name."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.shown, self.tags, self.links, self.titles = "", [], [], []
        self.within = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.within = tag
        self.links += [value or "" for name, value in attrs if name in ("href", "src", "srcset", "action")]

    def handle_endtag(self, tag: str) -> None:
        self.within = ""

    def handle_data(self, data: str) -> None:
        if self.within not in ("script", "style"):
            self.shown += data


@pytest.mark.parametrize("page", ["index.html", "mart.a.html"])
def test_pages_show_texts_as_they_are(page: str) -> None:
    plain, nasty = (Page(pages_of(catalogue("mart.a", text=t))[page]) for t in ("What it is, at length enough.", NASTY))
    assert nasty.tags == plain.tags  # a text adds no element
    assert NASTY in nasty.shown
    assert nasty.tags.count("script") == 1


def test_pages_need_nothing_but_themselves() -> None:
    for text in pages_of(catalogue("mart.a", "odd.A b/c")).values():
        assert {"link", "img", "iframe"}.isdisjoint(Page(text).tags)
        assert all(":" not in link and not link.startswith("/") for link in Page(text).links)
        assert "@import" not in text and "url(" not in text and "http" not in text


def test_names_that_differ_have_pages_that_differ() -> None:
    names = ["mart.a b", "mart.a_b", "mart.A_b", "mart.a/b", 'mart."a"', "mart.é"]
    pages = {page_of(name) for name in names}
    assert len({page.lower() for page in pages}) == len(names)
    assert all(page.isascii() and "/" not in page and '"' not in page for page in pages)


def test_pages_of_models_that_are_gone_are_deleted_and_no_others(tmp_path: Path) -> None:
    written(catalogue("mart.a", "mart.b"), tmp_path / "out")
    (tmp_path / "out" / "mine.html").write_text("<!doctype html> mine")
    written(catalogue("mart.a"), tmp_path / "out")
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"index.html", "mart.a.html", "mine.html"}


def test_an_index_that_is_not_a_catalogues_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "index.html").write_text("<!doctype html> mine")
    with pytest.raises(LockstepError, match="choose another --out"):
        written(catalogue("mart.a"), tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["index.html"]
    assert (tmp_path / "index.html").read_text() == "<!doctype html> mine"


@pytest.mark.parametrize(
    ("query", "column", "expected"),
    [
        ("SELECT x.a + x.b AS c FROM s.x JOIN s.y ON x.k = y.k WHERE y.b > 0", "c", {"x.a", "x.b"}),
        ("WITH one AS (SELECT a, b AS swapped FROM s.x) SELECT swapped AS c FROM one", "c", {"x.b"}),
        ("SELECT a AS c FROM s.x UNION ALL SELECT k FROM s.y", "c", {"x.a", "y.k"}),
        ("SELECT x.a, (SELECT MAX(y.b) FROM s.y WHERE y.k = x.k) AS c FROM s.x", "c", {"y.b"}),
        ("SELECT SUM(x.a) FILTER(WHERE x.b > 0) OVER (PARTITION BY x.k) AS c FROM s.x", "c", {"x.a", "x.b", "x.k"}),
        ("SELECT COUNT(*) AS c FROM s.x", "c", set()),
        ("SELECT UNNEST([o.a]) AS c FROM (SELECT * FROM s.x) AS o", "c", {"x.a"}),
        ('SELECT "odd name" AS c FROM s.z', "c", {"z.odd name"}),
    ],
)
def test_a_column_is_computed_from(query: str, column: str, expected: set[str]) -> None:
    from sqlglot import parse_one

    columns = {"x": ["k", "a", "b"], "y": ["k", "b"], "z": ["odd name"]}
    schema = {"s": {table: dict.fromkeys(names, "BIGINT") for table, names in columns.items()}}
    found = reads_of(parse_one(query, dialect="duckdb"), schema)[column]
    assert found == {(f"s.{text.split('.')[0]}", text.split(".")[1]) for text in expected}
