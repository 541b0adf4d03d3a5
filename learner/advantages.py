"""Rewards of sibling traces, less penalties, to advantages.

Kinds, for the rewards r of the n siblings of one group (std: of the sample, n - 1):

    group_norm     (r - mean) / max(std, floor)     GRPO; DeepSeekMath, Shao et al., 2024
    mean_only      r - mean                         Dr. GRPO, Liu et al., 2025
    leave_one_out  r - mean of the other siblings   RLOO, Ahmadian et al., 2024
    batch_norm     (r - mean) / max(std of all r - mean of the step, floor)
                                                    REINFORCE++ with baseline, Hu et al., 2025

A group whose rewards are alike has advantage 0 and stays in the step: it counts in the std of all,
in the loss's divisor and in the KL. Dynamic sampling (DAPO, Yu et al., 2025) leaves it out.
"""

from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from configs.learner import GRPOConfig
from data.errors import DataError
from data.types import GroupKey, TrajectoryKey
from learner.objectives import TokenScores


def step_advantages(
    rewards: Mapping[TrajectoryKey, float],
    config: GRPOConfig,
    *,
    paid: Mapping[TrajectoryKey, float],
) -> dict[TrajectoryKey, float]:
    """Return the advantages of a step's traces, by key; 0 in a group without spread.

    ``rewards`` are what the traces were ``paid``, less the penalties of `shaped_rewards`. With
    `refill`, the groups that were paid alike are left out, whatever the penalties make of them.

    Raises:
        DataError: a reward is not finite.
    """
    groups = _by_group(rewards)
    if config.refill:
        informative = groups_with_spread(paid, min_spread=config.min_spread)
        groups = {group: keys for group, keys in groups.items() if group in informative}
    values = [np.array([rewards[key] for key in keys]) for keys in groups.values()]
    advantage_arrays = group_advantages(values, kind=config.advantage, std_floor=config.std_floor)
    advantages: dict[TrajectoryKey, float] = {}
    for keys, group_rewards, own in zip(groups.values(), values, advantage_arrays, strict=True):
        if not has_spread(group_rewards, min_spread=config.min_spread):
            own = np.zeros(len(keys))
        advantages.update(zip(keys, own.tolist(), strict=True))
    return advantages


def groups_with_spread(
    rewards: Mapping[TrajectoryKey, float], *, min_spread: float
) -> set[GroupKey]:
    """Return the groups whose rewards differ by at least ``min_spread``.

    Raises:
        DataError: a reward is not finite.
    """
    return {
        group
        for group, keys in _by_group(rewards).items()
        if has_spread(np.array([rewards[key] for key in keys]), min_spread=min_spread)
    }


def group_advantages(
    groups: Sequence[np.ndarray], *, kind: str, std_floor: float
) -> list[np.ndarray]:
    """Return the advantages of a step's groups of rewards, float64 [n] each.

    A group of one has no baseline and gets zero.

    Raises:
        DataError: a group is empty, a reward is not finite, or the kind is unknown.
    """
    rewards = [_checked(group) for group in groups]
    centred = [group - group.mean() for group in rewards]
    if kind == "mean_only":
        return centred
    if kind == "leave_one_out":
        return [group * (len(group) / max(1, len(group) - 1)) for group in centred]
    if kind == "group_norm":
        return [
            away / max(_std(group), std_floor) for away, group in zip(centred, rewards, strict=True)
        ]
    if kind == "batch_norm":
        spread = _std(np.concatenate([np.zeros(0), *centred]))
        return [away / max(spread, std_floor) for away in centred]
    raise DataError(
        f"advantage: expected group_norm, mean_only, leave_one_out or batch_norm, found '{kind}'"
    )


def has_spread(rewards: np.ndarray, *, min_spread: float) -> bool:
    """Return whether the rewards differ by at least ``min_spread``; those of one trace do not."""
    rewards = _checked(rewards)
    return bool(np.ptp(rewards) >= min_spread) and len(rewards) > 1


def overlong_share(tokens: int, *, max_tokens: int, share: float) -> float:
    """Return how far a trace is into the last ``share`` of the token limit, in [0, 1].

    DAPO's soft overlong punishment is minus this (Yu et al., 2025, equation 13).

    Raises:
        DataError: there is no such last part.
    """
    if not (max_tokens > 0 and 0 < share <= 1):
        raise DataError(
            f"expected a token limit > 0 and a share in (0, 1], found {max_tokens} and {share}"
        )
    start = max_tokens * (1 - share)
    return min(1.0, max(0.0, (tokens - start) / (max_tokens - start)))


def shaped_rewards(
    rewards: Mapping[TrajectoryKey, float],
    lengths: Mapping[TrajectoryKey, int],
    scores: Mapping[str, TokenScores],
    *,
    grpo: GRPOConfig,
    max_tokens: int,
) -> tuple[dict[TrajectoryKey, float], dict[str, float]]:
    """Return the rewards less the penalties for length and KL, and the penalties' metrics.

    ``scores`` are by the traces' keys as text; they are read where the KL is in the reward.
    """
    shaped, metrics = dict(rewards), dict[str, float]()
    if grpo.overlong_penalty and rewards:
        over = {
            key: overlong_share(lengths[key], max_tokens=max_tokens, share=grpo.overlong_share)
            for key in rewards
        }
        shaped = {key: shaped[key] - grpo.overlong_penalty * over[key] for key in shaped}
        metrics["reward/overlong"] = float(np.mean(list(over.values())))
    if grpo.kl != "none" and grpo.kl_in == "reward" and rewards:
        kl = {key: scores[str(key)].kl(grpo.kl) for key in rewards}
        shaped = {key: shaped[key] - grpo.kl_coef * kl[key] for key in shaped}
        metrics["policy/kl"] = sum(kl.values()) / sum(lengths[key] for key in rewards)
    return shaped, metrics


def _by_group(keys: Iterable[TrajectoryKey]) -> dict[GroupKey, list[TrajectoryKey]]:
    groups: dict[GroupKey, list[TrajectoryKey]] = {}
    for key in keys:
        groups.setdefault(key.group, []).append(key)
    return groups


def _std(values: np.ndarray) -> float:
    return float(values.std(ddof=1)) if len(values) > 1 else 0.0


def _checked(rewards: np.ndarray) -> np.ndarray:
    rewards = np.asarray(rewards, dtype=np.float64)
    if rewards.ndim != 1 or rewards.size == 0:
        raise DataError(f"expected the rewards of one group, [n >= 1]; found {rewards.shape}")
    if not np.isfinite(rewards).all():
        raise DataError(f"expected finite rewards, found {rewards.tolist()}; drop failed traces")
    return rewards
