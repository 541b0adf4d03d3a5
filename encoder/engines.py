"""What an `Encoder` asks of engines, and the engines of one process."""

import os
from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from configs.schema import EncoderConfig
from data.media.pictures import load_pictures
from data.types import (
    DroppedTrajectory,
    EmbedRequest,
    GenerationRequest,
    Pictures,
    Trajectory,
)
from reward.engines.embedder_actor import EmbedderActor
from rollout.actor import RolloutActor


class SharedPictures(Protocol):
    """Decoded pictures, wherever they are."""

    @property
    def sizes(self) -> Mapping[str, tuple[int, int]]:
        """(height, width) by uri."""


class Engines(Protocol):
    """A Reasoner, where there is one, and an Embedder. All but `share` runs in one event loop."""

    async def start(self) -> int:
        """Start the engines; return the width D of the vectors."""

    def share(
        self, uris: Set[str], pixels: Pictures, *, frames: Set[str]
    ) -> tuple[Any, Mapping[str, str]]:
        """Return `SharedPictures` of decoded files and of ``pixels``, and why files failed, by uri.

        Called in several threads at a time. ``frames`` as in `load_pictures`.

        Raises:
            DataError: the files hold more than `data.media.max_step_bytes`.
        """

    async def generate(
        self, requests: list[GenerationRequest], pictures: Any
    ) -> Sequence[Trajectory | DroppedTrajectory]:
        """Return a trace, or why there is none, for each request.

        Raises:
            EngineLost: the engine died.
        """

    async def embed(
        self, requests: list[EmbedRequest], pictures: Any
    ) -> tuple[Mapping[str, np.ndarray], Mapping[str, str]]:
        """Return unit vectors, float32 [D], by key, and the reason by key for those that failed.

        Raises:
            EngineLost: the engine died.
        """

    def healthy(self) -> bool:
        """Return whether all engines can serve."""

    async def close(self) -> None:
        """Stop the engines."""


@dataclass(frozen=True, slots=True)
class LoadedPictures:
    """Pictures in the memory of this process."""

    pixels: Pictures

    @property
    def sizes(self) -> dict[str, tuple[int, int]]:
        return {uri: pixels.shape[:2] for uri, pixels in self.pixels.items()}


class ProcessEngines:
    """Engines that belong to this process; vLLM computes in child processes of it."""

    def __init__(self, reasoner: str, config: EncoderConfig) -> None:
        self._reasoner_folder, self._config = reasoner, config
        self._reasoner: RolloutActor | None = None
        self._embedder: EmbedderActor | None = None

    async def start(self) -> int:
        """Start the engines one after the other; return the width D of the vectors."""
        # A fork of a process with threads may hang.
        os.environ.setdefault("VLLM_WORKER_MULTIPROC_METHOD", "spawn")
        # As the jobs have it: vLLM warns of what is meant so.
        os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
        os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
        config, reward = self._config, self._config.reward
        if self._reasoner_folder:
            reasoner = RolloutActor(
                name="reasoner",
                model=str(Path(self._reasoner_folder).absolute()),
                engine=config.rollout.engine,
                sampling=config.rollout.sampling,
                media=config.data.media,
                store=None,
            )
            await reasoner.ready()
            self._reasoner = reasoner
        embedder = EmbedderActor(
            name="embedder",
            model=str(Path(reward.model).absolute()),
            engine=reward.engine,
            media=config.data.media,
            pooling=reward.pooling,
            instruction=reward.instruction,
        )
        width = await embedder.ready()
        self._embedder = embedder
        return width

    def share(
        self, uris: Set[str], pixels: Pictures, *, frames: Set[str]
    ) -> tuple[LoadedPictures, Mapping[str, str]]:
        """Return the pictures; see `Engines`."""
        loaded, failed = load_pictures(uris, self._config.data.media, frames=frames)
        return LoadedPictures({**loaded, **pixels}), failed

    async def generate(
        self, requests: list[GenerationRequest], pictures: LoadedPictures
    ) -> Sequence[Trajectory | DroppedTrajectory]:
        """Return traces; see `Engines`."""
        return await self._reasoner.generate(requests, pictures.pixels)

    async def embed(
        self, requests: list[EmbedRequest], pictures: LoadedPictures
    ) -> tuple[Mapping[str, np.ndarray], Mapping[str, str]]:
        """Return vectors; see `Engines`."""
        return await self._embedder.embed(requests, pictures.pixels)

    def healthy(self) -> bool:
        """Return whether the engines' processes run."""
        return all(actor.healthy() for actor in self._started())

    async def close(self) -> None:
        """Stop the engines' processes."""
        for actor in self._started():
            await actor.close()

    def _started(self) -> list[RolloutActor | EmbedderActor]:
        return [actor for actor in (self._reasoner, self._embedder) if actor is not None]
