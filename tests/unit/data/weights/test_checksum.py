import itertools

import pytest
import torch

from data.weights.checksum import (
    BLOCK_WORDS,
    MASK,
    _sum_words_torch,
    copy_with_checksum,
    tensor_checksum,
    word_weights,
)
from data.weights.kernels import sum_words

DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64, torch.int64, torch.uint8)


def _mixed(place: int) -> int:
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        place = (place + 1) * factor & MASK
        place ^= place >> shift
    return place


def _weight(place: int) -> int:
    return _mixed(place) | 1


def _slow(tensor: torch.Tensor) -> int:
    """The definition with Python's own integers."""
    raw = bytes(tensor.contiguous().view(-1).view(torch.uint8).tolist())
    total = len(raw) * _weight(0)
    raw += bytes(-len(raw) % 4)
    words = [int.from_bytes(raw[i : i + 4], "little") for i in range(0, len(raw), 4)]
    for place, start in enumerate(range(0, len(words), BLOCK_WORDS), 1):
        block = words[start : start + BLOCK_WORDS]
        own = sum(word * (_mixed(i) >> 32 | 1) for i, word in enumerate(block))
        total += own * _weight(place)
    return total & MASK


@pytest.mark.parametrize("dtype", DTYPES)
def test_equals_the_definition_in_exact_integers(dtype: torch.dtype) -> None:
    values = (torch.randn(3, 7, generator=torch.Generator().manual_seed(0)) * 50).to(dtype)
    values[1] = -values[1] * 0
    assert tensor_checksum(values) == _slow(values)


def test_several_blocks_equal_the_definition() -> None:
    values = torch.randn(2 * BLOCK_WORDS + 3, generator=torch.Generator().manual_seed(0))
    assert tensor_checksum(values) == _slow(values)
    assert tensor_checksum(values.bfloat16()[1:]) == _slow(values.bfloat16()[1:])


def test_blocks_do_not_show() -> None:
    values = torch.randn(1000, 1201, generator=torch.Generator().manual_seed(0))
    assert values.numel() > BLOCK_WORDS
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


def test_lengths_of_zeros_and_their_signs_differ() -> None:
    sums = {tensor_checksum(torch.zeros(count)) for count in range(9)}
    assert len(sums) == 9
    assert tensor_checksum(torch.tensor([0.0, -0.0])) != tensor_checksum(torch.zeros(2))


def test_no_two_places_of_a_block_weigh_the_same() -> None:
    assert len(set(word_weights().tolist())) == BLOCK_WORDS


@pytest.mark.parametrize("count", [0, 1, BLOCK_WORDS, 3 * BLOCK_WORDS + 5])
def test_what_sums_on_a_host_and_on_a_device_agree(count: int) -> None:
    words = torch.randint(-(2**31), 2**31, (count,), dtype=torch.int32)
    assert _sum_words_torch(words) == int(sum_words(words.numpy().view("uint32"), word_weights()))


def test_signs_that_change_in_two_places_count() -> None:
    values = torch.randn(50, generator=torch.Generator().manual_seed(0))
    sums = {tensor_checksum(values)}
    for one, other in itertools.combinations(range(50), 2):
        flipped = values.clone()
        flipped[[one, other]] *= -1
        sums.add(tensor_checksum(flipped))
    assert len(sums) == 1 + 50 * 49 // 2


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("count", [0, 1, 7, 2 * BLOCK_WORDS + 3])
def test_a_copy_gives_the_checksum_of_what_was_copied(dtype: torch.dtype, count: int) -> None:
    values = (torch.randn(count, generator=torch.Generator().manual_seed(0)) * 50).to(dtype)
    to = torch.zeros_like(values)
    assert copy_with_checksum(to, values) == tensor_checksum(values) == tensor_checksum(to)
    # Where the memory is not aligned to words, or not in one piece.
    late = torch.zeros(count + 1, dtype=dtype)[1:]
    assert copy_with_checksum(late, values) == tensor_checksum(values) == tensor_checksum(late)
    apart = torch.zeros(count, 2, dtype=dtype)[:, 0]
    assert copy_with_checksum(apart, values) == tensor_checksum(values) == tensor_checksum(apart)
