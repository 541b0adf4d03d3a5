"""A pool of Reasoners that refuse versions, and die of what they are asked."""

import logging

import pytest

from cluster.pools.rollout import POISONED, PULLS, RolloutPool
from configs.common import MediaConfig, PoolConfig, RolloutConfig
from data.errors import WeightSyncError
from data.types import GenerationRequest, GroupKey, Side, TrajectoryKey
from tests.patience import PATIENCE_S
from tests.shared_pictures import share_pictures
from tests.workers import Reasoner

pytestmark = pytest.mark.usefixtures("local_ray")
ALWAYS = 1000


@pytest.fixture
def pool_of():
    pools = []

    def make(**refused):
        """Return a pool of two, with the number of pulls that some refuse."""
        names = {name.replace("_", "-"): count for name, count in refused.items()}
        config = RolloutConfig(pool=PoolConfig(actors=2, cpus=0.0, timeout_s=PATIENCE_S))
        pools.append(RolloutPool("none", config, MediaConfig(), store=names, actor=Reasoner))
        pools[-1].ready()
        return pools[-1]

    yield make
    for pool in pools:
        pool.close()


def requests(serial, **prompts):
    """Return two requests a pair, by its id."""
    return [
        GenerationRequest(
            key=TrajectoryKey(GroupKey(serial, pair, Side.QUERY), sibling),
            content=(prompt,),
            seed=0,
        )
        for pair, prompt in prompts.items()
        for sibling in range(2)
    ]


def test_an_engine_that_refuses_a_version_once_pulls_again_and_stays(pool_of, caplog):
    pool = pool_of(rollout_1=PULLS - 1)
    assert [report.version for report in pool.pull_weights(3)] == [3, 3]
    assert set(pool.actors) == {"rollout-0", "rollout-1"}
    assert "rollout-1: pulls version 3 again: rollout-1 refuses version 3" in caplog.text


def test_the_one_engine_that_refuses_a_version_is_replaced(pool_of):
    pool = pool_of(rollout_1=ALWAYS)
    assert [report.version for report in pool.pull_weights(3)] == [3]
    pool.ready()
    assert set(pool.actors) == {"rollout-0", "rollout-2"}
    assert [report.version for report in pool.pull_weights(4)] == [4, 4]


def test_a_version_that_all_engines_refuse_is_to_blame(pool_of):
    pool = pool_of(rollout_0=PULLS, rollout_1=PULLS)
    with pytest.raises(WeightSyncError, match=r"rollout-0 refuses version 3.*rollout-1 refuses"):
        pool.pull_weights(3)
    assert set(pool.actors) == {"rollout-0", "rollout-1"}
    assert len(pool.pull_weights(3)) == 2


def test_a_prompt_that_kills_its_actors_is_not_asked_again(pool_of, caplog):
    caplog.set_level(logging.WARNING)
    pool = pool_of()
    pictures = share_pictures({})
    for serial in (0, 1):
        asked = requests(serial, good="harmless", bad="deadly")
        done, dropped = pool.generate(asked, pictures)
        assert not done
        assert [one.key for one in dropped] == [one.key for one in asked]
        assert [one.reason for one in dropped] == ["sampled"] * 2 + [POISONED] * 2
        assert "alone with the last" in dropped[-1].detail
        pool.ready()
        lost = pool.counters()["pool/rollout/lost"]
        assert lost >= 2 if serial == 0 else lost == 0
    assert "bad query is set aside: it killed" in caplog.text
    # A pair of another data set may have the same id.
    _, dropped = pool.generate(requests(2, bad="of another set"), pictures)
    assert [one.reason for one in dropped] == ["sampled"] * 2
