"""The Embedder on vLLM's pooling runner: pooled hidden states, made unit vectors."""

import numpy as np
from vllm import AsyncEngineArgs, PoolingParams
from vllm.config import PoolerConfig
from vllm.exceptions import VLLMClientError
from vllm.inputs import TokensPrompt
from vllm.v1.engine.async_llm import AsyncLLM
from vllm.v1.engine.exceptions import EngineDeadError, EngineGenerateError

from configs.common import EngineConfig, MediaConfig
from configs.reward import Pooling
from data.cues import MAX_BOXES
from data.engine.arguments import engine_arguments, pooling_type
from data.errors import DataError, EngineLost
from data.model.chat import EncodedPrompt, load_encoder
from data.model.model_folder import sees_videos
from data.types import Content, Pictures


class VLLMEmbedder:
    """vLLM's AsyncLLM for one frozen Embedder; ``pooling`` and ``instruction`` as in RewardConfig.

    Raises:
        ConfigError: the model has no `<emb>` token to pool at.
    """

    def __init__(
        self,
        model: str,
        engine: EngineConfig,
        media: MediaConfig,
        *,
        pooling: Pooling,
        instruction: str,
    ) -> None:
        self.encoder = load_encoder(model, media)
        self.encoder.check_pooling(pooling)
        self._pooling: Pooling = pooling
        self._instruction = instruction
        self._max_tokens = engine.max_model_len
        # A picture with its crops, or a video's frames with the key frames among them again.
        most = max(1 + MAX_BOXES, 2 * media.max_frames) if self.encoder.sees_pictures else 0
        self._arguments = AsyncEngineArgs(
            **engine_arguments(
                model,
                engine,
                max_pictures=most,
                videos=media.video == "video" and sees_videos(model),
            ),
            runner="pooling",
            pooler_config=PoolerConfig(pooling_type=pooling_type(pooling)),
        )

    async def start(self) -> None:
        """Load the model; blocks for seconds."""
        self._llm = AsyncLLM.from_engine_args(self._arguments)

    @property
    def width(self) -> int:
        """Width D of the vectors of a started engine."""
        return self._llm.model_config.embedding_size

    def encode(self, content: Content, pictures: Pictures) -> EncodedPrompt:
        """Return what the Embedder reads of a content.

        Raises:
            DataError: a picture was not loaded.
        """
        return self.encoder.embed(
            content,
            pictures,
            pooling=self._pooling,
            instruction=self._instruction,
            max_tokens=self._max_tokens,
        )

    async def embed(self, key: str, prompt: EncodedPrompt) -> np.ndarray:
        """Return the prompt's unit vector, float32 [D].

        Raises:
            DataError: vLLM refused the prompt, ran another one, or gave no finite vector.
            EngineLost: the engine's process died.
        """
        inputs = TokensPrompt(prompt_token_ids=prompt.ids)
        if media := prompt.multi_modal_data():
            inputs["multi_modal_data"] = media
        try:
            stream = self._llm.encode(inputs, PoolingParams(task="embed"), key)
            (output,) = [final async for final in stream]
        except EngineDeadError as error:
            raise EngineLost(f"{key}: the engine's process died: {error}") from None
        except (VLLMClientError, EngineGenerateError, ValueError) as error:
            cause = error.__cause__ or error
            raise DataError(f"{key}: vLLM refused the input: {cause}") from error
        if output.prompt_token_ids != prompt.expanded:
            raise DataError(
                f"{key}: expected vLLM to run the training-time input of {len(prompt.expanded)} "
                f"tokens, it ran another of {len(output.prompt_token_ids)}; the picture sizes "
                "differ between the two"
            )
        vector = output.outputs.data.float().numpy()
        length = float(np.linalg.norm(vector))
        if not np.isfinite(length) or length == 0:
            raise DataError(f"{key}: expected a finite vector, found length {length}")
        return (vector / length).astype(np.float32)

    def healthy(self) -> bool:
        """Return whether the processes of a started engine run."""
        return not self._llm.errored

    def close(self) -> None:
        """Stop the engine's processes."""
        self._llm.shutdown()
        del self._llm  # at interpreter exit its own clean-up would fail noisily
