"""Vectors of other Embedders, which an evaluation measures beside ours."""

from collections.abc import Mapping, Sequence
from functools import partial
from importlib.metadata import version
from pathlib import Path

import numpy as np

from cluster.inference import Blocks, VectorSource
from cluster.pools.reward import EmbedderPool
from configs.common import MediaConfig
from configs.reward import RewardConfig
from configs.schema import RivalConfig
from data.model.chat import load_encoder
from data.model.model_folder import ShownSet, check_embedder
from data.model.rival_folder import check_rival
from data.stores.facts import rival_facts
from data.types import EmbedRequest, Side
from reward.engines.sentence_transformer_actor import SentenceTransformerActor


def check_rivals(
    rivals: Sequence[RivalConfig], media: MediaConfig, sets: Sequence[ShownSet]
) -> None:
    """Refuse rivals that cannot be loaded, or on vLLM cannot be shown the sets.

    Raises:
        ConfigError, DataError: as `check_rival`, `load_encoder`, `check_pooling`, `check_embedder`.
    """
    for rival in rivals:
        check_rival(rival)
        if rival.library == "vllm":
            load_encoder(rival.model, media).check_pooling(rival.pooling)
            check_embedder(rival.model, sets)


def embed_with_rival(
    requests: Mapping[Side, Sequence[EmbedRequest]],
    *,
    rival: RivalConfig,
    blocks: Blocks,
    store: Path,
    memory_bytes: int,
) -> dict[Side, dict[str, np.ndarray]]:
    """Return the unit vector [D] of each request of each side, as `embed` does for ours.

    On vLLM both sides are read alike, by engines that live for this call only. In
    sentence-transformers each side has actors of its own, one after the other.
    """
    keeping = {"blocks": blocks, "store": store, "memory_bytes": memory_bytes}
    if rival.library == "vllm":
        reward = RewardConfig(
            model=rival.model,
            pooling=rival.pooling,
            instruction=rival.instruction,
            pool=rival.pool,
            engine=rival.engine,
        )
        source = VectorSource.of(reward, **keeping)
        both = source.embed([request for asked in requests.values() for request in asked])
        return dict.fromkeys(requests, both)
    library = version("sentence-transformers")
    vectors = {}
    for side, asked in requests.items():
        source = VectorSource(
            facts=rival_facts(rival, blocks.media, side, library=library),
            open_pool=partial(
                EmbedderPool,
                "rival",
                rival.pool,
                blocks.media,
                actor=SentenceTransformerActor,
                model=rival.model,
                engine=rival.engine,
                side=side,
                prompts=rival.prompts,
            ),
            **keeping,
        )
        vectors[side] = source.embed(asked)
    return vectors
