"""The contrastive rank of traces: similarities and positives in, accuracy, margin and rank out.

Shapes: N traces (rows), M candidates (columns), D dimensions. One function serves both directions:
pass the transposed matrix for targets. `contrastive_rank` and the faster `rank_in_order` take the
matrix and any masks, `rank_embeddings` takes embeddings and keys and never holds the matrix.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from data.errors import DataError

SIMILARITY_DECIMALS = 9
"""Equal embeddings must tie: a matrix product differs in its last bits from place to place."""
ROW_BLOCK, COLUMN_BLOCK, FIRST_COLUMNS = 1024, 1024, 64
"""Similarities held at once; a block's width is a multiple of 8 and under 2048: see `_count`."""
SAFE_LOGIT = 40.0
"""Softmax weights of logits within this fit into float32 without subtracting a peak."""
EXACT_CHUNK = 128
"""Similarities computed in float64 at once; small enough to stay in a core's cache."""
WHOLE = 1 << 17
"""A matrix of at most so many similarities is simply made and ranked."""
ABSENT = -1e30
"""Logit of a candidate that is no negative: weight 0, below every positive."""


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
    """Rank each row's positives among its candidates (outcome reward; Embed-RL, equation 3).

    ``similarity`` is [N, M] of cosines, ``positive`` a boolean [N, M]; where ``valid`` (boolean
    [N, M]) is false the candidate does not exist for that row. Ties are broken against the trace:
    a negative as close as a positive ranks above it. Negatives are averaged with softmax weights
    at ``temperature``; a row without negatives has nothing to subtract. Float64 throughout; the
    order of rows and columns changes no bit of the result.

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
    if not np.isfinite(scores[valid]).all():
        raise DataError("similarities must be finite; an embedding holds NaN or infinity")
    positive = positive & valid
    count = positive.sum(axis=1)
    if not count.all():
        raise DataError(f"rows {np.flatnonzero(count == 0)[:5].tolist()} have no valid positive")

    # Best first; what is absent stands last. Sums in sorted order do not depend on the columns'.
    positives = -np.sort(np.where(positive, -scores, np.inf), axis=1)[:, : count.max(initial=0)]
    negatives = -np.sort(np.where(~positive & valid, -scores, np.inf), axis=1)
    # The k-th best positive is among the top P if at most P - k negatives are as close, that is
    # if the (P - k + 1)-th closest negative is further away.
    k = np.arange(1, positives.shape[1] + 1)
    rival = np.take_along_axis(negatives, np.maximum(count[:, None] - k, 0), axis=1)
    accuracy = ((rival < positives) & (k <= count[:, None])).sum(axis=1) / count
    best = positives.max(axis=1, initial=-np.inf)
    rank = 1 + (negatives >= best[:, None]).sum(axis=1)

    mean_positive = np.where(np.isfinite(positives), positives, 0.0).sum(axis=1) / count
    peak = negatives.max(axis=1, initial=-np.inf)
    has_negative = np.isfinite(peak)
    peak = np.where(has_negative, peak, 0.0)
    weights = np.exp((negatives - peak[:, None]) / temperature)
    weighted = (weights * np.where(np.isfinite(negatives), negatives, 0.0)).sum(axis=1)
    mean_negative = weighted / np.where(has_negative, weights.sum(axis=1), 1.0)
    return ContrastiveRank(accuracy=accuracy, margin=mean_positive - mean_negative, rank=rank)


def rank_in_order(
    similarity: np.ndarray, positive: np.ndarray, *, temperature: float, valid: np.ndarray
) -> ContrastiveRank:
    """Return `contrastive_rank`, but for the last bits of a margin, in less time.

    For columns whose order is fixed: the margin's sums run in it, nothing is sorted.

    Raises:
        DataError: as `contrastive_rank`, if the similarities [N, M] are not finite where valid, or
            a row has no positive.
    """
    scores = similarity
    if not np.isfinite(scores).all():
        scores = np.where(valid, scores, 0.0)
        if not np.isfinite(scores).all():
            raise DataError("similarities must be finite; an embedding holds NaN or infinity")
    row, column = np.nonzero(positive & valid)
    count = np.bincount(row, minlength=len(scores))
    if not count.all():
        raise DataError(f"rows {np.flatnonzero(count == 0)[:5].tolist()} have no valid positive")
    position = np.arange(len(row)) - np.repeat(np.cumsum(count) - count, count)
    positives = np.full((len(scores), count.max(initial=0)), -np.inf)
    positives[row, position] = scores[row, column]
    mean_positive = np.where(np.isfinite(positives), positives, 0.0).sum(axis=1) / count
    positives = -np.sort(-positives, axis=1)

    negatives = np.where(valid & ~positive, scores, -np.inf)
    # The k-th best positive is among the top P if at most P - k negatives are as close.
    best = np.zeros(len(scores), np.int64)
    for k in range(positives.shape[1], 0, -1):
        closer = (negatives >= positives[:, k - 1 : k]).sum(axis=1)
        best += (k <= count) & (closer <= count - k)
        rank = 1 + closer
    if not positives.shape[1]:
        rank = best

    peak = negatives.max(axis=1, initial=-np.inf)
    has_negative = np.isfinite(peak)
    negatives -= np.where(has_negative, peak, 0.0)[:, None]
    negatives /= temperature
    weights = np.exp(negatives, out=negatives)
    total = np.where(has_negative, weights.sum(axis=1), 1.0)
    return ContrastiveRank(
        accuracy=best / count,
        margin=mean_positive - np.vecdot(weights, scores) / total,
        rank=rank,
    )


def rank_embeddings(
    rows_ND: np.ndarray,
    columns_MD: np.ndarray,
    row_keys: np.ndarray,
    column_keys: np.ndarray,
    *,
    temperature: float,
) -> ContrastiveRank:
    """Return `contrastive_rank` of ``rows_ND @ columns_MD.T``, which is never held as a whole.

    A column is positive where its key, an integer of [M], equals the row's of [N]. Accuracy and
    rank are exact: similarities are compared as float64 rounded to SIMILARITY_DECIMALS, whatever
    the type of the embeddings; the margin's softmax runs in that type. Extra memory is a few
    blocks of ROW_BLOCK x COLUMN_BLOCK.

    Raises:
        DataError: shapes disagree, an embedding is not finite, or a row has no positive.
    """
    if (
        rows_ND.ndim != 2
        or columns_MD.ndim != 2
        or rows_ND.shape[1] != columns_MD.shape[1]
        or row_keys.shape != rows_ND.shape[:1]
        or column_keys.shape != columns_MD.shape[:1]
    ):
        raise DataError(
            "expected embeddings [N, D] and [M, D] with keys [N] and [M], found "
            f"{rows_ND.shape}, {columns_MD.shape}, {row_keys.shape}, {column_keys.shape}"
        )
    longest = [
        float(np.vecdot(vectors, vectors).max(initial=0.0)) ** 0.5
        for vectors in (rows_ND, columns_MD)
    ]
    if not np.isfinite(longest).all():
        raise DataError(
            "embeddings must be finite; leave out the traces that could not be embedded"
        )
    reach = longest[0] * longest[1]
    if rows_ND.shape[0] * columns_MD.shape[0] <= WHOLE:
        similarity = rows_ND.astype(np.float64) @ columns_MD.astype(np.float64).T
        return contrastive_rank(
            similarity.round(SIMILARITY_DECIMALS),
            row_keys[:, None] == column_keys[None, :],
            temperature=temperature,
        )
    order = np.argsort(column_keys, kind="stable")
    first, last = (
        np.searchsorted(column_keys[order], row_keys, side=side) for side in ("left", "right")
    )
    if (first == last).any():
        missing = np.flatnonzero(first == last)[:5].tolist()
        raise DataError(f"rows {missing} have no column of their key, so no valid positive")
    parts = []
    for start in range(0, len(rows_ND), ROW_BLOCK):
        block = slice(start, start + ROW_BLOCK)
        begin, count = first[block], last[block] - first[block]
        positions = np.repeat(begin - np.cumsum(count) + count, count) + np.arange(count.sum())
        stream = _RowBlock(rows_ND[block], columns_MD, temperature, reach)
        parts.append(stream.rank(count, order[positions]))
    accuracy, margin, rank = (np.concatenate(field) for field in zip(*parts, strict=True))
    return ContrastiveRank(accuracy=accuracy, margin=margin, rank=rank)


class _RowBlock:
    """Ranks a block of R rows against all columns, block by block.

    A product in float32 decides every comparison that it can; similarities closer to a positive
    than its error bound are computed again in float64. The positives within the top |positives|
    are always the best few, `best` of them, and more columns can only make them fewer: so the
    only negatives worth keeping are those as close as the positive number `best`. Once none is
    left, the negatives as close as the best positive need only be counted.
    """

    def __init__(
        self, rows: np.ndarray, columns: np.ndarray, temperature: float, reach: float
    ) -> None:
        kind = np.result_type(rows, columns, np.float32)
        self.rows, self.columns, self.temperature = rows, columns, temperature
        self.scaled = (rows / temperature).astype(kind)
        error = (rows.shape[1] + 4) * np.finfo(kind).eps / 2 * reach + 10.0**-SIMILARITY_DECIMALS
        self.close = error / temperature
        self.most = reach / temperature
        shape = (len(rows), COLUMN_BLOCK)
        self.logits, self.weights = np.empty(shape, kind), np.empty(shape, kind)
        self.above, self.surely = np.zeros(shape, bool), np.zeros(shape, bool)

    def rank(self, count: np.ndarray, gold: np.ndarray) -> tuple[np.ndarray, ...]:
        """Return accuracy, margin and rank, each [R].

        ``count`` [R] says how many positives each row has, ``gold`` lists their columns.
        """
        owner = np.repeat(np.arange(len(count)), count)
        value = self._exact(owner, gold)
        first = np.cumsum(count) - count
        mean_positive = np.add.reduceat(value, first) / count * self.temperature
        positives = value[np.lexsort((-value, owner))]
        by_column = np.argsort(gold, kind="stable")
        gold, owner = gold[by_column], owner[by_column]

        self.positives, self.first, self.count = positives, first, count
        self.best = count.copy()
        self.closer = np.zeros(len(count), np.int64)
        self.kept = (np.zeros(0, np.int64), np.zeros(0, np.int64), np.zeros(0), np.zeros(0, bool))
        total, weighted = np.zeros(len(count)), np.zeros(len(count))
        peak = np.full(len(count), -self.most)
        for start, stop in _blocks(len(self.columns)):
            logits = self.logits[:, : stop - start]
            np.matmul(self.scaled, self.columns[start:stop].T, out=logits)
            in_block = slice(*np.searchsorted(gold, (start, stop)))
            logits[owner[in_block], gold[in_block] - start] = ABSENT
            self._compare(logits, start)
            weights = self.weights[:, : stop - start]
            if self.most > SAFE_LOGIT:
                before, peak = peak, np.maximum(peak, logits.max(axis=1))
                shrink = np.exp(before - peak)
                total, weighted = total * shrink, weighted * shrink
                np.subtract(logits, peak[:, None], out=weights, casting="same_kind")
                np.exp(weights, out=weights)
            else:
                np.exp(logits, out=weights)
            total += weights @ np.ones(stop - start, weights.dtype)
            weighted += np.vecdot(weights, logits)
        accuracy = self.best / count
        # Where a positive is left, all negatives as close as the first one have been kept.
        alive = self.best > 0
        self.closer[alive] = self._as_close(np.ones_like(self.best))[alive]
        mean_negative = np.divide(
            weighted * self.temperature, total, out=np.zeros(len(count)), where=total > 0
        )
        return accuracy, mean_positive - mean_negative, 1 + self.closer

    def _compare(self, logits: np.ndarray, start: int) -> None:
        """Take a block's negatives into account that are as close as the positive in question."""
        alive = self.best > 0
        bar = self._bar(self.best)
        limit = (bar - self.close).astype(logits.dtype)[:, None]
        above = _flags(self.above, np.greater_equal, logits, limit)
        above_count = _count(above)
        counted = ~alive & (above_count > 0)
        if counted.any():
            limit = (bar + self.close).astype(logits.dtype)[:, None]
            surely = _flags(self.surely, np.greater, logits, limit)
            sure = _count(surely)
            self.closer[counted] += sure[counted]
            doubt = np.flatnonzero(counted & (sure != above_count))
            i, j = _bit_positions(above[doubt] ^ surely[doubt])
            near = self._exact(doubt[i], j + start) >= bar[doubt[i]]
            self.closer += np.bincount(doubt[i[near]], minlength=len(bar))
        fresh = np.flatnonzero(alive & (above_count > 0))
        if fresh.size:
            i, j = _bit_positions(above[fresh])
            i = fresh[i]
            new = (i, j + start, logits[i, j].astype(np.float64), np.zeros(len(i), bool))
            self.kept = tuple(np.concatenate(pair) for pair in zip(self.kept, new, strict=True))
            self._lower_best()

    def _lower_best(self) -> None:
        """Find by bisection how many positives the kept negatives leave within the top."""
        # Positive number b is among the top P if at most P - b negatives are as close.
        high = self.best
        low = np.where(self._as_close(high) <= self.count - high, high, 0)
        while (wide := high - low > 1).any():
            middle = (low + high) // 2
            fits = self._as_close(middle) <= self.count - middle
            low = np.where(wide & fits, middle, low)
            high = np.where(wide & ~fits, middle, high)
        gone = (self.best > 0) & (low == 0)
        self.closer[gone] = self._as_close(low)[gone]
        self.best = low
        i, _, value, _ = self.kept
        stays = (low[i] > 0) & (value >= self._bar(low)[i])
        self.kept = tuple(part[stays] for part in self.kept)

    def _as_close(self, number: np.ndarray) -> np.ndarray:
        """Return how many kept negatives are as close as positive ``number`` [R] of their row."""
        i, j, value, exact = self.kept
        bar = self._bar(number)[i]
        near = np.flatnonzero(~exact & (np.abs(value - bar) <= self.close))
        value[near], exact[near] = self._exact(i[near], j[near]), True
        return np.bincount(i[value >= bar], minlength=len(number))

    def _bar(self, number: np.ndarray) -> np.ndarray:
        """Return the logit of positive ``number`` of each row, of the first one for 0, [R]."""
        return self.positives[self.first + np.maximum(number, 1) - 1]

    def _exact(self, i: np.ndarray, j: np.ndarray) -> np.ndarray:
        """Return the logits of row i[n] and column j[n], from similarities in float64."""
        similarity = np.empty(len(i))
        for start in range(0, len(i), EXACT_CHUNK):
            chunk = slice(start, start + EXACT_CHUNK)
            rows, columns = self.rows[i[chunk]], self.columns[j[chunk]]
            similarity[chunk] = np.vecdot(rows.astype(np.float64), columns.astype(np.float64))
        return similarity.round(SIMILARITY_DECIMALS) / self.temperature


def _blocks(columns: int) -> Iterator[tuple[int, int]]:
    """Yield column ranges; the first are narrow, because no negative is known yet to compare."""
    start = 0
    while start < columns:
        stop = min(start + min(start + FIRST_COLUMNS, COLUMN_BLOCK), columns)
        yield start, stop
        start = stop


def _flags(buffer: np.ndarray, test: np.ufunc, *operands: np.ndarray) -> np.ndarray:
    """Write a test's answers [R, C] into a boolean buffer, and return it as words of 8 flags."""
    width = operands[0].shape[1]
    test(*operands, out=buffer[:, :width])
    buffer[:, width:] = False
    return buffer.view(np.uint64)


def _count(words: np.ndarray) -> np.ndarray:
    """Return the flags set per row; they add up in the bytes of a word, each of which holds 255."""
    return words.sum(axis=1).view(np.uint8).reshape(-1, 8).sum(axis=1, dtype=np.int64)


def _bit_positions(words: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return row and column of every flag set, by row."""
    i, word = np.nonzero(words)
    n, byte = np.nonzero(words[i, word].view(bool).reshape(-1, 8))
    return i[n], word[n] * 8 + byte
