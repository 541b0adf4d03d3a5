"""What travels between processes: equal after the journey, and shared where it was shared."""

import copy
import dataclasses
import pickle

import numpy as np
import pytest
from ray import cloudpickle

from data.pickling import Packed
from data.types import (
    Box,
    EmbedRequest,
    GenerationRequest,
    GroupKey,
    Kind,
    Picture,
    Side,
    TrainSample,
    TrajectoryKey,
    Video,
)
from tests.builders import make_trajectory

KEY = TrajectoryKey(GroupKey(3, "p3", Side.TARGET), 1)
FRAMES = (Picture("/a.mp4#frame=0", Kind.VIDEO), Picture("/a.mp4#frame=9", Kind.VIDEO))
CONTENT = (
    Picture("/a.png", Kind.IMAGE, Box(0.1, 0.2, 0.3, 0.4)),
    Video(FRAMES, (0.0, 0.36)),
    "what is it?",
)


@pytest.mark.parametrize(
    "one",
    [
        KEY,
        GenerationRequest(key=KEY, content=CONTENT, seed=7, max_tokens=4),
        EmbedRequest(key=str(KEY), content=CONTENT),
    ],
)
def test_what_is_pickled_comes_back_equal(one):
    for back in (pickle.loads(pickle.dumps(one)), copy.deepcopy(one)):
        assert back == one
        assert hash(back) == hash(one)
        assert repr(back) == repr(one)


def test_arrays_come_back_and_stay_shared():
    one = make_trajectory(0, Side.QUERY)
    samples = [
        TrainSample(
            key=str(index),
            content=CONTENT,
            prompt_ids=one.prompt_ids,
            response_ids=one.response_ids,
            logprobs=one.logprobs,
        )
        for index in range(2)
    ]
    [trace, *back] = pickle.loads(pickle.dumps([one, *samples]))
    assert trace.key == one.key
    np.testing.assert_array_equal(trace.response_ids, one.response_ids)
    assert back[0].prompt_ids is back[1].prompt_ids is trace.prompt_ids
    assert (back[1].old_logprobs, back[1].advantage) == (None, 0.0)


def test_a_packed_list_arrives_as_a_plain_one_that_shares_what_was_shared():
    trace = make_trajectory(3, Side.TARGET, 1)
    sibling = dataclasses.replace(trace, key=TrajectoryKey(trace.key.group, 2))
    back = pickle.loads(cloudpickle.dumps(Packed([trace, sibling])))
    assert type(back) is list
    assert [one.key for one in back] == [trace.key, sibling.key]
    assert back[0].prompt_ids is back[1].prompt_ids
    assert back[0].text == trace.text
    assert (back[0].logprobs == trace.logprobs).all()
