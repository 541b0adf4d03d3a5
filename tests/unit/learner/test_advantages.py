"""Group advantages."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from data.errors import DataError
from learner.advantages import group_advantages, has_spread

REWARDS = st.lists(st.floats(-2, 2), min_size=2, max_size=16).map(np.array)


def test_hand_worked_group():
    advantages = group_advantages(np.array([1.0, 2.0, 3.0]), std_floor=1e-6)
    np.testing.assert_allclose(advantages, [-1.0, 0.0, 1.0])


def test_the_floor_bounds_what_noise_is_worth():
    advantages = group_advantages(np.array([0.500, 0.501]), std_floor=0.05)
    np.testing.assert_allclose(advantages, [-0.01, 0.01])


@given(REWARDS)
def test_advantages_sum_to_zero_and_keep_the_order(rewards):
    advantages = group_advantages(rewards, std_floor=0.05)
    assert abs(advantages.sum()) < 1e-9
    assert (np.diff(advantages[np.argsort(rewards)]) >= 0).all()


@given(REWARDS, st.floats(-1, 1))
def test_shifting_all_rewards_changes_nothing(rewards, shift):
    np.testing.assert_allclose(
        group_advantages(rewards + shift, std_floor=0.05),
        group_advantages(rewards, std_floor=0.05),
        atol=1e-9,
    )


def test_spread():
    assert has_spread(np.array([0.1, 0.2]), min_spread=0.05)
    assert not has_spread(np.array([0.1, 0.1]), min_spread=1e-6)
    assert not has_spread(np.array([0.7]), min_spread=0.0)


def test_a_group_of_one_has_no_advantage():
    assert group_advantages(np.array([0.7]), std_floor=1e-6).tolist() == [0.0]


@pytest.mark.parametrize("rewards", [[], [0.1, float("nan")], [[0.1, 0.2]]])
def test_rewards_that_are_no_group_are_refused(rewards):
    with pytest.raises(DataError, match="expected"):
        group_advantages(np.array(rewards), std_floor=1e-6)
