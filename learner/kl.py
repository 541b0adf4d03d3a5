"""The KL to the frozen reference that a reward may pay. The loss has its own, in torch."""

import numpy as np

from data.errors import DataError


def reward_kl(own_T: np.ndarray, reference_T: np.ndarray, kind: str) -> np.ndarray:
    """Return the estimate of KL(own || reference) by token, float64 [T].

    The formulas are those of `learner.rank.policy_loss.kl_estimate`, which is for the loss and
    needs torch.

    Raises:
        DataError: the kind is unknown.
    """
    gap_T = reference_T.astype(np.float64) - own_T.astype(np.float64)
    if kind == "k1":
        return -gap_T
    if kind == "k2":
        return gap_T**2 / 2
    if kind == "k3":
        return np.expm1(gap_T) - gap_T  # exp(gap) - 1 loses small gaps to rounding
    raise DataError(f"kl: expected k1, k2 or k3, found '{kind}'")
