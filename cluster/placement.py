"""Where actors run: the roles of a plan, their bundles, and Ray's options for each actor."""

import json
import logging
import math
import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import ray
from ray._private.runtime_env.constants import RAY_JOB_CONFIG_JSON_ENV_VAR
from ray.util.placement_group import PlacementGroup, placement_group, placement_group_table
from ray.util.scheduling_strategies import (
    NodeAffinitySchedulingStrategy,
    PlacementGroupSchedulingStrategy,
)

from data.errors import ClusterError, NotEnoughResources

log = logging.getLogger(__name__)
PLACEMENT_TIMEOUT_S = 120.0
ONE_NODE_TIMEOUT_S = 10.0
"""Longest wait for room on one node, before actors that belong together are spread."""
PLACEMENT_LOOK_S = 2.0
PLACEMENT_REMIND_S = 60.0
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
VISIBLE = "CUDA_VISIBLE_DEVICES"
RAY_SHOWS_ALL = "RAY_EXPERIMENTAL_NOSET_CUDA_VISIBLE_DEVICES"
"""Images for other systems set it to 1: Ray then leaves VISIBLE alone, and all actors see all GPUs
of their node."""


@dataclass(frozen=True, slots=True)
class Role:
    """A fixed number of equal actors, each asking for its share of CPUs and GPUs."""

    name: str
    actors: int
    cpus: float
    gpus: float
    turns: "tuple[Role, ...]" = ()
    """What runs one after the other in this place, which suits the largest of them; empty: only
    this role does."""
    together: bool = False
    """They live and die together: they share one placement group, on one node if they fit."""

    def __str__(self) -> str:
        if self.turns:
            return ", then ".join(map(str, self.turns))
        return f"{self.name}: {self.actors} x ({self.cpus:g} CPU, {self.gpus:g} GPU)"


def actor_bundle(role: Role) -> dict[str, float]:
    """Return what one actor asks for; Ray counts in ten-thousandths and grants no empty bundle."""
    bundle = {"CPU": max(role.cpus, 0.0001)}
    return {**bundle, "GPU": role.gpus} if role.gpus else bundle


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


def reserve(roles: Sequence[Role]) -> dict[str, list[PlacementGroup]]:
    """Reserve the places of all actors; return them by role: one for each actor, or one in all.

    What needs most of one node comes first, whatever the order of the roles: smaller actors would
    leave no node with room for it.

    Raises:
        ClusterError: as `place`; nothing stays reserved.
    """
    groups: dict[str, list[PlacementGroup]] = {}
    try:
        for role in sorted(roles, key=_needed_on_a_node, reverse=True):
            parts = [replace(role, name=f"{role.name}-{i}", actors=1) for i in range(role.actors)]
            groups[role.name] = []
            for part in [role] if role.together else parts:
                groups[role.name].append(place(part))
    except BaseException:
        release(groups)
        raise
    return groups


def _needed_on_a_node(role: Role) -> tuple[float, float]:
    actors = role.actors if role.together else 1
    return actors * role.gpus, actors * role.cpus


def release(groups: Mapping[str, Sequence[PlacementGroup]]) -> None:
    """Give places back; those that were given back already stay so."""
    for group in (group for role in groups.values() for group in role):
        ray.util.remove_placement_group(group)


def place(
    role: Role, *, wanted: Callable[[], bool] = lambda: True, patient: bool = False
) -> PlacementGroup:
    """Reserve one bundle per actor of the role; wait until Ray grants them.

    Patient: for as long as it is wanted, as an autoscaler or a node that comes back may grant them
    yet; what is missing is logged again and again.

    Raises:
        ClusterError: not granted in time, or not wanted any more; the message says what is free.
    """
    if role.actors > 1 and role.together and (group := _place_on_one_node(role)) is not None:
        return group
    bundle = actor_bundle(role)
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


def _place_on_one_node(role: Role) -> PlacementGroup | None:
    """Reserve one bundle per actor on one node; None where no node has the room."""
    bundle = actor_bundle(role)
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    fits = any(
        all(node.get(unit, 0.0) >= role.actors * share - 1e-6 for unit, share in bundle.items())
        for node in nodes
    )
    if fits:
        name = f"{role.name} on one node"  # no two groups may have one name
        group = placement_group([bundle] * role.actors, strategy="STRICT_PACK", name=name)
        if group.wait(ONE_NODE_TIMEOUT_S):
            return group
        ray.util.remove_placement_group(group)
    log.warning(
        "%s: %s, so its actors may be on several, which talk over the network: see "
        "NCCL_SOCKET_IFNAME in cluster/README.md",
        role,
        "no node has room for it now" if fits else "it is larger than any node",
    )
    return None


def place_again(role: Role, group: PlacementGroup) -> PlacementGroup:
    """Return where the role's actors may start again: their old group, which Ray moves if its node
    is lost, or another one if Ray finds no room for it, as it was, in time.

    Raises:
        ClusterError: as `place`.
    """
    deadline = time.monotonic() + ONE_NODE_TIMEOUT_S
    while placement_group_table(group)["state"] != "CREATED":
        if time.monotonic() >= deadline:
            ray.util.remove_placement_group(group)
            return place(role)
        time.sleep(PLACEMENT_LOOK_S / 4)
    return group


def _no_place(role: Role, bundle: Mapping[str, float], waited_s: float) -> str:
    resources = ray.available_resources()
    free = {unit: resources.get(unit, 0.0) for unit in bundle}
    return (
        f"waited {waited_s:.0f} s for {role.actors} x {bundle}; free now: {free}. Another job may "
        "hold them, or a bundle is larger than any single node."
    )


def actor_options(role: Role, group: PlacementGroup, index: int, *, bundle: int) -> dict[str, Any]:
    """Return Ray options that put actor ``index`` of the role into a bundle of the group."""
    return {
        "name": f"{role.name}-{index}",
        "num_cpus": max(role.cpus, 0.0001),
        "num_gpus": role.gpus,
        "scheduling_strategy": PlacementGroupSchedulingStrategy(
            group, placement_group_bundle_index=bundle
        ),
        "runtime_env": {"env_vars": actor_env(role)},
    }


def submitted_env() -> dict[str, str]:
    """Return the variables that `ray job submit --runtime-env-json` gave this job.

    They win over ours. Ray refuses a job that names one of them again for all its processes.
    """
    told = json.loads(os.environ.get(RAY_JOB_CONFIG_JSON_ENV_VAR, "{}"))
    return dict((told.get("runtime_env") or {}).get("env_vars") or {})


def job_env() -> dict[str, str]:
    """Return the variables of all processes of a job, without those that the user submitted."""
    return {name: value for name, value in QUIET_ENV.items() if name not in submitted_env()}


def actor_env(role: Role) -> dict[str, str]:
    """Return the variables of the role's actors. What the user submitted wins over all but what
    keeps an actor off GPUs that Ray has not lent it.

    By itself Ray hides no GPU from an actor that asked for none.
    """
    threads = {"OMP_NUM_THREADS": str(max(1, math.floor(role.cpus)))}
    if role.gpus:
        return {**QUIET_ENV, **threads, **submitted_env(), RAY_SHOWS_ALL: "0"}
    # Else DeepSpeed looks for a GPU, and says that none is there.
    no_gpu = {"DS_ACCELERATOR": "cpu"}
    return {**QUIET_ENV, **threads, **no_gpu, **submitted_env(), VISIBLE: ""}


def driver_node() -> NodeAffinitySchedulingStrategy:
    """Return Ray's strategy for what must be on the driver's node."""
    return NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
