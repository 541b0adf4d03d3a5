"""What exact search costs, beside FAISS's flat index or the bare product with top-k.

`EMBED_RL_BENCH_CANDIDATES` makes it smaller. FAISS is no dependency: it is the reference where it
is installed.
"""

import os
from importlib.util import find_spec

import numpy as np

from evaluation.search import search
from tests.bench.record import alternate, record

QUERIES, DIMENSIONS, K = 1_000, 256, 10
CANDIDATES = int(os.environ.get("EMBED_RL_BENCH_CANDIDATES", "1_000_000"))
BLOCK = 4_096


def unit(rng: np.random.Generator, rows: int) -> np.ndarray:
    vectors = rng.standard_normal((rows, DIMENSIONS), dtype=np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    return vectors


def product_and_top(queries: np.ndarray, candidates: np.ndarray) -> np.ndarray:
    """Return the nearest K of each query by the fewest calls of numpy, without an order."""
    kept = []
    for start in range(0, len(candidates), BLOCK):
        similarity = queries @ candidates[start : start + BLOCK].T
        best = np.argpartition(similarity, -K, axis=1)[:, -K:]
        kept.append((start + best, np.take_along_axis(similarity, best, axis=1)))
    index, similarity = (np.concatenate(parts, axis=1) for parts in zip(*kept, strict=True))
    return np.take_along_axis(index, np.argpartition(similarity, -K, axis=1)[:, -K:], axis=1)


def in_faiss(queries: np.ndarray, candidates: np.ndarray) -> np.ndarray:
    """Return the nearest K of each query by FAISS's flat index."""
    import faiss

    return faiss.knn(queries, candidates, K, metric=faiss.METRIC_INNER_PRODUCT)[1]


def test_search_of_many_candidates() -> None:
    rng = np.random.default_rng(0)
    queries, candidates = unit(rng, QUERIES), unit(rng, CANDIDATES)
    name, reference = ("FAISS", in_faiss) if find_spec("faiss") else ("product", product_and_top)
    ours, theirs = search(queries, candidates, K).indices, reference(queries, candidates)
    # Where they differ, it is a tie at the last place.
    assert np.mean(np.sort(ours, axis=1) == np.sort(theirs, axis=1)) > 0.999
    record(
        f"search {QUERIES:,} in {CANDIDATES:,} / {name}",
        *alternate(lambda: search(queries, candidates, K), lambda: reference(queries, candidates)),
        target=1.3,
    )
