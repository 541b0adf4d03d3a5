"""hit@1 on held-out pairs with the current Reasoner: greedy traces, embedded and ranked."""

import logging
from collections.abc import Sequence

import numpy as np

from cluster.rl.collector import Collector
from data.types import GenerationRequest, GroupKey, Pair, Side, TrajectoryKey
from evaluation.metrics import held_out_metrics

log = logging.getLogger(__name__)
SHOWN_FAILURES = 3
"""Failures spelled out in one line of the log."""


def measure_held_out(pairs: Sequence[Pair], collector: Collector) -> dict[str, float]:
    """Return hit@1 of greedy traces on held-out pairs, candidates reasoned about as well.

    The collector's engines sample and embed. Pairs that fail are left out; if no pair is left, the
    metric is left out too (see `held_out_metrics`).
    """
    rollout, scorer = collector.rollout, collector.scorer
    ends = {(pair.key(side), side): pair for pair in pairs for side in Side}
    keys = {
        end: TrajectoryKey(GroupKey(index, pair.pair_id, end[1]), 0)
        for index, (end, pair) in enumerate(ends.items())
    }
    requests = [
        GenerationRequest(
            key=keys[end], content=collector.content(pair, end[1]), seed=0, greedy=True
        )
        for end, pair in ends.items()
    ]
    pictures, failed = collector.share_pictures_of(pairs)
    for reason in failed.values():
        log.warning("held-out picture left out: %s", reason)
    trajectories, lost = rollout.generate(requests, pictures)
    texts = {trace.key: trace.text for trace in trajectories}
    inputs = [
        scorer.request(key, ends[end], texts[key]) for end, key in keys.items() if key in texts
    ]
    vectors, unembedded = scorer.embedder.embed(inputs, pictures)
    embeddings: dict[Side, dict[str, np.ndarray]] = {side: {} for side in Side}
    for (content, side), key in keys.items():
        if str(key) in vectors:
            embeddings[side][content] = vectors[str(key)]
    kept = [pair for pair in pairs if all(pair.key(side) in embeddings[side] for side in Side)]
    if len(kept) < len(pairs):
        reasons = [f"{trace.key}: {trace.reason}: {trace.detail}" for trace in lost]
        reasons += [f"{key}: not embedded: {reason}" for key, reason in unembedded.items()]
        log.warning(
            "held-out: %d of %d pairs left out (%d traces, %d embeddings failed): %s",
            len(pairs) - len(kept),
            len(pairs),
            len(lost),
            len(unembedded),
            "; ".join(reasons[:SHOWN_FAILURES]),
        )
    return held_out_metrics(
        "eval/hit_at_1",
        kept,
        embeddings[Side.QUERY],
        embeddings[Side.TARGET],
        relevance=scorer.relevance,
    )
