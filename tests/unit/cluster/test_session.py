"""A cluster's address is looked at before Ray is asked, and a Ray that did not come up told of."""

import socket

import pytest

from cluster.placement import Role
from cluster.session import RAY_STARTS, check_listening, join_ray, session
from data.errors import ClusterError, ConfigError

ROLES = (Role("rollout", 2, 0.5, 0.0), Role("learner", 2, 1.0, 1.0))


def free_address() -> str:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return f"127.0.0.1:{server.getsockname()[1]}"


def test_an_address_where_nothing_listens_is_told_from_one_where_something_does():
    with socket.create_server(("127.0.0.1", 0)) as server:
        check_listening(f"127.0.0.1:{server.getsockname()[1]}")
    with pytest.raises(ConnectionError, match="nothing listens at 127"):
        check_listening(free_address())


@pytest.mark.parametrize("address", ["auto", "local", "ray://127.0.0.1:1"])
def test_other_forms_of_address_are_left_to_ray(address):
    check_listening(address)


def test_a_dashboards_address_is_no_clusters():
    with pytest.raises(ConfigError, match=r"RAY_ADDRESS=http://127.0.0.1:8265 is a dashboard's"):
        check_listening("http://127.0.0.1:8265")


def test_a_job_is_told_that_no_cluster_came_up(monkeypatch):
    address = free_address()
    monkeypatch.setenv("RAY_ADDRESS", address)
    with (
        pytest.raises(ClusterError, match=f"RAY_ADDRESS={address}, found none in 0.1 s"),
        session(ROLES, namespace="n", nodes_timeout_s=0.1),
    ):
        pass


@pytest.mark.parametrize(
    ("failure", "raised", "starts"),
    [
        (Exception("The current node timed out during startup."), ClusterError, RAY_STARTS),
        (ValueError("no such setting"), ValueError, 1),
    ],
)
def test_only_a_ray_that_came_up_too_slowly_is_started_again_and_not_for_ever(
    monkeypatch, failure, raised, starts
):
    """The real one takes half a minute for each of its failures; `tests/nodes` holds one up."""
    asked = []

    def init(**settings):
        asked.append(settings["address"])
        raise failure

    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr("ray.init", init)
    with pytest.raises(raised) as caught, session((), namespace="test"):
        pass
    assert asked == ["local"] * starts
    if raised is ClusterError:
        assert "ray start --head" in str(caught.value)


def test_a_cluster_of_another_version_says_what_to_use(monkeypatch):
    def init(**settings):
        raise RuntimeError("Version mismatch: The cluster was started with:\n    Ray: 2.9.0\n")

    monkeypatch.setattr("ray.init", init)
    with pytest.raises(ClusterError, match=r"RAY_ADDRESS=auto: the cluster runs another Ray .*2.9"):
        join_ray("auto")


def test_a_job_is_told_that_rays_own_search_found_no_cluster(monkeypatch):
    def init(**settings):
        raise ConnectionError("Could not find any running Ray instance")

    monkeypatch.setattr("ray.init", init)
    monkeypatch.setenv("RAY_ADDRESS", "auto")
    with (
        pytest.raises(ClusterError, match="RAY_ADDRESS=auto, found none: Could not find"),
        session(ROLES, namespace="n"),
    ):
        pass
