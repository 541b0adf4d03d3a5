"""Orders of queries over all candidates of a set and over their own: one rule for both."""

from dataclasses import replace

import numpy as np
import pytest

from data.types import Item
from evaluation.ranking import QueryOrder, rank_queries
from evaluation.sets import EvaluationQuery, EvaluationSet

CANDIDATES = {key: Item(text=key) for key in "abcdef"}
VECTORS = {key: np.array([x, 1.0, 0.0]) for key, x in zip("abcde", (4, 3, 2, 2, 0), strict=True)}
"""Nearer to the query the earlier in the alphabet; c and d tie, f has none."""
QUERY = {"q": np.array([5.0, 0.0, 0.0])}


def orders(candidates: str, **right: int) -> dict[str, QueryOrder]:
    query = EvaluationQuery(
        query_id="q", item=Item(text="q"), right=right, candidates=tuple(candidates)
    )
    data_set = EvaluationSet(name="s", queries=[query], candidates=CANDIDATES)
    return rank_queries(data_set, QUERY, VECTORS)


@pytest.mark.parametrize("candidates", ["", "abcdef"])
def test_ties_go_against_the_right_one_or_by_the_benchmarks_order(candidates: str) -> None:
    order = orders(candidates, c=1, f=2)["q"]
    assert order == QueryOrder(
        wrong_first=tuple("abdce"), benchmark_order=tuple("abcde"), rank=4, right=1, candidates=5
    )


def test_own_candidates_are_in_the_order_of_the_query() -> None:
    order = orders("dec", e=1, a=1)["q"]
    assert (order.wrong_first, order.rank, order.right) == (tuple("dce"), 3, 1)


@pytest.mark.parametrize(("candidates", "right"), [("", "f"), ("bc", "a"), ("f", "f")])
def test_a_query_without_a_right_candidate_to_find_is_left_out(candidates: str, right: str) -> None:
    assert orders(candidates, **{right: 1}) == {}


def test_queries_without_a_vector_are_left_out() -> None:
    query = EvaluationQuery(query_id="q", item=Item(text="q"), right={"a": 1})
    data_set = EvaluationSet(
        name="s", queries=[query, replace(query, query_id="lost")], candidates=CANDIDATES
    )
    assert list(rank_queries(data_set, QUERY, VECTORS)) == ["q"]
    assert rank_queries(data_set, QUERY, {}) == {}
