"""How old traces may be: the steps under way are bounded, and traces that are too old dropped.

    admit() -> [collecting] -> put() -> [waiting] -> take()

A step is collected only after it is admitted. Steps are admitted up to the version in training +
`max_staleness`, one more with `stale=drop`. This bounds staleness and the number of steps in
memory.
"""

import logging
import queue
import threading
from dataclasses import replace
from typing import Generic, TypeVar

from cluster.rl.rounds import SampledRound
from configs.schema import RLConfig
from data.errors import ClusterError
from data.types import DroppedTrajectory

T = TypeVar("T")
log = logging.getLogger(__name__)
REMIND_S = 60.0
"""Who waits for a step says so this often; what it waits for has timeouts of its own."""


class StepBuffer(Generic[T]):
    """Steps in order, numbered by the version that they train."""

    def __init__(self) -> None:
        self._turn = threading.Condition()
        self._admitted = 0
        self._closed = False
        self._done: queue.SimpleQueue[T | BaseException] = queue.SimpleQueue()

    def admit(self, step: int) -> None:
        """Let all steps up to that one be collected."""
        with self._turn:
            self._admitted = max(self._admitted, step)
            self._turn.notify_all()

    def wait_until_admitted(self, step: int) -> bool:
        """Return True once a step may be collected, False when nothing will be any more."""
        with self._turn:
            self._turn.wait_for(lambda: self._closed or step <= self._admitted)
            return not self._closed

    @property
    def closed(self) -> bool:
        """Whether nothing will be collected any more."""
        return self._closed

    def pause(self, seconds: float) -> None:
        """Wait for so long, or until it is closed.

        Raises:
            ClusterError: it is closed.
        """
        with self._turn:
            if self._turn.wait_for(lambda: self._closed, seconds):
                raise ClusterError("nothing is collected any more")

    def put(self, step: T) -> None:
        """Hand on the next step."""
        self._done.put(step)

    def fail(self, error: BaseException) -> None:
        """Hand on what ended the collection."""
        self._done.put(error)

    def take(self, name: str) -> T:
        """Return the next step.

        Raises:
            BaseException: what ended the collection.
        """
        while True:
            try:
                step = self._done.get(timeout=REMIND_S)
            except queue.Empty:
                log.warning("%s: still waiting for its traces to be sampled", name)
                continue
            if isinstance(step, BaseException):
                raise step
            return step

    def close(self) -> None:
        """Let no further step be collected."""
        with self._turn:
            self._closed = True
            self._turn.notify_all()


def newest_admitted(version: int, config: RLConfig) -> int:
    """Return up to which step collecting may run ahead while ``version`` is in training."""
    ahead = config.max_staleness + (config.stale == "drop")
    return min(version + ahead, max(version, config.steps))


def drop_stale(sampled: SampledRound, *, version: int, max_staleness: int) -> SampledRound:
    """Return a round without the traces that are too old to train ``version``.

    Such a trace began under weights more than ``max_staleness`` versions older.
    """
    oldest = version - max_staleness
    late = [trace.trajectory for trace in sampled.scored if trace.trajectory.min_version < oldest]
    if not late:
        return sampled
    bound = f"expected weights of version {oldest} or newer, found"
    dropped = [DroppedTrajectory(t.key, "stale", f"{bound} {t.min_version}") for t in late]
    keys = {trace.key for trace in late}
    scored = [trace for trace in sampled.scored if trace.trajectory.key not in keys]
    return replace(sampled, scored=scored, dropped=[*sampled.dropped, *dropped])
