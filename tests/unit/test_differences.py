"""What a resync lands: after it the log's latest images and its signed images are the source's, whatever the log lacks.

Logs are drawn without any order in them (a before image is any image), so they have every kind of damage: changes that
were lost, doubled, altered, swapped. What the source has, and what happens to it until the resync lands, is drawn too.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lockstep import buckets
from lockstep.kinds import TEXT
from lockstep.latest import differences
from lockstep.schema import TABLES, declared, log_schema

pytestmark = pytest.mark.generated

KEYS = (1, 2, 3)
Image = tuple[int, float | None] | None  # key and value
Change = tuple[Image, Image]


@pytest.fixture(scope="module", autouse=True)
def tables(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Tables with a key that is called as the log's own columns are, and without a key; of integers and of floats."""
    path = tmp_path_factory.mktemp("declared") / "source_schema.sql"
    path.write_text(
        "CREATE TABLE keyed (position bigint PRIMARY KEY, before integer);\n"
        "-- append-only\nCREATE TABLE keyless (position bigint NOT NULL, before integer);\n"
        "CREATE TABLE gauge (position bigint PRIMARY KEY, before double precision);\n"
        "-- append-only\nCREATE TABLE gauging (position bigint NOT NULL, before double precision);\n"
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(TABLES, "_found", declared(path))
        yield


def images(key: int) -> st.SearchStrategy[Image]:
    return st.none() | st.tuples(st.just(key), st.sampled_from([None, 0, 1]))


def any_changes() -> st.SearchStrategy[list[Change]]:
    pairs = st.sampled_from(KEYS).flatmap(lambda key: st.tuples(images(key), images(key)))
    return st.lists(pairs.filter(lambda pair: pair != (None, None)), max_size=12)


class Log:
    """Changes of one table in position order, in one file per landing."""

    def __init__(self, directory: Path, table: str) -> None:
        self.directory, self.table = directory, TABLES[table]
        self.changes: list[tuple[str, Image, Image]] = []
        self.files: list[Path] = []

    def land(self, changes: list[tuple[str, Image, Image]]) -> None:
        rows = [
            {"position": len(self.changes) + n, "op": op, "before": struct(before), "after": struct(after)}
            for n, (op, before, after) in enumerate(changes, 1)
        ]
        self.files.append(self.directory / f"{len(self.files)}.parquet")
        pq.write_table(pa.Table.from_pylist(rows, log_schema(self.table)), self.files[-1])
        self.changes += changes


def struct(image: Image) -> dict[str, float | None] | None:
    return {"position": image[0], "before": image[1]} if image else None


def op_of(before: Image, after: Image) -> str:
    return "c" if before is None else "d" if after is None else "u"


def staged(log: Log, rows: Sequence[Mapping[str, Any] | None]) -> Path:
    """A file with the rows of a source."""
    path, image = log.directory / "staged.parquet", log.table.image
    schema = pa.schema([("image", image), ("reason", TEXT)])
    pq.write_table(pa.table([pa.array(rows, image), pa.nulls(len(rows), TEXT)], schema), path)
    return path


def resync(log: Log, position: int, source: list[Image], is_narrowed: bool) -> None:
    """Land how the source, as it was at a position, differs from the log.

    If `is_narrowed`, only the keys of buckets that differ are compared, and several keys are in one; otherwise all.
    """
    file = staged(log, [struct(row) for row in source])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(buckets, "_BUCKETS", 2)
        patch.setattr(buckets, "_FEW", 2 if is_narrowed else -1)
        patch.setattr(buckets, "_MOST_CHANGES", 100 if is_narrowed else -1)
        found = landed_by(log, position, file)
    log.land(found)


def landed_by(log: Log, position: int, file: Path, broken: Sequence[int] = ()) -> list[tuple[str, Image, Image]]:
    """What a resync lands whose source has the rows of a file, where the chain is broken at some positions."""
    found: list[tuple[str, Image, Image]] = []
    with differences(log.table, log.files, position, file, log.directory, broken) as differing:
        for chunk in differing.changes(log.files, position, len(log.changes)):
            before, after = ([row and (row["position"], row["before"]) for row in side.to_pylist()] for side in chunk)
            found += [("r", *pair) for pair in zip(before, after, strict=True)]
    return found


def signed(changes: list[tuple[str, Image, Image]]) -> Counter[Image]:
    total: Counter[Image] = Counter()
    for _, before, after in changes:
        if before:
            total[before] -= 1
        if after:
            total[after] += 1
    return Counter({image: weight for image, weight in total.items() if weight})


def follow_on(rows: dict[int, Image], wanted: list[tuple[int, Image]]) -> list[Change]:
    """Sound changes of the source: each goes on from what its key is."""
    changes = []
    for key, after in wanted:
        if (rows.get(key), after) != (None, None):
            changes.append((rows.get(key), after))
            rows[key] = after
    return changes


AFTERWARDS = st.lists(st.sampled_from(KEYS).flatmap(lambda key: st.tuples(st.just(key), images(key))), max_size=4)


@settings(max_examples=80)
@given(
    landed=any_changes(),
    source=st.tuples(*(images(key) for key in KEYS)),
    since=AFTERWARDS,
    later=AFTERWARDS,
    is_narrowed=st.booleans(),
)
def test_after_a_resync_the_log_says_what_the_source_says(
    tmp_path_factory: pytest.TempPathFactory,
    landed: list[Change],
    source: tuple[Image, ...],
    since: list[tuple[int, Image]],
    later: list[tuple[int, Image]],
    is_narrowed: bool,
) -> None:
    log = Log(tmp_path_factory.mktemp("log"), "keyed")
    log.land([(op_of(*change), *change) for change in landed])
    rows = {image[0]: image for image in source if image}
    there = list(rows.values())
    log.land([(op_of(*change), *change) for change in follow_on(rows, since)])
    before = len(log.changes)
    resync(log, len(landed), there, is_narrowed)
    log.land([(op_of(*change), *change) for change in follow_on(rows, later)])

    truth = {image for image in rows.values() if image}
    latest: dict[int, Image] = {}
    for at, (op, old, new) in enumerate(log.changes):
        key = (new or old or (0,))[0]
        is_repair = op == "r" and (old is None or new is None or old == new)
        assert at < before or is_repair or old == latest.get(key), "the chain is whole from the resync on"
        latest[key] = new
    assert {image for image in latest.values() if image} == truth
    assert signed(log.changes) == Counter(truth)


@settings(max_examples=50)
@given(
    landed=any_changes(),
    source=st.lists(st.tuples(st.sampled_from(KEYS), st.sampled_from([None, 0, 1])), max_size=8),
    is_narrowed=st.booleans(),
)
def test_rows_without_a_key_are_counted(
    tmp_path_factory: pytest.TempPathFactory, landed: list[Change], source: list[Image], is_narrowed: bool
) -> None:
    log = Log(tmp_path_factory.mktemp("log"), "keyless")
    log.land([(op_of(*change), *change) for change in landed])
    log.land([("c", None, (1, 1))])
    resync(log, len(landed), source, is_narrowed)
    assert signed(log.changes) == Counter([*source, (1, 1)])


@pytest.mark.parametrize("table", ["keyed", "keyless"])
def test_a_column_that_is_not_declared_counts(tmp_path: Path, table: str) -> None:
    log = Log(tmp_path, table)
    log.land([("c", None, (key, 0)) for key in KEYS])
    rows = [{"position": key, "before": 0, "extra": '{"note":"new"}' if key == 2 else None} for key in KEYS]
    found = landed_by(log, len(KEYS), staged(log, rows))
    assert sorted(map(str, found)) == sorted(
        map(str, [("r", (2, 0), (2, 0))] if table == "keyed" else [("r", (2, 0), None), ("r", None, (2, 0))])
    )


def test_keys_whose_chain_is_broken_are_mended(tmp_path: Path) -> None:
    log = Log(tmp_path, "keyed")
    log.land(
        [("c", None, (1, 0)), ("u", (1, 1), (1, 0)), ("u", (1, 0), (1, 1)), ("u", (1, 0), (1, 0)), ("c", None, (2, 0))]
    )
    file = staged(log, [struct((1, 0)), struct((2, 0))])
    assert landed_by(log, len(log.changes), file) == [], "its images add up to the row that it has last"
    assert landed_by(log, len(log.changes), file, [2]) == [("r", (1, 0), (1, 0))]


@pytest.mark.parametrize("table", ["keyed", "keyless"])
def test_what_is_the_same_is_not_compared_row_by_row(tmp_path: Path, table: str) -> None:
    log = Log(tmp_path, table)
    log.land([("c", None, (1, 0)), ("c", None, (2, 0)), ("c", None, (3, 0))])
    log.land([("u", (1, 0), (1, 1)), ("d", (2, 0), None), ("u", (1, 1), (1, None))])
    file = staged(log, [struct((1, None)), struct((3, 0))])
    assert landed_by(log, len(log.changes), file) == []
    with duckdb.connect() as connection:
        sides = f"(FROM read_parquet({[str(path) for path in log.files]}))", f"(FROM read_parquet('{file}'))"
        for rows in buckets.narrowed(connection, log.table, *sides, "NULL", tmp_path):
            assert connection.execute(f"SELECT COUNT(*) FROM {rows}").fetchall() == [(0,)]


def test_an_image_that_is_not_the_latest_is_not_the_row(tmp_path: Path) -> None:
    log = Log(tmp_path, "keyed")
    log.land([("c", None, (1, 0)), ("u", (1, 0), (1, 1))])
    assert landed_by(log, 2, staged(log, [struct((1, 0))])) == [("r", (1, 1), (1, 0))]


@pytest.mark.parametrize("table", ["gauge", "gauging"])
def test_a_zero_has_a_sign(tmp_path: Path, table: str) -> None:
    log = Log(tmp_path, table)
    log.land([("c", None, (1, 0.0)), ("c", None, (2, 0.0))])
    found = landed_by(log, 2, staged(log, [struct((1, 0.0)), struct((2, -0.0))]))
    assert sorted(map(str, found)) == sorted(
        map(str, [("r", (2, 0.0), (2, -0.0))] if table == "gauge" else [("r", (2, 0.0), None), ("r", None, (2, -0.0))])
    )
