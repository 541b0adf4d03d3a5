"""The demo's world: deterministic, split by scene, its traces valid and its evidence true."""

import json
from pathlib import Path

import pytest

from configs.common import DataSetConfig
from data.demo.world import FILES, write_world
from data.sets.load_sets import LoadedSet, load_set
from data.tcot import parse
from data.types import Kind, Side

SMALL = {"train_scenes": 60, "heldout_scenes": 20, "on_target": 0.35}


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("world")
    write_world(folder, seed=0, **SMALL)
    return folder


def read(world: Path, name: str, task: str) -> LoadedSet:
    loaded = load_set(
        DataSetConfig(
            name=task,
            path=str(world / f"{name}.json"),
            root=str(world),
            format="llavahound" if task == "clips" else "mmeb",
            kind="page" if task == "pages" else "image",
        )
    )
    assert not loaded.bad_rows
    return loaded


def test_the_same_seed_draws_the_same_world(world: Path, tmp_path: Path) -> None:
    write_world(tmp_path / "again", seed=0, **SMALL)
    write_world(tmp_path / "other", seed=1, **SMALL)
    name = "train/teacher_color.json"
    assert (tmp_path / "again" / name).read_text() == (world / name).read_text()
    assert (tmp_path / "other" / name).read_text() != (world / name).read_text()


def test_no_picture_of_a_scene_page_or_clip_is_in_both_splits(world: Path) -> None:
    shown: dict[str, set[str]] = {"train": set(), "heldout": set()}
    for split in shown:
        for task, stem in FILES.items():
            name = f"{split}/{stem}" if split == "heldout" else f"{split}/teacher_{stem}"
            for pair in read(world, name, task).pairs:
                if pair.query.kind is Kind.VIDEO:
                    shown[split].add("|".join(pair.query.uris))
                else:
                    shown[split].update(pair.query.uris)
                    shown[split].update(pair.target.uris)
    assert shown["train"]
    assert not shown["train"] & shown["heldout"]


@pytest.mark.parametrize("task", sorted(FILES))
def test_filtered_traces_are_valid_and_point_at_the_true_evidence(world: Path, task: str) -> None:
    for pair in read(world, f"train/filtered_{FILES[task]}", task).pairs:
        for side in Side:
            item = pair.item(side)
            trace = parse(pair.trace(side), kind=item.kind, num_frames=len(item.uris))
            assert trace.valid, (pair.pair_id, trace.repairs)
            assert trace.cues == pair.evidence(side)


def test_most_of_the_teachers_picture_traces_are_valid_but_off_target(world: Path) -> None:
    traces = []
    for pair in read(world, "train/teacher_color", "color").pairs:
        trace = parse(pair.query_trace, kind=pair.query.kind)
        assert trace.valid
        traces.append(trace.cues == pair.query_evidence)
    assert 0.15 < sum(traces) / len(traces) < 0.55


def test_words_of_a_picture_trace_leave_out_the_colour_that_decides(world: Path) -> None:
    for pair in read(world, "train/filtered_color", "color").pairs:
        color, shape = pair.label.split()
        assert color not in pair.query_trace
        assert shape in pair.query_trace


def test_held_out_rows_are_enough_and_of_all_kinds(world: Path) -> None:
    kinds = set()
    for task, stem in FILES.items():
        for pair in read(world, f"heldout/{stem}", task).pairs:
            kinds |= {pair.query.kind, pair.target.kind}
            assert pair.label
    assert kinds == set(Kind)


def test_captions_read_as_supervised_rows(world: Path) -> None:
    for name in ("sight", "grounding"):
        rows = json.loads((world / f"train/{name}.json").read_text())
        loaded = load_set(
            DataSetConfig(
                name=name, path=str(world / f"train/{name}.json"), root=str(world), format="caption"
            )
        )
        assert len(loaded.pairs) == len(rows)
