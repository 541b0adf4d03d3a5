"""One local Ray, one engine of each kind and one group of ranks for all integration tests.

Starting them is slow. A test leaves engines with the weights, and pools of the size, that it found;
it builds the learner group anew.
"""

import itertools
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import ray
import torch
from transformers import AutoModelForImageTextToText, AutoProcessor

from cluster.learner_group import LearnerGroup
from cluster.pools.reward import RewardPool
from cluster.pools.rollout import RolloutPool
from cluster.session import start_ray
from cluster.weights.store import WeightStore
from configs.common import EngineConfig, MediaConfig, PoolConfig, RolloutConfig, SamplingConfig
from configs.learner import LearnerConfig
from configs.reward import RewardConfig
from data.model.chat import ChatEncoder
from data.model.sentence_transformer import write_sentence_transformer
from data.types import Content, Kind, Picture, Video
from rollout.weights.report import StoreAddress
from tests.inputs.published import put_by_hand
from tests.patience import PATIENCE_S
from tests.tiny_model import write_tiny_model

ROOT = Path(__file__).resolve().parents[2]
NAMESPACE = "integration"
STORE = "weights"
ENGINE = EngineConfig(dtype="float32", max_model_len=512, max_num_seqs=64, enforce_eager=True)
SAMPLING = SamplingConfig(temperature=1.0, max_tokens=24)
MEDIA = MediaConfig(
    image_min_pixels=32 * 32,
    image_max_pixels=128 * 128,
    page_min_pixels=32 * 32,
    page_max_pixels=128 * 128,
    frame_min_pixels=32 * 32,
    frame_max_pixels=64 * 64,
    crop_min_pixels=32 * 32,
    crop_max_pixels=64 * 64,
    max_frames=4,
)


@dataclass(frozen=True)
class Call:
    """A plain-call face of an actor's methods."""

    actor: Any
    timeout_s: float = PATIENCE_S

    def __getattr__(self, method: str) -> Callable[..., Any]:
        return lambda *args: ray.get(
            getattr(self.actor, method).remote(*args), timeout=self.timeout_s
        )


@pytest.fixture(scope="session")
def local_ray() -> Iterator[str]:
    """Return the address of a Ray of our own, with GPUs by number, in an image that shows all GPUs
    to all actors."""
    variables = {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    variables["RAY_EXPERIMENTAL_NOSET_CUDA_VISIBLE_DEVICES"] = "1"
    start_ray(namespace=NAMESPACE, num_cpus=2, num_gpus=8, runtime_env={"env_vars": variables})
    yield ray.get_runtime_context().gcs_address
    ray.shutdown()


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a tied tiny Qwen3-VL; it is also the Embedder of these tests."""
    os.environ["HF_HUB_OFFLINE"] = "1"
    torch.set_num_threads(1)
    folder = write_tiny_model(tmp_path_factory.mktemp("tiny"), seed=0)
    write_sentence_transformer(folder, MEDIA)
    return folder


@pytest.fixture(scope="session")
def tiny_model(tiny_folder: Path) -> torch.nn.Module:
    """Return the folder's model in plain transformers, float32."""
    return AutoModelForImageTextToText.from_pretrained(tiny_folder, dtype=torch.float32).eval()


@pytest.fixture(scope="session")
def encoder(tiny_folder: Path) -> ChatEncoder:
    return ChatEncoder(AutoProcessor.from_pretrained(tiny_folder), MEDIA)


@pytest.fixture(scope="session")
def pictures() -> dict[str, np.ndarray]:
    """Return decoded files by uri, of sizes that need fitting and of sizes that do not."""
    noise = np.random.default_rng(0)
    sizes = {"a": (128, 128), "b": (64, 96), "c": (50, 70), "d": (64, 64)}
    return {uri: noise.integers(0, 256, (*size, 3), dtype=np.uint8) for uri, size in sizes.items()}


@pytest.fixture(scope="session")
def contents() -> dict[str, Content]:
    """Return prompts by name: text, pictures, a video as frames and as one beside a frame."""
    frames = tuple(Picture(uri, Kind.VIDEO) for uri in "dbcd")
    return {
        "text": ("what color is the star",),
        "image": (Picture("a", Kind.IMAGE), "what color is the star"),
        "images": (
            Picture("b", Kind.IMAGE),
            "red circle",
            Picture("c", Kind.IMAGE),
            Picture("a", Kind.PAGE),
            "blue square",
        ),
        "frames": (*frames, "green"),
        "video": ("red", Video(frames, (0.0, 0.48, 2.0, 61.5)), "green", frames[1], "blue"),
    }


@pytest.fixture(scope="session")
def store(local_ray: str) -> Call:
    """Return the weight store as a named actor."""
    return Call(ray.remote(WeightStore).options(name=STORE, num_cpus=0).remote())


@pytest.fixture(scope="session")
def rollout_pool(
    tiny_folder: Path, tiny_model: torch.nn.Module, store: Call
) -> Iterator[RolloutPool]:
    """Return a pool of one real engine that took the folder's weights, version 0, by the store."""
    put_by_hand(0, store.actor, tiny_model)
    config = RolloutConfig(pool=PoolConfig(actors=1, cpus=0.0), engine=ENGINE, sampling=SAMPLING)
    # Names of its own: the pools of other tests have actors called rollout-0, reward-0.
    pool = RolloutPool(str(tiny_folder), config, MEDIA, store=store_address(), role="reasoner")
    pool.ready()
    yield pool
    pool.close()


@pytest.fixture(scope="session")
def reasoner(rollout_pool: RolloutPool) -> Call:
    """Return the pool's rollout actor."""
    return Call(rollout_pool.actors["reasoner-0"])


@pytest.fixture(scope="session")
def reward_pool(local_ray: str, tiny_folder: Path) -> Iterator[RewardPool]:
    """Return a pool of one real Embedder."""
    one = PoolConfig(actors=1, cpus=0.0)
    config = RewardConfig(model=str(tiny_folder), pool=one, engine=ENGINE)
    pool = RewardPool(config, MEDIA, role="embedder")
    pool.ready()
    yield pool
    pool.close()


@pytest.fixture(scope="session")
def embedder(reward_pool: RewardPool) -> Call:
    """Return the pool's embedder actor."""
    return Call(reward_pool.actors["embedder-0"])


def store_address() -> StoreAddress:
    """Return where engines find the weight store."""
    return StoreAddress(
        ray_address=ray.get_runtime_context().gcs_address,
        namespace=NAMESPACE,
        actor_name=STORE,
    )


@pytest.fixture(scope="session")
def group_of(local_ray: str) -> Iterator[Callable[[int], LearnerGroup]]:
    """Return a function that gives the one learner group, of so many real ranks."""
    groups: list[LearnerGroup] = []

    def group_of(ranks: int) -> LearnerGroup:
        if not groups or groups[0].config.ranks != ranks:
            for old in groups:
                old.close()
            config = LearnerConfig(ranks=ranks, cpus=0.0, timeout_s=PATIENCE_S)
            groups[:] = [LearnerGroup(config)]
        return groups[0]

    yield group_of
    for one in groups:
        one.close()


@pytest.fixture(params=[2])
def group(request: pytest.FixtureRequest, group_of: Callable[[int], LearnerGroup]) -> LearnerGroup:
    """Return the group of two ranks, or of as many as a test asks for."""
    return group_of(request.param)


@pytest.fixture(scope="session")
def versions() -> Iterator[int]:
    """Return the numbers of the versions that are published by hand, the same for all tests."""
    return itertools.count(1)


@pytest.fixture(scope="session")
def publish(store: Call, versions: Iterator[int]) -> Callable[..., int]:
    """Return a function that publishes a model, or what ``damage`` makes of its buckets."""

    def publish(model: torch.nn.Module, damage: Any = None, **changes: object) -> int:
        version = next(versions)
        put_by_hand(version, store.actor, model, damage=damage, **changes)
        return version

    return publish
