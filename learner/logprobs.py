"""Token log-probabilities and entropy from hidden states, never holding all logits at once.

Shape suffixes: T = tokens, D = hidden size, V = vocabulary, C = tokens of one chunk.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

BANNED_LOGIT = -1e9
"""The engine bans tokens with a bias of -inf; here a finite one, whose gradient is no NaN."""
CHUNK_LOGITS = 1 << 24
"""Logits of a chunk (64 MiB in float32); three tensors of that size are held at a time. Fewer
would make the output layer read its weights more often than it multiplies."""

Head = Callable[[Tensor], Tensor]


def token_logprobs(
    hidden_TD: Tensor,
    targets_T: Tensor,
    head: Head,
    *,
    vocabulary: int,
    banned: Tensor | None = None,
    temperature: float = 1.0,
    entropy_gradient: bool = False,
    chunk_logits: int = CHUNK_LOGITS,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return each target's log-probability, the entropy there, and whether it is the likeliest.

    All [T], float32 or wider; the log-probabilities carry gradient, and so does the entropy where
    ``entropy_gradient`` asks for it, which keeps one more [C, V] tensor. ``head`` maps [C, D] to
    logits [C, V]; it is called as a module so that partitioned weights (ZeRO-3) are fetched for
    it. Beyond one chunk the logits are computed again in the backward pass instead of being kept.
    """
    count = hidden_TD.shape[0]
    size = max(1, chunk_logits // vocabulary)

    def score(hidden_CD: Tensor, targets_C: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        logits_CV = head(hidden_CD)
        scaled_CV = logits_CV.to(torch.promote_types(logits_CV.dtype, torch.float32)) / temperature
        del logits_CV
        if banned is not None:
            scaled_CV = scaled_CV.index_fill_(1, banned, BANNED_LOGIT)
        return _Scores.apply(scaled_CV, targets_C, entropy_gradient)

    if count <= size:
        return score(hidden_TD, targets_T)
    parts = []
    for start in range(0, count, size):
        hidden_CD, targets_C = hidden_TD[start : start + size], targets_T[start : start + size]
        if hidden_CD.requires_grad:
            # Not reentrant: that would hand the head's gradient to ZeRO once per chunk.
            parts.append(checkpoint(score, hidden_CD, targets_C, use_reentrant=False))
        else:
            parts.append(score(hidden_CD, targets_C))
    logprobs, entropy, correct = zip(*parts, strict=True)
    return torch.cat(logprobs), torch.cat(entropy), torch.cat(correct)


class _Scores(torch.autograd.Function):
    """The three results of a chunk, with fewer [C, V] tensors than autograd would keep.

    With p = softmax(logits) and H the entropy:
    d log p(target) / d logits = onehot(target) - p,  d H / d logits = - p (log p + H).
    """

    @staticmethod
    def forward(
        ctx: Any, logits_CV: Tensor, targets_C: Tensor, entropy_gradient: bool
    ) -> tuple[Tensor, Tensor, Tensor]:
        top_C, best_C = logits_CV.max(-1)
        below_CV = logits_CV - top_C[:, None]
        probs_CV = below_CV.exp()
        total_C = probs_CV.sum(-1)
        logprobs_C = below_CV.gather(1, targets_C[:, None])[:, 0] - total_C.log()
        probs_CV /= total_C[:, None]
        entropy_C = total_C.log() - torch.linalg.vecdot(probs_CV, below_CV)
        correct_C = (best_C == targets_C).to(logprobs_C.dtype)
        kept = (below_CV.sub_(total_C.log()[:, None]), entropy_C) if entropy_gradient else ()
        ctx.save_for_backward(probs_CV, targets_C, *kept)
        ctx.mark_non_differentiable(correct_C, *(() if entropy_gradient else (entropy_C,)))
        return logprobs_C, entropy_C, correct_C

    @staticmethod
    def backward(ctx: Any, to_logprobs_C: Tensor, to_entropy_C: Tensor, _: Tensor) -> Any:
        probs_CV, targets_C, *kept = ctx.saved_tensors
        if kept:
            own_CV, entropy_C = kept
            weights_CV = own_CV + entropy_C[:, None]
            weights_CV.mul_(to_entropy_C[:, None]).add_(to_logprobs_C[:, None])
            gradient_CV = weights_CV.mul_(probs_CV).neg_()
        else:
            gradient_CV = probs_CV * -to_logprobs_C[:, None]
        gradient_CV.scatter_add_(1, targets_C[:, None], to_logprobs_C[:, None])
        return gradient_CV, None, None
