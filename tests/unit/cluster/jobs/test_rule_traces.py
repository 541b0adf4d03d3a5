"""Job `rule_traces`: the files it writes are data sets of their own, and bad sets are refused."""

import json
from dataclasses import replace
from datetime import date
from decimal import Decimal
from pathlib import Path

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image
from tokenizers import Tokenizer

from cluster.jobs.rule_traces import main
from configs.common import DataConfig, DataSetConfig, RunConfig
from configs.schema import RuleTracesConfig, problems
from data.errors import ConfigError, DataError
from data.model.model_folder import check_folder
from data.rows.row_files import read_rows
from data.sets.load_sets import load_set

ROWS = 30


@pytest.fixture
def config(tmp_path: Path) -> RuleTracesConfig:
    """Two sets on the same pictures, one of them a video set, outside the run folder."""
    root = tmp_path / "mine"
    root.mkdir()
    mmeb, clips = [], []
    for index in range(ROWS):
        for frame in range(3):
            pixels = np.full((64, 64, 3), 255, np.uint8)
            pixels[index : index + 20, 10 * frame : 10 * frame + 20] = (0, 0, 200)
            Image.fromarray(pixels).save(root / f"{index}-{frame}.png")
        mmeb.append(
            {"qry": "Name it.", "qry_image_path": f"{index}-0.png", "pos_text": f"sign {index}"}
        )
        clips.append(
            {
                "id": f"clip {index}",
                "qry": {
                    "conversations": [{"from": "human", "value": "<video>\nDescribe it."}],
                    "video": [f"{index}-{frame}.png" for frame in range(3)],
                },
                "pos": {"conversations": [{"from": "gpt", "value": f"sign {index} moving"}]},
            }
        )
    (root / "names.json").write_text(json.dumps(mmeb))
    (root / "clips.json").write_text(json.dumps(clips))
    names = DataSetConfig(name="names", path=str(root / "names.json"), root=str(root))
    moving = DataSetConfig(
        name="clips", path=str(root / "clips.json"), root=str(root), format="llavahound"
    )
    return RuleTracesConfig(
        run=RunConfig(dir=str(tmp_path / "run")),
        data=DataConfig(train=[names, moving], templates="brief"),
        on_target=0.5,
        heldout=0.2,
    )


def again(config: DataSetConfig, path: Path, **change: object) -> DataSetConfig:
    return replace(config, path=str(path), **change)


def test_written_files_are_data_sets_with_traces(config, capsys):
    assert main(config) == 0
    printed = capsys.readouterr().out
    run = Path(config.run.dir)
    for settings in config.data.train:
        name = settings.name
        train = load_set(again(settings, run / f"train/teacher_{name}.json"))
        filtered = load_set(again(settings, run / f"train/filtered_{name}.json"))
        heldout = load_set(again(settings, run / f"heldout/{name}.json"))
        sight = load_set(again(settings, run / f"train/sight_{name}.json", format="caption"))
        for one in (train, filtered, heldout, sight):
            assert not one.bad_rows
        assert all(p.query_trace and p.target_trace for p in (*train.pairs, *heldout.pairs))
        assert len(train.pairs) == len(filtered.pairs) == len(sight.pairs)
        assert len(train.pairs) + len(heldout.pairs) == ROWS
        assert not {p.pair_id for p in train.pairs} & {p.pair_id for p in heldout.pairs}
        assert f"{name}: {len(train.pairs)} training rows" in printed
    assert json.loads((run / "quarantine.json").read_text()) == []


def test_rows_that_an_address_names_get_the_same_traces(config):
    main(config)
    sets = [replace(settings, path=f"file://{settings.path}") for settings in config.data.train]
    other = replace(config.run, dir=f"{config.run.dir}-2")
    main(replace(config, run=other, data=replace(config.data, train=sets)))
    for name in ("train/filtered_names.json", "heldout/clips.json"):
        assert Path(config.run.dir, name).read_bytes() == Path(other.dir, name).read_bytes()


def test_rows_keep_their_columns_and_ids(config):
    main(config)
    rows = read_rows(Path(config.run.dir) / "train/filtered_clips.json")
    originals = {row["id"]: row for row in read_rows(Path(config.data.train[1].path))}
    for row in rows:
        assert row.items() >= originals[row["id"]].items()
        added = {"query_cot", "pos_cot", "cot_knows_answer"}
        assert row.keys() - originals[row["id"]].keys() == added
        assert row["cot_knows_answer"] is True


def test_columns_that_the_next_job_would_refuse_are_left_out_and_named_once(config, capsys):
    names = config.data.train[0]
    rows = [row | {"note": "x", "split": 1, "hard": 0.5} for row in read_rows(Path(names.path))]
    Path(names.path).write_text(json.dumps(rows))
    names = replace(names, extra_fields="ignore", sample=ROWS, hardest_by="hard")
    assert main(replace(config, data=replace(config.data, train=[names]))) == 0
    told = (
        "names: the rows with traces lack columns that the format 'mmeb' does not know: note, split"
    )
    assert capsys.readouterr().out.count(told) == 1
    for file in ("train/filtered", "train/teacher"):
        written = again(names, Path(config.run.dir) / f"{file}_names.json", extra_fields="refuse")
        loaded = load_set(written)
        assert loaded.pairs
        assert loaded.unknown_fields == {}


def test_pictures_in_cells_get_traces_and_stay_in_their_cells(config, monkeypatch, tmp_path):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))
    names = config.data.train[0]
    root, rows = Path(names.root), [*read_rows(Path(names.path))]
    for row in rows:
        row["qry_image_path"] = (root / row["qry_image_path"]).read_bytes()
        row |= {"day": date(2026, 1, 2), "hard": Decimal("1.5")}
    table = root / "names.parquet"
    pq.write_table(pa.Table.from_pylist(rows), table)
    settings = again(names, table, extra_fields="ignore", sample=ROWS, hardest_by="hard")
    assert main(replace(config, data=replace(config.data, train=[settings]))) == 0
    run = Path(config.run.dir) / "train"
    for file, form in (("filtered_names.json", "mmeb"), ("sight_names.json", "caption")):
        loaded = load_set(again(settings, run / file, format=form, sample=0, hardest_by=""))
        assert not loaded.bad_rows
        assert all(p.query.uris[0].startswith(f"{table}#row=") for p in loaded.pairs)
    row = read_rows(run / "filtered_names.json")[0]
    assert (row["hard"], "day" in row) == ("1.5", False)


def test_pictures_in_a_table_outside_the_root_are_refused(config, monkeypatch, tmp_path):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))
    names = config.data.train[0]
    picture = (Path(names.root) / "0-0.png").read_bytes()
    path = tmp_path / "rows.parquet"
    pq.write_table(pa.table({"qry_image_path": [picture], "pos_text": ["a sign"]}), path)
    data = replace(config.data, train=[replace(names, path=str(path))])
    with pytest.raises(ConfigError, match=f"its root {names.root}, found '{path}#row=0"):
        main(replace(config, data=data))


def test_traces_go_to_the_row_that_became_the_pair(config):
    path = Path(config.data.train[0].path)
    rows = [*read_rows(path)]
    # The first row of an id is refused, the second stands; another row has no id at all.
    rows[0] |= {"id": "twice", "pos_text": ""}
    rows[1] |= {"id": "twice"}
    rows[2] |= {"id": None}
    path.write_text(json.dumps(rows))
    assert main(config) == 0
    run = Path(config.run.dir)
    written = [
        row
        for folder in ("train/filtered_names.json", "heldout/names.json")
        for row in read_rows(run / folder)
    ]
    by_id = {row["id"]: row["pos_text"] for row in written}
    assert by_id["twice"] == "sign 1"
    assert by_id["names-2"] == "sign 2"


def test_a_second_run_in_the_same_folder_does_nothing(config, capsys):
    main(config)
    assert main(config) == 0
    assert "already finished" in capsys.readouterr().out


def test_tiny_model_knows_the_sets_words(config):
    main(replace(config, vocabulary=400))
    folder = check_folder(f"{config.run.dir}/model")
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    assert tokenizer.get_vocab_size() <= 400
    assert len(tokenizer.encode(" sign").ids) == 1
    assert len(tokenizer.encode("<thinking>").ids) == 1


def test_bad_pictures_are_set_aside_up_to_the_limit(config, capsys):
    names = config.data.train[0]
    Path(names.root, "3-0.png").write_bytes(b"no picture")
    data = replace(config.data, train=[names])
    main(replace(config, data=data))
    assert "1 set aside (picture not readable)" in capsys.readouterr().out
    (bad,) = json.loads(Path(config.run.dir, "quarantine.json").read_text())
    assert bad["where"] == "data set 'names', id 'names-3'"
    strict = replace(
        config,
        run=RunConfig(dir=f"{config.run.dir}-2"),
        data=replace(data, max_bad_rows=0.0),
    )
    with pytest.raises(DataError, match=r"'names': 1 of 30 rows got no trace.*max_bad_rows"):
        main(strict)


def test_a_set_without_a_usable_picture_is_not_told_to_raise_a_limit(config):
    names = config.data.train[0]
    for path in Path(names.root).glob("*.png"):
        Image.new("RGBA", (32, 32), (255, 255, 255, 0)).save(path)
    with pytest.raises(DataError) as caught:
        main(replace(config, data=replace(config.data, train=[names])))
    assert "30 of 30 rows got no trace, 0 are held out and 0 are left for" in str(caught.value)
    assert "mend their files, or leave the set out" in str(caught.value)
    assert "max_bad_rows" not in str(caught.value)


def test_impossible_settings_are_all_named(config):
    wrong = replace(
        config,
        on_target=2.0,
        vocabulary=10,
        data=DataConfig(
            train=[
                DataSetConfig(name="../up", path="x", root="y"),
                DataSetConfig(name="ok", path="x", root="y", format="mmeb_eval"),
            ]
        ),
    )
    found = "\n".join(problems(wrong))
    for key in ("on_target", "vocabulary", "data.train[0].name", "data.train[1].format"):
        assert key in found
    assert "data.train: expected at least one" in "\n".join(
        problems(replace(config, data=DataConfig()))
    )
