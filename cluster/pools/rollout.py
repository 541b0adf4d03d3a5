"""The rollout pool: Reasoner engines that sample traces and pull the weights of each version."""

import logging
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import ray
from ray.exceptions import RayError
from ray.util.placement_group import PlacementGroup

from cluster.faults import cause_of
from cluster.pictures import SharedPictures
from cluster.placement import Role
from cluster.pools.pool import Pool
from cluster.pools.submission import Answer, GivenUp
from cluster.pools.work_router import Chunk, Unit
from configs.common import MediaConfig, RolloutConfig
from data.errors import EmbedRLError, EngineLost, WeightSyncError
from data.pickling import Packed
from data.types import Content, DroppedTrajectory, GenerationRequest, GroupKey, Trajectory
from rollout.actor import RolloutActor, StoreAddress, SyncReport

log = logging.getLogger(__name__)
POISONED = "poisoned"
"""Why a trace is dropped whose request killed its actors."""
LINGER_S = 0.02
"""Traces that are done within this time are passed on together: every call costs the driver."""
PULLS = 2
"""Times that an engine tries to take a version."""


class RolloutPool(Pool):
    """Reasoner engines that sample traces; ``actor`` is their class."""

    def __init__(
        self,
        model: str,
        rollout: RolloutConfig,
        media: MediaConfig,
        *,
        store: StoreAddress | None = None,
        role: str = "rollout",
        actor: type = RolloutActor,
        reserved: Sequence[PlacementGroup] = (),
    ) -> None:
        pool = rollout.pool
        self._version: int | None = None
        self._quarantined: dict[Content, str] = {}
        """Why, by prompt, of those whose requests killed their actors: ids repeat among sets."""
        self._pulling = threading.Lock()
        """Held while engines come to hold a version: none may join with another one."""
        remote = ray.remote(actor)
        super().__init__(
            Role(role, pool.actors, pool.cpus, pool.gpus),
            timeout_s=pool.timeout_s,
            start_timeout_s=pool.start_timeout_s,
            reserved=reserved,
            max_items=rollout.engine.max_num_seqs,
            create=lambda name, options: remote.options(**options).remote(
                name=name,
                model=str(Path(model).absolute()),
                engine=rollout.engine,
                sampling=rollout.sampling,
                media=media,
                store=store,
            ),
        )

    def load(self, name: str, actor: Any) -> None:
        """Wait until an engine has loaded its model."""
        ray.get(actor.ready.remote(), timeout=self.start_timeout_s)

    def call(self, actor: Any, chunk: Chunk) -> Any:
        """Have traces sampled."""
        return actor.generate.remote(Packed(chunk.requests), *chunk.submission.shared)

    def sign_of_life(self, actor: Any) -> Any:
        """Ask an engine when its steps last advanced: long traces take longer than any time-out."""
        return actor.seconds_since_step.remote()

    def admit(self, name: str, actor: Any) -> None:
        """Let an engine take calls once it holds the same weights as the others.

        Raises:
            WeightSyncError: the engine holds other weights.
        """
        with self._pulling:
            if self._version is not None:
                pulled = actor.pull_weights.remote(self._version)
                ray.get(pulled, timeout=self.timeout_s).check()
            super().admit(name, actor)

    def stream(
        self,
        requests: Sequence[GenerationRequest],
        pictures: SharedPictures,
        *,
        urgent: bool = False,
    ) -> Iterator[tuple[list[Trajectory], list[DroppedTrajectory]]]:
        """Sample one trace per request; yield them as they are done.

        Siblings go to one engine, where they share a prefix. What killed its actors before is not
        asked again. ``urgent``: see `submit`.
        """
        groups: dict[GroupKey, list[GenerationRequest]] = {}
        for request in requests:
            groups.setdefault(request.key.group, []).append(request)
        units = []
        for siblings in groups.values():
            if (reason := self._quarantined.get(siblings[0].content)) is not None:
                yield [], [DroppedTrajectory(request.key, POISONED, reason) for request in siblings]
            else:
                units.append(Unit(tuple(siblings), float(len(siblings))))
        submission = self.submit(units, pictures.refs, urgent=urgent)
        for answers in submission.arrivals(LINGER_S):
            traces = [trace for answer in answers for trace in self._traces(answer)]
            done = [trace for trace in traces if isinstance(trace, Trajectory)]
            yield done, [trace for trace in traces if isinstance(trace, DroppedTrajectory)]

    def generate(
        self,
        requests: Sequence[GenerationRequest],
        pictures: SharedPictures,
        *,
        urgent: bool = False,
    ) -> tuple[list[Trajectory], list[DroppedTrajectory]]:
        """Return what `stream` yields, in the order of the requests."""
        place = {request.key: index for index, request in enumerate(requests)}
        done: list[Trajectory] = []
        dropped: list[DroppedTrajectory] = []
        for traces, lost in self.stream(requests, pictures, urgent=urgent):
            done += traces
            dropped += lost
        done.sort(key=lambda trajectory: place[trajectory.key])
        dropped.sort(key=lambda trajectory: place[trajectory.key])
        return done, dropped

    def pull_weights(self, version: int) -> list[SyncReport]:
        """Let every engine load that version from the store and verify it.

        An engine that dies during the pull is replaced. An engine whose pull fails tries again at
        once; if the pull fails again, though other engines succeeded, the engine is replaced.

        Raises:
            WeightSyncError: all engines failed, the version is to blame.
        """
        with self._pulling:
            self._version = version
            self.touch()  # frozen engines answer nothing meanwhile
            deadline = time.monotonic() + self.timeout_s
            pulls = {actor.pull_weights.remote(version): (n, 1) for n, actor in self.actors.items()}
            reports: list[SyncReport] = []
            failed: dict[str, BaseException] = {}
            while pulls:
                remaining_s = max(0.0, deadline - time.monotonic())
                ready, _ = ray.wait(list(pulls), num_returns=1, timeout=remaining_s)
                ref = ready[0] if ready else next(iter(pulls))
                name, tries = pulls.pop(ref)
                try:
                    report: SyncReport = ray.get(ref, timeout=0)
                    report.check()
                    reports.append(report)
                except (RayError, WeightSyncError) as error:
                    cause = cause_of(error)
                    actor = self.actors.get(name)
                    if not isinstance(cause, EmbedRLError) or isinstance(cause, EngineLost):
                        self.lose(name, f"pulling version {version}: {cause!r}")
                    elif actor is not None and tries < PULLS:
                        log.warning("%s: pulls version %d again: %s", name, version, cause)
                        pulls[actor.pull_weights.remote(version)] = (name, tries + 1)
                        deadline = time.monotonic() + self.timeout_s
                    elif actor is not None:
                        failed[name] = cause
            self.touch()
            if failed and not reports:
                raise WeightSyncError("; ".join(f"{n}: {failed[n]}" for n in sorted(failed)))
            for name, cause in failed.items():
                self.lose(name, f"pulling version {version}: {cause}")
            return reports

    def _traces(self, answer: Answer) -> Sequence[Trajectory | DroppedTrajectory]:
        if not isinstance(answer.value, GivenUp):
            return answer.value
        asked, reason = answer.chunk.requests, answer.value.reason
        for content, group in {request.content: request.key.group for request in asked}.items():
            log.warning("%s %s is set aside: it %s", group.pair_id, group.side, reason)
            self._quarantined[content] = reason
        return [DroppedTrajectory(request.key, POISONED, reason) for request in asked]
