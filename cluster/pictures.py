"""Decoded pictures that all actors read from Ray's object store."""

import logging
from collections.abc import Iterable, Mapping, Set
from dataclasses import dataclass
from typing import Any

import ray

from cluster.side_process import SideProcess
from configs.common import MediaConfig
from data.errors import ActorLost
from data.media.pictures import load_pictures
from data.types import Pictures

log = logging.getLogger(__name__)
DECODE_TIMEOUT_S = 1800.0
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


class Decoder:
    """Decodes files into the object store; a process beside the driver does it."""

    def __init__(self) -> None:
        self._process = SideProcess("the decoder")

    def share(
        self, uris: Iterable[str], limits: MediaConfig, *, frames: Set[str] = frozenset()
    ) -> tuple[SharedPictures, Mapping[str, str]]:
        """Decode files; return also the reason for each that failed.

        Files that end the process each time are sought, and failed too. ``frames`` as in
        `load_pictures`.

        Raises:
            ClusterError: it did not end in time, or failed though no single file makes it fail.
            DataError: together they hold more than ``limits.max_step_bytes``.
        """
        names = sorted(set(uris))
        try:
            return self._share(names, limits, frames)
        except ActorLost as error:
            log.warning("%s; looking for the files that end it", error)
            deadly = {
                uri: f"{uri}: ends the process that decodes it; replace or remove it"
                for uri in self._deadly(names, limits, frames)
            }
            if not deadly:
                raise
            harmless_names = [name for name in names if name not in deadly]
            shared, failed = self._share(harmless_names, limits, frames)
            return shared, {**failed, **deadly}

    def close(self) -> None:
        """End the process."""
        self._process.close()

    def _share(
        self, names: list[str], limits: MediaConfig, frames: Set[str]
    ) -> tuple[SharedPictures, Mapping[str, str]]:
        what = f"decoding {len(names)} pictures, first {names[:1]}"
        [pictures], (sizes, failed) = self._process.run(
            _decode, names, limits, frames, what=what, timeout_s=DECODE_TIMEOUT_S, returns=2
        )
        return SharedPictures(pictures, sizes), failed

    def _deadly(self, names: list[str], limits: MediaConfig, frames: Set[str]) -> list[str]:
        """Return the files that end the decoder by themselves, of files that together end it."""
        if len(names) == 1:
            return names
        deadly = []
        for half in (names[: len(names) // 2], names[len(names) // 2 :]):
            try:
                self._share(half, limits, frames)
            except ActorLost:
                deadly += self._deadly(half, limits, frames)
        return deadly


def _decode(
    uris: list[str], limits: MediaConfig, frames: Set[str]
) -> tuple[Pictures, tuple[dict[str, tuple[int, int]], dict[str, str]]]:
    pictures, failed = load_pictures(uris, limits, frames=frames)
    return pictures, (_sizes(pictures), failed)


def _sizes(pictures: Pictures) -> dict[str, tuple[int, int]]:
    return {uri: pixels.shape[:2] for uri, pixels in pictures.items()}
