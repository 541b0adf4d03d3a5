"""Plans of micro-batches and their collation."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from data.errors import DataError
from data.types import Kind, Picture, TrainSample
from learner.batching import (
    MAX_PADDING,
    Patches,
    Row,
    RowCost,
    TextTokens,
    VisionTokens,
    collate,
    plan_micro_batches,
    row_cost,
    train_row,
)

COSTS = st.lists(
    st.builds(
        RowCost,
        tokens=st.integers(1, 300),
        pictures=st.dictionaries(st.sampled_from("abcdefgh"), st.just(40), max_size=3),
    ),
    max_size=60,
)
IMAGE, START, END, PAD = 5, 3, 4, 0
TOKENS = VisionTokens(image=IMAGE, start=START, end=END, pad=PAD, merge=2, channels=6)
PICTURE = Picture("a", Kind.IMAGE)
WIDE = Picture("b", Kind.IMAGE)
PATCHES = {
    PICTURE: Patches(torch.ones(4, 6), (1, 2, 2)),
    WIDE: Patches(torch.full((8, 6), 2.0), (1, 2, 4)),
}


def texts(lengths):
    """Return the costs of rows without pictures."""
    return [RowCost(tokens=length, pictures={}) for length in lengths]


@given(COSTS, st.integers(1, 4), st.integers(1, 1000))
def test_every_sample_is_planned_once_within_the_budget(rows, ranks, budget):
    plan = plan_micro_batches(rows, ranks=ranks, budget_tokens=budget)
    micro_batches = [micro for share in plan for micro in share]
    assert sorted(index for micro in micro_batches for index in micro) == list(range(len(rows)))
    assert len(plan) == ranks
    assert len({len(share) for share in plan}) == 1
    for micro in micro_batches:
        padded = len(micro) * max((rows[index].tokens for index in micro), default=0)
        seen = {name: n for index in micro for name, n in rows[index].pictures.items()}
        assert padded + sum(seen.values()) <= budget or len(micro) == 1


@given(COSTS, st.integers(1, 4), st.integers(1, 2000))
def test_little_of_any_plan_is_padding(rows, ranks, budget):
    plan = plan_micro_batches(rows, ranks=ranks, budget_tokens=budget)
    micro_batches = [micro for share in plan for micro in share if micro]
    padded = sum(len(micro) * max(rows[index].tokens for index in micro) for micro in micro_batches)
    assert padded - sum(row.tokens for row in rows) <= MAX_PADDING * padded


@given(COSTS, st.integers(1, 4))
def test_the_plan_is_deterministic(rows, ranks):
    plans = [plan_micro_batches(rows, ranks=ranks, budget_tokens=500) for _ in range(2)]
    assert plans[0] == plans[1]


def test_siblings_pay_for_their_picture_once():
    """By hand: four rows of 10 tokens and one picture of 60 fit into 100, two pictures do not."""
    one = [RowCost(tokens=10, pictures={PICTURE: 60})] * 4
    assert plan_micro_batches(one, ranks=1, budget_tokens=100) == [[[0, 1, 2, 3]]]
    two = [*one[:2], *[RowCost(tokens=10, pictures={WIDE: 60})] * 2]
    assert plan_micro_batches(two, ranks=1, budget_tokens=100) == [[[0, 1], [2, 3]]]


def test_a_lone_outlier_gets_a_micro_batch_of_its_own():
    plan = plan_micro_batches(texts([10, 100, 10, 10]), ranks=1, budget_tokens=1000)
    assert plan == [[[1], [0, 2, 3]]]


def test_pictures_cost_only_a_model_that_sees_them():
    row = Row(key="x", ids=np.arange(9), pictures=(PICTURE, WIDE, PICTURE))
    assert row_cost(row, PATCHES, TOKENS) == RowCost(tokens=9, pictures={PICTURE: 1, WIDE: 2})
    assert row_cost(row, {}, TextTokens(pad=PAD)) == RowCost(tokens=9, pictures={})


def test_no_samples_make_no_micro_batches():
    assert plan_micro_batches([], ranks=2, budget_tokens=10) == [[], []]


def test_small_work_is_still_split_over_the_ranks():
    plan = plan_micro_batches(texts([10] * 8), ranks=2, budget_tokens=1000)
    assert [[len(micro) for micro in share] for share in plan] == [[4], [4]]


@pytest.mark.parametrize("ranks", [1, 2, 3, 4])
def test_ranks_are_balanced_and_little_is_padding(ranks):
    lengths = np.random.default_rng(ranks).integers(50, 90, 128).tolist()
    plan = plan_micro_batches(texts(lengths), ranks=ranks, budget_tokens=1000)
    cost = [sum(len(m) * max(lengths[i] for i in m) for m in share if m) for share in plan]
    assert max(cost) <= 1.05 * min(cost)
    assert sum(cost) <= 1.1 * sum(lengths)


def test_fewer_samples_than_ranks_leave_empty_micro_batches():
    plan = plan_micro_batches(texts([7]), ranks=3, budget_tokens=100)
    assert plan == [[[0]], [[]], [[]]]


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
