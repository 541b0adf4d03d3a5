"""A Ray cluster of several nodes on this machine; it needs a process without a Ray."""

import tempfile
from collections.abc import Iterator

import pytest
import ray
from ray.cluster_utils import Cluster

STORE_BYTES = 1 << 29
"""Object store of each node: enough that nothing of the tests is spilled."""


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> Iterator[Cluster]:
    """Run a cluster of one node with one CPU; a test adds the others."""
    assert not ray.is_initialized(), "run tests/nodes in a process of its own"
    # Sockets lie there, whose paths must be short, shorter than pytest's own folders.
    with tempfile.TemporaryDirectory(prefix="ray", ignore_cleanup_errors=True) as folder:
        monkeypatch.setenv("RAY_TMPDIR", folder)
        node = {"num_cpus": 1, "object_store_memory": STORE_BYTES}
        cluster = Cluster(initialize_head=True, head_node_args=node)
        try:
            yield cluster
        finally:
            cluster.shutdown()
