"""What a plan needs, against sums by hand."""

import json
from dataclasses import replace

import numpy as np
import pytest
from safetensors.numpy import save_file

from cluster.memory_plan import GIB, checkpoint_bytes, engine_bytes, plan_lines, rank_bytes
from configs.common import EngineConfig, MediaConfig
from configs.learner import LearnerConfig, LoRAConfig
from configs.reward import RewardConfig
from configs.schema import RLConfig, WarmStartConfig
from data.errors import DataError
from data.model.model_size import ModelSize, model_size

SIZE = ModelSize(parameters=1000, hidden=10, layers=3, key_width=4)
LEARNER = LearnerConfig(ranks=4, micro_batch_tokens=7, gradient_checkpointing=True)
ACTIVATIONS = 7 * 10 * 3 * 2


@pytest.mark.parametrize(
    ("stage", "weights", "gradients", "optimiser"),
    [(0, 2000, 2000, 12000), (1, 2000, 2000, 3000), (2, 2000, 500, 3000), (3, 500, 500, 3000)],
)
def test_each_zero_stage_shards_one_thing_more(stage, weights, gradients, optimiser):
    assert rank_bytes(replace(LEARNER, zero_stage=stage), SIZE, reference=True) == {
        "weights": weights,
        "gradients": gradients,
        "optimiser": optimiser,
        "reference": 2000,
        "activations": ACTIVATIONS,
    }


def test_float32_has_no_second_copy_and_adapters_next_to_no_state():
    parts = rank_bytes(replace(LEARNER, bf16=False, zero_stage=0), SIZE)
    assert (parts["weights"], parts["optimiser"], parts["reference"]) == (4000, 8000, 0)
    adapted = replace(LEARNER, lora=LoRAConfig(rank=8), gradient_checkpointing=False)
    parts = rank_bytes(adapted, SIZE, reference=True)
    assert parts["gradients"] == parts["optimiser"] == parts["reference"] == 0
    assert parts["activations"] == 17 * ACTIVATIONS
    assert checkpoint_bytes(adapted, SIZE) == 2000
    assert checkpoint_bytes(LEARNER, SIZE) == 14000


def test_what_is_offloaded_is_on_no_gpu():
    parts = rank_bytes(replace(LEARNER, zero_stage=3, offload="parameters"), SIZE)
    assert (parts["weights"], parts["gradients"], parts["optimiser"]) == (0, 500, 0)


def test_an_engine_shares_weights_and_keys_among_its_gpus():
    engine = EngineConfig(max_model_len=5, tensor_parallel=2)
    assert engine_bytes(engine, SIZE) == (1000, 5 * 3 * 2 * 4)


@pytest.fixture
def folder(tmp_path):
    text = {"hidden_size": 8, "num_hidden_layers": 2, "num_attention_heads": 4}
    text["num_key_value_heads"] = 2
    (tmp_path / "config.json").write_text(json.dumps({"text_config": text}))
    for name, shape in (("a", (3, 4)), ("b", (5,))):
        save_file({name: np.zeros(shape, np.float16)}, tmp_path / f"{name}.safetensors")
    return tmp_path


def test_a_models_size_is_read_from_the_heads_of_its_files(folder):
    assert model_size(str(folder)) == ModelSize(parameters=17, hidden=8, layers=2, key_width=4)


def test_a_folder_whose_size_cannot_be_read_is_refused(folder, tmp_path):
    (folder / "b.safetensors").write_bytes(b"\xff" * 20)
    with pytest.raises(DataError, match=r"b\.safetensors"):
        model_size(str(folder))
    with pytest.raises(DataError, match="expected a model's weights"):
        model_size(str(tmp_path / "nowhere"))


def test_a_plan_says_what_ranks_engines_store_and_disk_need(folder):
    media = MediaConfig(max_step_bytes=3 * GIB)
    config = RLConfig(reasoner=str(folder), reward=RewardConfig(model="nowhere"))
    config = replace(config, data=replace(config.data, media=media))
    lines = list(plan_lines(config))
    heads = [line.partition(":")[0] for line in lines]
    assert heads == ["learner rank", "checkpoints", "rollout engine", "object store"]
    assert "and 3 GiB for pictures" in lines[-1]
    assert [*plan_lines(WarmStartConfig(model="nowhere"))] == []
