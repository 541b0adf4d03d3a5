"""Decoded pictures that all actors read from Ray's object store, and who decodes them: processes on
all nodes, never the driver.
"""

import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence, Set
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, TypeVar

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from cluster.faults import wait_for
from cluster.side_process import RETRIES, SideProcess
from configs.common import MediaConfig
from data.errors import ActorLost, ClusterError, TooManyBytes
from data.media.frames import frames_only
from data.media.pictures import check_bytes, decoded_together, load_pictures
from data.types import Content, Pictures, pictures_in

RequestT = TypeVar("RequestT")
log = logging.getLogger(__name__)
DECODE_TIMEOUT_S = 1800.0
"""Longest wait for a step's pictures on one node."""
LEAST_GROUPS = 16
"""Least number of groups of `decoded_together` for each node: another node's answer takes longer
than to decode fewer here."""


@dataclass(frozen=True, slots=True)
class SharedPictures:
    """References to decoded pictures, and their sizes, which the driver needs without pixels."""

    refs: tuple[Any, ...]
    """Of Ray, each to a `Pictures`. Pass each as an argument, `*refs`: then an actor gets the
    pictures, and makes them one by `data.types.merge_pictures`."""
    sizes: Mapping[str, tuple[int, int]]
    """(height, width) by uri."""


def join_pictures(shared: Iterable[SharedPictures]) -> SharedPictures:
    """Return several `SharedPictures` as one, without fetching pixels. If a file is in several, the
    last one counts."""
    parts = list(shared)
    return SharedPictures(
        refs=tuple(ref for part in parts for ref in part.refs),
        sizes={uri: size for part in parts for uri, size in part.sizes.items()},
    )


class Decoder:
    """Decodes files into the object store: a process beside the driver, a task on each other node.

    One process a node: its threads decode on several cores, as Pillow and FFmpeg let other threads
    run meanwhile. None asks for a CPU, so that each finds its place where actors hold all of them.
    On other nodes it is a Ray task, because Ray repeats a task elsewhere if its result is lost with
    a node. Beside the driver it is an actor (`SideProcess`), because most runs have one node and
    steps of about a second, and a new process would take seconds to start.

    The process beside the driver has the last word: what a task cannot decode (files that its node
    lacks, files that end it, a node that goes away) is decoded there again.
    """

    def __init__(self) -> None:
        self._process = SideProcess("the decoder")
        self._skipped_nodes: set[str] = set()
        """Nodes whose decoder failed or did not answer; not asked again in this job, as each such
        wait is long."""

    def share(
        self, uris: Iterable[str], limits: MediaConfig, *, frames: Set[str] = frozenset()
    ) -> tuple[SharedPictures, Mapping[str, str]]:
        """Decode files; return also the reason for each that failed.

        Files that end the process each time are sought, and failed too. ``frames`` as in
        `load_pictures`.

        Raises:
            ClusterError: it did not end in time, or failed though no single file makes it fail.
            TooManyBytes: together they hold more than ``limits.max_step_bytes``.
        """
        groups = decoded_together(sorted(set(uris)))
        others = self._others(len(groups) // LEAST_GROUPS - 1)
        count = 1 + len(others)
        portions = ([uri for group in groups[i::count] for uri in group] for i in range(count))
        own, *rest = portions
        with ThreadPoolExecutor(count) as threads:
            calls = [
                threads.submit(self._share_there, node, portion, limits, frames)
                for node, portion in zip(others, rest, strict=True)
            ]
            parts = [self._share_here(own, limits, frames), *(call.result() for call in calls)]
        shared = join_pictures(part for part, _ in parts)
        check_bytes({uri: 3 * h * w for uri, (h, w) in shared.sizes.items()}, limits.max_step_bytes)
        return shared, {uri: reason for _, failed in parts for uri, reason in failed.items()}

    def share_blocks(
        self,
        requests: Sequence[RequestT],
        contents: Sequence[Content],
        limits: MediaConfig,
        *,
        block: int,
    ) -> Iterator[tuple[Sequence[RequestT], SharedPictures, Mapping[str, str]]]:
        """Yield ``block`` requests after another, with the pictures of their contents; as `share`.

        A block whose pictures hold more than ``limits.max_step_bytes`` is yielded in halves. All
        pictures of a single request that holds more have failed. What was shared for a block is
        freed once nobody refers to it any more.
        """
        for start in range(0, len(requests), block):
            asked, read = requests[start : start + block], contents[start : start + block]
            shown = {picture for content in read for picture in pictures_in(content)}
            uris = {picture.uri for picture in shown}
            try:
                shared, failed = self.share(uris, limits, frames=frames_only(shown))
            except TooManyBytes as error:
                if len(asked) > 1:
                    half = -(-len(asked) // 2)
                    yield from self.share_blocks(asked, read, limits, block=half)
                    continue
                shared, failed = SharedPictures((), {}), dict.fromkeys(uris, str(error))
            yield asked, shared, failed

    def close(self) -> None:
        """End the process beside the driver; the others end with their tasks."""
        self._process.close()

    def _others(self, most: int) -> list[str]:
        """Return other nodes, no more than ``most``."""
        if most < 1:
            return []
        here = ray.get_runtime_context().get_node_id()
        alive = {node["NodeID"] for node in ray.nodes() if node["Alive"]}
        return sorted(alive - {here} - self._skipped_nodes)[:most]

    def _share_there(
        self, node: str, names: list[str], limits: MediaConfig, frames: Set[str]
    ) -> tuple[SharedPictures, Mapping[str, str]]:
        """Have a portion decoded on another node; what fails there, beside the driver."""
        try:
            place = NodeAffinitySchedulingStrategy(node, soft=True)
            options = {"num_cpus": 0, "num_returns": 2, "max_retries": RETRIES}
            task = ray.remote(_decode).options(**options, scheduling_strategy=place)
            pictures, answer = task.remote(names, limits, frames)
            [answered] = wait_for(
                [answer],
                [f"the decoder on node {node}"],
                timeout_s=DECODE_TIMEOUT_S,
                what=_what(names),
            )
            sizes, failed = _sizes_and_reasons(answered)
        except ClusterError as error:
            again = ""
            if not isinstance(error, ActorLost):
                self._skipped_nodes.add(node)
                again = f", and node {node} is not asked again in this job"
            log.warning("%s; decoded beside the driver%s", error, again)
            return self._share_here(names, limits, frames)
        again, reasons = self._share_here(sorted(failed), limits, frames)
        if again.sizes:
            log.warning(
                "%d pictures could be decoded on the driver's node only: are the folders in data "
                "on all nodes? %s",
                len(again.sizes),
                failed[next(iter(again.sizes))],
                extra={"same": "on the driver's node only"},
            )
        return join_pictures([SharedPictures((pictures,), sizes), again]), reasons

    def _share_here(
        self, names: list[str], limits: MediaConfig, frames: Set[str]
    ) -> tuple[SharedPictures, Mapping[str, str]]:
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

    def _share(
        self, names: list[str], limits: MediaConfig, frames: Set[str]
    ) -> tuple[SharedPictures, Mapping[str, str]]:
        if not names:
            return SharedPictures((), {}), {}
        refs, answered = self._process.run(
            _decode, names, limits, frames, what=_what(names), timeout_s=DECODE_TIMEOUT_S, returns=2
        )
        sizes, failed = _sizes_and_reasons(answered)
        return SharedPictures(tuple(refs), sizes), failed

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


def _what(names: Sequence[str]) -> str:
    return f"decoding {len(names)} pictures, first {names[:1]}"


def _sizes_and_reasons(answered: Any) -> tuple[dict[str, tuple[int, int]], dict[str, str]]:
    """Return the second thing that `_decode` returned, or raise it."""
    if isinstance(answered, TooManyBytes):
        raise answered
    return answered


def _decode(
    uris: list[str], limits: MediaConfig, frames: Set[str]
) -> tuple[Pictures, tuple[dict[str, tuple[int, int]], dict[str, str]] | TooManyBytes]:
    try:
        pictures, failed = load_pictures(uris, limits, frames=frames)
    except TooManyBytes as error:
        # Returned: if it were raised, Ray would print it, as nobody reads the pictures.
        return {}, error
    return pictures, ({uri: pixels.shape[:2] for uri, pixels in pictures.items()}, failed)
