"""What a learner group trains, and what its ranks say of traces."""

import numpy as np
import pytest

from configs.learner import GRPOConfig
from data.errors import ConfigError, DataError
from learner.objectives import ContrastiveObjective, PolicyObjective, TokenScores, loss_total


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
