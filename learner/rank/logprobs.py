"""Token log-probabilities and entropy from hidden states, never holding all logits at once.

Shape suffixes: T = tokens, D = hidden size, V = vocabulary, C = tokens of one chunk.
"""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

BANNED_LOGIT = -1e9
"""The engine bans tokens with a bias of -inf; here a finite one, whose gradient is no NaN."""
CHUNK_LOGITS = 3 << 22
"""Logits of a chunk (48 MiB in float32); three tensors of that size are held at a time. With fewer
the output layer would wait for its weights, which each chunk reads again; and glibc gives blocks
of up to 32 MiB back late."""


class OutputLayer(nn.Module):
    """A model's output layer, with the same parameters, that scores tokens: no logits come out.

    A module of its own so that partitioned parameters (ZeRO-3) are fetched for it, once each for
    all chunks of a pass.
    """

    def __init__(self, linear: nn.Linear, *, chunk_logits: int = CHUNK_LOGITS) -> None:
        super().__init__()
        self.weight = linear.weight
        self.bias = linear.bias
        self.chunk_logits = chunk_logits

    def forward(
        self,
        hidden_TD: Tensor,
        targets_T: Tensor,
        *,
        banned: Tensor | None = None,
        temperature: float = 1.0,
        entropy_gradient: bool = False,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return each target's log-probability, the entropy there, and whether it is the likeliest.

        All [T], float32 or wider; the log-probabilities carry gradient, and so does the entropy
        where ``entropy_gradient`` asks for it.
        """
        return _Scores.apply(
            hidden_TD,
            self.weight,
            self.bias,
            targets_T,
            banned,
            temperature,
            entropy_gradient,
            max(1, self.chunk_logits // self.weight.shape[0]),
        )


class _Scores(torch.autograd.Function):
    """Chunks of the vocabulary's distribution, computed again in the backward pass.

    The gradient of the weight is summed in one tensor; autograd would hold three of them, each as
    large as the output layer. With p = softmax(logits / temperature) and H the entropy:
    d log p(target) = onehot(target) - p and d H = - p (log p + H), both by logits / temperature.
    """

    @staticmethod
    def forward(
        ctx: Any,
        hidden_TD: Tensor,
        weight_VD: Tensor,
        bias_V: Tensor | None,
        targets_T: Tensor,
        banned: Tensor | None,
        temperature: float,
        entropy_gradient: bool,
        size: int,
    ) -> tuple[Tensor, Tensor, Tensor]:
        count = len(targets_T)
        wide = torch.promote_types(hidden_TD.dtype, torch.float32)
        logprobs_T, entropy_T, correct_T = hidden_TD.new_empty((3, count), dtype=wide)
        ctx.chunk = lambda hidden_CD, weight, bias: _distribution(
            hidden_CD, weight, bias, banned, temperature
        )
        for part in _chunks(count, size):
            logprobs_CV, probs_CV = ctx.chunk(hidden_TD[part], weight_VD, bias_V)
            index_C1 = targets_T[part, None]
            logprobs_T[part] = logprobs_CV.gather(1, index_C1)[:, 0]
            entropy_T[part] = -torch.bmm(probs_CV[:, None], logprobs_CV[:, :, None])[:, 0, 0]
            correct_T[part] = (logprobs_CV.argmax(-1) == targets_T[part]).to(wide)
        ctx.banned, ctx.temperature, ctx.size = banned, temperature, size
        ctx.entropy_gradient = entropy_gradient
        ctx.save_for_backward(hidden_TD, weight_VD, bias_V, targets_T, entropy_T)
        ctx.mark_non_differentiable(correct_T, *(() if entropy_gradient else (entropy_T,)))
        return logprobs_T, entropy_T, correct_T

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, to_logprobs_T: Tensor, to_entropy_T: Tensor, _: Tensor) -> Any:
        hidden_TD, weight_VD, bias_V, targets_T, entropy_T = ctx.saved_tensors
        to_hidden_TD = torch.empty_like(hidden_TD)
        to_weight_VD = torch.zeros_like(weight_VD) if ctx.needs_input_grad[1] else None
        to_bias_V = torch.zeros_like(bias_V) if ctx.needs_input_grad[2] else None
        for part in _chunks(len(targets_T), ctx.size):
            logprobs_CV, probs_CV = ctx.chunk(hidden_TD[part], weight_VD, bias_V)
            by_logprobs_C1 = to_logprobs_T[part, None] / ctx.temperature
            if ctx.entropy_gradient:
                by_entropy_C1 = to_entropy_T[part, None] / ctx.temperature
                logprobs_CV.add_(entropy_T[part, None]).mul_(by_entropy_C1).add_(by_logprobs_C1)
                probs_CV.mul_(logprobs_CV).neg_()
            else:
                probs_CV.mul_(-by_logprobs_C1)
            del logprobs_CV
            probs_CV.scatter_add_(1, targets_T[part, None], by_logprobs_C1)
            if ctx.banned is not None:
                probs_CV.index_fill_(1, ctx.banned, 0.0)
            to_logits_CV = probs_CV.to(weight_VD.dtype)
            to_hidden_TD[part] = to_logits_CV @ weight_VD
            if to_weight_VD is not None:
                to_weight_VD.addmm_(to_logits_CV.T, hidden_TD[part])
            if to_bias_V is not None:
                to_bias_V += to_logits_CV.sum(0)
        return to_hidden_TD, to_weight_VD, to_bias_V, None, None, None, None, None


def _chunks(count: int, size: int) -> Iterator[slice]:
    return (slice(start, start + size) for start in range(0, count, size))


def _logits(hidden_CD: Tensor, weight_VD: Tensor, bias_V: Tensor | None) -> Tensor:
    """Return new logits [C, V], float32 or wider, of products that nothing has rounded to 16 bits.

    The engine's are as exact (`rollout.vllm_engine`): bf16 logits of 16 and more are rounded to
    steps of 0.125, which both sides would do each in its own way.
    """
    wide = torch.promote_types(hidden_CD.dtype, torch.float32)
    if not hidden_CD.is_cuda or hidden_CD.dtype == wide:
        bias_V = bias_V if bias_V is None else bias_V.to(wide)
        return nn.functional.linear(hidden_CD.to(wide), weight_VD.to(wide), bias_V)
    # A GPU multiplies bf16 and adds up float32 anyhow; so it needs no wide copy of the weight.
    logits_CV = torch.mm(hidden_CD, weight_VD.t(), out_dtype=wide)
    return logits_CV if bias_V is None else logits_CV.add_(bias_V)


def _distribution(
    hidden_CD: Tensor,
    weight_VD: Tensor,
    bias_V: Tensor | None,
    banned: Tensor | None,
    temperature: float,
) -> tuple[Tensor, Tensor]:
    """Return log-probabilities and probabilities of all words, [C, V], float32 or wider."""
    own_CV = _logits(hidden_CD, weight_VD, bias_V).div_(temperature)
    if banned is not None:
        own_CV.index_fill_(1, banned, BANNED_LOGIT)
    own_CV.sub_(own_CV.amax(-1, keepdim=True))
    probs_CV = own_CV.exp()
    total_C1 = probs_CV.sum(-1, keepdim=True)
    return own_CV.sub_(total_C1.log()), probs_CV.div_(total_C1)
