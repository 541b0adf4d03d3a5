"""Every set of MMEB-V2 from a tree in the published layout, in both forms of its texts."""

import logging
from dataclasses import replace
from pathlib import Path

import pytest

from configs.common import BENCHMARK_SETS, BenchmarkConfig, MediaConfig
from data.media.pictures import load_picture
from evaluation.benchmarks.load import load_benchmark
from evaluation.benchmarks.tables import benchmark_suite, video_labels
from evaluation.sets import EvaluationSet
from tests.unit.evaluation.benchmarks.tree import NATURAL, Expected, Q, Tree, V, add_set

FRAMES = MediaConfig(video="frames")


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> tuple[Tree, dict[str, Expected]]:
    """A tree of all sets, and what each must be read as."""
    tree = Tree(tmp_path_factory.mktemp("mmeb"))
    return tree, {name: add_set(tree, name) for name in BENCHMARK_SETS["mmeb_v2"]}


def config_of(tree: Tree, *sets: str, prompts: str = "") -> BenchmarkConfig:
    return BenchmarkConfig(
        root=str(tree.root), rows=str(tree.rows), sets=list(sets), prompts=prompts
    )


def load_set(tree: Tree, name: str, media: MediaConfig = FRAMES, prompts: str = ""):
    (loaded,) = load_benchmark(config_of(tree, name, prompts=prompts), media)
    return loaded


def by_form(value, form: str):
    return value[form] if isinstance(value, dict) else value


def frame_numbers(uris: tuple[str, ...]) -> list[int]:
    return [int("".join(filter(str.isdigit, Path(uri).stem))) for uri in uris]


@pytest.mark.parametrize("name", BENCHMARK_SETS["mmeb_v2"])
def test_a_set_is_read_as_published_in_both_forms(made, name) -> None:
    tree, expected = made[0], made[1][name]
    table = benchmark_suite("mmeb_v2").sets[name]
    for form in (V, Q):
        loaded = load_set(tree, name, prompts=form)
        assert (loaded.name, loaded.metric, loaded.groups) == (name, table.metric, table.groups)
        items = [query.item for query in loaded.queries]
        assert [(item.text, item.instruction) for item in items] == expected.queries[form]
        assert [item.kind for item in items] == expected.kinds
        assert [query.right for query in loaded.queries] == by_form(expected.right, form)
        everything = [[]] * len(items)
        local = by_form(expected.local, form) or everything
        assert [list(query.candidates) for query in loaded.queries] == local
        targets = loaded.candidates
        # In the order of the benchmark, too.
        texts = [(key, item.text) for key, item in targets.items()]
        if expected.local is None:
            assert texts == list(expected.targets[form].items())
        assert dict(texts) == expected.targets[form]
        assert {item.instruction for item in targets.values()} == {""}
        assert {item.kind for item in targets.values()} == {expected.target_kind}
        for item in (*items, *targets.values()):
            if item.kind == "video":
                assert frame_numbers(item.uris) == NATURAL
            else:
                assert len(item.uris) == (item.kind != "text")
            assert item.times == ()
        ids = [query.query_id for query in loaded.queries]
        assert ids == (expected.ids or [f"{name}-{number}" for number in range(len(items))])


def test_the_default_form_is_the_one_of_embed_rl(made) -> None:
    assert load_set(made[0], "MSVD") == load_set(made[0], "MSVD", prompts=V)


def test_the_whole_suite_comes_set_by_set_and_tells_of_other_sizes(made, caplog) -> None:
    with caplog.at_level(logging.WARNING):
        names = [loaded.name for loaded in load_benchmark(config_of(made[0]), FRAMES)]
    assert names == list(BENCHMARK_SETS["mmeb_v2"])
    assert "HMDB51: 2 queries, published results have 1000" in caplog.text
    # The one set whose tree has as many queries as the benchmark.
    assert "SmthSmthV2" not in caplog.text


def test_labels_outside_the_published_list_are_counted_and_named(made, tmp_path, caplog) -> None:
    load_set(made[0], "UCF101")
    told = "UCF101: 1 rows have a label that is not in the published list, 1 labels in all: "
    assert f"{told}'a new one'; each is one more candidate" in caplog.text
    caplog.clear()
    tree, table = Tree(tmp_path), benchmark_suite("mmeb_v2").sets["UCF101"]
    tree.video(table.media[0], "v1")
    tree.write(table.offline, [{"video_id": "v1", "pos_text": video_labels("UCF101")[0]}])
    load_set(tree, "UCF101")
    assert "published list" not in caplog.text


def test_videos_as_one_have_an_even_number_of_frames_and_times(made) -> None:
    (query, *_) = load_set(made[0], "UCF101", MediaConfig(max_frames=5)).queries
    # 4 of 12: places 0, 3, 7 and 11.
    assert frame_numbers(query.item.uris) == [1, 4, 8, 12]
    assert query.item.times == (0, 0.5, 1, 1.5)
    (query, *_) = load_set(made[0], "UCF101", MediaConfig(max_frames=64)).queries
    assert frame_numbers(query.item.uris) == list(range(1, 13))
    (query, *_) = load_set(made[0], "UCF101", replace(FRAMES, max_frames=1)).queries
    assert frame_numbers(query.item.uris) == [1]


def test_pages_come_from_their_files_else_from_the_corpus(made) -> None:
    pages = list(load_set(made[0], "VisRAG_PlotQA").candidates.values())
    names = [Path(page.uris[0]).name for page in pages]
    # 50 characters of the id without its ending, and the first 8 of its MD5.
    assert names[0].startswith("long" * 12 + "lo_")
    assert len(names[0]) == 50 + 1 + 8 + len(".jpg")
    assert names[2].endswith("#row=2&column=image")
    assert load_picture(pages[2].uris[0], MediaConfig()).shape == (3, 4, 3)


@pytest.mark.parametrize("doubled", ["image-tasks/MMEB", "video-tasks/frames/video_qa/video_qa"])
def test_archives_may_be_unpacked_a_level_deeper(tmp_path, doubled) -> None:
    tree = Tree(tmp_path)
    name = "CIRR" if "MMEB" in doubled else "NExTQA"
    add_set(tree, name)
    folder = tree.root / doubled
    above = folder.parent.rename(tmp_path / "above")
    folder.parent.mkdir()
    above.rename(folder)
    assert len(load_set(tree, name).queries) > 0


def test_pages_of_a_fixed_set_may_lie_in_the_folder_of_the_older_one(tmp_path) -> None:
    tree = Tree(tmp_path)
    add_set(tree, "ViDoSeek-page-fixed")
    images = tree.root / "visdoc-tasks/images"
    (images / "ViDoSeek-page-fixed").rename(images / "ViDoSeek-page")
    first = next(iter(load_set(tree, "ViDoSeek-page-fixed").candidates.values()))
    assert Path(first.uris[0]).parent.name == "ViDoSeek-page"


def test_rows_may_be_one_file_a_set(tmp_path) -> None:
    tree = Tree(tmp_path)
    add_set(tree, "MSVD")
    before: EvaluationSet = load_set(tree, "MSVD")
    (tree.rows / "video-tasks/data/msvd.jsonl").rename(tree.rows / "MSVD.jsonl")
    assert load_set(tree, "MSVD") == before


def test_the_tables_are_complete() -> None:
    sets = benchmark_suite("mmeb_v2").sets
    assert tuple(sets) == BENCHMARK_SETS["mmeb_v2"]
    parts = {
        part: [table for table in sets.values() if table.groups[0] == part]
        for part in ("image", "video", "visdoc")
    }
    assert [len(part) for part in parts.values()] == [36, 18, 24]
    assert sum(table.queries for table in parts["image"]) == 36_000
    assert sum(table.queries for table in parts["video"]) == 34_940
    # The means that the paper prints, its image mean of the larger model mended.
    for model, means in {
        "Embed-RL-2B": (69.2, 52.1, 74.1, 66.8),
        "Embed-RL-4B": (71.2, 53.0, 74.7, 68.1),
    }.items():
        groups = (*parts.values(), list(sets.values()))
        scores = [[table.published[model] for table in group] for group in groups]
        assert tuple(round(sum(part) / len(part), 1) for part in scores) == means
    sizes = [len(video_labels(name)) for name in ("K700", "UCF101", "HMDB51", "Breakfast")]
    assert sizes == [700, 101, 51, 10]
