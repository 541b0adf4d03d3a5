"""How many actors a running job's pools shall have: asked from outside, done while it runs."""

import logging
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import ray
from ray.exceptions import RayError

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


class PoolScaler:
    """Gives pools the sizes asked for, one by one, in a thread: engines load beside the steps."""

    def __init__(self, pools: Mapping[str, Pool], targets: Any) -> None:
        self._pools = pools
        self._targets = targets
        self._work = ThreadPoolExecutor(1, "scaling")

    def step(self) -> dict[str, float]:
        """Begin what was asked for since the last time; return how many actors each pool has."""
        try:
            asked = ray.get(self._targets.take.remote(), timeout=TIMEOUT_S)
        except RayError as error:
            log.warning("pools keep their sizes: %s", error)
            asked = {}
        for name, count in asked.items():
            self._work.submit(self._resize, name, count).add_done_callback(_show_defect)
        return {
            f"pool/{name}/actors": float(len(pool.actors)) for name, pool in self._pools.items()
        }

    def close(self) -> None:
        """Forget what has not begun, and wait for what has."""
        self._work.shutdown(cancel_futures=True)

    def _resize(self, name: str, count: int) -> None:
        pool = self._pools[name]
        log.info("%s: from %d to %d actors", name, len(pool.actors), count)
        try:
            pool.resize(count)
        except (EmbedRLError, RayError) as error:  # that ends no run
            log.warning("%s stays at %d actors: %s", name, len(pool.actors), error)


def _show_defect(done: Future[None]) -> None:
    if not done.cancelled() and (error := done.exception()):
        log.error("a pool was not resized", exc_info=error)
