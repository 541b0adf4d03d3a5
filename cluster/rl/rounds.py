"""Samplings of one step: how many pairs the next one takes, and what they add up to.

Every sampling is a scoring round of its own: its traces are ranked among its own candidates and
among those of the bank, never among another sampling's.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from cluster.pictures import SharedPictures, join_pictures
from cluster.rl.metrics import join_metrics
from configs.schema import RLConfig
from data.types import (
    Content,
    DroppedTrajectory,
    Pair,
    ScoredTrajectory,
    Trajectory,
    TrajectoryKey,
)
from learner.advantages import groups_with_spread, shaped_rewards, step_advantages
from learner.objectives import TokenScores

LEAST_SHARE = 0.5
"""Of a step's pairs, in a refill: a rank among few is another task than a rank among many."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SampledRound:
    """What one sampling brought."""

    pairs: Mapping[int, Pair]
    """By the serial numbers of their groups."""
    contents: Mapping[TrajectoryKey, Content]
    pictures: SharedPictures
    trajectories: Sequence[Trajectory]
    scored: Sequence[ScoredTrajectory]
    dropped: Sequence[DroppedTrajectory]
    tokens: Mapping[str, TokenScores]
    """Of scored traces by key as text: of all where the KL is in the reward; else of those whose
    ratio to the learner's own model is needed (`tis_cap`), by the learner as it was then."""
    metrics: Mapping[str, float]


def pairs_wanted(asked: Sequence[int], found: Sequence[int], *, pairs: int, refill: int) -> int:
    """Return how many pairs a step samples next; 0 when it is full or no round is left.

    Dynamic sampling (DAPO, Yu et al., 2025, section 3.2), bounded to ``refill`` rounds after the
    first. A step is full with two groups per pair that have spread in their rewards. ``asked``
    pairs of each round so far gave ``found`` such groups; as many pairs follow as are missing at
    that yield, at least half of ``pairs`` and at most all.
    """
    if not asked:
        return pairs
    missing = 2 * pairs - sum(found)
    if missing <= 0 or len(asked) > refill:
        return 0
    if not sum(found):
        return pairs
    likely = math.ceil(missing * sum(asked) / sum(found))
    return min(pairs, max(likely, math.ceil(LEAST_SHARE * pairs)))


def count_spread(sampled: SampledRound, config: RLConfig) -> int:
    """Return how many groups of a round were not paid alike: a refill is for the others."""
    return len(groups_with_spread(_paid(sampled), min_spread=config.grpo.min_spread))


def round_advantages(
    sampled: SampledRound, config: RLConfig
) -> tuple[dict[TrajectoryKey, float], dict[str, float]]:
    """Return what the rewards, less the penalties for length and KL, are worth; see
    `step_advantages`. Return also the penalties' metrics.
    """
    paid = _paid(sampled)
    rewards, metrics = shaped_rewards(
        paid,
        {trace.trajectory.key: len(trace.trajectory.response_ids) for trace in sampled.scored},
        sampled.tokens,
        grpo=config.grpo,
        max_tokens=config.rollout.sampling.max_tokens,
    )
    return step_advantages(rewards, config.grpo, paid=paid), metrics


def join_rounds(rounds: Sequence[SampledRound]) -> SampledRound:
    """Return the rounds as one, with the pictures of all."""
    first, *more = rounds
    if not more:
        return first
    return SampledRound(
        pairs={serial: pair for sampled in rounds for serial, pair in sampled.pairs.items()},
        contents={key: content for sampled in rounds for key, content in sampled.contents.items()},
        pictures=join_pictures(sampled.pictures for sampled in rounds),
        trajectories=[trace for sampled in rounds for trace in sampled.trajectories],
        scored=[scored for sampled in rounds for scored in sampled.scored],
        dropped=[dropped for sampled in rounds for dropped in sampled.dropped],
        tokens={key: scores for sampled in rounds for key, scores in sampled.tokens.items()},
        metrics=join_metrics([(sampled.metrics, len(sampled.scored)) for sampled in rounds]),
    )


def _paid(sampled: SampledRound) -> dict[TrajectoryKey, float]:
    return {trace.trajectory.key: trace.parts.total for trace in sampled.scored}
