"""EmbedderActor: a plain class around one Embedder; the cluster makes it a Ray actor."""

import asyncio

import numpy as np

from configs.schema import EngineConfig, MediaConfig
from data.engine_args import set_engine_environment
from data.errors import DataError
from data.types import EmbedRequest, Pictures


class EmbedderActor:
    """Embeds items with their traces and evidence."""

    def __init__(self, *, name: str, model: str, engine: EngineConfig, media: MediaConfig) -> None:
        self.name = name
        set_engine_environment(engine)
        # Here and not above: the driver imports this file to wrap the class and must not load
        # vLLM, and vLLM reads its environment when it is imported.
        from reward.vllm_embedder import VLLMEmbedder

        self._embedder = VLLMEmbedder(model, engine, media)

    async def ready(self) -> int:
        """Start the engine; return the width D of its vectors when it can serve."""
        await self._embedder.start()
        return self._embedder.width

    async def embed(
        self, requests: list[EmbedRequest], pictures: Pictures
    ) -> tuple[dict[str, np.ndarray], dict[str, str]]:
        """Return unit vectors, float32 [D], by key, and the reason by key for those that failed."""
        results = await asyncio.gather(*(self._one(request, pictures) for request in requests))
        vectors: dict[str, np.ndarray] = {}
        failed: dict[str, str] = {}
        for request, result in zip(requests, results, strict=True):
            if isinstance(result, DataError):
                failed[request.key] = str(result)
            else:
                vectors[request.key] = result
        return vectors, failed

    async def close(self) -> None:
        """Stop the engine."""
        self._embedder.close()

    async def _one(self, request: EmbedRequest, pictures: Pictures) -> np.ndarray | DataError:
        try:
            prompt = self._embedder.encoder.embed(request.content, pictures)
            return await self._embedder.embed(request.key, prompt)
        except DataError as error:
            return error
