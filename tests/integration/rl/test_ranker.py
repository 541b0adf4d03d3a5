"""A round that a process beside the driver ranks: as it is here, and with its refusals."""

from collections.abc import Iterator

import numpy as np
import pytest

from cluster.rl.ranker import Ranker
from configs.reward import RewardConfig
from data.errors import DataError
from data.relevance import Relevance
from data.types import Side
from reward.bank import CandidateBank
from reward.rank_arithmetic import RankInput
from reward.ranking import Ranking
from tests.builders import make_pair, make_trajectory

pytestmark = pytest.mark.usefixtures("local_ray")
REWARD = RewardConfig(model="unused", gain_weight=1.0)


@pytest.fixture
def ranking() -> Ranking:
    rng = np.random.default_rng(0)
    pairs = {serial: make_pair(f"p{serial}") for serial in range(5)}
    traces = [make_trajectory(s, side, one) for s in pairs for side in Side for one in range(3)]
    vectors = rng.normal(size=(len(traces), 6)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    named = dict(zip(map(str, (one.key for one in traces)), vectors, strict=True))
    plain = {(serial, side): vectors[serial] for serial in pairs for side in Side}
    bank = CandidateBank(REWARD.bank)
    known = Relevance(pairs.values())
    return Ranking(traces, named, pairs, bank, reward=REWARD, relevance=known, plain=plain)


@pytest.fixture(scope="module")
def ranker() -> Iterator[Ranker]:
    ranker = Ranker()
    yield ranker
    ranker.close()


def test_it_is_the_round_that_is_ranked_here(ranking: Ranking, ranker: Ranker) -> None:
    here, beside = ranking.rank(), ranking.rank(compute=ranker.rank_sides)
    assert len(here.ranked) == 30
    for one, other in zip(here.ranked, beside.ranked, strict=True):
        assert one.trajectory is other.trajectory
        names = [n for n in type(one).__dataclass_fields__ if n != "trajectory"]
        assert [getattr(one, n) for n in names] == [getattr(other, n) for n in names]


def test_what_the_arithmetic_refuses_is_refused(ranker: Ranker) -> None:
    rows = RankInput(
        vectors_ND=np.eye(1, 2),
        trace_indices=None,
        group_N=np.zeros(1, int),
        candidates_MD=np.eye(2),
        starts=np.zeros(1, int),
        own=2,
        positive_GM=np.zeros((1, 2), bool),
        valid_GM=np.ones((1, 2), bool),
        plain_GD=None,
        closest=0,
    )
    with pytest.raises(DataError, match="have no valid positive"):
        ranker.rank_sides({Side.QUERY: rows}, temperature=0.1)
