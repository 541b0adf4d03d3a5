"""Exact search equals a full sort, ties included, and ranks as `rank_candidates` does."""

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from data.errors import DataError
from evaluation.metrics import TIE_DECIMALS, rank_candidates
from evaluation.search import DENSE, PAIR_BYTES, search, search_and_rank


def unit(rng: np.random.Generator, rows: int, width: int, *, steps: int = 0) -> np.ndarray:
    """Return rows of length 1; with ``steps`` of few directions, so that many are equal."""
    vectors = rng.standard_normal((rows, width))
    if steps:
        vectors = rng.integers(1, steps + 1, size=(rows, width)).astype(float)
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


def by_sorting(queries: np.ndarray, candidates: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return all candidates of each query by rounded similarity, then index; similarities."""
    similarity = queries.astype(np.float64) @ candidates.T.astype(np.float64)
    return np.argsort(-np.round(similarity, TIE_DECIMALS), axis=1, kind="stable"), similarity


@given(
    seed=st.integers(0, 2**32),
    queries=st.integers(1, 9),
    candidates=st.integers(1, 60),
    width=st.integers(1, 40),
    k=st.integers(1, 70),
    steps=st.sampled_from([0, 1, 2]),
    cuts=st.lists(st.integers(0, 60), max_size=5),
)
@example(seed=0, queries=3, candidates=5000, width=8, k=10, steps=2, cuts=[7, 3000])
@example(seed=1, queries=1100, candidates=2100, width=4, k=3, steps=0, cuts=[])
def test_it_equals_a_full_sort_however_the_candidates_are_cut(
    seed, queries, candidates, width, k, steps, cuts
) -> None:
    rng = np.random.default_rng(seed)
    asked, rows = unit(rng, queries, width, steps=steps), unit(rng, candidates, width, steps=steps)
    order, similarity = by_sorting(asked, rows)
    right = [
        rng.choice(candidates, size=rng.integers(1, min(4, candidates) + 1), replace=False)
        for _ in range(queries)
    ]
    blocks = np.split(rows, sorted(min(cut, candidates) for cut in cuts))

    ranked = search_and_rank(asked, iter(blocks), k, right=right, rows=rows.__getitem__)

    kept = min(k, candidates)
    assert ranked.nearest.indices.tolist() == order[:, :kept].tolist()
    values = np.take_along_axis(similarity, order[:, :kept], axis=1)
    assert np.abs(ranked.nearest.similarities - values).max() < 1e-6
    assert ranked.nearest.similarities.dtype == np.float32
    for query in range(queries):
        expected = rank_candidates(similarity[query], frozenset(right[query].tolist()))
        assert ranked.ranks[query] == expected.rank
        top = tuple(ranked.wrong_first.indices[query][: len(expected.top)].tolist())
        assert top == expected.top[:kept]
    alone = search(asked, rows, k)
    assert np.array_equal(alone.indices, ranked.nearest.indices)


def test_among_equals_the_lower_index_is_nearest_and_the_right_one_ranks_last() -> None:
    rows = np.tile(np.array([[0.6, 0.8]], dtype=np.float32), (5000, 1))
    ranked = search_and_rank(rows[:2], rows, 2, right=[[0], [1, 4999, 1]], rows=rows.__getitem__)
    assert ranked.nearest.indices.tolist() == [[0, 1], [0, 1]]
    assert ranked.wrong_first.indices.tolist() == [[1, 2], [0, 2]]
    assert ranked.ranks.tolist() == [5000, 4999]


def test_a_million_equal_ones_make_no_full_matrix() -> None:
    # Blocks of a generator: none of them is kept.
    block = np.ones((50_000, 1), dtype=np.float32)
    ranked = search_and_rank(
        block[:3], (block for _ in range(20)), 1, right=[[999_999]] * 3, rows=lambda _: block[:1]
    )
    assert ranked.nearest.indices.tolist() == [[0]] * 3
    assert ranked.ranks.tolist() == [1_000_000] * 3


def test_vectors_are_read_from_a_file_that_is_mapped(tmp_path) -> None:
    rows = unit(np.random.default_rng(0), 100, 6)
    np.save(tmp_path / "rows.npy", rows)
    mapped = np.load(tmp_path / "rows.npy", mmap_mode="r")
    assert search(rows[:9], mapped, 1).indices[:, 0].tolist() == list(range(9))


def test_long_vectors_are_computed_anew_in_pieces() -> None:
    rng = np.random.default_rng(0)
    asked, rows = unit(rng, 60, 8192), unit(rng, 600, 8192)
    pairs = 60 * 10
    assert PAIR_BYTES // (8 * 8192) < pairs < 60 * 600 / DENSE
    order, _ = by_sorting(asked, rows)
    assert np.array_equal(search(asked, rows, 10).indices, order[:, :10])


@pytest.mark.parametrize("value", [np.nan, np.inf, 0.5])
@pytest.mark.parametrize("side", ["query", "candidate"])
def test_what_is_no_unit_vector_is_refused_with_its_index(value, side) -> None:
    rows = unit(np.random.default_rng(0), 3000, 4)
    bad = rows.copy()
    bad[2500] = value if np.isnan(value) else value * bad[2500]
    with pytest.raises(DataError, match=f"{side} 2500: expected a finite vector of length 1"):
        search(*((bad, rows) if side == "query" else (rows, bad)), 1)


@pytest.mark.parametrize(
    ("candidates", "message"),
    [
        (np.ones((2, 1)), "candidate 0: expected float32 rows of 1 dimensions"),
        (np.ones((2, 2), dtype=np.float32), r"found float32 \[2, 2\]"),
        (np.ones(2, dtype=np.float32), "candidate 0: expected float32 rows"),
        ([], "expected candidates, found none"),
    ],
)
def test_other_candidates_are_refused(candidates, message) -> None:
    with pytest.raises(DataError, match=message):
        search(np.ones((1, 1), dtype=np.float32), candidates, 1)


@pytest.mark.parametrize(
    ("right", "message"),
    [
        ([[]], "query 0: expected indices of right candidates, found"),
        ([[-1]], "query 0: expected indices"),
        ([[7]], r"expected right candidates among 0\.\.1, found 7"),
        ([], "expected right candidates of 1 queries, found 0"),
    ],
)
def test_a_rank_is_never_made_up(right, message) -> None:
    rows = np.ones((2, 1), dtype=np.float32)
    with pytest.raises(DataError, match=message):
        search_and_rank(rows[:1], rows, 1, right=right, rows=lambda indices: rows[indices % 2])


def test_queries_are_needed() -> None:
    with pytest.raises(DataError, match="expected queries, found none"):
        search(np.empty((0, 2), dtype=np.float32), np.ones((1, 1), dtype=np.float32), 1)
