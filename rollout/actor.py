"""RolloutActor: a plain class around one vLLM engine; the cluster makes it a Ray actor."""

import asyncio
import logging
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from configs.common import EngineConfig, MediaConfig, SamplingConfig
from data.engine.arguments import set_engine_environment
from data.errors import DataError, WeightSyncError
from data.model.chat import EncodedPrompt
from data.pickling import Packed
from data.types import (
    Content,
    DroppedTrajectory,
    GenerationRequest,
    Pictures,
    Trajectory,
    merge_pictures,
)
from rollout.weights.report import StoreAddress, SyncReport

log = logging.getLogger(__name__)
FAILED = "generation_failed"


class RolloutActor:
    """Samples traces with one copy of the Reasoner.

    ``store`` None: the weights never change.
    """

    def __init__(
        self,
        *,
        name: str,
        model: str,
        engine: EngineConfig,
        sampling: SamplingConfig,
        media: MediaConfig,
        store: StoreAddress | None,
    ) -> None:
        self.name = name
        self._takes_weights = store is not None
        set_engine_environment(engine)
        # Here and not above: the driver imports this file to wrap the class and must not load
        # vLLM, and vLLM reads its environment when it is imported.
        from rollout.vllm_engine import VLLMEngine

        self._engine = VLLMEngine(model, engine, sampling, media, store=store)

    async def ready(self) -> None:
        """Start the engine and load the newest weights, if there are any.

        Where that fails the engine serves nothing until `pull_weights` succeeds.
        """
        await self._engine.start()
        if self._takes_weights:
            try:
                await self._engine.pull_newest()
            except WeightSyncError as error:
                log.warning("%s: serves nothing yet: %s", self.name, error)

    async def generate(
        self, requests: list[GenerationRequest], *parts: Pictures
    ) -> list[Trajectory | DroppedTrajectory]:
        """Sample all traces at once; one that fails is dropped with its reason.

        ``parts`` hold the decoded pictures of the requests by uri, each in at least one part.

        Raises:
            WeightSyncError: the last pull failed.
        """
        pictures = merge_pictures(parts)
        prompts: dict[Content, EncodedPrompt | DataError] = {}
        for request in requests:
            if request.content not in prompts:
                prompts[request.content] = self._encode(request.content, pictures)
        done = await asyncio.gather(*(self._one(r, prompts[r.content]) for r in requests))
        return Packed(share_prompts(requests, done))

    async def seconds_since_step(self) -> float:
        """Return for how long the engine has not advanced."""
        return self._engine.seconds_since_step()

    async def pull_weights(self, version: int) -> SyncReport:
        """Load a published version; see `VLLMEngine.pull_weights`."""
        return await self._engine.pull_weights(version)

    def healthy(self) -> bool:
        """Return whether the engine's process runs."""
        return self._engine.healthy()

    async def close(self) -> None:
        """Stop the engine."""
        self._engine.close()

    def _encode(self, content: Content, pictures: Pictures) -> EncodedPrompt | DataError:
        try:
            return self._engine.encoder.encode(content, pictures)
        except DataError as error:
            return error

    async def _one(
        self, request: GenerationRequest, prompt: EncodedPrompt | DataError
    ) -> Trajectory | DroppedTrajectory:
        if isinstance(prompt, DataError):
            return DroppedTrajectory(request.key, FAILED, str(prompt))
        try:
            return await self._engine.generate(request, prompt)
        except DataError as error:
            return DroppedTrajectory(request.key, FAILED, str(error))


def share_prompts(
    requests: Sequence[GenerationRequest], traces: Sequence[Trajectory | DroppedTrajectory]
) -> list[Trajectory | DroppedTrajectory]:
    """Return the requests' traces; those of one content hold one and the same prompt array.

    So it is sent and stored once and not once per sibling, here and on its way to the learner:
    pickle writes an object again only by its number.
    """
    prompts: dict[Content, np.ndarray] = {}
    return [
        replace(trace, prompt_ids=prompts.setdefault(request.content, trace.prompt_ids))
        if isinstance(trace, Trajectory)
        else trace
        for request, trace in zip(requests, traces, strict=True)
    ]
