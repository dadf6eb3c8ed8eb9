"""Text input as Arrow: lines of plain or gzip files and of standard input, in bounded chunks."""

from __future__ import annotations

import gzip
import io
import json
import sys
import zlib
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TypeAlias

import numpy as np
import pyarrow as pa

from lockstep.errors import LockstepError

STDIN = "-"
# `line` keeps its line feed. `is_text` is false where bytes were not UTF-8 and `line` shows them escaped. `file` and
# `number` say where the line stood, for messages.
SCHEMA = pa.schema(
    [
        ("line", pa.string()),
        ("is_text", pa.bool_()),
        ("file", pa.dictionary(pa.int16(), pa.string())),
        ("number", pa.int64()),
    ]
)

_GZIP = b"\x1f\x8b"
_DAMAGED = (EOFError, zlib.error, gzip.BadGzipFile)
_BLOCK = 1 << 22
_HEAD = 4096
_BOM = b"\xef\xbb\xbf"
_Stream: TypeAlias = "io.BufferedReader | gzip.GzipFile"


class LineReader:
    """Reads several files as one stream of lines.

    `is_done` is true from the last chunk on. Then `problem` is None, or says why the input ended early (a truncated or
    damaged gzip file, a last line cut off in the middle of its JSON): what was read until there is whole lines, in
    order, and nothing of what follows it, in this or a later file, was read.
    """

    def __init__(self, names: Sequence[str]) -> None:
        """Raises LockstepError if a file cannot be read at all, before anything is read."""
        self._names = names
        self.problem: str | None = None
        self.is_done = False
        self.bytes_read = 0
        for name in names:
            _check_readable(name)

    def chunks(self, size: int) -> Iterator[pa.Table]:
        """Tables of `SCHEMA`, each of about `size` bytes of lines, or of one line if that is longer."""
        parts: list[pa.Table] = []
        held = 0
        for name in self._names:
            for part in self._file(name, min(size, _BLOCK)):
                if held >= size:  # only now is it known that this is not the last one
                    yield pa.concat_tables(parts)
                    parts, held = [], 0
                parts.append(part)
                held += part.nbytes
            if self.problem:
                break
        self.is_done = True
        if parts:
            yield pa.concat_tables(parts)

    def _file(self, name: str, block: int) -> Iterator[pa.Table]:
        number = 1
        rest = b""
        with ExitStack() as stack:
            raw = _stdin() if name == STDIN else stack.enter_context(Path(name).open("rb"))
            try:
                stream = _open(raw, name)
                for read in _blocks(stream, block):
                    self.bytes_read += len(read)
                    data = rest + read
                    end = data.rfind(b"\n") + 1
                    rest = data[end:]
                    if end:
                        lines = _table(data, end, name, number)
                        number += lines.num_rows
                        yield lines
            except _DAMAGED as e:
                self.problem = (
                    f"{_title(name)} is a damaged or truncated gzip file ({e}). Its {number - 1} complete lines were "
                    "read. Deliver it again, whole: what has landed is not landed twice."
                )
                return
        if not rest:
            return
        if _is_torn(rest):
            self.problem = (
                f"{_title(name)} ends in the middle of line {number}, which was left out. Deliver the file again when "
                "it is whole: what has landed is not landed twice."
            )
            return
        yield _table(rest + b"\n", len(rest) + 1, name, number)


def _stdin() -> io.BufferedReader:
    buffer = sys.stdin.buffer
    # In a test it may be any stream, without `peek`.
    return buffer if isinstance(buffer, io.BufferedReader) else io.BufferedReader(buffer)  # type: ignore[arg-type]


def _check_readable(name: str) -> None:
    if name == STDIN:
        if sys.stdin.isatty():
            raise LockstepError(
                "Standard input is a terminal: pipe change events into it, e.g. "
                "`kafka-console-consumer ... | lockstep ingest -`, or name a file."
            )
        return
    path = Path(name)
    if path.is_dir():
        raise LockstepError(f"{name} is a directory. Name its files, in their order: `lockstep ingest {name}/*`.")
    try:
        path.open("rb").close()
    except FileNotFoundError:
        raise LockstepError(f"There is no file {name}.") from None
    except OSError as e:
        raise LockstepError(f"{name} cannot be read: {e.strerror}.") from None


def _open(raw: io.BufferedReader, name: str) -> _Stream:
    """The decompressed stream. The content decides, not the file's name, unless there is too little content to tell.

    Raises one of _DAMAGED for a gzip file that is damaged from its beginning: after that error it would read as empty.
    """
    magic = raw.peek(2)[:2]
    if len(magic) < len(_GZIP) and name.endswith(".gz"):
        raise EOFError(f"it has {len(magic)} bytes")
    stream: _Stream = gzip.GzipFile(fileobj=raw) if magic == _GZIP else raw
    head = stream.peek(_HEAD)[:_HEAD]
    if b"\0" in head:
        raise LockstepError(
            f"{_title(name)} is binary: `lockstep ingest` reads change events as JSON lines, plain or gzip. "
            "Nothing of it was landed."
        )
    if head.startswith(_BOM):
        stream.read(len(_BOM))
    return stream


def _blocks(stream: _Stream, size: int) -> Iterator[bytes]:
    """Blocks of about `size` bytes; where the stream turns out damaged, first what could be read of it."""
    parts: list[bytes] = []
    held = 0
    while True:
        try:
            part = stream.read1(size)
        except _DAMAGED:
            yield b"".join(parts)
            raise
        parts.append(part)
        held += len(part)
        if held >= size or not part:
            yield b"".join(parts)
            parts, held = [], 0
        if not part:
            return


def _table(data: bytes, end: int, name: str, number: int) -> pa.Table:
    """Lines of `data` up to `end`, which is behind a line feed; the first has number `number`."""
    ends = np.flatnonzero(np.frombuffer(data, np.uint8, end) == ord("\n")) + 1
    is_text = np.ones(len(ends), bool)
    try:
        if not data.isascii():
            str(memoryview(data)[:end], "utf-8")
    except UnicodeDecodeError:
        lines = [line + b"\n" for line in data[:end].split(b"\n")[:-1]]
        texts = [line.decode(errors="backslashreplace") for line in lines]
        is_text = np.array([text.encode() == line for text, line in zip(texts, lines, strict=True)])
        column = pa.array(texts, pa.string())
    else:
        offsets = np.concatenate([[0], ends]).astype(np.int32)
        column = pa.Array.from_buffers(pa.string(), len(ends), [None, pa.py_buffer(offsets), pa.py_buffer(data)])
    file = pa.DictionaryArray.from_arrays(np.zeros(len(ends), np.int16), [name])
    return pa.table([column, is_text, file, np.arange(number, number + len(ends))], schema=SCHEMA)


def _is_torn(line: bytes) -> bool:
    """Whether a last line without a line feed is the beginning of a JSON object."""
    text = line.rsplit(b"\t", 1)[-1].strip()
    if not text.startswith(b"{"):
        return False
    try:
        json.loads(text)
    except ValueError:
        return True
    return False


def _title(name: str) -> str:
    return "Standard input" if name == STDIN else name
