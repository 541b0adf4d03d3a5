"""What `make gpu` runs: the shape of the Reasoner, the work of a step, and its operations."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from configs.common import MediaConfig


@dataclass(frozen=True, kw_only=True)
class Size:
    """How large everything is."""

    name: str
    text: Mapping[str, Any] = field(default_factory=dict)
    """Sizes of the language model; empty: those of the tests' tiny model."""
    vision: Mapping[str, Any] = field(default_factory=dict)
    media: MediaConfig
    traces: int
    """Sequences of an RL and of a supervised step."""
    pairs: int
    """Of a contrastive step; every second one has a hard negative."""
    prompt_words: tuple[int, int]
    response_tokens: tuple[int, int]
    picture_side: int
    frame_side: int
    frames: int
    micro_batch_tokens: int
    repeats: int
    matrix: int
    """Side of the square matrices that give the card's rate."""
    copy_bytes: int
    """Of the pinned copy that gives the link's rate."""
    scored: int
    scored_hidden: int
    scored_vocabulary: int
    """Tokens, hidden size and vocabulary of the log-probabilities that are held against plain."""


FULL = Size(
    name="Qwen3-VL-2B",
    text={
        "vocab_size": 151_936,
        "hidden_size": 2048,
        "intermediate_size": 6144,
        "num_hidden_layers": 28,
        "num_attention_heads": 16,
        "num_key_value_heads": 8,
        "head_dim": 128,
        "max_position_embeddings": 32_768,
        "rope_parameters": {
            "rope_type": "default",
            "mrope_section": [24, 20, 20],
            "mrope_interleaved": True,
            "rope_theta": 5_000_000.0,
        },
    },
    vision={
        "depth": 24,
        "hidden_size": 1024,
        "intermediate_size": 4096,
        "num_heads": 16,
        "out_hidden_size": 2048,
        "num_position_embeddings": 2304,
        "deepstack_visual_indexes": [5, 11, 17],
    },
    media=MediaConfig(frame_min_pixels=64 * 32 * 32),
    traces=64,
    pairs=8,
    prompt_words=(40, 160),
    response_tokens=(64, 448),
    picture_side=512,
    frame_side=256,
    frames=8,
    micro_batch_tokens=4096,
    repeats=3,
    matrix=8192,
    copy_bytes=1 << 30,
    scored=4096,
    scored_hidden=2048,
    scored_vocabulary=151_936,
)
TINY = Size(
    name="tiny",
    media=MediaConfig(
        **{
            f"{what}_{end}_pixels": pixels
            for what in ("image", "page", "frame", "crop")
            for end, pixels in (("min", 32 * 32), ("max", 64 * 64))
        }
    ),
    traces=8,
    pairs=4,
    prompt_words=(2, 6),
    response_tokens=(3, 9),
    picture_side=64,
    frame_side=32,
    frames=3,
    micro_batch_tokens=128,
    repeats=1,
    matrix=256,
    copy_bytes=1 << 20,
    scored=64,
    scored_hidden=32,
    scored_vocabulary=1 << 12,
)


@dataclass(frozen=True)
class Sequence:
    """What one sequence makes the model compute."""

    tokens: int
    """All, pictures included."""
    scored: int
    """Tokens that the output layer is applied for."""
    patches: tuple[int, ...]
    """Of each of its pictures, before they are merged."""


def forward_flops(net: nn.Module, sequences: list[Sequence]) -> float:
    """Return the floating-point operations of one forward pass of a Qwen3-VL over the sequences.

    Products count 2 per weight and token; padding, embeddings, norms and rotations count nothing:

        2 P_text tokens + 2 hidden vocabulary scored + 2 layers heads head_dim tokens^2
        + 2 P_blocks patches + 2 P_mergers patches / merge^2 + 4 depth hidden_vision patches^2

    P: parameters of the language model's layers, of the vision tower's blocks with its patch
    projection, and of its mergers (deepstack included). Attention is causal over a sequence, so
    half of the square counts, and full within a picture. Training takes 3 times as much: the
    backward pass is two products for each one. What is computed a second time to save memory does
    not count.
    """
    text, vision = net.config.get_text_config(), net.config.vision_config
    tower = net.base_model.visual
    layers = _weights(net.base_model.language_model.layers)
    blocks = _weights(tower.blocks) + _weights(tower.patch_embed)
    mergers = _weights(tower.merger) + _weights(tower.deepstack_merger_list)
    width = text.num_hidden_layers * text.num_attention_heads * text.head_dim
    total = 0.0
    for one in sequences:
        patches = sum(one.patches)
        total += 2 * layers * one.tokens + 2 * width * one.tokens**2
        total += 2 * text.hidden_size * text.vocab_size * one.scored
        total += 2 * blocks * patches + 2 * mergers * patches / vision.spatial_merge_size**2
        total += 4 * vision.depth * vision.hidden_size * sum(n**2 for n in one.patches)
    return total


def _weights(module: nn.Module) -> int:
    """Return the parameters that products are made with: no norms, no biases."""
    return sum(param.numel() for param in module.parameters() if param.dim() > 1)
