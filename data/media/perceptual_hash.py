"""Perceptual hashes: close for pictures that look alike, however their files store them."""

import numpy as np
from PIL import Image

COARSE_BYTES, FINE_BYTES, CELLS = 8, 32, 4
HASH_BYTES = COARSE_BYTES + FINE_BYTES + CELLS * CELLS * 3
MOST_COARSE, MOST_FINE = 7, 40
"""Bits in which the hashes of alike pictures differ at most, of 63 and of 255."""
MOST_TINT = 0.25
"""Largest distance of the inks of two cells that look alike, as a share of the longer ink and
`WEAK_INK` together. It was measured: copies stay below it; a shape of the demo that becomes orange
instead of yellow, its nearest two colours, is above it."""
WEAK_INK, PALE = 40.0, 35.0
"""Levels. A difference of inks that is small beside the first one, and colours that are small
beside the second one in the mean of a cell, hardly count: copies differ by so much."""
LEAST_CONTRAST = 2.0
"""Standard deviation, in grey levels, below which a hash would be made of noise."""

_SIDE, _INK_SIDE = 32, 64
_INK_UNIT = 2
_STEPS = np.arange(_SIDE)
_COSINES = np.cos(np.pi / (2 * _SIDE) * _STEPS[:, None] * (2 * _STEPS[None, :] + 1))


def perceptual_hash(pixels: np.ndarray) -> bytes:
    """Return a hash of `HASH_BYTES` bytes of a picture, uint8 [H, W, 3]; empty for a blank one.

    It has three parts: which of the 8 x 8 lowest frequencies of the grey picture (DCT of 32 x 32
    pixels, without the mean) are above their median, the same of the 16 x 16 lowest, and the inks
    of 4 x 4 cells.
    """
    image = Image.fromarray(pixels)
    grey = image.convert("L").resize((_SIDE, _SIDE), Image.Resampling.LANCZOS, reducing_gap=3)
    levels = np.asarray(grey, np.float64)
    if levels.std() < LEAST_CONTRAST:
        return b""
    waves = _COSINES @ levels @ _COSINES.T
    return _bits(waves[:8, :8]) + _bits(waves[:16, :16]) + _inks(image)


def similarity(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Return how alike pictures are by their hashes, uint8 [N, HASH_BYTES] each: float [N].

    It is the share of equal bits of the fine part, and 0 where the pictures do not look alike: the
    bits of a part, or the ink of any cell, differ by more than the bound.
    """
    coarse, fine = slice(COARSE_BYTES), slice(COARSE_BYTES, COARSE_BYTES + FINE_BYTES)
    coarse_bits, fine_bits = (
        np.bitwise_count(first[:, part] ^ second[:, part]).sum(axis=1) for part in (coarse, fine)
    )
    inks, others = (
        hashes[:, COARSE_BYTES + FINE_BYTES :].view(np.int8).reshape(-1, CELLS * CELLS, 3)
        * np.float32(_INK_UNIT)
        for hashes in (first, second)
    )
    distance, length, other_length = (
        np.linalg.norm(vectors, axis=2) for vectors in (inks - others, inks, others)
    )
    most = MOST_TINT * (np.maximum(length, other_length) + WEAK_INK)
    alike = (coarse_bits <= MOST_COARSE) & (fine_bits <= MOST_FINE)
    alike &= (distance <= most).all(axis=1)
    return np.where(alike, 1 - fine_bits / (8 * FINE_BYTES - 1), 0.0)


def _bits(waves: np.ndarray) -> bytes:
    values = waves.ravel()[1:]
    return np.packbits(values > np.median(values)).tobytes()


def _inks(image: Image.Image) -> bytes:
    """Return the inks of a picture's cells, int8 [cells, 3], in units of `_INK_UNIT` levels.

    A cell's ink is the mean of its pixels' tints, which are their colours without brightness. A
    pixel weighs by the square of its tint, so that a small shape on a white page counts and the
    page does not. Cells overlap, and a pixel weighs the less the further it is from the middle of
    the cell: what a crop moves over a border hardly weighs.
    """
    size = (_INK_SIDE, _INK_SIDE)
    colours = np.asarray(image.resize(size, Image.Resampling.BOX, reducing_gap=3), np.float64)
    tints = colours - colours.mean(axis=2, keepdims=True)
    squares = (tints**2).sum(axis=2, keepdims=True)
    # Planes, [1 + 3, side, side], so that the cells' windows multiply each.
    planes = np.moveaxis(np.concatenate([squares, squares * tints], axis=2), 2, 0)
    weight, *sums = _WINDOWS @ planes @ _WINDOWS.T
    inks = np.stack(sums, axis=-1) / (weight + PALE**2)[..., None]
    return np.rint(inks / _INK_UNIT).astype(np.int8).tobytes()


def _windows() -> np.ndarray:
    """Return how much each row of pixels weighs in each row of cells, [CELLS, _INK_SIDE]."""
    places = (np.arange(_INK_SIDE) + 0.5) * CELLS / _INK_SIDE - 0.5
    weights = np.maximum(0.0, 1 - np.abs(places - np.arange(CELLS)[:, None]))
    return weights / weights.sum(axis=1, keepdims=True)


_WINDOWS = _windows()
