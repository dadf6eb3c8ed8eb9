"""Pieces of the input as bytes: which lines may be events of one table, and how many nulls stand in them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

_TABLE, _NULL = b'"table":', b"null"


def _bytes_in(characters: bytes) -> np.ndarray:
    table = np.zeros(256, bool)
    table[list(characters)] = True
    return table


_BLANKS = _bytes_in(b" \t\r\n")
_BEFORE_A_VALUE = _bytes_in(b"\\:,{[ \t")


@dataclass(frozen=True)
class Piece:
    """A few megabytes of lines; line i is `text[ends[i] : ends[i + 1]]`."""

    ordinals: pa.Array
    lines: pa.Array
    buffer: pa.Buffer
    ends: np.ndarray

    @classmethod
    def of(cls, ordinals: pa.Array, lines: pa.Array) -> Piece:
        _, offsets, buffer = lines.buffers()
        ends = np.frombuffer(offsets, np.int32)[lines.offset : lines.offset + len(lines) + 1]
        return cls(ordinals, lines, buffer.slice(ends[0], ends[-1] - ends[0]), ends - ends[0])

    @property
    def text(self) -> np.ndarray:
        return np.frombuffer(self.buffer, np.uint8)

    def part(self, start: int, stop: int) -> Piece:
        return Piece.of(self.ordinals.slice(start, stop - start), self.lines.slice(start, stop - start))


def groups(lines: pa.Table) -> Iterable[list[Piece]]:
    """The lines that may be plain events, by what seems to be their table's name."""
    found: dict[bytes, list[Piece]] = {}
    for batch in lines.to_batches():
        if not batch.num_rows:
            continue
        piece = Piece.of(batch["ordinal"], batch["line"])
        for name, at in _by_name(piece, batch["is_text"].to_numpy(zero_copy_only=False)):
            own = piece
            if len(at) < batch.num_rows:
                own = Piece.of(*(batch[column].take(pa.array(at)) for column in ("ordinal", "line")))
            found.setdefault(name, []).append(own)
    return found.values()


def _by_name(piece: Piece, is_text: np.ndarray) -> Iterator[tuple[bytes, np.ndarray]]:
    """By what stands behind their last "table", which lines have it there; only lines that are objects."""
    text, starts, stops = piece.text, piece.ends[:-1], piece.ends[1:]
    is_object = is_text & (text[starts] == ord("{")) & (text[_behind_blanks(text, stops - 1)] == ord("}"))
    names = np.concatenate([[-1], places(text, _TABLE)])
    names = names[np.searchsorted(names, stops) - 1]  # the last one in each line, or in one before it
    lines = np.flatnonzero(is_object & (names > starts))
    at = names[lines] + len(_TABLE)
    while len(lines):
        shown = text[at[0] : stops[lines[0]]].tobytes()
        name = shown[: shown.find(b'"', shown.find(b'"') + 1) + 1]
        inside = at + len(name) <= stops[lines]
        is_own = np.zeros(len(lines), bool)
        is_own[inside] = (text[at[inside, None] + np.arange(len(name))] == np.frombuffer(name, np.uint8)).all(axis=1)
        yield name, lines[is_own]
        lines, at = lines[~is_own], at[~is_own]


def places(text: np.ndarray, word: bytes) -> np.ndarray:
    """Where a word of at least four characters stands."""
    first = int.from_bytes(word[:4], "little")
    fours = (text[k : k + (len(text) - k) // 4 * 4].view("<u4") for k in range(4))
    found = [np.flatnonzero(four == first) * 4 + k for k, four in enumerate(fours)]
    at = np.sort(np.concatenate(found))
    for n in range(4, len(word)):
        at = at[at + n < len(text)]
        at = at[text[at + n] == word[n]]
    return at


def null_members(data: np.ndarray) -> int | None:
    """How many members of objects are null, at most: those whose name is odd do not count.

    A text may hold the same characters, but no quote without a backslash before it. So the quote before the colon ends
    a name, unless what is before the quote shows that it begins a text. None if a null stands behind an object, on
    which Arrow's reader crashes.
    """
    colon = _behind_blanks(data, places(data, _NULL) - 1)
    if (data[colon] == ord("}")).any():
        return None
    quote = _behind_blanks(data, colon[data[colon] == ord(":")] - 1)
    quote = quote[data[quote] == ord('"')]
    return int((~_BEFORE_A_VALUE[data[quote - 1]]).sum())


def _behind_blanks(data: np.ndarray, at: np.ndarray) -> np.ndarray:
    """The places of the last characters that are not blank, from these places backwards."""
    while (is_blank := _BLANKS[data[at]] & (at > 0)).any():
        at = at - is_blank
    return at
