"""RL of the Reasoner: from sampled traces to what `learner.losses` reads."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from configs.schema import GRPOConfig
from data.errors import DataError
from data.types import TrainSample, TrajectoryKey
from learner.advantages import overlong_share
from learner.losses import PolicyTokens, kl_estimate, loss_total, token_weight


@dataclass(frozen=True, slots=True, kw_only=True)
class PolicyObjective:
    """RL: policy gradient, near a frozen reference."""

    reference: str
    """Folder of the frozen initial Reasoner."""
    grpo: GRPOConfig
    max_tokens: int
    """Token limit of the sampling that made the traces."""
    temperature: float = 1.0
    """Of the sampling that made the traces."""

    @property
    def reference_in_loss(self) -> bool:
        """Whether a step needs the reference's log-probabilities."""
        return self.grpo.kl != "none" and self.grpo.kl_in == "loss"

    def total(self, *, tokens: int, traces: int) -> float:
        """Return what the summed loss of a whole step is divided by."""
        return loss_total(
            tokens=tokens,
            traces=traces,
            max_tokens=self.max_tokens,
            loss_mean=self.grpo.loss_mean,
        )


@dataclass(frozen=True, slots=True)
class TokenScores:
    """Log-probabilities of one trace's response, float32 [T]."""

    own: np.ndarray
    """By the model in training."""
    reference: np.ndarray | None
    """By the frozen initial Reasoner; None where the objective has none."""

    def kl(self, kind: str) -> float:
        """Return the trace's KL estimate, summed over its tokens: what the reward loses.

        Raises:
            DataError: there are no reference log-probabilities.
        """
        if self.reference is None:
            raise DataError(f"kl={kind}: expected reference log-probabilities; set kl != none")
        own, reference = torch.from_numpy(self.own), torch.from_numpy(self.reference)
        return float(kl_estimate(own.double(), reference.double(), kind).sum())


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


def policy_tokens(
    samples: Sequence[TrainSample],
    now_T: Tensor,
    entropy_T: Tensor,
    reference_T: Tensor | None,
    *,
    loss_mean: str,
) -> PolicyTokens:
    """Return the tokens of a micro-batch's samples, laid end to end.

    Raises:
        DataError: a sample lacks log-probabilities, or has more or fewer than tokens.
    """
    lengths = [len(sample.response_ids) for sample in samples]

    def by_token(values: list[np.ndarray]) -> Tensor:
        return torch.from_numpy(np.concatenate([np.zeros(0), *values])).to(now_T)

    def by_trace(values: list[float]) -> Tensor:
        return by_token([np.full(n, value) for n, value in zip(lengths, values, strict=True)])

    parts = now_T.detach().split(lengths)
    old = [_old(sample, own) for sample, own in zip(samples, parts, strict=True)]
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
    )


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
