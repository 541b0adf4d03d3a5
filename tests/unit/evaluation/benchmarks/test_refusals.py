"""What is missing or wrong in a benchmark's tree is told in one message, before anything starts."""

import json
import os
import shutil
from pathlib import Path
from typing import Any

import huggingface_hub.constants
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from configs.common import BENCHMARK_SETS, BenchmarkConfig, MediaConfig
from configs.schema import problems
from data.errors import DataError
from evaluation.benchmarks.load import benchmark_problems, load_benchmark
from evaluation.benchmarks.tables import benchmark_suite
from tests.unit.evaluation.benchmarks.tree import Tree, add_set, page_file, write_lines

MEDIA = MediaConfig()
SETS = ("ImageNet-1K", "EDIS", "OVEN", "K700", "SmthSmthV2", "MSVD", "QVHighlight", "MomentSeeker")
QUESTIONS = ("NExTQA", "Video-MME", "EgoSchema", "ActivityNetQA", "ViDoRe_docvqa")


def config_of(tree: Tree, *sets: str) -> BenchmarkConfig:
    return BenchmarkConfig(root=str(tree.root), rows=str(tree.rows), sets=list(sets))


@pytest.fixture
def tree(tmp_path) -> Tree:
    return Tree(tmp_path)


def refusal(config: BenchmarkConfig) -> str:
    with pytest.raises(DataError) as error:
        load_benchmark(config, MEDIA)
    return str(error.value)


def rows_of(tree: Tree, name: str) -> Path:
    return tree.rows / f"{benchmark_suite('mmeb_v2').sets[name].offline}.jsonl"


def change_rows(tree: Tree, name: str, **changes: Any) -> None:
    rows = [json.loads(line) for line in rows_of(tree, name).read_text().splitlines()]
    write_lines(rows_of(tree, name), [{**row, **changes} for row in rows])


def test_all_that_is_missing_comes_in_one_message(tree) -> None:
    names = ("MSVD", "UCF101", "K700", "ViDoRe_docvqa", "EDIS")
    for name in names:
        add_set(tree, name)
    rows_of(tree, "MSVD").unlink()
    frames = tree.root / "video-tasks/frames/video_cls"
    shutil.rmtree(frames / "UCF101")
    shutil.rmtree(frames / "K700/v2")
    shutil.rmtree(tree.rows / "visdoc-tasks/data/docvqa_test_subsampled_beir/qrels")
    for letter in "abc":
        (tree.root / "image-tasks/EDIS" / f"{letter}.png").unlink()
    told = {problem.name: problem for problem in benchmark_problems(config_of(tree, *names), MEDIA)}
    assert list(told) == list(names)
    assert (told["K700"].absent, told["K700"].first) == (1, ("v2/",))
    assert (told["EDIS"].absent, len(told["EDIS"].first)) == (3, 3)
    message = refusal(config_of(tree, *names))
    assert message.startswith("benchmark mmeb_v2: 5 of 5 sets cannot be measured")
    lines = message.splitlines()[1:]
    for line, name, *parts in zip(
        lines,
        names,
        ("get them from the hub's data set VLM2Vec/MSVD", "expected the folder", "1 pict", "", ""),
        (
            f"{tree.rows}/video-tasks/data/msvd",
            "unpack video-tasks/frames/video_cls.tar.gz of the hub's data set TIGER-Lab/MMEB-V2",
            f"{frames}/K700: v2/; unpack",
            "found no qrels",
            "3 pictures",
        ),
        strict=True,
    ):
        assert line.strip().startswith(f"{name}: ")
        assert all(part in line for part in parts)


def test_a_root_that_is_not_there_is_told_at_once(tree) -> None:
    message = refusal(BenchmarkConfig(root=str(tree.root / "no"), rows=str(tree.rows)))
    assert "TIGER-Lab/MMEB-V2" in message
    assert message.count("\n") == 0


@pytest.mark.parametrize(
    ("name", "changes", "reason"),
    [
        ("UCF101", {"video_id": None}, "row 1, field 'video_id': expected a text"),
        ("UCF101", {"pos_text": 3.5}, "field 'pos_text': expected text or a whole number, found"),
        ("SmthSmthV2", {"pos_text": "Closing"}, "field 'neg_text': expected the label 'Closing'"),
        ("NExTQA", {"answer": 5}, "field 'answer': expected a number from 0 to 4, found '5'"),
        ("EgoSchema", {"answer": "-1"}, "field 'answer': expected a number from 0 to 1"),
        ("Video-MME", {"answer": "C"}, "field 'answer': expected one of the letters AB"),
        ("ActivityNetQA", {"answer": "maybe"}, "field 'answer': expected yes or no"),
        ("VATEX", {"enCap": []}, "field 'enCap': expected captions, found 'none'"),
        ("MomentSeeker", {"input_frames": "a.gif"}, "field 'input_frames': expected a name of"),
        ("MomentSeeker", {"positive_frames": [{"path": "a"}]}, "field 'positive_frames': expected"),
        ("MomentSeeker", {"positive_frames": []}, "expected a right candidate for query"),
        ("QVHighlight", {"video_path": "other.mp4"}, "1 pictures or folders of frames"),
        ("MSVD", {"video_id": "../../../../../../../picture.png"}, "1 pictures or folders"),
    ],
)
def test_wrong_values_are_refused_with_file_row_and_field(tree, name, changes, reason) -> None:
    add_set(tree, name)
    change_rows(tree, name, **changes)
    message = refusal(config_of(tree, name))
    assert reason in message
    assert "row 1" in message or "folders of frames" in message


def test_paths_stay_inside_the_folder_of_the_media(tree) -> None:
    add_set(tree, "MSVD")
    tree.video("elsewhere")
    change_rows(tree, "MSVD", video_id="../" * 8 + "elsewhere")
    assert "which leaves it" in refusal(config_of(tree, "MSVD"))


@pytest.mark.parametrize("column", ["qry_inst", "qry_text", "qry_img_path", "tgt_text"])
def test_a_table_without_a_column_is_refused(tree, column) -> None:
    add_set(tree, "CIRR")
    file = tree.rows / "image-query/CIRR/test-00000-of-00001.parquet"
    pq.write_table(pq.read_table(file).drop([column]), file)
    assert f"field '{column}'" in refusal(config_of(tree, "CIRR"))


def test_lists_of_another_length_are_refused(tree) -> None:
    add_set(tree, "CIRR")
    file = tree.rows / "image-query/CIRR/test-00000-of-00001.parquet"
    rows = pq.read_table(file).to_pylist()
    shutil.rmtree(file.parent)
    tree.write("image-query/CIRR", [{**rows[0], "tgt_text": ["a"]}])
    assert "field 'tgt_text': expected 2 texts" in refusal(config_of(tree, "CIRR"))


@pytest.mark.parametrize(
    ("part", "column", "values", "reason"),
    [
        ("qrels", "corpus-id", [99] * 5, "expected the id of a row of the corpus, found '99'"),
        ("qrels", "score", [0] * 5, "expected a right candidate for query '1'"),
        ("qrels", "score", ["high"] * 5, "field 'score': expected a number"),
        ("corpus", "corpus-id", [11] * 3, "expected an id of its own, found '11'"),
        ("queries", "query-id", [1, 1], "expected an id of its own"),
        ("queries", "query", ["", "who?"], "field 'query': expected a text"),
    ],
)
def test_tables_of_pages_must_fit_together(tree, part, column, values, reason) -> None:
    add_set(tree, "ViDoRe_docvqa")
    folder = tree.rows / "visdoc-tasks/data/docvqa_test_subsampled_beir" / part
    file = folder / "test-00000-of-00001.parquet"
    table = pq.read_table(file)
    place = table.column_names.index(column)
    pq.write_table(table.set_column(place, column, [values]), file)
    assert reason in refusal(config_of(tree, "ViDoRe_docvqa"))


def test_pages_that_are_nowhere_are_counted(tree) -> None:
    add_set(tree, "VisRAG_ChartQA")
    file = tree.rows / "visdoc-tasks/data/VisRAG-Ret-Test-ChartQA/corpus"
    file /= "train-00000-of-00001.parquet"
    pq.write_table(pq.read_table(file).drop(["image"]), file)
    (problem,) = benchmark_problems(config_of(tree, "VisRAG_ChartQA"), MEDIA)
    assert (problem.absent, problem.first) == (1, (page_file("visrag", "c.png"),))


@pytest.fixture
def hub(tmp_path, monkeypatch) -> Path:
    """An empty cache of the hub."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    return tmp_path / "hub"


def put_into(hub: Path, repo: str, revision: str, files: dict[str, Path]) -> None:
    folder = hub / f"datasets--{repo.replace('/', '--')}"
    (folder / "refs").mkdir(parents=True)
    (folder / "refs/main").write_text(revision)
    for name, file in files.items():
        target = folder / "snapshots" / revision / name
        target.parent.mkdir(parents=True, exist_ok=True)
        os.link(file, target)


def test_rows_come_from_each_set_own_repository_in_the_cache(tree, hub) -> None:
    names = ("MSVD", "CIRR", "ViDoRe_docvqa", "MVBench")
    for name in names:
        add_set(tree, name)
    config = BenchmarkConfig(root=str(tree.root), sets=list(names))
    message = refusal(config)
    assert "run `hf download VLM2Vec/MSVD --repo-type dataset`" in message
    assert "ziyjiang/MMEB_Test_Instruct" in message
    beir = tree.rows / "visdoc-tasks/data/docvqa_test_subsampled_beir"
    mvbench = tree.rows / "video-tasks/data/mvbench"
    shard = "test-00000-of-00001.parquet"
    content = {
        "VLM2Vec/MSVD": {"data/test.jsonl": rows_of(tree, "MSVD")},
        "ziyjiang/MMEB_Test_Instruct": {
            f"CIRR/{shard}": tree.rows / "image-query/CIRR" / shard,
            "CIRR/README.md": rows_of(tree, "MSVD"),
        },
        "vidore/docvqa_test_subsampled_beir": {
            f"{part}/{shard}": beir / part / shard for part in ("queries", "corpus", "qrels")
        },
        "VLM2Vec/MVBench": {f"json/{file.name}": file for file in mvbench.iterdir()},
    }
    for number, (repo, files) in enumerate(content.items()):
        put_into(hub, repo, f"{number:040x}", files)
    from_hub = list(load_benchmark(config, MEDIA))
    others = list(load_benchmark(config_of(tree, *names), MEDIA))
    for loaded, other in zip(from_hub, others, strict=True):
        assert loaded.queries == other.queries
        assert list(loaded.candidates) == list(other.candidates)
    # The page that is no file is read from the tables of the cache.
    assert str(hub) in from_hub[2].candidates["13"].uris[0]


def test_rows_may_be_a_pinned_tree_in_the_cache(tree, hub) -> None:
    add_set(tree, "MSVD")
    revision = "a" * 40
    files = {"video-tasks/data/msvd.jsonl": rows_of(tree, "MSVD")}
    put_into(hub, "VLM2Vec/MMEB-V3", revision, files)
    address = f"hf://datasets/VLM2Vec/MMEB-V3@{revision}"
    config = BenchmarkConfig(root=str(tree.root), rows=address, sets=["MSVD"])
    assert list(load_benchmark(config, MEDIA)) == list(
        load_benchmark(config_of(tree, "MSVD"), MEDIA)
    )
    other = BenchmarkConfig(root=str(tree.root), rows=address.replace("a" * 40, "b" * 40))
    assert "is not in the hub's cache" in refusal(other)


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=2)
    ),
    max_leaves=4,
)


@pytest.fixture(scope="module")
def fuzzed(tmp_path_factory) -> tuple[Tree, dict[str, list[dict[str, Any]]]]:
    """A tree, and the right rows of each of its sets."""
    tree = Tree(tmp_path_factory.mktemp("fuzz"))
    rows = {}
    for name in (*SETS, *QUESTIONS[:-1]):
        add_set(tree, name)
        place = rows_of(tree, name)
        if place.exists():
            rows[name] = [json.loads(line) for line in place.read_text().splitlines()[:2]]
        else:
            file = place.with_suffix("") / "test-00000-of-00001.parquet"
            rows[name] = pq.read_table(file).to_pylist()
            shutil.rmtree(file.parent)
    return tree, rows


@settings(max_examples=60)
@given(data=st.data())
def test_rows_of_any_kind_raise_nothing_but_data_error(fuzzed, data) -> None:
    tree, rows = fuzzed
    name = data.draw(st.sampled_from(sorted(rows)))
    changed = [dict(row) for row in rows[name]]
    for row in changed:
        row[data.draw(st.sampled_from(sorted(row)))] = data.draw(VALUES)
    place = rows_of(tree, name)
    place.parent.mkdir(parents=True, exist_ok=True)
    place.write_text("".join(json.dumps(row) + "\n" for row in changed))
    try:
        list(load_benchmark(config_of(tree, name), MEDIA))
    except DataError as error:
        str(error).encode()


def test_settings_name_the_nearest_set_and_the_forms_of_the_suite() -> None:
    assert problems(BenchmarkConfig(root="r")) == []
    assert problems(BenchmarkConfig(root="r", sets=list(BENCHMARK_SETS["mmeb_v2"]))) == []
    (unknown,) = problems(BenchmarkConfig(root="r", sets=["MSR_VTT"]))
    assert unknown == "sets[0]: mmeb_v2 has no set 'MSR_VTT'; the nearest name is 'MSR-VTT'"
    (near,) = problems(BenchmarkConfig(suite="uvrb", root="r", sets=["MS_TI"]))
    assert near.endswith("the nearest name is 'MS-TI'")
    (twice,) = problems(BenchmarkConfig(root="r", sets=["MSVD", "CIRR", "MSVD"]))
    assert twice.startswith("sets[2]: 'MSVD' is there twice")
    (prompts,) = problems(BenchmarkConfig(root="r", prompts="all"))
    assert "vlm2vec and qwen3_vl_embedding, found 'all'" in prompts
    (rows,) = problems(BenchmarkConfig(suite="uvrb", root="r", rows="somewhere"))
    assert rows.startswith("rows: uvrb has its rows under `root`")
