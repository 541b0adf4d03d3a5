"""How many actors a running job's pools shall have: asked from outside, or decided by policy."""

import logging
import math
from collections.abc import Mapping
from typing import Any

import ray
from ray.exceptions import RayError

from cluster.pools.pool import Pool, PoolStats
from cluster.pools.work_router import CHUNKS_IN_FLIGHT
from configs.common import PoolConfig
from data.errors import ClusterError

log = logging.getLogger(__name__)
TARGETS = "pool-targets"
"""Name of the actor in the run's namespace."""
TARGETS_TIMEOUT_S = 60.0
IDLE_SHARE = 0.5
"""A pool whose actors are idle for more than this share of a step is too large."""
AIMED_BUSY = 0.75
"""Share of a step for which the actors of a pool that shrinks will be busy."""


def desired_size(stats: PoolStats, size: int, config: PoolConfig) -> int:
    """Return how many actors a pool shall have that had ``size`` of them during a step.

    It grows by as many as would have held the work that waited, at most to twice its size, and
    shrinks where actors were idle for most of the step; within `min_actors` and `max_actors`.
    """
    wanted = size
    if stats.waiting >= 1:
        wanted = min(2 * size, size + math.ceil(stats.waiting / CHUNKS_IN_FLIGHT))
    elif stats.busy < (1 - IDLE_SHARE) * stats.actors:
        wanted = min(size, math.ceil(stats.busy / AIMED_BUSY))
    return max(config.min_actors, min(wanted, config.max_actors))


class PoolTargets:
    """A plain class; the cluster makes it a named actor.

    Args:
        pools: names of the pools that can be resized.
    """

    def __init__(self, pools: tuple[str, ...]) -> None:
        self.pools = pools
        self._wanted: dict[str, int] = {}

    def ask(self, counts: Mapping[str, int]) -> None:
        """Remember wanted sizes by pool.

        Raises:
            ClusterError: a pool is unknown, or would have no actor.
        """
        for name, count in counts.items():
            if name not in self.pools or count < 1:
                raise ClusterError(
                    f"expected pool=count with a count of 1 or more for {', '.join(self.pools)}, "
                    f"found {name}={count}"
                )
        self._wanted |= counts

    def take(self) -> dict[str, int]:
        """Return what was asked for since the last time."""
        wanted, self._wanted = self._wanted, {}
        return wanted


class PoolScaler:
    """Gives pools the sizes that somebody asks for, or that their policies want.

    Args:
        pools: by name.
        policies: of the pools whose size follows from their load, by name.
        targets: handle of a `PoolTargets`.
    """

    def __init__(
        self, pools: Mapping[str, Pool], policies: Mapping[str, PoolConfig], targets: Any
    ) -> None:
        self._pools = pools
        self._policies = {name: policy for name, policy in policies.items() if policy.max_actors}
        self._targets = targets

    def step(self) -> dict[str, float]:
        """Begin to resize after a step; return the pools' counters, loads and sizes."""
        metrics: dict[str, float] = {}
        for name, pool in self._pools.items():
            stats = pool.stats()
            metrics |= pool.counters()
            metrics[f"pool/{name}/busy"] = stats.busy
            metrics[f"pool/{name}/waiting"] = stats.waiting
            if name in self._policies:
                pool.resize(desired_size(stats, pool.size, self._policies[name]))
        for name, count in self._asked().items():
            self._pools[name].resize(count)
        return metrics

    def _asked(self) -> dict[str, int]:
        try:
            return ray.get(self._targets.take.remote(), timeout=TARGETS_TIMEOUT_S)
        except RayError as error:
            log.warning("pools keep their sizes: %s", error)
            return {}
