"""What the queries of one set reached: every metric of every query, in both orders of ties."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from data.errors import DataError
from evaluation.measure import METRICS, measure
from evaluation.sets import EvaluationSet


@dataclass(frozen=True, slots=True, kw_only=True)
class SetResult:
    """The metrics of one set, [Q] for its Q ranked queries."""

    name: str
    metric: str
    """The set's main metric."""
    suite: str
    """The benchmark that the set belongs to; empty: none."""
    groups: tuple[str, ...]
    """The aggregates that the set belongs to, the widest first."""
    num_data: int
    """Queries of the set; more than Q where some could not be ranked."""
    query_ids: tuple[str, ...]
    """The ranked queries."""
    values: Mapping[str, np.ndarray]
    """By metric, float64 [Q], with ties against the system: these count."""
    benchmark_order: Mapping[str, np.ndarray]
    """The same, with ties in the benchmark's own order."""

    def scores(self) -> dict[str, float]:
        """Return the mean of each metric, from 0 to 1."""
        return {metric: float(values.mean()) for metric, values in self.values.items()}

    def by_query(self) -> dict[str, float]:
        """Return the main metric of each ranked query."""
        return dict(zip(self.query_ids, self.values[self.metric].tolist(), strict=True))


def score_set(
    evaluation_set: EvaluationSet,
    *,
    wrong_first: Mapping[str, Sequence[str]],
    benchmark_order: Mapping[str, Sequence[str]],
) -> SetResult:
    """Return the metrics of a set: METRICS, and its main metric where that is none of them.

    Args:
        evaluation_set: the queries and what is right for them.
        wrong_first: by `query_id` the keys of its first candidates, best first, among ties the
            wrong ones first; as many as the metrics look at, or all. A query that failed is left
            out.
        benchmark_order: the same of the same queries, with ties in the benchmark's own order.

    Raises:
        DataError: no query was ranked, the two orders are of different queries, or a query is not
            of the set; see also `measure`.
    """
    queries = [query for query in evaluation_set.queries if query.query_id in wrong_first]
    ids = {query.query_id for query in queries}
    if not queries or ids != set(wrong_first) or ids != set(benchmark_order):
        odd = sorted((set(wrong_first) | set(benchmark_order)) - ids) + sorted(
            ids - set(benchmark_order)
        )
        raise DataError(
            f"set {evaluation_set.name}: expected both orders of the same queries of the set, at "
            f"least of one; found {len(queries)} of its {len(evaluation_set.queries)} queries in "
            f"`wrong_first`, {len(benchmark_order)} in `benchmark_order`, the first that do not "
            f"fit: {odd[:3]}"
        )
    metrics = tuple(dict.fromkeys((*METRICS, evaluation_set.metric)))

    def measured(order: Mapping[str, Sequence[str]]) -> dict[str, np.ndarray]:
        ranked = [order[query.query_id] for query in queries]
        return measure(ranked, (query.right for query in queries), metrics)

    return SetResult(
        name=evaluation_set.name,
        metric=evaluation_set.metric,
        suite=evaluation_set.suite,
        groups=evaluation_set.groups,
        num_data=len(evaluation_set.queries),
        query_ids=tuple(query.query_id for query in queries),
        values=measured(wrong_first),
        benchmark_order=measured(benchmark_order),
    )
