"""A process beside the driver, for work that the driver should not do."""

from collections.abc import Callable
from typing import Any

import ray

from cluster.session import driver_node

RETRIES = 2
"""Times that work is done again whose process died."""


class Beside:
    """One process on the driver's node that does one thing after another, for any thread.

    The driver has other work, and what crashes there leaves the driver alive. An actor and not
    tasks: where a node has more actors than CPUs, Ray ends a process without work after a second,
    and the next one costs seconds to start.
    """

    def __init__(self) -> None:
        self._actor = (
            ray.remote(_Worker)
            .options(
                num_cpus=0,
                scheduling_strategy=driver_node(),
                max_restarts=-1,
                max_task_retries=RETRIES,
            )
            .remote()
        )

    def start(self, function: Callable[..., Any], *args: Any, returns: int = 1) -> Any:
        """Have a module's function called there; return its references, to wait for."""
        return self._actor.call.options(num_returns=returns).remote(function, *args)

    def close(self) -> None:
        """End the process."""
        ray.kill(self._actor)


class _Worker:
    def call(self, function: Callable[..., Any], *args: Any) -> Any:
        return function(*args)
