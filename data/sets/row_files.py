"""Rows of a JSON array or JSON-lines file. Any other file is refused by the name of its kind."""

import json
from pathlib import Path
from typing import Any

from data.errors import DataError

FileRow = dict[str, Any]

_HEAD_BYTES = 4096
_CONVERT = "convert it: pandas.{}(path).to_json('rows.jsonl', orient='records', lines=True)"
_UNPACK = "unpack it and give the JSON file that is inside"
_NAME = "`path` is for the rows alone: name {} in the rows, and their folder in `root`"
_NAME_FILES = _NAME.format("such files")
_ZIP = b"PK\x03\x04"
_SIGNATURES = {
    b"PAR1": ("a parquet file", _CONVERT.format("read_parquet")),
    b"ARROW1": ("an Arrow file", _CONVERT.format("read_feather")),
    b"\x1f\x8b": ("a gzip archive", _UNPACK),
    _ZIP: ("a zip archive", _UNPACK),
    b"\x28\xb5\x2f\xfd": ("a zstd archive", _UNPACK),
    b"BZh": ("a bzip2 archive", _UNPACK),
    b"\xfd7zXZ": ("an xz archive", _UNPACK),
    b"%PDF": ("a PDF", _NAME.format("its pages, saved as pictures,")),
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


def read_rows(path: Path) -> list[FileRow]:
    """Return the rows of a JSON array or JSON-lines file.

    Raises:
        DataError: missing file, another kind of file, malformed JSON (with line and column), or
            rows that are no objects.
    """
    try:
        with path.open("rb") as file:
            head = file.read(_HEAD_BYTES)
        _refuse_other_kinds(path, head)
        text = path.read_text(encoding="utf-8-sig")
    except FileNotFoundError as error:
        raise DataError(f"{path}: file not found; check the data set's `path`") from error
    except IsADirectoryError as error:
        raise DataError(
            f"{path}: expected a file of rows, found a folder; give a JSON file in the data set's "
            "`path`"
        ) from error
    except UnicodeDecodeError as error:
        raise DataError(
            f"{path}: expected a JSON array or JSON lines in UTF-8, found other bytes ({error}); "
            "save the rows as UTF-8"
        ) from error
    except (OSError, ValueError) as error:
        if isinstance(error, DataError):
            raise
        raise DataError(f"{path}: cannot be read ({error}); check the data set's `path`") from error
    try:
        rows = json.loads(text) if text.lstrip().startswith("[") else _json_lines(path, text)
    except json.JSONDecodeError as error:
        raise _malformed(path, error.lineno, error) from error
    except RecursionError as error:
        raise DataError(f"{path}: malformed JSON (nested too deep); mend the file") from error
    except ValueError as error:
        if isinstance(error, DataError):
            raise
        raise DataError(f"{path}: malformed JSON ({error}); mend the file") from error
    for index, row in enumerate(rows):
        if not isinstance(row, dict):
            raise DataError(
                f"{path} row {index + 1}: expected an object, found {type(row).__name__}; write "
                "each row as an object of fields"
            )
    return rows


def _refuse_other_kinds(path: Path, head: bytes) -> None:
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
        elif any(line.count(mark) for mark in (b",", b"\t", b";")):
            kind = ("a table of separated values (CSV)", _CONVERT.format("read_csv"))
    if kind is not None:
        what, remedy = kind
        raise DataError(f"{path}: expected a JSON array or JSON lines, found {what}; {remedy}")


def _json_lines(path: Path, text: str) -> list[Any]:
    rows = []
    # Not splitlines: JSON strings may hold other line separators as they are.
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError as error:
            if not rows and _is_one_object(text):
                raise DataError(
                    f"{path}: expected a JSON array or JSON lines, found one object over several "
                    "lines; put the rows into an array: [{...}, {...}]"
                ) from error
            raise _malformed(path, number, error) from error
    return rows


def _is_one_object(text: str) -> bool:
    try:
        json.loads(text)
    except (ValueError, RecursionError):
        return False
    return True


def _malformed(path: Path, line: int, error: json.JSONDecodeError) -> DataError:
    return DataError(
        f"{path} line {line} column {error.colno}: malformed JSON ({error.msg}); mend the file"
    )
