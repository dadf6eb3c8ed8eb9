"""What a resync lands: after it the log's latest images and its signed images are the source's, whatever the log lacks.

Logs are drawn without any order in them (a before image is any image), so they have every kind of damage: changes that
were lost, doubled, altered, swapped. What the source has, and what happens to it until the resync lands, is drawn too.
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lockstep.kinds import TEXT
from lockstep.latest import differences
from lockstep.schema import TABLES, declared, log_schema

pytestmark = pytest.mark.generated

KEYS = (1, 2, 3)
Image = tuple[int, int | None] | None  # key and value
Change = tuple[Image, Image]


@pytest.fixture(scope="module", autouse=True)
def tables(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A table with a key that is called as the log's own columns are, and one without a key."""
    path = tmp_path_factory.mktemp("declared") / "source_schema.sql"
    path.write_text(
        "CREATE TABLE keyed (position bigint PRIMARY KEY, before integer);\n"
        "-- append-only\nCREATE TABLE keyless (position bigint NOT NULL, before integer);\n"
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


def struct(image: Image) -> dict[str, int | None] | None:
    return {"position": image[0], "before": image[1]} if image else None


def op_of(before: Image, after: Image) -> str:
    return "c" if before is None else "d" if after is None else "u"


def resync(log: Log, position: int, source: list[Image]) -> None:
    """Land how the source, as it was at a position, differs from the log."""
    image, scratch = log.table.image, log.directory
    staged = pa.schema([("image", image), ("reason", TEXT)])
    rows = pa.table([pa.array([struct(row) for row in source], image), pa.nulls(len(source), TEXT)], staged)
    pq.write_table(rows, scratch / "staged.parquet")
    found: list[tuple[str, Image, Image]] = []
    with differences(log.table, log.files, position, scratch / "staged.parquet", scratch) as differing:
        for chunk in differing.changes(log.files, position, len(log.changes)):
            before, after = ([row and (row["position"], row["before"]) for row in side.to_pylist()] for side in chunk)
            found += [("r", *pair) for pair in zip(before, after, strict=True)]
    log.land(found)


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


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    landed=any_changes(),
    source=st.tuples(*(images(key) for key in KEYS)),
    since=AFTERWARDS,
    later=AFTERWARDS,
)
def test_after_a_resync_the_log_says_what_the_source_says(
    tmp_path_factory: pytest.TempPathFactory,
    landed: list[Change],
    source: tuple[Image, ...],
    since: list[tuple[int, Image]],
    later: list[tuple[int, Image]],
) -> None:
    log = Log(tmp_path_factory.mktemp("log"), "keyed")
    log.land([(op_of(*change), *change) for change in landed])
    rows = {image[0]: image for image in source if image}
    there = list(rows.values())
    log.land([(op_of(*change), *change) for change in follow_on(rows, since)])
    before = len(log.changes)
    resync(log, len(landed), there)
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


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    landed=any_changes(), source=st.lists(st.tuples(st.sampled_from(KEYS), st.sampled_from([None, 0, 1])), max_size=8)
)
def test_rows_without_a_key_are_counted(
    tmp_path_factory: pytest.TempPathFactory, landed: list[Change], source: list[Image]
) -> None:
    log = Log(tmp_path_factory.mktemp("log"), "keyless")
    log.land([(op_of(*change), *change) for change in landed])
    log.land([("c", None, (1, 1))])
    resync(log, len(landed), source)
    assert signed(log.changes) == Counter([*source, (1, 1)])
