"""The contrastive rank: by hand, against slow loops, under permutation, and where it must raise."""

import math

import numpy as np
import pytest

from data.errors import DataError
from reward.contrast import contrastive_rank


def slow(similarity, positive, valid, temperature):
    """Return (accuracy, margin, rank) of each row with loops over Python floats."""
    results = []
    for scores, gold, exists in zip(similarity, positive, valid, strict=True):
        pos = [float(s) for s, g, e in zip(scores, gold, exists, strict=True) if g and e]
        neg = [float(s) for s, g, e in zip(scores, gold, exists, strict=True) if e and not g]
        # A tie counts against the trace: a positive stands behind every negative as close.
        ranks = [
            1 + sum(n >= p for n in neg) + sum(q > p for q in pos) + earlier
            for p, earlier in ((p, pos[:i].count(p)) for i, p in enumerate(pos))
        ]
        weights = [math.exp(n / temperature) for n in neg]
        negative = (
            sum(w * n for w, n in zip(weights, neg, strict=True)) / sum(weights) if neg else 0
        )
        results.append(
            (
                sum(rank <= len(pos) for rank in ranks) / len(pos),
                sum(pos) / len(pos) - negative,
                min(ranks),
            )
        )
    return [np.array(column) for column in zip(*results, strict=True)]


def draw(rng, *, ties):
    rows, columns = rng.integers(1, 9), rng.integers(1, 12)
    similarity = rng.uniform(-1, 1, size=(rows, columns))
    if ties:
        similarity = similarity.round(1)
    positive = rng.random((rows, columns)) < 0.4
    valid = rng.random((rows, columns)) < 0.8
    gold = rng.integers(0, columns, size=rows)
    positive[np.arange(rows), gold] = valid[np.arange(rows), gold] = True
    return similarity, positive, valid


def check_same(found, expected):
    accuracy, margin, rank = expected
    np.testing.assert_allclose(found.accuracy, accuracy, atol=1e-12)
    np.testing.assert_allclose(found.margin, margin, atol=1e-12)
    np.testing.assert_array_equal(found.rank, rank)


def test_a_case_worked_by_hand():
    similarity = np.array([[0.8, 0.2, 0.6, 0.4]])
    positive = np.array([[True, True, False, False]])
    found = contrastive_rank(similarity, positive, temperature=0.5)
    # Best first: 0.8 (positive), 0.6, 0.4, 0.2: one of the two positives is among the top two.
    weight = math.exp(0.6 / 0.5), math.exp(0.4 / 0.5)
    negative = (weight[0] * 0.6 + weight[1] * 0.4) / sum(weight)
    assert found.accuracy.tolist() == [0.5]
    assert found.margin == pytest.approx([0.5 - negative])
    assert found.rank.tolist() == [1]


@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize("temperature", [0.02, 0.5, 5.0])
def test_it_equals_slow_loops(ties, temperature):
    rng = np.random.default_rng(0)
    for _ in range(200):
        similarity, positive, valid = draw(rng, ties=ties)
        found = contrastive_rank(similarity, positive, temperature=temperature, valid=valid)
        check_same(found, slow(similarity, positive, valid, temperature))


def test_rows_and_columns_may_be_permuted():
    rng = np.random.default_rng(1)
    for _ in range(50):
        similarity, positive, valid = draw(rng, ties=True)
        rows, columns = (rng.permutation(n) for n in similarity.shape)
        place = np.ix_(rows, columns)
        before = contrastive_rank(similarity, positive, temperature=0.5, valid=valid)
        after = contrastive_rank(
            similarity[place], positive[place], temperature=0.5, valid=valid[place]
        )
        check_same(after, (before.accuracy[rows], before.margin[rows], before.rank[rows]))


def test_candidates_that_do_not_exist_change_nothing_whatever_they_hold():
    similarity = np.array([[0.5, 0.4, np.nan], [0.5, 0.4, np.inf]])
    positive = np.array([[True, False, True], [True, False, False]])
    valid = np.array([[True, True, False]] * 2)
    found = contrastive_rank(similarity, positive, temperature=0.5, valid=valid)
    small = contrastive_rank(similarity[:, :2], positive[:, :2], temperature=0.5)
    check_same(found, (small.accuracy, small.margin, small.rank))


def test_a_negative_as_close_as_the_positive_ranks_above_it():
    similarity = np.array([[0.5, 0.5]])
    for positive in ([[True, False]], [[False, True]]):
        found = contrastive_rank(similarity, np.array(positive), temperature=0.5)
        assert (found.accuracy[0], found.rank[0], found.margin[0]) == (0.0, 2, 0.0)


def test_without_negatives_nothing_is_subtracted():
    found = contrastive_rank(np.array([[0.3, 0.5]]), np.ones((1, 2), bool), temperature=0.5)
    assert (found.accuracy[0], found.rank[0]) == (1.0, 1)
    assert found.margin[0] == pytest.approx(0.4)


def test_tiny_temperatures_take_the_hardest_negative():
    similarity = np.array([[0.9, 0.7, -0.3]])
    positive = np.array([[True, False, False]])
    found = contrastive_rank(similarity, positive, temperature=1e-4)
    assert found.margin == pytest.approx([0.2])


@pytest.mark.parametrize(
    ("similarity", "positive", "valid", "words"),
    [
        ([[0.1, 0.2]], [[False, False]], None, r"rows \[0\] have no valid positive"),
        ([[0.1, 0.2]], [[True, False]], [[False, True]], "no valid positive"),
        ([[0.1, np.nan]], [[True, False]], None, "finite"),
        ([[np.inf, 0.1]], [[True, False]], None, "finite"),
        ([[0.1, 0.2]], [[True]], None, "one shape"),
        ([[0.1, 0.2]], [[True, False]], [[True]], "one shape"),
        ([0.1, 0.2], [True, False], None, "one shape"),
    ],
)
def test_degenerate_input_raises(similarity, positive, valid, words):
    with pytest.raises(DataError, match=words):
        contrastive_rank(
            np.array(similarity),
            np.array(positive),
            temperature=0.5,
            valid=None if valid is None else np.array(valid),
        )
