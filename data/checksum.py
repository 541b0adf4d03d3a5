"""A checksum of a tensor's bits, equal on every device for the same numbers in the same places.

It finds changed, moved and lost values; it is not a defence against someone who wants a collision.
"""

import torch

_CHUNK = 1 << 20
"""Elements hashed at a time: bounds the extra memory to a few chunks of int64."""
_BITS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


def tensor_checksum(tensor: torch.Tensor) -> int:
    """Return a number in [0, 2^64): the sum of (bits + 1) x an odd weight of the flat position.

    The shape is not part of it. Both zeros of a float count as the same, because a weight read
    back through a matrix product loses the sign of its zeros.
    """
    flat = tensor.detach().reshape(-1)
    bits = flat.view(_BITS[flat.element_size()])
    negative_zero = torch.iinfo(bits.dtype).min if flat.is_floating_point() else None
    total = torch.zeros((), dtype=torch.int64, device=flat.device)
    for start in range(0, flat.numel(), _CHUNK):
        part = bits[start : start + _CHUNK].to(torch.int64)
        if negative_zero is not None:
            part = part.masked_fill(part == negative_zero, 0)
        total += ((part + 1) * _weights(start, part.numel(), flat.device)).sum()
    return int(total) & ((1 << 64) - 1)


def _weights(start: int, count: int, device: torch.device) -> torch.Tensor:
    """Return odd int64 weights that look random in the position (all arithmetic modulo 2^64)."""
    x = torch.arange(start, start + count, dtype=torch.int64, device=device)
    for shift, factor in ((30, -0x40A7B892E31B1A47), (27, -0x6B2FB644ECCEEE15)):
        x = (x + 1) * factor
        # >> keeps the sign in int64; the mask makes it the shift of an unsigned number.
        x = x ^ ((x >> shift) & ((1 << (64 - shift)) - 1))
    return x | 1
