"""The RL objective as pure functions of per-token log-probabilities.

Shape suffixes: T = response tokens of a micro-batch, laid end to end, trace after trace.

Three policies have given each token a probability:

    b    behaviour: the engine, at the version that sampled the token (stored with the trace)
    old  the learner's own model at that version.
         Where the version in training sampled the trace: in the step's first update `now` without
         gradient; in later updates what the model gave before the first one
         (`policy_tokens.start_logprobs`).
         Where an older version did: with tis_cap > 0 what `score_policy` stored when the trace
         came in. The learner may have been one version newer by then; that difference counts as
         mismatch below. With tis_cap = 0 it is b.
    now  the model in training

so that now / b = now / old (off-policy: versions) x old / b (mismatch: engine against learner).

Table of losses: the gain per token, with ratio = now / anchor and A the trace's advantage.

    ratio=token           min(r A, clip(r) A), r = ratio of the token   PPO, Schulman et al., 2017
    ratio=sequence        the same, r = exp(mean log ratio of trace)    GSPO, Zheng et al., 2025
    ratio=clipped_weight  stop(clip(ratio)) A log now                   CISPO, MiniMax-M1, 2025

    clip(r) in [1 - clip_low, 1 + clip_high]      clip higher: DAPO, Yu et al., 2025
    dual_clip > 0, A < 0: at least dual_clip x A  dual clip: Ye et al., 2020 (MOBA); not where the
                 weight is clipped, which has a largest value already
    tis_cap = 0: anchor b, so the clip bounds versions and mismatch together
    tis_cap > 0: anchor old, gain x stop(min(old / b, tis_cap))         TIS, Yao et al., 2025; the
                 split of the ratio: Hilton et al., 2021 (Batch size-invariance)
    sequence_band > 0: traces with exp(mean log stop(now) / b) outside [1 / band, band] weigh 0:
                 sequence masks of Liu et al., 2025 (When speed kills stability)
    kl_in=loss: - kl_coef x k1 | k2 | k3 of (now, reference)            Schulman, 2020
    entropy_coef: + entropy_coef x entropy

The loss is - sum of weight x gain: sums, so that it does not matter which micro-batch or rank a
token is in. The caller divides by `loss_divisor.loss_total` of the whole update:

    loss_mean=token              weight 1             total: tokens            DAPO
    loss_mean=sequence           weight 1 / length    total: traces            GRPO, GSPO
    loss_mean=sequence_constant  weight 1             total: traces x limit    Dr. GRPO, RLOO
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from configs.learner import GRPOConfig
from data.errors import DataError


@dataclass(frozen=True, slots=True, kw_only=True)
class PolicyTokens:
    """What the objective reads of a micro-batch; float [T] each, only `now` and entropy learn.

    Raises:
        DataError: the tensors and the traces' lengths do not fit together.
    """

    now_T: Tensor
    """Log-probabilities by the model in training."""
    entropy_T: Tensor
    behaviour_T: Tensor
    old_T: Tensor
    reference_T: Tensor | None
    """By the frozen initial Reasoner; None where the loss has no KL."""
    advantages_T: Tensor
    weights_T: Tensor
    lengths: Sequence[int]
    """Tokens of each trace, in order."""
    fresh_T: Tensor | None = None
    """Whether the version in training sampled the token; None: all."""

    def __post_init__(self) -> None:
        count = sum(self.lengths)
        names = ("now", "entropy", "behaviour", "old", "reference", "advantages", "weights")
        for name in (*names, "fresh"):
            values = getattr(self, f"{name}_T")
            if values is not None and values.shape != (count,):
                raise DataError(
                    f"{name}: expected one value for each of {count} tokens, found shape "
                    f"{tuple(values.shape)}"
                )
        if count and min(self.lengths) < 1:
            raise DataError(f"expected at least one token per trace, found {list(self.lengths)}")


def policy_loss(
    tokens: PolicyTokens, config: GRPOConfig
) -> tuple[Tensor, dict[str, Tensor], dict[str, Tensor]]:
    """Return the summed loss, the sums of its metrics, and the largest values of others.

    Sums over tokens: `kl`, `clip_fraction` (tokens that the clip changes), `masked_fraction`,
    `entropy`, `off_policy_ratio`, `mismatch_ratio`. Largest: both ratios as `..._max`, and
    `logprob_gap` of `version_gaps`.

    Raises:
        DataError: the loss needs a KL estimate and there is no reference.
    """
    t = tokens
    now_T, weights_T = t.now_T, t.weights_T
    anchor_T = t.old_T if config.tis_cap else t.behaviour_T
    gain_T, clipped_T = _gain(t, anchor_T, config)
    if config.tis_cap:
        gain_T = gain_T * torch.exp(t.old_T - t.behaviour_T).clamp(max=config.tis_cap)
    sums = {"clip_fraction": clipped_T.sum(), "entropy": t.entropy_T.detach().sum()}
    cost_T = -gain_T
    if config.kl != "none" and config.kl_in == "loss":
        if t.reference_T is None:
            raise DataError(f"kl={config.kl} in the loss: expected reference log-probabilities")
        kl_T = kl_estimate(now_T, t.reference_T, config.kl)
        cost_T = config.kl_coef * kl_T + cost_T
        sums["kl"] = kl_T.detach().sum()
    if config.entropy_coef:
        cost_T = cost_T - config.entropy_coef * t.entropy_T
    if config.sequence_band:
        drift_T = _trace_means(now_T.detach() - t.behaviour_T, t.lengths)
        masked_T = drift_T.abs() > math.log(config.sequence_band)
        weights_T = weights_T.masked_fill(masked_T, 0.0)
        sums["masked_fraction"] = masked_T.sum()
    off_policy_T = torch.exp(now_T.detach() - t.old_T)
    mismatch_T = torch.exp(t.old_T - t.behaviour_T)
    sums |= {"off_policy_ratio": off_policy_T.sum(), "mismatch_ratio": mismatch_T.sum()}
    largest = {
        "off_policy_ratio_max": _largest(off_policy_T),
        "mismatch_ratio_max": _largest(mismatch_T),
        "logprob_gap": _largest(version_gaps(t)),
    }
    return (weights_T * cost_T).sum(), sums, largest


def version_gaps(t: PolicyTokens) -> Tensor:
    """Return the absolute difference between old and behaviour where these are of one version.

    One value for each such token, without gradient.
    """
    gap_T = (t.old_T - t.behaviour_T).abs()
    return gap_T if t.fresh_T is None else gap_T[t.fresh_T]


def _gain(t: PolicyTokens, anchor_T: Tensor, config: GRPOConfig) -> tuple[Tensor, Tensor]:
    """Return each token's gain, and whether the clip changed it; both [T]."""
    log_ratio_T = t.now_T - anchor_T
    if config.ratio == "sequence":
        log_ratio_T = _trace_means(log_ratio_T, t.lengths)
    ratio_T = torch.exp(log_ratio_T)
    clipped_T = ratio_T.clamp(1.0 - config.clip_low, 1.0 + config.clip_high)
    if config.ratio == "clipped_weight":
        return clipped_T.detach() * t.advantages_T * t.now_T, clipped_T != ratio_T
    free_T = ratio_T * t.advantages_T
    gain_T = torch.minimum(free_T, clipped_T * t.advantages_T)
    if config.dual_clip:
        least_T = torch.where(t.advantages_T < 0, config.dual_clip * t.advantages_T, -math.inf)
        gain_T = torch.maximum(gain_T, least_T)
    return gain_T, gain_T != free_T


def _trace_means(values_T: Tensor, lengths: Sequence[int]) -> Tensor:
    """Return the mean over its trace for every token, [T]."""
    parts = values_T.split(list(lengths))
    # The empty slice keeps the gradient's path where there are no traces.
    return torch.cat([values_T[:0], *(part.mean().expand(len(part)) for part in parts)])


def _largest(values_T: Tensor) -> Tensor:
    return values_T.max() if len(values_T) else values_T.new_zeros(())


def kl_estimate(now_T: Tensor, reference_T: Tensor, kind: str) -> Tensor:
    """Return the estimate of KL(now || reference) by token, [T] (Schulman, 2020).

    k1 is unbiased and may be negative, k2 has the right gradient in a loss, k3 is unbiased, never
    negative and of low variance.

    Raises:
        DataError: the kind is unknown.
    """
    gap_T = reference_T - now_T
    if kind == "k1":
        return -gap_T
    if kind == "k2":
        return gap_T**2 / 2
    if kind == "k3":
        return torch.expm1(gap_T) - gap_T  # exp(gap) - 1 loses small gaps to rounding
    raise DataError(f"kl: expected k1, k2 or k3, found '{kind}'")


def token_weight(length: int, *, loss_mean: str) -> float:
    """Return what each token of a trace of that length weighs in the sum."""
    return 1.0 / length if loss_mean == "sequence" else 1.0
