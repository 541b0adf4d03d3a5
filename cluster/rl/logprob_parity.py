"""Whether the engines sample from the learner's weights: both give the same tokens the same
log-probabilities.

If the learner trains the version that sampled a step's traces, it reports the gaps of these traces.
If steps overlap, their traces are older, so a few new tokens are sampled and compared.

Limits are on the mean and a high quantile of the gaps (`learner.gaps`). The largest gap is only
reported: with bf16 weights, a few tokens of a healthy step are far off.
"""

import logging
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from cluster.pictures import SharedPictures
from cluster.pools.rollout import RolloutPool
from cluster.rl.rounds import SampledRound
from cluster.rl.samples import train_sample
from configs.learner import ParityConfig
from configs.schema import RLConfig
from data.errors import ParityError
from data.types import GenerationRequest, TrainSample, TrajectoryKey
from learner.gaps import MAX, MEAN, P999, gap_figures, gap_sums
from learner.objectives import TokenScores

log = logging.getLogger(__name__)
PARITY = "sync/logprob_max_abs_diff"
"""The older name of `parity/max`, which stays for the curves of earlier runs."""
PROBES, PROBE_TOKENS = 8, 8
"""Traces that show after a sync what the engines sample from; their length."""


def probe_gaps(
    step: SampledRound,
    version: int,
    config: RLConfig,
    rollout: RolloutPool,
    score: Callable[[Sequence[TrainSample], SharedPictures], Mapping[str, TokenScores]],
) -> dict[str, float]:
    """Return figures of the gaps between engines' and learner's log-probabilities of new tokens.

    Return none if no trace came back. A few short traces suffice, sampled before the waiting ones
    of the next step: the checksums have already proved that every engine holds the learner's
    weights. Without staleness a step's own traces show the gaps at no cost. ``score`` returns the
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
        return {}
    scores = score(samples, step.pictures)
    gaps = np.abs(np.concatenate([scores[one.key].own - one.logprobs for one in samples]))
    figures = gap_figures(gap_sums(gaps), float(gaps.max()))
    return {**figures, PARITY: figures[MAX]}


def worst_gaps(*figures: Mapping[str, float]) -> dict[str, float]:
    """Return the largest of each figure of parity among metrics; empty if none was measured."""
    return {
        name: float(np.max(values))  # NaN where a value is NaN
        for name in (MEAN, P999, MAX, PARITY)
        if (values := [measured[name] for measured in figures if name in measured])
    }


def check_parity(metrics: Mapping[str, float], *, broken: bool, limits: ParityConfig) -> None:
    """Refuse a step whose traces the engines did not sample from the learner's weights.

    Call this after the step's results are on disk, as it may stop the run. ``metrics`` are the
    step's; ``broken`` says that the step was skipped.

    Raises:
        ParityError: engines and learner give the same tokens log-probabilities that differ too
            much.
    """
    mean, p999 = metrics.get(MEAN, 0.0), metrics.get(P999, 0.0)
    # A broken step says nothing about the engines: the learner's own values are not finite.
    if not broken and not (mean <= limits.mean and p999 <= limits.p999):
        raise ParityError(
            f"version {metrics['version']:.0f}: engine and learner log-probabilities of "
            f"the same tokens differ by {mean:.3g} on average (parity.mean={limits.mean:g}) and by "
            f"{p999:.3g} at the quantile 0.999 (parity.p999={limits.p999:g}): the engine did not "
            "sample from the learner's weights, or computes something else with them. Compare the "
            "versions and settings of engines and learner; where the gaps are rounding, raise the "
            "limit"
        )
