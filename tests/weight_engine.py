"""An engine's part in a weight sync, around a model of a few large tensors."""

from typing import Any

import ray
import torch
from torch import nn

TENSORS, TENSOR_BYTES = 8, 16 << 20
PULL_S = 60.0


def make_model() -> nn.Module:
    model = nn.ModuleDict({"layers": nn.Module()})
    for index in range(TENSORS):
        weight = torch.full((TENSOR_BYTES // 2,), float(index)).bfloat16()
        model["layers"].register_parameter(f"w{index}", nn.Parameter(weight, requires_grad=True))
    return model


@ray.remote(num_cpus=0, resources={"engines": 1})
class Engine:
    """Pulls into a model of its own."""

    def __init__(self) -> None:
        from rollout.weights.transfer import Receiver

        self.receiver = Receiver(make_model(), "bfloat16")

    def pull(self, version: int, store: Any) -> list[str]:
        """Return the names of what differs after a pull."""
        self.receiver.pull(store, version, PULL_S)
        return self.receiver.compare()["mismatched"]
