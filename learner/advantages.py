"""Rewards of sibling traces to advantages."""

import numpy as np

from data.errors import DataError


def group_advantages(rewards: np.ndarray, *, std_floor: float) -> np.ndarray:
    """Return ``(r - mean) / max(std, std_floor)`` for one group, float64 [n].

    The standard deviation is the sample's (n - 1), as in GRPO; a group of one has none and gets
    zero.

    Raises:
        DataError: the group is empty or a reward is not finite.
    """
    rewards = _checked(rewards)
    if len(rewards) == 1:
        return np.zeros(1)
    return (rewards - rewards.mean()) / max(float(rewards.std(ddof=1)), std_floor)


def has_spread(rewards: np.ndarray, *, min_spread: float) -> bool:
    """Return whether the rewards differ by at least ``min_spread``: else nothing can be learnt."""
    rewards = _checked(rewards)
    return bool(np.ptp(rewards) >= min_spread) and len(rewards) > 1


def _checked(rewards: np.ndarray) -> np.ndarray:
    rewards = np.asarray(rewards, dtype=np.float64)
    if rewards.ndim != 1 or rewards.size == 0:
        raise DataError(f"expected the rewards of one group, [n >= 1]; found {rewards.shape}")
    if not np.isfinite(rewards).all():
        raise DataError(f"expected finite rewards, found {rewards.tolist()}; drop failed traces")
    return rewards
