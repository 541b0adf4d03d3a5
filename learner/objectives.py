"""What a learner group trains: the objectives with their settings, and what ranks say of traces.

Loads without torch: the driver imports it.
"""

from dataclasses import dataclass

import numpy as np

from configs.common import MediaConfig
from configs.learner import GRPOConfig, LearnerConfig
from data.errors import ConfigError, DataError
from learner.kl import reward_kl
from learner.loss_divisor import loss_total


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

    def learns_from(self, advantage: float) -> bool:
        """Return whether a trace with that advantage has a gradient.

        One without costs no pass; it counts in the totals all the same.
        """
        grpo = self.grpo
        return (
            advantage != 0 or (self.reference_in_loss and grpo.kl_coef > 0) or grpo.entropy_coef > 0
        )

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
        """Return the trace's KL estimate, summed over its tokens: a KL in the reward subtracts it.

        Raises:
            DataError: there are no reference log-probabilities, or the kind is unknown.
        """
        if self.reference is None:
            raise DataError(f"kl={kind}: expected reference log-probabilities; set kl != none")
        return float(reward_kl(self.own, self.reference, kind).sum())


@dataclass(frozen=True, slots=True)
class SupervisedObjective:
    """Likelihood of written responses."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ContrastiveObjective:
    """Symmetric InfoNCE over the batch of all ranks."""

    temperature: float
    """Where it starts if it is learned."""
    learn_temperature: bool = False
    dimensions: tuple[int, ...] = ()
    """Leading parts of a vector with a loss of their own (Kusupati et al., 2022, Matryoshka)."""

    def check_width(self, width: int) -> None:
        """Refuse dimensions that are no leading part of the model's vectors.

        Raises:
            ConfigError: one has all dimensions or more.
        """
        wrong = [size for size in self.dimensions if size >= width]
        if wrong:
            raise ConfigError(
                f"dimensions: expected less than the model's {width}, found "
                f"{', '.join(map(str, wrong))}; the whole vector always has its loss"
            )


Objective = PolicyObjective | SupervisedObjective | ContrastiveObjective


@dataclass(frozen=True, slots=True, kw_only=True)
class LearnerPlan:
    """What a learner group trains."""

    model: str
    """Folder to start from; its tokenizer and processor go into exports."""
    objective: Objective
    learner: LearnerConfig
    media: MediaConfig
    steps: int
    """Planned, for the learning-rate schedule."""
    seed: int = 0
