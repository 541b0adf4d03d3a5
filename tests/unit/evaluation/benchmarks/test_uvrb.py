"""Every set of UVRB from a tree in the published layout, with the released and with all prompts."""

import os
from pathlib import Path
from typing import Any

import pytest

from configs.common import BENCHMARK_SETS, BenchmarkConfig, MediaConfig
from data.errors import DataError
from evaluation.benchmarks.load import load_benchmark
from evaluation.benchmarks.tables import benchmark_suite
from tests.builders import write_picture
from tests.unit.evaluation.benchmarks.tree import LEXICAL, write_lines

PROMPTS = {
    "MSRVTT": "Find the clip that corresponds to the described scene in the given video.",
    "DiDeMo": "Find a video that includes the following described scenes.",
    "CRB-G": "Find the video according to the general text description.",
    "CRB-S": "Find the video according to the spatial description.",
    "CRB-T": "Find the video according to the temporal description.",
    "CMRB": "Find the video according to the camera motion description.",
    "DREAM-E": "Find the video according to the text description.",
    "LoVR-TH": "Find the video according to text description about video theme information.",
    "PEV-K": "Find the video according to the text description of a series of keywords.",
    "LoVR-V": "Find the long video according to the long text description.",
    "VDC-D": "Find the video according to the detailed text description.",
    "VDC-O": "",
    "MS-TI": "Find the video clip that corresponds to the given text and the given image.",
    "MS-TV": "Find the video clip that corresponds to the given text and the given video.",
    "MSRVTT-I2V": "Find the video according to the image.",
    "LoVR-C2V": "Find the original long video according to the short video clip.",
}
NO_TEXT = ("MSRVTT-I2V", "LoVR-C2V")


def add_set(root: Path, name: str, **changes: list[dict[str, Any]]) -> Path:
    """Add a set under the root; ``changes``: other rows of its files."""
    folder = root / "UVRB_extracted" / name / "UVRB" / name
    picture = root / "picture.png"
    if not picture.exists():
        write_picture(picture, 4, 3)
    files = [f"videos_frames/{video}/{n}.jpg" for video in ("a/b", "c.d") for n in range(1, 13)]
    for file in (*files, "images/i.png"):
        (folder / file).parent.mkdir(parents=True, exist_ok=True)
        os.link(picture, folder / file)
    query = {"id": "q1", "text": " two dogs "}
    if name in NO_TEXT:
        query["text"] = ""
    if name in ("MS-TI", "MSRVTT-I2V"):
        # A query with a picture shows its picture alone.
        query |= {"image": "i.png", "video": "c.d.mp4"}
    if name in ("MS-TV", "LoVR-C2V"):
        query["video"] = "c.d.mp4"
    rows = {
        "queries": [query, {**query, "id": 2}],
        "corpus": [{"id": "v1", "video": "a/b.mp4"}, {"id": "v2", "video": "c.d.mp4"}],
        "instances": [
            {"qid": "q1", "pos": ["v2"]},
            {"qid": 2, "pos": ["v2"]},
            {"qid": "q1", "pos": ["v1", "v2"]},
        ],
        **changes,
    }
    for part, content in rows.items():
        write_lines(folder / "jsonl" / f"{part}.jsonl", content)
    return folder


def load_set(root: Path, name: str, prompts: str = "", **media: Any):
    config = BenchmarkConfig(suite="uvrb", root=str(root), sets=[name], prompts=prompts)
    (loaded,) = load_benchmark(config, MediaConfig(**media))
    return loaded


@pytest.mark.parametrize("name", BENCHMARK_SETS["uvrb"])
def test_a_set_is_read_as_published_with_both_prompts(tmp_path, name) -> None:
    add_set(tmp_path, name)
    own = "" if name in NO_TEXT else "two dogs"
    released = PROMPTS[name] if name in ("CMRB", "DiDeMo") else ""
    for prompts, prompt in (("released", released), ("", released), ("all", PROMPTS[name])):
        loaded = load_set(tmp_path, name, prompts, video="frames")
        queries = loaded.queries
        assert [query.query_id for query in queries] == ["q1", "2"]
        assert [query.right for query in queries] == [{"v2": 1, "v1": 1}, {"v2": 1}]
        assert [query.candidates for query in queries] == [(), ()]
        text = f"{prompt} {own}".strip() if name not in NO_TEXT else prompt
        if name not in NO_TEXT and prompt:
            text = f"{prompt}  {own}"
        item = queries[0].item
        assert (item.text, item.instruction) == (text, "")
        kind = {"MS-TI": "image", "MSRVTT-I2V": "image", "MS-TV": "video", "LoVR-C2V": "video"}
        assert item.kind == kind.get(name, "text")
        assert list(loaded.candidates) == ["v1", "v2"]
        for video in loaded.candidates.values():
            assert (video.text, video.kind) == ("", "video")
            assert [int(Path(uri).stem) for uri in video.uris] == LEXICAL
    (metric,) = {loaded.metric}
    special = {
        "CMRB": "hit@10",
        "LoVR-TH": "hit@10",
        "MS-TI": "precision@1",
        "MS-TV": "precision@1",
    }
    assert metric == special.get(name, "hit@1")


def test_frames_of_a_video_are_spread_over_its_length(tmp_path) -> None:
    add_set(tmp_path, "MSRVTT")
    video = load_set(tmp_path, "MSRVTT").candidates["v1"]
    # 12 frames stored at 8 a second are 1.5 s: 8 shown ones are 16/3 a second.
    assert video.times == pytest.approx([place * 3 / 16 for place in range(8)])
    few = load_set(tmp_path, "MSRVTT", max_frames=2).candidates["v1"]
    assert few.times == pytest.approx([0, 0.75])


@pytest.mark.parametrize("place", ["MS_TI/UVRB/MS_TI", "MS-TI", "MS_TI"])
def test_a_set_may_lie_under_either_name_and_without_its_outer_folders(tmp_path, place) -> None:
    folder = add_set(tmp_path, "MS-TI")
    target = tmp_path / place
    target.parent.mkdir(parents=True, exist_ok=True)
    folder.rename(target)
    assert len(load_set(tmp_path, "MS-TI").queries) == 2


def test_a_long_text_is_cut_as_in_the_released_settings(tmp_path) -> None:
    add_set(tmp_path, "LoVR-V", queries=[{"id": "q1", "text": "x" * 9000}])
    assert load_set(tmp_path, "LoVR-V").queries[0].item.text == "x" * 8192


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        (
            {"instances": [{"qid": "q1", "pos": ["v9"]}, {"qid": 2, "pos": ["v1"]}]},
            "instances.jsonl row 1, field 'pos': expected ids of the corpus, found 'v9'",
        ),
        ({"instances": [{"qid": "q1", "pos": ["v1"]}]}, "a right candidate for query '2'"),
        ({"instances": [{"qid": "q1", "pos": "v1"}]}, "field 'pos': expected a list of ids"),
        ({"queries": [{"id": "q1"}]}, "field 'text': expected a text, a picture or a video"),
        ({"queries": [{"id": "q1", "text": "a"}] * 2}, "expected an id of its own"),
        ({"corpus": [{"id": "v1", "video": "a/b.mp4"}] * 2}, "expected an id of its own"),
        ({"corpus": [{"id": "v1", "file": "a/b.mp4"}]}, "field 'video': expected a text"),
        ({"queries": [{"id": "q1", "image": "no.png"}]}, "1 pictures or folders of frames"),
        (
            {
                "queries": [{"id": "q1", "text": "a"}, {"id": "q2", "image": "no.png"}],
                "instances": [{"qid": "q1", "pos": ["v1"]}],
            },
            "for query 'q2', found none; download the rows again; 1 pictures or folders of frames",
        ),
        ({"corpus": []}, "expected rows with a field 'id', found no rows"),
    ],
)
def test_bad_rows_are_refused_with_their_place(tmp_path, changes, reason) -> None:
    add_set(tmp_path, "MSRVTT", **changes)
    with pytest.raises(DataError, match="1 of 1 sets cannot be measured") as error:
        load_set(tmp_path, "MSRVTT")
    assert reason in str(error.value)


def test_the_table_is_complete() -> None:
    sets = benchmark_suite("uvrb").sets
    assert tuple(sets) == BENCHMARK_SETS["uvrb"]
    groups = [group for table in sets.values() for group in table.groups]
    assert {name: groups.count(name) for name in groups} == {
        **dict.fromkeys(("S", "T", "LC", "CMP", "VIS"), 2),
        **dict.fromkeys(("CG", "PR"), 3),
        "FG": 7,
        "TXT": 12,
    }
    for model, mean in {"Embed-RL-2B": 57.1, "Embed-RL-4B": 57.4}.items():
        assert round(sum(table.published[model] for table in sets.values()) / 16, 1) == mean
