"""The weight store: the newest published versions and where their buckets lie.

A bucket is an object in Ray's store: a list of (name, dtype, shape, bytes) with the bytes as a
flat uint8 array, so that numbers numpy has no type for (bfloat16) travel unchanged. The store
itself holds only references; the bytes go from the learner's node to each engine. Frozen weights
stay where they lay: they are put once, and engines fetch only what they do not hold.
"""

from typing import Any

from data.errors import WeightSyncError
from data.types import ParamSpec

KEPT_VERSIONS = 2
"""One being served and one being pulled; older buckets are freed when a version is published."""

Bucket = tuple[tuple[str, ...], Any]
"""The names of a version that lie in a bucket (it may hold older ones too), and its reference."""
Version = tuple[tuple[ParamSpec, ...], list[Bucket]]
"""What every tensor is, and where it lies."""


class WeightStore:
    """A plain class; the cluster makes it a named actor."""

    def __init__(self) -> None:
        self._versions: dict[int, Version] = {}

    def publish(self, version: int, manifest: tuple[ParamSpec, ...], buckets: list[Bucket]) -> None:
        """Keep a version; the references lie inside a list, so Ray does not resolve them.

        Raises:
            WeightSyncError: the version does not increase.
        """
        newest = self.latest()
        if newest is not None and version <= newest:
            raise WeightSyncError(
                f"expected a version above {newest}, found {version}: versions only increase"
            )
        self._versions[version] = (manifest, buckets)
        for old in sorted(self._versions)[:-KEPT_VERSIONS]:
            del self._versions[old]

    def clear(self) -> None:
        """Forget all versions: a learner that starts again publishes from its checkpoint's on."""
        self._versions.clear()

    def get(self, version: int) -> Version:
        """Return the manifest and the buckets of a version.

        Raises:
            WeightSyncError: the version was never published or is no longer kept.
        """
        if version not in self._versions:
            raise WeightSyncError(
                f"version {version} is not in the weight store, which holds "
                f"{sorted(self._versions) or 'nothing'}; pull the newest one"
            )
        return self._versions[version]

    def latest(self) -> int | None:
        """Return the newest version, None before the first."""
        return max(self._versions, default=None)
