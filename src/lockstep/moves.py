"""What a declaration may change of a table whose log has begun.

The files of a log keep the columns they were written with. Every reader puts an empty file of the declared schema
first, and DuckDB reads all others as that one: a column that a file lacks is NULL, one that is no longer declared is
left out, a narrower type is widened. So a declaration may drop columns and widen types, and nothing is written anew.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from lockstep.schema import Table, log_schema

Columns = Mapping[str, Sequence[str]]  # names of columns, by table

# In the watermark's resume state: columns that are declared and have not joined the log yet; and of those that have
# joined a log without a source to ask, up to which position the images lack them.
ADOPTING, JOINED = "adopting", "joined"

_DIGITS = {pa.int16(): 5, pa.int32(): 10, pa.int64(): 19}


def new_columns(table: Table, landed: pa.Schema) -> list[str]:
    """The declared columns that the log lacks; `landed` is the schema that it has.

    Images from before have their values in `extra` or not at all, so that a change would take away something else than
    was added. `lockstep capture` therefore lands the values of all rows when it takes up a column; see `joining` for
    a log that others fill.
    """
    had = {field.name for field in landed.field("after").type}
    return [c.name for c in table.columns if c.name not in had]


def problems(table: Table, landed: pa.Schema) -> list[str]:
    """How the types of columns are declared that the log cannot be read as."""
    had = {field.name: field.type for field in landed.field("after").type}
    return [
        f"column {c.name} was {had[c.name]} and would be {c.type}"
        for c in table.columns
        if c.name in had and not _holds(c.type, had[c.name])
    ]


def _holds(wide: pa.DataType, narrow: pa.DataType) -> bool:
    """Whether every value of one type is a value of the other, and equal values remain equal."""
    if wide == narrow:
        return True
    if pa.types.is_integer(narrow) and pa.types.is_integer(wide):
        return bool(narrow.bit_width <= wide.bit_width)
    if pa.types.is_floating(narrow):
        return bool(pa.types.is_floating(wide) and narrow.bit_width <= wide.bit_width)
    if pa.types.is_decimal(wide):
        digits, scale = (
            (narrow.precision, narrow.scale) if pa.types.is_decimal(narrow) else (_DIGITS.get(narrow, 39), 0)
        )
        return bool(scale <= wide.scale and digits - scale <= wide.precision - wide.scale)
    return False


def empty_file(table: Table, directory: Path) -> Path:
    """Write the empty file that comes first, in a directory of the caller's; returns its path."""
    path = directory / f"{table.name}.schema.parquet"
    pq.write_table(log_schema(table).empty_table(), path)
    return path
