"""Rows of JSON, CSV, parquet and Arrow files. Any other file is refused by the name of its kind."""

import codecs
import gzip
import json
import mmap
import re
import tempfile
import zlib
from bisect import bisect_right
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence, Set
from itertools import accumulate
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np

from data.containers.cells import (
    MESSAGE_CHARS,
    TABLES,
    bytes_in,
    count_rows,
    hides_bytes,
    holds_bytes,
    open_table,
)
from data.durable import DISK_FULL
from data.errors import DataError, RowError
from data.rows.json_rows import JsonRows, find_rows, mapped
from data.rows.picture_paths import natural_order
from data.rows.rows import FileRow, Rows, check_state, file_state

if TYPE_CHECKING:
    import pyarrow as pa
    from pyarrow import csv

BATCH = 256
"""Rows of a table that are made at once where one after the other is asked for."""
MAX_UNPACKED = 2 << 30
"""Bytes in a gzip archive; some small archives unpack to far more."""
CSV_BLOCK = 64 << 20
"""Bytes; a row of a CSV file must fit."""
UNREAD = b"not read"
"""Stands in a row for what is no text: bytes in lists, or a cell that cannot be decoded."""
INDEX_COLUMNS = ("", "__index_level_0__")
"""How pandas calls the row numbers that it writes beside the columns."""

_HEAD_BYTES = 4096
_BLOCK = 1 << 20
_CONVERT = "convert it: pandas.{}(path).to_json('rows.jsonl', orient='records', lines=True)"
_UNPACK = "unpack it and give the JSON file that is inside"
_NAME = "`path` is for the rows alone: name {} in the rows, and their folder in `root`"
_NAME_FILES = _NAME.format("such files")
_SEPARATORS = (b",", b"\t", b";")
_FLAGS = {"true": True, "false": False}
_SHARD = re.compile(
    # Older uploads to the hub have a hash of their own behind the numbers.
    r"(?P<name>.*?)(?P<number>\d+)-of-(?P<total>\d+)(-[0-9a-f]+)?\.parquet"
)
_GZIP = b"\x1f\x8b"
_ZIP = b"PK\x03\x04"
_SIGNATURES = {
    b"PAR1": ("a parquet file in an archive", "unpack it and give the parquet file"),
    b"ARROW1": ("an Arrow file in an archive", "unpack it and give the Arrow file"),
    _GZIP: ("a gzip archive", _UNPACK),
    _ZIP: ("a zip archive", _UNPACK),
    b"\x28\xb5\x2f\xfd": ("a zstd archive", _UNPACK),
    b"BZh": ("a bzip2 archive", _UNPACK),
    b"\xfd7zXZ": ("an xz archive", _UNPACK),
    b"%PDF": ("a PDF", _NAME.format("its pages, as in 'a.pdf#page=1',")),
    b"\x89PNG": ("a PNG picture", _NAME_FILES),
    b"\xff\xd8\xff": ("a JPEG picture", _NAME_FILES),
    b"GIF8": ("a GIF picture", _NAME_FILES),
    b"RIFF": ("a WebP picture, a video or a sound", _NAME_FILES),
    b"\x1aE\xdf\xa3": ("a Matroska or WebM video", _NAME_FILES),
    b"\xff\xfe": ("UTF-16 text", "save it as UTF-8"),
    b"\xfe\xff": ("UTF-16 text", "save it as UTF-8"),
    b"version https://git-lfs": ("a git-lfs pointer", "fetch the file itself with `git lfs pull`"),
    b"<": ("an HTML or XML page", "download the file itself, not the page that shows it"),
}
"""What a file is by how it begins, and what to do."""


class PictureCell(str):
    """The address of a cell that holds bytes, where a row of another file has a path."""


class TableRows(Rows):
    """Rows of tables, made when they are asked for. A null is an absent field.

    The bytes in cells are not read: the row has the cell's address.
    """

    def __init__(
        self,
        files: Sequence[Path],
        counts: Sequence[int],
        table: Callable[[Path], "pa.Table"],
        json_fields: Set[str],
        broken: Mapping[int, str] = MappingProxyType({}),
    ) -> None:
        """``broken``: why rows, by their index, cannot be read; the table has empty rows there."""
        self._broken = dict(broken)
        self.can_be_sent = table is open_table
        self.files = tuple(str(file.resolve()) for file in files)
        self._named, self._table, self._json_fields = files, table, json_fields
        # A CSV file was read whole before.
        self._states = [file_state(file) for file in files] if self.can_be_sent else []
        self._ends = list(accumulate(counts))
        self._indices = range(sum(counts))

    def read(self) -> Iterator[FileRow | RowError]:
        """Yield each row; some of a file are made together."""
        made, batch = None, []
        for index in self._indices:
            file, row = self._find(index)
            first = row - row % BATCH
            if (file, first) != made:
                made, batch = (file, first), self._rows(file, first, BATCH)
            yield self._refused(index) or batch[row - first]

    def column(self, name: str) -> Iterator[Any]:
        """Yield the cells of a column in all files; `UNREAD` for those that cannot be decoded."""
        for file in self.files:
            yield from _values(self._table(Path(file)).column(name))

    def file_ends(self) -> tuple[tuple[str, ...], tuple[int, ...]]:
        """Return the files by name, and the rows of all up to the end of each."""
        return tuple(map(str, self._named)), tuple(self._ends)

    def _row(self, number: int) -> FileRow:
        if refused := self._refused(number):
            raise refused
        file, row = self._find(number)
        return self._rows(file, row, 1)[0]

    def _refused(self, number: int) -> RowError | None:
        reason = self._broken.get(number)
        return RowError(f"{self._place(number)}: {reason}") if reason else None

    def _place(self, number: int) -> str:
        file, row = self._find(number)
        return f"{self._named[file]} row {row + 1}"

    def _find(self, index: int) -> tuple[int, int]:
        """Return the number of the file and of the row in it, both from 0."""
        file = bisect_right(self._ends, index)
        return file, index - (self._ends[file - 1] if file else 0)

    def _rows(self, file: int, first: int, count: int) -> list[FileRow]:
        path = Path(self.files[file])
        if self._states:
            check_state(self._named[file], path, self._states[file])
        table = self._table(path).slice(first, count)
        rows: list[FileRow] = [{} for _ in range(table.num_rows)]
        for name, column in zip(table.column_names, table.columns, strict=True):
            if name in INDEX_COLUMNS:
                continue
            if holds_bytes(column.type):
                values = [
                    _picture(cell, f"{path}#row={first + place}&column={name}")
                    for place, cell in enumerate(column)
                ]
            elif hides_bytes(column.type):
                values = [UNREAD] * len(column)
            else:
                values = _values(column)
            for row, value in zip(rows, values, strict=True):
                if value is not None:
                    row[name] = _parsed(value) if name in self._json_fields else value
        return rows


def read_rows(
    path: Path, *, json_fields: Set[str] = frozenset(), spans: np.ndarray | None = None
) -> Rows:
    """Return the rows of a JSON, CSV, parquet or Arrow file, or of a folder of parquet files.

    ``json_fields``: fields in which a table's text that begins with `[` or `{` is read as JSON.
    ``spans``: where the rows of a JSON file lie, if that is known.

    Raises:
        DataError: missing file, another kind of file, or JSON that is malformed (with line and
            column) where no row can be told from the next.
    """
    try:
        files = row_files(path)
        if files != [path]:
            return table_rows(files, json_fields)
        with path.open("rb") as opened:
            head = opened.read(_HEAD_BYTES)
        if head.startswith(TABLES):
            return table_rows([path], json_fields)
        packed = path.suffix.lower() == ".gz" and head.startswith(_GZIP)
        file = _unpacked(path) if packed else path.open("rb")
        content = mapped(file)
        separator = _refuse_other_kinds(path, content[:_HEAD_BYTES])
        if separator:
            return _csv_rows(path, content, separator, json_fields)
        spans = find_rows(path, content) if spans is None else spans
        return JsonRows(path, file, spans, packed=packed)
    except FileNotFoundError as error:
        raise DataError(f"{path}: file not found; check the data set's `path`") from error
    except (OSError, ValueError) as error:
        if isinstance(error, DataError):
            raise
        if getattr(error, "errno", None) in DISK_FULL:
            raise _no_room(path) from error
        raise DataError(f"{path}: cannot be read ({error}); check the data set's `path`") from error


def table_rows(files: list[Path], json_fields: Set[str]) -> TableRows:
    """Return the rows of parquet or Arrow files.

    Raises:
        DataError: a file is missing, or is no table.
    """
    return TableRows(files, [count_rows(file) for file in files], open_table, json_fields)


def row_files(path: Path) -> list[Path]:
    """Return the files of a set: itself, or the parquet files in a folder, in natural order.

    Of a folder with several splits, `<folder>/test` names the files `test-00000-of-00001.parquet`
    and so on.

    Raises:
        DataError: a folder without parquet files, with those of several sets, or with a gap.
    """
    if not path.is_dir():
        beside = [] if path.exists() else path.parent.glob("*.parquet")
        shards = [(file, _SHARD.fullmatch(file.name)) for file in beside]
        files = [file for file, match in shards if match and match["name"] == f"{path.name}-"]
        if not files:
            return [path]
    else:
        files = [file for file in path.glob("*.parquet") if not file.name.startswith(".")]
    if not files:
        raise DataError(
            f"{path}: expected parquet files in the folder, found none; give a file of rows in the "
            "data set's `path`, or a folder that holds parquet files"
        )
    numbered = [match for file in files if (match := _SHARD.fullmatch(file.name))]
    series = sorted({(match["name"], match["total"]) for match in numbered})
    if len(series) > 1:
        names = ", ".join(f"{name}...-of-{total}.parquet" for name, total in series)
        raise DataError(
            f"{path}: expected the parquet files of one set, found {names}; give each a folder of "
            f"its own, or name one of them, as in {path / series[0][0].rstrip('-')}"
        )
    if series:
        name, total = series[0]
        digits, numbers = len(numbered[0]["number"]), {int(match["number"]) for match in numbered}
        if len(numbers) < len(numbered):
            raise DataError(
                f"{path}: expected each of {int(total)} parquet files once, found "
                f"{len(numbered)} with {len(numbers)} numbers; remove the older download"
            )
        begin = 0 if int(total) not in numbers else 1
        missing = sorted(set(range(begin, begin + int(total))) - numbers)
        if missing:
            raise DataError(
                f"{path}: expected {int(total)} parquet files, found {len(numbered)}: "
                f"{name}{missing[0]:0{digits}}-of-{total}.parquet is missing; download it"
            )
    return sorted(files, key=lambda file: natural_order(file.name))


def _csv_rows(
    path: Path, content: bytes | mmap.mmap, separator: str, json_fields: Set[str]
) -> TableRows:
    import pyarrow as pa
    from pyarrow import csv

    broken: dict[int, str] = {}

    def set_aside(row: csv.InvalidRow) -> str:
        # The first line, which has the names, is number 1.
        is_open = row.text.count('"') % 2
        hides = ", whose quote is not closed and hides the lines behind it" if is_open else ""
        broken[row.number - 2] = (
            f"expected {row.expected_columns} cells, as many as the first line names, found "
            f"{row.actual_columns} in {row.text[:80]!a}{hides}; mend the line"
        )
        return "skip"

    def read(handler: Callable[[csv.InvalidRow], str] | None = None) -> pa.Table:
        return _through_a_file(
            csv.open_csv(
                pa.BufferReader(content),
                # With threads, no message says which row is broken.
                read_options=csv.ReadOptions(use_threads=False, block_size=CSV_BLOCK),
                parse_options=csv.ParseOptions(
                    delimiter=separator, newlines_in_values=True, invalid_row_handler=handler
                ),
                convert_options=csv.ConvertOptions(
                    default_column_type=pa.string(), strings_can_be_null=True, null_values=[""]
                ),
            )
        )

    try:
        try:
            table = read()
        except pa.ArrowInvalid:
            # The handler gets lines as text.
            if not _is_utf8(content):
                raise
            table = read(set_aside)
    except (pa.ArrowException, ValueError) as error:
        raise DataError(
            f"{path}: malformed CSV ({str(error)[:MESSAGE_CHARS]}); mend the file: its first "
            "line holds the names of the columns, its text is UTF-8"
        ) from error
    twice = [name for name, count in Counter(table.column_names).items() if count > 1]
    if twice:
        raise DataError(f"{path}: two columns are called '{twice[0][:80]}'; rename one")
    if broken and not table.num_rows:
        number, reason = next(iter(broken.items()))
        raise DataError(f"{path}: row {number + 1}: {reason}; no other line is a row either")
    whole = _with_empty_rows(table, sorted(broken))
    return TableRows([path], [whole.num_rows], lambda _: whole, json_fields, broken)


def _through_a_file(batches: "csv.CSVStreamingReader") -> "pa.Table":
    """Return the table of some batches, mapped from a file that nobody else sees."""
    import pyarrow as pa

    with tempfile.TemporaryFile() as file:
        with pa.ipc.new_file(file, batches.schema) as writer:
            for batch in batches:
                writer.write_batch(batch)
        file.flush()
        content = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    return pa.ipc.open_file(pa.BufferReader(content)).read_all()


def _is_utf8(content: bytes | mmap.mmap) -> bool:
    decoder = codecs.getincrementaldecoder("utf-8")()
    try:
        for first in range(0, len(content), _BLOCK):
            decoder.decode(content[first : first + _BLOCK])
        decoder.decode(b"", final=True)
    except UnicodeDecodeError:
        return False
    return True


def _with_empty_rows(table: "pa.Table", places: list[int]) -> "pa.Table":
    """Return a table with rows of nulls added, which then have these indices (ascending)."""
    import pyarrow as pa

    nulls = [pa.nulls(1, field.type) for field in table.schema]
    empty = pa.Table.from_arrays(nulls, schema=table.schema)
    parts, begin = [], 0
    for added, place in enumerate(places):
        end = place - added
        parts += [table.slice(begin, end - begin), empty]
        begin = end
    return pa.concat_tables([*parts, table.slice(begin)])


def _unpacked(path: Path) -> BinaryIO:
    """Return what a gzip archive holds, as a file that nobody else sees."""
    file = tempfile.TemporaryFile()  # noqa: SIM115  whoever reads the rows has it open
    try:
        with gzip.open(path) as archive:
            while block := archive.read(_BLOCK):
                if file.tell() + len(block) > MAX_UNPACKED:
                    raise DataError(
                        f"{path}: more than {MAX_UNPACKED} bytes when unpacked; unpack it yourself"
                    )
                file.write(block)
        file.flush()
    except (OSError, EOFError, zlib.error) as error:
        if getattr(error, "errno", None) in DISK_FULL:
            raise _no_room(path) from error
        raise DataError(
            f"{path}: not a whole gzip archive ({error}); download or write it again"
        ) from error
    return file


def _no_room(path: Path) -> DataError:
    return DataError(
        f"{path}: no room for its rows in {tempfile.gettempdir()}; make room there, or set TMPDIR "
        "to a folder on a larger disk"
    )


def _picture(cell: "pa.Scalar", address: str) -> str | bytes | None:
    """Return the address of a cell with bytes, the path in one without, None for an empty one."""
    if bytes_in(cell) is not None:
        return PictureCell(address)
    if not cell.is_valid or "path" not in getattr(cell, "keys", tuple)():
        return None
    return _value(cell["path"]) or None


def _values(column: "pa.ChunkedArray") -> list[Any]:
    """Return the cells of a column; `UNREAD` for those that cannot be decoded."""
    try:
        values = column.to_pylist()
    except (ValueError, OverflowError):  # broken UTF-8, a date beyond what Python knows
        values = [_value(cell) for cell in column]
    return [_without_nulls(value) for value in values]


def _value(cell: "pa.Scalar") -> Any:
    try:
        return cell.as_py()
    except (ValueError, OverflowError):
        return UNREAD


def _without_nulls(value: Any) -> Any:
    """Return a value without the fields that are null, in its own parts too."""
    if isinstance(value, dict):
        return {key: _without_nulls(part) for key, part in value.items() if part is not None}
    return [_without_nulls(part) for part in value] if isinstance(value, list) else value


def _parsed(value: Any) -> Any:
    """Return a text that is a JSON list, object, true or false as that; all else as it is."""
    if not isinstance(value, str):
        return value
    if value.lower() in _FLAGS:
        return _FLAGS[value.lower()]
    if value.lstrip()[:1] not in ("[", "{"):
        return value
    try:
        return json.loads(value)
    except (ValueError, RecursionError):
        return value  # whoever reads the field says what it expected


def _refuse_other_kinds(path: Path, head: bytes) -> str:
    """Return the separator of a CSV file, empty text for JSON.

    Raises:
        DataError: the file is of a kind that holds no rows.
    """
    text = head.removeprefix(b"\xef\xbb\xbf").lstrip()
    begins = [start for start in _SIGNATURES if head.startswith(start) or text.startswith(start)]
    kind = _SIGNATURES[begins[0]] if begins else None
    if head.startswith(_ZIP) and (path.suffix.lower() == ".xlsx" or b"xl/workbook.xml" in head):
        kind = ("an Excel workbook", _CONVERT.format("read_excel"))
    if head[4:8] == b"ftyp":
        kind = ("an MP4 video or another file of its family", _NAME_FILES)
    if kind is None and text and text[:1] not in b'[{"':
        line = text.split(b"\n")[0]
        if b"\0" in head:
            kind = ("a binary file", "give the file that holds the rows")
        elif any(line.count(mark) for mark in _SEPARATORS):
            return _separator(line)
    if kind is not None:
        what, remedy = kind
        raise DataError(
            f"{path}: expected rows as JSON, CSV, parquet or Arrow, found {what}; {remedy}"
        )
    # A line of quoted names begins like JSON.
    named = path.with_suffix("") if path.suffix.lower() == ".gz" else path
    is_csv = named.suffix.lower() in (".csv", ".tsv")
    return _separator(text.split(b"\n")[0]) if is_csv else ""


def _separator(line: bytes) -> str:
    return max(_SEPARATORS, key=line.count).decode()
