"""Engines that pull their weights: only parameters wait for them."""

import torch
from safetensors.torch import save_file
from torch import nn
from vllm.config import ModelConfig
from vllm.config.load import LoadConfig
from vllm.model_executor.model_loader import get_model_loader

from rollout.weights.no_load import LOAD_FORMAT, folder_buffers


def make_model() -> nn.Module:
    """Return a model with a buffer that its construction sets, and one that training moves."""
    model = nn.ModuleDict({"tower": nn.Linear(2, 2), "norm": nn.BatchNorm1d(2)})
    model["tower"].register_buffer("mean", torch.full((2,), 7.0))
    return model


def test_parameters_get_small_random_values_and_buffers_keep_theirs() -> None:
    model = make_model()
    config = ModelConfig.__new__(ModelConfig)  # not read
    get_model_loader(LoadConfig(load_format=LOAD_FORMAT)).load_weights(model, config)
    assert all(0 < one.abs().max() <= 1e-3 for one in model.parameters())
    assert model["tower"].mean.tolist() == [7.0, 7.0]


def test_buffers_that_the_folder_sets_are_named(tmp_path) -> None:
    model = make_model()
    named = {f"model.{name}": one.detach() for name, one in model.named_parameters()}
    save_file(named, tmp_path / "a.safetensors")
    assert folder_buffers(model, str(tmp_path)) == []
    save_file({"model.norm.running_mean": torch.zeros(2)}, tmp_path / "b.safetensors")
    assert folder_buffers(model, str(tmp_path)) == ["norm.running_mean"]
