"""Group advantages and what shapes the rewards before them."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from configs.learner import GRPOConfig
from data.errors import DataError
from data.types import GroupKey, Side, TrajectoryKey
from learner.advantages import (
    group_advantages,
    groups_with_spread,
    has_spread,
    overlong_share,
    shaped_rewards,
    step_advantages,
)
from learner.objectives import TokenScores
from tests.unit.learner.rank.objective import slow_centred_and_scaled

KINDS = ["group_norm", "mean_only", "leave_one_out", "batch_norm"]
REWARDS = st.lists(st.floats(-2, 2), min_size=2, max_size=16).map(np.array)
GROUPS = st.lists(REWARDS, min_size=1, max_size=4)


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("group_norm", [[-1.0, 0.0, 1.0], [-(0.5**0.5), 0.5**0.5]]),
        ("mean_only", [[-1.0, 0.0, 1.0], [-2.0, 2.0]]),
        ("leave_one_out", [[-1.5, 0.0, 1.5], [-4.0, 4.0]]),
        ("batch_norm", [[-(0.4**0.5), 0.0, 0.4**0.5], [-(1.6**0.5), 1.6**0.5]]),
    ],
)
def test_hand_worked_groups(kind, expected):
    groups = [np.array([1.0, 2.0, 3.0]), np.array([0.0, 4.0])]
    found = group_advantages(groups, kind=kind, std_floor=1e-6)
    for values, wanted in zip(found, expected, strict=True):
        np.testing.assert_allclose(values, wanted)


@pytest.mark.parametrize("kind", KINDS)
@given(GROUPS)
def test_advantages_match_a_slow_reference(kind, groups):
    found = group_advantages(groups, kind=kind, std_floor=0.05)
    expected = slow_centred_and_scaled([group.tolist() for group in groups], kind, 0.05)
    for values, wanted in zip(found, expected, strict=True):
        np.testing.assert_allclose(values, wanted, atol=1e-9)


def test_the_floor_bounds_what_noise_is_worth():
    for kind in ("group_norm", "batch_norm"):
        [advantages] = group_advantages([np.array([0.500, 0.501])], kind=kind, std_floor=0.05)
        np.testing.assert_allclose(advantages, [-0.01, 0.01])


@pytest.mark.parametrize("kind", KINDS)
@given(GROUPS)
def test_advantages_sum_to_zero_and_keep_the_order(kind, groups):
    found = group_advantages(groups, kind=kind, std_floor=0.05)
    for advantages, rewards in zip(found, groups, strict=True):
        assert abs(advantages.sum()) < 1e-9
        assert (np.diff(advantages[np.argsort(rewards)]) >= 0).all()


@pytest.mark.parametrize("kind", KINDS)
@given(REWARDS, st.floats(-1, 1))
def test_shifting_all_rewards_changes_nothing(kind, rewards, shift):
    shifted = group_advantages([rewards + shift], kind=kind, std_floor=0.05)
    same = group_advantages([rewards], kind=kind, std_floor=0.05)
    np.testing.assert_allclose(shifted[0], same[0], atol=1e-9)


def test_spread():
    assert has_spread(np.array([0.1, 0.2]), min_spread=0.05)
    assert not has_spread(np.array([0.1, 0.1]), min_spread=1e-6)
    assert not has_spread(np.array([0.7]), min_spread=0.0)


@pytest.mark.parametrize("kind", KINDS)
def test_a_group_of_one_has_no_advantage_and_no_groups_give_none(kind):
    [advantages] = group_advantages([np.array([0.7])], kind=kind, std_floor=1e-6)
    assert advantages.tolist() == [0.0]
    assert group_advantages([], kind=kind, std_floor=1e-6) == []


@pytest.mark.parametrize("rewards", [[], [0.1, float("nan")], [[0.1, 0.2]]])
def test_rewards_that_are_no_group_are_refused(rewards):
    with pytest.raises(DataError, match="expected"):
        group_advantages([np.array(rewards)], kind="group_norm", std_floor=1e-6)


def test_an_unknown_kind_is_refused():
    with pytest.raises(DataError, match="found 'median'"):
        group_advantages([np.array([0.1, 0.2])], kind="median", std_floor=1e-6)


@pytest.mark.parametrize(("tokens", "share"), [(0, 0), (80, 0), (90, 0.5), (100, 1), (120, 1)])
def test_the_overlong_penalty_rises_over_the_last_part(tokens, share):
    assert overlong_share(tokens, max_tokens=100, share=0.2) == pytest.approx(share)


@pytest.mark.parametrize(("max_tokens", "share"), [(0, 0.2), (100, 0.0), (100, 1.5)])
def test_a_limit_without_a_last_part_is_refused(max_tokens, share):
    with pytest.raises(DataError, match="token limit"):
        overlong_share(10, max_tokens=max_tokens, share=share)


KEYS_OF_THREE_GROUPS = [
    TrajectoryKey(GroupKey(serial, "p", Side.QUERY), sibling)
    for sibling in range(2)  # siblings arrive mixed
    for serial in range(3)
]


def test_groups_without_spread_have_advantage_0_and_stay_in_the_step():
    keys = KEYS_OF_THREE_GROUPS
    paid = dict(zip(keys, [0.0, 0.5, 1.0, 1.0, 0.5009, 5.0], strict=True))
    config = GRPOConfig(advantage="mean_only", min_spread=1e-3)
    found = step_advantages(paid, config, paid=paid)
    expected = [-0.5, 0.0, -2.0, 0.5, 0.0, 2.0]
    assert found == dict(zip(keys, expected, strict=True))
    assert groups_with_spread(paid, min_spread=1e-3) == {keys[0].group, keys[2].group}
    assert step_advantages({}, GRPOConfig(), paid={}) == {}


def test_the_std_of_all_counts_the_groups_without_spread():
    keys = KEYS_OF_THREE_GROUPS
    paid = dict(zip(keys, [0.0, 0.5, 7.0, 1.0, 0.5, 7.0], strict=True))
    found = step_advantages(paid, GRPOConfig(advantage="batch_norm"), paid=paid)
    # Of -0.5, 0.5 and four zeros: sqrt(0.5 / 5).
    assert found[keys[3]] == pytest.approx(0.5 / 0.1**0.5)


def test_dynamic_sampling_leaves_out_what_was_paid_alike_before_any_penalty():
    keys = KEYS_OF_THREE_GROUPS
    paid = dict(zip(keys, [1.0, 0.5, 1.0, 1.0, 1.0, 0.0], strict=True))
    # One of the two that were paid alike is too long; another penalty hides a difference.
    rewards = {**paid, keys[3]: 0.2, keys[1]: 0.5, keys[4]: 0.5}
    config = GRPOConfig(advantage="mean_only", refill=1)
    assert step_advantages(rewards, config, paid=paid) == {
        keys[1]: 0.0,
        keys[4]: 0.0,
        keys[2]: 0.5,
        keys[5]: -0.5,
    }
    without = GRPOConfig(advantage="mean_only")
    assert step_advantages(rewards, without, paid=paid)[keys[0]] == pytest.approx(0.4)


FIRST, SECOND = (TrajectoryKey(GroupKey(0, "p", Side.QUERY), sibling) for sibling in (0, 1))
PAID = {FIRST: 1.0, SECOND: 0.5}
LENGTHS = {FIRST: 4, SECOND: 9}


def test_rewards_are_left_alone_by_default():
    found, metrics = shaped_rewards(PAID, LENGTHS, {}, grpo=GRPOConfig(), max_tokens=10)
    assert found == PAID
    assert metrics == {}


def test_long_traces_and_those_far_from_the_reference_lose_reward():
    scores = {
        str(FIRST): TokenScores(np.full(4, -1.0, np.float32), np.full(4, -1.5, np.float32)),
        str(SECOND): TokenScores(np.full(9, -1.0, np.float32), np.full(9, -1.0, np.float32)),
    }
    grpo = GRPOConfig(kl="k1", kl_in="reward", kl_coef=0.1, overlong_penalty=0.4)
    found, metrics = shaped_rewards(PAID, LENGTHS, scores, grpo=grpo, max_tokens=10)
    assert found == pytest.approx({FIRST: 1.0 - 0.1 * 4 * 0.5, SECOND: 0.5 - 0.4 * 0.5})
    assert metrics == pytest.approx({"reward/overlong": 0.25, "policy/kl": 2 / 13})


def test_no_traces_have_no_penalties():
    grpo = GRPOConfig(kl="k1", kl_in="reward", overlong_penalty=0.4)
    assert shaped_rewards({}, {}, {}, grpo=grpo, max_tokens=10) == ({}, {})
