"""The rollout, reward and judge pools: what their actors are asked, and what becomes of it.

All answers are joined by key.
"""

import logging
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import ray
from ray.exceptions import RayError

from cluster.faults import cause_of
from cluster.pictures import SharedPictures
from cluster.placement import Role
from cluster.pools.batch import Answer, Batch, GivenUp
from cluster.pools.pool import Pool
from cluster.pools.routing import Chunk, Unit, content_cost, vector_fault
from configs.schema import JudgeConfig, MediaConfig, RewardConfig, RolloutConfig
from data.errors import ClusterError, EmbedRLError, EngineLost, WeightSyncError
from data.types import (
    Content,
    DroppedTrajectory,
    EmbedRequest,
    GenerationRequest,
    GroupKey,
    Judgement,
    JudgeQuestion,
    Packed,
    Trajectory,
)
from reward.engines.embedder_actor import EmbedderActor
from reward.engines.judge_actor import JudgeActor
from rollout.actor import RolloutActor, StoreAddress, SyncReport

log = logging.getLogger(__name__)
POISONED = "poisoned"
"""Why a trace is dropped whose request killed its actors."""
LINGER_S = 0.02
"""Traces that are done within this time are passed on together: every call costs the driver."""
PULLS = 2
"""Times that an engine tries to take a version."""

Embedded = tuple[dict[str, np.ndarray], dict[str, str]]
"""Unit vectors [D] by key, and the reason for each key that failed."""


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
        ray.get(actor.ready.remote(), timeout=self.timeout_s)

    def call(self, actor: Any, chunk: Chunk) -> Any:
        """Have traces sampled."""
        return actor.generate.remote(Packed(chunk.requests), chunk.batch.shared)

    def sign_of_life(self, actor: Any) -> Any:
        """Ask an engine when its steps last advanced: long traces take longer than any time-out."""
        return actor.seconds_since_step.remote()

    def admit(self, name: str, actor: Any) -> None:
        """Let an engine take calls that holds the weights which all others hold.

        Raises:
            WeightSyncError: it holds something else.
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
        for some in groups.values():
            if (reason := self._quarantined.get(some[0].content)) is not None:
                yield [], [DroppedTrajectory(one.key, POISONED, reason) for one in some]
            else:
                units.append(Unit(tuple(some), float(len(some))))
        batch = self.submit(units, pictures.ref, urgent=urgent)
        for answers in batch.arrivals(LINGER_S):
            found = [one for answer in answers for one in self._traces(answer)]
            done = [one for one in found if isinstance(one, Trajectory)]
            yield done, [one for one in found if isinstance(one, DroppedTrajectory)]

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
        done.sort(key=lambda one: place[one.key])
        dropped.sort(key=lambda one: place[one.key])
        return done, dropped

    def pull_weights(self, version: int) -> list[SyncReport]:
        """Let every engine load that version from the store and verify it.

        An engine that dies of it is replaced; one that fails tries again at once, and is replaced
        where it fails again though others do not.

        Raises:
            WeightSyncError: all engines failed, the version is to blame.
        """
        with self._pulling:
            self._version = version
            self.touch()  # frozen engines answer nothing meanwhile
            deadline = time.monotonic() + self.timeout_s
            pulls = {one.pull_weights.remote(version): (n, 1) for n, one in self.actors.items()}
            reports: list[SyncReport] = []
            failed: dict[str, BaseException] = {}
            while pulls:
                left = max(0.0, deadline - time.monotonic())
                ready, _ = ray.wait(list(pulls), num_returns=1, timeout=left)
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
        for content, group in {one.content: one.key.group for one in asked}.items():
            log.warning("%s %s is quarantined: it %s", group.pair_id, group.side, reason)
            self._quarantined[content] = reason
        return [DroppedTrajectory(one.key, POISONED, reason) for one in asked]


class RewardPool(Pool):
    """Frozen Embedder engines; ``actor`` is their class."""

    def __init__(
        self,
        reward: RewardConfig,
        media: MediaConfig,
        *,
        role: str = "reward",
        actor: type = EmbedderActor,
    ) -> None:
        pool = reward.pool
        self.media = media
        self.width = 0
        remote = ray.remote(actor)
        super().__init__(
            Role(role, pool.actors, pool.cpus, pool.gpus),
            timeout_s=pool.timeout_s,
            max_items=reward.engine.max_num_seqs,
            create=lambda name, options: remote.options(**options).remote(
                name=name,
                model=str(Path(reward.model).absolute()),
                engine=reward.engine,
                media=media,
                pooling=reward.pooling,
                instruction=reward.instruction,
            ),
        )

    def load(self, name: str, actor: Any) -> None:
        """Wait until an engine has loaded its model.

        Raises:
            ClusterError: engines disagree about the vectors' width.
        """
        width = ray.get(actor.ready.remote(), timeout=self.timeout_s)
        with self._change:
            self.width = self.width or width
            if width != self.width:
                raise ClusterError(
                    f"expected Embedders with vectors of one width, {self.width}, found {width} at "
                    f"{name}; the nodes hold different models under the path reward.model"
                )

    def call(self, actor: Any, chunk: Chunk) -> Any:
        """Have contents embedded."""
        return actor.embed.remote(Packed(chunk.requests), chunk.batch.shared)

    def embed(self, requests: Sequence[EmbedRequest], pictures: SharedPictures) -> Embedded:
        """Return unit vectors [D] by key, and the reason for each key that failed.

        Both in the order of the requests; equal contents are embedded once. An item that fails is
        tried on another actor before it is given up. Call `ready` before.

        Raises:
            ClusterError: no actor is left.
        """
        return self.begin(requests, pictures, more=False)()

    def begin(
        self, requests: Sequence[EmbedRequest], pictures: SharedPictures, *, more: bool
    ) -> Callable[[], Embedded]:
        """Begin to embed, and return what waits for the end; as `embed`. ``more``: see `submit`."""
        first: dict[Content, EmbedRequest] = {}
        # By key from here on: a content's hash costs as much as reading it.
        sent = {one.key: first.setdefault(one.content, one).key for one in requests}
        units = [
            Unit((one,), content_cost(one.content, pictures.sizes, self.media))
            for one in first.values()
        ]
        batch = self.submit(units, pictures.ref, more=more)

        def finish() -> Embedded:
            vectors, failed = self._collected(batch, pictures.ref)
            return (
                {key: vectors[one] for key, one in sent.items() if one in vectors},
                {key: failed[one] for key, one in sent.items() if one in failed},
            )

        return finish

    def _collected(self, batch: Batch, pictures: Any) -> Embedded:
        """Return what became of a batch; what failed is tried once more."""
        vectors: dict[str, np.ndarray] = {}
        failed: dict[str, str] = {}
        again: dict[str, list[Unit]] = {}
        """What failed once, by the actor on which it did."""
        for answer in batch:
            found, reasons = self._sorted(answer)
            vectors |= found
            if isinstance(answer.value, GivenUp):
                failed |= reasons
            elif reasons:
                units = [one for one in answer.chunk.units if one.requests[0].key in reasons]
                again.setdefault(answer.actor, []).extend(units)
        second = [self.submit(units, pictures, failed_on=name) for name, units in again.items()]
        for answer in (one for batch in second for one in batch):
            found, reasons = self._sorted(answer)
            vectors |= found
            failed |= reasons
        with self._change:
            self.counts["retried"] += sum(map(len, again.values()))
            self.counts["failed"] += len(failed)
        return vectors, failed

    def _sorted(self, answer: Answer) -> Embedded:
        """Return the good vectors of an answer, and the reasons for what is missing."""
        asked = answer.chunk.requests
        if isinstance(answer.value, GivenUp):
            return {}, {request.key: answer.value.reason for request in asked}
        vectors, failed = answer.value
        good: dict[str, np.ndarray] = {}
        bad: dict[str, str] = {}
        for request in asked:
            if request.key in vectors:
                reason = vector_fault(vectors[request.key], self.width)
            else:
                nothing = f"{answer.actor} gave neither a vector nor a reason"
                reason = failed.get(request.key, nothing)
            if reason is None:
                good[request.key] = vectors[request.key]
            else:
                bad[request.key] = reason
        return good, bad


class JudgePool(Pool):
    """Frozen judge engines."""

    def __init__(self, judge: JudgeConfig) -> None:
        pool = judge.pool
        config = replace(judge, model=str(Path(judge.model).absolute()))
        remote = ray.remote(JudgeActor)
        super().__init__(
            Role("judge", pool.actors, pool.cpus, pool.gpus),
            timeout_s=pool.timeout_s,
            max_items=judge.engine.max_num_seqs,
            create=lambda name, options: remote.options(**options).remote(name=name, config=config),
        )

    def load(self, name: str, actor: Any) -> None:
        """Wait until an engine has loaded the judge."""
        ray.get(actor.ready.remote(), timeout=self.timeout_s)

    def call(self, actor: Any, chunk: Chunk) -> Any:
        """Have questions answered."""
        return actor.judge.remote(Packed(chunk.requests))

    def judge(
        self, questions: Sequence[JudgeQuestion]
    ) -> tuple[dict[str, Judgement], dict[str, str]]:
        """Return verdicts by trace key, and the reason for each key that failed."""
        judged: dict[str, Judgement] = {}
        failed: dict[str, str] = {}
        units = [Unit((question,), 1.0) for question in questions]
        for answer in self.submit(units, None):
            if isinstance(answer.value, GivenUp):
                failed |= {one.key: answer.value.reason for one in answer.chunk.requests}
                continue
            some, reasons = answer.value
            judged |= some
            failed |= reasons
        return judged, failed
