"""Small results of sets."""

from collections.abc import Callable

import pytest

from data.types import Item
from evaluation.scores.set_result import SetResult, score_set
from evaluation.sets import EvaluationQuery, EvaluationSet

KEYS = ("a", "b", "c")


@pytest.fixture
def make_result() -> Callable[..., SetResult]:
    """Return a function that makes the result of a set with three candidates, `a` right."""

    def make(
        name: str,
        *orders: str,
        num_data: int = 0,
        metric: str = "hit@1",
        groups: tuple[str, ...] = (),
        benchmark_orders: tuple[str, ...] = (),
    ) -> SetResult:
        queries = [
            EvaluationQuery(query_id=f"q{number}", item=Item(text=str(number)), right={"a": 1})
            for number in range(num_data or len(orders))
        ]
        evaluation_set = EvaluationSet(
            name=name,
            queries=queries,
            candidates={key: Item(text=key) for key in KEYS},
            metric=metric,
            groups=groups,
        )
        wrong_first = {f"q{number}": tuple(order) for number, order in enumerate(orders)}
        own = {f"q{number}": tuple(order) for number, order in enumerate(benchmark_orders)}
        return score_set(
            evaluation_set, wrong_first=wrong_first, benchmark_order=own or wrong_first
        )

    return make
