"""How many actors a running job's pools shall have: asked from outside, done between two steps."""

import logging
from collections.abc import Mapping
from typing import Any

import ray

from cluster.pools import Pool
from data.errors import ClusterError, EmbedRLError

log = logging.getLogger(__name__)
TARGETS = "pool-targets"
"""Name of the actor in the run's namespace."""
TIMEOUT_S = 60.0


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


def resize_pools(pools: Mapping[str, Pool], targets: Any) -> dict[str, float]:
    """Give the pools the sizes asked for, and return how many actors each has.

    A pool that cannot have them keeps what it has: that ends no run.
    """
    for name, count in ray.get(targets.take.remote(), timeout=TIMEOUT_S).items():
        log.info("%s: from %d to %d actors", name, len(pools[name].actors), count)
        try:
            pools[name].resize(count)
        except EmbedRLError as error:
            log.warning("%s stays at %d actors: %s", name, len(pools[name].actors), error)
    return {f"pool/{name}/actors": float(len(pool.actors)) for name, pool in pools.items()}
