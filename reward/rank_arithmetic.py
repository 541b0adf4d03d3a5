"""The ranks of traces among their candidates: a round's arithmetic, arrays in and arrays out.

`reward.ranking` knows what the rows and columns are. The arithmetic has a file of its own, so that
another process can do it: its cost grows with the square of a round.

Shapes: N rows, M candidates (those of the round first, then the bank's), G groups of rows, D
dimensions.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np

from data.types import Side
from reward.contrast import SIMILARITY_DECIMALS, rank_in_order

TOP_RETRIEVED = 3
PRODUCT_BLOCK = 1024
"""Rows whose similarities are computed together: products of few rows are slow."""
RANK_BLOCK = 256
"""Rows ranked together: their similarities stay in a core's cache. PRODUCT_BLOCK is a multiple of
RANK_BLOCK."""
SHARED_PRODUCT = 1 << 25
"""Similarities that are made at once, as both directions need them: 268 MB, for a moment twice."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RankInput:
    """Traces of one side, one a row, and the candidates that they are ranked among."""

    vectors_ND: np.ndarray
    trace_indices: np.ndarray | None
    """Index of each row among its side's traces, [N]; None: the rows have other embeddings."""
    group_N: np.ndarray
    """Rows of a group have the same positives."""
    candidates_MD: np.ndarray
    starts: np.ndarray
    """Of the round's own candidates the first of each pair."""
    own: int
    """How many candidates are the round's own."""
    positive_GM: np.ndarray
    valid_GM: np.ndarray
    """Which candidates count."""
    plain_GD: np.ndarray | None
    """Embeddings of the items without a trace; None: no gain is asked for."""
    closest: int | None
    """Of so many other pairs the closest trace is named; None: of all."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RankResult:
    """Rank, margin and neighbours of each row."""

    accuracy: np.ndarray
    margin: np.ndarray
    rank: np.ndarray
    gain: np.ndarray
    nearest: list[list[int]]
    """The nearest candidates, best first; of equal ones the first is nearer."""
    rivals: list[list[int]]
    """The closest trace of each of the closest other pairs, closest first."""


class Compute(Protocol):
    """Computes `rank_sides`, in this process or in another one."""

    def __call__(
        self, sides: Mapping[Side, RankInput], *, temperature: float
    ) -> dict[Side, RankResult]:
        """Return the ranks of each side's rows."""


def rank_sides(sides: Mapping[Side, RankInput], *, temperature: float) -> dict[Side, RankResult]:
    """Return the ranks of each side's rows; `reward.contrast` defines what the numbers mean."""
    product = _shared(sides)
    known = {Side.QUERY: product, Side.TARGET: None if product is None else product.T}
    return {
        side: (
            _rank_rows(rows, known[side], temperature) if len(rows.vectors_ND) else _empty_result()
        )
        for side, rows in sides.items()
    }


def _similarities(rows_ND: np.ndarray, columns_MD: np.ndarray) -> np.ndarray:
    """Return cosines of unit vectors, float64 [N, M], so that equal embeddings tie."""
    rows, columns = (vectors.astype(np.float64, copy=False) for vectors in (rows_ND, columns_MD))
    product = rows @ columns.T
    return product.round(SIMILARITY_DECIMALS, out=product)


def _shared(sides: Mapping[Side, RankInput]) -> np.ndarray | None:
    """Return the similarities of the queries' traces with the targets'.

    Both directions need them. None: only one is asked for, or they are too many to hold at once.
    """
    if len(sides) < len(Side) or any(rows.trace_indices is None for rows in sides.values()):
        return None
    query, target = sides[Side.QUERY], sides[Side.TARGET]
    if query.own * target.own > SHARED_PRODUCT:
        return None
    # What each side's rows meet first are the other side's traces.
    return _similarities(target.candidates_MD[: target.own], query.candidates_MD[: query.own])


def _rank_rows(rows: RankInput, known: np.ndarray | None, temperature: float) -> RankResult:
    rows = replace(rows, candidates_MD=rows.candidates_MD.astype(np.float64, copy=False))
    parts = []
    for block, similarity in _blocks(rows, known):
        group = rows.group_N[block]
        positive, valid = rows.positive_GM[group], rows.valid_GM[group]
        ranks = rank_in_order(similarity, positive, temperature=temperature, valid=valid)
        gain = np.zeros(len(group))
        if rows.plain_GD is not None:
            # Siblings have one item: its margin is found once.
            groups, first, back = np.unique(group, return_index=True, return_inverse=True)
            bare = rank_in_order(
                _similarities(rows.plain_GD[groups], rows.candidates_MD),
                positive[first],
                temperature=temperature,
                valid=valid[first],
            )
            gain = ranks.margin - bare.margin[back]
        rivals = list(_rivals(similarity, valid & ~positive, rows))
        parts.append((ranks.accuracy, ranks.margin, ranks.rank, gain, _nearest(similarity), rivals))
    accuracy, margin, rank, gain, nearest, rivals = zip(*parts, strict=True)
    return RankResult(
        accuracy=np.concatenate(accuracy),
        margin=np.concatenate(margin),
        rank=np.concatenate(rank),
        gain=np.concatenate(gain),
        nearest=[row for block in nearest for row in block],
        rivals=[row for block in rivals for row in block],
    )


def _empty_result() -> RankResult:
    none = np.zeros(0)
    return RankResult(accuracy=none, margin=none, rank=none, gain=none, nearest=[], rivals=[])


def _blocks(rows: RankInput, known: np.ndarray | None) -> Iterator[tuple[slice, np.ndarray]]:
    """Yield row ranges and their similarities, RANK_BLOCK rows at a time.

    ``known`` holds the similarities of all the side's traces with the round's own candidates.
    """
    met = 0 if known is None else rows.own
    for first in range(0, len(rows.vectors_ND), PRODUCT_BLOCK):
        block = slice(first, first + PRODUCT_BLOCK)
        similarity = _similarities(rows.vectors_ND[block], rows.candidates_MD[met:])
        if known is not None:
            similarity = np.concatenate([known[rows.trace_indices[block]], similarity], axis=1)
        for begin in range(0, len(similarity), RANK_BLOCK):
            part = slice(begin, begin + RANK_BLOCK)
            yield slice(first + begin, first + begin + RANK_BLOCK), similarity[part]


def _nearest(similarity_NM: np.ndarray) -> list[list[int]]:
    remaining = similarity_NM.copy()
    rows = np.arange(len(remaining))
    nearest = []
    for _ in range(min(TOP_RETRIEVED, remaining.shape[1])):
        nearest.append(remaining.argmax(axis=1))
        remaining[rows, nearest[-1]] = -np.inf
    return np.stack(nearest, axis=1).tolist()


def _rivals(
    similarity_NM: np.ndarray, rival_NM: np.ndarray, rows: RankInput
) -> Iterator[list[int]]:
    """Yield rivals by row; of equal ones the first is closer.

    They are the candidates marked in ``rival_NM``; the bank's are none.
    """
    if rows.closest == 0:
        yield from ([] for _ in similarity_NM)
        return
    step = slice(0, rows.own)
    close = np.where(rival_NM[:, step], similarity_NM[:, step], -np.inf)
    best = np.maximum.reduceat(close, rows.starts, axis=1)
    order = np.argsort(-best, axis=1, kind="stable")[:, : rows.closest]
    ends = [*rows.starts[1:].tolist(), rows.own]
    for row, pairs, bests in zip(close, order, best, strict=True):
        yield [
            int(rows.starts[pair]) + int(row[rows.starts[pair] : ends[pair]].argmax())
            for pair in pairs
            if bests[pair] > -np.inf
        ]
