"""InfoNCE and its masks."""

import math

import pytest
import torch

from learner.contrastive import hash_keys, info_nce

NONE_KD = torch.zeros(0, 3)
NO_OWNER = torch.zeros(0, dtype=torch.int64)


def unit(count: int, seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    vectors = torch.randn(count, 3, generator=generator, dtype=torch.float64)
    return torch.nn.functional.normalize(vectors, dim=-1)


def loss_of(queries, targets, keys, negatives=None, owners=NO_OWNER, temperature=0.1):
    return info_nce(
        queries,
        targets,
        NONE_KD.to(queries.dtype) if negatives is None else negatives,
        keys_B=hash_keys(keys),
        owners_K=owners,
        temperature=temperature,
    )


def test_hand_worked_pair_of_rows():
    vectors = torch.eye(2, 3)
    loss, accuracy = loss_of(vectors, vectors, ["a", "b"], temperature=0.5)
    assert loss.item() == pytest.approx(math.log(1 + math.exp(-2)))
    assert accuracy.item() == 1.0


def test_equal_keys_are_no_negatives_in_either_direction():
    queries, targets = unit(3, 0), unit(3, 1)
    loss, _ = loss_of(queries, targets, ["a", "a", "b"])
    expected = 0.0
    for scores in (queries @ targets.T / 0.1, targets @ queries.T / 0.1):
        for row, columns in ((0, [0, 2]), (1, [1, 2]), (2, [0, 1, 2])):
            expected -= (scores[row, row] - torch.logsumexp(scores[row, columns], 0)).item()
    assert loss.item() == pytest.approx(expected / 6)


def test_all_keys_equal_leave_nothing_to_learn():
    loss, _ = loss_of(unit(4, 0), unit(4, 1), ["a"] * 4)
    assert loss.item() == 0


def test_a_hard_negative_stands_against_its_owner_only():
    queries, targets, negatives = unit(2, 0), unit(2, 1), unit(1, 2)
    owners = torch.tensor([1])
    queries.requires_grad_()
    with_hard, _ = loss_of(queries, targets, ["a", "b"], negatives, owners)
    without, _ = loss_of(queries, targets, ["a", "b"])
    change = torch.autograd.grad(with_hard - without, queries)[0]
    assert with_hard > without
    assert change[0].abs().max() < 1e-12
    assert change[1].abs().max() > 0


def test_swapping_the_sides_gives_the_same_loss():
    queries, targets = unit(5, 0), unit(5, 1)
    keys = ["a", "b", "a", "c", "d"]
    assert loss_of(queries, targets, keys)[0].item() == pytest.approx(
        loss_of(targets, queries, keys)[0].item()
    )


def test_keys_hash_alike_only_when_equal():
    hashed = hash_keys(["a", "b", "a", ""])
    assert hashed[0] == hashed[2]
    assert len(set(hashed.tolist())) == 3
