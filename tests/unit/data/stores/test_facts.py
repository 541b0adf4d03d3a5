"""The facts of a store change with everything that changes what a model makes."""

from dataclasses import replace
from pathlib import Path

import pytest

from configs.common import EngineConfig, MediaConfig, RolloutConfig, SamplingConfig
from configs.reward import RewardConfig
from configs.schema import RivalConfig
from data.errors import DataError
from data.stores.facts import embedder_facts, reasoner_recipe, rival_facts
from data.types import Side


@pytest.fixture
def model(tmp_path) -> str:
    (tmp_path / "model.safetensors").write_bytes(b"weights")
    return str(tmp_path)


def test_vectors_follow_from_files_pixels_and_recipe_and_from_no_other_setting(model) -> None:
    reward, media = RewardConfig(model=model), MediaConfig()
    facts = embedder_facts(reward, media)
    others = [
        embedder_facts(replace(reward, pooling="last"), media),
        embedder_facts(replace(reward, pooling="last", instruction="Represent."), media),
        embedder_facts(replace(reward, engine=EngineConfig(dtype="float32")), media),
        embedder_facts(reward, replace(media, crop_max_pixels=media.crop_max_pixels + 1)),
        embedder_facts(reward, replace(media, video="frames")),
        embedder_facts(replace(reward, engine=EngineConfig(extra={"quantization": "fp8"})), media),
    ]
    assert all(facts != other for other in others)
    assert facts == embedder_facts(replace(reward, temperature=1.0), replace(media, max_frames=9))


def test_other_weights_are_another_model(model, tmp_path) -> None:
    facts = embedder_facts(RewardConfig(model=model), MediaConfig())
    (tmp_path / "model.safetensors").write_bytes(b"weightz")
    assert embedder_facts(RewardConfig(model=model), MediaConfig()) != facts


def test_a_folder_without_files_is_no_model(tmp_path) -> None:
    with pytest.raises(DataError, match="expected a model folder, found no files"):
        embedder_facts(RewardConfig(model=str(tmp_path)), MediaConfig())


def test_vectors_of_a_rival_follow_from_its_side_its_prompts_and_all_its_files(model):
    (Path(model) / "1_Pooling").mkdir()
    (Path(model) / "1_Pooling/config.json").write_text("{}")
    rival, media = RivalConfig(name="a", model=model), MediaConfig()

    def facts(rival=rival, side=Side.QUERY, library="6.2"):
        return rival_facts(rival, media, side, library=library)

    first = facts()
    assert first == facts(replace(rival, name="b"))
    others = [
        facts(side=Side.TARGET),
        facts(library="6.3"),
        facts(replace(rival, prompts={"query": "q: "})),
        facts(replace(rival, engine=EngineConfig(dtype="float32"))),
        embedder_facts(RewardConfig(model=model), media),
    ]
    assert all(first != other for other in others)
    (Path(model) / "1_Pooling/config.json").write_text("{ }")
    assert facts() != first


def test_traces_follow_from_the_tokens_that_may_be_sampled(model) -> None:
    def recipe(seed: int | None, dtype: str = "float32", **sampling: object) -> dict:
        rollout = RolloutConfig(
            engine=EngineConfig(dtype=dtype), sampling=SamplingConfig(**sampling)
        )
        return reasoner_recipe(model, rollout, MediaConfig(), templates="full", seed=seed).more

    # The names of stores that exist stay as they are.
    assert set(recipe(0)) == {"pixels", "max_tokens", "dtype", "max_model_len"}
    assert recipe(0, dtype="bfloat16") == recipe(0) | {"dtype": "bfloat16", "head": "float32"}
    for setting in ({"top_p": 0.9}, {"top_k": 5}, {"min_p": 0.1}):
        assert recipe(0, **setting) == recipe(0) | setting
        assert recipe(None, **setting) == recipe(None)  # greedy
    assert recipe(None, stop=["x"]) == recipe(None) | {"stop": ["x"]}
