import itertools

import pytest
import torch

from data import checksum
from data.checksum import tensor_checksum

DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64, torch.int64, torch.uint8)


def _slow(tensor: torch.Tensor) -> int:
    """The definition with Python's own integers."""
    size, mask, total = tensor.element_size(), (1 << 64) - 1, 0
    raw = bytes(tensor.contiguous().view(-1).view(torch.uint8).tolist())
    for place in range(tensor.numel()):
        part = raw[place * size : (place + 1) * size]
        bits = int.from_bytes(part, "little", signed=size > 1)
        if tensor.is_floating_point() and bits == -(1 << (8 * size - 1)):
            bits = 0
        x = place
        for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
            x = (x + 1) * factor & mask
            x ^= x >> shift
        total += (bits + 1) * (x | 1)
    return total & mask


@pytest.mark.parametrize("dtype", DTYPES)
def test_equals_the_definition_in_exact_integers(dtype: torch.dtype) -> None:
    values = (torch.randn(3, 7, generator=torch.Generator().manual_seed(0)) * 50).to(dtype)
    assert tensor_checksum(values) == _slow(values)


def test_chunks_do_not_show() -> None:
    values = torch.randn(1000, 1201, generator=torch.Generator().manual_seed(0))
    assert values.numel() > checksum._CHUNK
    flat = values.view(-1)
    late = flat.clone()
    late[-1] += 1
    assert tensor_checksum(values) == tensor_checksum(flat)
    assert tensor_checksum(late) != tensor_checksum(flat)


def test_strides_do_not_show() -> None:
    values = torch.arange(12.0).view(3, 4)
    assert tensor_checksum(values.t()) == tensor_checksum(values.t().contiguous())
    assert tensor_checksum(values.t()) != tensor_checksum(values)


def test_every_order_of_four_numbers_differs() -> None:
    orders = list(itertools.permutations((1.0, 2.0, 3.0, 4.0)))
    assert len({tensor_checksum(torch.tensor(order)) for order in orders}) == len(orders)


def test_every_single_bit_counts() -> None:
    values = torch.randn(5, generator=torch.Generator().manual_seed(0))
    sums = {tensor_checksum(values)}
    for byte, bit in itertools.product(range(20), range(8)):
        raw = values.clone().view(torch.uint8)
        raw[byte] ^= 1 << bit
        sums.add(tensor_checksum(raw.view(torch.float32)))
    assert len(sums) == 161


def test_lengths_of_zeros_differ_and_signs_of_zeros_do_not() -> None:
    sums = {tensor_checksum(torch.zeros(count)) for count in range(9)}
    assert len(sums) == 9
    assert tensor_checksum(torch.tensor([0.0, -0.0])) == tensor_checksum(torch.zeros(2))
