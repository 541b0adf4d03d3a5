"""What the driver itself takes at the size of a cluster: the real loop over engines that sleep.

Rollout is simulated to take 9 s, rewards and training 5 s: two cores carry the work of 75 actors
beside the driver's.
Set OMP_NUM_THREADS=1 as for the actors: threads of BLAS that spin between products count as work.
"""

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import psutil
import pytest
import ray
from PIL import Image

from cluster.learner_group import LearnerGroup
from cluster.pictures import Decoder
from cluster.pools.reward import RewardPool
from cluster.pools.rollout import RolloutPool
from cluster.rl.ranker import Ranker
from cluster.rl.scoring import Scorer
from cluster.rl.step import Pipeline, StepResult
from cluster.run.run_folder import RunFolder
from cluster.session import spare_collections
from cluster.weights.store import WeightStore
from configs.common import DataConfig, PoolConfig, RolloutConfig, RunConfig, SamplingConfig
from configs.learner import LearnerConfig
from configs.reward import RewardConfig
from configs.schema import RLConfig
from data.relevance import Relevance
from data.sets.feed import PairFeed
from data.types import Item, Kind, Pair
from tests.bench.parts.engines import SleepingEmbedder, SleepingRank, SleepingReasoner, stages_s
from tests.bench.record import record
from tests.builders import loaded_set

ROOT = Path(__file__).resolve().parents[2]
SIBLINGS = 8
EPOCH = 4
"""Steps until a pair comes again."""
SIDE = 128
"""Of a picture, as the demo draws them."""
CPU_MS, SHARE_OF_IDEAL = 0.3, 0.9
WARM_UP, STEPS = 3, 7
GROWTH = 0.05
"""Of the memory from the second quarter of a long run to its last: more is no noise."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Size:
    """A simulated cluster and its steps."""

    engines: int
    embedders: int
    ranks: int
    pairs: int
    max_tokens: int
    steps: int

    @property
    def traces(self) -> int:
        return self.pairs * 2 * SIBLINGS

    @property
    def sampling(self) -> SamplingConfig:
        return SamplingConfig(temperature=1.0, max_tokens=self.max_tokens)

    def ideal_s(self) -> float:
        """Return the time of a step if nothing but the engines took any."""
        sizes = {"engines": self.engines, "embedders": self.embedders}
        return max(stages_s(self.traces, **sizes, sampling=self.sampling))


@dataclass(frozen=True, slots=True, kw_only=True)
class StepCost:
    """What one step took."""

    seconds: float
    cpu_s: float
    """Of all threads of the driver."""
    private_bytes: int
    """Memory of the driver without what it shares: the object store lies in shared memory."""


@pytest.mark.timeout(900)
def test_driver_of_64_engines_and_4096_traces_a_step(tmp_path: Path) -> None:
    size = Size(engines=64, embedders=4, ranks=4, pairs=256, max_tokens=60, steps=WARM_UP + STEPS)
    costs = run(size, tmp_path)[WARM_UP:]
    cpu_ms = [1000 * one.cpu_s / size.traces for one in costs]
    record(
        "driver, CPU per trajectory / limit",
        cpu_ms,
        [CPU_MS] * STEPS,
        target=CPU_MS,
        target_of="ours",
        unit="ms",
    )
    record(
        "step of 4,096 traces / ideal",
        [one.seconds for one in costs],
        [size.ideal_s()] * STEPS,
        target=1 / SHARE_OF_IDEAL,
    )


@pytest.mark.timeout(900)
def test_memory_of_the_driver_over_200_steps(tmp_path: Path) -> None:
    size = Size(engines=4, embedders=2, ranks=2, pairs=16, max_tokens=2, steps=200)
    quarters = np.array_split([one.private_bytes / 1e6 for one in run(size, tmp_path)], 4)
    record(
        "driver, memory of steps 151-200 / 51-100",
        quarters[3].tolist(),
        quarters[1].tolist(),
        target=1 + GROWTH,
        unit="MB",
    )


def run(size: Size, folder: Path) -> list[StepCost]:
    """Return what each step took; each writes its trajectories, as in the job."""
    config = RLConfig(
        run=RunConfig(dir=str(folder / "run")),
        data=DataConfig(),
        reasoner="unused",
        rollout=RolloutConfig(pool=PoolConfig(actors=size.engines, cpus=0), sampling=size.sampling),
        reward=RewardConfig(model="unused", pool=PoolConfig(actors=size.embedders, cpus=0)),
        learner=LearnerConfig(ranks=size.ranks, cpus=0),
        steps=size.steps,
        pairs=size.pairs,
        siblings=SIBLINGS,
        max_staleness=1,
    )
    pairs = drawn_pairs(size.pairs * EPOCH, folder)
    process = psutil.Process()
    costs = []
    run_folder = RunFolder(config, job="rl")
    with simulated(config, pairs) as pipeline:
        for step in range(1, size.steps + 1):
            began, cpu = time.perf_counter(), time.process_time()
            result = pipeline.step()
            run_folder.write_trajectories(step, result.rows)
            run_folder.log_metrics(step, result.metrics)
            check(result, size)
            memory = process.memory_info()
            costs.append(
                StepCost(
                    seconds=time.perf_counter() - began,
                    cpu_s=time.process_time() - cpu,
                    private_bytes=memory.rss - memory.shared,
                )
            )
    return costs


def check(result: StepResult, size: Size) -> None:
    """Fail where the simulated work is not that of a healthy run."""
    metrics = result.metrics
    assert metrics["traces/issued"] == size.traces == len(result.rows)
    assert metrics["dropped/total"] == metrics.get("dropped/no_spread", 0)
    assert metrics["reward/format"] == 1
    assert 0 < metrics["rank/accuracy"] < 1


@contextmanager
def simulated(config: RLConfig, pairs: Sequence[Pair]) -> Iterator[Pipeline]:
    """Yield the loop over a Ray of its own; the engines' actors sleep."""
    ray.init(
        address="local",
        namespace="bench",
        include_dashboard=False,
        num_cpus=2,
        runtime_env={"env_vars": {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}},
    )
    data = config.data
    learner = LearnerGroup(config.learner, rank=SleepingRank)
    rollout = RolloutPool("unused", config.rollout, data.media, actor=SleepingReasoner)
    reward = RewardPool(config.reward, data.media, actor=SleepingEmbedder)
    learner.build_policy(
        model="unused",
        media=data.media,
        total_steps=config.steps,
        seed=0,
        grpo=config.grpo,
        sampling=config.rollout.sampling,
    )
    for pool in (rollout, reward):
        pool.ready()
    decoder, ranker = Decoder(), Ranker()
    loaded = loaded_set(name="set", pairs=tuple(pairs), bad_rows=())
    pipeline = Pipeline(
        config,
        feed=PairFeed([loaded], {"set": 1.0}, batch=config.pairs, seed=0),
        rollout=rollout,
        scorer=Scorer(
            config.reward,
            embedder=reward,
            judge=None,
            item_tokens=0,
            max_frames=data.media.max_frames,
            compute=ranker.rank_sides,
            relevance=Relevance(pairs),
        ),
        decoder=decoder,
        learner=learner,
        store=ray.remote(WeightStore).options(num_cpus=0).remote(),
    )
    try:
        pipeline.sync()
        spare_collections()
        yield pipeline
    finally:
        pipeline.close()
        for part in (rollout, reward, learner, decoder, ranker):
            part.close()
        ray.shutdown()


def drawn_pairs(count: int, folder: Path) -> list[Pair]:
    """Return pairs of pictures with a question each; the texts begin with the pair's name."""
    rng = np.random.default_rng(0)
    pairs = []
    for index in range(count):
        name = f"pair-{index:05d}"
        items = []
        for part in ("query", "target"):
            path = folder / f"{name}-{part}.png"
            low, high = np.sort(rng.integers(0, SIDE, (2, 2)), axis=0)
            pixels = np.full((SIDE, SIDE, 3), 255, dtype=np.uint8)
            pixels[low[0] : high[0], low[1] : high[1]] = rng.integers(0, 256, 3)
            Image.fromarray(pixels).save(path)
            text = f"{name} what color is the shape that stands in the {part} to the left of it"
            items.append(Item(text=text, kind=Kind.IMAGE, uris=(str(path),)))
        pairs.append(Pair(pair_id=name, source="set", query=items[0], target=items[1]))
    return pairs
