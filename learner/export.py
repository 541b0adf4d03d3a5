"""Gathered parameters to what others load: weight buckets for engines, a folder for everyone."""

import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from data.checksum import tensor_checksum
from data.types import ParamSpec

BUCKET_BYTES = 128 << 20
"""Limits what is held at a time, and lets receivers start early."""
WEIGHT_FILES = ("*.safetensors", "*.safetensors.index.json", "*.bin", "*.bin.index.json")

BucketEntry = tuple[str, str, tuple[int, ...], np.ndarray]
"""Checkpoint name, torch dtype, shape, and the bytes, uint8 [n]: numpy has no bfloat16."""


def weight_buckets(
    named_tensors: Iterable[tuple[str, Tensor]], limit_bytes: int = BUCKET_BYTES
) -> Iterator[list[BucketEntry]]:
    """Yield the tensors in order as lists of byte views, each list within the limit.

    A larger tensor goes alone. The views share memory with the tensors.
    """
    bucket: list[BucketEntry] = []
    size = 0
    for name, tensor in named_tensors:
        raw = tensor.detach().contiguous().reshape(-1).view(torch.uint8).numpy()
        if bucket and size + raw.nbytes > limit_bytes:
            yield bucket
            bucket, size = [], 0
        bucket.append((name, dtype_name(tensor.dtype), tuple(tensor.shape), raw))
        size += raw.nbytes
    if bucket:
        yield bucket


def spec_of(name: str, tensor: Tensor) -> ParamSpec:
    """Return what a manifest says of a tensor, its checksum included."""
    return ParamSpec(name, dtype_name(tensor.dtype), tuple(tensor.shape), tensor_checksum(tensor))


def restore(dtype: str, shape: tuple[int, ...], raw: np.ndarray) -> Tensor:
    """Return the tensor that the bytes hold; it shares their memory."""
    return torch.from_numpy(raw).view(getattr(torch, dtype)).reshape(shape)


def dtype_name(dtype: torch.dtype) -> str:
    """Return `bfloat16` for `torch.bfloat16`."""
    return str(dtype).removeprefix("torch.")


def export_folder(
    net: nn.Module, named_tensors: Iterable[tuple[str, Tensor]], *, source: Path, folder: Path
) -> None:
    """Write an ordinary Hugging Face folder that replaces ``folder`` when it is complete.

    Configuration and weights come from the model, everything else (tokenizer, processor, chat
    template, generation settings) is copied from the ``source`` folder.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    partial = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    ignored = shutil.ignore_patterns(*WEIGHT_FILES, "checkpoint*")
    shutil.copytree(source, partial, ignore=ignored, dirs_exist_ok=True)
    net.save_pretrained(partial, state_dict=dict(named_tensors))
    os.chmod(partial, 0o755)  # mkdtemp's own are closed to other users
    if folder.exists():
        shutil.rmtree(folder)
    os.replace(partial, folder)
