"""Which variants are compared on which sets."""

import pytest

from evaluation.scores.comparisons import comparisons


def test_variants_are_compared_where_both_ranked_the_same_query(make_result) -> None:
    scores = {
        "better": [
            make_result("s", "abc", "abc"),
            make_result("t", "abc"),
            make_result("u", "abc"),
        ],
        "worse": [make_result("s", "abc", "bac", num_data=2), make_result("t", "bac")],
    }
    [made] = comparisons([("better", "worse")], scores, resamples=50, seed=0)
    assert (made.first, made.second) == ("better", "worse")
    # The mean of 1/2 and 1; set u was ranked in one of them only.
    assert made.difference.mean == pytest.approx(0.75)
    assert made.difference.queries == 3
    [back] = comparisons([("worse", "better")], scores, resamples=50, seed=0)
    assert back.difference.mean == pytest.approx(-0.75)


def test_variants_without_a_query_in_common_are_not_compared(make_result) -> None:
    scores = {"a": [make_result("s", "abc")], "b": [make_result("t", "abc")]}
    pairs = [("a", "b"), ("a", "nowhere"), ("nowhere", "b")]
    assert comparisons(pairs, scores, resamples=50, seed=0) == ()
