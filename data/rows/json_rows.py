"""Rows of a JSON array or of JSON lines, parsed when they are asked for.

A file is read through once to learn where its rows lie; from then on each is read from its place.
So a file of any size is never whole in memory.
"""

import codecs
import json
import mmap
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import BinaryIO

import numpy as np

from data.errors import DataError, RowError
from data.rows.rows import FileRow, Rows, check_state, file_state

CHUNK = 4 << 20
"""Bytes of an array that are read at once; more where a row is longer."""
TOKEN = 16
"""Characters: no word and no escape of JSON is as long."""
MAX_ONE_OBJECT = 64 << 20
"""A file up to this size whose first line is no row is tried as one object."""
_BOM = b"\xef\xbb\xbf"
_BLANKS = " \t\r\n"


class JsonRows(Rows):
    """The rows of a file; each is parsed when it is asked for."""

    def __init__(
        self, path: Path, file: BinaryIO, spans: np.ndarray, *, packed: bool = False
    ) -> None:
        """``file``: where the rows are read; it stays open.

        ``spans``: first byte and end of each row, int64 [R, 2].
        ``packed``: the file is what was unpacked from the path.
        """
        self.path, self.spans, self.can_be_sent = path, spans, not packed
        self._file, self._state = file, file_state(file.fileno())
        self._indices = range(len(spans))

    def __reduce__(self) -> tuple[object, ...]:
        return _opened_again, (self.path, self.spans, self._state, self._indices)

    def file_ends(self) -> tuple[tuple[str, ...], tuple[int, ...]]:
        """Return the file by name, and how many rows it has."""
        return (str(self.path),), (len(self.spans),)

    def _row(self, number: int) -> FileRow:
        first, end = self.spans[number].tolist()
        try:
            # Not mapped into memory: a file that shrinks would end the process.
            text = os.pread(self._file.fileno(), end - first, first)
        except OSError as error:
            raise DataError(
                f"{self.path}: cannot be read ({error}); see that its disk is there"
            ) from error
        # By its name, where it has one: another file in its place is not seen in the opened one.
        named = self.path if self.can_be_sent else self._file.fileno()
        check_state(self.path, named, self._state)
        try:
            row = json.loads(text)
        except (ValueError, RecursionError) as error:
            reason = error.msg if isinstance(error, json.JSONDecodeError) else error
            raise RowError(
                f"{self._place(number)}: malformed JSON ({reason}); mend or remove the row", ""
            ) from error
        if not isinstance(row, dict):
            raise RowError(
                f"{self._place(number)}: expected an object, found {type(row).__name__}; write "
                "each row as an object of fields",
                "",
            )
        return row

    def _place(self, number: int) -> str:
        return f"{self.path} row {number + 1}"


def _opened_again(
    path: Path, spans: np.ndarray, state: tuple[int, int], indices: Sequence[int]
) -> JsonRows:
    rows = JsonRows(path, path.open("rb"), spans)
    rows._state = state
    return rows.at(indices)


def mapped(file: BinaryIO) -> bytes | mmap.mmap:
    """Return the bytes of a file, mapped into memory.

    Raises:
        OSError: the file cannot be read.
    """
    # An empty file cannot be mapped.
    size = os.fstat(file.fileno()).st_size
    return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) if size else b""


def find_rows(path: Path, content: bytes | mmap.mmap) -> np.ndarray:
    """Return the first byte and the end of each row, int64 [R, 2].

    Lines are parsed up to the first good one: others that are malformed are told of where they
    are read.

    Raises:
        DataError: the array, or each line, is malformed; line and column are named.
    """
    begin = len(_BOM) if content[: len(_BOM)] == _BOM else 0
    while begin < len(content) and content[begin : begin + 1].isspace():
        begin += 1
    is_array = content[begin : begin + 1] == b"["
    spans = _elements(path, content, begin) if is_array else _lines(path, content, begin)
    flat = np.fromiter((byte for span in spans for byte in span), np.int64)
    return flat.reshape(-1, 2)


def _lines(path: Path, content: bytes | mmap.mmap, begin: int) -> Iterator[tuple[int, int]]:
    reason: DataError | None = None
    known, number = False, content[:begin].count(b"\n")
    while begin < len(content):
        # Not other separators of lines: JSON strings may hold them as they are.
        end = content.find(b"\n", begin)
        end = len(content) if end < 0 else end
        line = content[begin:end]
        number += 1
        if line.strip():
            if not known and reason is None:
                reason = _why_no_row(path, content, number, line)
                known = reason is None
            elif not known:
                known = _is_json(line)
            yield begin, end
        begin = end + 1
    if reason and not known:
        raise reason


def _why_no_row(
    path: Path, content: bytes | mmap.mmap, number: int, line: bytes
) -> DataError | None:
    """Return why the file would be refused if no line were better; None: the line is JSON.

    Raises:
        DataError: the file is one object over several lines.
    """
    try:
        json.loads(line)
    except UnicodeDecodeError as error:
        return not_utf8(path, error)
    except json.JSONDecodeError as error:
        if len(content) <= MAX_ONE_OBJECT and _is_json(content[:]):
            raise DataError(
                f"{path}: expected rows as JSON, CSV, parquet or Arrow, found one object over "
                "several lines; put the rows into an array: [{...}, {...}]"
            ) from error
        return _malformed(path, number, error.colno, error.msg)
    except (ValueError, RecursionError) as error:
        return DataError(f"{path}: malformed JSON ({error}); mend the file")
    return None


def _is_json(text: bytes) -> bool:
    try:
        json.loads(text)
    except (ValueError, RecursionError):
        return False
    return True


class _Text:
    """The text of a file from some byte on, as far as it was read."""

    def __init__(self, path: Path, content: bytes | mmap.mmap, begin: int) -> None:
        self.path, self._content = path, content
        self._byte, self._read = begin, begin
        self._decode = codecs.getincrementaldecoder("utf-8")().decode
        self.text = ""
        self._lines, self._column = content[:begin].count(b"\n"), 0
        self.ended = False

    def more(self, begin: int) -> None:
        """Forget the text before ``begin``, and read on; twice as much where a row needs it.

        Raises:
            DataError: it is not UTF-8.
        """
        self._byte = self.byte(begin)
        passed = self.text[:begin]
        self._lines += passed.count("\n")
        cut = passed.rfind("\n")
        self._column = len(passed) - cut - 1 if cut >= 0 else self._column + len(passed)
        rest = self.text[begin:]
        chunk = self._content[self._read : self._read + max(CHUNK, len(rest))]
        self._read += len(chunk)
        self.ended = self._read >= len(self._content)
        try:
            self.text = rest + self._decode(chunk, self.ended)
        except UnicodeDecodeError as error:
            raise not_utf8(self.path, error) from error

    def byte(self, index: int) -> int:
        """Return at which byte of the file a character begins."""
        text = self.text[:index]
        return self._byte + (index if text.isascii() else len(text.encode()))

    def malformed(self, index: int, reason: str) -> DataError:
        """Return what is wrong at a character, with its line and column."""
        passed = self.text[:index]
        cut = passed.rfind("\n")
        column = len(passed) - cut if cut >= 0 else self._column + len(passed) + 1
        return _malformed(self.path, self._lines + passed.count("\n") + 1, column, reason)


def _elements(path: Path, content: bytes | mmap.mmap, begin: int) -> Iterator[tuple[int, int]]:
    """Yield the spans of an array's elements."""
    source = _Text(path, content, begin)
    decode = json.JSONDecoder().raw_decode
    expected, place, base, base_byte = "[", 0, 0, begin
    source.more(0)
    while True:
        text = source.text
        while place < len(text) and text[place] in _BLANKS:
            place += 1
        if place == len(text):
            if source.ended and expected == "the end":
                return
            if source.ended:
                raise source.malformed(place, "the array is not closed")
            source.more(place)
            place, base, base_byte = 0, 0, source.byte(0)
            continue
        mark = text[place]
        if expected == "[":
            expected, place = "value or ]", place + 1
        elif expected == "," and mark == ",":
            expected, place = "value", place + 1
        elif expected == "the end":
            raise source.malformed(place, "more follows behind the array")
        elif mark == "]" and expected != "value":
            expected, place = "the end", place + 1
        elif expected == ",":
            raise source.malformed(place, "Expecting ',' delimiter")
        else:
            try:
                _, end = decode(text, place)
            except json.JSONDecodeError as error:
                if source.ended or not _may_go_on(text, error):
                    raise source.malformed(error.pos, error.msg) from error
                end = len(text)
            except (ValueError, RecursionError) as error:
                raise source.malformed(place, str(error)) from error
            if end == len(text) and not source.ended:
                # The element may go on behind what was read.
                source.more(place)
                place, base, base_byte = 0, 0, source.byte(0)
                continue
            first = base_byte + _bytes(text, base, place)
            base, base_byte = end, first + _bytes(text, place, end)
            yield first, base_byte
            expected, place = ",", end


def _may_go_on(text: str, error: json.JSONDecodeError) -> bool:
    """Return whether an element may be whole in a longer text: else none would be read."""
    return error.msg.startswith("Unterminated string") or error.pos + TOKEN > len(text)


def _bytes(text: str, first: int, end: int) -> int:
    part = text[first:end]
    return end - first if part.isascii() else len(part.encode())


def not_utf8(path: Path, error: UnicodeDecodeError) -> DataError:
    """Return the refusal of a file that is not UTF-8."""
    return DataError(
        f"{path}: expected a JSON array or JSON lines in UTF-8, found other bytes ({error}); "
        "save the rows as UTF-8"
    )


def _malformed(path: Path, line: int, column: int, reason: str) -> DataError:
    return DataError(
        f"{path} line {line} column {column}: malformed JSON ({reason}); mend the file"
    )
