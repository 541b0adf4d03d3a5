"""The benchmarks' metrics: values worked by hand, other libraries, and what always holds."""

import math
from collections.abc import Sequence

import ir_measures
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from ir_measures import AP, RR, P, R, Success, nDCG
from sklearn.metrics import ndcg_score

from data.errors import DataError
from evaluation.measure import FAMILIES, METRICS, measure
from evaluation.metrics import benchmark_order, rank_candidates

# Three queries with candidates of their own; the lists have different lengths.
SIMILARITY = (
    (0.9, 0.8, 0.8, 0.7, 0.7, 0.6, 0.1),
    (0.4, 0.9, 0.8),
    (0.5, 0.5, 0.5, 0.5, 0.5, 0.5),
)
RIGHT = ({1: 3, 3: 1, 6: 2}, {1: 1, 2: 1}, {2: 1})
LOG3, LOG6 = math.log2(3), math.log2(6)
BEST = 3 + 2 / LOG3 + 1 / 2  # grades 3, 2, 1
BEST_EXPONENTIAL = 7 + 3 / LOG3 + 1 / 2
SECOND = dict.fromkeys(METRICS, 1.0) | {
    "precision@5": 2 / 5,
    "precision@10": 2 / 10,
    "recall@1": 1 / 2,
    "f1@1": 2 / 3,  # of 1 and 1/2
    "f1@5": 4 / 7,  # of 2/5 and 1
    "f1@10": 1 / 3,  # of 2/10 and 1
}
"""Both right candidates stand first, and there are fewer candidates than 5."""


def of_query(ranked: Sequence[int], right: dict[int, int]) -> dict[str, float]:
    return {metric: value.item() for metric, value in measure([ranked], [right]).items()}


def wrong_first(query: int) -> tuple[int, ...]:
    return rank_candidates(np.array(SIMILARITY[query]), frozenset(RIGHT[query])).top


def at(metrics: dict[str, float], family: str) -> list[float]:
    return [metrics[f"{family}@{k}"] for k in (1, 5, 10)]


def test_all_metrics_by_hand_with_ties_against_the_system() -> None:
    # Grades in order: 0 0 3 0 1 0 2.
    assert wrong_first(0) == (0, 2, 1, 4, 3, 5, 6)
    metrics = of_query(wrong_first(0), RIGHT[0])
    gained = 3 / 2 + 1 / LOG6
    gained_exponential = 7 / 2 + 1 / LOG6
    assert at(metrics, "hit") == [0, 1, 1]
    assert at(metrics, "precision") == pytest.approx([0, 2 / 5, 3 / 10])
    assert at(metrics, "recall") == pytest.approx([0, 2 / 3, 1])
    assert at(metrics, "f1") == pytest.approx([0, 1 / 2, 6 / 13])
    assert at(metrics, "mrr") == pytest.approx([0, 1 / 3, 1 / 3])
    precisions = 1 / 3 + 2 / 5
    assert at(metrics, "map") == pytest.approx([0, precisions / 3, (precisions + 3 / 7) / 3])
    assert at(metrics, "ndcg_linear") == pytest.approx([0, gained / BEST, (gained + 2 / 3) / BEST])
    assert at(metrics, "ndcg_exponential") == pytest.approx(
        [0, gained_exponential / BEST_EXPONENTIAL, (gained_exponential + 3 / 3) / BEST_EXPONENTIAL]
    )


def test_all_metrics_by_hand_in_the_benchmarks_own_order() -> None:
    # Grades in order: 0 3 0 1 0 0 2.
    order = benchmark_order(np.array(SIMILARITY[0]))
    assert order == (0, 1, 2, 3, 4, 5, 6)
    metrics = of_query(order, RIGHT[0])
    assert at(metrics, "hit") == [0, 1, 1]
    assert at(metrics, "precision") == pytest.approx([0, 2 / 5, 3 / 10])
    assert at(metrics, "recall") == pytest.approx([0, 2 / 3, 1])
    assert at(metrics, "f1") == pytest.approx([0, 1 / 2, 6 / 13])
    assert at(metrics, "mrr") == pytest.approx([0, 1 / 2, 1 / 2])
    precisions = 1 / 2 + 2 / 4
    assert at(metrics, "map") == pytest.approx([0, precisions / 3, (precisions + 3 / 7) / 3])
    gained = 3 / LOG3 + 1 / math.log2(5)
    assert at(metrics, "ndcg_linear") == pytest.approx([0, gained / BEST, (gained + 2 / 3) / BEST])
    gained = 7 / LOG3 + 1 / math.log2(5)
    assert at(metrics, "ndcg_exponential") == pytest.approx(
        [0, gained / BEST_EXPONENTIAL, (gained + 1) / BEST_EXPONENTIAL]
    )


def test_all_metrics_by_hand_of_fewer_candidates_than_k() -> None:
    assert wrong_first(1) == (1, 2, 0)
    assert of_query(wrong_first(1), RIGHT[1]) == pytest.approx(SECOND)


def test_an_embedder_that_maps_all_to_one_point_gets_only_what_the_benchmark_gives_it() -> None:
    metrics = of_query(wrong_first(2), RIGHT[2])
    assert all(metrics[f"{family}@5"] == 0 for family in FAMILIES)
    assert metrics["mrr@10"] == pytest.approx(1 / 6)
    own = of_query(benchmark_order(np.array(SIMILARITY[2])), RIGHT[2])
    assert own["mrr@10"] == pytest.approx(1 / 3)


def test_queries_of_a_block_do_not_change_each_other() -> None:
    orders = [wrong_first(query) for query in range(3)]
    together = measure(orders, RIGHT, (*METRICS, "hit@50"))
    assert together["hit@50"].tolist() == [1, 1, 1]
    for query in range(3):
        row = {metric: together[metric][query] for metric in METRICS}
        assert row == of_query(orders[query], RIGHT[query])


def test_keys_measure_as_indices_do() -> None:
    keys = [[f"k{index}" for index in wrong_first(query)] for query in range(3)]
    right = [{f"k{index}": grade for index, grade in grades.items()} for grades in RIGHT]
    by_index = measure([wrong_first(query) for query in range(3)], RIGHT)
    for metric, values in measure(keys, right).items():
        assert values.tolist() == by_index[metric].tolist()


def test_no_query_gives_no_value() -> None:
    assert measure([], [], ["hit@1"])["hit@1"].tolist() == []


@pytest.fixture(scope="module")
def block() -> tuple[np.ndarray, list[dict[int, int]]]:
    """Orders of 12 candidates, int [300, 12], with one to six right ones of grades 1 to 3."""
    rng = np.random.default_rng(5)
    orders = np.argsort(rng.random((300, 12)), axis=1)
    right = [
        {int(index): int(rng.integers(1, 4)) for index in rng.permutation(12)[: 1 + query % 6]}
        for query in range(300)
    ]
    return orders, right


def by_ir_measures(measures, orders, right) -> dict:
    qrels = {str(q): {str(c): grade for c, grade in of_q.items()} for q, of_q in enumerate(right)}
    run = {
        str(q): {str(c): -float(place) for place, c in enumerate(order)}
        for q, order in enumerate(orders)
    }
    values = {measure: np.zeros(len(orders)) for measure in measures}
    for metric in ir_measures.iter_calc(measures, qrels, run):
        values[metric.measure][int(metric.query_id)] = metric.value
    return values


@pytest.mark.parametrize("k", [1, 5, 10])
def test_ir_measures_agrees_where_it_defines_the_same(block, k) -> None:
    orders, right = block
    same = {"hit": Success, "precision": P, "recall": R, "mrr": RR, "ndcg_linear": nDCG}
    theirs = by_ir_measures([measure @ k for measure in same.values()], orders, right)
    ours = measure(orders.tolist(), right)
    for family, measure_there in same.items():
        np.testing.assert_allclose(ours[f"{family}@{k}"], theirs[measure_there @ k], rtol=1e-12)


@pytest.mark.parametrize("k", [1, 5, 10])
def test_ir_measures_differs_by_the_divisor_of_average_precision(block, k) -> None:
    orders, right = block
    theirs = by_ir_measures([AP @ k], orders, right)[AP @ k]
    num_right = np.array([len(grades) for grades in right])
    ours = measure(orders.tolist(), right)[f"map@{k}"]
    np.testing.assert_allclose(ours, theirs * num_right / np.minimum(num_right, k), rtol=1e-12)


def test_ir_measures_agrees_on_exponential_gains_asked_for_alone(block) -> None:
    # In one call with linear gains after it, its values would be given as the linear ones.
    orders, right = block
    exponential = nDCG(gains={2: 3, 3: 7}) @ 5
    theirs = by_ir_measures([exponential], orders, right)[exponential]
    ours = measure(orders.tolist(), right)["ndcg_exponential@5"]
    np.testing.assert_allclose(ours, theirs, rtol=1e-12)


@pytest.mark.parametrize("k", [1, 5, 10])
def test_scikit_learn_agrees_on_linear_ndcg(block, k) -> None:
    orders, right = block
    grades = np.array([[of_query.get(c, 0) for c in range(12)] for of_query in right])
    scores = -np.argsort(orders, axis=1)
    theirs = [
        ndcg_score(grades[q : q + 1], scores[q : q + 1], k=k, ignore_ties=True) for q in range(300)
    ]
    ours = measure(orders.tolist(), right)[f"ndcg_linear@{k}"]
    np.testing.assert_allclose(ours, theirs, rtol=1e-12)


@st.composite
def queries(draw: st.DrawFn) -> tuple[np.ndarray, dict[int, int]]:
    # Few distinct values: ties are common.
    similarity = draw(st.lists(st.sampled_from([-0.5, 0.0, 0.5, 1.0]), min_size=1, max_size=14))
    index = st.integers(0, len(similarity) - 1)
    right = draw(st.dictionaries(index, st.integers(1, 4), min_size=1))
    return np.array(similarity), right


@given(queries())
def test_metrics_are_shares_and_grow_with_k_where_they_must(case) -> None:
    similarity, right = case
    metrics = of_query(rank_candidates(similarity, frozenset(right)).top, right)
    assert all(0 <= value <= 1 for value in metrics.values())
    for family in ("hit", "recall", "mrr"):
        assert at(metrics, family) == sorted(at(metrics, family))
    assert metrics["hit@1"] == metrics["mrr@1"] == metrics["precision@1"] == metrics["map@1"]
    if len(right) == 1:
        assert metrics["hit@1"] == metrics["recall@1"] == metrics["ndcg_linear@1"]
    if set(right.values()) == {1}:
        assert at(metrics, "ndcg_exponential") == at(metrics, "ndcg_linear")


@given(queries())
def test_ties_against_the_system_never_help_it(case) -> None:
    similarity, right = case
    ranking = rank_candidates(similarity, frozenset(right))
    counted, own = of_query(ranking.top, right), of_query(benchmark_order(similarity), right)
    assert all(counted[metric] <= own[metric] + 1e-12 for metric in METRICS)
    assert counted["hit@5"] == float(ranking.rank <= 5)


@given(queries())
def test_the_best_order_is_worth_one(case) -> None:
    _, right = case
    best = sorted(right, key=lambda index: -right[index])
    metrics = of_query(best, right)
    for family in ("hit", "ndcg_linear", "ndcg_exponential", "map", "mrr"):
        assert at(metrics, family) == [1, 1, 1]


@pytest.mark.parametrize("metric", ["hit", "hit@0", "hit@-1", "hit@x", "ndcg@5", "accuracy@1"])
def test_an_unknown_metric_is_refused(metric) -> None:
    with pytest.raises(DataError, match=f"metric '{metric}': expected one of hit, ndcg_linear"):
        measure([[0]], [{0: 1}], [metric])


@pytest.mark.parametrize("right", [{}, {0: 0}, {0: 1, 1: -1}])
def test_a_query_without_right_candidates_or_with_odd_grades_is_refused(right) -> None:
    with pytest.raises(DataError, match="query 1: expected right candidates with grades from 1 on"):
        measure([[0], [0]], [{0: 1}, right])


@pytest.mark.parametrize("grade", [100, 1_000_000])
def test_large_grades_are_measured(grade: int) -> None:
    metrics = of_query([1, 0], {0: grade, 1: 1})
    assert metrics["ndcg_exponential@5"] == pytest.approx(1 / LOG3)


def test_a_candidate_that_is_ranked_twice_is_refused() -> None:
    with pytest.raises(DataError, match="query 0: a candidate is twice in its order"):
        measure([["a", "b", "a"]], [{"a": 1}])
