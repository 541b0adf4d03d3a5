"""A training loop that goes on from its last checkpoint when it loses its learner group."""

import logging
from collections.abc import Callable
from typing import Protocol, TypeVar

from data.errors import ClusterError, DamagedCheckpoint, LearnerLost

T = TypeVar("T")
log = logging.getLogger(__name__)
MAX_RESTARTS = 3
"""Restarts in a row without a step that had not been done before: more are no bad luck."""


class Restartable(Protocol):
    """What can be lost; `cluster.learner_group.LearnerGroup` is one."""

    @property
    def running(self) -> bool:
        """Whether its ranks are there."""

    def restart(self) -> None:
        """Start new ranks, as after the model was built."""


class Restarts:
    """Counts the restarts of a run, and ends it when they do not help."""

    def __init__(self) -> None:
        self.count = 0
        """Since the job was started."""
        self._in_vain = 0
        self._furthest = 0

    def completed(self, step: int) -> None:
        """Take note of a step that was done, perhaps for a second time."""
        if step > self._furthest:
            self._furthest = step
            self._in_vain = 0

    def lost(self, error: LearnerLost) -> None:
        """Take note of a lost group.

        Raises:
            ClusterError: it was restarted too often without a further step.
        """
        if self._in_vain == MAX_RESTARTS:
            raise ClusterError(
                f"the learner group was lost again after {MAX_RESTARTS} restarts without a step "
                f"beyond step {self._furthest}: {error}; see the ranks' logs. Once the cause is "
                "mended, the same command goes on from the last checkpoint"
            ) from error
        self._in_vain += 1
        self.count += 1
        log.warning("learner group lost, restart %d: %s", self.count, error)


def keep_training(learner: Restartable, attempt: Callable[[Restarts], T]) -> T:
    """Return what ``attempt`` returns, trying again whenever it loses the learner group.

    An attempt begins with a freshly built group, loads the newest checkpoint, if any, and reports
    every step that it completes. One that finds its checkpoint damaged has set it aside.

    Raises:
        ClusterError: restarts did not help.
    """
    restarts = Restarts()
    while True:
        try:
            if not learner.running:
                learner.restart()
            return attempt(restarts)
        except LearnerLost as error:
            restarts.lost(error)
        except DamagedCheckpoint:
            continue
