"""The real embedder actor against plain transformers, and a pool of two of them."""

import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import psutil
import pytest
import ray

from cluster.pools.reward import RewardPool
from data.types import Box, EmbedRequest, Kind, Picture
from tests.integration.conftest import Call
from tests.integration.reference import embedding
from tests.patience import PATIENCE_S
from tests.shared_pictures import share_pictures

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
def pool(reward_pool: RewardPool, embedder: Call) -> Iterator[RewardPool]:
    """Return one of two engines, the shared one and another."""
    reward_pool.resize(2)
    reward_pool.ready()
    yield reward_pool
    reward_pool.resize(1)


@pytest.mark.extended
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


@pytest.mark.extended
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
    assert counters["pool/embedder/retried"] == counters["pool/embedder/failed"] == 1
    assert 1 <= counters["pool/embedder/in_flight_max"] < len(work)
    counters = pool.counters()
    assert counters.pop("pool/embedder/actors") == 2
    assert set(counters.values()) == {0.0}

    [other] = [actor for name, actor in pool.actors.items() if name != "embedder-0"]
    process = psutil.Process(ray.get(other.__ray_call__.remote(lambda self: os.getpid())))
    engine = process.children(recursive=True)
    assert any("EngineCore" in " ".join(one.cmdline()) for one in engine)
    ray.kill(other)
    # The engine ends with its actor, and does not hold its memory beside the next one.
    assert not psutil.wait_procs([process, *engine], timeout=PATIENCE_S)[1]
    check()
    counters = pool.counters()
    assert counters["pool/embedder/lost"] == 1
    assert counters["pool/embedder/retried"] > 1
