"""The real rollout actor against plain transformers, on a tiny model with its folder's weights."""

import time
from dataclasses import replace

import numpy as np
import pytest

from data.engine.arguments import set_engine_environment
from data.errors import DataError
from data.model.chat import VISION_TOKENS
from data.types import DroppedTrajectory, Kind, Picture, Trajectory
from tests.integration.conftest import ENGINE
from tests.integration.reference import logprobs, request


def _by_key(results: list) -> dict:
    return {str(result.key): result for result in results}


@pytest.mark.parametrize("name", ["text", "image", "images", "frames"])
def test_logprobs_equal_the_learners(
    name, reasoner, tiny_model, encoder, contents, pictures
) -> None:
    asked = [request(contents[name], sibling=i, seed=i, greedy=i == 0) for i in range(3)]
    prompt = encoder.encode(contents[name], pictures)
    for trace in reasoner.generate(asked, pictures):
        assert isinstance(trace, Trajectory), trace
        assert trace.prompt_ids.tolist() == prompt.expanded
        assert trace.logprobs.shape == trace.response_ids.shape
        expected = logprobs(tiny_model, encoder, prompt, trace.response_ids)
        assert np.abs(trace.logprobs - expected).max() < 1e-3
        assert trace.finish in ("stop", "length")


def test_equal_seeds_give_equal_traces_and_others_do_not(reasoner, contents, pictures) -> None:
    asked = [request(contents["image"], sibling=i, seed=i % 2) for i in range(4)]
    once = _by_key(reasoner.generate(asked, pictures))
    again = _by_key(reasoner.generate(asked[::-1], pictures))
    for key, trace in once.items():
        assert trace.response_ids.tolist() == again[key].response_ids.tolist()
    first, second, third, _ = (once[str(r.key)].response_ids.tolist() for r in asked)
    assert first == third
    assert first != second


def test_greedy_takes_the_likeliest_token_whatever_the_seed(reasoner, contents, pictures) -> None:
    asked = [request(contents["text"], sibling=i, seed=i, greedy=True) for i in range(2)]
    one, other = reasoner.generate(asked, pictures)
    assert one.response_ids.tolist() == other.response_ids.tolist()


def test_banned_tokens_are_never_sampled(reasoner, encoder, contents, pictures) -> None:
    banned = set(encoder.banned_ids())
    assert set(encoder.tokenizer.convert_tokens_to_ids(list(VISION_TOKENS))) <= banned
    asked = [request(contents["text"], sibling=i, seed=i) for i in range(64)]
    sampled = [set(t.response_ids.tolist()) for t in reasoner.generate(asked, pictures)]
    # A random model of this size would sample one of them hundreds of times.
    assert not banned & set().union(*sampled)


def test_a_cut_trace_is_kept_and_marked(reasoner, contents, pictures) -> None:
    asked = [request(contents["text"], sibling=i, seed=i) for i in range(16)]
    traces = reasoner.generate(asked, pictures)
    cut = [trace for trace in traces if trace.finish == "length"]
    assert cut
    assert all(len(trace.response_ids) == 24 for trace in cut)


def test_many_prompts_at_once_do_not_kill_the_engine(reasoner, encoder, contents, pictures) -> None:
    # More prompt tokens than vLLM takes in one step by default: see _unsplit_prompts.
    names = ("image", "images", "frames")
    asked = [request(contents[n], pair_id=n, sibling=i, seed=i) for i in range(64) for n in names]
    assert sum(len(encoder.encode(r.content, pictures).expanded) for r in asked) > 4096
    results = _by_key(reasoner.generate(asked, pictures))
    assert all(isinstance(results[str(r.key)], Trajectory) for r in asked)


def test_the_same_key_may_be_asked_for_twice_at_a_time(reasoner, contents, pictures) -> None:
    asked = [request(contents["text"], seed=0)] * 2
    one, other = reasoner.generate(asked, pictures)
    assert one.response_ids.tolist() == other.response_ids.tolist()


def test_the_engine_says_how_long_ago_it_advanced(reasoner, contents, pictures) -> None:
    before, began = reasoner.seconds_since_step(), time.monotonic()
    reasoner.generate([request(contents["text"], seed=0)], pictures)
    after = reasoner.seconds_since_step()
    assert 0 <= after < before + time.monotonic() - began


def test_a_request_that_fails_is_dropped_alone(reasoner, contents, pictures) -> None:
    lost = (Picture("nowhere", Kind.IMAGE), "red")
    long = (" red" * 600,)
    asked = [request(c, pair_id=n) for n, c in (("good", contents["text"]), ("lost", lost))]
    asked.append(request(long, pair_id="long"))
    results = _by_key(reasoner.generate(asked, pictures))
    assert isinstance(results["g=1/p=good/query/0"], Trajectory)
    for name, detail in (("lost", "nowhere"), ("long", "512")):
        dropped = results[f"g=1/p={name}/query/0"]
        assert isinstance(dropped, DroppedTrajectory)
        assert dropped.reason == "generation_failed"
        assert detail in dropped.detail


def test_a_prompt_that_vllm_expands_otherwise_is_refused(encoder, contents, pictures) -> None:
    set_engine_environment(ENGINE)
    from rollout.vllm_engine import check_prompt

    prompt = encoder.encode(contents["image"], pictures)
    check_prompt("k", prompt, prompt.expanded)
    doubled = replace(prompt, expanded=[*prompt.expanded, encoder.image_token_id])
    with pytest.raises(DataError, match=r"k: .*learner's prompt of"):
        check_prompt("k", doubled, prompt.expanded)
