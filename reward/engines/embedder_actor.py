"""EmbedderActor: a plain class around one Embedder; the cluster makes it a Ray actor."""

import asyncio
import logging

import numpy as np

from configs.common import EngineConfig, MediaConfig
from configs.reward import Pooling
from data.engine.arguments import set_engine_environment
from data.errors import DataError
from data.types import EmbedRequest, Pictures, merge_pictures

log = logging.getLogger(__name__)


class EmbedderActor:
    """Embeds items with their traces and evidence; settings as in RewardConfig."""

    def __init__(
        self,
        *,
        name: str,
        model: str,
        engine: EngineConfig,
        media: MediaConfig,
        pooling: Pooling = "emb_token",
        instruction: str = "",
    ) -> None:
        self.name = name
        self._cut = 0
        set_engine_environment(engine)
        # Here and not above: the driver imports this file to wrap the class and must not load
        # vLLM, and vLLM reads its environment when it is imported.
        from reward.engines.vllm_embedder import VLLMEmbedder

        self._embedder = VLLMEmbedder(
            model, engine, media, pooling=pooling, instruction=instruction
        )

    async def ready(self) -> int:
        """Start the engine; return the width D of its vectors when it can serve."""
        await self._embedder.start()
        return self._embedder.width

    async def embed(
        self, requests: list[EmbedRequest], *parts: Pictures
    ) -> tuple[dict[str, np.ndarray], dict[str, str]]:
        """Return unit vectors, float32 [D], by key, and the reason by key for those that failed.

        ``parts`` hold the decoded pictures of the requests by uri, each in at least one part.
        """
        pictures = merge_pictures(parts)
        cut_before = self._cut
        results = await asyncio.gather(*(self._one(request, pictures) for request in requests))
        if self._cut.bit_length() > cut_before.bit_length():  # a run must not drown in lines
            log.warning(
                "%s: %d inputs so far were longer than reward.engine.max_model_len and lost their "
                "end, which is the trace: shorten the items' texts, or take an Embedder that reads "
                "more",
                self.name,
                self._cut,
            )
        vectors: dict[str, np.ndarray] = {}
        failed: dict[str, str] = {}
        for request, result in zip(requests, results, strict=True):
            if isinstance(result, DataError):
                failed[request.key] = str(result)
            else:
                vectors[request.key] = result
        return vectors, failed

    def healthy(self) -> bool:
        """Return whether the engine's process runs."""
        return self._embedder.healthy()

    async def close(self) -> None:
        """Stop the engine."""
        self._embedder.close()

    async def _one(self, request: EmbedRequest, pictures: Pictures) -> np.ndarray | DataError:
        try:
            prompt = self._embedder.encode(request.content, pictures)
            self._cut += prompt.cut > 0
            return await self._embedder.embed(request.key, prompt)
        except DataError as error:
            return error
