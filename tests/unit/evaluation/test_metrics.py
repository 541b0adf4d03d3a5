"""Ranking metrics: cases worked by hand, ties, and a slow independent reference."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from data.errors import DataError
from data.relevance import Relevance
from data.types import Item, Pair
from evaluation.measure import measure
from evaluation.metrics import (
    MEASURES,
    estimate,
    held_out_metrics,
    pools_of,
    rank_candidates,
)


def one(similarity: list[float], relevant: set[int]) -> dict[str, float]:
    ranking = rank_candidates(np.array(similarity), frozenset(relevant))
    values = measure([ranking.top], [dict.fromkeys(relevant, 1)], tuple(MEASURES.values()))
    return {name: float(values[metric][0]) for name, metric in MEASURES.items()}


def slow_reference(similarity: list[float], relevant: set[int]) -> dict[str, float]:
    """Rank by counting, one candidate at a time."""
    places = {}
    for index, own in enumerate(similarity):
        above = 0
        for other, value in enumerate(similarity):
            closer = value > own
            tied = value == own and other != index
            beats = (other not in relevant and index in relevant) or (
                (other in relevant) == (index in relevant) and other < index
            )
            above += closer or (tied and beats)
        places[index] = above + 1
    gained = sum(1 / math.log2(places[i] + 1) for i in relevant if places[i] <= 5)
    ideal = sum(1 / math.log2(place + 1) for place in range(1, min(len(relevant), 5) + 1))
    best = min(places[i] for i in relevant)
    hits = {f"hit_at_{depth}": float(best <= depth) for depth in (1, 5)}
    return {**hits, "ndcg_at_5": gained / ideal}


def test_gold_on_top_scores_one() -> None:
    assert one([0.9, 0.1, 0.2], {0}) == {"hit_at_1": 1.0, "hit_at_5": 1.0, "ndcg_at_5": 1.0}


def test_gold_in_third_place_by_hand() -> None:
    found = one([0.9, 0.8, 0.7, 0.1], {2})
    assert found["hit_at_1"] == 0.0
    assert found["hit_at_5"] == 1.0
    assert found["ndcg_at_5"] == pytest.approx(0.5)  # 1 / log2(3 + 1)


def test_gold_in_sixth_place_scores_nothing() -> None:
    assert one([6, 5, 4, 3, 2, 1], {5}) == {"hit_at_1": 0, "hit_at_5": 0, "ndcg_at_5": 0}


def test_several_relevant_by_hand() -> None:
    found = one([0.9, 0.8, 0.7, 0.6], {1, 3})
    gained = 1 / math.log2(3) + 1 / math.log2(5)
    assert found["ndcg_at_5"] == pytest.approx(gained / (1 + 1 / math.log2(3)))
    assert found["hit_at_1"] == 0.0


def test_ties_go_against_the_gold() -> None:
    ranking = rank_candidates(np.array([0.5, 0.5, 0.5, 0.1]), frozenset({0}))
    assert ranking.rank == 3
    assert ranking.top == (1, 2, 0, 3)
    assert one([0.5] * 10, {0}) == {"hit_at_1": 0, "hit_at_5": 0, "ndcg_at_5": 0}


def test_equal_up_to_summation_order_is_a_tie() -> None:
    assert rank_candidates(np.array([0.3 + 1e-12, 0.3]), frozenset({0})).rank == 2


def test_rank_is_that_of_the_best_relevant() -> None:
    assert rank_candidates(np.array([0.9, 0.8, 0.7]), frozenset({1, 2})).rank == 2


@pytest.mark.parametrize("relevant", [set(), {3}, {-1}])
def test_relevant_outside_the_pool_is_refused(relevant: set[int]) -> None:
    with pytest.raises(DataError, match="relevant candidates"):
        rank_candidates(np.array([0.1, 0.2, 0.3]), frozenset(relevant))


def test_similarity_that_is_not_finite_is_refused() -> None:
    with pytest.raises(DataError, match="1 not finite"):
        rank_candidates(np.array([0.1, np.nan]), frozenset({0}))


@st.composite
def rows(draw: st.DrawFn) -> tuple[list[float], set[int]]:
    # Few distinct values: ties are common.
    similarity = draw(
        st.lists(st.sampled_from([-0.5, 0.0, 0.25, 0.5, 1.0]), min_size=1, max_size=9)
    )
    relevant = draw(st.sets(st.integers(0, len(similarity) - 1), min_size=1))
    return similarity, relevant


@given(rows())
def test_agrees_with_the_slow_reference(case: tuple[list[float], set[int]]) -> None:
    assert one(*case) == pytest.approx(slow_reference(*case))


@given(rows(), st.integers(0, 2**32 - 1))
def test_order_of_candidates_does_not_matter(case: tuple[list[float], set[int]], seed: int) -> None:
    similarity, relevant = case
    order = np.random.default_rng(seed).permutation(len(similarity))
    moved = {new for new, old in enumerate(order) if old in relevant}
    shuffled = one([similarity[old] for old in order], moved)
    assert shuffled == pytest.approx(one(similarity, relevant))


def test_interval_holds_the_mean_and_repeats() -> None:
    values = [0.0, 1.0, 1.0, 1.0] * 25
    found = estimate(values, resamples=500, seed=3)
    assert found.mean == 0.75
    # The normal approximation: 1.96 x sqrt(.75 x .25 / 100) = 0.085.
    assert found.low == pytest.approx(0.665, abs=0.03)
    assert found.high == pytest.approx(0.835, abs=0.03)
    assert found == estimate(values, resamples=500, seed=3)


def test_interval_of_a_constant_is_a_point() -> None:
    found = estimate([1.0] * 7, resamples=10, seed=0)
    assert (found.mean, found.low, found.high) == (1.0, 1.0, 1.0)


def test_interval_of_nothing_is_refused() -> None:
    with pytest.raises(DataError, match="at least one measured query"):
        estimate([], resamples=10, seed=0)


def make_pair(name: str, target: str, *, label: str = "", source: str = "s") -> Pair:
    return Pair(
        pair_id=name, source=source, query=Item(text=name), target=Item(text=target), label=label
    )


def test_pool_holds_each_target_once_per_data_set() -> None:
    pairs = [
        make_pair("a", "red"),
        make_pair("b", "red"),
        make_pair("c", "blue"),
        make_pair("d", "red", source="other"),
    ]
    pools = pools_of(pairs, Relevance(pairs))
    assert [item.text for item in pools["s"].items] == ["red", "blue"]
    assert [item.text for item in pools["other"].items] == ["red"]


def right_in_pool(pairs: list[Pair]) -> dict[str, set[int]]:
    """Return by query which items of the pool of set `s` are right."""
    relevant = pools_of(pairs, Relevance(pairs))["s"].relevant
    return {pair.query.text: set(relevant[pair.query.key()]) for pair in pairs}


def test_equal_labels_are_right_for_each_other() -> None:
    pairs = [make_pair("a", "red", label="r"), make_pair("b", "rot", label="r")]
    assert right_in_pool(pairs) == {"a": {0, 1}, "b": {0, 1}}


def test_all_targets_of_a_query_are_right_for_it() -> None:
    pairs = [make_pair("a", "red"), make_pair("a", "crimson"), make_pair("b", "crimson")]
    assert right_in_pool(pairs) == {"a": {0, 1}, "b": {1}}


def test_a_pool_of_more_queries_than_a_block_is_as_its_parts() -> None:
    pairs = [make_pair(f"q{n}", f"t{n % 300}") for n in range(600)]
    assert right_in_pool(pairs) == {f"q{n}": {n % 300} for n in range(600)}


def held_out(pairs: list[Pair], queries: dict, candidates: dict) -> dict[str, float]:
    return held_out_metrics("hit", pairs, queries, candidates, relevance=Relevance(pairs))


def test_light_hit_at_1_by_hand() -> None:
    pairs = [
        make_pair("a", "red"),
        make_pair("b", "blue"),
        make_pair("c", "blue"),
        make_pair("d", "red", source="o/$_$"),
    ]
    axis = np.eye(3)
    queries = {
        pair.query.key(): row
        for pair, row in zip(pairs, (axis[0], axis[0], 5 * axis[1], axis[2]), strict=True)
    }
    candidates = {Item(text="red").key(): axis[0], Item(text="blue").key(): axis[1]}
    assert held_out(pairs, queries, candidates) == {
        "hit": pytest.approx(3 / 4),
        "hit_over_sets": pytest.approx((2 / 3 + 1) / 2),
        "hit_by_set/s": pytest.approx(2 / 3),
        "hit_by_set/o____": 1.0,  # a tracker would refuse the set's own name
    }


def test_light_hit_at_1_gives_nothing_for_a_collapsed_embedder() -> None:
    pairs = [make_pair("a", "red"), make_pair("b", "blue")]
    vector = np.ones(4, dtype=np.float32)
    queries = {pair.query.key(): vector for pair in pairs}
    candidates = {pair.target.key(): vector for pair in pairs}
    assert held_out(pairs, queries, candidates)["hit"] == 0.0


def test_light_hit_at_1_counts_every_right_target_also_those_known_from_elsewhere() -> None:
    pairs = [make_pair("a", "red"), make_pair("b", "crimson")]
    vectors = {pair.query.key(): np.eye(2)[0] for pair in pairs}
    candidates = {Item(text="red").key(): np.eye(2)[1], Item(text="crimson").key(): np.eye(2)[0]}
    assert held_out(pairs, vectors, candidates)["hit"] == 0.5
    relevance = Relevance([*pairs, make_pair("a", "crimson")])
    found = held_out_metrics("hit", pairs, vectors, candidates, relevance=relevance)
    assert found["hit"] == 1.0


def test_light_hit_at_1_names_what_is_missing() -> None:
    with pytest.raises(DataError, match="2 missing"):
        held_out([make_pair("a", "red")], {}, {})


@pytest.mark.parametrize("odd", [np.nan, np.inf, 0.0])
def test_light_hit_at_1_leaves_out_and_counts_vectors_that_mean_nothing(odd, caplog) -> None:
    pairs = [make_pair("a", "red"), make_pair("b", "blue")]
    queries = {pair.query.key(): row for pair, row in zip(pairs, np.eye(2), strict=True)}
    candidates = {pair.target.key(): row for pair, row in zip(pairs, np.eye(2), strict=True)}
    assert held_out(pairs, queries, candidates)["hit"] == 1.0
    candidates[pairs[0].target.key()] = np.full(2, odd)
    assert held_out(pairs, queries, candidates)["hit"] == 1.0
    assert "hit: 1 of 2 pairs left out" in caplog.text
    queries[pairs[1].query.key()] = np.full(2, odd)
    assert held_out(pairs, queries, candidates) == {}
    assert "hit: no held-out pair is left to be measured; the metric is left out" in caplog.text
