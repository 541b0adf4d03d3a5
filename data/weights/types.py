"""What a version of the weights is made of, and what one publication of it did.

Made by -> used by:
  ParamSpec           learner           -> weight store, rollout
  Bucket              publisher         -> weight store, rollout
  Published           publisher         -> the RL step, metrics
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class ParamSpec:
    """One tensor of a version of the weights."""

    name: str
    """Checkpoint (Hugging Face) name."""
    dtype: str
    shape: tuple[int, ...]
    trained: bool = True
    """Later versions may hold other bits."""
    patched: bool = False
    """Later versions may hold only what changed in it."""
    adapted: bool = False
    """It travels as what adapters change and the adapters themselves."""


@dataclass(frozen=True, slots=True)
class Bucket:
    """Some tensors of a version, and where their parcels lie."""

    checksums: Mapping[str, int]
    """Checksum by tensor name, of the whole tensors of this version; for tensors with an adapter
    see `data.weights.parcels.adapted_checksum`. A bucket may also hold parcels under other names:
    these are of an older version."""
    parcels: tuple[Any, ...]
    """The reference of a list of `data.weights.parcels.Parcel`; inside a tuple, so that Ray does
    not resolve it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Published:
    """What one publication did."""

    delta: bool
    bytes: int
    """Put into the object store."""
    seconds: dict[str, float]
    """By phase: gather, diff (or checksums, of whole tensors) and put."""
    digest: str
    """Equal for equal weights: a hash of the checksums of all tensors."""
    error: str = ""
    """Why the store does not hold it; the learner's ranks are well all the same."""
