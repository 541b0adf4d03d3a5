"""hit@1 against the tokens of traces, for queries that are traced in an order.

Shapes: Q queries, G places of an order, R bootstrap samples.
"""

import numpy as np

from evaluation.adaptive.effects import TraceEffects
from evaluation.adaptive.figures import CurvePoint, Saving
from evaluation.metrics import Estimate

SHARES = np.linspace(0, 1, 21)
"""Points of a curve: tokens as shares of those that always tracing takes."""
EQUAL = 1e-9
"""hit@1 that differs by less is the same."""
WAYS = ("gate", "random", "oracle")


def path(
    order: np.ndarray, effects: TraceEffects, weights: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Return mean tokens and hit@1 after each place of an order, both float64 [G + 1].

    The first entry is that of no trace. Between two entries lie the expectations of a random order
    within a place.

    Args:
        order: int [Q], the place from 0 at which a query is traced; -1: it never is.
        effects: of the queries.
        weights: float64 [Q], how often each query counts.
    """
    traced = order >= 0
    places = order[traced]
    gains = (effects.hit_with * 1.0 - effects.hit_without) * weights
    steps = [np.bincount(places, values[traced]) for values in (effects.tokens * weights, gains)]
    tokens, hits = (np.concatenate([[0.0], np.cumsum(step)]) for step in steps)
    size = weights.sum()
    return tokens / size, (effects.hit_without @ weights + hits) / size


def orders(effects: TraceEffects, scores: np.ndarray) -> tuple[np.ndarray, ...]:
    """Return the order of each of `WAYS`, int [Q] each.

    The gate traces by falling score, float64 [Q], equal ones at the same place. The random gate
    has all in one place. The oracle traces what turns a miss into a hit, the cheapest first.
    """
    helps = effects.hit_with & ~effects.hit_without
    oracle = np.full(len(scores), -1)
    oracle[helps] = np.unique(effects.tokens[helps], return_inverse=True)[1]
    gate = np.unique(-scores, return_inverse=True)[1]
    return gate, np.zeros(len(scores), dtype=int), oracle


def tokens_for(tokens: np.ndarray, hits: np.ndarray, target: float) -> float:
    """Return the fewest tokens with which a `path` first meets a hit@1 that it meets somewhere."""
    first = int(np.flatnonzero(hits >= target - EQUAL)[0])
    if first == 0:
        return 0.0
    share = min(1.0, (target - hits[first - 1]) / (hits[first] - hits[first - 1]))
    return float(tokens[first - 1] + share * (tokens[first] - tokens[first - 1]))


def curve_and_saving(
    effects: TraceEffects, scores: np.ndarray, *, margin: float, resamples: int, seed: int
) -> tuple[tuple[CurvePoint, ...], Saving]:
    """Return the curves of `WAYS`, and what they save at the hit@1 of always tracing less a margin.

    Intervals are of queries drawn anew; the gate's scores stay as they are.

    Args:
        effects: of the queries.
        scores: of the gate, float64 [Q]; the highest is traced first.
        margin: by how much hit@1 may be below that of always tracing.
        resamples: bootstrap samples.
        seed: of the samples.
    """
    size = len(scores)
    ways = orders(effects, scores)
    rng = np.random.default_rng(seed)

    def measured(weights: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return hit@1 [3, points], the tokens that meet the target [3], and the shares of the
        oracle's saving [2]."""
        paths = [path(order, effects, weights) for order in ways]
        most, hit_with = effects.tokens @ weights / size, effects.hit_with @ weights / size
        hits = np.array([np.interp(SHARES * most, *of_way) for of_way in paths])
        needed = np.array([tokens_for(*of_way, hit_with - margin) for of_way in paths])
        saved = most - needed
        return hits, needed, saved[:2] / saved[2] if saved[2] > EQUAL else np.full(2, np.nan)

    hits, needed, shares = measured(np.ones(size))
    drawn = [
        measured(np.bincount(rng.integers(size, size=size), minlength=size).astype(float))
        for _ in range(resamples)
    ]
    low, high = np.percentile([sample[0] for sample in drawn], (2.5, 97.5), axis=0)
    points = tuple(
        CurvePoint(
            tokens=float(share * effects.tokens.mean()),
            **{
                name: Estimate(*map(float, (hits[way, at], low[way, at], high[way, at])))
                for way, name in enumerate(WAYS)
            },
        )
        for at, share in enumerate(SHARES)
    )
    of_oracle: list[Estimate | None] = [None, None]
    if np.isfinite(shares).all():
        low, high = np.nanpercentile([sample[2] for sample in drawn], (2.5, 97.5), axis=0)
        of_oracle = [Estimate(*map(float, row)) for row in zip(shares, low, high, strict=True)]
    gate, random, oracle = map(float, needed)
    return points, Saving(
        gate=gate,
        random=random,
        oracle=oracle,
        of_oracle=of_oracle[0],
        random_of_oracle=of_oracle[1],
    )
