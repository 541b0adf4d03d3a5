"""Reasoner and Embedder from their folders, and the two heads that training puts on them."""

import copy
import dataclasses
import importlib
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, AutoModelForImageTextToText, PreTrainedConfig
from transformers.utils import is_flash_attn_2_available

from configs.learner import LearnerConfig
from data.errors import ConfigError
from data.model.model_folder import check_folder, load_pretrained, sees_pictures
from learner.rank.batching import Batch, TextTokens, VisionTokens
from learner.rank.logprobs import OutputLayer

VISION_TOWER = "visual."
"""Part of the names of Qwen-VL's vision parameters."""
LOGIT_CHANGES = ("final_logit_softcapping", "logit_scale", "logits_scaling", "lm_head_multiplier")
"""Settings under which the output layer's results are not the logits yet."""
NOISE = ("drop", "jitter")
"""Parts of the names of what a model changes at random in training alone."""


def load_model(folder: str, config: LearnerConfig) -> nn.Module:
    """Return the model in the asked precision, ready for training.

    Raises:
        ConfigError: what is asked for does not fit the model, or its logits are not those of its
            output layer.
        DataError: the folder is incomplete, or only code of its own can read it.
    """
    kind = AutoModelForImageTextToText if sees_pictures(folder) else AutoModelForCausalLM
    net = load_pretrained(
        kind,
        check_folder(folder),
        dtype=torch.bfloat16 if config.bf16 else torch.float32,
        attn_implementation=choose_attention(config),
    )
    check_logits(net)
    if config.freeze_vision:
        freeze_vision(net)
    if config.gradient_checkpointing:
        # Reentrant under ZeRO-3: partitioned weights change shape between the two passes.
        reentrant = config.zero_stage == 3
        net.gradient_checkpointing_enable({"use_reentrant": reentrant})
        net.enable_input_require_grads()
        if reentrant and config.lora.vision_modules:
            # It passes no gradient where no input asks for one; the layer before is frozen.
            net.base_model.visual.patch_embed.register_forward_hook(
                lambda _module, _inputs, output: output.requires_grad_()
            )
    return net.train()


def load_reference(folder: str, config: LearnerConfig) -> nn.Module:
    """Return a frozen copy of the model, whole on every rank."""
    return TokenHead(load_model(folder, config)).requires_grad_(False).eval()


def drop_nothing(net: nn.Module) -> None:
    """Let a model compute in training what it computes in an engine: without its own noise.

    That is its dropout and the jitter of its routers, where modules hold them and where they read
    them from their configuration. The model's own configuration, which exports write, stays.
    """
    quiet: dict[int, PreTrainedConfig] = {}
    for module in net.modules():
        if isinstance(module, nn.modules.dropout._DropoutNd):
            module.p = 0.0
        _silence(module)
        config = getattr(module, "config", None)
        if module is net or not isinstance(config, PreTrainedConfig):
            continue
        if id(config) not in quiet:
            quiet[id(config)] = copy.deepcopy(config)
            _silence(quiet[id(config)])
        module.config = quiet[id(config)]


def _silence(holder: object) -> None:
    """Set what is named as noise to 0, in a configuration also in its parts."""
    for name, value in list(vars(holder).items()):
        if isinstance(value, float) and any(word in name for word in NOISE):
            setattr(holder, name, 0.0)
        elif isinstance(value, PreTrainedConfig) and isinstance(holder, PreTrainedConfig):
            _silence(value)


def choose_attention(config: LearnerConfig) -> str:
    """Return the attention implementation that is asked for, or the best that works here."""
    if config.attention != "auto":
        return config.attention
    if not (config.bf16 and config.gpus and is_flash_attn_2_available()):
        return "sdpa"
    try:
        importlib.import_module("flash_attn")
    except ImportError:  # built for another torch
        return "sdpa"
    return "flash_attention_2"


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


def check_logits(net: nn.Module) -> None:
    """Refuse a model that scales or caps its logits: `TokenHead` takes them from the output layer.

    Raises:
        ConfigError: it does; the setting in its config.json is named.
    """
    text = net.config.get_text_config()
    keys = [name for name in LOGIT_CHANGES if getattr(text, name, None) not in (None, 1, 1.0)]
    if keys:
        raise ConfigError(
            f"{type(net).__name__}: its config.json sets {', '.join(keys)}, so its logits are not "
            "those of its output layer, and the learner would train another model than vLLM "
            "samples from; use a model without it"
        )


def model_tokens(net: nn.Module, tokenizer: Any) -> TextTokens:
    """Return the model's padding and, where it sees pictures, their tokens and patch shape."""
    # Padding is masked: where the tokenizer has none, any token will do.
    pad = 0 if tokenizer.pad_token_id is None else tokenizer.pad_token_id
    vision = getattr(net.config, "vision_config", None)
    if vision is None:
        return TextTokens(pad=pad)
    channels = vision.in_channels * vision.temporal_patch_size * vision.patch_size**2
    return VisionTokens(
        image=net.config.image_token_id,
        video=getattr(net.config, "video_token_id", None),
        start=net.config.vision_start_token_id,
        end=net.config.vision_end_token_id,
        pad=pad,
        merge=vision.spatial_merge_size,
        channels=channels,
    )


def with_positions(net: nn.Module, batch: Batch) -> Batch:
    """Return a batch on the CPU with the positions of its tokens, int64 [3, B, L].

    Made once, policy and reference share them; made by the model on a GPU, each row of them waits
    for the GPU.
    """
    if batch.vision is None:
        return batch
    positions, _ = net.base_model.get_rope_index(**batch.inputs)
    return dataclasses.replace(batch, inputs={**batch.inputs, "position_ids": positions})


class TokenHead(nn.Module):
    """A model that scores response tokens; the vocabulary is never projected for prompts."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net
        net.set_output_embeddings(OutputLayer(net.get_output_embeddings()))

    def forward(
        self,
        batch: Batch,
        *,
        banned: Tensor | None = None,
        temperature: float = 1.0,
        entropy_gradient: bool = False,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return log-probability, entropy and correctness of each response token, float32 [T]."""
        hidden = _hidden(self.net, batch)
        return self.net.get_output_embeddings()(
            hidden[batch.rows_T, batch.columns_T],
            batch.targets_T,
            banned=banned,
            temperature=temperature,
            entropy_gradient=entropy_gradient,
        )


class EmbeddingHead(nn.Module):
    """A model that embeds rows: the last token's hidden state, normalised."""

    def __init__(self, net: nn.Module, temperature: nn.Module) -> None:
        super().__init__()
        self.net = net
        self.temperature = temperature
        output = net.get_output_embeddings()
        if output.weight is not net.get_input_embeddings().weight:
            output.requires_grad_(False)  # unused here: weight decay would wear it down

    def forward(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Return unit vectors, float32 or wider [B, D], and the temperature of their loss, [1]."""
        hidden = _hidden(self.net, batch)
        rows = torch.arange(len(batch.last_B), device=hidden.device)
        last_BD = hidden[rows, batch.last_B]
        wide = torch.promote_types(last_BD.dtype, torch.float32)
        vectors = nn.functional.normalize(last_BD.to(wide), dim=-1)
        return vectors, self.temperature(vectors)


def _hidden(net: nn.Module, batch: Batch) -> Tensor:
    """Return the last hidden states [B, L, D]; each distinct picture is seen once."""
    if batch.vision is None:
        return net.base_model(**batch.inputs, use_cache=False).last_hidden_state
    vision = batch.vision
    # Videos too: the tower reads both alike.
    seen = net.base_model.get_image_features(vision.values, vision.grid, return_dict=True)
    shown = {"image": vision.shown.tolist(), "video": vision.shown_videos.tolist()}
    outputs = {kind: _chosen(seen, places) for kind, places in shown.items() if places}
    return net.base_model(
        **batch.inputs, mm_encoder_outputs=outputs, use_cache=False
    ).last_hidden_state


def _chosen(seen: Any, places: list[int]) -> Any:
    """Return what the tower made of these pictures.

    By picture, and in Qwen3-VL by layer too: what the tower hands to the first text layers.
    """
    chosen = copy.copy(seen)
    chosen.pooler_output = [seen.pooler_output[i] for i in places]
    if getattr(seen, "deepstack_features", None) is not None:
        chosen.deepstack_features = [
            [layer[i] for i in places] for layer in seen.deepstack_features
        ]
    return chosen
