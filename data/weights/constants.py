"""What `checksum`, `delta` and `kernels` must agree on; imports nothing, so all may import it."""

BLOCK_WORDS = 1 << 12
"""32-bit words that are summed up under one table of weights, which stays in a core's cache."""
FACTORS = (0xBF58476D1CE4E5B9, 0x94D049BB133111EB)
"""Factors of the mix that gives each place its weight."""
MASK = (1 << 64) - 1
"""Bit mask for sums modulo 2^64."""
SKIP = 255
"""A gap of this value is no change: it skips so many units."""
