"""The Embedder on vLLM's pooling runner: the last token's hidden state, made a unit vector."""

import numpy as np
from vllm import AsyncEngineArgs, PoolingParams
from vllm.config import PoolerConfig
from vllm.exceptions import VLLMClientError
from vllm.inputs import TokensPrompt
from vllm.v1.engine.async_llm import AsyncLLM
from vllm.v1.engine.exceptions import EngineGenerateError

from configs.schema import EngineConfig, MediaConfig
from data.chat import ChatEncoder, EncodedPrompt
from data.cues import MAX_BOXES
from data.engine_args import engine_arguments
from data.errors import DataError
from data.model_folder import load_processor


class VLLMEmbedder:
    """vLLM's AsyncLLM for one frozen Embedder."""

    def __init__(self, model: str, engine: EngineConfig, media: MediaConfig) -> None:
        self.encoder = ChatEncoder(load_processor(model), media)
        # A picture with its crops, or a video's frames with the key frames among them again.
        most = max(1 + MAX_BOXES, 2 * media.max_frames)
        self._arguments = AsyncEngineArgs(
            **engine_arguments(model, engine, max_pictures=most),
            runner="pooling",
            pooler_config=PoolerConfig(pooling_type="LAST"),
        )

    async def start(self) -> None:
        """Load the model; blocks for seconds."""
        self._llm = AsyncLLM.from_engine_args(self._arguments)

    @property
    def width(self) -> int:
        """Width D of the vectors of a started engine."""
        return self._llm.model_config.embedding_size

    async def embed(self, key: str, prompt: EncodedPrompt) -> np.ndarray:
        """Return the unit vector, float32 [D], at the prompt's last token.

        Raises:
            DataError: vLLM refused the prompt, ran another one, or gave no finite vector.
        """
        inputs = TokensPrompt(prompt_token_ids=prompt.ids)
        if prompt.images:
            inputs["multi_modal_data"] = {"image": prompt.images}
        try:
            stream = self._llm.encode(inputs, PoolingParams(task="embed"), key)
            (output,) = [final async for final in stream]
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

    def close(self) -> None:
        """Stop the engine's processes."""
        self._llm.shutdown()
        del self._llm  # at interpreter exit its own clean-up would fail noisily
