"""Whether the engines sample from the learner's weights: both give the same tokens the same
log-probabilities.

If the learner trains the version that sampled a step's traces, it reports the gap of these traces.
If steps overlap, their traces are older, so a few new tokens are sampled and compared.
"""

import logging
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from cluster.pictures import SharedPictures
from cluster.pools.rollout import RolloutPool
from cluster.rl.rounds import SampledRound
from cluster.rl.samples import train_sample
from configs.schema import RLConfig
from data.errors import WeightSyncError
from data.types import GenerationRequest, TrainSample, TrajectoryKey
from learner.objectives import TokenScores

log = logging.getLogger(__name__)
PARITY = "sync/logprob_max_abs_diff"
PROBES, PROBE_TOKENS = 8, 8
"""Traces that show after a sync what the engines sample from; their length."""


def probe_gap(
    step: SampledRound,
    version: int,
    config: RLConfig,
    rollout: RolloutPool,
    score: Callable[[Sequence[TrainSample], SharedPictures], Mapping[str, TokenScores]],
) -> float | None:
    """Return the largest gap between engines' and learner's log-probabilities of new tokens.

    Return None if no trace came back. A few short traces suffice, sampled before the waiting ones
    of the next step: the checksums have already proved that every engine holds the learner's
    weights. Without staleness a step's own traces show the gap at no cost. ``score`` returns the
    log-probabilities that learner and reference give to samples, by key.
    """
    contents = {key.group: content for key, content in step.contents.items()}
    requests = [
        GenerationRequest(
            key=TrajectoryKey(group, config.siblings),
            content=content,
            seed=version,
            max_tokens=PROBE_TOKENS,
        )
        for group, content in contents.items()
    ][:PROBES]
    traces, dropped = rollout.generate(requests, step.pictures, urgent=True)
    for trace in dropped:
        log.warning("parity of version %d: %s: %s", version, trace.key, trace.detail)
    samples = [
        train_sample(
            trace, contents[trace.key.group], advantage=0.0, version=version, grpo=config.grpo
        )
        for trace in traces
    ]
    if not samples:
        return None
    scores = score(samples, step.pictures)
    gaps = [np.abs(scores[sample.key].own - sample.logprobs).max() for sample in samples]
    return float(np.max(gaps))


def worst_gap(*gaps: float | None) -> dict[str, float]:
    """Return the largest measured gap as a metric; empty if no gap was measured."""
    if known := [gap for gap in gaps if gap is not None]:
        return {PARITY: float(np.max(known))}  # NaN where a gap is NaN
    return {}


def check_parity(metrics: Mapping[str, float], *, broken: bool, tolerance: float) -> None:
    """Refuse a step whose traces the engines did not sample from the learner's weights.

    Call this after the step's results are on disk, as it may stop the run. ``metrics`` are the
    step's; ``broken`` says that the step was skipped.

    Raises:
        WeightSyncError: engines and learner give the same tokens log-probabilities that differ too
            much.
    """
    gap = metrics.get(PARITY, 0.0)
    # A broken step says nothing about the engines: the learner's own values are not finite.
    if not broken and not gap <= tolerance:
        raise WeightSyncError(
            f"version {metrics['version']:.0f}: engine and learner log-probabilities of "
            f"the same tokens differ by {gap:.3g}, more than logprob_tolerance="
            f"{tolerance:g}; the engine did not sample from the learner's weights"
        )
