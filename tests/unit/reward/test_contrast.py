"""The contrastive rank: by hand, against slow loops, under permutation, and where it must raise.

`slow` is written from the formulas and shares nothing with the code: Python floats, sums in exact
arithmetic (fsum).
"""

import math

import numpy as np
import pytest

from data.errors import DataError
from reward.contrast import contrastive_rank, rank_embeddings, rank_in_order


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
        peak = max(neg, default=0.0)
        weights = [math.exp((n - peak) / temperature) for n in neg]
        negative = (
            math.fsum(w * n for w, n in zip(weights, neg, strict=True)) / math.fsum(weights)
            if neg
            else 0.0
        )
        results.append(
            (
                sum(rank <= len(pos) for rank in ranks) / len(pos),
                math.fsum(pos) / len(pos) - negative,
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
    np.testing.assert_array_equal(found.accuracy, accuracy)
    np.testing.assert_allclose(found.margin, margin, rtol=0, atol=1e-14)
    np.testing.assert_array_equal(found.rank, rank)


def in_order(similarity, positive, *, temperature, valid=None):
    valid = np.ones_like(positive) if valid is None else valid
    return rank_in_order(similarity, positive, temperature=temperature, valid=valid)


BOTH = pytest.mark.parametrize("rank", [contrastive_rank, in_order])


@BOTH
def test_a_case_worked_by_hand(rank):
    similarity = np.array([[0.8, 0.2, 0.6, 0.4]])
    positive = np.array([[True, True, False, False]])
    found = rank(similarity, positive, temperature=0.5)
    # Best first: 0.8 (positive), 0.6, 0.4, 0.2: one of the two positives is among the top two.
    weight = math.exp(0.6 / 0.5), math.exp(0.4 / 0.5)
    negative = (weight[0] * 0.6 + weight[1] * 0.4) / sum(weight)
    assert found.accuracy.tolist() == [0.5]
    assert found.margin == pytest.approx([0.5 - negative])
    assert found.rank.tolist() == [1]


@BOTH
def test_a_thousand_random_rounds_equal_slow_loops_in_both_directions(rank):
    rng = np.random.default_rng(0)
    for index in range(1000):
        similarity, positive, valid = draw(rng, ties=bool(index % 2))
        temperature = (0.02, 0.1, 0.5, 5.0)[index % 4]
        # Turned around, a column without a positive has no row to be.
        answered = (positive & valid).any(axis=0)
        for one in (
            (similarity, positive, valid),
            (similarity.T[answered], positive.T[answered], valid.T[answered]),
        ):
            found = rank(*one[:2], temperature=temperature, valid=one[2])
            check_same(found, slow(*one, temperature))


def same_bits(found, accuracy, margin, rank):
    for field, expected in ((found.accuracy, accuracy), (found.margin, margin), (found.rank, rank)):
        np.testing.assert_array_equal(field, expected)


def test_no_bit_changes_where_rows_and_columns_are_permuted_or_rows_are_split():
    rng = np.random.default_rng(1)
    for _ in range(200):
        similarity, positive, valid = draw(rng, ties=True)
        rows, columns = (rng.permutation(n) for n in similarity.shape)
        before = contrastive_rank(similarity, positive, temperature=0.5, valid=valid)
        for part in np.array_split(rows, rng.integers(1, len(rows) + 1)):
            place = np.ix_(part, columns)
            after = contrastive_rank(
                similarity[place], positive[place], temperature=0.5, valid=valid[place]
            )
            same_bits(after, before.accuracy[part], before.margin[part], before.rank[part])


# Rows, columns, dimensions, keys, how close embeddings of one key are.
ROUNDS = [
    (400, 500, 8, 40, 0.0),
    (1100, 300, 16, 300, 1.0),
    (90, 5000, 24, 700, 2.0),
    (2, 70_000, 2, 3, 0.0),
    (260, 2600, 5, 1, 1.0),
    (300, 3000, 64, 500, 4.0),
]


def embeddings(shape, rng, *, ties, kind):
    """Return unit rows and columns with keys; tied ones hold many equal vectors."""
    rows, columns, dimensions, keys, signal = shape
    centres = signal * rng.normal(size=(keys, dimensions))
    column_keys = rng.integers(0, keys, size=columns) * 7 - 3
    row_keys = rng.choice(column_keys, size=rows)
    made = []
    for labels in (row_keys, column_keys):
        vectors = centres[(labels + 3) // 7] + rng.normal(size=(len(labels), dimensions))
        if ties:
            vectors = vectors.round() + 0.5
        vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
        made.append(vectors.astype(kind))
    return *made, row_keys, column_keys


def plain(rows, columns, row_keys, column_keys, temperature):
    similarity = (rows.astype(np.float64) @ columns.astype(np.float64).T).round(9)
    positive = row_keys[:, None] == column_keys[None, :]
    return contrastive_rank(similarity, positive, temperature=temperature)


@pytest.mark.parametrize("kind", [np.float32, np.float64])
@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize("shape", ROUNDS)
def test_embeddings_rank_as_their_similarities_do(shape, ties, kind):
    rng = np.random.default_rng(2)
    given = embeddings(shape, rng, ties=ties, kind=kind)
    for temperature in (0.01, 0.5):
        found = rank_embeddings(*given, temperature=temperature)
        expected = plain(*given, temperature)
        np.testing.assert_array_equal(found.accuracy, expected.accuracy)
        np.testing.assert_array_equal(found.rank, expected.rank)
        tolerance = 2e-9 if kind is np.float64 else 3e-6
        np.testing.assert_allclose(found.margin, expected.margin, rtol=0, atol=tolerance)


def test_embeddings_that_are_all_equal_tie_everywhere():
    rows, columns = np.full((300, 4), 0.5, np.float32), np.full((900, 4), 0.5, np.float32)
    found = rank_embeddings(
        rows, columns, np.arange(300), np.repeat(np.arange(300), 3), temperature=0.5
    )
    assert set(found.accuracy) == {0.0}
    assert set(found.rank) == {1 + 900 - 3}
    np.testing.assert_allclose(found.margin, 0.0, atol=1e-6)


def test_rows_without_a_negative_have_nothing_subtracted():
    rng = np.random.default_rng(3)
    rows, columns = rng.normal(size=(400, 6)), rng.normal(size=(500, 6))
    found = rank_embeddings(rows, columns, np.zeros(400, int), np.zeros(500, int), temperature=0.5)
    assert set(found.accuracy) == {1.0}
    assert set(found.rank) == {1}
    np.testing.assert_allclose(found.margin, (rows @ columns.T).mean(axis=1), atol=1e-8)


@pytest.mark.parametrize("size", [10, 1000])
@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda r, c, k, m: (r, c[:, :2], k, m), "found"),
        (lambda r, c, k, m: (r, c, k[1:], m), "found"),
        (lambda r, c, k, m: (r * np.nan, c, k, m), "finite"),
        (lambda r, c, k, m: (r, c * np.inf, k, m), "finite"),
        (lambda r, c, k, m: (r, c, k + 1, m), "no valid positive|no column of their key"),
    ],
)
def test_embeddings_that_cannot_be_ranked_raise(size, change, words):
    rows, columns = np.ones((size, 3)), np.ones((size, 3))
    keys = np.arange(size)
    with pytest.raises(DataError, match=words):
        rank_embeddings(*change(rows, columns, keys, keys), temperature=0.5)


@BOTH
def test_candidates_that_do_not_exist_change_nothing_whatever_they_hold(rank):
    similarity = np.array([[0.5, 0.4, np.nan], [0.5, 0.4, np.inf]])
    positive = np.array([[True, False, True], [True, False, False]])
    valid = np.array([[True, True, False]] * 2)
    found = rank(similarity, positive, temperature=0.5, valid=valid)
    small = rank(similarity[:, :2], positive[:, :2], temperature=0.5)
    check_same(found, (small.accuracy, small.margin, small.rank))


@BOTH
def test_a_negative_as_close_as_the_positive_ranks_above_it(rank):
    similarity = np.array([[0.5, 0.5]])
    for positive in ([[True, False]], [[False, True]]):
        found = rank(similarity, np.array(positive), temperature=0.5)
        assert (found.accuracy[0], found.rank[0], found.margin[0]) == (0.0, 2, 0.0)


@BOTH
def test_without_negatives_nothing_is_subtracted(rank):
    found = rank(np.array([[0.3, 0.5]]), np.ones((1, 2), bool), temperature=0.5)
    assert (found.accuracy[0], found.rank[0]) == (1.0, 1)
    assert found.margin[0] == pytest.approx(0.4)


@BOTH
def test_no_rows_give_no_ranks(rank):
    for columns in (0, 3):
        none = np.zeros((0, columns))
        assert rank(none, none > 0, temperature=0.5).rank.tolist() == []


@BOTH
def test_tiny_temperatures_take_the_hardest_negative(rank):
    similarity = np.array([[0.9, 0.7, -0.3]])
    positive = np.array([[True, False, False]])
    found = rank(similarity, positive, temperature=1e-4)
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


@pytest.mark.parametrize(
    ("similarity", "positive", "valid", "words"),
    [
        ([[0.1, 0.2]], [[False, False]], [[True, True]], r"rows \[0\] have no valid positive"),
        ([[0.1, 0.2]], [[True, False]], [[False, True]], "no valid positive"),
        ([[0.1, np.nan]], [[True, False]], [[True, True]], "finite"),
    ],
)
def test_degenerate_input_raises_in_order_too(similarity, positive, valid, words):
    with pytest.raises(DataError, match=words):
        rank_in_order(
            np.array(similarity), np.array(positive), temperature=0.5, valid=np.array(valid)
        )
