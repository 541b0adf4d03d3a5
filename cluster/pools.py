"""Rollout, reward and judge pools: equal actors of one role share requests, joined by key."""

import itertools
import logging
import threading
import time
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import ray
from ray.exceptions import RayError, RayTaskError
from ray.util.placement_group import PlacementGroup

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


class Pool(ABC):
    """Equal actors, each in a placement group of its own, so that single ones can come and go.

    Args:
        create: makes an actor of a name and of Ray's options.
    """

    def __init__(
        self, role: Role, *, timeout_s: float, create: Callable[[str, dict[str, Any]], Any]
    ) -> None:
        self.role = role
        self.timeout_s = timeout_s
        self._create = create
        self._groups: dict[str, PlacementGroup] = {}
        self._serving: dict[str, Any] = {}
        self._users: Counter[str] = Counter()
        """Calls under way by actor."""
        self._change = threading.Condition()
        self._started = 0
        self._serving = self._start(role.actors)

    @property
    def actors(self) -> dict[str, Any]:
        """The actors that take calls, by name."""
        return dict(self._serving)

    def wait(self, refs: Mapping[str, Any], what: str) -> list[Any]:
        """Return one result per actor; ``refs`` are by actor."""
        return wait_for(list(refs.values()), list(refs), timeout_s=self.timeout_s, what=what)

    @contextmanager
    def using(self) -> Iterator[dict[str, Any]]:
        """Yield the actors that take calls, by name; none of them is stopped meanwhile."""
        with self._change:
            held = self.actors
            self._users.update(held.keys())
        try:
            yield held
        finally:
            with self._change:
                self._users.subtract(held.keys())
                self._change.notify_all()

    def resize(self, count: int) -> None:
        """Start actors, or stop the youngest once their calls are done.

        New ones take calls when they are ready.

        Raises:
            ClusterError: the cluster has no room, or calls did not end in time; the pool stays as
                it was.
        """
        if count > len(self._serving):
            born = self._start(count - len(self._serving))
            with ExitStack() as undo:
                undo.callback(self._stop, born)
                self.prepare(born)
                self.admit(born)
                undo.pop_all()
        with self._change:
            names = list(self._serving)[count:]
            leaving = {name: self._serving.pop(name) for name in names}
            idle = self._change.wait_for(
                lambda: not any(self._users[name] for name in names), self.timeout_s
            )
        if not idle:
            self.admit(leaving)
            raise ClusterError(
                f"{self.role.name}: calls on {', '.join(names)} did not end within "
                f"{self.timeout_s:g} s; they stay"
            )
        self._stop(leaving)

    @abstractmethod
    def prepare(self, actors: Mapping[str, Any]) -> None:
        """Wait until actors have loaded what they serve."""

    def admit(self, actors: Mapping[str, Any]) -> None:
        """Let actors that are prepared take calls."""
        with self._change:
            self._serving |= actors

    def ready(self) -> None:
        """Wait until all actors can take calls."""
        self.prepare(self.actors)

    def close(self) -> None:
        """Stop the actors and give their bundles back; a dead or stuck one hinders nothing."""
        self._stop(self.actors)
        self._serving.clear()

    def _start(self, count: int) -> dict[str, Any]:
        born: dict[str, Any] = {}
        first, self._started = self._started, self._started + count
        with ExitStack() as undo:
            undo.callback(self._stop, born)
            for index in range(first, self._started):
                name = f"{self.role.name}-{index}"
                self._groups[name] = group = place(replace(self.role, name=name, actors=1))
                born[name] = self._create(name, actor_options(self.role, group, index, bundle=0))
            undo.pop_all()
        return born

    def _stop(self, actors: Mapping[str, Any]) -> None:
        if refs := [actor.close.remote() for actor in actors.values()]:
            ray.wait(refs, num_returns=len(refs), timeout=self.timeout_s)
        for name, actor in actors.items():
            ray.kill(actor)
            ray.util.remove_placement_group(self._groups.pop(name))


class RolloutPool(Pool):
    """Reasoner engines that sample traces; ``actor`` is their class."""

    def __init__(
        self,
        model: str,
        rollout: RolloutConfig,
        media: MediaConfig,
        *,
        store: StoreAddress | None = None,
        actor: type = RolloutActor,
    ) -> None:
        pool = rollout.pool
        remote = ray.remote(actor)
        self._version: int | None = None
        self._pulling = threading.Lock()
        """Held while engines come to hold a version: none may join with another one."""
        super().__init__(
            Role("rollout", pool.actors, pool.cpus, pool.gpus),
            timeout_s=pool.timeout_s,
            create=lambda name, options: remote.options(**options).remote(
                name=name,
                model=str(Path(model).absolute()),
                engine=rollout.engine,
                sampling=rollout.sampling,
                media=media,
                store=store,
            ),
        )

    def prepare(self, actors: Mapping[str, Any]) -> None:
        """Wait until engines have loaded their model."""
        refs = {name: actor.ready.remote() for name, actor in actors.items()}
        self.wait(refs, "loading the Reasoner")

    def admit(self, actors: Mapping[str, Any]) -> None:
        """Let engines take calls that hold the weights which all others hold.

        Raises:
            WeightSyncError: one holds something else.
        """
        with self._pulling:
            if self._version is not None:
                for report in self._pull(actors, self._version):
                    report.check()
            super().admit(actors)

    def generate(
        self, requests: Sequence[GenerationRequest], pictures: Any
    ) -> tuple[list[Trajectory], list[DroppedTrajectory]]:
        """Sample one trace per request; siblings go to one engine, where they share a prefix.

        ``pictures`` is an object reference to the decoded files.
        """
        groups = sorted({request.key.group for request in requests}, key=str)
        with self.using() as actors:
            home = dict(zip(groups, itertools.cycle(actors)))
            shares: dict[str, list[GenerationRequest]] = {name: [] for name in actors}
            for request in requests:
                shares[home[request.key.group]].append(request)
            refs = {
                name: actors[name].generate.remote(share, pictures)
                for name, share in shares.items()
            }
            results = [one for share in self.wait(refs, "sampling traces") for one in share]
        done = [one for one in results if isinstance(one, Trajectory)]
        dropped = [one for one in results if isinstance(one, DroppedTrajectory)]
        return done, dropped

    def pull_weights(self, version: int) -> list[SyncReport]:
        """Let every engine load that version from the store and verify it."""
        with self._pulling, self.using() as actors:
            self._version = version
            return self._pull(actors, version)

    def _pull(self, actors: Mapping[str, Any], version: int) -> list[SyncReport]:
        refs = {name: actor.pull_weights.remote(version) for name, actor in actors.items()}
        return self.wait(refs, f"pulling weights version {version}")


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
        # Two engine batches in flight: one runs, the next is at hand.
        self.max_items = max(1, 2 * reward.engine.max_num_seqs // CHUNKS_IN_FLIGHT)
        self.width = 0
        self.counts: Counter[str] = Counter()
        self._embedding = threading.Lock()
        remote = ray.remote(actor)
        super().__init__(
            Role(role, pool.actors, pool.cpus, pool.gpus),
            timeout_s=pool.timeout_s,
            create=lambda name, options: remote.options(**options).remote(
                name=name,
                model=str(Path(reward.model).absolute()),
                engine=reward.engine,
                media=media,
                pooling=reward.pooling,
                instruction=reward.instruction,
            ),
        )

    def prepare(self, actors: Mapping[str, Any]) -> None:
        """Wait until engines have loaded their model.

        Raises:
            ClusterError: engines disagree about the vectors' width.
        """
        refs = {name: actor.ready.remote() for name, actor in actors.items()}
        widths = dict(zip(refs, self.wait(refs, "loading the Embedder"), strict=True))
        expected = self.width or next(iter(widths.values()))
        if set(widths.values()) != {expected}:
            found = ", ".join(f"{name}: {width}" for name, width in widths.items())
            raise ClusterError(
                f"expected Embedders with vectors of one width, {expected}, found {found}; the "
                "nodes hold different models under the path reward.model"
            )
        self.width = expected

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
        # One call at a time: deadlines begin when chunks are sent, and counts are shared.
        with self._embedding, self.using() as actors:
            return self._embed(requests, pictures, actors)

    def _embed(
        self, requests: Sequence[EmbedRequest], pictures: Any, actors: Mapping[str, Any]
    ) -> tuple[dict[str, np.ndarray], dict[str, str]]:
        sizes = {uri: pixels.shape[:2] for uri, pixels in ray.get(pictures).items()}
        router = Router(
            requests,
            {one.content: content_cost(one.content, sizes, self.media) for one in requests},
            actors=list(actors),
            max_items=self.max_items,
            width=self.width,
        )
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
        config = replace(judge, model=str(Path(judge.model).absolute()))
        remote = ray.remote(JudgeActor)
        super().__init__(
            Role("judge", pool.actors, pool.cpus, pool.gpus),
            timeout_s=pool.timeout_s,
            create=lambda name, options: remote.options(**options).remote(name=name, config=config),
        )

    def prepare(self, actors: Mapping[str, Any]) -> None:
        """Wait until engines have loaded the judge."""
        self.wait({name: one.ready.remote() for name, one in actors.items()}, "loading the judge")

    def judge(
        self, questions: Sequence[JudgeQuestion]
    ) -> tuple[dict[str, Judgement], dict[str, str]]:
        """Return verdicts by trace key, and the reason for each key that failed."""
        actors = self.actors
        refs = {
            name: actor.judge.remote(list(questions[index :: len(actors)]))
            for index, (name, actor) in enumerate(actors.items())
        }
        judged: dict[str, Judgement] = {}
        failed: dict[str, str] = {}
        for some, reasons in self.wait(refs, "judging traces"):
            judged.update(some)
            failed.update(reasons)
        return judged, failed
