"""What a rollout actor sends back."""

import pickle
from dataclasses import replace

import numpy as np

from data.types import DroppedTrajectory, GenerationRequest, Side, TrainSample
from rollout.actor import share_prompts
from tests.builders import make_trajectory

PROMPT_TOKENS, SIBLINGS = 5000, 8


def group(serial):
    """Return requests and traces of siblings, each with its own copy of the prompt."""
    traces = [
        replace(make_trajectory(serial, Side.QUERY, i), prompt_ids=np.arange(PROMPT_TOKENS))
        for i in range(SIBLINGS)
    ]
    requests = [GenerationRequest(key=one.key, content=(f"p{serial}",), seed=0) for one in traces]
    return requests, traces


def test_a_prompt_travels_once_to_the_driver_and_on_to_the_learner():
    requests, traces = group(0)
    arrived = pickle.loads(pickle.dumps(share_prompts(requests, traces), protocol=5))
    assert all(one.prompt_ids is arrived[0].prompt_ids for one in arrived)
    samples = [
        TrainSample(
            key=str(one.key),
            content=requests[0].content,
            prompt_ids=one.prompt_ids,
            response_ids=one.response_ids,
            logprobs=one.logprobs,
        )
        for one in arrived
    ]
    prompt_bytes = 8 * PROMPT_TOKENS
    for sent in (share_prompts(requests, traces), samples):
        assert prompt_bytes < len(pickle.dumps(sent, protocol=5)) < 1.1 * prompt_bytes
    # As Ray does it, arrays beside the message.
    buffers = []
    pickle.dumps(samples, protocol=5, buffer_callback=buffers.append)
    assert sum(buffer.raw().nbytes for buffer in buffers) < 1.1 * prompt_bytes


def test_groups_keep_their_own_prompts_and_dropped_traces_stay():
    first, second = group(0), group(1)
    other = [replace(one, prompt_ids=one.prompt_ids + 1) for one in second[1]]
    lost = DroppedTrajectory(first[0][0].key, "generation_failed")
    shared = share_prompts([*first[0], *second[0]], [lost, *first[1][1:], *other])
    assert shared[0] is lost
    for found, expected in zip(shared[1:], [*first[1][1:], *other], strict=True):
        assert found.key == expected.key
        np.testing.assert_array_equal(found.prompt_ids, expected.prompt_ids)
