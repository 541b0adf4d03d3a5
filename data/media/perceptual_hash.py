"""Perceptual hashes: close for pictures that look alike, however their files store them."""

import numpy as np
from PIL import Image

COARSE_BYTES, FINE_BYTES, CELLS = 8, 32, 4
HASH_BYTES = COARSE_BYTES + FINE_BYTES + CELLS * CELLS * 3
MOST_COARSE, MOST_FINE = 7, 40
"""Bits in which the hashes of alike pictures differ at most, of 63 and of 255."""
MOST_TINT = 8.0
"""Mean difference of the cells' colours, without brightness, in levels from 0 to 255, up to which
pictures look alike; a red and a blue heart differ by more."""
LEAST_CONTRAST = 2.0
"""Standard deviation, in grey levels, below which a hash would be made of noise."""

_SIDE = 32
_STEPS = np.arange(_SIDE)
_COSINES = np.cos(np.pi / (2 * _SIDE) * _STEPS[:, None] * (2 * _STEPS[None, :] + 1))


def perceptual_hash(pixels: np.ndarray) -> bytes:
    """Return a hash of `HASH_BYTES` bytes of a picture, uint8 [H, W, 3]; empty for a blank one.

    It has three parts: which of the 8 x 8 lowest frequencies of the grey picture (DCT of 32 x 32
    pixels, without the mean) are above their median, the same of the 16 x 16 lowest, and the mean
    colours of 4 x 4 cells.
    """
    image = Image.fromarray(pixels)
    grey = image.convert("L").resize((_SIDE, _SIDE), Image.Resampling.LANCZOS, reducing_gap=3)
    levels = np.asarray(grey, np.float64)
    if levels.std() < LEAST_CONTRAST:
        return b""
    waves = _COSINES @ levels @ _COSINES.T
    colours = image.resize((CELLS, CELLS), Image.Resampling.BOX, reducing_gap=3)
    return _bits(waves[:8, :8]) + _bits(waves[:16, :16]) + np.asarray(colours).tobytes()


def similarity(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Return how alike pictures are by their hashes, uint8 [N, HASH_BYTES] each: float [N].

    It is the share of equal bits of the fine part, and 0 where the pictures do not look alike: any
    part differs by more than its bound.
    """
    coarse, fine = slice(COARSE_BYTES), slice(COARSE_BYTES, COARSE_BYTES + FINE_BYTES)
    coarse_bits, fine_bits = (
        np.bitwise_count(first[:, part] ^ second[:, part]).sum(axis=1) for part in (coarse, fine)
    )
    tint = np.abs(_tints(first) - _tints(second)).mean(axis=(1, 2))
    alike = (coarse_bits <= MOST_COARSE) & (fine_bits <= MOST_FINE) & (tint <= MOST_TINT)
    return np.where(alike, 1 - fine_bits / (8 * FINE_BYTES - 1), 0.0)


def _bits(waves: np.ndarray) -> bytes:
    values = waves.ravel()[1:]
    return np.packbits(values > np.median(values)).tobytes()


def _tints(hashes: np.ndarray) -> np.ndarray:
    """Return the cells' colours without their brightness, float [N, cells, 3]."""
    colours = hashes[:, COARSE_BYTES + FINE_BYTES :].reshape(-1, CELLS * CELLS, 3)
    return colours - colours.mean(axis=2, keepdims=True, dtype=np.float32)
