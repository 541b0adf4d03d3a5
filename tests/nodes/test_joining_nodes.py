"""A job that starts while its cluster still grows waits for the nodes; needs its own process."""

import logging
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress

import pytest
import ray
from ray.cluster_utils import Cluster

from cluster.placement import Role
from cluster.session import session
from data.errors import NotEnoughResources
from tests.patience import PATIENCE_S

ROLES = (Role("rollout", actors=2, cpus=1, gpus=0),)


def test_a_plan_that_fits_once_a_node_has_joined_is_not_refused(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("RAY_ADDRESS", cluster.address)
    caplog.set_level(logging.INFO)

    def cpus_found(nodes_timeout_s: float) -> float:
        with session(ROLES, namespace="early", nodes_timeout_s=nodes_timeout_s):
            return ray.cluster_resources()["CPU"]

    with pytest.raises(NotEnoughResources, match="2 CPUs asked, 1 in the cluster"):
        cpus_found(nodes_timeout_s=1)
    with ThreadPoolExecutor(1) as job:
        found = job.submit(cpus_found, PATIENCE_S)
        while f"waiting up to {PATIENCE_S:.0f} s for nodes" not in caplog.text:
            with suppress(TimeoutError):  # it cannot end yet, but fail
                pytest.fail(f"found {found.result(timeout=0.1)} CPUs, no second node has joined")
        cluster.add_node(num_cpus=1)
        assert found.result() == 2
