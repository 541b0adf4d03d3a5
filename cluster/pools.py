"""Rollout, reward and judge pools: equal actors of one role share requests, joined by key."""

import logging
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import ray
from ray.exceptions import RayError, RayTaskError

from cluster.routing import CHUNKS_IN_FLIGHT, Chunk, Router, content_cost
from cluster.session import Role, actor_options, place, wait_for
from configs.schema import JudgeConfig, MediaConfig, RewardConfig, RolloutConfig
from data.errors import ClusterError
from data.types import (
    DroppedTrajectory,
    EmbedRequest,
    GenerationRequest,
    Judgement,
    JudgeQuestion,
    Trajectory,
)
from reward.actor import EmbedderActor
from reward.judge_actor import JudgeActor
from rollout.actor import RolloutActor, StoreAddress, SyncReport

log = logging.getLogger(__name__)


class Pool:
    """The actors of one role in a placement group of their own."""

    def __init__(self, role: Role, *, timeout_s: float) -> None:
        self.role = role
        self.timeout_s = timeout_s
        self.group = place(role)
        self.names = [f"{role.name}-{index}" for index in range(role.actors)]
        self.actors: list[Any] = []

    def start(self, create: Callable[[str, dict[str, Any]], Any]) -> None:
        """Create every actor by ``create(name, options)``."""
        for index, name in enumerate(self.names):
            self.actors.append(create(name, actor_options(self.role, self.group, index)))

    def wait(self, refs: Sequence[Any], what: str) -> list[Any]:
        """Return one result per actor."""
        names = self.names[: len(refs)]
        return wait_for(refs, names, timeout_s=self.timeout_s, what=what)

    def close(self) -> None:
        """Stop the actors and give their bundles back; a dead or stuck one hinders nothing."""
        refs = [actor.close.remote() for actor in self.actors]
        ray.wait(refs, num_returns=len(refs), timeout=self.timeout_s)
        for actor in self.actors:
            ray.kill(actor)
        ray.util.remove_placement_group(self.group)


class RolloutPool(Pool):
    """Reasoner engines that sample traces."""

    def __init__(
        self,
        model: str,
        rollout: RolloutConfig,
        media: MediaConfig,
        *,
        store: StoreAddress | None = None,
    ) -> None:
        pool = rollout.pool
        super().__init__(
            Role("rollout", pool.actors, pool.cpus, pool.gpus), timeout_s=pool.timeout_s
        )
        remote = ray.remote(RolloutActor)
        self.start(
            lambda name, options: remote.options(**options).remote(
                name=name,
                model=str(Path(model).absolute()),
                engine=rollout.engine,
                sampling=rollout.sampling,
                media=media,
                store=store,
            )
        )

    def ready(self) -> None:
        """Wait until every engine has loaded its model."""
        self.wait([actor.ready.remote() for actor in self.actors], "loading the Reasoner")

    def generate(
        self, requests: Sequence[GenerationRequest], pictures: Any
    ) -> tuple[list[Trajectory], list[DroppedTrajectory]]:
        """Sample one trace per request; siblings go to one engine, where they share a prefix.

        ``pictures`` is an object reference to the decoded files.
        """
        groups = sorted({request.key.group for request in requests}, key=str)
        home = {group: index % len(self.actors) for index, group in enumerate(groups)}
        shares: list[list[GenerationRequest]] = [[] for _ in self.actors]
        for request in requests:
            shares[home[request.key.group]].append(request)
        refs = [
            actor.generate.remote(share, pictures)
            for actor, share in zip(self.actors, shares, strict=True)
        ]
        results = [one for share in self.wait(refs, "sampling traces") for one in share]
        done = [one for one in results if isinstance(one, Trajectory)]
        dropped = [one for one in results if isinstance(one, DroppedTrajectory)]
        return done, dropped

    def pull_weights(self, version: int) -> list[SyncReport]:
        """Let every engine load that version from the store and verify it."""
        refs = [actor.pull_weights.remote(version) for actor in self.actors]
        return self.wait(refs, f"pulling weights version {version}")


class RewardPool(Pool):
    """Frozen Embedder engines."""

    def __init__(self, reward: RewardConfig, media: MediaConfig, *, role: str = "reward") -> None:
        pool = reward.pool
        super().__init__(Role(role, pool.actors, pool.cpus, pool.gpus), timeout_s=pool.timeout_s)
        self.media = media
        # Two engine batches in flight: one runs, the next is at hand.
        self.max_items = max(1, 2 * reward.engine.max_num_seqs // CHUNKS_IN_FLIGHT)
        self.width = 0
        self.counts: Counter[str] = Counter()
        remote = ray.remote(EmbedderActor)
        self.start(
            lambda name, options: remote.options(**options).remote(
                name=name,
                model=str(Path(reward.model).absolute()),
                engine=reward.engine,
                media=media,
                pooling=reward.pooling,
                instruction=reward.instruction,
            )
        )

    def ready(self) -> None:
        """Wait until every engine has loaded its model.

        Raises:
            ClusterError: the engines disagree about the vectors' width.
        """
        refs = [actor.ready.remote() for actor in self.actors]
        widths = self.wait(refs, "loading the Embedder")
        if len(set(widths)) > 1:
            found = ", ".join(f"{n}: {w}" for n, w in zip(self.names, widths, strict=True))
            raise ClusterError(
                f"expected Embedders with vectors of one width, found {found}; the nodes hold "
                "different models under the path reward.model"
            )
        self.width = widths[0]

    def embed(
        self, requests: Sequence[EmbedRequest], pictures: Any
    ) -> tuple[dict[str, np.ndarray], dict[str, str]]:
        """Return unit vectors [D] by key, and the reason for each key that failed.

        Both in the order of the requests; equal contents are embedded once. ``pictures`` is an
        object reference to the decoded files. An item that fails is tried on another actor before
        it is given up; an actor that fails is not used again in this call. Call `ready` before.

        Raises:
            ClusterError: every actor failed.
        """
        sizes = {uri: pixels.shape[:2] for uri, pixels in ray.get(pictures).items()}
        router = Router(
            requests,
            {one.content: content_cost(one.content, sizes, self.media) for one in requests},
            actors=self.names,
            max_items=self.max_items,
            width=self.width,
        )
        actors = dict(zip(self.names, self.actors, strict=True))
        calls: dict[Any, tuple[float, str, Chunk]] = {}
        while True:
            while (order := router.next()) is not None:
                name, chunk = order
                ref = actors[name].embed.remote(list(chunk.requests), pictures)
                calls[ref] = (time.monotonic() + self.timeout_s, name, chunk)
            if not calls:
                break
            # Calls are kept in the order in which they were sent: the first is due first.
            due, name, chunk = next(iter(calls.values()))
            ready, _ = ray.wait(list(calls), timeout=max(0.0, due - time.monotonic()))
            reason = f"no answer within timeout_s={self.timeout_s:g}"
            if ready:
                _, name, chunk = calls.pop(ready[0])
                try:
                    router.receive(name, chunk, *ray.get(ready[0]))
                    continue
                except RayError as error:
                    reason = repr(error.cause if isinstance(error, RayTaskError) else error)
            log.warning("%s: not used any more in this call: %s", name, reason)
            router.lose(name, reason)
            calls = {ref: call for ref, call in calls.items() if call[1] != name}
        vectors, failed = router.results()
        self.counts["retried"] += router.retried
        self.counts["failed"] += len(failed)
        self.counts["in_flight_max"] = max(self.counts["in_flight_max"], router.in_flight_max)
        return vectors, failed

    def counters(self) -> dict[str, float]:
        """Return `pool/reward/...` metrics of the calls since the last time this was asked.

        `retried` and `failed` count items, `in_flight_max` the most items one actor held at a time.
        """
        names = ("retried", "failed", "in_flight_max")
        counted = {f"pool/{self.role.name}/{name}": float(self.counts[name]) for name in names}
        self.counts.clear()
        return counted


class JudgePool(Pool):
    """Frozen judge engines."""

    def __init__(self, judge: JudgeConfig) -> None:
        pool = judge.pool
        super().__init__(Role("judge", pool.actors, pool.cpus, pool.gpus), timeout_s=pool.timeout_s)
        config = replace(judge, model=str(Path(judge.model).absolute()))
        remote = ray.remote(JudgeActor)
        self.start(lambda name, options: remote.options(**options).remote(name=name, config=config))

    def ready(self) -> None:
        """Wait until every engine has loaded its model."""
        self.wait([actor.ready.remote() for actor in self.actors], "loading the judge")

    def judge(
        self, questions: Sequence[JudgeQuestion]
    ) -> tuple[dict[str, Judgement], dict[str, str]]:
        """Return verdicts by trace key, and the reason for each key that failed."""
        refs = [
            actor.judge.remote(list(questions[index :: len(self.actors)]))
            for index, actor in enumerate(self.actors)
        ]
        judged: dict[str, Judgement] = {}
        failed: dict[str, str] = {}
        for some, reasons in self.wait(refs, "judging traces"):
            judged.update(some)
            failed.update(reasons)
        return judged, failed
