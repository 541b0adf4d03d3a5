"""RL of the Reasoner: from sampled traces to what `learner.rank.policy_loss` reads."""

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from data.errors import DataError
from data.types import TrainSample
from learner.micro_batches import MiniBatch
from learner.rank.policy_loss import PolicyTokens, token_weight


def policy_tokens(
    samples: Sequence[TrainSample],
    now_T: Tensor,
    entropy_T: Tensor,
    reference_T: Tensor | None,
    *,
    loss_mean: str,
    start: Mapping[str, Tensor] | None = None,
) -> PolicyTokens:
    """Return the tokens of a micro-batch's samples, laid end to end.

    ``start`` holds `start_logprobs` where other updates of the step come before.

    Raises:
        DataError: a sample lacks log-probabilities, or has more or fewer than tokens.
    """
    lengths = [len(sample.response_ids) for sample in samples]

    def by_token(values: list[np.ndarray]) -> Tensor:
        return torch.from_numpy(np.concatenate([np.zeros(0), *values])).to(now_T)

    def by_trace(values: list[float]) -> Tensor:
        return by_token([np.full(n, value) for n, value in zip(lengths, values, strict=True)])

    parts = now_T.detach().split(lengths)
    first = [(start or {}).get(trace.key, own) for trace, own in zip(samples, parts, strict=True)]
    old = [_old(sample, own) for sample, own in zip(samples, first, strict=True)]
    return PolicyTokens(
        now_T=now_T,
        entropy_T=entropy_T,
        behaviour_T=by_token([_behaviour(sample) for sample in samples]),
        old_T=torch.cat([now_T.detach()[:0], *old]),
        reference_T=reference_T,
        advantages_T=by_trace([sample.advantage for sample in samples]),
        weights_T=by_trace(
            [s.weight * token_weight(len(s.response_ids), loss_mean=loss_mean) for s in samples]
        ),
        lengths=lengths,
        fresh_T=by_trace([float(sample.old_logprobs is None) for sample in samples]) > 0,
    )


def start_logprobs(
    mini_batches: Sequence[MiniBatch], own: Callable[[Sequence[TrainSample]], Tensor]
) -> dict[str, Tensor]:
    """Return what the model gives to the traces of a step before its first update, [T], by key.

    That is for the mini-batches after the first, whose own pass gives the same. ``own`` returns it
    for a micro-batch, laid end to end, without gradient.
    """
    logprobs: dict[str, Tensor] = {}
    for samples in (micro for mini in mini_batches[1:] for micro in mini.micro_batches):
        parts = own(samples).split([len(sample.response_ids) for sample in samples])
        logprobs.update((trace.key, part) for trace, part in zip(samples, parts, strict=True))
    return logprobs


def _behaviour(sample: TrainSample) -> np.ndarray:
    if sample.logprobs is None:
        raise DataError(
            f"{sample.key}: expected behaviour log-probabilities, found none; sample with them"
        )
    return _checked(sample.logprobs, sample, "behaviour")


def _old(sample: TrainSample, own_T: Tensor) -> Tensor:
    if sample.old_logprobs is None:
        return own_T
    return torch.from_numpy(_checked(sample.old_logprobs, sample, "old")).to(own_T)


def _checked(values: np.ndarray, sample: TrainSample, name: str) -> np.ndarray:
    if len(values) != len(sample.response_ids):
        raise DataError(
            f"{sample.key}: expected {len(sample.response_ids)} {name} log-probabilities, one per "
            f"response token, found {len(values)}"
        )
    return np.asarray(values, dtype=np.float64)
