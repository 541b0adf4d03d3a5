"""Tables on disk and the bytes in their cells: opened once, read cell by cell, faults named."""

import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import data.containers.cells
from configs.common import MediaConfig
from data.containers.cells import bytes_in, cell_size, count_rows, open_table, read_cell
from data.errors import DataError
from data.media.pictures import load_pictures
from tests.builders import write_picture

pytestmark = pytest.mark.usefixtures("table_cache")
PICTURES = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
CELLS = [b"abc", None, b"", b"de"]


def write_table(path: Path, table: pa.Table) -> Path:
    """Write a parquet file, or an Arrow file or stream, by the name's ending."""
    if path.suffix == ".parquet":
        pq.write_table(table, path)
        return path
    new = pa.ipc.new_file if path.suffix == ".arrow" else pa.ipc.new_stream
    with new(path, table.schema) as writer:
        writer.write_table(table)
    return path


@pytest.mark.parametrize("name", ["a.parquet", "a.arrow", "a.stream"])
@pytest.mark.parametrize(
    "column",
    [
        pa.array(CELLS, pa.binary()),
        pa.array(CELLS, pa.large_binary()),
        pa.array([None if cell is None else {"bytes": cell} for cell in CELLS], PICTURES),
    ],
    ids=["binary", "large", "struct"],
)
def test_the_bytes_of_a_cell_are_read_from_every_kind_of_table(tmp_path, name, column):
    path = write_table(tmp_path / name, pa.table({"image": column, "n": [0, 1, 2, 3]}))
    assert count_rows(path) == 4
    assert [bytes_in(cell) is not None for cell in open_table(path)["image"]] == [1, 0, 0, 1]
    assert read_cell(f"{path}#row=3&column=image", max_bytes=2) == b"de"
    assert cell_size(f"{path}#row=0&column=image") == 3


def test_rows_are_counted_through_all_groups_of_a_file(tmp_path):
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"image": [bytes([n]) for n in range(100)]}), path, row_group_size=7)
    for row in (0, 6, 7, 50, 99):
        assert read_cell(f"{path}#row={row}&column=image", max_bytes=1) == bytes([row])


@pytest.mark.parametrize(
    ("place", "words"),
    [
        ("#row=4&column=image", "no such row; the table has 4"),
        ("#row=0&column=other", "no such column; the table has image, words, lists"),
        ("#row=1&column=image", "expected bytes in the cell, found none"),
        ("#row=0&column=words", "expected a column of bytes, found one of string"),
        ("#row=0&column=lists", "expected a column of bytes, found one of list"),
        ("#row=0&column=image", r"3 bytes, more than data\.media\.max_file_bytes=2"),
    ],
)
def test_a_cell_that_cannot_be_read_is_named(tmp_path, place, words):
    table = pa.table({"image": CELLS, "words": ["a"] * 4, "lists": [[b"a"]] * 4})
    path = write_table(tmp_path / "a.parquet", table)
    with pytest.raises(DataError, match=words) as caught:
        read_cell(f"{path}{place}", max_bytes=2)
    assert str(caught.value).startswith(f"{path}{place}: ")


def test_files_that_are_no_tables_are_refused(tmp_path):
    for name, content, words in (
        ("a.parquet", b"PAR1 and no more", "not a readable parquet file"),
        ("a.arrow", b"ARROW1 and no more", "not a readable Arrow file"),
        ("a.stream", b"\xff\xff\xff\xff no", "not a readable Arrow file"),
        ("a.png", b"\x89PNG", "expected a parquet or Arrow file, found another kind"),
    ):
        path = tmp_path / name
        path.write_bytes(content)
        with pytest.raises(DataError, match=words) as caught:
            read_cell(f"{path}#row=0&column=a", max_bytes=9)
        assert str(path) in str(caught.value)
    with pytest.raises(DataError, match=r"gone\.parquet: file not found"):
        read_cell(f"{tmp_path}/gone.parquet#row=0&column=a", max_bytes=9)


def test_an_arrow_file_whose_offsets_point_outside_is_refused(tmp_path):
    table = pa.table({"image": pa.array([b"a" * 64, b"b" * 64])})
    content = write_table(tmp_path / "a.arrow", table).read_bytes()
    offsets = np.array([0, 64, 128], np.int32).tobytes()
    assert content.count(offsets) == 1
    broken = np.array([0, 64, 1 << 30], np.int32).tobytes()
    (tmp_path / "a.arrow").write_bytes(content.replace(offsets, broken))
    with pytest.raises(DataError, match="not a readable Arrow file"):
        read_cell(f"{tmp_path}/a.arrow#row=1&column=image", max_bytes=1 << 40)


def test_a_file_is_opened_once_by_all_threads_and_again_when_it_changes(tmp_path, monkeypatch):
    opened = []
    read = data.containers.cells._read_table
    monkeypatch.setattr(
        data.containers.cells,
        "_read_table",
        lambda path, key: opened.append(path) or read(path, key),
    )
    path = write_table(tmp_path / "a.parquet", pa.table({"image": [b"1", b"2"]}))
    uris = [f"{path}#row={row}&column=image" for row in (0, 1)] * 16
    with ThreadPoolExecutor(8) as pool:
        cells = list(pool.map(lambda uri: read_cell(uri, max_bytes=1), uris))
    assert (cells, len(opened)) == ([b"1", b"2"] * 16, 1)
    write_table(path, pa.table({"image": [b"3", b"4"]}))
    os.utime(path, ns=(0, 0))
    assert read_cell(uris[0], max_bytes=1) == b"3"


def test_a_path_is_no_pattern(tmp_path):
    folder = tmp_path / "a [1] * ?{b}"
    folder.mkdir()
    path = write_table(folder / "x#1.parquet", pa.table({"image": [b"1"]}))
    assert read_cell(f"{path}#row=0&column=image", max_bytes=1) == b"1"
    (tmp_path / "a::b").mkdir()
    path = write_table(tmp_path / "a::b/x.parquet", pa.table({"image": [b"1"]}))
    with pytest.raises(DataError, match="rename the folder"):
        open_table(path)


def test_a_cache_that_cannot_be_written_is_said(tmp_path, monkeypatch):
    path = write_table(tmp_path / "a.parquet", pa.table({"image": [b"1"]}))
    (tmp_path / "file").touch()
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "file/cache"))
    with pytest.raises(DataError, match=r"cannot be unpacked into .*file/cache.*set HF_DATASETS_"):
        open_table(path)


def test_pixels_from_a_cell_are_those_of_the_file(tmp_path):
    picture = write_picture(tmp_path / "a.png")
    broken = picture.read_bytes()[:50]
    path = write_table(
        tmp_path / "a.parquet", pa.table({"image": [picture.read_bytes(), broken, b"%PDF-1.7"]})
    )
    uris = [f"{path}#row={row}&column=image" for row in range(4)]
    pictures, failed = load_pictures([str(picture), *uris], MediaConfig())
    assert np.array_equal(pictures[uris[0]], pictures[str(picture)])
    assert failed.keys() == set(uris[1:])
    assert all(reason.startswith(f"{uri}: ") for uri, reason in failed.items())
    assert "found a PDF" in failed[uris[2]]


ALONE = """
import socket, sys
from pathlib import Path

def refuse(*_):
    raise SystemExit("a call to the network")

socket.socket.connect = socket.getaddrinfo = refuse
import data.sets.load_sets
assert "datasets" not in sys.modules and "pyarrow" not in sys.modules
from data.rows.row_files import read_rows
print(read_rows(Path("datasets/a.parquet"))[0]["qry"], "torch" in sys.modules)
"""


def test_a_folder_of_that_name_hides_no_library_and_nothing_is_downloaded(tmp_path):
    (tmp_path / "datasets").mkdir()
    write_table(tmp_path / "datasets/a.parquet", pa.table({"qry": ["a dog"]}))
    root = str(Path(data.containers.cells.__file__).parents[2])
    ran = subprocess.run(
        [sys.executable, "-c", ALONE],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": root, "HF_DATASETS_CACHE": str(tmp_path / "cache")},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (ran.stdout, ran.stderr, ran.returncode) == ("a dog False\n", "", 0)
