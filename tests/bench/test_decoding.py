"""Steps of the job `embedder` on JPEGs beside the same steps on pictures that are decoded already.

A step may cost what the decoding of its pictures costs on all cores; where the pool decodes ahead
of the ranks, it costs less.
"""

import os
import time
from collections.abc import Iterator
from contextlib import closing
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import ray
from PIL import Image

from cluster.jobs.embedder import ContrastiveBatch, contrastive_batches
from cluster.learner_group import LearnerGroup
from cluster.pictures import Decoder
from cluster.run.stage_loop import FeedState, prefetched
from cluster.session import start_ray
from configs.load import load
from configs.schema import EmbedderConfig
from data.media.pictures import load_pictures
from data.model.emb_token import with_emb_token
from data.relevance import Relevance
from data.sets.feed import PairFeed
from data.types import Item, Kind, Pair
from tests.bench.parts.learner_ranks import write_model
from tests.bench.record import alternate, record
from tests.builders import loaded_set

ROOT = Path(__file__).resolve().parents[2]
WIDTH, HEIGHT = 1024, 768
PAIRS, STEPS = 16, 6
MOST = 1.1
CORES = len(os.sched_getaffinity(0))


def write_photo(path: Path, rng: np.random.Generator) -> str:
    """Write a JPEG of about the detail, and so the size and cost, of a photo."""
    coarse = Image.fromarray(rng.integers(0, 256, (HEIGHT // 16, WIDTH // 16, 3), dtype=np.uint8))
    pixels = np.asarray(coarse.resize((WIDTH, HEIGHT), Image.Resampling.BICUBIC), dtype=np.float32)
    pixels = pixels + rng.normal(0, 6, (HEIGHT, WIDTH, 1))
    Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(path, quality=90)
    return str(path)


def photo_pairs(folder: Path) -> list[Pair]:
    """Return a step's pairs, with a photo on each side."""
    rng = np.random.default_rng(0)
    return [
        Pair(
            pair_id=f"p{index}",
            source="set",
            query=Item(
                text=f"query {index}",
                kind=Kind.IMAGE,
                uris=(write_photo(folder / f"{index}-query.jpg", rng),),
            ),
            target=Item(
                text=f"target {index}",
                kind=Kind.IMAGE,
                uris=(write_photo(folder / f"{index}-target.jpg", rng),),
            ),
        )
        for index in range(PAIRS)
    ]


@pytest.fixture
def config() -> EmbedderConfig:
    """Return the demo's settings, for one rank and the pairs of one draw."""
    settings = [f"batch={PAIRS}", "sub_batches=1", "learner.ranks=1", "learner.cpus=0"]
    return load(EmbedderConfig, ROOT / "configs/demo/embedder.yaml", settings)


@pytest.fixture
def own_ray() -> Iterator[None]:
    variables = {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    start_ray(namespace="bench", num_cpus=CORES, runtime_env={"env_vars": variables})
    yield
    ray.shutdown()


@pytest.mark.timeout(900)
@pytest.mark.usefixtures("own_ray")
def test_steps_on_files_beside_steps_on_decoded_pictures(
    config: EmbedderConfig, tmp_path: Path
) -> None:
    pairs, media = photo_pairs(tmp_path), config.data.media
    loaded, relevance = loaded_set(name="set", pairs=tuple(pairs), bad_rows=()), Relevance(pairs)
    uris = [uri for pair in pairs for uri in (*pair.query.uris, *pair.target.uris)]
    decoding_s: list[float] = []
    group = LearnerGroup(config.learner)
    with closing(Decoder()) as decoder, closing(group):
        group.build_contrastive(
            model=with_emb_token(str(write_model(tmp_path / "model")), tmp_path / "base"),
            media=media,
            total_steps=config.steps,
            seed=0,
            temperature=config.temperature,
        )

        def batches() -> Iterator[tuple[ContrastiveBatch, FeedState]]:
            feed = PairFeed([loaded], {"set": 1.0}, batch=PAIRS, seed=0)
            return islice(contrastive_batches(feed, config, relevance, decoder), STEPS)

        ready = list(batches())

        def measure_decoding() -> None:
            began = time.process_time()
            pictures, failed = load_pictures(uris, media)
            decoding_s.append(STEPS * (time.process_time() - began))
            assert not failed
            assert {pixels.shape for pixels in pictures.values()} == {(HEIGHT, WIDTH, 3)}

        def on_files() -> None:
            with closing(prefetched(batches())) as ahead:
                for batch, _ in ahead:
                    assert not group.train_contrastive(*batch).broken

        def on_pixels() -> None:
            for batch, _ in ready:
                assert not group.train_contrastive(*batch).broken

        files_s, pixels_s = alternate(on_files, on_pixels, prepare=measure_decoding)
    print(
        f"{STEPS} steps of {2 * PAIRS} JPEGs: decoding {np.median(decoding_s):.3g} CPU s on "
        f"{CORES} cores, steps on decoded pictures {np.median(pixels_s):.3g} s"
    )
    record(
        f"{STEPS} steps on {2 * PAIRS} JPEGs / decoded, + decoding",
        files_s,
        [a + b / CORES for a, b in zip(pixels_s, decoding_s[1:], strict=True)],
        target=MOST,
    )
