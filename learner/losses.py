"""The RL objective as pure functions of per-token log-probabilities.

Shape suffixes: T = response tokens of a micro-batch, laid end to end.
Sums are returned, not means: the caller divides by the token count of the whole step, over all
ranks and micro-batches, so that every token weighs the same wherever it was computed.
"""

import torch
from torch import Tensor


def policy_loss(
    logprobs_T: Tensor,
    behaviour_T: Tensor,
    reference_T: Tensor,
    advantages_T: Tensor,
    *,
    clip: float,
    kl_coef: float,
) -> tuple[Tensor, dict[str, Tensor]]:
    """Return the summed loss and the sums of its metrics (spec, section 1.3).

    ``behaviour_T`` are the log-probabilities that the tokens were sampled with, ``reference_T``
    those of the frozen initial Reasoner. Metrics: `kl` (k3) and `clip_fraction` (tokens whose
    gradient the clip cuts off).
    """
    ratio_T = torch.exp(logprobs_T - behaviour_T)
    free_T = ratio_T * advantages_T
    clipped_T = ratio_T.clamp(1.0 - clip, 1.0 + clip) * advantages_T
    kl_T = k3(logprobs_T, reference_T)
    loss = (kl_coef * kl_T - torch.minimum(free_T, clipped_T)).sum()
    sums = {
        "kl": kl_T.detach().sum(),
        "clip_fraction": (clipped_T < free_T).detach().float().sum(),
    }
    return loss, sums


def k3(logprobs_T: Tensor, reference_T: Tensor) -> Tensor:
    """Return the non-negative, low-variance estimate of KL(policy || reference) by token, [T]."""
    gap_T = reference_T - logprobs_T
    return torch.exp(gap_T) - gap_T - 1.0
