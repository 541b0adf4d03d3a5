"""Files of rows: JSON arrays and JSON lines are read, every other kind of file is named."""

import gzip
import json

import pytest

from data.errors import DataError, RowError
from data.rows.row_files import read_rows


def test_json_lines_and_arrays_are_read_alike(tmp_path):
    rows = [{"a": 1}, {"a": "line \u2028 separator"}]
    lines, array = tmp_path / "rows.jsonl", tmp_path / "rows.json"
    lines.write_text("\n".join(json.dumps(row, ensure_ascii=False) for row in rows) + "\n\n")
    array.write_text("\ufeff" + json.dumps(rows))
    assert [*read_rows(lines)] == [*read_rows(array)] == rows


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('[{"a": 1},\n {"a": }]', "line 2 column"),
        ('\n\n{"a": \n{"b"', "line 3 column"),
        ('[{"a": 1}', "malformed JSON"),
        ("[" * 100_000, "malformed JSON"),
        ("[{}, " + "9" * 5000 + "]", "malformed JSON"),
    ],
)
def test_malformed_files_are_refused_with_the_place(tmp_path, text, words):
    path = tmp_path / "rows.json"
    path.write_text(text)
    with pytest.raises(DataError, match=r"rows\.json") as caught:
        read_rows(path)
    assert words in str(caught.value)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('[{"a": 1}, 5, {"a": 2}]', "row 2: expected an object, found int"),
        ('{"a": 1}\n"b"\n{"a": 2}', "row 2: expected an object, found str"),
        ('{"a": 1}\n\n{"a": \n{"a": 2}', "row 2: malformed JSON"),
        ('{"a": 1}\n' + "[" * 100_000 + '\n{"a": 2}', "row 2: malformed JSON"),
    ],
)
def test_a_row_that_cannot_be_read_leaves_the_others(tmp_path, text, words):
    path = tmp_path / "rows.json"
    path.write_text(text)
    first, bad, last = read_rows(path).read()
    assert (first, last) == ({"a": 1}, {"a": 2})
    assert isinstance(bad, RowError)
    assert str(bad).startswith(f"{path} {words}")


def test_files_that_are_not_there_or_not_text_are_refused(tmp_path):
    with pytest.raises(DataError, match=r"lost\.json: file not found"):
        read_rows(tmp_path / "lost.json")
    with pytest.raises(DataError, match="expected parquet files in the folder, found none"):
        read_rows(tmp_path)
    for name in ("x" * 5000, "a\0b"):
        with pytest.raises(DataError, match="cannot be read"):
            read_rows(tmp_path / name)
    (tmp_path / "bytes.json").write_bytes(b'[{"a": "\xff"}]')
    with pytest.raises(DataError, match="save the rows as UTF-8"):
        read_rows(tmp_path / "bytes.json")


ROW = '{"qry": "q", "pos_text": "t"}'


@pytest.mark.parametrize(
    ("content", "what", "remedy"),
    [
        (b"\x00\x00\x00 ftypisom\x00", "an MP4 video", "their folder in `root`"),
        (b"%PDF-1.7\n", "a PDF", "its pages, as in 'a.pdf#page=1'"),
        (b"\x89PNG\r\n\x1a\n", "a PNG picture", "their folder in `root`"),
        (gzip.compress(ROW.encode(), mtime=0), "a gzip archive", "unpack it"),
        (b"PK\x03\x04\x14", "a zip archive", "unpack it"),
        (b"PK\x03\x04\x14\x00_rels/.rels\x00xl/workbook.xml", "an Excel workbook", "read_excel"),
        (f"[{ROW}]".encode("utf-16"), "UTF-16 text", "save it as UTF-8"),
        (b"version https://git-lfs.github.com/spec/v1\n", "a git-lfs pointer", "git lfs pull"),
        (b"<!DOCTYPE html><html>", "an HTML or XML page", "download the file itself"),
        (b"\xef\xbb\xbf\n<html>", "an HTML or XML page", "download the file itself"),
        (b"\x93NUMPY\x01\x00", "a binary file", "the file that holds the rows"),
        (ROW.replace(", ", ",\n").encode(), "one object over several lines", "into an array"),
    ],
)
def test_other_kinds_of_files_are_named_with_what_to_do(tmp_path, content, what, remedy):
    path = tmp_path / "rows.any"
    path.write_bytes(content)
    with pytest.raises(DataError) as caught:
        read_rows(path)
    words = str(caught.value)
    assert words.startswith(f"{path}: expected rows as JSON, CSV, parquet or Arrow, found ")
    assert what in words
    assert remedy in words


def test_a_workbook_whose_parts_begin_further_on_is_known_by_its_name(tmp_path):
    path = tmp_path / "rows.XLSX"
    path.write_bytes(b"PK\x03\x04\x14")
    with pytest.raises(DataError, match="found an Excel workbook; convert it"):
        read_rows(path)


def test_one_row_on_one_line_and_a_file_without_rows_are_files_of_rows(tmp_path):
    path = tmp_path / "rows.json"
    path.write_text(ROW)
    assert [*read_rows(path)] == [json.loads(ROW)]
    path.write_text("")
    assert [*read_rows(path)] == []
