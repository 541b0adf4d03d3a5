"""Supervised warm start: likelihood of written responses.

Only response tokens (`Row.num_response`) carry loss: never the prompt, its pictures, padding or a
filler row. The model scores nothing else, so the mask costs nothing.
"""

import torch
from torch import Tensor


def supervised_loss(
    logprobs_T: Tensor, correct_T: Tensor
) -> tuple[Tensor, dict[str, Tensor], dict[str, Tensor]]:
    """Return the summed negative log-likelihood, the sums of its metrics, and no largest values.

    The caller divides by the response tokens of the whole step, so that each weighs the same.
    """
    return -logprobs_T.sum(), {"token_accuracy": correct_T.sum()}, {}


def response_scores(
    logprobs_T: Tensor, correct_T: Tensor, rows_T: Tensor, *, samples: int
) -> dict[str, float]:
    """Return sums over tokens (`loss`, `token_accuracy`, `tokens`) and samples (`exact`).

    A sample is exact if each of its tokens is the likeliest one after the true tokens before it.
    """
    wrong_B = torch.zeros(samples, device=correct_T.device)
    wrong_B.index_add_(0, rows_T, 1.0 - correct_T)
    return {
        "loss": -float(logprobs_T.sum()),
        "token_accuracy": float(correct_T.sum()),
        "exact": float((wrong_B == 0).sum()),
        "tokens": float(len(correct_T)),
        "samples": float(samples),
    }
