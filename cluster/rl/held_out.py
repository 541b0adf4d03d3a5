"""hit@1 on held-out pairs with the current Reasoner: greedy traces, kept, embedded and ranked."""

import logging
from collections.abc import Mapping, Sequence

import numpy as np

from cluster.rl.collector import Collector
from data.errors import DataError, RunFolderError
from data.stores.keys import content_key
from data.stores.traces import StoredTrace, Subject, TraceStore
from data.types import (
    DroppedTrajectory,
    GenerationRequest,
    GroupKey,
    Pair,
    Side,
    Trajectory,
    TrajectoryKey,
)
from evaluation.metrics import held_out_metrics

log = logging.getLogger(__name__)
SHOWN_FAILURES = 3
"""Failures spelled out in one line of the log."""


def measure_held_out(
    pairs: Sequence[Pair], collector: Collector, *, traces: TraceStore, made_by: str
) -> dict[str, float]:
    """Return hit@1 of greedy traces on held-out pairs, candidates reasoned about as well.

    The collector's engines sample and embed. Pairs that fail are left out; if no pair is left, the
    metric is left out too (see `held_out_metrics`).

    Args:
        pairs: what is measured.
        collector: its engines hold the weights that ``traces`` is of.
        traces: keeps what is sampled; what it holds already is not sampled again.
        made_by: the run and its step, for people.

    Raises:
        RunFolderError: the traces cannot be kept.
    """
    rollout, scorer = collector.rollout, collector.scorer
    ends = {(pair.key(side), side): pair for pair in pairs for side in Side}
    keys = {
        end: TrajectoryKey(GroupKey(index, pair.pair_id, end[1]), 0)
        for index, (end, pair) in enumerate(ends.items())
    }
    contents = {keys[end]: collector.content(pair, end[1]) for end, pair in ends.items()}
    subjects = {
        key: Subject(
            key=content_key(contents[key]),
            item=ends[end].item(end[1]),
            side=end[1],
            task=ends[end].source,
        )
        for end, key in keys.items()
    }
    kept_traces = _kept(subjects, traces)
    requests = [
        GenerationRequest(key=key, content=content, seed=0, greedy=True)
        for key, content in contents.items()
        if key not in kept_traces
    ]
    pictures, failed = collector.share_pictures_of(pairs)
    for reason in failed.values():
        log.warning("held-out picture left out: %s", reason)
    trajectories, lost = rollout.generate(requests, pictures)
    _keep(subjects, trajectories, lost, traces, made_by)
    texts = kept_traces | {trace.key: trace.text for trace in trajectories}
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


def _kept(
    subjects: Mapping[TrajectoryKey, Subject], traces: TraceStore
) -> dict[TrajectoryKey, str]:
    """Return the traces that were sampled by the same weights before, as before a kill."""
    by_content = traces.traces((s.key for s in subjects.values()), most_missing=1.0, remedy="")
    return {key: by_content[s.key] for key, s in subjects.items() if s.key in by_content}


def _keep(
    subjects: Mapping[TrajectoryKey, Subject],
    trajectories: Sequence[Trajectory],
    lost: Sequence[DroppedTrajectory],
    traces: TraceStore,
    made_by: str,
) -> None:
    made = [
        StoredTrace(
            of=subjects[trace.key],
            text=trace.text,
            finish=trace.finish,
            tokens=len(trace.response_ids),
        )
        for trace in trajectories
    ]
    made += [
        StoredTrace(of=subjects[trace.key], failed=f"{trace.reason} {trace.detail}")
        for trace in lost
    ]
    try:
        traces.add(made, made_by=made_by)
    except DataError as error:  # a disk that is full is no fault of the data
        raise RunFolderError(str(error)) from error
