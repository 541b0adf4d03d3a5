"""Rankings from similarity rows, hit@1, hit@5 and nDCG@5 of them, and bootstrap intervals.

`evaluation/measure.py` says what the metrics are.

Ties go against the gold: a candidate as similar as a relevant one ranks above it, so that an
Embedder that maps everything to one point scores 0, not 1. A query may have several relevant
candidates.
"""

import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

import numpy as np

from configs.schema import name_in_metric
from data.errors import DataError
from data.relevance import Relevance
from data.types import Item, Pair, Side
from evaluation.measure import measure

log = logging.getLogger(__name__)
DEPTH = 10
"""Candidates of an order that are kept: the metrics of `METRICS` look at no more."""
MEASURES = {"hit_at_1": "hit@1", "hit_at_5": "hit@5", "ndcg_at_5": "ndcg_linear@5"}
"""The metrics of the main table: the name in the files, and the metric."""
OVER_SETS = "_over_sets"
"""Suffix of a mean of data sets' means; without it, every query weighs the same."""
QUERY_BLOCK = 256
"""Queries of a pool whose right candidates are found at a time."""
TIE_DECIMALS = 6
"""Similarities equal to this many decimals are ties: beyond it, sums differ by their order."""


@dataclass(frozen=True, slots=True, kw_only=True)
class QueryRanking:
    """What one query retrieved; candidates are named by their index in the pool."""

    top: tuple[int, ...]
    """The first DEPTH candidates, best first."""
    relevant: frozenset[int]
    rank: int
    """1-based rank of the best relevant candidate among all."""


@dataclass(frozen=True, slots=True)
class Estimate:
    """A mean over queries with its 95 % bootstrap interval."""

    mean: float
    low: float
    high: float


def rank_candidates(similarity: np.ndarray, relevant: frozenset[int]) -> QueryRanking:
    """Return the ranking of one query.

    Args:
        similarity: [N] to each candidate, higher is closer.
        relevant: indices of the right candidates.

    Raises:
        DataError: no candidate is relevant, or a similarity is not finite: a rank would be made up.
    """
    if similarity.ndim != 1 or not np.isfinite(similarity).all():
        raise DataError(
            f"expected one finite similarity per candidate, found shape {similarity.shape} with "
            f"{int((~np.isfinite(similarity)).sum())} not finite; leave out what failed to embed"
        )
    if not relevant or min(relevant) < 0 or max(relevant) >= len(similarity):
        raise DataError(
            f"expected relevant candidates among 0..{len(similarity) - 1}, "
            f"found {sorted(relevant)[:5]}; leave the query out or add its gold to the pool"
        )
    is_relevant = np.zeros(len(similarity), dtype=bool)
    is_relevant[list(relevant)] = True
    # By similarity first; among equals the irrelevant come first, then the lower index.
    order = np.lexsort((is_relevant, -np.round(similarity, TIE_DECIMALS)))
    return QueryRanking(
        top=tuple(int(index) for index in order[:DEPTH]),
        relevant=relevant,
        rank=int(np.argmax(is_relevant[order])) + 1,
    )


def benchmark_order(similarity: np.ndarray) -> tuple[int, ...]:
    """Return the first DEPTH candidates of one query in the benchmarks' own order of ties.

    That is a stable sort by falling similarity: among ties the candidate that comes first in the
    benchmark ranks above. `rank_candidates` has the order that counts.

    Args:
        similarity: [N] to each candidate, finite, in the benchmark's order.
    """
    order = np.argsort(-np.round(similarity, TIE_DECIMALS), kind="stable")
    return tuple(order[:DEPTH].tolist())


def estimate(values: Sequence[float], *, resamples: int, seed: int) -> Estimate:
    """Return the mean of per-query values with its 95 % percentile bootstrap interval.

    Raises:
        DataError: there is no value.
    """
    if not len(values):
        raise DataError("expected at least one measured query, found none; nothing to average")
    sample = np.asarray(values, dtype=np.float64)
    means = resampled_means(sample, resamples, np.random.default_rng(seed))
    low, high = np.percentile(means, (2.5, 97.5))
    return Estimate(float(sample.mean()), float(low), float(high))


def resampled_means(sample: np.ndarray, resamples: int, rng: np.random.Generator) -> np.ndarray:
    """Return the means of bootstrap samples of a sample [Q], float64 [resamples]."""
    size = len(sample)
    return np.array([sample[rng.integers(size, size=size)].mean() for _ in range(resamples)])


def means_something(vector: np.ndarray) -> bool:
    """Return whether an embedding is finite and not zero, so that it has a direction."""
    return bool(np.isfinite(vector).all() and np.any(vector))


def unit_rows(vectors: Sequence[np.ndarray]) -> np.ndarray:
    """Return the vectors as float64 rows of length 1, [N, D]."""
    rows = np.stack(vectors).astype(np.float64)
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


@dataclass(frozen=True, slots=True, kw_only=True)
class CandidatePool:
    """The candidates that the queries of one data set are ranked over."""

    items: tuple[Item, ...]
    """The unique targets of the set, in order of appearance, then its unique distractors."""
    relevant: Mapping[str, frozenset[int]]
    """By `Pair.key` of the query: indices of the items that are right."""


def pools_of(
    pairs: Sequence[Pair],
    relevance: Relevance,
    distractors: Mapping[str, Iterable[Item]] = MappingProxyType({}),
) -> dict[str, CandidatePool]:
    """Return the candidate pool of each data set (`Pair.source`), as benchmarks rank per set.

    ``relevance`` says which of the items are right for each query. ``distractors`` are further
    items by data set.
    """
    by_source: dict[str, list[Pair]] = {}
    for pair in pairs:
        by_source.setdefault(pair.source, []).append(pair)
    pools = {}
    for source, own in by_source.items():
        items = {pair.target.key(): pair.target for pair in own}
        for item in distractors.get(source, ()):
            items.setdefault(item.key(), item)
        targets = list(items)
        relevant: dict[str, frozenset[int]] = {}
        # Many queries of a data set have the same right targets: they share one set of indices.
        shared: dict[frozenset[int], frozenset[int]] = {}
        names = list(dict.fromkeys(pair.key(Side.QUERY) for pair in own))
        for start in range(0, len(names), QUERY_BLOCK):
            block = names[start : start + QUERY_BLOCK]
            rows = relevance.right(block, targets)
            for name, row in zip(block, rows, strict=True):
                right = frozenset(np.flatnonzero(row).tolist())
                relevant[name] = shared.setdefault(right, right)
        pools[source] = CandidatePool(items=tuple(items.values()), relevant=relevant)
    return pools


def held_out_metrics(
    name: str,
    pairs: Sequence[Pair],
    query_vectors: Mapping[str, np.ndarray],
    candidate_vectors: Mapping[str, np.ndarray],
    *,
    relevance: Relevance,
) -> dict[str, float]:
    """Return the metrics of held-out pairs in training: shares of queries with hit@1.

    Each query is ranked over the unique targets of its data set among ``pairs``. ``name`` is the
    mean over all queries, `<name>_over_sets` the mean of the data sets' means, as benchmarks
    average, and `<name>_by_set/<data set>` the mean of one data set. Pairs with a vector that means
    nothing are left out; if no pair is left, this is logged and there is no metric.

    Args:
        name: of the metric.
        pairs: whose vectors all exist; leave out (and count) the ones that failed.
        query_vectors: [D] by `pair.key(Side.QUERY)`.
        candidate_vectors: [D] by `pair.target.key()`.
        relevance: which candidates are right; it knows ``pairs``.

    Raises:
        DataError: a vector is missing.
    """
    missing = sorted(
        {pair.key(Side.QUERY) for pair in pairs} - set(query_vectors)
        | {pair.target.key() for pair in pairs} - set(candidate_vectors)
    )
    if missing:
        raise DataError(
            f"hit@1 needs a vector for every query and target of its {len(pairs)} pairs; "
            f"{len(missing)} missing, first {missing[0]!r}; leave out pairs that failed to embed"
        )
    kept = [
        pair
        for pair in pairs
        if means_something(query_vectors[pair.key(Side.QUERY)])
        and means_something(candidate_vectors[pair.target.key()])
    ]
    if len(kept) < len(pairs):
        log.warning(
            "%s: %d of %d pairs left out, whose embeddings are not finite or zero",
            name,
            len(pairs) - len(kept),
            len(pairs),
        )
    if not kept:
        log.error("%s: no held-out pair is left to be measured; the metric is left out", name)
        return {}
    pairs = kept
    pools = pools_of(pairs, relevance)
    rows = {
        source: unit_rows([candidate_vectors[item.key()] for item in pool.items])
        for source, pool in pools.items()
    }
    rankings: dict[str, list[QueryRanking]] = {source: [] for source in pools}
    for pair in pairs:
        similarity = rows[pair.source] @ unit_rows([query_vectors[pair.key(Side.QUERY)]])[0]
        relevant = pools[pair.source].relevant[pair.key(Side.QUERY)]
        rankings[pair.source].append(rank_candidates(similarity, relevant))
    hits = {
        source: measure(
            [ranking.top for ranking in of_set],
            [dict.fromkeys(ranking.relevant, 1) for ranking in of_set],
            ["hit@1"],
        )["hit@1"]
        for source, of_set in rankings.items()
    }
    by_set = {source: float(of_set.mean()) for source, of_set in hits.items()}
    return {
        name: sum(float(of_set.sum()) for of_set in hits.values()) / len(pairs),
        f"{name}{OVER_SETS}": sum(by_set.values()) / len(by_set),
        **{f"{name}_by_set/{name_in_metric(source)}": value for source, value in by_set.items()},
    }
