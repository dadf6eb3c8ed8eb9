"""Files that grow while they are read: every version reads right, and none disturbs who has begun to read another.

Awkward cases: a reader between a file's footer and its data while the file grows, is written as one row group, is cut
back, or all of that one after another; one connection that sees a file grow all the while.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from lockstep import growing
from lockstep.growing import content, grown, holding

FILES = 4
SCHEMA = pa.schema(
    [("position", pa.int64()), ("image", pa.struct([("id", pa.int64()), ("text", pa.string())]))],
)


def rows(first: int, count: int) -> pa.Table:
    numbers = range(first, first + count)
    images = [{"id": n % 7, "text": f"text {n * n}"} if n % 3 else None for n in numbers]
    return pa.table([pa.array(numbers), pa.array(images, SCHEMA.field("image").type)], schema=SCHEMA)


def version(*counts: int) -> bytes:
    """A file that has grown by so many rows each time."""
    found = b""
    for first, count in zip(itertools.accumulate(counts, initial=1), counts, strict=False):
        found = grown(found, rows(first, count)) if found else holding(b"", rows(first, count))
    return found


def groups(file: bytes) -> int:
    return int(pq.read_metadata(pa.BufferReader(file)).num_row_groups)


def end_of_data(file: bytes) -> int:
    return len(file) - 8 - int.from_bytes(file[-8:-4], "little")


def test_a_version_has_all_rows_and_begins_with_the_data_of_the_one_before() -> None:
    old, first, most = holding(b"", rows(1, 3)), 4, 1
    for count in [1, 5, 2] * 40:
        new = grown(old, rows(first, count))
        first += count
        assert new.startswith(old[: end_of_data(old)])
        assert content(new).equals(rows(1, first - 1))
        most = max(most, groups(new))
        old = new
    assert most == growing._MOST
    cut = holding(old, rows(1, 50))
    assert cut.startswith(old[: end_of_data(old)])
    assert content(cut).equals(rows(1, 50))
    assert content(grown(cut, rows(51, 2))).equals(rows(1, 52))


def test_a_file_that_will_not_grow_any_more_is_one_row_group(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(growing, "GROWS_TO", 20_000)
    file = version(*[1] * 7)
    assert groups(file) == 7
    first = 8
    while len(file) < growing.GROWS_TO:
        file = grown(file, rows(first, 1))
        first += 1
    assert groups(file) == 1
    assert content(file).equals(rows(1, first - 1))


def rewritten(_: bytes) -> bytes:
    """What must not be done: all rows laid out anew."""
    return holding(b"", rows(1, 90))


def everything_at_once(old: bytes) -> bytes:
    for first in range(51, 200):
        old = grown(old, rows(first, 1))
    return grown(holding(old, rows(1, 60)), rows(61, 9))


NEXT: dict[str, Callable[[bytes], bytes]] = {
    "grown": lambda old: grown(old, rows(51, 40)),
    "as one row group": lambda old: holding(old, rows(1, 90)),
    "cut back": lambda old: holding(old, rows(1, 30)),
    "everything": everything_at_once,
}


def read_while(directory: Path, replace: Callable[[bytes], bytes]) -> tuple[object, object]:
    """A query's answer, and its answer when it meets the files replaced between their footers and their data."""
    files = [directory / f"{n}-.parquet" for n in range(FILES)]
    for path in files:
        path.write_bytes(version(*[10] * 5))
    replaced = []

    def act(bound: int) -> int:
        if is_armed and not replaced:
            for path in files:
                partial = path.with_suffix(".partial")
                partial.write_bytes(replace(path.read_bytes()))
                replaced.append(partial.replace(path))
        return bound

    # The bound is asked for once the scan of the first file is planned, and so its footer read, and before it begins.
    query = f"""
    SELECT COUNT(*), SUM(position), STRING_AGG(image.text, ',' ORDER BY filename, position)
    FROM read_parquet('{directory}/*.parquet', filename = true) WHERE position <= (SELECT act(30::BIGINT))
    """
    with duckdb.connect() as connection:
        connection.execute("SET threads = 1")
        is_armed = False
        connection.create_function("act", act, side_effects=True)  # type: ignore[arg-type]
        expected = connection.execute(query).fetchall()
        is_armed = True
        met = connection.execute(query).fetchall()
    assert len(replaced) == FILES
    return expected, met


@pytest.mark.parametrize("what", NEXT)
def test_a_reader_between_footer_and_data_reads_what_its_footer_told_of(tmp_path: Path, what: str) -> None:
    expected, met = read_while(tmp_path, NEXT[what])
    assert met == expected


def test_such_a_reader_is_what_growing_is_for(tmp_path: Path) -> None:
    """Should this fail, DuckDB has come to open a file once, and files might be written anew as a whole."""
    with pytest.raises((duckdb.Error, AssertionError)):
        expected, met = read_while(tmp_path, rewritten)
        assert met == expected


@pytest.mark.parametrize("setting", ["enable_external_file_cache", "parquet_metadata_cache"])
def test_one_connection_finds_the_newest_rows_of_a_file_at_once(tmp_path: Path, setting: str) -> None:
    """No cache of DuckDB's serves an earlier version's footer."""
    path = tmp_path / "1-.parquet"
    file = holding(b"", rows(1, 1))
    with duckdb.connect() as connection:
        connection.execute(f"SET {setting} = true")
        for last in range(2, 300):
            file = grown(file, rows(last, 1))
            partial = tmp_path / "1-.partial"
            partial.write_bytes(file)
            partial.replace(path)
            found = connection.execute(f"SELECT COUNT(*), MAX(position) FROM '{path}' WHERE position > 0").fetchall()
            assert found == [(last, last)]
