"""The arithmetic of a round: the same by any way, in any number of rows."""

import numpy as np
import pytest

from data.types import Side
from reward import rank_arithmetic
from reward.rank_arithmetic import RankInput, rank_sides


def rows(side, vectors, *, bank=0, closest=2, group=2, rng=None):
    """Return all of one side's traces before the other side's, groups of ``group`` siblings."""
    own, other = vectors[side], vectors[Side.TARGET if side is Side.QUERY else Side.QUERY]
    groups = np.arange(len(own)) // group
    candidates = other if not bank else np.concatenate([other, unit(rng, bank)])
    columns = np.full(len(candidates), -1)
    columns[: len(other)] = np.arange(len(other)) // group
    return RankInput(
        vectors_ND=own,
        trace_indices=np.arange(len(own)),
        group_N=groups,
        candidates_MD=candidates,
        starts=np.arange(0, len(other), group),
        own=len(other),
        positive_GM=np.unique(groups)[:, None] == columns[None],
        valid_GM=np.ones((len(np.unique(groups)), len(candidates)), bool),
        plain_GD=own[::group],
        closest=closest,
    )


def unit(rng, count, width=5):
    vectors = rng.normal(size=(count, width)).astype(np.float32)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def both(count, *, bank=0):
    rng = np.random.default_rng(count)
    vectors = {side: unit(rng, count) for side in Side}
    return {side: rows(side, vectors, bank=bank, rng=rng) for side in Side}


def same(one, other):
    fields = ("accuracy", "margin", "rank", "gain")
    equal = [np.allclose(getattr(one, f), getattr(other, f), rtol=0, atol=1e-12) for f in fields]
    return all(equal) and (one.nearest, one.rivals) == (other.nearest, other.rivals)


@pytest.mark.parametrize("bank", [0, 3])
def test_one_product_for_both_directions_changes_nothing(bank):
    sides = both(12, bank=bank)
    together = rank_sides(sides, temperature=0.1)
    for side, one in sides.items():
        assert same(rank_sides({side: one}, temperature=0.1)[side], together[side])


def test_blocks_do_not_show(monkeypatch):
    sides = both(26, bank=2)
    whole = rank_sides(sides, temperature=0.1)
    monkeypatch.setattr(rank_arithmetic, "PRODUCT_BLOCK", 8)
    monkeypatch.setattr(rank_arithmetic, "RANK_BLOCK", 4)
    parts = rank_sides(sides, temperature=0.1)
    assert all(same(parts[side], whole[side]) for side in Side)


def test_a_row_by_hand():
    eye = np.eye(3)
    query = RankInput(
        vectors_ND=eye[:1],
        trace_indices=None,
        group_N=np.zeros(1, int),
        candidates_MD=np.stack([eye[0] * 0.6 + eye[1] * 0.8, eye[0] * 0.8 + eye[2] * 0.6, eye[2]]),
        starts=np.array([0, 1, 2]),
        own=3,
        positive_GM=np.array([[True, False, False]]),
        valid_GM=np.array([[True, True, True]]),
        plain_GD=None,
        closest=None,
    )
    found = rank_sides({Side.QUERY: query}, temperature=1.0)[Side.QUERY]
    assert (found.accuracy.tolist(), found.rank.tolist(), found.gain.tolist()) == ([0], [2], [0])
    weights = np.exp([0.8, 0.0])
    assert found.margin[0] == pytest.approx(0.6 - weights @ [0.8, 0.0] / weights.sum())
    assert (found.nearest, found.rivals) == ([[1, 0, 2]], [[1, 2]])


def test_no_rows_have_no_ranks():
    sides = both(4)
    empty = rows(
        Side.QUERY, {Side.QUERY: np.zeros((0, 5)), Side.TARGET: sides[Side.QUERY].vectors_ND}
    )
    found = rank_sides({Side.QUERY: empty}, temperature=0.1)[Side.QUERY]
    assert (len(found.accuracy), found.nearest, found.rivals) == (0, [], [])
