"""What searches cost: exact, with ranks as `evaluate` needs them, and through each FAISS index.

Exact search is measured beside FAISS's flat index. The indexes are measured over a tenth of the
candidates, beside exact search of the files: one query at a time, as the job `search` asks.
`EMBED_RL_BENCH_CANDIDATES` makes it smaller.
"""

import json
import os
from collections.abc import Callable
from pathlib import Path

import faiss
import numpy as np
import pyarrow.parquet as pq
import pytest

from data.stores.encoded import EncodedItem, EncodedParts, encoded_table
from data.stores.vector_index import VectorIndex
from data.types import Cues, Kind
from evaluation.search import search, search_and_rank
from tests.bench.record import alternate, record

QUERIES, DIMENSIONS, K = 1_000, 256, 10
CANDIDATES = int(os.environ.get("EMBED_RL_BENCH_CANDIDATES", "1_000_000"))
INDEXED = CANDIDATES // 10
"""An index of a million takes some minutes to build."""
PART, BLOCK = 1_024, 16_384
CENTRES, SPREAD = max(1, CANDIDATES // 500), 0.6
"""Subjects that the vectors are of, and how far those of one subject are apart: an index finds
nothing in vectors without any neighbourhood."""
KINDS = {"flat": 1.0, "ivf": 0.9, "hnsw": 0.9, "binary": 0.7}
"""Each kind with the least share of the nearest vectors that it must find."""


def unit(rng: np.random.Generator, centres: np.ndarray, rows: int) -> np.ndarray:
    vectors = SPREAD * rng.standard_normal((rows, DIMENSIONS), dtype=np.float32)
    vectors += centres[rng.integers(len(centres), size=rows)]
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    return vectors


@pytest.fixture(scope="module")
def vectors() -> tuple[np.ndarray, np.ndarray]:
    """Queries and candidates of length 1."""
    rng = np.random.default_rng(0)
    centres = rng.standard_normal((CENTRES, DIMENSIONS), dtype=np.float32)
    return unit(rng, centres, QUERIES), unit(rng, centres, CANDIDATES)


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory, vectors) -> EncodedParts:
    """The first candidates as `encode` writes them."""
    folder: Path = tmp_path_factory.mktemp("encoded")
    item = EncodedItem(item_id="", file="", text="", kind=Kind.TEXT, uris=(), trace="", cues=Cues())
    candidates = vectors[1][:INDEXED]
    for number, start in enumerate(range(0, INDEXED, PART)):
        rows = candidates[start : start + PART]
        table = encoded_table([item] * len(rows), rows)
        pq.write_table(table, folder / f"part-{number:05d}.parquet")
    facts = {"count": INDEXED, "model": "m", "embedder": {}}
    (folder / "facts.json").write_text(json.dumps(facts))
    return EncodedParts(folder)


def in_faiss(queries: np.ndarray, candidates: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the similarities and the nearest K of each query by FAISS's flat index."""
    return faiss.knn(queries, candidates, K, metric=faiss.METRIC_INNER_PRODUCT)


def ranks_in_faiss(queries: np.ndarray, candidates: np.ndarray, right: np.ndarray) -> np.ndarray:
    """Look for the nearest K, and return the rank of the right candidate of each query."""
    own = np.einsum("qd,qd->q", queries, candidates[right])
    ranks = np.ones(len(queries), dtype=np.int64)
    for start in range(0, len(candidates), BLOCK):
        similarity = queries @ candidates[start : start + BLOCK].T
        ranks += np.count_nonzero(similarity > own[:, None], axis=1)
    in_faiss(queries, candidates)
    return ranks


def test_exact_search_of_many_candidates(vectors) -> None:
    queries, candidates = vectors
    ours, (_, theirs) = search(queries, candidates, K).indices, in_faiss(queries, candidates)
    # Where they differ, it is a tie at the last place.
    assert np.mean(np.sort(ours, axis=1) == np.sort(theirs, axis=1)) > 0.999
    record(
        f"search {QUERIES:,} in {CANDIDATES:,} / FAISS",
        *alternate(lambda: search(queries, candidates, K), lambda: in_faiss(queries, candidates)),
        target=1.3,
    )


def test_exact_search_with_ranks_as_an_evaluation_asks_for_it(vectors) -> None:
    queries, candidates = vectors
    right = np.random.default_rng(1).integers(CANDIDATES, size=QUERIES)
    lists = [[index] for index in right.tolist()]

    def ours() -> np.ndarray:
        ranked = search_and_rank(queries, candidates, K, right=lists, rows=candidates.__getitem__)
        return ranked.ranks

    # Where they differ, it is a tie in float32.
    assert np.abs(ours() - ranks_in_faiss(queries, candidates, right)).max() < CANDIDATES / 10_000
    record(
        f"search_and_rank {QUERIES:,} in {CANDIDATES:,} / FAISS, numpy",
        *alternate(ours, lambda: ranks_in_faiss(queries, candidates, right)),
        target=1.3,
    )


@pytest.mark.parametrize("kind", list(KINDS))
def test_a_query_through_an_index(vectors, parts, kind) -> None:
    queries, candidates = vectors[0], vectors[1][:INDEXED]
    index = VectorIndex(parts, kind)
    for _ in index.build():
        pass
    exact, (found, _) = search(queries, candidates, K).indices, index.search(queries, K)
    recall = np.mean([np.isin(ours, row).mean() for ours, row in zip(exact, found, strict=True)])
    assert recall >= KINDS[kind]

    def one_by_one(find: Callable[[np.ndarray], object]) -> Callable[[], object]:
        return lambda: [find(query[None]) for query in queries[:10]]

    record(
        f"10 queries, {kind}, recall {recall:.3f} / exact",
        *alternate(
            one_by_one(lambda query: index.search(query, K)),
            one_by_one(lambda query: search(query, parts.vectors(), K)),
        ),
        target=1.0,
    )
