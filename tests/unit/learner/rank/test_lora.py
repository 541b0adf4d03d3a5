"""Adapters: which layers get them, what they train, and the weights that leave the learner."""

import copy

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM, Qwen3VLForConditionalGeneration

from configs.learner import LoRAConfig
from data.errors import ConfigError
from learner.rank.lora import StoredWeight, adapters_off, add_adapters, stored_weights
from tests.tiny_model import write_tiny_model

IDS = torch.tensor([[1, 5, 9, 3, 7]])


@pytest.fixture(scope="module")
def seeing(tmp_path_factory):
    folder = write_tiny_model(tmp_path_factory.mktemp("tiny"))
    return Qwen3VLForConditionalGeneration.from_pretrained(folder)


@pytest.fixture
def llama():
    config = LlamaConfig(
        vocab_size=32,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=4,
        attention_bias=True,
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return LlamaForCausalLM(config).eval()


def train_a_little(net):
    """Move every adapter away from its start."""
    torch.manual_seed(1)
    for param in net.parameters():
        if param.requires_grad:
            param.data.normal_(std=0.3)


def merged(net):
    return {weight.name: weight.merged() for weight in stored_weights(net)}


def adapted(net):
    return {weight.name for weight in stored_weights(net) if len(weight.parts) == 3}


def test_a_merged_weight_by_hand():
    weight = nn.Parameter(torch.tensor([[1.0, 2.0], [3.0, 4.0]]))
    down, up = nn.Parameter(torch.tensor([[1.0, -1.0]])), nn.Parameter(torch.tensor([[2.0], [0.5]]))
    stored = StoredWeight("w", (weight, down, up), scale=0.5)
    assert stored.merged().tolist() == [[2.0, 1.0], [3.25, 3.75]]
    assert weight.tolist() == [[1.0, 2.0], [3.0, 4.0]]


def test_a_weight_without_adapter_is_itself():
    weight = nn.Parameter(torch.ones(3, dtype=torch.bfloat16))
    assert StoredWeight("w", (weight,)).merged().data_ptr() == weight.data_ptr()


@given(seed=st.integers(0, 1000), scale=st.floats(0.1, 4), dtype=st.sampled_from(["bf16", "fp32"]))
def test_merging_rounds_once_and_changes_no_part(seed, scale, dtype):
    kind = {"bf16": torch.bfloat16, "fp32": torch.float32}[dtype]
    torch.manual_seed(seed)
    parts = tuple(nn.Parameter(torch.randn(*shape).to(kind)) for shape in ((4, 3), (2, 3), (4, 2)))
    before = [part.detach().clone() for part in parts]
    found = StoredWeight("w", parts, scale=scale).merged()
    weight, down, up = (part.detach().double() for part in parts)
    exact = weight + scale * up @ down
    half_step = torch.finfo(kind).eps / 2
    assert found.dtype == kind
    assert torch.all((found.double() - exact).abs() <= 1.01 * half_step * exact.abs() + 1e-5)
    assert all(torch.equal(part, old) for part, old in zip(parts, before, strict=True))


def test_merged_weights_have_the_checkpoints_names_and_give_the_same_logits(llama):
    plain = copy.deepcopy(llama)
    add_adapters(llama, LoRAConfig(rank=2, alpha=8))
    train_a_little(llama)
    first, second = merged(llama), merged(llama)
    assert list(first) == [name for name, _ in plain.named_parameters()]
    assert all(torch.equal(first[name], second[name]) for name in first)
    with torch.no_grad():
        expected = llama(IDS).logits
        assert (expected - plain(IDS).logits).abs().max() > 0.1
        plain.load_state_dict(first, strict=False)
        torch.testing.assert_close(plain(IDS).logits, expected, atol=1e-5, rtol=1e-5)


def test_without_its_adapters_the_model_is_the_initial_one(llama):
    with torch.no_grad():
        initial = llama(IDS).logits
        add_adapters(llama, LoRAConfig(rank=2))
        assert torch.equal(llama(IDS).logits, initial)
        train_a_little(llama)
        trained = llama(IDS).logits
        with adapters_off(llama):
            assert torch.equal(llama(IDS).logits, initial)
        assert torch.equal(llama(IDS).logits, trained)
    assert not torch.equal(trained, initial)


def test_only_adapters_train(llama):
    add_adapters(llama, LoRAConfig(rank=2, modules=["*.q_proj", "model.layers.1.mlp.*"]))
    trained = {name for name, param in llama.named_parameters() if param.requires_grad}
    assert trained
    assert all(".lora_" in name for name in trained)
    assert adapted(llama) == {
        "model.layers.0.self_attn.q_proj.weight",
        "model.layers.1.self_attn.q_proj.weight",
        *(f"model.layers.1.mlp.{name}_proj.weight" for name in ("gate", "up", "down")),
    }


def test_every_layer_but_the_output_can_have_an_adapter(llama):
    add_adapters(llama, LoRAConfig(rank=2, modules=["*"]))
    assert len(adapted(llama)) == 14
    assert "lm_head.weight" not in adapted(llama)


@pytest.mark.parametrize(
    ("vision", "inside"), [([], set()), (["*.qkv"], {"attn.qkv"}), (["*merger*"], {"merger"})]
)
def test_the_vision_tower_is_adapted_only_by_its_own_patterns(seeing, vision, inside):
    net = copy.deepcopy(seeing)
    add_adapters(net, LoRAConfig(rank=2, modules=["*"], vision_modules=vision))
    found = {name for name in adapted(net) if "visual." in name}
    assert all(any(part in name for part in inside) for name in found)
    assert bool(found) == bool(inside)
    assert len(adapted(net) - found) == 28


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        (
            {"modules": ["*_proj", "*.qkv"]},
            r"lora\.modules.*found '\*\.qkv'.*model\.layers\.\*\.mlp\.down_proj",
        ),
        ({"vision_modules": ["*"]}, r"lora\.vision_modules.*matches none of \(no such layer\)"),
    ],
)
def test_a_pattern_that_names_no_layer_is_refused(llama, settings, words):
    with pytest.raises(ConfigError, match=words):
        add_adapters(llama, LoRAConfig(rank=2, **settings))
