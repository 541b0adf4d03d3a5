"""What changed in a tensor since another version of it: found, written down, applied; lossless.

A tensor's bits are read as 16-bit units, whatever its type. Of changed units the places travel as
gaps, a byte each, and the new bits. No general compressor follows: of the 3 bytes that a changed
unit takes two are bits that hardly repeat, and what a compressor saves it costs in time.
"""

from dataclasses import dataclass

import numpy as np
import torch

from data.errors import WeightSyncError
from data.weights.checksum import as_bytes, word_weights
from data.weights.constants import SKIP

LARGEST_SHARE = 4
"""Where more than one of so many units changed, the whole tensor is sent: it is hardly larger."""


@dataclass(frozen=True, slots=True)
class Changes:
    """Changed units of one tensor."""

    gaps: np.ndarray
    """Unchanged units before each changed one, uint8; see `SKIP`."""
    bits: np.ndarray
    """The new units, uint16 [changed]."""

    @property
    def nbytes(self) -> int:
        """Bytes that travel."""
        return self.gaps.nbytes + self.bits.nbytes


def as_units(tensor: torch.Tensor) -> np.ndarray | None:
    """Return a host tensor's memory as units, uint16 [n]; None where it is no such sequence."""
    fits = tensor.nbytes % 2 == 0 and tensor.data_ptr() % 8 == 0 and tensor.is_contiguous()
    if tensor.device.type != "cpu" or not fits:
        return None
    return as_bytes(tensor).numpy().view(np.uint16)


def find_changes(held: np.ndarray, new: np.ndarray) -> tuple[Changes, int] | None:
    """Return how ``new`` differs from ``held`` and by how much their checksums; update ``held``.

    Both are units of equal number. None where too much changed; ``held`` then is a part of both.
    """
    from data.weights.kernels import BLOCK_WORDS64, find  # see there why not above

    most = len(new) // LARGEST_SHARE
    room = most + min(len(new), 4 * BLOCK_WORDS64 + 3)  # it is looked at once a block, and the rest
    gaps = np.empty(room + len(new) // SKIP, np.uint8)
    bits = np.empty(room, np.uint16)
    num_gaps, num_bits, difference = find(held, new, gaps, bits, most, word_weights())
    if num_bits > most:
        return None
    return Changes(gaps[:num_gaps], bits[:num_bits]), int(difference)


def apply_changes(held: np.ndarray, changes: Changes) -> int:
    """Write changes into ``held`` and return by how much its checksum differs now.

    The difference is of what lay there and what lies there now, so that it is right only where the
    changes are applied to the version that they were found against.

    Raises:
        WeightSyncError: they do not fit a tensor of this size; nothing is written.
    """
    from data.weights.kernels import apply  # see there why not above

    ended, difference = apply(held, changes.gaps, changes.bits, word_weights())
    if not ended:
        raise _misfit(len(held), changes)
    return int(difference)


def apply_changes_torch(held: torch.Tensor, changes: Changes) -> None:
    """Do the same to units that lie on a device, int16 [n].

    Raises:
        WeightSyncError: they do not fit a tensor of this size; nothing is written.
    """
    gaps = torch.from_numpy(changes.gaps.copy()).to(held.device)
    bits = torch.from_numpy(changes.bits.view(np.int16).copy()).to(held.device)
    changed = gaps != SKIP
    places = (gaps.long() + changed).cumsum(0)[changed] - 1
    if len(places) != len(bits) or (len(places) and int(places[-1]) >= len(held)):
        raise _misfit(len(held), changes)
    held[places] = bits


def _misfit(units: int, changes: Changes) -> WeightSyncError:
    return WeightSyncError(
        f"changes of {len(changes.bits)} units do not fit a tensor of {units}: they were damaged, "
        "or are another tensor's"
    )
