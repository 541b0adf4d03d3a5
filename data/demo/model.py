"""The demo's tiny Qwen3-VL: a BPE tokenizer trained on its words, a processor, random weights.

The folder is an ordinary Hugging Face folder: transformers and vLLM load it like the real model.
"""

from collections.abc import Iterable
from pathlib import Path

import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    PreTrainedTokenizerFast,
    Qwen2VLImageProcessor,
    Qwen3VLConfig,
    Qwen3VLForConditionalGeneration,
    Qwen3VLProcessor,
    Qwen3VLVideoProcessor,
)

from data.cues import CUE_KEYS
from data.model.chat import EMB_TOKEN, VISION_TOKENS
from data.tcot import TAGS

PAD, TURN_START, TURN_END = "<|endoftext|>", "<|im_start|>", "<|im_end|>"
MAX_VOCABULARY = 600
PATCH, MERGE = 16, 2
IMAGE_PIXELS = (32 * 32, 1024 * 1024)
"""Sizes between these are left as they are: a 32x32 crop is one visual token."""
MAX_POSITIONS = 2048
PLACE_SPREAD = 2.0
"""Standard deviation of the initial position embeddings of picture patches."""

CHAT_TEMPLATE = (
    "{%- for message in messages -%}"
    "{{- '<|im_start|>' + message.role + '\n' -}}"
    "{%- if message.content is string -%}{{- message.content -}}"
    "{%- else -%}{%- for part in message.content -%}"
    "{%- if part.type == 'image' -%}{{- '<|vision_start|><|image_pad|><|vision_end|>' -}}"
    "{%- elif part.type == 'video' -%}{{- '<|vision_start|><|video_pad|><|vision_end|>' -}}"
    "{%- else -%}{{- part.text -}}{%- endif -%}"
    "{%- endfor -%}{%- endif -%}"
    "{{- '<|im_end|>\n' -}}"
    "{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{- '<|im_start|>assistant\n' -}}{%- endif -%}"
)


def write_tiny_model(
    folder: Path, corpus: Iterable[str], *, seed: int, vocabulary: int = MAX_VOCABULARY
) -> None:
    """Write tokenizer, processor and random weights (about 1M parameters) to ``folder``.

    The tokenizer depends on the corpus alone: models of different seeds share their tokens.
    """
    tokenizer = train_tokenizer(corpus, vocabulary=vocabulary)
    processor = build_processor(tokenizer)
    torch.manual_seed(seed)
    model = Qwen3VLForConditionalGeneration(_config(tokenizer))
    # As strong as the patches they are added to: places are learnt three times as fast.
    torch.nn.init.normal_(model.model.visual.pos_embed.weight, std=PLACE_SPREAD)
    model.generation_config.eos_token_id = tokenizer.eos_token_id
    model.generation_config.pad_token_id = tokenizer.pad_token_id
    model.save_pretrained(folder)
    processor.save_pretrained(folder)


def train_tokenizer(
    corpus: Iterable[str], *, vocabulary: int = MAX_VOCABULARY
) -> PreTrainedTokenizerFast:
    """Return a byte-level BPE tokenizer with Qwen's special tokens and the trace grammar's pieces.

    Tags and JSON punctuation are tokens of their own, so that a tiny model spends its few layers
    on what to point at and not on spelling.
    """
    special = [PAD, TURN_START, TURN_END, *VISION_TOKENS, EMB_TOKEN]
    tags = [f"<{slash}{tag}>" for tag in TAGS for slash in ("", "/")]
    opened = [
        f'{{"{key}": [' + ('"' if key == "text_keywords" else "")
        for key in sorted(set(CUE_KEYS.values()))
    ]
    grammar = [*tags, *opened, "]}", '"]}']
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary - len(grammar),
        special_tokens=special,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_without(corpus, grammar), trainer)
    # Not special: they are text, and engines drop special tokens from what they return.
    tokenizer.add_tokens([AddedToken(piece, normalized=False) for piece in grammar])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token=TURN_END,
        pad_token=PAD,
        clean_up_tokenization_spaces=False,
        model_max_length=MAX_POSITIONS,
        extra_special_tokens={"image_token": "<|image_pad|>", "video_token": "<|video_pad|>"},
    )


def build_processor(tokenizer: PreTrainedTokenizerFast) -> Qwen3VLProcessor:
    """Return the processor of the tiny model: Qwen's, with small pictures allowed."""
    least, most = IMAGE_PIXELS
    pixels = {
        "size": {"shortest_edge": least, "longest_edge": most},
        "patch_size": PATCH,
        "merge_size": MERGE,
        "temporal_patch_size": 2,
        "image_mean": [0.5, 0.5, 0.5],
        "image_std": [0.5, 0.5, 0.5],
    }
    return Qwen3VLProcessor(
        image_processor=Qwen2VLImageProcessor(**pixels),
        tokenizer=tokenizer,
        video_processor=Qwen3VLVideoProcessor(**pixels),
        chat_template=CHAT_TEMPLATE,
    )


def _config(tokenizer: PreTrainedTokenizerFast) -> Qwen3VLConfig:
    def token(name: str) -> int:
        return int(tokenizer.convert_tokens_to_ids(name))

    hidden = 128
    # The library's 0.02 suits wide models; at this width nothing is learnt from it for minutes.
    spread = hidden**-0.5
    return Qwen3VLConfig(
        initializer_range=spread,
        text_config={
            "initializer_range": spread,
            "vocab_size": len(tokenizer),
            "hidden_size": hidden,
            "intermediate_size": 2 * hidden,
            "num_hidden_layers": 4,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "head_dim": 32,
            "max_position_embeddings": MAX_POSITIONS,
            "rope_parameters": {
                "rope_type": "default",
                "rope_theta": 10000.0,
                "mrope_section": [8, 4, 4],
                "mrope_interleaved": True,
            },
            "eos_token_id": tokenizer.eos_token_id,
            "pad_token_id": tokenizer.pad_token_id,
            "tie_word_embeddings": True,
        },
        vision_config={
            "initializer_range": spread,
            "depth": 2,
            "hidden_size": 64,
            "intermediate_size": 128,
            "num_heads": 2,
            "patch_size": PATCH,
            "spatial_merge_size": MERGE,
            "temporal_patch_size": 2,
            "out_hidden_size": hidden,
            "num_position_embeddings": 64,
            "deepstack_visual_indexes": [0],
        },
        image_token_id=token("<|image_pad|>"),
        video_token_id=token("<|video_pad|>"),
        vision_start_token_id=token("<|vision_start|>"),
        vision_end_token_id=token("<|vision_end|>"),
        tie_word_embeddings=True,
    )


def _without(corpus: Iterable[str], grammar: list[str]) -> Iterable[str]:
    """Return the texts without the pieces that are tokens already."""
    pieces = sorted(grammar, key=len, reverse=True)
    for text in corpus:
        for piece in pieces:
            text = text.replace(piece, "\n")
        yield text
