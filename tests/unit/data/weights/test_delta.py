"""Changes between two versions of a tensor: lossless, and damage shows."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from data.errors import WeightSyncError
from data.weights.checksum import tensor_checksum
from data.weights.constants import BLOCK_WORDS, MASK
from data.weights.delta import (
    LARGEST_SHARE,
    SKIP,
    Changes,
    apply_changes,
    apply_changes_torch,
    as_units,
    find_changes,
)

DTYPES = (torch.bfloat16, torch.float16, torch.float32, torch.float64, torch.int16, torch.int64)


def units(values) -> np.ndarray:
    return np.array(values, dtype=np.uint16)


def changed(old: np.ndarray, places) -> np.ndarray:
    new = old.copy()
    new[list(places)] ^= 1 + np.arange(len(places), dtype=np.uint16) % 0xFFFE
    return new


def check_round_trip(old: np.ndarray, new: np.ndarray) -> Changes:
    """Send changes, by both ways of applying them, and compare bits and checksums."""
    before, after = (tensor_checksum(torch.from_numpy(one)) for one in (old, new))
    held = old.copy()
    changes, difference = find_changes(held, new)
    assert np.array_equal(held, new)
    assert (before + difference) & MASK == after
    host = old.copy()
    assert (before + apply_changes(host, changes)) & MASK == after
    assert np.array_equal(host, new)
    device = torch.from_numpy(old.view(np.int16).copy())
    apply_changes_torch(device, changes)
    assert np.array_equal(device.numpy().view(np.uint16), new)
    return changes


@settings(max_examples=200, deadline=None)
@given(data=st.data(), size=st.integers(0, 3 * SKIP))
def test_any_few_changes_arrive(data, size):
    old = np.arange(size, dtype=np.uint16) * 257
    places = st.sets(st.integers(0, max(0, size - 1)), max_size=size // LARGEST_SHARE)
    changes = check_round_trip(old, changed(old, sorted(data.draw(places))))
    assert changes.nbytes <= 3 * len(changes.bits) + size // SKIP


@settings(max_examples=30, deadline=None)
@given(
    dtype=st.sampled_from(DTYPES),
    shape=st.sampled_from([(), (1,), (0, 3), (7, 5), (100, 41), (3 * BLOCK_WORDS,)]),
    share=st.sampled_from([0.0, 0.02, 0.2, 1.0]),
    seed=st.integers(0, 1000),
)
def test_every_type_arrives_or_is_sent_whole(dtype, shape, share, seed):
    noise = torch.Generator().manual_seed(seed)
    old = (torch.randn(shape, generator=noise) * 100).to(dtype)
    where = torch.rand(shape, generator=noise) < share
    new = torch.where(where, torch.tensor(3, dtype=dtype), old)
    held = old.clone()
    found = find_changes(as_units(held), as_units(new))
    if found is None:
        assert where.sum() > 0
        return
    difference = apply_changes(as_units(old), found[0])
    assert torch.equal(old, new)
    assert difference & MASK == found[1] & MASK


@pytest.mark.parametrize("gap", [0, 1, SKIP - 1, SKIP, SKIP + 1, 2 * SKIP - 1, 2 * SKIP, 70_000])
def test_gaps_at_the_edge_of_a_byte(gap):
    old = np.zeros(gap + 20, dtype=np.uint16)
    for places in ([gap], [0, gap + 1]):
        changes = check_round_trip(old, changed(old, places))
        assert len(changes.bits) == len(places)


@pytest.mark.parametrize("size", [0, 1, 5, 4 * BLOCK_WORDS + 3])
def test_no_change_is_nothing(size):
    old = np.ones(size, dtype=np.uint16)
    assert check_round_trip(old, old.copy()).nbytes == 0


@pytest.mark.parametrize("size", [100, 4 * BLOCK_WORDS + 3])
def test_where_all_changed_the_tensor_is_sent_whole(size):
    old = np.zeros(size, dtype=np.uint16)
    assert find_changes(old.copy(), old + 1) is None


def test_changes_of_another_size_are_refused():
    old = np.zeros(1000, dtype=np.uint16)
    changes, _ = find_changes(old.copy(), changed(old, [3, 999]))
    for damaged, held in [
        (changes, old[:999]),
        (replace(changes, bits=changes.bits[:1]), old),
        (replace(changes, bits=units([1, 2, 3])), old),
    ]:
        kept = held.copy()
        with pytest.raises(WeightSyncError, match="do not fit a tensor of"):
            apply_changes(kept, damaged)
        with pytest.raises(WeightSyncError, match="do not fit a tensor of"):
            apply_changes_torch(torch.from_numpy(kept.view(np.int16)), damaged)
        assert (kept == held).all()


@settings(max_examples=50, deadline=None)
@given(byte=st.integers(0, 10**6), bit=st.integers(0, 7))
def test_one_flipped_bit_shows_in_the_checksum_or_is_refused(byte, bit):
    old = np.arange(5000, dtype=np.uint16)
    new = changed(old, range(0, 5000, 37))
    changes, difference = find_changes(old.copy(), new)
    part = changes.gaps if byte % 2 else changes.bits.view(np.uint8)
    part[byte // 2 % len(part)] ^= 1 << bit
    held = old.copy()
    try:
        found = apply_changes(held, changes)
    except WeightSyncError:
        assert (held == old).all()
        return
    assert found & MASK != difference & MASK


def test_memory_that_is_no_row_of_units_is_not_patched():
    assert as_units(torch.zeros(4, 4).t()[:2]) is None
    assert as_units(torch.zeros(3, dtype=torch.uint8)) is None
