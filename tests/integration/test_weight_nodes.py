"""On a cluster of several nodes a bucket goes to each node once."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import ray
import torch
from ray.cluster_utils import Cluster
from torch import nn

from cluster.weights import WeightStore
from tests.published import publish, publisher

ROOT = Path(__file__).resolve().parents[2]
ENGINES = 3
TENSORS, TENSOR_BYTES = 8, 16 << 20
NOISE_BYTES = 16 << 20
"""More than Ray's own messages take meanwhile; a node that gets the buckets twice exceeds it."""
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
        from rollout.object_store import Receiver

        self.receiver = Receiver(make_model(), "bfloat16")

    def pull(self, version: int, store: Any) -> list[str]:
        """Return the names of what differs after a pull."""
        self.receiver.pull(store, version, PULL_S)
        return self.receiver.compare()["mismatched"]


@pytest.fixture
def two_nodes(tmp_path: Path) -> Iterator[None]:
    """Run a cluster of a node for the learner and one for the engines."""
    if ray.is_initialized():
        pytest.skip("needs a Ray of its own")
    before = os.environ.get("RAY_TMPDIR")
    os.environ["RAY_TMPDIR"] = str(tmp_path)
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
    try:
        cluster.add_node(num_cpus=1, resources={"engines": ENGINES})
        ray.init(
            address=cluster.address,
            runtime_env={"env_vars": {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}},
        )
        yield
    finally:
        ray.shutdown()
        cluster.shutdown()
        if before is None:
            del os.environ["RAY_TMPDIR"]
        else:
            os.environ["RAY_TMPDIR"] = before


def loopback_bytes() -> int:
    return psutil.net_io_counters(pernic=True)["lo"].bytes_recv


@pytest.mark.timeout(600)
def test_engines_of_one_node_share_one_transfer_of_each_bucket(two_nodes: None) -> None:
    store = ray.remote(WeightStore).options(num_cpus=0).remote()
    engines = [Engine.remote() for _ in range(ENGINES)]
    model, own = make_model(), publisher()
    own.bucket_bytes = 2 * TENSOR_BYTES
    ray.get([engine.__ray_ready__.remote() for engine in engines])
    for version in (1, 2):
        with torch.no_grad():
            for one in model.parameters():
                one += 1
        before = loopback_bytes()
        publish(own, version, store, model, first=version == 1)
        assert ray.get([engine.pull.remote(version, store) for engine in engines]) == [[]] * ENGINES
        moved = loopback_bytes() - before
        whole = TENSORS * TENSOR_BYTES
        assert whole <= moved < whole + NOISE_BYTES
