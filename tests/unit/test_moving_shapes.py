"""Of the clips of moving shapes, only the order of the frames says where the shape moves."""

import json
from collections import Counter
from pathlib import Path

import av
import numpy as np
import pytest

from configs.common import DataSetConfig
from data.media.frames import sample_frames
from data.sets.load_sets import load_set
from tests.bench.parts.moving_shapes import (
    ACROSS,
    DIRECTIONS,
    FRAMES,
    STARTS,
    frames_of,
    write_clips,
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("clips")
    write_clips(folder, seed=0, train=6, heldout=3)
    return folder


def videos(folder: Path, name: str) -> list[str]:
    return [row["qry"]["video"] for row in json.loads((folder / f"{name}.json").read_text())]


def decoded(path: Path) -> list[bytes]:
    with av.open(str(path)) as file:
        return [frame.to_ndarray(format="rgb24").tobytes() for frame in file.decode(video=0)]


def test_a_clip_and_its_twin_have_the_same_frames_the_other_way_round(folder: Path) -> None:
    for name in ("across", "around"):
        left, right = (videos(folder, name)[first::2] for first in (0, 1))
        assert len(left) == 3
        for one_way, other_way in zip(left, right, strict=True):
            frames = decoded(folder / one_way)
            assert len(set(frames)) == FRAMES
            assert frames == decoded(folder / other_way)[::-1]


def test_where_the_shape_goes_around_no_frame_tells_the_direction_by_its_place() -> None:
    clips = {
        way: [frames_of(("red", "star", start), way) for start in STARTS] for way in DIRECTIONS
    }
    for place in range(FRAMES):
        left, right = (
            Counter(frames[place].tobytes() for frames in clips[way]) for way in DIRECTIONS
        )
        assert left == right


def test_the_frames_shown_are_a_cell_apart_and_the_same_in_both_directions() -> None:
    shown = sample_frames(range(FRAMES), 4, paired=True)
    assert shown == (0, 4, 8, 12)
    assert [FRAMES - 1 - place for place in shown[::-1]] == [*shown]


def test_where_it_goes_across_the_shape_never_leaves_the_picture() -> None:
    for start in ACROSS:
        places = [
            np.flatnonzero((frame < 255).any(axis=(0, 2)))
            for frame in frames_of(("red", "square", start), "right")
        ]
        edges = [place[0] for place in places]
        assert edges == sorted(edges)
        assert all(len(place) == np.ptp(place) + 1 for place in places)


def test_the_rows_are_read_and_no_track_is_in_two_files(folder: Path) -> None:
    tracks: list[str] = []
    for name, clips in (("train", 24), ("across", 6), ("around", 6)):
        config = DataSetConfig(
            name=name, path=f"{folder}/{name}.json", root=str(folder), format="llavahound"
        )
        pairs = load_set(config).pairs
        texts = Counter(pair.target.text.split()[-1] for pair in pairs)
        assert texts == dict.fromkeys(DIRECTIONS, clips // 2)
        tracks += {video.rpartition("-")[0] for video in videos(folder, name)}
    assert len(tracks) == len(set(tracks)) == 18
