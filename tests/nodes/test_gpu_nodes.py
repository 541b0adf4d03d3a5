"""Where actors go on nodes with GPUs, which are numbers to Ray; needs a process without a Ray."""

import logging
import time
from collections.abc import Callable, Iterator
from itertools import permutations
from pathlib import Path

import pytest
import ray
from ray.cluster_utils import Cluster
from ray.util.placement_group import PlacementGroup, placement_group_table

from cluster.placement import Role, place, place_again, release, reserve
from cluster.pools.rollout import RolloutPool
from configs.common import MediaConfig, PoolConfig, RolloutConfig
from tests.nodes.conftest import STORE_BYTES
from tests.patience import PATIENCE_S
from tests.workers import Reasoner

ROOT = Path(__file__).resolve().parents[2]
GPUS = 8
ROLES = (Role("rollout", 1, 1.0, 8.0), Role("reward", 4, 0.5, 1.0))
LEARNER = Role("learner", 4, 0.5, 1.0, together=True)


@pytest.fixture
def gpu_nodes(cluster: Cluster) -> Iterator[None]:
    """Join a cluster with two nodes of eight GPUs, beside the head without any."""
    for _ in range(2):
        cluster.add_node(num_cpus=4, num_gpus=GPUS, object_store_memory=STORE_BYTES)
    variables = {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    ray.init(address=cluster.address, runtime_env={"env_vars": variables})
    yield
    ray.shutdown()


def nodes_of(groups: list[PlacementGroup]) -> set[str]:
    return {
        node for g in groups for node in placement_group_table(g)["bundles_to_node_id"].values()
    }


def give_back(groups: dict[str, list[PlacementGroup]]) -> None:
    """Give places back, and wait until Ray can lend them again."""
    release(groups)
    wait_for(lambda: ray.available_resources().get("GPU", 0) == 2 * GPUS)


def wait_for(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_actors_find_their_places_on_nodes_with_gpus(
    cluster: Cluster, gpu_nodes: None, caplog: pytest.LogCaptureFixture
) -> None:
    # In every order of starting.
    for order in permutations((*ROLES, LEARNER)):
        groups = reserve(order)
        assert {name: len(places) for name, places in groups.items()} == {
            "rollout": 1,
            "reward": 4,
            "learner": 1,
        }
        assert len(nodes_of(groups["learner"])) == 1
        give_back(groups)
    # Three and three on one node would leave no room for the second five.
    large, small = Role("rollout", 2, 0.5, 5.0), Role("reward", 2, 0.5, 3.0)
    for order in ((small, large), (large, small)):
        groups = reserve(order)
        assert len(nodes_of(groups["rollout"])) == 2
        give_back(groups)
    assert caplog.text == ""

    # A group that is larger than a node is spread, and the log says so.
    caplog.set_level(logging.WARNING)
    group = place(Role("learner", 10, 0.5, 1.0, together=True))
    assert len(nodes_of([group])) == 2
    assert "it is larger than any node" in caplog.text
    give_back({"learner": [group]})

    # An actor that dies is placed again: what was reserved for it is free for the next one.
    groups = reserve((*ROLES, LEARNER))
    pool = RolloutPool(
        "model",
        RolloutConfig(pool=PoolConfig(actors=1, cpus=1.0, gpus=8.0)),
        MediaConfig(),
        store={},
        actor=Reasoner,
        reserved=groups["rollout"],
    )
    pool.ready()
    ray.kill(pool.actors["rollout-0"])
    pool.lose("rollout-0", "killed")
    pool.ready()
    assert set(pool.actors) == {"rollout-1"}
    assert ray.available_resources().get("GPU", 0) == 0
    pool.close()
    give_back(groups)

    # The learner's node is lost, and no other one has room for all ranks.
    nodes = {node.node_id: node for node in cluster.worker_nodes}
    added = cluster.add_node(num_cpus=4, num_gpus=GPUS, object_store_memory=STORE_BYTES)
    nodes[added.node_id] = added
    wait_for(lambda: ray.cluster_resources()["GPU"] == 3 * GPUS)
    groups = reserve((LEARNER, Role("reward", 2, 0.5, 6.0)))
    [group], [node] = groups["learner"], nodes_of(groups["learner"])
    assert place_again(LEARNER, group) is group
    cluster.remove_node(nodes[node], allow_graceful=False)
    wait_for(lambda: placement_group_table(group)["state"] != "CREATED")
    again = place_again(LEARNER, group)
    assert again is not group
    assert len(nodes_of([again])) == 2
