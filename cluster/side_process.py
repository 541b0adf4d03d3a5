"""A process beside the driver, for work that the driver should not do."""

import threading
from collections.abc import Callable
from typing import Any

import ray

from cluster.faults import wait_for
from cluster.placement import driver_node

RETRIES = 2
"""How often a call is repeated whose process died."""


class SideProcess:
    """One process on the driver's node that does one thing after another.

    The driver has other work, and what crashes there leaves the driver alive. An actor and not
    tasks: where actors hold all CPUs of a node, Ray ends a process without work after a second, and
    the next one costs seconds to start. If the process dies, Ray starts another one, which repeats
    the call, up to `RETRIES` times.

    Args:
        name: for messages.
    """

    def __init__(self, name: str) -> None:
        self._name = name
        self._turn = threading.Lock()
        """Held while it works: others that waited in its queue would die with it."""
        place = {"num_cpus": 0, "scheduling_strategy": driver_node()}
        again = {"max_restarts": -1, "max_task_retries": RETRIES}
        self._actor = ray.remote(SideProcessActor).options(**place, **again).remote()

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
        ``timeout_s`` is for all tries together.

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
