"""A Ray of the job's own, and the ranks on it, are reached from this machine alone."""

import ipaddress
import signal

import psutil
import ray

from learner.rank.deepspeed_engine import open_rendezvous

AGENTS_PORT = 52365
"""Which a cluster's head on this machine takes."""
OURS = ("gcs_server", "raylet", "ray::DashboardAgent", "ray::RuntimeEnvAgent")


def listening(process):
    return [one.laddr for one in process.net_connections("tcp") if one.status == "LISTEN"]


def is_loopback(address):
    return ipaddress.ip_address(address.removeprefix("::ffff:")).is_loopback


def test_it_leaves_the_handler_of_sigterm_alone(local_ray):
    handler = signal.getsignal(signal.SIGTERM)
    assert getattr(handler, "__module__", "") != "ray._private.worker"


def test_nothing_of_it_listens_on_other_interfaces_or_on_a_known_port(local_ray):
    ray.get(ray.remote(lambda: None).remote())
    processes = [psutil.Process(), *psutil.Process().children(recursive=True)]
    found = {one.name(): listening(one) for one in processes[1:] if one.name().startswith(OURS)} | {
        "driver": listening(processes[0])
    }
    assert {"gcs_server", "raylet"} <= found.keys()
    places = [place for some in found.values() for place in some]
    assert places
    assert [place for place in places if not is_loopback(place.ip)] == []
    assert AGENTS_PORT not in {place.port for place in places}
    assert is_loopback(ray.util.get_node_ip_address())


def test_the_ranks_rendezvous_is_too():
    before = {place.port for place in listening(psutil.Process())}
    rendezvous = open_rendezvous("127.0.0.1", 1, 30.0)
    [place] = [one for one in listening(psutil.Process()) if one.port not in before]
    assert place.port == rendezvous.port
    assert is_loopback(place.ip)
