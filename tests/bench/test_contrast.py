"""What ranking a step's traces costs, beside the similarity product that it ranks."""

import time
from collections.abc import Callable

import numpy as np

from reward.contrast import contrastive_rank

TRACES, SIBLINGS, DIMENSIONS, REPEATS = 256, 8, 256, 9


def alternate(*calls: Callable[[], object]) -> list[float]:
    """Return the median seconds of each call, measured in turn within one run."""
    seconds: list[list[float]] = [[] for _ in calls]
    for _ in range(REPEATS):
        for times, call in zip(seconds, calls, strict=True):
            start = time.perf_counter()
            call()
            times.append(time.perf_counter() - start)
    return [float(np.median(times)) for times in seconds]


def test_contrastive_rank_beside_the_bare_product() -> None:
    rng = np.random.default_rng(0)
    queries, targets = rng.standard_normal((2, TRACES, DIMENSIONS))
    similarity = queries @ targets.T
    group = np.arange(TRACES) // SIBLINGS
    positive = group[:, None] == group[None, :]
    product, rank = alternate(
        lambda: queries @ targets.T,
        lambda: contrastive_rank(similarity, positive, temperature=0.5),
    )
    print(
        f"\n{TRACES}x{TRACES}: product {1e3 * product:.2f} ms, rank {1e3 * rank:.2f} ms, "
        f"ratio {rank / product:.1f} (medians of {REPEATS}, alternating)"
    )
    assert rank > 0
