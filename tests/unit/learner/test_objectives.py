"""What a learner group trains, and what its ranks say of traces."""

import numpy as np
import pytest
import torch

from configs.learner import GRPOConfig
from data.errors import ConfigError, DataError
from learner.kl import reward_kl
from learner.loss_divisor import loss_total
from learner.objectives import (
    ContrastiveObjective,
    PolicyObjective,
    TokenScores,
)
from learner.rank.policy_loss import kl_estimate


def test_the_kl_of_a_trace_is_the_sum_over_its_tokens():
    own = np.log(np.array([0.5, 0.2], dtype=np.float32))
    reference = np.log(np.array([0.25, 0.4], dtype=np.float32))
    scores = TokenScores(own, reference)
    assert scores.kl("k1") == pytest.approx(np.log(2) - np.log(2), abs=1e-6)
    assert scores.kl("k2") == pytest.approx(np.log(2) ** 2, abs=1e-6)
    assert scores.kl("k3") == pytest.approx(0.5 + np.log(2) - 1 + 2 - np.log(2) - 1, abs=1e-6)


def test_a_kl_without_reference_is_refused():
    with pytest.raises(DataError, match="expected reference log-probabilities"):
        TokenScores(np.zeros(2, np.float32), None).kl("k1")


@pytest.mark.parametrize("kind", ["k1", "k2", "k3"])
@pytest.mark.parametrize("scale", [1e-9, 1e-4, 1.0])
def test_the_kl_of_the_reward_is_that_of_the_loss(kind, scale):
    rng = np.random.default_rng(0)
    own = -rng.exponential(size=1000).astype(np.float32)
    reference = (own + scale * rng.normal(size=1000)).astype(np.float32)
    own_T, reference_T = (torch.from_numpy(values).double() for values in (own, reference))
    in_loss = kl_estimate(own_T, reference_T, kind).numpy()
    assert reward_kl(own, reference, kind).dtype == np.float64
    np.testing.assert_allclose(reward_kl(own, reference, kind), in_loss, rtol=1e-12, atol=1e-12)
    assert TokenScores(own, reference).kl(kind) == pytest.approx(in_loss.sum(), rel=1e-12)


def test_k3_of_a_small_gap_keeps_its_digits():
    gap = 1e-6
    kl = reward_kl(np.zeros(1), np.array([gap]), "k3")
    assert kl == pytest.approx([gap**2 / 2], rel=1e-5)
    assert kl[0] == np.expm1(gap) - gap


def test_an_unknown_kl_is_refused():
    scores = TokenScores(np.zeros(2, np.float32), np.zeros(2, np.float32))
    with pytest.raises(DataError, match="expected k1, k2 or k3, found 'k4'"):
        scores.kl("k4")


@pytest.mark.parametrize(
    ("kl", "kl_in", "needed"),
    [("k3", "loss", True), ("k1", "reward", False), ("none", "loss", False)],
)
def test_the_reference_is_asked_in_a_step_only_for_kl_in_the_loss(kl, kl_in, needed):
    grpo = GRPOConfig(kl=kl, kl_in=kl_in)
    objective = PolicyObjective(reference="", grpo=grpo, max_tokens=8)
    assert objective.reference_in_loss is needed


@pytest.mark.parametrize(
    ("loss_mean", "total"), [("token", 30.0), ("sequence", 5.0), ("sequence_constant", 60.0)]
)
def test_totals_of_the_means(loss_mean, total):
    assert loss_total(tokens=30, traces=5, max_tokens=12, loss_mean=loss_mean) == total


def test_a_mean_over_nothing_is_refused():
    with pytest.raises(DataError, match="expected tokens to train on"):
        loss_total(tokens=0, traces=0, max_tokens=12, loss_mean="token")
    with pytest.raises(DataError, match="found 'median'"):
        loss_total(tokens=3, traces=1, max_tokens=12, loss_mean="median")


def test_dimensions_that_are_no_leading_part_are_refused():
    objective = ContrastiveObjective(temperature=0.1, dimensions=(4, 8, 16))
    objective.check_width(17)
    with pytest.raises(ConfigError, match="less than the model's 8, found 8, 16"):
        objective.check_width(8)
