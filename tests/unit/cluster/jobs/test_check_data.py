"""The job `check_data` on sets of texts, which needs no Ray: its files, its end, its settings."""

import json
import zipfile
from dataclasses import replace
from itertools import product
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from cluster.jobs.check_data import (
    NEAR,
    NEAR_FILE,
    QUARANTINE,
    QUARANTINE_FILE,
    decode_all,
    leak_lines,
    main,
    media_problems,
    read_sets,
)
from configs.common import DataConfig, DataSetConfig, MediaConfig, RunConfig
from configs.load import load
from configs.schema import CheckDataConfig, RLConfig, problems
from data.errors import ClusterError, DataError
from data.sets.load_sets import load_set
from evaluation.report.contact_sheet import PAIRS_SHOWN
from tests.builders import write_picture, write_set

CONFIGS = Path(__file__).resolve().parents[4] / "configs"


@pytest.fixture
def config(tmp_path: Path) -> CheckDataConfig:
    """A training set of which one of five rows is bad, and a held-out set that shares a query."""
    rows = [{"qry": f"question {n}", "pos_text": f"answer {n}"} for n in range(4)]
    sets = {}
    for name, content in (("mine", [*rows, {"qry": "alone"}]), ("[held]", rows[2:3])):
        folder = tmp_path / name
        folder.mkdir()
        sets[name] = write_set(folder, content, name=name)
    return CheckDataConfig(
        run=RunConfig(dir=str(tmp_path / "run")),
        data=DataConfig(train=[sets["mine"]], eval=[sets["[held]"]], max_bad_rows=0.2),
    )


def test_the_files_name_the_refusals_the_figures_and_the_leaks(config, capsys):
    assert main(config) == 0
    folder, file = Path(config.run.dir), config.data.train[0].path
    table = pq.read_table(folder / "quarantine.parquet")
    assert table.schema.equals(QUARANTINE)
    [line] = table.to_pylist()
    assert (line["data_set"], line["file"], line["row"]) == ("mine", file, 5)
    assert line["field"] == "pos_text or pos_image_path"
    summary = json.loads((folder / "check.json").read_text())
    assert [entry["pairs"] for entry in summary["sets"]] == [4, 1]
    assert {leak["what"]: leak["count"] for leak in summary["leaks"]} == {
        "query_texts": 1,
        "target_texts": 1,
    }
    assert "held-out set [held]" in (folder / "contact_sheet.html").read_text()
    printed = capsys.readouterr().out
    assert "[held] (held out)" in printed
    assert "training set 'mine' and held-out set '[held]' have in common: 1 query texts" in printed
    facts = json.loads((folder / "stage.json").read_text())
    assert (facts["rows"], facts["entries"]) == (6, 1)


def test_shared_target_texts_of_all_sets_are_one_line():
    leaks = [
        {"train": train, "held_out": held_out, "what": what, "count": count}
        for count, (train, held_out) in enumerate(product("ab", "cd"), start=1)
        for what in ("query_texts", "target_texts")
    ]
    lines = leak_lines(leaks)
    assert [line.rpartition(": ")[2] for line in lines[:4]] == [
        f"{n} query texts" for n in (1, 2, 3, 4)
    ]
    assert lines[4:] == [
        "training set 'b' and held-out set 'd' have in common: 4 target texts, as class labels may "
        "be; 4 pairs of sets share target texts, and this pair shares the most",
        "check.json names 8 cases under 'leaks'; remove from one set what must not be in both",
    ]
    assert leak_lines([]) == []


def test_rows_that_nearly_repeat_held_out_ones_are_named_and_a_set_leaves_them_out(config, capsys):
    assert main(config) == 0
    path, [mine], [held_out] = Path(config.run.dir) / NEAR_FILE, config.data.train, config.data.eval
    table = pq.read_table(path)
    assert table.schema.equals(NEAR)
    [line] = table.to_pylist()
    assert line == {
        "data_set": "mine",
        "file": mine.path,
        "row": 3,
        "side": "query",
        "what": "text",
        "similarity": 1.0,
        "of_data_set": "[held]",
        "of_file": held_out.path,
        "of_row": 1,
        "of_side": "query",
    }
    [group] = json.loads((Path(config.run.dir) / "check.json").read_text())["near_duplicates"]
    assert (group["data_set"], group["of_data_set"], group["rows"]) == ("mine", "[held]", 1)
    assert group["examples"] == [line]
    printed = capsys.readouterr().out.replace("\n", " ")
    words = "rows of training set 'mine' that nearly repeat parts of held-out set '[held]'"
    assert f"1 {words}" in printed
    assert f"data sets with leave_out: {path} leave these rows out" in printed
    sheet = (Path(config.run.dir) / "contact_sheet.html").read_text()
    assert "mine row 3, query text: 100% like [held] row 1, query" in sheet
    shorter = [replace(settings, leave_out=str(path)) for settings in (mine, held_out)]
    assert [pair.row for pair in load_set(shorter[0]).pairs] == [0, 1, 3]
    assert len(load_set(shorter[1]).pairs) == 1
    # A check reads the rows that sets leave out, too.
    data = replace(config.data, train=shorter[:1], eval=shorter[1:])
    again = replace(config, data=data, run=RunConfig(dir=f"{config.run.dir}-again"))
    assert main(again) == 0
    assert pq.read_table(Path(again.run.dir) / NEAR_FILE).equals(table)


def test_a_set_at_an_address_leaves_rows_out_too(config):
    data = config.data
    [mine] = [replace(settings, path=f"file://{settings.path}") for settings in data.train]
    assert main(replace(config, data=replace(data, train=[mine]))) == 0
    path = Path(config.run.dir) / NEAR_FILE
    assert pq.read_table(path)["file"].to_pylist() == [mine.path]
    assert [pair.row for pair in load_set(replace(mine, leave_out=str(path))).pairs] == [0, 1, 3]


def test_the_contact_sheet_shows_the_first_near_duplicates_only(config):
    rows = [{"qry": "the same question", "pos_text": "the same answer"}] * (2 * PAIRS_SHOWN)
    Path(config.data.train[0].path).write_text(json.dumps(rows))
    few = replace(config, data=replace(config.data, eval=[]))
    assert main(few) == 0
    folder = Path(few.run.dir)
    assert pq.read_table(folder / NEAR_FILE)["row"].unique().to_pylist() == [
        *range(2, 2 * PAIRS_SHOWN + 1)
    ]
    _, _, near = (folder / "contact_sheet.html").read_text().partition("<h1 class=")
    assert near.count('class="pair"') == PAIRS_SHOWN
    [group] = json.loads((folder / "check.json").read_text())["near_duplicates"]
    assert (group["rows"], len(group["examples"])) == (2 * PAIRS_SHOWN - 1, 5)


def test_the_file_of_near_duplicates_knows_sets_without_any(config):
    few = replace(config, data=replace(config.data, eval=[]))
    assert main(few) == 0
    path = Path(few.run.dir) / NEAR_FILE
    assert pq.read_table(path).num_rows == 0
    [settings] = few.data.train
    assert len(load_set(replace(settings, leave_out=str(path))).pairs) == 4
    with pytest.raises(DataError, match="expected rows of"):
        load_set(replace(config.data.eval[0], leave_out=str(path)))


def test_a_check_is_made_again_as_files_may_have_been_mended(config):
    assert main(config) == 0
    path = Path(config.data.train[0].path)
    path.write_text(json.dumps(json.loads(path.read_text())[:4]))
    assert main(config) == 0
    assert pq.read_table(Path(config.run.dir) / "quarantine.parquet").num_rows == 0
    assert main(replace(config, data=replace(config.data, max_bad_rows=0.5))) == 0


def test_a_set_with_too_many_broken_media_is_a_problem(config):
    entry = {"name": "mine", "pairs": 10, "pairs_set_aside": 2}
    assert media_problems({"sets": [entry]}, config.data) == []
    [problem] = media_problems({"sets": [entry | {"pairs": 9}]}, config.data)
    assert problem.startswith("data set 'mine': media of 2 of 9 pairs cannot be decoded, more than")


def test_a_set_that_jobs_refuse_ends_the_check_after_its_files_are_written(config):
    strict = replace(config, data=replace(config.data, max_bad_rows=0.1))
    with pytest.raises(DataError, match=r"'mine': 1 of 5 rows are bad, more than data\.max_bad"):
        main(strict)
    folder = Path(config.run.dir)
    assert pq.read_table(folder / "quarantine.parquet").num_rows == 1
    [problem] = json.loads((folder / "check.json").read_text())["sets"][0]["problems"]
    assert "'mine': 1 of 5 rows are bad" in problem
    assert not (folder / "stage.json").exists()
    # Once the file is mended, the same command ends well.
    rows = json.loads(Path(config.data.train[0].path).read_text())[:4]
    Path(config.data.train[0].path).write_text(json.dumps(rows))
    assert main(strict) == 0


def test_what_cannot_be_read_at_all_does_not_hide_the_other_sets(config):
    lost = replace(config.data.train[0], path="lost.json")
    data = replace(config.data, train=[lost, config.data.train[0]])
    sets, refused = read_sets(data)
    assert [checked.loaded.name for checked in sets] == ["mine", "[held]"]
    assert [checked.held_out for checked in sets] == [False, True]
    assert len(refused) == 2
    assert "'mine' is used 2 times" in refused[0]
    assert "lost.json: file not found" in refused[1]


def cut_archive(folder: Path) -> dict[str, object]:
    whole = write_picture(folder / "a.png").read_bytes()
    with zipfile.ZipFile(folder / "media.zip", "w") as archive:
        archive.writestr("b.png", whole)
    content = (folder / "media.zip").read_bytes()
    (folder / "media.zip").write_bytes(content[: len(content) // 2])
    return {"unpack": ["media.zip"]}


def two_of_three_shards(folder: Path) -> dict[str, object]:
    for number in (0, 2):
        name = f"train-0000{number}-of-00003.parquet"
        pq.write_table(pa.table({"qry": ["a"], "pos_text": ["b"]}), folder / name)
    return {"path": str(folder)}


def a_column_of_numbers(folder: Path) -> dict[str, object]:
    pq.write_table(pa.table({"qry": ["a", "b"], "pos_text": [1, 2]}), folder / "rows.parquet")
    return {"path": str(folder / "rows.parquet")}


def qrels_of_numbers_with_fractions(folder: Path) -> dict[str, object]:
    for part, table in {
        "queries": {"query-id": [1], "query": ["a"]},
        "corpus": {"corpus-id": [1], "text": ["b"]},
        "qrels": {"query-id": [1.5], "corpus-id": [1], "score": [1]},
    }.items():
        pq.write_table(pa.table(table), folder / f"{part}.parquet")
    return {"path": str(folder), "format": "beir"}


def an_unknown_revision(folder: Path) -> dict[str, object]:
    return {"path": f"hf://datasets/org/set@{'0' * 40}/rows.parquet"}


def half_a_table(folder: Path) -> dict[str, object]:
    table = pa.table({"qry": ["a"], "pos_text": ["b"]})
    pq.write_table(table, folder / "rows.parquet")
    content = (folder / "rows.parquet").read_bytes()
    (folder / "rows.parquet").write_bytes(content[: len(content) // 2])
    return {"path": str(folder / "rows.parquet")}


@pytest.mark.parametrize(
    ("write", "words"),
    [
        (cut_archive, ("media.zip: expected a whole zip or tar", "; download it again")),
        (two_of_three_shards, ("train-00001-of-00003.parquet is missing; download it",)),
        (half_a_table, ("rows.parquet: not a readable parquet", "; download or write it again")),
        (
            a_column_of_numbers,
            ("2 of 2 rows are bad", "rows.parquet row 1, field 'pos_text': expected text, found"),
        ),
        (
            qrels_of_numbers_with_fractions,
            ("qrels.parquet, field 'query-id': expected a column of whole", "; write the column"),
        ),
        (an_unknown_revision, ("data set 'broken', path: revision 0", "set data.offline: false")),
    ],
)
def test_a_set_that_is_broken_as_a_whole_is_named_with_what_to_do(
    config, tmp_path, capsys, write, words
):
    folder = tmp_path / "broken"
    folder.mkdir()
    settings = {"name": "broken", "path": config.data.train[0].path, "root": str(folder)}
    broken = DataSetConfig(**(settings | write(folder)))
    both = replace(config, data=replace(config.data, train=[*config.data.train, broken]))
    with pytest.raises(DataError) as error:
        main(both)
    for part in words:
        assert part in str(error.value)
    # The other sets are checked all the same.
    assert pq.read_table(Path(both.run.dir) / QUARANTINE_FILE)["data_set"].to_pylist()[0] == "mine"


def test_where_nothing_comes_back_no_file_is_blamed(monkeypatch):
    monkeypatch.setattr("cluster.jobs.check_data._decode", lambda *_, **__: {})
    with pytest.raises(ClusterError, match="decode 1 files or cells, 1 of them did not come back"):
        decode_all([{"uris": ["a.png"], "as_frame": [False]}], MediaConfig())


def test_a_check_of_nothing_is_refused():
    [problem] = problems(CheckDataConfig(run=RunConfig(dir="run")))
    assert problem.startswith("data: expected a data set under train or eval, found none")


@pytest.mark.parametrize("folder", [CONFIGS, CONFIGS / "demo"], ids=["gpu", "demo"])
def test_the_shipped_checks_are_of_the_sets_that_rl_reads(folder):
    check = load(CheckDataConfig, folder / "check_data.yaml").data
    rl = load(RLConfig, folder / "rl.yaml").data
    assert replace(check, templates=rl.templates) == rl
