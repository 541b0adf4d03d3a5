"""On a cluster of several nodes a bucket goes to each node once; needs a process without a Ray."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import ray
import torch
from ray._private.internal_api import node_stats
from ray.cluster_utils import Cluster

from cluster.weights.store import WeightStore
from tests.inputs.published import publish, publisher
from tests.nodes.conftest import STORE_BYTES
from tests.weight_engine import TENSOR_BYTES, TENSORS, Engine, make_model

ROOT = Path(__file__).resolve().parents[2]
ENGINES = 3
BUCKETS = 2
BUCKET_BYTES = TENSORS // BUCKETS * TENSOR_BYTES
AROUND_BYTES = 1 << 14
"""More than is kept around the tensors of a bucket."""


@pytest.fixture
def engines_node(cluster: Cluster) -> Iterator[dict[str, Any]]:
    """Give the engines a node of their own beside the learner's; return what Ray says of it."""
    resources = {"engines": ENGINES}
    added = cluster.add_node(num_cpus=1, object_store_memory=STORE_BYTES, resources=resources)
    ray.init(
        address=cluster.address,
        runtime_env={"env_vars": {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}},
    )
    [node] = [one for one in ray.nodes() if one["NodeID"] == added.node_id]
    yield node
    ray.shutdown()


def made(node: dict[str, Any]) -> tuple[int, int]:
    """Return how many objects were ever made in a node's store, and of how many bytes."""
    stats = node_stats(node["NodeManagerAddress"], node["NodeManagerPort"]).store_stats
    return stats.cumulative_created_objects, stats.cumulative_created_bytes


def test_engines_of_one_node_share_one_copy_of_each_bucket(engines_node: dict[str, Any]) -> None:
    store = ray.remote(WeightStore).options(num_cpus=0).remote()
    engines = [Engine.remote() for _ in range(ENGINES)]
    model, own = make_model(), publisher()
    own.bucket_bytes = BUCKET_BYTES
    ray.get([engine.__ray_ready__.remote() for engine in engines])
    for version in (1, 2):
        with torch.no_grad():
            for one in model.parameters():
                one += 1
        objects, size = made(engines_node)
        publish(own, version, store, model, first=version == 1)
        assert ray.get([engine.pull.remote(version, store) for engine in engines]) == [[]] * ENGINES
        objects_after, size_after = made(engines_node)
        assert objects_after - objects == BUCKETS
        around = size_after - size - TENSORS * TENSOR_BYTES
        assert 0 < around < BUCKETS * AROUND_BYTES
