"""Puts versions of one model's weights into the object store; runs in rank 0 of a learner group.

Frozen tensors are put once. A bucket is put as soon as its tensors have come, and the weight store
is told at once. With `weights.delta` the publisher keeps a host copy of the tensors that it put
last, and compares each new tensor with its copy.
"""

import time
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import replace
from hashlib import blake2b
from typing import Any

import ray
import torch
from ray.exceptions import ObjectStoreFullError, OutOfDiskError, RayError
from torch import Tensor

from cluster.faults import cause_of, explain
from configs.learner import WeightsConfig
from data.errors import WeightSyncError
from data.weights.checksum import MASK, tensor_checksum
from data.weights.delta import as_units, find_changes
from data.weights.parcels import (
    BUCKET_BYTES,
    Adapter,
    Delta,
    Parcel,
    adapted_checksum,
    base_name,
    whole,
)
from data.weights.types import Bucket, ParamSpec, Published
from learner.rank.lora import UnmergedWeight

STORE_TIMEOUT_S = 120.0
CHAIN_SHARE = 0.5
"""Deltas since a snapshot may take this share of its bytes; then the next one is put."""


class Publisher:
    """Remembers what it has put of one model."""

    def __init__(self, config: WeightsConfig) -> None:
        self._config = config
        self.bucket_bytes = BUCKET_BYTES
        self._kept: list[Bucket] = []
        """Buckets of frozen tensors."""
        self._held: dict[str, Tensor] = {}
        """Tensors as they were put last, where the next version may be a delta."""
        self._manifest: dict[str, int] = {}
        self._last: int | None = None
        self._chain: list[int] = []
        """Bytes of the deltas since the last snapshot."""
        self._snapshot_bytes = 0

    def publish(
        self,
        version: int,
        store: Any,
        layout: Sequence[ParamSpec],
        weights: Iterable[UnmergedWeight],
    ) -> Published:
        """Put an announced version: a delta where the settings and the store allow a delta.

        ``weights`` come in any order, at the first time all of them, then those that are trained;
        they are always iterated to the end, because other ranks may take part in it.
        """
        specs = [
            replace(spec, patched=self._config.delta and spec.trained and not spec.adapted)
            for spec in layout
        ]
        publication = _Publication(self, version, store, {spec.name: spec for spec in specs})
        publication.open(tuple(specs))
        since = time.perf_counter()
        for weight in weights:
            publication.seconds["gather"] += time.perf_counter() - since
            publication.take(weight)
            since = time.perf_counter()
        return publication.close()

    def base(self, available: Sequence[int]) -> int | None:
        """Return the version that the next one can be a delta of."""
        fits = (
            self._config.delta
            and self._last in available
            and len(self._chain) + 1 < self._config.snapshot_every
            and sum(self._chain) <= CHAIN_SHARE * self._snapshot_bytes
        )
        return self._last if fits else None


class _Publication:
    """One publication under way."""

    def __init__(
        self, publisher: Publisher, version: int, store: Any, specs: dict[str, ParamSpec]
    ) -> None:
        self.seconds: Counter[str] = Counter(gather=0.0, diff=0.0, put=0.0)
        self._of = publisher
        self._version = version
        self._store = store
        self._specs = specs
        self._error = ""
        self._base: int | None = None
        self._calls: list[Any] = []
        self._bytes = 0
        self._pending: dict[bool, tuple[list[Parcel], dict[str, int]]] = {
            True: ([], {}),
            False: ([], {}),
        }
        """Parcels and checksums of the next buckets, of what is kept and of what is not."""
        self._size = 0
        """Bytes of the tensors that these stand for."""

    def open(self, layout: tuple[ParamSpec, ...]) -> None:
        """Tell the store what will come, and what lies there already."""
        available = self._ask(self._store.bases.remote()) or []
        self._base = self._of.base(available)
        self._ask(self._store.open.remote(self._version, layout, base=self._base))
        self._calls.append(self._store.add.remote(self._version, list(self._of._kept)))

    def take(self, weight: UnmergedWeight) -> None:
        """Add a tensor to the next buckets."""
        since = time.perf_counter()
        spec = self._specs[weight.name]
        if weight.weight is not None:
            if spec.adapted:
                name = base_name(spec.name)
                checksum = tensor_checksum(weight.weight)
                self._add(name, whole(name, weight.weight), checksum, kept=True)
            elif (parcel := self._changed(spec, weight.weight)) is not None:
                self._add(spec.name, *parcel, kept=not spec.trained)
            self._size += weight.weight.nbytes
        if weight.factors:
            self._add(spec.name, *self._adapter(weight), kept=False)
            self._size += sum(factor.nbytes for factor in weight.factors)
        self.seconds["diff"] += time.perf_counter() - since
        if self._size >= self._of.bucket_bytes:
            self._flush()

    def close(self) -> Published:
        """Put what is left and return what was done."""
        self._flush()
        of = self._of
        for call in self._calls:
            self._ask(call)
        if not self._error:
            self._ask(self._store.complete.remote(self._version, dict(of._manifest)))
        if self._error:
            self._ask(self._store.fail.remote(self._version, self._error))
            of._last = None
        else:
            of._last = self._version
            if self._base is None:
                of._chain, of._snapshot_bytes = [], self._bytes
            else:
                of._chain.append(self._bytes)
        return Published(
            delta=self._base is not None,
            bytes=self._bytes,
            seconds=dict(self.seconds),
            digest=blake2b(repr(sorted(of._manifest.items())).encode(), digest_size=16).hexdigest(),
            error=self._error,
        )

    def _changed(self, spec: ParamSpec, tensor: Tensor) -> tuple[Parcel, int] | None:
        """Return a tensor's parcel and checksum; None where nothing of it changed."""
        name = spec.name
        old = self._of._held.get(name)
        new = as_units(tensor)
        if self._base is not None and old is not None and new is not None:
            before = self._of._manifest[name]
            if (comparison := find_changes(as_units(old), new)) is not None:
                changes, difference = comparison
                if not len(changes.bits):
                    return None
                return Delta(name, before, changes), (before + difference) & MASK
        if spec.patched and new is not None:
            if old is None:
                old = self._of._held[name] = torch.empty_like(tensor)
            old.copy_(tensor)
        return whole(name, tensor), tensor_checksum(tensor)

    def _adapter(self, weight: UnmergedWeight) -> tuple[Adapter, int]:
        down, up = (whole(weight.name, factor) for factor in weight.factors)
        sums = [tensor_checksum(factor) for factor in weight.factors]
        base = self._of._manifest[base_name(weight.name)]
        return Adapter(weight.name, down, up, weight.scale), adapted_checksum(base, *sums)

    def _add(self, name: str, parcel: Parcel, checksum: int, *, kept: bool) -> None:
        parcels, checksums = self._pending[kept]
        parcels.append(parcel)
        checksums[name] = self._of._manifest[name] = checksum

    def _flush(self) -> None:
        """Put the pending buckets, those that are kept first: others may build on them."""
        since = time.perf_counter()
        for kept, (parcels, checksums) in self._pending.items():
            self._pending[kept] = ([], {})
            if not parcels or self._error:
                continue
            try:
                bucket = Bucket(checksums, (ray.put(parcels),))
            except (ObjectStoreFullError, OutOfDiskError) as error:
                self._fail(str(explain(error)))
                continue
            self._bytes += sum(parcel.nbytes for parcel in parcels)
            self._calls.append(self._store.add.remote(self._version, [bucket]))
            if kept:
                self._of._kept.append(bucket)
        self._size = 0
        self.seconds["put"] += time.perf_counter() - since

    def _ask(self, call: Any) -> Any:
        """Return the store's answer; after a failure None, and the first one is remembered."""
        try:
            return ray.get(call, timeout=STORE_TIMEOUT_S)
        except (RayError, WeightSyncError) as error:
            cause = cause_of(error)
            self._fail(str(cause) or repr(cause))
            return None

    def _fail(self, reason: str) -> None:
        self._error = self._error or reason
