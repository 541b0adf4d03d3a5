"""Embeddings without trace are found again until they were not used for longest."""

import numpy as np

from reward.cache import EmbeddingCache


def test_what_was_put_is_found_and_nothing_else():
    cache = EmbeddingCache(2)
    cache.put(("a",), np.array([1.0]))
    assert cache.get(("a",)).tolist() == [1.0]
    assert cache.get(("b",)) is None


def test_beyond_the_capacity_the_least_recently_used_is_forgotten():
    cache = EmbeddingCache(2)
    for name in "ab":
        cache.put((name,), np.zeros(1))
    cache.get(("a",))
    cache.put(("c",), np.zeros(1))
    assert [name for name in "abc" if cache.get((name,)) is not None] == ["a", "c"]


def test_what_is_remembered_keeps_no_other_embedding_alive():
    answer = np.eye(2)
    cache = EmbeddingCache(1)
    cache.put(("a",), answer[0])
    assert cache.get(("a",)).base is None
