"""Filling up a step that groups without spread left short."""

import dataclasses

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from data.errors import DataError
from data.types import GroupKey, Side, TrainSample
from learner.refill import MIN_PAIRS, InformativeBuffer, more_pairs


@pytest.mark.parametrize(
    ("found", "rounds_left", "expected"),
    [
        (8, 3, 0),  # full
        (4, 3, 4),  # one group a pair so far
        (2, 3, 4),  # half a group a pair: 12 pairs, but a step has 4
        (7, 3, MIN_PAIRS),
        (0, 3, 4),
        (4, 0, 0),  # no rounds left
    ],
)
def test_pairs_are_asked_for_at_the_yield_so_far(found, rounds_left, expected):
    assert more_pairs(wanted=8, found=found, asked=4, pairs=4, rounds_left=rounds_left) == expected


@given(st.integers(0, 40), st.integers(1, 40), st.integers(2, 20), st.integers(0, 3))
def test_a_round_asks_for_nothing_or_for_what_a_step_may_hold(found, asked, pairs, rounds_left):
    count = more_pairs(
        wanted=2 * pairs, found=found, asked=asked, pairs=pairs, rounds_left=rounds_left
    )
    if found >= 2 * pairs or not rounds_left:
        assert count == 0
    else:
        assert MIN_PAIRS <= count <= pairs


def test_a_yield_of_nothing_asked_is_refused():
    with pytest.raises(DataError, match="at least one pair"):
        more_pairs(wanted=8, found=0, asked=0, pairs=4, rounds_left=1)


def samples(*advantages: float) -> list[TrainSample]:
    return [
        TrainSample(
            key=f"s{index}",
            content=(),
            prompt_ids=np.array([1]),
            response_ids=np.array([2, 3]),
            advantage=advantage,
            logprobs=np.array([-1.0, -2.0], dtype=np.float32),
        )
        for index, advantage in enumerate(advantages)
    ]


def key(serial: int) -> GroupKey:
    return GroupKey(serial, "p", Side.QUERY)


def filled(buffer: InformativeBuffer, *versions: int) -> InformativeBuffer:
    for serial, version in enumerate(versions):
        buffer.add(key(serial), samples(1.0, -1.0), version=version)
    return buffer


def drawn(buffer: InformativeBuffer, count: int, version: int) -> list[int]:
    return [group.key.serial for group in buffer.draw(count, version=version)]


def test_the_newest_groups_come_out_first_and_once():
    buffer = filled(InformativeBuffer(groups=8, versions=9), 1, 2, 2, 3)
    assert drawn(buffer, 2, 4) == [3, 2]
    assert drawn(buffer, 5, 4) == [1, 0]
    assert drawn(buffer, 5, 4) == []


def test_a_group_that_arrives_late_is_as_old_as_its_version():
    assert drawn(filled(InformativeBuffer(groups=2, versions=9), 3, 1, 2), 5, 4) == [0, 2]


def test_groups_that_are_too_old_are_dropped():
    buffer = filled(InformativeBuffer(groups=8, versions=2), 1, 2, 3)
    assert drawn(buffer, 0, 5) == []
    assert len(buffer) == 1
    assert drawn(buffer, 5, 5) == [2]


def test_the_oldest_make_room():
    assert drawn(filled(InformativeBuffer(groups=2, versions=9), 1, 2, 3), 5, 3) == [2, 1]


def test_a_buffer_of_no_groups_keeps_none():
    assert len(filled(InformativeBuffer(groups=0, versions=9), 1, 2)) == 0


def test_groups_without_advantages_are_not_kept():
    buffer = InformativeBuffer(groups=8, versions=9)
    buffer.add(key(0), samples(0.0, 0.0), version=1)
    assert len(buffer) == 0


def test_the_behaviour_stands_in_for_old_log_probabilities_that_were_not_stored():
    buffer = InformativeBuffer(groups=8, versions=9)
    fresh, older = samples(1.0, -1.0)
    older = dataclasses.replace(older, old_logprobs=np.array([-1.1, -2.1], dtype=np.float32))
    buffer.add(key(0), [fresh, older], version=1)
    [group] = buffer.draw(1, version=2)
    assert group.samples[0].old_logprobs is fresh.logprobs
    assert group.samples[1] is older


def test_a_trace_without_behaviour_log_probabilities_is_refused():
    buffer = InformativeBuffer(groups=8, versions=9)
    with pytest.raises(DataError, match="s0: expected behaviour log-probabilities"):
        buffer.add(key(0), [dataclasses.replace(samples(1.0)[0], logprobs=None)], version=1)


def test_limits_below_zero_are_refused():
    with pytest.raises(DataError, match="at least 0"):
        InformativeBuffer(groups=-1, versions=1)
