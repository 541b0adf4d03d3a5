"""Reasoner and Embedder from their folders, and the two heads that training puts on them."""

from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoModelForImageTextToText

from configs.schema import LearnerConfig
from data.errors import ConfigError
from data.model_folder import check_folder
from learner.batching import Batch, VisionTokens
from learner.logprobs import token_logprobs

VISION_TOWER = "visual."
"""Part of the names of Qwen-VL's vision parameters."""


def load_model(folder: str, config: LearnerConfig) -> nn.Module:
    """Return the model in the asked precision, ready for training."""
    net = AutoModelForImageTextToText.from_pretrained(
        check_folder(folder),
        dtype=torch.bfloat16 if config.bf16 else torch.float32,
        attn_implementation=config.attention,
    )
    if config.freeze_vision:
        freeze_vision(net)
    if config.gradient_checkpointing:
        # Reentrant under ZeRO-3: partitioned weights change shape between the two passes.
        net.gradient_checkpointing_enable({"use_reentrant": config.zero_stage == 3})
        net.enable_input_require_grads()
    return net.train()


def load_reference(folder: str, config: LearnerConfig) -> nn.Module:
    """Return a frozen copy of the model, whole on every rank."""
    return TokenHead(load_model(folder, config)).requires_grad_(False).eval()


def freeze_vision(net: nn.Module) -> None:
    """Freeze the vision tower.

    Raises:
        ConfigError: the model has no such parameters, so nothing would be frozen.
    """
    frozen = [param for name, param in net.named_parameters() if VISION_TOWER in name]
    if not frozen:
        parts = sorted({name.split(".")[0] for name, _ in net.named_parameters()})
        raise ConfigError(
            f"learner.freeze_vision: expected parameters named '*{VISION_TOWER}*' in "
            f"{type(net).__name__}, found {', '.join(parts)}; set it to false"
        )
    for param in frozen:
        param.requires_grad_(False)


def vision_tokens(net: nn.Module, processor: Any) -> VisionTokens:
    """Return the model's picture tokens and patch shape."""
    vision = net.config.vision_config
    channels = vision.in_channels * vision.temporal_patch_size * vision.patch_size**2
    return VisionTokens(
        image=net.config.image_token_id,
        start=net.config.vision_start_token_id,
        end=net.config.vision_end_token_id,
        pad=processor.tokenizer.pad_token_id,
        merge=vision.spatial_merge_size,
        channels=channels,
    )


class TokenHead(nn.Module):
    """A model that scores response tokens; the vocabulary is never projected for prompts."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(
        self,
        batch: Batch,
        *,
        banned: Tensor | None = None,
        temperature: float = 1.0,
        entropy_gradient: bool = False,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return log-probability, entropy and correctness of each response token, float32 [T]."""
        hidden = self.net.model(**batch.inputs, use_cache=False).last_hidden_state
        return token_logprobs(
            hidden[batch.rows_T, batch.columns_T],
            batch.targets_T,
            self.net.lm_head,
            vocabulary=self.net.config.get_text_config().vocab_size,
            banned=banned,
            temperature=temperature,
            entropy_gradient=entropy_gradient,
        )


class EmbeddingHead(nn.Module):
    """A model that embeds rows: the last token's hidden state, normalised in float32."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net
        if net.lm_head.weight is not net.get_input_embeddings().weight:
            net.lm_head.requires_grad_(False)  # unused here: weight decay would wear it down

    def forward(self, batch: Batch) -> Tensor:
        """Return unit vectors, float32 [B, D]."""
        hidden = self.net.model(**batch.inputs, use_cache=False).last_hidden_state
        rows = torch.arange(len(batch.last_B), device=hidden.device)
        return nn.functional.normalize(hidden[rows, batch.last_B].float(), dim=-1)
