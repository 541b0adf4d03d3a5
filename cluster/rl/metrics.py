"""Metrics of a step: rewards, lengths, number and age of its traces; and how the metrics of several
rounds become one set.
"""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from data.types import ScoredTrajectory, Side, Trajectory
from learner.replay import KeptGroup

COUNTS = ("repair/", "judge/failed", "reward/cache_hits")
"""Metrics that add up over rounds; alarms and `..._max` keep the largest, all others are means."""


def reward_metrics(scored: Sequence[ScoredTrajectory]) -> dict[str, float]:
    """Return the means over the step's scored traces; nothing where there are none."""
    if not scored:
        return {}
    metrics = {
        "reward/total": _mean(scored, lambda trace: trace.parts.total),
        "reward/format": _mean(scored, lambda trace: trace.parts.format),
        "reward/outcome": _mean(scored, lambda trace: trace.parts.outcome),
        "reward/process": _mean(scored, lambda trace: trace.parts.process),
        "reward/gain": _mean(scored, lambda trace: trace.parts.gain),
        "reward/length": _mean(scored, lambda trace: trace.parts.length),
        "rank/accuracy": _mean(scored, lambda trace: trace.parts.accuracy),
        "rank/margin": _mean(scored, lambda trace: trace.parts.margin),
        "rank/gold_mean": _mean(scored, lambda trace: float(trace.parts.rank)),
    }
    for side in Side:
        traces = [trace for trace in scored if trace.trajectory.key.group.side is side]
        if traces:
            metrics[f"reward/{side}"] = _mean(traces, lambda trace: trace.parts.total)
    return metrics


def group_metrics(scored: Sequence[ScoredTrajectory]) -> dict[str, float]:
    """Return how many groups were scored, and of how many only one trace was left."""
    sizes = Counter(trace.trajectory.key.group for trace in scored)
    single = sum(size == 1 for size in sizes.values())
    return {"group/count": float(len(sizes)), "group/single": float(single)}


def spread_metrics(
    scored: Sequence[ScoredTrajectory],
    *,
    taught: int,
    refilled: Sequence[int],
    replayed: Sequence[KeptGroup],
) -> dict[str, float]:
    """Return how many groups were paid alike, and how many groups took their place.

    ``taught`` groups were not paid alike; ``refilled`` counts groups by round after the first.
    """
    groups = {trace.trajectory.key.group for trace in scored}
    return {
        "group/no_spread": float(len(groups) - taught),
        "group/refill_rounds": float(len(refilled)),
        "group/refilled": float(sum(refilled)),
        "group/replayed": float(len(replayed)),
    }


def staleness_metrics(
    version: int, trajectories: Sequence[Trajectory], replayed: Sequence[KeptGroup]
) -> dict[str, float]:
    """Return how many versions the oldest sample lags behind the version that it trains."""
    versions = [trace.min_version for trace in trajectories] + [group.version for group in replayed]
    return {"staleness/max": float(version - min(versions, default=version))}


def rollout_metrics(trajectories: Sequence[Trajectory], seconds: float) -> dict[str, float]:
    """Return the length of the sampled traces and the sampling speed; empty without a trace."""
    tokens = [len(trace.response_ids) for trace in trajectories]
    if not tokens:
        return {}
    return {
        "rollout/tokens_per_s": sum(tokens) / seconds,
        "rollout/tokens_mean": float(np.mean(tokens)),
        "rollout/cut_share": float(np.mean([trace.finish == "length" for trace in trajectories])),
    }


def join_metrics(rounds: Sequence[tuple[Mapping[str, float], int]]) -> dict[str, float]:
    """Return the metrics of several rounds, given with their numbers of scored traces, as one.

    Means are weighted by these numbers, over the rounds that have the metric.
    """
    joined: dict[str, float] = {}
    for name in dict.fromkeys(name for metrics, _ in rounds for name in metrics):
        weighted = [(metrics[name], weight) for metrics, weight in rounds if name in metrics]
        values = [value for value, _ in weighted]
        total = sum(weight for _, weight in weighted)
        if name.startswith("alarm/") or name.endswith("_max"):
            joined[name] = max(values)
        elif name.startswith(COUNTS):
            joined[name] = sum(values)
        elif total:
            joined[name] = sum(value * weight for value, weight in weighted) / total
        else:
            joined[name] = sum(values) / len(values)
    return joined


def _mean(scored: Sequence[ScoredTrajectory], read: Callable[[ScoredTrajectory], float]) -> float:
    return float(np.mean([read(trace) for trace in scored]))
