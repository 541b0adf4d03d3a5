"""The result of a set: both orders of ties, failed queries, its own main metric."""

import pytest

from data.errors import DataError
from data.types import Item
from evaluation.measure import METRICS
from evaluation.scores.set_result import score_set
from evaluation.sets import EvaluationQuery, EvaluationSet


def test_scores_are_means_over_the_ranked_queries(make_result) -> None:
    result = make_result("s", "abc", "bac", "cba", "abc", num_data=5)
    assert result.scores()["hit@1"] == 0.5
    assert result.scores()["mrr@5"] == pytest.approx((1 + 1 / 2 + 1 / 3 + 1) / 4)
    assert (len(result.query_ids), result.num_data) == (4, 5)
    assert result.by_query() == {"q0": 1, "q1": 0, "q2": 0, "q3": 1}
    assert tuple(result.scores()) == METRICS


def test_both_orders_of_ties_are_kept_apart(make_result) -> None:
    result = make_result("s", "bac", "abc", benchmark_orders=("abc", "abc"))
    assert result.values["hit@1"].tolist() == [0, 1]
    assert result.benchmark_order["hit@1"].tolist() == [1, 1]
    assert result.scores()["hit@1"] == 0.5


def test_a_main_metric_beside_the_usual_ones_is_measured_too(make_result) -> None:
    result = make_result("s", "cba", metric="hit@50")
    assert result.by_query() == {"q0": 1}
    assert tuple(result.scores()) == (*METRICS, "hit@50")


def test_all_right_candidates_of_a_query_count_with_their_grades() -> None:
    query = EvaluationQuery(query_id="q", item=Item(text="q"), right={"b": 2, "c": 1, "gone": 2})
    candidates = {key: Item(text=key) for key in "abc"}
    evaluation_set = EvaluationSet(name="s", queries=[query], candidates=candidates)
    order = {"q": ["b", "a", "c"]}
    scores = score_set(evaluation_set, wrong_first=order, benchmark_order=order).scores()
    assert scores["recall@5"] == pytest.approx(2 / 3)
    assert scores["ndcg_linear@1"] == 1


@pytest.mark.parametrize(
    ("wrong_first", "own"),
    [({}, {}), ({"q0": "abc"}, {}), ({"q0": "abc"}, {"q1": "abc"}), ({"x": "abc"}, {"x": "abc"})],
)
def test_orders_of_other_queries_are_refused(wrong_first, own) -> None:
    queries = [
        EvaluationQuery(query_id=f"q{number}", item=Item(text="q"), right={"a": 1})
        for number in range(2)
    ]
    evaluation_set = EvaluationSet(name="s", queries=queries, candidates={"a": Item(text="a")})
    with pytest.raises(DataError, match="set s: expected both orders of the same queries"):
        score_set(evaluation_set, wrong_first=wrong_first, benchmark_order=own)
