"""Token log-probabilities and entropy from hidden states, never holding all logits at once.

Shape suffixes: T = tokens, D = hidden size, V = vocabulary, C = tokens of one chunk.
"""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

BANNED_LOGIT = -1e9
"""The engine bans tokens with a bias of -inf; here a finite one, whose gradient is no NaN."""
CHUNK_LOGITS = 1 << 26
"""Logits held at a time (256 MiB in float32)."""

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
        return _score(
            head(hidden_CD),
            targets_C,
            banned=banned,
            temperature=temperature,
            entropy_gradient=entropy_gradient,
        )

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


def _score(
    logits_CV: Tensor,
    targets_C: Tensor,
    *,
    banned: Tensor | None,
    temperature: float,
    entropy_gradient: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    logits_CV = logits_CV.to(torch.promote_types(logits_CV.dtype, torch.float32))
    if banned is not None:
        logits_CV = logits_CV.index_fill(1, banned, BANNED_LOGIT)
    logprobs_CV = torch.log_softmax(logits_CV / temperature, dim=-1)
    logprobs_C = logprobs_CV.gather(1, targets_C[:, None])[:, 0]
    with torch.set_grad_enabled(entropy_gradient and torch.is_grad_enabled()):
        entropy_C = -(logprobs_CV.exp() * logprobs_CV).sum(-1)
    with torch.no_grad():
        correct_C = (logprobs_CV.argmax(-1) == targets_C).float()
    return logprobs_C, entropy_C, correct_C
