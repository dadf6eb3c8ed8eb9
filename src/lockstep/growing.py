"""A Parquet file that grows while it is read. Every version of it is a whole file, to be renamed over the one before.

DuckDB opens a file by its name twice: it reads the footer, which says where the data lies, and then, perhaps much
later, the data. A version that was renamed into place between the two must have its data where the footer of the
earlier one says. So a version begins with all the data of the one before it, byte for byte, and goes on with more;
only the footer, which is the file's end, is another. A reader that holds any footer that the file ever had finds with
it exactly the rows that it told of.

New rows are a row group more. A reader pays for each of those, so now and then the rows are written once more as a
single one behind all else. What the footer no longer names stays in the file, dead, for those who hold an older one.
"""

from __future__ import annotations

from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

# Bytes. A file as large grows no more, and rows that take more in memory have a file of their own. Each growth writes
# the file again, half of this on the average; what that costs is in docs/decisions/0013-small-files-grow.md.
GROWS_TO = 1 << 20
# Row groups of a file that grows. Of one that will not grow any more, which stays as it is, they are made one.
_MOST = 8
# Bytes in memory. So few rows are written plainly: compressed pages of two rows cost a reader thrice as much, and the
# statistics of every column are larger than the rows. The first column's are kept: they tell which rows a file has.
_FEW = 1 << 15


def grown(old: bytes, rows: pa.Table) -> bytes:
    """The next version of a file: with these rows after its own."""
    footer = pq.read_metadata(pa.BufferReader(old))
    if footer.num_row_groups < _MOST:
        version, added = _after(old, rows)
        footer.append_row_groups(added)
        version = version[: end_of_data(version)] + _written(footer)
        if len(version) < GROWS_TO:
            return version
    return holding(old, pa.concat_tables([content(old), rows]))


def holding(old: bytes, rows: pa.Table) -> bytes:
    """The next version of a file (of none, if `old` is empty): with these rows instead of its own."""
    return _after(old, rows)[0]


def content(version: bytes) -> pa.Table:
    """The rows of a version."""
    return pq.read_table(pa.BufferReader(version))


_MAGIC = b"PAR1"


def _after(old: bytes, rows: pa.Table) -> tuple[bytes, pq.FileMetaData]:
    """The data of `old` and then `rows`, with a footer that names `rows` alone; and that footer."""
    sink = pa.BufferOutputStream()
    footers: list[pq.FileMetaData] = []
    options: dict[str, Any] = {"compression": "zstd"}
    if rows.nbytes < _FEW:
        options = {"compression": "none", "use_dictionary": False, "write_statistics": rows.schema.names[:1]}
    with pq.ParquetWriter(sink, rows.schema, store_schema=False, metadata_collector=footers, **options) as writer:
        # Behind the writer's back, which has written the magic number only: it asks the sink where a row group begins.
        if old:
            sink.write(old[len(_MAGIC) : end_of_data(old)])
        writer.write_table(rows)
    return sink.getvalue().to_pybytes(), footers[0]


def _written(footer: pq.FileMetaData) -> bytes:
    """A footer and what ends a file."""
    sink = pa.BufferOutputStream()
    footer.write_metadata_file(sink)  # a whole file, without data
    file: bytes = sink.getvalue().to_pybytes()
    return file[len(_MAGIC) :]


def end_of_data(version: bytes) -> int:
    """Where the footer begins: the file ends with the footer, its length in four bytes, and the magic number."""
    return len(version) - len(_MAGIC) - 4 - int.from_bytes(version[-8:-4], "little")
