"""One job's connection to Ray: the cluster it joins or starts, and the wait until its plan fits.

Ray's address: RAY_ADDRESS where set (as in a submitted job), else a Ray of the job's own.
"""

import gc
import logging
import os
import socket
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from typing import Any

import psutil
import ray
from ray._private import parameter, ray_constants
from ray.autoscaler.sdk import request_resources
from ray.exceptions import RayError

from cluster.faults import explain
from cluster.placement import Role, actor_bundle, check_resources, job_env
from configs.errors import ConfigError
from data.errors import ClusterError, NotEnoughResources

CONNECT_TIMEOUT_S = 10.0
RAY_STARTS = 3
"""How often a Ray of the job's own is started at most."""
PREDECESSOR_TIMEOUT_S = 60.0
CLUSTER_LOOK_S = 0.5
YOUNG_OBJECTS = 500_000
"""New objects after which Python searches for cycles. A step makes some hundred thousand, and
frees these objects itself."""
log = logging.getLogger(__name__)


@contextmanager
def session(
    roles: Sequence[Role], *, namespace: str, nodes_timeout_s: float = 0.0
) -> Iterator[None]:
    """Connect to Ray, refuse a plan that cannot fit, and disconnect at the end.

    The head may come up for ``nodes_timeout_s``, and then the cluster grow as long until the plan
    fits.

    Raises:
        NotEnoughResources: the cluster has fewer CPUs or GPUs than the roles ask for.
        ClusterError: nothing listens at RAY_ADDRESS, a Ray of its own does not come up, or another
            job uses the namespace.
        ConfigError: RAY_ADDRESS is a dashboard's.
    """
    address = os.environ.get("RAY_ADDRESS")
    settings = {
        "namespace": namespace,
        "runtime_env": {"env_vars": job_env()},
        "logging_level": logging.ERROR,
        "log_to_driver": True,
    }
    if address:
        _wait_for_head(address, timeout_s=nodes_timeout_s)
        log.info("joining the Ray cluster of RAY_ADDRESS=%s", address)
        try:
            join_ray(address, **settings)
        except ConnectionError as error:
            raise _no_cluster(address, error) from error
    else:
        log.info("starting a Ray of the job's own")
        start_ray(**settings)
    try:
        _wait_for_nodes(roles, timeout_s=nodes_timeout_s if address else 0.0)
        _wait_for_predecessor(namespace)
        log.info("starting %s", ", ".join(map(str, roles)))
        yield
    finally:
        log.info("leaving Ray" if address else "stopping Ray")
        ray.shutdown()


def join_ray(address: str, **settings: Any) -> None:
    """Join a cluster, with these settings of `ray.init`.

    Raises:
        ConnectionError: none answers there.
        ClusterError: it refuses this process.
    """
    try:
        with _without_rays_handler():
            ray.init(address=address, **settings)
    except (RayError, RuntimeError, ConnectionError) as error:
        if (reason := explain(error)) is None:
            raise
        raise ClusterError(f"RAY_ADDRESS={address}: {reason}") from error


def start_ray(**settings: Any) -> None:
    """Start a Ray of this process's own, of one node, with these settings of `ray.init`.

    Ray gives the parts of a node half a minute to come up, some half of that. A machine that is
    busy just then may not keep it, so the node is started anew a few times.

    Raises:
        ClusterError: it came up in none of them.
    """
    for starts_left in reversed(range(RAY_STARTS)):
        before = set(psutil.Process().children(recursive=True))
        try:
            with _without_rays_handler(), _reached_from_here_alone():
                ray.init(address="local", include_dashboard=False, **settings)
            return
        except BaseException as error:  # Ray has no type of its own for it
            # It forgets what it had started of the node.
            for process in set(psutil.Process().children(recursive=True)) - before:
                with suppress(psutil.NoSuchProcess):
                    process.kill()
            if "timed out" not in str(error).lower():
                raise
            if not starts_left:
                raise ClusterError(
                    f"expected Ray to come up on this machine, found none after {RAY_STARTS} "
                    f"starts, the last: {error}; stop other work here, or start one by hand (ray "
                    "start --head), set RAY_ADDRESS=auto and try again; Ray's logs: /tmp/ray"
                ) from error
            log.warning("Ray did not come up in its own time limits, is started anew: %s", error)


@contextmanager
def _without_rays_handler() -> Iterator[None]:
    """Keep `ray.init` from setting a handler of SIGTERM: the job has one.

    Ray's raises wherever the signal meets it, and with an exit code of its own.
    """
    before = ray._private.utils.set_sigterm_handler
    ray._private.utils.set_sigterm_handler = lambda handler: None
    try:
        yield
    finally:
        ray._private.utils.set_sigterm_handler = before


@contextmanager
def _reached_from_here_alone() -> Iterator[None]:
    """Let `ray.init` start a Ray that listens on loopback and takes free ports only.

    Ray has both, for other systems and for `ray start`, but `ray.init` no arguments for them. On
    its agents' known port, a cluster's head that is started meanwhile could take no submitted job.
    """
    before = ray_constants.ENABLE_RAY_CLUSTER, parameter.RayParams
    variable = ray_constants.ENABLE_RAY_CLUSTERS_ENV_VAR
    told = os.environ.get(variable)
    ray_constants.ENABLE_RAY_CLUSTER = False
    parameter.RayParams = partial(parameter.RayParams, dashboard_agent_listen_port=0)
    os.environ[variable] = "0"  # for the processes of that Ray
    try:
        yield
    finally:
        ray_constants.ENABLE_RAY_CLUSTER, parameter.RayParams = before
        if told is None:
            del os.environ[variable]
        else:
            os.environ[variable] = told


def check_listening(address: str) -> None:
    """Return if something listens at a cluster's host:port; most other forms are Ray's to read.

    Before Ray is asked, which tries for minutes.

    Raises:
        ConfigError: it is a dashboard's address.
        ConnectionError: nothing does.
    """
    if address.startswith(("http://", "https://")):
        raise ConfigError(
            f"RAY_ADDRESS={address} is a dashboard's, which only `ray job` commands talk to; a "
            "command on a node joins the cluster's head itself: RAY_ADDRESS=HEAD:6379, or auto"
        )
    host, _, port = address.rpartition(":")
    if not port.isdecimal() or "/" in host:
        return
    try:
        socket.create_connection((host.strip("[]"), int(port)), CONNECT_TIMEOUT_S).close()
    except OSError as error:
        raise ConnectionError(f"nothing listens at {address}: {error}") from error


def _wait_for_head(address: str, *, timeout_s: float) -> None:
    """Wait until a cluster's head listens.

    Raises:
        ConfigError: it is a dashboard's address.
        ClusterError: it does not in time.
    """
    deadline = time.monotonic() + timeout_s
    told = False
    while True:
        try:
            return check_listening(address)
        except ConnectionError as error:
            if time.monotonic() >= deadline:
                waited = f" in {timeout_s:g} s (run.nodes_timeout_s)"
                raise _no_cluster(address, error, waited) from error
            if not told:
                told = True
                log.info("waiting up to %.0f s for the cluster's head: %s", timeout_s, error)
        time.sleep(CLUSTER_LOOK_S)


def _no_cluster(address: str, error: Exception, waited: str = "") -> ClusterError:
    return ClusterError(
        f"expected a Ray cluster at RAY_ADDRESS={address}, found none{waited}: {error}; start its "
        "head (ray start --head), or unset RAY_ADDRESS for a Ray of the job's own"
    )


def _wait_for_nodes(roles: Sequence[Role], *, timeout_s: float) -> None:
    """Wait until the cluster holds what the roles ask for; an autoscaler is told what that is.

    A cluster has one such request at a time: it stands in for that of a job that also waits.

    Raises:
        NotEnoughResources: it does not in time.
    """
    deadline = time.monotonic() + timeout_s
    asked = False
    try:
        while True:
            try:
                return check_resources(roles, ray.cluster_resources())
            except NotEnoughResources as error:
                if time.monotonic() >= deadline:
                    raise
                if not asked:
                    asked = True
                    request_resources(
                        bundles=[actor_bundle(r) for r in roles for _ in range(r.actors)]
                    )
                    log.info("waiting up to %.0f s for nodes: %s", timeout_s, error)
            time.sleep(CLUSTER_LOOK_S)
    finally:
        if asked:
            request_resources(bundles=[])  # the roles' own placement groups ask from here on


def _wait_for_predecessor(namespace: str) -> None:
    """Wait until the actors of a killed job are gone, whose names this one takes over.

    Raises:
        ClusterError: they stay.
    """
    deadline = time.monotonic() + PREDECESSOR_TIMEOUT_S
    if actors := _named_actors(namespace):
        log.info("waiting for the actors of the job before: %s", ", ".join(actors[:5]))
    while actors := _named_actors(namespace):
        if time.monotonic() >= deadline:
            raise ClusterError(
                f"{namespace}: expected no job that runs in this folder, found its actors "
                f"{actors[:5]}; stop it (`ray job list`, `ray job stop`) or choose another run.dir"
            )
        time.sleep(CLUSTER_LOOK_S)


def _named_actors(namespace: str) -> list[str]:
    named = ray.util.list_named_actors(all_namespaces=True)
    return [actor["name"] for actor in named if actor["namespace"] == namespace]


def spare_collections() -> None:
    """Exclude all objects that exist now from later searches for cycles, and search more rarely.

    Call this once the driver is set up. The million objects of its libraries stay to the end, and
    every full search would visit all of them.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(YOUNG_OBJECTS, *gc.get_threshold()[1:])
