"""On a cluster of several nodes a bucket goes to each node once; needs a process without a Ray."""

from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
import ray
import torch
from ray.cluster_utils import Cluster

from cluster.weights import WeightStore
from tests.nodes.conftest import STORE_BYTES
from tests.published import publish, publisher
from tests.weight_engine import TENSOR_BYTES, TENSORS, Engine, make_model

ROOT = Path(__file__).resolve().parents[2]
ENGINES = 3
BUCKET_BYTES = 4 * TENSOR_BYTES
NOISE_BYTES = 48 << 20
"""More than Ray's own messages take meanwhile; a node that gets one bucket twice exceeds it."""


@pytest.fixture
def two_nodes(cluster: Cluster) -> Iterator[None]:
    """Give the engines a node of their own beside the learner's."""
    cluster.add_node(num_cpus=1, object_store_memory=STORE_BYTES, resources={"engines": ENGINES})
    ray.init(
        address=cluster.address,
        runtime_env={"env_vars": {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}},
    )
    yield
    ray.shutdown()


def loopback_bytes() -> int:
    return psutil.net_io_counters(pernic=True)["lo"].bytes_recv


def test_engines_of_one_node_share_one_transfer_of_each_bucket(two_nodes: None) -> None:
    store = ray.remote(WeightStore).options(num_cpus=0).remote()
    engines = [Engine.remote() for _ in range(ENGINES)]
    model, own = make_model(), publisher()
    own.bucket_bytes = BUCKET_BYTES
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
