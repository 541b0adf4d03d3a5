"""A Ray cluster of several nodes on this machine; it needs a process without a Ray."""

from collections.abc import Iterator

import pytest
import ray
from ray.cluster_utils import Cluster

STORE_BYTES = 1 << 29
"""Object store of each node: enough that nothing of the tests is spilled."""


@pytest.fixture
def cluster() -> Iterator[Cluster]:
    """Run a cluster of one node with one CPU; a test adds the others."""
    assert not ray.is_initialized(), "run tests/nodes in a process of its own"
    node = {"num_cpus": 1, "object_store_memory": STORE_BYTES}
    cluster = Cluster(initialize_head=True, head_node_args=node)
    try:
        yield cluster
    finally:
        cluster.shutdown()
