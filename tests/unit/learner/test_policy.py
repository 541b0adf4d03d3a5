"""From traces to the tokens that the RL objective reads."""

import dataclasses

import numpy as np
import pytest
import torch

from configs.schema import GRPOConfig
from data.errors import DataError
from data.types import GroupKey, Side, TrainSample, TrajectoryKey
from learner.policy import PolicyObjective, TokenScores, policy_tokens, shaped_rewards

NOW = torch.tensor([-1.0, -2.0, -3.0])
LONG = TrainSample(
    key="long",
    content=(),
    prompt_ids=np.array([1]),
    response_ids=np.array([5, 6]),
    advantage=0.5,
    weight=2.0,
    logprobs=np.array([-1.5, -2.5], dtype=np.float32),
)
SHORT = dataclasses.replace(
    LONG,
    key="short",
    response_ids=np.array([7]),
    advantage=-1.0,
    weight=1.0,
    logprobs=np.array([-3.5], dtype=np.float32),
    old_logprobs=np.array([-3.25], dtype=np.float32),
)


def tokens_of(*samples, loss_mean="token"):
    return policy_tokens(list(samples), NOW, torch.zeros(3), None, loss_mean=loss_mean)


def test_values_are_laid_end_to_end_in_the_precision_of_the_model():
    tokens = tokens_of(LONG, SHORT)
    assert tokens.behaviour_T.tolist() == [-1.5, -2.5, -3.5]
    assert tokens.advantages_T.tolist() == [0.5, 0.5, -1.0]
    assert tokens.weights_T.tolist() == [2.0, 2.0, 1.0]
    assert list(tokens.lengths) == [2, 1]
    assert tokens.behaviour_T.dtype == tokens.advantages_T.dtype == torch.float32


def test_sequence_means_share_a_trace_among_its_tokens():
    assert tokens_of(LONG, SHORT, loss_mean="sequence").weights_T.tolist() == [1.0, 1.0, 1.0]


def test_old_is_this_pass_for_a_fresh_trace_and_what_was_stored_for_an_older_one():
    now = NOW.clone().requires_grad_()
    tokens = policy_tokens([LONG, SHORT], now, torch.zeros(3), None, loss_mean="token")
    assert tokens.old_T.tolist() == [-1.0, -2.0, -3.25]
    assert not tokens.old_T.requires_grad


def test_no_samples_make_no_tokens():
    tokens = policy_tokens([], torch.zeros(0), torch.zeros(0), None, loss_mean="token")
    assert tokens.old_T.shape == tokens.weights_T.shape == (0,)


def test_missing_log_probabilities_are_refused_with_the_trace():
    with pytest.raises(DataError, match="short: expected behaviour log-probabilities"):
        tokens_of(LONG, dataclasses.replace(SHORT, logprobs=None))


@pytest.mark.parametrize("name", ["logprobs", "old_logprobs"])
def test_log_probabilities_that_do_not_match_the_tokens_are_refused_with_the_trace(name):
    with pytest.raises(DataError, match=r"short: expected 1 .* log-probabilities"):
        tokens_of(LONG, dataclasses.replace(SHORT, **{name: np.zeros(2)}))


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


FIRST, SECOND = (TrajectoryKey(GroupKey(0, "p", Side.QUERY), sibling) for sibling in (0, 1))
REWARDS = {FIRST: 1.0, SECOND: 0.5}
LENGTHS = {FIRST: 4, SECOND: 9}


def test_rewards_are_left_alone_by_default():
    found, metrics = shaped_rewards(REWARDS, LENGTHS, {}, grpo=GRPOConfig(), max_tokens=10)
    assert found == REWARDS
    assert metrics == {}


def test_long_traces_and_those_far_from_the_reference_lose_reward():
    scores = {
        str(FIRST): TokenScores(np.full(4, -1.0, np.float32), np.full(4, -1.5, np.float32)),
        str(SECOND): TokenScores(np.full(9, -1.0, np.float32), np.full(9, -1.0, np.float32)),
    }
    grpo = GRPOConfig(kl="k1", kl_in="reward", kl_coef=0.1, overlong_penalty=0.4)
    found, metrics = shaped_rewards(REWARDS, LENGTHS, scores, grpo=grpo, max_tokens=10)
    assert found == pytest.approx({FIRST: 1.0 - 0.1 * 4 * 0.5, SECOND: 0.5 - 0.4 * 0.5})
    assert metrics == pytest.approx({"reward/overlong": 0.25, "policy/kl": 2 / 13})


def test_no_traces_have_no_penalties():
    grpo = GRPOConfig(kl="k1", kl_in="reward", overlong_penalty=0.4)
    assert shaped_rewards({}, {}, {}, grpo=grpo, max_tokens=10) == ({}, {})
