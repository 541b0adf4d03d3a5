"""Traces with crops through the Embedder pool, beside vLLM alone on inputs prepared before."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import ray

from cluster.pictures import SharedPictures
from cluster.pools.reward import RewardPool
from configs.common import EngineConfig, MediaConfig, PoolConfig
from configs.reward import RewardConfig
from data.embed_inputs import embed_content
from data.types import EmbedRequest, Item, Kind, Picture
from tests.bench.parts.direct import DirectEmbedder
from tests.bench.record import alternate, record
from tests.shared_pictures import share_pictures
from tests.tiny_model import write_tiny_model

ROOT = Path(__file__).resolve().parents[2]
TRACES, SIBLINGS, SIDE = 256, 8, 128
TIMEOUT_S = 600.0
VARIABLES = {"PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
WORDS = ("color", "circle", "square", "triangle", "green", "blue", "yellow", "purple", "orange")
ENGINE = EngineConfig(dtype="float32", max_model_len=1024, max_num_seqs=64, enforce_eager=True)
MEDIA = MediaConfig(
    image_min_pixels=32 * 32,
    image_max_pixels=SIDE * SIDE,
    crop_min_pixels=32 * 32,
    crop_max_pixels=64 * 64,
)


@pytest.fixture
def both(tmp_path: Path) -> Iterator[tuple[RewardPool, Any]]:
    """Return the pool and vLLM alone: an actor each, one core each."""
    model = str(write_tiny_model(tmp_path / "model"))
    ray.init(
        address="local",
        include_dashboard=False,
        num_cpus=2,
        runtime_env={"env_vars": VARIABLES},
    )
    pool = RewardPool(RewardConfig(model=model, pool=PoolConfig(), engine=ENGINE), MEDIA)
    direct = (
        ray.remote(DirectEmbedder)
        .options(num_cpus=1)
        .remote(model=model, engine=ENGINE, media=MEDIA)
    )
    pool.ready()
    answer(direct.ready.remote())
    yield pool, direct
    pool.close()
    answer(direct.close.remote())
    ray.shutdown()


def answer(call: Any) -> Any:
    """Return what vLLM alone answers."""
    return ray.get(call, timeout=TIMEOUT_S)


def step_of(rng: np.random.Generator) -> tuple[list[EmbedRequest], dict[str, np.ndarray]]:
    """Return a step's traces, siblings on one picture, a crop or two each, and the pictures."""
    pictures = {
        f"picture-{index}": rng.integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8)
        for index in range(TRACES // SIBLINGS)
    }
    requests = []
    for index in range(TRACES):
        low = rng.integers(0, 500, (rng.integers(1, 3), 2))
        boxes = np.hstack([low, low + rng.integers(100, 500, low.shape)]).tolist()
        thinking, rethink = (" ".join(rng.choice(WORDS, size)) for size in rng.integers(5, 30, 2))
        trace = (
            f"<thinking>{thinking}{json.dumps({'bbox_2d': boxes})}</thinking>"
            f"<rethink>{rethink}</rethink><answer>{WORDS[index % len(WORDS)]}</answer>"
        )
        item = Item(text="what color", kind=Kind.IMAGE, uris=(f"picture-{index // SIBLINGS}",))
        requests.append(
            EmbedRequest(
                key=str(index), content=embed_content(item, trace, item_tokens=0, max_frames=1)
            )
        )
    assert all(
        any(isinstance(part, Picture) and part.box for part in one.content) for one in requests
    )
    return requests, pictures


@pytest.mark.timeout(1800)
def test_embedding_traces_with_crops(both: tuple[RewardPool, Any]) -> None:
    pool, direct = both
    rng = np.random.default_rng(0)
    requests: list[EmbedRequest] = []
    shared: list[SharedPictures] = []

    def prepare() -> None:
        # New traces and pictures each turn: neither engine has them in a cache, both get the same.
        requests[:], pictures = step_of(rng)
        shared[:] = [share_pictures(pictures)]
        answer(direct.prepare.remote(requests, *shared[0].refs))

    def ours() -> None:
        vectors, failed = pool.embed(requests, *shared)
        assert len(vectors) == TRACES, failed

    def against() -> None:
        assert answer(direct.encode.remote()) == TRACES

    # 0.8 of the throughput.
    record(f"embed {TRACES} traces / vLLM", *alternate(ours, against, prepare=prepare), target=1.25)
