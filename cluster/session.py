"""One job's connection to Ray: what the plan asks for, whether the cluster has it, and waiting.

Ray's address: RAY_ADDRESS where set (as in a submitted job), else a Ray of the job's own.
"""

import logging
import math
import os
import socket
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from typing import Any

import psutil
import ray
from ray._private import parameter, ray_constants
from ray.autoscaler.sdk import request_resources
from ray.exceptions import OutOfMemoryError, RayActorError, RayError
from ray.util.placement_group import PlacementGroup, placement_group
from ray.util.scheduling_strategies import (
    NodeAffinitySchedulingStrategy,
    PlacementGroupSchedulingStrategy,
)

from cluster.faults import cause_of, explain
from cluster.run.stopping import handlers_kept
from configs.errors import ConfigError
from data.errors import (
    ActorLost,
    CheckpointError,
    ClusterError,
    EmbedRLError,
    NotEnoughResources,
)

CONNECT_TIMEOUT_S = 10.0
PLACEMENT_TIMEOUT_S = 120.0
PLACEMENT_LOOK_S = 2.0
PLACEMENT_REMIND_S = 60.0
GRACE_S = 30.0
"""What other calls get after a failure to show theirs, which may be its cause."""
DEATHS = (RayActorError, OutOfMemoryError)
RAY_STARTS = 3
"""How often a Ray of the job's own is started at most."""
PREDECESSOR_TIMEOUT_S = 60.0
LOOK_S = 0.5
log = logging.getLogger(__name__)
_QUIET = {
    # Deprecations and notices of the libraries; our own word goes through logging.
    "PYTHONWARNINGS": "ignore",
    "TORCH_LOGS": "-torch._library.triton",  # that there is no Triton, on every CPU
    "TORCH_CPP_LOG_LEVEL": "ERROR",  # how memory is bound to NUMA nodes
    "VLLM_LOGGING_LEVEL": "ERROR",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "TRANSFORMERS_VERBOSITY": "error",
    "TOKENIZERS_PARALLELISM": "false",
    "VLLM_NO_USAGE_STATS": "1",
    "DO_NOT_TRACK": "1",
}
QUIET_ENV = {name: os.environ.get(name, quiet) for name, quiet in _QUIET.items()}
"""Of all processes of a job; what the user has set wins."""


@dataclass(frozen=True, slots=True)
class Role:
    """A fixed number of equal actors, each asking for its share of CPUs and GPUs."""

    name: str
    actors: int
    cpus: float
    gpus: float

    def __str__(self) -> str:
        return f"{self.name}: {self.actors} x ({self.cpus:g} CPU, {self.gpus:g} GPU)"


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
        "runtime_env": {"env_vars": QUIET_ENV},
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
        with handlers_kept():
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
    for left in reversed(range(RAY_STARTS)):
        before = set(psutil.Process().children(recursive=True))
        try:
            with handlers_kept(), _reached_from_here_alone():
                ray.init(address="local", include_dashboard=False, **settings)
            return
        except BaseException as error:  # Ray has no type of its own for it
            # It forgets what it had started of the node.
            for one in set(psutil.Process().children(recursive=True)) - before:
                with suppress(psutil.NoSuchProcess):
                    one.kill()
            if "timed out" not in str(error).lower():
                raise
            if not left:
                raise ClusterError(
                    f"expected Ray to come up on this machine, found none after {RAY_STARTS} "
                    f"starts, the last: {error}; stop other work here, or start one by hand (ray "
                    "start --head), set RAY_ADDRESS=auto and try again; Ray's logs: /tmp/ray"
                ) from error
            log.warning("Ray did not come up in its own time limits, is started anew: %s", error)


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
        time.sleep(LOOK_S)


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
                    request_resources(bundles=[_bundle(r) for r in roles for _ in range(r.actors)])
                    log.info("waiting up to %.0f s for nodes: %s", timeout_s, error)
            time.sleep(LOOK_S)
    finally:
        if asked:
            request_resources(bundles=[])  # the roles' own placement groups ask from here on


def _bundle(role: Role) -> dict[str, float]:
    """Return what one actor asks for; Ray counts in ten-thousandths and grants no empty bundle."""
    bundle = {"CPU": max(role.cpus, 0.0001)}
    return {**bundle, "GPU": role.gpus} if role.gpus else bundle


def _wait_for_predecessor(namespace: str) -> None:
    """Wait until the actors of a killed job are gone, whose names this one takes over.

    Raises:
        ClusterError: they stay.
    """
    deadline = time.monotonic() + PREDECESSOR_TIMEOUT_S
    if left := _named_actors(namespace):
        log.info("waiting for the actors of the job before: %s", ", ".join(left[:5]))
    while left := _named_actors(namespace):
        if time.monotonic() >= deadline:
            raise ClusterError(
                f"{namespace}: expected no job that runs in this folder, found its actors "
                f"{left[:5]}; stop it (`ray job list`, `ray job stop`) or choose another run.dir"
            )
        time.sleep(LOOK_S)


def _named_actors(namespace: str) -> list[str]:
    named = ray.util.list_named_actors(all_namespaces=True)
    return [one["name"] for one in named if one["namespace"] == namespace]


def check_resources(roles: Sequence[Role], available: dict[str, float]) -> None:
    """Compare what the roles ask for with what the cluster has in all.

    Raises:
        NotEnoughResources: naming every role and the key to change.
    """
    short = []
    for unit, asked in (
        ("CPU", sum(role.actors * role.cpus for role in roles)),
        ("GPU", sum(role.actors * role.gpus for role in roles)),
    ):
        has = available.get(unit, 0.0)
        if asked > has + 1e-6:
            short.append(f"{asked:g} {unit}s asked, {has:g} in the cluster")
    if short:
        plan = "; ".join(map(str, roles))
        raise NotEnoughResources(
            f"{' and '.join(short)}. Plan: {plan}. Lower actors/ranks, cpus or gpus of a role in "
            "the config, or add nodes to the cluster."
        )


def place(
    role: Role, *, wanted: Callable[[], bool] = lambda: True, patient: bool = False
) -> PlacementGroup:
    """Reserve one bundle per actor of the role; wait until Ray grants them.

    Patient: for as long as it is wanted, as an autoscaler or a node that comes back may grant them
    yet; what is missing is logged again and again.

    Raises:
        ClusterError: not granted in time, or not wanted any more; the message says what is free.
    """
    bundle = _bundle(role)
    group = placement_group([bundle] * role.actors, strategy="PACK", name=role.name)
    began, reminded = time.monotonic(), float("-inf")
    while not group.wait(PLACEMENT_LOOK_S):
        now = time.monotonic()
        if wanted() and (patient or now - began < PLACEMENT_TIMEOUT_S):
            if now - reminded >= PLACEMENT_REMIND_S:
                reminded = now
                log.warning("%s: no place yet: %s", role.name, _no_place(role, bundle, now - began))
            continue
        ray.util.remove_placement_group(group)
        raise ClusterError(f"{role.name}: {_no_place(role, bundle, now - began)}")
    return group


def _no_place(role: Role, bundle: Mapping[str, float], waited_s: float) -> str:
    found = ray.available_resources()
    free = {unit: found.get(unit, 0.0) for unit in bundle}
    return (
        f"waited {waited_s:.0f} s for {role.actors} x {bundle}; free now: {free}. Another job may "
        "hold them, or a bundle is larger than any single node."
    )


def actor_options(role: Role, group: PlacementGroup, index: int, *, bundle: int) -> dict[str, Any]:
    """Return Ray options that put actor ``index`` of the role into a bundle of the group."""
    own = {"OMP_NUM_THREADS": str(max(1, math.floor(role.cpus)))}
    if not role.gpus:
        own["DS_ACCELERATOR"] = "cpu"  # else DeepSpeed looks for a GPU, and says that none is there
    return {
        "name": f"{role.name}-{index}",
        "num_cpus": max(role.cpus, 0.0001),
        "num_gpus": role.gpus,
        "scheduling_strategy": PlacementGroupSchedulingStrategy(
            group, placement_group_bundle_index=bundle
        ),
        "runtime_env": {"env_vars": {**QUIET_ENV, **own}},
    }


def driver_node() -> NodeAffinitySchedulingStrategy:
    """Return Ray's strategy for what must be on the driver's node."""
    return NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)


def wait_for(
    refs: Sequence[Any], names: Sequence[str], *, timeout_s: float, what: str
) -> list[Any]:
    """Return the results of calls to several actors, in their order.

    After a first failure the others get `GRACE_S` to show theirs, as the cause is often there; a
    death or a checkpoint is cause enough.

    Raises:
        ActorLost: an actor died; it is named.
        ClusterError: some did not answer in time, or failed in a way that is not ours; named.
        EmbedRLError: what a call itself raised.
    """
    deadline = time.monotonic() + timeout_s
    waiting = dict(zip(refs, names, strict=True))
    answers: dict[Any, Any] = {}
    failures: dict[str, RayError] = {}
    while waiting:
        left = max(0.0, deadline - time.monotonic())
        ready, _ = ray.wait(list(waiting), num_returns=1, timeout=left)
        if not ready:
            break
        name = waiting.pop(ready[0])
        try:
            answers[ready[0]] = ray.get(ready[0])
        except RayError as error:
            failures[name] = error
            if isinstance(error, DEATHS) or isinstance(cause_of(error), CheckpointError):
                break
            deadline = min(deadline, time.monotonic() + GRACE_S)
    if failures:
        raise _cause(failures, what)
    if waiting:
        raise ClusterError(
            f"{what}: no answer within {timeout_s:.0f} s from {', '.join(waiting.values())}; see "
            "their logs, or raise timeout_s where the role has one"
        )
    return [answers[ref] for ref in refs]


def _cause(failures: Mapping[str, RayError], what: str) -> Exception:
    """Return the failure that explains the others: a death, then our own errors, then any."""
    for name, error in failures.items():
        if isinstance(error, DEATHS):
            return ActorLost(f"{name} died while {what}: {error}")
    causes = {name: cause_of(error) for name, error in failures.items()}
    for cause in causes.values():
        if isinstance(cause, EmbedRLError | ConfigError):
            return cause
    name, cause = next(iter(causes.items()))
    return ClusterError(f"{name} failed while {what}: {cause!r}")
