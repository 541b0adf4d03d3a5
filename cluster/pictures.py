"""Decoded pictures that all actors read from Ray's object store."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import ray

from data.types import Pictures


@dataclass(frozen=True, slots=True)
class SharedPictures:
    """Where they are, and what the driver must know of them without fetching them."""

    ref: Any
    """Of `Pictures`."""
    sizes: Mapping[str, tuple[int, int]]
    """(height, width) by uri."""


def share_pictures(pictures: Pictures) -> SharedPictures:
    """Put pictures into the object store; they leave it with the last one who holds the result."""
    sizes = {uri: pixels.shape[:2] for uri, pixels in pictures.items()}
    return SharedPictures(ray.put(pictures), sizes)
