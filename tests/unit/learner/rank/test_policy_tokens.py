"""From traces to the tokens that the RL objective reads."""

import dataclasses

import numpy as np
import pytest
import torch

from data.errors import DataError
from data.types import TrainSample
from learner.rank.policy_tokens import policy_tokens

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
    assert tokens.fresh_T.tolist() == [True, True, False]


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
