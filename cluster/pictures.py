"""Decoded pictures that all actors read from Ray's object store."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import ray

from cluster.session import beside, wait_for
from configs.schema import MediaConfig
from data.media import load_pictures
from data.types import Pictures

TIMEOUT_S = 1800.0
"""Longest wait for a step's pictures."""


@dataclass(frozen=True, slots=True)
class SharedPictures:
    """Where they are, and what the driver must know of them without fetching them."""

    ref: Any
    """Of `Pictures`."""
    sizes: Mapping[str, tuple[int, int]]
    """(height, width) by uri."""


def share_pictures(pictures: Pictures) -> SharedPictures:
    """Put pictures into the object store; they leave it with the last one who holds the result."""
    return SharedPictures(ray.put(pictures), _sizes(pictures))


def share_files(
    uris: Iterable[str], limits: MediaConfig
) -> tuple[SharedPictures, Mapping[str, str]]:
    """Decode files into the object store; return also the reason for each that failed.

    A process beside the driver does it.

    Raises:
        ClusterError: it died of it every time, or did not end in time.
    """
    names = sorted(set(uris))
    pictures, facts = beside(_decode, names, limits)
    what = f"decoding {len(names)} pictures, first {names[:1]}"
    [(sizes, failed)] = wait_for([facts], ["the decoder"], timeout_s=TIMEOUT_S, what=what)
    return SharedPictures(pictures, sizes), failed


@ray.remote(num_returns=2)
def _decode(
    uris: list[str], limits: MediaConfig
) -> tuple[Pictures, tuple[dict[str, tuple[int, int]], dict[str, str]]]:
    pictures, failed = load_pictures(uris, limits)
    return pictures, (_sizes(pictures), failed)


def _sizes(pictures: Pictures) -> dict[str, tuple[int, int]]:
    return {uri: pixels.shape[:2] for uri, pixels in pictures.items()}
