"""Loops of `data.weights.checksum` and `data.weights.delta`, compiled by numba at the first call.

Import this file where it is used: the import takes a while, and vLLM's CPU workers do not start in
a process that has loaded numba. No loop allocates much or holds the interpreter's lock.
"""

from typing import Any

import numpy as np
from numba import njit

from data.weights.constants import BLOCK_WORDS, FACTORS, SKIP

BLOCK_WORDS64 = BLOCK_WORDS // 2
"""64-bit words scanned at a time: one block of the checksum."""


@njit(nogil=True)
def block_weight(place: Any) -> Any:
    """Return the odd weight of a block, uint64; block 0 are the bytes' number."""
    mixed = (place + np.uint64(1)) * np.uint64(FACTORS[0])
    mixed ^= mixed >> np.uint64(30)
    mixed = (mixed + np.uint64(1)) * np.uint64(FACTORS[1])
    mixed ^= mixed >> np.uint64(27)
    return mixed | np.uint64(1)


@njit(nogil=True)
def sum_words(words: Any, weights: Any) -> Any:
    """Return the blocks' weighted sum, uint64, of uint32 [n]."""
    total = np.uint64(0)
    for start in range(0, len(words), BLOCK_WORDS):
        block = words[start : start + BLOCK_WORDS]
        own = np.uint64(0)
        for i in range(len(block)):
            own += np.uint64(block[i]) * np.uint64(weights[i])
        total += own * block_weight(np.uint64(start // BLOCK_WORDS + 1))
    return total


@njit(nogil=True)
def copy_words(to: Any, source: Any, weights: Any) -> Any:
    """Copy uint32 [n] and return the same sum of the words that were written."""
    total = np.uint64(0)
    for start in range(0, len(source), BLOCK_WORDS):
        block = to[start : start + BLOCK_WORDS]
        new = source[start : start + BLOCK_WORDS]
        own = np.uint64(0)
        # In one loop: it runs as fast as the bare copy.
        for i in range(len(block)):
            word = new[i]
            block[i] = word
            own += np.uint64(word) * np.uint64(weights[i])
        total += own * block_weight(np.uint64(start // BLOCK_WORDS + 1))
    return total


@njit(nogil=True)
def find(held: Any, new: Any, gaps: Any, bits: Any, most: Any, weights: Any) -> Any:
    """Return the number of gaps and of units, and the checksums' difference.

    It stops where there are more units than ``most``. Numbers are unsigned, because an index that
    could be negative costs a comparison.
    """
    one, zero, skip = np.uint64(1), np.uint64(0), np.uint64(SKIP)
    quarter, low, three = np.uint64(0xFFFF), np.uint64(0xFFFFFFFF), np.uint64(0xFFFFFFFFFFFF)
    half, sixteen = np.uint64(32), np.uint64(4)
    num_gaps, num_bits, free = zero, zero, zero  # the last: the unit after the last change
    total = zero
    whole = len(held) // 4 * 4
    held64 = held[:whole].view(np.uint64)
    new64 = new[:whole].view(np.uint64)
    hits = np.empty(BLOCK_WORDS64 + 1, np.uint32)
    for start in range(0, len(held64), BLOCK_WORDS64):
        if num_bits > most:
            return num_gaps, num_bits, total
        old_words = held64[start : start + BLOCK_WORDS64]
        new_words = new64[start : start + BLOCK_WORDS64]
        num_hits = zero
        # Without a branch: half of all cache lines hold a change where one unit in fifty does.
        for i in range(len(old_words)):
            hits[num_hits] = i
            num_hits += np.uint64(old_words[i] != new_words[i])
        own = zero
        first = np.uint64(4 * start)
        for hit in range(num_hits):
            i = np.uint64(hits[hit])
            x = old_words[i]
            y = new_words[i]
            old_words[i] = y
            own += ((y & low) - (x & low)) * np.uint64(weights[i + i])
            own += ((y >> half) - (x >> half)) * np.uint64(weights[i + i + one])
            differing = x ^ y
            while differing != zero:
                lane = np.uint64((differing & quarter) == zero)
                lane += np.uint64((differing & low) == zero)
                lane += np.uint64((differing & three) == zero)
                unit = first + np.uint64(4) * i + lane
                gap = unit - free
                while gap >= skip:
                    gaps[num_gaps] = SKIP
                    num_gaps += one
                    gap -= skip
                gaps[num_gaps] = gap
                num_gaps += one
                shift = lane << sixteen
                bits[num_bits] = (y >> shift) & quarter
                num_bits += one
                free = unit + one
                differing &= ~(quarter << shift)
        total += own * block_weight(np.uint64(start // BLOCK_WORDS64 + 1))
    for place in range(whole, len(held)):
        unit = np.uint64(place)
        x = np.uint64(held[unit])
        y = np.uint64(new[unit])
        if x == y:
            continue
        held[unit] = y
        gap = unit - free
        while gap >= skip:
            gaps[num_gaps] = SKIP
            num_gaps += one
            gap -= skip
        gaps[num_gaps] = gap
        num_gaps += one
        bits[num_bits] = y
        num_bits += one
        free = unit + one
        total += _weighed(x, y, unit, weights) * block_weight(
            unit // np.uint64(2 * BLOCK_WORDS) + one
        )
    return num_gaps, num_bits, total


@njit(nogil=True)
def _weighed(x: Any, y: Any, unit: Any, weights: Any) -> Any:
    """Return by how much the sum of a block differs where a unit ``x`` becomes ``y``."""
    word = (unit >> np.uint64(1)) & np.uint64(BLOCK_WORDS - 1)
    shift = (unit & np.uint64(1)) << np.uint64(4)
    return ((y - x) << shift) * np.uint64(weights[word])


@njit(nogil=True)
def apply(held: Any, gaps: Any, bits: Any, weights: Any) -> Any:
    """Return whether gaps and bits fit, and the checksums' difference.

    Where they do not, nothing is written.
    """
    one, zero = np.uint64(1), np.uint64(0)
    reach, changed = zero, zero
    for index in range(len(gaps)):
        reach += np.uint64(gaps[index])
        changed += np.uint64(gaps[index] != SKIP)
    if changed != np.uint64(len(bits)) or reach + changed > np.uint64(len(held)):
        return False, zero
    total, own, unit, done, block = zero, zero, zero, zero, zero
    block_units = np.uint64(2 * BLOCK_WORDS)
    block_end = block_units
    for index in range(len(gaps)):
        gap = gaps[index]
        unit += np.uint64(gap)
        if gap == SKIP:
            continue
        if unit >= block_end:
            total += own * block_weight(block + one)
            own = zero
            block = unit // block_units
            block_end = (block + one) * block_units
        x = np.uint64(held[unit])
        y = np.uint64(bits[done])
        held[unit] = y
        own += _weighed(x, y, unit, weights)
        done += one
        unit += one
    return True, total + own * block_weight(block + one)
