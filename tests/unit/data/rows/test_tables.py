"""Rows of parquet, Arrow, CSV and gzipped files: the same pairs as from JSON, each fault named."""

import csv
import gzip
import io
import json
import tracemalloc
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import data.rows.row_files
from configs.common import DataSetConfig, MediaConfig
from data.errors import DataError
from data.media.pictures import load_pictures
from data.rows.picture_paths import PictureFiles
from data.rows.row_files import BATCH, TableRows, read_rows
from data.sets.fingerprints import changed_inputs, pairs_fingerprint
from data.sets.load_sets import load_set
from data.types import Item, Kind, Pair
from tests.builders import TRACES, write_picture, write_set

pytestmark = pytest.mark.usefixtures("table_cache")
TALK = [{"from": "human", "value": "what?"}, {"from": "gpt", "value": "a dog"}]
ROWS = {
    "mmeb": [
        {"id": "a", "qry": 'what, "then"?\n', "qry_image_path": "a.png", "pos_text": "a dog"},
        {
            "id": "b",
            "qry": "and this?",
            "pos_image_path": "b.png",
            "neg_text": "a cat",
            "label": "dog",
            "pos_evidence": {"bbox_2d": [0, 0, 500, 500]},
            "pos_cot": TRACES[Kind.IMAGE],
            "cot_knows_answer": True,
        },
    ],
    "llavahound": [
        {
            "qry": {"conversations": TALK, "video": ["a.png", "b.png"]},
            "pos": {"conversations": TALK},
            "qry_evidence": {"key_frames": [1]},
        },
    ],
    "mmeb_eval": [
        {"qry_text": "find", "tgt_text": ["", "a"], "tgt_img_path": ["a.png", "b.png"]},
        {"qry_img_path": "b.png", "tgt_text": ["a dog", "a cat"], "tgt_img_path": ["", ""]},
    ],
    "colpali": [
        {"query": "which?", "image": "a.png", "image_filename": "1.jpg", "source": "pdf"},
        {"query": "who?", "image": "b.png", "page": "3"},
    ],
    "caption": [{"id": "a", "image": "a.png", "conversations": TALK}],
}
PICTURE_FIELDS = ("qry_image_path", "pos_image_path", "qry_img_path", "image")


def json_set(folder: Path, form: str) -> DataSetConfig:
    """Write the rows of a format as JSON, and their pictures."""
    config = write_set(folder, ROWS[form], format=form)
    for width, name in ((30, "a.png"), (40, "b.png")):
        write_picture(Path(config.root) / name, width)
    return config


def table_of(rows: list[dict[str, Any]]) -> pa.Table:
    """Return the rows as a table; what a row lacks is null."""
    names = dict.fromkeys(name for row in rows for name in row)
    return pa.table({name: [row.get(name) for row in rows] for name in names})


def as_parquet(config: DataSetConfig, rows: list[dict[str, Any]]) -> DataSetConfig:
    path = Path(config.path).with_suffix(".parquet")
    pq.write_table(table_of(rows), path)
    return replace(config, path=str(path))


def as_arrow(config: DataSetConfig, rows: list[dict[str, Any]]) -> DataSetConfig:
    path = Path(config.path).with_suffix(".arrow")
    table = table_of(rows)
    with pa.ipc.new_file(path, table.schema) as writer:
        writer.write_table(table)
    return replace(config, path=str(path))


def as_csv(config: DataSetConfig, rows: list[dict[str, Any]], mark: str = ",") -> DataSetConfig:
    path = Path(config.path).with_suffix(".txt")
    names = dict.fromkeys(name for row in rows for name in row)
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, names, delimiter=mark, quoting=csv.QUOTE_MINIMAL)
    writer.writeheader()
    for row in rows:
        writer.writerow({k: v if isinstance(v, str) else json.dumps(v) for k, v in row.items()})
    path.write_text(text.getvalue(), encoding="utf-8", newline="")
    return replace(config, path=str(path))


def as_tsv(config: DataSetConfig, rows: list[dict[str, Any]]) -> DataSetConfig:
    return as_csv(config, rows, "\t")


def as_gzip(config: DataSetConfig, rows: list[dict[str, Any]]) -> DataSetConfig:
    path = Path(config.path).with_suffix(".jsonl.gz")
    path.write_bytes(gzip.compress("\n".join(map(json.dumps, rows)).encode(), mtime=0))
    return replace(config, path=str(path))


def test_names_of_folders_and_cells_that_python_does_not_know_stop_nothing(tmp_path):
    folder = tmp_path / "a{x}[1]"
    folder.mkdir()
    config = json_set(folder, "mmeb")
    moment = pa.array([1 << 62], pa.timestamp("us"))
    picture = (Path(config.root) / "a.png").read_bytes()
    table = pa.table({"qry": ["q"], "pos_image_path": [picture], "moment": moment})
    path = folder / "rows.parquet"
    pq.write_table(table, path)
    (pair,) = load_set(replace(config, path=str(path), extra_fields="ignore")).pairs
    assert pair.target.uris == (f"{path}#row=0&column=pos_image_path",)


@pytest.mark.parametrize("form", sorted(ROWS))
@pytest.mark.parametrize("write", [as_parquet, as_arrow, as_csv, as_tsv, as_gzip])
def test_rows_of_every_kind_of_file_are_those_of_json(tmp_path, form, write):
    config = json_set(tmp_path, form)
    expected = load_set(config)
    assert len(expected.pairs) == len(ROWS[form])
    loaded = load_set(write(config, ROWS[form]))
    assert loaded.bad_rows == ()
    assert [*loaded.pairs] == [*expected.pairs]
    assert loaded.unknown_fields == {}


def with_bytes(root: str, rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the rows with the bytes of the pictures in the place of paths."""
    changed = []
    for row in rows:
        pictures = {name: row[name] for name in PICTURE_FIELDS if row.get(name)}
        changed.append(
            row | {name: (Path(root) / path).read_bytes() for name, path in pictures.items()}
        )
    return changed


def without_uris(pair: Pair) -> Pair:
    def plain(item: Item) -> Item:
        return replace(item, uris=tuple("" for _ in item.uris))

    return replace(
        pair, query=plain(pair.query), target=plain(pair.target), candidates=(), hard_negatives=()
    )


def uris_of(pairs: tuple[Pair, ...]) -> list[str]:
    return [uri for pair in pairs for item in (pair.query, pair.target) for uri in item.uris]


@pytest.mark.parametrize("form", ["mmeb", "colpali", "caption"])
@pytest.mark.parametrize("feature", [None, datasets.Image()])
def test_pictures_in_cells_are_those_of_the_files(tmp_path, form, feature):
    config = json_set(tmp_path, form)
    expected = load_set(config).pairs
    rows = with_bytes(config.root, ROWS[form])
    path = tmp_path / "cells.parquet"
    if feature is None:
        pq.write_table(table_of(rows), path)
    else:
        columns = {name: [row.get(name) for row in rows] for name in rows[0] | rows[-1]}
        names = [name for name in PICTURE_FIELDS if name in columns]
        for name in names:
            columns[name] = [cell and {"bytes": cell, "path": "x.png"} for cell in columns[name]]
        table = datasets.Dataset.from_dict(columns)
        for name in names:
            table = table.cast_column(name, feature)
        table.to_parquet(path)
    loaded = load_set(replace(config, path=str(path)))
    assert loaded.bad_rows == ()
    assert [*map(without_uris, loaded.pairs)] == [*map(without_uris, expected)]
    uris = uris_of(loaded.pairs)
    assert uris[0].startswith(f"{path}#row=0&column=")
    pictures, failed = load_pictures([*uris, *uris_of(expected)], MediaConfig())
    assert failed == {}
    for cell, file in zip(uris, uris_of(expected), strict=True):
        assert np.array_equal(pictures[cell], pictures[file])


def test_a_struct_with_a_path_and_no_bytes_names_a_file(tmp_path):
    config = json_set(tmp_path, "colpali")
    cells = [{"bytes": None, "path": "a.png"}, {"bytes": None, "path": None}, None]
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    table = pa.table({"query": ["which?", "who?", "why?"], "image": pa.array(cells, kind)})
    pq.write_table(table, tmp_path / "a.parquet")
    loaded = load_set(replace(config, path=str(tmp_path / "a.parquet")))
    assert uris_of(loaded.pairs) == [str(Path(config.root) / "a.png")]
    assert [bad.reason for bad in loaded.bad_rows] == [
        f"{tmp_path}/a.parquet row {row}, field 'image': the target is empty: no text and no "
        "picture; mend or remove the row"
        for row in (2, 3)
    ]


def test_pages_are_equal_by_file_name_and_by_bytes(tmp_path):
    config = json_set(tmp_path, "colpali")
    page = (Path(config.root) / "a.png").read_bytes()
    rows = [
        {"query": "1", "image": page, "image_filename": "p.jpg", "source": "pdf"},
        {"query": "2", "image": page, "image_filename": "p.jpg", "source": "pdf"},
        {"query": "3", "image": page, "image_filename": "p.jpg", "source": "web"},
        {"query": "4", "image": page, "source": "web"},
    ]
    pairs = load_set(as_parquet(config, rows)).pairs
    assert [pair.label for pair in pairs] == ["pdf/p.jpg", "pdf/p.jpg", "web/p.jpg", ""]
    assert len(pairs) == 4
    assert len(set(uris_of(pairs))) == 1
    assert {pair.target.kind for pair in pairs} == {Kind.PAGE}


NO_TEXT = (np.array([0, 1, 2], np.int32), b"\xff\xfe")
"""Offsets and bytes of two cells that are no UTF-8."""
FIELDS = {
    "qry": (pa.array([["a"], ["b"]]), "expected text, found list"),
    "pos_text": (pa.array([b"a", b"b"]), "expected text, found bytes"),
    "label": (pa.array([b"a", b"b"]), "expected text, found bytes"),
    "id": (pa.array([1.5, 2.5]), "expected text or a whole number, found float"),
    "qry_image_path": (pa.array([1, 2]), "expected text, found int"),
    "neg_text": (pa.array([[b"a"], [b"b"]]), "expected text, found bytes"),
    "cot_knows_answer": (pa.array(["maybe", "no"]), "expected true or false, found str"),
    "neg_image_path": (
        pa.Array.from_buffers(pa.string(), 2, [None, *map(pa.py_buffer, NO_TEXT)]),
        "expected text, found bytes",
    ),
}


@pytest.mark.parametrize("field", sorted(FIELDS))
def test_a_column_of_the_wrong_type_is_named_with_file_row_and_field(tmp_path, field):
    column, words = FIELDS[field]
    config = write_set(tmp_path, [])
    texts = {"qry": pa.array(["a", "b"]), "pos_text": pa.array(["c", "d"])}
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table(texts | {field: column}), path)
    loaded = load_set(replace(config, path=str(path)))
    assert [bad.reason for bad in loaded.bad_rows] == [
        f"{path} row {row}, field '{field}': {words}; mend or remove the row" for row in (1, 2)
    ]


def write_shards(folder: Path, names: list[str]) -> None:
    folder.mkdir(exist_ok=True)
    for name in names:
        pq.write_table(pa.table({"qry": [f"{name} {row}" for row in range(3)]}), folder / name)


def test_the_files_of_a_folder_are_read_in_natural_order(tmp_path):
    write_shards(tmp_path, ["part-10.parquet", "part-9.parquet", ".hidden.parquet"])
    (tmp_path / "README.md").touch()
    rows = read_rows(tmp_path)
    assert [row["qry"] for row in rows] == [
        f"part-{part}.parquet {row}" for part in (9, 10) for row in range(3)
    ]
    assert isinstance(rows, TableRows)
    assert rows.place(3) == f"{tmp_path}/part-10.parquet row 1"
    assert rows[2:].place(1) == rows.place(3)
    shards = tuple(f"{tmp_path}/part-{part}.parquet" for part in (9, 10))
    assert rows.file_ends() == (shards, (3, 6))
    assert rows[-1] == rows[5]
    assert list(rows[4:1:-2]) == [rows[4], rows[2]]
    assert (len(rows[:4]), rows[:4][3]) == (4, rows[3])
    with pytest.raises(IndexError):
        rows[6]


@pytest.mark.parametrize(
    ("names", "words"),
    [
        (
            ["train-00000-of-00003", "train-00002-of-00003"],
            r"train-00001-of-00003\.parquet is miss",
        ),
        (["train-00000-of-00002"], r"train-00001-of-00002\.parquet is missing"),
        (["train-00002-of-00002"], r"train-00001-of-00002\.parquet is missing"),
        (["train-00000-of-00001", "test-00000-of-00001"], "test-.*train-.*a folder of its own"),
        (["train-00000-of-00001", "train-00000-of-00002"], "a folder of its own"),
        (["train-00000-of-00001-1a2b", "train-00000-of-00001-3c4d"], "2 with 1 numbers"),
        (["train-00000-of-00002-1a2b"], r"train-00001-of-00002\.parquet is missing"),
        ([], "expected parquet files in the folder, found none"),
    ],
)
def test_a_folder_with_a_gap_or_several_sets_is_refused(tmp_path, names, words):
    write_shards(tmp_path, [f"{name}.parquet" for name in names])
    with pytest.raises(DataError, match=words):
        read_rows(tmp_path)


@pytest.mark.parametrize("first", [0, 1])
def test_files_may_be_numbered_from_0_or_1(tmp_path, first):
    names = [f"train-{first + n:05d}-of-00003.parquet" for n in range(3)]
    write_shards(tmp_path, names)
    assert len(read_rows(tmp_path)) == 9


def test_rows_are_made_when_they_are_asked_for(tmp_path):
    count = 40 * BATCH
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"qry": [f"{n} " + "x" * 500 for n in range(count)]}), path)
    rows = read_rows(path)
    rows[0]
    tracemalloc.start()
    try:
        assert [len(row) for row in rows].count(1) == len(rows) == count
        assert tracemalloc.get_traced_memory()[1] < 500 * count / 4
    finally:
        tracemalloc.stop()


def test_a_part_of_a_table_is_named_by_the_rows_of_its_files(tmp_path):
    folder = tmp_path / "rows"
    folder.mkdir()
    for number in range(2):
        texts = [f"{number}.{row}" for row in range(5)]
        ranks = [3.0, None, 1.0, 2.0, 0.5]
        table = pa.table({"qry": texts, "pos_text": ["", *texts[1:]], "rank": ranks})
        pq.write_table(table, folder / f"{number}.parquet")

    def place(row):
        return [f"{folder}/{number}.parquet row {row}" for number in range(2)]

    settings = DataSetConfig(name="s", path=str(folder), root=str(tmp_path), sample=4)
    spread = load_set(replace(settings, extra_fields="ignore"))
    assert [pair.query.text for pair in spread.pairs] == ["0.2", "1.2"]
    assert [bad.where for bad in spread.bad_rows] == place(1)
    hardest = load_set(replace(settings, hardest_by="rank"))
    assert [pair.query.text for pair in hardest.pairs] == ["0.2", "0.4", "1.2", "1.4"]
    assert [bad.where for bad in hardest.unranked] == [
        f"{folder}/{n}.parquet row 2" for n in (0, 1)
    ]


def test_only_the_files_whose_rows_are_used_are_unpacked(tmp_path):
    write_shards(tmp_path, ["part-0.parquet", "part-1.parquet"])
    broken = (tmp_path / "part-1.parquet").read_bytes()
    (tmp_path / "part-1.parquet").write_bytes(broken[:4] + b"\xff" * 40 + broken[44:])
    rows = read_rows(tmp_path)
    assert len(rows) == 6
    assert len(list(rows[:3])) == 3
    with pytest.raises(DataError, match=r"part-1\.parquet: not a readable parquet file"):
        list(rows)


def test_a_set_with_a_truncated_file_is_refused_by_name(tmp_path):
    config = json_set(tmp_path, "mmeb")
    whole = Path(as_parquet(config, ROWS["mmeb"]).path)
    for cut in (20, len(whole.read_bytes()) - 9):
        path = tmp_path / f"cut-{cut}.parquet"
        path.write_bytes(whole.read_bytes()[:cut])
        with pytest.raises(DataError, match=rf"cut-{cut}\.parquet: not a readable parquet file"):
            load_set(replace(config, path=str(path)))


def test_the_row_numbers_that_pandas_writes_are_no_fields(tmp_path):
    config = write_set(tmp_path, [])
    table = {"qry": ["a"], "pos_text": ["b"]}
    pq.write_table(pa.table(table | {"__index_level_0__": [7]}), tmp_path / "a.parquet")
    (tmp_path / "a.csv").write_text(",qry,pos_text\n0,a,b\n")
    for name in ("a.parquet", "a.csv"):
        assert list(read_rows(tmp_path / name)) == [{"qry": "a", "pos_text": "b"}]
        assert load_set(replace(config, path=str(tmp_path / name))).unknown_fields == {}


@pytest.mark.parametrize(
    ("text", "rows"),
    [
        ("qry;pos_text\na,b;c\n", [{"qry": "a,b", "pos_text": "c"}]),
        ('"qry","pos_text"\n"a\nb",""\n', [{"qry": "a\nb"}]),
        ("\ufeffqry,pos_text\r\n007,true\r\n", [{"qry": "007", "pos_text": "true"}]),
        ("qry,pos_text\n", []),
    ],
)
def test_cells_of_csv_are_texts(tmp_path, text, rows):
    path = tmp_path / "rows.csv"
    path.write_text(text, newline="")
    assert list(read_rows(path)) == rows


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"qry,pos_text\nc\nd\n", "row 1: expected 2 cells, as many as the first line names"),
        (b"qry,qry\na,b\n", "two columns are called 'qry'"),
        (b"qry,pos_text\na,\xff\n", "invalid UTF8"),
        (b"qry,pos_text\na,b,\xff\n", "its text is UTF-8"),
        (b"qry,pos_text", "first line holds the names of the columns"),
    ],
)
def test_malformed_csv_is_refused_with_the_row(tmp_path, content, words):
    path = tmp_path / "rows.csv"
    path.write_bytes(content)
    with pytest.raises(DataError, match=words) as caught:
        read_rows(path)
    assert str(caught.value).startswith(f"{path}: ")


@pytest.mark.parametrize("block", [1 << 20, 24])
def test_a_line_of_csv_with_other_cells_than_the_first_is_set_aside(tmp_path, monkeypatch, block):
    monkeypatch.setattr(data.rows.row_files, "CSV_BLOCK", block)
    config = write_set(tmp_path, [], hardest_by="rate", sample=2)
    path = tmp_path / "rows.csv"
    path.write_bytes(b'qry,pos_text,rate\nbad\n"a\n1",b,3\n\nc,d\ne,f,1,x\ng,h,2\nbad,\xc3\xa9\n')
    loaded = load_set(replace(config, path=str(path)))
    assert [(pair.query.text, pair.row) for pair in loaded.pairs] == [("a\n1", 1), ("g", 4)]
    expected = "expected 3 cells, as many as the first line names, found"
    assert [bad.reason for bad in loaded.unranked] == [
        f"{path} row 1: {expected} 1 in 'bad'; mend the line",
        f"{path} row 3: {expected} 2 in 'c,d'; mend the line",
        f"{path} row 4: {expected} 4 in 'e,f,1,x'; mend the line",
        f"{path} row 6: {expected} 2 in 'bad,\\xe9'; mend the line",
    ]
    assert read_rows(path).at([4, 0])[0] == {"qry": "g", "pos_text": "h", "rate": "2"}
    every = load_set(replace(config, path=str(path), hardest_by="", sample=0))
    assert [bad.index for bad in every.bad_rows] == [0, 2, 3, 5]
    assert every.bad_rows[0].reason == f"{path} row 1: {expected} 1 in 'bad'; mend the line"


def test_a_quote_in_csv_that_is_not_closed_is_told(tmp_path):
    config = write_set(tmp_path, [])
    path = tmp_path / "rows.csv"
    path.write_text('qry,pos_text\na,b\n"c,d\ne,f\n')
    loaded = load_set(replace(config, path=str(path)))
    assert [pair.row for pair in loaded.pairs] == [0]
    [bad] = loaded.bad_rows
    assert bad.reason.endswith(
        "whose quote is not closed and hides the lines behind it; mend the line"
    )


def test_a_cell_that_should_hold_json_and_does_not_is_set_aside(tmp_path):
    config = write_set(tmp_path, [], format="mmeb_eval")
    path = tmp_path / "rows.csv"
    path.write_text('qry_text,tgt_text,tgt_img_path\na,"[""b"",","[""""]"\n')
    (bad,) = load_set(replace(config, path=str(path))).bad_rows
    expected = "expected a list of texts, found str; mend or remove the row"
    assert bad.reason == f"{path} row 1, field 'tgt_text': {expected}"


def test_archives_that_are_broken_too_large_or_of_tables_are_refused(tmp_path, monkeypatch):
    whole = gzip.compress(json.dumps(ROWS["mmeb"]).encode(), mtime=0)
    table = pa.BufferOutputStream()
    pq.write_table(pa.table({"a": [1]}), table)
    for name, content, words in (
        ("cut", whole[:-12], "not a whole gzip archive"),
        ("wrong", whole[:20] + b"\xff" * 9 + whole[29:], "not a whole gzip archive"),
        (
            "parquet",
            gzip.compress(table.getvalue().to_pybytes()),
            "a parquet file in an archive",
        ),
    ):
        path = tmp_path / f"{name}.json.gz"
        path.write_bytes(content)
        with pytest.raises(DataError, match=words):
            read_rows(path)
    monkeypatch.setattr(data.rows.row_files, "MAX_UNPACKED", 100)
    path.write_bytes(whole)
    with pytest.raises(DataError, match="more than 100 bytes when unpacked"):
        read_rows(path)


@pytest.mark.parametrize("name", ["rows.csv", "rows.json.gz"])
def test_a_full_folder_for_temporary_files_is_named(tmp_path, monkeypatch, name):
    (tmp_path / "rows.csv").write_text("qry,pos_text\na,b\n")
    (tmp_path / "rows.json.gz").write_bytes(gzip.compress(json.dumps(ROWS["mmeb"]).encode()))
    # A file of the system whose disk is always full.
    full = partial(open, "/dev/full", "wb", buffering=0)
    monkeypatch.setattr(data.rows.row_files.tempfile, "TemporaryFile", full)
    with pytest.raises(DataError, match=rf"{name}: no room for its rows in .* set TMPDIR to a"):
        read_rows(tmp_path / name)


def test_cells_are_named_by_rows_of_other_files_only_inside_the_root(tmp_path):
    config = json_set(tmp_path, "mmeb")
    inside, outside = Path(config.root) / "in.parquet", tmp_path / "out.parquet"
    for path in (inside, outside):
        pq.write_table(pa.table({"image": [b"1", b"2"]}), path)
    files = PictureFiles(Path(config.root))
    name = "in.parquet#row=1&column=image"
    assert files.path(name, where="x") == f"{config.root}/{name}"
    for name, words in (
        (f"{outside}#row=0&column=image", "leaves it"),
        ("in.parquet#row=9&column=image", "no such row"),
        ("in.parquet#row=0&column=a", "no such column"),
        ("a.png#row=0&column=image", "expected a parquet or Arrow file"),
        ("in.parquet#row=" + "9" * 5000 + "&column=image", "not a usable path"),
    ):
        with pytest.raises(DataError, match=f"x: .*{words}"):
            files.path(name, where="x")
    # A cell of the row itself may lie anywhere.
    own = f"{outside}#row=1&column=image"
    assert files.cell(own, where="x") == own
    with pytest.raises(DataError, match="leaves it"):
        files.path(own, where="x")


def test_the_fingerprint_of_a_folder_sees_all_its_files(tmp_path):
    def fingerprint() -> dict[str, dict[str, str]]:
        sets = [DataSetConfig(name="a", path=str(folder), root=str(tmp_path))]
        return {"data.train": pairs_fingerprint(sets, [])}

    folder = tmp_path / "rows"
    write_shards(folder, ["part-0.parquet", "part-1.parquet"])
    before = fingerprint()
    assert changed_inputs(before, fingerprint()) == []
    (folder / "part-1.parquet").write_bytes(b"x")
    (line,) = changed_inputs(before, fingerprint())
    assert "file of set 'a': there 2 files, " in line


def test_a_table_without_rows_is_empty_and_not_broken(tmp_path):
    path = tmp_path / "none.parquet"
    pq.write_table(pa.table({"qry": pa.array([], pa.string())}), path)
    assert list(read_rows(path)) == []
