"""The candidates of each query of a set in order, from vectors of the queries and candidates."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from evaluation.metrics import DEPTH, benchmark_order, rank_candidates, unit_rows
from evaluation.search import CANDIDATES, search_and_rank
from evaluation.sets import EvaluationQuery, EvaluationSet


@dataclass(frozen=True, slots=True, kw_only=True)
class QueryOrder:
    """What a query retrieved among the candidates that have a vector."""

    wrong_first: tuple[str, ...]
    """Keys of the first DEPTH candidates, best first; among ties the right ones come last."""
    benchmark_order: tuple[str, ...]
    """The same; among ties the candidate that comes first in the benchmark."""
    rank: int
    """1-based rank of the best right candidate; wrong ones as similar rank above it."""
    right: int
    """Right candidates that it was ranked over."""
    candidates: int
    """Candidates that it was ranked over."""


def rank_queries(
    data_set: EvaluationSet, queries: Mapping[str, np.ndarray], candidates: Mapping[str, np.ndarray]
) -> dict[str, QueryOrder]:
    """Return the order of each query, by `query_id`.

    Args:
        data_set: the queries and what is right for them.
        queries: vectors [D] by `query_id`; queries without one are left out.
        candidates: vectors [D] by key; candidates without one are not ranked. A query is left out
            where none of its right candidates has one.
    """
    keys = [key for key in data_set.candidates if key in candidates]
    if not keys:
        return {}
    place = {key: row for row, key in enumerate(keys)}
    asked = [q for q in data_set.queries if q.query_id in queries and _right_of(q, place)]
    orders: dict[str, QueryOrder] = {}
    if over_all := [query for query in asked if not query.candidates]:
        orders |= _over_all(over_all, queries, keys, place, candidates)
    if with_own := [query for query in asked if query.candidates]:
        orders |= _over_own(with_own, queries, keys, place, candidates)
    return orders


def _right_of(query: EvaluationQuery, place: Mapping[str, int]) -> list[str]:
    """Return the right candidates of a query, among those that it is ranked over."""
    own = set(query.candidates)
    return [key for key in query.right if key in place and (not own or key in own)]


def _unit(vectors: Sequence[np.ndarray]) -> np.ndarray:
    return unit_rows(vectors).astype(np.float32)


def _over_all(
    asked: Sequence[EvaluationQuery],
    queries: Mapping[str, np.ndarray],
    keys: Sequence[str],
    place: Mapping[str, int],
    candidates: Mapping[str, np.ndarray],
) -> Iterator[tuple[str, QueryOrder]]:
    def rows(places: Iterable[int]) -> np.ndarray:
        return _unit([candidates[keys[row]] for row in places])

    right = [[place[key] for key in _right_of(query, place)] for query in asked]
    # In blocks: the vectors may be mapped from a file because they do not fit into memory.
    blocks = (
        rows(range(start, min(start + CANDIDATES, len(keys))))
        for start in range(0, len(keys), CANDIDATES)
    )
    vectors = _unit([queries[query.query_id] for query in asked])
    ranked = search_and_rank(vectors, blocks, DEPTH, right=right, rows=rows)
    for number, query in enumerate(asked):
        yield (
            query.query_id,
            QueryOrder(
                wrong_first=tuple(keys[row] for row in ranked.wrong_first.indices[number]),
                benchmark_order=tuple(keys[row] for row in ranked.nearest.indices[number]),
                rank=int(ranked.ranks[number]),
                right=len(right[number]),
                candidates=len(keys),
            ),
        )


def _over_own(
    asked: Sequence[EvaluationQuery],
    queries: Mapping[str, np.ndarray],
    all_keys: Sequence[str],
    place: Mapping[str, int],
    candidates: Mapping[str, np.ndarray],
) -> Iterator[tuple[str, QueryOrder]]:
    rows = np.concatenate(
        [
            _unit([candidates[key] for key in all_keys[start : start + CANDIDATES]])
            for start in range(0, len(all_keys), CANDIDATES)
        ]
    )
    for query in asked:
        keys = [key for key in query.candidates if key in place]
        vector = _unit([queries[query.query_id]])[0].astype(np.float64)
        similarity = rows[[place[key] for key in keys]].astype(np.float64) @ vector
        right = frozenset(row for row, key in enumerate(keys) if key in query.right)
        ranking = rank_candidates(similarity, right)
        yield (
            query.query_id,
            QueryOrder(
                wrong_first=tuple(keys[row] for row in ranking.top),
                benchmark_order=tuple(keys[row] for row in benchmark_order(similarity)),
                rank=ranking.rank,
                right=len(right),
                candidates=len(keys),
            ),
        )
