"""Supervised loss over response tokens only."""

import numpy as np
import pytest
import torch

from learner.rank.batching import Row, VisionTokens, collate
from learner.rank.logprobs import OutputLayer
from learner.rank.sft import response_scores, supervised_loss

TOKENS = VisionTokens(image=1, start=2, end=3, pad=0, merge=1, channels=2)


def test_the_loss_is_the_summed_negative_log_likelihood():
    logprobs = torch.tensor([-0.5, -1.5], requires_grad=True)
    loss, sums, largest = supervised_loss(logprobs, torch.tensor([1.0, 0.0]))
    loss.backward()
    assert loss.item() == 2.0
    assert logprobs.grad.tolist() == [-1.0, -1.0]
    assert sums["token_accuracy"].item() == 1.0
    assert largest == {}


def test_prompt_padding_and_filler_carry_no_loss():
    """The mean over response tokens by a plain loop, and its gradient by finite differences."""
    torch.manual_seed(0)
    table = torch.randn(9, 4, dtype=torch.float64)
    head = torch.nn.Linear(4, 9, bias=False, dtype=torch.float64)
    rows = [
        Row(key="a", ids=np.array([4, 5, 6, 7]), pictures=(), num_response=2),
        Row(key="b", ids=np.array([8, 4, 5]), pictures=(), num_response=1),
    ]
    batch = collate(rows, {}, TOKENS)

    def fast() -> torch.Tensor:
        hidden = table[batch.inputs["input_ids"]]
        logprobs, _, correct = OutputLayer(head)(
            hidden[batch.rows_T, batch.columns_T], batch.targets_T
        )
        return supervised_loss(logprobs, correct)[0] / 3

    def slow() -> float:
        total = 0.0
        for before, target in ((5, 6), (6, 7), (4, 5)):
            logits = [float(table[before] @ head.weight.detach()[word]) for word in range(9)]
            total -= logits[target] - float(np.log(np.sum(np.exp(logits))))
        return total / 3

    loss = fast()
    loss.backward()
    assert loss.item() == pytest.approx(slow(), abs=1e-12)
    flat, gradient = head.weight.data.view(-1), head.weight.grad.view(-1)
    for index in range(flat.numel()):
        flat[index] += 1e-6
        above = slow()
        flat[index] -= 2e-6
        below = slow()
        flat[index] += 1e-6
        assert gradient[index].item() == pytest.approx((above - below) / 2e-6, abs=1e-6)


def test_a_sample_is_exact_if_all_its_tokens_are():
    scores = response_scores(
        torch.tensor([-1.0, -2.0, -3.0]),
        torch.tensor([1.0, 0.0, 1.0]),
        torch.tensor([0, 0, 1]),
        samples=2,
    )
    assert scores == {
        "loss": 6.0, "token_accuracy": 2.0, "exact": 1.0, "tokens": 3.0, "samples": 2.0,
    }  # fmt: skip
