"""What data and models are: the same for a copy, another for any change that training would see."""

import json
import os
import shutil
from dataclasses import replace

import pytest

from configs.common import DataSetConfig
from data.sets.fingerprints import (
    PARTS,
    WHOLE_BYTES,
    changed_inputs,
    model_fingerprint,
    pairs_fingerprint,
    rows_fingerprint,
)
from data.sets.load_sets import load_set
from tests.builders import write_set


@pytest.fixture
def model(tmp_path):
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    with (folder / "model.safetensors").open("wb") as file:
        file.truncate(WHOLE_BYTES + 1)
    return folder


def test_a_copied_model_is_the_same(model, tmp_path):
    shutil.copytree(model, tmp_path / "copy", copy_function=shutil.copyfile)
    os.utime(tmp_path / "copy/config.json", (0, 0))
    (tmp_path / "copy/README.md").touch()
    assert model_fingerprint(str(tmp_path / "copy")) == model_fingerprint(str(model))


def test_a_model_with_other_weights_or_settings_is_another(model):
    before = {"model": model_fingerprint(str(model))}
    with (model / "model.safetensors").open("r+b") as file:
        file.seek(WHOLE_BYTES // (PARTS - 1) * (PARTS // 2) + PARTS)
        file.write(b"x" * (WHOLE_BYTES // PARTS))
    (model / "config.json").write_text('{"a": 1}')
    (model / "chat_template.jinja").touch()
    now = {"model": model_fingerprint(str(model))}
    lines = changed_inputs(before, now)
    assert [line.split(":")[0] for line in lines] == [
        "model, chat_template.jinja",
        "model, config.json",
        "model, model.safetensors",
    ]
    assert "config.json: there 2 bytes, " in lines[1]
    assert ", now 8 bytes, " in lines[1]


def test_no_folder_has_no_fingerprint():
    assert model_fingerprint("") == {}


@pytest.fixture
def rows(tmp_path):
    """Return a function that writes a set of rows and returns its fingerprint."""

    def written(*words):
        path = tmp_path / "rows.json"
        path.write_text(json.dumps([{"qry": word, "pos_text": word, "id": word} for word in words]))
        sets = [DataSetConfig(name="words", path=str(path), root=str(tmp_path))]
        return {"data.train": pairs_fingerprint(sets, [load_set(one) for one in sets])}

    return written


@pytest.mark.parametrize("now", [["a", "b"], ["b", "a", "c"], ["a", "b", "d"]])
def test_rows_that_are_gone_moved_or_other_ones_are_seen(rows, now):
    before = rows("a", "b", "c")
    assert changed_inputs(before, rows("a", "b", "c")) == []
    file, used = changed_inputs(before, rows(*now))
    assert "file of set 'words'" in file
    assert "rows in use: there 3 rows, " in used
    assert f", now {len(now)} rows, " in used


def test_a_row_that_is_set_aside_now_is_seen_though_its_file_is_the_same(tmp_path):
    before = {"data.train": rows_fingerprint([], ["a", "b"], [])}
    assert changed_inputs(before, {"data.train": rows_fingerprint([], ["a"], [])})


def test_another_sample_of_the_same_file_is_seen(tmp_path):
    config = write_set(tmp_path, [{"qry": "q", "pos_text": "t", "rate": -i} for i in range(9)])
    changed = [replace(config, sample=3), replace(config, sample=3, hardest_by="rate")]
    there, *others = (
        {"data.train": pairs_fingerprint([settings], [load_set(settings)])}
        for settings in (config, *changed)
    )
    for other in others:
        [used] = changed_inputs(there, other)
        assert "rows in use: there 9 rows, " in used
    assert changed_inputs(*others)


def test_a_picture_that_is_another_now_is_seen(tmp_path):
    path = tmp_path / "a.png"
    path.write_bytes(b"1")
    before = rows_fingerprint([], [], [str(path)])
    path.write_bytes(b"22")
    assert rows_fingerprint([], [], [str(path)]) != before


def test_a_page_of_a_pdf_that_is_another_now_is_seen(tmp_path):
    path = tmp_path / "a.pdf"
    path.write_bytes(b"1")
    before = rows_fingerprint([], [], [f"{path}#page=2"])
    path.write_bytes(b"22")
    assert rows_fingerprint([], [], [f"{path}#page=2"]) != before
