"""What a trace does to each query: its rank with and without one, among the same candidates.

The candidates have their traces both times. That is what a user has: one index, made once, and
queries that are embedded with a trace or without one. So "without" is not the variant without
traces, which embeds candidates bare, too.
"""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from data.types import Evidence
from evaluation.metrics import DEPTH, unit_rows
from evaluation.ranking import rank_queries
from evaluation.runner import Reason, Settings, subjects_of
from evaluation.sets import End, EvaluationSet, candidate_end, ends_of, query_end
from evaluation.vectors import Embed, Vectors, ask, embed_asked

Tokens = Callable[[Sequence[str]], Mapping[str, int]]
"""Generated tokens by `Subject.key`, of the Reasoner's greedy traces; absent where unknown."""
TEMPERATURE = 0.05
"""Of the softmax whose entropy is a feature: cosines that differ by so much differ by a factor e.
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class TraceEffects:
    """What is known of Q queries of which each was ranked with and without its trace."""

    features: np.ndarray
    """float32 [Q, D + 3], see `features_of`"""
    hit_without: np.ndarray
    """bool [Q]: hit@1 without a trace"""
    hit_with: np.ndarray
    """bool [Q]: hit@1 with the trace"""
    tokens: np.ndarray
    """float64 [Q]: generated tokens of the trace"""
    excluded: Mapping[str, int]
    """How many further queries could not be ranked both times, or have a trace of unknown cost, by
    reason."""


def trace_effects(
    groups: Sequence[Sequence[EvaluationSet]],
    *,
    reason: Reason,
    embed: Embed,
    tokens: Tokens,
    settings: Settings,
) -> list[TraceEffects]:
    """Return the effects of traces on the queries of each group of sets.

    Reasoner and Embedder are each called once, for all groups.

    Args:
        groups: sets that are ranked, such as those to train on and those that are held out.
        reason: the Reasoner.
        embed: the Embedder.
        tokens: who knows what traces cost.
        settings: what models read.
    """
    ends: dict[End, str] = {}
    queries: dict[End, None] = {}
    for data_set in (data_set for group in groups for data_set in group):
        queries |= {query_end(data_set, query): None for query in data_set.queries}
        for end in ends_of(data_set):
            ends.setdefault(end, data_set.name)
    keys, subjects = subjects_of(ends, settings)
    answers = reason(subjects)
    traces = {end: answers.get(key) for end, key in keys.items()}
    generated = tokens([keys[end] for end in queries])
    reading = {"max_frames": settings.max_frames, "item_tokens": settings.item_tokens}
    asked = [
        ask(queries, None, Evidence.NONE, **reading),
        ask(ends, traces, Evidence.FULL, **reading),
    ]
    (bare, traced), _ = embed_asked(ends, asked, embed)
    costs = {end: generated[keys[end]] for end in queries if keys[end] in generated}
    return [_of_group(group, bare, traced, costs) for group in groups]


def features_of(query: np.ndarray, nearest: Sequence[np.ndarray]) -> np.ndarray:
    """Return what a gate may know of a query without a trace, float32 [D + 3].

    That is its vector, the similarity of the nearest candidate, how far it is above the second one,
    and the entropy in nats of the nearest ones' softmax at TEMPERATURE. A second candidate that is
    not there counts as one of similarity -1.

    Args:
        query: [D]
        nearest: vectors [D] of the nearest candidates, best first.
    """
    vector, *others = unit_rows([query, *nearest])
    similarity = np.array([other @ vector for other in others])
    shares = np.exp((similarity - similarity[0]) / TEMPERATURE)
    shares /= shares.sum()
    entropy = -float(shares @ np.log(shares))
    second = similarity[1] if len(similarity) > 1 else -1.0
    searched = (similarity[0], similarity[0] - second, entropy)
    return np.array([*vector, *searched], dtype=np.float32)


def _of_group(
    sets: Sequence[EvaluationSet], bare: Vectors, traced: Vectors, costs: Mapping[End, int]
) -> TraceEffects:
    features: list[np.ndarray] = []
    hits: list[tuple[bool, bool]] = []
    tokens: list[int] = []
    excluded: Counter[str] = Counter()
    for data_set in sets:
        candidates = {
            key: traced.found[end]
            for key, item in data_set.candidates.items()
            if (end := candidate_end(item)) in traced.found
        }
        ends = {query.query_id: query_end(data_set, query) for query in data_set.queries}
        reasons = {name: _why_not(end, bare, traced, costs) for name, end in ends.items()}
        known = {name: end for name, end in ends.items() if not reasons[name]}
        without = rank_queries(
            data_set, {n: bare.found[end] for n, end in known.items()}, candidates
        )
        with_trace = rank_queries(
            data_set, {n: traced.found[end] for n, end in known.items()}, candidates
        )
        for name, end in ends.items():
            if name not in without:
                excluded[reasons[name] or "no right candidate could be embedded"] += 1
                continue
            nearest = [candidates[key] for key in without[name].benchmark_order[:DEPTH]]
            features.append(features_of(bare.found[end], nearest))
            hits.append((without[name].rank == 1, with_trace[name].rank == 1))
            tokens.append(costs[end])
    hit_without, hit_with = np.array(hits, dtype=bool).reshape(-1, 2).T
    return TraceEffects(
        features=np.array(features, dtype=np.float32),
        hit_without=hit_without,
        hit_with=hit_with,
        tokens=np.array(tokens, dtype=np.float64),
        excluded=dict(excluded),
    )


def _why_not(end: End, bare: Vectors, traced: Vectors, costs: Mapping[End, int]) -> str:
    """Return why nothing can be said of a query; empty: it can."""
    for vectors in (bare, traced):
        if end in vectors.failed:
            return vectors.failed[end]
    return "" if end in costs else "tokens of its trace unknown"
