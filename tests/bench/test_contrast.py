"""What ranking a step's traces costs, beside the similarity product that it ranks."""

import numpy as np

from reward.contrast import contrastive_rank
from tests.bench.record import alternate, record

TRACES, SIBLINGS, DIMENSIONS = 256, 8, 256


def test_contrastive_rank_of_a_step() -> None:
    rng = np.random.default_rng(0)
    queries, targets = rng.standard_normal((2, TRACES, DIMENSIONS))
    similarity = queries @ targets.T
    group = np.arange(TRACES) // SIBLINGS
    positive = group[:, None] == group[None, :]
    ours, against = alternate(
        lambda: contrastive_rank(similarity, positive, temperature=0.5),
        lambda: queries @ targets.T,
        repeats=21,
    )
    record(f"rank {TRACES}x{TRACES} / product", ours, against, target=0.005, target_of="ours")
