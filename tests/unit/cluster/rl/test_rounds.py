"""How many pairs a step samples next, and what a sampling is worth."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster.pictures import SharedPictures
from cluster.rl.rounds import (
    SampledRound,
    count_spread,
    pairs_wanted,
    round_advantages,
)
from configs.common import RolloutConfig, SamplingConfig
from configs.learner import GRPOConfig
from configs.schema import RLConfig
from data.types import Side
from tests.builders import make_scored, make_trajectory


@pytest.mark.parametrize(
    ("asked", "found", "refill", "expected"),
    [
        ([], [], 0, 16),  # the step itself
        ([16], [0], 0, 0),  # short, and that is that
        ([16], [32], 3, 0),  # full
        ([16], [33], 3, 0),
        ([16], [20], 3, 10),  # 12 groups are missing at 20 of 16 pairs: 9.6 pairs
        ([16], [30], 3, 8),  # not fewer than half: a rank among few is another task
        ([16], [4], 3, 16),  # not more than a step's
        ([16], [0], 3, 16),
        ([16, 16, 16, 16], [1, 1, 1, 1], 3, 0),  # no round is left
    ],
)
def test_a_round_follows_by_what_is_missing(asked, found, refill, expected):
    assert pairs_wanted(asked, found, pairs=16, refill=refill) == expected


@given(st.integers(2, 40), st.integers(0, 5), st.lists(st.integers(0, 80), max_size=8))
def test_rounds_end_and_stay_within_a_steps_pairs(pairs, refill, yields):
    asked, found = [], []
    while count := pairs_wanted(asked, found, pairs=pairs, refill=refill):
        assert max(2, pairs) / 2 <= count <= pairs
        asked.append(count)
        found.append(yields.pop() if yields else 0)
    assert 1 <= len(asked) <= refill + 1
    assert sum(found) >= 2 * pairs or len(asked) == refill + 1


def test_whether_a_group_was_paid_alike_is_asked_before_any_penalty():
    traces = [
        make_trajectory(serial, Side.QUERY, sibling) for serial in (0, 1) for sibling in (0, 1)
    ]
    # One trace of each group is at the token limit.
    long = [
        replace(one, response_ids=np.zeros(10, np.int64)) if one.key.sibling else one
        for one in traces
    ]
    sampled = SampledRound(
        pairs={},
        contents={},
        pictures=SharedPictures((), {}),
        trajectories=long,
        scored=[
            make_scored(one, total=total)
            for one, total in zip(long, (0.5, 0.5, 0.2, 0.7), strict=True)
        ],
        dropped=[],
        tokens={},
        metrics={},
    )
    config = RLConfig(
        rollout=RolloutConfig(sampling=SamplingConfig(max_tokens=10)),
        grpo=GRPOConfig(refill=1, overlong_penalty=1.0, advantage="mean_only"),
    )
    assert count_spread(sampled, config) == 1
    advantages, penalties = round_advantages(sampled, config)
    assert advantages == pytest.approx({long[2].key: 0.25, long[3].key: -0.25})
    assert penalties == {"reward/overlong": 0.5}
    # Without dynamic sampling the penalty is a reward like any other.
    config = replace(config, grpo=replace(config.grpo, refill=0))
    advantages, _ = round_advantages(sampled, config)
    assert advantages[long[0].key] == pytest.approx(0.5)
