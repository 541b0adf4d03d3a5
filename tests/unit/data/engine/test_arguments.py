"""What vLLM is asked for: poolings by its names, pictures only where the model sees them."""

from typing import get_args

import pytest

from configs.common import EngineConfig, RolloutConfig
from configs.errors import ConfigError
from configs.reward import Pooling
from data.engine.arguments import OURS, check_engines, engine_arguments, pooling_type


@pytest.mark.parametrize(
    ("pooling", "theirs"),
    [("emb_token", "LAST"), ("last", "LAST"), ("cls", "CLS"), ("mean", "MEAN")],
)
def test_poolings_have_vllms_names(pooling, theirs):
    assert pooling in get_args(Pooling)
    assert pooling_type(pooling) == theirs


def test_an_engine_runs_no_code_of_the_model_folder():
    assert engine_arguments("m", EngineConfig(), max_pictures=0)["trust_remote_code"] is False


def test_a_text_only_engine_is_told_nothing_of_pictures():
    seeing = engine_arguments("m", EngineConfig(), max_pictures=3)
    blind = engine_arguments("m", EngineConfig(), max_pictures=0)
    assert seeing["limit_mm_per_prompt"] == {"image": 3, "video": 0}
    assert set(seeing) - set(blind) == {"limit_mm_per_prompt", "mm_processor_cache_gb"}
    assert {name: seeing[name] for name in blind} == blind


def test_an_engine_of_videos_leaves_frames_and_sizes_as_they_are():
    arguments = engine_arguments("m", EngineConfig(), max_pictures=3, videos=True)
    assert arguments["limit_mm_per_prompt"] == {"image": 3, "video": 1}
    kept = arguments["mm_processor_kwargs"]["videos_kwargs"]
    assert kept == dict.fromkeys(("do_resize", "do_sample_frames", "cap_pixels_per_frame"), False)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("kv_cache_dtyp", "vLLM has no such argument; the nearest name is 'kv_cache_dtype'"),
        ("dtype", "set rollout.engine.dtype instead"),
        ("tensor_parallel_size", "set rollout.engine.tensor_parallel instead"),
        ("trust_remote_code", "expected what Embed-RL does not set itself; remove it"),
    ],
)
def test_arguments_that_vllm_lacks_or_we_set_are_refused(name, words):
    with pytest.raises(ConfigError) as caught:
        check_engines({"rollout": RolloutConfig(engine=EngineConfig(extra={name: 1}))})
    assert str(caught.value).startswith(f"rollout.engine.extra.{name}: ")
    assert words in str(caught.value)


def test_vllms_own_arguments_reach_it_and_never_in_the_place_of_ours():
    check_engines({"rollout": RolloutConfig(engine=EngineConfig(extra={"max_logprobs": 3}))})
    extra = {"max_logprobs": 3, "trust_remote_code": True}
    arguments = engine_arguments("m", EngineConfig(extra=extra), max_pictures=0)
    assert arguments["max_logprobs"] == 3
    assert arguments["trust_remote_code"] is False


def test_all_arguments_that_we_set_are_refused_as_extra_ones():
    assert set(engine_arguments("m", EngineConfig(), max_pictures=3, videos=True)) <= set(OURS)
