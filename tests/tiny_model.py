"""A random Qwen3-VL folder, tiny (about 1M parameters) unless sizes are given, for real engines."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    BertConfig,
    BertModel,
    PreTrainedTokenizerFast,
    Qwen2VLImageProcessor,
    Qwen3VLConfig,
    Qwen3VLForConditionalGeneration,
    Qwen3VLProcessor,
    Qwen3VLVideoProcessor,
)

SPECIAL = (
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|image_pad|>",
    "<|video_pad|>",
    "<emb>",
)
TAGS = ("<thinking>", "</thinking>", "<rethink>", "</rethink>", "<answer>", "</answer>")
CORPUS = (
    '<thinking> star red{"bbox_2d": [500, 250, 750, 500]}</thinking>',
    '<thinking>{"text_keywords": ["red star"]}</thinking><rethink> red star</rethink>',
    "what color is the circle square triangle green blue yellow purple orange 0 1 2 3 4 5 6 7 8 9",
)
CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n"
    "{% if message.content is string %}{{ message.content }}{% else %}"
    "{% for part in message.content %}"
    "{% if part.type == 'image' %}<|vision_start|><|image_pad|><|vision_end|>"
    "{% elif part.type == 'video' %}<|vision_start|><|video_pad|><|vision_end|>"
    "{% else %}{{ part.text }}{% endif %}{% endfor %}{% endif %}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def tiny_processor(special: Sequence[str] = SPECIAL) -> Qwen3VLProcessor:
    """Return the processor of the tiny model."""
    size = {"shortest_edge": 1024, "longest_edge": 16 << 20}
    vision = {"patch_size": 16, "merge_size": 2, "temporal_patch_size": 2, "size": size}
    norm = {"image_mean": [0.5] * 3, "image_std": [0.5] * 3}
    return Qwen3VLProcessor(
        image_processor=Qwen2VLImageProcessor(**vision, **norm),
        tokenizer=_tokenizer(special),
        video_processor=Qwen3VLVideoProcessor(**vision, **norm),
        chat_template=CHAT_TEMPLATE,
    )


def write_tiny_model(path: Path, *, seed: int = 0, tied: bool = True) -> Path:
    """Write the folder that transformers and vLLM load, and return it."""
    return write_model(path, {}, {}, seed=seed, tied=tied)


def write_tiny_sentence_bert(path: Path, *, query: str = "") -> Path:
    """Write a folder of sentence-transformers with a random BERT that reads text, and return it.

    ``query``: its prompt for queries.
    """
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import Pooling, Transformer

    torch.manual_seed(0)
    tokenizer = _tokenizer(SPECIAL)
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2}
    config = BertConfig(vocab_size=len(tokenizer), num_attention_heads=2, **sizes)
    tokenizer.save_pretrained(path / "bert")
    BertModel(config).save_pretrained(path / "bert")
    modules = [Transformer(str(path / "bert")), Pooling(32, pooling_mode="mean")]
    model = SentenceTransformer(
        modules=modules, device="cpu", prompts={"query": query, "document": ""}
    )
    model.save_pretrained(str(path / "model"))
    return path / "model"


def write_model(
    path: Path,
    text: Mapping[str, Any],
    vision: Mapping[str, Any],
    *,
    seed: int = 0,
    tied: bool = True,
    special: Sequence[str] = SPECIAL,
    dtype: torch.dtype = torch.float32,
    device: str = "cpu",
) -> Path:
    """Write a folder whose language model and vision tower have other sizes; made on ``device``."""
    processor = tiny_processor(special)
    tokenizer = processor.tokenizer
    ids = {word: tokenizer.convert_tokens_to_ids(word) for word in special}
    config = Qwen3VLConfig(
        text_config={
            "vocab_size": len(tokenizer),
            "hidden_size": 128,
            "intermediate_size": 256,
            "num_hidden_layers": 4,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "head_dim": 32,
            "max_position_embeddings": 4096,
            "rope_parameters": {
                "rope_type": "default",
                "mrope_section": [8, 4, 4],
                "mrope_interleaved": True,
                "rope_theta": 10000.0,
            },
            "eos_token_id": ids["<|im_end|>"],
            "pad_token_id": ids["<|endoftext|>"],
            "tie_word_embeddings": tied,
            **text,
        },
        vision_config={
            "depth": 2,
            "hidden_size": 64,
            "intermediate_size": 128,
            "num_heads": 2,
            "patch_size": 16,
            "spatial_merge_size": 2,
            "temporal_patch_size": 2,
            "out_hidden_size": 128,
            "num_position_embeddings": 64,
            "deepstack_visual_indexes": [0],
            **vision,
        },
        image_token_id=ids["<|image_pad|>"],
        video_token_id=ids["<|video_pad|>"],
        vision_start_token_id=ids["<|vision_start|>"],
        vision_end_token_id=ids["<|vision_end|>"],
        tie_word_embeddings=tied,
    )
    with torch.random.fork_rng(devices=[]), torch.device(device):
        torch.manual_seed(seed)
        model = Qwen3VLForConditionalGeneration(config).to(dtype)
    model.generation_config.eos_token_id = ids["<|im_end|>"]
    model.generation_config.pad_token_id = ids["<|endoftext|>"]
    model.save_pretrained(path)
    processor.save_pretrained(path)
    return path


def _tokenizer(special: Sequence[str]) -> PreTrainedTokenizerFast:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=list(special),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    tokenizer.add_tokens(list(TAGS))
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        additional_special_tokens=[w for w in special if w not in ("<|im_end|>", "<|endoftext|>")],
        clean_up_tokenization_spaces=False,
    )
