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
CHUNK_LOGITS = 3 << 22
"""Logits of a chunk (48 MiB in float32); three tensors of that size are held at a time. With fewer
the output layer would wait for its weights, which each chunk reads again; and glibc gives blocks
of up to 32 MiB back late."""

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
        return _Scores.apply(head(hidden_CD), targets_C, banned, temperature, entropy_gradient)

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

    With p = softmax(logits / temperature) and H the entropy:
    d log p(target) = onehot(target) - p and d H = - p (log p + H), both by logits / temperature.
    """

    @staticmethod
    def forward(
        ctx: Any,
        logits_CV: Tensor,
        targets_C: Tensor,
        banned: Tensor | None,
        temperature: float,
        entropy_gradient: bool,
    ) -> tuple[Tensor, Tensor, Tensor]:
        wide = torch.promote_types(logits_CV.dtype, torch.float32)
        own_CV = logits_CV.to(wide, copy=True).div_(temperature)
        if banned is not None:
            own_CV.index_fill_(1, banned, BANNED_LOGIT)
        top_C, best_C = own_CV.max(-1, keepdim=True)
        own_CV.sub_(top_C)
        probs_CV = own_CV.exp()
        total_C = probs_CV.sum(-1, keepdim=True)
        probs_CV.div_(total_C)
        own_CV.sub_(total_C.log())
        logprobs_C = own_CV.gather(1, targets_C[:, None])[:, 0]
        entropy_C = -torch.bmm(probs_CV[:, None], own_CV[:, :, None])[:, 0, 0]
        correct_C = (best_C[:, 0] == targets_C).float()
        ctx.temperature, ctx.banned = temperature, banned
        ctx.save_for_backward(
            probs_CV, targets_C, *((own_CV, entropy_C) if entropy_gradient else ())
        )
        ctx.mark_non_differentiable(correct_C, *(() if entropy_gradient else (entropy_C,)))
        return logprobs_C, entropy_C, correct_C

    @staticmethod
    def backward(ctx: Any, to_logprobs_C: Tensor, to_entropy_C: Tensor, _: Tensor) -> Any:
        probs_CV, targets_C, *kept = ctx.saved_tensors
        to_logprobs_C = to_logprobs_C[:, None] / ctx.temperature
        # In place: a second backward pass through the same graph is refused by autograd.
        if kept:
            own_CV, entropy_C = kept
            to_entropy_C = to_entropy_C[:, None] / ctx.temperature
            own_CV.add_(entropy_C[:, None]).mul_(to_entropy_C).add_(to_logprobs_C)
            probs_CV.mul_(own_CV).neg_()
        else:
            probs_CV.mul_(-to_logprobs_C)
        probs_CV.scatter_add_(1, targets_C[:, None], to_logprobs_C)
        if ctx.banned is not None:
            probs_CV.index_fill_(1, ctx.banned, 0.0)
        return probs_CV, None, None, None, None
