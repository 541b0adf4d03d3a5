"""The metrics of the benchmarks, under their names there: `hit@1`, `ndcg_linear@5`, ...

A metric says of one query, from 0 to 1, how well the first k candidates of an order meet the
right ones. They are defined as in MMEB-V2 (TIGER-AI-Lab/VLM2Vec at 6ac33bb,
`src/eval_utils/metrics.py`):

  hit               1 if a right candidate is among the first k, else 0; UVRB calls this recall
  precision         right candidates among the first k / k
  recall            right candidates among the first k / all right candidates
  f1                harmonic mean of precision and recall
  map               precisions at the ranks of the right candidates among the first k, summed /
                    min(k, all right candidates); trec_eval divides by all right candidates
  mrr               1 / rank of the first right candidate, 0 if that is not among the first k
  ndcg_linear       grade / log2(rank + 1), summed over the first k / the same of the best order
  ndcg_exponential  as ndcg_linear, with 2^grade - 1 for the grade

VLM2Vec puts the right candidates through a set before it pairs them with their grades: where grades
differ, its nDCG changes from run to run. Here each candidate keeps its grade.

Shapes: Q queries, K first places.
"""

from collections.abc import Hashable, Iterable, Mapping, Sequence
from heapq import nlargest

import numpy as np

from data.errors import DataError

FAMILIES = (
    "hit",
    "ndcg_linear",
    "ndcg_exponential",
    "precision",
    "recall",
    "f1",
    "map",
    "mrr",
)
METRICS = tuple(f"{family}@{k}" for family in FAMILIES for k in (1, 5, 10))
"""What MMEB-V2's files hold of a set, in their order."""


def measure(
    ranked: Sequence[Sequence[Hashable]],
    right: Iterable[Mapping[Hashable, int]],
    metrics: Sequence[str] = METRICS,
) -> dict[str, np.ndarray]:
    """Return the metrics of many queries, each float64 [Q], in the order of the queries.

    Args:
        ranked: of each query its first candidates, best first, as keys or indices. Places after
            the last one count as wrong.
        right: of each query the grades of all its right candidates, from 1 on.
        metrics: such as `hit@50`: any of FAMILIES at any k.

    Raises:
        DataError: a metric is unknown, a query has no right candidate or another grade, or a
            candidate is twice in an order.
    """
    wanted = {metric: _parse(metric) for metric in metrics}
    depth = max(k for _, k in wanted.values())
    grades_QK, best_QK = np.zeros((2, len(ranked), depth))
    num_right_Q1 = np.zeros((len(ranked), 1))
    for row, (keys, grades) in enumerate(zip(ranked, right, strict=True)):
        _check(row, keys, grades)
        first = [grades.get(key, 0) for key in keys[:depth]]
        best = nlargest(depth, grades.values())
        grades_QK[row, : len(first)] = first
        best_QK[row, : len(best)] = best
        num_right_Q1[row] = len(grades)
    rank_K = np.arange(1, depth + 1)
    is_right_QK = grades_QK > 0
    count_QK = is_right_QK.cumsum(axis=1)
    precision_QK = count_QK / rank_K
    top_Q1 = best_QK[:, :1]

    def gain(grade_QK: np.ndarray) -> np.ndarray:
        # (2^grade - 1) / 2^top, as 2^grade of a large grade is no float.
        return np.exp2(grade_QK - top_Q1) - np.exp2(-top_Q1)

    values = {
        "hit": count_QK > 0,
        "precision": precision_QK,
        "recall": count_QK / num_right_Q1,
        # 2 P R / (P + R), with both written as fractions of the count.
        "f1": 2 * count_QK / (rank_K + num_right_Q1),
        "map": (is_right_QK * precision_QK).cumsum(axis=1) / np.minimum(rank_K, num_right_Q1),
        "mrr": np.maximum.accumulate(is_right_QK / rank_K, axis=1),
        "ndcg_linear": _dcg(grades_QK) / _dcg(best_QK),
        "ndcg_exponential": _dcg(gain(grades_QK)) / _dcg(gain(best_QK)),
    }
    return {
        metric: values[family][:, k - 1].astype(np.float64)
        for metric, (family, k) in wanted.items()
    }


def _dcg(gain_QK: np.ndarray) -> np.ndarray:
    """Return the discounted gain of the first 1, 2, ... K places, [Q, K]."""
    return (gain_QK / np.log2(np.arange(2, gain_QK.shape[1] + 2))).cumsum(axis=1)


def _parse(metric: str) -> tuple[str, int]:
    family, _, k = metric.partition("@")
    if family not in FAMILIES or not k.isdecimal() or int(k) < 1:
        raise DataError(
            f"metric {metric!r}: expected one of {', '.join(FAMILIES)}, then @ and a number from "
            "1 on, such as hit@1"
        )
    return family, int(k)


def _check(row: int, keys: Sequence[Hashable], grades: Mapping[Hashable, int]) -> None:
    if not grades or min(grades.values()) < 1:
        lowest_first = sorted(grades.items(), key=lambda item: item[1])
        raise DataError(
            f"query {row}: expected right candidates with grades from 1 on, found "
            f"{len(grades)}, from {lowest_first[:1]} to {lowest_first[-1:]}; leave out the query, "
            "or the candidates that are not right"
        )
    if len(set(keys)) < len(keys):
        raise DataError(
            f"query {row}: a candidate is twice in its order, the first places are "
            f"{list(keys[:5])}; rank each candidate once"
        )
