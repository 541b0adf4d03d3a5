"""Decoded pictures that all actors read from Ray's object store."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import ray
from ray.exceptions import RayError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from cluster.faults import cause_of
from configs.schema import MediaConfig
from data.errors import ClusterError
from data.media import load_pictures
from data.types import Pictures

RETRIES = 2
"""Times that files are decoded again whose process died."""


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

    A process beside the driver does it, where the driver's files are: the driver has other work,
    and a decoder that crashes does not take it along.

    Raises:
        ClusterError: it crashed every time.
    """
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    names = sorted(set(uris))
    pictures, facts = _decode.options(scheduling_strategy=here).remote(names, limits)
    try:
        sizes, failed = ray.get(facts)
    except RayError as error:
        raise ClusterError(
            f"{len(names)} pictures could not be decoded, first {names[:1]}, as the process that "
            f"should do it failed {RETRIES + 1} times: {cause_of(error)!r}; look for a file that "
            "Pillow crashes on, and for memory that was too little"
        ) from error
    return SharedPictures(pictures, sizes), failed


@ray.remote(num_cpus=0, num_returns=2, max_retries=RETRIES)
def _decode(
    uris: list[str], limits: MediaConfig
) -> tuple[Pictures, tuple[dict[str, tuple[int, int]], dict[str, str]]]:
    pictures, failed = load_pictures(uris, limits)
    return pictures, (_sizes(pictures), failed)


def _sizes(pictures: Pictures) -> dict[str, tuple[int, int]]:
    return {uri: pixels.shape[:2] for uri, pixels in pictures.items()}
