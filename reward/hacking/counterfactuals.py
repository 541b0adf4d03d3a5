"""What a round's traces would have earned otherwise: without evidence, with another item's trace.

Plans what to embed and scores it against the same round; embedding is the caller's. In a step,
between scoring and training:

    planned = counterfactuals(scored, pairs, max_frames=..., evidence=...)
    embedded, _ = pool.embed([counterfactual.request for counterfactual in planned], pictures)
    probe = score_probe(planned, vectors, embedded, score=lambda vectors, keys: ...)

The round's own pictures suffice: another item's trace points at places in this item's pictures.
"""

import zlib
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum

import numpy as np

from data.embed_inputs import embed_content
from data.relevance import Relevance
from data.types import (
    Content,
    EmbedRequest,
    Evidence,
    GroupKey,
    Pair,
    ScoredTrajectory,
    Side,
    TrajectoryKey,
)

SAMPLE = 32
"""Traces a change is tried on. With 16 the draw alone makes evidence look worthless in every
twentieth of the demo's rounds where it is worth least; with 32 that is rare."""


class Change(StrEnum):
    """What is different about the trace that the Embedder reads."""

    WITHOUT_EVIDENCE = "without_evidence"
    OTHER_TRACE = "other_trace"


@dataclass(frozen=True, slots=True, kw_only=True)
class Counterfactual:
    """One changed input and the trace that it stands in for."""

    key: TrajectoryKey
    change: Change
    request: EmbedRequest
    """Its key names both, so that it collides with no input of the round."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Probe:
    """Rewards of one round by trajectory key; a trace that could not be re-scored is absent."""

    as_is: Mapping[str, float]
    changed: Mapping[Change, Mapping[str, float]]
    """Every key in here is also in ``as_is``."""


def counterfactuals(
    scored: Sequence[ScoredTrajectory],
    pairs: Mapping[int, Pair],
    *,
    max_frames: int,
    relevance: Relevance,
    item_tokens: int,
    evidence: Evidence = Evidence.FULL,
) -> list[Counterfactual]:
    """Return the changed inputs of at most SAMPLE traces per change, drawn by key alone.

    Only traces with an outcome are drawn: a trace that earns nothing can lose nothing, and early in
    a run a misleading crop is rightly worth less than no crop. The other trace has the same kind
    and side, and its item has another right target by ``relevance``. ``pairs`` is by group serial;
    ``evidence`` and ``item_tokens`` are how the round itself was embedded.
    """

    def content(trace: ScoredTrajectory, text: str, *, evidence: Evidence) -> Content:
        group = trace.trajectory.key.group
        item = pairs[group.serial].item(group.side)
        return embed_content(
            item, text, max_frames=max_frames, item_tokens=item_tokens, evidence=evidence
        )

    order = sorted(scored, key=lambda trace: _draw(str(trace.trajectory.key)))
    others = _Others(order, pairs, relevance)
    planned: dict[Change, list[Counterfactual]] = {change: [] for change in Change}
    for trace in order:
        short = [change for change, drawn in planned.items() if len(drawn) < SAMPLE]
        if not short:
            break
        if trace.parts.outcome <= 0:
            continue
        text = trace.trajectory.text
        inputs = {}
        if Change.WITHOUT_EVIDENCE in short:
            bare = content(trace, text, evidence=Evidence.TEXT)
            if bare != content(trace, text, evidence=evidence):
                inputs[Change.WITHOUT_EVIDENCE] = bare
        if Change.OTHER_TRACE in short:
            other = others.draw(trace)
            if other is not None:
                inputs[Change.OTHER_TRACE] = content(
                    trace, other.trajectory.text, evidence=evidence
                )
        for change, changed_content in inputs.items():
            key = trace.trajectory.key
            request = EmbedRequest(key=f"{key}#{change}", content=changed_content)
            planned[change].append(Counterfactual(key=key, change=change, request=request))
    return [counterfactual for drawn in planned.values() for counterfactual in drawn]


def score_probe(
    planned: Sequence[Counterfactual],
    vectors: Mapping[str, np.ndarray],
    embedded: Mapping[str, np.ndarray],
    *,
    score: Callable[[Mapping[str, np.ndarray], Collection[str]], Iterable[ScoredTrajectory]],
) -> Probe:
    """Return what the sampled traces earned, and would have earned, in the same round.

    ``vectors`` are the round's unit embeddings [D] by trajectory key, ``embedded`` those of the
    planned requests by request key, without those that failed. ``score`` scores, in the round
    with the vectors that it is given, the traces of the keys that it is given, all else unchanged
    (same candidates, no judge: the judge reads texts, which do not change here). It is called once
    as is, then once per change and side, so that all traces of a side change at once while what
    they are ranked against stays.
    """
    as_is = _totals(score(vectors, {str(counterfactual.key) for counterfactual in planned}))
    changed: dict[Change, dict[str, float]] = {change: {} for change in Change}
    for change in Change:
        for side in Side:
            sample = {
                str(counterfactual.key): embedded[counterfactual.request.key]
                for counterfactual in planned
                if counterfactual.change is change
                and counterfactual.key.group.side is side
                and counterfactual.request.key in embedded
            }
            if sample:
                totals = _totals(score({**vectors, **sample}, sample.keys()))
                changed[change] |= {
                    key: totals[key] for key in sample if key in totals and key in as_is
                }
    return Probe(as_is=as_is, changed=changed)


class _Others:
    """The traces of a round, to draw those of other items from; compared group by group."""

    def __init__(
        self, order: Sequence[ScoredTrajectory], pairs: Mapping[int, Pair], relevance: Relevance
    ) -> None:
        self._groups: dict[GroupKey, list[int]] = {}
        """Indices of a group's traces in the order."""
        self._order = order
        for index, trace in enumerate(order):
            self._groups.setdefault(trace.trajectory.key.group, []).append(index)
        pair_index = {serial: index for index, serial in enumerate(pairs)}
        self._pair_index = {group: pair_index[group.serial] for group in self._groups}
        self._twins = relevance.twins(list(pairs.values()))
        self._kind = {group: pairs[group.serial].item(group.side).kind for group in self._groups}
        self._found: dict[GroupKey, list[int]] = {}

    def draw(self, one: ScoredTrajectory) -> ScoredTrajectory | None:
        """Return the trace of another item that is drawn for this trace, if there is any."""
        key = one.trajectory.key
        if key.group not in self._found:
            self._found[key.group] = self._of_others(key.group)
        indices = self._found[key.group]
        return self._order[indices[_draw(str(key)) % len(indices)]] if indices else None

    def _of_others(self, group: GroupKey) -> list[int]:
        twins = self._twins[self._pair_index[group]]
        return sorted(
            index
            for other, indices in self._groups.items()
            if other.side is group.side
            and self._kind[other] is self._kind[group]
            and not twins[self._pair_index[other]]
            for index in indices
        )


def _draw(key: str) -> int:
    return zlib.crc32(key.encode())


def _totals(scored: Iterable[ScoredTrajectory]) -> dict[str, float]:
    return {str(trace.trajectory.key): trace.parts.total for trace in scored}
