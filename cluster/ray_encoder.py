"""An `Encoder` with engines in Ray's pools: on all nodes, and replaced when they die."""

import asyncio
import os
import uuid
from collections.abc import Callable, Mapping, Sequence, Set
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from typing import TypeVar

import numpy as np
import ray

from cluster.pictures import Decoder, SharedPictures, join_pictures
from cluster.placement import Role
from cluster.pools.reward import RewardPool
from cluster.pools.rollout import RolloutPool
from cluster.session import session
from configs.schema import EncoderConfig
from data.types import (
    DroppedTrajectory,
    EmbedRequest,
    GenerationRequest,
    Pictures,
    Trajectory,
)
from encoder.encoder import Encoder, with_embedder

T = TypeVar("T")
CALLS = 64
"""That wait for pools at a time; more wait for their turn."""


def encoder_on_ray(
    embedder: str | os.PathLike[str],
    reasoner: str | os.PathLike[str] | None = None,
    config: EncoderConfig | None = None,
    *,
    nodes_timeout_s: float = 60.0,
) -> Encoder:
    """Return an encoder whose engines are pools on Ray, as large as ``config`` says.

    Ray is the one that this process has joined, else that of RAY_ADDRESS, else one of its own, for
    whose nodes it waits up to ``nodes_timeout_s``. Models lie where all nodes have them. The rest
    as in `Encoder.from_pretrained`.

    Raises:
        ClusterError: Ray cannot give what the pools ask for, or an engine does not start.
    """
    folder = os.fspath(reasoner or "")
    config = with_embedder(config, embedder)
    return Encoder(folder, config, RayEngines(folder, config, nodes_timeout_s))


class RayEngines:
    """Engines in pools (`encoder.engines.Engines`)."""

    def __init__(self, reasoner: str, config: EncoderConfig, nodes_timeout_s: float) -> None:
        self._reasoner_folder, self._config = reasoner, config
        self._nodes_timeout_s = nodes_timeout_s
        self._name = f"encoder-{uuid.uuid4().hex[:12]}"
        """Another encoder may be on the same Ray."""
        self._threads = ThreadPoolExecutor(CALLS, thread_name_prefix="encoder-pools")
        self._opened = ExitStack()
        self._reasoner: RolloutPool | None = None
        self._embedder: RewardPool | None = None

    async def start(self) -> int:
        """Join or start Ray, and start all engines; return the width D of the vectors."""
        return await self._aside(self._start)

    def _start(self) -> int:
        config, media = self._config, self._config.data.media
        pools = {"reward": config.reward.pool}
        if self._reasoner_folder:
            pools["rollout"] = config.rollout.pool
        names = {role: f"{self._name}-{role}" for role in pools}
        if not ray.is_initialized():
            roles = [Role(names[role], p.actors, p.cpus, p.gpus) for role, p in pools.items()]
            self._opened.enter_context(
                session(roles, namespace=self._name, nodes_timeout_s=self._nodes_timeout_s)
            )
        self._decoder = Decoder()
        self._opened.callback(self._decoder.close)
        embedder = RewardPool(config.reward, media, role=names["reward"])
        self._opened.callback(embedder.close)
        if self._reasoner_folder:
            folder, role = self._reasoner_folder, names["rollout"]
            self._reasoner = RolloutPool(folder, config.rollout, media, role=role)
            self._opened.callback(self._reasoner.close)
            self._reasoner.ready()
        embedder.ready()
        self._embedder = embedder
        return embedder.width

    def share(
        self, uris: Set[str], pixels: Pictures, *, frames: Set[str]
    ) -> tuple[SharedPictures, Mapping[str, str]]:
        """Return references to the pictures; files are decoded in processes of their own."""
        shared, failed = self._decoder.share(uris, self._config.data.media, frames=frames)
        if not pixels:
            return shared, failed
        sizes = {uri: values.shape[:2] for uri, values in pixels.items()}
        return join_pictures([shared, SharedPictures((ray.put(pixels),), sizes)]), failed

    async def generate(
        self, requests: list[GenerationRequest], pictures: SharedPictures
    ) -> Sequence[Trajectory | DroppedTrajectory]:
        """Return traces; an engine that dies is replaced meanwhile."""
        done, dropped = await self._aside(self._reasoner.generate, requests, pictures)
        return [*done, *dropped]

    async def embed(
        self, requests: list[EmbedRequest], pictures: SharedPictures
    ) -> tuple[Mapping[str, np.ndarray], Mapping[str, str]]:
        """Return vectors; an engine that dies is replaced meanwhile."""
        return await self._aside(self._embedder.embed, requests, pictures)

    def healthy(self) -> bool:
        """Return whether each pool has an engine."""
        pools = (self._embedder, self._reasoner)
        return all(pool.actors for pool in pools if pool is not None)

    async def close(self) -> None:
        """Stop the engines, and the Ray that was started or joined for them."""
        # In the loop, as no thread can be asked where the interpreter ends; no call runs any more.
        self._opened.close()
        self._threads.shutdown(wait=False)

    async def _aside(self, function: Callable[..., T], *args: object) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._threads, function, *args)
