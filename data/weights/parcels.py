"""What lies in a weight bucket: tensors, what changed in them, or the factors of what was added.

A parcel is one checkpoint tensor's share of a version. Bytes are flat uint8 arrays, because numpy
has no bfloat16; Ray moves them without a copy.
"""

import warnings
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from data.weights.checksum import as_bytes
from data.weights.constants import FACTORS, MASK
from data.weights.delta import Changes

BUCKET_BYTES = 128 << 20
"""Of tensors that a bucket stands for: limits what is held at a time, and lets receivers start
early."""


@dataclass(frozen=True, slots=True)
class Whole:
    """All bits of a tensor."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    bits: np.ndarray
    """uint8 [n]"""

    @property
    def nbytes(self) -> int:
        """Bytes that travel."""
        return self.bits.nbytes

    def tensor(self) -> Tensor:
        """Return the tensor; it shares the memory, which may be read-only: copy from it only."""
        with warnings.catch_warnings():
            # Ray's arrays are read-only and torch says so.
            warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
            flat = torch.from_numpy(self.bits)
        if not len(flat):
            return torch.empty(self.shape, dtype=getattr(torch, self.dtype))
        return flat.view(getattr(torch, self.dtype)).reshape(self.shape)


@dataclass(frozen=True, slots=True)
class Delta:
    """What changed in a tensor since the version before."""

    name: str
    base: int
    """Checksum of the tensor that they are changes of."""
    changes: Changes

    @property
    def nbytes(self) -> int:
        """Bytes that travel."""
        return self.changes.nbytes


@dataclass(frozen=True, slots=True)
class Adapter:
    """What LoRA adds to a tensor, which itself travels once, under its `base_name`."""

    name: str
    down: Whole
    """A [rank, in]"""
    up: Whole
    """B [out, rank]"""
    scale: float

    @property
    def nbytes(self) -> int:
        """Bytes that travel."""
        return self.down.nbytes + self.up.nbytes


Parcel = Whole | Delta | Adapter


def whole(name: str, tensor: Tensor) -> Whole:
    """Return a host tensor as a parcel that shares its memory."""
    return Whole(name, dtype_name(tensor.dtype), tuple(tensor.shape), as_bytes(tensor).numpy())


def base_name(name: str) -> str:
    """Return the name under which a weight travels whose adapter travels apart."""
    return f"base:{name}"


def adapted_checksum(base: int, down: int, up: int) -> int:
    """Return the checksum that stands for W, A and B together."""
    return (base + FACTORS[0] * down + FACTORS[1] * up) & MASK


def merge(weight: Tensor, down: Tensor, up: Tensor, scale: float) -> Tensor:
    """Return W + scale * B A (Hu et al. 2021, section 4.1) as a new tensor.

    W is [out, in], A [rank, in], B [out, rank]. The sum is made in float32 or wider and rounded
    once; the parts stay as they are.
    """
    wide = torch.promote_types(weight.dtype, torch.float32)
    return torch.addmm(weight.to(wide), up.to(wide), down.to(wide), alpha=scale).to(weight.dtype)


def dtype_name(dtype: torch.dtype) -> str:
    """Return `bfloat16` for `torch.bfloat16`."""
    return str(dtype).removeprefix("torch.")
