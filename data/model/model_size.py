"""How large a model folder's model is, from the heads of its files: no weights are read."""

import json
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

from data.errors import DataError

MAX_HEAD_BYTES = 100 << 20
"""As safetensors itself limits it."""


@dataclass(frozen=True, slots=True)
class ModelSize:
    """What memory follows from."""

    parameters: int
    """Numbers that the files hold, of all towers."""
    hidden: int
    """Hidden units of a layer of the language model."""
    layers: int
    """Layers of the language model."""
    key_width: int
    """Numbers of a token's keys in a layer: heads of keys x size of a head."""


def model_size(folder: str) -> ModelSize:
    """Return a model's size.

    Raises:
        DataError: the folder lacks weights or a configuration, or they cannot be read.
    """
    parameters = sum(map(prod, tensor_shapes(folder).values()))
    try:
        config = json.loads((Path(folder) / "config.json").read_text(encoding="utf-8"))
        text = config.get("text_config", config)
        head_dim = text.get("head_dim") or text["hidden_size"] // text["num_attention_heads"]
        keys = text.get("num_key_value_heads") or text["num_attention_heads"]
        return ModelSize(
            parameters=parameters,
            hidden=text["hidden_size"],
            layers=text["num_hidden_layers"],
            key_width=keys * head_dim,
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(f"{folder}: the model's size cannot be read: {error!r}") from error


def tensor_shapes(folder: str) -> dict[str, tuple[int, ...]]:
    """Return the shapes of a folder's tensors by name.

    Raises:
        DataError: the folder lacks weights, or their heads cannot be read.
    """
    files = sorted(Path(folder).glob("*.safetensors"))
    if not files:
        raise DataError(f"{folder}: expected a model's weights (*.safetensors), found none")
    return {name: shape for path in files for name, shape in _head(path).items()}


def _head(path: Path) -> dict[str, tuple[int, ...]]:
    try:
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            if length > MAX_HEAD_BYTES:
                raise ValueError(f"a head of {length} bytes")
            head: dict[str, Any] = json.loads(file.read(length))
        return {
            name: tuple(tensor["shape"]) for name, tensor in head.items() if name != "__metadata__"
        }
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(
            f"{path}: expected a safetensors file, found {error!r}; copy the file again"
        ) from error
