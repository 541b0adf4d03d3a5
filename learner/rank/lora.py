"""LoRA: adapters in chosen linear layers, and the weights that they make once merged.

PEFT puts the adapters inside the model, whose own weights stay frozen. Exported
folders hold merged weights. Engines get a weight once, then its A and B, and merge them themselves
(`rollout.weights.loading`). Both use the names of the checkpoint.
"""

import contextlib
import re
from collections.abc import Iterator
from dataclasses import dataclass
from fnmatch import fnmatchcase

from peft import LoraConfig, inject_adapter_in_model
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn

from configs.learner import LoRAConfig
from data.errors import ConfigError
from data.weights.parcels import merge
from learner.rank.models import VISION_TOWER

ADAPTER = "default"


@dataclass(frozen=True, slots=True)
class StoredWeight:
    """A parameter under its checkpoint name."""

    name: str
    parts: tuple[nn.Parameter, ...]
    """The weight W [out, in]; where an adapter changes it, also A [rank, in] and B [out, rank]."""
    scale: float = 0.0
    """Of the adapter: alpha / rank."""

    @property
    def trained(self) -> bool:
        """Whether training changes it."""
        return any(part.requires_grad for part in self.parts)

    def merged(self) -> Tensor:
        """Return W, or W + scale * B A as a new tensor.

        See `data.weights.parcels.merge`; the parts stay as they are.
        """
        weight, *factors = (part.detach() for part in self.parts)
        return merge(weight, *factors, self.scale) if factors else weight


@dataclass(frozen=True, slots=True)
class UnmergedWeight:
    """A gathered parameter under its checkpoint name, on the host."""

    name: str
    weight: Tensor | None
    """None where it is frozen and only what is trained was asked for."""
    factors: tuple[Tensor, ...]
    """A and B of an adapter, or none."""
    scale: float


def add_adapters(net: nn.Module, config: LoRAConfig) -> None:
    """Freeze the model and put trainable adapters into the layers that the patterns name.

    They start as no change. Their values are drawn from torch's random state: seed it equally on
    all ranks. The output layer gets none, because losses read its weight.

    Raises:
        ConfigError: a pattern names no layer; those that exist are listed.
    """
    output = net.get_output_embeddings()
    layers = [
        name
        for name, layer in net.named_modules()
        if isinstance(layer, nn.Linear) and layer is not output
    ]
    vision = [name for name in layers if VISION_TOWER in name]
    others = [name for name in layers if VISION_TOWER not in name]
    chosen = [
        *_matching(config.modules, others, key="learner.lora.modules"),
        *_matching(config.vision_modules, vision, key="learner.lora.vision_modules"),
    ]
    peft_config = LoraConfig(
        r=config.rank,
        lora_alpha=config.alpha,
        lora_dropout=config.dropout,
        # A list would be matched by the ends of names.
        target_modules="|".join(re.escape(name) for name in chosen),
    )
    inject_adapter_in_model(peft_config, net, adapter_name=ADAPTER)


@contextlib.contextmanager
def adapters_off(net: nn.Module) -> Iterator[None]:
    """Let the model compute, inside, what it did before it had adapters."""
    layers = [layer for layer in net.modules() if isinstance(layer, LoraLayer)]
    # PEFT's own switch changes what requires gradient and which layers run; both disturb ZeRO.
    for layer in layers:
        layer.set_scale(ADAPTER, 0.0)
    try:
        yield
    finally:
        for layer in layers:
            layer.set_scale(ADAPTER, 1.0)


def stored_weights(net: nn.Module) -> Iterator[StoredWeight]:
    """Yield the model's parameters in order, as they are in a checkpoint without adapters."""
    adapted = {
        f"{name}.base_layer.weight": layer
        for name, layer in net.named_modules()
        if isinstance(layer, LoraLayer)
    }
    factors = {
        id(factor)
        for layer in adapted.values()
        for factor in (*layer.lora_A.parameters(), *layer.lora_B.parameters())
    }
    for name, param in net.named_parameters():
        if id(param) in factors:
            continue
        stored = name.replace(".base_layer.", ".")
        layer = adapted.get(name)
        if layer is None:
            yield StoredWeight(stored, (param,))
        else:
            parts = (param, layer.lora_A[ADAPTER].weight, layer.lora_B[ADAPTER].weight)
            yield StoredWeight(stored, parts, layer.scaling[ADAPTER])


def _matching(patterns: list[str], names: list[str], *, key: str) -> list[str]:
    """Return the names that any of the patterns matches.

    Raises:
        ConfigError: a pattern matches none.
    """
    for pattern in patterns:
        if not any(fnmatchcase(name, pattern) for name in names):
            kinds = sorted({re.sub(r"\.\d+(?=\.)", ".*", name) for name in names})
            raise ConfigError(
                f"{key}: expected patterns of linear layers, found '{pattern}', which matches "
                f"none of {', '.join(kinds) or '(no such layer)'}"
            )
    return [name for name in names if any(fnmatchcase(name, pattern) for pattern in patterns)]
