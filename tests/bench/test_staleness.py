"""What one version of staleness saves, over engines that only sleep."""

import time

import pytest

from cluster.session import session
from tests.bench.record import REPEATS, record
from tests.simulation import SlowEmbedder, SlowLearner, SlowRollout, simulated_pipeline

SCALE = 0.2
"""Seconds slept for a simulated second; what the loop itself takes counts five times here."""
ROLLOUT_S, REWARD_S, TRAIN_S = 1.0, 0.2, 1.0
STEPS = 20
"""Of each of the repeats."""


@pytest.mark.timeout(600)
def test_step_with_staleness_beside_the_synchronous_step() -> None:
    with session((), namespace="bench"):
        seconds = measure()
    record("step, staleness 1 / synchronous", *seconds, target=1.2, target_of="ours")


def measure() -> tuple[list[float], list[float]]:
    """Return simulated seconds per step with staleness 1 and 0, by repeat."""
    pipelines = [
        simulated_pipeline(
            max_staleness=staleness,
            steps=REPEATS * (1 + STEPS),
            rollout=SlowRollout(SCALE * ROLLOUT_S),
            embedder=SlowEmbedder(SCALE * REWARD_S),
            learner=SlowLearner(SCALE * TRAIN_S),
        )
        for staleness in (1, 0)
    ]
    seconds: tuple[list[float], list[float]] = ([], [])
    stale = 0.0
    for _ in range(REPEATS):
        for own, pipeline in zip(seconds, pipelines, strict=True):
            pipeline.step()  # its traces may have been collected in the other one's turn
            start = time.perf_counter()
            for _ in range(STEPS):
                stale = max(stale, pipeline.step().metrics["staleness/max"])
            own.append((time.perf_counter() - start) / STEPS / SCALE)
    for pipeline in pipelines:
        pipeline.close()
    assert stale == 1
    return seconds
