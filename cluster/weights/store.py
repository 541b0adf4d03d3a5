"""The weight store: the newest versions and where their buckets lie.

A version is announced, opened with the list of its tensors, gets its buckets while the learner
gathers and puts them, and is completed, or has failed. Engines begin to pull when it is opened and
wait for each next bucket. The store itself holds only references; the bytes go from the learner's
node to each node with engines, once, and from there into each engine. Frozen weights stay where
they lay: they are put once, and engines fetch only what they do not hold.

A version is a snapshot, or holds what changed since the version before it, its base.
"""

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from data.errors import WeightSyncError
from data.weights.types import Bucket, ParamSpec

KEPT_SNAPSHOTS = 2
"""One being served and one being pulled. Older ones are freed when the next is opened, so that it
takes over their memory: pages that were never written to cost several times as much."""


@dataclass(slots=True)
class Version:
    """What is known of one version."""

    base: int | None = None
    layout: tuple[ParamSpec, ...] | None = None
    """None until it is opened."""
    buckets: list[Bucket] = field(default_factory=list)
    manifest: dict[str, int] | None = None
    """Checksums of all tensors by name; None until it is complete."""
    failed: str = ""

    def progress(self) -> str:
        """Return how far it came, for messages."""
        if self.layout is None:
            return "the learner has not begun to put it"
        names = {name for bucket in self.buckets for name in bucket.checksums}
        return (
            f"{len(self.buckets)} buckets with {len(names)} of {len(self.layout)} tensors are there"
        )


class WeightStore:
    """A plain class; the cluster makes it a named actor. Methods that wait have a time limit."""

    def __init__(self) -> None:
        self._versions: dict[int, Version] = {}
        self._changed = asyncio.Condition()

    async def announce(self, version: int, *, again: bool = False) -> None:
        """Let engines wait for a version that will be put.

        ``again``: it replaces all that is there, and may be the newest version once more.

        Raises:
            WeightSyncError: the version does not increase.
        """
        newest = max((v for v, entry in self._versions.items() if not entry.failed), default=None)
        if newest is not None and (version < newest or (version == newest and not again)):
            raise WeightSyncError(
                f"expected a version above {newest}, found {version}: versions only increase"
            )
        async with self._changed:
            for old in [v for v, entry in self._versions.items() if again or entry.failed]:
                del self._versions[old]
            self._versions[version] = Version()
            self._changed.notify_all()

    async def bases(self) -> list[int]:
        """Return the versions whose changes could be put: complete ones, back to a snapshot."""
        return [version for version, entry in self._versions.items() if entry.manifest is not None]

    async def open(
        self, version: int, layout: tuple[ParamSpec, ...], *, base: int | None = None
    ) -> None:
        """Begin an announced version with the list of its tensors; free the oldest.

        Raises:
            WeightSyncError: it was not announced, or its base is not complete.
        """
        opened = self._held(version)
        if base is not None and self._held(base).manifest is None:
            raise WeightSyncError(f"version {version}: its base {base} is not complete")
        async with self._changed:
            opened.base, opened.layout = base, layout
            if base is None:
                self._free_older()
            self._changed.notify_all()

    async def add(self, version: int, buckets: Sequence[Bucket]) -> None:
        """Add buckets to an opened version.

        Raises:
            WeightSyncError: it is not there.
        """
        async with self._changed:
            self._held(version).buckets.extend(buckets)
            self._changed.notify_all()

    async def complete(self, version: int, manifest: dict[str, int]) -> None:
        """Say that all buckets are there, and what all tensors' checksums are now.

        Raises:
            WeightSyncError: it is not there.
        """
        async with self._changed:
            self._held(version).manifest = manifest
            self._changed.notify_all()

    async def fail(self, version: int, reason: str) -> None:
        """Say that no more buckets come; who waits for them is told the reason."""
        async with self._changed:
            if version in self._versions and self._versions[version].manifest is None:
                self._versions[version].failed = reason
            self._changed.notify_all()

    async def clear(self) -> None:
        """Forget all versions: a learner that starts again publishes from its checkpoint's on."""
        async with self._changed:
            self._versions.clear()
            self._changed.notify_all()

    async def latest(self) -> int | None:
        """Return the newest version that is there or on its way, None before the first."""
        good = [version for version, entry in self._versions.items() if not entry.failed]
        return max(good, default=None)

    async def path(
        self, version: int, held: int | None, wait_s: float
    ) -> tuple[tuple[ParamSpec, ...], tuple[int, ...], bool]:
        """Return the tensors of a version, and the versions to load for it in their order.

        These begin after the version ``held`` where that is possible, else with a snapshot; they
        are none where it is ``held``. Also whether all of them are changes since ``held``.

        Raises:
            WeightSyncError: the version is not there, has failed, or was not opened in time.
        """
        await self._wait(version, lambda entry: entry.layout is not None, wait_s, "its tensors")
        if version == held:
            return self._held(version).layout, (), False
        steps = [version]
        while (base := self._held(steps[-1]).base) is not None and base != held:
            steps.append(base)
        return self._held(version).layout, tuple(reversed(steps)), base is not None

    async def bucket(self, version: int, index: int, wait_s: float) -> Bucket | None:
        """Return a bucket as soon as it is there, None after the last.

        Raises:
            WeightSyncError: the version is not there, has failed, or the bucket came not in time.
        """

        def there(one: Version) -> bool:
            return one.manifest is not None or index < len(one.buckets)

        await self._wait(version, there, wait_s, f"bucket {index}")
        buckets = self._held(version).buckets
        return buckets[index] if index < len(buckets) else None

    async def manifest(self, version: int, wait_s: float) -> dict[str, int]:
        """Return the checksums of all tensors of a version as soon as it is complete.

        Raises:
            WeightSyncError: the version is not there, has failed, or was not completed in time.
        """
        await self._wait(version, lambda entry: entry.manifest is not None, wait_s, "its checksums")
        return dict(self._held(version).manifest)

    async def _wait(
        self, version: int, there: Callable[[Version], bool], wait_s: float, what: str
    ) -> None:
        """Return when a version has what is waited for."""

        def ended() -> bool:
            entry = self._held(version)
            if entry.failed:
                raise WeightSyncError(
                    f"version {version} was not published to its end: {entry.failed}"
                )
            return there(entry)

        if ended():
            return
        async with self._changed:
            try:
                await asyncio.wait_for(self._changed.wait_for(ended), wait_s)
            except TimeoutError as error:
                raise WeightSyncError(
                    f"version {version}: waited {wait_s:g} s for {what}; "
                    f"{self._held(version).progress()}; does the learner still put weights?"
                ) from error

    def _held(self, version: int) -> Version:
        """Return a version.

        Raises:
            WeightSyncError: it was never announced or is no longer kept.
        """
        if version not in self._versions:
            raise WeightSyncError(
                f"version {version} is not in the weight store, which holds "
                f"{sorted(self._versions) or 'nothing'}; pull the newest one"
            )
        return self._versions[version]

    def _free_older(self) -> None:
        """Forget what lies before the newest snapshots, failed snapshots not counted."""
        good = [v for v, entry in self._versions.items() if entry.base is None and not entry.failed]
        oldest = sorted(good)[-KEPT_SNAPSHOTS:][0]
        for version in [v for v in self._versions if v < oldest]:
            del self._versions[version]
