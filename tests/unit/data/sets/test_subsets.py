"""Rows that a set leaves out, as a file of near duplicates names them."""

import json
import logging
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import data.sets.open_sets
from data.errors import DataError
from data.sets.fingerprints import file_fingerprint
from data.sets.load_sets import load_set
from data.sets.subsets import CHECKED_FILES
from tests.builders import write_set

ROWS = [{"qry": f"question {n}", "pos_text": f"answer {n}"} for n in range(10)]


@pytest.fixture
def config(tmp_path):
    """Return a set of ten rows."""
    return write_set(tmp_path, ROWS)


def leave_out(config, entries, *, files=None, name="near.parquet", **changes):
    """Return a set that leaves out rows (file, row from 1); ``files`` were checked."""

    checked = {str(file): file_fingerprint(Path(file)) for file in files or [config.path]}
    columns = {
        "file": pa.array([str(file) for file, _ in entries], pa.string()),
        "row": pa.array([row for _, row in entries], pa.int64()),
    }
    table = pa.table(columns).replace_schema_metadata({CHECKED_FILES: json.dumps(checked)})
    path = Path(config.root) / name
    pq.write_table(table, path)
    return replace(config, leave_out=str(path), **changes)


def rows_of(config):
    """Return the numbers of the rows that a set uses, from 0."""
    return [pair.row for pair in load_set(config).pairs]


def test_rows_are_left_out_with_a_count_and_keep_their_numbers(config, caplog):
    settings = leave_out(config, [(config.path, row) for row in (1, 4, 4, 10)])
    with caplog.at_level(logging.INFO):
        loaded = load_set(settings)
    assert [pair.row for pair in loaded.pairs] == [1, 2, 4, 5, 6, 7, 8]
    assert (loaded.rows, loaded.read, loaded.bad_rows) == (10, 7, ())
    assert f"data set 'set': 3 of 10 rows left out, which {settings.leave_out} names" in caplog.text
    assert loaded.place(1) == (config.path, 2)


def test_other_rows_do_not_take_their_place(config):
    entries = [(config.path, 1), (config.path, 3)]
    assert rows_of(leave_out(config, entries, limit=4)) == [1, 3]
    assert rows_of(leave_out(config, entries, sample=5)) == [4, 6, 8]


def test_a_file_with_rows_of_other_sets_serves_all_of_them(tmp_path, config):
    other = tmp_path / "other.json"
    other.write_text("[]")
    files = [config.path, other]
    assert rows_of(leave_out(config, [(other, 1), (other, 99)], files=files)) == [*range(10)]
    assert rows_of(leave_out(config, [], files=files)) == [*range(10)]


def test_paths_may_be_written_in_another_way(tmp_path, config, monkeypatch):
    monkeypatch.chdir(tmp_path)
    settings = leave_out(config, [("rows.json", 1)], files=["./rows.json"])
    assert rows_of(settings) == [*range(1, 10)]


def test_rows_of_each_file_of_a_folder_count_by_themselves(tmp_path, config):
    folder = tmp_path / "parts"
    folder.mkdir()
    files = [folder / f"part-{n}.parquet" for n in (9, 10)]
    for file, rows in zip(files, (ROWS[:6], ROWS[6:]), strict=True):
        pq.write_table(pa.Table.from_pylist(rows), file)
    entries = [(files[0], 6), (files[1], 1)]
    settings = leave_out(config, entries, files=files, path=str(folder))
    assert rows_of(settings) == [0, 1, 2, 3, 4, 7, 8, 9]


@pytest.mark.parametrize("row", [0, 11])
def test_a_row_that_the_file_does_not_have_is_refused(config, row):
    with pytest.raises(DataError, match=rf"expected rows from 1 to 10 of .*, found row {row};"):
        load_set(leave_out(config, [(config.path, row)]))


def test_a_file_about_other_sets_is_refused(tmp_path, config):
    other = tmp_path / "other.json"
    other.write_text("[]")
    with pytest.raises(DataError, match=r"expected rows of .*rows\.json, found that check_data"):
        load_set(leave_out(config, [(other, 1)], files=[other]))


def test_a_file_that_is_older_than_the_rows_is_refused(tmp_path, config):
    settings = leave_out(config, [(config.path, 1)])
    (tmp_path / "rows.json").write_text(json.dumps(ROWS[::-1]))
    with pytest.raises(DataError, match=r"rows\.json has changed since check_data read it .*again"):
        load_set(settings)


def test_a_file_that_names_every_row_is_refused(config):
    settings = leave_out(config, [(config.path, row) for row in range(1, 11)], limit=5)
    with pytest.raises(DataError, match="names each of the 5 rows in use"):
        load_set(settings)


def test_what_is_no_file_of_near_duplicates_is_refused(tmp_path, config):

    plain = tmp_path / "plain.parquet"
    pq.write_table(pa.table({"file": [config.path], "row": [1]}), plain)
    good = leave_out(config, [(config.path, 1)]).leave_out
    nameless = tmp_path / "nameless.parquet"
    pq.write_table(pq.read_table(good).select(["row"]), nameless)
    wrong = tmp_path / "wrong.parquet"
    texts = pa.array(["x"])
    pq.write_table(pq.read_table(good).set_column(1, "row", texts), wrong)
    for path in (tmp_path / "none.parquet", config.path, tmp_path, plain, nameless, wrong):
        with pytest.raises(DataError, match=r"leave_out: .*: expected near_duplicates\.parquet"):
            load_set(replace(config, leave_out=str(path)))


def test_a_part_of_the_file_may_be_chosen_with_pyarrow(tmp_path, config):

    table = pq.read_table(leave_out(config, [(config.path, 1), (config.path, 2)]).leave_out)
    pq.write_table(table.slice(1), tmp_path / "mine.parquet")
    chosen = replace(config, leave_out=str(tmp_path / "mine.parquet"))
    assert rows_of(chosen) == [0, *range(2, 10)]


def test_a_kept_index_heeds_a_changed_file_and_tells_of_the_rows_again(
    tmp_path, config, monkeypatch, caplog
):
    monkeypatch.setenv("EMBED_RL_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(data.sets.open_sets, "LARGE", 0)
    monkeypatch.setattr(data.sets.open_sets, "KEPT_FROM", 0)
    settings = leave_out(config, [(config.path, 1)])
    for _ in range(2):
        caplog.clear()
        assert rows_of(settings) == [*range(1, 10)]
        assert "1 of 10 rows left out" in caplog.text
    assert len(list((tmp_path / "cache/indexes").iterdir())) == 1
    leave_out(config, [(config.path, 2)])
    assert rows_of(settings) == [0, *range(2, 10)]
    Path(settings.leave_out).unlink()
    with pytest.raises(DataError, match="expected near_duplicates"):
        load_set(settings)
