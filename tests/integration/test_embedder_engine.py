"""The real embedder actor against plain transformers, and a pool of two of them."""

import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
import ray
from ray.exceptions import RayActorError

from cluster.pictures import share_pictures
from cluster.pools import RewardPool
from configs.schema import PoolConfig, RewardConfig
from data.types import Box, EmbedRequest, Kind, Picture
from tests.integration.conftest import ENGINE, MEDIA
from tests.integration.reference import embedding
from tests.patience import PATIENCE_S

CROPS = (
    Picture("a", Kind.IMAGE),
    "what color",
    Picture("a", Kind.IMAGE, Box(0.1, 0.2, 0.5, 0.6)),
    Picture("a", Kind.IMAGE, Box(0.0, 0.0, 0.02, 0.9)),
    "star",
)


@pytest.fixture(scope="module")
def requests(contents) -> list[EmbedRequest]:
    return [
        EmbedRequest(key=name, content=content)
        for name, content in {**contents, "crops": CROPS}.items()
    ]


def test_vectors_equal_transformers(embedder, tiny_model, encoder, requests, pictures) -> None:
    vectors, failed = embedder.embed(requests, pictures)
    assert failed == {}
    assert set(vectors) == {request.key for request in requests}
    for request in requests:
        expected = embedding(tiny_model, encoder, encoder.embed(request.content, pictures))
        vector = vectors[request.key]
        assert vector.dtype == np.float32
        assert np.linalg.norm(vector) == pytest.approx(1.0, abs=1e-5)
        assert float(vector @ expected) > 0.9999, request.key


def test_order_and_company_do_not_matter(embedder, requests, pictures) -> None:
    together, _ = embedder.embed(requests[::-1] * 1, pictures)
    for request in requests:
        alone, _ = embedder.embed([request], pictures)
        assert np.abs(alone[request.key] - together[request.key]).max() < 1e-5


def test_a_failing_item_is_reported_by_key_and_alone(embedder, requests, pictures) -> None:
    lost = EmbedRequest(key="lost", content=(Picture("nowhere", Kind.IMAGE), "red"))
    long = EmbedRequest(key="long", content=(" red" * 600,))
    vectors, failed = embedder.embed([lost, *requests, long], pictures)
    assert set(vectors) == {request.key for request in requests}
    assert set(failed) == {"lost", "long"}
    assert "nowhere" in failed["lost"]
    assert "512" in failed["long"]


@pytest.fixture(scope="module")
def pool(local_ray, tiny_folder) -> Iterator[RewardPool]:
    """Return one of two engines, which are slow to start; the last test kills one of them."""
    reward = RewardConfig(
        model=str(tiny_folder), pool=PoolConfig(actors=2, cpus=0.0), engine=ENGINE
    )
    pool = RewardPool(reward, MEDIA)
    pool.ready()
    yield pool
    pool.close()


@pytest.mark.skipif(
    "GenuineIntel" not in Path("/proc/cpuinfo").read_text(), reason="MKL_CBWR is for Intel's CPUs"
)
def test_company_changes_no_bit(pool, embedder) -> None:
    # As small as crops are: products of few rows are what Intel's library sums in another order.
    noise = np.random.default_rng(1)
    pictures = {str(i): noise.integers(0, 256, (32, 32, 3), dtype=np.uint8) for i in range(32)}
    requests = [
        EmbedRequest(key=uri, content=(Picture(uri, Kind.IMAGE), "red")) for uri in pictures
    ]
    together, _ = pool.embed(requests, share_pictures(pictures))
    pool.counters()  # the next test reads its own
    for request in requests:
        alone, _ = embedder.embed([request], pictures)
        assert alone[request.key].tolist() == together[request.key].tolist()


def test_a_pool_embeds_like_one_actor_also_when_one_of_two_is_killed(
    pool, embedder, requests, pictures
) -> None:
    shared = share_pictures(pictures)
    alone, _ = embedder.embed(requests, pictures)
    twin = EmbedRequest(key="twin", content=requests[1].content)
    lost = EmbedRequest(key="lost", content=(Picture("nowhere", Kind.IMAGE), "red"))
    work = [lost, *requests, twin]

    def check() -> None:
        vectors, failed = pool.embed(work, shared)
        assert list(vectors) == [one.key for one in work if one is not lost]
        assert list(failed) == ["lost"]
        assert "nowhere" in failed["lost"]
        assert vectors["twin"].tolist() == vectors[requests[1].key].tolist()
        for key, vector in alone.items():
            assert np.abs(vectors[key] - vector).max() < 1e-5

    check()
    counters = pool.counters()
    assert counters["pool/reward/retried"] == counters["pool/reward/failed"] == 1
    assert 1 <= counters["pool/reward/in_flight_max"] < len(work)
    counters = pool.counters()
    assert counters.pop("pool/reward/actors") == 2
    assert set(counters.values()) == {0.0}

    first, _ = pool.actors.values()
    ray.kill(first)
    deadline = time.monotonic() + PATIENCE_S
    with suppress(RayActorError):
        while True:  # it is killed soon, not at once
            ray.get(first.ready.remote(), timeout=PATIENCE_S)
            assert time.monotonic() < deadline
    check()
    counters = pool.counters()
    assert counters["pool/reward/lost"] == 1
    assert counters["pool/reward/retried"] > 1
