"""The RL loop over engines that only sleep, for tests and benchmarks of what lies around them."""

import threading
import time
from contextlib import contextmanager
from functools import cache

import numpy as np

from cluster.pictures import Decoder
from cluster.rl.scoring import Scorer
from cluster.rl.step import Pipeline
from configs.common import RunConfig
from configs.learner import GRPOConfig
from configs.reward import RewardConfig
from configs.schema import RLConfig
from data.errors import ClusterError
from data.relevance import Relevance
from data.sets.feed import PairFeed
from tests.builders import loaded_set, make_pair
from tests.fakes import FakeEmbedder, FakeLearner, FakeRollout

PAIRS, SIBLINGS = 4, 2


class Sleeping:
    """Takes about ``seconds`` per call, give or take a tenth."""

    def __init__(self, seconds=0.0, *, seed=0):
        self.seconds = seconds
        self._rng = np.random.default_rng(seed)

    def __call__(self):
        time.sleep(max(0.0, self.seconds * self._rng.normal(1.0, 0.1)))


class SlowRollout(FakeRollout):
    def __init__(self, seconds=0.0, fails_at=None):
        super().__init__()
        self.sleep = Sleeping(seconds, seed=1)
        self.steps, self.fails_at = 0, fails_at

    def generate(self, requests, pictures, *, urgent=False):
        done = super().generate(requests, pictures)
        if requests[0].max_tokens is not None:
            return done  # a probe of few tokens
        self.sleep()
        self.steps += 1
        if self.steps == self.fails_at:
            raise ClusterError("the rollout pool is gone")
        return done


class SlowEmbedder(FakeEmbedder):
    def __init__(self, seconds=0.0):
        super().__init__()
        self.sleep = Sleeping(seconds / 2, seed=2)  # traces, and the monitors' sample

    def embed(self, requests, pictures):
        self.sleep()
        return super().embed(requests, pictures)


class SlowLearner(FakeLearner):
    """Refuses two calls at a time: its ranks would meet in different collectives."""

    def __init__(self, seconds=0.0):
        super().__init__()
        self.sleep = Sleeping(seconds, seed=3)
        self.scored = 0
        self.lock = None
        """The pipeline's lock; where it is set, every call checks that it is held."""
        self._busy = threading.Lock()

    def train_policy(self, samples, pictures):
        with self._alone():
            self.sleep()
            return super().train_policy(samples, pictures)

    def score_policy(self, samples, pictures):
        with self._alone():
            self.scored += 1
            return super().score_policy(samples, pictures)

    def announce(self, version, store, *, again=False):
        assert self.lock is None or self.lock.locked(), "engines freeze before the learner is free"
        super().announce(version, store, again=again)

    def publish(self, version, store):
        with self._alone():
            return super().publish(version, store)

    @contextmanager
    def _alone(self):
        assert self.lock is None or self.lock.locked(), "a call without the lock"
        assert self._busy.acquire(blocking=False), "two calls at a time"
        try:
            yield
        finally:
            self._busy.release()


@cache
def decoder():
    """Return the one of all pipelines, on the only Ray of this process."""
    return Decoder()


def simulated_pipeline(
    *, max_staleness, steps, stale="wait", rollout=None, embedder=None, learner=None, **grpo
):
    """Return a pipeline whose engines hold the first weights; all its groups have spread."""
    config = RLConfig(
        run=RunConfig(dir="unused"),
        reasoner="unused",
        # Siblings differ in length.
        reward=RewardConfig(model="unused", length_weight=1.0, length_budget=1),
        pairs=PAIRS,
        siblings=SIBLINGS,
        steps=steps,
        max_staleness=max_staleness,
        stale=stale,
        grpo=GRPOConfig(**grpo),
    )
    loaded = loaded_set(
        name="set", pairs=tuple(make_pair(f"p{index}") for index in range(60)), bad_rows=()
    )
    scorer = Scorer(
        config.reward,
        embedder=embedder or FakeEmbedder(),
        judge=None,
        item_tokens=0,
        max_frames=8,
        relevance=Relevance(loaded.pairs),
    )
    pipeline = Pipeline(
        config,
        feed=PairFeed([loaded], {"set": 1.0}, batch=PAIRS, seed=0),
        rollout=rollout or FakeRollout(),
        scorer=scorer,
        decoder=decoder(),
        learner=learner or FakeLearner(),
        store=None,
    )
    pipeline.sync()
    return pipeline
