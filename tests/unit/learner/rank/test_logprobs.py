"""Chunked log-probabilities against the plain computation."""

import pytest
import torch

from learner.rank.logprobs import OutputLayer

VOCABULARY = 11


def example(
    count: int, *, bias: bool = False
) -> tuple[torch.nn.Linear, torch.Tensor, torch.Tensor]:
    torch.manual_seed(0)
    head = torch.nn.Linear(6, VOCABULARY, bias=bias)
    return head, torch.randn(count, 6, requires_grad=True), torch.randint(3, VOCABULARY, (count,))


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("chunk_logits", [1, 3 * VOCABULARY, 1 << 20])
def test_chunks_give_the_plain_result_and_gradient(chunk_logits, bias):
    head, hidden, targets = example(10, bias=bias)
    banned = torch.tensor([0, 2])
    layer = OutputLayer(head, chunk_logits=chunk_logits)
    logprobs, entropy, correct = layer(hidden, targets, banned=banned, temperature=0.7)
    trained = (hidden, *head.parameters())
    found = torch.autograd.grad(logprobs.sum(), trained)

    allowed = [i for i in range(VOCABULARY) if i not in (0, 2)]
    plain = torch.log_softmax(head(hidden)[:, allowed] / 0.7, -1)
    index = torch.tensor([allowed.index(int(target)) for target in targets])
    expected = plain[torch.arange(10), index]

    torch.testing.assert_close(logprobs, expected)
    torch.testing.assert_close(entropy, -(plain.exp() * plain).sum(-1))
    torch.testing.assert_close(correct, (plain.argmax(-1) == index).float())
    torch.testing.assert_close(found, torch.autograd.grad(expected.sum(), trained))


def test_no_tokens_still_give_a_gradient_of_zero():
    head, hidden, _ = example(4)
    logprobs, _, _ = OutputLayer(head)(hidden[:0], torch.zeros(0, dtype=torch.long))
    logprobs.sum().backward()
    assert logprobs.shape == (0,)
    assert (hidden.grad == 0).all()
    assert (head.weight.grad == 0).all()


def test_evaluation_needs_no_gradient():
    head, hidden, targets = example(5)
    with torch.no_grad():
        chunked = OutputLayer(head, chunk_logits=22)(hidden, targets)
        plain = OutputLayer(head)(hidden, targets)
    torch.testing.assert_close(chunked, plain)


@pytest.mark.parametrize("chunk_logits", [1, 3 * VOCABULARY, 1 << 20])
def test_entropy_carries_gradient_where_it_is_asked_for(chunk_logits):
    head, hidden, targets = example(10)
    settings = {"banned": torch.tensor([0, 2]), "temperature": 0.7}
    layer = OutputLayer(head, chunk_logits=chunk_logits)
    _, entropy, _ = layer(hidden, targets, entropy_gradient=True, **settings)
    entropy.sum().backward()
    found = hidden.grad.clone(), head.weight.grad.clone()
    hidden.grad = head.weight.grad = None

    plain = torch.log_softmax(head(hidden)[:, [1, *range(3, VOCABULARY)]] / 0.7, -1)
    (-(plain.exp() * plain).sum()).backward()
    torch.testing.assert_close(found, (hidden.grad, head.weight.grad))
    _, without, _ = layer(hidden, targets, **settings)
    assert not without.requires_grad


@pytest.mark.parametrize("bias", [False, True])
def test_logits_of_bf16_weights_are_not_rounded_to_bf16(bias):
    head, hidden, targets = example(200, bias=bias)
    head, hidden = head.bfloat16(), (20 * hidden).detach().bfloat16()
    logprobs, _, _ = OutputLayer(head)(hidden, targets)
    exact, _, _ = OutputLayer(head.double())(hidden.double(), targets)
    assert logprobs.dtype == torch.float32
    torch.testing.assert_close(logprobs, exact.float(), atol=1e-5, rtol=1e-5)


def test_double_precision_is_kept():
    head, hidden, targets = example(5)
    logprobs, entropy, _ = OutputLayer(head.double())(hidden.double(), targets)
    assert logprobs.dtype == entropy.dtype == torch.float64
