"""The real rollout actor against plain transformers, on a tiny model with its folder's weights."""

import time
from dataclasses import replace

import numpy as np
import pytest
import ray
import torch

from cluster.pools.rollout import RolloutPool
from configs.common import PoolConfig, RolloutConfig
from data.engine.arguments import engine_arguments, set_engine_environment
from data.errors import DataError
from data.model.chat import VISION_TOKENS
from data.types import Content, DroppedTrajectory, Kind, Picture, Trajectory, visuals_in
from learner.rank.batching import process_pictures
from rollout.weights.report import StoreAddress
from tests.integration.conftest import ENGINE, MEDIA, SAMPLING
from tests.integration.reference import logprobs, request


def _by_key(results: list) -> dict:
    return {str(result.key): result for result in results}


@pytest.mark.parametrize("name", ["text", "image", "images", "frames", "video"])
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


def test_logits_of_a_bf16_engine_are_float32(tiny_folder) -> None:
    engine = replace(ENGINE, dtype="bfloat16")
    set_engine_environment(engine)
    from rollout.vllm_engine import VLLMEngine

    model = VLLMEngine(str(tiny_folder), engine, SAMPLING, MEDIA)._arguments.create_model_config()
    assert (model.dtype, model.head_dtype) == (torch.bfloat16, torch.float32)


@pytest.mark.parametrize(
    ("extra", "pulls", "loads"),
    [({}, True, "pulled"), ({}, False, "auto"), ({"load_format": "auto"}, True, "auto")],
)
def test_an_engine_whose_weights_come_by_a_pull_reads_no_others(
    tiny_folder, extra, pulls, loads
) -> None:
    set_engine_environment(ENGINE)
    from rollout.vllm_engine import VLLMEngine

    store = StoreAddress(ray_address="", namespace="", actor_name="") if pulls else None
    made = VLLMEngine(str(tiny_folder), replace(ENGINE, extra=extra), SAMPLING, MEDIA, store=store)
    assert made._arguments.load_format == loads


@pytest.mark.extended
def test_one_token_is_left_to_sample_from_whatever_the_seed(
    local_ray, tiny_folder, contents, pictures
) -> None:
    pool = PoolConfig(actors=1, cpus=0.0)
    sampling = replace(SAMPLING, top_k=1, stop=["e"])
    config = RolloutConfig(pool=pool, engine=ENGINE, sampling=sampling)
    reasoners = RolloutPool(str(tiny_folder), config, MEDIA, role="stops")
    reasoners.ready()
    asked = [request(contents["text"], sibling=i, seed=i) for i in range(3)]
    [actor] = reasoners.actors.values()
    traces = ray.get(actor.generate.remote(asked, pictures))
    reasoners.close()
    assert len({trace.text for trace in traces}) == 1
    assert all(np.abs(trace.logprobs).max() == 0 for trace in traces)


def test_vllm_reads_the_pixels_that_the_learner_trains_on(
    tiny_folder, encoder, contents, pictures
) -> None:
    set_engine_environment(ENGINE)
    from vllm import AsyncEngineArgs
    from vllm.multimodal import MULTIMODAL_REGISTRY
    from vllm.multimodal.processing import ProcessorInputs
    from vllm.multimodal.processing.context import TimingContext

    arguments = engine_arguments(str(tiny_folder), ENGINE, max_pictures=4, videos=True)
    model = AsyncEngineArgs(**arguments).create_model_config()
    processor = MULTIMODAL_REGISTRY.create_processor(model)

    def read(content: Content) -> dict:
        prompt = encoder.encode(content, pictures)
        media = processor.info.parse_mm_data(prompt.multi_modal_data())
        inputs = ProcessorInputs(prompt=prompt.ids, mm_data_items=media)
        made = processor.apply(inputs, TimingContext(enabled=False))
        assert made["prompt_token_ids"] == prompt.expanded
        return made

    visuals = visuals_in(contents["video"])
    patches = process_pictures(visuals, pictures, encoder)
    made = read(contents["video"])
    theirs = made["mm_kwargs"].get_data()
    for visual, name, grid in zip(
        visuals,
        ("pixel_values_videos", "pixel_values"),
        ("video_grid_thw", "image_grid_thw"),
        strict=True,
    ):
        assert theirs[grid].tolist() == [list(patches[visual].grid)]
        # vLLM hands on 8 bit, and normalises in the model.
        values = theirs[name].float() / 127.5 - 1
        assert torch.allclose(values, patches[visual].values, atol=1e-6)
    later = replace(visuals[0], times=(0.0, 0.48, 2.0, 99.0))
    other = read(("red", later, "green"))["mm_hashes"]["video"]
    assert other != made["mm_hashes"]["video"]  # equal frames at other times are another video


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
    names = ("image", "images", "frames", "video")
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
