"""Every Ray actor of an RL run: what they ask for, how they are opened, and how closed.

| actor | class | how many | lives until |
|---|---|---|---|
| `weights` | `WeightStore` | 1 | Ray ends; starts again empty |
| `learner-N` | `LearnerRank` | `learner.ranks` | the group closes or loses a rank |
| `rollout-N` | `RolloutActor` | `rollout.pool.actors` | the pool closes or shrinks |
| `reward-N` | `EmbedderActor` | `reward.pool.actors` | the pool closes or shrinks |
| `second-N` | `EmbedderActor` | as many, with `reward.second_model` | the pool closes or shrinks |
| `judge-N` | `JudgeActor` | `reward.judge.pool.actors`, with a judge | the pool closes or shrinks |
| the decoder's | `SideProcessActor` | 1 | `Decoder` closes |
| the ranker's | `SideProcessActor` | 1 | `Ranker` closes |
| `pool-targets` | `PoolTargets` | 1 | Ray ends; starts again empty |

A pool starts its lost actors again. Ray starts the decoder, the ranker, `weights` and
`pool-targets` again. `cluster.run.recovery` starts a learner group again that lost a rank.
"""

import logging
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from typing import Any

import ray

from cluster.learner_group import LearnerGroup, learner_role
from cluster.pictures import Decoder
from cluster.placement import Role, driver_node, release, reserve
from cluster.pools.judge import JudgePool
from cluster.pools.pool_scaler import TARGETS, PoolScaler, PoolTargets
from cluster.pools.reward import RewardPool
from cluster.pools.rollout import RolloutPool
from cluster.rl.ranker import Ranker
from cluster.weights.store import WeightStore
from configs.schema import RLConfig
from rollout.actor import StoreAddress

log = logging.getLogger(__name__)
STORE = "weights"
"""Name of the weight store in the run's namespace."""


def roles(config: RLConfig) -> list[Role]:
    """Return what the job asks Ray for."""
    pools = {"rollout": config.rollout.pool, "reward": config.reward.pool}
    if config.reward.second_model:
        pools["second"] = config.reward.pool
    if config.reward.judge.model:
        pools["judge"] = config.reward.judge.pool
    return [
        *(Role(name, pool.actors, pool.cpus, pool.gpus) for name, pool in pools.items()),
        learner_role(config.learner),
    ]


@dataclass(frozen=True, slots=True, kw_only=True)
class Actors:
    """The open actors; each field is the driver's object that talks to them."""

    store: Any
    """Handle of the `WeightStore`."""
    address: StoreAddress
    """Where engines find the store."""
    learner: LearnerGroup
    rollout: RolloutPool
    reward: RewardPool
    second: RewardPool | None
    judge: JudgePool | None
    decoder: Decoder
    ranker: Ranker
    scaler: PoolScaler
    """Asks the `PoolTargets`, and resizes the pools."""


@contextmanager
def open_actors(config: RLConfig, *, namespace: str) -> Iterator[Actors]:
    """Open all actors in the run's namespace, and close them at the end of the ``with`` block.

    The driver must be connected to the namespace. Before the block begins, the learner has built
    its policy and all engines have loaded their models.

    Raises:
        ClusterError: an actor got no place, did not start or died.
    """
    data = config.data
    with ExitStack() as stack:
        # Both start again empty: weights are published again, sizes stay as they are. They lie
        # on the driver's node, so that no other node takes them along.
        here = {"scheduling_strategy": driver_node(), "num_cpus": 0}
        lasting = {**here, "max_restarts": -1, "max_task_retries": -1}
        store = ray.remote(WeightStore).options(name=STORE, **lasting).remote()
        places = reserve(roles(config))
        stack.callback(release, places)
        [place] = places["learner"]
        learner = LearnerGroup(config.learner, config.weights, reserved=place)
        stack.callback(learner.close)
        address = StoreAddress(
            ray_address=ray.get_runtime_context().gcs_address,
            namespace=namespace,
            actor_name=STORE,
        )
        rollout = RolloutPool(
            config.reasoner,
            config.rollout,
            data.media,
            store=address,
            reserved=places["rollout"],
        )
        stack.callback(rollout.close)
        reward = RewardPool(config.reward, data.media, reserved=places["reward"])
        stack.callback(reward.close)
        second = judge = None
        if config.reward.second_model:
            other = replace(config.reward, model=config.reward.second_model)
            second = RewardPool(other, data.media, role="second", reserved=places["second"])
            stack.callback(second.close)
        if config.reward.judge.model:
            judge = JudgePool(config.reward.judge, reserved=places["judge"])
            stack.callback(judge.close)
        decoder, ranker = Decoder(), Ranker()
        stack.callback(decoder.close)
        stack.callback(ranker.close)
        opened = (rollout, reward, second, judge)
        pools = {pool.role.name: pool for pool in opened if pool is not None}
        log.info("waiting for the engines of %s to load", ", ".join(pools))
        if 0 < config.learner.gpus < 1:  # an engine would count what it takes meanwhile as its own
            for pool in pools.values():
                pool.ready()
        learner.build_policy(
            model=config.reasoner,
            media=data.media,
            total_steps=config.steps,
            seed=config.run.seed,
            grpo=config.grpo,
            sampling=config.rollout.sampling,
        )
        targets = ray.remote(PoolTargets).options(name=TARGETS, **lasting).remote(tuple(pools))
        policies = {
            "rollout": config.rollout.pool,
            "reward": config.reward.pool,
            "second": config.reward.pool,
            "judge": config.reward.judge.pool,
        }
        scaler = PoolScaler(pools, policies, targets)
        for pool in pools.values():
            pool.ready()
        yield Actors(
            store=store,
            address=address,
            learner=learner,
            rollout=rollout,
            reward=reward,
            second=second,
            judge=judge,
            decoder=decoder,
            ranker=ranker,
            scaler=scaler,
        )
