"""A sender and receivers of 1 GB of bf16, beside the memory copies that they are held against."""

import mmap
import time
from typing import Any

import numpy as np
import ray
import torch
from torch import nn

from cluster.weights.publisher import Publisher
from configs.learner import WeightsConfig
from data.weights.checksum import as_bytes
from data.weights.parcels import dtype_name
from data.weights.types import ParamSpec
from learner.rank.lora import UnmergedWeight

CHANGED = 0.02
"""Share of elements that a step changes, anywhere."""
SHAPES = [
    *[(2048, 2048)] * 60,  # attention
    *[(8192, 2048)] * 8,  # MLP
    (16384, 2048),  # embeddings
    *[(2048,)] * 64,  # norms
    *[(512, 2048)] * 84,  # keys and values
]
"""1 GB."""


def build() -> nn.Module:
    """Return a model of 1 GB of bf16 parameters, filled alike in every process."""
    model = nn.Module()
    model.layers = nn.Module()
    noise = torch.Generator().manual_seed(0)
    pattern = torch.randn(1 << 20, generator=noise).bfloat16()
    for index, shape in enumerate(SHAPES):
        count = int(np.prod(shape))
        values = pattern.repeat(-(-count // len(pattern)))[:count].view(shape)
        model.layers.register_parameter(f"w{index}", nn.Parameter(values, requires_grad=False))
    return model


@ray.remote(num_cpus=0)
class Sender:
    """A learner rank without a learner."""

    def __init__(self) -> None:
        torch.set_num_threads(1)
        self.model = build()
        self.named = list(self.model.named_parameters())
        self.layout = tuple(
            ParamSpec(name, dtype_name(one.dtype), tuple(one.shape)) for name, one in self.named
        )
        self.publishers = {
            delta: Publisher(WeightsConfig(delta=delta, snapshot_every=1000))
            for delta in (False, True)
        }
        self.shared = mmap.mmap(-1, sum(one.nbytes for _, one in self.named))
        self.state: Any = None
        self.turn = 0

    def touch_store(self, size: int) -> None:
        """Put an object of so many bytes, and let it go."""
        ray.put(np.zeros(size, np.uint8))

    def change(self) -> None:
        """Change some elements, as a training step does."""
        self.turn += 1
        noise = np.random.default_rng(self.turn)
        for _, one in self.named:
            bits = one.detach().view(-1).view(torch.int16).numpy()
            count = len(bits)
            bits[noise.integers(0, count, int(CHANGED * count))] += 1

    def publish(self, version: int, store: Any, delta: bool) -> tuple[int, dict[str, float]]:
        """Put a version and return its bytes, and seconds by phase."""
        weights = (UnmergedWeight(name, one.detach(), (), 0.0) for name, one in self.named)
        found = self.publishers[delta].publish(version, store, self.layout, weights)
        if found.error:
            raise RuntimeError(found.error)
        return found.bytes, found.seconds

    def copy(self) -> float:
        """Return the seconds of copying all parameters into shared memory."""
        shared = np.frombuffer(self.shared, np.uint8)
        began = time.perf_counter()
        start = 0
        for _, one in self.named:
            shared[start : start + one.nbytes] = as_bytes(one).numpy()
            start += one.nbytes
        return time.perf_counter() - began

    def put_plain(self) -> float:
        """Return the seconds of putting a plain state dict; the last one is freed before."""
        self.state = None
        state = {name: one.detach() for name, one in self.named}
        began = time.perf_counter()
        self.state = ray.put(state)
        return time.perf_counter() - began


@ray.remote(num_cpus=0)
class Engine:
    """What an engine does with weights, without an engine."""

    def __init__(self) -> None:
        # Here, because importing vLLM takes seconds that the driver need not spend.
        from rollout.weights.transfer import Receiver

        torch.set_num_threads(1)
        self.models = {delta: build() for delta in (False, True)}
        self.receivers = {
            delta: Receiver(model, "bfloat16") for delta, model in self.models.items()
        }

    def pull(self, version: int, store: Any, delta: bool) -> tuple[int, dict[str, float]]:
        """Pull and compare a version; return its bytes, and seconds by phase."""
        receiver = self.receivers[delta]
        receiver.pull(store, version)
        report = receiver.compare()
        if report["mismatched"]:
            raise RuntimeError(f"differing: {report['mismatched'][:3]}")
        if report["delta"] != (delta and version > 1):
            raise RuntimeError("expected a delta where deltas are on")
        return report["bytes"], report["seconds"]

    def copy(self) -> float:
        """Return the seconds of copying one model's bytes over the other's, which is pulled whole
        the next time."""
        pairs = zip(self.models[False].parameters(), self.models[True].parameters(), strict=True)
        began = time.perf_counter()
        for to, since in pairs:
            as_bytes(to).copy_(as_bytes(since))
        return time.perf_counter() - began
