"""Loops of `data.checksum` and `data.delta`, compiled by numba at the first call.

Import it where it is used: it takes half a second, and vLLM's CPU workers do not start in a
process that has loaded numba before. None of it allocates much or holds the interpreter's lock.
"""

from typing import Any

import numpy as np
from numba import njit

from data.checksum import BLOCK_WORDS, FACTORS
from data.delta import SKIP

BLOCK = BLOCK_WORDS // 2
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
    """Return the blocks' weighted sum, uint64; reads uint32 [n] at the memory's own speed."""
    total = np.uint64(0)
    for start in range(0, len(words), BLOCK_WORDS):
        block = words[start : start + BLOCK_WORDS]
        own = np.uint64(0)
        for i in range(len(block)):
            own += np.uint64(block[i]) * np.uint64(weights[i])
        total += own * block_weight(np.uint64(start // BLOCK_WORDS + 1))
    return total


@njit(nogil=True)
def find(held: Any, new: Any, gaps: Any, bits: Any, most: Any, weights: Any) -> Any:
    """Return the number of gaps and of units, and the checksums' difference.

    It stops where there are more units than ``most``.
    """
    num_gaps, num_bits, last = 0, 0, -1
    total = np.uint64(0)
    low = np.uint64(0xFFFFFFFF)
    half = np.uint64(32)
    whole = len(held) // 4 * 4
    held64 = held[:whole].view(np.uint64)
    new64 = new[:whole].view(np.uint64)
    hits = np.empty(BLOCK + 1, np.int32)
    for start in range(0, len(held64), BLOCK):
        if num_bits > most:
            return num_gaps, num_bits, total
        old_words = held64[start : start + BLOCK]
        new_words = new64[start : start + BLOCK]
        found = 0
        # Without a branch: half of all cache lines hold a change where one unit in fifty does.
        for i in range(len(old_words)):
            hits[found] = i
            found += old_words[i] != new_words[i]
        own = np.uint64(0)
        for hit in range(found):
            i = hits[hit]
            x = old_words[i]
            y = new_words[i]
            old_words[i] = y
            own += ((y & low) - (x & low)) * np.uint64(weights[2 * i])
            own += ((y >> half) - (x >> half)) * np.uint64(weights[2 * i + 1])
            differing = x ^ y
            unit = 4 * (start + i)
            while differing != np.uint64(0):
                if differing & np.uint64(0xFFFF):
                    gap = unit - last - 1
                    while gap >= SKIP:
                        gaps[num_gaps] = SKIP
                        num_gaps += 1
                        gap -= SKIP
                    gaps[num_gaps] = gap
                    num_gaps += 1
                    bits[num_bits] = y & np.uint64(0xFFFF)
                    num_bits += 1
                    last = unit
                differing >>= np.uint64(16)
                y >>= np.uint64(16)
                unit += 1
        total += own * block_weight(np.uint64(start // BLOCK + 1))
    for unit in range(whole, len(held)):
        x = np.uint64(held[unit])
        y = np.uint64(new[unit])
        if x == y:
            continue
        held[unit] = new[unit]
        gap = unit - last - 1
        while gap >= SKIP:
            gaps[num_gaps] = SKIP
            num_gaps += 1
            gap -= SKIP
        gaps[num_gaps] = gap
        num_gaps += 1
        bits[num_bits] = new[unit]
        num_bits += 1
        last = unit
        word = unit // 2
        own = ((y - x) << np.uint64(16 * (unit % 2))) * np.uint64(weights[word % BLOCK_WORDS])
        total += own * block_weight(np.uint64(word // BLOCK_WORDS + 1))
    return num_gaps, num_bits, total


@njit(nogil=True)
def apply(held: Any, gaps: Any, bits: Any, weights: Any) -> Any:
    """Return whether gaps and bits fit, and the checksums' difference."""
    total = np.uint64(0)
    own = np.uint64(0)
    unit, done = -1, 0
    block = np.int64(0)
    block_end = 2 * BLOCK_WORDS
    for gap in gaps:
        if gap == SKIP:
            unit += SKIP
            continue
        unit += np.int64(gap) + 1
        if unit >= len(held) or done >= len(bits):
            return False, total
        if unit >= block_end:
            total += own * block_weight(np.uint64(block + 1))
            own = np.uint64(0)
            block = unit // (2 * BLOCK_WORDS)
            block_end = (block + 1) * 2 * BLOCK_WORDS
        x = np.uint64(held[unit])
        y = np.uint64(bits[done])
        held[unit] = bits[done]
        done += 1
        weight = np.uint64(weights[(unit >> 1) & (BLOCK_WORDS - 1)])
        own += ((y - x) << np.uint64((unit & 1) << 4)) * weight
    return done == len(bits), total + own * block_weight(np.uint64(block + 1))
