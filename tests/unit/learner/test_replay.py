"""The buffer of informative groups: what is kept, for how long, and that it survives a restart."""

import json
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from configs.learner import GRPOConfig
from data.errors import DataError
from data.types import Box, Kind, Picture, TrainSample, Video
from learner.rank.policy_loss import policy_loss
from learner.rank.policy_tokens import policy_tokens
from learner.replay import ReplayBuffer


def group(name="g", *, advantages=(1.0, -1.0), logprobs=(-0.5, -0.25)) -> list[TrainSample]:
    return [
        TrainSample(
            key=f"{name}/{index}",
            content=(Picture(f"{name}.png", Kind.IMAGE, Box(0.1, 0.2, 0.3, 1 / 3)), "which one?"),
            prompt_ids=np.array([1, 2]),
            response_ids=np.array([3, 4]),
            advantage=advantage,
            weight=0.5,
            logprobs=None if logprobs is None else np.array(logprobs, dtype=np.float32),
        )
        for index, advantage in enumerate(advantages)
    ]


def names(groups):
    return [one.samples[0].key.split("/")[0] for one in groups]


def test_groups_come_out_once_and_newest_first():
    buffer = ReplayBuffer(groups=4, age=9)
    for version, name in enumerate("abc"):
        buffer.add(group(name), version=version)
    assert names(buffer.draw(2, version=3)) == ["c", "b"]
    assert names(buffer.draw(2, version=3)) == ["a"]
    assert buffer.draw(2, version=3) == []


def test_a_full_buffer_forgets_the_oldest():
    buffer = ReplayBuffer(groups=2, age=9)
    for version, name in ((1, "b"), (0, "a"), (2, "c")):
        buffer.add(group(name), version=version)
    assert names(buffer.draw(9, version=3)) == ["c", "b"]


def test_groups_beyond_the_age_are_forgotten():
    buffer = ReplayBuffer(groups=9, age=2)
    for version, name in enumerate("abcd"):
        buffer.add(group(name), version=version)
    assert names(buffer.draw(9, version=4)) == ["d", "c"]


def test_a_full_step_takes_nothing_out():
    buffer = ReplayBuffer(groups=9, age=9)
    buffer.add(group("a"), version=0)
    assert buffer.draw(0, version=1) == []
    assert buffer.draw(-3, version=1) == []
    assert names(buffer.draw(1, version=1)) == ["a"]


def test_a_buffer_of_none_keeps_none():
    buffer = ReplayBuffer(groups=0, age=9)
    buffer.add(group(), version=0)
    assert buffer.state() == []


def test_a_group_that_taught_nothing_is_not_kept():
    buffer = ReplayBuffer(groups=9, age=9)
    buffer.add(group(advantages=(0.0, 0.0)), version=0)
    assert buffer.state() == []


def test_a_group_that_cannot_be_weighed_is_refused():
    with pytest.raises(DataError, match="g/0: expected behaviour log-probabilities"):
        ReplayBuffer(groups=9, age=9).add(group(logprobs=None), version=0)


@given(st.lists(st.floats(-40, 0, width=32), min_size=2, max_size=2), st.floats(-9, 9))
def test_a_restored_buffer_holds_the_same_bits(logprobs, advantage):
    buffer, restored = ReplayBuffer(groups=9, age=9), ReplayBuffer(groups=9, age=9)
    buffer.add(group("a", advantages=(advantage, 1.0), logprobs=logprobs), version=3)
    restored.restore(json.loads(json.dumps(buffer.state())))
    [expected], [found] = (one.draw(1, version=3) for one in (buffer, restored))
    assert (found.version, found.uris()) == (3, {"a.png"})
    for mine, its in zip(found.samples, expected.samples, strict=True):
        assert (mine.key, mine.content, mine.advantage) == (its.key, its.content, its.advantage)
        assert mine.weight == its.weight == 0.5
        for name in ("prompt_ids", "response_ids", "logprobs", "old_logprobs"):
            values, others = getattr(mine, name), getattr(its, name)
            assert values.dtype == others.dtype
            np.testing.assert_array_equal(values, others)


def test_what_the_learner_gave_a_trace_when_it_came_in_is_kept():
    buffer, restored = ReplayBuffer(groups=1, age=9), ReplayBuffer(groups=1, age=9)
    own = np.array([-0.75, -0.5], dtype=np.float32)
    buffer.add([replace(one, old_logprobs=own) for one in group()], version=0)
    state = json.loads(json.dumps(buffer.state()))
    restored.restore(state)
    for some in (buffer, restored):
        [kept] = some.draw(1, version=1)
        assert all((one.old_logprobs == own).all() for one in kept.samples)
    # A checkpoint of before: the engine's stand in.
    for sample in state[0]["samples"]:
        del sample["old_logprobs"]
    restored.restore(state)
    [kept] = restored.draw(1, version=1)
    assert all((one.old_logprobs == one.logprobs).all() for one in kept.samples)


@pytest.mark.parametrize("tis_cap", [0.0, 2.0])
def test_a_replayed_trace_weighs_by_its_ratio_to_what_sampled_it(tis_cap):
    config = GRPOConfig(kl="none", tis_cap=tis_cap, clip_low=0.2, clip_high=0.2)
    buffer = ReplayBuffer(groups=1, age=9)
    # The third token has become so much likelier that its ratio is clipped.
    buffer.add(group(advantages=(1.0, 1.0), logprobs=(-1.0, -1.0)), version=0)
    [kept] = buffer.draw(1, version=3)
    now_T = torch.tensor([-1.0, -1.1, -0.5, -1.4]).requires_grad_()
    tokens = policy_tokens(kept.samples, now_T, torch.zeros(4), None, loss_mean=config.loss_mean)
    loss, sums, largest = policy_loss(tokens, config)
    ratios = [math.exp(0.0), math.exp(-0.1), 1.2, math.exp(-0.4)]
    assert loss.item() == pytest.approx(-0.5 * sum(ratios))
    assert sums["off_policy_ratio"].item() == pytest.approx(
        1 + math.exp(-0.1) + math.exp(0.5) + math.exp(-0.4)
    )
    # The engines are not blamed for its age.
    assert largest["logprob_gap"].item() == 0.0


def test_a_video_survives_a_restart_with_its_frames_and_times():
    frames = tuple(Picture(f"v.mp4#frame={number}", Kind.VIDEO) for number in (0, 7))
    content = (Video(frames, (0.0, 0.233)), "what moves?", frames[1])
    buffer, restored = ReplayBuffer(groups=1, age=9), ReplayBuffer(groups=1, age=9)
    buffer.add([replace(one, content=content) for one in group()], version=0)
    restored.restore(json.loads(json.dumps(buffer.state())))
    [kept] = restored.draw(1, version=1)
    assert {one.content for one in kept.samples} == {content}
    assert kept.uris() == {"v.mp4#frame=0", "v.mp4#frame=7"}
