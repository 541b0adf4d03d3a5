"""Versions of a plain model's weights put into a weight store, as they are or damaged."""

from collections.abc import Callable, Sequence
from typing import Any

import ray
import torch

from cluster.weights.publisher import Publisher
from configs.learner import WeightsConfig
from data.weights.checksum import tensor_checksum
from data.weights.parcels import Parcel, dtype_name, whole
from data.weights.types import Bucket, ParamSpec, Published
from learner.rank.lora import UnmergedWeight

BUCKET_TENSORS = 7


def layout(model: torch.nn.Module) -> tuple[ParamSpec, ...]:
    """Return the list of a model's tensors; those that require no gradient are frozen."""
    return tuple(
        ParamSpec(name, dtype_name(one.dtype), tuple(one.shape), trained=one.requires_grad)
        for name, one in model.named_parameters()
    )


def publish(
    publisher: Publisher, version: int, store: Any, model: torch.nn.Module, *, first: bool = False
) -> Published:
    """Announce and put a version by the product's own publisher; ``first``: frozen ones too."""
    ray.get(store.announce.remote(version))
    weights = [
        UnmergedWeight(name, one.detach(), (), 0.0)
        for name, one in model.named_parameters()
        if first or one.requires_grad
    ]
    published = publisher.publish(version, store, layout(model), weights)
    assert published.error == ""
    return published


def put_by_hand(
    version: int,
    store: Any,
    model: torch.nn.Module,
    *,
    damage: Callable[[list[list[Parcel]]], object] | None = None,
    specs: Sequence[ParamSpec] | None = None,
) -> None:
    """Put a snapshot in small buckets of copies, after ``damage`` changed these."""
    named = [(name, one.detach()) for name, one in model.named_parameters()]
    manifest = {name: tensor_checksum(one) for name, one in named}
    parcels = [whole(name, one.clone()) for name, one in named]
    buckets = [
        parcels[start : start + BUCKET_TENSORS] for start in range(0, len(parcels), BUCKET_TENSORS)
    ]
    checksums = [{one.name: manifest[one.name] for one in bucket} for bucket in buckets]
    if damage:
        damage(buckets)
    ray.get(store.announce.remote(version))
    ray.get(store.open.remote(version, tuple(specs or layout(model))))
    for sums, bucket in zip(checksums, buckets, strict=True):
        ray.get(store.add.remote(version, [Bucket(sums, (ray.put(bucket),))]))
    ray.get(store.complete.remote(version, manifest))


def publisher(*, delta: bool = False, snapshot_every: int = 20) -> Publisher:
    """Return a publisher of one model."""
    return Publisher(WeightsConfig(delta=delta, snapshot_every=snapshot_every))
