"""Pools of Embedders, and the vectors that they give to contents: ours, and rivals."""

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import ray
from ray.util.placement_group import PlacementGroup

from cluster.pictures import SharedPictures
from cluster.placement import Role
from cluster.pools.pool import Pool
from cluster.pools.submission import Answer, GivenUp, Submission
from cluster.pools.work_router import Chunk, Unit
from configs.common import EngineConfig, MediaConfig, PoolConfig
from configs.reward import RewardConfig
from data.errors import ClusterError
from data.pickling import Packed
from data.token_cost import content_cost
from data.types import Content, EmbedRequest
from reward.engines.embedder_actor import EmbedderActor

Embedded = tuple[dict[str, np.ndarray], dict[str, str]]
"""Unit vectors [D] by key, and the reason for each key that failed."""


class EmbedderPool(Pool):
    """Frozen Embedders.

    Args:
        role: its name.
        pool: how many actors, and what each asks Ray for.
        limits: of pictures, by which the cost of a content is guessed.
        actor: class of the actors, with the methods of `EmbedderActor`.
        model: folder of the Embedder.
        engine: its limits.
        reserved: places for the actors; empty: they are asked for.
        settings: what else each actor is made with.
    """

    def __init__(
        self,
        role: str,
        pool: PoolConfig,
        limits: MediaConfig,
        *,
        actor: type,
        model: str,
        engine: EngineConfig,
        reserved: Sequence[PlacementGroup] = (),
        **settings: Any,
    ) -> None:
        self.limits = limits
        self.width = 0
        """Numbers of a vector; 0 until the first Embedder has loaded."""
        remote = ray.remote(actor)
        settings |= {"model": str(Path(model).absolute()), "engine": engine}
        super().__init__(
            Role(role, pool.actors, pool.cpus, pool.gpus),
            timeout_s=pool.timeout_s,
            start_timeout_s=pool.start_timeout_s,
            reserved=reserved,
            max_items=engine.max_num_seqs,
            create=lambda name, options: remote.options(**options).remote(name=name, **settings),
        )

    def load(self, name: str, actor: Any) -> None:
        """Wait until an Embedder has loaded.

        Raises:
            ClusterError: Embedders disagree about the vectors' width.
        """
        width = ray.get(actor.ready.remote(), timeout=self.start_timeout_s)
        with self._change:
            self.width = self.width or width
            if width != self.width:
                raise ClusterError(
                    f"expected Embedders with vectors of one width, {self.width}, found {width} at "
                    f"{name}; the nodes hold different models under its path"
                )

    def call(self, actor: Any, chunk: Chunk) -> Any:
        """Have contents embedded."""
        return actor.embed.remote(Packed(chunk.requests), *chunk.submission.shared)

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
        by_content: dict[Content, EmbedRequest] = {}
        # By key from here on: a content's hash costs as much as reading it.
        embedded_as = {
            request.key: by_content.setdefault(request.content, request).key for request in requests
        }
        units = [
            Unit((request,), content_cost(request.content, pictures.sizes, self.limits))
            for request in by_content.values()
        ]
        submission = self.submit(units, pictures.refs, more=more)

        def finish() -> Embedded:
            vectors, failed = self._collect_vectors(submission, pictures.refs)
            return (
                {key: vectors[same] for key, same in embedded_as.items() if same in vectors},
                {key: failed[same] for key, same in embedded_as.items() if same in failed},
            )

        return finish

    def _collect_vectors(self, submission: Submission, pictures: Sequence[Any]) -> Embedded:
        """Return the vectors and failures of a submission; what failed is tried once more."""
        vectors: dict[str, np.ndarray] = {}
        failed: dict[str, str] = {}
        again: dict[str, list[Unit]] = {}
        """What failed once, by the actor on which it did."""
        for answer in submission:
            good, reasons = self._check_vectors(answer)
            vectors |= good
            if isinstance(answer.value, GivenUp):
                failed |= reasons
            elif reasons:
                units = [unit for unit in answer.chunk.units if unit.requests[0].key in reasons]
                again.setdefault(answer.actor, []).extend(units)
        second = [self.submit(units, pictures, failed_on=name) for name, units in again.items()]
        for answer in (answer for submission in second for answer in submission):
            good, reasons = self._check_vectors(answer)
            vectors |= good
            failed |= reasons
        with self._change:
            self.counts["retried"] += sum(map(len, again.values()))
            self.counts["failed"] += len(failed)
        return vectors, failed

    def _check_vectors(self, answer: Answer) -> Embedded:
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


class RewardPool(EmbedderPool):
    """The frozen Embedder on vLLM; ``actor`` is the class of its actors."""

    def __init__(
        self,
        reward: RewardConfig,
        media: MediaConfig,
        *,
        role: str = "reward",
        actor: type = EmbedderActor,
        reserved: Sequence[PlacementGroup] = (),
    ) -> None:
        super().__init__(
            role,
            reward.pool,
            media,
            actor=actor,
            reserved=reserved,
            model=reward.model,
            engine=reward.engine,
            media=media,
            pooling=reward.pooling,
            instruction=reward.instruction,
        )


def vector_fault(vector: np.ndarray, width: int) -> str | None:
    """Return what is wrong with a vector that should be finite and [width], None if nothing."""
    if vector.shape != (width,):
        return f"expected a vector of width {width}, found shape {vector.shape}"
    if not math.isfinite(vector @ vector):  # in a fraction of the time of looking at each number
        return "the vector holds NaN or infinity"
    return None
