"""Where the rows of a JSON file lie: as the whole file read at once says, whatever is in it."""

import json
import tempfile
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

import data.rows.json_rows
from data.errors import DataError
from data.rows.json_rows import JsonRows, find_rows, mapped

PATH = Path("rows.json")
VALUES = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=8)),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3), st.dictionaries(st.text(max_size=4), inner, max_size=3)
    ),
    max_leaves=6,
)
MARKS = '[]{},:"\\a1.e- \n\u00e9'
ROWS = st.lists(st.dictionaries(st.text(max_size=4), VALUES, max_size=3), max_size=6)


@given(
    rows=ROWS,
    indent=st.sampled_from([None, 1]),
    ascii_only=st.booleans(),
    chunk=st.sampled_from([1, 3, 7, 64]),
    mark=st.booleans(),
)
def test_an_array_is_read_as_json_reads_it_whole(rows, indent, ascii_only, chunk, mark):
    text = json.dumps(rows, indent=indent, ensure_ascii=ascii_only)
    content = b"\xef\xbb\xbf" * mark + text.encode("utf-8", "surrogatepass")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(data.rows.json_rows, "CHUNK", chunk)
        try:
            content.decode()
        except UnicodeDecodeError:
            with pytest.raises(DataError, match="save the rows as UTF-8"):
                find_rows(PATH, content)
            return
        spans = find_rows(PATH, content)
    with tempfile.TemporaryFile() as file:
        file.write(content)
        file.flush()
        assert json.dumps([*JsonRows(PATH, file, spans, packed=True)]) == json.dumps(
            json.loads(text)
        )


@given(
    text=st.text(st.sampled_from(MARKS), max_size=24).map("[{}".format),
    chunk=st.sampled_from([1, 2, 5, 64]),
)
@example(text="[1 2]", chunk=64)
@example(text="[1,]", chunk=64)
@example(text="[12", chunk=2)
@example(text="[12] x", chunk=64)
@example(text="[12]\n\n", chunk=1)
def test_an_array_is_refused_where_json_refuses_it(text, chunk):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(data.rows.json_rows, "CHUNK", chunk)
        try:
            values = json.loads(text)
        except ValueError as error:
            with pytest.raises(DataError, match=f"line {error.lineno} column"):
                find_rows(PATH, text.encode())
        else:
            assert len(find_rows(PATH, text.encode())) == len(values)


def test_what_follows_an_array_is_refused_where_it_lies():
    with pytest.raises(DataError, match=r"line 2 column 5: malformed JSON .more follows behind"):
        find_rows(PATH, b"[{},\n{}] []")


def test_an_array_is_not_read_beyond_what_is_wrong_in_it(tmp_path):
    path = tmp_path / "rows.json"
    path.write_bytes(b'[{"a" 1},\n' + b'{"a": 1},\n' * 10_000)
    with path.open("rb") as file, pytest.MonkeyPatch.context() as patch:
        patch.setattr(data.rows.json_rows, "CHUNK", 64)
        read = CountedBytes(mapped(file))
        with pytest.raises(DataError, match=r"line 1 column 7: malformed JSON"):
            find_rows(path, read)
    assert read.most < 1_000


class CountedBytes:
    """The bytes of a file, and up to where they were asked for."""

    def __init__(self, content):
        self.content, self.most = content, 0

    def __len__(self):
        return len(self.content)

    def __getitem__(self, part):
        self.most = max(self.most, part.stop or 0)
        return self.content[part]
