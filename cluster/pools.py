"""Rollout, reward and judge pools: equal actors of one role share requests, joined by key."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import ray

from cluster.session import Role, actor_options, place, wait_for
from configs.schema import JudgeConfig, MediaConfig, RewardConfig, RolloutConfig
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
        """Stop the actors and give their bundles back."""
        refs = [actor.close.remote() for actor in self.actors]
        self.wait(refs, f"closing {self.role.name}")
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

    def __init__(self, reward: RewardConfig, media: MediaConfig) -> None:
        pool = reward.pool
        super().__init__(
            Role("reward", pool.actors, pool.cpus, pool.gpus), timeout_s=pool.timeout_s
        )
        remote = ray.remote(EmbedderActor)
        self.start(
            lambda name, options: remote.options(**options).remote(
                name=name,
                model=str(Path(reward.model).absolute()),
                engine=reward.engine,
                media=media,
            )
        )

    def ready(self) -> None:
        """Wait until every engine has loaded its model."""
        self.wait([actor.ready.remote() for actor in self.actors], "loading the Embedder")

    def embed(
        self, requests: Sequence[EmbedRequest], pictures: Any
    ) -> tuple[dict[str, Any], dict[str, str]]:
        """Return unit vectors [D] by key, and the reason for each key that failed."""
        # Equal contents go to one actor, which embeds them once.
        home: dict[Any, int] = {}
        shares: list[list[EmbedRequest]] = [[] for _ in self.actors]
        for request in requests:
            index = home.setdefault(request.content, len(home) % len(self.actors))
            shares[index].append(request)
        refs = [
            actor.embed.remote(share, pictures)
            for actor, share in zip(self.actors, shares, strict=True)
        ]
        vectors: dict[str, Any] = {}
        failed: dict[str, str] = {}
        for some, reasons in self.wait(refs, "embedding"):
            vectors.update(some)
            failed.update(reasons)
        return vectors, failed


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
