"""From ranks and judgements to rewards, joined by key."""

import math
from collections.abc import Mapping, Sequence

from configs.reward import RewardConfig
from data.tcot import faults
from data.types import (
    DroppedTrajectory,
    Item,
    Judgement,
    Pair,
    RewardParts,
    ScoredTrajectory,
)
from reward.ranking import RankedTrajectory


def format_reward(text: str, item: Item, *, max_frames: int) -> float:
    """Return 1.0 for a strictly valid trace of that item, else 0.0."""
    frames = min(len(item.uris), max_frames)
    return float(not faults(text, kind=item.kind, num_frames=frames))


def length_penalty(tokens: int, *, budget: int) -> float:
    """Return the tokens over the budget as a negative share of it; without a budget, 0."""
    return -max(0, tokens - budget) / budget if budget else 0.0


def score_round(
    ranked: Sequence[RankedTrajectory],
    judged: Mapping[str, Judgement],
    pairs: Mapping[int, Pair],
    *,
    reward: RewardConfig,
    max_frames: int,
) -> tuple[list[ScoredTrajectory], list[DroppedTrajectory]]:
    """Return the rewards of one round; the formula stands at `RewardConfig`.

    ``judged`` holds the judge's answers by trajectory key (as text). Where the judge pays, a trace
    without an answer is dropped as `judge_failed`: a 0 would punish it for the judge's mistake.
    """
    scored, dropped = [], []
    for trace in ranked:
        key = trace.trajectory.key
        judgement = judged.get(str(key))
        if reward.process_weight > 0 and judgement is None:
            dropped.append(DroppedTrajectory(key, "judge_failed"))
            continue
        item = pairs[key.group.serial].item(key.group.side)
        form = format_reward(trace.trajectory.text, item, max_frames=max_frames)
        scored.append(
            ScoredTrajectory(
                trajectory=trace.trajectory,
                parts=_parts(trace, form, judgement, reward),
                retrieved=trace.retrieved,
                candidates_id=trace.candidates_id,
                candidates_size=trace.candidates_size,
                judgement=judgement,
            )
        )
    return scored, dropped


def _parts(
    one: RankedTrajectory, form: float, judgement: Judgement | None, reward: RewardConfig
) -> RewardParts:
    accuracy = one.accuracy if reward.accuracy == "share" else float(one.accuracy == 1)
    # Not below: a malformed trace must not escape what costs.
    most = 0.0 if reward.gate_by_format and not form else math.inf
    outcome = min(most, reward.accuracy_weight * accuracy * one.margin)
    process = 0.0
    if judgement is not None:
        pays = one.margin if reward.process_pays == "margin" else 1.0
        process = min(most, judgement.share * pays)
    gain = min(most, one.gain)
    length = length_penalty(len(one.trajectory.response_ids), budget=reward.length_budget)
    return RewardParts(
        format=form,
        outcome=outcome,
        accuracy=one.accuracy,
        margin=one.margin,
        rank=one.rank,
        process=process,
        gain=gain,
        length=length,
        total=(
            reward.format_weight * form
            + reward.outcome_weight * outcome
            + reward.process_weight * process
            + reward.gain_weight * gain
            + reward.length_weight * length
        ),
    )
