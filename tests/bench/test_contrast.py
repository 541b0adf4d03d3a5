"""What ranking costs: a step's traces, and 8,192 traces among 65,536 candidates."""

import time
import tracemalloc
from collections.abc import Callable

import numpy as np
import pytest

from reward.contrast import contrastive_rank, rank_embeddings

SIBLINGS, DIMENSIONS, REPEATS = 8, 256, 5
CLOSENESS = 0.5
"""How much embeddings of one pair share, beside noise of 1: about a third of the traces rank."""


def alternate(*calls: Callable[[], object]) -> list[float]:
    """Return the median seconds of each call, measured in turn within one run."""
    seconds: list[list[float]] = [[] for _ in calls]
    for _ in range(REPEATS):
        for times, call in zip(seconds, calls, strict=True):
            start = time.perf_counter()
            call()
            times.append(time.perf_counter() - start)
    return [float(np.median(times)) for times in seconds]


def embeddings(traces: int, candidates: int) -> tuple[np.ndarray, ...]:
    """Return unit rows and columns, float32 [N, D] and [M, D], with their keys."""
    rng = np.random.default_rng(0)
    keys = np.arange(candidates) // SIBLINGS
    centres = CLOSENESS * rng.standard_normal((keys[-1] + 1, DIMENSIONS), dtype=np.float32)
    made = []
    for some in (keys[:traces], keys):
        vectors = centres[some]
        vectors += rng.standard_normal(vectors.shape, dtype=np.float32)
        vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
        made.append(vectors)
    return made[0], made[1], keys[:traces], keys


def product(rows: np.ndarray, columns: np.ndarray, out: np.ndarray) -> None:
    """Compute all similarities, a block of rows at a time into the same memory."""
    for start in range(0, len(rows), len(out)):
        np.matmul(rows[start : start + len(out)], columns.T, out=out)


def test_a_steps_traces() -> None:
    rows, columns, row_keys, column_keys = embeddings(256, 256)
    similarity = rows.astype(np.float64) @ columns.T
    positive = row_keys[:, None] == column_keys
    (seconds,) = alternate(lambda: contrastive_rank(similarity, positive, temperature=0.5))
    print(f"\n256 x 256: rank {1e3 * seconds:.2f} ms (at most 5)")
    assert seconds > 0


@pytest.mark.slow
def test_many_candidates_beside_the_bare_product() -> None:
    rows, columns, row_keys, column_keys = embeddings(8192, 65536)
    out = np.empty((1024, 65536), np.float32)

    def rank() -> None:
        rank_embeddings(rows, columns, row_keys, column_keys, temperature=0.5)

    bare, ours = alternate(lambda: product(rows, columns, out), rank)
    tracemalloc.start()
    rank()
    extra = tracemalloc.get_traced_memory()[1] / 1e6
    tracemalloc.stop()
    print(
        f"\n8192 x 65536 x {DIMENSIONS}: product {bare:.2f} s, rank {ours:.2f} s, ratio "
        f"{ours / bare:.2f} (at most 1.5), extra memory {extra:.0f} MB (at most 1000)"
    )
    assert bare > 0
