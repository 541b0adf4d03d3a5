"""Whether two Reasoners or two Embedders differ: a paired bootstrap over the same queries."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from data.errors import DataError
from evaluation.metrics import resampled_means

ByQuery = Mapping[str, Mapping[str, float]]
"""A metric by set, then by query."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Difference:
    """The first minus the second, with its 95 % bootstrap interval."""

    mean: float
    low: float
    high: float
    p_value: float
    """Two-sided: twice the share of the resamples whose difference is 0 or of the other sign."""
    queries: int
    """Queries that both have."""
    left_out: int
    """Queries that only one of them has; a difference cannot be paired there."""


def compare(first: ByQuery, second: ByQuery, *, resamples: int, seed: int) -> Difference:
    """Return the mean difference of a metric on the same queries.

    Over several sets it is the mean of the sets' means. Queries are resampled within their set, so
    that the interval says what other queries of the same sets would give, not other sets.

    Args:
        first: values of one system, such as `SetResult.by_query` of each set.
        second: values of the other one on the same sets.
        resamples: number of bootstrap samples; p is at least 2 / (resamples + 1).
        seed: of the resampling.

    Raises:
        DataError: the sets are not the same, or a set has no query that both have.
    """
    if not first or set(first) != set(second):
        raise DataError(
            f"expected values of the same sets from both, found {len(first)} and {len(second)} "
            f"sets; only one has {sorted(set(first) ^ set(second))[:5]}; compare what both have"
        )
    rng = np.random.default_rng(seed)
    means, resampled, queries, left_out = [], np.zeros(resamples), 0, 0
    for name, values in first.items():
        shared = [query for query in values if query in second[name]]
        if not shared:
            raise DataError(
                f"set {name}: no query has a value from both, of {len(values)} and "
                f"{len(second[name])}; evaluate both on the same queries"
            )
        differences = np.array([values[query] - second[name][query] for query in shared])
        means.append(differences.mean())
        resampled += resampled_means(differences, resamples, rng) / len(first)
        queries += len(shared)
        left_out += len(set(values) ^ set(second[name]))
    # Sums of the same numbers in another order are the same difference, above all where it is 0.
    resampled = resampled.round(12)
    low, high = np.percentile(resampled, (2.5, 97.5))
    # The sample itself counts as one more: no p is 0.
    tail = min((resampled <= 0).sum(), (resampled >= 0).sum())
    return Difference(
        mean=float(np.mean(means)),
        low=float(low),
        high=float(high),
        p_value=float(min(1.0, 2 * (tail + 1) / (resamples + 1))),
        queries=queries,
        left_out=left_out,
    )
