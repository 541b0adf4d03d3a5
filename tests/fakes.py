"""Stand-ins behind the interfaces of pools and learner, for tests of what lies between them."""

import zlib

import numpy as np

from data.errors import WeightSyncError
from data.types import StepReport, Trajectory
from data.weights.types import Published
from learner.objectives import TokenScores


class FakeEmbedder:
    """Gives each content a random unit vector of its own; fails where told."""

    def __init__(self, *, fails=()):
        self.asked = []
        self.fails = fails

    def embed(self, requests, pictures):
        self.asked += [request.key for request in requests]
        vectors, failed = {}, {}
        for request in requests:
            if request.key in self.fails:
                failed[request.key] = "told to fail"
                continue
            rng = np.random.default_rng(zlib.crc32(repr(request.content).encode()))
            vector = rng.normal(size=8)
            vectors[request.key] = (vector / np.linalg.norm(vector)).astype(np.float32)
        return vectors, failed

    def begin(self, requests, pictures, *, more):
        done = self.embed(requests, pictures)
        return lambda: done


class FakeRollout:
    """Gives siblings traces of 3, 4, ... tokens; those of ``dull`` groups are all alike."""

    def __init__(self, dull=lambda group: False, *, failing_pulls=0):
        self.dull = dull
        self.version = 0
        self.failing_pulls = failing_pulls
        self.actors = {"rollout-0": self}
        self.asked = []
        """Requests by call."""

    def generate(self, requests, pictures, *, urgent=False):
        self.asked.append(list(requests))
        return [self._trace(request.key) for request in requests], []

    def stream(self, requests, pictures):
        yield self.generate(requests, pictures)

    def _trace(self, key):
        dull = self.dull(key.group)
        tokens = 3 if dull else 3 + key.sibling
        return Trajectory(
            key=key,
            prompt_ids=np.array([1, 2]),
            response_ids=np.arange(tokens),
            logprobs=np.full(tokens, -0.1 * (1 + key.sibling), dtype=np.float32),
            text=str(key.group if dull else key),
            finish="stop",
            min_version=self.version,
            max_version=self.version,
        )

    def pull_weights(self, version):
        if self.failing_pulls:
            self.failing_pulls -= 1
            raise WeightSyncError(f"version {version}: told to fail")
        self.version = version
        return []


class FakeLearner:
    """Remembers what it is trained on; its steps are broken where told."""

    def __init__(self, *, breaks=False):
        self.breaks = breaks
        self.trained = []
        """Samples by step."""
        self.pictures = []
        self.announced = []
        """Versions, and whether in place of all others."""

    def train_policy(self, samples, pictures):
        self.trained.append(list(samples))
        self.pictures.append(pictures)
        broken = tuple(sample.key for sample in samples) if self.breaks else ()
        return StepReport(metrics={"policy/loss": 0.0}, seconds=0.0, broken=broken)

    def score_policy(self, samples, pictures):
        return {one.key: TokenScores(one.logprobs, one.logprobs) for one in samples}

    def announce(self, version, store, *, again=False):
        self.announced.append((version, again))

    def check(self):
        pass

    def publish(self, version, store):
        return Published(delta=False, bytes=0, seconds={}, digest=f"weights {version}")

    def save(self, folder):
        pass

    def load(self, folder):
        pass
