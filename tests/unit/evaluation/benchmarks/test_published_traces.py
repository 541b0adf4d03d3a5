"""Published traces: files as Embed-RL's code writes them name queries and candidates of each set.

The files are made of the rows here, by hand, not by the code under test.
"""

import json
from collections import Counter
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from cluster.jobs.evaluate import published_traces
from cluster.run.stage_loop import plain_console
from configs.common import BenchmarkConfig, MediaConfig, RunConfig
from configs.schema import EvaluateConfig
from data.errors import DataError
from data.rows.trace_files import published_files, read_published_traces
from data.stores.facts import published_recipe
from data.stores.traces import AMBIGUOUS, TraceStore
from data.types import EmbedRequest
from evaluation.benchmarks.load import load_benchmark
from evaluation.benchmarks.tables import BenchmarkSet, benchmark_suite, video_labels
from evaluation.results_file import load_evaluation, save_evaluation
from evaluation.runner import Settings, evaluate, named_subjects
from tests.unit.evaluation.benchmarks.tree import Q, Tree, V, add_set

SETS = (
    *("ImageNet-1K", "OK-VQA", "MSCOCO_i2t", "VisDial", "CIRR"),
    *("UCF101", "SmthSmthV2", "MSR-VTT", "MSVD", "DiDeMo", "VATEX", "YouCook2"),
    *("QVHighlight", "MomentSeeker", "MVBench", "NExTQA", "Video-MME", "EgoSchema"),
    *("ActivityNetQA", "ViDoRe_docvqa", "VisRAG_PlotQA", "ViDoSeek-page-fixed"),
)
"""One of each parser and of each way to name items."""
FOLDERS = {"image": "Image", "video": "Video", "visdoc": "VisDo"}
SETTINGS = Settings(templates="brief", item_tokens=0, max_frames=8, resamples=20, seed=0)
FRAMES = MediaConfig(video="frames")


@pytest.fixture(scope="module")
def tree(tmp_path_factory) -> Tree:
    """Return a tree of the sets, with their files of traces under `cot/`."""
    tree = Tree(tmp_path_factory.mktemp("mmeb"))
    for name in SETS:
        add_set(tree, name)
        write_traces(tree, benchmark_suite("mmeb_v2").sets[name])
    return tree


def write_traces(tree: Tree, table: BenchmarkSet) -> None:
    """Write the two files of a set: its rows, and what its candidates are."""
    group, rows = table.groups[0], rows_of(tree, table)
    folder = tree.root.parent / "cot" / FOLDERS[group]
    folder.mkdir(parents=True, exist_ok=True)
    asked = [{**row, "query_cot": f"query {number}"} for number, row in enumerate(rows)]
    if group == "visdoc":
        name = table.name.removesuffix("-fixed")
        corpus = pq.read_table(tree.rows / table.offline / "corpus", columns=["corpus-id"])
        found = [{**row, "corpus_cot": of(row["corpus-id"])} for row in corpus.to_pylist()]
        write(folder / f"{name}_query.json", asked)
        write(folder / f"{name}_corpus.json", found)
    elif group == "image":
        texts = [text.strip() for row in rows for text in row["tgt_text"]]
        paths = [path for row in rows for path in row["tgt_img_path"] if path]
        found = {
            "text": {text: of(text) for text in texts if text and not paths},
            "image": {path: of(path) for path in paths},
        }
        write(folder / f"{table.name}.json", asked)
        write(folder / f"{table.name}_corpus_cot.json", found)
    else:
        contents = dict.fromkeys(content for row in rows for content in contents_of(table, row))
        found = [
            {"corpus_id": f"corpus_{n}", "item_id": 0, "corpus_content": c, "corpus_cot": of(c)}
            for n, c in enumerate(contents)
        ]
        write(folder / f"{table.name}_query_cot.json", asked[::-1])  # not in the rows' order
        write(folder / f"{table.name}_corpus_cot.json", found)


def of(name: Any) -> str:
    return f"trace of {name}"


def write(path: Path, content: Any) -> None:
    path.write_text(json.dumps(content), encoding="utf-8")


def rows_of(tree: Tree, table: BenchmarkSet) -> list[dict[str, Any]]:
    if table.groups[0] == "visdoc":
        return pq.read_table(tree.rows / table.offline / "queries").to_pylist()
    if table.groups[0] == "image":
        return pq.read_table(tree.rows / table.offline).to_pylist()
    if table.name == "MVBench":
        return [
            {**json.loads(line), "subset": file.stem}
            for file in sorted((tree.rows / table.offline).glob("*.jsonl"))
            for line in file.read_text().splitlines()
        ]
    lines = (tree.rows / f"{table.offline}.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]


def contents_of(table: BenchmarkSet, row: dict[str, Any]) -> list[str]:
    """Return what a video set's file of candidates names for a row."""
    if table.parser == "video_classification":
        return [*video_labels(table.name), row["pos_text"]]
    if table.parser == "ssv2":
        return row["neg_text"]
    if table.parser == "didemo":
        return [Path(row["video"]).stem]
    if table.parser in ("msrvtt", "msvd", "vatex", "youcook2"):
        return [row[{"vatex": "videoID", "youcook2": "id"}.get(table.parser, "video_id")]]
    if table.parser == "moment_retrieval":
        return [f"vid_1/{clip}" for clip in ("positive_1", "negative_2", "negative_10")]
    if table.parser == "momentseeker":
        return [clip["output_path"] for clip in row["positive_frames"] + row["negative_frames"]]
    if table.parser == "nextqa":
        return [row[f"a{number}"] for number in range(5)]
    if table.parser == "activitynetqa":
        return ["yes", "no"]
    return row.get("candidates") or row.get("options") or row["option"]


def benchmark_of(tree: Tree, *sets: str, prompts: str = "") -> BenchmarkConfig:
    return BenchmarkConfig(
        root=str(tree.root), rows=str(tree.rows), sets=list(sets), prompts=prompts
    )


@pytest.mark.parametrize("name", SETS)
def test_files_name_every_query_and_candidate_of_a_set(tree, tmp_path, name) -> None:
    files = published_files([str(tree.root.parent / "cot")], [name])
    assert len(files[name]) == 2
    expected = {}
    for form in (V, Q):
        [loaded] = load_benchmark(benchmark_of(tree, name, prompts=form), FRAMES)
        subjects = named_subjects(loaded, SETTINGS)
        store = TraceStore(tmp_path / form, published_recipe(files[name]))
        store.take_over(subjects, read_published_traces(files[name]), made_by="a test")
        keys = [subject.of.key for subject in subjects]
        if name == "CIRR":
            # Of one picture with three captions nobody knows whose trace the file has.
            assert Counter(store.failures(list(dict.fromkeys(keys))).values()) == {AMBIGUOUS: 3}
            continue
        traces = store.traces(keys, most_missing=0, remedy="")
        queries = [traces[s.of.key] for s in subjects if s.of.side == "query"]
        assert len(queries) == len(loaded.queries)
        assert len(set(queries)) == len({query.item for query in loaded.queries})
        assert all(text.startswith("query ") for text in queries)
        by_key = {s.name: traces[s.of.key] for s in subjects if s.of.side == "target"}
        assert all(text.strip() == of(named).strip() for named, text in by_key.items())
        expected[form] = queries
    assert name == "CIRR" or expected[V] == expected[Q]


def embed(requests: list[EmbedRequest]) -> dict[str, np.ndarray]:
    return {r.key: np.random.default_rng(int(r.key, 16)).normal(size=8) for r in requests}


def test_published_traces_are_measured_and_their_coverage_is_told(tree, tmp_path) -> None:
    sets = ("UCF101", "MSVD")
    folder = tmp_path / "cot"
    folder.mkdir()
    for path in (tree.root.parent / "cot/Video").glob("UCF101_*.json"):
        (folder / path.name).write_bytes(path.read_bytes())
    config = EvaluateConfig(
        run=RunConfig(dir=str(tmp_path / "run")),
        benchmarks=[benchmark_of(tree, *sets)],
        published_traces=[str(folder)],
        max_missing_traces=0.2,
    )
    console = plain_console()
    loaded = load_benchmark(config.benchmarks[0], FRAMES)
    files = published_files(config.published_traces, sets)
    take = partial(published_traces, loaded, files, SETTINGS, store=tmp_path, console=console)
    with console.capture() as printed:
        published = take(config=config)
    said = " ".join(printed.get().split())
    assert "published traces of UCF101: coverage 1.000 of 104 queries and candidates" in said
    assert "published traces of MSVD: coverage 0.000 of 4 queries and candidates" in said
    run = partial(evaluate, loaded, embed=embed, settings=SETTINGS)
    result = run(reasoners={"published": published})
    save_evaluation(result, tmp_path / "run")
    [figures] = load_evaluation(tmp_path / "run").reasoning
    assert (figures.reasoner, figures.items) == ("published", 108)
    assert figures.coverage == pytest.approx(104 / 108)
    assert list(result.overall()) == ["no_cot", "published_text", "published"]
    assert {r.source for r in result.results if r.variant == "published" and r.queries} == {
        "",
        "UCF101",
    }
    with pytest.raises(DataError, match=r"108 items, .* 0.01 may be missing, found 4 "):
        run(reasoners={"published": take(config=replace(config, max_missing_traces=0.01))})


def test_files_of_no_measured_set_are_refused(tmp_path) -> None:
    file = tmp_path / "K700_query_cot.json"
    file.write_text("[]")
    assert published_files([str(tmp_path)], ["K700", "MSVD"]) == {"K700": [file]}
    for paths, message in (
        ([str(tmp_path / "gone")], "not found; correct `published_traces`"),
        ([str(file)], "expected the name of a set that is measured"),
        ([str(tmp_path)], "expected files such as MSVD_corpus_cot.json"),
    ):
        with pytest.raises(DataError, match=message):
            published_files(paths, ["MSVD"])
