"""Which variants of an evaluation differ: paired differences on the queries that both ranked."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from evaluation.scores.paired import Difference, compare
from evaluation.scores.set_result import SetResult


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """One variant against another, by the main metric of each set, all sets alike."""

    first: str
    second: str
    difference: Difference
    """The first minus the second."""


def comparisons(
    pairs: Sequence[tuple[str, str]],
    set_results: Mapping[str, Sequence[SetResult]],
    *,
    resamples: int,
    seed: int,
) -> tuple[Comparison, ...]:
    """Return the comparison of each pair of variants, in their order.

    A set in which no query was ranked in both is left out, and so is a pair without any set.

    Args:
        pairs: names of variants, the first is compared with the second.
        set_results: results of the sets, by variant.
        resamples: see `compare`.
        seed: see `compare`.
    """
    by_query = {
        variant: {result.name: result.by_query() for result in results}
        for variant, results in set_results.items()
    }
    made = []
    for first, second in pairs:
        ours, theirs = by_query.get(first, {}), by_query.get(second, {})
        shared = [name for name in ours if ours[name].keys() & theirs.get(name, {}).keys()]
        if shared:
            difference = compare(
                {name: ours[name] for name in shared},
                {name: theirs[name] for name in shared},
                resamples=resamples,
                seed=seed,
            )
            made.append(Comparison(first=first, second=second, difference=difference))
    return tuple(made)
