"""Brings a version of the learner's weights to all engines: announce it, put it, have it pulled.

    learner group -> publish() -> [object store] -> pull_weights() -> every rollout engine

Engines pull a version while the learner still puts it; see `cluster.weights.store`.
"""

import logging
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from threading import Lock
from typing import Any, Protocol

from data.errors import EmbedRLError, WeightSyncError
from data.weights.types import Published
from rollout.weights.report import SyncReport

log = logging.getLogger(__name__)


class PublishingLearner(Protocol):
    """Puts weights into the object store; `cluster.learner_group.LearnerGroup` is one."""

    def announce(self, version: int, store: Any, *, again: bool = False) -> None:
        """Let engines wait for a version; ``again``: it replaces all that the store holds."""

    def publish(self, version: int, store: Any) -> Published:
        """Put an announced version into the object store."""

    def check(self) -> None:
        """Return if all ranks answer."""


class PullingEngines(Protocol):
    """Engines that load the weights; `cluster.pools.rollout.RolloutPool` is one."""

    def pull_weights(self, version: int) -> list[SyncReport]:
        """Let every engine load that version from the store and verify it."""


class WeightSync:
    """Publishes one version after another and has every engine load it.

    ``store`` is the handle of a `WeightStore`. ``learning`` is held by the thread that uses the
    learner: its ranks must get all calls in one order.
    """

    def __init__(
        self, learner: PublishingLearner, engines: PullingEngines, store: Any, *, learning: Lock
    ) -> None:
        self.learner = learner
        self.engines = engines
        self.store = store
        self._learning = learning
        self.digest = ""
        """Of the weights that engines hold, see `Published.digest`; empty before the first sync."""

    def sync(self, version: int) -> dict[str, float]:
        """Publish the learner's weights as that version and have every engine load them.

        Return `sync_metrics`, with `sync/checksum_ok`.

        Raises:
            WeightSyncError: an engine holds other weights than the learner sent.
        """
        try:
            published, reports = self._publish_and_pull(version)
        except WeightSyncError as error:
            log.warning("%s; all weights are published again", error)
            published, reports = self._publish_and_pull(version, again=True)
        self.digest = published.digest
        # Where all engines were lost meanwhile, nothing was compared; their successors are.
        compared = {"sync/checksum_ok": 1.0} if reports else {}
        return {**compared, **sync_metrics(published, reports)}

    def _publish_and_pull(
        self, version: int, *, again: bool = False
    ) -> tuple[Published, list[SyncReport]]:
        """Let the engines pull a version while the learner puts it.

        A version is announced only when the learner is free to put it: engines that pull are
        frozen, and would stay frozen while the learner scores traces.

        Raises:
            LearnerLost: the learner failed, whatever became of the engines.
            WeightSyncError: the version was not published, or an engine holds other weights.
        """
        announced: Future[None] = Future()

        def publish() -> Published:
            with self._learning:
                try:
                    self.learner.announce(version, self.store, again=again)
                except BaseException as error:
                    announced.set_exception(error)
                    raise
                announced.set_result(None)
                return self.learner.publish(version, self.store)

        with ThreadPoolExecutor(1) as thread:
            publishing = thread.submit(publish)
            announced.result()
            try:
                reports = self.engines.pull_weights(version)
            except EmbedRLError:
                publishing.result()  # its own failure explains the other one
                with self._learning:
                    self.learner.check()  # the buckets vanish with the rank that put them
                raise
            published = publishing.result()
        return published, reports


def sync_metrics(published: Published, reports: Sequence[SyncReport]) -> dict[str, float]:
    """Return `sync/...` of one version: seconds by phase, of the slowest engine in each."""
    phases = {phase for report in reports for phase in report.phases}
    return {
        "sync/tensors": float(sum(report.tensors for report in reports)),
        "sync/bytes": float(sum(report.bytes for report in reports)),
        "sync/put_bytes": float(published.bytes),
        "sync/delta": float(published.delta),
        **{f"sync/{phase}_s": seconds for phase, seconds in published.seconds.items()},
        **{
            f"sync/engine_{phase}_s": max(report.phases.get(phase, 0.0) for report in reports)
            for phase in sorted(phases)
        },
    }
