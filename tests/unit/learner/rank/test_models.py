"""Models from folders: what cannot be trained is refused, and text-only ones train as they are."""

import numpy as np
import pytest
import torch
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    Gemma2Config,
    Gemma2ForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
)

from configs.learner import LearnerConfig
from data.errors import ConfigError, DataError
from data.model.model_folder import check_folder, load_processor
from data.types import Kind, Picture, Video
from learner.rank.batching import Patches, Row, TextTokens, collate
from learner.rank.contrastive import Temperature
from learner.rank.models import (
    EmbeddingHead,
    TokenHead,
    choose_attention,
    drop_nothing,
    freeze_vision,
    load_model,
    model_tokens,
    with_positions,
)
from tests.tiny_model import write_tiny_model

SMALL = {
    "vocab_size": 32,
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 4,
    "tie_word_embeddings": True,
}
FLOAT32 = LearnerConfig(bf16=False)


@pytest.fixture
def text_folder(tmp_path):
    """Write a small random model of that configuration, without picture processor."""

    def write(net):
        net.save_pretrained(tmp_path)
        (tmp_path / "tokenizer_config.json").touch()
        return str(tmp_path)

    return write


@pytest.fixture
def llama(text_folder):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return text_folder(LlamaForCausalLM(LlamaConfig(**SMALL)))


class NoPadding:
    """A tokenizer as Llama 3's."""

    pad_token_id = None


def test_a_text_only_model_is_scored_like_its_own_forward_pass(llama):
    net = load_model(llama, FLOAT32).eval()
    assert isinstance(net, LlamaForCausalLM)
    tokens = model_tokens(net, NoPadding())
    assert tokens == TextTokens(pad=0)
    rows = [
        Row(key="x", ids=np.array([1, 5, 9, 3, 7]), pictures=(), num_response=3),
        Row(key="y", ids=np.array([2, 4, 6]), pictures=(), num_response=1),
    ]
    with torch.no_grad():
        expected = []
        for row in rows:
            scores = net(torch.from_numpy(row.ids)[None]).logits[0].log_softmax(-1)
            first = len(row.ids) - row.num_response
            expected += [scores[i - 1, row.ids[i]] for i in range(first, len(row.ids))]
        logprobs_T, _, _ = TokenHead(net)(collate(rows, {}, tokens))
    torch.testing.assert_close(logprobs_T, torch.stack(expected), atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize(
    ("settings", "chosen"),
    [
        ({"bf16": False, "gpus": 1}, "sdpa"),  # flash attention has no float32
        ({"bf16": True, "gpus": 0}, "sdpa"),
        ({"attention": "eager"}, "eager"),
        ({"attention": "flash_attention_2"}, "flash_attention_2"),
    ],
)
def test_attention_is_what_is_asked_for_or_works_everywhere(settings, chosen):
    assert choose_attention(LearnerConfig(**settings)) == chosen


@pytest.fixture(scope="module")
def qwen(tmp_path_factory):
    return write_tiny_model(tmp_path_factory.mktemp("qwen"))


def test_a_picture_that_rows_share_counts_as_if_each_had_its_own(qwen):
    """Against the model's own forward pass, row by row: vectors and gradients."""
    net = load_model(str(qwen), LearnerConfig(bf16=False, attention="eager"))
    tokens = model_tokens(net, load_processor(str(qwen)).tokenizer)
    wide, small = Picture("a", Kind.IMAGE), Picture("b", Kind.VIDEO)
    torch.manual_seed(0)
    grids = {wide: (1, 4, 8), small: (1, 2, 2)}
    patches = {
        picture: Patches(torch.randn(int(np.prod(grid)), tokens.channels), grid)
        for picture, grid in grids.items()
    }

    def row(key, *shown):
        ids = [20, 21]
        for picture in shown:
            count = int(np.prod(grids[picture])) // tokens.merge**2
            ids += [tokens.start, *[tokens.image] * count, tokens.end]
        return Row(key=key, ids=np.array([*ids, 30, 31, 32]), pictures=shown, num_response=2)

    def gradients():
        found = {name: p.grad.clone() for name, p in net.named_parameters() if p.grad is not None}
        net.zero_grad()
        return found

    rows = [row("w"), row("x", wide), row("y", small, wide, small), row("z", wide)]
    head = EmbeddingHead(net, Temperature(0.02, learned=False))
    together, _ = head(collate(rows, patches, tokens))
    (together * torch.arange(4)[:, None]).sum().backward()
    shared = gradients()
    alone = []
    for one in rows:
        ids = torch.from_numpy(one.ids)[None]
        inputs = {"input_ids": ids, "mm_token_type_ids": (ids == tokens.image).long()}
        if one.pictures:
            inputs["pixel_values"] = torch.cat([patches[p].values for p in one.pictures])
            inputs["image_grid_thw"] = torch.tensor([grids[p] for p in one.pictures])
        hidden = net.model(**inputs, use_cache=False).last_hidden_state[0, -1]
        alone.append(torch.nn.functional.normalize(hidden, dim=0))
    (torch.stack(alone) * torch.arange(4)[:, None]).sum().backward()
    torch.testing.assert_close(together, torch.stack(alone), atol=1e-5, rtol=1e-4)
    expected = gradients()
    assert shared.keys() == expected.keys()
    for name, gradient in expected.items():
        torch.testing.assert_close(shared[name], gradient, atol=2e-5, rtol=1e-3)


def test_videos_beside_pictures_count_as_in_the_models_own_forward_pass(qwen):
    """Against it, row by row without padding: vectors."""
    net = load_model(str(qwen), LearnerConfig(bf16=False, attention="eager")).eval()
    tokens = model_tokens(net, load_processor(str(qwen)).tokenizer)
    torch.manual_seed(0)
    image, frame = Picture("a", Kind.IMAGE), Picture("b", Kind.VIDEO)
    long, short = Video((frame,) * 6, (0.0,) * 6), Video((frame,) * 2, (1.0, 2.0))
    grids = {image: (1, 4, 8), frame: (1, 2, 2), long: (3, 2, 4), short: (1, 4, 4)}
    patches = {
        visual: Patches(torch.randn(int(np.prod(grid)), tokens.channels), grid)
        for visual, grid in grids.items()
    }

    def row(key, *shown):
        ids = [20, 21]
        for visual in shown:
            token = tokens.video if isinstance(visual, Video) else tokens.image
            groups, high, wide = grids[visual]
            count = high * wide // tokens.merge**2
            for group in range(groups):
                ids += [22 + group, tokens.start, *[token] * count, tokens.end]
        return Row(key=key, ids=np.array([*ids, 30, 31, 32]), pictures=shown, num_response=2)

    rows = [row("v", long), row("w", image, short, frame), row("x"), row("y", short, long, image)]
    head = EmbeddingHead(net, Temperature(0.02, learned=False))
    with torch.no_grad():
        together, _ = head(with_positions(net, collate(rows, patches, tokens)))
        only_videos, _ = head(collate(rows[:1], patches, tokens))
        alone = []
        for one in rows:
            ids = torch.from_numpy(one.ids)[None]
            kinds = (ids == tokens.image).long() + 2 * (ids == tokens.video)
            inputs = {"input_ids": ids, "mm_token_type_ids": kinds}
            for kind, values, grid in (
                (Picture, "pixel_values", "image_grid_thw"),
                (Video, "pixel_values_videos", "video_grid_thw"),
            ):
                if shown := [visual for visual in one.pictures if isinstance(visual, kind)]:
                    inputs[values] = torch.cat([patches[visual].values for visual in shown])
                    inputs[grid] = torch.tensor([grids[visual] for visual in shown])
            hidden = net.model(**inputs, use_cache=False).last_hidden_state[0, -1]
            alone.append(torch.nn.functional.normalize(hidden, dim=0))
    torch.testing.assert_close(together, torch.stack(alone), atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(only_videos[0], alone[0], atol=1e-5, rtol=1e-4)


def test_a_text_only_model_has_no_vision_tower_to_freeze(llama):
    with pytest.raises(ConfigError, match=r"learner\.freeze_vision.*set it to false"):
        load_model(llama, LearnerConfig(bf16=False, freeze_vision=True))


def test_a_model_that_caps_its_logits_is_refused(text_folder):
    folder = text_folder(Gemma2ForCausalLM(Gemma2Config(**SMALL)))
    with pytest.raises(ConfigError, match="sets final_logit_softcapping"):
        load_model(folder, FLOAT32)


def test_a_folder_without_tokenizer_is_refused(tmp_path):
    for name in ("config.json", "processor_config.json", "model.safetensors"):
        (tmp_path / name).touch()
    with pytest.raises(DataError, match=r"missing tokenizer_config.json \(the tokenizer\)"):
        check_folder(str(tmp_path))


def test_everything_missing_is_listed_at_once(tmp_path):
    with pytest.raises(DataError, match=r"config.json.*tokenizer.*processor.*weights"):
        check_folder(str(tmp_path))


def test_a_missing_folder_is_refused(tmp_path):
    with pytest.raises(DataError, match="expected a model folder"):
        check_folder(str(tmp_path / "none"))


def test_freezing_a_vision_tower_that_is_not_there_is_refused():
    net = torch.nn.ModuleDict({"tower": torch.nn.Linear(2, 2), "text": torch.nn.Linear(2, 2)})
    with pytest.raises(ConfigError, match="found text, tower"):
        freeze_vision(net)


def test_freezing_leaves_the_language_model_trainable():
    net = torch.nn.ModuleDict({"visual": torch.nn.Linear(2, 2), "text": torch.nn.Linear(2, 2)})
    freeze_vision(net)
    assert {name: p.requires_grad for name, p in net.named_parameters()} == {
        "visual.weight": False,
        "visual.bias": False,
        "text.weight": True,
        "text.bias": True,
    }


NOISE = {
    "gpt2": {"resid_pdrop": 0.5, "embd_pdrop": 0.5, "attn_pdrop": 0.5},
    "gptj": {"resid_pdrop": 0.5, "attn_pdrop": 0.5, "rotary_dim": 4},
    "opt": {"dropout": 0.5, "attention_dropout": 0.5, "layerdrop": 0.5, "ffn_dim": 32},
    "bloom": {"hidden_dropout": 0.5, "attention_dropout": 0.5},
    "falcon": {"hidden_dropout": 0.5, "attention_dropout": 0.5},
    "gpt_neox": {"hidden_dropout": 0.5, "attention_dropout": 0.5, "intermediate_size": 32},
    "llama": {"attention_dropout": 0.5},
    "mixtral": {"attention_dropout": 0.5, "router_jitter_noise": 0.5, "intermediate_size": 32},
}
"""Settings by model type, of dropout and its like."""


def noisy(kind):
    hidden = {"hidden_size": 16, "num_hidden_layers": 2, "max_position_embeddings": 32}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 2}
    names_of_gpt2 = {"n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 32}
    config = AutoConfig.for_model(
        kind, vocab_size=32, **hidden, **heads, **names_of_gpt2, **NOISE[kind]
    )
    return AutoModelForCausalLM.from_config(config, attn_implementation="eager")


def passes(net):
    """Return the hidden states of two passes in training and of one in use."""
    ids = torch.arange(1, 25).view(2, 12)
    torch.manual_seed(0)
    with torch.no_grad():
        found = [
            net.train(training).base_model(input_ids=ids).last_hidden_state
            for training in (True, True, False)
        ]
    return found


@pytest.mark.parametrize("kind", NOISE)
def test_a_models_own_dropout_and_jitter_can_be_taken_away(kind):
    net = noisy(kind)
    before = net.config.to_dict()
    first, second, used = passes(net)
    assert not torch.equal(first, second)
    drop_nothing(net)
    first, second, still_used = passes(net)
    assert torch.equal(first, second)
    assert torch.equal(first, used)
    assert torch.equal(still_used, used)
    assert net.config.to_dict() == before


def test_dropout_of_a_part_of_the_model_is_taken_away_too(qwen):
    config = AutoConfig.from_pretrained(qwen)
    config.text_config.attention_dropout = 0.5
    net = AutoModelForImageTextToText.from_config(config, attn_implementation="eager")
    first, second, used = passes(net)
    assert not torch.equal(first, second)
    drop_nothing(net)
    first, second, _ = passes(net)
    assert torch.equal(first, second)
    assert torch.equal(first, used)
    assert net.config.text_config.attention_dropout == 0.5
