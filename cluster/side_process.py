"""A process beside the driver or on another node, for work that the driver should not do."""

import logging
import threading
from collections.abc import Callable
from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from cluster.faults import wait_for
from cluster.placement import driver_node

log = logging.getLogger(__name__)
RETRIES = 2
"""Times that work is done again whose process died."""


class SideProcess:
    """One process, on the driver's node if no ``node`` is named, that does one thing after another.

    The driver has other work, and what crashes there leaves the driver alive. An actor and not
    tasks: where actors hold all CPUs of a node, Ray ends a process without work after a second, and
    the next one costs seconds to start. Ray starts it again where it died, on any node if its own
    is gone, and has it do again what it died of, and what it made that was lost with a node.

    Args:
        name: for messages.
    """

    def __init__(self, name: str, *, node: str | None = None) -> None:
        self._name = name
        self._turn = threading.Lock()
        """Held while it works: others that waited in its queue would die with it."""
        place = NodeAffinitySchedulingStrategy(node, soft=True) if node else driver_node()
        options = {"num_cpus": 0, "max_restarts": -1, "max_task_retries": RETRIES}
        remote = ray.remote(SideProcessActor)
        self._actor = remote.options(**options, scheduling_strategy=place).remote()

    def run(
        self,
        function: Callable[..., Any],
        *args: Any,
        what: str,
        timeout_s: float,
        returns: int = 1,
    ) -> tuple[list[Any], Any]:
        """Have a module's function called there; return the last of what it returned.

        Where that is several things, ``returns`` of them, also references to those before.

        Raises:
            ActorLost: the process died of it, each time.
            ClusterError: it did not end in time, or failed in a way that is not ours.
            EmbedRLError: what the function raised.
        """
        with self._turn:
            refs = self._actor.call.options(num_returns=returns).remote(function, *args)
            all_refs = refs if returns > 1 else [refs]
            [value] = wait_for(all_refs[-1:], [self._name], timeout_s=timeout_s, what=what)
        return all_refs[:-1], value

    def close(self) -> None:
        """End the process; who waits for it is told."""
        ray.kill(self._actor)


class SideProcessActor:
    """The Ray actor whose process does the work; Ray's pages and `ps` show this class name."""

    def call(self, function: Callable[..., Any], *args: Any) -> Any:
        """Return what a function returns."""
        return function(*args)
