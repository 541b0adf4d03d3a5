"""The policy loss by hand, against a slow float64 reference, and by finite differences."""

import math

import pytest
import torch

from learner.losses import k3, policy_loss


def slow_reference(logprobs, behaviour, reference, advantages, clip, kl_coef):
    """Return loss, kl and clipped tokens, one token at a time in float64."""
    loss = kl_sum = 0.0
    clipped = 0
    for new, old, initial, advantage in zip(
        logprobs, behaviour, reference, advantages, strict=True
    ):
        ratio = math.exp(new - old)
        bounded = min(max(ratio, 1 - clip), 1 + clip)
        kl = math.exp(initial - new) - (initial - new) - 1
        loss += kl_coef * kl - min(ratio * advantage, bounded * advantage)
        kl_sum += kl
        clipped += bounded * advantage < ratio * advantage
    return loss, kl_sum, clipped


def random_tokens(count: int, seed: int = 0) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    rows = torch.randn(4, count, generator=generator, dtype=torch.float64)
    return [rows[0] - 3, rows[0] - 3 + 0.3 * rows[1], rows[0] - 3 + 0.5 * rows[2], rows[3]]


def test_hand_worked_tokens():
    # On-policy; ratio 1.5 with a gain (clipped to 1.2); ratio 0.5 with a loss (clipped to 0.8).
    logprobs = torch.tensor([-1.0, math.log(0.6), math.log(0.2)])
    behaviour = torch.tensor([-1.0, math.log(0.4), math.log(0.4)])
    advantages = torch.tensor([2.0, 1.0, -1.0])
    loss, sums = policy_loss(logprobs, behaviour, logprobs, advantages, clip=0.2, kl_coef=0.1)
    assert loss.item() == pytest.approx(-(2.0 + 1.2 - 0.8))
    assert sums["clip_fraction"].item() == 2
    assert sums["kl"].item() == 0


def test_loss_matches_a_slow_reference():
    tokens = random_tokens(50)
    loss, sums = policy_loss(*tokens, clip=0.2, kl_coef=0.05)
    expected, kl, clipped = slow_reference(*(t.tolist() for t in tokens), 0.2, 0.05)
    assert loss.item() == pytest.approx(expected, rel=1e-12)
    assert sums["kl"].item() == pytest.approx(kl, rel=1e-12)
    assert sums["clip_fraction"].item() == clipped > 0


def test_gradient_matches_finite_differences():
    logprobs, behaviour, reference, advantages = random_tokens(20, seed=1)
    logprobs.requires_grad_()

    def loss_of(values: torch.Tensor) -> torch.Tensor:
        return policy_loss(values, behaviour, reference, advantages, clip=0.2, kl_coef=0.05)[0]

    assert torch.autograd.gradcheck(loss_of, (logprobs,))


def test_sums_add_up_over_any_split():
    tokens = random_tokens(30)
    whole, _ = policy_loss(*tokens, clip=0.2, kl_coef=0.01)
    parts = [
        policy_loss(*(t[part] for t in tokens), clip=0.2, kl_coef=0.01)[0]
        for part in (slice(0, 7), slice(7, 30))
    ]
    assert sum(parts).item() == pytest.approx(whole.item(), rel=1e-12)


def test_an_advantage_raises_the_probability_of_its_token():
    logprobs = torch.tensor([-1.0, -1.0], requires_grad=True)
    same = logprobs.detach()
    loss, _ = policy_loss(logprobs, same, same, torch.tensor([1.0, -1.0]), clip=0.2, kl_coef=0.0)
    loss.backward()
    assert logprobs.grad.tolist() == [-1.0, 1.0]


def test_a_micro_batch_without_tokens_costs_nothing():
    loss, sums = policy_loss(*[torch.zeros(0)] * 4, clip=0.2, kl_coef=0.01)
    assert loss.item() == 0
    assert sums["kl"].item() == 0


def test_k3_is_never_negative_and_zero_for_equal_policies():
    logprobs, _, reference, _ = random_tokens(100)
    assert (k3(logprobs, reference) >= 0).all()
    assert (k3(logprobs, logprobs) == 0).all()
