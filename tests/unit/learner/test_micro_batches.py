"""Plans of micro-batches."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from data.types import Kind, Picture
from learner.micro_batches import MAX_PADDING, RowCost, plan_micro_batches

COSTS = st.lists(
    st.builds(
        RowCost,
        tokens=st.integers(1, 300),
        pictures=st.dictionaries(st.sampled_from("abcdefgh"), st.just(40), max_size=3),
    ),
    max_size=60,
)
PICTURE = Picture("a", Kind.IMAGE)
WIDE = Picture("b", Kind.IMAGE)


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
