"""Exact search: the nearest candidates of many queries, and the rank of the best right one.

Candidates pass once, in blocks, so that they need not be in memory together. The float32 product of
a block leaves the few pairs that may count. Their similarities are computed anew in float64: equal
vectors tie wherever they lie, and a rank is the one of `metrics.rank_candidates`.

Shapes: Q queries, N candidates, B candidates of a block, D dimensions, P pairs of a query and a
candidate, K = min(k, N).
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from data.errors import DataError
from evaluation.metrics import TIE_DECIMALS

QUERIES, CANDIDATES = 1024, 2048
"""Of one product, which so takes 8 MiB and stays in the processor's cache until it is read."""
PAIR_BYTES = 32 << 20
"""Of the float64 vectors that are multiplied pair by pair at a time."""
DENSE = 32
"""If more than one in so many pairs of a product may count, a float64 product is cheaper."""
INDEX_BITS = 48
"""A pair's number holds the index of its candidate in so many bits, above it that of its query."""
UNIT_TOLERANCE = 1e-3
"""Most by which the square of a vector's length may differ from 1."""
TIE_STEP = 10.0**-TIE_DECIMALS

Rows = Callable[[np.ndarray], np.ndarray]
"""Vectors of candidates, float32 [X, D], by their ascending indices, int64 [X]."""


@dataclass(frozen=True, slots=True)
class Nearest:
    """The nearest candidates of each query, best first."""

    indices: np.ndarray
    """int64 [Q, K], as the candidates were passed"""
    similarities: np.ndarray
    """float32 [Q, K]; equal to `TIE_DECIMALS` decimals: ties"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Ranked:
    """What each query retrieved, in both orders of ties."""

    nearest: Nearest
    """Among ties the lower index comes first."""
    wrong_first: Nearest
    """Among ties the wrong candidates come first, then the lower index."""
    ranks: np.ndarray
    """int64 [Q]: rank of the best right candidate, from 1; wrong ones as similar rank above it."""


def search(queries: np.ndarray, candidates: Iterable[np.ndarray], k: int) -> Nearest:
    """Return the ``k`` nearest candidates of each query; all, where there are fewer.

    Among ties the lower index comes first, as in a benchmark's stable sort.

    Args:
        queries: float32 [Q, D] of length 1.
        candidates: float32 of length 1; an array [N, D], which may be mapped from a file, or
            blocks [B, D] of any size in order.

    Raises:
        DataError: there is no candidate, or vectors of another kind, length or width.
    """
    blocks = [_QueryBlock(block, [_Top(len(block), k)]) for block in _query_blocks(queries)]
    _scan(blocks, candidates)
    return _joined([block.tops[0] for block in blocks], blocks[0].seen)


def search_and_rank(
    queries: np.ndarray,
    candidates: Iterable[np.ndarray],
    k: int,
    *,
    right: Sequence[Sequence[int]],
    rows: Rows,
) -> Ranked:
    """Return what `search` returns, and where the right candidates are, from the same pass.

    Args:
        queries: see `search`.
        candidates: see `search`.
        k: see `search`.
        right: of each query the indices of its right candidates.
        rows: gives the vectors of right candidates before the pass; of an array
            `candidates.__getitem__`.

    Raises:
        DataError: see `search`; or a query has no right candidate, so that its rank would be made
            up, or one that is no candidate.
    """
    _check_right(right, len(queries))
    blocks = []
    for start, block in zip(range(0, len(queries), QUERIES), _query_blocks(queries), strict=True):
        tops = [_Top(len(block), k), _Top(len(block), k)]
        blocks.append(_QueryBlock(block, tops, _Right(block, right[start : start + QUERIES], rows)))
    _scan(blocks, candidates)
    seen = blocks[0].seen
    last = max(map(max, right))
    if last >= seen:
        raise DataError(f"expected right candidates among 0..{seen - 1}, found {last}; pass all")
    return Ranked(
        nearest=_joined([block.tops[0] for block in blocks], seen),
        wrong_first=_joined([block.tops[1] for block in blocks], seen),
        ranks=np.concatenate([block.ranks() for block in blocks]),
    )


class _Top:
    """The nearest candidates so far of the queries of a product."""

    def __init__(self, queries: int, k: int) -> None:
        self.indices = np.full((queries, k), -1, dtype=np.int64)
        self.similarities = np.full((queries, k), -np.inf)
        self.late = np.zeros((queries, k), dtype=bool)

    def add(
        self, query: np.ndarray, index: np.ndarray, similarity: np.ndarray, late: np.ndarray
    ) -> None:
        """Take in pairs, all [P], of candidates that passed later than those here.

        ``late`` ones come last among ties.
        """
        worst = np.round(self.similarities[:, -1], TIE_DECIMALS)[query]
        rounded = np.round(similarity, TIE_DECIMALS)
        better = (rounded > worst) | ((rounded == worst) & (late < self.late[query, -1]))
        query, index, similarity, late = (x[better] for x in (query, index, similarity, late))
        asked = np.unique(query)
        k = self.indices.shape[1]
        query = np.concatenate([np.repeat(asked, k), query])
        index = np.concatenate([self.indices[asked].ravel(), index])
        similarity = np.concatenate([self.similarities[asked].ravel(), similarity])
        late = np.concatenate([self.late[asked].ravel(), late])
        order = np.lexsort((index, late, -np.round(similarity, TIE_DECIMALS), query))
        query = query[order]
        place = np.arange(len(query)) - np.searchsorted(query, query)
        order, query, place = order[place < k], query[place < k], place[place < k]
        self.indices[query, place] = index[order]
        self.similarities[query, place] = similarity[order]
        self.late[query, place] = late[order]


class _Right:
    """The right candidates of the queries of a product."""

    def __init__(self, queries: np.ndarray, right: Sequence[Sequence[int]], rows: Rows) -> None:
        counts = np.array([len(indices) for indices in right])
        query = np.repeat(np.arange(len(queries)), counts)
        index = np.fromiter((i for indices in right for i in indices), np.int64, counts.sum())
        self.codes = np.unique(_code(query, index))
        query, index = np.divmod(self.codes, 1 << INDEX_BITS)
        unique, place = np.unique(index, return_inverse=True)
        vectors = _checked(rows(unique), queries.shape[1], "right candidate", 0)
        similarity = np.round(_exact(queries, vectors, query, place), TIE_DECIMALS)
        self.best = np.full(len(queries), -np.inf)
        """float64 [Q], rounded"""
        np.maximum.at(self.best, query, similarity)
        self.tied = np.bincount(query[similarity == self.best[query]], minlength=len(queries))
        """int64 [Q]: right candidates that are the best one, or tie with it."""

    def has(self, query: np.ndarray, index: np.ndarray) -> np.ndarray:
        """Return whether the candidates of pairs are right, bool [P]."""
        codes = _code(query, index)
        place = np.searchsorted(self.codes, codes).clip(max=len(self.codes) - 1)
        return self.codes[place] == codes


def _code(query: np.ndarray, index: np.ndarray) -> np.ndarray:
    return (query << INDEX_BITS) + index


class _QueryBlock:
    """The queries of a product, and what is known of them so far."""

    def __init__(self, queries: np.ndarray, tops: list[_Top], right: _Right | None = None) -> None:
        self.queries, self.tops, self.right = queries, tops, right
        self.seen = 0
        """Candidates that have passed."""
        self.at_least = np.zeros(len(queries), dtype=np.int64)
        """Candidates that are as similar as the best right one, or more."""
        # Of a sum of D products in float32, whatever their order.
        self.error = 1.01 * queries.shape[1] * 2.0**-24

    def pass_by(self, block: np.ndarray, room: np.ndarray) -> None:
        """Take in a block [B, D]; ``room`` holds the product, float32 [QUERIES * CANDIDATES]."""
        shape = len(self.queries), len(block)
        similarity = room[: shape[0] * shape[1]].reshape(shape)
        np.matmul(self.queries, block.T, out=similarity)
        highest = similarity.max(axis=1)
        self._add_nearest(block, similarity, highest)
        if self.right is not None:
            self._count(block, similarity, highest, self.right)
        self.seen += len(block)

    def ranks(self) -> np.ndarray:
        """Return the rank of each query's best right candidate, int64 [Q]."""
        return 1 + self.at_least - self.right.tied

    def _add_nearest(self, block: np.ndarray, similarity: np.ndarray, highest: np.ndarray) -> None:
        k = self.tops[0].indices.shape[1]
        worst = np.min([top.similarities[:, -1] for top in self.tops], axis=0)
        floor = worst - self.error - TIE_STEP
        if self.seen < k < len(block):
            kth = np.partition(similarity, len(block) - k, axis=1)[:, len(block) - k]
            floor = np.maximum(floor, kth - 2 * self.error - TIE_STEP)
        floor = _float32_below(floor)
        hit = np.flatnonzero(highest >= floor)
        place, row = _pairs(similarity[hit] >= floor[hit, None])
        if not len(row):
            return
        query, index = hit[place], self.seen + row
        exact = _exact(self.queries, block, query, row)
        self.tops[0].add(query, index, exact, np.zeros(len(query), dtype=bool))
        if self.right is not None:
            self.tops[1].add(query, index, exact, self.right.has(query, index))

    def _count(
        self, block: np.ndarray, similarity: np.ndarray, highest: np.ndarray, right: _Right
    ) -> None:
        low = _float32_below(right.best - TIE_STEP - self.error)
        high = -_float32_below(-(right.best + TIE_STEP + self.error))
        hit = np.flatnonzero(highest >= low)
        of_hit = similarity[hit]
        above = of_hit > high[hit, None]
        self.at_least[hit] += np.count_nonzero(above, axis=1)
        place, row = _pairs((of_hit >= low[hit, None]) ^ above)
        query = hit[place]
        exact = np.round(_exact(self.queries, block, query, row), TIE_DECIMALS)
        self.at_least += np.bincount(query[exact >= right.best[query]], minlength=len(right.best))


def _scan(query_blocks: Sequence[_QueryBlock], candidates: Iterable[np.ndarray]) -> None:
    """Let the candidates pass by all queries."""
    first, room = query_blocks[0], np.empty(QUERIES * CANDIDATES, dtype=np.float32)
    for block in _blocks(candidates, first):
        for queries in query_blocks:
            queries.pass_by(block, room)
    if not first.seen:
        raise DataError("expected candidates, found none; nothing can be nearest")


def _blocks(candidates: Iterable[np.ndarray], first: _QueryBlock) -> Iterator[np.ndarray]:
    """Yield the candidates in order, at most CANDIDATES at a time."""
    for block in [candidates] if isinstance(candidates, np.ndarray) else candidates:
        for start in range(0, len(block), CANDIDATES):
            rows = block[start : start + CANDIDATES]
            yield _checked(rows, first.queries.shape[1], "candidate", first.seen)


def _query_blocks(queries: np.ndarray) -> Iterator[np.ndarray]:
    if not len(queries):
        raise DataError("expected queries, found none; nothing is to be searched")
    for start in range(0, len(queries), QUERIES):
        rows = queries[start : start + QUERIES]
        yield _checked(rows, queries.shape[-1], "query", start)


def _check_right(right: Sequence[Sequence[int]], queries: int) -> None:
    if len(right) != queries:
        raise DataError(f"expected right candidates of {queries} queries, found {len(right)}")
    for query, indices in enumerate(right):
        if not len(indices) or min(indices) < 0:
            raise DataError(
                f"query {query}: expected indices of right candidates, found {list(indices)[:5]}; "
                "leave the query out or add its gold target to the candidates"
            )


def _checked(rows: np.ndarray, width: int, what: str, first: int) -> np.ndarray:
    """Return vectors that can be ranked."""
    if rows.dtype != np.float32 or rows.ndim != 2 or rows.shape[1] != width:
        raise DataError(
            f"{what} {first}: expected float32 rows of {width} dimensions as the first query has, "
            f"found {rows.dtype} {list(rows.shape)}; embed all with one model and one size"
        )
    squares = np.einsum("xd,xd->x", rows, rows)
    wrong = np.flatnonzero(~(np.abs(squares - 1) <= UNIT_TOLERANCE))
    if len(wrong):
        raise DataError(
            f"{what} {first + wrong[0]}: expected a finite vector of length 1, found length "
            f"{np.sqrt(squares[wrong[0]]):.4g}; leave out what failed to embed and divide vectors "
            "by their length"
        )
    return rows


def _exact(
    queries: np.ndarray, block: np.ndarray, query: np.ndarray, row: np.ndarray
) -> np.ndarray:
    """Return the similarity of each pair of a query and a row of ``block``, float64 [P]."""
    asked, place = np.unique(query, return_inverse=True)
    if len(block) <= CANDIDATES and len(query) * DENSE > len(asked) * len(block):
        return (queries[asked].astype(np.float64) @ block.T.astype(np.float64))[place, row]
    similarity = np.empty(len(query))
    step = max(1, PAIR_BYTES // (8 * queries.shape[1]))
    for start in range(0, len(query), step):
        piece = slice(start, start + step)
        similarity[piece] = np.einsum(
            "pd,pd->p",
            queries[query[piece]].astype(np.float64),
            block[row[piece]].astype(np.float64),
        )
    return similarity


def _pairs(chosen: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return what `np.nonzero` returns of a matrix, in a fraction of its time."""
    return np.divmod(np.flatnonzero(chosen), chosen.shape[1])


def _float32_below(values: np.ndarray) -> np.ndarray:
    """Return float32 numbers that are no larger than the values."""
    return np.nextafter(values.astype(np.float32), np.float32(-np.inf))


def _joined(tops: Sequence[_Top], candidates: int) -> Nearest:
    kept = slice(min(tops[0].indices.shape[1], candidates))
    return Nearest(
        indices=np.concatenate([top.indices[:, kept] for top in tops]),
        similarities=np.concatenate([top.similarities[:, kept].astype(np.float32) for top in tops]),
    )
