"""The real embedder actor against plain transformers."""

import numpy as np
import pytest

from data.types import Box, EmbedRequest, Kind, Picture
from tests.integration.reference import embedding

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


def test_equal_contents_under_two_keys_get_equal_vectors(embedder, requests, pictures) -> None:
    twice = [EmbedRequest(key=name, content=requests[0].content) for name in ("one", "two")]
    vectors, _ = embedder.embed(twice, pictures)
    assert vectors["one"].tolist() == vectors["two"].tolist()


def test_a_failing_item_is_reported_by_key_and_alone(embedder, requests, pictures) -> None:
    lost = EmbedRequest(key="lost", content=(Picture("nowhere", Kind.IMAGE), "red"))
    long = EmbedRequest(key="long", content=(" red" * 600,))
    vectors, failed = embedder.embed([lost, *requests, long], pictures)
    assert set(vectors) == {request.key for request in requests}
    assert set(failed) == {"lost", "long"}
    assert "nowhere" in failed["lost"]
    assert "512" in failed["long"]
