"""What the Embedder pool is held against: vLLM alone, in an actor of the same settings."""

import asyncio
from typing import Any

from configs.common import EngineConfig, MediaConfig
from data.engine.arguments import set_engine_environment
from data.types import EmbedRequest, Pictures


class DirectEmbedder:
    """Calls vLLM's `encode` on inputs that were prepared before."""

    def __init__(self, *, model: str, engine: EngineConfig, media: MediaConfig) -> None:
        set_engine_environment(engine)
        # vLLM reads its environment when it is imported.
        from reward.engines.vllm_embedder import VLLMEmbedder

        self._embedder = VLLMEmbedder(model, engine, media, pooling="emb_token", instruction="")

    async def ready(self) -> None:
        """Start the engine."""
        await self._embedder.start()

    async def prepare(self, requests: list[EmbedRequest], pictures: Pictures) -> None:
        """Make token ids and sized pictures of the requests."""
        self._inputs: list[tuple[str, dict[str, Any]]] = []
        for request in requests:
            prompt = self._embedder.encode(request.content, pictures)
            inputs = {
                "prompt_token_ids": prompt.ids,
                "multi_modal_data": {"image": prompt.images},
            }
            self._inputs.append((request.key, inputs))

    async def encode(self) -> int:
        """Embed what was prepared; return how many answers came."""
        return len(await asyncio.gather(*(self._one(*one) for one in self._inputs)))

    async def close(self) -> None:
        """Stop the engine."""
        self._embedder.close()

    async def _one(self, key: str, inputs: dict[str, Any]) -> Any:
        from vllm import PoolingParams

        stream = self._embedder._llm.encode(inputs, PoolingParams(task="embed"), key)
        (output,) = [final async for final in stream]
        return output
