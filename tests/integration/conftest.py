"""One local Ray and one engine of each kind for all integration tests; starting them is slow."""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import ray
import torch
from transformers import AutoModelForImageTextToText, AutoProcessor

from cluster.session import start_ray
from cluster.weights import WeightStore
from configs.schema import EngineConfig, MediaConfig, SamplingConfig
from data.chat import ChatEncoder
from data.types import Kind, Picture
from reward.actor import EmbedderActor
from rollout.actor import RolloutActor
from rollout.weight_sync import StoreAddress
from tests.patience import PATIENCE_S
from tests.published import put_by_hand
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
    """Return the address of a Ray of our own."""
    variables = {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    start_ray(namespace=NAMESPACE, num_cpus=2, runtime_env={"env_vars": variables})
    yield ray.get_runtime_context().gcs_address
    ray.shutdown()


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a tied tiny Qwen3-VL; it is also the Embedder of these tests."""
    os.environ["HF_HUB_OFFLINE"] = "1"
    torch.set_num_threads(1)
    return write_tiny_model(tmp_path_factory.mktemp("tiny"), seed=0)


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
def contents() -> dict[str, tuple[str | Picture, ...]]:
    """Return prompts by name: text, one picture, several pictures, frames."""
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
        "frames": (*(Picture(uri, Kind.VIDEO) for uri in "dbcd"), "green"),
    }


@pytest.fixture(scope="session")
def store(local_ray: str) -> Call:
    """Return the weight store as a named actor."""
    return Call(ray.remote(WeightStore).options(name=STORE, num_cpus=0).remote())


@pytest.fixture(scope="session")
def reasoner(tiny_folder: Path, tiny_model: torch.nn.Module, store: Call) -> Iterator[Call]:
    """Return a real rollout actor that took the folder's weights, version 0, from the store."""
    put_by_hand(0, store.actor, tiny_model)
    with started_reasoner(tiny_folder, ENGINE) as call:
        yield call


@contextmanager
def started_reasoner(folder: Path, engine: EngineConfig) -> Iterator[Call]:
    """Yield a real rollout actor that has taken the newest weights from the store."""
    address = StoreAddress(
        ray_address=ray.get_runtime_context().gcs_address,
        namespace=NAMESPACE,
        actor_name=STORE,
    )
    actor = (
        ray.remote(RolloutActor)
        .options(num_cpus=0)
        .remote(
            name="rollout-0",
            model=str(folder),
            engine=engine,
            sampling=SAMPLING,
            media=MEDIA,
            store=address,
        )
    )
    call = Call(actor)
    call.ready()
    yield call
    call.close()


@pytest.fixture(scope="session")
def embedder(local_ray: str, tiny_folder: Path) -> Iterator[Call]:
    """Return a real embedder actor."""
    actor = (
        ray.remote(EmbedderActor)
        .options(num_cpus=0)
        .remote(name="embedder-0", model=str(tiny_folder), engine=ENGINE, media=MEDIA)
    )
    call = Call(actor)
    call.ready()
    yield call
    call.close()
