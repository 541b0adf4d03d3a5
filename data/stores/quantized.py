"""Vectors in one byte or one bit a dimension, as sentence-transformers quantizes them.

Shapes: N vectors, D dimensions, Q queries, K hits of a query.
"""

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import numpy as np

from data.errors import DataError

LEVELS = 255
"""Steps between the lowest and the highest code of a dimension; codes are from -128 to 127."""


@dataclass(frozen=True)
class Ranges:
    """The range of each dimension that the 256 codes of int8 divide evenly."""

    low: np.ndarray
    """float32 [D]"""
    high: np.ndarray
    """float32 [D]"""

    @classmethod
    def of(cls, vectors: np.ndarray) -> Self:
        """Return the ranges of the vectors of a corpus, float32 [N, D].

        Raises:
            DataError: they are fewer than two, or no finite numbers.
        """
        if vectors.ndim != 2 or len(vectors) < 2:
            raise DataError(
                f"expected two vectors or more, [N, D], found the shape {list(vectors.shape)}; "
                "take those of the corpus"
            )
        low, high = vectors.min(axis=0), vectors.max(axis=0)
        if not (np.isfinite(low).all() and np.isfinite(high).all()):
            raise DataError("expected finite numbers in all vectors, found others")
        return cls(low.astype(np.float32), high.astype(np.float32))

    def codes(self, vectors: np.ndarray) -> np.ndarray:
        """Return the codes of vectors, int8 [N, D]; what lies outside a range gets its end's.

        Raises:
            DataError: they have other dimensions.
        """
        self._check(vectors)
        steps = np.floor((vectors - self.low) / self._step)
        return (np.clip(steps, 0, LEVELS) - 128).astype(np.int8)

    def vectors(self, codes: np.ndarray) -> np.ndarray:
        """Return the vectors that codes stand for, float32 [N, D]: the middle of each step.

        Raises:
            DataError: they have other dimensions.
        """
        self._check(codes)
        middle = codes.astype(np.float32) + np.float32(128.5)
        return np.where(self.low == self.high, self.low, self.low + middle * self._step)

    def save(self, path: Path) -> None:
        """Write the file, whole or not at all."""
        partial = path.with_name(f".{path.name}.part")
        ranges = {"low": self.low.tolist(), "high": self.high.tolist()}
        partial.write_text(json.dumps(ranges), encoding="utf-8")
        os.replace(partial, path)

    @classmethod
    def load(cls, path: Path) -> Self:
        """Return the ranges in a file of `save`.

        Raises:
            DataError: it is not there, or is none.
        """
        try:
            ranges = json.loads(path.read_text(encoding="utf-8"))
            low, high = (np.array(ranges[name], dtype=np.float32) for name in ("low", "high"))
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise DataError(
                f"{path}: expected ranges as `Ranges.save` writes them, found none ({error!r}); "
                "fit them again"
            ) from error
        if low.ndim != 1 or low.shape != high.shape or not (low <= high).all():
            raise DataError(
                f"{path}: expected a low and a high number for each dimension, found others; fit "
                "the ranges again"
            )
        return cls(low, high)

    @property
    def _step(self) -> np.ndarray:
        step = (self.high - self.low) / np.float32(LEVELS)
        return np.where(step == 0, np.float32(1), step)

    def _check(self, vectors: np.ndarray) -> None:
        if vectors.shape[-1:] != self.low.shape:
            raise DataError(
                f"expected vectors of {len(self.low)} dimensions, as the ranges have, found the "
                f"shape {list(vectors.shape)}"
            )


def packed_bits(vectors: np.ndarray) -> np.ndarray:
    """Return whether each number is above 0, uint8 [N, D / 8 rounded up], first in the highest bit.

    sentence-transformers calls this `ubinary`.
    """
    return np.packbits(vectors > 0, axis=-1)


def rescored(
    queries: np.ndarray,
    hits: np.ndarray,
    vectors: np.ndarray,
    k: int,
    *,
    ranges: Ranges | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """Return the ``k`` most similar of each query's hits, best first, and their similarities.

    Args:
        queries: float32 [Q, D], unit vectors.
        hits: int64 [Q, K], places in ``vectors``, for instance the nearest by packed bits.
        vectors: of the corpus, float32 [N, D], or with ``ranges`` their codes, int8 [N, D]; it may
            be mapped from a file, of which the hits alone are read.

    Returns:
        int64 and float32 [Q, min(k, K)]; among equal similarities the lower place comes first.

    Raises:
        DataError: a hit is no place in ``vectors``.
    """
    if hits.size and not 0 <= hits.min() <= hits.max() < len(vectors):
        raise DataError(
            f"expected hits from 0 to {len(vectors) - 1}, found {hits.min()} to {hits.max()}"
        )
    # By place first, as the sort by similarity keeps the order of equal ones.
    places = np.sort(hits, axis=1)
    rows = vectors[places]
    if ranges is not None:
        rows = ranges.vectors(rows)
    similarities = np.einsum("qd,qkd->qk", queries, rows, dtype=np.float32)
    order = np.argsort(-similarities, axis=1, kind="stable")[:, :k]
    return np.take_along_axis(places, order, 1), np.take_along_axis(similarities, order, 1)
