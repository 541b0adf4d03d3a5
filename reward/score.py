"""From traces and their embeddings to rewards, joined by key, in both directions.

A scoring round is one step: all its query traces against all its target traces and the other way
round. The reward of a trace depends on the round's candidates alone, never on the order in which
embeddings arrive.
"""

from collections.abc import Mapping, Sequence

import numpy as np

from configs.schema import RewardConfig
from data.errors import TCoTError
from data.tcot import parse
from data.types import (
    DroppedTrajectory,
    Item,
    Pair,
    RewardParts,
    ScoredTrajectory,
    Side,
    Trajectory,
)
from reward.contrast import SIMILARITY_DECIMALS, contrastive_rank

TOP_RETRIEVED = 3


def format_reward(text: str, item: Item, *, max_frames: int) -> float:
    """Return 1.0 for a strictly valid trace of that item, else 0.0."""
    try:
        frames = min(len(item.uris), max_frames)
        return float(parse(text, kind=item.kind, num_frames=frames).valid)
    except TCoTError:
        return 0.0


def score_round(
    trajectories: Sequence[Trajectory],
    vectors: Mapping[str, np.ndarray],
    pairs: Mapping[int, Pair],
    *,
    reward: RewardConfig,
    max_frames: int,
) -> tuple[list[ScoredTrajectory], list[DroppedTrajectory]]:
    """Return the rewards of one round, and what had to be dropped.

    ``vectors`` holds unit embeddings [D] by trajectory key (as text); a trace whose vector is
    missing or not finite is dropped. ``pairs`` holds the round's pairs by group serial. Total =
    format_weight * F + outcome_weight * accuracy_weight * accuracy * margin (spec, section 1.3).
    Pairs whose targets are interchangeable (equal `target_key`) are no negatives of each other.
    """
    usable = {key for key, vector in vectors.items() if np.isfinite(vector).all()}
    dropped = [
        DroppedTrajectory(one.key, "embedding_failed")
        for one in trajectories
        if str(one.key) not in usable
    ]
    sides = {
        side: [one for one in trajectories if one.key.group.side is side and str(one.key) in usable]
        for side in Side
    }
    scored: list[ScoredTrajectory] = []
    for side, other in ((Side.QUERY, Side.TARGET), (Side.TARGET, Side.QUERY)):
        rows, columns = sides[side], sides[other]
        answered = {one.key.group.serial for one in columns}
        lonely = [one for one in rows if one.key.group.serial not in answered]
        dropped += [DroppedTrajectory(one.key, "no_positive") for one in lonely]
        rows = [one for one in rows if one.key.group.serial in answered]
        if rows:
            scored += _score_side(rows, columns, vectors, pairs, reward, max_frames)
    return scored, dropped


def _score_side(
    rows: list[Trajectory],
    columns: list[Trajectory],
    vectors: Mapping[str, np.ndarray],
    pairs: Mapping[int, Pair],
    reward: RewardConfig,
    max_frames: int,
) -> list[ScoredTrajectory]:
    similarity = (
        np.stack([vectors[str(one.key)] for one in rows]).astype(np.float64)
        @ np.stack([vectors[str(one.key)] for one in columns]).astype(np.float64).T
    )
    similarity = similarity.round(SIMILARITY_DECIMALS)
    row_serial = np.array([one.key.group.serial for one in rows])
    column_serial = np.array([one.key.group.serial for one in columns])
    positive = row_serial[:, None] == column_serial[None, :]
    labels = {serial: index for index, serial in enumerate(sorted(pairs))}
    first_with: dict[str, int] = {}
    for serial, index in labels.items():
        labels[serial] = first_with.setdefault(pairs[serial].target_key(), index)
    row_label = np.array([labels[serial] for serial in row_serial])
    column_label = np.array([labels[serial] for serial in column_serial])
    valid = positive | (row_label[:, None] != column_label[None, :])
    ranked = contrastive_rank(similarity, positive, temperature=reward.temperature, valid=valid)
    nearest = np.argsort(-similarity, axis=1, kind="stable")[:, :TOP_RETRIEVED]

    scored = []
    for index, one in enumerate(rows):
        item = pairs[one.key.group.serial].item(one.key.group.side)
        form = format_reward(one.text, item, max_frames=max_frames)
        accuracy, margin = float(ranked.accuracy[index]), float(ranked.margin[index])
        outcome = reward.accuracy_weight * accuracy * margin
        if reward.gate_by_format:
            outcome *= form
        parts = RewardParts(
            format=form,
            outcome=outcome,
            accuracy=accuracy,
            margin=margin,
            rank=int(ranked.rank[index]),
            total=reward.format_weight * form + reward.outcome_weight * outcome,
        )
        retrieved = tuple(str(columns[int(j)].key) for j in nearest[index])
        scored.append(ScoredTrajectory(trajectory=one, parts=parts, retrieved=retrieved))
    return scored
