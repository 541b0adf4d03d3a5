"""Chunked log-probabilities against the plain computation."""

import pytest
import torch

from learner.logprobs import token_logprobs

VOCABULARY = 11


def example(count: int) -> tuple[torch.nn.Linear, torch.Tensor, torch.Tensor]:
    torch.manual_seed(0)
    head = torch.nn.Linear(6, VOCABULARY, bias=False)
    return head, torch.randn(count, 6, requires_grad=True), torch.randint(3, VOCABULARY, (count,))


@pytest.mark.parametrize("chunk_logits", [1, 3 * VOCABULARY, 1 << 20])
def test_chunks_give_the_plain_result_and_gradient(chunk_logits):
    head, hidden, targets = example(10)
    banned = torch.tensor([0, 2])
    logprobs, entropy, correct = token_logprobs(
        hidden,
        targets,
        head,
        vocabulary=VOCABULARY,
        banned=banned,
        temperature=0.7,
        chunk_logits=chunk_logits,
    )
    logprobs.sum().backward()
    found = hidden.grad.clone(), head.weight.grad.clone()
    hidden.grad = head.weight.grad = None

    allowed = [i for i in range(VOCABULARY) if i not in (0, 2)]
    plain = torch.log_softmax(head(hidden)[:, allowed] / 0.7, -1)
    index = torch.tensor([allowed.index(int(target)) for target in targets])
    expected = plain[torch.arange(10), index]
    expected.sum().backward()

    torch.testing.assert_close(logprobs, expected)
    torch.testing.assert_close(entropy, -(plain.exp() * plain).sum(-1))
    torch.testing.assert_close(correct, (plain.argmax(-1) == index).float())
    torch.testing.assert_close(found, (hidden.grad, head.weight.grad))


def test_no_tokens_still_give_a_gradient_of_zero():
    head, hidden, _ = example(4)
    logprobs, _, _ = token_logprobs(
        hidden[:0], torch.zeros(0, dtype=torch.long), head, vocabulary=VOCABULARY
    )
    logprobs.sum().backward()
    assert logprobs.shape == (0,)
    assert (hidden.grad == 0).all()


def test_evaluation_needs_no_gradient():
    head, hidden, targets = example(5)
    with torch.no_grad():
        chunked = token_logprobs(hidden, targets, head, vocabulary=VOCABULARY, chunk_logits=22)
        plain = token_logprobs(hidden, targets, head, vocabulary=VOCABULARY)
    torch.testing.assert_close(chunked, plain)


@pytest.mark.parametrize("chunk_logits", [1, 3 * VOCABULARY, 1 << 20])
def test_entropy_carries_gradient_where_it_is_asked_for(chunk_logits):
    head, hidden, targets = example(10)
    settings = {"vocabulary": VOCABULARY, "banned": torch.tensor([0, 2]), "temperature": 0.7}
    _, entropy, _ = token_logprobs(
        hidden, targets, head, entropy_gradient=True, chunk_logits=chunk_logits, **settings
    )
    entropy.sum().backward()
    found = hidden.grad.clone(), head.weight.grad.clone()
    hidden.grad = head.weight.grad = None

    plain = torch.log_softmax(head(hidden)[:, [1, *range(3, VOCABULARY)]] / 0.7, -1)
    (-(plain.exp() * plain).sum()).backward()
    torch.testing.assert_close(found, (hidden.grad, head.weight.grad))
    _, without, _ = token_logprobs(hidden, targets, head, chunk_logits=chunk_logits, **settings)
    assert not without.requires_grad


def test_double_precision_is_kept():
    head, hidden, targets = example(5)
    logprobs, entropy, _ = token_logprobs(
        hidden.double(), targets, head.double(), vocabulary=VOCABULARY
    )
    assert logprobs.dtype == entropy.dtype == torch.float64
