"""Decoded pictures that all actors read from Ray's object store, and who decodes them: a process on
each node, never the driver.
"""

import logging
import threading
from collections.abc import Iterable, Mapping, Sequence, Set
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import ray

from cluster.side_process import SideProcess
from configs.common import MediaConfig
from data.errors import ActorLost, ClusterError
from data.media.pictures import check_bytes, decoded_together, load_pictures
from data.types import Pictures

log = logging.getLogger(__name__)
DECODE_TIMEOUT_S = 1800.0
"""Longest wait for a step's pictures on one node."""
LEAST_GROUPS = 16
"""Of `decoded_together`, for each node: fewer are decoded sooner than another node has answered."""


@dataclass(frozen=True, slots=True)
class SharedPictures:
    """Where they are, and what the driver must know of them without fetching them."""

    refs: tuple[Any, ...]
    """Of `Pictures`, each a part; an actor gets them as arguments, see `data.types.together`."""
    sizes: Mapping[str, tuple[int, int]]
    """(height, width) by uri."""
    decoders: tuple[SideProcess, ...] = ()
    """Who decoded them. As long as these are there, Ray has them decode again what was lost."""


def join_pictures(shared: Iterable[SharedPictures]) -> SharedPictures:
    """Return pictures that were shared apart as one, nothing is fetched; of a file the last."""
    parts = list(shared)
    return SharedPictures(
        refs=tuple(ref for part in parts for ref in part.refs),
        sizes={uri: size for part in parts for uri, size in part.sizes.items()},
        decoders=tuple(decoder for part in parts for decoder in part.decoders),
    )


class Decoder:
    """Decodes files into the object store: a process on each node, and beside the driver.

    One process a node: its threads decode on several cores, as Pillow and FFmpeg let other threads
    run meanwhile, and a task's process would not live until the next step (`SideProcess`). None
    asks for a CPU, so that each finds its place where actors hold all of them.

    The process beside the driver has the last word: what another one cannot decode (files that its
    node lacks, files that end it, a node that goes away) is decoded there again.
    """

    def __init__(self) -> None:
        self._here = SideProcess("the decoder")
        self._elsewhere: dict[str, SideProcess] = {}
        """By node."""
        self._left_out: set[str] = set()
        """Nodes whose process did not answer, or got no place: each such wait is long."""
        self._lock = threading.Lock()
        """Guards both: several threads share pictures."""

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
        groups = decoded_together(sorted(set(uris)))
        others = self._others(len(groups) // LEAST_GROUPS)
        count = 1 + len(others)
        own, *shares = ([uri for group in groups[i::count] for uri in group] for i in range(count))
        with ThreadPoolExecutor(count) as threads:
            calls = [
                threads.submit(self._share_there, node, process, share, limits, frames)
                for (node, process), share in zip(others.items(), shares, strict=True)
            ]
            parts = [self._share_here(own, limits, frames), *(call.result() for call in calls)]
        shared = join_pictures(part for part, _ in parts)
        check_bytes({uri: 3 * h * w for uri, (h, w) in shared.sizes.items()}, limits.max_step_bytes)
        return shared, {uri: reason for _, failed in parts for uri, reason in failed.items()}

    def close(self) -> None:
        """End the processes."""
        with self._lock:
            for process in (self._here, *self._elsewhere.values()):
                process.close()

    def _others(self, most: int) -> dict[str, SideProcess]:
        """Return the processes on other nodes, by node, no more than ``most``."""
        if most < 1:
            return {}
        here = ray.get_runtime_context().get_node_id()
        alive = sorted(node["NodeID"] for node in ray.nodes() if node["Alive"])
        with self._lock:
            nodes = [node for node in alive if node != here and node not in self._left_out][:most]
            for node in self._elsewhere.keys() - set(alive):
                del self._elsewhere[node]
            for node in nodes:
                if node not in self._elsewhere:
                    self._elsewhere[node] = SideProcess(f"the decoder on node {node}", node=node)
            return {node: self._elsewhere[node] for node in nodes}

    def _share_there(
        self,
        node: str,
        process: SideProcess,
        names: list[str],
        limits: MediaConfig,
        frames: Set[str],
    ) -> tuple[SharedPictures, Mapping[str, str]]:
        """Have a share decoded on another node; what fails there, beside the driver."""
        try:
            shared, failed = _share(process, names, limits, frames)
        except ClusterError as error:
            log.warning("%s; decoded beside the driver", error)
            if not isinstance(error, ActorLost):
                with self._lock:
                    self._left_out.add(node)
            return self._share_here(names, limits, frames)
        again, reasons = self._share_here(sorted(failed), limits, frames)
        if again.sizes:
            log.warning(
                "%d pictures could be decoded on the driver's node only: are the folders in data "
                "on all nodes? %s",
                len(again.sizes),
                failed[next(iter(again.sizes))],
            )
        return join_pictures([shared, again]), reasons

    def _share_here(
        self, names: list[str], limits: MediaConfig, frames: Set[str]
    ) -> tuple[SharedPictures, Mapping[str, str]]:
        try:
            return _share(self._here, names, limits, frames)
        except ActorLost as error:
            log.warning("%s; looking for the files that end it", error)
            deadly = {
                uri: f"{uri}: ends the process that decodes it; replace or remove it"
                for uri in self._deadly(names, limits, frames)
            }
            if not deadly:
                raise
            harmless_names = [name for name in names if name not in deadly]
            shared, failed = _share(self._here, harmless_names, limits, frames)
            return shared, {**failed, **deadly}

    def _deadly(self, names: list[str], limits: MediaConfig, frames: Set[str]) -> list[str]:
        """Return the files that end the decoder by themselves, of files that together end it."""
        if len(names) == 1:
            return names
        deadly = []
        for half in (names[: len(names) // 2], names[len(names) // 2 :]):
            try:
                _share(self._here, half, limits, frames)
            except ActorLost:
                deadly += self._deadly(half, limits, frames)
        return deadly


def _share(
    process: SideProcess, names: Sequence[str], limits: MediaConfig, frames: Set[str]
) -> tuple[SharedPictures, Mapping[str, str]]:
    if not names:
        return SharedPictures((), {}), {}
    what = f"decoding {len(names)} pictures, first {names[:1]}"
    refs, (sizes, failed) = process.run(
        _decode, names, limits, frames, what=what, timeout_s=DECODE_TIMEOUT_S, returns=2
    )
    return SharedPictures(tuple(refs), sizes, (process,)), failed


def _decode(
    uris: list[str], limits: MediaConfig, frames: Set[str]
) -> tuple[Pictures, tuple[dict[str, tuple[int, int]], dict[str, str]]]:
    pictures, failed = load_pictures(uris, limits, frames=frames)
    return pictures, ({uri: pixels.shape[:2] for uri, pixels in pictures.items()}, failed)
