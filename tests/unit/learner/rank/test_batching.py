"""Rows and their collation into micro-batches."""

import numpy as np
import pytest
import torch

from data.errors import DataError
from data.types import Kind, Picture, TrainSample, Video
from learner.micro_batches import RowCost
from learner.rank.batching import (
    Patches,
    Row,
    TextTokens,
    VisionTokens,
    collate,
    row_cost,
    train_row,
)

IMAGE, START, END, PAD = 5, 3, 4, 0
VIDEO = 6
TOKENS = VisionTokens(image=IMAGE, video=VIDEO, start=START, end=END, pad=PAD, merge=2, channels=6)
PICTURE = Picture("a", Kind.IMAGE)
WIDE = Picture("b", Kind.IMAGE)
CLIP = Video((Picture("c", Kind.VIDEO),) * 4, (0.0, 0.5, 1.0, 1.5))
PATCHES = {
    PICTURE: Patches(torch.ones(4, 6), (1, 2, 2)),
    WIDE: Patches(torch.full((8, 6), 2.0), (1, 2, 4)),
    CLIP: Patches(torch.full((8, 6), 3.0), (2, 2, 2)),
}


def test_pictures_cost_only_a_model_that_sees_them():
    row = Row(key="x", ids=np.arange(9), pictures=(PICTURE, WIDE, PICTURE))
    assert row_cost(row, PATCHES, TOKENS) == RowCost(tokens=9, pictures={PICTURE: 1, WIDE: 2})
    assert row_cost(row, {}, TextTokens(pad=PAD)) == RowCost(tokens=9, pictures={})


def test_collation_pads_on_the_right_and_finds_the_predicting_positions():
    rows = [
        Row(
            key="x", ids=np.array([START, IMAGE, END, 7, 8, 9]), pictures=(PICTURE,), num_response=2
        ),
        Row(key="y", ids=np.array([7, 8, 9, 10]), pictures=(), num_response=1),
    ]
    batch = collate(rows, PATCHES, TOKENS)
    assert batch.inputs["input_ids"].tolist() == [[3, 5, 4, 7, 8, 9], [7, 8, 9, 10, 0, 0]]
    assert batch.inputs["attention_mask"].tolist() == [[1] * 6, [1] * 4 + [0] * 2]
    assert batch.inputs["mm_token_type_ids"].tolist() == [[0, 1, 0, 0, 0, 0], [0] * 6]
    assert batch.inputs["image_grid_thw"].tolist() == [[1, 2, 2]]
    assert batch.vision.values.shape == (4, 6)
    assert batch.rows_T.tolist() == [0, 0, 1]
    assert batch.columns_T.tolist() == [3, 4, 2]
    assert batch.targets_T.tolist() == [8, 9, 10]
    assert batch.last_B.tolist() == [5, 3]


def test_siblings_share_processed_pictures_and_keep_their_order():
    ids = np.array([START, IMAGE, IMAGE, END, START, IMAGE, END, 7])
    rows = [Row(key=k, ids=ids, pictures=(WIDE, PICTURE), num_response=1) for k in "xy"]
    batch = collate(rows, PATCHES, TOKENS)
    assert batch.inputs["image_grid_thw"].tolist() == [[1, 2, 4], [1, 2, 2]] * 2
    assert batch.vision.values[:, 0].tolist() == [2.0] * 8 + [1.0] * 4
    assert batch.vision.grid.tolist() == [[1, 2, 4], [1, 2, 2]]
    assert batch.vision.shown.tolist() == [0, 1] * 2


@pytest.mark.parametrize("count", [0, 2])
def test_a_batch_without_pictures_gets_a_filler_row(count):
    rows = [Row(key="x", ids=np.array([7, 8, 9, 10]), pictures=(), num_response=1)] * count
    batch = collate(rows, {}, TOKENS)
    assert batch.inputs["input_ids"].shape[0] == count + 1
    assert batch.inputs["input_ids"][-1, :3].tolist() == [START, IMAGE, END]
    assert batch.inputs["image_grid_thw"].tolist() == batch.vision.grid.tolist() == [[1, 2, 2]]
    assert batch.vision.values.shape == (4, 6)
    assert len(batch.targets_T) == count == len(batch.last_B)


def test_a_text_only_batch_holds_tokens_alone():
    rows = [
        Row(key="x", ids=np.array([IMAGE, 7, 8]), pictures=(PICTURE,), num_response=1),
        Row(key="y", ids=np.array([7, 8]), pictures=(), num_response=1),
    ]
    batch = collate(rows, {}, TextTokens(pad=PAD))
    assert set(batch.inputs) == {"input_ids", "attention_mask"}
    assert batch.vision is None
    assert batch.inputs["input_ids"].tolist() == [[IMAGE, 7, 8], [7, 8, PAD]]
    assert batch.targets_T.tolist() == [8, 8]


def test_an_empty_text_only_batch_still_has_a_row_to_run():
    batch = collate([], {}, TextTokens(pad=PAD))
    assert batch.inputs["input_ids"].tolist() == [[PAD]]
    assert batch.inputs["attention_mask"].tolist() == [[1]]
    assert len(batch.targets_T) == len(batch.last_B) == 0


def test_picture_tokens_must_match_the_pictures():
    row = Row(key="pair-7/query/3", ids=np.array([START, IMAGE, IMAGE, END]), pictures=(PICTURE,))
    with pytest.raises(DataError, match=r"pair-7/query/3: expected 1 picture tokens .* found 2"):
        collate([row], PATCHES, TOKENS)


def test_a_sample_without_response_is_refused():
    sample = TrainSample(
        key="s", content=("x",), prompt_ids=np.array([1]), response_ids=np.array([], dtype=int)
    )
    with pytest.raises(DataError, match="s: expected at least one prompt and one response"):
        train_row(sample)


def test_videos_are_told_from_pictures_and_each_distinct_one_is_read_once():
    ids = [START, IMAGE, END, 7, START, VIDEO, END, 7, START, VIDEO, END, 8]
    rows = [Row(key=k, ids=np.array(ids), pictures=(PICTURE, CLIP), num_response=1) for k in "xy"]
    assert row_cost(rows[0], PATCHES, TOKENS) == RowCost(tokens=12, pictures={PICTURE: 1, CLIP: 2})
    batch = collate(rows, PATCHES, TOKENS)
    types = [0, 1, 0, 0, 0, 2, 0, 0, 0, 2, 0, 0]
    assert batch.inputs["mm_token_type_ids"].tolist() == [types] * 2
    assert batch.inputs["image_grid_thw"].tolist() == [[1, 2, 2]] * 2
    assert batch.inputs["video_grid_thw"].tolist() == [[2, 2, 2]] * 2
    assert batch.vision.grid.tolist() == [[1, 2, 2], [2, 2, 2]]
    assert (batch.vision.shown.tolist(), batch.vision.shown_videos.tolist()) == ([0, 0], [1, 1])


def test_a_batch_of_videos_alone_needs_no_filler_row():
    ids = np.array([START, VIDEO, END, 7, START, VIDEO, END, 8])
    batch = collate([Row(key="x", ids=ids, pictures=(CLIP,), num_response=1)], PATCHES, TOKENS)
    assert batch.inputs["input_ids"].tolist() == [ids.tolist()]
    assert "image_grid_thw" not in batch.inputs


def test_video_tokens_must_match_the_videos():
    row = Row(key="s", ids=np.array([START, VIDEO, IMAGE, END]), pictures=(CLIP, PICTURE))
    with pytest.raises(DataError, match=r"s: expected 2 video tokens for its 1 videos, found 1"):
        collate([row], PATCHES, TOKENS)
