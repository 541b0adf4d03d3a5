"""A checksum of a tensor's bits, equal on every device for the same bits in the same places.

It finds changed, moved and lost values; it is not a defence against someone who wants a collision.
"""

from functools import lru_cache

import numpy as np
import torch

from data.weights.constants import BLOCK_WORDS, FACTORS, MASK

BLOCKS_AT_ONCE = 1 << 12
"""Where torch sums: bounds what it holds besides the tensor."""


def tensor_checksum(tensor: torch.Tensor) -> int:
    """Return a number in [0, 2^64) from all bits of a tensor and their places.

    The bytes are cut into unsigned 32-bit words and these into blocks, the last one filled up with
    zeros. A block's sum is that of its words, each times an odd 32-bit weight of its place; the
    result is the sum of the number of bytes and the blocks' sums, each times an odd 64-bit weight
    of its place: all of it modulo 2^64. So a single changed word always shows, and the checksum of
    a tensor of which some words change follows from these words alone.

    The shape is not part of it.
    """
    flat = as_bytes(tensor)
    words = _words(flat)
    if flat.device.type == "cpu":
        from data.weights.kernels import sum_words  # see there why not above

        total = int(sum_words(words.numpy().view(np.uint32), word_weights()))
    else:
        total = _sum_words_torch(words)
    return _with_rest(total, flat)


def copy_with_checksum(to: torch.Tensor, source: torch.Tensor) -> int:
    """Copy a tensor of as many elements and return the checksum of what was written to ``to``.

    On the host it is summed up by the loop that writes it; elsewhere ``to`` is read afterwards.
    """
    here, there = as_bytes(to), as_bytes(source)
    same = to.dtype == source.dtype and to.device.type == source.device.type == "cpu"
    if not same or here.data_ptr() != to.data_ptr() or here.data_ptr() % 4:
        to.copy_(source.reshape(to.shape))
        return tensor_checksum(to)
    from data.weights.kernels import copy_words  # see there why not above

    words = _words(here)
    here[4 * len(words) :] = there[4 * len(words) :]
    both = (tensor.numpy().view(np.uint32) for tensor in (words, _words(there)))
    return _with_rest(int(copy_words(*both, word_weights())), here)


def as_bytes(tensor: torch.Tensor) -> torch.Tensor:
    """Return the bytes of a tensor, uint8 [n]; they share its memory where it is contiguous."""
    flat = tensor.detach().reshape(-1)
    if flat.stride(0) != 1:
        flat = flat.clone(memory_format=torch.contiguous_format)
    # torch views no empty tensor of some strides.
    return flat.view(torch.uint8) if len(flat) else flat.new_empty(0, dtype=torch.uint8)


@lru_cache
def word_weights() -> np.ndarray:
    """Return the odd weights of the places in a block, uint32 [BLOCK_WORDS]."""
    mixed = _mixed(torch.arange(BLOCK_WORDS, dtype=torch.int64)).numpy()
    return (mixed.view(np.uint64) >> np.uint64(32)).astype(np.uint32) | np.uint32(1)


def _words(flat: torch.Tensor) -> torch.Tensor:
    """Return bytes as int32 [n] without the last ones; they share memory that is aligned."""
    words = flat[: len(flat) // 4 * 4]
    return (words.clone() if flat.data_ptr() % 4 else words).view(torch.int32)


def _with_rest(total: int, flat: torch.Tensor) -> int:
    """Return the checksum of bytes of which the words' sum is known."""
    words = len(flat) // 4
    tail = int.from_bytes(bytes(flat[4 * words :].tolist()), "little")
    last, place = divmod(words, BLOCK_WORDS)
    total += tail * int(word_weights()[place]) * _block_weight(last + 1)
    return (total + len(flat) * _block_weight(0)) & MASK


def _block_weight(place: int) -> int:
    """Return the odd weight of a block; block 0 are the bytes' number."""
    return int(_mixed(torch.tensor(place))) & MASK | 1


def _sum_words_torch(words: torch.Tensor) -> int:
    """Return the same where numba cannot read, of int32 [n]; int64 wraps around as uint64 does."""
    weights = torch.from_numpy(word_weights().astype(np.int64)).to(words.device)
    total = torch.zeros((), dtype=torch.int64, device=words.device)
    size = BLOCKS_AT_ONCE * BLOCK_WORDS
    for start in range(0, len(words), size):
        blocks = words[start : start + size].long() & 0xFFFFFFFF
        blocks = torch.nn.functional.pad(blocks, (0, -len(blocks) % BLOCK_WORDS)).view(
            -1, BLOCK_WORDS
        )
        first = start // BLOCK_WORDS + 1
        places = torch.arange(first, first + len(blocks), device=words.device)
        total += ((blocks * weights).sum(-1) * (_mixed(places) | 1)).sum()
    return int(total) & MASK


def _mixed(x: torch.Tensor) -> torch.Tensor:
    """Return int64 numbers that look random, by place; made odd, these weigh the blocks."""
    for shift, factor in zip((30, 27), FACTORS, strict=True):
        x = (x + 1) * (factor - (1 << 64))
        # >> keeps the sign in int64; the mask makes it the shift of an unsigned number.
        x = x ^ ((x >> shift) & ((1 << (64 - shift)) - 1))
    return x
