"""The contrastive rank of traces: similarities and positives in, accuracy, margin and rank out.

Shapes: N traces (rows), M candidates (columns). One function serves both directions: pass the
transposed matrix for targets.
"""

from dataclasses import dataclass

import numpy as np

from data.errors import DataError


@dataclass(frozen=True, slots=True)
class ContrastiveRank:
    """How each row's positives stand among the candidates; every field is [N]."""

    accuracy: np.ndarray
    """Share of the row's positives among its top |positives|, in [0, 1]."""
    margin: np.ndarray
    """Mean positive similarity minus softmax-weighted negative similarity."""
    rank: np.ndarray
    """1-based rank of the best positive."""


def contrastive_rank(
    similarity: np.ndarray,
    positive: np.ndarray,
    *,
    temperature: float,
    valid: np.ndarray | None = None,
) -> ContrastiveRank:
    """Rank each row's positives among its candidates (spec, section 1.3, outcome reward).

    ``similarity`` is [N, M] of cosines, ``positive`` a boolean [N, M]; where ``valid`` (boolean
    [N, M]) is false the candidate does not exist for that row. Ties are broken against the trace:
    a negative as close as a positive ranks above it. Negatives are averaged with softmax weights
    at ``temperature``; a row without negatives has nothing to subtract.

    Raises:
        DataError: shapes disagree, a similarity is not finite, or a row has no positive.
    """
    scores = np.asarray(similarity, dtype=np.float64)
    valid = np.ones_like(positive) if valid is None else valid
    if scores.shape != positive.shape or valid.shape != positive.shape or scores.ndim != 2:
        raise DataError(
            f"expected similarity, positive and valid of one shape [N, M], found {scores.shape}, "
            f"{positive.shape}, {valid.shape}"
        )
    positive = positive & valid
    negative = ~positive & valid
    if not np.isfinite(scores[valid]).all():
        raise DataError("similarities must be finite; an embedding holds NaN or infinity")
    count = positive.sum(axis=1)
    if not count.all():
        raise DataError(f"rows {np.flatnonzero(count == 0)[:5].tolist()} have no valid positive")

    # Best first; at equal similarity negatives come first, candidates that do not exist last.
    order = np.lexsort((positive, np.where(valid, -scores, np.inf)), axis=1)
    ranked = np.take_along_axis(positive, order, axis=1)
    within = np.arange(scores.shape[1])[None, :] < count[:, None]
    accuracy = (ranked & within).sum(axis=1) / count
    rank = ranked.argmax(axis=1) + 1

    mean_positive = np.where(positive, scores, 0.0).sum(axis=1) / count
    logits = np.where(negative, scores / temperature, -np.inf)
    peak = logits.max(axis=1, initial=-np.inf)
    weights = np.exp(logits - np.where(np.isfinite(peak), peak, 0.0)[:, None])
    total = weights.sum(axis=1)
    weighted = np.where(negative, weights * np.where(negative, scores, 0.0), 0.0).sum(axis=1)
    mean_negative = np.divide(weighted, total, out=np.zeros_like(weighted), where=total > 0)
    return ContrastiveRank(accuracy=accuracy, margin=mean_positive - mean_negative, rank=rank)
