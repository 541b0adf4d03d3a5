"""A scoring round: all traces of a step, each ranked among one declared set of candidates.

A query trace is ranked among the target traces of the step and those that the bank adds, a target
trace among the query traces. All traces of a side meet the same candidates, so ranks do not depend
on the order in which embeddings arrive or on how many actors computed them.
"""

import hashlib
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from configs.schema import RewardConfig
from data.types import DroppedTrajectory, Pair, Side, Trajectory
from reward.bank import Candidate, CandidateBank
from reward.contrast import SIMILARITY_DECIMALS, contrastive_rank

TOP_RETRIEVED = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class RankedTrajectory:
    """A trace with its place among the round's candidates."""

    trajectory: Trajectory
    accuracy: float
    margin: float
    rank: int
    gain: float
    """Margin minus the margin of the item embedded without a trace; 0 where that is not used."""
    positives: tuple[str, ...]
    """Keys of the other side's traces of the same pair, by key."""
    negatives: tuple[str, ...]
    """Of every other pair of the step the key of its closest trace, closest pair first."""
    retrieved: tuple[str, ...]
    """Keys of the nearest candidates, best first."""
    candidates_id: str
    candidates_size: int
    false_negatives: int
    """Candidates left out because they are right as well."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Round:
    """What became of a step's traces, and what later rounds may rank against."""

    ranked: list[RankedTrajectory]
    dropped: list[DroppedTrajectory]
    candidates: Mapping[Side, list[Candidate]]
    """The step's own, for the bank."""


def rank_round(
    trajectories: Sequence[Trajectory],
    vectors: Mapping[str, np.ndarray],
    pairs: Mapping[int, Pair],
    bank: CandidateBank,
    *,
    reward: RewardConfig,
    plain: Mapping[tuple[int, Side], np.ndarray] | None = None,
    only: Collection[str] | None = None,
) -> Round:
    """Rank every trace of a step in both directions, among the step's and the bank's candidates.

    ``vectors`` holds unit embeddings [D] by trajectory key (as text), ``pairs`` the step's pairs by
    group serial, ``plain`` the embeddings of items without a trace (None: no gain is asked for).
    With ``only``, just the traces of these keys are ranked; the candidates are all the same.

    What cannot be ranked is dropped with a reason: `embedding_failed` (missing, not finite, or of
    another width than most), `no_positive` (nothing of the other side is left) and `no_negative`
    (every candidate is right for it, as where all pairs of a step share one target: what is left
    of the reward would be the bare similarity, which pays for making all embeddings alike).
    """
    usable, dropped = _usable(trajectories, vectors, plain)
    sides = {side: _candidates(usable, side, vectors, pairs) for side in Side}
    drawn = {
        side: bank.draw(side, np.stack([one.vector for one in own])) if own else []
        for side, own in sides.items()
    }
    ranked: list[RankedTrajectory] = []
    for side, other in ((Side.QUERY, Side.TARGET), (Side.TARGET, Side.QUERY)):
        rows = [
            one
            for one in usable
            if one.key.group.side is side and (only is None or str(one.key) in only)
        ]
        step = [one for one in usable if one.key.group.side is other]
        answered = {one.key.group.serial for one in step}
        lonely = [one for one in rows if one.key.group.serial not in answered]
        dropped += [DroppedTrajectory(one.key, "no_positive") for one in lonely]
        rows = [one for one in rows if one.key.group.serial in answered]
        if rows:
            columns = [*sides[other], *drawn[other]]
            some, lost = _rank_side(rows, step, columns, vectors, pairs, reward, plain)
            ranked += some
            dropped += lost
    return Round(ranked=ranked, dropped=dropped, candidates=sides)


def _usable(
    trajectories: Sequence[Trajectory],
    vectors: Mapping[str, np.ndarray],
    plain: Mapping[tuple[int, Side], np.ndarray] | None,
) -> tuple[list[Trajectory], list[DroppedTrajectory]]:
    """Return the traces that can be ranked, in the order of their keys, and those that cannot."""
    widths = Counter(vector.shape for vector in vectors.values())
    width = max(widths, key=lambda shape: (widths[shape], shape), default=())
    usable, dropped = [], []
    for one in sorted(trajectories, key=lambda one: str(one.key)):
        group = one.key.group
        used = [vectors.get(str(one.key))]
        if plain is not None:
            used.append(plain.get((group.serial, group.side)))
        if any(vector is None for vector in used):
            problem = "no embedding"
        elif any(vector.shape != width for vector in used):
            found = [vector.shape for vector in used]
            problem = f"expected embeddings of the round's shape {width}, found {found}"
        elif not all(np.isfinite(vector).all() for vector in used):
            problem = "the embedding is not finite"
        else:
            usable.append(one)
            continue
        dropped.append(DroppedTrajectory(one.key, "embedding_failed", problem))
    return usable, dropped


def _candidates(
    trajectories: Sequence[Trajectory],
    side: Side,
    vectors: Mapping[str, np.ndarray],
    pairs: Mapping[int, Pair],
) -> list[Candidate]:
    return [
        Candidate(
            key=str(one.key),
            content=pairs[one.key.group.serial].item(side).key(),
            target=pairs[one.key.group.serial].target_key(),
            vector=vectors[str(one.key)],
        )
        for one in trajectories
        if one.key.group.side is side
    ]


def _rank_side(
    rows: list[Trajectory],
    step: list[Trajectory],
    columns: list[Candidate],
    vectors: Mapping[str, np.ndarray],
    pairs: Mapping[int, Pair],
    reward: RewardConfig,
    plain: Mapping[tuple[int, Side], np.ndarray] | None,
) -> tuple[list[RankedTrajectory], list[DroppedTrajectory]]:
    """Rank one side's traces; the first of the ``columns`` are the ``step``'s, then the bank's."""
    serials = [one.key.group.serial for one in rows]
    column_serials = np.array([one.key.group.serial for one in step])
    # All rows of a group have the same positives and the same false negatives.
    gold = {serial: column_serials == serial for serial in dict.fromkeys(serials)}
    beyond = np.zeros(len(columns) - len(step), dtype=bool)
    gold = {serial: np.concatenate([mask, beyond]) for serial, mask in gold.items()}
    vectors_MD = np.stack([one.vector for one in columns]).astype(np.float64)
    twins = _twins(gold, pairs, step[0].key.group.side, columns, vectors_MD, reward)
    positive = np.stack([gold[serial] for serial in serials])
    valid = ~np.stack([twins[serial] for serial in serials])
    kept = (valid & ~positive).any(axis=1)
    dropped = [
        DroppedTrajectory(one.key, "no_negative", "every candidate of the round is right for it")
        for one, keep in zip(rows, kept, strict=True)
        if not keep
    ]
    if not kept.any():
        return [], dropped
    rows = [one for one, keep in zip(rows, kept, strict=True) if keep]
    positive, valid = positive[kept], valid[kept]

    def similarities(embeddings: list[np.ndarray]) -> np.ndarray:
        product = np.stack(embeddings).astype(np.float64) @ vectors_MD.T
        return product.round(SIMILARITY_DECIMALS)

    similarity = similarities([vectors[str(one.key)] for one in rows])
    found = contrastive_rank(similarity, positive, temperature=reward.temperature, valid=valid)
    gain = np.zeros(len(rows))
    if plain is not None:
        without = similarities([plain[one.key.group.serial, one.key.group.side] for one in rows])
        bare = contrastive_rank(without, positive, temperature=reward.temperature, valid=valid)
        gain = found.margin - bare.margin
    keys = [one.key for one in columns]
    declared = hashlib.sha256("\n".join(sorted(keys)).encode()).hexdigest()[:16]
    order = np.argsort(-similarity, axis=1, kind="stable")
    rival = valid & ~positive
    rival[:, len(step) :] = False
    ranked = []
    for index, one in enumerate(rows):
        rivals = order[index][rival[index, order[index]]]
        _, closest = np.unique(column_serials[rivals], return_index=True)
        ranked.append(
            RankedTrajectory(
                trajectory=one,
                accuracy=float(found.accuracy[index]),
                margin=float(found.margin[index]),
                rank=int(found.rank[index]),
                gain=float(gain[index]),
                positives=tuple(keys[j] for j in np.flatnonzero(positive[index])),
                negatives=tuple(keys[j] for j in rivals[np.sort(closest)]),
                retrieved=tuple(keys[j] for j in order[index, :TOP_RETRIEVED]),
                candidates_id=declared,
                candidates_size=len(columns),
                false_negatives=int((~valid[index]).sum()),
            )
        )
    return ranked, dropped


def _twins(
    gold: Mapping[int, np.ndarray],
    pairs: Mapping[int, Pair],
    side: Side,
    columns: Sequence[Candidate],
    vectors_MD: np.ndarray,
    reward: RewardConfig,
) -> dict[int, np.ndarray]:
    """Return by serial which columns, boolean [M], are right without being positives.

    Those of the same content as the gold item, those with an interchangeable target, and those
    whose embedding is closer than ``false_negative_similarity`` to one of the gold candidates.
    """
    content = np.array([one.content for one in columns])
    target = np.array([one.target for one in columns])
    twins = {}
    for serial, positive in gold.items():
        pair = pairs[serial]
        same = (content == pair.item(side).key()) | (target == pair.target_key())
        if reward.false_negative_similarity < 1:
            closeness = (vectors_MD @ vectors_MD[positive].T).max(axis=1)
            same |= closeness > reward.false_negative_similarity
        twins[serial] = same & ~positive
    return twins
