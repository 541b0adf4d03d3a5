"""A checksum of a tensor's bits, equal on every device for the same numbers in the same places.

It finds changed, moved and lost values; it is not a defence against someone who wants a collision.
"""

from functools import lru_cache

import torch

BLOCK_WORDS = 1 << 16
"""32-bit words that are summed up under one table of weights; 256 KiB stay in a core's cache."""
_BLOCKS_AT_ONCE = {"cpu": 1, "cuda": 256}
_BITS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


def tensor_checksum(tensor: torch.Tensor) -> int:
    """Return a number in [0, 2^64) from all bits of a tensor and their places.

    A float's bits are read as sign and magnitude, cut into 32-bit words and these into blocks, the
    last one filled up with zeros. A block's sum is that of its words, each times an odd weight of
    its place; the result is the sum of the number of elements and the blocks' sums, again each
    times an odd weight of its place: all of it modulo 2^64.

    The shape is not part of it. Both zeros of a float count as the same, because a weight read
    back through a matrix product loses the sign of its zeros.
    """
    flat = tensor.detach().reshape(-1)
    bits = flat.view(_BITS[flat.element_size()])
    size = _BLOCKS_AT_ONCE.get(flat.device.type, 1) * BLOCK_WORDS * 4 // flat.element_size()
    sums = [
        _block_sums(bits[start : start + size], signed=flat.is_floating_point())
        for start in range(0, len(bits), size)
    ]
    found = torch.cat([bits.new_tensor([len(bits)], dtype=torch.int64), *sums])
    return int((found * place_weights(len(found)).to(found.device)).sum()) & ((1 << 64) - 1)


def place_weights(count: int) -> torch.Tensor:
    """Return odd int64 weights that look random in the place (all arithmetic modulo 2^64)."""
    x = torch.arange(count, dtype=torch.int64)
    for shift, factor in ((30, -0x40A7B892E31B1A47), (27, -0x6B2FB644ECCEEE15)):
        x = (x + 1) * factor
        # >> keeps the sign in int64; the mask makes it the shift of an unsigned number.
        x = x ^ ((x >> shift) & ((1 << (64 - shift)) - 1))
    return x | 1


def _block_sums(bits: torch.Tensor, *, signed: bool) -> torch.Tensor:
    """Return each block's sum, int64 [blocks]; ``signed``: the bits are a sign and a magnitude."""
    if signed:
        sign = bits >> (8 * bits.element_size() - 1)  # 0 or -1
        own = (bits & torch.iinfo(bits.dtype).max).bitwise_xor_(sign).sub_(sign)
    else:
        own = bits.clone()
    if short := -len(own) % (BLOCK_WORDS * 4 // own.element_size()):
        own = torch.nn.functional.pad(own, (0, short))
    words = own.view(torch.int32).view(-1, BLOCK_WORDS)
    return (words * _word_weights(own.device)).sum(-1)


@lru_cache
def _word_weights(device: torch.device) -> torch.Tensor:
    return place_weights(BLOCK_WORDS).to(device)
