"""Engines that only sleep, as Ray actors with the methods of the real ones and few imports.

What they answer has the sizes of real answers: T-CoT traces with a box, the tokens of prompt and
response, unit vectors of which those of one pair are alike. Time is simulated per token and item,
so that it does not matter in how many calls the work arrives.
"""

import asyncio
import time
import zlib
from collections.abc import Sequence
from typing import Any

import numpy as np

from configs.common import SamplingConfig
from data.pickling import Packed
from data.types import Content, EmbedRequest, GenerationRequest, StepReport, TrainSample, Trajectory
from data.weights.types import Published
from learner.micro_batches import MiniBatch
from learner.objectives import TokenScores
from rollout.weights.report import SyncReport

TOKEN_S = 0.15
"""A rollout engine's step: all its sequences get a token."""
ITEM_S = 0.75e-3
"""An Embedder's time for an item."""
TRAINED_TOKEN_S = 17e-6
"""The learner group's time for a response token."""
SEQUENCES = 64
"""Of which a rollout engine samples a trace each at a time."""
PROMPT_TOKENS, RESPONSE_TOKENS = 300, 60
WORDS = ("circle", "square", "triangle", "star", "cross", "ring", "arrow", "heart")
DIMENSIONS, DIRECTIONS = 512, 4096
CLOSENESS = 0.3
"""How much the embeddings of one pair share, beside 1 of their own: some traces rank first."""


class Queue:
    """One resource that works off what it is given, in order."""

    def __init__(self) -> None:
        self._free = 0.0

    async def work(self, seconds: float) -> None:
        """Return when that much more work is done."""
        self._free = max(self._free, time.monotonic()) + seconds
        await asyncio.sleep(self._free - time.monotonic())


class SleepingReasoner:
    """Stands in for `rollout.actor.RolloutActor`: `sampling.max_tokens` steps for a trace."""

    def __init__(self, *, name: str, sampling: SamplingConfig, **_: object) -> None:
        self._trace_s = sampling.max_tokens * TOKEN_S / SEQUENCES
        self._queue = Queue()
        self._version = 0

    async def ready(self) -> None:
        pass

    async def generate(
        self, requests: Sequence[GenerationRequest], *pictures: object
    ) -> list[Trajectory]:
        """Sample traces; siblings share the array of their prompt."""
        version = self._version
        if requests[0].max_tokens is None:  # a probe's few tokens run along
            await self._queue.work(len(requests) * self._trace_s)
        prompts: dict[Content, np.ndarray] = {}
        for one in requests:
            if one.content not in prompts:
                prompts[one.content] = np.arange(PROMPT_TOKENS) + 1000
        return Packed(self._trace(one, prompts[one.content], version) for one in requests)

    async def pull_weights(self, version: int) -> SyncReport:
        self._version = version
        return SyncReport(version=version, tensors=0, mismatched=(), bytes=0, seconds=0.0)

    async def close(self) -> None:
        pass

    def _trace(self, request: GenerationRequest, prompt: np.ndarray, version: int) -> Trajectory:
        seed = request.seed
        word, other = WORDS[seed % 8], WORDS[seed // 8 % 8]
        left, top = seed % 600, seed // 600 % 600
        tokens = request.max_tokens or RESPONSE_TOKENS + seed % 9
        return Trajectory(
            key=request.key,
            prompt_ids=prompt,
            response_ids=np.arange(tokens) + seed % 1000,
            logprobs=np.full(tokens, -0.5, dtype=np.float32),
            text=(
                f"<thinking> the {word} in the upper half, left of the {other} and above the ring "
                f'{{"bbox_2d": [{left}, {top}, {left + 250}, {top + 310}]}}</thinking>'
                f"<rethink> the picture shows one {word} only, and it is asked for its color"
                f"</rethink><answer> {word}</answer>"
            ),
            finish="stop",
            min_version=version,
            max_version=version,
        )


class SleepingEmbedder:
    """Stands in for `reward.engines.embedder_actor.EmbedderActor`."""

    def __init__(self, **_: object) -> None:
        rng = np.random.default_rng(0)
        self._directions = rng.standard_normal((DIRECTIONS, DIMENSIONS), dtype=np.float32)
        self._directions /= np.linalg.norm(self._directions, axis=1, keepdims=True)
        self._queue = Queue()

    async def ready(self) -> int:
        return DIMENSIONS

    async def embed(
        self, requests: Sequence[EmbedRequest], *pictures: object
    ) -> tuple[dict[str, np.ndarray], dict[str, str]]:
        """Embed contents whose text begins with the name of their pair."""
        await self._queue.work(len(requests) * ITEM_S)
        return {one.key: self._vector(one.content) for one in requests}, {}

    async def close(self) -> None:
        pass

    def _vector(self, content: Content) -> np.ndarray:
        text = "".join(part if isinstance(part, str) else "*" for part in content)
        pair = text.lstrip("*").split(maxsplit=1)[0]
        vector = CLOSENESS * self._direction(pair) + self._direction(text)
        return vector / np.linalg.norm(vector)

    def _direction(self, text: str) -> np.ndarray:
        return self._directions[zlib.crc32(text.encode()) % DIRECTIONS]


class SleepingRank:
    """Stands in for `cluster.learner_rank.LearnerRank`."""

    def __init__(self, rank: int, world: int, weights: object) -> None:
        pass

    def address(self) -> str:
        return "nowhere"

    def open_rendezvous(self, address: str, timeout_s: float) -> int:
        return 0

    def join(self, *_: object) -> None:
        pass

    def build(self, plan: object) -> None:
        pass

    def put_weights(self, version: int, store: Any, *, anew: bool) -> Any:
        return Published(delta=False, bytes=0, seconds={}, digest=f"weights {version}")

    def train_policy(self, mini_batches: Sequence[MiniBatch], *pictures: object) -> StepReport:
        time.sleep(sum(one.total_tokens for one in mini_batches) * TRAINED_TOKEN_S)
        return StepReport(metrics={"policy/loss": 0.0}, seconds=0.0)

    def score_policy(self, share: Sequence[Sequence[TrainSample]], *pictures: object) -> Any:
        return {
            one.key: TokenScores(one.logprobs, None)
            for micro in share
            for one in micro
            if one.logprobs is not None
        }


def stages_s(traces: int, *, engines: int, embedders: int, sampling: SamplingConfig) -> list[float]:
    """Return how long the engines sleep for a step, in the two chains that run side by side.

    Sampling, and embedding plus training: rewards come before the training.
    """
    trained = traces * (RESPONSE_TOKENS + 4)
    return [
        traces / engines * sampling.max_tokens * TOKEN_S / SEQUENCES,
        traces / embedders * ITEM_S + trained * TRAINED_TOKEN_S,
    ]
